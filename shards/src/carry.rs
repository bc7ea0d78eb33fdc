//! What a shard does with one message: asks the relay, carries its verdict out, and asks again when the
//! next hop fails.
//!
//! From receive to send nothing is allocated, locked or formatted on the UDP path: the relay writes into
//! a buffer that changes places with one of the batch that leaves.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use engine::relay::{
    Again, Arrival, DropReason, Failure, Flow, Hop, Leg, Listener, ListenerId, Provisional, Verdict,
};
use protocols::sip::Transport;
use protocols::time::Time;

use crate::clock::TimerId;
use crate::decide::Decide;
use crate::layers::is_websocket;
use crate::logs::Whose;
use crate::mesh::{Delivery, Mail, Notice, Search};
use crate::shard::{Listening, PARKED_TIMER, Parked, Shard};
use crate::tcp::{Carried, Phase};
use crate::udp::{BATCH, Letter, Next, Outgoing, is_refusal, take_error};

/// The message that something to be sent was made of.
#[derive(Clone, Copy)]
pub(crate) struct Origin<'m> {
    arrival: &'m Arrival,
    bytes: &'m [u8],
    attempts: u8,
}

impl<D: Decide> Shard<D> {
    /// Takes in what waits on a listener, up to a turn's share.
    pub(crate) fn receive_datagrams(&mut self, listener: ListenerId) {
        let Some(fd) = self.socket_of(listener) else { return };
        let Some(mut received) = self.received.take() else { return };
        for _ in 0..BATCHES_PER_TURN {
            let count = match received.receive(fd) {
                Ok(count) => count,
                Err(_) => {
                    // An earlier datagram's error; it is cleared by being told of.
                    self.read_errors(listener);
                    continue;
                }
            };
            if count == 0 {
                break;
            }
            self.now = self.clock.now();
            self.figures.batches += 1;
            self.figures.datagrams += count as u64;
            for index in 0..count {
                let Some((source, bytes)) = received.at(index) else { continue };
                let arrival = Arrival { now: self.now, listener, source, flow: None };
                self.handle(&arrival, bytes);
            }
            self.flush_datagrams(self.now, count as u64);
            if count < BATCH {
                break;
            }
        }
        self.received = Some(received);
    }

    /// The open socket of a listener.
    pub(crate) fn socket_of(&self, id: ListenerId) -> Option<RawFd> {
        Some(self.listening.get(usize::from(id.0))?.socket.as_ref()?.as_raw_fd())
    }

    /// Decides one message and does what the verdict says.
    #[inline]
    pub(crate) fn handle(&mut self, arrival: &Arrival, bytes: &[u8]) {
        if let Some(it) = arrival.flow.and_then(|it| self.streams.find(it)) {
            it.used = Some(self.now);
        }
        self.decide(arrival, bytes, 0, |relay, snapshot, out| {
            relay.handle(arrival, bytes, snapshot, out)
        });
    }

    #[inline]
    fn decide(
        &mut self,
        arrival: &Arrival,
        bytes: &[u8],
        attempts: u8,
        decide: impl FnOnce(&mut D, &engine::snapshot::Snapshot, &mut Vec<u8>) -> Verdict,
    ) {
        let mut out = std::mem::take(&mut self.out);
        let (relay, snapshot) = (&mut self.relay, &self.snapshot);
        // The relay's state is counters, caches and buffers that it clears first: nothing in it is
        // worse than stale after a panic half way.
        match catch_unwind(AssertUnwindSafe(|| decide(relay, snapshot, &mut out))) {
            Ok(verdict) => self.carry_out(arrival, bytes, attempts, verdict, &mut out),
            Err(_) => self.drop_of(Whose::Source(arrival.source), DropReason::Panic),
        }
        self.out = out;
    }

