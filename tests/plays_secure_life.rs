//! The life of connections on TLS and WebSocket: ten thousand of them while a node restarts, those that fall
//! silent, that never read, that close one side, that are too many. And every generation of configuration
//! files that opens them (`sip.md` 1.1 to 1.4).

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustls::{ClientConnection, StreamOwned};
use tests::Transport::{Tcp, Tls, Udp, Ws, Wss};
use tests::{Balancer, Node, PATIENCE, Peer, Setup, Transport, keys, wait_for, who_got};
use tungstenite::client::IntoClientRequest as _;

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// A client as small as can be, for tests with many. Blocks.
enum Client {
    Bytes(Box<dyn Stream>),
    Frames(Box<tungstenite::WebSocket<Box<dyn Stream>>>),
}

impl Client {
    fn connect(transport: Transport, to: SocketAddr) -> Client {
        let socket = TcpStream::connect(to).unwrap();
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let stream: Box<dyn Stream> = match transport {
            Tls | Wss => {
                let name = "lb.test".try_into().unwrap();
                let connection = ClientConnection::new(Arc::new(keys().client(None)), name);
                Box::new(StreamOwned::new(connection.unwrap(), socket))
            }
            _ => Box::new(socket),
        };
        match transport {
            Ws | Wss => {
                let mut request = format!("ws://{to}/").into_client_request().unwrap();
                request.headers_mut().insert("Sec-WebSocket-Protocol", "sip".parse().unwrap());
                Client::Frames(Box::new(tungstenite::client(request, stream).unwrap().0))
            }
            _ => Client::Bytes(stream),
        }
    }

    fn send(&mut self, message: &[u8]) {
        match self {
            Client::Bytes(stream) => stream.write_all(message).unwrap(),
            Client::Frames(socket) => {
                let text = String::from_utf8(message.to_vec()).unwrap();
                socket.send(tungstenite::Message::text(text)).unwrap();
            }
        }
    }

    /// The first line of the next message; messages here have no bodies.
    fn answer(&mut self) -> String {
        let text = match self {
            Client::Bytes(stream) => {
                let (mut text, mut byte) = (Vec::new(), [0]);
                while !text.ends_with(b"\r\n\r\n") {
                    stream.read_exact(&mut byte).unwrap();
                    text.push(byte[0]);
                }
                String::from_utf8(text).unwrap()
            }
            Client::Frames(socket) => socket.read().unwrap().into_text().unwrap().to_string(),
        };
        text.lines().next().unwrap_or_default().to_owned()
    }

    /// How it was ended: the code of a close frame, where there are frames.
    fn end(&mut self) -> Option<u16> {
        match self {
            Client::Bytes(stream) => {
                let mut rest = Vec::new();
                let _ = stream.read_to_end(&mut rest);
                assert_eq!(rest, b"");
                None
            }
            Client::Frames(socket) => match socket.read().unwrap() {
                tungstenite::Message::Close(close) => close.map(|it| it.code.into()),
                other => panic!("{other:?}"),
            },
        }
    }
}

fn options(peer: &Peer) -> Vec<u8> {
    peer.request("OPTIONS", "sip:bob@example.com").to_bytes()
}

/// Addresses that the balancer has connected from to a node.
fn connections_to(node: &Node) -> HashSet<SocketAddr> {
    node.record().iter().filter(|it| it.link.transport() != Udp).map(|it| it.source).collect()
}

