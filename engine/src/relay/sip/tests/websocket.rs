//! Clients on TLS and WebSocket: who can be called back, by which connection, and what nodes are told.

use super::*;

const ALL: &str = "host=10.0.0.1\nexternalPort=5060\nexternalTlsPort=5061\nexternalWsPort=5062\n\
    externalWssPort=5063\ninternalHost=172.16.0.1\ninternalPort=5065\ninternalTlsPort=5066\n\
    internalWsPort=5067\ninternalWssPort=5068\n";
const BROWSER: &str = "203.0.113.5:51234";

/// An INVITE as a browser sends it: it does not know its own address.
fn from_browser(via: &str) -> String {
    INVITE
        .replace(
            "UDP 203.0.113.5:5062;branch=z9hG4bKc1;rport",
            &format!("{via} df7jal.invalid;branch=z9hG4bKc1"),
        )
        .replace(
            "sip:alice@203.0.113.5:5062",
            &format!("sip:alice@df7jal.invalid;transport={}", via.to_lowercase()),
        )
}

fn hop(verdict: Verdict) -> Hop {
    match verdict {
        Verdict::Forward { hop, .. } | Verdict::Reply { hop } => hop,
        other => panic!("{other:?}"),
    }
}

fn token(text: &str) -> Flow {
    let at = text.find(";flow=").unwrap() + 6;
    let token = flow::read(&text.as_bytes()[at..at + 32], b"0123456789abcdef");
    token.expect("a token of ours").flow
}

/// The lines of a header that left, whole.
fn as_sent(world: &World, name: &str) -> String {
    let text = String::from_utf8(world.out.clone()).unwrap();
    let lines = text.split("\r\n").filter(|it| it.starts_with(&format!("{name}: ")));
    lines.map(|it| format!("{it}\n")).collect()
}

/// The 200 of whoever got these Vias.
fn ok_to(vias: &str) -> String {
    format!(
        "\nSIP/2.0 200 OK\n{vias}From: <sip:a@b>;tag=1\nTo: <sip:c@d>;tag=2\nCall-ID: x\n\
         CSeq: 1 INVITE\nContent-Length: 0\n\n"
    )
}

#[test]
fn each_transport_is_spelt_as_it_is_on_both_legs() {
    for transport in Transport::ALL {
        let mut world = World::new(&format!("{ALL}isSendTrying=false\n")).with_nodes(&[NODE]);
        let verdict =
            world.send(Leg::External, transport, BROWSER, &from_browser(transport.as_via()));
        let (via, name) = (transport.as_via(), transport.as_param());
        match hop(verdict) {
            Hop::Datagram { to, .. } | Hop::Stream { to, .. } => {
                assert_eq!(to, NODE.parse().unwrap())
            }
            other => panic!("{other:?}"),
        }
        let vias = world.lines("Via");
        assert!(vias[0].starts_with(&format!("SIP/2.0/{via} 172.16.0.1:50")), "{vias:?}");
        assert!(vias[1].starts_with(&format!("SIP/2.0/{via} 10.0.0.1:50")), "{vias:?}");
        assert!(vias[2].contains(";received=203.0.113.5"), "{vias:?}");
        for route in world.lines("Record-Route") {
            assert!(route.contains(&format!(";transport={name};lr;node_host=")), "{route}");
        }
        let routes = world.lines("Record-Route");
        assert_eq!(routes[1].contains(";flow="), transport.is_stream(), "{routes:?}");
        assert!(!routes[0].contains(";flow="), "nodes reach clients by the outer one");
    }
}

#[test]
fn made_up_hosts_become_the_clients_connection_and_real_ones_stay() {
    for (key, host, want) in [
        ("", "df7jal.invalid", "<sip:alice@203.0.113.5:51234;transport=ws;flow="),
        ("", "DF7JAL.INVALID", "<sip:alice@203.0.113.5:51234;transport=ws;flow="),
        ("", "198.51.100.9:5062", "<sip:alice@198.51.100.9:5062;transport=ws>"),
        ("", "phone.example.com", "<sip:alice@phone.example.com;transport=ws>"),
        (
            "gov.nist.javax.sip.PATCH_SIP_WEBSOCKETS_HEADERS=false\n",
            "df7jal.invalid",
            "<sip:alice@df7jal.invalid;transport=ws>",
        ),
    ] {
        let config = format!("{ALL}{key}isSendTrying=false\n");
        let mut world = World::new(&config).with_nodes(&[NODE]);
        let message = from_browser("WS").replace("alice@df7jal.invalid", &format!("alice@{host}"));
        world.send(Leg::External, Transport::Ws, BROWSER, &message);
        let contact = &world.lines("Contact")[0];
        assert!(contact.starts_with(want), "{host}: {contact}");
        if contact.contains("flow") {
            assert_eq!(token(contact), FLOW);
        }
    }
}

