//! `trunknode`: a pretend application server that answers calls and sends heartbeats.

use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use argh::FromArgs;
use tools::agent::{self, AgentConfig, Polling};
use tools::line;
use tools::node::{Answer, NodeConfig, ReplyTo};

/// Answers SIP calls until it is killed, and says every ten seconds what it has seen.
#[derive(FromArgs)]
#[argh(example = "trunknode --bind 127.0.0.1:5080 --heartbeat-to 127.0.0.1:5065")]
struct Arguments {
    /// where it listens, ip:port; repeat for several nodes
    #[argh(option)]
    bind: Vec<SocketAddr>,
    /// internal address of a balancer; repeatable
    #[argh(option)]
    heartbeat_to: Vec<SocketAddr>,
    /// milliseconds between heartbeats; default 1000
    #[argh(option, default = "1000")]
    heartbeat_interval: u64,
    /// udp, or tcp for both; default both
    #[argh(option, default = "true", from_str_fn(with_tcp))]
    transport: bool,
    /// a further line of the heartbeat, such as version=2; repeatable
    #[argh(option)]
    property: Vec<String>,
    /// refuse every call with this status, such as 503
    #[argh(option)]
    status: Option<u16>,
    /// do not answer calls at all, but go on with heartbeats
    #[argh(switch)]
    silent: bool,
    /// send responses to where the request came from, whatever its Via says
    #[argh(switch)]
    blind: bool,
}

fn main() -> ExitCode {
    let arguments = match line::read("trunknode") {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            line::complain("trunknode", &error.to_string());
            ExitCode::from(line::EXIT_USAGE)
        }
    }
}

fn run(arguments: Arguments) -> std::io::Result<()> {
    if arguments.bind.is_empty() {
        return Err(std::io::Error::other("name an address with --bind"));
    }
    let answer = match arguments.status {
        _ if arguments.silent => Answer::Silent,
        Some(status) => Answer::Refuse(status),
        None => Answer::Accept,
    };
    let nodes = arguments.bind.iter().map(|address| NodeConfig {
        tcp: arguments.transport,
        heartbeat_to: arguments.heartbeat_to.clone(),
        heartbeat_interval: Duration::from_millis(arguments.heartbeat_interval),
        properties: arguments.property.clone(),
        answer,
        reply_to: if arguments.blind { ReplyTo::Source } else { ReplyTo::Via },
        ..NodeConfig::new(*address, None)
    });
    let config = AgentConfig {
        nodes: nodes.collect(),
        callers: Vec::new(),
        polling: Polling::Block,
        cpu: None,
    };
    let agent = agent::start(config)?;
    for address in agent.nodes() {
        writeln!(std::io::stdout(), "listening on {address}")?;
    }
    loop {
        std::thread::sleep(REPORT_EVERY);
        let report = agent.report()?;
        for node in &report.nodes {
            let seen = node.seen;
            writeln!(
                std::io::stdout(),
                "{}: {} calls, {} other requests, {} of {} heartbeats answered, {} malformed",
                node.address,
                seen.invites,
                seen.requests,
                seen.heartbeats_answered,
                seen.heartbeats,
                seen.malformed
            )?;
        }
    }
}

fn with_tcp(text: &str) -> Result<bool, String> {
    match text {
        "udp" => Ok(false),
        "tcp" => Ok(true),
        _ => Err("udp or tcp".to_owned()),
    }
}

const REPORT_EVERY: Duration = Duration::from_secs(10);
