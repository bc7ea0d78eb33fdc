use protocols::sip::Transport;

use super::*;
use crate::balance::testing::{SHARD, UDP, node, node_at, number, query};
use crate::balance::{self};
use crate::config::load;
use crate::node::{Bad, Node, Way};

fn web(number: u16, route: &str) -> Node {
    let mut it = node(number);
    it.properties.insert("httpPort".to_owned(), "8080".to_owned());
    it.properties.insert("jvmRoute".to_owned(), route.to_owned());
    it
}

fn config(text: &str) -> Config {
    load("t", format!("x.y=1\n{text}\n").as_bytes(), &[]).config
}

fn ask(target: &str) -> Ask<'_> {
    Ask {
        now: Time::from_millis(1_000),
        service: Service::Http,
        target: target.as_bytes(),
        cookie: None,
        source: "192.0.2.1".parse().unwrap(),
        tried: &[],
    }
}

fn table(nodes: Vec<Node>) -> Snapshot {
    Snapshot::new(1, nodes, &[])
}

#[test]
fn sessions_stay_with_their_node() {
    let table = table((1..=4).map(|it| web(it, &format!("n{it}"))).collect());
    let mut chooser = Chooser::new(&config(""), SHARD);
    let mut pick = |target: &str, cookie: Option<&str>| {
        let ask = Ask { cookie: cookie.map(str::as_bytes), ..ask(target) };
        number(&table, chooser.choose(&ask, &table))
    };
    for (target, cookie, want) in [
        ("/app?jsessionid=ab.n2", None, 2),
        ("/app;jsessionid=ab.n3", None, 3),
        ("/app", Some("ab.n4"), 4),
        ("/app?jsessionid=ab.n2", Some("ab.n4"), 2),
        ("/app;jsessionid=ab.n3", Some("ab.n4"), 3),
    ] {
        for _ in 0..3 {
            assert_eq!(pick(target, cookie), Some(want), "{target} {cookie:?}");
        }
    }
    let hashed = pick("/app", Some("ab.unknown"));
    assert!((0..5).all(|_| pick("/app", Some("ab.unknown")) == hashed));
    assert_eq!(pick("/app?jsessionid=abc", None), Some(3), "96354 modulo 4 is 2");
}

/// HTTP, HTTPS and WebSocket of one session: the node that has it for one has it for all that it serves.
#[test]
fn a_session_has_one_node_for_every_service() {
    /// Whether a node serves HTTP, and WebSocket.
    const SERVES: [[bool; 2]; 6] =
        [[true, false], [true, true], [true, true], [true, false], [false, true], [false, false]];
    let nodes = (1..).zip(SERVES).map(|(number, [is_http, is_ws])| {
        let mut it = node(number);
        if is_http {
            it.properties.insert("httpPort".to_owned(), "8080".to_owned());
        }
        if is_ws {
            it.ports.open(Transport::Ws, 5082);
        }
        it
    });
    let table = table(nodes.collect());
    let mut chooser = Chooser::new(&config(""), SHARD);
    let mut counts = [[0usize; 6]; 2];
    for session in 0..4_000 {
        let target = format!("/?jsessionid={session}");
        let [http, ws] = [Service::Http, Service::Ws].map(|service| {
            let id = chooser.choose(&Ask { service, ..ask(&target) }, &table);
            usize::from(number(&table, id).unwrap()) - 1
        });
        let may_differ = !SERVES[http][1] || !SERVES[ws][0];
        assert!(http == ws || may_differ, "{session}: {http} and {ws}");
        counts[0][http] += 1;
        counts[1][ws] += 1;
    }
    for (service, (counts, share)) in counts.iter().zip([1_000, 1_333]).enumerate() {
        for (count, serves) in counts.iter().zip(SERVES) {
            let fair = if serves[service] { share * 9 / 10..share * 11 / 10 } else { 0..1 };
            assert!(fair.contains(count), "{counts:?}");
        }
    }
}

#[test]
fn sessions_leave_a_node_that_cannot_serve_them_and_no_other() {
    type Spoil = fn(&mut Node);
    let dead_or_bad: [(&str, Spoil); 2] = [
        ("bad", |it| it.bad = Some(Bad::Errors)),
        ("without the port", |it| drop(it.properties.remove("httpPort"))),
    ];
    for (name, spoil) in dead_or_bad {
        let mut nodes: Vec<_> = (1..=4).map(|it| web(it, &format!("n{it}"))).collect();
        spoil(&mut nodes[1]);
        let table = table(nodes);
        let mut chooser = Chooser::new(&config(""), SHARD);
        let id = chooser.choose(&ask("/?jsessionid=x.n2"), &table);
        assert!(id.is_some() && number(&table, id) != Some(2), "{name}");
        let id = chooser.choose(&ask("/?jsessionid=x.n3"), &table);
        assert_eq!(number(&table, id), Some(3), "{name}");
    }
}