#[test]
fn a_made_up_record_route_is_mended_in_the_place_of_the_contact() {
    let mut world = World::new(&format!("{ALL}isSendTrying=false\n")).with_nodes(&[NODE]);
    let message = from_browser("WS").replace(
        "Max-Forwards",
        "Record-Route: <sip:edge@x.invalid;transport=ws;lr>\nMax-Forwards",
    );
    world.send(Leg::External, Transport::Ws, BROWSER, &message);
    let routes = world.lines("Record-Route");
    assert!(
        routes[2].starts_with("<sip:edge@203.0.113.5:51234;transport=ws;lr;flow="),
        "{routes:?}"
    );
    assert_eq!(world.lines("Contact"), ["<sip:alice@df7jal.invalid;transport=ws>"]);
}

#[test]
fn a_contact_without_brackets_gets_them() {
    let config = format!("{ALL}terminateTLSTraffic=true\nisSendTrying=false\n");
    let mut world = World::new(&config).with_nodes(&[NODE]);
    let message = from_browser("WSS")
        .replace("<sip:alice@df7jal.invalid;transport=wss>", "sip:alice@df7jal.invalid;expires=60");
    world.send(Leg::External, Transport::Wss, BROWSER, &message);
    let contact = &world.lines("Contact")[0];
    let want = "<sip:alice@203.0.113.5:51234;transport=wss;flow=";
    assert!(contact.starts_with(want) && contact.ends_with(">;expires=60"), "{contact}");
}

#[test]
fn a_node_calls_a_browser_by_the_contact_it_registered() {
    let mut world = World::new(ALL).with_nodes(&[NODE]);
    // Browsers write `ws` over WSS, too (RFC 7118 §4).
    let register = from_browser("WSS").replace("INVITE", "REGISTER").replace("=wss", "=ws");
    world.send(Leg::External, Transport::Wss, BROWSER, &register);
    let contact = world.lines("Contact")[0].trim_matches(['<', '>']).to_owned();
    let invite = INVITE
        .replace("sip:bob@example.com SIP", &format!("{contact} SIP"))
        .replace("203.0.113.5:5062", NODE);
    let verdict = world.send(Leg::Internal, Transport::Udp, NODE, &invite);
    assert_eq!(
        hop(verdict),
        Hop::Flow { flow: FLOW, or: None, is_response: false },
        "and never by a new one"
    );
    let outer = world.lines("Via");
    assert!(outer.iter().any(|it| it.starts_with("SIP/2.0/WSS 10.0.0.1:5063;")), "{outer:?}");

    // The connection is gone: the node hears that at once (RFC 5626 §5.3).
    let listener = world.listener(Leg::Internal, Transport::Udp, Family::V4);
    let source = NODE.parse().unwrap();
    let arrival = Arrival { now: world.now, listener, source, flow: None };
    let failed = Hop::Flow { flow: FLOW, or: None, is_response: false };
    let bytes = wire(&invite);
    let verdict =
        world.relay.undelivered(&arrival, &bytes, gone(failed), &world.snapshot, &mut world.out);
    assert!(matches!(verdict, Verdict::Reply { .. }), "{verdict:?}");
    assert_eq!(world.first_line(), "SIP/2.0 430 Flow Failed");

    // A token of somebody else leads to an address, which a shard may have a connection with.
    let forged = invite.replace(&contact[contact.len() - 4..], "0000");
    let verdict = world.send(Leg::Internal, Transport::Udp, NODE, &forged);
    let from = world.listener(Leg::External, Transport::Ws, Family::V4);
    let stream = Hop::Stream { from, to: BROWSER.parse().unwrap() };
    assert_eq!(hop(verdict), stream);
    let bytes = wire(&forged);
    world.relay.undelivered(&arrival, &bytes, gone(stream), &world.snapshot, &mut world.out);
    assert_eq!(world.first_line(), "SIP/2.0 430 Flow Failed");
    // It is there, and reads too slowly: nothing is wrong with the flow.
    let slow = Failure { reason: DropReason::SlowPeer, ..gone(stream) };
    world.relay.undelivered(&arrival, &bytes, slow, &world.snapshot, &mut world.out);
    assert_eq!(world.first_line(), "SIP/2.0 503 Service Unavailable");
}

