//! Whole shards on loopback, with a relay of a few lines: what is under test is the body.

mod nodes;
mod shards;
mod streams;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Instant;

use engine::config::Steering;
use engine::node::{Node, NodeKey, Origin, Ports, Suspect, Version, Way};
use engine::relay::{
    Again, Arrival, DropReason, Failure, Flow, Hop, Leg, ListenerId, Provisional, Report, Verdict,
};
use engine::snapshot::Snapshot;
use protocols::sip::Transport;
use protocols::time::Time;
use protocols::ws::frame::apply_mask;
use protocols::ws::handshake;
use tools::ports;

use super::*;
use crate::listeners::{SocketOptions, bound, open_listeners};
use crate::mesh::{Mail, Notice, Statistics};
use crate::publish::{Tuning, WIND_UP};

/// Sends each message to the first node that is eligible, its answer back where its last line says.
#[derive(Default)]
struct Script {
    settings: Arc<Routes>,
    counters: Counted,
    reports: Vec<Report>,
    wanted: Option<String>,
    known: Option<SocketAddr>,
    /// Of the table.
    generation: u64,
}

#[derive(Default)]
struct Routes {
    /// Send to this listener's sockets.
    from: u8,
    /// As a stream rather than a datagram.
    is_stream: bool,
}

struct Found {
    address: SocketAddr,
    /// Happens while the answer is read.
    meanwhile: Option<Box<dyn FnOnce() + Send>>,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Counted {
    handled: u64,
    drops: Vec<DropReason>,
    /// Generations of the tables in which calls were switched over.
    switched: Vec<u64>,
}

impl Script {
    /// To the first node that did not fail just now.
    fn to_node(&self, snapshot: &Snapshot, failed: Option<Hop>) -> Option<Verdict> {
        let transport = match (self.settings.is_stream, self.settings.from) {
            (false, _) => Transport::Udp,
            (true, 2) => Transport::Ws,
            (true, _) => Transport::Tcp,
        };
        let from = ListenerId(self.settings.from);
        snapshot.nodes().iter().filter(|it| it.is_eligible()).find_map(|node| {
            let to = SocketAddr::new(node.ip, node.ports.of(transport)?);
            let hop = if self.settings.is_stream {
                Hop::Stream { from, to }
            } else {
                Hop::Datagram { from, to }
            };
            let verdict = Verdict::Forward { hop, is_request: true, reply: None };
            (failed != Some(hop)).then_some(verdict)
        })
    }
}

impl Decide for Script {
    type Settings = Routes;
    type Counters = Counted;
    type Name = String;
    type Answer = Found;

    fn handle(
        &mut self,
        arrival: &Arrival,
        bytes: &[u8],
        snapshot: &Snapshot,
        out: &mut Vec<u8>,
    ) -> Verdict {
        out.clear();
        out.extend_from_slice(bytes);
        self.counters.handled += 1;
        let back = match arrival.flow {
            Some(flow) => Hop::Flow { flow, or: None, is_response: true },
            None => Hop::Datagram { from: arrival.listener, to: arrival.source },
        };
        let body =
            bytes.windows(4).position(|it| it == b"\r\n\r\n").map_or(bytes, |at| &bytes[at + 4..]);
        if body.starts_with(b"panic") {
            panic!("as told");
        } else if body.starts_with(b"whoami") {
            out.clear();
            let flow = arrival.flow.unwrap();
            write!(out, "{} {} {}", flow.shard, flow.slot, flow.generation).unwrap();
            Verdict::Reply { hop: back }
        } else if let Some(flow) = body.strip_prefix(b"flow ") {
            let text = std::str::from_utf8(flow).unwrap();
            let mut words = text.split(' ').map(|it| it.parse::<u32>().unwrap());
            let shard = u8::try_from(words.next().unwrap()).unwrap();
            let (slot, generation) = (words.next().unwrap(), words.next().unwrap());
            let flow = Flow { shard, slot, generation };
            Verdict::Forward {
                hop: Hop::Flow { flow, or: None, is_response: true },
                is_request: false,
                reply: None,
            }
        } else if let Some(peer) = body.strip_prefix(b"peer ") {
            let to = std::str::from_utf8(peer).unwrap().parse().unwrap();
            let hop = Hop::Stream { from: ListenerId(self.settings.from), to };
            Verdict::Forward { hop, is_request: false, reply: None }
        } else if body.starts_with(b"name") {
            let Some(to) = self.known else {
                self.wanted = Some("carrier.example".into());
                return Verdict::Resolve;
            };
            let hop = Hop::Datagram { from: arrival.listener, to };
            Verdict::Forward { hop, is_request: false, reply: None }
        } else if body.starts_with(b"node") {
            self.to_node(snapshot, None).unwrap_or(Verdict::Drop(DropReason::NoNode))
        } else if body.starts_with(b"trying") {
            out.splice(..0, *b"100 ");
            let Some(Verdict::Forward { hop, is_request, .. }) = self.to_node(snapshot, None)
            else {
                return Verdict::Drop(DropReason::NoNode);
            };
            Verdict::Forward { hop, is_request, reply: Some(Provisional { bytes: 4, hop: back }) }
        } else {
            Verdict::Reply { hop: back }
        }
    }

