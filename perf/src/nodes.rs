//! What many nodes cost: they announce themselves every second, over each protocol in turn, beside calls.
//!
//! Three figures: the control thread's share of a core, the time that messages of calls stay in the balancer
//! and their latency as callers see it (which must not notice), and how long a new node takes until every shard sends calls to it. The many are of an old version, so that
//! calls go to four real nodes of the newest.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use argh::FromArgs;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tools::agent::{self, AgentConfig, Polling};
use tools::caller::{CallerConfig, Pace};
use tools::node::NodeConfig;
use tools::process::pin;

use crate::compare::{BALANCER, BALANCER_INTERNAL, NODES, machine, table};

mod crowd;
mod rmi;

use crowd::{CROWDS, Crowd, CrowdKind};

/// Measure what many nodes cost that announce themselves every second.
#[derive(FromArgs)]
#[argh(subcommand, name = "nodes")]
pub(crate) struct Arguments {
    /// how many nodes; default 2000
    #[argh(option, default = "2000")]
    pub(crate) nodes: usize,
    /// seconds of each measurement; default 10
    #[argh(option, default = "10")]
    seconds: u64,
    /// calls a second; default 1000
    #[argh(option, default = "1000.0")]
    rate: f64,
    /// new nodes, one after another; default 20
    #[argh(option, default = "20")]
    newcomers: u16,
    /// only these protocols (comma list of names); default all
    #[argh(option)]
    only: Option<String>,
    /// the balancer's binary; default trunkline beside this one
    #[argh(option)]
    trunkline: Option<PathBuf>,
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

/// What one crowd cost.
struct Row {
    title: &'static str,
    /// Words of nodes a second, as answered.
    beats: f64,
    /// Shares of one core, by thread.
    control: f64,
    watcher: f64,
    shards: f64,
    failed: u64,
    p50: u64,
    p99: u64,
    residence: Residence,
    /// Until the last shard knew a new node: the median and the longest of all newcomers.
    reach: [Duration; 2],
    resident_kib: u64,
}

pub(crate) fn run(arguments: &Arguments) -> std::io::Result<()> {
    let is_wanted = |it: &&CrowdKind| {
        arguments.only.as_deref().is_none_or(|only| only.split(',').any(|name| name == it.name))
    };
    // Two connections for each node, here and in the balancer, which inherits the limit.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let machine = machine(); // asked before we are pinned: it counts CPUs
    // Whoever is started from here inherits it; the balancer gets a CPU of its own.
    pin(arguments.generator_cpu)?;
    let mut rows = Vec::new();
    for kind in CROWDS.iter().filter(is_wanted) {
        let row = measure(arguments, kind)?;
        let Row { beats, control, p99, reach: [median, worst], .. } = &row;
        let _ = writeln!(
            std::io::stderr(),
            "{:<12} {beats:>5.0} beats/s, control {:.1} %, p99 {p99} us, reach {median:?} / {worst:?}",
            kind.name,
            control * 100.0,
        );
        rows.push(row);
    }
    let text = markdown(arguments, &machine, &rows);
    std::io::stdout().write_all(text.as_bytes())?;
    if let Some(file) = arguments.write.as_deref() {
        table::write(file, "nodes", &text)?;
    }
    let over: Vec<&str> = rows.iter().filter(|it| it.is_over()).map(|it| it.title).collect();
    if over.is_empty() {
        return Ok(());
    }
    Err(std::io::Error::other(format!("beyond what is allowed: {}", over.join(", "))))
}

impl Row {
    /// Whether something in it is more than the balancer is meant to take.
    fn is_over(&self) -> bool {
        self.control > CONTROL_MAX || self.failed > 0 || self.reach[1] > REACHED_WITHIN
    }
}

fn measure(arguments: &Arguments, kind: &'static CrowdKind) -> std::io::Result<Row> {
    let scratch = std::env::temp_dir().join("trunkline-perf");
    std::fs::create_dir_all(&scratch)?;
    let mut crowd = (kind.start)(arguments)?;
    let balancer = Balancer::start(arguments, kind, crowd.as_ref(), &scratch)?;
    let agent = agent::start(AgentConfig {
        nodes: NODES.iter().map(|it| real(*it)).collect(),
        callers: Vec::new(),
        polling: Polling::Block,
        cpu: Some(arguments.generator_cpu),
    })?;
    crowd.begin(arguments)?;
    balancer.wait_nodes(arguments.nodes * usize::from(kind.has_nodes) + NODES.len())?;
    agent.place(CallerConfig {
        retransmit: false,
        ..CallerConfig::new(BALANCER, Pace::Open(arguments.rate))
    })?;
    std::thread::sleep(WARM_UP);
    agent.clear_latencies();
    let before = (Instant::now(), balancer.threads(), crowd.beats(), agent.report()?);
    let residence = balancer.residence();
    std::thread::sleep(Duration::from_secs(arguments.seconds));
    let after = agent.report()?;
    let elapsed = before.0.elapsed().as_secs_f64();
    let threads = balancer.threads();
    let residence = Residence::between(&residence, &balancer.residence());
    let share = |of: &str| {
        let sum = |threads: &[(String, Duration)]| {
            threads.iter().filter(|it| it.0.starts_with(of)).map(|it| it.1).sum::<Duration>()
        };
        sum(&threads).saturating_sub(sum(&before.1)).as_secs_f64() / elapsed
    };
    #[expect(clippy::cast_precision_loss, reason = "printed without digits")]
    let beats = (crowd.beats() - before.2) as f64 / elapsed;
    let resident_kib = balancer.resident_kib();
    agent.stop_calls();
    let last = agent.wait(GIVE_UP_AFTER)?;
    let ringing = &after.latencies.ringing;
    Ok(Row {
        title: kind.title,
        beats,
        control: share("trunkline"),
        watcher: share("kubernetes"),
        shards: share("shard"),
        failed: last.calls.failed_total() - before.3.calls.failed_total(),
        p50: ringing.value_at_quantile(0.5),
        p99: ringing.value_at_quantile(0.99),
        residence,
        reach: reach(arguments, crowd.as_mut())?,
        resident_kib,
    })
}

/// One of the four that answer calls.
fn real(address: SocketAddr) -> NodeConfig {
    NodeConfig {
        tcp: false,
        retransmit: false,
        properties: vec![format!("version={NEWEST}")],
        ..NodeConfig::new(address, Some(BALANCER_INTERNAL))
    }
}

/// How long a new node takes until all shards know it. Requests that name it come from many sources, so
/// from all shards; until it is known others get them.
fn reach(arguments: &Arguments, crowd: &mut dyn Crowd) -> std::io::Result<[Duration; 2]> {
    let sources: Vec<UdpSocket> =
        (0..SOURCES).map(|_| UdpSocket::bind(LOCAL)).collect::<std::io::Result<_>>()?;
    let mut times = Vec::new();
    let mut newcomers = Vec::new();
    for _ in 0..arguments.newcomers {
        let node = UdpSocket::bind(LOCAL)?;
        node.set_read_timeout(Some(Duration::from_micros(200)))?;
        let address = node.local_addr()?;
        let mut seen: Vec<Option<Duration>> = vec![None; sources.len()];
        let begin = Instant::now();
        crowd.join(address)?;
        let (mut buffer, mut next) = ([0; 4096], begin);
        while seen.contains(&None) {
            let now = Instant::now();
            if now.duration_since(begin) > REACH_MAX {
                return Err(std::io::Error::other("a new node was never reached"));
            }
            if now >= next {
                next = now + QUESTION_EVERY;
                for (number, socket) in
                    sources.iter().enumerate().filter(|it| seen.get(it.0) == Some(&None))
                {
                    socket.send_to(
                        question(number, socket.local_addr()?, address).as_bytes(),
                        BALANCER,
                    )?;
                }
            }
            let Ok(length) = node.recv(&mut buffer) else { continue };
            let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default());
            let number = text
                .split("Subject: ")
                .nth(1)
                .and_then(|it| it.lines().next()?.parse::<usize>().ok());
            if let Some(seen) = number.and_then(|it| seen.get_mut(it)) {
                seen.get_or_insert(begin.elapsed());
            }
        }
        times.extend(seen.into_iter().flatten().max());
        newcomers.push(node);
    }
    times.sort_unstable();
    let at = |index: usize| times.get(index).copied().unwrap_or_default();
    Ok([at(times.len() / 2), at(times.len().saturating_sub(1))])
}

