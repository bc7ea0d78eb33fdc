//! Rendezvous hashing: a pure function of key and node identities, so that every shard and every balancer
//! with the same members chooses alike (`sip.md` 3.2, 8.2).
//!
//! Every node draws a number from the key and its [`NodeKey`]; the highest wins. Losing a node moves only
//! its keys and spreads them over all survivors; its return brings exactly them back. Integers only: the
//! result is the same on every machine. Cost: 1 to 2 ns per node (4 ns for 4 nodes, 1 to 2 us for 1 000),
//! and only for messages that nothing else routes, about one in seven of a call.

use protocols::time::Time;

use super::rotation::{is_uniform, weight};
use super::{Algorithm, Query, hash};
use crate::config::RampUp;
use crate::node::NodeKey;
use crate::snapshot::{Candidates, NodeId, Snapshot};

/// The hash that enters [`choose`]: of a Call-ID, a user, a header value.
pub fn key_of(text: &[u8]) -> u64 {
    hash(KEY_SEED, text)
}

/// The node that a key belongs to; `None` if there is no candidate. Equal draws go to the first.
pub fn choose(key: u64, candidates: &Candidates) -> Option<NodeId> {
    let mut best = 0;
    let mut at = 0;
    for (index, node) in candidates.keys().iter().enumerate() {
        let draw = draw(key, *node);
        // Two selects, not a branch: a branch costs 70 % more at 100 nodes.
        at = if draw > best { index } else { at };
        best = best.max(draw);
    }
    candidates.ids().get(at).copied()
}

/// As [`choose`], with shares in proportion to the weights of ramp-up (`sip.md` 3.9). A growing weight
/// only ever moves keys to its node. Once all nodes are warm it is [`choose`], at its cost.
pub fn choose_weighted(
    key: u64,
    candidates: &Candidates,
    ramp_up: Option<RampUp>,
    now: Time,
) -> Option<NodeId> {
    let Some(ramp_up) = ramp_up.filter(|it| !is_uniform(*it, candidates, now)) else {
        return choose(key, candidates);
    };
    // Among nodes of one weight the highest draw wins: only the winners need the logarithm.
    let mut winners = [None::<(u64, NodeId)>; WEIGHT_MAX + 1];
    for ((id, node), joined) in
        candidates.ids().iter().zip(candidates.keys()).zip(candidates.joined())
    {
        let class = usize::try_from(weight(ramp_up, *joined, now)).unwrap_or(WEIGHT_MAX);
        let draw = draw(key, *node);
        if let Some(winner) = winners.get_mut(class.min(WEIGHT_MAX))
            && winner.is_none_or(|(highest, _)| draw > highest)
        {
            *winner = Some((draw, *id));
        }
    }
    let mut best = None::<(u64, u64, NodeId)>;
    for (weight, winner) in (0..).zip(winners) {
        let Some((draw, id)) = winner else { continue };
        let cost = cost(draw);
        // cost / weight < least / of, without the division: 2^38 * 100 fits
        if best.is_none_or(|(least, of, _)| cost * of < least * weight) {
            best = Some((cost, weight, id));
        }
    }
    best.map(|(_, _, id)| id)
}

