package org.mobicents.tools.sip.balancer;

import java.io.Serializable;
import java.util.HashMap;

/** A node as old clients send it: its names and types are the wire (http-smpp-registry.md 3.4). */
public class SIPNode implements Serializable {
    private static final long serialVersionUID = -4959114432342926569L;

    private final long timeStamp = System.currentTimeMillis();
    private final String hostName;
    private final String ip;
    private final HashMap<String, Serializable> properties = new HashMap<>();

    public SIPNode(String hostName, String ip) {
        this.hostName = hostName;
        this.ip = ip;
    }

    public HashMap<String, Serializable> getProperties() {
        return properties;
    }
}
