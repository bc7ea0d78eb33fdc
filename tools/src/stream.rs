//! A TCP connection that carries SIP messages, without blocking.
//!
//! Reads RFC 3261 §18.3 (framing) through [`message::frame`]. What cannot be sent waits, up to
//! [`PENDING_BYTES_MAX`]; a peer that does not read for that long is cut off.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::message;

/// One connection with what is not yet read and not yet written.
#[derive(Debug)]
pub struct Connection {
    /// The socket.
    pub socket: TcpStream,
    /// The other side.
    pub peer: SocketAddr,
    received: Vec<u8>,
    pending: Vec<u8>,
}

/// A connection is over: closed, broken, or no longer understood.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Closed;

impl Connection {
    /// Takes over a connected socket.
    ///
    /// # Errors
    /// What the kernel says to making it non-blocking.
    pub fn new(socket: TcpStream, peer: SocketAddr) -> std::io::Result<Self> {
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        Ok(Self { socket, peer, received: Vec::new(), pending: Vec::new() })
    }

    /// Reads what is there and gives every whole message to `handle`.
    ///
    /// # Errors
    /// [`Closed`]; the connection must be dropped.
    pub fn receive(&mut self, mut handle: impl FnMut(&[u8])) -> Result<(), Closed> {
        let mut chunk = [0; 16 * 1024];
        let ended = loop {
            match self.socket.read(&mut chunk) {
                Ok(0) => break true,
                Ok(count) => self.received.extend_from_slice(chunk.get(..count).unwrap_or(&chunk)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break true,
            }
        };
        let mut from = 0;
        while let Some(rest) = self.received.get(from..) {
            let Some(frame) = message::frame(rest).map_err(|_| Closed)? else { break };
            handle(rest.get(frame.start..frame.end).unwrap_or_default());
            from += frame.end;
        }
        self.received.drain(..from);
        if ended { Err(Closed) } else { Ok(()) }
    }

    /// Sends `bytes` behind everything that still waits.
    ///
    /// # Errors
    /// [`Closed`]; the connection must be dropped.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), Closed> {
        self.pending.extend_from_slice(bytes);
        while !self.pending.is_empty() {
            match self.socket.write(&self.pending) {
                Ok(0) => return Err(Closed),
                Ok(count) => drop(self.pending.drain(..count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Not connected yet, or full.
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) =>
                {
                    let overfull = self.pending.len() > PENDING_BYTES_MAX;
                    return if overfull { Err(Closed) } else { Ok(()) };
                }
                Err(_) => return Err(Closed),
            }
        }
        Ok(())
    }

    /// Bytes wait for the peer to read.
    pub fn is_pending(&self) -> bool {
        !self.pending.is_empty()
    }
}

/// Bytes that may wait for a peer that does not read.
pub const PENDING_BYTES_MAX: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn messages_cross_whole_and_a_close_is_seen() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut far = Connection::new(TcpStream::connect(address).unwrap(), address).unwrap();
        let (socket, peer) = listener.accept().unwrap();
        let mut near = Connection::new(socket, peer).unwrap();
        let text = b"BYE sip:a SIP/2.0\r\nContent-Length: 2\r\n\r\nok";
        let stream = text.repeat(3);
        let mut seen = 0;
        for byte in stream.chunks(7) {
            far.send(byte).unwrap();
            near.receive(|message| {
                assert_eq!(message, text);
                seen += 1;
            })
            .unwrap();
        }
        while seen < 3 {
            near.receive(|_| seen += 1).unwrap();
        }
        drop(far);
        while near.receive(|_| panic!("nothing was sent")).is_ok() {}
    }
}
