//! Relays: one state machine per protocol. This file has what they share with the shards.

pub mod http;
mod listeners;
pub mod sip;
pub mod smpp;
pub mod stream;

use std::net::{IpAddr, SocketAddr};

use protocols::sip::Transport;
use protocols::time::Time;

pub use self::listeners::listeners;
use crate::node::{NodeKey, Way};

/// Which side of the balancer (`sip.md` 0).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
pub enum Leg {
    /// Clients and carriers. In single-entry mode the only one.
    External,
    /// Nodes.
    Internal,
}

/// Position in the process's list of listeners; the same on every shard.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ListenerId(pub u8);

/// One listening address of SIP. Each shard has its own socket for each.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Listener {
    /// Side it serves.
    pub leg: Leg,
    /// What is spoken there.
    pub transport: Transport,
    /// Bound address.
    pub address: SocketAddr,
}

/// A stream connection, wherever it lives: written into the flow token.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Flow {
    /// Shard that owns the connection.
    pub shard: u8,
    /// Its slot there.
    pub slot: u32,
    /// Incarnation of the slot.
    pub generation: u32,
}

/// Where one message came from.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// When.
    pub now: Time,
    /// On which listener; for connections that we opened, the listener of their leg and transport.
    pub listener: ListenerId,
    /// Sender of the datagram, or peer of the connection.
    pub source: SocketAddr,
    /// The connection, on stream transports.
    pub flow: Option<Flow>,
}

/// Where to send, and by what.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Hop {
    /// One datagram from a listener's socket.
    Datagram {
        /// Socket to send from.
        from: ListenerId,
        /// Receiver.
        to: SocketAddr,
    },
    /// On exactly this connection and no other; it may live on another shard.
    Flow {
        /// The connection.
        flow: Flow,
        /// Where to connect if it is gone; `None`: the peer cannot be called.
        or: Option<(ListenerId, SocketAddr)>,
        /// It is a response: a peer that has closed its own side may still want it. A request needs a
        /// peer that can answer.
        is_response: bool,
    },
    /// On the shard's connection to `to`, opened if there is none.
    Stream {
        /// Leg and transport that the connection belongs to.
        from: ListenerId,
        /// Peer.
        to: SocketAddr,
    },
}

/// A message that did not reach its next hop.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Failure {
    /// Where it was to go; `None`: its next hop's name was never resolved.
    pub hop: Option<Hop>,
    /// Why it did not get there: [`DropReason::ConnectionGone`], [`DropReason::Unresolved`], or a queue on
    /// the way is full.
    pub reason: DropReason,
    /// Where it may still go.
    pub again: Again,
}

/// Where a message may go that did not reach its next hop.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Again {
    /// Also to where it was to go: a connection that had stood idle was closed before anything left, which
    /// says nothing of the peer.
    Anywhere,
    /// To anyone but that one.
    Elsewhere,
    /// To nobody: it was tried often enough.
    Nowhere,
}

/// What to do with one message. The bytes are in `out`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// `out` goes to `hop`, but for our own reply in front of it.
    Forward {
        /// Next hop.
        hop: Hop,
        /// It is a request: one that its next hop refuses may go another way.
        is_request: bool,
        /// Our 100, in front; usually none.
        reply: Option<Provisional>,
    },
    /// `out` goes to this hop: our own answer.
    Reply {
        /// Where the answer goes.
        hop: Hop,
    },
    /// The next hop is a name that is not in the cache: resolve [`crate::relay::sip::Relay`]'s pending
    /// name, then handle the same bytes again.
    Resolve,
    /// Nothing is sent.
    Drop(DropReason),
}

/// A provisional reply of our own, in front of the message that goes on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Provisional {
    /// Its length.
    pub bytes: usize,
    /// Where it goes.
    pub hop: Hop,
}

