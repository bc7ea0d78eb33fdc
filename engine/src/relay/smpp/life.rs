//! How connections begin and end, and what becomes of the requests on them.

use std::net::SocketAddr;
use std::time::Duration;

use protocols::smpp::pdu::{Frame, frame};
use protocols::smpp::session::{ClientState, ServerState};
use protocols::smpp::{Command, Status};
use protocols::time::Time;

use super::leg::{Leg, Link, Owner, Provider, Session, Unbind};
use super::outbox::Wish;
use super::pending::Entry;
use super::{STOP_TIME, SecureServers, Smpp, is_bind};
use crate::relay::stream::{Conn, Secure, Wire};

impl Smpp {
    /// Ends gracefully: every session is unbound on both sides as soon as what it has asked is answered, in
    /// half of [`STOP_TIME`] at most, and closed once it has answered or [`STOP_TIME`] after the stop.
    /// [`Smpp::is_idle`] says when all is over.
    pub fn stop(&mut self, now: Time, wire: &mut impl Wire) {
        self.stop = Some(now + STOP_TIME);
        let sessions: Vec<Conn> = self.conns(|it| matches!(it, Leg::Session(_)));
        for conn in sessions {
            let Some(session) = self.legs.session_mut(conn) else { continue };
            match session.state {
                ServerState::Bound | ServerState::Rebinding => self.unbind_session(now, conn),
                ServerState::Unbinding => {
                    // It has asked for that, and the servers wait for nobody else.
                    if let Link::Space(space) = session.link {
                        session.link = Link::Nowhere;
                        self.leave(now, space, conn);
                    }
                }
                ServerState::Binding => self.refuse_bind(now, conn, Status::SYSTEM_ERROR),
                _ => self.end_session(now, conn, End::Close),
            }
        }
        // Those that were asked to go before have no more time than the others.
        for conn in self.conns(|_| true) {
            let deadline = match self.legs.get_mut(conn) {
                Some(Leg::Session(it)) if it.unbind.is_some() && !it.leaves => &mut it.deadline,
                Some(Leg::Provider(it)) => &mut it.deadline,
                _ => continue,
            };
            *deadline = deadline.map(|it| it.min(now + STOP_TIME / 2));
            self.arm(conn);
        }
        self.flush(now, wire);
    }

    /// The server part unbinds the ESME: BOUND or REBINDING becomes UNBINDING. Most ESMEs answer an unbind at
    /// once and are gone, so what they have asked is answered first, and they may answer what they were asked.
    pub(super) fn unbind_session(&mut self, now: Time, conn: Conn) {
        let deadline = now + self.patience();
        let Some(session) = self.legs.session_mut(conn) else { return };
        session.state = ServerState::Unbinding;
        session.unbind = Some(Unbind::Ours);
        session.deadline = Some(deadline);
        session.reconnect = None;
        session.pulse.next = None;
        session.pulse.asked = None;
        match std::mem::replace(&mut session.link, Link::Nowhere) {
            Link::Provider(provider) => self.retire(now, provider),
            Link::Space(space) => self.leave(now, space, conn),
            Link::Nowhere => {}
        }
        self.wake(now, conn);
        self.freed(now, conn);
        self.arm(conn);
    }

    /// How long an unbind waits for answers. Who owes them is a provider that is retired or has unbound us:
    /// it keeps the time.
    pub(super) fn patience(&self) -> Duration {
        match self.stop {
            None => self.settings.response,
            Some(_) => STOP_TIME / 2, // the other half is for the unbind_resp
        }
    }

    /// UNBINDING: all that the ESME has asked is answered, it may go.
    fn send_unbind(&mut self, now: Time, conn: Conn, unbind: &Unbind) {
        let deadline = now + self.settings.response;
        if let Some(session) = self.legs.session_mut(conn) {
            // That of the request is enough where a provider waits for the answer.
            session.deadline = Some(deadline).filter(|_| matches!(unbind, Unbind::Ours));
        }
        match unbind {
            Unbind::Ours => self.ask(now, conn, Command::UNBIND),
            Unbind::Theirs(provider, pdu) => {
                if let Ok(Frame::Pdu(pdu)) = frame(pdu) {
                    self.deliver(now, *provider, conn, pdu, None);
                }
                self.arm(conn);
            }
        }
    }

    /// The ESME is going without an unbind of its provider's that waited: the provider is answered.
    pub(super) fn answer_unbind(&mut self, unbind: &Unbind) {
        if let Unbind::Theirs(provider, pdu) = unbind
            && let Ok(Frame::Pdu(pdu)) = frame(pdu)
            && self.legs.provider(*provider).is_some()
        {
            self.answer(*provider, Command::UNBIND, Status::OK, pdu.sequence());
        }
    }

