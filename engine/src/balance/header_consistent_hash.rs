//! `HeaderConsistentHashBalancerAlgorithm` (`sip.md` 3.2): the affinity key decides.

use super::rendezvous::ConsistentHash;
use super::{Entry, Promises};

/// The row.
pub(crate) const ENTRY: Entry = Entry {
    name: "HeaderConsistentHashBalancerAlgorithm",
    help: "The affinity key alone decides: no memory, equal on every shard and balancer.",
    promises: Promises { even: true, agreeing: true, stable: true },
    build: |_, _| Box::new(ConsistentHash),
};

#[cfg(test)]
mod tests {
    use crate::balance::Query;
    use crate::balance::testing::{
        build, config, in_dialog, node, number, query, response, snapshot,
    };

    #[test]
    fn the_affinity_key_counts_and_the_call_id_does_not() {
        let table = snapshot(1, (1..=8).map(node).collect());
        let mut algorithm = build(super::ENTRY.name, &config());
        let mut pick = |call: u8, key: u8| {
            let (call, key) = ([call], [key]);
            number(&table, algorithm.pick(&Query { key: &key, ..query(&call) }, &table))
        };
        assert!((0..50).all(|call| pick(call, 1) == pick(0, 1)));
        assert!((0..50).any(|key| pick(1, key) != pick(1, 0)));
    }

    /// `sip.md` 3.2 \[R\]: what cannot start a call is first looked for among all live nodes.
    #[test]
    fn a_dialog_stays_with_a_node_that_is_leaving() {
        let before = snapshot(1, vec![node(1), node(2), node(3)]);
        let mut leaving = node(1);
        leaving.graceful = true;
        let during = snapshot(2, vec![leaving, node(2), node(3)]);
        let mut algorithm = build(super::ENTRY.name, &config());
        for call in 0..100u8 {
            let text = [call];
            let home = number(&before, algorithm.pick(&query(&text), &before));
            assert_eq!(number(&during, algorithm.pick(&in_dialog(&text), &during)), home);
            let new = number(&during, algorithm.pick(&query(&text), &during));
            assert!(new == home || home == Some(1), "only its own keys move");
            assert_ne!(new, Some(1));
        }
    }

    /// `sip.md` 3.2: the hook for responses from outside.
    #[test]
    fn a_response_for_a_dead_node_goes_where_its_key_hashes_to() {
        let table = snapshot(1, vec![node(1), node(2), node(3)]);
        let mut algorithm = build(super::ENTRY.name, &config());
        let hashed = algorithm.pick(&query(b"call"), &table);
        assert_eq!(algorithm.answer(&response(b"call", 200), &table, None), hashed);
    }
}
