//! One shard: its sockets, its relay, its timers, its mail; one [`Shard::turn`] at a time.
//!
//! What a turn does with messages is in [`crate::carry`], with connections in [`crate::streaming`]. Who
//! calls it, and how it waits, is in [`crate::driver`].

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use engine::node::NodeKey;
use engine::relay::{Arrival, Flow, Listener, ListenerId};
use engine::snapshot::Snapshot;
use hdrhistogram::Histogram;
use protocols::time::Time;
use socket2::Socket;

use crate::census::Census;
use crate::clock::{Clock, TimerId, Wheel};
use crate::decide::Decide;
use crate::logs::DropLog;
use crate::mesh::{Figures, Mail, Mailbox, Notice, Outbox, Post, Statistics};
use crate::publish::{Subscription, Tuning, View, WIND_UP};
use crate::pump::{Lent, Pumped};
use crate::sys::{Epoll, Event, EventFd, Events, TimerFd, receive_drops};
use crate::tcp::{Carried, Streams};
use crate::tls::Security;
use crate::udp::{Outgoing, Received, Recent};

/// What a shard is made of.
pub struct Setup<D: Decide> {
    /// Position among the shards.
    pub id: u8,
    /// Every listener of the process; [`ListenerId`] is the position.
    pub listeners: Vec<Listener>,
    /// This shard's socket for each.
    pub sockets: Vec<Socket>,
    /// Its decisions.
    pub relay: D,
    /// Its part of each stream relay, in the order that all shards have.
    pub pumps: Vec<Box<dyn Pumped>>,
    /// What it goes by.
    pub view: Subscription<View<D::Settings>>,
    /// Its mail.
    pub mailbox: Mailbox<D>,
    /// To the other shards.
    pub post: Post<D>,
    /// To control.
    pub outbox: Outbox<D>,
    /// The process's.
    pub clock: Clock,
    /// The process's.
    pub census: Arc<Census>,
}

/// One shard.
pub struct Shard<D: Decide> {
    pub(crate) id: u8,
    pub(crate) relay: D,
    pub(crate) now: Time,
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) listening: Vec<Listening>,
    pub(crate) received: Option<Box<Received>>,
    /// What the relay writes into; changes places with the buffers of [`Outgoing`].
    pub(crate) out: Vec<u8>,
    pub(crate) recent: Recent,
    pub(crate) streams: Streams,
    pub(crate) pumps: Vec<Box<dyn Pumped>>,
    pub(crate) scratch: Vec<u8>,
    /// What TLS makes of it.
    pub(crate) clear: Vec<u8>,
    /// Certificates and terms of TLS; `None`: no port of TLS is open.
    pub(crate) security: Option<Arc<Security>>,
    /// Connections that have more to read than one turn allows.
    pub(crate) unread: Vec<Flow>,
    /// Messages that did not reach their next hop, to be decided again.
    pub(crate) failed: VecDeque<Carried>,
    pub(crate) parked: Vec<Parked<D::Name>>,
    pub(crate) drops: DropLog,
    pub(crate) epoll: Epoll,
    pub(crate) wheel: Wheel,
    pub(crate) post: Post<D>,
    pub(crate) outbox: Outbox<D>,
    pub(crate) figures: Figures,
    pub(crate) residence: Histogram<u64>,
    pub(crate) clock: Clock,
    pub(crate) census: Arc<Census>,
    events: Option<Events>,
    due: Vec<TimerId>,
    timer: TimerFd,
    waker: Arc<EventFd>,
    mail: crossbeam_channel::Receiver<Mail<D>>,
    pub(crate) view: Subscription<View<D::Settings>>,
    /// When reports of messages handled since may be due.
    reports_due: Option<Time>,
    alarm: Option<Time>,
    is_stopping: bool,
    /// Events that pumps had in this turn.
    pumped: u64,
}

/// One listener's socket on this shard.
pub(crate) struct Listening {
    pub(crate) listener: Listener,
    /// `None` once closed.
    pub(crate) socket: Option<Socket>,
    /// What leaves from here, on datagram sockets.
    pub(crate) outgoing: Option<Outgoing>,
}

/// A message that waits for a name.
pub(crate) struct Parked<N> {
    pub(crate) name: N,
    pub(crate) arrival: Arrival,
    pub(crate) bytes: Vec<u8>,
    pub(crate) attempts: u8,
    pub(crate) since: Time,
    /// Control was asked for the name on its behalf.
    pub(crate) asked: bool,
}

