//! What each algorithm promises, seen from the wire (`sip.md` 3 and 6.3). Numbers in comments are items of
//! the catalogue in `sip.md` 6.

use tests::{
    Balancer, Dialog, Link, Node, Peer, Setup, Transport, first_to_get, wait_for, who_got,
};

fn stage(algorithm: &str, nodes: usize) -> (Balancer, Vec<Node>, Peer) {
    let lb = Setup::two_entry().algorithm(algorithm).start();
    let nodes = lb.answering_nodes(nodes);
    let caller = lb.caller("alice");
    (lb, nodes, caller)
}

/// The algorithms that keep no table: the same key goes to the same node on every balancer.
const HASHES: [&str; 3] = [
    "HeaderConsistentHashBalancerAlgorithm",
    "PersistentConsistentHashBalancerAlgorithm",
    "PureConsistentHashBalancerAlgorithm",
];

/// The algorithms under which a call stays where it is while its node lives.
const STICKY: [&str; 7] = [
    "CallIDAffinityBalancerAlgorithm",
    "HeaderConsistentHashBalancerAlgorithm",
    "PersistentConsistentHashBalancerAlgorithm",
    "PureConsistentHashBalancerAlgorithm",
    "ClusterSubdomainAffinityAlgorithm",
    "UserBasedAlgorithm",
    "ActiveStandbyAlgorithm",
];

#[test] // 25, 28, 38
fn a_call_whose_node_dies_after_the_ack_ends_at_another_under_every_algorithm() {
    for algorithm in STICKY {
        let (lb, mut nodes, caller) = stage(algorithm, 2);
        let mut dialog = caller.call("sip:bob@example.com");
        let home = who_got(&nodes, &dialog.call_id, "INVITE");
        nodes[home[0]].expect("ACK");
        nodes[home[0]].die();
        lb.wait_nodes(1);
        caller.exchange(&mut dialog, "BYE");
        assert_eq!(who_got(&nodes, &dialog.call_id, "BYE"), [1 - home[0]], "{algorithm}");
    }
}

#[test] // 26, 30
fn without_nodes_the_answer_is_500_under_every_algorithm_and_the_first_node_ends_it() {
    for algorithm in STICKY {
        let (lb, _, caller) = stage(algorithm, 0);
        caller.send(&caller.request("INVITE", "sip:bob@example.com"));
        assert_eq!(caller.expect("500").start, "SIP/2.0 500 No nodes available", "{algorithm}");
        let _nodes = lb.answering_nodes(1); // ActiveStandby of the original hung from here on
        caller.call("sip:bob@example.com");
    }
}

#[test] // 27, 31
fn a_ringing_call_of_a_dead_node_is_answered_at_another_under_hashes() {
    for algorithm in HASHES {
        let (lb, mut nodes, _) = stage(algorithm, 2);
        let callee = lb.caller("bob");
        let invite = nodes[0].request("INVITE", &callee.uri());
        nodes[0].send(&invite.with("Route", lb.node_route(&nodes[0])));
        let got = callee.expect("INVITE");
        assert!(got.record_routes().iter().all(|it| it.contains("node_host=127.0.0.1")));
        callee.reply(&got, 180, "Ringing");
        nodes[0].expect("180");
        nodes[0].die();
        lb.wait_nodes(1);
        callee.reply(&got, 200, "OK");
        nodes[1].expect("200 INVITE");
    }
}

#[test] // 29
fn a_register_reaches_exactly_one_node_under_every_algorithm() {
    for algorithm in STICKY {
        let (_lb, nodes, caller) = stage(algorithm, 2);
        caller.ask("REGISTER", "sip:example.com");
        let count: usize = nodes.iter().map(|it| it.count("REGISTER")).sum();
        assert_eq!(count, 1, "{algorithm}");
    }
}

#[test] // 32
fn hashes_spread_calls_over_all_nodes() {
    for algorithm in HASHES {
        let (_lb, nodes, caller) = stage(algorithm, 4);
        // So many that chance does not take a fair share, 50 of them, out of these bounds.
        for _ in 0..200 {
            caller.ask("MESSAGE", "sip:bob@example.com");
        }
        let dealt: Vec<usize> = nodes.iter().map(|it| it.count("MESSAGE")).collect();
        assert!(dealt.iter().all(|it| (13..=100).contains(it)), "{algorithm}: {dealt:?}");
    }
}

