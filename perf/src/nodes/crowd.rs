//! Many nodes, and how they announce themselves. A new protocol is one row and one type.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tests::{ApiServer, Pod};

use super::rmi::Voice;
use super::{Arguments, NEWEST};
use crate::compare::BALANCER_INTERNAL;

/// Nodes that announce themselves until this is dropped.
pub(crate) trait Crowd {
    /// What the balancer's environment must have.
    fn environment(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    /// The balancer is there.
    fn begin(&mut self, arguments: &Arguments) -> std::io::Result<()>;

    /// Words that were answered, or count as such.
    fn beats(&self) -> u64;

    /// One more node, of the newest version, speaks for the first time.
    fn join(&mut self, node: SocketAddr) -> std::io::Result<()>;
}

/// One protocol.
pub(crate) struct CrowdKind {
    /// Name for `--only`.
    pub(crate) name: &'static str,
    /// Name in the table.
    pub(crate) title: &'static str,
    /// Keys that the balancer needs for it.
    pub(crate) keys: &'static str,
    /// Whether there are nodes at all.
    pub(crate) has_nodes: bool,
    pub(crate) start: fn(&Arguments) -> std::io::Result<Box<dyn Crowd>>,
}

/// In the order of measurement.
pub(crate) const CROWDS: &[CrowdKind] = &[
    CrowdKind {
        name: "none",
        title: "(nobody but the four)",
        keys: "rmiRegistryPort=0\n",
        has_nodes: false,
        start: |_| Ok(Box::new(Sip::new(0))),
    },
    CrowdKind {
        name: "sip",
        title: "SIP OPTIONS",
        keys: "rmiRegistryPort=0\n",
        has_nodes: true,
        start: |it| Ok(Box::new(Sip::new(it.nodes))),
    },
    CrowdKind {
        name: "http",
        title: "HTTP and JSON",
        keys: "rmiRegistryPort=0\nheartbeatPort=16067\n",
        has_nodes: true,
        start: |it| Ok(Box::new(Json { count: it.nodes, beater: None })),
    },
    CrowdKind {
        name: "rmi",
        title: "Java RMI",
        keys: "rmiRegistryPort=16068\nrmiRemoteObjectPort=16069\n",
        has_nodes: true,
        start: |it| Ok(Box::new(Rmi { count: it.nodes, beater: None })),
    },
    CrowdKind {
        name: "kubernetes",
        title: "labels of pods (Kubernetes)",
        keys: "heartbeat.configclass=HeartbeatConfigKube\nheartbeat.nodeName=as\nheartbeat.pullPeriod=1000\n",
        has_nodes: true,
        start: |it| Ok(Box::new(Kubernetes::start(it.nodes))),
    },
];

/// The address of a node that never gets a call.
fn address(number: usize) -> SocketAddr {
    let [.., third, fourth] = u32::try_from(number).unwrap_or(0).to_be_bytes();
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 7, third, fourth)), 5060)
}

