//! A pretend application server: answers calls, announces itself by heartbeats, can die and come back.
//!
//! Reads RFC 3261 §8.2.6 (responses), §12.1.1 (Record-Route copied), §13.3.1.4 (200 until ACK),
//! §18.2.1 and §18.2.2 (received, where responses go), RFC 3581 (rport), and `sip.md` 4 (heartbeats). Its
//! To tag names the node itself, so that whoever gets a later request sees whose dialog it is.

use std::collections::HashMap;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use protocols::sip::Transport;
use protocols::time::Time;

use crate::caller::T1;
use crate::message::{self, Malformed, Message, Name, Start};
use crate::report::Seen;
use crate::timers::Timers;
use crate::udp::Outbox;

/// One pretend application server.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Where it listens; one port for UDP and TCP.
    pub address: SocketAddr,
    /// It listens on TCP too.
    pub tcp: bool,
    /// Name in its heartbeats.
    pub hostname: String,
    /// Internal addresses of balancers; none means no heartbeats.
    pub heartbeat_to: Vec<SocketAddr>,
    /// From one heartbeat to the next.
    pub heartbeat_interval: Duration,
    /// Further lines of the heartbeat's body, such as `version=2`.
    pub properties: Vec<String>,
    /// How INVITE is answered.
    pub answer: Answer,
    /// Where responses go.
    pub reply_to: ReplyTo,
    /// Send 200 again until ACK comes.
    pub retransmit: bool,
}

impl NodeConfig {
    /// Answers every call, one heartbeat a second to `heartbeat_to`.
    pub fn new(address: SocketAddr, heartbeat_to: Option<SocketAddr>) -> Self {
        Self {
            address,
            tcp: true,
            hostname: format!("trunknode-{}", address.port()),
            heartbeat_to: heartbeat_to.into_iter().collect(),
            heartbeat_interval: Duration::from_secs(1),
            properties: Vec::new(),
            answer: Answer::Accept,
            reply_to: ReplyTo::Via,
            retransmit: true,
        }
    }
}

/// How a node answers INVITE.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Answer {
    /// 100, 180, 200.
    Accept,
    /// 100, then this status: 503 is what a server says whose media failed.
    Refuse(u16),
    /// Not at all; heartbeats go on. What `sip.md` 5.7 calls silence.
    Silent,
}

/// Where a node sends responses.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ReplyTo {
    /// To `received` and `rport` of the topmost Via, as RFC 3261 asks.
    Via,
    /// To where the request came from: for a forwarder that does not read SIP.
    Source,
}

/// A node without sockets. The agent moves its bytes.
#[derive(Debug)]
pub struct Node {
    /// How it behaves; may be changed between two messages.
    pub config: NodeConfig,
    /// What it saw.
    pub seen: Seen,
    /// UDP messages to be sent.
    pub outbox: Outbox,
    incarnation: u32,
    identity: String,
    tag: String,
    contact: String,
    sdp: String,
    beat_count: u64,
    next_beat: Option<Time>,
    unacknowledged: HashMap<Vec<u8>, (SocketAddr, Vec<u8>)>,
    timers: Timers<(Vec<u8>, usize)>,
    reply: Reply,
}

/// Dialog tags of the nodes of one agent that are up.
pub type Roster = Vec<String>;

/// The parts of a response that are taken from its request. Memory is used again.
#[derive(Debug, Default)]
struct Reply {
    vias: Vec<u8>,
    /// From, Call-ID and CSeq lines.
    fixed: Vec<u8>,
    /// To without its line end.
    to: Vec<u8>,
    record_routes: Vec<u8>,
    call_id: Vec<u8>,
    /// Empty if the request has none.
    to_tag: Vec<u8>,
    hop: Option<SocketAddr>,
}

impl Node {
    /// A node that has just started. `incarnation` tells its lives apart.
    pub fn new(config: NodeConfig, incarnation: u32) -> Self {
        let address = config.address;
        Self {
            seen: Seen::default(),
            outbox: Outbox::default(),
            incarnation,
            identity: identity(address),
            tag: format!("{}-{incarnation:08x}", identity(address)),
            contact: format!("Contact: <sip:service@{address}>\r\n"),
            sdp: sdp(address.ip()),
            beat_count: 0,
            next_beat: None,
            unacknowledged: HashMap::new(),
            timers: Timers::new([T1, 2 * T1, 4 * T1, 8 * T1]),
            reply: Reply::default(),
            config,
        }
    }

