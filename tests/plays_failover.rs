//! Nodes come, go, fall ill and leave (`sip.md` 4, 5 and 6.1, 6.2). Numbers in comments are items of the
//! catalogue in `sip.md` 6.

use std::collections::BTreeMap;
use std::net::UdpSocket;

use tests::{Balancer, Dialog, Node, Peer, Setup, first_to_get, free_port, wait_for, who_got};

/// Calls in a row; how many each node got.
fn deal(nodes: &[Node], caller: &Peer, calls: usize) -> Vec<usize> {
    let mut dealt = vec![0; nodes.len()];
    for _ in 0..calls {
        let dialog = caller.call("sip:bob@example.com");
        for at in who_got(nodes, &dialog.call_id, "INVITE") {
            dealt[at] += 1;
        }
    }
    dealt
}

fn names(lb: &Balancer) -> Vec<String> {
    let mut names: Vec<String> = lb.known().into_iter().map(|it| it.host_name).collect();
    names.sort();
    names
}

#[test] // 2, 3, 8, 12
fn a_node_that_falls_silent_is_taken_out_and_only_that_one() {
    let lb = Setup::two_entry().start();
    let mut nodes = lb.nodes(2);
    nodes[0].fall_silent();
    lb.wait_nodes(1);
    assert_eq!(names(&lb), ["n1"]);
    nodes[0].restart();
    lb.wait_nodes(2);
    lb.wait_log("removed");
}

#[test] // 12
fn without_an_internal_address_the_common_one_is_used() {
    let lb = Setup::two_entry().set("externalHost", "127.0.0.1").start();
    let nodes = lb.answering_nodes(2);
    assert_eq!(deal(&nodes, &lb.caller("alice"), 2), [1, 1]);
}

#[test] // 9, 13, 26, 30
fn with_no_node_left_every_request_but_ack_is_answered_500_with_a_tag() {
    let lb = Setup::two_entry().start();
    let caller = lb.caller("alice");
    let mut nodes = lb.nodes(2);
    for node in &mut nodes {
        node.fall_silent();
    }
    lb.wait_nodes(0);
    caller.send(&caller.request("ACK", "sip:bob@example.com"));
    for method in ["INVITE", "REGISTER", "BYE", "CANCEL", "OPTIONS"] {
        let request = caller.request(method, "sip:bob@example.com");
        caller.send(&request);
        let refusal = caller.expect_in(request.call_id(), &format!("500 {method}"));
        assert_eq!(refusal.start, "SIP/2.0 500 No nodes available", "{method}");
        assert_eq!(refusal.vias().len(), 1, "{method}");
        assert!(refusal.vias()[0].contains(&caller.address().to_string()), "{method}");
        let tag = refusal.tag("To").expect("a To tag");
        caller.send(&request);
        let again = caller.expect_in(request.call_id(), &format!("500 {method}"));
        assert_eq!(again.tag("To"), Some(tag), "{method}: a retransmission gets the same answer");
    }
    assert_eq!(caller.count("500 ACK"), 0);
    lb.wait_dropped("no_node", 1);
}

#[test] // 9
fn the_status_without_nodes_is_configurable() {
    let lb = Setup::two_entry().set("noNodeStatusCode", "503").start();
    let caller = lb.caller("alice");
    caller.send(&caller.request("INVITE", "sip:bob@example.com"));
    let refusal = caller.expect("503");
    assert!(refusal.find("Retry-After").is_some_and(|it| it.parse::<u32>().is_ok()));
}

#[test] // 14
fn a_dialog_whose_node_dies_goes_on_at_a_survivor_with_its_request_uri_kept() {
    let lb = Setup::two_entry().start();
    let mut nodes = lb.answering_nodes(2);
    let caller = lb.caller("alice");
    let mut dialog = caller.call("sip:bob@example.com");
    let dead = who_got(&nodes, &dialog.call_id, "INVITE")[0];
    let survivor = 1 - dead;
    nodes[dead].die();
    lb.wait_nodes(1);
    for method in ["INFO", "UPDATE", "BYE"] {
        caller.exchange(&mut dialog, method);
        let got = nodes[survivor].expect(method);
        assert_eq!(got.uri(), dialog.target, "{method}: only a node's own RR entry is readdressed");
        let route = format!("<sip:{};transport=udp;lr>", nodes[survivor].address());
        assert_eq!(got.routes(), [route], "{method}");
    }
}

