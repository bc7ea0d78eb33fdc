//! Who a message comes from where its source alone does not say: nodes send from other ports than they
//! listen on, and clients call themselves by our address.

use super::*;

const ONE_LEG: &str = "host=10.0.0.1\nexternalPort=5060\n";
/// A node's own connection, or another socket of it.
const NODE_ELSEWHERE: &str = "172.16.0.10:40000";

/// The client's message, and nothing of our 100 to it.
fn forwarded(world: &mut World, transport: Transport, message: &str) -> Verdict {
    let message = message.replace("SIP/2.0/UDP", &format!("SIP/2.0/{}", transport.as_via()));
    let verdict = world.send(Leg::External, transport, CLIENT, &message);
    if let Verdict::Forward { reply, .. } = verdict {
        world.out.drain(..reply.map_or(0, |it| it.bytes));
    }
    verdict
}

fn reaches_client(verdict: Verdict) -> bool {
    match verdict {
        Verdict::Forward { hop: Hop::Flow { flow, is_response: true, .. }, .. } => flow == FLOW,
        other => datagram(CLIENT)(other),
    }
}

/// RFC 3261 §18.2.2: where the connection of its request is gone, a server opens another for its answer.
#[test]
fn a_nodes_answer_from_another_port_reaches_the_client_on_the_only_leg() {
    for transport in [Transport::Udp, Transport::Tcp] {
        for is_dead in [false, true] {
            let case = format!("{transport:?}, dead: {is_dead}");
            let mut world = World::new(ONE_LEG).with_nodes(&[NODE]);
            forwarded(&mut world, transport, INVITE);
            let client = world.lines("Via")[1].clone();
            let ok = callee_answer(&world, "200 OK");
            let dead: &[&str] = if is_dead { &[NODE] } else { &[] };
            let live = if is_dead { "172.16.0.11:5080" } else { NODE };
            world.set_nodes(&[live], dead);
            let verdict = world.send(Leg::External, transport, NODE_ELSEWHERE, &ok);
            assert!(reaches_client(verdict), "{case}: {verdict:?}");
            assert_eq!(world.lines("Via"), [client], "{case}");
            let added = world.lines("X-Sip-Balancer-InitialRemoteAddr");
            assert_eq!(added, Vec::<String>::new(), "{case}");
        }
    }
    // A client on a node's host is none: what it answers was sent outwards.
    let mut world = World::new(ONE_LEG).with_nodes(&[NODE]);
    let invite = NODE_INVITE.replace("172.16.0.1:5065", "10.0.0.1:5060");
    world.send(Leg::External, Transport::Udp, NODE, &invite);
    let ok = callee_answer(&world, "200 OK");
    let verdict = world.send(Leg::External, Transport::Udp, NODE_ELSEWHERE, &ok);
    assert!(datagram(NODE)(verdict), "{verdict:?}");
    assert_eq!(world.lines("X-Sip-Balancer-InitialRemotePort"), ["40000"]);
    // And a mark is easily written: it makes nobody elsewhere a node.
    forwarded(&mut world, Transport::Udp, INVITE);
    let ok = callee_answer(&world, "200 OK");
    let verdict = world.send(Leg::External, Transport::Udp, "203.0.113.9:5062", &ok);
    assert!(!reaches_client(verdict), "{verdict:?}");
}

