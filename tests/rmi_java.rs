//! `java.rmi` itself as the node (`http-smpp-registry.md` 3.4): JVMs that announce application servers to the
//! real process. Their classes are compiled from `java/`, in both layouts that the field has.

use std::time::{Duration, Instant};

use tests::{Balancer, JavaNode, Layout, Node, Setup, wait_for, who_got};

/// The line that tells a JVM of a node, its SIP ports as the JVM's type `kind` (`int:` or nothing).
fn line(node: &Node, kind: &str, more: &str) -> String {
    let (name, port) = (node.name(), node.address().port());
    format!("node {name} 127.0.0.1 udpPort={kind}{port} tcpPort={kind}{port} version=0 {more}")
}

fn java(lb: &Balancer, layout: Layout) -> Option<JavaNode> {
    // Leases of a second, so that they are renewed within the play.
    JavaNode::start(layout, lb.rmi().port(), &["-Djava.rmi.dgc.leaseValue=1000"])
}

fn nodes(names: &[&str]) -> Vec<Node> {
    let nodes: Vec<Node> = names.iter().map(|it| Node::bind(it)).collect();
    nodes.iter().for_each(|it| it.answers_calls());
    nodes
}

#[test]
fn jvms_of_both_layouts_announce_several_nodes_for_a_while() {
    // A JVM on a busy machine takes its time.
    let lb = Setup::two_entry().heartbeats().set("nodeTimeout", "10000").start();
    let (Some(mut old), Some(mut new)) = (java(&lb, Layout::Old), java(&lb, Layout::New)) else {
        return;
    };
    for it in [&mut old, &mut new] {
        assert_eq!(it.tell("list"), "SIPBalancer");
        for _ in 0..2 {
            assert_eq!(it.tell("ping"), "ok", "an empty list");
        }
    }
    lb.wait_log("Heartbeat from 127.0.0.1 without any node");
    assert_eq!(lb.log().matches("without any node").count(), 1, "once for each source");

    let nodes = nodes(&["n0", "n1", "n2"]);
    old.tell(&line(&nodes[0], "int:", "jvmRoute=a sessionId=1 httpPort=int:8080"));
    old.tell(&line(&nodes[1], "", "jvmRoute=b sessionId=2 name=größer𝄞"));
    new.tell(&line(&nodes[2], "int:", "jvmRoute=c sessionId=3"));
    let started = Instant::now();
    for it in [&old, &new] {
        it.say("every 250 60");
    }
    lb.wait_nodes(3);
    let caller = lb.caller("alice");
    for _ in 0..6 {
        let mut call = caller.call("sip:bob@example.com");
        caller.exchange(&mut call, "BYE");
    }
    let got: Vec<usize> = nodes.iter().map(|it| it.count("INVITE")).collect();
    assert_eq!(got, [2, 2, 2]);
    lb.wait_node("integers and texts", |it| {
        it.host_name == "n0" && it.property("httpPort") == Some("8080")
    });
    lb.wait_node("any text", |it| it.property("name") == Some("größer𝄞"));
    for it in [&mut old, &mut new] {
        assert_eq!(it.answer(), "ok", "every one of sixty heartbeats");
    }
    assert!(started.elapsed() > Duration::from_secs(15));
    assert_eq!(lb.known().len(), 3);
    assert!(!lb.log().contains("removed"), "{}", lb.log());
    let metrics = |name: &str| lb.metric(name);
    let connections = metrics("trunkline_heartbeat_connections_total");
    assert!(connections <= 16.0, "{connections} connections for 240 calls and some leases");
    assert!(metrics("trunkline_rmi_upkeep_total{kind=\"ping\"}") >= 100.0, "tests before reuse");
    assert!(metrics("trunkline_rmi_upkeep_total{kind=\"lease\"}") >= 10.0, "renewals");
    assert_eq!(metrics("trunkline_heartbeats_total{by=\"rmi\"}"), 124.0);
    assert_eq!(metrics("trunkline_heartbeats_refused_total{reason=\"malformed\"}"), 0.0);

    assert_eq!(old.tell("switchover a c"), "ok");
    lb.wait_log("Switchover fromJvmRoute=a and toJvmRoute=c");
    assert_eq!(old.tell("switchover a nowhere"), "ok");
    lb.wait_log("Switchover failed where fromJvmRoute=a and toJvmRoute=nowhere");
    assert_eq!(old.tell("remove"), "ok");
    let left: Vec<String> = lb.known().into_iter().map(|it| it.host_name).collect();
    assert_eq!(left, ["n2"], "forceRemoval counts at once");
    lb.wait_log("forcibly removed due to a clean shutdown of a node");
    wait_for("the end of a lease", || {
        new.tell("collect");
        (lb.metric("trunkline_rmi_upkeep_total{kind=\"release\"}") > 0.0).then_some(())
    });
    lb.wait_nodes(0); // it has fallen silent meanwhile
}

