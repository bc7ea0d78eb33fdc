//! What must hold for every decision of a relay, whatever the network does to its messages.
//!
//! Reads with this crate's own [`Message`], and knows from the names in tags and branches whose a dialog or
//! a transaction is. What the relay could not know it does not hold against it: a decision is judged by the
//! node table that the shard had.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use engine::node::{Node, NodeKey, Version};
use engine::relay::{Arrival, DropReason, Hop, Leg, Verdict};
use engine::snapshot::{Family, NodeId, Snapshot, Standing};
use protocols::sip::Transport;

use super::{EXTERNAL, INTERNAL, node, node_address};
use crate::{Message, Uri, param};

/// One decision with all that led to it.
#[derive(Clone, Copy, Debug)]
pub struct Decision<'a> {
    /// Who decided.
    pub shard: usize,
    /// By which node table.
    pub snapshot: &'a Snapshot,
    /// What arrived, on which leg.
    pub leg: Leg,
    /// From where.
    pub arrival: &'a Arrival,
    /// The message.
    pub bytes: &'a [u8],
    /// What became of it.
    pub verdict: Verdict,
    /// What is sent.
    pub out: &'a [u8],
    /// Address that refused the message before.
    pub failed: Option<SocketAddr>,
    /// It was tried often enough, whoever is left.
    pub is_last: bool,
}

/// What a shard did, in numbers.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Tally {
    /// Heartbeats.
    pub beats: u64,
    /// Other requests decided.
    pub requests: u64,
    /// Responses decided.
    pub responses: u64,
    /// Messages sent on.
    pub forwards: u64,
    /// Answers of its own.
    pub replies: u64,
    /// Decided again after their first hop failed; not counted above a second time.
    pub again: u64,
    /// Names asked for.
    pub resolves: u64,
    /// Messages dropped.
    pub drops: u64,
}

/// Holds relays to what is promised.
#[derive(Debug)]
pub struct Judge {
    /// Nodes have a leg of their own.
    pub two_legs: bool,
    /// Algorithm by name.
    pub algorithm: &'static str,
    /// Where one source's messages meet one shard, shards remember calls.
    pub remembers: bool,
    /// Nothing is ever lost here: nothing may be dropped.
    pub is_calm: bool,
    /// Address of every caller, by name.
    pub callers: BTreeMap<String, SocketAddr>,
    /// By shard.
    pub tallies: Vec<Tally>,
    /// Where each INVITE went last, by branch.
    invites: BTreeMap<String, Went>,
    /// The table when a call was first seen.
    calls: BTreeMap<String, View>,
    /// Who inherited a dialog, by Call-ID, shard and table.
    heirs: BTreeMap<(String, usize, View), SocketAddr>,
}

/// Tables with one view are equal in everything that decides.
type View = (u64, u64, u64);

#[derive(Clone, Copy, Debug)]
struct Went {
    to: NodeKey,
    shard: usize,
    view: View,
}

/// Whose a tag or a branch is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Who {
    Node { address: SocketAddr, version: Version, key: NodeKey },
    Caller(SocketAddr),
}

impl Judge {
    /// A judge of relays with this algorithm.
    pub fn new(algorithm: &'static str, shards: usize) -> Judge {
        Judge {
            two_legs: true,
            algorithm,
            remembers: false,
            is_calm: false,
            callers: BTreeMap::new(),
            tallies: vec![Tally::default(); shards],
            invites: BTreeMap::new(),
            calls: BTreeMap::new(),
            heirs: BTreeMap::new(),
        }
    }

