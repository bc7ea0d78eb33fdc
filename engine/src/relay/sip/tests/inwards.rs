//! Requests from clients: which node, by which routes, and what is answered instead.

use super::*;

#[test]
fn an_invite_crosses_as_the_specification_prints_it() {
    let mut world = World::new(TWO_LEGS).with_nodes(&[NODE]);
    let verdict = world.client(INVITE);
    assert!(datagram(NODE)(verdict), "{verdict:?}");
    assert_eq!(
        world.sent(),
        "INVITE sip:bob@example.com SIP/2.0
Via: SIP/2.0/UDP 172.16.0.1:5065;branch=z9hG4bK#i_0
Via: SIP/2.0/UDP 10.0.0.1:5060;branch=z9hG4bK#e_0
Record-Route: <sip:172.16.0.1:5065;transport=udp;lr;node_host=172.16.0.10;node_port=5080;version=0>
Record-Route: <sip:10.0.0.1:5060;transport=udp;lr;node_host=172.16.0.10;node_port=5080;version=0>
Route: <sip:172.16.0.10:5080;transport=udp;lr>
Via: SIP/2.0/UDP 203.0.113.5:5062;branch=z9hG4bKc1;rport=5062;received=203.0.113.5
Max-Forwards: 69
From: <sip:alice@example.com>;tag=a1
To: <sip:bob@example.com>
Call-ID: 8f3ad1@203.0.113.5
CSeq: 1 INVITE
Contact: <sip:alice@203.0.113.5:5062>
Content-Type: application/sdp
Content-Length: 5
X-Sip-Balancer-InitialRemoteAddr: 203.0.113.5
X-Sip-Balancer-InitialRemotePort: 5062

v=0
"
    );
}

#[test]
fn a_response_from_a_node_goes_back_to_the_client_without_our_vias() {
    let mut world = World::new(TWO_LEGS).with_nodes(&[NODE]);
    world.client(INVITE);
    let vias: String = world.lines("Via").iter().map(|it| format!("Via: {it}\n")).collect();
    let answer = format!(
        "
SIP/2.0 200 OK
{vias}From: <sip:alice@example.com>;tag=a1
To: <sip:bob@example.com>;tag=b1
Call-ID: 8f3ad1@203.0.113.5
CSeq: 1 INVITE
Contact: <sip:172.16.0.10:5080>
Content-Length: 0

"
    );
    let verdict = world.from_node(&answer);
    assert!(datagram(CLIENT)(verdict), "{verdict:?}");
    assert_eq!(
        world.sent(),
        "SIP/2.0 200 OK
Via: SIP/2.0/UDP 203.0.113.5:5062;branch=z9hG4bKc1;rport=5062;received=203.0.113.5
From: <sip:alice@example.com>;tag=a1
To: <sip:bob@example.com>;tag=b1
Call-ID: 8f3ad1@203.0.113.5
CSeq: 1 INVITE
Contact: <sip:172.16.0.10:5080>
Content-Length: 0

"
    );
}

#[test]
fn an_in_dialog_request_reaches_the_node_of_its_hint_whatever_the_routes_look_like() {
    let uri = "sip:bob@172.16.0.10:5080";
    let cases = [
        ("two lines", format!("Route: {OUTER_ROUTE}\nRoute: {INNER_ROUTE}\n")),
        ("one line", format!("Route: {OUTER_ROUTE}, {INNER_ROUTE}\n")),
        ("only the outer", format!("Route: {OUTER_ROUTE}\n")),
        ("only the inner", format!("Route: {INNER_ROUTE}\n")),
        ("repeated as SIPp does", format!("Route: {OUTER_ROUTE},{INNER_ROUTE},{OUTER_ROUTE}\n")),
        ("other transport in it", format!("Route: {}\n", OUTER_ROUTE.replace("udp", "tls"))),
        ("none: by Request-URI", String::new()),
    ];
    for (case, routes) in cases {
        // The algorithm alone would take turns.
        let mut world =
            World::new(TWO_LEGS).with_nodes(&["172.16.0.9:5080", NODE, "172.16.0.11:5080"]);
        for turn in 0..4 {
            let verdict = world.client(&in_dialog("BYE", &routes, uri));
            assert!(datagram(NODE)(verdict), "{case}, turn {turn}: {verdict:?}");
            assert_eq!(world.lines("Route"), Vec::<String>::new(), "{case}");
            assert_eq!(world.lines("Record-Route"), Vec::<String>::new(), "{case}");
            assert!(world.first_line().starts_with("BYE sip:bob@172.16.0.10:5080 "), "{case}");
        }
    }
}

