//! `java.rmi` itself against our side of JRMP, before there is a process around it: the state machine in
//! the smallest server that can be, and a JVM as the node.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use protocols::heartbeat::jrmp::{Connection, Event, Flow, Stub, Uid};
use protocols::time::Time;
use tests::{JavaNode, Layout, wait_for};

/// What the server has seen.
#[derive(Default)]
struct Log {
    events: Vec<Event>,
    connections: usize,
    /// Tests of a connection before it is used again.
    pings: usize,
    /// Leases, of which all but the first are renewals.
    leases: usize,
    /// Ends of leases.
    cleans: usize,
    errors: Vec<String>,
}

/// Registry and object on one port.
struct Server {
    address: SocketAddr,
    log: Arc<Mutex<Log>>,
}

impl Server {
    fn start() -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let log: Arc<Mutex<Log>> = Arc::default();
        let shared = Arc::clone(&log);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let log = Arc::clone(&shared);
                thread::spawn(move || serve(stream, &log));
            }
        });
        Server { address, log }
    }

    /// Events so far; the list is empty afterwards.
    fn events(&self) -> Vec<Event> {
        std::mem::take(&mut self.log.lock().unwrap().events)
    }
}

fn serve(mut stream: TcpStream, log: &Mutex<Log>) {
    let start = Instant::now();
    let local = stream.local_addr().unwrap();
    let uid = Uid { unique: 1, time: 2, count: 3 };
    let stub = Stub { host: local.ip().to_string(), port: local.port(), object: 4711, uid };
    let peer = stream.peer_addr().unwrap();
    let mut connection = Connection::new(Time::ZERO, peer, stub, Uid { count: 4, ..uid });
    log.lock().unwrap().connections += 1;
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        let now = Time::ZERO + start.elapsed();
        let mut out = Vec::new();
        let flow = connection.handle_bytes(now, &buffer[..count], &mut out);
        let mut log = log.lock().unwrap();
        log.events.extend(std::iter::from_fn(|| connection.poll_event()));
        log.pings += usize::from(out == [0x53]);
        let collector = &[0, 0, 0, 0, 0, 0, 0, 2][..];
        if buffer[..count].windows(8).any(|it| it == collector) {
            let lease = out.windows(9).any(|it| it == b"dgc.Lease");
            *if lease { &mut log.leases } else { &mut log.cleans } += 1;
        }
        log.errors.extend(flow.err().map(|it| it.to_string()));
        drop(log);
        stream.write_all(&out).unwrap();
        if flow != Ok(Flow::Open) {
            return;
        }
    }
}

/// Name, address and properties of the nodes of one ping.
fn texts(event: &Event) -> Vec<String> {
    let (Event::Ping(nodes) | Event::ForceRemoval(nodes)) = event else { panic!("{event:?}") };
    let text = |node: &protocols::heartbeat::NodeWords| {
        let mut pairs: Vec<String> =
            node.properties.iter().map(|(name, value)| format!("{name}={value}")).collect();
        pairs.sort();
        format!("{} {} {}", node.host_name, node.ip, pairs.join(" "))
    };
    nodes.iter().map(text).collect()
}

#[test]
fn a_jvm_finds_us_and_says_everything_a_node_can_say() {
    for layout in [Layout::Old, Layout::New] {
        let server = Server::start();
        let Some(mut java) = JavaNode::start(layout, server.address.port(), &[]) else { return };
        assert_eq!(java.tell("list"), "SIPBalancer", "{layout:?}");
        assert_eq!(java.tell("ping"), "ok", "{layout:?}: an empty list");
        java.tell("node n1 10.0.0.1 udpPort=int:5080 tcpPort=int:5080 jvmRoute=a version=0");
        java.tell("node n2 fe80::1%2 udpPort=5080 name=größer𝄞");
        assert_eq!(java.tell("ping"), "ok", "{layout:?}");
        assert_eq!(java.tell("switchover a b"), "ok", "{layout:?}");
        assert_eq!(java.tell("remove"), "ok", "{layout:?}");
        let events = server.events();
        let [empty, ping, switchover, removal] = &events[..] else { panic!("{events:?}") };
        assert_eq!(texts(empty), [""; 0], "{layout:?}");
        let nodes = [
            "n1 10.0.0.1 jvmRoute=a tcpPort=5080 udpPort=5080 version=0",
            "n2 fe80::1%2 name=größer𝄞 udpPort=5080",
        ];
        assert_eq!(texts(ping), nodes, "{layout:?}");
        let (from, to) = ("a".to_owned(), "b".to_owned());
        assert_eq!(*switchover, Event::SwitchOver { from, to }, "{layout:?}");
        assert_eq!(texts(removal), nodes, "{layout:?}");
        let mut log = server.log.lock().unwrap();
        assert_eq!(std::mem::take(&mut log.errors), [""; 0], "{layout:?}");
    }
}

#[test]
fn a_jvm_keeps_its_connections_renews_its_lease_and_lets_go() {
    let server = Server::start();
    let options = ["-Djava.rmi.dgc.leaseValue=1000"];
    let Some(mut java) = JavaNode::start(Layout::New, server.address.port(), &options) else {
        return;
    };
    java.tell("node n1 127.0.0.1 udpPort=int:5080");
    assert_eq!(java.tell("every 50 60"), "ok");
    assert_eq!(server.events().len(), 60);
    let connections = {
        let log = server.log.lock().unwrap();
        assert!(log.leases >= 3, "{} leases of a second in three", log.leases);
        assert!(log.pings >= 60, "{} of 120 calls on a connection that was there", log.pings);
        log.connections
    };
    assert!(connections <= 4, "{connections}");
    wait_for("the end of the lease", || {
        java.tell("collect");
        (server.log.lock().unwrap().cleans > 0).then_some(())
    });
    assert_eq!(java.tell("ping"), "ok");
    assert_eq!(server.log.lock().unwrap().errors, [""; 0]);
}

/// A huge list is refused and the node told so; what it says afterwards is heard.
#[test]
fn a_jvm_that_says_too_much_gets_an_exception_and_may_go_on() {
    let server = Server::start();
    let Some(mut java) = JavaNode::start(Layout::Old, server.address.port(), &[]) else { return };
    for index in 0..600 {
        let pairs: Vec<String> = (0..20).map(|it| format!("p{it}={index}")).collect();
        java.tell(&format!("node n{index} 10.0.0.1 {}", pairs.join(" ")));
    }
    let answer = java.tell("ping");
    assert!(answer.starts_with("java.rmi."), "{answer}");
    java.tell("clear");
    assert_eq!(java.tell("ping"), "ok");
    assert_eq!(server.events(), [Event::Ping(vec![])]);
    let log = server.log.lock().unwrap();
    assert!(log.errors.iter().all(|it| it.contains("values")), "{:?}", log.errors);
    assert!(!log.errors.is_empty());
}
