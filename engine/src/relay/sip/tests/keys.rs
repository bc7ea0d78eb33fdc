//! What the operator's keys change, one story each.

use super::*;

fn world(keys: &str) -> World {
    World::new(&format!("{TWO_LEGS}{keys}\n")).with_nodes(&[NODE])
}

/// Where it goes, whether as a request or as an answer.
fn to(verdict: Verdict) -> Option<SocketAddr> {
    match verdict {
        Verdict::Forward { hop, .. } | Verdict::Reply { hop } => target(hop),
        _ => None,
    }
}

#[test]
fn rport_is_added_or_left_out_where_the_stack_was_told_to() {
    const ALWAYS: &str = "gov.nist.javax.sip.ALWAYS_ADD_RPORT=true";
    const NEVER: &str = "gov.nist.javax.sip.NEVER_ADD_RECEIVED_RPORT=true";
    let via = "203.0.113.5:9;branch=z9hG4bKa";
    let cases = [
        (Transport::Udp, "", via, ""),
        (Transport::Udp, ALWAYS, via, ";rport=5062;received=203.0.113.5"),
        (Transport::Udp, ALWAYS, "203.0.113.5:5062;branch=z9hG4bKa", ""),
        (Transport::Udp, NEVER, "pc.example.com;branch=z9hG4bKa", ";received=203.0.113.5"),
        (Transport::Tcp, "", "pc.example.com;branch=z9hG4bKa", ";rport=5062;received=203.0.113.5"),
        (Transport::Tcp, NEVER, "pc.example.com;branch=z9hG4bKa", ""),
        (Transport::Tcp, NEVER, via, ""),
    ];
    for (transport, key, sent, added) in cases {
        let mut world = world(&format!("{key}\nisSendTrying=false"));
        let name = transport.as_via();
        let message = INVITE
            .replace("UDP 203.0.113.5:5062;branch=z9hG4bKc1;rport", &format!("{name} {sent}"));
        world.send(Leg::External, transport, CLIENT, &message);
        assert_eq!(world.lines("Via")[2], format!("SIP/2.0/{name} {sent}{added}"), "{key}");
    }
    // Our own answers, too, go where they came from.
    for (key, want) in [("", "203.0.113.5:9"), (ALWAYS, CLIENT)] {
        let mut world = World::new(&format!("{TWO_LEGS}{key}\n"));
        let message = INVITE.replace("203.0.113.5:5062;branch=z9hG4bKc1;rport", via);
        let verdict = world.send(Leg::External, Transport::Udp, CLIENT, &message);
        assert_eq!(to(verdict), want.parse().ok(), "{key}");
    }
}

#[test]
fn a_routing_rule_hides_the_ip_load_balancer_from_who_is_next_on_either_side() {
    let keys = "externalIpLoadBalancerAddress=198.51.100.1\nexternalIpLoadBalancerUdpPort=5060\n\
        internalIpLoadBalancerAddress=172.16.0.100\ninternalIpLoadBalancerUdpPort=5065\n\
        useIpLoadBalancerAddressInViaHeaders=true\nroutingRulesIpv4=203\\\\.0\\\\.113\\\\..*=false\n";
    for (peer, outer, inner) in [
        ("203.0.113.5", "10.0.0.1:5060", "172.16.0.1:5065"),
        ("192.0.2.5", "198.51.100.1:5060", "172.16.0.100:5065"),
    ] {
        let mut world = world(keys);
        let shows = |world: &World, name: &str, hosts: [&str; 2]| {
            let lines = world.lines(name);
            for (line, host) in lines.iter().zip(hosts) {
                assert!(line.contains(&format!("{host};")), "{peer}: {host} is not in {line}");
            }
        };
        let client = format!("{peer}:5062");
        world.send(Leg::External, Transport::Udp, &client, INVITE);
        shows(&world, "Via", [inner, outer]);
        shows(&world, "Record-Route", [inner, outer]);
        let invite = NODE_INVITE.replace("127.0.0.1:5033", &client);
        world.send(Leg::Internal, Transport::Udp, NODE, &invite);
        shows(&world, "Via", [outer, inner]);
        shows(&world, "Record-Route", [outer, inner]);
    }
}

