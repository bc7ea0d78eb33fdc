//! `ClusterSubdomainAffinityAlgorithm` (`sip.md` 3.4): CallIDAffinity, but the calls of a dead node go to
//! its partners of `subclusterMap`, whatever the group-failover key says.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::association::Association;
use super::rendezvous::key_of;
use super::{Algorithm, Entry, Promises, Query};
use crate::config::Config;
use crate::node::NodeKey;
use crate::snapshot::{Candidates, NodeId, Snapshot};

/// The row.
pub(crate) const ENTRY: Entry = Entry {
    name: "ClusterSubdomainAffinityAlgorithm",
    help: "As CallIDAffinity; calls of a dead node prefer the live nodes of its subcluster.",
    promises: Promises { even: true, agreeing: false, stable: true },
    build: |config, shard| {
        Box::new(ClusterSubdomainAffinity {
            calls: Association::new(config, shard),
            partners: Partners::new(&config.subclusters),
        })
    },
};

struct ClusterSubdomainAffinity {
    calls: Association,
    partners: Partners,
}

impl Algorithm for ClusterSubdomainAffinity {
    fn pick(&mut self, query: &Query<'_>, snapshot: &Snapshot) -> Option<NodeId> {
        let partners = &self.partners;
        self.calls.pick(
            query,
            key_of(query.call_id),
            snapshot,
            |it| !query.shuns(it),
            |dead| partners.of(dead),
        )
    }

    fn candidates<'s>(&self, query: &Query<'_>, snapshot: &'s Snapshot) -> &'s Candidates {
        self.calls.candidates(query, snapshot)
    }

    fn learn(&mut self, query: &Query<'_>, snapshot: &Snapshot, node: NodeId) {
        if !query.is_ack {
            self.calls.learn(query, key_of(query.call_id), snapshot.node(node));
        }
    }

    fn active_calls(&self) -> Option<usize> {
        Some(self.calls.len())
    }

    fn calls_by_node(&self) -> BTreeMap<NodeKey, u64> {
        self.calls.calls_by_node()
    }

    fn switch_over(&mut self, from: NodeKey, to: NodeKey) {
        self.calls.switch_over(from, to);
    }

    fn configure(&mut self, config: &Config) {
        self.calls.configure(config);
        self.partners = Partners::new(&config.subclusters);
    }
}

/// Who takes over from whom. An address in no group has no partners; one in two groups belongs to the
/// last. An address twice in one group is a configuration error, refused by the configuration.
struct Partners(ahash::HashMap<IpAddr, Vec<IpAddr>>);

impl Partners {
    fn new(groups: &[Vec<IpAddr>]) -> Partners {
        let mut it = Partners(ahash::HashMap::default());
        for group in groups {
            for host in group {
                let others = group.iter().copied().filter(|it| it != host).collect();
                it.0.insert(*host, others);
            }
        }
        it
    }

    fn of(&self, host: IpAddr) -> &[IpAddr] {
        self.0.get(&host).map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::testing::{build, config, in_dialog, node, number, query, snapshot};

    fn ips(numbers: &[u16]) -> Vec<IpAddr> {
        numbers.iter().map(|it| node(*it).ip).collect()
    }

    /// `sip.md` 6.3 item 44.
    #[test]
    fn every_host_of_every_group_is_known() {
        let partners = Partners::new(&[ips(&[1, 2]), ips(&[3, 4, 5])]);
        assert_eq!(partners.0.len(), 5);
        assert_eq!(partners.of(node(1).ip), ips(&[2]));
        assert_eq!(partners.of(node(4).ip), ips(&[3, 5]));
        assert_eq!(partners.of(node(9).ip), ips(&[]));
        let twice = Partners::new(&[ips(&[1, 2]), ips(&[2, 3])]);
        assert_eq!(twice.of(node(2).ip), ips(&[3]), "the last group wins");
    }

    /// `sip.md` 6.3 item 46, first message and in-dialog.
    #[test]
    fn a_dead_nodes_call_goes_to_its_partner_through_any_noise() {
        let (original, partner) = (1_000, 1_001);
        let config =
            crate::config::Config { subclusters: vec![ips(&[original, partner])], ..config() };
        let mut nodes: Vec<_> = (1..=300).map(node).collect();
        nodes.push(node(partner));
        let with: Vec<_> = nodes.iter().cloned().chain([node(original)]).collect();
        let (with, without) = (snapshot(1, with), snapshot(2, nodes));
        for query in [query(b"cid"), in_dialog(b"cid")] {
            let mut algorithm = build(ENTRY.name, &config);
            algorithm.learn(&query, &with, with.find(node(original).key).unwrap());
            let id = algorithm.pick(&query, &without);
            assert_eq!(number(&without, id), Some(partner));
            let id = algorithm.pick(&query, &with);
            assert_eq!(number(&with, id), Some(partner), "no way back: it lives there now");
        }
    }

    #[test]
    fn several_partners_share_and_without_any_it_is_call_id_affinity() {
        let config = Config { subclusters: vec![ips(&[1, 2, 3])], ..config() };
        let mut leaving = node(3);
        leaving.graceful = true;
        let all = snapshot(1, (1..=5).map(node).collect());
        let dead = all.find(node(1).key).unwrap();
        let cases = [
            (vec![node(2), node(3), node(4), node(5)], vec![2, 3]),
            (vec![node(2), leaving.clone(), node(4)], vec![2]),
            (vec![leaving, node(4), node(5)], vec![3]),
            (vec![node(4), node(5)], vec![4, 5]),
        ];
        for (survivors, want) in cases {
            let mut algorithm = build(ENTRY.name, &config);
            let left = snapshot(2, survivors);
            let mut calls = [0; 6];
            for call in 0..200u32 {
                let text = call.to_be_bytes();
                algorithm.learn(&query(&text), &all, dead);
                let id = algorithm.pick(&in_dialog(&text), &left);
                calls[usize::from(number(&left, id).unwrap())] += 1;
            }
            assert_eq!(want.iter().map(|it| calls[*it]).sum::<i32>(), 200, "{calls:?}");
            assert!(want.iter().all(|it| calls[*it] > 60), "{calls:?}");
        }
    }
}
