//! Nodes that announce TLS or WebSocket and do not speak it, speak it badly, or have no port of it: their calls
//! reach the others, once (`sip.md` 2.10, 5.1).

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tests::Transport::{Tls, Ws, Wss};
use tests::{Balancer, Node, Setup, Transport, who_got};
use tungstenite::handshake::derive_accept_key;

/// Somebody who accepts connections and is no good node. Counts them.
fn listen(behave: fn(&mut TcpStream)) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (at, count) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let accepted = count.clone();
    std::thread::spawn(move || {
        // Until the end of the process.
        for stream in listener.incoming().map_while(Result::ok) {
            accepted.fetch_add(1, Ordering::Relaxed);
            std::thread::spawn(move || {
                let mut stream = stream;
                behave(&mut stream);
                let _ = stream.read_to_end(&mut Vec::new());
            });
        }
    });
    (at, count)
}

/// The key of the WebSocket handshake that comes in.
fn key(stream: &mut TcpStream) -> String {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let line = head.lines().find_map(|it| it.strip_prefix("Sec-WebSocket-Key: "));
    line.unwrap_or_else(|| panic!("no key in {head}")).to_owned()
}

fn switch(stream: &mut TcpStream, accept: &str, rest: &[u8]) {
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n"
    );
    let _ = stream.write_all(&[head.as_bytes(), rest].concat());
}

/// Calls go to the other node, each once, and nobody connects to the bad one again while it is suspect.
fn calls_reach_the_other(transport: Transport, behave: fn(&mut TcpStream), case: &str) {
    let (at, count) = listen(behave);
    let lb = Setup::every_transport()
        .set("gov.nist.javax.sip.SSL_HANDSHAKE_TIMEOUT", "1")
        .set("suspectMillis", "60000")
        .set("nodeTimeout", "60000")
        .start();
    let property = format!("{}Port", transport.lower());
    let bad = lb.announced(Node::bind("bad").property(&property, &at.port().to_string()));
    let good = lb.announced(Node::bind("good"));
    lb.wait_nodes(2);
    good.answers_calls();
    let nodes = [bad, good];
    let caller = lb.caller_over(transport, "alice");
    for _ in 0..4 {
        let mut dialog = caller.call("sip:bob@example.com");
        caller.exchange(&mut dialog, "BYE");
        assert_eq!(who_got(&nodes, &dialog.call_id, "INVITE"), [1], "{case}");
        let of_call = |it: &&tests::Received| it.is("INVITE") && it.call_id() == dialog.call_id;
        assert_eq!(nodes[1].record().iter().filter(of_call).count(), 1, "{case}");
    }
    assert_eq!(count.load(Ordering::Relaxed), 1, "{case}: it is suspect");
}

#[test]
fn a_node_that_refuses_or_breaks_websocket_is_left_for_one_that_speaks_it() {
    type Behaviour = fn(&mut TcpStream);
    let cases: [(&str, Behaviour); 5] = [
        ("400", |it| {
            key(it);
            let _ = it.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        }),
        ("somebody else's key", |it| {
            key(it);
            let accept = derive_accept_key(b"dGhlIHNhbXBsZSBub25jZQ==");
            switch(it, &accept, b"Sec-WebSocket-Protocol: sip\r\n\r\n");
        }),
        ("no sip", |it| {
            let accept = derive_accept_key(key(it).as_bytes());
            switch(it, &accept, b"\r\n");
        }),
        ("masked frames", |it| {
            let accept = derive_accept_key(key(it).as_bytes());
            switch(it, &accept, b"Sec-WebSocket-Protocol: sip\r\n\r\n\x89\x80abcd");
        }),
        ("silence", |_| {}),
    ];
    for (case, behave) in cases {
        calls_reach_the_other(Ws, behave, case);
    }
}

#[test]
fn a_node_that_stalls_or_refuses_tls_is_left_for_one_that_speaks_it() {
    for transport in [Tls, Wss] {
        calls_reach_the_other(transport, |_| {}, "silence");
        calls_reach_the_other(
            transport,
            |it| {
                let _ = it.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
            },
            "plain text",
        );
    }
}

#[test]
fn calls_go_to_nodes_that_have_a_port_for_them_and_are_refused_where_none_has() {
    let lb = Setup::every_transport().start();
    let nodes = [Node::bind("deaf").property("tlsPort", ""), Node::bind("hears")];
    let mut nodes = nodes.map(|it| lb.announced(it));
    lb.wait_nodes(2);
    nodes.iter().for_each(|it| it.answers_calls());
    let caller = lb.caller_over(Tls, "alice");
    for _ in 0..4 {
        let mut dialog = caller.call("sip:bob@example.com");
        caller.exchange(&mut dialog, "BYE");
        assert_eq!(who_got(&nodes, &dialog.call_id, "INVITE"), [1]);
    }
    nodes[1].die();
    lb.wait_nodes(1);
    assert_eq!(refusal(&lb), "SIP/2.0 500 No nodes available");
}

fn refusal(lb: &Balancer) -> String {
    let caller = lb.caller_over(Tls, "bob");
    caller.send(&caller.request("INVITE", "sip:bob@example.com"));
    caller.expect_where("an answer", |it| it.status() >= 200).start.clone()
}
