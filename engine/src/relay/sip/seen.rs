//! What a shard saw of each node since it last told the control executor (`sip.md` 5.6, 5.7, 8.4).

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use protocols::time::Time;

use crate::node::{NodeKey, Way};
use crate::registry::{Announcement, BeatError};
use crate::relay::Report;
use crate::snapshot::{NodeId, Snapshot};

/// Per node of the current snapshot; small enough to be swept a few times a second.
#[derive(Default)]
pub(in crate::relay) struct Sightings {
    generation: u64,
    nodes: Vec<Sighting>,
    /// Whom `nodes` are about, and since when each has run.
    whom: Vec<(NodeKey, Time)>,
    any: bool,
    next: Time,
    sweep: usize,
    urgent: VecDeque<Report>,
}

#[derive(Clone, Copy, Default)]
struct Sighting {
    alive: bool,
    answered: bool,
    errors: u32,
    requests: u32,
}

impl Sightings {
    /// The node sent a request.
    pub(in crate::relay) fn alive(&mut self, snapshot: &Snapshot, node: NodeId) {
        self.note(snapshot, node, |it| it.alive = true);
    }

    /// A request (not ACK) was forwarded to the node.
    pub(in crate::relay) fn asked(&mut self, snapshot: &Snapshot, node: NodeId) {
        self.note(snapshot, node, |it| it.requests = it.requests.saturating_add(1));
    }

    /// The node answered; `is_error` if the status counts against it.
    pub(in crate::relay) fn answered(&mut self, snapshot: &Snapshot, node: NodeId, is_error: bool) {
        self.note(snapshot, node, |it| {
            it.alive = true;
            it.answered = true;
            it.requests = 0;
            it.errors = it.errors.saturating_add(u32::from(is_error));
        });
    }

    /// The node refused a connection or a datagram. `false`: too much waits already to be told.
    pub(in crate::relay) fn refused(&mut self, node: NodeKey, way: Way) -> bool {
        self.urge(Report::Refused { node, way })
    }

    /// The node answered a request over HTTP that is watched with an error.
    pub(in crate::relay) fn bad_response(&mut self, node: NodeKey, status: u16) {
        self.urge(Report::BadResponse { node, status });
    }

    /// The node announced itself. `false`: too many announcements wait already.
    pub(in crate::relay) fn beat(&mut self, announcement: Announcement) -> bool {
        self.urge(Report::Beat(announcement))
    }

    /// A heartbeat named no node.
    pub(in crate::relay) fn bad_beat(&mut self, from: IpAddr, why: BeatError) {
        self.urge(Report::BadBeat { from, why });
    }

    fn urge(&mut self, report: Report) -> bool {
        let fits = self.urgent.len() < URGENT_MAX;
        if fits {
            self.urgent.push_back(report);
        }
        fits
    }

    fn note(&mut self, snapshot: &Snapshot, node: NodeId, note: impl FnOnce(&mut Sighting)) {
        self.follow(snapshot);
        if let Some(it) = self.nodes.get_mut(usize::from(node.0)) {
            note(it);
            self.any = true;
        }
    }

    /// What was seen of nodes is told of those that are still there and have not restarted.
    fn follow(&mut self, snapshot: &Snapshot) {
        if self.generation == snapshot.generation() && self.nodes.len() == snapshot.nodes().len() {
            return;
        }
        let before =
            std::mem::replace(&mut self.nodes, vec![Sighting::default(); snapshot.nodes().len()]);
        for ((key, joined), seen) in self.whom.drain(..).zip(before) {
            if let Some(id) = snapshot.find(key)
                && snapshot.node(id).joined == joined
                && let Some(it) = self.nodes.get_mut(usize::from(id.0))
            {
                *it = seen;
            }
        }
        self.whom.extend(snapshot.nodes().iter().map(|it| (it.key, it.joined)));
        self.generation = snapshot.generation();
        self.sweep = 0;
    }

    pub(in crate::relay) fn poll(&mut self, now: Time, snapshot: &Snapshot) -> Option<Report> {
        if let Some(report) = self.urgent.pop_front() {
            return Some(report);
        }
        if !self.any || now < self.next {
            return None;
        }
        self.follow(snapshot);
        while let Some(it) = self.nodes.get_mut(self.sweep) {
            let node = snapshot.nodes().get(self.sweep);
            self.sweep += 1;
            let Sighting { alive, answered, errors, requests } = std::mem::take(it);
            if let Some(node) = node
                && (alive || answered || errors > 0 || requests > 0)
            {
                return Some(Report::Seen { node: node.key, alive, errors, requests, answered });
            }
        }
        self.sweep = 0;
        self.any = false;
        self.next = now + PERIOD;
        None
    }
}

