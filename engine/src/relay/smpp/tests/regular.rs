//! One SMSC connection for each ESME session.

use super::*;
use crate::config::{SmppFull, SmppToProvider};
use crate::relay::smpp::Active;
use crate::relay::smpp::leg::Link;
use crate::stats::smpp::SmppDrop;

#[test]
fn a_session_binds_sends_receives_and_unbinds() {
    let mut it = World::new(|_| {});
    let (esme, smsc, _) = it.bound();
    it.say(esme, &submit(100));
    let sent = it.heard_one(smsc);
    assert_eq!(
        (sent.head(), &sent.body),
        ((Command::SUBMIT_SM, Status::OK, 2), &message(0, b"Hello world!"))
    );
    it.say(smsc, &response(&sent, Status::OK, b"id-1\0"));
    let answer = it.heard_one(esme);
    assert_eq!((answer.head(), &answer.body[..]), ((SUBMIT_RESP, Status::OK, 100), &b"id-1\0"[..]));

    it.say(smsc, &deliver(0xffff_0001, "hi"));
    let sent = it.heard_one(esme);
    assert_eq!(
        (sent.head(), &sent.body),
        ((Command::DELIVER_SM, Status::OK, 1), &message(0, b"hi"))
    );
    it.say(esme, &response(&sent, Status::OK, b"\0"));
    assert_eq!(it.heard_one(smsc).head(), (DELIVER_RESP, Status::OK, 0xffff_0001));

    it.say(smsc, &request(Command::ALERT_NOTIFICATION, 9, b"\0\0a\0\0\0b\0"));
    assert_eq!(it.heard_one(esme).head(), (Command::ALERT_NOTIFICATION, Status::OK, 2));

    it.say(esme, &request(Command::UNBIND, 101, b""));
    let sent = it.heard_one(smsc);
    assert_eq!(sent.head(), (Command::UNBIND, Status::OK, 3));
    it.say(smsc, &response(&sent, Status::OK, b""));
    assert_eq!(it.heard_one(esme).head(), (UNBIND_RESP, Status::OK, 101));
    assert!(it.is_closed(smsc) && !it.is_closed(esme), "the ESME closes");
    assert_eq!(it.state(esme), Some(ServerState::Closed));
    it.end(esme);
    assert!(it.is_closed(esme) && it.smpp.is_idle());

    let counters = it.smpp.counters();
    // bind 37, submit_sm 61, deliver_sm_resp 17, unbind 16; bind_resp 21, submit_sm_resp 21, deliver_sm 51,
    // alert_notification 24, unbind_resp 16.
    assert_eq!((counters.requests_to_server, counters.bytes_to_server), (3, 37 + 61 + 17 + 16));
    assert_eq!(counters.requests_to_client, 2);
    assert_eq!(counters.bytes_to_client, 21 + 21 + 51 + 24 + 16);
    let rows: Vec<_> = counters.by_command().filter(|it| it.1 + it.2 > 0).collect();
    assert_eq!(
        rows,
        [
            ("submit_sm", 1, 1),
            ("deliver_sm", 1, 1),
            ("unbind", 1, 1),
            ("bind_transceiver", 1, 1),
            ("alert_notification", 1, 0)
        ]
    );
}

#[test]
fn a_bind_passes_as_it_is() {
    let mut it = World::new(|_| {});
    let esme = it.open();
    // SMPP 5.0, a range, and a parameter that nobody knows.
    let body = b"RestComm\0secret\0VMA\0\x50\x01\x02^44\0\x14\x2c\0\x02ab";
    it.say(esme, &request(Command::BIND_RECEIVER, 9, body));
    let [(smsc, _)] = it.accept()[..] else { panic!() };
    let sent = it.heard_one(smsc);
    assert_eq!((sent.command, &sent.body[..]), (Command::BIND_RECEIVER, &body[..]));
    let answer = b"smsc\0\x02\x10\0\x01\x50\x14\x2c\0\x01c";
    it.say(smsc, &response(&sent, Status::OK, answer));
    assert_eq!(it.heard_one(esme).body, answer);
}

#[test]
fn binds_take_turns_over_the_servers_exactly() {
    let mut it = World::new(|_| {});
    let numbers: Vec<u16> = (0..9).map(|_| it.bound().2).collect();
    assert_eq!(numbers, [1, 2, 3, 1, 2, 3, 1, 2, 3]);
    let counters = it.smpp.counters();
    assert_eq!((counters.sessions, counters.providers, counters.active_connections()), (9, 9, 18));
    assert_eq!(counters.servers, [(server(1), 3), (server(2), 3), (server(3), 3)]);
    let view = it.smpp.sessions().next().unwrap();
    assert_eq!((view.state, view.server, view.outstanding), ("BOUND", Some(server(1)), 0));
}

#[test]
fn where_the_network_cuts_does_not_matter() {
    let stream = [submit(1), request(Command::ENQUIRE_LINK, 2, b""), submit(3), submit(4)].concat();
    for cut in 0..stream.len() {
        let mut it = World::new(|_| {});
        let (esme, smsc, _) = it.bound();
        it.say(esme, &stream[..cut]);
        it.say(esme, &stream[cut..]);
        let sent = it.heard(smsc);
        assert_eq!(sent.iter().map(|it| it.sequence).collect::<Vec<_>>(), [2, 3, 4], "cut {cut}");
        assert_eq!(it.heard_one(esme).head(), (ENQUIRE_RESP, Status::OK, 2), "cut {cut}");
    }
}

#[test]
fn a_refused_bind_is_relayed_with_its_own_number_and_ends_the_session() {
    for (body, answer) in [(&b""[..], BIND_RESP), (b"x\0", BIND_RESP), (b"", Command::GENERIC_NACK)]
    {
        let mut it = World::new(|_| {});
        let esme = it.open();
        it.say(esme, &bind(Command::BIND_TRANSCEIVER, 0x8000_0001, "wrong"));
        let [(smsc, _)] = it.accept()[..] else { panic!() };
        let sent = it.heard_one(smsc);
        it.say(smsc, &pdu(answer, Status::INVALID_PASSWORD, sent.sequence, body));
        let heard = it.heard_one(esme);
        assert_eq!(heard.head(), (answer, Status::INVALID_PASSWORD, 0x8000_0001));
        assert_eq!(heard.body, body);
        assert!(it.is_closed(esme) && it.is_closed(smsc) && it.smpp.is_idle());
    }
}

