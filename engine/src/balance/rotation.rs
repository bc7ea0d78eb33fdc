//! Round robin over the nodes a message may go to, with the weights of ramp-up (`sip.md` 3.9).
//!
//! One counter per family and transport, since their node lists differ: with a common one, calls over UDP
//! and TCP in turn would starve nodes. Calls one after the other alternate strictly (`sip.md` 3.10).

use protocols::time::Time;

use super::rendezvous::WEIGHT_MAX;
use super::{Query, Shard};
use crate::config::RampUp;
use crate::snapshot::{Candidates, NodeId};

/// Where one shard's round robin stands.
#[derive(Debug)]
pub(crate) struct Rotation {
    cursors: [[Cursor; 5]; 2],
    ramp_up: Option<RampUp>,
}

/// Position in one list. A node of weight w takes part in the first w rounds of a cycle.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor {
    next: usize,
    round: u32,
}

impl Rotation {
    /// Shards start at different nodes, so that few calls over many shards spread too.
    pub(crate) fn new(ramp_up: Option<RampUp>, shard: Shard) -> Rotation {
        Rotation { cursors: [[Cursor::new(shard); 5]; 2], ramp_up }
    }

    /// Other weights; every list goes on where it stands.
    pub(crate) fn configure(&mut self, ramp_up: Option<RampUp>) {
        self.ramp_up = ramp_up;
    }

    /// The next node in turn.
    #[allow(clippy::indexing_slicing)] // families and transports index arrays of their own size
    pub(crate) fn next(&mut self, query: &Query<'_>, among: &Candidates) -> Option<NodeId> {
        let cursor = &mut self.cursors[query.family as usize][query.transport.index()];
        cursor.next(self.ramp_up, among, query.now)
    }
}

impl Cursor {
    /// Begins with another node on every shard.
    pub(crate) const fn new(shard: Shard) -> Cursor {
        Cursor { next: shard.index, round: 0 }
    }

    /// The next node in turn.
    pub(crate) fn next(
        &mut self,
        ramp_up: Option<RampUp>,
        among: &Candidates,
        now: Time,
    ) -> Option<NodeId> {
        match ramp_up {
            Some(ramp_up) if !is_uniform(ramp_up, among, now) => {
                self.deal_by_weight(ramp_up, among, now)
            }
            _ => self.deal(among),
        }
    }

    fn deal(&mut self, among: &Candidates) -> Option<NodeId> {
        let position = self.next.checked_rem(among.ids().len())?;
        self.next = position + 1;
        among.ids().get(position).copied()
    }

    /// The oldest node takes part in every round, so two passes over the list always find one.
    fn deal_by_weight(&mut self, ramp_up: RampUp, among: &Candidates, now: Time) -> Option<NodeId> {
        let rounds = weight(ramp_up, among.joined_between().0, now);
        for _ in 0..=among.ids().len() * 2 {
            if self.next >= among.ids().len() {
                self.next = 0;
                self.round += 1;
            }
            if self.round >= rounds {
                self.round = 0;
            }
            let position = self.next;
            self.next += 1;
            let joined = among.joined().get(position)?;
            if weight(ramp_up, *joined, now) > self.round {
                return among.ids().get(position).copied();
            }
        }
        None
    }
}

/// Weight of a node that joined then: 1 at first, one more per period, at most the maximum.
pub(crate) fn weight(ramp_up: RampUp, joined: Time, now: Time) -> u32 {
    let period = u64::try_from(ramp_up.period.as_nanos()).unwrap_or(u64::MAX).max(1);
    let periods = now.as_nanos().saturating_sub(joined.as_nanos()) / period;
    let limit = u32::try_from(WEIGHT_MAX).unwrap_or(u32::MAX).min(ramp_up.weight_max.max(1));
    u32::try_from(periods).unwrap_or(u32::MAX).saturating_add(1).min(limit)
}

/// Whether all weights are equal: nothing to weigh. Reads two times, not the list.
pub(crate) fn is_uniform(ramp_up: RampUp, among: &Candidates, now: Time) -> bool {
    let (oldest, youngest) = among.joined_between();
    weight(ramp_up, oldest, now) == weight(ramp_up, youngest, now)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use protocols::sip::Transport;

    use super::*;
    use crate::balance::testing::{SHARD, node, query, snapshot};

    /// `sip.md` 3.9: A alone takes 2 calls; B joins; the next 6 calls split 4:2.
    #[test]
    fn a_new_node_gets_its_share_by_and_by() {
        let ramp_up = RampUp { period: Duration::from_secs(70), weight_max: 2 };
        let mut rotation = Rotation::new(Some(ramp_up), SHARD);
        let mut at = query(b"");
        let alone = snapshot(1, vec![node(1)]);
        for _ in 0..2 {
            assert_eq!(rotation.next(&at, at.candidates(&alone)), Some(NodeId(0)));
        }
        let mut young = node(2);
        young.joined = Time::from_millis(80_000);
        at.now = Time::from_millis(90_000);
        let both = snapshot(2, vec![node(1), young]);
        let mut deal = |at: &Query<'_>, calls: usize| {
            let mut counts = [0; 2];
            for _ in 0..calls {
                counts[usize::from(rotation.next(at, at.candidates(&both)).unwrap().0)] += 1;
            }
            counts
        };
        assert_eq!(deal(&at, 6), [4, 2]);
        at.now = Time::from_millis(150_001);
        assert_eq!(deal(&at, 6), [3, 3], "warm after one period");
    }

    #[test]
    fn one_old_node_among_many_young_ones_is_always_found() {
        let ramp_up = RampUp { period: Duration::from_secs(1), weight_max: 100 };
        let mut nodes: Vec<_> = (1..=50).map(node).collect();
        for young in &mut nodes[..49] {
            young.joined = Time::from_millis(99_500);
        }
        let table = snapshot(1, nodes);
        let mut rotation = Rotation::new(Some(ramp_up), SHARD);
        let mut at = query(b"");
        at.now = Time::from_millis(100_000);
        let mut counts = [0; 50];
        for _ in 0..149 {
            counts[usize::from(rotation.next(&at, at.candidates(&table)).unwrap().0)] += 1;
        }
        assert_eq!((counts[49], counts[0]), (100, 1));
    }

    #[test]
    fn transports_take_turns_on_their_own() {
        let table = snapshot(1, vec![node(1), node(2)]);
        let mut rotation = Rotation::new(None, SHARD);
        let mut at = query(b"");
        for want in [0, 0, 1, 1, 0, 0] {
            assert_eq!(rotation.next(&at, at.candidates(&table)), Some(NodeId(want)));
            at.transport =
                if at.transport == Transport::Udp { Transport::Tcp } else { Transport::Udp };
        }
    }
}
