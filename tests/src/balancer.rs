//! A real `trunkline` process with its configuration file, its log and its statistics port.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tools::ports;

use crate::keys::keys;
use crate::peer::unique;
use crate::{Node, PATIENCE, Peer, Transport, wait_for};

/// A balancer to be: keys of its properties file, or a whole file.
#[derive(Clone)]
pub struct Setup {
    keys: Vec<(String, String)>,
    text: Option<Text>,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    wrapper: Vec<String>,
}

/// Makes a whole configuration file.
type Text = Arc<dyn Fn(&Addresses) -> String + Send + Sync>;

/// The ports one start attempt was given.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// External UDP and TCP.
    pub external: u16,
    /// Internal UDP and TCP.
    pub internal: u16,
    /// `statisticPort`.
    pub statistic: u16,
    /// One more, for IPv6 or a second listener.
    pub spare: u16,
    /// And one more.
    pub spare_internal: u16,
    /// External TLS, WS and WSS.
    pub secure: [u16; 3],
    /// Internal TLS, WS and WSS.
    pub secure_internal: [u16; 3],
    /// HTTP and HTTPS.
    pub web: [u16; 2],
    /// SMPP, plain and over TLS.
    pub smpp: [u16; 2],
    /// Heartbeats: RMI registry, RMI object, HTTP.
    pub heartbeats: [u16; 3],
}

impl Addresses {
    /// The port that stands for a word.
    fn of(&self, word: &str) -> Option<u16> {
        let ([tls, ws, wss], [tls_in, ws_in, wss_in]) = (self.secure, self.secure_internal);
        Some(match word {
            "EXTERNAL" => self.external,
            "INTERNAL" => self.internal,
            "STATISTIC" => self.statistic,
            "SPARE" => self.spare,
            "SPARE_INTERNAL" => self.spare_internal,
            "TLS" => tls,
            "WS" => ws,
            "WSS" => wss,
            "INTERNAL_TLS" => tls_in,
            "INTERNAL_WS" => ws_in,
            "INTERNAL_WSS" => wss_in,
            "HTTP" => self.web[0],
            "HTTPS" => self.web[1],
            "SMPP" => self.smpp[0],
            "SMPPS" => self.smpp[1],
            "RMI" => self.heartbeats[0],
            "RMI_OBJECT" => self.heartbeats[1],
            "BEATS" => self.heartbeats[2],
            _ => return None,
        })
    }
}

impl Setup {
    /// Two-entry mode: UDP and TCP on both legs, one shard so that order is exact, fast expiry.
    pub fn two_entry() -> Setup {
        Setup::single_entry().set("internalUdpPort", "INTERNAL").set("internalTcpPort", "INTERNAL")
    }

    /// Single-entry mode: only the external leg.
    pub fn single_entry() -> Setup {
        Setup { keys: vec![], text: None, arguments: vec![], environment: vec![], wrapper: vec![] }
            .set("host", "127.0.0.1")
            .set("externalUdpPort", "EXTERNAL")
            .set("externalTcpPort", "EXTERNAL")
            .set("statisticPort", "STATISTIC")
            .set("httpPort", "0")
            .set("rmiRegistryPort", "0")
            .set("shards", "1")
            .set("nodeTimeout", "1500")
            .set("heartbeatInterval", "20")
            .set("shutdownTimeout", "200")
    }

    /// Two-entry mode with all five transports on both legs, a certificate and the authority's as trust.
    pub fn every_transport() -> Setup {
        Setup::two_entry()
            .certified()
            .set("externalTlsPort", "TLS")
            .set("externalWsPort", "WS")
            .set("externalWssPort", "WSS")
            .set("internalTlsPort", "INTERNAL_TLS")
            .set("internalWsPort", "INTERNAL_WS")
            .set("internalWssPort", "INTERNAL_WSS")
    }

    /// With heartbeats by RMI and by HTTP.
    pub fn heartbeats(self) -> Setup {
        self.set("rmiRegistryPort", "RMI")
            .set("rmiRemoteObjectPort", "RMI_OBJECT")
            .set("heartbeatPort", "BEATS")
    }

