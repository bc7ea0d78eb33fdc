//! A scripted SIP peer: one address with UDP and TCP, another port for each further transport it speaks,
//! and a record of everything that arrived.
//!
//! A play drives it by hand (`send`, `expect`, `reply`) or lets it answer by itself (`answers`). A
//! background thread reads, so nothing is lost while the play looks elsewhere.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{JoinHandle, spawn};
use std::time::{Duration, Instant};

use tools::ports;

use crate::channel::{Came, Channel};
use crate::message::{content_length, host_and_port, param};
use crate::{Dialog, Message, PATIENCE, Uri};

/// What a peer speaks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Transport {
    /// Datagrams.
    Udp,
    /// A stream, framed by Content-Length.
    Tcp,
    /// The same inside TLS.
    Tls,
    /// WebSocket.
    Ws,
    /// WebSocket inside TLS.
    Wss,
}

impl Transport {
    /// As Via and URIs spell it, in lower case.
    pub fn lower(self) -> &'static str {
        match self {
            Transport::Udp => "udp",
            Transport::Tcp => "tcp",
            Transport::Tls => "tls",
            Transport::Ws => "ws",
            Transport::Wss => "wss",
        }
    }

    fn link(self, peer: SocketAddr) -> Link {
        match self {
            Transport::Udp => Link::Udp,
            Transport::Tcp => Link::Tcp(peer),
            Transport::Tls => Link::Tls(peer),
            Transport::Ws => Link::Ws(peer),
            Transport::Wss => Link::Wss(peer),
        }
    }
}

/// How a message came in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Link {
    /// In a datagram.
    Udp,
    /// On the connection with this peer address.
    Tcp(SocketAddr),
    /// The same, inside TLS.
    Tls(SocketAddr),
    /// In a WebSocket message.
    Ws(SocketAddr),
    /// The same, inside TLS.
    Wss(SocketAddr),
}

impl Link {
    /// What was spoken.
    pub fn transport(self) -> Transport {
        match self {
            Link::Udp => Transport::Udp,
            Link::Tcp(_) => Transport::Tcp,
            Link::Tls(_) => Transport::Tls,
            Link::Ws(_) => Transport::Ws,
            Link::Wss(_) => Transport::Wss,
        }
    }
}

/// One message that arrived, with everything needed to answer it.
#[derive(Clone, Debug)]
pub struct Received {
    /// The message as read.
    pub message: Message,
    /// The very bytes.
    pub raw: Vec<u8>,
    /// Sender of the datagram or peer of the connection.
    pub source: SocketAddr,
    /// How it came in.
    pub link: Link,
    me: Identity,
}

impl Deref for Received {
    type Target = Message;

    fn deref(&self) -> &Message {
        &self.message
    }
}

impl Received {
    /// Builds a response (RFC 3261 §8.2.6): Via, Record-Route, From, To, Call-ID and CSeq copied. The To
    /// tag is the peer's name, so a play can read off a response who answered.
    pub fn reply(&self, code: u16, reason: &str) -> Message {
        let mut reply = Message::new(format!("SIP/2.0 {code} {reason}"));
        for (name, value) in &self.message.headers {
            let lower = name.to_ascii_lowercase();
            match lower.as_str() {
                "to" | "t" if code > 100 && param(value, "tag").is_none() => {
                    reply = reply.with("To", format!("{value};tag={}", self.me.name));
                }
                "via" | "v" | "from" | "f" | "to" | "t" | "call-id" | "i" | "cseq"
                | "record-route" => reply = reply.with(name, value),
                _ => {}
            }
        }
        if (101..300).contains(&code) && matches!(self.method(), "INVITE" | "SUBSCRIBE") {
            reply = reply.with("Contact", self.me.contact(self.link.transport()));
        }
        reply
    }
}

/// Name and address, for headers.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    /// Ports of TLS, WS and WSS, where it listens on them.
    ports: [u16; 3],
}

impl Identity {
    pub(crate) fn contact(&self, transport: Transport) -> String {
        let (name, address) = (&self.name, self.at(transport));
        match transport {
            Transport::Udp => format!("<sip:{name}@{address}>"),
            other => format!("<sip:{name}@{address};transport={}>", other.lower()),
        }
    }

    /// Where it listens.
    fn at(&self, transport: Transport) -> SocketAddr {
        let [tls, ws, wss] = self.ports;
        let port = match transport {
            Transport::Udp | Transport::Tcp => self.address.port(),
            Transport::Tls => tls,
            Transport::Ws => ws,
            Transport::Wss => wss,
        };
        SocketAddr::new(self.address.ip(), port)
    }
}