#[test]
fn a_server_that_cannot_be_reached_is_skipped() {
    let mut it = World::new(|_| {});
    let esme = it.open();
    it.say(esme, &bind(Command::BIND_TRANSMITTER, 5, "secret"));
    for (number, why) in [(1, Gone::Refused), (2, Gone::Handshake)] {
        let [(conn, to, secure)] = it.wire.connecting[..] else { panic!() };
        assert_eq!((to, secure), (server(number), Secure::No));
        it.lose(conn, why);
    }
    let [(smsc, 3)] = it.accept()[..] else { panic!() };
    it.lose(smsc, Gone::Reset);
    let refusal = it.heard_one(esme);
    let want = (Command::BIND_TRANSMITTER.response(), Status::SYSTEM_ERROR, 5);
    assert_eq!(refusal.head(), want, "each server once");
    assert_eq!(refusal.body, b"RestComm\0\x02\x10\0\x01\x34");
    assert!(it.is_closed(esme) && it.smpp.is_idle());
}

#[test]
fn a_connection_that_hangs_is_given_up() {
    let mut it = World::new(|it| assert_eq!(it.connect, it.response, "the defaults"));
    let esme = it.open();
    it.say(esme, &bind(Command::BIND_TRANSCEIVER, 5, "secret"));
    let hanging = it.wire.connecting[0].0;
    it.pass_millis(2999);
    assert!(!it.is_closed(hanging));
    it.pass_millis(1);
    assert!(it.is_closed(hanging));
    // So is one that takes the bind and does not answer it.
    let [(mute, 2)] = it.accept()[..] else { panic!() };
    it.heard(mute);
    it.pass_millis(2999);
    assert!(!it.is_closed(mute) && it.heard(esme).is_empty());
    it.pass_millis(1);
    assert!(it.is_closed(mute));
    assert_eq!(it.smpp.counters().unanswered, 1);
    let [(smsc, 3)] = it.accept()[..] else { panic!() };
    let sent = it.heard_one(smsc);
    it.say(smsc, &response(&sent, Status::OK, b"smsc\0"));
    assert_eq!(it.heard_one(esme).head(), (BIND_RESP, Status::OK, 5), "the third one's answer");
    it.pass_millis(3000);
    assert_eq!(it.state(esme), Some(ServerState::Bound));
}

#[test]
fn a_bind_that_no_server_answers_is_refused_when_all_had_their_time() {
    let mut it = World::new(|_| {});
    let esme = it.open();
    it.say(esme, &bind(Command::BIND_TRANSCEIVER, 5, "secret"));
    for number in 1..=3 {
        let [(mute, at)] = it.accept()[..] else { panic!() };
        assert_eq!(at, number);
        it.heard(mute);
        assert!(it.heard(esme).is_empty());
        it.pass_millis(3000);
    }
    assert_eq!(it.heard_one(esme).head(), (BIND_RESP, Status::SYSTEM_ERROR, 5));
    assert!(it.is_closed(esme) && it.smpp.is_idle());
    assert_eq!(it.smpp.counters().unanswered, 1, "one request, however many servers");
}

#[test]
fn who_does_not_bind_is_disconnected() {
    let mut it = World::new(|_| {});
    let esme = it.open();
    it.say(esme, &request(Command::ENQUIRE_LINK, 1, b""));
    assert_eq!(it.heard_one(esme).head(), (ENQUIRE_RESP, Status::OK, 1));
    it.pass_millis(999);
    assert!(!it.is_closed(esme));
    it.pass_millis(1);
    assert!(it.is_closed(esme) && it.heard(esme).is_empty());
    assert_eq!(it.smpp.counters().not_bound, 1);
}

#[test]
fn the_response_timer_answers_once_and_late_answers_go_nowhere() {
    let mut it = World::new(|_| {});
    let (esme, smsc, _) = it.bound();
    it.say(esme, &submit(50));
    let sent = it.heard_one(smsc);
    it.say(smsc, &deliver(60, "x"));
    let delivered = it.heard_one(esme);
    it.pass_millis(2999);
    assert!(it.heard(esme).is_empty() && it.heard(smsc).is_empty());
    it.pass_millis(1);
    assert_eq!(it.heard_one(esme).head(), (SUBMIT_RESP, Status::SYSTEM_ERROR, 50));
    assert_eq!(it.heard_one(smsc).head(), (DELIVER_RESP, Status::SYSTEM_ERROR, 60));
    it.say(smsc, &response(&sent, Status::OK, b"id\0"));
    it.say(esme, &response(&delivered, Status::OK, b"\0"));
    assert!(it.heard(esme).is_empty() && it.heard(smsc).is_empty());
    let counters = it.smpp.counters();
    assert_eq!((counters.unanswered, counters.drops(SmppDrop::Unexpected)), (2, 2));
}

#[test]
fn answers_find_their_requests_in_any_order_and_by_any_response() {
    let mut it = World::new(|_| {});
    let (esme, smsc, _) = it.bound();
    it.say(
        esme,
        &[submit(9), submit(8), request(Command::QUERY_SM, 7, b"id\0\0\0\0"), submit(6)].concat(),
    );
    let sent = it.heard(smsc);
    assert_eq!(sent.iter().map(|it| it.sequence).collect::<Vec<_>>(), [2, 3, 4, 5]);
    it.say(smsc, &response(&sent[3], Status::OK, b"d\0"));
    it.say(smsc, &pdu(Command::GENERIC_NACK, Status::INVALID_COMMAND_ID, sent[1].sequence, b""));
    it.say(smsc, &pdu(SUBMIT_RESP, Status::OK, sent[2].sequence, b"no such\0"));
    it.say(smsc, &response(&sent[0], Status::THROTTLED, b""));
    it.say(smsc, &pdu(SUBMIT_RESP, Status::OK, 77, b"unknown\0"));
    it.say(smsc, &pdu(Command::GENERIC_NACK, Status::INVALID_COMMAND_LENGTH, 0, b""));
    let heads: Vec<_> = it.heard(esme).iter().map(Said::head).collect();
    let want = [
        (SUBMIT_RESP, Status::OK, 6),
        (Command::GENERIC_NACK, Status::INVALID_COMMAND_ID, 8),
        (SUBMIT_RESP, Status::THROTTLED, 9),
    ];
    assert_eq!(heads, want);
    assert_eq!(it.smpp.counters().drops(SmppDrop::Unexpected), 3);
}

