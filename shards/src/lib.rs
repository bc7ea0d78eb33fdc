//! The body: sockets, shards, timers and threads around the decisions of `engine`.

mod carry;
pub mod clock;
pub mod decide;
pub mod driver;
pub mod executor;
pub mod listeners;
pub mod mesh;
pub mod publish;
pub mod shard;
mod streaming;
pub mod sys;
pub mod tcp;
pub mod udp;
