//! `;name=value` lists, as Via, URIs and name-addr headers have them (RFC 3261 §7.3.1, §19.1.1).

use super::header::{is_blank, trim, trim_span};
use crate::bytes::Span;

/// One parameter.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Param<'p> {
    /// May be empty: `;;`.
    pub(crate) name: &'p [u8],
    /// Empty for a flag; without its quotes, escapes as they came.
    pub(crate) value: &'p [u8],
    /// From its semicolon to its last byte.
    pub(crate) span: Span,
}

/// Parameters in order. `text` is the whole value; `at` is where its first semicolon may be.
#[derive(Clone, Debug)]
pub(crate) struct Params<'p> {
    text: &'p [u8],
    at: usize,
}

impl<'p> Params<'p> {
    pub(crate) fn new(text: &'p [u8], at: usize) -> Self {
        Params { text, at }
    }

    /// The first parameter of that name; case does not matter.
    pub(crate) fn find(mut self, name: &str) -> Option<Param<'p>> {
        Iterator::find(&mut self, |it| it.name.eq_ignore_ascii_case(name.as_bytes()))
    }
}

impl<'p> Iterator for Params<'p> {
    type Item = Param<'p>;

    #[inline]
    fn next(&mut self) -> Option<Param<'p>> {
        let start = self.at;
        if self.text.get(start) != Some(&b';') {
            return None;
        }
        let end = param_end(self.text, start + 1);
        self.at = end;
        let body = self.text.get(start + 1..end).unwrap_or_default();
        let (name, value) = match memchr::memchr(b'=', body) {
            Some(equals) => {
                let (name, value) = body.split_at(equals);
                (trim(name), unquoted(trim(value.get(1..).unwrap_or_default())))
            }
            None => (trim(body), Default::default()),
        };
        Some(Param { name, value, span: trim_span(self.text, start, end) })
    }
}

/// The first semicolon outside quotes at or after `at`, or the end.
#[inline]
fn param_end(text: &[u8], mut at: usize) -> usize {
    loop {
        let rest = text.get(at..).unwrap_or_default();
        let Some(found) = memchr::memchr2(b';', b'"', rest) else { return text.len() };
        at += found;
        if text.get(at) == Some(&b';') {
            return at;
        }
        at = quote_end(text, at).unwrap_or(text.len());
    }
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
