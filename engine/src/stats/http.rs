//! What a shard's HTTP relay counts.
//!
//! Source: `http-smpp-registry.md` 4.1: bytes are content, without heads and without the framing of chunks;
//! requests are those received to be forwarded; active connections count both sides of each pair.

use std::collections::BTreeMap;
use std::time::Duration;

use protocols::http::Method;

use super::{Codes, ROWS_MAX, class};
use crate::node::NodeKey;
use crate::snapshot::Snapshot;

/// What one shard's HTTP relay counts. Every method is a few additions.
#[derive(Clone, Debug, Default)]
pub struct HttpCounters {
    methods: [u64; Method::ALL.len()],
    pub(super) codes: Codes,
    refusals: [u64; Refusal::ALL.len()],
    /// Content of requests that went to nodes, bytes.
    pub bytes_to_node: u64,
    /// Content of responses that came from nodes, bytes.
    pub bytes_to_client: u64,
    /// Connections of clients that are open now.
    pub clients: u64,
    /// Those among them whose requests have gone to a node.
    pub paired: u64,
    /// Requests that were sent to another node after one failed.
    pub retries: u64,
    /// Connections that became tunnels.
    pub tunnels: u64,
    /// Tunnels that are open now.
    pub tunnels_open: u64,
    /// Bytes that went through tunnels to nodes.
    pub tunnel_bytes_to_node: u64,
    /// Bytes that went through tunnels to clients.
    pub tunnel_bytes_to_client: u64,
    /// Connections to nodes that carry a request or a tunnel now.
    pub busy: BTreeMap<NodeKey, u64>,
    nodes: ahash::HashMap<NodeKey, HttpNode>,
    gone: HttpNode,
}

impl HttpCounters {
    /// A request to be forwarded came in.
    #[allow(clippy::indexing_slicing)] // methods index an array of their own size
    pub fn request(&mut self, method: Method) {
        self.methods[method.index()] += 1;
    }

    /// A response went to a client: a node's, interim ones too, or our own.
    pub fn response(&mut self, status: u16) {
        self.codes.count(status);
    }

    /// A connection, a request or a response was refused.
    #[allow(clippy::indexing_slicing)] // refusals index an array of their own size
    pub fn refused(&mut self, why: Refusal) {
        self.refusals[why as usize] += 1;
    }

    /// A request went to a node.
    pub fn to_node(&mut self, node: NodeKey) {
        self.row(node).requests += 1;
    }

    /// A node's final response, and the time from the request's arrival to its head.
    pub fn from_node(&mut self, node: NodeKey, status: u16, time: Duration) {
        let row = self.row(node);
        if let Some(it) = row.responses.get_mut(class(status)) {
            *it += 1;
        }
        row.count += 1;
        row.sum += time;
        for (count, bound) in row.at_most.iter_mut().zip(LATENCY_BOUNDS) {
            *count += u64::from(time <= bound);
        }
    }

    /// Gives up the rows of dead nodes once they outnumber the live ones; those of nodes that have another
    /// identity now are theirs.
    pub fn forget_dead(&mut self, snapshot: &Snapshot) {
        for (old, new) in snapshot.renamed() {
            if let Some(row) = self.nodes.remove(&old) {
                self.row(new).merge(&row);
            }
        }
        if self.nodes.len() < 2 * snapshot.nodes().len() + super::ROWS_SPARE {
            return;
        }
        let gone = &mut self.gone;
        self.nodes.retain(|key, row| {
            let is_live = snapshot.find(*key).is_some();
            if !is_live {
                gone.merge(row);
            }
            is_live
        });
    }

    /// Adds another shard's.
    pub fn merge(&mut self, other: &HttpCounters) {
        self.methods.iter_mut().zip(other.methods).for_each(|(to, from)| *to += from);
        self.codes.0.iter_mut().zip(other.codes.0.iter()).for_each(|(to, from)| *to += from);
        self.refusals.iter_mut().zip(other.refusals).for_each(|(to, from)| *to += from);
        self.bytes_to_node += other.bytes_to_node;
        self.bytes_to_client += other.bytes_to_client;
        self.clients += other.clients;
        self.paired += other.paired;
        self.retries += other.retries;
        self.tunnels += other.tunnels;
        self.tunnels_open += other.tunnels_open;
        self.tunnel_bytes_to_node += other.tunnel_bytes_to_node;
        self.tunnel_bytes_to_client += other.tunnel_bytes_to_client;
        for (key, row) in &other.nodes {
            self.row(*key).merge(row);
        }
        self.gone.merge(&other.gone);
        super::left::add(&mut self.busy, &other.busy);
    }

    /// Requests of one method.
    pub fn requests(&self, method: Method) -> u64 {
        self.methods.get(method.index()).copied().unwrap_or(0)
    }

    /// Requests of all methods.
    pub fn all_requests(&self) -> u64 {
        self.methods.iter().sum()
    }

