//! Name-addr and addr-spec values: Route, Record-Route, From, To, Contact (RFC 3261 §20.10).

use super::header::{trim, trim_span};
use super::params::{Params, quote_end};
use super::scan::{first_is, first_of};
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
            let end = first_is(text, b';').unwrap_or(text.len());
            let uri_span = trim_span(text, 0, end);
            if uri_span.is_empty() {
                return None;
            }
            return Some(Self::new(text, b"", uri_span, end));
        };
        let close = open + first_is(text.get(open..)?, b'>')?;
        let display = trim(text.get(..open)?);
        let uri_span = trim_span(text, open + 1, close);
        let tail = text.get(close..)?;
        let semicolon = tail.iter().position(|it| *it == b';');
        let params_at = close + semicolon.unwrap_or(tail.len());
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
        let found = at + first_of(text.get(at..)?, b'<', b'"')?;
        if text.get(found) == Some(&b'<') {
            return Some(found);
        }
        let Some(end) = quote_end(text, found) else { return first_is(text, b'<') };
        at = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    #[test]
    fn values_fall_into_parts() {
        type Parts = (&'static str, &'static str, &'static str);
        let cases: &[(&str, Option<Parts>)] = &[
            ("<sip:a;lr>", Some(("", "sip:a;lr", ""))),
            ("<sip:a;lr>;x=1", Some(("", "sip:a;lr", "x=1"))),
            ("\"A <b> \\\" c\" <sip:a>;tag=1", Some(("\"A <b> \\\" c\"", "sip:a", "tag=1"))),
            ("Bob<sip:a> ; tag = 1", Some(("Bob", "sip:a", " tag = 1"))),
            ("Bell, Alexander <sip:a>", Some(("Bell, Alexander", "sip:a", ""))),
            ("< sip:a >", Some(("", "sip:a", ""))),
            ("sip:a@b;tag=1", Some(("", "sip:a@b", "tag=1"))),
            ("sip:a@b;x=\"<\"", Some(("", "sip:a@b", "x=\"<\""))),
            ("*", Some(("", "*", ""))),
            ("\"never closed <sip:a>", Some(("\"never closed", "sip:a", ""))),
            ("<sip:a", None),
            ("", None),
            (" ;tag=1", None),
        ];
        for (text, want) in cases {
            let got = NameAddr::parse(text.as_bytes());
            let want = want.map(|(a, b, c)| (a.as_bytes(), b.as_bytes(), c.as_bytes()));
            assert_eq!(got.map(|it| (it.display, it.uri, it.params)), want, "{text}");
            if let Some(got) = got {
                assert_eq!(got.uri_span.of(text.as_bytes()), got.uri, "{text}");
            }
        }
    }

    #[test]
    fn the_tag_is_the_headers_not_the_uris() {
        let cases: &[(&str, Option<&str>)] = &[
            ("<sip:a;tag=no>;tag=yes", Some("yes")),
            ("<sip:a;tag=no>", None),
            ("sip:a;TAG=yes", Some("yes")),
            ("\";tag=no\" <sip:a>", None),
            ("<sip:a>;x=\";tag=no\";tag=yes", Some("yes")),
            ("<sip:a>;tag", Some("")),
        ];
        for (text, want) in cases {
            let got = NameAddr::parse(text.as_bytes()).and_then(|it| it.tag());
            assert_eq!(got, want.map(str::as_bytes), "{text}");
        }
        let value = NameAddr::parse(b"<sip:a>;q=1;expires=60").unwrap();
        assert_eq!(value.param_span("q").unwrap().of(value.text), b";q=1");
    }

    #[test]
    fn any_bytes_are_read_or_refused() {
        for seed in 0..5_000 {
            let text =
                Random::new(seed).mutate(b"\"A \\\" b\" <sip:a@b;lr>;tag=1;x=\"y;z\", <sip:c>");
            if let Some(value) = NameAddr::parse(&text) {
                assert!(value.uri_span.range().end <= text.len(), "seed {seed}");
                let _ = (value.tag(), value.param_span("x"));
            }
        }
    }
}