    /// With a certificate of the plays' authority.
    pub fn certified(self) -> Setup {
        let path = |name| keys().path(name).display().to_string();
        self.set("javax.net.ssl.keyStore", &path("lb.pem"))
            .set("javax.net.ssl.trustStore", &path("ca.pem"))
    }

    /// A whole configuration file of any generation, made from the ports.
    pub fn file(text: impl Fn(&Addresses) -> String + Send + Sync + 'static) -> Setup {
        Setup {
            keys: vec![],
            text: Some(Arc::new(text)),
            arguments: vec![],
            environment: vec![],
            wrapper: vec![],
        }
    }

    /// Sets a key, an empty value removes it. `EXTERNAL`, `INTERNAL`, `STATISTIC`, `SPARE`,
    /// `SPARE_INTERNAL`, `TLS`, `WS`, `WSS`, `INTERNAL_TLS`, `INTERNAL_WS`, `INTERNAL_WSS`, `HTTP`, `HTTPS`,
    /// `SMPP`, `SMPPS`, `RMI`, `RMI_OBJECT` and `BEATS` as value become the port.
    pub fn set(mut self, key: &str, value: &str) -> Setup {
        self.keys.retain(|(it, _)| it != key);
        if !value.is_empty() {
            self.keys.push((key.to_owned(), value.to_owned()));
        }
        self
    }

    /// The algorithm by its short class name, written with the original's package.
    pub fn algorithm(self, class: &str) -> Setup {
        self.set("algorithmClass", &format!("org.mobicents.tools.sip.balancer.{class}"))
    }

    /// Adds a command line argument in front of the file, such as `-DexternalPort=5070`.
    pub fn argument(mut self, argument: &str) -> Setup {
        self.arguments.push(argument.to_owned());
        self
    }

    /// Adds a variable to the process's environment.
    pub fn environment(mut self, name: &str, value: &str) -> Setup {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts the process by another program, which must become it: program, arguments and file follow.
    pub fn through(mut self, wrapper: &[&str]) -> Setup {
        self.wrapper = wrapper.iter().map(|it| (*it).to_owned()).collect();
        self
    }

    /// Starts the process and waits until it says that it serves.
    ///
    /// # Panics
    ///
    /// If it stops or stays silent; its log is shown.
    pub fn start(&self) -> Balancer {
        for _ in 0..5 {
            let balancer = self.launch();
            let is_up = wait_for("the balancer's start", || {
                let is_up = balancer.has_logged("Sip Balancer started on external address");
                (is_up || balancer.exit_status().is_some()).then_some(is_up)
            });
            if is_up {
                return balancer;
            }
            let log = balancer.log();
            let is_collision = log.to_lowercase().contains("in use");
            assert!(is_collision, "the balancer did not start:\n{log}");
        }
        panic!("every port is taken");
    }

    /// Starts the process and returns how it ended and its log, for configurations that are refused.
    pub fn refused(&self) -> (ExitStatus, String) {
        let balancer = self.launch();
        let status = wait_for("the balancer's refusal", || balancer.exit_status());
        (status, balancer.log())
    }

    fn launch(&self) -> Balancer {
        let addresses = Addresses {
            external: ports::free(),
            internal: ports::free(),
            statistic: ports::free(),
            spare: ports::free(),
            spare_internal: ports::free(),
            secure: [(); 3].map(|()| ports::free()),
            secure_internal: [(); 3].map(|()| ports::free()),
            web: [(); 2].map(|()| ports::free()),
            smpp: [(); 2].map(|()| ports::free()),
            heartbeats: [(); 3].map(|()| ports::free()),
        };
        let text = match &self.text {
            Some(text) => text(&addresses),
            None => properties(&self.keys, &addresses),
        };
        let directory = std::env::temp_dir().join(format!("trunkline-play-{}", unique()));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join("lb.properties");
        fs::write(&path, text).unwrap();
        let mut command = match self.wrapper.split_first() {
            Some((program, rest)) => {
                let mut command = Command::new(program);
                command.args(rest).arg(trunkline());
                command
            }
            None => Command::new(trunkline()),
        };
        let mut child = command
            .args(&self.arguments)
            .arg(&path)
            .current_dir(&directory)
            .env_remove("RUST_LOG")
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|it| panic!("cannot start {:?}: {it}", trunkline()));
        let log = Arc::new(Mutex::new(String::new()));
        let readers = vec![
            collect(child.stdout.take().unwrap(), &log),
            collect(child.stderr.take().unwrap(), &log),
        ];
        let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Balancer {
            external: at(addresses.external),
            internal: at(addresses.internal),
            statistic: at(addresses.statistic),
            addresses,
            pid: Pid::from_raw(child.id().try_into().unwrap()),
            child: Mutex::new(child),
            keys: self.keys.clone(),
            path,
            log,
            readers: Mutex::new(readers),
        }
    }
}

