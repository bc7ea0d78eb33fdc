//! `PersistentConsistentHashBalancerAlgorithm` (`sip.md` 3.3): kept for its class name; what it
//! promised needs no replicated cache.

use super::rendezvous::ConsistentHash;
use super::{Entry, Promises};

/// The row.
pub(crate) const ENTRY: Entry = Entry {
    name: "PersistentConsistentHashBalancerAlgorithm",
    help: "As HeaderConsistentHash: a node that comes back finds its keys again, with no cache.",
    promises: Promises { even: true, agreeing: true, stable: true },
    build: |_, _| Box::new(ConsistentHash),
};
