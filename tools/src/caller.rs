//! A caller: places calls (INVITE, ACK, BYE) at a rate or through a window, and checks what comes back.
//!
//! Reads RFC 3261 §8.1 (requests), §12.1.2 and §12.2.1.1 (route set, remote target), §13.2.2.4 (ACK of
//! 2xx), §17.1 (timers A, B, E, F), §17.1.1.3 (ACK of refusals). Strict routers are not followed. The
//! Call-ID names the slot of its call, so a response costs no table look-up.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use protocols::sip::Transport;
use protocols::time::Time;

use crate::message::{self, Id, Malformed, Message, Start};
use crate::node;
use crate::report::{self, Calls, Failure, LOST_MAX, Latencies, Lost};
use crate::timers::Timers;

mod line;

use line::Answer;
pub use line::Line;

/// How a caller places calls.
#[derive(Clone, Debug)]
pub struct CallerConfig {
    /// Where INVITEs go: the balancer's external address.
    pub target: SocketAddr,
    /// UDP or TCP.
    pub transport: Transport,
    /// Addresses it calls from, one socket or connection each; port 0 takes any.
    pub from: Vec<SocketAddr>,
    /// When the next call is placed.
    pub pace: Pace,
    /// No more calls than this.
    pub calls_max: Option<u64>,
    /// No new calls after this time.
    pub duration: Option<Duration>,
    /// From ACK to BYE.
    pub hold: Duration,
    /// A request without final answer is given up after this (timers B and F, 64 * T1).
    pub timeout: Duration,
    /// Send again what is not answered (timers A and E, T1 = 500 ms); never on TCP.
    pub retransmit: bool,
    /// Where in-dialog requests go.
    pub next_hop: NextHop,
    /// Length of the INVITE, bytes; at least what it needs.
    pub invite_bytes: usize,
}

impl CallerConfig {
    /// One UDP socket on the loopback interface, RFC timers, no hold time, an INVITE of 900 bytes.
    pub fn new(target: SocketAddr, pace: Pace) -> Self {
        let loopback = if target.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" };
        Self {
            target,
            transport: Transport::Udp,
            from: loopback.parse().into_iter().collect(),
            pace,
            calls_max: None,
            duration: None,
            hold: Duration::ZERO,
            timeout: 64 * T1,
            retransmit: true,
            next_hop: NextHop::Route,
            invite_bytes: 900,
        }
    }
}

/// When calls are placed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// Calls per second, whatever becomes of earlier ones.
    Open(f64),
    /// So many calls in progress; each that ends is replaced at once. Finds the maximum.
    Closed(u32),
}

/// Where in-dialog requests go.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NextHop {
    /// To the first Route, else to the Contact, as RFC 3261 asks.
    Route,
    /// To the target of the INVITE: for a forwarder that does not read SIP.
    Target,
}

/// One caller, without sockets. The agent moves bytes between its lines and the network.
#[derive(Debug)]
pub struct Caller {
    config: CallerConfig,
    salt: String,
    lines: Vec<Line>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    timers: Timers<Timer>,
    began: Option<Time>,
    stopped: bool,
    /// What became of the calls so far.
    pub calls: Calls,
    /// Latencies since they were last cleared.
    pub latencies: Latencies,
    /// How late calls were placed by the fault of whoever drives this caller.
    pub lateness: hdrhistogram::Histogram<u64>,
    /// Calls completed by the node that answered them.
    pub per_node: BTreeMap<SocketAddr, u64>,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    step: Step,
    line: usize,
    /// When the call was to begin.
    scheduled: Time,
    bye_sent: Time,
    /// A provisional answer came.
    proceeding: bool,
    ringing: bool,
    node: Option<SocketAddr>,
    dialog: Dialog,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum Step {
    #[default]
    Free,
    Inviting,
    Talking,
    HangingUp,
}

/// What every later request of the call repeats.
#[derive(Debug, Default)]
struct Dialog {
    uri: Vec<u8>,
    /// Route, From, To and Call-ID lines.
    lines: Vec<u8>,
    hop: Option<SocketAddr>,
}

#[derive(Clone, Copy, Debug)]
struct Timer {
    slot: u32,
    generation: u32,
    step: Step,
    action: Action,
}

#[derive(Clone, Copy, Debug)]
enum Action {
    GiveUp,
    HangUp,
    SendAgain(usize),
}

impl Caller {
    /// A caller whose lines have these local addresses. `salt` keeps its Call-IDs apart from those of
    /// other callers: eight characters of a token.
    pub fn new(config: CallerConfig, salt: &str, locals: &[SocketAddr]) -> Self {
        let doubling = (0..DOUBLINGS).map(|count| T1 * (1 << count));
        let delays = [config.timeout, config.hold].into_iter().chain(doubling);
        let timers = Timers::new(delays);
        let lines = locals.iter().map(|local| Line::new(&config, salt, *local)).collect();
        Self {
            salt: salt.to_owned(),
            lines,
            slots: Vec::new(),
            free: Vec::new(),
            timers,
            began: None,
            stopped: false,
            calls: Calls::default(),
            latencies: Latencies::default(),
            lateness: report::histogram(),
            per_node: BTreeMap::new(),
            config,
        }
    }

