//! What the relay needs of the configuration, worked out once: own addresses, legs, texts to insert.
//!
//! `sip.md` 1.1 (legs), 2.4 ("is this URI me?"), 2.5 (Via), 2.6 (Record-Route), 2.8 (transports).

use std::net::{IpAddr, SocketAddr};

use protocols::sip::Transport;
use protocols::sip::uri::Uri;
use regex::bytes::Regex;

use super::words::Words;
use crate::config::{Config, Pattern};
use crate::relay::{Hop, Leg, Listener, ListenerId};
use crate::snapshot::Family;

/// The configuration as the relay uses it. Immutable: a reload makes the next one.
#[derive(Debug)]
pub struct Settings {
    /// Where it came from.
    pub config: Config,
    /// Every listener; [`ListenerId`] is the position.
    pub listeners: Vec<Listener>,
    /// Addresses of `extraServerNodes`, resolved: servers that we know, and no nodes.
    pub extra_servers: Vec<SocketAddr>,
    /// Signs flow tokens; the same on all shards of a process.
    pub secret: [u8; 16],
    own: Vec<SocketAddr>,
    own_names: Vec<(String, Vec<u16>)>,
    own_vias: Vec<(String, Transport)>,
    places: [[[Option<Place>; 5]; 2]; 2],
    two_entry: [bool; 2],
    blocked: Option<Words>,
    scanners: Option<Words>,
    exclusion: Option<Regex>,
    rules: Vec<(Regex, bool)>,
}

/// One leg, family and transport: the socket, and how we write ourselves there.
#[derive(Clone, Debug)]
pub struct Place {
    /// Socket to send from.
    pub listener: ListenerId,
    /// `SIP/2.0/UDP host:port`.
    pub via: String,
    /// `<sip:host:port;transport=udp;lr`, to be followed by the stamp and `>`.
    pub record_route: String,
    /// The same for peers that must not see the IP load balancer (`patch=false` rules).
    pub own_via: String,
    /// The same for peers that must not see the IP load balancer.
    pub own_record_route: String,
}

impl Settings {
    /// Works everything out. `listeners` are bound addresses, so that port 0 is already a real port.
    pub fn new(
        config: Config,
        listeners: Vec<Listener>,
        extra_servers: Vec<SocketAddr>,
        secret: [u8; 16],
    ) -> Settings {
        let blocked = Words::new(&config.blocked_values);
        let scanners = Words::new(&config.scanners).filter(|_| config.congestion_valve);
        let exclusion = config.affinity_exclusion.as_ref().and_then(whole);
        let rules = config
            .routing_rules
            .iter()
            .filter_map(|rule| whole(&rule.ip).map(|ip| (ip, rule.patch)))
            .collect();
        let mut it = Settings {
            exclusion,
            rules,
            own: Vec::new(),
            own_names: Vec::new(),
            own_vias: Vec::new(),
            places: Default::default(),
            two_entry: [false; 2],
            blocked,
            scanners,
            config,
            listeners,
            extra_servers,
            secret,
        };
        for (index, listener) in it.listeners.clone().into_iter().enumerate() {
            let Ok(index) = u8::try_from(index) else { break };
            it.open(ListenerId(index), listener);
        }
        it
    }

