//! The messages of one call as its two sides write them, made from what the relay sent on.
//!
//! For meters: allocations, instructions. No transactions, no timers; see [`super::Agent`] for those.

use std::net::SocketAddr;

use crate::Message;
use engine::relay::Leg;

/// The messages that a relay meets, in an order in which each can be made from those before it.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    /// Opens the call, with a body of about 600 bytes.
    Invite,
    /// 100 of the node.
    Trying,
    /// 180 of the node.
    Ringing,
    /// 200 to INVITE.
    Answer,
    /// ACK of the 200, with the route set.
    Ack,
    /// BYE of the caller, with the route set.
    Bye,
    /// 200 to BYE.
    ByeAnswer,
    /// CANCEL of the INVITE, without a route set.
    Cancel,
    /// ACK of a final answer other than 200: the INVITE's own transaction.
    AckOfFailure,
    /// REGISTER of the caller.
    Register,
    /// BYE of the node to the caller's address.
    NodeBye,
    /// 200 of the caller to that.
    NodeByeAnswer,
    /// INVITE of the node to a caller.
    NodeInvite,
    /// 200 of the caller to that.
    NodeInviteAnswer,
}

impl Kind {
    /// Every kind, in order.
    pub const ALL: [Kind; 14] = [
        Kind::Invite,
        Kind::Trying,
        Kind::Ringing,
        Kind::Answer,
        Kind::Ack,
        Kind::Bye,
        Kind::ByeAnswer,
        Kind::Cancel,
        Kind::AckOfFailure,
        Kind::Register,
        Kind::NodeBye,
        Kind::NodeByeAnswer,
        Kind::NodeInvite,
        Kind::NodeInviteAnswer,
    ];

    /// The seven messages of an answered call.
    pub const OF_A_CALL: [Kind; 7] = [
        Kind::Invite,
        Kind::Trying,
        Kind::Ringing,
        Kind::Answer,
        Kind::Ack,
        Kind::Bye,
        Kind::ByeAnswer,
    ];

    /// Whether a caller sends it.
    pub const fn is_from_caller(self) -> bool {
        matches!(
            self,
            Kind::Invite
                | Kind::Ack
                | Kind::Bye
                | Kind::Cancel
                | Kind::AckOfFailure
                | Kind::Register
                | Kind::NodeByeAnswer
                | Kind::NodeInviteAnswer
        )
    }

    /// The leg that it comes in by, where there are two.
    pub const fn leg(self) -> Leg {
        if self.is_from_caller() { Leg::External } else { Leg::Internal }
    }
}

/// One call. Ask for a kind with [`Call::write`], handle the bytes, hand what left to [`Call::sent`].
#[derive(Debug)]
pub struct Call {
    caller: SocketAddr,
    transport: &'static str,
    id: String,
    /// INVITE, BYE, BYE of the node, INVITE of the node: as the other side got them.
    got: [Option<Message>; 4],
    routes: String,
}

impl Call {
    /// A call that nobody placed before; `transport` as a Via spells it.
    pub fn new(caller: SocketAddr, transport: &'static str, number: u64) -> Call {
        let id = format!("{number:016x}@{}", caller.ip());
        Call { caller, transport, id, got: [const { None }; 4], routes: String::new() }
    }

    /// The bytes of a message. Those that it is made from must have been [`Call::sent`].
    pub fn write(&self, kind: Kind, node: SocketAddr) -> Vec<u8> {
        let target = format!("sip:bob@{node}");
        match kind {
            Kind::Invite => {
                let sdp =
                    format!("v=0\r\no=- 1 1 IN IP4 {}\r\n{}", self.caller, SDP_LINE.repeat(12));
                let request = self.request("INVITE", "sip:bob@example.com", "c1", "", "");
                request.with_body("application/sdp", sdp).to_bytes()
            }
            Kind::Trying => self.answer(0, "100 Trying", ""),
            Kind::Ringing => self.answer(0, "180 Ringing", TO_TAG),
            Kind::Answer => self.answer(0, "200 OK", TO_TAG),
            Kind::Ack => self.request("ACK", &target, "c2", TO_TAG, &self.routes).to_bytes(),
            Kind::Bye => self.request("BYE", &target, "c3", TO_TAG, &self.routes).to_bytes(),
            Kind::ByeAnswer => self.answer(1, "200 OK", ""),
            Kind::Cancel => self.request("CANCEL", "sip:bob@example.com", "c1", "", "").to_bytes(),
            Kind::AckOfFailure => {
                self.request("ACK", "sip:bob@example.com", "c1", TO_TAG, "").to_bytes()
            }
            Kind::Register => self.request("REGISTER", "sip:example.com", "c4", "", "").to_bytes(),
            Kind::NodeBye => self.node_request("BYE", node, "n1", &self.routes_of_node()),
            Kind::NodeByeAnswer => self.answer(2, "200 OK", ""),
            Kind::NodeInvite => self.node_request("INVITE", node, "n2", ""),
            Kind::NodeInviteAnswer => self.answer(3, "200 OK", TO_TAG),
        }
    }

