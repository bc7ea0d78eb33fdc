//! A user space: everything that the sessions of one system_id share in mux mode.

use std::collections::{HashMap, VecDeque};
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
    pub(super) queue: Queue,
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

/// Sessions that wait for room, in order: in one line those that any provider will do for, in others those
/// that must have a certain one. Nobody is looked at who cannot use what there is.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// By whom they wait for; each with its place among all.
    lines: HashMap<Option<Conn>, VecDeque<(u64, Conn)>, ahash::RandomState>,
    next: u64,
    /// In all lines together: mostly none, and then an answer costs no look at any.
    count: usize,
}

impl Queue {
    /// `session` waits for a provider; `None`: any will do.
    pub(super) fn join(&mut self, session: Conn, provider: Option<Conn>) {
        self.lines.entry(provider).or_default().push_back((self.next, session));
        self.next += 1;
        self.count += 1;
    }

    /// Takes out who has waited longest of those whom room at `provider` helps; `None`: there may be room
    /// anywhere.
    pub(super) fn pop(&mut self, provider: Option<Conn>) -> Option<Conn> {
        if self.count == 0 {
            return None;
        }
        let first = |it: &VecDeque<(u64, Conn)>| it.front().map(|it| it.0);
        let line = match provider {
            Some(_) => [None, provider]
                .into_iter()
                .filter_map(|whom| Some((first(self.lines.get(&whom)?)?, whom)))
                .min_by_key(|it| it.0),
            None => (self.lines.iter())
                .filter_map(|(whom, line)| Some((first(line)?, *whom)))
                .min_by_key(|it| it.0),
        };
        let (_, session) = self.lines.get_mut(&line?.1)?.pop_front()?;
        self.count -= 1;
        Some(session)
    }

    /// `session` waits for `provider` no longer.
    pub(super) fn leave(&mut self, session: Conn, provider: Option<Conn>) {
        if let Some(line) = self.lines.get_mut(&provider) {
            let before = line.len();
            line.retain(|it| it.1 != session);
            self.count -= before - line.len();
        }
    }

    /// A provider is gone, and everybody was woken.
    pub(super) fn forget(&mut self, provider: Conn) {
        let line = self.lines.remove(&Some(provider));
        self.count -= line.map_or(0, |it| it.len());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
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

#[cfg(test)]
mod tests {
    use super::*;

    fn conn(slot: u32) -> Conn {
        Conn { slot, generation: 0 }
    }

    #[test]
    fn who_waits_longest_of_those_whom_it_helps_is_next() {
        let mut it = Queue::default();
        let (p, q) = (Some(conn(1)), Some(conn(2)));
        for (session, provider) in [(10, p), (11, q), (12, None), (13, q), (14, p)] {
            it.join(conn(session), provider);
        }
        assert_eq!(it.pop(q), Some(conn(11)));
        assert_eq!(it.pop(q), Some(conn(12)), "any will do");
        assert_eq!(it.pop(None), Some(conn(10)));
        it.leave(conn(13), q);
        assert_eq!((it.pop(q), it.is_empty()), (None, false));
        assert_eq!((it.pop(p), it.is_empty()), (Some(conn(14)), true));
    }

    #[test]
    fn those_who_wait_for_another_provider_cost_nothing() {
        // Looking at each of them each time would take minutes.
        const WAITING: u32 = 300_000;
        let mut it = Queue::default();
        (0..WAITING).for_each(|session| it.join(conn(session), Some(conn(1))));
        for session in 0..WAITING {
            it.join(conn(session), None);
            assert_eq!(it.pop(Some(conn(2))), Some(conn(session)));
        }
    }
}
