//! HTTP for plays: servers behind nodes, and clients that send bytes as they please. The reader of
//! messages is this file's own and simple: what it cannot read fails the play.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::spawn;

use nix::sys::socket::{setsockopt, sockopt};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection, StreamOwned};
use tools::ports;

use crate::{Balancer, Node, PATIENCE, wait_for};

/// A node's HTTP port. It lives until the process ends; [`WebServer::close`] closes its port.
pub struct WebServer {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    asked: Mutex<Vec<Asked>>,
    /// Connections so far.
    connections: AtomicUsize,
    /// Open ones, by number.
    sockets: Mutex<BTreeMap<usize, TcpStream>>,
    is_closed: Mutex<bool>,
}

/// A request as a server read it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Asked {
    /// Request line and fields, with the empty line.
    pub head: String,
    /// Content, without the framing of chunks.
    pub body: Vec<u8>,
    /// Lines behind the last chunk.
    pub trailers: String,
    /// Number of the connection, from 0.
    pub connection: usize,
}

/// A response as a client read it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Answer {
    /// Status line and fields, with the empty line.
    pub head: String,
    /// Content, without the framing of chunks.
    pub body: Vec<u8>,
    /// Lines behind the last chunk.
    pub trailers: String,
    /// It broke off before its end.
    pub is_cut: bool,
}

/// One connection, plain or inside TLS, from either end. Blocks, for [`PATIENCE`] at most.
pub struct WebStream {
    io: Box<dyn Io>,
    socket: TcpStream,
    unread: Vec<u8>,
    /// What ALPN agreed on.
    pub alpn: Option<Vec<u8>>,
    /// The server name that a client asked for.
    pub server_name: Option<String>,
    /// How the TLS handshake went.
    pub handshake: Option<rustls::HandshakeKind>,
}

trait Io: Read + Write + Send {
    /// Says that no more will come.
    fn farewell(&mut self) -> io::Result<()>;
}

impl Io for TcpStream {
    fn farewell(&mut self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

impl Io for StreamOwned<ClientConnection, TcpStream> {
    fn farewell(&mut self) -> io::Result<()> {
        self.conn.send_close_notify();
        self.flush()
    }
}

impl Io for StreamOwned<ServerConnection, TcpStream> {
    fn farewell(&mut self) -> io::Result<()> {
        self.conn.send_close_notify();
        self.flush()
    }
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum End {
    /// In good order.
    Closed,
    /// By a reset, or TLS without its farewell.
    Reset,
}

impl WebServer {
    /// Answers each request with what `answer` says and keeps the connection, unless that says close.
    pub fn start(answer: impl Fn(&Asked) -> Vec<u8> + Send + Sync + 'static) -> WebServer {
        WebServer::polite(None, answer)
    }

    /// As [`WebServer::start`], on the loopback address of IPv6.
    pub fn start_v6(answer: impl Fn(&Asked) -> Vec<u8> + Send + Sync + 'static) -> WebServer {
        WebServer::accept_at("::1", None, polite(answer))
    }

    /// As [`WebServer::start`], inside TLS.
    pub fn start_secure(
        config: ServerConfig,
        answer: impl Fn(&Asked) -> Vec<u8> + Send + Sync + 'static,
    ) -> WebServer {
        WebServer::polite(Some(Arc::new(config)), answer)
    }

    /// As [`WebServer::start`]; who asks for WebSocket gets its messages back.
    pub fn start_mixed(answer: impl Fn(&Asked) -> Vec<u8> + Send + Sync + 'static) -> WebServer {
        WebServer::accept(None, move |mut stream, number, shared| {
            while let Some(asked) = stream.request(number) {
                if asked.field("upgrade").is_some() {
                    return stream.echo_messages(&asked);
                }
                shared.asked.lock().unwrap().push(asked.clone());
                if stream.try_send(answer(&asked)).is_err() {
                    return;
                }
            }
        })
    }

    /// A server that answers 200 with its name.
    pub fn named(name: &str) -> WebServer {
        let name = name.to_owned();
        WebServer::start(move |_| ok(&name))
    }

    /// Leaves every connection to `serve`, with its number from 0.
    pub fn raw(serve: impl Fn(WebStream, usize) + Send + Sync + 'static) -> WebServer {
        WebServer::accept(None, move |stream, number, _| serve(stream, number))
    }

    /// As [`WebServer::raw`], inside TLS.
    pub fn raw_secure(
        config: ServerConfig,
        serve: impl Fn(WebStream, usize) + Send + Sync + 'static,
    ) -> WebServer {
        let config = Some(Arc::new(config));
        WebServer::accept(config, move |stream, number, _| serve(stream, number))
    }

    fn polite(
        config: Option<Arc<ServerConfig>>,
        answer: impl Fn(&Asked) -> Vec<u8> + Send + Sync + 'static,
    ) -> WebServer {
        WebServer::accept(config, polite(answer))
    }

    fn accept(
        config: Option<Arc<ServerConfig>>,
        serve: impl Fn(WebStream, usize, &Shared) + Send + Sync + 'static,
    ) -> WebServer {
        WebServer::accept_at("127.0.0.1", config, serve)
    }

    fn accept_at(
        host: &str,
        config: Option<Arc<ServerConfig>>,
        serve: impl Fn(WebStream, usize, &Shared) + Send + Sync + 'static,
    ) -> WebServer {
        // A port that nobody else gets once it is closed.
        let listener = TcpListener::bind((host, ports::free())).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let (serve, of_thread) = (Arc::new(serve), shared.clone());
        spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                if *of_thread.is_closed.lock().unwrap() {
                    return;
                }
                let number = of_thread.connections.fetch_add(1, Ordering::Relaxed);
                let twin = socket.try_clone().unwrap();
                of_thread.sockets.lock().unwrap().insert(number, twin);
                let (serve, config, shared) = (serve.clone(), config.clone(), of_thread.clone());
                spawn(move || {
                    if let Ok(stream) = WebStream::accept(socket, config) {
                        serve(stream, number, &shared);
                    }
                    // The last one closes it.
                    shared.sockets.lock().unwrap().remove(&number);
                });
            }
        });
        WebServer { address, shared }
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The requests it has read whole, in order. Not of [`WebServer::raw`].
    pub fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().unwrap().clone()
    }

