//! A caller or a node: transactions with their retransmissions and dialogs with their route sets, by RFC
//! 3261 §12, §13, §14, §17 and §9, as far as a balancer can tell the difference.
//!
//! Knows no clock and no network: [`Effects`] are what it wants sent and when it wants to be woken. Its name
//! stands in every tag and branch it makes, so that whoever sees a message knows whose it is.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::Draw;
use crate::{Message, param};

/// What an agent wants.
#[derive(Debug, Default)]
pub struct Effects {
    /// Datagrams, with their destination.
    pub sends: Vec<(SocketAddr, Vec<u8>)>,
    /// Wake-ups from now.
    pub timers: Vec<(Duration, Timer)>,
}

/// Why an agent wants to be woken.
#[derive(Clone, Debug)]
pub enum Timer {
    /// A request may need to be sent again (timers A, E; B, F when it is over).
    Again(String, Duration, Duration),
    /// A final answer to INVITE may need to be sent again (timers G, H; §13.3.1.4).
    AnswerAgain(String, Duration, Duration),
    /// The next answer to an INVITE.
    Answer(String),
    /// The next thing to do in a dialog.
    Talk(String),
    /// The caller has heard it ring for long enough.
    Cancel(String),
}

/// How a transaction of an agent ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Outcome {
    /// The call.
    pub call_id: String,
    /// The request.
    pub method: String,
    /// Final status; `None`: there was none in time.
    pub status: Option<u16>,
}

/// One SIP endpoint.
#[derive(Debug)]
pub struct Agent {
    /// Unique, without a dash; in all its tags and branches up to the first dash.
    pub name: String,
    /// Where its datagrams come from.
    pub address: SocketAddr,
    /// What its Via claims; another address behind a NAT.
    pub claimed: SocketAddr,
    /// The balancer, for it.
    pub proxy: SocketAddr,
    /// How its transactions ended.
    pub outcomes: Vec<Outcome>,
    /// Responses to requests that it never sent.
    pub strangers: usize,
    serial: u32,
    clients: BTreeMap<String, Client>,
    servers: BTreeMap<String, Server>,
    dialogs: BTreeMap<String, Dialog>,
}

#[derive(Debug)]
struct Client {
    request: Message,
    bytes: Vec<u8>,
    is_provisional: bool,
    is_over: bool,
    /// ACK of the final answer, to be sent for each copy of that.
    ack: Option<Vec<u8>>,
}

#[derive(Debug)]
struct Server {
    request: Message,
    from: SocketAddr,
    tag: String,
    last: Option<Vec<u8>>,
    is_final: bool,
    is_acked: bool,
    rings: bool,
}

#[derive(Debug)]
struct Dialog {
    call_id: String,
    local: String,
    remote: String,
    target: String,
    routes: Vec<String>,
    number: u32,
    /// Methods to send, last one first.
    plan: Vec<&'static str>,
}

/// RFC 3261 §17.1.1.1.
const T1: Duration = Duration::from_millis(500);
/// RFC 3261 §17.1.2.2.
const T2: Duration = Duration::from_secs(4);
/// Timers B, F, H.
const GIVE_UP: Duration = Duration::from_secs(32);
/// A caller hangs up at last if the other side did not.
const PATIENCE: Duration = Duration::from_secs(12);

impl Agent {
    /// An agent with its address; `proxy` is where it sends every request.
    pub fn new(name: String, address: SocketAddr, proxy: SocketAddr) -> Agent {
        Agent {
            name,
            address,
            claimed: address,
            proxy,
            outcomes: Vec::new(),
            strangers: 0,
            serial: 0,
            clients: BTreeMap::new(),
            servers: BTreeMap::new(),
            dialogs: BTreeMap::new(),
        }
    }

    /// Dialogs and INVITEs that are not over.
    pub fn is_busy(&self) -> bool {
        !self.dialogs.is_empty()
            || self.servers.values().any(|it| it.request.method() == "INVITE" && !it.is_final)
            || self.clients.values().any(|it| !it.is_over)
    }

