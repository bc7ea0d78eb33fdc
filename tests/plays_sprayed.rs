//! Several balancers behind a packet sprayer: any of them may get any message (`sip.md` 5.10, 6.5).
//! Numbers in comments are items of the catalogue in `sip.md` 6.

use std::time::{Duration, Instant};

use engine::balance::ALGORITHMS;
use tests::{
    Balancer, Dialog, JavaNode, JsonBeats, Layout, Node, Peer, Setup, Sprayer, Uri, first_to_get,
    param, wait_for, who_got,
};

/// The algorithms by which any balancer, and any of its shards, decides alike: by arithmetic on the message
/// and the table of nodes. Not those that remember: the calls of CallIDAffinity and ClusterSubdomain are
/// known to one shard of one balancer (they promise no agreement), and who is active under ActiveStandby
/// is what each balancer has seen of the order in which nodes came (all get one node, so it is not even).
/// UserBased remembers, too, where there is one shard; here there are [`SHARDS`].
fn hashes() -> impl Iterator<Item = &'static str> {
    let agreeing = ALGORITHMS.iter().filter(|it| it.promises.agreeing && it.promises.even);
    agreeing.map(|it| it.name)
}

/// Of each balancer.
const SHARDS: &str = "2";

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
            .set("shards", SHARDS)
            .set("reuseportSteering", "random") // or all that the sprayer sends would meet one shard
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

    /// Waits until all balancers know the same nodes as eligible.
    fn wait_agreement(&self) -> String {
        wait_for("equal fingerprints", || common_fingerprint(&self.balancers))
    }

    /// Asks every balancer the same of many calls: each call has one node.
    fn decide_alike(&self, caller: &Peer, when: &str) {
        for _ in 0..20 {
            let homes = ask(&self.balancers, caller);
            assert!(homes.iter().all(|it| *it == homes[0]), "{when}: {homes:?}");
        }
    }

    /// A client of the virtual address. The sprayer hides its address, so it must not ask for `rport`.
    fn caller(&self) -> Peer {
        let mut caller = Peer::bind("alice").through(self.outside.address);
        caller.asks_rport = false;
        caller
    }
}

/// What all these balancers say of their nodes, if it is the same.
fn common_fingerprint(balancers: &[Balancer]) -> Option<String> {
    let mut prints = balancers.iter().map(|it| it.lbinfo()["fingerprint"].to_string());
    let first = prints.next()?;
    prints.all(|it| it == first).then_some(first)
}

/// Asks every balancer about one new call; the nodes that answered, by balancer.
fn ask(balancers: &[Balancer], caller: &Peer) -> Vec<String> {
    let question = caller.request("MESSAGE", "sip:bob@example.com");
    let home = |balancer: &Balancer| {
        let via = caller.via();
        let question = question.clone().set("Via", &via);
        let mut sent: Option<Instant> = None;
        wait_for("an answer", || {
            // What finds a node's port closed is lost: sent again as a client does (RFC 3261 §17.1.2.2).
            if sent.is_none_or(|it| it.elapsed() >= RETRANSMIT) {
                caller.send_to(balancer.external, &question);
                sent = Some(Instant::now());
            }
            let answers = caller.record();
            answers.iter().find(|it| it.is("200") && it.vias() == [&via])?.tag("To")
        })
    };
    balancers.iter().map(home).collect()
}

/// Has something happen to the nodes, and asks all balancers one question after the other until all have
/// another table than that of fingerprint `before`, the same. They may decide differently only while their
/// tables differ, and these may differ for [`ROUNDS_MAX`] heartbeats of a node that stays. Returns the
/// new fingerprint.
///
/// Heartbeats are the clock: on a slow machine they are slow, too.
fn through(
    (balancers, steady): (&[Balancer], &Node),
    caller: &Peer,
    what: &str,
    before: &str,
    event: impl FnOnce() + Send,
) -> String {
    let rounds = || steady.beats_answered() / balancers.len();
    let (mut last, mut differ_since) = (None, None);
    std::thread::scope(|scope| {
        scope.spawn(event);
        wait_for(what, || {
            let then = common_fingerprint(balancers);
            let homes = ask(balancers, caller);
            let now = common_fingerprint(balancers);
            // Shards go by a table from their next batch on, so it counts when it was there a round ago.
            let is_settled = now.is_some() && now == then && now == last;
            let is_alike = homes.iter().all(|it| *it == homes[0]);
            assert!(is_alike || !is_settled, "{what}: {homes:?} of one table, {now:?}");
            last.clone_from(&now);
            if now.is_some() {
                differ_since = None;
            } else {
                let since = *differ_since.get_or_insert_with(rounds);
                let passed = rounds() - since;
                assert!(passed <= ROUNDS_MAX, "{what}: tables differ for {passed} heartbeats");
            }
            now.filter(|it| is_settled && it != before)
        })
    })
}

