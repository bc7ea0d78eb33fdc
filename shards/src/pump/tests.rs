//! A relay of a few lines between real sockets: what is under test is the pump.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread::spawn;
use std::time::Duration;

use engine::config::Steering;
use engine::names::{Answer, Query, Unresolved};
use engine::node::{NodeKey, Way};
use engine::relay::stream::{Handover, Room, Secure, StreamRelay, Wire};
use engine::relay::{Arrival, DropReason, Failure, Leg, Listener, Verdict};
use protocols::sip::Transport;
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, HandshakeKind, ServerConnection, StreamOwned};
use socket2::{Domain, Socket, Type};
use tools::ports;

use super::*;
use crate::census::Full;
use crate::clock::Clock;
use crate::decide::Decide;
use crate::executor::{self, Body, Seat, Spec};
use crate::listeners::{SocketOptions, bound, open_listeners};
use crate::mesh::{Mail, Notice};
use crate::publish::{Published, Tuning, View};
use crate::sys::Events;
use crate::tls::Security;

/// Pairs each client with a connection to a server of its own. Lines that begin with `!` are orders.
#[derive(Default)]
struct Proxy {
    settings: Arc<Target>,
    shard: usize,
    next: u32,
    partners: HashMap<Conn, Conn>,
    servers: Vec<Conn>,
    ended: Vec<Conn>,
    leaving: Option<Handover>,
    gone: Vec<Gone>,
    /// Bytes that had left on those.
    left: Vec<u64>,
    refused: Vec<Full>,
    /// Whatever the process tells it.
    panics: bool,
}

struct Target {
    address: SocketAddr,
    secure: Secure,
    /// Consume only whole lines, one at a time.
    by_line: bool,
    source_connections_max: usize,
}

impl Default for Target {
    fn default() -> Self {
        Target {
            address: "127.0.0.1:1".parse().unwrap(),
            secure: Secure::No,
            by_line: false,
            source_connections_max: 0,
        }
    }
}

impl Proxy {
    fn number(&mut self) -> Conn {
        self.next += 1;
        // Slots are used again at once, as a real relay does.
        Conn { slot: self.next % 8, generation: self.next }
    }

    fn forget(&mut self, conn: Conn) -> Option<Conn> {
        let partner = self.partners.remove(&conn)?;
        self.partners.remove(&partner);
        Some(partner)
    }
}

impl StreamRelay for Proxy {
    fn handle_open(
        &mut self,
        _now: Time,
        _listener: usize,
        _source: SocketAddr,
        wire: &mut impl Wire,
    ) -> Option<Conn> {
        let (client, server) = (self.number(), self.number());
        self.partners.extend([(client, server), (server, client)]);
        self.servers.push(server);
        wire.connect(server, self.settings.address, self.settings.secure);
        Some(client)
    }

    fn handle_connected(&mut self, _now: Time, conn: Conn, _wire: &mut impl Wire) {
        assert!(self.servers.contains(&conn));
    }

    fn handle_bytes(
        &mut self,
        _now: Time,
        conn: Conn,
        bytes: &[u8],
        _snapshot: &Snapshot,
        wire: &mut impl Wire,
    ) -> usize {
        let order = bytes.strip_prefix(b"!move ").and_then(<[u8]>::first);
        if let Some(shard) = order {
            let shard = usize::from(*shard - b'0');
            if shard == self.shard {
                let rest = bytes.get(8..).unwrap_or(&[]);
                wire.send(self.partners[&conn], rest);
                return bytes.len();
            }
            if let Some(server) = self.forget(conn) {
                wire.abort(server);
            }
            self.leaving = Some(Handover { conn, shard });
            return 0;
        }
        assert_ne!(bytes, b"!panic", "as it was told");
        if bytes.starts_with(b"!") {
            if let Some(server) = self.forget(conn) {
                wire.abort(server);
            }
            match bytes {
                b"!abort" => wire.abort(conn),
                b"!flood" => {
                    wire.send(conn, &[b'x'; FLOOD_BYTES]);
                    wire.close(conn);
                }
                b"!hang up" => wire.hang_up(conn),
                b"!close" => wire.close(conn),
                other => panic!("{other:?} is no order"),
            }
            return bytes.len();
        }
        let Some(partner) = self.partners.get(&conn).copied() else { return bytes.len() };
        let mut taken = bytes;
        if self.settings.by_line {
            let Some(end) = bytes.iter().position(|it| *it == b'\n') else { return 0 };
            taken = &bytes[..=end];
            wire.pause(conn);
            wire.resume(conn); // the rest is offered in a moment
        }
        if wire.send(partner, taken) == Room::Full {
            wire.pause(conn);
        }
        taken.len()
    }