fn question(number: usize, from: SocketAddr, node: SocketAddr) -> String {
    let id = format!("{number}-{}-{}", node.port(), from.port());
    format!(
        "MESSAGE sip:new@example.com SIP/2.0\r\n\
         Via: SIP/2.0/UDP {from};branch=z9hG4bK{id};rport\r\n\
         Route: <sip:{BALANCER};transport=udp;lr;node_host={};node_port={};version={NEWEST}>\r\n\
         Max-Forwards: 70\r\nFrom: <sip:a@{from}>;tag=a\r\nTo: <sip:new@example.com>;tag=b\r\n\
         Call-ID: {id}\r\nCSeq: 1 MESSAGE\r\nSubject: {number}\r\nContent-Length: 0\r\n\r\n",
        node.ip(),
        node.port(),
    )
}

/// How long messages stayed in the balancer, microseconds.
struct Residence {
    mean: f64,
    /// Upper bound of the bucket that it lies in.
    p99: f64,
}

impl Residence {
    fn between(before: &[(String, f64)], after: &[(String, f64)]) -> Residence {
        let of = |rows: &[(String, f64)], name: &str| {
            rows.iter().find(|it| it.0 == name).map_or(0.0, |it| it.1)
        };
        let since = |name: &str| of(after, name) - of(before, name);
        let count = since("count").max(1.0);
        let bound = |name: &str| name.split('"').nth(1)?.parse::<f64>().ok();
        let buckets = after.iter().filter_map(|it| Some((bound(&it.0)?, since(&it.0))));
        let p99 = buckets.filter(|it| it.1 >= count * 0.99).map(|it| it.0).reduce(f64::min);
        Residence { mean: since("sum") / count * 1e6, p99: p99.unwrap_or(f64::INFINITY) * 1e6 }
    }
}

