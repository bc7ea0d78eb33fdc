//! placeholder

pub mod admin;
pub mod args;
pub mod control;
pub mod hosts;
pub mod http;
pub mod logs;
pub mod names;
pub mod probe;
pub mod reload;
pub mod stand_in;