/// A thread that says one thing after another, each once a second and evenly spread.
struct Beater {
    is_over: Arc<AtomicBool>,
    beats: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Beater {
    /// `say` says the word of the node of this number and returns how many answers it saw meanwhile.
    fn start(count: usize, mut say: impl FnMut(usize) -> u64 + Send + 'static) -> Beater {
        let (is_over, beats) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (over, answered) = (is_over.clone(), beats.clone());
        let thread = std::thread::spawn(move || {
            let (begin, mut said) = (Instant::now(), 0_u64);
            let each = Duration::from_secs(1) / u32::try_from(count.max(1)).unwrap_or(u32::MAX);
            while count > 0 && !over.load(Ordering::Relaxed) {
                let due = begin + each * u32::try_from(said).unwrap_or(u32::MAX);
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                let number = usize::try_from(said).unwrap_or(0) % count;
                answered.fetch_add(say(number), Ordering::Relaxed);
                said += 1;
            }
        });
        Beater { is_over, beats, thread: Some(thread) }
    }
}

impl Drop for Beater {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn beats(beater: Option<&Beater>) -> u64 {
    beater.map_or(0, |it| it.beats.load(Ordering::Relaxed))
}

/// By SIP.
struct Sip {
    count: usize,
    socket: Option<UdpSocket>,
    beater: Option<Beater>,
}

impl Sip {
    const fn new(count: usize) -> Sip {
        Sip { count, socket: None, beater: None }
    }
}

fn options(node: SocketAddr, version: u32, from: SocketAddr, count: u64) -> String {
    let (ip, port) = (node.ip(), node.port());
    let body = format!(
        "udpPort={port}\r\ntcpPort={port}\r\nhostname=node-{ip}\r\nip={ip}\r\nversion={version}\r\n\
         sessionId=1485157008580\r\njvmRoute=route-{ip}\r\n"
    );
    format!(
        "OPTIONS sip:lb@{BALANCER_INTERNAL} SIP/2.0\r\n\
         Via: SIP/2.0/UDP {from};branch=z9hG4bK{ip}{count};rport\r\nMax-Forwards: 70\r\n\
         From: <sip:heartbeat@{ip}>;tag={count}\r\nTo: <sip:lb@{BALANCER_INTERNAL}>\r\n\
         Call-ID: {count}@{ip}\r\nCSeq: 1 OPTIONS\r\nMobicents-Heartbeat: 1\r\n\
         Content-Type: text/plain;charset=UTF-8\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

impl Crowd for Sip {
    fn begin(&mut self, _: &Arguments) -> std::io::Result<()> {
        let sockets: Vec<UdpSocket> =
            (0..8).map(|_| UdpSocket::bind(("127.0.0.1", 0))).collect::<std::io::Result<_>>()?;
        for socket in &sockets {
            socket.set_nonblocking(true)?;
        }
        let (mut count, mut buffer) = (0, [0; 2048]);
        self.beater = Some(Beater::start(self.count, move |number| {
            count += 1;
            let Some(socket) = sockets.get(number % sockets.len()) else { return 0 };
            let Ok(from) = socket.local_addr() else { return 0 };
            let _ = socket
                .send_to(options(address(number), 0, from, count).as_bytes(), BALANCER_INTERNAL);
            let mut answers = 0;
            while socket.recv(&mut buffer).is_ok() {
                answers += u64::from(buffer.starts_with(b"SIP/2.0 200"));
            }
            answers
        }));
        Ok(())
    }

    fn beats(&self) -> u64 {
        beats(self.beater.as_ref())
    }

    fn join(&mut self, node: SocketAddr) -> std::io::Result<()> {
        let socket = self.socket.insert(UdpSocket::bind(("127.0.0.1", 0))?);
        let from = socket.local_addr()?;
        socket.send_to(options(node, NEWEST, from, 0).as_bytes(), BALANCER_INTERNAL).map(drop)
    }
}

/// By HTTP and JSON: one connection for each word.
struct Json {
    count: usize,
    beater: Option<Beater>,
}

fn start_word(node: SocketAddr, version: u32, session: usize) -> String {
    let (ip, port) = (node.ip(), node.port());
    format!(
        "{{\"start\":{{\"hostName\":\"node-{ip}\",\"ip\":\"{ip}\",\"udpPort\":\"{port}\",\"tcpPort\":\"{port}\",\
         \"version\":\"{version}\",\"sessionId\":\"{session}\",\"jvmRoute\":\"route-{ip}\"}}}}"
    )
}

/// Whether the answer was OK.
fn post(word: &str) -> std::io::Result<bool> {
    let mut socket = TcpStream::connect(("127.0.0.1", HEARTBEAT_PORT))?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    let length = word.len();
    write!(
        socket,
        "POST / HTTP/1.1\r\nHost: lb\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{word}"
    )?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    Ok(answer.contains("\"OK\""))
}

impl Crowd for Json {
    fn begin(&mut self, _: &Arguments) -> std::io::Result<()> {
        wait_for(HEARTBEAT_PORT)?;
        let mut is_started = vec![false; self.count];
        self.beater = Some(Beater::start(self.count, move |number| {
            let Some(is_started) = is_started.get_mut(number) else { return 0 };
            let word = if *is_started {
                format!("{{\"heartbeat\":{{\"sessionId\":{number}}}}}")
            } else {
                start_word(address(number), 0, number)
            };
            *is_started = post(&word).unwrap_or(false);
            u64::from(*is_started)
        }));
        Ok(())
    }

    fn beats(&self) -> u64 {
        beats(self.beater.as_ref())
    }

    fn join(&mut self, node: SocketAddr) -> std::io::Result<()> {
        post(&start_word(node, NEWEST, usize::from(node.port()) + 1_000_000)).map(drop)
    }
}

/// By Java RMI: a fresh look-up and a ping for each word, on two connections that each node keeps.
struct Rmi {
    count: usize,
    beater: Option<Beater>,
}

impl Crowd for Rmi {
    fn begin(&mut self, _: &Arguments) -> std::io::Result<()> {
        wait_for(REGISTRY_PORT)?;
        let mut voices: Vec<Option<Voice>> = (0..self.count).map(|_| None).collect();
        self.beater = Some(Beater::start(self.count, move |number| {
            let Some(voice) = voices.get_mut(number) else { return 0 };
            if voice.is_none() {
                *voice = Voice::connect(REGISTRY_PORT, address(number), 0).ok();
            }
            let answered = voice.as_mut().is_some_and(|it| it.beat().is_ok());
            if !answered {
                *voice = None;
            }
            u64::from(answered)
        }));
        Ok(())
    }

    fn beats(&self) -> u64 {
        beats(self.beater.as_ref())
    }

    fn join(&mut self, node: SocketAddr) -> std::io::Result<()> {
        Voice::connect(REGISTRY_PORT, node, NEWEST)?.beat()
    }
}

/// By the labels of pods.
struct Kubernetes {
    server: ApiServer,
    count: usize,
    begin: Option<Instant>,
}

impl Kubernetes {
    fn start(count: usize) -> Kubernetes {
        let server = ApiServer::start(false);
        for number in 0..count {
            server.put(&pod(&format!("as-{number}"), address(number), 0));
        }
        Kubernetes { server, count, begin: None }
    }
}

fn pod(name: &str, node: SocketAddr, version: u32) -> Pod {
    Pod::of(name, node)
        .label("version", &version.to_string())
        .label("sessionId", "1485157008580")
        .label("jvmRoute", name)
}

impl Crowd for Kubernetes {
    fn environment(&self) -> Vec<(String, String)> {
        vec![("KUBECONFIG".to_owned(), self.server.kubeconfig().display().to_string())]
    }

    fn begin(&mut self, _: &Arguments) -> std::io::Result<()> {
        self.begin = Some(Instant::now());
        Ok(())
    }

    /// The balancer counts every pod as having spoken once a second.
    fn beats(&self) -> u64 {
        let seconds = self.begin.map_or(0, |it| it.elapsed().as_secs());
        seconds * u64::try_from(self.count).unwrap_or(0)
    }

    fn join(&mut self, node: SocketAddr) -> std::io::Result<()> {
        self.server.put(&pod(&format!("as-new-{}", node.port()), node, NEWEST));
        Ok(())
    }
}

fn wait_for(port: u16) -> std::io::Result<()> {
    let begin = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        if begin.elapsed() > Duration::from_secs(10) {
            return Err(std::io::Error::other(format!("nobody listens on {port}")));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

const HEARTBEAT_PORT: u16 = 16_067;
const REGISTRY_PORT: u16 = 16_068;