/// What a turn was like.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Turn {
    /// Messages handled, and events of pumps.
    pub messages: u64,
    /// Nothing happened and nothing is left to do.
    pub is_idle: bool,
    /// The shard is done: drop it.
    pub is_over: bool,
}

impl<D: Decide> Shard<D> {
    /// Puts a shard together. Everything is watched from now on.
    ///
    /// # Errors
    ///
    /// The kernel's: out of descriptors or memory.
    pub fn new(setup: Setup<D>) -> io::Result<Shard<D>> {
        let Setup {
            id,
            listeners,
            sockets,
            mut relay,
            mut pumps,
            view,
            mailbox,
            post,
            outbox,
            clock,
            census,
        } = setup;
        let (epoll, timer) = (Epoll::new()?, TimerFd::new()?);
        epoll.add(timer.as_raw_fd(), Token::Timer.pack(), libc::EPOLLIN)?;
        epoll.add(mailbox.waker.as_raw_fd(), Token::Mail.pack(), libc::EPOLLIN)?;
        let mut listening = Vec::with_capacity(listeners.len());
        for (index, (listener, socket)) in (0u8..).zip(listeners.into_iter().zip(sockets)) {
            let id = ListenerId(index);
            let is_stream = listener.transport.is_stream();
            let token = if is_stream { Token::Accept(id) } else { Token::Datagrams(id) };
            epoll.add(socket.as_raw_fd(), token.pack(), libc::EPOLLIN)?;
            let outgoing = (!is_stream).then(Outgoing::default);
            listening.push(Listening { listener, socket: Some(socket), outgoing });
        }
        relay.configure(Arc::clone(&view.current().settings));
        for (index, pump) in (0u8..).zip(&mut pumps) {
            pump.watch(&epoll, Token::Pump { index, token: 0 }.pack())?;
        }
        let mut shard = Shard {
            id,
            relay,
            now: clock.now(),
            snapshot: Arc::clone(&view.current().snapshot),
            listening,
            received: Some(Box::default()),
            out: Vec::with_capacity(2_048),
            recent: Recent::default(),
            streams: Streams::new(id),
            pumps,
            scratch: vec![0; SCRATCH_BYTES],
            clear: Vec::new(),
            security: view.current().security.clone(),
            unread: Vec::new(),
            failed: VecDeque::new(),
            parked: Vec::new(),
            drops: DropLog::default(),
            epoll,
            wheel: Wheel::default(),
            post,
            outbox,
            figures: Figures::default(),
            residence: residence(),
            clock,
            census,
            events: Some(Events::new(EVENTS_PER_TURN)),
            due: Vec::new(),
            timer,
            waker: mailbox.waker,
            mail: mailbox.mail,
            view,
            reports_due: None,
            alarm: None,
            is_stopping: false,
            pumped: 0,
        };
        shard.show_pumps_the_table();
        Ok(shard)
    }

    /// What it goes by in its own matters.
    pub fn tuning(&self) -> Tuning {
        self.view.current().tuning
    }

    /// Figures of its own.
    pub fn figures(&self) -> &Figures {
        &self.figures
    }

    /// Counts a wait of the driver's.
    pub(crate) fn count_coalesced(&mut self) {
        self.figures.coalesced += 1;
    }

    /// Sets the alarm for the next timer. Call before waiting without a limit.
    pub fn prepare_to_wait(&mut self) {
        let end = self.view.current().stopping;
        let stop = end.map(|it| if self.is_stopping { it } else { it - WIND_UP });
        let own = [self.wheel.poll_timeout(), self.reports_due, stop];
        let pumps = self.pumps.iter().map(|it| it.poll_timeout());
        let next = own.into_iter().chain(pumps).flatten().min();
        if next != self.alarm {
            self.timer.arm(next.map(|it| it.since(self.clock.now())));
            self.alarm = next;
        }
    }

