//! Whether static nodes live: OPTIONS at intervals, answers counted (`sip.md` 4.6).
//!
//! A state machine without sockets. Writes whole requests (RFC 3261 §8.1.1, §11) that any SIP server
//! answers, and repeats them on UDP as a non-INVITE client transaction does (§17.1.2). Reads no more of
//! a response than its status and our branch.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use protocols::sip::Transport;
use protocols::time::Time;

use crate::config::Probe;
use crate::node::NodeKey;

/// What probes say of a node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Pulse {
    /// It answers.
    Live,
    /// It answers 503: it lives, but asks for no more.
    Full,
    /// It does not answer.
    Dead,
}

/// One message to send.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ProbeAction {
    /// The node.
    pub node: NodeKey,
    /// Where it listens.
    pub to: SocketAddr,
    /// By what. On streams: send on a connection to `to`, opened if there is none.
    pub transport: Transport,
    /// The whole message.
    pub bytes: Vec<u8>,
}

/// Probes every static node. Owned by the control executor.
///
/// A node that was never heard of lives with its first answer; one that died needs `rise` of them in a
/// row. `fall` failures in a row make a live one dead.
#[derive(Debug)]
pub struct Prober {
    seed: u64,
    local: Local,
    probe: Probe,
    targets: BTreeMap<NodeKey, Target>,
    timers: BTreeSet<(Time, NodeKey)>,
    /// Changes that were not fetched yet; the last one of each node counts.
    pulses: BTreeMap<NodeKey, Pulse>,
}

/// Where answers to probes come back: our probing sockets.
#[derive(Clone, Copy, Debug)]
pub struct Local {
    /// For nodes with IPv4 addresses.
    pub v4: SocketAddr,
    /// For nodes with IPv6 addresses.
    pub v6: SocketAddr,
}

#[derive(Debug)]
struct Target {
    to: SocketAddr,
    transport: Transport,
    /// `None`: no probe has decided yet.
    pulse: Option<Pulse>,
    /// In a row.
    answers: u32,
    /// In a row.
    failures: u32,
    /// Counts probes; the CSeq.
    sequence: u32,
    /// When the last probe began.
    began: Time,
    /// A probe is under way.
    waiting: Option<Waiting>,
    timer: Time,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    /// Then it has failed.
    deadline: Time,
    /// From the last repetition to the next; streams repeat nothing.
    interval: Duration,
    /// In the Via: who can write it has seen the probe.
    branch: u64,
}

impl Prober {
    /// Probes nobody yet. `seed` makes our branches unguessable: draw it at random.
    pub fn new(seed: u64, local: Local, probe: Probe) -> Prober {
        Prober {
            seed,
            local,
            probe,
            targets: BTreeMap::new(),
            timers: BTreeSet::new(),
            pulses: BTreeMap::new(),
        }
    }

    /// Probes exactly these nodes from now on, new ones at once; see [`crate::registry::Registry::probed`].
    /// What is known of the others is told again: the registry may have forgotten it.
    pub fn configure(
        &mut self,
        now: Time,
        probe: Probe,
        nodes: impl Iterator<Item = (NodeKey, SocketAddr, Transport)>,
    ) {
        self.probe = probe;
        let mut old = std::mem::take(&mut self.targets);
        self.timers.clear();
        for (key, to, transport) in nodes {
            let mut target = old.remove(&key).unwrap_or(Target {
                to,
                transport,
                pulse: None,
                answers: 0,
                failures: 0,
                sequence: 0,
                began: now,
                waiting: None,
                timer: now,
            });
            target.timer = target.timer.min(now + probe.interval); // it may have been longer
            self.timers.insert((target.timer, key));
            if let Some(pulse) = target.pulse {
                self.pulses.entry(key).or_insert(pulse);
            }
            self.targets.insert(key, target);
        }
        self.pulses.retain(|key, _| self.targets.contains_key(key));
    }

