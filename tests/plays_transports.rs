//! Legs, transports and address families (`sip.md` 1.1, 2.8, 6.4). Numbers in comments are items of the
//! catalogue in `sip.md` 6.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use tests::{
    Balancer, Dialog, Link, Node, PATIENCE, Peer, Setup, Transport, first_to_get, param, wait_for,
    who_got,
};

/// Single-entry mode knows no heartbeats, so the nodes are named in the configuration.
fn single_entry(count: usize) -> (Balancer, Vec<Node>) {
    let nodes: Vec<Node> = (0..count).map(|it| Node::bind(&format!("n{it}"))).collect();
    let list: Vec<String> = nodes.iter().map(Node::host_port).collect();
    let lb = Setup::single_entry()
        .set("extraServerNodes", &list.join(","))
        .set("performanceTestingMode", "true")
        .start();
    lb.wait_nodes(count);
    for node in &nodes {
        node.answers_calls();
    }
    (lb, nodes)
}

#[test] // 47
fn a_single_entry_balancer_carries_whole_calls_over_udp_and_tcp() {
    let (lb, nodes) = single_entry(2);
    for transport in [Transport::Udp, Transport::Tcp] {
        let mut caller = lb.caller("alice");
        caller.transport = transport;
        for _ in 0..4 {
            let mut dialog = caller.call("sip:bob@example.com");
            caller.exchange(&mut dialog, "BYE");
            let home = who_got(&nodes, &dialog.call_id, "INVITE");
            for method in ["ACK", "BYE"] {
                assert_eq!(
                    who_got(&nodes, &dialog.call_id, method),
                    home,
                    "{transport:?} {method}"
                );
            }
            assert_eq!(dialog.routes.len(), 1, "one leg, one Record-Route: {:?}", dialog.routes);
            assert!(dialog.routes[0].contains(&lb.external.to_string()), "{:?}", dialog.routes);
        }
        assert!(caller.count("180") >= 4);
    }
}

#[test]
fn a_single_entry_balancer_tells_nodes_from_clients_by_their_address() {
    let (lb, nodes) = single_entry(2);
    let caller = lb.caller("alice");
    caller.answers_calls();
    let node = &nodes[1];
    node.answers_nothing();
    nodes[0].answers_nothing();
    caller.send(&caller.request("INVITE", "sip:bob@example.com").set("CSeq", "1 INVITE"));
    let (at, got) = first_to_get(&nodes, "INVITE");
    let ok = nodes[at].reply(&got, 200, "OK");
    let ok_at_caller = caller.expect("200 INVITE");
    assert_eq!(ok_at_caller.find("X-Sip-Balancer-InitialRemoteAddr"), None, "not for clients");
    nodes[at].send(&Dialog::of_callee(&nodes[at], &got, &ok).request("BYE"));
    caller.expect("BYE");
    nodes[at].expect("200 BYE");

    // A client that claims a node's address in its Via is still a client: its request goes to a node.
    let (victim, forger) =
        (Peer::bind("victim"), Peer::bind_on("mallory", "127.0.0.2".parse().unwrap()));
    let forged = forger
        .request("MESSAGE", &victim.uri())
        .set("Via", format!("SIP/2.0/UDP {};branch=z9hG4bKforged", node.address()));
    forger.send_to(lb.external, &forged);
    first_to_get(&nodes, "MESSAGE");
    assert_eq!(victim.record().len(), 0);
}

