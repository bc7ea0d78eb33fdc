//! The node table as shards see it: immutable, replaced whole, indexed for every question asked of it.

use std::net::{IpAddr, SocketAddr};

use protocols::sip::Transport;

use crate::node::{Node, NodeKey, Version};

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

/// The nodes of one version, by what a message needs of them.
#[derive(Debug, Default)]
struct Cluster {
    version: Version,
    /// Per family and transport: live nodes with such a port, canonical order.
    usable: [[Vec<NodeId>; 5]; 2],
    /// The same without graceful, bad and suspect ones.
    eligible: [[Vec<NodeId>; 5]; 2],
}

/// Every live node at one moment. Never edited; the control executor publishes the next one whole.
#[derive(Debug, Default)]
pub struct Snapshot {
    generation: u64,
    nodes: Vec<Node>,
    by_key: ahash::HashMap<NodeKey, NodeId>,
    by_address: ahash::HashMap<SocketAddr, Vec<NodeId>>,
    by_ip: ahash::HashSet<IpAddr>,
    remembered: ahash::HashSet<SocketAddr>,
    clusters: Vec<Cluster>,
    fingerprint: u64,
}

impl Snapshot {
    /// Builds the table. `nodes` past [`NODES_MAX`] are left out; the registry refuses them first.
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
            ..Snapshot::default()
        };
        for (index, node) in nodes.iter().enumerate() {
            let Ok(index) = u16::try_from(index) else { break };
            it.file(NodeId(index), node);
        }
        let identities: Vec<u8> = nodes
            .iter()
            .filter(|it| it.is_eligible())
            .flat_map(|it| it.key.0.to_be_bytes())
            .collect();
        it.fingerprint = crate::balance::hash(FINGERPRINT_SEED, &identities);
        it.nodes = nodes;
        it
    }

    /// The same table with one node suspect: what a shard goes by from the moment that a node refuses
    /// until the control executor publishes the next one.
    pub fn suspecting(&self, key: NodeKey) -> Snapshot {
        let mut nodes = self.nodes.clone();
        nodes.iter_mut().filter(|it| it.key == key).for_each(|it| it.suspect = true);
        let remembered: Vec<SocketAddr> = self.remembered.iter().copied().collect();
        Snapshot::new(self.generation, nodes, &remembered)
    }

    #[allow(clippy::indexing_slicing)] // families and transports index arrays of their own size
    fn file(&mut self, id: NodeId, node: &Node) {
        self.by_key.insert(node.key, id);
        self.by_ip.insert(node.ip);
        let position = match self.clusters.binary_search_by_key(&node.version, |it| it.version) {
            Ok(position) => position,
            Err(position) => {
                self.clusters
                    .insert(position, Cluster { version: node.version, ..Cluster::default() });
                position
            }
        };
        let cluster = &mut self.clusters[position];
        let family = Family::of(node.ip) as usize;
        for (transport, port) in node.ports.iter() {
            let at = self.by_address.entry(SocketAddr::new(node.ip, port)).or_default();
            if !at.contains(&id) {
                at.push(id);
            }
            cluster.usable[family][transport.index()].push(id);
            if node.is_eligible() {
                cluster.eligible[family][transport.index()].push(id);
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

    /// The live node with this identity.
    pub fn find(&self, key: NodeKey) -> Option<NodeId> {
        self.by_key.get(&key).copied()
    }

    /// The live node at this address, on any of its SIP ports; of this version if one is asked for,
    /// else the newest there.
    pub fn at(&self, address: SocketAddr, version: Option<Version>) -> Option<NodeId> {
        let ids = self.by_address.get(&address)?;
        match version {
            Some(version) => ids.iter().copied().find(|it| self.node(*it).version == version),
            None => ids.last().copied(),
        }
    }

    /// Whether any live node has this IP address.
    pub fn has_ip(&self, ip: IpAddr) -> bool {
        self.by_ip.contains(&ip)
    }

    /// Whether a node that died lately had this address.
    pub fn remembers(&self, address: SocketAddr) -> bool {
        self.remembered.contains(&address)
    }

    /// Highest version with a live node.
    pub fn latest(&self) -> Version {
        self.clusters.last().map_or(Version(0), |it| it.version)
    }

    /// Whether the version has a live node.
    pub fn has_version(&self, version: Version) -> bool {
        self.clusters.binary_search_by_key(&version, |it| it.version).is_ok()
    }

    /// Nodes that may get new associations, in canonical order.
    pub fn eligible(&self, version: Version, family: Family, transport: Transport) -> &[NodeId] {
        self.cluster(version, |it| &it.eligible, family, transport)
    }

    /// Nodes that may serve existing associations, in canonical order.
    pub fn usable(&self, version: Version, family: Family, transport: Transport) -> &[NodeId] {
        self.cluster(version, |it| &it.usable, family, transport)
    }

    #[allow(clippy::indexing_slicing)] // families and transports index arrays of their own size
    fn cluster(
        &self,
        version: Version,
        lists: impl Fn(&Cluster) -> &[[Vec<NodeId>; 5]; 2],
        family: Family,
        transport: Transport,
    ) -> &[NodeId] {
        match self.clusters.binary_search_by_key(&version, |it| it.version) {
            Ok(position) => &lists(&self.clusters[position])[family as usize][transport.index()],
            Err(_) => &[],
        }
    }
}

/// What fits a [`NodeId`] with room to spare; the registry refuses more.
pub const NODES_MAX: usize = 16_384;
const _: () = assert!(NODES_MAX <= u16::MAX as usize);

/// Keeps the fingerprint apart from every other use of the routing hash.
const FINGERPRINT_SEED: u64 = 0x6669_6e67_6572;