    fn carry_out(
        &mut self,
        arrival: &Arrival,
        bytes: &[u8],
        attempts: u8,
        verdict: Verdict,
        out: &mut Vec<u8>,
    ) {
        match verdict {
            Verdict::Forward { hop, is_request, reply } => {
                let start = reply.map_or(0, |it| it.bytes);
                if let Some(Provisional { hop, bytes }) = reply {
                    self.answer(hop, out.get(..bytes).unwrap_or(&[]));
                }
                if let Hop::Datagram { to, .. } = hop
                    && is_request
                {
                    let sent = out.get(start..).unwrap_or(&[]);
                    self.recent.remember(arrival, bytes, to, sent, attempts);
                }
                self.send(hop, out, start, Some(Origin { arrival, bytes, attempts }));
            }
            Verdict::Reply { hop } => self.send(hop, out, 0, None),
            Verdict::Resolve => self.park(arrival, bytes, attempts),
            // The relay has counted it.
            Verdict::Drop(reason) => {
                self.drops.note(self.now, reason, Whose::Source(arrival.source));
            }
        }
    }

    /// Counts and logs a message that went nowhere.
    fn drop_of(&mut self, whose: Whose, reason: DropReason) {
        self.relay.dropped(reason);
        self.drops.note(self.now, reason, whose);
    }

    /// Queues `out[start..]` for its hop. May take `out` over and leave another buffer for it.
    fn send(&mut self, hop: Hop, out: &mut Vec<u8>, start: usize, origin: Option<Origin<'_>>) {
        match hop {
            Hop::Datagram { from, to } => {
                let source = origin.map(|it| it.arrival.source);
                match self.outgoing(from) {
                    Some(outgoing) => outgoing.push(out, start, to, source),
                    None => self.drop_of(Whose::Receiver(to), DropReason::NoListener),
                }
            }
            Hop::Flow { flow, .. } if flow.shard != self.id => {
                self.post_to(flow.shard, out.get(start..).unwrap_or(&[]), hop, origin);
            }
            Hop::Flow { flow, or, is_response } => {
                let bytes = out.get(start..).unwrap_or(&[]);
                let takes = |phase| match phase {
                    Phase::Connecting | Phase::Open => true,
                    Phase::HalfClosed => is_response,
                    Phase::Lingering { .. } => false,
                };
                if self.streams.find(flow).is_some_and(|it| takes(it.phase)) {
                    self.enqueue(flow, bytes, hop, origin);
                } else if let Some((from, to)) = or {
                    self.send_to_peer(from, to, bytes, hop, origin);
                } else {
                    self.fail(DropReason::ConnectionGone, hop, origin);
                }
            }
            Hop::Stream { from, to } => {
                self.send_to_peer(from, to, out.get(start..).unwrap_or(&[]), hop, origin);
            }
        }
    }

    /// Our own answer, in front of a message that goes on.
    fn answer(&mut self, hop: Hop, bytes: &[u8]) {
        match hop {
            Hop::Datagram { from, to } => {
                if let Some(outgoing) = self.outgoing(from) {
                    outgoing.push_copy(bytes, to);
                }
            }
            Hop::Flow { .. } | Hop::Stream { .. } => {
                self.send(hop, &mut bytes.to_vec(), 0, None);
            }
        }
    }

    /// The batch that leaves from a listener, with room for one more.
    fn outgoing(&mut self, from: ListenerId) -> Option<&mut Outgoing> {
        if self.listening(from)?.outgoing.as_ref()?.is_full() {
            self.flush_listener(from);
        }
        self.listening(from)?.outgoing.as_mut()
    }

