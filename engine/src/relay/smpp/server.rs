//! The server part: PDUs from ESMEs (`http-smpp-registry.md` 2.2, 2.6).

use protocols::smpp::body::Bind;
use protocols::smpp::pdu::{self, Pdu};
use protocols::smpp::session::{Action, Kind, ServerState};
use protocols::smpp::{Command, Status};
use protocols::time::Time;

use super::leg::{Leg, Link, Owner, Secret};
use super::life::End;
use super::pending::{Entry, Pending};
use super::{Smpp, Step};
use crate::config::SmppFull;
use crate::relay::stream::{Conn, Handover};
use crate::stats::smpp::SmppDrop;

impl Smpp {
    /// One PDU of an ESME.
    pub(super) fn handle_esme(&mut self, now: Time, conn: Conn, pdu: Pdu<'_>) -> Step {
        let Some(session) = self.legs.session(conn) else { return Step::Gone };
        let (command, sequence) = (pdu.command(), pdu.sequence());
        let kind = Kind::of(command, self.settings.vendor_commands);
        let action = session.state.on(kind);
        if action == Action::Forward && session.submits() {
            let step = self.forward_to_server(now, conn, pdu);
            if step != Step::Blocked {
                self.counters.received(command);
            }
            return step;
        }
        if action == Action::Bind {
            return self.bind(now, conn, pdu);
        }
        let has_unbind = session.unbind.is_some();
        self.counters.received(command);
        match action {
            Action::Forward => self.refuse(conn, pdu, Status::INVALID_BIND_STATUS),
            Action::Refuse(status) => self.refuse(conn, pdu, status),
            Action::RefuseAndClose(status) => {
                self.refuse(conn, pdu, status);
                self.end_session(now, conn, End::Close);
                return Step::Gone;
            }
            Action::Return => return self.return_to_server(now, conn, pdu),
            Action::Unbound => return self.esme_unbound(now, conn, pdu),
            Action::Unbind if self.settings.mux => self.customer_unbinds(now, conn, sequence),
            Action::Unbind => self.session_unbinds(now, conn, pdu),
            // It is first with an unbind of its own.
            Action::Answer if has_unbind && command == Command::UNBIND => {
                self.customer_unbinds(now, conn, sequence);
            }
            Action::Answer => self.answer(conn, command, Status::OK, sequence),
            Action::AnswerAndClose => {
                self.answer(conn, command, Status::OK, sequence);
                self.linger(now, conn);
            }
            Action::Nack => self.nack(conn, sequence),
            Action::Alive => self.alive(now, conn, pdu),
            Action::Bind | Action::Bound | Action::Pass | Action::Drop => {
                self.counters.dropped(SmppDrop::State);
            }
        }
        Step::Next
    }

    /// Answers a request with an error.
    pub(super) fn refuse(&mut self, conn: Conn, pdu: Pdu<'_>, status: Status) {
        self.answer(conn, pdu.command(), status, pdu.sequence());
    }

    /// An unknown request (SMPP 3.4 §4.3).
    pub(super) fn nack(&mut self, conn: Conn, sequence: u32) {
        self.answer(conn, Command::GENERIC_NACK, Status::INVALID_COMMAND_ID, sequence);
    }

    /// A life sign that may answer a request of ours; it says no more than that somebody lives.
    pub(super) fn alive(&mut self, now: Time, conn: Conn, pdu: Pdu<'_>) {
        let pending = match self.legs.get_mut(conn) {
            Some(Leg::Session(it)) => &mut it.pending,
            Some(Leg::Provider(it)) => &mut it.pending,
            None => return,
        };
        if pending.take(pdu.sequence(), pdu.command()).is_some() {
            self.ours_is_settled(now, conn);
        }
    }

    /// A request of our own has been answered or given up. It took no room in a window, but all later ones
    /// may have had to wait for it ([`Pending::is_stretched`]).
    pub(super) fn ours_is_settled(&mut self, now: Time, conn: Conn) {
        match self.legs.get(conn) {
            Some(Leg::Session(it)) if it.has_room(self.settings.session_window) => {
                self.freed_towards(now, it.link);
            }
            Some(Leg::Provider(it)) if it.has_room(self.settings.provider_window) => {
                match it.owner {
                    Owner::Session(session) if self.is_waiting(session) => self.wake(now, session),
                    Owner::Space(space) => self.wake_space(now, space, Some(conn), usize::MAX),
                    Owner::Session(_) | Owner::Nobody => {}
                }
            }
            _ => {}
        }
    }

