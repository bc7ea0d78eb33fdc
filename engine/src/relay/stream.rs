//! What relays of stream protocols (HTTP, SMPP) share with the shards: numbered connections, and the wire
//! that bytes leave by.
//!
//! The relay numbers connections, both those that clients opened and those that it asks for. It never
//! blocks and holds no sockets: what it wants done it tells a [`Wire`] at once, so that bytes move from
//! the shard's receive buffer to the other side's socket without being kept in between.

use std::net::{IpAddr, SocketAddr};

use protocols::time::Time;

use crate::snapshot::Snapshot;

/// One connection of one relay on one shard. A number is not used again while anyone may still mean the
/// old one.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Conn {
    /// The relay's slot.
    pub slot: u32,
    /// Incarnation of the slot.
    pub generation: u32,
}

/// What a shard hands a stream relay. `wire` takes what the relay wants done.
pub trait StreamRelay {
    /// A client connected to the relay's listener number `listener`. `None`: refused, close it; the relay
    /// has counted why.
    fn handle_open(
        &mut self,
        now: Time,
        listener: usize,
        source: SocketAddr,
        wire: &mut impl Wire,
    ) -> Option<Conn>;

    /// What the relay asked for by [`Wire::connect`] is there, TLS handshake included.
    fn handle_connected(&mut self, now: Time, conn: Conn, wire: &mut impl Wire);

    /// Everything received on a connection and not consumed yet. Returns how much is consumed now; the
    /// rest is offered again together with what comes next. At most [`UNCONSUMED_BYTES_MAX`] are kept:
    /// a relay must consume or close before that.
    fn handle_bytes(
        &mut self,
        now: Time,
        conn: Conn,
        bytes: &[u8],
        snapshot: &Snapshot,
        wire: &mut impl Wire,
    ) -> usize;

    /// The peer will send no more; it may still read.
    fn handle_end(&mut self, now: Time, conn: Conn, snapshot: &Snapshot, wire: &mut impl Wire);

    /// The connection is gone, or never came to be: forget it. Not called for what the relay closed.
    fn handle_gone(
        &mut self,
        now: Time,
        conn: Conn,
        why: Gone,
        snapshot: &Snapshot,
        wire: &mut impl Wire,
    );

    /// The queue towards `conn` has drained below half of its bound after [`Wire::send`] said full.
    fn handle_drained(&mut self, now: Time, conn: Conn, wire: &mut impl Wire);

    /// When [`StreamRelay::handle_timeout`] must be called; `None`: nothing is timed.
    fn poll_timeout(&self) -> Option<Time>;

    /// Asked after [`StreamRelay::handle_bytes`]: the connection that must go on at another shard. This relay
    /// has forgotten it; there it is opened anew, and offered what was not consumed here.
    fn poll_handover(&mut self) -> Option<Handover> {
        None
    }

    /// Time has come.
    fn handle_timeout(&mut self, now: Time, snapshot: &Snapshot, wire: &mut impl Wire);
}

/// A connection that moves to another shard.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Handover {
    /// Its number here, not in use any more.
    pub conn: Conn,
    /// Where it goes on, from 0.
    pub shard: usize,
}

/// Where bytes and wishes go: a shard's sockets, or a recorder in a test.
pub trait Wire {
    /// Sends on a connection, in order, behind what is queued. Ignored if the connection is gone.
    fn send(&mut self, conn: Conn, bytes: &[u8]) -> Room;

    /// As [`Wire::send`], bytes that lie in two places.
    fn send_parts(&mut self, conn: Conn, [first, second]: [&[u8]; 2]) -> Room {
        let room = self.send(conn, first);
        if second.is_empty() { room } else { self.send(conn, second) }
    }

    /// Bytes that have left on a connection since it was opened, as they are on the wire. Known until
    /// [`StreamRelay::handle_gone`] has returned; after that 0.
    fn sent_bytes(&mut self, conn: Conn) -> u64;

    /// Opens a connection to `to` under the number `conn`, which the relay has chosen. Sending is allowed
    /// at once and is queued.
    fn connect(&mut self, conn: Conn, to: SocketAddr, secure: Secure);

    /// Stops reading from a connection until [`Wire::resume`]: the peer will feel it. What was received
    /// and not consumed is kept, and not offered either.
    fn pause(&mut self, conn: Conn);

    /// Reads again. What was received and not consumed is offered again even if nothing new comes, once
    /// the relay has returned: a pipelined request waits there for its turn.
    fn resume(&mut self, conn: Conn);

    /// Counts the connection, which a client opened, for `source`, of all shards together; `false`: it has
    /// `most` already. What it was counted for before is forgotten.
    fn count_for(&mut self, conn: Conn, source: IpAddr, most: usize) -> bool;

    /// From the first byte that is not consumed the client speaks TLS. What it says inside is offered as ever.
    fn secure(&mut self, conn: Conn);

    /// Sends what is queued, then says that no more will come (half-close).
    fn end(&mut self, conn: Conn);

    /// Sends what is queued, then closes. No more events for this number.
    fn close(&mut self, conn: Conn);

    /// As [`Wire::close`], where the peer has promised to say no more (`Connection: close`): its end is not
    /// waited for.
    fn hang_up(&mut self, conn: Conn);

    /// Closes at once with a reset: the peer must not take what it has for complete.
    fn abort(&mut self, conn: Conn);
}

/// Whether a connection's queue takes more.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Room {
    /// Go on.
    Free,
    /// The bytes are queued, and that is enough: stop reading what feeds it until
    /// [`StreamRelay::handle_drained`].
    Full,
}

/// Whether a connection towards a server is inside TLS.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Secure {
    /// Plain TCP.
    No,
    /// TLS with the client configuration of the process.
    Tls,
}

/// Why a connection is gone.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Gone {
    /// Nobody listens there.
    Refused,
    /// This process cannot open another connection: it has no descriptor, no port, or no certificate. Says
    /// nothing of the peer.
    Shortage,
    /// It could not be opened in time.
    ConnectTimeout,
    /// The TLS handshake failed.
    Handshake,
    /// Reset by the peer or the network.
    Reset,
    /// The peer did not read and its queue overflowed.
    Slow,
    /// The process stops.
    Stopping,
}

/// Bytes that a shard keeps for a relay that has not consumed them: a head, a PDU, never a body.
pub const UNCONSUMED_BYTES_MAX: usize = 128 * 1024;