/// A SIP endpoint on loopback. Dropping it closes its sockets.
pub struct Peer {
    wire: Arc<Wire>,
    threads: Vec<JoinHandle<()>>,
    /// What it starts requests with.
    pub transport: Transport,
    /// Outbound proxy for requests without Route; `None` follows the Request-URI.
    pub proxy: Option<SocketAddr>,
    /// Ask for symmetric response routing (RFC 3581).
    pub asks_rport: bool,
}

/// What a peer does with a request on its own: the responses to send, in order.
type Script = Arc<dyn Fn(&Received) -> Vec<Message> + Send + Sync>;

struct Wire {
    me: Identity,
    /// `None` once closed: the address must be free for the next incarnation.
    udp: Mutex<Option<UdpSocket>>,
    streams: Mutex<HashMap<SocketAddr, Arc<Mutex<Channel>>>>,
    inbox: Mutex<Vec<Entry>>,
    arrival: Condvar,
    script: Mutex<Option<Script>>,
    is_closed: AtomicBool,
}

struct Entry {
    received: Received,
    is_taken: bool,
}

impl Peer {
    /// Binds UDP and TCP on a free port of 127.0.0.1.
    pub fn bind(name: &str) -> Peer {
        Peer::bind_on(name, IpAddr::V4(Ipv4Addr::LOCALHOST))
    }

    /// Binds UDP and TCP on a free port of ::1.
    pub fn bind_v6(name: &str) -> Peer {
        Peer::bind_on(name, IpAddr::V6(Ipv6Addr::LOCALHOST))
    }

    /// Binds UDP and TCP on a free port of this address.
    pub fn bind_on(name: &str, ip: IpAddr) -> Peer {
        crate::wait_for("a free port", || Peer::bind_at(name, SocketAddr::new(ip, ports::free())))
    }

    /// Binds UDP and TCP at exactly this address, TLS, WS and WSS at free ports beside it; `None` if it is
    /// taken.
    pub fn bind_at(name: &str, address: SocketAddr) -> Option<Peer> {
        let further = || SocketAddr::new(address.ip(), ports::free());
        Peer::bind_all(name, [address, further(), further(), further()])
    }

    /// Binds UDP and TCP at the first address, TLS, WS and WSS at the others; `None` if one is taken.
    pub fn bind_all(name: &str, addresses: [SocketAddr; 4]) -> Option<Peer> {
        let [address, tls, ws, wss] = addresses;
        let mut listeners = Vec::new();
        for (transport, address) in [
            (Transport::Tcp, address),
            (Transport::Tls, tls),
            (Transport::Ws, ws),
            (Transport::Wss, wss),
        ] {
            let listener = TcpListener::bind(address).ok()?;
            listener.set_nonblocking(true).unwrap();
            listeners.push((transport, listener));
        }
        let udp = UdpSocket::bind(address).ok()?;
        udp.set_read_timeout(Some(TICK)).unwrap();
        let ports = [tls, ws, wss].map(|it| it.port());
        let reader = udp.try_clone().unwrap();
        let wire = Arc::new(Wire {
            me: Identity { name: name.to_owned(), address, ports },
            udp: Mutex::new(Some(udp)),
            streams: Mutex::default(),
            inbox: Mutex::default(),
            arrival: Condvar::new(),
            script: Mutex::default(),
            is_closed: AtomicBool::new(false),
        });
        let (datagrams, connections) = (wire.clone(), wire.clone());
        let threads = vec![
            spawn(move || datagrams.read_datagrams(&reader)),
            spawn(move || connections.accept(&listeners)),
        ];
        let (transport, proxy, asks_rport) = (Transport::Udp, None, true);
        Some(Peer { wire, threads, transport, proxy, asks_rport })
    }

    /// Same peer, speaking TCP.
    pub fn over_tcp(self) -> Peer {
        self.over(Transport::Tcp)
    }

    /// Same peer, speaking another transport.
    pub fn over(mut self, transport: Transport) -> Peer {
        self.transport = transport;
        self
    }

    /// Where it listens on a transport.
    pub fn address_of(&self, transport: Transport) -> SocketAddr {
        self.wire.me.at(transport)
    }

    /// Same peer, sending through `proxy`.
    pub fn through(mut self, proxy: SocketAddr) -> Peer {
        self.proxy = Some(proxy);
        self
    }

