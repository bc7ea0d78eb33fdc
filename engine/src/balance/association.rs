//! Calls or users that stay with the node they were given: memory, then round robin for what may be new
//! and arithmetic for what may not (`sip.md` 3.1, 8.2). CallIDAffinity, ClusterSubdomainAffinity and
//! UserBased differ only in the text they follow and in who inherits a dead node's calls.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::memory::{Home, Memory};
use super::rendezvous::{choose_weighted, draw};
use super::rotation::Rotation;
use super::{Query, Shard};
use crate::config::{Config, RampUp};
use crate::node::{Node, NodeKey};
use crate::snapshot::{Candidates, NodeId, Snapshot, Standing};

/// One shard's associations.
pub(crate) struct Association {
    memory: Memory,
    rotation: Rotation,
    ramp_up: Option<RampUp>,
    group_failover: bool,
    scattered: bool,
    /// There is no other shard that may have begun what we hear of.
    alone: bool,
}

impl Association {
    /// As configured.
    pub(crate) fn new(config: &Config, shard: Shard) -> Association {
        Association {
            memory: Memory::new(config.calls_max, config.call_idle),
            rotation: Rotation::new(config.ramp_up, shard),
            ramp_up: config.ramp_up,
            group_failover: config.group_failover,
            scattered: shard.scattered,
            alone: config.shards == 1,
        }
    }

    /// Takes over what has changed. Associations stay.
    pub(crate) fn configure(&mut self, config: &Config) {
        self.memory.configure(config.calls_max, config.call_idle);
        self.rotation.configure(config.ramp_up);
        self.ramp_up = config.ramp_up;
        self.group_failover = config.group_failover;
    }

    /// The node of the association, made now if there is none.
    ///
    /// `stays` tells whether an association may keep its live node for this message; `heirs` are the
    /// addresses whose nodes inherit a dead node's calls, given its own.
    pub(crate) fn pick<'h>(
        &mut self,
        query: &Query<'_>,
        key: u64,
        snapshot: &Snapshot,
        stays: impl Fn(&Node) -> bool,
        heirs: impl Fn(IpAddr) -> &'h [IpAddr],
    ) -> Option<NodeId> {
        let id = match self.memory.find(query.now, key) {
            None => self.begin(query, key, snapshot)?,
            Some(home) => match snapshot.find(home.node) {
                Some(id) if query.as_of(snapshot.node(id)).fits(snapshot, id) => {
                    if stays(snapshot.node(id)) {
                        return Some(id); // the memory knows
                    }
                    self.begin(query, key, snapshot)?
                }
                Some(_) => self.begin(query, key, snapshot)?,
                None => self.fail_over(query, key, snapshot, home, &heirs)?,
            },
        };
        self.store(query, key, snapshot.node(id));
        Some(id)
    }

    /// The nodes that one is chosen from where no association is known. Where calls begin by arithmetic,
    /// their dialogs are found by the same.
    pub(crate) fn candidates<'s>(
        &self,
        query: &Query<'_>,
        snapshot: &'s Snapshot,
    ) -> &'s Candidates {
        if self.scattered { query.candidates(snapshot) } else { query.sparing_candidates(snapshot) }
    }

    /// The association lives on this node, as the message itself says.
    pub(crate) fn learn(&mut self, query: &Query<'_>, key: u64, node: &Node) {
        self.store(query, key, node);
    }

    /// Whether the association is known to live on another node than this one.
    pub(crate) fn lives_elsewhere(&mut self, query: &Query<'_>, key: u64, node: NodeKey) -> bool {
        self.memory.find(query.now, key).is_some_and(|it| it.node != node)
    }

    /// An association counts on the shard that it began on: both sides of a call know it, and may be of
    /// different shards.
    fn store(&mut self, query: &Query<'_>, key: u64, node: &Node) {
        self.memory.store(query.now, key, node, query.is_first || self.alone);
    }

    /// All associations of one node move to another (`sip.md` 5.8).
    pub(crate) fn switch_over(&mut self, from: NodeKey, to: NodeKey) {
        self.memory.move_all(from, to, None);
    }

    /// Remembered associations that count here.
    pub(crate) fn len(&self) -> usize {
        self.memory.len()
    }

    /// Those of each node.
    pub(crate) fn calls_by_node(&self) -> BTreeMap<NodeKey, u64> {
        self.memory.calls_by_node()
    }

    /// Round robin for what may be the first message, unless its like may meet other shards. What is not
    /// the first was decided elsewhere or long ago: arithmetic, so that every shard says the same.
    fn begin(&mut self, query: &Query<'_>, key: u64, snapshot: &Snapshot) -> Option<NodeId> {
        let eligible = query.among(Standing::Eligible, snapshot);
        if query.is_first && !self.scattered {
            return self.rotation.next(query, eligible);
        }
        choose_weighted(key, self.candidates(query, snapshot), self.ramp_up, query.now)
    }

    /// The node is dead: to an heir, or with all its associations to the least busy node, or each to its
    /// own next node.
    fn fail_over<'h>(
        &mut self,
        query: &Query<'_>,
        key: u64,
        snapshot: &Snapshot,
        dead: Home,
        heirs: &impl Fn(IpAddr) -> &'h [IpAddr],
    ) -> Option<NodeId> {
        if let Some(ip) = dead.ip
            && let Some(id) = inherit(query, key, snapshot, heirs(ip))
        {
            return Some(id);
        }
        let eligible = query.among(Standing::Eligible, snapshot);
        if !self.group_failover || !query.fits_any(snapshot, eligible) {
            return self.begin(query, key, snapshot);
        }
        let idlest = (eligible.ids().iter().zip(eligible.keys()))
            .min_by_key(|(_, node)| self.memory.calls_of(**node))
            .map(|(id, _)| *id)?;
        let to = snapshot.node(idlest);
        self.memory.move_all(dead.node, to.key, Some(to.ip));
        Some(idlest)
    }
}

/// Every heir takes its share, by rendezvous; eligible ones first.
fn inherit(query: &Query<'_>, key: u64, snapshot: &Snapshot, heirs: &[IpAddr]) -> Option<NodeId> {
    heirs
        .iter()
        .flat_map(|ip| snapshot.on(*ip))
        .filter(|id| query.fits(snapshot, **id))
        .map(|id| (*id, snapshot.node(*id)))
        .max_by_key(|(_, node)| (node.is_eligible(), draw(key, node.key)))
        .map(|(id, _)| id)
}