    /// Queues bytes on the connection to a peer, which is opened if there is none.
    fn send_to_peer(
        &mut self,
        from: ListenerId,
        to: SocketAddr,
        bytes: &[u8],
        hop: Hop,
        origin: Option<Origin<'_>>,
    ) {
        if let Some(flow) = self.connection_to(from, to) {
            return self.enqueue(flow, bytes, hop, origin);
        }
        let Some(listener) = self.listening(from).map(|it| it.listener) else {
            return self.fail(DropReason::NoListener, hop, origin);
        };
        // A client may have connected to another shard; to nodes each shard has a connection of its own.
        if self.is_client(&listener, to) && self.post.shards() > 1 {
            let carried = origin.map(|it| self.keep(it, hop));
            let bytes = bytes.to_vec();
            return self.pass_on(Search { from, to, origin: self.id, bytes, carried });
        }
        self.call(&listener, from, to, bytes, hop, origin);
    }

    /// The connection to a peer, where there is one. Clients on secure WebSocket call it `ws`, too.
    fn connection_to(&self, from: ListenerId, to: SocketAddr) -> Option<Flow> {
        let found = self.streams.towards(from, to);
        let plain = self.listening.get(usize::from(from.0))?.listener;
        if found.is_some() || plain.transport != Transport::Ws {
            return found;
        }
        let is_secure = |it: &Listening| {
            (it.listener.leg, it.listener.transport) == (plain.leg, Transport::Wss)
                && it.listener.address.is_ipv4() == plain.address.is_ipv4()
        };
        let at = self.listening.iter().position(is_secure)?;
        self.streams.towards(ListenerId(u8::try_from(at).ok()?), to)
    }

    /// Whether a peer on a listener's leg is none of the nodes, which share the only leg in single-entry
    /// mode.
    fn is_client(&self, listener: &Listener, to: SocketAddr) -> bool {
        listener.leg == Leg::External && self.snapshot.at(to, None, None).is_none()
    }

    /// Connects to a peer, unless it is a client that cannot be called (RFC 7118 §5).
    fn call(
        &mut self,
        listener: &Listener,
        from: ListenerId,
        to: SocketAddr,
        bytes: &[u8],
        hop: Hop,
        origin: Option<Origin<'_>>,
    ) {
        let flow = if is_websocket(listener.transport) && self.is_client(listener, to) {
            None
        } else {
            self.connect(from, to)
        };
        match flow {
            Some(flow) => self.enqueue(flow, bytes, hop, origin),
            None => self.fail(DropReason::ConnectionGone, hop, origin),
        }
    }

    /// Hands a search to the next shard.
    fn pass_on(&mut self, search: Search) {
        let shards = u8::try_from(self.post.shards()).unwrap_or(u8::MAX);
        let next = (self.id + 1) % shards.max(1);
        match self.post.send(next, Mail::Seek(Box::new(search))) {
            Ok(()) => self.figures.hops += 1,
            Err(Mail::Seek(search)) => self.lose(DropReason::QueueFull, search.carried),
            Err(_) => {}
        }
    }

    /// Another shard's search for a client's connection, or our own that comes back.
    pub(crate) fn seek_mail(&mut self, search: Search) {
        let Search { from, to, origin: who, .. } = search;
        let found = self.connection_to(from, to);
        if found.is_none() && who != self.id {
            return self.pass_on(search);
        }
        let hop = Hop::Stream { from, to };
        let origin = search.carried.as_ref().map(|it| Origin {
            arrival: &it.arrival,
            bytes: &it.bytes,
            attempts: it.attempts,
        });
        match (found, self.listening(from).map(|it| it.listener)) {
            (Some(flow), _) => self.enqueue(flow, &search.bytes, hop, origin),
            (None, Some(listener)) => self.call(&listener, from, to, &search.bytes, hop, origin),
            (None, None) => self.fail(DropReason::NoListener, hop, origin),
        }
    }

    fn enqueue(&mut self, flow: Flow, bytes: &[u8], hop: Hop, origin: Option<Origin<'_>>) {
        let mut carried = origin.map(|it| self.keep(it, hop));
        if let Some(it) = self.streams.find(flow) {
            it.used = Some(self.now);
        }
        let Err(reason) = self.streams.enqueue(flow, bytes, &mut carried) else { return };
        self.lose(reason, carried);
        if reason == DropReason::SlowPeer {
            self.on_full(flow);
        }
    }

