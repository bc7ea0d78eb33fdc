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

/// Parameters in order. `text` is the whole value; `at` is where its first semicolon may be.
#[derive(Clone, Debug)]
pub struct Params<'p> {
    text: &'p [u8],
    at: usize,
}

impl<'p> Params<'p> {
    pub(crate) fn new(text: &'p [u8], at: usize) -> Self {
        Params { text, at }
    }

    /// The first parameter of that name; case does not matter.
    pub(crate) fn find(mut self, name: &str) -> Option<Param<'p>> {
        Iterator::find(&mut self, |it| it.is_named(name))
    }
}

impl<'p> Iterator for Params<'p> {
    type Item = Param<'p>;

    #[inline]
    fn next(&mut self) -> Option<Param<'p>> {
        let start = self.at;
        let Some([b';', behind @ ..]) = self.text.get(start..) else { return None };
        // Names are short, values are not.
        let stop = behind.iter().position(|it| matches!(it, b'=' | b';' | b'"'));
        let (equals, length) = match stop.map(|at| (at, behind.get(at))) {
            None => (None, behind.len()),
            Some((at, Some(b'='))) => (Some(at), param_end(behind, at + 1)),
            Some((at, Some(b';'))) => (None, at),
            Some((at, _)) => {
                let length = param_end(behind, at);
                (memchr::memchr(b'=', behind.get(..length).unwrap_or_default()), length)
            }
        };
        self.at = start + 1 + length;
        let body = trim_end(behind.get(..length).unwrap_or_default());
        let (name, value) = match equals {
            Some(at) => (body.get(..at).unwrap_or(body), body.get(at + 1..).unwrap_or_default()),
            None => (body, Default::default()),
        };
        let span = Span::new(start, start + 1 + body.len());
        Some(Param { name: trim(name), value: unquoted(trim(value)), span })
    }
}

/// The first semicolon outside quotes at or after `at`, or the end.
#[inline]
fn param_end(text: &[u8], mut at: usize) -> usize {
    loop {
        let rest = text.get(at..).unwrap_or_default();
        let Some(found) = first_of(rest, b';', b'"') else { return text.len() };
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