    fn handle_end(&mut self, _now: Time, conn: Conn, _snapshot: &Snapshot, wire: &mut impl Wire) {
        let Some(partner) = self.partners.get(&conn).copied() else { return };
        self.ended.push(conn);
        if self.ended.contains(&partner) {
            self.forget(conn);
            wire.close(conn);
            wire.close(partner);
        } else {
            wire.end(partner);
        }
    }

    fn handle_gone(
        &mut self,
        _now: Time,
        conn: Conn,
        why: Gone,
        _snapshot: &Snapshot,
        wire: &mut impl Wire,
    ) {
        self.gone.push(why);
        self.left.push(wire.sent_bytes(conn));
        if let Some(partner) = self.forget(conn) {
            wire.send(partner, format!("gone: {why:?}").as_bytes());
            wire.close(partner);
        }
    }

    fn handle_drained(&mut self, _now: Time, conn: Conn, wire: &mut impl Wire) {
        if let Some(partner) = self.partners.get(&conn) {
            wire.resume(*partner);
        }
    }

    fn poll_timeout(&self) -> Option<Time> {
        None
    }

    fn poll_handover(&mut self) -> Option<Handover> {
        self.leaving.take()
    }

    fn handle_timeout(&mut self, _now: Time, _snapshot: &Snapshot, _wire: &mut impl Wire) {}
}

impl Driven for Proxy {
    type Settings = Target;
    type Counters = Vec<Gone>;

    fn configure(&mut self, _: Time, settings: &Arc<Target>, _: &Snapshot, _: &mut impl Wire) {
        assert!(!self.panics, "as it was told");
        self.settings = Arc::clone(settings);
    }

    fn source_connections_max(&self) -> usize {
        self.settings.source_connections_max
    }

    fn refused(&mut self, why: Full) {
        self.refused.push(why);
    }

    fn handle_snapshot(&mut self, _now: Time, _: &Snapshot, _wire: &mut impl Wire) {
        assert!(!self.panics, "as it was told");
    }

    fn handle_stopping(&mut self, _now: Time, _wire: &mut impl Wire) {
        assert!(!self.panics, "as it was told");
    }

    fn poll_report(&mut self, _now: Time, _snapshot: &Snapshot) -> Option<Report> {
        None
    }

    fn counters(&mut self) -> Vec<Gone> {
        self.gone.clone()
    }
}

/// No SIP at all.
struct Nothing;

impl Decide for Nothing {
    type Settings = ();
    type Counters = ();
    type Name = Query;
    type Answer = Result<Answer, Unresolved>;

    fn handle(&mut self, _: &Arrival, _: &[u8], _: &Snapshot, _: &mut Vec<u8>) -> Verdict {
        Verdict::Drop(DropReason::Malformed)
    }

    fn undelivered(
        &mut self,
        _: &Arrival,
        _: &[u8],
        _: Failure,
        _: &Snapshot,
        _: &mut Vec<u8>,
    ) -> Verdict {
        Verdict::Drop(DropReason::Malformed)
    }

    fn refused(&mut self, _: SocketAddr, _: Transport, _: &Snapshot) -> Option<(NodeKey, Way)> {
        None
    }

    fn handle_snapshot(&mut self, _: &Snapshot) {}

    fn configure(&mut self, _: Arc<()>) {}

    fn wanted_name(&mut self) -> Option<Query> {
        None
    }

    fn poll_aging_name(&mut self, _: Time) -> Option<Query> {
        None
    }

    fn handle_name(&mut self, _: Time, _: Query, _: Result<Answer, Unresolved>) {}

    fn poll_report(&mut self, _: Time, _: &Snapshot) -> Option<Report> {
        None
    }

    fn switch_over(&mut self, _: NodeKey, _: NodeKey) {}

    fn dropped(&mut self, _: DropReason) {}

    fn counters(&mut self, _: Time, _: &Snapshot, _: bool) -> &() {
        &()
    }
}

struct Rig {
    body: Option<Body<Nothing>>,
    address: SocketAddr,
    counters: Arc<Mutex<Vec<Gone>>>,
}

