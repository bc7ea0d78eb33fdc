//! Whose turn it is, and who waits for room.

use super::*;

#[test]
fn sessions_share_servers_and_get_their_own_answers() {
    let mut it = World::mux(|_| {});
    let (esmes, servers) = shared(&mut it, 4);
    assert_eq!(servers.len(), 3);
    for round in 0..6 {
        for esme in &esmes {
            it.say(*esme, &submit(100 + round));
        }
    }
    let served: Vec<usize> = servers.iter().map(|smsc| serve(&mut it, *smsc)).collect();
    assert_eq!(served, [8, 8, 8], "one after the other");
    for esme in &esmes {
        let mut answers: Vec<u32> = it.heard(*esme).iter().map(|it| it.sequence).collect();
        answers.sort_unstable();
        assert_eq!(answers, [100, 101, 102, 103, 104, 105]);
    }
    let counters = it.smpp.counters();
    assert_eq!((counters.requests_to_server, counters.bytes_to_server), (4 + 24, 24 * 61));
    assert_eq!((counters.bytes_to_client, counters.active_connections()), (24 * 19, 5));
}

#[test]
fn numbers_wrap_on_both_legs() {
    let mut it = World::mux(|it| it.servers.truncate(1));
    let (esmes, servers) = shared(&mut it, 2);
    for conn in [esmes[0], servers[0]] {
        let pending = match it.smpp.legs.get_mut(conn).unwrap() {
            Leg::Session(it) => &mut it.pending,
            Leg::Provider(it) => &mut it.pending,
        };
        *pending = crate::relay::smpp::pending::Pending::starting_at(0x7fff_fffe);
    }
    // Requests of two sessions, answered in another order, over the end of our numbers.
    (1..=2).for_each(|number| esmes.iter().for_each(|esme| it.say(*esme, &submit(number))));
    let sent = it.heard(servers[0]);
    let numbers: Vec<u32> = sent.iter().map(|it| it.sequence).collect();
    assert_eq!(numbers, [0x7fff_fffe, 0x7fff_ffff, 1, 2]);
    for (one, id) in sent.iter().rev().zip([b"d\0", b"c\0", b"b\0", b"a\0"]) {
        it.say(servers[0], &response(one, Status::OK, id));
    }
    let answers = |it: &mut World, at: usize| -> Vec<(u32, u8)> {
        it.heard(esmes[at]).iter().map(|it| (it.sequence, it.body[0])).collect()
    };
    assert_eq!(answers(&mut it, 0), [(2, b'c'), (1, b'a')]);
    assert_eq!(answers(&mut it, 1), [(2, b'd'), (1, b'b')]);
    (1..=8).for_each(|number| it.say(servers[0], &deliver(number, "x")));
    let asked = it.heard(esmes[0]);
    let numbers: Vec<u32> = asked.iter().map(|it| it.sequence).collect();
    assert_eq!(numbers, [0x7fff_fffe, 0x7fff_ffff, 1, 2]);
    asked.iter().for_each(|one| it.say(esmes[0], &response(one, Status::OK, b"\0")));
    let answered: Vec<u32> = it.heard(servers[0]).iter().map(|it| it.sequence).collect();
    assert_eq!(answered, [1, 3, 5, 7]);
}

#[test]
fn a_window_that_only_our_own_question_keeps_shut_opens_again() {
    for is_answered in [false, true] {
        let mut it = World::mux(|it| it.servers.truncate(1));
        let (esmes, servers) = shared(&mut it, 2);
        let smsc = servers[0];
        it.pass_millis(3000);
        let asked = it.heard_one(smsc);
        assert_eq!(asked.command, Command::ENQUIRE_LINK);
        for burst in 0..257 {
            let numbers = burst * 255..(burst + 1) * 255;
            it.say(esmes[0], &numbers.flat_map(submit).collect::<Vec<_>>());
            assert_eq!(serve(&mut it, smsc), 255);
        }
        esmes.iter().for_each(|esme| it.say(*esme, &submit(70_000)));
        assert_eq!(it.wire.paused.len(), 2);
        if is_answered {
            it.say(smsc, &response(&asked, Status::OK, b""));
        } else {
            it.pass_millis(3000);
        }
        assert!(it.wire.paused.is_empty(), "answered {is_answered}");
        assert_eq!(serve(&mut it, smsc), 2, "answered {is_answered}");
    }
}

