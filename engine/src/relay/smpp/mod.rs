//! The SMPP relay: ESMEs on one side, SMSCs on the other, PDUs across under numbers of ours.
//!
//! Two engines (`http-smpp-registry.md` 2): `regular`, in which each ESME session has an SMSC connection
//! of its own, and `mux`, in which all sessions of a system_id share one connection to each SMSC. PDUs
//! cross the same way in both: `server` takes them in from ESMEs, `client` from SMSCs, by the tables of
//! [`protocols::smpp::session`]; of a PDU that passes, the sequence number changes and nothing else.
//! `clock` has the timers. No PDU's content and no credential is ever logged.

mod active;
mod client;
mod clock;
mod leg;
mod life;
mod mux;
mod outbox;
mod pending;
mod receipts;
mod regular;
mod server;
mod settings;
mod slab;
mod space;
mod targets;
#[cfg(test)]
mod tests;
mod timers;
mod turns;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use protocols::smpp::pdu::{self, Frame, frame};
use protocols::smpp::session::{ClientState, ServerState};
use protocols::smpp::{Command, Status};
use protocols::time::Time;

pub use self::active::Active;
use self::leg::{Leg, Link, Owner, Session};
use self::life::{End, Loss};
use self::outbox::{Outbox, Wish};
use self::pending::{Entry, Shared};
use self::receipts::Receipts;
pub use self::settings::{SecureServers, SmppReceipts, SmppSettings};
use self::slab::Slab;
use self::space::Space;
use self::targets::Targets;
use self::timers::{Timers, Who};
use super::stream::{Conn, Gone, Handover, StreamRelay, Wire};
use crate::snapshot::Snapshot;
use crate::stats::smpp::{SmppCounters, SmppDrop, SmppSession};

/// One shard's SMPP relay.
#[derive(Debug)]
pub struct Smpp {
    settings: SmppSettings,
    legs: Slab<Leg>,
    /// How many of them are sessions.
    sessions: usize,
    spaces: Slab<Space>,
    /// By system_id, and whether its servers are inside TLS because its sessions are.
    spaces_by_name: HashMap<(Box<[u8]>, bool), Conn, ahash::RandomState>,
    targets: Targets,
    timers: Timers,
    receipts: Receipts,
    /// Messages that several sessions were asked: how many have not answered.
    shared: HashMap<Shared, u32, ahash::RandomState>,
    /// The number of the next one.
    next_shared: Shared,
    counters: SmppCounters,
    out: Outbox,
    handover: Option<Handover>,
    /// When the latest session that lost its server looks for another.
    last_rebind: Time,
    /// When a stop ends.
    stop: Option<Time>,
}

/// The listener of `smppPort`.
pub const PLAIN_LISTENER: usize = 0;
/// The listener of `smppSslPort`.
pub const TLS_LISTENER: usize = 1;

/// The shard that owns a system_id, of so many: in mux mode all its sessions meet there.
pub fn owner(system_id: &[u8], shards: usize) -> usize {
    let hash = u128::from(crate::balance::hash(OWNER_SEED, system_id));
    usize::try_from((hash * shards as u128) >> 64).unwrap_or(0)
}

/// What became of one PDU.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Step {
    /// Done.
    Next,
    /// It waits: it is offered again after a resume.
    Blocked,
    /// The connection is over.
    Gone,
}

impl Smpp {
    /// A relay that has no connections yet.
    pub fn new(settings: SmppSettings) -> Smpp {
        let targets = Targets::new(settings.servers.clone(), settings.shard);
        Smpp {
            counters: SmppCounters { mux: settings.mux, ..SmppCounters::default() },
            settings,
            legs: Slab::new(),
            sessions: 0,
            spaces: Slab::new(),
            spaces_by_name: HashMap::default(),
            targets,
            timers: Timers::default(),
            receipts: Receipts::default(),
            shared: HashMap::default(),
            next_shared: Shared::FIRST,
            out: Outbox::default(),
            handover: None,
            last_rebind: Time::ZERO,
            stop: None,
        }
    }

