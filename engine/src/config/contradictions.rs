//! Values that are fine alone and wrong together.

use std::net::IpAddr;

use protocols::sip::Transport;

use super::draft::Draft;
use super::keys::Generation;
use super::load::{Finding, Origin, Setting, Severity};
use super::{Config, LegConfig, Steering};

/// Adds what is wrong to the findings.
pub(super) fn find(
    draft: &Draft,
    generation: Generation,
    settings: &[Setting],
    findings: &mut Vec<Finding>,
) {
    let mut it = Search { config: &draft.config, generation, settings, findings };
    it.listeners();
    it.wildcards();
    it.families();
    it.ports_used_twice();
    it.ip_load_balancer();
    it.transports(draft);
    it.pairs();
    it.nodes(draft);
    it.security();
    it.leftovers();
}

struct Search<'s> {
    config: &'s Config,
    generation: Generation,
    settings: &'s [Setting],
    findings: &'s mut Vec<Finding>,
}

impl Search<'_> {
    fn listeners(&mut self) {
        let external = &self.config.external;
        let is_closed = external.ports.is_empty() && external.ipv6_ports.is_empty();
        let opening = [
            "externalPort",
            "externalSecurePort",
            "externalUdpPort",
            "externalTcpPort",
            "externalTlsPort",
            "externalWsPort",
            "externalWssPort",
        ];
        if is_closed && !self.is_refused(&opening) {
            let is_xml = self.generation == Generation::Xml;
            let key = if is_xml { "sip/external/udpPort" } else { "externalPort" };
            self.error(&opening, format!("nothing listens on the client side; set {key}"));
        }
        for (leg, name) in [(external, "externalHost"), (&self.config.internal, "internalHost")] {
            let host = leg.host.as_ref().or(self.config.host.as_ref());
            if !leg.ports.is_empty() && host.is_none() && !self.is_refused(&["host", name]) {
                self.error(&[name], "no address to listen on; set host".to_owned());
            }
        }
        let internal = &self.config.internal;
        if internal.host.is_some() && internal.ports.is_empty() && internal.ipv6_ports.is_empty() {
            self.warn(
                &["internalHost"],
                "without any internal port there is no node side; clients and nodes share one leg"
                    .to_owned(),
            );
        }
    }

    /// What a leg listens on stands in Via and Record-Route, and peers must be able to send there.
    fn wildcards(&mut self) {
        let config = self.config;
        let (common, common_v6) = (config.host.as_ref(), config.ipv6_host.as_ref());
        let legs = [
            (&config.external, true, ["externalHost", "externalIpv6Host"]),
            (&config.internal, false, ["internalHost", "internalIpv6Host"]),
        ];
        for (leg, is_external, [name, ipv6_name]) in legs {
            let v4 = (leg.host.as_ref().or(common), &leg.ports, &leg.balancer, leg.balancer_ports);
            let v6 = (
                leg.ipv6_host.as_ref().or(common_v6),
                &leg.ipv6_ports,
                &leg.ipv6_balancer,
                leg.ipv6_balancer_ports,
            );
            let publics = [(&config.public_ip, "public-ip"), (&config.public_ipv6, "public-ipv6")];
            let names = [[name, "host"], [ipv6_name, "ipv6Host"]];
            for (((host, ports, balancer, shown), (public, public_name)), names) in
                [v4, v6].into_iter().zip(publics).zip(names)
            {
                let Some(host) = host.filter(|it| is_wildcard(it)) else { continue };
                let is_behind = !balancer.is_empty()
                    && ports.iter().all(|(transport, _)| shown.of(transport).is_some());
                if ports.is_empty() {
                    continue;
                }
                if is_behind || (is_external && public.is_some()) {
                    if ports.of(Transport::Udp).is_some() {
                        let text = format!(
                            "{host}: over UDP messages leave from the address that the kernel's \
                             routes choose; where there are several, set the one that peers know"
                        );
                        self.note(&names, text);
                    }
                    continue;
                }
                let mut text = format!(
                    "{host} would stand in Via and Record-Route, where nobody can send to; set an \
                     address of this machine"
                );
                if is_external {
                    text += &format!(", or {}", self.spell(public_name));
                }
                self.error(&names, text);
            }
        }
    }

    /// A leg has one address of each family, and neither stands in for the other.
    fn families(&mut self) {
        let config = self.config;
        let (external, internal) = (&config.external, &config.internal);
        for (v4, v6, at) in [
            ("host", "ipv6Host", (&config.host, &config.ipv6_host)),
            ("externalHost", "externalIpv6Host", (&external.host, &external.ipv6_host)),
            ("internalHost", "internalIpv6Host", (&internal.host, &internal.ipv6_host)),
            ("public-ip", "public-ipv6", (&config.public_ip, &config.public_ipv6)),
        ] {
            let is_v6 = |it: &Option<String>| it.as_ref().is_some_and(|it| it.contains(':'));
            let is_v4 = |it: &Option<String>| {
                it.as_ref().is_some_and(|it| it.parse::<std::net::Ipv4Addr>().is_ok())
            };
            if is_v6(at.0) && self.written(&[v4]).is_some() {
                self.error(&[v4], format!("an IPv6 address; it belongs in {}", self.spell(v6)));
            }
            if is_v4(at.1) {
                self.error(&[v6], format!("an IPv4 address; it belongs in {}", self.spell(v4)));
            }
        }
    }

    fn ports_used_twice(&mut self) {
        let mut used: Vec<(String, bool, u16, String)> = Vec::new();
        let mut twice: Vec<(String, String, u16)> = Vec::new();
        let mut take = |host: &str, is_stream: bool, port: u16, name: String| {
            for (other, stream, number, first) in &used {
                if *stream == is_stream && *number == port && share_address(other, host) {
                    twice.push((first.clone(), name.clone(), port));
                }
            }
            used.push((host.to_owned(), is_stream, port, name));
        };
        let config = self.config;
        for (leg, side) in [(&config.external, "external"), (&config.internal, "internal")] {
            let v4 = leg.host.as_ref().or(config.host.as_ref());
            let v6 = leg.ipv6_host.as_ref().or(config.ipv6_host.as_ref());
            for (host, ports, family) in [(v4, &leg.ports, ""), (v6, &leg.ipv6_ports, "Ipv6")] {
                for (transport, port) in ports.iter() {
                    let name = format!("{side}{family}{}Port", in_key(transport));
                    take(host.map_or("", String::as_str), transport.is_stream(), port, name);
                }
            }
        }
        if let Some(port) = config.statistic_port {
            // It is open on every address of both families.
            for host in ["0.0.0.0", "::"] {
                take(host, true, port, "statisticPort".to_owned());
            }
        }
        let beats = &config.heartbeats;
        for (port, name) in [
            (beats.rmi_port, "rmiRegistryPort"),
            (beats.rmi_object_port.filter(|it| beats.rmi_port != Some(*it)), "rmiRemoteObjectPort"),
            (beats.http_port, "heartbeatPort"),
        ] {
            // One that is only a default gives way.
            if let Some(port) = port.filter(|_| self.written(&[name]).is_some()) {
                take(config.host.as_deref().unwrap_or_default(), true, port, name.to_owned());
            }
        }
        for (port, name) in [(config.http.port, "httpPort"), (config.http.tls_port, "httpsPort")] {
            if let Some(port) = port {
                take("0.0.0.0", true, port, name.to_owned());
            }
        }
        let host = config.smpp.external_host.as_ref().or(config.smpp.host.as_ref());
        let host = host.map_or("0.0.0.0", String::as_str);
        for (port, name) in [(config.smpp.port, "smppPort"), (config.smpp.tls_port, "smppSslPort")]
        {
            if let Some(port) = port {
                take(host, true, port, name.to_owned());
            }
        }
        for (first, second, port) in twice {
            let group = |it: &str| {
                let secure = it.replace("Tls", "Secure").replace("Wss", "Secure");
                secure.replace("Udp", "").replace("Tcp", "").replace("Ws", "")
            };
            let first = self.place(&[&first, &group(&first)]).0.unwrap_or(first);
            let text = format!("{first} has port {port} on the same address already");
            self.error(&[&second, &group(&second)], text);
        }
    }

    fn ip_load_balancer(&mut self) {
        let config = self.config;
        let has_two = !config.internal.ports.is_empty() || !config.internal.ipv6_ports.is_empty();
        for (leg, side) in [(&config.external, "external"), (&config.internal, "internal")] {
            let v4 = (&leg.balancer, &leg.balancer_ports, &leg.ports, "Ip");
            let v6 = (&leg.ipv6_balancer, &leg.ipv6_balancer_ports, &leg.ipv6_ports, "Ipv6");
            let host = leg.host.as_ref().or(config.host.as_ref());
            let ipv6_host = leg.ipv6_host.as_ref().or(config.ipv6_host.as_ref());
            for ((addresses, ports, listening, family), host) in [(v4, host), (v6, ipv6_host)] {
                let stem = format!("{side}{family}LoadBalancer");
                let address = format!("{stem}Address");
                let [port, udp, tcp] =
                    ["Port", "UdpPort", "TcpPort"].map(|it| format!("{stem}{it}"));
                if !addresses.is_empty() && ports.is_empty() {
                    self.error(
                        &[&address],
                        format!("an address without a port; set {}", self.spell(&udp)),
                    );
                } else if addresses.is_empty() && !ports.is_empty() {
                    let address = self.spell(&address);
                    let text = format!("a port without an address does nothing; set {address}");
                    self.warn(&[&port, &udp, &tcp], text);
                } else if !addresses.is_empty() {
                    for (transport, _) in listening.iter().filter(|it| ports.of(it.0).is_none()) {
                        let via = transport.as_via();
                        let text =
                            format!("no port for {via}; messages over {via} show our own address");
                        self.note(&[&address], text);
                    }
                    // Peers see that we are not where Via says, and answer to where we are.
                    let others: Vec<String> = listening
                        .iter()
                        .filter_map(|(transport, port)| {
                            let shown = ports.of(transport).filter(|it| *it != port)?;
                            Some(format!("{shown} and not {port} over {}", transport.as_via()))
                        })
                        .collect();
                    let is_elsewhere = addresses.first() != host;
                    if config.ip_load_balancer_in_via && is_elsewhere && !others.is_empty() {
                        let text = format!(
                            "{}: answers come to our own address and the port in Via (RFC 3261 \
                             18.2.2), {}; give it our ports, unless it puts its address into what \
                             we send",
                            self.spell(&address),
                            others.join(", ")
                        );
                        self.warn(&["useIpLoadBalancerAddressInViaHeaders"], text);
                    }
                }
            }
        }
        if has_two {
            let pairs =
                |leg: &LegConfig| [(leg.balancer_ports, "Ip"), (leg.ipv6_balancer_ports, "Ipv6")];
            for ((outer, family), (inner, _)) in
                pairs(&config.external).into_iter().zip(pairs(&config.internal))
            {
                for (transport, _) in outer.iter().filter(|it| inner.of(it.0).is_none()) {
                    let name =
                        |side| format!("{side}{family}LoadBalancer{}Port", in_key(transport));
                    let (external, internal) = (name("external"), name("internal"));
                    self.error(
                        &[&external, &format!("external{family}LoadBalancerPort")],
                        format!(
                            "the node side needs such a port, too; set {}",
                            self.spell(&internal)
                        ),
                    );
                }
            }
        }
    }

    fn transports(&mut self, draft: &Draft) {
        let config = self.config;
        if draft.is_transport_ws {
            for name in ["externalTcpPort", "internalTcpPort"] {
                if self.written(&[name]).is_some() {
                    let text = "opens TCP although isTransportWs asks for WebSocket".to_owned();
                    self.warn(&[name], text);
                }
            }
        }
        let families = [
            (config.external.ports, config.internal.ports, ""),
            (config.external.ipv6_ports, config.internal.ipv6_ports, "Ipv6"),
        ];
        for (outer, inner, family) in families {
            if inner.is_empty() || outer.is_empty() {
                continue;
            }
            let towards = |it: Transport| match (config.internal_transport, it) {
                (Some(forced), _) => forced,
                (None, Transport::Tls) if config.terminate_tls => Transport::Tcp,
                (None, Transport::Wss) if config.terminate_tls => Transport::Ws,
                (None, same) => same,
            };
            for (transport, _) in outer.iter().filter(|it| inner.of(towards(it.0)).is_none()) {
                let name = format!("external{family}{}Port", in_key(transport));
                let needed = towards(transport);
                let missing = self.spell(&format!("internal{family}{}Port", in_key(needed)));
                let text = format!(
                    "the node side has no port for {}: what comes by {} cannot reach nodes; set \
                     {missing}",
                    needed.as_via(),
                    transport.as_via()
                );
                let secure = matches!(transport, Transport::Tls | Transport::Wss);
                let group = if secure { "externalSecurePort" } else { "externalPort" };
                self.warn(&[&name, group], text);
            }
        }
        let outer = &config.external;
        let opens = |it| outer.ports.of(it).or(outer.ipv6_ports.of(it)).is_some();
        let is_clear = config.internal_transport.map_or(config.terminate_tls, |it| !it.is_secure());
        if is_clear && (opens(Transport::Tls) || opens(Transport::Wss)) {
            self.note(
                &["terminateTLSTraffic", "sip.internalTransport"],
                "what is addressed to sips: goes on to nodes without TLS, too".to_owned(),
            );
        }
        let ports = [
            ("external", "", config.external.ports),
            ("external", "Ipv6", config.external.ipv6_ports),
            ("internal", "", config.internal.ports),
            ("internal", "Ipv6", config.internal.ipv6_ports),
        ];
        for (side, family, ports) in ports.iter().filter(|_| config.tls.key_store.is_none()) {
            for transport in [Transport::Tls, Transport::Wss] {
                if ports.of(transport).is_some() {
                    let name = format!("{side}{family}{}Port", in_key(transport));
                    let key = self.spell("javax.net.ssl.keyStore");
                    let text = format!("stays closed: there is no certificate; set {key}");
                    self.warn(&[&name, &format!("{side}SecurePort")], text);
                }
            }
        }
    }

    fn pairs(&mut self) {
        for (one, other) in [
            ("trafficRampupCyclePeriod", "trafficPercentageIncrease"),
            ("maxRequestNumberWithoutResponse", "maxResponseTime"),
        ] {
            for (set, missing) in [(one, other), (other, one)] {
                if self.written(&[set]).is_some() && self.written(&[missing]).is_none() {
                    self.warn(&[set], format!("does nothing without {}", self.spell(missing)));
                }
            }
        }
        let config = self.config;
        if config.legacy_contact_patching
            && config.public_ip.is_none()
            && config.public_ipv6.is_none()
        {
            self.warn(
                &["legacyContactPatching"],
                format!("does nothing without {}", self.spell("public-ip")),
            );
        }
        if config.performance_testing_mode && config.extra_server_nodes.is_empty() {
            self.warn(
                &["performanceTestingMode"],
                format!("does nothing without {}", self.spell("extraServerNodes")),
            );
        }
        if config.http.unavailable_redirects && config.http.unavailable.is_none() {
            let text = format!("does nothing without {}", self.spell("unavailableHost"));
            self.warn(&["unavailableRedirect"], text);
        }
        for (port, name) in [
            (config.heartbeats.rmi_port, "rmiRegistryPort"),
            (config.heartbeats.http_port, "heartbeatPort"),
        ] {
            let written = self.written(&[name]).and_then(|it| it.text.parse::<u16>().ok());
            if port.is_none() && written.is_some_and(|it| it > 0) {
                let class = self.spell("heartbeat.configclass");
                self.warn(&[name], format!("stays closed: {class} asks for another protocol"));
            }
        }
        if config.smpp.port.is_none() && config.smpp.tls_port.is_some() {
            let text = format!("SMPP opens only with {}", self.spell("smppPort"));
            self.warn(&["smppSslPort"], text);
        }
        if config.smpp.port.is_some() && config.smpp.servers.is_empty() {
            let text = "no SMPP servers but nodes that announce smppPort".to_owned();
            self.note(&["smppPort"], text);
        }
        if config.route_subdomains && config.route_hostname.is_none() {
            let text = format!("does nothing without {}", self.spell("matchingHostnameForRoute"));
            self.warn(&["isFilterSubdomain"], text);
        }
        if config.send_5xx_reason.is_some() && !config.send_5xx {
            let text = format!("does nothing unless {} is true", self.spell("isSend5xxResponse"));
            self.warn(&["isSend5xxResponseReasonHeader"], text);
        }
        let scanners = "org.mobicents.ext.javax.sip.congestion.SIP_SCANNERS";
        if self.written(&[scanners]).is_some() && !config.congestion_valve {
            let valve = self.spell("gov.nist.javax.sip.SIP_MESSAGE_VALVE");
            self.warn(&[scanners], format!("does nothing without the valve in {valve}"));
        }
        if config.always_add_rport && config.never_add_received_rport {
            let text = "ALWAYS_ADD_RPORT then only counts over UDP".to_owned();
            self.note(&["gov.nist.javax.sip.NEVER_ADD_RECEIVED_RPORT"], text);
        }
    }

    fn nodes(&mut self, draft: &Draft) {
        let config = self.config;
        if config.node_timeout <= config.heartbeat_interval {
            let text = format!(
                "nodes may stay silent for {} ms but are only looked at every {} ms",
                config.node_timeout.as_millis(),
                config.heartbeat_interval.as_millis()
            );
            self.warn(&["nodeTimeout", "heartbeatInterval"], text);
        }
        let pods = &config.kubernetes;
        if pods.is_on && pods.pull_period >= config.node_timeout {
            let text = format!(
                "pods count as silent after {} ms but are only looked at every {} ms",
                config.node_timeout.as_millis(),
                pods.pull_period.as_millis()
            );
            self.error(&["heartbeat.pullPeriod", "nodeTimeout"], text);
        }
        if pods.is_on && pods.node_name.chars().any(|it| it.is_ascii_uppercase()) {
            let text = "no pod can have such a name: names of pods are in lower case".to_owned();
            self.warn(&["heartbeat.nodeName"], text);
        }
        if config.probe.timeout > config.probe.interval {
            let text =
                "a probe waits longer than it takes to the next one; set probeInterval above it";
            self.error(&["probeTimeout", "probeInterval"], text.to_owned());
        }
        if config.algorithm == "UserBasedAlgorithm" && draft.affinity_key.is_none() {
            let text = "follows the user in To; sipHeaderAffinityKey can name another header";
            self.note(&["algorithmClass"], text.to_owned());
        }
        for (name, algorithms) in ALGORITHM_KEYS {
            if self.written(&[name]).is_some() && !algorithms.contains(&config.algorithm) {
                self.note(&[name], format!("{} does not use it", config.algorithm));
            }
        }
        if config.steering != Steering::Hash && config.shards == 1 {
            self.note(&["reuseportSteering"], "does nothing with one shard".to_owned());
        }
    }

    fn security(&mut self) {
        let config = self.config;
        if config.security_required && (config.login.is_none() || config.password.is_none()) {
            self.error(&["securityRequired"], "needs login and password".to_owned());
        }
        if config.source_rate_max > config.total_rate_max && config.total_rate_max > 0 {
            self.warn(
                &["sourceRateMax"],
                "is above totalRateMax, which is reached first".to_owned(),
            );
        }
    }

    /// Small buffers of old samples cost calls at the rates this program is for.
    fn leftovers(&mut self) {
        for name in [
            "gov.nist.javax.sip.RECEIVE_UDP_BUFFER_SIZE",
            "gov.nist.javax.sip.SEND_UDP_BUFFER_SIZE",
        ] {
            let is_small = self.written(&[name]).and_then(|it| it.text.parse::<u32>().ok());
            if is_small.is_some_and(|it| it < UDP_BUFFER_BYTES_MIN) {
                let text = format!(
                    "a burst of messages overflows so small a buffer; better leave it out \
                     ({UDP_BUFFER_BYTES_MIN} or more)"
                );
                self.warn(&[name], text);
            }
        }
    }

    /// The first of these keys that the operator wrote.
    fn written(&self, names: &[&str]) -> Option<&Setting> {
        let is_written = |it: &&Setting| it.origin != Origin::Default;
        let find = |name: &&str| self.settings.iter().find(|it| it.key.name() == *name);
        names.iter().filter_map(find).find(is_written)
    }

    /// Whether one of these keys was refused already: what follows from it is no news.
    fn is_refused(&self, names: &[&str]) -> bool {
        let keys = self.settings.iter().filter(|it| names.contains(&it.key.name()));
        let is_error = |key: &str| {
            let mut errors = self.findings.iter().filter(|it| it.severity == Severity::Error);
            errors.any(|it| it.key.as_deref() == Some(key))
        };
        keys.into_iter().any(|it| is_error(&it.name))
    }

    fn error(&mut self, names: &[&str], text: String) {
        self.add(Finding::error, names, text);
    }

    fn warn(&mut self, names: &[&str], text: String) {
        self.add(Finding::warning, names, text);
    }

    fn note(&mut self, names: &[&str], text: String) {
        self.add(Finding::note, names, text);
    }

    /// Adds a finding once: a key for UDP and TCP alike would be named twice.
    fn add(
        &mut self,
        make: fn(Option<&str>, Option<u32>, String) -> Finding,
        names: &[&str],
        text: String,
    ) {
        let (key, line) = self.place(names);
        let finding = make(key.as_deref(), line, text);
        if !self.findings.contains(&finding) {
            self.findings.push(finding);
        }
    }

    /// Where to send the operator: what was written, else the first name.
    fn place(&self, names: &[&str]) -> (Option<String>, Option<u32>) {
        match self.written(names) {
            Some(it) => (Some(it.name.clone()), it.origin.line()),
            None => (names.first().map(|it| self.spell(it)), None),
        }
    }

    /// A key as the operator would write it in this file.
    fn spell(&self, name: &str) -> String {
        let key = self.settings.iter().find(|it| it.key.name() == name).map(|it| it.key);
        let path = key.and_then(|it| it.xml.first()).filter(|_| self.generation == Generation::Xml);
        path.map_or(name, |it| it).to_owned()
    }
}

