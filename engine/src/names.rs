//! From a name to an ordered list of addresses: which lookups to make, and what their records mean.
//!
//! Reads RFC 3263 §4 (locating a SIP server), RFC 2782 (SRV), RFC 3403 (NAPTR), RFC 7118 §8 (WebSocket
//! services). [`select`] is a pure function of the records known so far: it either has the answer or
//! says which record sets are missing. Sockets, caching and retries are the shards crate's.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use protocols::sip::Transport;

/// What is to be located: the host part, port and transport of a URI (RFC 3263 §4).
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Query {
    /// Literal address (IPv6 with or without brackets) or domain name.
    pub host: String,
    /// The port, if one is written.
    pub port: Option<u16>,
    /// The transport, if one is demanded: a `transport` parameter or the Via transport of a response.
    pub transport: Option<Transport>,
    /// A `sips:` URI: only transports inside TLS will do.
    pub sips: bool,
}

/// Where to send, best first. The same records give the same answer, whoever asks and whenever: chance has its
/// part when a message chooses, which must choose as the other messages of its transaction do (§4.4).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Answer {
    /// Never empty, at most [`TARGETS_MAX`].
    pub targets: Vec<Target>,
    /// How long this may be believed, between [`TTL_MIN`] and [`TTL_MAX`].
    pub ttl: Duration,
}

/// One place to send to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Target {
    /// By what.
    pub transport: Transport,
    /// Where.
    pub address: SocketAddr,
    /// Lower ones are asked first; those of a higher one are for when they fail.
    pub rank: u16,
    /// Share among those of one rank (RFC 2782); at least 1.
    pub weight: u32,
}

/// What this process can send by; everything else is left out of the answer.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Reach {
    /// By [`Transport::index`].
    pub transports: [bool; 5],
    /// There is an IPv4 listener.
    pub ipv4: bool,
    /// There is an IPv6 listener.
    pub ipv6: bool,
}

impl Reach {
    #[allow(clippy::indexing_slicing)] // an index of five into five
    const fn has(&self, transport: Transport) -> bool {
        self.transports[transport.index()]
    }

    const fn has_family(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(_) => self.ipv4,
            IpAddr::V6(_) => self.ipv6,
        }
    }
}

/// Record types that are asked for.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Kind {
    /// IPv4 address.
    A,
    /// IPv6 address.
    Aaaa,
    /// Host and port of a service (RFC 2782).
    Srv,
    /// Services of a domain (RFC 3403).
    Naptr,
}

/// One record set to ask for: a lower-case name without the final dot, and a type.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Lookup {
    /// Owner name.
    pub name: String,
    /// Record type.
    pub kind: Kind,
}

/// One resource record, as far as it matters here.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Record {
    /// A or AAAA.
    Address(IpAddr),
    /// SRV.
    Srv {
        /// Lowest first.
        priority: u16,
        /// Share among equal priorities.
        weight: u16,
        /// Port of the service.
        port: u16,
        /// Host; empty (the root) says that there is no such service.
        target: String,
    },
    /// NAPTR.
    Naptr {
        /// Lowest first.
        order: u16,
        /// Lowest first among equal orders.
        preference: u16,
        /// `s` leads to SRV, `a` to addresses; anything else is not for SIP.
        flags: String,
        /// Such as `SIP+D2U`.
        service: String,
        /// Must be empty for SIP (RFC 3263 §4.1).
        regexp: String,
        /// Name to go on with.
        replacement: String,
    },
    /// CNAME whose target's records were not in the same answer.
    Alias(String),
}

/// Everything known under one name and type. Empty: there is nothing, or the servers do not answer.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RecordSet {
    /// In the order of the answer.
    pub records: Vec<Record>,
    /// Remaining time to live.
    pub ttl: Duration,
}

/// What [`select`] comes to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Step {
    /// Resolved.
    Done(Answer),
    /// These record sets are missing: ask for all of them, then call again.
    Need(Vec<Lookup>),
    /// There is no way to reach it.
    Unresolved(Unresolved),
}

