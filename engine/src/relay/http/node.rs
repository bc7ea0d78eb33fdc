//! The node's side: responses as they come in, and what becomes of the connection.

use std::time::Duration;

use protocols::http::body::{Body, Framing};
use protocols::http::head::{self, Response};
use protocols::time::Time;

use super::Http;
use super::exchange::Failure;
use super::peer::{Exchange, Peer, SCAN};
use super::settings::COALESCED_BYTES_MAX;
use crate::relay::stream::{Conn, Gone, Room, Wire};
use crate::snapshot::Snapshot;
use crate::stats::Refusal;

/// What a response head led to.
enum Step {
    /// So many bytes were dealt with; there may be more to do.
    On(usize),
    /// The exchange has ended; whatever is left belongs to nobody.
    Over,
}

impl Http {
    /// Returns how much is consumed; what is left belongs to a head that is not whole.
    pub(super) fn node_bytes(
        &mut self,
        now: Time,
        conn: Conn,
        bytes: &[u8],
        snapshot: &Snapshot,
        wire: &mut impl Wire,
    ) -> usize {
        let client = self.slots.node(conn).and_then(|it| it.client);
        let Some(client) = client else {
            // Nobody asked: not to be trusted with the next request.
            self.close_node(conn, wire);
            return bytes.len();
        };
        let mut consumed = 0;
        while consumed < bytes.len() {
            let rest = bytes.get(consumed..).unwrap_or_default();
            let Some(exchange) = self.take_exchange(client) else { return bytes.len() };
            let step = if exchange.tunnel.is_some() {
                self.set_exchange(client, exchange);
                self.tunnel_to_client(now, client, rest, wire);
                Step::On(rest.len())
            } else if exchange.response.is_some() {
                self.response_body(now, client, exchange, rest, wire)
            } else {
                self.response_head(now, conn, client, exchange, rest, snapshot, wire)
            };
            match step {
                Step::On(0) => return consumed,
                Step::On(bytes) => consumed += bytes,
                Step::Over => return bytes.len(),
            }
        }
        consumed
    }

    #[allow(clippy::too_many_arguments)] // one event with both its ends
    fn response_head(
        &mut self,
        now: Time,
        node: Conn,
        client: Conn,
        mut exchange: Box<Exchange>,
        bytes: &[u8],
        snapshot: &Snapshot,
        wire: &mut impl Wire,
    ) -> Step {
        let Some(it) = self.slots.node(node) else { return Step::Over };
        let length = match it.scan.head(bytes) {
            Ok(None) => {
                self.set_exchange(client, exchange);
                return Step::On(0);
            }
            Ok(Some(length)) => length,
            Err(_) => return self.broken(now, client, exchange, snapshot, wire),
        };
        it.scan = SCAN;
        let head = bytes.get(..length).unwrap_or_default();
        self.buffers.edits.clear();
        let Ok(response) = Response::parse(head, exchange.method, &mut self.buffers.edits) else {
            return self.broken(now, client, exchange, snapshot, wire);
        };
        if response.status >= 200
            && let Some(it) = self.slots.node(node)
        {
            it.takes_followers = response.is_persistent && !response.is_1_0;
        }
        match response.status {
            101 if exchange.upgrades => {
                self.counters.response(101);
                self.note_response(now, &exchange, 101, snapshot);
                self.send_client(client, head, wire);
                self.open_tunnel(now, client, &mut exchange, wire);
                self.set_exchange(client, exchange);
                self.resume_waiting(client, wire);
                Step::On(length)
            }
            101 => self.broken(now, client, exchange, snapshot, wire),
            100..=199 => self.interim(now, client, exchange, &response, head, wire),
            _ => {
                self.note_response(now, &exchange, response.status, snapshot);
                self.final_head(now, client, exchange, &response, bytes, wire)
            }
        }
    }

