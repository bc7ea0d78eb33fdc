//! The table of one shard's stream connections: who is connected, what waits to be sent, what came in
//! half. What stands between bytes and messages on TLS and WebSocket is in [`crate::layers`].
//!
//! Sockets are watched edge-triggered, once, for both directions. Bytes are read into one scratch buffer
//! of the shard; a connection owns memory only for a message that came in half and for bytes that its
//! peer did not take yet. Requests are kept as they arrived until their last byte has left, so that they
//! can be decided again when the connection turns out to be dead.

use std::collections::VecDeque;
use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd as _};
use std::time::Duration;

use engine::relay::{Again, Arrival, DropReason, Flow, Hop, ListenerId};
use protocols::sip::stream::Framer;
use protocols::time::Time;
use socket2::{Domain, SockRef, Socket, TcpKeepalive, Type};

use crate::census::Place;
use crate::layers::Layers;
use crate::sys::choose_port_late;

/// A message as it arrived, kept until what was made of it has left.
#[derive(Debug)]
pub struct Carried {
    /// How it arrived.
    pub arrival: Arrival,
    /// As it arrived.
    pub bytes: Vec<u8>,
    /// How often it was decided again already.
    pub attempts: u8,
    /// Where it was to go.
    pub hop: Hop,
    /// Why it has not got there, once that is known.
    pub reason: DropReason,
    /// Where it may go then.
    pub again: Again,
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    /// The socket, non-blocking.
    pub socket: TcpStream,
    /// Listener that accepted it, or on whose behalf we connected.
    pub listener: ListenerId,
    /// The other end.
    pub peer: SocketAddr,
    /// Where it is in its life.
    pub phase: Phase,
    /// We opened it.
    pub is_ours: bool,
    /// Cuts what comes in into messages.
    pub framer: Framer,
    /// Start of a message or frame whose end has not come.
    pub partial: Vec<u8>,
    /// TLS and WebSocket; `None` on plain TCP.
    pub(crate) layers: Option<Box<Layers>>,
    /// As it goes on the wire.
    pub(crate) unsent: Vec<u8>,
    /// Messages in `unsent`, by the offset of their ends.
    waiting: VecDeque<(usize, Carried)>,
    /// It is on the list of those to flush.
    is_listed: bool,
    /// When a message last came or was handed over to go.
    pub(crate) used: Option<Time>,
    /// When `unsent` was full, if it has not been empty since.
    pub(crate) full_since: Option<Time>,
    /// That it counts.
    pub(crate) place: Option<Place>,
}

impl Connection {
    /// Whether part of a message has come, and not its end. Line ends in front of one, or half a keep-alive,
    /// are none.
    pub(crate) fn is_within_message(&self) -> bool {
        self.partial.iter().any(|it| !matches!(it, b'\r' | b'\n'))
            || self.layers.as_ref().is_some_and(|it| it.is_within_message())
    }

    /// Whether messages wait to leave.
    pub(crate) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }
}

/// The life of a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Phase {
    /// We connect; nothing can be sent yet.
    Connecting,
    /// Both directions are open.
    Open,
    /// The peer has said all it will; we may still answer.
    HalfClosed,
    /// We have said all we will. What the peer goes on to say is thrown away, for a while: closing with
    /// bytes unread resets the connection, and a reset overtakes our last words (RFC 9112 §9.6).
    Lingering {
        /// So many more bytes are borne.
        bytes_left: usize,
    },
}

/// Who ends a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum End {
    /// The peer: it has closed or reset it.
    Peers,
    /// We, who have a reason: it does not answer, does not read, breaks the protocol.
    Ours,
}

/// What became of a flush.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Flushed {
    /// All has left.
    Done,
    /// The peer does not read fast enough; the socket will report when it does.
    Blocked,
    /// The connection is dead: close it.
    Dead,
}

/// All stream connections of one shard.
#[derive(Debug)]
pub struct Streams {
    shard: u8,
    slots: Vec<Slot>,
    free: Vec<u32>,
    by_peer: ahash::HashMap<(ListenerId, SocketAddr), u32>,
    /// Slots with bytes to send since the last flush.
    listed: Vec<u32>,
    /// Buffers that no connection needs at the moment.
    spare: Vec<Vec<u8>>,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    connection: Option<Connection>,
}

impl Streams {
    /// No connections yet.
    pub fn new(shard: u8) -> Streams {
        Streams {
            shard,
            slots: Vec::new(),
            free: Vec::new(),
            by_peer: ahash::HashMap::default(),
            listed: Vec::new(),
            spare: Vec::new(),
        }
    }