    /// Begins another life: dialogs and timers are forgotten, a heartbeat is due at once.
    pub fn restart(&mut self) {
        let seen = self.seen;
        *self = Self::new(self.config.clone(), self.incarnation.wrapping_add(1));
        self.seen = seen;
    }

    /// The To tag of dialogs of this life.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// Sends heartbeats and retransmissions that are due. Returns when to come back at the latest.
    pub fn poll(&mut self, now: Time) -> Option<Time> {
        while let Some((call_id, count)) = self.timers.fire(now) {
            if let Some((to, bytes)) = self.unacknowledged.get(&call_id) {
                self.outbox.message(*to, |out| out.extend_from_slice(bytes));
                self.seen.retransmissions += 1;
                if count + 1 >= RETRANSMISSIONS_MAX {
                    self.unacknowledged.remove(&call_id);
                } else {
                    let delay = (count + 1).min(DOUBLINGS_TO_T2);
                    self.timers.arm(now, delay, (call_id, count + 1));
                }
            }
        }
        if self.config.heartbeat_to.is_empty() {
            return self.timers.next_due();
        }
        if self.next_beat.is_none_or(|due| due <= now) {
            self.beat();
            self.next_beat = Some(now + self.config.heartbeat_interval);
        }
        [self.next_beat, self.timers.next_due()].into_iter().flatten().min()
    }

    fn beat(&mut self) {
        let NodeConfig { address, hostname, properties, tcp, .. } = &self.config;
        let (ip, port) = (address.ip(), address.port());
        let mut body = format!("udpPort={port}\r\nhostname={hostname}\r\nip={ip}\r\n");
        if *tcp {
            body.push_str(&format!("tcpPort={port}\r\n"));
        }
        body.push_str(&format!("sessionId={}\r\n", self.tag));
        for property in properties {
            body.push_str(&format!("{property}\r\n"));
        }
        for balancer in &self.config.heartbeat_to {
            self.beat_count += 1;
            self.seen.heartbeats += 1;
            let (tag, count) = (&self.tag, self.beat_count);
            let text = format!(
                "OPTIONS sip:heartbeat@{balancer} SIP/2.0\r\n\
                 Via: SIP/2.0/UDP {address};branch=z9hG4bK{tag}{count};rport\r\n\
                 Max-Forwards: 70\r\nFrom: <sip:{hostname}@{address}>;tag={tag}\r\n\
                 To: <sip:heartbeat@{balancer}>\r\nCall-ID: {tag}-{count}@{ip}\r\n\
                 CSeq: {count} OPTIONS\r\n{}Mobicents-Heartbeat: 1\r\n\
                 Content-Type: text/plain;charset=UTF-8\r\nContent-Length: {}\r\n\r\n{body}",
                self.contact,
                body.len()
            );
            self.outbox.message(*balancer, |out| out.extend_from_slice(text.as_bytes()));
        }
    }

    /// Takes one datagram; answers wait in [`Self::outbox`].
    pub fn handle_datagram(
        &mut self,
        now: Time,
        bytes: &[u8],
        source: SocketAddr,
        roster: &Roster,
    ) {
        let mut outbox = std::mem::take(&mut self.outbox);
        self.handle(now, bytes, source, Transport::Udp, roster, &mut outbox);
        self.outbox = outbox;
    }

    /// Takes one message from `source`; answers are written to `outbox`.
    pub fn handle(
        &mut self,
        now: Time,
        bytes: &[u8],
        source: SocketAddr,
        transport: Transport,
        roster: &Roster,
        outbox: &mut Outbox,
    ) {
        let mut reply = std::mem::take(&mut self.reply);
        let read = Message::parse(bytes).and_then(|message| match message.start {
            Start::Response { status } => {
                self.seen.heartbeats_answered += u64::from(status == 200);
                Ok(())
            }
            Start::Request { method, .. } => {
                reply.read(&message, source, self.config.reply_to)?;
                self.handle_request(now, method, &mut reply, transport, roster, outbox);
                Ok(())
            }
        });
        self.seen.malformed += u64::from(read.is_err());
        self.reply = reply;
    }