    /// Sends a request outside any dialog; the user part of `uri` tells the other side what to do:
    /// `answer`, `hangup`, `busy` or `ring`. Returns the Call-ID.
    pub fn begin(&mut self, method: &str, uri: &str, effects: &mut Effects) -> String {
        let serial = self.serial();
        let call_id = format!("{}-{serial}@sim", self.name);
        let name = self.name.clone();
        let message = self
            .request(method, uri, &[])
            .with("From", format!("<sip:{name}@sim>;tag={name}-{serial}"))
            .with("To", format!("<{uri}>"))
            .with("Call-ID", call_id.clone())
            .with("CSeq", format!("1 {method}"))
            .with("Contact", format!("<sip:{name}@{}>", self.address));
        self.send(message, effects);
        call_id
    }

    /// Takes a datagram.
    pub fn handle(
        &mut self,
        from: SocketAddr,
        bytes: &[u8],
        draw: &mut Draw,
        effects: &mut Effects,
    ) {
        let Some(message) = Message::parse(bytes) else { return };
        if message.is_request() {
            self.handle_request(from, message, draw, effects);
        } else {
            self.handle_response(message, draw, effects);
        }
    }

    /// It is time.
    pub fn handle_timeout(&mut self, timer: Timer, draw: &mut Draw, effects: &mut Effects) {
        match timer {
            Timer::Again(key, interval, waited) => self.send_again(&key, interval, waited, effects),
            Timer::AnswerAgain(key, interval, waited) => {
                let Some(server) = self.servers.get(&key).filter(|it| !it.is_acked) else { return };
                if waited < GIVE_UP {
                    effects.sends.extend(server.last.clone().map(|it| (server.from, it)));
                    let next = (interval * 2).min(T2);
                    effects.timers.push((next, Timer::AnswerAgain(key, next, waited + next)));
                }
            }
            Timer::Answer(key) => self.answer_invite(&key, draw, effects),
            Timer::Talk(key) => self.talk(&key, draw, effects),
            Timer::Cancel(key) => self.cancel(&key, effects),
        }
    }

    fn serial(&mut self) -> u32 {
        self.serial += 1;
        self.serial
    }

    fn request(&mut self, method: &str, uri: &str, routes: &[String]) -> Message {
        let serial = self.serial();
        let Agent { name, claimed, .. } = self;
        let via = format!("SIP/2.0/UDP {claimed};branch=z9hG4bK{name}-{serial};rport");
        let message = Message::new(format!("{method} {uri} SIP/2.0")).with("Via", via);
        let message = message.with("Max-Forwards", "70");
        routes.iter().fold(message, |message, it| message.with("Route", it.clone()))
    }

    fn send(&mut self, request: Message, effects: &mut Effects) {
        let bytes = request.to_bytes();
        let key = key_of(&request);
        effects.sends.push((self.proxy, bytes.clone()));
        effects.timers.push((T1, Timer::Again(key.clone(), T1, T1)));
        let client = Client { request, bytes, is_provisional: false, is_over: false, ack: None };
        self.clients.insert(key, client);
    }

    fn send_again(
        &mut self,
        key: &str,
        interval: Duration,
        waited: Duration,
        effects: &mut Effects,
    ) {
        let Some(client) = self.clients.get_mut(key).filter(|it| !it.is_over) else { return };
        let is_invite = client.request.method() == "INVITE";
        // An INVITE that rings is left alone, for as long as an answered one may take.
        let patience = if is_invite && client.is_provisional { GIVE_UP * 2 } else { GIVE_UP };
        if waited >= patience {
            client.is_over = true;
            let outcome = outcome(&client.request, None);
            self.outcomes.push(outcome);
            return;
        }
        if !(is_invite && client.is_provisional) {
            effects.sends.push((self.proxy, client.bytes.clone()));
        }
        let next = if is_invite { interval * 2 } else { (interval * 2).min(T2) };
        let timer = Timer::Again(key.to_owned(), next, waited + next);
        effects.timers.push((next, timer));
    }

