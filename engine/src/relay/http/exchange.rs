//! A request on its way to a node: finding it a connection, another node when one fails, an end to waiting.

use std::net::SocketAddr;

use protocols::http::{head, session};
use protocols::time::Time;

use super::Http;
use super::choose::Ask;
use super::client::takes;
use super::peer::{Exchange, Node, Peer, SCAN, Tunnel};
use super::pool::Place;
use super::settings::{BREAKS_MAX, RETRY_AFTER_SECS, TRIES_MAX, secure};
use crate::relay::stream::{Conn, Gone, Room, Secure, Wire};
use crate::snapshot::{NodeId, Snapshot, way};
use crate::stats::Refusal;

/// How a node failed before it answered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Failure {
    /// It was never reached: the request cannot have been carried out.
    Unreached(Gone),
    /// The connection broke off before anything of the request had left.
    Unsent,
    /// The connection broke off, or what came was no response.
    Broken,
}

impl Http {
    /// The node for a request.
    pub(super) fn place_for(&mut self, ask: &Ask<'_>, snapshot: &Snapshot) -> Option<Place> {
        let id = self.chooser.choose(ask, snapshot)?;
        place_at(id, ask, snapshot)
    }

    /// The node that a request cannot but go to.
    pub(super) fn bound_place(&mut self, ask: &Ask<'_>, snapshot: &Snapshot) -> Option<Place> {
        let id = self.chooser.bound(ask, snapshot)?;
        place_at(id, ask, snapshot)
    }

    pub(super) fn unavailable_place(&self) -> Option<Place> {
        let to = self.settings.unavailable?;
        Some(Place { to, secure: Secure::No, node: None })
    }

    /// Sends what there is of the request to `place`, on a waiting connection or a new one.
    pub(super) fn launch(
        &mut self,
        now: Time,
        conn: Conn,
        exchange: &mut Exchange,
        place: Place,
        is_fresh: bool,
        wire: &mut impl Wire,
    ) {
        let waiting = if is_fresh { None } else { self.pool.take(&place) };
        if exchange.attempts == 0 {
            self.counters.bytes_to_node += exchange.content_bytes;
        }
        exchange.attempts += 1;
        exchange.asked = now;
        exchange.place = Some(place);
        (exchange.is_reused, exchange.is_connected) = (waiting.is_some(), waiting.is_some());
        exchange.is_node_full = false;
        let node = waiting.or_else(|| {
            let node = self.slots.insert(Peer::Node(Node::new(place)))?;
            wire.connect(node, place.to, place.secure);
            Some(node)
        });
        exchange.node = node;
        exchange.sent_before = waiting.map_or(0, |it| wire.sent_bytes(it));
        if let Some(it) = node.and_then(|it| self.slots.node(it)) {
            (it.client, it.scan) = (Some(conn), SCAN);
        }
        if let Some(key) = place.node {
            self.counters.to_node(key);
        }
        if let Some(client) = self.slots.client(conn)
            && !std::mem::replace(&mut client.is_paired, true)
        {
            self.counters.paired += 1;
        }
        let room = node.map_or(Room::Free, |it| wire.send(it, &exchange.replay));
        exchange.taken_bytes = exchange.sent_before;
        if room == Room::Full && !exchange.request.is_done() {
            exchange.is_node_full = true;
            wire.pause(conn);
        }
        let http = self.settings.http();
        let patience = match (exchange.is_connected, exchange.request.is_done()) {
            (false, _) => http.connect_time,
            (true, true) => http.response_time,
            (true, false) => http.body_idle,
        };
        self.slots.arm(conn, now + patience);
    }

    /// The node failed and nothing of its response has gone to the client: the next node, if the request
    /// can be sent again, else 502. The connection to the node is gone already.
    pub(super) fn failed(
        &mut self,
        now: Time,
        conn: Conn,
        mut exchange: Box<Exchange>,
        failure: Failure,
        snapshot: &Snapshot,
        wire: &mut impl Wire,
    ) {
        exchange.node = None;
        let is_unreached = matches!(failure, Failure::Unreached(_));
        let is_stale = exchange.is_reused && !is_unreached;
        let has_broken = failure == Failure::Broken;
        // What kills one node must not go through all of them.
        exchange.breaks += usize::from(has_broken && !is_stale);
        let may_repeat = exchange.can_replay
            && (!has_broken || exchange.method.is_idempotent())
            && exchange.breaks <= BREAKS_MAX
            && exchange.attempts < TRIES_MAX;
        let is_ours = failure == Failure::Unreached(Gone::Shortage);
        if is_unreached
            && !is_ours
            && let Some(key) = exchange.place.and_then(|it| it.node)
            && let Some(id) = snapshot.find(key)
        {
            self.sightings.refused(key, way(exchange.service, snapshot.node(id)));
        }
        let next = match exchange.place.filter(|_| may_repeat) {
            // It may have closed a connection that waited too long; it lives until it refuses a new one.
            Some(place) if is_stale => Some(place),
            Some(Place { node: Some(key), .. }) => {
                exchange.tried.push(key);
                self.another(now, conn, &exchange, snapshot)
            }
            _ => None,
        };
        if let Some(place) = next {
            return self.relaunch(now, conn, exchange, place, is_stale, snapshot, wire);
        }
        let status = match failure {
            Failure::Unreached(Gone::Shortage) => 503,
            Failure::Unreached(Gone::ConnectTimeout) => 504,
            _ => 502,
        };
        let (why, field) = match status {
            503 => (Refusal::Shortage, Some(("Retry-After", RETRY_AFTER_SECS))),
            504 => (Refusal::GatewayTimeout, None),
            _ => (Refusal::BadGateway, None),
        };
        self.counters.refused(why);
        self.answer(now, conn, exchange, status, field, wire);
    }

