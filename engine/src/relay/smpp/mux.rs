//! Mux mode: all sessions of a system_id share one connection to each server
//! (`http-smpp-registry.md` 2.6); with `smppReencrypt` those that came by TLS share one and those that did not
//! another, so that nobody's messages leave in clear for somebody else's sake. The balancer binds to servers as a transceiver with the first session's
//! credentials, and lets in whoever has the same password.

use protocols::smpp::body::Bind;
use protocols::smpp::pdu::{self, HEADER_BYTES};
use protocols::smpp::session::{ClientState, ServerState};
use protocols::smpp::{Command, Status};
use protocols::time::Time;

use super::leg::{EXTENSIONS_MAX, Link, Owner, Secret};
use super::life::{End, Loss};
use super::outbox::Wish;
use super::pending::Entry;
use super::space::{Queue, Slot, Space, Standing, password};
use super::timers::Who;
use super::{SecureServers, Smpp};
use crate::relay::stream::Conn;
use crate::stats::smpp::SmppDrop;

impl Smpp {
    /// BINDING: joins the user space of its system_id, or founds it.
    pub(super) fn bind_customer(&mut self, now: Time, conn: Conn, bind: &Bind<'_>) {
        let is_like_client = self.settings.secure == SecureServers::LikeClient;
        let Some(session) = self.legs.session_mut(conn) else { return };
        let is_secure = is_like_client && session.is_secure;
        let name = (bind.system_id.into(), is_secure);
        if let Some(at) = self.spaces_by_name.get(&name).copied()
            && let Some(space) = self.spaces.get_mut(at)
        {
            space.customers.push(conn);
            let is_up = space.is_up;
            session.link = Link::Space(at);
            if is_up {
                self.let_in(now, at, conn);
            } else {
                self.judge_password(now, at);
            }
            return;
        }
        if self.targets.len() == 0 {
            return self.refuse_bind_for_want_of_servers(now, conn);
        }
        let space = Space {
            system_id: Secret(bind.system_id.into()),
            bind: Secret(session.bind.0.clone()),
            is_secure,
            customers: vec![conn],
            receivers: Vec::new(),
            slots: self.targets.iter().map(Slot::new).collect(),
            bound: Vec::new(),
            is_up: false,
            refusal: None,
            turn: 0,
            receiver_turn: 0,
            holds_provider: false,
            queue: Queue::default(),
            armed: None,
        };
        let at = self.spaces.insert(space);
        session.link = Link::Space(at);
        self.spaces_by_name.insert(name, at);
        self.connect_slots(now, at);
    }

    /// Connects to every server of a space that is wanted and has no connection and no wait.
    fn connect_slots(&mut self, now: Time, at: Conn) {
        let Some(space) = self.spaces.get(at) else { return };
        let is_secure = space.is_secure;
        let is_due =
            |it: &&Slot| it.conn.is_none() && it.retry.is_none() && it.standing == Standing::Wanted;
        let servers: Vec<_> = space.slots.iter().filter(is_due).map(|it| it.server).collect();
        for server in servers {
            let conn = self.connect(now, Owner::Space(at), server, is_secure);
            if let Some(space) = self.spaces.get_mut(at)
                && let Some(slot) = space.slots.iter_mut().find(|it| it.server == server)
            {
                slot.conn = Some(conn);
            }
        }
        self.arm_space(at);
    }

    fn arm_space(&mut self, at: Conn) {
        if let Some(space) = self.spaces.get_mut(at) {
            let due = space.next_due();
            self.timers.arm(Who::Space(at), &mut space.armed, due);
        }
    }

    /// The wait of some servers is over.
    pub(super) fn space_due(&mut self, now: Time, at: Conn) {
        let Some(space) = self.spaces.get_mut(at) else { return };
        for slot in &mut space.slots {
            if slot.retry.is_some_and(|it| it <= now) {
                slot.retry = None;
                if slot.standing == Standing::Left {
                    slot.standing = Standing::Wanted;
                }
            }
        }
        self.connect_slots(now, at);
    }

    /// OPEN: binds with the first session's credentials.
    pub(super) fn send_space_bind(&mut self, now: Time, conn: Conn, at: Conn) {
        let deadline = now + self.settings.response;
        let Some(space) = self.spaces.get(at) else { return };
        let body = space.bind.0.get(HEADER_BYTES..).unwrap_or_default();
        let (Some(first), Some(provider)) = (Bind::read(body), self.legs.provider_mut(conn)) else {
            return;
        };
        provider.state = if space.is_up { ClientState::Rebinding } else { ClientState::Binding };
        let command = Command::BIND_TRANSCEIVER;
        let entry = Entry { from: None, sequence: 0, command, deadline, shared: None };
        let sequence = provider.pending.push(entry);
        let bind = Bind {
            interface_version: protocols::smpp::body::VERSION_3_4,
            address_ton: 0,
            address_npi: 0,
            address_range: b"",
            ..first
        };
        pdu::write_bind(command, sequence, &bind, self.out.to(conn));
    }

