//! The node table as shards see it: immutable, replaced whole, indexed for every question asked of it.

mod web;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use protocols::sip::Transport;
use protocols::time::Time;

pub(crate) use self::web::way;
pub use self::web::{Service, Web};
use crate::node::{Node, NodeKey, Version, Way};

/// Index of a node in the [`Snapshot`] that named it; meaningless against another snapshot.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct NodeId(pub u16);

/// Address family. Messages never cross it (`sip.md` 1.1).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    pub const fn of(ip: IpAddr) -> Family {
        match ip {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        }
    }
}

/// What a message may ask of a node (`sip.md` 3).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Standing {
    /// May get new associations: live, not graceful, not bad, and not suspect while any other such is not.
    Eligible,
    /// May serve the associations it has: live, and not suspect while any other is not.
    Usable,
}

/// Nodes that one message may choose from: same version, family and transport, in canonical order.
///
/// What a choice reads lies side by side, so that a scan of 1 000 nodes stays in the first-level cache.
#[derive(Debug, Default)]
pub struct Candidates {
    ids: Vec<NodeId>,
    keys: Vec<NodeKey>,
    joined: Vec<Time>,
    oldest: Time,
    youngest: Time,
}

impl Candidates {
    const fn new() -> Candidates {
        Candidates {
            ids: Vec::new(),
            keys: Vec::new(),
            joined: Vec::new(),
            oldest: Time::ZERO,
            youngest: Time::ZERO,
        }
    }

    fn push(&mut self, id: NodeId, node: &Node) {
        self.oldest = if self.ids.is_empty() { node.joined } else { self.oldest.min(node.joined) };
        self.youngest = self.youngest.max(node.joined);
        self.ids.push(id);
        self.keys.push(node.key);
        self.joined.push(node.joined);
    }

    /// The nodes.
    pub fn ids(&self) -> &[NodeId] {
        &self.ids
    }

    /// Their identities, in the same order.
    pub fn keys(&self) -> &[NodeKey] {
        &self.keys
    }

    /// When they became members, in the same order.
    pub fn joined(&self) -> &[Time] {
        &self.joined
    }

    /// When the first and the last of them became members.
    pub fn joined_between(&self) -> (Time, Time) {
        (self.oldest, self.youngest)
    }
}

/// The nodes of one version, by what a message needs of them.
#[derive(Debug)]
struct Cluster {
    version: Version,
    /// Per family and transport.
    usable: [[Candidates; 5]; 2],
    /// The same without graceful and bad ones, and suspect ones only where there is no other.
    eligible: [[Candidates; 5]; 2],
}

impl Cluster {
    const fn new(version: Version) -> Cluster {
        const NONE: [[Candidates; 5]; 2] = [const { [const { Candidates::new() }; 5] }; 2];
        Cluster { version, usable: NONE, eligible: NONE }
    }
}

/// Pins affinity keys to a node (`/lbnoderegex`, `sip.md` 3.5).
#[derive(Clone, Debug)]
pub struct NodeRule {
    /// Found anywhere in the key.
    pub pattern: regex::bytes::Regex,
    /// Any SIP address of the node.
    pub node: SocketAddr,
}

/// The nodes with one address among their SIP ports, and what for.
#[derive(Debug, Default)]
struct Sharers {
    /// Who has it for all that it is used for: almost always.
    alone: Option<NodeId>,
    all: Vec<(NodeId, Transport)>,
}

/// Every live node at one moment. Never edited; the control executor publishes the next one whole.
#[derive(Debug, Default)]
pub struct Snapshot {
    generation: u64,
    nodes: Vec<Node>,
    by_key: ahash::HashMap<NodeKey, NodeId>,
    by_address: ahash::HashMap<SocketAddr, Sharers>,
    by_ip: ahash::HashMap<IpAddr, Vec<NodeId>>,
    remembered: ahash::HashSet<SocketAddr>,
    remembered_ips: ahash::HashSet<IpAddr>,
    clusters: Vec<Cluster>,
    /// Per family and transport, for calls that may begin and for those that have: [`Snapshot::newest`].
    newest: [[[Version; 2]; 5]; 2],
    fingerprint: u64,
    /// By [`NodeId`].
    seniority: Vec<u64>,
    rules: Arc<[NodeRule]>,
    web: Web,
}

