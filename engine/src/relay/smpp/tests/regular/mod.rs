//! One SMSC connection for each ESME session.

mod ends;
mod servers;
mod sessions;
mod windows;

use super::*;
use crate::config::{SmppFull, SmppToProvider};
use crate::relay::smpp::Active;
use crate::relay::smpp::leg::Link;
use crate::stats::smpp::SmppDrop;