    fn keep(&mut self, origin: Origin<'_>, hop: Hop) -> Carried {
        Carried {
            arrival: *origin.arrival,
            bytes: self.streams.copy(origin.bytes),
            attempts: origin.attempts,
            hop,
            reason: DropReason::ConnectionGone,
            again: Again::Elsewhere,
        }
    }

    /// The next hop cannot be reached: decide again, or count what is lost.
    fn fail(&mut self, reason: DropReason, hop: Hop, origin: Option<Origin<'_>>) {
        let carried = origin.map(|it| self.keep(it, hop));
        self.lose(reason, carried);
    }

    /// A message has not got where it was to go: decide again, or count what is lost.
    fn lose(&mut self, reason: DropReason, carried: Option<Carried>) {
        match carried {
            Some(it) => {
                self.failed.push_back(Carried { reason, again: Again::Elsewhere, ..it });
            }
            None => self.relay.dropped(reason),
        }
    }

    /// Hands bytes to the shard that owns the connection.
    fn post_to(&mut self, shard: u8, bytes: &[u8], hop: Hop, origin: Option<Origin<'_>>) {
        let carried = origin.map(|it| self.keep(it, hop));
        let delivery = Delivery { hop, bytes: bytes.to_vec(), carried };
        match self.post.send(shard, Mail::Deliver(Box::new(delivery))) {
            Ok(()) => self.figures.hops += 1,
            Err(Mail::Deliver(delivery)) => self.lose(DropReason::QueueFull, delivery.carried),
            Err(_) => {}
        }
    }

    /// Another shard's message for a connection of ours.
    pub(crate) fn deliver_mail(&mut self, delivery: Delivery) {
        let Delivery { hop, mut bytes, carried } = delivery;
        let origin = carried.as_ref().map(|it| Origin {
            arrival: &it.arrival,
            bytes: &it.bytes,
            attempts: it.attempts,
        });
        if matches!(hop, Hop::Flow { flow, .. } if flow.shard == self.id) {
            self.send(hop, &mut bytes, 0, origin);
        }
    }

    /// Decides again what did not reach its next hop.
    pub(crate) fn retry_failed(&mut self) {
        for _ in 0..RETRIES_PER_TURN {
            let Some(Carried { mut arrival, bytes, attempts, hop, reason, again }) =
                self.failed.pop_front()
            else {
                return;
            };
            arrival.now = self.now;
            let is_over = attempts >= ATTEMPTS_MAX;
            self.figures.retried += u64::from(!is_over);
            let again = if is_over { Again::Nowhere } else { again };
            let failed = Failure { hop: Some(hop), reason, again };
            self.decide(&arrival, &bytes, attempts.saturating_add(1), |relay, snapshot, out| {
                relay.undelivered(&arrival, &bytes, failed, snapshot, out)
            });
            self.streams.recycle(bytes);
        }
    }

    /// A node refused: avoid it here, by this transport, from now on, and let control know.
    pub(crate) fn refused(&mut self, address: SocketAddr, transport: Transport) {
        let told = self.relay.refused(address, transport, &self.snapshot);
        let Some((key, way)) = told else { return };
        let node = self.snapshot.find(key).map(|it| self.snapshot.node(it));
        if node.is_some_and(|it| !it.suspect.has(way)) {
            self.snapshot = Arc::new(self.snapshot.suspecting(key, way));
        }
    }

    /// Empties the socket's error queue: who refused what.
    pub(crate) fn read_errors(&mut self, listener: ListenerId) {
        let Some(fd) = self.socket_of(listener) else { return };
        let mut quoted = [0; 1_024];
        for _ in 0..ERRORS_PER_TURN {
            let Some(returned) = take_error(fd, &mut quoted) else { return };
            // Anybody can send such an error: it counts only if it quotes what was really sent there.
            if is_refusal(returned.error)
                && self.retry_datagram(
                    listener,
                    returned.to,
                    quoted.get(..returned.length).unwrap_or(&[]),
                )
            {
                self.refused(returned.to, Transport::Udp);
            }
        }
    }

