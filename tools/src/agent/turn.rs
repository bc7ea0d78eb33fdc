//! The loop of the thread: what is due, what waits to be sent, what has arrived.

use std::io::{Error, ErrorKind};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::mpsc::TryRecvError;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;
use protocols::sip::Transport;
use protocols::time::Time;

use super::{Clock, Command, Commands, Death, Polling};
use crate::caller::{Caller, CallerConfig, NextHop};
use crate::node::{Node, NodeConfig, Roster};
use crate::stream::{Closed, Connection};
use crate::udp::{BATCH, Outbox, UdpPort};

mod figures;

use figures::Load;

/// Everything the thread owns.
pub(super) struct Turns {
    clock: Clock,
    polling: Polling,
    epoll: Epoll,
    ports: Vec<Option<Port>>,
    nodes: Vec<NodeHost>,
    callers: Vec<CallerHost>,
    roster: Roster,
    scratch: Outbox,
    load: Load,
}

struct Port {
    owner: Owner,
    io: Io,
}

#[derive(Clone, Copy, PartialEq)]
enum Owner {
    Caller { caller: usize, line: usize },
    Node(usize),
}

enum Io {
    Udp(Box<UdpPort>),
    Listener(TcpListener),
    Stream(Connection),
}

struct NodeHost {
    node: Node,
    life: Life,
    udp: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Life {
    Up,
    Silent,
    Down,
}

struct CallerHost {
    caller: Caller,
    config: CallerConfig,
    /// Port of each line.
    lines: Vec<usize>,
    reconnect_at: Time,
    refused: u64,
}

impl Turns {
    pub(super) fn new(clock: Clock, polling: Polling) -> std::io::Result<Self> {
        Ok(Self {
            clock,
            polling,
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            ports: Vec::new(),
            nodes: Vec::new(),
            callers: Vec::new(),
            roster: Roster::new(),
            scratch: Outbox::default(),
            load: Load::new(clock.now()),
        })
    }

    pub(super) fn node_addresses(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(|host| host.node.config.address).collect()
    }

    pub(super) fn add_node(&mut self, mut config: NodeConfig) -> std::io::Result<()> {
        let number = self.nodes.len();
        let (udp, listener) = bind_node(&config)?;
        config.address = udp.local;
        let udp = self.add_port(Owner::Node(number), Io::Udp(Box::new(udp)))?;
        if let Some(listener) = listener {
            self.add_port(Owner::Node(number), Io::Listener(listener))?;
        }
        // Lives of nodes of other processes on the same address must differ too.
        let seconds = std::time::UNIX_EPOCH.elapsed().map_or(0, |time| time.subsec_nanos());
        self.nodes.push(NodeHost { node: Node::new(config, seconds), life: Life::Up, udp });
        self.renew_roster();
        Ok(())
    }

    pub(super) fn add_caller(&mut self, config: CallerConfig) -> std::io::Result<()> {
        let caller = self.callers.len();
        let mut lines = Vec::new();
        let mut locals = Vec::new();
        for (line, from) in config.from.iter().enumerate() {
            let (io, local) = open_line(&config, *from)?;
            locals.push(local);
            lines.push(self.add_port(Owner::Caller { caller, line }, io)?);
        }
        let salt = salt(caller);
        self.callers.push(CallerHost {
            caller: Caller::new(config.clone(), &salt, &locals),
            config,
            lines,
            reconnect_at: Time::ZERO,
            refused: 0,
        });
        Ok(())
    }

    fn add_port(&mut self, owner: Owner, io: Io) -> std::io::Result<usize> {
        let number = self.ports.iter().position(Option::is_none).unwrap_or(self.ports.len());
        let token = u64::try_from(number).unwrap_or(u64::MAX);
        let event = EpollEvent::new(EpollFlags::EPOLLIN, token);
        match &io {
            Io::Udp(port) => self.epoll.add(&port.socket, event)?,
            Io::Listener(listener) => self.epoll.add(listener, event)?,
            Io::Stream(connection) => self.epoll.add(&connection.socket, event)?,
        }
        let port = Some(Port { owner, io });
        match self.ports.get_mut(number) {
            Some(free) => *free = port,
            None => self.ports.push(port),
        }
        Ok(number)
    }