    /// The next message to send. Call until `None`, then fetch [`Prober::poll_pulse`].
    pub fn poll_action(&mut self, now: Time) -> Option<ProbeAction> {
        while let Some((at, key)) = self.timers.first().copied()
            && at <= now
        {
            self.timers.pop_first();
            let Some(target) = self.targets.get_mut(&key) else { continue };
            let waiting = match target.waiting {
                Some(it) if it.deadline <= now => {
                    self.decide(now, key, Pulse::Dead);
                    continue;
                }
                Some(it) => Waiting { interval: (it.interval * 2).min(T2), ..it },
                None => {
                    target.sequence = target.sequence % SEQUENCE_MAX + 1;
                    target.began = now;
                    let said = [key.0.to_be_bytes(), u64::from(target.sequence).to_be_bytes()];
                    let branch = crate::balance::hash(self.seed, said.as_flattened());
                    Waiting { deadline: now + self.probe.timeout, interval: T1, branch }
                }
            };
            target.waiting = Some(waiting);
            target.timer = match target.transport.is_stream() {
                true => waiting.deadline,
                false => waiting.deadline.min(now + waiting.interval),
            };
            self.timers.insert((target.timer, key));
            let (to, transport) = (target.to, target.transport);
            let bytes = target.request(key, waiting, &self.local);
            return Some(ProbeAction { node: key, to, transport, bytes });
        }
        None
    }

    /// Something arrived on a probing socket. Whatever is not the answer to a probe under way is ignored.
    pub fn handle_response(&mut self, now: Time, bytes: &[u8]) {
        let Some((status, key, branch)) = answer(bytes) else { return };
        let Some(target) = self.targets.get_mut(&key) else { return };
        let Some(waiting) = target.waiting.as_mut().filter(|it| it.branch == branch) else {
            return;
        };
        match status {
            100..=199 => waiting.interval = T2,
            503 => self.decide(now, key, Pulse::Full),
            _ => self.decide(now, key, Pulse::Live),
        }
    }

    /// The message could not be sent, or the node refused it or its connection.
    pub fn handle_failure(&mut self, now: Time, node: NodeKey) {
        if self.targets.get(&node).is_some_and(|it| it.waiting.is_some()) {
            self.decide(now, node, Pulse::Dead);
        }
    }

    /// When to call [`Prober::poll_action`] again.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// The next node whose pulse changed, for [`crate::registry::Registry::handle_pulse`].
    pub fn poll_pulse(&mut self) -> Option<(NodeKey, Pulse)> {
        self.pulses.pop_first()
    }

    /// One probe ended like this.
    fn decide(&mut self, now: Time, key: NodeKey, heard: Pulse) {
        let Some(target) = self.targets.get_mut(&key) else { return };
        self.timers.remove(&(target.timer, key));
        target.waiting = None;
        target.timer = (target.began + self.probe.interval.max(INTERVAL_MIN)).max(now);
        self.timers.insert((target.timer, key));
        let enough = if heard == Pulse::Dead {
            (target.answers, target.failures) = (0, target.failures.saturating_add(1));
            target.failures >= self.probe.fall
        } else {
            (target.answers, target.failures) = (target.answers.saturating_add(1), 0);
            target.pulse != Some(Pulse::Dead) || target.answers >= self.probe.rise
        };
        if enough && target.pulse != Some(heard) {
            target.pulse = Some(heard);
            self.pulses.insert(key, heard);
        }
    }
}

