//! Connections: how they are cut into messages, what ends them, and how many there may be.

use super::*;

#[test]
fn a_stream_is_cut_into_messages_wherever_the_network_cuts_it() {
    for seat in seats() {
        let rig = rig(1, seat, "127.0.0.1:0", TUNING);
        let long = "y".repeat(40_000);
        let bodies = ["one", "", long.as_str(), "two"];
        let mut all = b"\r\n\r\n".to_vec();
        bodies.iter().for_each(|it| all.extend(sip(it)));
        let mut want = b"\r\n".to_vec();
        bodies.iter().for_each(|it| want.extend(sip(it)));
        for piece in [1, 7, 1_000, 30_000, all.len()] {
            let mut stream = rig.tcp();
            stream.set_nodelay(true).unwrap();
            let mut writer = stream.try_clone().unwrap();
            let pieces = all.clone();
            let thread = std::thread::spawn(move || {
                // Byte by byte only where it can hurt: the long body comes in larger pieces.
                let (head, tail) = pieces.split_at(200);
                head.chunks(piece).for_each(|it| writer.write_all(it).unwrap());
                tail.chunks(piece.max(500)).for_each(|it| writer.write_all(it).unwrap());
            });
            let mut got = vec![0; want.len()];
            stream.read_exact(&mut got).unwrap();
            assert!(got == want, "{seat:?} {piece}");
            thread.join().unwrap();
        }
        rig.stop();
    }
}

#[test]
fn garbage_ends_its_connection_and_no_other() {
    let rig = rig(1, Seat::Thread, "127.0.0.1:0", TUNING);
    let (mut bad, mut good) = (rig.tcp(), rig.tcp());
    good.write_all(&sip("half")[..20]).unwrap();
    bad.write_all(b"\x16\x03\x01\x02\x00").unwrap();
    let mut rest = Vec::new();
    bad.read_to_end(&mut rest).unwrap();
    good.write_all(&sip("half")[20..]).unwrap();
    let mut got = vec![0; sip("half").len()];
    good.read_exact(&mut got).unwrap();
    assert_eq!(got, sip("half"));
    rig.stop();
}

#[test]
fn a_client_on_tcp_that_never_reads_is_closed_and_others_are_served() {
    let rig = rig(1, Seat::Thread, "127.0.0.1:0", TUNING);
    for (round, body) in (1..).zip(["x".repeat(30_000), String::new()]) {
        // Echoes fill its queue, and so do answers to its pings.
        let said = if body.is_empty() { b"\r\n\r\n".repeat(10_000) } else { sip(&body) };
        let mut slow = rig.tcp();
        let closed = || rig.statistics(0).figures.streams.slow_closed == round;
        while !closed() && slow.write_all(&said).is_ok() {}
        assert!(closed());
        let mut good = rig.tcp();
        good.write_all(&sip("good")).unwrap();
        assert_eq!(read_some(&mut good), sip("good"));
    }
    assert_eq!(rig.statistics(0).counters.drops[0], DropReason::SlowPeer);
    rig.stop();
}

#[test]
fn silent_connections_end_and_too_many_are_refused() {
    let tuning = Tuning { stream_idle: Duration::from_secs(2), connections_max: 2, ..TUNING };
    let rig = rig(1, Seat::Thread, "127.0.0.1:0", tuning);
    let start = Instant::now();
    let mut streams = [rig.tcp(), rig.tcp()];
    rig.wait(0, |it| it.figures.connections >= 2);
    assert_eq!(rig.tcp().read(&mut [0; 1]).unwrap_or(0), 0, "closed at once");
    assert_eq!(rig.statistics(0).figures.refused_connections, 1);
    for stream in &mut streams {
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    }
    assert!(start.elapsed() >= tuning.stream_idle / 2, "{:?}", start.elapsed());
    drop(streams); // they have read that it is over: nobody waits for them any longer
    rig.wait(0, |it| it.figures.connections == 0);
    rig.stop();
}

