package org.mobicents.tools.sip.balancer;

import java.rmi.Remote;
import java.rmi.RemoteException;
import java.util.ArrayList;

/** What a node calls: its names and types are the wire (http-smpp-registry.md 3.4). */
public interface NodeRegisterRMIStub extends Remote {
    void handlePing(ArrayList<SIPNode> nodes) throws RemoteException;

    void forceRemoval(ArrayList<SIPNode> nodes) throws RemoteException;

    void switchover(String fromJvmRoute, String toJvmRoute) throws RemoteException;
}