    /// Waits up to `timeout_ms` (-1: for ever) and does what there is to do.
    pub fn turn(&mut self, timeout_ms: i32) -> Turn {
        let Some(mut events) = self.events.take() else {
            return Turn { messages: 0, is_idle: true, is_over: true };
        };
        let has_leftovers = self.has_leftovers();
        let came = self.epoll.wait(&mut events, if has_leftovers { 0 } else { timeout_ms });
        let count = came.unwrap_or(0);
        self.now = self.clock.now();
        self.figures.turns += 1;
        let before = self.figures.datagrams + self.figures.stream_messages;
        self.look_at_view();
        let streams_before = self.figures.stream_messages;
        let started = self.now;
        for flow in std::mem::take(&mut self.unread) {
            self.read_stream(flow, true);
        }
        for index in 0..count {
            if let Some(event) = events.at(index) {
                self.on_event(event);
            }
        }
        self.events = Some(events);
        self.expire();
        self.wind_up();
        self.retry_failed();
        self.flush(started, self.figures.stream_messages - streams_before);
        self.turn_pumps();
        let messages = self.figures.datagrams + self.figures.stream_messages - before;
        // What connections of pumps bring is worth waiting for, too.
        let messages = messages + std::mem::take(&mut self.pumped);
        self.report(messages > 0 || count > 0);
        self.figures.busy += self.clock.now().since(self.now);
        let is_over = self.view.current().stopping.is_some_and(|it| self.now >= it);
        if is_over {
            self.part_from_all();
            for index in 0..self.pumps.len() {
                self.lend(index, |pump, lent| pump.handle_over(lent));
            }
        }
        // Whom the executor's own business has interrupted does not park: that would cost the next message a
        // way through the executor.
        Turn { messages, is_idle: came == Some(0) && !self.has_leftovers(), is_over }
    }

    fn has_leftovers(&self) -> bool {
        let pumps = || self.pumps.iter().any(|it| it.has_work());
        !self.unread.is_empty() || !self.failed.is_empty() || pumps()
    }

