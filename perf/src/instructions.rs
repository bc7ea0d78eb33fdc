//! Instructions per message, of HTTP per request: the decision layer alone, counted by callgrind.
//!
//! Unlike times, counts are the same on a busy machine, so a change of 2 % is a finding. Every count is the
//! difference of two runs that prepare the same and handle 4 000 messages more, divided by 4 000: start-up,
//! preparation and warm-up drop out.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use ::tests::sim::{Kind, Script, Stage, node};
use argh::FromArgs;
use engine::balance::Shard;
use engine::relay::sip::Relay;
use engine::relay::{Arrival, Verdict};
use engine::snapshot::Snapshot;
use protocols::sip::Transport;
use protocols::time::Time;

mod http;

/// Counts instructions per message and compares them with the recorded baseline; needs valgrind.
#[derive(FromArgs)]
#[argh(subcommand, name = "instructions")]
pub(crate) struct Arguments {
    /// record what is counted as the new baseline
    #[argh(switch)]
    record: bool,
    /// only handle the messages of this scenario; for callgrind
    #[argh(option)]
    handle: Option<String>,
    /// with --handle: how often, of at most 8000
    #[argh(option, default = "0")]
    times: u64,
}

/// One row of the table: a relay in some state, and messages for it.
struct Scenario {
    name: &'static str,
    kinds: &'static [Kind],
    transport: Transport,
    algorithm: &'static str,
    nodes: u16,
    remembered: u64,
}

const fn call(name: &'static str, kinds: &'static [Kind]) -> Scenario {
    let algorithm = "CallIDAffinityBalancerAlgorithm";
    Scenario { name, kinds, transport: Transport::Udp, algorithm, nodes: 4, remembered: 0 }
}

/// The rows of SIP; `call` is the mean of the seven messages of an answered call.
const SCENARIOS: &[Scenario] = &[
    call("invite", &[Kind::Invite]),
    call("trying", &[Kind::Trying]),
    call("ringing", &[Kind::Ringing]),
    call("answer", &[Kind::Answer]),
    call("ack", &[Kind::Ack]),
    call("bye", &[Kind::Bye]),
    call("bye_answer", &[Kind::ByeAnswer]),
    call("register", &[Kind::Register]),
    call("node_bye", &[Kind::NodeBye]),
    call("call", &Kind::OF_A_CALL),
    Scenario { nodes: 1_000, ..call("call_1000_nodes", &Kind::OF_A_CALL) },
    Scenario { remembered: 100_000, ..call("call_100000_remembered", &Kind::OF_A_CALL) },
    Scenario {
        nodes: 1_000,
        remembered: 100_000,
        ..call("call_1000_nodes_100000_remembered", &Kind::OF_A_CALL)
    },
    Scenario { transport: Transport::Tcp, ..call("call_tcp", &Kind::OF_A_CALL) },
    Scenario {
        algorithm: "HeaderConsistentHashBalancerAlgorithm",
        ..call("call_consistent_hash", &Kind::OF_A_CALL)
    },
    Scenario {
        algorithm: "HeaderConsistentHashBalancerAlgorithm",
        nodes: 1_000,
        ..call("call_consistent_hash_1000_nodes", &Kind::OF_A_CALL)
    },
];

/// What a scenario may cost more than another, in percent of that.
const SURCHARGES: &[(&str, &str, u64)] = &[
    ("call_1000_nodes", "call", 20),
    ("call_100000_remembered", "call", 20),
    ("call_1000_nodes_100000_remembered", "call", 20),
];

/// Without these the C library copies memory in the same way on every machine.
const PLAIN_CPU: &str = "-AVX,-AVX2,-AVX512F,-AVX512VL,-AVX_Fast_Unaligned_Load,-ERMS,-FSRM";

/// More than this over the baseline is a regression, in percent.
const GATE_PERCENT: u64 = 2;

/// Messages of the shorter and the longer run.
const TIMES: [u64; 2] = [4_000, 8_000];

/// `callIdAffinityMaxCalls` here, and how many are remembered to see what one costs.
const CALLS_MAX: u64 = 1_000_000;