fn properties(keys: &[(String, String)], addresses: &Addresses) -> String {
    let lines = keys.iter().map(|(key, value)| match addresses.of(value) {
        Some(port) => format!("{key}={port}\n"),
        None => format!("{key}={value}\n"),
    });
    lines.collect()
}

fn collect(pipe: impl Read + Send + 'static, log: &Arc<Mutex<String>>) -> JoinHandle<()> {
    let log = log.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            let mut log = log.lock().unwrap();
            log.push_str(&line);
            log.push('\n');
        }
    })
}

/// A running balancer. Dropping it kills the process; in a failing test its log is printed first.
pub struct Balancer {
    /// External address, UDP and TCP.
    pub external: SocketAddr,
    /// Internal address, UDP and TCP; nothing listens there in single-entry mode.
    pub internal: SocketAddr,
    /// Statistics and administration.
    pub statistic: SocketAddr,
    /// All ports it was given.
    pub addresses: Addresses,
    pid: Pid,
    child: Mutex<Child>,
    keys: Vec<(String, String)>,
    path: PathBuf,
    log: Arc<Mutex<String>>,
    readers: Mutex<Vec<JoinHandle<()>>>,
}

/// One node of `/lbinfo`.
#[derive(Clone, Debug)]
pub struct NodeEntry {
    /// `hostName`.
    pub host_name: String,
    /// `ip`.
    pub ip: String,
    /// `properties`.
    pub properties: Value,
    /// `gracefulShutdown`.
    pub is_leaving: bool,
    /// `bad`.
    pub is_bad: bool,
}

impl NodeEntry {
    /// One property as text.
    pub fn property(&self, name: &str) -> Option<&str> {
        self.properties.get(name).and_then(Value::as_str)
    }
}

impl Balancer {
    /// Where the external leg listens on a transport.
    pub fn external_of(&self, transport: Transport) -> SocketAddr {
        SocketAddr::new(self.external.ip(), of(transport, self.external, self.addresses.secure))
    }

    /// Where the internal leg listens on a transport.
    pub fn internal_of(&self, transport: Transport) -> SocketAddr {
        let ports = self.addresses.secure_internal;
        SocketAddr::new(self.internal.ip(), of(transport, self.internal, ports))
    }

    /// Where nodes announce themselves by RMI: the registry.
    pub fn rmi(&self) -> SocketAddr {
        SocketAddr::new(self.external.ip(), self.addresses.heartbeats[0])
    }

    /// Where nodes announce themselves by HTTP.
    pub fn beats(&self) -> SocketAddr {
        SocketAddr::new(self.external.ip(), self.addresses.heartbeats[2])
    }

    /// One figure of `/metrics` by its whole name with labels.
    pub fn metric(&self, series: &str) -> f64 {
        let metrics = self.metrics();
        let line = metrics.lines().find_map(|it| it.strip_prefix(series)?.strip_prefix(' '));
        line.and_then(|it| it.parse().ok()).unwrap_or_else(|| panic!("no {series}: {metrics}"))
    }

    /// Where HTTP is served.
    pub fn http(&self) -> SocketAddr {
        SocketAddr::new(self.external.ip(), self.addresses.web[0])
    }

    /// Where HTTPS is served.
    pub fn https(&self) -> SocketAddr {
        SocketAddr::new(self.external.ip(), self.addresses.web[1])
    }

    /// Where SMPP is served.
    pub fn smpp(&self) -> SocketAddr {
        SocketAddr::new(self.external.ip(), self.addresses.smpp[0])
    }

    /// Where SMPP over TLS is served.
    pub fn smpps(&self) -> SocketAddr {
        SocketAddr::new(self.external.ip(), self.addresses.smpp[1])
    }