    /// What the relay sent on for a kind.
    pub fn sent(&mut self, kind: Kind, bytes: &[u8]) {
        let slot = match kind {
            Kind::Invite => 0,
            Kind::Bye => 1,
            Kind::NodeBye => 2,
            Kind::NodeInvite => 3,
            _ => return,
        };
        self.got[slot] = Message::parse(bytes);
        if kind == Kind::Invite
            && let Some(invite) = &self.got[0]
        {
            let mut routes = invite.record_routes();
            routes.reverse();
            self.routes = routes.join(", ");
        }
    }

    fn routes_of_node(&self) -> String {
        let routes = self.got[0].as_ref().map(|it| it.record_routes().join(", "));
        routes.unwrap_or_default()
    }

    fn request(&self, method: &str, uri: &str, branch: &str, tag: &str, routes: &str) -> Message {
        let Call { caller, transport, id, .. } = self;
        let number = if matches!(method, "INVITE" | "ACK" | "CANCEL") { 1 } else { 2 };
        let message = Message::new(format!("{method} {uri} SIP/2.0"))
            .with("Via", format!("SIP/2.0/{transport} {caller};branch=z9hG4bK{branch}{id};rport"))
            .with("Max-Forwards", "70");
        let message = if routes.is_empty() { message } else { message.with("Route", routes) };
        message
            .with("From", "\"Alice\" <sip:alice@example.com>;tag=a1")
            .with("To", format!("<sip:bob@example.com>{tag}"))
            .with("Call-ID", id.clone())
            .with("CSeq", format!("{number} {method}"))
            .with("Contact", format!("<sip:alice@{caller}>"))
            .with("User-Agent", "meter/1.0")
            .with("Allow", "INVITE, ACK, CANCEL, BYE, OPTIONS, INFO, UPDATE")
    }

    fn node_request(&self, method: &str, node: SocketAddr, branch: &str, routes: &str) -> Vec<u8> {
        let Call { caller, transport, id, .. } = self;
        let number = if method == "INVITE" { 1 } else { 3 };
        let tag = if method == "INVITE" { "" } else { ";tag=a1" };
        let message = Message::new(format!("{method} sip:alice@{caller} SIP/2.0"))
            .with("Via", format!("SIP/2.0/{transport} {node};branch=z9hG4bK{branch}{id}"))
            .with("Max-Forwards", "70");
        let message = if routes.is_empty() { message } else { message.with("Route", routes) };
        message
            .with("From", format!("<sip:bob@example.com>{TO_TAG}"))
            .with("To", format!("\"Alice\" <sip:alice@example.com>{tag}"))
            .with("Call-ID", if method == "INVITE" { format!("n{id}") } else { id.clone() })
            .with("CSeq", format!("{number} {method}"))
            .with("Contact", format!("<sip:bob@{node}>"))
            .to_bytes()
    }

    fn answer(&self, slot: usize, status: &str, tag: &str) -> Vec<u8> {
        let request = self.got[slot].as_ref().expect("the request was sent on before");
        let mut answer = Message::new(format!("SIP/2.0 {status}"));
        for name in ["Via", "Record-Route", "From"] {
            for value in request.all(name) {
                answer = answer.with(name, value);
            }
        }
        answer
            .with("To", format!("{}{tag}", request.header("To")))
            .with("Call-ID", request.header("Call-ID"))
            .with("CSeq", request.header("CSeq"))
            .with("Server", "meter/1.0")
            .to_bytes()
    }
}

const TO_TAG: &str = ";tag=b1";
const SDP_LINE: &str = "a=rtpmap:101 telephone-event/8000 and so on\r\n";
