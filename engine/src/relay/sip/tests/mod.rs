//! The relay as bytes in, bytes out: one story per test.

mod delivery;
mod explanations;
mod inwards;
mod keys;
mod nonsense;
mod outwards;
mod sources;
mod transports;
mod websocket;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use protocols::time::Time;

use super::*;
use crate::balance::testing::UDP;
use crate::config;
use crate::names::Target;
use crate::node::{Bad, Node, NodeKey, Origin, Ports, Suspect, Version};
use crate::relay::{Flow, Listener, ListenerId};

const TWO_LEGS: &str =
    "host=10.0.0.1\nexternalPort=5060\ninternalHost=172.16.0.1\ninternalPort=5065\n";
const CLIENT: &str = "203.0.113.5:5062";
const NODE: &str = "172.16.0.10:5080";

/// One balancer with its nodes, without sockets.
struct World {
    relay: Relay,
    snapshot: Snapshot,
    out: Vec<u8>,
    now: Time,
}

impl World {
    fn new(config: &str) -> World {
        World {
            relay: Relay::new(Arc::new(settings(config)), Shard { index: 0, scattered: false }),
            snapshot: Snapshot::new(1, Vec::new(), &[]),
            out: Vec::new(),
            now: Time::from_millis(1_000),
        }
    }

    fn with_nodes(mut self, nodes: &[&str]) -> World {
        self.set_nodes(nodes, &[]);
        self
    }

    /// Nodes as `ip:port[,version]`, every transport on the same port.
    fn set_nodes(&mut self, nodes: &[&str], dead: &[&str]) {
        let nodes = nodes.iter().map(|it| node(it)).collect();
        let dead: Vec<SocketAddr> = dead.iter().map(|it| it.parse().unwrap()).collect();
        self.snapshot = Snapshot::new(self.snapshot.generation() + 1, nodes, &dead);
    }

    fn listener(&self, leg: Leg, transport: Transport, family: Family) -> ListenerId {
        let listeners = &self.relay.settings().listeners;
        let at = listeners.iter().position(|it| {
            (it.leg, it.transport, Family::of(it.address.ip())) == (leg, transport, family)
        });
        ListenerId(at.expect("no such listener").try_into().unwrap())
    }

    fn send(&mut self, leg: Leg, transport: Transport, source: &str, message: &str) -> Verdict {
        let source: SocketAddr = source.parse().unwrap();
        let flow = transport.is_stream().then_some(FLOW);
        let listener = self.listener(leg, transport, Family::of(source.ip()));
        let arrival = Arrival { now: self.now, listener, source, flow };
        let bytes = wire(message);
        self.relay.handle(&arrival, &bytes, &self.snapshot, &mut self.out)
    }

    fn client(&mut self, message: &str) -> Verdict {
        self.send(Leg::External, Transport::Udp, CLIENT, message)
    }

    #[allow(clippy::wrong_self_convention)] // reads as the sender
    fn from_node(&mut self, message: &str) -> Verdict {
        self.send(Leg::Internal, Transport::Udp, NODE, message)
    }

    /// What was sent, with the digits of our branches replaced by `#`.
    fn sent(&self) -> String {
        let mut text = String::from_utf8(self.out.clone()).unwrap();
        let mut from = 0;
        while let Some(at) = text[from..].find("branch=z9hG4bK") {
            let start = from + at + "branch=z9hG4bK".len();
            let digits = text[start..].bytes().take_while(u8::is_ascii_hexdigit).count();
            // 16 digits, then the mark; `e` is a digit too.
            if digits == 16 || digits == 17 {
                text.replace_range(start..start + 16, "#");
            }
            from = start;
        }
        text.replace("\r\n", "\n")
    }

    fn lines(&self, name: &str) -> Vec<String> {
        let prefix = format!("{name}: ");
        self.sent().lines().filter_map(|it| it.strip_prefix(&prefix)).map(str::to_owned).collect()
    }

    fn first_line(&self) -> String {
        self.sent().lines().next().unwrap_or_default().to_owned()
    }
}

fn settings(config: &str) -> Settings {
    let loaded = config::load("test.properties", config.as_bytes(), &[]);
    assert!(!loaded.has_errors(), "{:?}", loaded.findings);
    let config = loaded.config;
    let mut listeners = Vec::new();
    for (leg, it) in [(Leg::External, &config.external), (Leg::Internal, &config.internal)] {
        let host = it.host.clone().or_else(|| config.host.clone()).unwrap();
        for (transport, port) in it.ports.iter() {
            let address = SocketAddr::new(host.parse().unwrap(), port);
            listeners.push(Listener { leg, transport, address });
        }
        let host = it.ipv6_host.clone().or_else(|| config.ipv6_host.clone());
        for (transport, port) in it.ipv6_ports.iter() {
            let address = SocketAddr::new(host.as_ref().unwrap().parse().unwrap(), port);
            listeners.push(Listener { leg, transport, address });
        }
    }
    let extra = config.extra_server_nodes.iter();
    let extra = extra.map(|it| SocketAddr::new(it.host.parse().unwrap(), it.port)).collect();
    Settings::new(config, listeners, extra, *b"0123456789abcdef")
}

