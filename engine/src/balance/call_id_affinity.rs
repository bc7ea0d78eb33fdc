//! `CallIDAffinityBalancerAlgorithm`, the default (`sip.md` 3.1): calls go round the nodes in turn and
//! stay where they went.

use std::collections::BTreeMap;

use super::association::Association;
use super::rendezvous::key_of;
use super::{Algorithm, Entry, Promises, Query};
use crate::config::Config;
use crate::node::NodeKey;
use crate::snapshot::{Candidates, NodeId, Snapshot};

/// The row.
pub(crate) const ENTRY: Entry = Entry {
    name: "CallIDAffinityBalancerAlgorithm",
    help: "New calls go to the nodes in turn, per shard; a remembered Call-ID keeps its node.",
    promises: Promises { even: true, agreeing: false, stable: true },
    build: |config, shard| Box::new(CallIdAffinity(Association::new(config, shard))),
};

struct CallIdAffinity(Association);

impl Algorithm for CallIdAffinity {
    fn pick(&mut self, query: &Query<'_>, snapshot: &Snapshot) -> Option<NodeId> {
        // Graceful and bad nodes keep their calls. One that refused a moment ago may keep dialogs, but
        // what may begin a call has lost nothing there yet and is tried elsewhere.
        let key = key_of(query.call_id);
        self.0.pick(query, key, snapshot, |it| !query.shuns(it), |_| &[])
    }

    fn candidates<'s>(&self, query: &Query<'_>, snapshot: &'s Snapshot) -> &'s Candidates {
        self.0.candidates(query, snapshot)
    }

    fn learn(&mut self, query: &Query<'_>, snapshot: &Snapshot, node: NodeId) {
        if !query.is_ack {
            self.0.learn(query, key_of(query.call_id), snapshot.node(node));
        }
    }

    fn active_calls(&self) -> Option<usize> {
        Some(self.0.len())
    }

    fn calls_by_node(&self) -> BTreeMap<NodeKey, u64> {
        self.0.calls_by_node()
    }

    fn switch_over(&mut self, from: NodeKey, to: NodeKey) {
        self.0.switch_over(from, to);
    }

