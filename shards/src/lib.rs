//! The body: sockets, shards, timers and threads around the decisions of `engine`.

pub mod admin;
pub mod args;
mod carry;
pub mod clock;
pub mod control;
pub mod decide;
pub mod demo;
pub mod driver;
pub mod executor;
pub mod hosts;
pub mod http;
mod layered;
mod layers;
pub mod listeners;
pub mod logs;
pub mod mesh;
pub mod names;
pub mod probe;
pub mod publish;
pub mod reload;
pub mod service;
pub mod shard;
mod streaming;
pub mod sys;
pub mod tcp;
pub mod tls;
pub mod udp;
