//! The client's side of a connection: what its bytes are, our own answers, and how it ends.

use std::collections::VecDeque;

use protocols::http::head::{self, Malformed};
use protocols::proxy_protocol::{self, Preface};
use protocols::time::Time;

use super::Http;
use super::peer::{Client, Exchange, Peer, Phase, SCAN};
use super::replies::Reply;
use super::settings::{LINGER, SLOW_BYTES_MAX};
use crate::relay::stream::{Conn, Gone, Progress, Room, Wire};
use crate::snapshot::Snapshot;
use crate::stats::Refusal;

impl Http {
    /// Returns how much is consumed. What is left belongs to a head that is not whole, or must wait.
    pub(super) fn client_bytes(
        &mut self,
        now: Time,
        conn: Conn,
        bytes: &[u8],
        snapshot: &Snapshot,
        wire: &mut impl Wire,
    ) -> usize {
        if let Some(client) = self.slots.client(conn) {
            client.has_more = false;
        }
        let mut consumed = 0;
        loop {
            let rest = bytes.get(consumed..).unwrap_or_default();
            let Some(client) = self.slots.client(conn) else { return bytes.len() };
            let step = match (client.phase, &client.exchange) {
                (Phase::Lingering, _) => return bytes.len(),
                (Phase::Preface, _) => {
                    let listener = usize::from(client.listener);
                    let step = self.preface(now, conn, rest, wire);
                    let is_secure = self.settings.listener(listener).is_some_and(|it| it.is_secure);
                    if is_secure && step > 0 && self.slots.client(conn).is_some() {
                        wire.secure(conn);
                        return consumed + step;
                    }
                    step
                }
                (Phase::Requests, None) => self.request(now, conn, rest, snapshot, wire),
                (Phase::Requests, Some(it)) if it.tunnel.is_some() => {
                    self.tunnel_to_node(now, conn, rest, wire);
                    return bytes.len();
                }
                (Phase::Requests, Some(it)) if it.request.is_done() => {
                    self.follow(now, conn, rest, snapshot, wire)
                }
                (Phase::Requests, Some(_)) => self.request_body(now, conn, rest, wire),
            };
            consumed += step;
            if step == 0 {
                break;
            }
        }
        let is_left = consumed < bytes.len();
        let Some(client) = self.slots.client(conn) else { return bytes.len() };
        let waits = is_left && (client.exchange.is_some() || client.is_full);
        if waits {
            client.has_more = true;
            wire.pause(conn);
        } else if client.is_ended {
            match &client.exchange {
                // What is left will never be a request.
                None => self.close_client(conn, wire),
                Some(it) if !it.request.is_done() => self.client_left(conn, wire),
                Some(_) => {}
            }
        }
        consumed
    }

    /// The PROXY protocol's header.
    fn preface(&mut self, now: Time, conn: Conn, bytes: &[u8], wire: &mut impl Wire) -> usize {
        match proxy_protocol::read(bytes) {
            Ok(Preface::NeedMore) => 0,
            Ok(Preface::Whole { bytes, source }) => {
                let Some(client) = self.slots.client(conn) else { return 0 };
                client.phase = Phase::Requests;
                client.source = source.unwrap_or(client.source);
                let (ip, most) = (client.source.ip(), self.settings.http().source_connections_max);
                if most > 0 && !wire.count_for(conn, ip.to_canonical(), most) {
                    self.counters.refused(Refusal::SourceConnections);
                    self.close_client(conn, wire);
                    return 0;
                }
                self.slots.arm(conn, now + self.settings.http().client_idle);
                bytes
            }
            Err(_) => {
                self.counters.refused(Refusal::Malformed);
                self.close_client(conn, wire);
                0
            }
        }
    }

    /// A head, if it is whole.
    fn request(
        &mut self,
        now: Time,
        conn: Conn,
        bytes: &[u8],
        snapshot: &Snapshot,
        wire: &mut impl Wire,
    ) -> usize {
        let Some(client) = self.slots.client(conn) else { return 0 };
        let is_first_look = client.scan == SCAN;
        if client.is_full {
            return 0; // who does not read its answers gets no more of them
        }
        if is_first_look {
            let empty = head::empty_lines(bytes);
            if empty > 0 {
                return empty;
            }
        }
        if is_first_look && bytes == b"\r" {
            return 0; // half an empty line, or half a mistake
        }
        match client.scan.head(bytes) {
            Ok(None) => {
                // Once, from the first byte: dripping in does not buy time.
                if is_first_look && !bytes.is_empty() {
                    let deadline = now + self.settings.http().head_time;
                    self.slots.arm(conn, deadline);
                }
                0
            }
            Ok(Some(length)) => {
                client.scan = SCAN;
                let (head, rest) = bytes.split_at_checked(length).unwrap_or_default();
                length + self.begin(now, conn, head, rest, snapshot, wire)
            }
            Err(why) => {
                self.malformed(now, conn, why, wire);
                0
            }
        }
    }