    /// Sends a request that was sent before to another place. The connection to the last is gone.
    #[allow(clippy::too_many_arguments)] // one event with both its ends
    pub(super) fn relaunch(
        &mut self,
        now: Time,
        conn: Conn,
        mut exchange: Box<Exchange>,
        place: Place,
        is_fresh: bool,
        snapshot: &Snapshot,
        wire: &mut impl Wire,
    ) {
        self.counters.retries += 1;
        let was_full = exchange.is_node_full;
        if exchange.place != Some(place) {
            self.redirect_followers(now, conn, &mut exchange, snapshot);
        }
        self.launch(now, conn, &mut exchange, place, is_fresh, wire);
        let resumes = was_full && !exchange.is_node_full;
        self.set_exchange(conn, exchange);
        if resumes {
            wire.resume(conn);
        }
    }

    /// Another node for a request that was sent before: what chooses it is in the head as it was sent.
    pub(super) fn another(
        &mut self,
        now: Time,
        conn: Conn,
        exchange: &Exchange,
        snapshot: &Snapshot,
    ) -> Option<Place> {
        let source = self.slots.client(conn)?.source.ip();
        let head = exchange.replay.get(..exchange.head_bytes)?;
        let ask = Ask {
            now,
            service: exchange.service,
            target: head::target(head)?,
            cookie: head::fields(head, b"Cookie").find_map(|it| session::cookie(it, b"jsessionid")),
            source,
            tried: &exchange.tried,
        };
        self.place_for(&ask, snapshot)
    }

    /// Ends a request with our own answer, or, if the node's has begun, with a cut that the client sees.
    pub(super) fn fail(
        &mut self,
        now: Time,
        conn: Conn,
        mut exchange: Box<Exchange>,
        status: u16,
        wire: &mut impl Wire,
    ) {
        if let Some(node) = exchange.node.take() {
            self.slots.remove(node);
            wire.abort(node);
        }
        if exchange.response.is_some() {
            self.retire(exchange);
            self.abort_client(conn, wire);
        } else {
            if matches!(status, 400 | 408 | 413) {
                exchange.keeps_client = false;
            }
            self.answer(now, conn, exchange, status, None, wire);
        }
    }

    /// The client is of no interest any more: the node must not work for nobody.
    pub(super) fn give_up(&mut self, conn: Conn, wire: &mut impl Wire) {
        let Some(exchange) = self.take_exchange(conn) else { return };
        if let Some(node) = exchange.node {
            self.slots.remove(node);
            wire.abort(node);
        }
        if let Some(tunnel) = exchange.tunnel {
            self.count_tunnel(&tunnel);
        }
        self.retire(exchange);
    }

