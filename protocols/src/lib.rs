//! Words: bytes to ranges and events, edits to bytes. No sockets, clocks, threads or decisions.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod bytes;
pub mod heartbeat;
pub mod sip;
pub mod time;
pub mod ws;

#[cfg(test)]
mod testing;