    /// Looks for another way for the request that went there as `sent`, and all that left with it. `false`:
    /// none is known.
    fn retry_datagram(&mut self, from: ListenerId, to: SocketAddr, sent: &[u8]) -> bool {
        let taken = self.recent.take(to, sent);
        let is_known = !taken.is_empty();
        for request in taken {
            self.failed.push_back(Carried {
                arrival: request.arrival,
                bytes: self.streams.copy(&request.bytes),
                attempts: request.attempts,
                hop: Hop::Datagram { from, to },
                reason: DropReason::ConnectionGone,
                again: Again::Elsewhere,
            });
            self.recent.recycle(request);
        }
        is_known
    }

    /// Sends everything that is queued, and records how long `messages` were here since `received`.
    pub(crate) fn flush(&mut self, received: Time, messages: u64) {
        self.flush_datagrams(received, 0);
        self.flush_streams();
        self.record(received, messages);
    }

    fn flush_datagrams(&mut self, received: Time, messages: u64) {
        for index in 0..self.listening.len() {
            if let Ok(index) = u8::try_from(index) {
                self.flush_listener(ListenerId(index));
            }
        }
        self.record(received, messages);
    }

    fn record(&mut self, received: Time, messages: u64) {
        if messages > 0 {
            let nanos = self.clock.now().since(received).as_nanos();
            self.residence.saturating_record_n(u64::try_from(nanos).unwrap_or(u64::MAX), messages);
        }
    }

    fn flush_listener(&mut self, id: ListenerId) {
        let Some(it) = self.listening.get_mut(usize::from(id.0)) else { return };
        let (Some(socket), Some(outgoing)) = (it.socket.as_ref(), it.outgoing.as_mut()) else {
            return;
        };
        if outgoing.is_empty() {
            return;
        }
        let mut has_errors = false;
        // Letters whose destination cannot be reached at all; rare.
        let mut unreachable: Vec<(SocketAddr, Vec<u8>)> = Vec::new();
        let may_couple = self.view.current().tuning.couples_datagrams;
        let (relay, drops, now) = (&mut self.relay, &mut self.drops, self.now);
        let mut drop_letter = |letter: &Letter, reason| {
            relay.dropped(reason);
            if let Some(to) = letter.to() {
                drops.note(now, reason, Whose::Receiver(to));
            }
        };
        let sent =
            outgoing.send(socket.as_raw_fd(), may_couple, |letter: &Letter, error, failures| {
                has_errors = true;
                let code = error.raw_os_error().unwrap_or(0);
                match code {
                    libc::EINTR => Next::Again,
                    libc::EAGAIN | libc::ENOBUFS => {
                        drop_letter(letter, DropReason::SendFull);
                        Next::Skip
                    }
                    libc::EMSGSIZE => {
                        drop_letter(letter, DropReason::TooLarge);
                        Next::Skip
                    }
                    // Told of an earlier datagram, or of this one if it is told again and again.
                    _ if is_refusal(code) && failures < REFUSALS_MAX => Next::Again,
                    _ => {
                        drop_letter(letter, DropReason::SendError);
                        if is_refusal(code) {
                            unreachable
                                .extend(letter.to().map(|to| (to, letter.payload().to_vec())));
                        }
                        Next::Skip
                    }
                }
            });
        self.figures.sent += sent as u64;
        self.recent.end_batch();
        if has_errors {
            self.read_errors(id);
            for (to, payload) in unreachable {
                self.refused(to, Transport::Udp);
                self.retry_datagram(id, to, &payload);
            }
        }
    }

