//! One table for all protocols.

use std::net::IpAddr;

use super::tests::{at, beat, eligible, events, registry};
use super::*;
use crate::node::Bad;

fn by(source: Source, body: &str) -> Announcement {
    Announcement { source, ..beat(body) }
}

fn near() -> IpAddr {
    "10.0.0.1".parse().unwrap()
}

#[test]
fn a_node_of_several_protocols_is_one_node_that_does_not_flicker() {
    let mut it = registry();
    let sip = by(Source::Sip, "ip=10.0.0.1 udpPort=5060 hostname=n1 load=1 x=sip");
    let rmi = by(
        Source::Rmi,
        "ip=10.0.0.1 udpPort=5060 tcpPort=5062 httpPort=80 sessionId=7 x=rmi jvmRoute=a",
    );
    let json = by(Source::Json, "ip=10.0.0.1 tcpPort=5062 sessionId=8 x=json z=1");
    for said in [&sip, &rmi, &json] {
        it.handle_announcement(at(0), said.clone()).unwrap();
    }
    assert_eq!(events(&mut it), ["Added", "Changed", "Changed"]);
    let snapshot = it.snapshot().unwrap();
    let [node] = snapshot.nodes() else { panic!("{:?}", snapshot.nodes()) };
    assert_eq!(node.host_name, "n1");
    let ports: Vec<u16> = node.ports.iter().map(|(_, port)| port).collect();
    assert_eq!(ports, [5060, 5062]);
    let said = |name: &str| node.properties.get(name).map(String::as_str);
    assert_eq!(
        (said("x"), said("z"), said("load"), said("jvmRoute")),
        (Some("rmi"), Some("1"), Some("1"), Some("a"))
    );
    let key = node.key;
    for millis in 1..20 {
        for said in [&json, &sip, &rmi] {
            it.handle_announcement(at(millis), said.clone()).unwrap();
        }
    }
    assert!(it.snapshot().is_none(), "what was said before changes nothing");

    // a switchover follows the node to its identity
    it.handle_announcement(
        at(20),
        by(Source::Rmi, "ip=10.0.0.1 udpPort=5060 wsPort=9 sessionId=7 jvmRoute=a"),
    )
    .unwrap();
    let now = it.live().next().unwrap().key;
    assert_ne!(now, key);
    it.handle_announcement(at(20), by(Source::Rmi, "ip=10.0.0.2 udpPort=1 jvmRoute=b")).unwrap();
    it.snapshot();
    it.handle_switch_over("a", "b");
    assert_eq!(it.poll_switch_over().map(|it| it.0), Some(now));
}

/// A node that tells its version by RMI alone would come and go with every word.
#[test]
fn a_version_that_one_protocol_states_counts_for_all() {
    const SIP: &str = "ip=10.0.0.1 udpPort=5060 sessionId=7";
    const RMI: &str = "ip=10.0.0.1 udpPort=5060 sessionId=7 version=2";
    let versions = |it: &Registry| it.live().map(|it| it.version.0).collect::<Vec<_>>();
    for first in [Source::Sip, Source::Rmi] {
        let mut it = registry();
        let said = |source| by(source, if source == Source::Sip { SIP } else { RMI });
        let second = if first == Source::Sip { Source::Rmi } else { Source::Sip };
        for source in [first, second] {
            it.handle_announcement(at(0), said(source)).unwrap();
        }
        events(&mut it);
        it.snapshot();
        for millis in 1..20 {
            for source in [first, second] {
                it.handle_announcement(at(millis), said(source)).unwrap();
            }
        }
        assert_eq!(versions(&it), [2], "{first:?}");
        assert!(it.snapshot().is_none(), "{first:?}");
        // The process runs anew: whichever is heard first.
        for source in [first, second, first, second] {
            let mut said = said(source);
            said.session = Some("8".to_owned());
            it.handle_announcement(at(30), said).unwrap();
        }
        assert_eq!(versions(&it), [2], "{first:?}");
        let told = events(&mut it);
        assert!(!told.iter().any(|it| it.contains("Removed")), "{first:?} {told:?}");
        // What it states by itself is believed, and so is that it states it no more.
        for (version, want) in [("version=3", 3), ("", 0)] {
            let said = by(Source::Rmi, &format!("ip=10.0.0.1 udpPort=5060 sessionId=9 {version}"));
            it.handle_announcement(at(40), said).unwrap();
            assert_eq!(versions(&it), [want], "{first:?}");
        }
    }
}