    /// Its lines, to be sent from.
    pub fn lines(&mut self) -> &mut [Line] {
        &mut self.lines
    }

    /// A line has a new local address, because its connection was opened again.
    pub fn set_local(&mut self, line: usize, local: SocketAddr) {
        if let Some(line) = self.lines.get_mut(line) {
            *line = Line::new(&self.config, &self.salt, local);
        }
    }

    /// Places no more calls; those in progress go on.
    pub fn stop(&mut self) {
        self.stopped = true;
    }

    /// Places no more calls, and none is in progress.
    pub fn finished(&self) -> bool {
        self.stopped && self.calls.in_progress == 0
    }

    /// Forgets latencies, so that a warm-up does not count.
    pub fn clear_latencies(&mut self) {
        self.latencies = Latencies::default();
        self.lateness.reset();
    }

    /// Does everything that is due: timers, then new calls. Returns when to come back at the latest.
    pub fn poll(&mut self, now: Time) -> Option<Time> {
        while let Some(timer) = self.timers.fire(now) {
            self.handle_timer(now, timer);
        }
        let next_call = self.place_calls(now);
        [self.timers.next_due(), next_call].into_iter().flatten().min()
    }

    fn place_calls(&mut self, now: Time) -> Option<Time> {
        let began = *self.began.get_or_insert(now);
        if self.config.duration.is_some_and(|limit| now.since(began) >= limit) {
            self.stopped = true;
        }
        // A batch at a time, so that answers are read while a late generator catches up.
        for _ in 0..CALLS_PER_POLL_MAX {
            self.stopped |= self.config.calls_max.is_some_and(|max| self.calls.started >= max);
            if self.stopped {
                return None;
            }
            let scheduled = match self.config.pace {
                Pace::Closed(window) if self.calls.in_progress >= u64::from(window) => return None,
                Pace::Closed(_) => now,
                Pace::Open(rate) => began + due_after(self.calls.started, rate),
            };
            if scheduled > now {
                return Some(scheduled);
            }
            report::record(&mut self.lateness, now.since(scheduled));
            self.begin(now, scheduled);
        }
        Some(now)
    }

    fn begin(&mut self, now: Time, scheduled: Time) {
        let number = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        let line_count = u64::try_from(self.lines.len()).unwrap_or(1).max(1);
        let line = usize::try_from(self.calls.started % line_count).unwrap_or(0);
        let Some(slot) = self.slots.get_mut(index(number)) else { return };
        slot.generation = slot.generation.wrapping_add(1);
        slot.step = Step::Inviting;
        slot.line = line;
        slot.scheduled = scheduled;
        (slot.proceeding, slot.ringing) = (false, false);
        slot.node = None;
        let generation = slot.generation;
        self.calls.started += 1;
        self.calls.in_progress += 1;
        self.send_invite(number, generation, line);
        self.arm_request(now, number, generation, Step::Inviting);
    }

    fn send_invite(&mut self, number: u32, generation: u32, line: usize) {
        let target = self.config.target;
        if let Some(line) = self.lines.get_mut(line) {
            line.outbox.message(target, |out| line.invite.write(&call_id(number, generation), out));
        }
    }

