//! What still depends on a node: what an operator waits for before the node is stopped.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use protocols::time::Time;

use super::Counters;
use crate::node::{Node, NodeKey};

/// What is left on one node, all shards together.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Left {
    /// Calls that are up. `None`: nobody waits for their end, and they are not counted.
    pub calls: Option<u64>,
    /// Calls that the algorithm remembers: those that ended count until they have been idle for
    /// `callIdAffinityMaxTimeInCache`. `None`: it remembers none by nature.
    pub remembered: Option<u64>,
    /// Stream connections of SIP.
    pub sip_connections: u64,
    /// Those of them that carried something a moment ago: transactions may be open there, of calls or not.
    pub sip_busy: u64,
    /// HTTP requests on their way, and WebSocket connections.
    pub http_connections: u64,
    /// Connections to its SMPP server.
    pub smpp_connections: u64,
}

impl Left {
    /// Whether stopping the node would hurt nobody, as far as can be seen from here. Quiet connections of
    /// SIP do not count: they are kept for hours, for whatever comes next.
    pub fn is_nothing(&self) -> bool {
        let calls = self.calls.or(self.remembered).unwrap_or(0);
        calls + self.sip_busy + self.http_connections + self.smpp_connections == 0
    }
}

/// Calls of one node by the hash of their Call-ID: when each was last heard of, and whether it was up then.
#[derive(Clone, Debug, Default)]
pub struct CallsOfNode(ahash::HashMap<u64, (Time, bool)>);

impl CallsOfNode {
    /// News of a call; older than what is known, they change nothing.
    pub fn add(&mut self, call: u64, at: Time, is_up: bool) {
        let known = self.0.entry(call).or_insert((at, is_up));
        if known.0 <= at {
            *known = (at, is_up);
        }
    }

    /// Adds what another shard knows.
    pub fn merge(&mut self, other: &CallsOfNode) {
        for (call, (at, is_up)) in &other.0 {
            self.add(*call, *at, *is_up);
        }
    }

    /// How many are up.
    pub fn up(&self) -> u64 {
        self.0.values().filter(|it| it.1).count() as u64
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
            calls: self.calls_up.get(&node.key).map(CallsOfNode::up),
            remembered: self.remembered_calls.map(|_| of(&self.remembered_by_node, node.key)),
            sip_connections: of(&self.connections_by_node, node.key),
            sip_busy: of(&self.busy_by_node, node.key),
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
            it.remembered_by_node.insert(node.key, shard);
            it.connections_by_node.insert(node.key, 10 * shard);
            it.busy_by_node.insert(node.key, shard);
            it.http.busy.insert(node.key, 100 * shard);
            for port in [2775, 2776, 2777] {
                it.smpp.connections.insert(SocketAddr::new(node.ip, port), 1_000 * shard);
            }
            sum.merge(&it);
        }
        let want = Left {
            calls: None,
            remembered: Some(3),
            sip_connections: 30,
            sip_busy: 3,
            http_connections: 300,
            smpp_connections: 6_000,
        };
        assert_eq!(sum.left(&node), want);
        assert!(!sum.left(&node).is_nothing());
    }
    /// One shard sees a call begin, another sees it end.
    #[test]
    fn the_latest_news_of_a_call_count_whichever_shard_has_them() {
        let at = Time::from_millis;
        let news = |all: &[(u64, u64, bool)]| {
            let mut calls = CallsOfNode::default();
            all.iter().for_each(|it| calls.add(it.0, at(it.1), it.2));
            calls
        };
        let one = news(&[(1, 10, true), (2, 10, true), (3, 30, true), (4, 10, false)]);
        let other = news(&[(1, 20, false), (2, 5, true), (3, 20, false)]);
        for (first, second) in [(&one, &other), (&other, &one)] {
            let mut sum = first.clone();
            sum.merge(second);
            assert_eq!(sum.up(), 2, "1 ended elsewhere; 3 began again");
        }
    }
}
