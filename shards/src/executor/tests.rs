//! Whole shards on loopback, with a relay of a few lines: what is under test is the body.

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
}

#[derive(Default)]
struct Routes {
    /// Send to this listener's sockets.
    from: u8,
    /// As a stream rather than a datagram.
    is_stream: bool,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Counted {
    handled: u64,
    drops: Vec<DropReason>,
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
    type Answer = SocketAddr;

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

    fn handle_snapshot(&mut self, _: &Snapshot) {}

    fn configure(&mut self, settings: Arc<Routes>) {
        self.settings = settings;
    }

    fn wanted_name(&mut self) -> Option<String> {
        self.wanted.take()
    }

    fn poll_aging_name(&mut self, _now: Time) -> Option<String> {
        None
    }

    fn handle_name(&mut self, _now: Time, _name: String, answer: SocketAddr) {
        self.known = Some(answer);
    }

    fn poll_report(&mut self, _now: Time, _snapshot: &Snapshot) -> Option<Report> {
        self.reports.pop()
    }

    fn switch_over(&mut self, _from: NodeKey, _to: NodeKey) {}

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
        let view = self.body.published.current();
        self.body.published.publish(Arc::new(View {
            snapshot: Arc::new(Snapshot::new(view.snapshot.generation() + 1, nodes, &[])),
            settings: Arc::new(routes),
            tuning: view.tuning,
            security: None,
            stopping: None,
        }));
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

#[test]
fn datagrams_come_back_through_every_seat_in_both_families() {
    for seat in seats() {
        for host in ["127.0.0.1:0", "[::1]:0"] {
            let rig = rig(2, seat, host, TUNING);
            let socket = rig.udp();
            let mut buffer = vec![0; 70_000];
            for length in [1, 600, 2_048, 2_049, 9_000, 65_507] {
                let sent = vec![b'x'; length];
                socket.send(&sent).unwrap();
                let count = socket.recv(&mut buffer).unwrap();
                assert_eq!(buffer[..count], sent, "{seat:?} {host} {length}");
            }
            let all = rig.statistics(0).figures.datagrams + rig.statistics(1).figures.datagrams;
            assert_eq!(all, 6);
            rig.stop();
        }
    }
}

#[test]
fn a_panic_costs_one_message_and_is_counted() {
    let rig = rig(1, Seat::Thread, "127.0.0.1:0", TUNING);
    let (socket, mut buffer) = (rig.udp(), [0; 100]);
    socket.send(b"panic").unwrap();
    socket.send(b"well").unwrap();
    let count = socket.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..count], b"well");
    let statistics = rig.statistics(0);
    assert_eq!(statistics.counters.drops, [DropReason::Panic]);
    assert_eq!(statistics.residence.len(), 2);
    rig.stop();
}

#[test]
fn the_very_datagram_that_a_node_refused_reaches_another_and_the_node_is_reported() {
    for host in ["127.0.0.1:0", "[::1]:0"] {
        let rig = rig(1, Seat::Thread, host, TUNING);
        let alive = UdpSocket::bind(host).unwrap();
        alive.set_read_timeout(Some(PATIENCE)).unwrap();
        let dead = SocketAddr::new(alive.local_addr().unwrap().ip(), ports::free());
        let nodes = vec![
            node(Transport::Udp, dead, 0),
            node(Transport::Udp, alive.local_addr().unwrap(), 1),
        ];
        let key = nodes[0].key;
        rig.publish(nodes, Routes::default());
        let (socket, mut buffer) = (rig.udp(), [0; 2_000]);
        socket.send(b"trying node 1").unwrap();
        assert_eq!(socket.recv(&mut buffer).unwrap(), 4);
        assert_eq!(&buffer[..4], b"100 ");
        let count = alive.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..count], b"trying node 1");
        assert!(
            matches!(rig.notice(), Notice::Report(Report::Refused { node, .. }) if node == key)
        );
        // From now on the shard avoids it by itself.
        socket.send(b"node 2").unwrap();
        let count = alive.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..count], b"node 2");
        let statistics = rig.statistics(0);
        assert_eq!((statistics.figures.retried, statistics.counters.drops.len()), (1, 0));
        rig.stop();
    }
}