    /// A session whose bind is under way hears that it is in, if its password is the space's.
    fn let_in(&mut self, now: Time, at: Conn, conn: Conn) {
        let check = self.settings.check_server_side;
        let Some(space) = self.spaces.get_mut(at) else { return };
        let Some(session) = self.legs.session_mut(conn) else { return };
        if session.state != ServerState::Binding {
            return;
        }
        if password(&space.bind) != password(&session.bind) {
            return self.refuse_bind(now, conn, Status::INVALID_PASSWORD);
        }
        let bind = Bind::read(session.bind.0.get(HEADER_BYTES..).unwrap_or_default());
        let version = bind.map_or(0, |it| it.interface_version);
        session.state = match space.bound.is_empty() {
            true => ServerState::Rebinding,
            false => ServerState::Bound,
        };
        session.deadline = None;
        session.pulse.next = Some(now + check);
        if session.receives() {
            space.receivers.push(conn);
        }
        let (command, sequence) = (session.command, session.sequence);
        let out = self.out.to(conn);
        pdu::write_bind_response(command, Status::OK, sequence, SYSTEM_ID, version, out);
        self.wake_providers(now, at);
        self.arm(conn);
    }

    /// bind_resp with status 0: the server takes part. The first one lets every waiting session in.
    pub(super) fn provider_bound(&mut self, now: Time, at: Conn, conn: Conn) {
        let check = self.settings.check_client_side;
        if let Some(provider) = self.legs.provider_mut(conn) {
            provider.pulse.next = Some(now + check);
        }
        let Some(space) = self.spaces.get_mut(at) else { return };
        let bound = |it: &Slot| it.conn.filter(|at| *at == conn || space.bound.contains(at));
        space.bound = space.slots.iter().filter_map(bound).collect();
        space.is_up = true;
        if let Some(slot) = space.slot_of(conn) {
            slot.standing = Standing::Wanted;
        }
        for customer in space.customers.clone() {
            let Some(session) = self.legs.session_mut(customer) else { continue };
            match session.state {
                ServerState::Binding => self.let_in(now, at, customer),
                ServerState::Rebinding => session.state = ServerState::Bound,
                _ => {}
            }
        }
        self.wake_space(now, at, None, usize::MAX);
    }

    /// An error to our bind. Wrong credentials are final, unless another server has called them right: an
    /// SMSC that starts may know its accounts late, and is asked now and then. Anything else is tried again,
    /// after a loss as at first: a server that starts refuses binds for a while, and sessions are turned back
    /// meanwhile, where the original unbound them.
    pub(super) fn provider_refused(&mut self, now: Time, at: Conn, conn: Conn, status: Status) {
        let reconnect = self.settings.reconnect;
        self.close_provider(now, conn);
        let Some(space) = self.spaces.get_mut(at) else { return };
        let is_up = space.is_up;
        let Some(slot) = space.slot_of(conn) else { return };
        slot.conn = None;
        let is_final = matches!(status, Status::INVALID_PASSWORD | Status::INVALID_SYSTEM_ID);
        if is_final && is_up {
            slot.standing = Standing::Left;
            slot.retry = Some(now + reconnect.max(REFUSED_TIME));
        } else if is_final {
            slot.standing = Standing::Refused;
            space.refusal = Some(status);
        } else {
            slot.retry = Some(now + reconnect);
        }
        if space.is_up && !space.has_hope() && space.bound.is_empty() {
            return self.unbind_customers(now, at);
        }
        self.arm_space(at);
        self.judge_password(now, at);
    }

    /// A space that is not up and whose password a server has called wrong: those who gave it hear so as soon
    /// as no server is left that is being asked, and at once if somebody with another password waits, who
    /// must not be kept out by theirs.
    fn judge_password(&mut self, now: Time, at: Conn) {
        let Some(space) = self.spaces.get(at).filter(|it| !it.is_up) else { return };
        let Some(status) = space.refusal else { return };
        let (wrong, others): (Vec<Conn>, Vec<Conn>) =
            space.customers.iter().partition(|it| self.gave_password_of(space, **it));
        if others.is_empty() && space.slots.iter().any(|it| it.conn.is_some()) {
            return;
        }
        if let Some(next) = others.first() {
            self.try_password_of(now, at, *next);
        }
        for conn in wrong {
            self.refuse_bind(now, conn, status);
        }
    }