#[test]
fn the_applications_own_route_entry_is_readdressed_to_the_survivor_with_its_parameters() {
    let lb = Setup::two_entry().start();
    let mut nodes = lb.nodes(2);
    let caller = lb.caller("alice");
    caller.send(&caller.request("INVITE", "sip:bob@example.com"));
    let (dead, got) = first_to_get(&nodes, "INVITE");
    // The application records itself too, as servlet containers do, and is a proxy: its Contact is elsewhere.
    let own = format!("<sip:app@{};lr;appname=chat;as=7>", nodes[dead].address());
    let mut ok = got.reply(200, "OK");
    let at = ok.headers.iter().position(|(name, _)| name == "Record-Route").unwrap();
    ok.headers.insert(at, ("Record-Route".to_owned(), own));
    nodes[dead].respond(&got, &ok);
    let answer = caller.expect("200 INVITE");
    let mut dialog = Dialog::of_caller(&caller, &got, &answer);
    assert_eq!(dialog.routes.len(), 3);

    caller.send(&dialog.request("INFO"));
    let info = nodes[dead].expect("INFO");
    assert_eq!(info.routes().len(), 1, "its own entry is all that is left: {:?}", info.routes());

    nodes[dead].die();
    lb.wait_nodes(1);
    caller.send(&dialog.request("BYE"));
    let bye = nodes[1 - dead].expect("BYE");
    let routes = bye.routes();
    assert_eq!(routes.len(), 1, "{routes:?}");
    let uri = tests::Uri::of(routes[0]);
    assert_eq!(uri.address(), Some(nodes[1 - dead].address()), "{routes:?}");
    assert_eq!((uri.user.as_str(), uri.param("appname").as_deref()), ("app", Some("chat")));
    assert_eq!(uri.param("as").as_deref(), Some("7"));
}

#[test]
fn a_node_that_returns_gets_its_dialogs_back() {
    let lb = Setup::two_entry().start();
    let mut nodes = lb.answering_nodes(2);
    let caller = lb.caller("alice");
    let mut dialog = caller.call("sip:bob@example.com");
    let home = who_got(&nodes, &dialog.call_id, "INVITE")[0];
    nodes[home].die();
    lb.wait_nodes(1);
    caller.exchange(&mut dialog, "INFO");
    nodes[home].restart();
    nodes[home].answers_calls();
    lb.wait_nodes(2);
    caller.exchange(&mut dialog, "BYE");
    assert_eq!(who_got(&nodes, &dialog.call_id, "BYE"), [home]);
}

#[test] // 11, 15, 17
fn a_final_answer_to_a_call_of_a_dead_node_reaches_a_survivor() {
    let lb = Setup::two_entry().start();
    let mut nodes = lb.nodes(3);
    let callee = lb.caller("bob");
    let invite = nodes[0].request("INVITE", &callee.uri()).with("Route", lb.node_route(&nodes[0]));
    nodes[0].send(&invite);
    let got = callee.expect("INVITE");
    assert!(got.record_routes()[0].contains("node_host=127.0.0.1"));
    callee.reply(&got, 180, "Ringing");
    nodes[0].expect("180");
    nodes[0].die();
    lb.wait_nodes(2);
    callee.reply(&got, 200, "OK");
    let (at, ok) = first_to_get(&nodes[1..], "200 INVITE");
    let via = ok.vias()[0];
    assert!(via.contains(&nodes[1 + at].address().to_string()), "{via}");
    assert_eq!(
        (tests::param(via, "received"), tests::param(via, "rport").filter(|it| !it.is_empty())),
        (None, None)
    );
    callee.reply(&got, 200, "OK"); // its retransmission goes the same way
    nodes[1 + at].expect("200 INVITE");
}

