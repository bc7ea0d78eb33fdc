//! Several balancers behind a packet sprayer: any of them may get any message (`sip.md` 5.10, 6.5).
//! Numbers in comments are items of the catalogue in `sip.md` 6.

use tests::{
    Balancer, Dialog, JavaNode, JsonBeats, Layout, Node, Peer, Setup, Sprayer, Uri, first_to_get,
    param, wait_for, who_got,
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
            .set("useIpLoadBalancerAddressInViaHeaders", &in_via.to_string())
            .heartbeats()
            .set("nodeTimeout", "4000"); // a JVM on a busy machine takes its time
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

    /// Waits until all balancers know the same nodes as eligible, another set than this one.
    fn wait_agreement(&self, before: &str) -> String {
        wait_for("equal fingerprints", || {
            let prints = self.balancers.iter().map(|it| it.lbinfo()["fingerprint"].to_string());
            let prints: Vec<String> = prints.collect();
            let are_equal = prints.iter().all(|it| *it == prints[0] && it != before);
            are_equal.then(|| prints[0].clone())
        })
    }

    /// Asks every balancer the same of many calls: each call has one node.
    fn decide_alike(&self, caller: &Peer, when: &str) {
        for _ in 0..20 {
            let question = caller.request("MESSAGE", "sip:bob@example.com");
            for balancer in &self.balancers {
                caller.send_to(balancer.external, &question);
                caller.expect_in(question.call_id(), "200");
            }
            let got = who_got(&self.nodes, question.call_id(), "MESSAGE");
            assert_eq!(got.len(), 1, "{when}: {}", question.call_id());
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

#[test]
fn balancers_decide_alike_while_nodes_join_leave_and_die() {
    for algorithm in HASHES {
        let mut cluster = Cluster::new(algorithm, 2, 4, false);
        let caller = cluster.caller();
        let print = cluster.wait_agreement("");
        let calls = (0..12).map(|_| caller.call("sip:bob@example.com"));
        let calls: Vec<(Dialog, Vec<usize>)> =
            calls.map(|it| (it.clone(), who_got(&cluster.nodes, &it.call_id, "INVITE"))).collect();
        cluster.decide_alike(&caller, "at first");

        let mut more = Node::bind("n4");
        more.asks_rport = false;
        more.answers_calls();
        more.announce(&cluster.balancers.iter().map(|it| it.internal).collect::<Vec<_>>());
        cluster.nodes.push(more);
        let print = cluster.wait_agreement(&print);
        cluster.decide_alike(&caller, "one more");

        cluster.nodes[0].leave();
        let print = cluster.wait_agreement(&print);
        cluster.decide_alike(&caller, "one leaves");

        cluster.nodes[1].die();
        cluster.wait_agreement(&print);
        cluster.decide_alike(&caller, "one is dead");

        for (mut dialog, home) in calls {
            for method in ["MESSAGE", "INFO", "BYE"] {
                caller.exchange(&mut dialog, method);
            }
            let got = |method| who_got(&cluster.nodes, &dialog.call_id, method);
            assert_eq!((got("MESSAGE"), got("MESSAGE")), (got("INFO"), got("BYE")), "{algorithm}");
            assert_eq!(got("BYE").len(), 1);
            assert!(
                home == [1] || got("BYE") == home,
                "{algorithm}: only the dead one's calls move"
            );
        }
    }
}

/// What a node says of itself in JSON, to each balancer.
fn json_beats(cluster: &Cluster, node: &Node) -> Vec<JsonBeats> {
    let port = node.address().port().to_string();
    let words = [
        ("hostName", node.name()),
        ("ip", "127.0.0.1"),
        ("udpPort", port.as_str()),
        ("tcpPort", port.as_str()),
        ("version", "0"),
    ];
    cluster.balancers.iter().map(|it| JsonBeats::start(it.beats(), &words)).collect()
}

/// Nodes of each protocol join, leave and die before both balancers.
#[test]
fn balancers_agree_on_nodes_whichever_protocol_these_speak() {
    for algorithm in HASHES {
        let mut cluster = Cluster::new(algorithm, 2, 1, false);
        let caller = cluster.caller();
        let mut print = cluster.wait_agreement("");
        let join = |cluster: &mut Cluster, name: &str| {
            let mut node = Node::bind(name);
            node.asks_rport = false;
            node.answers_calls();
            cluster.nodes.push(node);
            cluster.nodes.len() - 1
        };
        let at = join(&mut cluster, "json-stops");
        let mut stops = json_beats(&cluster, &cluster.nodes[at]);
        let at = join(&mut cluster, "json-dies");
        let mut dies = json_beats(&cluster, &cluster.nodes[at]);
        cluster.wait_nodes(3);
        print = cluster.wait_agreement(&print);
        cluster.decide_alike(&caller, "two by JSON");

        let at = join(&mut cluster, "java");
        let port = cluster.nodes[at].address().port();
        let line = format!("node java 127.0.0.1 udpPort=int:{port} tcpPort=int:{port} sessionId=7");
        let mut jvms: Vec<JavaNode> = cluster
            .balancers
            .iter()
            .filter_map(|it| JavaNode::start(Layout::New, it.rmi().port(), &[]))
            .collect();
        for jvm in &mut jvms {
            jvm.tell(&line);
            jvm.say("every 250 100000");
        }
        if !jvms.is_empty() {
            cluster.wait_nodes(4);
            print = cluster.wait_agreement(&print);
            cluster.decide_alike(&caller, "one by RMI");
        }
        let mut calls: Vec<Dialog> = (0..12).map(|_| caller.call("sip:bob@example.com")).collect();
        let homes: Vec<_> =
            calls.iter().map(|it| who_got(&cluster.nodes, &it.call_id, "INVITE")).collect();

        for it in &mut stops {
            assert!(it.stop(), "both balancers hear the end");
        }
        print = cluster.wait_agreement(&print);
        cluster.decide_alike(&caller, "one has stopped by JSON");

        dies.iter_mut().for_each(JsonBeats::fall_silent);
        print = cluster.wait_agreement(&print);
        cluster.decide_alike(&caller, "one by JSON is dead");

        if !jvms.is_empty() {
            jvms.clear();
            cluster.wait_agreement(&print);
            cluster.decide_alike(&caller, "the JVMs are dead");
        }
        for (dialog, home) in calls.iter_mut().zip(homes) {
            caller.exchange(dialog, "INFO");
            caller.exchange(dialog, "BYE");
            let got = |method| who_got(&cluster.nodes, &dialog.call_id, method);
            assert_eq!((got("INFO"), got("BYE").len()), (got("BYE"), 1), "{algorithm}");
            assert!(home != [0] || got("BYE") == home, "{algorithm}: who lives keeps its calls");
        }
    }
}

#[test] // the guide's figure 4
fn ip_load_balancers_on_both_sides_carry_calls_of_either_direction() {
    for algorithm in HASHES {
        let cluster = Cluster::new(algorithm, 2, 4, false);
        cluster.nodes.iter().for_each(|it| it.answers_nothing());
        let (inside, outside) = (cluster.inside.address, cluster.outside.address);
        for _ in 0..2 {
            // From outside, with requests of both sides in the dialog.
            let caller = cluster.caller();
            let invite = caller.request("INVITE", "sip:bob@example.com");
            caller.send(&invite);
            let (home, got) = first_to_get(&cluster.nodes, "INVITE");
            let node = &cluster.nodes[home];
            assert_eq!(Uri::of(got.record_routes()[0]).address(), Some(inside));
            let ok = node.reply(&got, 200, "OK");
            let heard = caller.expect("200 INVITE");
            let (mut theirs, mut ours) =
                (Dialog::of_caller(&caller, &invite, &heard), Dialog::of_callee(node, &got, &ok));
            assert_eq!(Uri::of(&theirs.routes[0]).address(), Some(outside));
            caller.send(&theirs.ack());
            node.expect_in(&theirs.call_id, "ACK");
            for _ in 0..4 {
                node.send(&ours.request("INFO"));
                caller.reply(&caller.expect_in(&theirs.call_id, "INFO"), 200, "OK");
                node.expect_in(&theirs.call_id, "200 INFO");
                caller.send(&theirs.request("MESSAGE"));
                node.reply(&node.expect_in(&theirs.call_id, "MESSAGE"), 200, "OK");
                caller.expect_in(&theirs.call_id, "200 MESSAGE");
            }
            node.send(&ours.request("BYE"));
            caller.reply(&caller.expect_in(&theirs.call_id, "BYE"), 200, "OK");
            node.expect_in(&theirs.call_id, "200 BYE");

            // From a node.
            let mut callee = Peer::bind("bob");
            callee.asks_rport = false;
            let hint = format!("node_host=127.0.0.1;node_port={}", node.address().port());
            let route = format!("<sip:lb@{inside};transport=udp;{hint};lr>");
            let invite = node.request("INVITE", &callee.uri()).with("Route", route);
            node.send(&invite);
            let got = callee.expect("INVITE");
            assert_eq!(Uri::of(got.record_routes()[0]).address(), Some(outside));
            let ok = callee.reply(&got, 200, "OK");
            let heard = node.expect_in(invite.call_id(), "200 INVITE");
            let (mut ours, mut theirs) =
                (Dialog::of_caller(node, &invite, &heard), Dialog::of_callee(&callee, &got, &ok));
            node.send(&ours.ack());
            callee.expect("ACK");
            node.send(&ours.request("MESSAGE"));
            callee.reply(&callee.expect("MESSAGE"), 200, "OK");
            node.expect_in(invite.call_id(), "200 MESSAGE");
            callee.send(&theirs.request("BYE"));
            node.reply(&node.expect_in(invite.call_id(), "BYE"), 200, "OK");
            callee.expect("200 BYE");
            assert_eq!(who_got(&cluster.nodes, invite.call_id(), "BYE"), [home], "{algorithm}");
        }
        for balancer in &cluster.balancers {
            assert!(balancer.stat("NumberOfRequestsProcessed") > 4, "both took part");
        }
    }
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
