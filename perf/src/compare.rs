//! One run over all contenders: each balancer alone on one core, both ends of all calls on another.
//!
//! Rounds are interleaved, so that whatever else the machine does hits all alike; medians are printed.
//! CPU is what the scheduler charged to the balancer's processes between two moments of a steady load.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use argh::FromArgs;
use tools::agent::{self, Agent, AgentConfig, Polling};
use tools::caller::{CallerConfig, NextHop, Pace};
use tools::node::{NodeConfig, ReplyTo};
use tools::process::CpuTime;

pub(crate) mod contender;
pub(crate) mod table;

pub(crate) use contender::stop;
use contender::{CONTENDERS, Contender, Running};

/// Compare balancers: CPU per call, maximum rate, latency.
#[derive(FromArgs)]
#[argh(subcommand, name = "compare")]
pub(crate) struct Arguments {
    /// rounds, of which medians are taken; default 5
    #[argh(option, default = "5")]
    rounds: usize,
    /// seconds of each measurement; default 3
    #[argh(option, default = "3")]
    seconds: u64,
    /// only these contenders (comma list of names); default all
    #[argh(option)]
    only: Option<String>,
    /// only these loads (comma list: 1000, 4000, maximum); default all
    #[argh(option)]
    loads: Option<String>,
    /// the balancer's binary; default trunkline beside this one
    #[argh(option)]
    trunkline: Option<PathBuf>,
    /// directory of the peers' configurations; default perf/peers
    #[argh(option, default = "PathBuf::from(\"perf/peers\")")]
    peers: PathBuf,
    /// CPU of the balancer; default 0
    #[argh(option, default = "0")]
    balancer_cpu: usize,
    /// CPU of callers and nodes; default 1
    #[argh(option, default = "1")]
    generator_cpu: usize,
    /// write the table into this file, between its marks (perf/README.md)
    #[argh(option)]
    write: Option<PathBuf>,
}

/// One load that every contender gets. A new row is measured and printed without further code.
pub(crate) struct Load {
    /// Name for `--loads`.
    name: &'static str,
    /// Name in the table.
    pub(crate) title: &'static str,
    pub(crate) pace: Pace,
}

/// Loads in the order of measurement.
pub(crate) const LOADS: &[Load] = &[
    Load { name: "1000", title: "1 000/s", pace: Pace::Open(1_000.0) },
    Load { name: "4000", title: "4 000/s", pace: Pace::Open(4_000.0) },
    Load { name: "maximum", title: "maximum", pace: Pace::Closed(WINDOW) },
];

/// What one contender did under one load in one round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// Microseconds of CPU per completed call.
    pub(crate) cpu_micros: f64,
    /// Of these outside the kernel.
    pub(crate) user_micros: f64,
    pub(crate) calls_per_second: f64,
    /// Share of calls.
    pub(crate) failed: f64,
    /// INVITE to 180, microseconds.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    /// Share of one core that the balancer used.
    pub(crate) core: f64,
    pub(crate) generator_limit: bool,
}

/// Samples of one contender, by load, then round.
pub(crate) struct Row {
    pub(crate) contender: &'static Contender,
    pub(crate) samples: Vec<Vec<Sample>>,
}

pub(crate) fn run(arguments: &Arguments) -> std::io::Result<()> {
    let loads: Vec<&Load> =
        LOADS.iter().filter(|load| is_wanted(&arguments.loads, load.name)).collect();
    let wanted = |contender: &&Contender| is_wanted(&arguments.only, contender.name);
    let mut rows: Vec<Row> = Vec::new();
    for contender in CONTENDERS.iter().filter(wanted) {
        match contender.missing(arguments) {
            None => {
                let samples = loads.iter().map(|_| Vec::new()).collect();
                rows.push(Row { contender, samples });
            }
            Some(what) => note(&format!("{}: left out, {what} is not there", contender.name)),
        }
    }
    for round in 1..=arguments.rounds {
        for row in &mut rows {
            measure(arguments, &loads, row, round)?;
        }
    }
    let text = table::markdown(&rows, &loads, &machine(), arguments);
    std::io::stdout().write_all(text.as_bytes())?;
    arguments.write.as_deref().map_or(Ok(()), |file| table::write(file, "table", &text))
}

/// `name` is in the comma list, or there is no list.
pub(crate) fn is_wanted(list: &Option<String>, name: &str) -> bool {
    list.as_deref().is_none_or(|list| list.split(',').any(|wanted| wanted == name))
}

fn measure(
    arguments: &Arguments,
    loads: &[&Load],
    row: &mut Row,
    round: usize,
) -> std::io::Result<()> {
    let contender = row.contender;
    let balancer = contender.start(arguments)?;
    let nodes = NODES.iter().map(|address| node(contender, *address)).collect();
    let agent = generator(nodes, arguments.generator_cpu)?;
    for (load, samples) in loads.iter().zip(&mut row.samples) {
        let sample = measure_load(arguments, contender, load, &agent, balancer.as_ref())?;
        let mut line = format!("round {round} {:<12} {:<8}", contender.name, load.name);
        let _ = write!(
            line,
            " {:>6.1} us/call ({:>4.1} user), {:>6.0} calls/s, core {:>3.0} %, failed {:.3} %, \
             p50 {:.0} p99 {:.0} us{}",
            sample.cpu_micros,
            sample.user_micros,
            sample.calls_per_second,
            sample.core * 100.0,
            sample.failed * 100.0,
            sample.p50,
            sample.p99,
            if sample.generator_limit { ", generator was the limit" } else { "" }
        );
        note(&line);
        samples.push(sample);
    }
    Ok(())
}

