//! How sessions end: unbinds of either side, peers that stop sending, and the stop of the process.

use super::*;

#[test]
fn an_esme_that_does_not_answer_the_unbind_is_closed_all_the_same() {
    let mut it = World::new(|_| {});
    let (esme, smsc, _) = it.bound();
    it.lose(smsc, Gone::Reset);
    it.pass_millis(500);
    let [(next, _)] = it.accept()[..] else { panic!() };
    let sent = it.heard_one(next);
    it.say(next, &response(&sent, Status::INVALID_PASSWORD, b""));
    assert_eq!(it.heard_one(esme).command, Command::UNBIND, "an error to a rebind");
    it.pass_millis(2999);
    assert!(!it.is_closed(esme));
    it.pass_millis(1);
    assert!(it.is_closed(esme) && it.smpp.is_idle());
}

#[test]
fn the_smsc_unbinds() {
    let mut it = World::new(|_| {});
    let (esme, smsc, _) = it.bound();
    it.say(smsc, &request(Command::UNBIND, 33, b""));
    let asked = it.heard_one(esme);
    assert_eq!((asked.command, it.state(esme)), (Command::UNBIND, Some(ServerState::Unbinding)));
    it.say(esme, &response(&asked, Status::OK, b""));
    assert_eq!(it.heard_one(smsc).head(), (UNBIND_RESP, Status::OK, 33));
    assert!(it.is_closed(esme) && it.is_closed(smsc) && it.smpp.is_idle());

    let (esme, smsc, _) = it.bound();
    it.say(smsc, &request(Command::UNBIND, 34, b""));
    it.pass_millis(3000);
    assert_eq!(it.heard_one(smsc).head(), (UNBIND_RESP, Status::SYSTEM_ERROR, 34), "no answer");
    assert!(it.is_closed(esme) && it.is_closed(smsc) && it.smpp.is_idle());
}

#[test]
fn answers_under_way_arrive_before_the_unbind_is_done() {
    let mut it = World::new(|_| {});
    let (esme, smsc, _) = it.bound();
    it.say(esme, &[submit(1), request(Command::UNBIND, 2, b"")].concat());
    let sent = it.heard(smsc);
    it.say(
        smsc,
        &[response(&sent[0], Status::OK, b"a\0"), response(&sent[1], Status::OK, b"")].concat(),
    );
    let heads: Vec<_> = it.heard(esme).iter().map(|it| (it.command, it.sequence)).collect();
    assert_eq!(heads, [(SUBMIT_RESP, 1), (UNBIND_RESP, 2)]);

    let (esme, smsc, _) = it.bound();
    it.say(esme, &request(Command::UNBIND, 2, b""));
    it.lose(smsc, Gone::Reset);
    assert_eq!(it.heard_one(esme).head(), (UNBIND_RESP, Status::OK, 2), "gone is unbound enough");
    it.pass_millis(1000);
    assert!(it.is_closed(esme) && it.smpp.is_idle());
}

#[test]
fn an_unbind_that_no_server_answers_is_answered_last() {
    let mut it = World::new(|_| {});
    let (esme, smsc, _) = it.bound();
    it.say(esme, &[submit(1), request(Command::UNBIND, 2, b"")].concat());
    it.pass_millis(2999);
    assert!(it.heard(esme).is_empty());
    it.pass_millis(1);
    let heads: Vec<_> = it.heard(esme).iter().map(Said::head).collect();
    let want = [(SUBMIT_RESP, Status::SYSTEM_ERROR, 1), (UNBIND_RESP, Status::SYSTEM_ERROR, 2)];
    assert_eq!(heads, want);
    assert!(it.is_closed(smsc), "nothing can come any more");
    assert_eq!(it.smpp.counters().unanswered, 2);
    it.pass_millis(1000);
    assert!(it.is_closed(esme) && it.smpp.is_idle());
}