/// Why a name leads nowhere. The message that needed it is dropped or answered with an error.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Unresolved {
    /// Neither an address literal nor a domain name.
    NotAName,
    /// No listener for the transport or address family that would be needed.
    OutOfReach,
    /// The name has no usable records.
    NoRecords {
        /// How long this may be believed.
        ttl: Duration,
    },
    /// The name servers did not answer in time.
    Timeout,
    /// Too many names are being resolved already.
    QueueFull,
}

impl std::fmt::Display for Unresolved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Unresolved::NotAName => f.write_str("not a domain name"),
            Unresolved::OutOfReach => f.write_str("no listener for its transport or family"),
            Unresolved::NoRecords { .. } => f.write_str("no such name"),
            Unresolved::Timeout => f.write_str("the name servers do not answer"),
            Unresolved::QueueFull => f.write_str("too many names are being resolved"),
        }
    }
}

/// Decides where a query leads, from the record sets that `known` returns.
///
/// Source: RFC 3263 §4.1 (transport), §4.2 (port and address).
pub fn select<'r>(
    query: &Query,
    reach: &Reach,
    known: &dyn Fn(&Lookup) -> Option<&'r RecordSet>,
) -> Step {
    let transport = query.transport.map(|it| if query.sips { inside_tls(it) } else { it });
    if let Some(ip) = literal(&query.host) {
        let transport = transport.unwrap_or_else(|| default_transport(query.sips));
        if !reach.has(transport) || !reach.has_family(ip) {
            return Step::Unresolved(Unresolved::OutOfReach);
        }
        let port = query.port.unwrap_or(transport.default_port());
        let address = SocketAddr::new(ip, port);
        let targets = vec![Target { transport, address, rank: 0, weight: 1 }];
        return Step::Done(Answer { targets, ttl: TTL_MAX });
    }
    let Some(host) = domain(&query.host) else {
        return Step::Unresolved(Unresolved::NotAName);
    };
    let mut search = Search {
        reach,
        known,
        missing: Vec::new(),
        targets: Vec::new(),
        rank: 0,
        ttl: TTL_MAX,
        negative: NEGATIVE_TTL_MAX,
    };
    match (transport, query.port) {
        (transport, Some(port)) => {
            let transport = transport.unwrap_or_else(|| default_transport(query.sips));
            search.addresses(&host, port, transport);
        }
        (Some(transport), None) => {
            if !search.service(&host, transport) && search.missing.is_empty() {
                search.addresses(&host, transport.default_port(), transport);
            }
        }
        (None, None) => search.domain(&host, query.sips),
    }
    search.finish()
}

/// The address in a literal, with or without the brackets of RFC 3261's `IPv6reference`.
pub fn literal(host: &str) -> Option<IpAddr> {
    let bare = host.strip_prefix('[').and_then(|it| it.strip_suffix(']')).unwrap_or(host);
    bare.parse().ok()
}

/// The name in the form that lookups use: lower case, no final dot. `None` if it cannot be asked for.
pub fn domain(host: &str) -> Option<String> {
    let name = host.strip_suffix('.').unwrap_or(host);
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|it| it.is_ascii_alphanumeric() || it == b'-' || it == b'_')
    };
    (name.len() <= NAME_BYTES_MAX && name.split('.').all(is_label))
        .then(|| name.to_ascii_lowercase())
}

/// One run of [`select`] over a domain name.
struct Search<'s, 'r> {
    reach: &'s Reach,
    known: &'s dyn Fn(&Lookup) -> Option<&'r RecordSet>,
    missing: Vec<Lookup>,
    targets: Vec<Target>,
    /// Of the targets that come next.
    rank: u16,
    ttl: Duration,
    negative: Duration,
}

