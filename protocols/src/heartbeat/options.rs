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

#[cfg(test)]
mod tests {
    extern crate std;

    use std::string::ToString;
    use std::vec::Vec;

    use super::*;
    use crate::testing::Random;

    #[test]
    fn bodies_become_pairs() {
        type Pairs = &'static [(&'static str, &'static str)];
        let cases: &[(&str, &[u8], Pairs)] = &[
            ("nothing", b"", &[]),
            (
                "as the guide shows",
                b"tcpPort=5070\nudpPort=5070\nhostname=sipHeartbeat\nip=127.0.0.1\n",
                &[
                    ("tcpPort", "5070"),
                    ("udpPort", "5070"),
                    ("hostname", "sipHeartbeat"),
                    ("ip", "127.0.0.1"),
                ],
            ),
            (
                "CRLF, blanks, no last line end",
                b" a = 1 \r\n\r\n b\t=\t2",
                &[("a", "1"), ("b", "2")],
            ),
            ("lone CR", b"a=1\rb=2", &[("a", "1"), ("b", "2")]),
            ("as Java writes it", b"#Sat Feb 13 2016\na=1\n!x\n", &[("a", "1")]),
            (
                "other separators",
                b"a:1\nb 2\nc : 3\nd",
                &[("a", "1"), ("b", "2"), ("c", "3"), ("d", "")],
            ),
            ("a value with separators", b"url=http\\://h:1/x=y", &[("url", "http://h:1/x=y")]),
            (
                "an IPv6 address",
                b"ip=2001:db8::1\nip\\:x=1",
                &[("ip", "2001:db8::1"), ("ip:x", "1")],
            ),
            ("no key", b"=1\na=2", &[("a", "2")]),
            ("escapes", b"a=\\t\\n\\\\\\q", &[("a", "\t\n\\q")]),
            ("unicode", b"a=\\u00e9\\ud83d\\ude00\\u12", &[("a", "\u{e9}\u{1f600}u12")]),
            ("half a pair of surrogates", b"a=\\ud83dx", &[("a", "ud83dx")]),
            ("continued", b"a=1,\\\r\n   2\nb=3", &[("a", "1,2"), ("b", "3")]),
            ("a comment never continues", b"# x\\\na=1", &[("a", "1")]),
            ("an even number of backslashes ends", b"a=1\\\\\nb=2", &[("a", "1\\"), ("b", "2")]),
            ("UTF-8", "a=é".as_bytes(), &[("a", "é")]),
            ("Latin-1", b"a=\xe9", &[("a", "é")]),
        ];
        for (name, body, want) in cases {
            let got: Vec<_> = pairs(body).map(|(k, v)| (k.to_string(), v.to_string())).collect();
            let want: Vec<_> = want.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
            assert_eq!(got, want, "{name}");
        }
    }

    #[test]
    fn any_bytes_end() {
        for seed in 0..3_000 {
            let body =
                Random::new(seed).mutate(b"ip=1.2.3.4\r\nudpPort=5060\\\r\n \\u0031\nversion : 0");
            assert!(pairs(&body).count() <= body.len(), "seed {seed}");
        }
    }
}