#[test]
fn an_esme_that_goes_takes_its_smsc_connection_along() {
    let mut it = World::new(|_| {});
    let (esme, smsc, _) = it.bound();
    it.say(smsc, &deliver(4, "x"));
    it.lose(esme, Gone::Reset);
    let said: Vec<_> = it.heard(smsc).iter().map(|it| (it.command, it.status)).collect();
    assert_eq!(said, [(DELIVER_RESP, Status::SYSTEM_ERROR), (Command::UNBIND, Status::OK)]);
    it.pass_millis(1000);
    assert!(it.is_closed(smsc) && it.smpp.is_idle());
}

#[test]
fn who_only_stops_sending_still_gets_what_it_asked_for() {
    let mut it = World::new(|_| {});
    let (esme, smsc, _) = it.bound();
    it.say(esme, &[submit(1), submit(2)].concat());
    it.end(esme);
    let sent = it.heard(smsc);
    it.say(smsc, &deliver(9, "x"));
    assert_eq!(it.heard_one(smsc).head(), (DELIVER_RESP, Status::SYSTEM_ERROR, 9), "no answer");
    it.say(smsc, &response(&sent[0], Status::OK, b"a\0"));
    assert!(!it.is_closed(esme));
    it.say(smsc, &response(&sent[1], Status::OK, b"b\0"));
    assert_eq!(it.heard(esme).iter().map(|it| it.sequence).collect::<Vec<_>>(), [1, 2]);
    assert!(it.is_closed(esme));
}

#[test]
fn who_stops_sending_while_it_is_held_gets_all_its_answers() {
    let mut it = World::new(|it| it.session_window = 2);
    let (esme, smsc, _) = it.bound();
    it.say(esme, &(1..=5).flat_map(submit).collect::<Vec<_>>());
    it.end(esme);
    let mut answered = Vec::new();
    for _ in 0..3 {
        let out: Vec<u8> =
            it.heard(smsc).iter().flat_map(|one| response(one, Status::OK, b"\0")).collect();
        it.say(smsc, &out);
        answered.extend(it.heard(esme).iter().map(|it| it.sequence));
    }
    assert_eq!(answered, [1, 2, 3, 4, 5]);
    assert!(it.is_closed(esme));
}

#[test]
fn who_unbinds_and_stops_sending_still_gets_all_its_answers() {
    let ok = [(SUBMIT_RESP, Status::OK, 1), (SUBMIT_RESP, Status::OK, 2)];
    let back = ok.map(|it| (it.0, Status::SYSTEM_ERROR, it.2));
    let unbound = (UNBIND_RESP, Status::OK, 3);
    // The server answers what it was asked in this order, or is lost.
    type Answers = [(Command, Status, u32); 3];
    let cases: &[(&str, &[usize], Answers)] = &[
        ("in order", &[0, 1, 2], [ok[0], ok[1], unbound]),
        ("the later one first", &[1, 0, 2], [ok[1], ok[0], unbound]),
        ("the unbind first", &[2], [back[0], back[1], unbound]),
        ("lost", &[], [back[0], back[1], unbound]),
    ];
    for (name, order, want) in cases {
        let mut it = World::new(|_| {});
        let (esme, smsc, _) = it.bound();
        it.say(esme, &[submit(1), submit(2), request(Command::UNBIND, 3, b"")].concat());
        it.end(esme);
        assert!(!it.is_closed(esme), "{name}");
        let sent = it.heard(smsc);
        order.iter().for_each(|at| it.say(smsc, &response(&sent[*at], Status::OK, b"")));
        if order.is_empty() {
            it.lose(smsc, Gone::Reset);
        }
        let heads: Vec<_> = it.heard(esme).iter().map(Said::head).collect();
        assert_eq!(heads, want, "{name}");
        assert!(it.is_closed(esme) && it.smpp.is_idle(), "{name}");
    }
    // Nor does it matter that the server has unbound, as long as it owes an answer.
    let mut it = World::new(|_| {});
    let (esme, smsc, _) = it.bound();
    it.say(esme, &submit(1));
    let sent = it.heard_one(smsc);
    it.say(smsc, &request(Command::UNBIND, 33, b""));
    it.end(esme);
    it.say(smsc, &response(&sent, Status::OK, b""));
    assert_eq!(it.heard_one(esme).head(), (SUBMIT_RESP, Status::OK, 1));
    assert_eq!(it.heard_one(smsc).head(), (UNBIND_RESP, Status::OK, 33));
    assert!(it.is_closed(esme) && it.smpp.is_idle());
    // Who goes while it is unbound itself has said all it will say.
    let (esme, smsc, _) = it.bound();
    it.say(smsc, &request(Command::UNBIND, 33, b""));
    it.end(esme);
    assert!(it.is_closed(esme));
}

