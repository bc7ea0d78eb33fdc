//! Streams, the only leg, heartbeats, bridges between transports.

use super::*;

#[test]
fn stream_clients_get_a_token_and_are_found_by_it() {
    let mut world = World::new(TWO_LEGS).with_nodes(&[NODE]);
    let invite = INVITE.replace("UDP", "TCP");
    let verdict = world.send(Leg::External, Transport::Tcp, CLIENT, &invite);
    let Verdict::Forward { hop: Hop::Stream { to, .. }, reply, .. } = verdict else {
        panic!("{verdict:?}")
    };
    assert_eq!(to, NODE.parse().unwrap());
    let reply = reply.expect("a reliable next hop: we answer 100").bytes;
    assert_eq!(world.first_line(), "SIP/2.0 100 Trying");
    let forwarded = String::from_utf8(world.out[reply..].to_vec()).unwrap();
    let line = |prefix: &str| -> Vec<String> {
        forwarded.lines().filter_map(|it| it.strip_prefix(prefix)).map(str::to_owned).collect()
    };
    let (vias, routes) = (line("Via: "), line("Record-Route: "));
    assert!(vias[1].contains(";flow=") && !vias[0].contains(";flow="), "{vias:?}");
    assert!(routes[1].contains(";flow=") && !routes[0].contains(";flow="), "{routes:?}");
    // The response goes back on that connection, on whichever shard it lives.
    let vias: String = vias.iter().map(|it| format!("Via: {it}\n")).collect();
    let ok = format!(
        "\nSIP/2.0 200 OK\n{vias}From: <sip:alice@example.com>;tag=a1\nTo: <sip:b@d>;tag=2\nCall-ID: x\nCSeq: 1 INVITE\nContent-Length: 0\n\n"
    );
    let verdict = world.send(Leg::Internal, Transport::Tcp, NODE, &ok);
    let Verdict::Forward { hop: Hop::Flow { flow, or, is_response: true }, .. } = verdict else {
        panic!("{verdict:?}")
    };
    assert_eq!(flow, FLOW);
    assert_eq!(or.unwrap().1, "203.0.113.5:5062".parse().unwrap());
    // So does the node's request in the dialog.
    let bye = NODE_INVITE
        .replace("INVITE", "BYE")
        .replace(
            "Route: <sip:lbint",
            &format!("Route: {}\nRoute: {}\nX-Old: <sip:lbint", routes[0], routes[1]),
        )
        .replace("To: <sip:usera@example.com>", "To: <sip:usera@example.com>;tag=q");
    let verdict = world.send(Leg::Internal, Transport::Tcp, NODE, &bye);
    let Verdict::Forward { hop: Hop::Flow { flow, is_response: false, .. }, .. } = verdict else {
        panic!("{verdict:?}")
    };
    assert_eq!(flow, FLOW);
    // A token of somebody else's making is worth nothing.
    let forged = bye.replace(";flow=03", ";flow=04");
    let verdict = world.send(Leg::Internal, Transport::Tcp, NODE, &forged);
    assert!(matches!(verdict, Verdict::Forward { hop: Hop::Stream { .. }, .. }), "{verdict:?}");
}

#[test]
fn one_entry_means_one_via_one_record_route_and_direction_by_source() {
    let config = "host=10.0.0.1\nexternalPort=5060\n";
    let mut world = World::new(config).with_nodes(&[NODE]);
    let verdict = world.client(INVITE);
    assert!(datagram(NODE)(verdict), "{verdict:?}");
    assert_eq!(world.lines("Via").len(), 2);
    assert_eq!(world.lines("Record-Route").len(), 1);
    let vias: String = world.lines("Via").iter().map(|it| format!("Via: {it}\n")).collect();
    let ok = format!(
        "\nSIP/2.0 200 OK\n{vias}From: <sip:alice@example.com>;tag=a1\nTo: <sip:b@d>;tag=2\nCall-ID: x\nCSeq: 1 INVITE\nContent-Length: 0\n\n"
    );
    let verdict = world.send(Leg::External, Transport::Udp, NODE, &ok);
    assert!(datagram(CLIENT)(verdict), "{verdict:?}");
    assert_eq!(
        world.lines("X-Sip-Balancer-InitialRemoteAddr"),
        Vec::<String>::new(),
        "not towards clients"
    );
    let out = NODE_INVITE.replace("172.16.0.1:5065", "10.0.0.1:5060");
    let verdict = world.send(Leg::External, Transport::Udp, NODE, &out);
    assert!(datagram("127.0.0.1:5033")(verdict), "{verdict:?}");
    // A node speaks from a port of its own on TCP.
    let over_tcp = out.replace("UDP 172", "TCP 172");
    let verdict = world.send(Leg::External, Transport::Tcp, "172.16.0.10:40000", &over_tcp);
    assert!(datagram("127.0.0.1:5033")(verdict), "{verdict:?}");
    // Claiming a node's Via from elsewhere makes nobody a node.
    let verdict = world.send(Leg::External, Transport::Udp, CLIENT, &out);
    assert!(datagram(NODE)(verdict), "{verdict:?}");
}

