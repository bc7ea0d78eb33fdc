//! What shards have to do with each other and with control, and when they rest.

use super::*;

#[test]
fn datagrams_come_back_through_every_seat_in_both_families() {
    for seat in seats() {
        for host in ["127.0.0.1:0", "[::1]:0"] {
            let rig = rig(2, seat, host, TUNING);
            let socket = rig.udp();
            let mut buffer = vec![0; 70_000];
            for length in [1, 600, 2_048, 2_049, 9_000, 65_507] {
                let sent = vec![b'x'; length];
                socket.send(&sent).unwrap();
                let count = socket.recv(&mut buffer).unwrap();
                assert_eq!(buffer[..count], sent, "{seat:?} {host} {length}");
            }
            let all = rig.statistics(0).figures.datagrams + rig.statistics(1).figures.datagrams;
            assert_eq!(all, 6);
            rig.stop();
        }
    }
}

#[test]
fn a_panic_costs_one_message_and_is_counted() {
    let rig = rig(1, Seat::Thread, "127.0.0.1:0", TUNING);
    let (socket, mut buffer) = (rig.udp(), [0; 100]);
    socket.send(b"panic").unwrap();
    socket.send(b"well").unwrap();
    let count = socket.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..count], b"well");
    let statistics = rig.statistics(0);
    assert_eq!(statistics.counters.drops, [DropReason::Panic]);
    assert_eq!(statistics.residence.len(), 2);
    rig.stop();
}

#[test]
fn what_does_not_fit_in_another_shards_queue_is_answered() {
    let mut it = Still::new(2, Vec::new(), Routes::default());
    let (caller, mut buffer) = (it.caller(), [0; 100]);
    let mut sent = 0;
    let answer = loop {
        assert!(sent < 100_000, "the queue has no end");
        caller.send(&sip("flow 1 0 0")).unwrap();
        sent += 1;
        it.shard.turn(0);
        if let Ok(count) = caller.recv(&mut buffer) {
            break &buffer[..count];
        }
    };
    assert_eq!(answer, b"503");
    assert_eq!(it.shard.figures().hops, sent - 1);
}

#[test]
fn a_message_for_another_shards_connection_takes_one_hop() {
    for seat in seats() {
        let rig = rig(2, seat, "127.0.0.1:0", TUNING);
        let mut stream = rig.tcp();
        stream.write_all(&sip("whoami")).unwrap();
        let flow = String::from_utf8(read_some(&mut stream)).unwrap();
        let owner: u8 = flow.split(' ').next().unwrap().parse().unwrap();
        let body = format!("flow {flow}");
        let mut hops = 0;
        // The kernel hashes sources over shards: some of these meet the other one.
        for _ in 0..32 {
            rig.udp().send(&sip(&body)).unwrap();
            let mut got = vec![0; sip(&body).len()];
            stream.read_exact(&mut got).unwrap();
            assert_eq!(got, sip(&body), "{seat:?}");
            hops = rig.statistics(1 - owner).figures.hops;
        }
        assert!(hops > 0, "{seat:?}");
        assert_eq!(rig.statistics(owner).figures.hops, 0);
        // Gone means gone: the caller is told.
        let at_once = Some(Duration::ZERO); // a reset, or the shard keeps it for late answers
        socket2::SockRef::from(&stream).set_linger(at_once).unwrap();
        drop(stream);
        rig.wait(owner, |it| it.figures.connections == 0);
        let socket = rig.udp();
        socket.send(&sip(&body)).unwrap();
        let mut answer = [0; 100];
        let count = socket.recv(&mut answer).unwrap();
        assert_eq!(&answer[..count], b"503");
        rig.stop();
    }
}

#[test]
fn a_message_waits_for_its_name_and_control_is_asked_once() {
    let rig = rig(1, Seat::Thread, "127.0.0.1:0", TUNING);
    let carrier = UdpSocket::bind("127.0.0.1:0").unwrap();
    carrier.set_read_timeout(Some(PATIENCE)).unwrap();
    let socket = rig.udp();
    socket.send(b"name 1").unwrap();
    socket.send(b"name 2").unwrap();
    let Notice::Resolve { shard: 0, name } = rig.notice() else { panic!("not asked") };
    rig.wait(0, |it| it.figures.parked >= 2);
    assert!(rig.body.inbox.notices.is_empty(), "asked twice");
    let answer = Found { address: carrier.local_addr().unwrap(), meanwhile: None };
    assert!(rig.body.post.send(0, Mail::Resolved { name, answer }).is_ok());
    let mut buffer = [0; 100];
    for want in [b"name 1", b"name 2"] {
        let count = carrier.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..count], want);
    }
    assert_eq!(rig.statistics(0).figures.parked, 0);
    rig.stop();
}

