//! What every algorithm must keep, over the whole table: a new row is tested when it arrives.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use protocols::sip::Transport;
use protocols::time::Time;

use super::testing::{
    Numbers, UDP, ack, cancel, config, identify, in_dialog, node, node_at, number, query, response,
    snapshot,
};
use super::{ALGORITHMS, Algorithm, Entry, Query, Shard};
use crate::config::{Config, RampUp};
use crate::node::{Bad, Node, Version, Way};
use crate::snapshot::{Family, NodeId, Snapshot};

/// Each row on one shard and on the second of several, and where one source meets all of them.
fn instances() -> impl Iterator<Item = (String, &'static Entry, Box<dyn Algorithm>)> {
    ALGORITHMS.iter().flat_map(|entry| {
        [(1, 0, false), (4, 1, false), (4, 2, true)].map(|(shards, index, scattered)| {
            let config = Config { shards, calls_max: 4_096, ..config() };
            let built = (entry.build)(&config, Shard { index, scattered });
            (format!("{} {shards} shards scattered={scattered}", entry.name), entry, built)
        })
    })
}

/// Any mixture of what may be wrong with nodes.
fn random_nodes(numbers: &mut Numbers) -> Vec<Node> {
    (0..numbers.next() % 7)
        .map(|_| {
            let version = (numbers.next() % 2) as i32;
            let mut it = match numbers.next() % 4 {
                0 => node_at(IpAddr::V6(Ipv6Addr::from(numbers.next() as u128 % 3)), version),
                _ => node_at(node((numbers.next() % 9) as u16).ip, version),
            };
            if numbers.one_in(3) {
                it.ports.0[Transport::Tcp.index()] = None;
                identify(&mut it);
            }
            it.graceful = numbers.one_in(4);
            it.bad = numbers.one_in(4).then_some(Bad::Errors);
            it.suspect.set(UDP, numbers.one_in(4));
            it.joined = Time::from_millis(numbers.next() % 100_000);
            it
        })
        .collect()
}

/// Explanations show them.
#[test]
fn who_is_remembered_by_nobody_goes_to_one_of_the_candidates() {
    for seed in 1..=60 {
        for (name, _, mut algorithm) in instances() {
            let mut numbers = Numbers(seed * 0x9E37_79B9);
            let mut table = Snapshot::default();
            for step in 0..100u64 {
                if step % 5 == 0 {
                    table = snapshot(step + 1, random_nodes(&mut numbers)).after(&table);
                }
                let text = step.to_be_bytes();
                let kinds = [query(&text), cancel(&text), ack(&text), in_dialog(&text)];
                let kind = kinds[(numbers.next() % 4) as usize];
                let query = Query { now: Time::from_millis(100_000 + step * 100), ..kind };
                let candidates = algorithm.candidates(&query, &table).ids();
                if let Some(id) = algorithm.pick(&query, &table) {
                    let case = format!("{name} seed {seed} step {step} {query:?}");
                    assert!(candidates.contains(&id), "{case}: {id:?} of {candidates:?}");
                }
            }
        }
    }
}

