//! Which node gets a request: each request by itself, whatever its connection did before.
//!
//! Source: `http-smpp-registry.md` 1.5. What a request says of its session is exact on every shard and
//! balancer; only requests that say nothing are dealt in turn.
//!
//! The affinity key outranks the session, as in the original: it alone is known to SIP as well, whose calls meet
//! the requests on the nodes of their own family. A node's `jvmRoute` is its word for where a session lives; one
//! without is hashed, for each service over the same slots.

use std::net::IpAddr;

use protocols::http::session;
use protocols::time::Time;

use super::COMPLAINT_PERIOD;
use crate::balance::Shard;
use crate::balance::active_standby::Order;
use crate::balance::rendezvous;
use crate::balance::rotation::Cursor;
use crate::config::{Config, RampUp};
use crate::node::NodeKey;
use crate::snapshot::{Candidates, Family, NodeId, Service, Snapshot};

/// One shard's chooser.
#[derive(Debug)]
pub(super) struct Chooser {
    rule: Rule,
    affinity_key: Vec<u8>,
    ramp_up: Option<RampUp>,
    cursors: [Cursor; 5],
    order: Order,
    active: (u64, [Option<NodeId>; 5]),
    /// When the log last said that an instance is not there.
    complained: Option<Time>,
}

/// What the configured algorithm means for HTTP.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Rule {
    /// The session, else in turn.
    Session,
    /// The affinity parameter, else as above.
    Affinity,
    /// One node for everything.
    ActiveStandby,
}

/// What is known of the request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask<'a> {
    pub(super) now: Time,
    pub(super) service: Service,
    /// Path and query, rewritten.
    pub(super) target: &'a [u8],
    /// Value of the `JSESSIONID` cookie.
    pub(super) cookie: Option<&'a [u8]>,
    pub(super) source: IpAddr,
    /// Nodes that failed on this request.
    pub(super) tried: &'a [NodeKey],
}

impl Chooser {
    pub(super) fn new(config: &Config, shard: Shard) -> Chooser {
        let rule = match config.algorithm {
            "HeaderConsistentHashBalancerAlgorithm"
            | "PersistentConsistentHashBalancerAlgorithm"
            | "PureConsistentHashBalancerAlgorithm" => Rule::Affinity,
            "ActiveStandbyAlgorithm" => Rule::ActiveStandby,
            _ => Rule::Session,
        };
        Chooser {
            rule,
            affinity_key: config.http_affinity_key.as_bytes().to_vec(),
            ramp_up: config.ramp_up,
            cursors: [Cursor::new(shard); 5],
            order: Order::of(config),
            active: (u64::MAX, [None; 5]),
            complained: None,
        }
    }

    /// `None`: there is no candidate.
    pub(super) fn choose(&mut self, ask: &Ask<'_>, snapshot: &Snapshot) -> Option<NodeId> {
        let bound = self.bound(ask, snapshot);
        if bound.is_some() || self.rule == Rule::ActiveStandby {
            return bound;
        }
        self.in_turn(ask, snapshot.web().eligible(ask.service))
    }

    /// The node that the request cannot but go to. Takes nobody's turn.
    pub(super) fn bound(&mut self, ask: &Ask<'_>, snapshot: &Snapshot) -> Option<NodeId> {
        let web = snapshot.web();
        let eligible = web.eligible(ask.service);
        match self.rule {
            Rule::ActiveStandby => return self.active(ask, eligible, snapshot),
            Rule::Affinity => {
                if let Some(key) = session::query_parameter(ask.target, &self.affinity_key) {
                    let same = web.eligible_in(ask.service, Family::of(ask.source));
                    if let Some(id) = hashed(ask, key, same).or_else(|| hashed(ask, key, eligible))
                    {
                        return Some(id);
                    }
                }
            }
            Rule::Session => {}
        }
        self.by_instance(ask, snapshot).or_else(|| by_session(ask, snapshot))
    }

    /// A call of a node that is leaving may be set up anew elsewhere; its sessions may not.
    fn by_instance(&mut self, ask: &Ask<'_>, snapshot: &Snapshot) -> Option<NodeId> {
        let instance = session::instance_id(ask.target)?;
        let found = snapshot.web().by_instance(instance);
        let id = found.filter(|it| serves(ask, snapshot, *it) && !snapshot.node(*it).graceful);
        if id.is_none() && self.complained.is_none_or(|it| it + COMPLAINT_PERIOD <= ask.now) {
            self.complained = Some(ask.now);
            let instance = instance.escape_ascii();
            log::warn!("No node serves the instance {instance}: its request goes to another.");
        }
        id
    }