#[test]
fn a_lost_node_moves_only_its_own_keys_and_they_come_home_with_it() {
    for algorithm in HASHES {
        let (lb, mut nodes, caller) = stage(algorithm, 4);
        // A quarter is on n2: with so many, chance does not give them all to one of the three heirs.
        let keys: Vec<String> = (0..120).map(|it| format!("key-{it}@alice")).collect();
        let place = |nodes: &[Node]| -> Vec<String> {
            keys.iter()
                .map(|key| {
                    caller.send(
                        &caller.request("MESSAGE", "sip:bob@example.com").set("Call-ID", key),
                    );
                    let ok = caller.expect_in(key, "200 MESSAGE");
                    let tag = ok.tag("To").unwrap();
                    assert!(nodes.iter().any(|it| it.name() == tag));
                    tag
                })
                .collect()
        };
        let before = place(&nodes);
        nodes[2].die();
        lb.wait_nodes(3);
        let during = place(&nodes);
        for ((key, before), during) in keys.iter().zip(&before).zip(&during) {
            assert!(before == "n2" || before == during, "{algorithm}: {key} moved from {before}");
        }
        let heirs: std::collections::BTreeSet<_> =
            before.iter().zip(&during).filter(|(it, _)| *it == "n2").map(|(_, it)| it).collect();
        assert!(heirs.len() > 1, "{algorithm}: all keys of n2 went to {heirs:?}");
        nodes[2].restart();
        nodes[2].answers_calls();
        lb.wait_nodes(4);
        assert_eq!(place(&nodes), before, "{algorithm}");
    }
}

#[test]
fn two_balancers_with_the_same_nodes_decide_alike() {
    for algorithm in HASHES {
        let setup = Setup::two_entry().algorithm(algorithm);
        let (one, other) = (setup.start(), setup.start());
        let mut nodes: Vec<Node> = (0..5).map(|it| Node::bind(&format!("n{it}"))).collect();
        // In opposite order, since the order of arrival must not matter.
        for node in &mut nodes {
            node.announce(&[one.internal]);
        }
        one.wait_nodes(5);
        for node in nodes.iter_mut().rev() {
            node.fall_silent();
            node.announce(&[other.internal, one.internal]);
            node.answers_calls();
        }
        other.wait_nodes(5);
        one.wait_nodes(5);
        let caller = Peer::bind("alice");
        for call in 0..20 {
            let request = caller.request("MESSAGE", "sip:bob@example.com");
            let tags = [&one, &other].map(|lb| {
                caller.send_to(lb.external, &request.clone().set("Via", caller.via()));
                caller.expect_in(request.call_id(), "200 MESSAGE").tag("To")
            });
            assert_eq!(tags[0], tags[1], "{algorithm}: call {call}");
        }
    }
}

#[test]
fn a_leaving_nodes_share_moves_on_instead_of_failing() {
    for algorithm in HASHES {
        let (lb, nodes, caller) = stage(algorithm, 2);
        nodes[0].leave();
        lb.wait_node("the mark", |it| it.is_leaving);
        for _ in 0..10 {
            caller.ask("MESSAGE", "sip:bob@example.com");
        }
        assert_eq!(nodes[1].count("MESSAGE"), 10, "{algorithm}");
    }
}

/// Twenty callers, one call each: INVITE, ACK, BYE; how many nodes had any of it.
fn crowd(lb: &Balancer, nodes: &[Node], from: &str, to: &str) -> usize {
    for at in 0..20 {
        let caller = lb.caller(&format!("user{at}"));
        let invite = caller
            .request("INVITE", to)
            .set("From", format!("<{from}>;tag=t{at}"))
            .set("To", format!("\"Them\" <{to}>"));
        let mut dialog = caller.call_with(&invite);
        caller.exchange(&mut dialog, "BYE");
        let home = who_got(nodes, &dialog.call_id, "INVITE");
        assert_eq!(home.len(), 1);
        wait_for("the ACK", || (who_got(nodes, &dialog.call_id, "ACK") == home).then_some(()));
        assert_eq!(who_got(nodes, &dialog.call_id, "BYE"), home);
    }
    nodes.iter().filter(|it| it.count("INVITE") > 0).count()
}

