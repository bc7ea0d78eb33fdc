//! What happens when time has come (`http-smpp-registry.md` 2.5, 2.6).

use std::time::Duration;

use protocols::smpp::session::{ClientState, ServerState};
use protocols::smpp::{Command, Status};
use protocols::time::Time;

use super::Smpp;
use super::leg::{Leg, Owner};
use super::life::{End, Loss};
use super::outbox::Wish;
use super::pending::Entry;
use super::timers::Who;
use crate::relay::stream::Conn;
use crate::stats::smpp::SmppDrop;

impl Smpp {
    /// Looks at everyone whose time has come.
    pub(super) fn tick(&mut self, now: Time) {
        if self.stop.is_some_and(|it| it <= now) {
            self.close_all(now);
        }
        if self.timers.earliest().is_some_and(|it| now.since(it) > LATE_MAX) {
            self.forgive_silence(now);
        }
        while let Some((at, who)) = self.timers.due(now) {
            match who {
                Who::Leg(conn) => match self.legs.get_mut(conn) {
                    Some(Leg::Session(it)) if it.armed == Some(at) => {
                        it.armed = None;
                        self.session_due(now, conn);
                        self.arm(conn);
                    }
                    Some(Leg::Provider(it)) if it.armed == Some(at) => {
                        it.armed = None;
                        self.provider_due(now, conn);
                        self.arm(conn);
                    }
                    _ => {} // gone, or filed anew for an earlier time
                },
                Who::Space(space) => {
                    if let Some(it) = self.spaces.get_mut(space)
                        && it.armed == Some(at)
                    {
                        it.armed = None;
                        self.space_due(now, space);
                    }
                }
            }
        }
    }

    /// We come late: we stood still, and so did maybe all of the machine. Nobody was silent who was not listened
    /// to, and whoever was asked gets the whole time.
    fn forgive_silence(&mut self, now: Time) {
        let is_mux = self.settings.mux;
        for conn in self.conns(|_| true) {
            let pulse = match self.legs.get_mut(conn) {
                Some(Leg::Session(it)) => &mut it.pulse,
                Some(Leg::Provider(it)) => &mut it.pulse,
                None => continue,
            };
            if is_mux {
                pulse.heard = now;
            }
            pulse.asked = pulse.asked.map(|_| now);
        }
    }

    /// A stop has waited long enough.
    fn close_all(&mut self, now: Time) {
        // Who waits for them hears so.
        for conn in self.conns(|it| matches!(it, Leg::Provider(_))) {
            self.close_provider(now, conn);
        }
        for conn in self.conns(|_| true) {
            self.end_session(now, conn, End::Close);
        }
    }

    fn session_due(&mut self, now: Time, conn: Conn) {
        let response = self.settings.response;
        while let Some(session) = self.legs.session_mut(conn) {
            if session.gives_up(response).is_none_or(|it| it > now) {
                break;
            }
            let Some(entry) = session.pending.expire(now) else { break };
            self.esme_did_not_answer(now, conn, entry);
        }
        let is_due = |at: Option<Time>| at.is_some_and(|it| it <= now);
        let Some(session) = self.legs.session_mut(conn) else { return };
        if is_due(session.deadline) {
            session.deadline = None;
            match session.state {
                ServerState::Open => {
                    self.counters.not_bound += 1;
                    self.end_session(now, conn, End::Close);
                }
                ServerState::Binding => self.bind_timed_out(now, conn),
                ServerState::Bound | ServerState::Rebinding => {}
                ServerState::Unbinding if session.is_leaving() => self.customer_unbound(now, conn),
                ServerState::Unbinding if session.unbind.is_some() => self.freed(now, conn),
                ServerState::Unbinding | ServerState::Closed => {
                    self.end_session(now, conn, End::Close);
                }
            }
        }
        let Some(session) = self.legs.session_mut(conn) else { return };
        if is_due(session.reconnect) {
            self.rebind(now, conn);
        }
        let Some(session) = self.legs.session_mut(conn) else { return };
        if is_due(session.pulse.asked.map(|it| it + self.settings.check_client_side)) {
            let is_exempt = session.is_deaf();
            let pulse = &mut session.pulse;
            if is_exempt {
                pulse.asked = Some(now); // we do not listen
            } else if pulse.asked.is_some_and(|it| pulse.heard >= it) {
                pulse.asked = None;
            } else {
                self.counters.dropped(SmppDrop::Silent);
                // Best effort: who does not answer does not read either.
                self.ask(now, conn, Command::UNBIND);
                return self.end_session(now, conn, End::Close);
            }
        }
        let Some(session) = self.legs.session_mut(conn) else { return };
        if is_due(session.pulse.next) {
            if self.settings.mux {
                self.check(now, conn);
            } else {
                self.enquire(now, conn);
            }
        }
    }