#[test]
fn responses_go_back_by_the_connection_alone() {
    for (transport, may_call) in
        [(Transport::Tls, true), (Transport::Ws, false), (Transport::Wss, false)]
    {
        let mut world = World::new(&format!("{ALL}isSendTrying=false\n")).with_nodes(&[NODE]);
        let invite = INVITE.replace("UDP", transport.as_via());
        world.send(Leg::External, transport, BROWSER, &invite);
        let vias: String = world.lines("Via").iter().map(|it| format!("Via: {it}\n")).collect();
        let text = String::from_utf8(world.out.clone()).unwrap();
        let vias: String = if vias.contains('#') {
            text.split("\r\n")
                .filter(|it| it.starts_with("Via: "))
                .map(|it| format!("{it}\n"))
                .collect()
        } else {
            vias
        };
        let ok = ok_to(&vias);
        let verdict = world.send(Leg::Internal, transport, NODE, &ok);
        let Hop::Flow { flow, or, .. } = hop(verdict) else { panic!("{verdict:?}") };
        assert_eq!((flow, or.is_some()), (FLOW, may_call), "{transport:?}");
        assert_eq!(world.lines("Via").len(), 1);

        // A token from before a restart: who listens is called where it listens, never at the port of a
        // connection that is gone; who cannot be called may still have that connection.
        let verdict =
            world.send(Leg::Internal, transport, NODE, &ok.replace(";flow=03", ";flow=04"));
        let to = if may_call { "203.0.113.5:5062" } else { BROWSER };
        let from = world.listener(Leg::External, transport, Family::V4);
        assert_eq!(hop(verdict), Hop::Stream { from, to: to.parse().unwrap() }, "{transport:?}");
    }
}

#[test]
fn responses_leave_by_the_listener_that_their_request_came_by_whatever_its_via_says() {
    let nodes = "internalHost=172.16.0.1\ninternalPort=5065\nsip.internalTransport=UDP\n";
    let cases = [
        ("externalWsPort=5062\n", Transport::Ws, "WSS", None),
        ("externalWssPort=5063\n", Transport::Wss, "WS", None),
        ("externalPort=5060\n", Transport::Tcp, "UDP", Some(Transport::Tcp)),
        (
            "externalUdpPort=5060\nexternalTlsPort=5061\n",
            Transport::Tls,
            "TCP",
            Some(Transport::Tls),
        ),
        ("externalPort=5060\n", Transport::Tcp, "SCTP", Some(Transport::Tcp)),
    ];
    for (ports, transport, via, calls_by) in cases {
        let config = format!("host=10.0.0.1\n{ports}{nodes}isSendTrying=false\n");
        let mut world = World::new(&config).with_nodes(&[NODE]);
        world.send(Leg::External, transport, BROWSER, &INVITE.replace("UDP", via));
        let ok = ok_to(&as_sent(&world, "Via"));
        let verdict = world.send(Leg::Internal, Transport::Udp, NODE, &ok);
        let sent = hop(verdict);
        let or = calls_by.map(|it| {
            (world.listener(Leg::External, it, Family::V4), "203.0.113.5:5062".parse().unwrap())
        });
        assert_eq!(sent, Hop::Flow { flow: FLOW, or, is_response: true }, "{transport:?} as {via}");
    }
    // A datagram comes from where it comes from.
    let mut world = World::new(ALL).with_nodes(&[NODE]);
    world.send(Leg::External, Transport::Udp, BROWSER, &INVITE.replace("UDP", "TCP"));
    let ok = ok_to(&as_sent(&world, "Via"));
    let verdict = world.send(Leg::Internal, Transport::Udp, NODE, &ok);
    let from = world.listener(Leg::External, Transport::Udp, Family::V4);
    assert_eq!(hop(verdict), Hop::Datagram { from, to: BROWSER.parse().unwrap() });
}

