//! `UserBasedAlgorithm` (`sip.md` 3.5): everything for one user or number on one node, for conferences.
//!
//! The regex table of `/lbnoderegex` comes first. It is run-time state: the control executor publishes it
//! with the snapshot, and every shard compiles nothing but keeps its own clones, whose scratch space is
//! then its own too. Then, with one shard, users go to the nodes in turn and stay there. With several,
//! the callers of one user come from many addresses and meet different shards, so the user's node is
//! arithmetic: all shards and balancers agree, and users return to their node when it returns.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::association::Association;
use super::rendezvous::{choose_weighted, key_of};
use super::{Algorithm, Entry, Promises, Query};
use crate::config::{Config, RampUp};
use crate::node::{Node, NodeKey};
use crate::snapshot::{Candidates, NodeId, NodeRule, Snapshot};

/// The row.
pub(crate) const ENTRY: Entry = Entry {
    name: "UserBasedAlgorithm",
    help: "One user's calls meet on one node; set sipHeaderAffinityKey. /lbnoderegex pins users to nodes.",
    promises: Promises { even: true, agreeing: true, stable: true },
    build: |config, shard| {
        let alone = config.shards == 1 && !shard.scattered;
        Box::new(UserBased {
            published: Arc::default(),
            rules: Vec::new(),
            users: alone.then(|| Association::new(config, shard)),
            ramp_up: config.ramp_up,
        })
    },
};

struct UserBased {
    published: Arc<[NodeRule]>,
    rules: Vec<NodeRule>,
    users: Option<Association>,
    ramp_up: Option<RampUp>,
}

impl UserBased {
    /// The node of the first rule that is found in the key and whose node can take the message.
    fn pinned(&mut self, query: &Query<'_>, snapshot: &Snapshot) -> Option<NodeId> {
        if !Arc::ptr_eq(&self.published, snapshot.rules()) {
            self.published = Arc::clone(snapshot.rules());
            self.rules.clear();
            self.rules.extend(self.published.iter().cloned());
        }
        self.rules
            .iter()
            .filter_map(|it| {
                Some((it, snapshot.at(it.node, Some(query.transport), Some(query.version))?))
            })
            .filter(|(_, id)| query.fits(snapshot, *id) && keeps(query, snapshot.node(*id)))
            .find(|(it, _)| it.pattern.is_match(query.key))
            .map(|(_, id)| id)
    }
}

impl Algorithm for UserBased {
    fn pick(&mut self, query: &Query<'_>, snapshot: &Snapshot) -> Option<NodeId> {
        if let Some(id) = self.pinned(query, snapshot) {
            return Some(id);
        }
        let key = key_of(query.key);
        match &mut self.users {
            Some(users) => users.pick(query, key, snapshot, |it| keeps(query, it), |_| &[]),
            None => choose_weighted(key, query.candidates(snapshot), self.ramp_up, query.now),
        }
    }

    fn candidates<'s>(&self, query: &Query<'_>, snapshot: &'s Snapshot) -> &'s Candidates {
        match &self.users {
            Some(users) => users.candidates(query, snapshot),
            None => query.candidates(snapshot),
        }
    }

    /// A pinned user is not remembered: it is free again when its rule goes.
    fn learn(&mut self, query: &Query<'_>, snapshot: &Snapshot, node: NodeId) {
        if query.is_ack || self.pinned(query, snapshot).is_some() {
            return;
        }
        let Some(users) = &mut self.users else { return };
        let (key, node) = (key_of(query.key), snapshot.node(node));
        let is_leaving = node.graceful || node.version != snapshot.latest();
        // Dialogs that stay behind on such a node do not call back a user who has moved on.
        if !(is_leaving && users.lives_elsewhere(query, key, node.key)) {
            users.learn(query, key, node);
        }
    }

    fn active_calls(&self) -> Option<usize> {
        self.users.as_ref().map(Association::len)
    }

    fn calls_by_node(&self) -> BTreeMap<NodeKey, u64> {
        self.users.as_ref().map(Association::calls_by_node).unwrap_or_default()
    }

    fn switch_over(&mut self, from: NodeKey, to: NodeKey) {
        if let Some(users) = &mut self.users {
            users.switch_over(from, to);
        }
    }

    fn configure(&mut self, config: &Config) {
        if let Some(users) = &mut self.users {
            users.configure(config);
        }
        self.ramp_up = config.ramp_up;
    }
}

