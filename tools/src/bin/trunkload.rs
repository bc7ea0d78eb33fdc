//! `trunkload`: places SIP calls through a balancer and says what became of them.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use argh::FromArgs;
use protocols::sip::Transport;
use tools::agent::{self, AgentConfig, Polling};
use tools::caller::{CallerConfig, NextHop, Pace};
use tools::line;
use tools::node::{NodeConfig, ReplyTo};
use tools::report::Report;

/// Places SIP calls (INVITE, ACK, BYE) and prints calls per node, failures and latencies.
#[derive(FromArgs)]
#[argh(
    example = "trunkload --target 127.0.0.1:5060 --rate 500 --nodes 2 --heartbeat-to 127.0.0.1:5065",
    note = "Exit codes: 0 every call succeeded, 1 calls failed or met another node than their dialog's, 2 it
could not run, or the command line is wrong."
)]
struct Arguments {
    /// where calls go: the balancer's external address
    #[argh(option)]
    target: SocketAddr,
    /// calls per second (open loop; latencies count from when a call was due). Default 100
    #[argh(option)]
    rate: Option<f64>,
    /// calls in progress instead of a rate (closed loop; finds the maximum)
    #[argh(option)]
    window: Option<u32>,
    /// number of calls; default without limit
    #[argh(option)]
    calls: Option<u64>,
    /// seconds for which calls are placed; default 10 without --calls
    #[argh(option)]
    duration: Option<f64>,
    /// milliseconds from answer to BYE; default 0
    #[argh(option, default = "0")]
    hold: u64,
    /// milliseconds until a request without answer is given up; default 32000
    #[argh(option, default = "32_000")]
    timeout: u64,
    /// address to call from (and of --nodes); default loopback
    #[argh(option)]
    bind: Option<IpAddr>,
    /// sockets or connections to call from; default 1
    #[argh(option, default = "1")]
    lines: usize,
    /// udp or tcp
    #[argh(option, default = "Transport::Udp", from_str_fn(transport))]
    transport: Transport,
    /// pretend nodes to run in the same thread; default none
    #[argh(option, default = "0")]
    nodes: u16,
    /// port of the first of them; default any
    #[argh(option, default = "0")]
    node_port: u16,
    /// internal address of a balancer, to which those nodes send heartbeats; repeatable
    #[argh(option)]
    heartbeat_to: Vec<SocketAddr>,
    /// milliseconds between heartbeats; the first call waits three of them. Default 1000
    #[argh(option, default = "1000")]
    heartbeat_interval: u64,
    /// never send anything again
    #[argh(switch)]
    no_retransmissions: bool,
    /// what is called does not read SIP: in-dialog requests to the target, responses to the source
    #[argh(switch)]
    blind: bool,
    /// use a whole core instead of sleeping between messages
    #[argh(switch)]
    busy: bool,
    /// CPU to be pinned to
    #[argh(option)]
    cpu: Option<usize>,
    /// print JSON
    #[argh(switch)]
    json: bool,
}

fn main() -> ExitCode {
    let arguments: Arguments = match line::read("trunkload") {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    let json = arguments.json;
    match run(arguments) {
        Ok(report) => {
            let text = if json { format!("{:#}\n", report.to_json()) } else { report.to_string() };
            let written = std::io::stdout().write_all(text.as_bytes());
            let good = report.calls.failed_total() == 0 && report.misrouted() == 0;
            if good && written.is_ok() { ExitCode::SUCCESS } else { ExitCode::from(1) }
        }
        Err(error) => {
            line::complain("trunkload", &error.to_string());
            ExitCode::from(line::EXIT_USAGE)
        }
    }
}

fn run(arguments: Arguments) -> std::io::Result<Report> {
    let bind = arguments.bind.unwrap_or(match arguments.target {
        SocketAddr::V4(_) => IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
        SocketAddr::V6(_) => IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
    });
    let retransmit = !arguments.no_retransmissions;
    let interval = Duration::from_millis(arguments.heartbeat_interval);
    let nodes = (0..arguments.nodes).map(|number| {
        let port = match arguments.node_port {
            0 => 0,
            first => first.saturating_add(number),
        };
        NodeConfig {
            heartbeat_to: arguments.heartbeat_to.clone(),
            heartbeat_interval: interval,
            reply_to: if arguments.blind { ReplyTo::Source } else { ReplyTo::Via },
            retransmit,
            ..NodeConfig::new(SocketAddr::new(bind, port), None)
        }
    });
    let polling = if arguments.busy { Polling::Busy } else { Polling::Block };
    let config =
        AgentConfig { nodes: nodes.collect(), callers: Vec::new(), polling, cpu: arguments.cpu };
    let agent = agent::start(config)?;
    if arguments.nodes > 0 && !arguments.heartbeat_to.is_empty() {
        std::thread::sleep(interval * HEARTBEATS_BEFORE_CALLS);
    }
    let pace = match (arguments.window, arguments.rate) {
        (Some(window), _) => Pace::Closed(window),
        (None, rate) => Pace::Open(rate.unwrap_or(100.0)),
    };
    let seconds = arguments.duration.or(arguments.calls.is_none().then_some(10.0));
    agent.place(CallerConfig {
        transport: arguments.transport,
        from: vec![SocketAddr::new(bind, 0); arguments.lines.max(1)],
        calls_max: arguments.calls,
        duration: seconds.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default()),
        hold: Duration::from_millis(arguments.hold),
        timeout: Duration::from_millis(arguments.timeout),
        retransmit,
        next_hop: if arguments.blind { NextHop::Target } else { NextHop::Route },
        ..CallerConfig::new(arguments.target, pace)
    })?;
    agent.wait(Duration::MAX)
}

fn transport(text: &str) -> Result<Transport, String> {
    match text {
        "udp" => Ok(Transport::Udp),
        "tcp" => Ok(Transport::Tcp),
        _ => Err("udp or tcp".to_owned()),
    }
}

const HEARTBEATS_BEFORE_CALLS: u32 = 3;