#[test]
fn a_hint_to_a_dead_node_fails_over_and_keeps_the_applications_route() {
    let mut world = World::new(TWO_LEGS).with_nodes(&["172.16.0.11:5090"]);
    let routes = format!(
        "Route: {OUTER_ROUTE}\nRoute: {INNER_ROUTE}\nRoute: <sip:app@172.16.0.10:5080;lr;appname=x;transport=udp>\n"
    );
    let verdict = world.client(&in_dialog("BYE", &routes, "sip:bob@172.16.0.10:5080"));
    assert!(datagram("172.16.0.11:5090")(verdict), "{verdict:?}");
    assert_eq!(world.lines("Route"), ["<sip:app@172.16.0.11:5090;lr;appname=x;transport=udp>"]);
    assert_eq!(world.first_line(), "BYE sip:bob@172.16.0.11:5090 SIP/2.0");
}

#[test]
fn a_dialog_leaves_a_node_that_refuses_for_one_that_is_leaving_and_a_new_call_does_not() {
    let mut leaving = node("172.16.0.11:5080");
    leaving.graceful = true;
    let both = Snapshot::new(2, vec![node(NODE), leaving], &[]);
    let routes = format!("Route: {OUTER_ROUTE}\nRoute: {INNER_ROUTE}\n");
    for entry in crate::balance::ALGORITHMS {
        let mut world = World::new(&format!("{TWO_LEGS}algorithmClass=x.{}\n", entry.name));
        world.snapshot = both.suspecting(node(NODE).key, UDP);
        // Something else was refused, long ago or by another transport: the dialog is tried where it lives.
        let bye = in_dialog("BYE", &routes, "sip:bob@172.16.0.10:5080");
        let verdict = world.client(&bye);
        let is_worst_case = entry.name.starts_with("WorstCase");
        let is_active_standby = entry.name.starts_with("ActiveStandby");
        if !is_worst_case && !is_active_standby {
            assert!(datagram(NODE)(verdict), "{}: {verdict:?}", entry.name);
            let Verdict::Forward { hop, .. } = verdict else { panic!("{verdict:?}") };
            let source: SocketAddr = CLIENT.parse().unwrap();
            let listener = world.listener(Leg::External, Transport::Udp, Family::V4);
            let arrival = Arrival { now: world.now, listener, source, flow: None };
            let (bytes, failed) = (wire(&bye), gone(hop));
            let World { relay, snapshot, out, .. } = &mut world;
            let verdict = relay.undelivered(&arrival, &bytes, failed, snapshot, out);
            assert!(datagram("172.16.0.11:5080")(verdict), "{}: {verdict:?}", entry.name);
        }
        let verdict = world.client(&INVITE.replace("8f3ad1", "another"));
        assert!(datagram(NODE)(verdict), "{}: {verdict:?}", entry.name);
    }
}

#[test]
fn the_ack_of_a_dialog_follows_it_to_the_heir_even_if_that_is_leaving() {
    let mut world =
        World::new(&format!("{TWO_LEGS}algorithmClass=x.HeaderConsistentHashBalancerAlgorithm\n"));
    let mut leaving = node("172.16.0.11:5080");
    leaving.graceful = true;
    world.snapshot = Snapshot::new(2, vec![leaving, node("172.16.0.12:5080")], &[]);
    let routes = format!("Route: {OUTER_ROUTE}\nRoute: {INNER_ROUTE}\n");
    for call in 0..20 {
        let [invite, ack] = ["INVITE", "ACK"].map(|method| {
            let request = in_dialog(method, &routes, "sip:bob@172.16.0.10:5080");
            world.client(&request.replace("8f3ad1", &format!("call{call}")))
        });
        assert_eq!(invite, ack, "call {call}");
    }
}

#[test]
fn a_dialog_without_route_set_finds_its_node_although_a_newer_version_runs() {
    let mut world = World::new(TWO_LEGS).with_nodes(&["172.16.0.10:5080,0", "172.16.0.11:5080,1"]);
    let uri = "sip:bob@172.16.0.10:5080";
    for method in ["BYE", "ACK", "INFO"] {
        let verdict = world.client(&in_dialog(method, "", uri));
        assert!(datagram(NODE)(verdict), "{method}: {verdict:?}");
    }
    let verdict = world.client(&INVITE.replace("sip:bob@example.com SIP", &format!("{uri} SIP")));
    assert!(datagram("172.16.0.11:5080")(verdict), "a new call: {verdict:?}");
}

