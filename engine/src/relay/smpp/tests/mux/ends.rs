//! Servers and sessions that come, fall silent, unbind or are lost, and the stop of the process.

use super::*;

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
fn nobody_is_silent_while_we_stand_still() {
    let mut it = World::mux(|it| {
        it.servers.truncate(1);
        it.check_client_side = Duration::from_secs(2);
        it.check_server_side = Duration::from_secs(2);
    });
    let (esmes, servers) = shared(&mut it, 1);
    let peers = [esmes[0], servers[0]];
    it.pass_millis(1_000);
    it.stand_still(20_000);
    it.pass_millis(1_999);
    for conn in peers {
        assert!(it.heard(conn).is_empty() && !it.is_closed(conn));
    }
    it.pass_millis(1);
    for conn in peers {
        assert_eq!(it.heard_one(conn).command, Command::ENQUIRE_LINK);
    }
    it.pass_millis(4_000);
    assert!(it.is_closed(esmes[0]), "after the usual time");
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
