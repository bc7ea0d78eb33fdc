//! Several balancers behind a packet sprayer: any of them may get any message (`sip.md` 5.10, 6.5).
//! Numbers in comments are items of the catalogue in `sip.md` 6.

use tests::{
    Balancer, Dialog, Node, Peer, Setup, Sprayer, Uri, first_to_get, param, wait_for, who_got,
};

/// Balancers with one virtual address per leg, nodes that announce themselves to all of them.
struct Cluster {
    outside: Sprayer,
    inside: Sprayer,
    balancers: Vec<Balancer>,
    nodes: Vec<Node>,
}

impl Cluster {
    fn new(algorithm: &str, balancers: usize, nodes: usize, in_via: bool) -> Cluster {
        let (outside, inside) = (Sprayer::bind(), Sprayer::bind());
        let setup = Setup::two_entry()
            .algorithm(algorithm)
            .set("externalIpLoadBalancerAddress", "127.0.0.1")
            .set("externalIpLoadBalancerUdpPort", &outside.address.port().to_string())
            .set("internalIpLoadBalancerAddress", "127.0.0.1")
            .set("internalIpLoadBalancerUdpPort", &inside.address.port().to_string())
            .set("useIpLoadBalancerAddressInViaHeaders", &in_via.to_string());
        let balancers: Vec<Balancer> = (0..balancers).map(|_| setup.start()).collect();
        outside.spray(&balancers.iter().map(|it| it.external).collect::<Vec<_>>());
        inside.spray(&balancers.iter().map(|it| it.internal).collect::<Vec<_>>());
        let internal: Vec<_> = balancers.iter().map(|it| it.internal).collect();
        let nodes: Vec<Node> = (0..nodes)
            .map(|it| {
                let mut node = Node::bind(&format!("n{it}"));
                node.announce(&internal);
                node.answers_calls();
                node.asks_rport = false; // as for callers
                node
            })
            .collect();
        let cluster = Cluster { outside, inside, balancers, nodes };
        cluster.wait_nodes(cluster.nodes.len());
        cluster
    }

    fn wait_nodes(&self, count: usize) {
        for balancer in &self.balancers {
            balancer.wait_nodes(count);
        }
    }

    /// A client of the virtual address. The sprayer hides its address, so it must not ask for `rport`.
    fn caller(&self) -> Peer {
        let mut caller = Peer::bind("alice").through(self.outside.address);
        caller.asks_rport = false;
        caller
    }
}

const HASHES: [&str; 2] =
    ["HeaderConsistentHashBalancerAlgorithm", "PureConsistentHashBalancerAlgorithm"];

#[test] // 63, 65
fn a_call_sprayed_over_two_balancers_stays_on_one_node() {
    for algorithm in HASHES {
        let cluster = Cluster::new(algorithm, 2, 10, false);
        let caller = cluster.caller();
        let mut dialog = caller.call("sip:bob@example.com");
        let route = Uri::of(&dialog.routes[0]).address();
        assert_eq!(route, Some(cluster.outside.address), "{:?}", dialog.routes);
        assert_eq!(Uri::of(&dialog.routes[1]).address(), Some(cluster.inside.address));
        caller.exchange(&mut dialog, "BYE");
        let home = who_got(&cluster.nodes, &dialog.call_id, "INVITE");
        assert_eq!(home.len(), 1);
        // The ACK takes another balancer than the BYE and may be the later one.
        cluster.nodes[home[0]].expect_in(&dialog.call_id, "ACK");
        for method in ["ACK", "BYE"] {
            assert_eq!(
                who_got(&cluster.nodes, &dialog.call_id, method),
                home,
                "{algorithm}: {method}"
            );
        }
        assert_eq!(cluster.outside.distinct(), 3, "INVITE, ACK and BYE took the virtual address");
        for balancer in &cluster.balancers {
            assert!(balancer.stat("NumberOfRequestsProcessed") > 0, "both took part");
        }
    }
}

#[test] // 64, 65, 70
fn many_messages_in_a_dialog_find_its_node_through_any_balancer() {
    for algorithm in HASHES {
        let cluster = Cluster::new(algorithm, 2, 10, false);
        let caller = cluster.caller().through(cluster.balancers[0].external);
        let mut dialog = caller.call("sip:bob@example.com");
        for _ in 0..10 {
            caller.exchange(&mut dialog, "MESSAGE");
        }
        let home = who_got(&cluster.nodes, &dialog.call_id, "INVITE");
        assert_eq!(who_got(&cluster.nodes, &dialog.call_id, "MESSAGE"), home, "{algorithm}");
        assert_eq!(cluster.nodes[home[0]].count("MESSAGE"), 10);
    }
}

#[test]
fn balancers_with_the_same_nodes_show_the_same_fingerprint() {
    let cluster = Cluster::new(HASHES[0], 2, 4, false);
    let fingerprint = |lb: &Balancer| {
        let metrics = lb.metrics();
        let line = metrics.lines().find(|it| it.starts_with("trunkline_nodes_fingerprint"));
        line.expect("a fingerprint in /metrics").to_owned()
    };
    let (one, other) = (&cluster.balancers[0], &cluster.balancers[1]);
    let before = fingerprint(one);
    assert_eq!(before, fingerprint(other));
    let _more = one.announced(Node::bind("n4"));
    one.wait_nodes(5);
    assert_ne!(before, fingerprint(one));
}