    /// Connections it has accepted.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// The process is gone: nothing listens there, and every connection is reset.
    pub fn close(&self) {
        *self.shared.is_closed.lock().unwrap() = true;
        for socket in std::mem::take(&mut *self.shared.sockets.lock().unwrap()).values() {
            let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
            let _ = setsockopt(socket, sockopt::Linger, &linger);
            // Whoever reads from it lets go of it, and the last one resets it.
            let _ = socket.shutdown(Shutdown::Read);
        }
        // The thread looks when somebody comes, and lets the listener go.
        let _ = TcpStream::connect(self.address);
        wait_for("the port to close", || TcpStream::connect(self.address).err().map(|_| ()));
    }
}

impl Balancer {
    /// A node `name` whose HTTP port is `server`, announced; [`Node::property`] of `more` as well.
    pub fn web_node(&self, name: &str, server: &WebServer, more: &[(&str, &str)]) -> Node {
        let port = server.address().port().to_string();
        let mut node = Node::bind(name).property("httpPort", &port);
        for (key, value) in more {
            node = node.property(key, value);
        }
        let node = self.announced(node);
        self.wait_node(name, |it| it.host_name == name);
        node
    }

    /// As many nodes as names, each answering with its name.
    pub fn named_nodes(&self, names: &[&str]) -> Vec<(Node, WebServer)> {
        let start = |name: &&str| {
            let server = WebServer::named(name);
            (self.web_node(name, &server, &[("jvmRoute", name)]), server)
        };
        names.iter().map(start).collect()
    }

    /// Asks on a connection of its own.
    pub fn ask(&self, request: impl AsRef<[u8]>) -> Answer {
        let mut client = WebStream::connect(self.http());
        client.send(request);
        client.answer()
    }
}

impl WebStream {
    /// Connects.
    pub fn connect(to: SocketAddr) -> WebStream {
        let socket = TcpStream::connect(to).unwrap();
        WebStream::over(socket, |socket| Ok(Box::new(socket))).unwrap()
    }

    /// Connects and shakes hands as a client of `name`.
    pub fn connect_secure(
        to: SocketAddr,
        config: &Arc<ClientConfig>,
        name: &str,
    ) -> io::Result<WebStream> {
        WebStream::connect_secure_behind(b"", to, config, name)
    }

    /// The same, and says something in clear first.
    pub fn connect_secure_behind(
        preface: &[u8],
        to: SocketAddr,
        config: &Arc<ClientConfig>,
        name: &str,
    ) -> io::Result<WebStream> {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let connection = ClientConnection::new(config.clone(), name).map_err(io::Error::other)?;
        let (mut alpn, mut handshake) = (None, None);
        let mut stream = WebStream::over(TcpStream::connect(to)?, |socket| {
            (&socket).write_all(preface)?;
            let mut stream = StreamOwned::new(connection, socket);
            while stream.conn.is_handshaking() {
                stream.conn.complete_io(&mut stream.sock)?;
            }
            alpn = stream.conn.alpn_protocol().map(<[u8]>::to_vec);
            handshake = stream.conn.handshake_kind();
            Ok(Box::new(stream))
        })?;
        (stream.alpn, stream.handshake) = (alpn, handshake);
        Ok(stream)
    }