#[test]
fn when_every_node_refuses_the_caller_hears_of_it() {
    for is_stream in [false, true] {
        let rig = rig(1, Seat::Thread, "127.0.0.1:0", TUNING);
        let transport = if is_stream { Transport::Tcp } else { Transport::Udp };
        // More than are tried for one message.
        let nodes = (0..6).map(|version| {
            node(transport, SocketAddr::from(([127, 0, 0, 1], ports::free())), version)
        });
        rig.publish(nodes.collect(), Routes { from: u8::from(is_stream), is_stream });
        let (socket, mut buffer) = (rig.udp(), [0; 100]);
        socket.send(b"node").unwrap();
        let count = socket.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..count], b"503", "stream {is_stream}");
        rig.stop();
    }
}

/// The first shard of several. Nobody gives it a turn but the test.
struct Still {
    shard: Shard<Script>,
    listeners: Vec<Listener>,
    /// Of the others, who never look.
    _mailboxes: Vec<crate::mesh::Mailbox<Script>>,
    _inbox: crate::mesh::Inbox<Script>,
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
            post,
            outbox,
            clock: Clock::start(),
            census: Arc::default(),
        });
        Still { shard: shard.unwrap(), listeners, _mailboxes: mailboxes, _inbox: inbox }
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

#[test]
fn the_request_of_the_moment_in_which_a_node_closes_an_idle_connection_goes_by_another() {
    for is_reset in [false, true] {
        let there = TcpListener::bind(("127.0.0.1", ports::free())).unwrap();
        let alone = vec![node(Transport::Tcp, there.local_addr().unwrap(), 0)];
        let mut it = Still::new(1, alone, Routes { from: 1, is_stream: true });
        let close = |stream: TcpStream| {
            let linger = is_reset.then_some(Duration::ZERO);
            socket2::SockRef::from(&stream).set_linger(linger).unwrap();
        };
        let (caller, mut buffer) = (it.caller(), [0; 100]);
        caller.send(b"node 1").unwrap();
        let (first, text) = it.called(&there);
        assert_eq!(text, "node 1");
        // The next turn finds both: the request first, then the end.
        caller.send(b"node 2").unwrap();
        close(first);
        let (second, text) = it.called(&there);
        assert_eq!(text, "node 2", "reset {is_reset}");
        assert!(caller.recv(&mut buffer).is_err(), "answered, too");
        assert_eq!(it.shard.figures().retried, 1);
        // This time it is gone for good.
        caller.send(b"node 3").unwrap();
        drop(there);
        close(second);
        let count = it.until(|| caller.recv(&mut buffer).ok());
        assert_eq!(&buffer[..count], b"503", "reset {is_reset}");
        assert_eq!(it.shard.figures().retried, 3, "once there, and once to find nobody else");
    }
}

#[test]
fn the_request_of_the_moment_in_which_a_node_says_goodbye_on_websocket_goes_by_another() {
    let there = TcpListener::bind("127.0.0.1:0").unwrap();
    let alone = vec![node(Transport::Ws, there.local_addr().unwrap(), 0)];
    let mut it = Still::new(1, alone, Routes { from: 2, is_stream: true });
    let (caller, mut buffer) = (it.caller(), [0; 100]);
    let mut last: Option<TcpStream> = None;
    for request in [b"node 1", b"node 2"] {
        caller.send(request).unwrap();
        if let Some(stream) = &mut last {
            // The next turn finds both: the request first, then the goodbye.
            stream.write_all(b"\x88\0").unwrap();
        }
        let (mut stream, mut head) = it.called(&there);
        while !head.ends_with("\r\n\r\n") {
            let count = it.until(|| stream.read(&mut buffer).ok());
            head.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
        }
        let mut answer = Vec::new();
        handshake::accept(head.as_bytes(), &mut answer);
        stream.write_all(&answer).unwrap();
        let count = it.until(|| stream.read(&mut buffer).ok());
        let (frame, mask) = (&mut buffer[..count], 6);
        let key = frame[2..mask].try_into().unwrap();
        apply_mask(&mut frame[mask..], key);
        assert_eq!(&frame[mask..], request);
        last = Some(stream);
    }
    assert!(caller.recv(&mut buffer).is_err(), "answered, too");
    assert_eq!(it.shard.figures().retried, 1);
}

