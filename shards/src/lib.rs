//! placeholder

pub mod admin;
pub mod args;
pub mod http;
pub mod logs;
pub mod names;
