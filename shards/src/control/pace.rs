//! How often the node table is built anew: a change is published at once, a flood of changes in bundles.
//!
//! A table of thousands of nodes takes milliseconds to build. When they all join within seconds control
//! would do nothing else; so it rests after each table for a multiple of what that took.

use std::time::Duration;

use protocols::time::Time;

/// When the next table may be built.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    next: Time,
}

impl Pace {
    /// Whether a table may be built now.
    pub(super) fn is_due(&self, now: Time) -> bool {
        self.next <= now
    }

    /// When the next one may be.
    pub(super) const fn poll_timeout(&self) -> Time {
        self.next
    }

    /// One was built, from the one moment to the other.
    pub(super) fn handle_built(&mut self, begin: Time, end: Time) {
        self.next = end + (end.since(begin) * REST).min(REST_MAX);
    }
}

/// Four fifths of the time are for everything else.
const REST: u32 = 4;
/// A change must reach every shard within 50 ms.
const REST_MAX: Duration = Duration::from_millis(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn building_takes_a_fifth_of_the_time_and_waits_are_short() {
        let at = Time::from_millis;
        let mut it = Pace::default();
        assert!(it.is_due(Time::ZERO), "the first is never late");
        for (begin, end, next) in [(100, 100, 100), (100, 102, 110), (100, 200, 230)] {
            it.handle_built(at(begin), at(end));
            assert_eq!(it.poll_timeout(), at(next), "{begin}..{end}");
            assert!(it.is_due(at(next)) && !it.is_due(at(next - 1)), "{begin}..{end}");
        }
    }
}