impl Snapshot {
    /// Builds the table. `generation` differs from that of every other table in use: who sees it again
    /// may take the nodes for unchanged, if not what they are trusted with. `nodes` past [`NODES_MAX`] are left out; the registry refuses them first.
    ///
    /// `remembered` are addresses of nodes that died a short while ago: responses from there still come
    /// from inside (`sip.md` 2.2).
    pub fn new(generation: u64, mut nodes: Vec<Node>, remembered: &[SocketAddr]) -> Snapshot {
        nodes.sort_by(|a, b| {
            (a.version, a.ip, a.ports, a.key).cmp(&(b.version, b.ip, b.ports, b.key))
        });
        nodes.dedup_by_key(|it| it.key);
        nodes.truncate(NODES_MAX);
        let mut it = Snapshot {
            generation,
            remembered: remembered.iter().copied().collect(),
            remembered_ips: remembered.iter().map(SocketAddr::ip).collect(),
            ..Snapshot::default()
        };
        for (index, node) in nodes.iter().enumerate() {
            let Ok(index) = u16::try_from(index) else { break };
            it.file(NodeId(index), node, &nodes);
        }
        for (index, node) in (0..).zip(&nodes) {
            for former in &node.former {
                it.by_key.entry(*former).or_insert(NodeId(index)); // unless another has it now
            }
        }
        let identities: Vec<u8> = nodes
            .iter()
            .filter(|it| it.is_eligible())
            .flat_map(|it| it.key.0.to_be_bytes())
            .collect();
        it.fingerprint = crate::balance::hash(FINGERPRINT_SEED, &identities);
        it.seniority = vec![0; nodes.len()];
        it.web = Web::new(&nodes);
        it.nodes = nodes;
        for (family, of_family) in (0..).zip(&mut it.newest) {
            for (transport, newest) in (0..).zip(of_family) {
                *newest = newest_of(&it.clusters, &it.nodes, family, transport);
            }
        }
        it
    }

    /// Takes over from the snapshot published before how long each node has been eligible without a
    /// break: see [`Snapshot::seniority`]. Without it every node counts as eligible since ever.
    pub fn after(mut self, previous: &Snapshot) -> Snapshot {
        for (node, seniority) in self.nodes.iter().zip(&mut self.seniority) {
            let keys = std::iter::once(&node.key).chain(&node.former);
            *seniority = match keys.into_iter().find_map(|it| previous.find(*it)) {
                Some(id) if previous.node(id).is_eligible() => previous.seniority(id),
                None if node.joined < Time::ZERO + START_UP => 0,
                _ => self.generation,
            };
        }
        self
    }

    /// The same table with one node suspect on one way: what a shard goes by, from the moment the node refused
    /// it something there until the control executor publishes its own view. It keeps the generation: the same
    /// nodes stand at the same places.
    pub fn suspecting(&self, key: NodeKey, way: Way) -> Snapshot {
        let mut nodes = self.nodes.clone();
        for node in nodes.iter_mut().filter(|it| it.key == key) {
            node.suspect.set(way, true);
        }
        self.with_nodes(nodes)
    }

    /// The same table with another regex table.
    pub fn with_other_rules(&self, rules: Arc<[NodeRule]>) -> Snapshot {
        self.with_nodes(self.nodes.clone()).with_rules(rules)
    }

    /// The same nodes otherwise: all that is known besides them stays.
    fn with_nodes(&self, nodes: Vec<Node>) -> Snapshot {
        Snapshot {
            remembered: self.remembered.clone(),
            remembered_ips: self.remembered_ips.clone(),
            seniority: self.seniority.clone(),
            rules: Arc::clone(&self.rules),
            ..Snapshot::new(self.generation, nodes, &[])
        }
    }

    /// Publishes the regex table of `/lbnoderegex` along with the nodes; the first match wins.
    pub fn with_rules(mut self, rules: Arc<[NodeRule]>) -> Snapshot {
        self.rules = rules;
        self
    }