#[test]
fn failover_stays_inside_the_version_of_the_dialog() {
    let routes = format!("Route: {OUTER_ROUTE}\nRoute: {INNER_ROUTE}\n");
    let bye = in_dialog("BYE", &routes, "sip:bob@172.16.0.10:5080");
    let mut world = World::new(TWO_LEGS).with_nodes(&["172.16.0.10:5080,2", "172.16.0.11:5090,0"]);
    let verdict = world.client(&bye);
    assert!(datagram("172.16.0.11:5090")(verdict), "{verdict:?}");
    world.set_nodes(&["172.16.0.10:5080,2"], &[]);
    world.client(&bye);
    assert_eq!(world.first_line(), "SIP/2.0 500 No nodes available");
    // New calls go to the newest.
    let verdict = world.client(INVITE);
    assert!(datagram(NODE)(verdict), "{verdict:?}");
    assert!(world.lines("Via")[0].ends_with("i_2"), "{}", world.sent());
}

/// A newest version that wants no calls, or cannot take them, leaves them to the one before it.
#[test]
fn new_calls_go_to_the_newest_version_that_takes_them() {
    const NEWER: &str = "172.16.0.11:5090";
    let changes: [fn(&mut Node); 3] = [
        |it| it.graceful = true,
        |it| it.bad = Some(crate::node::Bad::Silence),
        |it| it.ports.0[Transport::Udp.index()] = None,
    ];
    for algorithm in ["CallIDAffinityBalancerAlgorithm", "HeaderConsistentHashBalancerAlgorithm"] {
        for (case, change) in (0..).zip(changes) {
            let mut world = World::new(&format!("{TWO_LEGS}algorithmClass={algorithm}\n"));
            let mut newer = node(&format!("{NEWER},2"));
            change(&mut newer);
            world.snapshot = Snapshot::new(1, vec![node(NODE), newer], &[]);
            for method in ["INVITE", "CANCEL", "ACK", "REGISTER"] {
                let verdict = world.client(&INVITE.replace("INVITE", method));
                assert!(datagram(NODE)(verdict), "{algorithm} {case} {method}: {verdict:?}");
            }
            // The response to a request whose node is gone finds one too.
            world.from_node(NODE_INVITE);
            let answer = callee_answer(&world, "200 OK").replace("_0", "_9");
            world.snapshot = Snapshot::new(
                2,
                vec![node("172.16.0.12:5080"), world.snapshot.nodes()[1].clone()],
                &[NODE.parse().unwrap()],
            );
            let verdict = world.client(&answer);
            assert!(datagram("172.16.0.12:5080")(verdict), "{algorithm} {case}: {verdict:?}");
        }
    }
}

/// `sip.md` 5.8: what is remembered, and nothing else.
#[test]
fn a_switchover_moves_neither_hashes_nor_hints() {
    let hash = "algorithmClass=HeaderConsistentHashBalancerAlgorithm\n";
    let mut world =
        World::new(&format!("{TWO_LEGS}{hash}")).with_nodes(&[NODE, "172.16.0.11:5080"]);
    let calls: Vec<String> =
        (0..8).map(|it| INVITE.replace("8f3ad1", &format!("call{it}"))).collect();
    let switch_over = |world: &mut World| {
        let [from, to] = [NODE, "172.16.0.11:5080"].map(|it| node(it).key);
        world.relay.switch_over(from, to);
    };
    let homes: Vec<Verdict> = calls.iter().map(|it| world.client(it)).collect();
    assert!(homes.iter().any(|it| datagram(NODE)(*it)), "somebody could move");
    switch_over(&mut world);
    for (call, home) in calls.iter().zip(homes) {
        assert_eq!(world.client(call), home);
    }
    let mut world = World::new(TWO_LEGS).with_nodes(&[NODE, "172.16.0.11:5080"]);
    let routes = format!("Route: {OUTER_ROUTE}\nRoute: {INNER_ROUTE}\n");
    switch_over(&mut world);
    for method in ["INFO", "BYE"] {
        let verdict = world.client(&in_dialog(method, &routes, "sip:bob@172.16.0.10:5080"));
        assert!(datagram(NODE)(verdict), "{method}: {verdict:?}");
    }
}

#[test]
fn a_response_counts_against_its_node_by_code_and_reason() {
    let codes = "responsesStatusCodeNodeRemoval=503\n";
    let reason = "responseReasonNodeRemoval=Media failure\n";
    let cases = [
        ("", "503 Busy", 1),
        ("", "486 Busy", 0),
        (reason, "503 Media failure", 1),
        (reason, "503 Media", 0),
        (reason, "486 Media failure", 0),
    ];
    for (reason, status, want) in cases {
        let mut world = World::new(&format!("{TWO_LEGS}{codes}{reason}")).with_nodes(&[NODE]);
        world.client(INVITE);
        let answer = callee_answer(&world, status);
        world.from_node(&answer);
        let told = world.relay.poll_report(world.now, &world.snapshot);
        let is_right = matches!(told, Some(Report::Seen { errors, .. }) if errors == want);
        assert!(is_right, "{reason}{status}: {told:?}");
    }
}

