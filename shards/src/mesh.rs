//! Letters between threads: to a shard from another shard or from control, and from a shard to control.
//!
//! All queues are bounded and nobody waits on one: a letter that does not fit is given back, and its
//! sender counts [`DropReason::QueueFull`](engine::relay::DropReason::QueueFull).

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use engine::node::NodeKey;
use engine::relay::{Hop, ListenerId, Report};
use hdrhistogram::Histogram;

use crate::decide::Decide;
use crate::pump::{Moved, PumpFigures};
use crate::sys::EventFd;
use crate::tcp::Carried;

/// What a shard is told.
pub enum Mail<D: Decide> {
    /// Bytes for a connection that lives there.
    Deliver(Box<Delivery>),
    /// Bytes for a client that has connected to one of us: is it you?
    Seek(Box<Search>),
    /// A connection of a stream relay that goes on there.
    Move {
        /// Which pump's.
        pump: usize,
        /// The connection.
        moved: Box<Moved>,
    },
    /// Tell control your figures: [`Notice::Statistics`].
    Statistics {
        /// Goes back with them.
        question: u64,
    },
    /// The resolver's answer to [`Notice::Resolve`].
    Resolved {
        /// What was asked.
        name: D::Name,
        /// What came back.
        answer: D::Answer,
    },
    /// Calls of the first node belong to the second.
    SwitchOver {
        /// The node that leaves.
        from: NodeKey,
        /// The node that takes over.
        to: NodeKey,
    },
}

/// A message on its way to the shard that owns the connection.
#[derive(Debug)]
pub struct Delivery {
    /// The connection: a [`Hop::Flow`] of that shard.
    pub hop: Hop,
    /// What to send.
    pub bytes: Vec<u8>,
    /// What it was made of, to decide again if it cannot be delivered; `None` for answers.
    pub carried: Option<Carried>,
}

/// A message on its way round the shards, until it finds the one that a client has connected to.
#[derive(Debug)]
pub struct Search {
    /// Leg and transport of the connection.
    pub from: ListenerId,
    /// The client.
    pub to: SocketAddr,
    /// Who is looking: comes round to it, it may connect.
    pub origin: u8,
    /// What to send.
    pub bytes: Vec<u8>,
    /// What it was made of, to decide again if it cannot be delivered; `None` for answers.
    pub carried: Option<Carried>,
}

/// What control is told.
#[derive(Debug)]
pub enum Notice<D: Decide> {
    /// A relay's report.
    Report(Report),
    /// A shard waits for a name; answer it with [`Mail::Resolved`].
    Resolve {
        /// Who asks.
        shard: u8,
        /// What for.
        name: D::Name,
    },
    /// The answer to [`Mail::Statistics`].
    Statistics {
        /// Which question.
        question: u64,
        /// The figures.
        statistics: Box<Statistics<D::Counters>>,
    },
    /// A shard has ended.
    Ended {
        /// Which.
        shard: u8,
        /// Not as it was told, but by a panic of its own.
        is_failure: bool,
    },
}

/// One shard's figures.
#[derive(Clone, Debug)]
pub struct Statistics<C> {
    /// Whose.
    pub shard: u8,
    /// The relay's counters.
    pub counters: C,
    /// Stream connections of SIP that are open now.
    pub connections_by_node: BTreeMap<NodeKey, u64>,
    /// Those of them that were used a moment ago.
    pub busy_by_node: BTreeMap<NodeKey, u64>,
    /// Nanoseconds from the return of the receive call to that of the send call, per message.
    pub residence: Histogram<u64>,
    /// The shard's own figures.
    pub figures: Figures,
    /// Those of its pumps, in their order.
    pub pumps: Vec<PumpFigures>,
}

/// What a shard counts about itself since its start, unless said otherwise.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Figures {
    /// Datagrams received.
    pub datagrams: u64,
    /// Receive calls that brought any.
    pub batches: u64,
    /// Messages received on streams.
    pub stream_messages: u64,
    /// Datagrams and stream writes that left.
    pub sent: u64,
    /// Turns of the driver: wake-ups.
    pub turns: u64,
    /// Times the driver waited to gather a batch.
    pub coalesced: u64,
    /// Datagrams that the kernel dropped before we read them, on all sockets of the shard.
    pub receive_drops: u64,
    /// Time between wake-up and sleep.
    pub busy: Duration,
    /// Messages handed to another shard.
    pub hops: u64,
    /// Stream connections open now.
    pub connections: u64,
    /// Connections taken in.
    pub accepted: u64,
    /// Connections refused because the shard had too many.
    pub refused_connections: u64,
    /// Messages decided again because they could not be delivered.
    pub retried: u64,
    /// What became of connections.
    pub streams: engine::stats::Streams,
    /// Names that messages wait for now.
    pub parked: u64,
}