#[test]
fn a_protocol_that_falls_silent_loses_its_say() {
    let mut it = registry();
    let sip = by(Source::Sip, "ip=10.0.0.1 udpPort=5060 jvmRoute=a");
    let json = by(Source::Json, "ip=10.0.0.1 udpPort=5060 tcpPort=5062 sessionId=8 z=1");
    it.handle_announcement(at(0), json).unwrap();
    it.handle_announcement(at(0), sip.clone()).unwrap();
    for second in 1..=8 {
        it.handle_announcement(at(second * 1000), sip.clone()).unwrap();
        it.handle_timeout(at(second * 1000));
    }
    assert!(it.handle_session(at(8_000), near(), "8", SessionWord::Alive), "it speaks still");
    for second in 9..=16 {
        it.handle_announcement(at(second * 1000), sip.clone()).unwrap();
        it.handle_timeout(at(second * 1000));
    }
    assert_eq!(events(&mut it), ["Added", "Changed"]);
    it.handle_announcement(at(16_500), sip.clone()).unwrap();
    it.handle_timeout(at(16_500));
    assert_eq!(events(&mut it), ["Changed"]);
    it.handle_switch_over("a", "a");
    assert_eq!(events(&mut it), ["Switchover"]);
    let snapshot = it.snapshot().unwrap();
    assert_eq!(it.poll_switch_over(), Some((sip.key(), sip.key())), "at once");
    let node = it.live().next().unwrap();
    assert_eq!((node.key, node.properties.contains_key("z")), (sip.key(), false));
    assert!(snapshot.remembers("10.0.0.1:5062".parse().unwrap()));
    assert!(!it.handle_session(at(16_600), near(), "8", SessionWord::Alive), "start anew");
    assert!(it.sessions.is_empty());

    // traffic alone keeps the node as it was described last
    for second in 17..60 {
        it.handle_sign(at(second * 1000), sip.key());
        it.handle_timeout(at(second * 1000));
    }
    assert_eq!(events(&mut it), [""; 0]);
    assert_eq!(it.live().count(), 1);
}

#[test]
fn sessions_live_leave_and_stop() {
    let mut it = registry();
    let start = by(Source::Json, "ip=10.0.0.1 udpPort=5060 sessionId=7");
    let say = |it: &mut Registry, millis, word| it.handle_session(at(millis), near(), "7", word);
    assert!(!say(&mut it, 0, SessionWord::Alive), "after our restart: NOK, so that it starts anew");
    it.handle_announcement(at(0), start.clone()).unwrap();
    assert!(say(&mut it, 8_000, SessionWord::Alive));
    it.handle_timeout(at(16_000));
    assert_eq!((it.live().count(), eligible(&mut it)), (1, 1));
    assert!(say(&mut it, 16_000, SessionWord::Leaving));
    it.handle_timeout(at(24_000));
    assert_eq!((it.live().count(), eligible(&mut it)), (1, 0), "it keeps its calls");
    assert!(!it.handle_session(at(24_000), near(), "6", SessionWord::Stopped));
    assert!(say(&mut it, 24_000, SessionWord::Stopped));
    assert!(!say(&mut it, 24_000, SessionWord::Stopped));
    assert_eq!(events(&mut it), ["Added", "Graceful", "Removed:Stopped"]);
    assert!(it.sessions.is_empty() && it.entries.is_empty());

    // what another protocol calls its session is not one of these
    it.handle_announcement(at(0), by(Source::Rmi, "ip=10.0.0.1 udpPort=5060 sessionId=7")).unwrap();
    assert!(!say(&mut it, 0, SessionWord::Alive));
}

#[test]
fn of_two_sessions_alike_the_near_one_is_meant() {
    let mut it = registry();
    for ip in ["10.0.0.1", "10.0.0.2"] {
        let start = by(Source::Json, &format!("ip={ip} udpPort=5060 sessionId=7"));
        it.handle_announcement(at(0), start).unwrap();
    }
    assert!(it.handle_session(at(1), near(), "7", SessionWord::Stopped));
    let left: Vec<String> = it.live().map(|it| it.ip.to_string()).collect();
    assert_eq!(left, ["10.0.0.2"]);
    assert!(it.handle_session(at(1), near(), "7", SessionWord::Stopped), "behind a translator");
    assert_eq!(it.live().count(), 0);
}

#[test]
fn a_session_whose_ports_all_change_is_the_node_that_moved() {
    let mut it = registry();
    let start = |source, ip: &str, ports: &str| {
        by(source, &format!("ip={ip} {ports} sessionId=7 hostname=n1"))
    };
    let first = start(Source::Json, "10.0.0.1", "udpPort=5060 httpPort=80");
    it.handle_announcement(at(0), first.clone()).unwrap();
    // Others began in the same millisecond, or say so in another protocol.
    it.handle_announcement(at(0), start(Source::Json, "10.0.0.2", "udpPort=5060")).unwrap();
    it.handle_announcement(at(0), start(Source::Rmi, "10.0.0.1", "udpPort=7060")).unwrap();
    let moved = start(Source::Json, "10.0.0.1", "tcpPort=6060 httpPort=81");
    it.handle_announcement(at(1), moved.clone()).unwrap();
    assert_eq!(it.live().count(), 3);
    let snapshot = it.snapshot().unwrap();
    let node = snapshot.node(snapshot.find(first.key()).unwrap());
    assert_eq!((node.key, &node.former[..]), (moved.key(), &[first.key()][..]));
    assert!(snapshot.remembers("10.0.0.1:5060".parse().unwrap()), "its late answers");
    assert!(it.handle_session(at(1), near(), "7", SessionWord::Stopped));
    assert_eq!(it.live().count(), 2);
    assert_eq!(events(&mut it), ["Added", "Added", "Added", "Changed", "Removed:Stopped"]);
}

