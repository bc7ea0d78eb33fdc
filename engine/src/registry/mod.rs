//! Every node there is: who announced itself, who is silent, who is not to be trusted with new calls.
//!
//! Owned by the control executor. Reads announcements of any protocol, what shards report, the results of
//! probes and the configuration; gives snapshots and events. Source: `sip.md` 4 and 5,
//! `http-smpp-registry.md` 3. Does not choose nodes and knows no sockets.

mod announcement;
mod entry;
mod event;
mod members;
mod orders;
mod remembered;
mod rules;
mod sessions;
mod voices;
mod words;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use protocols::sip::Transport;
use protocols::time::Time;

pub use self::announcement::{ANNOUNCEMENT_BYTES_MAX, Announcement, BeatError, Source};
use self::entry::Entry;
pub use self::entry::Health;
pub use self::event::{CHANGES, Difference, Disbelief, Event, NodeText, Removal};
use self::orders::Order;
pub use self::orders::{NotNamed, ORDERS_MAX, Ordered};
use self::remembered::Remembered;
use self::rules::Configured;
pub use self::rules::{Own, Rules};
pub use self::sessions::SessionWord;
pub use self::words::Heard;
use crate::lifecycle::Pulse;
use crate::node::{Node, NodeKey, Origin};
use crate::relay::Report;
use crate::snapshot::{NODES_MAX, Snapshot};

/// The node table. Nodes never share an address: who announces it last has it.
#[derive(Debug)]
pub struct Registry {
    rules: Rules,
    entries: BTreeMap<NodeKey, Entry>,
    by_ip: BTreeMap<IpAddr, Vec<NodeKey>>,
    /// `jvmRoute` to who announced it last, and when. Outlives the node.
    routes: BTreeMap<String, (NodeKey, Time)>,
    /// Sessions that began with a JSON `start`, and their nodes.
    sessions: BTreeMap<String, Vec<NodeKey>>,
    remembered: Remembered,
    /// Calls that are to move, oldest first.
    switch_overs: VecDeque<(NodeKey, NodeKey)>,
    /// What the operator has ordered; no two are about one address.
    orders: Vec<Order>,
    /// Configured nodes that are ourselves.
    own: BTreeSet<NodeKey>,
    /// Announcements that were not believed, by [`Refused::as_str`].
    refusals: BTreeMap<&'static str, u64>,
    /// Who has sent heartbeats without any node.
    empty: BTreeSet<IpAddr>,
    /// When a heartbeat was last refused aloud.
    refused: Option<Time>,
    /// Extra servers that are no nodes: what comes from there comes from inside.
    servers: Vec<SocketAddr>,
    events: VecDeque<Event>,
    /// Events that found no room.
    lost: u64,
    /// Since the start, by [`Event::change`].
    changes: BTreeMap<(&'static str, &'static str), u64>,
    generation: u64,
    changed: bool,
    next_check: Time,
}

/// Why an announcement was not believed. Nothing changes; log it at a limited rate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Refused {
    /// No node can have this address: unspecified, multicast or broadcast.
    Address {
        /// What was announced.
        ip: IpAddr,
    },
    /// No open port at all.
    NoPorts,
    /// Names, values and session together are longer than [`ANNOUNCEMENT_BYTES_MAX`].
    TooLong {
        /// Their length.
        bytes: usize,
    },
    /// [`NODES_MAX`] nodes are known already.
    NoRoom,
    /// It is where we listen: what went there would come back until its Max-Forwards are used up.
    Own {
        /// The address that is ours.
        address: SocketAddr,
    },
    /// The operator has taken it out. That is no news.
    Out,
}

impl Refused {
    /// As figures name it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Refused::Address { .. } => "address",
            Refused::NoPorts => "no_ports",
            Refused::TooLong { .. } => "too_long",
            Refused::NoRoom => "no_room",
            Refused::Own { .. } => "own_address",
            Refused::Out => "out",
        }
    }
}

