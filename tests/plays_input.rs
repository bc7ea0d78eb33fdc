//! What clients must not achieve, and what broken or unusual input is answered with (`sip.md` 2.3, 2.4,
//! 2.7, 2.10 to 2.13, 6.7, 7.2).

use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};

use tests::{Balancer, Dialog, Message, Node, PATIENCE, Peer, Setup, Uri, first_to_get, who_got};

fn stage() -> (Balancer, Vec<Node>, Peer) {
    let lb = Setup::two_entry().start();
    let nodes = lb.nodes(2);
    let caller = lb.caller("alice");
    (lb, nodes, caller)
}

/// What was sent before this has arrived when it returns: one shard keeps the order, and as many fresh
/// calls as there are nodes reach every node.
fn fence(nodes: &[Node], caller: &Peer) {
    for _ in nodes {
        caller.send(&caller.request("FENCE", "sip:bob@example.com"));
    }
    for node in nodes {
        node.expect("FENCE");
    }
}

/// Messages of a method that any node got.
fn count(nodes: &[Node], method: &str) -> usize {
    nodes.iter().map(|it| it.count(method)).sum()
}

#[test]
fn broken_requests_are_answered_where_the_standard_asks_and_never_forwarded() {
    let (lb, nodes, caller) = stage();
    let good = caller.request("MESSAGE", "sip:bob@example.com");
    let with = |name: &str, value: &str| good.clone().set(name, value);
    let start = |line: &str| {
        let mut it = good.clone();
        it.start = line.to_owned();
        it
    };
    let answered: [(&str, Message, u16); 6] = [
        ("another method in CSeq", with("CSeq", "1 INVITE"), 400),
        ("no number in CSeq", with("CSeq", "one MESSAGE"), 400),
        ("CSeq past 2^32", with("CSeq", "4294967296 MESSAGE"), 400),
        ("SIP of tomorrow", start("MESSAGE sip:bob@example.com SIP/3.0"), 505),
        ("no Request-URI", start("MESSAGE  SIP/2.0"), 400),
        ("a negative length", with("Content-Length", "-1"), 400),
    ];
    for (case, request, code) in answered {
        let request = request.set("Via", caller.via());
        caller.send_bytes(lb.external, &request.to_bytes());
        let answer = caller.expect(&code.to_string());
        assert_eq!(answer.vias().len(), 1, "{case}");
        assert_eq!(answer.call_id(), good.call_id(), "{case}");
        assert!(answer.tag("To").is_some(), "{case}");
        fence(&nodes, &caller);
        assert_eq!(count(&nodes, "MESSAGE"), 0, "{case} was forwarded");
    }
    let before = caller.record().len();
    for name in ["Via", "From", "To", "Call-ID", "CSeq"] {
        caller.send_bytes(lb.external, &good.clone().without(name).to_bytes());
    }
    for noise in
        [&b"\0"[..], b"\r\n", b"\r\n\r\n", b"hello", b"GET / HTTP/1.1\r\n\r\n", &[0xff; 1400]]
    {
        caller.send_bytes(lb.external, noise);
    }
    fence(&nodes, &caller);
    assert_eq!(count(&nodes, "MESSAGE"), 0);
    assert_eq!(caller.record().len(), before, "nothing to answer by");
    lb.wait_dropped("malformed", 8);
}

#[test] // 2.13: a parse error costs no other message of its connection
fn a_broken_message_costs_no_other_of_its_connection() {
    let (lb, nodes, caller) = stage();
    let caller = caller.over_tcp();
    let good = || caller.request("MESSAGE", "sip:bob@example.com");
    let mut tomorrow = good();
    tomorrow.start = tomorrow.start.replace("SIP/2.0", "SIP/3.0");
    let last = good();
    let all = [
        good().set("CSeq", "1 INVITE"),
        good().without("Call-ID"),
        tomorrow,
        good().set("Max-Forwards", "many"),
        last.clone(),
    ];
    let bytes: Vec<u8> = all.iter().flat_map(Message::to_bytes).collect();
    caller.send_bytes(lb.external, &bytes);
    let (at, got) = first_to_get(&nodes, "MESSAGE");
    assert_eq!(got.call_id(), last.call_id());
    nodes[at].reply(&got, 200, "OK");
    let answer = caller.expect("200 MESSAGE");
    let answers: Vec<u16> = caller.record().iter().map(|it| it.status()).collect();
    assert_eq!(answers, [400, 505, 400, 200]);
    assert!(caller.record().iter().all(|it| it.link == answer.link), "one connection");
}