#[test]
fn a_call_over_tcp_uses_tcp_on_both_legs_and_one_connection_each() {
    let lb = Setup::two_entry().start();
    let nodes = lb.answering_nodes(1);
    let caller = lb.caller("alice").over_tcp();
    let invite = caller.request("INVITE", "sip:bob@example.com");
    let mut dialog = caller.call_with(&invite);
    caller.exchange(&mut dialog, "BYE");
    let record = nodes[0].record();
    assert!(record.iter().all(|it| it.link == record[0].link && it.link != Link::Udp));
    let got = &record[0];
    for (via, transport) in got.vias().iter().zip(["TCP", "TCP", "TCP"]) {
        assert!(via.starts_with(&format!("SIP/2.0/{transport} ")), "{via}");
    }
    let vias = got.vias();
    assert_ne!(param(vias[0], "branch"), param(vias[1], "branch"));
    assert_eq!(got.routes(), [format!("<sip:{};transport=tcp;lr>", nodes[0].address())]);
    let stamp = format!("node_host=127.0.0.1;node_port={};version=0", nodes[0].address().port());
    for (route, own) in got.record_routes().iter().zip([lb.internal, lb.external]) {
        assert!(route.contains(&own.to_string()) && route.contains(";transport=tcp;lr"), "{route}");
        assert!(route.contains(&stamp), "{route}");
    }
}

#[test] // 8.5: flow token
fn a_node_reaches_a_tcp_client_on_the_clients_own_connection() {
    let lb = Setup::two_entry().set("shards", "2").start();
    let nodes = lb.nodes(1);
    let node = &nodes[0];
    for round in 0..4 {
        let caller = lb.caller(&format!("phone{round}")).over_tcp();
        // Behind NAT: nobody can connect to the Contact.
        let contact = "<sip:phone@10.255.255.1:5060;transport=tcp>";
        let invite = caller.request("INVITE", "sip:bob@example.com").set("Contact", contact);
        caller.send(&invite);
        let got = node.expect("INVITE");
        let ok = node.reply(&got, 200, "OK");
        let ok_at_caller = caller.expect("200 INVITE");
        caller.send(&Dialog::of_caller(&caller, &invite, &ok_at_caller).ack());
        let mut theirs = Dialog::of_callee(node, &got, &ok);
        for method in ["INFO", "BYE"] {
            node.send(&theirs.request(method));
            let request = caller.expect(method);
            assert_eq!(request.link, ok_at_caller.link, "round {round}: {method}");
            assert!(request.routes().is_empty());
            caller.reply(&request, 200, "OK");
            node.expect(&format!("200 {method}"));
        }
    }
}

#[test]
fn a_request_for_a_client_that_hung_up_its_connection_is_answered_not_lost() {
    let lb = Setup::two_entry().start();
    let nodes = lb.nodes(1);
    let node = &nodes[0];
    let mut caller = lb.caller("phone").over_tcp();
    let contact = "<sip:phone@127.0.0.1:1;transport=tcp>"; // nobody listens there
    caller.send(&caller.request("INVITE", "sip:bob@example.com").set("Contact", contact));
    let got = node.expect("INVITE");
    let ok = node.reply(&got, 200, "OK");
    caller.expect("200 INVITE");
    caller.close();
    node.send(&Dialog::of_callee(node, &got, &ok).request("BYE"));
    let refusal = node.expect_where("a refusal", |it| it.status() >= 400);
    assert_eq!(refusal.status(), 503); // #51, #125
}

#[test]
fn where_the_network_cuts_a_tcp_stream_does_not_matter() {
    let lb = Setup::two_entry().start();
    let nodes = lb.answering_nodes(1);
    let peer = Peer::bind("x").over_tcp();
    let message = |id: &str| {
        peer.request("MESSAGE", "sip:bob@example.com")
            .set("Call-ID", id)
            .with_body("text/plain", "\r\n\r\nMESSAGE sip:decoy SIP/2.0\r\n\r\n")
            .to_bytes()
    };
    let stream = [message("one"), b"\r\n".to_vec(), message("two"), message("three")].concat();
    for step in [1, 7, 100, 1460, stream.len()] {
        let mut client = TcpStream::connect(lb.external).unwrap();
        client.set_nodelay(true).unwrap();
        for piece in stream.chunks(step) {
            client.write_all(piece).unwrap();
        }
        for id in ["one", "two", "three"] {
            nodes[0].expect_in(id, "MESSAGE");
        }
    }
}