/// A heartbeat reaches all balancers within one round, its loss is seen within one more; the rest is for
/// processes that wait for a CPU.
const ROUNDS_MAX: usize = 8;
/// Timer E of SIP begins with T1.
const RETRANSMIT: Duration = Duration::from_millis(500);

#[test] // 63, 65
fn a_call_sprayed_over_two_balancers_stays_on_one_node() {
    for algorithm in hashes() {
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
    for algorithm in hashes() {
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
    // Which algorithm it is makes no difference to the table.
    let cluster = Cluster::new(ALGORITHMS[0].name, 2, 4, false);
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
    for algorithm in hashes() {
        let mut cluster = Cluster::new(algorithm, 2, 4, false);
        let caller = cluster.caller();
        let mut print = cluster.wait_agreement();
        let calls = (0..12).map(|_| caller.call("sip:bob@example.com"));
        let calls: Vec<(Dialog, Vec<usize>)> =
            calls.map(|it| (it.clone(), who_got(&cluster.nodes, &it.call_id, "INVITE"))).collect();
        cluster.decide_alike(&caller, "at first");

        let Cluster { balancers, nodes, .. } = &mut cluster;
        let (steady, others) = nodes.split_first_mut().unwrap();
        let stage = (&balancers[..], &*steady);
        let internal: Vec<_> = balancers.iter().map(|it| it.internal).collect();
        let mut more = Node::bind("n4");
        more.asks_rport = false;
        more.answers_calls();
        let what = |event: &str| format!("{algorithm}: {event}");
        print = through(stage, &caller, &what("one joins"), &print, || more.announce(&internal));
        print = through(stage, &caller, &what("one leaves"), &print, || others[0].leave());
        through(stage, &caller, &what("one dies"), &print, || others[1].die());
        cluster.nodes.push(more);
        cluster.wait_nodes(4);
        cluster.decide_alike(&caller, &what("one is dead"));

        for (mut dialog, home) in calls {
            for method in ["MESSAGE", "INFO", "BYE"] {
                caller.exchange(&mut dialog, method);
            }
            let got = |method| who_got(&cluster.nodes, &dialog.call_id, method);
            assert_eq!((got("MESSAGE"), got("MESSAGE")), (got("INFO"), got("BYE")), "{algorithm}");
            assert_eq!(got("BYE").len(), 1);
            assert!(
                home == [2] || got("BYE") == home,
                "{algorithm}: only the dead one's calls move"
            );
        }
    }
}

/// A node that takes calls and tells nobody yet.
fn silent_node(name: &str) -> Node {
    let mut node = Node::bind(name);
    node.asks_rport = false;
    node.answers_calls();
    node
}

/// What a node says of itself in JSON, to each balancer.
fn json_beats(balancers: &[Balancer], node: &Node) -> Vec<JsonBeats> {
    let port = node.address().port().to_string();
    let words = [
        ("hostName", node.name()),
        ("ip", "127.0.0.1"),
        ("udpPort", port.as_str()),
        ("tcpPort", port.as_str()),
        ("version", "0"),
    ];
    balancers.iter().map(|it| JsonBeats::start(it.beats(), &words)).collect()
}

/// A virtual machine for each balancer, which speak for one node together; they are up and know the way.
fn jvms(balancers: &[Balancer], node: &Node) -> Vec<JavaNode> {
    let port = node.address().port();
    let line = format!("node java 127.0.0.1 udpPort=int:{port} tcpPort=int:{port} sessionId=7");
    let start = |it: &Balancer| JavaNode::start(Layout::New, it.rmi().port(), &[]);
    let mut jvms: Vec<JavaNode> = balancers.iter().filter_map(start).collect();
    for jvm in &mut jvms {
        assert_eq!(jvm.tell("ping"), "ok");
        jvm.tell(&line);
    }
    jvms
}

/// Nodes of each protocol join, leave and die before both balancers.
#[test]
fn balancers_agree_on_nodes_whichever_protocol_these_speak() {
    for algorithm in hashes() {
        let cluster = Cluster::new(algorithm, 2, 1, false);
        let caller = cluster.caller();
        let mut print = cluster.wait_agreement();
        let names = ["json-stops", "json-dies", "java"];
        let [stopping, mut dying, mut java] = names.map(silent_node);
        let mut jvms = jvms(&cluster.balancers, &java);
        let stage = (&cluster.balancers[..], &cluster.nodes[0]);
        let mut change = |event: &str, left: usize, act: &mut (dyn FnMut() + Send)| {
            through(stage, &caller, &format!("{algorithm}: {event}"), &print, act);
            // Who is dead may be suspect first, and only then go.
            cluster.wait_nodes(left);
            print = cluster.wait_agreement();
        };
        let (mut stops, mut dies) = (Vec::new(), Vec::new());
        let by_rmi = usize::from(!jvms.is_empty());
        change("one joins by JSON", 2, &mut || stops = json_beats(stage.0, &stopping));
        change("another by JSON", 3, &mut || dies = json_beats(stage.0, &dying));
        if by_rmi > 0 {
            let begin = |it: &mut JavaNode| it.say("every 250 100000");
            change("one by RMI", 4, &mut || jvms.iter_mut().for_each(begin));
        }
        let mut calls: Vec<Dialog> = (0..12).map(|_| caller.call("sip:bob@example.com")).collect();
        let homes = |calls: &[Dialog], method: &str, nodes: [&Node; 4]| -> Vec<Vec<String>> {
            let saw = |it: &Node, call: &Dialog| {
                let mut record = it.record().into_iter();
                record.any(|it| it.is(method) && it.call_id() == call.call_id)
            };
            let names = |call| {
                let who = nodes.iter().filter(|it| saw(it, call));
                who.map(|it| it.name().to_owned()).collect()
            };
            calls.iter().map(names).collect()
        };
        let begun = homes(&calls, "INVITE", [stage.1, &stopping, &dying, &java]);

        change("one stops by JSON", 2 + by_rmi, &mut || {
            assert!(stops.iter_mut().all(JsonBeats::stop), "both balancers hear the end");
        });
        change("one by JSON dies", 1 + by_rmi, &mut || {
            dies.iter_mut().for_each(JsonBeats::fall_silent);
            dying.die();
        });
        if by_rmi > 0 {
            change("one by RMI dies", 1, &mut || {
                jvms.clear();
                java.die();
            });
        }
        for dialog in &mut calls {
            caller.exchange(dialog, "INFO");
            caller.exchange(dialog, "BYE");
        }
        let nodes = [stage.1, &stopping, &dying, &java];
        let [infos, byes] = ["INFO", "BYE"].map(|method| homes(&calls, method, nodes));
        assert_eq!(infos, byes, "{algorithm}");
        let ended = begun.iter().zip(&byes);
        assert!(byes.iter().all(|it| it.len() == 1), "{algorithm}: {byes:?}");
        let stays = |(begun, bye): (&Vec<String>, &Vec<String>)| begun != &["n0"] || bye == begun;
        assert!(ended.into_iter().all(stays), "{algorithm}: who lives keeps its calls: {byes:?}");
    }
}

#[test] // the guide's figure 4
fn ip_load_balancers_on_both_sides_carry_calls_of_either_direction() {
    for algorithm in hashes() {
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
    for algorithm in hashes() {
        let outside = Sprayer::bind();
        let nodes: Vec<Node> = (0..4).map(|it| Node::bind(&format!("n{it}"))).collect();
        let list: Vec<String> = nodes.iter().map(Node::host_port).collect();
        let setup = Setup::single_entry()
            .algorithm(algorithm)
            .set("shards", SHARDS)
            .set("reuseportSteering", "random")
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
}

#[test] // 67 a, c
fn with_the_virtual_address_in_via_answers_may_enter_through_any_balancer() {
    for algorithm in hashes() {
        let cluster = Cluster::new(algorithm, 4, 6, true);
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
}

#[test] // 67 b
fn an_answer_to_a_dead_node_finds_a_survivor_through_any_balancer() {
    for algorithm in hashes() {
        let mut cluster = Cluster::new(algorithm, 4, 3, true);
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
        wait_for("the BYE at a survivor", || {
            cluster.nodes[1..].iter().find_map(|it| it.poll("BYE"))
        });
    }
}

#[test] // 68, 69
fn in_a_rolling_upgrade_a_dialog_moves_only_within_its_version() {
    for algorithm in hashes() {
        let mut cluster = Cluster::new(algorithm, 2, 4, false);
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
            assert_eq!(
                who_got(&cluster.nodes[kept..=kept], &next.call_id, "INVITE"),
                [] as [usize; 0]
            );
        }
    }
}
