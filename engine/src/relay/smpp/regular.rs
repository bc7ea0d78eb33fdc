//! Regular mode: an SMSC connection for each ESME session, bound with the ESME's own bind. If it is lost
//! the next working server takes its place (`http-smpp-registry.md` 2.2 to 2.5).

use std::net::SocketAddr;

use protocols::smpp::Command;
use protocols::smpp::pdu::{Frame, Pdu, frame};
use protocols::smpp::session::{ClientState, ServerState};
use protocols::time::Time;

use super::Smpp;
use super::leg::{Leg, Link, Owner, Unbind};
use super::life::{End, Loss};
use super::outbox::Wish;
use super::pending::Entry;
use crate::config::SmppToProvider;
use crate::relay::stream::Conn;

impl Smpp {
    /// BINDING: connects to the first server.
    pub(super) fn bind_session(&mut self, now: Time, conn: Conn) {
        let server = self.targets.choose(self.settings.to_provider);
        self.try_server(now, conn, server);
    }

    /// Connects to `server` for a session that is BINDING or REBINDING. `None`, or every server tried:
    /// gives up. Each server has its own time to be connected and to answer the bind, so that one that is
    /// deaf or mute does not use up the time of the others.
    fn try_server(&mut self, now: Time, conn: Conn, server: Option<SocketAddr>) {
        let tries_max = self.targets.len();
        let Some(session) = self.legs.session_mut(conn) else { return };
        let Some(server) = server.filter(|_| session.tries < tries_max) else {
            return match session.state {
                ServerState::Binding => self.refuse_bind_for_want_of_servers(now, conn),
                _ => self.unbind_session(now, conn),
            };
        };
        session.tries += 1;
        session.server = Some(server);
        let is_secure = session.is_secure;
        let provider = self.connect(now, Owner::Session(conn), server, is_secure);
        if let Some(session) = self.legs.session_mut(conn) {
            session.link = Link::Provider(provider);
        }
    }

    /// OPEN: sends the ESME's own bind, byte for byte but for its number.
    pub(super) fn send_bind(&mut self, now: Time, conn: Conn, owner: Conn) {
        let deadline = now + self.settings.response;
        let Some(session) = self.legs.session(owner) else { return };
        let Ok(Frame::Pdu(bind)) = frame(&session.bind.0) else { return };
        let is_again = session.state == ServerState::Rebinding;
        let entry = Entry {
            from: Some(owner),
            sequence: session.sequence,
            command: session.command,
            deadline,
            shared: None,
        };
        // Written aside: the session lends its bytes while the provider takes the number.
        let mut out = Vec::with_capacity(bind.bytes().len());
        bind.append_as(0, &mut out);
        let Some(provider) = self.legs.provider_mut(conn) else { return };
        provider.state = if is_again { ClientState::Rebinding } else { ClientState::Binding };
        let sequence = provider.pending.push(entry);
        if let Ok(Frame::Pdu(bind)) = frame(&out) {
            bind.append_as(sequence, self.out.to(conn));
            if !is_again {
                self.counters.bytes_to_server += bind.bytes().len() as u64;
            }
        }
    }

    /// bind_resp with status 0: both parts are BOUND.
    pub(super) fn server_bound(&mut self, now: Time, conn: Conn, pdu: Pdu<'_>) {
        let enquire = self.settings.enquire;
        let Some(session) = self.legs.session_mut(conn) else { return };
        let is_first = session.state == ServerState::Binding;
        session.state = ServerState::Bound;
        session.deadline = None;
        session.tries = 0;
        session.pulse.next = Some(now + enquire);
        session.pulse.asked = None;
        if is_first {
            let sequence = session.sequence;
            pdu.append_as(sequence, self.out.to(conn));
            self.counters.bytes_to_client += pdu.bytes().len() as u64;
        }
        if let Some(Link::Provider(provider)) = self.legs.session(conn).map(|it| it.link) {
            self.settle(now, provider);
        }
        self.arm(conn);
    }