#[test] // 33
fn user_based_on_to_keeps_one_number_on_one_node() {
    let lb = Setup::two_entry()
        .algorithm("UserBasedAlgorithm")
        .set("sipHeaderAffinityKey", "To")
        .start();
    let nodes = lb.answering_nodes(2);
    assert_eq!(crowd(&lb, &nodes, "sip:anybody@here.com", "sip:conference@there.com"), 1);
}

#[test] // 34
fn user_based_on_from_keeps_one_caller_on_one_node() {
    let lb = Setup::two_entry()
        .algorithm("UserBasedAlgorithm")
        .set("sipHeaderAffinityKey", "From")
        .start();
    let nodes = lb.answering_nodes(2);
    assert_eq!(crowd(&lb, &nodes, "sip:same@here.com", "sip:conference@there.com"), 1);
}

#[test] // 35
fn excluded_callers_are_spread_by_their_call_ids() {
    let lb = Setup::two_entry()
        .algorithm("UserBasedAlgorithm")
        .set("sipHeaderAffinityKey", "From")
        .set("sipHeaderAffinityKeyExclusionPattern", ".*sip.nexmo.com")
        .set("sipHeaderAffinityFallbackKey", "Call-ID")
        .start();
    let nodes = lb.answering_nodes(2);
    assert_eq!(crowd(&lb, &nodes, "sip:Anonymous@sip.nexmo.com", "sip:conference@there.com"), 2);
    for node in &nodes {
        for method in ["INVITE", "ACK", "BYE"] {
            assert!(node.count(method) > 0, "{method} at {}", node.name());
        }
    }
}

#[test]
fn user_based_moves_a_user_whose_node_died_instead_of_failing() {
    let lb = Setup::two_entry()
        .algorithm("UserBasedAlgorithm")
        .set("sipHeaderAffinityKey", "To")
        .start();
    let mut nodes = lb.answering_nodes(2);
    let caller = lb.caller("alice");
    let first = caller.ask("MESSAGE", "sip:bob@example.com").tag("To").unwrap();
    let dead = usize::from(first == "n1");
    nodes[dead].die();
    lb.wait_nodes(1);
    caller.ask("MESSAGE", "sip:bob@example.com");
    assert_eq!(nodes[1 - dead].count("MESSAGE"), 1);
}

#[test] // 37
fn a_regex_ties_its_users_to_a_node_until_it_is_removed() {
    let lb = Setup::two_entry()
        .algorithm("UserBasedAlgorithm")
        .set("sipHeaderAffinityKey", "From")
        .start();
    let nodes = lb.answering_nodes(2);
    let caller = lb.caller("alice").over_tcp();
    let call = |user: &str| {
        let invite = caller.request("INVITE", "sip:bob@example.com");
        let from = format!("<sip:{user}@here.com>;tag={user}");
        caller.call_with(&invite.set("From", from))
    };
    let port = nodes[0].address().port();
    let (status, body) = lb.get(&format!("/lbnoderegex?regex=(-)&ip=127.0.0.1&port={port}"));
    assert!(status.contains("200") && body.contains("Regex set"), "{status} {body}");
    for user in ["Kostya-test", "Nosach-test", "third-test", "fourth-test"] {
        let dialog = call(user);
        assert_eq!(who_got(&nodes, &dialog.call_id, "INVITE"), [0], "{user}");
    }
    lb.get("/lbnoderegex?regex=(-)");
    for at in 0..4 {
        call(&format!("user-{at}"));
    }
    assert!(nodes[1].count("INVITE") > 0, "without the regex both nodes get calls");
}