const FLOW: Flow = Flow { shard: 3, slot: 77, generation: 5 };

fn node(text: &str) -> Node {
    let (address, version) = text.split_once(',').unwrap_or((text, "0"));
    let address: SocketAddr = address.parse().unwrap();
    let version = Version(version.parse().unwrap());
    let mut ports = Ports::default();
    for transport in Transport::ALL {
        ports.open(transport, address.port());
    }
    let ip: IpAddr = address.ip();
    Node {
        key: NodeKey::of(ip, version, &ports),
        former: Vec::new(),
        host_name: format!("node-{ip}"),
        ip,
        ports,
        version,
        session: None,
        properties: BTreeMap::new(),
        graceful: false,
        bad: None,
        suspect: Suspect::default(),
        joined: Time::ZERO,
        origin: Origin::Heartbeat,
    }
}

fn wire(message: &str) -> Vec<u8> {
    message.trim_start_matches('\n').replace('\n', "\r\n").into_bytes()
}

/// The connection there is gone, or nobody listens.
fn gone(hop: Hop) -> Failure {
    Failure { hop: Some(hop), reason: DropReason::ConnectionGone, again: Again::Elsewhere }
}

fn datagram(to: &str) -> impl Fn(Verdict) -> bool {
    let want: SocketAddr = to.parse().unwrap();
    move |verdict| match verdict {
        Verdict::Forward { hop: Hop::Datagram { to, .. }, .. }
        | Verdict::Reply { hop: Hop::Datagram { to, .. } } => to == want,
        _ => false,
    }
}

const INVITE: &str = "
INVITE sip:bob@example.com SIP/2.0
Via: SIP/2.0/UDP 203.0.113.5:5062;branch=z9hG4bKc1;rport
Max-Forwards: 70
From: <sip:alice@example.com>;tag=a1
To: <sip:bob@example.com>
Call-ID: 8f3ad1@203.0.113.5
CSeq: 1 INVITE
Contact: <sip:alice@203.0.113.5:5062>
Content-Type: application/sdp
Content-Length: 5

v=0
";

/// A request of the dialog that INVITE opened, from the caller, with the route set it learned.
fn in_dialog(method: &str, routes: &str, uri: &str) -> String {
    format!(
        "
{method} {uri} SIP/2.0
Via: SIP/2.0/UDP 203.0.113.5:5062;branch=z9hG4bKc2;rport
{routes}Max-Forwards: 70
From: <sip:alice@example.com>;tag=a1
To: <sip:bob@example.com>;tag=b1
Call-ID: 8f3ad1@203.0.113.5
CSeq: 2 {method}
Content-Length: 0

"
    )
}

const OUTER_ROUTE: &str =
    "<sip:10.0.0.1:5060;transport=udp;lr;node_host=172.16.0.10;node_port=5080;version=0>";
const INNER_ROUTE: &str =
    "<sip:172.16.0.1:5065;transport=udp;lr;node_host=172.16.0.10;node_port=5080;version=0>";

const NODE_INVITE: &str = "
INVITE sip:usera@127.0.0.1:5033 SIP/2.0
Via: SIP/2.0/UDP 172.16.0.10:5080;branch=z9hG4bKn1
Route: <sip:lbint@172.16.0.1:5065;transport=udp;node_host=172.16.0.10;node_port=5080;lr>
Max-Forwards: 70
X-Sip-Balancer-InitialRemoteAddr: 6.6.6.6
From: <sip:sender@example.com>;tag=n1
To: <sip:usera@example.com>
Call-ID: out1
CSeq: 1 INVITE
Contact: <sip:172.16.0.10:5080>
Content-Length: 0

";

/// The 180 or 200 that the callee sends to [`NODE_INVITE`].
fn callee_answer(world: &World, status: &str) -> String {
    let vias: String = String::from_utf8(world.out.clone())
        .unwrap()
        .lines()
        .filter(|it| it.starts_with("Via: "))
        .map(|it| format!("{it}\n"))
        .collect();
    format!(
        "
SIP/2.0 {status}
{vias}From: <sip:sender@example.com>;tag=n1
To: <sip:usera@example.com>;tag=u1
Call-ID: out1
CSeq: 1 INVITE
Content-Length: 0

"
    )
}

fn at_rank(rank: u16, address: &str) -> Target {
    Target { transport: Transport::Udp, address: address.parse().unwrap(), rank, weight: 1 }
}
