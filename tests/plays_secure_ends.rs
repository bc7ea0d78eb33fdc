//! How connections end on TLS and WebSocket: with a last word that is read, by a cable that is pulled, with a
//! node that does not read.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use tests::Transport::{Tls, Ws, Wss};
use tests::{Balancer, Dialog, Node, Setup, tcp, wait_for};

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

#[test] // RFC 5626 §5.3
fn requests_for_a_connection_that_is_gone_hear_430_and_who_came_after_hears_nothing() {
    let lb = Setup::every_transport().set("shards", "2").start();
    let mut nodes = lb.nodes(1);
    nodes[0].transport = Wss;
    let node = &nodes[0];
    let connections = || lb.sum_of("trunkline_shard_connections");
    for round in 0..6 {
        let mut caller = lb.caller_over(Wss, &format!("gone{round}"));
        let invite = caller
            .request("INVITE", "sip:bob@example.com")
            .set("Contact", format!("<sip:c@g{round}.invalid;transport=wss>"));
        caller.send(&invite);
        let got = node.expect_in(invite.call_id(), "INVITE");
        let ok = node.reply(&got, 200, "OK");
        caller.expect("200 INVITE");
        let before = connections();
        caller.close();
        wait_for("its end", || (connections() < before).then_some(()));
        // Some of them get its number, on the same shard.
        let newcomers: Vec<_> =
            (0..4).map(|it| lb.caller_over(Wss, &format!("new{round}x{it}"))).collect();
        for newcomer in &newcomers {
            let request = newcomer.request("OPTIONS", "sip:bob@example.com");
            newcomer.send(&request);
            let got = node.expect_in(request.call_id(), "OPTIONS");
            node.reply(&got, 200, "OK");
            newcomer.expect("200 OPTIONS");
        }
        let mut theirs = Dialog::of_callee(node, &got, &ok);
        node.send(&theirs.request("BYE"));
        node.expect_in(invite.call_id(), "430 BYE");
        for newcomer in newcomers {
            assert_eq!(newcomer.record().len(), 1, "{:?}", newcomer.record());
        }
    }
}
