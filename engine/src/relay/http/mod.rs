//! The HTTP relay: connections of clients and of nodes, requests in between. Source: `http-smpp-registry.md` 1.
//!
//! RFC 9112 on both sides, each by itself: clients keep their connections, connections to nodes wait in a
//! pool, every request chooses its node. Bodies pass as they come. Pipelined requests wait unread, or by key go
//! on to the node that is at work for their client if that is theirs, so that answers keep their order. After a
//! WebSocket handshake bytes pass unread.

mod choose;
mod client;
mod exchange;
mod followers;
mod node;
mod peer;
mod pool;
mod replies;
mod request;
mod rewrite;
mod settings;
mod slots;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use protocols::bytes::Edits;
use protocols::time::Time;

use self::choose::Chooser;
use self::peer::{Client, Exchange, Phase, SCAN};
use self::pool::Pool;
use self::settings::FRESH_TIME_MAX;
pub use self::settings::{HttpListener, HttpSettings};
use self::slots::Slots;
use crate::balance::Shard;
use crate::node::NodeKey;
use crate::relay::Report;
use crate::relay::sip::seen::Sightings;
use crate::relay::stream::{Conn, Gone, StreamRelay, Wire};
use crate::snapshot::Snapshot;
use crate::stats::{HttpCounters, Refusal};

/// One shard's HTTP relay. Owns its connections' state, counters and reusable buffers; shares nothing.
pub struct Http {
    settings: Arc<HttpSettings>,
    shard: Shard,
    chooser: Chooser,
    slots: Slots,
    pool: Pool,
    counters: HttpCounters,
    sightings: Sightings,
    /// Nodes of the table in force.
    known: Vec<NodeKey>,
    buffers: Buffers,
    is_stopping: bool,
    /// When the log last said that there is no node.
    complained: Option<Time>,
}

/// Reused from message to message.
#[derive(Default)]
struct Buffers {
    edits: Edits,
    out: Vec<u8>,
    /// Memory of requests that are done.
    spare: Vec<Vec<u8>>,
    #[allow(clippy::vec_box)] // the boxes are what is kept
    exchanges: Vec<Box<Exchange>>,
}

impl Http {
    /// A relay for one shard.
    pub fn new(settings: Arc<HttpSettings>, shard: Shard) -> Http {
        Http {
            chooser: Chooser::new(&settings.config, shard),
            settings: own(&settings),
            shard,
            slots: Slots::default(),
            pool: Pool::default(),
            counters: HttpCounters::default(),
            sightings: Sightings::default(),
            known: Vec::new(),
            buffers: Buffers::default(),
            is_stopping: false,
            complained: None,
        }
    }

    /// Takes new settings over between two events. Requests on their way keep their node. The listeners
    /// must be the same.
    pub fn configure(&mut self, settings: Arc<HttpSettings>) {
        self.chooser = Chooser::new(&settings.config, self.shard);
        self.settings = own(&settings);
    }

    /// The settings in force.
    pub fn settings(&self) -> &Arc<HttpSettings> {
        &self.settings
    }

    /// What was counted since the start.
    pub fn counters(&self) -> &HttpCounters {
        &self.counters
    }

    /// Connections to each node that carry a request or a tunnel now. Looks at all.
    pub fn busy(&self) -> BTreeMap<NodeKey, u64> {
        let mut busy = BTreeMap::new();
        for node in self.slots.busy_nodes() {
            *busy.entry(node).or_default() += 1;
        }
        busy
    }

    /// A new node table is in force: forgets what was counted of nodes that are gone for long, and waits for
    /// none that has left. Looks at all connections if one has.
    pub fn handle_snapshot(&mut self, now: Time, snapshot: &Snapshot, wire: &mut impl Wire) {
        self.counters.forget_dead(snapshot);
        if snapshot.renamed().any(|(old, _)| self.known.contains(&old)) {
            self.slots.rename_nodes(snapshot);
        }
        let has_lost = self.known.iter().any(|it| snapshot.find(*it).is_none());
        self.known.clear();
        self.known.extend(snapshot.nodes().iter().map(|it| it.key));
        if has_lost {
            self.leave_nodes(now, snapshot, wire);
        }
    }

