//! A wire that records, nodes that answer when told to, and a clock that moves when told to.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use protocols::time::Time;

use crate::balance::testing::{SHARD, node};
use crate::config::{Config, load};
use crate::node::Node;
use crate::relay::Report;
use crate::relay::http::{Http, HttpSettings};
use crate::relay::stream::{Conn, Gone, Progress, Room, Secure, StreamRelay, Wire};
use crate::snapshot::Snapshot;

/// One connection as the wire sees it.
#[derive(Debug, Default)]
pub(super) struct Socket {
    /// Sent by the relay and not looked at yet.
    pub(super) sent: Vec<u8>,
    /// All that was ever sent, in bytes.
    pub(super) sent_bytes: u64,
    /// What of it has left.
    left_bytes: u64,
    /// What of it the peer has read.
    acknowledged: u64,
    /// Speaks TLS by now.
    pub(super) is_secured: bool,
    /// Whom it counts for.
    source: Option<IpAddr>,
    /// Where it was opened to; `None`: a client's.
    pub(super) to: Option<(SocketAddr, Secure)>,
    pub(super) is_paused: bool,
    pub(super) is_ended: bool,
    pub(super) is_closed: bool,
    pub(super) is_aborted: bool,
    /// Closed without waiting for the peer.
    pub(super) is_hung_up: bool,
    /// Queued and not drained.
    queued: usize,
    /// Received from the peer and not consumed by the relay.
    unconsumed: Vec<u8>,
}

/// What the relay asked for.
#[derive(Default)]
pub(super) struct Recorder {
    pub(super) sockets: BTreeMap<Conn, Socket>,
    /// Connections that were asked for and not made yet.
    connecting: Vec<Conn>,
    resumed: Vec<Conn>,
    /// Connections that bytes were sent on, in order.
    pub(super) order: Vec<Conn>,
    /// Bytes that a queue holds before it is full.
    pub(super) queue_bytes_max: Option<usize>,
    /// What is sent stays queued.
    pub(super) holds: bool,
    /// Only counts what is sent.
    pub(super) forgets: bool,
}

impl Recorder {
    fn socket(&mut self, conn: Conn) -> &mut Socket {
        let it = self.sockets.entry(conn).or_default();
        assert!(!it.is_closed && !it.is_aborted, "{conn:?} is closed");
        it
    }
}

impl Wire for Recorder {
    fn send(&mut self, conn: Conn, bytes: &[u8]) -> Room {
        let (max, forgets, holds) = (self.queue_bytes_max, self.forgets, self.holds);
        self.order.push(conn);
        let it = self.socket(conn);
        assert!(!it.is_ended, "{conn:?} was ended");
        it.sent_bytes += bytes.len() as u64;
        if !holds {
            it.left_bytes = it.sent_bytes;
        }
        if !forgets {
            it.sent.extend_from_slice(bytes);
        }
        it.queued += bytes.len();
        if max.is_some_and(|max| it.queued > max) { Room::Full } else { Room::Free }
    }

    fn sent_bytes(&mut self, conn: Conn) -> u64 {
        self.sockets.get(&conn).map_or(0, |it| it.left_bytes)
    }

    fn progress(&mut self, conn: Conn) -> Progress {
        let of = |it: &Socket| Progress {
            acknowledged: it.acknowledged,
            left: it.sent_bytes - it.acknowledged,
        };
        self.sockets.get(&conn).map(of).unwrap_or_default()
    }

    fn connect(&mut self, conn: Conn, to: SocketAddr, secure: Secure) {
        let it = Socket { to: Some((to, secure)), ..Socket::default() };
        assert!(self.sockets.insert(conn, it).is_none(), "{conn:?} is in use");
        self.connecting.push(conn);
    }

    fn pause(&mut self, conn: Conn) {
        self.socket(conn).is_paused = true;
    }

    fn resume(&mut self, conn: Conn) {
        self.socket(conn).is_paused = false;
        self.resumed.push(conn);
    }

    fn count_for(&mut self, conn: Conn, source: IpAddr, most: usize) -> bool {
        let others = self.sockets.iter().filter(|(it, socket)| {
            **it != conn && socket.source == Some(source) && !socket.is_closed && !socket.is_aborted
        });
        let fits = others.count() < most;
        self.socket(conn).source = Some(source).filter(|_| fits);
        fits
    }

    fn secure(&mut self, conn: Conn) {
        self.socket(conn).is_secured = true;
    }

    fn end(&mut self, conn: Conn) {
        self.socket(conn).is_ended = true;
    }

    fn close(&mut self, conn: Conn) {
        self.socket(conn).is_closed = true;
    }

    fn hang_up(&mut self, conn: Conn) {
        self.socket(conn).is_hung_up = true;
        self.close(conn);
    }

    fn abort(&mut self, conn: Conn) {
        self.socket(conn).is_aborted = true;
    }
}

/// A relay in its world.
pub(super) struct World {
    pub(super) http: Http,
    pub(super) wire: Recorder,
    pub(super) snapshot: Snapshot,
    pub(super) now: Time,
    /// Connections that are asked for are made at once.
    pub(super) connects: bool,
    ports: u16,
}