#[test]
fn whatever_happens_only_nodes_that_can_take_the_message_are_chosen() {
    for seed in 1..=60 {
        for (name, _, mut algorithm) in instances() {
            let mut numbers = Numbers(seed * 0x9E37_79B9);
            let mut table = Snapshot::default();
            for step in 0..200u64 {
                if step % 10 == 0 {
                    table = snapshot(step + 1, random_nodes(&mut numbers)).after(&table);
                }
                let known = (numbers.next() % 16).to_be_bytes();
                let fresh = (step + 1_000).to_be_bytes();
                let is_fresh = numbers.one_in(4);
                let text = if is_fresh { &fresh[..] } else { &known[..] };
                let kind = match numbers.next() % 6 {
                    _ if is_fresh => query(text),
                    0 => cancel(text),
                    1 => ack(text),
                    2 => in_dialog(text),
                    3 => response(text, 180),
                    _ => query(text),
                };
                let query = Query {
                    now: Time::from_millis(100_000 + step * 100),
                    version: Version((numbers.next() % 2) as i32),
                    names_version: numbers.one_in(2),
                    family: if numbers.one_in(3) { Family::V6 } else { Family::V4 },
                    transport: Transport::ALL[(numbers.next() % 2) as usize],
                    is_again: numbers.one_in(4),
                    ..kind
                };
                let usable = table.usable(query.version, query.family, query.transport);
                let eligible = table.eligible(query.version, query.family, query.transport);
                let named = usable.first().copied();
                let case = format!("{name} seed {seed} step {step} {query:?}");
                let picked = match numbers.next() % 4 {
                    0 if named.is_some() && !is_fresh => {
                        algorithm.learn(&query, &table, named.unwrap());
                        Some(algorithm.replace(&query, &table, named.unwrap()))
                    }
                    1 if query.status.is_some() => algorithm.answer(&query, &table, named),
                    _ => algorithm.pick(&query, &table),
                };
                match picked {
                    Some(id) => {
                        let query = query.as_of(table.node(id)); // a remembered call may be older
                        let usable = table.usable(query.version, query.family, query.transport);
                        let eligible = table.eligible(query.version, query.family, query.transport);
                        // Who is suspect keeps what it has, unless that very message was refused.
                        let node = table.node(id);
                        let keeps = node.suspect.has(Way::Sip(query.transport))
                            && !query.is_first
                            && !query.is_again
                            && node.version == query.version
                            && Family::of(node.ip) == query.family
                            && node.ports.of(query.transport).is_some();
                        let fits = usable.contains(&id)
                            || keeps
                            || (!query.in_dialog && eligible.contains(&id));
                        assert!(fits, "{case}: {id:?} of {usable:?} and {eligible:?}");
                    }
                    None => assert!(eligible.is_empty(), "{case}: none of {eligible:?}"),
                }
                if is_fresh && let Some(id) = picked {
                    assert!(eligible.contains(&id), "{case}: {id:?} of {eligible:?}");
                }
            }
        }
    }
}

/// A reload while calls ring: their CANCELs follow their INVITEs, and nothing is forgotten.
#[test]
fn whatever_else_is_configured_the_calls_stay() {
    let changes: [fn(&mut Config); 7] = [
        |it| it.call_idle *= 2,
        |it| it.calls_max *= 3,
        |it| it.calls_max = 60,
        |it| it.group_failover = true,
        |it| it.subclusters = vec![vec![node(1).ip, node(2).ip]],
        |it| it.early_dialog_worst_case = true,
        |it| it.ramp_up = Some(RampUp { period: Duration::from_secs(9), weight_max: 7 }),
    ];
    let table = snapshot(1, (1..=5).map(node).collect());
    for (name, _, mut algorithm) in instances() {
        let calls: Vec<[u8; 1]> = (0..50).map(|it| [it]).collect();
        let homes: Vec<_> = calls.iter().map(|it| algorithm.pick(&query(it), &table)).collect();
        for (number, change) in (0..).zip(changes) {
            let before = algorithm.active_calls();
            let mut changed = config();
            change(&mut changed);
            algorithm.configure(&changed);
            assert_eq!(algorithm.active_calls(), before, "{name} change {number}");
            for (call, home) in calls.iter().zip(&homes) {
                let found = algorithm.pick(&cancel(call), &table);
                assert_eq!(found, *home, "{name} change {number} call {call:?}");
            }
        }
    }
}

/// ActiveStandby of old held a lock for ever after this (`sip.md` 3.6).
#[test]
fn no_node_is_no_node_until_one_comes() {
    for (name, _, mut algorithm) in instances() {
        let (none, one) = (Snapshot::default(), snapshot(1, vec![node(7)]));
        for query in [query(b"a"), cancel(b"a"), ack(b"a"), in_dialog(b"a"), response(b"a", 200)] {
            assert_eq!(algorithm.pick(&query, &none), None, "{name}");
            assert_eq!(algorithm.answer(&query, &none, None), None, "{name}");
        }
        assert_eq!(algorithm.pick(&query(b"a"), &one), Some(NodeId(0)), "{name}");
        assert_eq!(algorithm.answer(&response(b"b", 200), &one, None), Some(NodeId(0)), "{name}");
    }
}

#[test]
fn nodes_that_want_no_calls_get_none_but_serve_those_they_have() {
    let spoil: [fn(&mut Node); 3] =
        [|it| it.graceful = true, |it| it.bad = Some(Bad::Silence), |it| it.suspect.set(UDP, true)];
    for spoil in spoil {
        let mut spoiled = node(1);
        spoil(&mut spoiled);
        let (alone, both) =
            (snapshot(1, vec![spoiled.clone()]), snapshot(2, vec![spoiled, node(2)]));
        for (name, _, mut algorithm) in instances() {
            // One that only refused something a moment ago is better than none.
            let is_suspect = !alone.nodes()[0].suspect.is_empty();
            assert_eq!(algorithm.pick(&query(b"new"), &alone).is_some(), is_suspect, "{name}");
            assert!(algorithm.pick(&in_dialog(b"old"), &alone).is_some(), "{name}");
            for call in 0..50u8 {
                let id = algorithm.pick(&query(&[call]), &both);
                assert_eq!(number(&both, id), Some(2), "{name}");
            }
        }
    }
}