#[test]
fn clients_that_take_all_connections_leave_the_nodes_theirs() {
    let tuning = Tuning { connections_max: 2, ..TUNING };
    let rig = rig(1, Seat::Thread, "127.0.0.1:0", tuning);
    let there = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = there.local_addr().unwrap();
    rig.publish(vec![node(Transport::Tcp, address, 0)], Routes { from: 1, is_stream: true });
    let streams = [rig.tcp(), rig.tcp()];
    rig.wait(0, |it| it.figures.connections >= 2);
    rig.udp().send(&sip("node 1")).unwrap();
    let mut got = vec![0; sip("node 1").len()];
    there.accept().unwrap().0.read_exact(&mut got).unwrap();
    assert_eq!(got, sip("node 1"));
    drop(streams);
    rig.stop();
}

#[test]
fn a_message_that_trickles_in_for_ever_ends_its_connection() {
    let tuning = Tuning { message_time: Duration::from_millis(200), ..TUNING };
    let rig = rig(1, Seat::Thread, "127.0.0.1:0", tuning);
    let mut stream = rig.tcp();
    stream.write_all(&sip("whole")).unwrap();
    assert_eq!(read_some(&mut stream), sip("whole"));
    stream.write_all(b"OPTIONS sip:x SIP/2.0\r\nX: ").unwrap();
    let start = Instant::now();
    while rig.statistics(0).figures.connections > 0 {
        assert!(start.elapsed() < PATIENCE, "it goes on");
        let _ = stream.write_all(b"x"); // the last one meets a closed connection
    }
    assert_eq!(rig.statistics(0).figures.streams.idle_closed, 1);
    rig.stop();
}

/// Phones that keep their path open by one line end, and peers that write one behind each message.
#[test]
fn a_line_end_is_not_the_beginning_of_a_message() {
    let tuning = Tuning { message_time: Duration::from_millis(200), ..TUNING };
    let rig = rig(1, Seat::Thread, "127.0.0.1:0", tuning);
    let mut streams = [rig.tcp(), rig.tcp(), rig.tcp()];
    let [begun, alone, behind] = &mut streams;
    alone.write_all(b"\r\n").unwrap();
    behind.write_all(&[&sip("whole")[..], b"\r\n"].concat()).unwrap();
    assert_eq!(read_some(behind), sip("whole"));
    begun.write_all(b"\r\nOPTIONS").unwrap();
    assert_eq!(begun.read(&mut [0; 1]).unwrap(), 0, "its time is up, and that of the others was");
    for stream in [alone, behind] {
        stream.write_all(&sip("next")).unwrap();
        assert_eq!(read_some(stream), sip("next"));
    }
    rig.stop();
}

#[test]
fn fragments_that_trickle_in_for_ever_end_their_connection() {
    let tuning = Tuning { message_time: Duration::from_millis(200), ..TUNING };
    let rig = rig(1, Seat::Thread, "127.0.0.1:0", tuning);
    let mut stream = rig.websocket();
    let frame = |first: u8, text: &[u8]| {
        let length = u8::try_from(text.len()).unwrap();
        [&[first, 0x80 | length, 0, 0, 0, 0], text].concat()
    };
    // Whole ones keep it up, in fragments or not.
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(100));
        stream.write_all(&frame(0x01, b"who")).unwrap();
        stream.write_all(&frame(0x80, b"le")).unwrap();
        assert_eq!(read_some(&mut stream), b"\x81\x05whole");
    }
    stream.write_all(&frame(0x01, b"OPTIONS")).unwrap();
    let start = Instant::now();
    while rig.statistics(0).figures.connections > 0 {
        assert!(start.elapsed() < PATIENCE, "it goes on");
        let _ = stream.write_all(&frame(0x00, b"x")); // the last one meets a closed connection
    }
    assert_eq!(rig.statistics(0).figures.streams.idle_closed, 1);
    rig.stop();
}

#[test]
fn a_client_that_closed_its_side_still_gets_its_answers() {
    let rig = rig(1, Seat::Thread, "127.0.0.1:0", TUNING);
    let mut stream = rig.tcp();
    stream.write_all(&sip("whoami")).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let flow = String::from_utf8(read_some(&mut stream)).unwrap();
    let body = format!("flow {flow}");
    rig.udp().send(&sip(&body)).unwrap();
    let mut got = vec![0; sip(&body).len()];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(got, sip(&body));
    rig.stop();
}