    /// Has one active server with the relays of other shards, where servers are active and standby.
    #[must_use]
    pub fn sharing(mut self, active: Arc<Active>) -> Smpp {
        self.targets.share(active);
        self
    }

    /// Takes on a changed configuration. Sessions stay; in mux mode new servers are connected and removed
    /// ones are unbound. `mux` and the shard's place stay as they were.
    pub fn reload(
        &mut self,
        now: Time,
        settings: SmppSettings,
        snapshot: &Snapshot,
        wire: &mut impl Wire,
    ) {
        self.targets.configure(settings.servers.clone());
        let SmppSettings { mux, shard, shards, response, .. } = self.settings;
        self.settings = SmppSettings { mux, shard, shards, ..settings };
        if self.settings.response < response {
            self.hasten(now + self.settings.response);
        }
        self.refresh(now, snapshot);
        self.flush(now, wire);
    }

    /// The nodes have changed: in mux mode those that are servers are connected and removed ones unbound, else
    /// sessions of those that are no longer there move, though nobody says anything.
    pub fn handle_snapshot(&mut self, now: Time, snapshot: &Snapshot, wire: &mut impl Wire) {
        self.refresh(now, snapshot);
        self.flush(now, wire);
    }

    /// Whether there is no connection left.
    pub fn is_idle(&self) -> bool {
        self.legs.len() == 0
    }

    /// Most connections that one source may open; 0 is any number.
    pub fn source_connections_max(&self) -> usize {
        self.settings.source_connections_max
    }

    /// A client was not let in.
    pub fn refused(&mut self, why: SmppDrop) {
        self.counters.dropped(why);
    }

    /// The figures at this moment.
    pub fn counters(&mut self) -> &SmppCounters {
        self.counters.sessions = self.sessions as u64;
        self.counters.providers = (self.legs.len() - self.sessions) as u64;
        self.counters.submitters = self.receipts.len() as u64;
        self.counters.servers = self.targets.iter().map(|it| (it, 0)).collect();
        self.counters.connections.clear();
        self.counters.shown = self.sessions().take(SmppCounters::SHOWN_MAX).collect();
        for (_, leg) in self.legs.iter() {
            if let Leg::Provider(provider) = leg {
                *self.counters.connections.entry(provider.server).or_default() += 1;
            }
            if let Leg::Provider(provider) = leg
                && provider.state == ClientState::Bound
                && let Some(row) =
                    self.counters.servers.iter_mut().find(|it| it.0 == provider.server)
            {
                row.1 += 1;
            }
        }
        &self.counters
    }

    /// Every session.
    pub fn sessions(&self) -> impl Iterator<Item = SmppSession> {
        self.legs.iter().filter_map(|(_, leg)| {
            let Leg::Session(it) = leg else { return None };
            Some(SmppSession {
                source: it.source,
                state: it.state.as_str(),
                is_secure: it.is_secure,
                server: it.server.filter(|_| matches!(it.link, Link::Provider(_))),
                outstanding: it.outstanding,
                outstanding_to_client: it.pending.open(),
            })
        })
    }

    fn conns(&self, which: impl Fn(&Leg) -> bool) -> Vec<Conn> {
        self.legs.iter().filter(|it| which(it.1)).map(|it| it.0).collect()
    }

    /// What waits already waits no longer than what is asked now: the oldest is the next to give up.
    fn hasten(&mut self, latest: Time) {
        for conn in self.conns(|_| true) {
            match self.legs.get_mut(conn) {
                Some(Leg::Session(it)) => it.pending.hasten(latest),
                Some(Leg::Provider(it)) => it.pending.hasten(latest),
                None => {}
            }
            self.arm(conn);
        }
    }

    /// Looks at the nodes, some of which are servers.
    fn refresh(&mut self, now: Time, snapshot: &Snapshot) {
        let has_changed = self.targets.refresh(snapshot);
        let gone = self.targets.take_gone();
        if has_changed && self.settings.mux {
            self.reconcile(now);
        }
        if !gone.is_empty() && !self.settings.mux {
            self.leave_servers(now, &gone);
        }
    }

