//! `ActiveStandbyAlgorithm` (`sip.md` 3.6): one node serves everything; when it goes, the next one does
//! and keeps the work when the first returns.
//!
//! Not to switch back is history, and shards must agree on it without talking: one without traffic, or
//! one that skipped a snapshot, must not stay with a node that the others left. So the history stands in
//! the snapshot ([`Snapshot::seniority`]) and the choice is arithmetic: the node that has been eligible
//! longest without a break; among equals the first of `staticNodes` and `extraServerNodes`, then the
//! lowest address. Balancers started together agree; one started after a switch finds the original order
//! until the next switch. Per version, family and transport, without a lock.

use std::net::IpAddr;

use super::{Algorithm, Entry, Promises, Query};
use crate::config::Config;
use crate::node::{Node, Version};
use crate::snapshot::{Candidates, NodeId, Snapshot, Standing};

/// The row.
pub(crate) const ENTRY: Entry = Entry {
    name: "ActiveStandbyAlgorithm",
    help: "One node takes everything; the next one takes over when it goes, and keeps it.",
    promises: Promises { even: false, agreeing: true, stable: true },
    build: |config, _| {
        Box::new(ActiveStandby {
            order: Order::of(config),
            active: Active { table: None, version: Version(0), nodes: [[None; 5]; 2] },
        })
    },
};

struct ActiveStandby {
    order: Order,
    active: Active,
}

/// What was chosen from one table, so that 1 000 nodes cost no more than two.
struct Active {
    /// Generation and fingerprint: a shard that suspects a node keeps the generation.
    table: Option<(u64, u64)>,
    version: Version,
    nodes: [[Option<NodeId>; 5]; 2],
}

impl ActiveStandby {
    #[allow(clippy::indexing_slicing)] // families and transports index arrays of their own size
    fn active(&mut self, query: &Query<'_>, snapshot: &Snapshot) -> Option<NodeId> {
        let table = Some((snapshot.generation(), snapshot.fingerprint()));
        if self.active.table != table || self.active.version != query.version {
            self.active = Active { table, version: query.version, nodes: [[None; 5]; 2] };
        }
        let (family, transport) = (query.family as usize, query.transport.index());
        if self.active.nodes[family][transport].is_none() {
            let eligible = query.among(Standing::Eligible, snapshot);
            self.active.nodes[family][transport] = self.order.first(eligible.ids(), snapshot);
        }
        self.active.nodes[family][transport]
    }
}

impl Algorithm for ActiveStandby {
    fn pick(&mut self, query: &Query<'_>, snapshot: &Snapshot) -> Option<NodeId> {
        match self.active(query, snapshot).filter(|it| query.fits(snapshot, *it)) {
            None if !query.is_first => {
                self.order.first(query.among(Standing::Usable, snapshot).ids(), snapshot)
            }
            active => active,
        }
    }

    fn candidates<'s>(&self, query: &Query<'_>, snapshot: &'s Snapshot) -> &'s Candidates {
        query.sparing_candidates(snapshot)
    }

    /// Even if the named node lives: only the active one works.
    fn answer(
        &mut self,
        query: &Query<'_>,
        snapshot: &Snapshot,
        named: Option<NodeId>,
    ) -> Option<NodeId> {
        self.active(query, snapshot).or(named).or_else(|| self.pick(query, snapshot))
    }

    fn configure(&mut self, config: &Config) {
        self.order = Order::of(config);
        self.active.table = None;
    }
}

/// Addresses in the order written. Names have no place in it: they are resolved elsewhere.
#[derive(Debug)]
pub(crate) struct Order(Vec<(IpAddr, u16)>);

impl Order {
    pub(crate) fn of(config: &Config) -> Order {
        let fixed = config.static_nodes.iter().flat_map(|node| {
            let ip = node.host.parse().ok();
            node.ports.iter().filter_map(move |(_, port)| Some((ip?, port)))
        });
        let extra = config
            .extra_server_nodes
            .iter()
            .filter_map(|it| Some((it.host.parse().ok()?, it.port)));
        Order(fixed.chain(extra).collect())
    }

    /// The node of `among` that has been eligible longest.
    pub(crate) fn first(&self, among: &[NodeId], snapshot: &Snapshot) -> Option<NodeId> {
        let rank = |node: &Node| {
            self.0.iter().position(|(ip, port)| node.is_at(*ip, *port)).unwrap_or(self.0.len())
        };
        among
            .iter()
            .copied()
            .min_by_key(|it| (snapshot.seniority(*it), rank(snapshot.node(*it)), *it))
    }
}