    /// What the control executor must hear: refusals and bad responses at once, life signs a few times a
    /// second.
    pub fn poll_report(&mut self, now: Time, snapshot: &Snapshot) -> Option<Report> {
        self.sightings.poll(now, snapshot)
    }

    /// No new connections; those that wait for another request close at once, the others after their answer:
    /// one that has asked nothing yet may have done so in this moment. Tunnels stay until the process ends.
    pub fn handle_stopping(&mut self, now: Time, wire: &mut impl Wire) {
        self.is_stopping = true;
        for conn in self.slots.clients() {
            let Some(client) = self.slots.client(conn) else { continue };
            let is_idle = client.exchange.is_none() && !client.has_more && client.scan == SCAN;
            match (is_idle, client.phase) {
                (true, Phase::Requests) if client.is_fresh => {
                    self.slots.arm(conn, now + FRESH_TIME_MAX);
                }
                (true, Phase::Requests) => self.close_client(conn, wire),
                _ => {}
            }
        }
        for conn in self.pool.drain() {
            self.slots.remove(conn);
            wire.close(conn);
        }
    }

    /// The process ends now: an answer that is not complete must not look as if it were, which one without
    /// a length would.
    pub fn handle_over(&mut self, wire: &mut impl Wire) {
        for conn in self.slots.clients() {
            let exchange = self.slots.client(conn).and_then(|it| it.exchange.as_ref());
            let response = exchange.and_then(|it| it.response);
            if response.is_some_and(|it| !it.is_done()) {
                self.counters.refused(Refusal::Aborted);
                self.give_up(conn, wire);
                self.abort_client(conn, wire);
            }
        }
    }

    /// Connections of clients that are open.
    pub fn clients(&self) -> u64 {
        self.counters.clients
    }

    /// Most connections that one source may open, before anything of them is read; 0 is any number. Behind
    /// the PROXY protocol the source is not known yet.
    pub fn source_connections_max(&self) -> usize {
        if self.reads_preface() { 0 } else { self.settings.http().source_connections_max }
    }

    /// Clients begin with a PROXY protocol header, in clear where TLS follows.
    pub fn reads_preface(&self) -> bool {
        self.settings.http().proxy_protocol
    }

    /// A client was not let in.
    pub fn refused(&mut self, why: Refusal) {
        self.counters.refused(why);
    }

    /// Memory for a request; given back by [`Http::recycle`].
    fn spare(&mut self) -> Vec<u8> {
        self.buffers.spare.pop().unwrap_or_default()
    }

    /// Memory for bytes that the relay holds, all connections together.
    #[cfg(test)]
    fn held_bytes(&mut self) -> usize {
        let spare: usize = self.buffers.spare.iter().map(Vec::capacity).sum();
        let mut held = self.buffers.out.capacity() + spare;
        for conn in self.slots.clients() {
            let exchange = self.slots.client(conn).and_then(|it| it.exchange.as_ref());
            held += exchange.map_or(0, |it| it.replay.capacity());
        }
        held
    }

    /// The exchange is over; its memory is for the next one.
    fn retire(&mut self, mut exchange: Box<Exchange>) {
        self.recycle(std::mem::take(&mut exchange.replay));
        for follower in std::mem::take(&mut exchange.followers) {
            self.retire(follower);
        }
        if self.buffers.exchanges.len() < SPARE_MAX {
            self.buffers.exchanges.push(exchange);
        }
    }

    fn boxed(&mut self, exchange: Exchange) -> Box<Exchange> {
        match self.buffers.exchanges.pop() {
            Some(mut memory) => {
                *memory = exchange;
                memory
            }
            None => Box::new(exchange),
        }
    }

