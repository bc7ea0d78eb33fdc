//! placeholder

pub mod admin;
pub mod args;
pub mod http;
pub mod logs;
pub mod names;
pub mod probe;
pub mod reload;
pub mod control;
pub mod hosts;
pub mod stand_in;
