//! A pretend application server: a [`Peer`] that announces itself by SIP OPTIONS heartbeats.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, spawn};
use std::time::Duration;

use crate::peer::unique;
use crate::{Message, Peer, Received, Transport, wait_for};

/// An application server on loopback. It can be driven by hand like any [`Peer`].
pub struct Node {
    peer: Peer,
    beat: Option<Beat>,
    announcement: Arc<Mutex<Announcement>>,
}

/// What the heartbeats say, and to whom.
struct Announcement {
    properties: BTreeMap<String, String>,
    balancers: Vec<SocketAddr>,
}

struct Beat {
    /// Dropping it ends the thread at once.
    stop: Sender<()>,
    thread: JoinHandle<()>,
    answered: Arc<AtomicUsize>,
    last_status: Arc<AtomicU16>,
}

impl Node {
    /// Binds a node that announces every transport, version 0; it is silent until [`Node::announce`].
    pub fn bind(name: &str) -> Node {
        Node::of(Peer::bind(name))
    }

    /// As [`Node::bind`], on ::1.
    pub fn bind_v6(name: &str) -> Node {
        Node::of(Peer::bind_v6(name))
    }

    /// As [`Node::bind`], on another loopback address such as 127.0.0.11.
    pub fn bind_ip(name: &str, ip: &str) -> Node {
        Node::of(Peer::bind_on(name, ip.parse().unwrap()))
    }

    fn of(peer: Peer) -> Node {
        let (name, port) = (peer.name().to_owned(), peer.address().port().to_string());
        let port_of = |it| peer.address_of(it).port().to_string();
        let properties = BTreeMap::from([
            ("hostname".to_owned(), name),
            ("ip".to_owned(), peer.address().ip().to_string()),
            ("udpPort".to_owned(), port.clone()),
            ("tcpPort".to_owned(), port),
            ("tlsPort".to_owned(), port_of(Transport::Tls)),
            ("wsPort".to_owned(), port_of(Transport::Ws)),
            ("wssPort".to_owned(), port_of(Transport::Wss)),
            ("version".to_owned(), "0".to_owned()),
            ("sessionId".to_owned(), unique()),
        ]);
        let announcement = Arc::new(Mutex::new(Announcement { properties, balancers: vec![] }));
        Node { peer, beat: None, announcement }
    }

    /// Changes one announced property; an empty value removes it.
    pub fn property(self, name: &str, value: &str) -> Node {
        self.set_property(name, value);
        self
    }

    /// As [`Node::property`], on a node that may be announcing already.
    pub fn set_property(&self, name: &str, value: &str) {
        let mut announcement = self.announcement.lock().unwrap();
        if value.is_empty() {
            announcement.properties.remove(name);
        } else {
            announcement.properties.insert(name.to_owned(), value.to_owned());
        }
    }

    /// Starts heartbeats to these internal addresses and waits until each has answered.
    pub fn announce(&mut self, balancers: &[SocketAddr]) {
        self.announcement.lock().unwrap().balancers = balancers.to_vec();
        let beat = Beat::start(self.announcement.clone());
        let wanted = balancers.len();
        wait_for("an answer to a heartbeat", || {
            (beat.answered.load(Ordering::Relaxed) >= wanted).then_some(())
        });
        self.beat = Some(beat);
    }

    /// Heartbeats answered so far, by any status.
    pub fn beats_answered(&self) -> usize {
        self.beat.as_ref().map_or(0, |it| it.answered.load(Ordering::Relaxed))
    }

    /// Status of the last answer to a heartbeat.
    pub fn last_status(&self) -> u16 {
        self.beat.as_ref().map_or(0, |it| it.last_status.load(Ordering::Relaxed))
    }

    /// Stops announcing; its sockets stay open, so nothing is refused.
    pub fn fall_silent(&mut self) {
        if let Some(Beat { stop, thread, .. }) = self.beat.take() {
            drop(stop);
            let _ = thread.join();
        }
    }

    /// Stops announcing and closes its sockets: the process is gone.
    pub fn die(&mut self) {
        self.fall_silent();
        self.peer.close();
    }

