//! One node of the table with everything that decides whether it gets work.

use std::time::Duration;

use protocols::time::Time;

use super::Rules;
use super::announcement::{Announcement, Source};
use super::orders::Ordered;
use super::voices::Voices;
use crate::node::{Bad, Node, NodeKey, Origin, Suspect, Version, Way};

/// A node and its record. `node` always shows the flags that the record implies.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) node: Node,
    voices: Voices,
    /// Last life sign.
    sign: Time,
    /// Only static nodes can be known and down.
    up: bool,
    /// That it is down has been told.
    missed: bool,
    /// A static node answers 503 to probes.
    full: bool,
    /// It said that it is leaving. Nothing takes that back but another `sessionId` or another way into the
    /// table: of all that heartbeats carry, it alone changes with each start. A beat without the flag is no
    /// such sign, since of a node's protocols some never tell it; so that a node that names no session, and is
    /// back within `nodeTimeout`, has to be removed by hand to be new.
    leaving: bool,
    /// What the operator wants of it.
    ordered: Option<Ordered>,
    /// By errors or silence.
    bad: Option<(Bad, Time)>,
    /// By [`Way::index`].
    suspect_until: [Option<Time>; Way::ALL.len()],
    errors: u32,
    last_error: Option<Time>,
    unanswered: u32,
    /// When the first of the unanswered requests was reported.
    waiting_since: Option<Time>,
    last_response: Option<Time>,
}

/// A node's record, for people.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Health {
    /// It is a live node; only static ones can be known and down.
    pub is_live: bool,
    /// Last life sign.
    pub last_sign: Time,
    /// Error responses that count at the moment (`sip.md` 5.6).
    pub errors: u32,
    /// Last error response.
    pub last_error: Option<Time>,
    /// Requests without a response (`sip.md` 5.7).
    pub unanswered: u32,
    /// Last response of any kind.
    pub last_response: Option<Time>,
    /// What the operator wants of it.
    pub ordered: Option<Ordered>,
    /// Share of new calls while it warms up, of [`crate::config::RampUp::weight_max`]; 0 without ramp-up.
    pub weight: u32,
}

impl Entry {
    pub(super) fn new(now: Time, origin: Origin, said: Announcement) -> Entry {
        Entry {
            up: origin != Origin::Static,
            missed: false,
            node: node(now, origin, said.clone()),
            sign: now,
            full: false,
            leaving: said.graceful,
            voices: Voices::new(now, said),
            ordered: None,
            bad: None,
            suspect_until: [None; Way::ALL.len()],
            errors: 0,
            last_error: None,
            unanswered: 0,
            waiting_since: None,
            last_response: None,
        }
    }

    /// Whether it is a member: in the snapshot, counted, routable for its own calls.
    pub(super) const fn is_live(&self) -> bool {
        self.up
    }

    pub(super) const fn last_sign(&self) -> Time {
        self.sign
    }

    pub(super) fn is_silent(&self, now: Time, rules: &Rules) -> bool {
        self.node.origin == Origin::Heartbeat && self.sign + rules.node_timeout < now
    }

    pub(super) fn handle_sign(&mut self, now: Time) {
        self.sign = self.sign.max(now);
    }

    /// Nobody could be heard until now: its silence, and that of each of its protocols, begins anew.
    pub(super) fn handle_stall(&mut self, now: Time) {
        if self.up {
            self.handle_sign(now);
            self.voices.handle_stall(now);
        }
    }

    /// Whether this word is one that was heard before, which says no more than that the node is alive.
    pub(super) fn repeats(&mut self, now: Time, said: &Announcement) -> bool {
        let heals = said.source == Source::Json && self.bad.is_some();
        let same = !heals && self.voices.is_last_word(said);
        if same {
            self.handle_word(now, said.source);
        }
        same
    }

    /// It says of itself more than that it is alive; whether it runs anew.
    ///
    /// `start` of the JSON protocol also heals the node that says it: it says so once, not every few
    /// seconds (`http-smpp-registry.md` 1.8).
    pub(super) fn handle_words(&mut self, now: Time, said: Announcement) -> bool {
        let (source, graceful) = (said.source, said.graceful);
        let restarted = self.voices.hear(now, said);
        if restarted {
            self.handle_restart(now);
        }
        if source == Source::Json {
            self.heal();
        }
        self.handle_sign(now);
        self.leaving |= graceful;
        self.describe();
        self.refresh();
        restarted
    }