impl<'r> Search<'_, 'r> {
    /// RFC 3263 §4.1: no transport and no port, so NAPTR, else SRV of every transport, else addresses.
    fn domain(&mut self, host: &str, sips: bool) {
        let Some(set) = self.records(host, Kind::Naptr) else { return };
        let mut services: Vec<(u16, u16, Transport, bool, &str)> = set
            .iter()
            .filter_map(|it| match it {
                Record::Naptr { order, preference, flags, service, regexp, replacement } => {
                    let transport = service_transport(service)?;
                    let leads_on = regexp.is_empty() && !replacement.is_empty();
                    let fits = self.reach.has(transport) && (!sips || is_inside_tls(transport));
                    let terminal = match flags.as_str() {
                        "s" | "S" => true,
                        "a" | "A" => false,
                        _ => return None,
                    };
                    (leads_on && fits).then_some((
                        *order,
                        *preference,
                        transport,
                        terminal,
                        replacement.as_str(),
                    ))
                }
                _ => None,
            })
            .take(RECORDS_MAX)
            .collect();
        services.sort_by_key(|it| (it.0, it.1));
        if !services.is_empty() {
            for (_, _, transport, to_srv, replacement) in services {
                let Some(name) = domain(replacement) else { continue };
                if to_srv {
                    self.srv(&name, transport);
                } else {
                    self.addresses(&name, transport.default_port(), transport);
                }
            }
            return;
        }
        let mut any = false;
        for transport in [Transport::Udp, Transport::Tcp, Transport::Tls] {
            if self.reach.has(transport) && (!sips || is_inside_tls(transport)) {
                any |= self.service(host, transport);
            }
        }
        if !any && self.missing.is_empty() {
            let transport = default_transport(sips);
            self.addresses(host, transport.default_port(), transport);
        }
    }

    /// SRV of one transport (RFC 3263 §4.2). `false`: there are no such records (or not yet).
    fn service(&mut self, host: &str, transport: Transport) -> bool {
        match service_prefix(transport) {
            Some(prefix) if self.reach.has(transport) => {
                self.srv(&format!("{prefix}{host}"), transport)
            }
            _ => false,
        }
    }

    fn srv(&mut self, name: &str, transport: Transport) -> bool {
        let Some(set) = self.records(name, Kind::Srv) else { return false };
        let mut entries: Vec<(u16, u16, u16, &str)> = set
            .iter()
            .filter_map(|it| match it {
                Record::Srv { priority, weight, port, target } => {
                    Some((*priority, *weight, *port, target.as_str()))
                }
                _ => None,
            })
            .take(RECORDS_MAX)
            .collect();
        let any = !entries.is_empty();
        entries.sort();
        let mut last = None;
        for (priority, weight, port, target) in entries {
            if last.replace(priority).is_some_and(|it| it != priority) {
                self.rank += 1;
            }
            // An empty target is the root: the service is decidedly not there (RFC 2782).
            let Some(target) = domain(target) else { continue };
            let from = self.targets.len();
            self.addresses_of(&target, port, transport);
            // The addresses of one target share its weight. One of 0 is not quite nothing.
            let those = self.targets.get_mut(from..).unwrap_or_default();
            let count = u32::try_from(those.len()).unwrap_or(u32::MAX).max(1);
            let weight = (u32::from(weight) * WEIGHT_SCALE / count).max(1);
            those.iter_mut().for_each(|it| it.weight = weight);
        }
        self.rank += 1;
        any
    }

    fn addresses(&mut self, host: &str, port: u16, transport: Transport) {
        self.addresses_of(host, port, transport);
        self.rank += 1;
    }

    fn addresses_of(&mut self, host: &str, port: u16, transport: Transport) {
        if !self.reach.has(transport) {
            return;
        }
        if let Some(ip) = literal(host) {
            // Not allowed as an SRV target, but seen; the meaning is plain.
            return self.target(transport, SocketAddr::new(ip, port));
        }
        for (kind, wanted) in [(Kind::A, self.reach.ipv4), (Kind::Aaaa, self.reach.ipv6)] {
            if !wanted {
                continue;
            }
            let Some(set) = self.records(host, kind) else { continue };
            let address = |it: &Record| match it {
                Record::Address(ip) => Some(*ip),
                _ => None,
            };
            // Name servers turn their answers round.
            let mut ips: Vec<IpAddr> = set.iter().filter_map(address).take(RECORDS_MAX).collect();
            ips.sort();
            for ip in ips {
                self.target(transport, SocketAddr::new(ip, port));
            }
        }
    }

    fn target(&mut self, transport: Transport, address: SocketAddr) {
        let is_known =
            self.targets.iter().any(|it| (it.transport, it.address) == (transport, address));
        if address.port() != 0 && self.targets.len() < TARGETS_MAX && !is_known {
            self.targets.push(Target { transport, address, rank: self.rank, weight: 1 });
        }
    }

    /// The records of a name, aliases followed. `None`: noted as missing.
    fn records(&mut self, name: &str, kind: Kind) -> Option<&'r [Record]> {
        let mut lookup = Lookup { name: name.to_owned(), kind };
        for _ in 0..ALIASES_MAX {
            let Some(set) = (self.known)(&lookup) else {
                if self.missing.len() < LOOKUPS_MAX && !self.missing.contains(&lookup) {
                    self.missing.push(lookup);
                }
                return None;
            };
            if set.records.is_empty() {
                self.negative = self.negative.min(set.ttl);
            } else {
                self.ttl = self.ttl.min(set.ttl);
            }
            let alias = set.records.iter().find_map(|it| match it {
                Record::Alias(name) => domain(name),
                _ => None,
            });
            match alias {
                Some(name) => lookup.name = name,
                None => return Some(&set.records),
            }
        }
        Some(&[])
    }

    fn finish(self) -> Step {
        if !self.missing.is_empty() {
            return Step::Need(self.missing);
        }
        if self.targets.is_empty() {
            return Step::Unresolved(Unresolved::NoRecords { ttl: self.negative.max(TTL_MIN) });
        }
        Step::Done(Answer { targets: self.targets, ttl: self.ttl.clamp(TTL_MIN, TTL_MAX) })
    }
}

