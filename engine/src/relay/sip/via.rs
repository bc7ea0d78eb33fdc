//! The Via header field: what we put on, what we correct, where responses go.
//!
//! RFC 3261 §16.6(8), §16.11 (stateless branch), §18.2 (received); RFC 3581 (rport); `sip.md` 2.5.

use std::net::{IpAddr, SocketAddr};

use protocols::bytes::{Span, write_decimal, write_hex, write_ip};
use protocols::sip::Transport;
use protocols::sip::message::Message;
use protocols::sip::via::Via;

use super::flow::{self, Token};
use super::settings::{Place, Settings};
use crate::balance::hash;
use crate::node::Version;
use crate::relay::Arrival;

/// The first Via value of a message.
pub(super) struct TopVia<'m> {
    /// The value as it came.
    pub text: &'m [u8],
    /// Where it stands in the message.
    pub span: Span,
    /// Its parts.
    pub via: Via<'m>,
}

impl<'m> TopVia<'m> {
    pub(super) fn of(message: &Message<'m>) -> TopVia<'m> {
        let via = message.via;
        let span = message.vias.first().map_or(Span::default(), |it| it.span);
        TopVia { text: via.text, span, via }
    }

    /// The Via value at a position from the top.
    pub(super) fn at(message: &Message<'m>, index: usize) -> Option<TopVia<'m>> {
        let span = message.vias.get(index)?.span;
        let text = span.of(message.bytes);
        Some(TopVia { text, span, via: Via::parse(text)? })
    }

    /// Port that the sender listens on.
    pub(super) fn sent_by_port(&self, transport: Transport) -> u16 {
        self.via.port.unwrap_or(transport.default_port())
    }
}

/// Writes the top Via of a request as RFC 3261 §18.2.1 and RFC 3581 §4 want it, if that differs from
/// how it came. `false`: `out` is untouched.
pub(super) fn amend(
    top: &TopVia<'_>,
    arrival: &Arrival,
    transport: Transport,
    settings: &Settings,
    out: &mut Vec<u8>,
) -> bool {
    let via = &top.via;
    let source = arrival.source;
    let is_elsewhere = via.host_ip() != Some(source.ip());
    let asked = via.rport.is_some();
    let (received, rport) = if transport.is_stream() {
        let silent = settings.config.never_add_received_rport;
        (!silent && (is_elsewhere || asked), !silent)
    } else {
        let forced =
            settings.config.always_add_rport && top.sent_by_port(transport) != source.port();
        (is_elsewhere || asked || forced, asked || forced)
    };
    // A `received` that the sender wrote itself is a lie or an echo; it never survives.
    if !received && !rport && via.received_span.is_none() {
        return false;
    }
    let mut at = 0;
    let mut spans = [(via.received_span, false), (via.rport_span, true)];
    spans.sort_by_key(|(span, _)| span.map_or(0, |it| it.start));
    let mut rport_written = false;
    for (span, is_rport) in spans {
        let Some(span) = span else { continue };
        out.extend_from_slice(slice(top.text, at, span.start as usize));
        at = span.end as usize;
        if is_rport {
            if rport {
                write_rport(source, out);
            } else {
                out.extend_from_slice(span.of(top.text));
            }
            rport_written = true;
        }
    }
    out.extend_from_slice(slice(top.text, at, top.text.len()));
    if rport && !rport_written {
        write_rport(source, out);
    }
    if received {
        out.extend_from_slice(b";received=");
        write_ip(out, source.ip());
    }
    true
}

fn write_rport(source: SocketAddr, out: &mut Vec<u8>) {
    out.extend_from_slice(b";rport=");
    write_decimal(out, source.port());
}

fn slice(text: &[u8], start: usize, end: usize) -> &[u8] {
    text.get(start..end).unwrap_or_default()
}

/// Where our own answer to a datagram goes (RFC 3261 §18.2.2, RFC 3581 §4): never to a third party.
pub(super) fn answer_address(
    top: &TopVia<'_>,
    source: SocketAddr,
    transport: Transport,
    settings: &Settings,
) -> SocketAddr {
    if top.via.rport.is_some() || settings.config.always_add_rport {
        source
    } else {
        SocketAddr::new(source.ip(), top.sent_by_port(transport))
    }
}

/// Host and port that a Via asks responses to be sent to.
pub(super) struct ResponseTarget {
    /// `None`: a name without `received`.
    pub ip: Option<IpAddr>,
    /// rport, else the sent-by port, else the transport's default.
    pub port: u16,
    /// Without rport: where to connect when the connection is gone (RFC 3261 §18.2.2).
    pub sent_by_port: u16,
}

/// Reads the target of a response from the Via it must go to next.
pub(super) fn response_target(top: &TopVia<'_>, transport: Transport) -> ResponseTarget {
    let via = &top.via;
    let sent_by_port = top.sent_by_port(transport);
    ResponseTarget {
        ip: via.received_ip().or_else(|| via.host_ip()),
        port: via.rport_port().unwrap_or(sent_by_port),
        sent_by_port,
    }
}

/// The transaction's hash, the same for INVITE, its CANCEL and the ACK of a failure.
///
/// Source: RFC 3261 §16.11. From the branch where it has the magic cookie and more (RFC 4475 §3.1.2.18 is
/// the cookie alone); else from what RFC 2543 transactions have in common. The To tag stays out: a 2543 ACK of a failure has one, its INVITE not.
pub(super) fn transaction(top: &TopVia<'_>, message: &Message<'_>) -> u64 {
    let via = &top.via;
    let is_unique = |it: &&[u8]| it.len() > MAGIC_COOKIE.len() && it.starts_with(MAGIC_COOKIE);
    if let Some(branch) = via.branch.filter(is_unique) {
        let sent_by = hash(u64::from(via.port.unwrap_or(0)), via.host);
        return hash(sent_by, branch);
    }
    let uri = message.request_uri.map_or(b"".as_slice(), |it| it.text);
    let call_id = message.text(message.call_id);
    let mut it = hash(0, top.text);
    for part in [message.from_tag().unwrap_or_default(), call_id, uri] {
        it = hash(it, part);
    }
    hash(it, &message.cseq_number().to_be_bytes())
}

/// What both of our Vias of one request share.
#[derive(Clone, Copy)]
pub(super) struct Branch {
    /// [`transaction`].
    pub hash: u64,
    /// Cluster that the response belongs to.
    pub version: Version,
}

/// Appends one Via line of ours.
pub(super) fn push(
    place: &Place,
    own_address: bool,
    branch: Branch,
    mark: u8,
    came_by: Option<(Token, &[u8; 16])>,
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(b"Via: ");
    out.extend_from_slice(if own_address { &place.own_via } else { &place.via }.as_bytes());
    out.extend_from_slice(b";branch=");
    out.extend_from_slice(MAGIC_COOKIE);
    write_hex(out, branch.hash);
    out.push(mark);
    out.push(b'_');
    push_version(branch.version, out);
    if let Some((came_by, secret)) = came_by {
        flow::write(came_by, secret, out);
    }
    out.extend_from_slice(b"\r\n");
}

/// The transport and branch of a value that [`push`] wrote, without a flow token and untouched since:
/// nothing more is in it than the place.
pub(super) fn verbatim<'v>(value: &'v [u8], settings: &Settings) -> Option<(Transport, &'v [u8])> {
    let is_ours = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'i' | b'_' | b'-');
    let branch_at = |place: &str| {
        let branch = value.strip_prefix(place.as_bytes())?.strip_prefix(b";branch=")?;
        let rest = branch.strip_prefix(MAGIC_COOKIE)?;
        rest.iter().fold(true, |all, it| all & is_ours(*it)).then_some(branch)
    };
    let mut own = settings.own_vias().iter();
    own.find_map(|(place, transport)| Some((*transport, branch_at(place)?)))
}