/// Keys that change how calls are remembered are changed while calls ring.
#[test]
fn a_reload_forgets_no_call() {
    let mut world = World::new(TWO_LEGS).with_nodes(&[NODE, "172.16.0.11:5080"]);
    let calls: Vec<String> =
        (0..7).map(|it| INVITE.replace("8f3ad1", &format!("call{it}"))).collect();
    let homes: Vec<Verdict> = calls.iter().map(|it| world.client(it)).collect();
    let mut config = TWO_LEGS.to_owned();
    for line in [
        "callIdAffinityMaxTimeInCache=700",
        "callIdAffinityMaxCalls=5000",
        "callIdAffinityGroupFailover=true",
        "subclusterMap=(172.16.0.10,172.16.0.11)",
        "trafficRampupCyclePeriod=10000",
        "earlyDialogWorstCase=true",
    ] {
        config.push_str(&format!("{line}\n"));
        world.relay.configure(Arc::new(settings(&config)));
        for (call, home) in calls.iter().zip(&homes) {
            assert_eq!(world.client(call), *home, "{line}");
            assert_eq!(world.client(&call.replace("INVITE", "CANCEL")), *home, "{line}");
        }
        let calls_of = |it: &Node| world.relay.state.calls.of(world.now, it.key).up();
        assert_eq!(world.snapshot.nodes().iter().map(calls_of).sum::<u64>(), 7, "{line}");
    }
}

#[test]
fn nobody_from_outside_makes_us_send_to_what_is_no_node() {
    let cases = [
        (
            "forged hint",
            "Route: <sip:10.0.0.1:5060;lr;node_host=172.16.9.9;node_port=22>\n",
            "sip:x@172.16.9.9:22",
        ),
        ("foreign Route", "Route: <sip:172.16.9.9:22;lr>\n", "sip:x@172.16.9.9:22"),
        ("good hint, foreign URI", &format!("Route: {OUTER_ROUTE}\n"), "sip:x@172.16.9.9:22"),
        ("hint in the URI", "", "sip:x@172.16.9.9:22;node_host=172.16.9.9;node_port=22"),
        ("maddr", "", "sip:x@example.com;maddr=172.16.9.9"),
        (
            "good hint and maddr",
            &format!("Route: {OUTER_ROUTE}\n"),
            "sip:x@172.16.0.10:5080;maddr=172.16.9.9",
        ),
    ];
    for (case, routes, uri) in cases {
        for method in ["OPTIONS", "BYE"] {
            let mut world = World::new(TWO_LEGS).with_nodes(&[NODE]);
            let mut message = in_dialog(method, routes, uri);
            if method == "OPTIONS" {
                message = message.replace(";tag=b1", "");
            }
            let verdict = world.client(&message);
            assert!(datagram(NODE)(verdict), "{case} {method}: {verdict:?}");
        }
    }
}

#[test]
fn the_request_uri_is_rewritten_only_where_it_was_us() {
    let cases = [
        ("us", "sip:LittleGuy@10.0.0.1:5060", "sip:LittleGuy@172.16.0.10:5080", 0),
        ("us, default port", "sip:10.0.0.1", "sip:172.16.0.10:5080", 0),
        (
            "us, with transport",
            "sip:x@10.0.0.1:5060;transport=tls;a=b?h=1",
            "sip:x@172.16.0.10:5080;transport=udp;a=b?h=1",
            0,
        ),
        ("a domain", "sip:bob@example.com", "sip:bob@example.com", 1),
        ("another port of ours is not us", "sip:bob@10.0.0.1:7000", "sip:bob@10.0.0.1:7000", 1),
        ("the node itself", "sip:bob@172.16.0.10:5080", "sip:bob@172.16.0.10:5080", 0),
        ("tel", "tel:+4930123;phone-context=x", "tel:+4930123;phone-context=x", 1),
        ("urn", "urn:service:sos", "urn:service:sos", 1),
    ];
    for (case, uri, want, routes) in cases {
        let mut world = World::new(TWO_LEGS).with_nodes(&[NODE]);
        let verdict =
            world.client(&INVITE.replace("sip:bob@example.com SIP", &format!("{uri} SIP")));
        assert!(datagram(NODE)(verdict), "{case}: {verdict:?}");
        assert_eq!(world.first_line(), format!("INVITE {want} SIP/2.0"), "{case}");
        assert_eq!(world.lines("Route").len(), routes, "{case}");
    }
}

