//! Which node gets a message that names none: one file and one table row per algorithm.

use protocols::time::Time;

use crate::config::Config;
use crate::node::{NodeKey, Version};
use crate::snapshot::{Family, NodeId, Snapshot};

/// What an algorithm may know of the message.
#[derive(Clone, Copy, Debug)]
pub struct Query<'m> {
    /// When it came.
    pub now: Time,
    /// Affinity text by the configured header (`sip.md` 3).
    pub key: &'m [u8],
    /// The Call-ID.
    pub call_id: &'m [u8],
    /// Cluster it belongs to.
    pub version: Version,
    /// Address family it came in on: it can only leave by the same.
    pub family: Family,
    /// Transport towards nodes: a node without a port for it is no candidate.
    pub transport: protocols::sip::Transport,
    /// It may be the first message of its call: no To tag, not CANCEL, not ACK. Any other that is not
    /// remembered must be decided by arithmetic, so that every shard agrees.
    pub is_first: bool,
    /// An ACK.
    pub is_ack: bool,
}

/// Runs on every shard, with state of its own. Never blocks, never allocates once its tables are full.
///
/// `pick` returns only nodes of the snapshot, of the query's version and family, with a port for its
/// transport; live ones always, eligible ones for new associations.
pub trait Algorithm: Send {
    /// Chooses for a message that names no live node. `None`: there is no candidate.
    fn pick(&mut self, query: &Query<'_>, snapshot: &Snapshot) -> Option<NodeId>;

    /// The message names `node` itself: remember that its call lives there.
    fn learn(&mut self, _query: &Query<'_>, _snapshot: &Snapshot, _node: NodeId) {}

    /// May replace the node that a message names. Only the worst-case test algorithm does.
    fn replace(&mut self, _query: &Query<'_>, _snapshot: &Snapshot, node: NodeId) -> NodeId {
        node
    }

    /// Node that takes a response from outside whose own node is `named` (`None`: dead).
    fn answer(
        &mut self,
        query: &Query<'_>,
        snapshot: &Snapshot,
        named: Option<NodeId>,
    ) -> Option<NodeId> {
        named.or_else(|| self.pick(query, snapshot))
    }

    /// Remembered calls, where there is such a thing.
    fn active_calls(&self) -> Option<usize> {
        None
    }

    /// Calls of the first node belong to the second from now on (`sip.md` 5.8).
    fn switch_over(&mut self, _from: NodeKey, _to: NodeKey) {}
}

/// One algorithm: its row drives the configuration, the tests and the manual.
pub struct Entry {
    /// Last segment of the class name in `algorithmClass`.
    pub name: &'static str,
    /// One line for the manual.
    pub help: &'static str,
    /// What the contract test holds it to.
    pub promises: Promises,
    /// Makes one shard's instance.
    pub build: fn(&Config, Shard) -> Box<dyn Algorithm>,
}

/// Which shard of how many an instance serves.
#[derive(Clone, Copy, Debug)]
pub struct Shard {
    /// From 0.
    pub index: usize,
    /// One source's messages may meet different shards (`reuseportSteering` is not `hash`): choose by
    /// arithmetic, never by a counter.
    pub scattered: bool,
}

/// What may be relied on, checked by the contract test for every row.
#[derive(Clone, Copy, Debug)]
pub struct Promises {
    /// Fresh keys one after the other spread evenly over equal nodes.
    pub even: bool,
    /// Every shard and every balancer with the same members chooses alike.
    pub agreeing: bool,
    /// Losing a node moves only its keys.
    pub stable: bool,
}

/// The routing hash: xxh3, 64 bit. Fixed for ever, never seeded per process: two balancers in front of
/// one cluster must agree.
pub fn hash(seed: u64, bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(bytes, seed)
}