    #[allow(clippy::indexing_slicing)] // legs, families and transports index arrays of their own size
    fn open(&mut self, id: ListenerId, listener: Listener) {
        let Listener { leg, transport, address } = listener;
        let family = Family::of(address.ip());
        if leg == Leg::Internal {
            self.two_entry[family as usize] = true;
        }
        let config = match leg {
            Leg::External => &self.config.external,
            Leg::Internal => &self.config.internal,
        };
        let (balancers, balancer_ports, public) = match family {
            Family::V4 => (&config.balancer, config.balancer_ports, &self.config.public_ip),
            Family::V6 => {
                (&config.ipv6_balancer, config.ipv6_balancer_ports, &self.config.public_ipv6)
            }
        };
        let everywhere = public.clone();
        let public = public.clone().filter(|_| leg == Leg::External);
        let balancers = balancers.clone();
        let host = public.clone().unwrap_or_else(|| address.ip().to_string());
        let own = format!("{}:{}", bracketed(&host), address.port());
        let balanced = balancers.first().zip(balancer_ports.of(transport));
        let balanced = balanced
            .map_or_else(|| own.clone(), |(host, port)| format!("{}:{port}", bracketed(host)));
        let via = |sent_by: &str| format!("SIP/2.0/{} {sent_by}", transport.as_via());
        let record_route =
            |host_port: &str| format!("<sip:{host_port};transport={};lr", transport.as_param());
        let in_via = if self.config.ip_load_balancer_in_via { &balanced } else { &own };
        let place = Place {
            listener: id,
            via: via(in_via),
            record_route: record_route(&balanced),
            own_via: via(&own),
            own_record_route: record_route(&own),
        };
        for text in [&place.via, &place.own_via] {
            if !self.own_vias.iter().any(|(it, _)| it == text) {
                self.own_vias.push((text.clone(), transport));
            }
        }
        self.places[leg as usize][family as usize][transport.index()] = Some(place);

        let mut ports = vec![address.port()];
        ports.extend(balancer_ports.of(transport));
        self.own.push(address);
        // A router in front of us may hand the node side's ports through, too.
        for name in balancers.iter().chain(&everywhere) {
            self.mean_us(name, &ports);
        }
        let (host, ipv6_host) = match leg {
            Leg::External => (&self.config.external.host, &self.config.external.ipv6_host),
            Leg::Internal => (&self.config.internal.host, &self.config.internal.ipv6_host),
        };
        let configured = match family {
            Family::V4 => host.clone().or_else(|| self.config.host.clone()),
            Family::V6 => ipv6_host.clone().or_else(|| self.config.ipv6_host.clone()),
        };
        if let Some(name) = configured {
            // The IP load balancer may hand over what was sent to its own port.
            self.mean_us(&name, &ports);
        }
    }

    fn mean_us(&mut self, host: &str, ports: &[u16]) {
        match host.parse::<IpAddr>() {
            Ok(ip) => {
                for port in ports {
                    let address = SocketAddr::new(ip, *port);
                    if !self.own.contains(&address) {
                        self.own.push(address);
                    }
                }
            }
            Err(_) => {
                let name = host.to_ascii_lowercase();
                match self.own_names.iter_mut().find(|(it, _)| *it == name) {
                    Some((_, known)) => known.extend_from_slice(ports),
                    None => self.own_names.push((name, ports.to_vec())),
                }
            }
        }
    }

    /// Whether host and port are one of our own, an IP load balancer's or the public address.
    /// The transport does not matter beyond its default port.
    pub fn is_me(&self, host: &[u8], ip: Option<IpAddr>, port: u16) -> bool {
        match ip {
            Some(ip) => self.own.contains(&SocketAddr::new(ip, port)),
            None => self.own_names.iter().any(|(name, ports)| {
                name.as_bytes().eq_ignore_ascii_case(host) && ports.contains(&port)
            }),
        }
    }

    /// Whether we listen at this address, on whatever port.
    pub fn is_my_ip(&self, ip: IpAddr) -> bool {
        self.own.iter().any(|it| it.ip() == ip)
    }

    /// Every way in which we write ourselves into Via: `SIP/2.0/UDP host:port`, and what it says there.
    pub fn own_vias(&self) -> &[(String, Transport)] {
        &self.own_vias
    }

    /// Whether a SIP URI names us.
    pub fn is_my_uri(&self, uri: &Uri<'_>) -> bool {
        !uri.host.is_empty() && self.is_me(uri.host, uri.host_ip(), uri.own_port())
    }

