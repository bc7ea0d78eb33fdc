//! Sockets for the OPTIONS probes of static nodes; when to probe and what answers mean is
//! [`engine::lifecycle::Prober`].
//!
//! One UDP socket per address family. On streams each probe has a connection of its own: a node that still
//! accepts, and shakes hands, is part of what is asked.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd;

use engine::lifecycle::{Local, ProbeAction, Prober};
use engine::node::NodeKey;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use protocols::sip::Transport;
use protocols::sip::stream::{Frame, Framer};
use protocols::time::Time;
use protocols::ws::{Closing, Event};
use socket2::{Domain, Protocol, Socket, Type};

use crate::layers::{Layers, Upgraded, Wire};
use crate::tls::Security;

/// The probing sockets.
#[derive(Debug)]
pub struct Sockets {
    v4: Option<UdpSocket>,
    v6: Option<UdpSocket>,
    streams: HashMap<u64, Stream>,
    last: u64,
}

/// How TLS is spoken to nodes.
#[derive(Clone, Copy, Debug)]
pub struct Tls<'s> {
    /// Terms; without them, not at all.
    pub security: Option<&'s Security>,
    /// `USE_TLS_GATEWAY`.
    pub gateway: bool,
}

#[derive(Debug)]
struct Stream {
    node: NodeKey,
    peer: SocketAddr,
    socket: TcpStream,
    /// TLS and WebSocket; `None` on plain TCP.
    layers: Option<Box<Layers>>,
    /// Empty once it is on its way.
    request: Vec<u8>,
    is_connected: bool,
    /// As it goes on the wire.
    unsent: Vec<u8>,
    framer: Framer,
    /// What came, out of TLS, and is no whole message yet.
    received: Vec<u8>,
}