    fn arm_request(&mut self, now: Time, slot: u32, generation: u32, step: Step) {
        let timer = |action| Timer { slot, generation, step, action };
        self.timers.arm(now, TIMER_GIVE_UP, timer(Action::GiveUp));
        if self.config.retransmit && self.config.transport == Transport::Udp {
            self.timers.arm(now, TIMER_T1, timer(Action::SendAgain(0)));
        }
    }

    fn handle_timer(&mut self, now: Time, timer: Timer) {
        let Timer { slot: number, generation, step, action } = timer;
        let Some(slot) = self.slots.get(index(number)) else { return };
        if slot.generation != generation || slot.step != step {
            return;
        }
        match (action, step) {
            (Action::HangUp, _) => self.hang_up(now, number),
            (Action::GiveUp, Step::Inviting) => self.fail(now, number, Failure::InviteTimeout),
            (Action::GiveUp, _) => self.fail(now, number, Failure::ByeTimeout),
            // A provisional answer ends the retransmission of INVITE (RFC 3261 §17.1.1.2).
            (Action::SendAgain(_), Step::Inviting) if slot.proceeding => {}
            (Action::SendAgain(count), _) => {
                self.calls.retransmissions += 1;
                let next = match step {
                    Step::Inviting => {
                        self.send_invite(number, generation, slot.line);
                        count + 1
                    }
                    // BYE doubles up to T2 only (RFC 3261 §17.1.2.2).
                    _ => {
                        self.send_in_dialog(number, Method::Bye);
                        (count + 1).min(DOUBLINGS_TO_T2)
                    }
                };
                let again = Timer { action: Action::SendAgain(next), ..timer };
                self.timers.arm(now, TIMER_T1 + next, again);
            }
        }
    }

    /// Takes one message that arrived on a line.
    pub fn handle(&mut self, now: Time, line: usize, bytes: &[u8]) {
        if self.handle_message(now, line, bytes).is_err() {
            self.calls.malformed += 1;
        }
    }

    fn handle_message(&mut self, now: Time, line: usize, bytes: &[u8]) -> Result<(), Malformed> {
        let message = Message::parse(bytes)?;
        let Start::Response { status } = message.start else { return Err(Malformed::StartLine) };
        let answer = Answer::read(&message)?;
        let Some(number) = self.slot_of(&answer, line) else {
            self.calls.stray += 1;
            return Ok(());
        };
        let invite = answer.cseq.ends_with(b" INVITE");
        let Some(slot) = self.slots.get_mut(index(number)) else { return Ok(()) };
        let since_start = now.since(slot.scheduled);
        match (slot.step, invite, status) {
            (Step::Inviting, true, 100..200) => {
                slot.proceeding = true;
                if status == 180 && !slot.ringing {
                    slot.ringing = true;
                    report::record(&mut self.latencies.ringing, since_start);
                }
            }
            (Step::Inviting, true, 200..300) => {
                report::record(&mut self.latencies.answer, since_start);
                self.answered(now, number, &answer)?;
            }
            (Step::Inviting, true, _) => {
                self.acknowledge_refusal(number, &answer);
                self.fail(now, number, Failure::Refused(status));
            }
            // The node has not seen our ACK (RFC 3261 §13.2.2.4).
            (Step::Talking | Step::HangingUp, true, 200..300) => {
                self.calls.stray += 1;
                self.send_in_dialog(number, Method::Ack);
            }
            (Step::HangingUp, false, 100..200) => {}
            (Step::HangingUp, false, 200..300) => {
                report::record(&mut self.latencies.hangup, now.since(slot.bye_sent));
                if let Some(node) = slot.node {
                    *self.per_node.entry(node).or_default() += 1;
                }
                self.calls.completed += 1;
                self.release(number);
            }
            (Step::HangingUp, false, _) => self.fail(now, number, Failure::ByeRefused(status)),
            _ => self.calls.stray += 1,
        }
        Ok(())
    }

    fn slot_of(&self, answer: &Answer<'_>, line: usize) -> Option<u32> {
        let rest = answer.call_id.strip_prefix(self.salt.as_bytes())?;
        let id = Id::read(rest.get(..message::ID_DIGITS)?)?;
        let number = u32::try_from(id & u64::from(u32::MAX)).ok()?;
        let slot = self.slots.get(index(number))?;
        let live = slot.step != Step::Free && u64::from(slot.generation) == id >> 32;
        (live && slot.line == line).then_some(number)
    }