    /// How many are open or opening.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every connection there is.
    pub fn flows(&self) -> impl Iterator<Item = Flow> + '_ {
        (0u32..).zip(&self.slots).filter(|(_, it)| it.connection.is_some()).map(|(slot, it)| Flow {
            shard: self.shard,
            slot,
            generation: it.generation,
        })
    }

    /// The other end of each, and when it was last used.
    pub(crate) fn peers(&self) -> impl Iterator<Item = (SocketAddr, Option<Time>)> + '_ {
        self.slots.iter().filter_map(|it| it.connection.as_ref().map(|it| (it.peer, it.used)))
    }

    /// Files a connection. `None` if no number is left for it ([`SLOTS_MAX`]).
    pub(crate) fn insert(
        &mut self,
        socket: TcpStream,
        listener: ListenerId,
        peer: SocketAddr,
        phase: Phase,
        framer: Framer,
        layers: Option<Box<Layers>>,
    ) -> Option<Flow> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                let slot = u32::try_from(self.slots.len()).ok().filter(|it| *it < SLOTS_MAX)?;
                self.slots.push(Slot::default());
                slot
            }
        };
        let it = self.slots.get_mut(slot as usize)?;
        it.connection = Some(Connection {
            socket,
            listener,
            peer,
            phase,
            is_ours: phase == Phase::Connecting,
            framer,
            partial: Vec::new(),
            layers,
            unsent: Vec::new(),
            waiting: VecDeque::new(),
            is_listed: false,
            used: None,
            full_since: None,
            place: None,
        });
        self.by_peer.insert((listener, peer), slot);
        Some(Flow { shard: self.shard, slot, generation: it.generation })
    }

    /// The connection that a flow names, if it still is the same.
    pub fn find(&mut self, flow: Flow) -> Option<&mut Connection> {
        let it = self.slots.get_mut(flow.slot as usize)?;
        if it.generation != flow.generation || flow.shard != self.shard {
            return None;
        }
        it.connection.as_mut()
    }

    /// The connection in a slot, whichever it is.
    pub fn in_slot(&self, slot: u32) -> Option<Flow> {
        let it = self.slots.get(slot as usize)?;
        it.connection.as_ref()?;
        Some(Flow { shard: self.shard, slot, generation: it.generation })
    }

    /// The connection to a peer that can take requests.
    pub fn towards(&self, listener: ListenerId, peer: SocketAddr) -> Option<Flow> {
        self.in_slot(*self.by_peer.get(&(listener, peer))?)
    }

    /// Queues bytes; they leave with the next [`Streams::flush_listed`]. `carried` is what they were
    /// made of: taken on success, given back by [`Streams::remove`] if they never leave.
    ///
    /// # Errors
    ///
    /// [`DropReason::ConnectionGone`]: not the same connection any more. [`DropReason::SlowPeer`]: its
    /// queue is full. `carried` stays with the caller.
    pub fn enqueue(
        &mut self,
        flow: Flow,
        bytes: &[u8],
        carried: &mut Option<Carried>,
    ) -> Result<(), DropReason> {
        let is_full = |it: &Connection| {
            let is_connecting = it.phase == Phase::Connecting;
            let most = if is_connecting { HELD_BYTES_MAX } else { QUEUE_BYTES_MAX };
            !it.unsent.is_empty() && it.unsent.len() + bytes.len() > most
        };
        let it = self.find(flow).ok_or(DropReason::ConnectionGone)?;
        // A turn may bring more than a queue for a peer that reads as fast as anyone. What is dead takes
        // one more: it gives everything back when it is closed.
        if is_full(it)
            && self.flush(flow) == Flushed::Blocked
            && self.find(flow).is_some_and(|it| is_full(it))
        {
            return Err(DropReason::SlowPeer);
        }
        if let (Some(it), Some(carried)) = (self.find(flow), carried.as_mut()) {
            let stands =
                it.phase == Phase::Open && it.layers.as_ref().is_none_or(|it| it.is_open());
            carried.again = if stands { Again::Anywhere } else { Again::Elsewhere };
        }
        self.queue(flow, bytes, carried)
    }

    /// As [`Streams::enqueue`], however much waits already.
    fn queue(
        &mut self,
        flow: Flow,
        bytes: &[u8],
        carried: &mut Option<Carried>,
    ) -> Result<(), DropReason> {
        let it = self
            .slots
            .get_mut(flow.slot as usize)
            .and_then(|it| it.connection.as_mut())
            .ok_or(DropReason::ConnectionGone)?;
        if it.unsent.capacity() == 0 {
            it.unsent = self.spare.pop().unwrap_or_default();
        }
        match &mut it.layers {
            None => it.unsent.extend_from_slice(bytes),
            Some(layers) if layers.is_open() => layers.seal(bytes, &mut it.unsent),
            Some(layers) => return layers.hold(bytes.to_vec(), carried),
        }
        it.waiting.extend(carried.take().map(|carried| (it.unsent.len(), carried)));
        if !std::mem::replace(&mut it.is_listed, true) {
            self.listed.push(flow.slot);
        }
        Ok(())
    }

    /// Writes to a connection what its layers have to say: it leaves with the next flush.
    pub(crate) fn say(
        &mut self,
        flow: Flow,
        say: impl FnOnce(&mut Layers, SocketAddr, &mut Vec<u8>),
    ) {
        let Some(it) = self.find(flow) else { return };
        let Some(layers) = &mut it.layers else { return };
        say(layers, it.peer, &mut it.unsent);
        self.list(flow);
    }

    /// Has the next flush look at a connection, if it has something to send.
    pub(crate) fn list(&mut self, flow: Flow) {
        let Some(it) = self.find(flow) else { return };
        if !it.unsent.is_empty() && !std::mem::replace(&mut it.is_listed, true) {
            self.listed.push(flow.slot);
        }
    }

    /// Whether little enough waits for a connection's peer that we may add to it unasked.
    pub(crate) fn has_room(&mut self, flow: Flow) -> bool {
        self.find(flow).is_some_and(|it| it.unsent.len() < QUEUE_BYTES_MAX / 2)
    }

    /// Queues what was held back until the handshakes were done.
    pub(crate) fn release_held(&mut self, flow: Flow) {
        let held = self.find(flow).and_then(|it| it.layers.as_mut()).map(|it| it.take_held());
        for (bytes, mut carried) in held.into_iter().flatten() {
            // It was bounded, and the handshakes are over.
            let _ = self.queue(flow, &bytes, &mut carried);
        }
    }

    /// Sends what was queued since the last call, one write per connection. Calls `dead` for each that
    /// turns out to be; returns how many writes left.
    pub fn flush_listed(&mut self, mut dead: impl FnMut(Flow)) -> u64 {
        let mut listed = std::mem::take(&mut self.listed);
        let mut writes = 0;
        for slot in listed.drain(..) {
            let Some(flow) = self.in_slot(slot) else { continue };
            if let Some(it) = self.find(flow) {
                it.is_listed = false;
            }
            writes += 1;
            if self.flush(flow) == Flushed::Dead {
                dead(flow);
            }
        }
        self.listed = listed;
        writes
    }

    /// Sends what a connection's peer takes now.
    pub fn flush(&mut self, flow: Flow) -> Flushed {
        let Some(it) = self.find(flow) else { return Flushed::Done };
        if it.phase == Phase::Connecting {
            return Flushed::Blocked;
        }
        let mut sent = 0;
        let outcome = loop {
            match it.unsent.get(sent..) {
                None | Some([]) => break Flushed::Done,
                Some(rest) => match (&it.socket).write(rest) {
                    Ok(count) => sent += count,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        break Flushed::Blocked;
                    }
                    Err(_) => break Flushed::Dead,
                },
            }
        };
        let mut left = std::mem::take(&mut it.waiting);
        while left.front().is_some_and(|(end, _)| *end <= sent) {
            let Some((_, carried)) = left.pop_front() else { break };
            recycle(&mut self.spare, carried.bytes);
        }
        let Some(it) = self.find(flow) else { return outcome };
        it.waiting = left;
        if outcome == Flushed::Done {
            it.unsent.clear();
            it.full_since = None;
            let buffer = std::mem::take(&mut it.unsent);
            recycle(&mut self.spare, buffer);
        } else if sent > 0 {
            it.unsent.drain(..sent);
            it.waiting.iter_mut().for_each(|(end, _)| *end -= sent);
        }
        outcome
    }

    /// Whether everything queued has left.
    pub fn is_flushed(&mut self, flow: Flow) -> bool {
        self.find(flow).is_none_or(|it| it.unsent.is_empty())
    }

    /// The peer will send no more: it is no longer a connection for requests.
    pub fn half_close(&mut self, flow: Flow) {
        self.retire(flow, Phase::HalfClosed);
    }

    /// We say no more than what is queued: nothing else is sent there.
    pub(crate) fn linger(&mut self, flow: Flow) {
        self.retire(flow, Phase::Lingering { bytes_left: LINGER_BYTES_MAX });
    }

    fn retire(&mut self, flow: Flow, phase: Phase) {
        let Some(it) = self.find(flow) else { return };
        it.phase = phase;
        let key = (it.listener, it.peer);
        self.forget_peer(key, flow.slot);
    }

    /// Closes a connection. Messages that did not leave whole go to `undelivered`: where the peer has ended
    /// what stood before they came, they may go there again; where `end` is ours, they look for another.
    pub fn remove(
        &mut self,
        flow: Flow,
        end: End,
        undelivered: &mut VecDeque<Carried>,
    ) -> Option<Connection> {
        self.find(flow)?;
        let slot = self.slots.get_mut(flow.slot as usize)?;
        let mut it = slot.connection.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(flow.slot);
        self.forget_peer((it.listener, it.peer), flow.slot);
        let known = undelivered.len();
        undelivered.extend(it.waiting.drain(..).map(|(_, carried)| carried));
        if let Some(layers) = &mut it.layers {
            undelivered.extend(layers.take_held().into_iter().filter_map(|(_, carried)| carried));
        }
        if end == End::Ours {
            undelivered.range_mut(known..).for_each(|it| it.again = Again::Elsewhere);
        }
        let (unsent, partial) = (std::mem::take(&mut it.unsent), std::mem::take(&mut it.partial));
        recycle(&mut self.spare, unsent);
        recycle(&mut self.spare, partial);
        Some(it)
    }

    /// A copy of a message in a buffer that was used before.
    pub fn copy(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut copy = self.spare.pop().unwrap_or_default();
        copy.extend_from_slice(bytes);
        copy
    }

    /// Takes a buffer back that is not needed any more.
    pub fn recycle(&mut self, buffer: Vec<u8>) {
        recycle(&mut self.spare, buffer);
    }

    fn forget_peer(&mut self, key: (ListenerId, SocketAddr), slot: u32) {
        if self.by_peer.get(&key) == Some(&slot) {
            self.by_peer.remove(&key);
        }
    }
}

