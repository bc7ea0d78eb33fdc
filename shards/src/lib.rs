//! The body: sockets, shards, timers and threads around the decisions of `engine`.

pub mod clock;
pub mod decide;
pub mod mesh;
pub mod publish;
pub mod sys;
pub mod tcp;
pub mod udp;
//! placeholder

pub mod admin;
pub mod args;
pub mod http;
pub mod logs;
pub mod names;
