//! The connections of one stream relay on one shard, and the wire that its wishes go to.
//!
//! A wish is done at once as far as it can be without calling the relay: what it must hear of it waits in
//! a queue until it has returned.

use std::collections::VecDeque;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::time::Duration;

use engine::relay::stream::{Conn, Gone, Room, Secure, Wire};
use protocols::time::Time;
use socket2::SockRef;

use crate::census::{Census, Most, Place};
use crate::clock::{TimerId, Wheel};
use crate::layers::Layers;
use crate::sys::Epoll;
use crate::tcp;
use crate::tls::{Security, StreamProtocol};

/// One connection.
pub(super) struct Line {
    /// What the relay calls it; `None` once the relay is done with it, and it only has to end well.
    pub(super) conn: Option<Conn>,
    pub(super) socket: TcpStream,
    pub(super) peer: SocketAddr,
    /// Listener that accepted it; `None`: we opened it.
    pub(super) listener: Option<u8>,
    /// Where it was accepted, its place among all.
    pub(super) place: Option<Place>,
    pub(super) phase: Phase,
    pub(super) layers: Option<Box<Layers>>,
    /// Received, decrypted, not consumed.
    pub(super) kept: Vec<u8>,
    /// As it goes on the wire.
    pub(super) unsent: Vec<u8>,
    /// Bytes that wait inside TLS for the end of the handshake.
    early_bytes: usize,
    pub(super) is_paused: bool,
    /// There may be more to read, and no event will say so.
    pub(super) has_more: bool,
    /// The peer has said all it will; the relay is told once it has everything else.
    pub(super) has_ended: bool,
    /// The relay knows that the peer has ended.
    pub(super) end_told: bool,
    /// We say no more once what is queued has left.
    is_ending: bool,
    /// We have said so.
    is_shut: bool,
    /// The peer says no more either, and has promised it: closed as soon as that is.
    hangs_up: bool,
    /// The relay was told to stop; it hears when there is room again.
    is_full: bool,
    is_listed: bool,
}

/// The life of a line.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Phase {
    /// TCP connects.
    Connecting,
    /// TLS shakes hands.
    Securing,
    /// Bytes pass.
    Open,
}

/// A line by its own number: not the relay's, which may be in use again while a line still ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct LineId {
    pub(super) slot: u32,
    pub(super) generation: u32,
}

/// What the relay must hear, or what must be done when it has returned.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Deferred {
    Gone(Conn, Gone),
    Drained(Conn),
    /// Offer what was kept, and read on.
    Resumed(Conn),
}

/// All lines.
pub(super) struct Lines {
    slots: Vec<(u32, Option<Line>)>,
    free: Vec<u32>,
    /// By the relay's slot.
    by_conn: Vec<u32>,
    listed: Vec<u32>,
    pub(super) deferred: VecDeque<Deferred>,
    /// Lines that have more to read than one turn allows.
    pub(super) unread: Vec<LineId>,
    pub(super) wheel: Wheel,
    spare: Vec<Vec<u8>>,
}

/// What a wish needs besides the lines.
#[derive(Clone, Copy)]
pub(super) struct Surroundings<'s> {
    pub(super) now: Time,
    pub(super) epoll: &'s Epoll,
    /// Bits of every token.
    pub(super) token: u64,
    pub(super) security: Option<&'s Security>,
    pub(super) protocol: StreamProtocol,
    /// Where our own connections come from, if it is configured.
    pub(super) source: Option<IpAddr>,
    pub(super) handshake_time: Duration,
    pub(super) census: &'s Arc<Census>,
}

/// The wire that a relay is given.
pub(super) struct Hand<'l, 's> {
    pub(super) lines: &'l mut Lines,
    pub(super) around: Surroundings<'s>,
}

