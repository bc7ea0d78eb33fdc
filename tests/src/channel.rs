//! One stream connection of a peer: bytes or WebSocket frames, inside TLS or not. Made with rustls and
//! tungstenite, which share nothing with what is under test but TLS records.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, ServerConnection, StreamOwned};
use tungstenite::handshake::server::{Request, Response};
use tungstenite::http::HeaderValue;
use tungstenite::{Message, WebSocket};

use crate::keys::keys;
use crate::{PATIENCE, Transport};

/// A connection after its handshakes. Does not block.
pub(crate) enum Channel {
    /// A stream that SIP frames by itself.
    Bytes(Stream),
    /// One SIP message per message.
    Frames(Box<WebSocket<Stream>>),
}

/// What came in.
pub(crate) enum Came {
    /// Nothing yet.
    Nothing,
    /// A piece of the stream.
    Bytes(Vec<u8>),
    /// A whole message.
    Message(Vec<u8>),
    /// The end.
    End,
}

/// A socket, perhaps inside TLS.
pub(crate) enum Stream {
    Plain(TcpStream),
    Client(Box<StreamOwned<ClientConnection, TcpStream>>),
    Server(Box<StreamOwned<ServerConnection, TcpStream>>),
}

impl Channel {
    /// Connects to `to` and shakes hands.
    pub(crate) fn connect(transport: Transport, to: SocketAddr) -> io::Result<Channel> {
        let socket = TcpStream::connect(to)?;
        prepare(&socket)?;
        let stream = match transport {
            Transport::Tls | Transport::Wss => {
                static CONFIG: OnceLock<Arc<rustls::ClientConfig>> = OnceLock::new();
                let config = CONFIG.get_or_init(|| Arc::new(keys().client(None))).clone();
                let name = ServerName::try_from("lb.test").unwrap();
                let connection = ClientConnection::new(config, name).map_err(io::Error::other)?;
                let mut stream = StreamOwned::new(connection, socket);
                while stream.conn.is_handshaking() {
                    stream.conn.complete_io(&mut stream.sock)?;
                }
                Stream::Client(Box::new(stream))
            }
            _ => Stream::Plain(socket),
        };
        Channel::finish(transport, stream, |stream| {
            let request = tungstenite::http::Request::builder()
                .uri(format!("ws://{to}/"))
                .header("Host", to.to_string())
                .header("Upgrade", "websocket")
                .header("Connection", "Upgrade")
                .header("Sec-WebSocket-Key", tungstenite::handshake::client::generate_key())
                .header("Sec-WebSocket-Version", "13")
                .header("Sec-WebSocket-Protocol", "sip")
                .body(())
                .unwrap();
            tungstenite::client(request, stream).map(|it| it.0).map_err(io::Error::other)
        })
    }

    /// Shakes hands with who connected.
    pub(crate) fn accept(transport: Transport, socket: TcpStream) -> io::Result<Channel> {
        prepare(&socket)?;
        let stream = match transport {
            Transport::Tls | Transport::Wss => {
                static CONFIG: OnceLock<Arc<rustls::ServerConfig>> = OnceLock::new();
                let make = || Arc::new(keys().server(&keys().sign("node.test", |_| {}), false));
                let config = CONFIG.get_or_init(make).clone();
                let connection = ServerConnection::new(config).map_err(io::Error::other)?;
                let mut stream = StreamOwned::new(connection, socket);
                while stream.conn.is_handshaking() {
                    stream.conn.complete_io(&mut stream.sock)?;
                }
                Stream::Server(Box::new(stream))
            }
            _ => Stream::Plain(socket),
        };
        Channel::finish(transport, stream, |stream| {
            #[allow(clippy::result_large_err)] // the library's
            let choose = |request: &Request, mut response: Response| {
                assert_eq!(request.headers()["Sec-WebSocket-Protocol"], "sip");
                let sip = HeaderValue::from_static("sip");
                response.headers_mut().insert("Sec-WebSocket-Protocol", sip);
                Ok(response)
            };
            tungstenite::accept_hdr(stream, choose).map_err(io::Error::other)
        })
    }