#[test]
fn what_does_not_fit_in_another_shards_queue_is_answered() {
    let mut it = Still::new(2, Vec::new(), Routes::default());
    let (caller, mut buffer) = (it.caller(), [0; 100]);
    let mut sent = 0;
    let answer = loop {
        assert!(sent < 100_000, "the queue has no end");
        caller.send(&sip("flow 1 0 0")).unwrap();
        sent += 1;
        it.shard.turn(0);
        if let Ok(count) = caller.recv(&mut buffer) {
            break &buffer[..count];
        }
    };
    assert_eq!(answer, b"503");
    assert_eq!(it.shard.figures().hops, sent - 1);
}

#[test]
fn a_stream_is_cut_into_messages_wherever_the_network_cuts_it() {
    for seat in seats() {
        let rig = rig(1, seat, "127.0.0.1:0", TUNING);
        let long = "y".repeat(40_000);
        let bodies = ["one", "", long.as_str(), "two"];
        let mut all = b"\r\n\r\n".to_vec();
        bodies.iter().for_each(|it| all.extend(sip(it)));
        let mut want = b"\r\n".to_vec();
        bodies.iter().for_each(|it| want.extend(sip(it)));
        for piece in [1, 7, 1_000, 30_000, all.len()] {
            let mut stream = rig.tcp();
            stream.set_nodelay(true).unwrap();
            let mut writer = stream.try_clone().unwrap();
            let pieces = all.clone();
            let thread = std::thread::spawn(move || {
                // Byte by byte only where it can hurt: the long body comes in larger pieces.
                let (head, tail) = pieces.split_at(200);
                head.chunks(piece).for_each(|it| writer.write_all(it).unwrap());
                tail.chunks(piece.max(500)).for_each(|it| writer.write_all(it).unwrap());
            });
            let mut got = vec![0; want.len()];
            stream.read_exact(&mut got).unwrap();
            assert!(got == want, "{seat:?} {piece}");
            thread.join().unwrap();
        }
        rig.stop();
    }
}

#[test]
fn garbage_ends_its_connection_and_no_other() {
    let rig = rig(1, Seat::Thread, "127.0.0.1:0", TUNING);
    let (mut bad, mut good) = (rig.tcp(), rig.tcp());
    good.write_all(&sip("half")[..20]).unwrap();
    bad.write_all(b"\x16\x03\x01\x02\x00").unwrap();
    let mut rest = Vec::new();
    bad.read_to_end(&mut rest).unwrap();
    good.write_all(&sip("half")[20..]).unwrap();
    let mut got = vec![0; sip("half").len()];
    good.read_exact(&mut got).unwrap();
    assert_eq!(got, sip("half"));
    rig.stop();
}

#[test]
fn requests_share_one_connection_to_a_node_and_move_on_when_it_refuses() {
    let rig = rig(1, Seat::Thread, "127.0.0.1:0", TUNING);
    let dead = SocketAddr::from(([127, 0, 0, 1], ports::free()));
    let alive = TcpListener::bind("127.0.0.1:0").unwrap();
    let nodes =
        vec![node(Transport::Tcp, dead, 0), node(Transport::Tcp, alive.local_addr().unwrap(), 1)];
    let key = nodes[0].key;
    rig.publish(nodes, Routes { from: 1, is_stream: true });
    let socket = rig.udp();
    for body in ["node 1", "node 2", "node 3"] {
        socket.send(&sip(body)).unwrap();
    }
    let (mut at_node, _) = alive.accept().unwrap();
    at_node.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut got = vec![0; sip("node 1").len()];
    let mut seen = Vec::new();
    for _ in 0..3 {
        at_node.read_exact(&mut got).unwrap();
        seen.push(got.clone());
    }
    seen.sort();
    assert_eq!(seen, [sip("node 1"), sip("node 2"), sip("node 3")]);
    assert!(matches!(rig.notice(), Notice::Report(Report::Refused { node, .. }) if node == key));
    // What the node says on that connection is handled like any other message.
    at_node.write_all(&sip("echo")).unwrap();
    let mut got = vec![0; sip("echo").len()];
    at_node.read_exact(&mut got).unwrap();
    assert_eq!(got, sip("echo"));
    // The node restarts: the old connection ends, the next request opens another.
    drop(at_node);
    loop {
        // Until the shard has seen the end, its request goes to a closed connection, like in life.
        socket.send(&sip("node 4")).unwrap();
        if rig.statistics(0).figures.connections == 0 {
            break;
        }
        alive.set_nonblocking(true).unwrap();
        if alive.accept().is_ok() {
            rig.stop();
            return;
        }
    }
    socket.send(&sip("node 5")).unwrap();
    alive.set_nonblocking(false).unwrap();
    assert!(alive.accept().is_ok());
    rig.stop();
}

