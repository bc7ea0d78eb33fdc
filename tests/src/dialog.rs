//! One side of a dialog (RFC 3261 §12): what its next request looks like.

use std::net::SocketAddr;

use crate::peer::unique;
use crate::{Message, Peer, Received, Transport, Uri};

/// The state that a user agent keeps for one dialog.
#[derive(Clone, Debug)]
pub struct Dialog {
    /// The Call-ID.
    pub call_id: String,
    /// Route set, first hop first.
    pub routes: Vec<String>,
    /// Remote target: Request-URI of requests in the dialog.
    pub target: String,
    /// Own From, with tag.
    pub local: String,
    /// Their To, with tag.
    pub remote: String,
    cseq: u32,
    invite_cseq: u32,
    contact: String,
    via: String,
}

impl Dialog {
    /// The caller's side, from its request and a response with a To tag.
    pub fn of_caller(peer: &Peer, request: &Message, response: &Message) -> Dialog {
        let mut routes: Vec<String> = strings(&response.record_routes());
        routes.reverse();
        let (from, to) = (request.header("From"), response.header("To"));
        Dialog::new(peer, request, routes, from, to, target(response))
    }

    /// The callee's side, from the request it got and the response it sent.
    pub fn of_callee(peer: &Peer, request: &Received, response: &Message) -> Dialog {
        let routes = strings(&request.record_routes());
        let (local, remote) = (response.header("To"), request.header("From"));
        let mut dialog = Dialog::new(peer, request, routes, local, remote, target(request));
        let transport = request.link.transport();
        if transport != Transport::Udp {
            dialog.via = via(peer.address_of(transport), transport, peer.asks_rport);
        }
        dialog.cseq = 100; // the two sides count on their own
        dialog
    }

    fn new(
        peer: &Peer,
        request: &Message,
        routes: Vec<String>,
        local: &str,
        remote: &str,
        target: String,
    ) -> Dialog {
        let cseq = request.header("CSeq").split(' ').next().and_then(|it| it.parse().ok());
        let cseq = cseq.unwrap_or(1);
        Dialog {
            call_id: request.call_id().to_owned(),
            routes,
            target,
            local: local.to_owned(),
            remote: remote.to_owned(),
            cseq,
            invite_cseq: cseq,
            contact: peer.contact(),
            via: via(peer.address_of(peer.transport), peer.transport, peer.asks_rport),
        }
    }

    /// The next request of the dialog.
    pub fn request(&mut self, method: &str) -> Message {
        self.cseq += 1;
        if method == "INVITE" {
            self.invite_cseq = self.cseq;
        }
        self.message(method, self.cseq)
    }

    /// The ACK for the 2xx of the last INVITE.
    pub fn ack(&mut self) -> Message {
        self.message("ACK", self.invite_cseq)
    }

    fn message(&self, method: &str, cseq: u32) -> Message {
        let mut message = Message::new(format!("{method} {} SIP/2.0", self.target))
            .with("Via", self.via.replace("BRANCH", &unique()))
            .with("Max-Forwards", "70");
        for route in &self.routes {
            message = message.with("Route", route);
        }
        message
            .with("From", &self.local)
            .with("To", &self.remote)
            .with("Call-ID", &self.call_id)
            .with("CSeq", format!("{cseq} {method}"))
            .with("Contact", &self.contact)
    }
}

fn strings(values: &[&str]) -> Vec<String> {
    values.iter().map(|it| (*it).to_owned()).collect()
}

fn via(address: SocketAddr, transport: Transport, asks_rport: bool) -> String {
    let rport = if asks_rport { ";rport" } else { "" };
    let name = transport.lower().to_uppercase();
    format!("SIP/2.0/{name} {address};branch=z9hG4bKBRANCH{rport}")
}

/// URI of the Contact; a message without one leaves the target unknown, which only early tests see.
fn target(message: &Message) -> String {
    let contact = message.header("Contact");
    let inside = contact.split_once('<').map_or(contact, |(_, rest)| rest);
    let uri = inside.split('>').next().unwrap_or_default();
    debug_assert!(!Uri::of(uri).host.is_empty(), "no host in Contact {contact}");
    uri.to_owned()
}
