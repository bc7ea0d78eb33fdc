//! What still depends on a node: what an operator waits for before the node is stopped.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::Counters;
use crate::node::{Node, NodeKey};

/// What is left on one node, all shards together.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Left {
    /// Calls that the algorithm remembers: those that ended count until they have been idle for
    /// `callIdAffinityMaxTimeInCache`. `None`: it remembers none by nature.
    pub calls: Option<u64>,
    /// Stream connections of SIP.
    pub sip_connections: u64,
    /// HTTP requests on their way, and WebSocket connections.
    pub http_connections: u64,
    /// Connections to its SMPP server.
    pub smpp_connections: u64,
}

impl Left {
    /// Whether stopping the node would hurt nobody, as far as can be seen from here. Connections of SIP
    /// do not count: they are kept for whatever comes next.
    pub fn is_nothing(&self) -> bool {
        self.calls.unwrap_or(0) + self.http_connections + self.smpp_connections == 0
    }
}

impl Counters {
    /// What is left on a node.
    pub fn left(&self, node: &Node) -> Left {
        let smpp = ["smppPort", "smppSslPort"].into_iter().filter_map(|name| {
            let port = node.properties.get(name)?.trim().parse().ok()?;
            self.smpp.connections.get(&SocketAddr::new(node.ip, port))
        });
        Left {
            calls: self.remembered_calls.map(|_| of(&self.calls_by_node, node.key)),
            sip_connections: of(&self.connections_by_node, node.key),
            http_connections: of(&self.http.busy, node.key),
            smpp_connections: smpp.sum(),
        }
    }
}

/// Adds one map of gauges to another.
pub(super) fn add<K: Copy + Ord>(to: &mut BTreeMap<K, u64>, from: &BTreeMap<K, u64>) {
    for (key, count) in from {
        *to.entry(*key).or_default() += count;
    }
}

fn of(gauges: &BTreeMap<NodeKey, u64>, node: NodeKey) -> u64 {
    gauges.get(&node).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::{Announcement, Registry, Rules};
    use protocols::time::Time;

    #[test]
    fn what_is_left_is_the_sum_of_all_shards_and_protocols() {
        let mut registry = Registry::new(
            Time::ZERO,
            Rules::from(&crate::config::Config::default()),
            &BTreeMap::new(),
        );
        let said = b"ip=10.0.0.1\nudpPort=5060\nsmppPort=2775\nsmppSslPort=2776";
        registry.handle_announcement(Time::ZERO, Announcement::parse(said).unwrap()).unwrap();
        let node = registry.live().next().unwrap().clone();
        let mut sum = Counters::default();
        assert_eq!(sum.left(&node), Left::default());
        assert!(sum.left(&node).is_nothing());
        for shard in 1..=2 {
            let mut it = Counters::default();
            it.remembered_calls(Some(9));
            it.calls_by_node.insert(node.key, shard);
            it.connections_by_node.insert(node.key, 10 * shard);
            it.http.busy.insert(node.key, 100 * shard);
            for port in [2775, 2776, 2777] {
                it.smpp.connections.insert(SocketAddr::new(node.ip, port), 1_000 * shard);
            }
            sum.merge(&it);
        }
        let want = Left {
            calls: Some(3),
            sip_connections: 30,
            http_connections: 300,
            smpp_connections: 6_000,
        };
        assert_eq!(sum.left(&node), want);
        assert!(!sum.left(&node).is_nothing());
    }
}