    fn handle_request(
        &mut self,
        now: Time,
        method: &[u8],
        reply: &mut Reply,
        transport: Transport,
        roster: &Roster,
        outbox: &mut Outbox,
    ) {
        let initial = method == b"INVITE" && reply.to_tag.is_empty();
        self.seen.invites += u64::from(initial);
        self.seen.requests += u64::from(!initial);
        if !reply.to_tag.is_empty() && !reply.to_tag.starts_with(self.identity.as_bytes()) {
            let owner_up = roster.iter().any(|up| up.as_bytes() == reply.to_tag);
            *(if owner_up { &mut self.seen.misrouted } else { &mut self.seen.moved }) += 1;
        }
        if method == b"ACK" {
            self.unacknowledged.remove(&reply.call_id);
            return;
        }
        let Some(hop) = reply.hop else { return };
        let (tag, contact, sdp) = (&self.tag, &self.contact, &self.sdp);
        let mut send = |status: &str, body: &str| {
            outbox.message(hop, |out| reply.write(out, status, tag, contact, body));
        };
        match (method, self.config.answer) {
            (_, Answer::Silent) => {}
            (b"INVITE", Answer::Refuse(status)) => {
                send("100 Trying", "");
                send(&format!("{status} Refused"), "");
            }
            (b"INVITE", Answer::Accept) => {
                send("100 Trying", "");
                send("180 Ringing", "");
                send("200 OK", sdp);
                let reliable = !self.config.retransmit || transport != Transport::Udp;
                if !reliable && !self.unacknowledged.contains_key(&reply.call_id) {
                    let mut answer = Vec::new();
                    reply.write(&mut answer, "200 OK", tag, contact, sdp);
                    self.unacknowledged.insert(reply.call_id.clone(), (hop, answer));
                    self.timers.arm(now, 0, (reply.call_id.clone(), 0));
                }
            }
            _ => send("200 OK", ""),
        }
    }
}

impl Reply {
    fn read(
        &mut self,
        message: &Message<'_>,
        source: SocketAddr,
        reply_to: ReplyTo,
    ) -> Result<(), Malformed> {
        for part in [&mut self.vias, &mut self.fixed, &mut self.to, &mut self.record_routes] {
            part.clear();
        }
        self.call_id.clear();
        self.to_tag.clear();
        self.hop = None;
        for header in message.headers() {
            let header = header?;
            match header.name {
                Name::Via if self.hop.is_none() => {
                    let top = top_via(header.value, source, &mut self.vias);
                    self.hop = match reply_to {
                        ReplyTo::Via => Some(top.ok_or(Malformed::HeaderLine)?),
                        ReplyTo::Source => Some(source),
                    };
                }
                Name::Via => self.vias.extend_from_slice(header.line),
                Name::From | Name::CSeq => self.fixed.extend_from_slice(header.line),
                Name::CallId => {
                    self.fixed.extend_from_slice(header.line);
                    self.call_id.extend_from_slice(header.value);
                }
                Name::To => {
                    self.to.extend_from_slice(header.line.trim_ascii_end());
                    let tag = message::param(header.value, b"tag").unwrap_or_default();
                    self.to_tag.extend_from_slice(tag);
                }
                Name::RecordRoute => self.record_routes.extend_from_slice(header.line),
                Name::ContentLength => {
                    let length = message::number(header.value).ok_or(Malformed::ContentLength)?;
                    if u64::try_from(message.body.len()) != Ok(length) {
                        return Err(Malformed::ContentLength);
                    }
                }
                _ => {}
            }
        }
        let complete = self.hop.is_some() && !self.call_id.is_empty() && !self.to.is_empty();
        if complete { Ok(()) } else { Err(Malformed::Missing) }
    }

    fn write(&self, out: &mut Vec<u8>, status: &str, tag: &str, contact: &str, body: &str) {
        out.extend_from_slice(b"SIP/2.0 ");
        out.extend_from_slice(status.as_bytes());
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(&self.vias);
        out.extend_from_slice(&self.fixed);
        out.extend_from_slice(&self.to);
        let trying = status.starts_with("100");
        if self.to_tag.is_empty() && !trying {
            out.extend_from_slice(b";tag=");
            out.extend_from_slice(tag.as_bytes());
        }
        out.extend_from_slice(b"\r\n");
        if !trying {
            out.extend_from_slice(&self.record_routes);
            out.extend_from_slice(contact.as_bytes());
        }
        if body.is_empty() {
            out.extend_from_slice(b"Content-Length: 0\r\n\r\n");
        } else {
            out.extend_from_slice(b"Content-Type: application/sdp\r\nContent-Length: ");
            // Writing to memory cannot fail.
            let _ = write!(out, "{}\r\n\r\n{body}", body.len());
        }
    }
}

