//! Requests and responses of nodes, and responses to them.

use super::*;

#[test]
fn the_applications_headers_cannot_be_forged() {
    let forged = "X-Sip-Balancer-InitialRemoteAddr: 6.6.6.6\n";
    let mut world = World::new(TWO_LEGS).with_nodes(&[NODE]);
    world.client(&INVITE.replace("Max-Forwards", &format!("{forged}Max-Forwards")));
    assert_eq!(world.lines("X-Sip-Balancer-InitialRemoteAddr"), ["203.0.113.5"]);
    world.client(&in_dialog("BYE", forged, "sip:bob@172.16.0.10:5080"));
    assert_eq!(world.lines("X-Sip-Balancer-InitialRemoteAddr"), Vec::<String>::new(), "no body");
    let register = in_dialog("REGISTER", "", "sip:example.com").replace(";tag=b1", "");
    world.client(&register);
    assert_eq!(world.lines("X-Sip-Balancer-InitialRemotePort"), ["5062"], "REGISTER always");
    assert_eq!(world.lines("Record-Route"), Vec::<String>::new());
}

#[test]
fn a_node_calls_out_and_its_dialog_is_stamped() {
    let mut world = World::new(TWO_LEGS).with_nodes(&[NODE]);
    let verdict = world.from_node(NODE_INVITE);
    assert!(datagram("127.0.0.1:5033")(verdict), "{verdict:?}");
    assert_eq!(
        world.sent(),
        "INVITE sip:usera@127.0.0.1:5033 SIP/2.0
Via: SIP/2.0/UDP 10.0.0.1:5060;branch=z9hG4bK#e_0
Via: SIP/2.0/UDP 172.16.0.1:5065;branch=z9hG4bK#i_0
Record-Route: <sip:10.0.0.1:5060;transport=udp;lr;node_host=172.16.0.10;node_port=5080;version=0>
Record-Route: <sip:172.16.0.1:5065;transport=udp;lr;node_host=172.16.0.10;node_port=5080;version=0>
Via: SIP/2.0/UDP 172.16.0.10:5080;branch=z9hG4bKn1
Max-Forwards: 69
From: <sip:sender@example.com>;tag=n1
To: <sip:usera@example.com>
Call-ID: out1
CSeq: 1 INVITE
Contact: <sip:172.16.0.10:5080>
Content-Length: 0

"
    );
    let hint = ";node_host=172.16.0.10;node_port=5080";
    world.from_node(&NODE_INVITE.replace(hint, ""));
    assert!(
        world.lines("Record-Route")[0].contains("node_host=172.16.0.10"),
        "known by its address"
    );
    let over_tcp = NODE_INVITE.replace(hint, "").replace("UDP 172", "TCP 172");
    world.send(Leg::Internal, Transport::Tcp, "172.16.0.10:40000", &over_tcp);
    assert!(
        world.lines("Record-Route")[0].contains("node_host=172.16.0.10"),
        "known by its Via, which it sends from another port"
    );
    world.send(Leg::Internal, Transport::Tcp, "172.16.0.99:40000", &over_tcp);
    assert!(!world.lines("Record-Route")[0].contains("node_host"), "anybody can write that Via");
    world.send(Leg::Internal, Transport::Udp, "172.16.0.99:5060", &NODE_INVITE.replace(hint, ""));
    assert!(
        !world.lines("Record-Route")[0].contains("node_host"),
        "an unknown sender is not stamped"
    );
}

#[test]
fn a_response_from_outside_reaches_its_node_or_a_survivor() {
    let mut world = World::new(TWO_LEGS).with_nodes(&[NODE, "172.16.0.11:5090"]);
    world.from_node(&NODE_INVITE.replace("bKn1", "bKn1;rport"));
    let ringing = callee_answer(&world, "180 Ringing");
    let from = "127.0.0.1:5033";
    let verdict = world.send(Leg::External, Transport::Udp, from, &ringing);
    assert!(datagram(NODE)(verdict), "{verdict:?}");
    assert_eq!(world.lines("X-Sip-Balancer-InitialRemotePort"), ["5033"]);
    assert_eq!(
        world.lines("Via"),
        ["SIP/2.0/UDP 172.16.0.10:5080;branch=z9hG4bKn1;rport=5080;received=172.16.0.10"]
    );
    world.set_nodes(&["172.16.0.11:5090"], &[NODE]);
    let ok = ringing.replace("180 Ringing", "200 OK");
    let verdict = world.send(Leg::External, Transport::Udp, from, &ok);
    assert!(datagram("172.16.0.11:5090")(verdict), "{verdict:?}");
    assert_eq!(world.lines("Via"), ["SIP/2.0/UDP 172.16.0.11:5090;branch=z9hG4bKn1"]);
}