#[test]
fn a_stop_unbinds_first() {
    let mut it = World::new(|_| {});
    let (polite, polite_smsc, _) = it.bound();
    let (rude, rude_smsc, _) = it.bound();
    let waiting = it.open();
    it.smpp.stop(it.now, &mut it.wire);
    assert!(it.is_closed(waiting));
    for conn in [polite, polite_smsc] {
        let asked = it.heard_one(conn);
        assert_eq!(asked.command, Command::UNBIND);
        it.say(conn, &response(&asked, Status::OK, b""));
        assert!(it.is_closed(conn));
    }
    let source = SocketAddr::new([192, 0, 2, 9].into(), 1);
    assert_eq!(it.smpp.handle_open(it.now, PLAIN_LISTENER, source, &mut it.wire), None);
    assert!(!it.is_closed(rude) && !it.smpp.is_idle());
    it.pass_millis(1000);
    assert!(it.is_closed(rude) && it.is_closed(rude_smsc) && it.smpp.is_idle());
}

/// A session in either mode, with the one SMSC behind it.
fn with_one_server(is_mux: bool) -> (World, Conn, Conn) {
    let change = |it: &mut SmppSettings| it.servers.truncate(1);
    let mut it = if is_mux { World::mux(change) } else { World::new(change) };
    if is_mux {
        let (esme, servers) = it.join(Command::BIND_TRANSCEIVER);
        return (it, esme, servers[0].0);
    }
    let (esme, smsc, _) = it.bound();
    (it, esme, smsc)
}

#[test]
fn a_stop_leaves_time_for_answers() {
    for is_mux in [false, true] {
        let (mut it, esme, smsc) = with_one_server(is_mux);
        it.say(esme, &[submit(1), submit(2)].concat());
        let sent = it.heard(smsc);
        it.smpp.stop(it.now, &mut it.wire);
        assert!(it.heard(smsc).is_empty(), "mux {is_mux}: it still has to answer");
        assert!(it.heard(esme).is_empty(), "mux {is_mux}: most would answer at once and go");
        it.say(esme, &submit(3));
        let refused = (SUBMIT_RESP, Status::INVALID_BIND_STATUS, 3);
        assert_eq!(it.heard_one(esme).head(), refused, "mux {is_mux}: nothing new");
        it.say(smsc, &response(&sent[0], Status::OK, b"a\0"));
        assert_eq!(it.heard_one(esme).head(), (SUBMIT_RESP, Status::OK, 1), "mux {is_mux}");
        it.pass_millis(499);
        assert!(it.heard(esme).is_empty() && it.heard(smsc).is_empty(), "mux {is_mux}");
        it.pass_millis(1);
        let heard = it.heard(esme);
        let [answer, unbind] = &heard[..] else { panic!("mux {is_mux}: {heard:?}") };
        assert_eq!(answer.head(), (SUBMIT_RESP, Status::SYSTEM_ERROR, 2), "mux {is_mux}");
        assert_eq!(unbind.command, Command::UNBIND, "mux {is_mux}: no longer than that");
        it.say(esme, &response(unbind, Status::OK, b""));
        assert!(it.is_closed(esme), "mux {is_mux}");
        let unbind = it.heard_one(smsc);
        assert_eq!(unbind.command, Command::UNBIND, "mux {is_mux}");
        it.say(smsc, &response(&sent[1], Status::OK, b"late\0"));
        it.say(smsc, &response(&unbind, Status::OK, b""));
        assert!(it.smpp.is_idle(), "mux {is_mux}");
    }
}

