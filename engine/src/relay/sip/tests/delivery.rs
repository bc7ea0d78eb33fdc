//! Messages that wait for a name, or do not reach their next hop.

use std::time::Duration;

use super::*;

#[test]
fn a_name_is_resolved_elsewhere_and_then_the_same_bytes_go_out() {
    let mut world = World::new(TWO_LEGS).with_nodes(&[NODE]);
    let message = NODE_INVITE.replace("127.0.0.1:5033", "carrier.example.net");
    assert_eq!(world.from_node(&message), Verdict::Resolve);
    let query = world.relay.wanted_name().unwrap();
    assert_eq!((query.host.as_str(), query.port, query.sips), ("carrier.example.net", None, false));
    let targets = vec![at_rank(0, "192.0.2.1:5071"), at_rank(1, "192.0.2.2:5072")];
    let answer = Answer { targets, ttl: std::time::Duration::from_secs(30) };
    world.relay.handle_name(world.now, query.clone(), Ok(answer));
    let verdict = world.from_node(&message);
    assert!(datagram("192.0.2.1:5071")(verdict), "{verdict:?}");
    assert_eq!(world.first_line(), "INVITE sip:usera@carrier.example.net SIP/2.0", "names stay");
    // RFC 3263 §4.3: where the first target fails the second is asked, now and from now on.
    let Verdict::Forward { hop, .. } = verdict else { panic!("{verdict:?}") };
    let listener = world.listener(Leg::Internal, Transport::Udp, Family::V4);
    let arrival = Arrival { now: world.now, listener, source: NODE.parse().unwrap(), flow: None };
    let bytes = wire(&message);
    let again =
        world.relay.undelivered(&arrival, &bytes, gone(hop), &world.snapshot, &mut world.out);
    assert!(datagram("192.0.2.2:5072")(again), "{again:?}");
    assert!(datagram("192.0.2.2:5072")(world.from_node(&message)));
    world.now += std::time::Duration::from_secs(31);
    assert_eq!(world.from_node(&message), Verdict::Resolve, "the answer is too old");
    let ttl = Duration::from_secs(60);
    world.relay.handle_name(world.now, query, Err(Unresolved::NoRecords { ttl }));
    world.from_node(&message);
    assert_eq!(world.first_line(), "SIP/2.0 503 Service Unavailable");
}

/// RFC 8767: what was true is better than nothing, and no message waits for a question that will be asked.
#[test]
fn names_in_use_outlast_a_silent_name_server() {
    let mut world = World::new(TWO_LEGS).with_nodes(&[NODE]);
    let message = NODE_INVITE.replace("127.0.0.1:5033", "carrier.example.net");
    let carrier = datagram("192.0.2.1:5071");
    let answer = |host: &str| {
        let targets = vec![at_rank(0, host)];
        Ok(Answer { targets, ttl: Duration::from_secs(30) })
    };
    assert_eq!(world.from_node(&message), Verdict::Resolve);
    let query = world.relay.wanted_name().unwrap();
    world.relay.handle_name(world.now, query.clone(), answer("192.0.2.1:5071"));
    // In use it is asked for before its time is over, and once.
    world.now += Duration::from_secs(20);
    assert!(carrier(world.from_node(&message)));
    assert_eq!(world.relay.poll_aging_name(world.now), None, "it is fresh");
    world.now += Duration::from_secs(5);
    assert_eq!(world.relay.poll_aging_name(world.now), None, "nobody uses it");
    for want in [Some(query.clone()), None] {
        assert!(carrier(world.from_node(&message)));
        assert_eq!(world.relay.poll_aging_name(world.now), want);
    }
    world.relay.handle_name(world.now, query.clone(), Err(Unresolved::Timeout));
    // An hour of silence: whatever wants it goes out, and it is asked for again and again.
    let (mut asked, mut silent) = (0, Err(Unresolved::Timeout));
    for second in 0..3600 {
        world.now += Duration::from_secs(1);
        assert!(carrier(world.from_node(&message)), "second {second}");
        if world.relay.poll_aging_name(world.now).is_some() {
            asked += 1;
            world.relay.handle_name(world.now, query.clone(), silent.clone());
            silent = Err(Unresolved::QueueFull);
        }
    }
    assert!((300..=450).contains(&asked), "{asked}");
    // What is not in use is asked for when it is wanted; silence leads to what was known.
    world.now += Duration::from_secs(1000);
    assert_eq!(world.from_node(&message), Verdict::Resolve);
    world.relay.handle_name(world.now, query.clone(), Err(Unresolved::Timeout));
    assert!(carrier(world.from_node(&message)));
    world.relay.handle_name(world.now, query.clone(), answer("192.0.2.2:5072"));
    assert!(datagram("192.0.2.2:5072")(world.from_node(&message)), "the new truth");
    // Not for ever, and not against what the servers say.
    world.now += Duration::from_secs(25 * 3600);
    world.relay.handle_name(world.now, query.clone(), Err(Unresolved::Timeout));
    world.from_node(&message);
    assert_eq!(world.first_line(), "SIP/2.0 503 Service Unavailable");
}