const fn default_transport(sips: bool) -> Transport {
    if sips { Transport::Tls } else { Transport::Udp }
}

const fn is_inside_tls(transport: Transport) -> bool {
    matches!(transport, Transport::Tls | Transport::Wss)
}

const fn inside_tls(transport: Transport) -> Transport {
    match transport {
        Transport::Ws | Transport::Wss => Transport::Wss,
        _ => Transport::Tls,
    }
}

/// RFC 3263 §4.1, RFC 7118 §8.3.
fn service_transport(service: &str) -> Option<Transport> {
    const SERVICES: [(&str, Transport); 5] = [
        ("SIP+D2U", Transport::Udp),
        ("SIP+D2T", Transport::Tcp),
        ("SIPS+D2T", Transport::Tls),
        ("SIP+D2W", Transport::Ws),
        ("SIPS+D2W", Transport::Wss),
    ];
    SERVICES.into_iter().find(|it| it.0.eq_ignore_ascii_case(service)).map(|it| it.1)
}

/// WebSocket has no SRV names of its own: a URI that demands it leads to addresses at once.
const fn service_prefix(transport: Transport) -> Option<&'static str> {
    match transport {
        Transport::Udp => Some("_sip._udp."),
        Transport::Tcp => Some("_sip._tcp."),
        Transport::Tls => Some("_sips._tcp."),
        Transport::Ws | Transport::Wss => None,
    }
}

/// Weights are told in parts of this, since the addresses of one target share its weight.
const WEIGHT_SCALE: u32 = 1_000;