/// Node 10.0.x.y with `properties` besides its HTTP port 8080.
pub(super) fn web_node(number: u16, properties: &str) -> Node {
    let mut it = node(number);
    for pair in ["httpPort=8080"].into_iter().chain(properties.split_whitespace()) {
        let (name, value) = pair.split_once('=').unwrap();
        it.properties.insert(name.to_owned(), value.to_owned());
    }
    it
}

pub(super) fn web_nodes(count: u16) -> Vec<Node> {
    (1..=count).map(|it| web_node(it, "")).collect()
}

impl World {
    /// A properties file's worth of keys and these nodes.
    pub(super) fn new(keys: &str, nodes: Vec<Node>) -> World {
        World::with(load("t", format!("x.y=1\n{keys}\n").as_bytes(), &[]).config, nodes)
    }

    pub(super) fn with(config: Config, nodes: Vec<Node>) -> World {
        let unavailable = config.http.unavailable.as_ref();
        let unavailable =
            unavailable.map(|it| SocketAddr::new("192.0.2.80".parse().unwrap(), it.port));
        let mut world = World {
            http: Http::new(Arc::new(HttpSettings::new(config, unavailable)), SHARD),
            wire: Recorder::default(),
            snapshot: Snapshot::new(1, nodes, &[]),
            now: Time::from_millis(1_000),
            connects: true,
            ports: 40_000,
        };
        world.show_table();
        world
    }

    fn show_table(&mut self) {
        self.http.handle_snapshot(self.now, &self.snapshot, &mut self.wire);
        self.settle();
    }

    pub(super) fn nodes(&mut self, nodes: Vec<Node>) {
        let generation = self.snapshot.generation() + 1;
        self.snapshot = Snapshot::new(generation, nodes, &[]).after(&self.snapshot);
        self.show_table();
    }

    /// A client connects to the first listener.
    pub(super) fn open(&mut self) -> Conn {
        self.open_at(0).expect("it is let in")
    }

    pub(super) fn open_at(&mut self, listener: usize) -> Option<Conn> {
        self.ports += 1;
        let source = SocketAddr::new(IpAddr::from([192, 0, 2, 7]), self.ports);
        let conn = self.http.handle_open(self.now, listener, source, &mut self.wire)?;
        assert!(self.wire.sockets.insert(conn, Socket::default()).is_none());
        Some(conn)
    }

    /// The peer of `conn` sends bytes.
    pub(super) fn send(&mut self, conn: Conn, bytes: impl AsRef<[u8]>) {
        let it = self.wire.sockets.get_mut(&conn).unwrap();
        it.unconsumed.extend_from_slice(bytes.as_ref());
        self.offer(conn);
        self.settle();
    }

    fn offer(&mut self, conn: Conn) {
        let it = self.wire.sockets.get_mut(&conn).unwrap();
        if it.is_paused || it.is_closed || it.is_aborted || it.unconsumed.is_empty() {
            return;
        }
        let bytes = std::mem::take(&mut it.unconsumed);
        let used = self.http.handle_bytes(self.now, conn, &bytes, &self.snapshot, &mut self.wire);
        assert!(used <= bytes.len());
        let it = self.wire.sockets.get_mut(&conn).unwrap();
        it.unconsumed = bytes[used..].to_vec();
        assert!(it.unconsumed.len() <= crate::relay::stream::UNCONSUMED_BYTES_MAX);
    }

    /// Does what the relay asked for until nothing is left to do.
    fn settle(&mut self) {
        loop {
            if let Some(conn) = self.wire.resumed.pop() {
                self.offer(conn);
            } else if self.connects
                && let Some(conn) = self.wire.connecting.pop()
            {
                if !self.is_gone(conn) {
                    self.http.handle_connected(self.now, conn, &mut self.wire);
                }
            } else {
                return self.assert_pool_is_read();
            }
        }
    }

    /// The next request on a connection that waits must find somebody who reads its answer.
    fn assert_pool_is_read(&mut self) {
        for conn in self.http.slots.nodes() {
            let waits = self.http.slots.node(conn).is_some_and(|it| it.client.is_none());
            assert!(!waits || !self.is_paused(conn), "{conn:?} waits unread");
        }
    }

    /// The connection that waits to be made.
    pub(super) fn connecting(&mut self) -> Conn {
        self.wire.connecting.pop().expect("one is asked for")
    }

    pub(super) fn connected(&mut self, conn: Conn) {
        self.http.handle_connected(self.now, conn, &mut self.wire);
        self.settle();
    }

    pub(super) fn end(&mut self, conn: Conn) {
        self.http.handle_end(self.now, conn, &self.snapshot, &mut self.wire);
        self.settle();
    }

    pub(super) fn gone(&mut self, conn: Conn, why: Gone) {
        self.http.handle_gone(self.now, conn, why, &self.snapshot, &mut self.wire);
        self.settle();
    }

