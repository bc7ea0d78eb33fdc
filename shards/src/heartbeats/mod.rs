//! Where nodes announce themselves by Java RMI and by HTTP: listeners and connections on the control
//! thread's epoll set (`http-smpp-registry.md` 3.4, 3.5).
//!
//! What connections say is read by `protocols::heartbeat` and believed or not by the registry. Everything
//! is bounded: connections, bytes of one message and of all that are under way, time. When the table is
//! full, the connection that has been silent longest makes room: a Java node that finds its connection
//! closed opens another.

mod farewell;
mod open;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, ToSocketAddrs as _};
use std::os::fd::AsFd as _;
use std::time::Duration;

use engine::config::{Config, Network};
use engine::registry::Registry;
use engine::stats::Beats;
use log::{info, warn};
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use protocols::heartbeat::jrmp::{self, Stub, Uid};
use protocols::time::Time;
use socket2::{Domain, Socket, Type};

pub use self::farewell::Farewell;
use self::open::{Open, Outcome};

/// The ports and their connections.
#[derive(Debug)]
pub struct Heartbeats {
    ports: Vec<Port>,
    open: BTreeMap<u64, Open>,
    opened: u64,
    /// From there on the idlest makes room: [`CONNECTIONS_MAX`].
    connections_max: usize,
    /// Bytes of messages that are under way, in both directions.
    held_bytes: usize,
    /// The process' own name for its RMI object.
    uid: Uid,
    /// Port that the object is on.
    object_port: u16,
    stub_host: Option<String>,
    believed: Vec<Network>,
    figures: Beats,
    next_check: Option<Time>,
    is_paused: bool,
    refused_logged: Option<Time>,
}

#[derive(Debug)]
struct Port {
    listener: TcpListener,
    speech: Speech,
}

/// What is spoken on a port.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Speech {
    /// JRMP: the registry and the object alike.
    Rmi,
    /// One JSON command by HTTP.
    Json,
}

impl Heartbeats {
    /// Opens what is configured and says so in the log. `epoch_ms` tells this process from the one before.
    ///
    /// A port that the operator has written down must be free. One that is only a default gives way with
    /// a warning: a second balancer on the host must start although nobody has told it of RMI.
    ///
    /// # Errors
    ///
    /// What the operator has to change, by key.
    pub fn open(config: &Config, epoch_ms: u64, epoll: &Epoll) -> Result<Heartbeats, String> {
        let unique = i32::try_from(std::process::id()).unwrap_or(i32::MAX);
        let time = i64::try_from(epoch_ms).unwrap_or(i64::MAX);
        let mut it = Heartbeats {
            ports: Vec::new(),
            open: BTreeMap::new(),
            opened: 0,
            connections_max: CONNECTIONS_MAX,
            held_bytes: 0,
            uid: Uid { unique, time, count: 0 },
            object_port: 0,
            stub_host: None,
            believed: Vec::new(),
            figures: Beats::default(),
            next_check: None,
            is_paused: false,
            refused_logged: None,
        };
        it.configure(config);
        let beats = &config.heartbeats;
        if let Some(registry) = beats.rmi_port
            && it.listen(config, Speech::Rmi, registry, "rmiRegistryPort", epoll)?
        {
            it.object_port = registry;
            if let Some(object) = beats.rmi_object_port.filter(|it| *it != registry)
                && it.listen(config, Speech::Rmi, object, "rmiRemoteObjectPort", epoll)?
            {
                it.object_port = object;
            }
            info!("RMI heartbeat listener bound to internalHost, port {registry}");
            info!(
                "RMI heartbeat server bound to ports rmiRegistryPort {registry} and \
                 remoteObjectPort {}",
                it.object_port
            );
        }
        if let Some(port) = beats.http_port
            && it.listen(config, Speech::Json, port, "heartbeatPort", epoll)?
        {
            let host = host(config);
            let ip = address(host)?;
            info!("Heartbeat service started on {host}/{ip}:{port} (Load balancer's side)");
        }
        Ok(it)
    }

    /// Takes over what can change while the process runs.
    pub fn configure(&mut self, config: &Config) {
        self.stub_host.clone_from(&config.heartbeats.rmi_stub_host);
        self.believed.clone_from(&config.heartbeat_sources);
    }

    /// Whether `token` of an epoll event belongs here.
    pub const fn owns(token: u64) -> bool {
        token >= FIRST
    }