#[test]
fn a_node_that_answers_from_another_port_has_answered_and_its_calls_end() {
    const OTHER_VERSION: &str = "172.16.0.10:5090,7";
    const ALIKE: [&str; 2] = ["172.16.0.10:5070", "172.16.0.10:5090"];
    for (config, leg) in [(TWO_LEGS, Leg::Internal), (ONE_LEG, Leg::External)] {
        for transport in [Transport::Udp, Transport::Tcp] {
            for nodes in [&[NODE][..], &[NODE, OTHER_VERSION], &[ALIKE[0], NODE, ALIKE[1]]] {
                let case = format!("{leg:?} {transport:?} {nodes:?}");
                let mut world = World::new(config).with_nodes(&[NODE]);
                forwarded(&mut world, transport, INVITE);
                world.set_nodes(nodes, &[]);
                let key: NodeKey = node(NODE).key;
                let up = |world: &World| world.relay.state.calls.of(world.now, key).up();
                assert_eq!(up(&world), 1, "{case}");
                let call_id = "Call-ID: 8f3ad1@203.0.113.5";
                let ok = callee_answer(&world, "200 OK").replace("Call-ID: out1", call_id);
                world.send(leg, transport, NODE_ELSEWHERE, &ok);
                let told = world.relay.poll_report(world.now, &world.snapshot);
                let Some(Report::Seen { node, alive: true, answered: true, .. }) = told else {
                    panic!("{case}: {told:?}");
                };
                assert_eq!(node, key, "{case}");
                let bye = in_dialog("BYE", "", "sip:bob@172.16.0.10:5080");
                forwarded(&mut world, transport, &bye);
                let ok = callee_answer(&world, "200 OK").replace("Call-ID: out1", call_id);
                let ok = ok.replace("CSeq: 1 INVITE", "CSeq: 2 BYE");
                world.send(leg, transport, NODE_ELSEWHERE, &ok);
                assert_eq!(up(&world), 0, "{case}");
            }
        }
    }
    // Of two that are alike nobody knows whose a call is that began elsewhere, and one that is gone speaks
    // for no other.
    for (live, dead, from) in [
        (&[NODE, "172.16.0.10:5090"][..], &[][..], NODE_ELSEWHERE),
        (&["172.16.0.10:5090"], &[NODE], NODE),
    ] {
        let mut world = World::new(TWO_LEGS).with_nodes(&[NODE]);
        world.client(INVITE);
        world.set_nodes(live, dead);
        let ok = callee_answer(&world, "200 OK");
        let verdict = world.send(Leg::Internal, Transport::Udp, from, &ok);
        assert!(reaches_client(verdict), "{live:?}: {verdict:?}");
        let told = world.relay.poll_report(world.now, &world.snapshot);
        let is_silent =
            matches!(told, None | Some(Report::Seen { alive: false, answered: false, .. }));
        assert!(is_silent, "{live:?}: {told:?}");
    }
}

/// `sip.md` 2.2: the source's IP and the port of the Via say it, whatever host stands there.
#[test]
fn a_node_on_a_connection_of_its_own_is_known_by_the_port_of_its_via() {
    let invite = NODE_INVITE.replace("172.16.0.1:5065", "10.0.0.1:5060");
    let hint = ";node_host=172.16.0.10;node_port=5080";
    let invite = invite.replace(hint, "").replace(";transport=udp", "");
    for (sent_by, is_node) in [
        ("172.16.0.10:5080", true),
        ("app-1.example.net:5080", true),
        ("192.168.7.7:5080", true),
        ("app-1.example.net:5099", false),
        ("app-1.example.net", false),
    ] {
        let mut world = World::new(ONE_LEG).with_nodes(&[NODE]);
        let invite = invite.replace("UDP 172.16.0.10:5080", &format!("TCP {sent_by}"));
        let verdict = world.send(Leg::External, Transport::Tcp, NODE_ELSEWHERE, &invite);
        let Verdict::Forward { hop, .. } = verdict else { panic!("{sent_by}: {verdict:?}") };
        let want = if is_node { "127.0.0.1:5033" } else { NODE };
        assert_eq!(target(hop), want.parse().ok(), "{sent_by}");
        // From elsewhere it makes nobody a node.
        let verdict = world.send(Leg::External, Transport::Tcp, CLIENT, &invite);
        let Verdict::Forward { hop, .. } = verdict else { panic!("{sent_by}: {verdict:?}") };
        assert_eq!(target(hop), NODE.parse().ok(), "{sent_by}");
    }
}

