//! The demo: the balancer as a process of its own, two pretend nodes, callers over UDP and TCP. One node
//! is killed in the middle and comes back; a table at the end says what became of every call.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signalfd::{SfdFlags, SignalFd};
use protocols::sip::Transport;
use protocols::time::Time;
use tools::agent::{self, Agent, AgentConfig, Death, Polling};
use tools::caller::{CallerConfig, Pace};
use tools::node::NodeConfig;
use tools::process::CpuTime;
use tools::report::{Lost, Report};

use crate::control;

/// Runs the demo and prints its table. With `stay`, keeps everything up until Ctrl-C. However it ends,
/// neither process nor file is left behind.
///
/// [`control::block_signals`] must have been called: Ctrl-C, SIGTERM and SIGHUP are read here.
///
/// # Errors
///
/// What went wrong, as a sentence for the terminal.
#[allow(clippy::print_stdout)] // the demo talks to a person
pub fn run(stay: bool) -> Result<(), String> {
    match play(stay) {
        Err(End::Interrupted) => {
            println!("\nStopped.");
            Ok(())
        }
        Err(End::Failed(why)) => Err(why),
        Ok(()) => Ok(()),
    }
}

/// Why the demo ends early.
enum End {
    /// By a signal.
    Interrupted,
    /// With a sentence for the terminal.
    Failed(String),
}

impl From<String> for End {
    fn from(why: String) -> End {
        End::Failed(why)
    }
}

#[allow(clippy::print_stdout)]
fn play(stay: bool) -> Result<(), End> {
    let ports = Ports::choose()?;
    let mut balancer = Balancer::start(&ports)?;
    println!("Trunkline demo. The balancer is process {}:", balancer.child.id());
    println!("  clients call      {} (UDP and TCP)", ports.external());
    println!("  nodes register at {} (UDP and TCP)", ports.internal());
    println!("  statistics at     http://{}/lbstat (also /lbinfo, /metrics)", ports.statistic());

    let peers = start_peers(&ports).map_err(|error| format!("cannot start the peers: {error}"))?;
    let nodes: Vec<String> = peers.nodes().iter().map(SocketAddr::to_string).collect();
    println!("  two pretend nodes {}", nodes.join(" and "));
    balancer.wait_for_nodes(2)?;
    println!(
        "Both nodes are registered. {UDP_RATE} calls a second over UDP, {TCP_RATE} over TCP.\n"
    );

    let story = tell(&mut balancer, &ports, &peers)?;
    story.print();
    if stay {
        print_stay(&ports);
        let end = balancer.wait_for_end();
        if !matches!(end, End::Interrupted) {
            return Err(end);
        }
        println!("\nStopped.");
    }
    if story.failed() {
        return Err(End::Failed("calls were lost that should not have been".to_owned()));
    }
    Ok(())
}

/// Ports on loopback, all free a moment ago.
struct Ports {
    external: u16,
    internal: u16,
    statistic: u16,
}

impl Ports {
    #[allow(clippy::print_stdout)]
    fn choose() -> Result<Ports, String> {
        let mut taken = Vec::new();
        let mut choose = |wanted: u16| {
            let port = free_port(wanted, &taken)?;
            if port != wanted {
                println!("Port {wanted} is taken; the demo uses {port} instead.");
            }
            taken.push(port);
            Ok::<u16, String>(port)
        };
        Ok(Ports { external: choose(5060)?, internal: choose(5065)?, statistic: choose(2006)? })
    }

    fn external(&self) -> SocketAddr {
        SocketAddr::new(LOOPBACK, self.external)
    }

    fn internal(&self) -> SocketAddr {
        SocketAddr::new(LOOPBACK, self.internal)
    }

    fn statistic(&self) -> SocketAddr {
        SocketAddr::new(LOOPBACK, self.statistic)
    }
}

