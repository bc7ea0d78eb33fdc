//! The two sides of a balanced session: the ESME's connection with the server part, and the connection
//! to an SMSC with the client part (guide 1.4).

use std::net::SocketAddr;
use std::time::Duration;

use protocols::smpp::session::{ClientState, ServerState};
use protocols::smpp::{Command, Status};
use protocols::time::Time;

use super::pending::Pending;
use super::slab::Slab;
use crate::relay::stream::Conn;

/// One connection.
#[derive(Debug)]
pub(super) enum Leg {
    Session(Box<Session>),
    Provider(Box<Provider>),
}

/// An ESME's connection.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) state: ServerState,
    pub(super) source: SocketAddr,
    pub(super) is_secure: bool,
    /// Its bind as it came, of no length before. Holds the password.
    pub(super) bind: Secret,
    /// Which bind: what it may do.
    pub(super) command: Command,
    /// Number of the bind; in UNBINDING in mux mode that of the unbind.
    pub(super) sequence: u32,
    /// What is behind it.
    pub(super) link: Link,
    /// The server that it is, was or shall be bound to, in regular mode.
    pub(super) server: Option<SocketAddr>,
    /// Servers tried since the bind, or since the last loss.
    pub(super) tries: usize,
    /// Requests to the ESME.
    pub(super) pending: Pending,
    /// Its requests that providers have not answered.
    pub(super) outstanding: u32,
    /// Its next request waits for room in a window.
    pub(super) is_waiting: bool,
    /// It stands in its user space's queue.
    pub(super) is_queued: bool,
    /// The one provider that it waits for there; `None`: any.
    pub(super) waits_for: Option<Conn>,
    /// Its send queue has enough.
    pub(super) is_full: bool,
    /// We do not read from it.
    pub(super) is_paused: bool,
    /// When that changed last; zero if it waits for somebody who may wait for it.
    pub(super) held: Time,
    /// It will send no more.
    pub(super) has_ended: bool,
    /// Its bind was counted as unanswered: further servers that are mute add nothing.
    pub(super) is_unanswered: bool,
    /// It has asked to be unbound itself.
    pub(super) leaves: bool,
    /// UNBINDING: what it will be sent when all it has asked is answered.
    pub(super) unbind: Option<Unbind>,
    /// The shard keeps requests of it that we have not taken in.
    pub(super) holds_bytes: bool,
    /// End of OPEN, BINDING, UNBINDING or CLOSED.
    pub(super) deadline: Option<Time>,
    /// When another server is tried.
    pub(super) reconnect: Option<Time>,
    pub(super) pulse: Pulse,
    /// Its entry among the timers.
    pub(super) armed: Option<Time>,
}

/// A connection to an SMSC.
#[derive(Debug)]
pub(super) struct Provider {
    pub(super) state: ClientState,
    pub(super) server: SocketAddr,
    pub(super) owner: Owner,
    /// It counts among those that are bound at its server.
    pub(super) was_bound: bool,
    /// Requests to the SMSC.
    pub(super) pending: Pending,
    /// Its own that sessions have not answered.
    pub(super) asks: u32,
    /// Requests that it may have; less than its window after it was throttled.
    pub(super) cap: u32,
    /// Responses to requests that were on their way when it was throttled last: no news.
    pub(super) old_news: u32,
    /// How many times in a row it was throttled.
    pub(super) throttles: u32,
    /// Others are preferred until then.
    pub(super) rests_until: Time,
    /// Its next request waits for room towards the ESME.
    pub(super) is_waiting: bool,
    /// Its send queue has enough.
    pub(super) is_full: bool,
    /// We do not read from it.
    pub(super) is_paused: bool,
    /// When that changed last; zero if it waits for somebody who may wait for it.
    pub(super) held: Time,
    /// End of INITIAL, BINDING, UNBINDING.
    pub(super) deadline: Option<Time>,
    pub(super) pulse: Pulse,
    /// Its entry among the timers.
    pub(super) armed: Option<Time>,
}

/// An unbind that waits.
#[derive(Debug)]
pub(super) enum Unbind {
    Ours,
    /// A provider's, as it came.
    Theirs(Conn, Box<[u8]>),
}

/// What is behind a session.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Link {
    Nowhere,
    /// A provider of its own.
    Provider(Conn),
    /// A user space.
    Space(Conn),
}

