//! WebSocket: which node, the handshake, and bytes both ways until both ends have ended.

use std::time::Duration;

use protocols::sip::Transport;

use super::harness::{OK, World, get, status_of, web_node, web_nodes};
use crate::balance::testing::identify;
use crate::config::load;
use crate::node::Node;
use crate::relay::stream::{Conn, Gone, Secure};

fn handshake(protocol: &str) -> String {
    let offer = if protocol.is_empty() {
        String::new()
    } else {
        format!("Sec-WebSocket-Protocol: {protocol}\r\n")
    };
    format!(
        "GET /ws HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{offer}\r\n"
    )
}

const SWITCHING: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

fn ws_node(number: u16, ws: Option<u16>, wss: Option<u16>) -> Node {
    let mut it = web_node(number, "sslPort=8443");
    it.ports.0[Transport::Ws.index()] = ws;
    it.ports.0[Transport::Wss.index()] = wss;
    identify(&mut it);
    it
}

fn tunnel() -> (World, Conn, Conn) {
    let mut world = World::new("", web_nodes(1));
    let client = world.open();
    let node = world.ask(client, handshake(""));
    world.send(node, SWITCHING);
    world.take(node);
    world.take(client);
    (world, client, node)
}

#[test]
fn sip_goes_to_a_node_with_a_websocket_port_and_the_rest_to_http() {
    let nodes = || vec![ws_node(1, None, None), ws_node(2, Some(5082), Some(5083))];
    let newest = || {
        let text = "<load-balancer-properties><http><httpsPort>2081</httpsPort></http></load-balancer-properties>";
        load("t", text.as_bytes(), &[]).config
    };
    let guide = || load("t", b"httpsPort=2081\n", &[]).config;
    let cases = [
        ("sip", guide(), "chat, SIP", 0, 5082, Secure::No),
        ("none", guide(), "", 0, 8080, Secure::No),
        ("another", guide(), "mqtt", 0, 8080, Secure::No),
        ("sip over TLS", guide(), "sip", 1, 5082, Secure::No),
        ("sip over TLS, encrypted again", newest(), "sip", 1, 5083, Secure::Tls),
        ("another over TLS, encrypted again", newest(), "mqtt", 1, 8443, Secure::Tls),
    ];
    for (name, config, protocol, listener, port, secure) in cases {
        let mut world = World::with(config, nodes());
        for _ in 0..2 {
            let client = world.open_at(listener).unwrap();
            let node = world.ask(client, handshake(protocol));
            assert_eq!(
                (world.address(node).0.port(), world.address(node).1),
                (port, secure),
                "{name}"
            );
            assert_eq!(world.take(node), handshake(protocol), "{name}");
        }
    }
    let mut world = World::new("", vec![ws_node(1, None, None)]);
    let client = world.open();
    world.send(client, handshake("sip"));
    assert_eq!(status_of(&world.take(client)), 503, "no node has the port");
}

#[test]
fn after_the_handshake_bytes_pass_unread() {
    let mut world = World::new("", web_nodes(1));
    let client = world.open();
    let early = [&handshake("")[..], "\u{1}early"].concat();
    let node = world.ask(client, early);
    assert_eq!(world.take(node), handshake(""), "nothing goes before the node agrees");
    world.send(node, [SWITCHING, "first"].concat());
    assert_eq!(world.take(client), [SWITCHING, "first"].concat());
    assert_eq!(world.take(node), "\u{1}early");
    for text in ["GET / HTTP/1.1\r\n\r\n", "\0\r\n\r\n\n", "x"] {
        world.send(client, text);
        assert_eq!(world.take(node), text);
        world.send(node, text);
        assert_eq!(world.take(client), text);
    }
    let counters = world.http.counters();
    assert_eq!((counters.tunnels, counters.tunnels_open), (1, 1));
    assert_eq!((counters.responses(1), counters.all_requests()), (1, 1));
    world.end(client);
    world.end(node);
    let counters = world.http.counters();
    assert_eq!(counters.tunnels_open, 0);
    assert_eq!((counters.tunnel_bytes_to_node, counters.tunnel_bytes_to_client), (31, 30));
    assert_eq!(counters.bytes_to_client, 0, "no content of messages");
}

#[test]
fn either_end_may_end_first_and_the_other_may_go_on() {
    let (mut world, client, node) = tunnel();
    world.end(client);
    assert!(world.wire.sockets[&node].is_ended && !world.is_gone(node));
    world.send(node, "bye");
    assert_eq!(world.take(client), "bye");
    world.end(node);
    assert!(world.is_gone(client) && world.is_gone(node) && !world.is_aborted(client));
    world.assert_empty("client first");

    let (mut world, client, node) = tunnel();
    world.end(node);
    assert!(world.wire.sockets[&client].is_ended);
    world.send(client, "bye");
    assert_eq!(world.take(node), "bye");
    world.end(client);
    assert!(world.is_gone(client) && world.is_gone(node));
    world.assert_empty("node first");
}

#[test]
fn a_reset_is_passed_on() {
    let (mut world, client, node) = tunnel();
    world.gone(node, Gone::Reset);
    assert!(world.is_aborted(client));
    world.assert_empty("node");
    let (mut world, client, node) = tunnel();
    world.gone(client, Gone::Reset);
    assert!(world.is_aborted(node));
    world.assert_empty("client");
}

#[test]
fn tunnels_feel_backpressure_and_end_in_silence() {
    let (mut world, client, node) = tunnel();
    world.wire.queue_bytes_max = Some(100);
    world.send(client, "x".repeat(500));
    assert!(world.is_paused(client) && !world.is_paused(node));
    world.drain(node);
    assert!(!world.is_paused(client));
    world.send(node, "y".repeat(500));
    assert!(world.is_paused(node));
    world.drain(client);
    assert!(!world.is_paused(node));
    world.pass(Duration::from_secs(3_000));
    world.send(client, "ping");
    world.pass(Duration::from_secs(3_599));
    assert!(!world.is_gone(client));
    world.pass(Duration::from_secs(1));
    assert!(world.is_gone(client) && world.is_gone(node));
    world.assert_empty("silence");
}

#[test]
fn a_tunnel_with_one_end_left_may_be_silent_as_long_as_one_with_both() {
    for is_client_first in [true, false] {
        let (mut world, client, node) = tunnel();
        world.end(if is_client_first { client } else { node });
        world.pass(Duration::from_secs(3_599));
        assert!(!world.is_gone(client), "{is_client_first}");
        world.pass(Duration::from_secs(1));
        assert!(world.is_gone(client) && world.is_gone(node), "{is_client_first}");
    }
}

#[test]
fn a_handshake_that_is_refused_is_an_ordinary_answer() {
    let mut world = World::new("", web_nodes(1));
    let client = world.open();
    let node = world.ask(client, handshake(""));
    let refusal = "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno";
    world.send(node, refusal);
    assert_eq!(world.take(client), refusal);
    let again = world.ask(client, get("/"));
    assert_eq!(again, node);
    world.send(again, OK);
    assert_eq!(world.take(client), OK);
}

#[test]
fn a_client_that_ended_before_the_tunnel_was_open_has_ended() {
    let mut world = World::new("", web_nodes(1));
    let client = world.open();
    let node = world.ask(client, handshake(""));
    world.end(client);
    world.send(node, SWITCHING);
    assert!(world.wire.sockets[&node].is_ended, "the node hears it");
    world.send(node, "last words");
    assert!(world.take(client).ends_with("last words"));
    world.end(node);
    assert!(world.is_gone(client) && world.is_gone(node));
}
