//! Names of foreign next hops, resolved elsewhere and remembered here (RFC 3263; `sip.md` 2.8 [R]).

use std::net::IpAddr;
use std::time::Duration;

use protocols::time::Time;

use crate::balance::{hash, rendezvous};
use crate::names::{Answer, Query, Target, Unresolved};
use crate::relay::Hop;

/// One shard's answers. Bounded; entries die with their time to live.
#[derive(Default)]
pub struct NameCache {
    answers: ahash::HashMap<Query, Cached>,
}

struct Cached {
    /// Empty: the name leads nowhere.
    targets: Vec<Target>,
    until: Time,
}

impl NameCache {
    /// Where a name leads; nowhere if it is known to.
    pub(super) fn find(&self, now: Time, query: &Query) -> Option<&[Target]> {
        self.answers.get(query).filter(|it| now < it.until).map(|it| it.targets.as_slice())
    }

    pub(super) fn insert(&mut self, now: Time, query: Query, answer: Result<Answer, Unresolved>) {
        if self.answers.len() >= NAMES_MAX {
            self.answers.retain(|_, it| now < it.until);
            if self.answers.len() >= NAMES_MAX {
                self.answers.clear();
            }
        }
        let (targets, ttl) = match answer {
            Ok(answer) => (answer.targets, answer.ttl),
            Err(Unresolved::NoRecords { ttl }) => (Vec::new(), ttl),
            Err(_) => (Vec::new(), FAILURE_TTL),
        };
        self.answers.insert(query, Cached { targets, until: now + ttl });
    }

    /// The target of `failed` comes last on every list it is on: RFC 3263 §4.3.
    pub(super) fn demote(&mut self, failed: Hop) {
        let Some(address) = super::target(failed) else { return };
        for cached in self.answers.values_mut() {
            let last = cached.targets.iter().map(|it| it.rank).max().unwrap_or(0);
            for target in cached.targets.iter_mut().filter(|it| it.address == address) {
                target.rank = last.saturating_add(1);
            }
        }
    }
}

/// The target for a message, of those that fit: one of the lowest rank, by `key` in proportion to weight. All
/// messages with the same key get the same, on every shard and after every new resolution (RFC 3263 §4.4).
pub(super) fn choose(
    targets: &[Target],
    key: u64,
    fits: impl Fn(&Target) -> bool,
) -> Option<&Target> {
    let mut best: Option<(&Target, u64)> = None;
    for target in targets.iter().filter(|it| fits(it)) {
        let cost = rendezvous::cost(hash(hash(key, &[target.transport as u8]), &place(target)));
        // cost / weight is less, without the division: 2^38 times 2^26 fits.
        let is_less = best.is_none_or(|(other, least)| {
            let [own, its] = [cost * u64::from(other.weight), least * u64::from(target.weight)];
            (target.rank, own) < (other.rank, its)
        });
        if is_less {
            best = Some((target, cost));
        }
    }
    best.map(|(target, _)| target)
}

/// Address and port as bytes.
fn place(target: &Target) -> [u8; 18] {
    let mut bytes = [0; 18];
    let (ip, port) = bytes.split_at_mut(16);
    ip.copy_from_slice(&match target.address.ip() {
        IpAddr::V4(it) => it.to_ipv6_mapped().octets(),
        IpAddr::V6(it) => it.octets(),
    });
    port.copy_from_slice(&target.address.port().to_be_bytes());
    bytes
}

/// Names remembered per shard; a balancer talks to few carriers.
const NAMES_MAX: usize = 10_000;

/// How long a name server's silence is believed: long enough not to queue every retransmission behind
/// it, short enough that the call after the next gets through.
const FAILURE_TTL: Duration = Duration::from_secs(2);
