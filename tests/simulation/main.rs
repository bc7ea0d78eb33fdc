//! Deterministic simulation: real relays and a real node table under a virtual clock and a seeded network
//! that loses, doubles, delays and reorders; nodes die, return, drain and are upgraded under way.
//!
//! Every decision is judged on the spot ([`Judge`]), what reaches callers is counted at the end. A failure
//! prints its seed; `SEED=n cargo test -p tests --test simulation -- --nocapture` replays it with a trace,
//! `SEEDS=n` plays more of them.

mod audit;
mod script;
mod traffic;

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
