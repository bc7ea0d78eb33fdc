//! Drives the relays of stream protocols (HTTP, SMPP) on the shards: sockets, TLS, queues, timers around a
//! [`StreamRelay`].
//!
//! A shard holds its pumps as [`Pumped`] and gives each its events, its turn and its mail. Bytes are read
//! into the shard's one buffer and offered to the relay from there; a connection owns memory only for
//! what its relay did not consume and its peer did not take.

mod contract;
mod doors;
mod hand;
mod lines;
#[cfg(test)]
mod tests;

use std::io::{self, Read as _};
use std::net::IpAddr;
use std::os::fd::AsRawFd as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use engine::relay::Report;
use engine::relay::stream::{Conn, Gone, UNCONSUMED_BYTES_MAX};
use engine::snapshot::Snapshot;
use protocols::time::Time;

pub use self::contract::{Driven, Lent, Moved, PumpFigures, Pumped};
pub use self::doors::Door;
use self::hand::{Hand, Surroundings};
use self::lines::{Deferred, LINE_TIMERS, Line, LineId, Lines, Phase, timer_of};
use crate::census::Census;
use crate::clock::TimerId;
use crate::publish::Subscription;
use crate::sys::Epoll;
use crate::tls::StreamProtocol;

/// What a pump is made of.
pub struct PumpSetup<R: Driven> {
    /// Its decisions, made with the settings in force.
    pub relay: R,
    /// Where its own connections come from; `None`: the kernel chooses.
    pub source: Option<IpAddr>,
    /// What it speaks inside TLS.
    pub protocol: StreamProtocol,
    /// This shard's socket for each listener of the relay, in its order.
    pub doors: Vec<Door>,
    /// What the configuration tells it.
    pub settings: Subscription<R::Settings>,
    /// Where its counters are shown when figures are asked for.
    pub counters: Arc<Mutex<R::Counters>>,
    /// Its clients, of all shards.
    pub census: Arc<Census>,
}

/// One stream relay with its connections, on one shard.
pub struct Pump<R: Driven> {
    relay: R,
    source: Option<IpAddr>,
    protocol: StreamProtocol,
    doors: Vec<Door>,
    settings: Subscription<R::Settings>,
    counters: Arc<Mutex<R::Counters>>,
    census: Arc<Census>,
    lines: Lines,
    /// Bits of every token.
    token: u64,
    snapshot: Arc<Snapshot>,
    figures: PumpFigures,
    is_stopping: bool,
    /// Lines that go on at another shard.
    leaving: Vec<(usize, Box<Moved>)>,
}

impl<R: Driven> Pump<R> {
    /// Puts a pump together.
    pub fn new(setup: PumpSetup<R>) -> Pump<R> {
        let PumpSetup { relay, source, protocol, doors, settings, counters, census } = setup;
        Pump {
            relay,
            source,
            protocol,
            doors,
            settings,
            counters,
            census,
            lines: Lines::new(),
            token: 0,
            snapshot: Arc::default(),
            figures: PumpFigures::default(),
            is_stopping: false,
            leaving: Vec::new(),
        }
    }

