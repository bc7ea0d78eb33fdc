//! What belongs together: receipts and who submitted, questions and who took, segments, copies for all.

use super::*;

#[test]
fn a_message_to_all_is_answered_once() {
    let mut it = World::mux(|it| it.to_node = SmppToNode::SubmitToAll);
    let (esmes, servers) = shared(&mut it, 3);
    let smsc = servers[0];
    it.say(smsc, &deliver(8, "x"));
    let sent: Vec<Said> = esmes.iter().map(|esme| it.heard_one(*esme)).collect();
    it.say(esmes[1], &response(&sent[1], Status(0x64), b"\0"));
    assert_eq!(it.heard_one(smsc).head(), (DELIVER_RESP, Status(0x64), 8));
    it.say(esmes[0], &response(&sent[0], Status::OK, b"\0"));
    it.pass_millis(3000);
    assert!(it.heard(smsc).iter().all(|it| it.command == Command::ENQUIRE_LINK));
    assert!(it.smpp.shared.is_empty());
    esmes.iter().for_each(|esme| drop(it.heard(*esme)));

    it.say(smsc, &deliver(9, "x"));
    it.lose(esmes[0], Gone::Reset);
    it.pass_millis(2999);
    assert!(it.heard(smsc).iter().all(|it| it.command == Command::ENQUIRE_LINK));
    it.pass_millis(1);
    let said = it.heard(smsc);
    let [.., last] = &said[..] else { panic!() };
    assert_eq!(last.head(), (DELIVER_RESP, Status::SYSTEM_ERROR, 9), "none of them answered");
    assert!(it.smpp.shared.is_empty());
}

#[test]
fn a_number_that_a_server_uses_again_names_another_message() {
    let mut it = World::mux(|it| it.to_node = SmppToNode::SubmitToAll);
    let (esmes, servers) = shared(&mut it, 2);
    let smsc = servers[0];
    let mut sent: Vec<Vec<Said>> = vec![Vec::new(); 2];
    for _ in 0..2 {
        it.say(smsc, &deliver(8, "x"));
        esmes.iter().zip(&mut sent).for_each(|(esme, sent)| sent.push(it.heard_one(*esme)));
        it.say(esmes[0], &response(&sent[0][0], Status::OK, b"\0"));
    }
    assert_eq!(it.heard_one(smsc).head(), (DELIVER_RESP, Status::OK, 8), "the first message");
    it.say(esmes[1], &response(&sent[1][0], Status::OK, b"\0"));
    assert!(it.heard(smsc).is_empty(), "late, and about the first");
    it.say(esmes[1], &response(&sent[1][1], Status(0x64), b"\0"));
    assert_eq!(it.heard_one(smsc).head(), (DELIVER_RESP, Status(0x64), 8), "the second");
}

#[test]
fn who_has_no_room_for_a_message_to_all_is_counted() {
    let mut it = World::mux(|it| {
        it.to_node = SmppToNode::SubmitToAll;
        it.session_window = 1;
    });
    let (esmes, servers) = shared(&mut it, 3);
    it.say(servers[0], &deliver(1, "x"));
    let asked = it.heard_one(esmes[0]);
    it.say(esmes[0], &response(&asked, Status::OK, b"\0"));
    it.say(servers[0], &deliver(2, "x"));
    assert_eq!(esmes.iter().map(|esme| it.heard(*esme).len()).sum::<usize>(), 3);
    assert_eq!(it.smpp.counters().drops(SmppDrop::NoClient), 2);
}