    /// Hands everything to the wire.
    fn flush(&mut self, now: Time, wire: &mut impl Wire) {
        let legs = &mut self.legs;
        // Spaces whose room was offered to who now turns out not to read.
        let mut passed_on = Vec::new();
        self.out.send(wire, |wishes, conn| match legs.get_mut(conn) {
            Some(Leg::Session(session)) => {
                session.is_full = true;
                if !std::mem::replace(&mut session.is_paused, true) {
                    session.held = now;
                    if let Link::Space(space) = session.link
                        && wishes.contains(&Wish::Resume(conn))
                    {
                        passed_on.push(space);
                    }
                    wishes.push(Wish::Pause(conn));
                }
                if let Link::Provider(behind) = session.link
                    && let Some(provider) = legs.provider_mut(behind)
                    && !std::mem::replace(&mut provider.is_paused, true)
                {
                    provider.held = now;
                    wishes.push(Wish::Pause(behind));
                }
            }
            Some(Leg::Provider(provider)) => {
                provider.is_full = true;
                if !std::mem::replace(&mut provider.is_paused, true) {
                    provider.held = now;
                    wishes.push(Wish::Pause(conn));
                }
            }
            None => {}
        });
        for space in passed_on {
            self.wake_space(now, space, None, usize::MAX);
            self.out.send(wire, |_, _| {}); // wishes only
        }
    }

    /// Reads from a connection or does not, as its state says.
    fn settle(&mut self, now: Time, conn: Conn) {
        let wants_pause = match self.legs.get(conn) {
            Some(Leg::Session(it)) => it.is_waiting || it.is_full,
            Some(Leg::Provider(it)) => {
                let is_full = |session| self.legs.session(session).is_some_and(|it| it.is_full);
                let is_held = matches!(it.owner, Owner::Session(it) if is_full(it));
                it.is_waiting || it.is_full || is_held
            }
            None => return,
        };
        let (is_paused, held) = match self.legs.get_mut(conn) {
            Some(Leg::Session(it)) => (&mut it.is_paused, &mut it.held),
            Some(Leg::Provider(it)) => (&mut it.is_paused, &mut it.held),
            None => return,
        };
        if std::mem::replace(is_paused, wants_pause) != wants_pause {
            *held = now;
            self.out.wish(if wants_pause { Wish::Pause(conn) } else { Wish::Resume(conn) });
        }
    }

    /// A held request gets its chance.
    fn wake(&mut self, now: Time, conn: Conn) {
        match self.legs.get_mut(conn) {
            Some(Leg::Session(it)) => it.is_waiting = false,
            Some(Leg::Provider(it)) => it.is_waiting = false,
            None => return,
        }
        self.settle(now, conn);
    }

    /// Files a leg's next deadline.
    fn arm(&mut self, conn: Conn) {
        let settings = &self.settings;
        match self.legs.get_mut(conn) {
            Some(Leg::Session(it)) => {
                let due = it.next_due(settings.check_client_side, settings.response);
                self.timers.arm(Who::Leg(conn), &mut it.armed, due);
            }
            Some(Leg::Provider(it)) => {
                let due = it.next_due(settings.check_server_side, settings.response);
                self.timers.arm(Who::Leg(conn), &mut it.armed, due);
            }
            None => {}
        }
        self.forget_the_gone();
    }

    /// Those who are gone leave their deadlines behind; many of them at once would be a table without a
    /// limit.
    fn forget_the_gone(&mut self) {
        if self.timers.len() <= TIMERS_SPARE + 4 * (self.legs.len() + self.spaces.len()) {
            return;
        }
        let (legs, spaces) = (&self.legs, &self.spaces);
        self.timers.retain(|at, who| {
            let armed = match who {
                Who::Space(it) => spaces.get(it).and_then(|it| it.armed),
                Who::Leg(it) => match legs.get(it) {
                    Some(Leg::Session(it)) => it.armed,
                    Some(Leg::Provider(it)) => it.armed,
                    None => None,
                },
            };
            armed == Some(at)
        });
    }