impl Lines {
    pub(super) fn new() -> Lines {
        Lines {
            slots: Vec::new(),
            free: Vec::new(),
            by_conn: Vec::new(),
            listed: Vec::new(),
            deferred: VecDeque::new(),
            unread: Vec::new(),
            wheel: Wheel::default(),
            spare: Vec::new(),
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn insert(
        &mut self,
        socket: TcpStream,
        peer: SocketAddr,
        listener: Option<u8>,
        phase: Phase,
        layers: Option<Box<Layers>>,
    ) -> Option<LineId> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                let slot = u32::try_from(self.slots.len()).ok();
                // The highest marks the tokens of listeners.
                let slot = slot.filter(|it| *it < tcp::SLOTS_MAX - 1)?;
                self.slots.push((0, None));
                slot
            }
        };
        let (generation, line) = self.slots.get_mut(slot as usize)?;
        *line = Some(Line {
            conn: None,
            socket,
            peer,
            listener,
            place: None,
            phase,
            layers,
            kept: Vec::new(),
            unsent: Vec::new(),
            early_bytes: 0,
            is_paused: false,
            has_more: false,
            has_ended: false,
            end_told: false,
            is_ending: false,
            is_shut: false,
            hangs_up: false,
            is_full: false,
            is_listed: false,
        });
        Some(LineId { slot, generation: *generation })
    }

    /// From now on the relay's number means this line.
    pub(super) fn bind(&mut self, id: LineId, conn: Conn) {
        let index = conn.slot as usize;
        if index >= self.by_conn.len() {
            self.by_conn.resize(index + 1, NONE);
        }
        if let (Some(entry), Some((_, Some(line)))) =
            (self.by_conn.get_mut(index), self.slots.get_mut(id.slot as usize))
        {
            *entry = id.slot;
            line.conn = Some(conn);
        }
    }

    pub(super) fn find(&mut self, id: LineId) -> Option<&mut Line> {
        let (generation, line) = self.slots.get_mut(id.slot as usize)?;
        if *generation == id.generation { line.as_mut() } else { None }
    }

    /// The line in a slot, whichever it is.
    pub(super) fn in_slot(&self, slot: u32) -> Option<LineId> {
        let (generation, line) = self.slots.get(slot as usize)?;
        line.as_ref()?;
        Some(LineId { slot, generation: *generation })
    }

    /// The line that the relay means.
    pub(super) fn of(&self, conn: Conn) -> Option<LineId> {
        let slot = *self.by_conn.get(conn.slot as usize)?;
        let (generation, line) = self.slots.get(slot as usize)?;
        let is_it = line.as_ref().is_some_and(|it| it.conn == Some(conn));
        is_it.then_some(LineId { slot, generation: *generation })
    }

    /// Takes a line out; dropping it closes the socket.
    pub(super) fn remove(&mut self, id: LineId) -> Option<Line> {
        self.find(id)?;
        let (generation, line) = self.slots.get_mut(id.slot as usize)?;
        let mut line = line.take()?;
        *generation = generation.wrapping_add(1);
        self.free.push(id.slot);
        self.wheel.cancel(timer_of(id));
        if let Some(conn) = line.conn {
            self.unbind(conn, id.slot);
        }
        let (kept, unsent) = (std::mem::take(&mut line.kept), std::mem::take(&mut line.unsent));
        self.recycle(kept);
        self.recycle(unsent);
        Some(line)
    }

    fn unbind(&mut self, conn: Conn, slot: u32) {
        if let Some(it) = self.by_conn.get_mut(conn.slot as usize).filter(|it| **it == slot) {
            *it = NONE;
        }
    }

    /// A line that the relay must hear of no more, and its content for another shard.
    pub(super) fn take_out(&mut self, conn: Conn) -> Option<Line> {
        let id = self.of(conn)?;
        let line = self.find(id)?;
        let (kept, unsent) = (std::mem::take(&mut line.kept), std::mem::take(&mut line.unsent));
        let mut line = self.remove(id)?;
        (line.kept, line.unsent) = (kept, unsent);
        Some(line)
    }

    /// The line has failed: it is closed, and the relay hears why.
    pub(super) fn fail(&mut self, id: LineId, why: Gone) {
        let Some(line) = self.remove(id) else { return };
        self.deferred.extend(line.conn.map(|conn| Deferred::Gone(conn, why)));
    }

    /// Takes a line out so that the peer cannot take what it has for all there is.
    pub(super) fn reset(&mut self, id: LineId) {
        let Some(line) = self.find(id) else { return };
        // Without it the peer would see an ordinary end.
        let _ = SockRef::from(&line.socket).set_linger(Some(Duration::ZERO));
        self.remove(id);
    }

    /// A buffer that was used before, with these bytes.
    pub(super) fn copy(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut copy = self.spare.pop().unwrap_or_default();
        copy.extend_from_slice(bytes);
        copy
    }

    /// A line that is about to get something to send, and a buffer for it.
    fn find_with_buffer(&mut self, id: LineId) -> Option<&mut Line> {
        let is_bare = self.find(id)?.unsent.capacity() == 0;
        let spare = if is_bare { self.spare.pop() } else { None };
        let line = self.find(id)?;
        if let Some(spare) = spare {
            line.unsent = spare;
        }
        Some(line)
    }

    pub(super) fn recycle(&mut self, mut buffer: Vec<u8>) {
        let fits = buffer.capacity() > 0 && buffer.capacity() <= SPARE_BYTES_MAX;
        if fits && self.spare.len() < SPARE_MAX {
            buffer.clear();
            self.spare.push(buffer);
        }
    }

    pub(super) fn list(&mut self, id: LineId) {
        let Some(line) = self.find(id) else { return };
        if !std::mem::replace(&mut line.is_listed, true) {
            self.listed.push(id.slot);
        }
    }

    /// Whether something was queued that [`Lines::flush_listed`] has not looked at.
    pub(super) fn has_listed(&self) -> bool {
        !self.listed.is_empty()
    }

    /// Sends what was queued since the last call; returns how many writes left.
    pub(super) fn flush_listed(&mut self, now: Time) -> u64 {
        let mut listed = std::mem::take(&mut self.listed);
        let writes = listed.len() as u64;
        for slot in listed.drain(..) {
            let Some(id) = self.in_slot(slot) else { continue };
            if let Some(line) = self.find(id) {
                line.is_listed = false;
            }
            self.flush(id, now);
        }
        self.listed = listed;
        writes
    }

    /// Sends what the peer takes now; ends or closes the line if that was all and it is time.
    pub(super) fn flush(&mut self, id: LineId, now: Time) {
        let Some(line) = self.find(id) else { return };
        if line.phase == Phase::Connecting {
            return;
        }
        let mut sent = 0;
        while let Some(rest) = line.unsent.get(sent..).filter(|it| !it.is_empty()) {
            match (&line.socket).write(rest) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return self.fail(id, Gone::Reset),
            }
        }
        line.unsent.drain(..sent);
        let is_parting = sent > 0 && line.conn.is_none() && line.phase == Phase::Open;
        let has_drained = line.is_full && line.unsent.len() < QUEUE_BYTES_MAX / 2;
        line.is_full &= !has_drained;
        let drained = line.conn.filter(|_| has_drained).map(Deferred::Drained);
        let is_empty = line.unsent.is_empty();
        self.deferred.extend(drained);
        if is_empty {
            self.on_empty(id, now);
        } else if is_parting {
            self.wheel.arm(timer_of(id), now + PARTING_STALL_MAX);
        }
    }

    /// Everything has left: ends what is to end.
    fn on_empty(&mut self, id: LineId, now: Time) {
        let Some(line) = self.find(id) else { return };
        let buffer = std::mem::take(&mut line.unsent);
        let is_securing = line.phase == Phase::Securing;
        let (is_done, has_ended) = (line.conn.is_none(), line.has_ended);
        let is_over = is_done && (has_ended || line.hangs_up); // closing says it all
        let ends = (is_done || line.is_ending) && !is_securing && !is_over;
        if ends && !std::mem::replace(&mut line.is_shut, true) {
            // An error means that the peer is gone, which its next event says.
            let _ = line.socket.shutdown(Shutdown::Write);
        }
        self.recycle(buffer);
        if is_over {
            self.remove(id);
        } else if is_done {
            // Closing with bytes unread would be a reset, which may cost the peer our last words.
            self.wheel.arm(timer_of(id), now + LINGER);
        }
    }
}

