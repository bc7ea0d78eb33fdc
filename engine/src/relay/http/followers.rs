//! Requests that a client sends while one of its own is on its way. By key, those that belong on the same node
//! follow on the same connection and are answered in their turn (RFC 9112 §9.3.2); the others wait unread.
//!
//! Only what may be asked twice follows, behind its like: when the connection breaks off, or the node wants
//! no more on it, each is sent again when its turn comes. A connection with answers outstanding never goes
//! back to the pool: another client would get them.

use std::collections::VecDeque;

use protocols::http::body::Framing;
use protocols::http::head::Request;
use protocols::time::Time;

use super::Http;
use super::choose::Ask;
use super::peer::{Exchange, SCAN};
use super::pool::Place;
use super::settings::FOLLOWERS_MAX;
use crate::relay::stream::{Conn, Wire};
use crate::snapshot::Snapshot;

impl Http {
    /// What comes behind a request that is all there. Returns how much went on; 0: it waits.
    pub(super) fn follow(
        &mut self,
        now: Time,
        conn: Conn,
        bytes: &[u8],
        snapshot: &Snapshot,
        wire: &mut impl Wire,
    ) -> usize {
        let Some((node, place)) = self.leader(conn) else { return 0 };
        let mut scan = SCAN;
        let Ok(Some(length)) = scan.head(bytes) else { return 0 };
        let head = bytes.get(..length).unwrap_or_default();
        self.buffers.edits.clear();
        let Ok(request) = Request::parse(head, &mut self.buffers.edits) else { return 0 };
        if !may_follow(&request) {
            return 0;
        }
        let Some(client) = self.slots.client(conn) else { return 0 };
        let (source, listener) = (client.source.ip(), usize::from(client.listener));
        let Some(listener) = self.settings.listener(listener) else { return 0 };
        let Ok((mut exchange, rewritten)) = self.prepare(now, head, &request, listener, source)
        else {
            return 0;
        };
        let ask = Ask {
            now,
            service: exchange.service,
            target: rewritten.as_deref().unwrap_or(request.target.of(head)),
            cookie: request.session_cookie.map(|it| it.of(head)),
            source,
            tried: &[],
        };
        if self.bound_place(&ask, snapshot) != Some(place) {
            self.retire(exchange);
            return 0;
        }
        self.counters.request(request.method);
        place.node.into_iter().for_each(|it| self.counters.to_node(it));
        (exchange.node, exchange.place) = (Some(node), Some(place));
        (exchange.is_connected, exchange.is_reused) = (true, true);
        exchange.attempts = 1;
        exchange.sent_before = wire.sent_bytes(node);
        // A queue that is full takes these few heads all the same.
        wire.send(node, &exchange.replay);
        if let Some(leader) = self.slots.client(conn).and_then(|it| it.exchange.as_mut()) {
            leader.followers.push_back(exchange);
        }
        length
    }

    /// Where the next request of this client may follow the last one to.
    fn leader(&mut self, conn: Conn) -> Option<(Conn, Place)> {
        let client = self.slots.client(conn)?;
        let exchange = client.exchange.as_deref().filter(|_| !client.is_full)?;
        let last = exchange.followers.back().map_or(exchange, |it| it);
        let (node, place) = (exchange.node?, exchange.place?);
        let takes_one = self.settings.http().pipelines
            && exchange.is_connected
            && exchange.method.is_safe()
            && !exchange.upgrades
            && exchange.keeps_client
            && last.keeps_client
            && last.node == Some(node) // else it is to be sent again first
            && exchange.followers.len() < FOLLOWERS_MAX;
        (takes_one && self.slots.node(node)?.takes_followers).then_some((node, place))
    }

    /// The first of these has its turn: its answer is the next on its connection, or it is sent again.
    pub(super) fn next_follower(
        &mut self,
        now: Time,
        conn: Conn,
        mut exchange: Box<Exchange>,
        followers: VecDeque<Box<Exchange>>,
        wire: &mut impl Wire,
    ) {
        exchange.followers = followers;
        let node = exchange.node.and_then(|it| self.slots.node(it));
        if node.is_some_and(|it| it.client == Some(conn)) {
            exchange.asked = now;
            // The node is not read while the client does not take the answer before: its time begins then.
            let http = &self.settings.config.http;
            let (response_time, body_idle) = (http.response_time, http.body_idle);
            let is_full = self.slots.client(conn).is_some_and(|it| it.is_full);
            self.slots.arm(conn, now + if is_full { body_idle } else { response_time });
        } else if let Some(place) = exchange.place {
            self.counters.retries += 1;
            self.launch(now, conn, &mut exchange, place, false, wire);
        }
        self.set_exchange(conn, exchange);
        if self.slots.client(conn).is_some_and(|it| it.has_more && !it.is_full) {
            wire.resume(conn);
        }
    }

    /// The node failed that the followers of this exchange were sent to: they go where it goes next, unless
    /// they belong elsewhere.
    pub(super) fn redirect_followers(
        &mut self,
        now: Time,
        conn: Conn,
        exchange: &mut Exchange,
        snapshot: &Snapshot,
    ) {
        let mut followers = std::mem::take(&mut exchange.followers);
        for it in &mut followers {
            it.tried.clone_from(&exchange.tried);
            it.place = self.another(now, conn, it, snapshot).or(it.place);
        }
        exchange.followers = followers;
    }
}

impl Exchange {
    /// Whether answers to others of its client are still to come on this connection.
    pub(super) fn is_followed_on(&self, node: Conn) -> bool {
        self.followers.iter().any(|it| it.node == Some(node))
    }
}

/// What can be sent again and again, and has nothing to come behind its head.
fn may_follow(request: &Request) -> bool {
    request.method.is_safe()
        && request.framing == Framing::NONE
        && request.upgrade.is_none()
        && !request.expects_continue
        && !request.is_1_0
}