    #[allow(clippy::indexing_slicing)] // families and transports index arrays of their own size
    fn file(&mut self, id: NodeId, node: &Node, all: &[Node]) {
        self.by_key.insert(node.key, id);
        self.by_ip.entry(node.ip).or_default().push(id);
        let position = match self.clusters.binary_search_by_key(&node.version, |it| it.version) {
            Ok(position) => position,
            Err(position) => {
                self.clusters.insert(position, Cluster::new(node.version));
                position
            }
        };
        let cluster = &mut self.clusters[position];
        let family = Family::of(node.ip) as usize;
        for (transport, port) in node.ports.iter() {
            let at = self.by_address.entry(SocketAddr::new(node.ip, port)).or_default();
            at.alone = Some(id).filter(|_| at.all.iter().all(|(it, _)| *it == id));
            at.all.push((id, transport));
            let way = Way::Sip(transport);
            // Who refused a moment ago is asked only where nobody else could be: for new calls nobody else
            // that wants any, for the others nobody at all.
            let has_better = |wanted: fn(&Node) -> bool| {
                all.iter().any(|it| {
                    !it.suspect.has(way)
                        && wanted(it)
                        && it.version == node.version
                        && it.ip.is_ipv4() == node.ip.is_ipv4()
                        && it.ports.of(transport).is_some()
                })
            };
            let is_calm = !node.suspect.has(way);
            let is_eligible = node.wants_work() && (is_calm || !has_better(Node::wants_work));
            if is_calm || !has_better(|_| true) {
                cluster.usable[family][transport.index()].push(id, node);
            }
            if is_eligible {
                cluster.eligible[family][transport.index()].push(id, node);
            }
        }
    }