#[test]
fn a_client_on_tcp_that_never_reads_is_closed_and_others_are_served() {
    let rig = rig(1, Seat::Thread, "127.0.0.1:0", TUNING);
    for (round, body) in (1..).zip(["x".repeat(30_000), String::new()]) {
        // Echoes fill its queue, and so do answers to its pings.
        let said = if body.is_empty() { b"\r\n\r\n".repeat(10_000) } else { sip(&body) };
        let mut slow = rig.tcp();
        let closed = || rig.statistics(0).figures.streams.slow_closed == round;
        while !closed() && slow.write_all(&said).is_ok() {}
        assert!(closed());
        let mut good = rig.tcp();
        good.write_all(&sip("good")).unwrap();
        assert_eq!(read_some(&mut good), sip("good"));
    }
    assert_eq!(rig.statistics(0).counters.drops[0], DropReason::SlowPeer);
    rig.stop();
}

#[test]
fn a_node_that_stands_still_is_left_and_every_message_reaches_one_node_or_is_answered() {
    let rig = rig(1, Seat::Thread, "127.0.0.1:0", TUNING);
    let listen = || TcpListener::bind("127.0.0.1:0").unwrap();
    let (still, alive) = (listen(), listen());
    let at = |it: &TcpListener, version| node(Transport::Tcp, it.local_addr().unwrap(), version);
    let nodes = vec![at(&still, 0), at(&alive, 1)];
    let key = nodes[0].key;
    rig.publish(nodes.clone(), Routes { from: 1, is_stream: true });
    let (socket, message) = (rig.udp(), sip(&format!("node {}", "x".repeat(30_000))));
    let count = |it: &TcpListener, length: usize| {
        let mut all = Vec::new();
        it.accept().unwrap().0.read_to_end(&mut all).unwrap();
        (all.len() / length) as u64
    };
    let length = message.len();
    let alive = std::thread::spawn(move || count(&alive, length));
    socket.set_nonblocking(true).unwrap();
    let answers = || std::iter::from_fn(|| socket.recv(&mut [0; 8]).ok()).count() as u64;
    let (mut sent, mut answered) = (0, 0);
    while rig.statistics(0).figures.streams.slow_closed == 0 {
        socket.send(&message).unwrap();
        sent += 1;
        rig.wait(0, |it| it.counters.handled >= sent);
        answered += answers();
    }
    assert!(matches!(rig.notice(), Notice::Report(Report::Refused { node, .. }) if node == key));
    // Once it is believed again, it is connected to again.
    rig.publish(nodes, Routes { from: 1, is_stream: true });
    socket.send(&sip("node again")).unwrap();
    rig.wait(0, |it| it.figures.connections >= 2);
    rig.stop();
    let (first, second) = (count(&still, length), alive.join().unwrap());
    let mut again = String::new();
    still.accept().unwrap().0.read_to_string(&mut again).unwrap();
    assert!(again.ends_with("node again"), "{again}");
    assert!(second > 0);
    answered += answers();
    assert_eq!(first + second + answered, sent, "{first} at the one that stood still");
}

