//! What a shard asks of the layer above: `engine::relay::sip::Relay`, or a few lines in a test.

use std::net::SocketAddr;
use std::sync::Arc;

use engine::names::{Answer, Query, Unresolved};
use engine::node::{NodeKey, Way};
use engine::relay::sip::{Relay, Settings};
use engine::relay::{Arrival, DropReason, Failure, Report, Verdict};
use engine::snapshot::Snapshot;
use engine::stats::Counters;
use protocols::sip::Transport;
use protocols::time::Time;

/// The decision layer of one shard. Methods mean what those of the same name mean there.
pub trait Decide: Send + 'static {
    /// What the configuration tells it.
    type Settings: Send + Sync + 'static;
    /// What it counts.
    type Counters: Clone + Send + 'static;
    /// A name that it wants resolved.
    type Name: Clone + Eq + Send + 'static;
    /// What the resolver says to that.
    type Answer: Send + 'static;

    /// Decides one message. Clears `out`, then writes what to send. Counts its own drops.
    fn handle(
        &mut self,
        arrival: &Arrival,
        bytes: &[u8],
        snapshot: &Snapshot,
        out: &mut Vec<u8>,
    ) -> Verdict;

    /// Decides a message again whose name has been asked after. Counts its own drops.
    fn resume(
        &mut self,
        arrival: &Arrival,
        bytes: &[u8],
        snapshot: &Snapshot,
        out: &mut Vec<u8>,
    ) -> Verdict {
        self.handle(arrival, bytes, snapshot, out)
    }

    /// Decides a message again that could not be delivered. Counts its own drops.
    fn undelivered(
        &mut self,
        arrival: &Arrival,
        bytes: &[u8],
        failed: Failure,
        snapshot: &Snapshot,
        out: &mut Vec<u8>,
    ) -> Verdict;

    /// An address refused something: the node there, if it is one, and the way that it is suspect on. It is
    /// reported to the control side.
    fn refused(
        &mut self,
        address: SocketAddr,
        transport: Transport,
        snapshot: &Snapshot,
    ) -> Option<(NodeKey, Way)>;

    /// A new node table is in force.
    fn handle_snapshot(&mut self, snapshot: &Snapshot);

    /// Takes new settings over.
    fn configure(&mut self, settings: Arc<Self::Settings>);

    /// The name that the last [`Verdict::Resolve`] waits for.
    fn wanted_name(&mut self) -> Option<Self::Name>;

    /// A name that is in use and soon too old to be.
    fn poll_aging_name(&mut self, now: Time) -> Option<Self::Name>;

    /// The resolver's answer.
    fn handle_name(&mut self, now: Time, name: Self::Name, answer: Self::Answer);

    /// What the control side must hear now, paced by the relay.
    fn poll_report(&mut self, now: Time, snapshot: &Snapshot) -> Option<Report>;

    /// Calls of the first node belong to the second from now on.
    fn switch_over(&mut self, from: NodeKey, to: NodeKey);

    /// Counts a message that the shard, not the relay, dropped.
    fn dropped(&mut self, reason: DropReason);

    /// The counters, brought up to date. `is_stopping`: the process is about to end.
    fn counters(&mut self, now: Time, snapshot: &Snapshot, is_stopping: bool) -> &Self::Counters;
}

impl Decide for Relay {
    type Settings = Settings;
    type Counters = Counters;
    type Name = Query;
    type Answer = Result<Answer, Unresolved>;

    #[inline]
    fn handle(
        &mut self,
        arrival: &Arrival,
        bytes: &[u8],
        snapshot: &Snapshot,
        out: &mut Vec<u8>,
    ) -> Verdict {
        Relay::handle(self, arrival, bytes, snapshot, out)
    }

    fn resume(
        &mut self,
        arrival: &Arrival,
        bytes: &[u8],
        snapshot: &Snapshot,
        out: &mut Vec<u8>,
    ) -> Verdict {
        Relay::resume(self, arrival, bytes, snapshot, out)
    }

    fn undelivered(
        &mut self,
        arrival: &Arrival,
        bytes: &[u8],
        failed: Failure,
        snapshot: &Snapshot,
        out: &mut Vec<u8>,
    ) -> Verdict {
        Relay::undelivered(self, arrival, bytes, failed, snapshot, out)
    }

    fn refused(
        &mut self,
        address: SocketAddr,
        transport: Transport,
        snapshot: &Snapshot,
    ) -> Option<(NodeKey, Way)> {
        Relay::refused(self, address, transport, snapshot)
    }

    fn handle_snapshot(&mut self, snapshot: &Snapshot) {
        Relay::handle_snapshot(self, snapshot);
    }

    fn configure(&mut self, settings: Arc<Settings>) {
        // Views also change for the node table alone, many times as often.
        if !Arc::ptr_eq(Relay::settings(self), &settings) {
            Relay::configure(self, settings);
        }
    }

    fn wanted_name(&mut self) -> Option<Query> {
        Relay::wanted_name(self)
    }

    fn poll_aging_name(&mut self, now: Time) -> Option<Query> {
        Relay::poll_aging_name(self, now)
    }

    fn handle_name(&mut self, now: Time, name: Query, answer: Self::Answer) {
        Relay::handle_name(self, now, name, answer);
    }

    #[inline]
    fn poll_report(&mut self, now: Time, snapshot: &Snapshot) -> Option<Report> {
        Relay::poll_report(self, now, snapshot)
    }

    fn switch_over(&mut self, from: NodeKey, to: NodeKey) {
        Relay::switch_over(self, from, to);
    }

    fn dropped(&mut self, reason: DropReason) {
        Relay::dropped(self, reason);
    }

    fn counters(&mut self, now: Time, snapshot: &Snapshot, is_stopping: bool) -> &Counters {
        Relay::counters(self, now, snapshot, is_stopping)
    }
}