    /// Judges one decision.
    ///
    /// # Errors
    ///
    /// What was promised and did not happen.
    pub fn check(&mut self, it: &Decision<'_>) -> Result<(), String> {
        let message = Message::parse(it.bytes).ok_or("the message is none")?;
        self.count(it, &message);
        let (from, to) = match it.verdict {
            Verdict::Drop(reason) => return self.dropped(it, &message, reason),
            Verdict::Resolve => return Err("all addresses are literals".to_owned()),
            Verdict::Reply { hop: Hop::Datagram { from, to } } => {
                ensure(from == it.arrival.listener, "an answer leaves by another socket")?;
                ensure(to == it.arrival.source, "an answer of ours goes to a third party")?;
                return self.replied(it, &message);
            }
            Verdict::Forward { hop: Hop::Datagram { from, to }, reply: None, .. } => (from, to),
            other => return Err(format!("no datagram: {other:?}")),
        };
        if self.two_legs {
            let is_in = [node_side(it, to), from.0 >= 2];
            ensure(is_in[0] == is_in[1], "it leaves by the wrong leg")?;
        }
        let from_node = self.is_from_node(it);
        if message.header("Call-ID").starts_with('x') && !from_node {
            return ensure(
                it.snapshot.at(to, None, None).is_some(),
                "a stranger made us send to what is no node",
            );
        }
        match (message.is_request(), from_node) {
            (true, false) => self.client_request(it, &message, to),
            (true, true) => node_request(&message, to),
            (false, true) => self.node_response(&message, to),
            (false, false) => self.client_response(it, &message, to),
        }
    }

    fn count(&mut self, it: &Decision<'_>, message: &Message) {
        let tally = &mut self.tallies[it.shard];
        *match message.is_request() {
            _ if it.failed.is_some() => &mut tally.again,
            true if message.find("Mobicents-Heartbeat").is_some() => &mut tally.beats,
            true => &mut tally.requests,
            false => &mut tally.responses,
        } += 1;
        *match it.verdict {
            Verdict::Forward { .. } => &mut tally.forwards,
            Verdict::Reply { .. } => &mut tally.replies,
            Verdict::Resolve => &mut tally.resolves,
            Verdict::Drop(_) => &mut tally.drops,
        } += 1;
    }

    fn is_from_node(&self, it: &Decision<'_>) -> bool {
        if self.two_legs {
            return it.leg == Leg::Internal;
        }
        let (snapshot, source) = (it.snapshot, it.arrival.source);
        if snapshot.at(source, None, None).is_some() || snapshot.remembers(source) {
            return true;
        }
        // Nodes answer from other ports, too, and nobody else is on their hosts.
        let is_host = snapshot.has_ip(source.ip()) || snapshot.remembers_ip(source.ip());
        it.bytes.starts_with(b"SIP/") && is_host
    }

    fn who(&self, text: &str) -> Option<Who> {
        let name = text.strip_prefix("z9hG4bK").unwrap_or(text).split('-').next()?;
        if let Some(address) = self.callers.get(name) {
            return Some(Who::Caller(*address));
        }
        let (number, version) = name.strip_prefix('n')?.split_once('v')?;
        let (number, version) = (number.parse().ok()?, version.split('i').next()?.parse().ok()?);
        let key = node(number, version).key;
        Some(Who::Node { address: node_address(number), version: Version(version), key })
    }

    /// The message that can go nowhere is answered; only what must not be answered is dropped.
    fn dropped(
        &self,
        it: &Decision<'_>,
        message: &Message,
        reason: DropReason,
    ) -> Result<(), String> {
        let is_strangers = message.header("Call-ID").starts_with('x');
        ensure(is_strangers || !self.is_calm, format!("dropped for {}", reason.as_str()))?;
        match reason {
            DropReason::NoNode => {
                ensure(message.method() == "ACK", "a request is left without an answer")?;
                ensure(self.takers(it, message).is_empty(), "there was a node")
            }
            DropReason::ConnectionGone if it.failed.is_some() => {
                ensure(message.method() == "ACK", "a refused request is left without an answer")?;
                self.nobody_else(it, message)
            }
            DropReason::Unresolved if !message.is_request() => {
                ensure(it.snapshot.nodes().is_empty(), "there was a node for the response")
            }
            DropReason::NotOurs | DropReason::NoVia if is_strangers => Ok(()),
            DropReason::Loop if !self.two_legs || is_strangers => Ok(()),
            _ => Err(format!("dropped for {}", reason.as_str())),
        }
    }