#[test]
fn on_the_one_leg_nodes_on_websocket_are_called_and_clients_are_not() {
    for shards in [1, 2] {
        let rig = rig(shards, Seat::Thread, "127.0.0.1:0", TUNING);
        let there = TcpListener::bind("127.0.0.1:0").unwrap();
        socket2::SockRef::from(&there).set_read_timeout(Some(PATIENCE)).unwrap();
        let to = there.local_addr().unwrap();
        let (socket, mut buffer) = (rig.udp(), [0; 100]);
        rig.publish(Vec::new(), Routes { from: 2, is_stream: true });
        socket.send(format!("peer {to}").as_bytes()).unwrap();
        let count = socket.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..count], b"503", "{shards} shards");
        rig.publish(vec![node(Transport::Ws, to, 0)], Routes { from: 2, is_stream: true });
        socket.send(format!("peer {to}").as_bytes()).unwrap();
        let (mut called, _) = there.accept().unwrap();
        called.set_read_timeout(Some(PATIENCE)).unwrap();
        assert!(read_some(&mut called).starts_with(b"GET "), "{shards} shards");
        rig.stop();
    }
}

#[test]
fn what_a_node_has_no_room_for_is_asked_of_another_or_answered() {
    let rig = rig(1, Seat::Thread, "127.0.0.1:0", TUNING);
    let deaf = TcpListener::bind("127.0.0.1:0").unwrap();
    socket2::SockRef::from(&deaf).set_recv_buffer_size(4_096).unwrap();
    let mut alone = vec![node(Transport::Tcp, deaf.local_addr().unwrap(), 0)];
    rig.publish(alone.clone(), Routes { from: 1, is_stream: true });
    let (socket, mut buffer) = (rig.udp(), [0; 100]);
    socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    let message = format!("node{}", "x".repeat(60_000));
    let mut sent = 0;
    let answer = loop {
        assert!(sent < 10_000, "the queue has no end");
        socket.send(message.as_bytes()).unwrap();
        sent += 1;
        if let Ok(count) = socket.recv(&mut buffer) {
            break buffer[..count].to_vec();
        }
    };
    assert_eq!(answer, b"503");
    let lively = TcpListener::bind("127.0.0.1:0").unwrap();
    socket2::SockRef::from(&lively).set_read_timeout(Some(PATIENCE)).unwrap();
    alone.push(node(Transport::Tcp, lively.local_addr().unwrap(), 1));
    rig.publish(alone, Routes { from: 1, is_stream: true });
    let script = rig.statistics(0);
    assert_eq!(script.counters.drops, []);
    socket.send(message.as_bytes()).unwrap();
    let (mut called, _) = lively.accept().unwrap();
    called.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(read_some(&mut called).starts_with(b"node"));
    rig.stop();
}

#[test]
fn a_message_for_another_shards_connection_takes_one_hop() {
    for seat in seats() {
        let rig = rig(2, seat, "127.0.0.1:0", TUNING);
        let mut stream = rig.tcp();
        stream.write_all(&sip("whoami")).unwrap();
        let flow = String::from_utf8(read_some(&mut stream)).unwrap();
        let owner: u8 = flow.split(' ').next().unwrap().parse().unwrap();
        let body = format!("flow {flow}");
        let mut hops = 0;
        // The kernel hashes sources over shards: some of these meet the other one.
        for _ in 0..32 {
            rig.udp().send(&sip(&body)).unwrap();
            let mut got = vec![0; sip(&body).len()];
            stream.read_exact(&mut got).unwrap();
            assert_eq!(got, sip(&body), "{seat:?}");
            hops = rig.statistics(1 - owner).figures.hops;
        }
        assert!(hops > 0, "{seat:?}");
        assert_eq!(rig.statistics(owner).figures.hops, 0);
        // Gone means gone: the caller is told.
        let at_once = Some(Duration::ZERO); // a reset, or the shard keeps it for late answers
        socket2::SockRef::from(&stream).set_linger(at_once).unwrap();
        drop(stream);
        rig.wait(owner, |it| it.figures.connections == 0);
        let socket = rig.udp();
        socket.send(&sip(&body)).unwrap();
        let mut answer = [0; 100];
        let count = socket.recv(&mut answer).unwrap();
        assert_eq!(&answer[..count], b"503");
        rig.stop();
    }
}