impl Target {
    fn request(&self, key: NodeKey, waiting: Waiting, local: &Local) -> Vec<u8> {
        let Target { to, transport, sequence, .. } = self;
        let local = match to.ip() {
            IpAddr::V4(_) => local.v4,
            IpAddr::V6(_) => local.v6,
        };
        let (via, param) = (transport.as_via(), transport.as_param());
        let (key, branch) = (key.0, waiting.branch);
        format!(
            "OPTIONS sip:{to};transport={param} SIP/2.0\r\n\
             Via: SIP/2.0/{via} {local};rport;branch={BRANCH_PREFIX}{key:016x}{branch:016x}\r\n\
             Max-Forwards: 70\r\n\
             From: <sip:trunkline@{local}>;tag={key:016x}\r\n\
             To: <sip:{to}>\r\n\
             Call-ID: {key:016x}{branch:016x}\r\n\
             CSeq: {sequence} OPTIONS\r\n\
             Contact: <sip:trunkline@{local};transport={param}>\r\n\
             Accept: application/sdp\r\n\
             Content-Length: 0\r\n\r\n"
        )
        .into_bytes()
    }
}

/// Status of a response to one of our probes, with the node and the secret of its branch (RFC 3261
/// §17.1.3). Values that a server may not change are found without knowing more of the message.
fn answer(bytes: &[u8]) -> Option<(u16, NodeKey, u64)> {
    let text = std::str::from_utf8(bytes.get(..bytes.len().min(RESPONSE_BYTES_MAX))?)
        .or_else(|error| std::str::from_utf8(bytes.get(..error.valid_up_to()).unwrap_or(b"")))
        .ok()?;
    let mut lines = text.split("\r\n");
    let status = lines.next()?.strip_prefix("SIP/2.0 ")?.get(..3)?.parse().ok()?;
    let via = lines.take_while(|it| !it.is_empty()).find_map(|it| {
        let (name, value) = it.split_once(':')?;
        let name = name.trim_end();
        (name.eq_ignore_ascii_case("via") || name.eq_ignore_ascii_case("v")).then_some(value)
    })?;
    let (_, branch) = via.split_once(BRANCH_PREFIX)?;
    let (key, secret) = (branch.get(..16)?, branch.get(16..32)?);
    let hex = |it| u64::from_str_radix(it, 16).ok();
    Some((status, NodeKey(hex(key)?), hex(secret)?))
}

/// Magic cookie (RFC 3261 §8.1.1.7), then what tells probes from calls in a trace.
const BRANCH_PREFIX: &str = "z9hG4bKprobe";

/// First repetition of a request on UDP (RFC 3261 §17.1.1.1).
const T1: Duration = Duration::from_millis(500);
/// Longest time between repetitions.
const T2: Duration = Duration::from_secs(4);

/// Whatever the operator wrote: a node must not be drowned in probes.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

/// CSeq numbers stay below 2^31 (RFC 3261 §8.1.1.5).
const SEQUENCE_MAX: u32 = (1 << 31) - 1;

