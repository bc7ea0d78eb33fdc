//! Connections with TLS, WebSocket or both between bytes and messages: handshakes, frames, goodbyes.
//!
//! Each read goes through the layers once, into the shard's buffer, and then the way that plain TCP goes;
//! with WebSocket each message of frames is one SIP message (RFC 7118 §5).

use std::time::Duration;

use engine::relay::{Arrival, Flow};
use log::debug;
use protocols::ws::{Closing, Event, Reader, Violation};

use crate::decide::Decide;
use crate::layers::{Failure, Progress, Upgraded, echo};
use crate::shard::Shard;
use crate::streaming::timer_of;
use crate::tcp::{Connection, Phase};

impl<D: Decide> Shard<D> {
    /// Takes in what came on a connection with layers. `false`: close it once what is queued has left.
    pub(crate) fn take_in_layered(&mut self, flow: Flow, came: &mut [u8]) -> bool {
        let Some(connection) = self.streams.find(flow) else { return true };
        let peer = connection.peer;
        let Some(layers) = &mut connection.layers else { return true };
        let was_open = layers.is_open();
        if !layers.has_tls() {
            return self.take_in_clear(flow, came, was_open);
        }
        let mut clear = std::mem::take(&mut self.clear);
        let decrypted = layers.decrypt(came, peer, &mut clear, &mut connection.unsent);
        self.streams.list(flow);
        let goes_on = match decrypted {
            Ok(Progress { secured, is_ended }) => {
                if let Some(is_resumed) = secured {
                    self.figures.streams.tls_handshakes += 1;
                    self.figures.streams.tls_resumed += u64::from(is_resumed);
                }
                let goes_on = self.take_in_clear(flow, &mut clear, was_open);
                if goes_on && is_ended {
                    self.on_end(flow);
                }
                goes_on
            }
            Err(failure) => {
                debug!("{peer}: {failure:?}");
                match failure {
                    Failure::Handshake(_) => self.on_failed_handshake(flow),
                    Failure::Record(_) => {
                        self.figures.streams.tls_broken += 1;
                        self.give_up_node(flow);
                    }
                }
                false
            }
        };
        clear.clear();
        self.clear = clear;
        goes_on
    }

    /// Takes in bytes as they are inside of TLS, or without it.
    fn take_in_clear(&mut self, flow: Flow, came: &mut [u8], was_open: bool) -> bool {
        let Some(connection) = self.streams.find(flow) else { return true };
        let Some(layers) = &connection.layers else { return true };
        if !layers.has_frames() {
            if !was_open && layers.is_open() {
                self.on_open(flow);
            }
            return came.is_empty() || self.take_in(flow, came);
        }
        let mut partial = std::mem::take(&mut connection.partial);
        let goes_on = if partial.is_empty() {
            let cut = self.cut_frames(flow, came);
            if let Some(rest) = cut.and_then(|at| came.get(at..)).filter(|it| !it.is_empty()) {
                partial = self.streams.copy(rest);
            }
            cut.is_some()
        } else {
            partial.extend_from_slice(came);
            let cut = self.cut_frames(flow, &mut partial);
            partial.drain(..cut.unwrap_or(0));
            cut.is_some()
        };
        match self.streams.find(flow) {
            Some(connection) if !partial.is_empty() => connection.partial = partial,
            _ => self.streams.recycle(partial),
        }
        goes_on
    }

    /// Handles what stands whole at the front of `bytes`, handshake or frames; returns how many bytes it
    /// took. `None`: close the connection.
    fn cut_frames(&mut self, flow: Flow, bytes: &mut [u8]) -> Option<usize> {
        let connection = self.streams.find(flow)?;
        let (listener, source) = (connection.listener, connection.peer);
        let layers = connection.layers.as_mut()?;
        let mut at = 0;
        if layers.is_upgrading() {
            let upgraded = layers.upgrade(bytes, &mut connection.unsent);
            self.streams.list(flow);
            match upgraded {
                Upgraded::NeedMore => return Some(0),
                Upgraded::Open { consumed } => {
                    at = consumed;
                    self.figures.streams.websocket_opened += 1;
                    self.on_open(flow);
                }
                Upgraded::Refused(refusal) => {
                    debug!("{source}: no WebSocket: {refusal:?}");
                    self.figures.streams.websocket_refused += 1;
                    self.suspect(flow);
                    return None;
                }
            }
        }
        let mut reader = self.streams.find(flow)?.layers.as_mut()?.take_reader()?;
        let arrival = Arrival { now: self.now, listener, source, flow: Some(flow) };
        let goes_on = self.read_frames(&arrival, flow, &mut reader, bytes, &mut at);
        if let Some(layers) = self.streams.find(flow).and_then(|it| it.layers.as_mut()) {
            layers.put_reader(reader);
        }
        goes_on.then_some(at)
    }