#[test]
fn the_public_address_is_put_into_a_nodes_contact_where_that_is_asked_for() {
    let keys = "public-ip=198.51.100.1\nlegacyContactPatching=true";
    let contact = "<sip:app@172.16.0.10:5080;x=y>;q=1";
    let patched = ["<sip:app@198.51.100.1:5060;x=y>;q=1"];
    for (method, status, want) in [
        ("INVITE", "200 OK", patched),
        ("SUBSCRIBE", "200 OK", patched),
        ("UPDATE", "200 OK", patched),
        ("REFER", "202 Accepted", patched),
        ("INVITE", "302 Moved", [contact]),
        ("REGISTER", "200 OK", [contact]),
        ("NOTIFY", "200 OK", [contact]),
    ] {
        let mut world = world(keys);
        let request = NODE_INVITE.replace("<sip:172.16.0.10:5080>", contact);
        world.send(Leg::Internal, Transport::Udp, NODE, &request.replace("INVITE", method));
        let is_request = !status.starts_with("302");
        if is_request {
            assert_eq!(world.lines("Contact"), want, "{method}");
        }
        let answer = format!(
            "\nSIP/2.0 {status}\nVia: SIP/2.0/UDP 172.16.0.1:5065;branch=z9hG4bK0123456789abcdefi_0\n\
             Via: SIP/2.0/UDP 10.0.0.1:5060;branch=z9hG4bK0123456789abcdefe_0\n\
             Via: SIP/2.0/UDP 203.0.113.5:5062;branch=z9hG4bKx\nFrom: <sip:a@b>;tag=1\n\
             To: <sip:c@d>;tag=2\nCall-ID: x\nCSeq: 1 {method}\nContact: {contact}\n\
             Content-Length: 0\n\n"
        );
        world.send(Leg::Internal, Transport::Udp, NODE, &answer);
        assert_eq!(world.lines("Contact"), want, "{status} to {method}");
    }
}

#[test]
fn every_invite_whose_way_is_reliable_is_answered_100_from_either_side() {
    let invite = |to_tag: &str, transport: &str| {
        NODE_INVITE
            .replace("To: <sip:usera@example.com>", &format!("To: <sip:usera@example.com>{to_tag}"))
            .replace("5033 SIP", &format!("5033;transport={transport} SIP"))
    };
    let reinvite = in_dialog("INVITE", "", "sip:bob@172.16.0.10:5080");
    let cases = [
        (Leg::Internal, Transport::Udp, invite("", "tcp"), true),
        (Leg::Internal, Transport::Udp, invite(";tag=u1", "tcp"), true),
        (Leg::Internal, Transport::Udp, invite("", "udp"), false),
        (Leg::Internal, Transport::Udp, invite("", "tcp").replace("INVITE", "UPDATE"), false),
        (Leg::External, Transport::Tcp, reinvite.replace("UDP", "TCP"), true),
        (Leg::External, Transport::Udp, reinvite, false),
    ];
    for (leg, transport, message, want) in cases {
        let mut world = world("");
        let source = if leg == Leg::Internal { NODE } else { CLIENT };
        let verdict = world.send(leg, transport, source, &message);
        let Verdict::Forward { reply, .. } = verdict else { panic!("{verdict:?}") };
        assert_eq!(reply.is_some(), want, "{message}");
        assert_eq!(world.first_line() == "SIP/2.0 100 Trying", want, "{message}");
    }
}

#[test]
fn a_message_without_the_affinity_header_follows_its_call_id() {
    let keys = "algorithmClass=x.HeaderConsistentHashBalancerAlgorithm\nsipHeaderAffinityKey=X-Key";
    let nodes = [NODE, "172.16.0.11:5080", "172.16.0.12:5080"];
    let mut world = World::new(&format!("{TWO_LEGS}{keys}\n")).with_nodes(&nodes);
    let mut places = |header: &str| {
        let mut calls = (0..30).map(|call| {
            let invite = INVITE
                .replace("8f3ad1", &format!("call{call}"))
                .replace("Max-Forwards", &format!("{header}Max-Forwards"));
            let first = to(world.send(Leg::External, Transport::Udp, CLIENT, &invite));
            let bye = invite.replace("INVITE", "BYE");
            assert_eq!(to(world.send(Leg::External, Transport::Udp, CLIENT, &bye)), first);
            first.unwrap()
        });
        calls.by_ref().collect::<std::collections::BTreeSet<_>>().len()
    };
    assert_eq!(places("X-Key: always\n"), 1);
    assert_eq!(places(""), 3);
    assert_eq!(places("X-Key:\n"), 3, "an empty one is none");
}

#[test]
fn what_cannot_be_delivered_is_dropped_in_silence_where_that_is_asked_for() {
    let mut world = world("isSend5xxResponse=false");
    let listener = world.listener(Leg::External, Transport::Udp, Family::V4);
    let arrival = Arrival { now: world.now, listener, source: CLIENT.parse().unwrap(), flow: None };
    let bytes = wire(INVITE);
    let first = world.relay.handle(&arrival, &bytes, &world.snapshot, &mut world.out);
    let Verdict::Forward { hop, .. } = first else { panic!("{first:?}") };
    let again =
        world.relay.undelivered(&arrival, &bytes, gone(hop), &world.snapshot, &mut world.out);
    assert_eq!(again, Verdict::Drop(DropReason::ConnectionGone));
}
