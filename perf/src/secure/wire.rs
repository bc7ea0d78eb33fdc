//! One connection of a caller or node: bytes or WebSocket messages, inside TLS or not.

use std::io::{Error, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use protocols::sip::Transport;
use protocols::ws::{Event, Opcode, Reader, Role, frame, handshake};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};
use tools::message;

/// A connection whose handshakes are done. Does not block.
pub(super) struct Wire {
    pub(super) socket: TcpStream,
    tls: Option<Connection>,
    frames: Option<(Role, Reader)>,
    /// Not yet whole messages, decrypted.
    received: Vec<u8>,
    /// As it goes on the wire, not yet taken by the kernel.
    pending: Vec<u8>,
}

impl Wire {
    /// Connects and shakes hands.
    pub(super) fn connect(
        transport: Transport,
        to: SocketAddr,
        terms: &Arc<ClientConfig>,
    ) -> std::io::Result<Wire> {
        let socket = TcpStream::connect(to)?;
        let mut tls = None;
        if is_secure(transport) {
            let name = ServerName::try_from("lb.test").map_err(Error::other)?;
            let connection = ClientConnection::new(Arc::clone(terms), name);
            tls = Some(Connection::Client(connection.map_err(Error::other)?));
        }
        let mut wire = Wire::secured(socket, tls)?;
        if is_websocket(transport) {
            wire.upgrade(to)?;
        }
        wire.socket.set_nonblocking(true)?;
        Ok(wire)
    }

    /// Shakes hands with a balancer that connected.
    pub(super) fn accept(
        transport: Transport,
        socket: TcpStream,
        terms: &Arc<ServerConfig>,
    ) -> std::io::Result<Wire> {
        let mut tls = None;
        if is_secure(transport) {
            let connection = ServerConnection::new(Arc::clone(terms));
            tls = Some(Connection::Server(connection.map_err(Error::other)?));
        }
        let mut wire = Wire::secured(socket, tls)?;
        if is_websocket(transport) {
            wire.answer_upgrade()?;
        }
        wire.socket.set_nonblocking(true)?;
        Ok(wire)
    }

    fn secured(mut socket: TcpStream, mut tls: Option<Connection>) -> std::io::Result<Wire> {
        socket.set_nonblocking(false)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(HANDSHAKE_TIME_MAX))?;
        let mut received = Vec::new();
        if let Some(tls) = &mut tls {
            while tls.is_handshaking() {
                tls.complete_io(&mut socket)?;
            }
            open(tls, &mut received)?; // what came together with the end of the handshake
        }
        Ok(Wire { socket, tls, frames: None, received, pending: Vec::new() })
    }

    fn upgrade(&mut self, to: SocketAddr) -> std::io::Result<()> {
        let (key, mut head) = ([7; 16], Vec::new());
        handshake::request(to.to_string().as_bytes(), key, &mut head);
        self.seal(&head);
        self.flush()?;
        loop {
            match handshake::confirm(&self.received, key) {
                Ok(Some(consumed)) => {
                    self.received.drain(..consumed);
                    self.frames = Some((Role::Client, Reader::new(Role::Client, MESSAGE_MAX)));
                    return Ok(());
                }
                Ok(None) => self.read()?,
                Err(refusal) => return Err(Error::other(format!("{refusal:?}"))),
            };
        }
    }

    fn answer_upgrade(&mut self) -> std::io::Result<()> {
        loop {
            let mut head = Vec::new();
            match handshake::accept(&self.received, &mut head) {
                handshake::Upgrade::Accepted { consumed } => {
                    self.received.drain(..consumed);
                    self.seal(&head);
                    self.frames = Some((Role::Server, Reader::new(Role::Server, MESSAGE_MAX)));
                    return self.flush();
                }
                handshake::Upgrade::NeedMore => self.read()?,
                handshake::Upgrade::Refused(it) => return Err(Error::other(format!("{it:?}"))),
            };
        }
    }

    /// Reads once; how much came.
    fn read(&mut self) -> std::io::Result<usize> {
        let mut chunk = [0; CHUNK];
        let count = loop {
            match self.socket.read(&mut chunk) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => break count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        };
        let mut came = chunk.get(..count).unwrap_or_default();
        let Some(tls) = &mut self.tls else {
            self.received.extend_from_slice(came);
            return Ok(count);
        };
        while !came.is_empty() {
            tls.read_tls(&mut came)?;
            open(tls, &mut self.received)?;
        }
        Ok(count)
    }

    /// Reads what is there and gives every whole message to `handle`.
    ///
    /// # Errors
    /// The connection is over.
    pub(super) fn receive(&mut self, mut handle: impl FnMut(&[u8])) -> std::io::Result<()> {
        loop {
            match self.read() {
                Ok(count) if count < CHUNK => break,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        let mut at = 0;
        while let Some(rest) = self.received.get_mut(at..).filter(|it| !it.is_empty()) {
            match &mut self.frames {
                None => {
                    let framed = message::frame(rest);
                    let Some(it) = framed.map_err(|it| Error::other(format!("{it:?}")))? else {
                        break;
                    };
                    handle(rest.get(it.start..it.end).unwrap_or_default());
                    at += it.end;
                }
                Some((_, reader)) => {
                    let read = reader.read(rest);
                    match read.map_err(|it| Error::other(format!("{it:?}")))? {
                        (0, _) => break,
                        (consumed, event) => {
                            if let Event::Message(message) = event {
                                handle(message);
                            }
                            at += consumed;
                        }
                    }
                }
            }
        }
        self.received.drain(..at);
        Ok(())
    }

    /// Queues one message.
    pub(super) fn queue(&mut self, message: &[u8]) {
        match &self.frames {
            None => self.seal(message),
            Some((role, _)) => {
                let mask = (*role == Role::Client).then_some(*b"perf");
                let mut framed = Vec::with_capacity(message.len() + 14);
                frame::write(Opcode::Text, message, mask, &mut framed);
                self.seal(&framed);
            }
        }
    }

    fn seal(&mut self, bytes: &[u8]) {
        match &mut self.tls {
            None => self.pending.extend_from_slice(bytes),
            Some(tls) => {
                let _ = tls.writer().write_all(bytes);
                while tls.wants_write() && tls.write_tls(&mut self.pending).is_ok() {}
            }
        }
    }

    /// Sends what is queued, as much as goes.
    ///
    /// # Errors
    /// The connection is over.
    pub(super) fn flush(&mut self) -> std::io::Result<()> {
        while !self.pending.is_empty() {
            match self.socket.write(&self.pending) {
                Ok(count) => drop(self.pending.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Appends what has been decrypted.
fn open(tls: &mut Connection, received: &mut Vec<u8>) -> std::io::Result<()> {
    let state = tls.process_new_packets().map_err(Error::other)?;
    let (at, more) = (received.len(), state.plaintext_bytes_to_read());
    received.resize(at + more, 0);
    tls.reader().read_exact(received.get_mut(at..).unwrap_or_default())
}

fn is_secure(transport: Transport) -> bool {
    matches!(transport, Transport::Tls | Transport::Wss)
}

fn is_websocket(transport: Transport) -> bool {
    matches!(transport, Transport::Ws | Transport::Wss)
}

const CHUNK: usize = 16 * 1024;
const MESSAGE_MAX: usize = 64 * 1024;
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(10);
