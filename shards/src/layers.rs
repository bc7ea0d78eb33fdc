//! What stands between a socket and SIP messages on TLS, WS and WSS: records of TLS, frames of WebSocket.
//!
//! Holds no socket and no buffer of its own but what a handshake or half a record needs: what comes in is
//! decrypted into the shard's buffer, what goes out is sealed into the connection's. Source: RFC 8446,
//! RFC 5246 (rustls), RFC 6455, RFC 7118.

use std::collections::VecDeque;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{IoSlice, Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;

use engine::relay::DropReason;
use protocols::sip::Transport;
use protocols::ws::{Closing, Opcode, Reader, Role, frame, handshake};
use rustls::pki_types::ServerName;
use rustls::{
    ClientConfig, ClientConnection, Connection, HandshakeKind, ProtocolVersion, ServerConfig,
    ServerConnection,
};

use crate::tcp::{Carried, HELD_BYTES_MAX};
use crate::tls::Security;

/// The layers of one connection. `None` in its place is plain TCP.
#[derive(Debug)]
pub(crate) struct Layers {
    /// Not on WS.
    tls: Option<Connection>,
    /// Not on TLS.
    ws: Option<WebSocket>,
    /// Messages that wait for the end of the handshakes.
    early: VecDeque<(Vec<u8>, Option<Carried>)>,
    early_bytes: usize,
}

/// The WebSocket layer.
#[derive(Debug)]
struct WebSocket {
    role: Role,
    stage: Stage,
    reader: Reader,
    /// Of our handshake, as a client.
    key: [u8; 16],
    /// Masks are its hashes of 1, 2, ...
    random: RandomState,
    masks: u64,
}

/// Where the WebSocket layer is in its life.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stage {
    /// The HTTP upgrade is under way.
    Opening,
    /// Frames.
    Open,
    /// Our close frame is out.
    Closed,
}

/// What became of bytes that came in.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Progress {
    /// The TLS handshake has ended with these bytes; whether it resumed a session.
    pub(crate) secured: Option<bool>,
    /// The peer will say no more (`close_notify`).
    pub(crate) is_ended: bool,
}

/// Why a connection cannot go on. Send what is queued (an alert, a refusal), then close it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Failure {
    /// The TLS handshake failed.
    Handshake(rustls::Error),
    /// A record cannot be read.
    Record(rustls::Error),
}

/// What the WebSocket handshake came to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Upgraded {
    /// No whole head yet.
    NeedMore,
    /// Frames begin behind these bytes.
    Open {
        /// Length of the head.
        consumed: usize,
    },
    /// Close it once what is queued has left.
    Refused(handshake::Refusal),
}

/// A TLS connection could not be made: no certificate, or out of randomness.
#[derive(Debug)]
pub(crate) struct NoTls;

impl Layers {
    /// For a connection that was accepted. `Ok(None)`: plain TCP.
    ///
    /// # Errors
    ///
    /// [`NoTls`]: close it.
    pub(crate) fn accepting(
        wire: Wire,
        security: Option<&Security>,
        message_bytes_max: usize,
    ) -> Result<Option<Box<Layers>>, NoTls> {
        let tls = if wire.has_tls() {
            let config = Arc::clone(security.ok_or(NoTls)?.server(wire.transport));
            let mut tls = ServerConnection::new(config).map_err(|_| NoTls)?;
            tls.set_buffer_limit(None); // what is sealed goes to the connection's bounded queue at once
            Some(Connection::Server(tls))
        } else {
            None
        };
        Ok(Self::of(wire.transport, tls, Role::Server, message_bytes_max))
    }

    /// For a connection that we open.
    ///
    /// # Errors
    ///
    /// [`NoTls`]: close it.
    pub(crate) fn connecting(
        wire: Wire,
        to: SocketAddr,
        security: Option<&Security>,
        message_bytes_max: usize,
    ) -> Result<Option<Box<Layers>>, NoTls> {
        let tls = if wire.has_tls() {
            let config = Arc::clone(security.ok_or(NoTls)?.client(wire.transport));
            let name = ServerName::IpAddress(to.ip().into());
            let mut tls = ClientConnection::new(config, name).map_err(|_| NoTls)?;
            tls.set_buffer_limit(None);
            Some(Connection::Client(tls))
        } else {
            None
        };
        Ok(Self::of(wire.transport, tls, Role::Client, message_bytes_max))
    }