impl Rig {
    fn new(shards: usize, target: Target, security: Option<Arc<Security>>, is_secure: bool) -> Rig {
        let address = "127.0.0.1:0".parse().unwrap();
        let listeners = [Listener { leg: Leg::External, transport: Transport::Tcp, address }];
        let options = SocketOptions {
            steering: Steering::Hash,
            receive_buffer_bytes: 0,
            send_buffer_bytes: 0,
            cpus: Vec::new(),
        };
        let sockets = open_listeners(&listeners, shards, &options).unwrap();
        let address = bound(&listeners, &sockets[0])[0].address;
        let settings = Published::new(Arc::new(target), Vec::new());
        let counters = Arc::new(Mutex::new(Vec::new()));
        let pumps = sockets.into_iter().enumerate().map(|(shard, of_shard)| {
            let doors = of_shard.into_iter().map(|socket| Door::new(socket, is_secure));
            let pump: Box<dyn Pumped> = Box::new(Pump::new(PumpSetup {
                relay: Proxy { shard, settings: settings.current(), ..Proxy::default() },
                source: None,
                protocol: StreamProtocol::Http,
                doors: doors.collect(),
                settings: settings.subscribe(),
                counters: counters.clone(),
                census: Arc::default(),
            }));
            vec![pump]
        });
        let body = executor::start(Spec {
            listeners: Vec::new(),
            sockets: (0..shards).map(|_| Vec::new()).collect(),
            relays: (0..shards).map(|_| Nothing).collect(),
            pumps: pumps.collect(),
            cpus: crate::sys::affinity(),
            view: View {
                snapshot: Arc::default(),
                settings: Arc::new(()),
                tuning: tuning(),
                security,
                stopping: None,
            },
            clock: Clock::start(),
            seat: Seat::Thread,
        });
        Rig { body: Some(body.unwrap()), address, counters }
    }

    fn client(&self) -> TcpStream {
        let client = TcpStream::connect(self.address).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let Some(mut body) = self.body.take() else { return };
        let View { snapshot, settings, tuning, security, .. } = &*body.published.current();
        body.published.publish(Arc::new(View {
            snapshot: snapshot.clone(),
            settings: settings.clone(),
            tuning: *tuning,
            security: security.clone(),
            stopping: Some(Time::ZERO),
        }));
        assert_eq!(body.join(), 0, "no shard panics");
    }
}

fn tuning() -> Tuning {
    Tuning {
        coalesce: Duration::ZERO,
        couples_datagrams: true,
        stream_idle: Duration::from_secs(60),
        message_time: Duration::from_secs(60),
        tls_gateway: false,
        connections_max: 100,
        source_connections_max: 0,
        handshake_time: Duration::from_secs(3),
        message_bytes_max: 65_536,
    }
}

/// A server that sends back what it gets, and its end.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            spawn(move || {
                let mut output = stream.try_clone().unwrap();
                let _ = std::io::copy(&mut &stream, &mut output);
                let _ = output.shutdown(Shutdown::Write);
            });
        }
    });
    address
}

fn to(address: SocketAddr) -> Target {
    Target { address, ..Target::default() }
}

fn security() -> Arc<Security> {
    let made = rcgen::generate_simple_self_signed(vec!["lb.test".to_owned()]).unwrap();
    let path = std::env::temp_dir().join(format!("trunkline-pump-{}.pem", std::process::id()));
    let pem = format!("{}{}", made.cert.pem(), made.signing_key.serialize_pem());
    std::fs::write(&path, pem).unwrap();
    let config = engine::config::Tls {
        key_store: Some(path.display().to_string()),
        peers: engine::config::PeerCertificates::Unchecked,
        ..engine::config::Tls::default()
    };
    let tickets = rustls::crypto::ring::Ticketer::new().unwrap();
    Arc::new(Security::new(&config, tickets).unwrap().0)
}

