//! What a load came to: counts, latencies, and whether the generator itself was the limit.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use hdrhistogram::Histogram;
use protocols::time::Time;

/// Figures of one agent: all its callers together, and each of its nodes.
#[derive(Clone, Debug)]
pub struct Report {
    /// When the report was made.
    pub at: Time,
    /// What became of the calls.
    pub calls: Calls,
    /// How long the steps of calls took.
    pub latencies: Latencies,
    /// The agent's own nodes, in the order given, then foreign ones that answered calls.
    pub nodes: Vec<NodeReport>,
    /// How busy the generator was.
    pub generator: Generator,
    /// No call is placed any more and none is in progress.
    pub finished: bool,
}

/// What became of the calls.
#[derive(Clone, Debug, Default)]
pub struct Calls {
    /// INVITEs sent for the first time.
    pub started: u64,
    /// BYE answered by 200.
    pub completed: u64,
    /// Neither completed nor failed yet.
    pub in_progress: u64,
    /// Calls that will not complete, by reason.
    pub failed: BTreeMap<Failure, u64>,
    /// The first [`LOST_MAX`] of them.
    pub lost: Vec<Lost>,
    /// Requests sent again.
    pub retransmissions: u64,
    /// Responses that belong to no call in progress: late ones, and answers to retransmissions.
    pub stray: u64,
    /// Bytes that are not a message, or not a correct one.
    pub malformed: u64,
    /// The other side refused (ICMP port unreachable, or a connection).
    pub refused: u64,
}

impl Calls {
    /// Adds the figures of another caller.
    pub fn add(&mut self, other: &Self) {
        self.started += other.started;
        self.completed += other.completed;
        self.in_progress += other.in_progress;
        for (failure, count) in &other.failed {
            *self.failed.entry(*failure).or_default() += count;
        }
        self.lost.extend_from_slice(&other.lost);
        self.retransmissions += other.retransmissions;
        self.stray += other.stray;
        self.malformed += other.malformed;
        self.refused += other.refused;
    }

    /// All failed calls.
    pub fn failed_total(&self) -> u64 {
        self.failed.values().sum()
    }
}

/// Why a call did not complete.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Failure {
    /// No final answer to INVITE within 64 * T1.
    InviteTimeout,
    /// INVITE answered by this status.
    Refused(u16),
    /// No final answer to BYE within 64 * T1.
    ByeTimeout,
    /// BYE answered by this status.
    ByeRefused(u16),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InviteTimeout => write!(f, "INVITE without answer"),
            Self::Refused(status) => write!(f, "INVITE refused with {status}"),
            Self::ByeTimeout => write!(f, "BYE without answer"),
            Self::ByeRefused(status) => write!(f, "BYE refused with {status}"),
        }
    }
}

/// A call that failed.
#[derive(Clone, Copy, Debug)]
pub struct Lost {
    /// When its INVITE was to be sent.
    pub started: Time,
    /// When it was given up.
    pub ended: Time,
    /// Why.
    pub failure: Failure,
    /// The node that had answered it.
    pub node: Option<SocketAddr>,
}

/// How long steps took, microseconds. In an open loop every call counts from the moment it was to be
/// sent, not from the moment it was, so a stall shows in every call it delayed.
#[derive(Clone, Debug)]
pub struct Latencies {
    /// INVITE to 180.
    pub ringing: Histogram<u64>,
    /// INVITE to 200.
    pub answer: Histogram<u64>,
    /// BYE to 200.
    pub hangup: Histogram<u64>,
}

impl Default for Latencies {
    fn default() -> Self {
        Self { ringing: histogram(), answer: histogram(), hangup: histogram() }
    }
}

impl Latencies {
    /// Adds the figures of another caller.
    pub fn add(&mut self, other: &Self) {
        for (own, others) in [
            (&mut self.ringing, &other.ringing),
            (&mut self.answer, &other.answer),
            (&mut self.hangup, &other.hangup),
        ] {
            // All histograms have the same bounds, so adding cannot fail.
            let _ = own.add(others);
        }
    }
}