    fn handle_response(&mut self, response: Message, draw: &mut Draw, effects: &mut Effects) {
        let key = key_of(&response);
        let Some(client) = self.clients.get_mut(&key) else {
            self.strangers += 1;
            return;
        };
        let status = response.status();
        let is_invite = client.request.method() == "INVITE";
        let is_first = param(client.request.header("To"), "tag").is_none();
        if status < 200 {
            let rings = client.request.start.contains(":ring@") && !client.is_provisional;
            client.is_provisional = true;
            if rings {
                effects.timers.push((draw.millis(100, 2_000), Timer::Cancel(key)));
            }
            return;
        }
        if !std::mem::replace(&mut client.is_over, true) {
            let outcome = outcome(&client.request, Some(status));
            self.outcomes.push(outcome);
        }
        let client = &self.clients[&key];
        if is_invite && status >= 300 {
            let ack =
                client.ack.clone().unwrap_or_else(|| ack_of_failure(&client.request, &response));
            effects.sends.push((self.proxy, ack.clone()));
            self.clients.entry(key).and_modify(|it| it.ack = Some(ack));
            return;
        }
        if is_invite {
            let request = client.request.clone();
            self.acknowledge(&key, &request, &response, is_first, draw, effects);
        } else if client.request.method() == "BYE" {
            let id = dialog_of(&client.request, false);
            self.dialogs.remove(&id);
        }
    }

    /// ACK of a 2xx: a request of the dialog, sent for every copy of the 2xx.
    fn acknowledge(
        &mut self,
        key: &str,
        request: &Message,
        response: &Message,
        is_first: bool,
        draw: &mut Draw,
        effects: &mut Effects,
    ) {
        let id = dialog_of(response, false);
        let known = self.dialogs.contains_key(&id);
        if let Some(ack) = self.clients.get(key).and_then(|it| it.ack.clone())
            && known
        {
            effects.sends.push((self.proxy, ack));
            return;
        }
        let mut routes: Vec<String> =
            response.record_routes().into_iter().map(str::to_owned).collect();
        routes.reverse();
        if !known {
            if !is_first {
                return; // the dialog is over
            }
            let is_fork = self.dialogs.values().any(|it| it.call_id == request.header("Call-ID"));
            let plan = if is_fork { vec!["BYE"] } else { plan(draw) };
            self.dialogs.insert(
                id.clone(),
                Dialog {
                    call_id: request.header("Call-ID").to_owned(),
                    local: request.header("From").to_owned(),
                    remote: response.header("To").to_owned(),
                    target: uri_in(response.header("Contact")),
                    routes,
                    number: 1,
                    plan,
                },
            );
            let hangs_up = request.start.contains(":hangup@") && !is_fork;
            let delay = if hangs_up { PATIENCE } else { draw.millis(100, 2_000) };
            effects.timers.push((delay, Timer::Talk(id.clone())));
        }
        let number = request.header("CSeq").split(' ').next().unwrap_or("1").to_owned();
        let ack = self.in_dialog("ACK", &id, &number).to_bytes();
        effects.sends.push((self.proxy, ack.clone()));
        self.clients.entry(key.to_owned()).and_modify(|it| it.ack = Some(ack));
    }

    fn in_dialog(&mut self, method: &str, id: &str, number: &str) -> Message {
        let dialog = &self.dialogs[id];
        let (target, routes) = (dialog.target.clone(), dialog.routes.clone());
        let message = self.request(method, &target, &routes);
        let dialog = &self.dialogs[id];
        message
            .with("From", dialog.local.clone())
            .with("To", dialog.remote.clone())
            .with("Call-ID", dialog.call_id.clone())
            .with("CSeq", format!("{number} {method}"))
            .with("Contact", format!("<sip:{}@{}>", self.name, self.address))
    }

    fn talk(&mut self, id: &str, draw: &mut Draw, effects: &mut Effects) {
        let Some(dialog) = self.dialogs.get_mut(id) else { return };
        let Some(method) = dialog.plan.pop() else { return };
        dialog.number += 1;
        let number = dialog.number.to_string();
        let request = self.in_dialog(method, id, &number);
        self.send(request, effects);
        effects.timers.push((draw.millis(200, 3_000), Timer::Talk(id.to_owned())));
    }