    /// Another identity was its own until now.
    pub(super) fn note_former(&mut self, old: NodeKey) {
        let Node { key, former, .. } = &mut self.node;
        if *key == old {
            return;
        }
        former.retain(|it| it != key);
        if former.len() >= FORMER_MAX {
            former.remove(0);
        }
        former.push(old);
    }

    /// It is leaving: it wants no new calls.
    pub(super) fn handle_leaving(&mut self, now: Time) {
        self.handle_sign(now);
        self.leaving = true;
        self.refresh();
    }

    /// Whether it is leaving by its own word.
    pub(super) const fn is_leaving(&self) -> bool {
        self.leaving
    }

    /// What the operator wants of it from now on.
    pub(super) fn obey(&mut self, ordered: Option<Ordered>) {
        self.ordered = ordered;
        self.refresh();
    }

    /// A life sign through one protocol.
    pub(super) fn handle_word(&mut self, now: Time, source: Source) {
        self.voices.handle_sign(now, source);
        self.handle_sign(now);
    }

    /// The session that a protocol named last.
    pub(super) fn session(&self, source: Source) -> Option<&str> {
        self.voices.session(source)
    }

    /// Its version, unless it is known from `source` alone.
    pub(super) fn version_but_by(&self, source: Source) -> Option<Version> {
        self.voices.version_but_by(source)
    }

    /// Bytes of all that was said but by one protocol.
    pub(super) fn bytes_without(&self, source: Source) -> usize {
        self.voices.bytes_without(source)
    }

    /// Whether there is a protocol that the node speaks no longer.
    pub(super) fn has_fading_voice(&self, now: Time, rules: &Rules) -> bool {
        self.voices.fading(now, rules.node_timeout).next().is_some()
    }

    /// Forgets protocols that the node speaks no longer.
    pub(super) fn forget_voices(&mut self, now: Time, rules: &Rules) {
        self.voices.handle_timeout(now, rules.node_timeout);
        self.describe();
    }

    /// Takes over what the voices say together. The addresses of a configured node are the operator's
    /// word.
    fn describe(&mut self) {
        let all = self.voices.together();
        if self.node.origin == Origin::Heartbeat {
            self.node.key = all.key();
            (self.node.host_name, self.node.ports) = (all.host_name, all.ports);
        }
        (self.node.session, self.node.properties) = (all.session, all.properties);
    }

    /// It runs anew: nothing that the old one did counts.
    fn handle_restart(&mut self, now: Time) {
        (self.node.joined, self.leaving) = (now, false);
        (self.sign, self.suspect_until) = (now, [None; Way::ALL.len()]);
        (self.last_error, self.last_response) = (None, None);
        self.heal();
    }

    fn heal(&mut self) {
        self.bad = None;
        (self.errors, self.unanswered, self.waiting_since) = (0, 0, None);
        self.refresh();
    }

    /// Error responses that count. One is `sip.md` 5.6; reports bring several.
    pub(super) fn handle_errors(&mut self, now: Time, count: u32, rules: &Rules) {
        if self.last_error.is_some_and(|last| last + rules.error_time < now) {
            self.errors = 0;
        }
        self.errors = self.errors.saturating_add(count);
        self.last_error = Some(now);
        if self.errors > rules.errors_max {
            self.mark(now, Bad::Errors);
        }
    }

    /// An error response that takes it out at once (`http-smpp-registry.md` 1.8).
    pub(super) fn handle_bad_response(&mut self, now: Time) {
        self.last_error = Some(now);
        self.mark(now, Bad::Response);
    }

    /// A response of any kind: it is not silent.
    pub(super) fn handle_response(&mut self, now: Time) {
        self.last_response = Some(now);
        self.unanswered = 0;
        self.waiting_since = None;
    }