    pub(super) fn malformed(
        &mut self,
        now: Time,
        conn: Conn,
        why: Malformed,
        wire: &mut impl Wire,
    ) {
        let status = why.status();
        self.counters.refused(match status {
            414 | 431 => Refusal::TooLarge,
            _ => Refusal::Malformed,
        });
        if why == Malformed::Http2 {
            self.close_client(conn, wire);
            return;
        }
        self.reply_and_close(now, conn, status, wire);
    }

    /// Our own answer to a request that was read; the exchange is over.
    pub(super) fn answer(
        &mut self,
        now: Time,
        conn: Conn,
        mut exchange: Box<Exchange>,
        status: u16,
        field: Option<(&str, &str)>,
        wire: &mut impl Wire,
    ) {
        let followers = std::mem::take(&mut exchange.followers);
        let is_stopping = self.is_stopping && followers.is_empty();
        let keeps = exchange.keeps_client && exchange.request.is_done() && !is_stopping;
        let reply = Reply {
            status,
            field,
            is_head: exchange.method == protocols::http::Method::Head,
            closes: !keeps,
            keeps_1_0: keeps && exchange.is_1_0,
        };
        self.counters.response(status);
        self.send_reply(conn, &reply, wire);
        self.retire(exchange);
        if keeps {
            self.next_request(now, conn, followers, wire);
        } else {
            self.linger(now, conn, wire);
        }
    }

    /// Our own answer where there is no request to speak of.
    fn reply_and_close(&mut self, now: Time, conn: Conn, status: u16, wire: &mut impl Wire) {
        let reply = Reply { status, field: None, is_head: false, closes: true, keeps_1_0: false };
        self.counters.response(status);
        self.send_reply(conn, &reply, wire);
        self.linger(now, conn, wire);
    }

    pub(super) fn send_reply(&mut self, conn: Conn, reply: &Reply<'_>, wire: &mut impl Wire) {
        let mut out = std::mem::take(&mut self.buffers.out);
        out.clear();
        reply.write(&mut out);
        self.send_client(conn, &out, wire);
        self.buffers.out = out;
    }

    /// All that goes to a client goes through here: one that does not read is remembered.
    pub(super) fn send_client(&mut self, conn: Conn, bytes: &[u8], wire: &mut impl Wire) -> Room {
        self.send_client_parts(conn, [bytes, &[]], wire)
    }

    /// The same of bytes in two places.
    pub(super) fn send_client_parts(
        &mut self,
        conn: Conn,
        parts: [&[u8]; 2],
        wire: &mut impl Wire,
    ) -> Room {
        let room = wire.send_parts(conn, parts);
        if room == Room::Full
            && let Some(client) = self.slots.client(conn)
        {
            client.is_full = true;
            client.taken_bytes = wire.progress(conn).acknowledged;
        }
        room
    }

    /// The request is answered: it is the turn of those that followed it, or the connection waits for the
    /// next one.
    pub(super) fn next_request(
        &mut self,
        now: Time,
        conn: Conn,
        mut followers: VecDeque<Box<Exchange>>,
        wire: &mut impl Wire,
    ) {
        if let Some(next) = followers.pop_front() {
            return self.next_follower(now, conn, next, followers, wire);
        }
        let http = self.settings.http();
        let (client_idle, body_idle) = (http.client_idle, http.body_idle);
        let is_stopping = self.is_stopping;
        let Some(client) = self.slots.client(conn) else { return };
        (client.scan, client.is_fresh) = (SCAN, false);
        // It is idle when it has its answer.
        let patience = if client.is_full { body_idle } else { client_idle };
        if is_stopping && !client.has_more {
            return self.close_client(conn, wire);
        } else if client.has_more && !client.is_full {
            wire.resume(conn);
        } else if client.is_ended && !client.has_more {
            return self.close_client(conn, wire);
        }
        self.slots.arm(conn, now + patience);
    }

    /// Ends the connection behind what is queued, and waits a little for the client to do so too.
    pub(super) fn linger(&mut self, now: Time, conn: Conn, wire: &mut impl Wire) {
        let Some(client) = self.slots.client(conn) else { return };
        if client.is_ended {
            return self.close_client(conn, wire);
        }
        client.phase = Phase::Lingering;
        client.has_more = false;
        wire.end(conn);
        wire.resume(conn);
        self.slots.arm(conn, now + LINGER);
    }

    /// Closes behind what is queued.
    pub(super) fn close_client(&mut self, conn: Conn, wire: &mut impl Wire) {
        if self.forget_client(conn).is_some() {
            wire.close(conn);
        }
    }

    /// Closes behind what is queued, and waits for nothing.
    pub(super) fn hang_up_client(&mut self, conn: Conn, wire: &mut impl Wire) {
        if self.forget_client(conn).is_some() {
            wire.hang_up(conn);
        }
    }

    /// Closes so that the client cannot take what it has for all there is.
    pub(super) fn abort_client(&mut self, conn: Conn, wire: &mut impl Wire) {
        if self.forget_client(conn).is_some() {
            wire.abort(conn);
        }
    }

    fn forget_client(&mut self, conn: Conn) -> Option<Client> {
        if self.slots.is_client(conn) != Some(true) {
            return None;
        }
        let Some(Peer::Client(client)) = self.slots.remove(conn) else { return None };
        self.counters.clients = self.counters.clients.saturating_sub(1);
        self.counters.paired = self.counters.paired.saturating_sub(u64::from(client.is_paired));
        Some(client)
    }