    /// Counts up with every publication.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Fixed hash over the identities of all eligible nodes: balancers with equal fingerprints choose
    /// alike.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// Every live node in canonical order; [`NodeId`] is the position.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node of an id of this snapshot.
    ///
    /// # Panics
    ///
    /// If the id came from a larger snapshot: a bug of ours, never of a peer's.
    #[allow(clippy::indexing_slicing)]
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[usize::from(id.0)]
    }

    /// Identities that belong to others now: the old one and the new one.
    pub fn renamed(&self) -> impl Iterator<Item = (NodeKey, NodeKey)> + '_ {
        let former = self.nodes.iter().flat_map(|it| it.former.iter().map(|old| (*old, it.key)));
        former.filter(|(old, new)| self.find(*old) == self.find(*new))
    }

    /// The live node with this identity, or that had it.
    pub fn find(&self, key: NodeKey) -> Option<NodeId> {
        self.by_key.get(&key).copied()
    }

    /// The live node at this address, by its port for `transport` or else any of its SIP ports; of this
    /// version if one is asked for, else the newest there.
    ///
    /// Nodes on one host may have each other's port numbers, for other transports.
    pub fn at(
        &self,
        address: SocketAddr,
        transport: Option<Transport>,
        version: Option<Version>,
    ) -> Option<NodeId> {
        let ports = self.by_address.get(&address)?;
        let is_of = |id: NodeId| version.is_none_or(|it| self.node(id).version == it);
        if let Some(alone) = ports.alone {
            return is_of(alone).then_some(alone);
        }
        let of_version = || ports.all.iter().rev().filter(|(id, _)| is_of(*id));
        let exact = of_version().find(|(_, it)| Some(*it) == transport);
        exact.or_else(|| of_version().next()).map(|(id, _)| *id)
    }

    /// Whether any live node has this IP address.
    pub fn has_ip(&self, ip: IpAddr) -> bool {
        self.by_ip.contains_key(&ip)
    }

    /// Live nodes with this IP address, whatever their version and ports, in canonical order.
    pub fn on(&self, ip: IpAddr) -> &[NodeId] {
        self.by_ip.get(&ip).map_or(&[], Vec::as_slice)
    }

    /// Whether a node that died lately had this address.
    pub fn remembers(&self, address: SocketAddr) -> bool {
        self.remembered.contains(&address)
    }

    /// Whether a node that died lately had this IP address.
    pub fn remembers_ip(&self, ip: IpAddr) -> bool {
        self.remembered_ips.contains(&ip)
    }

    /// Highest version with a live node.
    pub fn latest(&self) -> Version {
        self.clusters.last().map_or(Version(0), |it| it.version)
    }

    /// The cluster of a message that names none: the newest version that can take it. Where nobody wants
    /// new calls it is the newest that serves old ones; without any, the latest.
    ///
    /// A newest version whose nodes are all leaving or bad, or lack the port, must not cost the calls that
    /// an older one would take. Suspect nodes count where no version has another.
    #[allow(clippy::indexing_slicing)] // families, transports and flags index arrays of their own size
    pub fn newest(&self, in_dialog: bool, family: Family, transport: Transport) -> Version {
        self.newest[family as usize][transport.index()][usize::from(in_dialog)]
    }

    /// Whether the version has a live node.
    pub fn has_version(&self, version: Version) -> bool {
        self.clusters.binary_search_by_key(&version, |it| it.version).is_ok()
    }

    /// Generation since which the node has been eligible without a break; 0 since ever. A pure function
    /// of the snapshots published, so every shard knows the same, even one that skipped some.
    ///
    /// Two balancers started together hear the first heartbeats in different orders: nodes that joined
    /// within 8 s of the process's start count as there since ever.
    pub fn seniority(&self, id: NodeId) -> u64 {
        self.seniority.get(usize::from(id.0)).copied().unwrap_or(0)
    }

    /// The table as HTTP sees it.
    pub fn web(&self) -> &Web {
        &self.web
    }

    /// The regex table of `/lbnoderegex`.
    pub fn rules(&self) -> &Arc<[NodeRule]> {
        &self.rules
    }

    /// Nodes that may get new associations, in canonical order.
    pub fn eligible(&self, version: Version, family: Family, transport: Transport) -> &[NodeId] {
        self.candidates(Standing::Eligible, version, family, transport).ids()
    }

    /// Nodes that may serve existing associations, in canonical order.
    pub fn usable(&self, version: Version, family: Family, transport: Transport) -> &[NodeId] {
        self.candidates(Standing::Usable, version, family, transport).ids()
    }

    /// The nodes that a message may choose from, with what choosing reads of them.
    #[allow(clippy::indexing_slicing)] // families and transports index arrays of their own size
    pub fn candidates(
        &self,
        standing: Standing,
        version: Version,
        family: Family,
        transport: Transport,
    ) -> &Candidates {
        static NONE: Candidates = Candidates::new();
        let Ok(position) = self.clusters.binary_search_by_key(&version, |it| it.version) else {
            return &NONE;
        };
        let cluster = &self.clusters[position];
        let lists = match standing {
            Standing::Eligible => &cluster.eligible,
            Standing::Usable => &cluster.usable,
        };
        &lists[family as usize][transport.index()]
    }
}

/// The newest version for calls that may begin, and for those that have.
#[allow(clippy::indexing_slicing)] // families and transports index arrays of their own size
fn newest_of(
    clusters: &[Cluster],
    nodes: &[Node],
    family: usize,
    transport: usize,
) -> [Version; 2] {
    // Nodes of one list are all suspect, or none is.
    let is_calm = |list: &Candidates| {
        let first = list.ids().first().and_then(|it| nodes.get(usize::from(it.0)));
        let way = Transport::ALL.get(transport).map(|it| Way::Sip(*it));
        first.is_some_and(|it| way.is_some_and(|way| !it.suspect.has(way)))
    };
    let best = |lists: fn(&Cluster) -> &[[Candidates; 5]; 2]| {
        let newest_with = |wanted: &dyn Fn(&Candidates) -> bool| {
            clusters.iter().rev().find(|it| wanted(&lists(it)[family][transport]))
        };
        newest_with(&is_calm).or_else(|| newest_with(&|it| !it.ids().is_empty()))
    };
    let usable = best(|it| &it.usable).or(clusters.last());
    let eligible = best(|it| &it.eligible).or(usable);
    [eligible, usable].map(|it| it.map_or(Version(0), |it| it.version))
}