#[test]
fn ten_thousand_clients_do_not_notice_that_a_node_restarts() {
    // This process and the balancer have one descriptor for each.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let shards = 2;
    let lb = Setup::every_transport().set("shards", &shards.to_string()).start();
    let mut nodes = lb.answering_nodes(2);
    let count = 10_000;
    assert!(hard > count as u64 + 500, "only {hard} files may be open");
    let peers = [Ws, Wss, Tls].map(|it| Peer::bind("many").over(it));
    let mut clients: Vec<(usize, Client)> = (0..count)
        .map(|at| {
            // Handshakes of TLS cost this test more than the balancer: half of them on WSS, one in ten on TLS.
            let kind = if at % 2 == 1 { 1 } else { usize::from(at % 10 == 2) * 2 };
            (kind, Client::connect(peers[kind].transport, lb.external_of(peers[kind].transport)))
        })
        .collect();
    wait_for("all connections", || {
        (lb.sum_of("trunkline_shard_connections") >= count as u64).then_some(())
    });
    let everyone_asks = |clients: &mut [(usize, Client)]| {
        for (kind, client) in &mut *clients {
            client.send(&options(&peers[*kind]));
        }
        let answers = clients.iter_mut().map(|(_, client)| client.answer());
        let bad: Vec<String> = answers.filter(|it| it != "SIP/2.0 200 OK").collect();
        assert!(bad.is_empty(), "{} of {count}: {:?}", bad.len(), bad.first());
    };
    everyone_asks(&mut clients);
    for node in &nodes {
        assert!(connections_to(node).len() <= shards * peers.len(), "one for each shard");
    }
    // It goes with all its connections, and everybody asks at once.
    let accepted = lb.sum_of("trunkline_shard_accepted_total");
    nodes[0].die();
    everyone_asks(&mut clients);
    nodes[0].restart();
    nodes[0].answers_calls();
    lb.wait_nodes(2);
    everyone_asks(&mut clients);
    let again = connections_to(&nodes[0]);
    assert!(!again.is_empty() && again.len() <= shards * peers.len(), "no storm: {again:?}");
    assert_eq!(lb.sum_of("trunkline_shard_accepted_total"), accepted, "nobody came again");
    assert_eq!(lb.dropped("connection_gone") + lb.dropped("slow_peer"), 0);
    assert_eq!(lb.dropped("queue_full"), 0);
}

#[test]
fn those_who_are_too_many_are_refused_before_they_cost_a_handshake() {
    for transport in [Tls, Ws, Wss] {
        let lb = Setup::every_transport().set("connectionsMax", "4").start();
        let nodes = lb.nodes(1);
        let mut held: Vec<Client> = Vec::new();
        for _ in 0..3 {
            held.push(Client::connect(transport, lb.external_of(transport)));
        }
        // TLS shakes hands with its first bytes; one place is the node's.
        let peer = Peer::bind("x").over(transport);
        for client in &mut held {
            client.send(&options(&peer));
            let got = nodes[0].expect("OPTIONS");
            nodes[0].reply(&got, 200, "OK");
            assert_eq!(client.answer(), "SIP/2.0 200 OK");
        }
        let handshakes = lb.event("tls_handshake");
        let mut refused = TcpStream::connect(lb.external_of(transport)).unwrap();
        refused.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(refused.read(&mut [0]).unwrap_or(0), 0, "{transport:?}");
        let name = "trunkline_shard_refused_connections_total";
        wait_for("the refusal to be counted", || (lb.sum_of(name) == 1).then_some(()));
        assert_eq!(lb.event("tls_handshake"), handshakes);
        held[0].send(&options(&peer));
        let got = nodes[0].expect("OPTIONS");
        nodes[0].reply(&got, 200, "OK");
        assert_eq!(held[0].answer(), "SIP/2.0 200 OK", "who is in stays");
    }
}

#[test]
fn silent_clients_are_told_and_closed_and_keep_alives_are_no_silence() {
    let lb = Setup::every_transport()
        .set("gov.nist.javax.sip.RELIABLE_CONNECTION_KEEP_ALIVE_TIMEOUT", "5")
        .start();
    for (count, (transport, code)) in (1..).zip([(Tls, None), (Ws, Some(1001)), (Wss, Some(1001))])
    {
        let to = lb.external_of(transport);
        let (mut silent, mut lively) =
            (Client::connect(transport, to), Client::connect(transport, to));
        for client in [&mut silent, &mut lively] {
            client.send(b"\r\n\r\n"); // which also shakes hands
        }
        if let Client::Frames(socket) = &mut silent {
            assert_eq!(socket.read().unwrap().into_text().unwrap(), "\r\n");
        }
        let beats = std::thread::spawn(move || {
            for _ in 0..14 {
                std::thread::sleep(Duration::from_millis(500));
                lively.send(b"\r\n\r\n");
            }
            lively
        });
        if let Client::Bytes(stream) = &mut silent {
            let mut pong = [0; 2];
            stream.read_exact(&mut pong).unwrap();
            assert_eq!(&pong, b"\r\n");
        }
        assert_eq!(silent.end(), code, "{transport:?}");
        lb.wait_event("idle_closed", count);
        beats.join().unwrap();
        assert_eq!(lb.event("idle_closed"), count, "{transport:?}: the lively one stays");
    }
}