    fn recycle(&mut self, mut memory: Vec<u8>) {
        if self.buffers.spare.len() < SPARE_MAX && memory.capacity() <= SPARE_BYTES_MAX {
            memory.clear();
            self.buffers.spare.push(memory);
        }
    }
}

impl StreamRelay for Http {
    fn handle_open(
        &mut self,
        now: Time,
        listener: usize,
        source: SocketAddr,
        _wire: &mut impl Wire,
    ) -> Option<Conn> {
        let settings = Arc::clone(&self.settings);
        let number = u8::try_from(listener).ok()?;
        settings.listener(listener)?;
        if self.is_stopping {
            self.counters.refused(Refusal::Connections);
            return None;
        }
        let source = SocketAddr::new(source.ip().to_canonical(), source.port());
        let mut client = Client::new(number, source);
        let mut patience = settings.http().client_idle;
        if self.reads_preface() {
            client.phase = Phase::Preface;
            patience = settings.http().head_time;
        }
        let conn = self.slots.insert(peer::Peer::Client(client))?;
        self.counters.clients += 1;
        self.slots.arm(conn, now + patience);
        Some(conn)
    }

    fn handle_connected(&mut self, now: Time, conn: Conn, wire: &mut impl Wire) {
        self.node_connected(now, conn, wire);
    }

    fn handle_bytes(
        &mut self,
        now: Time,
        conn: Conn,
        bytes: &[u8],
        snapshot: &Snapshot,
        wire: &mut impl Wire,
    ) -> usize {
        match self.slots.is_client(conn) {
            Some(true) => self.client_bytes(now, conn, bytes, snapshot, wire),
            Some(false) => self.node_bytes(now, conn, bytes, snapshot, wire),
            None => bytes.len(),
        }
    }

    fn handle_end(&mut self, now: Time, conn: Conn, snapshot: &Snapshot, wire: &mut impl Wire) {
        match self.slots.is_client(conn) {
            Some(true) => self.client_ended(now, conn, wire),
            Some(false) => self.node_ended(now, conn, snapshot, wire),
            None => {}
        }
    }

    fn handle_gone(
        &mut self,
        now: Time,
        conn: Conn,
        why: Gone,
        snapshot: &Snapshot,
        wire: &mut impl Wire,
    ) {
        match self.slots.is_client(conn) {
            Some(true) => self.client_gone(conn, why, wire),
            Some(false) => self.node_gone(now, conn, why, snapshot, wire),
            None => {}
        }
    }

    fn handle_drained(&mut self, now: Time, conn: Conn, wire: &mut impl Wire) {
        match self.slots.is_client(conn) {
            Some(true) => self.client_drained(now, conn, wire),
            Some(false) => self.node_drained(now, conn, wire),
            None => {}
        }
    }

    fn poll_timeout(&self) -> Option<Time> {
        self.slots.next()
    }

    fn handle_timeout(&mut self, now: Time, snapshot: &Snapshot, wire: &mut impl Wire) {
        while let Some(conn) = self.slots.expired(now) {
            match self.slots.is_client(conn) {
                Some(true) => self.client_timeout(now, conn, snapshot, wire),
                Some(false) => self.node_timeout(conn, wire),
                None => {}
            }
        }
    }
}

/// A copy of one's own: each request counts its uses, which cores must not fight over.
fn own(settings: &Arc<HttpSettings>) -> Arc<HttpSettings> {
    Arc::new(HttpSettings::clone(settings))
}

/// Requests' memory that is kept for the next ones.
const SPARE_MAX: usize = 256;
/// What a long request needed is given back.
const SPARE_BYTES_MAX: usize = 16 * 1024;
/// The log says once in this time that there is no node.
const COMPLAINT_PERIOD: Duration = Duration::from_secs(1);
