//! Heartbeats through real sockets into a real registry.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Instant;

use engine::registry::Rules;
use nix::sys::epoll::{EpollCreateFlags, EpollTimeout};
use tools::ports;

use super::*;

/// The ports, a registry behind them, and what turns both.
struct Stage {
    heartbeats: Heartbeats,
    registry: Registry,
    epoll: Epoll,
    start: Instant,
}

impl Stage {
    /// One port for RMI and one for HTTP.
    fn open(edit: impl Fn(&mut Config)) -> Stage {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        let mut config = Config { host: Some("127.0.0.1".to_owned()), ..Config::default() };
        let [rmi, object, http] = [(); 3].map(|()| ports::free());
        config.heartbeats.rmi_port = Some(rmi);
        config.heartbeats.rmi_object_port = Some(object);
        config.heartbeats.http_port = Some(http);
        edit(&mut config);
        let heartbeats = Heartbeats::open(&config, 1, &epoll).unwrap();
        let registry = Registry::new(Time::ZERO, Rules::from(&config), &BTreeMap::default());
        Stage { heartbeats, registry, epoll, start: Instant::now() }
    }

    fn address(&self, port: usize) -> SocketAddr {
        self.heartbeats.ports[port].listener.local_addr().unwrap()
    }

    fn now(&self) -> Time {
        Time::ZERO + self.start.elapsed()
    }

    /// Turns it until nothing has happened for a moment.
    fn turn(&mut self) {
        let mut events = [EpollEvent::empty(); 16];
        loop {
            let count = self.epoll.wait(&mut events, EpollTimeout::from(50_u16)).unwrap();
            if count == 0 {
                return;
            }
            for event in &events[..count] {
                assert!(Heartbeats::owns(event.data()));
                let now = self.now();
                let Stage { heartbeats, registry, epoll, .. } = self;
                heartbeats.handle_ready(now, event.data(), epoll, registry);
            }
        }
    }

    fn talk(&mut self, port: usize, bytes: &[u8]) -> Vec<u8> {
        let mut stream = TcpStream::connect(self.address(port)).unwrap();
        stream.write_all(bytes).unwrap();
        self.turn();
        stream.set_nonblocking(true).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer); // open or closed, what there is
        answer
    }

    fn post(&mut self, body: &str) -> String {
        let length = body.len();
        let request = format!("POST / HTTP/1.1\r\nContent-Length: {length}\r\n\r\n{body}");
        String::from_utf8(self.talk(HTTP, request.as_bytes())).unwrap()
    }
}

const RMI: usize = 0;
const HTTP: usize = 2;
const GREETING: &[u8] = b"JRMI\0\x02K";