#[test]
fn a_broken_ack_and_a_broken_response_are_never_answered() {
    let (lb, nodes, caller) = stage();
    let ack = caller.request("ACK", "sip:bob@example.com").set("CSeq", "1 INVITE");
    caller.send_bytes(lb.external, &ack.to_bytes());
    caller.send_bytes(lb.external, b"SIP/2.0 200 OK\r\nVia: broken\r\n\r\n");
    caller.send_bytes(lb.external, b"SIP/2.0 nonsense\r\n\r\n");
    fence(&nodes, &caller);
    assert!(caller.record().is_empty(), "{:?}", caller.record());
}

#[test]
fn responses_that_are_not_ours_are_dropped() {
    let (lb, nodes, caller) = stage();
    let victim = Peer::bind("victim");
    let forged = |vias: &[String]| {
        let mut it = Message::new("SIP/2.0 200 OK");
        for via in vias {
            it = it.with("Via", via);
        }
        it.with("From", "<sip:a@b>;tag=1")
            .with("To", "<sip:c@d>;tag=2")
            .with("Call-ID", "forged")
            .with("CSeq", "1 INVITE")
            .to_bytes()
    };
    let own = |port| format!("SIP/2.0/UDP 127.0.0.1:{port};branch=z9hG4bKguess_0");
    let to_victim = own(victim.address().port());
    for leg in [lb.external, lb.internal] {
        caller.send_bytes(leg, &forged(std::slice::from_ref(&to_victim)));
        caller.send_bytes(leg, &forged(&[own(lb.internal.port()), own(lb.external.port())]));
        caller.send_bytes(leg, &forged(&[own(lb.internal.port())]));
        caller.send_bytes(leg, &forged(&[]));
    }
    fence(&nodes, &caller);
    assert!(victim.record().is_empty());
    lb.wait_dropped("not_ours", 2);
}

#[test] // 7.2: memory and threads by arbitrary versions
fn invented_versions_in_branches_and_routes_change_nothing() {
    let (lb, nodes, caller) = stage();
    caller.send(&caller.request("INVITE", "sip:bob@example.com"));
    let (at, got) = first_to_get(&nodes, "INVITE");
    for version in ["999999999", "-7", "99999999999999999999", "x", ""] {
        let mut reply = got.reply(180, "Ringing");
        for (_, value) in reply.headers.iter_mut().filter(|(name, _)| name == "Via").take(2) {
            *value = value.replacen("_0", &format!("_{version}"), 1);
        }
        nodes[at].respond(&got, &reply);
        caller.expect("180");
    }
    // There is no such cluster; what cannot be read names none.
    for (version, is_served) in [("7", false), ("-1", false), ("x", true)] {
        let port = nodes[0].address().port();
        let route = format!(
            "<sip:{};lr;node_host=127.0.0.1;node_port={port};version={version}>",
            lb.external
        );
        let options = caller.request("OPTIONS", "sip:bob@example.com").with("Route", route);
        caller.send(&options);
        if is_served {
            let got = nodes[0].expect_in(options.call_id(), "OPTIONS");
            nodes[0].reply(&got, 200, "OK");
            caller.expect_in(options.call_id(), "200");
        } else {
            caller.expect_in(options.call_id(), "500");
        }
    }
    assert_eq!(count(&nodes, "OPTIONS"), 1);
    caller.send(&caller.request("MESSAGE", "sip:bob@example.com"));
    first_to_get(&nodes, "MESSAGE");
}