/// [`Refused::as_str`] of every reason that is counted.
pub const REFUSALS: [&str; 5] = ["address", "no_ports", "too_long", "no_room", "own_address"];

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::Address { ip } => write!(f, "no node can have the address {ip}"),
            Refused::NoPorts => f.write_str("no open port"),
            Refused::TooLong { bytes } => {
                write!(f, "{bytes} bytes of properties, at most {ANNOUNCEMENT_BYTES_MAX}")
            }
            Refused::NoRoom => write!(f, "{NODES_MAX} nodes are known already"),
            Refused::Own { address } => write!(f, "{address} is this balancer itself"),
            Refused::Out => f.write_str("the operator has taken it out"),
        }
    }
}

impl std::error::Error for Refused {}

impl Registry {
    /// A table with the configured nodes alone; `names` as for [`Registry::configure`].
    pub fn new(now: Time, rules: Rules, names: &BTreeMap<String, Vec<IpAddr>>) -> Registry {
        let mut it = Registry {
            next_check: now + rules.heartbeat_interval,
            rules: rules.clone(),
            entries: BTreeMap::new(),
            by_ip: BTreeMap::new(),
            routes: BTreeMap::new(),
            sessions: BTreeMap::new(),
            remembered: Remembered::default(),
            switch_overs: VecDeque::new(),
            orders: Vec::new(),
            own: BTreeSet::new(),
            refusals: BTreeMap::new(),
            empty: BTreeSet::new(),
            refused: None,
            servers: Vec::new(),
            events: VecDeque::new(),
            lost: 0,
            changes: BTreeMap::new(),
            generation: 0,
            changed: true,
        };
        it.configure(now, rules, names);
        it
    }

    /// Takes over new rules and brings the configured nodes in line with them.
    ///
    /// `names` holds the addresses of every configured host that is not a literal; one without an entry
    /// is left out until the next call. Call again when a name resolves differently.
    pub fn configure(&mut self, now: Time, rules: Rules, names: &BTreeMap<String, Vec<IpAddr>>) {
        self.rules = rules;
        let Configured { servers, nodes: wanted, own } = rules::configured(&self.rules, names);
        self.changed |= self.servers != servers;
        self.servers = servers;
        let gone: Vec<NodeKey> = self
            .entries
            .iter()
            .filter(|(key, it)| {
                it.node.origin != Origin::Heartbeat
                    && !wanted
                        .iter()
                        .any(|(origin, node)| node.key() == **key && *origin == it.node.origin)
            })
            .map(|(key, _)| *key)
            .collect();
        for key in gone {
            self.remove(now, key, Removal::Unconfigured);
        }
        let mut extra = false;
        let own: BTreeMap<NodeKey, Node> = own
            .into_iter()
            .map(|(origin, it)| (it.key(), Entry::new(now, origin, it).node))
            .collect();
        for (key, node) in &own {
            if !self.own.contains(key) {
                self.tell(Event::Own { node: NodeText::of(node) });
            }
        }
        self.own = own.into_keys().collect();
        for (origin, announcement) in wanted {
            let key = announcement.key();
            let is_out = self.ordered(&announcement).is_some_and(|it| it.is_out);
            if is_out || self.entries.get(&key).is_some_and(|it| it.node.origin == origin) {
                continue;
            }
            let mut was_live = false;
            for rival in self.rivals(&announcement) {
                was_live |= self.remove(now, rival, Removal::Replaced);
            }
            if self.entries.len() >= NODES_MAX {
                let node = NodeText::of(&Entry::new(now, origin, announcement).node);
                self.tell(Event::NoRoom { node });
                continue;
            }
            self.insert(now, origin, announcement);
            extra |= origin == Origin::Extra;
            if was_live {
                self.handle_pulse(now, key, Pulse::Live);
            }
        }
        if extra {
            self.tell(Event::ExtraNodes);
        }
    }

    /// A node speaks for itself: it joins, or its entry is refreshed.
    ///
    /// Another session id than its protocol named before is another incarnation and clears graceful and
    /// bad. What other protocols say of the same node is kept beside it; a version that only one of them
    /// states counts for all. Of a configured
    /// node only flags and properties are believed: its addresses are the operator's word. A node that is
    /// not known and already leaving joins as such, since its dialogs are to find it wherever they are seen
    /// (`sip.md` 4.4 has it ignored: a balancer that started meanwhile lost them); but it takes nobody's place.
    ///
    /// # Errors
    ///
    /// [`Refused`]: the node is not believed.
    pub fn handle_announcement(
        &mut self,
        now: Time,
        announcement: Announcement,
    ) -> Result<(), Refused> {
        let heard = self.believe(now, announcement);
        if let Err(refused) = heard {
            *self.refusals.entry(refused.as_str()).or_default() += 1;
        }
        heard
    }