#[test] // 15
fn a_node_may_send_its_call_to_the_external_port_only_in_vain() {
    // The original let nodes originate through the external port; a source address is no proof there, and
    // requests from outside go to registered nodes only (decision 5), so the callee must not get it.
    let lb = Setup::two_entry().start();
    let nodes = lb.nodes(1);
    let stranger = Peer::bind("stranger");
    let node = &nodes[0];
    let hint = lb.node_route(node).replace(&lb.internal.to_string(), &lb.external.to_string());
    node.send(&node.request("INVITE", &stranger.uri()).with("Route", hint));
    let got = node.expect("INVITE");
    assert_eq!(got.source, lb.internal);
    assert_eq!(stranger.record().len(), 0);
}

#[test]
fn a_late_answer_of_an_expired_node_still_reaches_the_caller() {
    let lb = Setup::two_entry().start();
    let mut nodes = lb.nodes(2);
    let caller = lb.caller("alice");
    caller.send(&caller.request("INVITE", "sip:bob@example.com"));
    let (at, got) = first_to_get(&nodes, "INVITE");
    nodes[at].fall_silent();
    lb.wait_nodes(1);
    nodes[at].reply(&got, 200, "OK");
    caller.expect("200 INVITE");
}

#[test] // 16
fn a_third_party_server_announces_itself_by_sip_options() {
    let lb = Setup::two_entry().start();
    let bare = Node::bind("x")
        .property("hostname", "sipHeartbeat")
        .property("tcpPort", "1")
        .property("udpPort", "2")
        .property("version", "")
        .property("sessionId", "");
    let node = lb.announced(bare);
    wait_for("five pings", || (node.beats_answered() >= 5).then_some(()));
    assert_eq!(node.last_status(), 200);
    let known = lb.known();
    assert_eq!(known.len(), 1);
    assert_eq!((known[0].host_name.as_str(), known[0].ip.as_str()), ("sipHeartbeat", "127.0.0.1"));
    assert_eq!(known[0].property("udpPort"), Some("2"));
    assert_eq!(known[0].property("tcpPort"), Some("1"));
}

#[test]
fn heartbeats_come_as_options_or_info_under_either_header_and_keep_their_properties() {
    let lb = Setup::two_entry().start();
    let sender = Peer::bind("sender");
    for (at, (method, header)) in [
        ("OPTIONS", "Mobicents-Heartbeat"),
        ("INFO", "Restcomm-Heartbeat"),
        ("INFO", "mobicents-heartbeat"),
    ]
    .iter()
    .enumerate()
    {
        let port = 7000 + at;
        let body = format!("hostName=h{at}\r\nip=127.0.0.1\r\nudpPort={port}\r\nrole=media\r\n");
        let beat = sender.request(method, "sip:usera@127.0.0.1:5033").with(header, "1");
        sender.send_to(lb.internal, &beat.with_body("text/plain;charset=UTF-8", body));
        let ok = sender.expect(&format!("200 {method}"));
        assert!(ok.tag("To").is_some(), "a final answer has a To tag");
        let entry = lb.wait_node("the node", |it| it.host_name == format!("h{at}"));
        assert_eq!(entry.property("role"), Some("media"));
    }
}

#[test]
fn a_heartbeat_that_makes_no_sense_is_refused_and_not_forwarded() {
    let lb = Setup::two_entry().start();
    let nodes = lb.nodes(1);
    let sender = Peer::bind("sender");
    for (body, status) in [
        ("udpPort=1\nhostname=no-ip\n", "200"), // sip.md 4.2: refused, and answered as ever
        ("ip=not.an.ip\nudpPort=1\nhostname=h\n", "200"),
        ("", "200"),
        ("ip=127.0.0.9\nhostname=no-ports\n", "400"),
        ("ip=127.0.0.9\nudpPort=1\nversion=latest\n", "400"),
        ("ip=127.0.0.9\nudpPort=99999\n", "400"),
    ] {
        let beat = sender.request("OPTIONS", "sip:x@example.com").with("Mobicents-Heartbeat", "1");
        sender.send_to(lb.internal, &beat.clone().with_body("text/plain", body));
        let answer = sender.expect_in(beat.call_id(), status);
        assert!(answer.start.len() > "SIP/2.0 400 ".len(), "{body:?}: no reason given");
        assert_eq!(lb.known().len(), 1, "{body:?}");
    }
    lb.wait_log("Heartbeat from 127.0.0.1 refused: Heartbeat without ip");
    assert_eq!(nodes[0].count("OPTIONS"), 0);
}

