//! Connections as they come, speak and go: accepting, connecting, cutting bytes into messages (RFC 3261
//! §18.3), keep-alives (RFC 5626 §3.5.1), silence. TLS and WebSocket are in [`crate::layered`].

use std::io::{self, Read as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use engine::relay::{Arrival, DropReason, Flow, Listener, ListenerId};
use protocols::sip::stream::{Frame, Framer, FramingError};
use protocols::ws::Closing;

use crate::census::{Full, Most, Place};
use crate::clock::TimerId;
use crate::decide::Decide;
use crate::layers::Layers;
use crate::logs;
use crate::publish::Tuning;
use crate::shard::{STREAM_TIMERS, Shard, Token};
use crate::sys;
use crate::tcp::{
    self, CLIENT_SILENT_MAX, Connection, End, Flushed, NODE_SILENT_MAX, Phase, notice_death,
};

impl<D: Decide> Shard<D> {
    /// Takes connections in, up to a turn's share.
    pub(crate) fn accept(&mut self, listener: ListenerId) {
        let Some(fd) = self.socket_of(listener) else { return };
        for _ in 0..ACCEPTS_PER_TURN {
            match sys::accept(fd) {
                Ok((socket, Some(peer))) => self.on_accepted(listener, socket.into(), peer),
                Ok((_, None)) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if sys::is_exhaustion(&error) => {
                    self.lack(&error, "Nobody is accepted on SIP");
                    // The kernel would report the listener again at once, for ever.
                    self.epoll.remove(fd);
                    let resume = self.now + ACCEPT_PAUSE;
                    self.wheel.arm(TimerId(u32::from(listener.0)), resume);
                    return;
                }
                // That connection is gone; the next may be well.
                Err(_) => {}
            }
        }
    }

    /// A connection cannot be had for a want of ours.
    fn lack(&mut self, error: &io::Error, what: &str) {
        self.figures.streams.shortages += 1;
        logs::shortage(self.now, what, error);
    }

    fn on_accepted(&mut self, listener: ListenerId, socket: TcpStream, peer: SocketAddr) {
        let tuning = self.tuning();
        let Some(transport) = self.listening(listener).map(|it| it.listener.transport) else {
            return;
        };
        let place = match self.census.admit(Some(peer.ip()), tuning.most()) {
            Ok(place) => place,
            Err(why) => {
                let at = format_args!("SIP/{}", transport.as_via());
                logs::refused(self.now, at, why, peer.ip());
                match why {
                    Full::All => self.figures.refused_connections += 1,
                    Full::Source => self.figures.streams.refused_source += 1,
                }
                return;
            }
        };
        let (wire, security) = (tuning.wire(transport), self.security.as_deref());
        let Ok(layers) = Layers::accepting(wire, security, tuning.message_bytes_max) else {
            self.figures.streams.tls_failed += 1;
            return;
        };
        self.figures.accepted += 1;
        self.open(listener, socket, peer, Phase::Open, layers, place);
    }

    /// Opens a connection for a leg. `None`: it failed at once, which is noted like a later failure.
    pub(crate) fn connect(&mut self, from: ListenerId, to: SocketAddr) -> Option<Flow> {
        // Clients that take all places must not cost the nodes theirs.
        let most = self.tuning().most();
        let most = Most { all: most.all.saturating_add(most.all.div_ceil(OWN_SHARE)), ..most };
        let Ok(place) = self.census.admit(None, most) else {
            self.figures.refused_connections += 1;
            return None;
        };
        let Listener { address, transport, .. } = self.listening(from)?.listener;
        let tuning = self.tuning();
        let (wire, security) = (tuning.wire(transport), self.security.as_deref());
        let Ok(layers) = Layers::connecting(wire, to, security, tuning.message_bytes_max) else {
            self.figures.streams.tls_failed += 1;
            return None;
        };
        match tcp::connect(address, to) {
            Ok(socket) => self.open(from, socket, to, Phase::Connecting, layers, place),
            Err(error) => {
                // A want of descriptors or ports is ours, no fault of the node's.
                if tcp::is_shortage(&error) {
                    self.lack(&error, "Nobody is called on SIP");
                } else {
                    self.refused(to, transport);
                }
                None
            }
        }
    }

    fn open(
        &mut self,
        listener: ListenerId,
        socket: TcpStream,
        peer: SocketAddr,
        phase: Phase,
        layers: Option<Box<Layers>>,
        place: Place,
    ) -> Option<Flow> {
        let framer = Framer::new(self.tuning().message_bytes_max);
        let fd = socket.as_raw_fd();
        let is_layered = layers.is_some();
        let flow = self.streams.insert(socket, listener, peer, phase, framer, layers)?;
        if self.epoll.add(fd, Token::Stream(flow).pack(), STREAM_EVENTS).is_err() {
            self.streams.remove(flow, End::Ours, &mut self.failed);
            return None;
        }
        if let Some(it) = self.streams.find(flow) {
            it.place = Some(place);
            let most = if it.is_ours { NODE_SILENT_MAX } else { CLIENT_SILENT_MAX };
            let _ = notice_death(&it.socket, most);
        }
        let silence = match phase {
            Phase::Connecting => CONNECT_TIME_MAX,
            _ if is_layered => self.tuning().handshake_time,
            _ => self.tuning().stream_idle,
        };
        self.wheel.arm(timer_of(flow), self.now + silence);
        Some(flow)
    }

    pub(crate) fn on_stream_event(&mut self, flow: Flow, flags: u32) {
        let has = |flag: i32| flags & flag.cast_unsigned() != 0;
        let Some(connection) = self.streams.find(flow) else { return };
        if connection.phase == Phase::Connecting {
            match connection.socket.take_error() {
                Ok(None) if !has(libc::EPOLLOUT) => return,
                Ok(None) => {
                    connection.phase = Phase::Open;
                    let is_layered = connection.layers.is_some();
                    let tuning = self.tuning();
                    let silence =
                        if is_layered { tuning.handshake_time } else { tuning.stream_idle };
                    self.wheel.arm(timer_of(flow), self.now + silence);
                    self.streams.say(flow, |layers, peer, out| layers.start(peer, out));
                }
                Ok(Some(_)) | Err(_) => return self.give_up_connecting(flow),
            }
        }
        if has(libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR) {
            self.read_stream(flow, has(libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR));
        }
        if has(libc::EPOLLOUT) {
            self.flush_stream(flow);
        }
    }

    /// Sends what a connection's peer takes now.
    fn flush_stream(&mut self, flow: Flow) {
        match self.streams.flush(flow) {
            Flushed::Dead => self.close_ended(flow),
            Flushed::Blocked => {}
            Flushed::Done => {
                let lingering = |it: &&mut Connection| matches!(it.phase, Phase::Lingering { .. });
                if let Some(it) = self.streams.find(flow).filter(lingering) {
                    // That was all; the peer sees it, and ends its side too.
                    let _ = it.socket.shutdown(Shutdown::Write);
                }
            }
        }
    }

    /// Ends a connection of our own will once what is queued has left. A client may be about to say more:
    /// it is borne until it has read that we are through. A node's requests look for another at once.
    pub(crate) fn leave(&mut self, flow: Flow) {
        let Some(connection) = self.streams.find(flow) else { return };
        if connection.is_ours || connection.phase != Phase::Open {
            self.streams.flush(flow);
            return self.close(flow);
        }
        self.streams.linger(flow);
        self.wheel.arm(timer_of(flow), self.now + LINGER_TIME_MAX);
        self.flush_stream(flow);
        self.unread.push(flow); // what came already makes no event any more
    }

    /// Throws away what a client says that we are through with. `false`: it went too far.
    fn bear(&mut self, flow: Flow, bytes: usize) -> bool {
        let Some(it) = self.streams.find(flow) else { return false };
        let Phase::Lingering { bytes_left } = &mut it.phase else { return true };
        if bytes > *bytes_left {
            self.close(flow);
            return false;
        }
        *bytes_left -= bytes;
        true
    }

    /// The peer cannot be reached: it is suspect, and its requests look for another.
    pub(crate) fn give_up_connecting(&mut self, flow: Flow) {
        if let Some(it) = self.streams.find(flow) {
            let (peer, listener) = (it.peer, it.listener);
            self.refused_by(peer, listener);
            self.close(flow);
        }
    }

    /// A peer of ours refused a connection of a listener's leg and transport.
    pub(crate) fn refused_by(&mut self, peer: SocketAddr, listener: ListenerId) {
        if let Some(transport) = self.listening(listener).map(|it| it.listener.transport) {
            self.refused(peer, transport);
        }
    }

    /// Closes a connection for a reason of ours.
    pub(crate) fn close(&mut self, flow: Flow) {
        self.wheel.cancel(timer_of(flow));
        self.streams.remove(flow, End::Ours, &mut self.failed);
    }

    /// Closes a connection that the peer has ended.
    pub(crate) fn close_ended(&mut self, flow: Flow) {
        self.wheel.cancel(timer_of(flow));
        self.streams.remove(flow, End::Peers, &mut self.failed);
    }

    /// Reads what came, up to a turn's share. `is_ending`: the end may already be among it.
    pub(crate) fn read_stream(&mut self, flow: Flow, is_ending: bool) {
        let mut scratch = std::mem::take(&mut self.scratch);
        for round in 1..=READS_PER_TURN {
            let Some(connection) = self.streams.find(flow) else { break };
            let is_lingering = matches!(connection.phase, Phase::Lingering { .. });
            if connection.phase != Phase::Open && !is_lingering {
                break;
            }
            match (&connection.socket).read(&mut scratch) {
                Ok(0) => {
                    self.on_end(flow);
                    break;
                }
                Ok(count) if is_lingering => {
                    if !self.bear(flow, count) {
                        break;
                    }
                    if round == READS_PER_TURN {
                        self.unread.push(flow);
                    }
                }
                Ok(count) => {
                    let is_plain = connection.layers.is_none();
                    let had_begun = connection.is_within_message();
                    let before = self.figures.stream_messages;
                    let came = scratch.get_mut(..count).unwrap_or(&mut []);
                    let goes_on = if is_plain {
                        self.take_in(flow, came)
                    } else {
                        self.take_in_layered(flow, came)
                    };
                    let is_new = !had_begun || self.figures.stream_messages > before;
                    self.await_more(flow, is_new);
                    if !goes_on {
                        self.flush_streams(); // an answer, if there was one
                        self.leave(flow);
                        break;
                    }
                    // Less than there was room for: that was all, and the next byte makes an event.
                    if count < scratch.len() && !is_ending {
                        break;
                    }
                    if round == READS_PER_TURN {
                        self.unread.push(flow);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    // On our own segment the kernel says why nobody acknowledged: no such host.
                    let is_lost = matches!(
                        error.kind(),
                        io::ErrorKind::TimedOut
                            | io::ErrorKind::HostUnreachable
                            | io::ErrorKind::NetworkUnreachable
                    );
                    self.on_failed_handshake(flow);
                    if is_lost {
                        self.figures.streams.lost += 1;
                        self.suspect(flow);
                        self.close(flow);
                    } else {
                        self.close_ended(flow);
                    }
                    break;
                }
            }
        }
        self.scratch = scratch;
    }

    /// Sets the time until the next bytes must have come: that of an idle connection, or less for the rest of
    /// a message that has begun. `is_new`: it has begun just now.
    fn await_more(&mut self, flow: Flow, is_new: bool) {
        let Some(it) = self.streams.find(flow) else { return };
        // A handshake has one deadline, however slowly it trickles in.
        let is_open = it.layers.as_ref().is_none_or(|it| it.is_open());
        if it.phase != Phase::Open || !is_open {
            return;
        }
        let Tuning { stream_idle: idle, message_time, .. } = self.view.current().tuning;
        let has_begun = it.is_within_message();
        if has_begun && !is_new {
            return; // whoever sends it byte by byte gains no time
        }
        let time = if has_begun { idle.min(message_time) } else { idle };
        self.wheel.arm(timer_of(flow), self.now + time);
    }

    /// The peer says no more. A node that we connected to is gone; a client may still want its answers.
    pub(crate) fn on_end(&mut self, flow: Flow) {
        let is_over = self.streams.find(flow).is_some_and(|it| {
            // WebSocket ends by frames, and half a handshake is none.
            let layers = it.layers.as_ref();
            it.phase != Phase::Open
                || it.is_ours
                || layers.is_some_and(|it| it.has_frames() || !it.is_open())
        });
        if is_over {
            self.on_failed_handshake(flow);
            self.close_ended(flow);
        } else {
            self.streams.half_close(flow);
            self.wheel.arm(timer_of(flow), self.now + HALF_CLOSED_TIME_MAX);
        }
    }

    /// Cuts what came into messages and handles them. `false`: framing is lost, close the connection.
    pub(crate) fn take_in(&mut self, flow: Flow, came: &[u8]) -> bool {
        let Some(connection) = self.streams.find(flow) else { return true };
        let (listener, source) = (connection.listener, connection.peer);
        let arrival = Arrival { now: self.now, listener, source, flow: Some(flow) };
        let mut framer = connection.framer;
        let mut partial = std::mem::take(&mut connection.partial);
        let is_whole = if partial.is_empty() {
            let cut = self.cut(&arrival, flow, &mut framer, came);
            if let Some(rest) = cut.and_then(|at| came.get(at..)).filter(|it| !it.is_empty()) {
                partial = self.streams.copy(rest);
            }
            cut.is_some()
        } else {
            partial.extend_from_slice(came);
            let cut = self.cut(&arrival, flow, &mut framer, &partial);
            partial.drain(..cut.unwrap_or(0));
            cut.is_some()
        };
        match self.streams.find(flow) {
            Some(connection) if !partial.is_empty() => {
                (connection.framer, connection.partial) = (framer, partial);
            }
            Some(connection) => {
                connection.framer = framer;
                self.streams.recycle(partial);
            }
            None => self.streams.recycle(partial),
        }
        is_whole
    }

    /// Handles every whole message at the front of `bytes` and returns how many bytes they took; `None`:
    /// framing is lost.
    fn cut(
        &mut self,
        arrival: &Arrival,
        flow: Flow,
        framer: &mut Framer,
        bytes: &[u8],
    ) -> Option<usize> {
        let mut at = 0;
        while let Some(rest) = bytes.get(at..).filter(|it| !it.is_empty()) {
            match framer.frame(rest) {
                Ok(Frame::NeedMore) => break,
                Ok(Frame::Blank { bytes }) => at += bytes,
                Ok(Frame::Ping { bytes }) => {
                    at += bytes;
                    self.answer_ping(flow);
                }
                Ok(Frame::Message(message)) => {
                    at += message.len();
                    self.figures.stream_messages += 1;
                    self.handle(arrival, message);
                }
                Err(FramingError::TooLarge { .. }) => {
                    self.refuse_large(arrival, rest);
                    return None;
                }
                Err(_) => {
                    self.refuse(arrival, rest);
                    return None;
                }
            }
        }
        Some(at)
    }

    /// Answers a keep-alive of line ends (RFC 5626 §3.5.1).
    pub(crate) fn answer_ping(&mut self, flow: Flow) {
        if let Err(reason) = self.streams.enqueue(flow, b"\r\n", &mut None) {
            self.relay.dropped(reason);
            if reason == DropReason::SlowPeer {
                self.on_full(flow);
            }
        }
    }

    /// Framing is lost: the relay counts the rest as malformed, and answers if it can read that much.
    pub(crate) fn refuse(&mut self, arrival: &Arrival, rest: &[u8]) {
        self.figures.stream_messages += 1;
        self.handle(arrival, rest);
    }

    /// The same for the start of a message above the limit: the relay sees as much as is refused (513).
    pub(crate) fn refuse_large(&mut self, arrival: &Arrival, start: &[u8]) {
        let mut whole = start.to_vec();
        whole.resize(start.len().max(self.tuning().message_bytes_max.saturating_add(1)), b' ');
        self.refuse(arrival, &whole);
    }

    /// Sends what waits on connections. Those that turn out to be dead give their requests back.
    pub(crate) fn flush_streams(&mut self) {
        let mut dead = Vec::new();
        self.figures.sent += self.streams.flush_listed(|flow| dead.push(flow));
        for flow in dead {
            self.close_ended(flow);
        }
    }

    pub(crate) fn on_stream_timer(&mut self, slot: u32) {
        let Some(flow) = self.streams.in_slot(slot) else { return };
        let Some(connection) = self.streams.find(flow) else { return };
        let is_open = connection.layers.as_ref().is_none_or(|it| it.is_open());
        let is_ours = connection.is_ours;
        match connection.phase {
            Phase::Connecting => self.give_up_connecting(flow),
            Phase::Lingering { .. } => self.close(flow),
            _ if !is_open => {
                self.figures.streams.handshake_timeouts += 1;
                if is_ours { self.give_up_connecting(flow) } else { self.close(flow) }
            }
            phase => {
                if phase == Phase::Open {
                    self.figures.streams.idle_closed += 1;
                }
                self.part(flow, Closing::GoingAway as u16);
            }
        }
    }

    pub(crate) fn resume_accepting(&mut self, listener: ListenerId) {
        let Some(fd) = self.socket_of(listener) else { return };
        if self.epoll.add(fd, Token::Accept(listener).pack(), libc::EPOLLIN).is_err() {
            self.wheel.arm(TimerId(u32::from(listener.0)), self.now + ACCEPT_PAUSE);
        }
    }

    /// The process stops: takes in who is in the queue already, or closing would reset them, and then
    /// listens no more. Datagram sockets stay.
    pub(crate) fn stop_accepting(&mut self) {
        for index in 0..u8::MAX {
            let id = ListenerId(index);
            let Some(it) = self.listening(id) else { break };
            if it.listener.transport.is_stream() {
                self.accept(id);
                if let Some(it) = self.listening(id) {
                    it.socket = None;
                }
            }
        }
    }
}

pub(crate) fn timer_of(flow: Flow) -> TimerId {
    TimerId(STREAM_TIMERS + flow.slot)
}

const STREAM_EVENTS: i32 = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET;
const ACCEPTS_PER_TURN: usize = 64;
/// How long a listener rests when descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// SYNs at 0 and 1 s get lost, the one at 3 s still counts; beyond that a caller is better off with
/// another node.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(4);
/// A client that closed its side gets the answers that come within this; most closed both sides, and
/// their descriptors must not pile up.
const HALF_CLOSED_TIME_MAX: Duration = Duration::from_secs(4);
/// A client that we are through with reads that within a round trip or two.
const LINGER_TIME_MAX: Duration = Duration::from_secs(2);
/// 256 KiB from one connection before the others have their turn.
const READS_PER_TURN: usize = 4;
/// What clients may leave of `connectionsMax` to us: a quarter more, for nodes alone.
const OWN_SHARE: usize = 4;