fn recycle(spare: &mut Vec<Vec<u8>>, mut buffer: Vec<u8>) {
    if buffer.capacity() > 0 && buffer.capacity() <= SPARE_BYTES_MAX && spare.len() < SPARE_MAX {
        buffer.clear();
        spare.push(buffer);
    }
}

/// Has the kernel find out when a peer has gone without a word: a cable, a NAT or a machine that lost its
/// power says nothing. Reads then fail by `ETIMEDOUT`. Errors are the kernel's; it serves without, too.
///
/// # Errors
///
/// An option that the kernel does not know.
pub fn notice_death(socket: &TcpStream, unacknowledged_max: Duration) -> io::Result<()> {
    probe_idle(socket)?;
    SockRef::from(socket).set_tcp_user_timeout(Some(unacknowledged_max))
}

/// The same for connections that carry nothing: what is sent on others has times of its own, and a peer may
/// shut its window for longer. Connections inherit it of their listener.
///
/// # Errors
///
/// An option that the kernel does not know.
pub fn probe_idle(socket: &impl AsFd) -> io::Result<()> {
    let probes = TcpKeepalive::new().with_time(PROBE_AFTER).with_interval(PROBE_EVERY);
    SockRef::from(socket).set_tcp_keepalive(&probes.with_retries(PROBES))
}

