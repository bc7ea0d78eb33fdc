//! Nodes that refuse, stand still or go: every message reaches one of them, or its sender hears of it.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::*;

#[test]
fn the_very_datagram_that_a_node_refused_reaches_another_and_the_node_is_reported() {
    for host in ["127.0.0.1:0", "[::1]:0"] {
        let rig = rig(1, Seat::Thread, host, TUNING);
        let alive = UdpSocket::bind(host).unwrap();
        alive.set_read_timeout(Some(PATIENCE)).unwrap();
        let dead = SocketAddr::new(alive.local_addr().unwrap().ip(), ports::free());
        let nodes = vec![
            node(Transport::Udp, dead, 0),
            node(Transport::Udp, alive.local_addr().unwrap(), 1),
        ];
        let key = nodes[0].key;
        rig.publish(nodes, Routes::default());
        let (socket, mut buffer) = (rig.udp(), [0; 2_000]);
        socket.send(b"trying node 1").unwrap();
        assert_eq!(socket.recv(&mut buffer).unwrap(), 4);
        assert_eq!(&buffer[..4], b"100 ");
        let count = alive.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..count], b"trying node 1");
        assert!(
            matches!(rig.notice(), Notice::Report(Report::Refused { node, .. }) if node == key)
        );
        // From now on the shard avoids it by itself.
        socket.send(b"node 2").unwrap();
        let count = alive.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..count], b"node 2");
        let statistics = rig.statistics(0);
        assert_eq!((statistics.figures.retried, statistics.counters.drops.len()), (1, 0));
        rig.stop();
    }
}

#[test]
fn when_every_node_refuses_the_caller_hears_of_it() {
    for is_stream in [false, true] {
        let rig = rig(1, Seat::Thread, "127.0.0.1:0", TUNING);
        let transport = if is_stream { Transport::Tcp } else { Transport::Udp };
        // More than are tried for one message.
        let nodes = (0..6).map(|version| {
            node(transport, SocketAddr::from(([127, 0, 0, 1], ports::free())), version)
        });
        rig.publish(nodes.collect(), Routes { from: u8::from(is_stream), is_stream });
        let (socket, mut buffer) = (rig.udp(), [0; 100]);
        socket.send(b"node").unwrap();
        let count = socket.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..count], b"503", "stream {is_stream}");
        rig.stop();
    }
}

#[test]
fn the_request_of_the_moment_in_which_a_node_closes_an_idle_connection_goes_by_another() {
    for is_reset in [false, true] {
        let there = TcpListener::bind(("127.0.0.1", ports::free())).unwrap();
        let alone = vec![node(Transport::Tcp, there.local_addr().unwrap(), 0)];
        let mut it = Still::new(1, alone, Routes { from: 1, is_stream: true });
        let close = |stream: TcpStream| {
            let linger = is_reset.then_some(Duration::ZERO);
            socket2::SockRef::from(&stream).set_linger(linger).unwrap();
        };
        let (caller, mut buffer) = (it.caller(), [0; 100]);
        caller.send(b"node 1").unwrap();
        let (first, text) = it.called(&there);
        assert_eq!(text, "node 1");
        // The next turn finds both: the request first, then the end.
        caller.send(b"node 2").unwrap();
        close(first);
        let (second, text) = it.called(&there);
        assert_eq!(text, "node 2", "reset {is_reset}");
        assert!(caller.recv(&mut buffer).is_err(), "answered, too");
        assert_eq!(it.shard.figures().retried, 1);
        // This time it is gone for good.
        caller.send(b"node 3").unwrap();
        drop(there);
        close(second);
        let count = it.until(|| caller.recv(&mut buffer).ok());
        assert_eq!(&buffer[..count], b"503", "reset {is_reset}");
        assert_eq!(it.shard.figures().retried, 3, "once there, and once to find nobody else");
    }
}

#[test]
fn the_request_of_the_moment_in_which_a_node_says_goodbye_on_websocket_goes_by_another() {
    let there = TcpListener::bind("127.0.0.1:0").unwrap();
    let alone = vec![node(Transport::Ws, there.local_addr().unwrap(), 0)];
    let mut it = Still::new(1, alone, Routes { from: 2, is_stream: true });
    let (caller, mut buffer) = (it.caller(), [0; 100]);
    let mut last: Option<TcpStream> = None;
    for request in [b"node 1", b"node 2"] {
        caller.send(request).unwrap();
        if let Some(stream) = &mut last {
            // The next turn finds both: the request first, then the goodbye.
            stream.write_all(b"\x88\0").unwrap();
        }
        let (mut stream, mut head) = it.called(&there);
        while !head.ends_with("\r\n\r\n") {
            let count = it.until(|| stream.read(&mut buffer).ok());
            head.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
        }
        let mut answer = Vec::new();
        handshake::accept(head.as_bytes(), &mut answer);
        stream.write_all(&answer).unwrap();
        let count = it.until(|| stream.read(&mut buffer).ok());
        let (frame, mask) = (&mut buffer[..count], 6);
        let key = frame[2..mask].try_into().unwrap();
        apply_mask(&mut frame[mask..], key);
        assert_eq!(&frame[mask..], request);
        last = Some(stream);
    }
    assert!(caller.recv(&mut buffer).is_err(), "answered, too");
    assert_eq!(it.shard.figures().retried, 1);
}