    /// Answers with a PDU that has no body.
    fn answer(&mut self, conn: Conn, request: Command, status: Status, sequence: u32) {
        pdu::write_header(request.response(), status, sequence, self.out.to(conn));
    }

    /// A request of ours to a leg: enquire_link or unbind.
    fn ask(&mut self, now: Time, conn: Conn, command: Command) {
        let deadline = now + self.settings.response;
        let entry = Entry { from: None, sequence: 0, command, deadline, shared: None };
        let pending = match self.legs.get_mut(conn) {
            Some(Leg::Session(it)) => &mut it.pending,
            Some(Leg::Provider(it)) => &mut it.pending,
            None => return,
        };
        let sequence = pending.push(entry);
        pdu::write_header(command, Status::OK, sequence, self.out.to(conn));
        self.arm(conn);
    }

    /// A length that is none: framing is lost for good (SMPP 3.4 §4.3).
    fn malformed(&mut self, now: Time, conn: Conn) {
        self.counters.dropped(SmppDrop::Malformed);
        self.answer(conn, Command::GENERIC_NACK, Status::INVALID_COMMAND_LENGTH, 0);
        match self.legs.get(conn) {
            Some(Leg::Session(_)) => self.end_session(now, conn, End::Close),
            Some(Leg::Provider(_)) => self.lose(now, conn, Some(Wish::Close(conn)), Loss::Alone),
            None => {}
        }
    }

    fn is_waiting(&self, conn: Conn) -> bool {
        match self.legs.get(conn) {
            Some(Leg::Session(it)) => it.is_waiting,
            Some(Leg::Provider(it)) => it.is_waiting,
            None => false,
        }
    }

    /// Takes in what it can. Returns how much that is.
    fn take_in(&mut self, now: Time, conn: Conn, bytes: &[u8]) -> usize {
        let mut used = 0;
        let mut holds_bytes = false;
        if self.is_waiting(conn) {
            return 0;
        }
        while let Some(rest) = bytes.get(used..) {
            let pdu = match frame(rest) {
                Ok(Frame::Pdu(pdu)) => pdu,
                Ok(Frame::NeedMore { .. }) => break,
                Err(_) => {
                    self.malformed(now, conn);
                    return bytes.len();
                }
            };
            let step = match self.legs.get_mut(conn) {
                Some(Leg::Session(it)) => {
                    it.pulse.heard = now;
                    self.handle_esme(now, conn, pdu)
                }
                Some(Leg::Provider(it)) => {
                    it.pulse.heard = now;
                    self.handle_smsc(now, conn, pdu)
                }
                None => Step::Gone,
            };
            match step {
                Step::Next => used += pdu.bytes().len(),
                Step::Blocked => {
                    holds_bytes = true;
                    break;
                }
                Step::Gone if self.handover.is_some() => break,
                Step::Gone => return bytes.len(),
            }
        }
        if let Some(session) = self.legs.session_mut(conn)
            && (session.holds_bytes || holds_bytes)
        {
            session.holds_bytes = holds_bytes;
            if !holds_bytes {
                self.freed(now, conn);
            }
        }
        used
    }
}

impl StreamRelay for Smpp {
    fn handle_open(
        &mut self,
        now: Time,
        listener: usize,
        source: SocketAddr,
        wire: &mut impl Wire,
    ) -> Option<Conn> {
        if self.stop.is_some() {
            self.counters.dropped(SmppDrop::Stopping);
            return None;
        }
        if self.sessions >= self.settings.sessions_max {
            self.counters.dropped(SmppDrop::Full);
            return None;
        }
        // In mux mode the original's numbers towards ESMEs begin with 2.
        let first = if self.settings.mux { 2 } else { 1 };
        let mut session = Session::new(now, source, listener == TLS_LISTENER, first);
        session.deadline = Some(now + self.settings.connection);
        let conn = self.legs.insert(Leg::Session(Box::new(session)));
        self.sessions += 1;
        self.arm(conn);
        self.flush(now, wire);
        Some(conn)
    }