#[test]
fn receipts_find_their_submitter() {
    let mut it = World::mux(|_| {});
    let (esmes, servers) = shared(&mut it, 5);
    for (number, esme) in (0..).zip(&esmes) {
        it.say(*esme, &submit(number));
    }
    for smsc in &servers {
        for asked in it.heard(*smsc) {
            let id = format!("{:x}\0", 0xabc0 + asked.sequence * 16 + smsc.slot);
            it.say(*smsc, &response(&asked, Status::OK, id.as_bytes()));
        }
    }
    let ids: Vec<(Conn, String)> = esmes
        .iter()
        .map(|esme| {
            let body = it.heard_one(*esme).body;
            (*esme, String::from_utf8(body).unwrap().trim_end_matches('\0').to_owned())
        })
        .collect();
    for (round, (esme, id)) in ids.iter().rev().enumerate() {
        let decimal = u32::from_str_radix(id, 16).unwrap();
        let text = format!("id:{decimal:010} sub:001 dlvrd:001 stat:DELIVRD");
        let body = message(4, text.as_bytes());
        // Any server of the cluster may tell.
        let smsc = servers[round % 3];
        it.say(smsc, &request(Command::DELIVER_SM, 90, &body));
        let got: Vec<Conn> =
            esmes.iter().copied().filter(|esme| !it.heard(*esme).is_empty()).collect();
        assert_eq!(got, [*esme], "{id}");
    }
    assert_eq!(it.smpp.counters().submitters, 5);
    // Who is gone gets none: another session of the same user does.
    it.lose(ids[0].0, Gone::Reset);
    let text = format!("id:{}", ids[0].1);
    it.say(servers[0], &request(Command::DELIVER_SM, 91, &message(4, text.as_bytes())));
    assert_eq!(esmes[1..].iter().filter(|esme| !it.heard(**esme).is_empty()).count(), 1);
}

/// query_sm, cancel_sm and replace_sm of one message.
fn about(id: &str) -> [(Command, Vec<u8>); 3] {
    let id = id.as_bytes();
    [
        (Command::QUERY_SM, [id, b"\0\0\0sender\0"].concat()),
        (Command::CANCEL_SM, [b"\0", id, b"\0\0\0sender\0\0\0receiver\0"].concat()),
        (Command::REPLACE_SM, [id, b"\0\0\0sender\0\0\0\0\0\x02hi"].concat()),
    ]
}

/// Who of them was asked just now; it answers.
fn asked(it: &mut World, servers: &[Conn]) -> Vec<usize> {
    let mut all = Vec::new();
    for (at, smsc) in servers.iter().enumerate() {
        for one in it.heard(*smsc) {
            it.say(*smsc, &response(&one, Status::OK, b"\0"));
            all.push(at);
        }
    }
    all
}

#[test]
fn who_took_a_message_is_asked_about_it() {
    for by in [SmppToProvider::RoundRobin, SmppToProvider::ActiveStandby] {
        let mut it = World::mux(|it| it.to_provider = by);
        let (esmes, servers) = shared(&mut it, 2);
        let mut took = Vec::new();
        for number in 0..6 {
            it.say(esmes[0], &submit(number));
            let (at, one) = (servers.iter().enumerate())
                .find_map(|(at, smsc)| Some((at, it.heard(*smsc).pop()?)))
                .unwrap();
            it.say(servers[at], &response(&one, Status::OK, format!("m{number}\0").as_bytes()));
            took.push((format!("m{number}"), at));
        }
        // Another session of the user may ask, too.
        for ((id, at), esme) in took.iter().zip(esmes.iter().cycle()) {
            for (command, body) in about(id) {
                it.say(*esme, &request(command, 50, &body));
                assert_eq!(asked(&mut it, &servers), [*at], "{by:?} {command:?} {id}");
            }
        }
        // Nobody is known to have it, or who has is gone: as any request.
        let (lost, at) = took[0].clone();
        for smsc in &servers {
            it.heard(*smsc);
        }
        it.end(servers[at]);
        for id in [lost.as_str(), "unknown"] {
            for (command, body) in about(id) {
                it.say(esmes[0], &request(command, 51, &body));
                let others = asked(&mut it, &servers);
                assert!(others.len() == 1 && others != [at], "{by:?} {command:?} {id} {others:?}");
            }
        }
    }
}

#[test]
fn of_servers_that_number_alike_the_one_that_the_session_used_is_asked() {
    let mut it = World::mux(|it| it.servers.truncate(2));
    let (esmes, servers) = shared(&mut it, 2);
    for (esme, smsc) in esmes.iter().zip(&servers) {
        it.say(*esme, &submit(1));
        let one = it.heard_one(*smsc);
        it.say(*smsc, &response(&one, Status::OK, b"7\0"));
    }
    for (at, esme) in esmes.iter().enumerate() {
        for (command, body) in about("7") {
            it.say(*esme, &request(command, 50, &body));
            assert_eq!(asked(&mut it, &servers), [at], "{command:?}");
        }
    }
}