#[test] // 2.13
fn a_ping_on_a_stream_gets_its_pong() {
    let lb = Setup::two_entry().start();
    let nodes = lb.answering_nodes(1);
    let mut client = TcpStream::connect(lb.external).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    for _ in 0..3 {
        client.write_all(b"\r\n\r\n").unwrap();
        let mut pong = [0; 2];
        client.read_exact(&mut pong).unwrap();
        assert_eq!(&pong, b"\r\n");
    }
    let request = Peer::bind("x").over_tcp().request("OPTIONS", "sip:bob@example.com");
    client.write_all(&request.to_bytes()).unwrap();
    nodes[0].expect("OPTIONS");
}

#[test] // NumberOfActiveSipConnections, 6
fn connections_are_counted_while_they_are_open() {
    let lb = Setup::two_entry().start();
    let nodes = lb.answering_nodes(1);
    let mut caller = lb.caller("alice").over_tcp();
    let mut dialog = caller.call("sip:bob@example.com");
    nodes[0].expect("ACK");
    assert_eq!(lb.stat("NumberOfActiveSipConnections"), 2, "one client, one node");
    caller.exchange(&mut dialog, "BYE");
    caller.close();
    tests::wait_for("the client's connection to be forgotten", || {
        (lb.stat("NumberOfActiveSipConnections") == 1).then_some(())
    });
}

#[test]
fn a_node_that_closes_its_connection_is_connected_again() {
    let lb = Setup::two_entry().start();
    let mut nodes = lb.answering_nodes(1);
    let caller = lb.caller("alice").over_tcp();
    caller.call("sip:bob@example.com");
    nodes[0].restart();
    nodes[0].answers_calls();
    caller.call("sip:bob@example.com");
}

#[test] // 2.10
fn an_invite_towards_a_stream_is_answered_100_at_once_and_other_requests_are_not() {
    for is_on in [true, false] {
        let lb = Setup::two_entry().set("isSendTrying", &is_on.to_string()).start();
        let nodes = lb.nodes(1);
        let caller = lb.caller("alice").over_tcp();
        let invite = caller.request("INVITE", "sip:bob@example.com");
        caller.send(&invite);
        let got = nodes[0].expect("INVITE");
        nodes[0].reply(&got, 180, "Ringing");
        caller.send(&caller.request("MESSAGE", "sip:bob@example.com"));
        let message = nodes[0].expect("MESSAGE");
        nodes[0].reply(&message, 200, "OK");
        caller.expect("200 MESSAGE");
        let statuses: Vec<u16> = caller.record().iter().map(|it| it.status()).collect();
        let expected: &[u16] = if is_on { &[100, 180, 200] } else { &[180, 200] };
        assert_eq!(statuses, expected, "isSendTrying={is_on}");
        if is_on {
            let trying = caller.expect("100");
            assert_eq!(trying.vias().len(), 1);
            assert_eq!(trying.vias()[0].split(';').next(), invite.vias()[0].split(';').next());
        }
    }
}

/// A G3 file with both families on both legs; `sip` is spliced into the sip element.
fn xml(sip: &'static str) -> Setup {
    Setup::file(move |it| {
        format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<load-balancer-properties>\n\
             <common><host>127.0.0.1</host><ipv6Host>::1</ipv6Host><nodeTimeout>1500</nodeTimeout>\
             <heartbeatInterval>20</heartbeatInterval><statisticPort>{}</statisticPort></common>\n\
             <sip><external><udpPort>{e}</udpPort><tcpPort>{e}</tcpPort>\
             <ipv6UdpPort>{s}</ipv6UdpPort><ipv6TcpPort>{s}</ipv6TcpPort></external>\
             <internal><udpPort>{i}</udpPort><tcpPort>{i}</tcpPort>\
             <ipv6UdpPort>{t}</ipv6UdpPort><ipv6TcpPort>{t}</ipv6TcpPort></internal>{sip}</sip>\n\
             </load-balancer-properties>\n",
            it.statistic,
            e = it.external,
            i = it.internal,
            s = it.spare,
            t = it.spare_internal,
        )
    })
    .argument("-Dshards=1")
}

