//! The kernel's share of an HTTP balancer: bytes in, bytes out, with the system calls that nobody can do without.
//!
//! It reads one thing, whether a client asks for one response alone: such a client gets it over a connection
//! that is kept to the node, as with every contender, and is closed. Every other client has a connection of its
//! own to one node. Nothing else is looked at, counted or timed; whatever a balancer costs beyond it is its own.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, RawFd};

use argh::FromArgs;
use memchr::memmem;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::{NODES, echo, wrk};

/// Pass HTTP on without reading it, until killed.
#[derive(FromArgs)]
#[argh(subcommand, name = "http-floor")]
pub(crate) struct Arguments {}

/// One end, and the other one of the same way, by its descriptor.
struct End {
    socket: TcpStream,
    is_node: bool,
    other: Option<RawFd>,
    /// The client wants no more than one response.
    is_once: bool,
}

struct Relay {
    epoll: Epoll,
    ends: HashMap<RawFd, End>,
    /// Connections to nodes that wait for a client.
    idle: Vec<RawFd>,
    dialled: usize,
    buffer: Vec<u8>,
}

pub(crate) fn run(_: &Arguments) -> io::Result<()> {
    let listener = TcpListener::bind(wrk::PLAIN)?;
    listener.set_nonblocking(true)?;
    let epoll = Epoll::new(EpollCreateFlags::empty())?;
    let front = listener.as_raw_fd();
    epoll.add(listener.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, token(front)))?;
    let (ends, idle, buffer) = (HashMap::new(), Vec::new(), vec![0; 64 * 1024]);
    let mut relay = Relay { epoll, ends, idle, dialled: 0, buffer };
    let mut events = [EpollEvent::empty(); 128];
    loop {
        let count = relay.epoll.wait(&mut events, EpollTimeout::NONE).unwrap_or(0);
        for event in events.iter().take(count) {
            let fd = RawFd::try_from(event.data()).unwrap_or(-1);
            if fd == front {
                while let Ok((socket, _)) = listener.accept() {
                    relay.enter(socket, false)?;
                }
            } else if event.events() != EpollFlags::EPOLLOUT {
                relay.pass(fd)?;
            }
        }
    }
}

impl Relay {
    fn enter(&mut self, socket: TcpStream, is_node: bool) -> io::Result<RawFd> {
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        let fd = socket.as_raw_fd();
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP;
        let event = EpollEvent::new(flags | EpollFlags::EPOLLET, token(fd));
        self.epoll.add(socket.as_fd(), event)?;
        self.ends.insert(fd, End { socket, is_node, other: None, is_once: false });
        Ok(fd)
    }

    /// What came at one end leaves at the other.
    fn pass(&mut self, fd: RawFd) -> io::Result<()> {
        let Some(end) = self.ends.get_mut(&fd) else { return Ok(()) };
        let came = match end.socket.read(&mut self.buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Ok(0) | Err(_) => {
                self.leave(fd);
                return Ok(());
            }
            Ok(count) => self.buffer.get_mut(..count).unwrap_or_default(),
        };
        let (head, is_once) = came.split_at_mut(came.len().min(HEAD_BYTES));
        let is_once = is_once.is_empty() && replace(head, CLOSES_AFTER, KEEPS);
        let is_socket = memmem::find(head, b"Upgrade: ").is_some();
        let (is_node, other, count) = (end.is_node, end.other, came.len());
        let other = match other {
            Some(other) => other,
            None if is_node => {
                self.leave(fd);
                return Ok(());
            }
            None => self.dial(fd, is_once, is_socket)?,
        };
        let Some(peer) = self.ends.get_mut(&other) else { return Ok(()) };
        peer.is_once |= is_once;
        let is_last = is_node && peer.is_once;
        let came = self.buffer.get_mut(..count).unwrap_or_default();
        if is_last {
            let (head, _) = came.split_at_mut(count.min(HEAD_BYTES));
            replace(head, KEEPS_AFTER, CLOSES);
        }
        send(&peer.socket, came)?;
        if is_last {
            self.ends.remove(&other);
            if let Some(end) = self.ends.get_mut(&fd) {
                end.other = None;
                self.idle.push(fd);
            }
        }
        Ok(())
    }

    /// A way to a node for a client.
    fn dial(&mut self, client: RawFd, is_once: bool, is_socket: bool) -> io::Result<RawFd> {
        let kept = if is_once { self.idle.pop() } else { None };
        let node = match kept {
            Some(kept) => kept,
            None => {
                self.dialled += 1;
                let [first, second] = NODES;
                let node = if self.dialled.is_multiple_of(2) { first } else { second };
                let to = if is_socket { echo::ADDRESS } else { node };
                self.enter(TcpStream::connect(to)?, true)?
            }
        };
        for (fd, other) in [(client, node), (node, client)] {
            if let Some(end) = self.ends.get_mut(&fd) {
                end.other = Some(other);
                end.is_once = is_once;
            }
        }
        Ok(node)
    }

    /// One end has gone, and the other with it.
    fn leave(&mut self, fd: RawFd) {
        self.idle.retain(|it| *it != fd);
        if let Some(other) = self.ends.remove(&fd).and_then(|it| it.other) {
            self.ends.remove(&other);
        }
    }
}

/// The same number of bytes, so that nothing moves.
fn replace(head: &mut [u8], what: &[u8], with: &[u8]) -> bool {
    let found = memmem::find(head, what);
    if let Some(place) = found.and_then(|at| head.get_mut(at..at + with.len())) {
        place.copy_from_slice(with);
    }
    found.is_some()
}

fn send(mut socket: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match socket.write(bytes) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
            Err(_) => return Ok(()), // its own event says so
        }
    }
    Ok(())
}

fn token(fd: RawFd) -> u64 {
    u64::try_from(fd).unwrap_or(u64::MAX)
}

const HEAD_BYTES: usize = 512;
const CLOSES_AFTER: &[u8] = b"Connection: close";
const KEEPS: &[u8] = b"Connection: xxxxx";
const KEEPS_AFTER: &[u8] = b"Connection: keep-alive";
const CLOSES: &[u8] = b"Connection: close     ";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_replaced_keeps_its_length() {
        for (what, with) in [(CLOSES_AFTER, KEEPS), (KEEPS_AFTER, CLOSES)] {
            let mut head = [b"GET / HTTP/1.1\r\n", what, b"\r\n\r\n"].concat();
            let before = head.len();
            assert!(replace(&mut head, what, with));
            assert!(!replace(&mut head, what, with));
            assert_eq!(head.len(), before);
        }
    }
}