    fn cancel(&mut self, key: &str, effects: &mut Effects) {
        let Some(client) = self.clients.get(key).filter(|it| !it.is_over) else { return };
        let invite = &client.request;
        let uri = invite.start.split(' ').nth(1).unwrap_or_default();
        let mut cancel = Message::new(format!("CANCEL {uri} SIP/2.0"));
        for name in ["Via", "Max-Forwards", "From", "To", "Call-ID"] {
            cancel = cancel.with(name, invite.header(name));
        }
        self.send(cancel.with("CSeq", "1 CANCEL"), effects);
    }

    fn handle_request(
        &mut self,
        from: SocketAddr,
        request: Message,
        draw: &mut Draw,
        effects: &mut Effects,
    ) {
        let method = request.method().to_owned();
        if method == "ACK" {
            return self.handle_ack(&request, draw, effects);
        }
        let key = key_of(&request);
        if let Some(server) = self.servers.get(&key) {
            effects.sends.extend(server.last.clone().map(|it| (server.from, it)));
            return;
        }
        let tag = param(request.header("To"), "tag");
        let in_dialog = tag.is_some();
        let serial = self.serial();
        let tag = tag.unwrap_or_else(|| format!("{}-{serial}", self.name));
        let server = Server {
            request: request.clone(),
            from,
            tag,
            last: None,
            is_final: false,
            is_acked: false,
            rings: false,
        };
        self.servers.insert(key.clone(), server);
        match (method.as_str(), in_dialog) {
            ("INVITE", false) => {
                self.respond(&key, "100 Trying", effects);
                effects.timers.push((draw.millis(20, 300), Timer::Answer(key)));
            }
            ("INVITE", true) => self.respond(&key, "200 OK", effects),
            ("CANCEL", _) => {
                let invite = key.replace(" CANCEL", " INVITE");
                let is_known = self.servers.contains_key(&invite);
                let status = if is_known { "200 OK" } else { "481 Call Leg Does Not Exist" };
                self.respond(&key, status, effects);
                if self.servers.get(&invite).is_some_and(|it| !it.is_final) {
                    self.respond(&invite, "487 Request Terminated", effects);
                }
            }
            ("BYE", _) => {
                self.dialogs.remove(&dialog_of(&request, true));
                self.respond(&key, "200 OK", effects);
            }
            _ => self.respond(&key, "200 OK", effects),
        }
    }

    fn handle_ack(&mut self, ack: &Message, draw: &mut Draw, effects: &mut Effects) {
        let key = key_of(ack);
        let number = ack.header("CSeq").split(' ').next();
        let same = |it: &Server| {
            it.request.method() == "INVITE"
                && it.request.header("Call-ID") == ack.header("Call-ID")
                && it.request.header("CSeq").split(' ').next() == number
                && Some(&it.tag) == param(ack.header("To"), "tag").as_ref()
        };
        let Some(server) = (match self.servers.contains_key(&key) {
            true => self.servers.get_mut(&key),
            false => self.servers.values_mut().find(|it| same(it)),
        }) else {
            return;
        };
        let was_acked = std::mem::replace(&mut server.is_acked, true);
        let is_first = param(server.request.header("To"), "tag").is_none();
        let id = dialog_of(ack, true);
        if !was_acked && is_first && self.dialogs.contains_key(&id) {
            effects.timers.push((draw.millis(100, 2_000), Timer::Talk(id)));
        }
    }

    /// 180, then what the user part asks for.
    fn answer_invite(&mut self, key: &str, draw: &mut Draw, effects: &mut Effects) {
        let Some(server) = self.servers.get_mut(key).filter(|it| !it.is_final) else { return };
        if !std::mem::replace(&mut server.rings, true) {
            let rings = server.request.start.contains(":ring@");
            self.respond(key, "180 Ringing", effects);
            let delay = if rings { GIVE_UP } else { draw.millis(100, 1_500) };
            effects.timers.push((delay, Timer::Answer(key.to_owned())));
            return;
        }
        let start = &server.request.start;
        if start.contains(":busy@") {
            return self.respond(key, "486 Busy Here", effects);
        }
        if start.contains(":ring@") {
            return self.respond(key, "480 Temporarily Unavailable", effects);
        }
        let hangs_up = start.contains(":hangup@");
        let mut plan: Vec<&'static str> = if hangs_up { vec!["BYE"] } else { Vec::new() };
        plan.extend((0..draw.below(3)).map(|_| *draw.one(&IN_DIALOG)));
        let request = server.request.clone();
        let local = format!("{};tag={}", request.header("To"), server.tag);
        let id = format!(
            "{} {}",
            request.header("Call-ID"),
            param(request.header("From"), "tag").unwrap_or_default()
        );
        self.dialogs.insert(
            id,
            Dialog {
                call_id: request.header("Call-ID").to_owned(),
                local,
                remote: request.header("From").to_owned(),
                target: uri_in(request.header("Contact")),
                routes: request.record_routes().into_iter().map(str::to_owned).collect(),
                number: 1,
                plan,
            },
        );
        self.respond(key, "200 OK", effects);
    }