#[test]
fn requests_share_one_connection_to_a_node_and_move_on_when_it_refuses() {
    let rig = rig(1, Seat::Thread, "127.0.0.1:0", TUNING);
    let dead = SocketAddr::from(([127, 0, 0, 1], ports::free()));
    let alive = TcpListener::bind("127.0.0.1:0").unwrap();
    let nodes =
        vec![node(Transport::Tcp, dead, 0), node(Transport::Tcp, alive.local_addr().unwrap(), 1)];
    let key = nodes[0].key;
    rig.publish(nodes, Routes { from: 1, is_stream: true });
    let socket = rig.udp();
    for body in ["node 1", "node 2", "node 3"] {
        socket.send(&sip(body)).unwrap();
    }
    let (mut at_node, _) = alive.accept().unwrap();
    at_node.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut got = vec![0; sip("node 1").len()];
    let mut seen = Vec::new();
    for _ in 0..3 {
        at_node.read_exact(&mut got).unwrap();
        seen.push(got.clone());
    }
    seen.sort();
    assert_eq!(seen, [sip("node 1"), sip("node 2"), sip("node 3")]);
    assert!(matches!(rig.notice(), Notice::Report(Report::Refused { node, .. }) if node == key));
    // What the node says on that connection is handled like any other message.
    at_node.write_all(&sip("echo")).unwrap();
    let mut got = vec![0; sip("echo").len()];
    at_node.read_exact(&mut got).unwrap();
    assert_eq!(got, sip("echo"));
    // The node restarts: the old connection ends, the next request opens another.
    drop(at_node);
    loop {
        // Until the shard has seen the end, its request goes to a closed connection, like in life.
        socket.send(&sip("node 4")).unwrap();
        if rig.statistics(0).figures.connections == 0 {
            break;
        }
        alive.set_nonblocking(true).unwrap();
        if alive.accept().is_ok() {
            rig.stop();
            return;
        }
    }
    socket.send(&sip("node 5")).unwrap();
    alive.set_nonblocking(false).unwrap();
    assert!(alive.accept().is_ok());
    rig.stop();
}

#[test]
fn a_node_that_stands_still_is_left_and_every_message_reaches_one_node_or_is_answered() {
    let rig = rig(1, Seat::Thread, "127.0.0.1:0", TUNING);
    let listen = || TcpListener::bind("127.0.0.1:0").unwrap();
    let (still, alive) = (listen(), listen());
    let at = |it: &TcpListener, version| node(Transport::Tcp, it.local_addr().unwrap(), version);
    let nodes = vec![at(&still, 0), at(&alive, 1)];
    let key = nodes[0].key;
    rig.publish(nodes.clone(), Routes { from: 1, is_stream: true });
    let (socket, message) = (rig.udp(), sip(&format!("node {}", "x".repeat(30_000))));
    let bytes = Arc::new(AtomicU64::new(0));
    let taken = Arc::clone(&bytes);
    let alive = std::thread::spawn(move || {
        let (mut stream, mut buffer) = (alive.accept().unwrap().0, vec![0; 65_536]);
        while let count @ 1.. = stream.read(&mut buffer).unwrap() {
            taken.fetch_add(count as u64, Relaxed);
        }
    });
    let whole = |bytes: u64| bytes / message.len() as u64;
    socket.set_nonblocking(true).unwrap();
    let answers = || std::iter::from_fn(|| socket.recv(&mut [0; 8]).ok()).count() as u64;
    let (mut sent, mut answered) = (0, 0);
    while rig.statistics(0).figures.streams.slow_closed == 0 {
        socket.send(&message).unwrap();
        sent += 1;
        rig.wait(0, |it| it.counters.handled >= sent);
        answered += answers();
    }
    assert!(matches!(rig.notice(), Notice::Report(Report::Refused { node, .. }) if node == key));
    // Once it is believed again, it is connected to again.
    rig.publish(nodes, Routes { from: 1, is_stream: true });
    socket.send(&sip("node again")).unwrap();
    rig.wait(0, |it| it.figures.connections >= 2);
    let mut first = Vec::new();
    still.accept().unwrap().0.read_to_end(&mut first).unwrap();
    let first = whole(first.len() as u64);
    // Who reads slowly gets nothing more once the shard ends.
    let end = Instant::now() + PATIENCE;
    while first + whole(bytes.load(Relaxed)) + answered < sent && Instant::now() < end {
        std::thread::yield_now();
        answered += answers();
    }
    rig.stop();
    alive.join().unwrap();
    let second = whole(bytes.load(Relaxed));
    let mut again = String::new();
    still.accept().unwrap().0.read_to_string(&mut again).unwrap();
    assert!(again.ends_with("node again"), "{again}");
    assert!(second > 0);
    answered += answers();
    assert_eq!(first + second + answered, sent, "{first} at the one that stood still");
}

