//! Two balancers and one virtual address on each side, as keepalived has them: one is master, the other
//! takes over. In network namespaces, since an address must really move.

use std::net::{IpAddr, SocketAddr};

use tests::{
    Balancer, Dialog, JsonBeats, Namespaces, Node, Peer, Received, Setup, wait_for, who_got,
};

/// The addresses that move.
const OUTSIDE: &str = "10.77.1.100";
const INSIDE: &str = "10.77.2.100";
/// Where each balancer is whoever is master, for what nodes tell every one of them.
const HOSTS: [(&str, &str); 2] = [("one", "10.77.3.1"), ("two", "10.77.3.2")];
/// As VRRP gives them (RFC 9568 §7.3): they move along.
const MAC_OUTSIDE: &str = "00:00:5e:00:01:01";
const MAC_INSIDE: &str = "00:00:5e:00:01:02";

fn address(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}

/// The virtual addresses leave one host and come up on the other, which tells the network (gratuitous ARP).
fn move_addresses(net: &Namespaces, from: &str, to: &str) {
    for link in ["vout", "vin"] {
        net.ip(from, &format!("link set {link} down"));
        net.ip(to, &format!("link set {link} up"));
    }
    wait_addresses(net);
}

/// The kernel brings ports of bridges up in its own time.
fn wait_addresses(net: &Namespaces) {
    net.wait_reach("clients", OUTSIDE.parse::<IpAddr>().unwrap());
    net.wait_reach("nodes", INSIDE.parse::<IpAddr>().unwrap());
}

fn requests(net: &Namespaces, host: &str, lb: &Balancer) -> i64 {
    net.inside(host, || lb.stat("NumberOfRequestsProcessed"))
}

/// A request of one side of a dialog and its answer.
fn exchange(from: &Peer, to: &Peer, dialog: &mut Dialog, method: &str) {
    from.send(&dialog.request(method));
    let got: Received = to.expect_in(&dialog.call_id, method);
    to.reply(&got, 200, "OK");
    from.expect_in(&dialog.call_id, &format!("200 {method}"));
}

/// Nodes that the configuration names, and nodes that tell both balancers of themselves.
#[test]
fn a_standby_that_takes_the_addresses_over_loses_no_dialog() {
    let hosts = ["one", "two", "clients", "nodes"];
    for heartbeats in [false, true] {
        let Some(net) = Namespaces::new(&hosts) else { return };
        eprintln!("with heartbeats: {heartbeats}");
        take_over(&net, heartbeats);
    }
}