/// What fits a [`NodeId`] with room to spare; the registry refuses more.
pub const NODES_MAX: usize = 16_384;
const _: () = assert!(NODES_MAX <= u16::MAX as usize);

/// Keeps the fingerprint apart from every other use of the routing hash.
const FINGERPRINT_SEED: u64 = 0x6669_6e67_6572;

/// Longer than any heartbeat interval in use, shorter than a node needs to die and come back.
const START_UP: Duration = Duration::from_secs(8);

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;
    use crate::balance::testing::{UDP, identify, node, node_at};
    use crate::node::Bad;

    fn table(nodes: Vec<Node>) -> Snapshot {
        Snapshot::new(1, nodes, &[])
    }

    fn at(number: u16, port: u16) -> SocketAddr {
        SocketAddr::new(node(number).ip, port)
    }

    #[test]
    fn the_order_of_arrival_does_not_matter() {
        let six = node_at(IpAddr::V6(Ipv6Addr::LOCALHOST), 0);
        let nodes = [node(1), node(2), node_at(node(1).ip, 7), six];
        let forward = table(nodes.to_vec());
        let backward = table(nodes.iter().rev().chain(&nodes).cloned().collect());
        let keys = |it: &Snapshot| it.nodes().iter().map(|it| it.key).collect::<Vec<_>>();
        assert_eq!(keys(&forward), keys(&backward));
        assert_eq!(forward.nodes().len(), 4, "announced twice is one node");
        assert_eq!(forward.fingerprint(), backward.fingerprint());
    }

    #[test]
    fn what_is_known_besides_the_nodes_outlasts_a_suspicion_and_other_rules() {
        let dead = at(9, 5060);
        let table = Snapshot::new(1, vec![node(1), node(2)], &[dead]);
        let rules: Arc<[NodeRule]> = Arc::from([]);
        for it in [table.suspecting(node(1).key, UDP), table.with_other_rules(rules)] {
            assert!(it.remembers(dead) && it.remembers_ip(dead.ip()));
            assert_eq!((it.generation(), it.nodes().len()), (1, 2));
        }
    }

    #[test]
    fn the_fingerprint_is_of_the_eligible_members() {
        let both = table(vec![node(1), node(2)]).fingerprint();
        assert_ne!(both, table(vec![node(1), node(3)]).fingerprint());
        let mut bad = node(3);
        bad.bad = Some(Bad::Full);
        assert_eq!(both, table(vec![node(1), node(2), bad]).fingerprint());
    }

    #[test]
    fn lists_hold_what_can_take_the_message() {
        let mut tcp_only = node(2);
        tcp_only.ports.0[Transport::Udp.index()] = None;
        identify(&mut tcp_only);
        let mut leaving = node(3);
        leaving.graceful = true;
        let six = node_at(IpAddr::V6(Ipv6Addr::LOCALHOST), 0);
        let newer = node_at(node(4).ip, 1);
        let it = table(vec![node(1), tcp_only, leaving, six, newer]);
        let cases = [
            (0, Family::V4, Transport::Udp, 1, 2),
            (0, Family::V4, Transport::Tcp, 2, 3),
            (0, Family::V4, Transport::Tls, 0, 0),
            (0, Family::V6, Transport::Udp, 1, 1),
            (1, Family::V4, Transport::Udp, 1, 1),
            (1, Family::V6, Transport::Udp, 0, 0),
            (2, Family::V4, Transport::Udp, 0, 0),
        ];
        for case @ (version, family, transport, eligible, usable) in cases {
            let version = Version(version);
            assert_eq!(it.eligible(version, family, transport).len(), eligible, "{case:?}");
            assert_eq!(it.usable(version, family, transport).len(), usable, "{case:?}");
            let list = it.candidates(Standing::Usable, version, family, transport);
            for (id, key) in list.ids().iter().zip(list.keys()) {
                assert_eq!(it.node(*id).key, *key, "{case:?}");
            }
        }
        let newest = [
            (Family::V4, Transport::Udp, 1),
            (Family::V4, Transport::Tcp, 1),
            (Family::V6, Transport::Udp, 0),
            (Family::V4, Transport::Tls, 1),
        ];
        for (family, transport, want) in newest {
            for in_dialog in [false, true] {
                let got = it.newest(in_dialog, family, transport);
                assert_eq!(got, Version(want), "{family:?} {transport:?} {in_dialog}");
            }
        }
        assert_eq!(it.latest(), Version(1));
        assert!(it.has_version(Version(0)) && !it.has_version(Version(2)));
    }

    /// What version 1 beside a version 0 must be for new calls, and dialogs, to go to the other.
    #[test]
    fn the_newest_version_is_one_that_can_take_the_message() {
        type Case = (&'static str, fn(&mut Node), [i32; 2]);
        let cases: [Case; 5] = [
            ("well", |_| {}, [1, 1]),
            ("leaving", |it| it.graceful = true, [0, 1]),
            ("bad", |it| it.bad = Some(Bad::Errors), [0, 1]),
            ("suspect", |it| it.suspect.set(UDP, true), [0, 0]),
            ("without the port", |it| it.ports.0[Transport::Udp.index()] = None, [0, 0]),
        ];
        let newest =
            |it: &Snapshot| [false, true].map(|it_| it.newest(it_, Family::V4, Transport::Udp).0);
        for (name, change, want) in cases {
            let mut newer = node_at(node(2).ip, 1);
            change(&mut newer);
            identify(&mut newer);
            assert_eq!(newest(&table(vec![node(1), newer.clone()])), want, "{name}");
            assert_eq!(newest(&table(vec![newer])), [1, 1], "{name}, alone");
        }
        assert_eq!(newest(&table(Vec::new())), [0, 0]);
    }

    #[test]
    fn nodes_are_found_by_any_of_their_names() {
        let mut odd = node(1);
        odd.ports.open(Transport::Tls, 5081);
        identify(&mut odd);
        let newer = node_at(node(1).ip, 3);
        let it = Snapshot::new(1, vec![odd.clone(), newer.clone()], &[at(9, 5060)]);
        let key = |id: Option<NodeId>| id.map(|it_| it.node(it_).key);
        assert_eq!(key(it.find(odd.key)), Some(odd.key));
        assert_eq!(it.find(node(2).key), None);
        assert_eq!(key(it.at(at(1, 5081), None, None)), Some(odd.key));
        assert_eq!(key(it.at(at(1, 5060), None, None)), Some(newer.key), "the newest");
        assert_eq!(key(it.at(at(1, 5060), None, Some(Version(0)))), Some(odd.key));
        assert_eq!(it.at(at(1, 5060), None, Some(Version(1))), None);
        assert_eq!(it.at(at(1, 5082), None, None), None);
        assert_eq!(it.on(node(1).ip).len(), 2);
        assert!(it.on(node(2).ip).is_empty());
        assert!(it.has_ip(node(1).ip) && !it.has_ip(node(9).ip));
        assert!(it.remembers(at(9, 5060)) && !it.remembers(at(1, 5060)));
    }

    #[test]
    fn seniority_survives_publication_and_ends_with_eligibility() {
        let late = |number: u16| Node { joined: Time::from_millis(60_000), ..node(number) };
        let mut bad = late(2);
        bad.bad = Some(Bad::Errors);
        let lives =
            [vec![late(1), late(2)], vec![late(1), bad, late(3)], vec![late(1), late(2), late(3)]];
        let mut table = Snapshot::default();
        for (generation, nodes) in (1..).zip(lives) {
            table = Snapshot::new(generation, nodes, &[]).after(&table);
        }
        let seniority = |it: u16| table.seniority(table.find(node(it).key).unwrap());
        assert_eq!([seniority(1), seniority(2), seniority(3)], [1, 3, 2]);
    }

    #[test]
    fn the_table_is_bounded() {
        let nodes = (0..NODES_MAX + 10).map(|it| node(u16::try_from(it).unwrap())).collect();
        let it = table(nodes);
        assert_eq!(it.nodes().len(), NODES_MAX);
        assert_eq!(it.eligible(Version(0), Family::V4, Transport::Udp).len(), NODES_MAX);
    }
}