#[test]
fn a_preloaded_route_to_us_is_taken_off_and_one_to_a_node_is_followed() {
    let mut world = World::new(TWO_LEGS).with_nodes(&["172.16.0.9:5080", NODE]);
    let invite = INVITE.replace(
        "Max-Forwards",
        "Route: <sip:10.0.0.1;lr>, <sip:x@172.16.0.10:5080;lr>\nMax-Forwards",
    );
    for turn in 0..3 {
        let verdict = world.client(&invite);
        assert!(datagram(NODE)(verdict), "turn {turn}: {verdict:?}");
        assert_eq!(world.lines("Route"), ["<sip:x@172.16.0.10:5080;lr>"]);
    }
}

#[test]
fn calls_alternate_and_retransmissions_cancel_and_ack_follow_their_invite() {
    let mut world = World::new(TWO_LEGS).with_nodes(&[NODE, "172.16.0.11:5080"]);
    let mut last = None;
    for call in 0..6 {
        let invite = INVITE.replace("8f3ad1", &format!("call{call}"));
        let first = world.client(&invite);
        let branch = world.lines("Via")[0].clone();
        let vias = String::from_utf8(world.out.clone()).unwrap();
        assert_ne!(Some(first), last, "call {call} went where the one before went");
        last = Some(first);
        assert_eq!(world.client(&invite), first, "retransmission of call {call}");
        assert_eq!(
            String::from_utf8(world.out.clone()).unwrap(),
            vias,
            "retransmissions are equal"
        );
        let cancel = invite.replace("INVITE", "CANCEL");
        assert_eq!(world.client(&cancel), first, "CANCEL of call {call}");
        assert_eq!(world.lines("Via")[0], branch);
        let ack =
            invite.replace("INVITE", "ACK").replace("bob@example.com>", "bob@example.com>;tag=n");
        assert_eq!(world.client(&ack), first, "ACK of a failed call {call}");
        let ours =
            |text: &[u8]| text.windows(30).find(|it| it.starts_with(b"z9hG4bK")).unwrap().to_vec();
        assert_eq!(ours(&world.out), ours(vias.as_bytes()), "the transaction's branch");
    }
}

/// Its user's next call goes elsewhere, or every call does.
#[test]
fn cancel_and_ack_follow_their_invite_to_a_node_that_began_to_leave() {
    let to = |verdict| match verdict {
        Verdict::Forward { hop, .. } => target(hop),
        _ => None,
    };
    for (entry, shards) in crate::balance::ALGORITHMS.iter().flat_map(|it| [(it, 1), (it, 4)]) {
        let case = format!("{} on {shards} shards", entry.name);
        let config = format!(
            "{TWO_LEGS}algorithmClass=x.{}\nsipHeaderAffinityKey=To\nshards={shards}\n",
            entry.name
        );
        let mut world = World::new(&config).with_nodes(&[NODE, "172.16.0.11:5080"]);
        let home = to(world.client(INVITE)).unwrap();
        let mut nodes = [NODE, "172.16.0.11:5080"].map(node);
        nodes.iter_mut().for_each(|it| it.graceful = it.ip == home.ip());
        world.snapshot = Snapshot::new(world.snapshot.generation() + 1, nodes.to_vec(), &[]);
        let next = INVITE.replace("8f3ad1", "next").replace("z9hG4bKc1", "z9hG4bKc9");
        assert_ne!(to(world.client(&next)), Some(home), "{case}");
        let cancel = INVITE.replace("INVITE", "CANCEL");
        assert_eq!(to(world.client(&cancel)), Some(home), "CANCEL, {case}");
        let ack = INVITE.replace("INVITE", "ACK").replace("com>\nCall", "com>;tag=n\nCall");
        assert_eq!(to(world.client(&ack)), Some(home), "ACK, {case}");
    }
}

#[test]
fn branches_tell_transactions_and_our_two_vias_apart() {
    let mut world = World::new(TWO_LEGS).with_nodes(&[NODE]);
    let mut seen = std::collections::BTreeSet::new();
    let variants = [
        INVITE.to_owned(),
        INVITE.replace("z9hG4bKc1", "z9hG4bKc2"),
        INVITE.replace("203.0.113.5:5062;branch", "203.0.113.6:5062;branch"),
        INVITE.replace(";branch=z9hG4bKc1", ""),
        INVITE.replace(";branch=z9hG4bKc1", "").replace("CSeq: 1", "CSeq: 2"),
        INVITE.replace(";branch=z9hG4bKc1", ";branch=1").replace("8f3ad1", "8f3ad2"),
        // The cookie and nothing else (RFC 4475 §3.1.2.18) is the same for all.
        INVITE.replace("z9hG4bKc1", "z9hG4bK"),
        INVITE.replace("z9hG4bKc1", "z9hG4bK").replace("8f3ad1", "8f3ad3"),
    ];
    for variant in &variants {
        world.client(variant);
        for line in String::from_utf8(world.out.clone()).unwrap().lines().take(3).skip(1) {
            assert!(seen.insert(line.to_owned()), "twice: {line} for {variant}");
        }
    }
    let plain = variants[3].clone();
    world.client(&plain);
    let invite = world.out.clone();
    world.client(&plain.replace("INVITE", "CANCEL"));
    assert_eq!(invite[60..130], world.out[60..130], "a transaction of RFC 2543 keeps its branch");
}

