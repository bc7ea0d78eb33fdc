//! The two edits of Contact that an operator can ask for (`sip.md` 2.8, 2.11). Everything else in it
//! stays as it came.

use protocols::bytes::{Edits, Span, write_decimal};
use protocols::sip::Transport;
use protocols::sip::message::Message;
use protocols::sip::route::NameAddr;
use protocols::sip::uri::Uri;

/// Names the transport that the client really uses, so that the node's later requests leave by it.
pub(super) fn name_transport(message: &Message<'_>, transport: Transport, edits: &mut Edits) {
    let Some(contact) = Contact::of(message) else { return };
    let value = transport.as_param().as_bytes();
    let uri = &contact.uri;
    if contact.is_bare {
        // Without <> a parameter would belong to the header, not to the URI (RFC 3261 §20.10).
        edits.insert(contact.at(0), b"<");
        edits.insert(contact.at(uri.params_end), b";transport=");
        edits.insert(contact.at(uri.params_end), value);
        edits.insert(contact.at(uri.text.len().try_into().unwrap_or(u32::MAX)), b">");
    } else if let Some(span) = uri.param_span("transport") {
        edits.write(contact.span(span), |out| {
            out.extend_from_slice(b";transport=");
            out.extend_from_slice(value);
        });
    } else {
        edits.insert(contact.at(uri.params_end), b";transport=");
        edits.insert(contact.at(uri.params_end), value);
    }
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
