//! The harness on its own: peers understand each other without a balancer in between.

use tests::{Dialog, Link, Message, Node, Peer, Sprayer, Uri, wait_for};

#[test]
fn a_call_between_two_peers_is_set_up_and_taken_down() {
    for over_tcp in [false, true] {
        let (mut alice, bob) = (Peer::bind("alice"), Peer::bind("bob"));
        if over_tcp {
            alice = alice.over_tcp();
        }
        bob.answers_calls();
        let mut dialog = alice.call(&bob.uri());
        alice.exchange(&mut dialog, "BYE");
        let methods: Vec<String> = bob.record().iter().map(|it| it.method().to_owned()).collect();
        assert_eq!(methods, ["INVITE", "ACK", "BYE"], "over TCP: {over_tcp}");
        assert_eq!(bob.record()[0].link == Link::Udp, !over_tcp);
    }
}

#[test]
fn a_callee_can_speak_first_in_the_dialog() {
    let (alice, bob) = (Peer::bind("alice"), Peer::bind("bob"));
    let invite = alice.request("INVITE", &bob.uri());
    alice.send(&invite);
    let got = bob.expect("INVITE");
    let ok = bob.reply(&got, 200, "OK");
    let mut dialog = Dialog::of_callee(&bob, &got, &ok);
    bob.send(&dialog.request("BYE"));
    let bye = alice.expect("BYE");
    assert_eq!(bye.tag("From").as_deref(), Some("bob"));
    assert_eq!(bye.tag("To"), invite.tag("From"));
}

#[test]
fn messages_are_read_with_compact_names_folds_and_lists() {
    let text =
        b"OPTIONS sip:a@b SIP/2.0\r\nv: SIP/2.0/UDP h;branch=1, SIP/2.0/TCP \"x,y\";q=<a,b>\r\n\
        VIA: c\r\nSubject: one\r\n  two\r\n\r\nbody";
    let message = Message::parse(text).unwrap();
    assert_eq!(message.vias(), ["SIP/2.0/UDP h;branch=1", "SIP/2.0/TCP \"x,y\";q=<a,b>", "c"]);
    assert_eq!(message.header("s"), "one two");
    assert_eq!(message.body, b"body");
    assert_eq!(Message::parse(b"garbage"), None);
}

#[test]
fn uris_are_taken_apart() {
    let uri = Uri::of("\"n\" <sip:u@[::1]:5061;lr;node_port=7>;tag=x");
    assert_eq!((uri.user.as_str(), uri.host.as_str(), uri.port), ("u", "::1", 5061));
    assert_eq!(uri.param("node_port").as_deref(), Some("7"));
    assert_eq!(uri.param("lr").as_deref(), Some(""));
    assert_eq!(uri.param("tag"), None);
    assert_eq!(Uri::of("sip:host").port, 5060);
}

#[test]
fn a_sprayer_alternates_and_counts_different_payloads() {
    let (a, b, client) = (Peer::bind("a"), Peer::bind("b"), Peer::bind("client"));
    let sprayer = Sprayer::bind();
    sprayer.spray(&[a.address(), b.address()]);
    let request = client.request("OPTIONS", "sip:x@example.com");
    for _ in 0..2 {
        client.send_to(sprayer.address, &request);
    }
    a.expect("OPTIONS");
    b.expect("OPTIONS");
    assert_eq!(sprayer.distinct(), 1);
}

#[test]
fn a_node_announces_itself_until_it_falls_silent() {
    let balancer = Peer::bind("balancer");
    balancer.answers(|it| vec![it.reply(200, "OK")]);
    let mut node = Node::bind("n0");
    node.announce(&[balancer.address()]);
    wait_for("three beats", || (node.beats_answered() >= 3).then_some(()));
    let beat = balancer.expect("OPTIONS");
    let body = String::from_utf8(beat.body.clone()).unwrap();
    assert!(body.contains(&format!("udpPort={}\n", node.address().port())), "{body}");
    assert_eq!((beat.header("Mobicents-Heartbeat"), node.last_status()), ("1", 200));
    node.fall_silent();
    let count = balancer.count("OPTIONS");
    node.restart();
    wait_for("beats of the new one", || (balancer.count("OPTIONS") > count).then_some(()));
}
