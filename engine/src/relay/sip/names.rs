//! Names of foreign next hops, resolved elsewhere and remembered here (RFC 3263; `sip.md` 2.8 [R]).

use std::net::SocketAddr;
use std::time::Duration;

use protocols::sip::Transport;
use protocols::time::Time;

use crate::names::{Answer, Query, Unresolved};
use crate::relay::Hop;

/// One shard's answers. Bounded; entries die with their time to live.
#[derive(Default)]
pub struct NameCache {
    answers: ahash::HashMap<Query, Cached>,
}

struct Cached {
    /// Best first; empty: the name leads nowhere.
    targets: Vec<(Transport, SocketAddr)>,
    until: Time,
}

impl NameCache {
    /// Where a name leads, best first; empty if it is known to lead nowhere.
    pub(super) fn find(&self, now: Time, query: &Query) -> Option<&[(Transport, SocketAddr)]> {
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

    /// The target of `failed` goes to the end of every list it is on: RFC 3263 §4.3.
    pub(super) fn demote(&mut self, failed: Hop) {
        let Some(address) = super::target(failed) else { return };
        for cached in self.answers.values_mut() {
            if let Some(at) = cached.targets.iter().position(|(_, it)| *it == address) {
                let target = cached.targets.remove(at);
                cached.targets.push(target);
            }
        }
    }
}

/// Names remembered per shard; a balancer talks to few carriers.
const NAMES_MAX: usize = 10_000;

/// How long a name server's silence is believed: long enough not to queue every retransmission behind
/// it, short enough that the call after the next gets through.
const FAILURE_TTL: Duration = Duration::from_secs(2);