#[test]
fn nobody_from_outside_makes_us_send_a_response_to_what_is_no_node() {
    let victims = [
        ("a stranger", "172.16.9.9:22;branch=z9hG4bKx"),
        ("a stranger, received", "pc.example.com;branch=z9hG4bKx;received=172.16.9.9;rport=22"),
        ("a node, received elsewhere", "172.16.0.10:5080;received=172.16.9.9;rport=22"),
        ("a node's other port", "172.16.0.10:5080;received=172.16.0.10;rport=22"),
        ("a node behind a stranger", "172.16.9.9:5080;received=172.16.0.10"),
    ];
    for keys in ["", "isUseWithNexmo=true\n"] {
        for (case, via) in victims {
            let mut world = World::new(&format!("{TWO_LEGS}{keys}")).with_nodes(&[NODE]);
            world.from_node(&NODE_INVITE.replace("bKn1", "bKn1;rport"));
            let vias: String =
                world.lines("Via")[..2].iter().map(|it| format!("Via: {it}\n")).collect();
            let forged = format!(
                "\nSIP/2.0 180 Ringing\n{vias}Via: SIP/2.0/UDP {via}\nFrom: <sip:a@b>;tag=1\nTo: <sip:c@d>;tag=2\nCall-ID: x\nCSeq: 1 INVITE\nContent-Length: 0\n\n"
            );
            let verdict = world.client(&forged);
            assert!(datagram(NODE)(verdict), "{case} {keys}: {verdict:?}");
            world.set_nodes(&[], &[]);
            let verdict = world.client(&forged);
            assert!(matches!(verdict, Verdict::Drop(_)), "{case} {keys}: {verdict:?}");
        }
    }
}

#[test]
fn responses_that_are_not_ours_go_nowhere() {
    let response = |vias: &str| {
        format!(
            "\nSIP/2.0 200 OK\n{vias}From: <sip:a@b>;tag=1\nTo: <sip:c@d>;tag=2\nCall-ID: x\nCSeq: 1 BYE\nContent-Length: 0\n\n"
        )
    };
    let inner = "Via: SIP/2.0/UDP 172.16.0.1:5065;branch=z9hG4bK0123456789abcdefi_0\n";
    let outer = "Via: SIP/2.0/UDP 10.0.0.1:5060;branch=z9hG4bK0123456789abcdefe_0\n";
    let cases = [
        (
            "foreign top Via",
            "Via: SIP/2.0/UDP 1.2.3.4:5060;branch=z9hG4bKx\n".to_owned(),
            DropReason::NotOurs,
        ),
        ("only ours", format!("{inner}{outer}"), DropReason::NoVia),
        (
            "a name below and no received",
            format!("{inner}{outer}Via: SIP/2.0/UDP pc.example.com\n"),
            DropReason::Unresolved,
        ),
        (
            "a transport that we do not listen on",
            format!("{inner}{outer}Via: SIP/2.0/UDP 1.2.3.4\n")
                .replace("UDP 10.0.0.1", "TLS 10.0.0.1"),
            DropReason::NoListener,
        ),
    ];
    for (case, vias, reason) in cases {
        let mut world = World::new(TWO_LEGS).with_nodes(&[NODE]);
        assert_eq!(world.from_node(&response(&vias)), Verdict::Drop(reason), "{case}");
    }
    // An absurd version in the branch names no cluster, and costs nothing.
    let mut world = World::new(TWO_LEGS).with_nodes(&[NODE]);
    let vias = format!("{inner}{outer}Via: SIP/2.0/UDP 1.2.3.4:9;branch=z9hG4bKx\n")
        .replace("_0", "_99999999999");
    assert!(datagram("1.2.3.4:9")(world.from_node(&response(&vias))));
}

#[test]
fn a_node_is_stamped_with_any_port_it_has_and_found_by_any() {
    let mut ports = Ports::default();
    ports.open(Transport::Tcp, 5090);
    let mut only_tcp = node(NODE);
    only_tcp.ports = ports;
    let mut world = World::new(TWO_LEGS);
    world.snapshot = Snapshot::new(2, vec![only_tcp.clone()], &[]);
    world.from_node(&NODE_INVITE.replace("node_port=5080", "node_port=5090"));
    for route in world.lines("Record-Route") {
        assert!(route.contains(";node_host=172.16.0.10;node_port=5090;version=0>"), "{route}");
    }
    only_tcp.ports.open(Transport::Udp, 5080);
    world.snapshot = Snapshot::new(3, vec![only_tcp, node("172.16.0.9:5080")], &[]);
    let routes = format!("Route: {OUTER_ROUTE}\n").replace("node_port=5080", "node_port=5090");
    for turn in 0..4 {
        let verdict = world.client(&in_dialog("BYE", &routes, "sip:bob@example.com"));
        assert!(datagram(NODE)(verdict), "turn {turn}: {verdict:?}");
    }
}

