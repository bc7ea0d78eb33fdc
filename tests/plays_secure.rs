//! Calls over TLS, WS and WSS, alone and bridged (`sip.md` 1.1, 2.8, 6.4). Numbers in comments are items of
//! the catalogue in `sip.md` 6.

use tests::Transport::{Tcp, Tls, Udp, Ws, Wss};
use tests::{
    Balancer, Dialog, Node, Peer, Received, Setup, Transport, first_to_get, param, wait_for,
    who_got,
};

const SECURE: [Transport; 3] = [Tls, Ws, Wss];

/// Sets up a call, takes it down, and checks that all of it stayed with one node.
fn whole_call(caller: &Peer, nodes: &[Node], case: &str) -> Received {
    let mut dialog = caller.call("sip:bob@example.com");
    caller.exchange(&mut dialog, "BYE");
    let home = who_got(nodes, &dialog.call_id, "INVITE");
    assert_eq!(home.len(), 1, "{case}");
    for method in ["ACK", "BYE"] {
        assert_eq!(who_got(nodes, &dialog.call_id, method), home, "{case}: {method}");
    }
    let record = nodes[home[0]].record();
    record.into_iter().find(|it| it.is("INVITE") && it.call_id() == dialog.call_id).unwrap()
}

#[test]
fn five_transports_work_side_by_side_and_each_stays_what_it_is() {
    let lb = Setup::every_transport().start();
    let nodes = lb.answering_nodes(2);
    for transport in [Udp, Tcp, Tls, Ws, Wss] {
        let caller = lb.caller_over(transport, "alice");
        for _ in 0..3 {
            let got = whole_call(&caller, &nodes, transport.lower());
            assert_eq!(got.link.transport(), transport);
            let name = transport.lower().to_uppercase();
            let vias = got.vias();
            assert!(vias.iter().all(|it| it.starts_with(&format!("SIP/2.0/{name} "))), "{vias:?}");
            let [inner, outer] = [lb.internal_of(transport), lb.external_of(transport)];
            for (route, own) in got.record_routes().iter().zip([inner, outer]) {
                let want = format!("<sip:{own};transport={};lr;", transport.lower());
                assert!(route.starts_with(&want), "{route}");
            }
        }
        assert!(caller.count("180") >= 3, "{transport:?}");
    }
}

#[test]
fn ipv6_has_the_same_transports() {
    let lb = Setup::every_transport()
        .set("ipv6Host", "::1")
        .set("externalIpv6TlsPort", "TLS")
        .set("externalIpv6WssPort", "WSS")
        .set("internalIpv6TlsPort", "INTERNAL_TLS")
        .set("internalIpv6WssPort", "INTERNAL_WSS")
        .set("internalIpv6UdpPort", "INTERNAL")
        .start();
    let mut node = Node::bind_v6("n6");
    node.announce(&[lb.v6(lb.addresses.internal)]);
    lb.wait_nodes(1);
    node.answers_calls();
    for transport in [Tls, Wss] {
        let port = lb.external_of(transport).port();
        let caller = Peer::bind_v6("alice").over(transport).through(lb.v6(port));
        let got = whole_call(&caller, std::slice::from_ref(&node), transport.lower());
        assert_eq!(got.link.transport(), transport);
    }
}

/// Single-entry mode with TLS and TCP, and a node named in the configuration.
fn single_entry(terminates: bool) -> (Balancer, Vec<Node>) {
    let nodes = vec![Node::bind("n0")];
    nodes[0].answers_calls();
    let (address, transports) = if terminates {
        (nodes[0].address(), "udp+tcp")
    } else {
        (nodes[0].address_of(Tls), "tls")
    };
    let lb = Setup::single_entry()
        .certified()
        .set("externalTlsPort", "TLS")
        .set("terminateTLSTraffic", &terminates.to_string())
        .set("staticNodes", &format!("{address}/{transports}"))
        .start();
    lb.wait_nodes(1);
    (lb, nodes)
}