#[test]
fn megabytes_pass_both_ways_though_the_reader_is_slow_and_ends_pass_too() {
    let rig = Rig::new(1, to(echo()), None, false);
    let mut client = rig.client();
    let sent: Vec<u8> = (0..8_000_000u32).map(|it| it.to_le_bytes()[1]).collect();
    let (mut writer, bytes) = (client.try_clone().unwrap(), sent.clone());
    let thread = spawn(move || {
        writer.write_all(&bytes).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    std::thread::sleep(Duration::from_millis(300)); // queues fill, and everybody waits
    let mut received = Vec::new();
    client.read_to_end(&mut received).unwrap();
    thread.join().unwrap();
    assert!(received == sent, "{} of {} bytes", received.len(), sent.len());
}

#[test]
fn what_is_not_consumed_is_offered_again_without_new_bytes() {
    let rig = Rig::new(1, Target { by_line: true, ..to(echo()) }, None, false);
    let mut client = rig.client();
    client.write_all(b"one\ntwo\nthree\nfo").unwrap();
    let mut buffer = [0; 14];
    client.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"one\ntwo\nthree\n");
    client.write_all(b"ur\n").unwrap();
    let mut buffer = [0; 5];
    client.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"four\n");
}

#[test]
fn a_server_that_refuses_is_told_and_the_client_reads_our_last_words() {
    let refusing = SocketAddr::from(([127, 0, 0, 1], ports::free()));
    let rig = Rig::new(1, to(refusing), None, false);
    let mut client = rig.client();
    client.write_all(&[b'x'; 10_000]).unwrap(); // unread by the relay when it closes
    let mut text = String::new();
    client.read_to_string(&mut text).unwrap();
    assert_eq!(text, "gone: Refused");
    drop(rig.counters.lock().unwrap());
}

#[test]
fn a_panic_costs_one_connection_and_is_counted() {
    let rig = Rig::new(1, to(echo()), None, false);
    let [mut neighbour, mut bad] = [(); 2].map(|()| rig.client());
    let mut echoes = |text: &[u8; 4]| {
        neighbour.write_all(text).unwrap();
        let mut back = [0; 4];
        neighbour.read_exact(&mut back).unwrap();
        assert_eq!(&back, text);
    };
    echoes(b"once");
    bad.write_all(b"!panic").unwrap();
    let error = bad.read(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "what it has is not all there is");
    echoes(b"more");
    let body = rig.body.as_ref().unwrap();
    assert!(body.post.send(0, Mail::Statistics { question: 1 }).is_ok());
    let statistics = loop {
        match body.inbox.notices.recv_timeout(PATIENCE).unwrap() {
            Notice::Statistics { statistics, .. } => break statistics,
            Notice::Ended { .. } => panic!("the shard is gone"),
            _ => {}
        }
    };
    assert_eq!(statistics.pumps[0].panics, 1);
    assert_eq!(*rig.counters.lock().unwrap(), [Gone::Reset], "the relay hears of it");
}

