//! Java properties files, as `java.util.Properties` reads them, with line numbers.
//!
//! Comments `#` and `!`, separators `=`, `:` and blanks, continuation by a trailing backslash, `\uXXXX`.
//! Beyond Java: UTF-8 where the whole file is UTF-8 (else Latin-1), a byte order mark, trimmed values.

use super::load::{Entry, Finding, Name};

/// Reads all entries in file order. Bad escapes are findings; the entry stays, as far as it was read.
pub(super) fn read(text: &str, findings: &mut Vec<Finding>) -> Vec<Entry> {
    let mut lines = Lines { rest: text, line: 0 };
    let mut entries = Vec::new();
    let mut after_comment = false;
    while let Some((line, first)) = lines.next_line() {
        let first = first.trim_start_matches(is_blank);
        if first.is_empty() {
            after_comment = false;
            continue;
        }
        if first.starts_with(['#', '!']) {
            after_comment = true;
            continue;
        }
        let mut logical = String::new();
        let mut natural = first;
        while let Some(continued) = without_continuation(natural) {
            logical.push_str(continued);
            let Some((_, next)) = lines.next_line() else {
                natural = "";
                break;
            };
            natural = next.trim_start_matches(is_blank);
        }
        logical.push_str(natural);
        let (key, value) = split(&logical);
        let mut plain = |text: &str| {
            unescape(text).unwrap_or_else(|(so_far, bad)| {
                let text =
                    format!("\"{bad}\" is not allowed here; allowed is \\u and four hex digits");
                findings.push(Finding::error(None, Some(line), text));
                so_far
            })
        };
        entries.push(Entry {
            name: Name::Property(plain(key).trim().to_owned()),
            text: plain(value).trim().to_owned(),
            line,
            after_comment,
        });
        // A wrapped comment may wrap more than once.
        after_comment = after_comment && !logical.contains('=');
    }
    entries
}

/// Natural lines with their numbers, from 1; `\n`, `\r` and `\r\n` end one.
struct Lines<'t> {
    rest: &'t str,
    line: u32,
}

impl<'t> Lines<'t> {
    fn next_line(&mut self) -> Option<(u32, &'t str)> {
        if self.rest.is_empty() {
            return None;
        }
        self.line = self.line.saturating_add(1);
        let (line, rest) = self.rest.split_once(['\n', '\r']).unwrap_or((self.rest, ""));
        let is_crlf = self.rest.as_bytes().get(line.len()) == Some(&b'\r');
        self.rest = rest.strip_prefix('\n').filter(|_| is_crlf).unwrap_or(rest);
        Some((self.line, line))
    }
}

/// The line without its last backslash, if that one continues it: an odd number stands at the end.
fn without_continuation(line: &str) -> Option<&str> {
    let backslashes = line.bytes().rev().take_while(|it| *it == b'\\').count();
    line.strip_suffix('\\').filter(|_| backslashes % 2 == 1)
}

/// Key and value, both still escaped.
fn split(line: &str) -> (&str, &str) {
    let mut is_escaped = false;
    let end = line.find(|it: char| {
        let ends = !is_escaped && (is_blank(it) || it == '=' || it == ':');
        is_escaped = it == '\\' && !is_escaped;
        ends
    });
    let (key, rest) = line.split_at_checked(end.unwrap_or(line.len())).unwrap_or((line, ""));
    let rest = rest.trim_start_matches(is_blank);
    let value = rest.strip_prefix(['=', ':']).unwrap_or(rest);
    (key, value.trim_start_matches(is_blank))
}

/// Resolves escapes. The error holds the text up to the bad escape, and that escape.
fn unescape(text: &str) -> Result<String, (String, String)> {
    let mut out = String::with_capacity(text.len());
    let mut high = None; // the first half of a surrogate pair
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        let mut low = None;
        let plain = match character {
            '\\' => match characters.next() {
                None => break,
                Some('t') => '\t',
                Some('n') => '\n',
                Some('r') => '\r',
                Some('f') => '\u{c}',
                Some('u') => {
                    let digits: String = characters.by_ref().take(4).collect();
                    let unit = Some(&digits)
                        .filter(|it| it.len() == 4 && it.bytes().all(|it| it.is_ascii_hexdigit()))
                        .and_then(|it| u16::from_str_radix(it, 16).ok());
                    let Some(unit) = unit else {
                        return Err((out, format!("\\u{digits}")));
                    };
                    low = Some(unit);
                    char::from_u32(u32::from(unit)).unwrap_or(char::REPLACEMENT_CHARACTER)
                }
                Some(other) => other,
            },
            other => other,
        };
        let pair = high.take().zip(low).and_then(|(high, low)| {
            char::decode_utf16([high, low])
                .next()
                .and_then(Result::ok)
                .filter(|it| *it > '\u{ffff}')
        });
        match pair {
            Some(pair) => {
                out.pop(); // the replacement character of the first half
                out.push(pair);
            }
            None => {
                out.push(plain);
                high = low.filter(|it| (0xd800..0xdc00).contains(it));
            }
        }
    }
    Ok(out)
}