#[test]
fn a_question_waits_for_the_server_that_took_the_message() {
    let mut it = World::mux(|it| {
        it.servers.truncate(2);
        it.provider_window = 1;
    });
    let (esmes, servers) = shared(&mut it, 2);
    it.say(esmes[0], &submit(1));
    let one = it.heard_one(servers[0]);
    it.say(servers[0], &response(&one, Status::OK, b"m\0"));
    [2, 3].into_iter().for_each(|number| it.say(esmes[1], &submit(number)));
    let busy = it.heard_one(servers[0]);
    let other = it.heard_one(servers[1]);
    it.say(servers[1], &response(&other, Status::OK, b"\0"));
    let [(query, body), ..] = about("m");
    it.say(esmes[0], &request(query, 4, &body));
    assert!(it.heard(servers[1]).is_empty(), "it has room, and knows nothing of it");
    it.say(servers[0], &response(&busy, Status::OK, b"\0"));
    assert_eq!(it.heard_one(servers[0]).command, Command::QUERY_SM);
}

#[test]
fn segments_of_one_message_stay_together() {
    let mut it = World::mux(|_| {});
    let (esmes, servers) = shared(&mut it, 4);
    let (mut used, mut receivers) = (BTreeSet::new(), BTreeSet::new());
    for reference in 0..20_u8 {
        for segment in 1..=4 {
            let text = [5, 0, 3, reference, 4, segment, b't'];
            it.say(esmes[0], &request(Command::SUBMIT_SM, 1, &message(0x40, &text)));
        }
        let got: Vec<usize> = servers.iter().map(|smsc| serve(&mut it, *smsc)).collect();
        assert!(got.contains(&4), "{got:?}");
        used.insert(got);
        for segment in 1..=4 {
            let text = [5, 0, 3, reference, 4, segment, b't'];
            it.say(
                servers[segment as usize % 3],
                &request(Command::DELIVER_SM, 1, &message(0x40, &text)),
            );
        }
        let mut got = [0; 4];
        for (esme, got) in esmes.iter().zip(&mut got) {
            for one in it.heard(*esme).iter().filter(|it| it.command == Command::DELIVER_SM) {
                *got += 1;
                it.say(*esme, &response(one, Status::OK, b"\0"));
            }
        }
        assert!(got.contains(&4), "{got:?}");
        receivers.insert(got);
    }
    assert_eq!(used.len(), 3, "long messages spread all the same");
    assert_eq!(receivers.len(), 4);
}

#[test]
fn receipts_are_remembered_as_the_keys_say() {
    let limits = |count_max, seconds| {
        Some(SmppReceipts { count_max, age_max: Duration::from_secs(seconds) })
    };
    // How many of two receipts of one message come to who submitted it; by turns it is one.
    let cases = [
        ("off", None, 1),
        ("long enough", limits(2, 3), 2),
        ("one too few", limits(1, 3), 1),
        ("too short", limits(2, 1), 1),
    ];
    for (name, receipts, want) in cases {
        let mut it = World::mux(|it| {
            it.servers.truncate(1);
            it.receipts = receipts;
        });
        let (esmes, servers) = shared(&mut it, 2);
        for (esme, id) in esmes.iter().zip([b"a\0", b"b\0"]) {
            it.say(*esme, &submit(1));
            let sent = it.heard_one(servers[0]);
            it.say(servers[0], &response(&sent, Status::OK, id));
            it.heard(*esme);
        }
        it.pass_millis(2000);
        for number in 0..2 {
            let body = message(4, b"id:a stat:DELIVRD");
            it.say(servers[0], &request(Command::DELIVER_SM, number, &body));
        }
        assert_eq!(it.heard(esmes[0]).len(), want, "{name}");
        assert_eq!(it.heard(esmes[1]).len(), 2 - want, "{name}");
    }
}
