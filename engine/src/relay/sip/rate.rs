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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load;

    fn rates(keys: &str) -> Rates {
        let text = format!("host=127.0.0.1\nexternalPort=5060\n{keys}");
        Rates::new(&load("t", text.as_bytes(), &[]).config)
    }

    fn source(number: u32) -> IpAddr {
        IpAddr::from((0x0a00_0000 + number).to_be_bytes())
    }

    #[test]
    fn a_second_of_the_rate_passes_at_once_and_then_the_rate() {
        let start = Time::from_millis(5_000);
        let later = |millis| start + Duration::from_millis(millis);
        let mut rates = rates("sourceRateMax=10\n");
        let mut admitted =
            |now, number| (0..20).filter(|_| rates.admits(now, source(number))).count();
        assert_eq!(admitted(start, 1), 10);
        assert_eq!(admitted(later(99), 1), 0);
        assert_eq!(admitted(later(100), 1), 1);
        assert_eq!(admitted(later(100), 2), 10, "another source");
        assert_eq!(admitted(later(60_000), 1), 10, "a pause earns no more than a second");
    }

    #[test]
    fn all_sources_together_have_a_rate_and_whoever_exceeds_its_own_costs_the_others_nothing() {
        let now = Time::from_millis(5_000);
        let mut rates = rates("sourceRateMax=2\ntotalRateMax=5\n");
        let mut admitted = |number| (0..20).filter(|_| rates.admits(now, source(number))).count();
        assert_eq!([admitted(1), admitted(2), admitted(3), admitted(4)], [2, 2, 1, 0]);
        let mut none = super::tests::rates("");
        assert!((0..1_000).all(|_| none.admits(now, source(1))), "no key, no limit");
    }

    #[test]
    fn a_flood_from_everywhere_is_left_to_the_total() {
        let now = Time::from_millis(5_000);
        let mut rates = rates("sourceRateMax=1\n");
        for number in 0..u32::try_from(3 * SOURCES_MAX).unwrap() {
            assert!(rates.admits(now, source(number)));
            assert!(rates.sources.len() <= SOURCES_MAX);
        }
    }

    #[test]
    fn a_keep_alive_is_answered_once_per_interval_and_source() {
        let start = Time::from_millis(5_000);
        let mut rates = rates("gov.nist.javax.sip.MIN_KEEPALIVE_TIME_SECONDS=2\n");
        let at = |port| SocketAddr::new(source(1), port);
        let mut answers = |millis, port| {
            rates.may_answer_keep_alive(start + Duration::from_millis(millis), at(port))
        };
        assert!(answers(0, 1));
        assert!(!answers(1_999, 1));
        assert!(answers(1_999, 2), "another source");
        assert!(answers(2_000, 1));
        assert!(!answers(3_999, 1));
        let now = start + Duration::from_secs(60);
        let many = u32::try_from(SOURCES_MAX).unwrap();
        let all = (0..many)
            .filter(|it| rates.may_answer_keep_alive(now, SocketAddr::new(source(*it), 5_060)));
        assert_eq!(all.count(), SOURCES_MAX);
        assert!(!rates.may_answer_keep_alive(now, at(1)), "no room for one more");
        assert!(!super::tests::rates("").may_answer_keep_alive(now, at(1)), "no key, no answer");
    }
}