    /// Whether a Route host is the configured name for us (`matchingHostnameForRoute`).
    pub fn is_my_route_name(&self, host: &[u8]) -> bool {
        let Some(name) = &self.config.route_hostname else { return false };
        let name = name.as_bytes();
        if host.eq_ignore_ascii_case(name) {
            return true;
        }
        let Some(dot) = host.len().checked_sub(name.len() + 1) else { return false };
        self.config.route_subdomains
            && host.get(dot) == Some(&b'.')
            && host.get(dot + 1..).is_some_and(|it| it.eq_ignore_ascii_case(name))
    }

    /// The listener of an id.
    ///
    /// # Panics
    ///
    /// If the id is not of this list: a bug of ours.
    #[allow(clippy::indexing_slicing)]
    pub fn listener(&self, id: ListenerId) -> &Listener {
        &self.listeners[usize::from(id.0)]
    }

    /// What a hop is reached by.
    pub fn transport_of(&self, hop: Hop) -> Option<Transport> {
        let from = match hop {
            Hop::Datagram { from, .. } | Hop::Stream { from, .. } => from,
            Hop::Flow { or, .. } => or?.0,
        };
        Some(self.listener(from).transport)
    }

    /// Socket and texts of one leg, family and transport. In single-entry mode both legs are one.
    #[allow(clippy::indexing_slicing)] // legs, families and transports index arrays of their own size
    pub fn place(&self, leg: Leg, family: Family, transport: Transport) -> Option<&Place> {
        let leg = if self.is_two_entry(family) { leg } else { Leg::External };
        self.places[leg as usize][family as usize][transport.index()].as_ref()
    }

    /// Whether nodes have a leg of their own in this family.
    #[allow(clippy::indexing_slicing)] // two families
    pub fn is_two_entry(&self, family: Family) -> bool {
        self.two_entry[family as usize]
    }

    /// Transport towards nodes for what came in over `transport` (`sip.md` 2.8).
    pub fn towards_nodes(&self, transport: Transport) -> Transport {
        match (self.config.internal_transport, transport) {
            (Some(forced), _) => forced,
            (None, Transport::Tls) if self.config.terminate_tls => Transport::Tcp,
            (None, Transport::Wss) if self.config.terminate_tls => Transport::Ws,
            (None, same) => same,
        }
    }

    /// Whether nodes may see another transport than clients use.
    pub fn switches_transport(&self) -> bool {
        self.config.terminate_tls || self.config.internal_transport.is_some()
    }

    /// Whether a peer must see our own address rather than the IP load balancer's. `scratch` is a buffer
    /// to write the address into.
    pub fn hides_balancer(&self, peer: IpAddr, scratch: &mut Vec<u8>) -> bool {
        if self.rules.is_empty() {
            return false;
        }
        scratch.clear();
        protocols::bytes::write_ip(scratch, peer);
        self.rules.iter().any(|(ip, patch)| !patch && ip.is_match(scratch))
    }

    /// Whether an affinity value does not count (`sipHeaderAffinityKeyExclusionPattern`).
    pub fn excludes(&self, value: &[u8]) -> bool {
        self.exclusion.as_ref().is_some_and(|it| it.is_match(value))
    }

    /// Words that are blocked, if there are any.
    pub(super) fn blocked(&self) -> Option<&Words> {
        self.blocked.as_ref()
    }

    /// Words that get no answer but in a call, if there are any (`SIP_SCANNERS`).
    pub(super) fn scanners(&self) -> Option<&Words> {
        self.scanners.as_ref()
    }

    /// Whether heartbeats from this address are believed.
    pub fn believes_heartbeats_of(&self, source: IpAddr) -> bool {
        self.config.believes_heartbeats_of(source)
    }
}

/// Java's `matches()`: the pattern must cover the whole text.
fn whole(pattern: &Pattern) -> Option<Regex> {
    Regex::new(&format!("^(?:{})$", pattern.0.as_str())).ok()
}