    fn accept(socket: TcpStream, config: Option<Arc<ServerConfig>>) -> io::Result<WebStream> {
        let Some(config) = config else { return WebStream::over(socket, |it| Ok(Box::new(it))) };
        let connection = ServerConnection::new(config).map_err(io::Error::other)?;
        let (mut alpn, mut name) = (None, None);
        let mut stream = WebStream::over(socket, |socket| {
            let mut stream = StreamOwned::new(connection, socket);
            while stream.conn.is_handshaking() {
                stream.conn.complete_io(&mut stream.sock)?;
            }
            alpn = stream.conn.alpn_protocol().map(<[u8]>::to_vec);
            name = stream.conn.server_name().map(str::to_owned);
            Ok(Box::new(stream))
        })?;
        (stream.alpn, stream.server_name) = (alpn, name);
        Ok(stream)
    }

    fn over(
        socket: TcpStream,
        secure: impl FnOnce(TcpStream) -> io::Result<Box<dyn Io>>,
    ) -> io::Result<WebStream> {
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let io = secure(socket.try_clone()?)?;
        let (unread, alpn, server_name, handshake) = (Vec::new(), None, None, None);
        Ok(WebStream { io, socket, unread, alpn, server_name, handshake })
    }

    /// The same connection for another thread to send on; not inside TLS.
    pub fn twin(&self) -> WebStream {
        WebStream::over(self.socket.try_clone().unwrap(), |it| Ok(Box::new(it))).unwrap()
    }

    /// Our own address.
    pub fn local(&self) -> SocketAddr {
        self.socket.local_addr().unwrap()
    }

    /// Sends.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).unwrap();
    }

    /// Sends; the peer may be gone.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.io.write_all(bytes.as_ref())?;
        self.io.flush()
    }

    /// Takes little at a time from now on.
    pub fn shrink(&self) {
        setsockopt(&self.socket, sockopt::RcvBuf, &4096).unwrap();
    }

    /// Says that no more will come.
    pub fn end(&self) {
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    /// The same, inside TLS where that is spoken.
    pub fn farewell(&mut self) {
        self.io.farewell().unwrap();
    }

    /// Goes away with a reset.
    pub fn reset(self) {
        let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
        setsockopt(&self.socket, sockopt::Linger, &linger).unwrap();
    }

    /// More of what comes. `None`: the end.
    fn more(&mut self) -> Result<(), End> {
        let mut buffer = vec![0; 256 * 1024];
        match self.io.read(&mut buffer) {
            Ok(0) => Err(End::Closed),
            Ok(count) => {
                self.unread.extend_from_slice(&buffer[..count]);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                panic!("waited {PATIENCE:?} in vain behind {:?}", text(&self.unread))
            }
            Err(_) => Err(End::Reset),
        }
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        let rest = self.unread.split_off(count);
        std::mem::replace(&mut self.unread, rest)
    }

    /// So many bytes.
    pub fn bytes(&mut self, count: usize) -> Result<Vec<u8>, End> {
        while self.unread.len() < count {
            self.more()?;
        }
        Ok(self.take(count))
    }

    /// Some bytes, at least one.
    pub fn some(&mut self) -> Result<Vec<u8>, End> {
        if self.unread.is_empty() {
            self.more()?;
        }
        Ok(self.take(self.unread.len()))
    }

    /// Up to and with `mark`.
    pub fn until(&mut self, mark: &[u8]) -> Result<String, End> {
        loop {
            let found = self.unread.windows(mark.len()).position(|it| it == mark);
            if let Some(at) = found {
                let count = at + mark.len();
                return Ok(text(&self.take(count)));
            }
            self.more()?;
        }
    }

    /// The next head.
    pub fn head(&mut self) -> Result<String, End> {
        self.until(b"\r\n\r\n")
    }

    /// Everything that comes, and how it ended.
    pub fn rest(&mut self) -> (Vec<u8>, End) {
        loop {
            if let Err(end) = self.more() {
                return (std::mem::take(&mut self.unread), end);
            }
        }
    }

    /// The answer to a GET or POST; interim ones are skipped.
    pub fn answer(&mut self) -> Answer {
        self.answer_to("GET")
    }

    /// The answer to a request of this method.
    pub fn answer_to(&mut self, method: &str) -> Answer {
        loop {
            let Ok(head) = self.head() else {
                return Answer { is_cut: true, ..Answer::default() };
            };
            let mut answer = Answer { head, ..Answer::default() };
            if (100..200).contains(&answer.status()) && answer.status() != 101 {
                continue;
            }
            let has_none = method == "HEAD" || matches!(answer.status(), 101 | 204 | 304);
            if !has_none {
                answer.is_cut = self.content(&answer.head, &mut answer.body, &mut answer.trailers);
            }
            return answer;
        }
    }

    fn request(&mut self, connection: usize) -> Option<Asked> {
        let head = self.head().ok()?;
        let mut asked = Asked { head, connection, ..Asked::default() };
        if asked.field("expect").is_some() {
            self.try_send("HTTP/1.1 100 Continue\r\n\r\n").ok()?;
        }
        let has_body = ["content-length", "transfer-encoding"].map(|it| asked.field(it).is_some());
        let is_cut = has_body.contains(&true)
            && self.content(&asked.head, &mut asked.body, &mut asked.trailers);
        (!is_cut).then_some(asked)
    }

    /// Accepts a WebSocket handshake and returns each message.
    fn echo_messages(mut self, asked: &Asked) {
        let key = asked.field("sec-websocket-key").unwrap_or_default().as_bytes();
        let accept = tungstenite::handshake::derive_accept_key(key);
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\n\r\n"
        );
        if self.try_send(answer).is_err() {
            return;
        }
        let role = tungstenite::protocol::Role::Server;
        let mut messages = tungstenite::WebSocket::from_raw_socket(self.io, role, None);
        while let Ok(message) = messages.read() {
            if !message.is_close() && messages.send(message).is_err() {
                return;
            }
        }
    }

    /// Reads content as its head says; returns whether it broke off.
    fn content(&mut self, head: &str, body: &mut Vec<u8>, trailers: &mut String) -> bool {
        if field(head, "transfer-encoding").is_some_and(|it| it.eq_ignore_ascii_case("chunked")) {
            loop {
                let Ok(line) = self.until(b"\r\n") else { return true };
                let size = line.split(';').next().unwrap_or_default().trim();
                let size = usize::from_str_radix(size, 16).expect("the size of a chunk");
                if size == 0 {
                    break;
                }
                let Ok(chunk) = self.bytes(size + 2) else { return true };
                assert!(chunk.ends_with(b"\r\n"), "a chunk ends with its line");
                body.extend_from_slice(&chunk[..size]);
            }
            loop {
                let Ok(line) = self.until(b"\r\n") else { return true };
                if line == "\r\n" {
                    return false;
                }
                trailers.push_str(&line);
            }
        }
        if let Some(length) = field(head, "content-length") {
            let length: usize = length.parse().unwrap();
            while self.unread.len() < length {
                if self.more().is_err() {
                    body.append(&mut self.unread);
                    return true;
                }
            }
            *body = self.take(length);
            return false;
        }
        let (rest, end) = self.rest();
        *body = rest;
        end == End::Reset
    }
}

