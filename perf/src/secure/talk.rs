//! Callers and nodes over any transport, in one busy thread: what [`tools::agent`] is for UDP and TCP.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use protocols::sip::Transport;
use protocols::time::Time;
use rustls::{ClientConfig, ServerConfig};
use tools::agent::Clock;
use tools::caller::{Caller, CallerConfig, Pace};
use tools::node::{Node, NodeConfig, Roster};
use tools::udp::{Outbox, UdpPort};

use super::wire::Wire;

/// What the pretend peers need to shake hands.
#[derive(Clone)]
pub(super) struct Terms {
    pub(super) client: Arc<ClientConfig>,
    pub(super) server: Arc<ServerConfig>,
}

/// Who talks to whom, over what.
pub(super) struct Scene {
    pub(super) target: SocketAddr,
    pub(super) outer: Transport,
    pub(super) inner: Transport,
    pub(super) heartbeat_to: SocketAddr,
    pub(super) nodes: Vec<SocketAddr>,
    pub(super) lines: usize,
    pub(super) pace: Pace,
}

/// Both ends of all calls.
pub(super) struct Talk {
    clock: Clock,
    epoll: Epoll,
    terms: Terms,
    inner: Transport,
    hosts: Vec<Host>,
    roster: Roster,
    pub(super) caller: Caller,
    lines: Vec<Wire>,
    scratch: Outbox,
}

/// A node with its sockets.
struct Host {
    node: Node,
    datagrams: UdpPort,
    listener: TcpListener,
    wires: Vec<Option<Wire>>,
}

impl Talk {
    /// Binds the nodes, waits until the balancer has them, and connects the callers.
    pub(super) fn start(scene: &Scene, terms: Terms) -> std::io::Result<Talk> {
        let epoll = Epoll::new(EpollCreateFlags::empty())?;
        let mut hosts = Vec::new();
        for (index, address) in (0u64..).zip(&scene.nodes) {
            let name = scene.inner.as_param();
            let config = NodeConfig {
                tcp: scene.inner == Transport::Tcp,
                retransmit: false,
                properties: vec![format!("{name}Port={}", address.port())],
                ..NodeConfig::new(*address, Some(scene.heartbeat_to))
            };
            let host = Host {
                node: Node::new(config, 1),
                datagrams: UdpPort::bind(*address, None)?,
                listener: TcpListener::bind(address)?,
                wires: Vec::new(),
            };
            host.listener.set_nonblocking(true)?;
            let watch = |token| EpollEvent::new(EpollFlags::EPOLLIN, token);
            epoll.add(host.datagrams.socket.as_fd(), watch(DATAGRAMS | index))?;
            epoll.add(host.listener.as_fd(), watch(LISTENER | index))?;
            hosts.push(host);
        }
        let roster = hosts.iter().map(|it| it.node.tag().to_owned()).collect();
        let config = CallerConfig {
            transport: scene.outer,
            retransmit: false,
            timeout: GIVE_UP_AFTER,
            ..CallerConfig::new(scene.target, scene.pace)
        };
        let mut talk = Talk {
            clock: Clock::start(),
            epoll,
            terms,
            inner: scene.inner,
            hosts,
            roster,
            caller: Caller::new(config.clone(), "", &[]),
            lines: Vec::new(),
            scratch: Outbox::default(),
        };
        let begun = talk.clock.now();
        while talk.hosts.iter().any(|it| it.node.seen.heartbeats_answered == 0) {
            if talk.clock.now().since(begun) > START_TIME_MAX {
                return Err(std::io::Error::other("the balancer does not answer heartbeats"));
            }
            talk.turn_nodes(talk.clock.now());
            talk.receive()?;
        }
        for index in 0..scene.lines as u64 {
            let wire = Wire::connect(scene.outer, scene.target, &talk.terms.client)?;
            let watch = EpollEvent::new(EpollFlags::EPOLLIN, LINE | index);
            talk.epoll.add(wire.socket.as_fd(), watch)?;
            talk.lines.push(wire);
        }
        let mut locals = Vec::new();
        for wire in &talk.lines {
            locals.push(wire.socket.local_addr()?);
        }
        talk.caller = Caller::new(config, "perf", &locals);
        Ok(talk)
    }

