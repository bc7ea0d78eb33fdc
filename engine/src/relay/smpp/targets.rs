//! The servers: `remoteServers` in their order, then nodes that announce `smppPort`, and whose turn it is.

use std::net::SocketAddr;
use std::sync::Arc;

use super::active::Active;
use crate::config::SmppToProvider;
use crate::node::Node;
use crate::snapshot::Snapshot;

/// A shard's list of servers.
#[derive(Debug)]
pub(super) struct Targets {
    configured: Vec<SocketAddr>,
    list: Vec<Target>,
    /// Every node with a port for SMPP, whether it takes binds or not.
    announced: Vec<SocketAddr>,
    /// Those that were there before.
    gone: Vec<SocketAddr>,
    generation: Option<u64>,
    turn: usize,
    active: Arc<Active>,
}

/// One server: known by its plain address even where it is reached by TLS.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Target {
    address: SocketAddr,
    /// `smppSslPort` of a node.
    secure: Option<SocketAddr>,
}

impl Targets {
    /// `turn` is where the round robin begins.
    pub(super) fn new(configured: Vec<SocketAddr>, turn: usize) -> Targets {
        let active = Arc::default();
        let mut it = Targets {
            configured,
            list: Vec::new(),
            announced: Vec::new(),
            gone: Vec::new(),
            generation: None,
            turn,
            active,
        };
        it.list = it.merged(None);
        it
    }

    /// Another `remoteServers`. Takes effect with the next [`Targets::refresh`].
    pub(super) fn configure(&mut self, configured: Vec<SocketAddr>) {
        self.configured = configured;
        self.generation = None;
    }

    /// Looks at the nodes. Returns whether the list has changed.
    pub(super) fn refresh(&mut self, snapshot: &Snapshot) -> bool {
        if self.generation == Some(snapshot.generation()) {
            return false;
        }
        self.generation = Some(snapshot.generation());
        let list = self.merged(Some(snapshot));
        let has_changed = list != self.list;
        self.list = list;
        let announced = snapshot.nodes().iter().filter_map(|it| port(it, "smppPort")).collect();
        self.gone = std::mem::replace(&mut self.announced, announced);
        self.gone.retain(|it| !self.announced.contains(it) && !self.configured.contains(it));
        has_changed
    }

    /// Takes out the servers that were nodes and are no longer in the table since the last
    /// [`Targets::refresh`].
    pub(super) fn take_gone(&mut self) -> Vec<SocketAddr> {
        std::mem::take(&mut self.gone)
    }

    /// Whether a bind may go there.
    pub(super) fn takes_binds(&self, server: SocketAddr) -> bool {
        self.list.iter().any(|it| it.address == server)
    }

    /// Whether a node has that port or the configuration names it, be it that it takes no binds.
    pub(super) fn is_known(&self, server: SocketAddr) -> bool {
        self.announced.contains(&server) || self.configured.contains(&server)
    }

    fn merged(&self, snapshot: Option<&Snapshot>) -> Vec<Target> {
        let mut list: Vec<Target> = Vec::new();
        let configured = self.configured.iter().map(|it| Target { address: *it, secure: None });
        let nodes = snapshot.iter().flat_map(|it| {
            // Of the newest version that has any.
            let is_open = |node: &&Node| {
                !node.graceful && node.bad.is_none() && port(node, "smppPort").is_some()
            };
            let version = it.nodes().iter().filter(is_open).map(|it| it.version).max();
            let is_newest = move |node: &&Node| is_open(node) && Some(node.version) == version;
            it.nodes().iter().filter(is_newest).filter_map(|node| {
                Some(Target { address: port(node, "smppPort")?, secure: port(node, "smppSslPort") })
            })
        });
        for target in configured.chain(nodes).take(TARGETS_MAX) {
            if !list.iter().any(|it| it.address == target.address) {
                list.push(target);
            }
        }
        list
    }

    /// Every server, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = SocketAddr> {
        self.list.iter().map(|it| it.address)
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    /// The server of a new bind.
    pub(super) fn choose(&mut self, by: SmppToProvider) -> Option<SocketAddr> {
        match by {
            SmppToProvider::RoundRobin => {
                let at = self.turn.checked_rem(self.list.len())?;
                self.turn = at + 1;
                self.list.get(at).map(|it| it.address)
            }
            SmppToProvider::ActiveStandby => {
                self.active.choose(self.list.iter().map(|it| it.address))
            }
        }
    }

    /// The server that follows `failed`, the first one again after the last.
    pub(super) fn after(&self, failed: SocketAddr) -> Option<SocketAddr> {
        let next = self.list.iter().position(|it| it.address == failed).map_or(0, |it| it + 1);
        self.list.get(next).or(self.list.first()).map(|it| it.address)
    }

    /// The server failed: if it was the active one, the next is.
    pub(super) fn failed(&self, server: SocketAddr) {
        if let Some(next) = self.after(server) {
            self.active.fail_over(server, next);
        }
    }

    /// One active server for several shards.
    pub(super) fn share(&mut self, active: Arc<Active>) {
        self.active = active;
    }

    /// A connection to the server is bound.
    pub(super) fn bound(&self, server: SocketAddr) {
        self.active.bound(server);
    }

    /// One that was bound is no more.
    pub(super) fn unbound(&self, server: SocketAddr) {
        self.active.unbound(server);
    }

    /// Whether any is bound there, of any shard.
    pub(super) fn has_bound(&self, server: SocketAddr) -> bool {
        self.active.has_bound(server)
    }