#[test]
fn messages_from_servers_take_turns_over_those_who_receive() {
    let mut it = World::mux(|_| {});
    let (first, servers) = it.join(TRX);
    let (transmitter, _) = it.join(Command::BIND_TRANSMITTER);
    let (receiver, _) = it.join(Command::BIND_RECEIVER);
    for number in 2..6 {
        it.say(servers[0].0, &deliver(number, "x"));
    }
    let mut answered = Vec::new();
    for esme in [first, receiver] {
        let sent = it.heard(esme);
        assert_eq!(sent.len(), 2);
        assert_eq!(sent[0].sequence, 2, "as the original numbers towards clients");
        sent.iter().for_each(|one| it.say(esme, &response(one, Status::OK, b"\0")));
    }
    assert!(it.heard(transmitter).is_empty());
    answered.extend(it.heard(servers[0].0).iter().map(|it| it.sequence));
    answered.sort_unstable();
    assert_eq!(answered, [2, 3, 4, 5]);
    assert_eq!(it.smpp.counters().requests_to_client, 4);
}

#[test]
fn a_message_that_nobody_can_take_is_refused_at_once() {
    let mut it = World::mux(|it| {
        it.session_window = 1;
        it.full = SmppFull::Throttle;
    });
    let (_, servers) = it.join(Command::BIND_TRANSMITTER);
    let smsc = servers[0].0;
    it.say(smsc, &deliver(1, "x"));
    assert_eq!(it.heard_one(smsc).head(), (DELIVER_RESP, Status::SYSTEM_ERROR, 1));
    let (receiver, _) = it.join(Command::BIND_RECEIVER);
    it.say(smsc, &[deliver(2, "x"), deliver(3, "x")].concat());
    assert_eq!(it.heard_one(smsc).head(), (DELIVER_RESP, Status::THROTTLED, 3));
    assert_eq!(it.heard(receiver).len(), 1);
    let counters = it.smpp.counters();
    let drops = [SmppDrop::NoClient, SmppDrop::Throttled].map(|why| counters.drops(why));
    assert_eq!((drops, counters.requests_to_client), ([1, 1], 1), "only what was forwarded");
}

#[test]
fn servers_wait_while_no_session_has_room() {
    for to_node in [SmppToNode::RoundRobin, SmppToNode::SubmitToAll] {
        let mut it = World::mux(|it| {
            it.session_window = 2;
            it.to_node = to_node;
        });
        let (esmes, servers) = shared(&mut it, 2);
        let room = if to_node == SmppToNode::RoundRobin { 4 } else { 2 };
        let burst: Vec<u8> = (1..=6).flat_map(|number| deliver(number, "x")).collect();
        it.say(servers[0], &burst);
        it.say(servers[1], &deliver(7, "x"));
        assert_eq!(it.wire.paused, [servers[0], servers[1]].into(), "{to_node:?}");
        let mut got = 0;
        let mut answered = Vec::new();
        while it.smpp.sessions().any(|it| it.outstanding_to_client > 0) {
            for esme in &esmes {
                for asked in it.heard(*esme) {
                    got += 1;
                    it.say(*esme, &response(&asked, Status::OK, b"\0"));
                }
            }
            assert!(got >= room, "{to_node:?}");
            answered.extend(servers.iter().flat_map(|smsc| it.heard(*smsc)));
        }
        assert!(it.wire.paused.is_empty(), "{to_node:?}");
        assert!(answered.iter().all(|it| it.status == Status::OK));
        assert_eq!(answered.len(), 7, "{to_node:?}");
    }
}

