//! `PureConsistentHashBalancerAlgorithm` (`sip.md` 3.7): kept for its class name, without the
//! uneven ring.

use super::rendezvous::ConsistentHash;
use super::{Entry, Promises};

/// The row.
pub(crate) const ENTRY: Entry = Entry {
    name: "PureConsistentHashBalancerAlgorithm",
    help: "As HeaderConsistentHash: the ring with one point per node was uneven.",
    promises: Promises { even: true, agreeing: true, stable: true },
    build: |_, _| Box::new(ConsistentHash),
};