#[test]
fn a_message_waits_for_its_name_and_control_is_asked_once() {
    let rig = rig(1, Seat::Thread, "127.0.0.1:0", TUNING);
    let carrier = UdpSocket::bind("127.0.0.1:0").unwrap();
    carrier.set_read_timeout(Some(PATIENCE)).unwrap();
    let socket = rig.udp();
    socket.send(b"name 1").unwrap();
    socket.send(b"name 2").unwrap();
    let Notice::Resolve { shard: 0, name } = rig.notice() else { panic!("not asked") };
    rig.wait(0, |it| it.figures.parked >= 2);
    assert!(rig.body.inbox.notices.is_empty(), "asked twice");
    let answer = carrier.local_addr().unwrap();
    assert!(rig.body.post.send(0, Mail::Resolved { name, answer }).is_ok());
    let mut buffer = [0; 100];
    for want in [b"name 1", b"name 2"] {
        let count = carrier.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..count], want);
    }
    assert_eq!(rig.statistics(0).figures.parked, 0);
    rig.stop();
}

#[test]
fn whoever_finds_no_room_to_wait_for_a_name_hears_so() {
    let rig = rig(1, Seat::Thread, "127.0.0.1:0", TUNING);
    let (socket, mut buffer) = (rig.udp(), [0; 100]);
    for _ in 0..256 {
        socket.send(b"name").unwrap();
        rig.statistics(0); // that it is not one of many in the socket's buffer
    }
    rig.wait(0, |it| it.figures.parked == 256);
    socket.send(b"name of another").unwrap();
    let count = socket.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..count], b"503");
    let statistics = rig.statistics(0);
    assert_eq!(statistics.figures.parked, 256);
    assert_eq!(statistics.counters.drops, [DropReason::Unresolved]);
    rig.stop();
}

#[test]
fn silent_connections_end_and_too_many_are_refused() {
    let tuning = Tuning { stream_idle: Duration::from_secs(2), connections_max: 2, ..TUNING };
    let rig = rig(1, Seat::Thread, "127.0.0.1:0", tuning);
    let start = Instant::now();
    let mut streams = [rig.tcp(), rig.tcp()];
    rig.wait(0, |it| it.figures.connections >= 2);
    assert_eq!(rig.tcp().read(&mut [0; 1]).unwrap_or(0), 0, "closed at once");
    assert_eq!(rig.statistics(0).figures.refused_connections, 1);
    for stream in &mut streams {
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    }
    assert!(start.elapsed() >= tuning.stream_idle / 2, "{:?}", start.elapsed());
    drop(streams); // they have read that it is over: nobody waits for them any longer
    rig.wait(0, |it| it.figures.connections == 0);
    rig.stop();
}

#[test]
fn clients_that_take_all_connections_leave_the_nodes_theirs() {
    let tuning = Tuning { connections_max: 2, ..TUNING };
    let rig = rig(1, Seat::Thread, "127.0.0.1:0", tuning);
    let there = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = there.local_addr().unwrap();
    rig.publish(vec![node(Transport::Tcp, address, 0)], Routes { from: 1, is_stream: true });
    let streams = [rig.tcp(), rig.tcp()];
    rig.wait(0, |it| it.figures.connections >= 2);
    rig.udp().send(&sip("node 1")).unwrap();
    let mut got = vec![0; sip("node 1").len()];
    there.accept().unwrap().0.read_exact(&mut got).unwrap();
    assert_eq!(got, sip("node 1"));
    drop(streams);
    rig.stop();
}

#[test]
fn a_message_that_trickles_in_for_ever_ends_its_connection() {
    let tuning = Tuning { message_time: Duration::from_millis(200), ..TUNING };
    let rig = rig(1, Seat::Thread, "127.0.0.1:0", tuning);
    let mut stream = rig.tcp();
    stream.write_all(&sip("whole")).unwrap();
    assert_eq!(read_some(&mut stream), sip("whole"));
    stream.write_all(b"OPTIONS sip:x SIP/2.0\r\nX: ").unwrap();
    let start = Instant::now();
    while rig.statistics(0).figures.connections > 0 {
        assert!(start.elapsed() < PATIENCE, "it goes on");
        let _ = stream.write_all(b"x"); // the last one meets a closed connection
    }
    assert_eq!(rig.statistics(0).figures.streams.idle_closed, 1);
    rig.stop();
}