/// Picks for `keys` fresh first messages.
fn choices(algorithm: &mut dyn Algorithm, table: &Snapshot, keys: u32) -> Vec<u16> {
    (0..keys)
        .map(|it| number(table, algorithm.pick(&query(&it.to_be_bytes()), table)).unwrap())
        .collect()
}

fn shares(choices: impl IntoIterator<Item = u16>) -> BTreeMap<u16, i32> {
    let mut shares = BTreeMap::new();
    for node in choices {
        *shares.entry(node).or_default() += 1;
    }
    shares
}

#[test]
fn equal_nodes_get_equal_load() {
    let table = snapshot(1, (1..=5).map(node).collect());
    for (name, entry, mut algorithm) in instances() {
        let shares = shares(choices(algorithm.as_mut(), &table, 4_000));
        let even = shares.len() == 5 && shares.values().all(|it| (it - 800).abs() < 100);
        assert_eq!(even, entry.promises.even, "{name}: {shares:?}");
    }
}

#[test]
fn a_key_keeps_its_node_and_a_lost_node_moves_only_its_own() {
    let all = snapshot(1, (1..=5).map(node).collect());
    let left = snapshot(2, [1, 2, 4, 5].map(node).to_vec()).after(&all);
    for (name, entry, mut algorithm) in instances().filter(|it| it.1.promises.stable) {
        let before = choices(algorithm.as_mut(), &all, 4_000);
        assert_eq!(choices(algorithm.as_mut(), &all, 4_000), before, "{name}");
        let lost = if entry.promises.even { 3 } else { 1 };
        let left = if lost == 3 { &left } else { &snapshot(3, (2..=5).map(node).collect()) };
        let after = choices(algorithm.as_mut(), left, 4_000);
        let mut moved = Vec::new();
        for (before, after) in before.iter().zip(&after) {
            if *before == lost {
                moved.push(*after);
            } else {
                assert_eq!(before, after, "{name}");
            }
        }
        let heirs = shares(moved);
        assert!(!heirs.is_empty(), "{name}");
        if entry.promises.even {
            let even = heirs.len() == 4 && heirs.values().all(|it| (it - 200).abs() < 60);
            assert!(even, "{name}: {heirs:?}");
        }
    }
}

/// Another shard, another balancer: the members heard in another order, with other names.
#[test]
fn all_who_know_the_same_members_choose_alike() {
    let config = Config { shards: 4, ..config() };
    let ours = snapshot(1, (1..=6).map(node).collect());
    let mut theirs: Vec<Node> = [5, 2, 6, 1, 3, 4].map(node).to_vec();
    for (index, it) in theirs.iter_mut().enumerate() {
        it.host_name = format!("host{index}");
        it.session = Some(index.to_string());
        it.properties.insert("seen".to_owned(), index.to_string());
        it.joined = Time::from_millis(index as u64);
    }
    let theirs = snapshot(9, theirs);
    assert_eq!(ours.fingerprint(), theirs.fingerprint());
    for entry in ALGORITHMS {
        let here = &mut (entry.build)(&config, Shard { index: 0, scattered: false });
        let there = &mut (entry.build)(&config, Shard { index: 3, scattered: false });
        there.pick(&query(b"one call more than here"), &theirs);
        let agree = choices(here.as_mut(), &ours, 500) == choices(there.as_mut(), &theirs, 500);
        assert_eq!(agree, entry.promises.agreeing, "{}", entry.name);
        for call in 500..600u32 {
            let texts = [0, 1, 2, 3].map(|kind| (call * 4 + kind).to_be_bytes());
            let [a, b, c, d] = &texts;
            for query in [cancel(a), ack(b), in_dialog(c), response(d, 200)] {
                let here = number(&ours, here.pick(&query, &ours));
                let there = number(&theirs, there.pick(&query, &theirs));
                let wanders = query.in_dialog && !entry.promises.stable;
                assert!(here == there || wanders, "{}: {query:?}", entry.name);
            }
        }
    }
}

