//! How connections end on TLS and WebSocket: with a last word that is read, by a cable that is pulled, with a
//! node that does not read.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use tests::Transport::{Tls, Ws, Wss};
use tests::{Balancer, Node, PATIENCE, Setup, wait_for};

fn tcp(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// The next call, over each transport.
fn still_serves(lb: &Balancer, nodes: &[Node]) {
    for transport in [Tls, Ws, Wss] {
        let caller = lb.caller_over(transport, "good");
        let mut dialog = caller.call("sip:bob@example.com");
        caller.exchange(&mut dialog, "BYE");
        assert_eq!(tests::who_got(nodes, &dialog.call_id, "BYE").len(), 1);
    }
}

/// What a client reads that wrote on and on until its peer had noticed what was wrong with it.
fn last_words(stream: &mut TcpStream, lb: &Balancer, counted: (&str, u64)) -> Vec<u8> {
    stream.write_all(&[0; 100_000]).unwrap();
    lb.wait_event(counted.0, counted.1);
    for _ in 0..20 {
        stream.write_all(&[0; 10_000]).unwrap();
    }
    stream.shutdown(Shutdown::Write).unwrap();
    let mut words = Vec::new();
    stream.read_to_end(&mut words).expect("an end, and no reset that overtakes it");
    words
}

#[test]
fn who_is_still_writing_reads_why_it_is_left() {
    let lb = Setup::every_transport().start();
    let nodes = lb.answering_nodes(1);
    for round in 1..=3 {
        let mut stream = lb.upgraded();
        stream.write_all(b"\x81\x05hello").unwrap();
        let words = last_words(&mut stream, &lb, ("websocket_broken", round));
        assert_eq!(words, b"\x88\x02\x03\xea", "1002 and nothing else");

        let mut stream = tcp(lb.external_of(Tls));
        stream.write_all(b"GET / HTTP/1.1\r\n").unwrap();
        let words = last_words(&mut stream, &lb, ("tls_failed", round));
        assert_eq!(words.first(), Some(&21), "an alert: {words:?}");

        let mut stream = tcp(lb.external);
        stream.write_all(b"OPTIONS sip:a@b SIP/2.0\r\nContent-Length: x\r\n\r\n").unwrap();
        stream.write_all(&[b'x'; 100_000]).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut words = Vec::new();
        stream.read_to_end(&mut words).expect("no reset");
    }
    assert_eq!(lb.event("tls_failed"), 3, "each once");
    still_serves(&lb, &nodes);
}

#[test]
fn whoever_does_not_hear_that_it_is_left_is_cut_off() {
    let lb = Setup::every_transport().start();
    let nodes = lb.answering_nodes(1);
    let connections = || lb.sum_of("trunkline_shard_connections");
    let before = connections();
    // One says nothing more and closes nothing, one writes for ever.
    let mut silent = lb.upgraded();
    silent.write_all(b"\x81\x05hello").unwrap();
    let mut loud = lb.upgraded();
    loud.write_all(b"\x81\x05hello").unwrap();
    while loud.write_all(&[0; 65_536]).is_ok() {}
    wait_for("both to be gone", || (connections() == before).then_some(()));
    assert_eq!(lb.event("websocket_broken"), 2);
    drop(silent);
    still_serves(&lb, &nodes);
}
