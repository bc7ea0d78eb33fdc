//! What stands still: settings read from a real configuration, nodes, relays.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use engine::balance::Shard;
use engine::config;
use engine::node::{Node, NodeKey, Origin, Ports, Suspect, Version};
use engine::relay::sip::{Relay, Settings};
use engine::relay::{Arrival, Flow, Leg, Listener, ListenerId};
use protocols::sip::Transport;
use protocols::time::Time;

/// Where callers find the balancer.
pub const EXTERNAL: SocketAddr =
    SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1)), 5060);
/// Where nodes find it, with two legs.
pub const INTERNAL: SocketAddr =
    SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(172, 16, 0, 1)), 5065);

/// Settings with their listeners: one for UDP and one for TCP on every leg.
#[derive(Clone, Debug)]
pub struct Stage {
    /// As every shard's relay gets them.
    pub settings: Arc<Settings>,
}

impl Stage {
    /// Reads a configuration; addresses and ports of the two legs stand in front of `lines`.
    ///
    /// # Panics
    ///
    /// If the configuration has errors.
    pub fn new(two_legs: bool, lines: &str) -> Stage {
        let mut text = format!("host={}\nexternalPort={}\n", EXTERNAL.ip(), EXTERNAL.port());
        if two_legs {
            text += &format!("internalHost={}\ninternalPort={}\n", INTERNAL.ip(), INTERNAL.port());
        }
        text += lines;
        let loaded = config::load("stage.properties", text.as_bytes(), &[]);
        assert!(!loaded.has_errors(), "{:?}", loaded.findings);
        let mut listeners = Vec::new();
        for (leg, address) in [(Leg::External, EXTERNAL), (Leg::Internal, INTERNAL)] {
            if leg == Leg::External || two_legs {
                for transport in [Transport::Udp, Transport::Tcp] {
                    listeners.push(Listener { leg, transport, address });
                }
            }
        }
        let settings = Settings::new(loaded.config, listeners, Vec::new(), *b"0123456789abcdef");
        Stage { settings: Arc::new(settings) }
    }

    /// One shard's relay.
    pub fn relay(&self, shard: Shard) -> Relay {
        Relay::new(Arc::clone(&self.settings), shard)
    }

    /// A message's arrival on a leg; streams come on one connection per source.
    ///
    /// # Panics
    ///
    /// If there is no such listener.
    pub fn arrival(
        &self,
        now: Time,
        leg: Leg,
        transport: Transport,
        source: SocketAddr,
    ) -> Arrival {
        let listeners = self.settings.listeners.iter();
        let at = listeners.zip(0..).find(|(it, _)| (it.leg, it.transport) == (leg, transport));
        let (_, index) = at.expect("a listener of this leg and transport");
        let flow = Flow { shard: 0, slot: u32::from(source.port()), generation: 1 };
        Arrival {
            now,
            listener: ListenerId(index),
            source,
            flow: transport.is_stream().then_some(flow),
        }
    }
}

/// Where the node of a number listens: UDP and TCP on one port.
pub fn node_address(number: u16) -> SocketAddr {
    let [high, low] = number.to_be_bytes();
    SocketAddr::new(IpAddr::from([172, 16, 100 + high, low]), 5080)
}

/// A live node.
pub fn node(number: u16, version: i32) -> Node {
    let address = node_address(number);
    let mut ports = Ports::default();
    ports.open(Transport::Udp, address.port());
    ports.open(Transport::Tcp, address.port());
    let version = Version(version);
    Node {
        key: NodeKey::of(address.ip(), version, &ports),
        former: Vec::new(),
        host_name: format!("node{number}"),
        ip: address.ip(),
        ports,
        version,
        session: Some("1".to_owned()),
        properties: BTreeMap::new(),
        graceful: false,
        bad: None,
        suspect: Suspect::default(),
        joined: Time::ZERO,
        origin: Origin::Heartbeat,
    }
}
