//! What the configuration says of nodes, and the nodes that it names itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use protocols::sip::Transport;

use super::Refused;
use super::announcement::{Announcement, Source, port_properties};
use crate::config::{Config, HostPort, RampUp, Silence, StaticNode};
use crate::names::literal;
use crate::node::{Origin, Ports, Version};

/// What the configuration says of nodes.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// Silence after which a node is taken out.
    pub node_timeout: Duration,
    /// Period of the expiry check.
    pub heartbeat_interval: Duration,
    /// How long a node that refused is avoided.
    pub suspect_time: Duration,
    /// Errors that a node may answer before it is bad.
    pub errors_max: u32,
    /// Errors further apart than this do not add up.
    pub error_time: Duration,
    /// After which a bad node is tried again.
    pub probation: Option<Duration>,
    /// Silence detection.
    pub silence: Option<Silence>,
    /// Ramp-up, shown by [`Health::weight`].
    pub ramp_up: Option<RampUp>,
    /// `extraServerNodes`.
    pub extra: Vec<HostPort>,
    /// Extra servers are live nodes.
    pub extra_are_nodes: bool,
    /// `staticNodes`.
    pub fixed: Vec<StaticNode>,
    /// Where we listen ourselves, as far as it is written as addresses: there is no node.
    pub own: BTreeSet<Own>,
}

/// An address of ours. All transports but UDP share the ports of TCP.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Own {
    /// Where.
    pub address: SocketAddr,
    /// Whether by TCP and what is above it.
    pub is_stream: bool,
}

impl Own {
    /// Listening addresses, and those of the IP load balancer and the public address, which lead to them.
    fn all(config: &Config) -> BTreeSet<Own> {
        let mut all = BTreeSet::new();
        for leg in [&config.external, &config.internal] {
            let families = [
                (
                    (&leg.host, &config.host, IpAddr::from(Ipv4Addr::LOCALHOST)),
                    (&leg.ports, leg.balancer_ports),
                    (&leg.balancer, &config.public_ip),
                ),
                (
                    (&leg.ipv6_host, &config.ipv6_host, IpAddr::from(Ipv6Addr::LOCALHOST)),
                    (&leg.ipv6_ports, leg.ipv6_balancer_ports),
                    (&leg.ipv6_balancer, &config.public_ipv6),
                ),
            ];
            for ((host, common, loopback), (ports, balancer_ports), (balancers, public)) in families
            {
                let host = host.as_ref().or(common.as_ref());
                // On every address: of those we know one.
                let ip = host.map_or(Some(loopback), |it| literal(it));
                let ip = ip.map(|it| if it.is_unspecified() { loopback } else { it });
                let others = balancers.iter().chain(public).filter_map(|it| literal(it));
                for (ip, (transport, port)) in ip.into_iter().chain(others).flat_map(|ip| {
                    ports.iter().chain(balancer_ports.iter()).map(move |it| (ip, it))
                }) {
                    let address = SocketAddr::new(ip, port);
                    all.insert(Own { address, is_stream: transport.is_stream() });
                }
            }
        }
        all
    }
}

impl Rules {
    /// An address of ours that these words claim.
    pub(super) fn claimed(&self, said: &Announcement) -> Option<SocketAddr> {
        let mut ports = said.ports.iter().map(|(transport, port)| Own {
            address: SocketAddr::new(said.ip, port),
            is_stream: transport.is_stream(),
        });
        ports.find(|it| self.own.contains(it)).map(|it| it.address)
    }

    /// Whether there can be such a node (`http-smpp-registry.md` 3.1).
    pub(super) fn check(&self, said: &Announcement) -> Result<(), Refused> {
        super::check(said)?;
        self.claimed(said).map_or(Ok(()), |address| Err(Refused::Own { address }))
    }
}

impl From<&Config> for Rules {
    fn from(config: &Config) -> Rules {
        Rules {
            node_timeout: config.node_timeout,
            heartbeat_interval: config.heartbeat_interval,
            suspect_time: config.suspect_time,
            errors_max: config.errors_max,
            error_time: config.error_time,
            probation: config.probation,
            silence: config.silence,
            ramp_up: config.ramp_up,
            extra: config.extra_server_nodes.clone(),
            extra_are_nodes: config.performance_testing_mode,
            fixed: config.static_nodes.clone(),
            own: Own::all(config),
        }
    }
}

/// What the configuration names.
#[derive(Debug, Default)]
pub(super) struct Configured {
    /// Extra servers that are no nodes.
    pub servers: Vec<SocketAddr>,
    /// By identity.
    pub nodes: Vec<(Origin, Announcement)>,
    /// What is named and is ours.
    pub own: Vec<(Origin, Announcement)>,
}

/// What these rules name, with the addresses of its names.
pub(super) fn configured(rules: &Rules, names: &BTreeMap<String, Vec<IpAddr>>) -> Configured {
    let resolve = |host: &str| -> Vec<IpAddr> {
        match host.parse() {
            Ok(literal) => vec![literal],
            Err(_) => names.get(host).cloned().unwrap_or_default(),
        }
    };
    let (mut servers, mut nodes) = (Vec::new(), Vec::new());
    for (index, HostPort { host, port }) in rules.extra.iter().enumerate() {
        for ip in resolve(host) {
            if !rules.extra_are_nodes {
                servers.push(SocketAddr::new(ip, *port));
                continue;
            }
            let mut ports = Ports::default();
            ports.open(Transport::Udp, *port);
            ports.open(Transport::Tcp, *port);
            let mut node = plain(ip, format!("ExtraServerNode{index}-{host}:{port}"), ports);
            node.properties.insert("httpPort".to_owned(), format!("808{index}"));
            nodes.push((Origin::Extra, node));
        }
    }
    for StaticNode { host, ports } in &rules.fixed {
        let found = resolve(host).into_iter().map(|ip| plain(ip, host.clone(), *ports));
        nodes.extend(found.map(|it| (Origin::Static, it)));
    }
    let mut seen = BTreeSet::new();
    nodes.retain(|(_, node)| super::check(node).is_ok() && seen.insert(node.key()));
    let (own, nodes) = nodes.into_iter().partition(|(_, it)| rules.claimed(it).is_some());
    Configured { servers, nodes, own }
}

fn plain(ip: IpAddr, host_name: String, ports: Ports) -> Announcement {
    let mut properties = port_properties(&ports);
    properties.insert("version".to_owned(), "0".to_owned());
    let source = Source::Configured;
    Announcement { source, host_name, ports, properties, ..Announcement::of(ip, Version(0)) }
}