impl Asked {
    /// Method and target.
    pub fn line(&self) -> (&str, &str) {
        let mut words = self.head.split(' ');
        (words.next().unwrap_or_default(), words.next().unwrap_or_default())
    }

    /// Value of the first such field.
    pub fn field(&self, name: &str) -> Option<&str> {
        field(&self.head, name)
    }
}

impl Answer {
    /// 0: there was none.
    pub fn status(&self) -> u16 {
        self.head.split(' ').nth(1).and_then(|it| it.parse().ok()).unwrap_or(0)
    }

    /// Value of the first such field.
    pub fn field(&self, name: &str) -> Option<&str> {
        field(&self.head, name)
    }

    /// Content as text.
    pub fn text(&self) -> String {
        text(&self.body)
    }
}

/// Answers each request, and closes where its answer says so.
fn polite(
    answer: impl Fn(&Asked) -> Vec<u8> + Send + Sync + 'static,
) -> impl Fn(WebStream, usize, &Shared) + Send + Sync + 'static {
    move |mut stream, number, shared| {
        while let Some(asked) = stream.request(number) {
            shared.asked.lock().unwrap().push(asked.clone());
            let answer = answer(&asked);
            let closes = String::from_utf8_lossy(&answer).contains("Connection: close\r\n");
            if stream.try_send(answer).is_err() || closes {
                return;
            }
        }
    }
}

fn field<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    let mut fields = head.lines().skip(1).filter_map(|it| it.split_once(':'));
    fields.find(|(it, _)| it.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// 200 with a text.
pub fn ok(text: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len()).into_bytes()
}

/// A GET that keeps the connection.
pub fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: lb\r\n\r\n")
}

/// A POST of a form.
pub fn post(target: &str, body: &str) -> String {
    let bytes = body.len();
    format!("POST {target} HTTP/1.1\r\nHost: lb\r\nContent-Length: {bytes}\r\n\r\n{body}")
}