    fn finish(
        transport: Transport,
        stream: Stream,
        upgrade: impl FnOnce(Stream) -> io::Result<WebSocket<Stream>>,
    ) -> io::Result<Channel> {
        let mut channel = match transport {
            Transport::Ws | Transport::Wss => Channel::Frames(Box::new(upgrade(stream)?)),
            _ => Channel::Bytes(stream),
        };
        channel.stream().socket().set_nonblocking(true)?;
        Ok(channel)
    }

    fn stream(&mut self) -> &mut Stream {
        match self {
            Channel::Bytes(stream) => stream,
            Channel::Frames(socket) => socket.get_mut(),
        }
    }

    /// Sends one message.
    pub(crate) fn send(&mut self, message: &[u8]) {
        let deadline = Instant::now() + PATIENCE;
        let wait = || {
            assert!(Instant::now() < deadline, "the balancer does not read");
            std::thread::sleep(Duration::from_millis(1));
        };
        match self {
            Channel::Bytes(stream) => {
                let mut rest = message;
                while !rest.is_empty() {
                    match stream.write(rest) {
                        Ok(count) => rest = &rest[count..],
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait(),
                        Err(_) => return,
                    }
                }
                while let Err(error) = stream.flush() {
                    if error.kind() != io::ErrorKind::WouldBlock {
                        return;
                    }
                    wait();
                }
            }
            Channel::Frames(socket) => {
                let message = match String::from_utf8(message.to_vec()) {
                    Ok(text) => Message::text(text),
                    Err(error) => Message::binary(error.into_bytes()),
                };
                let mut sent = socket.send(message);
                while let Err(tungstenite::Error::Io(error)) = &sent {
                    if error.kind() != io::ErrorKind::WouldBlock {
                        return;
                    }
                    wait();
                    sent = socket.flush();
                }
            }
        }
    }

    /// What has come, without waiting.
    pub(crate) fn receive(&mut self) -> Came {
        match self {
            Channel::Bytes(stream) => {
                let mut buffer = vec![0; 65_536];
                match stream.read(&mut buffer) {
                    Ok(0) => Came::End,
                    Ok(count) => {
                        buffer.truncate(count);
                        Came::Bytes(buffer)
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => Came::Nothing,
                    Err(_) => Came::End,
                }
            }
            Channel::Frames(socket) => match socket.read() {
                Ok(Message::Text(text)) => Came::Message(text.as_bytes().to_vec()),
                Ok(Message::Binary(bytes)) => Came::Message(bytes.to_vec()),
                Ok(_) => Came::Nothing,
                Err(tungstenite::Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    Came::Nothing
                }
                Err(_) => Came::End,
            },
        }
    }

    /// The socket itself.
    pub(crate) fn socket(&self) -> &TcpStream {
        match self {
            Channel::Bytes(stream) => stream.socket(),
            Channel::Frames(socket) => socket.get_ref().socket(),
        }
    }

    /// Hangs up.
    pub(crate) fn close(&mut self) {
        let _ = self.stream().socket().shutdown(std::net::Shutdown::Both);
    }
}

fn prepare(socket: &TcpStream) -> io::Result<()> {
    socket.set_nonblocking(false)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))
}

impl Stream {
    fn socket(&self) -> &TcpStream {
        match self {
            Stream::Plain(socket) => socket,
            Stream::Client(stream) => &stream.sock,
            Stream::Server(stream) => &stream.sock,
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(it) => it.read(buffer),
            Stream::Client(it) => it.read(buffer),
            Stream::Server(it) => it.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(it) => it.write(bytes),
            Stream::Client(it) => it.write(bytes),
            Stream::Server(it) => it.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Stream::Plain(it) => it.flush(),
            Stream::Client(it) => it.flush(),
            Stream::Server(it) => it.flush(),
        }
    }
}