    /// A client that sends through the external leg, by a transport.
    pub fn caller_over(&self, transport: Transport, name: &str) -> Peer {
        Peer::bind(name).over(transport).through(self.external_of(transport))
    }

    /// A client that sends through the external leg.
    pub fn caller(&self, name: &str) -> Peer {
        Peer::bind(name).through(self.external)
    }

    /// Starts this many announced nodes `n0`, `n1`, ... driven by hand, and waits until all are known.
    pub fn nodes(&self, count: usize) -> Vec<Node> {
        let names = (0..count).map(|it| format!("n{it}"));
        let nodes: Vec<Node> = names.map(|it| self.announced(Node::bind(&it))).collect();
        self.wait_nodes(count);
        nodes
    }

    /// As [`Balancer::nodes`], accepting calls by themselves.
    pub fn answering_nodes(&self, count: usize) -> Vec<Node> {
        let nodes = self.nodes(count);
        for node in &nodes {
            node.answers_calls();
        }
        nodes
    }

    /// Lets a node announce itself to this balancer.
    pub fn announced(&self, mut node: Node) -> Node {
        node.announce(&[self.internal]);
        node
    }

    /// The Route value by which a node names itself on requests that it originates (`sip.md` 2.4).
    pub fn node_route(&self, node: &Peer) -> String {
        let (transport, address) = (node.transport.lower(), node.address_of(node.transport));
        let (host, port) = (address.ip(), address.port());
        let internal = self.internal_of(node.transport);
        format!("<sip:lbint@{internal};transport={transport};node_host={host};node_port={port};lr>")
    }

    /// Body of a GET on the statistics port, and the status line.
    pub fn get(&self, path: &str) -> (String, String) {
        let response = wait_for("an answer on the statistics port", || self.try_get(path));
        let (head, body) = response.split_once("\r\n\r\n").unwrap_or((&response, ""));
        (head.lines().next().unwrap_or_default().to_owned(), body.to_owned())
    }