    fn respond(&mut self, key: &str, status: &str, effects: &mut Effects) {
        let contact = format!("<sip:{}@{}>", self.name, self.address);
        let Some(server) = self.servers.get_mut(key) else { return };
        let request = &server.request;
        let mut response = Message::new(format!("SIP/2.0 {status}"));
        for name in ["Via", "Record-Route", "From"] {
            for value in request.all(name) {
                response = response.with(name, value);
            }
        }
        let mut to = request.header("To").to_owned();
        if !status.starts_with("100") && param(&to, "tag").is_none() {
            to = format!("{to};tag={}", server.tag);
        }
        let response = response
            .with("To", to)
            .with("Call-ID", request.header("Call-ID"))
            .with("CSeq", request.header("CSeq"))
            .with("Contact", contact);
        let bytes = response.to_bytes();
        effects.sends.push((server.from, bytes.clone()));
        server.last = Some(bytes);
        if !status.starts_with('1') {
            server.is_final = true;
            if request.method() == "INVITE" {
                effects.timers.push((T1, Timer::AnswerAgain(key.to_owned(), T1, T1)));
            }
        }
    }
}

const IN_DIALOG: [&str; 3] = ["INFO", "UPDATE", "INVITE"];

/// What the side that placed the call does in it.
fn plan(draw: &mut Draw) -> Vec<&'static str> {
    let mut plan = vec!["BYE"];
    plan.extend((0..draw.below(3)).map(|_| *draw.one(&IN_DIALOG)));
    plan
}

fn outcome(request: &Message, status: Option<u16>) -> Outcome {
    Outcome {
        call_id: request.header("Call-ID").to_owned(),
        method: request.method().to_owned(),
        status,
    }
}

/// RFC 3261 §17.1.3, §17.2.3: top branch and method; an ACK has its INVITE's.
fn key_of(message: &Message) -> String {
    let branch = message.vias().first().and_then(|it| param(it, "branch")).unwrap_or_default();
    let method = if message.method() == "ACK" { "INVITE" } else { message.method() };
    // Whoever answers sees the balancer's branch; whoever asked sees its own.
    format!("{branch} {method}")
}

/// Call-ID and the other side's tag. `is_inbound`: the message is a request of the other side.
fn dialog_of(message: &Message, is_inbound: bool) -> String {
    let peer = if is_inbound { "From" } else { "To" };
    let tag = param(message.header(peer), "tag").unwrap_or_default();
    format!("{} {tag}", message.header("Call-ID"))
}

fn uri_in(contact: &str) -> String {
    contact.trim_start_matches('<').split('>').next().unwrap_or_default().to_owned()
}

/// RFC 3261 §17.1.1.3.
fn ack_of_failure(invite: &Message, response: &Message) -> Vec<u8> {
    let uri = invite.start.split(' ').nth(1).unwrap_or_default();
    let mut ack = Message::new(format!("ACK {uri} SIP/2.0"));
    ack = ack.with("Via", invite.header("Via")).with("Max-Forwards", "70");
    for route in invite.routes() {
        ack = ack.with("Route", route);
    }
    let number = invite.header("CSeq").split(' ').next().unwrap_or("1");
    ack.with("From", invite.header("From"))
        .with("To", response.header("To"))
        .with("Call-ID", invite.header("Call-ID"))
        .with("CSeq", format!("{number} ACK"))
        .to_bytes()
}