    fn gave_password_of(&self, space: &Space, conn: Conn) -> bool {
        let session = self.legs.session(conn);
        session.is_some_and(|it| password(&it.bind) == password(&space.bind))
    }

    /// A space that is not up asks every server about the password of a session that waits. The time that
    /// others have taken is not counted against it.
    fn try_password_of(&mut self, now: Time, at: Conn, conn: Conn) {
        let response = self.settings.response;
        let slots = self.targets.iter().map(Slot::new).collect();
        let Some(space) = self.spaces.get_mut(at) else { return };
        let Some(session) = self.legs.session_mut(conn) else { return };
        session.deadline = Some(now + response);
        space.bind = Secret(session.bind.0.clone());
        space.refusal = None;
        let asked = std::mem::replace(&mut space.slots, slots);
        for conn in asked.into_iter().filter_map(|it| it.conn) {
            self.retire(now, conn);
        }
        self.connect_slots(now, at);
        self.arm(conn);
    }

    /// BINDING, and the time is over: no server has accepted the bind, and perhaps one has refused it.
    pub(super) fn bind_timed_out(&mut self, now: Time, conn: Conn) {
        self.counters.unanswered += 1;
        let refusal = match self.legs.session(conn).map(|it| it.link) {
            Some(Link::Space(at)) => self.spaces.get(at).and_then(|it| it.refusal),
            _ => None,
        };
        self.refuse_bind(now, conn, refusal.unwrap_or(Status::SYSTEM_ERROR));
    }

    /// A server's connection is lost, or never came to be: it is tried again for as long as somebody is
    /// there who may need it.
    pub(super) fn provider_lost(&mut self, now: Time, at: Conn, conn: Conn) {
        let reconnect = self.settings.reconnect;
        let Some(space) = self.spaces.get_mut(at) else { return };
        if let Some(slot) = space.slot_of(conn) {
            slot.conn = None;
            slot.retry = Some(now + reconnect);
        }
        self.without(now, at, conn);
        self.arm_space(at);
        self.judge_password(now, at);
    }

    /// A provider is out of the rotation. Without any, sessions are turned back.
    fn without(&mut self, now: Time, at: Conn, conn: Conn) {
        let Some(space) = self.spaces.get_mut(at) else { return };
        let before = space.bound.len();
        space.bound.retain(|it| *it != conn);
        if space.bound.is_empty() && before > 0 {
            self.counters.rebinds += 1;
            for customer in space.customers.clone() {
                if let Some(session) = self.legs.session_mut(customer)
                    && session.state == ServerState::Bound
                {
                    session.state = ServerState::Rebinding;
                }
            }
            if !self.spaces.get(at).is_some_and(Space::has_hope) {
                return self.unbind_customers(now, at);
            }
        }
        self.wake_space(now, at, None, usize::MAX);
        if let Some(space) = self.spaces.get_mut(at) {
            space.queue.forget(conn);
        }
    }

    /// A server unbinds: what it has been asked it may still answer. When it was the last, all sessions are
    /// unbound.
    pub(super) fn provider_unbinds(&mut self, now: Time, at: Conn, conn: Conn) {
        let reconnect = self.settings.reconnect;
        if let Some(provider) = self.legs.provider_mut(conn) {
            provider.state = ClientState::Unbinding;
        }
        self.retire(now, conn);
        let Some(space) = self.spaces.get_mut(at) else { return };
        if let Some(slot) = space.slot_of(conn) {
            slot.conn = None;
            slot.retry = Some(now + reconnect);
            slot.standing = Standing::Left;
        }
        self.without(now, at, conn);
        self.arm_space(at);
    }

    fn unbind_customers(&mut self, now: Time, at: Conn) {
        let Some(space) = self.spaces.get(at) else { return };
        for customer in space.customers.clone() {
            match self.legs.session(customer).map(|it| it.state) {
                Some(ServerState::Binding) => {
                    self.refuse_bind(now, customer, Status::SYSTEM_ERROR);
                }
                Some(ServerState::Unbinding) => {} // by itself, when it has its answers
                Some(_) => self.unbind_session(now, customer),
                None => {}
            }
        }
    }