#[test] // blockedValues
fn scanners_hear_nothing_whatever_they_address() {
    let (lb, nodes, caller) = stage();
    let node = nodes[0].address();
    let hint = format!("<sip:{};lr;node_host=127.0.0.1;node_port={}>", lb.external, node.port());
    let request = |method: &str| caller.request(method, "sip:bob@example.com");
    let scans = [
        request("INVITE").with("User-Agent", "friendly-scanner"),
        request("OPTIONS").with("User-Agent", "x SIPVicious/0.3 y"),
        request("REGISTER").set("From", "\"sipcli\" <sip:1@x>;tag=1"),
        request("MESSAGE").set("To", "<sip:Friendly-Scanner@1.1.1.1>"),
        request("INVITE").with("User-Agent", "friendly-scanner").with("Route", hint),
        request("INVITE").to_uri(&format!("sip:x@{node}")).with("User-Agent", "sipvicious"),
        request("BYE").set("To", "<sip:a@b>;tag=1").with("User-Agent", "sipvicious"),
    ];
    for scan in &scans {
        caller.send_to(lb.external, scan);
    }
    fence(&nodes, &caller);
    for method in ["INVITE", "OPTIONS", "REGISTER", "MESSAGE", "BYE"] {
        assert_eq!(count(&nodes, method), 0, "{method}");
    }
    assert!(caller.record().is_empty(), "silence");
    assert_eq!(lb.dropped("blocked"), scans.len() as u64);
}

#[test]
fn blocking_can_be_answered_or_switched_off() {
    let lb = Setup::two_entry().set("blockedResponse", "403").start();
    let _nodes = lb.nodes(1);
    let caller = lb.caller("alice");
    let scan = caller.request("OPTIONS", "sip:bob@example.com").with("User-Agent", "sipcli");
    caller.send(&scan);
    assert!(caller.expect("403").tag("To").is_some());

    let lb = Setup::file(|it| {
        format!(
            "host=127.0.0.1\nexternalUdpPort={}\ninternalUdpPort={}\nstatisticPort={}\nblocked-values=\n",
            it.external, it.internal, it.statistic
        )
    })
    .start();
    let nodes = lb.nodes(1);
    lb.caller("alice").send(&scan);
    lb.caller("alice").send_to(lb.external, &scan);
    nodes[0].expect("OPTIONS");
}

#[test] // 7.2: open relay
fn no_request_from_outside_leaves_to_anything_but_a_registered_node() {
    let (lb, nodes, caller) = stage();
    let victim = Peer::bind("victim");
    let target = victim.address();
    let (external, port) = (lb.external, nodes[0].address().port());
    let hint = format!("<sip:{external};lr;node_host=127.0.0.1;node_port={port};version=0>");
    let forged =
        format!("<sip:{external};lr;node_host=127.0.0.1;node_port={};version=0>", target.port());
    let request = || caller.request("MESSAGE", &format!("sip:x@{target}"));
    let attempts = [
        request(),
        request().with("Route", &hint),
        request().with("Route", &forged),
        request().with("Route", &hint).set("To", "<sip:x@y>;tag=1"),
        request().with("Route", format!("<sip:{target};lr>")),
        request()
            .with("Route", format!("<sip:{external};lr>"))
            .with("Route", format!("<sip:{target};lr>")),
        request().with("Route", format!("<sip:{target};lr>")).set("To", "<sip:x@y>;tag=1"),
        request()
            .with("Route", format!("<sip:{external};lr>"))
            .with("Route", format!("<sip:{target}>")),
        request().to_uri(&format!(
            "sip:x@{external};maddr=127.0.0.1;node_host=127.0.0.1;node_port={}",
            target.port()
        )),
        request().to_uri(&format!("sip:x@{external};maddr={}", target.ip())),
    ];
    for attempt in &attempts {
        caller.send_to(external, attempt);
    }
    fence(&nodes, &caller);
    assert!(victim.record().is_empty(), "{:?}", victim.record()[0].message);
    assert_eq!(count(&nodes, "MESSAGE"), attempts.len(), "each went to a node");
}

