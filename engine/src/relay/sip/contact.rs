//! The edits of Contact that an operator can ask for (`sip.md` 2.8, 2.11), and the one that WebSocket
//! needs (`sip.md` 1.1). Everything else in it stays as it came.

use std::net::SocketAddr;

use protocols::bytes::{Edits, Span, write_decimal, write_host};
use protocols::sip::Transport;
use protocols::sip::message::Message;
use protocols::sip::route::NameAddr;
use protocols::sip::uri::Uri;

use super::flow::{self, Token};
use super::settings::Settings;

/// What becomes of a client's Contact; parts that are `None` stay as they are.
#[derive(Clone, Copy, Default)]
pub(super) struct Changes<'a> {
    /// The transport that the client really uses, so that the node's later requests leave by it.
    pub transport: Option<Transport>,
    /// The client's real address and connection, where the host is made up ([`is_made_up`]).
    pub real: Option<Real<'a>>,
}

/// Where a client really is.
#[derive(Clone, Copy)]
pub(super) struct Real<'a> {
    /// The other end of its connection.
    pub address: SocketAddr,
    /// The connection: nobody can call it back otherwise.
    pub token: Option<Token>,
    /// Signs the connection's token.
    pub secret: &'a [u8; 16],
}

/// Applies changes to the first Contact.
pub(super) fn change(message: &Message<'_>, changes: Changes<'_>, edits: &mut Edits) {
    let Some(contact) = Contact::of(message) else { return };
    let real = changes.real.filter(|_| is_made_up(contact.uri.host));
    if changes.transport.is_none() && real.is_none() {
        return;
    }
    let uri = &contact.uri;
    if contact.is_bare {
        // Without <> a parameter would belong to the header, not to the URI (RFC 3261 §20.10).
        edits.insert(contact.at(0), b"<");
    }
    if let Some(real) = real {
        edits.write(contact.span(uri.host_port), |out| write_address(real.address, out));
    }
    if let Some(transport) = changes.transport {
        let value = transport.as_param().as_bytes();
        let span = uri.param_span("transport").filter(|_| !contact.is_bare);
        let end = Span { start: uri.params_end, end: uri.params_end };
        edits.write(contact.span(span.unwrap_or(end)), |out| {
            out.extend_from_slice(b";transport=");
            out.extend_from_slice(value);
        });
    }
    if let Some(Real { token: Some(token), secret, .. }) = real {
        let end = Span { start: uri.params_end, end: uri.params_end };
        edits.write(contact.span(end), |out| flow::write(token, secret, out));
    }
    if contact.is_bare {
        edits.insert(contact.at(uri.text.len().try_into().unwrap_or(u32::MAX)), b">");
    }
}

/// Puts a client's real address into the topmost Record-Route, if its host is made up.
pub(super) fn change_record_route(message: &Message<'_>, real: Real<'_>, edits: &mut Edits) {
    let Some(value) = message.record_routes.first() else { return };
    let Some(address) = NameAddr::parse(message.text(value.span)) else { return };
    let Some(uri) = Uri::parse(address.uri).filter(|it| is_made_up(it.host)) else { return };
    let at = |span: Span| {
        let start = value.span.start + address.uri_span.start;
        Span { start: start + span.start, end: start + span.end }
    };
    edits.write(at(uri.host_port), |out| write_address(real.address, out));
    if let Some(token) = real.token {
        let end = Span { start: uri.params_end, end: uri.params_end };
        edits.write(at(end), |out| flow::write(token, real.secret, out));
    }
}

/// Puts a client's connection into our own Record-Route, the one towards it: the first in its answers. So the
/// node's later requests come back to it by its own connection, whatever its Contact says.
pub(super) fn mark_record_route(
    message: &Message<'_>,
    token: Token,
    settings: &Settings,
    edits: &mut Edits,
) {
    // Where ours ends, and whether it names a connection already.
    let ours = |value: Span| {
        let address = NameAddr::parse(message.text(value))?;
        let uri = Uri::parse(address.uri).filter(|it| settings.is_my_uri(it))?;
        let end = value.start + address.uri_span.start + uri.params_end;
        Some((end, uri.param("flow").is_some()))
    };
    if let Some((at, false)) = message.all_record_routes().find_map(|it| ours(it.span)) {
        let end = Span { start: at, end: at };
        edits.write(end, |out| flow::write(token, &settings.secret, out));
    }
}

/// Hosts that clients in browsers make up, since they do not know their own (RFC 7118 §5, RFC 2606 §2).
pub(super) fn is_made_up(host: &[u8]) -> bool {
    let at = host.len().saturating_sub(MADE_UP.len());
    host.get(at..).is_some_and(|it| it.eq_ignore_ascii_case(MADE_UP))
}

fn write_address(address: SocketAddr, out: &mut Vec<u8>) {
    write_host(out, address.ip());
    out.push(b':');
    write_decimal(out, address.port());
}

/// Puts the public host and port in; user, scheme and parameters stay.
pub(super) fn publish(message: &Message<'_>, host: &str, port: u16, edits: &mut Edits) {
    let Some(contact) = Contact::of(message) else { return };
    if contact.uri.host.is_empty() {
        return;
    }
    edits.write(contact.span(contact.uri.host_port), |out| {
        out.extend_from_slice(host.as_bytes());
        out.push(b':');
        write_decimal(out, port);
    });
}

/// The first Contact value of a message.
struct Contact<'m> {
    uri: Uri<'m>,
    /// Where the URI begins in the message.
    start: u32,
    /// Written without `<>`.
    is_bare: bool,
}

impl<'m> Contact<'m> {
    fn of(message: &Message<'m>) -> Option<Contact<'m>> {
        let value = message.contact?;
        let text = value.of(message.bytes);
        let address = NameAddr::parse(text)?;
        let uri = Uri::parse(address.uri)?;
        let start = value.start + address.uri_span.start;
        let is_bare = start == 0 || message.bytes.get(start as usize - 1) != Some(&b'<');
        Some(Contact { uri, start, is_bare })
    }

    fn at(&self, offset: u32) -> u32 {
        self.start + offset
    }

    fn span(&self, span: Span) -> Span {
        Span { start: self.at(span.start), end: self.at(span.end) }
    }
}

const MADE_UP: &[u8] = b".invalid";
