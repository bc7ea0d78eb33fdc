//! placeholder
use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::node::{Ports, Version};

/// One node's word about itself, from whichever protocol.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Announcement {
    /// Address of every port.
    pub ip: IpAddr,
    /// For people.
    pub host_name: String,
    /// SIP listening ports.
    pub ports: Ports,
    /// Cluster.
    pub version: Version,
    /// Incarnation.
    pub session: Option<String>,
    /// `GRACEFUL_SHUTDOWN=true`.
    pub graceful: bool,
    /// Everything else said.
    pub properties: BTreeMap<String, String>,
}