/// Bytes that a remembered Call-ID may cost.
const CALL_BYTES_MAX: u64 = 200;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if let Some(name) = &arguments.handle {
        return handle(name, arguments.times);
    }
    let bytes = bytes_per_call()?;
    let mut counts = BTreeMap::new();
    let mut text = String::new();
    let baseline = Baseline::read(&Baseline::path())?;
    let mut broken = Vec::new();
    writeln!(text, "{:<36} {:>12} {:>12}", "instructions per message", "now", "baseline")?;
    for name in names() {
        let count = count(name)?;
        counts.insert(name.to_owned(), count);
        let before = baseline.0.get(name).copied();
        let shown = before.map_or_else(|| "-".to_owned(), |it| it.to_string());
        writeln!(text, "{name:<36} {count:>12} {shown:>12}")?;
        if let Some(before) = before
            && count * 100 > before * (100 + GATE_PERCENT)
        {
            broken.push(format!("{name}: {count} instructions, {before} before"));
        }
    }
    for (name, base, percent) in SURCHARGES {
        let [cost, base_cost] = [*name, *base].map(|it| counts.get(it).copied().unwrap_or(0));
        if cost * 100 > base_cost * (100 + percent) {
            broken.push(format!("{name} costs {cost}, over {percent} % more than {base_cost}"));
        }
    }
    writeln!(text, "{:<36} {bytes:>12}", "bytes per remembered call")?;
    if bytes > CALL_BYTES_MAX {
        broken.push(format!("a remembered call costs {bytes} bytes, over {CALL_BYTES_MAX}"));
    }
    std::io::stdout().write_all(text.as_bytes())?;
    if arguments.record {
        Baseline(counts).write(&Baseline::path())?;
        broken.retain(|it| !it.contains("before"));
    }
    if broken.is_empty() { Ok(()) } else { Err(broken.join("\n").into()) }
}

/// Every row, in order.
fn names() -> impl Iterator<Item = &'static str> {
    SCENARIOS.iter().map(|it| it.name).chain([http::NAME])
}

/// Prepares everything for a row, then handles so many of its messages.
fn handle(name: &str, times: u64) -> Result<()> {
    if name == http::NAME {
        return http::handle(times);
    }
    let scenario = SCENARIOS.iter().find(|it| it.name == name).ok_or("no such scenario")?;
    scenario.handle(times)
}

/// Instructions per message; of HTTP per request with its answer.
fn count(name: &str) -> Result<u64> {
    let mut totals = [0; 2];
    for (total, times) in totals.iter_mut().zip(TIMES) {
        *total = callgrind(name, times)?;
    }
    let ([fewer, more], [shorter, longer]) = (totals, TIMES);
    Ok(more.saturating_sub(fewer) / (longer - shorter))
}

/// A relay with its nodes and the call that is played to it.
struct World {
    relay: Relay,
    snapshot: Snapshot,
    script: Script,
    out: Vec<u8>,
}

impl World {
    fn new(scenario: &Scenario) -> World {
        let Scenario { algorithm, nodes, transport, .. } = scenario;
        let lines =
            format!("algorithmClass=x.{algorithm}\nshards=1\ncallIdAffinityMaxCalls={CALLS_MAX}\n");
        let stage = Stage::new(true, &lines);
        let mut relay = stage.relay(Shard { index: 0, scattered: false });
        let snapshot = Snapshot::new(1, (1..=*nodes).map(|it| node(it, 0)).collect(), &[]);
        let caller = SocketAddr::from(([203, 0, 113, 7], 5062));
        let script = Script::record(&stage, &mut relay, &snapshot, *transport, caller);
        World { relay, snapshot, script, out: Vec::new() }
    }

    fn remember(&mut self, numbers: std::ops::Range<u64>) -> Result<()> {
        for number in numbers {
            self.script.renumber(number);
            let Some((_, arrival, bytes)) = self.script.messages(NOW).next() else { break };
            sent(self.relay.handle(&arrival, bytes, &self.snapshot, &mut self.out))?;
        }
        Ok(())
    }
}