/// Retransmission, CANCEL and ACK of one source may meet any shard (`reuseportSteering`).
#[test]
fn scattered_messages_of_one_call_meet_one_node() {
    let config = Config { shards: 2, ..config() };
    let table = snapshot(1, (1..=4).map(node).collect());
    for entry in ALGORITHMS.iter().filter(|it| it.promises.stable) {
        let mut shards =
            [0, 1].map(|index| (entry.build)(&config, Shard { index, scattered: true }));
        for call in 0..200u32 {
            let text = call.to_be_bytes();
            let queries = [query(&text), query(&text), cancel(&text), ack(&text), in_dialog(&text)];
            let nodes: BTreeSet<_> = (0..)
                .zip(queries)
                .map(|(shard, query)| shards[shard % 2].pick(&query, &table))
                .collect();
            assert_eq!(nodes.len(), 1, "{} call {call}", entry.name);
        }
    }
}

/// Drains may last for hours: an INVITE's CANCEL and ACK must not be sent to a node that it avoided.
#[test]
fn cancel_and_ack_follow_their_invite_past_a_node_that_is_leaving() {
    let config = Config { shards: 2, ..config() };
    let mut leaving = node(1);
    leaving.graceful = true;
    let table = snapshot(1, vec![leaving, node(2), node(3)]);
    for entry in ALGORITHMS {
        let mut algorithm = (entry.build)(&config, Shard { index: 0, scattered: true });
        for call in 0..100u32 {
            let text = call.to_be_bytes();
            let invite = algorithm.pick(&query(&text), &table);
            for query in [cancel(&text), ack(&text)] {
                assert_eq!(algorithm.pick(&query, &table), invite, "{}", entry.name);
            }
        }
    }
}

#[test]
fn memory_is_bounded() {
    let table = snapshot(1, vec![node(1), node(2)]);
    for entry in ALGORITHMS {
        let config = Config { calls_max: 100, ..config() };
        let mut algorithm = (entry.build)(&config, Shard { index: 0, scattered: false });
        for call in 0..300u32 {
            algorithm.pick(&query(&call.to_be_bytes()), &table);
            let calls = algorithm.active_calls().unwrap_or(0);
            assert!(calls <= 100, "{}: {calls} calls", entry.name);
        }
        if let Some(calls) = algorithm.active_calls() {
            assert_eq!(calls, 100, "{}", entry.name);
            let by_node: u64 = algorithm.calls_by_node().values().sum();
            assert_eq!(by_node, 100, "{}", entry.name);
        }
    }
}

/// Both sides of a call, and retransmissions where one source meets every shard, make other shards know it.
#[test]
fn a_call_counts_on_the_shard_that_it_began_on_and_no_other() {
    let table = snapshot(1, vec![node(1), node(2)]);
    let config = Config { shards: 2, ..config() };
    for entry in ALGORITHMS {
        for scattered in [false, true] {
            let [mut here, mut there] =
                [0, 1].map(|index| (entry.build)(&config, Shard { index, scattered }));
            for call in 0..10u32 {
                let text = call.to_be_bytes();
                let id = here.pick(&query(&text), &table).unwrap();
                for it in [&mut here, &mut there] {
                    it.pick(&cancel(&text), &table);
                    it.pick(&in_dialog(&text), &table);
                    it.learn(&in_dialog(&text), &table, id);
                }
            }
            if let (Some(ours), Some(theirs)) = (here.active_calls(), there.active_calls()) {
                assert_eq!((ours, theirs), (10, 0), "{} {scattered}", entry.name);
                let by_node = |it: &dyn Algorithm| it.calls_by_node().values().sum::<u64>();
                assert_eq!(by_node(&*here), 10, "{}", entry.name);
                assert_eq!(by_node(&*there), 0, "{}", entry.name);
            }
        }
    }
}

#[test]
fn names_are_unique_and_speak() {
    let names: BTreeSet<_> = ALGORITHMS.iter().map(|it| it.name).collect();
    assert_eq!(names.len(), ALGORITHMS.len());
    for entry in ALGORITHMS {
        assert_eq!(super::find(entry.name).map(|it| it.name), Some(entry.name));
        assert!(entry.help.ends_with('.') && entry.help.len() < 100, "{}", entry.help);
    }
    assert!(super::find("TelestaxProxyAlgorithm").is_none());
}