    /// The client will send no more.
    pub(super) fn client_ended(&mut self, now: Time, conn: Conn, wire: &mut impl Wire) {
        let Some(client) = self.slots.client(conn) else { return };
        client.is_ended = true;
        let has_more = client.has_more;
        let Some(exchange) = client.exchange.as_mut() else {
            if !has_more || client.phase == Phase::Lingering {
                self.close_client(conn, wire);
            }
            return;
        };
        if let Some(tunnel) = &mut exchange.tunnel {
            tunnel.client_ended = true;
            let (node, is_over) = (exchange.node, tunnel.node_ended);
            if is_over {
                return self.end_tunnel(now, conn, wire);
            }
            node.into_iter().for_each(|it| wire.end(it));
            self.slots.arm(conn, now + self.settings.http().tunnel_idle);
        } else if !exchange.request.is_done() && !has_more {
            self.client_left(conn, wire);
        }
    }

    /// The client ended in the middle of a request.
    fn client_left(&mut self, conn: Conn, wire: &mut impl Wire) {
        self.counters.refused(Refusal::ClientGone);
        self.give_up(conn, wire);
        self.close_client(conn, wire);
    }

    /// The client is gone: so is its request.
    pub(super) fn client_gone(&mut self, conn: Conn, why: Gone, wire: &mut impl Wire) {
        let is_busy = self.slots.client(conn).is_some_and(|it| it.exchange.is_some());
        if is_busy {
            let is_slow = why == Gone::Slow;
            self.counters.refused(if is_slow { Refusal::Slow } else { Refusal::ClientGone });
            self.give_up(conn, wire);
        }
        self.forget_client(conn);
    }

    /// The client takes bytes again.
    pub(super) fn client_drained(&mut self, now: Time, conn: Conn, wire: &mut impl Wire) {
        let http = &self.settings.config.http;
        let (body_idle, tunnel_idle) = (http.body_idle, http.tunnel_idle);
        let (client_idle, response_time) = (http.client_idle, http.response_time);
        let Some(client) = self.slots.client(conn) else { return };
        client.is_full = false;
        let Some(exchange) = &client.exchange else {
            if client.has_more {
                wire.resume(conn);
            }
            let patience = if client.phase == Phase::Lingering { LINGER } else { client_idle };
            return self.slots.arm(conn, now + patience);
        };
        let waits_for_node = exchange.is_connected && exchange.request.is_done();
        let patience = match (&exchange.tunnel, exchange.response) {
            (Some(_), _) => Some(tunnel_idle),
            (None, Some(_)) => Some(body_idle),
            (None, None) => waits_for_node.then_some(response_time),
        };
        exchange.node.into_iter().for_each(|it| wire.resume(it));
        if let Some(patience) = patience {
            self.slots.arm(conn, now + patience);
        }
    }

    /// The client's time is up: what that means depends on what was waited for.
    pub(super) fn client_timeout(
        &mut self,
        now: Time,
        conn: Conn,
        snapshot: &Snapshot,
        wire: &mut impl Wire,
    ) {
        let Some(client) = self.slots.client(conn) else { return };
        let (phase, is_waiting, is_full) = (client.phase, client.scan == SCAN, client.is_full);
        if client.exchange.is_some() {
            return self.exchange_timeout(now, conn, snapshot, wire);
        }
        if is_full && self.client_takes(conn, wire) {
            return self.slots.arm(conn, now + self.settings.http().body_idle);
        }
        match phase {
            Phase::Requests if !is_waiting => {
                self.counters.refused(Refusal::Slow);
                self.reply_and_close(now, conn, 408, wire);
            }
            Phase::Preface => {
                self.counters.refused(Refusal::Slow);
                self.close_client(conn, wire);
            }
            // Bytes that nobody takes are not worth waiting for.
            Phase::Requests | Phase::Lingering if is_full => self.abort_client(conn, wire),
            Phase::Requests | Phase::Lingering => self.close_client(conn, wire),
        }
    }

    /// Whether a client that has not got everything has taken something since the last look.
    pub(super) fn client_takes(&mut self, conn: Conn, wire: &mut impl Wire) -> bool {
        let Some(client) = self.slots.client(conn) else { return false };
        takes(wire.progress(conn), &mut client.taken_bytes)
    }

    pub(super) fn take_exchange(&mut self, conn: Conn) -> Option<Box<Exchange>> {
        self.slots.client(conn)?.exchange.take()
    }

    pub(super) fn set_exchange(&mut self, conn: Conn, exchange: Box<Exchange>) {
        if let Some(client) = self.slots.client(conn) {
            client.exchange = Some(exchange);
        }
    }
}

/// Whether a peer has taken what it must in each period.
pub(super) fn takes(progress: Progress, taken_bytes: &mut u64) -> bool {
    let before = std::mem::replace(taken_bytes, progress.acknowledged);
    progress.left > 0 && progress.acknowledged >= before.saturating_add(SLOW_BYTES_MAX)
}