    /// 100, 103 and the like go to clients that know them (RFC 9110 §15.2).
    fn interim(
        &mut self,
        now: Time,
        client: Conn,
        mut exchange: Box<Exchange>,
        response: &Response,
        head: &[u8],
        wire: &mut impl Wire,
    ) -> Step {
        // From here on it is the client who is waited for.
        exchange.expects_continue &= response.status != 100;
        let http = &self.settings.config.http;
        let (response_time, body_idle) = (http.response_time, http.body_idle);
        let mut patience = if exchange.request.is_done() { response_time } else { body_idle };
        if !exchange.is_1_0 {
            let mut out = std::mem::take(&mut self.buffers.out);
            out.clear();
            if self.buffers.edits.apply(head, &mut out).is_ok() {
                self.counters.response(response.status);
                if self.send_client(client, &out, wire) == Room::Full {
                    exchange.node.into_iter().for_each(|it| wire.pause(it));
                    patience = body_idle;
                }
            }
            self.buffers.out = out;
        }
        self.slots.arm(client, now + patience);
        self.set_exchange(client, exchange);
        Step::On(response.bytes)
    }

    /// The head of the answer, and as much of its body as came with it.
    #[allow(clippy::too_many_arguments)] // one event with both its ends
    fn final_head(
        &mut self,
        now: Time,
        client: Conn,
        mut exchange: Box<Exchange>,
        response: &Response,
        bytes: &[u8],
        wire: &mut impl Wire,
    ) -> Step {
        let (head, rest) = bytes.split_at_checked(response.bytes).unwrap_or_default();
        exchange.strips_chunks = exchange.is_1_0 && response.framing == Framing::Chunked;
        exchange.keeps_client &= response.framing != Framing::UntilClose
            && !exchange.strips_chunks
            && exchange.request.is_done() // else what comes next may be its body
            && (!self.is_stopping || !exchange.followers.is_empty());
        exchange.keeps_node = (response.is_persistent && !exchange.goes_as_1_0)
            .then_some(response.keeps_secs.unwrap_or(u32::MAX));
        let edits = &mut self.buffers.edits;
        if exchange.is_1_0 && !matches!(response.status, 100..200 | 204) {
            response.coding.into_iter().for_each(|it| edits.remove(it));
        }
        let end = head::end_of_lines(head.len());
        match (exchange.keeps_client, exchange.is_1_0) {
            (false, _) => edits.insert(end, b"Connection: close\r\n"),
            (true, true) => edits.insert(end, b"Connection: keep-alive\r\n"),
            (true, false) => {}
        }
        // With nothing to change, everything leaves straight from the receive buffer.
        let is_verbatim = self.buffers.edits.is_empty();
        let most = match (exchange.strips_chunks, is_verbatim) {
            (true, _) => 0,
            (false, true) => rest.len(),
            (false, false) => rest.len().min(COALESCED_BYTES_MAX),
        };
        let first = rest.get(..most).unwrap_or_default();
        let mut body = Body::of_response(response.framing);
        let mut out = std::mem::take(&mut self.buffers.out);
        out.clear();
        let edited = if is_verbatim { Ok(()) } else { self.buffers.edits.apply(head, &mut out) };
        let (Ok(taken), Ok(())) = (body.take(first), edited) else {
            self.buffers.out = out;
            self.counters.refused(Refusal::BadGateway);
            self.fail(now, client, exchange, 502, wire);
            return Step::Over;
        };
        let room = if is_verbatim {
            let whole = bytes.get(..response.bytes + taken.bytes).unwrap_or_default();
            self.send_client(client, whole, wire)
        } else {
            let first = first.get(..taken.bytes).unwrap_or_default();
            self.send_client_parts(client, [&out, first], wire)
        };
        self.buffers.out = out;
        self.counters.response(response.status);
        self.counters.bytes_to_client += taken.content as u64;
        exchange.response = Some(body);
        self.after_body(now, client, exchange, room, taken.bytes == rest.len(), wire)
            .on(response.bytes + taken.bytes)
    }

