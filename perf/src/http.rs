//! HTTP side by side: each balancer alone on one core, clients and nodes on another.
//!
//! wrk asks and nginx answers; the load decides what is asked for. CPU is what the scheduler charged to the
//! balancer's processes while wrk ran, divided by the requests that wrk counted. Rounds are interleaved;
//! medians are printed, and how ours compares with the better of the peers.

use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use argh::FromArgs;
use tools::process::CpuTime;

use crate::compare::table;

mod contender;
mod echo;
pub(crate) mod floor;
mod idle;
mod wrk;

use contender::{CONTENDERS, Contender, Role};
use wrk::Security;

/// Compare HTTP balancers: CPU per request, latency, memory.
#[derive(FromArgs)]
#[argh(subcommand, name = "http")]
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
    /// only these loads (comma list of names); default all
    #[argh(option)]
    loads: Option<String>,
    /// the balancer's binary; default trunkline beside this one
    #[argh(option)]
    trunkline: Option<PathBuf>,
    /// directory of the configurations; default perf/peers
    #[argh(option, default = "PathBuf::from(\"perf/peers\")")]
    peers: PathBuf,
    /// CPU of the balancer; default 0
    #[argh(option, default = "0")]
    balancer_cpu: usize,
    /// CPU of clients and nodes; default 1
    #[argh(option, default = "1")]
    generator_cpu: usize,
    /// write the table into this file, between its marks (perf/README.md)
    #[argh(option)]
    write: Option<PathBuf>,
}

/// One load that every contender gets. A new row is measured and printed without further code.
struct Load {
    /// Name for `--loads`.
    name: &'static str,
    title: &'static str,
    kind: Kind,
    target: Target,
}

/// What ours may cost at most.
#[derive(Clone, Copy)]
enum Target {
    /// This share of what the better peer does.
    Share(f64),
    /// So many bytes.
    Bytes(u32),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Share(it) => write!(f, "{it}"),
            Target::Bytes(it) => write!(f, "{it} bytes"),
        }
    }
}