#[test]
fn commands_by_http_are_answered_and_connections_closed() {
    let mut it = Stage::open(|_| {});
    let start = r#"{"start":{"hostName":"n","ip":"127.0.0.1","udpPort":"1","sessionId":"7"}}"#;
    assert!(it.post(start).ends_with("\r\n\r\n{\"start\":\"OK\"}"));
    assert_eq!(it.registry.live().count(), 1);
    let alive = it.post(r#"{"heartbeat":{"sessionId":7}}"#);
    assert!(alive.starts_with("HTTP/1.1 200 OK\r\n") && alive.ends_with(r#"{"heartbeat":"OK"}"#));
    assert!(it.post(r#"{"heartbeat":{"sessionId":8}}"#).ends_with(r#"{"heartbeat":"NOK"}"#));
    for nonsense in ["", "{", "[]", r#"{"restart":{}}"#, r#"{"start":{}}"#] {
        let answer = it.post(nonsense);
        assert!(answer.starts_with("HTTP/1.1 400 "), "{nonsense}: {answer}");
    }
    assert!(it.talk(HTTP, b"\x16\x03\x01").starts_with(b"HTTP/1.1 400 "));
    assert!(it.post(r#"{"stop":{"sessionId":7}}"#).ends_with(r#"{"stop":"OK"}"#));
    assert_eq!(it.registry.live().count(), 0);
    it.turn();
    let figures = it.heartbeats.figures();
    assert_eq!((figures.json, figures.malformed, figures.connections), (5, 6, 0));
    assert_eq!(it.heartbeats.held_bytes, 0);
}

#[test]
fn an_rmi_client_is_greeted_and_rubbish_is_cut_off() {
    let mut it = Stage::open(|_| {});
    for port in [RMI, RMI + 1] {
        assert_eq!(it.talk(port, GREETING)[..3], [0x4e, 0, 9], "127.0.0.1 has nine letters");
    }
    let rubbish: [&[u8]; 3] = [b"GET / HTTP/1.1\r\n\r\n", b"JRMI\0\x02M", &[0; 100]];
    for bytes in rubbish {
        assert_eq!(it.talk(RMI, bytes), b"", "{bytes:?}");
    }
    it.turn();
    let figures = it.heartbeats.figures();
    assert_eq!((figures.malformed, figures.connections, it.heartbeats.held_bytes), (3, 0, 0));
}

#[test]
fn slow_and_idle_connections_end_in_time() {
    let mut it = Stage::open(|_| {});
    let addresses = [it.address(RMI), it.address(HTTP)];
    let streams: Vec<TcpStream> =
        addresses.iter().map(|it| TcpStream::connect(it).unwrap()).collect();
    (&streams[0]).write_all(&GREETING[..3]).unwrap();
    (&streams[1]).write_all(b"POST / HTTP/1.1\r\n").unwrap();
    it.turn();
    assert_eq!((it.heartbeats.open.len(), it.heartbeats.held_bytes), (2, 20));
    let due = it.heartbeats.poll_timeout().unwrap();
    it.heartbeats.handle_timeout(due, &it.epoll);
    assert_eq!(it.heartbeats.open.len(), 2, "they have their time");
    it.heartbeats.handle_timeout(due + Duration::from_secs(6), &it.epoll);
    assert_eq!((it.heartbeats.open.len(), it.heartbeats.held_bytes), (0, 0));
    assert_eq!(it.heartbeats.poll_timeout(), None);
}

/// Calls that never end, a mebibyte each: more than there is room for.
#[test]
fn what_is_held_is_bounded_over_all_connections() {
    let mut it = Stage::open(|_| {});
    let address = it.address(HTTP);
    let piece = vec![b' '; 64 * 1024];
    let mut streams = Vec::new();
    for _ in 0..40 {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"POST / HTTP/1.1\r\nContent-Length: 1048576\r\n\r\n").unwrap();
        it.turn();
        for _ in 0..15 {
            let _ = stream.write_all(&piece); // it may have been cut off
            it.turn();
        }
        streams.push(stream);
        assert!(it.heartbeats.held_bytes <= HELD_BYTES_MAX);
    }
    let held: usize = it.heartbeats.open.values().map(Open::held_bytes).sum();
    assert_eq!(held, it.heartbeats.held_bytes);
    assert!(it.heartbeats.open.len() < 40 && it.heartbeats.figures().refused > 0);
}

/// With three places: as many as there are by default take twice as many files as a test may open.
#[test]
fn when_the_table_is_full_the_idlest_makes_room_and_who_speaks_stays() {
    let mut it = Stage::open(|_| {});
    assert_eq!(it.heartbeats.connections_max, CONNECTIONS_MAX);
    it.heartbeats.connections_max = 3;
    let address = it.address(RMI);
    // Opened one after the other; the oldest is the one that speaks last.
    let mut nodes: Vec<TcpStream> = Vec::new();
    for _ in 0..3 {
        nodes.push(TcpStream::connect(address).unwrap());
        it.turn();
    }
    for node in [&nodes[1], &nodes[2], &nodes[0]] {
        (&*node).write_all(GREETING).unwrap();
        it.turn();
    }
    nodes.push(TcpStream::connect(address).unwrap());
    it.turn();
    (&nodes[3]).write_all(GREETING).unwrap();
    it.turn();
    assert_eq!((it.heartbeats.open.len(), it.heartbeats.figures().refused), (3, 1));
    for (at, node) in nodes.iter_mut().enumerate() {
        let mut answer = Vec::new();
        node.set_nonblocking(true).unwrap();
        let end = node.read_to_end(&mut answer);
        assert_eq!(answer.first(), Some(&0x4e), "node {at} was greeted");
        assert_eq!(end.is_ok(), at == 1, "node {at}: the idlest is closed, {end:?}");
    }
    // Who was closed opens another connection and is served as ever.
    let mut again = TcpStream::connect(address).unwrap();
    it.turn();
    again.write_all(&[GREETING, &lookup()].concat()).unwrap();
    it.turn();
    let mut answer = [0; 1024];
    let count = again.read(&mut answer).unwrap();
    assert!(answer[..count].windows(10).any(|it| it == b"UnicastRef"), "{count} bytes");
    assert_eq!(it.heartbeats.open.len(), 3);
    let held: usize = it.heartbeats.open.values().map(Open::held_bytes).sum();
    assert_eq!(held, it.heartbeats.held_bytes);
}

#[test]
fn only_those_in_heartbeat_sources_are_heard() {
    let network = |prefix| Network { ip: "127.0.0.0".parse().unwrap(), prefix };
    for (prefix, want) in [(32, false), (8, true)] {
        let mut it = Stage::open(|config| config.heartbeat_sources = vec![network(prefix)]);
        assert_eq!(!it.talk(RMI, GREETING).is_empty(), want, "/{prefix}");
    }
}

#[test]
fn a_written_port_must_be_free_and_a_default_gives_way() {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let free = ports::free();
    let mut config = Config { host: Some("127.0.0.1".to_owned()), ..Config::default() };
    config.unwritten_ports.clear();
    let ports = |config: &Config| {
        let it = Heartbeats::open(config, 1, &epoll)?;
        Ok::<_, String>((it.ports.len(), it.object_port))
    };
    (config.heartbeats.rmi_port, config.heartbeats.rmi_object_port) = (Some(free), Some(port));
    let why = ports(&config).unwrap_err();
    assert!(why.starts_with(&format!("rmiRemoteObjectPort={port}: 127.0.0.1:{port}: ")), "{why}");
    config.unwritten_ports = vec![port];
    assert_eq!(ports(&config), Ok((1, free)), "one port can serve both");

    (config.heartbeats.rmi_port, config.heartbeats.rmi_object_port) = (Some(port), Some(free));
    assert_eq!(ports(&config), Ok((0, 0)), "without a registry nobody finds the object");
    config.unwritten_ports.clear();
    assert!(ports(&config).unwrap_err().starts_with(&format!("rmiRegistryPort={port}: ")));

    // Another listener of ours, which is not open yet.
    (config.heartbeats.rmi_port, config.statistic_port) = (Some(free), Some(free));
    config.unwritten_ports = vec![free];
    assert_eq!(ports(&config), Ok((0, 0)));
}

/// What follows the greeting: the client's own address, then `Registry.lookup("SIPBalancer")`.
fn lookup() -> Vec<u8> {
    let mut bytes = b"\0\x01x\0\0\0\0\x50\xac\xed\0\x05\x77\x22".to_vec();
    bytes.extend([0; 22]); // the registry
    bytes.extend(2_i32.to_be_bytes());
    bytes.extend(4_905_912_898_345_647_071_i64.to_be_bytes());
    bytes.extend(b"\x74\0\x0bSIPBalancer");
    bytes
}

/// Where it listens on every address, a node is told the one that it has called, whichever family it has.
#[test]
fn who_calls_any_address_finds_the_object_there() {
    let believed = Network { ip: "127.0.0.0".parse().unwrap(), prefix: 8 };
    for any in ["0.0.0.0", "::"] {
        let mut it = Stage::open(|config| {
            config.host = Some(any.to_owned());
            config.heartbeat_sources = vec![believed];
        });
        let called = SocketAddr::new("127.0.0.7".parse().unwrap(), it.address(RMI).port());
        let own = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        own.bind(&"127.0.0.9:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        own.connect(&called.into()).unwrap();
        let mut stream = TcpStream::from(own);
        stream.write_all(&[GREETING, &lookup()].concat()).unwrap();
        it.turn();
        let mut answer = Vec::new();
        stream.set_nonblocking(true).unwrap();
        let _ = stream.read_to_end(&mut answer);
        let stub = b"\0\x09127.0.0.7";
        assert!(answer.windows(stub.len()).any(|it| it == stub), "{any}: {answer:?}");
    }
}

#[test]
fn the_stub_names_the_address_that_was_called_or_the_one_that_is_configured() {
    let mut it = Stage::open(|_| {});
    let called: IpAddr = "127.0.0.7".parse().unwrap();
    let object = it.address(RMI + 1).port();
    assert_eq!(
        (it.heartbeats.stub(called).host.as_str(), it.heartbeats.stub(called).port),
        ("127.0.0.7", object)
    );
    let mut config = Config::default();
    config.heartbeats.rmi_stub_host = Some("lb.example.com".to_owned());
    it.heartbeats.configure(&config);
    assert_eq!(it.heartbeats.stub(called).host, "lb.example.com");
}
