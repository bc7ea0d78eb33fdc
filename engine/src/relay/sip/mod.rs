//! The SIP relay: one message in, one verdict out (`sip.md` 2).
//!
//! Stateless but for what the balancing algorithm remembers. Reads RFC 3261 §16 (proxy behaviour,
//! §16.11 stateless), RFC 3581 (rport), RFC 5658 (double Record-Route). Headers that are not ours leave
//! byte for byte as they came.

mod answer;
mod calls;
mod contact;
mod explain;
mod flow;
mod head;
mod inwards;
mod names;
mod next_hop;
mod outwards;
mod rate;
mod request;
mod response;
mod routes;
pub(super) mod seen;
mod settings;
mod via;
mod words;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;

use protocols::bytes::Edits;
use protocols::sip::Transport;
use protocols::sip::message::{Malformed, Message, Method, Start};
use protocols::time::Time;

pub use self::explain::{Explanation, explain};
pub use self::names::NameCache;
pub use self::settings::{Place, Settings};

use self::calls::Calls;
use self::explain::Trace;
use self::rate::Rates;
use self::seen::Sightings;
use self::via::TopVia;
use crate::balance::{self, Algorithm, Shard};
use crate::config::AffinityKey;
use crate::names::{Answer, Query, Unresolved};
use crate::node::{NodeKey, Way};
use crate::relay::{Again, Arrival, DropReason, Failure, Hop, Leg, Report, Verdict};
use crate::snapshot::{Family, Snapshot};
use crate::stats::Counters;

/// One shard's SIP relay.
///
/// Owns the algorithm's memory, the counters and reusable buffers; shares nothing. Feed it every
/// datagram and every framed message through [`Relay::handle`] and do what the verdict says.
pub struct Relay {
    settings: Arc<Settings>,
    shard: Shard,
    state: State,
}

/// What deciding changes. Apart from the settings, so that both can be borrowed at once: their count of
/// owners is shared by all shards, and must not be touched for each message.
struct State {
    algorithm: Box<dyn Algorithm>,
    calls: Calls,
    counters: Counters,
    sightings: Sightings,
    names: NameCache,
    wanted: Option<Query>,
    /// Which time the message at hand is decided.
    attempt: Attempt,
    /// Our answer to the message at hand, to be counted if it is sent.
    answered: Option<(u16, Leg, Transport)>,
    /// The last name looked up; reused.
    asked: Query,
    rates: Rates,
    buffers: Buffers,
}

/// Reused from message to message, so that none allocates.
#[derive(Default)]
struct Buffers {
    edits: Edits,
    /// The top Via with received and rport as they must be; empty if it may stay as it came.
    via: Vec<u8>,
    /// Header lines of ours, in wire order.
    head: Vec<u8>,
    /// A URI being rewritten.
    uri: Vec<u8>,
    /// To tag of our own answers.
    tag: Vec<u8>,
}

/// One parsed message with what is known of its arrival.
struct Incoming<'a> {
    arrival: &'a Arrival,
    leg: Leg,
    transport: Transport,
    family: Family,
    message: &'a Message<'a>,
    via: TopVia<'a>,
    snapshot: &'a Snapshot,
}

/// How often a message has been decided: what it costs and counts, it costs and counts once.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Attempt {
    /// It has just come.
    First,
    /// The name that it waited for has been asked after.
    Resolved,
    /// It did not reach its next hop.
    Undelivered,
}

impl Relay {
    /// A relay for one shard.
    pub fn new(settings: Arc<Settings>, shard: Shard) -> Relay {
        let state = State {
            algorithm: balance::build(&settings.config, shard),
            calls: Calls::new(&settings.config),
            rates: Rates::new(&settings.config),
            counters: Counters::default(),
            sightings: Sightings::default(),
            names: NameCache::default(),
            wanted: None,
            attempt: Attempt::First,
            answered: None,
            asked: Query { host: String::new(), port: None, transport: None, sips: false },
            buffers: Buffers::default(),
        };
        Relay { settings, shard, state }
    }

    /// Takes new settings over between two messages. What the algorithm remembers stays unless another
    /// one is configured.
    pub fn configure(&mut self, settings: Arc<Settings>) {
        if self.settings.config.algorithm == settings.config.algorithm {
            self.state.algorithm.configure(&settings.config);
        } else {
            self.state.algorithm = balance::build(&settings.config, self.shard);
        }
        self.state.calls.configure(&settings.config);
        self.state.rates = Rates::new(&settings.config);
        self.settings = settings;
    }

    /// The settings in force.
    pub fn settings(&self) -> &Arc<Settings> {
        &self.settings
    }

    /// Decides one message: a datagram, or one framed message of a stream.
    ///
    /// Clears `out`, then writes what to send; never allocates once buffers have grown. The same bytes
    /// from the same place give the same decision as long as snapshot and algorithm memory are equal.
    pub fn handle(
        &mut self,
        arrival: &Arrival,
        bytes: &[u8],
        snapshot: &Snapshot,
        out: &mut Vec<u8>,
    ) -> Verdict {
        self.attempt(Attempt::First, arrival, bytes, snapshot, out)
    }