/// The Via of a response stands within this much of its beginning.
const RESPONSE_BYTES_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    const PROBE: Probe = Probe {
        interval: Duration::from_secs(5),
        timeout: Duration::from_secs(2),
        rise: 2,
        fall: 3,
    };
    const NODE: NodeKey = NodeKey(0xab);

    fn prober(transport: Transport) -> Prober {
        let local =
            Local { v4: "10.0.0.9:4000".parse().unwrap(), v6: "[fd00::9]:4000".parse().unwrap() };
        let mut it = Prober::new(7, local, PROBE);
        let to = "10.0.0.1:5060".parse().unwrap();
        it.configure(Time::ZERO, PROBE, [(NODE, to, transport)].into_iter());
        it
    }

    /// What a server answers to `request`.
    fn response(request: &[u8], status: &str) -> Vec<u8> {
        let request = String::from_utf8(request.to_vec()).unwrap();
        let line = |name: &str| request.lines().find(|it| it.starts_with(name)).unwrap().to_owned();
        let via = line("Via")
            .replacen("Via: ", "v : ", 1)
            .replace(";rport", ";rport=4000;received=10.0.0.9");
        let rest =
            [line("From"), line("To") + ";tag=1", line("Call-ID"), line("CSeq")].join("\r\n");
        format!("SIP/2.0 {status}\r\n{via}\r\n{rest}\r\nContent-Length: 0\r\n\r\n").into_bytes()
    }

    /// Plays one probe per entry: a status line's rest, or nothing for silence. What changed, by probe.
    fn play(it: &mut Prober, now: &mut Time, answers: &[&str]) -> Vec<Option<Pulse>> {
        let mut pulses = Vec::new();
        for status in answers {
            *now = it.poll_timeout().unwrap();
            let action = it.poll_action(*now).unwrap();
            if status.is_empty() {
                while it.targets[&NODE].waiting.is_some() {
                    *now = it.poll_timeout().unwrap();
                    it.poll_action(*now);
                }
            } else {
                it.handle_response(*now, &response(&action.bytes, status));
            }
            pulses.push(it.poll_pulse().map(|(_, pulse)| pulse));
        }
        pulses
    }

    #[test]
    fn a_probe_is_a_whole_request() {
        let action = prober(Transport::Udp).poll_action(Time::ZERO).unwrap();
        assert_eq!((action.node, action.transport), (NODE, Transport::Udp));
        let branch =
            crate::balance::hash(7, &[0xab_u64.to_be_bytes(), 1u64.to_be_bytes()].concat());
        let want = format!(
            "OPTIONS sip:10.0.0.1:5060;transport=udp SIP/2.0\r\n\
             Via: SIP/2.0/UDP 10.0.0.9:4000;rport;branch=z9hG4bKprobe00000000000000ab{branch:016x}\r\n\
             Max-Forwards: 70\r\n\
             From: <sip:trunkline@10.0.0.9:4000>;tag=00000000000000ab\r\n\
             To: <sip:10.0.0.1:5060>\r\n\
             Call-ID: 00000000000000ab{branch:016x}\r\n\
             CSeq: 1 OPTIONS\r\n\
             Contact: <sip:trunkline@10.0.0.9:4000;transport=udp>\r\n\
             Accept: application/sdp\r\n\
             Content-Length: 0\r\n\r\n"
        );
        assert_eq!(String::from_utf8(action.bytes).unwrap(), want);
    }

    #[test]
    fn rise_and_fall_decide() {
        use Pulse::{Dead, Full, Live};
        const OK: &str = "200 OK";
        type Row = (&'static str, &'static [&'static str], &'static [Option<Pulse>]);
        let cases: &[Row] = &[
            ("the first answer is enough", &[OK, OK], &[Some(Live), None]),
            ("any answer is one", &["404 Not Found"], &[Some(Live)]),
            (
                "two failures are not three",
                &[OK, "", "", OK, "", ""],
                &[Some(Live), None, None, None, None, None],
            ),
            ("three are", &[OK, "", "", "", ""], &[Some(Live), None, None, Some(Dead), None]),
            (
                "the dead need two answers in a row",
                &["", "", "", OK, "", OK, OK],
                &[None, None, Some(Dead), None, None, None, Some(Live)],
            ),
            (
                "full is not dead",
                &[OK, "503 Busy", "503 Busy", OK, "503 Busy", "", "", ""],
                &[Some(Live), Some(Full), None, Some(Live), Some(Full), None, None, Some(Dead)],
            ),
            (
                "back, but full",
                &["", "", "", "503 Busy", "503 Busy"],
                &[None, None, Some(Dead), None, Some(Full)],
            ),
        ];
        for (name, answers, want) in cases {
            for transport in [Transport::Udp, Transport::Tcp] {
                let mut now = Time::ZERO;
                assert_eq!(play(&mut prober(transport), &mut now, answers), *want, "{name}");
            }
        }
    }

    #[test]
    fn datagrams_are_repeated_until_the_timeout_and_streams_are_not() {
        let sent = |transport, limit| {
            let mut it = prober(transport);
            let (mut times, mut messages) = (Vec::new(), Vec::new());
            while let Some(now) = it.poll_timeout()
                && now < Time::from_millis(limit)
            {
                if let Some(action) = it.poll_action(now) {
                    times.push(now.as_millis());
                    messages.push(action.bytes);
                }
            }
            messages.dedup();
            (times, messages.len())
        };
        assert_eq!(sent(Transport::Udp, 5_000), (vec![0, 500, 1_500], 1));
        assert_eq!(sent(Transport::Tls, 5_000), (vec![0], 1));
        assert_eq!(sent(Transport::Tcp, 10_001), (vec![0, 5_000, 10_000], 3));
    }

    #[test]
    fn a_refusal_counts_at_once_and_the_next_probe_keeps_its_time() {
        let mut it = prober(Transport::Tcp);
        for round in 0..3 {
            let now = it.poll_timeout().unwrap();
            assert_eq!(now, Time::from_millis(round * 5_000));
            it.poll_action(now).unwrap();
            it.handle_failure(now, NODE);
            it.handle_failure(now, NODE); // nothing is under way any more
        }
        assert_eq!(it.poll_pulse(), Some((NODE, Pulse::Dead)));
    }

    #[test]
    fn only_the_answer_to_the_probe_under_way_counts() {
        let mut it = prober(Transport::Udp);
        let first = response(&it.poll_action(Time::ZERO).unwrap().bytes, "200 OK");
        let mut forged = first.clone();
        let secret = forged.windows(5).position(|it| it == b"probe").unwrap() + 5 + 16;
        forged[secret] = if forged[secret] == b'0' { b'1' } else { b'0' };
        let now = Time::from_millis(1);
        for bytes in [
            &forged[..],
            b"",
            b"SIP/2.0 200 OK\r\n\r\n",
            &first[..40],
            b"OPTIONS sip:a SIP/2.0\r\n\r\n",
        ] {
            it.handle_response(now, bytes);
            assert_eq!(it.poll_pulse(), None, "{}", String::from_utf8_lossy(bytes));
        }
        let trying = [b"SIP/2.0 100 Trying", &first[14..]].concat();
        it.handle_response(now, &trying);
        assert_eq!(it.poll_pulse(), None, "provisional");
        it.handle_response(now, &first);
        assert_eq!(it.poll_pulse(), Some((NODE, Pulse::Live)));

        let now = it.poll_timeout().unwrap();
        it.poll_action(now).unwrap();
        it.handle_response(now, &first);
        assert!(it.targets[&NODE].waiting.is_some(), "an old answer ended a new probe");
    }

    #[test]
    fn cut_and_changed_answers_do_no_harm() {
        let mut it = prober(Transport::Udp);
        let answer = response(&it.poll_action(Time::ZERO).unwrap().bytes, "200 OK");
        let mut seed = 0x1234_5678_9abc_def1u64;
        for _ in 0..20_000 {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            let mut bytes = answer.clone();
            let at = usize::try_from(seed >> 40).unwrap() % bytes.len();
            bytes[at] = seed.to_be_bytes()[0];
            bytes.truncate(usize::try_from(seed & 0xffff).unwrap() % (bytes.len() + 1));
            it.handle_response(Time::from_millis(1), &bytes);
        }
    }

    #[test]
    fn configuring_keeps_what_is_known_and_forgets_the_rest() {
        let mut it = prober(Transport::Udp);
        play(&mut it, &mut Time::ZERO.clone(), &["200 OK"]);
        let to = "10.0.0.2:5060".parse().unwrap();
        let now = Time::from_millis(100);
        let old = ("10.0.0.1:5060".parse().unwrap(), Transport::Udp);
        it.configure(
            now,
            PROBE,
            [(NODE, old.0, old.1), (NodeKey(2), to, Transport::Tcp)].into_iter(),
        );
        assert_eq!(it.poll_action(now).map(|it| it.node), Some(NodeKey(2)), "at once");
        assert_eq!(it.poll_action(now), None);
        assert_eq!(
            it.poll_pulse(),
            Some((NODE, Pulse::Live)),
            "for a registry that has forgotten it"
        );
        it.configure(now, PROBE, [].into_iter());
        assert_eq!(it.poll_timeout(), None);
    }
}
