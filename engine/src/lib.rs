//! Decisions: which node, which next hop, which answer. Pure functions of bytes, time and snapshots.
//!
//! No sockets, no clocks, no threads, no randomness: everything arrives as an argument, so that a
//! simulation, `trunkctl explain` and the running shards all call the same code.
#![forbid(unsafe_code)]

pub mod balance;
pub mod config;
pub mod lifecycle;
pub mod names;
pub mod node;
pub mod pods;
pub mod registry;
pub mod relay;
pub mod snapshot;
pub mod stats;