    /// More of the answer's body.
    fn response_body(
        &mut self,
        now: Time,
        client: Conn,
        mut exchange: Box<Exchange>,
        bytes: &[u8],
        wire: &mut impl Wire,
    ) -> Step {
        let Some(mut body) = exchange.response else { return Step::Over };
        let (mut used, mut content, mut room) = (0, 0, Room::Free);
        let is_whole = if exchange.strips_chunks {
            let mut pieces = std::mem::take(&mut self.buffers.out);
            pieces.clear();
            let is_whole = loop {
                let rest = bytes.get(used..).unwrap_or_default();
                match body.next(rest) {
                    Ok(piece) if piece.bytes == 0 => break true,
                    Ok(piece) => {
                        used += piece.bytes;
                        if piece.is_content {
                            content += piece.bytes;
                            pieces.extend_from_slice(rest.get(..piece.bytes).unwrap_or_default());
                        }
                    }
                    Err(_) => break false,
                }
            };
            if is_whole && !pieces.is_empty() {
                room = self.send_client(client, &pieces, wire);
            }
            self.buffers.out = pieces;
            is_whole
        } else {
            match body.take(bytes) {
                Ok(taken) => {
                    (used, content) = (taken.bytes, taken.content);
                    if used > 0 {
                        let part = bytes.get(..used).unwrap_or_default();
                        room = self.send_client(client, part, wire);
                    }
                    true
                }
                Err(_) => false,
            }
        };
        if !is_whole {
            self.counters.refused(Refusal::Aborted);
            self.fail(now, client, exchange, 502, wire);
            return Step::Over;
        }
        self.counters.bytes_to_client += content as u64;
        exchange.response = Some(body);
        self.after_body(now, client, exchange, room, used == bytes.len(), wire).on(used)
    }

    /// `is_clean`: nothing is left behind what was sent on. What is left may answer the next request.
    fn after_body(
        &mut self,
        now: Time,
        client: Conn,
        mut exchange: Box<Exchange>,
        room: Room,
        is_clean: bool,
        wire: &mut impl Wire,
    ) -> Step {
        if exchange.response.is_some_and(|it| it.is_done()) {
            let answers_more =
                exchange.followers.front().is_some_and(|it| it.node == exchange.node);
            exchange.keeps_node = exchange.keeps_node.filter(|_| is_clean || answers_more);
            let goes_on = self.finish(now, client, exchange, wire);
            return if goes_on { Step::On(0) } else { Step::Over };
        }
        if room == Room::Full {
            exchange.node.into_iter().for_each(|it| wire.pause(it));
        }
        self.slots.arm(client, now + self.settings.http().body_idle);
        self.set_exchange(client, exchange);
        Step::On(0)
    }

    /// The answer is complete. `true`: the next one on the connection is for the same client.
    fn finish(
        &mut self,
        now: Time,
        client: Conn,
        mut exchange: Box<Exchange>,
        wire: &mut impl Wire,
    ) -> bool {
        let is_whole = exchange.request.is_done();
        let (keeps_client, is_last) = (exchange.keeps_client, exchange.is_last);
        let keeps_node = exchange.keeps_node.filter(|_| is_whole);
        let mut goes_on = false;
        if let Some(node) = exchange.node.take() {
            let is_followed = exchange.is_followed_on(node);
            goes_on = is_followed && keeps_client && keeps_node.is_some();
            if !goes_on {
                self.release_node(now, node, keeps_node.filter(|_| !is_followed), wire);
            }
        }
        let followers = std::mem::take(&mut exchange.followers);
        self.retire(exchange);
        let has_more = self.slots.client(client).is_some_and(|it| it.has_more);
        match (is_whole && keeps_client, is_whole && !has_more) {
            (true, _) => self.next_request(now, client, followers, wire),
            (false, true) if is_last => self.hang_up_client(client, wire),
            (false, true) => self.close_client(client, wire),
            (false, false) => self.linger(now, client, wire),
        }
        goes_on
    }

    /// Back into the pool for as long as the node promised, or closed.
    fn release_node(
        &mut self,
        now: Time,
        conn: Conn,
        keeps_secs: Option<u32>,
        wire: &mut impl Wire,
    ) {
        let promised = keeps_secs.map(|it| Duration::from_secs(u64::from(it.saturating_sub(1))));
        let patience = promised.map(|it| it.min(self.settings.http().node_idle));
        let Some(node) = self.slots.node(conn) else { return };
        let place = node.place;
        (node.client, node.scan) = (None, SCAN);
        // It may have been stopped for the sake of this client: the next one needs its answer.
        wire.resume(conn);
        match patience.filter(|it| !it.is_zero() && !self.is_stopping) {
            Some(patience) if self.pool.put(&place, conn) => self.slots.arm(conn, now + patience),
            _ => {
                self.slots.remove(conn);
                wire.close(conn);
            }
        }
    }