impl Sockets {
    /// Opens the UDP sockets; a family that the host does not have is left out. `host` is the address
    /// that nodes know us by, where there is one.
    pub fn open(host: Option<IpAddr>, epoll: &Epoll) -> Sockets {
        let bind = |any: IpAddr, token| {
            let ip = host.filter(|it| it.is_ipv4() == any.is_ipv4()).unwrap_or(any);
            let socket = UdpSocket::bind(SocketAddr::new(ip, 0)).ok()?;
            socket.set_nonblocking(true).ok()?;
            epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, token)).ok()?;
            Some(socket)
        };
        Sockets {
            v4: bind(Ipv4Addr::UNSPECIFIED.into(), V4),
            v6: bind(Ipv6Addr::UNSPECIFIED.into(), V6),
            streams: HashMap::new(),
            last: V6,
        }
    }

    /// What probes say of where they come from. `toward` is a node: without an address of our own to
    /// name, the one that the kernel would use for it is named.
    pub fn local(&self, toward: Option<SocketAddr>) -> Local {
        let of = |socket: &Option<UdpSocket>, any: IpAddr| {
            let bound = socket.as_ref().and_then(|it| it.local_addr().ok());
            let bound = bound.unwrap_or(SocketAddr::new(any, 0));
            match toward.filter(|it| it.is_ipv4() == any.is_ipv4()).and_then(outward) {
                Some(ip) if bound.ip().is_unspecified() => SocketAddr::new(ip, bound.port()),
                _ => bound,
            }
        };
        Local {
            v4: of(&self.v4, Ipv4Addr::UNSPECIFIED.into()),
            v6: of(&self.v6, Ipv6Addr::UNSPECIFIED.into()),
        }
    }

    /// Whether an epoll token belongs here.
    pub fn owns(token: u64) -> bool {
        (V4..END).contains(&token)
    }

    /// Sends one probe.
    pub fn send(
        &mut self,
        now: Time,
        action: ProbeAction,
        tls: Tls<'_>,
        prober: &mut Prober,
        epoll: &Epoll,
    ) {
        let sent = match action.transport {
            Transport::Udp => {
                let socket = if action.to.is_ipv4() { &self.v4 } else { &self.v6 };
                // A full send buffer is not the node's fault; the repetition will do.
                socket.as_ref().is_some_and(|it| match it.send_to(&action.bytes, action.to) {
                    Ok(_) => true,
                    Err(error) => error.kind() == ErrorKind::WouldBlock,
                })
            }
            _ => self.connect(&action, tls, epoll).is_ok(),
        };
        if !sent {
            prober.handle_failure(now, action.node);
        }
    }

    /// An epoll event with a token of ours.
    pub fn handle_ready(&mut self, now: Time, token: u64, prober: &mut Prober, epoll: &Epoll) {
        let mut buffer = [0; DATAGRAM_BYTES_MAX];
        let datagrams = match token {
            V4 => &self.v4,
            V6 => &self.v6,
            _ => return self.handle_stream(now, token, prober, epoll),
        };
        let Some(socket) = datagrams else { return };
        for _ in 0..DATAGRAMS_PER_TURN {
            match socket.recv_from(&mut buffer) {
                Ok((count, _)) => {
                    prober.handle_response(now, buffer.get(..count).unwrap_or_default());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    fn connect(
        &mut self,
        action: &ProbeAction,
        tls: Tls<'_>,
        epoll: &Epoll,
    ) -> std::io::Result<()> {
        // The last probe's connection, if it is still there, has had its time.
        self.streams.retain(|_, it| it.node != action.node);
        let peer = action.to;
        let wire = Wire { transport: action.transport, tls_gateway: tls.gateway };
        let layers = Layers::connecting(wire, peer, tls.security, DATAGRAM_BYTES_MAX)
            .map_err(|_| ErrorKind::Unsupported)?;
        let domain = Domain::for_address(peer);
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        match socket.connect(&peer.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
            _ => {}
        }
        // Tokens come round after four thousand million probes.
        self.last = if self.last + 1 == END { V6 + 1 } else { self.last + 1 };
        let socket = TcpStream::from(socket);
        epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLOUT, self.last))?;
        let stream = Stream {
            node: action.node,
            peer,
            socket,
            layers,
            request: action.bytes.clone(),
            is_connected: false,
            unsent: Vec::new(),
            framer: Framer::new(DATAGRAM_BYTES_MAX),
            received: Vec::new(),
        };
        self.streams.insert(self.last, stream);
        Ok(())
    }

    fn handle_stream(&mut self, now: Time, token: u64, prober: &mut Prober, epoll: &Epoll) {
        let Some(stream) = self.streams.get_mut(&token) else { return };
        let node = stream.node;
        match stream.advance(|message| prober.handle_response(now, message)) {
            Ok(false) => {
                let has_more = !stream.unsent.is_empty();
                let flags = if has_more { EpollFlags::EPOLLOUT } else { EpollFlags::EPOLLIN };
                let _ = epoll.modify(stream.socket.as_fd(), &mut EpollEvent::new(flags, token));
            }
            Ok(true) => drop(self.streams.remove(&token)),
            Err(_) => {
                self.streams.remove(&token);
                prober.handle_failure(now, node);
            }
        }
    }
}

impl Stream {
    /// Shakes hands, asks, and hands on what is answered. `true`: a final response was among it.
    fn advance(&mut self, mut hear: impl FnMut(&[u8])) -> std::io::Result<bool> {
        if !self.is_connected {
            if let Some(error) = self.socket.take_error()? {
                return Err(error);
            }
            self.is_connected = true;
            if let Some(layers) = &mut self.layers {
                layers.start(self.peer, &mut self.unsent);
            }
        }
        let is_final = self.read(&mut hear)?;
        if self.layers.as_ref().is_none_or(|it| it.is_open()) && !self.request.is_empty() {
            let request = std::mem::take(&mut self.request);
            match &mut self.layers {
                None => self.unsent = request,
                Some(layers) => layers.seal(&request, &mut self.unsent),
            }
        }
        if is_final && let Some(layers) = &mut self.layers {
            layers.farewell(Closing::Normal as u16, &mut self.unsent);
        }
        self.write()?;
        Ok(is_final)
    }

    fn write(&mut self) -> std::io::Result<()> {
        while !self.unsent.is_empty() {
            match self.socket.write(&self.unsent) {
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads once; what is left makes another event.
    fn read(&mut self, hear: &mut impl FnMut(&[u8])) -> std::io::Result<bool> {
        let mut buffer = [0; 4096];
        let came = match self.socket.read(&mut buffer) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => buffer.get(..count).unwrap_or_default(),
            Err(error) if is_temporary(&error) => return Ok(false),
            Err(error) => return Err(error),
        };
        let broken = || std::io::Error::from(ErrorKind::InvalidData);
        match &mut self.layers {
            Some(layers) if layers.has_tls() => {
                layers
                    .decrypt(came, self.peer, &mut self.received, &mut self.unsent)
                    .map_err(|_| broken())?;
            }
            _ => self.received.extend_from_slice(came),
        }
        let (used, is_final) = match &mut self.layers {
            Some(layers) if layers.has_frames() => {
                cut_frames(layers, &mut self.received, &mut self.unsent, hear).ok_or_else(broken)?
            }
            _ => cut(&mut self.framer, &self.received, hear).ok_or_else(broken)?,
        };
        self.received.drain(..used);
        Ok(is_final)
    }
}

/// Hands on the messages that stand whole at the front of a stream: how many bytes they took, and whether a
/// final response was among them. `None`: it is no SIP.
fn cut(framer: &mut Framer, stream: &[u8], hear: &mut impl FnMut(&[u8])) -> Option<(usize, bool)> {
    let (mut at, mut is_final) = (0, false);
    while let Some(rest) = stream.get(at..).filter(|it| !it.is_empty() && !is_final) {
        match framer.frame(rest).ok()? {
            Frame::NeedMore => break,
            Frame::Blank { bytes } | Frame::Ping { bytes } => at += bytes,
            Frame::Message(message) => {
                at += message.len();
                hear(message);
                is_final = is_final_response(message);
            }
        }
    }
    Some((at, is_final))
}

/// The same behind a WebSocket handshake. `None`: it is no WebSocket.
fn cut_frames(
    layers: &mut Layers,
    stream: &mut [u8],
    out: &mut Vec<u8>,
    hear: &mut impl FnMut(&[u8]),
) -> Option<(usize, bool)> {
    let (mut at, mut is_final) = (0, false);
    if layers.is_upgrading() {
        match layers.upgrade(stream, out) {
            Upgraded::NeedMore => return Some((0, false)),
            Upgraded::Open { consumed } => at = consumed,
            Upgraded::Refused(_) => return None,
        }
    }
    let mut reader = layers.take_reader()?;
    while let Some(rest) = stream.get_mut(at..).filter(|it| !it.is_empty() && !is_final) {
        let (consumed, event) = reader.read(rest).ok()?;
        at += consumed;
        match event {
            Event::NeedMore => break,
            Event::Fragment | Event::Pong => {}
            Event::Ping(payload) => layers.pong(payload, out),
            Event::Message(message) => {
                hear(message);
                is_final = is_final_response(message);
            }
            Event::Close { .. } => return None,
        }
    }
    layers.put_reader(reader);
    Some((at, is_final))
}

fn is_final_response(message: &[u8]) -> bool {
    message.strip_prefix(b"SIP/2.0 ").is_some_and(|status| !status.starts_with(b"1"))
}

fn is_temporary(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// The address that the kernel would send from. Nothing is sent.
fn outward(to: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).ok()?;
    socket.connect(to).ok()?;
    socket.local_addr().ok().map(|it| it.ip())
}

/// Tokens: two sockets, then the streams, up to what belongs to others.
const V4: u64 = 1 << 32;
const V6: u64 = V4 + 1;
const END: u64 = 1 << 33;
const DATAGRAM_BYTES_MAX: usize = 65_535;
const DATAGRAMS_PER_TURN: usize = 64;

#[cfg(test)]
mod tests;