    fn undelivered(
        &mut self,
        arrival: &Arrival,
        bytes: &[u8],
        failed: Failure,
        snapshot: &Snapshot,
        out: &mut Vec<u8>,
    ) -> Verdict {
        out.clear();
        out.extend_from_slice(bytes);
        let forward = match failed.again {
            Again::Anywhere => self.to_node(snapshot, None),
            Again::Elsewhere => self.to_node(snapshot, failed.hop),
            Again::Nowhere => None,
        };
        match forward {
            Some(forward) => forward,
            None => {
                out.clear();
                out.extend_from_slice(b"503");
                let hop = match arrival.flow {
                    Some(flow) => Hop::Flow { flow, or: None, is_response: true },
                    None => Hop::Datagram { from: arrival.listener, to: arrival.source },
                };
                Verdict::Reply { hop }
            }
        }
    }

    fn refused(
        &mut self,
        address: SocketAddr,
        transport: Transport,
        snapshot: &Snapshot,
    ) -> Option<(NodeKey, Way)> {
        let node = snapshot.node(snapshot.at(address, Some(transport), None)?).key;
        let way = Way::Sip(transport);
        self.reports.push(Report::Refused { node, way });
        Some((node, way))
    }

    fn handle_snapshot(&mut self, snapshot: &Snapshot) {
        self.generation = snapshot.generation();
    }

    fn configure(&mut self, settings: Arc<Routes>) {
        self.settings = settings;
    }

    fn wanted_name(&mut self) -> Option<String> {
        self.wanted.take()
    }

    fn poll_aging_name(&mut self, _now: Time) -> Option<String> {
        None
    }

    fn handle_name(&mut self, _now: Time, _name: String, answer: Found) {
        self.known = Some(answer.address);
        if let Some(act) = answer.meanwhile {
            act();
        }
    }

    fn poll_report(&mut self, _now: Time, _snapshot: &Snapshot) -> Option<Report> {
        self.reports.pop()
    }

    fn switch_over(&mut self, _from: NodeKey, _to: NodeKey) {
        self.counters.switched.push(self.generation);
    }

    fn dropped(&mut self, reason: DropReason) {
        self.counters.drops.push(reason);
    }

