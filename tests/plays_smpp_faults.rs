//! SMPP with wrong input, slow peers and overload through the whole process: whoever misbehaves is
//! answered as SMPP says and loses at worst its own connection; a session beside it notices nothing.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use tests::smpp::*;
use tests::{Balancer, Setup, wait_for};

/// A balancer in either mode, with a server and a session that must not suffer.
fn scene(is_mux: bool) -> ([Smsc; 1], Balancer, Esme) {
    let servers = Smsc::several::<1>();
    let lb = Setup::smpp(&servers).set("muxMode", &is_mux.to_string()).start();
    let witness = Esme::connect(lb.smpp()).bind("witness", "password");
    (servers, lb, witness)
}

fn length(bytes: u32, command: u32) -> Vec<u8> {
    [bytes, command, 0, 7].map(u32::to_be_bytes).concat()
}

#[test]
fn a_length_that_is_none_is_answered_and_ends_the_connection() {
    for is_mux in [false, true] {
        let (servers, lb, mut witness) = scene(is_mux);
        let lengths = [0, 1, 15, 65_537, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff];
        for (count, bytes) in (1..).zip(lengths) {
            let mut client = Esme::connect(lb.smpp()).bind("other", "password");
            client.send_bytes(&length(bytes, SUBMIT_SM));
            let nack = client.expect("generic_nack", |it| it.command == GENERIC_NACK);
            assert_eq!((nack.status, nack.sequence), (INVALID_LENGTH, 0), "{bytes:#x}");
            client.wait_end();
            assert_eq!(lb.smpp_metric("dropped_total{reason=\"malformed\"}"), count);
            // Its server's connection goes as well.
            servers[0].wait_bound(1);
        }
        // The largest that is one passes.
        let mut client = Esme::connect(lb.smpp()).bind("other", "password");
        assert_eq!(client.ask(SUBMIT_SM, &[b'x'; 65_520]).status, OK);
        assert_eq!(witness.submit().status, OK);
        assert_eq!(servers[0].count(SUBMIT_SM), 2);
    }
}

#[test]
fn a_servers_length_that_is_none_costs_its_connection_and_the_session_is_bound_again() {
    for is_mux in [false, true] {
        let (servers, lb, mut witness) = scene(is_mux);
        let mut client = Esme::connect(lb.smpp()).bind("other", "password");
        let at = *servers[0].bound().last().unwrap();
        servers[0].send_bytes(at, &length(3, SUBMIT_SM));
        servers[0].wait("generic_nack", |it| {
            it.connection == at && it.pdu.command == GENERIC_NACK && it.pdu.status == INVALID_LENGTH
        });
        wait_for("another connection", || (servers[0].connections() == 3).then_some(()));
        wait_for("service", || (client.submit().status == OK).then_some(()));
        assert_eq!(witness.submit().status, OK);
        client.leave();
        witness.leave();
        lb.wait_no_smpp();
    }
}

#[test]
fn unknown_commands_are_refused_and_the_session_goes_on() {
    for is_mux in [false, true] {
        let (servers, lb, mut witness) = scene(is_mux);
        for command in [0x0a, 0x16, 0x0001_0200, 0x7fff_ffff, OUTBIND] {
            let sequence = witness.request(command, b"some\0body");
            let nack = witness.expect("generic_nack", |it| it.command == GENERIC_NACK);
            assert_eq!((nack.status, nack.sequence), (INVALID_COMMAND, sequence), "{command:#x}");
        }
        // A response that nobody waits for is no reason to say anything.
        witness.send(&Pdu::new(0x16 | RESPONSE, 1, b""));
        witness.send(&Pdu::new(SUBMIT_SM | RESPONSE, 1, b""));
        assert_eq!(witness.submit().status, OK);
        assert_eq!(witness.inbox().count(), 0);
        // The same from a server.
        servers[0].send(0, &Pdu::new(0x0a, 44, b""));
        let nack = servers[0].wait("generic_nack", |it| it.pdu.command == GENERIC_NACK).pdu;
        assert_eq!((nack.status, nack.sequence), (INVALID_COMMAND, 44));
        assert_eq!(witness.submit().status, OK);
        witness.leave();
        lb.wait_no_smpp();
    }
}

