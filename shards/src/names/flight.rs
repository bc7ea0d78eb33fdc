//! One lookup on the network: its question, its socket, what comes back.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use engine::names::Lookup;
use socket2::{Domain, Protocol, Socket, Type};

use super::Wanted;
use super::wire::{self, Reading};

/// One lookup on its way.
pub(super) struct Flight {
    pub(super) lookup: Lookup,
    pub(super) wanted_by: Vec<Wanted>,
    pub(super) id: u16,
    pub(super) question: Vec<u8>,
    /// Counts over all servers.
    pub(super) attempt: usize,
    pub(super) socket: Option<Wire>,
    pub(super) deadline: Instant,
}

pub(super) enum Wire {
    Udp(UdpSocket),
    Tcp { stream: TcpStream, sent: usize, received: Vec<u8> },
}

impl Wire {
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Wire::Udp(it) => it.as_fd(),
            Wire::Tcp { stream, .. } => stream.as_fd(),
        }
    }
}

/// What came of looking at a socket.
pub(super) enum Heard {
    Nothing,
    /// The question is out: wait for the answer.
    Asked,
    Reading(Reading),
    Failed,
}

impl Flight {
    pub(super) fn hear(&mut self) -> Heard {
        match &mut self.socket {
            None => Heard::Nothing,
            Some(Wire::Udp(socket)) => {
                let mut buffer = [0; DATAGRAM_BYTES_MAX];
                match socket.recv(&mut buffer) {
                    Ok(count) => {
                        let bytes = buffer.get(..count).unwrap_or_default();
                        Heard::Reading(wire::read(self.id, &self.lookup, bytes))
                    }
                    Err(error) if is_temporary(&error) => Heard::Nothing,
                    Err(_) => Heard::Failed, // Port unreachable, mostly.
                }
            }
            Some(Wire::Tcp { stream, sent, received }) => {
                if *sent < self.question.len() + 2 {
                    return write_framed(stream, sent, &self.question);
                }
                let mut buffer = [0; 4096];
                match stream.read(&mut buffer) {
                    Ok(0) => Heard::Failed,
                    Ok(count) => {
                        received.extend_from_slice(buffer.get(..count).unwrap_or_default());
                        let Some((length, rest)) = received.split_first_chunk() else {
                            return Heard::Nothing;
                        };
                        match rest.get(..usize::from(u16::from_be_bytes(*length))) {
                            Some(bytes) => match wire::read(self.id, &self.lookup, bytes) {
                                Reading::Foreign => Heard::Failed,
                                reading => Heard::Reading(reading),
                            },
                            None => Heard::Nothing,
                        }
                    }
                    Err(error) if is_temporary(&error) => Heard::Nothing,
                    Err(_) => Heard::Failed,
                }
            }
        }
    }
}

/// RFC 1035 §4.2.2: two bytes of length in front.
fn write_framed(stream: &mut TcpStream, sent: &mut usize, question: &[u8]) -> Heard {
    let length = u16::try_from(question.len()).unwrap_or(0).to_be_bytes();
    let framed: Vec<u8> = length.iter().chain(question).copied().collect();
    match stream.write(framed.get(*sent..).unwrap_or_default()) {
        Ok(count) => {
            *sent += count;
            if *sent == framed.len() { Heard::Asked } else { Heard::Nothing }
        }
        Err(error) if is_temporary(&error) => Heard::Nothing,
        Err(_) => Heard::Failed,
    }
}

pub(super) fn ask_by_udp(server: SocketAddr, question: &[u8]) -> std::io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(server), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    // Connected: answers from elsewhere do not get through, and "port unreachable" does.
    socket.connect(&server.into())?;
    let socket = UdpSocket::from(socket);
    socket.send(question)?;
    Ok(socket)
}

pub(super) fn connect_tcp(server: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(server), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    match socket.connect(&server.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(socket.into()),
    }
}

fn is_temporary(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// RFC 1035 §2.3.4 says 512; some servers send more unasked.
const DATAGRAM_BYTES_MAX: usize = 4096;
