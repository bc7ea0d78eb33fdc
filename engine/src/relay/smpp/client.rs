//! The client part: PDUs from SMSCs (`http-smpp-registry.md` 2.3, 2.6).

use protocols::smpp::body;
use protocols::smpp::pdu::Pdu;
use protocols::smpp::session::{Action, ClientState, Kind, ServerState};
use protocols::smpp::{Command, Status};
use protocols::time::Time;

use super::leg::{Leg, Owner, Session};
use super::life::Loss;
use super::outbox::Wish;
use super::pending::{Entry, Shared};
use super::{Smpp, Step};
use crate::config::SmppFull;
use crate::relay::stream::Conn;
use crate::stats::smpp::SmppDrop;

impl Smpp {
    /// The connection to a server is there: INITIAL becomes OPEN, and with the bind BINDING.
    pub(super) fn connected(&mut self, now: Time, conn: Conn) {
        let response = self.settings.response;
        let Some(provider) = self.legs.provider_mut(conn) else { return };
        if provider.state != ClientState::Initial {
            return;
        }
        provider.state = ClientState::Open;
        provider.deadline = Some(now + response);
        provider.pulse.heard = now;
        match provider.owner {
            Owner::Nobody => {}
            Owner::Session(session) => self.send_bind(now, conn, session),
            Owner::Space(space) => self.send_space_bind(now, conn, space),
        }
        self.arm(conn);
    }

    /// One PDU of an SMSC.
    pub(super) fn handle_smsc(&mut self, now: Time, conn: Conn, pdu: Pdu<'_>) -> Step {
        let Some(provider) = self.legs.provider(conn) else { return Step::Gone };
        let (command, sequence) = (pdu.command(), pdu.sequence());
        let kind = Kind::of(command, self.settings.vendor_commands);
        let action = provider.state.on(kind);
        if action == Action::Return {
            self.counters.received(command);
            return self.return_to_client(now, conn, pdu);
        }
        if action == Action::Forward {
            let step = self.forward_to_client(now, conn, pdu);
            if step != Step::Blocked {
                self.counters.received(command);
            }
            return step;
        }
        self.counters.received(command);
        match action {
            Action::Bound => return self.bind_answered(now, conn, kind, pdu),
            Action::Pass => self.pass_to_client(now, conn, pdu),
            Action::Unbind => match provider.owner {
                Owner::Session(session) => self.server_unbinds(now, conn, session, pdu),
                Owner::Space(space) => {
                    self.counters.requests_to_client += 1;
                    self.answer(conn, command, Status::OK, sequence);
                    self.provider_unbinds(now, space, conn);
                    return self.is_still_there(conn);
                }
                Owner::Nobody => {
                    self.answer(conn, command, Status::OK, sequence);
                    if let Some(provider) = self.legs.provider_mut(conn) {
                        provider.state = ClientState::Unbinding;
                    }
                    self.let_go_if_done(now, conn);
                    return self.is_still_there(conn);
                }
            },
            Action::Unbound => return self.smsc_unbound(now, conn, pdu),
            Action::Answer => self.answer(conn, command, Status::OK, sequence),
            Action::AnswerAndClose => {
                self.answer(conn, command, Status::OK, sequence);
                self.lose(now, conn, Some(Wish::Close(conn)), Loss::Alone);
                return Step::Gone;
            }
            Action::Refuse(status) => self.refuse(conn, pdu, status),
            Action::Nack => self.nack(conn, sequence),
            Action::Alive => self.alive(now, conn, pdu),
            Action::RefuseAndClose(_)
            | Action::Bind
            | Action::Forward
            | Action::Return
            | Action::Drop => self.counters.dropped(SmppDrop::State),
        }
        Step::Next
    }

