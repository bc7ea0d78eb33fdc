//! `;name=value` lists, as Via, URIs and name-addr headers have them (RFC 3261 §7.3.1, §19.1.1).

use super::header::{is_blank, trim, trim_end};
use super::scan::{first_of, is_named};
use crate::bytes::Span;

/// One parameter.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Param<'p> {
    /// May be empty: `;;`.
    pub name: &'p [u8],
    /// Empty for a flag; without its quotes, escapes as they came.
    pub value: &'p [u8],
    /// From its semicolon to its last byte.
    pub span: Span,
}

impl Param<'_> {
    /// Whether it has this name; case does not matter.
    #[inline]
    pub fn is_named(&self, name: &str) -> bool {
        is_named(self.name, name.as_bytes())
    }
}

/// Parameters in order.
#[derive(Clone, Debug)]
pub struct Params<'p> {
    /// From the next semicolon on.
    rest: &'p [u8],
    /// Where that is in the text that spans are relative to.
    at: usize,
}

impl<'p> Params<'p> {
    /// `text` is the whole value; `at` is where its first semicolon may be.
    #[inline]
    pub(crate) fn new(text: &'p [u8], at: usize) -> Self {
        Params { rest: text.get(at..).unwrap_or_default(), at }
    }

    /// The first parameter of that name; case does not matter.
    pub(crate) fn find(mut self, name: &str) -> Option<Param<'p>> {
        Iterator::find(&mut self, |it| it.is_named(name))
    }
}

impl<'p> Iterator for Params<'p> {
    type Item = Param<'p>;

    #[inline(always)]
    fn next(&mut self) -> Option<Param<'p>> {
        let [b';', behind @ ..] = self.rest else { return None };
        let (body, rest) = behind.split_at_checked(param_end(behind))?;
        let start = self.at;
        (self.rest, self.at) = (rest, start + 1 + body.len());
        let body = trim_end(body);
        let (name, value) = match body.iter().position(|it| *it == b'=') {
            Some(at) => (body.get(..at).unwrap_or(body), body.get(at + 1..).unwrap_or_default()),
            None => (body, Default::default()),
        };
        let span = Span::new(start, start + 1 + body.len());
        Some(Param { name: trim(name), value: unquoted(trim(value)), span })
    }
}

/// The first semicolon outside quotes, or the end.
#[inline(always)]
fn param_end(text: &[u8]) -> usize {
    let end = first_of(text, b';', b'"').unwrap_or(text.len());
    if text.get(end) == Some(&b'"') { quoted_param_end(text, end) } else { end }
}

/// The same for a parameter with a quote at `at`.
#[cold]
fn quoted_param_end(text: &[u8], mut at: usize) -> usize {
    while text.get(at) == Some(&b'"') {
        at = quote_end(text, at).unwrap_or(text.len());
        let rest = text.get(at..).unwrap_or_default();
        at += first_of(rest, b';', b'"').unwrap_or(rest.len());
    }
    at
}

/// One past the quote that closes the one at `at`.
pub(crate) fn quote_end(text: &[u8], at: usize) -> Option<usize> {
    let mut at = at + 1;
    loop {
        at += memchr::memchr2(b'"', b'\\', text.get(at..)?)?;
        if text.get(at) == Some(&b'"') {
            return Some(at + 1);
        }
        at += 2;
    }
}

fn unquoted(text: &[u8]) -> &[u8] {
    match text {
        [b'"', inner @ .., b'"'] => inner,
        _ => text,
    }
}

/// The first byte at or after `at` that is no blank.
#[inline]
pub(crate) fn skip_blanks(text: &[u8], mut at: usize) -> usize {
    while text.get(at).is_some_and(|it| is_blank(*it)) {
        at += 1;
    }
    at
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use super::*;
    use crate::sip::header::trim_span;
    use crate::testing::Random;

    /// Each byte in turn, with a flag for being inside quotes.
    fn plainly(text: &[u8]) -> Vec<Span> {
        let mut spans = Vec::new();
        let mut at = 0;
        while text.get(at) == Some(&b';') {
            let start = at;
            let (mut quoted, mut escaped) = (false, false);
            at += 1;
            while let Some(byte) = text.get(at) {
                match byte {
                    _ if escaped => escaped = false,
                    b'\\' if quoted => escaped = true,
                    b'"' => quoted = !quoted,
                    b';' if !quoted => break,
                    _ => {}
                }
                at += 1;
            }
            spans.push(trim_span(text, start, at));
        }
        spans
    }

    #[test]
    fn parameters_end_where_a_plain_reading_ends_them() {
        for seed in 0..20_000 {
            let text = Random::new(seed).mutate(b";branch=z9hG4bK1;a=\"x;\\\"y\";lr ; b = c ;=;d");
            let params: Vec<_> = Params::new(&text, 0).collect();
            let spans: Vec<_> = params.iter().map(|it| it.span).collect();
            assert_eq!(spans, plainly(&text), "seed {seed}: {}", text.escape_ascii());
            for param in params {
                let body = param.span.of(&text).get(1..).unwrap();
                let mut parts = body.splitn(2, |it| *it == b'=').map(trim);
                assert_eq!(param.name, parts.next().unwrap(), "seed {seed}");
                assert_eq!(param.value, unquoted(parts.next().unwrap_or_default()), "seed {seed}");
            }
        }
    }
}