#[test]
fn servers_that_wait_go_on_whenever_a_session_has_room() {
    let mut it = World::mux(|it| it.session_window = 1);
    let (esmes, servers) = shared(&mut it, 1);
    let (first, smsc) = (esmes[0], servers[0]);
    let is_held = |it: &World| it.wire.paused.contains(&smsc);
    let got = |it: &mut World, esme| {
        let heard = it.heard(esme);
        heard.iter().filter(|it| it.command == Command::DELIVER_SM).count()
    };
    it.say(smsc, &(1..=9).flat_map(|number| deliver(number, "x")).collect::<Vec<_>>());
    assert_eq!((got(&mut it, first), is_held(&it)), (1, true));
    let second = it.open();
    it.say(second, &bind(TRX, 7, "secret"));
    assert_eq!((got(&mut it, second), is_held(&it)), (1, true), "one more session");
    it.lose(first, Gone::Reset);
    assert!(is_held(&it), "the other has no more room for that");
    it.heard(smsc);
    it.pass_millis(3000);
    assert_eq!((got(&mut it, second), is_held(&it)), (1, true), "no answer in time");
    assert_eq!(it.heard(smsc)[0].head(), (DELIVER_RESP, Status::SYSTEM_ERROR, 2));
    it.lose(second, Gone::Reset);
    assert!(!is_held(&it), "nobody is left");

    let mut it = World::mux(|_| {});
    let (esmes, servers) = shared(&mut it, 1);
    it.wire.full.insert(esmes[0]);
    (1..=2).for_each(|number| it.say(servers[0], &deliver(number, "x")));
    assert_eq!((it.heard(esmes[0]).len(), it.wire.paused.contains(&servers[0])), (1, true));
    it.drain(esmes[0]);
    assert_eq!((it.heard(esmes[0]).len(), it.wire.paused.len()), (1, 0), "it reads again");
}

#[test]
fn who_only_waits_for_answers_gets_no_messages() {
    for to_node in [SmppToNode::RoundRobin, SmppToNode::SubmitToAll] {
        let mut it = World::mux(|it| it.to_node = to_node);
        let (esmes, servers) = shared(&mut it, 2);
        it.say(esmes[0], &submit(1));
        let sent = it.heard_one(servers[0]);
        it.end(esmes[0]);
        (1..=4).for_each(|number| it.say(servers[0], &deliver(number, "x")));
        assert_eq!(it.heard(esmes[1]).len(), 4, "{to_node:?}");
        it.say(servers[0], &response(&sent, Status::OK, b"\0"));
        assert_eq!(it.heard_one(esmes[0]).head(), (SUBMIT_RESP, Status::OK, 1));
        assert!(it.is_closed(esmes[0]), "{to_node:?}");
    }
}

#[test]
fn a_session_without_room_does_not_hold_the_others() {
    let mut it = World::mux(|it| it.session_window = 1);
    let (esmes, servers) = shared(&mut it, 2);
    it.say(esmes[0], &submit(1));
    let sent = it.heard_one(servers[0]);
    it.say(servers[0], &response(&sent, Status::OK, b"id7\0"));
    it.heard(esmes[0]);
    let receipt = |number| request(Command::DELIVER_SM, number, &message(4, b"id:id7 stat:X"));
    it.say(servers[0], &[receipt(1), receipt(2)].concat());
    assert_eq!(it.heard(esmes[0]).len(), 1);
    assert_eq!(it.heard_one(servers[0]).head(), (DELIVER_RESP, Status::THROTTLED, 2));
    it.say(servers[0], &deliver(3, "x"));
    assert_eq!(it.heard(esmes[1]).len(), 1);
    // When the other has none either, the server waits for the one that it is for.
    it.say(servers[0], &receipt(4));
    assert!(it.heard(servers[0]).is_empty() && it.wire.paused.contains(&servers[0]));
}