    fn answered(&mut self, now: Time, number: u32, answer: &Answer<'_>) -> Result<(), Malformed> {
        let Some(slot) = self.slots.get_mut(index(number)) else { return Ok(()) };
        let Some(line) = self.lines.get(slot.line) else { return Ok(()) };
        if answer.contact.is_empty() || answer.to_line.is_empty() {
            return Err(Malformed::Missing);
        }
        let dialog = &mut slot.dialog;
        dialog.uri.clear();
        dialog.uri.extend_from_slice(message::uri_of(answer.contact));
        dialog.lines.clear();
        let mut first_route = None;
        // RFC 3261 §12.1.2: the route set is the Record-Route of the answer in reverse.
        let routes = answer.record_routes.get(..answer.record_route_count).unwrap_or_default();
        for route in routes.iter().rev() {
            first_route.get_or_insert(*route);
            dialog.lines.extend_from_slice(b"Route: ");
            dialog.lines.extend_from_slice(route);
            dialog.lines.extend_from_slice(b"\r\n");
        }
        line.own.write(&call_id(number, slot.generation), &mut dialog.lines);
        dialog.lines.extend_from_slice(answer.to_line);
        dialog.hop = match self.config.next_hop {
            NextHop::Target => Some(self.config.target),
            NextHop::Route => {
                message::address_of(first_route.map_or(&dialog.uri[..], message::uri_of))
            }
        };
        slot.node = message::param(answer.to, b"tag").and_then(node::address_of_tag);
        slot.step = Step::Talking;
        let generation = slot.generation;
        self.send_in_dialog(number, Method::Ack);
        if self.config.hold.is_zero() {
            self.hang_up(now, number);
        } else {
            let (step, action) = (Step::Talking, Action::HangUp);
            self.timers.arm(now, TIMER_HOLD, Timer { slot: number, generation, step, action });
        }
        Ok(())
    }

    fn hang_up(&mut self, now: Time, number: u32) {
        let Some(slot) = self.slots.get_mut(index(number)) else { return };
        slot.step = Step::HangingUp;
        slot.bye_sent = now;
        let generation = slot.generation;
        self.send_in_dialog(number, Method::Bye);
        self.arm_request(now, number, generation, Step::HangingUp);
    }

    fn send_in_dialog(&mut self, number: u32, method: Method) {
        let Some(slot) = self.slots.get(index(number)) else { return };
        let Some(line) = self.lines.get_mut(slot.line) else { return };
        let (name, cseq, mark) = method.words();
        let id = call_id(number, slot.generation);
        let dialog = &slot.dialog;
        let hop = dialog.hop.unwrap_or(self.config.target);
        line.outbox.message(hop, |out| {
            for part in [name, b" ", &dialog.uri, b" SIP/2.0\r\nVia: ", line.via.as_bytes()] {
                out.extend_from_slice(part);
            }
            out.extend_from_slice(&id.0);
            out.extend_from_slice(mark);
            out.extend_from_slice(b";rport\r\n");
            out.extend_from_slice(&dialog.lines);
            out.extend_from_slice(cseq);
            out.extend_from_slice(b"Max-Forwards: 70\r\nContent-Length: 0\r\n\r\n");
        });
    }

    fn acknowledge_refusal(&mut self, number: u32, answer: &Answer<'_>) {
        let Some(slot) = self.slots.get(index(number)) else { return };
        let Some(line) = self.lines.get_mut(slot.line) else { return };
        let id = call_id(number, slot.generation);
        // Same branch, route and target as the INVITE (RFC 3261 §17.1.1.3).
        line.outbox.message(self.config.target, |out| {
            line.refusal_ack.write(&id, out);
            out.extend_from_slice(answer.to_line);
            out.extend_from_slice(b"Content-Length: 0\r\n\r\n");
        });
    }