    /// Its name: user part of its URIs and its tag.
    pub fn name(&self) -> &str {
        &self.wire.me.name
    }

    /// Where it listens, on UDP and TCP.
    pub fn address(&self) -> SocketAddr {
        self.wire.me.address
    }

    /// Its Contact value.
    pub fn contact(&self) -> String {
        self.wire.me.contact(self.transport)
    }

    /// Its own URI, as others would call it.
    pub fn uri(&self) -> String {
        self.contact().trim_matches(['<', '>']).to_owned()
    }

    /// A fresh Via value of this peer.
    pub fn via(&self) -> String {
        let name = self.transport.lower().to_uppercase();
        let rport = if self.asks_rport { ";rport" } else { "" };
        let sent_by = self.address_of(self.transport);
        format!("SIP/2.0/{name} {sent_by};branch=z9hG4bK{}{rport}", unique())
    }

    /// Builds a request outside any dialog; an INVITE carries an SDP body.
    pub fn request(&self, method: &str, uri: &str) -> Message {
        let id = unique();
        let message = Message::new(format!("{method} {uri} SIP/2.0"))
            .with("Via", self.via())
            .with("Max-Forwards", "70")
            .with("From", format!("\"{0}\" <sip:{0}@here.com>;tag=f{id}", self.name()))
            .with("To", format!("<{uri}>"))
            .with("Call-ID", format!("{id}@{}", self.name()))
            .with("CSeq", format!("1 {method}"))
            .with("Contact", self.contact());
        if method == "INVITE" { message.with_body("application/sdp", SDP) } else { message }
    }

    /// Sends a request to its next hop: top Route, else the outbound proxy, else the Request-URI.
    pub fn send(&self, message: &Message) {
        let next = message.routes().first().map(|it| Uri::of(it));
        let next = next.and_then(|it| it.address()).or(self.proxy);
        let to = next.or_else(|| Uri::of(message.uri()).address());
        self.send_to(to.unwrap_or_else(|| panic!("no next hop in\n{message}")), message);
    }

    /// Sends a request to this address, whatever it says.
    pub fn send_to(&self, to: SocketAddr, message: &Message) {
        self.send_bytes(to, &message.to_bytes());
    }

    /// Sends any bytes over the peer's transport.
    pub fn send_bytes(&self, to: SocketAddr, bytes: &[u8]) {
        match self.transport {
            Transport::Udp => self.wire.send_datagram(to, bytes),
            stream => self.wire.send_stream(stream, to, bytes),
        }
    }

    /// Sends a response where its top Via says, on the request's connection if it has one.
    pub fn respond(&self, request: &Received, response: &Message) {
        self.wire.respond(request, response);
    }

    /// Builds and sends a response; returns it.
    pub fn reply(&self, request: &Received, code: u16, reason: &str) -> Message {
        let response = request.reply(code, reason);
        self.respond(request, &response);
        response
    }

    /// Waits for the next untaken message that is `what`: `INVITE`, `180`, `200 BYE`.
    ///
    /// # Panics
    ///
    /// After [`PATIENCE`], showing what arrived instead.
    pub fn expect(&self, what: &str) -> Received {
        self.expect_where(what, |it| it.is(what))
    }

    /// As [`Peer::expect`], for one Call-ID.
    pub fn expect_in(&self, call_id: &str, what: &str) -> Received {
        self.expect_where(what, |it| it.is(what) && it.call_id() == call_id)
    }

