//! Mux mode: whose turn it is (`http-smpp-registry.md` 2.6): the provider of a request, the session of a
//! message, and who goes on when there is room. Segments of one long message stay together, receipts find who
//! submitted, and questions who took.

use protocols::smpp::Status;
use protocols::smpp::body::{self, Message};
use protocols::smpp::pdu::Pdu;
use protocols::smpp::session::ServerState;
use protocols::time::Time;

use super::leg::Link;
use super::space::Space;
use super::{Smpp, Step};
use crate::config::{SmppToNode, SmppToProvider};
use crate::relay::stream::Conn;
use crate::stats::smpp::SmppDrop;

impl Smpp {
    /// There is room for so many requests, at `provider` or anywhere: as many sessions may go on. Who does
    /// not read cannot use it, and tries by itself when it reads again.
    pub(super) fn wake_space(&mut self, now: Time, at: Conn, provider: Option<Conn>, count: usize) {
        let mut left = count;
        while left > 0 {
            let Some(space) = self.spaces.get_mut(at) else { return };
            let Some(conn) = space.queue.pop(provider) else { return };
            let Some(session) = self.legs.session_mut(conn) else { continue };
            session.is_queued = false;
            if session.is_waiting && !session.is_full {
                left -= 1;
                self.wake(now, conn);
            }
        }
    }

    /// A session that did not read does again: others have had its turn, so it tries at once.
    pub(super) fn leave_queue(&mut self, now: Time, at: Conn, conn: Conn) {
        let Some(space) = self.spaces.get_mut(at) else { return };
        let Some(session) = self.legs.session_mut(conn).filter(|it| it.is_waiting) else { return };
        if std::mem::replace(&mut session.is_queued, false) {
            space.queue.leave(conn, session.waits_for);
        }
        self.wake(now, conn);
    }

    /// The provider of a session's request; `None`: none has room now. One that rests has its turn only if
    /// no other has room.
    pub(super) fn provider_for(
        &mut self,
        now: Time,
        at: Conn,
        session: Conn,
        pdu: Pdu<'_>,
    ) -> Option<Conn> {
        let window = self.settings.provider_window;
        let only = self.only_provider(now, at, session, pdu);
        let space = self.spaces.get_mut(at)?;
        let has_room = |it: &Conn| self.legs.provider(*it).is_some_and(|it| it.has_room(window));
        if only.is_some() {
            return only.filter(has_room);
        }
        let (before, after) = space.bound.split_at(space.turn.min(space.bound.len()));
        let in_turn = || after.iter().chain(before).copied();
        let is_fit = |it: &Conn| {
            let provider = self.legs.provider(*it);
            provider.is_some_and(|it| it.has_room(window) && it.rests_until <= now)
        };
        let chosen = in_turn().find(is_fit).or_else(|| in_turn().find(has_room))?;
        let position = space.bound.iter().position(|it| *it == chosen)?;
        space.turn = position + 1;
        Some(chosen)
    }

    /// The one provider that a session's request may go to: who took the message that it is about, else the
    /// active one or that of the long message that it is a segment of. `None`: any.
    pub(super) fn only_provider(
        &mut self,
        now: Time,
        at: Conn,
        session: Conn,
        pdu: Pdu<'_>,
    ) -> Option<Conn> {
        let taker = self.taker(now, at, session, pdu);
        let bound = &self.spaces.get(at)?.bound;
        match self.settings.to_provider {
            _ if taker.is_some() => taker,
            SmppToProvider::ActiveStandby => bound.first().copied(),
            SmppToProvider::RoundRobin if bound.len() < 2 => None,
            SmppToProvider::RoundRobin => favourite(long_message(pdu, session)?, bound),
        }
    }

    /// The provider that took the message which a session's query_sm, cancel_sm or replace_sm is about, if it
    /// is remembered and still bound. Servers may number alike: then what this ESME submitted counts.
    fn taker(&mut self, now: Time, at: Conn, session: Conn, pdu: Pdu<'_>) -> Option<Conn> {
        let id = body::message_asked_about(pdu)?;
        let age_max = self.settings.receipts?.age_max;
        let mut found = None;
        for conn in &self.spaces.get(at)?.bound {
            let Some(server) = self.legs.provider(*conn).map(|it| it.server) else { continue };
            match self.receipts.find(now, server, id, age_max) {
                Some(it) if it == session => return Some(*conn),
                Some(_) => found = found.or(Some(*conn)),
                None => {}
            }
        }
        found
    }

    /// The session that a server's message is for: the submitter of what it is a receipt for, else by turns.
    ///
    /// # Errors
    ///
    /// [`NoCustomer`]: what becomes of the message.
    pub(super) fn customer_for(
        &mut self,
        now: Time,
        at: Conn,
        provider: Conn,
        pdu: Pdu<'_>,
    ) -> Result<Conn, NoCustomer> {
        let window = self.settings.session_window;
        let Some(space) = self.spaces.get_mut(at) else { return Err(NoCustomer::Nobody) };
        let legs = &self.legs;
        let has_room = |it: &Conn| {
            let session = legs.session(*it);
            session.is_some_and(|it| {
                it.state == ServerState::Bound && !it.is_full && it.has_room(window)
            })
        };
        // Waiting for one session would hold the answers for all others.
        let only_one = |space: &Space| match space.receivers.iter().any(has_room) {
            true => NoCustomer::OneFull,
            false => NoCustomer::AllFull,
        };
        let message = Message::read(pdu);
        let receipt = message.as_ref().and_then(Message::receipt_of);
        if let (Some(limits), Some(id)) = (self.settings.receipts, receipt) {
            let own = legs.provider(provider).map(|it| it.server);
            // A cluster of SMSCs may send the receipt from another of its members.
            let servers = own.into_iter().chain(space.slots.iter().map(|it| it.server));
            let submitter = servers
                .filter_map(|it| self.receipts.find(now, it, id, limits.age_max))
                .find(|it| space.receivers.contains(it));
            if let Some(submitter) = submitter {
                return Some(submitter).filter(has_room).ok_or_else(|| only_one(space));
            }
        }
        if space.receivers.is_empty() {
            return Err(NoCustomer::Nobody);
        }
        if let Some(key) = long_message(pdu, at) {
            let chosen = favourite(key, &space.receivers);
            return chosen.filter(has_room).ok_or_else(|| only_one(space));
        }
        let turn = space.receiver_turn.min(space.receivers.len());
        let (before, after) = space.receivers.split_at(turn);
        let chosen = after.iter().chain(before).copied().find(has_room);
        let chosen = chosen.ok_or(NoCustomer::AllFull)?;
        let position = space.receivers.iter().position(|it| *it == chosen);
        space.receiver_turn = position.map_or(0, |it| it + 1);
        Ok(chosen)
    }

