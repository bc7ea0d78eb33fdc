//! Which node gets a message that names none: one file and one table row per algorithm.
//!
//! Follows `sip.md` 3 with the behaviour marked \[R\]; `README.md` beside this file says how to add one.
//! The building blocks are [`rendezvous`] (arithmetic), `rotation` (round robin), `memory` (remembered
//! calls) and `association` (the three together).

pub(crate) mod active_standby;
mod association;
mod call_id_affinity;
mod cluster_subdomain_affinity;
mod header_consistent_hash;
pub(crate) mod memory;
mod persistent_consistent_hash;
mod pure_consistent_hash;
pub mod rendezvous;
pub(crate) mod rotation;
mod user_based;
mod worst_case_udp_test;

#[cfg(test)]
mod contract;
#[cfg(test)]
pub(crate) mod testing;

use std::collections::BTreeMap;

use protocols::time::Time;

use crate::config::Config;
use crate::node::{Node, NodeKey, Version, Way};
use crate::snapshot::{Candidates, Family, NodeId, Snapshot, Standing};

/// Every algorithm; the first is the default.
pub const ALGORITHMS: &[Entry] = &[
    call_id_affinity::ENTRY,
    header_consistent_hash::ENTRY,
    persistent_consistent_hash::ENTRY,
    pure_consistent_hash::ENTRY,
    cluster_subdomain_affinity::ENTRY,
    user_based::ENTRY,
    active_standby::ENTRY,
    worst_case_udp_test::ENTRY,
];

/// The row of this name: the last segment of a class name.
pub fn find(name: &str) -> Option<&'static Entry> {
    ALGORITHMS.iter().find(|it| it.name == name)
}

/// One shard's instance of the configured algorithm; the default if the name is unknown, which the
/// configuration has refused already.
pub fn build(config: &Config, shard: Shard) -> Box<dyn Algorithm> {
    let entry = find(config.algorithm).unwrap_or(&call_id_affinity::ENTRY);
    (entry.build)(config, shard)
}

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
    /// The message itself says so; otherwise `version` is just the latest.
    pub names_version: bool,
    /// Address family it came in on: it can only leave by the same.
    pub family: Family,
    /// Transport towards nodes: a node without a port for it is no candidate.
    pub transport: protocols::sip::Transport,
    /// It may be the first message of its call: no To tag, not CANCEL, not ACK. Any other that is not
    /// remembered must be decided by arithmetic, so that every shard agrees.
    pub is_first: bool,
    /// An ACK.
    pub is_ack: bool,
    /// A request with a To tag: its dialog may live on a node that gets no new calls. CANCEL, and ACK
    /// that names no node, go where their INVITE went a moment ago.
    pub in_dialog: bool,
    /// Status of a response; `None` for requests.
    pub status: Option<u16>,
    /// It did not reach the node that it was sent to, which is suspect now.
    pub is_again: bool,
}