#[test]
fn a_node_on_websocket_is_called_again_where_it_shares_the_only_leg_with_clients() {
    let config = "host=10.0.0.1\nexternalUdpPort=5060\nexternalWsPort=5062\nisSendTrying=false\n";
    let mut world = World::new(config).with_nodes(&[NODE]);
    let invite = INVITE
        .replace("UDP 203.0.113.5:5062", &format!("WS {NODE}"))
        .replace("sip:bob@example.com SIP", "sip:bob@203.0.113.5:5062;transport=udp SIP");
    world.send(Leg::External, Transport::Ws, NODE, &invite);
    let ok = ok_to(&as_sent(&world, "Via"));
    let from = world.listener(Leg::External, Transport::Ws, Family::V4);
    let or = Some((from, NODE.parse().unwrap()));
    let verdict = world.send(Leg::External, Transport::Udp, "203.0.113.5:5062", &ok);
    assert_eq!(hop(verdict), Hop::Flow { flow: FLOW, or, is_response: true });
}

#[test]
fn tls_ends_here_where_the_operator_says_so() {
    let config = format!("{ALL}terminateTLSTraffic=true\nisSendTrying=false\n");
    for (outer, inner) in [
        (Transport::Tls, Transport::Tcp),
        (Transport::Wss, Transport::Ws),
        (Transport::Ws, Transport::Ws),
        (Transport::Udp, Transport::Udp),
    ] {
        let mut world = World::new(&config).with_nodes(&[NODE]);
        world.send(Leg::External, outer, BROWSER, &from_browser(outer.as_via()));
        let inner_via = format!("SIP/2.0/{} 172.16.0.1:", inner.as_via());
        assert!(world.lines("Via")[0].starts_with(&inner_via), "{outer:?}");
        let told = format!(";transport={}", outer.as_param());
        assert!(world.lines("Contact")[0].contains(&told), "{outer:?}");
    }
}

#[test]
fn single_entry_bridges_with_both_transports_in_the_route() {
    let config = "host=10.0.0.1\nexternalTcpPort=5060\nexternalTlsPort=5061\n\
        terminateTLSTraffic=true\nisSendTrying=false\n";
    let mut world = World::new(config).with_nodes(&[NODE]);
    world.send(Leg::External, Transport::Tls, BROWSER, &INVITE.replace("UDP", "TLS"));
    let routes = world.lines("Record-Route");
    assert!(routes[0].starts_with("<sip:10.0.0.1:5060;transport=tcp;lr;"), "{routes:?}");
    assert!(routes[1].starts_with("<sip:10.0.0.1:5061;transport=tls;lr;"), "{routes:?}");
    assert_eq!((routes.len(), token(&routes[1])), (2, FLOW));
}

#[test]
fn what_came_without_a_length_gets_one_on_a_stream() {
    let config = format!("{ALL}sip.internalTransport=TCP\nisSendTrying=false\n");
    for (text, want) in
        [(from_browser("WS").replace("Content-Length: 5\n", ""), "5"), (from_browser("WS"), "5")]
    {
        let mut world = World::new(&config).with_nodes(&[NODE]);
        world.send(Leg::External, Transport::Ws, BROWSER, &text);
        assert_eq!(world.lines("Content-Length"), [want]);
    }
    let mut world = World::new(ALL).with_nodes(&[NODE]);
    let text = INVITE.replace("Content-Length: 5\n", "");
    world.send(Leg::External, Transport::Udp, BROWSER, &text);
    assert_eq!(world.lines("Content-Length"), Vec::<String>::new(), "a datagram stays as it is");
}

#[test]
fn one_websocket_message_is_one_sip_message() {
    let mut world = World::new(&format!("{ALL}isSendTrying=false\n")).with_nodes(&[NODE]);
    let second = from_browser("WS").replace("8f3ad1", "smuggled");
    let both = from_browser("WS") + second.trim_start();
    let sent = hop(world.send(Leg::External, Transport::Ws, BROWSER, &both));
    assert!(matches!(sent, Hop::Stream { .. }), "{sent:?}");
    let text = String::from_utf8(world.out.clone()).unwrap();
    assert!(text.contains("8f3ad1") && !text.contains("smuggled"), "{text}");
}