#[test] // 66
fn single_entry_balancers_behind_one_address_carry_whole_calls() {
    let outside = Sprayer::bind();
    let nodes: Vec<Node> = (0..4).map(|it| Node::bind(&format!("n{it}"))).collect();
    let list: Vec<String> = nodes.iter().map(Node::host_port).collect();
    let setup = Setup::single_entry()
        .algorithm(HASHES[0])
        .set("extraServerNodes", &list.join(","))
        .set("performanceTestingMode", "true")
        .set("externalIpLoadBalancerAddress", "127.0.0.1")
        .set("externalIpLoadBalancerUdpPort", &outside.address.port().to_string());
    let balancers = [setup.start(), setup.start()];
    outside.spray(&[balancers[0].external, balancers[1].external]);
    for node in &nodes {
        node.answers_calls();
    }
    let mut caller = Peer::bind("alice").through(outside.address);
    caller.asks_rport = false;
    let mut dialog = caller.call("sip:bob@example.com");
    assert_eq!(Uri::of(&dialog.routes[0]).address(), Some(outside.address));
    for _ in 0..10 {
        caller.exchange(&mut dialog, "MESSAGE");
    }
    caller.exchange(&mut dialog, "BYE");
    let home = who_got(&nodes, &dialog.call_id, "INVITE");
    nodes[home[0]].expect("ACK");
    for method in ["ACK", "MESSAGE", "BYE"] {
        assert_eq!(who_got(&nodes, &dialog.call_id, method), home, "{method}");
    }
    assert_eq!(outside.distinct(), 13);
}

#[test] // 67 a, c
fn with_the_virtual_address_in_via_answers_may_enter_through_any_balancer() {
    let cluster = Cluster::new(HASHES[0], 4, 6, true);
    let caller = cluster.caller();
    let mut dialog = caller.call("sip:bob@example.com");
    let home = who_got(&cluster.nodes, &dialog.call_id, "INVITE")[0];
    let got = cluster.nodes[home].expect("INVITE");
    let vias = got.vias();
    assert!(vias[0].contains(&cluster.inside.address.to_string()), "{vias:?}");
    assert!(vias[1].contains(&cluster.outside.address.to_string()), "{vias:?}");
    for _ in 0..10 {
        caller.exchange(&mut dialog, "MESSAGE");
    }
    caller.exchange(&mut dialog, "BYE");
    assert_eq!(who_got(&cluster.nodes, &dialog.call_id, "MESSAGE"), [home]);
    assert!(cluster.inside.distinct() >= 12, "every answer took the virtual address");
}

#[test] // 67 b
fn an_answer_to_a_dead_node_finds_a_survivor_through_any_balancer() {
    let mut cluster = Cluster::new(HASHES[0], 4, 3, true);
    for node in &cluster.nodes {
        node.answers_nothing();
    }
    let callee = Peer::bind("bob");
    let node = &cluster.nodes[0];
    let hint = format!("node_host=127.0.0.1;node_port={}", node.address().port());
    let route = format!("<sip:lb@{};transport=udp;{hint};lr>", cluster.inside.address);
    node.send(&node.request("INVITE", &callee.uri()).with("Route", route));
    let got = callee.expect("INVITE");
    assert!(got.record_routes()[0].contains(&hint), "{:?}", got.record_routes());
    callee.reply(&got, 180, "Ringing");
    cluster.nodes[0].expect("180");
    cluster.nodes[0].die();
    cluster.wait_nodes(2);
    let mut heirs = Vec::new();
    for _ in 0..4 {
        callee.reply(&got, 200, "OK");
        heirs.push(first_to_get(&cluster.nodes[1..], "200 INVITE").0);
    }
    assert!(heirs.iter().all(|it| *it == heirs[0]), "four balancers, one decision: {heirs:?}");
    callee.send(&Dialog::of_callee(&callee, &got, &got.reply(200, "OK")).request("BYE"));
    wait_for("the BYE at a survivor", || cluster.nodes[1..].iter().find_map(|it| it.poll("BYE")));
}

#[test] // 68, 69
fn in_a_rolling_upgrade_a_dialog_moves_only_within_its_version() {
    let mut cluster = Cluster::new(HASHES[0], 2, 4, false);
    let caller = cluster.caller();
    let mut dialog = caller.call("sip:bob@example.com");
    let home = who_got(&cluster.nodes, &dialog.call_id, "INVITE")[0];
    cluster.nodes[home].expect("ACK");
    let kept = (home + 1) % 4;
    for at in (0..4).filter(|it| *it != kept) {
        cluster.nodes[at].set_property("version", "2");
        cluster.nodes[at].restart();
        cluster.nodes[at].answers_calls();
    }
    cluster.wait_nodes(3); // the latest version has three nodes
    caller.exchange(&mut dialog, "BYE");
    assert_eq!(who_got(&cluster.nodes, &dialog.call_id, "BYE"), [kept]);
    assert_eq!(cluster.outside.distinct(), 3);
    let version = param(&dialog.routes[0].replace('>', ""), "version");
    assert_eq!(version.as_deref(), Some("0"));
    for _ in 0..6 {
        let next = caller.call("sip:bob@example.com");
        assert_eq!(who_got(&cluster.nodes[kept..=kept], &next.call_id, "INVITE"), [] as [usize; 0]);
    }
}