    /// The relay and the wire for it.
    fn both<'p>(&'p mut self, lent: &'p Lent<'_>) -> (&'p mut R, Hand<'p, 'p>, &'p Snapshot) {
        let around = Surroundings {
            now: lent.now,
            epoll: lent.epoll,
            token: self.token,
            security: lent.security,
            protocol: self.protocol,
            source: self.source,
            census: &self.census,
            handshake_time: lent.tuning.handshake_time,
        };
        (&mut self.relay, Hand { lines: &mut self.lines, around }, &self.snapshot)
    }

    /// Lets the relay handle what a peer did. `None`: it panicked, which is counted: the line that it was about
    /// must go. Its tables are at worst one connection out of step with ours; the others go on.
    fn guarded<T>(
        &mut self,
        lent: &Lent<'_>,
        handle: impl FnOnce(&mut R, &mut Hand<'_, '_>, &Snapshot) -> T,
    ) -> Option<T> {
        let (relay, mut hand, snapshot) = self.both(lent);
        let handled = catch_unwind(AssertUnwindSafe(|| handle(relay, &mut hand, snapshot)));
        if handled.is_err() {
            self.figures.panics += 1;
        }
        handled.ok()
    }

    fn on_line_event(&mut self, lent: &mut Lent<'_>, id: LineId, flags: u32) {
        let has = |flag: i32| flags & flag.cast_unsigned() != 0;
        let Some(line) = self.lines.find(id) else { return };
        if line.phase == Phase::Connecting {
            match line.socket.take_error() {
                Ok(None) if !has(libc::EPOLLOUT) => return,
                Ok(None) => self.on_connected(lent, id),
                Ok(Some(_)) | Err(_) => self.lines.fail(id, Gone::Refused),
            }
        }
        // Who is not read for now would not be found gone by reading, and this is not said again. What a
        // server said before is still worth reading.
        if has(libc::EPOLLERR)
            && let Some(line) = self.lines.find(id)
            && line.is_paused
            && line.listener.is_some()
            && !matches!(line.socket.take_error(), Ok(None))
        {
            return self.lines.fail(id, Gone::Reset);
        }
        if has(libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR) {
            if let Some(line) = self.lines.find(id) {
                line.has_more = true;
            }
            self.read(lent, id, has(libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR));
        }
        if has(libc::EPOLLOUT) && self.lines.find(id).is_some_and(|it| it.has_to_send()) {
            self.lines.flush(id, lent.now);
        }
    }

    fn on_connected(&mut self, lent: &Lent<'_>, id: LineId) {
        let Some(line) = self.lines.find(id) else { return };
        let peer = line.peer;
        match &mut line.layers {
            Some(layers) => {
                line.phase = Phase::Securing;
                layers.start(peer, &mut line.unsent);
                self.lines.wheel.arm(timer_of(id), lent.now + lent.tuning.handshake_time);
                self.lines.list(id);
            }
            None => {
                line.opened();
                self.tell_connected(lent, id);
            }
        }
    }

    fn tell_connected(&mut self, lent: &Lent<'_>, id: LineId) {
        self.lines.wheel.cancel(timer_of(id));
        self.lines.list(id);
        let Some(conn) = self.lines.find(id).and_then(|it| it.conn) else { return };
        let done =
            self.guarded(lent, |relay, hand, _| relay.handle_connected(lent.now, conn, hand));
        if done.is_none() {
            self.lines.cut(id, Gone::Reset);
        }
    }

    /// Reads what came, up to a turn's share. `is_ending`: the end may already be among it.
    fn read(&mut self, lent: &mut Lent<'_>, id: LineId, is_ending: bool) {
        let mut scratch = std::mem::take(lent.scratch);
        for round in 1..=READS_PER_TURN {
            let Some(line) = self.lines.find(id) else { break };
            if line.is_paused || line.has_ended || !line.has_more {
                break;
            }
            match (&line.socket).read(&mut scratch) {
                Ok(0) if line.is_cut() => {
                    self.lines.fail(id, Gone::Reset);
                    break;
                }
                Ok(0) => {
                    line.has_ended = true;
                    self.on_end(lent, id);
                    break;
                }
                Ok(count) => {
                    // Less than there was room for: that was all, and the next byte makes an event.
                    line.has_more = is_ending || count == scratch.len();
                    let came = scratch.get(..count).unwrap_or(&[]);
                    self.take_in(lent, id, came);
                    if round == READS_PER_TURN {
                        self.lines.unread.push(id);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    line.has_more = false;
                    break;
                }
                Err(_) => {
                    self.lines.fail(id, Gone::Reset);
                    break;
                }
            }
        }
        *lent.scratch = scratch;
    }

    fn take_in(&mut self, lent: &mut Lent<'_>, id: LineId, came: &[u8]) {
        let Some(line) = self.lines.find(id) else { return };
        if line.conn.is_none() && line.phase == Phase::Open {
            return; // the relay is done with it; what still comes is let go
        }
        let Some(layers) = &mut line.layers else { return self.offer(lent, id, came) };
        let mut clear = std::mem::take(lent.clear);
        let decrypted = layers.decrypt(came, line.peer, &mut clear, &mut line.unsent);
        let (listener, is_ours) = (line.listener, line.listener.is_none());
        let is_known = line.conn.is_some();
        match decrypted {
            Ok(progress) => {
                line.has_ended |= progress.is_ended;
                // A session ticket alone is not worth a packet: it goes along with the first answer.
                let holds_ticket = progress.secured.is_some()
                    && !is_ours
                    && layers.is_tls_1_3()
                    && !progress.is_ended;
                if progress.secured.is_some() {
                    line.opened();
                    self.figures.tls_handshakes += 1;
                    self.lines.wheel.cancel(timer_of(id));
                    match listener {
                        Some(_) if is_known => {}
                        Some(door) => self.introduce(lent, id, door),
                        None => self.tell_connected(lent, id),
                    }
                }
                if !holds_ticket {
                    self.lines.list(id);
                }
                if !clear.is_empty() {
                    self.offer(lent, id, &clear);
                }
                if progress.is_ended {
                    self.on_end(lent, id);
                }
            }
            Err(_) => {
                self.figures.tls_failed += 1;
                self.lines.flush(id, lent.now); // an alert
                let why = if is_ours { Gone::Handshake } else { Gone::Reset };
                self.lines.fail(id, why);
            }
        }
        clear.clear();
        *lent.clear = clear;
    }

    /// Offers the relay what it has kept waiting and what came behind it.
    fn offer(&mut self, lent: &mut Lent<'_>, id: LineId, came: &[u8]) {
        let Some(line) = self.lines.find(id) else { return };
        let Some(conn) = line.conn else { return };
        if line.is_paused {
            line.kept.extend_from_slice(came);
            return;
        }
        let mut kept = std::mem::take(&mut line.kept);
        let is_direct = kept.is_empty();
        if !is_direct {
            kept.extend_from_slice(came);
        }
        let offered = if is_direct { came } else { kept.as_slice() };
        let consumed = self.guarded(lent, |relay, hand, snapshot| {
            relay.handle_bytes(lent.now, conn, offered, snapshot, hand)
        });
        let Some(consumed) = consumed else {
            self.lines.recycle(kept);
            return self.lines.cut(id, Gone::Reset);
        };
        debug_assert!(consumed <= offered.len(), "the relay consumes what there is");
        if is_direct {
            let rest = came.get(consumed..).unwrap_or(&[]);
            if !rest.is_empty() {
                kept = self.lines.copy(rest);
            }
        } else {
            kept.drain(..consumed.min(kept.len()));
        }
        match self.lines.find(id) {
            Some(line) if line.phase == Phase::Securing => {
                self.take_in(lent, id, &kept); // the relay has asked for TLS behind what it consumed
                self.lines.recycle(kept);
            }
            Some(line) if line.conn == Some(conn) && !kept.is_empty() => {
                let is_too_much = kept.len() > UNCONSUMED_BYTES_MAX && !line.is_paused;
                line.kept = kept;
                if is_too_much {
                    self.lines.cut(id, Gone::Slow);
                }
            }
            _ => self.lines.recycle(kept),
        }
        self.part_with_leavers(lent);
    }

    /// Connections that the relay wants to go on at another shard.
    fn part_with_leavers(&mut self, lent: &Lent<'_>) {
        while let Some(handover) = self.relay.poll_handover() {
            let Some(line) = self.lines.take_out(handover.conn) else { continue };
            lent.epoll.remove(line.socket.as_raw_fd());
            if let Some(listener) = line.listener {
                self.leaving.push((handover.shard, Box::new(Moved { listener, line })));
            }
        }
    }

    /// The peer will say no more.
    fn on_end(&mut self, lent: &Lent<'_>, id: LineId) {
        let Some(line) = self.lines.find(id) else { return };
        let (phase, is_paused) = (line.phase, line.is_paused);
        match line.conn {
            None => {
                // Nobody is told any more; what is queued may still leave.
                if line.unsent.is_empty() || phase != Phase::Open {
                    self.lines.remove(id);
                }
            }
            Some(_) if phase == Phase::Securing => {
                self.figures.tls_failed += 1;
                self.lines.fail(id, Gone::Handshake);
            }
            Some(_) if is_paused || line.end_told => {} // later, or known
            Some(conn) => {
                line.end_told = true;
                let done = self.guarded(lent, |relay, hand, snapshot| {
                    relay.handle_end(lent.now, conn, snapshot, hand);
                });
                if done.is_none() {
                    self.lines.cut(id, Gone::Reset);
                }
            }
        }
    }

    fn on_timer(&mut self, lent: &mut Lent<'_>, TimerId(timer): TimerId) {
        let Some(slot) = timer.checked_sub(LINE_TIMERS) else {
            let Ok(door) = u8::try_from(timer) else { return };
            return self.reopen(lent, door);
        };
        let Some(id) = self.lines.in_slot(slot) else { return };
        let Some(line) = self.lines.find(id) else { return };
        match (line.conn, line.phase) {
            (None, Phase::Securing) => {
                self.figures.tls_failed += 1;
                self.lines.remove(id);
            }
            // What is queued would look whole to who reads to the end.
            (None, _) if !line.unsent.is_empty() => self.lines.reset(id),
            (None, _) => drop(self.lines.remove(id)),
            (Some(_), Phase::Connecting) => self.lines.fail(id, Gone::ConnectTimeout),
            (Some(_), Phase::Securing) => {
                self.figures.tls_failed += 1;
                self.lines.fail(id, Gone::Handshake);
            }
            (Some(_), Phase::Open) => {}
        }
    }

    /// Tells the relay what it must hear, and what that brings about, up to a turn's share.
    fn settle(&mut self, lent: &mut Lent<'_>) {
        for _ in 0..DEFERRED_PER_TURN {
            let Some(deferred) = self.lines.deferred.pop_front() else { return };
            let now = lent.now;
            match deferred {
                Deferred::Gone(conn, why, sent_bytes) => {
                    self.lines.gone = Some((conn, sent_bytes));
                    self.guarded(lent, |relay, hand, snapshot| {
                        relay.handle_gone(now, conn, why, snapshot, hand);
                    });
                    self.lines.gone = None;
                }
                Deferred::Drained(conn) => {
                    let Some(id) = self.lines.of(conn) else { continue };
                    let done =
                        self.guarded(lent, |relay, hand, _| relay.handle_drained(now, conn, hand));
                    if done.is_none() {
                        self.lines.cut(id, Gone::Reset);
                    }
                }
                Deferred::Resumed(conn) => self.on_resumed(lent, conn),
            }
        }
    }

    fn on_resumed(&mut self, lent: &mut Lent<'_>, conn: Conn) {
        let Some(id) = self.lines.of(conn) else { return };
        if self.lines.find(id).is_some_and(|it| !it.kept.is_empty() && !it.is_paused) {
            self.offer(lent, id, &[]);
        }
        self.read(lent, id, true);
        let is_late = |it: &mut Line| it.has_ended && !it.end_told && !it.is_paused;
        if self.lines.find(id).is_some_and(is_late) {
            self.on_end(lent, id);
        }
    }
}

