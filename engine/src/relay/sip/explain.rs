//! Why a message goes where it goes: the relay's own decision, told step by step.
//!
//! `trunkctl explain` and `/lbexplain` call [`explain`]; the packet path runs the same code with a
//! trace that is compiled away.

use std::fmt::{self, Write as _};
use std::sync::Arc;

use super::{Attempt, Relay, Settings};
use crate::balance::{Query, Shard};
use crate::config::Steering;
use crate::node::{Bad, Node, Way};
use crate::relay::{Arrival, Hop, Verdict};
use crate::snapshot::{Candidates, Family, NodeId, Snapshot};

/// Listens to a decision.
pub(super) trait Trace {
    /// Whether anybody listens; `false` removes the telling from the packet path.
    const ON: bool;

    /// One step, as a sentence.
    fn say(&mut self, step: fmt::Arguments<'_>);

    /// A node was settled on.
    fn node(&mut self, snapshot: &Snapshot, node: NodeId, why: &str) {
        let node = snapshot.node(node);
        self.say(format_args!(
            "node {} {} version {} ({why})",
            node.host_name, node.ip, node.version.0
        ));
    }

    /// Every node, and why it is or is not a candidate.
    fn candidates(&mut self, snapshot: &Snapshot, query: &Query<'_>, candidates: &Candidates) {
        for (id, node) in (0..).map(NodeId).zip(snapshot.nodes()) {
            let (name, ip) = (&node.host_name, node.ip);
            let flaws = flaws(node, query).join("; ");
            match (candidates.ids().contains(&id), flaws.as_str()) {
                (true, "") => self.say(format_args!("  {name} {ip}: candidate")),
                (true, flaws) => {
                    self.say(format_args!("  {name} {ip}: candidate, although {flaws}"));
                }
                (false, flaws) => {
                    let flaws = if flaws.is_empty() { "not asked" } else { flaws };
                    let refusal = unfit(node, query).unwrap_or(flaws);
                    self.say(format_args!("  {name} {ip}: {refusal}"));
                }
            }
        }
    }
}

/// Why a node cannot take the message at all.
fn unfit(node: &Node, query: &Query<'_>) -> Option<&'static str> {
    if node.version != query.version {
        Some("other version")
    } else if Family::of(node.ip) != query.family {
        Some("other address family")
    } else if node.ports.of(query.transport).is_none() {
        Some("no port for this transport")
    } else {
        None
    }
}

/// Why others are asked rather than this node.
fn flaws(node: &Node, query: &Query<'_>) -> Vec<&'static str> {
    let bad = node.bad.map(|it| match it {
        Bad::Errors => "bad: too many error responses",
        Bad::Response => "bad: an error response over HTTP",
        Bad::Silence => "bad: does not answer",
        Bad::Full => "bad: says it is full",
    });
    let leaving = node.graceful.then_some("shutting down: no new calls");
    let suspect = node.suspect.has(Way::Sip(query.transport)).then_some("refused a moment ago");
    [leaving, bad, suspect].into_iter().flatten().collect()
}

impl Trace for () {
    const ON: bool = false;
    fn say(&mut self, _step: fmt::Arguments<'_>) {}
}

impl Trace for String {
    const ON: bool = true;
    fn say(&mut self, step: fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = writeln!(self, "{step}");
    }
}

/// What was decided and why, as text for people.
pub struct Explanation {
    /// Step by step, one line each.
    pub steps: String,
    /// What would be done.
    pub verdict: Verdict,
    /// What would be sent.
    pub sent: Vec<u8>,
}

/// Decides one message on a fresh relay and tells how. Changes nothing anywhere.
///
/// What a running shard remembers of earlier calls does not enter; hints, hashes and the node table do.
pub fn explain(
    settings: &Arc<Settings>,
    snapshot: &Snapshot,
    arrival: &Arrival,
    bytes: &[u8],
) -> Explanation {
    let config = &settings.config;
    let scattered = config.steering != Steering::Hash && config.shards != 1;
    let shard = Shard { index: 0, scattered };
    let mut relay = Relay::new(Arc::clone(settings), shard);
    let mut steps = String::new();
    let mut sent = Vec::new();
    let listener = settings.listener(arrival.listener);
    steps.say(format_args!(
        "arrived from {} at {} {} ({:?} leg)",
        arrival.source,
        listener.transport.as_via(),
        listener.address,
        listener.leg,
    ));
    let verdict = relay.decide(Attempt::First, arrival, bytes, snapshot, &mut sent, &mut steps);
    let changed = if let Verdict::Forward { reply, .. } = verdict {
        if reply.is_some() {
            steps.say(format_args!("answers 100 Trying itself: the next hop is reliable"));
        }
        sent.get(reply.map_or(0, |it| it.bytes)..).unwrap_or_default()
    } else {
        &[]
    };
    if !changed.is_empty() {
        let (before, after) = (lines(bytes), lines(changed));
        for line in before.iter().filter(|it| !after.contains(it)) {
            steps.say(format_args!("- {}", line.escape_ascii()));
        }
        for line in after.iter().filter(|it| !before.contains(it)) {
            steps.say(format_args!("+ {}", line.escape_ascii()));
        }
    }
    match verdict {
        Verdict::Forward { hop, .. } => steps.say(format_args!("forward: {}", Told(hop))),
        Verdict::Reply { hop } => {
            let first = lines(&sent).first().copied().unwrap_or_default();
            steps.say(format_args!("answer {}: {}", first.escape_ascii(), Told(hop)));
        }
        Verdict::Resolve => steps.say(format_args!("waits for the name to be resolved")),
        Verdict::Drop(reason) => steps.say(format_args!("drop: {}", reason.as_str())),
    }
    Explanation { steps, verdict, sent }
}

struct Told(Hop);

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Hop::Datagram { to, .. } => write!(f, "datagram to {to}"),
            Hop::Stream { to, .. } => write!(f, "connection to {to}"),
            Hop::Flow { flow, or, .. } => {
                write!(f, "connection {} of shard {}", flow.slot, flow.shard)?;
                or.map_or(Ok(()), |(_, to)| write!(f, ", or a new one to {to}"))
            }
        }
    }
}

fn lines(bytes: &[u8]) -> Vec<&[u8]> {
    bytes.split(|it| *it == b'\n').map(|it| it.strip_suffix(b"\r").unwrap_or(it)).collect()
}