    /// Sets a message aside until its name is resolved.
    fn park(&mut self, arrival: &Arrival, bytes: &[u8], attempts: u8) {
        let Some(name) = self.relay.wanted_name() else {
            return self.drop_of(Whose::Source(arrival.source), DropReason::Unresolved);
        };
        if self.parked.len() >= PARKED_MAX || attempts >= NAME_ATTEMPTS_MAX {
            return self.give_up(arrival, bytes, DropReason::Unresolved);
        }
        // An answer that a full mailbox has lost is asked for again.
        let now = self.now;
        let was_asked = |it: &Parked<D::Name>| it.asked && now.since(it.since) < ASK_AGAIN_AFTER;
        let is_asked = self.parked.iter().any(|it| it.name == name && was_asked(it));
        let notice = || Notice::Resolve { shard: self.id, name: name.clone() };
        if !is_asked && !self.outbox.send(notice()) {
            return self.give_up(arrival, bytes, DropReason::QueueFull);
        }
        let bytes = self.streams.copy(bytes);
        let (arrival, since) = (*arrival, self.now);
        self.parked.push(Parked { name, arrival, bytes, attempts, since, asked: !is_asked });
        if self.parked.len() == 1 {
            self.wheel.arm(TimerId(PARKED_TIMER), since + PARKED_TIME_MAX);
        }
    }

    /// The resolver answered: decide what waited for it.
    pub(crate) fn on_name(&mut self, name: &D::Name, answer: D::Answer) {
        self.relay.handle_name(self.now, name.clone(), answer);
        let waiting: Vec<_> = self.parked.extract_if(.., |it| it.name == *name).collect();
        for Parked { mut arrival, bytes, attempts, .. } in waiting {
            arrival.now = self.now;
            self.decide(&arrival, &bytes, attempts + 1, |relay, snapshot, out| {
                relay.resume(&arrival, &bytes, snapshot, out)
            });
            self.streams.recycle(bytes);
        }
    }

    /// The name of its next hop will not be known in time: whoever waits for an answer hears it now.
    fn give_up(&mut self, arrival: &Arrival, bytes: &[u8], reason: DropReason) {
        let failed = Failure { hop: None, reason, again: Again::Nowhere };
        let mut is_answered = false;
        self.decide(arrival, bytes, 0, |relay, snapshot, out| {
            let verdict = relay.undelivered(arrival, bytes, failed, snapshot, out);
            is_answered = matches!(verdict, Verdict::Reply { .. });
            verdict
        });
        // Else the relay has counted it.
        if is_answered {
            self.drop_of(Whose::Source(arrival.source), reason);
        }
    }

    /// Gives up what waited too long for its name.
    pub(crate) fn give_parked_up(&mut self) {
        let now = self.now;
        let is_late = |it: &Parked<D::Name>| it.since + PARKED_TIME_MAX <= now;
        let late: Vec<_> = self.parked.extract_if(.., |it| is_late(it)).collect();
        for Parked { arrival, bytes, .. } in late {
            self.give_up(&arrival, &bytes, DropReason::Unresolved);
            self.streams.recycle(bytes);
        }
        if let Some(oldest) = self.parked.iter().map(|it| it.since).min() {
            self.wheel.arm(TimerId(PARKED_TIMER), oldest + PARKED_TIME_MAX);
        }
    }
}

/// Batches read from one socket before the others have their turn.
const BATCHES_PER_TURN: usize = 16;
/// Hops tried for one message: the first, and three more. Whoever waits for an answer then hears 503.
const ATTEMPTS_MAX: u8 = 3;
const RETRIES_PER_TURN: usize = 256;
const ERRORS_PER_TURN: usize = 256;
/// Errors in a row before one is taken to be the letter's own.
const REFUSALS_MAX: usize = 8;
/// Messages that may wait for names, per shard; and how long: the resolver itself gives up sooner.
const PARKED_MAX: usize = 256;
const PARKED_TIME_MAX: Duration = Duration::from_secs(16);
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(8);
/// Names that one message may need before it is given up.
const NAME_ATTEMPTS_MAX: u8 = 8;