    /// Responses of one class, 1 to 5.
    pub fn responses(&self, class: usize) -> u64 {
        self.codes.class(class)
    }

    /// How often this happened.
    pub fn refusals(&self, why: Refusal) -> u64 {
        self.refusals.get(why as usize).copied().unwrap_or(0)
    }

    /// The row of one node.
    pub fn node(&self, key: NodeKey) -> HttpNode {
        self.nodes.get(&key).copied().unwrap_or_default()
    }

    fn row(&mut self, key: NodeKey) -> &mut HttpNode {
        if self.nodes.len() >= ROWS_MAX && !self.nodes.contains_key(&key) {
            return &mut self.gone;
        }
        self.nodes.entry(key).or_default()
    }
}

/// What one node got and gave by HTTP.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct HttpNode {
    /// Requests sent to it, repeated ones too.
    pub requests: u64,
    /// Its final responses, 1xx (101 alone) to 6xx.
    pub responses: [u64; 6],
    /// Responses within each of [`LATENCY_BOUNDS`].
    pub at_most: [u64; LATENCY_BOUNDS.len()],
    /// All of them.
    pub count: u64,
    /// Their times together.
    pub sum: Duration,
}

impl HttpNode {
    fn merge(&mut self, other: &HttpNode) {
        self.requests += other.requests;
        self.responses.iter_mut().zip(other.responses).for_each(|(to, from)| *to += from);
        self.at_most.iter_mut().zip(other.at_most).for_each(|(to, from)| *to += from);
        self.count += other.count;
        self.sum += other.sum;
    }
}

/// Bounds of the latency histograms: from a cached page to a report that takes its time.
pub const LATENCY_BOUNDS: [Duration; 11] = [
    Duration::from_micros(200),
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_millis(2),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(30),
];

/// Every way in which HTTP does not get its answer from a node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Refusal {
    /// A request that is against the standard, or that nobody can frame.
    Malformed,
    /// A head, target or body beyond its limit.
    TooLarge,
    /// A client that sends or reads too slowly.
    Slow,
    /// More connections than a shard takes.
    Connections,
    /// More connections than one source may have.
    SourceConnections,
    /// No node for the request.
    NoNode,
    /// A node failed and there was no other: 502.
    BadGateway,
    /// A node took too long: 504.
    GatewayTimeout,
    /// A response that broke off after its beginning had gone to the client.
    Aborted,
    /// A client that went before its answer.
    ClientGone,
    /// No connection to a node for want of descriptors, ports or memory of our own: 503.
    Shortage,
}

impl Refusal {
    /// Every one, in numeric order.
    pub const ALL: [Refusal; 11] = [
        Refusal::Malformed,
        Refusal::TooLarge,
        Refusal::Slow,
        Refusal::Connections,
        Refusal::SourceConnections,
        Refusal::NoNode,
        Refusal::BadGateway,
        Refusal::GatewayTimeout,
        Refusal::Aborted,
        Refusal::ClientGone,
        Refusal::Shortage,
    ];

    /// As metrics and log lines name it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Refusal::Malformed => "malformed",
            Refusal::TooLarge => "too_large",
            Refusal::Slow => "slow",
            Refusal::Connections => "connections",
            Refusal::SourceConnections => "source_connections",
            Refusal::NoNode => "no_node",
            Refusal::BadGateway => "bad_gateway",
            Refusal::GatewayTimeout => "gateway_timeout",
            Refusal::Aborted => "aborted",
            Refusal::ClientGone => "client_gone",
            Refusal::Shortage => "shortage",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_add_up() {
        let mut one = HttpCounters::default();
        one.request(Method::Post);
        one.response(200);
        one.response(404);
        one.refused(Refusal::NoNode);
        one.to_node(NodeKey(1));
        one.from_node(NodeKey(1), 200, Duration::from_millis(3));
        (one.bytes_to_node, one.bytes_to_client, one.paired) = (12, 24, 1);
        let mut sum = HttpCounters::default();
        (0..3).for_each(|_| sum.merge(&one));
        assert_eq!((sum.requests(Method::Post), sum.all_requests()), (3, 3));
        assert_eq!((sum.responses(2), sum.responses(4), sum.responses(5)), (3, 3, 0));
        assert_eq!(sum.refusals(Refusal::NoNode), 3);
        assert_eq!((sum.bytes_to_node, sum.bytes_to_client, sum.paired), (36, 72, 3));
        let node = sum.node(NodeKey(1));
        assert_eq!((node.requests, node.count, node.responses[1]), (3, 3, 3));
        assert_eq!(node.at_most, [0, 0, 0, 0, 3, 3, 3, 3, 3, 3, 3]);
        assert_eq!(node.sum, Duration::from_millis(9));
    }

    #[test]
    fn refusals_are_numbered_in_their_order() {
        for (index, it) in Refusal::ALL.into_iter().enumerate() {
            assert_eq!(it as usize, index);
        }
    }
}
