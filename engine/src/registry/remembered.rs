//! Addresses of nodes that died a short while ago: what still comes from there comes from inside.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use protocols::time::Time;

/// Addresses with the time of their death, the oldest forgotten first (`sip.md` 2.2).
#[derive(Debug, Default)]
pub(super) struct Remembered {
    by_address: BTreeMap<SocketAddr, Time>,
    by_time: BTreeSet<(Time, SocketAddr)>,
}

impl Remembered {
    /// A node died here. Past [`ADDRESSES_MAX`] the longest dead makes room.
    pub(super) fn insert(&mut self, now: Time, address: SocketAddr) {
        self.remove(address);
        if self.by_address.len() >= ADDRESSES_MAX
            && let Some((_, oldest)) = self.by_time.pop_first()
        {
            self.by_address.remove(&oldest);
        }
        self.by_address.insert(address, now);
        self.by_time.insert((now, address));
    }

    /// A node lives here again.
    pub(super) fn remove(&mut self, address: SocketAddr) {
        if let Some(died) = self.by_address.remove(&address) {
            self.by_time.remove(&(died, address));
        }
    }

    /// Forgets what is older than [`MEMORY`]; whether anything was.
    pub(super) fn handle_timeout(&mut self, now: Time) -> bool {
        let before = self.by_time.len();
        while let Some((died, address)) = self.by_time.first().copied()
            && died + MEMORY < now
        {
            self.remove(address);
        }
        self.by_time.len() != before
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_address.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.by_address.keys().copied()
    }
}

/// Longer than any call that is still answered to a dead node.
const MEMORY: Duration = Duration::from_secs(3600);

/// As many as there can be nodes with one port each.
const ADDRESSES_MAX: usize = crate::snapshot::NODES_MAX;

#[cfg(test)]
mod tests {
    use super::*;

    fn address(index: usize) -> SocketAddr {
        let [.., high, low] = u32::try_from(index).unwrap().to_be_bytes();
        SocketAddr::from(([10, 0, high, low], 5060))
    }

    #[test]
    fn the_oldest_make_room_and_nothing_lasts_longer_than_an_hour() {
        let mut it = Remembered::default();
        for index in 0..=ADDRESSES_MAX {
            it.insert(Time::from_millis(index as u64), address(index));
        }
        assert_eq!(it.iter().count(), ADDRESSES_MAX);
        assert!(!it.by_address.contains_key(&address(0)));
        assert!(it.by_address.contains_key(&address(ADDRESSES_MAX)));

        it.insert(Time::from_millis(90_000), address(1)); // died again: remembered anew
        assert!(!it.handle_timeout(Time::from_millis(2) + MEMORY));
        assert!(it.handle_timeout(Time::from_millis(80_000) + MEMORY));
        assert_eq!(it.iter().collect::<Vec<_>>(), [address(1)]);
        it.remove(address(1));
        assert!(it.is_empty() && it.by_time.is_empty());
    }
}