    /// TLS alone, for a client of a stream relay.
    ///
    /// # Errors
    ///
    /// [`NoTls`]: close it.
    pub(crate) fn tls_server(config: Arc<ServerConfig>) -> Result<Box<Layers>, NoTls> {
        let mut tls = ServerConnection::new(config).map_err(|_| NoTls)?;
        tls.set_buffer_limit(None);
        let tls = Some(Connection::Server(tls));
        Ok(Box::new(Layers { tls, ws: None, early: VecDeque::new(), early_bytes: 0 }))
    }

    /// TLS alone, towards a server of a stream relay.
    ///
    /// # Errors
    ///
    /// [`NoTls`]: close it.
    pub(crate) fn tls_client(
        config: Arc<ClientConfig>,
        to: SocketAddr,
    ) -> Result<Box<Layers>, NoTls> {
        let name = ServerName::IpAddress(to.ip().into());
        let mut tls = ClientConnection::new(config, name).map_err(|_| NoTls)?;
        tls.set_buffer_limit(None);
        let tls = Some(Connection::Client(tls));
        Ok(Box::new(Layers { tls, ws: None, early: VecDeque::new(), early_bytes: 0 }))
    }

    fn of(
        transport: Transport,
        tls: Option<Connection>,
        role: Role,
        message_bytes_max: usize,
    ) -> Option<Box<Layers>> {
        // The standard library keys it from the system's entropy.
        let random = RandomState::new();
        let [front, back] = [u64::MAX, u64::MAX - 1].map(|it| u128::from(random.hash_one(it)));
        let key = (front << 64 | back).to_be_bytes();
        let ws = is_websocket(transport).then(|| WebSocket {
            role,
            stage: Stage::Opening,
            reader: Reader::new(role, message_bytes_max),
            key,
            random,
            masks: 0,
        });
        if tls.is_none() && ws.is_none() {
            return None;
        }
        Some(Box::new(Layers { tls, ws, early: VecDeque::new(), early_bytes: 0 }))
    }

    /// The socket is connected: writes what a client has to say first.
    pub(crate) fn start(&mut self, peer: SocketAddr, out: &mut Vec<u8>) {
        if self.tls.is_some() {
            return self.drain(out);
        }
        self.request(peer, out);
    }

    /// A client's request to upgrade; over TLS it goes out once that is up.
    fn request(&mut self, peer: SocketAddr, out: &mut Vec<u8>) {
        let Some(ws) = self.ws.as_ref().filter(|it| it.role == Role::Client) else { return };
        let (host, key) = (peer.to_string(), ws.key);
        let mut head = Vec::new();
        handshake::request(host.as_bytes(), key, &mut head);
        self.encrypt([&head, &[]], out);
    }

    /// Whether SIP messages can pass.
    pub(crate) fn is_open(&self) -> bool {
        self.tls.as_ref().is_none_or(|it| !it.is_handshaking())
            && self.ws.as_ref().is_none_or(|it| it.stage != Stage::Opening)
    }

    /// Whether the TLS handshake is still under way.
    pub(crate) fn is_securing(&self) -> bool {
        self.tls.as_ref().is_some_and(|it| it.is_handshaking())
    }

    /// Whether TLS 1.3 was agreed on: the peer waits for nothing once its own part of the handshake is done.
    pub(crate) fn is_tls_1_3(&self) -> bool {
        let version = self.tls.as_ref().and_then(|it| it.protocol_version());
        version == Some(ProtocolVersion::TLSv1_3)
    }

    /// Whether bytes must be decrypted first.
    pub(crate) const fn has_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Whether frames stand between bytes and messages.
    pub(crate) const fn has_frames(&self) -> bool {
        self.ws.is_some()
    }

    /// Whether the WebSocket handshake is still under way.
    pub(crate) fn is_upgrading(&self) -> bool {
        self.ws.as_ref().is_some_and(|it| it.stage == Stage::Opening)
    }

