use super::*;
use crate::balance::testing::UDP;
use std::time::Duration;

use crate::config::{HostPort, RampUp, Silence, StaticNode};
use crate::node::{Bad, Ports, Version};
use crate::snapshot::Family;

fn rules() -> Rules {
    Rules {
        node_timeout: Duration::from_millis(8400),
        heartbeat_interval: Duration::from_millis(150),
        suspect_time: Duration::from_secs(2),
        errors_max: 2,
        error_time: Duration::from_secs(300),
        probation: None,
        silence: Some(Silence { requests_max: 2, time: Duration::from_secs(1) }),
        ramp_up: None,
        extra: Vec::new(),
        extra_are_nodes: false,
        fixed: Vec::new(),
        own: std::collections::BTreeSet::new(),
    }
}

pub(super) fn registry() -> Registry {
    Registry::new(Time::ZERO, rules(), &BTreeMap::new())
}

pub(super) fn at(millis: u64) -> Time {
    Time::from_millis(millis)
}

pub(super) fn beat(body: &str) -> Announcement {
    Announcement::parse(body.replace(' ', "\n").as_bytes()).unwrap()
}

fn seen(node: NodeKey) -> Report {
    Report::Seen { node, alive: false, errors: 0, requests: 0, answered: false }
}

/// What the events so far were, by their variant.
pub(super) fn events(it: &mut Registry) -> Vec<String> {
    std::iter::from_fn(|| it.poll_event())
        .map(|event| {
            let text = format!("{event:?}");
            let reason = [
                "Silent",
                "Stopped",
                "Replaced",
                "Unconfigured",
                "Unanswered",
                "Ordered",
                "Overdue",
            ]
            .into_iter()
            .find(|reason| text.contains(&format!("reason: {reason}")));
            let variant: String = text.chars().take_while(|it| it.is_alphanumeric()).collect();
            reason.map_or(variant.clone(), |reason| format!("{variant}:{reason}"))
        })
        .collect()
}

const N1: &str = "ip=10.0.0.1 udpPort=5060 tcpPort=5060 hostname=n1";

pub(super) fn eligible(it: &mut Registry) -> usize {
    it.changed = true;
    let snapshot = it.snapshot().unwrap();
    snapshot.eligible(Version(0), Family::V4, Transport::Udp).len()
}

#[test]
fn a_beating_node_is_live_and_a_silent_one_is_taken_out_at_the_next_check() {
    let mut it = registry();
    assert_eq!(it.snapshot().unwrap().generation(), 1);
    assert!(it.snapshot().is_none(), "nothing changed");
    assert_eq!(it.poll_timeout(), None);
    it.handle_announcement(at(0), beat(N1)).unwrap();
    let snapshot = it.snapshot().unwrap();
    assert_eq!((snapshot.generation(), snapshot.nodes().len()), (2, 1));
    it.handle_announcement(at(5000), beat(N1)).unwrap();
    assert!(it.snapshot().is_none(), "a plain refresh changes nothing");
    assert_eq!(events(&mut it), ["Added"]);

    let mut now = at(0);
    while events(&mut it).is_empty() {
        now = it.poll_timeout().unwrap();
        assert!(now <= at(5000 + 8400 + 151), "still there");
        it.handle_timeout(now);
    }
    assert!(now > at(5000 + 8400));
    let snapshot = it.snapshot().unwrap();
    assert!(snapshot.nodes().is_empty());
    assert!(snapshot.remembers("10.0.0.1:5060".parse().unwrap()));
    it.handle_timeout(now + Duration::from_secs(3601));
    assert!(!it.snapshot().unwrap().remembers("10.0.0.1:5060".parse().unwrap()));
    assert_eq!(it.poll_timeout(), None);
}

/// The process was stopped for a minute; a node that is there speaks within its own period.
#[test]
fn after_a_stall_every_node_has_its_whole_timeout() {
    let mut it = registry();
    let rmi = |body: &str| Announcement { source: Source::Rmi, ..beat(body) };
    it.handle_announcement(at(0), beat(N1)).unwrap();
    it.handle_announcement(at(10), rmi(N1)).unwrap();
    it.handle_announcement(at(0), beat("ip=10.0.0.2 udpPort=1")).unwrap();
    it.handle_stall(at(60_000));
    for millis in [60_000, 68_400] {
        it.handle_timeout(at(millis));
        assert_eq!(it.live().count(), 2, "{millis}");
    }
    it.handle_announcement(at(68_400), beat(N1)).unwrap();
    it.handle_announcement(at(68_400), rmi(N1)).unwrap();
    it.handle_timeout(at(68_600));
    assert_eq!(it.live().count(), 1, "the one that went meanwhile");
    assert_eq!(events(&mut it), ["Added", "Added", "Removed:Silent"]);
}

