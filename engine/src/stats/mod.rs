//! What a shard counts, and how the sums are shown: `/lbstat`, `/lbinfo`, `/metrics`, `/health`.
//!
//! Plain numbers, one set per shard, added up when somebody asks. Source: `http-smpp-registry.md` 4, guide
//! 1.12. Does not serve anything: every renderer is a function from a [`Scrape`] to text.

mod http;
mod json;
mod left;
mod prometheus;
pub mod smpp;

use std::collections::BTreeMap;
use std::time::Duration;

use protocols::sip::Transport;
use protocols::sip::message::Method;
use protocols::time::Time;

pub use self::http::{HttpCounters, HttpNode, LATENCY_BOUNDS, Refusal};
pub use self::json::{health, lbinfo, lbstat};
pub use self::left::{CallsOfNode, Left};
pub use self::prometheus::metrics;
use crate::node::NodeKey;
use crate::registry::Registry;
use crate::relay::{DropReason, Leg};
use crate::snapshot::{NODES_MAX, Snapshot};

/// What one shard's relay counts. Every method is a few additions.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Requests received, by method and by leg.
    methods: [[u64; 2]; Method::ALL.len()],
    /// Responses, by code.
    codes: Codes,
    /// Messages received, by transport, leg, and whether they are responses.
    messages: [[[u64; 2]; 2]; Transport::ALL.len()],
    drops: [u64; DropReason::ALL.len()],
    content_bytes: u64,
    remembered_calls: Option<u64>,
    nodes: Nodes,
    /// Calls that the algorithm remembers now.
    pub remembered_by_node: BTreeMap<NodeKey, u64>,
    /// Calls of nodes that are to get no new ones.
    pub calls_up: BTreeMap<NodeKey, CallsOfNode>,
    /// Stream connections of SIP that are open now.
    pub connections_by_node: BTreeMap<NodeKey, u64>,
    /// Those of them that were used a moment ago.
    pub busy_by_node: BTreeMap<NodeKey, u64>,
    /// What the shard's HTTP relay counts; the shard brings the two together.
    pub http: HttpCounters,
    /// The SMPP relay's.
    pub smpp: smpp::SmppCounters,
}

impl Counters {
    /// A request came in; `content_bytes` is the length of its body.
    #[allow(clippy::indexing_slicing)] // enumerations index arrays of their own size
    pub fn request(
        &mut self,
        method: Method,
        leg: Leg,
        transport: Transport,
        content_bytes: usize,
    ) {
        self.methods[method.index()][leg as usize] += 1;
        self.messages[transport.index()][leg as usize][0] += 1;
        self.content_bytes += content_bytes as u64;
    }

    /// A response came in, or is our own; `content_bytes` is the length of its body.
    #[allow(clippy::indexing_slicing)] // enumerations index arrays of their own size
    pub fn response(&mut self, status: u16, leg: Leg, transport: Transport, content_bytes: usize) {
        self.codes.count(status);
        self.messages[transport.index()][leg as usize][1] += 1;
        self.content_bytes += content_bytes as u64;
    }

    /// A message went nowhere.
    #[allow(clippy::indexing_slicing)] // enumerations index arrays of their own size
    pub fn dropped(&mut self, reason: DropReason) {
        self.drops[reason as usize] += 1;
    }

    /// A request goes to a node; `is_call`: it begins a call.
    pub fn to_node(&mut self, node: NodeKey, is_call: bool) {
        let it = self.nodes.row(node);
        it.requests += 1;
        it.calls += u64::from(is_call);
    }

    /// A node answered.
    pub fn from_node(&mut self, node: NodeKey, status: u16) {
        if let Some(it) = self.nodes.row(node).responses.get_mut(class(status)) {
            *it += 1;
        }
    }

    /// Calls that the algorithm remembers now; `None`: it remembers none by nature.
    pub fn remembered_calls(&mut self, calls: Option<usize>) {
        self.remembered_calls = calls.map(|it| it as u64);
    }

    /// Gives up the rows of dead nodes once they outnumber the live ones; their numbers stay in the sum
    /// of all. Those of nodes that have another identity now are theirs. Call it with each new snapshot.
    pub fn forget_dead(&mut self, snapshot: &Snapshot) {
        self.nodes.forget_dead(snapshot);
        self.http.forget_dead(snapshot);
    }