    fn try_get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(self.statistic).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
        let mut response = Vec::new();
        stream.read_to_end(&mut response).ok()?;
        (!response.is_empty()).then(|| String::from_utf8_lossy(&response).into_owned())
    }

    /// `Metrics` of `/lbstat`.
    pub fn lbstat(&self) -> Value {
        let (_, body) = self.get("/lbstat");
        let value: Value =
            serde_json::from_str(&body).unwrap_or_else(|it| panic!("/lbstat: {it}: {body}"));
        value["Metrics"].clone()
    }

    /// One integer of `/lbstat`.
    pub fn stat(&self, name: &str) -> i64 {
        let metrics = self.lbstat();
        metrics[name].as_i64().unwrap_or_else(|| panic!("no {name} in /lbstat: {metrics}"))
    }

    /// `/lbinfo` whole.
    pub fn lbinfo(&self) -> Value {
        let (_, body) = self.get("/lbinfo");
        serde_json::from_str(&body).unwrap_or_else(|it| panic!("/lbinfo: {it}: {body}"))
    }

    /// Nodes of the latest version, IPv4 before IPv6.
    pub fn known(&self) -> Vec<NodeEntry> {
        let info = self.lbinfo();
        let families = ["nodesIPv4", "nodesIPv6"].map(|it| &info["Nodes info"][it]);
        let nodes = families.iter().filter_map(|it| it.as_array()).flatten();
        let entry = |node: &Value| NodeEntry {
            host_name: node["hostName"].as_str().unwrap_or_default().to_owned(),
            ip: node["ip"].as_str().unwrap_or_default().to_owned(),
            properties: node["properties"].clone(),
            is_leaving: node["gracefulShutdown"].as_bool().unwrap_or(false),
            is_bad: node["bad"].as_bool().unwrap_or(false),
        };
        nodes.map(entry).collect()
    }

    /// Waits until exactly this many nodes of the latest version are known.
    pub fn wait_nodes(&self, count: usize) {
        wait_for(&format!("{count} nodes"), || (self.known().len() == count).then_some(()));
    }

    /// Waits until a known node is as described.
    pub fn wait_node(&self, what: &str, is_it: impl Fn(&NodeEntry) -> bool) -> NodeEntry {
        wait_for(what, || self.known().into_iter().find(|it| is_it(it)))
    }

    /// `/metrics` as text.
    pub fn metrics(&self) -> String {
        self.get("/metrics").1
    }

    /// Messages dropped for this reason, all shards.
    pub fn dropped(&self, reason: &str) -> u64 {
        let label = format!("reason=\"{reason}\"");
        let metrics = self.metrics();
        let lines = metrics.lines().filter(|it| it.contains("drop") && it.contains(&label));
        let values = lines.filter_map(|it| it.rsplit(' ').next()?.parse::<u64>().ok());
        values.sum()
    }

    /// Waits until at least this many messages were dropped for this reason.
    pub fn wait_dropped(&self, reason: &str, count: u64) {
        wait_for(&format!("{count} drops for {reason}"), || {
            (self.dropped(reason) >= count).then_some(())
        });
    }

    /// A socket after the handshake of a WebSocket client: frames are the caller's.
    pub fn upgraded(&self) -> TcpStream {
        let mut stream = TcpStream::connect(self.external_of(Transport::Ws)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(
            stream,
            "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Protocol: sip\r\n\r\n"
        )
        .unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert!(head.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{head}");
        stream
    }

    /// How often something happened to stream connections, by its name in `/metrics`.
    pub fn event(&self, name: &str) -> u64 {
        let row = format!("trunkline_connection_events_total{{event=\"{name}\"}} ");
        let metrics = self.metrics();
        let line = metrics.lines().find_map(|it| it.strip_prefix(&row));
        line.unwrap_or_else(|| panic!("no {name} in {metrics}")).parse().unwrap()
    }

    /// Waits until it happened at least so often.
    pub fn wait_event(&self, name: &str, count: u64) {
        wait_for(&format!("{count} {name}"), || (self.event(name) >= count).then_some(()));
    }

    /// Sum over all shards of a family of `/metrics`; 0 while they are too busy to answer.
    pub fn sum_of(&self, family: &str) -> u64 {
        let metrics = self.metrics();
        let lines = metrics.lines().filter(|it| it.starts_with(&format!("{family}{{")));
        lines.map(|it| it.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }

    /// Everything it wrote so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Whether a text is in its log.
    pub fn has_logged(&self, text: &str) -> bool {
        self.log.lock().unwrap().contains(text)
    }

    /// Waits until a text is in its log.
    pub fn wait_log(&self, text: &str) {
        wait_for(&format!("{text:?} in the log"), || self.has_logged(text).then_some(()));
    }

    /// Stops the process (SIGSTOP) and waits until each of its threads stands still.
    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
        let stands = |it: std::io::Result<fs::DirEntry>| {
            let stat = fs::read_to_string(it.unwrap().path().join("stat")).unwrap();
            stat.rsplit(") ").next().is_some_and(|it| it.starts_with('T'))
        };
        wait_for("every thread to stand still", || {
            fs::read_dir(format!("/proc/{}/task", self.pid)).unwrap().all(stands).then_some(())
        });
    }

    /// Waits until a shard sleeps in its executor.
    pub fn wait_parked(&self) {
        let is_parked = |it: std::io::Result<fs::DirEntry>| {
            let place = fs::read_to_string(it.unwrap().path().join("wchan")).unwrap_or_default();
            place.starts_with("io_cqring_wait")
        };
        wait_for("a shard to park", || {
            fs::read_dir(format!("/proc/{}/task", self.pid)).unwrap().any(is_parked).then_some(())
        });
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid, signal).unwrap();
    }

    /// Rewrites the file with these keys changed and asks for a reload.
    pub fn reload(&mut self, changes: &[(&str, &str)]) {
        self.change(changes);
        self.signal(Signal::SIGHUP);
    }

    /// Rewrites the file with these keys changed.
    pub fn change(&mut self, changes: &[(&str, &str)]) {
        for (key, value) in changes {
            self.keys.retain(|(it, _)| it != key);
            self.keys.push(((*key).to_owned(), (*value).to_owned()));
        }
        self.rewrite(&properties(&self.keys, &self.addresses));
    }

    /// Replaces the configuration file whole, as an editor does: by renaming a new one over it.
    pub fn rewrite(&self, text: &str) {
        let draft = self.path.with_extension("new");
        fs::write(&draft, text).unwrap();
        fs::rename(&draft, &self.path).unwrap();
    }

    /// How the process ended, if it did; its log is complete then.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        let status = self.child.lock().unwrap().try_wait().unwrap();
        if status.is_some() {
            for reader in self.readers.lock().unwrap().drain(..) {
                let _ = reader.join();
            }
        }
        status
    }

    /// Waits for the end of the process.
    pub fn wait_exit(&self) -> ExitStatus {
        wait_for("the balancer's end", || self.exit_status())
    }

    /// Resident memory in KiB.
    pub fn resident_kib(&self) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let line = status.lines().find_map(|it| it.strip_prefix("VmRSS:"));
        line.and_then(|it| it.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    }

    /// How many files it may have open from now on.
    pub fn limit_files(&self, count: usize) {
        let limit = format!("--nofile={count}:");
        let status =
            Command::new("prlimit").args(["--pid", &self.pid.to_string(), &limit]).status();
        assert!(status.expect("prlimit of util-linux").success(), "{limit}");
    }

    /// Its threads: name, and the CPUs that each may use, as the kernel writes them (`0-3,8`).
    pub fn threads(&self) -> Vec<(String, String)> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid)).unwrap();
        let field = |status: &str, name: &str| {
            let line = status.lines().find_map(|it| it.strip_prefix(name));
            line.unwrap_or_default().trim().to_owned()
        };
        let status = tasks.filter_map(|it| fs::read_to_string(it.ok()?.path().join("status")).ok());
        status.map(|it| (field(&it, "Name:"), field(&it, "Cpus_allowed_list:"))).collect()
    }

    /// CPU time that it has used, in steps of 10 ms.
    pub fn cpu_time(&self) -> std::time::Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap();
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        let ticks = after_name.split_whitespace().skip(11).take(2);
        let ticks: u64 = ticks.map(|it| it.parse::<u64>().unwrap()).sum();
        std::time::Duration::from_millis(10 * ticks)
    }

    /// Address of the IPv6 listener on a port.
    pub fn v6(&self, port: u16) -> SocketAddr {
        SocketAddr::from((Ipv6Addr::LOCALHOST, port))
    }
}