#[test] // 38, 39
fn active_standby_uses_one_node_until_it_dies_and_does_not_switch_back() {
    let (lb, mut nodes, caller) = stage("ActiveStandbyAlgorithm", 3);
    let place = || {
        let dialog = caller.call("sip:bob@example.com");
        dialog.call_id
    };
    let calls: Vec<String> = (0..6).map(|_| place()).collect();
    let active = who_got(&nodes, &calls[0], "INVITE")[0];
    for call in &calls {
        assert_eq!(who_got(&nodes, call, "INVITE"), [active]);
    }

    // A call of a standby node is answered at the active one.
    let callee = lb.caller("bob");
    let standby = &nodes[(active + 1) % 3];
    let invite = standby.request("INVITE", &callee.uri());
    standby.send(&invite.with("Route", lb.node_route(standby)));
    let got = callee.expect("INVITE");
    assert!(got.record_routes()[0].contains("node_host=127.0.0.1"));
    callee.reply(&got, 180, "Ringing");
    callee.reply(&got, 200, "OK");
    nodes[active].expect("180");
    nodes[active].expect("200 INVITE");

    nodes[active].die();
    lb.wait_nodes(2);
    let next = who_got(&nodes, &place(), "INVITE")[0];
    assert_ne!(next, active);
    // Just after its start the balancer takes every newcomer for one that was there all along.
    wait_for("the end of the start", || (lb.stat("UptimeSeconds") > 8).then_some(()));
    nodes[active].restart();
    nodes[active].answers_calls();
    lb.wait_nodes(3);
    assert_eq!(who_got(&nodes, &place(), "INVITE"), [next], "no switch back");
}

#[test] // 40, 42, 54
fn worst_case_sends_the_ack_home_and_the_bye_elsewhere() {
    for transport in [Transport::Udp, Transport::Tcp] {
        for early in ["false", "true"] {
            let lb = Setup::two_entry()
                .algorithm("WorstCaseUdpTestAffinityAlgorithm")
                .set("earlyDialogWorstCase", early)
                .start();
            let nodes = lb.answering_nodes(2);
            let mut caller = lb.caller("alice");
            caller.transport = transport;
            let mut dialog = caller.call("sip:bob@example.com");
            let home = who_got(&nodes, &dialog.call_id, "INVITE");
            nodes[home[0]].expect("ACK");
            caller.exchange(&mut dialog, "BYE");
            assert_eq!(who_got(&nodes, &dialog.call_id, "BYE"), [1 - home[0]], "{transport:?}");
        }
    }
}

#[test] // 41, 43, 54
fn worst_case_moves_early_answers_only_when_told() {
    for transport in [Transport::Udp, Transport::Tcp] {
        for (early, distinct) in [("false", 1), ("true", 2)] {
            let lb = Setup::two_entry()
                .algorithm("WorstCaseUdpTestAffinityAlgorithm")
                .set("earlyDialogWorstCase", early)
                .start();
            let mut nodes = lb.nodes(2);
            nodes[0].transport = transport;
            let mut callee = lb.caller("bob");
            callee.transport = transport;
            let invite = nodes[0].request("INVITE", &callee.uri());
            nodes[0].send(&invite.with("Route", lb.node_route(&nodes[0])));
            let got = callee.expect("INVITE");
            assert!(got.record_routes()[0].contains("node_host=127.0.0.1"));
            assert_eq!(got.link == Link::Udp, transport == Transport::Udp);
            callee.reply(&got, 180, "Ringing");
            let ringing = first_to_get(&nodes, "180").0;
            callee.reply(&got, 200, "OK");
            let answered = first_to_get(&nodes, "200 INVITE").0;
            let case = format!("{transport:?}, earlyDialogWorstCase={early}");
            assert_eq!(ringing != answered, distinct == 2, "{case}: {ringing} then {answered}");
        }
    }
}

#[test] // 46
fn a_dead_nodes_calls_go_to_its_partner_in_the_subcluster() {
    // Nodes of one host differ by address here: the groups name addresses.
    let lb = Setup::two_entry()
        .algorithm("ClusterSubdomainAffinityAlgorithm")
        .set("subclusterMap", "( 127.0.0.11 , 127.0.0.12 )(127.0.0.13,127.0.0.14)")
        .start();
    let mut nodes: Vec<Node> = (11..=14)
        .map(|it| lb.announced(Node::bind_ip(&format!("n{it}"), &format!("127.0.0.{it}"))))
        .collect();
    lb.wait_nodes(4);
    for node in &nodes {
        node.answers_calls();
    }
    let caller = lb.caller("alice");
    let mut dialogs: Vec<Dialog> = (0..12).map(|_| caller.call("sip:bob@example.com")).collect();
    let homes: Vec<usize> =
        dialogs.iter().map(|it| who_got(&nodes, &it.call_id, "INVITE")[0]).collect();
    nodes[0].die();
    lb.wait_nodes(3);
    for (dialog, home) in dialogs.iter_mut().zip(homes) {
        caller.exchange(dialog, "BYE");
        let expected = if home == 0 { 1 } else { home };
        assert_eq!(who_got(&nodes, &dialog.call_id, "BYE"), [expected], "call of node {home}");
    }
}