    /// A session is over on this side: what is behind it is let go, and who waits for it gets an answer.
    pub(super) fn end_session(&mut self, now: Time, conn: Conn, end: End) {
        let Some(Leg::Session(session)) = self.legs.remove(conn) else { return };
        self.sessions -= 1;
        if end == End::Close {
            self.out.wish(Wish::Close(conn));
        }
        for entry in session.pending.into_entries() {
            let status = match entry.command {
                Command::UNBIND => Status::OK,
                _ => Status::SYSTEM_ERROR,
            };
            self.give_up_towards_server(now, entry, status);
            if entry.command == Command::UNBIND
                && let Some(provider) = entry.from
            {
                self.close_provider(now, provider);
            }
        }
        session.unbind.iter().for_each(|it| self.answer_unbind(it));
        match session.link {
            Link::Provider(provider) => self.retire(now, provider),
            Link::Space(space) => self.leave(now, space, conn),
            Link::Nowhere => {}
        }
    }

    /// A request of a provider will not be answered by the session that was asked.
    pub(super) fn give_up_towards_server(&mut self, now: Time, entry: Entry, status: Status) {
        let Some(conn) = entry.from else { return };
        let is_last = match entry.shared.and_then(|it| Some((it, self.shared.get_mut(&it)?))) {
            Some((shared, 1)) => self.shared.remove(&shared).is_some(),
            Some((_, count)) => {
                *count -= 1;
                false
            }
            None => entry.shared.is_none(), // or another was first
        };
        let Some(provider) = self.legs.provider_mut(conn) else { return };
        provider.asks = provider.asks.saturating_sub(1);
        if is_last {
            self.answer(conn, entry.command, status, entry.sequence);
        }
        self.let_go_if_done(now, conn);
    }

    /// Nobody has new requests for a provider: it is unbound when it has answered those that somebody still
    /// waits for and has the answers to its own, and closed when it has answered that.
    pub(super) fn retire(&mut self, now: Time, conn: Conn) {
        let Some(provider) = self.legs.provider(conn) else { return };
        let is_asker =
            |it: Conn| self.legs.session(it).is_some_and(|it| it.state != ServerState::Closed);
        let is_awaited =
            provider.asks > 0 || provider.pending.iter().any(|it| it.from.is_some_and(is_asker));
        let wait = if is_awaited { self.patience() } else { RETIRE_TIME };
        let Some(provider) = self.legs.provider_mut(conn) else { return };
        provider.owner = Owner::Nobody;
        if !matches!(provider.state, ClientState::Bound | ClientState::Unbinding) {
            return self.close_provider(now, conn);
        }
        provider.deadline = Some(now + wait);
        provider.pulse.next = None;
        provider.pulse.asked = None;
        self.wake(now, conn);
        if !is_awaited {
            self.let_go(now, conn);
        }
        self.arm(conn);
    }

    /// Nobody waits for a retired provider any longer: it is unbound, or closed if it has unbound us.
    pub(super) fn let_go(&mut self, now: Time, conn: Conn) {
        let Some(provider) = self.legs.provider_mut(conn) else { return };
        if provider.state == ClientState::Bound {
            provider.state = ClientState::Unbinding;
            provider.deadline = Some(now + RETIRE_TIME);
            self.ask(now, conn, Command::UNBIND);
        } else if provider.pending.is_empty() {
            self.close_provider(now, conn);
        }
    }

    /// One request less is outstanding at a provider, or of it: a retired one may be done.
    pub(super) fn let_go_if_done(&mut self, now: Time, conn: Conn) {
        let provider = self.legs.provider(conn).filter(|it| it.owner == Owner::Nobody);
        if provider.is_some_and(|it| it.pending.open() == 0 && it.asks == 0) {
            self.let_go(now, conn);
        }
    }

    /// A provider has had its time to answer: who waits for it gets our answer, so that none has to after its
    /// unbind.
    pub(super) fn turn_back_all(&mut self, now: Time, conn: Conn) {
        let Some(provider) = self.legs.provider_mut(conn) else { return };
        for entry in provider.pending.drain() {
            self.turn_back(now, entry);
        }
    }

    /// A provider's connection is over: its requests in flight are turned back. They are not sent
    /// again: nobody knows whether the SMSC has taken them.
    pub(super) fn drop_provider(
        &mut self,
        now: Time,
        conn: Conn,
        wish: Option<Wish>,
    ) -> Option<Lost> {
        self.legs.provider(conn)?;
        let Some(Leg::Provider(provider)) = self.legs.remove(conn) else { return None };
        wish.into_iter().for_each(|it| self.out.wish(it));
        if provider.was_bound {
            self.targets.unbound(provider.server);
        }
        let lost = Lost { conn, server: provider.server, owner: provider.owner };
        for entry in provider.pending.into_entries() {
            self.turn_back(now, entry);
        }
        Some(lost)
    }

