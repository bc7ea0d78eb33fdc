//! `WorstCaseUdpTestAffinityAlgorithm` (`sip.md` 3.8): tortures applications that replicate their state.
//!
//! Every transaction of a call goes to another node than the one before, hints or not; ACK and CANCEL
//! follow their INVITE. A retransmission counts as a transaction: a query names none. With
//! `earlyDialogWorstCase` the responses from outside wander too.

use std::collections::BTreeMap;

use super::memory::Memory;
use super::rendezvous::{choose, key_of};
use super::rotation::Rotation;
use super::{Algorithm, Entry, Promises, Query};
use crate::config::Config;
use crate::node::{Node, NodeKey};
use crate::snapshot::{Candidates, NodeId, Snapshot, Standing};

/// The row.
pub(crate) const ENTRY: Entry = Entry {
    name: "WorstCaseUdpTestAffinityAlgorithm",
    help: "For tests only: every transaction of a call goes to another node.",
    promises: Promises { even: true, agreeing: false, stable: false },
    build: |config, shard| {
        Box::new(WorstCase {
            calls: Memory::new(config.calls_max, config.call_idle),
            rotation: Rotation::new(None, shard),
            early_dialogs: config.early_dialog_worst_case,
            alone: config.shards == 1,
        })
    },
};

struct WorstCase {
    calls: Memory,
    rotation: Rotation,
    early_dialogs: bool,
    /// There is no other shard that may have begun what we hear of.
    alone: bool,
}

impl WorstCase {
    /// Node of the call's last transaction, if it can take the message.
    fn last(&mut self, query: &Query<'_>, key: u64, snapshot: &Snapshot) -> Option<NodeId> {
        let home = self.calls.find(query.now, key)?;
        snapshot.find(home.node).filter(|it| query.fits(snapshot, *it))
    }

    /// The next node in turn that is not `last`; `last` if there is no other.
    fn other(
        &mut self,
        query: &Query<'_>,
        key: u64,
        snapshot: &Snapshot,
        last: Option<NodeId>,
    ) -> Option<NodeId> {
        let eligible = query.among(Standing::Eligible, snapshot);
        let mut id = self.rotation.next(query, eligible);
        if id == last {
            id = self.rotation.next(query, eligible);
        }
        let id = id.filter(|it| query.fits(snapshot, *it)).or(last)?;
        self.store(query, key, snapshot.node(id));
        Some(id)
    }

    fn store(&mut self, query: &Query<'_>, key: u64, node: &Node) {
        self.calls.store(query.now, key, node, query.is_first || self.alone);
    }

    /// Where the call is, decided by arithmetic if nobody knows.
    fn follow(&mut self, query: &Query<'_>, key: u64, snapshot: &Snapshot) -> Option<NodeId> {
        if let Some(last) = self.last(query, key, snapshot) {
            return Some(last);
        }
        let id = choose(key, query.candidates(snapshot))?;
        self.store(query, key, snapshot.node(id));
        Some(id)
    }
}

impl Algorithm for WorstCase {
    fn pick(&mut self, query: &Query<'_>, snapshot: &Snapshot) -> Option<NodeId> {
        let key = key_of(query.call_id);
        if follows(query) {
            return self.follow(query, key, snapshot);
        }
        let last = self.last(query, key, snapshot);
        let id = self.other(query, key, snapshot, last);
        if id.is_none() && query.in_dialog { self.follow(query, key, snapshot) } else { id }
    }

    fn replace(&mut self, query: &Query<'_>, snapshot: &Snapshot, node: NodeId) -> NodeId {
        let key = key_of(query.call_id);
        let last = self.last(query, key, snapshot).or(Some(node));
        let id = if follows(query) { last } else { self.other(query, key, snapshot, last) };
        id.unwrap_or(node)
    }

    fn answer(
        &mut self,
        query: &Query<'_>,
        snapshot: &Snapshot,
        named: Option<NodeId>,
    ) -> Option<NodeId> {
        let key = key_of(query.call_id);
        if self.early_dialogs && query.status.is_some_and(|it| it > 100) {
            let last = self.last(query, key, snapshot).or(named);
            return self.other(query, key, snapshot, last);
        }
        named.or_else(|| self.follow(query, key, snapshot))
    }