    fn read_frames(
        &mut self,
        arrival: &Arrival,
        flow: Flow,
        reader: &mut Reader,
        bytes: &mut [u8],
        at: &mut usize,
    ) -> bool {
        while let Some(rest) = bytes.get_mut(*at..).filter(|it| !it.is_empty()) {
            let (consumed, event) = match reader.read(rest) {
                Ok(it) => it,
                Err(violation) => {
                    debug!("{}: {violation:?}", arrival.source);
                    self.figures.streams.websocket_broken += 1;
                    if let Violation::TooBig { .. } = violation {
                        let start = reader.refused(rest);
                        if start.windows(4).any(|it| it == b"\r\n\r\n") {
                            self.refuse_large(arrival, start);
                        }
                    }
                    let code = violation.closing() as u16;
                    self.streams.say(flow, |layers, _, out| layers.farewell(code, out));
                    self.give_up_node(flow);
                    return false;
                }
            };
            *at += consumed;
            match event {
                Event::NeedMore => break,
                Event::Fragment | Event::Pong => {}
                Event::Message(message) => self.on_message(arrival, flow, message),
                Event::Ping(payload) => {
                    // Whoever pings faster than it reads gets no more pongs.
                    if self.streams.has_room(flow) {
                        self.streams.say(flow, |layers, _, out| layers.pong(payload, out));
                    }
                }
                Event::Close { code } => {
                    // A node that has said goodbye heeds nothing more (RFC 6455 §5.5.1): what was about to
                    // leave goes by another connection.
                    let has_waiting = |it: &mut Connection| it.is_ours && it.has_waiting();
                    if self.streams.find(flow).is_some_and(has_waiting) {
                        self.close_ended(flow);
                        return false;
                    }
                    let code = echo(code);
                    self.streams.say(flow, |layers, _, out| layers.farewell(code, out));
                    return false;
                }
            }
            if self.streams.find(flow).is_none_or(|it| it.phase != Phase::Open) {
                break; // what was handled has ended it
            }
        }
        true
    }

    /// One message of frames: a SIP message, or a keep-alive of line ends (RFC 5626 §3.5.1).
    fn on_message(&mut self, arrival: &Arrival, flow: Flow, message: &[u8]) {
        if message.iter().all(|it| matches!(it, b'\r' | b'\n')) {
            if message == b"\r\n\r\n" {
                self.answer_ping(flow);
            }
            return;
        }
        self.figures.stream_messages += 1;
        self.handle(arrival, message);
    }

    /// The handshakes are done: what waited can go.
    fn on_open(&mut self, flow: Flow) {
        self.wheel.arm(timer_of(flow), self.now + self.tuning().stream_idle);
        self.streams.release_held(flow);
    }

    /// Counts a TLS handshake that came to nothing, and gives a node up that we cannot talk to.
    pub(crate) fn on_failed_handshake(&mut self, flow: Flow) {
        let lingering = |it: &&mut Connection| matches!(it.phase, Phase::Lingering { .. });
        let Some(connection) = self.streams.find(flow).filter(|it| !lingering(it)) else { return };
        let Some(layers) = connection.layers.as_ref().filter(|it| !it.is_open()) else { return };
        if layers.is_securing() {
            self.figures.streams.tls_failed += 1;
        } else {
            self.figures.streams.websocket_refused += 1;
        }
        self.suspect(flow);
    }

    /// A node that we connected to is gone, or does not speak what it announces: others are asked.
    pub(crate) fn suspect(&mut self, flow: Flow) {
        let ours = self.streams.find(flow).filter(|it| it.is_ours);
        if let Some((peer, listener)) = ours.map(|it| (it.peer, it.listener)) {
            self.refused_by(peer, listener);
        }
    }

    /// A node breaks the protocol: what waits for it goes to others.
    fn give_up_node(&mut self, flow: Flow) {
        if self.streams.find(flow).is_some_and(|it| it.is_ours) {
            self.suspect(flow);
            self.close(flow);
        }
    }

    /// Leaves a peer, with a word on it where the layers have one.
    pub(crate) fn part(&mut self, flow: Flow, code: u16) {
        self.streams.say(flow, |layers, _, out| layers.farewell(code, out));
        self.leave(flow);
    }

    /// The shard ends: those who can be told are told, and nobody is waited for.
    pub(crate) fn part_from_all(&mut self) {
        let flows: Vec<Flow> = self.streams.flows().collect();
        for flow in flows {
            let code = Closing::GoingAway as u16;
            self.streams.say(flow, |layers, _, out| layers.farewell(code, out));
            self.streams.flush(flow);
            self.close(flow);
        }
    }

    /// A message does not fit in a peer's queue. One that has not caught up for a while does not read: it
    /// goes, or what it does not take would pile up for ever; from a node that stands still, requests go to
    /// others. While a connection is being made nobody can read.
    pub(crate) fn on_full(&mut self, flow: Flow) {
        let now = self.now;
        let Some(it) = self.streams.find(flow) else { return };
        let is_open = matches!(it.phase, Phase::Open | Phase::HalfClosed)
            && it.layers.as_ref().is_none_or(|it| it.is_open());
        if !is_open || now.since(*it.full_since.get_or_insert(now)) < FULL_TIME_MAX {
            return;
        }
        debug!("{}: does not read", it.peer);
        self.figures.streams.slow_closed += 1;
        self.suspect(flow);
        self.part(flow, Closing::Policy as u16);
    }
}

/// How long a peer may be a whole queue behind: a segment that was lost twice is there by then.
const FULL_TIME_MAX: Duration = Duration::from_secs(1);