    /// Adds another shard's.
    pub fn merge(&mut self, other: &Counters) {
        let sum = |to: &mut u64, from: &u64| *to += from;
        let pairs = self.methods.as_flattened_mut().iter_mut().zip(other.methods.as_flattened());
        pairs.for_each(|(to, from)| sum(to, from));
        let ours = self.messages.as_flattened_mut().as_flattened_mut();
        let theirs = other.messages.as_flattened().as_flattened();
        ours.iter_mut().zip(theirs).for_each(|(to, from)| sum(to, from));
        self.drops.iter_mut().zip(&other.drops).for_each(|(to, from)| sum(to, from));
        self.codes.0.iter_mut().zip(other.codes.0.iter()).for_each(|(to, from)| sum(to, from));
        self.content_bytes += other.content_bytes;
        self.remembered_calls = match (self.remembered_calls, other.remembered_calls) {
            (Some(ours), Some(theirs)) => Some(ours + theirs),
            (ours, theirs) => ours.or(theirs),
        };
        for (key, row) in &other.nodes.rows {
            self.nodes.row(*key).merge(row);
        }
        self.nodes.gone.merge(&other.nodes.gone);
        left::add(&mut self.remembered_by_node, &other.remembered_by_node);
        for (key, calls) in &other.calls_up {
            self.calls_up.entry(*key).or_default().merge(calls);
        }
        left::add(&mut self.connections_by_node, &other.connections_by_node);
        left::add(&mut self.busy_by_node, &other.busy_by_node);
        self.http.merge(&other.http);
        self.smpp.merge(&other.smpp);
    }

    /// The row of one node.
    pub fn node(&self, key: NodeKey) -> NodeCounters {
        self.nodes.find(key).copied().unwrap_or_default()
    }

    /// Requests by method, both legs.
    fn requests(&self, method: Method) -> u64 {
        self.methods.get(method.index()).map_or(0, |legs| legs.iter().sum())
    }

    fn all_requests(&self) -> u64 {
        Method::ALL.into_iter().map(|it| self.requests(it)).sum()
    }

    fn all_responses(&self) -> u64 {
        self.codes.0.iter().sum()
    }

    /// Messages of one kind, `(requests, responses)`.
    pub(crate) fn messages(&self, transport: Transport, leg: Leg) -> (u64, u64) {
        let row = self.messages.get(transport.index()).and_then(|it| it.get(leg as usize));
        row.map_or((0, 0), |[requests, responses]| (*requests, *responses))
    }

    fn drops(&self, reason: DropReason) -> u64 {
        self.drops.get(reason as usize).copied().unwrap_or(0)
    }
}

/// Responses by status code, 100 to 999.
#[derive(Clone, Debug)]
struct Codes(Box<[u64; 900]>);

impl Default for Codes {
    fn default() -> Codes {
        Codes(Box::new([0; 900]))
    }
}

impl Codes {
    /// A status that is no status counts as 999: the relay refuses such messages first.
    fn count(&mut self, status: u16) {
        let index = usize::from(status).wrapping_sub(100).min(self.0.len() - 1);
        if let Some(it) = self.0.get_mut(index) {
            *it += 1;
        }
    }

    /// Every code that occurred.
    fn iter(&self) -> impl Iterator<Item = (usize, u64)> + '_ {
        self.0.iter().enumerate().map(|(index, count)| (index + 100, *count)).filter(|it| it.1 > 0)
    }

    /// 1 to 9.
    fn class(&self, class: usize) -> u64 {
        self.iter().filter(|(code, _)| code / 100 == class).map(|(_, count)| count).sum()
    }
}

/// What one node got and gave.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct NodeCounters {
    /// Calls that were given to it.
    pub calls: u64,
    /// Requests that were sent to it, those of its calls included.
    pub requests: u64,
    /// Its responses, 1xx to 6xx.
    pub responses: [u64; 6],
}

impl NodeCounters {
    fn merge(&mut self, other: &NodeCounters) {
        self.calls += other.calls;
        self.requests += other.requests;
        self.responses.iter_mut().zip(other.responses).for_each(|(to, from)| *to += from);
    }
}