    fn candidates<'s>(&self, query: &Query<'_>, snapshot: &'s Snapshot) -> &'s Candidates {
        if follows(query) { query.candidates(snapshot) } else { query.sparing_candidates(snapshot) }
    }

    fn active_calls(&self) -> Option<usize> {
        Some(self.calls.len())
    }

    fn calls_by_node(&self) -> BTreeMap<NodeKey, u64> {
        self.calls.calls_by_node()
    }

    fn configure(&mut self, config: &Config) {
        self.calls.configure(config.calls_max, config.call_idle);
        self.early_dialogs = config.early_dialog_worst_case;
    }
}

/// ACK, CANCEL and responses belong to a transaction that has its node.
fn follows(query: &Query<'_>) -> bool {
    query.is_ack || (!query.is_first && !query.in_dialog)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::testing::{
        ack, build, cancel, config, in_dialog, node, number, query, response, snapshot,
    };

    /// `sip.md` 6.3 item 40.
    #[test]
    fn every_transaction_moves_and_ack_and_cancel_follow() {
        let table = snapshot(1, vec![node(1), node(2), node(3)]);
        let mut algorithm = build(ENTRY.name, &config());
        let invite = algorithm.pick(&query(b"call"), &table).unwrap();
        assert_eq!(algorithm.pick(&cancel(b"call"), &table), Some(invite));
        assert_eq!(algorithm.pick(&ack(b"call"), &table), Some(invite));
        assert_eq!(algorithm.replace(&ack(b"call"), &table, NodeId(2)), invite);
        // The ACK of a 2xx has the route set of its dialog.
        let routed = Query { in_dialog: true, ..ack(b"call") };
        assert_eq!(algorithm.replace(&routed, &table, NodeId(2)), invite);
        let mut last = invite;
        for transaction in 0..20 {
            // The hint names the INVITE's node all along, and the relay reports it.
            algorithm.learn(&in_dialog(b"call"), &table, invite);
            let next = algorithm.replace(&in_dialog(b"call"), &table, invite);
            assert_ne!(next, last, "transaction {transaction}");
            assert_eq!(algorithm.replace(&ack(b"call"), &table, invite), next);
            last = next;
        }
    }

    #[test]
    fn a_single_node_keeps_everything() {
        let table = snapshot(1, vec![node(1)]);
        let mut algorithm = build(ENTRY.name, &config());
        for query in [query(b"call"), ack(b"call"), in_dialog(b"call")] {
            assert_eq!(algorithm.pick(&query, &table), Some(NodeId(0)));
            assert_eq!(algorithm.replace(&query, &table, NodeId(0)), NodeId(0));
        }
    }

    /// `sip.md` 6.3 items 41 and 43.
    #[test]
    fn responses_from_outside_stay_unless_early_dialogs_move_too() {
        let table = snapshot(1, vec![node(1), node(2)]);
        for (early, moved) in [(false, false), (true, true)] {
            let config = Config { early_dialog_worst_case: early, ..config() };
            let mut algorithm = build(ENTRY.name, &config);
            let named = Some(NodeId(0));
            assert_eq!(algorithm.answer(&response(b"call", 100), &table, named), named);
            let ringing = algorithm.answer(&response(b"call", 180), &table, named);
            let ok = algorithm.answer(&response(b"call", 200), &table, named);
            assert_eq!(ringing != ok, moved, "earlyDialogWorstCase={early}");
            assert_eq!(ringing != named, moved, "earlyDialogWorstCase={early}");
        }
    }

    #[test]
    fn a_response_for_a_dead_node_finds_a_survivor_and_stays_there() {
        let table = snapshot(1, vec![node(1), node(2)]);
        let mut algorithm = build(ENTRY.name, &config());
        let ringing = algorithm.answer(&response(b"call", 180), &table, None);
        assert!(number(&table, ringing).is_some());
        assert_eq!(algorithm.answer(&response(b"call", 200), &table, None), ringing);
    }
}