#[test]
fn bodies_that_are_cut_pass_unless_they_are_a_binds() {
    for is_mux in [false, true] {
        let (servers, lb, mut witness) = scene(is_mux);
        let whole = message_body(b"Hello world!");
        for bytes in 0..whole.len() {
            assert_eq!(witness.ask(SUBMIT_SM, &whole[..bytes]).status, OK, "{bytes}");
        }
        let seen = servers[0].seen().into_iter().filter(|it| it.pdu.command == SUBMIT_SM);
        let came: Vec<Vec<u8>> = seen.map(|it| it.pdu.body).collect();
        let sent: Vec<Vec<u8>> = (0..whole.len()).map(|it| whole[..it].to_vec()).collect();
        assert_eq!(came, sent, "byte for byte");
        let bind = bind_body("other", "password");
        for bytes in [0, 5, 14, bind.len() - 1] {
            let mut client = Esme::connect(lb.smpp());
            let answer = client.ask(BIND_TRANSCEIVER, &bind[..bytes]);
            assert_eq!(answer.status, INVALID_LENGTH, "{bytes}");
            client.wait_end();
        }
        assert_eq!(witness.submit().status, OK);
        assert_eq!(servers[0].binds(), 1);
    }
}

#[test]
fn what_smpp_does_not_know_yet_passes_byte_for_byte() {
    for is_mux in [false, true] {
        let (servers, _lb, mut witness) = scene(is_mux);
        let unknown_parameters = b"\x14\x2c\x00\x03abc\x04\x28\x00\x01\x00";
        let body = [&message_body(b"text")[..], unknown_parameters].concat();
        servers[0].answers(BROADCAST_SM, Reply::Body(b"id\0\x04\x28\x00\x01\x10".to_vec()));
        let answer = witness.ask(BROADCAST_SM, &body);
        assert_eq!((answer.command, answer.status), (BROADCAST_SM | RESPONSE, OK));
        assert_eq!(answer.body, b"id\0\x04\x28\x00\x01\x10");
        assert_eq!(servers[0].wait("it", |it| it.pdu.command == BROADCAST_SM).pdu.body, body);
    }
}

#[test]
fn pdus_in_the_wrong_state_get_the_specified_answer() {
    for is_mux in [false, true] {
        let (_servers, lb, mut witness) = scene(is_mux);
        // Before a bind.
        for (command, wanted) in [
            (SUBMIT_SM, SUBMIT_SM | RESPONSE),
            (QUERY_SM, QUERY_SM | RESPONSE),
            (DATA_SM, DATA_SM | RESPONSE),
        ] {
            let mut client = Esme::connect(lb.smpp());
            let answer = client.ask(command, &message_body(b"too early"));
            assert_eq!((answer.command, answer.status), (wanted, INVALID_BIND_STATUS));
            client.wait_end();
        }
        // A second bind, and what only servers say.
        let answer = witness.ask(BIND_TRANSCEIVER, &bind_body("witness", "password"));
        assert_eq!(answer.status, ALREADY_BOUND);
        let answer = witness.ask(DELIVER_SM, &message_body(b"the wrong way"));
        assert_eq!((answer.command, answer.status), (DELIVER_SM | RESPONSE, INVALID_BIND_STATUS));
        // A receiver may not submit.
        let mut receiver = Esme::connect(lb.smpp());
        assert_eq!(receiver.ask(BIND_RECEIVER, &bind_body("other", "password")).status, OK);
        assert_eq!(receiver.submit().status, INVALID_BIND_STATUS);
        assert_eq!(receiver.ask(ENQUIRE_LINK, b"").status, OK);
        receiver.leave();
        assert_eq!(witness.submit().status, OK);
        witness.leave();
        lb.wait_no_smpp();
    }
}