#[test]
fn heartbeats_on_the_external_leg_register_nobody() {
    let lb = Setup::two_entry().start();
    let nodes = lb.nodes(1);
    let stranger = lb.caller("stranger");
    let beat = stranger.request("OPTIONS", "sip:lb@example.com").with("Mobicents-Heartbeat", "1");
    stranger.send(&beat.with_body("text/plain", "ip=127.0.0.1\nudpPort=9\nhostname=evil\n"));
    stranger.send(&stranger.request("MESSAGE", "sip:bob@example.com"));
    nodes[0].expect("MESSAGE");
    assert_eq!(names(&lb), ["n0"]);
}

#[test] // 4
fn a_node_is_its_address_and_ports_whatever_its_name() {
    // Each beats once and must be there to the end.
    let lb = Setup::two_entry().set("nodeTimeout", "600000").start();
    let sender = Peer::bind("sender");
    let announce = |body: &str| {
        let beat = sender.request("OPTIONS", "sip:x@example.com").with("Mobicents-Heartbeat", "1");
        sender.send_to(lb.internal, &beat.with_body("text/plain", body));
        sender.expect("200 OPTIONS");
    };
    announce("ip=127.0.0.1\nudpPort=7001\nhostname=one\n");
    announce("ip=127.0.0.1\nudpPort=7001\nhostname=other-name\n");
    lb.wait_nodes(1);
    announce("ip=127.0.0.2\nudpPort=7001\nhostname=one\n");
    lb.wait_nodes(2);
    announce("ip=127.0.0.1\nudpPort=7002\nhostname=one\n");
    lb.wait_nodes(3);
    announce("ip=127.0.0.1\nudpPort=7001\ntcpPort=7009\nhostname=one\n");
    lb.wait_nodes(3); // it shares a port with the first: the same node, updated in place
    lb.wait_node("the added port", |it| it.property("tcpPort") == Some("7009"));
}

#[test] // history: #88
fn traffic_of_a_node_counts_as_its_life_sign() {
    let lb = Setup::two_entry().start();
    let mut nodes = lb.nodes(2);
    nodes[0].fall_silent();
    let callee = lb.caller("bob");
    callee.answers_calls();
    let invite = nodes[0].request("MESSAGE", &callee.uri());
    // The other node falls silent entirely; when it has expired, well over one timeout has passed.
    nodes[1].fall_silent();
    wait_for("the expiry of n1", || {
        let invite =
            invite.clone().set("Via", nodes[0].via()).with("Route", lb.node_route(&nodes[0]));
        nodes[0].send(&invite);
        nodes[0].expect("200 MESSAGE");
        (names(&lb) == ["n0"]).then_some(())
    });
    lb.wait_nodes(0); // and once it is quiet it expires like any other
}

#[test] // 10
fn the_node_that_answered_a_call_may_go_and_the_table_shows_it() {
    let lb = Setup::two_entry().start();
    let mut nodes = lb.answering_nodes(2);
    let dialog = lb.caller("alice").call("sip:bob@example.com");
    let at = who_got(&nodes, &dialog.call_id, "INVITE")[0];
    nodes[at].die();
    lb.wait_nodes(1);
    assert_eq!(names(&lb), [format!("n{}", 1 - at)]);
}