    /// Nodes that could take a request from outside. What follows an INVITE goes where that could go, and
    /// rather anywhere than nowhere.
    fn takers<'s>(&self, it: &Decision<'s>, message: &Message) -> &'s [NodeId] {
        let among = |standing, version| {
            it.snapshot.candidates(standing, version, Family::V4, Transport::Udp).ids()
        };
        if let Some(Who::Node { version, .. }) = self.home(message)
            && names_version(message)
        {
            return among(Standing::Usable, version);
        }
        let eligible = among(Standing::Eligible, newest(it.snapshot, Standing::Eligible));
        let in_dialog = param(message.header("To"), "tag").is_some() && message.method() != "ACK";
        if is_first(message) || (!eligible.is_empty() && !in_dialog) {
            return eligible;
        }
        let standing = if in_dialog { Standing::Usable } else { Standing::Eligible };
        among(Standing::Usable, newest(it.snapshot, standing))
    }

    /// The node that a request's dialog belongs to, by its To tag, if it carries a route set.
    fn home(&self, message: &Message) -> Option<Who> {
        if message.routes().is_empty() {
            return None;
        }
        self.who(&param(message.header("To"), "tag")?).filter(|it| matches!(it, Who::Node { .. }))
    }

    fn replied(&self, it: &Decision<'_>, message: &Message) -> Result<(), String> {
        if message.find("Mobicents-Heartbeat").is_some()
            || message.header("Call-ID").starts_with('x')
        {
            return Ok(());
        }
        ensure(message.is_request(), "a response is answered")?;
        self.nobody_else(it, message)
    }

    /// No node could take it but those that refused. A call that has a node stays in its version.
    fn nobody_else(&self, it: &Decision<'_>, message: &Message) -> Result<(), String> {
        let failed = it.failed.and_then(|failed| it.snapshot.at(failed, None, None));
        let version = failed.map(|id| it.snapshot.node(id).version);
        let left = self.takers(it, message).iter().filter(|id| {
            let node = it.snapshot.node(**id);
            let is_of_version = is_first(message) || version.is_none_or(|it| it == node.version);
            it.failed.is_none() || (node.suspect.is_empty() && is_of_version)
        });
        let left = if it.is_last { 0 } else { left.count() };
        ensure(left == 0, format!("refused although {left} nodes could take it"))
    }

    fn client_request(
        &mut self,
        it: &Decision<'_>,
        message: &Message,
        to: SocketAddr,
    ) -> Result<(), String> {
        let snapshot = it.snapshot;
        // Nodes of two versions may have one address for a moment; our Via says which was meant.
        let sent = Message::parse(it.out).ok_or("what is sent is no message")?;
        let branch = sent.vias().first().and_then(|via| param(via, "branch")).unwrap_or_default();
        let version = branch.rsplit('_').next().and_then(|it| it.parse().ok()).map(Version);
        let taker = version.and_then(|it| snapshot.at(to, Some(Transport::Udp), Some(it)));
        let taker = snapshot.node(taker.ok_or("a request from outside goes to no live node")?);
        ensure(it.failed != Some(to), "to the very node that refused it")?;
        if let Some(Who::Node { address, version, key: home }) = self.home(message) {
            ensure(
                taker.version == version || !names_version(message),
                "a dialog left its version",
            )?;
            let usable = snapshot.candidates(Standing::Usable, version, Family::V4, Transport::Udp);
            if self.algorithm == WORST_CASE {
                return Ok(());
            }
            // Who refused a moment ago keeps its dialogs, until one of their own messages is refused.
            let is_live = snapshot.find(home).is_some();
            if usable.keys().contains(&home) || (is_live && it.failed.is_none()) {
                return ensure(to == address, "a dialog left its live node");
            }
            if self.remembers_users() {
                return Ok(());
            }
            let call = (message.header("Call-ID").to_owned(), it.shard, view(snapshot));
            let heir = *self.heirs.entry(call).or_insert(to);
            return ensure(heir == to, format!("two heirs of one dialog: {heir} and {to}"));
        }
        let branch = message.vias().first().and_then(|it| param(it, "branch")).unwrap_or_default();
        let before = self.invites.get(&branch).copied();
        let call = message.header("Call-ID").to_owned();
        let is_known = self.calls.contains_key(&call);
        self.calls.entry(call).or_insert_with(|| view(snapshot));
        if is_first(message) && !is_known {
            let wanted = newest(snapshot, Standing::Eligible);
            ensure(taker.version == wanted, "a new call went to an old version")?;
            let is_willing = |it: &Node| !it.graceful && it.bad.is_none();
            let has_better = snapshot
                .nodes()
                .iter()
                .any(|it| it.version == taker.version && is_willing(it) && it.suspect.is_empty());
            let is_right = is_willing(taker) && (taker.suspect.is_empty() || !has_better);
            ensure(is_right, "new work for a node that wants none, or refused")?;
        }
        if is_first(message) || before.is_some() {
            let went = Went { to: taker.key, shard: it.shard, view: view(snapshot) };
            self.invites.insert(branch, went);
        }
        let Some(before) = before else { return Ok(()) };
        let what = if is_first(message) { "a retransmission" } else { "a CANCEL or ACK" };
        if is_first(message) && self.algorithm == WORST_CASE {
            return Ok(());
        }
        if self.must_follow(it, message, before) {
            ensure(before.to == taker.key, format!("{what} left the node of its INVITE"))?;
        }
        Ok(())
    }

    /// Whether a message of an INVITE's transaction must go where that went. By arithmetic if nothing
    /// changed, by memory if the same shard has it and the node may still have it.
    fn must_follow(&self, it: &Decision<'_>, message: &Message, before: Went) -> bool {
        let is_same_shard = before.shard == it.shard;
        if self.remembers {
            let id = it.snapshot.find(before.to);
            let stays = !is_first(message) && it.failed.is_none();
            let keeps = id.is_some_and(|id| it.snapshot.node(id).suspect.is_empty() || stays);
            return is_same_shard && keeps;
        }
        if self.algorithm == WORST_CASE || self.remembers_users() {
            return false;
        }
        // A shard that saw another table meanwhile may remember what the others cannot know.
        let first = self.calls.get(message.header("Call-ID")).copied();
        before.view == view(it.snapshot) && first == Some(before.view)
    }

    /// Another call of the user may take all of them elsewhere at any time.
    fn remembers_users(&self) -> bool {
        self.algorithm == USER_BASED && self.tallies.len() == 1
    }

    fn node_response(&self, message: &Message, to: SocketAddr) -> Result<(), String> {
        match self.asker(message) {
            // In single-entry mode a node that is no member is a caller like any other.
            Some(Who::Caller(address) | Who::Node { address, .. }) => {
                ensure(to == address, format!("a response to {address} goes to {to}"))
            }
            None => Err("a node answers what nobody asked".to_owned()),
        }
    }

    fn client_response(
        &self,
        it: &Decision<'_>,
        message: &Message,
        to: SocketAddr,
    ) -> Result<(), String> {
        let snapshot = it.snapshot;
        let Some(Who::Node { address, version, .. }) = self.asker(message) else {
            // A node that is none any more, in single-entry mode.
            return ensure(snapshot.at(to, None, None).is_some(), "a response to what is no node");
        };
        let is_live = snapshot.at(address, None, None).is_some();
        if is_live && (to == address || self.algorithm != ACTIVE_STANDBY) {
            return ensure(to == address, "a response left the live node that asked");
        }
        // A node that was no member when it asked had no version for the branch.
        let stamped = param(message.vias()[0], "branch").unwrap_or_default();
        if !stamped.ends_with(&format!("_{}", version.0)) {
            return ensure(snapshot.at(to, None, None).is_some(), "a response to what is no node");
        }
        let version = if snapshot.has_version(version) {
            version
        } else {
            newest(snapshot, Standing::Eligible)
        };
        let among = |standing| {
            snapshot.candidates(standing, version, Family::V4, Transport::Udp).ids().iter()
        };
        let mut takers = among(Standing::Usable).chain(among(Standing::Eligible)).peekable();
        let nobody = takers.peek().is_none();
        let is_right = takers.any(|id| SocketAddr::new(snapshot.node(*id).ip, 5080) == to);
        ensure(
            is_right || (nobody && to == address),
            "a dead node's response goes to no survivor of its version",
        )
    }

    /// Who sent the request that a response answers.
    fn asker(&self, response: &Message) -> Option<Who> {
        let vias = response.vias();
        let theirs = vias.iter().find(|it| {
            !it.contains(&EXTERNAL.to_string()) && !it.contains(&INTERNAL.to_string())
        })?;
        self.who(&param(theirs, "branch")?)
    }
}