#[cfg(test)]
mod tests {
    use protocols::time::Time;

    use super::*;
    use crate::balance::testing::{
        UDP, build, config, in_dialog, node, number, query, response, snapshot,
    };
    use crate::config::HostPort;

    /// The snapshots of one life: 1 and 2 start, 1 dies, returns, 2 leaves.
    fn life() -> Vec<Snapshot> {
        let mut back = node(1);
        back.joined = Time::from_millis(60_000);
        let mut leaving = node(2);
        leaving.graceful = true;
        let tables = [
            vec![node(1), node(2)],
            vec![node(2)],
            vec![back.clone(), node(2)],
            vec![back, leaving],
        ];
        let mut life = vec![Snapshot::default()];
        for (generation, nodes) in (1..).zip(tables) {
            let next = snapshot(generation, nodes).after(life.last().unwrap());
            life.push(next);
        }
        life
    }

    #[test]
    fn the_active_node_changes_only_when_it_must() {
        let mut algorithm = build(ENTRY.name, &config());
        let active: Vec<_> = life()
            .iter()
            .map(|table| number(table, algorithm.pick(&query(b"any"), table)))
            .collect();
        assert_eq!(active, [None, Some(1), Some(2), Some(2), Some(1)]);
    }

    #[test]
    fn an_active_node_that_refuses_is_left_at_once() {
        let mut algorithm = build(ENTRY.name, &config());
        let table = snapshot(1, vec![node(1), node(2)]);
        assert_eq!(number(&table, algorithm.pick(&query(b"any"), &table)), Some(1));
        let table = table.suspecting(node(1).key, UDP);
        assert_eq!(number(&table, algorithm.pick(&query(b"any"), &table)), Some(2));
    }

    #[test]
    fn shards_agree_whichever_snapshots_they_saw() {
        let life = life();
        for skipped in 0..16u32 {
            let mut algorithm = build(ENTRY.name, &config());
            for (index, want) in [(1, 1), (2, 2), (3, 2), (4, 1)] {
                if skipped & (1 << (index - 1)) == 0 {
                    let id = algorithm.pick(&query(b"any"), &life[index]);
                    assert_eq!(number(&life[index], id), Some(want), "skipped {skipped:b}");
                }
            }
        }
    }

    /// A balancer hears 2 first, another 1 first: a moment after their start they agree.
    #[test]
    fn the_order_of_the_first_heartbeats_does_not_matter() {
        let mut late = node(1);
        late.joined = Time::from_millis(4_000);
        let first = snapshot(1, vec![node(2)]).after(&Snapshot::default());
        let table = snapshot(2, vec![late, node(2)]).after(&first);
        let mut algorithm = build(ENTRY.name, &config());
        assert_eq!(number(&table, algorithm.pick(&query(b"any"), &table)), Some(1));
    }

    #[test]
    fn the_configured_order_beats_the_address() {
        let host = |it: u16| HostPort { host: node(it).ip.to_string(), port: 5060 };
        let config = Config { extra_server_nodes: vec![host(3), host(1)], ..config() };
        let table = snapshot(1, vec![node(1), node(2), node(3)]);
        let mut algorithm = build(ENTRY.name, &config);
        assert_eq!(number(&table, algorithm.pick(&query(b"any"), &table)), Some(3));
    }

    #[test]
    fn responses_from_outside_go_to_the_active_node_too() {
        let table = snapshot(1, vec![node(1), node(2)]);
        let mut algorithm = build(ENTRY.name, &config());
        let named = table.find(node(2).key);
        let id = algorithm.answer(&response(b"call", 180), &table, named);
        assert_eq!(number(&table, id), Some(1));
    }

    #[test]
    fn a_node_that_is_leaving_serves_dialogs_if_there_is_no_other() {
        let mut leaving = node(1);
        leaving.graceful = true;
        let table = snapshot(1, vec![leaving]);
        let mut algorithm = build(ENTRY.name, &config());
        assert_eq!(algorithm.pick(&query(b"new"), &table), None);
        assert_eq!(number(&table, algorithm.pick(&in_dialog(b"old"), &table)), Some(1));
    }
}
