//! What is promised without a comparison: idle, memory, user time, a second shard. Each with its limit.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use argh::FromArgs;
use tools::caller::{CallerConfig, Pace};
use tools::node::NodeConfig;
use tools::process::CpuTime;

use crate::compare::contender::{Running, beside_us, scratch};
use crate::compare::table::median;
use crate::compare::{self, BALANCER, BALANCER_INTERNAL, LOCAL, NODES, Sample, WINDOW, note};

/// Measure what has a limit of its own: idle, memory, user time, two shards.
#[derive(FromArgs)]
#[argh(subcommand, name = "limits")]
pub(crate) struct Arguments {
    /// rounds, of which medians are taken; default 3
    #[argh(option, default = "3")]
    rounds: usize,
    /// seconds of each measurement; default 3
    #[argh(option, default = "3")]
    seconds: u64,
    /// the balancer's binary; default trunkline beside this one
    #[argh(option)]
    trunkline: Option<PathBuf>,
    /// CPUs of the balancer, as taskset takes them; default 0
    #[argh(option, default = "String::from(\"0\")")]
    balancer_cpus: String,
    /// CPU of callers and nodes; default 1
    #[argh(option, default = "1")]
    generator_cpu: usize,
}

/// One figure and what it must not exceed.
struct Figure {
    title: &'static str,
    value: f64,
    most: f64,
}

pub(crate) fn run(arguments: &Arguments) -> std::io::Result<()> {
    let mut figures = at_rest(arguments)?;
    figures.extend(under_load(arguments)?);
    let mut out = std::io::stdout();
    writeln!(out, "| | measured | at most |\n|---|---|---|")?;
    for Figure { title, value, most } in &figures {
        let mark = if value <= most { "" } else { " **over**" };
        writeln!(out, "| {title} | {value:.2}{mark} | {most} |")?;
    }
    Ok(())
}

/// With every default, on all CPUs, and nobody calling.
#[expect(clippy::cast_precision_loss, reason = "figures are printed with three digits")]
fn at_rest(arguments: &Arguments) -> std::io::Result<Vec<Figure>> {
    let file = write_properties("at-rest", "")?;
    let cpus = format!("0-{}", std::thread::available_parallelism().map_or(0, |it| it.get() - 1));
    let balancer = start(arguments, &file, &cpus)?;
    std::thread::sleep(SETTLE_TIME);
    let before = balancer.cpu();
    std::thread::sleep(REST_TIME);
    let used: CpuTime = balancer.cpu().since(before);
    let core = used.run.as_secs_f64() / REST_TIME.as_secs_f64();
    let mib = balancer.resident_bytes() as f64 / f64::from(1 << 20);
    note(&format!("at rest: {:.3} % of a core, {mib:.1} MiB", core * 100.0));
    Ok(vec![
        Figure { title: "idle, % of a core", value: core * 100.0, most: 0.5 },
        Figure { title: "resident at rest, MiB", value: mib, most: 40.0 },
    ])
}