#[test]
fn received_and_rport_are_written_as_rfc_3581_says() {
    let from = "203.0.113.5:5062";
    let cases = [
        // (case, Via as sent, transport, Via as forwarded)
        (
            "rport asked",
            "SIP/2.0/UDP 203.0.113.5:5062;branch=z9hG4bKa;rport",
            "SIP/2.0/UDP 203.0.113.5:5062;branch=z9hG4bKa;rport=5062;received=203.0.113.5",
        ),
        (
            "not asked, same host",
            "SIP/2.0/UDP 203.0.113.5:9;branch=z9hG4bKa",
            "SIP/2.0/UDP 203.0.113.5:9;branch=z9hG4bKa",
        ),
        (
            "not asked, other host",
            "SIP/2.0/UDP pc.example.com:9;branch=z9hG4bKa",
            "SIP/2.0/UDP pc.example.com:9;branch=z9hG4bKa;received=203.0.113.5",
        ),
        (
            "a lie is replaced",
            "SIP/2.0/UDP 10.1.1.1;received=10.9.9.9;branch=z9hG4bKa",
            "SIP/2.0/UDP 10.1.1.1;branch=z9hG4bKa;received=203.0.113.5",
        ),
        (
            "a lie without need is removed",
            "SIP/2.0/UDP 203.0.113.5:5062;received=10.9.9.9;branch=z9hG4bKa",
            "SIP/2.0/UDP 203.0.113.5:5062;branch=z9hG4bKa",
        ),
        (
            "rport with a lie",
            "SIP/2.0/UDP 203.0.113.5;rport=1;branch=z9hG4bKa;x=y",
            "SIP/2.0/UDP 203.0.113.5;rport=5062;branch=z9hG4bKa;x=y;received=203.0.113.5",
        ),
        (
            "blanks and case stay",
            "SIP / 2.0 / UDP  pc.example.com : 9 ; BRANCH = z9hG4bKa",
            "SIP / 2.0 / UDP  pc.example.com : 9 ; BRANCH = z9hG4bKa;received=203.0.113.5",
        ),
    ];
    for (case, sent, want) in cases {
        let mut world = World::new(TWO_LEGS).with_nodes(&[NODE]);
        let message = INVITE.replace("SIP/2.0/UDP 203.0.113.5:5062;branch=z9hG4bKc1;rport", sent);
        world.send(Leg::External, Transport::Udp, from, &message);
        assert_eq!(world.lines("Via")[2], want, "{case}");
    }
    let mut world = World::new(TWO_LEGS).with_nodes(&[NODE]);
    world.send(
        Leg::External,
        Transport::Tcp,
        from,
        &INVITE.replace(";rport", "").replace("UDP", "TCP"),
    );
    assert_eq!(
        world.lines("Via").last().unwrap(),
        "SIP/2.0/TCP 203.0.113.5:5062;branch=z9hG4bKc1;rport=5062"
    );
}

#[test]
fn max_forwards_counts_down_and_ends() {
    let cases = [
        ("Max-Forwards: 70\n", "70", Some("69"), None),
        ("one is enough for one more hop", "1", Some("0"), None),
        ("none left", "0", None, Some("SIP/2.0 483 Too Many Hops")),
        ("too large a number is no reason to refuse", "300", Some("254"), None),
    ];
    for (case, value, want, refused) in cases {
        let mut world = World::new(TWO_LEGS).with_nodes(&[NODE]);
        let verdict =
            world.client(&INVITE.replace("Max-Forwards: 70", &format!("Max-Forwards: {value}")));
        match (want, refused) {
            (Some(want), _) => assert_eq!(world.lines("Max-Forwards"), [want], "{case}"),
            (None, Some(line)) => {
                assert_eq!(world.first_line(), line, "{case}");
                assert!(datagram(CLIENT)(verdict), "{case}: {verdict:?}");
                assert!(
                    world.lines("To")[0].contains(";tag="),
                    "{case}: own answers have a To tag"
                );
            }
            _ => unreachable!(),
        }
    }
    let mut world = World::new(TWO_LEGS).with_nodes(&[NODE]);
    world.client(&INVITE.replace("Max-Forwards: 70\n", ""));
    assert_eq!(world.lines("Max-Forwards"), ["70"], "missing");
    let ack = INVITE.replace("INVITE", "ACK").replace(": 70", ": 0");
    assert_eq!(world.client(&ack), Verdict::Drop(DropReason::MaxForwards), "never answered");
}

