//! Words: bytes to ranges and events, edits to bytes. No sockets, clocks, threads or decisions.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod bytes;
pub mod heartbeat;
pub mod http;
pub mod proxy_protocol;
pub mod sip;
pub mod smpp;
pub mod time;
pub mod ws;

#[cfg(test)]
mod testing;