impl Hand<'_, '_> {
    fn line(&mut self, conn: Conn) -> Option<(LineId, &mut Line)> {
        let id = self.lines.of(conn)?;
        self.lines.find(id).map(|line| (id, line))
    }

    /// Watches a new line.
    pub(super) fn watch(&mut self, id: LineId) -> bool {
        let Some(fd) = self.lines.find(id).map(|it| it.socket.as_raw_fd()) else { return false };
        let token = self.around.token | u64::from(id.slot) << 32 | u64::from(id.generation);
        self.around.epoll.add(fd, token, LINE_EVENTS).is_ok()
    }

    fn open(&mut self, conn: Conn, to: SocketAddr, secure: Secure) -> Result<(), Gone> {
        let layers = match secure {
            Secure::No => None,
            Secure::Tls => {
                let security = self.around.security.ok_or(Gone::Shortage)?;
                let config = Arc::clone(security.stream_client(self.around.protocol));
                Some(Layers::tls_client(config, to).map_err(|_| Gone::Shortage)?)
            }
        };
        let any = match to.ip() {
            IpAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
        };
        let source = self.around.source.filter(|it| it.is_ipv4() == to.is_ipv4()).unwrap_or(any);
        let socket = tcp::connect(SocketAddr::new(source, 0), to).map_err(|it| why_not(&it))?;
        let _ = tcp::probe_idle(&socket); // it serves without, too
        let id = self.lines.insert(socket, to, None, Phase::Connecting, layers);
        let id = id.ok_or(Gone::Shortage)?;
        self.lines.bind(id, conn);
        if !self.watch(id) {
            self.lines.remove(id);
            return Err(Gone::Shortage);
        }
        self.lines.wheel.arm(timer_of(id), self.around.now + CONNECT_TIME_MAX);
        Ok(())
    }
}