#[test]
fn without_nodes_the_answer_is_500_and_configurable() {
    let mut world = World::new(TWO_LEGS);
    let verdict = world.client(INVITE);
    assert!(datagram(CLIENT)(verdict), "{verdict:?}");
    let answer = world.sent();
    assert_eq!(world.first_line(), "SIP/2.0 500 No nodes available");
    assert_eq!(world.lines("Via").len(), 1);
    world.client(INVITE);
    assert_eq!(world.sent(), answer, "the same To tag for a retransmission");
    assert_eq!(world.client(&INVITE.replace("INVITE", "ACK")), Verdict::Drop(DropReason::NoNode));
    let mut world = World::new(&format!("{TWO_LEGS}noNodeStatusCode=503\n"));
    world.client(INVITE);
    assert_eq!(world.first_line(), "SIP/2.0 503 No nodes available");
    assert_eq!(world.lines("Retry-After").len(), 1);
}

#[test]
fn blocked_words_are_dropped_silently_from_outside_only() {
    let scanner = INVITE.replace("Max-Forwards", "User-Agent: Friendly-SCANNER 1\nMax-Forwards");
    let mut world = World::new(TWO_LEGS).with_nodes(&[NODE]);
    assert_eq!(world.client(&scanner), Verdict::Drop(DropReason::Blocked));
    // Naming a live node does not get around it.
    let hinted = scanner.replace("Max-Forwards", &format!("Route: {OUTER_ROUTE}\nMax-Forwards"));
    assert_eq!(world.client(&hinted), Verdict::Drop(DropReason::Blocked));
    let caller = INVITE.replace("sip:alice@", "sip:sipvicious@");
    assert_eq!(world.client(&caller), Verdict::Drop(DropReason::Blocked));
    let mut world = World::new(&format!("{TWO_LEGS}blocked-values=\n")).with_nodes(&[NODE]);
    assert!(datagram(NODE)(world.client(&scanner)), "an empty list blocks nothing");
}

#[test]
fn scanners_of_the_congestion_valve_are_never_answered_and_may_end_what_they_began() {
    let agent = |request: &str, agent: &str| {
        request.replace("Max-Forwards", &format!("User-Agent: {agent}\nMax-Forwards"))
    };
    let scanners = "org.mobicents.ext.javax.sip.congestion.SIP_SCANNERS=sipx\n";
    let valve = "gov.nist.javax.sip.SIP_MESSAGE_VALVE=\
        gov.nist.javax.sip.stack.CongestionControlMessageValve,x.SIPBalancerValveProcessor\n";
    let config = format!("{TWO_LEGS}blockedResponse=403\n{scanners}");
    let mut world = World::new(&format!("{config}{valve}")).with_nodes(&[NODE]);
    assert_eq!(world.client(&agent(INVITE, "SipX/1")), Verdict::Drop(DropReason::Blocked));
    for method in ["BYE", "ACK", "PRACK", "CANCEL"] {
        let request = agent(&in_dialog(method, "", "sip:bob@172.16.0.10:5080"), "sipx");
        assert!(datagram(NODE)(world.client(&request)), "{method}");
    }
    world.client(&agent(INVITE, "sipcli"));
    assert_eq!(world.first_line(), "SIP/2.0 403 Forbidden", "blocked-values have their own answer");
    let mut world = World::new(&config).with_nodes(&[NODE]);
    assert!(datagram(NODE)(world.client(&agent(INVITE, "sipx"))), "without the valve");
}

/// JBoss hosts run several servers with a port offset: the numbers of one are another's, for other transports.
#[test]
fn nodes_on_one_host_may_have_each_others_port_numbers() {
    let ports = |udp: u16, tls: u16| {
        let mut it = node("172.16.0.10:5080");
        it.ports = Ports::default();
        it.ports.open(Transport::Udp, udp);
        it.ports.open(Transport::Tcp, udp);
        it.ports.open(Transport::Tls, tls);
        it.key = NodeKey::of(it.ip, it.version, &it.ports);
        it
    };
    for turned in [false, true] {
        let (first, second) = (ports(5080, 5081), ports(5081, if turned { 5080 } else { 5082 }));
        let mut world = World::new(TWO_LEGS);
        world.snapshot = Snapshot::new(2, vec![first, second], &[]);
        for port in ["5080", "5081"] {
            let [outer, inner] = [OUTER_ROUTE, INNER_ROUTE].map(|it| it.replace("5080", port));
            let tls = outer.replace("transport=udp", "transport=tls");
            for routes in [
                format!("Route: {outer}\nRoute: {inner}\n"),
                format!("Route: {tls}\nRoute: {inner}\n"),
                format!("Route: {outer}\n"),
            ] {
                let verdict = world.client(&in_dialog("BYE", &routes, "sip:bob@example.com"));
                let want = format!("172.16.0.10:{port}");
                assert!(datagram(&want)(verdict), "{routes}: {verdict:?}");
            }
            let verdict =
                world.client(&in_dialog("BYE", "", &format!("sip:bob@172.16.0.10:{port}")));
            assert!(datagram(&format!("172.16.0.10:{port}"))(verdict), "{port}: {verdict:?}");
            // A refused datagram is the doing of the one that has the port for datagrams.
            let address = format!("172.16.0.10:{port}").parse().unwrap();
            let (key, way) = world.relay.refused(address, Transport::Udp, &world.snapshot).unwrap();
            let node = world.snapshot.node(world.snapshot.find(key).unwrap());
            assert_eq!((node.ports.of(Transport::Udp), way), (port.parse().ok(), UDP));
        }
    }
}