#[test]
fn a_flood_of_binds_leaves_nothing_behind() {
    for is_mux in [false, true] {
        let (servers, lb, mut witness) = scene(is_mux);
        // On one connection: one is answered, the others are too many.
        let mut client = Esme::connect(lb.smpp());
        let bind = |sequence| Pdu::new(BIND_TRANSCEIVER, sequence, bind_body("other", "password"));
        let flood: Vec<u8> = (1..=200).flat_map(|it| bind(it).to_bytes()).collect();
        client.send_bytes(&flood);
        let mut bound = 0;
        for sequence in 1..=200 {
            match client.answer_to(sequence).status {
                OK => bound += 1,
                status => assert!(matches!(status, ALREADY_BOUND | INVALID_BIND_STATUS)),
            }
        }
        assert_eq!(bound, 1);
        client.close();
        // On connections of their own, that hang up at once.
        for _ in 0..300 {
            let mut client = Esme::connect(lb.smpp());
            client.send(&bind(1));
            client.close();
        }
        servers[0].wait_open(1);
        wait_for("one session", || (lb.smpp_metric("sessions") == 1).then_some(()));
        assert_eq!(witness.submit().status, OK);
        witness.leave();
        lb.wait_no_smpp();
    }
}

#[test]
fn connections_beyond_the_limit_are_refused() {
    let servers = Smsc::several::<1>();
    let lb = Setup::smpp(&servers).set("connectionsMax", "8").start();
    let mut first = Esme::bound(lb.smpp());
    let mut others: Vec<Esme> = (0..40).map(|_| Esme::connect(lb.smpp())).collect();
    let refused = wait_for("refusals", || {
        others.iter_mut().for_each(Esme::poll);
        let refused = others.iter().filter(|it| it.has_ended()).count();
        (refused >= 30).then_some(refused)
    });
    assert!(refused <= 40);
    assert_eq!(first.submit().status, OK);
    others.iter_mut().for_each(Esme::close);
    wait_for("room", || (lb.smpp_metric("sessions") == 1).then_some(()));
    let mut late = Esme::bound(lb.smpp());
    assert_eq!(late.submit().status, OK);
}

#[test]
fn connections_of_one_source_are_limited_whichever_shard_has_them() {
    let servers = Smsc::several::<1>();
    let lb = Setup::smpp(&servers).set("shards", "4").set("smppSourceConnectionsMax", "3").start();
    let mut held: Vec<Esme> = (0..3).map(|_| Esme::bound(lb.smpp())).collect();
    for _ in 0..4 {
        Esme::connect(lb.smpp()).wait_end();
    }
    let refused = "dropped_total{reason=\"source_connections\"}";
    wait_for("refusals", || (lb.smpp_metric(refused) == 4).then_some(()));
    lb.wait_log("refused reason=source_connections at=SMPP source=127.0.0.1");
    assert!(held.iter_mut().all(|it| it.submit().status == OK));
    held.pop().unwrap().leave();
    wait_for("room", || (lb.smpp_metric("sessions") == 2).then_some(()));
    assert_eq!(Esme::bound(lb.smpp()).submit().status, OK);
}