#[test]
fn a_node_reaches_who_maddr_names() {
    for (uri, want) in [
        ("sip:usera@example.com;maddr=192.0.2.7", "192.0.2.7:5060"),
        ("sip:usera@example.com:5070;maddr=192.0.2.7", "192.0.2.7:5070"),
        ("sip:usera@192.0.2.8;maddr=", "192.0.2.8:5060"),
    ] {
        let mut world = World::new(TWO_LEGS).with_nodes(&[NODE]);
        let verdict = world.from_node(&NODE_INVITE.replace("sip:usera@127.0.0.1:5033", uri));
        assert!(datagram(want)(verdict), "{uri}: {verdict:?}");
        assert_eq!(world.first_line(), format!("INVITE {uri} SIP/2.0"));
    }
}

#[test]
fn a_loop_is_answered_482_and_an_ack_in_a_loop_is_dropped() {
    let mut world = World::new(TWO_LEGS).with_nodes(&[NODE]);
    let looped = NODE_INVITE.replace("sip:usera@127.0.0.1:5033", "sip:usera@10.0.0.1");
    world.from_node(&looped);
    assert_eq!(world.first_line(), "SIP/2.0 482 Loop Detected");
    let ack = looped.replace("INVITE", "ACK");
    assert_eq!(world.from_node(&ack), Verdict::Drop(DropReason::Loop));
}

/// Our own in front of the others, which are the application's or a carrier's.
#[test]
fn no_route_is_one_too_many() {
    let mut world = World::new(TWO_LEGS).with_nodes(&["172.16.0.9:5080", NODE]);
    let routes = |world: &World| -> Vec<String> {
        let lines = world.lines("Route");
        lines.iter().flat_map(|it| it.split(',')).map(|it| it.trim().to_owned()).collect()
    };
    for (pairs, count) in [(1, 5), (3, 1), (3, 9), (4, 0), (60, 30)] {
        let case = format!("{pairs} pairs of ours, then {count}");
        let ours = format!("Route: {OUTER_ROUTE}, {INNER_ROUTE}\n").repeat(pairs);
        let lines = |last: &str| {
            let others = (0..count).map(|it| format!("<sip:8.8.8.{it};lr>"));
            let others: Vec<String> = others.chain([last.to_owned()]).collect();
            (format!("{ours}Route: {}\n", others.join(", ")), others)
        };
        // From a node, past all of ours.
        let (text, mut others) = lines("<sip:9.9.9.9;lr>");
        let bye = in_dialog("BYE", &text, "sip:alice@203.0.113.5:5062");
        let verdict = world.from_node(&bye);
        let first = if count > 0 { "8.8.8.0:5060" } else { "9.9.9.9:5060" };
        assert!(datagram(first)(verdict), "{case}: {verdict:?}");
        assert_eq!(routes(&world), others, "{case}");
        // The next one knows no loose routing: the Request-URI goes behind the last.
        let strict = bye.replacen("8.8.8.0;lr", "8.8.8.0", 1);
        if count > 0 {
            world.from_node(&strict);
            assert_eq!(world.first_line(), "BYE sip:8.8.8.0 SIP/2.0", "{case}");
            others.remove(0);
            others.push("<sip:alice@203.0.113.5:5062>".to_owned());
            assert_eq!(routes(&world), others, "{case}");
        }
        // From a strict router: what it put last is the Request-URI.
        let (text, mut others) = lines("<sip:alice@203.0.113.5:5062>");
        let ours = INNER_ROUTE.trim_matches(['<', '>']);
        world.from_node(&in_dialog("BYE", &text, ours));
        assert_eq!(world.first_line(), "BYE sip:alice@203.0.113.5:5062 SIP/2.0", "{case}");
        others.pop();
        assert_eq!(routes(&world), others, "{case}");
    }
}