/// One shard and two under the same calls from one source address, in turns.
fn under_load(arguments: &Arguments) -> std::io::Result<Vec<Figure>> {
    let mut samples = [const { [const { Vec::new() }; LOADS.len()] }; 2];
    let mut shares = Vec::new();
    for round in 1..=arguments.rounds {
        for (shards, samples) in (1..).zip(&mut samples) {
            let lines = format!("shards={shards}\nreuseportSteering=random\n");
            let file = write_properties("under-load", &lines)?;
            let balancer = start(arguments, &file, &arguments.balancer_cpus)?;
            let heard = Some(BALANCER_INTERNAL);
            let nodes = NODES.iter().map(|it| NodeConfig {
                tcp: false,
                retransmit: false,
                ..NodeConfig::new(*it, heard)
            });
            let agent = compare::generator(nodes.collect(), arguments.generator_cpu)?;
            for ((name, pace), samples) in LOADS.iter().zip(samples) {
                let calls =
                    CallerConfig { from: vec![LOCAL], ..CallerConfig::new(BALANCER, *pace) };
                let time = Duration::from_secs(arguments.seconds);
                let sample = compare::sample(calls, time, &agent, Some(&balancer))?;
                note(&format!(
                    "round {round}, {shards} shard(s), {name}: {:.1} us/call ({:.1} user), {:.0} calls/s",
                    sample.cpu_micros, sample.user_micros, sample.calls_per_second
                ));
                samples.push(sample);
            }
            if shards == 2 {
                shares.push(smallest_share()?);
            }
        }
    }
    let [one, two] = &samples;
    let of = |samples: &[Sample], figure: fn(&Sample) -> f64| median(samples.iter().map(figure));
    let ratio = |load: usize| {
        let cpu = |it: &[Vec<Sample>]| it.get(load).map_or(0.0, |it| of(it, |it| it.cpu_micros));
        cpu(two) / cpu(one)
    };
    let user = one.get(MAXIMUM).map_or(0.0, |it| of(it, |it| it.user_micros)) / MESSAGES_OF_A_CALL;
    Ok(vec![
        Figure { title: "user time per message at maximum, us", value: user, most: 1.0 },
        Figure {
            title: "two shards, CPU per message at maximum, of one's",
            value: ratio(MAXIMUM),
            most: 1.1,
        },
        Figure {
            title: "two shards, CPU per message at 4 000 calls/s, of one's",
            value: ratio(0),
            most: 1.1,
        },
        Figure {
            title: "one source over two shards: the larger one's share, %",
            value: 100.0 - median(shares.into_iter()) * 100.0,
            most: 55.0,
        },
    ])
}

fn start(arguments: &Arguments, file: &Path, cpus: &str) -> std::io::Result<Running> {
    let program = arguments.trunkline.clone().or_else(beside_us).unwrap_or_default();
    let file = file.to_string_lossy().into_owned();
    Running::start("limits", &program, &[file], cpus, &scratch())
}

fn write_properties(name: &str, lines: &str) -> std::io::Result<PathBuf> {
    std::fs::create_dir_all(scratch())?;
    let file = scratch().join(format!("{name}.properties"));
    let (external, internal) = (BALANCER.port(), BALANCER_INTERNAL.port());
    let text = format!(
        "host={}\nexternalUdpPort={external}\nexternalTcpPort={external}\ninternalUdpPort={internal}\n\
         internalTcpPort={internal}\nstatisticPort={STATISTICS}\n{lines}",
        BALANCER.ip()
    );
    std::fs::write(&file, text)?;
    Ok(file)
}

/// The share of datagrams that the least busy shard received.
#[expect(clippy::cast_precision_loss, reason = "figures are printed with three digits")]
fn smallest_share() -> std::io::Result<f64> {
    let mut stream = TcpStream::connect((BALANCER.ip(), STATISTICS))?;
    write!(stream, "GET /metrics HTTP/1.0\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    let counts: Vec<u64> = page
        .lines()
        .filter_map(|it| it.strip_prefix("trunkline_shard_datagrams_total{")?.split_once("} "))
        .filter_map(|(_, count)| count.trim().parse().ok())
        .collect();
    let least = counts.iter().min().copied().unwrap_or(0) as f64;
    Ok(least / counts.iter().sum::<u64>().max(1) as f64)
}

/// Loads under which shards are compared.
const LOADS: [(&str, Pace); 2] = [("4000", Pace::Open(4_000.0)), ("maximum", Pace::Closed(WINDOW))];
const MAXIMUM: usize = 1;
const MESSAGES_OF_A_CALL: f64 = 7.0;
const STATISTICS: u16 = 16_099;
/// Until everything is read, bound and started.
const SETTLE_TIME: Duration = Duration::from_secs(2);
const REST_TIME: Duration = Duration::from_secs(10);