    fn fail(&mut self, now: Time, number: u32, failure: Failure) {
        let Some(slot) = self.slots.get(index(number)) else { return };
        *self.calls.failed.entry(failure).or_default() += 1;
        if self.calls.lost.len() < LOST_MAX {
            let lost = Lost { started: slot.scheduled, ended: now, failure, node: slot.node };
            self.calls.lost.push(lost);
        }
        self.release(number);
    }

    fn release(&mut self, number: u32) {
        if let Some(slot) = self.slots.get_mut(index(number)) {
            slot.step = Step::Free;
            self.free.push(number);
            self.calls.in_progress -= 1;
        }
    }
}

#[derive(Clone, Copy)]
enum Method {
    Ack,
    Bye,
}

impl Method {
    /// Name, CSeq line, and what tells its branch from that of the INVITE.
    fn words(self) -> (&'static [u8], &'static [u8], &'static [u8]) {
        match self {
            Self::Ack => (b"ACK", b"CSeq: 1 ACK\r\n", b"a"),
            Self::Bye => (b"BYE", b"CSeq: 2 BYE\r\n", b"b"),
        }
    }
}

fn call_id(slot: u32, generation: u32) -> Id {
    Id::new(u64::from(generation) << 32 | u64::from(slot))
}

fn index(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// When call number `count` is due after the first one.
fn due_after(count: u64, rate: f64) -> Duration {
    let nanos = u128::from(count) * 1_000_000_000_000 / u128::from(rate_millis(rate));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped before")]
fn rate_millis(rate: f64) -> u64 {
    (rate * 1000.0).clamp(1.0, 1e12) as u64
}

/// RFC 3261 §17.1.1.1.
pub const T1: Duration = Duration::from_millis(500);
/// T1 to 32 * T1; the next doubling lies behind the time-out.
const DOUBLINGS: u32 = 6;
/// T2 = 8 * T1.
const DOUBLINGS_TO_T2: usize = 3;
const TIMER_GIVE_UP: usize = 0;
const TIMER_HOLD: usize = 1;
const TIMER_T1: usize = 2;
const CALLS_PER_POLL_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: &str = "10.0.0.9:5060";
    const LOCAL: &str = "10.0.0.1:6000";

    fn caller(change: impl FnOnce(&mut CallerConfig)) -> Caller {
        let mut config = CallerConfig::new(TARGET.parse().unwrap(), Pace::Closed(1));
        config.calls_max = Some(1);
        change(&mut config);
        Caller::new(config, "saltsalt", &[LOCAL.parse().unwrap()])
    }

    fn sent(caller: &mut Caller) -> Vec<(String, SocketAddr)> {
        let outbox = &mut caller.lines()[0].outbox;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let sent = outbox.messages().map(|(bytes, to)| (text(bytes), to)).collect();
        outbox.clear();
        sent
    }

    fn line<'a>(message: &'a str, name: &str) -> &'a str {
        message.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{message}"))
    }

    /// A response to `request` with further lines.
    fn response(request: &str, status: u16, more: &str) -> Vec<u8> {
        let mut text = format!("SIP/2.0 {status} X\r\n");
        for name in ["Via", "From", "Call-ID", "CSeq"] {
            text.push_str(&format!("{}\r\n", line(request, name)));
        }
        let to = line(request, "To");
        let tag = if to.contains("tag=") { "" } else { ";tag=0a0000021389-00000001" };
        text.push_str(&format!("{to}{tag}\r\n{more}Content-Length: 0\r\n\r\n"));
        text.into_bytes()
    }

    const DIALOG: &str = "Record-Route: <sip:10.0.0.8:5065;lr;p=1,2>, <sip:10.0.0.9:5062;lr>\r\n\
        Contact: \"N\" <sip:n@10.0.0.2:5001>;q=1\r\n";

    #[test]
    fn an_invite_has_exactly_the_length_asked_for() {
        for bytes in [900, 901, 1200, 4000] {
            let mut caller = caller(|config| config.invite_bytes = bytes);
            caller.poll(Time::ZERO);
            let invites = sent(&mut caller);
            assert_eq!(invites.len(), 1);
            let (invite, to) = &invites[0];
            assert_eq!(invite.len(), bytes);
            assert_eq!(*to, TARGET.parse().unwrap());
            let message = Message::parse(invite.as_bytes()).unwrap();
            let length = line(invite, "Content-Length: ").rsplit_once(' ').unwrap().1;
            assert_eq!(length, message.body.len().to_string());
        }
    }