/// Whom a provider serves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Owner {
    /// Nobody any more: it only unbinds.
    Nobody,
    Session(Conn),
    Space(Conn),
}

/// Whether the peer lives.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pulse {
    /// When it was heard last.
    pub(super) heard: Time,
    /// When we ask next.
    pub(super) next: Option<Time>,
    /// When we asked what it has not answered yet (regular mode).
    pub(super) asked: Option<Time>,
}

/// Bytes that hold a password: not shown, not even for debugging.
#[derive(Default, Eq, PartialEq)]
pub(super) struct Secret(pub(super) Box<[u8]>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Session {
    pub(super) fn new(now: Time, source: SocketAddr, is_secure: bool, first: u32) -> Session {
        Session {
            state: ServerState::Open,
            source,
            is_secure,
            bind: Secret::default(),
            command: Command::BIND_TRANSCEIVER,
            sequence: 0,
            link: Link::Nowhere,
            server: None,
            tries: 0,
            pending: Pending::starting_at(first),
            outstanding: 0,
            is_waiting: false,
            is_queued: false,
            waits_for: None,
            is_full: false,
            is_paused: false,
            held: Time::ZERO,
            has_ended: false,
            is_unanswered: false,
            leaves: false,
            unbind: None,
            holds_bytes: false,
            deadline: None,
            reconnect: None,
            pulse: Pulse { heard: now, ..Pulse::default() },
            armed: None,
        }
    }

    /// Whether it was bound as one that sends (SMPP 3.4 §2.3).
    pub(super) fn submits(&self) -> bool {
        self.command != Command::BIND_RECEIVER
    }

    /// Whether it was bound as one that receives.
    pub(super) fn receives(&self) -> bool {
        self.command != Command::BIND_TRANSMITTER
    }

    /// Whether its silence says nothing: we do not listen until a window has room, which a timer sees to, or
    /// it has said that it is done.
    pub(super) fn is_deaf(&self) -> bool {
        (self.is_waiting && !self.is_full) || self.has_ended
    }

    /// Whether it has asked to be unbound and waits for the answer, and for those that come first.
    pub(super) fn is_leaving(&self) -> bool {
        self.state == ServerState::Unbinding && self.leaves
    }

    /// Whether one more request may be under way to it.
    pub(super) fn has_room(&self, window: u32) -> bool {
        self.pending.open() < window && !self.pending.is_stretched()
    }

    /// When its oldest request gives up.
    pub(super) fn gives_up(&self, response: Duration) -> Option<Time> {
        gives_up(&self.pending, self.held, response)
    }

    pub(super) fn next_due(&self, check: Duration, response: Duration) -> Option<Time> {
        let check = self.pulse.asked.map(|it| it + check);
        let all = [self.gives_up(response), self.deadline, self.reconnect, self.pulse.next, check];
        all.into_iter().flatten().min()
    }
}

impl Provider {
    pub(super) fn new(now: Time, server: SocketAddr, owner: Owner, window: u32) -> Provider {
        Provider {
            state: ClientState::Initial,
            server,
            owner,
            was_bound: false,
            pending: Pending::starting_at(1),
            asks: 0,
            cap: window,
            old_news: 0,
            throttles: 0,
            rests_until: Time::ZERO,
            is_waiting: false,
            is_full: false,
            is_paused: false,
            held: Time::ZERO,
            deadline: None,
            pulse: Pulse { heard: now, ..Pulse::default() },
            armed: None,
        }
    }

    /// Whether it takes one more request.
    pub(super) fn has_room(&self, window: u32) -> bool {
        self.state == ClientState::Bound
            && !self.is_full
            && self.pending.open() < self.cap.min(window)
            && !self.pending.is_stretched()
    }

    /// Learns from a response how busy the SMSC is: half the requests when it says so, and for a while none
    /// that another takes, longer each time; one more for each that goes well. Returns whether it may have one
    /// more than before.
    pub(super) fn note(
        &mut self,
        now: Time,
        status: Status,
        congestion: Option<u8>,
        window: u32,
    ) -> bool {
        let is_busy = matches!(status, Status::THROTTLED | Status::MESSAGE_QUEUE_FULL)
            || congestion.is_some_and(|it| it >= CONGESTED);
        let is_news = self.old_news == 0;
        self.old_news = self.old_news.saturating_sub(1);
        if is_busy && is_news {
            self.cap = (self.pending.open() / 2).max(1);
            self.old_news = self.pending.open();
            self.rests_until = now + REST_MIN * (1 << self.throttles.min(REST_DOUBLINGS_MAX));
            self.throttles += 1;
        } else if !is_busy {
            self.throttles = 0;
            if self.cap < window {
                self.cap += 1;
                return true;
            }
        }
        false
    }

    /// When its oldest request gives up.
    pub(super) fn gives_up(&self, response: Duration) -> Option<Time> {
        gives_up(&self.pending, self.held, response)
    }

    pub(super) fn next_due(&self, check: Duration, response: Duration) -> Option<Time> {
        let check = self.pulse.asked.map(|it| it + check);
        let all = [self.gives_up(response), self.deadline, self.pulse.next, check];
        all.into_iter().flatten().min()
    }
}

/// When the oldest request to a peer gives up. Its answer may have come and wait behind what we do not
/// read: who is held gets a response time more from the moment in which that last began or ended. Not again
/// and again, or what is never answered would never be; and nothing more where both sides are held, or they
/// would wait for each other.
fn gives_up(pending: &Pending, held: Time, response: Duration) -> Option<Time> {
    let deadline = pending.earliest()?;
    Some(deadline.max((held + response).min(deadline + response * EXTENSIONS_MAX)))
}

impl Slab<Leg> {
    pub(super) fn session(&self, at: Conn) -> Option<&Session> {
        match self.get(at)? {
            Leg::Session(it) => Some(it),
            Leg::Provider(_) => None,
        }
    }

    pub(super) fn session_mut(&mut self, at: Conn) -> Option<&mut Session> {
        match self.get_mut(at)? {
            Leg::Session(it) => Some(it),
            Leg::Provider(_) => None,
        }
    }

    pub(super) fn provider(&self, at: Conn) -> Option<&Provider> {
        match self.get(at)? {
            Leg::Session(_) => None,
            Leg::Provider(it) => Some(it),
        }
    }

    pub(super) fn provider_mut(&mut self, at: Conn) -> Option<&mut Provider> {
        match self.get_mut(at)? {
            Leg::Session(_) => None,
            Leg::Provider(it) => Some(it),
        }
    }
}

/// Rest after ESME_RTHROTTLED: 100 ms for a rate that is exceeded a little, 3.2 s for one that stays low.
const REST_MIN: Duration = Duration::from_millis(100);
const REST_DOUBLINGS_MAX: u32 = 5;
/// Response times that a request may get on top of its own.
pub(super) const EXTENSIONS_MAX: u32 = 3;
/// congestion_state from which on an SMSC is "nearing congestion" (SMPP 5.0 §4.8.4.18).
const CONGESTED: u8 = 90;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::smpp::pending::Entry;

    #[test]
    fn a_throttled_provider_gets_half_and_recovers() {
        let at = SocketAddr::new([127, 0, 0, 1].into(), 1);
        let mut it = Provider::new(Time::ZERO, at, Owner::Nobody, 100);
        it.state = ClientState::Bound;
        let now = Time::from_millis(1000);
        let entry = Entry {
            from: Some(Conn { slot: 0, generation: 0 }),
            sequence: 1,
            command: Command::SUBMIT_SM,
            deadline: Time::ZERO,
            shared: None,
        };
        for _ in 0..40 {
            it.pending.push(entry);
        }
        it.note(now, Status::OK, None, 100);
        assert_eq!(it.cap, 100, "never above its window");
        it.note(now, Status::THROTTLED, None, 100);
        assert_eq!(it.cap, 20);
        assert!(!it.has_room(100));
        assert_eq!(it.rests_until, Time::from_millis(1100));
        it.note(now, Status::THROTTLED, None, 100);
        assert_eq!(it.cap, 20, "sent before it was slowed");
        (0..39).for_each(|_| assert!(it.note(now, Status::OK, None, 100)));
        assert_eq!(it.cap, 59);
        it.note(now, Status::OK, Some(95), 100);
        assert_eq!(it.cap, 20, "congestion counts alike");
        assert!(it.has_room(1) == (it.pending.open() < 1));
    }
}