#[test] // 18
fn a_call_through_a_b2bua_keeps_its_two_dialogs_apart_under_one_call_id() {
    let lb = Setup::two_entry().start();
    let nodes = lb.nodes(1);
    let b2bua = &nodes[0];
    let (alice, bob) = (lb.caller("alice"), lb.caller("bob"));

    let invite = alice
        .request("INVITE", &bob.uri())
        .with("Route", format!("<sip:lbint@{};lr>", lb.external));
    alice.send(&invite);
    let leg_a = b2bua.expect("INVITE");
    let leg_b = b2bua
        .request("INVITE", &bob.uri())
        .set("Call-ID", invite.call_id())
        .with("Route", lb.node_route(b2bua));
    b2bua.send(&leg_b);
    let at_bob = bob.expect("INVITE");

    bob.reply(&at_bob, 180, "Ringing");
    b2bua.expect("180");
    b2bua.reply(&leg_a, 180, "Ringing");
    alice.expect("180");
    bob.reply(&at_bob, 200, "OK");
    let ok_b = b2bua.expect("200 INVITE");
    let mut dialog_b = Dialog::of_caller(b2bua, &leg_b, &ok_b);
    b2bua.send(&dialog_b.ack());
    b2bua.reply(&leg_a, 200, "OK");
    let ok_a = alice.expect("200 INVITE");
    let mut dialog_a = Dialog::of_caller(&alice, &invite, &ok_a);
    alice.send(&dialog_a.ack());
    b2bua.expect("ACK");
    bob.expect("ACK");

    alice.send(&dialog_a.request("BYE"));
    let bye = b2bua.expect("BYE");
    b2bua.send(&dialog_b.request("BYE"));
    let at_bob = bob.expect("BYE");
    bob.reply(&at_bob, 200, "OK");
    b2bua.expect("200 BYE");
    b2bua.reply(&bye, 200, "OK");
    alice.expect("200 BYE");
    let methods: Vec<String> = bob.record().iter().map(|it| it.method().to_owned()).collect();
    assert_eq!(methods, ["INVITE", "ACK", "BYE"]);
}

/// Places calls until this node is bad; every call is answered with something final.
fn outcome(caller: &Peer) -> u16 {
    let invite = caller.request("INVITE", "sip:bob@example.com");
    caller.send(&invite);
    let answer = caller.expect_where("a final answer", |it| {
        it.call_id() == invite.call_id() && it.status() >= 200
    });
    answer.status()
}

#[test] // 19, and maxErrorTime, #58, #92
fn a_node_that_answers_too_many_errors_gets_no_new_calls_until_it_restarts() {
    let lb = Setup::two_entry()
        .set("responsesStatusCodeNodeRemoval", "503")
        .set("maxNumberResponsesWithError", "2")
        .set("maxErrorTime", "3000000")
        .start();
    let mut nodes = lb.answering_nodes(2);
    nodes[1].answers(|it| match it.method() {
        "ACK" => vec![],
        _ => vec![it.reply(503, "Unable to setup media services")],
    });
    let caller = lb.caller("alice").over_tcp();
    let mut seen = BTreeMap::new();
    for call in 0..7 {
        *seen.entry(outcome(&caller)).or_insert(0) += 1;
        if seen.get(&503) == Some(&3) && call < 6 {
            lb.wait_node("the bad mark", |it| it.host_name == "n1" && it.is_bad);
        }
    }
    assert_eq!(seen, BTreeMap::from([(503, 3), (200, 4)]));
    assert_eq!((nodes[0].count("INVITE"), nodes[1].count("INVITE")), (4, 3));

    nodes[0].die();
    nodes[1].restart();
    nodes[1].answers_calls();
    lb.wait_nodes(1);
    lb.wait_node("a clean slate", |it| it.host_name == "n1" && !it.is_bad);
    assert_eq!(outcome(&caller), 200);
    assert_eq!(nodes[1].count("INVITE"), 1);
}

#[test] // maxErrorTime
fn errors_further_apart_than_max_error_time_do_not_add_up() {
    let lb = Setup::two_entry()
        .set("responsesStatusCodeNodeRemoval", "503,404")
        .set("maxNumberResponsesWithError", "1")
        .set("maxErrorTime", "1")
        .start();
    let nodes = lb.answering_nodes(1);
    nodes[0].answers(|it| if it.is("ACK") { vec![] } else { vec![it.reply(404, "No")] });
    let caller = lb.caller("alice");
    for _ in 0..5 {
        assert_eq!(outcome(&caller), 404);
        let mark = nodes[0].beats_answered();
        wait_for("some time", || (nodes[0].beats_answered() > mark + 1).then_some(()));
    }
    assert!(!lb.known()[0].is_bad);
}