#[test]
fn a_stop_unbinds_as_soon_as_all_is_answered() {
    for is_mux in [false, true] {
        let (mut it, esme, smsc) = with_one_server(is_mux);
        it.say(esme, &[submit(1), submit(2)].concat());
        let sent = it.heard(smsc);
        it.smpp.stop(it.now, &mut it.wire);
        it.say(smsc, &response(&sent[1], Status::OK, b"b\0"));
        it.say(smsc, &response(&sent[0], Status::OK, b"a\0"));
        let commands: Vec<_> = it.heard(esme).iter().map(|it| it.command).collect();
        assert_eq!(commands, [SUBMIT_RESP, SUBMIT_RESP, Command::UNBIND], "mux {is_mux}");
        assert_eq!(it.heard_one(smsc).command, Command::UNBIND, "mux {is_mux}");
    }
}

#[test]
fn who_unbinds_before_a_stop_is_answered_in_it() {
    for is_mux in [false, true] {
        for is_mute in [false, true] {
            let case = format!("mux {is_mux}, mute {is_mute}");
            let (mut it, esme, smsc) = with_one_server(is_mux);
            it.say(esme, &[submit(1), request(Command::UNBIND, 2, b"")].concat());
            let sent = it.heard(smsc);
            it.smpp.stop(it.now, &mut it.wire);
            if !is_mute {
                sent.iter().for_each(|one| it.say(smsc, &response(one, Status::OK, b"")));
            }
            it.pass_millis(1000);
            let status = if is_mute { Status::SYSTEM_ERROR } else { Status::OK };
            let heads: Vec<_> = it.heard(esme).iter().map(Said::head).collect();
            assert_eq!(heads, [(SUBMIT_RESP, status, 1), (UNBIND_RESP, Status::OK, 2)], "{case}");
            assert!(it.smpp.is_idle(), "{case}");
        }
    }
}

#[test]
fn an_smsc_that_unbinds_still_answers_before_its_esme_is_unbound() {
    // In regular mode the SMSC's unbind waits for the ESME's answer; in mux it is answered by us, at once.
    type After = fn(&mut World, Conn, &Said);
    let ends: [(&str, Status, After); 3] = [
        ("answers", Status::OK, |it, smsc, asked| it.say(smsc, &response(asked, Status::OK, b""))),
        ("is lost", Status::SYSTEM_ERROR, |it, smsc, _| it.lose(smsc, Gone::Reset)),
        ("is mute", Status::SYSTEM_ERROR, |it, _, _| it.pass_millis(3000)),
    ];
    for is_mux in [false, true] {
        for (name, status, end) in ends {
            let case = format!("mux {is_mux}, {name}");
            let (mut it, esme, smsc) = with_one_server(is_mux);
            it.say(esme, &submit(1));
            let asked = it.heard_one(smsc);
            it.say(smsc, &request(Command::UNBIND, 33, b""));
            assert!(it.heard(esme).is_empty(), "{case}: most would answer at once and go");
            it.say(esme, &submit(2));
            let refused = (SUBMIT_RESP, Status::INVALID_BIND_STATUS, 2);
            assert_eq!(it.heard_one(esme).head(), refused, "{case}: nothing new");
            end(&mut it, smsc, &asked);
            let heard = it.heard(esme);
            let [answer, unbind] = &heard[..] else { panic!("{case}: {heard:?}") };
            assert_eq!(answer.head(), (SUBMIT_RESP, status, 1), "{case}");
            assert_eq!(unbind.command, Command::UNBIND, "{case}");
            it.say(esme, &response(unbind, Status::OK, b""));
            if name != "is lost" {
                let said: Vec<_> = it.heard(smsc).iter().map(Said::head).collect();
                assert_eq!(said, [(UNBIND_RESP, Status::OK, 33)], "{case}");
            }
            assert!(it.is_closed(esme) && it.smpp.is_idle(), "{case}");
        }
    }
}