    /// The peer reads all that is queued.
    pub(super) fn drain(&mut self, conn: Conn) {
        let it = self.wire.sockets.get_mut(&conn).unwrap();
        (it.queued, it.acknowledged) = (0, it.sent_bytes);
        self.http.handle_drained(self.now, conn, &mut self.wire);
        self.settle();
    }

    /// The peer reads some of what is queued, not so much that there would be room again.
    pub(super) fn sip(&mut self, conn: Conn, bytes: u64) {
        self.wire.sockets.get_mut(&conn).unwrap().acknowledged += bytes;
    }

    /// Lets time pass, and what is due happen when it is due.
    pub(super) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(due) = self.http.poll_timeout().filter(|it| *it <= end) {
            self.now = self.now.max(due);
            self.http.handle_timeout(self.now, &self.snapshot, &mut self.wire);
            self.settle();
        }
        self.now = end;
    }

    /// What the relay sent on `conn` since the last look.
    pub(super) fn take(&mut self, conn: Conn) -> String {
        let it = self.wire.sockets.get_mut(&conn).unwrap();
        String::from_utf8(std::mem::take(&mut it.sent)).unwrap()
    }

    pub(super) fn is_gone(&self, conn: Conn) -> bool {
        self.wire.sockets.get(&conn).is_none_or(|it| it.is_closed || it.is_aborted)
    }

    pub(super) fn is_aborted(&self, conn: Conn) -> bool {
        self.wire.sockets[&conn].is_aborted
    }

    pub(super) fn is_paused(&self, conn: Conn) -> bool {
        self.wire.sockets[&conn].is_paused
    }

    /// A client's request; the connection to the node that it went out on.
    pub(super) fn ask(&mut self, client: Conn, request: impl AsRef<[u8]>) -> Conn {
        self.wire.order.clear();
        self.send(client, request);
        self.last_node().expect("it went to a node")
    }

    /// The connection to a node that was last sent on.
    pub(super) fn last_node(&self) -> Option<Conn> {
        self.wire.order.iter().rev().copied().find(|it| self.wire.sockets[it].to.is_some())
    }

    /// Where a connection goes.
    pub(super) fn address(&self, conn: Conn) -> (SocketAddr, Secure) {
        self.wire.sockets[&conn].to.unwrap()
    }

    /// Number of the node that a connection goes to.
    pub(super) fn number(&self, conn: Conn) -> u16 {
        match self.address(conn).0.ip() {
            IpAddr::V4(ip) => u16::from_be_bytes([ip.octets()[2], ip.octets()[3]]),
            IpAddr::V6(_) => panic!("not of the harness"),
        }
    }

    /// A request on a connection of its own, answered with 200: number of the node that had it, and the
    /// status that the client got.
    pub(super) fn visit(&mut self, request: impl AsRef<[u8]>) -> (u16, u16) {
        self.visit_with(request, |_| "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_owned())
    }

    /// The same with an answer of the node's own.
    pub(super) fn visit_with(
        &mut self,
        request: impl AsRef<[u8]>,
        answer: impl FnOnce(u16) -> String,
    ) -> (u16, u16) {
        let client = self.open();
        let node = self.ask(client, request);
        let number = self.number(node);
        self.send(node, answer(number));
        let text = self.take(client);
        self.end(client);
        (number, status_of(&text))
    }

    /// How often each node was visited.
    pub(super) fn visits(&mut self, requests: &[String]) -> BTreeMap<u16, usize> {
        let mut counts = BTreeMap::new();
        for request in requests {
            let (node, status) = self.visit(request);
            assert_eq!(status, 200, "{request}");
            *counts.entry(node).or_default() += 1;
        }
        counts
    }

    pub(super) fn reports(&mut self) -> Vec<Report> {
        let mut all = Vec::new();
        while let Some(it) = self.http.poll_report(self.now, &self.snapshot) {
            all.push(it);
        }
        all
    }

    /// Every connection is closed, and the relay knows of none.
    pub(super) fn assert_empty(&mut self, case: &str) {
        let open: Vec<_> = self
            .wire
            .sockets
            .iter()
            .filter(|(_, it)| !it.is_closed && !it.is_aborted)
            .map(|(conn, _)| *conn)
            .collect();
        for conn in open {
            self.http.handle_gone(self.now, conn, Gone::Reset, &self.snapshot, &mut self.wire);
        }
        assert_eq!(self.http.slots.len(), 0, "{case}");
        assert_eq!(self.http.counters.clients, 0, "{case}");
        assert_eq!((self.http.counters.paired, self.http.counters.tunnels_open), (0, 0), "{case}");
    }
}

pub(super) fn status_of(response: &str) -> u16 {
    let status = response.split(' ').nth(1).and_then(|it| it.parse().ok());
    status.unwrap_or_else(|| panic!("no response: {response:?}"))
}

pub(super) fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: lb.example\r\n\r\n")
}

pub(super) fn post(target: &str, body: &str) -> String {
    let length = body.len();
    format!("POST {target} HTTP/1.1\r\nHost: lb.example\r\nContent-Length: {length}\r\n\r\n{body}")
}

pub(super) const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
