//! What is known of one application server, and the identity that survives its restarts.

use std::collections::BTreeMap;
use std::net::IpAddr;

use protocols::sip::Transport;
use protocols::time::Time;

/// Cluster of a rolling upgrade (`sip.md` 5.9): nodes of different versions never share dialogs.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Version(pub i32);

/// One port per SIP transport; `None` is closed.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Ports(pub [Option<u16>; 5]);

impl Ports {
    /// The port of one transport.
    #[allow(clippy::indexing_slicing)] // an index of five into five
    pub const fn of(&self, transport: Transport) -> Option<u16> {
        self.0[transport.index()]
    }

    /// Opens one transport.
    #[allow(clippy::indexing_slicing)] // an index of five into five
    pub const fn open(&mut self, transport: Transport, port: u16) {
        self.0[transport.index()] = Some(port);
    }

    /// Every open transport with its port, in [`Transport::ALL`] order.
    pub fn iter(&self) -> impl Iterator<Item = (Transport, u16)> + '_ {
        Transport::ALL.into_iter().filter_map(|it| self.of(it).map(|port| (it, port)))
    }

    /// Whether any transport has this port.
    pub fn contains(&self, port: u16) -> bool {
        self.iter().any(|(_, it)| it == port)
    }

    /// Whether no transport is open.
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }
}

/// Stable identity of a node: a fixed hash of ip, version and ports, equal on every shard, balancer
/// and restart. Survives snapshots, unlike [`crate::snapshot::NodeId`].
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct NodeKey(pub u64);

impl NodeKey {
    /// Computes the identity (`sip.md` 4.4: ip, version, sorted transport ports). Names, session ids
    /// and free properties do not enter: balancers may have heard different ones.
    pub fn of(ip: IpAddr, version: Version, ports: &Ports) -> NodeKey {
        let mut text = [0u8; 16 + 4 + 10 + 1];
        let (family, rest) = text.split_at_mut(1);
        let (address, rest) = rest.split_at_mut(16);
        match ip {
            IpAddr::V4(it) => {
                family.copy_from_slice(&[4]);
                for (to, from) in address.iter_mut().zip(it.octets()) {
                    *to = from;
                }
            }
            IpAddr::V6(it) => {
                family.copy_from_slice(&[6]);
                address.copy_from_slice(&it.octets());
            }
        }
        let (cluster, list) = rest.split_at_mut(4);
        cluster.copy_from_slice(&version.0.to_be_bytes());
        for (to, port) in list.chunks_exact_mut(2).zip(ports.0) {
            to.copy_from_slice(&port.unwrap_or(0).to_be_bytes());
        }
        NodeKey(crate::balance::hash(0, &text))
    }
}

/// How a node came to be known, which decides whether it expires.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Origin {
    /// It announces itself and expires when it falls silent.
    Heartbeat,
    /// `extraServerNodes` with `performanceTestingMode`: never expires.
    Extra,
    /// `staticNodes`: lives and dies by our OPTIONS probes.
    Static,
}

/// Why a node gets no new work although it is alive.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Bad {
    /// Too many error responses (`sip.md` 5.6).
    Errors,
    /// Requests without any response (`sip.md` 5.7).
    Silence,
    /// An error response to a request that `requestCheckPattern` watches.
    Response,
    /// A probe was answered 503: it lives, but asks for no more (static nodes).
    Full,
}

impl Bad {
    /// All of them.
    pub const ALL: [Bad; 4] = [Bad::Errors, Bad::Silence, Bad::Response, Bad::Full];

    /// As figures name it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Bad::Errors => "errors",
            Bad::Silence => "silence",
            Bad::Response => "response",
            Bad::Full => "full",
        }
    }
}

/// A way into a node: one of the ports that it announces. One may be shut while the others serve.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Way {
    /// SIP by this transport.
    Sip(Transport),
    /// `httpPort`.
    Http,
    /// `sslPort`.
    Https,
}

impl Way {
    /// Every way, by [`Way::index`].
    pub const ALL: [Way; 7] = [
        Way::Sip(Transport::Udp),
        Way::Sip(Transport::Tcp),
        Way::Sip(Transport::Tls),
        Way::Sip(Transport::Ws),
        Way::Sip(Transport::Wss),
        Way::Http,
        Way::Https,
    ];

    /// Position among all of them.
    pub const fn index(self) -> usize {
        match self {
            Way::Sip(transport) => transport.index(),
            Way::Http => 5,
            Way::Https => 6,
        }
    }

    /// As the log names it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Way::Sip(transport) => transport.as_param(),
            Way::Http => "http",
            Way::Https => "https",
        }
    }
}

/// The ways on which a node refused a connection or a datagram a moment ago.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Suspect(u8);

impl Suspect {
    /// Whether it refused on this one.
    pub const fn has(self, way: Way) -> bool {
        self.0 & 1 << way.index() != 0
    }

    /// Whether it refused on none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The ways that are here and not in `before`.
    pub fn beyond(self, before: Suspect) -> impl Iterator<Item = Way> {
        Way::ALL.into_iter().filter(move |it| self.has(*it) && !before.has(*it))
    }

    /// It refused, or is trusted again.
    pub const fn set(&mut self, way: Way, refused: bool) {
        let bit = 1 << way.index();
        self.0 = if refused { self.0 | bit } else { self.0 & !bit };
    }
}

/// One live node, as a snapshot holds it. Built by the registry, never edited in place.
#[derive(Clone, Debug)]
pub struct Node {
    /// Stable identity.
    pub key: NodeKey,
    /// Identities that it had before its ports changed, oldest first: what is known of them is its own.
    pub former: Vec<NodeKey>,
    /// As announced; for people, never for routing.
    pub host_name: String,
    /// Address that every port below is on.
    pub ip: IpAddr,
    /// SIP listening ports.
    pub ports: Ports,
    /// Cluster of a rolling upgrade.
    pub version: Version,
    /// Incarnation: changes when the node process restarts (`sessionId`).
    pub session: Option<String>,
    /// Everything announced, for algorithms and `/lbinfo`.
    pub properties: BTreeMap<String, String>,
    /// Announced that it is leaving: keeps its calls, gets no new ones.
    pub graceful: bool,
    /// Alive but not trusted with new work.
    pub bad: Option<Bad>,
    /// Where it refused a connection or a datagram a moment ago.
    pub suspect: Suspect,
    /// When it became a member, for ramp-up.
    pub joined: Time,
    /// How it came to be known.
    pub origin: Origin,
}

impl Node {
    /// Whether it may get new associations by whatever it has a port for (`sip.md` 3).
    pub const fn is_eligible(&self) -> bool {
        self.wants_work() && self.suspect.is_empty()
    }

    /// Whether it wants new associations: by a way that refused a moment ago only where nobody else does.
    pub const fn wants_work(&self) -> bool {
        !self.graceful && self.bad.is_none()
    }

    /// Whether `ip` and any SIP port match.
    pub fn is_at(&self, ip: IpAddr, port: u16) -> bool {
        self.ip == ip && self.ports.contains(port)
    }
}

/// Ports as the node properties spell them: `udpPort` and so on.
pub const PORT_PROPERTIES: [(&str, Transport); 5] = [
    ("udpPort", Transport::Udp),
    ("tcpPort", Transport::Tcp),
    ("tlsPort", Transport::Tls),
    ("wsPort", Transport::Ws),
    ("wssPort", Transport::Wss),
];