    fn believe(&mut self, now: Time, mut announcement: Announcement) -> Result<(), Refused> {
        self.rules.check(&announcement)?;
        if let Some(version) = self.version_elsewhere(&announcement) {
            announcement.version = version;
        }
        if self.repeats(now, &announcement) {
            return Ok(());
        }
        if self.ordered(&announcement).is_some_and(|it| it.is_out) {
            return Err(Refused::Out);
        }
        let rivals = self.rivals(&announcement);
        let configured = rivals.iter().copied().find(|key| {
            self.entries.get(key).is_some_and(|it| it.node.origin != Origin::Heartbeat)
        });
        let is_of_version = |key: &NodeKey| {
            self.entries.get(key).is_some_and(|it| it.node.version == announcement.version)
        };
        let Some(key) = configured.or_else(|| rivals.iter().copied().find(is_of_version)) else {
            if announcement.graceful && !rivals.is_empty() {
                return Ok(());
            }
            for rival in rivals {
                self.remove(now, rival, Removal::Replaced);
            }
            if self.entries.len() >= NODES_MAX {
                return Err(Refused::NoRoom);
            }
            self.insert(now, Origin::Heartbeat, announcement);
            return Ok(());
        };
        let bytes = announcement.bytes()
            + self.entries.get(&key).map_or(0, |it| it.bytes_without(announcement.source));
        if bytes > ANNOUNCEMENT_BYTES_MAX {
            return Err(Refused::TooLong { bytes });
        }
        if configured.is_none() {
            for rival in rivals.into_iter().filter(|it| *it != key) {
                self.remove(now, rival, Removal::Replaced);
            }
        }
        self.refresh(now, key, announcement);
        Ok(())
    }

    /// As [`Registry::handle_announcement`], for words that are most likely the node's last ones: then they
    /// are not copied.
    ///
    /// # Errors
    ///
    /// [`Refused`]: the node is not believed.
    pub fn handle_repeated(
        &mut self,
        now: Time,
        announcement: &Announcement,
    ) -> Result<(), Refused> {
        if self.repeats(now, announcement) {
            return Ok(());
        }
        self.handle_announcement(now, announcement.clone())
    }

    /// What a shard saw.
    ///
    /// # Errors
    ///
    /// [`Refused`]: it was an announcement and is not believed.
    pub fn handle_report(&mut self, now: Time, report: Report) -> Result<(), Refused> {
        match report {
            Report::Beat(announcement) => {
                return match self.handle_announcement(now, announcement) {
                    Err(Refused::Out) => Ok(()),
                    other => other,
                };
            }
            Report::BadBeat { from, why } => self.refuse(now, from, Disbelief::Words(why)),
            Report::Seen { node, alive, errors, requests, answered } => {
                self.edit(node, |it, rules| {
                    if alive {
                        it.handle_sign(now);
                    }
                    if answered {
                        it.handle_response(now);
                    }
                    if errors > 0 {
                        it.handle_errors(now, errors, rules);
                    }
                    if requests > 0 {
                        it.handle_requests(now, requests, rules);
                    }
                });
            }
            Report::BadResponse { node, .. } => {
                self.edit(node, |it, _| it.handle_bad_response(now));
            }
            Report::Refused { node, way } => {
                // The shard avoids it until it sees a new table, whatever stands there.
                self.changed |= self.rules.suspect_time.is_zero();
                self.edit(node, |it, rules| {
                    if !rules.suspect_time.is_zero() {
                        it.handle_refused(way, now + rules.suspect_time);
                    }
                });
            }
        }
        Ok(())
    }

    /// A life sign that comes without words. `false`: no such node.
    pub fn handle_sign(&mut self, now: Time, node: NodeKey) -> bool {
        self.edit(node, |it, _| it.handle_sign(now))
    }

    /// The node is leaving: it keeps its calls and gets no new ones. `false`: no such node.
    pub fn handle_graceful(&mut self, now: Time, node: NodeKey) -> bool {
        self.edit(node, |it, _| it.handle_leaving(now))
    }