/// Counters by node: a row is found through a small direct-mapped cache, or else a map.
#[derive(Clone, Debug, Default)]
struct Nodes {
    rows: Vec<(NodeKey, NodeCounters)>,
    index: ahash::HashMap<NodeKey, u32>,
    /// Rows by the lowest bits of the key, which is a hash already.
    cache: Cache,
    /// Nodes that were forgotten, and those past [`ROWS_MAX`].
    gone: NodeCounters,
}

#[derive(Clone, Copy, Debug)]
struct Cache([u32; 64]);

impl Default for Cache {
    fn default() -> Cache {
        Cache([u32::MAX; 64])
    }
}

impl Nodes {
    #[allow(clippy::indexing_slicing)] // 64 places, 6 bits; rows and index are changed together
    fn row(&mut self, key: NodeKey) -> &mut NodeCounters {
        let place = (key.0 & 63) as usize;
        let cached = self.cache.0[place] as usize;
        if self.rows.get(cached).is_some_and(|it| it.0 == key) {
            return &mut self.rows[cached].1;
        }
        let row = match self.index.get(&key) {
            Some(row) => *row,
            None if self.rows.len() >= ROWS_MAX => return &mut self.gone,
            None => {
                let row = u32::try_from(self.rows.len()).unwrap_or(u32::MAX);
                self.rows.push((key, NodeCounters::default()));
                self.index.insert(key, row);
                row
            }
        };
        self.cache.0[place] = row;
        &mut self.rows[row as usize].1
    }

    fn find(&self, key: NodeKey) -> Option<&NodeCounters> {
        let row = *self.index.get(&key)?;
        self.rows.get(row as usize).map(|(_, it)| it)
    }

    fn forget_dead(&mut self, snapshot: &Snapshot) {
        let is_renamed = snapshot.renamed().any(|(old, _)| self.index.contains_key(&old));
        if !is_renamed && self.rows.len() < 2 * snapshot.nodes().len() + ROWS_SPARE {
            return;
        }
        let rows = std::mem::take(&mut self.rows);
        self.index.clear();
        self.cache = Cache::default();
        for (key, counters) in rows {
            match snapshot.find(key) {
                Some(id) => self.row(snapshot.node(id).key).merge(&counters),
                None => self.gone.merge(&counters),
            }
        }
    }
}

/// 0 for 1xx.
fn class(status: u16) -> usize {
    usize::from(status / 100).wrapping_sub(1)
}

/// What a shard knows of its own work since its start.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Load {
    /// Datagrams received.
    pub datagrams: u64,
    /// Receive calls that brought any.
    pub batches: u64,
    /// Messages received on streams.
    pub stream_messages: u64,
    /// Datagrams and stream writes that left.
    pub sent: u64,
    /// Wake-ups.
    pub turns: u64,
    /// Time between wake-up and sleep.
    pub busy: Duration,
    /// Datagrams that the kernel dropped before we read them.
    pub receive_drops: u64,
    /// Messages handed to another shard.
    pub hops: u64,
    /// Stream connections open now.
    pub connections: u64,
    /// Stream connections refused for lack of room.
    pub refused_connections: u64,
    /// Messages decided again because they could not be delivered.
    pub retried: u64,
    /// What became of connections.
    pub streams: Streams,
    /// Since it said so: more than a moment for a shard that is too busy to say anything new.
    pub age: Duration,
}

/// What became of a shard's stream connections since its start.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Streams {
    /// Refused because their source had too many.
    pub refused_source: u64,
    /// TLS handshakes that succeeded, either way.
    pub tls_handshakes: u64,
    /// Those of them that resumed an earlier session.
    pub tls_resumed: u64,
    /// TLS handshakes that failed: no common terms, no certificate that is trusted, no TLS at all.
    pub tls_failed: u64,
    /// TLS records, after the handshake, that could not be read.
    pub tls_broken: u64,
    /// WebSocket handshakes that succeeded, either way.
    pub websocket_opened: u64,
    /// WebSocket handshakes that were refused, by us or by a node.
    pub websocket_refused: u64,
    /// WebSocket connections that broke the protocol.
    pub websocket_broken: u64,
    /// Handshakes that took too long.
    pub handshake_timeouts: u64,
    /// Clients that did not read what was sent to them.
    pub slow_closed: u64,
    /// Connections that were silent for too long.
    pub idle_closed: u64,
    /// Their peers had gone without a word: nothing was acknowledged any more.
    pub lost: u64,
    /// How often nobody could be taken in or called for want of descriptors, memory or ports of ours.
    pub shortages: u64,
    /// HTTP and SMPP connections that went because we stumbled over them: a fault of ours.
    pub panicked: u64,
}

