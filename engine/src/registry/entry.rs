//! One node of the table with everything that decides whether it gets work.

use std::time::Duration;

use protocols::time::Time;

use super::Rules;
use crate::node::{Bad, Node, Origin};

/// A node and its record. `node` always shows the flags that the record implies.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) node: Node,
    /// Last life sign.
    sign: Time,
    /// Only static nodes can be known and down.
    up: bool,
    /// A static node answers 503 to probes.
    full: bool,
    /// By errors or silence.
    bad: Option<(Bad, Time)>,
    suspect_until: Option<Time>,
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
    /// Share of new calls while it warms up, of [`crate::config::RampUp::weight_max`]; 0 without ramp-up.
    pub weight: u32,
}

impl Entry {
    pub(super) fn new(now: Time, node: Node) -> Entry {
        Entry {
            up: node.origin != Origin::Static,
            node,
            sign: now,
            full: false,
            bad: None,
            suspect_until: None,
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

    /// It runs anew: nothing that the old one did counts.
    pub(super) fn handle_restart(&mut self, now: Time) {
        let mut node = self.node.clone();
        (node.joined, node.graceful, node.bad, node.suspect) = (now, false, None, false);
        *self = Entry { up: self.up, full: self.full, ..Entry::new(now, node) };
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

    /// It refused; `until` is when it is trusted again.
    pub(super) fn handle_refused(&mut self, until: Time) {
        self.suspect_until = Some(until);
        self.refresh();
    }

    /// What probes say of a static node. Whether it was a member before it was, and is now.
    pub(super) fn handle_pulse(&mut self, now: Time, up: bool, full: bool) {
        if up && !self.up {
            self.handle_restart(now);
        }
        (self.up, self.full) = (up, full);
        self.sign = if up { now } else { self.sign };
        self.refresh();
    }

    /// Lifts what has lasted long enough. A configured node cannot show us that it restarted: its bad
    /// mark lifts after `errors_time` instead.
    pub(super) fn handle_timeout(&mut self, now: Time, rules: &Rules) {
        if self.suspect_until.is_some_and(|until| until <= now) {
            self.suspect_until = None;
        }
        if self.node.origin != Origin::Heartbeat
            && self.bad.is_some_and(|(_, since)| since + rules.error_time < now)
        {
            self.bad = None;
            (self.errors, self.unanswered, self.waiting_since) = (0, 0, None);
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
            last_sign: self.sign,
            errors: self.errors,
            last_error: self.last_error,
            unanswered: self.unanswered,
            last_response: self.last_response,
            weight,
        }
    }

    fn mark(&mut self, now: Time, bad: Bad) {
        self.bad.get_or_insert((bad, now));
        self.refresh();
    }

    fn refresh(&mut self) {
        self.node.bad = self.bad.map(|(bad, _)| bad).or(self.full.then_some(Bad::Full));
        self.node.suspect = self.suspect_until.is_some();
    }
}

/// Shards report a few times a second and not together: a request that one shard counts may have been
/// answered on another within this time.
const REPORT_LAG: Duration = Duration::from_millis(500);