/// Phones that keep their path open by one line end, and peers that write one behind each message.
#[test]
fn a_line_end_is_not_the_beginning_of_a_message() {
    let tuning = Tuning { message_time: Duration::from_millis(200), ..TUNING };
    let rig = rig(1, Seat::Thread, "127.0.0.1:0", tuning);
    let mut streams = [rig.tcp(), rig.tcp(), rig.tcp()];
    let [begun, alone, behind] = &mut streams;
    alone.write_all(b"\r\n").unwrap();
    behind.write_all(&[&sip("whole")[..], b"\r\n"].concat()).unwrap();
    assert_eq!(read_some(behind), sip("whole"));
    begun.write_all(b"\r\nOPTIONS").unwrap();
    assert_eq!(begun.read(&mut [0; 1]).unwrap(), 0, "its time is up, and that of the others was");
    for stream in [alone, behind] {
        stream.write_all(&sip("next")).unwrap();
        assert_eq!(read_some(stream), sip("next"));
    }
    rig.stop();
}

#[test]
fn fragments_that_trickle_in_for_ever_end_their_connection() {
    let tuning = Tuning { message_time: Duration::from_millis(200), ..TUNING };
    let rig = rig(1, Seat::Thread, "127.0.0.1:0", tuning);
    let mut stream = rig.websocket();
    let frame = |first: u8, text: &[u8]| {
        let length = u8::try_from(text.len()).unwrap();
        [&[first, 0x80 | length, 0, 0, 0, 0], text].concat()
    };
    // Whole ones keep it up, in fragments or not.
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(100));
        stream.write_all(&frame(0x01, b"who")).unwrap();
        stream.write_all(&frame(0x80, b"le")).unwrap();
        assert_eq!(read_some(&mut stream), b"\x81\x05whole");
    }
    stream.write_all(&frame(0x01, b"OPTIONS")).unwrap();
    let start = Instant::now();
    while rig.statistics(0).figures.connections > 0 {
        assert!(start.elapsed() < PATIENCE, "it goes on");
        let _ = stream.write_all(&frame(0x00, b"x")); // the last one meets a closed connection
    }
    assert_eq!(rig.statistics(0).figures.streams.idle_closed, 1);
    rig.stop();
}

/// Anybody can send an ICMP error for an address that he knows: it must quote a request that went there.
#[test]
fn an_error_about_nothing_that_a_node_was_sent_blames_nobody() {
    let rig = rig(1, Seat::Thread, "127.0.0.1:0", TUNING);
    let alive = UdpSocket::bind("127.0.0.1:0").unwrap();
    alive.set_read_timeout(Some(PATIENCE)).unwrap();
    let dead = SocketAddr::from(([127, 0, 0, 1], ports::free()));
    let nodes =
        vec![node(Transport::Udp, dead, 0), node(Transport::Udp, alive.local_addr().unwrap(), 1)];
    rig.publish(nodes, Routes::default());
    let (socket, mut buffer) = (rig.udp(), [0; 100]);
    // To the same address, but not as a request.
    socket.send(b"name 1").unwrap();
    let Notice::Resolve { shard: 0, name } = rig.notice() else { panic!("not asked") };
    assert!(rig.body.post.send(0, Mail::Resolved { name, answer: dead }).is_ok());
    rig.wait(0, |it| it.figures.sent >= 1);
    assert!(rig.body.inbox.notices.is_empty(), "the node is blamed");
    socket.send(b"node 2").unwrap();
    let count = alive.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..count], b"node 2", "what is no request goes nowhere else");
    assert_eq!(rig.statistics(0).figures.retried, 1, "the node was asked, and refused");
    rig.stop();
}