    /// Waits for the next untaken message that `is_it`; `what` names it in the failure.
    ///
    /// # Panics
    ///
    /// After [`PATIENCE`].
    pub fn expect_where(&self, what: &str, is_it: impl Fn(&Received) -> bool) -> Received {
        let deadline = Instant::now() + PATIENCE;
        let mut inbox = self.wire.inbox();
        loop {
            if let Some(received) = take(&mut inbox, &is_it) {
                return received;
            }
            let rest = deadline.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                let untaken = inbox.iter().filter(|it| !it.is_taken);
                let got: Vec<String> = untaken.map(|it| it.received.to_string()).collect();
                drop(inbox);
                panic!("{} waited for {what}, but has only {got:#?}", self.name());
            }
            inbox = self.wire.arrival.wait_timeout(inbox, rest).unwrap().0;
        }
    }

    /// Takes a message that is `what` if it has already arrived.
    pub fn poll(&self, what: &str) -> Option<Received> {
        take(&mut self.wire.inbox(), &|it: &Received| it.is(what))
    }

    /// Everything that arrived, taken or not, in order.
    pub fn record(&self) -> Vec<Received> {
        self.wire.inbox().iter().map(|it| it.received.clone()).collect()
    }

    /// How many messages that are `what` arrived, taken or not.
    pub fn count(&self, what: &str) -> usize {
        self.wire.inbox().iter().filter(|it| it.received.is(what)).count()
    }

    /// Answers requests by itself from now on; they are recorded all the same.
    pub fn answers(&self, script: impl Fn(&Received) -> Vec<Message> + Send + Sync + 'static) {
        *self.wire.script.lock().unwrap() = Some(Arc::new(script));
    }

    /// Accepts every call (180, 200) and answers everything else but ACK with 200.
    pub fn answers_calls(&self) {
        self.answers(|it| match it.method() {
            "ACK" => vec![],
            "INVITE" => vec![it.reply(180, "Ringing"), it.reply(200, "OK")],
            _ => vec![it.reply(200, "OK")],
        });
    }

    /// Back to being driven by hand.
    pub fn answers_nothing(&self) {
        *self.wire.script.lock().unwrap() = None;
    }

    /// Sets up a call that is answered by whoever gets it: INVITE, 200, ACK.
    pub fn call(&self, uri: &str) -> Dialog {
        self.call_with(&self.request("INVITE", uri))
    }

    /// As [`Peer::call`] with a given INVITE.
    pub fn call_with(&self, invite: &Message) -> Dialog {
        self.send(invite);
        let ok = self.expect_in(invite.call_id(), "200 INVITE");
        let mut dialog = Dialog::of_caller(self, invite, &ok);
        self.send(&dialog.ack());
        dialog
    }

    /// Sends a request inside the dialog and waits for its final 200.
    pub fn exchange(&self, dialog: &mut Dialog, method: &str) -> Received {
        self.send(&dialog.request(method));
        self.expect_in(&dialog.call_id, &format!("200 {method}"))
    }

    /// Sends a bodiless request outside any dialog and waits for its 200.
    pub fn ask(&self, method: &str, uri: &str) -> Received {
        let request = self.request(method, uri);
        self.send(&request);
        self.expect_in(request.call_id(), &format!("200 {method}"))
    }

    /// Closes its sockets and waits until they are closed; a peer that dies.
    pub fn close(&mut self) {
        self.wire.is_closed.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        *self.wire.udp.lock().unwrap() = None;
        for (_, channel) in self.wire.streams.lock().unwrap().drain() {
            channel.lock().unwrap().close();
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.name(), self.address())
    }
}