/// What the control thread has heard of nodes by RMI and HTTP since the start.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Beats {
    /// Calls by RMI: pings, removals, switchovers.
    pub rmi: u64,
    /// Tests of a connection before it is used again.
    pub rmi_pings: u64,
    /// Leases of the object, begun and renewed.
    pub rmi_leases: u64,
    /// Leases given back.
    pub rmi_releases: u64,
    /// Commands by HTTP.
    pub json: u64,
    /// Connections and requests that were neither.
    pub malformed: u64,
    /// Connections closed for lack of room, or refused for where they came from.
    pub refused: u64,
    /// Connections taken in.
    pub accepted: u64,
    /// Connections that are open now.
    pub connections: u64,
}

/// A certificate that we show.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Certificate {
    /// Its name in the key store.
    pub alias: String,
    /// Second since 1970 after which it is not valid.
    pub not_after: i64,
}

/// Time that messages spend in the balancer, all shards together.
#[derive(Clone, Debug, Default)]
pub struct Residence {
    /// Messages that took at most each of [`RESIDENCE_BOUNDS`].
    pub at_most: [u64; RESIDENCE_BOUNDS.len()],
    /// All messages.
    pub count: u64,
    /// All times together.
    pub sum: Duration,
    /// Half of the messages took no longer.
    pub p50: Duration,
    /// Nor did 99 of 100.
    pub p99: Duration,
    /// Nor did 999 of 1000.
    pub p999: Duration,
    /// The longest.
    pub max: Duration,
}

/// Bounds of the histogram in `/metrics`.
pub const RESIDENCE_BOUNDS: [Duration; 14] = [
    Duration::from_micros(5),
    Duration::from_micros(10),
    Duration::from_micros(20),
    Duration::from_micros(50),
    Duration::from_micros(100),
    Duration::from_micros(200),
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_millis(2),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_secs(1),
];

/// What the process knows of itself.
#[derive(Clone, Copy, Debug)]
pub struct Process<'a> {
    /// Name of the program.
    pub name: &'a str,
    /// Its version.
    pub version: &'a str,
    /// CPU of the whole process, percent of all cores.
    pub cpu_percent: u32,
    /// Resident set, bytes.
    pub resident_bytes: u64,
    /// Wall clock at [`Time::ZERO`], milliseconds since 1970.
    pub epoch_ms: u64,
    /// It drains and will end.
    pub is_stopping: bool,
}

/// Everything that a renderer may show, at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Scrape<'a> {
    /// The moment.
    pub now: Time,
    /// The process.
    pub process: Process<'a>,
    /// The table that shards work with.
    pub snapshot: &'a Snapshot,
    /// The records behind it.
    pub registry: &'a Registry,
    /// Every shard's figures, in order of their numbers.
    pub shards: &'a [(&'a Counters, Load)],
    /// Time in the balancer.
    pub residence: &'a Residence,
    /// What we show to those who connect by TLS.
    pub certificates: &'a [Certificate],
    /// Heartbeats by RMI and HTTP.
    pub beats: Beats,
}

impl Scrape<'_> {
    fn totals(&self) -> Counters {
        let mut totals = Counters::default();
        self.shards.iter().for_each(|(counters, _)| totals.merge(counters));
        totals
    }

    fn connections(&self) -> u64 {
        self.shards.iter().map(|(_, load)| load.connections).sum()
    }

    /// Of the oldest figures among the shards'.
    fn age(&self) -> Duration {
        self.shards.iter().map(|(_, load)| load.age).max().unwrap_or_default()
    }

    /// Wall clock, milliseconds since 1970.
    fn wall_ms(&self, time: Time) -> u64 {
        self.process.epoch_ms.saturating_add(time.as_millis())
    }
}

/// Rows of nodes, live and dead.
const ROWS_MAX: usize = 2 * NODES_MAX;
/// Dead nodes are worth keeping as long as they are few: some come back.
const ROWS_SPARE: usize = 64;

#[cfg(test)]
mod tests;