#[test]
fn the_log_names_the_protocol_that_a_node_came_by() {
    for source in [Source::Kubernetes, Source::Sip, Source::Json, Source::Rmi] {
        let mut it = registry();
        for session in [1, 2] {
            let said = by(source, &format!("ip=10.0.0.1 udpPort=5060 sessionId={session}"));
            it.handle_announcement(at(0), said).unwrap();
        }
        let lines: Vec<String> =
            std::iter::from_fn(|| it.poll_event()).map(|it| it.to_string()).collect();
        let name = source.as_str();
        assert!(lines[0].ends_with(&format!("] added ({name})")), "{lines:?}");
        assert!(lines[1].ends_with(&format!("] restarted ({name})")), "{lines:?}");
    }
}

#[test]
fn of_two_ports_for_one_thing_the_later_word_counts() {
    let mut it = registry();
    for (source, body) in [
        (Source::Rmi, "ip=10.0.0.1 udpPort=5060 tcpPort=1 httpPort=80"),
        (Source::Sip, "ip=10.0.0.1 udpPort=5060 tcpPort=2"),
        (Source::Json, "ip=10.0.0.1 udpPort=5060 httpPort=81"),
        (Source::Rmi, "ip=10.0.0.1 udpPort=5060 httpPort=82"),
    ] {
        it.handle_announcement(at(0), by(source, body)).unwrap();
    }
    let node = it.live().next().unwrap();
    let ports: Vec<u16> = node.ports.iter().map(|(_, port)| port).collect();
    assert_eq!((ports, &node.properties["httpPort"][..]), (vec![5060, 2], "82"));
    assert_eq!(it.live().count(), 1);
}

#[test]
fn a_restart_shows_in_each_protocol_and_clears_what_all_others_said() {
    let mut it = registry();
    let rmi = |session: u8| {
        by(Source::Rmi, &format!("ip=10.0.0.1 udpPort=5060 sessionId={session} r={session}"))
    };
    let json = |session: u8| {
        by(Source::Json, &format!("ip=10.0.0.1 udpPort=5060 sessionId={session} j={session}"))
    };
    it.handle_announcement(at(0), rmi(1)).unwrap();
    it.handle_announcement(at(0), json(2)).unwrap();
    let node = rmi(1).key();
    it.handle_graceful(at(1), node);
    assert_eq!(eligible(&mut it), 0);
    it.handle_announcement(at(2), rmi(3)).unwrap();
    assert_eq!(eligible(&mut it), 1);
    assert!(!it.handle_session(at(2), near(), "2", SessionWord::Alive), "its predecessor's");
    it.handle_announcement(at(3), json(4)).unwrap();
    assert_eq!(it.find(&json(2)), None, "a late word of the dead incarnation");
    assert_eq!(it.find(&rmi(1)), None, "a late word of the dead incarnation");
    assert_eq!(it.find(&rmi(3)), Some(node));
    let properties = &it.live().next().unwrap().properties;
    assert_eq!((&properties["r"][..], &properties["j"][..]), ("3", "4"));
    assert_eq!(events(&mut it), ["Added", "Changed", "Graceful", "Restarted", "Changed"]);
}

#[test]
fn a_start_heals_a_bad_node_and_a_heartbeat_does_not() {
    let mut it = registry();
    let start = by(Source::Json, "ip=10.0.0.1 udpPort=5060 sessionId=7");
    it.handle_announcement(at(0), start.clone()).unwrap();
    let node = start.key();
    let report = Report::Seen { node, alive: true, errors: 9, requests: 0, answered: true };
    it.handle_report(at(0), report).unwrap();
    assert_eq!(it.live().next().unwrap().bad, Some(Bad::Errors));
    assert!(it.handle_session(at(1), near(), "7", SessionWord::Alive));
    it.handle_announcement(at(1), by(Source::Rmi, "ip=10.0.0.1 udpPort=5060 sessionId=7")).unwrap();
    assert_eq!(eligible(&mut it), 0);
    it.handle_announcement(at(2), start).unwrap();
    assert_eq!(eligible(&mut it), 1);
    assert_eq!(it.health(at(2), node).unwrap().errors, 0);
    assert_eq!(events(&mut it), ["Added", "Bad", "Recovered"]);
}

#[test]
fn all_protocols_together_say_no_more_than_one_may() {
    let mut it = registry();
    let said = |source| {
        let mut it = by(source, "ip=10.0.0.1 udpPort=5060");
        it.properties.insert("x".into(), "y".repeat(ANNOUNCEMENT_BYTES_MAX / 2));
        it
    };
    it.handle_announcement(at(0), said(Source::Rmi)).unwrap();
    it.handle_announcement(at(0), said(Source::Rmi)).unwrap();
    let refused = it.handle_announcement(at(0), said(Source::Json)).unwrap_err();
    assert_eq!(refused, Refused::TooLong { bytes: 2 * said(Source::Json).bytes() });
}