    /// A provider's connection is closed by us, and nobody looks for another.
    pub(super) fn close_provider(&mut self, now: Time, conn: Conn) {
        self.drop_provider(now, conn, Some(Wish::Close(conn)));
    }

    /// The request of a session gets an answer of ours instead of the SMSC's.
    pub(super) fn turn_back(&mut self, now: Time, entry: Entry) {
        let Some(conn) = entry.from else { return };
        let Some(session) = self.legs.session_mut(conn) else { return };
        if is_bind(entry.command) {
            return; // whoever binds looks after it
        }
        session.outstanding = session.outstanding.saturating_sub(1);
        if entry.command == Command::UNBIND {
            session.state = ServerState::Closed;
            session.deadline = Some(now + self.settings.connection);
            let has_ended = session.has_ended;
            self.answer(conn, entry.command, Status::OK, entry.sequence);
            return match has_ended {
                true => self.end_session(now, conn, End::Close),
                false => self.arm(conn),
            };
        }
        self.counters.unanswered += 1;
        if session.state != ServerState::Closed {
            self.answer(conn, entry.command, Status::SYSTEM_ERROR, entry.sequence);
        }
        self.freed(now, conn);
    }

    /// Whether the ESME has still time to answer somebody.
    fn owes(&self, session: &Session) -> bool {
        let is_there = |it: &Entry| it.from.is_some_and(|it| self.legs.provider(it).is_some());
        session.deadline.is_some() && session.pending.iter().any(is_there)
    }

    /// One request less of a session is outstanding, or to one whose unbind waits for that.
    pub(super) fn freed(&mut self, now: Time, conn: Conn) {
        let Some(session) = self.legs.session(conn) else { return };
        if session.is_waiting {
            if !session.is_queued {
                self.wake(now, conn);
            }
        } else if session.outstanding == 0 && session.is_leaving() {
            self.customer_unbound(now, conn);
        } else if session.has_ended && session.outstanding == 0 && !session.holds_bytes {
            self.end_session(now, conn, End::Close);
        } else if session.unbind.is_some()
            && session.outstanding == 0
            && !self.owes(session)
            && let Some(unbind) = self.legs.session_mut(conn).and_then(|it| it.unbind.take())
        {
            self.send_unbind(now, conn, &unbind);
        }
    }

    /// A provider is over although it is needed: its owner looks for another.
    pub(super) fn lose(&mut self, now: Time, conn: Conn, wish: Option<Wish>, loss: Loss) {
        let state = self.legs.provider(conn).map(|it| it.state);
        let Some(lost) = self.drop_provider(now, conn, wish) else { return };
        let was_last = state == Some(ClientState::Bound) && !self.targets.has_bound(lost.server);
        if loss == Loss::Useless || was_last {
            self.targets.failed(lost.server);
        }
        match lost.owner {
            Owner::Nobody => {}
            Owner::Session(session) => self.server_lost(now, session, lost.server),
            Owner::Space(space) => self.provider_lost(now, space, lost.conn),
        }
    }

    /// Opens a connection to a server.
    pub(super) fn connect(
        &mut self,
        now: Time,
        owner: Owner,
        server: SocketAddr,
        is_secure: bool,
    ) -> Conn {
        let is_secure = match self.settings.secure {
            SecureServers::Never => false,
            SecureServers::LikeClient => is_secure,
            SecureServers::Always => true,
        };
        let mut provider = Provider::new(now, server, owner, self.settings.provider_window);
        provider.deadline = Some(now + self.settings.connect);
        let conn = self.legs.insert(Leg::Provider(Box::new(provider)));
        let secure = if is_secure { Secure::Tls } else { Secure::No };
        let to = self.targets.address(server, is_secure);
        self.out.wish(Wish::Connect(conn, to, secure));
        self.arm(conn);
        conn
    }
}

/// How a session's connection ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum End {
    /// It is gone already.
    Gone,
    /// We close it.
    Close,
}

/// What the loss of a connection says of its server.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Loss {
    /// It takes no connections, or does not answer a bind: nobody is better off there.
    Useless,
    /// Nothing, as long as others are bound there: it may have refused one ESME.
    Alone,
}

/// A provider that is no more.
#[derive(Debug)]
pub(super) struct Lost {
    pub(super) conn: Conn,
    pub(super) server: SocketAddr,
    pub(super) owner: Owner,
}

/// How long an SMSC connection that nobody needs waits for the answer to its unbind.
const RETIRE_TIME: Duration = Duration::from_secs(1);