    /// The node has stopped: it is taken out at once. `false`: no such node, or a configured one.
    pub fn handle_stop(&mut self, now: Time, node: NodeKey) -> bool {
        let ours = self.entries.get(&node).is_some_and(|it| it.node.origin != Origin::Heartbeat);
        !ours && self.remove(now, node, Removal::Stopped)
    }

    /// What probes say of a static node.
    pub fn handle_pulse(&mut self, now: Time, node: NodeKey, pulse: Pulse) {
        let Some(it) = self.entries.get_mut(&node) else { return };
        if it.node.origin != Origin::Static {
            return;
        }
        let was_live = it.is_live();
        let is_live = pulse != Pulse::Dead;
        if was_live && is_live {
            self.edit(node, |it, _| it.handle_pulse(now, true, pulse == Pulse::Full));
            return;
        }
        it.handle_pulse(now, is_live, pulse == Pulse::Full);
        match (was_live, is_live) {
            (false, true) => self.welcome(node, Source::Configured),
            (true, false) => self.bury(now, node, Removal::Unanswered),
            _ => self.miss(node),
        }
    }

    /// All calls of the node that announced `from` belong to the one that announced `to` (`sip.md` 5.8).
    /// Fails, and says so, if a route is unknown or [`NODES_MAX`] switchovers wait.
    pub fn handle_switch_over(&mut self, from: &str, to: &str) {
        let pair = self.routes.get(from).zip(self.routes.get(to)).map(|(old, new)| (old.0, new.0));
        let pair = pair.filter(|_| self.switch_overs.len() < NODES_MAX);
        let [from, to] = [from, to].map(|it| it.chars().take(ROUTE_CHARS_MAX).collect());
        self.tell(match pair {
            Some(_) => Event::Switchover { from, to },
            None => Event::SwitchoverFailed { from, to },
        });
        self.switch_overs.extend(pair);
    }

    /// The next pair for every shard's [`crate::balance::Algorithm::switch_over`]: calls of the first node
    /// belong to the second. None before shards have the table of [`Registry::snapshot`], which may be the
    /// first that names the heir: they would look for its calls' node in vain and choose another.
    pub fn poll_switch_over(&mut self) -> Option<(NodeKey, NodeKey)> {
        if self.changed {
            return None;
        }
        self.switch_overs.pop_front()
    }

    /// We have not listened for a while: the process was stopped, or its machine moved to another host.
    /// Heartbeats of that time wait unread or are lost, so that every node has its whole `nodeTimeout`
    /// anew.
    pub fn handle_stall(&mut self, now: Time) {
        self.entries.values_mut().for_each(|it| it.handle_stall(now));
    }

    /// Takes out who is silent and lifts what has lasted long enough, if it is time. Handle everything
    /// that has arrived first, and [`Registry::handle_stall`] after a time without listening.
    pub fn handle_timeout(&mut self, now: Time) {
        if now < self.next_check {
            return;
        }
        self.next_check = now + self.rules.heartbeat_interval;
        self.changed |= self.remembered.handle_timeout(now);
        self.enforce(now);
        let (mut silent, mut marked, mut fading) = (Vec::new(), Vec::new(), Vec::new());
        for (key, it) in &self.entries {
            if it.has_fading_voice(now, &self.rules) {
                fading.push(*key);
            }
            if it.is_silent(now, &self.rules) {
                silent.push((*key, it.last_sign()));
            } else if !it.node.suspect.is_empty() || it.node.bad.is_some() {
                marked.push(*key);
            }
        }
        for (key, last) in silent {
            let timeout = self.rules.node_timeout;
            self.remove(now, key, Removal::Silent { last, now, timeout });
        }
        for key in marked {
            self.edit(key, |it, rules| it.handle_timeout(now, rules));
        }
        for key in fading {
            self.forget_voices(now, key);
        }
    }

    /// When [`Registry::handle_timeout`] has something to do; `None` while there is nothing to forget.
    pub fn poll_timeout(&self) -> Option<Time> {
        let has_work =
            !self.entries.is_empty() || !self.remembered.is_empty() || self.has_deadlines();
        has_work.then_some(self.next_check)
    }