#[test] // RFC 3261 §18.2.2
fn a_node_may_answer_on_a_connection_of_its_own() {
    let node = Node::bind("n0");
    node.answers(|it| if it.method() == "OPTIONS" { vec![it.reply(200, "OK")] } else { vec![] });
    let single =
        Setup::single_entry().set("staticNodes", &format!("{}/udp+tcp", node.address())).start();
    let double = Setup::two_entry().start();
    let nodes = [node, double.announced(Node::bind("n1"))];
    for (lb, node, side) in
        [(&single, &nodes[0], single.external), (&double, &nodes[1], double.internal)]
    {
        lb.wait_nodes(1);
        let caller = lb.caller("alice").over_tcp();
        let invite = caller.request("INVITE", "sip:bob@example.com");
        caller.send(&invite);
        let got = node.expect("INVITE");
        let mut own = TcpStream::connect(side).unwrap();
        own.write_all(&got.reply(200, "OK").to_bytes()).unwrap();
        let ok = caller.expect("200 INVITE");
        assert_eq!(ok.vias().len(), 1);
        caller.send(&Dialog::of_caller(&caller, &invite, &ok).ack());
        node.expect("ACK");
    }
}

#[test] // 58
fn ipv6_clients_meet_ipv6_nodes_and_ipv4_clients_ipv4_nodes() {
    let lb = xml("").start();
    let mut six = Node::bind_v6("six");
    six.announce(&[lb.v6(lb.addresses.spare_internal)]);
    let four = lb.announced(Node::bind("four"));
    lb.wait_nodes(2);
    six.answers_calls();
    four.answers_calls();
    for transport in [Transport::Udp, Transport::Tcp] {
        for _ in 0..3 {
            let mut client = Peer::bind_v6("s6").through(lb.v6(lb.addresses.spare));
            client.transport = transport;
            let mut dialog = client.call("sip:bob@example.com");
            for route in &dialog.routes {
                assert!(
                    route.contains("<sip:[::1]:") && route.contains("node_host=[::1];"),
                    "{route}"
                );
            }
            assert_eq!(client.exchange(&mut dialog, "BYE").tag("To").as_deref(), Some("six"));
            let mut client = lb.caller("s4");
            client.transport = transport;
            let mut dialog = client.call("sip:bob@example.com");
            assert_eq!(client.exchange(&mut dialog, "BYE").tag("To").as_deref(), Some("four"));
        }
    }
    assert_eq!([six.count("INVITE"), four.count("INVITE")], [6, 6]);
}

#[test] // 59
fn nodes_of_both_families_call_out_with_their_hint_written_bare_or_in_brackets() {
    let lb = xml("").start();
    let mut six = Node::bind_v6("six");
    let internal = lb.v6(lb.addresses.spare_internal);
    six.announce(&[internal]);
    lb.wait_nodes(1);
    let callee = Peer::bind_v6("callee").through(lb.v6(lb.addresses.spare));
    let port = six.address().port();
    for host in ["::1", "[::1]"] {
        let route =
            format!("<sip:lb@{internal};transport=udp;node_host={host};node_port={port};lr>");
        six.send(&six.request("INVITE", &callee.uri()).with("Route", route));
        let got = callee.expect("INVITE");
        assert_eq!(got.record_routes().len(), 2);
        for route in got.record_routes() {
            assert!(
                route.contains(&format!("node_host=[::1];node_port={port};version=0")),
                "{route}"
            );
        }
        let ok = callee.reply(&got, 200, "OK");
        six.expect("200 INVITE");
        callee.send(&Dialog::of_callee(&callee, &got, &ok).request("BYE"));
        six.expect("BYE");
    }
}