#[test]
fn what_cannot_be_delivered_goes_elsewhere_or_is_answered_503() {
    let mut world = World::new(TWO_LEGS).with_nodes(&[NODE, "172.16.0.11:5080"]);
    let source: SocketAddr = CLIENT.parse().unwrap();
    let listener = world.listener(Leg::External, Transport::Udp, Family::V4);
    let arrival = Arrival { now: world.now, listener, source, flow: None };
    let bytes = wire(INVITE);
    let Verdict::Forward { hop, .. } =
        world.relay.handle(&arrival, &bytes, &world.snapshot, &mut world.out)
    else {
        panic!("not forwarded");
    };
    let failed = target(hop).unwrap();
    let (key, way) = world.relay.refused(failed, Transport::Udp, &world.snapshot).unwrap();
    let suspected = world.snapshot.suspecting(key, way);
    let again = world.relay.undelivered(&arrival, &bytes, gone(hop), &suspected, &mut world.out);
    let Verdict::Forward { hop: second, .. } = again else { panic!("{again:?}") };
    assert_ne!(target(second), Some(failed));
    assert!(matches!(
        world.relay.poll_report(world.now, &world.snapshot),
        Some(Report::Refused { node, way: UDP }) if node == key
    ));
    // The only node there is: an error is better than silence.
    let mut world = World::new(TWO_LEGS).with_nodes(&[NODE]);
    let Verdict::Forward { hop, .. } =
        world.relay.handle(&arrival, &bytes, &world.snapshot, &mut world.out)
    else {
        panic!("not forwarded");
    };
    world.relay.undelivered(&arrival, &bytes, gone(hop), &world.snapshot, &mut world.out);
    assert_eq!(world.first_line(), "SIP/2.0 503 Service Unavailable");
}

#[test]
fn what_no_hop_took_is_answered_unless_it_is_an_ack() {
    let source: SocketAddr = CLIENT.parse().unwrap();
    let routes = format!("Route: {OUTER_ROUTE}\nRoute: {INNER_ROUTE}\n");
    let bye = in_dialog("BYE", &routes, "sip:bob@172.16.0.10:5080");
    let ack = bye.replace("BYE", "ACK");
    let reasons = [DropReason::ConnectionGone, DropReason::SlowPeer, DropReason::QueueFull];
    for reason in reasons {
        for (message, again, nodes) in [
            // Others are there, but it was tried often enough.
            (INVITE, Again::Nowhere, &[NODE, "172.16.0.11:5080"][..]),
            (INVITE, Again::Elsewhere, &[NODE]),
            (&bye, Again::Nowhere, &[NODE, "172.16.0.11:5080"]),
            (&ack, Again::Nowhere, &[NODE, "172.16.0.11:5080"]),
        ] {
            let mut world = World::new(TWO_LEGS).with_nodes(nodes);
            let listener = world.listener(Leg::External, Transport::Udp, Family::V4);
            let arrival = Arrival { now: world.now, listener, source, flow: None };
            let (World { relay, snapshot, out, .. }, bytes) = (&mut world, wire(message));
            let first = relay.handle(&arrival, &bytes, snapshot, out);
            let Verdict::Forward { hop, .. } = first else { panic!("{first:?}") };
            let failed = Failure { hop: Some(hop), reason, again };
            let last = relay.undelivered(&arrival, &bytes, failed, snapshot, out);
            if message == ack {
                assert_eq!(last, Verdict::Drop(reason));
                continue;
            }
            assert!(datagram(CLIENT)(last), "{reason:?}: {last:?}");
            let hears = "SIP/2.0 503 Service Unavailable";
            assert_eq!(world.first_line(), hears, "{reason:?} {again:?}");
        }
    }
}

#[test]
fn a_node_that_closed_an_idle_connection_is_asked_again() {
    for message in [INVITE, &in_dialog("BYE", "", "sip:bob@172.16.0.10:5080")] {
        let mut world = World::new(TWO_LEGS).with_nodes(&[NODE, "172.16.0.11:5080"]);
        let listener = world.listener(Leg::External, Transport::Tcp, Family::V4);
        let source = CLIENT.parse().unwrap();
        let arrival = Arrival { now: world.now, listener, source, flow: Some(FLOW) };
        let bytes = wire(&message.replace("UDP", "TCP"));
        let World { relay, snapshot, out, .. } = &mut world;
        let first = relay.handle(&arrival, &bytes, snapshot, out);
        let Verdict::Forward { hop, .. } = first else { panic!("{first:?}") };
        let closed = Failure { again: Again::Anywhere, ..gone(hop) };
        let second = relay.undelivered(&arrival, &bytes, closed, snapshot, out);
        assert!(
            matches!(second, Verdict::Forward { hop: again, .. } if again == hop),
            "{second:?}"
        );
    }
}

