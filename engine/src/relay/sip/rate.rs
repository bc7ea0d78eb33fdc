//! How much one source, and all together, may ask: token buckets per shard (`sip.md` 2.12 [R]).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use protocols::time::Time;

use crate::config::Config;

/// The buckets of one shard. Costs nothing where no rate is configured.
pub(super) struct Rates {
    total: Bucket,
    total_max: u32,
    source_max: u32,
    sources: ahash::HashMap<IpAddr, Bucket>,
    keep_alive: Option<Duration>,
    kept_alive: ahash::HashMap<SocketAddr, Time>,
}

#[derive(Clone, Copy, Default)]
struct Bucket {
    /// Moment up to which the rate is used up; at most one second ahead.
    used_until: u64,
}

impl Bucket {
    fn take(&mut self, now: Time, a_second: u32) -> bool {
        let cost = SECOND / u64::from(a_second.max(1));
        let from = self.used_until.max(now.as_nanos());
        if from + cost > now.as_nanos() + SECOND {
            return false;
        }
        self.used_until = from + cost;
        true
    }
}

impl Rates {
    pub(super) fn new(config: &Config) -> Rates {
        Rates {
            total: Bucket::default(),
            total_max: config.total_rate_max,
            source_max: config.source_rate_max,
            sources: ahash::HashMap::default(),
            keep_alive: config.udp_keepalive,
            kept_alive: ahash::HashMap::default(),
        }
    }

    /// Whether one more request from `source` is within the rates. Bursts up to a second's worth pass.
    pub(super) fn admits(&mut self, now: Time, source: IpAddr) -> bool {
        if self.source_max > 0 {
            if self.sources.len() >= SOURCES_MAX && !self.sources.contains_key(&source) {
                self.sources.retain(|_, it| it.used_until > now.as_nanos());
                if self.sources.len() >= SOURCES_MAX {
                    // Every remembered source is busy: a flood from everywhere. The total decides.
                    self.sources.clear();
                }
            }
            if !self.sources.entry(source).or_default().take(now, self.source_max) {
                return false;
            }
        }
        self.total_max == 0 || self.total.take(now, self.total_max)
    }

    /// Whether a UDP keep-alive may be answered: at most one per interval and source.
    pub(super) fn may_answer_keep_alive(&mut self, now: Time, source: SocketAddr) -> bool {
        let Some(interval) = self.keep_alive else { return false };
        if self.kept_alive.len() >= SOURCES_MAX {
            self.kept_alive.retain(|_, last| now.since(*last) < interval);
        }
        let is_full = self.kept_alive.len() >= SOURCES_MAX;
        match self.kept_alive.get_mut(&source) {
            Some(last) if now.since(*last) < interval => false,
            Some(last) => {
                *last = now;
                true
            }
            None if is_full => false,
            None => {
                self.kept_alive.insert(source, now);
                true
            }
        }
    }
}

const SECOND: u64 = 1_000_000_000;

/// Sources remembered at once; past it the idle ones are forgotten first. About 2 MiB a shard.
const SOURCES_MAX: usize = 65_536;