/// `Udp`, as port keys spell it.
fn in_key(transport: Transport) -> &'static str {
    match transport {
        Transport::Udp => "Udp",
        Transport::Tcp => "Tcp",
        Transport::Tls => "Tls",
        Transport::Ws => "Ws",
        Transport::Wss => "Wss",
    }
}

/// Whether sockets on both hosts can collide: the same text, or one of them is every address.
fn share_address(one: &str, other: &str) -> bool {
    let is_v6 = |it: &str| it.contains(':');
    one == other || (is_v6(one) == is_v6(other) && (is_wildcard(one) || is_wildcard(other)))
}

/// Whether a socket there takes what is sent to any address.
fn is_wildcard(host: &str) -> bool {
    let host = host.trim_matches(['[', ']']);
    host.parse::<IpAddr>().is_ok_and(|it| it.is_unspecified())
}

/// Keys that only some algorithms read.
const ALGORITHM_KEYS: [(&str, &[&str]); 8] = [
    ("callIdAffinityMaxTimeInCache", WITH_CALLS),
    ("callIdAffinityMaxCalls", WITH_CALLS),
    ("callIdAffinityGroupFailover", WITH_CALLS),
    ("userAffinityMaxTimeInCache", &["UserBasedAlgorithm"]),
    ("userAffinityGroupFailover", &["UserBasedAlgorithm"]),
    ("sipHeaderAffinityKey", WITH_HEADER),
    ("subclusterMap", &["ClusterSubdomainAffinityAlgorithm"]),
    ("earlyDialogWorstCase", &["WorstCaseUdpTestAffinityAlgorithm"]),
];
const WITH_CALLS: &[&str] = &[
    "CallIDAffinityBalancerAlgorithm",
    "ClusterSubdomainAffinityAlgorithm",
    "UserBasedAlgorithm",
    "WorstCaseUdpTestAffinityAlgorithm",
];
const WITH_HEADER: &[&str] = &[
    "HeaderConsistentHashBalancerAlgorithm",
    "PersistentConsistentHashBalancerAlgorithm",
    "PureConsistentHashBalancerAlgorithm",
    "UserBasedAlgorithm",
];
/// About 1 000 messages with their bookkeeping in the kernel.
const UDP_BUFFER_BYTES_MIN: u32 = 1024 * 1024;