/// A histogram of microseconds with three digits, up to [`MICROS_MAX`].
pub fn histogram() -> Histogram<u64> {
    // Bounds are fixed: a histogram that grows does so only for values recorded without saturation.
    Histogram::new_with_max(MICROS_MAX, 3).unwrap_or_else(|_| unreachable!("bounds are valid"))
}

/// Records a duration with saturation.
pub fn record(histogram: &mut Histogram<u64>, duration: Duration) {
    histogram.saturating_record(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX));
}

/// One node.
#[derive(Clone, Debug)]
pub struct NodeReport {
    /// Where it listens.
    pub address: SocketAddr,
    /// It answers.
    pub up: bool,
    /// Calls completed that it had answered.
    pub calls: u64,
    /// What it saw itself; zero for foreign nodes.
    pub seen: Seen,
}

/// What a node saw.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// INVITEs that begin a dialog, retransmissions too.
    pub invites: u64,
    /// Other requests.
    pub requests: u64,
    /// In-dialog requests of a dialog whose own node was up all the time. Always a fault of the balancer.
    pub misrouted: u64,
    /// In-dialog requests of a dialog whose own node had died or is unknown here.
    pub moved: u64,
    /// Heartbeats sent.
    pub heartbeats: u64,
    /// Heartbeats answered by 200.
    pub heartbeats_answered: u64,
    /// Bytes that are not a request or a response to a heartbeat.
    pub malformed: u64,
    /// 200 sent again because no ACK came.
    pub retransmissions: u64,
}

/// How busy the generator itself was since the figures were last cleared.
#[derive(Clone, Debug)]
pub struct Generator {
    /// How late INVITEs left by the generator's own fault, microseconds.
    pub lateness: Histogram<u64>,
    /// Share of time spent on work, 0 to 1.
    pub busy: f64,
    /// Share of all messages under way that waited in the generator's own sockets, 0 to 1.
    pub backlog: f64,
}

impl Generator {
    /// The generator, not what it measures, limited the result: of two servers in a ring the slower
    /// one has the queue, and here most messages waited for the generator; or it placed more than
    /// one call in a hundred later than [`LATENESS_MAX`].
    pub fn was_the_limit(&self) -> bool {
        (self.busy > BUSY_MAX && self.backlog > BACKLOG_MAX)
            || u128::from(self.lateness.value_at_quantile(0.99)) > LATENESS_MAX.as_micros()
    }
}

impl Report {
    /// In-dialog requests that reached another node although their own was up.
    pub fn misrouted(&self) -> u64 {
        self.nodes.iter().map(|node| node.seen.misrouted).sum()
    }