    fn configure(&mut self, config: &Config) {
        self.0.configure(config);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use protocols::time::Time;

    use super::*;
    use crate::balance::Shard;
    use crate::balance::testing::{
        SHARD, UDP, ack, build, cancel, config, in_dialog, node, node_at, number, query, response,
        snapshot,
    };
    use crate::config::RampUp;
    use crate::node::{Bad, Node, Version};

    #[test]
    fn calls_one_after_the_other_alternate_strictly() {
        let table = snapshot(1, vec![node(1), node(2)]);
        let mut algorithm = build(ENTRY.name, &config());
        for call in 0..100u8 {
            let text = [call];
            let want = u16::from(call % 2) + 1;
            // retransmission, CANCEL, ACK and a BYE without hints take no turn
            for query in [query(&text), query(&text), cancel(&text), ack(&text), in_dialog(&text)] {
                let id = algorithm.pick(&query, &table);
                assert_eq!(number(&table, id), Some(want), "call {call}");
            }
        }
    }

    /// One row per way in which a remembered node may have changed: who gets a first message, who a
    /// later one.
    #[test]
    fn a_remembered_call_keeps_a_live_node() {
        type Case = (&'static str, fn(&mut Node), u16, u16);
        let cases: [Case; 3] = [
            ("graceful", |it| it.graceful = true, 1, 1),
            ("bad", |it| it.bad = Some(Bad::Errors), 1, 1),
            ("suspect", |it| it.suspect.set(UDP, true), 2, 1),
        ];
        for (name, change, first, later) in cases {
            let before = snapshot(1, vec![node(1)]);
            let mut changed = node(1);
            change(&mut changed);
            let table = snapshot(2, vec![changed, node(2)]);
            for (query, want) in [(query(b"call"), first), (in_dialog(b"call"), later)] {
                let mut algorithm = build(ENTRY.name, &config());
                algorithm.pick(&query, &before);
                let id = algorithm.pick(&query, &table);
                assert_eq!(number(&table, id), Some(want), "{name} {query:?}");
            }
        }
    }

    /// `sip.md` 5.9: a retransmission or a CANCEL names no version, and its call is not a new one.
    #[test]
    fn a_remembered_call_stays_when_a_newer_version_joins() {
        let before = snapshot(1, vec![node(1)]);
        let newer = node_at(node(2).ip, 1);
        let during = snapshot(2, vec![node(1), newer.clone()]);
        let after = snapshot(3, vec![newer]);
        for later in [query(b"call"), cancel(b"call"), ack(b"call")] {
            let mut algorithm = build(ENTRY.name, &config());
            algorithm.pick(&query(b"call"), &before);
            let latest = Query { version: during.latest(), ..later };
            assert_eq!(number(&during, algorithm.pick(&latest, &during)), Some(1), "{later:?}");
            let fresh = Query { version: during.latest(), ..query(b"another") };
            assert_eq!(number(&during, algorithm.pick(&fresh, &during)), Some(2), "a new call");
            assert_eq!(number(&after, algorithm.pick(&latest, &after)), Some(2), "{later:?}");
            let named = Query { names_version: true, version: Version(1), ..later };
            assert_eq!(number(&during, algorithm.pick(&named, &during)), Some(2), "{later:?}");
        }
    }

    #[test]
    fn each_call_of_a_dead_node_finds_its_own_next_node_and_stays() {
        let all = snapshot(1, (1..=3).map(node).collect());
        let left = snapshot(2, vec![node(2), node(3)]);
        let mut algorithm = build(ENTRY.name, &config());
        let dead = all.find(node(1).key).unwrap();
        let mut calls = [0; 4];
        for call in 0..100u8 {
            algorithm.learn(&in_dialog(&[call]), &all, dead);
            let id = algorithm.pick(&query(&[call]), &left);
            calls[usize::from(number(&left, id).unwrap())] += 1;
            let back = algorithm.pick(&in_dialog(&[call]), &all);
            assert_eq!(number(&all, back), number(&left, id), "call {call}");
        }
        assert_eq!(calls, [0, 0, 50, 50]);
    }

    /// `sip.md` 3.1 \[R\]: the least busy eligible node, idle ones included, gets all calls in one step.
    #[test]
    fn group_failover_moves_all_calls_to_the_least_busy_node() {
        let config = Config { group_failover: true, ..config() };
        let mut idle_but_leaving = node(5);
        idle_but_leaving.graceful = true;
        let all = snapshot(1, (1..=4).map(node).collect());
        let left = snapshot(2, [node(2), node(3), node(4), idle_but_leaving].to_vec());
        let mut algorithm = build(ENTRY.name, &config);
        for (call, at) in (0..).zip([1, 1, 1, 1, 2, 2, 2, 3]) {
            let id = all.find(node(at).key).unwrap();
            algorithm.learn(&in_dialog(&[call]), &all, id);
        }
        for call in 0..4u8 {
            let id = algorithm.pick(&in_dialog(&[call]), &left);
            assert_eq!(number(&left, id), Some(4), "call {call}: node 4 had none");
        }
        assert_eq!(number(&left, algorithm.pick(&in_dialog(&[7]), &left)), Some(3));
        // It dies too: its four calls move on together; 3 has one call and 2 has three.
        let last = snapshot(3, vec![node(1), node(2), node(3)]);
        let want = [Some(1); 4];
        let got =
            [0, 1, 2, 3].map(|call: u8| number(&last, algorithm.pick(&query(&[call]), &last)));
        assert_eq!(got, want, "back to 1, which has none");
        let none = snapshot(4, Vec::new());
        assert_eq!(algorithm.pick(&query(&[0]), &none), None);
    }

    #[test]
    fn hints_are_learned_but_not_from_ack() {
        let table = snapshot(1, vec![node(1), node(2)]);
        let mut algorithm = build(ENTRY.name, &config());
        algorithm.learn(&ack(b"call"), &table, NodeId(1));
        assert_eq!(algorithm.active_calls(), Some(0));
        for node in [NodeId(1), NodeId(0)] {
            algorithm.learn(&in_dialog(b"call"), &table, node);
            assert_eq!(algorithm.pick(&query(b"call"), &table), Some(node));
        }
        assert_eq!(algorithm.active_calls(), Some(1));
    }

    #[test]
    fn a_call_is_forgotten_when_it_has_been_idle() {
        let table = snapshot(1, vec![node(1), node(2)]);
        let mut algorithm = build(ENTRY.name, &config());
        let mut query = query(b"call");
        assert_eq!(algorithm.pick(&query, &table), Some(NodeId(0)));
        query.now += config().call_idle;
        assert_eq!(algorithm.pick(&query, &table), Some(NodeId(0)));
        query.now += config().call_idle + Duration::from_millis(1);
        assert_eq!(algorithm.pick(&query, &table), Some(NodeId(1)), "as a new call");
    }

    /// `sip.md` 2.7: 180 and 200 to a dead node's INVITE reach one survivor.
    #[test]
    fn responses_for_a_dead_node_reach_one_survivor() {
        let table = snapshot(1, vec![node(1), node(2), node(3)]);
        let mut algorithm = build(ENTRY.name, &config());
        let named = Some(NodeId(2));
        assert_eq!(algorithm.answer(&response(b"call", 180), &table, named), named);
        let ringing = algorithm.answer(&response(b"call", 180), &table, None);
        assert!(ringing.is_some());
        assert_eq!(algorithm.answer(&response(b"call", 200), &table, None), ringing);
        let mut other = (ENTRY.build)(&config(), Shard { index: 1, ..SHARD });
        assert_eq!(other.answer(&response(b"call", 200), &table, None), ringing, "on any shard");
    }

    /// Where one source meets every shard, a dialog begun before its node wanted no more calls is found
    /// by a shard that never heard of it.
    #[test]
    fn a_scattered_dialog_stays_with_a_node_that_is_leaving() {
        let mut leaving = node(1);
        leaving.graceful = true;
        let before = snapshot(1, vec![node(1), node(2), node(3)]);
        let during = snapshot(2, vec![leaving, node(2), node(3)]);
        let shards = [0, 1].map(|index| Shard { index, scattered: true });
        let [mut here, mut there] = shards.map(|it| (ENTRY.build)(&config(), it));
        for call in 0..50u8 {
            let home = number(&before, here.pick(&query(&[call]), &before));
            assert_eq!(number(&during, there.pick(&in_dialog(&[call]), &during)), home);
        }
    }

    /// `sip.md` 5.8.
    #[test]
    fn switchover_repoints_remembered_calls_and_nothing_else() {
        let table = snapshot(1, vec![node(1), node(2), node(3)]);
        let mut algorithm = build(ENTRY.name, &config());
        for call in 0..3u8 {
            algorithm.pick(&query(&[call]), &table);
        }
        algorithm.switch_over(node(1).key, node(3).key);
        let nodes = [0, 1, 2, 3]
            .map(|call: u8| number(&table, algorithm.pick(&query(&[call]), &table)).unwrap());
        assert_eq!(nodes, [3, 2, 3, 1], "the last one is a new call, in turn");
    }

    #[test]
    fn ramp_up_gives_a_new_node_its_share_by_and_by() {
        let ramp_up = RampUp { period: Duration::from_secs(70), weight_max: 2 };
        let mut algorithm = build(ENTRY.name, &Config { ramp_up: Some(ramp_up), ..config() });
        let mut young = node(2);
        young.joined = Time::from_millis(100_000);
        let table = snapshot(1, vec![node(1), young]);
        let mut calls = [0; 3];
        for call in 0..6u8 {
            let query =
                Query { now: Time::from_millis(110_000), ..query(std::slice::from_ref(&call)) };
            calls[usize::from(number(&table, algorithm.pick(&query, &table)).unwrap())] += 1;
        }
        assert_eq!(calls, [0, 4, 2]);
    }
}