/// Minutes, at the pace of the field: connections that are used again are tested first, those that are idle
/// for too long are given up and opened anew, and leases are renewed.
#[test]
fn over_minutes_connections_are_used_again_and_given_up_and_leases_renewed() {
    let lb = Setup::two_entry().heartbeats().set("nodeTimeout", "30000").start();
    let port = lb.rmi().port();
    let steady = JavaNode::start(Layout::Old, port, &["-Djava.rmi.dgc.leaseValue=20000"]);
    let hasty = [
        "-Djava.rmi.dgc.leaseValue=20000",
        "-Dsun.rmi.transport.connectionTimeout=1000", // from idle to given up
    ];
    let hasty = JavaNode::start(Layout::New, port, &hasty);
    let (Some(mut steady), Some(mut hasty)) = (steady, hasty) else { return };
    let nodes = nodes(&["n0", "n1", "n2"]);
    steady.tell(&line(&nodes[0], "int:", "sessionId=1"));
    steady.tell(&line(&nodes[1], "", "sessionId=2"));
    hasty.tell(&line(&nodes[2], "int:", "sessionId=3"));
    let started = Instant::now();
    let mut rounds = 0;
    while started.elapsed() < Duration::from_secs(125) {
        steady.say("every 500 20"); // ten seconds
        hasty.say("every 5000 2"); // as the stock client
        assert_eq!((steady.answer(), hasty.answer()), ("ok".to_owned(), "ok".to_owned()));
        assert_eq!(lb.known().len(), 3, "after {:?}: {}", started.elapsed(), lb.log());
        rounds += 1;
    }
    let metrics = |name: &str| lb.metric(name);
    assert_eq!(metrics("trunkline_heartbeats_total{by=\"rmi\"}"), f64::from(22 * rounds));
    assert_eq!(metrics("trunkline_heartbeats_refused_total{reason=\"malformed\"}"), 0.0);
    // The hasty one opens a connection to the registry and one to the object each time or almost.
    let connections = metrics("trunkline_heartbeat_connections_total");
    assert!(connections >= f64::from(2 * rounds), "given up: {connections} in {rounds} rounds");
    assert!(connections <= f64::from(8 * rounds), "used again: {connections} in {rounds} rounds");
    let pings = metrics("trunkline_rmi_upkeep_total{kind=\"ping\"}");
    assert!(pings >= f64::from(20 * rounds), "tested before use: {pings} in {rounds} rounds");
    let leases = metrics("trunkline_rmi_upkeep_total{kind=\"lease\"}");
    assert!(leases >= 12.0, "two that renew every ten seconds: {leases}");
    assert!(!lb.log().contains("removed"), "{}", lb.log());
}

#[test] // R5, 24
fn a_node_that_shuts_down_by_rmi_keeps_its_calls_and_gets_no_new_ones() {
    let lb = Setup::two_entry()
        .heartbeats()
        .set("nodeTimeout", "10000")
        .algorithm("UserBasedAlgorithm")
        .set("sipHeaderAffinityKey", "To")
        .start();
    let Some(mut java) = java(&lb, Layout::New) else { return };
    let nodes = nodes(&["n0", "n1"]);
    for (at, node) in nodes.iter().enumerate() {
        java.tell(&line(node, "int:", &format!("sessionId={at}")));
    }
    assert_eq!(java.tell("ping"), "ok");
    lb.wait_nodes(2);
    let caller = lb.caller("alice");
    let mut first = caller.call("sip:bob@example.com");
    let home = who_got(&nodes, &first.call_id, "INVITE")[0];
    java.tell("clear");
    for (at, node) in nodes.iter().enumerate() {
        let leaving = if at == home { "GRACEFUL_SHUTDOWN=true" } else { "" };
        java.tell(&line(node, "int:", &format!("sessionId={at} {leaving}")));
    }
    assert_eq!(java.tell("ping"), "ok");
    lb.wait_node("it leaves", |it| it.is_leaving && it.host_name == nodes[home].name());
    java.say("every 250 48"); // longer than its timeout: it is heard
    caller.exchange(&mut first, "BYE");
    assert_eq!(who_got(&nodes, &first.call_id, "BYE"), [home]);
    let mut second = caller.call("sip:bob@example.com");
    assert_eq!(who_got(&nodes, &second.call_id, "INVITE"), [1 - home]);
    caller.exchange(&mut second, "BYE");
    assert_eq!(java.answer(), "ok");
    assert_eq!(lb.known().len(), 2, "{}", lb.log());
}

/// A huge list is refused and the node told so; what it says afterwards is heard.
#[test]
fn a_jvm_that_says_too_much_gets_an_exception_and_may_go_on() {
    let lb = Setup::two_entry()
        .heartbeats()
        .set("nodeTimeout", "10000")
        .set("rmiRemoteObjectPort", "0")
        .set("rmiStubHost", "localhost")
        .start();
    let Some(mut java) = java(&lb, Layout::Old) else { return };
    for index in 0..600 {
        let pairs: Vec<String> = (0..20).map(|it| format!("p{it}={index}")).collect();
        java.tell(&format!("node n{index} 10.0.0.1 {}", pairs.join(" ")));
    }
    let answer = java.tell("ping");
    assert!(answer.starts_with("java.rmi."), "{answer}");
    java.tell("clear");
    let nodes = nodes(&["n0"]);
    java.tell(&line(&nodes[0], "", "sessionId=1"));
    assert_eq!(java.tell("ping"), "ok", "one port serves registry and object, under another name");
    lb.wait_nodes(1);
    // What is refused is said, and a node by that name of another process is not touched.
    java.tell("clear");
    java.tell("node nowhere - udpPort=1");
    assert_eq!(java.tell("ping"), "ok");
    lb.wait_log("Heartbeat from 127.0.0.1 refused: Heartbeat ip is not an address");
    java.tell("clear");
    java.tell(&line(&nodes[0], "", "sessionId=0"));
    assert_eq!(java.tell("remove"), "ok");
    assert_eq!(lb.known().len(), 1, "the late end of a process before this one");
}