fn measure_load(
    arguments: &Arguments,
    contender: &Contender,
    load: &Load,
    agent: &Agent,
    balancer: Option<&Running>,
) -> std::io::Result<Sample> {
    let next_hop = if contender.blind { NextHop::Target } else { NextHop::Route };
    let calls = CallerConfig {
        from: vec![LOCAL; LINES],
        next_hop,
        ..CallerConfig::new(contender.target, load.pace)
    };
    sample(calls, Duration::from_secs(arguments.seconds), agent, balancer)
}

/// What a balancer does with these calls in so much time, after a warm-up.
#[expect(clippy::cast_precision_loss, reason = "figures are printed with three digits")]
pub(crate) fn sample(
    calls: CallerConfig,
    time: Duration,
    agent: &Agent,
    balancer: Option<&Running>,
) -> std::io::Result<Sample> {
    agent.place(CallerConfig { timeout: GIVE_UP_AFTER, retransmit: false, ..calls })?;
    std::thread::sleep(WARM_UP);
    agent.clear_latencies();
    let cpu_before = cpu(balancer);
    let before = agent.report()?;
    std::thread::sleep(time);
    let used = cpu(balancer).since(cpu_before);
    let after = agent.report()?;
    agent.stop_calls();
    let last = agent.wait(GIVE_UP_AFTER * 3)?;

    let elapsed = after.at.since(before.at).as_secs_f64();
    let calls = (after.calls.completed - before.calls.completed).max(1) as f64;
    let failed = last.calls.failed_total() - before.calls.failed_total();
    // Ticks are too coarse for the sum, but good enough to split it.
    let user_share = used.user.as_secs_f64() / used.ticks().as_secs_f64().max(f64::EPSILON);
    let cpu_micros = used.run.as_secs_f64() * 1e6 / calls;
    let ringing = &after.latencies.ringing;
    Ok(Sample {
        cpu_micros,
        user_micros: cpu_micros * user_share,
        calls_per_second: calls / elapsed,
        failed: failed as f64 / (failed as f64 + calls),
        p50: ringing.value_at_quantile(0.5) as f64,
        p99: ringing.value_at_quantile(0.99) as f64,
        core: used.run.as_secs_f64() / elapsed,
        generator_limit: after.generator.was_the_limit(),
    })
}

/// Both ends of all calls on one CPU, once the balancer knows the nodes.
pub(crate) fn generator(nodes: Vec<NodeConfig>, cpu: usize) -> std::io::Result<Agent> {
    let polling = Polling::Busy;
    let agent = agent::start(AgentConfig { nodes, callers: Vec::new(), polling, cpu: Some(cpu) })?;
    std::thread::sleep(START_TIME);
    Ok(agent)
}

fn cpu(balancer: Option<&Running>) -> CpuTime {
    balancer.map(Running::cpu).unwrap_or_default()
}

fn node(contender: &Contender, address: SocketAddr) -> NodeConfig {
    NodeConfig {
        tcp: false,
        retransmit: false,
        reply_to: if contender.blind { ReplyTo::Source } else { ReplyTo::Via },
        ..NodeConfig::new(address, contender.heartbeat_to)
    }
}

pub(crate) fn note(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// The machine in words, without its name.
pub(crate) fn machine() -> String {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("unknown CPU", |(_, model)| model.trim());
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let kernel = read("/proc/sys/kernel/osrelease");
    let kernel = kernel.trim().split('-').next().unwrap_or_default();
    let today = Command::new("date").args(["-u", "+%F"]).output();
    let date = today.map(|it| String::from_utf8_lossy(&it.stdout).trim().to_owned());
    format!("{}, {model}, {cores} CPUs, Linux {kernel}, loopback", date.unwrap_or_default())
}

pub(crate) const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), port)
}

/// The same ports stand in the peers' configurations.
pub(crate) const NODES: [SocketAddr; 4] =
    [loopback(17_001), loopback(17_002), loopback(17_003), loopback(17_004)];
/// Where every balancer listens for callers.
pub(crate) const BALANCER: SocketAddr = loopback(16_060);
/// Where ours listens for nodes.
pub(crate) const BALANCER_INTERNAL: SocketAddr = loopback(16_065);
pub(crate) const LOCAL: SocketAddr = loopback(0);
/// Callers' sockets: one per node, so that a forwarder that knows only addresses uses all nodes.
const LINES: usize = 4;
/// Kamailio reads its modules, ours waits for heartbeats.
const START_TIME: Duration = Duration::from_millis(1500);
/// Keeps every balancer busy, and fits the receive buffers of sockets whose size a peer cannot be told:
/// with 128 calls nginx and Kamailio lose datagrams, and a lost call holds its place for its time-out.
pub(crate) const WINDOW: u32 = 64;
const WARM_UP: Duration = Duration::from_millis(700);
const GIVE_UP_AFTER: Duration = Duration::from_millis(1500);
