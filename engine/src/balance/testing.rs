//! Nodes, tables, queries and a configuration for the tests of the algorithms.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use protocols::sip::Transport;
use protocols::time::Time;

use super::{Algorithm, Query, Shard, find};
use crate::config::{AffinityKey, Config, LegConfig, Probe, Steering};
use crate::node::{Node, NodeKey, Origin, Ports, Version};
use crate::snapshot::{Family, NodeId, Snapshot};

pub(crate) const SHARD: Shard = Shard { index: 0, scattered: false };

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
        host_name: String::new(),
        ip,
        ports,
        version: Version(version),
        session: None,
        properties: BTreeMap::new(),
        graceful: false,
        bad: None,
        suspect: false,
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
        family: Family::V4,
        transport: Transport::Udp,
        is_first: true,
        is_ack: false,
        in_dialog: false,
        status: None,
    }
}

pub(crate) fn in_dialog(call_id: &[u8]) -> Query<'_> {
    Query { is_first: false, in_dialog: true, ..query(call_id) }
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
    Config {
        host: None,
        log_level: log::LevelFilter::Info,
        ipv6_host: None,
        external: LegConfig::default(),
        internal: LegConfig::default(),
        ip_load_balancer_in_via: false,
        node_timeout: Duration::from_millis(8_400),
        heartbeat_interval: Duration::from_secs(1),
        shutdown_timeout: Duration::ZERO,
        statistic_port: None,
        security_required: false,
        login: None,
        password: None,
        algorithm: super::ALGORITHMS[0].name,
        call_idle: Duration::from_secs(500),
        group_failover: false,
        affinity_key: AffinityKey::CallId,
        affinity_exclusion: None,
        affinity_fallback: AffinityKey::CallId,
        http_affinity_key: String::new(),
        subclusters: Vec::new(),
        early_dialog_worst_case: false,
        ramp_up: None,
        public_ip: None,
        public_ipv6: None,
        legacy_contact_patching: false,
        send_trying: false,
        blocked_values: Vec::new(),
        blocked_response: None,
        extra_server_nodes: Vec::new(),
        performance_testing_mode: false,
        static_nodes: Vec::new(),
        probe: Probe { interval: Duration::ZERO, timeout: Duration::ZERO, rise: 1, fall: 1 },
        terminate_tls: false,
        internal_transport: None,
        send_5xx: false,
        send_5xx_cause: 0,
        send_5xx_reason: None,
        no_node_status: 500,
        error_codes: Vec::new(),
        error_reason: None,
        errors_max: 5,
        error_time: Duration::ZERO,
        silence: None,
        use_with_nexmo: false,
        route_hostname: None,
        route_subdomains: false,
        routing_rules: Vec::new(),
        always_add_rport: false,
        never_add_received_rport: false,
        message_bytes_max: 65_536,
        udp_keepalive: None,
        stream_idle: Duration::ZERO,
        heartbeat_sources: Vec::new(),
        source_rate_max: 0,
        total_rate_max: 0,
        shards: 1,
        steering: Steering::Hash,
        coalesce: Duration::ZERO,
        calls_max: 1_000,
        suspect_time: Duration::from_secs(1),
        connections_max: 0,
        udp_receive_buffer_bytes: 0,
        udp_send_buffer_bytes: 0,
    }
}