/// What is done and what the figure means.
#[derive(Clone, Copy)]
enum Kind {
    /// wrk. CPU per request, microseconds.
    Requests { path: &'static str, security: Security, pace: wrk::Pace, connections: u32 },
    /// WebSocket messages come back. CPU per message that passes, microseconds.
    Messages,
    /// Connections wait. Resident memory of each, bytes.
    Idle,
}

impl Load {
    /// Whether who reads nothing and keeps nothing can carry it: not inside TLS, nor what no socket takes at once;
    /// and idle connections take no CPU.
    fn is_passed_unread(&self) -> bool {
        match self.kind {
            Kind::Requests { path, security, .. } => security == Security::Plain && path != LARGE,
            Kind::Messages => true,
            Kind::Idle => false,
        }
    }
}

const SMALL: &str = "/small";
const LARGE: &str = "/1m";
/// Those of `http-nodes.conf`.
const NODES: [SocketAddr; 2] = [crate::compare::loopback(17_101), crate::compare::loopback(17_102)];

/// In the order of measurement.
const LOADS: &[Load] = &[
    requests("small", "200 B, flat out", SMALL, wrk::Pace::FlatOut, 0.85),
    requests("paced", "200 B, 4 000/s", SMALL, wrk::Pace::Rate(4_000), 0.85),
    requests("half", "200 B, half load (10 000/s)", SMALL, wrk::Pace::Rate(10_000), 0.85),
    requests("16k", "16 KiB, flat out", "/16k", wrk::Pace::FlatOut, 0.85),
    requests("16k-paced", "16 KiB, 4 000/s", "/16k", wrk::Pace::Rate(4_000), 0.85),
    requests("1m", "1 MiB", LARGE, wrk::Pace::FlatOut, 1.0),
    requests("close", "200 B, a connection each", SMALL, wrk::Pace::Close, 0.9),
    secure("tls", "200 B, TLS", Security::Tls, wrk::Pace::FlatOut, 1.0),
    secure(
        "tls-anew",
        "200 B, a full TLS handshake each",
        Security::TlsAnew,
        wrk::Pace::Close,
        0.9,
    ),
    secure(
        "tls-resumed",
        "200 B, a resumed TLS session each",
        Security::Tls,
        wrk::Pace::Close,
        0.9,
    ),
    Load {
        name: "ws",
        title: "WebSocket message",
        kind: Kind::Messages,
        target: Target::Share(1.0),
    },
    Load {
        name: "idle",
        title: "idle connection, bytes",
        kind: Kind::Idle,
        target: Target::Bytes(2_048),
    },
];

const fn requests(
    name: &'static str,
    title: &'static str,
    path: &'static str,
    pace: wrk::Pace,
    share: f64,
) -> Load {
    let kind = Kind::Requests { path, security: Security::Plain, pace, connections: 64 };
    Load { name, title, kind, target: Target::Share(share) }
}

const fn secure(
    name: &'static str,
    title: &'static str,
    security: Security,
    pace: wrk::Pace,
    share: f64,
) -> Load {
    let kind = Kind::Requests { path: SMALL, security, pace, connections: 64 };
    Load { name, title, kind, target: Target::Share(share) }
}

/// What one contender did under one load in one round.
#[derive(Clone, Copy, Debug)]
struct Sample {
    /// CPU microseconds per request or message, or bytes per connection.
    cost: f64,
    per_second: f64,
    /// Microseconds; zero where it is not measured.
    p99: f64,
    failed: u64,
}

pub(crate) fn run(arguments: &Arguments) -> std::io::Result<()> {
    let is_wanted = |list: &Option<String>, name: &str| {
        list.as_deref().is_none_or(|list| list.split(',').any(|it| it == name))
    };
    let loads: Vec<&Load> =
        LOADS.iter().filter(|it| is_wanted(&arguments.loads, it.name)).collect();
    let contenders: Vec<&Contender> =
        CONTENDERS.iter().filter(|it| is_wanted(&arguments.only, it.name)).collect();
    let directory = prepare(arguments)?;
    let _nodes = Pinned::start(
        arguments.generator_cpu,
        Path::new("/usr/sbin/nginx"),
        &["-p", ".", "-c", "http-nodes.conf"],
        &directory,
    )?;
    let _echo = echo::Server::start(arguments.generator_cpu)?;
    let mut samples: Vec<Vec<Vec<Sample>>> = vec![vec![Vec::new(); loads.len()]; contenders.len()];
    for round in 1..=arguments.rounds {
        for (contender, samples) in contenders.iter().zip(&mut samples) {
            let balancer = contender.start(arguments, &directory)?;
            for (load, samples) in loads.iter().zip(samples) {
                if contender.role == Role::Floor && !load.is_passed_unread() {
                    continue;
                }
                let sample = measure(arguments, load.kind, &directory, balancer.id())?;
                note(&format!(
                    "round {round} {:<10} {:<10} {:>8.2}, {:>7.0}/s, p99 {:.0} us, {} failed",
                    contender.name,
                    load.name,
                    sample.cost,
                    sample.per_second,
                    sample.p99,
                    sample.failed
                ));
                samples.push(sample);
            }
        }
    }
    let text = markdown(arguments, &contenders, &loads, &samples);
    std::io::stdout().write_all(text.as_bytes())?;
    arguments.write.as_deref().map_or(Ok(()), |file| table::write(file, "http", &text))
}

#[expect(clippy::cast_precision_loss, reason = "figures are printed with three digits")]
fn measure(
    arguments: &Arguments,
    kind: Kind,
    directory: &Path,
    balancer: u32,
) -> std::io::Result<Sample> {
    let before = CpuTime::of_tree(balancer);
    let micros = |count: u64| {
        let used = CpuTime::of_tree(balancer).since(before);
        used.run.as_secs_f64() * 1e6 / count.max(1) as f64
    };
    match kind {
        Kind::Requests { path, security, pace, connections } => {
            let ask = wrk::Ask { path, security, pace, connections, seconds: arguments.seconds };
            let answer = wrk::run(arguments.generator_cpu, directory, &ask)?;
            Ok(Sample {
                cost: micros(answer.requests),
                per_second: answer.per_second,
                p99: answer.p99_micros,
                failed: answer.failed,
            })
        }
        Kind::Messages => {
            let seconds = Duration::from_secs(arguments.seconds);
            // Each passes twice.
            let messages = 2 * echo::exchange(arguments.generator_cpu, seconds)?;
            let per_second = messages as f64 / seconds.as_secs_f64();
            Ok(Sample { cost: micros(messages), per_second, p99: 0.0, failed: 0 })
        }
        Kind::Idle => {
            let cost = idle::bytes_each(balancer)?;
            Ok(Sample { cost, per_second: 0.0, p99: 0.0, failed: 0 })
        }
    }
}

/// Medians, and how ours compares.
fn markdown(
    arguments: &Arguments,
    contenders: &[&Contender],
    loads: &[&Load],
    samples: &[Vec<Vec<Sample>>],
) -> String {
    let Arguments { rounds, seconds, .. } = arguments;
    let mut text = format!(
        "Made by `cargo run --release -p perf -- http --rounds {rounds} --seconds {seconds}`, {}.\n\
         Medians of {rounds} interleaved rounds: CPU in microseconds per request or message, p99 in microseconds.\n\n| |",
        crate::compare::machine()
    );
    for contender in contenders {
        let _ = write!(text, " {} | p99 | /s |", contender.title);
    }
    text.push_str(" ours to the better peer | the floor to it | wanted |\n|---|");
    text.push_str(&"---|".repeat(contenders.len() * 3 + 3));
    text.push('\n');
    for (at, load) in loads.iter().enumerate() {
        let of = |row: usize, figure: fn(&Sample) -> f64| {
            let samples = samples.get(row).and_then(|it| it.get(at));
            table::median(samples.into_iter().flatten().map(figure))
        };
        let _ = write!(text, "| {} |", load.title);
        let (mut own, mut best, mut floor) = (Vec::new(), f64::INFINITY, 0.0);
        for (row, contender) in contenders.iter().enumerate() {
            let cost = of(row, |it| it.cost);
            let (p99, per_second) = (of(row, |it| it.p99), of(row, |it| it.per_second));
            let _ = write!(text, " {cost:.1} | {p99:.0} | {per_second:.0} |");
            match contender.role {
                Role::Ours => own.push(cost),
                Role::Peer => best = best.min(cost),
                Role::Floor => floor = cost,
            }
        }
        let shares: Vec<String> =
            own.iter().filter(|_| best.is_finite()).map(|it| format!("{:.2}", it / best)).collect();
        let floor = if floor > 0.0 && best.is_finite() {
            format!("{:.2}", floor / best)
        } else {
            "-".to_owned()
        };
        let _ = writeln!(text, " {} | {floor} | {} |", shares.join(", "), load.target);
    }
    text
}

/// A directory with the configurations, the nodes' files and a certificate.
fn prepare(arguments: &Arguments) -> std::io::Result<PathBuf> {
    let directory = std::env::temp_dir().join("trunkline-perf-http");
    let www = directory.join("www");
    std::fs::create_dir_all(&www)?;
    for name in FILES {
        std::fs::copy(arguments.peers.join(name), directory.join(name))?;
    }
    std::fs::copy(tests::keys().path("lb.pem"), directory.join("lb.pem"))?;
    std::fs::write(www.join("16k"), vec![b'x'; 16 * 1024])?;
    std::fs::write(www.join("1m"), vec![b'x'; 1024 * 1024])?;
    Ok(directory)
}

/// A process on one CPU that ends when this is dropped.
struct Pinned(Child);

impl Pinned {
    fn start(
        cpu: usize,
        program: &Path,
        arguments: &[&str],
        directory: &Path,
    ) -> std::io::Result<Pinned> {
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let log = std::fs::File::create(directory.join(format!("{name}.log")))?;
        let child = Command::new("taskset")
            .args(["-c", &cpu.to_string()])
            .arg(program)
            .args(arguments)
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        Ok(Pinned(child))
    }

    fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        crate::compare::stop(&mut self.0);
    }
}

fn note(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

const FILES: [&str; 6] = [
    "http-haproxy.cfg",
    "http-nginx.conf",
    "http-nodes.conf",
    "http-trunkline.properties",
    "http.lua",
    "wrk-anew.cnf",
];
