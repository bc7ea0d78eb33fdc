//! Pretend peers for people, tests and benchmarks: callers that place SIP calls, nodes that answer them.
//!
//! One thread ([`agent`]) carries any number of callers and nodes over UDP (batched) and TCP, busy or
//! blocking. [`caller`] and [`node`] decide, without sockets or clocks; [`udp`] and [`stream`] move
//! bytes. Reads the part of RFC 3261 that one call needs (§8, §12, §13, §15, §17, §18.2.2), RFC 3581 and
//! `sip.md` 4 (heartbeats). Leaves alone: forking, authentication, strict routers, bodies.

mod admin;
pub mod agent;
pub mod caller;
pub mod line;
pub mod message;
pub mod node;
pub mod nodes;
pub mod ports;
pub mod process;
pub mod report;
pub mod stream;
pub mod timers;
pub mod udp;

pub use self::admin::{ask, encoded, time_of};