fn take_over(net: &Namespaces, heartbeats: bool) {
    for (host, own) in HOSTS {
        net.plug(host, "outside", "vout", MAC_OUTSIDE, &format!("{OUTSIDE}/24"));
        net.plug(host, "inside", "vin", MAC_INSIDE, &format!("{INSIDE}/24"));
        let mac = format!("02:00:00:00:03:0{}", &own[own.len() - 1..]);
        net.plug(host, "inside", "own", &mac, &format!("{own}/24"));
        net.ip(host, "link set own up");
        // The standby listens at addresses that it does not have yet.
        net.sysctl(host, "ip_nonlocal_bind", "1");
    }
    net.plug("clients", "outside", "eth0", "02:00:00:00:01:10", "10.77.1.10/24");
    net.plug("nodes", "inside", "eth0", "02:00:00:00:02:10", "10.77.2.10/24");
    net.ip("nodes", "addr add 10.77.3.10/24 dev eth0");
    for (host, link) in [("one", "vout"), ("one", "vin"), ("clients", "eth0"), ("nodes", "eth0")] {
        net.ip(host, &format!("link set {link} up"));
    }
    wait_addresses(net);

    let nodes: Vec<Node> = net.inside("nodes", || {
        (0..3).map(|it| Node::bind_ip(&format!("n{it}"), "10.77.2.10")).collect()
    });
    let mut setup = Setup::two_entry()
        .algorithm("HeaderConsistentHashBalancerAlgorithm")
        .set("externalHost", OUTSIDE)
        .set("internalHost", INSIDE)
        .set("externalUdpPort", "5060")
        .set("externalTcpPort", "5060")
        .set("internalUdpPort", "5065")
        .set("internalTcpPort", "5065");
    if heartbeats {
        setup = setup.set("heartbeatPort", "2610");
    } else {
        let list: Vec<String> = nodes.iter().map(Node::host_port).collect();
        setup = setup.set("extraServerNodes", &list.join(","));
        setup = setup.set("performanceTestingMode", "true");
    }
    let start = |(host, own): (&str, &str)| {
        let setup = setup.clone().set("host", own);
        net.inside(host, || setup.start())
    };
    let (one, two) = (start(HOSTS[0]), start(HOSTS[1]));
    let announce = |node: &Node, own: &str| {
        let port = node.address().port().to_string();
        let ip = node.address().ip().to_string();
        let words =
            [("hostName", node.name()), ("ip", &ip), ("udpPort", &port), ("tcpPort", &port)];
        net.inside("nodes", || JsonBeats::start(address(own, 2610), &words))
    };
    let _beats: Vec<JsonBeats> = nodes
        .iter()
        .filter(|_| heartbeats)
        .flat_map(|node| HOSTS.map(|(_, own)| announce(node, own)))
        .collect();
    let know_all = |host: &str, lb: &Balancer| net.inside(host, || lb.wait_nodes(3));
    know_all("one", &one);
    know_all("two", &two);
    let print =
        |host: &str, lb: &Balancer| net.inside(host, || lb.lbinfo()["fingerprint"].to_string());
    assert_eq!(print("one", &one), print("two", &two));

    let caller = net.inside("clients", || Peer::bind_on("alice", "10.77.1.10".parse().unwrap()));
    let caller = caller.through(address(OUTSIDE, 5060));
    let begin = || {
        let invite = caller.request("INVITE", "sip:bob@example.com");
        caller.send(&invite);
        let got = wait_for("the INVITE at a node", || {
            nodes.iter().enumerate().find_map(|(at, node)| Some((at, node.poll("INVITE")?)))
        });
        (invite, got.0, got.1)
    };
    let answer = |invite: &tests::Message, home: usize, got: &Received| {
        let ok = nodes[home].reply(got, 200, "OK");
        let heard = caller.expect_in(invite.call_id(), "200 INVITE");
        let mut dialog = Dialog::of_caller(&caller, invite, &heard);
        caller.send(&dialog.ack());
        nodes[home].expect_in(invite.call_id(), "ACK");
        (dialog.clone(), Dialog::of_callee(&nodes[home], got, &ok), home)
    };
    let mut calls: Vec<_> = (0..8)
        .map(|_| {
            let (invite, home, got) = begin();
            answer(&invite, home, &got)
        })
        .collect();
    let ringing: Vec<_> = (0..4).map(|_| begin()).collect();
    for (invite, home, got) in &ringing {
        nodes[*home].reply(got, 180, "Ringing");
        caller.expect_in(invite.call_id(), "180 INVITE");
    }
    assert_eq!(requests(net, "two", &two), 0, "a standby stands by");

    move_addresses(net, "one", "two");
    let at_takeover = requests(net, "one", &one);
    // What rings is answered, what is up goes on in both directions, and new calls are welcome.
    calls.extend(ringing.iter().map(|(invite, home, got)| answer(invite, *home, got)));
    calls.extend((0..4).map(|_| {
        let (invite, home, got) = begin();
        answer(&invite, home, &got)
    }));
    for (theirs, ours, home) in &mut calls {
        exchange(&caller, &nodes[*home], theirs, "INFO");
        exchange(&nodes[*home], &caller, ours, "MESSAGE");
    }
    assert_eq!(requests(net, "one", &one), at_takeover, "it has no address any more");

    // And back. The first balancer was started anew meanwhile: there is nothing that it must remember but
    // the nodes, who announce themselves anew.
    drop(one);
    let one = start(HOSTS[0]);
    know_all("one", &one);
    move_addresses(net, "two", "one");
    for (at, (mut theirs, mut ours, home)) in calls.into_iter().enumerate() {
        if at % 2 == 0 {
            exchange(&caller, &nodes[home], &mut theirs, "BYE");
            assert_eq!(who_got(&nodes, &theirs.call_id, "BYE"), [home]);
        } else {
            exchange(&nodes[home], &caller, &mut ours, "BYE");
        }
        assert_eq!(who_got(&nodes, &theirs.call_id, "INVITE"), [home]);
        assert_eq!(who_got(&nodes, &theirs.call_id, "INFO"), [home]);
    }
    assert!(requests(net, "one", &one) > 0);
}
