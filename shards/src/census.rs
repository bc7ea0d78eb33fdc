//! How many connections there are, of all shards and by source: the limits hold for the process, whichever
//! shard the kernel gives a connection to.
//!
//! Asked when a connection comes and when it goes, never for a message.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Counts connections.
#[derive(Debug, Default)]
pub struct Census {
    all: AtomicUsize,
    hasher: ahash::RandomState,
    /// Those that each source has opened; apart, so that shards seldom meet.
    by_source: [Mutex<ahash::HashMap<IpAddr, usize>>; PARTS],
}

/// One connection that is counted, until it is dropped.
#[derive(Debug)]
pub struct Place {
    census: Arc<Census>,
    /// As [`counted`].
    source: Option<IpAddr>,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Full {
    /// Too many in all.
    All,
    /// Too many of this source.
    Source,
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Full::All => "connections",
            Full::Source => "source_connections",
        })
    }
}

/// What is allowed.
#[derive(Clone, Copy, Debug)]
pub struct Most {
    /// Connections in all.
    pub all: usize,
    /// Connections that one source has opened; 0 is any number.
    pub source: usize,
}

impl Census {
    /// Counts one more, which `source` opened, or we.
    ///
    /// # Errors
    ///
    /// [`Full`]: close it.
    pub fn admit(self: &Arc<Self>, source: Option<IpAddr>, most: Most) -> Result<Place, Full> {
        let source = source.map(counted);
        let place = Place { census: Arc::clone(self), source };
        let all = self.all.fetch_add(1, Ordering::Relaxed);
        let of_source = source.map_or(0, |it| self.count(it, 1));
        if all >= most.all {
            Err(Full::All)
        } else if most.source > 0 && of_source > most.source {
            Err(Full::Source)
        } else {
            Ok(place)
        }
    }

    /// Counts a source's connections up or down: how many there are now.
    fn count(&self, source: IpAddr, change: isize) -> usize {
        let part = usize::try_from(self.hasher.hash_one(source) % PARTS as u64).unwrap_or(0);
        let Some(part) = self.by_source.get(part) else { return 0 };
        let mut part = part.lock().unwrap_or_else(PoisonError::into_inner);
        let count = part.entry(source).or_default();
        *count = count.saturating_add_signed(change);
        let count = *count;
        if count == 0 {
            part.remove(&source);
        }
        count
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.census.all.fetch_sub(1, Ordering::Relaxed);
        if let Some(source) = self.source {
            self.census.count(source, -1);
        }
    }
}

/// The source that an address counts for: all of an IPv6 network of 64 bits is one, since whoever has one of its
/// addresses can mostly have all (RFC 4291 §2.5.1).
fn counted(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX))),
        it @ IpAddr::V4(_) => it,
    }
}

const PARTS: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_hold_for_all_shards_together_and_places_come_back() {
        let census = Arc::new(Census::default());
        let most = Most { all: 100, source: 10 };
        let [a, b]: [IpAddr; 2] = ["10.0.0.1", "fd00::1"].map(|it| it.parse().unwrap());
        let come = |source: Option<IpAddr>| -> Vec<Place> {
            let shards: Vec<_> = (0..4)
                .map(|_| {
                    let census = Arc::clone(&census);
                    std::thread::spawn(move || {
                        let tries = (0..50).map(|_| census.admit(source, most));
                        tries.filter_map(Result::ok).collect::<Vec<_>>()
                    })
                })
                .collect();
            shards.into_iter().flat_map(|it| it.join().unwrap()).collect()
        };
        let (first, second) = (come(Some(a)), come(Some(b)));
        assert!(first.len() <= 10 && second.len() <= 10);
        assert_eq!(census.admit(Some(a), most).unwrap_err(), Full::Source);
        let ours = come(None);
        assert!(first.len() + second.len() + ours.len() <= 100);
        drop((first, second, ours));
        let held: Vec<_> = (0..10).map(|_| census.admit(Some(a), most).unwrap()).collect();
        let ours: Vec<_> = (0..90).map(|_| census.admit(None, most).unwrap()).collect();
        assert_eq!(census.admit(Some(b), most).unwrap_err(), Full::All);
        drop((held, ours));
        assert_eq!(census.all.load(Ordering::Relaxed), 0);
        assert!(census.by_source.iter().all(|it| it.lock().unwrap().is_empty()));
    }

    #[test]
    fn a_source_is_an_address_or_a_network_of_64_bits() {
        let census = Arc::new(Census::default());
        let most = Most { all: 100, source: 1 };
        let cases = [
            ("10.0.0.1", "10.0.0.1", true),
            ("10.0.0.1", "10.0.0.2", false),
            ("10.0.0.1", "::ffff:10.0.0.1", true),
            ("::ffff:10.0.0.1", "::ffff:10.0.0.2", false),
            ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", true),
            ("2001:db8:0:1::1", "2001:db8:0:2::1", false),
        ];
        for (first, second, is_one) in cases {
            let [one, two] = [first, second].map(|it| census.admit(it.parse().ok(), most));
            let want = is_one.then_some(Full::Source);
            assert_eq!((one.err(), two.err()), (None, want), "{first} and {second}");
        }
    }
}
