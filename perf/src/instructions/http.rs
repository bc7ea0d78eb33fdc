//! An HTTP request and its answer through the relay: connections kept on both sides, two nodes, and a session
//! cookie that names one of them, as in the load `small` of `perf http`.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ::tests::sim::node;
use engine::balance::Shard;
use engine::config::load;
use engine::relay::http::{Http, HttpSettings};
use engine::relay::stream::{Conn, Progress, Room, Secure, StreamRelay as _, Wire};
use engine::snapshot::Snapshot;

use super::{NOW, Result, TIMES};

/// The row.
pub(super) const NAME: &str = "http";

/// Prepares everything, then carries so many requests and their answers.
pub(super) fn handle(times: u64) -> Result<()> {
    let mut world = World::new()?;
    // The connections to the nodes are there and buffers have grown before the counting begins.
    world.carry(TIMES[0])?;
    world.carry(times)
}

/// A relay with its nodes and clients.
struct World {
    relay: Http,
    snapshot: Snapshot,
    wire: Sink,
    /// Each with its request.
    clients: Vec<(Conn, String)>,
}

impl World {
    fn new() -> Result<World> {
        let nodes = (1..=NODES).map(|number| {
            let mut it = node(number, 0);
            let properties = [("httpPort", "8080".to_owned()), ("jvmRoute", format!("n{number}"))];
            it.properties.extend(properties.map(|(name, value)| (name.to_owned(), value)));
            it
        });
        let config = load("lb.properties", b"host=127.0.0.1\nhttpPort=16080\n", &[]).config;
        let settings = Arc::new(HttpSettings::new(config, None));
        let mut world = World {
            relay: Http::new(settings, Shard { index: 0, scattered: false }),
            snapshot: Snapshot::new(1, nodes.collect(), &[]),
            wire: Sink::default(),
            clients: Vec::new(),
        };
        world.relay.handle_snapshot(NOW, &world.snapshot, &mut world.wire);
        for (port, number) in (40_000..).zip((1..=NODES).cycle()).take(CLIENTS) {
            let source = SocketAddr::from(([203, 0, 113, 7], port));
            let client = world.relay.handle_open(NOW, 0, source, &mut world.wire);
            let request = format!(
                "GET /small HTTP/1.1\r\nHost: 127.0.0.1:16080\r\n\
                 Cookie: JSESSIONID=0123456789ABCDEF0123456789ABCDEF.n{number}\r\n\r\n"
            );
            world.clients.push((client.ok_or("a client is not let in")?, request));
        }
        Ok(world)
    }

    /// Carries so many requests, of one client after the other, each with its answer.
    fn carry(&mut self, times: u64) -> Result<()> {
        let World { relay, snapshot, wire, clients } = self;
        let turns = clients.iter().cycle();
        for (client, request) in turns.take(usize::try_from(times)?) {
            relay.handle_bytes(NOW, *client, request.as_bytes(), snapshot, wire);
            if let Some(node) = wire.connecting.take() {
                relay.handle_connected(NOW, node, wire);
            }
            let node = wire.last.filter(|it| it != client).ok_or("a request goes nowhere")?;
            relay.handle_bytes(NOW, node, ANSWER.as_bytes(), snapshot, wire);
            if wire.last != Some(*client) {
                return Err("an answer goes nowhere".into());
            }
        }
        Ok(())
    }
}

/// A wire whose peers take everything at once.
#[derive(Default)]
struct Sink {
    /// What was last sent on.
    last: Option<Conn>,
    /// What is to be opened.
    connecting: Option<Conn>,
}

impl Wire for Sink {
    fn send(&mut self, conn: Conn, _bytes: &[u8]) -> Room {
        self.last = Some(conn);
        Room::Free
    }

    fn sent_bytes(&mut self, _conn: Conn) -> u64 {
        0
    }

    fn progress(&mut self, _conn: Conn) -> Progress {
        Progress::default()
    }

    fn connect(&mut self, conn: Conn, _to: SocketAddr, _secure: Secure) {
        self.connecting = Some(conn);
    }

    fn pause(&mut self, _conn: Conn) {}

    fn resume(&mut self, _conn: Conn) {}

    fn count_for(&mut self, _conn: Conn, _source: IpAddr, _most: usize) -> bool {
        true
    }

    fn secure(&mut self, _conn: Conn) {}

    fn end(&mut self, _conn: Conn) {}

    fn close(&mut self, _conn: Conn) {}

    fn hang_up(&mut self, _conn: Conn) {}

    fn abort(&mut self, _conn: Conn) {}
}

const NODES: u16 = 2;
const CLIENTS: usize = 64;

/// As nginx says it, with a line that does not go on.
const ANSWER: &str = "HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Sun, 29 Nov 2026 12:00:00 GMT\r\n\
    Content-Type: text/plain\r\nContent-Length: 20\r\nConnection: keep-alive\r\n\r\n....................";