#[test] // 47, 48
fn a_single_entry_balancer_ends_tls_and_carries_tcp_as_it_is() {
    let (lb, nodes) = single_entry(true);
    for transport in [Tcp, Tls] {
        let caller = lb.caller_over(transport, "alice");
        let got = whole_call(&caller, &nodes, transport.lower());
        assert_eq!(got.link.transport(), Tcp);
        assert_eq!(caller.count("180"), 1);
        assert!(caller.count("200 INVITE") == 1 && caller.count("200 BYE") == 1);
        let contact = got.header("Contact");
        assert!(contact.contains(&format!("transport={}", transport.lower())), "{contact}");
    }
}

#[test] // 49
fn a_single_entry_balancer_carries_tls_to_tls() {
    let (lb, nodes) = single_entry(false);
    let caller = lb.caller_over(Tls, "alice");
    let got = whole_call(&caller, &nodes, "tls");
    assert_eq!(got.link.transport(), Tls);
    assert_eq!(got.record_routes().len(), 1, "one leg, one Record-Route");
}

fn worst_case(setup: Setup) -> Balancer {
    setup.algorithm("WorstCaseUdpTestAffinityAlgorithm").set("earlyDialogWorstCase", "true").start()
}

/// 42, 50, 52: INVITE and ACK at one node, BYE at the other.
fn bye_goes_elsewhere(lb: &Balancer, outer: Transport, inner: Transport) {
    let nodes = lb.answering_nodes(2);
    let caller = lb.caller_over(outer, "alice");
    let mut dialog = caller.call("sip:bob@example.com");
    let home = who_got(&nodes, &dialog.call_id, "INVITE");
    let ack = nodes[home[0]].expect("ACK");
    assert_eq!(ack.link.transport(), inner, "{outer:?}");
    caller.exchange(&mut dialog, "BYE");
    assert_eq!(who_got(&nodes, &dialog.call_id, "BYE"), [1 - home[0]], "{outer:?}");
}

/// 43, 51, 53: a node calls a client; 180 and 200 go to different nodes.
fn answers_go_apart(lb: &Balancer, outer: Transport, inner: Transport) {
    let mut nodes = lb.nodes(2);
    nodes[0].transport = inner;
    let callee = lb.caller_over(outer, "bob");
    let uri = match outer {
        // A client on WebSocket is reached by what it registered, and by nothing else.
        Ws | Wss => {
            let contact = format!("<sip:bob@x7.invalid;transport={}>", outer.lower());
            let register = callee.request("REGISTER", "sip:example.com");
            callee.send(&register.set("Contact", contact));
            let (at, got) = first_to_get(&nodes, "REGISTER");
            nodes[at].reply(&got, 200, "OK");
            callee.expect("200 REGISTER");
            got.header("Contact").trim_matches(['<', '>']).to_owned()
        }
        _ => callee.uri(),
    };
    let invite = nodes[0].request("INVITE", &uri);
    nodes[0].send(&invite.with("Route", lb.node_route(&nodes[0])));
    let got = callee.expect("INVITE");
    assert!(got.record_routes()[0].contains("node_host=127.0.0.1"));
    assert_eq!(got.link.transport(), outer);
    callee.reply(&got, 180, "Ringing");
    let ringing = first_to_get(&nodes, "180").0;
    callee.reply(&got, 200, "OK");
    let answered = first_to_get(&nodes, "200 INVITE").0;
    assert_ne!(ringing, answered, "{outer:?}");
}

#[test] // 50, 51
fn worst_case_with_tls_ended_here() {
    for (outer, inner) in [(Tls, Tcp), (Wss, Ws)] {
        let setup = || Setup::every_transport().set("terminateTLSTraffic", "true");
        bye_goes_elsewhere(&worst_case(setup()), outer, inner);
        answers_go_apart(&worst_case(setup()), outer, inner);
    }
}