    fn active(
        &mut self,
        ask: &Ask<'_>,
        eligible: &Candidates,
        snapshot: &Snapshot,
    ) -> Option<NodeId> {
        if !ask.tried.is_empty() {
            let left: Vec<NodeId> = untried(ask, eligible).map(|(id, _)| id).collect();
            return self.order.first(&left, snapshot);
        }
        if self.active.0 != snapshot.generation() {
            self.active = (snapshot.generation(), [None; 5]);
        }
        let place = self.active.1.get_mut(ask.service as usize)?;
        // A shard may look through another table of the same generation (a suspect of its own).
        if place.is_none_or(|it| !eligible.ids().contains(&it)) {
            *place = self.order.first(eligible.ids(), snapshot);
        }
        *place
    }

    fn in_turn(&mut self, ask: &Ask<'_>, eligible: &Candidates) -> Option<NodeId> {
        let cursor = self.cursors.get_mut(ask.service as usize)?;
        if ask.tried.is_empty() {
            return cursor.next(self.ramp_up, eligible, ask.now);
        }
        for _ in 0..eligible.ids().len() {
            let id = cursor.next(None, eligible, ask.now)?;
            let key = eligible.ids().iter().position(|it| *it == id);
            if key.and_then(|it| eligible.keys().get(it)).is_some_and(|it| !ask.tried.contains(it))
            {
                return Some(id);
            }
        }
        None
    }
}

/// The same function, over the same nodes, as for SIP: equal keys meet on one node.
fn hashed(ask: &Ask<'_>, key: &[u8], among: &Candidates) -> Option<NodeId> {
    let key = rendezvous::key_of(key);
    if ask.tried.is_empty() {
        return rendezvous::choose(key, among);
    }
    untried(ask, among).max_by_key(|(_, node)| rendezvous::draw(key, *node)).map(|(id, _)| id)
}

fn untried<'a>(
    ask: &'a Ask<'_>,
    among: &'a Candidates,
) -> impl Iterator<Item = (NodeId, NodeKey)> + 'a {
    let pairs = among.ids().iter().copied().zip(among.keys().iter().copied());
    pairs.filter(|(_, key)| !ask.tried.contains(key))
}

/// Whether the node may serve a session that it has: alive, trusted, with the port. One that refused another
/// request a moment ago is asked again: the session is lost anywhere else.
fn serves(ask: &Ask<'_>, snapshot: &Snapshot, id: NodeId) -> bool {
    let node = snapshot.node(id);
    node.bad.is_none()
        && !ask.tried.contains(&node.key)
        && snapshot.web().port(ask.service, id).is_some()
}

fn by_session(ask: &Ask<'_>, snapshot: &Snapshot) -> Option<NodeId> {
    let session = session::query_parameter(ask.target, b"jsessionid")
        .or_else(|| session::path_parameter(ask.target, b"jsessionid"))
        .or(ask.cookie)?;
    let web = snapshot.web();
    let routed = session::route(session).and_then(|it| web.by_route(it));
    if let Some(id) = routed.filter(|it| serves(ask, snapshot, *it)) {
        return Some(id);
    }
    let hash = usize::try_from(java_hash(session).unsigned_abs()).ok()?;
    let slots = web.slots(ask.service);
    let home = slots.get(hash.checked_rem(slots.len())?).copied();
    if let Some(id) = home.filter(|it| serves(ask, snapshot, *it)) {
        return Some(id);
    }
    // The sessions of one that cannot serve are for all that can.
    let live = web.live(ask.service);
    let slot = hash.checked_div(slots.len())?.checked_rem(live.len())?;
    let (before, from) = live.split_at_checked(slot)?;
    from.iter().chain(before).copied().find(|it| serves(ask, snapshot, *it))
}

/// `String.hashCode` of the bytes taken for characters.
fn java_hash(text: &[u8]) -> i32 {
    text.iter().fold(0i32, |hash, byte| hash.wrapping_mul(31).wrapping_add(i32::from(*byte)))
}

#[cfg(test)]
mod tests;
