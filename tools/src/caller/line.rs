//! What a caller writes on one socket or connection, and what it reads of an answer.

use std::net::SocketAddr;

use super::CallerConfig;
use crate::message::{self, Malformed, Message, Name, Template};
use crate::node;
use crate::udp::Outbox;

/// One local socket or connection.
#[derive(Debug)]
pub struct Line {
    /// Address written into Via and Contact.
    pub local: SocketAddr,
    /// Waiting to be sent.
    pub outbox: Outbox,
    pub(super) invite: Template,
    /// ACK of a refusal, without its To line.
    pub(super) refusal_ack: Template,
    /// The lines that every later request repeats: From and Call-ID.
    pub(super) own: Template,
    pub(super) via: String,
}

impl Line {
    pub(super) fn new(config: &CallerConfig, salt: &str, local: SocketAddr) -> Self {
        let place = str::from_utf8(message::PLACE).unwrap_or_default();
        let (target, host, transport) = (config.target, local.ip(), config.transport);
        let via = format!("SIP/2.0/{} {local};branch=z9hG4bK{salt}", transport.as_via());
        let own = format!(
            "From: <sip:caller@{local}>;tag={salt}{place}\r\nCall-ID: {salt}{place}@{host}\r\n"
        );
        let refusal_ack = format!(
            "ACK sip:service@{target} SIP/2.0\r\nVia: {via}{place}i;rport\r\n\
             Max-Forwards: 70\r\n{own}CSeq: 1 ACK\r\n"
        );
        let invite = |body: &str| {
            format!(
                "INVITE sip:service@{target} SIP/2.0\r\nVia: {via}{place}i;rport\r\n\
                 Max-Forwards: 70\r\n{own}To: <sip:service@{target}>\r\nCSeq: 1 INVITE\r\n\
                 Contact: <sip:caller@{local};transport={}>\r\nUser-Agent: trunkload\r\n\
                 Allow: INVITE, ACK, BYE, CANCEL, OPTIONS\r\nContent-Type: application/sdp\r\n\
                 Content-Length: {}\r\n\r\n{body}",
                transport.as_param(),
                body.len()
            )
        };
        let body = node::sdp(local.ip());
        // One attribute fills the INVITE up; its own first and last bytes are part of the filling.
        let filled = |count: usize| invite(&format!("{body}a={}\r\n", "x".repeat(count)));
        let missing = config.invite_bytes.saturating_sub(filled(0).len());
        // The filling may make Content-Length a digit longer.
        let excess = filled(missing).len().saturating_sub(config.invite_bytes);
        let invite = filled(missing.saturating_sub(excess));
        Self {
            local,
            outbox: Outbox::default(),
            invite: Template::new(&invite),
            refusal_ack: Template::new(&refusal_ack),
            own: Template::new(&own),
            via,
        }
    }
}

/// What a caller reads of a response.
#[derive(Default)]
pub(super) struct Answer<'a> {
    pub(super) call_id: &'a [u8],
    pub(super) to: &'a [u8],
    pub(super) to_line: &'a [u8],
    pub(super) contact: &'a [u8],
    pub(super) cseq: &'a [u8],
    pub(super) record_routes: [&'a [u8]; ROUTES_MAX],
    pub(super) record_route_count: usize,
}

impl<'a> Answer<'a> {
    pub(super) fn read(message: &Message<'a>) -> Result<Self, Malformed> {
        let mut answer = Answer::default();
        for header in message.headers() {
            let header = header?;
            match header.name {
                Name::CallId => answer.call_id = header.value,
                Name::CSeq => answer.cseq = header.value,
                Name::Contact => answer.contact = header.value,
                Name::To => (answer.to, answer.to_line) = (header.value, header.line),
                Name::RecordRoute => {
                    for route in message::list(header.value) {
                        let count = answer.record_route_count;
                        *answer.record_routes.get_mut(count).ok_or(Malformed::HeaderLine)? = route;
                        answer.record_route_count += 1;
                    }
                }
                Name::ContentLength => {
                    let length = message::number(header.value).ok_or(Malformed::ContentLength)?;
                    if u64::try_from(message.body.len()) != Ok(length) {
                        return Err(Malformed::ContentLength);
                    }
                }
                _ => {}
            }
        }
        Ok(answer)
    }
}

/// Record-Routes followed; more is malformed.
const ROUTES_MAX: usize = 16;