    /// An error to our bind: the ESME hears it, or after a loss is unbound.
    pub(super) fn server_refused(&mut self, now: Time, provider: Conn, conn: Conn, pdu: Pdu<'_>) {
        self.close_provider(now, provider);
        let Some(session) = self.legs.session_mut(conn) else { return };
        session.link = Link::Nowhere;
        if session.state != ServerState::Binding {
            return self.unbind_session(now, conn);
        }
        let sequence = session.sequence;
        pdu.append_as(sequence, self.out.to(conn));
        self.counters.bytes_to_client += pdu.bytes().len() as u64;
        self.end_session(now, conn, End::Close);
    }

    /// The connection to the server is lost, or never came to be.
    pub(super) fn server_lost(&mut self, now: Time, conn: Conn, server: SocketAddr) {
        let reconnect = self.settings.reconnect;
        // One after the other: who lost the same server shall not fall upon the next one all at once.
        let at = (now + reconnect).max(self.last_rebind + REBIND_GAP).min(now + 2 * reconnect);
        let Some(session) = self.legs.session_mut(conn) else { return };
        session.link = Link::Nowhere;
        match session.state {
            ServerState::Bound => {
                self.last_rebind = at;
                session.state = ServerState::Rebinding;
                session.tries = 0;
                session.reconnect = Some(at);
                // What it was asked it must still answer: no other server gets the bind of a dead ESME.
                session.pulse.next = None;
                self.counters.rebinds += 1;
                self.wake(now, conn);
                self.arm(conn);
            }
            ServerState::Binding | ServerState::Rebinding => {
                let next = self.targets.after(server);
                self.try_server(now, conn, next);
            }
            ServerState::Unbinding => self.freed(now, conn),
            ServerState::Open | ServerState::Closed => {}
        }
    }

    /// Servers that were nodes are no longer in the table. Their sessions move to others, one after the other.
    pub(super) fn leave_servers(&mut self, now: Time, gone: &[SocketAddr]) {
        let reconnect = self.settings.reconnect;
        let is_there = |it: Option<SocketAddr>| it.is_some_and(|it| gone.contains(&it));
        for conn in self.conns(|it| matches!(it, Leg::Session(it) if is_there(it.server))) {
            let Some(session) = self.legs.session_mut(conn) else { continue };
            match (session.state, session.link) {
                (ServerState::Bound, _) => {
                    let at = now.max(self.last_rebind + REBIND_GAP).min(now + 2 * reconnect);
                    self.last_rebind = at;
                    session.reconnect = Some(at);
                    self.arm(conn);
                }
                (ServerState::Binding | ServerState::Rebinding, Link::Provider(at)) => {
                    session.tries = session.tries.saturating_sub(1); // the others are one less
                    self.lose(now, at, Some(Wish::Close(at)), Loss::Alone);
                }
                _ => {}
            }
        }
    }

    /// BOUND becomes REBINDING if the server has not come back. It answers what it was asked, while another
    /// takes what is new. Returns whether it is so. As long as there is no other, the session stays: that
    /// the node is no longer heard of does not end what still works, and who would be unbound for it has
    /// nowhere to bind to.
    fn leave_server(&mut self, now: Time, conn: Conn) -> bool {
        let reconnect = self.settings.reconnect;
        let Some(session) = self.legs.session_mut(conn) else { return false };
        // Who has half-closed asks for nothing new.
        if session.has_ended || session.server.is_none_or(|it| self.targets.is_known(it)) {
            return false;
        }
        if self.targets.len() == 0 {
            session.reconnect = Some(now + reconnect);
            self.arm(conn);
            return false;
        }
        session.state = ServerState::Rebinding;
        session.tries = 0;
        session.pulse.next = None;
        session.pulse.asked = None;
        self.counters.rebinds += 1;
        if let Link::Provider(at) = std::mem::replace(&mut session.link, Link::Nowhere) {
            self.retire(now, at);
        }
        self.wake(now, conn);
        true
    }