impl Wire for Hand<'_, '_> {
    fn send(&mut self, conn: Conn, bytes: &[u8]) -> Room {
        let Some(id) = self.lines.of(conn) else { return Room::Free };
        let Some(line) = self.lines.find_with_buffer(id) else { return Room::Free };
        match &mut line.layers {
            Some(layers) => {
                if line.phase != Phase::Open {
                    line.early_bytes += bytes.len();
                }
                layers.encrypt(bytes, &mut line.unsent);
            }
            None => {
                let is_straight = bytes.len() >= STRAIGHT_BYTES_MIN
                    && line.unsent.is_empty()
                    && line.phase == Phase::Open;
                let mut rest = bytes;
                if is_straight {
                    // Errors show when the rest is flushed.
                    let count = (&line.socket).write(bytes).unwrap_or(0);
                    rest = bytes.get(count..).unwrap_or(&[]);
                }
                line.unsent.extend_from_slice(rest);
            }
        }
        let waiting =
            line.unsent.len() + if line.phase == Phase::Open { 0 } else { line.early_bytes };
        let is_slow = waiting > SLOW_BYTES_MIN;
        let is_full = waiting > QUEUE_BYTES_MAX;
        line.is_full |= is_full;
        self.lines.list(id);
        if is_slow {
            self.lines.fail(id, Gone::Slow);
        }
        if is_full { Room::Full } else { Room::Free }
    }

    fn connect(&mut self, conn: Conn, to: SocketAddr, secure: Secure) {
        if let Err(why) = self.open(conn, to, secure) {
            self.lines.deferred.push_back(Deferred::Gone(conn, why));
        }
    }

    fn pause(&mut self, conn: Conn) {
        if let Some((_, line)) = self.line(conn) {
            line.is_paused = true;
        }
    }

    fn resume(&mut self, conn: Conn) {
        if let Some((_, line)) = self.line(conn)
            && std::mem::replace(&mut line.is_paused, false)
        {
            self.lines.deferred.push_back(Deferred::Resumed(conn));
        }
    }

    fn count_for(&mut self, conn: Conn, source: IpAddr, most: usize) -> bool {
        let census = Arc::clone(self.around.census);
        let Some((_, line)) = self.line(conn) else { return false };
        drop(line.place.take());
        line.place = census.admit(Some(source), Most { all: usize::MAX, source: most }).ok();
        line.place.is_some()
    }

    fn secure(&mut self, conn: Conn) {
        let config = self.around.security.map(|it| it.stream_server(self.around.protocol));
        let layers = config.and_then(|it| Layers::tls_server(Arc::clone(it)).ok());
        let deadline = self.around.now + self.around.handshake_time;
        let Some((id, line)) = self.line(conn) else { return };
        if layers.is_none() {
            return self.lines.fail(id, Gone::Handshake);
        }
        (line.layers, line.phase) = (layers, Phase::Securing);
        self.lines.wheel.arm(timer_of(id), deadline);
    }

