//! Deterministic simulation: real relays and a real node table under a virtual clock and a seeded network
//! that loses, doubles, delays and reorders; nodes die, return, drain and are upgraded under way.
//!
//! Every decision is judged on the spot ([`Judge`]), what reaches callers is counted at the end. A failure
//! prints its seed; `SEED=n cargo test -p tests --test simulation -- --nocapture` replays it with a trace,
//! `SEEDS=n` plays more of them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use engine::balance::{ALGORITHMS, Shard};
use engine::registry::{Registry, Rules};
use engine::relay::sip::Relay;
use engine::relay::{Again, Arrival, DropReason, Failure, Hop, Leg, Verdict};
use engine::snapshot::Snapshot;
use engine::stats::{Beats, Load, Process, Residence, Scrape, metrics};
use protocols::sip::Transport;
use protocols::time::Time;
use tests::Message;
use tests::sim::{
    Agent, Decision, Draw, EXTERNAL, Effects, INTERNAL, Judge, Network, Stage, Timer, Weather,
    node_address,
};

#[test]
fn whatever_the_network_does_calls_stay_where_they_belong() {
    let number = |name: &str| std::env::var(name).ok().map(|it| it.parse::<u64>().unwrap());
    if let Some(seed) = number("SEED") {
        return play(seed, true);
    }
    for seed in 0..number("SEEDS").unwrap_or(256) {
        let played = std::panic::catch_unwind(|| play(seed, false));
        if played.is_err() {
            panic!("seed {seed} failed; SEED={seed} replays it with a trace");
        }
    }
}

fn play(seed: u64, trace: bool) {
    let mut world = World::new(seed, trace);
    world.run();
    world.audit();
}

/// What kind of world a seed makes.
#[derive(Clone, Copy, Debug)]
struct Profile {
    algorithm: &'static str,
    two_legs: bool,
    shards: usize,
    scattered: bool,
    weather: Weather,
    /// Nothing is lost and nobody dies: every call must complete.
    calm: bool,
    /// Nodes join, drain and are upgraded.
    changes: bool,
    /// Nodes die and return, strangers forge.
    deaths: bool,
}

impl Profile {
    fn of(seed: u64, draw: &mut Draw) -> Profile {
        let algorithm = usize::try_from(seed / 4).unwrap() % ALGORITHMS.len();
        let lossy = Weather { lost: draw.below(20), twice: draw.below(15), late: draw.below(10) };
        let calm = Weather { lost: 0, twice: 0, late: 0 };
        Profile {
            algorithm: ALGORITHMS[algorithm].name,
            two_legs: draw.percent(70),
            shards: 1 + draw.below(4),
            scattered: draw.percent(30),
            weather: if seed % 4 < 2 { calm } else { lossy },
            calm: seed % 4 < 2,
            changes: !seed.is_multiple_of(4),
            deaths: seed % 4 == 3,
        }
    }

    /// Calls are found by what one shard remembers of each, not by arithmetic.
    fn remembers(&self) -> bool {
        !self.scattered
            && matches!(
                self.algorithm,
                "CallIDAffinityBalancerAlgorithm" | "ClusterSubdomainAffinityAlgorithm"
            )
    }
}

/// How a node stands, in truth.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Up,
    /// Takes no notice.
    Silent,
    /// Its host says that nobody listens.
    Refusing,
}

struct PretendNode {
    number: u16,
    version: i32,
    incarnation: u32,
    state: State,
    leaving: bool,
    died: Time,
    /// A beat or a join reached the table.
    heard: Option<Time>,
    /// It may still be avoided for having refused.
    avoided_until: Time,
}

impl PretendNode {
    /// A beat reached the table, where a stranger that is leaving is not welcome.
    fn hear(&mut self, now: Time) {
        let is_known = self.heard.is_some_and(|it| now.since(it) < NODE_TIMEOUT);
        if is_known || !self.leaving {
            self.heard = Some(now);
        }
    }

    fn name(&self) -> String {
        format!("n{}v{}i{}", self.number, self.version, self.incarnation)
    }
}

struct PretendShard {
    relay: Relay,
    snapshot: Arc<Snapshot>,
    /// No table overtakes another.
    next_switch: Time,
}

/// A request on its way to a node, as the shard must have it when the node refuses.
#[derive(Clone, Debug)]
struct Origin {
    shard: usize,
    leg: Leg,
    arrival: Arrival,
    bytes: Vec<u8>,
    hop: Hop,
    attempts: u8,
}

