//! Windows, and peers that do not read: who waits, and for whom.

use super::*;

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