fn free_port(wanted: u16, taken: &[u16]) -> Result<u16, String> {
    let is_free = |port: u16| {
        !taken.contains(&port)
            && TcpListener::bind((LOOPBACK, port)).is_ok()
            && UdpSocket::bind((LOOPBACK, port)).is_ok()
    };
    if is_free(wanted) {
        return Ok(wanted);
    }
    // What the kernel hands out for TCP is nearly always free for UDP too.
    for _ in 0..32 {
        let any = TcpListener::bind((LOOPBACK, 0)).and_then(|it| it.local_addr());
        match any {
            Ok(address) if is_free(address.port()) => return Ok(address.port()),
            Ok(_) => {}
            Err(error) => return Err(format!("no free port on {LOOPBACK}: {error}")),
        }
    }
    Err(format!("no free port on {LOOPBACK}"))
}

/// The balancer as users run it: this very program with a configuration file.
struct Balancer {
    child: Child,
    files: Files,
    statistic: SocketAddr,
    signals: SignalFd,
}

impl Balancer {
    fn start(ports: &Ports) -> Result<Balancer, End> {
        let signals = SignalFd::with_flags(&control::signals(), SfdFlags::SFD_NONBLOCK)
            .map_err(|error| error.to_string())?;
        let files = Files::new();
        let (config, log) = (&files.config, &files.log);
        let text = format!(
            "# Written by the demo.\nhost={LOOPBACK}\nexternalPort={}\ninternalPort={}\nstatisticPort={}\n\
             nodeTimeout={}\nshutdownTimeout=0\nhttpPort=0\nrmiRegistryPort=0\n",
            ports.external,
            ports.internal,
            ports.statistic,
            NODE_TIMEOUT.as_millis(),
        );
        std::fs::write(config, text)
            .map_err(|error| format!("cannot write {}: {error}", config.display()))?;
        let output = std::fs::File::create(log)
            .map_err(|error| format!("cannot write {}: {error}", log.display()))?;
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let child = Command::new(program)
            .arg(config)
            .stdin(Stdio::null())
            .stdout(output.try_clone().map_err(|error| error.to_string())?)
            .stderr(output)
            .process_group(0) // the terminal's Ctrl-C is for the demo alone, which then ends its child
            .spawn()
            .map_err(|error| format!("cannot start the balancer: {error}"))?;
        let mut it = Balancer { child, files, statistic: ports.statistic(), signals };
        it.wait_until("the balancer to start", |it| it.ask("/health").is_some())?;
        Ok(it)
    }

    fn wait_for_nodes(&mut self, count: usize) -> Result<(), End> {
        let want = format!("\"activeNodes\":{count},");
        self.wait_until("the nodes to register", |it| {
            it.ask("/lbstat").is_some_and(|text| text.contains(&want))
        })
    }