    /// The next change, oldest first. Past [`EVENTS_MAX`] undelivered ones the oldest are lost, and how
    /// many they were comes first.
    pub fn poll_event(&mut self) -> Option<Event> {
        match std::mem::take(&mut self.lost) {
            0 => self.events.pop_front(),
            events => Some(Event::Lost { events }),
        }
    }

    /// How often something happened to a node since the start: one of [`CHANGES`].
    pub fn changes(&self, change: (&'static str, &'static str)) -> u64 {
        self.changes.get(&change).copied().unwrap_or(0)
    }

    /// How many announcements were not believed since the start, for one of [`REFUSALS`].
    pub fn refusals(&self, reason: &str) -> u64 {
        self.refusals.get(reason).copied().unwrap_or(0)
    }

    /// Whether [`Registry::snapshot`] would give one.
    pub fn has_changed(&self) -> bool {
        self.changed
    }

    /// The table for shards; `None` if nothing changed since the last call. The first call always gives
    /// one. Costs a copy of every node: call it once per batch of inputs.
    pub fn snapshot(&mut self) -> Option<Snapshot> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        self.generation += 1;
        let nodes = self.live().cloned().collect();
        let addresses: Vec<SocketAddr> =
            self.remembered.iter().chain(self.servers.iter().copied()).collect();
        Some(Snapshot::new(self.generation, nodes, &addresses))
    }

    /// The record of a node.
    pub fn health(&self, now: Time, node: NodeKey) -> Option<Health> {
        self.entries.get(&node).map(|it| it.health(now, &self.rules))
    }

    /// The node that these words are about, unless they name another incarnation of it than the one that
    /// is known, or another version where one of them names none: a late stop of a dead process must not
    /// take out its successor.
    pub fn find(&self, announcement: &Announcement) -> Option<NodeKey> {
        let key = self.rivals(announcement).first().copied()?;
        let entry = self.entries.get(&key)?;
        let is_it = match (announcement.session.as_deref(), entry.session(announcement.source)) {
            (Some(theirs), Some(ours)) => theirs == ours,
            _ => !announcement.states_version() || announcement.version == entry.node.version,
        };
        is_it.then_some(key)
    }

    /// The nodes to probe: address and transport of each static node, down or not.
    pub fn probed(&self) -> impl Iterator<Item = (NodeKey, SocketAddr, Transport)> + '_ {
        self.entries.values().filter(|it| it.node.origin == Origin::Static).filter_map(|it| {
            let (transport, port) = it.node.ports.iter().next()?;
            Some((it.node.key, SocketAddr::new(it.node.ip, port), transport))
        })
    }

    /// Static nodes that do not answer probes.
    pub fn down(&self) -> impl Iterator<Item = &Node> + '_ {
        self.entries.values().filter(|it| !it.is_live()).map(|it| &it.node)
    }

    /// Every live node.
    pub fn live(&self) -> impl Iterator<Item = &Node> + '_ {
        self.entries.values().filter(|it| it.is_live()).map(|it| &it.node)
    }
}

/// Checks on entry (`http-smpp-registry.md` 3.1).
fn check(announcement: &Announcement) -> Result<(), Refused> {
    let ip = announcement.ip;
    if ip.is_unspecified() || ip.is_multicast() || ip == std::net::Ipv4Addr::BROADCAST {
        return Err(Refused::Address { ip });
    }
    let services = announcement::services(&announcement.properties);
    if announcement
        .ports
        .iter()
        .map(|(_, port)| port)
        .chain(services.map(|it| it.1))
        .all(|it| it == 0)
    {
        return Err(Refused::NoPorts);
    }
    let bytes = announcement.bytes();
    if bytes > ANNOUNCEMENT_BYTES_MAX {
        return Err(Refused::TooLong { bytes });
    }
    Ok(())
}

/// Undelivered events: one of each node. The control executor fetches them after every input, and one
/// input, such as the expiry of all nodes of a site, is never more.
pub const EVENTS_MAX: usize = NODES_MAX;

/// As much of an unknown `jvmRoute` as a log line shows.
const ROUTE_CHARS_MAX: usize = 64;

#[cfg(test)]
mod protocols_tests;
#[cfg(test)]
mod tests;