#[test] // preloaded Route
fn preloaded_routes_to_the_balancer_are_stripped_however_they_are_written() {
    let (lb, nodes, caller) = stage();
    let (external, internal, port) = (lb.external, lb.internal, lb.external.port());
    let one = format!("<sip:{external};lr>");
    let cases: [Vec<String>; 8] = [
        vec![one.clone()],
        vec![format!("<sip:user@{external};lr>")],
        vec![format!("<sip:{external};transport=tcp;lr>")],
        vec![format!("<sip:{external};lr>"), format!("<sip:{internal};lr>")],
        vec![one.clone(), one.clone(), one.clone(), one.clone()], // sipp repeats them
        vec![format!("<sip:{external};lr>, <sip:{internal};transport=udp;lr>")],
        vec![format!("\"LB\" <sip:{external};lr>;x=y")],
        vec![format!("<SIP:127.0.0.1:{port};LR=on>")],
    ];
    for routes in cases {
        let mut request = caller.request("MESSAGE", "sip:bob@example.com");
        for route in &routes {
            request = request.with("Route", route);
        }
        caller.send_to(external, &request);
        let (at, got) = first_to_get(&nodes, "MESSAGE");
        let expected = format!("<sip:{};transport=udp;lr>", nodes[at].address());
        assert_eq!(got.routes(), [expected], "{routes:?}");
        assert_eq!(got.uri(), "sip:bob@example.com", "{routes:?}");
    }
}

#[test]
fn a_preloaded_route_to_a_live_node_is_followed() {
    let (lb, nodes, caller) = stage();
    for at in [0, 1, 1, 0] {
        let route = format!("<sip:{};lr>", nodes[at].address());
        let request = caller.request("MESSAGE", "sip:bob@example.com");
        caller.send_to(
            lb.external,
            &request.with("Route", format!("<sip:{};lr>", lb.external)).with("Route", &route),
        );
        let got = nodes[at].expect("MESSAGE");
        assert_eq!(got.routes(), [route.as_str()], "it stays: it is the node's to strip");
    }
}

#[test]
fn an_initial_request_addressed_to_a_live_node_goes_there() {
    let (_lb, nodes, caller) = stage();
    for at in [1, 1, 0, 1] {
        let uri = format!("sip:bob@{}", nodes[at].address());
        caller.send(&caller.request("MESSAGE", &uri));
        assert_eq!(nodes[at].expect("MESSAGE").uri(), uri);
    }
}

#[test]
fn a_hint_in_the_request_uri_names_the_node() {
    let (lb, nodes, caller) = stage();
    for at in [1, 1, 0, 1] {
        let port = nodes[at].address().port();
        let uri = format!("sip:bob@{};node_host=127.0.0.1;node_port={port};version=0", lb.external);
        caller.send(&caller.request("MESSAGE", &uri));
        let got = nodes[at].expect("MESSAGE");
        assert_eq!(Uri::of(got.uri()).address(), Some(nodes[at].address()), "{}", got.uri());
    }
}

#[test] // RFC 3261 16.4
fn a_strict_routers_request_uri_is_restored() {
    let (lb, nodes, caller) = stage();
    let port = nodes[1].address().port();
    let own = format!("sip:{};lr;node_host=127.0.0.1;node_port={port};version=0", lb.external);
    let target = format!("sip:bob@{}", nodes[1].address());
    let request = caller
        .request("BYE", &own)
        .set("To", "<sip:bob@example.com>;tag=1")
        .with("Route", format!("<sip:{};lr>", lb.internal))
        .with("Route", format!("<{target}>"));
    caller.send_to(lb.external, &request);
    let got = nodes[1].expect("BYE");
    assert_eq!(got.uri(), target);
    assert!(got.routes().is_empty(), "{:?}", got.routes());
}

#[test] // matchingHostnameForRoute
fn a_route_with_our_own_host_name_is_ours() {
    for (subdomains, host, is_ours) in [
        ("false", "lb.example.com", true),
        ("false", "LB.Example.COM:5060", true),
        ("false", "a.lb.example.com", false),
        ("true", "a.lb.example.com", true),
        ("true", "lb.example.com", true),
        ("true", "evil-lb.example.com", false),
    ] {
        let lb = Setup::two_entry()
            .set("matchingHostnameForRoute", "lb.example.com")
            .set("isFilterSubdomain", subdomains)
            .start();
        let nodes = lb.nodes(1);
        let caller = lb.caller("alice");
        let route = format!("<sip:{host};lr>");
        let request = caller.request("MESSAGE", "sip:bob@example.com").with("Route", &route);
        caller.send_to(lb.external, &request);
        let got = nodes[0].expect("MESSAGE");
        let stays = got.routes().contains(&route.as_str());
        assert_eq!(!stays, is_ours, "isFilterSubdomain={subdomains}, {host}: {:?}", got.routes());
    }
}

