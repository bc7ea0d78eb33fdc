//! The decision layer without sockets: relays, nodes and messages for the tests that bring their own
//! network, clock or meter.
//!
//! [`Stage`] is what stands still (settings, nodes), [`Call`] the messages of one call as each side sends
//! them, [`Script`] the same as bytes. The rest is the world of `simulation`: [`Network`] loses, doubles, delays and reorders,
//! [`Agent`] is a caller or a node by RFC 3261, [`Judge`] knows what must hold.

mod agent;
mod call;
mod draw;
mod judge;
mod network;
mod script;
mod stage;

pub use agent::{Agent, Effects, Outcome, Timer};
pub use call::{Call, Kind};
pub use draw::Draw;
pub use judge::{Decision, Judge, Tally};
pub use network::{Network, Weather};
pub use script::Script;
pub use stage::{EXTERNAL, INTERNAL, Stage, node, node_address};