    #[test]
    fn ack_and_bye_follow_the_route_set_in_reverse() {
        let mut caller = caller(|_| {});
        caller.poll(Time::ZERO);
        let invite = sent(&mut caller).remove(0).0;
        caller.handle(Time::from_millis(1), 0, &response(&invite, 180, ""));
        caller.handle(Time::from_millis(2), 0, &response(&invite, 200, DIALOG));
        let requests = sent(&mut caller);
        assert_eq!(requests.len(), 2);
        for ((request, to), method) in requests.iter().zip(["ACK", "BYE"]) {
            assert_eq!(*to, "10.0.0.9:5062".parse().unwrap());
            let first = format!("{method} sip:n@10.0.0.2:5001 SIP/2.0");
            assert_eq!(request.lines().next(), Some(&first[..]));
            let routes: Vec<_> = request.lines().filter(|it| it.starts_with("Route:")).collect();
            assert_eq!(
                routes,
                ["Route: <sip:10.0.0.9:5062;lr>", "Route: <sip:10.0.0.8:5065;lr;p=1,2>"]
            );
            for name in ["From", "Call-ID"] {
                assert_eq!(line(request, name), line(&invite, name));
            }
            assert!(line(request, "To").ends_with(";tag=0a0000021389-00000001"));
        }
        let (ack, bye) = (&requests[0].0, &requests[1].0);
        assert_eq!(line(ack, "CSeq"), "CSeq: 1 ACK");
        assert_eq!(line(bye, "CSeq"), "CSeq: 2 BYE");
        let branches = [&invite, ack, bye].map(|request| line(request, "Via"));
        assert!(branches[0] != branches[1] && branches[1] != branches[2]);
        assert!(branches.iter().all(|via| via.contains(";branch=z9hG4bK")));

        caller.handle(Time::from_millis(5), 0, &response(bye, 200, ""));
        assert_eq!((caller.calls.completed, caller.calls.in_progress), (1, 0));
        assert_eq!(caller.per_node, BTreeMap::from([("10.0.0.2:5001".parse().unwrap(), 1)]));
        let Latencies { ringing, answer, hangup } = &caller.latencies;
        assert_eq!([ringing.max(), answer.max(), hangup.max()].map(|it| it / 1000), [1, 2, 3]);
    }

    #[test]
    fn an_answer_that_comes_again_is_acknowledged_again() {
        let mut caller = caller(|config| config.hold = Duration::from_secs(1));
        caller.poll(Time::ZERO);
        let invite = sent(&mut caller).remove(0).0;
        let answer = response(&invite, 200, DIALOG);
        caller.handle(Time::ZERO, 0, &answer);
        let first = sent(&mut caller);
        caller.handle(Time::from_millis(500), 0, &answer);
        assert_eq!(sent(&mut caller), first);
        caller.poll(Time::from_millis(1000));
        assert!(sent(&mut caller)[0].0.starts_with("BYE "));
    }

    #[test]
    fn a_refusal_is_acknowledged_in_the_transaction_of_the_invite() {
        let mut caller = caller(|_| {});
        caller.poll(Time::ZERO);
        let invite = sent(&mut caller).remove(0).0;
        caller.handle(Time::ZERO, 0, &response(&invite, 503, ""));
        let (ack, to) = sent(&mut caller).remove(0);
        assert_eq!(to, TARGET.parse().unwrap());
        assert_eq!(ack.lines().next(), Some("ACK sip:service@10.0.0.9:5060 SIP/2.0"));
        assert_eq!(line(&ack, "Via"), line(&invite, "Via"));
        assert_eq!(line(&ack, "CSeq"), "CSeq: 1 ACK");
        assert!(line(&ack, "To").contains(";tag="));
        assert_eq!(caller.calls.failed, BTreeMap::from([(Failure::Refused(503), 1)]));
    }

    /// Milliseconds at which anything is sent within a minute.
    fn times(caller: &mut Caller) -> Vec<u64> {
        let mut times = Vec::new();
        for millis in (0..60_000).step_by(100) {
            caller.poll(Time::from_millis(millis));
            times.extend(sent(caller).iter().map(|_| millis));
        }
        times
    }