#[test]
fn a_client_on_tls_that_closed_its_side_gets_its_answer() {
    let lb = Setup::every_transport().start();
    let nodes = lb.nodes(1);
    let socket = TcpStream::connect(lb.external_of(Tls)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let name = "lb.test".try_into().unwrap();
    let connection = ClientConnection::new(Arc::new(keys().client(None)), name).unwrap();
    let mut stream = StreamOwned::new(connection, socket);
    stream.write_all(&options(&Peer::bind("x").over(Tls))).unwrap();
    let got = nodes[0].expect("OPTIONS");
    stream.conn.send_close_notify();
    stream.flush().unwrap();
    stream.sock.shutdown(Shutdown::Write).unwrap();
    nodes[0].reply(&got, 200, "OK");
    let mut start = [0; 14];
    stream.read_exact(&mut start).unwrap();
    assert_eq!(&start, b"SIP/2.0 200 OK");
}

#[test]
fn a_client_on_tls_or_wss_that_never_reads_is_closed_and_others_are_served_meanwhile() {
    let lb = Setup::every_transport().start();
    let _nodes = lb.answering_nodes(1);
    for (count, transport) in (1..).zip([Tls, Wss]) {
        let peer = Peer::bind("slow").over(transport);
        let mut slow = Client::connect(transport, lb.external_of(transport));
        slow.send(&options(&peer));
        slow.answer();
        let writer = std::thread::spawn(move || {
            // Answered by the balancer itself (483), so that no node is flooded.
            let request = peer.request("OPTIONS", "sip:bob@example.com").set("Max-Forwards", "0");
            let request = request.to_bytes();
            let sent = |slow: &mut Client| match slow {
                Client::Bytes(stream) => stream.write_all(&request).is_ok(),
                Client::Frames(socket) => {
                    let text = String::from_utf8(request.clone()).unwrap();
                    socket.send(tungstenite::Message::text(text)).is_ok()
                }
            };
            while sent(&mut slow) {}
        });
        let good = lb.caller_over(transport, "good");
        while lb.event("slow_closed") < count {
            let mut dialog = good.call("sip:bob@example.com");
            good.exchange(&mut dialog, "BYE");
        }
        writer.join().unwrap();
    }
    assert!(lb.dropped("slow_peer") >= 2);
}

#[test]
fn a_message_over_the_limit_is_answered_513_before_its_connection_ends() {
    let lb = Setup::every_transport().set("gov.nist.javax.sip.MAX_MESSAGE_SIZE", "10000").start();
    let nodes = lb.nodes(1);
    for (transport, code) in [(Tcp, None), (Tls, None), (Ws, Some(1009)), (Wss, Some(1009))] {
        let peer = Peer::bind("big").over(transport);
        let message = peer.request("MESSAGE", "sip:bob@example.com");
        let message = message.with_body("text/plain", vec![b'x'; 10_001]).to_bytes();
        let mut client = Client::connect(transport, lb.external_of(transport));
        match &mut client {
            // Its head says enough.
            Client::Bytes(_) => {
                let head = message.windows(4).position(|it| it == b"\r\n\r\n").unwrap() + 4;
                client.send(&message[..head]);
            }
            Client::Frames(_) => client.send(&message),
        }
        assert_eq!(client.answer(), "SIP/2.0 513 Message Too Large", "{transport:?}");
        assert_eq!(client.end(), code, "{transport:?}");
    }
    assert!(nodes[0].record().iter().all(|it| !it.is("MESSAGE")));
}

/// A call over a transport, and what the node got of it.
fn call(lb: &Balancer, nodes: &[Node], caller: &Peer, want: Transport, case: &str) {
    let mut dialog = caller.call("sip:bob@example.com");
    caller.exchange(&mut dialog, "BYE");
    assert_eq!(who_got(nodes, &dialog.call_id, "BYE").len(), 1, "{case}\n{}", lb.log());
    let record = nodes[0].record();
    let invite = record.iter().find(|it| it.is("INVITE") && it.call_id() == dialog.call_id);
    assert_eq!(invite.unwrap().link.transport(), want, "{case}");
}

#[test]
fn every_generation_of_files_opens_its_secure_ports() {
    let store = keys().path("lb.pem").display().to_string();
    let trust = keys().path("ca.pem").display().to_string();
    type Text = Box<dyn Fn(&tests::Addresses) -> String + Send + Sync>;
    let ssl = format!("javax.net.ssl.keyStore={store}\njavax.net.ssl.trustStore={trust}\n");
    let first = |websocket: bool| -> Text {
        let ssl = ssl.clone();
        Box::new(move |it| {
            let [tls, ws, wss] = it.secure;
            let [tls_in, ws_in, wss_in] = it.secure_internal;
            let (plain, secure) = if websocket { (ws, wss) } else { (it.external, tls) };
            let (plain_in, secure_in) =
                if websocket { (ws_in, wss_in) } else { (it.internal, tls_in) };
            format!(
                "host=127.0.0.1\nexternalPort={plain}\nexternalSecurePort={secure}\n\
                 internalPort={plain_in}\ninternalSecurePort={secure_in}\n\
                 isTransportWs = {websocket}\nstatisticPort={}\nshards=1\n\
                 heartbeatInterval=20\n{ssl}",
                it.statistic
            )
        })
    };
    let third: Text = {
        let (store, trust) = (store.clone(), trust.clone());
        Box::new(move |it| {
            let leg = |udp: u16, [tls, ws, wss]: [u16; 3]| {
                format!(
                    "<udpPort>{udp}</udpPort><tcpPort>{udp}</tcpPort><tlsPort>{tls}</tlsPort>\
                     <wsPort>{ws}</wsPort><wssPort>{wss}</wssPort>"
                )
            };
            format!(
                "<load-balancer-properties><common><host>127.0.0.1</host>\
                 <statisticPort>{}</statisticPort><shards>1</shards>\
                 <heartbeatInterval>20</heartbeatInterval></common><sip><external>{}</external>\
                 <internal>{}</internal></sip><ssl><keyStore>{store}</keyStore>\
                 <trustStore>{trust}</trustStore></ssl></load-balancer-properties>",
                it.statistic,
                leg(it.external, it.secure),
                leg(it.internal, it.secure_internal)
            )
        })
    };
    let all = [Udp, Tcp, Tls, Ws, Wss];
    let cases: [(&str, Text, &[Transport]); 3] = [
        ("first, SIP", first(false), &[Udp, Tcp, Tls]),
        ("first, WebSocket", first(true), &[Udp, Ws, Wss]),
        ("third", third, &all),
    ];
    for (case, text, transports) in cases {
        let is_websocket = case.contains("WebSocket");
        let lb = Setup::file(move |it| text(it)).start();
        // Its UDP port is that of WebSocket where there is one number for both.
        let internal = if is_websocket { lb.internal_of(Ws) } else { lb.internal };
        let mut node = Node::bind("n0");
        node.announce(&[internal]);
        lb.wait_nodes(1);
        node.answers_calls();
        let nodes = [node];
        for transport in transports {
            let to = match transport {
                Udp if is_websocket => lb.external_of(Ws),
                other => lb.external_of(*other),
            };
            let caller = Peer::bind("alice").over(*transport).through(to);
            call(&lb, &nodes, &caller, *transport, &format!("{case} {transport:?}"));
        }
    }
}

#[test]
fn ipv6_has_all_five_transports_on_both_legs() {
    let mut setup = Setup::every_transport().set("ipv6Host", "::1");
    for (leg, ports) in [
        ("external", ["EXTERNAL", "EXTERNAL", "TLS", "WS", "WSS"]),
        ("internal", ["INTERNAL", "INTERNAL", "INTERNAL_TLS", "INTERNAL_WS", "INTERNAL_WSS"]),
    ] {
        for (name, port) in ["Udp", "Tcp", "Tls", "Ws", "Wss"].iter().zip(ports) {
            setup = setup.set(&format!("{leg}Ipv6{name}Port"), port);
        }
    }
    let lb = setup.start();
    let mut node = Node::bind_v6("n6");
    node.announce(&[lb.v6(lb.addresses.internal)]);
    lb.wait_nodes(1);
    node.answers_calls();
    let nodes = [node];
    for transport in [Udp, Tcp, Tls, Ws, Wss] {
        let port = lb.external_of(transport).port();
        let caller = Peer::bind_v6("alice").over(transport).through(lb.v6(port));
        call(&lb, &nodes, &caller, transport, &format!("{transport:?}"));
    }
}