#[test]
fn sip_traffic_is_a_life_sign() {
    let mut it = registry();
    it.handle_announcement(at(0), beat(N1)).unwrap();
    let node = beat(N1).key();
    let alive = Report::Seen { node, alive: true, errors: 0, requests: 0, answered: false };
    it.handle_report(at(8000), alive).unwrap();
    it.handle_timeout(at(16_400));
    assert_eq!(it.live().count(), 1);
    it.handle_report(at(16_400), seen(node)).unwrap(); // nothing was seen
    it.handle_timeout(at(16_550));
    assert_eq!(it.live().count(), 0);
    it.handle_report(at(17_000), seen(node)).unwrap(); // a late report of a dead node
}

#[test]
fn announcements_meet_their_entry() {
    /// What is said first and then, what happened, and live nodes afterwards.
    type Row = (&'static str, &'static [&'static str], &'static [&'static str], usize);
    let cases: &[Row] = &[
        ("the same again", &[N1, N1], &["Added"], 1),
        (
            "a property changed",
            &[N1, "ip=10.0.0.1 udpPort=5060 tcpPort=5060 hostname=n1 load=2"],
            &["Added", "Changed"],
            1,
        ),
        (
            "a port more is the same node",
            &[N1, "ip=10.0.0.1 udpPort=5060 tcpPort=5060 wsPort=80 hostname=n1"],
            &["Added", "Changed"],
            1,
        ),
        (
            "the same numbers on other transports are another node",
            &["ip=10.0.0.1 udpPort=5060", "ip=10.0.0.1 tcpPort=5060"],
            &["Added", "Added"],
            2,
        ),
        (
            "another version on the same ports took them over",
            &[N1, "ip=10.0.0.1 udpPort=5060 tcpPort=5060 version=1"],
            &["Added", "Removed:Replaced", "Added"],
            1,
        ),
        (
            "one that has the addresses of two replaces both",
            &["ip=10.0.0.1 udpPort=1", "ip=10.0.0.1 tcpPort=2", "ip=10.0.0.1 udpPort=1 tcpPort=2"],
            &["Added", "Added", "Removed:Replaced", "Changed"],
            1,
        ),
        (
            "nodes without SIP are told by their other ports",
            &["ip=10.0.0.1 httpPort=80", "ip=10.0.0.1 httpPort=81", "ip=10.0.0.1 httpPort=81 x=y"],
            &["Added", "Added", "Changed"],
            2,
        ),
        (
            "leaving when it is first heard of: its dialogs must find it",
            &["ip=10.0.0.1 udpPort=1 GRACEFUL_SHUTDOWN=true"],
            &["Added", "Graceful"],
            1,
        ),
        (
            "leaving, and another version has its ports",
            &[N1, "ip=10.0.0.1 udpPort=5060 version=1 GRACEFUL_SHUTDOWN=true"],
            &["Added"],
            1,
        ),
        (
            "leaving, and a later beat does not take it back",
            &[
                "ip=10.0.0.1 udpPort=1",
                "ip=10.0.0.1 udpPort=1 GRACEFUL_SHUTDOWN=true",
                "ip=10.0.0.1 udpPort=1",
            ],
            &["Added", "Changed", "Graceful", "Changed"],
            1,
        ),
        (
            "a new incarnation clears it",
            &[
                "ip=10.0.0.1 udpPort=1 sessionId=1",
                "ip=10.0.0.1 udpPort=1 sessionId=1 GRACEFUL_SHUTDOWN=true",
                "ip=10.0.0.1 udpPort=1 sessionId=2",
            ],
            &["Added", "Changed", "Graceful", "Restarted"],
            1,
        ),
    ];
    for (name, said, want, live) in cases {
        let mut it = registry();
        for (index, body) in said.iter().enumerate() {
            it.handle_announcement(at(index as u64), beat(body)).unwrap();
        }
        assert_eq!(events(&mut it), *want, "{name}");
        let snapshot = it.snapshot().unwrap();
        assert_eq!(snapshot.nodes().len(), *live, "{name}");
        for node in snapshot.nodes() {
            assert_eq!(it.entries.get(&node.key).map(|it| it.node.key), Some(node.key), "{name}");
            assert!(it.by_ip[&node.ip].contains(&node.key), "{name}");
        }
        let graceful = want.contains(&"Graceful") && !want.contains(&"Restarted");
        assert_eq!(snapshot.nodes().iter().any(|it| it.graceful), graceful, "{name}");
    }
}

#[test]
fn a_node_is_known_by_its_former_identities() {
    let mut it = registry();
    let said = |ports: &str| beat(&format!("ip=10.0.0.1 udpPort=5060 sessionId=1 {ports}"));
    let all = ["", "tcpPort=5060", "tcpPort=5060 wsPort=80", "tcpPort=5060"];
    let keys = all.map(|ports| {
        it.handle_announcement(at(0), said(ports)).unwrap();
        said(ports).key()
    });
    let snapshot = it.snapshot().unwrap();
    let id = snapshot.find(keys[3]).unwrap();
    assert!(keys.iter().all(|key| snapshot.find(*key) == Some(id)));
    assert_eq!(snapshot.node(id).former, [keys[0], keys[2]], "each once, and not its own");
    let renamed: Vec<_> = snapshot.renamed().collect();
    assert_eq!(renamed, [(keys[0], keys[3]), (keys[2], keys[3])]);
    // Somebody else may have one now.
    let mut other = snapshot.node(id).clone();
    (other.key, other.former, other.ports) = (keys[0], Vec::new(), said("").ports);
    let both = Snapshot::new(9, vec![snapshot.node(id).clone(), other], &[]);
    assert_ne!(both.find(keys[0]), both.find(keys[3]));
    assert_eq!(both.renamed().collect::<Vec<_>>(), [(keys[2], keys[3])]);
    // A node that changes again and again is remembered by a few.
    for port in 1..100 {
        it.handle_announcement(at(0), said(&format!("tcpPort={port}"))).unwrap();
    }
    assert_eq!(it.live().next().unwrap().former.len(), 8);
}

#[test]
fn a_closed_port_is_remembered_and_an_open_one_is_not() {
    let mut it = registry();
    it.handle_announcement(at(0), beat("ip=10.0.0.1 udpPort=1 tcpPort=2")).unwrap();
    it.handle_announcement(at(1), beat("ip=10.0.0.1 udpPort=1 tcpPort=3")).unwrap();
    let snapshot = it.snapshot().unwrap();
    assert!(snapshot.remembers("10.0.0.1:2".parse().unwrap()));
    assert!(snapshot.at("10.0.0.1:3".parse().unwrap(), None, None).is_some());
    it.handle_announcement(at(2), beat("ip=10.0.0.1 udpPort=1 tcpPort=2")).unwrap();
    let snapshot = it.snapshot().unwrap();
    assert!(!snapshot.remembers("10.0.0.1:2".parse().unwrap()));
    assert!(snapshot.remembers("10.0.0.1:3".parse().unwrap()));
}

#[test]
fn impossible_nodes_are_refused() {
    let mut long = beat(N1);
    long.properties.insert("x".into(), "y".repeat(ANNOUNCEMENT_BYTES_MAX));
    let mut closed = beat(N1);
    closed.ports = Ports::default();
    let address = |body: &str| Refused::Address { ip: beat(body).ip };
    let cases = [
        (beat("ip=0.0.0.0 udpPort=1"), address("ip=0.0.0.0 udpPort=1")),
        (beat("ip=224.0.0.1 udpPort=1"), address("ip=224.0.0.1 udpPort=1")),
        (beat("ip=255.255.255.255 udpPort=1"), address("ip=255.255.255.255 udpPort=1")),
        (beat("ip=:: udpPort=1"), address("ip=:: udpPort=1")),
        (closed, Refused::NoPorts),
        (long.clone(), Refused::TooLong { bytes: long.bytes() }),
    ];
    for (said, want) in cases {
        let mut it = registry();
        assert_eq!(it.handle_announcement(at(0), said), Err(want), "{want}");
        assert_eq!(it.live().count(), 0, "{want}");
    }
}

/// Traffic for such a node would come back until its Max-Forwards are used up.
#[test]
fn the_balancer_itself_is_no_node_whoever_says_so() {
    let listens = "host=10.0.0.1\nexternalPort=5060\nexternalWsPort=5062\npublic-ip=203.0.113.9\n\
        internalHost=0.0.0.0\ninternalPort=5065\nexternalIpLoadBalancerAddress=192.0.2.1\n\
        externalIpLoadBalancerUdpPort=5070\n";
    let rules = |more: &str| {
        let loaded = crate::config::load("t", format!("{listens}{more}").as_bytes(), &[]);
        Rules::from(&loaded.config)
    };
    let cases = [
        ("ip=10.0.0.1 udpPort=5060", Some("10.0.0.1:5060")),
        ("ip=10.0.0.1 udpPort=5080 tlsPort=5060", Some("10.0.0.1:5060")),
        ("ip=10.0.0.1 tcpPort=5062", Some("10.0.0.1:5062")),
        ("ip=127.0.0.1 udpPort=5065", Some("127.0.0.1:5065")),
        ("ip=203.0.113.9 tcpPort=5060", Some("203.0.113.9:5060")),
        ("ip=192.0.2.1 udpPort=5070", Some("192.0.2.1:5070")),
        ("ip=10.0.0.1 udpPort=5080", None),
        ("ip=10.0.0.1 udpPort=5062", None),
        ("ip=10.0.0.2 udpPort=5060", None),
    ];
    for (said, own) in cases {
        let mut it = Registry::new(at(0), rules(""), &BTreeMap::new());
        let want = own.map_or(Ok(()), |it| Err(Refused::Own { address: it.parse().unwrap() }));
        assert_eq!(it.handle_announcement(at(0), beat(said)), want, "{said}");
        assert_eq!(it.refusals("own_address"), u64::from(own.is_some()), "{said}");
    }
    assert!(cases.iter().any(|(_, own)| own.is_some()));
    for named in [
        "staticNodes=10.0.0.1:5060,10.0.0.2:5060\n",
        "extraServerNodes=10.0.0.1:5060,10.0.0.2:5060\nperformanceTestingMode=true\n",
    ] {
        let mut it = Registry::new(at(0), rules(named), &BTreeMap::new());
        let kept: Vec<_> = it.entries.values().map(|it| it.node.ip.to_string()).collect();
        assert_eq!(kept, ["10.0.0.2"], "{named}");
        assert_eq!(events(&mut it).iter().filter(|it| *it == "Own").count(), 1, "{named}");
        it.configure(at(1), rules(named), &BTreeMap::new());
        assert!(!events(&mut it).contains(&"Own".to_owned()), "once is enough: {named}");
    }
}

#[test]
fn the_table_is_bounded() {
    let mut it = registry();
    for index in 0..NODES_MAX + 2 {
        let body =
            format!("ip=10.{}.{}.1 udpPort=5060 jvmRoute=r{index}", index / 256, index % 256);
        let want = if index < NODES_MAX { Ok(()) } else { Err(Refused::NoRoom) };
        assert_eq!(it.handle_announcement(at(index as u64), beat(&body)), want, "{index}");
    }
    assert_eq!(it.events.len(), EVENTS_MAX);
    let renamed = "ip=10.0.0.1 udpPort=5060 jvmRoute=new";
    it.handle_announcement(at(NODES_MAX as u64), beat(renamed)).unwrap();
    assert_eq!(it.routes.len(), NODES_MAX);
    assert!(it.routes.contains_key("new") && !it.routes.contains_key("r0"));
    assert_eq!(it.poll_event(), Some(Event::Lost { events: 1 }), "and that is said");
    assert_eq!(events(&mut it).len(), EVENTS_MAX);
    assert_eq!(it.changes(("added", "")), NODES_MAX as u64);
    assert_eq!(it.snapshot().unwrap().nodes().len(), NODES_MAX);
}

#[test]
fn errors_make_a_node_bad_and_only_a_restart_heals_it() {
    // (time, errors reported), and when it became bad
    type Row = (&'static str, &'static [(u64, u32)], Option<usize>);
    let cases: &[Row] = &[
        ("two are allowed", &[(0, 1), (1, 1)], None),
        ("three are not", &[(0, 1), (1, 1), (2, 1)], Some(2)),
        ("all at once", &[(0, 3)], Some(0)),
        ("far apart", &[(0, 2), (300_001, 2), (600_002, 2)], None),
        ("a long life before does not excuse", &[(900_000, 2), (1_100_000, 1)], Some(1)),
        ("each error counts from the last", &[(0, 1), (299_000, 1), (598_000, 1)], Some(2)),
    ];
    for (name, reports, bad_at) in cases {
        let mut it = registry();
        let first = "ip=10.0.0.1 udpPort=5060 sessionId=1";
        it.handle_announcement(at(0), beat(first)).unwrap();
        let node = beat(first).key();
        for (index, (millis, errors)) in reports.iter().enumerate() {
            let report =
                Report::Seen { node, alive: true, errors: *errors, requests: 0, answered: true };
            it.handle_report(at(*millis), report).unwrap();
            let want = usize::from(bad_at.is_none_or(|it| index < it));
            assert_eq!(eligible(&mut it), want, "{name}, report {index}");
        }
        let Some((last, _)) = reports.last().filter(|_| bad_at.is_some()) else { continue };
        for later in [*last + 1, *last + 400_000] {
            it.handle_announcement(at(later), beat(first)).unwrap();
            it.handle_timeout(at(later));
            assert_eq!(eligible(&mut it), 0, "{name}: the same incarnation stays bad");
        }
        assert_eq!(it.live().count(), 1, "{name}: but keeps its calls");
        let second = "ip=10.0.0.1 udpPort=5060 sessionId=2";
        it.handle_announcement(at(*last), beat(second)).unwrap();
        assert_eq!(eligible(&mut it), 1, "{name}: restarted");
        assert_eq!(it.health(at(*last), node).unwrap().errors, 0, "{name}");
        assert_eq!(events(&mut it), ["Added", "Bad", "Restarted"], "{name}");
    }
}

#[test]
fn a_bad_node_is_tried_again_where_the_operator_wants_that() {
    let probation = Some(Duration::from_secs(60));
    let mut it = Registry::new(at(0), Rules { probation, ..rules() }, &BTreeMap::new());
    let said = "ip=10.0.0.1 udpPort=5060 sessionId=1";
    let node = beat(said).key();
    let errors = |errors| Report::Seen { node, alive: true, errors, requests: 0, answered: true };
    // Bad, tried again, bad with the first error; tried again, and well for so long that errors are forgotten.
    for (millis, errors_seen, want) in [
        (0, 3, 0),
        (59_000, 0, 0),
        (61_000, 0, 1),
        (62_000, 1, 0),
        (121_000, 0, 0),
        (123_000, 0, 1),
        (500_000, 2, 1),
        (500_001, 1, 0),
    ] {
        it.handle_announcement(at(millis), beat(said)).unwrap();
        it.handle_report(at(millis), errors(errors_seen)).unwrap();
        it.handle_timeout(at(millis));
        assert_eq!(eligible(&mut it), want, "{millis}");
    }
    assert_eq!(events(&mut it), ["Added", "Bad", "Recovered", "Bad", "Recovered", "Bad"]);
}

#[test]
fn unanswered_requests_make_a_node_bad() {
    // (time, requests, answered), and the report that made it bad
    type Row = (&'static str, &'static [(u64, u32, bool)], Option<usize>);
    let cases: &[Row] = &[
        (
            "the third of the original's test",
            &[(0, 1, false), (10_000, 1, false), (20_000, 1, false)],
            Some(2),
        ),
        ("answered", &[(0, 1, false), (10_000, 2, true), (20_000, 2, true)], None),
        ("a burst may take its second", &[(50_000, 9, false), (50_900, 9, false)], None),
        ("and no longer", &[(50_000, 9, false), (51_001, 9, false)], Some(1)),
        (
            "the answers came through another shard",
            &[(50_000, 9, false), (50_050, 0, true), (50_100, 9, false), (70_000, 1, false)],
            None,
        ),
        (
            "it answered until it did not",
            &[(0, 9, true), (600, 9, false), (1_300, 9, false), (1_700, 1, false)],
            Some(3),
        ),
    ];
    for (name, reports, bad_at) in cases {
        let mut it = registry();
        it.handle_announcement(at(0), beat(N1)).unwrap();
        let node = beat(N1).key();
        for (index, (millis, requests, answered)) in reports.iter().enumerate() {
            let report = Report::Seen {
                node,
                alive: true,
                errors: 0,
                requests: *requests,
                answered: *answered,
            };
            it.handle_report(at(*millis), report).unwrap();
            let want = usize::from(bad_at.is_none_or(|it| index < it));
            assert_eq!(eligible(&mut it), want, "{name}, report {index}");
        }
        if bad_at.is_some() {
            assert_eq!(it.live().next().unwrap().bad, Some(Bad::Silence), "{name}");
        }
    }
}

#[test]
fn a_node_that_refused_is_avoided_for_a_moment() {
    let mut it = registry();
    it.handle_announcement(at(0), beat(N1)).unwrap();
    it.handle_announcement(at(0), beat("ip=10.0.0.2 udpPort=5060 tcpPort=5060")).unwrap();
    let node = beat(N1).key();
    for millis in [1000, 1500] {
        it.handle_report(at(millis), Report::Refused { node, way: UDP }).unwrap();
        assert_eq!(eligible(&mut it), 1);
    }
    it.handle_timeout(at(3400));
    assert_eq!(eligible(&mut it), 1, "the second refusal counts anew");
    it.handle_timeout(at(3550));
    assert_eq!(eligible(&mut it), 2);
    assert_eq!(events(&mut it), ["Added", "Added", "Suspect", "Recovered"]);
}

#[test]
fn stops_and_graceful_ends() {
    let mut it = registry();
    let first = beat("ip=10.0.0.1 udpPort=5060 sessionId=1");
    let second = beat("ip=10.0.0.1 udpPort=5060 sessionId=2");
    it.handle_announcement(at(0), first.clone()).unwrap();
    it.handle_announcement(at(1), second.clone()).unwrap();
    assert_eq!(it.find(&first), None, "a late word of the dead incarnation");
    let node = it.find(&second).unwrap();
    assert!(it.handle_graceful(at(2), node));
    assert_eq!((eligible(&mut it), it.live().count()), (0, 1));
    assert!(it.handle_sign(at(9000), node));
    it.handle_timeout(at(12_000));
    assert!(it.handle_stop(at(12_000), node));
    assert!(!it.handle_stop(at(12_000), node) && !it.handle_sign(at(12_000), node));
    assert_eq!(events(&mut it), ["Added", "Restarted", "Graceful", "Removed:Stopped"]);
    assert!(it.entries.is_empty() && it.by_ip.is_empty());
}

#[test]
fn a_switchover_finds_nodes_by_route_even_after_their_death() {
    let mut it = registry();
    let old = beat("ip=10.0.0.1 udpPort=5060 jvmRoute=a");
    let new = beat("ip=10.0.0.2 udpPort=5060 jvmRoute=b");
    it.handle_announcement(at(0), old.clone()).unwrap();
    it.handle_announcement(at(0), new.clone()).unwrap();
    it.handle_stop(at(1), old.key());
    it.snapshot();
    it.handle_switch_over("a", "b");
    assert_eq!(it.poll_switch_over(), Some((old.key(), new.key())));
    events(&mut it);
    it.handle_switch_over("a", "c");
    assert_eq!(it.poll_switch_over(), None);
    let line = it.poll_event().unwrap().to_string();
    assert_eq!(line, "Switchover failed where fromJvmRoute=a and toJvmRoute=c");
}

#[test]
fn a_switchover_waits_for_the_table_that_names_its_nodes() {
    let mut it = registry();
    let old = beat("ip=10.0.0.1 udpPort=5060 jvmRoute=a");
    it.handle_announcement(at(0), old.clone()).unwrap();
    it.snapshot();
    it.handle_announcement(at(1), beat("ip=10.0.0.2 udpPort=5060 jvmRoute=b")).unwrap();
    it.handle_switch_over("a", "b");
    assert_eq!(it.poll_switch_over(), None, "no shard knows the heir");
    // Its ports change before shards hear of it at all.
    let heir = beat("ip=10.0.0.2 udpPort=5060 tcpPort=5061 jvmRoute=b");
    it.handle_announcement(at(2), heir.clone()).unwrap();
    assert_eq!(it.poll_switch_over(), None, "no shard knows the heir");
    assert!(it.snapshot().unwrap().find(heir.key()).is_some());
    assert_eq!(it.poll_switch_over(), Some((old.key(), heir.key())));
    assert_eq!(it.poll_switch_over(), None, "once");
    for _ in 0..=NODES_MAX {
        it.handle_switch_over("a", "b");
    }
    assert!(events(&mut it).ends_with(&["Switchover".to_owned(), "SwitchoverFailed".to_owned()]));
}

#[test]
fn extra_servers_are_nodes_only_in_performance_testing_mode() {
    let mut it = registry();
    let extra = |host: &str, port| HostPort { host: host.into(), port };
    let mut rules = Rules { extra: vec![extra("10.0.0.7", 21), extra("media", 5060)], ..rules() };
    let names = [("media".to_owned(), vec!["10.0.0.8".parse().unwrap()])].into();
    it.configure(at(0), rules.clone(), &names);
    let snapshot = it.snapshot().unwrap();
    assert!(snapshot.nodes().is_empty());
    assert!(snapshot.remembers("10.0.0.7:21".parse().unwrap()));
    assert!(snapshot.remembers("10.0.0.8:5060".parse().unwrap()));

    rules.extra_are_nodes = true;
    it.configure(at(1), rules.clone(), &names);
    it.configure(at(2), rules.clone(), &names);
    assert_eq!(events(&mut it), ["Added", "Added", "ExtraNodes"]);
    it.handle_timeout(at(100_000));
    let snapshot = it.snapshot().unwrap();
    let name = |index: usize| snapshot.nodes()[index].host_name.as_str();
    assert_eq!((name(0), name(1)), ("ExtraServerNode0-10.0.0.7:21", "ExtraServerNode1-media:5060"));
    let properties: Vec<String> =
        snapshot.nodes()[1].properties.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(properties, ["httpPort=8081", "tcpPort=5060", "udpPort=5060", "version=0"]);
    assert!(!snapshot.remembers("10.0.0.7:21".parse().unwrap()));
    let node = snapshot.nodes()[0].key;
    assert!(!it.handle_stop(at(100_000), node), "the operator's word");

    rules.extra.truncate(1);
    it.configure(at(100_001), rules, &names);
    assert_eq!(events(&mut it), ["Removed:Unconfigured"]);
    assert_eq!(it.live().count(), 1);
}

#[test]
fn static_nodes_live_by_their_pulse() {
    let mut ports = Ports::default();
    ports.open(Transport::Tcp, 5070);
    let fixed = vec![StaticNode { host: "10.0.0.5".into(), ports }];
    let mut it = Registry::new(at(0), Rules { fixed, ..rules() }, &BTreeMap::new());
    let (node, to, transport) = it.probed().next().unwrap();
    assert_eq!((to, transport), ("10.0.0.5:5070".parse().unwrap(), Transport::Tcp));
    assert_eq!(it.live().count(), 0, "nobody answered yet");
    for _ in 0..2 {
        it.handle_pulse(at(0), node, Pulse::Dead);
    }
    assert_eq!(events(&mut it), ["Down"], "said once");
    assert_eq!((it.down().count(), it.health(at(0), node).unwrap().is_live), (1, false));
    let live = |it: &Registry| it.live().next().map(Node::is_eligible);
    let steps = [
        (Pulse::Live, Some(true), "Added"),
        (Pulse::Full, Some(false), "Bad"),
        (Pulse::Live, Some(true), "Recovered"),
        (Pulse::Dead, None, "Removed:Unanswered"),
        (Pulse::Dead, None, ""),
        (Pulse::Full, Some(false), "Added"),
    ];
    for (index, (pulse, want, event)) in steps.into_iter().enumerate() {
        it.handle_pulse(at(1_000_000 * index as u64), node, pulse);
        it.handle_timeout(at(1_000_000 * index as u64));
        assert_eq!(live(&it), want, "step {index}");
        assert_eq!(events(&mut it).concat(), event, "step {index}");
    }
    it.handle_pulse(at(7_000_000), node, Pulse::Live);
    let report = Report::Seen { node, alive: true, errors: 9, requests: 0, answered: true };
    it.handle_report(at(7_000_000), report).unwrap();
    it.handle_timeout(at(7_300_000));
    assert_eq!(live(&it), Some(false));
    it.handle_timeout(at(7_300_151));
    assert_eq!(live(&it), Some(true), "it cannot show that it restarted: time heals");
}

#[test]
fn a_configured_node_that_announces_itself_keeps_the_operators_addresses() {
    let mut ports = Ports::default();
    ports.open(Transport::Udp, 5060);
    let fixed = Rules { fixed: vec![StaticNode { host: "10.0.0.1".into(), ports }], ..rules() };
    let mut it = Registry::new(at(0), fixed.clone(), &BTreeMap::new());
    let (node, ..) = it.probed().next().unwrap();
    it.handle_pulse(at(0), node, Pulse::Live);
    it.handle_announcement(at(1), beat("ip=10.0.0.1 udpPort=5060 tcpPort=5060 load=1")).unwrap();
    let known: Vec<&Node> = it.live().collect();
    assert_eq!((known.len(), known[0].key, known[0].ports), (1, node, ports));
    assert_eq!(known[0].properties["load"], "1");

    let mut it = registry();
    it.handle_announcement(at(0), beat("ip=10.0.0.1 udpPort=5060 tcpPort=5060")).unwrap();
    it.configure(at(1), fixed, &BTreeMap::new());
    let known: Vec<&Node> = it.live().collect();
    assert_eq!((known.len(), known[0].origin), (1, Origin::Static), "a live node stays live");
}

#[test]
fn weight_grows_with_age_up_to_its_limit() {
    let ramp_up = Some(RampUp { period: Duration::from_secs(70), weight_max: 2 });
    let mut it = Registry::new(at(0), Rules { ramp_up, ..rules() }, &BTreeMap::new());
    it.handle_announcement(at(1000), beat(N1)).unwrap();
    let weight = |millis| it.health(at(millis), beat(N1).key()).unwrap().weight;
    assert_eq!([1000, 70_999, 71_000, 999_999].map(weight), [1, 1, 2, 2]);
}

/// The table's promises hold whatever is said in whatever order.
#[test]
fn one_versions_nodes_never_share_an_address() {
    for mut seed in 1..60u64 {
        let start = seed;
        let mut draw = |below: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed >> 32) % below
        };
        let mut it = registry();
        for step in 0..300u64 {
            let body = format!(
                "ip=10.0.0.{}\nudpPort={}\ntcpPort={}\nhttpPort={}\nversion={}\nsessionId={}\nGRACEFUL_SHUTDOWN={}",
                draw(2),
                draw(3),
                draw(3),
                draw(3),
                draw(2),
                draw(3),
                draw(5) == 0
            );
            let now = at(step * 1000);
            let source = match draw(3) {
                0 => Source::Sip,
                1 => Source::Json,
                _ => Source::Rmi,
            };
            let Ok(said) = Announcement::parse(body.as_bytes()) else { continue };
            let said = Announcement { source, ..said };
            let ip = said.ip;
            match draw(6) {
                0 => drop(it.find(&said).map(|key| it.handle_stop(now, key))),
                2 => drop(it.handle_session(now, ip, "1", SessionWord::Alive)),
                3 => drop(it.handle_session(now, ip, "2", SessionWord::Stopped)),
                1 => it.handle_report(now, Report::Refused { node: said.key(), way: UDP }).unwrap(),
                _ => it.handle_announcement(now, said).unwrap(),
            }
            it.handle_timeout(now);
            let mut taken = std::collections::BTreeSet::new();
            for node in it.live() {
                for (transport, port) in node.ports.iter() {
                    let address = (node.version, node.ip, transport.index(), port);
                    assert!(taken.insert(address), "seed {start} step {step}: {address:?}");
                }
                for (name, port) in announcement::services(&node.properties) {
                    let address = (node.version, node.ip, 5 + usize::from(name), port);
                    assert!(taken.insert(address), "seed {start} step {step}: {address:?}");
                }
            }
            let started = it.entries.values().filter(|it| it.session(Source::Json).is_some());
            let sessions: usize = it.sessions.values().map(Vec::len).sum();
            assert_eq!(sessions, started.count(), "seed {start} step {step}");
            for (session, key) in
                it.sessions.iter().flat_map(|(s, all)| all.iter().map(move |k| (s, k)))
            {
                let known = it.entries[key].session(Source::Json);
                assert_eq!(known, Some(session.as_str()), "seed {start} step {step}");
            }
            let filed: usize = it.by_ip.values().map(Vec::len).sum();
            assert_eq!(filed, it.entries.len(), "seed {start} step {step}");
            for (key, entry) in &it.entries {
                assert_eq!(*key, entry.node.key, "seed {start} step {step}");
                assert!(it.by_ip[&entry.node.ip].contains(key), "seed {start} step {step}");
            }
            while it.poll_event().is_some() {}
        }
    }
}