    fn counters(&mut self, _: Time, _: &Snapshot, _: bool) -> &Counted {
        &self.counters
    }
}

struct Rig {
    body: Body<Script>,
    listeners: Vec<Listener>,
    clock: Clock,
    /// Notices that came while another kind was waited for.
    set_aside: std::cell::RefCell<std::collections::VecDeque<Notice<Script>>>,
}

const TUNING: Tuning = Tuning {
    coalesce: Duration::ZERO,
    couples_datagrams: true,
    stream_idle: Duration::from_secs(60),
    message_time: Duration::from_secs(60),
    tls_gateway: false,
    connections_max: 100,
    source_connections_max: 0,
    handshake_time: Duration::from_secs(5),
    message_bytes_max: 65_536,
};

/// A UDP, a TCP and a WebSocket listener, with a socket of each for every shard.
fn doors(shards: usize, host: &str) -> (Vec<Listener>, Vec<Vec<socket2::Socket>>) {
    let address: SocketAddr = host.parse().unwrap();
    let listeners: Vec<Listener> = [Transport::Udp, Transport::Tcp, Transport::Ws]
        .map(|transport| Listener { leg: Leg::External, transport, address })
        .to_vec();
    let options = SocketOptions {
        steering: Steering::Hash,
        receive_buffer_bytes: 0,
        send_buffer_bytes: 0,
        cpus: Vec::new(),
    };
    let sockets = open_listeners(&listeners, shards, &options).unwrap();
    (bound(&listeners, &sockets[0]), sockets)
}

fn rig(shards: usize, seat: Seat, host: &str, tuning: Tuning) -> Rig {
    let (listeners, sockets) = doors(shards, host);
    let clock = Clock::start();
    let body = start(Spec {
        listeners: listeners.clone(),
        sockets,
        relays: (0..shards).map(|_| Script::default()).collect(),
        pumps: Vec::new(),
        cpus: crate::sys::affinity(),
        view: View {
            snapshot: Arc::new(Snapshot::default()),
            settings: Arc::new(Routes::default()),
            tuning,
            security: None,
            stopping: None,
        },
        clock,
        seat,
    })
    .unwrap();
    Rig { body, listeners, clock, set_aside: Default::default() }
}

impl Rig {
    fn udp(&self) -> UdpSocket {
        let address = self.listeners[0].address;
        let socket = UdpSocket::bind(SocketAddr::new(address.ip(), 0)).unwrap();
        socket.connect(address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    fn tcp(&self) -> TcpStream {
        let stream = TcpStream::connect(self.listeners[1].address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// A client on WebSocket that has shaken hands.
    fn websocket(&self) -> TcpStream {
        let mut stream = TcpStream::connect(self.listeners[2].address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let key = [7; 16];
        let mut head = Vec::new();
        handshake::request(b"x", key, &mut head);
        stream.write_all(&head).unwrap();
        let answer = read_some(&mut stream);
        assert!(answer.starts_with(b"HTTP/1.1 101 "), "{}", answer.escape_ascii());
        stream
    }

    fn publish(&self, nodes: Vec<Node>, routes: Routes) {
        publish(&self.body.published, nodes, routes);
    }

    fn statistics(&self, shard: u8) -> Box<Statistics<Counted>> {
        assert!(self.body.post.send(shard, Mail::Statistics { question: 7 }).is_ok());
        let end = std::time::Instant::now() + PATIENCE;
        loop {
            match self.body.inbox.notices.recv_deadline(end).unwrap() {
                Notice::Statistics { question, statistics } => {
                    assert_eq!(question, 7);
                    return statistics;
                }
                other => self.set_aside.borrow_mut().push_back(other),
            }
        }
    }

    /// Asks a shard until it says this of itself.
    fn wait(&self, shard: u8, is_it: impl Fn(&Statistics<Counted>) -> bool) {
        let end = Instant::now() + PATIENCE;
        loop {
            let statistics = self.statistics(shard);
            if is_it(&statistics) {
                return;
            }
            assert!(Instant::now() < end, "in vain: {:?}", statistics.figures);
        }
    }

    fn notice(&self) -> Notice<Script> {
        let aside = self.set_aside.borrow_mut().pop_front();
        aside.unwrap_or_else(|| self.body.inbox.notices.recv_timeout(PATIENCE).unwrap())
    }

    fn stop(mut self) {
        end(&self.body.published);
        assert_eq!(self.body.join(), 0);
    }
}

fn publish(published: &Published<View<Routes>>, nodes: Vec<Node>, routes: Routes) {
    let view = published.current();
    published.publish(Arc::new(View {
        snapshot: Arc::new(Snapshot::new(view.snapshot.generation() + 1, nodes, &[])),
        settings: Arc::new(routes),
        tuning: view.tuning,
        security: None,
        stopping: None,
    }));
}

const PATIENCE: Duration = Duration::from_secs(10);

fn node(transport: Transport, address: SocketAddr, version: i32) -> Node {
    let mut ports = Ports::default();
    ports.open(transport, address.port());
    let version = Version(version);
    Node {
        key: NodeKey::of(address.ip(), version, &ports),
        former: Vec::new(),
        host_name: String::new(),
        ip: address.ip(),
        ports,
        version,
        session: None,
        properties: Default::default(),
        graceful: false,
        bad: None,
        suspect: Suspect::default(),
        joined: Time::ZERO,
        origin: Origin::Static,
    }
}

fn sip(body: &str) -> Vec<u8> {
    format!("OPTIONS sip:x SIP/2.0\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn seats() -> Vec<Seat> {
    // Where io_uring is not allowed there is one seat to test.
    match Seat::best() {
        (Seat::Executor, None) => vec![Seat::Executor, Seat::Thread],
        (seat, why) => {
            eprintln!("no executor: {}", why.unwrap());
            vec![seat]
        }
    }
}

fn read_some(stream: &mut TcpStream) -> Vec<u8> {
    let mut buffer = vec![0; 70_000];
    let count = stream.read(&mut buffer).unwrap();
    buffer.truncate(count);
    buffer
}

/// The first shard of several. Nobody gives it a turn but the test.
struct Still {
    shard: Shard<Script>,
    listeners: Vec<Listener>,
    /// Of the others, who never look.
    _mailboxes: Vec<crate::mesh::Mailbox<Script>>,
    post: crate::mesh::Post<Script>,
    inbox: crate::mesh::Inbox<Script>,
}

impl Still {
    fn new(shards: usize, nodes: Vec<Node>, routes: Routes) -> Still {
        let (listeners, mut sockets) = doors(1, "127.0.0.1:0");
        let (post, mut mailboxes) = mesh(shards).unwrap();
        let (outbox, inbox) = notices().unwrap();
        let view = View {
            snapshot: Arc::new(Snapshot::new(1, nodes, &[])),
            settings: Arc::new(routes),
            tuning: TUNING,
            security: None,
            stopping: None,
        };
        let shard = Shard::new(Setup {
            id: 0,
            listeners: listeners.clone(),
            sockets: sockets.remove(0),
            relay: Script::default(),
            pumps: Vec::new(),
            view: Published::new(Arc::new(view), post.wakers()).subscribe(),
            mailbox: mailboxes.remove(0),
            post: post.clone(),
            outbox,
            clock: Clock::start(),
            census: Arc::default(),
        });
        Still { shard: shard.unwrap(), listeners, _mailboxes: mailboxes, post, inbox }
    }

    /// A caller on UDP whose `recv` does not wait.
    fn caller(&self) -> UdpSocket {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(self.listeners[0].address).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    }

    /// Turns until there is something.
    fn until<T>(&mut self, mut found: impl FnMut() -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(it) = found() {
                return it;
            }
            assert!(Instant::now() < end, "nothing came");
            self.shard.turn(1);
        }
    }

    /// The next connection to `there`, and what comes by it.
    fn called(&mut self, there: &TcpListener) -> (TcpStream, String) {
        there.set_nonblocking(true).unwrap();
        let (mut stream, _) = self.until(|| there.accept().ok());
        stream.set_nonblocking(true).unwrap();
        let mut buffer = [0; 100];
        let count = self.until(|| stream.read(&mut buffer).ok());
        (stream, String::from_utf8(buffer[..count].to_vec()).unwrap())
    }
}
