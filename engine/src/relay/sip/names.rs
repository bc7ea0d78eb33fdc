//! Names of foreign next hops, resolved elsewhere and remembered here (RFC 3263; `sip.md` 2.8 [R]).

use std::cell::Cell;
use std::net::IpAddr;
use std::time::Duration;

use protocols::time::Time;

use crate::balance::{hash, rendezvous};
use crate::names::{Answer, Query, Target, Unresolved};
use crate::relay::Hop;

/// One shard's answers. Bounded; entries die with their time to live.
///
/// Names in use are asked for again before that, so that no message waits for it; and where the name servers
/// are silent, what was true goes on being used (RFC 8767).
#[derive(Default)]
pub struct NameCache {
    answers: ahash::HashMap<Query, Cached>,
    /// One of them is aging and in use.
    is_aging: Cell<bool>,
}

struct Cached {
    /// Empty: the name leads nowhere.
    targets: Vec<Target>,
    until: Time,
    /// To be asked for again if it is used from here on.
    fresh_until: Time,
    /// It was used since then.
    is_aging: Cell<bool>,
    /// How long this may be used where nothing better is to be had.
    stale_until: Time,
}

impl NameCache {
    /// Where a name leads; nowhere if it is known to.
    pub(super) fn find(&self, now: Time, query: &Query) -> Option<&[Target]> {
        let it = self.answers.get(query).filter(|it| now < it.until)?;
        if now >= it.fresh_until {
            it.is_aging.set(true);
            self.is_aging.set(true);
        }
        Some(&it.targets)
    }

    /// A name to ask for again; each once in a while.
    pub(super) fn poll_aging(&mut self, now: Time) -> Option<Query> {
        if !self.is_aging.get() {
            return None;
        }
        let Some((query, it)) = self.answers.iter_mut().find(|(_, it)| it.is_aging.get()) else {
            self.is_aging.set(false);
            return None;
        };
        it.is_aging.set(false);
        it.fresh_until = now + ASK_AGAIN_AFTER;
        Some(query.clone())
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
            Err(Unresolved::Timeout | Unresolved::QueueFull) => {
                if let Some(it) = self.answers.get_mut(&query)
                    && now < it.stale_until
                {
                    it.until = it.until.max(now + STALE_TTL);
                    it.fresh_until = now + ASK_AGAIN_AFTER;
                    return;
                }
                (Vec::new(), FAILURE_TTL)
            }
            Err(Unresolved::NotAName | Unresolved::OutOfReach) => (Vec::new(), FAILURE_TTL),
        };
        let stale_until = if targets.is_empty() { now } else { now + ttl + STALE_MAX };
        let cached = Cached {
            targets,
            until: now + ttl,
            fresh_until: now + ttl.mul_f32(FRESH_SHARE),
            is_aging: Cell::new(false),
            stale_until,
        };
        self.answers.insert(query, cached);
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

/// Share of its time to live after which an answer is asked for again while it is used.
const FRESH_SHARE: f32 = 0.8;

/// Between two questions for a name that is in use and has no new answer: longer than the resolver tries.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(8);

/// How long an old answer counts, each time that none is to be had, and how long in all (RFC 8767 §5 and §6).
const STALE_TTL: Duration = Duration::from_secs(30);
const STALE_MAX: Duration = Duration::from_secs(24 * 3600);