    /// A response goes back to the session that asked, under its own number.
    fn return_to_client(&mut self, now: Time, conn: Conn, pdu: Pdu<'_>) -> Step {
        let window = self.settings.provider_window;
        let Some(provider) = self.legs.provider_mut(conn) else { return Step::Gone };
        let Some(entry) = provider.pending.take(pdu.sequence(), pdu.command()) else {
            self.counters.dropped(SmppDrop::Unexpected);
            return Step::Next;
        };
        if entry.command == Command::UNBIND {
            return self.smsc_has_unbound(now, conn, entry, pdu);
        }
        let (owner, server) = (provider.owner, provider.server);
        let Some(asker) = entry.from else {
            self.ours_is_settled(now, conn);
            return Step::Next;
        };
        let has_grown = provider.note(now, pdu.status(), body::congestion_state(pdu), window);
        if let Some(session) = self.legs.session_mut(asker) {
            session.outstanding = session.outstanding.saturating_sub(1);
            // The answer that it would get in CLOSED would follow its unbind_resp.
            if session.state != ServerState::Closed {
                pdu.append_as(entry.sequence, self.out.to(asker));
                self.counters.bytes_to_client += pdu.bytes().len() as u64;
                self.learn_submitter(now, server, asker, pdu);
            }
            self.freed(now, asker);
        } else {
            self.counters.dropped(SmppDrop::Unexpected);
        }
        match owner {
            Owner::Space(space) => {
                self.wake_space(now, space, Some(conn), 1 + usize::from(has_grown));
            }
            Owner::Session(_) => {}
            Owner::Nobody => {
                self.let_go_if_done(now, conn);
                return self.is_still_there(conn);
            }
        }
        Step::Next
    }

    pub(super) fn is_still_there(&self, conn: Conn) -> Step {
        if self.legs.get(conn).is_some() { Step::Next } else { Step::Gone }
    }

    /// Remembers whose message it is that just got its id.
    fn learn_submitter(
        &mut self,
        now: Time,
        server: std::net::SocketAddr,
        session: Conn,
        response: Pdu<'_>,
    ) {
        if let Some(limits) = self.settings.receipts
            && response.status() == Status::OK
            && let Some(id) = body::message_id(response)
        {
            self.receipts.learn(now, (server, id), session, limits.count_max);
        }
    }

    /// BOUND: a message crosses to an ESME.
    fn forward_to_client(&mut self, now: Time, conn: Conn, pdu: Pdu<'_>) -> Step {
        match self.owner_of(conn) {
            Owner::Session(session) => {
                let window = self.settings.session_window;
                match self.legs.session(session) {
                    Some(it) if !it.receives() => {
                        self.refuse(conn, pdu, Status::INVALID_BIND_STATUS);
                    }
                    Some(it) if it.has_ended => self.refuse(conn, pdu, Status::SYSTEM_ERROR),
                    Some(it) if it.has_room(window) => {
                        self.deliver(now, conn, session, pdu, None);
                    }
                    Some(_) => return self.hold_provider(now, conn, pdu),
                    None => self.refuse(conn, pdu, Status::SYSTEM_ERROR),
                }
                Step::Next
            }
            Owner::Space(space) => self.deliver_to_space(now, space, conn, pdu),
            Owner::Nobody => {
                self.refuse(conn, pdu, Status::SYSTEM_ERROR);
                Step::Next
            }
        }
    }

    /// One session gets the message.
    pub(super) fn deliver(
        &mut self,
        now: Time,
        provider: Conn,
        to: Conn,
        pdu: Pdu<'_>,
        shared: Option<Shared>,
    ) {
        let deadline = now + self.settings.response;
        let Some(session) = self.legs.session_mut(to) else { return };
        let sequence = session.pending.push(Entry {
            from: Some(provider),
            sequence: pdu.sequence(),
            command: pdu.command(),
            deadline,
            shared,
        });
        let is_first = session.pending.open() == 1;
        if let Some(provider) = self.legs.provider_mut(provider) {
            provider.asks += 1;
        }
        pdu.append_as(sequence, self.out.to(to));
        self.counters.requests_to_client += u64::from(shared.is_none());
        self.counters.bytes_to_client += pdu.bytes().len() as u64;
        if is_first {
            self.arm(to);
        }
    }