    /// Announces that it is leaving; it keeps serving.
    pub fn leave(&self) {
        self.set_property("GRACEFUL_SHUTDOWN", "true");
    }

    /// Comes back on the same address as a new incarnation with an empty record, driven by hand.
    pub fn restart(&mut self) {
        let balancers = self.announcement.lock().unwrap().balancers.clone();
        let name = self.peer.name().to_owned();
        let transports = [Transport::Tcp, Transport::Tls, Transport::Ws, Transport::Wss];
        let addresses = transports.map(|it| self.peer.address_of(it));
        self.die();
        self.peer = wait_for("its old addresses", || Peer::bind_all(&name, addresses));
        self.set_property("sessionId", &unique());
        self.set_property("GRACEFUL_SHUTDOWN", "");
        self.announce(&balancers);
    }

    /// `host:port` as configuration keys write it.
    pub fn host_port(&self) -> String {
        self.address().to_string()
    }
}

impl Deref for Node {
    type Target = Peer;

    fn deref(&self) -> &Peer {
        &self.peer
    }
}

impl DerefMut for Node {
    fn deref_mut(&mut self) -> &mut Peer {
        &mut self.peer
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.fall_silent();
    }
}

impl Beat {
    fn start(announcement: Arc<Mutex<Announcement>>) -> Beat {
        let (stop, stopped) = channel();
        let (answered, last_status) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicU16::new(0)));
        let (count, status) = (answered.clone(), last_status.clone());
        let thread = spawn(move || {
            loop {
                let (properties, balancers) = {
                    let it = announcement.lock().unwrap();
                    (it.properties.clone(), it.balancers.clone())
                };
                for balancer in balancers {
                    if let Some(code) = beat(balancer, &properties) {
                        status.store(code, Ordering::Relaxed);
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                }
                if stopped.recv_timeout(BEAT_INTERVAL) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        });
        Beat { stop, thread, answered, last_status }
    }
}

/// Sends one heartbeat (`sip.md` 4.1, 4.2); the status of its answer, `None` if there is none.
fn beat(balancer: SocketAddr, properties: &BTreeMap<String, String>) -> Option<u16> {
    let any = if balancer.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(balancer).ok()?; // it has an address then
    socket.set_read_timeout(Some(BEAT_INTERVAL * 2)).ok()?;
    let body: String = properties.iter().map(|(key, value)| format!("{key}={value}\n")).collect();
    let (id, local) = (unique(), socket.local_addr().ok()?);
    let message = Message::new(format!("OPTIONS sip:heartbeat@{balancer} SIP/2.0"))
        .with("Via", format!("SIP/2.0/UDP {local};branch=z9hG4bK{id}"))
        .with("Max-Forwards", "70")
        .with("From", format!("<sip:heartbeat@{local}>;tag={id}"))
        .with("To", format!("<sip:heartbeat@{balancer}>"))
        .with("Call-ID", &id)
        .with("CSeq", "1 OPTIONS")
        .with("Mobicents-Heartbeat", "1")
        .with_body("text/plain;charset=UTF-8", body);
    socket.send(&message.to_bytes()).ok()?;
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer).ok()?;
    Message::parse(&buffer[..length]).map(|it| it.status())
}

/// Waits until one of the nodes has a `what` and takes it; the position of that node comes along.
///
/// # Panics
///
/// After [`crate::PATIENCE`].
pub fn first_to_get(nodes: &[Node], what: &str) -> (usize, Received) {
    wait_for(&format!("{what} at one of {nodes:?}"), || {
        nodes.iter().enumerate().find_map(|(at, node)| Some((at, node.poll(what)?)))
    })
}

/// Positions of the nodes that have seen a `what` of this call, taken or not.
pub fn who_got(nodes: &[Node], call_id: &str, what: &str) -> Vec<usize> {
    let saw = |node: &Node| node.record().iter().any(|it| it.is(what) && it.call_id() == call_id);
    (0..nodes.len()).filter(|at| saw(&nodes[*at])).collect()
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.peer.fmt(f)
    }
}

/// Ten beats in the node timeout that plays use: a slow machine may lose some.
const BEAT_INTERVAL: Duration = Duration::from_millis(150);
