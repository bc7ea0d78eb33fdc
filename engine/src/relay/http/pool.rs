//! Connections to nodes that wait for work.

use std::net::SocketAddr;

use super::settings::IDLE_PER_NODE_MAX;
use crate::node::NodeKey;
use crate::relay::stream::{Conn, Secure};

/// Where a request goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Place {
    pub(super) to: SocketAddr,
    pub(super) secure: Secure,
    /// `None`: `unavailableHost`.
    pub(super) node: Option<NodeKey>,
}

/// Idle connections by address. The one used last is used first: the others grow old and go.
#[derive(Debug, Default)]
pub(super) struct Pool {
    idle: ahash::HashMap<(SocketAddr, bool), Vec<Conn>>,
}

impl Pool {
    pub(super) fn take(&mut self, place: &Place) -> Option<Conn> {
        self.idle.get_mut(&key(place))?.pop()
    }

    /// `false`: there are enough.
    pub(super) fn put(&mut self, place: &Place, conn: Conn) -> bool {
        let idle = self.idle.entry(key(place)).or_default();
        let fits = idle.len() < IDLE_PER_NODE_MAX;
        if fits {
            idle.push(conn);
        }
        fits
    }

    pub(super) fn remove(&mut self, place: &Place, conn: Conn) {
        let key = key(place);
        let Some(idle) = self.idle.get_mut(&key) else { return };
        idle.retain(|it| *it != conn);
        if idle.is_empty() {
            self.idle.remove(&key);
        }
    }

    /// Addresses that nothing waits at are forgotten: nodes come and go. Not when the last connection is
    /// taken, since it mostly comes back.
    pub(super) fn forget_unused(&mut self) {
        self.idle.retain(|_, idle| !idle.is_empty());
    }

    /// Addresses that are known.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.idle.len()
    }

    /// All of them.
    pub(super) fn drain(&mut self) -> Vec<Conn> {
        self.idle.drain().flat_map(|(_, idle)| idle).collect()
    }
}

fn key(place: &Place) -> (SocketAddr, bool) {
    (place.to, place.secure == Secure::Tls)
}
