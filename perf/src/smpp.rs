//! SMPP side by side: each front alone on one core, ESMEs and SMSCs in one busy-polling thread on another.
//!
//! HAProxy and nginx pass bytes on and read none of them; they are the bar because nobody can do less. CPU is
//! per PDU that crosses, whichever way. Rounds are interleaved; medians are printed.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use argh::FromArgs;
use tools::process::{self, CpuTime};

use crate::compare::{machine, table};

mod front;
mod load;

use front::{FRONTS, Front, Running};
use load::{Load, Pace};

/// Compare fronts for SMPP: CPU per PDU, latency, memory per session.
#[derive(FromArgs)]
#[argh(subcommand, name = "smpp")]
pub(crate) struct Arguments {
    /// rounds, of which medians are taken; default 5
    #[argh(option, default = "5")]
    rounds: usize,
    /// seconds of each measurement; default 2
    #[argh(option, default = "2")]
    seconds: u64,
    /// only these fronts (comma list of names); default all
    #[argh(option)]
    only: Option<String>,
    /// sessions; default 48
    #[argh(option, default = "48")]
    sessions: usize,
    /// requests that each session keeps open, flat out; default 10
    #[argh(option, default = "10")]
    window: u32,
    /// PDUs a second, paced; default 12000
    #[argh(option, default = "12000")]
    rate: u32,
    /// idle sessions that are opened to see what one takes; default 1000
    #[argh(option, default = "1000")]
    idle: usize,
    /// the balancer's binary; default trunkline beside this one
    #[argh(option)]
    trunkline: Option<PathBuf>,
    /// directory of the configurations; default perf/peers
    #[argh(option, default = "PathBuf::from(\"perf/peers\")")]
    peers: PathBuf,
    /// CPU of the front; default 0
    #[argh(option, default = "0")]
    front_cpu: usize,
    /// CPU of ESMEs and SMSCs; default 1
    #[argh(option, default = "1")]
    generator_cpu: usize,
}

/// What one front did in one round.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    /// Microseconds of CPU per PDU, flat out.
    flat_micros: f64,
    /// PDUs a second, flat out.
    flat_rate: f64,
    /// Share of one core that the front used, flat out.
    flat_core: f64,
    /// Microseconds of CPU per PDU, paced.
    paced_micros: f64,
    /// From a request's time to its response, microseconds, paced.
    p50: f64,
    p99: f64,
    /// Resident memory for each idle session, bytes.
    session_bytes: f64,
    /// Requests of which no response came.
    missing: f64,
}

pub(crate) fn run(arguments: &Arguments) -> std::io::Result<()> {
    let machine = machine(); // asked before we are pinned: it counts CPUs
    process::pin(arguments.generator_cpu)?;
    let is_wanted = |front: &&Front| {
        let only = arguments.only.as_deref();
        only.is_none_or(|list| list.split(',').any(|it| it == front.name))
    };
    let mut rows: Vec<(&Front, Vec<Sample>)> = Vec::new();
    for front in FRONTS.iter().filter(is_wanted) {
        match front.missing(arguments) {
            None => rows.push((front, Vec::new())),
            Some(what) => note(&format!("{}: left out, {what} is not there", front.name)),
        }
    }
    for round in 1..=arguments.rounds {
        let mut taken = Vec::new();
        for (front, _) in &rows {
            taken.push(alone(arguments, front)?);
        }
        let fronts: Vec<&Front> = rows.iter().map(|it| it.0).collect();
        together(arguments, &fronts, &mut taken)?;
        for ((front, samples), sample) in rows.iter_mut().zip(taken) {
            note(&format!("round {round} {:<16} {sample:.1?}", front.name));
            samples.push(sample);
        }
    }
    std::io::stdout().write_all(markdown(arguments, &rows, &machine).as_bytes())
}

/// What a front does at its highest rate, and what its idle sessions take.
#[expect(clippy::cast_precision_loss, reason = "figures are printed with three digits")]
fn alone(arguments: &Arguments, front: &Front) -> std::io::Result<Sample> {
    let mut load = Load::listen(&front::SERVERS)?;
    let running = front.start(arguments)?;
    load.bind(front.target, arguments.sessions)?;
    let seconds = Duration::from_secs(arguments.seconds);
    let mut sample = Sample::default();

    load.run(Pace::Window(arguments.window), WARM_UP)?;
    let before = cpu(running.as_ref());
    let used = load.run(Pace::Window(arguments.window), seconds)?;
    let spent = cpu(running.as_ref()).since(before);
    sample.flat_micros = micros_each(spent, used.pdus);
    sample.flat_rate = used.pdus as f64 / seconds.as_secs_f64();
    sample.flat_core = spent.run.as_secs_f64() / seconds.as_secs_f64();
    load.drain()?;
    sample.missing = load.missing() as f64;

    if let Some(running) = &running {
        let before = running.resident_bytes();
        load.bind(front.target, arguments.idle)?;
        let grown = running.resident_bytes().saturating_sub(before);
        sample.session_bytes = grown as f64 / arguments.idle.max(1) as f64;
    }
    Ok(sample)
}

/// What one front did in its slices of the steady rate.
#[derive(Default)]
struct Paced {
    pdus: u64,
    spent: Duration,
    /// One for each slice.
    p50: Vec<f64>,
    p99: Vec<f64>,
}