/// A phone behind a NAT may have the private address that we have, too.
#[test]
fn a_client_that_calls_itself_by_our_address_hears_the_answer() {
    let silent = "gov.nist.javax.sip.NEVER_ADD_RECEIVED_RPORT=true\n";
    for (config, transport, ours) in [
        (ONE_LEG.to_owned(), Transport::Udp, 1),
        (ONE_LEG.to_owned(), Transport::Tcp, 1),
        (format!("{ONE_LEG}{silent}"), Transport::Tcp, 1),
        (format!("{TWO_LEGS}{silent}"), Transport::Tcp, 2),
        (TWO_LEGS.to_owned(), Transport::Udp, 2),
    ] {
        let case = format!("{config}{transport:?}");
        let mut world = World::new(&config).with_nodes(&[NODE]);
        let invite = INVITE.replace("203.0.113.5:5062;branch", "10.0.0.1:5060;branch");
        forwarded(&mut world, transport, &invite);
        let vias = world.lines("Via");
        assert_eq!(vias.len(), ours + 1, "{case}");
        let ok = callee_answer(&world, "200 OK");
        let leg = if ours == 2 { Leg::Internal } else { Leg::External };
        let verdict = world.send(leg, transport, NODE, &ok);
        assert!(reaches_client(verdict), "{case}: {verdict:?}");
        assert_eq!(world.lines("Via"), vias[ours..], "{case}");
    }
    // The original marks its two another way: behind one address with it, their host and port must do.
    let mut world = World::new(TWO_LEGS).with_nodes(&[NODE]);
    world.client(INVITE);
    let old = callee_answer(&world, "200 OK")
        .lines()
        .map(|it| match it.split_once(";branch=z9hG4bK") {
            Some((ours, _)) if ours.ends_with("172.16.0.1:5065") => {
                format!("{ours};branch=z9hG4bKc18f3adzsd_0\n")
            }
            Some((ours, _)) if ours.ends_with("10.0.0.1:5060") => {
                format!("{ours};branch=z9hG4bKc18f3ad_0\n")
            }
            _ => format!("{it}\n"),
        })
        .collect::<String>();
    let verdict = world.from_node(&old);
    assert!(reaches_client(verdict), "{verdict:?}");
    assert_eq!(world.lines("Via").len(), 1);
}

#[test]
fn a_stream_client_at_our_address_is_reached_by_its_connection_and_by_nothing_else() {
    let mut world = World::new(TWO_LEGS).with_nodes(&[NODE]);
    forwarded(&mut world, Transport::Tcp, INVITE);
    let routes = world.lines("Record-Route");
    let bye = NODE_INVITE
        .replace("INVITE", "BYE")
        .replace("sip:usera@127.0.0.1:5033", "sip:alice@10.0.0.1:5060;transport=tcp")
        .replace(
            "Route: <sip:lbint",
            &format!("Route: {}\nRoute: {}\nX-Old: <sip:lbint", routes[0], routes[1]),
        )
        .replace("To: <sip:usera@example.com>", "To: <sip:usera@example.com>;tag=q");
    let verdict = world.send(Leg::Internal, Transport::Tcp, NODE, &bye);
    // Calling that address, should the connection be gone, would be calling ourselves.
    let hop = Hop::Flow { flow: FLOW, or: None, is_response: false };
    assert!(matches!(verdict, Verdict::Forward { hop: it, .. } if it == hop), "{verdict:?}");
    world.send(Leg::Internal, Transport::Tcp, NODE, &bye.replace(";flow=03", ";flow=04"));
    assert_eq!(world.first_line(), "SIP/2.0 482 Loop Detected", "a forged token names nobody");
}

/// Proxies of the callee put their own Record-Route in front of ours (RFC 3261 §16.6(4)).
#[test]
fn our_record_route_gets_the_callees_connection_behind_any_number_of_proxies() {
    let proxies = ["<sip:p3.example.net;lr>", "<sip:p2.example.net;lr>", "<sip:p1.example.net;lr>"];
    for count in 0..=proxies.len() {
        for separator in ["\nRecord-Route: ", ", "] {
            let mut world = World::new(TWO_LEGS).with_nodes(&[NODE]);
            let invite = NODE_INVITE.replace("127.0.0.1:5033", "127.0.0.1:5033;transport=tcp");
            let Verdict::Forward { reply, .. } = world.from_node(&invite) else { panic!() };
            world.out.drain(..reply.map_or(0, |it| it.bytes));
            let ours = world.lines("Record-Route");
            let all: Vec<&str> =
                proxies[..count].iter().copied().chain(ours.iter().map(String::as_str)).collect();
            let lines = format!("Record-Route: {}\nFrom:", all.join(separator));
            let ok = callee_answer(&world, "200 OK").replacen("From:", &lines, 1);
            world.send(Leg::External, Transport::Tcp, "127.0.0.1:5033", &ok);
            let values = world.lines("Record-Route").join(", ");
            let values: Vec<&str> = values.split(", ").collect();
            let marked: Vec<bool> = values.iter().map(|it| it.contains(";flow=03")).collect();
            let want: Vec<bool> = (0..all.len()).map(|it| it == count).collect();
            assert_eq!(marked, want, "{count} {separator:?}: {values:?}");
        }
    }
}