#[test]
fn a_node_in_no_subcluster_fails_over_like_any_other() {
    let lb = Setup::two_entry()
        .algorithm("ClusterSubdomainAffinityAlgorithm")
        .set("subclusterMap", "(10.0.0.1,10.0.0.2)")
        .start();
    let mut nodes = lb.answering_nodes(2);
    let caller = lb.caller("alice");
    let mut dialog = caller.call("sip:bob@example.com");
    let home = who_got(&nodes, &dialog.call_id, "INVITE")[0];
    nodes[home].die();
    lb.wait_nodes(1);
    caller.exchange(&mut dialog, "BYE");
}

#[test] // 45
fn a_host_twice_in_one_subcluster_is_a_configuration_error() {
    let (status, log) = Setup::two_entry()
        .algorithm("ClusterSubdomainAffinityAlgorithm")
        .set("subclusterMap", "(127.0.0.1,127.0.0.2,127.0.0.1)")
        .refused();
    assert!(!status.success());
    assert!(log.contains("subclusterMap"), "{log}");
}

#[test] // 3.10
fn fresh_calls_alternate_strictly_by_default() {
    let lb = Setup::two_entry().start();
    let nodes = lb.answering_nodes(3);
    let caller = lb.caller("alice");
    let homes: Vec<usize> = (0..12)
        .map(|_| {
            let dialog = caller.call("sip:bob@example.com");
            who_got(&nodes, &dialog.call_id, "INVITE")[0]
        })
        .collect();
    for round in homes.chunks(3) {
        assert_eq!(round, &homes[..3], "{homes:?}");
    }
    assert!(homes[0] != homes[1] && homes[1] != homes[2] && homes[0] != homes[2], "{homes:?}");
}

#[test] // groupFailover
fn group_failover_moves_all_calls_of_a_dead_node_to_one_survivor() {
    for (together, heirs) in [("true", 1), ("false", 2)] {
        let lb = Setup::two_entry().set("callIdAffinityGroupFailover", together).start();
        let mut nodes = lb.answering_nodes(3);
        let caller = lb.caller("alice");
        // Heirs are drawn by Call-ID: with this many, both have some.
        let mut dialogs: Vec<Dialog> =
            (0..90).map(|_| caller.call("sip:bob@example.com")).collect();
        dialogs.retain(|it| who_got(&nodes, &it.call_id, "INVITE") == [0]);
        assert_eq!(dialogs.len(), 30);
        nodes[0].die();
        lb.wait_nodes(2);
        for dialog in &mut dialogs {
            caller.exchange(dialog, "INFO");
        }
        let took = nodes.iter().filter(|it| it.count("INFO") > 0).count();
        assert_eq!(took, heirs, "callIdAffinityGroupFailover={together}");
        for dialog in &mut dialogs {
            let home = who_got(&nodes, &dialog.call_id, "INFO");
            caller.exchange(dialog, "BYE");
            assert_eq!(who_got(&nodes, &dialog.call_id, "BYE"), home, "and they stay there");
        }
    }
}

#[test] // 3, 36
fn scanners_of_the_congestion_valve_hear_nothing() {
    let lb = Setup::two_entry()
        .set(
            "gov.nist.javax.sip.SIP_MESSAGE_VALVE",
            "gov.nist.javax.sip.stack.CongestionControlMessageValve,\
             org.mobicents.tools.sip.balancer.SIPBalancerValveProcessor",
        )
        .set("org.mobicents.ext.javax.sip.congestion.SIP_SCANNERS", "sipx")
        .start();
    let nodes = lb.answering_nodes(2);
    let caller = lb.caller("alice");
    for _ in 0..5 {
        caller.send(&caller.request("INVITE", "sip:bob@example.com").with("User-Agent", "sipx"));
    }
    lb.wait_dropped("blocked", 5);
    caller.ask("OPTIONS", "sip:bob@example.com");
    assert!(nodes.iter().all(|it| it.count("INVITE") == 0));
    assert_eq!(caller.record().len(), 1, "silence");
}
