package org.mobicents.tools.sip.balancer;

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.rmi.registry.LocateRegistry;
import java.rmi.registry.Registry;
import java.util.ArrayList;
import java.util.Arrays;

/**
 * A node that does what it reads, a line at a time, and answers each line with "ok" or with the
 * exception it got. Like the nodes in the field it looks the balancer up anew for every call.
 *
 * <pre>
 * node NAME IP [KEY=TEXT | KEY=int:NUMBER]...   one more node in the list
 * clear                                         an empty list
 * list                                          names in the registry
 * ping | remove                                 handlePing and forceRemoval of the list
 * every MILLIS TIMES                            handlePing, again and again
 * switchover FROM TO
 * collect                                       forget the balancer and collect garbage
 * </pre>
 */
public class Node {
    public static void main(String[] arguments) throws Exception {
        String host = arguments[0];
        int port = Integer.parseInt(arguments[1]);
        ArrayList<SIPNode> nodes = new ArrayList<>();
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in));
        for (String line; (line = lines.readLine()) != null; ) {
            String answer = "ok";
            try {
                answer = obey(line.trim().split(" +"), host, port, nodes);
            } catch (Exception it) {
                answer = it.toString().replace('\n', ' ');
            }
            System.out.println(answer);
            System.out.flush();
        }
    }

    private static String obey(String[] words, String host, int port, ArrayList<SIPNode> nodes)
            throws Exception {
        switch (words[0]) {
            case "node":
                SIPNode node = new SIPNode(words[1], words[2]);
                for (String pair : Arrays.copyOfRange(words, 3, words.length)) {
                    String[] sides = pair.split("=", 2);
                    if (sides[1].startsWith("int:")) {
                        node.getProperties().put(sides[0], Integer.valueOf(sides[1].substring(4)));
                    } else {
                        node.getProperties().put(sides[0], sides[1]);
                    }
                }
                nodes.add(node);
                break;
            case "clear":
                nodes.clear();
                break;
            case "list":
                return String.join(" ", LocateRegistry.getRegistry(host, port).list());
            case "ping":
                balancer(host, port).handlePing(nodes);
                break;
            case "every":
                for (int left = Integer.parseInt(words[2]); left > 0; left--) {
                    balancer(host, port).handlePing(nodes);
                    Thread.sleep(Long.parseLong(words[1]));
                }
                break;
            case "remove":
                balancer(host, port).forceRemoval(nodes);
                break;
            case "switchover":
                balancer(host, port).switchover(words[1], words[2]);
                break;
            case "collect":
                System.gc();
                break;
            default:
                return "unknown: " + words[0];
        }
        return "ok";
    }

    private static NodeRegisterRMIStub balancer(String host, int port) throws Exception {
        Registry registry = LocateRegistry.getRegistry(host, port);
        return (NodeRegisterRMIStub) registry.lookup("SIPBalancer");
    }
}