    /// OPEN: the ESME binds.
    fn bind(&mut self, now: Time, conn: Conn, pdu: Pdu<'_>) -> Step {
        let bind = Bind::read(pdu.body()).filter(|_| pdu.bytes().len() <= BIND_BYTES_MAX);
        let Some(bind) = bind else {
            self.counters.received(pdu.command());
            self.counters.dropped(SmppDrop::BadBind);
            self.refuse(conn, pdu, Status::INVALID_COMMAND_LENGTH);
            self.end_session(now, conn, End::Close);
            return Step::Gone;
        };
        if self.settings.mux {
            let shard = super::owner(bind.system_id, self.settings.shards);
            if shard != self.settings.shard {
                self.legs.remove(conn);
                self.sessions -= 1;
                self.handover = Some(Handover { conn, shard });
                return Step::Gone;
            }
        }
        self.counters.received(pdu.command());
        self.counters.requests_to_server += 1;
        let Some(session) = self.legs.session_mut(conn) else { return Step::Gone };
        session.state = ServerState::Binding;
        session.command = pdu.command();
        session.sequence = pdu.sequence();
        session.bind = Secret(pdu.bytes().into());
        session.deadline = None;
        if self.settings.mux {
            session.deadline = Some(now + self.settings.response);
            self.bind_customer(now, conn, &bind);
        } else {
            self.bind_session(now, conn);
        }
        self.arm(conn);
        if self.legs.session(conn).is_some() { Step::Next } else { Step::Gone }
    }

    /// BOUND: a request crosses, if there is room for it.
    fn forward_to_server(&mut self, now: Time, conn: Conn, pdu: Pdu<'_>) -> Step {
        let Some(session) = self.legs.session(conn) else { return Step::Gone };
        let window = self.settings.provider_window;
        let provider = match session.link {
            _ if session.outstanding >= self.settings.session_window => None,
            Link::Provider(it) => {
                self.legs.provider(it).filter(|it| it.has_room(window)).map(|_| it)
            }
            Link::Space(it) => self.provider_for(now, it, conn, pdu),
            Link::Nowhere => None,
        };
        let Some((at, provider)) =
            provider.and_then(|it| self.legs.provider_mut(it).map(|provider| (it, provider)))
        else {
            return self.hold(now, conn, pdu);
        };
        let sequence = provider.pending.push(Entry {
            from: Some(conn),
            sequence: pdu.sequence(),
            command: pdu.command(),
            deadline: now + self.settings.response,
            shared: None,
        });
        let is_first = provider.pending.open() == 1;
        pdu.append_as(sequence, self.out.to(at));
        self.counters.requests_to_server += 1;
        self.counters.bytes_to_server += pdu.bytes().len() as u64;
        if let Some(session) = self.legs.session_mut(conn) {
            session.outstanding += 1;
        }
        if is_first {
            self.arm(at);
        }
        Step::Next
    }

    /// There is no room for a request: the ESME waits, or hears of it.
    fn hold(&mut self, now: Time, conn: Conn, pdu: Pdu<'_>) -> Step {
        if self.settings.full == SmppFull::Throttle {
            self.counters.dropped(SmppDrop::Throttled);
            self.refuse(conn, pdu, Status::THROTTLED);
            return Step::Next;
        }
        let Some(session) = self.legs.session_mut(conn) else { return Step::Gone };
        session.is_waiting = true;
        let link = session.link;
        if let Link::Space(at) = link
            && session.outstanding < self.settings.session_window
        {
            let waits_for = self.only_provider(now, at, conn, pdu);
            if let Some(session) = self.legs.session_mut(conn)
                && let Some(space) = self.spaces.get_mut(at)
            {
                session.waits_for = waits_for;
                if !std::mem::replace(&mut session.is_queued, true) {
                    space.queue.join(conn, waits_for);
                }
            }
        }
        self.settle(now, conn);
        let is_mutual = match link {
            Link::Provider(it) => self.is_waiting(it),
            Link::Space(it) => self.spaces.get(it).is_some_and(|it| it.holds_provider),
            Link::Nowhere => false,
        };
        if is_mutual && let Some(session) = self.legs.session_mut(conn) {
            session.held = Time::ZERO;
            self.arm(conn);
        }
        Step::Blocked
    }

    /// A response of the ESME goes back to the provider that asked, under its own number.
    fn return_to_server(&mut self, now: Time, conn: Conn, pdu: Pdu<'_>) -> Step {
        let Some(session) = self.legs.session_mut(conn) else { return Step::Gone };
        let Some(entry) = session.pending.take(pdu.sequence(), pdu.command()) else {
            self.counters.dropped(SmppDrop::Unexpected);
            return Step::Next;
        };
        if entry.command == Command::UNBIND {
            return self.esme_has_unbound(now, conn, entry, pdu);
        }
        let (link, has_unbind) = (session.link, session.unbind.is_some());
        let Some(provider) = entry.from else {
            self.ours_is_settled(now, conn);
            return Step::Next;
        };
        let is_late = // another was first
            entry.shared.is_some_and(|it| self.shared.remove(&it).is_none());
        if let Some(it) = self.legs.provider_mut(provider) {
            it.asks = it.asks.saturating_sub(1);
            let is_retired = it.owner == Owner::Nobody;
            if !is_late {
                pdu.append_as(entry.sequence, self.out.to(provider));
                self.counters.bytes_to_server += pdu.bytes().len() as u64;
            }
            if is_retired {
                self.let_go_if_done(now, provider);
            }
        }
        self.freed_towards(now, link);
        if has_unbind {
            self.freed(now, conn);
            return self.is_still_there(conn);
        }
        Step::Next
    }