impl<R: Driven> Pumped for Pump<R> {
    fn watch(&mut self, epoll: &Epoll, token: u64) -> io::Result<()> {
        self.token = token;
        for (door, it) in (0u8..).zip(&self.doors) {
            epoll.add(it.socket.as_raw_fd(), token | u64::from(door) | DOOR, libc::EPOLLIN)?;
        }
        Ok(())
    }

    #[allow(clippy::cast_possible_truncation)] // the fields are cut out to size
    fn handle_event(&mut self, lent: &mut Lent<'_>, token: u64, flags: u32) {
        let slot = (token >> 32 & 0x00ff_ffff) as u32;
        if token & DOOR == DOOR {
            self.accept(lent, token as u8, false);
        } else {
            self.on_line_event(lent, LineId { slot, generation: token as u32 }, flags);
        }
        self.settle(lent);
    }

    fn handle_snapshot(&mut self, lent: &mut Lent<'_>, snapshot: &Arc<Snapshot>) {
        self.snapshot = Arc::clone(snapshot);
        let now = lent.now;
        self.guarded(lent, |relay, hand, snapshot| relay.handle_snapshot(now, snapshot, hand));
        self.settle(lent);
    }

    fn handle_stopping(&mut self, lent: &mut Lent<'_>) {
        self.is_stopping = true;
        for door in 0..u8::try_from(self.doors.len()).unwrap_or(u8::MAX) {
            self.accept(lent, door, true); // who is in the queue would be reset
        }
        self.doors.clear();
        let now = lent.now;
        self.guarded(lent, |relay, hand, _| relay.handle_stopping(now, hand));
        self.settle(lent);
    }