    /// An epoll event with a token of ours.
    pub fn handle_ready(&mut self, now: Time, token: u64, epoll: &Epoll, registry: &mut Registry) {
        self.next_check.get_or_insert(now + CHECK_PERIOD);
        if token < CONNECTIONS {
            let port = usize::try_from(token - FIRST).unwrap_or(usize::MAX);
            return self.accept(now, port, epoll);
        }
        let Some(open) = self.open.get_mut(&token) else { return };
        let before = open.held_bytes();
        let outcome = open.handle_ready(now, registry, &mut self.figures);
        self.held_bytes = self.held_bytes - before + open.held_bytes();
        let wanted = match outcome {
            Outcome::Read => EpollFlags::EPOLLIN,
            Outcome::Write => EpollFlags::EPOLLOUT,
            Outcome::Close => return self.close(token),
        };
        if open.waits_for != wanted {
            open.waits_for = wanted;
            let mut event = EpollEvent::new(wanted, token);
            if epoll.modify(open.stream.as_fd(), &mut event).is_err() {
                return self.close(token);
            }
        }
        if self.held_bytes > HELD_BYTES_MAX {
            let greediest = self.open.iter().max_by_key(|(_, it)| it.held_bytes());
            if let Some(token) = greediest.map(|(token, _)| *token) {
                self.figures.refused += 1;
                self.close(token);
            }
        }
    }

    /// When [`Heartbeats::handle_timeout`] has something to do.
    pub const fn poll_timeout(&self) -> Option<Time> {
        self.next_check
    }

    /// We have not listened for a while: what waits unread is read before anybody took too long.
    pub fn handle_stall(&mut self, now: Time) {
        self.next_check = self.next_check.map(|_| now + CHECK_PERIOD);
    }

    /// Closes connections that took too long; listens again where it could not accept.
    pub fn handle_timeout(&mut self, now: Time, epoll: &Epoll) {
        if self.next_check.is_none_or(|it| it > now) {
            return;
        }
        let late = self.open.iter().filter(|(_, it)| it.deadline() <= now);
        for token in late.map(|(token, _)| *token).collect::<Vec<_>>() {
            self.close(token);
        }
        if std::mem::take(&mut self.is_paused) {
            self.listen_for(EpollFlags::EPOLLIN, epoll);
        }
        self.next_check = (!self.open.is_empty()).then_some(now + CHECK_PERIOD);
    }

    /// What was heard since the start, and how many connections there are.
    pub fn figures(&self) -> Beats {
        let connections = u64::try_from(self.open.len()).unwrap_or(u64::MAX);
        Beats { connections, accepted: self.opened, ..self.figures }
    }

    /// Opens a port. `Ok(false)`: it is only a default, and taken.
    fn listen(
        &mut self,
        config: &Config,
        speech: Speech,
        port: u16,
        key: &str,
        epoll: &Epoll,
    ) -> Result<bool, String> {
        let is_default = config.unwritten_ports.contains(&port);
        let address = SocketAddr::new(address(host(config))?, port);
        let listener = if is_default && config.has_listener_on(port) {
            Err(ErrorKind::AddrInUse.into())
        } else {
            bound(address)
        };
        let listener = match listener {
            Ok(it) => it,
            Err(error) if is_default => {
                let what = match key {
                    "rmiRegistryPort" => "no heartbeats by RMI",
                    "heartbeatPort" => "no heartbeats by HTTP",
                    _ => "rmiRegistryPort serves the object, too",
                };
                warn!("{key}: {address}: {error}: {what}. Set it to another port, or to 0");
                return Ok(false);
            }
            Err(error) => return Err(format!("{key}={port}: {address}: {error}")),
        };
        let token = FIRST + u64::try_from(self.ports.len()).unwrap_or(u64::MAX);
        let event = EpollEvent::new(EpollFlags::EPOLLIN, token);
        epoll.add(&listener, event).map_err(|error| error.to_string())?;
        self.ports.push(Port { listener, speech });
        Ok(true)
    }