fn bracketed(host: &str) -> String {
    if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load;
    use crate::relay::listeners;

    /// The external leg on `lb.example`, the internal one on an address.
    const LEGS: &str = "externalHost=lb.example\nexternalPort=5060\nexternalTlsPort=5061\n\
        internalHost=172.16.0.1\ninternalPort=5065\n";

    fn settings(more: &str) -> Settings {
        let config = load("t", format!("{LEGS}{more}").as_bytes(), &[]).config;
        let listeners = listeners(&config, &|_, _| Ok("192.0.2.1".parse().unwrap())).unwrap();
        Settings::new(config, listeners, Vec::new(), [0; 16])
    }

    const BALANCERS: &str = "externalIpLoadBalancerAddress=198.51.100.1,198.51.100.2,sbc.example\n\
        externalIpLoadBalancerUdpPort=5070\ninternalIpLoadBalancerAddress=172.16.9.1\n\
        internalIpLoadBalancerUdpPort=5075\n";

    #[test]
    fn these_uris_are_ours_and_those_are_not() {
        let cases = [
            ("", "sip:192.0.2.1:5060", true),
            ("", "sip:192.0.2.1", true),
            ("", "sip:192.0.2.1;transport=sctp", true),
            ("", "sips:192.0.2.1", true),
            ("", "sip:192.0.2.1:5061;transport=udp", true),
            ("", "sip:192.0.2.1:5065", false),
            ("", "sip:172.16.0.1:5065", true),
            ("", "sip:172.16.0.1", false),
            ("", "sip:LB.example", true),
            ("", "sip:lb.example:5061", true),
            ("", "sip:lb.example:5065", false),
            ("", "sip:b.example", false),
            (BALANCERS, "sip:198.51.100.1:5070", true),
            (BALANCERS, "sip:198.51.100.2:5070", true),
            (BALANCERS, "sip:198.51.100.2:5060", true),
            (BALANCERS, "sip:sbc.example:5070", true),
            (BALANCERS, "sip:198.51.100.2:5075", false),
            (BALANCERS, "sip:192.0.2.1:5070", false),
            (BALANCERS, "sip:lb.example:5070", true),
            (BALANCERS, "sip:172.16.9.1:5075", true),
            (BALANCERS, "sip:172.16.9.1:5065", true),
            ("public-ip=203.0.113.9\n", "sip:203.0.113.9", true),
            ("public-ip=203.0.113.9\n", "sip:203.0.113.9:5065", true),
            ("public-ip=203.0.113.9\n", "sip:203.0.113.9:5066", false),
        ];
        for (more, uri, want) in cases {
            let is_mine = settings(more).is_my_uri(&Uri::parse(uri.as_bytes()).unwrap());
            assert_eq!(is_mine, want, "{uri} with {more:?}");
        }
    }

    #[test]
    fn the_first_ip_load_balancer_is_shown_where_it_has_a_port_for_the_transport() {
        let of = |transport, more: &str| {
            let settings = settings(&format!("{BALANCERS}{more}"));
            let place = settings.place(Leg::External, Family::V4, transport).unwrap();
            (place.via.clone(), place.record_route.clone())
        };
        let in_via = "useIpLoadBalancerAddressInViaHeaders=true\n";
        for (transport, more, via, host) in [
            (Transport::Udp, "", "SIP/2.0/UDP 192.0.2.1:5060", "198.51.100.1:5070"),
            (Transport::Udp, in_via, "SIP/2.0/UDP 198.51.100.1:5070", "198.51.100.1:5070"),
            (Transport::Tcp, in_via, "SIP/2.0/TCP 192.0.2.1:5060", "192.0.2.1:5060"),
            (Transport::Tls, "", "SIP/2.0/TLS 192.0.2.1:5061", "192.0.2.1:5061"),
        ] {
            let (name, want) = (transport.as_param(), (via.to_owned(), host));
            let route = format!("<sip:{};transport={name};lr", want.1);
            assert_eq!(of(transport, more), (want.0, route), "{more:?}");
        }
    }
}