#[derive(Clone, Debug)]
enum Event {
    Datagram { from: SocketAddr, to: SocketAddr, bytes: Vec<u8>, origin: Option<Box<Origin>> },
    Refused { to: SocketAddr, origin: Box<Origin> },
    Timer { agent: SocketAddr, name: String, timer: Timer },
    Switch { shard: usize, snapshot: Arc<Snapshot> },
    Tick,
    Beat(usize),
    Call { caller: usize, user: &'static str },
    Transaction { caller: usize, method: &'static str },
    NodeCall { node: usize, user: &'static str },
    Stranger,
    Die { node: usize, state: State },
    Return { node: usize, version: i32 },
    Drain { node: usize },
}

struct World {
    seed: u64,
    trace: bool,
    draw: Draw,
    profile: Profile,
    stage: Stage,
    net: Network<Event>,
    shards: Vec<PretendShard>,
    registry: Registry,
    published: Arc<Snapshot>,
    agents: BTreeMap<SocketAddr, Agent>,
    callers: Vec<SocketAddr>,
    nodes: Vec<PretendNode>,
    judge: Judge,
    /// Call-IDs with what their INVITE must be answered, where nothing is lost.
    expected: BTreeMap<String, u16>,
    /// When the last table change was published.
    settled: Time,
}

const NODE_TIMEOUT: Duration = Duration::from_millis(5_000);
const CHECK: Duration = Duration::from_millis(1_000);
const BEAT: Duration = Duration::from_millis(1_500);
const SUSPECT: Duration = Duration::from_millis(3_000);
/// A shard takes a new table over at most this long after it was made.
const SWITCH_MS: usize = 80;
/// Calls begin within this time; most of them are over long before the end.
const SCRIPT_MS: usize = 15_000;
const END: Time = Time::from_millis(75_000);
/// Where every other node answers from: not where it listens (RFC 3261 §18.2.2).
const ELSEWHERE: u16 = 40_000;
/// Hops after the first, as the shards do it.
const ATTEMPTS_MAX: u8 = 3;

impl World {
    fn new(seed: u64, trace: bool) -> World {
        let mut draw = Draw::new(seed);
        let profile = Profile::of(seed, &mut draw);
        let lines = format!(
            "algorithmClass=org.mobicents.tools.sip.balancer.{}\nshards={}\nreuseportSteering={}\n\
             nodeTimeout={}\nheartbeatInterval={}\nsuspectMillis={}\n",
            profile.algorithm,
            profile.shards,
            if profile.scattered { "random" } else { "hash" },
            NODE_TIMEOUT.as_millis(),
            CHECK.as_millis(),
            SUSPECT.as_millis(),
        );
        let stage = Stage::new(profile.two_legs, &lines);
        let rules = Rules::from(&stage.settings.config);
        let mut judge = Judge::new(profile.algorithm, profile.shards);
        judge.two_legs = profile.two_legs;
        judge.is_calm = profile.calm;
        judge.remembers = profile.remembers();
        let published = Arc::new(Snapshot::default());
        let shards = (0..profile.shards).map(|index| PretendShard {
            relay: stage.relay(Shard { index, scattered: profile.scattered }),
            snapshot: Arc::clone(&published),
            next_switch: Time::ZERO,
        });
        let mut world = World {
            seed,
            trace,
            profile,
            net: Network::new(),
            shards: shards.collect(),
            registry: Registry::new(Time::ZERO, rules, &BTreeMap::new()),
            published,
            agents: BTreeMap::new(),
            callers: Vec::new(),
            nodes: Vec::new(),
            judge,
            expected: BTreeMap::new(),
            settled: Time::ZERO,
            stage,
            draw,
        };
        world.say(|| format!("seed {seed}: {profile:?}"));
        world.people();
        world.script();
        world
    }

    #[allow(clippy::print_stdout)] // for whoever replays a seed
    fn say(&self, text: impl FnOnce() -> String) {
        if self.trace {
            println!("{:>9.3} {}", self.net.now().as_nanos() as f64 / 1e9, text());
        }
    }

    /// Callers, one of them behind a NAT, and the first nodes.
    fn people(&mut self) {
        for number in 0..4u16 {
            let name = format!("c{number}");
            let address = SocketAddr::from(([203, 0, 113, 10 + number as u8], 5062 + number));
            let mut caller = Agent::new(name.clone(), address, EXTERNAL);
            if number == 3 {
                caller.claimed = SocketAddr::from(([192, 168, 1, 7], 5060));
            }
            self.judge.callers.insert(name, address);
            self.agents.insert(address, caller);
            self.callers.push(address);
        }
        for number in 1..=u16::try_from(2 + self.draw.below(3)).unwrap() {
            self.join(number, 0);
        }
    }

    fn join(&mut self, number: u16, version: i32) {
        let node = PretendNode {
            number,
            version,
            incarnation: 0,
            state: State::Up,
            leaving: false,
            died: Time::ZERO,
            heard: None,
            avoided_until: Time::ZERO,
        };
        self.nodes.push(node);
        self.start(self.nodes.len() - 1);
        let delay = self.draw.millis(0, 50);
        self.net.after(delay, Event::Beat(self.nodes.len() - 1));
    }

    /// The node's process runs, without memory of an earlier one.
    fn start(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        (node.state, node.leaving, node.incarnation) = (State::Up, false, node.incarnation + 1);
        let (name, address) = (node.name(), node_address(node.number));
        let proxy = if self.profile.two_legs { INTERNAL } else { EXTERNAL };
        self.say(|| format!("{name} starts at {address}"));
        self.agents.insert(address, Agent::new(name, address, proxy));
    }

    /// What happens from outside, drawn in advance.
    fn script(&mut self) {
        self.net.after(CHECK, Event::Tick);
        let at = |draw: &mut Draw| draw.millis(500, SCRIPT_MS);
        // Where a table change may move a ringing call, nothing promises that its CANCEL arrives.
        let rings = !self.profile.changes || !self.profile.calm || self.profile.remembers();
        let users: &[&'static str] = if rings {
            &["answer", "answer", "hangup", "busy", "ring"]
        } else {
            &["answer", "hangup", "busy"]
        };
        for _ in 0..8 {
            let caller = self.draw.below(self.callers.len());
            let user = *self.draw.one(users);
            let when = at(&mut self.draw);
            self.net.after(when, Event::Call { caller, user });
        }
        for _ in 0..2 {
            let caller = self.draw.below(self.callers.len());
            let when = at(&mut self.draw);
            let method = *self.draw.one(&["REGISTER", "MESSAGE", "OPTIONS"]);
            self.net.after(when, Event::Transaction { caller, method });
        }
        for _ in 0..3 {
            let node = self.draw.below(self.nodes.len());
            let user = *self.draw.one(users);
            let when = at(&mut self.draw);
            self.net.after(when, Event::NodeCall { node, user });
        }
        if self.profile.changes {
            self.upgrade();
        }
        if self.profile.deaths {
            for _ in 0..2 {
                let node = self.draw.below(self.nodes.len());
                let state = if self.draw.percent(50) { State::Silent } else { State::Refusing };
                let when = at(&mut self.draw);
                self.net.after(when, Event::Die { node, state });
                let away = self.draw.millis(300, 15_000);
                let version = i32::from(self.draw.percent(50));
                self.net.after(when + away, Event::Return { node, version });
            }
            for _ in 0..8 {
                let when = self.draw.millis(0, SCRIPT_MS);
                self.net.after(when, Event::Stranger);
            }
        }
    }

    /// A rolling upgrade: a node of the next version joins, an old one drains; or just one more node.
    fn upgrade(&mut self) {
        let newcomer = u16::try_from(self.nodes.len() + 1).unwrap();
        let version = i32::from(self.draw.percent(60));
        self.nodes.push(PretendNode {
            number: newcomer,
            version,
            incarnation: 0,
            state: State::Silent,
            leaving: false,
            died: Time::ZERO,
            heard: None,
            avoided_until: Time::ZERO,
        });
        let node = self.nodes.len() - 1;
        let when = self.draw.millis(3_000, 8_000);
        self.net.after(when, Event::Return { node, version });
        self.net.after(when, Event::Beat(node));
        let node = self.draw.below(node);
        let later = self.draw.millis(500, 5_000);
        self.net.after(when + later, Event::Drain { node });
    }

    fn run(&mut self) {
        while let Some(event) = self.net.advance() {
            let now = self.net.now();
            if now > END {
                return;
            }
            let is_tick = matches!(event, Event::Tick);
            self.happen(event);
            if is_tick
                && now > Time::from_millis(SCRIPT_MS as u64 + 2_000)
                && !self.agents.values().any(Agent::is_busy)
            {
                return;
            }
        }
    }

    fn happen(&mut self, event: Event) {
        let now = self.net.now();
        match event {
            Event::Datagram { from, to, bytes, origin } => self.arrive(from, to, bytes, origin),
            Event::Refused { to, origin } => self.refused(to, *origin),
            Event::Timer { agent, name, timer } => {
                let node = self.nodes.iter().find(|it| node_address(it.number) == agent);
                if node.is_some_and(|it| it.state != State::Up) {
                    return;
                }
                let Some(it) = self.agents.get_mut(&agent).filter(|it| it.name == name) else {
                    return;
                };
                let mut effects = Effects::default();
                it.handle_timeout(timer, &mut self.draw, &mut effects);
                self.carry_out(agent, effects);
            }
            Event::Switch { shard, snapshot } => {
                self.say(|| format!("shard {shard} goes by table {}", snapshot.generation()));
                let it = &mut self.shards[shard];
                it.relay.handle_snapshot(&snapshot);
                it.snapshot = snapshot;
            }
            Event::Tick => {
                self.registry.handle_timeout(now);
                self.net.after(CHECK, Event::Tick);
            }
            Event::Beat(node) => self.beat(node),
            Event::Call { caller, user } => {
                let address = self.callers[caller];
                let uri = match self.draw.below(3) {
                    0 => format!("sip:{user}@{EXTERNAL}"),
                    _ => format!("sip:{user}@example.com"),
                };
                self.begin(address, "INVITE", &uri, user);
            }
            Event::Transaction { caller, method } => {
                let address = self.callers[caller];
                self.begin(address, method, "sip:example.com", "");
            }
            Event::NodeCall { node, user } => {
                let it = &self.nodes[node];
                // With one active node the others' responses go to that by design.
                if it.state == State::Up && !it.leaving && self.profile.algorithm != ACTIVE_STANDBY
                {
                    let caller = self.callers[self.draw.below(self.callers.len())];
                    let address = node_address(it.number);
                    self.begin(address, "INVITE", &format!("sip:{user}@{caller}"), user);
                }
            }
            Event::Stranger => self.stranger(),
            Event::Die { node, state } => {
                let it = &mut self.nodes[node];
                if it.state == State::Up {
                    it.died = now;
                }
                it.state = state;
                let name = it.name();
                self.say(|| format!("{name} dies: {state:?}"));
            }
            Event::Return { node, version } => {
                let it = &mut self.nodes[node];
                if it.state != State::Up {
                    // An upgrade in place takes longer than the old version is believed to live.
                    if it.incarnation == 0 || now.since(it.died) > NODE_TIMEOUT + 2 * CHECK {
                        it.version = version;
                    }
                    it.heard = None;
                    self.start(node);
                }
            }
            Event::Drain { node } => {
                let it = &mut self.nodes[node];
                it.leaving = true;
                let name = it.name();
                self.say(|| format!("{name} drains"));
                self.beat_once(node);
            }
        }
        self.publish();
    }

    fn begin(&mut self, address: SocketAddr, method: &str, uri: &str, user: &str) {
        let mut effects = Effects::default();
        let Some(agent) = self.agents.get_mut(&address) else { return };
        let call_id = agent.begin(method, uri, &mut effects);
        let status = match user {
            "busy" => 486,
            "ring" => 487,
            _ => 200,
        };
        self.expected.insert(call_id, status);
        self.carry_out(address, effects);
    }

    fn carry_out(&mut self, agent: SocketAddr, effects: Effects) {
        let Some(it) = self.agents.get(&agent) else { return };
        for (delay, timer) in effects.timers {
            self.net.after(delay, Event::Timer { agent, name: it.name.clone(), timer });
        }
        let is_odd = |it: &PretendNode| node_address(it.number) == agent && it.number % 2 == 1;
        let strays = self.nodes.iter().any(is_odd);
        for (to, bytes) in effects.sends {
            let is_answer = bytes.starts_with(b"SIP/");
            let port = if strays && is_answer { ELSEWHERE } else { agent.port() };
            self.send(SocketAddr::new(agent.ip(), port), to, bytes, None);
        }
    }

    fn send(
        &mut self,
        from: SocketAddr,
        to: SocketAddr,
        bytes: Vec<u8>,
        origin: Option<Box<Origin>>,
    ) {
        let line = self.trace.then(|| first_line(&bytes));
        let datagram = Event::Datagram { from, to, bytes, origin };
        if !self.net.carry(datagram, self.profile.weather, &mut self.draw) {
            self.say(|| format!("  lost {from} -> {to}: {}", line.unwrap_or_default()));
        }
    }

    fn arrive(
        &mut self,
        from: SocketAddr,
        to: SocketAddr,
        bytes: Vec<u8>,
        origin: Option<Box<Origin>>,
    ) {
        if to == EXTERNAL || (to == INTERNAL && self.profile.two_legs) {
            return self.decide(from, to, bytes);
        }
        if let Some(node) = self.nodes.iter().find(|it| node_address(it.number) == to)
            && node.state != State::Up
        {
            if let Some(origin) = origin.filter(|_| node.state == State::Refusing) {
                let delay = self.draw.millis(1, 20);
                self.net.after(delay, Event::Refused { to, origin });
            }
            return;
        }
        let Some(agent) = self.agents.get_mut(&to) else {
            self.fail(&format!("a datagram to {to}, where nobody ever was"), &bytes, b"");
        };
        let mut effects = Effects::default();
        agent.handle(from, &bytes, &mut self.draw, &mut effects);
        self.carry_out(to, effects);
    }

    /// The kernel hands a datagram to a shard.
    fn decide(&mut self, from: SocketAddr, to: SocketAddr, bytes: Vec<u8>) {
        let shards = self.shards.len();
        let shard = if self.profile.scattered {
            self.draw.below(shards)
        } else {
            let port = usize::from(from.port());
            let ip: usize = from.ip().to_string().bytes().map(usize::from).sum();
            (port + ip) % shards
        };
        let leg = if to == INTERNAL { Leg::Internal } else { Leg::External };
        let arrival = self.stage.arrival(self.net.now(), leg, Transport::Udp, from);
        let origin = Origin {
            shard,
            leg,
            arrival,
            bytes,
            hop: Hop::Datagram { from: arrival.listener, to },
            attempts: 0,
        };
        self.conclude(origin, None);
    }

    /// A datagram came back: the shard avoids the node and decides the message again.
    fn refused(&mut self, to: SocketAddr, origin: Origin) {
        let shard = &mut self.shards[origin.shard];
        if let Some((key, way)) = shard.relay.refused(to, Transport::Udp, &shard.snapshot) {
            let node = shard.snapshot.find(key).map(|it| shard.snapshot.node(it));
            if node.is_some_and(|it| !it.suspect.has(way)) {
                shard.snapshot = Arc::new(shard.snapshot.suspecting(key, way));
            }
        }
        let until = self.net.now() + SUSPECT + CHECK + Duration::from_millis(SWITCH_MS as u64);
        for node in self.nodes.iter_mut().filter(|it| node_address(it.number) == to) {
            node.avoided_until = until;
        }
        let shard = origin.shard;
        self.say(|| format!("{to} refused a datagram of shard {shard}"));
        self.conclude(origin, Some(to));
    }

    /// Decides, judges, and does what was decided. `failed`: the message comes back from there.
    fn conclude(&mut self, origin: Origin, failed: Option<SocketAddr>) {
        let now = self.net.now();
        let Origin { shard: index, leg, mut arrival, ref bytes, hop, attempts } = origin;
        arrival.now = now;
        let mut out = Vec::new();
        let shard = &mut self.shards[index];
        let snapshot = Arc::clone(&shard.snapshot);
        let again = if attempts > ATTEMPTS_MAX { Again::Nowhere } else { Again::Elsewhere };
        let verdict = match failed {
            None => shard.relay.handle(&arrival, bytes, &snapshot, &mut out),
            Some(_) => {
                let failed = Failure { hop: Some(hop), reason: DropReason::ConnectionGone, again };
                shard.relay.undelivered(&arrival, bytes, failed, &snapshot, &mut out)
            }
        };
        let mut reports = Vec::new();
        while let Some(report) = shard.relay.poll_report(now, &snapshot) {
            reports.push(report);
        }
        self.say(|| {
            let (line, source) = (first_line(bytes), arrival.source);
            let again = if failed.is_some() { " again" } else { "" };
            format!("shard {index}{again}: {source} {line} => {}", told(verdict, &out))
        });
        let decision = Decision {
            shard: index,
            snapshot: &snapshot,
            leg,
            arrival: &arrival,
            bytes,
            verdict,
            out: &out,
            failed,
            is_last: failed.is_some() && again == Again::Nowhere,
        };
        if let Err(broken) = self.judge.check(&decision) {
            self.fail(&format!("shard {index}: {broken}; {verdict:?}"), bytes, &out);
        }
        self.check_members(&snapshot);
        for report in reports {
            if let engine::relay::Report::Beat(said) = &report {
                let heard = self.nodes.iter_mut().find(|it| {
                    node_address(it.number).ip() == said.ip
                        && it.version == said.version.0
                        && said.session.as_deref() == Some(&it.incarnation.to_string())
                });
                if let Some(node) = heard {
                    node.hear(now);
                }
            }
            let _ = self.registry.handle_report(now, report);
        }
        match verdict {
            Verdict::Forward { hop: hop @ Hop::Datagram { from, to }, is_request, .. } => {
                let sender = self.stage.settings.listener(from).address;
                let may_go_again = is_request && snapshot.at(to, None, None).is_some();
                let again = || Box::new(Origin { hop, attempts: attempts + 1, ..origin });
                let origin = may_go_again.then(again);
                self.send(sender, to, out, origin);
            }
            Verdict::Reply { hop: Hop::Datagram { from, to } } => {
                let sender = self.stage.settings.listener(from).address;
                self.send(sender, to, out, None);
            }
            _ => {}
        }
    }

    /// A node that lives and is heard is in every shard's table.
    fn check_members(&self, snapshot: &Snapshot) {
        let now = self.net.now();
        for node in self.nodes.iter().filter(|it| it.state == State::Up) {
            // The announcement of another version takes its time to replace the old one.
            let Some(heard) = node.heard else { continue };
            let since = now.since(heard);
            let late = Duration::from_millis(2 * SWITCH_MS as u64);
            if since < late || since > NODE_TIMEOUT || now.since(self.settled) < late {
                continue;
            }
            let key = tests::sim::node(node.number, node.version).key;
            let Some(id) = snapshot.find(key) else {
                self.fail(&format!("{} lives and beats but is no member", node.name()), b"", b"");
            };
            let found = snapshot.node(id);
            if !found.suspect.is_empty() && now > node.avoided_until {
                self.fail(&format!("{} is still avoided", node.name()), b"", b"");
            }
        }
    }

    fn beat(&mut self, node: usize) {
        self.beat_once(node);
        self.net.after(BEAT, Event::Beat(node));
        // Who drains goes when its calls are over and the news has reached everybody.
        let it = &self.nodes[node];
        let address = node_address(it.number);
        let is_idle = self.agents.get(&address).is_none_or(|it| !it.is_busy());
        if it.leaving && it.state == State::Up && is_idle && self.draw.percent(20) {
            (self.nodes[node].state, self.nodes[node].died) = (State::Silent, self.net.now());
            let name = self.nodes[node].name();
            self.say(|| format!("{name} has left"));
        }
    }

    /// Says that the node lives: SIP OPTIONS on the nodes' leg; without one, as another protocol would.
    fn beat_once(&mut self, node: usize) {
        let it = &mut self.nodes[node];
        if it.state != State::Up {
            return;
        }
        let address = node_address(it.number);
        let (port, name) = (address.port(), it.name());
        let body = format!(
            "hostname={name}\nip={}\nudpPort={port}\ntcpPort={port}\nversion={}\nsessionId={}\n{}",
            address.ip(),
            it.version,
            it.incarnation,
            if it.leaving { "GRACEFUL_SHUTDOWN=true\n" } else { "" }
        );
        if !self.profile.two_legs {
            let now = self.net.now();
            if self.draw.percent(self.profile.weather.lost) {
                return;
            }
            let said = engine::registry::Announcement::parse(body.as_bytes()).unwrap();
            it.hear(now);
            self.registry.handle_announcement(now, said).unwrap();
            return;
        }
        let beat = Message::new(format!("OPTIONS sip:{INTERNAL} SIP/2.0"))
            .with("Via", format!("SIP/2.0/UDP {address};branch=z9hG4bK{name}-b"))
            .with("Max-Forwards", "1")
            .with("From", format!("<sip:{name}@{address}>;tag=b"))
            .with("To", format!("<sip:{INTERNAL}>"))
            .with("Call-ID", format!("beat-{name}"))
            .with("CSeq", "1 OPTIONS")
            .with("Mobicents-Heartbeat", "1")
            .with_body("text/plain", body);
        self.send(address, INTERNAL, beat.to_bytes(), None);
    }

    /// Somebody who forges routes, hints and Vias to make us send to where nobody asked us to.
    fn stranger(&mut self) {
        let from = SocketAddr::from(([198, 51, 100, 99], 5060));
        let victim = ["198.51.100.66:22", "172.16.9.9:5080", "172.16.100.1:22"];
        let victim = *self.draw.one(&victim);
        let (host, port) = victim.split_once(':').unwrap();
        let route = format!("<sip:{EXTERNAL};lr;node_host={host};node_port={port};version=0>");
        let via =
            format!("SIP/2.0/UDP {from};branch=z9hG4bKx-{};rport", self.draw.below(1_000_000));
        let request = |method: &str, uri: &str| {
            Message::new(format!("{method} {uri} SIP/2.0"))
                .with("Via", via.clone())
                .with("Max-Forwards", "70")
        };
        let tail = |it: Message, method: &str| {
            it.with("From", "<sip:x@x>;tag=x1")
                .with("To", "<sip:y@y>;tag=x2")
                .with("Call-ID", "x@x")
                .with("CSeq", format!("2 {method}"))
        };
        let message = match self.draw.below(6) {
            0 => tail(request("BYE", &format!("sip:x@{victim}")).with("Route", route), "BYE"),
            1 => tail(
                request("BYE", &format!("sip:x@{victim}"))
                    .with("Route", format!("<sip:{victim};lr>")),
                "BYE",
            ),
            2 => tail(request("INFO", &format!("sip:x@example.com;maddr={host}")), "INFO"),
            3 => {
                let ours = format!("SIP/2.0/UDP {EXTERNAL};branch=z9hG4bK0123456789abcdefe_0");
                let theirs = format!("SIP/2.0/UDP {victim};branch=z9hG4bKx-1");
                tail(Message::new("SIP/2.0 200 OK").with("Via", ours).with("Via", theirs), "INVITE")
            }
            from => {
                let [out, ours] =
                    [EXTERNAL, if self.profile.two_legs { INTERNAL } else { EXTERNAL }]
                        .map(|it| format!("SIP/2.0/UDP {it};branch=z9hG4bK0123456789abcdefi_0"));
                // Under the name of a node, or not.
                let claimed =
                    if from == 4 { victim.to_owned() } else { node_address(1).to_string() };
                let theirs =
                    format!("SIP/2.0/UDP {claimed};branch=z9hG4bKx-1;received={host};rport={port}");
                let message =
                    Message::new("SIP/2.0 180 Ringing").with("Via", out).with("Via", ours);
                tail(message.with("Via", theirs), "INVITE")
            }
        };
        self.agents.entry(from).or_insert_with(|| Agent::new("x".to_owned(), from, EXTERNAL));
        self.judge.callers.insert("x".to_owned(), from);
        self.send(from, EXTERNAL, message.to_bytes(), None);
    }

    /// Hands a new table to every shard, each at a moment of its own.
    fn publish(&mut self) {
        while self.registry.poll_event().is_some() {}
        let Some(snapshot) = self.registry.snapshot() else { return };
        let snapshot = Arc::new(snapshot.after(&self.published));
        self.say(|| {
            let live = snapshot.nodes().iter().map(|it| {
                let flags = [(it.graceful, " leaving"), (!it.suspect.is_empty(), " suspect")];
                let flags: String = flags.iter().filter(|it| it.0).map(|it| it.1).collect();
                format!("{}{flags}", it.host_name)
            });
            format!("table {}: {}", snapshot.generation(), live.collect::<Vec<_>>().join(", "))
        });
        self.published = Arc::clone(&snapshot);
        let now = self.net.now();
        self.settled = now;
        for (index, shard) in self.shards.iter_mut().enumerate() {
            let delay = self.draw.millis(0, SWITCH_MS);
            let when = (now + delay).max(shard.next_switch);
            shard.next_switch = when;
            let event = Event::Switch { shard: index, snapshot: Arc::clone(&snapshot) };
            self.net.after(when.since(now), event);
        }
    }

    /// What must hold when everything is over.
    fn audit(&mut self) {
        for agent in self.agents.values().filter(|it| it.name.starts_with('c')) {
            if agent.strangers > 0 {
                self.fail(&format!("{} got answers to what it never asked", agent.name), b"", b"");
            }
        }
        for index in 0..self.shards.len() {
            self.audit_counters(index);
        }
        let moves = matches!(self.profile.algorithm, WORST_CASE)
            || (self.profile.algorithm == ACTIVE_STANDBY && self.profile.changes);
        if self.profile.calm && !moves {
            self.audit_calls();
        }
    }

    /// Every call that was placed got its answer and ended on both sides.
    fn audit_calls(&self) {
        let mut answered = BTreeMap::new();
        for agent in self.agents.values() {
            for outcome in &agent.outcomes {
                let wanted = match (outcome.method.as_str(), self.expected.get(&outcome.call_id)) {
                    ("INVITE", Some(status)) => *status,
                    _ => 200,
                };
                if outcome.status != Some(wanted) && !(wanted != 200 && outcome.status == Some(200))
                {
                    self.fail(&format!("{}: {outcome:?}, not {wanted}", agent.name), b"", b"");
                }
                answered.insert(outcome.call_id.clone(), ());
            }
            if agent.is_busy() {
                self.fail(&format!("{} never came to an end: {agent:#?}", agent.name), b"", b"");
            }
        }
        if let Some(call) = self.expected.keys().find(|it| !answered.contains_key(*it)) {
            self.fail(&format!("{call} was never answered"), b"", b"");
        }
    }

    /// Counters tell of every message.
    fn audit_counters(&mut self, index: usize) {
        let tally = self.judge.tallies[index];
        let (now, snapshot) = (self.net.now(), &self.published);
        let counters = self.shards[index].relay.counters(now, snapshot, true).clone();
        let page = metrics(&Scrape {
            now: self.net.now(),
            process: Process {
                name: "",
                version: "",
                cpu_percent: 0,
                resident_bytes: 0,
                epoch_ms: 0,
                is_stopping: false,
            },
            snapshot: &self.published,
            registry: &self.registry,
            shards: &[(&counters, Load::default())],
            certificates: &[],
            beats: Beats::default(),
            residence: &Residence::default(),
        });
        let sum = |family: &str, with: &str| -> u64 {
            page.lines()
                .filter(|it| it.starts_with(&format!("{family}{{")) && it.contains(with))
                .filter_map(|it| it.rsplit_once(' ')?.1.parse::<u64>().ok())
                .sum()
        };
        let answers = tally.replies - tally.beats; // beats and their answers are no traffic
        let rows = [
            ("requests", tally.requests, sum("trunkline_sip_messages_total", "kind=\"request\"")),
            (
                "responses and answers",
                tally.responses + answers,
                sum("trunkline_sip_messages_total", "kind=\"response\""),
            ),
            ("drops", tally.drops, sum("trunkline_sip_dropped_total", "")),
            ("requests by method", tally.requests, sum("trunkline_sip_requests_total", "")),
            (
                "responses by code",
                tally.responses + answers,
                sum("trunkline_sip_responses_total", ""),
            ),
            (
                "messages",
                tally.beats + tally.requests + tally.responses + tally.again,
                tally.forwards + tally.replies + tally.resolves + tally.drops,
            ),
        ];
        for (what, happened, counted) in rows {
            if happened != counted {
                let text = format!("shard {index} counted {counted} {what}, there were {happened}");
                self.fail(&text, page.as_bytes(), b"");
            }
        }
    }

    fn fail(&self, what: &str, bytes: &[u8], out: &[u8]) -> ! {
        let now = self.net.now().as_nanos() as f64 / 1e9;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        panic!(
            "seed {} at {now:.3} s: {what}\n{:?}\n--- in\n{}\n--- out\n{}",
            self.seed,
            self.profile,
            text(bytes),
            text(out)
        );
    }
}

/// First line and Call-ID, for the trace.
fn first_line(bytes: &[u8]) -> String {
    Message::parse(bytes).map_or_else(String::new, |it| {
        let start = it.start.trim_end_matches(" SIP/2.0");
        let start = start.trim_start_matches("SIP/2.0 ");
        let branch = it.vias().last().and_then(|it| tests::param(it, "branch"));
        format!("{start} [{} {}]", it.header("Call-ID"), branch.unwrap_or_default())
    })
}

fn told(verdict: Verdict, out: &[u8]) -> String {
    match verdict {
        Verdict::Forward { hop: Hop::Datagram { to, .. }, .. } => format!("to {to}"),
        Verdict::Reply { .. } => format!("answers {}", first_line(out)),
        other => format!("{other:?}"),
    }
}

const WORST_CASE: &str = "WorstCaseUdpTestAffinityAlgorithm";
const ACTIVE_STANDBY: &str = "ActiveStandbyAlgorithm";