#[test] // 20
fn a_node_that_pings_but_never_answers_gets_no_new_calls() {
    let lb = Setup::two_entry()
        .set("maxRequestNumberWithoutResponse", "2")
        .set("maxResponseTime", "300")
        .set("isSendTrying", "false")
        .start();
    let nodes = lb.answering_nodes(2);
    nodes[1].answers_nothing();
    let caller = lb.caller("alice");
    let (mut answered, mut calls) = (0, 0);
    wait_for("the bad mark", || {
        let invite = caller.request("INVITE", "sip:bob@example.com");
        caller.send(&invite);
        let at = first_to_get(&nodes, "INVITE").0;
        calls += 1;
        if at == 0 {
            caller.expect_in(invite.call_id(), "200 INVITE");
            answered += 1;
        }
        let mark = nodes[0].beats_answered();
        wait_for("a beat", || (nodes[0].beats_answered() > mark).then_some(()));
        lb.known().iter().any(|it| it.host_name == "n1" && it.is_bad).then_some(())
    });
    assert!(
        nodes[1].count("INVITE") >= 3,
        "the third unanswered request is the first that may trip it"
    );
    assert_eq!(calls, answered + nodes[1].count("INVITE"));
    for _ in 0..4 {
        assert_eq!(outcome(&caller), 200);
    }
}

#[test] // 21
fn a_stream_that_is_refused_is_answered_503_with_the_configured_reason() {
    let lb = Setup::two_entry()
        .set("isSend5xxResponse", "true")
        .set("isSend5xxResponseReasonHeader", "Destination not available")
        .set("isSend5xxResponseSatusCode", "503")
        .start();
    // It announces a port where nobody listens.
    let closed = free_port().to_string();
    let mut node = Node::bind("n0").property("tcpPort", &closed).property("udpPort", "");
    node.announce(&[lb.internal]);
    lb.wait_nodes(1);
    let caller = lb.caller("alice").over_tcp();
    caller.send(&caller.request("INVITE", "sip:bob@example.com"));
    let refusal = caller.expect_where("a final answer", |it| it.status() >= 200);
    assert_eq!(refusal.status(), 503);
    assert_eq!(refusal.vias().len(), 1);
    assert!(refusal.tag("To").is_some());
    let reason = refusal.header("Reason");
    assert!(reason.starts_with("SIP") && reason.contains("cause=503"), "{reason}");
    assert!(reason.contains("text=\"Destination not available\""), "{reason}");
}

#[test] // RFC 3261 §16.9, §18.4
fn a_datagram_that_nobody_outside_takes_is_answered_503() {
    let lb = Setup::two_entry().start();
    let nodes = lb.nodes(1);
    let node = &nodes[0];
    let closed = format!("127.0.0.1:{}", free_port());
    let route = lb.node_route(node);
    node.send(&node.request("OPTIONS", &format!("sip:bob@{closed}")).with("Route", &route));
    node.expect("503 OPTIONS");
    // An answer that nobody takes is answered by nobody.
    let caller = UdpSocket::bind("127.0.0.1:0").unwrap();
    let options = lb.caller("alice").request("OPTIONS", "sip:bob@example.com");
    caller.send_to(&options.to_bytes(), lb.external).unwrap();
    let got = node.expect("OPTIONS");
    drop(caller);
    node.reply(&got, 200, "OK");
    node.send(&node.request("OPTIONS", &format!("sip:bob@{closed}")).with("Route", &route));
    node.expect("503 OPTIONS");
    assert!(node.poll("503").is_none());
}