/// Unlike with CallIDAffinity, a graceful node loses its users' new requests at once, and so does one
/// whose version is not the latest any more.
fn keeps(query: &Query<'_>, node: &Node) -> bool {
    let is_stale = node.graceful || node.version != query.version;
    !(query.shuns(node) || query.is_first && is_stale)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::balance::testing::{
        build, config, in_dialog, node, node_at, number, query, snapshot,
    };

    fn rules(rows: &[(&str, u16)]) -> Arc<[NodeRule]> {
        rows.iter()
            .map(|(pattern, to)| NodeRule {
                pattern: regex::bytes::Regex::new(pattern).unwrap(),
                node: SocketAddr::new(node(*to).ip, 5060),
            })
            .collect()
    }

    /// `sip.md` 6.3 item 33.
    #[test]
    fn all_calls_of_one_user_meet_on_one_node() {
        let table = snapshot(1, vec![node(1), node(2)]);
        for shards in [1, 4] {
            let mut algorithm = build(ENTRY.name, &Config { shards, ..config() });
            let mut seen = [0; 3];
            for call in 0..20u8 {
                let query = Query { key: b"conference", ..query(std::slice::from_ref(&call)) };
                let id = algorithm.pick(&query, &table);
                seen[usize::from(number(&table, id).unwrap())] += 1;
            }
            assert!(seen.contains(&20), "{shards} shards: {seen:?}");
        }
    }

    /// `sip.md` 6.3 item 37: both users pinned; the rule goes; they are dealt in turn: 3 calls and 1.
    #[test]
    fn a_rule_pins_users_and_leaves_no_trace() {
        let mut algorithm = build(ENTRY.name, &config());
        let pinned = snapshot(1, vec![node(1), node(2)]).with_rules(rules(&[("(-)", 1)]));
        let free = snapshot(2, vec![node(1), node(2)]);
        let mut calls = [0; 3];
        for table in [&pinned, &free] {
            for user in [&b"sip:Kostya-test@here.com"[..], b"sip:Nosach-test@here.com"] {
                let id = algorithm.pick(&query(user), table).unwrap();
                algorithm.learn(&in_dialog(user), table, id);
                calls[usize::from(number(table, Some(id)).unwrap())] += 1;
            }
        }
        assert_eq!(calls, [0, 3, 1]);
    }

    #[test]
    fn the_first_rule_with_a_willing_node_wins_and_other_users_keep_theirs() {
        let mut leaving = node(2);
        leaving.graceful = true;
        let table = snapshot(1, vec![node(1), leaving, node(3)]).with_rules(rules(&[
            ("^bob", 9),
            ("^bob", 2),
            ("^b", 3),
            ("^bo", 1),
        ]));
        let mut algorithm = build(ENTRY.name, &config());
        let id = algorithm.pick(&query(b"bob"), &table);
        assert_eq!(number(&table, id), Some(3), "9 is not there, 2 wants no calls");
        let id = algorithm.pick(&in_dialog(b"bob"), &table);
        assert_eq!(number(&table, id), Some(2), "but serves those it has");
        let alice = algorithm.pick(&query(b"alice"), &table);
        assert_eq!(algorithm.pick(&query(b"alice"), &table), alice, "the map is read");
    }

    #[test]
    fn a_graceful_node_loses_new_requests_and_a_dead_one_all() {
        let mut leaving = node(1);
        leaving.graceful = true;
        let before = snapshot(1, vec![node(1)]);
        let during = snapshot(2, vec![leaving, node(2)]);
        let after = snapshot(3, vec![node(2), node(3)]);
        let mut algorithm = build(ENTRY.name, &config());
        assert_eq!(number(&before, algorithm.pick(&query(b"user"), &before)), Some(1));
        assert_eq!(number(&during, algorithm.pick(&in_dialog(b"user"), &during)), Some(1));
        assert_eq!(number(&during, algorithm.pick(&query(b"user"), &during)), Some(2));
        assert_eq!(number(&after, algorithm.pick(&query(b"user"), &after)), Some(2));
        let last = snapshot(4, vec![node(3)]);
        assert_eq!(number(&last, algorithm.pick(&query(b"user"), &last)), Some(3));
    }

    /// Also where the user had no other node when the drain began: then the dialog is all that is known.
    #[test]
    fn a_dialog_left_on_a_leaving_node_does_not_call_its_user_back() {
        let mut draining = node(1);
        draining.graceful = true;
        let newer = |it| node_at(node(it).ip, 1);
        let cases = [
            ("draining", vec![draining, node(2), node(3)]),
            ("of an older version", vec![node(1), newer(2), newer(3)]),
        ];
        for (name, nodes) in cases {
            let table = snapshot(1, nodes);
            let old = table.find(node(1).key).unwrap();
            let mut algorithm = build(ENTRY.name, &config());
            let fresh = Query { version: table.latest(), ..query(b"user") };
            algorithm.learn(&in_dialog(b"user"), &table, old);
            let moved = algorithm.pick(&fresh, &table);
            assert_ne!(moved, Some(old), "{name}");
            for _ in 0..3 {
                algorithm.learn(&in_dialog(b"user"), &table, old);
                assert_eq!(algorithm.pick(&fresh, &table), moved, "{name}");
            }
        }
    }
}