/// The balancer as measured: two shards and everything else on one CPU.
struct Balancer(Child);

impl Balancer {
    fn start(
        arguments: &Arguments,
        kind: &CrowdKind,
        crowd: &dyn Crowd,
        scratch: &std::path::Path,
    ) -> std::io::Result<Balancer> {
        let file = scratch.join(format!("nodes-{}.properties", kind.name));
        let text = format!(
            "host=127.0.0.1\nexternalUdpPort={}\ninternalUdpPort={}\nstatisticPort={STATISTIC}\nhttpPort=0\nshards=2\n\
             algorithmClass=org.mobicents.tools.sip.balancer.HeaderConsistentHashBalancerAlgorithm\n{}",
            BALANCER.port(),
            BALANCER_INTERNAL.port(),
            kind.keys,
        );
        std::fs::write(&file, text)?;
        let log = std::fs::File::create(scratch.join(format!("nodes-{}.log", kind.name)))?;
        let beside = || std::env::current_exe().ok()?.parent().map(|dir| dir.join("trunkline"));
        let program = arguments.trunkline.clone().or_else(beside).unwrap_or_default();
        let child = Command::new("taskset")
            .args(["-c", &arguments.balancer_cpu.to_string()])
            .arg(program)
            .arg(&file)
            .envs(crowd.environment())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        Ok(Balancer(child))
    }

