//! Nodes, tables, queries and a configuration for the tests of the algorithms.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use protocols::sip::Transport;
use protocols::time::Time;

use super::{Algorithm, Query, Shard, find};
use crate::config::Config;
use crate::node::{Node, NodeKey, Origin, Ports, Suspect, Version, Way};
use crate::snapshot::{Family, NodeId, Snapshot};

pub(crate) const SHARD: Shard = Shard { index: 0, scattered: false };

/// The way that most tests go.
pub(crate) const UDP: Way = Way::Sip(Transport::Udp);

/// Node 10.0.x.y with UDP 5060 and TCP 5060, version 0, joined at the start.
pub(crate) fn node(number: u16) -> Node {
    let [high, low] = number.to_be_bytes();
    node_at(IpAddr::V4(Ipv4Addr::new(10, 0, high, low)), 0)
}

/// The same anywhere, of any version.
pub(crate) fn node_at(ip: IpAddr, version: i32) -> Node {
    let mut ports = Ports::default();
    ports.open(Transport::Udp, 5060);
    ports.open(Transport::Tcp, 5060);
    let mut it = Node {
        key: NodeKey(0),
        former: Vec::new(),
        host_name: String::new(),
        ip,
        ports,
        version: Version(version),
        session: None,
        properties: BTreeMap::new(),
        graceful: false,
        bad: None,
        suspect: Suspect::default(),
        joined: Time::ZERO,
        origin: Origin::Heartbeat,
    };
    identify(&mut it);
    it
}

/// Recomputes the identity after a change of ports.
pub(crate) fn identify(node: &mut Node) {
    node.key = NodeKey::of(node.ip, node.version, &node.ports);
}

pub(crate) fn snapshot(generation: u64, nodes: Vec<Node>) -> Snapshot {
    Snapshot::new(generation, nodes, &[])
}

/// A first request over UDP and IPv4 whose affinity text is its Call-ID.
pub(crate) fn query(call_id: &[u8]) -> Query<'_> {
    Query {
        now: Time::from_millis(1_000),
        key: call_id,
        call_id,
        version: Version(0),
        names_version: false,
        family: Family::V4,
        transport: Transport::Udp,
        is_first: true,
        is_ack: false,
        in_dialog: false,
        status: None,
        is_again: false,
    }
}

pub(crate) fn in_dialog(call_id: &[u8]) -> Query<'_> {
    Query { is_first: false, in_dialog: true, names_version: true, ..query(call_id) }
}

pub(crate) fn cancel(call_id: &[u8]) -> Query<'_> {
    Query { is_first: false, ..query(call_id) }
}

pub(crate) fn ack(call_id: &[u8]) -> Query<'_> {
    Query { is_first: false, is_ack: true, ..query(call_id) }
}

pub(crate) fn response(call_id: &[u8], status: u16) -> Query<'_> {
    Query { is_first: false, status: Some(status), ..query(call_id) }
}

pub(crate) fn build(name: &str, config: &Config) -> Box<dyn Algorithm> {
    (find(name).unwrap().build)(config, SHARD)
}

/// Which node of `table` an id names, by the last two numbers of its address.
pub(crate) fn number(table: &Snapshot, id: Option<NodeId>) -> Option<u16> {
    id.map(|it| match table.node(it).ip {
        IpAddr::V4(ip) => u16::from_be_bytes([ip.octets()[2], ip.octets()[3]]),
        IpAddr::V6(ip) => ip.segments()[7],
    })
}

/// xorshift64: the same numbers for the same seed, everywhere.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn one_in(&mut self, times: u64) -> bool {
        self.next().is_multiple_of(times)
    }
}

/// One shard, 1 000 calls, 500 s.
pub(crate) fn config() -> Config {
    Config { shards: 1, calls_max: 1_000, ..Config::default() }
}