/// Text that no other message of any test process on this machine has.
pub(crate) fn unique() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("{}x{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

fn take(inbox: &mut [Entry], is_it: &impl Fn(&Received) -> bool) -> Option<Received> {
    let entry = inbox.iter_mut().find(|it| !it.is_taken && is_it(&it.received))?;
    entry.is_taken = true;
    Some(entry.received.clone())
}

impl Wire {
    fn inbox(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.inbox.lock().unwrap()
    }

    fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Relaxed)
    }

    fn read_datagrams(&self, socket: &UdpSocket) {
        let mut buffer = vec![0; 65_536];
        while !self.is_closed() {
            if let Ok((length, source)) = socket.recv_from(&mut buffer) {
                self.handle(&buffer[..length], source, Link::Udp);
            }
        }
    }

    fn accept(self: &Arc<Wire>, listeners: &[(Transport, TcpListener)]) {
        let mut readers = Vec::new();
        while !self.is_closed() {
            let mut has_some = false;
            for (transport, listener) in listeners {
                if let Ok((socket, source)) = listener.accept() {
                    has_some = true;
                    let (wire, transport) = (self.clone(), *transport);
                    readers.push(spawn(move || wire.serve(transport, socket, source)));
                }
            }
            if !has_some {
                std::thread::sleep(TICK / 4);
            }
        }
        for reader in readers {
            let _ = reader.join();
        }
    }

    /// Shakes hands with who connected, and reads.
    fn serve(self: &Arc<Wire>, transport: Transport, socket: TcpStream, source: SocketAddr) {
        // Whoever does not finish the handshake is forgotten, as by a real server.
        let Ok(channel) = Channel::accept(transport, socket) else { return };
        let channel = self.adopt(channel, source);
        self.read_stream(transport, &channel, source);
    }

    fn adopt(&self, channel: Channel, peer: SocketAddr) -> Arc<Mutex<Channel>> {
        let channel = Arc::new(Mutex::new(channel));
        self.streams.lock().unwrap().insert(peer, channel.clone());
        channel
    }

    fn read_stream(&self, transport: Transport, channel: &Mutex<Channel>, peer: SocketAddr) {
        let mut stored = Vec::new();
        while !self.is_closed() {
            let came = channel.lock().unwrap().receive();
            match came {
                Came::Nothing => std::thread::sleep(TICK / 20),
                Came::Message(bytes) => self.handle(&bytes, peer, transport.link(peer)),
                Came::Bytes(bytes) => {
                    stored.extend_from_slice(&bytes);
                    while let Some(length) = frame(&mut stored) {
                        let bytes: Vec<u8> = stored.drain(..length).collect();
                        self.handle(&bytes, peer, transport.link(peer));
                    }
                }
                Came::End => break,
            }
        }
        self.streams.lock().unwrap().remove(&peer);
    }

    fn handle(&self, bytes: &[u8], source: SocketAddr, link: Link) {
        let Some(message) = Message::parse(bytes) else { return };
        let received = Received { message, raw: bytes.to_vec(), source, link, me: self.me.clone() };
        // Recorded before it is answered: whoever has the answer may look at the record. Closing waits
        // for this thread, so whoever has the record does not cut off the answer.
        self.inbox().push(Entry { received: received.clone(), is_taken: false });
        self.arrival.notify_all();
        let script = self.script.lock().unwrap().clone();
        if let Some(script) = script.filter(|_| received.is_request()) {
            for response in script(&received) {
                self.respond(&received, &response);
            }
        }
    }

    fn respond(&self, request: &Received, response: &Message) {
        let bytes = response.to_bytes();
        match request.link {
            Link::Udp => self.send_datagram(response_address(response), &bytes),
            Link::Tcp(peer) | Link::Tls(peer) | Link::Ws(peer) | Link::Wss(peer) => {
                let channel = self.streams.lock().unwrap().get(&peer).cloned();
                if let Some(channel) = channel {
                    channel.lock().unwrap().send(&bytes);
                }
            }
        }
    }

    fn send_datagram(&self, to: SocketAddr, bytes: &[u8]) {
        // An error is an ICMP report about an earlier datagram; the play sees the silence.
        let udp = self.udp.lock().unwrap();
        if let Some(socket) = udp.as_ref().filter(|it| it.send_to(bytes, to).is_err()) {
            let _ = socket.send_to(bytes, to);
        }
    }

    fn send_stream(self: &Arc<Wire>, transport: Transport, to: SocketAddr, bytes: &[u8]) {
        let open = self.streams.lock().unwrap().get(&to).cloned();
        let channel = open.unwrap_or_else(|| {
            let channel = Channel::connect(transport, to);
            let channel = channel.unwrap_or_else(|it| panic!("connect {to}: {it}"));
            let channel = self.adopt(channel, to);
            let (wire, adopted) = (self.clone(), channel.clone());
            spawn(move || wire.read_stream(transport, &adopted, to)); // ends with the connection
            channel
        });
        channel.lock().unwrap().send(bytes);
    }
}

/// Where a response goes over UDP (RFC 3261 §18.2.2, RFC 3581 §4).
fn response_address(response: &Message) -> SocketAddr {
    let vias = response.vias();
    let via = vias.first().copied().unwrap_or_default();
    let sent_by = via.split_whitespace().nth(1).unwrap_or_default();
    let sent_by = sent_by.split(';').next().unwrap_or_default();
    let (host, port) = host_and_port(sent_by, 5060);
    let host = param(via, "received").unwrap_or(host);
    let port = param(via, "rport").and_then(|it| it.parse().ok()).unwrap_or(port);
    let host = host.trim_matches(['[', ']']);
    let ip = host.parse().unwrap_or_else(|_| panic!("no address to answer to in {via}"));
    SocketAddr::new(ip, port)
}

/// Length of the whole message at the front of a stream, after dropping line ends in front of it.
fn frame(stored: &mut Vec<u8>) -> Option<usize> {
    let blank = stored.iter().take_while(|it| matches!(**it, b'\r' | b'\n')).count();
    stored.drain(..blank);
    let head = stored.windows(4).position(|it| it == b"\r\n\r\n")? + 4;
    // Whatever else is wrong with it: the next message begins behind it.
    let body = content_length(&stored[..head]);
    (stored.len() >= head + body).then_some(head + body)
}

/// How often a reader looks whether its peer is closed.
pub(crate) const TICK: Duration = Duration::from_millis(20);

const SDP: &str = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio 40000 RTP/AVP 0\r\n";