    /// Runs until the handle is dropped.
    pub(super) fn run(&mut self, commands: &Commands) {
        let mut events = [EpollEvent::empty(); 64];
        loop {
            loop {
                match commands.try_recv() {
                    Ok(command) => self.obey(command),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            let now = self.clock.now();
            let due = self.poll(now);
            let sent = self.flush();
            if self.polling == Polling::Block {
                self.sleep_until(due);
            }
            let count = self.epoll.wait(&mut events, EpollTimeout::ZERO).unwrap_or(0);
            let received = self.receive(events.get(..count).unwrap_or_default());
            if received > 0 {
                self.note_backlog(received);
            } else if !sent && self.polling == Polling::Busy {
                self.load.idle += self.clock.now().since(now);
            }
        }
    }

    fn poll(&mut self, now: Time) -> Option<Time> {
        let mut due: Option<Time> = None;
        let mut earliest = |at: Option<Time>| due = [due, at].into_iter().flatten().min();
        for number in 0..self.callers.len() {
            self.reconnect(now, number);
        }
        for host in &mut self.callers {
            earliest(host.caller.poll(now));
        }
        for host in self.nodes.iter_mut().filter(|host| host.life == Life::Up) {
            earliest(host.node.poll(now));
        }
        due
    }

    fn flush(&mut self) -> bool {
        let mut sent = false;
        let Self { ports, nodes, callers, .. } = self;
        let mut closed = Vec::new();
        for host in callers {
            for (line, number) in host.caller.lines().iter_mut().zip(&host.lines) {
                sent |= !line.outbox.is_empty();
                match ports.get_mut(*number) {
                    Some(Some(Port { io: Io::Udp(port), .. })) => port.flush(&mut line.outbox),
                    Some(Some(Port { io: Io::Stream(connection), .. })) => {
                        if connection.send(line.outbox.bytes()).is_err() {
                            closed.push(*number);
                        }
                        line.outbox.clear();
                    }
                    _ => line.outbox.clear(),
                }
            }
        }
        for host in nodes {
            if let Some(Some(Port { io: Io::Udp(port), .. })) = ports.get_mut(host.udp) {
                sent |= !host.node.outbox.is_empty();
                port.flush(&mut host.node.outbox);
            }
        }
        for number in closed {
            self.close(number);
        }
        sent
    }

    fn sleep_until(&mut self, due: Option<Time>) {
        let now = self.clock.now();
        let pending = self
            .ports
            .iter()
            .flatten()
            .any(|port| matches!(&port.io, Io::Stream(connection) if connection.is_pending()));
        let limit = if pending { PENDING_SLEEP_MAX } else { SLEEP_MAX };
        let sleep = due.map_or(limit, |due| due.since(now).min(limit));
        if !sleep.is_zero() {
            let mut fds = [PollFd::new(self.epoll.0.as_fd(), PollFlags::POLLIN)];
            // Interrupted or not, the next turn looks at everything.
            let _ = ppoll(&mut fds, Some(TimeSpec::from_duration(sleep)), None);
            self.load.idle += self.clock.now().since(now);
        }
        if pending {
            self.flush_pending();
        }
    }

    fn flush_pending(&mut self) {
        for number in 0..self.ports.len() {
            if let Some(Some(Port { io: Io::Stream(connection), .. })) = self.ports.get_mut(number)
                && connection.is_pending()
                && connection.send(&[]).is_err()
            {
                self.close(number);
            }
        }
    }

    fn receive(&mut self, events: &[EpollEvent]) -> usize {
        let mut received = 0;
        for event in events {
            let number = usize::try_from(event.data()).unwrap_or(usize::MAX);
            // Taken out while it is worked on; what it owns elsewhere stays reachable.
            let Some(mut port) = self.ports.get_mut(number).and_then(Option::take) else {
                continue;
            };
            let now = self.clock.now();
            let mut accepted = Vec::new();
            let result = match &mut port.io {
                Io::Udp(udp) => Ok(self.receive_datagrams(now, port.owner, udp)),
                Io::Stream(connection) => self.receive_stream(now, port.owner, connection),
                Io::Listener(listener) => {
                    accepted = accept_all(listener);
                    Ok(accepted.len())
                }
            };
            let owner = port.owner;
            if let Some(place) = self.ports.get_mut(number) {
                *place = Some(port);
            }
            for connection in accepted {
                // Without room in the epoll set the connection is closed again; the peer notices.
                let _ = self.add_port(owner, Io::Stream(connection));
            }
            match result {
                Ok(count) => received += count,
                Err(Closed) => self.close(number),
            }
        }
        received
    }

    fn receive_datagrams(&mut self, now: Time, owner: Owner, udp: &mut UdpPort) -> usize {
        let mut received = 0;
        for _ in 0..BATCHES_PER_TURN_MAX {
            let count = udp.receive().unwrap_or(0);
            received += count;
            match owner {
                Owner::Caller { caller, line } => {
                    let Some(host) = self.callers.get_mut(caller) else { break };
                    host.refused += std::mem::take(&mut udp.refused);
                    for (bytes, _) in udp.inbox.datagrams() {
                        host.caller.handle(now, line, bytes);
                    }
                }
                Owner::Node(node) => {
                    let Some(host) = self.nodes.get_mut(node) else { break };
                    if host.life == Life::Up {
                        for (bytes, source) in udp.inbox.datagrams() {
                            host.node.handle_datagram(now, bytes, source, &self.roster);
                        }
                    }
                }
            }
            if count < BATCH {
                break;
            }
        }
        received
    }

    fn receive_stream(
        &mut self,
        now: Time,
        owner: Owner,
        connection: &mut Connection,
    ) -> Result<usize, Closed> {
        let mut received = 0;
        match owner {
            Owner::Caller { caller, line } => {
                let Some(host) = self.callers.get_mut(caller) else { return Err(Closed) };
                connection.receive(|bytes| {
                    received += 1;
                    host.caller.handle(now, line, bytes);
                })?;
            }
            Owner::Node(node) => {
                let Some(host) = self.nodes.get_mut(node) else { return Err(Closed) };
                let (peer, scratch) = (connection.peer, &mut self.scratch);
                let ended = connection.receive(|bytes| {
                    received += 1;
                    if host.life == Life::Up {
                        let tcp = Transport::Tcp;
                        host.node.handle(now, bytes, peer, tcp, &self.roster, scratch);
                    }
                });
                let sent = connection.send(scratch.bytes());
                scratch.clear();
                ended.and(sent)?;
            }
        }
        Ok(received)
    }

    fn close(&mut self, number: usize) {
        let Some(port) = self.ports.get_mut(number).and_then(Option::take) else { return };
        if let Owner::Caller { caller, .. } = port.owner
            && let Some(host) = self.callers.get_mut(caller)
        {
            host.refused += 1;
            host.reconnect_at = self.clock.now() + RECONNECT_AFTER;
        }
    }

    /// Opens the lines of a TCP caller again that were closed.
    fn reconnect(&mut self, now: Time, caller: usize) {
        let Some(host) = self.callers.get(caller) else { return };
        if host.config.transport == Transport::Udp || host.reconnect_at > now {
            return;
        }
        let lost = |number: &usize| !matches!(self.ports.get(*number), Some(Some(port)) if matches!(port.owner, Owner::Caller { caller: it, .. } if it == caller));
        let Some(line) = host.lines.iter().position(lost) else { return };
        let config = host.config.clone();
        let from = config.from.get(line).copied();
        let opened = from
            .ok_or(Error::from(ErrorKind::NotFound))
            .and_then(|from| open_line(&config, from))
            .and_then(|(io, local)| {
                Ok((self.add_port(Owner::Caller { caller, line }, io)?, local))
            });
        let Some(host) = self.callers.get_mut(caller) else { return };
        match opened {
            Ok((number, local)) => {
                host.caller.set_local(line, local);
                if let Some(place) = host.lines.get_mut(line) {
                    *place = number;
                }
            }
            Err(_) => host.reconnect_at = now + RECONNECT_AFTER,
        }
    }

    fn obey(&mut self, command: Command) {
        // Whoever asked may have gone; then nobody misses the answer.
        match command {
            Command::Report(reply) => drop(reply.send(self.report())),
            Command::ClearLatencies => {
                self.callers.iter_mut().for_each(|host| host.caller.clear_latencies());
                self.load = Load::new(self.clock.now());
            }
            Command::StopCalls => self.callers.iter_mut().for_each(|host| host.caller.stop()),
            Command::Place(config, reply) => drop(reply.send(self.add_caller(config))),
            Command::Kill(node, death) => self.kill(node, death),
            Command::Restart(node, reply) => drop(reply.send(self.restart(node))),
            Command::Answer(node, answer) => {
                if let Some(host) = self.nodes.get_mut(node) {
                    host.node.config.answer = answer;
                }
            }
        }
    }

    fn kill(&mut self, number: usize, death: Death) {
        let Some(host) = self.nodes.get_mut(number).filter(|host| host.life == Life::Up) else {
            return;
        };
        host.life = Life::Silent;
        if death == Death::Refuse {
            host.life = Life::Down;
            self.drop_ports_of(number);
        }
        self.renew_roster();
    }

    fn restart(&mut self, number: usize) -> std::io::Result<()> {
        let Some(host) = self.nodes.get_mut(number) else { return Ok(()) };
        host.life = Life::Down;
        let config = host.node.config.clone();
        self.drop_ports_of(number);
        let (udp, listener) = bind_node(&config)?;
        let udp = self.add_port(Owner::Node(number), Io::Udp(Box::new(udp)))?;
        if let Some(listener) = listener {
            self.add_port(Owner::Node(number), Io::Listener(listener))?;
        }
        if let Some(host) = self.nodes.get_mut(number) {
            host.node.restart();
            host.udp = udp;
            host.life = Life::Up;
        }
        self.renew_roster();
        Ok(())
    }

    fn drop_ports_of(&mut self, node: usize) {
        for place in &mut self.ports {
            if place.as_ref().is_some_and(|port| port.owner == Owner::Node(node)) {
                *place = None;
            }
        }
    }

    fn renew_roster(&mut self) {
        let up = self.nodes.iter().filter(|host| host.life == Life::Up);
        self.roster = up.map(|host| host.node.tag().to_owned()).collect();
    }
}

fn bind_node(config: &NodeConfig) -> std::io::Result<(UdpPort, Option<TcpListener>)> {
    let named = |error: Error| Error::new(error.kind(), format!("{}: {error}", config.address));
    let bind = || {
        let udp = UdpPort::bind(config.address, None)?;
        let listen = || {
            let listener = TcpListener::bind(udp.local)?;
            listener.set_nonblocking(true)?;
            Ok::<_, Error>(listener)
        };
        let listener = config.tcp.then(listen).transpose()?;
        Ok::<_, Error>((udp, listener))
    };
    // A port that is free for UDP may be taken for TCP: where any will do, take another.
    let attempts = if config.address.port() == 0 { BIND_ATTEMPTS_MAX } else { 1 };
    let mut bound = bind();
    for _ in 1..attempts {
        if !matches!(&bound, Err(error) if error.kind() == ErrorKind::AddrInUse) {
            break;
        }
        bound = bind();
    }
    bound.map_err(named)
}

fn open_line(config: &CallerConfig, from: SocketAddr) -> std::io::Result<(Io, SocketAddr)> {
    let named = |error: Error| Error::new(error.kind(), format!("{}: {error}", config.target));
    if config.transport == Transport::Udp {
        // Connected only where nothing can come from elsewhere: it saves a route look-up per message.
        let peer = (config.next_hop == NextHop::Target).then_some(config.target);
        let port = UdpPort::bind(from, peer)?;
        let local = port.local;
        return Ok((Io::Udp(Box::new(port)), local));
    }
    let socket = TcpStream::connect_timeout(&config.target, CONNECT_TIME_MAX).map_err(named)?;
    let local = socket.local_addr()?;
    Ok((Io::Stream(Connection::new(socket, config.target)?), local))
}

fn accept_all(listener: &TcpListener) -> Vec<Connection> {
    std::iter::from_fn(|| listener.accept().ok())
        .take(ACCEPTS_PER_TURN_MAX)
        .filter_map(|(socket, peer)| Connection::new(socket, peer).ok())
        .collect()
}

/// Eight characters that no other caller of this machine uses at the moment.
fn salt(caller: usize) -> String {
    let nanos = std::time::UNIX_EPOCH.elapsed().map_or(0, |time| time.subsec_nanos());
    format!("{:02x}{:06x}", caller & 0xff, (nanos >> 6) & 0xff_ffff)
}

/// Commands are looked at this often while nothing happens.
const SLEEP_MAX: Duration = Duration::from_millis(10);
const PENDING_SLEEP_MAX: Duration = Duration::from_millis(1);
const RECONNECT_AFTER: Duration = Duration::from_millis(100);
const CONNECT_TIME_MAX: Duration = Duration::from_secs(2);
const BIND_ATTEMPTS_MAX: usize = 50;
/// Fairness between sockets of one thread.
const BATCHES_PER_TURN_MAX: usize = 4;
const ACCEPTS_PER_TURN_MAX: usize = 64;