#[test]
fn a_client_that_closed_its_side_still_gets_its_answers() {
    let rig = rig(1, Seat::Thread, "127.0.0.1:0", TUNING);
    let mut stream = rig.tcp();
    stream.write_all(&sip("whoami")).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let flow = String::from_utf8(read_some(&mut stream)).unwrap();
    let body = format!("flow {flow}");
    rig.udp().send(&sip(&body)).unwrap();
    let mut got = vec![0; sip(&body).len()];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(got, sip(&body));
    rig.stop();
}

#[test]
fn a_stopping_shard_serves_everything_until_the_end_is_near_and_then_accepts_no_more() {
    let mut rig = rig(1, Seat::Thread, "127.0.0.1:0", TUNING);
    let stop_in = |time: Duration| {
        let view = rig.body.published.current();
        rig.body.published.publish(Arc::new(View {
            snapshot: Arc::clone(&view.snapshot),
            settings: Arc::clone(&view.settings),
            tuning: view.tuning,
            security: None,
            stopping: Some(rig.clock.now() + time),
        }));
    };
    stop_in(Duration::from_secs(3_600));
    let mut stream = rig.tcp();
    stream.write_all(&sip("still")).unwrap();
    assert_eq!(read_some(&mut stream), sip("still"));
    stop_in(WIND_UP);
    let start = Instant::now();
    while TcpStream::connect(rig.listeners[1].address).is_ok() {
        assert!(start.elapsed() < PATIENCE, "it still listens");
    }
    stream.write_all(&sip("last")).unwrap();
    assert_eq!(read_some(&mut stream), sip("last"));
    let (socket, mut buffer) = (rig.udp(), [0; 100]);
    socket.send(b"still").unwrap();
    assert_eq!(socket.recv(&mut buffer).unwrap(), 5);
    assert!(matches!(rig.notice(), Notice::Ended { shard: 0, is_failure: false }));
    assert_eq!(rig.body.join(), 0);
}

#[test]
fn an_idle_shard_sleeps() {
    for seat in seats() {
        let tuning = Tuning { coalesce: Duration::from_micros(200), ..TUNING };
        let rig = rig(1, seat, "127.0.0.1:0", tuning);
        let (socket, mut buffer) = (rig.udp(), [0; 100]);
        socket.send(b"warm").unwrap();
        socket.recv(&mut buffer).unwrap();
        let _stream = rig.tcp();
        std::thread::sleep(Duration::from_millis(400)); // the report timer of the traffic above
        let before = rig.statistics(0).figures.turns;
        std::thread::sleep(Duration::from_millis(500));
        let turns = rig.statistics(0).figures.turns - before;
        assert!(turns <= 8, "{seat:?}: {turns} turns in an idle half second");
        rig.stop();
    }
}

#[test]
fn waiting_for_a_batch_finds_several_and_never_delays_the_first() {
    let bound = Duration::from_millis(20);
    let tuning = Tuning { coalesce: bound, ..TUNING };
    let rig = rig(1, Seat::Thread, "127.0.0.1:0", tuning);
    let (socket, mut buffer) = (rig.udp(), [0; 100]);
    let sender = socket.try_clone().unwrap();
    // Fewer on their way than a receive buffer holds, whoever of the three is held up.
    let (begun, done) = std::sync::mpsc::sync_channel(100);
    let thread = std::thread::spawn(move || {
        for _ in 0..2_000 {
            begun.send(()).unwrap();
            sender.send(b"burst").unwrap();
            std::thread::sleep(Duration::from_micros(100));
        }
    });
    for _ in 0..2_000 {
        socket.recv(&mut buffer).unwrap();
        done.recv().unwrap();
    }
    thread.join().unwrap();
    let figures = rig.statistics(0).figures;
    assert!(figures.coalesced > 0);
    assert!(figures.batches < 1_000, "{figures:?}: two a batch at least");
    // A single message after a pause does not wait.
    let fastest = (0..5).map(|_| {
        std::thread::sleep(3 * bound);
        let start = Instant::now();
        socket.send(b"one").unwrap();
        socket.recv(&mut buffer).unwrap();
        start.elapsed()
    });
    assert!(fastest.min().unwrap() < bound, "delayed");
    rig.stop();
}