    #[test]
    fn invite_is_sent_again_with_doubling_until_given_up() {
        let mut silent = caller(|_| {});
        assert_eq!(times(&mut silent), [0, 500, 1500, 3500, 7500, 15_500, 31_500]);
        assert_eq!(silent.calls.failed, BTreeMap::from([(Failure::InviteTimeout, 1)]));
        assert_eq!(silent.calls.lost[0].ended, Time::from_millis(32_000));
        assert!(silent.finished());

        let mut off = caller(|config| config.retransmit = false);
        assert_eq!(times(&mut off), [0]);

        let mut proceeding = caller(|_| {});
        proceeding.poll(Time::ZERO);
        let invite = sent(&mut proceeding).remove(0).0;
        proceeding.handle(Time::ZERO, 0, &response(&invite, 100, ""));
        assert_eq!(times(&mut proceeding), [0u64; 0]);
    }

    #[test]
    fn bye_is_sent_again_no_slower_than_t2() {
        let mut caller = caller(|_| {});
        caller.poll(Time::ZERO);
        let invite = sent(&mut caller).remove(0).0;
        caller.handle(Time::ZERO, 0, &response(&invite, 200, DIALOG));
        sent(&mut caller);
        let expected = [500, 1500, 3500, 7500, 11_500, 15_500, 19_500, 23_500, 27_500, 31_500];
        assert_eq!(times(&mut caller), expected);
        assert_eq!(caller.calls.failed, BTreeMap::from([(Failure::ByeTimeout, 1)]));
    }

    #[test]
    fn an_open_loop_counts_latency_from_when_the_call_was_due() {
        let mut caller = caller(|config| {
            config.pace = Pace::Open(1000.0);
            config.calls_max = Some(10);
        });
        assert_eq!(caller.poll(Time::ZERO), Some(Time::from_millis(1)));
        sent(&mut caller);
        // A stall of whoever drives the caller: five calls are due, the first of them for 4 ms.
        caller.poll(Time::from_millis(5));
        let invites = sent(&mut caller);
        assert_eq!(invites.len(), 5);
        caller.handle(Time::from_millis(6), 0, &response(&invites[0].0, 180, ""));
        assert_eq!(caller.latencies.ringing.max() / 1000, 5);
        assert_eq!(caller.lateness.max() / 1000, 4);
    }

    #[test]
    fn a_closed_loop_keeps_its_window_full() {
        let mut caller = caller(|config| {
            config.pace = Pace::Closed(3);
            config.calls_max = None;
        });
        caller.poll(Time::ZERO);
        let invites = sent(&mut caller);
        assert_eq!(invites.len(), 3);
        caller.handle(Time::ZERO, 0, &response(&invites[1].0, 486, ""));
        sent(&mut caller);
        caller.poll(Time::ZERO);
        assert_eq!(sent(&mut caller).len(), 1);
        // The slot is used again; what still comes for its old call is not mistaken for the new one.
        caller.handle(Time::ZERO, 0, &response(&invites[1].0, 200, DIALOG));
        assert_eq!(caller.calls.stray, 1);
        assert!(sent(&mut caller).is_empty());
    }

    #[test]
    fn damaged_answers_are_counted_and_change_nothing() {
        let mut caller = caller(|_| {});
        caller.poll(Time::ZERO);
        let invite = sent(&mut caller).remove(0).0;
        let good = response(&invite, 200, DIALOG);
        let mut state = 7u64;
        for round in 0..20_000 {
            let mut bytes = good.clone();
            for _ in 0..3 {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let at = usize::try_from(state >> 8).unwrap() % bytes.len();
                bytes[at] = state.to_le_bytes()[0];
                if round % 3 == 0 {
                    bytes.truncate(at + 1);
                }
            }
            caller.handle(Time::ZERO, 0, &bytes);
            caller.poll(Time::ZERO);
            sent(&mut caller);
        }
        let calls = &caller.calls;
        assert!(calls.malformed > 1000, "{calls:?}");
        assert_eq!(calls.started, calls.completed + calls.in_progress + calls.failed_total());
    }
}
