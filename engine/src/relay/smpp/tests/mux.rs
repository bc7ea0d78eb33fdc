//! All sessions of a system_id share one connection to each server.

use super::*;
use crate::config::{SmppFull, SmppToNode, SmppToProvider};
use crate::relay::smpp::{SecureServers, SmppReceipts, TLS_LISTENER, owner};
use crate::relay::stream::Handover;
use crate::stats::smpp::SmppDrop;

const TRX: Command = Command::BIND_TRANSCEIVER;

/// `count` sessions of one system_id and their servers.
fn shared(it: &mut World, count: usize) -> (Vec<Conn>, Vec<Conn>) {
    let (first, servers) = it.join(TRX);
    let mut esmes = vec![first];
    for _ in 1..count {
        let (esme, more) = it.join(TRX);
        assert!(more.is_empty(), "nothing is connected for who comes later");
        esmes.push(esme);
    }
    (esmes, servers.into_iter().map(|it| it.0).collect())
}

/// Answers everything a server was asked; returns how many submit_sm that was.
fn serve(it: &mut World, smsc: Conn) -> usize {
    let asked = it.heard(smsc);
    asked.iter().for_each(|one| it.say(smsc, &response(one, Status::OK, b"id\0")));
    asked.iter().filter(|it| it.command == Command::SUBMIT_SM).count()
}

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
fn the_bind_of_the_balancer_is_a_transceivers() {
    let mut it = World::mux(|_| {});
    let esme = it.open();
    it.say(esme, &bind(Command::BIND_TRANSMITTER, 7, "secret"));
    for (smsc, _) in it.accept() {
        let sent = it.heard_one(smsc);
        assert_eq!(sent.head(), (TRX, Status::OK, 1));
        assert_eq!(sent.body, b"RestComm\0secret\0\0\x34\0\0\0");
    }
    // Of SMPP 5.0, a system_type, a range and parameters the type goes to servers, and the version comes back.
    let mut it = World::mux(|it| it.servers.truncate(1));
    let esme = it.open();
    let body = b"RestComm\0secret\0VMA\0\x50\x01\x02^44\0\x14\x2c\0\x02ab";
    it.say(esme, &request(TRX, 7, body));
    let [(smsc, _)] = it.accept()[..] else { panic!() };
    let sent = it.heard_one(smsc);
    assert_eq!(sent.body, b"RestComm\0secret\0VMA\0\x34\0\0\0");
    it.say(smsc, &response(&sent, Status::OK, b"smsc\0"));
    assert_eq!(it.heard_one(esme).body, b"loadbalancer\0\x02\x10\0\x01\x50");
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
fn who_comes_while_the_bind_is_under_way_waits_for_it() {
    let mut it = World::mux(|_| {});
    let first = it.open();
    it.say(first, &bind(TRX, 1, "secret"));
    let second = it.open();
    it.say(second, &bind(TRX, 2, "secret"));
    let wrong = it.open();
    it.say(wrong, &bind(TRX, 3, "other"));
    let servers = it.accept();
    assert_eq!(servers.len(), 3);
    assert!(it.heard(first).is_empty() && it.heard(second).is_empty());
    for (smsc, _) in servers {
        let sent = it.heard_one(smsc);
        it.say(smsc, &response(&sent, Status::OK, b"\0"));
    }
    assert_eq!(it.heard_one(first).head(), (BIND_RESP, Status::OK, 1), "once, not three times");
    assert_eq!(it.heard_one(second).head(), (BIND_RESP, Status::OK, 2));
    assert_eq!(it.heard_one(wrong).head(), (BIND_RESP, Status::INVALID_PASSWORD, 3));
    assert!(it.is_closed(wrong));
}

#[test]
fn wrong_credentials_are_relayed_and_forgotten() {
    let mut it = World::mux(|it| it.servers = vec![server(1)]);
    for attempt in 0..5 {
        let esme = it.open();
        it.say(esme, &bind(TRX, 40 + attempt, "wrong"));
        let [(smsc, _)] = it.accept()[..] else { panic!("attempt {attempt}") };
        let sent = it.heard_one(smsc);
        it.say(smsc, &response(&sent, Status::INVALID_PASSWORD, b""));
        assert_eq!(it.heard_one(esme).head(), (BIND_RESP, Status::INVALID_PASSWORD, 40 + attempt));
        assert!(it.is_closed(esme) && it.smpp.is_idle() && it.smpp.spaces_by_name.is_empty());
        it.pass_millis(3000);
        assert!(it.wire.connecting.is_empty(), "nobody tries on");
    }
    it.join(TRX);
}

#[test]
fn the_next_in_the_queue_tries_its_own_password() {
    let mut it = World::mux(|it| it.servers = vec![server(1)]);
    let wrong = it.open();
    it.say(wrong, &bind(TRX, 1, "wrong"));
    let right = it.open();
    it.say(right, &bind(TRX, 2, "secret"));
    let [(smsc, _)] = it.accept()[..] else { panic!() };
    let sent = it.heard_one(smsc);
    it.say(smsc, &response(&sent, Status::INVALID_SYSTEM_ID, b""));
    assert_eq!(it.heard_one(wrong).head(), (BIND_RESP, Status::INVALID_SYSTEM_ID, 1));
    let [(smsc, _)] = it.accept()[..] else { panic!() };
    let sent = it.heard_one(smsc);
    assert!(sent.body.starts_with(b"RestComm\0secret\0"));
    it.say(smsc, &response(&sent, Status::OK, b""));
    assert_eq!(it.heard_one(right).head(), (BIND_RESP, Status::OK, 2));
}

/// The first of two servers takes the bind and calls its password wrong; the second is not there, or does
/// not even say so.
fn refuse_at_the_first(it: &mut World, is_deaf: bool) {
    let [(_, first, _), (second, ..)] = it.wire.connecting[..] else { panic!("{is_deaf}") };
    assert_eq!(first, server(1));
    if is_deaf {
        it.wire.connecting.retain(|it| it.0 != second);
    } else {
        it.lose(second, Gone::Refused);
    }
    let [(smsc, _)] = it.accept()[..] else { panic!("{is_deaf}") };
    let sent = it.heard_one(smsc);
    it.say(smsc, &response(&sent, Status::INVALID_PASSWORD, b""));
}

#[test]
fn a_wrong_password_is_told_though_another_server_is_away() {
    for is_deaf in [false, true] {
        let mut it = World::mux(|it| it.servers.truncate(2));
        let wrong = it.open();
        it.say(wrong, &bind(TRX, 1, "wrong"));
        refuse_at_the_first(&mut it, is_deaf);
        assert_eq!(it.is_closed(wrong), !is_deaf, "the other may think otherwise");
        it.pass_millis(3000);
        assert_eq!(it.heard_one(wrong).head(), (BIND_RESP, Status::INVALID_PASSWORD, 1));
        assert!(it.smpp.is_idle(), "{is_deaf}");
    }
}

#[test]
fn a_wrong_password_keeps_nobody_out_while_a_server_is_away() {
    for (is_deaf, is_late) in [(false, false), (true, false), (true, true)] {
        let mut it = World::mux(|it| it.servers.truncate(2));
        let [wrong, same, right] = [(); 3].map(|()| it.open());
        it.say(wrong, &bind(TRX, 2, "wrong"));
        it.say(same, &bind(TRX, 3, "wrong"));
        if is_late {
            refuse_at_the_first(&mut it, is_deaf);
            it.say(right, &bind(TRX, 4, "secret"));
        } else {
            it.say(right, &bind(TRX, 4, "secret"));
            refuse_at_the_first(&mut it, is_deaf);
        }
        for (esme, sequence) in [(wrong, 2), (same, 3)] {
            let want = (BIND_RESP, Status::INVALID_PASSWORD, sequence);
            assert_eq!(it.heard_one(esme).head(), want, "{is_deaf} {is_late}");
        }
        let [(smsc, 1), (_, 2)] = it.accept()[..] else { panic!("{is_deaf} {is_late}") };
        let sent = it.heard_one(smsc);
        assert!(sent.body.starts_with(b"RestComm\0secret\0"));
        it.say(smsc, &response(&sent, Status::OK, b""));
        assert_eq!(it.heard_one(right).head(), (BIND_RESP, Status::OK, 4), "{is_deaf} {is_late}");
    }
}

#[test]
fn who_waits_has_the_password_that_is_tried() {
    let mut it = World::mux(|it| it.servers.truncate(1));
    let first = it.open();
    it.say(first, &bind(TRX, 1, "wrong"));
    let second = it.open();
    it.say(second, &bind(TRX, 2, "secret"));
    let [(smsc, _)] = it.accept()[..] else { panic!() };
    it.heard_one(smsc);
    it.pass_millis(2000);
    it.lose(first, Gone::Reset);
    assert!(it.is_closed(smsc), "nobody waits for that answer");
    let [(smsc, _)] = it.accept()[..] else { panic!() };
    let sent = it.heard_one(smsc);
    assert!(sent.body.starts_with(b"RestComm\0secret\0"));
    it.pass_millis(2000);
    it.say(smsc, &response(&sent, Status::OK, b""));
    assert_eq!(it.heard_one(second).head(), (BIND_RESP, Status::OK, 2), "with a time of its own");
}

#[test]
fn another_error_is_tried_again_as_long_as_somebody_waits() {
    let mut it = World::mux(|it| {
        it.servers = vec![server(1)];
        it.response = Duration::from_secs(1);
        it.reconnect = Duration::from_secs(2);
    });
    let esme = it.open();
    it.say(esme, &bind(TRX, 1, "secret"));
    let [(smsc, _)] = it.accept()[..] else { panic!() };
    let sent = it.heard_one(smsc);
    it.say(smsc, &response(&sent, Status(0x0b), b""));
    it.pass_millis(1000);
    assert_eq!(it.heard_one(esme).head(), (BIND_RESP, Status::SYSTEM_ERROR, 1));
    it.pass_millis(5000);
    assert!(it.wire.connecting.is_empty() && it.smpp.is_idle());
}

#[test]
fn a_server_that_refuses_or_is_away_at_first_is_asked_once_a_period() {
    let mut it = World::mux(|it| it.servers = vec![server(1), server(2)]);
    let esme = it.open();
    it.say(esme, &bind(TRX, 1, "secret"));
    for round in 0..3 {
        let [(away, ..), (busy, ..)] = it.wire.connecting[..] else { panic!("{round}") };
        it.lose(away, Gone::Refused);
        it.accept();
        let sent = it.heard_one(busy);
        it.say(busy, &response(&sent, Status(0x0d), b""));
        assert!(it.is_closed(busy));
        it.pass_millis(499);
        assert!(it.wire.connecting.is_empty() && it.heard(esme).is_empty(), "{round}");
        it.pass_millis(1);
    }
    let both = it.accept();
    for (smsc, _) in &both {
        let sent = it.heard_one(*smsc);
        it.say(*smsc, &response(&sent, Status::OK, b""));
    }
    assert_eq!(it.heard_one(esme).head(), (BIND_RESP, Status::OK, 1));
    // The same after a loss: a server that starts refuses for a while, and sessions outlast that.
    both.iter().for_each(|(smsc, _)| it.lose(*smsc, Gone::Reset));
    it.pass_millis(500);
    for (smsc, _) in it.accept() {
        let sent = it.heard_one(smsc);
        it.say(smsc, &response(&sent, Status(0x0d), b""));
    }
    assert_eq!(it.state(esme), Some(ServerState::Rebinding));
    it.say(esme, &submit(2));
    assert_eq!(it.heard_one(esme).head(), (SUBMIT_RESP, Status::SYSTEM_ERROR, 2));
    // Unless all say that the password is wrong now.
    it.pass_millis(500);
    for (smsc, _) in it.accept() {
        let sent = it.heard_one(smsc);
        it.say(smsc, &response(&sent, Status::INVALID_PASSWORD, b""));
    }
    let asked = it.heard_one(esme);
    assert_eq!(asked.command, Command::UNBIND);
    it.say(esme, &response(&asked, Status::OK, b""));
    assert!(it.smpp.is_idle());
}

#[test]
fn a_server_that_knows_the_account_late_takes_part_later() {
    let mut it = World::mux(|it| it.servers.truncate(2));
    let (esmes, servers) = shared(&mut it, 1);
    it.lose(servers[1], Gone::Reset);
    it.pass_millis(500);
    let [(late, 2)] = it.accept()[..] else { panic!() };
    let sent = it.heard_one(late);
    it.say(late, &response(&sent, Status::INVALID_SYSTEM_ID, b""));
    assert_eq!(it.state(esmes[0]), Some(ServerState::Bound), "the other one serves");
    let mut asked = Vec::new();
    for _ in 0..31 {
        it.pass_millis(1000);
        // Nobody is silent.
        for (conn, command) in [(esmes[0], ENQUIRE_RESP), (servers[0], ENQUIRE_RESP)] {
            it.heard(conn);
            it.say(conn, &request(Command::ENQUIRE_LINK, 77, b""));
            assert!(it.heard(conn).iter().any(|it| it.command == command));
        }
        asked.extend(it.accept());
    }
    let [(late, 2)] = asked[..] else { panic!("once in a while: {asked:?}") };
    let sent = it.heard_one(late);
    it.say(late, &response(&sent, Status::OK, b""));
    (0..4).for_each(|number| it.say(esmes[0], &submit(number)));
    assert_eq!([serve(&mut it, servers[0]), serve(&mut it, late)], [2, 2]);
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
fn a_lost_server_leaves_the_rotation_and_comes_back() {
    let mut it = World::mux(|_| {});
    let (esmes, servers) = shared(&mut it, 2);
    it.say(esmes[0], &submit(1));
    it.heard_one(servers[0]);
    it.lose(servers[0], Gone::Reset);
    assert_eq!(it.heard_one(esmes[0]).head(), (SUBMIT_RESP, Status::SYSTEM_ERROR, 1));
    for number in 0..4 {
        it.say(esmes[1], &submit(number));
    }
    assert_eq!([serve(&mut it, servers[1]), serve(&mut it, servers[2])], [2, 2]);
    for _ in 0..3 {
        it.pass_millis(500);
        let [(conn, ..)] = it.wire.connecting[..] else { panic!("one attempt per period") };
        it.lose(conn, Gone::Refused);
    }
    it.pass_millis(500);
    let [(again, 1)] = it.accept()[..] else { panic!() };
    let sent = it.heard_one(again);
    it.say(again, &response(&sent, Status::OK, b""));
    it.heard(esmes[1]);
    for number in 0..6 {
        it.say(esmes[1], &submit(number));
    }
    let served = [again, servers[1], servers[2]].map(|smsc| serve(&mut it, smsc));
    assert_eq!(served, [2, 2, 2]);
    assert_eq!(it.heard(esmes[1]).len(), 6);
    assert!(it.heard(esmes[0]).is_empty(), "nobody was let in twice");
}

#[test]
fn without_any_server_sessions_are_turned_back_and_then_go_on() {
    let mut it = World::mux(|it| it.servers = vec![server(1)]);
    let (esmes, servers) = shared(&mut it, 2);
    let mut smsc = servers[0];
    for _ in 0..2 {
        it.lose(smsc, Gone::Reset);
        for esme in &esmes {
            assert_eq!(it.state(*esme), Some(ServerState::Rebinding));
            it.say(*esme, &submit(3));
            assert_eq!(it.heard_one(*esme).head(), (SUBMIT_RESP, Status::SYSTEM_ERROR, 3));
        }
        it.pass_millis(500);
        let [(again, _)] = it.accept()[..] else { panic!() };
        let sent = it.heard_one(again);
        it.say(again, &response(&sent, Status::OK, b""));
        for esme in &esmes {
            assert_eq!(it.state(*esme), Some(ServerState::Bound));
            it.say(*esme, &submit(4));
        }
        assert_eq!(serve(&mut it, again), 2);
        esmes.iter().for_each(|esme| assert_eq!(it.heard(*esme).len(), 1));
        smsc = again;
    }
    it.lose(smsc, Gone::Reset);
    let late = it.open();
    it.say(late, &bind(TRX, 1, "secret"));
    assert_eq!(it.heard_one(late).status, Status::OK, "validated without the server");
    assert_eq!(it.state(late), Some(ServerState::Rebinding));
    it.say(esmes[0], &request(Command::UNBIND, 9, b""));
    assert_eq!(it.heard_one(esmes[0]).head(), (UNBIND_RESP, Status::OK, 9));
}

#[test]
fn messages_of_who_came_by_tls_never_leave_in_clear() {
    for (secure, kinds) in [
        (SecureServers::LikeClient, &[Secure::No, Secure::Tls][..]),
        (SecureServers::Always, &[Secure::Tls]),
        (SecureServers::Never, &[Secure::No]),
    ] {
        let mut it = World::mux(|it| {
            it.servers.truncate(1);
            it.secure = secure;
        });
        let [plain, tls] = [PLAIN_LISTENER, TLS_LISTENER].map(|at| it.open_at(at));
        [plain, tls].iter().for_each(|esme| it.say(*esme, &bind(TRX, 1, "secret")));
        let connecting = it.wire.connecting.clone();
        assert_eq!(connecting.iter().map(|it| it.2).collect::<Vec<_>>(), kinds, "{secure:?}");
        for (smsc, _) in it.accept() {
            let sent = it.heard_one(smsc);
            it.say(smsc, &response(&sent, Status::OK, b""));
        }
        for (number, esme) in [(2, plain), (3, tls)] {
            assert_eq!(it.heard_one(esme).status, Status::OK);
            (0..4).for_each(|_| it.say(esme, &submit(number)));
        }
        let served: Vec<usize> = connecting.iter().map(|at| serve(&mut it, at.0)).collect();
        assert_eq!(served, vec![8 / kinds.len(); kinds.len()], "{secure:?}");
        // What each connection brings goes to its own sessions.
        [plain, tls].iter().for_each(|esme| drop(it.heard(*esme)));
        if secure == SecureServers::LikeClient {
            (1..=4).for_each(|number| it.say(connecting[1].0, &deliver(number, "x")));
            assert_eq!([plain, tls].map(|esme| it.heard(esme).len()), [0, 4]);
        }
        [plain, tls].iter().for_each(|esme| it.lose(*esme, Gone::Reset));
        assert!(it.smpp.spaces_by_name.is_empty(), "{secure:?}");
    }
}

#[test]
fn only_the_last_unbind_reaches_the_servers() {
    let mut it = World::mux(|_| {});
    let (esmes, servers) = shared(&mut it, 2);
    it.say(esmes[0], &request(Command::UNBIND, 5, b""));
    assert_eq!(it.heard_one(esmes[0]).head(), (UNBIND_RESP, Status::OK, 5));
    assert!(servers.iter().all(|smsc| it.heard(*smsc).is_empty()));
    it.lose(esmes[1], Gone::Reset);
    for smsc in servers {
        let sent = it.heard_one(smsc);
        assert_eq!(sent.command, Command::UNBIND);
        it.say(smsc, &response(&sent, Status::OK, b""));
        assert!(it.is_closed(smsc));
    }
    it.end(esmes[0]);
    assert!(it.smpp.is_idle() && it.smpp.spaces_by_name.is_empty());
}

#[test]
fn an_unbind_is_answered_after_what_was_asked_before() {
    let ends: [fn(&mut World, Conn, &Said); 3] = [
        |it, smsc, asked| it.say(smsc, &response(asked, Status::OK, b"\0")),
        |it, smsc, _| it.lose(smsc, Gone::Reset),
        |it, _, _| it.pass_millis(3000),
    ];
    for (case, end) in ends.into_iter().enumerate() {
        for count in [1, 2] {
            let mut it = World::mux(|it| it.servers.truncate(1));
            let (esmes, servers) = shared(&mut it, count);
            let (esme, smsc) = (esmes[0], servers[0]);
            it.say(smsc, &deliver(70, "x"));
            let delivered = it.heard_one(esme);
            it.say(esme, &[submit(1), request(Command::UNBIND, 2, b"")].concat());
            let asked = it.heard_one(smsc);
            assert!(it.heard(esme).is_empty(), "{case}: it waits for its answer");
            it.say(smsc, &deliver(71, "x"));
            assert!(it.heard(esme).is_empty(), "{case}: nothing new comes");
            it.say(esme, &response(&delivered, Status::OK, b"\0"));
            assert!(it.heard(smsc).iter().any(|it| it.head() == (DELIVER_RESP, Status::OK, 70)));
            end(&mut it, smsc, &asked);
            let status = if case == 0 { Status::OK } else { Status::SYSTEM_ERROR };
            let heads: Vec<_> = it.heard(esme).iter().map(Said::head).collect();
            let want = [(SUBMIT_RESP, status, 1), (UNBIND_RESP, Status::OK, 2)];
            assert_eq!(heads, want, "{case}, {count}");
            assert_eq!(it.state(esme), Some(ServerState::Closed), "{case}, {count}");
            assert_eq!(it.smpp.spaces.len(), count - 1, "{case}");
            it.pass_millis(10_000);
            assert!(it.heard(esme).is_empty() && it.is_closed(esme), "{case}, {count}");
        }
    }
}

#[test]
fn a_server_that_unbinds_is_answered_at_once() {
    let mut it = World::mux(|it| it.servers.truncate(2));
    let (esmes, servers) = shared(&mut it, 2);
    it.say(servers[0], &request(Command::UNBIND, 70, b""));
    assert_eq!(it.heard_one(servers[0]).head(), (UNBIND_RESP, Status::OK, 70));
    assert!(it.is_closed(servers[0]));
    it.say(esmes[0], &submit(1));
    assert_eq!(serve(&mut it, servers[1]), 1);
    it.heard(esmes[0]);
    it.say(servers[1], &request(Command::UNBIND, 71, b""));
    assert_eq!(it.heard_one(servers[1]).head(), (UNBIND_RESP, Status::OK, 71));
    for esme in esmes {
        let sent = it.heard_one(esme);
        assert_eq!(sent.command, Command::UNBIND, "it was the last");
        it.say(esme, &response(&sent, Status::OK, b""));
        assert!(it.is_closed(esme));
    }
    assert!(it.smpp.is_idle());
}

#[test]
fn a_server_that_unbound_is_asked_again_while_others_serve() {
    let mut it = World::mux(|it| it.servers.truncate(2));
    let (_, servers) = shared(&mut it, 1);
    it.say(servers[0], &request(Command::UNBIND, 70, b""));
    it.pass_millis(500);
    let [(again, 1)] = it.accept()[..] else { panic!() };
    let sent = it.heard_one(again);
    it.say(again, &response(&sent, Status::OK, b""));
    assert_eq!(it.smpp.counters().servers, [(server(1), 1), (server(2), 1)]);
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

#[test]
fn silence_is_asked_about_and_then_ends() {
    let mut it = World::mux(|it| {
        it.servers.truncate(1);
        it.check_client_side = Duration::from_secs(2);
        it.check_server_side = Duration::from_secs(2);
    });
    let (esmes, servers) = shared(&mut it, 2);
    let mut counts = [0; 3];
    let peers = [esmes[0], esmes[1], servers[0]];
    for tick in 0..160 {
        it.pass_millis(100);
        for (at, conn) in peers.into_iter().enumerate() {
            for asked in it.heard(conn) {
                assert_eq!(asked.command, Command::ENQUIRE_LINK, "tick {tick}");
                counts[at] += 1;
                // The second session never answers.
                if at != 1 {
                    it.say(conn, &response(&asked, Status::OK, b""));
                }
            }
        }
    }
    assert!(it.is_closed(esmes[1]) && !it.is_closed(esmes[0]));
    assert!(counts[0] >= 5 && counts[2] >= 5, "{counts:?}");
    // Now the server falls silent: lost after three times as long, and connected again.
    it.pass_millis(500);
    it.heard(servers[0]);
    for _ in 0..70 {
        it.pass_millis(100);
        for asked in it.heard(esmes[0]) {
            it.say(esmes[0], &response(&asked, Status::OK, b""));
        }
    }
    assert!(it.is_closed(servers[0]) && !it.is_closed(esmes[0]));
    assert_eq!(it.accept().len(), 1);
}

#[test]
fn who_is_silent_is_asked_again_in_the_shorter_period_of_two() {
    for (connection, enquire, count) in [(1000, 10_000, 4), (10_000, 1000, 4), (10_000, 9000, 1)] {
        let mut it = World::mux(|it| {
            it.servers.truncate(1);
            it.check_client_side = Duration::from_secs(2);
            it.check_server_side = Duration::from_secs(2);
            it.connection = Duration::from_millis(connection);
            it.enquire = Duration::from_millis(enquire);
        });
        let (esmes, servers) = shared(&mut it, 1);
        it.pass_millis(5999);
        for conn in [esmes[0], servers[0]] {
            let asked: Vec<Command> = it.heard(conn).iter().map(|it| it.command).collect();
            assert_eq!(asked, vec![Command::ENQUIRE_LINK; count], "{connection} {enquire}");
        }
        it.pass_millis(1);
        assert!(it.is_closed(esmes[0]), "{connection} {enquire}");
    }
}

#[test]
fn only_silence_is_asked_about_and_nothing_after_an_unbind() {
    let mut it = World::mux(|it| {
        it.servers.truncate(1);
        it.enquire = Duration::from_millis(100);
    });
    let (esmes, servers) = shared(&mut it, 2);
    it.pass_millis(2999);
    for conn in [esmes[0], esmes[1], servers[0]] {
        assert!(it.heard(conn).is_empty(), "not who has just been heard");
    }
    it.pass_millis(1);
    for conn in [esmes[0], servers[0]] {
        let asked = it.heard_one(conn);
        assert_eq!(asked.command, Command::ENQUIRE_LINK);
        it.say(conn, &response(&asked, Status::OK, b""));
    }
    it.say(esmes[0], &[submit(1), request(Command::UNBIND, 2, b"")].concat());
    it.say(esmes[1], &request(Command::UNBIND, 2, b""));
    it.pass_millis(2999);
    assert!(it.heard(esmes[0]).is_empty(), "its unbind waits for its answer");
    it.heard(esmes[1]);
    it.pass_millis(20_000);
    for conn in esmes.into_iter().chain(servers) {
        let heard = it.heard(conn);
        assert!(heard.iter().all(|it| it.command != Command::ENQUIRE_LINK), "{heard:?}");
    }
    assert!(it.smpp.is_idle());
}

#[test]
fn servers_come_and_go_while_running() {
    let mut it = World::mux(|it| it.servers = vec![server(1)]);
    let (esmes, servers) = shared(&mut it, 1);
    let with = |it: &mut World, numbers: &[u16]| {
        let servers = numbers.iter().copied().map(server).collect();
        let settings = SmppSettings { servers, ..it.smpp.settings.clone() };
        it.smpp.reload(it.now, settings, &it.snapshot, &mut it.wire);
    };
    with(&mut it, &[1, 2]);
    let [(second, 2)] = it.accept()[..] else { panic!() };
    let sent = it.heard_one(second);
    it.say(second, &response(&sent, Status::OK, b""));
    (0..4).for_each(|number| it.say(esmes[0], &submit(number)));
    assert_eq!(serve(&mut it, second), 2);
    with(&mut it, &[2]);
    let asked = it.heard(servers[0]);
    let commands: Vec<Command> = asked.iter().map(|it| it.command).collect();
    assert_eq!(commands, [Command::SUBMIT_SM; 2], "it has to answer before it is unbound");
    asked.iter().for_each(|one| it.say(servers[0], &response(one, Status::OK, b"\0")));
    let unbind = it.heard_one(servers[0]);
    assert_eq!(unbind.command, Command::UNBIND);
    it.say(servers[0], &response(&unbind, Status::OK, b""));
    assert!(it.is_closed(servers[0]));
    assert_eq!(it.heard(esmes[0]).len(), 4, "what it had was answered");
    (0..4).for_each(|number| it.say(esmes[0], &submit(number)));
    assert_eq!(serve(&mut it, second), 4);
    assert_eq!(it.heard(esmes[0]).len(), 4);

    // One that does not answer is waited for as for any answer, and unbound all the same. What it asks
    // meanwhile it is refused.
    it.say(esmes[0], &submit(9));
    with(&mut it, &[3]);
    it.heard(second);
    it.say(second, &deliver(5, "x"));
    assert_eq!(it.heard_one(second).head(), (DELIVER_RESP, Status::SYSTEM_ERROR, 5));
    it.pass_millis(2999);
    assert!(!it.heard(second).iter().any(|it| it.command == Command::UNBIND));
    it.pass_millis(1);
    assert!(it.heard(second).iter().any(|it| it.command == Command::UNBIND));
    let answers = it.heard(esmes[0]);
    assert!(answers.iter().any(|it| it.head() == (SUBMIT_RESP, Status::SYSTEM_ERROR, 9)));
    it.pass_millis(1000);
    assert!(it.is_closed(second));
}

#[test]
fn a_node_comes_and_goes_while_nobody_says_anything() {
    let mut it = World::mux(|it| it.servers = vec![server(1)]);
    let (_, servers) = shared(&mut it, 1);
    let mut node = crate::balance::testing::node(7);
    node.properties.insert("smppPort".to_owned(), "2775".to_owned());
    it.snapshot = Snapshot::new(7, vec![node.clone()], &[]);
    it.smpp.handle_snapshot(it.now, &it.snapshot, &mut it.wire);
    let [(conn, to, _)] = it.wire.connecting[..] else { panic!() };
    assert_eq!(to, SocketAddr::new(node.ip, 2775));
    it.wire.connecting.clear();
    it.smpp.handle_connected(it.now, conn, &mut it.wire);
    let sent = it.heard_one(conn);
    it.say(conn, &response(&sent, Status::OK, b""));
    it.snapshot = Snapshot::new(8, Vec::new(), &[]);
    it.smpp.handle_snapshot(it.now, &it.snapshot, &mut it.wire);
    assert_eq!(it.heard_one(conn).command, Command::UNBIND);
    assert!(it.heard(servers[0]).is_empty());
}

#[test]
fn what_a_server_owes_when_it_unbinds_still_arrives() {
    // Its unbind and the answer come in one piece, or one after the other, or the answer never comes.
    for (is_at_once, is_answered) in [(true, true), (false, true), (false, false)] {
        let case = format!("at once {is_at_once}, answered {is_answered}");
        let mut it = World::mux(|it| it.servers.truncate(2));
        let (esmes, servers) = shared(&mut it, 1);
        it.say(esmes[0], &[submit(1), submit(2)].concat());
        let sent = it.heard_one(servers[0]);
        let unbind = request(Command::UNBIND, 70, b"");
        let answer = response(&sent, Status::OK, b"id\0");
        if is_at_once {
            it.say(servers[0], &[unbind, answer].concat());
        } else {
            it.say(servers[0], &unbind);
            assert!(it.heard(esmes[0]).is_empty() && !it.is_closed(servers[0]), "{case}");
            it.say(esmes[0], &submit(3));
            if is_answered {
                it.say(servers[0], &answer);
            } else {
                it.pass_millis(3000);
            }
        }
        let to_server: Vec<_> = it.heard(servers[0]).iter().map(Said::head).collect();
        assert_eq!(to_server, [(UNBIND_RESP, Status::OK, 70)], "{case}: nothing new");
        let status = if is_answered { Status::OK } else { Status::SYSTEM_ERROR };
        let heard = it.heard(esmes[0]);
        assert!(heard.iter().any(|it| it.head() == (SUBMIT_RESP, status, 1)), "{case}: {heard:?}");
        assert!(it.is_closed(servers[0]), "{case}");
    }
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

#[test]
fn a_bind_moves_to_the_shard_that_owns_its_system_id() {
    let shards = 4;
    let home = owner(b"RestComm", shards);
    assert!(home < shards);
    let mut seen = [0; 4];
    (0..1000).for_each(|id: u32| seen[owner(&id.to_be_bytes(), shards)] += 1);
    assert!(seen.iter().all(|it| (150..350).contains(it)), "{seen:?}");

    let away = (home + 1) % shards;
    let mut it = World::mux(|it| (it.shard, it.shards) = (away, shards));
    let esme = it.open();
    let enquire = request(Command::ENQUIRE_LINK, 1, b"");
    it.say(esme, &[enquire, bind(TRX, 2, "secret"), submit(3)].concat());
    assert_eq!(it.smpp.poll_handover(), Some(Handover { conn: esme, shard: home }));
    assert_eq!(it.smpp.poll_handover(), None);
    assert!(it.smpp.is_idle() && it.wire.connecting.is_empty());
    let rest = it.unread.values().next().unwrap();
    assert_eq!(*rest, [bind(TRX, 2, "secret"), submit(3)].concat(), "goes along unread");

    let mut it = World::mux(|it| (it.shard, it.shards) = (home, shards));
    it.join(TRX);
    assert_eq!(it.smpp.poll_handover(), None);
}

#[test]
fn a_stop_unbinds_everyone() {
    let mut it = World::mux(|_| {});
    let (esmes, servers) = shared(&mut it, 2);
    it.smpp.stop(it.now, &mut it.wire);
    for conn in esmes.into_iter().chain(servers) {
        let asked = it.heard_one(conn);
        assert_eq!(asked.command, Command::UNBIND);
        it.say(conn, &response(&asked, Status::OK, b""));
        assert!(it.is_closed(conn));
    }
    assert!(it.smpp.is_idle());
}

#[test]
fn who_unbinds_gets_what_its_last_server_owes_though_that_unbinds_as_well() {
    let mut it = World::mux(|it| it.servers.truncate(1));
    let (esmes, servers) = shared(&mut it, 1);
    it.say(esmes[0], &[submit(1), request(Command::UNBIND, 2, b"")].concat());
    let asked = it.heard_one(servers[0]);
    it.say(servers[0], &request(Command::UNBIND, 33, b""));
    assert!(it.heard(esmes[0]).is_empty());
    it.say(servers[0], &response(&asked, Status::OK, b"id\0"));
    let heads: Vec<_> = it.heard(esmes[0]).iter().map(Said::head).collect();
    assert_eq!(heads, [(SUBMIT_RESP, Status::OK, 1), (UNBIND_RESP, Status::OK, 2)]);
    it.end(esmes[0]);
    assert!(it.smpp.is_idle());
}