#[test]
fn sips_means_tls() {
    let mut world = World::new(ALL).with_nodes(&[NODE]);
    let invite = |uri: &str| {
        INVITE
            .replace("sip:bob@example.com SIP", &format!("{uri} SIP"))
            .replace("203.0.113.5:5062", NODE)
    };
    let leg = |world: &World, transport| world.listener(Leg::External, transport, Family::V4);
    for (uri, transport, port) in [
        ("sips:bob@198.51.100.7", Transport::Tls, 5061),
        ("sips:bob@198.51.100.7:5099", Transport::Tls, 5099),
        ("sips:bob@198.51.100.7;transport=tcp", Transport::Tls, 5061),
        ("sip:bob@198.51.100.7;transport=tls", Transport::Tls, 5061),
        ("sips:bob@198.51.100.7;transport=ws", Transport::Wss, 443),
        ("sip:bob@198.51.100.7;transport=ws", Transport::Ws, 80),
    ] {
        let verdict = world.send(Leg::Internal, Transport::Udp, NODE, &invite(uri));
        let from: ListenerId = leg(&world, transport);
        let to = SocketAddr::new("198.51.100.7".parse().unwrap(), port);
        assert_eq!(hop(verdict), Hop::Stream { from, to }, "{uri}");
    }
}

#[test]
fn what_came_by_sips_is_recorded_so_where_the_leg_is_secure() {
    let plain = "terminateTLSTraffic=true\n";
    let cases = [
        ("", "sips:172.16.0.1:5066;transport=tls", "sips:172.16.0.10:5080;transport=tls"),
        (plain, "sip:172.16.0.1:5065;transport=tcp", "sip:172.16.0.10:5080;transport=tcp"),
    ];
    for (key, inner, rewritten) in cases {
        let mut world = World::new(&format!("{ALL}{key}isSendTrying=false\n")).with_nodes(&[NODE]);
        let invite = INVITE.replace("UDP", "TLS");
        for (uri, want) in [
            ("sips:bob@example.com", "sips:bob@example.com"),
            ("sips:10.0.0.1:5061;transport=tls", rewritten),
        ] {
            let message = invite.replace("sip:bob@example.com SIP", &format!("{uri} SIP"));
            world.send(Leg::External, Transport::Tls, BROWSER, &message);
            assert_eq!(world.first_line(), format!("INVITE {want} SIP/2.0"));
            let routes = world.lines("Record-Route");
            assert!(routes[0].starts_with(&format!("<{inner};lr;node_host=")), "{routes:?}");
            let outer = "<sips:10.0.0.1:5061;transport=tls;lr;node_host=";
            assert!(routes[1].starts_with(outer), "{routes:?}");
            // The client's way back is ours like any other.
            let route_lines: String =
                routes.iter().rev().map(|it| format!("Route: {it}\n")).collect();
            let bye = invite
                .replace("INVITE", "BYE")
                .replace("com>\nCall", "com>;tag=b\nCall")
                .replace("Max-Forwards", &format!("{route_lines}Max-Forwards"));
            let to: SocketAddr = NODE.parse().unwrap();
            let sent = hop(world.send(Leg::External, Transport::Tls, BROWSER, &bye));
            assert!(matches!(sent, Hop::Stream { to: it, .. } if it == to), "{sent:?}");
            assert!(world.lines("Route").iter().all(|it| !it.contains("10.0.0.1")));
        }
    }
    // A node calls out: the leg to the carrier is secure, its own is not.
    let mut world = World::new(ALL).with_nodes(&[NODE]);
    let invite = INVITE
        .replace("sip:bob@example.com SIP", "sips:bob@198.51.100.7 SIP")
        .replace("203.0.113.5:5062", NODE);
    world.send(Leg::Internal, Transport::Udp, NODE, &invite);
    let routes = world.lines("Record-Route");
    assert!(routes[0].starts_with("<sips:10.0.0.1:5061;transport=tls;lr;"), "{routes:?}");
    assert!(routes[1].starts_with("<sip:172.16.0.1:5065;transport=udp;lr;"), "{routes:?}");
}