#[test]
fn numbers_wrap_on_both_legs() {
    let mut it = World::new(|_| {});
    let (esme, smsc, _) = it.bound();
    for conn in [esme, smsc] {
        let pending = match it.smpp.legs.get_mut(conn).unwrap() {
            Leg::Session(it) => &mut it.pending,
            Leg::Provider(it) => &mut it.pending,
        };
        *pending = crate::relay::smpp::pending::Pending::starting_at(0x7fff_ffff);
    }
    it.say(esme, &[submit(1), submit(2)].concat());
    let sent = it.heard(smsc);
    assert_eq!(sent.iter().map(|it| it.sequence).collect::<Vec<_>>(), [0x7fff_ffff, 1]);
    sent.iter().for_each(|one| it.say(smsc, &response(one, Status::OK, b"\0")));
    assert_eq!(it.heard(esme).iter().map(|it| it.sequence).collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn a_lost_server_is_replaced_by_the_next_one_again_and_again() {
    let mut it = World::new(|_| {});
    let (esme, mut smsc, _) = it.bound();
    for (round, want) in (0..).zip([2, 3, 1, 2]) {
        it.say(esme, &submit(10));
        it.heard_one(smsc);
        it.lose(smsc, Gone::Reset);
        assert_eq!(it.heard_one(esme).head(), (SUBMIT_RESP, Status::SYSTEM_ERROR, 10), "{round}");
        assert_eq!(it.state(esme), Some(ServerState::Rebinding));
        for asked in [submit(11), request(Command::ENQUIRE_LINK, 11, b"")] {
            it.say(esme, &asked);
            assert_eq!(it.heard_one(esme).status, Status::SYSTEM_ERROR, "turned back");
        }
        it.pass_millis(499);
        assert!(it.wire.connecting.is_empty(), "not yet");
        it.pass_millis(1);
        let [(next, number)] = it.accept()[..] else { panic!("one bind, no more") };
        assert_eq!(number, want, "round {round}");
        let sent = it.heard_one(next);
        assert_eq!(sent.head(), (Command::BIND_TRANSCEIVER, Status::OK, 1));
        assert!(sent.body.starts_with(b"RestComm\0secret\0"));
        it.say(next, &response(&sent, Status::OK, b"other\0"));
        assert_eq!(it.state(esme), Some(ServerState::Bound));
        assert!(it.heard(esme).is_empty(), "it saw nothing of that");
        it.say(esme, &submit(12));
        let sent = it.heard_one(next);
        it.say(next, &response(&sent, Status::OK, b"\0"));
        assert_eq!(it.heard_one(esme).head(), (SUBMIT_RESP, Status::OK, 12));
        smsc = next;
    }
    assert_eq!(it.smpp.counters().rebinds, 4);
    it.pass_millis(10_000);
    let asked: Vec<_> = it.heard(smsc).iter().map(|it| it.command).collect();
    assert_eq!(asked, [Command::ENQUIRE_LINK], "one enquire timer, not four");
}

#[test]
fn when_no_server_is_left_the_esme_is_unbound() {
    let mut it = World::new(|_| {});
    let (esme, smsc, 1) = it.bound() else { panic!() };
    it.end(smsc);
    it.pass_millis(500);
    for number in [2, 3, 1] {
        let [(conn, to, _)] = it.wire.connecting[..] else { panic!() };
        assert_eq!(to, server(number));
        it.lose(conn, Gone::Refused);
    }
    let unbind = it.heard_one(esme);
    assert_eq!(unbind.command, Command::UNBIND);
    assert_eq!(it.state(esme), Some(ServerState::Unbinding));
    it.say(esme, &submit(5));
    assert_eq!(it.heard_one(esme).head(), (SUBMIT_RESP, Status::INVALID_BIND_STATUS, 5));
    it.say(esme, &response(&unbind, Status::OK, b""));
    assert!(it.is_closed(esme) && it.smpp.is_idle());
}

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
fn both_sides_are_asked_at_a_fixed_rate() {
    let mut it = World::new(|it| it.enquire = Duration::from_secs(5));
    let (esme, smsc, _) = it.bound();
    let mut counts = [0, 0];
    for _ in 0..170 {
        it.pass_millis(100);
        for (conn, count) in [esme, smsc].into_iter().zip(&mut counts) {
            for asked in it.heard(conn) {
                assert_eq!(asked.command, Command::ENQUIRE_LINK);
                *count += 1;
                it.say(conn, &response(&asked, Status::OK, b""));
            }
        }
    }
    assert_eq!(counts, [3, 3]);
    it.say(esme, &request(Command::UNBIND, 1, b""));
    assert_eq!(it.heard_one(smsc).command, Command::UNBIND);
    it.pass_millis(2900);
    assert!(it.heard(esme).is_empty() && it.heard(smsc).is_empty(), "no enquire_link after unbind");
}

#[test]
fn a_late_tick_does_not_shift_the_next() {
    let mut it = World::new(|it| it.enquire = Duration::from_secs(5));
    let (esme, smsc, _) = it.bound();
    let bound = it.now;
    // When the clock is looked at, and how long after the bind the next question is due.
    for (late_millis, next_millis) in [(5400, 10_000), (10_000, 15_000), (28_700, 30_000)] {
        it.now = bound + Duration::from_millis(late_millis);
        it.smpp.handle_timeout(it.now, &it.snapshot, &mut it.wire);
        for conn in [esme, smsc] {
            let asked = it.heard_one(conn);
            assert_eq!(asked.command, Command::ENQUIRE_LINK, "{late_millis}: once");
            it.say(conn, &response(&asked, Status::OK, b""));
        }
        let pulse = it.smpp.legs.session(esme).unwrap().pulse;
        assert_eq!(pulse.next, Some(bound + Duration::from_millis(next_millis)), "{late_millis}");
    }
}

#[test]
fn a_request_passes_with_any_status() {
    let mut it = World::new(|_| {});
    let (esme, smsc, _) = it.bound();
    let body = message(0, b"x");
    it.say(esme, &pdu(Command::SUBMIT_SM, Status(0x77), 5, &body));
    let sent = it.heard_one(smsc);
    assert_eq!((sent.command, sent.status, sent.body), (Command::SUBMIT_SM, Status(0x77), body));
    let body = message(0, b"y");
    it.say(smsc, &pdu(Command::DELIVER_SM, Status(0x8000_0001), 6, &body));
    let sent = it.heard_one(esme);
    let want = (Command::DELIVER_SM, Status(0x8000_0001), body);
    assert_eq!((sent.command, sent.status, sent.body), want);
}

#[test]
fn a_silent_esme_takes_both_legs_down() {
    let mut it = World::new(|it| it.enquire = Duration::from_secs(5));
    let (esme, smsc, _) = it.bound();
    it.pass_millis(5000);
    let asked = it.heard_one(smsc);
    it.say(smsc, &response(&asked, Status::OK, b""));
    it.heard_one(esme);
    it.pass_millis(3000);
    assert!(it.is_closed(esme));
    assert_eq!(it.heard_one(esme).command, Command::UNBIND, "in case it does listen");
    assert_eq!(it.heard_one(smsc).command, Command::UNBIND);
    it.pass_millis(1000);
    assert!(it.is_closed(smsc) && it.smpp.is_idle());
}

#[test]
fn a_silent_smsc_is_replaced() {
    let mut it = World::new(|it| it.enquire = Duration::from_secs(5));
    let (esme, smsc, _) = it.bound();
    it.pass_millis(5000);
    let asked = it.heard_one(esme);
    it.say(esme, &response(&asked, Status::OK, b""));
    it.pass_millis(3000);
    assert!(it.is_closed(smsc) && !it.is_closed(esme));
    assert_eq!(it.state(esme), Some(ServerState::Rebinding));
    it.pass_millis(500);
    assert_eq!(it.accept().len(), 1);
}

#[test]
fn where_both_are_silent_no_server_is_looked_for() {
    // Whichever place in the table the two have: the first of them is looked at first.
    for others_before in 0..2 {
        let mut it = World::new(|_| {});
        for _ in 0..others_before {
            let (esme, smsc, _) = it.bound();
            it.say(esme, &request(Command::UNBIND, 1, b""));
            let asked = it.heard_one(smsc);
            it.say(smsc, &response(&asked, Status::OK, b""));
            it.end(esme);
        }
        let (esme, smsc, _) = it.bound();
        it.pass_millis(13_000);
        assert!(it.is_closed(esme), "{others_before}");
        it.pass_millis(1000);
        assert!(it.wire.connecting.is_empty() && it.is_closed(smsc), "{others_before}");
        assert!(it.smpp.is_idle(), "{others_before}");
    }
    // Nor where the server is looked at earlier.
    let mut it = World::new(|it| it.check_server_side = Duration::from_secs(1));
    let (esme, _, _) = it.bound();
    it.pass_millis(11_000);
    assert_eq!(it.state(esme), Some(ServerState::Rebinding));
    it.pass_millis(2_000);
    assert!(it.is_closed(esme));
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
fn a_window_that_only_our_own_question_keeps_shut_opens_again() {
    for (is_answered, is_down) in [(false, false), (false, true), (true, false), (true, true)] {
        let case = format!("answered {is_answered}, towards the ESME {is_down}");
        let mut it = World::new(|_| {});
        let (esme, smsc, _) = it.bound();
        it.pass_millis(10_000);
        let asked = [esme, smsc].map(|conn| it.heard_one(conn));
        assert!(asked.iter().all(|it| it.command == Command::ENQUIRE_LINK), "{case}");
        let (from, to) = if is_down { (smsc, esme) } else { (esme, smsc) };
        let message = |number| if is_down { deliver(number, "x") } else { submit(number) };
        for burst in 0..257 {
            let numbers = burst * 255..(burst + 1) * 255;
            it.say(from, &numbers.flat_map(message).collect::<Vec<_>>());
            let sent = it.heard(to);
            assert_eq!(sent.len(), 255, "{case}");
            let answers = sent.iter().flat_map(|it| response(it, Status::OK, b"\0"));
            it.say(to, &answers.collect::<Vec<_>>());
            it.heard(from);
        }
        it.say(from, &message(70_000));
        assert_eq!(it.wire.paused, [from].into(), "{case}: as many as numbers are kept");
        if is_answered {
            let question = &asked[usize::from(!is_down)];
            it.say(to, &response(question, Status::OK, b""));
        } else {
            it.pass_millis(3000);
        }
        assert!(it.wire.paused.is_empty(), "{case}");
        let came = it.heard(to).iter().filter(|it| it.command != Command::ENQUIRE_LINK).count();
        assert_eq!(came, 1, "{case}");
    }
}

#[test]
fn a_receiver_may_not_submit() {
    let mut it = World::new(|_| {});
    let esme = it.open();
    it.say(esme, &bind(Command::BIND_RECEIVER, 1, "secret"));
    let [(smsc, _)] = it.accept()[..] else { panic!() };
    let sent = it.heard_one(smsc);
    assert_eq!(sent.command, Command::BIND_RECEIVER, "bound as what it is");
    it.say(smsc, &response(&sent, Status::OK, b"\0"));
    it.heard(esme);
    it.say(esme, &submit(2));
    assert_eq!(it.heard_one(esme).head(), (SUBMIT_RESP, Status::INVALID_BIND_STATUS, 2));
    assert!(it.heard(smsc).is_empty());
}

#[test]
fn a_transmitter_gets_no_messages() {
    let mut it = World::new(|_| {});
    let esme = it.open();
    it.say(esme, &bind(Command::BIND_TRANSMITTER, 1, "secret"));
    let [(smsc, _)] = it.accept()[..] else { panic!() };
    let sent = it.heard_one(smsc);
    it.say(smsc, &response(&sent, Status::OK, b"\0"));
    it.heard(esme);
    for command in [Command::DELIVER_SM, Command::DATA_SM] {
        it.say(smsc, &request(command, 2, &message(0, b"x")));
        let want = (command.response(), Status::INVALID_BIND_STATUS, 2);
        assert_eq!(it.heard_one(smsc).head(), want);
    }
    it.say(smsc, &request(Command::ALERT_NOTIFICATION, 3, b"\0\0a\0\0\0b\0"));
    assert!(it.heard(esme).is_empty() && it.heard(smsc).is_empty());
    let counters = it.smpp.counters();
    assert_eq!((counters.drops(SmppDrop::NoClient), counters.requests_to_client), (1, 0));
    it.say(esme, &submit(2));
    assert_eq!(it.heard_one(smsc).command, Command::SUBMIT_SM);
}

#[test]
fn wrong_input_ends_one_connection_at_worst() {
    let cases: &[(&str, &[u8], bool)] = &[
        ("below a header", b"\0\0\0\x0f\0\0\0\x04", true),
        ("oversized", b"\0\x01\0\x01", true),
        ("negative", b"\xff\xff\xff\xff", true),
        ("unknown", &request(Command(0x0bad), 3, b"body"), false),
        ("vendor", &request(Command(0x0001_0201), 3, b"body"), false),
        ("outbind", &request(Command::OUTBIND, 3, b"a\0b\0"), false),
    ];
    for (name, bytes, is_over) in cases {
        let mut it = World::new(|_| {});
        let (esme, smsc, _) = it.bound();
        let (other, ..) = it.bound();
        it.say(esme, bytes);
        let answer = it.heard_one(esme);
        let want = match is_over {
            true => (Command::GENERIC_NACK, Status::INVALID_COMMAND_LENGTH, 0),
            false => (Command::GENERIC_NACK, Status::INVALID_COMMAND_ID, 3),
        };
        assert_eq!((answer.head(), it.is_closed(esme)), (want, *is_over), "{name}");
        if !is_over {
            it.say(esme, &submit(9));
            assert_eq!(it.heard_one(smsc).command, Command::SUBMIT_SM, "{name}");
            it.say(smsc, bytes);
            assert_eq!(it.heard_one(smsc).head(), want, "{name} from the server");
        }
        assert_eq!(it.state(other), Some(ServerState::Bound), "{name}");
    }
    let mut it = World::new(|_| {});
    let (esme, smsc, _) = it.bound();
    it.say(smsc, b"\0\0\0\x01");
    assert_eq!(
        it.heard_one(smsc).head(),
        (Command::GENERIC_NACK, Status::INVALID_COMMAND_LENGTH, 0)
    );
    assert!(it.is_closed(smsc));
    assert_eq!(it.state(esme), Some(ServerState::Rebinding), "another server takes over");
}

#[test]
fn a_bind_that_cannot_be_read_is_refused() {
    let long = request(
        Command::BIND_TRANSCEIVER,
        4,
        &[b"id\0pw\0\0\x34\0\0\0".to_vec(), vec![0; 1100]].concat(),
    );
    for bytes in [request(Command::BIND_TRANSCEIVER, 4, b"id\0pw"), long] {
        let mut it = World::new(|_| {});
        let esme = it.open();
        it.say(esme, &bytes);
        assert_eq!(it.heard_one(esme).head(), (BIND_RESP, Status::INVALID_COMMAND_LENGTH, 4));
        assert!(it.is_closed(esme) && it.wire.connecting.is_empty());
    }
}

#[test]
fn vendors_commands_pass_if_they_may() {
    let mut it = World::new(|it| it.vendor_commands = true);
    let (esme, smsc, _) = it.bound();
    it.say(esme, &request(Command(0x0001_0201), 3, b"body"));
    let sent = it.heard_one(smsc);
    assert_eq!((sent.command, &sent.body[..]), (Command(0x0001_0201), &b"body"[..]));
    it.say(smsc, &response(&sent, Status(0x400), b"back"));
    assert_eq!(it.heard_one(esme).head(), (Command(0x8001_0201), Status(0x400), 3));
}

#[test]
fn a_full_window_stops_the_reading_and_loses_nothing() {
    let mut it = World::new(|it| it.session_window = 2);
    let (esme, smsc, _) = it.bound();
    it.say(esme, &(1..=5).flat_map(submit).collect::<Vec<_>>());
    let mut sent = it.heard(smsc);
    assert_eq!(sent.len(), 2);
    assert!(it.wire.paused.contains(&esme));
    let mut answered = Vec::new();
    while !sent.is_empty() {
        let one = sent.remove(0);
        it.say(smsc, &response(&one, Status::OK, b"\0"));
        answered.extend(it.heard(esme).iter().map(|it| it.sequence));
        sent.extend(it.heard(smsc));
        assert!(sent.len() <= 2);
    }
    assert_eq!(answered, [1, 2, 3, 4, 5]);
    assert!(it.wire.paused.is_empty());
}

#[test]
fn a_full_window_is_told_if_that_is_wanted() {
    let mut it = World::new(|it| {
        it.provider_window = 2;
        it.full = SmppFull::Throttle;
    });
    let (esme, smsc, _) = it.bound();
    it.say(esme, &(1..=3).flat_map(submit).collect::<Vec<_>>());
    assert_eq!(it.heard(smsc).len(), 2);
    assert_eq!(it.heard_one(esme).head(), (SUBMIT_RESP, Status::THROTTLED, 3));
    assert!(it.wire.paused.is_empty());
}

#[test]
fn waiting_for_a_window_is_not_silence() {
    let mut it = World::new(|it| {
        it.session_window = 1;
        it.enquire = Duration::from_secs(1);
        it.response = Duration::from_secs(60);
    });
    let (esme, smsc, _) = it.bound();
    it.say(esme, &[submit(1), submit(2)].concat());
    for _ in 0..30 {
        it.pass_millis(1000);
        for asked in it.heard(smsc) {
            if asked.command == Command::ENQUIRE_LINK {
                it.say(smsc, &response(&asked, Status::OK, b""));
            }
        }
    }
    assert!(!it.is_closed(esme), "we did not listen");
    it.pass_millis(31_000);
}

#[test]
fn an_answer_that_we_do_not_read_is_not_missing() {
    // The ESME's answer waits behind requests of its own that wait for a window.
    let mut it = World::new(|it| it.provider_window = 2);
    let (esme, smsc, _) = it.bound();
    it.say(smsc, &deliver(60, "x"));
    let asked = it.heard_one(esme);
    let burst: Vec<u8> = (1..=6).flat_map(submit).collect();
    it.say(esme, &[burst, response(&asked, Status::OK, b"\0")].concat());
    let mut sent = it.heard(smsc);
    for millis in [1000, 1000, 900, 1000] {
        it.pass_millis(millis);
        assert!(it.heard(smsc).is_empty() && it.wire.paused.contains(&esme), "not yet");
        it.say(smsc, &response(&sent.remove(0), Status::OK, b"\0"));
        let heard = it.heard(smsc);
        sent.extend(heard.iter().filter(|it| it.command == Command::SUBMIT_SM).cloned());
        let answered = heard.iter().find(|it| it.command == DELIVER_RESP);
        assert_eq!(answered.is_some(), sent.last().unwrap().sequence == 7, "{heard:?}");
        answered.iter().for_each(|it| assert_eq!(it.head(), (DELIVER_RESP, Status::OK, 60)));
    }
    assert!(it.heard(esme).iter().all(|it| it.status == Status::OK));

    // The same for the SMSC's answer, behind messages that the ESME has no room for.
    let mut it = World::new(|it| it.session_window = 2);
    let (esme, smsc, _) = it.bound();
    it.say(esme, &submit(50));
    let asked = it.heard_one(smsc);
    let burst: Vec<u8> = (1..=6).flat_map(|number| deliver(number, "x")).collect();
    it.say(smsc, &[burst, response(&asked, Status::OK, b"\0")].concat());
    let mut sent = it.heard(esme);
    for millis in [1000, 1000, 900, 1000] {
        it.pass_millis(millis);
        it.say(esme, &response(&sent.remove(0), Status::OK, b"\0"));
        sent.extend(it.heard(esme));
    }
    assert_eq!(sent.pop().unwrap().head(), (SUBMIT_RESP, Status::OK, 50));
    assert_eq!(it.smpp.counters().unanswered, 0);
}

#[test]
fn two_that_wait_for_each_other_wait_no_longer_than_for_an_answer() {
    for is_mux in [false, true] {
        for esme_first in [false, true] {
            let change = |it: &mut SmppSettings| {
                it.servers.truncate(1);
                (it.session_window, it.provider_window) = (2, 1);
            };
            let mut it = if is_mux { World::mux(change) } else { World::new(change) };
            let (esme, smsc) = if is_mux {
                let (esme, servers) = it.join(Command::BIND_TRANSCEIVER);
                (esme, servers[0].0)
            } else {
                let (esme, smsc, _) = it.bound();
                (esme, smsc)
            };
            it.say(esme, &submit(1));
            it.say(smsc, &[deliver(1, "x"), deliver(2, "x")].concat());
            let (to_smsc, to_esme) = (it.heard_one(smsc), it.heard(esme));
            it.pass_millis(2900);
            let answer = response(&to_esme[0], Status::OK, b"\0");
            let from_esme = [submit(2), answer].concat();
            let from_smsc = [deliver(3, "x"), response(&to_smsc, Status::OK, b"\0")].concat();
            if esme_first {
                it.say(esme, &from_esme);
            }
            it.say(smsc, &from_smsc);
            it.say(esme, if esme_first { b"" } else { &from_esme });
            assert_eq!(it.wire.paused, [esme, smsc].into(), "{is_mux} {esme_first}");
            it.pass_millis(100);
            assert!(it.wire.paused.is_empty(), "{is_mux} {esme_first}");
        }
    }
}

#[test]
fn alerts_behind_one_unanswered_message_have_an_end() {
    let mut it = World::new(|_| {});
    let (esme, smsc, _) = it.bound();
    it.say(smsc, &deliver(1, "x"));
    let alerts = request(Command::ALERT_NOTIFICATION, 2, b"\0\0a\0\0\0b\0").repeat(1 << 10);
    (0..65).for_each(|_| it.say(smsc, &alerts));
    let heard = it.heard(esme);
    assert_eq!(heard.len(), 1 << 16, "as many as numbers are kept");
    assert_eq!(it.smpp.counters().drops(SmppDrop::NoClient), 1025);
    it.say(esme, &response(&heard[0], Status::OK, b"\0"));
    it.say(smsc, &alerts);
    assert_eq!(it.heard(esme).len(), 1 << 10);
}

#[test]
fn messages_to_an_esme_that_does_not_answer_stop_its_own_server() {
    let mut it = World::new(|it| it.session_window = 2);
    let (esme, smsc, _) = it.bound();
    let (_, other, _) = it.bound();
    it.say(smsc, &(1..=4).flat_map(|number| deliver(number, "x")).collect::<Vec<_>>());
    let first = it.heard(esme);
    assert_eq!(first.len(), 2);
    assert_eq!(it.wire.paused, [smsc].into(), "and nobody else's");
    it.say(esme, &response(&first[0], Status::OK, b"\0"));
    assert_eq!(it.heard(esme).len(), 1);
    it.pass_millis(3000);
    assert_eq!(it.heard(esme).len(), 1, "answers that never came make room as well");
    assert!(!it.wire.paused.contains(&other));
}

#[test]
fn a_client_that_does_not_read_holds_its_server_and_nobody_else() {
    let mut it = World::new(|_| {});
    let (esme, smsc, _) = it.bound();
    it.wire.full.insert(esme);
    it.say(smsc, &deliver(1, "x"));
    assert_eq!(it.wire.paused, [esme, smsc].into());
    it.drain(esme);
    assert!(it.wire.paused.is_empty());
    it.wire.full.insert(smsc);
    it.say(esme, &submit(1));
    it.say(esme, &submit(2));
    assert_eq!(it.wire.paused, [esme, smsc].into(), "who does not read is not read from");
    it.drain(smsc);
    assert!(it.wire.paused.is_empty());
    assert_eq!(it.heard(smsc).iter().filter(|it| it.command == Command::SUBMIT_SM).count(), 2);
}

#[test]
fn a_server_that_asks_and_never_reads_is_not_read_from() {
    let mut it = World::new(|_| {});
    let (esme, smsc, _) = it.bound();
    let (esme_of_other, other, _) = it.bound();
    it.wire.full.insert(smsc);
    let ask = |it: &mut World, number| it.say(smsc, &request(Command::ENQUIRE_LINK, number, b""));
    (1..=5).for_each(|number| ask(&mut it, number));
    assert_eq!(it.heard(smsc).len(), 1, "the others are not taken in");
    assert_eq!(it.wire.paused, [smsc].into());
    it.drain(smsc);
    assert_eq!(it.heard(smsc).len(), 4);
    assert!(it.wire.paused.is_empty());
    // It is as silent as any other.
    it.wire.full.insert(smsc);
    ask(&mut it, 6);
    it.pass_millis(10_000);
    for conn in [esme, esme_of_other, other, smsc] {
        let asked = it.heard(conn).pop().unwrap();
        assert_eq!(asked.command, Command::ENQUIRE_LINK);
        it.say(conn, &response(&asked, Status::OK, b""));
    }
    it.pass_millis(3000);
    assert!(it.is_closed(smsc) && !it.is_closed(other));
}

#[test]
fn a_throttling_server_is_given_less_for_a_while() {
    let mut it = World::new(|_| {});
    let (esme, smsc, _) = it.bound();
    it.say(esme, &(1..=8).flat_map(submit).collect::<Vec<_>>());
    let sent = it.heard(smsc);
    it.say(smsc, &response(&sent[0], Status::THROTTLED, b""));
    assert_eq!(
        it.heard_one(esme).head(),
        (SUBMIT_RESP, Status::THROTTLED, 1),
        "the client hears it"
    );
    it.say(esme, &submit(9));
    assert!(it.heard(smsc).is_empty() && it.wire.paused.contains(&esme));
    sent[1..].iter().for_each(|one| it.say(smsc, &response(one, Status::OK, b"\0")));
    assert_eq!(it.heard_one(smsc).command, Command::SUBMIT_SM);
    assert!(it.wire.paused.is_empty());
}

fn standby(it: &mut SmppSettings) {
    it.to_provider = SmppToProvider::ActiveStandby;
}

/// Connects and binds whoever has to look for a server; returns which ones that was.
fn rebind(it: &mut World) -> Vec<u16> {
    it.pass_millis(600);
    let servers = it.accept();
    for (smsc, _) in &servers {
        let sent = it.heard_one(*smsc);
        it.say(*smsc, &response(&sent, Status::OK, b"\0"));
    }
    servers.into_iter().map(|it| it.1).collect()
}

#[test]
fn what_timed_out_is_not_waited_for_as_old_news() {
    let mut it = World::new(|_| {});
    let (esme, smsc, _) = it.bound();
    it.say(esme, &(1..=4).flat_map(submit).collect::<Vec<_>>());
    let sent = it.heard(smsc);
    it.say(smsc, &response(&sent[0], Status::THROTTLED, b""));
    it.pass_millis(3000);
    it.say(esme, &submit(5));
    let sent = it.heard_one(smsc);
    it.say(smsc, &response(&sent, Status::THROTTLED, b""));
    assert_eq!(it.smpp.legs.provider(smsc).unwrap().throttles, 2, "it is still too much");
}

#[test]
fn active_standby_moves_when_the_last_session_at_the_active_server_is_lost() {
    let mut it = World::new(standby);
    let (leaver, first, 1) = it.bound() else { panic!() };
    let (esme, _, 1) = it.bound() else { panic!() };
    it.lose(first, Gone::Reset);
    assert_eq!(rebind(&mut it), [1], "it was one session's loss: others are there");
    it.lose(leaver, Gone::Reset);
    it.pass_millis(1000);
    let (_, third, 1) = it.bound() else { panic!("a session that ends is no failure") };
    let Link::Provider(second) = it.smpp.legs.session(esme).unwrap().link else { panic!() };
    it.lose(second, Gone::Reset);
    it.lose(third, Gone::Reset);
    assert_eq!(rebind(&mut it), [2, 2]);
    let (_, _, 2) = it.bound() else { panic!("new sessions follow") };
}

#[test]
fn active_standby_moves_when_the_active_server_takes_no_binds() {
    // What becomes of the bind at server 1, and where later ones go.
    type Fail = fn(&mut World, Conn);
    let cases: &[(&str, Fail, u16)] = &[
        ("refused", |it, conn| it.lose(conn, Gone::Refused), 2),
        ("no handshake", |it, conn| it.lose(conn, Gone::Handshake), 2),
        ("too slow", |it, _| it.pass_millis(3000), 2),
        ("no descriptor of ours", |it, conn| it.lose(conn, Gone::Shortage), 1),
        ("mute", |it, _| (it.accept(), it.pass_millis(3000)).1, 2),
        ("closed for what it said", |it, conn| (it.accept(), it.lose(conn, Gone::Reset)).1, 1),
    ];
    for (name, fail, want) in cases {
        let mut it = World::new(standby);
        let (_, _, 1) = it.bound() else { panic!("{name}") };
        let esme = it.open();
        it.say(esme, &bind(Command::BIND_TRANSCEIVER, 1, "secret"));
        let [(conn, to, _)] = it.wire.connecting[..] else { panic!("{name}") };
        assert_eq!(to, server(1), "{name}");
        fail(&mut it, conn);
        let [(next, 2)] = it.accept()[..] else { panic!("{name}: it goes on at the next") };
        let sent = it.heard_one(next);
        it.say(next, &response(&sent, Status::OK, b"\0"));
        assert_eq!(it.bound().2, *want, "{name}");
    }
}

#[test]
fn shards_move_to_the_standby_together() {
    let active = std::sync::Arc::new(Active::default());
    let mut shards = [0, 1].map(|_| {
        let mut it = World::new(standby);
        it.smpp = Smpp::new(it.smpp.settings.clone()).sharing(active.clone());
        it
    });
    let smscs = shards.each_mut().map(|it| it.bound());
    assert_eq!(smscs.map(|it| it.2), [1, 1]);
    shards[0].lose(smscs[0].1, Gone::Reset);
    assert_eq!(rebind(&mut shards[0]), [1], "the other shard's session is there");
    let esme = shards[1].open();
    shards[1].say(esme, &bind(Command::BIND_TRANSCEIVER, 1, "secret"));
    let conn = shards[1].wire.connecting[0].0;
    shards[1].lose(conn, Gone::Refused);
    assert_eq!(shards.each_mut().map(|it| rebind(it).len()), [0, 1]);
    assert_eq!(shards.each_mut().map(|it| it.bound().2), [2, 2]);
}

#[test]
fn who_lost_the_same_server_looks_for_another_one_after_the_other() {
    let mut it = World::new(|it| it.servers.truncate(1));
    let smscs: Vec<Conn> = (0..50).map(|_| it.bound().1).collect();
    smscs.into_iter().for_each(|smsc| it.lose(smsc, Gone::Reset));
    it.pass_millis(499);
    for count in 0..50 {
        assert_eq!(it.wire.connecting.len(), count);
        it.pass_millis(1);
    }
    // Later losses do not wait for these.
    it.accept();
    it.pass_millis(500);
    let (_, smsc, _) = it.bound();
    it.lose(smsc, Gone::Reset);
    it.pass_millis(500);
    assert_eq!(it.wire.connecting.len(), 1);
}

#[test]
fn a_shorter_response_time_counts_for_what_waits_already() {
    let mut it = World::new(|it| it.response = Duration::from_secs(9));
    let (esme, smsc, _) = it.bound();
    it.say(esme, &submit(1));
    it.say(smsc, &deliver(1, "x"));
    [esme, smsc].iter().for_each(|conn| drop(it.heard(*conn)));
    let settings = SmppSettings { response: Duration::from_secs(2), ..it.smpp.settings.clone() };
    it.smpp.reload(it.now, settings, &it.snapshot, &mut it.wire);
    it.pass_millis(1000);
    it.say(esme, &submit(2));
    it.say(smsc, &deliver(2, "x"));
    [esme, smsc].iter().for_each(|conn| drop(it.heard(*conn)));
    for number in 1..=2 {
        it.pass_millis(999);
        assert!(it.heard(esme).is_empty() && it.heard(smsc).is_empty(), "{number}");
        it.pass_millis(1);
        let heads = [esme, smsc].map(|conn| it.heard_one(conn).head());
        let want = [SUBMIT_RESP, DELIVER_RESP].map(|it| (it, Status::SYSTEM_ERROR, number));
        assert_eq!(heads, want);
    }
}

#[test]
fn a_new_list_of_servers_counts_for_new_binds() {
    let mut it = World::new(|_| {});
    let (esme, ..) = it.bound();
    let settings = SmppSettings { servers: vec![server(9)], ..it.smpp.settings.clone() };
    it.smpp.reload(it.now, settings, &it.snapshot, &mut it.wire);
    assert_eq!(it.state(esme), Some(ServerState::Bound));
    let (_, _, 9) = it.bound() else { panic!() };
}

/// Nodes that are servers, of these numbers; of two that leave one drains and the other is gone.
fn nodes(it: &mut World, numbers: &[u16], draining: &[u16]) {
    let node = |number: &u16| {
        let mut node = crate::balance::testing::node(*number);
        node.properties.insert("smppPort".to_owned(), (10_000 + number).to_string());
        node.graceful = draining.contains(number);
        node
    };
    let nodes = numbers.iter().chain(draining).map(node).collect();
    it.snapshot = Snapshot::new(it.snapshot.generation() + 1, nodes, &[]);
    it.smpp.handle_snapshot(it.now, &it.snapshot, &mut it.wire);
    it.resumed();
}

#[test]
fn sessions_of_a_node_that_is_no_longer_there_move() {
    let mut it = World::new(|it| it.servers = vec![server(1)]);
    nodes(&mut it, &[7, 8], &[]);
    let [(_, first, 1), (esme, smsc, 7), (_, last, 8)] = [(); 3].map(|()| it.bound()) else {
        panic!("by turns")
    };
    it.say(esme, &[submit(1), submit(2)].concat());
    let sent = it.heard(smsc);
    nodes(&mut it, &[8], &[7]);
    it.pass_millis(100);
    it.say(esme, &submit(3));
    assert_eq!(it.heard_one(smsc).command, Command::SUBMIT_SM, "it drains: who is there stays");
    nodes(&mut it, &[8], &[]);
    it.pass_millis(0);
    let [(next, number)] = it.accept()[..] else { panic!("it alone moves") };
    assert_ne!(number, 7);
    let bind = it.heard_one(next);
    assert_eq!(bind.command, Command::BIND_TRANSCEIVER);
    it.say(esme, &submit(4));
    assert_eq!(it.heard_one(esme).head(), (SUBMIT_RESP, Status::SYSTEM_ERROR, 4), "between them");
    it.say(next, &response(&bind, Status::OK, b"smsc\0"));
    it.say(esme, &submit(5));
    let asked = it.heard_one(next);
    it.say(next, &response(&asked, Status::OK, b"\0"));
    assert_eq!(it.heard_one(esme).head(), (SUBMIT_RESP, Status::OK, 5));
    // What the one that was removed owes still arrives, and then it is unbound.
    it.say(smsc, &response(&sent[1], Status::OK, b"\0"));
    it.say(smsc, &response(&sent[0], Status::OK, b"\0"));
    let numbers: Vec<_> = it.heard(esme).iter().map(|it| (it.status, it.sequence)).collect();
    assert_eq!(numbers, [(Status::OK, 2), (Status::OK, 1)]);
    assert!(it.heard(smsc).is_empty(), "it still owes one");
    it.pass_millis(3000);
    assert_eq!(it.heard_one(esme).head(), (SUBMIT_RESP, Status::SYSTEM_ERROR, 3));
    assert_eq!(it.heard_one(smsc).command, Command::UNBIND);
    it.pass_millis(1000);
    assert!(it.is_closed(smsc) && !it.is_closed(first) && !it.is_closed(last));
    assert_eq!(it.smpp.sessions().filter(|it| it.server == Some(server(1))).count(), 1);
}

#[test]
fn a_node_that_comes_back_at_once_keeps_its_sessions() {
    let mut it = World::new(|it| it.servers.clear());
    nodes(&mut it, &[7, 8], &[]);
    let (esme, smsc, 7) = it.bound() else { panic!("the first") };
    nodes(&mut it, &[8], &[]);
    nodes(&mut it, &[7, 8], &[]);
    it.pass_millis(1000);
    assert!(it.wire.connecting.is_empty() && it.heard(smsc).is_empty());
    assert_eq!(it.state(esme), Some(ServerState::Bound));
}

#[test]
fn where_no_other_server_is_left_sessions_of_a_removed_node_stay_until_there_is_one() {
    let serves = |it: &mut World, esme: Conn, smsc: Conn, sequence| {
        it.say(esme, &submit(sequence));
        let asked = it.heard_one(smsc);
        it.say(smsc, &response(&asked, Status::OK, b"\0"));
        assert_eq!(it.heard_one(esme).head(), (SUBMIT_RESP, Status::OK, sequence));
    };
    let mut it = World::new(|it| it.servers.clear());
    nodes(&mut it, &[7], &[]);
    let bound = [(); 3].map(|()| it.bound());
    let [(mover, left, _), (loser, lost, _), (stayer, kept, _)] = bound;
    nodes(&mut it, &[], &[]);
    for sequence in 1..4 {
        it.pass_millis(500);
        for (esme, smsc, _) in bound {
            serves(&mut it, esme, smsc, sequence);
        }
    }
    // What fails by itself has nowhere to go.
    it.end(lost);
    it.pass_millis(500);
    assert_eq!(it.heard_one(loser).command, Command::UNBIND);
    it.lose(loser, Gone::Reset);
    // Another comes: they move, but for who asks for nothing any more.
    it.say(stayer, &submit(9));
    it.end(stayer);
    nodes(&mut it, &[8], &[]);
    it.pass_millis(500);
    let [(next, 8)] = it.accept()[..] else { panic!("one moves") };
    let bind = it.heard_one(next);
    it.say(next, &response(&bind, Status::OK, b"smsc\0"));
    serves(&mut it, mover, next, 4);
    let unbind = it.heard_one(left);
    assert_eq!(unbind.command, Command::UNBIND);
    it.say(left, &response(&unbind, Status::OK, b""));
    assert_eq!(it.heard_one(kept).command, Command::SUBMIT_SM);
}

#[test]
fn sessions_of_a_node_that_is_heard_of_again_stay_there() {
    let mut it = World::new(|it| it.servers.clear());
    nodes(&mut it, &[7], &[]);
    let (esme, smsc, _) = it.bound();
    nodes(&mut it, &[], &[]);
    it.pass_millis(500);
    nodes(&mut it, &[7, 8], &[]);
    it.pass_millis(1000);
    assert!(it.wire.connecting.is_empty() && it.heard(smsc).is_empty());
    assert_eq!(it.state(esme), Some(ServerState::Bound));
}

#[test]
fn a_bind_on_its_way_to_a_node_that_goes_finds_another() {
    let mut it = World::new(|it| it.servers.clear());
    nodes(&mut it, &[7, 8], &[]);
    let esme = it.open();
    it.say(esme, &bind(Command::BIND_TRANSCEIVER, 5, "secret"));
    let [(smsc, 7)] = it.accept()[..] else { panic!("the first") };
    nodes(&mut it, &[8], &[]);
    assert!(it.is_closed(smsc));
    let [(smsc, 8)] = it.accept()[..] else { panic!("the other") };
    let sent = it.heard_one(smsc);
    it.say(smsc, &response(&sent, Status::OK, b"\0"));
    assert_eq!(it.heard_one(esme).head(), (BIND_RESP, Status::OK, 5));
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

#[test]
fn sessions_are_limited() {
    let mut it = World::new(|it| it.sessions_max = 2);
    let source = SocketAddr::new([192, 0, 2, 9].into(), 1);
    it.open();
    let second = it.open();
    assert_eq!(it.smpp.handle_open(it.now, PLAIN_LISTENER, source, &mut it.wire), None);
    it.lose(second, Gone::Reset);
    it.open();
    assert_eq!(it.smpp.counters().drops(SmppDrop::Full), 1);
}

#[test]
fn ten_thousand_sessions_leave_nothing_behind() {
    let mut it = World::new(|_| {});
    for _ in 0..10_000 {
        let (esme, smsc, _) = it.bound();
        it.say(esme, &submit(1));
        let sent = it.heard_one(smsc);
        it.say(smsc, &response(&sent, Status::OK, b"\0"));
        it.say(esme, &request(Command::UNBIND, 2, b""));
        let sent = it.heard(smsc).pop().unwrap();
        it.say(smsc, &response(&sent, Status::OK, b""));
        it.end(esme);
        it.wire = Recorder::default();
        it.unread.clear();
        assert!(it.smpp.timers.len() <= 2_000, "{}", it.smpp.timers.len());
    }
    assert!(it.smpp.is_idle());
    assert!(it.smpp.legs.iter().next().is_none() && it.smpp.spaces.len() == 0);
    it.pass_millis(20_000);
    assert_eq!(it.smpp.poll_timeout(), None, "no timer outlives its session");
}