#[test]
fn what_is_decided_again_is_charged_and_counted_once() {
    // One request a second, and there are three decisions for one.
    let config = format!("{TWO_LEGS}sourceRateMax=1\ntotalRateMax=1\n");
    let mut world = World::new(&config).with_nodes(&[NODE, "172.16.0.11:5080", "172.16.0.12:5080"]);
    let listener = world.listener(Leg::External, Transport::Tcp, Family::V4);
    let arrival =
        Arrival { now: world.now, listener, source: CLIENT.parse().unwrap(), flow: Some(FLOW) };
    let bytes = wire(&INVITE.replace("UDP", "TCP"));
    let mut verdict = world.relay.handle(&arrival, &bytes, &world.snapshot, &mut world.out);
    assert!(matches!(verdict, Verdict::Forward { reply: Some(_), .. }), "{verdict:?}");
    for turn in 1..3 {
        let Verdict::Forward { hop, .. } = verdict else { panic!("{turn}: {verdict:?}") };
        let refused = world.relay.refused(target(hop).unwrap(), Transport::Tcp, &world.snapshot);
        let (key, way) = refused.unwrap();
        world.snapshot = world.snapshot.suspecting(key, way);
        verdict =
            world.relay.undelivered(&arrival, &bytes, gone(hop), &world.snapshot, &mut world.out);
        assert!(matches!(verdict, Verdict::Forward { reply: None, .. }), "{turn}: {verdict:?}");
    }
    let other = world.client(&INVITE.replace("8f3ad1", "another"));
    assert_eq!(other, Verdict::Drop(DropReason::Rate));
    // A name is waited for.
    let message = NODE_INVITE.replace("127.0.0.1:5033", "carrier.example.net");
    assert_eq!(world.from_node(&message), Verdict::Resolve);
    let query = world.relay.wanted_name().unwrap();
    let targets = vec![at_rank(0, "192.0.2.1:5071")];
    let answer = Answer { targets, ttl: std::time::Duration::from_secs(30) };
    world.relay.handle_name(world.now, query, Ok(answer));
    let listener = world.listener(Leg::Internal, Transport::Udp, Family::V4);
    let arrival = Arrival { now: world.now, listener, source: NODE.parse().unwrap(), flow: None };
    let verdict = world.relay.resume(&arrival, &wire(&message), &world.snapshot, &mut world.out);
    assert!(datagram("192.0.2.1:5071")(verdict), "{verdict:?}");
    let counters = world.relay.counters(world.now, &world.snapshot, false);
    let count = |transport, leg| counters.messages(transport, leg);
    assert_eq!(count(Transport::Tcp, Leg::External), (1, 1), "the INVITE and our 100");
    assert_eq!(count(Transport::Udp, Leg::External), (1, 0), "too many");
    assert_eq!(count(Transport::Udp, Leg::Internal), (1, 0));
}

#[test]
fn a_call_is_counted_once_on_each_node_that_was_given_it() {
    let mut world = World::new(TWO_LEGS).with_nodes(&[NODE, "172.16.0.11:5080"]);
    let keys: Vec<NodeKey> = world.snapshot.nodes().iter().map(|it| it.key).collect();
    let calls = |world: &mut World| -> Vec<u64> {
        let counters = world.relay.counters(world.now, &world.snapshot, false);
        keys.iter().map(|it| counters.node(*it).calls).collect()
    };
    let again = INVITE.replace("CSeq: 1", "CSeq: 2").replace("z9hG4bKc1", "z9hG4bKc2");
    for (case, message) in [
        ("the first", INVITE.to_owned()),
        ("a retransmission", INVITE.to_owned()),
        ("with credentials", again.clone()),
        ("its retransmission", again),
        ("in the dialog", in_dialog("INVITE", "", "sip:bob@172.16.0.10:5080")),
    ] {
        assert!(datagram(NODE)(world.client(&message)), "{case}");
        assert_eq!(calls(&mut world), [1, 0], "{case}");
    }
    world.client(&INVITE.replace("8f3ad1", "another"));
    assert_eq!(calls(&mut world), [1, 1], "another call");
    world.set_nodes(&["172.16.0.11:5080"], &[NODE]);
    for case in ["to the heir", "its retransmission"] {
        assert!(datagram("172.16.0.11:5080")(world.client(INVITE)), "{case}");
        assert_eq!(calls(&mut world), [1, 2], "{case}");
    }
}