/// Writes to any shard. One clone for each shard and for control.
pub struct Post<D: Decide> {
    boxes: Arc<[Slit<D>]>,
}

/// Where letters for one shard go in, and what wakes it.
type Slit<D> = (Sender<Mail<D>>, Arc<EventFd>);

impl<D: Decide> Clone for Post<D> {
    fn clone(&self) -> Self {
        Post { boxes: Arc::clone(&self.boxes) }
    }
}

impl<D: Decide> Post<D> {
    /// Leaves a letter and wakes the shard.
    ///
    /// # Errors
    ///
    /// The letter itself: there is no such shard, it has ended, or its queue is full.
    pub fn send(&self, shard: u8, mail: Mail<D>) -> Result<(), Mail<D>> {
        let Some((sender, waker)) = self.boxes.get(usize::from(shard)) else { return Err(mail) };
        sender.try_send(mail).map_err(crossbeam_channel::TrySendError::into_inner)?;
        waker.wake();
        Ok(())
    }

    /// How many shards there are.
    pub fn shards(&self) -> usize {
        self.boxes.len()
    }

    /// The wakers of all shards, for [`crate::publish::Published::new`].
    pub fn wakers(&self) -> Vec<Arc<EventFd>> {
        self.boxes.iter().map(|(_, waker)| Arc::clone(waker)).collect()
    }
}

/// One shard's side: its mail and its waker.
pub struct Mailbox<D: Decide> {
    /// Letters in order of arrival.
    pub mail: Receiver<Mail<D>>,
    /// Readable when there may be mail or a new view.
    pub waker: Arc<EventFd>,
}

/// Queues for all shards, in shard order.
///
/// # Errors
///
/// The kernel's: out of descriptors.
pub fn mesh<D: Decide>(shards: usize) -> io::Result<(Post<D>, Vec<Mailbox<D>>)> {
    let mut boxes = Vec::with_capacity(shards);
    let mut mailboxes = Vec::with_capacity(shards);
    for _ in 0..shards {
        let (sender, mail) = bounded(MAIL_MAX);
        let waker = Arc::new(EventFd::new()?);
        boxes.push((sender, Arc::clone(&waker)));
        mailboxes.push(Mailbox { mail, waker });
    }
    Ok((Post { boxes: boxes.into() }, mailboxes))
}

/// A shard's way to control.
pub struct Outbox<D: Decide> {
    sender: Sender<Notice<D>>,
    waker: Arc<EventFd>,
}

impl<D: Decide> Clone for Outbox<D> {
    fn clone(&self) -> Self {
        Outbox { sender: self.sender.clone(), waker: Arc::clone(&self.waker) }
    }
}

impl<D: Decide> Outbox<D> {
    /// Tells control. `false`: its queue is full, or it is gone.
    pub fn send(&self, notice: Notice<D>) -> bool {
        let fits = self.sender.try_send(notice).is_ok();
        self.waker.wake();
        fits
    }
}

/// Control's side.
pub struct Inbox<D: Decide> {
    /// Notices of all shards.
    pub notices: Receiver<Notice<D>>,
    /// Readable when there may be notices; clear it before reading them.
    pub waker: Arc<EventFd>,
}

/// The queue from all shards to control.
///
/// # Errors
///
/// The kernel's: out of descriptors.
pub fn notices<D: Decide>() -> io::Result<(Outbox<D>, Inbox<D>)> {
    let (sender, notices) = bounded(NOTICES_MAX);
    let waker = Arc::new(EventFd::new()?);
    Ok((Outbox { sender, waker: Arc::clone(&waker) }, Inbox { notices, waker }))
}

/// Letters that may wait for a shard; it looks after every batch, so this is thousands a millisecond.
const MAIL_MAX: usize = 4_096;
/// Notices that may wait for control: a beat of every node that a snapshot can hold.
const NOTICES_MAX: usize = engine::snapshot::NODES_MAX;