    fn provider_due(&mut self, now: Time, conn: Conn) {
        let response = self.settings.response;
        while let Some(provider) = self.legs.provider_mut(conn) {
            if provider.gives_up(response).is_none_or(|it| it > now) {
                break;
            }
            let Some(entry) = provider.pending.expire(now) else { break };
            self.smsc_did_not_answer(now, conn, entry);
        }
        let is_due = |at: Option<Time>| at.is_some_and(|it| it <= now);
        let Some(provider) = self.legs.provider_mut(conn) else { return };
        if is_due(provider.deadline) {
            provider.deadline = None;
            let (state, owner) = (provider.state, provider.owner);
            if let (ClientState::Binding, Owner::Session(owner)) = (state, owner)
                && let Some(session) = self.legs.session_mut(owner)
                && !std::mem::replace(&mut session.is_unanswered, true)
            {
                self.counters.unanswered += 1; // the ESME's bind
            }
            match state {
                // Retired, or it has unbound its session, and waited for long enough.
                ClientState::Bound => {
                    self.turn_back_all(now, conn);
                    self.let_go(now, conn);
                }
                ClientState::Unbinding if matches!(owner, Owner::Session(_)) => {
                    self.turn_back_all(now, conn);
                }
                ClientState::Unbinding => self.close_provider(now, conn),
                _ => self.lose(now, conn, Some(Wish::Abort(conn)), Loss::Useless),
            }
        }
        let Some(provider) = self.legs.provider_mut(conn) else { return };
        if is_due(provider.pulse.asked.map(|it| it + self.settings.check_server_side)) {
            let is_exempt = provider.is_paused && !provider.is_full;
            let pulse = &mut provider.pulse;
            if is_exempt {
                pulse.asked = Some(now); // we do not listen
            } else if pulse.asked.is_some_and(|it| pulse.heard >= it) {
                pulse.asked = None;
            } else {
                self.counters.dropped(SmppDrop::Silent);
                return self.lose(now, conn, Some(Wish::Abort(conn)), Loss::Alone);
            }
        }
        let Some(provider) = self.legs.provider_mut(conn) else { return };
        if is_due(provider.pulse.next) {
            self.check(now, conn);
        }
    }

    /// A request to an ESME has waited long enough: its SMSC gets our answer.
    fn esme_did_not_answer(&mut self, now: Time, conn: Conn, entry: Entry) {
        if entry.command == Command::ENQUIRE_LINK {
            return self.ours_is_settled(now, conn);
        }
        self.counters.unanswered += 1;
        let Some(provider) = entry.from else {
            return self.end_session(now, conn, End::Close); // our unbind
        };
        if entry.command == Command::UNBIND {
            if self.legs.provider(provider).is_some() {
                self.answer(provider, entry.command, Status::SYSTEM_ERROR, entry.sequence);
                self.close_provider(now, provider);
            }
            return self.end_session(now, conn, End::Close);
        }
        self.give_up_towards_server(now, entry, Status::SYSTEM_ERROR);
        let Some(session) = self.legs.session(conn) else { return };
        let has_unbind = session.unbind.is_some();
        self.freed_towards(now, session.link);
        if has_unbind {
            self.freed(now, conn);
        }
    }

    /// A request to an SMSC has waited long enough: the session that asked gets our answer, and the late
    /// one, should it come, goes nowhere.
    fn smsc_did_not_answer(&mut self, now: Time, conn: Conn, entry: Entry) {
        if super::is_bind(entry.command) {
            return;
        }
        if entry.command == Command::ENQUIRE_LINK {
            return self.ours_is_settled(now, conn);
        }
        let Some(asker) = entry.from else {
            self.close_provider(now, conn); // our unbind
            return;
        };
        self.counters.unanswered += 1;
        if let Some(provider) = self.legs.provider_mut(conn) {
            provider.old_news = provider.old_news.saturating_sub(1);
        }
        if let Some(session) = self.legs.session_mut(asker) {
            session.outstanding = session.outstanding.saturating_sub(1);
            if entry.command == Command::UNBIND {
                self.close_provider(now, conn);
                self.answer(asker, entry.command, Status::SYSTEM_ERROR, entry.sequence);
                return self.linger(now, asker);
            }
            if session.state != ServerState::Closed {
                self.answer(asker, entry.command, Status::SYSTEM_ERROR, entry.sequence);
            }
            self.freed(now, asker);
        }
        match self.owner_of(conn) {
            Owner::Space(space) => self.wake_space(now, space, Some(conn), 1),
            Owner::Nobody => self.let_go_if_done(now, conn),
            Owner::Session(_) => {}
        }
    }
}

/// What a busy shard's turn may take. Who comes later than that has not listened meanwhile.
const LATE_MAX: Duration = Duration::from_millis(250);
