//! What of the listening points control itself needs to know.

use engine::config::{Config, LegConfig};
use engine::names::Reach;
use engine::node::Ports;
use protocols::sip::Transport;

/// What names of foreign hosts may lead to: what we have a listener for.
pub(super) fn reach(config: &Config) -> Reach {
    let is_open = |ports: fn(&LegConfig) -> &Ports, transport| {
        [&config.external, &config.internal].iter().any(|leg| ports(leg).of(transport).is_some())
    };
    let any =
        |ports: fn(&LegConfig) -> &Ports| Transport::ALL.into_iter().any(|it| is_open(ports, it));
    Reach {
        transports: Transport::ALL
            .map(|it| is_open(|leg| &leg.ports, it) || is_open(|leg| &leg.ipv6_ports, it)),
        ipv4: any(|leg| &leg.ports),
        ipv6: any(|leg| &leg.ipv6_ports),
    }
}

/// `Sip Balancer started on external address 127.0.0.1, external port : 5060, internalPort : 5065`
pub(super) fn started(config: &Config) -> String {
    let first = |leg: &LegConfig| leg.ports.iter().chain(leg.ipv6_ports.iter()).next();
    let external = &config.external;
    let address = [&external.host, &config.host, &external.ipv6_host, &config.ipv6_host];
    let address = address.into_iter().flatten().next().map_or("0.0.0.0", String::as_str);
    let port = first(external).map_or(0, |it| it.1);
    let mut line =
        format!("Sip Balancer started on external address {address}, external port : {port}");
    if let Some((_, port)) = first(&config.internal) {
        line += &format!(", internalPort : {port}");
    }
    line
}

/// Leg, host, transport and port of each, as the stop lines name them.
pub(super) fn listening_points(config: &Config) -> Vec<(&'static str, &str, Transport, u16)> {
    let legs = [("external", &config.external), ("internal", &config.internal)];
    let mut points = Vec::new();
    for (name, leg) in legs {
        let families = [
            (&leg.ports, leg.host.as_ref().or(config.host.as_ref()), "0.0.0.0"),
            (&leg.ipv6_ports, leg.ipv6_host.as_ref().or(config.ipv6_host.as_ref()), "::"),
        ];
        for (ports, host, any) in families {
            let host = host.map_or(any, String::as_str);
            points.extend(ports.iter().map(|(transport, port)| (name, host, transport, port)));
        }
    }
    points
}