    /// Nothing happened for too long.
    pub(super) fn exchange_timeout(
        &mut self,
        now: Time,
        conn: Conn,
        snapshot: &Snapshot,
        wire: &mut impl Wire,
    ) {
        let Some(mut exchange) = self.take_exchange(conn) else { return };
        let http = self.settings.http();
        let (body_idle, tunnel_idle) = (http.body_idle, http.tunnel_idle);
        let node_takes = exchange.is_connected
            && exchange.node.is_some_and(|it| takes(wire.progress(it), &mut exchange.taken_bytes));
        if node_takes || self.client_takes(conn, wire) {
            let patience = if exchange.tunnel.is_some() { tunnel_idle } else { body_idle };
            self.slots.arm(conn, now + patience);
            return self.set_exchange(conn, exchange);
        }
        if exchange.tunnel.is_some() {
            self.set_exchange(conn, exchange);
            return self.end_tunnel(now, conn, wire);
        }
        if !exchange.is_connected && exchange.response.is_none() {
            if let Some(node) = exchange.node {
                self.slots.remove(node);
                wire.abort(node);
            }
            let failure = Failure::Unreached(Gone::ConnectTimeout);
            return self.failed(now, conn, exchange, failure, snapshot, wire);
        }
        if self.slots.client(conn).is_some_and(|it| it.is_full) {
            // What its node says is not read meanwhile; one more answer would not be, either.
            self.counters.refused(Refusal::Slow);
            self.set_exchange(conn, exchange);
            self.give_up(conn, wire);
            return self.abort_client(conn, wire);
        }
        let waits_for_100 = exchange.expects_continue && exchange.content_bytes == 0;
        let is_clients_fault = exchange.response.is_none()
            && !exchange.request.is_done()
            && !exchange.is_node_full
            && !waits_for_100;
        let (why, status) = match (is_clients_fault, &exchange.response) {
            (true, _) => (Refusal::Slow, 408),
            (false, Some(_)) => (Refusal::Aborted, 504),
            (false, None) => (Refusal::GatewayTimeout, 504),
        };
        self.counters.refused(why);
        self.fail(now, conn, exchange, status, wire);
    }

    /// 101 has gone to the client: from here on bytes are nobody's business.
    pub(super) fn open_tunnel(
        &mut self,
        now: Time,
        conn: Conn,
        exchange: &mut Exchange,
        wire: &mut impl Wire,
    ) {
        let client_ended = self.slots.client(conn).is_some_and(|it| it.is_ended && !it.has_more);
        exchange.tunnel = Some(Tunnel { client_ended, ..Tunnel::default() });
        exchange.node.into_iter().filter(|_| client_ended).for_each(|it| wire.end(it));
        self.counters.tunnels += 1;
        self.counters.tunnels_open += 1;
        self.recycle(std::mem::take(&mut exchange.replay));
        self.slots.arm(conn, now + self.settings.http().tunnel_idle);
    }

    pub(super) fn tunnel_to_node(
        &mut self,
        now: Time,
        conn: Conn,
        bytes: &[u8],
        wire: &mut impl Wire,
    ) {
        let patience = self.settings.http().tunnel_idle;
        let Some(exchange) = self.slots.client(conn).and_then(|it| it.exchange.as_mut()) else {
            return;
        };
        let (Some(tunnel), Some(node)) = (&mut exchange.tunnel, exchange.node) else { return };
        tunnel.bytes_to_node += bytes.len() as u64;
        if wire.send(node, bytes) == Room::Full {
            exchange.is_node_full = true;
            wire.pause(conn);
        }
        self.slots.arm(conn, now + patience);
    }

    pub(super) fn tunnel_to_client(
        &mut self,
        now: Time,
        conn: Conn,
        bytes: &[u8],
        wire: &mut impl Wire,
    ) {
        let patience = self.settings.http().tunnel_idle;
        let room = self.send_client(conn, bytes, wire);
        let Some(exchange) = self.slots.client(conn).and_then(|it| it.exchange.as_mut()) else {
            return;
        };
        let (Some(tunnel), Some(node)) = (&mut exchange.tunnel, exchange.node) else { return };
        tunnel.bytes_to_client += bytes.len() as u64;
        if room == Room::Full {
            wire.pause(node);
        }
        self.slots.arm(conn, now + patience);
    }

    /// Both ends have ended, or nobody spoke for too long: closed behind what is queued.
    pub(super) fn end_tunnel(&mut self, _now: Time, conn: Conn, wire: &mut impl Wire) {
        let Some(exchange) = self.take_exchange(conn) else { return };
        if let Some(node) = exchange.node {
            self.slots.remove(node);
            wire.close(node);
        }
        if let Some(tunnel) = exchange.tunnel {
            self.count_tunnel(&tunnel);
        }
        self.close_client(conn, wire);
    }

    pub(super) fn count_tunnel(&mut self, tunnel: &Tunnel) {
        self.counters.tunnels_open = self.counters.tunnels_open.saturating_sub(1);
        self.counters.tunnel_bytes_to_node += tunnel.bytes_to_node;
        self.counters.tunnel_bytes_to_client += tunnel.bytes_to_client;
        let Tunnel { bytes_to_node, bytes_to_client, .. } = tunnel;
        log::debug!("tunnel closed to_node={bytes_to_node} to_client={bytes_to_client}");
    }
}

fn place_at(id: NodeId, ask: &Ask<'_>, snapshot: &Snapshot) -> Option<Place> {
    let node = snapshot.node(id);
    let port = snapshot.web().port(ask.service, id)?;
    Some(Place {
        to: SocketAddr::new(node.ip, port),
        secure: secure(ask.service),
        node: Some(node.key),
    })
}