#[test]
fn a_node_that_has_too_much_to_read_keeps_its_dialogs_and_gets_no_new_ones() {
    let slow = |hop| Failure { reason: DropReason::SlowPeer, ..gone(hop) };
    let routes = format!("Route: {OUTER_ROUTE}\nRoute: {INNER_ROUTE}\n");
    let bye = in_dialog("BYE", &routes, "sip:bob@172.16.0.10:5080");
    let cases = [
        (INVITE.to_owned(), Some("")),
        (bye.clone(), Some("SIP/2.0 503 Service Unavailable")),
        (bye.replace("BYE", "ACK"), None),
    ];
    for (message, want) in cases {
        let mut world = World::new(TWO_LEGS).with_nodes(&[NODE, "172.16.0.11:5080"]);
        let source: SocketAddr = CLIENT.parse().unwrap();
        let listener = world.listener(Leg::External, Transport::Udp, Family::V4);
        let arrival = Arrival { now: world.now, listener, source, flow: None };
        let bytes = wire(&message);
        let first = world.relay.handle(&arrival, &bytes, &world.snapshot, &mut world.out);
        let Verdict::Forward { hop, .. } = first else { panic!("{first:?}") };
        let again =
            world.relay.undelivered(&arrival, &bytes, slow(hop), &world.snapshot, &mut world.out);
        match (want, again) {
            (None, again) => assert_eq!(again, Verdict::Drop(DropReason::SlowPeer)),
            (Some(""), Verdict::Forward { hop: other, .. }) => {
                assert_ne!(target(other), target(hop));
            }
            (Some(line), _) => assert_eq!(world.first_line(), line),
        }
    }
}

/// Its name is not known in time: the caller hears it, and what is never answered is a drop.
#[test]
fn who_waits_in_vain_for_a_name_hears_503() {
    let gave_up = Failure { hop: None, reason: DropReason::Unresolved, again: Again::Nowhere };
    let invite = NODE_INVITE.replace("127.0.0.1:5033", "carrier.example.net");
    let mut asked = World::new(TWO_LEGS).with_nodes(&[NODE]);
    asked.from_node(NODE_INVITE);
    let response = callee_answer(&asked, "200 OK");
    for (message, want) in [
        (invite.clone(), Some("SIP/2.0 503 Service Unavailable")),
        (invite.replace("INVITE", "ACK"), None),
        (response, None),
    ] {
        let mut world = World::new(TWO_LEGS).with_nodes(&[NODE]);
        let source: SocketAddr = NODE.parse().unwrap();
        let listener = world.listener(Leg::Internal, Transport::Udp, Family::V4);
        let arrival = Arrival { now: world.now, listener, source, flow: None };
        let bytes = wire(&message);
        let verdict =
            world.relay.undelivered(&arrival, &bytes, gave_up, &world.snapshot, &mut world.out);
        match want {
            Some(line) => {
                assert!(datagram(NODE)(verdict), "{verdict:?}");
                assert_eq!(world.first_line(), line);
            }
            None => assert_eq!(verdict, Verdict::Drop(DropReason::Unresolved), "{message}"),
        }
    }
}

/// RFC 3263 §4.4: a stateless element chooses by what the messages of a transaction share.
#[test]
fn a_cancel_follows_its_invite_though_the_name_was_resolved_anew() {
    let mut world = World::new(TWO_LEGS).with_nodes(&[NODE]);
    let addresses: Vec<String> = (1..=4).map(|it| format!("192.0.2.{it}:5060")).collect();
    let answer = |turn: usize| {
        let mut targets: Vec<_> = addresses.iter().map(|it| at_rank(0, it)).collect();
        targets.rotate_left(turn);
        Answer { targets, ttl: std::time::Duration::from_secs(30) }
    };
    let mut counts = std::collections::BTreeMap::new();
    for call in 0..400 {
        let invite = NODE_INVITE
            .replace("127.0.0.1:5033", "carrier.example.net")
            .replace("z9hG4bK", &format!("z9hG4bK{call}"));
        let cancel = invite.replace("INVITE", "CANCEL");
        let hops = [(0, invite), (call % 4, cancel)].map(|(turn, message)| {
            world.now += std::time::Duration::from_secs(31);
            assert_eq!(world.from_node(&message), Verdict::Resolve);
            let query = world.relay.wanted_name().unwrap();
            world.relay.handle_name(world.now, query, Ok(answer(turn)));
            match world.from_node(&message) {
                Verdict::Forward { hop, .. } => target(hop),
                other => panic!("{other:?}"),
            }
        });
        assert_eq!(hops[0], hops[1], "call {call}");
        *counts.entry(hops[0]).or_insert(0) += 1;
    }
    assert!(counts.len() == 4 && counts.values().all(|it| (60..140).contains(it)), "{counts:?}");
}
