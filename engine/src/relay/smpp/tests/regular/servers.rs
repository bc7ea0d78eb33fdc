//! The servers behind sessions: whose turn it is, who takes the place of one that is lost, and nodes that come
//! and go.

use super::*;

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