#[test] // RFC 3261 §16.6(4), §26.2
fn a_sips_call_keeps_its_scheme_on_every_leg_that_is_secure() {
    for (ends_here, inner, scheme) in [("false", Tls, "<sips:"), ("true", Tcp, "<sip:")] {
        let lb = Setup::every_transport().set("terminateTLSTraffic", ends_here).start();
        let mut nodes = lb.nodes(1);
        nodes[0].transport = inner;
        let node = &nodes[0];
        let caller = lb.caller_over(Tls, "alice");
        let contact = format!("<sips:alice@{}>", caller.address_of(Tls));
        let invite = caller.request("INVITE", "sips:bob@example.com").set("Contact", contact);
        caller.send(&invite);
        let got = node.expect("INVITE");
        assert_eq!((got.link.transport(), got.uri()), (inner, "sips:bob@example.com"));
        for (route, start) in got.record_routes().iter().zip([scheme, "<sips:"]) {
            assert!(route.starts_with(start), "{route}");
        }
        let ok = node.reply(&got, 200, "OK");
        let ok_at_caller = caller.expect("200 INVITE");
        caller.send(&Dialog::of_caller(&caller, &invite, &ok_at_caller).ack());
        node.expect("ACK");
        node.send(&Dialog::of_callee(node, &got, &ok).request("BYE"));
        let bye = caller.expect("BYE");
        assert_eq!(bye.link, ok_at_caller.link);
        caller.reply(&bye, 200, "OK");
        node.expect("200 BYE");
    }
}

#[test] // 52, 53
fn worst_case_with_one_transport_towards_nodes() {
    let setup = || {
        Setup::two_entry()
            .certified()
            .set("externalWssPort", "WSS")
            .set("internalWssPort", "INTERNAL_WSS")
            .set("sip.internalTransport", "tcp")
    };
    bye_goes_elsewhere(&worst_case(setup()), Wss, Tcp);
    answers_go_apart(&worst_case(setup()), Wss, Tcp);
}

#[test] // 55, 56, 57
fn worst_case_over_each_secure_transport() {
    for transport in SECURE {
        let setup = || {
            let setup = Setup::every_transport();
            if transport != Wss {
                return setup;
            }
            setup.set("gov.nist.javax.sip.TLS_CLIENT_PROTOCOLS", "TLSv1,TLSv1.1,TLSv1.2").set(
                "gov.nist.javax.sip.ENABLED_CIPHER_SUITES",
                "TLS_RSA_WITH_AES_128_CBC_SHA,TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
            )
        };
        let lb = worst_case(setup());
        if transport == Wss {
            assert!(lb.has_logged("TLSv1, TLSv1.1 is broken and not spoken"), "{}", lb.log());
            assert!(lb.has_logged("without TLS_RSA_WITH_AES_128_CBC_SHA"), "{}", lb.log());
        }
        bye_goes_elsewhere(&lb, transport, transport);
        drop(lb);
        answers_go_apart(&worst_case(setup()), transport, transport);
    }
}

#[test]
fn a_node_reaches_a_client_on_its_own_connection_and_on_no_other() {
    let lb = Setup::every_transport().set("shards", "2").start();
    let mut nodes = lb.nodes(1);
    for round in 0..4 {
        for transport in SECURE {
            nodes[0].transport = Tcp;
            let node = &nodes[0];
            let caller = lb.caller_over(transport, &format!("phone{round}"));
            let contact = format!("<sip:phone@y{round}.invalid;transport={}>", transport.lower());
            let invite = caller.request("INVITE", "sip:bob@example.com").set("Contact", contact);
            caller.send(&invite);
            let got = node.expect("INVITE");
            let ok = node.reply(&got, 200, "OK");
            let ok_at_caller = caller.expect("200 INVITE");
            caller.send(&Dialog::of_caller(&caller, &invite, &ok_at_caller).ack());
            let mut theirs = Dialog::of_callee(node, &got, &ok);
            nodes[0].transport = transport;
            let node = &nodes[0];
            for method in ["INFO", "BYE"] {
                node.send(&theirs.request(method));
                let request = caller.expect(method);
                assert_eq!(request.link, ok_at_caller.link, "{transport:?} {round}: {method}");
                caller.reply(&request, 200, "OK");
                node.expect(&format!("200 {method}"));
            }
        }
    }
}