/// Every way to say nothing. Counted by reason; a drop is never silent to the operator.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(u8)]
pub enum DropReason {
    /// Not SIP, or beyond repair and without the headers that an answer needs.
    Malformed,
    /// Empty datagram or CRLF keep-alive.
    KeepAlive,
    /// User-Agent, From or To has a blocked value.
    Blocked,
    /// No live node and the request may not be answered (ACK).
    NoNode,
    /// The next hop is this balancer and the request may not be answered (ACK).
    Loop,
    /// Max-Forwards ran out on a request that may not be answered (ACK).
    MaxForwards,
    /// A response whose top Via is not ours (RFC 3261 §18.1.2).
    NotOurs,
    /// A response with nobody left to send it to.
    NoVia,
    /// No listener of that leg, transport and family to send from.
    NoListener,
    /// The next hop's name does not resolve.
    Unresolved,
    /// A source or all sources exceed their rate.
    Rate,
    /// Longer than `MAX_MESSAGE_SIZE`, or the edited message would be.
    TooLarge,
    /// The socket's send buffer is full.
    SendFull,
    /// The kernel refused to send.
    SendError,
    /// The connection is gone and cannot be opened from here.
    ConnectionGone,
    /// A connection's queue is full: the peer does not read.
    SlowPeer,
    /// A bounded queue between shards, or to the control executor, is full.
    QueueFull,
    /// Handling panicked: a bug of ours. The message is dropped, the shard lives on.
    Panic,
    /// The process is stopping.
    Stopping,
}

impl DropReason {
    /// Every reason, in numeric order.
    pub const ALL: [DropReason; 19] = [
        DropReason::Malformed,
        DropReason::KeepAlive,
        DropReason::Blocked,
        DropReason::NoNode,
        DropReason::Loop,
        DropReason::MaxForwards,
        DropReason::NotOurs,
        DropReason::NoVia,
        DropReason::NoListener,
        DropReason::Unresolved,
        DropReason::Rate,
        DropReason::TooLarge,
        DropReason::SendFull,
        DropReason::SendError,
        DropReason::ConnectionGone,
        DropReason::SlowPeer,
        DropReason::QueueFull,
        DropReason::Panic,
        DropReason::Stopping,
    ];

    /// As metrics and log lines name it.
    pub const fn as_str(self) -> &'static str {
        match self {
            DropReason::Malformed => "malformed",
            DropReason::KeepAlive => "keep_alive",
            DropReason::Blocked => "blocked",
            DropReason::NoNode => "no_node",
            DropReason::Loop => "loop",
            DropReason::MaxForwards => "max_forwards",
            DropReason::NotOurs => "not_ours",
            DropReason::NoVia => "no_via",
            DropReason::NoListener => "no_listener",
            DropReason::Unresolved => "unresolved",
            DropReason::Rate => "rate",
            DropReason::TooLarge => "too_large",
            DropReason::SendFull => "send_full",
            DropReason::SendError => "send_error",
            DropReason::ConnectionGone => "connection_gone",
            DropReason::SlowPeer => "slow_peer",
            DropReason::QueueFull => "queue_full",
            DropReason::Panic => "panic",
            DropReason::Stopping => "stopping",
        }
    }
}

/// What a shard saw of nodes, for the control executor.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Report {
    /// A node announced itself (`sip.md` 4): the parsed body.
    Beat(crate::registry::Announcement),
    /// A heartbeat named no node.
    BadBeat {
        /// Who sent it.
        from: IpAddr,
        /// What is wrong with it.
        why: crate::registry::BeatError,
    },
    /// What was seen of one node since the last report.
    Seen {
        /// The node.
        node: NodeKey,
        /// It sent SIP: a life sign.
        alive: bool,
        /// Error responses that count (`sip.md` 5.6).
        errors: u32,
        /// Requests forwarded to it since its last response (`sip.md` 5.7).
        requests: u32,
        /// Any response since the last report.
        answered: bool,
    },
    /// It answered a request that `requestCheckPattern` watches with an error.
    BadResponse {
        /// The node.
        node: NodeKey,
        /// 400 to 599.
        status: u16,
    },
    /// It refused a connection or a datagram.
    Refused {
        /// The node.
        node: NodeKey,
        /// Where.
        way: Way,
    },
}