/// Copies the topmost Via with what RFC 3261 §18.2.1 and RFC 3581 §4 add, and returns where responses
/// to it go.
fn top_via(value: &[u8], source: SocketAddr, out: &mut Vec<u8>) -> Option<SocketAddr> {
    let mut values = message::list(value);
    let first = values.next()?;
    let sent_by_from = memchr::memchr(b' ', first)? + 1;
    let sent_by = first.get(sent_by_from..)?.split(|b| *b == b';').next()?.trim_ascii();
    let sent_by = message::host_port(sent_by, 5060);
    let asked = message::param(first, b"rport").is_some_and(<[u8]>::is_empty);
    let port = if asked { source.port() } else { sent_by.map_or(source.port(), |by| by.port()) };
    let port = message::param(first, b"rport")
        .and_then(message::number)
        .map_or(port, |written| u16::try_from(written).unwrap_or(port));
    out.extend_from_slice(b"Via: ");
    for (number, part) in first.split(|b| *b == b';').enumerate() {
        if number > 0 {
            out.push(b';');
        }
        out.extend_from_slice(part);
        if asked && part.trim_ascii().eq_ignore_ascii_case(b"rport") {
            let _ = write!(out, "={}", source.port());
        }
    }
    if asked || sent_by.is_none_or(|by| by.ip() != source.ip()) {
        let _ = write!(out, ";received={}", source.ip());
    }
    for other in values {
        out.extend_from_slice(b", ");
        out.extend_from_slice(other);
    }
    out.extend_from_slice(b"\r\n");
    Some(SocketAddr::new(source.ip(), port))
}

/// The address of a node as the beginning of its tags: hexadecimal address, then four digits of port.
fn identity(address: SocketAddr) -> String {
    let ip: String = match address.ip() {
        IpAddr::V4(ip) => format!("{:08x}", u32::from(ip)),
        IpAddr::V6(ip) => format!("{:032x}", u128::from(ip)),
    };
    format!("{ip}{:04x}", address.port())
}

/// The node that a To tag names; `None` for tags that are not of a [`Node`].
pub fn address_of_tag(tag: &[u8]) -> Option<SocketAddr> {
    let identity = tag.split(|b| *b == b'-').next()?;
    let (ip, port) = identity.split_at_checked(identity.len().checked_sub(4)?)?;
    let hex = |digits| u128::from_str_radix(str::from_utf8(digits).ok()?, 16).ok();
    let number = hex(ip)?;
    let ip = match ip.len() {
        8 => IpAddr::V4(Ipv4Addr::from(u32::try_from(number).ok()?)),
        32 => IpAddr::V6(number.into()),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::try_from(hex(port)?).ok()?))
}

/// A session description for a call whose media end at `ip`.
pub fn sdp(ip: IpAddr) -> String {
    let family = if ip.is_ipv4() { "IP4" } else { "IP6" };
    format!(
        "v=0\r\no=- 1 1 IN {family} {ip}\r\ns=-\r\nc=IN {family} {ip}\r\nt=0 0\r\n\
         m=audio 40000 RTP/AVP 8 0 101\r\na=rtpmap:8 PCMA/8000\r\na=rtpmap:0 PCMU/8000\r\n\
         a=rtpmap:101 telephone-event/8000\r\na=fmtp:101 0-15\r\na=ptime:20\r\na=sendrecv\r\n"
    )
}