#[test] // 6.7
fn an_ipv6_request_with_a_route_to_a_third_party_is_not_an_error() {
    let lb = xml("").start();
    let mut six = Node::bind_v6("six");
    six.announce(&[lb.v6(lb.addresses.spare_internal)]);
    lb.wait_nodes(1);
    let client = Peer::bind_v6("s6").through(lb.v6(lb.addresses.spare));
    let request = client.request("OPTIONS", "sip:bob@[2001:db8::1]");
    let foreign = "<sip:[2001:db8::2]:5060;lr>";
    client.send_to(lb.v6(lb.addresses.spare), &request.with("Route", foreign));
    let got = six.expect("OPTIONS");
    assert_eq!(got.routes().last(), Some(&foreign));
    assert_eq!(got.uri(), "sip:bob@[2001:db8::1]");
}

#[test] // 2.8; 50 to 53 without TLS
fn one_internal_transport_serves_clients_of_every_transport() {
    let cases = [("UDP", Transport::Tcp, "TCP", "udp"), ("tcp", Transport::Udp, "UDP", "tcp")];
    for (key, client_transport, outer, inner) in cases {
        let element = if key == "UDP" {
            "<internalTransport>UDP</internalTransport>"
        } else {
            "<internalTransport>tcp</internalTransport>"
        };
        let lb = xml(element).start();
        let nodes = lb.nodes(1);
        let mut caller = lb.caller("alice");
        caller.transport = client_transport;
        caller.answers_calls();
        let invite = caller.request("INVITE", "sip:bob@example.com");
        caller.send(&invite);
        let got = nodes[0].expect("INVITE");
        assert_eq!(got.link == Link::Udp, inner == "udp", "{key}");
        let vias = got.vias();
        assert!(vias[0].starts_with(&format!("SIP/2.0/{} ", inner.to_uppercase())), "{vias:?}");
        assert!(vias[1].starts_with(&format!("SIP/2.0/{outer} ")), "{vias:?}");
        let routes = got.record_routes();
        assert!(routes[0].contains(&format!(";transport={inner};lr")), "{routes:?}");
        assert!(
            routes[1].contains(&format!(";transport={};lr", outer.to_lowercase())),
            "{routes:?}"
        );
        let contact = tests::Uri::of(got.header("Contact"));
        assert_eq!(contact.param("transport"), Some(outer.to_lowercase()), "{key}");

        let ok = nodes[0].reply(&got, 200, "OK");
        let answer = caller.expect("200 INVITE");
        let mut ours = Dialog::of_caller(&caller, &invite, &answer);
        caller.send(&ours.ack());
        assert_eq!(nodes[0].expect("ACK").link == Link::Udp, inner == "udp", "{key}");
        let mut theirs = Dialog::of_callee(&nodes[0], &got, &ok);
        nodes[0].send(&theirs.request("BYE"));
        let bye = caller.expect("BYE");
        assert_eq!(bye.link == Link::Udp, outer == "UDP", "{key}: back on the client's transport");
        nodes[0].expect("200 BYE");
    }
}

/// What its connection and our queue for it do not hold.
#[test]
fn a_request_for_which_the_only_node_has_no_room_is_answered_503() {
    let deaf = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = deaf.local_addr().unwrap().port().to_string();
    let lb = Setup::two_entry().start();
    let node = Node::bind("deaf").property("udpPort", "").property("tcpPort", &port);
    let _node = lb.announced(node);
    lb.wait_nodes(1);
    let caller = lb.caller_over(Transport::Tcp, "alice");
    let refusal = wait_for("an answer", || {
        let invite = caller.request("INVITE", "sip:bob@example.com");
        caller.send(&invite.with_body("text/plain", "x".repeat(50_000)));
        caller.poll("503 INVITE")
    });
    assert!(refusal.tag("To").is_some(), "{refusal:?}");
    assert_eq!(lb.dropped("slow_peer"), 0, "one that is answered is not dropped");
}