/// The latency at a steady rate: all fronts are up, and each is asked for a quarter of a second in turn. The p99 is
/// the median of the slices': over the whole time it is made of a few pauses of the machine, and two equal
/// fronts are four times apart.
#[expect(clippy::cast_precision_loss, reason = "figures are printed with three digits")]
fn together(
    arguments: &Arguments,
    fronts: &[&Front],
    samples: &mut [Sample],
) -> std::io::Result<()> {
    let mut load = Load::listen(&front::SERVERS)?;
    let mut running = Vec::new();
    let mut sessions = Vec::new();
    for front in fronts {
        running.push(front.start(arguments)?);
        sessions.push(load.bind(front.target, arguments.sessions)?);
    }
    // Two PDUs for each request.
    let pace = Pace::Rate(arguments.rate / 2);
    let mut taken: Vec<Paced> = Vec::new();
    taken.resize_with(fronts.len(), Paced::default);
    let slices = arguments.seconds * 1_000 / u64::try_from(SLICE.as_millis()).unwrap_or(1);
    for slice in 0..usize::try_from(slices).unwrap_or(0) {
        for turn in 0..fronts.len() {
            // Nobody is always behind the same one.
            let at = (turn + slice) % fronts.len();
            let (Some(range), Some(running), Some(taken)) =
                (sessions.get(at), running.get(at), taken.get_mut(at))
            else {
                continue;
            };
            load.choose(range.clone());
            load.run(pace, SLICE_WARM_UP)?;
            load.drain()?;
            let before = cpu(running.as_ref());
            let used = load.run(pace, SLICE)?;
            taken.spent += cpu(running.as_ref()).since(before).run;
            taken.pdus += used.pdus;
            taken.p50.push(used.quantile(0.5));
            taken.p99.push(used.quantile(0.99));
            load.drain()?;
        }
    }
    for (sample, taken) in samples.iter_mut().zip(taken) {
        sample.paced_micros = taken.spent.as_secs_f64() * 1e6 / taken.pdus.max(1) as f64;
        (sample.p50, sample.p99) =
            (table::median(taken.p50.into_iter()), table::median(taken.p99.into_iter()));
        sample.missing += load.missing() as f64;
    }
    Ok(())
}

fn cpu(running: Option<&Running>) -> CpuTime {
    running.map(Running::cpu).unwrap_or_default()
}

#[expect(clippy::cast_precision_loss, reason = "figures are printed with three digits")]
fn micros_each(spent: CpuTime, pdus: u64) -> f64 {
    spent.run.as_secs_f64() * 1e6 / pdus.max(1) as f64
}

fn markdown(arguments: &Arguments, rows: &[(&Front, Vec<Sample>)], machine: &str) -> String {
    let mut text = String::new();
    let Arguments { rounds, seconds, sessions, window, rate, .. } = arguments;
    let _ = writeln!(
        text,
        "Made by `cargo run --release -p perf -- smpp --rounds {rounds} --seconds {seconds}`, {machine}. \
         {sessions} sessions; flat out with window {window}, paced at {rate} PDU/s. CPU in microseconds per \
         PDU, latency of a response in microseconds, memory of an idle session in bytes.\n\n\
         | | CPU, flat out | PDU/s | core | CPU, paced | p50 / p99, paced | memory |\n\
         |---|---|---|---|---|---|---|"
    );
    let median =
        |samples: &[Sample], figure: fn(&Sample) -> f64| table::median(samples.iter().map(figure));
    for (front, samples) in rows {
        let _ = writeln!(
            text,
            "| {} | {:.2} | {:.0} | {:.0} % | {:.1} | {:.0} / {:.0} | {:.0} |",
            front.title,
            median(samples, |it| it.flat_micros),
            median(samples, |it| it.flat_rate),
            median(samples, |it| it.flat_core) * 100.0,
            median(samples, |it| it.paced_micros),
            median(samples, |it| it.p50),
            median(samples, |it| it.p99),
            median(samples, |it| it.session_bytes),
        );
    }
    let of = |name: &str| rows.iter().find(|it| it.0.name == name).map(|it| it.1.as_slice());
    let direct = of("direct").map_or(0.0, |it| median(it, |it| it.p99));
    let Some(bar) = of("haproxy") else { return text };
    text.push('\n');
    for name in ["trunkline", "trunkline-mux", "haproxy-again"] {
        let Some(own) = of(name) else { continue };
        // Each round on its own: what the machine did meanwhile hit both.
        let ratio = |figure: fn(&Sample) -> f64| {
            table::median(own.iter().zip(bar).map(|(own, bar)| figure(own) / figure(bar)))
        };
        let added = |samples| median(samples, |it: &Sample| it.p99) - direct;
        let _ = writeln!(
            text,
            "* {name} against HAProxy: {:.2} of its CPU flat out, {:.2} paced; {:.2} of its added p99.",
            ratio(|it| it.flat_micros),
            ratio(|it| it.paced_micros),
            added(own) / added(bar),
        );
    }
    text
}

fn note(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

const WARM_UP: Duration = Duration::from_millis(400);
const SLICE: Duration = Duration::from_millis(250);
const SLICE_WARM_UP: Duration = Duration::from_millis(30);