#[test] // loops
fn a_request_whose_next_hop_is_the_balancer_itself_is_refused_482() {
    let (lb, nodes, _) = stage();
    let node = &nodes[0];
    for uri in [lb.external, lb.internal].map(|it| format!("sip:bob@{it}")) {
        node.send_to(lb.internal, &node.request("INVITE", &uri));
        let refusal = node.expect("482");
        assert!(refusal.tag("To").is_some());
        assert_eq!(refusal.vias().len(), 1);
        node.send_to(lb.internal, &node.request("ACK", &uri));
    }
    lb.wait_dropped("loop", 2);
    assert_eq!(node.count("482 ACK"), 0);
    assert_eq!(count(&nodes, "INVITE"), 0);
}

#[test] // public IP
fn a_public_address_stands_in_our_own_headers_and_is_recognised_and_contact_is_not_touched() {
    let lb = Setup::two_entry().set("public-ip", "203.0.113.9").start();
    let nodes = lb.nodes(1);
    let node = &nodes[0];
    let caller = lb.caller("alice");
    let invite = caller.request("INVITE", "sip:bob@example.com");
    caller.send(&invite);
    let got = node.expect("INVITE");
    let public = format!("203.0.113.9:{}", lb.external.port());
    let routes = got.record_routes();
    assert!(routes[0].starts_with(&format!("<sip:{};", lb.internal)), "{routes:?}");
    assert!(routes[1].starts_with(&format!("<sip:{public};")), "{routes:?}");
    let contact = "\"Node\" <sip:user@172.16.0.10:5080;x=y>;+sip.instance=\"<urn:uuid:2>\"";
    node.respond(&got, &got.reply(200, "OK").set("Contact", contact));
    let ok = caller.expect("200 INVITE");
    assert_eq!(ok.header("Contact"), contact);
    let mut dialog = Dialog::of_caller(&caller, &invite, &ok);
    caller.send_to(lb.external, &dialog.request("BYE"));
    node.expect("BYE");

    let callee = lb.caller("bob");
    node.send(&node.request("INVITE", &callee.uri()).with("Route", lb.node_route(node)));
    let got = callee.expect("INVITE");
    assert!(
        got.record_routes()[0].starts_with(&format!("<sip:{public};")),
        "{:?}",
        got.record_routes()
    );
    assert!(got.vias()[0].contains(&public), "{:?}", got.vias());
    assert_eq!(got.header("Contact"), node.contact());
    callee.send_to(
        lb.external,
        &Dialog::of_callee(&callee, &got, &got.reply(200, "OK")).request("BYE"),
    );
    node.expect("BYE");
}

#[test]
fn legacy_contact_patching_changes_host_and_port_only_and_spares_register_and_3xx() {
    let lb = Setup::two_entry()
        .set("public-ip", "203.0.113.9")
        .set("legacyContactPatching", "true")
        .start();
    let nodes = lb.nodes(1);
    let caller = lb.caller("alice");
    let contact = "\"Node\" <sip:user@172.16.0.10:5080;x=y>;q=0.5";
    let patched = format!("\"Node\" <sip:user@203.0.113.9:{};x=y>;q=0.5", lb.external.port());
    for (method, code, expected) in
        [("INVITE", 200, patched.as_str()), ("INVITE", 302, contact), ("REGISTER", 200, contact)]
    {
        caller.send(&caller.request(method, "sip:bob@example.com"));
        let got = nodes[0].expect(method);
        nodes[0].respond(&got, &got.reply(code, "x").set("Contact", contact));
        let answer = caller.expect(&format!("{code} {method}"));
        assert_eq!(answer.header("Contact"), expected, "{code} {method}");
    }
}

