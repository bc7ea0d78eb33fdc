//! What the configuration says of nodes, and the nodes that it names itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use protocols::sip::Transport;

use super::announcement::{Announcement, Source, port_properties};
use crate::config::{Config, HostPort, RampUp, Silence, StaticNode};
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
        }
    }
}

/// Addresses of extra servers that are no nodes, and the nodes that the configuration names, by identity.
pub(super) fn configured(
    rules: &Rules,
    names: &BTreeMap<String, Vec<IpAddr>>,
) -> (Vec<SocketAddr>, Vec<(Origin, Announcement)>) {
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
    (servers, nodes)
}

fn plain(ip: IpAddr, host_name: String, ports: Ports) -> Announcement {
    let mut properties = port_properties(&ports);
    properties.insert("version".to_owned(), "0".to_owned());
    let source = Source::Configured;
    Announcement { source, host_name, ports, properties, ..Announcement::of(ip, Version(0)) }
}