/// Elsewhere the session is lost, and it may have been another service that refused, or one lost packet.
#[test]
fn a_node_that_refused_a_moment_ago_keeps_its_sessions_and_gets_new_ones_elsewhere() {
    for (way, new) in [(Way::Http, [2, 2]), (Way::Https, [1, 2]), (UDP, [1, 2])] {
        let mut nodes: Vec<_> = (1..=2).map(|it| web(it, &format!("n{it}"))).collect();
        nodes[0].suspect.set(way, true);
        let table = table(nodes);
        let mut chooser = Chooser::new(&config(""), SHARD);
        for _ in 0..3 {
            let id = chooser.choose(&ask("/?jsessionid=x.n1"), &table);
            assert_eq!(number(&table, id), Some(1), "{way:?}");
        }
        let mut picked = [0; 2].map(|_: u16| chooser.choose(&ask("/"), &table));
        picked.sort();
        assert_eq!(picked.map(|it| number(&table, it).unwrap()), new, "{way:?}");
    }
}

#[test]
fn a_node_that_is_leaving_keeps_its_sessions_and_gets_no_new_ones() {
    let mut leaving = web(1, "n1");
    leaving.graceful = true;
    let table = table(vec![leaving, web(2, "n2")]);
    let mut chooser = Chooser::new(&config(""), SHARD);
    let mut pick = |target: &str| number(&table, chooser.choose(&ask(target), &table));
    assert_eq!(pick("/?jsessionid=x.n1"), Some(1));
    assert_eq!(pick("/?jsessionid=0"), Some(1), "48 modulo 2: slots do not move");
    assert!((0..4).all(|_| pick("/") == Some(2)));
}

/// Issue 4: SIP that follows `to.user` and HTTP that follows `appsession` meet on one node.
#[test]
fn equal_keys_of_sip_and_http_meet_on_one_node() {
    for name in [
        "HeaderConsistentHashBalancerAlgorithm",
        "PersistentConsistentHashBalancerAlgorithm",
        "PureConsistentHashBalancerAlgorithm",
    ] {
        let config = config(&format!("algorithmClass={name}\nsipHeaderAffinityKey=to.user"));
        let six = {
            let mut it = node_at("2001:db8::1".parse().unwrap(), 0);
            it.properties.insert("httpPort".to_owned(), "8080".to_owned());
            it
        };
        let mut nodes: Vec<_> = (1..=7).map(|it| web(it, "")).collect();
        nodes.push(six);
        nodes[2].graceful = true;
        let table = table(nodes);
        let mut sip = balance::build(&config, SHARD);
        let mut chooser = Chooser::new(&config, SHARD);
        let mut seen = std::collections::HashSet::new();
        for user in 0..300 {
            let user = format!("user{user}");
            let by_sip = sip.pick(&query(user.as_bytes()), &table);
            let by_http = chooser.choose(&ask(&format!("/app?appsession={user}&x=1")), &table);
            assert_eq!(by_sip, by_http, "{name} {user}");
            seen.insert(by_http);
        }
        assert_eq!(seen.len(), 6, "{name}");
        let id = chooser.choose(&ask("/app?jsessionid=a.b"), &table);
        assert!(id.is_some(), "without the key the session decides");
    }
}

#[test]
fn what_failed_is_not_chosen_again() {
    let table = table((1..=3).map(|it| web(it, &format!("n{it}"))).collect());
    let all: Vec<_> = table.nodes().iter().map(|it| it.key).collect();
    for text in [
        "",
        "algorithmClass=ActiveStandbyAlgorithm",
        "algorithmClass=PureConsistentHashBalancerAlgorithm",
    ] {
        let mut chooser = Chooser::new(&config(text), SHARD);
        for target in ["/", "/?jsessionid=a.n1", "/?jsessionid=a", "/?appsession=b"] {
            let mut tried = Vec::new();
            for _ in 0..3 {
                let ask = Ask { tried: &tried, ..ask(target) };
                let id = chooser.choose(&ask, &table).expect("one is left");
                let key = table.node(id).key;
                assert!(!tried.contains(&key), "{text} {target}");
                tried.push(key);
            }
            assert_eq!(chooser.choose(&Ask { tried: &all, ..ask(target) }, &table), None);
        }
    }
}

#[test]
fn shards_begin_with_different_nodes() {
    let table = table((1..=3).map(|it| web(it, "")).collect());
    let first = |index| {
        let mut chooser = Chooser::new(&config(""), Shard { index, ..SHARD });
        number(&table, chooser.choose(&ask("/"), &table))
    };
    assert_eq!([first(0), first(1), first(2)], [Some(1), Some(2), Some(3)]);
}

#[test]
fn the_hash_is_javas() {
    for (text, want) in
        [("0", 48), ("abc", 96_354), ("appsession", 1_452_839_253), ("A1B2C3.node1", 1_924_896_657)]
    {
        assert_eq!(java_hash(text.as_bytes()), want, "{text}");
    }
}