fn is_blank(it: char) -> bool {
    matches!(it, ' ' | '\t' | '\u{c}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_become_entries_as_in_java() {
        type Want<'w> = &'w [(u32, &'w str, &'w str)];
        let cases: &[(&str, &str, Want<'_>)] = &[
            ("nothing", "", &[]),
            ("blanks and comments", "\n  \t\n#a=1\n !b=2\n\u{c}\n", &[]),
            (
                "separators",
                "a=1\nb:2\nc 3\nd\t4",
                &[(1, "a", "1"), (2, "b", "2"), (3, "c", "3"), (4, "d", "4")],
            ),
            ("blanks around the separator", " a = 1 \nb\t:\t2", &[(1, "a", "1"), (2, "b", "2")]),
            (
                "one separator only",
                "a==1\nb=:2\nc : = 3",
                &[(1, "a", "=1"), (2, "b", ":2"), (3, "c", "= 3")],
            ),
            ("a key alone", "a\nb=\n=c", &[(1, "a", ""), (2, "b", ""), (3, "", "c")]),
            ("escaped separators", r"a\=b\:c\ d=1", &[(1, "a=b:c d", "1")]),
            (
                "line ends",
                "a=1\rb=2\r\nc=3\n\rd=4",
                &[(1, "a", "1"), (2, "b", "2"), (3, "c", "3"), (5, "d", "4")],
            ),
            ("continuation", "a=1,\\\n   2,\\\r\n\t3\nb=4", &[(1, "a", "1,2,3"), (4, "b", "4")]),
            ("continuation of the key", "a\\\n b=1", &[(1, "ab", "1")]),
            ("no comment after continuation", "a=1\\\n#2", &[(1, "a", "1#2")]),
            ("two backslashes end the line", "a=1\\\\\nb=2", &[(1, "a", "1\\"), (2, "b", "2")]),
            ("three do not", "a=1\\\\\\\nb=2", &[(1, "a", "1\\b=2")]),
            ("a comment is not continued", "#a\\\nb=2", &[(2, "b", "2")]),
            ("continuation at the end", "a=1\\", &[(1, "a", "1")]),
            ("escapes", r"a=\t\n\r\f\q\\x", &[(1, "a", "\t\n\r\u{c}q\\x")]),
            ("unicode", r"a=\u00e4\u20AC\uD83D\uDE00", &[(1, "a", "ä€😀")]),
            ("half a pair", r"a=\uD83Dx\uDE00", &[(1, "a", "\u{fffd}x\u{fffd}")]),
            ("backslash u by hand", r"a=\\u00e4", &[(1, "a", r"\u00e4")]),
        ];
        for (name, text, want) in cases {
            let mut findings = Vec::new();
            let entries = read(text, &mut findings);
            let got: Vec<_> = entries
                .iter()
                .map(|it| match &it.name {
                    Name::Property(name) => (it.line, name.as_str(), it.text.as_str()),
                    Name::Element(_) => panic!("{name}"),
                })
                .collect();
            // What Java would trim from the ends, we trim too.
            let want: Vec<_> = want.iter().map(|it| (it.0, it.1, it.2.trim())).collect();
            assert_eq!(got, want, "{name}");
            assert_eq!(findings, Vec::new(), "{name}");
        }
    }

    #[test]
    fn a_bad_escape_is_found_with_its_line() {
        for (text, bad) in [
            ("\na=x\\u12", "12"),
            ("\na=x\\u12g4", "12g4"),
            ("\na=x\\u+123", "+123"),
            ("\na=x\\u", ""),
        ] {
            let mut findings = Vec::new();
            let entries = read(text, &mut findings);
            assert_eq!(entries[0].text, "x", "{text}");
            assert_eq!(findings.len(), 1, "{text}");
            assert_eq!(findings[0].line, Some(2), "{text}");
            assert!(findings[0].text.starts_with(&format!("\"\\u{bad}\" is")), "{text}");
        }
    }
}