fn of(transport: Transport, common: SocketAddr, [tls, ws, wss]: [u16; 3]) -> u16 {
    match transport {
        Transport::Udp | Transport::Tcp => common.port(),
        Transport::Tls => tls,
        Transport::Ws => ws,
        Transport::Wss => wss,
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let child = self.child.get_mut().unwrap();
        let _ = child.kill();
        let _ = child.wait();
        for reader in self.readers.get_mut().unwrap().drain(..) {
            let _ = reader.join();
        }
        if std::thread::panicking() {
            eprintln!("--- log of the balancer ---\n{}--- end of log ---", self.log());
        }
        if let Some(directory) = self.path.parent() {
            let _ = fs::remove_dir_all(directory);
        }
    }
}

/// The operator's program, as built with the tests.
///
/// # Panics
///
/// If it does not build.
pub fn trunkctl() -> PathBuf {
    trunkline().with_file_name("trunkctl")
}

/// The balancer's program, built once per test process with the profile of the tests.
///
/// # Panics
///
/// If it does not build.
pub fn trunkline() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(path) = std::env::var_os("TRUNKLINE_BINARY") {
            return path.into();
        }
        // target/<profile>/deps/<test>
        let test = std::env::current_exe().unwrap();
        let profile = test.parent().and_then(Path::parent).expect("a test lives in target/*/deps");
        let target = profile.parent().expect("a profile lives in the target directory");
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
        let mut build = Command::new(cargo);
        // The whole workspace is chosen, so that crates are built as the tests have them already.
        build.args(["build", "--quiet", "--workspace", "--bin", "trunkline", "--bin", "trunkctl"]);
        build.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        build.env("CARGO_TARGET_DIR", target);
        // What the outer cargo says of the package of these tests: build scripts that look at it (ring's)
        // would run anew, and all that depends on them be built anew, at every change between the two.
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
                build.env_remove(name.as_ref());
            }
        }
        if profile.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().expect("cargo starts").success(), "trunkline does not build");
        profile.join("trunkline")
    })
}
