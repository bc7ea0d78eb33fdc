//! What the operator says of heartbeats by Java RMI and by HTTP: values of the keys of that section.

use std::net::IpAddr;

use super::Config;
use super::keys::Generation;

/// Where nodes announce themselves, besides SIP (`http-smpp-registry.md` 3.4, 3.5).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeartbeatConfig {
    /// Port of the RMI registry; `None` is closed.
    pub rmi_port: Option<u16>,
    /// Port of the RMI object; `None`: the registry's serves it, too.
    pub rmi_object_port: Option<u16>,
    /// Where nodes are told that the object is; `None`: the address that each of them has connected to.
    pub rmi_stub_host: Option<String>,
    /// Port of heartbeats by HTTP; `None` is closed.
    pub http_port: Option<u16>,
}

impl HeartbeatConfig {
    /// With what is asked for. `class` is `configclass`, whose name tells the protocol; without one a
    /// properties file means RMI (and HTTP where its port is written), an XML file HTTP.
    pub(super) fn chosen(mut self, class: Option<&str>, generation: Generation) -> HeartbeatConfig {
        let named = class.map(|it| it.rsplit('.').next().unwrap_or_default().to_ascii_lowercase());
        let (rmi, http) = match (named, generation) {
            (Some(it), _) if it.contains("http") => (false, true),
            // In a properties file only a port that is written opens HTTP.
            (Some(it), _) if it.contains("rmi") => (true, generation == Generation::Properties),
            (Some(_), _) => (false, false),
            (None, Generation::Properties) => (true, true),
            (None, Generation::Xml) => (false, true),
        };
        let is_named = class.is_some();
        self.http_port =
            self.http_port.filter(|_| http).or((http && is_named && !rmi).then_some(HTTP_PORT));
        self.rmi_port = self.rmi_port.filter(|_| rmi);
        self.rmi_object_port = self.rmi_object_port.filter(|_| self.rmi_port.is_some());
        self
    }
}

impl Config {
    /// Whether heartbeats from this address are believed (`heartbeatSources`).
    pub fn believes_heartbeats_of(&self, source: IpAddr) -> bool {
        self.heartbeat_sources.is_empty()
            || self.heartbeat_sources.iter().any(|it| it.contains(source))
    }

    /// Whether another listener of ours has this port, on whatever address: a port that is only a default
    /// gives way.
    pub fn has_listener_on(&self, port: u16) -> bool {
        let legs = [&self.external, &self.internal];
        let single = [
            self.statistic_port,
            self.http.port,
            self.http.tls_port,
            self.smpp.port,
            self.smpp.tls_port,
        ];
        single.contains(&Some(port))
            || legs.iter().any(|it| it.ports.contains(port) || it.ipv6_ports.contains(port))
    }
}

/// As nodes expect it.
const HTTP_PORT: u16 = 2610;
