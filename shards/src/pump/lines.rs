//! The connections of one stream relay on one shard: what each has to say, and how it ends.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use engine::relay::stream::{Conn, Gone};
use protocols::time::Time;
use socket2::SockRef;

use crate::census::Place;
use crate::clock::{TimerId, Wheel};
use crate::layers::Layers;
use crate::tcp;

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
    pub(super) early_bytes: usize,
    pub(super) is_paused: bool,
    /// There may be more to read, and no event will say so.
    pub(super) has_more: bool,
    /// The peer has said all it will; the relay is told once it has everything else.
    pub(super) has_ended: bool,
    /// The relay knows that the peer has ended.
    pub(super) end_told: bool,
    /// We say no more once what is queued has left.
    pub(super) is_ending: bool,
    /// We have said so.
    pub(super) is_shut: bool,
    /// The peer says no more either, and has promised it: closed as soon as that is.
    pub(super) hangs_up: bool,
    /// The peer takes nothing more, and what it said before that is still to be read.
    pub(super) is_deaf: bool,
    /// Bytes that have left.
    pub(super) sent_bytes: u64,
    /// The relay was told to stop; it hears when there is room again.
    pub(super) is_full: bool,
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
    /// With the bytes that had left on it.
    Gone(Conn, Gone, u64),
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
    /// The line that the relay is being told is gone, and what had left on it.
    pub(super) gone: Option<(Conn, u64)>,
    /// Lines that have more to read than one turn allows.
    pub(super) unread: Vec<LineId>,
    pub(super) wheel: Wheel,
    spare: Vec<Vec<u8>>,
}

impl Lines {
    pub(super) fn new() -> Lines {
        Lines {
            slots: Vec::new(),
            free: Vec::new(),
            by_conn: Vec::new(),
            listed: Vec::new(),
            deferred: VecDeque::new(),
            gone: None,
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
            is_deaf: false,
            sent_bytes: 0,
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

    pub(super) fn unbind(&mut self, conn: Conn, slot: u32) {
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
        let gone = line.conn.map(|conn| Deferred::Gone(conn, why, line.sent_bytes));
        self.deferred.extend(gone);
    }

    /// The same through no fault of the peer's, which must not take what it has for all there is.
    pub(super) fn cut(&mut self, id: LineId, why: Gone) {
        if let Some(line) = self.find(id) {
            line.closes_by_reset();
        }
        self.fail(id, why);
    }

    /// Resets whatever has something queued: the process ends, and ordinary ends would look complete.
    pub(super) fn reset_unsent(&mut self) {
        for slot in 0..u32::try_from(self.slots.len()).unwrap_or(u32::MAX) {
            let Some(id) = self.in_slot(slot) else { continue };
            if self.find(id).is_some_and(|it| !it.unsent.is_empty()) {
                self.reset(id);
            }
        }
    }

    /// Takes a line out so that the peer cannot take what it has for all there is.
    pub(super) fn reset(&mut self, id: LineId) {
        let Some(line) = self.find(id) else { return };
        line.closes_by_reset();
        self.remove(id);
    }

    /// A buffer that was used before, with these bytes.
    pub(super) fn copy(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut copy = self.spare.pop().unwrap_or_default();
        copy.extend_from_slice(bytes);
        copy
    }

    /// A line that is about to get something to send, and a buffer for it.
    pub(super) fn find_with_buffer(&mut self, id: LineId) -> Option<&mut Line> {
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
        let (mut sent, mut is_refused) = (0, false);
        let unsent = std::mem::take(&mut line.unsent);
        while let Some(rest) = unsent.get(sent..).filter(|it| !it.is_empty()) {
            match line.write(rest) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    is_refused = true;
                    break;
                }
            }
        }
        line.unsent = unsent;
        if is_refused && !line.may_have_answered() {
            return self.fail(id, Gone::Reset);
        }
        if is_refused {
            (line.is_deaf, line.has_more) = (true, true);
            sent = line.unsent.len();
        }
        line.unsent.drain(..sent);
        let is_parting = sent > 0 && line.conn.is_none() && line.phase == Phase::Open;
        let has_drained = line.is_full && line.unsent.len() < QUEUE_BYTES_MAX / 2;
        line.is_full &= !has_drained;
        let drained = line.conn.filter(|_| has_drained).map(Deferred::Drained);
        let is_empty = line.unsent.is_empty();
        self.deferred.extend(drained);
        self.unread.extend(is_refused.then_some(id));
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
        } else if is_done && !is_securing {
            // Closing with bytes unread would be a reset, which may cost the peer our last words.
            self.wheel.arm(timer_of(id), now + LINGER);
        }
    }
}

impl Line {
    /// A socket that takes bytes is good news: there are some, or it is to be ended behind them.
    pub(super) fn has_to_send(&self) -> bool {
        !self.unsent.is_empty() || self.is_full || self.is_ending || self.conn.is_none()
    }

    /// Whether an end of what a server says is no end: inside TLS it says so first (RFC 8446 §6.1), or what
    /// it said may be cut short. Clients that leave out the farewell are common and do no harm. One that
    /// took no more has reset the connection, whatever the kernel says once the error is read.
    pub(super) fn is_cut(&self) -> bool {
        let is_secure = self.phase == Phase::Open && self.layers.is_some();
        self.listener.is_none() && (is_secure || self.is_deaf)
    }

    /// A server may refuse a request in the middle and close: its answer lies in front of the reset
    /// (RFC 9112 §9.5).
    fn may_have_answered(&self) -> bool {
        self.listener.is_none() && self.conn.is_some() && self.phase == Phase::Open
    }

    /// Writes what the peer takes now. Where the end follows at once it goes along with the last bytes.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let is_last = self.conn.is_none() || self.is_ending;
        let more = if is_last && self.phase == Phase::Open { libc::MSG_MORE } else { 0 };
        let count =
            SockRef::from(&self.socket).send_with_flags(bytes, libc::MSG_NOSIGNAL | more)?;
        self.sent_bytes += count as u64;
        Ok(count)
    }

    /// The same of bytes in two places.
    pub(super) fn write_parts(&mut self, parts: [&[u8]; 2]) -> io::Result<usize> {
        let count = SockRef::from(&self.socket)
            .send_vectored_with_flags(&parts.map(IoSlice::new), libc::MSG_NOSIGNAL)?;
        self.sent_bytes += count as u64;
        Ok(count)
    }

    /// Without this its peer would see an ordinary end.
    fn closes_by_reset(&self) {
        let _ = SockRef::from(&self.socket).set_linger(Some(Duration::ZERO));
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
const NONE: u32 = u32::MAX;
/// Bytes queued towards a peer at which the relay is told to stop: what a fast network takes in a round trip.
pub(super) const QUEUE_BYTES_MAX: usize = 256 * 1024;
/// How long a peer may take none of what was queued when its connection was closed; then it is reset.
pub(super) const PARTING_STALL_MAX: Duration = Duration::from_secs(60);
/// How long a closed connection may still read our last words.
const LINGER: Duration = Duration::from_secs(2);
const SPARE_MAX: usize = 64;
const SPARE_BYTES_MAX: usize = 64 * 1024;