    /// One request less is under way to a session: the provider behind it may go on.
    pub(super) fn freed_towards(&mut self, now: Time, link: Link) {
        match link {
            Link::Provider(provider) if self.is_waiting(provider) => self.wake(now, provider),
            Link::Space(space) => self.wake_providers(now, space),
            Link::Provider(_) | Link::Nowhere => {}
        }
    }

    /// The response to an unbind that we sent or forwarded.
    fn esme_unbound(&mut self, now: Time, conn: Conn, pdu: Pdu<'_>) -> Step {
        let Some(session) = self.legs.session_mut(conn) else { return Step::Gone };
        match session.pending.take(pdu.sequence(), pdu.command()) {
            Some(entry) => self.esme_has_unbound(now, conn, entry, pdu),
            None => {
                self.counters.dropped(SmppDrop::Unexpected);
                Step::Next
            }
        }
    }

    fn esme_has_unbound(&mut self, now: Time, conn: Conn, entry: Entry, pdu: Pdu<'_>) -> Step {
        if let Some(provider) = entry.from
            && self.legs.provider(provider).is_some()
        {
            pdu.append_as(entry.sequence, self.out.to(provider));
            self.counters.bytes_to_server += pdu.bytes().len() as u64;
            self.close_provider(now, provider);
        }
        self.end_session(now, conn, End::Close);
        Step::Gone
    }

    /// The ESME has its unbind_resp: it may close first, but not wait for ever. What is behind the session
    /// is let go.
    pub(super) fn linger(&mut self, now: Time, conn: Conn) {
        let Some(session) = self.legs.session_mut(conn) else { return };
        session.state = ServerState::Closed;
        session.deadline = Some(now + self.settings.connection);
        session.reconnect = None;
        session.pulse.next = None;
        session.pulse.asked = None;
        let has_ended = session.has_ended;
        let unbind = session.unbind.take();
        // CLOSED takes no more answers.
        for entry in std::mem::replace(&mut session.pending, Pending::starting_at(1)).into_entries()
        {
            self.give_up_towards_server(now, entry, Status::SYSTEM_ERROR);
        }
        unbind.iter().for_each(|it| self.answer_unbind(it));
        let Some(session) = self.legs.session_mut(conn) else { return };
        match std::mem::replace(&mut session.link, Link::Nowhere) {
            Link::Provider(provider) => self.retire(now, provider),
            Link::Space(space) => self.leave(now, space, conn),
            Link::Nowhere => {}
        }
        if has_ended {
            return self.end_session(now, conn, End::Close);
        }
        self.arm(conn);
    }

    /// The bind's answer is no: the ESME hears it and is disconnected.
    pub(super) fn refuse_bind(&mut self, now: Time, conn: Conn, status: Status) {
        let Some(session) = self.legs.session(conn) else { return };
        let (command, sequence) = (session.command, session.sequence);
        self.answer(conn, command, status, sequence);
        self.end_session(now, conn, End::Close);
    }

    /// The same with a body: no server can be reached (`http-smpp-registry.md` 2.5, 4).
    pub(super) fn refuse_bind_for_want_of_servers(&mut self, now: Time, conn: Conn) {
        let Some(session) = self.legs.session(conn) else { return };
        let body = session.bind.0.get(pdu::HEADER_BYTES..).unwrap_or_default();
        let bind = Bind::read(body);
        let (system_id, version) =
            bind.map_or((&[][..], 0), |it| (it.system_id, it.interface_version));
        let (command, sequence) = (session.command, session.sequence);
        let status = Status::SYSTEM_ERROR;
        let out = self.out.to(conn);
        pdu::write_bind_response(command, status, sequence, system_id, version, out);
        self.end_session(now, conn, End::Close);
    }

    /// Whom a provider's regular traffic belongs to.
    pub(super) fn owner_of(&self, provider: Conn) -> Owner {
        self.legs.provider(provider).map_or(Owner::Nobody, |it| it.owner)
    }
}

/// A bind with every field at its longest has 98 bytes and a few TLVs; we keep it for rebinding.
const BIND_BYTES_MAX: usize = 1024;