    /// What came is no response.
    fn broken(
        &mut self,
        now: Time,
        client: Conn,
        mut exchange: Box<Exchange>,
        snapshot: &Snapshot,
        wire: &mut impl Wire,
    ) -> Step {
        if let Some(node) = exchange.node.take() {
            self.slots.remove(node);
            wire.abort(node);
        }
        exchange.is_reused = false;
        self.failed(now, client, exchange, Failure::Broken, snapshot, wire);
        Step::Over
    }

    /// For the statistics, and for the control executor.
    fn note_response(&mut self, now: Time, exchange: &Exchange, status: u16, snapshot: &Snapshot) {
        let Some(key) = exchange.place.and_then(|it| it.node) else { return };
        self.counters.from_node(key, status, now.since(exchange.asked));
        // One that fails at everything may be the shell of a server (`http-smpp-registry.md` 3.1).
        if status < 500
            && let Some(id) = snapshot.find(key)
        {
            self.sightings.alive(snapshot, id);
        }
        if exchange.is_watched && (400..600).contains(&status) {
            self.sightings.bad_response(key, status);
        }
    }

    /// It was connected, TLS and all.
    pub(super) fn node_connected(&mut self, now: Time, conn: Conn, wire: &mut impl Wire) {
        let http = &self.settings.config.http;
        let (response_time, body_idle) = (http.response_time, http.body_idle);
        let Some(client) = self.slots.node(conn).and_then(|it| it.client) else { return };
        let Some(exchange) = self.slots.client(client).and_then(|it| it.exchange.as_mut()) else {
            return;
        };
        exchange.is_connected = true;
        let patience = if exchange.request.is_done() { response_time } else { body_idle };
        // What was held back because the node was not there yet may come now.
        if std::mem::take(&mut exchange.is_node_full) {
            wire.resume(client);
        }
        self.slots.arm(client, now + patience);
    }

    /// The node will send no more.
    pub(super) fn node_ended(
        &mut self,
        now: Time,
        conn: Conn,
        snapshot: &Snapshot,
        wire: &mut impl Wire,
    ) {
        let Some(client) = self.slots.node(conn).and_then(|it| it.client) else {
            return self.close_node(conn, wire);
        };
        let Some(mut exchange) = self.take_exchange(client) else { return };
        if let Some(tunnel) = &mut exchange.tunnel {
            tunnel.node_ended = true;
            let is_over = tunnel.client_ended;
            self.set_exchange(client, exchange);
            if is_over {
                self.end_tunnel(now, client, wire);
            } else {
                wire.end(client);
                self.slots.arm(client, now + self.settings.http().tunnel_idle);
            }
            return;
        }
        if exchange.response.is_some_and(|it| it.may_end_here()) {
            exchange.keeps_node = None;
            self.finish(now, client, exchange, wire);
            return;
        }
        let failure = unsent_or_broken(&exchange, conn, wire);
        self.lost(now, client, exchange, failure, snapshot, wire);
    }

    /// The node is gone.
    pub(super) fn node_gone(
        &mut self,
        now: Time,
        conn: Conn,
        why: Gone,
        snapshot: &Snapshot,
        wire: &mut impl Wire,
    ) {
        let Some(Peer::Node(node)) = self.slots.remove(conn) else { return };
        let Some(client) = node.client else { return self.pool.remove(&node.place, conn) };
        let Some(mut exchange) = self.take_exchange(client) else { return };
        exchange.node = None;
        if let Some(tunnel) = exchange.tunnel {
            self.count_tunnel(&tunnel);
            return self.abort_client(client, wire);
        }
        let failure = match why {
            Gone::Refused | Gone::Shortage | Gone::ConnectTimeout | Gone::Handshake => {
                Failure::Unreached(why)
            }
            _ if !exchange.is_connected => Failure::Unreached(why),
            _ => unsent_or_broken(&exchange, conn, wire),
        };
        self.lost(now, client, exchange, failure, snapshot, wire);
    }

