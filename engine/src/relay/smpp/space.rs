//! A user space: everything that the sessions of one system_id share in mux mode.

use std::collections::VecDeque;
use std::net::SocketAddr;

use protocols::smpp::Status;
use protocols::smpp::body::Bind;
use protocols::smpp::pdu::HEADER_BYTES;
use protocols::time::Time;

use super::leg::Secret;
use crate::relay::stream::Conn;

/// The sessions of one system_id and their connections to servers.
#[derive(Debug)]
pub(super) struct Space {
    /// The name; not shown.
    pub(super) system_id: Secret,
    /// The first binder's bind: password and system_type for servers, password for later binders. Until the
    /// space is up, that of somebody who waits.
    pub(super) bind: Secret,
    /// Its sessions came by TLS, and its servers are reached by TLS for that. Where servers do not differ by
    /// that, all sessions of a system_id are in one space.
    pub(super) is_secure: bool,
    /// Sessions, in order of their binds.
    pub(super) customers: Vec<Conn>,
    /// Those that were let in and may receive.
    pub(super) receivers: Vec<Conn>,
    /// One per server, in their order.
    pub(super) slots: Vec<Slot>,
    /// Connections that are bound, in order of the slots.
    pub(super) bound: Vec<Conn>,
    /// A server has accepted the bind: the password is right.
    pub(super) is_up: bool,
    /// What a server said that thinks it wrong, while none has accepted it.
    pub(super) refusal: Option<Status>,
    /// Whose turn it is among `bound`.
    pub(super) turn: usize,
    /// Whose turn it is among `receivers`.
    pub(super) receiver_turn: usize,
    /// A message of a provider waits for room at a session.
    pub(super) holds_provider: bool,
    /// Sessions that wait for room at a provider.
    pub(super) queue: VecDeque<Conn>,
    /// Its entry among the timers.
    pub(super) armed: Option<Time>,
}

/// A user space's view of one server.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) server: SocketAddr,
    pub(super) conn: Option<Conn>,
    /// When to connect again.
    pub(super) retry: Option<Time>,
    pub(super) standing: Standing,
}

/// What a server thinks of us.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Standing {
    /// Connected, or to be connected.
    Wanted,
    /// It has unbound us, or refused what another server accepts: it may come back, but nobody waits for it.
    Left,
    /// It knows neither our name nor our password; it is not asked again.
    Refused,
}

impl Slot {
    pub(super) fn new(server: SocketAddr) -> Slot {
        Slot { server, conn: None, retry: None, standing: Standing::Wanted }
    }
}

/// The password in a bind.
pub(super) fn password(bind: &Secret) -> Option<&[u8]> {
    Bind::read(bind.0.get(HEADER_BYTES..)?).map(|it| it.password)
}

impl Space {
    /// Whether a server may still bind, or bind again, that somebody may wait for.
    pub(super) fn has_hope(&self) -> bool {
        self.slots.iter().any(|it| it.standing == Standing::Wanted)
    }

    pub(super) fn slot_of(&mut self, conn: Conn) -> Option<&mut Slot> {
        self.slots.iter_mut().find(|it| it.conn == Some(conn))
    }

    /// When a server must be connected again.
    pub(super) fn next_due(&self) -> Option<Time> {
        self.slots.iter().filter_map(|it| it.retry).min()
    }
}