/// A node that is this balancer itself, on either of its legs, or on the only one.
#[test]
fn what_we_sent_to_ourselves_is_answered_482_on_every_leg() {
    const ONE_LEG: &str = "host=10.0.0.1\nexternalPort=5060\n";
    let cases = [
        (TWO_LEGS, "10.0.0.1:5060", Leg::External, "172.16.0.1:5065"),
        (TWO_LEGS, "172.16.0.1:5065", Leg::Internal, "172.16.0.1:5065"),
        (ONE_LEG, "10.0.0.1:5060", Leg::External, "10.0.0.1:5060"),
    ];
    for (legs, node, leg, from) in cases {
        for method in ["INVITE", "MESSAGE"] {
            let mut world = World::new(legs).with_nodes(&[node]);
            let verdict = world.client(&INVITE.replace("INVITE", method));
            assert!(datagram(node)(verdict), "{node}: {verdict:?}");
            let looped = String::from_utf8(world.out.clone()).unwrap().replace("\r\n", "\n");
            world.send(leg, Transport::Udp, from, &looped);
            assert_eq!(world.first_line(), "SIP/2.0 482 Loop Detected", "{node} {method}");
            // The same from a balancer that has our address in another network.
            if leg == Leg::External {
                let verdict = world.send(leg, Transport::Udp, "203.0.113.77:5060", &looped);
                assert!(datagram(node)(verdict), "{node} {method}: {verdict:?}");
            }
            let ack = looped.replace(method, "ACK");
            let verdict = world.send(leg, Transport::Udp, from, &ack);
            assert_eq!(verdict, Verdict::Drop(DropReason::Loop), "{node} {method}");
        }
    }
}

#[test]
fn strict_routers_on_either_side_are_served() {
    // RFC 3261 §16.4: before us, our Record-Route came as Request-URI.
    let mut world = World::new(TWO_LEGS).with_nodes(&["172.16.0.9:5080", NODE]);
    let ours = OUTER_ROUTE.trim_matches(['<', '>']);
    let routes = format!("Route: {INNER_ROUTE}, <sip:bob@172.16.0.10:5080>\n");
    let verdict = world.client(&in_dialog("BYE", &routes, ours));
    assert!(datagram(NODE)(verdict), "{verdict:?}");
    assert_eq!(world.first_line(), "BYE sip:bob@172.16.0.10:5080 SIP/2.0");
    assert_eq!(world.lines("Route"), Vec::<String>::new());
    // Where we did not know the node, ours has no stamp.
    let ours = "sip:10.0.0.1:5060;transport=udp;lr";
    let routes = "Route: <sip:172.16.0.1:5065;transport=udp;lr>, <sip:bob@172.16.0.10:5080>\n";
    let verdict = world.client(&in_dialog("BYE", routes, ours));
    assert!(datagram(NODE)(verdict), "{verdict:?}");
    assert_eq!(world.first_line(), "BYE sip:bob@172.16.0.10:5080 SIP/2.0");
    assert_eq!(world.lines("Route"), Vec::<String>::new());
    // What only looks like it, with a user or outside of any dialog, was never a Record-Route.
    let route = "<sip:bob@172.16.0.10:5080;lr>";
    for (uri, is_subsequent) in [("sip:bob@10.0.0.1:5060;transport=udp;lr", true), (ours, false)] {
        let request = in_dialog("INFO", &format!("Route: {route}\n"), uri);
        world.client(&if is_subsequent { request } else { request.replace(";tag=b1", "") });
        assert_eq!(world.lines("Route"), [route], "{uri} {is_subsequent}");
    }
    // RFC 3261 §16.6(6): behind us, the next Route has no lr. A node's:
    for ours in [format!("Route: {OUTER_ROUTE}\n"), String::new()] {
        let routes = format!("{ours}Route: <sip:app@172.16.0.10:5080>, <sip:8.8.8.8;lr>\n");
        let verdict = world.client(&in_dialog("INFO", &routes, "sip:bob@example.com"));
        assert!(datagram(NODE)(verdict), "{verdict:?}");
        assert_eq!(world.first_line(), "INFO sip:app@172.16.0.10:5080 SIP/2.0");
        assert_eq!(world.lines("Route"), ["<sip:8.8.8.8;lr>", "<sip:bob@example.com>"]);
    }
    // On both sides at once: one Request-URI, not one behind the other.
    let routes = "Route: <sip:1.2.3.4:5070>, <sip:u@10.1.1.1>\nMax-Forwards";
    let ours = INNER_ROUTE.trim_matches(['<', '>']);
    let both =
        NODE_INVITE.replace("sip:usera@127.0.0.1:5033", ours).replace("Max-Forwards", routes);
    let verdict = world.from_node(&both);
    assert!(datagram("1.2.3.4:5070")(verdict), "{verdict:?}");
    assert_eq!(world.first_line(), "INVITE sip:1.2.3.4:5070 SIP/2.0");
    // One of outside:
    let verdict = world
        .from_node(&NODE_INVITE.replace("Max-Forwards", "Route: <sip:1.2.3.4:5070>\nMax-Forwards"));
    assert!(datagram("1.2.3.4:5070")(verdict), "{verdict:?}");
    assert_eq!(world.first_line(), "INVITE sip:1.2.3.4:5070 SIP/2.0");
    assert_eq!(world.lines("Route"), ["<sip:usera@127.0.0.1:5033>"]);
}