    /// Decrypts what came into `clear`; what has to be said to the peer goes into `out`.
    ///
    /// # Errors
    ///
    /// [`Failure`]; an alert is in `out` if there is one to send.
    pub(crate) fn decrypt(
        &mut self,
        mut came: &[u8],
        peer: SocketAddr,
        clear: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<Progress, Failure> {
        let mut progress = Progress::default();
        let Some(tls) = &mut self.tls else { return Ok(progress) };
        let was_handshaking = tls.is_handshaking();
        let failure = |error| {
            if was_handshaking { Failure::Handshake(error) } else { Failure::Record(error) }
        };
        while !came.is_empty() && !progress.is_ended {
            match tls.read_tls(&mut came) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => return Err(failure(rustls::Error::General(error.to_string()))),
            }
            let state = match tls.process_new_packets() {
                Ok(state) => state,
                Err(error) => {
                    self.drain(out);
                    return Err(failure(error));
                }
            };
            let at = clear.len();
            clear.resize(at + state.plaintext_bytes_to_read(), 0);
            if let Some(room) = clear.get_mut(at..).filter(|it| !it.is_empty()) {
                // It has said that so much is there.
                let _ = tls.reader().read_exact(room);
            }
            progress.is_ended = state.peer_has_closed();
        }
        if was_handshaking && !tls.is_handshaking() {
            progress.secured = Some(tls.handshake_kind() == Some(HandshakeKind::Resumed));
        }
        self.drain(out);
        if progress.secured.is_some() {
            self.request(peer, out);
        }
        Ok(progress)
    }

    /// Reads the WebSocket handshake at the front of `stream`, and answers a client's.
    pub(crate) fn upgrade(&mut self, stream: &[u8], out: &mut Vec<u8>) -> Upgraded {
        let Some(ws) = &mut self.ws else { return Upgraded::Open { consumed: 0 } };
        let mut answer = Vec::new();
        let upgraded = match ws.role {
            Role::Server => match handshake::accept(stream, &mut answer) {
                handshake::Upgrade::NeedMore => Upgraded::NeedMore,
                handshake::Upgrade::Accepted { consumed } => Upgraded::Open { consumed },
                handshake::Upgrade::Refused(refusal) => Upgraded::Refused(refusal),
            },
            Role::Client => match handshake::confirm(stream, ws.key) {
                Ok(None) => Upgraded::NeedMore,
                Ok(Some(consumed)) => Upgraded::Open { consumed },
                Err(refusal) => Upgraded::Refused(refusal),
            },
        };
        match upgraded {
            Upgraded::Open { .. } => ws.stage = Stage::Open,
            Upgraded::Refused(_) => ws.stage = Stage::Closed,
            Upgraded::NeedMore => {}
        }
        self.encrypt([&answer, &[]], out);
        upgraded
    }

    /// Whether fragments of a message have come, and not its last one.
    pub(crate) fn is_within_message(&self) -> bool {
        self.ws.as_ref().is_some_and(|it| it.reader.is_within_message())
    }

    /// Lends the reader of frames, so that messages can be handled while it is in use; give it back by
    /// [`Layers::put_reader`].
    pub(crate) fn take_reader(&mut self) -> Option<Reader> {
        let ws = self.ws.as_mut()?;
        Some(std::mem::replace(&mut ws.reader, Reader::new(ws.role, 0)))
    }

    /// Takes the reader back.
    pub(crate) fn put_reader(&mut self, reader: Reader) {
        if let Some(ws) = &mut self.ws {
            ws.reader = reader;
        }
    }

    /// Seals one SIP message into `out`. Only once the handshakes are done.
    pub(crate) fn seal(&mut self, message: &[u8], out: &mut Vec<u8>) {
        match &self.ws {
            None => self.encrypt([message, &[]], out),
            Some(_) => self.frame(frame::opcode_for(message), message, out),
        }
    }

    /// Answers a ping.
    pub(crate) fn pong(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        self.frame(Opcode::Pong, payload, out);
    }