#[test]
fn a_browser_that_is_called_is_reached_by_its_connection_for_the_whole_dialog() {
    for other in ["", "Record-Route: <sip:edge@z9.invalid;transport=ws;lr>\n"] {
        let mut world = World::new(&format!("{ALL}isSendTrying=false\n")).with_nodes(&[NODE]);
        let register = from_browser("WSS").replace("INVITE", "REGISTER");
        world.send(Leg::External, Transport::Wss, BROWSER, &register);
        let contact = world.lines("Contact")[0].trim_matches(['<', '>']).to_owned();
        let invite = INVITE
            .replace("sip:bob@example.com SIP", &format!("{contact} SIP"))
            .replace("203.0.113.5:5062", NODE);
        world.send(Leg::Internal, Transport::Udp, NODE, &invite);
        let routes = world.lines("Record-Route");
        assert_eq!(token(&routes[0]), FLOW, "the leg towards it names its connection");
        assert!(!routes[1].contains(";flow="), "{routes:?}");

        // It answers with a host that it made up, and no proxy or one of its own side in between.
        let (vias, routes) = (as_sent(&world, "Via"), as_sent(&world, "Record-Route"));
        let ok = format!(
            "\nSIP/2.0 200 OK\n{vias}{other}{routes}From: <sip:a@b>;tag=1\nTo: <sip:c@d>;tag=2\n\
             Contact: <sip:bob@k3.invalid;transport=ws>\nCall-ID: x\nCSeq: 1 INVITE\n\
             Content-Length: 0\n\n"
        );
        world.send(Leg::External, Transport::Wss, BROWSER, &ok);
        let (contact, top) = (&world.lines("Contact")[0], &world.lines("Record-Route")[0]);
        let patched = if other.is_empty() { contact } else { top };
        assert!(patched.contains("@203.0.113.5:51234;transport=ws"), "{patched}");
        assert_eq!(token(patched), FLOW);
        assert_eq!(contact.contains("k3.invalid"), !other.is_empty(), "{contact}");
    }
}

#[test]
fn a_phone_that_was_called_by_its_address_is_answered_on_its_own_connection() {
    let only_secure = "host=10.0.0.1\nexternalWssPort=5063\ninternalHost=172.16.0.1\n\
        internalPort=5065\nsip.internalTransport=UDP\n";
    for (config, transport, name) in [
        (ALL, Transport::Tcp, "tcp"),
        (ALL, Transport::Tls, "tls"),
        (ALL, Transport::Ws, "ws"),
        (only_secure, Transport::Wss, "wss"),
        // What browsers write over WSS (RFC 7118 §4).
        (only_secure, Transport::Wss, "ws"),
    ] {
        let mut world = World::new(&format!("{config}isSendTrying=false\n")).with_nodes(&[NODE]);
        let invite = INVITE
            .replace("sip:bob@example.com SIP", &format!("sip:bob@{BROWSER};transport={name} SIP"))
            .replace("203.0.113.5:5062", NODE);
        let called = hop(world.send(Leg::Internal, Transport::Udp, NODE, &invite));
        let from = world.listener(Leg::External, transport, Family::V4);
        assert_eq!(called, Hop::Stream { from, to: BROWSER.parse().unwrap() });
        let (vias, routes) = (as_sent(&world, "Via"), as_sent(&world, "Record-Route"));
        let ok = format!(
            "\nSIP/2.0 200 OK\n{vias}{routes}From: <sip:a@b>;tag=1\nTo: <sip:c@d>;tag=2\n\
             Contact: <sip:bob@192.168.1.7:5062;transport={name}>\nCall-ID: x\nCSeq: 1 INVITE\n\
             Content-Length: 0\n\n"
        );
        world.send(Leg::External, transport, BROWSER, &ok);
        let routes = world.lines("Record-Route");
        assert_eq!(token(&routes[0]), FLOW, "{routes:?}");
        assert!(!routes[1].contains(";flow="), "{routes:?}");
        // The node's ACK: where Contact says is behind a NAT, the connection is not.
        let route_lines: String = routes.iter().rev().map(|it| format!("Route: {it}\n")).collect();
        for method in ["ACK", "BYE"] {
            let request = format!(
                "\n{method} sip:bob@192.168.1.7:5062;transport={name} SIP/2.0\n\
                 Via: SIP/2.0/UDP {NODE};branch=z9hG4bKa\n{route_lines}From: <sip:a@b>;tag=1\n\
                 To: <sip:c@d>;tag=2\nCall-ID: x\nCSeq: 1 {method}\nMax-Forwards: 70\n\
                 Content-Length: 0\n\n"
            );
            let sent = hop(world.send(Leg::Internal, Transport::Udp, NODE, &request));
            assert!(matches!(sent, Hop::Flow { flow: FLOW, .. }), "{transport:?}: {sent:?}");
            let via = &world.lines("Via")[0];
            assert!(via.starts_with(&format!("SIP/2.0/{} ", transport.as_via())), "{via}");
        }
    }
}