    /// Lends a pump what it needs of the shard.
    fn lend<T>(
        &mut self,
        index: usize,
        act: impl FnOnce(&mut dyn Pumped, &mut Lent<'_>) -> T,
    ) -> Option<T> {
        let tuning = self.tuning();
        let pump = self.pumps.get_mut(index)?;
        let mut lent = Lent {
            now: self.now,
            epoll: &self.epoll,
            scratch: &mut self.scratch,
            clear: &mut self.clear,
            security: self.security.as_deref(),
            tuning,
        };
        Some(act(pump.as_mut(), &mut lent))
    }

    /// Gives every pump its turn, and posts what it gives away.
    fn turn_pumps(&mut self) {
        for index in 0..self.pumps.len() {
            let writes = self.lend(index, |pump, lent| pump.handle_turn(lent));
            self.figures.sent += writes.unwrap_or(0);
            while let Some((shard, moved)) =
                self.pumps.get_mut(index).and_then(|it| it.poll_leaving())
            {
                let sent = u8::try_from(shard)
                    .map(|shard| self.post.send(shard, Mail::Move { pump: index, moved }));
                // Its peer sees the connection end and comes again.
                if matches!(sent, Ok(Ok(()))) {
                    self.figures.hops += 1;
                } else {
                    self.relay.dropped(engine::relay::DropReason::QueueFull);
                }
            }
        }
    }

    fn on_event(&mut self, event: Event) {
        match Token::unpack(event.token, self.id) {
            Some(Token::Mail) => {
                self.waker.clear();
                self.look_at_view();
                self.read_mail();
            }
            Some(Token::Timer) => {
                self.timer.clear();
                self.alarm = None;
            }
            Some(Token::Datagrams(listener)) => {
                if event.flags & libc::EPOLLERR.cast_unsigned() != 0 {
                    self.read_errors(listener);
                }
                self.receive_datagrams(listener);
            }
            Some(Token::Accept(listener)) => self.accept(listener),
            Some(Token::Stream(flow)) => self.on_stream_event(flow, event.flags),
            Some(Token::Pump { index, token }) => {
                self.pumped += 1;
                self.lend(index.into(), |pump, lent| pump.handle_event(lent, token, event.flags));
            }
            None => {}
        }
    }

    fn look_at_view(&mut self) {
        if !self.view.refresh() {
            return;
        }
        let view = Arc::clone(self.view.current());
        self.snapshot = Arc::clone(&view.snapshot);
        self.security.clone_from(&view.security);
        self.relay.handle_snapshot(&self.snapshot);
        self.show_pumps_the_table();
        self.relay.configure(Arc::clone(&view.settings));
    }

    fn show_pumps_the_table(&mut self) {
        let snapshot = Arc::clone(&self.snapshot);
        for index in 0..self.pumps.len() {
            self.lend(index, |pump, lent| pump.handle_snapshot(lent, &snapshot));
        }
    }

    /// Takes leave of the peers when the end is near.
    fn wind_up(&mut self) {
        let Some(end) = self.view.current().stopping else { return };
        if self.now + WIND_UP < end || std::mem::replace(&mut self.is_stopping, true) {
            return;
        }
        self.stop_accepting();
        for index in 0..self.pumps.len() {
            self.lend(index, |pump, lent| pump.handle_stopping(lent));
        }
    }

    fn read_mail(&mut self) {
        for _ in 0..MAIL_PER_TURN {
            let Ok(mail) = self.mail.try_recv() else { return };
            match mail {
                Mail::Deliver(delivery) => self.deliver_mail(*delivery),
                Mail::Statistics { question } => {
                    let statistics = Box::new(self.statistics());
                    // A full queue: the page is made without this shard.
                    self.outbox.send(Notice::Statistics { question, statistics });
                }
                Mail::Resolved { name, answer } => self.on_name(&name, answer),
                Mail::Seek(search) => self.seek_mail(*search),
                Mail::Move { pump, moved } => {
                    self.lend(pump, |pump, lent| pump.handle_moved(lent, moved));
                }
                Mail::SwitchOver { from, to } => {
                    // Its table was published before it was written.
                    self.look_at_view();
                    self.relay.switch_over(from, to);
                }
            }
        }
        self.waker.wake();
    }

    fn statistics(&mut self) -> Statistics<D::Counters> {
        let drops = |it: &Listening| it.outgoing.as_ref().and(it.socket.as_ref()).map(drops_of);
        self.figures.receive_drops = self.listening.iter().filter_map(drops).sum();
        self.figures.connections = self.streams.len() as u64;
        self.figures.parked = self.parked.len() as u64;
        let [connections_by_node, busy_by_node] = self.connections_by_node();
        let is_stopping = self.view.current().stopping.is_some();
        let counters = self.relay.counters(self.now, &self.snapshot, is_stopping).clone();
        Statistics {
            shard: self.id,
            counters,
            connections_by_node,
            busy_by_node,
            residence: self.residence.clone(),
            figures: self.figures,
            pumps: self.pumps.iter_mut().map(|it| it.show()).collect(),
        }
    }

    /// Of SIP, and those of them that are in use. A node also connects to us, from whatever port: it is
    /// known then if it is alone on its host.
    fn connections_by_node(&self) -> [BTreeMap<NodeKey, u64>; 2] {
        let mut count = BTreeMap::new();
        let mut busy = BTreeMap::new();
        for (peer, used) in self.streams.peers() {
            let alone = match self.snapshot.on(peer.ip()) {
                [alone] => Some(*alone),
                _ => None,
            };
            if let Some(node) = self.snapshot.at(peer, None, None).or(alone) {
                let key = self.snapshot.node(node).key;
                *count.entry(key).or_default() += 1;
                if used.is_some_and(|it| self.now.since(it) < TRANSACTION_TIME_MAX) {
                    *busy.entry(key).or_default() += 1;
                }
            }
        }
        [count, busy]
    }

    fn expire(&mut self) {
        let mut due = std::mem::take(&mut self.due);
        self.wheel.expire(self.now, &mut due);
        for TimerId(id) in due.drain(..) {
            match (u8::try_from(id), id.checked_sub(STREAM_TIMERS)) {
                (Ok(listener), _) => self.resume_accepting(ListenerId(listener)),
                (_, Some(slot)) => self.on_stream_timer(slot),
                _ => self.give_parked_up(),
            }
        }
        self.due = due;
    }

    /// Tells control what the relay has to report, and remembers to ask again after traffic ended.
    fn report(&mut self, is_busy: bool) {
        if is_busy && self.reports_due.is_none() {
            self.reports_due = Some(self.now + REPORT_PERIOD);
        }
        for _ in 0..REPORTS_PER_TURN {
            let Some(report) = self.relay.poll_report(self.now, &self.snapshot) else { break };
            if !self.outbox.send(Notice::Report(report)) {
                self.relay.dropped(engine::relay::DropReason::QueueFull);
                // Control, who lifts suspicions, has not heard of the last one.
                self.snapshot = Arc::clone(&self.view.current().snapshot);
            }
        }
        if let Some(name) = self.relay.poll_aging_name(self.now) {
            // One that is lost is asked for again by and by.
            self.outbox.send(Notice::Resolve { shard: self.id, name });
        }
        for pump in &mut self.pumps {
            for _ in 0..REPORTS_PER_TURN {
                let Some(report) = pump.poll_report(self.now) else { break };
                if !self.outbox.send(Notice::Report(report)) {
                    self.relay.dropped(engine::relay::DropReason::QueueFull);
                }
            }
        }
        if self.reports_due.is_some_and(|it| it <= self.now) {
            self.reports_due = None;
        }
    }

    /// The listener's sockets and queues here.
    pub(crate) fn listening(&mut self, id: ListenerId) -> Option<&mut Listening> {
        self.listening.get_mut(usize::from(id.0))
    }
}

impl<D: Decide> AsRawFd for Shard<D> {
    /// The epoll set: readable when a turn has work.
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}

impl<D: Decide> Drop for Shard<D> {
    fn drop(&mut self) {
        let is_failure = std::thread::panicking();
        self.outbox.send(Notice::Ended { shard: self.id, is_failure });
    }
}

/// What an epoll token stands for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Token {
    Mail,
    Timer,
    Datagrams(ListenerId),
    Accept(ListenerId),
    Stream(Flow),
    Pump { index: u8, token: u64 },
}

