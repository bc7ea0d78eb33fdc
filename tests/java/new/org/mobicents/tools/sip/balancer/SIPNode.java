package org.mobicents.tools.sip.balancer;

import java.io.Serializable;
import java.util.HashMap;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicLong;

/** A node as newer clients send it, under the serial version of the old ones. */
public class SIPNode implements Serializable {
    private static final long serialVersionUID = -4959114432342926569L;

    private final long timeStamp = System.currentTimeMillis();
    private final String hostName;
    private final String ip;
    private final HashMap<String, Serializable> properties = new HashMap<>();
    private final AtomicInteger failCounter = new AtomicInteger(3);
    private final AtomicInteger requestNumberWithoutResponse = new AtomicInteger(4);
    private final AtomicLong lastTimeError = new AtomicLong(5);
    private final AtomicLong lastTimeResponse = new AtomicLong(6);

    public SIPNode(String hostName, String ip) {
        this.hostName = hostName;
        this.ip = ip;
    }

    public HashMap<String, Serializable> getProperties() {
        return properties;
    }
}