#[test]
fn a_heartbeat_is_answered_and_reported_only_on_the_internal_leg() {
    let beat = "
OPTIONS sip:X@172.16.0.1:5065;lr SIP/2.0
Via: SIP/2.0/UDP 172.16.0.10:5080;branch=z9hG4bK-373335
From: <sip:hb@example.com>;tag=4481411
To: <sip:lb@example.com>
Call-ID: 2298704dc4d6706e53cb61123ea7833e@127.0.0.1
CSeq: 1 OPTIONS
Mobicents-Heartbeat: 1
Content-Length: 67

tcpPort=5080\nudpPort=5080\nhostname=sipHeartbeat\nip=172.16.0.10\nx=y
";
    let length = wire(beat.split("\n\n").nth(1).unwrap()).len();
    let beat = beat.replace("67", &length.to_string());
    let mut world = World::new(TWO_LEGS);
    for header in ["Mobicents-Heartbeat", "Restcomm-Heartbeat"] {
        let verdict = world.from_node(&beat.replace("Mobicents-Heartbeat", header));
        assert!(datagram(NODE)(verdict), "{verdict:?}");
        assert_eq!(world.first_line(), "SIP/2.0 200 OK");
        match world.relay.poll_report(world.now, &world.snapshot) {
            Some(Report::Beat(it)) => assert_eq!(it.host_name, "sipHeartbeat"),
            other => panic!("{header}: {other:?}"),
        }
    }
    // Refused either way, and the control executor hears why.
    for (right, wrong, status) in [
        ("ip=172.16.0.10", "ip=nonsense!!!", 200),
        ("ip=172.16.0.10", "in=172.16.0.10", 200),
        ("tcpPort=5080", "version=abcd", 400),
    ] {
        world.from_node(&beat.replace(right, wrong));
        let line = world.first_line();
        assert!(line.starts_with(&format!("SIP/2.0 {status} ")), "{wrong}: {line}");
        let told = world.relay.poll_report(world.now, &world.snapshot);
        let from = NODE.parse::<SocketAddr>().unwrap().ip();
        let is_told = matches!(told, Some(Report::BadBeat { from: it, .. }) if it == from);
        assert!(is_told, "{wrong}: {told:?}");
    }
    let mut world = world.with_nodes(&[NODE]);
    let verdict = world.client(&beat);
    assert!(
        matches!(verdict, Verdict::Forward { .. }),
        "outside it is an ordinary request: {verdict:?}"
    );
    let told = world.relay.poll_report(world.now, &world.snapshot);
    assert!(!matches!(told, Some(Report::Beat(_))), "{told:?}");
}

#[test]
fn transports_are_bridged_towards_nodes_and_told_in_contact() {
    let config = "<load-balancer-properties><sip><external><host>10.0.0.1</host></external><internal><host>172.16.0.1</host><tcpPort>5065</tcpPort></internal><internalTransport>tcp</internalTransport></sip></load-balancer-properties>";
    let mut world = World::new(config).with_nodes(&[NODE]);
    let verdict = world.client(INVITE);
    let Verdict::Forward { hop: Hop::Stream { to, .. }, reply, .. } = verdict else {
        panic!("{verdict:?}")
    };
    assert_eq!(to, NODE.parse().unwrap());
    world.out.drain(..reply.map_or(0, |it| it.bytes));
    assert_eq!(world.lines("Via")[0], "SIP/2.0/TCP 172.16.0.1:5065;branch=z9hG4bK#i_0");
    assert_eq!(world.lines("Via")[1], "SIP/2.0/UDP 10.0.0.1:5060;branch=z9hG4bK#e_0");
    assert_eq!(world.lines("Contact"), ["<sip:alice@203.0.113.5:5062;transport=udp>"]);
    assert_eq!(world.lines("Route"), ["<sip:172.16.0.10:5080;transport=tcp;lr>"]);
}

/// RFC 3261 §18.2.2, RFC 3581 §4.
#[test]
fn every_answer_of_ours_to_a_datagram_goes_where_its_via_says() {
    let config = "<load-balancer-properties><sip><external><host>10.0.0.1</host></external><internal><host>172.16.0.1</host><tcpPort>5065</tcpPort></internal><internalTransport>tcp</internalTransport></sip></load-balancer-properties>";
    let answers = [
        ("100", INVITE.to_owned()),
        ("483", INVITE.replace("Max-Forwards: 70", "Max-Forwards: 0")),
        ("400", INVITE.replace("CSeq: 1 INVITE", "CSeq: 1 BYE")),
        ("505", INVITE.replace("SIP/2.0\nVia", "SIP/3.0\nVia")),
        ("513", INVITE.replace("v=0", &"x".repeat(65_536))),
    ];
    let vias = [
        ("203.0.113.5:5070;branch=z9hG4bKa", "203.0.113.5:5070", ""),
        ("203.0.113.5;branch=z9hG4bKa", "203.0.113.5:5060", ""),
        ("pc.example.com:5070;branch=z9hG4bKa", "203.0.113.5:5070", ";received=203.0.113.5"),
        (
            "203.0.113.5:5070;branch=z9hG4bKa;rport",
            "203.0.113.5:5062",
            "=5062;received=203.0.113.5",
        ),
    ];
    let mut world = World::new(config).with_nodes(&[NODE]);
    for (status, message) in &answers {
        for (via, to, added) in vias {
            let message = message.replace("203.0.113.5:5062;branch=z9hG4bKc1;rport", via);
            let verdict = world.client(&message);
            let hop = match verdict {
                Verdict::Forward { reply: Some(it), .. } => it.hop,
                Verdict::Reply { hop } => hop,
                other => panic!("{status} {via}: {other:?}"),
            };
            assert_eq!(target(hop), to.parse().ok(), "{status} {via}");
            assert!(world.first_line().starts_with(&format!("SIP/2.0 {status}")), "{via}");
            let want = format!("SIP/2.0/UDP {via}{added}");
            assert_eq!(world.lines("Via")[0], want, "{status}");
        }
    }
}