#[test] // decision 11
fn a_call_that_one_node_refuses_is_given_to_another_at_once() {
    let lb = Setup::two_entry().start();
    let mut nodes = lb.answering_nodes(2);
    nodes[0].close(); // the process is gone, its heartbeats are not yet missed
    for caller in [lb.caller("u"), lb.caller("t").over_tcp()] {
        for _ in 0..4 {
            // Over UDP the first datagram finds the port closed and is lost; its retransmission is not.
            let invite = caller.request("INVITE", "sip:bob@example.com");
            wait_for("an answer", || {
                caller.send(&invite);
                let mark = nodes[1].beats_answered();
                wait_for("a beat", || (nodes[1].beats_answered() > mark).then_some(()));
                caller.poll("200 INVITE")
            });
        }
    }
    assert_eq!(nodes[0].count("INVITE"), 0);
}

#[test] // 23
fn a_leaving_node_keeps_its_calls_and_gets_no_new_ones() {
    for algorithm in ["CallIDAffinityBalancerAlgorithm", "UserBasedAlgorithm"] {
        let lb = Setup::two_entry().algorithm(algorithm).set("sipHeaderAffinityKey", "To").start();
        let nodes = lb.answering_nodes(2);
        let caller = lb.caller("alice");
        let mut first = caller.call("sip:bob@example.com");
        let leaving = who_got(&nodes, &first.call_id, "INVITE")[0];
        nodes[leaving].leave();
        lb.wait_node("the mark", |it| it.host_name == format!("n{leaving}") && it.is_leaving);
        caller.exchange(&mut first, "BYE");
        assert_eq!(who_got(&nodes, &first.call_id, "BYE"), [leaving], "{algorithm}");
        for _ in 0..3 {
            let mut next = caller.call("sip:bob@example.com");
            caller.exchange(&mut next, "BYE");
            assert_eq!(who_got(&nodes, &next.call_id, "INVITE"), [1 - leaving], "{algorithm}");
            assert_eq!(who_got(&nodes, &next.call_id, "BYE"), [1 - leaving], "{algorithm}");
        }
    }
}

#[test]
fn a_register_is_not_sent_to_a_leaving_node() {
    let lb = Setup::two_entry().start(); // #59, #78
    let nodes = lb.answering_nodes(2);
    nodes[0].leave();
    lb.wait_node("the mark", |it| it.is_leaving);
    let caller = lb.caller("alice");
    for _ in 0..4 {
        caller.ask("REGISTER", "sip:example.com");
    }
    assert_eq!(nodes[1].count("REGISTER"), 4);
}

#[test] // 22
fn a_new_node_warms_up_before_it_gets_its_full_share() {
    let lb = Setup::two_entry()
        .set("trafficRampupCyclePeriod", "600000")
        .set("trafficPercentageIncrease", "50")
        .start();
    let nodes = lb.answering_nodes(2);
    // Both are cold, and equals share equally.
    assert_eq!(deal(&nodes, &lb.caller("alice"), 6), [3, 3]);

    let lb = Setup::two_entry()
        .set("trafficRampupCyclePeriod", "5000")
        .set("trafficPercentageIncrease", "50")
        .start();
    let mut nodes = lb.answering_nodes(1);
    let caller = lb.caller("alice");
    let mark = nodes[0].beats_answered();
    wait_for("the first node to be warm", || (nodes[0].beats_answered() > mark + 36).then_some(()));
    let cold = lb.announced(Node::bind("n1"));
    cold.answers_calls();
    nodes.push(cold);
    lb.wait_nodes(2);
    assert_eq!(deal(&nodes, &caller, 6), [4, 2]);
    let mark = nodes[1].beats_answered();
    wait_for("the second to be warm", || (nodes[1].beats_answered() > mark + 36).then_some(()));
    assert_eq!(deal(&nodes, &caller, 6), [3, 3]);
}

