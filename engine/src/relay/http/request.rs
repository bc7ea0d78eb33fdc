//! A request from its head to the end of its body: read, edited, given to a node, or answered here.

use std::net::IpAddr;
use std::sync::Arc;

use protocols::bytes::{Span, write_ip};
use protocols::http::Method;
use protocols::http::body::Framing;
use protocols::http::head::{self, Malformed, Request};
use protocols::time::Time;

use super::choose::Ask;
use super::peer::Exchange;
use super::replies::Reply;
use super::settings::{COALESCED_BYTES_MAX, HttpListener, RETRY_AFTER_SECS, SLOW_BYTES_MAX};
use super::{COMPLAINT_PERIOD, Http, rewrite};
use crate::relay::stream::{Conn, Room, Wire};
use crate::snapshot::Snapshot;
use crate::stats::Refusal;

impl Http {
    /// A whole head: the request goes to a node, or is answered here. Returns how much of `rest`, its
    /// body, went along.
    pub(super) fn begin(
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
            if request.host.is_none_or(|it| it.of(head).is_empty()) {
                self.malformed(now, conn, Malformed::Host, wire); // whereto?
                return 0;
            }
            let location = secure_location(head, &request, listener.port, port);
            self.redirect(now, conn, &request, &location, wire);
            return 0;
        }
        self.counters.request(request.method);
        if request.is_for_us {
            self.answer_probe(now, conn, &request, wire);
            return 0;
        }
        let (mut exchange, rewritten) = match self.prepare(now, head, &request, listener, source) {
            Ok(it) => it,
            Err(why) => {
                self.malformed(now, conn, why, wire);
                return 0;
            }
        };
        let target = rewritten.as_deref().unwrap_or(request.target.of(head));
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
                self.set_exchange(conn, exchange);
            }
            None => self.unavailable(now, conn, exchange, target, wire),
        }
        bytes
    }

    /// OPTIONS or TRACE that must go no further (RFC 9110 §7.6.2).
    fn answer_probe(&mut self, now: Time, conn: Conn, request: &Request, wire: &mut impl Wire) {
        let status = if request.method == Method::Options { 200 } else { 501 };
        let replay = self.spare();
        let exchange = self.boxed(Exchange::new(now, request, replay));
        self.answer(now, conn, exchange, status, None, wire);
    }

    /// The request as it goes to a node, and its target if that was rewritten. The edits of its parsing are
    /// in the buffer.
    pub(super) fn prepare(
        &mut self,
        now: Time,
        head: &[u8],
        request: &Request,
        listener: HttpListener,
        source: IpAddr,
    ) -> Result<(Box<Exchange>, Option<Vec<u8>>), Malformed> {
        let settings = Arc::clone(&self.settings);
        let http = settings.http();
        let target = request.target.of(head);
        let facts = rewrite::Request { head, target, port: listener.port, source };
        let is_plain = http.rewrite.rules.is_empty() || target.is_empty();
        let rewritten = if is_plain { None } else { rewrite::apply(&http.rewrite, &facts) };
        if let Some(text) = &rewritten {
            self.buffers.edits.replace(request.target, text);
        }
        self.write_fields(head, source, listener.is_secure, request.is_1_0);
        let target = rewritten.as_deref().unwrap_or(target);
        let is_sip = request.upgrade.is_some_and(|it| it.is_sip);
        let mut replay = self.spare();
        if self.buffers.edits.apply(head, &mut replay).is_err() {
            self.recycle(replay);
            return Err(Malformed::TooLong);
        }
        let exchange = self.boxed(Exchange {
            keeps_client: request.is_persistent && !self.is_stopping,
            service: settings.service(listener.is_secure, is_sip),
            is_watched: http.check.as_ref().is_some_and(|it| it.0.is_match(target)),
            ..Exchange::new(now, request, replay)
        });
        Ok((exchange, rewritten))
    }

    /// A body that cannot be passed on: nothing of the request has gone anywhere yet.
    fn refuse_body(
        &mut self,
        now: Time,
        conn: Conn,
        exchange: Box<Exchange>,
        status: u16,
        wire: &mut impl Wire,
    ) {
        let why = if status == 413 { Refusal::TooLarge } else { Refusal::Malformed };
        self.counters.refused(why);
        self.fail(now, conn, exchange, status, wire);
    }

    /// Takes the next bytes of a request's body in. `Err`: the status to refuse it with.
    fn absorb(&mut self, exchange: &mut Exchange, bytes: &[u8]) -> Result<usize, u16> {
        let limit = u64::from(self.settings.http().body_bytes_max);
        let taken = exchange.request.take(bytes).map_err(|_| 400u16)?;
        exchange.content_bytes += taken.content as u64;
        if limit > 0 && exchange.content_bytes > limit {
            return Err(413);
        }
        exchange.progress_bytes += taken.bytes as u64;
        Ok(taken.bytes)
    }

    /// Fields of our own, by key.
    fn write_fields(&mut self, head: &[u8], source: IpAddr, is_secure: bool, is_1_0: bool) {
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
            let via: &[u8] =
                if is_1_0 { b"Via: 1.0 trunkline\r\n" } else { b"Via: 1.1 trunkline\r\n" };
            edits.insert(end, via);
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

    /// More of a request's body. Returns 0 if nothing of `bytes` can be taken now.
    pub(super) fn request_body(
        &mut self,
        now: Time,
        conn: Conn,
        bytes: &[u8],
        wire: &mut impl Wire,
    ) -> usize {
        let http = &self.settings.config.http;
        let replay_bytes_max = http.replay_bytes_max;
        let (response_time, body_idle) = (http.response_time, http.body_idle);
        let Some(mut exchange) = self.take_exchange(conn) else { return 0 };
        if exchange.is_node_full || bytes.is_empty() {
            self.set_exchange(conn, exchange);
            return 0;
        }
        // Until the node is there, no more is taken than can be given to another one.
        let room = replay_bytes_max.saturating_sub(exchange.replay.len());
        let most = if exchange.is_connected { bytes.len() } else { bytes.len().min(room) };
        let before = exchange.content_bytes;
        let bytes_taken = match self.absorb(&mut exchange, bytes.get(..most).unwrap_or_default()) {
            Ok(it) => it,
            Err(status) => {
                let why = if status == 413 { Refusal::TooLarge } else { Refusal::Malformed };
                self.counters.refused(why);
                self.fail(now, conn, exchange, status, wire);
                return 0;
            }
        };
        self.counters.bytes_to_node += exchange.content_bytes - before;
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
            exchange.taken_bytes = exchange.node.map_or(0, |it| wire.progress(it).acknowledged);
            wire.pause(conn);
        }
        if exchange.request.is_done() {
            exchange.asked = now;
        }
        if exchange.is_connected {
            let has_begun = exchange.response.is_some();
            if exchange.request.is_done() {
                let patience = if has_begun { body_idle } else { response_time };
                self.slots.arm(conn, now + patience);
            } else if exchange.progress_bytes >= SLOW_BYTES_MAX {
                exchange.progress_bytes = 0;
                self.slots.arm(conn, now + body_idle);
            }
        }
        self.set_exchange(conn, exchange);
        bytes_taken
    }
}

/// Where a client asks by HTTPS for what it asked by HTTP: its name for us, our HTTPS port, the target.
///
/// A client that came to port 80 where ours is another was passed on by somebody who maps ports, that of HTTPS too:
/// it goes to 443 as with the original (`http-smpp-registry.md` 1.7).
fn secure_location(head: &[u8], request: &Request, port: u16, tls_port: u16) -> String {
    let host = request.host.map(|it| String::from_utf8_lossy(it.of(head))).unwrap_or_default();
    let (name, named) = match host.rsplit_once(':') {
        Some((name, digits)) if !digits.contains(']') => (name, digits.parse().unwrap_or(HTTP)),
        _ => (&*host, HTTP),
    };
    let port = if named == HTTP && port != HTTP { HTTPS } else { tls_port };
    let port = if port == HTTPS { String::new() } else { format!(":{port}") };
    let target = String::from_utf8_lossy(request.target.of(head));
    let path = target.strip_prefix('*').unwrap_or(&target); // of the server as a whole
    format!("https://{name}{port}{path}")
}

/// The ports that a URI need not name (RFC 9110 §4.2).
const HTTP: u16 = 80;
const HTTPS: u16 = 443;