/// A dialog's node has shut one port: what goes by the others stays with it.
#[test]
fn a_port_that_refuses_costs_the_others_nothing() {
    let mut world = World::new(TWO_LEGS).with_nodes(&[NODE, "172.16.0.11:5080"]);
    let routes = format!("Route: {OUTER_ROUTE}\nRoute: {INNER_ROUTE}\n");
    let (key, way) =
        world.relay.refused(NODE.parse().unwrap(), Transport::Tcp, &world.snapshot).unwrap();
    world.snapshot = world.snapshot.suspecting(key, way);
    let bye = in_dialog("BYE", &routes, "sip:bob@172.16.0.10:5080");
    assert!(datagram(NODE)(world.client(&bye)));
    let nodes: std::collections::BTreeSet<_> = (0..8)
        .filter_map(|call| match world.client(&INVITE.replace("8f3ad1", &format!("n{call}"))) {
            Verdict::Forward { hop, .. } => target(hop),
            _ => None,
        })
        .collect();
    assert_eq!(nodes.len(), 2, "new calls by UDP go to both: {nodes:?}");
}

#[test]
fn a_via_with_two_places_for_the_response_is_refused() {
    let mut world = World::new(TWO_LEGS).with_nodes(&[NODE]);
    let twice = INVITE.replace(";rport", ";received=1.1.1.1;received=198.51.100.66");
    let verdict = world.client(&twice);
    let hop = Hop::Datagram {
        from: world.listener(Leg::External, Transport::Udp, Family::V4),
        to: CLIENT.parse().unwrap(),
    };
    assert_eq!(verdict, Verdict::Reply { hop });
    assert!(world.first_line().starts_with("SIP/2.0 400 "), "{}", world.first_line());
}

/// A connector more, or a protocol that has fallen silent: the process is the same, and so are its calls.
#[test]
fn calls_stay_on_a_node_whose_ports_change() {
    let addresses = [NODE, "172.16.0.11:5080", "172.16.0.12:5080"];
    let mut world = World::new(TWO_LEGS).with_nodes(&addresses);
    let message = |method: &str, call: usize| {
        let text = INVITE.replace("8f3ad1", &format!("call{call}"));
        text.replace("z9hG4bKc1", &format!("z9hG4bKc{call}"))
            .replace("INVITE ", &format!("{method} "))
            .replace("1 INVITE", &format!("1 {method}"))
    };
    let to = |verdict: Verdict| match verdict {
        Verdict::Forward { hop, .. } => target(hop),
        other => panic!("{other:?}"),
    };
    let homes: Vec<_> = (0..30).map(|call| to(world.client(&message("INVITE", call)))).collect();
    let calls = |world: &mut World| {
        let counters = world.relay.counters(world.now, &world.snapshot, true);
        let up = counters.calls_up.iter().map(|(key, it)| (*key, it.up())).collect::<Vec<_>>();
        (up, counters.remembered_by_node.clone())
    };
    let (before, _) = calls(&mut world);
    assert!(before.iter().all(|it| it.1 == 10), "{before:?}");
    let mut nodes = world.snapshot.nodes().to_vec();
    for it in &mut nodes {
        it.former.push(it.key);
        it.ports.0[Transport::Wss.index()] = None;
        it.key = NodeKey::of(it.ip, it.version, &it.ports);
    }
    world.snapshot = Snapshot::new(2, nodes, &[]).after(&world.snapshot);
    world.relay.handle_snapshot(&world.snapshot);
    let (after, remembered) = calls(&mut world);
    assert!(after.len() == 3 && after.iter().all(|it| it.1 == 10), "{after:?}");
    assert!(after.iter().all(|(key, _)| remembered.get(key) == Some(&10)), "{remembered:?}");
    for (call, home) in homes.into_iter().enumerate() {
        assert_eq!(to(world.client(&message("CANCEL", call))), home, "call {call}");
    }
}
