//! Sockets for the OPTIONS probes of static nodes; when to probe and what answers mean is
//! [`engine::lifecycle::Prober`].
//!
//! One UDP socket per address family. On TCP each probe has a connection of its own: a node that still
//! accepts is part of what is asked.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd;

use engine::lifecycle::{Local, ProbeAction, Prober};
use engine::node::NodeKey;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use protocols::sip::Transport;
use protocols::time::Time;
use socket2::{Domain, Protocol, Socket, Type};

/// The probing sockets.
#[derive(Debug)]
pub struct Sockets {
    v4: Option<UdpSocket>,
    v6: Option<UdpSocket>,
    streams: HashMap<u64, Stream>,
    last: u64,
}

#[derive(Debug)]
struct Stream {
    node: NodeKey,
    socket: TcpStream,
    bytes: Vec<u8>,
    sent: usize,
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
    pub fn send(&mut self, now: Time, action: ProbeAction, prober: &mut Prober, epoll: &Epoll) {
        let sent = match action.transport {
            Transport::Udp => {
                let socket = if action.to.is_ipv4() { &self.v4 } else { &self.v6 };
                // A full send buffer is not the node's fault; the repetition will do.
                socket.as_ref().is_some_and(|it| match it.send_to(&action.bytes, action.to) {
                    Ok(_) => true,
                    Err(error) => error.kind() == ErrorKind::WouldBlock,
                })
            }
            Transport::Tcp => self.connect(&action, epoll).is_ok(),
            Transport::Tls | Transport::Ws | Transport::Wss => false,
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

    fn connect(&mut self, action: &ProbeAction, epoll: &Epoll) -> std::io::Result<()> {
        // The last probe's connection, if it is still there, has had its time.
        self.streams.retain(|_, it| it.node != action.node);
        let domain = Domain::for_address(action.to);
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        match socket.connect(&action.to.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
            _ => {}
        }
        // Tokens come round after four thousand million probes.
        self.last = if self.last + 1 == END { V6 + 1 } else { self.last + 1 };
        let socket = TcpStream::from(socket);
        epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLOUT, self.last))?;
        let stream = Stream {
            node: action.node,
            socket,
            bytes: action.bytes.clone(),
            sent: 0,
            received: Vec::new(),
        };
        self.streams.insert(self.last, stream);
        Ok(())
    }

    fn handle_stream(&mut self, now: Time, token: u64, prober: &mut Prober, epoll: &Epoll) {
        let Some(stream) = self.streams.get_mut(&token) else { return };
        match stream.advance() {
            Ok(Progress::Waiting { asked }) => {
                if asked {
                    let mut event = EpollEvent::new(EpollFlags::EPOLLIN, token);
                    let _ = epoll.modify(stream.socket.as_fd(), &mut event);
                }
            }
            Ok(Progress::Answered) => {
                if let Some(stream) = self.streams.remove(&token) {
                    prober.handle_response(now, &stream.received);
                }
            }
            Err(_) => {
                if let Some(stream) = self.streams.remove(&token) {
                    prober.handle_failure(now, stream.node);
                }
            }
        }
    }
}

enum Progress {
    Waiting { asked: bool },
    Answered,
}

impl Stream {
    /// Sends, then reads to the end of a response's head; provisional responses are as good as any.
    fn advance(&mut self) -> std::io::Result<Progress> {
        let is_temporary = |error: &std::io::Error| {
            matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
        };
        if let Some(rest) = self.bytes.get(self.sent..).filter(|it| !it.is_empty()) {
            match self.socket.write(rest) {
                Ok(count) => self.sent += count,
                Err(error) if is_temporary(&error) => {}
                Err(error) => return Err(error),
            }
            return Ok(Progress::Waiting { asked: self.sent == self.bytes.len() });
        }
        let mut buffer = [0; 4096];
        match self.socket.read(&mut buffer) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => self.received.extend_from_slice(buffer.get(..count).unwrap_or_default()),
            Err(error) if is_temporary(&error) => {}
            Err(error) => return Err(error),
        }
        if self.received.windows(4).any(|it| it == b"\r\n\r\n") {
            return Ok(Progress::Answered);
        }
        if self.received.len() > DATAGRAM_BYTES_MAX {
            return Err(ErrorKind::InvalidData.into());
        }
        Ok(Progress::Waiting { asked: false })
    }
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