#[test]
fn on_the_one_leg_nodes_on_websocket_are_called_and_clients_are_not() {
    for shards in [1, 2] {
        let rig = rig(shards, Seat::Thread, "127.0.0.1:0", TUNING);
        let there = TcpListener::bind("127.0.0.1:0").unwrap();
        socket2::SockRef::from(&there).set_read_timeout(Some(PATIENCE)).unwrap();
        let to = there.local_addr().unwrap();
        let (socket, mut buffer) = (rig.udp(), [0; 100]);
        rig.publish(Vec::new(), Routes { from: 2, is_stream: true });
        socket.send(format!("peer {to}").as_bytes()).unwrap();
        let count = socket.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..count], b"503", "{shards} shards");
        rig.publish(vec![node(Transport::Ws, to, 0)], Routes { from: 2, is_stream: true });
        socket.send(format!("peer {to}").as_bytes()).unwrap();
        let (mut called, _) = there.accept().unwrap();
        called.set_read_timeout(Some(PATIENCE)).unwrap();
        assert!(read_some(&mut called).starts_with(b"GET "), "{shards} shards");
        rig.stop();
    }
}

#[test]
fn what_a_node_has_no_room_for_is_asked_of_another_or_answered() {
    let rig = rig(1, Seat::Thread, "127.0.0.1:0", TUNING);
    let deaf = TcpListener::bind("127.0.0.1:0").unwrap();
    socket2::SockRef::from(&deaf).set_recv_buffer_size(4_096).unwrap();
    let mut alone = vec![node(Transport::Tcp, deaf.local_addr().unwrap(), 0)];
    rig.publish(alone.clone(), Routes { from: 1, is_stream: true });
    let (socket, mut buffer) = (rig.udp(), [0; 100]);
    socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    let message = format!("node{}", "x".repeat(60_000));
    let mut sent = 0;
    let answer = loop {
        assert!(sent < 10_000, "the queue has no end");
        socket.send(message.as_bytes()).unwrap();
        sent += 1;
        if let Ok(count) = socket.recv(&mut buffer) {
            break buffer[..count].to_vec();
        }
    };
    assert_eq!(answer, b"503");
    let lively = TcpListener::bind("127.0.0.1:0").unwrap();
    socket2::SockRef::from(&lively).set_read_timeout(Some(PATIENCE)).unwrap();
    alone.push(node(Transport::Tcp, lively.local_addr().unwrap(), 1));
    rig.publish(alone, Routes { from: 1, is_stream: true });
    let script = rig.statistics(0);
    assert_eq!(script.counters.drops, []);
    socket.send(message.as_bytes()).unwrap();
    let (mut called, _) = lively.accept().unwrap();
    called.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(read_some(&mut called).starts_with(b"node"));
    rig.stop();
}

/// Anybody can send an ICMP error for an address that he knows: it must quote a request that went there.
#[test]
fn an_error_about_nothing_that_a_node_was_sent_blames_nobody() {
    let left = UdpSocket::bind(("127.0.0.1", ports::free())).unwrap();
    let alive = UdpSocket::bind("127.0.0.1:0").unwrap();
    alive.set_nonblocking(true).unwrap();
    let [dead, other] = [&left, &alive].map(|it| it.local_addr().unwrap());
    let nodes = vec![node(Transport::Udp, dead, 0), node(Transport::Udp, other, 1)];
    let mut still = Still::new(1, nodes, Routes::default());
    // To the node's address, but an answer.
    left.send_to(b"x", still.listeners[0].address).unwrap();
    drop(left);
    while !still.shard.turn(10).is_idle {}
    let notices = still.inbox.notices.clone();
    assert!(notices.is_empty(), "the node is blamed");
    let (caller, mut buffer) = (still.caller(), [0; 100]);
    caller.send(b"node 2").unwrap();
    let count = still.until(|| alive.recv(&mut buffer).ok());
    assert_eq!(&buffer[..count], b"node 2");
    assert!(still.post.send(0, Mail::Statistics { question: 7 }).is_ok());
    let figures = still.until(|| match notices.try_recv().ok()? {
        Notice::Statistics { statistics, .. } => Some(statistics.figures),
        _ => None,
    });
    assert_eq!((figures.sent, figures.retried), (3, 1), "the node was asked, and refused");
}
