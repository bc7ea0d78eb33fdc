//! From the bind on: what passes, what is answered here, and what is no PDU.

use super::*;

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
fn whoever_is_asked_has_its_time_though_we_stand_still() {
    let mut it = World::new(|it| it.enquire = Duration::from_secs(5));
    let (esme, smsc, _) = it.bound();
    it.pass_millis(5000);
    it.stand_still(60_000);
    for conn in [esme, smsc] {
        let asked = it.heard(conn).pop().unwrap();
        assert_eq!(asked.command, Command::ENQUIRE_LINK);
        it.say(conn, &response(&asked, Status::OK, b""));
    }
    it.pass_millis(1_000);
    assert!(!it.is_closed(esme) && !it.is_closed(smsc));
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
