//! A node that is a registrar and a proxy, by one transport: phones that nobody here wrote reach each other
//! through it, and so through the balancer twice.
//!
//! Reads RFC 3261 §10 (registrations, without expiry) and §16 (forwarding, by loose routing). Everything it
//! forwards goes back through the balancer's internal leg.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::peer::unique;
use crate::{Balancer, Message, Node, Received, Transport, Uri, param};

/// It answers as long as this lives.
pub struct Registrar {
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

struct State {
    node: Node,
    address: SocketAddr,
    balancer: SocketAddr,
    /// How it names itself on requests that it forwards to phones.
    route: String,
    contacts: Mutex<HashMap<String, String>>,
    /// What it forwarded, by the branch that it gave.
    forwarded: Mutex<HashMap<String, Received>>,
    is_over: AtomicBool,
}

impl Registrar {
    /// Starts one that speaks this transport alone, and waits until the balancer knows it.
    pub fn start(lb: &Balancer, transport: Transport) -> Registrar {
        let mut node = Node::bind("registrar");
        for other in ["udp", "tcp", "tls", "ws", "wss"] {
            if other != transport.lower() {
                node.set_property(&format!("{other}Port"), "");
            }
        }
        node.transport = transport;
        let node = lb.announced(node);
        lb.wait_nodes(1);
        let state = Arc::new(State {
            address: node.address_of(transport),
            balancer: lb.internal_of(transport),
            route: lb.node_route(&node),
            node,
            contacts: Mutex::default(),
            forwarded: Mutex::default(),
            is_over: AtomicBool::new(false),
        });
        let worker = state.clone();
        let thread = std::thread::spawn(move || worker.run());
        Registrar { state, thread: Some(thread) }
    }

    /// What a user has registered, as it arrived here.
    pub fn contact_of(&self, user: &str) -> Option<String> {
        self.state.contact_of(user)
    }

    /// Requests of a method that came in so far.
    pub fn requests(&self, method: &str) -> Vec<Message> {
        let all = self.state.node.record().into_iter().map(|it| it.message);
        all.filter(|it| it.is_request() && it.method() == method).collect()
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
    fn run(&self) {
        let mut seen = 0;
        while !self.is_over.load(Ordering::Relaxed) {
            let record = self.node.record();
            for received in &record[seen..] {
                if received.is_request() {
                    self.request(received);
                } else {
                    self.response(received);
                }
            }
            seen = record.len();
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn request(&self, request: &Received) {
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
            let ok = answer(request, "200 OK").with("Contact", contact);
            return self.node.respond(request, &ok);
        }
        // The balancer names the node that it chose by a Route: ours, whether it is a dialog's or not.
        let routes: Vec<String> = request.routes().into_iter().map(str::to_owned).collect();
        let is_own = |it: &&String| Uri::of(it).address() == Some(self.address);
        let rest: Vec<_> = routes.iter().skip_while(is_own).cloned().collect();
        let (name, branch) = (self.node.transport.lower(), format!("z9hG4bK{}", unique()));
        let via = format!("SIP/2.0/{} {};branch={branch}", name.to_uppercase(), self.address);
        let mut forward = request.message.clone().without("Route");
        forward.headers.insert(0, ("Via".to_owned(), via));
        if request.tag("To").is_some() && !rest.is_empty() {
            // Within a dialog: the rest of the route set leads on.
            forward = rest.into_iter().fold(forward, |it, route| it.with("Route", route));
        } else {
            let user = Uri::of(request.uri()).user;
            let Some(contact) = self.contact_of(&user) else {
                if !request.is("ACK") {
                    self.node.respond(request, &answer(request, "404 Not Found"));
                }
                return;
            };
            forward = forward.to_uri(&contact).with("Route", self.route.as_str());
            let own = format!("<sip:{};transport={name};lr>", self.address);
            forward.headers.insert(1, ("Record-Route".to_owned(), own));
        }
        self.forwarded.lock().unwrap().insert(branch, request.clone());
        self.node.send_to(self.balancer, &forward);
    }

    fn contact_of(&self, user: &str) -> Option<String> {
        self.contacts.lock().unwrap().get(user).cloned()
    }

    fn response(&self, response: &Received) {
        let branch = response.vias().first().and_then(|it| param(it, "branch"));
        let forwarded = self.forwarded.lock().unwrap();
        let Some(request) = branch.and_then(|it| forwarded.get(&it)) else { return };
        let mut response = response.message.clone();
        let via = response.headers.iter().position(|(name, _)| name == "Via").unwrap();
        response.headers.remove(via);
        self.node.respond(request, &response);
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
