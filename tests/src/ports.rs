//! Free ports for listeners, outside the kernel's ephemeral range so that nobody's `bind(0)` gets them.

use std::net::{TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};

/// A port that is free on UDP and TCP of both loopback addresses, and that nobody else in this process was given.
///
/// Another process can still take it before it is used: whoever binds must be ready to try again.
pub fn free() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Test processes that run side by side start at different places.
    let start = std::process::id().wrapping_mul(977);
    for _ in 0..SPAN {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + u16::try_from(start.wrapping_add(step) % u32::from(SPAN)).unwrap();
        let is_free = ["127.0.0.1", "::1"].iter().all(|host| {
            UdpSocket::bind((*host, port)).is_ok() && TcpListener::bind((*host, port)).is_ok()
        });
        if is_free {
            return port;
        }
    }
    panic!("no free port between {FIRST} and {}", FIRST + SPAN);
}

const FIRST: u16 = 10_000;
const SPAN: u16 = 22_000;