#[test]
fn an_abort_is_a_reset_and_no_end() {
    let rig = Rig::new(1, to(echo()), None, false);
    let mut client = rig.client();
    client.write_all(b"!abort").unwrap();
    let error = client.read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

/// A pump without its shard: time passes when a test says so.
struct Bench {
    pump: Pump<Proxy>,
    epoll: Epoll,
    events: Events,
    now: Time,
    /// Connects and says nothing.
    server: TcpListener,
    address: SocketAddr,
    security: Option<Arc<Security>>,
}

impl Bench {
    fn new() -> Bench {
        Bench::with(None)
    }

    /// Clients speak TLS if there is a certificate for it.
    fn with(security: Option<Arc<Security>>) -> Bench {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let socket = Socket::from(listener);
        socket.set_send_buffer_size(1).unwrap(); // as little as the kernel gives; connections inherit it
        let settings = Published::new(Arc::new(to(server.local_addr().unwrap())), Vec::new());
        let mut pump = Pump::new(PumpSetup {
            relay: Proxy { settings: settings.current(), ..Proxy::default() },
            source: None,
            protocol: StreamProtocol::Http,
            doors: vec![Door::new(socket, security.is_some())],
            settings: settings.subscribe(),
            counters: Arc::default(),
            census: Arc::default(),
        });
        let epoll = Epoll::new().unwrap();
        pump.watch(&epoll, 0).unwrap();
        let (events, now) = (Events::new(16), Time::from_millis(1_000));
        Bench { pump, epoll, events, now, server, address, security }
    }

    /// A client that takes little at a time, and the order that it gives.
    fn order(&mut self, order: &[u8]) -> TcpStream {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(1).unwrap();
        socket.connect(&self.address.into()).unwrap();
        let mut client = TcpStream::from(socket);
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let is_known = |it: &mut Bench| it.pump.lines.len() == 2;
        self.turn_until(is_known);
        client.write_all(order).unwrap();
        client
    }

    /// Handles events, all at the same time, until it is so.
    fn turn_until(&mut self, mut is_so: impl FnMut(&mut Bench) -> bool) {
        let begin = std::time::Instant::now();
        while !is_so(self) {
            assert!(begin.elapsed() < PATIENCE, "it does not come to that");
            self.turn();
        }
    }

    fn turn(&mut self) {
        let count = self.epoll.wait(&mut self.events, 10).unwrap_or(0);
        let events: Vec<_> = (0..count).filter_map(|it| self.events.at(it)).collect();
        self.lend(|pump, lent| {
            for event in events {
                pump.handle_event(lent, event.token, event.flags);
            }
            pump.handle_turn(lent);
        });
    }

    fn lend(&mut self, act: impl FnOnce(&mut Pump<Proxy>, &mut Lent<'_>)) {
        let (mut scratch, mut clear) = (vec![0; 65_536], Vec::new());
        let mut lent = Lent {
            now: self.now,
            epoll: &self.epoll,
            scratch: &mut scratch,
            clear: &mut clear,
            security: self.security.as_deref(),
            tuning: tuning(),
        };
        act(&mut self.pump, &mut lent);
    }

    /// The line in a slot: the client's is 0, its server's 1.
    fn line(&mut self, slot: u32) -> &mut Line {
        let id = self.pump.lines.in_slot(slot).unwrap();
        self.pump.lines.find(id).unwrap()
    }
}

/// Closes a connection with a reset.
fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// Keep-alive asks nobody while something is on its way to a machine that is gone.
#[test]
fn a_server_whose_host_is_gone_is_noticed_even_while_it_is_sent_to() {
    let mut bench = Bench::new();
    let _client = bench.order(b"hello");
    bench.turn_until(|it| it.line(1).sent_bytes == 5);
    let mut most = |slot| socket2::SockRef::from(&bench.line(slot).socket).tcp_user_timeout();
    assert_eq!(most(1).unwrap(), Some(Duration::from_secs(120)));
    assert_eq!(most(0).unwrap(), None, "clients may rest longer");
}

#[test] // RFC 9112 §9.5
fn what_a_server_said_before_it_took_no_more_is_read() {
    let mut bench = Bench::new();
    let mut client = bench.order(b"hello");
    let mut server = bench.server.accept().unwrap().0;
    bench.turn_until(|it| it.line(1).sent_bytes == 5);
    server.write_all(b"too long;").unwrap();
    drop(server); // with bytes unread: a reset follows what it said
    let id = bench.pump.lines.in_slot(1).unwrap();
    bench.line(1).unsent.extend_from_slice(b"more");
    bench.pump.lines.flush(id, bench.now); // before the answer is read
    client.set_nonblocking(true).unwrap();
    let mut received = Vec::new();
    bench.turn_until(|_| {
        let _ = client.read_to_end(&mut received);
        received.ends_with(b"Reset")
    });
    assert_eq!(String::from_utf8(received).unwrap(), "too long;gone: Reset");
    assert_eq!(bench.pump.relay.left, [5], "what it was asked and no more");
}

#[test]
fn a_client_that_resets_while_it_is_not_read_is_found_out() {
    let mut bench = Bench::new();
    let client = bench.order(b"hello");
    bench.turn_until(|it| it.line(1).sent_bytes == 5);
    bench.line(0).is_paused = true;
    reset(client);
    bench.turn_until(|it| it.pump.relay.gone == [Gone::Reset]);
}

#[test]
fn the_end_of_the_process_cuts_what_was_not_all_sent() {
    let mut bench = Bench::new();
    let mut client = bench.order(b"!flood");
    bench.turn_until(|it| it.pump.relay.partners.is_empty());
    bench.turn();
    bench.lend(|pump, lent| pump.handle_over(lent));
    let error = client.read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[test]
fn a_panic_over_what_the_process_says_is_counted_and_costs_nobody() {
    let mut bench = Bench::new();
    let _client = bench.order(b"some");
    bench.pump.relay.panics = true;
    let settings = Published::new(Arc::clone(&bench.pump.relay.settings), Vec::new());
    bench.pump.settings = settings.subscribe();
    settings.publish(Arc::new(to(bench.address)));
    bench.turn();
    assert_eq!(bench.pump.figures.panics, 1, "settings");
    bench.lend(|pump, lent| pump.handle_snapshot(lent, &Arc::default()));
    assert_eq!(bench.pump.figures.panics, 2, "nodes");
    bench.lend(|pump, lent| pump.handle_stopping(lent));
    assert_eq!(bench.pump.figures.panics, 3, "a stop");
    assert_eq!(bench.pump.lines.len(), 2);
}

#[test]
fn a_line_writes_into_a_buffer_that_was_used_before() {
    let mut bench = Bench::new();
    let mut client = bench.order(b"some");
    let (mut server, _) = bench.server.accept().unwrap();
    server.set_nonblocking(true).unwrap();
    for _ in 0..10 {
        client.write_all(b"more").unwrap();
        let mut came = 0;
        bench.turn_until(|_| {
            came += server.read(&mut [0; 8]).unwrap_or(0);
            came >= 4
        });
    }
    let is_spare = |it: &mut Bench| it.pump.lines.copy(&[]).capacity() > 0;
    let spare = (0..10).take_while(|_| is_spare(&mut bench)).count();
    assert!(spare <= 2, "{spare} buffers for one line at a time");
}

#[test]
fn a_client_has_its_time_for_the_handshake_however_often_it_is_looked_at() {
    let mut bench = Bench::with(Some(security()));
    let client = TcpStream::connect(bench.address).unwrap();
    bench.turn_until(|it| it.pump.lines.len() == 1);
    let deadline = bench.now + tuning().handshake_time;
    // The socket takes bytes, which is an event of its own.
    for _ in 0..3 {
        let id = bench.pump.lines.in_slot(0).unwrap();
        bench.pump.lines.flush(id, bench.now);
        assert_eq!(bench.pump.lines.wheel.deadline(timer_of(id)), Some(deadline));
        bench.now += Duration::from_millis(900);
        bench.turn();
    }
    bench.now = deadline + Duration::from_millis(100);
    bench.turn_until(|it| it.pump.lines.len() == 0);
    drop(client);
}

#[test]
fn who_takes_its_last_bytes_slowly_gets_them_all_and_who_takes_none_is_reset() {
    for takes in [true, false] {
        let mut bench = Bench::new();
        let mut client = bench.order(b"!flood");
        client.set_nonblocking(true).unwrap();
        bench.turn_until(|it| it.pump.relay.partners.is_empty());
        let mut received = Vec::new();
        for _ in 0..5 {
            let due = |it: &Bench| {
                let id = it.pump.lines.in_slot(0).expect("the client's, which came first");
                it.pump.lines.wheel.deadline(timer_of(id)).unwrap()
            };
            let deadline = due(&bench);
            bench.now = deadline - Duration::from_millis(1);
            if takes {
                bench.turn_until(|it| {
                    let mut some = [0; 5_000];
                    let count = client.read(&mut some).unwrap_or(0);
                    received.extend_from_slice(&some[..count]);
                    due(it) > deadline
                });
            } else {
                bench.turn();
            }
        }
        if takes {
            bench.turn_until(|_| {
                let _ = client.read_to_end(&mut received);
                received.len() == FLOOD_BYTES
            });
            continue;
        }
        client.set_nonblocking(false).unwrap();
        bench.now += Duration::from_millis(100);
        bench.turn_until(|it| it.pump.lines.len() == 0);
        let error = client.read_to_end(&mut received).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "no end that looks whole");
    }
}

#[test]
fn connections_are_limited_in_all_and_by_source() {
    let mut bench = Bench::new();
    let server = bench.server.local_addr().unwrap();
    let target = Target { source_connections_max: 2, ..to(server) };
    bench.pump.relay.settings = Arc::new(target);
    let mut open = Vec::new();
    let mut come = |bench: &mut Bench, from: [u8; 4], count| {
        for _ in 0..count {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
            socket.connect(&bench.address.into()).unwrap();
            open.push(socket);
        }
        (0..count).for_each(|_| bench.turn());
    };
    come(&mut bench, [127, 0, 0, 2], 5);
    assert_eq!(bench.pump.relay.refused, [Full::Source; 3]);
    come(&mut bench, [127, 0, 0, 3], 2);
    assert_eq!(bench.pump.relay.refused.len(), 3, "another source");
    bench.pump.relay.settings = Arc::new(to(server));
    come(&mut bench, [127, 0, 0, 2], 100);
    bench.turn_until(|it| it.pump.figures.refused == 3 + 4);
    assert_eq!(bench.pump.relay.refused[3..], [Full::All; 4], "100 are there");
}

#[test]
fn only_who_may_say_more_is_waited_for() {
    for (order, lingering) in [(&b"!hang up"[..], 0), (b"!close", 1)] {
        let mut bench = Bench::new();
        let mut client = bench.order(order);
        bench.turn_until(|it| it.pump.relay.partners.is_empty());
        bench.turn();
        client.read_to_end(&mut Vec::new()).unwrap();
        assert_eq!(bench.pump.lines.len(), lingering, "{}", String::from_utf8_lossy(order));
    }
}

#[test]
fn an_end_inside_tls_that_was_not_said_is_no_end() {
    for says_so in [true, false] {
        let security = security();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = Target { secure: Secure::Tls, ..to(listener.local_addr().unwrap()) };
        let config = Arc::clone(security.stream_server(StreamProtocol::Http));
        let server = spawn(move || {
            let connection = ServerConnection::new(config).unwrap();
            let mut stream = StreamOwned::new(connection, listener.accept().unwrap().0);
            stream.write_all(b"half").unwrap();
            if says_so {
                stream.conn.send_close_notify();
            }
            stream.flush().unwrap();
            stream.sock.shutdown(Shutdown::Write).unwrap();
            let _ = stream.sock.read(&mut [0; 512]); // what it is told in turn; no reset
        });
        let rig = Rig::new(1, target, Some(security), false);
        let mut text = String::new();
        rig.client().read_to_string(&mut text).unwrap();
        assert_eq!(text, if says_so { "half" } else { "halfgone: Reset" });
        server.join().unwrap();
    }
}

#[test]
fn tls_stands_on_either_side_or_both() {
    let security = security();
    // The inner balancer ends TLS; the outer one speaks it to the inner one, and to its own client.
    let inner = Rig::new(1, to(echo()), Some(security.clone()), true);
    let target = Target { secure: Secure::Tls, ..to(inner.address) };
    let outer = Rig::new(1, target, Some(security.clone()), true);
    let mut config = (**security.stream_client(StreamProtocol::Http)).clone();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let name = ServerName::try_from("lb.test").unwrap();
    let config = Arc::new(config);
    let connection = ClientConnection::new(Arc::clone(&config), name.clone()).unwrap();
    let mut client = StreamOwned::new(connection, outer.client());
    let sent: Vec<u8> = (0..300_000u32).map(|it| it.to_le_bytes()[1]).collect();
    let mut received = vec![0; sent.len()];
    for (piece, room) in sent.chunks(30_000).zip(received.chunks_mut(30_000)) {
        client.write_all(piece).unwrap();
        client.read_exact(room).unwrap();
    }
    assert!(received == sent);
    assert_eq!(client.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
    client.conn.send_close_notify();
    client.flush().unwrap();
    assert_eq!(client.read(&mut [0; 1]).unwrap(), 0, "the end comes back whole");
    let connection = ClientConnection::new(config, name).unwrap();
    let mut again = StreamOwned::new(connection, outer.client());
    again.write_all(b"x").unwrap();
    again.read_exact(&mut [0; 1]).unwrap();
    assert_eq!(again.conn.handshake_kind(), Some(HandshakeKind::Resumed), "by a ticket");

    // Plain text on the port of TLS, and a server that does not speak it.
    let mut garbage = outer.client();
    garbage.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let mut alert = Vec::new();
    let _ = garbage.read_to_end(&mut alert);
    assert!(alert.is_empty() || alert[0] == 21, "{alert:?}");
    let target = Target { secure: Secure::Tls, ..to(echo()) };
    let mismatched = Rig::new(1, target, Some(security), false);
    let mut text = String::new();
    mismatched.client().read_to_string(&mut text).unwrap();
    assert_eq!(text, "gone: Handshake");
}

#[test]
fn a_connection_goes_on_at_another_shard_with_what_was_not_consumed() {
    let security = security();
    let rig = Rig::new(3, to(echo()), Some(security), false);
    for round in 0..9 {
        for shard in 0..3 {
            let mut client = rig.client();
            // In one piece: an order must not be cut.
            client.write_all(format!("!move {shard}\nhello {round}").as_bytes()).unwrap();
            let mut buffer = [0; 7];
            client.read_exact(&mut buffer).unwrap();
            assert_eq!(buffer, format!("hello {round}").as_bytes());
            client.shutdown(Shutdown::Write).unwrap();
            assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
        }
    }
}

const PATIENCE: Duration = Duration::from_secs(20);
/// More than the least that the kernel keeps.
const FLOOD_BYTES: usize = 250_000;