#[test]
fn whoever_finds_no_room_to_wait_for_a_name_hears_so() {
    let rig = rig(1, Seat::Thread, "127.0.0.1:0", TUNING);
    let (socket, mut buffer) = (rig.udp(), [0; 100]);
    for _ in 0..256 {
        socket.send(b"name").unwrap();
        rig.statistics(0); // that it is not one of many in the socket's buffer
    }
    rig.wait(0, |it| it.figures.parked == 256);
    socket.send(b"name of another").unwrap();
    let count = socket.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..count], b"503");
    let statistics = rig.statistics(0);
    assert_eq!(statistics.figures.parked, 256);
    assert_eq!(statistics.counters.drops, [DropReason::Unresolved]);
    rig.stop();
}

/// Both come while the shard reads its mail: it has looked at the table already.
#[test]
fn calls_switch_over_in_the_table_that_was_published_before() {
    let rig = rig(1, Seat::Thread, "127.0.0.1:0", TUNING);
    let (published, post) = (Arc::clone(&rig.body.published), rig.body.post.clone());
    let meanwhile: Box<dyn FnOnce() + Send> = Box::new(move || {
        publish(&published, Vec::new(), Routes::default());
        assert!(post.send(0, Mail::SwitchOver { from: NodeKey(1), to: NodeKey(2) }).is_ok());
    });
    rig.publish(Vec::new(), Routes::default());
    let name = "carrier.example".to_owned();
    let answer = Found { address: rig.listeners[0].address, meanwhile: Some(meanwhile) };
    assert!(rig.body.post.send(0, Mail::Resolved { name, answer }).is_ok());
    rig.wait(0, |it| !it.counters.switched.is_empty());
    assert_eq!(rig.statistics(0).counters.switched, [2]);
    rig.stop();
}

#[test]
fn a_stopping_shard_serves_everything_until_the_end_is_near_and_then_accepts_no_more() {
    let mut rig = rig(1, Seat::Thread, "127.0.0.1:0", TUNING);
    let stop_in = |time: Duration| {
        let view = rig.body.published.current();
        rig.body.published.publish(Arc::new(View {
            snapshot: Arc::clone(&view.snapshot),
            settings: Arc::clone(&view.settings),
            tuning: view.tuning,
            security: None,
            stopping: Some(rig.clock.now() + time),
        }));
    };
    stop_in(Duration::from_secs(3_600));
    let mut stream = rig.tcp();
    stream.write_all(&sip("still")).unwrap();
    assert_eq!(read_some(&mut stream), sip("still"));
    stop_in(WIND_UP);
    let start = Instant::now();
    while TcpStream::connect(rig.listeners[1].address).is_ok() {
        assert!(start.elapsed() < PATIENCE, "it still listens");
    }
    stream.write_all(&sip("last")).unwrap();
    assert_eq!(read_some(&mut stream), sip("last"));
    let (socket, mut buffer) = (rig.udp(), [0; 100]);
    socket.send(b"still").unwrap();
    assert_eq!(socket.recv(&mut buffer).unwrap(), 5);
    assert!(matches!(rig.notice(), Notice::Ended { shard: 0, is_failure: false }));
    assert_eq!(rig.body.join(), 0);
}

#[test]
fn an_idle_shard_sleeps() {
    for seat in seats() {
        let tuning = Tuning { coalesce: Duration::from_micros(200), ..TUNING };
        let rig = rig(1, seat, "127.0.0.1:0", tuning);
        let (socket, mut buffer) = (rig.udp(), [0; 100]);
        socket.send(b"warm").unwrap();
        socket.recv(&mut buffer).unwrap();
        let _stream = rig.tcp();
        std::thread::sleep(Duration::from_millis(400)); // the report timer of the traffic above
        let before = rig.statistics(0).figures.turns;
        std::thread::sleep(Duration::from_millis(500));
        let turns = rig.statistics(0).figures.turns - before;
        assert!(turns <= 8, "{seat:?}: {turns} turns in an idle half second");
        rig.stop();
    }
}

#[test]
fn waiting_for_a_batch_finds_several_and_never_delays_the_first() {
    let bound = Duration::from_millis(20);
    let tuning = Tuning { coalesce: bound, ..TUNING };
    let rig = rig(1, Seat::Thread, "127.0.0.1:0", tuning);
    let (socket, mut buffer) = (rig.udp(), [0; 100]);
    let sender = socket.try_clone().unwrap();
    // Fewer on their way than a receive buffer holds, whoever of the three is held up.
    let (begun, done) = std::sync::mpsc::sync_channel(100);
    let thread = std::thread::spawn(move || {
        for _ in 0..2_000 {
            begun.send(()).unwrap();
            sender.send(b"burst").unwrap();
            std::thread::sleep(Duration::from_micros(100));
        }
    });
    for _ in 0..2_000 {
        socket.recv(&mut buffer).unwrap();
        done.recv().unwrap();
    }
    thread.join().unwrap();
    let figures = rig.statistics(0).figures;
    assert!(figures.coalesced > 0);
    assert!(figures.batches < 1_000, "{figures:?}: two a batch at least");
    // A single message after a pause does not wait.
    let fastest = (0..5).map(|_| {
        std::thread::sleep(3 * bound);
        let start = Instant::now();
        socket.send(b"one").unwrap();
        socket.recv(&mut buffer).unwrap();
        start.elapsed()
    });
    assert!(fastest.min().unwrap() < bound, "delayed");
    rig.stop();
}