/// Life signs are told this often at most: far below any node timeout, and nothing to the control side.
pub(in crate::relay) const PERIOD: Duration = Duration::from_millis(250);

/// Heartbeats that may wait for the control executor; the shard hands them over after each batch.
const URGENT_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use protocols::sip::Transport;

    use super::*;
    use crate::node::{Node, Origin, Ports, Version};

    fn snapshot(generation: u64, nodes: u8) -> Snapshot {
        of(generation, 1..=nodes, Time::ZERO)
    }

    fn of(generation: u64, nodes: std::ops::RangeInclusive<u8>, joined: Time) -> Snapshot {
        let nodes = nodes.map(|last| {
            let mut ports = Ports::default();
            ports.open(Transport::Udp, 5080);
            let ip = std::net::IpAddr::from([10, 0, 0, last]);
            Node {
                key: NodeKey::of(ip, Version(0), &ports),
                former: Vec::new(),
                host_name: String::new(),
                ip,
                ports,
                version: Version(0),
                session: None,
                properties: BTreeMap::new(),
                graceful: false,
                bad: None,
                suspect: crate::node::Suspect::default(),
                joined,
                origin: Origin::Heartbeat,
            }
        });
        Snapshot::new(generation, nodes.collect(), &[])
    }

    #[test]
    fn a_node_is_told_of_once_a_period_with_everything_seen() {
        let nodes = snapshot(1, 3);
        let mut it = Sightings::default();
        let at = |millis: u64| Time::from_millis(1_000 + millis);
        assert_eq!(it.poll(at(0), &nodes), None, "nothing seen");
        it.asked(&nodes, NodeId(2));
        it.asked(&nodes, NodeId(2));
        it.answered(&nodes, NodeId(0), true);
        let key = |index: usize| nodes.nodes()[index].key;
        let want = |node, alive, errors, requests| {
            Some(Report::Seen { node, alive, errors, requests, answered: alive })
        };
        assert_eq!(it.poll(at(0), &nodes), want(key(0), true, 1, 0));
        assert_eq!(it.poll(at(0), &nodes), want(key(2), false, 0, 2));
        assert_eq!(it.poll(at(0), &nodes), None);
        it.asked(&nodes, NodeId(1));
        assert_eq!(it.poll(at(249), &nodes), None, "not twice in a period");
        assert_eq!(it.poll(at(250), &nodes), want(key(1), false, 0, 1));
    }

    /// Tables change with every drain or suspicion: what was seen a moment before must not be forgotten.
    #[test]
    fn what_was_seen_outlives_the_table_for_nodes_that_are_still_there() {
        let (before, after) = (snapshot(1, 3), of(2, 2..=4, Time::ZERO));
        let key = |last: u16| before.node(NodeId(last - 1)).key;
        let want = |node, requests, errors| {
            let alive = errors > 0;
            Some(Report::Seen { node, alive, errors, requests, answered: alive })
        };
        for is_noted_after in [false, true] {
            let mut it = Sightings::default();
            it.answered(&before, NodeId(0), true);
            it.answered(&before, NodeId(1), true);
            it.asked(&before, NodeId(2));
            if is_noted_after {
                it.asked(&after, NodeId(1));
            }
            let at = Time::from_millis(1_000);
            assert_eq!(it.poll(at, &after), want(key(2), 0, 1), "{is_noted_after}");
            let requests = 1 + u32::from(is_noted_after);
            assert_eq!(it.poll(at, &after), want(key(3), requests, 0), "{is_noted_after}");
            assert_eq!(it.poll(at, &after), None, "{is_noted_after}");
        }
        let mut it = Sightings::default();
        it.answered(&before, NodeId(1), true);
        let restarted = of(2, 2..=4, Time::from_millis(1));
        assert_eq!(it.poll(Time::from_millis(1_000), &restarted), None, "another process did it");
    }

    #[test]
    fn a_new_snapshot_never_blames_another_node() {
        let mut it = Sightings::default();
        it.answered(&snapshot(1, 3), NodeId(2), true);
        let fewer = snapshot(2, 2);
        assert_eq!(it.poll(Time::from_millis(1_000), &fewer), None);
        it.alive(&fewer, NodeId(0));
        let told = it.poll(Time::from_millis(2_000), &fewer);
        assert!(matches!(told, Some(Report::Seen { errors: 0, .. })), "{told:?}");
    }
}
