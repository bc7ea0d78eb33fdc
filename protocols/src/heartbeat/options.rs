//! Bodies of SIP heartbeats (`sip.md` 4.2): Java properties text, `key=value` by lines.
//!
//! Reads what `java.util.Properties` writes and people type: `=`, `:` or a blank between key and
//! value, comments, backslash escapes, continued lines. Never fails: what it does not know is text.

use alloc::borrow::Cow;
use alloc::string::String;
use core::char::decode_utf16;

/// The pairs of a body in order; keys and values without blanks around them. Lines without a key are
/// skipped; a key alone has an empty value. UTF-8, or else Latin-1 as old Java wrote it.
pub fn pairs(body: &[u8]) -> Pairs<'_> {
    Pairs { rest: body }
}

/// Iterator of [`pairs`].
#[derive(Clone, Debug)]
pub struct Pairs<'b> {
    rest: &'b [u8],
}

impl<'b> Iterator for Pairs<'b> {
    type Item = (Cow<'b, str>, Cow<'b, str>);

    fn next(&mut self) -> Option<Self::Item> {
        while !self.rest.is_empty() {
            let line = self.line();
            let text = line.trim_ascii();
            if matches!(text.first(), None | Some(b'#' | b'!')) {
                continue;
            }
            let key_end = key_end(text);
            let (key, rest) = text.split_at(key_end);
            let rest = rest.trim_ascii_start();
            let value = match rest.first() {
                Some(b'=' | b':') => rest.get(1..).unwrap_or_default(),
                _ => rest,
            };
            if key.is_empty() {
                continue;
            }
            return Some((unescaped(key), unescaped(value.trim_ascii())));
        }
        None
    }
}

impl<'b> Pairs<'b> {
    /// One line with its continuations; a comment never continues.
    fn line(&mut self) -> &'b [u8] {
        let all = self.rest;
        let comment = matches!(all.trim_ascii_start().first(), Some(b'#' | b'!'));
        let mut end = 0;
        loop {
            let rest = all.get(end..).unwrap_or_default();
            let Some(found) = memchr::memchr2(b'\r', b'\n', rest) else {
                self.rest = b"";
                return all;
            };
            end += found;
            let line = all.get(..end).unwrap_or_default();
            end += if rest.get(found..found + 2) == Some(b"\r\n") { 2 } else { 1 };
            if comment || !continues(line) {
                self.rest = all.get(end..).unwrap_or_default();
                return line;
            }
        }
    }
}

/// Whether an odd number of backslashes ends the line.
fn continues(line: &[u8]) -> bool {
    line.iter().rev().take_while(|it| **it == b'\\').count() % 2 == 1
}

/// The first `=`, `:` or blank that is not escaped.
fn key_end(text: &[u8]) -> usize {
    let mut escaped = false;
    let end = text.iter().position(|it| {
        let ends = !escaped && matches!(it, b'=' | b':' | b' ' | b'\t' | b'\x0c');
        escaped = !escaped && *it == b'\\';
        ends
    });
    end.unwrap_or(text.len())
}

fn unescaped(bytes: &[u8]) -> Cow<'_, str> {
    let text = match core::str::from_utf8(bytes) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => Cow::Owned(bytes.iter().copied().map(char::from).collect()),
    };
    if memchr::memchr(b'\\', bytes).is_none() {
        return text;
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(it) = rest.next() {
        if it != '\\' {
            out.push(it);
            continue;
        }
        match rest.next() {
            Some('t') => out.push('\t'),
            Some('n') => out.push('\n'),
            Some('r') => out.push('\r'),
            Some('f') => out.push('\x0c'),
            Some('u') => match unicode(rest.as_str()) {
                Some((decoded, tail)) => {
                    out.push(decoded);
                    rest = tail.chars();
                }
                None => out.push('u'),
            },
            Some('\r' | '\n') => {
                rest = rest.as_str().trim_ascii_start().chars(); // a continued line
            }
            Some(other) => out.push(other),
            None => {}
        }
    }
    Cow::Owned(out)
}

/// Reads what follows `\u`: four digits, or two such for a character beyond the basic plane.
fn unicode(text: &str) -> Option<(char, &str)> {
    let (first, rest) = four_digits(text)?;
    if let Some(Ok(decoded)) = decode_utf16([first]).next() {
        return Some((decoded, rest));
    }
    let (second, rest) = four_digits(rest.strip_prefix("\\u")?)?;
    Some((decode_utf16([first, second]).next()?.ok()?, rest))
}

fn four_digits(text: &str) -> Option<(u16, &str)> {
    let (digits, rest) = text.split_at_checked(4)?;
    let legal = digits.bytes().all(|it| it.is_ascii_hexdigit());
    Some((u16::from_str_radix(digits, 16).ok().filter(|_| legal)?, rest))
}
