//! What the thread says of its callers, its nodes and itself.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use protocols::time::Time;

use super::{Life, Turns};
use crate::report::{self, Calls, Generator, Latencies, NodeReport, Report, Seen};

/// How busy the thread was since the figures were cleared.
pub(super) struct Load {
    since: Time,
    /// Time in which there was nothing to do.
    pub(super) idle: Duration,
    busy_turns: u64,
    backlog: f64,
}

impl Load {
    pub(super) fn new(since: Time) -> Self {
        Self { since, idle: Duration::ZERO, busy_turns: 0, backlog: 0.0 }
    }
}

impl Turns {
    #[expect(clippy::cast_precision_loss, reason = "shares need no more digits")]
    /// `received` messages had waited in our own sockets.
    pub(super) fn note_backlog(&mut self, received: usize) {
        let calls: u64 = self.callers.iter().map(|host| host.caller.calls.in_progress).sum();
        if calls > 0 {
            let under_way = calls as f64 * MESSAGES_PER_CALL_UNDER_WAY;
            self.load.busy_turns += 1;
            self.load.backlog += (received as f64 / under_way).min(1.0);
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "shares need no more digits")]
    pub(super) fn report(&self) -> Report {
        let at = self.clock.now();
        let mut calls = Calls::default();
        let mut latencies = Latencies::default();
        let mut lateness = report::histogram();
        let mut per_node: BTreeMap<SocketAddr, u64> = BTreeMap::new();
        for host in &self.callers {
            let caller = &host.caller;
            calls.add(&caller.calls);
            calls.refused += host.refused;
            latencies.add(&caller.latencies);
            // Both have the same bounds, so adding cannot fail.
            let _ = lateness.add(&caller.lateness);
            for (node, count) in &caller.per_node {
                *per_node.entry(*node).or_default() += count;
            }
        }
        let own = self.nodes.iter().map(|host| NodeReport {
            address: host.node.config.address,
            up: host.life == Life::Up,
            calls: per_node.remove(&host.node.config.address).unwrap_or(0),
            seen: host.node.seen,
        });
        let mut nodes: Vec<_> = own.collect();
        nodes.extend(per_node.into_iter().map(|(address, calls)| NodeReport {
            address,
            up: true,
            calls,
            seen: Seen::default(),
        }));
        let total = at.since(self.load.since).as_secs_f64().max(f64::EPSILON);
        let generator = Generator {
            lateness,
            busy: (1.0 - self.load.idle.as_secs_f64() / total).max(0.0),
            backlog: self.load.backlog / (self.load.busy_turns.max(1) as f64),
        };
        let finished = self.callers.iter().all(|host| host.caller.finished());
        Report { at, calls, latencies, nodes, generator, finished }
    }
}

/// Seven messages in four flights: INVITE; 100, 180, 200; ACK, BYE; 200.
const MESSAGES_PER_CALL_UNDER_WAY: f64 = 7.0 / 4.0;