    /// Where to connect to.
    pub(super) fn address(&self, server: SocketAddr, is_secure: bool) -> SocketAddr {
        let secure = || self.list.iter().find(|it| it.address == server)?.secure;
        if is_secure { secure().unwrap_or(server) } else { server }
    }
}

fn port(node: &Node, property: &str) -> Option<SocketAddr> {
    let port: u16 = node.properties.get(property)?.trim().parse().ok()?;
    (port > 0).then(|| SocketAddr::new(node.ip, port))
}

/// More servers than anybody has; each user space keeps a row for each.
const TARGETS_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::testing::node;
    use crate::node::Version;

    fn server(number: u16) -> SocketAddr {
        SocketAddr::new([127, 0, 0, 1].into(), 10_000 + number)
    }

    fn choices(it: &mut Targets, by: SmppToProvider, count: usize) -> Vec<u16> {
        (0..count).map(|_| it.choose(by).unwrap().port() - 10_000).collect()
    }

    #[test]
    fn round_robin_is_exact() {
        let mut it = Targets::new([1, 2, 3].map(server).to_vec(), 0);
        assert_eq!(choices(&mut it, SmppToProvider::RoundRobin, 7), [1, 2, 3, 1, 2, 3, 1]);
        let mut second_shard = Targets::new([1, 2, 3].map(server).to_vec(), 1);
        assert_eq!(choices(&mut second_shard, SmppToProvider::RoundRobin, 3), [2, 3, 1]);
        let mut none = Targets::new(Vec::new(), 0);
        assert_eq!(none.choose(SmppToProvider::RoundRobin), None);
        assert_eq!(none.choose(SmppToProvider::ActiveStandby), None);
    }

    #[test]
    fn a_standby_becomes_active_when_the_active_one_fails() {
        let mut it = Targets::new([1, 2].map(server).to_vec(), 0);
        assert_eq!(choices(&mut it, SmppToProvider::ActiveStandby, 2), [1, 1]);
        it.failed(server(2));
        assert_eq!(choices(&mut it, SmppToProvider::ActiveStandby, 2), [1, 1]);
        it.failed(server(1));
        it.failed(server(1));
        assert_eq!(choices(&mut it, SmppToProvider::ActiveStandby, 2), [2, 2]);
    }

    #[test]
    fn shards_have_one_active_server() {
        let shared = Arc::default();
        let mut shards = [[1, 2, 3], [1, 2, 3], [2, 3, 4]].map(|list| {
            let mut it = Targets::new(list.map(server).to_vec(), 0);
            it.share(Arc::clone(&shared));
            it
        });
        let by = SmppToProvider::ActiveStandby;
        assert_eq!(choices(&mut shards[0], by, 1), [1]);
        shards.iter().for_each(|it| it.failed(server(1)));
        assert_eq!(shards.each_mut().map(|it| choices(it, by, 1)[0]), [2, 2, 2], "one move");
        shards[2].failed(server(2));
        assert_eq!(shards.each_mut().map(|it| choices(it, by, 1)[0]), [3, 3, 3]);
        shards[0].bound(server(3));
        shards[1].bound(server(3));
        shards[0].unbound(server(3));
        assert!(shards[0].has_bound(server(3)), "the other shard's");
        shards[1].unbound(server(3));
        assert!(!shards[2].has_bound(server(3)));
    }

    #[test]
    fn nodes_with_an_smpp_port_are_servers_too() {
        let with = |number, port: &str| {
            let mut it = node(number);
            it.properties.insert("smppPort".to_owned(), port.to_owned());
            it
        };
        let mut secure = with(2, "2775");
        secure.properties.insert("smppSslPort".to_owned(), "2776".to_owned());
        let mut leaving = with(4, "2775");
        leaving.graceful = true;
        let nodes = vec![with(1, "2775"), secure, node(3), leaving, with(5, "x"), with(6, "0")];
        let snapshot = Snapshot::new(7, nodes, &[]);
        let mut it = Targets::new(vec![server(1)], 0);
        assert!(it.refresh(&snapshot));
        assert!(!it.refresh(&snapshot), "nothing new");
        let at = |number, port| SocketAddr::new(node(number).ip, port);
        assert_eq!(it.iter().collect::<Vec<_>>(), [server(1), at(1, 2775), at(2, 2775)]);
        assert_eq!(it.after(at(2, 2775)), Some(server(1)));
        assert_eq!(it.address(at(2, 2775), true), at(2, 2776));
        assert_eq!(it.address(at(1, 2775), true), at(1, 2775), "as good as there is");
        it.configure(vec![at(1, 2775), server(9)]);
        assert!(it.refresh(&snapshot));
        assert_eq!(it.iter().collect::<Vec<_>>(), [at(1, 2775), server(9), at(2, 2775)]);

        // A newer version that takes no binds, by its wish or for lack of a port, changes nothing.
        let mut newer = with(7, "2775");
        (newer.version, newer.graceful) = (Version(1), true);
        let portless = Node { version: Version(2), ..node(8) };
        let nodes = vec![with(1, "2775"), newer.clone(), portless.clone()];
        let mut it = Targets::new(Vec::new(), 0);
        it.refresh(&Snapshot::new(8, nodes, &[]));
        assert_eq!(it.iter().collect::<Vec<_>>(), [at(1, 2775)]);
        newer.graceful = false;
        it.refresh(&Snapshot::new(9, vec![with(1, "2775"), newer, portless], &[]));
        assert_eq!(it.iter().collect::<Vec<_>>(), [at(7, 2775)]);
    }
}