/// What a node draws for a key. Both are hashes already: two rounds of multiply and shift (after
/// splitmix64) make the draws of two nodes independent.
pub fn draw(key: u64, node: NodeKey) -> u64 {
    let mut it = key ^ node.0;
    it = (it ^ (it >> 32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (it ^ (it >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9)
}

/// `-log2(draw / 2^64)` in units of 2^-32, by squaring: exponentially distributed, so that dividing by a
/// weight gives shares in proportion to it. Integers, since `ln` differs between machines.
pub(crate) fn cost(draw: u64) -> u64 {
    let draw = draw.max(1);
    let zeros = draw.leading_zeros();
    let mut mantissa = draw << zeros; // 1 <= mantissa / 2^63 < 2
    let mut fraction = 0;
    for bit in (0..32).rev() {
        let square = (u128::from(mantissa) * u128::from(mantissa)) >> 63;
        let halved = if square >> 64 == 0 { square } else { square >> 1 };
        if square >> 64 != 0 {
            fraction |= 1u64 << bit;
        }
        mantissa = u64::try_from(halved).unwrap_or(u64::MAX);
    }
    (64 << 32) - ((u64::from(63 - zeros) << 32) | fraction)
}

/// The three hash classes: no state at all, the choice is arithmetic over the affinity key.
///
/// Ramp-up does not apply: it depends on when a balancer first heard of a node, and these classes are
/// chosen because balancers must agree.
pub(crate) struct ConsistentHash;

impl Algorithm for ConsistentHash {
    fn pick(&mut self, query: &Query<'_>, snapshot: &Snapshot) -> Option<NodeId> {
        choose(key_of(query.key), query.candidates(snapshot))
    }
}

/// 100 / 1 %: what `trafficPercentageIncrease` can ask for.
pub(crate) const WEIGHT_MAX: usize = 100;

/// Keeps affinity keys apart from every other use of the routing hash.
const KEY_SEED: u64 = 0x6b65_7973;

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::time::Duration;

    use super::*;
    use crate::balance::testing::{node, query, snapshot};

    /// `sip.md` 6.3 item 32, for the hash that replaced MD5.
    #[test]
    fn the_hash_has_no_collisions_and_uses_every_bit() {
        let mut seen = HashSet::new();
        let (mut ones, mut zeros) = (0, 0);
        for number in 0..=12_198 {
            let key = key_of(number.to_string().as_bytes());
            assert!(seen.insert(key), "{number}");
            ones |= key;
            zeros |= !key;
        }
        assert_eq!((ones, zeros), (u64::MAX, u64::MAX));
    }

    /// Two balancers of different releases stand in front of one cluster: the function is for ever.
    #[test]
    fn the_function_never_changes() {
        assert_eq!(key_of(b"a84b4c76e66710@pc33.atlanta.com"), 0xB2D9_E043_8D30_0B00);
        assert_eq!(draw(1, NodeKey(2)), 0xEAB1_569B_7ED4_837C);
    }

    #[test]
    fn cost_is_the_negative_binary_logarithm() {
        for (draw, bits) in [(1 << 63, 1.0), (1 << 62, 2.0), (1, 64.0), (3 << 62, 0.415_037_5)] {
            let want = bits * f64::from(u32::MAX);
            let got = cost(draw) as f64;
            assert!((got - want).abs() < 1_000.0, "{draw:x}: {got} for {want}");
        }
        assert!(cost(u64::MAX) < 8, "almost nothing");
        assert_eq!(cost(0), 64 << 32);
    }

    #[test]
    fn weights_are_shares() {
        let ramp_up = RampUp { period: Duration::from_secs(10), weight_max: 4 };
        let mut nodes = vec![node(1), node(2), node(3)];
        nodes[2].joined = Time::from_millis(30_000);
        let now = Time::from_millis(31_000); // weights 4, 4, 1
        let table = snapshot(1, nodes);
        let query = query(b"");
        let candidates = query.candidates(&table);
        let (mut calls, mut moved) = ([0; 3], 0);
        for number in 0..9_000u64 {
            let key = key_of(&number.to_be_bytes());
            let id = choose_weighted(key, candidates, Some(ramp_up), now).unwrap();
            calls[usize::from(id.0)] += 1;
            let warm = Time::from_millis(100_000);
            let later = choose_weighted(key, candidates, Some(ramp_up), warm).unwrap();
            assert_eq!(Some(later), choose(key, candidates), "warm nodes are equal");
            if later != id {
                moved += 1;
                assert_eq!(later, NodeId(2), "a growing weight only moves keys to its node");
            }
        }
        for (index, want) in [4_000, 4_000, 1_000i32].into_iter().enumerate() {
            assert!((calls[index] - want).abs() < 200, "{calls:?}");
        }
        assert!(moved > 1_800);
    }
}