#[test] // 5.9
fn a_new_version_gets_all_new_calls_and_old_dialogs_stay_in_theirs() {
    let lb = Setup::two_entry().start();
    let mut nodes = lb.answering_nodes(2);
    let caller = lb.caller("alice");
    let mut old = caller.call("sip:bob@example.com");
    let home = who_got(&nodes, &old.call_id, "INVITE")[0];
    let newer = lb.announced(Node::bind("n2").property("version", "2"));
    newer.answers_calls();
    nodes.push(newer);
    lb.wait_node("the new version", |it| it.host_name == "n2");

    assert_eq!(deal(&nodes, &caller, 4), [0, 0, 4]);
    caller.exchange(&mut old, "INFO");
    assert_eq!(who_got(&nodes, &old.call_id, "INFO"), [home]);
    nodes[home].die();
    let survivor = 1 - home;
    wait_for("failover within the old version", || {
        caller.send(&old.request("UPDATE"));
        let mark = nodes[survivor].beats_answered();
        wait_for("a beat", || (nodes[survivor].beats_answered() > mark).then_some(()));
        caller.poll("200 UPDATE")
    });
    assert_eq!(who_got(&nodes[survivor..=survivor], &old.call_id, "UPDATE"), [0]);
    assert_eq!(nodes[2].count("UPDATE"), 0, "never another version");
}

#[test] // 5.9
fn a_node_restarted_under_a_new_version_gets_no_dialogs_of_the_old_one() {
    let lb = Setup::two_entry().start();
    let mut nodes = lb.answering_nodes(2);
    let caller = lb.caller("alice");
    let mut old = caller.call("sip:bob@example.com");
    let home = who_got(&nodes, &old.call_id, "INVITE")[0];
    nodes[home].set_property("version", "2");
    nodes[home].restart(); // same address, and the old incarnation has not expired yet
    nodes[home].answers_calls();
    lb.wait_node("the new version", |it| it.property("version") == Some("2"));
    caller.exchange(&mut old, "BYE");
    assert_eq!(who_got(&nodes, &old.call_id, "BYE"), [1 - home]);
}

#[test] // static nodes: issue 2, section 3
fn static_nodes_are_probed_and_taken_out_when_they_stop_answering() {
    let mut server = Peer::bind("third-party");
    server.answers_calls();
    let lb = Setup::two_entry()
        .set("staticNodes", &server.address().to_string())
        .set("probeInterval", "300")
        .set("probeTimeout", "200")
        .start();
    lb.wait_nodes(1);
    let probe = server.expect("OPTIONS");
    assert_eq!(probe.find("Mobicents-Heartbeat"), None);
    let caller = lb.caller("alice");
    let mut dialog = caller.call("sip:bob@example.com");
    caller.exchange(&mut dialog, "BYE");

    server.answers(|it| match it.method() {
        "OPTIONS" => vec![it.reply(503, "Full")],
        "ACK" => vec![],
        _ => vec![it.reply(200, "OK")],
    });
    lb.wait_node("full, yet alive", |it| it.is_bad);
    server.close();
    lb.wait_nodes(0);
}

#[test] // 72, 4.6
fn extra_server_nodes_are_live_nodes_in_performance_testing_mode() {
    let servers = [Peer::bind("s0"), Peer::bind("s1")];
    let list = servers.each_ref().map(|it| it.address().to_string()).join(",");
    for server in &servers {
        server.answers_calls();
    }
    let lb = Setup::two_entry()
        .set("extraServerNodes", &list)
        .set("performanceTestingMode", "true")
        .start();
    lb.wait_nodes(2);
    assert!(lb.known().iter().all(|it| it.host_name.starts_with("ExtraServerNode")));
    let caller = lb.caller("alice");
    for _ in 0..4 {
        // The callee hangs up, as in the original's sipp scenario: the order of Record-Route matters.
        caller.send(&caller.request("INVITE", "sip:bob@example.com"));
        let ok = caller.expect("200 INVITE");
        let server = servers.iter().find(|it| ok.tag("To").as_deref() == Some(it.name())).unwrap();
        let got = server.expect("INVITE");
        server.send(&Dialog::of_callee(server, &got, &ok).request("BYE"));
        let bye = caller.expect("BYE");
        caller.reply(&bye, 200, "OK");
        server.expect("200 BYE");
    }
    assert_eq!(servers.each_ref().map(|it| it.count("INVITE")), [2, 2]);
}
