//! What [`explain`] tells.

use super::*;

/// What is told of a message from a client, or from [`NODE`].
fn told(world: &World, leg: Leg, message: &str) -> String {
    let listener = world.listener(leg, Transport::Udp, Family::V4);
    let source = if leg == Leg::Internal { NODE } else { CLIENT };
    let arrival = Arrival { now: world.now, listener, source: source.parse().unwrap(), flow: None };
    explain(world.relay.settings(), &world.snapshot, &arrival, &wire(message)).steps
}

#[test]
fn an_explanation_tells_of_each_node_why_it_is_asked_or_not() {
    let info = in_dialog("INFO", "", "sip:bob@example.com");
    let cancel = INVITE.replace("INVITE", "CANCEL");
    let alone: &[Node] = &[];
    let beside = &[node(NODE)][..];
    type Case<'c> = (&'c str, &'c [Node], fn(&mut Node), &'c str);
    let cases: [Case<'_>; 17] = [
        (INVITE, beside, |_| {}, "candidate"),
        (INVITE, beside, |it| it.suspect.set(UDP, true), "refused a moment ago"),
        (INVITE, alone, |it| it.suspect.set(UDP, true), "candidate, although refused a moment ago"),
        (INVITE, beside, |it| it.bad = Some(Bad::Errors), "bad: too many error responses"),
        (INVITE, beside, |it| it.bad = Some(Bad::Response), "bad: an error response over HTTP"),
        (INVITE, beside, |it| it.bad = Some(Bad::Silence), "bad: does not answer"),
        (INVITE, beside, |it| it.bad = Some(Bad::Full), "bad: says it is full"),
        (INVITE, beside, |it| it.graceful = true, "shutting down: no new calls"),
        (INVITE, alone, |it| it.graceful = true, "shutting down: no new calls"),
        (
            INVITE,
            alone,
            |it| {
                (it.graceful, it.bad) = (true, Some(Bad::Silence));
                it.suspect.set(UDP, true);
            },
            "shutting down: no new calls; bad: does not answer; refused a moment ago",
        ),
        // Calls begin in turn: a dialog that nobody remembers may be on any node, and this one is spared.
        (&info, beside, |it| it.graceful = true, "shutting down: no new calls"),
        (&info, alone, |it| it.graceful = true, "candidate, although shutting down: no new calls"),
        (
            &cancel,
            alone,
            |it| it.graceful = true,
            "candidate, although shutting down: no new calls",
        ),
        (&info, alone, |it| it.bad = Some(Bad::Full), "candidate, although bad: says it is full"),
        (&info, beside, |it| it.suspect.set(UDP, true), "refused a moment ago"),
        (INVITE, beside, |it| it.version = Version(-1), "other version"),
        (INVITE, beside, |it| it.ports = Ports::default(), "no port for this transport"),
    ];
    for (message, others, change, want) in cases {
        let mut world = World::new(TWO_LEGS);
        let mut one = node("172.16.0.9:5080");
        change(&mut one);
        let nodes = others.iter().cloned().chain([one]).collect();
        world.snapshot = Snapshot::new(2, nodes, &[]);
        let steps = told(&world, Leg::External, message);
        let line = format!("  node-172.16.0.9 172.16.0.9: {want}\n");
        assert!(steps.contains(&line), "{line:?} is not in\n{steps}");
    }
}