    /// The report for programs.
    pub fn to_json(&self) -> serde_json::Value {
        let latency = |h: &Histogram<u64>| {
            serde_json::json!({"p50": h.value_at_quantile(0.5), "p90": h.value_at_quantile(0.9),
                "p99": h.value_at_quantile(0.99), "p999": h.value_at_quantile(0.999), "max": h.max()})
        };
        let nodes: Vec<_> = self
            .nodes
            .iter()
            .map(|node| {
                serde_json::json!({"address": node.address.to_string(), "up": node.up,
                    "calls": node.calls, "invites": node.seen.invites,
                    "misrouted": node.seen.misrouted, "moved": node.seen.moved,
                    "heartbeatsAnswered": node.seen.heartbeats_answered})
            })
            .collect();
        let failed: serde_json::Map<_, _> = self
            .calls
            .failed
            .iter()
            .map(|(why, count)| (why.to_string(), (*count).into()))
            .collect();
        serde_json::json!({
            "started": self.calls.started, "completed": self.calls.completed,
            "failed": self.calls.failed_total(), "failedBy": failed,
            "retransmissions": self.calls.retransmissions, "stray": self.calls.stray,
            "malformed": self.calls.malformed, "refused": self.calls.refused,
            "misrouted": self.misrouted(), "nodes": nodes,
            "micros": {"ringing": latency(&self.latencies.ringing),
                "answer": latency(&self.latencies.answer),
                "hangup": latency(&self.latencies.hangup)},
            "generator": {"busy": self.generator.busy,
                "latenessP99": self.generator.lateness.value_at_quantile(0.99),
                "wasTheLimit": self.generator.was_the_limit()},
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let calls = &self.calls;
        writeln!(f, "{:<24}{:>10}{:>10}{:>10}{:>7}", "node", "calls", "misrouted", "moved", "")?;
        for node in &self.nodes {
            let address = node.address.to_string();
            let Seen { misrouted, moved, .. } = node.seen;
            let state = if node.up { "up" } else { "down" };
            writeln!(f, "{address:<24}{:>10}{misrouted:>10}{moved:>10}{state:>7}", node.calls)?;
        }
        writeln!(
            f,
            "calls: {} started, {} completed, {} in progress, {} failed",
            calls.started,
            calls.completed,
            calls.in_progress,
            calls.failed_total()
        )?;
        for (failure, count) in &calls.failed {
            writeln!(f, "  {failure}: {count}")?;
        }
        writeln!(
            f,
            "messages: {} sent again, {} stray, {} malformed, {} refused",
            calls.retransmissions, calls.stray, calls.malformed, calls.refused
        )?;
        writeln!(
            f,
            "{:<24}{:>9}{:>9}{:>9}{:>9}{:>9}",
            "latency, us", "p50", "p90", "p99", "p99.9", "max"
        )?;
        for (name, histogram) in [
            ("INVITE to 180", &self.latencies.ringing),
            ("INVITE to 200", &self.latencies.answer),
            ("BYE to 200", &self.latencies.hangup),
        ] {
            write!(f, "{name:<24}")?;
            for quantile in [0.5, 0.9, 0.99, 0.999, 1.0] {
                write!(f, "{:>9}", histogram.value_at_quantile(quantile))?;
            }
            writeln!(f)?;
        }
        if self.generator.was_the_limit() {
            writeln!(
                f,
                "generator was the limit: busy {:.0} %, backlog {:.0} %, INVITEs late by {} us (p99)",
                self.generator.busy * 100.0,
                self.generator.backlog * 100.0,
                self.generator.lateness.value_at_quantile(0.99)
            )?;
        }
        Ok(())
    }
}

/// Longest latency told apart, microseconds: beyond every time-out of RFC 3261.
pub const MICROS_MAX: u64 = 60_000_000;
/// Failed calls kept one by one; the counts go on.
pub const LOST_MAX: usize = 10_000;
/// A call later than this by the generator's own fault would change what is measured.
pub const LATENESS_MAX: Duration = Duration::from_millis(2);
const BUSY_MAX: f64 = 0.95;
const BACKLOG_MAX: f64 = 0.5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generator_that_was_the_limit_says_so() {
        let late = LATENESS_MAX + Duration::from_millis(1);
        let cases = [
            ("at rest", 0.1, 0.0, Duration::ZERO, false),
            ("busy, and what it measures is busier", 1.0, 0.4, Duration::ZERO, false),
            ("much waits, and it sleeps", 0.5, 0.9, Duration::ZERO, false),
            ("busy, and most waits for it", 0.96, 0.6, Duration::ZERO, true),
            ("late", 0.1, 0.0, late, true),
        ];
        for (name, busy, backlog, lateness, want) in cases {
            let mut generator = Generator { lateness: histogram(), busy, backlog };
            record(&mut generator.lateness, lateness);
            let report = Report {
                at: Time::ZERO,
                calls: Calls::default(),
                latencies: Latencies::default(),
                nodes: Vec::new(),
                generator,
                finished: true,
            };
            let says_so = report.to_string().contains("\ngenerator was the limit: busy ");
            assert_eq!(says_so, want, "{name}");
            assert_eq!(report.to_json()["generator"]["wasTheLimit"], want, "{name}");
        }
    }

    #[test]
    fn long_latencies_keep_their_value_and_longer_ones_the_bound() {
        let mut figures = histogram();
        record(&mut figures, Duration::from_secs(32));
        record(&mut figures, Duration::from_secs(3600));
        assert!(figures.value_at_quantile(0.5).abs_diff(32_000_000) < 32_000_000 / 1000);
        assert!(figures.max() >= MICROS_MAX);
    }
}