    /// Says goodbye: a close frame, once, and the end of TLS. `code`: any that may be sent.
    pub(crate) fn farewell(&mut self, code: u16, out: &mut Vec<u8>) {
        if let Some(ws) = self.ws.as_mut().filter(|it| it.stage == Stage::Open) {
            ws.stage = Stage::Closed;
            self.frame(Opcode::Close, &code.to_be_bytes(), out);
        }
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            self.drain(out);
        }
    }

    /// Keeps a message until the handshakes are done. `carried` is taken on success.
    ///
    /// # Errors
    ///
    /// [`DropReason::SlowPeer`]: too much waits already.
    pub(crate) fn hold(
        &mut self,
        message: Vec<u8>,
        carried: &mut Option<Carried>,
    ) -> Result<(), DropReason> {
        if !self.early.is_empty() && self.early_bytes + message.len() > HELD_BYTES_MAX {
            return Err(DropReason::SlowPeer);
        }
        self.early_bytes += message.len();
        self.early.push_back((message, carried.take()));
        Ok(())
    }

    /// What was held, in order.
    pub(crate) fn take_held(&mut self) -> VecDeque<(Vec<u8>, Option<Carried>)> {
        self.early_bytes = 0;
        std::mem::take(&mut self.early)
    }

    fn frame(&mut self, opcode: Opcode, payload: &[u8], out: &mut Vec<u8>) {
        let mask = self.ws.as_mut().and_then(WebSocket::mask);
        let Some(tls) = &mut self.tls else {
            return frame::write(opcode, payload, mask, out);
        };
        let mut head = Vec::with_capacity(HEAD_BYTES_MAX);
        let sealed = if mask.is_none() {
            frame::write_head(opcode, payload.len(), None, &mut head);
            // One record, and no copy of the payload.
            tls.writer().write_vectored(&[IoSlice::new(&head), IoSlice::new(payload)])
        } else {
            frame::write(opcode, payload, mask, &mut head);
            tls.writer().write(&head)
        };
        debug_assert!(sealed.is_ok(), "there is no limit");
        self.drain(out);
    }

    /// Writes bytes that are no SIP message, or have their frame already. While the TLS handshake is under
    /// way they wait for its end.
    pub(crate) fn encrypt(&mut self, parts: [&[u8]; 2], out: &mut Vec<u8>) {
        match &mut self.tls {
            None => parts.iter().for_each(|it| out.extend_from_slice(it)),
            Some(tls) => {
                // In one piece: each has a record of its own.
                let sealed = tls.writer().write_vectored(&parts.map(IoSlice::new));
                let bytes: usize = parts.iter().map(|it| it.len()).sum();
                debug_assert!(sealed.is_ok_and(|it| it == bytes), "there is no limit");
                self.drain(out);
            }
        }
    }

    /// Moves what TLS has to send.
    fn drain(&mut self, out: &mut Vec<u8>) {
        let Some(tls) = &mut self.tls else { return };
        while tls.wants_write() {
            // Writing into memory does not fail.
            if tls.write_tls(out).is_err() {
                break;
            }
        }
    }
}

impl WebSocket {
    /// A new mask, if we are the one who masks. Its purpose is that no proxy takes our bytes for HTTP: it
    /// must not be foreseeable by who chose the bytes (RFC 6455 §10.3).
    fn mask(&mut self) -> Option<[u8; 4]> {
        if self.role == Role::Server {
            return None;
        }
        self.masks += 1;
        let [a, b, c, d, ..] = self.random.hash_one(self.masks).to_ne_bytes();
        Some([a, b, c, d])
    }
}

/// A transport as it is carried.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wire {
    /// As messages name it.
    pub(crate) transport: Transport,
    /// WS and WSS change places (`USE_TLS_GATEWAY`, `sip.md` 1.3).
    pub(crate) tls_gateway: bool,
}

impl Wire {
    /// Whether it is inside TLS.
    pub(crate) const fn has_tls(self) -> bool {
        match self.transport {
            Transport::Udp | Transport::Tcp => false,
            Transport::Tls => true,
            Transport::Ws => self.tls_gateway,
            Transport::Wss => !self.tls_gateway,
        }
    }
}

/// Whether a transport has frames: clients on it cannot be called.
pub(crate) const fn is_websocket(transport: Transport) -> bool {
    matches!(transport, Transport::Ws | Transport::Wss)
}

/// The code that a peer's close frame is answered with.
pub(crate) fn echo(code: Option<u16>) -> u16 {
    code.unwrap_or(Closing::Normal as u16)
}

/// A header with mask.
const HEAD_BYTES_MAX: usize = 14;