    /// Talks for so long.
    ///
    /// # Errors
    /// A connection of a caller is over.
    pub(super) fn run(&mut self, time: Duration) -> std::io::Result<()> {
        let end = self.clock.now() + time;
        while self.clock.now() < end {
            self.turn()?;
        }
        Ok(())
    }

    /// Places no new calls and waits for those in progress.
    ///
    /// # Errors
    /// A connection of a caller is over.
    pub(super) fn finish(&mut self) -> std::io::Result<()> {
        self.caller.stop();
        let end = self.clock.now() + GIVE_UP_AFTER * 2;
        while !self.caller.finished() && self.clock.now() < end {
            self.turn()?;
        }
        Ok(())
    }

    fn turn(&mut self) -> std::io::Result<()> {
        let now = self.clock.now();
        self.caller.poll(now);
        for (line, wire) in self.caller.lines().iter_mut().zip(&mut self.lines) {
            if !line.outbox.is_empty() {
                line.outbox.messages().for_each(|(message, _)| wire.queue(message));
                line.outbox.clear();
                wire.flush()?;
            }
        }
        self.turn_nodes(now);
        self.receive()
    }

    fn turn_nodes(&mut self, now: Time) {
        for host in &mut self.hosts {
            host.node.poll(now);
            let mut outbox = std::mem::take(&mut host.node.outbox);
            host.datagrams.flush(&mut outbox);
            host.node.outbox = outbox;
        }
    }

    fn receive(&mut self) -> std::io::Result<()> {
        let mut events = [EpollEvent::empty(); 64];
        let count = self.epoll.wait(&mut events, EpollTimeout::ZERO).unwrap_or(0);
        let now = self.clock.now();
        for event in events.iter().take(count) {
            let token = event.data();
            let index = usize::try_from(token & INDEX).unwrap_or(usize::MAX);
            match token & !INDEX {
                LINE => {
                    let Some(wire) = self.lines.get_mut(index) else { continue };
                    let caller = &mut self.caller;
                    wire.receive(|message| caller.handle(now, index, message))?;
                }
                DATAGRAMS => {
                    let Some(host) = self.hosts.get_mut(index) else { continue };
                    host.datagrams.receive()?;
                    for (message, source) in host.datagrams.inbox.datagrams() {
                        host.node.handle_datagram(now, message, source, &self.roster);
                    }
                }
                LISTENER => self.accept(index)?,
                _ => self.serve(now, index),
            }
        }
        Ok(())
    }

    fn accept(&mut self, index: usize) -> std::io::Result<()> {
        let Some(host) = self.hosts.get_mut(index) else { return Ok(()) };
        let Ok((socket, _)) = host.listener.accept() else { return Ok(()) };
        let wire = Wire::accept(self.inner, socket, &self.terms.server)?;
        let token = SERVED | (index * CONNECTIONS_MAX + host.wires.len()) as u64;
        self.epoll.add(wire.socket.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, token))?;
        host.wires.push(Some(wire));
        Ok(())
    }

    fn serve(&mut self, now: Time, index: usize) {
        let (at, number) = (index / CONNECTIONS_MAX, index % CONNECTIONS_MAX);
        let Some(Host { node, wires, .. }) = self.hosts.get_mut(at) else { return };
        let Some(slot) = wires.get_mut(number) else { return };
        let Some(wire) = slot else { return };
        let (scratch, roster, inner) = (&mut self.scratch, &self.roster, self.inner);
        let Ok(peer) = wire.socket.peer_addr() else { return };
        let came = wire.receive(|message| node.handle(now, message, peer, inner, roster, scratch));
        scratch.messages().for_each(|(message, _)| wire.queue(message));
        scratch.clear();
        if came.and_then(|()| wire.flush()).is_err() {
            *slot = None;
        }
    }
}

const LINE: u64 = 1 << 32;
const DATAGRAMS: u64 = 2 << 32;
const LISTENER: u64 = 3 << 32;
const SERVED: u64 = 4 << 32;
const INDEX: u64 = u32::MAX as u64;
const CONNECTIONS_MAX: usize = 1 << 16;
const GIVE_UP_AFTER: Duration = Duration::from_millis(1500);
const START_TIME_MAX: Duration = Duration::from_secs(10);