    fn wait_nodes(&self, count: usize) -> std::io::Result<()> {
        let begin = Instant::now();
        let mut known = 0;
        while begin.elapsed() < START_MAX {
            known = self.nodes().unwrap_or(0);
            if known == count {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Err(std::io::Error::other(format!("{known} nodes of {count} are known")))
    }

    /// Live nodes, all versions.
    fn nodes(&self) -> Option<usize> {
        let page = self.metrics()?;
        let rows = page.lines().filter(|it| it.starts_with("trunkline_nodes{"));
        Some(rows.filter_map(|it| it.rsplit(' ').next()?.parse::<usize>().ok()).sum())
    }

    /// Every row of the histogram of residence: what it is, and its figure.
    fn residence(&self) -> Vec<(String, f64)> {
        let page = self.metrics().unwrap_or_default();
        let rows = page.lines().filter_map(|it| it.strip_prefix("trunkline_residence_seconds_"));
        let rows = rows.filter_map(|it| it.rsplit_once(' '));
        rows.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?))).collect()
    }

    fn metrics(&self) -> Option<String> {
        use std::io::Read as _;
        let mut socket = std::net::TcpStream::connect(("127.0.0.1", STATISTIC)).ok()?;
        socket.write_all(b"GET /metrics HTTP/1.1\r\nHost: lb\r\nConnection: close\r\n\r\n").ok()?;
        let mut page = String::new();
        socket.read_to_string(&mut page).ok()?;
        Some(page)
    }

    /// CPU time of every thread, by its name.
    fn threads(&self) -> Vec<(String, Duration)> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.0.id())).into_iter().flatten();
        let of = |task: std::fs::DirEntry| {
            let name = std::fs::read_to_string(task.path().join("comm")).ok()?;
            let stat = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
            let nanos = stat.split(' ').next()?.parse().ok()?;
            Some((name, Duration::from_nanos(nanos)))
        };
        tasks.flatten().filter_map(of).collect()
    }

    fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id()));
        let status = status.unwrap_or_default();
        let line = status.lines().find_map(|it| it.strip_prefix("VmRSS:"));
        line.and_then(|it| it.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn markdown(arguments: &Arguments, machine: &str, rows: &[Row]) -> String {
    use std::fmt::Write as _;
    let Arguments { nodes, seconds, rate, newcomers, .. } = arguments;
    let mut text = format!(
        "Made by `cargo run --release -p perf -- nodes --nodes {nodes} --seconds {seconds} --rate {rate} \
         --newcomers {newcomers}`, {machine}. Shares are of one core; latency INVITE to 180.\n\n\
         | nodes announce themselves by | beats/s | control | Kubernetes' thread | shards | in the balancer: \
         mean, p99 at most, us | calls failed | latency p50 / p99, us | a new node reaches all shards: median / longest | resident |\n\
         |---|---|---|---|---|---|---|---|---|---|\n",
    );
    for it in rows {
        let [median, longest] = it.reach.map(|it| it.as_secs_f64() * 1e3);
        let _ = writeln!(
            text,
            "| {} | {:.0} | {:.1} % | {:.1} % | {:.1} % | {:.1}, {:.0} | {} | {} / {} | {median:.1} / {longest:.1} ms | {} MiB |",
            it.title,
            it.beats,
            it.control * 100.0,
            it.watcher * 100.0,
            it.shards * 100.0,
            it.residence.mean,
            it.residence.p99,
            it.failed,
            it.p50,
            it.p99,
            it.resident_kib / 1024,
        );
    }
    text
}

/// Of the nodes that answer calls; the many are of version 0.
const NEWEST: u32 = 1;
const STATISTIC: u16 = 16_066;
const LOCAL: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
/// Sockets that ask for a newcomer: with two shards all of them on one has odds of 1 to 2 000.
const SOURCES: usize = 12;
const QUESTION_EVERY: Duration = Duration::from_millis(1);
const REACH_MAX: Duration = Duration::from_secs(10);
/// Most of a core for the thread that owns the node table.
const CONTROL_MAX: f64 = 0.25;
/// In this time every shard knows a new node.
const REACHED_WITHIN: Duration = Duration::from_millis(50);
const START_MAX: Duration = Duration::from_secs(30);
const WARM_UP: Duration = Duration::from_secs(2);
const GIVE_UP_AFTER: Duration = Duration::from_secs(5);