    fn handle_connected(&mut self, now: Time, conn: Conn, wire: &mut impl Wire) {
        self.connected(now, conn);
        self.flush(now, wire);
    }

    fn handle_bytes(
        &mut self,
        now: Time,
        conn: Conn,
        bytes: &[u8],
        snapshot: &Snapshot,
        wire: &mut impl Wire,
    ) -> usize {
        self.refresh(now, snapshot);
        let used = self.take_in(now, conn, bytes);
        self.flush(now, wire);
        used
    }

    fn handle_end(&mut self, now: Time, conn: Conn, snapshot: &Snapshot, wire: &mut impl Wire) {
        self.refresh(now, snapshot);
        match self.legs.get_mut(conn) {
            Some(Leg::Session(session)) => {
                // What it has asked for it still gets.
                session.has_ended = true;
                let is_done = session.outstanding == 0 && !session.holds_bytes;
                let is_served = session.state == ServerState::Bound
                    || session.is_leaving()
                    || session.unbind.is_some();
                if is_done || !is_served {
                    self.end_session(now, conn, End::Close);
                } else {
                    self.receives_no_more(now, conn);
                }
            }
            Some(Leg::Provider(_)) => self.lose(now, conn, Some(Wish::Close(conn)), Loss::Alone),
            None => {}
        }
        self.flush(now, wire);
    }

    fn handle_gone(
        &mut self,
        now: Time,
        conn: Conn,
        why: Gone,
        snapshot: &Snapshot,
        wire: &mut impl Wire,
    ) {
        self.refresh(now, snapshot);
        match self.legs.get(conn) {
            Some(Leg::Session(_)) => self.end_session(now, conn, End::Gone),
            Some(Leg::Provider(it)) => {
                let never_came = it.state == ClientState::Initial && why != Gone::Shortage;
                let loss = if never_came { Loss::Useless } else { Loss::Alone };
                self.lose(now, conn, None, loss);
            }
            None => {}
        }
        self.flush(now, wire);
    }

    fn handle_drained(&mut self, now: Time, conn: Conn, wire: &mut impl Wire) {
        match self.legs.get_mut(conn) {
            Some(Leg::Session(session)) => {
                session.is_full = false;
                let link = session.link;
                self.settle(now, conn);
                if let Link::Space(space) = link {
                    self.leave_queue(now, space, conn);
                    self.wake_providers(now, space);
                }
                if let Link::Provider(provider) = link {
                    self.settle(now, provider);
                }
            }
            Some(Leg::Provider(provider)) => {
                provider.is_full = false;
                let owner = provider.owner;
                self.settle(now, conn);
                match owner {
                    Owner::Session(session) => self.wake(now, session),
                    Owner::Space(space) => self.wake_space(now, space, Some(conn), usize::MAX),
                    Owner::Nobody => {}
                }
            }
            None => {}
        }
        self.flush(now, wire);
    }

    fn poll_timeout(&self) -> Option<Time> {
        let stop = self.stop.filter(|_| !self.is_idle());
        self.timers.earliest().into_iter().chain(stop).min()
    }

    fn poll_handover(&mut self) -> Option<Handover> {
        self.handover.take()
    }

    fn handle_timeout(&mut self, now: Time, snapshot: &Snapshot, wire: &mut impl Wire) {
        self.refresh(now, snapshot);
        self.tick(now);
        self.flush(now, wire);
    }
}

const fn is_bind(command: Command) -> bool {
    matches!(
        command,
        Command::BIND_RECEIVER | Command::BIND_TRANSMITTER | Command::BIND_TRANSCEIVER
    )
}

/// How long a graceful stop waits for the answers to its unbinds (`http-smpp-registry.md` 5.4).
pub const STOP_TIME: std::time::Duration = std::time::Duration::from_secs(1);
/// Deadlines of connections that are gone, before anybody looks.
const TIMERS_SPARE: usize = 1_024;
/// Keeps the owner apart from every other use of the routing hash.
const OWNER_SEED: u64 = 0x736d_7070;
