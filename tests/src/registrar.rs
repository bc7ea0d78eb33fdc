//! A node that is a registrar and a proxy, by UDP: phones that nobody here wrote reach each other through
//! it, and so through the balancer twice.
//!
//! Reads RFC 3261 §10 (registrations, without expiry) and §16 (forwarding, by loose routing). Everything it
//! forwards goes back through the balancer's internal leg.

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use crate::peer::{TICK, unique};
use crate::{Balancer, Message, Node, Uri};

/// It answers as long as this lives.
pub struct Registrar {
    /// Announces it.
    _node: Node,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

struct State {
    address: SocketAddr,
    balancer: SocketAddr,
    contacts: Mutex<HashMap<String, String>>,
    requests: Mutex<Vec<Message>>,
    is_over: AtomicBool,
}

impl Registrar {
    /// Starts one and waits until the balancer knows it.
    pub fn start(lb: &Balancer) -> Registrar {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(TICK)).unwrap();
        let address = socket.local_addr().unwrap();
        let mut node = Node::bind("registrar").property("udpPort", &address.port().to_string());
        for name in ["tcpPort", "tlsPort", "wsPort", "wssPort"] {
            node = node.property(name, "");
        }
        let node = lb.announced(node);
        lb.wait_nodes(1);
        let state = Arc::new(State {
            address,
            balancer: lb.internal,
            contacts: Mutex::default(),
            requests: Mutex::default(),
            is_over: AtomicBool::new(false),
        });
        let worker = state.clone();
        let thread = std::thread::spawn(move || worker.run(&socket));
        Registrar { _node: node, state, thread: Some(thread) }
    }

    /// What a user has registered, as it arrived here.
    pub fn contact_of(&self, user: &str) -> Option<String> {
        self.state.contact_of(user)
    }

    /// Requests of a method that came in so far.
    pub fn requests(&self, method: &str) -> Vec<Message> {
        let all = self.state.requests.lock().unwrap();
        all.iter().filter(|it| it.method() == method).cloned().collect()
    }
}

impl Drop for Registrar {
    fn drop(&mut self) {
        self.state.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl State {
    fn run(&self, socket: &UdpSocket) {
        let mut buffer = vec![0; 65_536];
        while !self.is_over.load(Ordering::Relaxed) {
            let Ok((count, source)) = socket.recv_from(&mut buffer) else { continue };
            let Some(message) = Message::parse(&buffer[..count]) else { continue };
            let (to, answer) = if message.is_request() {
                self.requests.lock().unwrap().push(message.clone());
                self.request(message, source)
            } else {
                (self.balancer, self.response(message))
            };
            if let Some(answer) = answer {
                socket.send_to(&answer.to_bytes(), to).unwrap();
            }
        }
    }

    fn request(&self, request: Message, source: SocketAddr) -> (SocketAddr, Option<Message>) {
        if request.is("REGISTER") {
            let user = Uri::of(request.header("To")).user;
            let contact = request.header("Contact").to_owned();
            let uri = contact.split('>').next().unwrap_or_default().trim_start_matches('<');
            let mut uri = uri.to_owned();
            if !uri.contains(";flow=") {
                // Where it really is, as application servers of this kind do (`sip.md` 2.9).
                let [host, port] = ["Addr", "Port"]
                    .map(|it| request.header(&format!("X-Sip-Balancer-InitialRemote{it}")));
                let Uri { user, params, .. } = Uri::of(&uri);
                uri = format!("sip:{user}@{host}:{port}{params}");
            }
            self.contacts.lock().unwrap().insert(user, uri);
            return (source, Some(answer(&request, "200 OK").with("Contact", contact)));
        }
        // The balancer names the node that it chose by a Route: ours, whether it is a dialog's or not.
        let routes: Vec<String> = request.routes().into_iter().map(str::to_owned).collect();
        let is_own = |it: &&String| Uri::of(it).address() == Some(self.address);
        let rest: Vec<_> = routes.iter().skip_while(is_own).cloned().collect();
        let via = format!("SIP/2.0/UDP {};branch=z9hG4bK{}", self.address, unique());
        let mut forward = request.clone().without("Route");
        forward.headers.insert(0, ("Via".to_owned(), via));
        if request.tag("To").is_some() && !rest.is_empty() {
            // Within a dialog: the rest of the route set leads on.
            let forward = rest.into_iter().fold(forward, |it, route| it.with("Route", route));
            return (self.balancer, Some(forward));
        }
        let user = Uri::of(request.uri()).user;
        let Some(contact) = self.contact_of(&user) else {
            let is_ack = request.is("ACK");
            return (source, (!is_ack).then(|| answer(&request, "404 Not Found")));
        };
        let (host, port, balancer) = (self.address.ip(), self.address.port(), self.balancer);
        let route =
            format!("<sip:lbint@{balancer};transport=udp;node_host={host};node_port={port};lr>");
        forward = forward.to_uri(&contact).with("Route", route);
        let own = ("Record-Route".to_owned(), format!("<sip:{};lr>", self.address));
        forward.headers.insert(1, own);
        (self.balancer, Some(forward))
    }

    fn contact_of(&self, user: &str) -> Option<String> {
        self.contacts.lock().unwrap().get(user).cloned()
    }

    fn response(&self, mut response: Message) -> Option<Message> {
        let is_ours = response.vias().first()?.contains(&self.address.to_string());
        let via = response.headers.iter().position(|(name, _)| name == "Via")?;
        response.headers.remove(via);
        (is_ours && response.find("Via").is_some()).then_some(response)
    }
}

fn answer(request: &Message, status: &str) -> Message {
    let mut answer = Message::new(format!("SIP/2.0 {status}"));
    for (name, value) in &request.headers {
        match name.to_ascii_lowercase().as_str() {
            "to" | "t" => answer = answer.with("To", format!("{value};tag=registrar")),
            "via" | "v" | "from" | "f" | "call-id" | "i" | "cseq" => {
                answer = answer.with(name, value.as_str());
            }
            _ => {}
        }
    }
    answer
}
