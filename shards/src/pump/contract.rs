//! What a pump asks of its relay, and a shard of its pumps.

use std::io;
use std::sync::Arc;

use engine::relay::Report;
use engine::relay::stream::{StreamRelay, Wire};
use engine::snapshot::Snapshot;
use protocols::time::Time;

use super::lines::Line;
use crate::census::Full;
use crate::publish::Tuning;
use crate::sys::Epoll;
use crate::tls::Security;

/// A stream relay as a pump drives it. Methods mean what those of the same name mean there.
pub trait Driven: StreamRelay + Send + 'static {
    /// What the configuration tells it.
    type Settings: Send + Sync + 'static;
    /// What it counts.
    type Counters: Clone + Default + Send + 'static;

    /// Takes new settings over, between two events.
    fn configure(
        &mut self,
        now: Time,
        settings: &Arc<Self::Settings>,
        snapshot: &Snapshot,
        wire: &mut impl Wire,
    );

    /// Most connections that one source may open; 0 is any number.
    fn source_connections_max(&self) -> usize;

    /// Clients say something in clear before TLS begins: see [`Wire::secure`].
    fn reads_preface(&self) -> bool {
        false
    }

    /// A client was not let in.
    fn refused(&mut self, why: Full);

    /// A new node table is in force.
    fn handle_snapshot(&mut self, now: Time, snapshot: &Snapshot, wire: &mut impl Wire);

    /// The process is about to stop: no new connections.
    fn handle_stopping(&mut self, now: Time, wire: &mut impl Wire);

    /// The process ends now, and every connection with it: aborts those whose peers must not take what
    /// they have for complete.
    fn handle_over(&mut self, _wire: &mut impl Wire) {}

    /// What the control side must hear now, paced by the relay.
    fn poll_report(&mut self, now: Time, snapshot: &Snapshot) -> Option<Report>;

    /// The counters, brought up to date.
    fn counters(&mut self) -> Self::Counters;
}

/// What a pump counts about its connections.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct PumpFigures {
    /// Connections refused for lack of room.
    pub refused: u64,
    /// TLS handshakes that succeeded, either way.
    pub tls_handshakes: u64,
    /// TLS handshakes that failed or took too long, and records that could not be read.
    pub tls_failed: u64,
    /// How often nobody could be taken in for want of descriptors or memory.
    pub shortages: u64,
    /// Events over which the relay panicked; the connection went, if it was one's.
    pub panics: u64,
}

/// A connection on its way to another shard.
pub struct Moved {
    pub(super) listener: u8,
    pub(super) line: Line,
}

impl std::fmt::Debug for Moved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "connection of {}", self.line.peer)
    }
}

/// What a shard lends its pumps.
pub struct Lent<'s> {
    /// The moment.
    pub(crate) now: Time,
    /// The shard's set.
    pub(crate) epoll: &'s Epoll,
    /// For reading.
    pub(crate) scratch: &'s mut Vec<u8>,
    /// For decrypting.
    pub(crate) clear: &'s mut Vec<u8>,
    /// Certificates and terms of TLS.
    pub(crate) security: Option<&'s Security>,
    /// Limits.
    pub(crate) tuning: Tuning,
}

/// A pump of any relay, as a shard holds it.
pub trait Pumped: Send {
    /// Watches its listeners. `token`: bits that all of its tokens have, the lower 56 are its own.
    ///
    /// # Errors
    ///
    /// The kernel's: out of descriptors or memory.
    fn watch(&mut self, epoll: &Epoll, token: u64) -> io::Result<()>;

    /// An event with a token of its own.
    fn handle_event(&mut self, lent: &mut Lent<'_>, token: u64, flags: u32);

    /// A new node table is in force.
    fn handle_snapshot(&mut self, lent: &mut Lent<'_>, snapshot: &Arc<Snapshot>);

    /// The process stops: no new connections.
    fn handle_stopping(&mut self, lent: &mut Lent<'_>);

    /// The process ends now: its connections are closed next.
    fn handle_over(&mut self, lent: &mut Lent<'_>);

    /// A connection that another shard gave away.
    fn handle_moved(&mut self, lent: &mut Lent<'_>, moved: Box<Moved>);

    /// Does what is due and sends what is queued. Once in each turn, after the events; returns how many
    /// writes left.
    fn handle_turn(&mut self, lent: &mut Lent<'_>) -> u64;

    /// When it must have its turn.
    fn poll_timeout(&self) -> Option<Time>;

    /// It has work that waits for no event.
    fn has_work(&self) -> bool;

    /// What the control side must hear.
    fn poll_report(&mut self, now: Time) -> Option<Report>;

    /// A connection that goes on at another shard.
    fn poll_leaving(&mut self) -> Option<(usize, Box<Moved>)>;

    /// Shows its counters; returns its figures.
    fn show(&mut self) -> PumpFigures;
}