#[test]
fn room_is_offered_to_who_can_use_it() {
    // Segments wait for their own server: they are not in the way of others.
    let mut it = World::mux(|it| {
        it.servers.truncate(2);
        it.provider_window = 2;
    });
    let (esmes, servers) = shared(&mut it, 3);
    let segment = |reference| {
        request(Command::SUBMIT_SM, 1, &message(0x40, &[5, 0, 3, reference, 2, 1, b't']))
    };
    // As many as it takes for one server to be full of them, and one more.
    let mut reference = 0;
    while !it.wire.paused.contains(&esmes[0]) {
        it.say(esmes[0], &segment(reference));
        reference += 1;
    }
    let sent = servers.iter().map(|smsc| it.heard(*smsc)).collect::<Vec<_>>();
    let waits_for = it.smpp.legs.session(esmes[0]).unwrap().waits_for;
    let full = usize::from(waits_for == Some(servers[1]));
    let other = 1 - full;
    for esme in &esmes[1..] {
        it.say(*esme, &(1..=3).flat_map(submit).collect::<Vec<_>>());
    }
    assert_eq!(it.wire.paused.len(), 3);
    let at_other = [sent[other].clone(), it.heard(servers[other])].concat();
    assert_eq!(at_other.len(), 2);
    it.say(servers[other], &response(&at_other[0], Status::OK, b"\0"));
    assert_eq!(it.heard(servers[other]).len(), 1, "not offered to the segment");
    it.say(servers[full], &response(&sent[full][0], Status::OK, b"\0"));
    assert_eq!(it.heard_one(servers[full]).body, segment(reference - 1)[16..], "its turn");

    // Who does not read cannot use it.
    let mut it = World::mux(|it| {
        it.servers.truncate(1);
        it.provider_window = 1;
    });
    let (esmes, servers) = shared(&mut it, 3);
    (esmes.iter()).for_each(|esme| it.say(*esme, &submit(1)));
    it.wire.full.insert(esmes[1]);
    it.say(servers[0], &deliver(1, "x"));
    it.say(servers[0], &deliver(2, "x"));
    let sent = it.heard_one(servers[0]);
    it.say(servers[0], &response(&sent, Status::OK, b"\0"));
    let sent = it.heard_one(servers[0]);
    it.say(servers[0], &response(&sent, Status::OK, b"\0"));
    assert_eq!(it.heard(esmes[2]).last().unwrap().head(), (SUBMIT_RESP, Status::OK, 1));
    it.drain(esmes[1]);
    assert_eq!(it.heard_one(servers[0]).command, Command::SUBMIT_SM, "its turn");

    // Nor can who turns out not to read when it is offered to it.
    let mut it = World::mux(|it| {
        it.servers.truncate(1);
        it.provider_window = 1;
    });
    let (esmes, servers) = shared(&mut it, 2);
    it.say(esmes[0], &[submit(1), submit(2)].concat());
    it.say(esmes[1], &submit(3));
    it.wire.full.insert(esmes[0]);
    serve(&mut it, servers[0]);
    assert_eq!(serve(&mut it, servers[0]), 1, "the other one's");
    assert_eq!(it.heard_one(esmes[1]).head(), (SUBMIT_RESP, Status::OK, 3));
    it.drain(esmes[0]);
    assert_eq!(serve(&mut it, servers[0]), 1);
    assert!(it.wire.paused.is_empty());

    // A server that recovers gets more than it has answered, though everybody waits.
    let mut it = World::mux(|it| it.servers.truncate(1));
    let (esmes, servers) = shared(&mut it, 8);
    it.say(esmes[0], &submit(1));
    let sent = it.heard_one(servers[0]);
    it.say(servers[0], &response(&sent, Status::THROTTLED, b""));
    (esmes.iter()).for_each(|esme| it.say(*esme, &submit(2)));
    for count in [1, 2, 4] {
        let sent = it.heard(servers[0]);
        assert_eq!(sent.len(), count);
        sent.iter().for_each(|one| it.say(servers[0], &response(one, Status::OK, b"\0")));
    }
    assert_eq!(it.heard(servers[0]).len(), 1, "the last");
}

#[test]
fn a_full_or_throttling_provider_is_passed_over() {
    let mut it = World::mux(|it| it.provider_window = 4);
    let (esmes, servers) = shared(&mut it, 2);
    it.say(esmes[0], &(1..=12).flat_map(submit).collect::<Vec<_>>());
    let sent = it.heard(servers[0]);
    assert_eq!(sent.len(), 4);
    serve(&mut it, servers[1]);
    serve(&mut it, servers[2]);
    it.say(servers[0], &response(&sent[0], Status::THROTTLED, b""));
    it.say(esmes[1], &(1..=8).flat_map(submit).collect::<Vec<_>>());
    let counts = [0, 1, 2].map(|at| it.heard(servers[at]).len());
    assert_eq!(counts, [0, 4, 4]);
    // All are full: sessions wait, and are woken one by one.
    it.say(esmes[0], &submit(13));
    it.say(esmes[1], &submit(9));
    assert_eq!(it.wire.paused, esmes.iter().copied().collect());
    for one in &sent[1..] {
        it.say(servers[0], &response(one, Status::OK, b"\0"));
    }
    assert!(it.wire.paused.is_empty());
}