impl Token {
    /// Kind in the top 8 bits, slot or listener in the next 24, generation in the lower 32.
    pub(crate) fn pack(self) -> u64 {
        let (kind, slot, generation) = match self {
            Token::Mail => (0, 0, 0),
            Token::Timer => (1, 0, 0),
            Token::Datagrams(listener) => (2, u64::from(listener.0), 0),
            Token::Accept(listener) => (3, u64::from(listener.0), 0),
            Token::Stream(flow) => (4, u64::from(flow.slot), u64::from(flow.generation)),
            Token::Pump { index, token } => return (PUMPS + u64::from(index)) << 56 | token,
        };
        kind << 56 | slot << 32 | generation
    }

    #[allow(clippy::cast_possible_truncation)] // the fields are cut out to size
    fn unpack(token: u64, shard: u8) -> Option<Token> {
        let slot = (token >> 32 & 0x00ff_ffff) as u32;
        let listener = ListenerId(slot as u8);
        Some(match token >> 56 {
            0 => Token::Mail,
            1 => Token::Timer,
            2 => Token::Datagrams(listener),
            3 => Token::Accept(listener),
            4 => Token::Stream(Flow { shard, slot, generation: token as u32 }),
            PUMPS.. => {
                let index = ((token >> 56) - PUMPS) as u8;
                Token::Pump { index, token: token & 0x00ff_ffff_ffff_ffff }
            }
            _ => return None,
        })
    }
}

fn drops_of(socket: &Socket) -> u64 {
    u64::from(receive_drops(socket.as_raw_fd()))
}

/// An empty histogram of residence times: 100 ns to a minute, two digits. All shards' add up.
pub fn residence() -> Histogram<u64> {
    Histogram::new_with_bounds(100, 60_000_000_000, 2).unwrap_or_else(|_| unreachable!())
}

/// First kind of the pumps' tokens.
const PUMPS: u64 = 16;
/// First timer of the connections; below are the listeners' and the one of [`Parked`].
pub(crate) const STREAM_TIMERS: u32 = PARKED_TIMER + 1;
/// Timer of the messages that wait for a name.
pub(crate) const PARKED_TIMER: u32 = 256;

/// The relay holds sightings back for a quarter of a second; this is when it will let go of them.
const REPORT_PERIOD: std::time::Duration = std::time::Duration::from_millis(260);
/// 64*T1: a transaction whose messages came by a connection is over so long after the last of them, but for
/// the ringing of an INVITE, which is a call (RFC 3261 §17).
const TRANSACTION_TIME_MAX: std::time::Duration = std::time::Duration::from_secs(32);
/// Fairness between mail and sockets.
const MAIL_PER_TURN: usize = 1_024;
const REPORTS_PER_TURN: usize = 1_024;
const EVENTS_PER_TURN: usize = 128;
/// The longest message fits, and 64 KiB is what a socket gives at best.
const SCRATCH_BYTES: usize = 64 * 1024;