    /// The ESME, in mux mode each of them, has too many messages unanswered: the SMSC waits, or hears of it.
    pub(super) fn hold_provider(&mut self, now: Time, conn: Conn, pdu: Pdu<'_>) -> Step {
        if self.settings.full == SmppFull::Throttle {
            self.counters.dropped(SmppDrop::Throttled);
            self.refuse(conn, pdu, Status::THROTTLED);
            return Step::Next;
        }
        if let Some(provider) = self.legs.provider_mut(conn) {
            provider.is_waiting = true;
        }
        self.settle(now, conn);
        let is_mutual = match self.owner_of(conn) {
            Owner::Session(it) => self.is_waiting(it),
            Owner::Space(it) => self.spaces.get(it).is_some_and(|it| !it.queue.is_empty()),
            Owner::Nobody => false,
        };
        if is_mutual && let Some(provider) = self.legs.provider_mut(conn) {
            provider.held = Time::ZERO;
            self.arm(conn);
        }
        Step::Blocked
    }

    /// alert_notification: nobody answers it.
    fn pass_to_client(&mut self, now: Time, conn: Conn, pdu: Pdu<'_>) {
        let to = match self.owner_of(conn) {
            Owner::Session(session) => {
                Some(session).filter(|it| self.legs.session(*it).is_some_and(Session::receives))
            }
            Owner::Space(space) => self.customer_for(now, space, conn, pdu).ok(),
            Owner::Nobody => None,
        };
        let session = to.and_then(|it| Some((it, self.legs.session_mut(it)?)));
        // Whoever waits long for one answer may get many alerts meanwhile.
        let Some((to, session)) = session.filter(|it| !it.1.pending.is_stretched()) else {
            self.counters.dropped(SmppDrop::NoClient);
            return;
        };
        let sequence = session.pending.pass();
        pdu.append_as(sequence, self.out.to(to));
        self.counters.requests_to_client += 1;
        self.counters.bytes_to_client += pdu.bytes().len() as u64;
    }

    /// BINDING or REBINDING: the answer to our bind, whatever it says.
    fn bind_answered(&mut self, now: Time, conn: Conn, kind: Kind, pdu: Pdu<'_>) -> Step {
        let Some(provider) = self.legs.provider_mut(conn) else { return Step::Gone };
        let Some(entry) = provider.pending.take(pdu.sequence(), pdu.command()) else {
            self.counters.dropped(SmppDrop::Unexpected);
            return Step::Next;
        };
        if !super::is_bind(entry.command) {
            return Step::Next;
        }
        let is_bound = kind == Kind::BindResp && pdu.status() == Status::OK;
        if is_bound {
            provider.state = ClientState::Bound;
            provider.deadline = None;
            provider.was_bound = true;
            self.targets.bound(provider.server);
        }
        match provider.owner {
            Owner::Session(session) if is_bound => self.server_bound(now, session, pdu),
            Owner::Session(session) => self.server_refused(now, conn, session, pdu),
            Owner::Space(space) if is_bound => self.provider_bound(now, space, conn),
            Owner::Space(space) => self.provider_refused(now, space, conn, pdu.status()),
            Owner::Nobody => self.close_provider(now, conn),
        }
        self.arm(conn);
        self.is_still_there(conn)
    }

    /// The response to an unbind that we sent or forwarded.
    fn smsc_unbound(&mut self, now: Time, conn: Conn, pdu: Pdu<'_>) -> Step {
        let Some(Leg::Provider(provider)) = self.legs.get_mut(conn) else { return Step::Gone };
        match provider.pending.take(pdu.sequence(), pdu.command()) {
            Some(entry) => self.smsc_has_unbound(now, conn, entry, pdu),
            None => {
                self.counters.dropped(SmppDrop::Unexpected);
                Step::Next
            }
        }
    }

    fn smsc_has_unbound(&mut self, now: Time, conn: Conn, entry: Entry, pdu: Pdu<'_>) -> Step {
        self.close_provider(now, conn);
        if let Some(asker) = entry.from
            && let Some(session) = self.legs.session_mut(asker)
        {
            session.outstanding = session.outstanding.saturating_sub(1);
            pdu.append_as(entry.sequence, self.out.to(asker));
            self.counters.bytes_to_client += pdu.bytes().len() as u64;
            self.linger(now, asker);
        }
        Step::Gone
    }
}