/// More targets than anyone will try before the transaction times out.
pub const TARGETS_MAX: usize = 16;
/// Records of one set that are looked at.
pub const RECORDS_MAX: usize = 16;
/// Record sets that one query may lead to at a time: every target of a full SRV set, both families.
pub const LOOKUPS_MAX: usize = 2 * RECORDS_MAX;
/// CNAMEs in a row; more is a loop.
pub const ALIASES_MAX: usize = 8;
/// A zone with a zero TTL must not make every message a lookup.
pub const TTL_MIN: Duration = Duration::from_secs(1);
/// A mistaken TTL must not outlive a shift.
pub const TTL_MAX: Duration = Duration::from_secs(3600);
/// That a name does not exist is believed no longer than this.
pub const NEGATIVE_TTL_MAX: Duration = Duration::from_secs(60);
/// RFC 1035 §2.3.4, without the final dot.
const NAME_BYTES_MAX: usize = 253;

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    const ALL: Reach = Reach { transports: [true; 5], ipv4: true, ipv6: true };
    const V4: Reach =
        Reach { transports: [true, true, false, false, false], ipv4: true, ipv6: false };

    #[derive(Default)]
    struct Zone(HashMap<Lookup, RecordSet>);

    impl Zone {
        fn with(mut self, name: &str, kind: Kind, records: &[Record]) -> Zone {
            let set = RecordSet { records: records.to_vec(), ttl: Duration::from_secs(30) };
            self.0.insert(Lookup { name: name.into(), kind }, set);
            self
        }

        fn a(self, name: &str, ips: &[&str]) -> Zone {
            let records: Vec<Record> =
                ips.iter().map(|it| Record::Address(it.parse().unwrap())).collect();
            self.with(name, Kind::A, &records)
        }

        /// Resolves to the end: what is not in the zone does not exist. Returns the lookups made.
        fn resolve(&self, query: &Query, reach: &Reach) -> (Step, Vec<String>) {
            let mut known: HashMap<Lookup, RecordSet> = HashMap::new();
            let mut asked = Vec::new();
            for _ in 0..10 {
                match select(query, reach, &|it| known.get(it)) {
                    Step::Need(lookups) => {
                        assert!(!lookups.is_empty());
                        for it in lookups {
                            asked.push(format!("{:?} {}", it.kind, it.name));
                            let set = self.0.get(&it).cloned().unwrap_or_default();
                            assert!(known.insert(it, set).is_none(), "asked twice");
                        }
                    }
                    step => return (step, asked),
                }
            }
            panic!("no end: {asked:?}");
        }
    }

    fn query(text: &str) -> Query {
        // sips?:host[;port=n][;transport=t]
        let (scheme, rest) = text.split_once(':').unwrap();
        let mut parts = rest.split(';');
        let mut it = Query {
            host: parts.next().unwrap().into(),
            port: None,
            transport: None,
            sips: scheme == "sips",
        };
        for part in parts {
            match part.split_once('=').unwrap() {
                ("port", port) => it.port = Some(port.parse().unwrap()),
                (_, transport) => it.transport = Transport::from_token(transport.as_bytes()),
            }
        }
        it
    }

    fn srv(priority: u16, weight: u16, port: u16, target: &str) -> Record {
        Record::Srv { priority, weight, port, target: target.into() }
    }

    fn naptr(order: u16, preference: u16, flags: &str, service: &str, to: &str) -> Record {
        Record::Naptr {
            order,
            preference,
            flags: flags.into(),
            service: service.into(),
            regexp: String::new(),
            replacement: to.into(),
        }
    }

    fn show(step: &Step) -> String {
        match step {
            Step::Done(answer) => answer
                .targets
                .iter()
                .map(|it| format!("{}/{}", it.transport.as_param(), it.address))
                .collect::<Vec<_>>()
                .join(" "),
            other => format!("{other:?}"),
        }
    }

    fn example() -> Zone {
        Zone::default()
            .with(
                "example.com",
                Kind::Naptr,
                &[
                    naptr(90, 50, "s", "SIP+D2T", "_sip._tcp.example.com"),
                    naptr(100, 50, "s", "SIP+D2U", "_sip._udp.example.com"),
                    naptr(50, 50, "s", "SIPS+D2T", "_sips._tcp.example.com"),
                    naptr(1, 1, "u", "E2U+sip", "nowhere.example.com"),
                ],
            )
            .with(
                "_sip._tcp.example.com",
                Kind::Srv,
                &[srv(2, 0, 5070, "b.example.com"), srv(1, 0, 5060, "a.example.com")],
            )
            .with("_sip._udp.example.com", Kind::Srv, &[srv(0, 0, 5080, "a.example.com")])
            .with("_sips._tcp.example.com", Kind::Srv, &[srv(0, 0, 5061, "a.example.com")])
            .a("a.example.com", &["192.0.2.1"])
            .with("a.example.com", Kind::Aaaa, &[Record::Address("2001:db8::1".parse().unwrap())])
            .a("b.example.com", &["192.0.2.2"])
            .a("plain.example.com", &["192.0.2.3", "192.0.2.4"])
            .with("_sip._udp.srv.example.com", Kind::Srv, &[srv(0, 0, 5090, "b.example.com")])
            .with("alias.example.com", Kind::A, &[Record::Alias("PLAIN.example.com.".into())])
            .with("round.example.com", Kind::A, &[Record::Alias("round.example.com".into())])
            .with("_sip._udp.none.example.com", Kind::Srv, &[srv(0, 0, 0, "")])
            .a("none.example.com", &["192.0.2.9"])
    }

    #[test]
    fn names_lead_where_rfc_3263_says() {
        let no = "Unresolved(NoRecords { ttl: 1s })";
        let cases = [
            // 4.1 and 4.2: literals need no lookup
            ("sip:192.0.2.7", V4, "udp/192.0.2.7:5060"),
            ("sip:192.0.2.7;port=6", V4, "udp/192.0.2.7:6"),
            ("sip:192.0.2.7;transport=tcp", V4, "tcp/192.0.2.7:5060"),
            ("sips:192.0.2.7", ALL, "tls/192.0.2.7:5061"),
            ("sips:192.0.2.7;transport=tcp", ALL, "tls/192.0.2.7:5061"),
            ("sips:192.0.2.7;transport=ws", ALL, "wss/192.0.2.7:443"),
            ("sip:[2001:db8::7]", ALL, "udp/[2001:db8::7]:5060"),
            ("sip:2001:db8::7", ALL, "udp/[2001:db8::7]:5060"),
            ("sip:[2001:db8::7]", V4, "Unresolved(OutOfReach)"),
            ("sips:192.0.2.7", V4, "Unresolved(OutOfReach)"),
            // port given: addresses only
            ("sip:a.example.com;port=7", V4, "udp/192.0.2.1:7"),
            ("sip:a.example.com;port=7", ALL, "udp/192.0.2.1:7 udp/[2001:db8::1]:7"),
            ("sip:EXAMPLE.com;port=7", V4, no),
            ("sips:a.example.com;port=7;transport=tcp", ALL, "tls/192.0.2.1:7 tls/[2001:db8::1]:7"),
            // transport given: SRV, else addresses
            ("sip:example.com;transport=udp", V4, "udp/192.0.2.1:5080"),
            ("sip:plain.example.com;transport=tcp", V4, "tcp/192.0.2.3:5060 tcp/192.0.2.4:5060"),
            ("sip:plain.example.com;transport=ws", ALL, "ws/192.0.2.3:80 ws/192.0.2.4:80"),
            // neither: NAPTR in order, of what we can do
            ("sip:Example.COM.", V4, "tcp/192.0.2.1:5060 tcp/192.0.2.2:5070 udp/192.0.2.1:5080"),
            ("sips:example.com", ALL, "tls/192.0.2.1:5061 tls/[2001:db8::1]:5061"),
            // no NAPTR: SRV of every transport; no SRV: addresses
            ("sip:srv.example.com", V4, "udp/192.0.2.2:5090"),
            ("sip:plain.example.com", V4, "udp/192.0.2.3:5060 udp/192.0.2.4:5060"),
            ("sips:plain.example.com", ALL, "tls/192.0.2.3:5061 tls/192.0.2.4:5061"),
            // aliases, loops, refusals
            ("sip:alias.example.com", V4, "udp/192.0.2.3:5060 udp/192.0.2.4:5060"),
            ("sip:round.example.com", V4, no),
            ("sip:none.example.com", V4, no),
            ("sip:nowhere.example.com", V4, no),
            ("sip:a b", V4, "Unresolved(NotAName)"),
            ("sip:a..b", V4, "Unresolved(NotAName)"),
            ("sip:", V4, "Unresolved(NotAName)"),
        ];
        let zone = example();
        for (text, reach, want) in cases {
            let (step, asked) = zone.resolve(&query(text), &reach);
            assert_eq!(show(&step), want, "{text} asked {asked:?}");
        }
    }

    #[test]
    fn literals_and_ports_save_lookups() {
        let zone = example();
        let cases = [
            ("sip:192.0.2.7", vec![]),
            ("sip:a.example.com;port=7", vec!["A a.example.com"]),
            ("sip:plain.example.com;transport=udp", {
                vec!["Srv _sip._udp.plain.example.com", "A plain.example.com"]
            }),
        ];
        for (text, want) in cases {
            assert_eq!(zone.resolve(&query(text), &V4).1, want, "{text}");
        }
    }

    #[test]
    fn weights_are_shares() {
        let zone = Zone::default()
            .with(
                "_sip._udp.w.example.com",
                Kind::Srv,
                &[
                    srv(1, 10, 1, "x.example.com"),
                    srv(1, 30, 3, "x.example.com"),
                    srv(0, 0, 9, "x.example.com"),
                ],
            )
            .a("x.example.com", &["192.0.2.1"]);
        let (step, _) = zone.resolve(&query("sip:w.example.com;transport=udp"), &V4);
        let Step::Done(answer) = step else { panic!("{step:?}") };
        let targets = answer.targets.iter().map(|it| (it.address.port(), it.rank, it.weight));
        assert_eq!(targets.collect::<Vec<_>>(), [(9, 0, 1), (1, 1, 10_000), (3, 1, 30_000)]);
    }

    #[test]
    fn addresses_of_one_target_share_its_weight_in_whatever_order_they_come() {
        let name = "_sip._udp.w.example.com";
        let records = [srv(1, 10, 1, "x.example.com"), srv(1, 10, 2, "y.example.com")];
        let mut answers = Vec::new();
        for turned in [false, true] {
            let (mut records, mut ips) = (records.to_vec(), ["192.0.2.1", "192.0.2.2"]);
            if turned {
                records.reverse();
                ips.reverse();
            }
            let zone = Zone::default().with(name, Kind::Srv, &records);
            let zone = zone.a("x.example.com", &ips).a("y.example.com", &["192.0.2.3"]);
            let (step, _) = zone.resolve(&query("sip:w.example.com;transport=udp"), &V4);
            let Step::Done(answer) = step else { panic!("{step:?}") };
            answers.push(answer.targets);
        }
        let weights: Vec<u32> = answers[0].iter().map(|it| it.weight).collect();
        assert_eq!((weights, answers[0] == answers[1]), (vec![5_000, 5_000, 10_000], true));
    }

    #[test]
    fn the_shortest_lived_record_decides() {
        let mut zone = example();
        let lookup = Lookup { name: "a.example.com".into(), kind: Kind::A };
        for (ttl, want) in [(3, 3), (0, 1), (90_000, 3600)] {
            zone.0.get_mut(&lookup).unwrap().ttl = Duration::from_secs(ttl);
            let (step, _) = zone.resolve(&query("sip:a.example.com;port=1"), &V4);
            let Step::Done(answer) = step else { panic!("{step:?}") };
            assert_eq!(answer.ttl, Duration::from_secs(want));
        }
    }

    #[test]
    fn a_hostile_zone_stays_within_the_limits() {
        let many: Vec<Record> =
            (0..500).map(|it| srv(it, it, it, &format!("h{it}.example.com"))).collect();
        let mut zone = Zone::default().with("_sip._udp.big.example.com", Kind::Srv, &many);
        for it in 0..500 {
            let ips: Vec<String> = (1..=99).map(|ip| format!("192.0.2.{ip}")).collect();
            let ips: Vec<&str> = ips.iter().map(String::as_str).collect();
            zone = zone.a(&format!("h{it}.example.com"), &ips);
        }
        let (step, asked) = zone.resolve(&query("sip:big.example.com;transport=udp"), &V4);
        let Step::Done(answer) = step else { panic!("{step:?}") };
        assert_eq!(answer.targets.len(), TARGETS_MAX);
        assert!(asked.len() <= 1 + LOOKUPS_MAX, "{}", asked.len());
    }
}