#[test]
fn a_throttling_provider_rests_while_another_is_free() {
    for congestion in [false, true] {
        let mut it = World::mux(|it| it.servers.truncate(2));
        let (esmes, servers) = shared(&mut it, 1);
        let mut counts = [0, 0];
        // One after the other, 10 ms apart, over 4 seconds.
        for _ in 0..400 {
            it.say(esmes[0], &submit(1));
            for (at, smsc) in servers.iter().enumerate() {
                for asked in it.heard(*smsc).iter().filter(|it| it.command == Command::SUBMIT_SM) {
                    counts[at] += 1;
                    let (status, body) = match (at, congestion) {
                        (0, false) => (Status::THROTTLED, &b""[..]),
                        (0, true) => (Status::OK, &b"id\0\x04\x28\0\x01\x5a"[..]),
                        _ => (Status::OK, &b"id\0"[..]),
                    };
                    it.say(*smsc, &response(asked, status, body));
                }
            }
            it.heard(esmes[0]);
            it.pass_millis(10);
        }
        // Asked after 0, 100, 300, 700, 1500 and 3100 ms.
        assert_eq!(counts, [6, 394], "{congestion}");
        // Once it is well it has its turns again at once, and without another it never rests.
        it.pass_millis(3200);
        (0..3).for_each(|_| it.say(esmes[0], &submit(1)));
        let served = servers.iter().map(|smsc| serve(&mut it, *smsc)).collect::<Vec<_>>();
        assert_eq!(served.iter().sum::<usize>(), 3, "{congestion}");
        (0..4).for_each(|_| it.say(esmes[0], &submit(1)));
        assert_eq!([0, 1].map(|at| serve(&mut it, servers[at])), [2, 2], "{congestion}");
    }
    let mut it = World::mux(|it| it.servers.truncate(1));
    let (esmes, servers) = shared(&mut it, 1);
    for _ in 0..5 {
        it.say(esmes[0], &submit(1));
        let sent = it.heard_one(servers[0]);
        it.say(servers[0], &response(&sent, Status::THROTTLED, b""));
    }
}

#[test]
fn a_slow_session_does_not_hold_the_others() {
    let mut it = World::mux(|_| {});
    let (esmes, servers) = shared(&mut it, 2);
    it.wire.full.insert(esmes[0]);
    for number in 0..4 {
        it.say(servers[0], &deliver(number, "x"));
    }
    assert_eq!(it.wire.paused, [esmes[0]].into(), "it alone");
    assert_eq!(it.heard(esmes[0]).len(), 1);
    assert_eq!(it.heard(esmes[1]).len(), 3);
    it.drain(esmes[0]);
    assert!(it.wire.paused.is_empty());
}

#[test]
fn a_server_that_does_not_read_is_passed_over() {
    let mut it = World::mux(|it| it.full = SmppFull::Stop);
    let (esmes, servers) = shared(&mut it, 1);
    it.wire.full.extend(&servers);
    for number in 0..4 {
        it.say(esmes[0], &submit(number));
    }
    assert!(it.wire.paused.contains(&esmes[0]));
    it.drain(servers[1]);
    assert_eq!(it.wire.paused, [servers[0], servers[2]].into(), "only who does not read");
    assert_eq!(it.heard(servers[1]).len(), 2);
}

#[test]
fn active_standby_uses_one_server() {
    let mut it = World::mux(|it| it.to_provider = SmppToProvider::ActiveStandby);
    let (esmes, servers) = shared(&mut it, 1);
    (0..5).for_each(|number| it.say(esmes[0], &submit(number)));
    assert_eq!(servers.iter().map(|smsc| serve(&mut it, *smsc)).collect::<Vec<_>>(), [5, 0, 0]);
    it.lose(servers[0], Gone::Reset);
    (0..5).for_each(|number| it.say(esmes[0], &submit(number)));
    assert_eq!(serve(&mut it, servers[1]), 5);
}