    /// Decides a message again that a [`Verdict::Resolve`] put off.
    pub fn resume(
        &mut self,
        arrival: &Arrival,
        bytes: &[u8],
        snapshot: &Snapshot,
        out: &mut Vec<u8>,
    ) -> Verdict {
        self.attempt(Attempt::Resolved, arrival, bytes, snapshot, out)
    }

    fn attempt(
        &mut self,
        attempt: Attempt,
        arrival: &Arrival,
        bytes: &[u8],
        snapshot: &Snapshot,
        out: &mut Vec<u8>,
    ) -> Verdict {
        let verdict = self.decide(attempt, arrival, bytes, snapshot, out, &mut ());
        self.state.count(verdict);
        verdict
    }

    /// Decides a message again that did not reach its hop: another node if there is one (mark one that is
    /// dead suspect in `snapshot` first), else our 503 (`sip.md` 2.10, 5.1). A node that has too much to
    /// read keeps its dialogs, and only what opens one looks for another; one that closed an idle connection
    /// keeps everything.
    pub fn undelivered(
        &mut self,
        arrival: &Arrival,
        bytes: &[u8],
        failed: Failure,
        snapshot: &Snapshot,
        out: &mut Vec<u8>,
    ) -> Verdict {
        let found = match failed.again {
            Again::Nowhere => None,
            Again::Elsewhere | Again::Anywhere => {
                self.other_way(arrival, bytes, failed, snapshot, out)
            }
        };
        let verdict = found.unwrap_or_else(|| {
            self.state.unreachable(&self.settings, arrival, bytes, failed, snapshot, out)
        });
        self.state.count(verdict);
        verdict
    }

    /// The decision on a message that has failed once; `None`: nobody is there to take it.
    fn other_way(
        &mut self,
        arrival: &Arrival,
        bytes: &[u8],
        failed: Failure,
        snapshot: &Snapshot,
        out: &mut Vec<u8>,
    ) -> Option<Verdict> {
        let hop = failed.hop?;
        let transport = self.settings.transport_of(hop).unwrap_or(Transport::Udp);
        let others = without_slow(failed, transport, bytes, snapshot);
        let others = others.as_ref().unwrap_or(snapshot);
        let is_barred = failed.again == Again::Elsewhere;
        if is_barred {
            self.state.names.demote(hop);
        }
        match self.decide(Attempt::Undelivered, arrival, bytes, others, out, &mut ()) {
            Verdict::Forward { hop: next, .. } if is_barred && target(next) == target(hop) => None,
            // Nobody else is there: the truth is that it could not be delivered.
            Verdict::Reply { .. } => None,
            other => Some(other),
        }
    }

    /// The live node at an address that just refused something, and where it did. Mark it suspect there,
    /// and let the control executor know through [`Relay::poll_report`].
    ///
    /// `None`: there is none, or control, who must lift it again, would not hear of it.
    pub fn refused(
        &mut self,
        address: SocketAddr,
        transport: Transport,
        snapshot: &Snapshot,
    ) -> Option<(NodeKey, Way)> {
        let node = snapshot.at(address, Some(transport), None)?;
        let (key, way) = (snapshot.node(node).key, Way::Sip(transport));
        self.state.sightings.refused(key, way).then_some((key, way))
    }

    /// A new node table is in force: calls follow nodes that have another identity now; what was counted of
    /// nodes that are gone for long is forgotten.
    pub fn handle_snapshot(&mut self, snapshot: &Snapshot) {
        for (old, new) in snapshot.renamed() {
            self.switch_over(old, new);
        }
        self.state.counters.forget_dead(snapshot);
    }

    /// Name that the last [`Verdict::Resolve`] waits for.
    pub fn wanted_name(&mut self) -> Option<Query> {
        self.state.wanted.take()
    }

    /// A name that is in use and soon too old to be: to be asked for again meanwhile.
    pub fn poll_aging_name(&mut self, now: Time) -> Option<Query> {
        self.state.names.poll_aging(now)
    }

    /// The resolver's answer; handle the waiting bytes again afterwards.
    pub fn handle_name(&mut self, now: Time, query: Query, answer: Result<Answer, Unresolved>) {
        self.state.names.insert(now, query, answer);
    }

    /// What the control executor must hear. Heartbeats and refusals come at once, sightings at most
    /// every [`seen::PERIOD`].
    pub fn poll_report(&mut self, now: Time, snapshot: &Snapshot) -> Option<Report> {
        self.state.sightings.poll(now, snapshot)
    }

    /// Calls of the first node belong to the second from now on (`sip.md` 5.8).
    pub fn switch_over(&mut self, from: NodeKey, to: NodeKey) {
        self.state.algorithm.switch_over(from, to);
        self.state.calls.switch_over(from, to);
    }