    /// The connection to the node broke off: before the response another node may have the request, in
    /// the middle of it the client must see the cut.
    fn lost(
        &mut self,
        now: Time,
        client: Conn,
        mut exchange: Box<Exchange>,
        failure: Failure,
        snapshot: &Snapshot,
        wire: &mut impl Wire,
    ) {
        if let Some(node) = exchange.node.take() {
            self.slots.remove(node);
            wire.abort(node); // what is queued must not reach it any more: another may get it
        }
        if exchange.response.is_some() {
            self.counters.refused(Refusal::Aborted);
            self.retire(exchange);
            self.abort_client(client, wire);
        } else {
            self.failed(now, client, exchange, failure, snapshot, wire);
        }
    }

    /// The node takes bytes again.
    pub(super) fn node_drained(&mut self, now: Time, conn: Conn, wire: &mut impl Wire) {
        let http = &self.settings.config.http;
        let (body_idle, tunnel_idle) = (http.body_idle, http.tunnel_idle);
        let Some(client) = self.slots.node(conn).and_then(|it| it.client) else { return };
        let Some(exchange) = self.slots.client(client).and_then(|it| it.exchange.as_mut()) else {
            return;
        };
        if !exchange.is_connected || !std::mem::take(&mut exchange.is_node_full) {
            return;
        }
        let patience = if exchange.tunnel.is_some() { tunnel_idle } else { body_idle };
        wire.resume(client);
        self.slots.arm(client, now + patience);
    }

    /// Nodes have left the table: what waits in the pool for them is closed, and requests that they have not
    /// answered and that another may carry out as well go there now, since a dead host answers nothing.
    pub(super) fn leave_nodes(&mut self, now: Time, snapshot: &Snapshot, wire: &mut impl Wire) {
        for conn in self.slots.nodes() {
            let Some(node) = self.slots.node(conn) else { continue };
            let (place, client) = (node.place, node.client);
            if place.node.is_none_or(|it| snapshot.find(it).is_some()) {
                continue;
            }
            let Some(client) = client else {
                self.close_node(conn, wire);
                continue;
            };
            let is_movable = |it: &Exchange| {
                let can_repeat = it.method.is_idempotent() || !it.is_connected;
                it.tunnel.is_none() && it.response.is_none() && it.can_replay && can_repeat
            };
            let Some(exchange) = self.take_exchange(client) else { continue };
            let another = if is_movable(&exchange) {
                self.another(now, client, &exchange, snapshot)
            } else {
                None
            };
            let Some(place) = another else {
                self.set_exchange(client, exchange); // it may answer yet
                continue;
            };
            self.slots.remove(conn);
            wire.abort(conn);
            self.relaunch(now, client, exchange, place, false, snapshot, wire);
        }
        self.pool.forget_unused();
    }

    /// It waited long enough in the pool.
    pub(super) fn node_timeout(&mut self, conn: Conn, wire: &mut impl Wire) {
        if self.slots.node(conn).is_some_and(|it| it.client.is_none()) {
            self.close_node(conn, wire);
        }
    }

    /// Closes a connection of the pool.
    fn close_node(&mut self, conn: Conn, wire: &mut impl Wire) {
        if let Some(Peer::Node(node)) = self.slots.remove(conn) {
            self.pool.remove(&node.place, conn);
            wire.close(conn);
        }
    }

    /// Bytes of the client that waited for their turn may come.
    fn resume_waiting(&mut self, client: Conn, wire: &mut impl Wire) {
        if self.slots.client(client).is_some_and(|it| it.has_more) {
            wire.resume(client);
        }
    }
}

/// What it means that a connection broke off: a request of which nothing has left may go anywhere
/// (RFC 9110 §9.2.2).
fn unsent_or_broken(exchange: &Exchange, node: Conn, wire: &mut impl Wire) -> Failure {
    let is_unsent = wire.sent_bytes(node) == exchange.sent_before;
    if is_unsent { Failure::Unsent } else { Failure::Broken }
}

impl Step {
    /// The exchange goes on, `bytes` further.
    fn on(self, bytes: usize) -> Step {
        match self {
            Step::On(_) => Step::On(bytes),
            Step::Over => Step::Over,
        }
    }
}