#[test]
fn a_node_calls_a_browser_that_registered_whichever_shard_has_it() {
    let lb = Setup::every_transport().set("shards", "2").start();
    let nodes = lb.nodes(1);
    let node = &nodes[0]; // by UDP, as an application server next door
    // RFC 7118 §4 knows no name but `ws`.
    for (round, made_up, name) in
        [(0, true, "wss"), (1, false, "wss"), (2, true, "ws"), (3, false, "ws")]
    {
        let browser = lb.caller_over(Wss, &format!("browser{round}"));
        let host = if made_up { "z.invalid" } else { "browser.example.com" };
        let register = browser.request("REGISTER", "sip:example.com");
        let contact = format!("<sip:b@{host};transport={name}>");
        browser.send(&register.set("Contact", contact));
        let got = node.expect("REGISTER");
        node.reply(&got, 200, "OK");
        browser.expect("200 REGISTER");
        // What it registered, or what the balancer says of where it is (2.9).
        let uri = if made_up {
            got.header("Contact").trim_matches(['<', '>']).to_owned()
        } else {
            let host = got.header("X-Sip-Balancer-InitialRemoteAddr");
            let port = got.header("X-Sip-Balancer-InitialRemotePort");
            format!("sip:b@{host}:{port};transport={name}")
        };
        for _ in 0..3 {
            let invite = node.request("INVITE", &uri).with("Route", lb.node_route(node));
            node.send(&invite);
            let ringing = browser.expect("INVITE");
            browser.reply(&ringing, 200, "OK");
            node.expect_in(invite.call_id(), "200 INVITE");
        }
        if round == 3 {
            let mut browser = browser;
            browser.close();
            tests::wait_for("the connection to be forgotten", || {
                let invite = node.request("INVITE", &uri).with("Route", lb.node_route(node));
                node.send(&invite);
                let answer = node.expect_where("an answer", |it| {
                    it.status() >= 300 && it.call_id() == invite.call_id()
                });
                (answer.status() == 430).then_some(())
            });
        }
    }
}

#[test]
fn a_browsers_via_comes_back_as_it_was_sent() {
    let lb = Setup::every_transport().start();
    let nodes = lb.answering_nodes(1);
    let browser = lb.caller_over(Ws, "browser");
    let via = "SIP/2.0/WS k3.invalid;branch=z9hG4bKbrowser";
    browser.send(&browser.request("OPTIONS", "sip:bob@example.com").set("Via", via));
    let ok = browser.expect("200 OPTIONS");
    let top = ok.vias()[0].to_owned();
    assert!(top.starts_with(via), "{top}");
    assert_eq!(param(&top, "received").as_deref(), Some("127.0.0.1"));
    nodes[0].expect("OPTIONS");
}

#[test] // RFC 7118 §5, 6
fn keep_alives_are_answered_inside_and_outside_of_frames() {
    let lb = Setup::every_transport().start();
    let nodes = lb.answering_nodes(1);
    let mut socket = tungstenite_client(&lb);
    for _ in 0..2 {
        socket.send(tungstenite::Message::text("\r\n\r\n")).unwrap();
        assert_eq!(socket.read().unwrap(), tungstenite::Message::text("\r\n"));
        socket.send(tungstenite::Message::Ping(b"are you there"[..].into())).unwrap();
        let pong = tungstenite::Message::Pong(b"are you there"[..].into());
        assert_eq!(socket.read().unwrap(), pong);
    }
    socket.close(None).unwrap();
    loop {
        match socket.read() {
            Ok(message) => assert!(message.is_close(), "{message:?}"),
            Err(tungstenite::Error::ConnectionClosed) => break,
            Err(error) => panic!("{error}"),
        }
    }
    let caller = lb.caller_over(Ws, "alice");
    caller.call("sip:bob@example.com");
    nodes[0].expect("ACK");
}

fn tungstenite_client(lb: &Balancer) -> tungstenite::WebSocket<std::net::TcpStream> {
    use tungstenite::client::IntoClientRequest as _;
    let at = lb.external_of(Ws);
    let mut request = format!("ws://{at}/").into_client_request().unwrap();
    request.headers_mut().insert("Sec-WebSocket-Protocol", "sip".parse().unwrap());
    let socket = std::net::TcpStream::connect(at).unwrap();
    socket.set_read_timeout(Some(tests::PATIENCE)).unwrap();
    let (socket, response) = tungstenite::client(request, socket).unwrap();
    assert_eq!(response.headers()["Sec-WebSocket-Protocol"], "sip");
    socket
}