    fn handle_over(&mut self, lent: &mut Lent<'_>) {
        let (relay, mut hand, _) = self.both(lent);
        relay.handle_over(&mut hand);
        self.lines.reset_unsent();
    }

    fn handle_moved(&mut self, lent: &mut Lent<'_>, moved: Box<Moved>) {
        let Moved { listener, line } = *moved;
        let Line { socket, peer, phase, layers, kept, unsent, has_ended, place, .. } = line;
        let inserted = self.lines.insert(socket, peer, Some(listener), phase, layers);
        let Some(id) = inserted else { return };
        if let Some(line) = self.lines.find(id) {
            (line.unsent, line.place) = (unsent, place);
            (line.has_ended, line.has_more) = (has_ended, true);
        }
        self.enter(lent, id, listener);
        self.lines.list(id);
        if !kept.is_empty() {
            self.offer(lent, id, &kept);
        }
        if has_ended {
            self.on_end(lent, id);
        }
        self.settle(lent);
    }

    fn handle_turn(&mut self, lent: &mut Lent<'_>) -> u64 {
        if self.settings.refresh() {
            let settings = Arc::clone(self.settings.current());
            let now = lent.now;
            self.guarded(lent, |relay, hand, snapshot| {
                relay.configure(now, &settings, snapshot, hand);
            });
        }
        for id in std::mem::take(&mut self.lines.unread) {
            self.read(lent, id, true);
        }
        let mut due = Vec::new();
        self.lines.wheel.expire(lent.now, &mut due);
        for timer in due {
            self.on_timer(lent, timer);
        }
        if self.relay.poll_timeout().is_some_and(|it| it <= lent.now) {
            let now = lent.now;
            self.guarded(lent, |relay, hand, snapshot| relay.handle_timeout(now, snapshot, hand));
        }
        self.settle(lent);
        let mut writes = 0;
        for _ in 0..FLUSHES_PER_TURN {
            let left = self.lines.flush_listed(lent.now);
            writes += left;
            if left == 0 {
                break;
            }
            self.settle(lent);
        }
        writes
    }

    fn poll_timeout(&self) -> Option<Time> {
        [self.relay.poll_timeout(), self.lines.wheel.poll_timeout()].into_iter().flatten().min()
    }

    fn has_work(&self) -> bool {
        let Lines { unread, deferred, .. } = &self.lines;
        !unread.is_empty() || !deferred.is_empty() || self.lines.has_listed()
    }

    fn poll_report(&mut self, now: Time) -> Option<Report> {
        self.relay.poll_report(now, &self.snapshot)
    }

    fn poll_leaving(&mut self) -> Option<(usize, Box<Moved>)> {
        self.leaving.pop()
    }

    fn show(&mut self) -> PumpFigures {
        let counters = self.relay.counters();
        *self.counters.lock().unwrap_or_else(PoisonError::into_inner) = counters;
        self.figures
    }
}

/// Marks the tokens of listeners: no line has so high a slot.
const DOOR: u64 = 0x00ff_ffff << 32;
/// 256 KiB from one connection before the others have their turn.
const READS_PER_TURN: usize = 4;
/// What one event brings about is told in the same turn, within reason.
const DEFERRED_PER_TURN: usize = 4_096;
/// A flush may drain a queue, which may fill another.
const FLUSHES_PER_TURN: usize = 16;