#[test] // 1.2 rule 7
fn internal_transport_of_a_properties_file_has_no_effect() {
    let lb =
        Setup::two_entry().set("internalTransport", "TCP").set("externalTransport", "TCP").start();
    let nodes = lb.nodes(1);
    let caller = lb.caller("alice");
    caller.send(&caller.request("INVITE", "sip:bob@example.com"));
    assert_eq!(nodes[0].expect("INVITE").link, Link::Udp);
}

#[test] // 60
fn peers_named_by_a_routing_rule_see_our_own_addresses() {
    for has_rule in [true, false] {
        let mut setup = Setup::two_entry()
            .set("externalIpLoadBalancerAddress", "56.120.30.100")
            .set("externalIpLoadBalancerTcpPort", "5060")
            .set("internalIpLoadBalancerAddress", "127.0.0.1")
            .set("internalIpLoadBalancerTcpPort", "5066");
        if has_rule {
            setup = setup.set("routingRulesIpv4", "127.0.0.*=false");
        }
        let lb = setup.start();
        let nodes = lb.answering_nodes(1);
        let mut caller = lb.caller("KostyaNosach").over_tcp();
        caller.asks_rport = false;
        let invite = caller.request("INVITE", "sip:bob@example.com");
        let port = caller.address().port();
        let via = format!("SIP/2.0/TCP 127.0.0.2:{port};branch=z9hG4bKrules{port}");
        caller.send(&invite.set("Via", via));
        let got = nodes[0].expect("INVITE");
        let expected = if has_rule {
            [lb.internal.to_string(), lb.external.to_string()]
        } else {
            ["127.0.0.1:5066".to_owned(), "56.120.30.100:5060".to_owned()]
        };
        for (route, address) in got.record_routes().iter().zip(&expected) {
            assert!(
                route.contains(&format!("<sip:{address};"))
                    || route.contains(&format!("@{address};")),
                "{route}"
            );
        }
        let ok = caller.expect("200 INVITE");
        let mut dialog = Dialog::of_caller(&caller, &got, &ok);
        if has_rule {
            caller.send(&dialog.ack());
            caller.exchange(&mut dialog, "BYE");
            nodes[0].expect("ACK");
            nodes[0].expect("BYE");
        }
    }
}

#[test] // 61
fn answers_whose_lower_via_a_carrier_corrupted_find_the_node() {
    for transport in [Transport::Tcp, Transport::Udp] {
        let lb = Setup::two_entry()
            .algorithm("UserBasedAlgorithm")
            .set("sipHeaderAffinityKey", "From")
            .set("isUseWithNexmo", "true")
            .set("isSendTrying", "false")
            .start();
        let mut nodes = lb.nodes(2);
        nodes[0].transport = transport;
        let mut callee = lb.caller("bob");
        callee.transport = transport;
        let invite = nodes[0].request("INVITE", &callee.uri());
        nodes[0].send(&invite.with("Route", lb.node_route(&nodes[0])));
        let got = callee.expect("INVITE");
        for (code, reason) in [(180, "Ringing"), (200, "OK")] {
            let mut reply = got.reply(code, reason);
            let bottom = reply.headers.iter_mut().rfind(|(name, _)| name == "Via").unwrap();
            bottom.1 = format!(
                "{};received=127.0.0.2;rport=1111",
                bottom.1.split(";rport").next().unwrap()
            );
            callee.respond(&got, &reply);
            let arrived = nodes[0].expect(&code.to_string());
            assert!(!arrived.vias()[0].contains("rport=1111"), "{transport:?}");
        }
    }
}

#[test] // 62
fn answers_to_clients_keep_their_rport_with_the_same_setting() {
    let lb = Setup::two_entry().set("isUseWithNexmo", "true").start();
    let _nodes = lb.answering_nodes(1);
    let caller = lb.caller("alice");
    let ok = caller.ask("REGISTER", "sip:example.com");
    let port = caller.address().port().to_string();
    assert_eq!(param(ok.vias()[0], "rport"), Some(port));
    assert_eq!(param(ok.vias()[0], "received").as_deref(), Some("127.0.0.1"));
}