/// The next hop that a node's request names itself: its first Route that is not ours, else its URI.
fn node_request(message: &Message, to: SocketAddr) -> Result<(), String> {
    let routes = message.routes();
    let theirs = routes
        .iter()
        .map(|it| Uri::of(it))
        .find(|it| it.address().is_some_and(|address| address != EXTERNAL && address != INTERNAL));
    let uri =
        theirs.unwrap_or_else(|| Uri::of(message.start.split(' ').nth(1).unwrap_or_default()));
    let wanted = uri.address();
    ensure(wanted == Some(to), format!("a node's request for {wanted:?} goes to {to}"))
}

/// The newest version with a node of that standing, without suspect ones where there are others; else with
/// any node at all.
fn newest(snapshot: &Snapshot, standing: Standing) -> Version {
    let versions: BTreeSet<Version> = snapshot.nodes().iter().map(|it| it.version).collect();
    let serves = |standing, version: &Version, may_be_suspect: bool| {
        let ids = snapshot.candidates(standing, *version, Family::V4, Transport::Udp).ids();
        ids.iter().any(|id| may_be_suspect || snapshot.node(*id).suspect.is_empty())
    };
    let standings = [standing, standing, Standing::Usable, Standing::Usable];
    let mut ranks = standings.into_iter().zip([false, true, false, true]);
    ranks
        .find_map(|(standing, any)| versions.iter().rfind(|it| serves(standing, it, any)))
        .or(versions.last())
        .copied()
        .unwrap_or_default()
}

/// Whether an address is on the nodes' side.
fn node_side(it: &Decision<'_>, to: SocketAddr) -> bool {
    it.snapshot.has_ip(to.ip()) || to.ip().to_string().starts_with("172.16.")
}

/// The route set of a dialog that a node began before it was known names nothing.
fn names_version(message: &Message) -> bool {
    message.routes().iter().any(|it| it.contains(";version="))
}

/// Neither ACK nor CANCEL nor in a dialog.
fn is_first(message: &Message) -> bool {
    !matches!(message.method(), "ACK" | "CANCEL") && param(message.header("To"), "tag").is_none()
}

fn view(snapshot: &Snapshot) -> View {
    let suspects = snapshot.nodes().iter().filter(|it| !it.suspect.is_empty());
    let suspects = suspects.fold(0, |all, it| all ^ it.key.0);
    (snapshot.generation(), snapshot.fingerprint(), suspects)
}

fn ensure(holds: bool, otherwise: impl Into<String>) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise.into()) }
}

const WORST_CASE: &str = "WorstCaseUdpTestAffinityAlgorithm";
const USER_BASED: &str = "UserBasedAlgorithm";
const ACTIVE_STANDBY: &str = "ActiveStandbyAlgorithm";