#[test]
fn an_esme_answers_what_it_was_asked_before_either_side_is_unbound() {
    type Begin = fn(&mut World, Conn);
    let begins: [(&str, u64, Begin); 2] = [
        ("a stop", 500, |it, _| it.smpp.stop(it.now, &mut it.wire)),
        ("the SMSC", 3000, |it, smsc| it.say(smsc, &request(Command::UNBIND, 33, b""))),
    ];
    for (name, patience_millis, begin) in begins {
        for (is_mux, is_mute) in [(false, false), (false, true), (true, false), (true, true)] {
            let case = format!("{name}, mux {is_mux}, mute {is_mute}");
            let (mut it, esme, smsc) = with_one_server(is_mux);
            it.say(smsc, &deliver(70, "x"));
            let asked = it.heard_one(esme);
            begin(&mut it, smsc);
            it.pass_millis(patience_millis - 1);
            assert!(it.heard(esme).is_empty(), "{case}: its unbind waits");
            let said = it.heard(smsc);
            assert!(said.iter().all(|it| it.command == UNBIND_RESP), "{case}: {said:?}");
            assert!(!it.is_closed(smsc), "{case}: nor is the SMSC let go");
            match is_mute {
                true => it.pass_millis(1),
                false => it.say(esme, &response(&asked, Status::OK, b"\0")),
            }
            let unbind = it.heard_one(esme);
            assert_eq!(unbind.command, Command::UNBIND, "{case}");
            it.say(esme, &response(&unbind, Status::OK, b""));
            let said = it.heard(smsc);
            let answer = said.iter().find(|it| it.command == DELIVER_RESP).unwrap();
            let status = if is_mute { Status::SYSTEM_ERROR } else { Status::OK };
            assert_eq!(answer.head(), (DELIVER_RESP, status, 70), "{case}");
            for unbind in said.iter().filter(|it| it.command == Command::UNBIND) {
                it.say(smsc, &response(unbind, Status::OK, b""));
            }
            assert!(it.is_closed(esme) && it.smpp.is_idle(), "{case}");
        }
    }
}

#[test]
fn who_unbinds_while_its_own_unbind_waits_is_answered_last() {
    for is_mux in [false, true] {
        let (mut it, esme, smsc) = with_one_server(is_mux);
        it.say(esme, &submit(1));
        let asked = it.heard_one(smsc);
        it.say(smsc, &request(Command::UNBIND, 33, b""));
        it.say(esme, &request(Command::UNBIND, 2, b""));
        assert!(it.heard(esme).is_empty(), "mux {is_mux}");
        it.say(smsc, &response(&asked, Status::OK, b""));
        let heads: Vec<_> = it.heard(esme).iter().map(Said::head).collect();
        let want = [(SUBMIT_RESP, Status::OK, 1), (UNBIND_RESP, Status::OK, 2)];
        assert_eq!(heads, want, "mux {is_mux}");
        assert_eq!(it.heard_one(smsc).head(), (UNBIND_RESP, Status::OK, 33), "mux {is_mux}");
        it.end(esme);
        assert!(it.smpp.is_idle(), "mux {is_mux}");
    }
}

#[test]
fn a_bind_under_way_is_answered_at_a_stop() {
    for is_mux in [false, true] {
        let mut it = if is_mux { World::mux(|_| {}) } else { World::new(|_| {}) };
        let esme = it.open();
        it.say(esme, &bind(Command::BIND_TRANSCEIVER, 9, "secret"));
        it.accept();
        it.smpp.stop(it.now, &mut it.wire);
        assert_eq!(it.heard_one(esme).head(), (BIND_RESP, Status::SYSTEM_ERROR, 9));
        assert!(it.is_closed(esme) && it.smpp.is_idle(), "mux {is_mux}");
    }
}