impl Scenario {
    /// Prepares everything, then handles so many messages.
    fn handle(&self, times: u64) -> Result<()> {
        let mut world = World::new(self);
        world.remember(1_000_000..1_000_000 + self.remembered)?;
        let [_, most] = TIMES;
        let mut messages: Vec<(Arrival, Vec<u8>)> = Vec::new();
        let mut number = 0;
        while (messages.len() as u64) < most {
            number += 1;
            world.script.renumber(number);
            let wanted = world.script.messages(NOW).filter(|(kind, ..)| self.kinds.contains(kind));
            messages.extend(wanted.map(|(_, arrival, bytes)| (arrival, bytes.to_vec())));
        }
        // Buffers have grown and every node has its rows before the counting begins.
        world.remember(900_000..902_000)?;
        let World { mut relay, snapshot, mut out, .. } = world;
        for (arrival, bytes) in messages.iter().take(usize::try_from(times)?) {
            sent(relay.handle(arrival, bytes, &snapshot, &mut out))?;
        }
        Ok(())
    }
}

fn sent(verdict: Verdict) -> Result<()> {
    match verdict {
        Verdict::Forward { .. } => Ok(()),
        other => Err(format!("a message was not sent on: {other:?}").into()),
    }
}

/// All instructions of a run of this program that only handles messages.
fn callgrind(scenario: &str, times: u64) -> Result<u64> {
    let output = Command::new("valgrind")
        .env("GLIBC_TUNABLES", format!("glibc.cpu.hwcaps={PLAIN_CPU}"))
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe()?)
        .args(["instructions", "--handle", scenario, "--times", &times.to_string()])
        .output()
        .map_err(|error| format!("valgrind: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let collected = said.lines().find_map(|it| it.split_once("Collected : "));
    let collected = collected.filter(|_| output.status.success());
    let (_, count) = collected.ok_or_else(|| format!("callgrind of {scenario}: {said}"))?;
    Ok(count.trim().parse()?)
}

/// Resident memory that one remembered call adds when there are many.
fn bytes_per_call() -> Result<u64> {
    let mut world = World::new(&call("call", &Kind::OF_A_CALL));
    world.remember(0..1_000)?;
    let before = resident_bytes()?;
    world.remember(1_000..CALLS_MAX)?;
    Ok((resident_bytes()? - before) / (CALLS_MAX - 1_000))
}

fn resident_bytes() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|it| it.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes * 1_024)
}

/// Recorded counts, as `name = count` lines.
struct Baseline(BTreeMap<String, u64>);

impl Baseline {
    fn path() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("baseline.toml")
    }

    fn read(path: &Path) -> Result<Baseline> {
        let Ok(text) = std::fs::read_to_string(path) else { return Ok(Baseline(BTreeMap::new())) };
        let lines = text.lines().filter(|it| !it.starts_with('#') && !it.trim().is_empty());
        let rows = lines.map(|line| {
            let (name, count) = line.split_once('=').ok_or_else(|| format!("not a row: {line}"))?;
            let count = count.trim().parse().map_err(|_| format!("not a number: {line}"))?;
            Ok((name.trim().to_owned(), count))
        });
        Ok(Baseline(rows.collect::<std::result::Result<_, String>>()?))
    }

    fn write(&self, path: &Path) -> Result<()> {
        let mut text =
            "# Instructions per message. `cargo run --release -p perf -- instructions --record`\n"
                .to_owned();
        for (name, count) in &self.0 {
            writeln!(text, "{name} = {count}")?;
        }
        Ok(std::fs::write(path, text)?)
    }
}

const NOW: Time = Time::from_millis(10_000);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_baseline_is_read_as_it_was_written() {
        let path = std::env::temp_dir().join(format!("baseline-{}.toml", std::process::id()));
        let rows = BTreeMap::from([("invite".to_owned(), 5_000), ("call".to_owned(), 4_000)]);
        Baseline(rows.clone()).write(&path).unwrap();
        assert_eq!(Baseline::read(&path).unwrap().0, rows);
        std::fs::write(&path, "invite: 5").unwrap();
        assert!(Baseline::read(&path).is_err());
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn every_scenario_is_recorded_and_handles_its_messages() {
        let baseline = Baseline::read(&Baseline::path()).unwrap();
        for name in names() {
            assert!(baseline.0.contains_key(name), "{name}");
            handle(name, 100).unwrap();
        }
        assert_eq!(baseline.0.len(), names().count(), "rows that nothing counts any more");
    }
}
