//! What of the listening points control itself needs to know.

use std::collections::BTreeSet;

use engine::balance::{self, Shard};
use engine::config::{Config, LegConfig};
use engine::names::Reach;
use engine::node::{Ports as SipPorts, Version};
use engine::snapshot::Snapshot;
use log::info;
use protocols::sip::Transport;

use super::{Ports, View};

/// What names of foreign hosts may lead to: what we have a listener for.
pub(super) fn reach(config: &Config) -> Reach {
    let is_open = |ports: fn(&LegConfig) -> &SipPorts, transport| {
        [&config.external, &config.internal].iter().any(|leg| ports(leg).of(transport).is_some())
    };
    let any = |ports: fn(&LegConfig) -> &SipPorts| {
        Transport::ALL.into_iter().any(|it| is_open(ports, it))
    };
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

/// `HTTP LB listening on port 2080`
pub(super) fn opened_http(ports: &Ports) {
    for (name, port) in [("HTTP", ports.http), ("HTTPS", ports.https)] {
        if let Some(port) = port {
            info!("{name} LB listening on port {port}");
        }
    }
}

/// `SMPP Load Balancer started at 127.0.0.1 : 2776`
pub(super) fn opened_smpp(ports: &Ports, config: &Config) {
    let Some(port) = ports.smpp else { return };
    let (name, host) = smpp_name(config);
    let mode = if config.smpp.mux { "MUX" } else { "Load balance" };
    info!("{mode} mode enabled for SMPP");
    info!("{name} started at {host} : {port}");
    if let Some(port) = ports.smpp_tls {
        info!("{name} uses port : {port} for TLS clients.");
    }
}

/// `Balancer algorithm CallIDAffinityBalancerAlgorithm loaded succesfully for cluster version = 0`: for each
/// version that comes up, spelled as it always was. Algorithms that remember calls say for how long, and
/// what becomes of those of a dead node.
pub(super) fn clusters(snapshot: &Snapshot, view: &View) {
    let is_new = |it: &Version| !view.snapshot.has_version(*it);
    let versions = snapshot.nodes().iter().map(|it| it.version).filter(is_new);
    for version in versions.collect::<BTreeSet<_>>() {
        let (algorithm, version) = (view.config.algorithm, version.0);
        info!("Balancer algorithm {algorithm} loaded succesfully for cluster version = {version}");
        if remembers_calls(&view.config) {
            let Config { call_idle, group_failover, .. } = &*view.config;
            let seconds = call_idle.as_secs();
            info!("Call Idle Time is {seconds} seconds. Inactive calls will be evicted.");
            info!("Grouped failover is set to {group_failover}");
        }
    }
}

/// Asked of an instance with next to no memory: what shards remember is theirs.
fn remembers_calls(config: &Config) -> bool {
    let any = Shard { index: 0, scattered: false };
    let small = Config { calls_max: 1, ..config.clone() };
    balance::build(&small, any).active_calls().is_some()
}

/// Name of SMPP in log lines, and where it listens.
pub(super) fn smpp_name(config: &Config) -> (&str, &str) {
    let smpp = &config.smpp;
    let host = smpp.external_host.as_ref().or(smpp.host.as_ref());
    (smpp.name.as_deref().unwrap_or("SMPP"), host.map_or("0.0.0.0", String::as_str))
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
