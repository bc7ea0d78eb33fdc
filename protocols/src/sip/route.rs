//! Name-addr and addr-spec values: Route, Record-Route, From, To, Contact (RFC 3261 §20.10).

use super::header::{list_element, trim, trim_span};
use super::params::{Params, quote_end};
use crate::bytes::{Span, offset};

/// One value such as `"Alice" <sip:alice@example.com>;tag=1`. Slices point into its text.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NameAddr<'r> {
    /// The text that was read.
    pub text: &'r [u8],
    /// What stands before the `<`, quotes included; empty if nothing does.
    pub display: &'r [u8],
    /// URI without `<>` and blanks; `*` in Contact.
    pub uri: &'r [u8],
    /// Where it stands in the text.
    pub uri_span: Span,
    /// Header parameters, after their first semicolon.
    pub params: &'r [u8],
    params_at: u32,
}

impl<'r> NameAddr<'r> {
    /// Reads one value. `None`: empty, or a `<` without `>`.
    ///
    /// Lenient where routing does not suffer (RFC 4475 §3.1.2): blanks inside `<>`, display names
    /// that should be quoted, quotes that never close. Without `<>`, parameters belong to the header,
    /// not to the URI (RFC 3261 §20.10).
    pub fn parse(text: &'r [u8]) -> Option<NameAddr<'r>> {
        let Some(open) = angle(text) else {
            let end = memchr::memchr(b';', text).unwrap_or(text.len());
            let uri_span = trim_span(text, 0, end);
            if uri_span.is_empty() {
                return None;
            }
            return Some(Self::new(text, b"", uri_span, end));
        };
        let close = open + memchr::memchr(b'>', text.get(open..)?)?;
        let display = trim(text.get(..open)?);
        let uri_span = trim_span(text, open + 1, close);
        let tail = text.get(close..)?;
        let params_at = close + memchr::memchr(b';', tail).unwrap_or(tail.len());
        Some(Self::new(text, display, uri_span, params_at))
    }

    fn new(text: &'r [u8], display: &'r [u8], uri_span: Span, params_at: usize) -> Self {
        NameAddr {
            text,
            display,
            uri: uri_span.of(text),
            uri_span,
            params: text.get(params_at + 1..).unwrap_or_default(),
            params_at: offset(params_at),
        }
    }

    /// Value of a header parameter, without quotes; `Some(b"")` for a flag.
    pub fn param(&self, name: &str) -> Option<&'r [u8]> {
        Params::new(self.text, self.params_at as usize).find(name).map(|it| it.value)
    }

    /// A header parameter with its semicolon: what to remove or replace.
    pub fn param_span(&self, name: &str) -> Option<Span> {
        Params::new(self.text, self.params_at as usize).find(name).map(|it| it.span)
    }

    /// The dialog's tag (RFC 3261 §19.3) of From or To.
    pub fn tag(&self) -> Option<&'r [u8]> {
        self.param("tag")
    }
}

/// The `<` outside quotes; the first of all if the quotes never close.
fn angle(text: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let found = at + memchr::memchr2(b'<', b'"', text.get(at..)?)?;
        if text.get(found) == Some(&b'<') {
            return Some(found);
        }
        let Some(end) = quote_end(text, found) else { return memchr::memchr(b'<', text) };
        at = end;
    }
}

/// The first value of a comma-joined list, as Contact may hold it.
pub fn first_value(list: &[u8]) -> &[u8] {
    trim(list.get(..list_element(list, false)).unwrap_or_default())
}