/// The digits and the mark of a branch that [`push`] wrote. `None`: it is in another hand.
pub(super) fn own_branch(branch: &[u8]) -> Option<(&[u8], u8)> {
    let (digits, rest) = branch.strip_prefix(MAGIC_COOKIE)?.split_at_checked(BRANCH_DIGITS)?;
    let (mark, rest) = rest.split_first()?;
    let is_own = matches!(*mark, OUTER | INNER)
        && rest.first() == Some(&b'_')
        && digits.iter().fold(true, |all, it| all & it.is_ascii_hexdigit());
    is_own.then_some((digits, *mark))
}

/// Whether the branch below our top one is ours, too: of the same request, for the other leg. `None`: the
/// top one is in another hand, such as the original's behind the same address, and does not tell.
pub(super) fn is_other_leg(top: Option<&[u8]>, below: Option<&[u8]>) -> Option<bool> {
    let (digits, mark) = own_branch(top?)?;
    let below = below.and_then(|it| it.strip_prefix(MAGIC_COOKIE)?.strip_prefix(digits)?.first());
    Some(below.is_some_and(|it| matches!(*it, OUTER | INNER) && *it != mark))
}

/// Whether a Via is one that we put on.
pub(super) fn is_ours(via: &TopVia<'_>, settings: &Settings) -> bool {
    let Some(transport) = via.via.transport else { return false };
    let port = via.sent_by_port(transport);
    settings.is_me(via.via.host, via.via.host_ip(), port)
}

/// Appends a version as the balancer writes it everywhere: a decimal integer.
pub(super) fn push_version(version: Version, out: &mut Vec<u8>) {
    if version.0 < 0 {
        out.push(b'-');
    }
    write_decimal(out, version.0.unsigned_abs());
}

/// Reads a version parameter or branch suffix.
pub(super) fn parse_version(text: &[u8]) -> Option<Version> {
    std::str::from_utf8(text).ok()?.parse().ok().map(Version)
}

/// Cluster named by the branch of one of our Vias: what follows the last `_`.
pub(super) fn branch_version(branch: &[u8]) -> Option<Version> {
    let at = memchr::memrchr(b'_', branch)?;
    parse_version(branch.get(at + 1..)?)
}

const MAGIC_COOKIE: &[u8] = b"z9hG4bK";
/// Of [`Branch::hash`] in hex.
const BRANCH_DIGITS: usize = 16;

/// Marks the Via that faces clients.
pub(super) const OUTER: u8 = b'e';
/// Marks the Via that faces nodes.
pub(super) const INNER: u8 = b'i';