    /// BOUND: a session unbinds. Its servers do not care unless it was the last. What it has asked for is
    /// answered before its unbind is, by its servers or by the response timer.
    pub(super) fn customer_unbinds(&mut self, now: Time, conn: Conn, sequence: u32) {
        self.counters.requests_to_server += 1;
        let longest = self.settings.response * (1 + EXTENSIONS_MAX);
        let Some(session) = self.legs.session_mut(conn) else { return };
        session.state = ServerState::Unbinding;
        session.leaves = true;
        session.sequence = sequence;
        session.deadline = Some(now + longest);
        session.pulse.next = None;
        session.pulse.asked = None;
        if session.outstanding == 0 {
            return self.customer_unbound(now, conn);
        }
        self.receives_no_more(now, conn);
        self.arm(conn);
    }

    /// UNBINDING: nothing of the session is outstanding any more.
    pub(super) fn customer_unbound(&mut self, now: Time, conn: Conn) {
        let Some(sequence) = self.legs.session(conn).map(|it| it.sequence) else { return };
        self.answer(conn, Command::UNBIND, Status::OK, sequence);
        self.linger(now, conn);
    }

    /// A session is in its space no more. With the last one the space ends, and its servers are unbound.
    pub(super) fn leave(&mut self, now: Time, at: Conn, conn: Conn) {
        let Some(space) = self.spaces.get_mut(at) else { return };
        space.customers.retain(|it| *it != conn);
        space.receivers.retain(|it| *it != conn);
        if let Some(next) = space.customers.first().copied() {
            let Some(space) = self.spaces.get(at) else { return };
            if !space.is_up && !space.customers.iter().any(|it| self.gave_password_of(space, *it)) {
                return self.try_password_of(now, at, next);
            }
            self.wake_providers(now, at);
            // It may have been woken for room that it does not take.
            return self.wake_space(now, at, None, 1);
        }
        let Some(space) = self.spaces.remove(at) else { return };
        self.spaces_by_name.remove(&(space.system_id.0, space.is_secure));
        for provider in space.slots.iter().filter_map(|it| it.conn) {
            self.retire(now, provider);
        }
    }

    /// The list of servers has changed: new ones are connected, removed ones are unbound.
    pub(super) fn reconcile(&mut self, now: Time) {
        let spaces: Vec<Conn> = self.spaces.iter().map(|it| it.0).collect();
        for at in spaces {
            let Some(space) = self.spaces.get_mut(at) else { continue };
            let mut old = std::mem::take(&mut space.slots);
            for server in self.targets.iter() {
                let known = old.iter().position(|it| it.server == server);
                let slot = known.map_or_else(|| Slot::new(server), |it| old.swap_remove(it));
                space.slots.push(slot);
            }
            self.connect_slots(now, at);
            for conn in old.into_iter().filter_map(|it| it.conn) {
                self.retire(now, conn);
                self.without(now, at, conn);
            }
        }
    }

    /// One leg's turn to be checked: it is asked after some silence, again every `timeoutConnection` or
    /// `timeoutEnquire`, whichever is shorter, and given up after three times the silence.
    pub(super) fn check(&mut self, now: Time, conn: Conn) {
        let step = self.settings.connection.min(self.settings.enquire);
        let (pulse, silence, is_exempt) = match self.legs.get_mut(conn) {
            Some(super::Leg::Session(it)) => {
                let is_exempt = it.is_deaf();
                (&mut it.pulse, self.settings.check_server_side, is_exempt)
            }
            Some(super::Leg::Provider(it)) => {
                (&mut it.pulse, self.settings.check_client_side, it.is_waiting)
            }
            None => return,
        };
        if is_exempt {
            pulse.heard = now; // we do not listen
        }
        let idle = now.since(pulse.heard);
        if idle < silence {
            pulse.next = Some(pulse.heard + silence);
        } else if idle < silence * SILENCES_MAX {
            pulse.next = Some((now + step).min(pulse.heard + silence * SILENCES_MAX));
            self.ask(now, conn, Command::ENQUIRE_LINK);
        } else {
            self.counters.dropped(SmppDrop::Silent);
            match self.legs.get(conn) {
                Some(super::Leg::Session(_)) => self.end_session(now, conn, End::Close),
                _ => self.lose(now, conn, Some(Wish::Abort(conn)), Loss::Alone),
            }
        }
    }
}

/// What the balancer calls itself in its own bind_resp, as the original does.
const SYSTEM_ID: &[u8] = b"loadbalancer";
/// Before a server is asked again that refused what others accept: not so often that it locks the account.
const REFUSED_TIME: std::time::Duration = std::time::Duration::from_secs(30);
/// Silences after which a leg is given up.
const SILENCES_MAX: u32 = 3;