    /// Counts a message that was dropped outside.
    pub fn dropped(&mut self, reason: DropReason) {
        self.state.counters.dropped(reason);
    }

    /// This shard's counters, brought up to date. Calls that are up are counted where somebody waits for
    /// their end: on nodes that are to get no new ones, and on all when the process stops.
    pub fn counters(&mut self, now: Time, snapshot: &Snapshot, is_stopping: bool) -> &Counters {
        let State { counters, algorithm, calls, .. } = &mut self.state;
        counters.remembered_calls(algorithm.active_calls());
        counters.remembered_by_node = algorithm.calls_by_node();
        let leaving = snapshot.nodes().iter().filter(|it| is_stopping || it.graceful);
        counters.calls_up = leaving.map(|it| (it.key, calls.of(now, it.key))).collect();
        counters
    }

    fn decide<T: Trace>(
        &mut self,
        attempt: Attempt,
        arrival: &Arrival,
        bytes: &[u8],
        snapshot: &Snapshot,
        out: &mut Vec<u8>,
        trace: &mut T,
    ) -> Verdict {
        self.state.attempt = attempt;
        self.state.decide(&self.settings, arrival, bytes, snapshot, out, trace)
    }
}

impl State {
    /// Counts what became of a message, beside what it was.
    fn count(&mut self, verdict: Verdict) {
        match (verdict, self.answered.take()) {
            (Verdict::Drop(reason), _) => self.counters.dropped(reason),
            (Verdict::Reply { .. }, Some((status, leg, transport))) => {
                self.counters.response(status, leg, transport, 0);
            }
            _ => {}
        }
    }

    fn decide<T: Trace>(
        &mut self,
        settings: &Settings,
        arrival: &Arrival,
        bytes: &[u8],
        snapshot: &Snapshot,
        out: &mut Vec<u8>,
        trace: &mut T,
    ) -> Verdict {
        out.clear();
        self.buffers.edits.clear();
        self.buffers.via.clear();
        self.buffers.head.clear();
        if bytes.iter().all(|it| matches!(it, b'\r' | b'\n' | 0)) {
            return self.keep_alive(arrival, out);
        }
        if bytes.len() > settings.config.message_bytes_max {
            return self.refuse_malformed(
                settings,
                arrival,
                bytes,
                Malformed::TooLarge { bytes: bytes.len() },
                out,
            );
        }
        let custom = match &settings.config.affinity_key {
            AffinityKey::Header(name) => Some(name.as_bytes()),
            _ => None,
        };
        let message = match Message::parse(bytes, custom) {
            Ok(message) => message,
            Err(malformed) => {
                return self.refuse_malformed(settings, arrival, bytes, malformed, out);
            }
        };
        let listener = settings.listener(arrival.listener);
        let incoming = Incoming {
            arrival,
            leg: listener.leg,
            transport: listener.transport,
            family: Family::of(arrival.source.ip()),
            message: &message,
            via: TopVia::of(&message),
            snapshot,
        };
        match message.start {
            Start::Request { method, .. } => self.request(settings, &incoming, method, out, trace),
            Start::Response { status, .. } => {
                if self.attempt == Attempt::First {
                    let Incoming { leg, transport, .. } = incoming;
                    self.counters.response(status, leg, transport, message.body.len());
                }
                self.response(settings, &incoming, status, out, trace)
            }
        }
    }

    /// UDP keep-alives are answered only on request of the configuration (`sip.md` 2.13); streams answer
    /// pings where they frame.
    fn keep_alive(&mut self, arrival: &Arrival, out: &mut Vec<u8>) -> Verdict {
        if arrival.flow.is_none() && self.rates.may_answer_keep_alive(arrival.now, arrival.source) {
            out.extend_from_slice(b"\r\n\r\n");
            let hop = Hop::Datagram { from: arrival.listener, to: arrival.source };
            return Verdict::Reply { hop };
        }
        Verdict::Drop(DropReason::KeepAlive)
    }
}

/// The nodes without one that has too much to read already, for what opens a dialog.
fn without_slow(
    failed: Failure,
    transport: Transport,
    bytes: &[u8],
    snapshot: &Snapshot,
) -> Option<Snapshot> {
    if failed.reason != DropReason::SlowPeer {
        return None;
    }
    let node = snapshot.node(snapshot.at(target(failed.hop?)?, Some(transport), None)?).key;
    let message = Message::parse(bytes, None).ok()?;
    let is_first = message.is_request()
        && message.to_tag().is_none()
        && !matches!(message.method(), Method::Ack | Method::Cancel);
    is_first.then(|| snapshot.suspecting(node, Way::Sip(transport)))
}

/// Address that a hop leads to, as far as it is known.
fn target(hop: Hop) -> Option<SocketAddr> {
    match hop {
        Hop::Datagram { to, .. } | Hop::Stream { to, .. } => Some(to),
        Hop::Flow { or, .. } => or.map(|(_, to)| to),
    }
}
