//! Who comes in: the binds of sessions and ours, passwords, and servers that refuse them.

use super::*;

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
