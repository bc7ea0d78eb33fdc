//! TLS and WebSocket: what handshakes, messages and idle clients cost. The balancer alone on one core, both
//! ends of everything on another; rounds are interleaved, medians are shown.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use argh::FromArgs;
use tools::process::pin;

mod balancer;
mod handshakes;
mod idle;
mod messages;
mod talk;
mod wire;

use talk::Terms;

use crate::compare::{is_wanted, machine, table};

/// Measure TLS and WebSocket: handshakes against HAProxy, CPU per message by transport, idle clients.
#[derive(FromArgs)]
#[argh(subcommand, name = "secure")]
pub(crate) struct Arguments {
    /// rounds, of which medians are taken; default 5
    #[argh(option, default = "5")]
    rounds: usize,
    /// seconds of each measurement; default 2
    #[argh(option, default = "2")]
    seconds: u64,
    /// only these parts (comma list: handshakes, messages, idle); default all
    #[argh(option)]
    only: Option<String>,
    /// clients that idle; default 20000
    #[argh(option, default = "20_000")]
    clients: usize,
    /// the balancer's binary; default trunkline beside this one
    #[argh(option)]
    trunkline: Option<PathBuf>,
    /// CPU of the balancer; default 0
    #[argh(option, default = "0")]
    balancer_cpu: usize,
    /// CPU of callers and nodes; default 1
    #[argh(option, default = "1")]
    generator_cpu: usize,
    /// write the tables into this file, between their marks (perf/README.md)
    #[argh(option)]
    write: Option<PathBuf>,
}

/// Certificates of a run, as files and as terms.
struct Bench {
    directory: PathBuf,
    certificate: PathBuf,
    authority: PathBuf,
    terms: Terms,
}

impl Bench {
    /// With a key of the kind that is made by default.
    fn ecdsa() -> std::io::Result<Bench> {
        Bench::of("ecdsa", tests::keys().sign("lb.test", |_| {}))
    }

    /// With a key that `openssl` makes: rustls has no way to make one.
    fn rsa() -> std::io::Result<Bench> {
        let words = ["genpkey", "-quiet", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"];
        let output = Command::new("openssl").args(words).output()?;
        let pem = String::from_utf8(output.stdout).map_err(std::io::Error::other)?;
        Bench::of("rsa", tests::keys().sign_rsa("lb.test", &pem))
    }

    fn of(kind: &str, signed: tests::Signed) -> std::io::Result<Bench> {
        let directory = std::env::temp_dir().join("trunkline-perf").join(kind);
        std::fs::create_dir_all(&directory)?;
        let certificate = directory.join("lb.pem");
        std::fs::write(&certificate, &signed.pem)?;
        let node = tests::keys().sign("node.test", |_| {});
        let terms = Terms {
            client: Arc::new(tests::keys().client(None)),
            server: Arc::new(tests::keys().server(&node, false)),
        };
        Ok(Bench { directory, certificate, authority: tests::keys().path("ca.pem"), terms })
    }
}

pub(crate) fn run(arguments: &Arguments) -> std::io::Result<()> {
    let machine = machine(); // before pinning, which hides a CPU
    let is_wanted = |part| is_wanted(&arguments.only, part);
    let mut tables = Vec::new();
    if is_wanted("handshakes") {
        tables.push(handshakes::run(arguments)?);
    }
    pin(arguments.generator_cpu)?;
    let bench = Bench::ecdsa()?;
    if is_wanted("messages") {
        tables.push(messages::run(arguments, &bench)?);
    }
    if is_wanted("idle") {
        tables.push(idle::run(arguments, &bench)?);
    }
    let Arguments { rounds, seconds, .. } = arguments;
    let only = arguments.only.as_ref().map_or(String::new(), |it| format!(" --only {it}"));
    let head = format!(
        "Made by `cargo run --release -p perf -- secure --rounds {rounds} --seconds {seconds}{only}`, {machine}.\n\n"
    );
    let text = head + &tables.join("\n");
    std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes())?;
    arguments.write.as_deref().map_or(Ok(()), |file| table::write(file, "secure", &text))
}

fn note(line: &str) {
    let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{line}\n"));
}

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}