    fn wait_until(&mut self, what: &str, done: impl Fn(&Self) -> bool) -> Result<(), End> {
        let end = Instant::now() + Duration::from_secs(20);
        while !done(self) {
            self.check()?;
            if Instant::now() > end {
                let why = format!("waited too long for {what}; {}", self.last_words());
                return Err(End::Failed(why));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Whether to go on: no signal came and the process runs.
    fn check(&mut self) -> Result<(), End> {
        if matches!(self.signals.read_signal(), Ok(Some(_))) {
            return Err(End::Interrupted);
        }
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => {
                Err(End::Failed(format!("the balancer ended, {status}; {}", self.last_words())))
            }
            Err(error) => Err(End::Failed(error.to_string())),
        }
    }

    fn wait_for_end(&mut self) -> End {
        loop {
            if let Err(end) = self.check() {
                return end;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn last_words(&self) -> String {
        let log = std::fs::read_to_string(&self.files.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(12).collect();
        let lines: Vec<&str> = lines.into_iter().rev().collect();
        format!("its last log lines:\n{}", lines.join("\n"))
    }

    /// The body of one page of the statistics port.
    fn ask(&self, path: &str) -> Option<String> {
        let mut stream =
            TcpStream::connect_timeout(&self.statistic, Duration::from_secs(1)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: demo\r\nConnection: close\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned())
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        // Nothing to save: a stop without drain is what a demo needs.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Temporary files of this process; removed when dropped.
struct Files {
    config: PathBuf,
    log: PathBuf,
}

impl Files {
    fn new() -> Files {
        let name = format!("trunkline-demo-{}", std::process::id());
        let file = |ending| std::env::temp_dir().join(format!("{name}.{ending}"));
        Files { config: file("properties"), log: file("log") }
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        for file in [&self.config, &self.log] {
            let _ = std::fs::remove_file(file);
        }
    }
}

fn start_peers(ports: &Ports) -> std::io::Result<Agent> {
    let node = |name: &str| NodeConfig {
        hostname: name.to_owned(),
        heartbeat_interval: Duration::from_millis(500),
        ..NodeConfig::new(SocketAddr::new(LOOPBACK, 0), Some(ports.internal()))
    };
    agent::start(AgentConfig {
        nodes: vec![node("node-1"), node("node-2")],
        callers: Vec::new(),
        polling: Polling::Block,
        cpu: None,
    })
}

/// Places the calls, kills a node, brings it back; one line of progress a second.
#[allow(clippy::print_stdout)]
fn tell(balancer: &mut Balancer, ports: &Ports, peers: &Agent) -> Result<Story, End> {
    let text = |error: std::io::Error| error.to_string();
    let cpu_before = CpuTime::of_tree(balancer.child.id());
    for (transport, rate) in [(Transport::Udp, UDP_RATE), (Transport::Tcp, TCP_RATE)] {
        let caller = CallerConfig {
            transport,
            duration: Some(DURATION),
            hold: HOLD,
            timeout: Duration::from_secs(8),
            ..CallerConfig::new(ports.external(), Pace::Open(rate))
        };
        peers.place(caller).map_err(text)?;
    }
    let start = Instant::now();
    let (mut killed, mut restarted) = (None, None);
    let mut second = 0;
    loop {
        balancer.check()?;
        let elapsed = start.elapsed();
        if killed.is_none() && elapsed >= KILL_AT {
            peers.kill(0, Death::Silent);
            killed = Some(peers.now());
            println!("      >>> node-1 is killed: it neither answers nor refuses");
        }
        if restarted.is_none() && elapsed >= RESTART_AT {
            peers.restart(0).map_err(text)?;
            restarted = Some(peers.now());
            println!("      >>> node-1 is back");
        }
        let report = peers.report().map_err(text)?;
        if report.finished || elapsed > DURATION + Duration::from_secs(40) {
            let cpu = CpuTime::of_tree(balancer.child.id()).since(cpu_before);
            let messages = balancer.ask("/lbstat").map_or(0, |it| messages(&it));
            let killed = killed.unwrap_or(report.at);
            return Ok(Story { report, killed, cpu: cpu.ticks(), messages });
        }
        if elapsed.as_secs() > second {
            second = elapsed.as_secs();
            let calls = &report.calls;
            let nodes: Vec<String> =
                report.nodes.iter().map(|it| format!("{:>5}", it.calls)).collect();
            println!(
                "{second:>3} s   placed {:>5}   completed {:>5}   in progress {:>4}   failed {:>3}   by node {}",
                calls.started,
                calls.completed,
                calls.in_progress,
                calls.failed_total(),
                nodes.join(" "),
            );
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Requests and responses of `/lbstat`.
fn messages(lbstat: &str) -> u64 {
    let number = |name: &str| -> u64 {
        let rest = lbstat.split_once(&format!("\"{name}\":")).map_or("", |(_, rest)| rest);
        rest.split(|it: char| !it.is_ascii_digit()).next().unwrap_or_default().parse().unwrap_or(0)
    };
    number("NumberOfRequestsProcessed") + number("NumberOfResponsesProcessed")
}

/// What happened.
struct Story {
    report: Report,
    killed: Time,
    cpu: Duration,
    messages: u64,
}

impl Story {
    /// Calls lost that the dead node had no part in.
    fn lost_without_cause(&self) -> usize {
        self.lost().filter(|it| !is_hit(it.started, self.killed)).count()
    }

    fn lost(&self) -> impl Iterator<Item = &Lost> {
        self.report.calls.lost.iter()
    }

    fn failed(&self) -> bool {
        self.lost_without_cause() > 0 || self.report.misrouted() > 0
    }

    #[allow(clippy::print_stdout)]
    fn print(&self) {
        let calls = &self.report.calls;
        println!("\n{:<52}{:>10}", "calls placed", calls.started);
        println!("{:<52}{:>10}", "calls completed", calls.completed);
        for (index, node) in self.report.nodes.iter().enumerate() {
            println!(
                "{:<52}{:>10}",
                format!("  by node-{} ({})", index + 1, node.address),
                node.calls
            );
        }
        let hit = self.lost().count() - self.lost_without_cause();
        println!(
            "{:<52}{:>10}",
            "calls lost, over before it died or set up after expiry",
            self.lost_without_cause()
        );
        println!("{:<52}{:>10}", "calls hit by the death before it could be known", hit);
        println!(
            "{:<52}{:>10}",
            "in-dialog requests that missed their living node",
            self.report.misrouted()
        );
        let moved: u64 = self.report.nodes.iter().map(|it| it.seen.moved).sum();
        println!("{:<52}{:>10}", "in-dialog requests taken over from the dead node", moved);
        println!(
            "\n{:<28}{:>10}{:>10}{:>10}{:>10}",
            "latency, microseconds", "p50", "p90", "p99", "max"
        );
        for (name, it) in [
            ("INVITE to 180", &self.report.latencies.ringing),
            ("INVITE to 200", &self.report.latencies.answer),
            ("BYE to 200", &self.report.latencies.hangup),
        ] {
            let at = |quantile| it.value_at_quantile(quantile);
            println!("{name:<28}{:>10}{:>10}{:>10}{:>10}", at(0.5), at(0.9), at(0.99), it.max());
        }
        if self.messages > 0 {
            let micros = self.cpu.as_micros() / u128::from(self.messages);
            println!(
                "\nThe balancer took {micros} us of CPU per message over {} messages. At this low rate nearly all\n\
                 of it is waking up; perf/README.md has the figures under load.",
                self.messages
            );
        }
    }
}

/// Whether a call placed at `started` was up when the node died, or was placed before the balancer could
/// know that it was gone.
fn is_hit(started: Time, killed: Time) -> bool {
    started + CALL_TIME >= killed && started < killed + NODE_TIMEOUT + Duration::from_millis(500)
}

#[allow(clippy::print_stdout)]
fn print_stay(ports: &Ports) {
    println!("\nEverything stays up; Ctrl-C ends it. Call it with SIPp, for example:");
    println!("  sipp -sn uac -r 10 -m 100 -i {LOOPBACK} {}", ports.external());
    println!("and look at it:");
    println!("  curl http://{}/lbinfo", ports.statistic());
}

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const UDP_RATE: f64 = 200.0;
const TCP_RATE: f64 = 20.0;
const DURATION: Duration = Duration::from_secs(12);
const KILL_AT: Duration = Duration::from_secs(4);
const RESTART_AT: Duration = Duration::from_secs(9);
const NODE_TIMEOUT: Duration = Duration::from_millis(1_500);
const HOLD: Duration = Duration::from_millis(400);
/// A call from its INVITE to the end, with a repetition or two on the way.
const CALL_TIME: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_calls_that_met_the_dead_node_are_excused() {
        let killed = Time::from_millis(10_000);
        for (started, want) in
            [(0, false), (7_999, false), (8_000, true), (11_999, true), (12_000, false)]
        {
            assert_eq!(is_hit(Time::from_millis(started), killed), want, "{started}");
        }
    }
}