#[test]
fn a_node_that_does_not_speak_tls_is_left_for_one_that_does() {
    let lb = Setup::every_transport().start();
    let nodes = lb.answering_nodes(2);
    // Its TLS port is its plain one: the handshake fails.
    nodes[0].set_property("tlsPort", &nodes[0].address().port().to_string());
    let is_said = |it: &tests::NodeEntry| {
        it.property("tlsPort") == Some(nodes[0].address().port().to_string().as_str())
    };
    lb.wait_node("the lie", is_said);
    let caller = lb.caller_over(Tls, "alice");
    for _ in 0..4 {
        let mut dialog = caller.call("sip:bob@example.com");
        assert_eq!(who_got(&nodes, &dialog.call_id, "INVITE"), [1]);
        caller.exchange(&mut dialog, "BYE");
    }
}

#[test]
fn a_node_in_the_file_is_found_alive_on_each_transport_and_dead_when_it_is_gone() {
    for transport in SECURE {
        let mut nodes = vec![Node::bind("n0")];
        nodes[0].answers_calls();
        let at = nodes[0].address_of(transport);
        let lb = Setup::every_transport()
            .set("staticNodes", &format!("{at}/{}", transport.lower()))
            .set("probeInterval", "500")
            .set("probeTimeout", "400")
            .start();
        lb.wait_nodes(1);
        let caller = lb.caller_over(transport, "alice");
        whole_call(&caller, &nodes, transport.lower());
        nodes[0].die();
        let answer = wait_for("the node to be dead", || {
            let request = caller.request("OPTIONS", "sip:bob@example.com");
            caller.send(&request);
            let is_answer = |it: &Received| it.call_id() == request.call_id();
            let answer = caller.expect_where("an answer", is_answer);
            answer.start.contains("No nodes available").then_some(answer)
        });
        assert_eq!(answer.status(), 500, "{transport:?}");
    }
}

#[test]
fn behind_a_tls_gateway_wss_comes_without_tls_and_ws_with_it() {
    let mut node = Node::bind("n0");
    let ports = [Wss, Ws].map(|it| node.address_of(it).port().to_string());
    // To the node WSS is plain, too: what it announces as WSS is where it speaks WebSocket alone.
    node.set_property("wssPort", &ports[1]);
    node.set_property("wsPort", &ports[0]);
    let lb = Setup::every_transport().set("gov.nist.javax.sip.USE_TLS_GATEWAY", "true").start();
    node.announce(&[lb.internal]);
    lb.wait_nodes(1);
    node.answers_calls();
    for (said, spoken) in [(Wss, Ws), (Ws, Wss)] {
        let caller = Peer::bind("alice").over(spoken).through(lb.external_of(said));
        let got = whole_call(&caller, std::slice::from_ref(&node), said.lower());
        assert_eq!(got.link.transport(), spoken);
        let name = format!("SIP/2.0/{} ", said.lower().to_uppercase());
        assert!(got.vias()[..2].iter().all(|it| it.starts_with(&name)), "{:?}", got.vias());
        let param = format!(";transport={};", said.lower());
        assert!(got.record_routes().iter().all(|it| it.contains(&param)), "{got:?}");
    }
}

#[test]
fn a_restarted_node_is_connected_again_and_clients_notice_nothing() {
    for transport in SECURE {
        let lb = Setup::every_transport().start();
        let mut nodes = lb.answering_nodes(1);
        let caller = lb.caller_over(transport, "alice");
        let link = caller.call("sip:bob@example.com").call_id;
        let before = caller.expect_in(&link, "180").link;
        nodes[0].restart();
        nodes[0].answers_calls();
        let again = caller.call("sip:bob@example.com").call_id;
        assert_eq!(caller.expect_in(&again, "180").link, before, "{transport:?}");
    }
}

#[test]
fn a_file_without_a_key_store_opens_everything_else() {
    let lb = Setup::two_entry()
        .set("externalTlsPort", "TLS")
        .set("javax.net.ssl.keyStore", "/nowhere/keystore")
        .set("javax.net.ssl.keyStorePassword", "123456")
        .start();
    assert!(lb.has_logged("/nowhere/keystore: no such file"), "{}", lb.log());
    assert!(std::net::TcpStream::connect(lb.external_of(Tls)).is_err());
    let nodes = lb.answering_nodes(1);
    whole_call(&lb.caller_over(Tcp, "alice"), &nodes, "tcp");
    // Without its second leg it would be another service.
    let (status, log) = Setup::single_entry().set("internalTlsPort", "INTERNAL_TLS").refused();
    assert!(!status.success() && log.contains("nothing can listen on the node side"), "{log}");
}