    /// Requests that were forwarded to it and not answered yet, as far as one shard knows. Another
    /// shard may have had the answers already, so that those within [`REPORT_LAG`] of one do not count.
    pub(super) fn handle_requests(&mut self, now: Time, count: u32, rules: &Rules) {
        if self.last_response.is_some_and(|last| now.since(last) < REPORT_LAG) {
            return;
        }
        self.unanswered = self.unanswered.saturating_add(count);
        let since = *self.waiting_since.get_or_insert(now);
        if let Some(silence) = rules.silence
            && self.unanswered > silence.requests_max
            && since + silence.time < now
        {
            self.mark(now, Bad::Silence);
        }
    }

    /// It refused on one way; `until` is when it is trusted there again.
    pub(super) fn handle_refused(&mut self, way: Way, until: Time) {
        if let Some(it) = self.suspect_until.get_mut(way.index()) {
            *it = Some(until);
        }
        self.refresh();
    }

    /// What probes say of a static node. Whether it was a member before it was, and is now.
    pub(super) fn handle_pulse(&mut self, now: Time, up: bool, full: bool) {
        if up && !self.up {
            self.handle_restart(now);
        }
        self.missed |= self.up && !up;
        (self.up, self.full) = (up, full);
        self.sign = if up { now } else { self.sign };
        self.refresh();
    }

    /// Whether it is down and nobody has been told yet; now somebody is.
    pub(super) fn is_missed_anew(&mut self) -> bool {
        !self.up && !std::mem::replace(&mut self.missed, true)
    }

    /// Lifts what has lasted long enough. A bad mark lifts where the operator wants bad nodes tried again;
    /// then one more error is enough. A configured node cannot show us that it restarted: without his word
    /// its mark lifts after `error_time`.
    pub(super) fn handle_timeout(&mut self, now: Time, rules: &Rules) {
        for it in &mut self.suspect_until {
            *it = it.filter(|until| *until > now);
        }
        let is_configured = self.node.origin != Origin::Heartbeat;
        let time = rules.probation.or(is_configured.then_some(rules.error_time));
        if let Some((bad, since)) = self.bad
            && time.is_some_and(|it| since + it < now)
        {
            self.heal();
            if bad == Bad::Errors && rules.probation.is_some() {
                self.errors = rules.errors_max;
            }
        }
        self.refresh();
    }

    pub(super) fn health(&self, now: Time, rules: &Rules) -> Health {
        let weight = rules.ramp_up.map_or(0, |it| {
            let period = it.period.as_nanos().max(1);
            let periods = now.since(self.node.joined).as_nanos() / period;
            u32::try_from(periods).unwrap_or(u32::MAX).saturating_add(1).min(it.weight_max)
        });
        Health {
            is_live: self.up,
            last_sign: self.sign,
            errors: self.errors,
            last_error: self.last_error,
            unanswered: self.unanswered,
            last_response: self.last_response,
            weight,
            ordered: self.ordered,
        }
    }

    fn mark(&mut self, now: Time, bad: Bad) {
        self.bad.get_or_insert((bad, now));
        self.refresh();
    }

    fn refresh(&mut self) {
        self.node.bad = self.bad.map(|(bad, _)| bad).or(self.full.then_some(Bad::Full));
        for (way, until) in Way::ALL.into_iter().zip(self.suspect_until) {
            self.node.suspect.set(way, until.is_some());
        }
        self.node.graceful = self.leaving || self.ordered.is_some();
    }
}

fn node(now: Time, origin: Origin, announcement: Announcement) -> Node {
    Node {
        key: announcement.key(),
        former: Vec::new(),
        host_name: announcement.host_name,
        ip: announcement.ip,
        ports: announcement.ports,
        version: announcement.version,
        session: announcement.session,
        properties: announcement.properties,
        graceful: false,
        bad: None,
        suspect: Suspect::default(),
        joined: now,
        origin,
    }
}

/// Identities that are remembered of one node: protocols join and fall silent a few times.
const FORMER_MAX: usize = 8;

/// Shards report a few times a second and not together: a request that one shard counts may have been
/// answered on another within this time.
const REPORT_LAG: Duration = Duration::from_millis(500);