    fn end(&mut self, conn: Conn) {
        let Some((id, line)) = self.line(conn) else { return };
        line.is_ending = true;
        if let Some(layers) = &mut line.layers {
            layers.farewell(0, &mut line.unsent);
        }
        self.lines.list(id);
    }

    fn close(&mut self, conn: Conn) {
        self.part(conn, false);
    }

    fn hang_up(&mut self, conn: Conn) {
        self.part(conn, true);
    }

    fn abort(&mut self, conn: Conn) {
        let Some((id, _)) = self.line(conn) else { return };
        self.lines.reset(id);
    }
}

impl Hand<'_, '_> {
    fn part(&mut self, conn: Conn, hangs_up: bool) {
        let handshake_time = self.around.handshake_time;
        let Some((id, line)) = self.line(conn) else { return };
        line.conn = None;
        line.is_paused = false;
        line.has_more = false;
        line.hangs_up = hangs_up;
        let patience = match line.phase {
            Phase::Open => PARTING_STALL_MAX,
            Phase::Connecting | Phase::Securing => handshake_time,
        };
        let is_up = line.phase != Phase::Connecting;
        if let Some(layers) = line.layers.as_mut().filter(|it| it.is_open()) {
            layers.farewell(0, &mut line.unsent);
        }
        self.lines.unbind(conn, id.slot);
        if is_up {
            self.lines.wheel.arm(timer_of(id), self.around.now + patience);
            self.lines.list(id);
        } else {
            self.lines.remove(id);
        }
    }
}

/// Whether it is the peer or we who cannot: a node must not be blamed for a want of descriptors.
fn why_not(error: &io::Error) -> Gone {
    match error.raw_os_error() {
        Some(
            libc::EMFILE
            | libc::ENFILE
            | libc::ENOBUFS
            | libc::ENOMEM
            | libc::EAGAIN
            | libc::EADDRINUSE
            | libc::EADDRNOTAVAIL,
        ) => Gone::Shortage,
        _ => Gone::Refused,
    }
}

impl Line {
    /// A socket that takes bytes is good news: there are some, or it is to be ended behind them.
    pub(super) fn has_to_send(&self) -> bool {
        !self.unsent.is_empty() || self.is_full || self.is_ending || self.conn.is_none()
    }

    /// Whether an end of what a server says is no end: inside TLS it says so first (RFC 8446 §6.1), or what
    /// it said may be cut short. Clients that leave out the farewell are common and do no harm.
    pub(super) fn is_cut(&self) -> bool {
        self.listener.is_none() && self.phase == Phase::Open && self.layers.is_some()
    }

    /// The TLS handshake is done: what waited in it is in `unsent` now.
    pub(super) fn opened(&mut self) {
        self.phase = Phase::Open;
        self.early_bytes = 0;
    }
}

pub(super) fn timer_of(id: LineId) -> TimerId {
    TimerId(LINE_TIMERS + id.slot)
}

/// First timer of the lines; below are the listeners'.
pub(super) const LINE_TIMERS: u32 = 256;
const LINE_EVENTS: i32 = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET;
const NONE: u32 = u32::MAX;
/// Bytes queued towards a peer at which the relay is told to stop: what a fast network takes in a round trip.
pub(super) const QUEUE_BYTES_MAX: usize = 256 * 1024;
/// A relay that goes on all the same loses the connection: more than the longest request that is sent again.
const SLOW_BYTES_MIN: usize = 68 * QUEUE_BYTES_MAX;
/// From here on a system call of its own is cheaper than a copy.
const STRAIGHT_BYTES_MIN: usize = 16 * 1024;
/// The relays have times of their own, shorter ones; this one bounds what they forget.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(120);
/// How long a peer may take none of what was queued when its connection was closed; then it is reset.
const PARTING_STALL_MAX: Duration = Duration::from_secs(60);
/// How long a closed connection may still read our last words.
const LINGER: Duration = Duration::from_secs(2);
const SPARE_MAX: usize = 64;
const SPARE_BYTES_MAX: usize = 64 * 1024;
