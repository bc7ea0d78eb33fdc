//! Active and standby servers (`http-smpp-registry.md` 2.5): which one is active, for all shards together, and
//! how many connections are bound at each. Touched by binds and losses, never by a PDU that crosses.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// What the shards of one process know together. Servers are known by a hash of their address, since lists
/// of servers may change at different moments.
#[derive(Debug)]
pub struct Active {
    /// Of the active server; 0: nobody has chosen yet.
    name: AtomicU64,
    /// Connections that are bound, by name. Where two servers share a place the loss of the last connection
    /// to one may pass unnoticed; the next bind that fails there does not.
    bound: [AtomicUsize; PLACES],
}

impl Default for Active {
    fn default() -> Active {
        Active { name: AtomicU64::new(0), bound: [const { AtomicUsize::new(0) }; PLACES] }
    }
}

impl Active {
    /// The active one of these servers. If there was none it is the first.
    pub(super) fn choose(
        &self,
        mut servers: impl Iterator<Item = SocketAddr> + Clone,
    ) -> Option<SocketAddr> {
        let named = self.name.load(Relaxed);
        let active = servers.clone().find(|it| name(*it) == named).or_else(|| servers.next())?;
        let chosen = self.name.compare_exchange(named, name(active), Relaxed, Relaxed);
        match chosen {
            Ok(_) => Some(active),
            Err(other) => servers.find(|it| name(*it) == other).or(Some(active)),
        }
    }

    /// `from` has failed: `to` is active, unless another shard was faster.
    pub(super) fn fail_over(&self, from: SocketAddr, to: SocketAddr) {
        let _ = self.name.compare_exchange(name(from), name(to), Relaxed, Relaxed);
    }

    pub(super) fn bound(&self, server: SocketAddr) {
        self.place(server).fetch_add(1, Relaxed);
    }

    pub(super) fn unbound(&self, server: SocketAddr) {
        self.place(server).fetch_sub(1, Relaxed);
    }

    pub(super) fn has_bound(&self, server: SocketAddr) -> bool {
        self.place(server).load(Relaxed) > 0
    }

    #[allow(clippy::cast_possible_truncation, clippy::indexing_slicing)] // below PLACES
    fn place(&self, server: SocketAddr) -> &AtomicUsize {
        &self.bound[name(server) as usize % PLACES]
    }
}

/// Never 0.
fn name(server: SocketAddr) -> u64 {
    crate::balance::hash(ACTIVE_SEED, server.to_string().as_bytes()) | 1
}

/// Far more than anybody has standby servers.
const PLACES: usize = 256;
/// Keeps names of servers apart from every other use of the routing hash.
const ACTIVE_SEED: u64 = 0x736d_7363;