    /// A server's message goes to one session, or to all.
    pub(super) fn deliver_to_space(
        &mut self,
        now: Time,
        at: Conn,
        provider: Conn,
        pdu: Pdu<'_>,
    ) -> Step {
        let is_receipt = Message::read(pdu).is_some_and(|it| it.receipt_of().is_some());
        let is_routed = is_receipt && self.settings.receipts.is_some();
        let done = if self.settings.to_node == SmppToNode::SubmitToAll && !is_routed {
            self.deliver_to_all(now, at, provider, pdu)
        } else {
            let chosen = self.customer_for(now, at, provider, pdu);
            chosen.map(|session| self.deliver(now, provider, session, pdu, None))
        };
        match done {
            Ok(()) => {}
            Err(NoCustomer::Nobody) => {
                self.counters.dropped(SmppDrop::NoClient);
                self.refuse(provider, pdu, Status::SYSTEM_ERROR);
            }
            Err(NoCustomer::OneFull) => {
                self.counters.dropped(SmppDrop::Throttled);
                self.refuse(provider, pdu, Status::THROTTLED);
            }
            Err(NoCustomer::AllFull) => {
                if let Some(space) = self.spaces.get_mut(at) {
                    space.holds_provider = true;
                }
                return self.hold_provider(now, provider, pdu);
            }
        }
        Step::Next
    }

    fn deliver_to_all(
        &mut self,
        now: Time,
        at: Conn,
        provider: Conn,
        pdu: Pdu<'_>,
    ) -> Result<(), NoCustomer> {
        let window = self.settings.session_window;
        let Some(space) = self.spaces.get(at) else { return Err(NoCustomer::Nobody) };
        let has_room = |it: &Conn| {
            self.legs.session(*it).is_some_and(|it| {
                it.state == ServerState::Bound && !it.is_full && it.has_room(window)
            })
        };
        let sessions: Vec<Conn> = space.receivers.iter().copied().filter(has_room).collect();
        let passed_over = space.receivers.len() - sessions.len();
        let Ok(count @ 1..) = u32::try_from(sessions.len()) else {
            let is_empty = space.receivers.is_empty();
            return Err(if is_empty { NoCustomer::Nobody } else { NoCustomer::AllFull });
        };
        (0..passed_over).for_each(|_| self.counters.dropped(SmppDrop::NoClient));
        let shared = self.next_shared;
        self.next_shared = shared.next();
        self.shared.insert(shared, count);
        self.counters.requests_to_client += 1;
        for session in sessions {
            self.deliver(now, provider, session, pdu, Some(shared));
        }
        Ok(())
    }

    /// A session will answer no messages any more: others of its space get them.
    pub(super) fn receives_no_more(&mut self, now: Time, conn: Conn) {
        let Some(Link::Space(at)) = self.legs.session(conn).map(|it| it.link) else { return };
        if let Some(space) = self.spaces.get_mut(at) {
            space.receivers.retain(|it| *it != conn);
        }
        self.wake_providers(now, at);
    }

    /// A session of a space has room, or is in it no more: providers that wait go on.
    pub(super) fn wake_providers(&mut self, now: Time, at: Conn) {
        let Some(space) = self.spaces.get_mut(at) else { return };
        if !std::mem::replace(&mut space.holds_provider, false) {
            return;
        }
        for provider in space.bound.clone() {
            if self.is_waiting(provider) {
                self.wake(now, provider);
            }
        }
    }
}

/// Why no session gets a server's message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum NoCustomer {
    /// None may receive.
    Nobody,
    /// The one that it is for has no room, but others have: the server hears that it is throttled.
    OneFull,
    /// None has room: the server waits, or hears that it is throttled, as `smppWindowFull` says.
    AllFull,
}

/// Names the long message that a PDU is a segment of. `None`: it is no segment.
fn long_message(pdu: Pdu<'_>, from: Conn) -> Option<u64> {
    let message = Message::read(pdu)?;
    let reference = message.segment_of()?;
    let seed = (u64::from(from.slot) << 16) | u64::from(reference);
    let seed = crate::balance::hash(seed, message.source);
    Some(crate::balance::hash(seed, message.destination))
}

/// Rendezvous: the same for all segments, as long as it is there.
fn favourite(key: u64, among: &[Conn]) -> Option<Conn> {
    let weight = |it: &Conn| {
        let identity = (u64::from(it.generation) << 32) | u64::from(it.slot);
        crate::balance::hash(key, &identity.to_be_bytes())
    };
    among.iter().copied().max_by_key(weight)
}