/// Whether an error of [`connect`] is a want of ours, of descriptors, memory or ports, and not the peer's doing.
pub fn is_shortage(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EMFILE
                | libc::ENFILE
                | libc::ENOBUFS
                | libc::ENOMEM
                | libc::EAGAIN
                | libc::EADDRINUSE
                | libc::EADDRNOTAVAIL
        )
    )
}

/// Starts to connect to `to` from the address that `listener` is bound to, on any port.
///
/// # Errors
///
/// The connection was refused at once, or there is no way there. `WouldBlock` is never returned: a
/// connection under way is a success.
pub fn connect(listener: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking().cloexec(), None)?;
    socket.set_tcp_nodelay(true)?;
    if !listener.ip().is_unspecified() {
        // Without it there are fewer ports, which is no reason not to connect.
        let _ = choose_port_late(socket.as_raw_fd());
        socket.bind(&SocketAddr::new(listener.ip(), 0).into())?;
    }
    match socket.connect(&to.into()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        Err(error) => return Err(error),
    }
    Ok(socket.into())
}

/// How long a client may leave what we sent unacknowledged: 64 * T1, when every transaction has failed.
pub const CLIENT_SILENT_MAX: Duration = Duration::from_secs(32);
/// A node is next door: sooner, so that others are asked; but not at a long collection of its garbage.
pub const NODE_SILENT_MAX: Duration = Duration::from_secs(10);
/// A connection that carries nothing: two minutes until it is known to be dead, as RFC 5626 §4.4.1 has it.
const PROBE_AFTER: Duration = Duration::from_secs(60);
const PROBE_EVERY: Duration = Duration::from_secs(15);
const PROBES: u32 = 4;
/// Slots have 24 bits in an epoll token.
pub const SLOTS_MAX: u32 = 1 << 24;
/// Bytes that may wait for one peer; a message more and the peer is slow.
pub const QUEUE_BYTES_MAX: usize = 256 * 1024;
/// While it is being connected to: as much as another left behind that did not read, and then some.
pub const HELD_BYTES_MAX: usize = 2 * QUEUE_BYTES_MAX;
/// What a peer that is being left may still say: more than any window that was open to it then.
const LINGER_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Spare buffers of a shard, and the largest that is kept: at most 4 MiB, if once they were needed.
const SPARE_MAX: usize = 64;
const SPARE_BYTES_MAX: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use protocols::time::Time;
    use std::io::Read as _;
    use std::net::TcpListener;
    use tools::ports;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        ours.set_nonblocking(true).unwrap();
        (ours, listener.accept().unwrap().0)
    }

    fn carried(text: &str) -> Carried {
        let address = "127.0.0.1:1".parse().unwrap();
        Carried {
            arrival: Arrival {
                now: Time::ZERO,
                listener: ListenerId(0),
                source: address,
                flow: None,
            },
            bytes: text.as_bytes().to_vec(),
            attempts: 0,
            hop: Hop::Stream { from: ListenerId(0), to: address },
            reason: DropReason::ConnectionGone,
            again: Again::Elsewhere,
        }
    }

    fn open(streams: &mut Streams, socket: TcpStream) -> Flow {
        let peer = socket.peer_addr().unwrap();
        streams.insert(socket, ListenerId(0), peer, Phase::Open, Framer::new(65_536), None).unwrap()
    }

    #[test]
    fn a_number_used_again_is_not_the_old_connection() {
        let mut streams = Streams::new(3);
        let (ours, _theirs) = pair();
        let peer = ours.peer_addr().unwrap();
        let first = open(&mut streams, ours);
        assert_eq!(streams.towards(ListenerId(0), peer), Some(first));
        assert_eq!(streams.towards(ListenerId(1), peer), None);
        streams.remove(first, End::Ours, &mut VecDeque::new()).unwrap();
        assert!(streams.is_empty());
        let (ours, _theirs) = pair();
        let second = open(&mut streams, ours);
        assert_eq!((first.slot, first.shard), (second.slot, 3));
        assert!(streams.find(first).is_none() && streams.find(second).is_some());
        assert!(streams.find(Flow { shard: 4, ..second }).is_none());
        assert!(streams.remove(first, End::Ours, &mut VecDeque::new()).is_none());
        let mut request = Some(carried("x"));
        let gone = streams.enqueue(first, b"x", &mut request);
        assert_eq!((gone, request.is_some()), (Err(DropReason::ConnectionGone), true));
        assert_eq!(streams.towards(ListenerId(0), peer), None);
        assert_eq!(streams.flows().collect::<Vec<_>>(), [second]);
    }

    #[test]
    fn messages_leave_in_order_and_one_write_takes_them_all() {
        let mut streams = Streams::new(0);
        let (ours, mut theirs) = pair();
        let flow = open(&mut streams, ours);
        for text in ["one ", "two ", "three"] {
            streams.enqueue(flow, text.as_bytes(), &mut Some(carried(text))).unwrap();
        }
        assert!(!streams.is_flushed(flow));
        assert_eq!(streams.flush_listed(|_| panic!("alive")), 1);
        assert!(streams.is_flushed(flow));
        let mut lost = VecDeque::new();
        streams.remove(flow, End::Ours, &mut lost);
        assert!(lost.is_empty());
        let mut text = String::new();
        theirs.read_to_string(&mut text).unwrap();
        assert_eq!(text, "one two three");
    }

    #[test]
    fn a_peer_that_does_not_read_is_slow_and_what_never_left_comes_back() {
        let mut streams = Streams::new(0);
        let (ours, mut theirs) = pair();
        let flow = open(&mut streams, ours);
        let message = "m".repeat(10_000);
        let mut accepted = 0usize;
        let reason = loop {
            match streams.enqueue(flow, message.as_bytes(), &mut Some(carried("m"))) {
                Ok(()) => accepted += 1,
                Err(reason) => break reason,
            }
            streams.flush_listed(|_| panic!("alive"));
            assert!(accepted < 100_000, "the queue has no end");
        };
        assert_eq!(reason, DropReason::SlowPeer);
        assert_eq!(streams.flush(flow), Flushed::Blocked);
        let mut undelivered = VecDeque::new();
        streams.remove(flow, End::Ours, &mut undelivered);
        let mut received = Vec::new();
        theirs.read_to_end(&mut received).unwrap();
        assert_eq!(undelivered.len(), accepted - received.len() / 10_000, "whole messages only");
        assert!(undelivered.len() >= 24, "{}", undelivered.len());
    }

    #[test]
    fn more_than_a_queue_in_one_turn_does_not_make_a_reader_slow() {
        let mut streams = Streams::new(0);
        let (ours, mut theirs) = pair();
        let flow = open(&mut streams, ours);
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            theirs.read_to_end(&mut all).unwrap();
            all.len()
        });
        let (message, count) = ("m".repeat(10_000), 2 * QUEUE_BYTES_MAX / 10_000);
        for _ in 0..count {
            streams.enqueue(flow, message.as_bytes(), &mut None).unwrap();
        }
        streams.flush_listed(|_| panic!("alive"));
        streams.remove(flow, End::Ours, &mut VecDeque::new());
        assert_eq!(reader.join().unwrap(), count * 10_000);
    }

    #[test]
    fn what_left_in_many_pieces_is_not_given_back() {
        let mut streams = Streams::new(0);
        let (ours, mut theirs) = pair();
        theirs.set_nonblocking(true).unwrap();
        socket2::SockRef::from(&ours).set_send_buffer_size(32 * 1024).unwrap();
        let flow = open(&mut streams, ours);
        let message = "m".repeat(10_000);
        let mut accepted = 0;
        while streams.enqueue(flow, message.as_bytes(), &mut Some(carried("m"))).is_ok() {
            accepted += 1;
            streams.flush(flow);
        }
        let (mut received, mut buffer, mut blocked) = (0, vec![0; 30_000], 0);
        while received < accepted * 10_000 {
            blocked += usize::from(streams.flush(flow) == Flushed::Blocked);
            received += theirs.read(&mut buffer).unwrap_or(0);
        }
        assert!(blocked > 1, "{blocked}");
        assert_eq!(streams.flush(flow), Flushed::Done);
        let mut undelivered = VecDeque::new();
        streams.remove(flow, End::Ours, &mut undelivered);
        assert_eq!(undelivered.len(), 0);
    }

    #[test]
    fn a_reset_connection_is_dead_and_gives_its_requests_back() {
        let mut streams = Streams::new(0);
        let (ours, theirs) = pair();
        let flow = open(&mut streams, ours);
        streams.enqueue(flow, b"read by nobody", &mut None).unwrap();
        streams.flush_listed(|_| panic!("alive"));
        drop(theirs); // with unread bytes: a reset
        streams.enqueue(flow, b"request", &mut Some(carried("request"))).unwrap();
        let mut dead = Vec::new();
        streams.flush_listed(|it| dead.push(it));
        assert_eq!(dead, [flow]);
        let mut undelivered = VecDeque::new();
        streams.remove(flow, End::Ours, &mut undelivered);
        assert_eq!(undelivered.pop_front().unwrap().bytes, b"request");
    }

    #[test]
    fn the_kernel_watches_over_silent_peers() {
        let (ours, _theirs) = pair();
        notice_death(&ours, NODE_SILENT_MAX).unwrap();
        let socket = SockRef::from(&ours);
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), PROBE_AFTER);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), PROBE_EVERY);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), PROBES);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(NODE_SILENT_MAX));
    }

    #[test]
    fn nobody_listens_is_known_at_once_or_by_the_sockets_error() {
        let closed = SocketAddr::from(([127, 0, 0, 1], ports::free()));
        let error = match connect("127.0.0.1:0".parse().unwrap(), closed) {
            Err(error) => error,
            Ok(socket) => loop {
                if let Some(error) = socket.take_error().unwrap() {
                    break error;
                }
            },
        };
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
