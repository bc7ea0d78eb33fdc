//! The client's side: requests as they come in, their bodies, and what becomes of the connection.

use std::sync::Arc;

use protocols::bytes::{Span, write_ip};
use protocols::http::body::Framing;
use protocols::http::head::{self, Malformed, Request};
use protocols::proxy_protocol::{self, Preface};
use protocols::time::Time;

use super::choose::Ask;
use super::peer::{Client, Exchange, Peer, Phase, SCAN};
use super::replies::Reply;
use super::settings::{COALESCED_BYTES_MAX, LINGER, RETRY_AFTER_SECS, SLOW_BYTES_MAX};
use super::{COMPLAINT_PERIOD, Http, rewrite};
use crate::relay::stream::{Conn, Gone, Room, Wire};
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
                (Phase::Preface, _) => self.preface(now, conn, rest, wire),
                (Phase::Requests, None) => self.request(now, conn, rest, snapshot, wire),
                (Phase::Requests, Some(it)) if it.tunnel.is_some() => {
                    self.tunnel_to_node(now, conn, rest, wire);
                    return bytes.len();
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
                let ip = client.source.ip();
                if !self.admits(ip) {
                    self.counters.refused(Refusal::SourceConnections);
                    self.forget_client(conn, false);
                    wire.close(conn);
                    return 0;
                }
                self.slots.arm(conn, now + self.settings.http().client_idle);
                bytes
            }
            Err(_) => {
                self.counters.refused(Refusal::Malformed);
                self.forget_client(conn, false);
                wire.close(conn);
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

    fn malformed(&mut self, now: Time, conn: Conn, why: Malformed, wire: &mut impl Wire) {
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

    /// A whole head: the request goes to a node, or is answered here. Returns how much of `rest`, its
    /// body, went along.
    fn begin(
        &mut self,
        now: Time,
        conn: Conn,
        head: &[u8],
        rest: &[u8],
        snapshot: &Snapshot,
        wire: &mut impl Wire,
    ) -> usize {
        let settings = Arc::clone(&self.settings);
        let http = settings.http();
        let Some(client) = self.slots.client(conn) else { return 0 };
        let (source, listener) = (client.source.ip(), usize::from(client.listener));
        let Some(listener) = settings.listener(listener) else { return 0 };
        self.buffers.edits.clear();
        let request = match Request::parse(head, &mut self.buffers.edits) {
            Ok(it) => it,
            Err(why) => {
                self.malformed(now, conn, why, wire);
                return 0;
            }
        };
        if let Some(port) = http.tls_port.filter(|_| !listener.is_secure && http.redirects_to_tls) {
            let location = secure_location(head, &request, listener.port, port);
            self.redirect(now, conn, &request, &location, wire);
            return 0;
        }
        self.counters.request(request.method);
        let target = request.target.of(head);
        let facts = rewrite::Request { head, target, port: listener.port, source };
        let is_plain = http.rewrite.rules.is_empty();
        let rewritten = if is_plain { None } else { rewrite::apply(&http.rewrite, &facts) };
        if let Some(text) = &rewritten {
            self.buffers.edits.replace(request.target, text);
        }
        self.write_fields(head, source, listener.is_secure);
        let target = rewritten.as_deref().unwrap_or(target);
        let is_sip = request.upgrade.is_some_and(|it| it.is_sip);
        let mut replay = self.spare();
        if self.buffers.edits.apply(head, &mut replay).is_err() {
            self.recycle(replay);
            self.malformed(now, conn, Malformed::TooLong, wire);
            return 0;
        }
        let mut exchange = Exchange {
            keeps_client: request.is_persistent && !self.is_stopping,
            service: settings.service(listener.is_secure, is_sip),
            is_watched: http.check.as_ref().is_some_and(|it| it.0.is_match(target)),
            ..Exchange::new(now, &request, replay)
        };
        let limit = u64::from(http.body_bytes_max);
        if matches!(request.framing, Framing::Length(bytes) if limit > 0 && bytes > limit) {
            self.refuse_body(now, conn, exchange, 413, wire);
            return 0;
        }
        let room = http.replay_bytes_max.saturating_sub(exchange.replay.len());
        let first = rest.get(..rest.len().min(room).min(COALESCED_BYTES_MAX)).unwrap_or_default();
        let bytes = match self.absorb(&mut exchange, first) {
            Ok(bytes) => bytes,
            Err(status) => {
                self.refuse_body(now, conn, exchange, status, wire);
                return 0;
            }
        };
        exchange.replay.extend_from_slice(first.get(..bytes).unwrap_or_default());
        let ask = Ask {
            now,
            service: exchange.service,
            target,
            cookie: request.session_cookie.map(|it| it.of(head)),
            source,
            tried: &[],
        };
        match self.place_for(&ask, snapshot) {
            Some(place) => {
                self.launch(now, conn, &mut exchange, place, false, wire);
                self.set_exchange(conn, Box::new(exchange));
            }
            None => self.unavailable(now, conn, Box::new(exchange), target, wire),
        }
        bytes
    }

    /// A body that cannot be passed on: nothing of the request has gone anywhere yet.
    fn refuse_body(
        &mut self,
        now: Time,
        conn: Conn,
        exchange: Exchange,
        status: u16,
        wire: &mut impl Wire,
    ) {
        let why = if status == 413 { Refusal::TooLarge } else { Refusal::Malformed };
        self.counters.refused(why);
        self.fail(now, conn, Box::new(exchange), status, wire);
    }

    /// Takes the next bytes of a request's body in. `Err`: the status to refuse it with.
    fn absorb(&mut self, exchange: &mut Exchange, bytes: &[u8]) -> Result<usize, u16> {
        let limit = u64::from(self.settings.http().body_bytes_max);
        let taken = exchange.request.take(bytes).map_err(|_| 400u16)?;
        exchange.content_bytes += taken.content as u64;
        if limit > 0 && exchange.content_bytes > limit {
            return Err(413);
        }
        self.counters.bytes_to_node += taken.content as u64;
        exchange.progress_bytes += taken.bytes as u64;
        Ok(taken.bytes)
    }

    /// Fields of our own, by key.
    fn write_fields(&mut self, head: &[u8], source: std::net::IpAddr, is_secure: bool) {
        let http = &self.settings.config.http;
        let (edits, end) = (&mut self.buffers.edits, head::end_of_lines(head.len()));
        if http.x_forwarded {
            edits.write(Span { start: end, end }, |out| {
                out.extend_from_slice(b"X-Forwarded-For: ");
                write_ip(out, source);
                out.extend_from_slice(b"\r\n");
            });
            for line in head::lines(head, b"X-Forwarded-Proto") {
                edits.remove(line);
            }
            let scheme: &[u8] = if is_secure { b"https" } else { b"http" };
            edits.insert(end, &[b"X-Forwarded-Proto: ", scheme, b"\r\n"].concat());
        }
        if http.via {
            edits.insert(end, b"Via: 1.1 trunkline\r\n");
        }
    }

    /// No node (`http-smpp-registry.md` 1.6).
    fn unavailable(
        &mut self,
        now: Time,
        conn: Conn,
        mut exchange: Box<Exchange>,
        target: &[u8],
        wire: &mut impl Wire,
    ) {
        let settings = Arc::clone(&self.settings);
        let http = settings.http();
        if self.complained.is_none_or(|it| it + COMPLAINT_PERIOD <= now) {
            self.complained = Some(now);
            log::info!("Service unavailable. No server is available.");
        }
        self.counters.refused(Refusal::NoNode);
        if let Some(host) = http.unavailable.as_ref().filter(|_| http.unavailable_redirects) {
            let name = if host.host.contains(':') {
                format!("[{}]", host.host)
            } else {
                host.host.clone()
            };
            let port = if host.port == 80 { String::new() } else { format!(":{}", host.port) };
            let path = String::from_utf8_lossy(target);
            let location = format!("http://{name}{port}{path}");
            return self.answer(now, conn, exchange, 302, Some(("Location", &location)), wire);
        }
        if let Some(place) = self.unavailable_place() {
            self.launch(now, conn, &mut exchange, place, false, wire);
            return self.set_exchange(conn, exchange);
        }
        self.answer(now, conn, exchange, 503, Some(("Retry-After", RETRY_AFTER_SECS)), wire);
    }

    /// 302 to HTTPS, and the end of the connection; not a request for the statistics.
    fn redirect(
        &mut self,
        now: Time,
        conn: Conn,
        request: &Request,
        location: &str,
        wire: &mut impl Wire,
    ) {
        let reply = Reply {
            status: 302,
            field: Some(("Location", location)),
            is_head: request.method == protocols::http::Method::Head,
            closes: true,
            keeps_1_0: false,
        };
        self.send_reply(conn, &reply, wire);
        self.linger(now, conn, wire);
    }

    /// Our own answer to a request that was read; the exchange is over.
    pub(super) fn answer(
        &mut self,
        now: Time,
        conn: Conn,
        exchange: Box<Exchange>,
        status: u16,
        field: Option<(&str, &str)>,
        wire: &mut impl Wire,
    ) {
        let keeps = exchange.keeps_client && exchange.request.is_done() && !self.is_stopping;
        let reply = Reply {
            status,
            field,
            is_head: exchange.method == protocols::http::Method::Head,
            closes: !keeps,
            keeps_1_0: keeps && exchange.is_1_0,
        };
        self.counters.response(status);
        self.send_reply(conn, &reply, wire);
        self.recycle(exchange.replay);
        if keeps {
            self.next_request(now, conn, wire);
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

    fn send_reply(&mut self, conn: Conn, reply: &Reply<'_>, wire: &mut impl Wire) {
        let mut out = std::mem::take(&mut self.buffers.out);
        out.clear();
        reply.write(&mut out);
        self.send_client(conn, &out, wire);
        self.buffers.out = out;
    }

    /// All that goes to a client goes through here: one that does not read is remembered.
    pub(super) fn send_client(&mut self, conn: Conn, bytes: &[u8], wire: &mut impl Wire) -> Room {
        let room = wire.send(conn, bytes);
        if room == Room::Full
            && let Some(client) = self.slots.client(conn)
        {
            client.is_full = true;
        }
        room
    }

    /// More of a request's body. Returns 0 if nothing of `bytes` can be taken now.
    fn request_body(&mut self, now: Time, conn: Conn, bytes: &[u8], wire: &mut impl Wire) -> usize {
        let settings = Arc::clone(&self.settings);
        let http = settings.http();
        let Some(mut exchange) = self.take_exchange(conn) else { return 0 };
        if exchange.request.is_done() || exchange.is_node_full || bytes.is_empty() {
            self.set_exchange(conn, exchange);
            return 0;
        }
        // Until the node is there, no more is taken than can be given to another one.
        let room = http.replay_bytes_max.saturating_sub(exchange.replay.len());
        let most = if exchange.is_connected { bytes.len() } else { bytes.len().min(room) };
        let bytes_taken = match self.absorb(&mut exchange, bytes.get(..most).unwrap_or_default()) {
            Ok(it) => it,
            Err(status) => {
                let why = if status == 413 { Refusal::TooLarge } else { Refusal::Malformed };
                self.counters.refused(why);
                self.fail(now, conn, exchange, status, wire);
                return 0;
            }
        };
        let part = bytes.get(..bytes_taken).unwrap_or_default();
        if exchange.can_replay && part.len() <= room {
            exchange.replay.extend_from_slice(part);
        } else if exchange.can_replay {
            exchange.can_replay = false;
            self.recycle(std::mem::take(&mut exchange.replay));
        }
        let node_room = exchange.node.map_or(Room::Free, |node| wire.send(node, part));
        let is_blocked = node_room == Room::Full || (!exchange.is_connected && most < bytes.len());
        if is_blocked && !exchange.request.is_done() {
            exchange.is_node_full = true;
            wire.pause(conn);
        }
        if exchange.is_connected && exchange.response.is_none() {
            if exchange.request.is_done() {
                self.slots.arm(conn, now + http.response_time);
            } else if exchange.progress_bytes >= SLOW_BYTES_MAX {
                exchange.progress_bytes = 0;
                self.slots.arm(conn, now + http.body_idle);
            }
        }
        self.set_exchange(conn, exchange);
        bytes_taken
    }

    /// The request is answered: the connection waits for the next one.
    pub(super) fn next_request(&mut self, now: Time, conn: Conn, wire: &mut impl Wire) {
        let patience = self.settings.http().client_idle;
        let Some(client) = self.slots.client(conn) else { return };
        client.scan = SCAN;
        if client.has_more && !client.is_full {
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
        if self.forget_client(conn, true).is_some() {
            wire.close(conn);
        }
    }

    /// Closes so that the client cannot take what it has for all there is.
    pub(super) fn abort_client(&mut self, conn: Conn, wire: &mut impl Wire) {
        if self.forget_client(conn, true).is_some() {
            wire.abort(conn);
        }
    }

    /// `is_admitted`: it counts against its source's limit.
    fn forget_client(&mut self, conn: Conn, is_admitted: bool) -> Option<Client> {
        if self.slots.is_client(conn) != Some(true) {
            return None;
        }
        let Some(Peer::Client(client)) = self.slots.remove(conn) else { return None };
        self.counters.clients = self.counters.clients.saturating_sub(1);
        self.counters.paired = self.counters.paired.saturating_sub(u64::from(client.is_paired));
        if is_admitted && client.phase != Phase::Preface {
            self.release(client.source.ip());
        }
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
            self.slots.arm(conn, now + self.settings.http().body_idle);
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
        self.forget_client(conn, true);
    }

    /// The client takes bytes again.
    pub(super) fn client_drained(&mut self, now: Time, conn: Conn, wire: &mut impl Wire) {
        let http = &self.settings.config.http;
        let (body_idle, tunnel_idle) = (http.body_idle, http.tunnel_idle);
        let Some(client) = self.slots.client(conn) else { return };
        client.is_full = false;
        let Some(exchange) = &client.exchange else {
            if client.has_more {
                wire.resume(conn);
            }
            return;
        };
        let patience = if exchange.tunnel.is_some() { tunnel_idle } else { body_idle };
        exchange.node.into_iter().for_each(|it| wire.resume(it));
        if exchange.response.is_some() || exchange.tunnel.is_some() {
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

    pub(super) fn take_exchange(&mut self, conn: Conn) -> Option<Box<Exchange>> {
        self.slots.client(conn)?.exchange.take()
    }

    pub(super) fn set_exchange(&mut self, conn: Conn, exchange: Box<Exchange>) {
        if let Some(client) = self.slots.client(conn) {
            client.exchange = Some(exchange);
        }
    }
}

/// `https://`, the host as the client knows it with our HTTPS port where it named our HTTP port, the target.
fn secure_location(head: &[u8], request: &Request, port: u16, tls_port: u16) -> String {
    let host = request.host.map(|it| String::from_utf8_lossy(it.of(head))).unwrap_or_default();
    let bare = host.strip_suffix(&format!(":{port}"));
    let host = bare.map_or_else(|| host.to_string(), |bare| format!("{bare}:{tls_port}"));
    let target = String::from_utf8_lossy(request.target.of(head));
    format!("https://{host}{target}")
}