/// T2 = 8 * T1 (RFC 3261 §13.3.1.4).
const DOUBLINGS_TO_T2: usize = 3;
/// T1 + 2 T1 + 4 T1 + 7 * T2 is just under 64 * T1, when RFC 3261 §13.3.1.4 gives up.
const RETRANSMISSIONS_MAX: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: &str = "127.0.0.1:5080";
    const SOURCE: &str = "127.0.0.1:5065";

    fn node(change: impl FnOnce(&mut NodeConfig)) -> Node {
        let mut config = NodeConfig::new(ADDRESS.parse().unwrap(), None);
        change(&mut config);
        Node::new(config, 1)
    }

    fn request(method: &str, to_tag: &str) -> String {
        format!(
            "{method} sip:a@b SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1:5065;branch=z9hG4bKi\r\n\
             v: SIP/2.0/UDP 10.0.0.1;branch=z9hG4bKc\r\nRecord-Route: <sip:r1;lr>\r\n\
             X-Other: 1\r\nrecord-route: <sip:r2;lr>\r\nFrom: <sip:f>;tag=f\r\nTo: <sip:t>{to_tag}\r\n\
             Call-ID: c\r\nCSeq: 1 {method}\r\nContent-Length: 0\r\n\r\n"
        )
    }

    fn handle(node: &mut Node, text: &str, roster: &Roster) -> Vec<String> {
        node.handle_datagram(Time::ZERO, text.as_bytes(), SOURCE.parse().unwrap(), roster);
        sent(node).into_iter().map(|(text, _)| text).collect()
    }

    fn sent(node: &mut Node) -> Vec<(String, SocketAddr)> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let sent = node.outbox.messages().map(|(bytes, to)| (text(bytes), to)).collect();
        node.outbox.clear();
        sent
    }

    #[test]
    fn a_call_is_answered_by_three_responses_that_copy_what_they_must() {
        let mut node = node(|_| {});
        let answers = handle(&mut node, &request("INVITE", ""), &Roster::new());
        let vias = "Via: SIP/2.0/UDP 127.0.0.1:5065;branch=z9hG4bKi\r\n\
            v: SIP/2.0/UDP 10.0.0.1;branch=z9hG4bKc\r\n";
        let fixed = "From: <sip:f>;tag=f\r\nCall-ID: c\r\nCSeq: 1 INVITE\r\nTo: <sip:t>";
        let rest = format!(
            ";tag={}\r\nRecord-Route: <sip:r1;lr>\r\nrecord-route: <sip:r2;lr>\r\n\
             Contact: <sip:service@127.0.0.1:5080>\r\n",
            node.tag()
        );
        let sdp = sdp(node.config.address.ip());
        assert_eq!(
            answers,
            [
                format!("SIP/2.0 100 Trying\r\n{vias}{fixed}\r\nContent-Length: 0\r\n\r\n"),
                format!("SIP/2.0 180 Ringing\r\n{vias}{fixed}{rest}Content-Length: 0\r\n\r\n"),
                format!(
                    "SIP/2.0 200 OK\r\n{vias}{fixed}{rest}Content-Type: application/sdp\r\n\
                     Content-Length: {}\r\n\r\n{sdp}",
                    sdp.len()
                ),
            ]
        );
    }

    #[test]
    fn responses_go_where_the_topmost_via_says() {
        let source: SocketAddr = "127.0.0.1:5065".parse().unwrap();
        for (via, written, to) in [
            ("UDP 127.0.0.1:5070;branch=b", "UDP 127.0.0.1:5070;branch=b", "127.0.0.1:5070"),
            ("UDP 127.0.0.1;branch=b", "UDP 127.0.0.1;branch=b", "127.0.0.1:5060"),
            (
                "UDP 10.0.0.1:5070;rport;branch=b",
                "UDP 10.0.0.1:5070;rport=5065;branch=b;received=127.0.0.1",
                "127.0.0.1:5065",
            ),
            (
                "UDP host.example:5070;branch=b",
                "UDP host.example:5070;branch=b;received=127.0.0.1",
                "127.0.0.1:5065",
            ),
            (
                "UDP 127.0.0.1:5070;rport;branch=b, SIP/2.0/UDP x",
                "UDP 127.0.0.1:5070;rport=5065;branch=b;received=127.0.0.1, SIP/2.0/UDP x",
                "127.0.0.1:5065",
            ),
        ] {
            let mut out = Vec::new();
            let hop = top_via(format!("SIP/2.0/{via}").as_bytes(), source, &mut out);
            assert_eq!(hop, Some(to.parse().unwrap()), "{via}");
            assert_eq!(String::from_utf8(out).unwrap(), format!("Via: SIP/2.0/{written}\r\n"));
        }
    }

    #[test]
    fn a_request_of_another_nodes_dialog_is_seen() {
        let mut node = node(|_| {});
        let foreign = "7f00000113d9-00000005";
        let own = format!(";tag={}", node.tag());
        let earlier_life = format!(";tag={}-00000000", node.identity);
        let roster = vec![node.tag().to_owned(), foreign.to_owned()];
        handle(&mut node, &request("BYE", &own), &roster);
        handle(&mut node, &request("BYE", &earlier_life), &roster);
        assert_eq!((node.seen.misrouted, node.seen.moved), (0, 0));
        handle(&mut node, &request("ACK", &format!(";tag={foreign}")), &roster);
        assert_eq!((node.seen.misrouted, node.seen.moved), (1, 0));
        handle(&mut node, &request("BYE", ";tag=7f00000113d9-00000004"), &roster);
        assert_eq!((node.seen.misrouted, node.seen.moved), (1, 1));
    }

    #[test]
    fn tags_name_their_node() {
        for address in ["127.0.0.1:5080", "[2001:db8::7]:65535", "0.0.0.1:1"] {
            let address: SocketAddr = address.parse().unwrap();
            let node = Node::new(NodeConfig::new(address, None), 9);
            assert_eq!(address_of_tag(node.tag().as_bytes()), Some(address));
        }
        for tag in ["", "a", "-", "7f0000011f4", "7f000001zzzz-1"] {
            assert_eq!(address_of_tag(tag.as_bytes()), None, "{tag}");
        }
    }

    #[test]
    fn an_answer_is_sent_again_until_acknowledged() {
        let mut node = node(|_| {});
        handle(&mut node, &request("INVITE", ""), &Roster::new());
        assert_eq!(node.poll(Time::ZERO), Some(Time::from_millis(500)));
        node.poll(Time::from_millis(500));
        let again = sent(&mut node);
        assert_eq!(again.len(), 1);
        assert!(again[0].0.starts_with("SIP/2.0 200 OK"));
        let tag = format!(";tag={}", node.tag());
        handle(&mut node, &request("ACK", &tag), &Roster::new());
        node.poll(Time::from_millis(60_000));
        assert!(sent(&mut node).is_empty());
    }

    #[test]
    fn an_answer_that_nobody_acknowledges_is_given_up() {
        let mut node = node(|_| {});
        handle(&mut node, &request("INVITE", ""), &Roster::new());
        let mut times = Vec::new();
        for millis in (0..100_000).step_by(100) {
            node.poll(Time::from_millis(millis));
            times.extend(sent(&mut node).iter().map(|_| millis));
        }
        assert_eq!(times.first(), Some(&500));
        assert!(times.last().is_some_and(|last| (27_000..=32_000).contains(last)), "{times:?}");
        assert!(node.unacknowledged.is_empty());
    }

    #[test]
    fn a_failing_node_refuses_and_a_silent_one_says_nothing() {
        let mut failing = node(|config| config.answer = Answer::Refuse(503));
        let answers = handle(&mut failing, &request("INVITE", ""), &Roster::new());
        assert_eq!(answers.len(), 2);
        assert!(answers[1].starts_with("SIP/2.0 503 "));
        let mut silent = node(|config| config.answer = Answer::Silent);
        assert!(handle(&mut silent, &request("INVITE", ""), &Roster::new()).is_empty());
    }

    #[test]
    fn heartbeats_say_where_the_node_is() {
        let balancer = "127.0.0.1:5065".parse().unwrap();
        let mut node = node(|config| {
            config.heartbeat_to = vec![balancer];
            config.properties = vec!["version=2".to_owned()];
        });
        assert_eq!(node.poll(Time::ZERO), Some(Time::from_millis(1000)));
        let (beat, to) = sent(&mut node).remove(0);
        assert_eq!(to, balancer);
        assert!(beat.starts_with("OPTIONS sip:"));
        assert!(beat.contains("\r\nMobicents-Heartbeat: 1\r\n"));
        let message = Message::parse(beat.as_bytes()).unwrap();
        let body = String::from_utf8(message.body.to_vec()).unwrap();
        let session = format!("sessionId={}", node.tag());
        let expected = ["udpPort=5080", "tcpPort=5080", "ip=127.0.0.1", "version=2", &session[..]];
        for line in expected {
            assert!(body.lines().any(|it| it == line), "{line} in {body}");
        }
        handle(&mut node, "SIP/2.0 200 OK\r\nCSeq: 1 OPTIONS\r\n\r\n", &Roster::new());
        assert_eq!(node.seen.heartbeats_answered, 1);
        // A new life has another session.
        node.restart();
        node.poll(Time::from_millis(1));
        assert!(!sent(&mut node)[0].0.contains(&session));
    }

    #[test]
    fn damaged_requests_are_counted_and_never_answered_elsewhere() {
        let mut node = node(|_| {});
        let good = request("INVITE", "").into_bytes();
        let mut state = 99u64;
        for _ in 0..20_000 {
            let mut bytes = good.clone();
            for _ in 0..3 {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let at = usize::try_from(state >> 8).unwrap() % bytes.len();
                bytes[at] = state.to_le_bytes()[0];
            }
            node.handle_datagram(Time::ZERO, &bytes, SOURCE.parse().unwrap(), &Roster::new());
            for (_, to) in node.outbox.messages() {
                assert_eq!(to.ip(), SOURCE.parse::<SocketAddr>().unwrap().ip());
            }
            node.outbox.clear();
        }
        assert!(node.seen.malformed > 1000);
    }
}