impl Query<'_> {
    /// Whether the node refused a moment ago where the message would go, and the message shall not try it
    /// again: it may begin a call, which has lost nothing there yet, or was refused there itself.
    pub fn shuns(&self, node: &Node) -> bool {
        (self.is_first || self.is_again) && node.suspect.has(Way::Sip(self.transport))
    }

    /// Whether the node may take the message at all: version, family and an open port; one that it shuns
    /// only where nobody else could.
    pub fn fits(&self, snapshot: &Snapshot, id: NodeId) -> bool {
        let node = snapshot.node(id);
        node.version == self.version
            && Family::of(node.ip) == self.family
            && node.ports.of(self.transport).is_some()
            && (!self.shuns(node)
                || self.among(Standing::Usable, snapshot).ids().contains(&id)
                || (!self.in_dialog
                    && self.among(Standing::Eligible, snapshot).ids().contains(&id)))
    }

    /// Whether there is any node among the eligible ones that may take the message: they are all suspect
    /// or none is.
    pub(crate) fn fits_any(&self, snapshot: &Snapshot, eligible: &Candidates) -> bool {
        eligible.ids().first().is_some_and(|it| self.fits(snapshot, *it))
    }

    /// The same asked of a node that is known to have the call: what names no version belongs to its.
    pub(crate) fn as_of(&self, node: &Node) -> Self {
        let version = if self.names_version { self.version } else { node.version };
        Query { version, ..*self }
    }

    /// The nodes of one standing that may take the message.
    pub fn among<'s>(&self, standing: Standing, snapshot: &'s Snapshot) -> &'s Candidates {
        snapshot.candidates(standing, self.version, self.family, self.transport)
    }

    /// The nodes that arithmetic chooses from (`sip.md` 3.2): eligible ones for a new association, all
    /// live ones in a dialog, and rather any live one than none for what cannot start a call.
    pub fn candidates<'s>(&self, snapshot: &'s Snapshot) -> &'s Candidates {
        let eligible = self.among(Standing::Eligible, snapshot);
        if self.in_dialog || (eligible.ids().is_empty() && !self.is_first) {
            self.among(Standing::Usable, snapshot)
        } else {
            eligible
        }
    }

    /// The same where calls begin in turn rather than by arithmetic: a dialog that is not remembered is
    /// not found by it either, and nodes that want no calls are spared.
    pub(crate) fn sparing_candidates<'s>(&self, snapshot: &'s Snapshot) -> &'s Candidates {
        let eligible = self.among(Standing::Eligible, snapshot);
        if self.fits_any(snapshot, eligible) { eligible } else { self.candidates(snapshot) }
    }
}

/// Runs on every shard, with state of its own. Never blocks, never allocates once its tables are full.
///
/// `pick` returns only nodes of the snapshot, of the query's version and family, with a port for its
/// transport; live ones always, eligible ones for new associations.
pub trait Algorithm: Send {
    /// Chooses for a message that names no live node. `None`: there is no candidate.
    fn pick(&mut self, query: &Query<'_>, snapshot: &Snapshot) -> Option<NodeId>;

    /// The nodes that [`Algorithm::pick`] chooses from where it remembers none, for explanations.
    fn candidates<'s>(&self, query: &Query<'_>, snapshot: &'s Snapshot) -> &'s Candidates {
        query.candidates(snapshot)
    }

    /// The message names `node` itself: remember that its call lives there.
    fn learn(&mut self, _query: &Query<'_>, _snapshot: &Snapshot, _node: NodeId) {}

    /// May replace the node that a message names. Only the worst-case test algorithm does.
    fn replace(&mut self, _query: &Query<'_>, _snapshot: &Snapshot, node: NodeId) -> NodeId {
        node
    }

    /// Node that takes a response from outside whose own node is `named` (`None`: dead). `query.is_first`
    /// is false: responses meet any shard.
    fn answer(
        &mut self,
        query: &Query<'_>,
        snapshot: &Snapshot,
        named: Option<NodeId>,
    ) -> Option<NodeId> {
        named.or_else(|| self.pick(query, snapshot))
    }

    /// Remembered calls that began here, or all where there are no other shards; `None`: there is no such thing.
    fn active_calls(&self) -> Option<usize> {
        None
    }

    /// Those of them that live on each node.
    fn calls_by_node(&self) -> BTreeMap<NodeKey, u64> {
        BTreeMap::new()
    }

    /// Calls of the first node belong to the second from now on (`sip.md` 5.8).
    fn switch_over(&mut self, _from: NodeKey, _to: NodeKey) {}

    /// Takes over what else the configuration says. Whatever is remembered stays: calls that ring while
    /// the operator changes a limit must not move.
    fn configure(&mut self, _config: &Config) {}
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

/// What may be relied on with several shards, checked by the contract test for every row.
#[derive(Clone, Copy, Debug)]
pub struct Promises {
    /// Fresh keys one after the other spread evenly over equal nodes.
    pub even: bool,
    /// Every shard and every balancer with the same members chooses alike.
    pub agreeing: bool,
    /// A key keeps its node while that lives; losing a node moves only its keys. If loads are even too,
    /// they spread over all survivors.
    pub stable: bool,
}

/// The routing hash: xxh3, 64 bit. Fixed for ever, never seeded per process: two balancers in front of
/// one cluster must agree.
pub fn hash(seed: u64, bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(bytes, seed)
}