    fn accept(&mut self, now: Time, port: usize, epoll: &Epoll) {
        for _ in 0..ACCEPTS_PER_TURN {
            let Some(Port { listener, speech }) = self.ports.get(port) else { return };
            let speech = *speech;
            let (stream, peer) = match listener.accept() {
                Ok(it) => it,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if crate::sys::is_exhaustion(&error) => {
                    // Nothing can be accepted for now, and the listener would ring without end.
                    self.is_paused = true;
                    return self.listen_for(EpollFlags::empty(), epoll);
                }
                Err(_) => continue,
            };
            // On `::` an IPv4 node comes by a mapped address, which no network, session or stub means.
            let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
            if !self.believes(peer.ip()) {
                self.figures.refused += 1;
                self.complain(now, peer.ip());
                continue; // Closed by dropping it.
            }
            let (Ok(local), Ok(())) = (stream.local_addr(), stream.set_nonblocking(true)) else {
                continue;
            };
            let _ = stream.set_nodelay(true); // Slower without, no worse.
            if self.open.len() >= self.connections_max {
                let idlest = self.open.iter().min_by_key(|(_, it)| it.last_heard);
                if let Some(token) = idlest.map(|(token, _)| *token) {
                    self.figures.refused += 1;
                    self.close(token);
                }
            }
            self.opened += 1;
            let token = CONNECTIONS + self.opened;
            let event = EpollEvent::new(EpollFlags::EPOLLIN, token);
            if epoll.add(&stream, event).is_err() {
                continue;
            }
            let open = match speech {
                Speech::Json => Open::json(now, stream, peer),
                Speech::Rmi => {
                    let stub = self.stub(local.ip().to_canonical());
                    let count = i16::try_from(self.opened & 0x7fff).unwrap_or(0);
                    let first = Uid { unique: self.uid.unique ^ 1, count, ..self.uid };
                    Open::rmi(stream, peer, jrmp::Connection::new(now, peer, stub, first), now)
                }
            };
            self.open.insert(token, open);
        }
    }

    /// The object as a client on this connection is told of it.
    fn stub(&self, local: IpAddr) -> Stub {
        let host = self.stub_host.clone().unwrap_or_else(|| local.to_string());
        Stub { host, port: self.object_port, object: OBJECT, uid: self.uid }
    }

    fn believes(&self, ip: IpAddr) -> bool {
        self.believed.is_empty() || self.believed.iter().any(|it| it.contains(ip))
    }

    fn complain(&mut self, now: Time, ip: IpAddr) {
        if self.refused_logged.is_none_or(|it| now.since(it) >= REFUSED_LOG_PERIOD) {
            self.refused_logged = Some(now);
            warn!("Heartbeat refused: {ip} is not in heartbeatSources");
        }
    }

    fn close(&mut self, token: u64) {
        if let Some(it) = self.open.remove(&token) {
            self.held_bytes -= it.held_bytes();
        }
    }

    fn listen_for(&self, flags: EpollFlags, epoll: &Epoll) {
        for (index, port) in (0..).zip(&self.ports) {
            // It was added, and stays.
            let _ = epoll.modify(port.listener.as_fd(), &mut EpollEvent::new(flags, FIRST + index));
        }
    }
}

/// `host`, which stands for the legs' own ones, too, where they alone are written; or the IPv6 one.
fn host(config: &Config) -> &str {
    let written = config.host.as_ref().or(config.ipv6_host.as_ref());
    written.map_or("127.0.0.1", String::as_str)
}

/// Blocks: for the start alone.
fn address(host: &str) -> Result<IpAddr, String> {
    let failed = |why: &dyn std::fmt::Display| {
        format!("Couldn't get the InetAddress from the host {host}: {why}")
    };
    let mut found = (host, 0).to_socket_addrs().map_err(|error| failed(&error))?;
    found.next().map(|it| it.ip()).ok_or_else(|| failed(&"no address"))
}

fn bound(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.cloexec(), None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Where nodes are told that the balancer listens for them by HTTP.
pub fn own_address(config: &Config) -> Option<SocketAddr> {
    let port = config.heartbeats.http_port?;
    Some(SocketAddr::new(address(host(config)).unwrap_or(Ipv4Addr::LOCALHOST.into()), port))
}

/// Tokens: the ports, then the connections. Smaller ones are others'.
const FIRST: u64 = 1 << 48;
const CONNECTIONS: u64 = FIRST + 16;
/// Two thousand nodes with a connection to the registry and one to the object each, and as many again
/// that are about to be closed.
const CONNECTIONS_MAX: usize = 8_192;
/// All messages under way: a node's ping is one or two KiB, the largest a MiB.
const HELD_BYTES_MAX: usize = 32 * 1024 * 1024;
const ACCEPTS_PER_TURN: usize = 64;
/// As many nodes beat in the same moment after a disturbance of the network.
const BACKLOG: i32 = 1_024;
/// Connections outlive their time by this at most.
const CHECK_PERIOD: Duration = Duration::from_millis(250);
/// Any number but those of the registry, the activator and the collector.
const OBJECT: i64 = 0x5452_554e_4b4c_494e;
const REFUSED_LOG_PERIOD: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests;