#[test]
fn a_client_that_never_reads_stops_its_own_server_only_until_it_is_given_up() {
    let servers = Smsc::several::<1>();
    let lb = Setup::smpp(&servers)
        .set("smppSessionWindow", "60000")
        .set("timeoutEnquire", "500")
        .set("timeoutConnectionCheckClientSide", "4000")
        .start();
    let mut witness = Esme::connect(lb.smpp()).bind("witness", "password");
    let client = Esme::connect(lb.smpp()).bind("other", "password");
    let before = lb.resident_kib();
    let at = *servers[0].bound().last().unwrap();
    servers[0].replies(move |it, _| if it == at { Reply::Nothing } else { Reply::Ok });
    // More than sockets and queues hold: 60 MB of messages that it does not take.
    let pdu = Pdu::new(DATA_SM, 1, vec![b'x'; 60_000]).to_bytes();
    let (mut to, mut written) = (servers[0].socket(at), 0);
    let mut rest = pdu.as_slice();
    let mut last = Instant::now();
    // Nothing is taken for a while: nothing is read there any more.
    while written < 1_000 && last.elapsed() < Duration::from_secs(1) {
        match to.write(rest) {
            Ok(count) => {
                (rest, last) = (&rest[count..], Instant::now());
                if rest.is_empty() {
                    (rest, written) = (pdu.as_slice(), written + 1);
                }
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
                witness.poll();
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
    assert!(written < 1_000, "the server feels it");
    assert_eq!(witness.submit().status, OK, "and nobody else");
    let grown = lb.resident_kib().saturating_sub(before);
    // Memory comes in large pages.
    assert!(grown < 16 * 1024, "{grown} KiB for who does not read");
    wait_for("the end of who does not answer", || {
        witness.poll();
        (lb.smpp_metric("sessions") == 1 && servers[0].open() == 1).then_some(())
    });
    assert_eq!(lb.smpp_metric("dropped_total{reason=\"silent\"}"), 1);
    assert_eq!(witness.submit().status, OK);
    drop(client);
}

#[test]
fn who_only_says_that_it_is_done_still_gets_its_answers() {
    for is_mux in [false, true] {
        let (servers, lb, mut witness) = scene(is_mux);
        let held = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let hold = held.clone();
        servers[0].replies(move |at, it| {
            if it.command == SUBMIT_SM && it.body.ends_with(b"hold") {
                hold.lock().unwrap().push((at, it.answer(OK, b"\0")));
                return Reply::Nothing;
            }
            Reply::Ok
        });
        let mut client = Esme::connect(lb.smpp()).bind("other", "password");
        let asked: Vec<u32> =
            (0..20).map(|_| client.request(SUBMIT_SM, &message_body(b"hold"))).collect();
        client.socket().shutdown(Shutdown::Write).unwrap();
        servers[0].wait_count(SUBMIT_SM, 20);
        for (at, answer) in held.lock().unwrap().drain(..) {
            servers[0].send(at, &answer);
        }
        for sequence in asked {
            assert_eq!(client.answer_to(sequence).status, OK, "{is_mux}");
        }
        client.wait_end();
        assert_eq!(witness.submit().status, OK);
        witness.leave();
        lb.wait_no_smpp();
    }
}

#[test]
fn an_answer_to_the_bind_that_is_cut_by_a_close_ends_nothing_else() {
    let servers = Smsc::several::<2>();
    // The first server accepts connections and closes them at once.
    let rude = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = rude.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut socket in rude.incoming().map_while(Result::ok) {
            let _ = socket.read(&mut [0; 8]);
        }
    });
    let list = format!("{address},{},{}", servers[0].address, servers[1].address);
    let lb = Setup::smpp(&[]).set("remoteServers", &list).start();
    for count in 1..=2 {
        let mut client = Esme::bound(lb.smpp());
        assert_eq!(client.submit().status, OK, "{count}");
    }
}

#[test]
fn a_full_window_stops_the_reading_or_is_told() {
    let (session, provider) = ("smppSessionWindow", "smppProviderWindow");
    for (word, is_mux, key, other) in [
        ("stop", false, session, provider),
        ("throttle", false, session, provider),
        ("stop", true, session, provider),
        ("throttle", true, session, provider),
        ("stop", false, provider, session),
        ("throttle", true, provider, session),
    ] {
        let servers = Smsc::several::<1>();
        servers[0].answers(SUBMIT_SM, Reply::Nothing);
        let lb = Setup::smpp(&servers)
            .set("muxMode", &is_mux.to_string())
            .set(key, "5")
            .set(other, "50")
            .set("smppWindowFull", word)
            .start();
        let mut client = Esme::bound(lb.smpp());
        let body = message_body(b"Hello world!");
        let asked: Vec<u32> = (0..8).map(|_| client.request(SUBMIT_SM, &body)).collect();
        servers[0].wait_count(SUBMIT_SM, 5);
        if word == "throttle" {
            for sequence in &asked[5..] {
                assert_eq!(client.answer_to(*sequence).status, THROTTLED);
            }
            assert_eq!(lb.smpp_metric("dropped_total{reason=\"throttled\"}"), 3);
        }
        // What is held passes once there is room, and in order.
        let seen = servers[0].seen().into_iter().filter(|it| it.pdu.command == SUBMIT_SM);
        let seen: Vec<_> = seen.collect();
        assert_eq!(seen.len(), 5, "{word} {is_mux}: the window");
        servers[0].replies(|_, _| Reply::Ok);
        seen.iter().for_each(|it| servers[0].send(it.connection, &it.pdu.answer(OK, b"\0")));
        let passed = if word == "stop" { 8 } else { 5 };
        for sequence in &asked[..passed] {
            assert_eq!(client.answer_to(*sequence).status, OK, "{word} {is_mux}");
        }
        assert_eq!(servers[0].count(SUBMIT_SM), passed);
        assert_eq!(client.submit().status, OK);
    }
}

#[test]
fn a_servers_window_is_for_all_its_sessions_together() {
    for (key, want) in [("smppProviderWindow", 5), ("smppSessionWindow", 10)] {
        let servers = Smsc::several::<1>();
        servers[0].answers(SUBMIT_SM, Reply::Nothing);
        let lb = Setup::smpp_mux(&servers).set(key, "5").set("smppWindowFull", "throttle").start();
        let body = message_body(b"Hello world!");
        let mut clients = [(); 2].map(|()| Esme::bound(lb.smpp()));
        for client in &mut clients {
            for _ in 0..5 {
                client.request(SUBMIT_SM, &body);
            }
        }
        servers[0].wait_count(SUBMIT_SM, want);
        for client in &mut clients {
            assert_eq!(client.ask(ENQUIRE_LINK, b"").status, OK, "everything before was read");
        }
        let refused = lb.smpp_metric("dropped_total{reason=\"throttled\"}");
        let counts = (servers[0].count(SUBMIT_SM), refused);
        assert_eq!(counts, (want, 10 - want as u64), "{key}");
    }
}

#[test]
fn a_server_that_is_throttling_is_slowed_and_no_other() {
    for congestion in [false, true] {
        let servers = Smsc::several::<2>();
        let busy = move |_: usize, it: &Pdu| match it.command {
            SUBMIT_SM if congestion => Reply::Body(b"\0\x04\x28\x00\x01\x5f".to_vec()),
            SUBMIT_SM => Reply::Status(THROTTLED),
            _ => Reply::Ok,
        };
        servers[0].replies(busy);
        let lb = Setup::smpp_mux(&servers).start();
        let mut client = Esme::bound(lb.smpp());
        servers.iter().for_each(|it| lb.wait_bound(it, 1));
        let body = message_body(b"Hello world!");
        (0..20).for_each(|_| drop(client.submit()));
        // From now on the busy one has one request at a time, and does not answer it.
        servers[0].answers(SUBMIT_SM, Reply::Nothing);
        let before = servers.each_ref().map(|it| it.count(SUBMIT_SM));
        assert_eq!(before.iter().sum::<usize>(), 20);
        // It rests longer each time: seven requests would take it more than six seconds.
        assert!((1..=6).contains(&before[0]), "{before:?}");
        let asked: Vec<u32> = (0..100).map(|_| client.request(SUBMIT_SM, &body)).collect();
        servers[1].wait_count(SUBMIT_SM, before[1] + 98);
        let held = servers[0].count(SUBMIT_SM) - before[0];
        assert!(held <= 2, "{held} at the one that is busy");
        let answered = asked.len() - held;
        let responses = SUBMIT_SM | RESPONSE;
        wait_for("the other's answers", || {
            client.poll();
            (client.count(responses) == 20 + answered as u64).then_some(())
        });
    }
}
