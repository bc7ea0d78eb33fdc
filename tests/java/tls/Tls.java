import java.io.BufferedReader;
import java.io.FileInputStream;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.io.OutputStream;
import java.nio.charset.StandardCharsets;
import java.security.KeyStore;
import java.util.List;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.SNIHostName;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLParameters;
import javax.net.ssl.SSLServerSocket;
import javax.net.ssl.SSLSocket;
import javax.net.ssl.TrustManagerFactory;

/**
 * A SIP peer over TLS as Java programs are, with key stores of Java.
 *
 * <pre>
 * Tls ask PORT VERSION NAME TRUSTSTORE PASSWORD [KEYSTORE]   sends OPTIONS, prints the answer's first line
 * Tls serve KEYSTORE PASSWORD TRUSTSTORE                     prints its port, then for each connection the
 *                                                            subject of the client's certificate, which it
 *                                                            insists on; answers every request by 200
 * </pre>
 */
public class Tls {
    public static void main(String[] words) throws Exception {
        if (words[0].equals("ask")) {
            String own = words.length > 6 ? words[6] : null;
            ask(Integer.parseInt(words[1]), words[2], words[3], context(words[4], own, words[5]));
        } else {
            serve(context(words[3], words[1], words[2]));
        }
    }

    static SSLContext context(String trustStore, String keyStore, String password) throws Exception {
        TrustManagerFactory trust =
                TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        trust.init(load(trustStore, password));
        KeyManagerFactory keys =
                KeyManagerFactory.getInstance(KeyManagerFactory.getDefaultAlgorithm());
        keys.init(keyStore == null ? null : load(keyStore, password), password.toCharArray());
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(keys.getKeyManagers(), trust.getTrustManagers(), null);
        return context;
    }

    static KeyStore load(String path, String password) throws Exception {
        // JKS opens PKCS12 too, as javax.net.ssl.keyStore does.
        KeyStore store = KeyStore.getInstance("JKS");
        try (InputStream file = new FileInputStream(path)) {
            store.load(file, password.toCharArray());
        }
        return store;
    }

    static void ask(int port, String version, String name, SSLContext context) throws Exception {
        try (SSLSocket socket =
                (SSLSocket) context.getSocketFactory().createSocket("127.0.0.1", port)) {
            socket.setSoTimeout(20_000);
            SSLParameters terms = socket.getSSLParameters();
            terms.setProtocols(new String[] {version});
            terms.setServerNames(List.of(new SNIHostName(name)));
            socket.setSSLParameters(terms);
            socket.startHandshake();
            String subject = socket.getSession().getPeerPrincipal().getName();
            String request =
                    "OPTIONS sip:bob@example.com SIP/2.0\r\n"
                            + "Via: SIP/2.0/TLS 127.0.0.1:" + socket.getLocalPort() + ";branch=z9hG4bKjava\r\n"
                            + "Max-Forwards: 70\r\nFrom: <sip:java@example.com>;tag=java\r\n"
                            + "To: <sip:bob@example.com>\r\nCall-ID: java" + System.nanoTime() + "\r\n"
                            + "CSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n";
            OutputStream out = socket.getOutputStream();
            out.write(request.getBytes(StandardCharsets.US_ASCII));
            out.flush();
            BufferedReader in =
                    new BufferedReader(
                            new InputStreamReader(socket.getInputStream(), StandardCharsets.US_ASCII));
            System.out.println(in.readLine() + " by " + subject + " over " + socket.getSession().getProtocol());
        }
    }

    static void serve(SSLContext context) throws Exception {
        SSLServerSocket listener =
                (SSLServerSocket) context.getServerSocketFactory().createServerSocket(0);
        listener.setNeedClientAuth(true);
        System.out.println(listener.getLocalPort());
        while (true) {
            SSLSocket socket = (SSLSocket) listener.accept();
            Thread thread = new Thread(() -> talk(socket));
            thread.setDaemon(true);
            thread.start();
        }
    }

    static void talk(SSLSocket socket) {
        try (socket) {
            socket.startHandshake();
            System.out.println(socket.getSession().getPeerPrincipal().getName());
            BufferedReader in =
                    new BufferedReader(
                            new InputStreamReader(socket.getInputStream(), StandardCharsets.US_ASCII));
            StringBuilder answer = new StringBuilder();
            // Requests of the test have no bodies.
            for (String line = in.readLine(); line != null; line = in.readLine()) {
                String lower = line.toLowerCase();
                if (line.endsWith(" SIP/2.0")) {
                    answer.setLength(0);
                    answer.append("SIP/2.0 200 OK\r\n");
                } else if (line.isEmpty() && answer.length() > 0) {
                    answer.append("Content-Length: 0\r\n\r\n");
                    socket.getOutputStream().write(answer.toString().getBytes(StandardCharsets.US_ASCII));
                    socket.getOutputStream().flush();
                } else if (lower.startsWith("to:")) {
                    answer.append(line).append(";tag=java\r\n");
                } else if (lower.matches("(via|from|call-id|cseq|v|f|i):.*")) {
                    answer.append(line).append("\r\n");
                }
            }
        } catch (Exception error) {
            System.out.println("failed: " + error.getMessage());
        }
    }
}