#[test]
fn too_many_headers_vias_or_too_long_a_line_are_not_forwarded() {
    let (lb, nodes, caller) = stage();
    let good = || caller.request("MESSAGE", "sip:bob@example.com");
    let many = (0..300).fold(good(), |it, at| it.with(&format!("X-{at}"), "y"));
    let vias = (0..71)
        .fold(good(), |it, at| it.with("Via", format!("SIP/2.0/UDP 192.0.2.1;branch=z9hG4bK{at}")));
    let long = good().with("X-Long", "y".repeat(9000));
    for broken in [many, vias, long] {
        caller.send_to(lb.external, &broken);
    }
    fence(&nodes, &caller);
    assert_eq!(count(&nodes, "MESSAGE"), 0);
    let full = (0..200).fold(good(), |it, at| it.with(&format!("X-{at}"), "y"));
    caller.send_to(lb.external, &full.with("X-Long", "y".repeat(8000)));
    first_to_get(&nodes, "MESSAGE");
}

#[test] // 2.13
fn a_message_over_the_limit_on_a_stream_is_answered_513_and_the_connection_ends() {
    let lb = Setup::two_entry().set("gov.nist.javax.sip.MAX_MESSAGE_SIZE", "10000").start();
    let nodes = lb.nodes(1);
    let caller = lb.caller("alice").over_tcp();
    let big = caller
        .request("MESSAGE", "sip:bob@example.com")
        .with_body("text/plain", vec![b'x'; 10_001]);
    let mut client = TcpStream::connect(lb.external).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    // The balancer may close before everything is written.
    let _ = client.write_all(&big.to_bytes());
    let mut answer = Vec::new();
    let _ = client.read_to_end(&mut answer);
    assert!(answer.starts_with(b"SIP/2.0 513 "), "{}", String::from_utf8_lossy(&answer));
    caller.send(
        &caller.request("OPTIONS", "sip:bob@example.com").with_body("text/plain", vec![b'x'; 9000]),
    );
    nodes[0].expect("OPTIONS");
    assert_eq!(nodes[0].count("MESSAGE"), 0);
}

#[test]
fn a_stream_that_is_not_sip_is_closed_and_the_others_live_on() {
    let (lb, nodes, _) = stage();
    let caller = lb.caller("alice").over_tcp();
    caller.send(&caller.request("OPTIONS", "sip:bob@example.com"));
    first_to_get(&nodes, "OPTIONS");
    for noise in [
        &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..],
        &[0x16, 3, 1, 0, 200, 1, 0, 0, 196],
        &[b'x'; 70_000],
    ] {
        let mut client = TcpStream::connect(lb.external).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let _ = client.write_all(noise);
        let _ = client.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let end = client.read_to_end(&mut answer); // an answer or none, but an end
        let is_closed =
            end.is_ok() || end.is_err_and(|it| it.kind() == std::io::ErrorKind::ConnectionReset);
        assert!(is_closed, "{}", String::from_utf8_lossy(noise));
    }
    caller.send(&caller.request("MESSAGE", "sip:bob@example.com"));
    first_to_get(&nodes, "MESSAGE");
}

#[test] // 2.13
fn udp_keep_alives_are_silent_unless_they_are_asked_for() {
    let (lb, nodes, caller) = stage();
    caller.send_bytes(lb.external, b"\r\n\r\n");
    fence(&nodes, &caller);
    assert!(caller.record().is_empty());
    lb.wait_dropped("keep_alive", 1);

    let lb = Setup::two_entry().set("gov.nist.javax.sip.MIN_KEEPALIVE_TIME_SECONDS", "60").start();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.send_to(b"\r\n\r\n", lb.external).unwrap();
    let mut answer = [0; 100];
    let (length, _) = socket.recv_from(&mut answer).unwrap();
    assert_eq!(&answer[..length], b"\r\n\r\n");
}

#[test]
fn several_transactions_of_one_call_share_its_node_while_others_alternate() {
    let (_lb, nodes, caller) = stage();
    let first = caller.request("MESSAGE", "sip:bob@example.com");
    for cseq in 1..=4 {
        let next = first.clone().set("Via", caller.via()).set("CSeq", format!("{cseq} MESSAGE"));
        caller.send(&next);
        first_to_get(&nodes, "MESSAGE");
    }
    assert_eq!(who_got(&nodes, first.call_id(), "MESSAGE").len(), 1);
}