    /// REBINDING, or about to: the wait is over, the server after the lost one is tried, that one itself last;
    /// where there is an active one, that first. Who leaves a server that takes no binds takes its turn.
    pub(super) fn rebind(&mut self, now: Time, conn: Conn) {
        let Some(session) = self.legs.session_mut(conn) else { return };
        session.reconnect = None;
        let (state, server) = (session.state, session.server);
        if state != ServerState::Rebinding
            && !(state == ServerState::Bound && self.leave_server(now, conn))
        {
            return;
        }
        let by = self.settings.to_provider;
        let next = match server.filter(|it| self.targets.takes_binds(*it)) {
            Some(it) if by == SmppToProvider::RoundRobin => self.targets.after(it),
            _ => self.targets.choose(by),
        };
        self.try_server(now, conn, next);
    }

    /// BOUND: the ESME unbinds; its SMSC answers.
    pub(super) fn session_unbinds(&mut self, now: Time, conn: Conn, pdu: Pdu<'_>) {
        let deadline = now + self.settings.response;
        let Some(session) = self.legs.session_mut(conn) else { return };
        let Link::Provider(at) = session.link else { return };
        session.state = ServerState::Unbinding;
        session.leaves = true;
        session.outstanding += 1;
        session.pulse.next = None;
        session.pulse.asked = None;
        let Some(provider) = self.legs.provider_mut(at) else { return };
        provider.state = ClientState::Unbinding;
        provider.pulse.asked = None;
        let sequence = provider.pending.push(Entry {
            from: Some(conn),
            sequence: pdu.sequence(),
            command: Command::UNBIND,
            deadline,
            shared: None,
        });
        pdu.append_as(sequence, self.out.to(at));
        self.counters.requests_to_server += 1;
        self.counters.bytes_to_server += pdu.bytes().len() as u64;
        self.arm(at);
    }

    /// BOUND: the SMSC unbinds; its ESME answers, once neither owes the other an answer.
    pub(super) fn server_unbinds(&mut self, now: Time, at: Conn, conn: Conn, pdu: Pdu<'_>) {
        let deadline = now + self.patience();
        if let Some(provider) = self.legs.provider_mut(at) {
            provider.state = ClientState::Unbinding;
            provider.pulse.asked = None;
            provider.deadline = Some(deadline);
        }
        let Some(session) = self.legs.session_mut(conn) else { return };
        session.state = ServerState::Unbinding;
        session.unbind = Some(Unbind::Theirs(at, pdu.bytes().into()));
        session.deadline = Some(deadline);
        session.pulse.next = None;
        session.pulse.asked = None;
        self.wake(now, conn);
        self.freed(now, conn);
        self.arm(conn);
        self.arm(at);
    }

    /// BOUND, once per period: both sides are asked whether they live.
    pub(super) fn enquire(&mut self, now: Time, conn: Conn) {
        let enquire = self.settings.enquire;
        let Some(session) = self.legs.session_mut(conn) else { return };
        let pulse = &mut session.pulse;
        while let Some(next) = pulse.next.filter(|it| *it <= now) {
            pulse.next = Some(next + enquire);
        }
        if pulse.asked.is_none_or(|it| pulse.heard >= it) {
            pulse.asked = Some(now);
        }
        let link = session.link;
        self.ask(now, conn, Command::ENQUIRE_LINK);
        if let Link::Provider(at) = link
            && let Some(provider) = self.legs.provider_mut(at)
        {
            let pulse = &mut provider.pulse;
            if pulse.asked.is_none_or(|it| pulse.heard >= it) {
                pulse.asked = Some(now);
            }
            self.ask(now, at, Command::ENQUIRE_LINK);
        }
    }
}

/// Between two sessions that look for another server: 1 000 binds a second.
const REBIND_GAP: std::time::Duration = std::time::Duration::from_millis(1);
