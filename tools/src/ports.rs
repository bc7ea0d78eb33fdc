//! Free ports for listeners of tests, outside the kernel's ephemeral range so that nobody's `bind(0)` gets
//! them.
//!
//! Test processes run side by side. Each takes ranges of ports for itself, one after the other, and holds a
//! range by an abstract Unix socket of its name: the kernel lets go of it with the process, however that
//! ends, and such names belong to the network namespace, as ports do.

use std::net::{TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::{Mutex, PoisonError};

/// A port that is free on UDP and TCP of both loopback addresses, and that nobody else was given who asks
/// here, in this process or another.
///
/// # Panics
///
/// If there is none.
pub fn free() -> u16 {
    static RANGES: Mutex<Ranges> = Mutex::new(Ranges::NONE);
    RANGES.lock().unwrap_or_else(PoisonError::into_inner).free()
}

/// The ranges of one process.
struct Ranges {
    held: Vec<Range>,
    /// The next port to look at: which range, and how far into it.
    next: (usize, u16),
}

struct Range {
    first: u16,
    /// Bound as long as the range is ours.
    _name: UnixListener,
}

impl Ranges {
    const NONE: Ranges = Ranges { held: Vec::new(), next: (0, 0) };

    fn free(&mut self) -> u16 {
        for _ in 0..2 * FIRST.abs_diff(END) {
            let port = self.next_port();
            let is_free = ["127.0.0.1", "::1"].iter().all(|host| {
                UdpSocket::bind((*host, port)).is_ok() && TcpListener::bind((*host, port)).is_ok()
            });
            if is_free {
                return port;
            }
        }
        panic!("no free port between {FIRST} and {END}");
    }

    /// Any port of ours, each once before any comes again.
    fn next_port(&mut self) -> u16 {
        if self.next.0 == self.held.len() {
            match take() {
                Some(range) => self.held.push(range),
                // The oldest of ours were used long ago.
                None => self.next = (0, 0),
            }
        }
        let (index, offset) = self.next;
        let Some(range) = self.held.get(index) else { panic!("other processes hold every port") };
        self.next = if offset + 1 < RANGE { (index, offset + 1) } else { (index + 1, 0) };
        range.first + offset
    }
}

/// A range that nobody has.
fn take() -> Option<Range> {
    (FIRST..END).step_by(usize::from(RANGE)).find_map(|first| {
        let name = SocketAddr::from_abstract_name(format!("trunkline ports {first}")).ok()?;
        Some(Range { first, _name: UnixListener::bind_addr(&name).ok()? })
    })
}

/// Above what services are known by.
const FIRST: u16 = 10_000;
/// Linux gives away ports from 32768 on.
const END: u16 = 32_000;
/// A test file seldom needs more; two dozen processes have room.
const RANGE: u16 = 1_000;
const _: () = assert!((END - FIRST).is_multiple_of(RANGE));

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Names are held by sockets, so that two owners in one process are like two processes.
    #[test]
    fn no_two_processes_are_given_one_port() {
        let mut owners = [Ranges::NONE, Ranges::NONE];
        let mut given = BTreeSet::new();
        for _ in 0..RANGE + 10 {
            for owner in &mut owners {
                let port = owner.next_port();
                assert!(given.insert(port), "{port} twice");
            }
        }
        assert_eq!(owners.each_ref().map(|it| it.held.len()), [2, 2]);
        // What ends leaves its ranges to others.
        let [first, second] = owners;
        let left: Vec<u16> = first.held.iter().map(|it| it.first).collect();
        drop(first);
        let mut third = Ranges::NONE;
        for _ in 0..=RANGE {
            third.next_port();
        }
        assert!(third.held.iter().any(|it| left.contains(&it.first)));
        drop(second);
    }

    #[test]
    fn a_port_is_free_when_it_is_given() {
        let (one, other) = (free(), free());
        assert_ne!(one, other);
        let _held = (TcpListener::bind(("127.0.0.1", one)), UdpSocket::bind(("127.0.0.1", one)));
        assert!(_held.0.is_ok() && _held.1.is_ok());
    }
}