/// Where calls begin by arithmetic their dialogs are found by it, on nodes that are leaving, too.
#[test]
fn an_explanation_lists_the_candidates_of_the_algorithm_that_chooses() {
    let info = in_dialog("INFO", "", "sip:bob@example.com");
    let leaving = "shutting down: no new calls";
    let still = "candidate, although shutting down: no new calls";
    for (more, of_invite, of_info) in [
        ("algorithmClass=CallIDAffinityBalancerAlgorithm\n", leaving, leaving),
        ("shards=2\nreuseportSteering=random\n", leaving, still),
        ("algorithmClass=HeaderConsistentHashBalancerAlgorithm\n", leaving, still),
        ("algorithmClass=UserBasedAlgorithm\nshards=1\n", leaving, leaving),
        ("algorithmClass=UserBasedAlgorithm\nshards=2\n", leaving, still),
        ("algorithmClass=ActiveStandbyAlgorithm\n", leaving, leaving),
        ("algorithmClass=WorstCaseUdpTestAffinityAlgorithm\n", leaving, leaving),
    ] {
        let mut world = World::new(&format!("{TWO_LEGS}{more}"));
        let mut one = node("172.16.0.9:5080");
        one.graceful = true;
        world.snapshot = Snapshot::new(2, vec![node(NODE), one], &[]);
        for (message, want) in [(INVITE, of_invite), (&info, of_info)] {
            let steps = told(&world, Leg::External, message);
            let line = format!("  node-172.16.0.9 172.16.0.9: {want}\n");
            assert!(steps.contains(&line), "{more}{line:?} is not in\n{steps}");
        }
    }
}

#[test]
fn an_explanation_tells_what_was_not_believed_and_what_is_not_sent() {
    let route = |params: &str| {
        in_dialog("INFO", &format!("Route: <sip:10.0.0.1;lr{params}>\n"), "sip:bob@example.com")
    };
    let version = ";node_host=172.16.0.10;node_port=5080;version=7";
    let cases = [
        (
            Leg::External,
            route(";node_host=172.16.9.9;node_port=22"),
            "hint node_host=172.16.9.9 node_port=22: no live node, refused",
        ),
        (
            Leg::External,
            route(version),
            "hint node_host=172.16.0.10 node_port=5080: no live node, refused",
        ),
        (Leg::External, route(";flow=0123"), "flow token 0123: forged or stale, ignored"),
        (Leg::External, INVITE.replace("sip:alice@", "sip:sipcli@"), "drop: blocked"),
        (Leg::External, INVITE.replace(": 70", ": 0"), "answer SIP/2.0 483 Too Many Hops"),
        (Leg::Internal, NODE_INVITE.to_owned(), "INVITE request: from a node, outwards"),
        (
            Leg::Internal,
            NODE_INVITE.to_owned(),
            "node node-172.16.0.10 172.16.0.10 version 0 (sender)",
        ),
        (Leg::Internal, NODE_INVITE.to_owned(), "forward: datagram to 127.0.0.1:5033"),
        (
            Leg::Internal,
            NODE_INVITE.replace("127.0.0.1:5033", "carrier.example.net"),
            "waits for the name to be resolved",
        ),
        (
            Leg::Internal,
            NODE_INVITE.replace("INVITE", "ACK").replace("@127.0.0.1:5033", "@10.0.0.1"),
            "drop: loop",
        ),
    ];
    let world = World::new(TWO_LEGS).with_nodes(&[NODE]);
    for (leg, message, want) in cases {
        let steps = told(&world, leg, &message);
        assert!(steps.contains(want), "{want:?} is not in\n{steps}");
    }
}

#[test]
fn an_explanation_tells_the_hint_the_candidates_and_the_edits() {
    let world = World::new(TWO_LEGS).with_nodes(&["172.16.0.9:5080", NODE]);
    let listener = world.listener(Leg::External, Transport::Udp, Family::V4);
    let arrival = Arrival { now: world.now, listener, source: CLIENT.parse().unwrap(), flow: None };
    let routes = format!("Route: {OUTER_ROUTE}\n");
    let bytes = wire(&in_dialog("BYE", &routes, "sip:bob@172.16.0.10:5080"));
    let told = explain(world.relay.settings(), &world.snapshot, &arrival, &bytes);
    for step in [
        "External leg",
        "BYE request: from a client",
        "hint node_host=172.16.0.10 node_port=5080: a live node",
        "affinity key: 8f3ad1@203.0.113.5",
        "node-172.16.0.9 172.16.0.9: candidate",
        "node node-172.16.0.10 172.16.0.10 version 0 (hint)",
        "- Route: <sip:10.0.0.1:5060",
        "+ Via: SIP/2.0/UDP 172.16.0.1:5065",
        "forward: datagram to 172.16.0.10:5080",
    ] {
        assert!(told.steps.contains(step), "{step:?} is not in\n{}", told.steps);
    }
}
