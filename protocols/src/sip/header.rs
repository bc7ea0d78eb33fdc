//! The header section: lines, names, comma-joined values (RFC 3261 §7.3.1).
//!
//! Understands what peers send: CRLF or a lone LF, folded lines, blanks around the colon, compact
//! names (§7.3.3). Knows nothing of what the values mean.

use super::scan::{first_control, first_is};
use crate::bytes::{Span, offset};

/// One header: `Name: value`, with its folded continuation lines.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Line<'m> {
    pub(crate) kind: Name,
    /// As written.
    pub(crate) name: &'m [u8],
    /// From the first byte of the name to the next line, line end included.
    pub(crate) span: Span,
    /// A CR that ends no line, somewhere in it.
    pub(crate) lone_return: bool,
    bytes: &'m [u8],
    /// Just after the colon.
    value_at: usize,
    /// Where the line end begins.
    end: usize,
}

impl Line<'_> {
    /// The value without blanks and line ends at both sides; may hold folds in the middle.
    #[inline(always)]
    pub(crate) fn value(&self) -> Span {
        trim_span(self.bytes, self.value_at, self.end)
    }
}

/// What comes next in a header section.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Step<'m> {
    Line(Line<'m>),
    /// A line that is not `token:`.
    Bad(Span),
    /// The empty line: its first byte, and the first byte of the body.
    End {
        empty_line: usize,
        body: usize,
    },
    /// The bytes ended before the empty line.
    Cut,
}

/// Walks a header section, one line a step. Ends with [`Step::End`] or [`Step::Cut`].
#[derive(Clone, Debug)]
pub(crate) struct Lines<'m> {
    bytes: &'m [u8],
    at: usize,
}

impl<'m> Lines<'m> {
    /// Begins at `at`, just after the start line.
    pub(crate) fn new(bytes: &'m [u8], at: usize) -> Self {
        Lines { bytes, at }
    }

    #[inline(always)]
    pub(crate) fn step(&mut self) -> Step<'m> {
        let start = self.at;
        let mut scan = start;
        let mut lone_return = false;
        let (end, next) = loop {
            let Some((end, next)) = line_end(self.bytes, scan) else { return Step::Cut };
            if next == end {
                lone_return = true;
                scan = end + 1;
                continue;
            }
            if end == start {
                return Step::End { empty_line: start, body: next };
            }
            if matches!(self.bytes.get(next), Some(b' ' | b'\t')) {
                scan = next;
                continue;
            }
            break (end, next);
        };
        self.at = next;
        let span = Span::new(start, next);
        let text = self.bytes.get(start..end).unwrap_or_default();
        let (kind, length, colon) = match usual_name(text) {
            Some((kind, length)) => (kind, length, length),
            None => {
                let length = text.iter().position(|it| !is_token(*it)).unwrap_or(text.len());
                let (name, rest) = text.split_at(length);
                let blanks = rest.iter().position(|it| !is_blank(*it)).unwrap_or(rest.len());
                if name.is_empty() || rest.get(blanks) != Some(&b':') {
                    return Step::Bad(span);
                }
                (Name::of(name), length, length + blanks)
            }
        };
        let name = text.get(..length).unwrap_or_default();
        let value_at = start + colon + 1;
        Step::Line(Line { kind, name, span, lone_return, bytes: self.bytes, value_at, end })
    }
}

/// The names a message always has, as nearly everybody spells them, and their lengths: what is found
/// here needs no look at each byte.
#[inline(always)]
fn usual_name(text: &[u8]) -> Option<(Name, usize)> {
    Some(match text.first()? {
        b'V' if text.starts_with(b"Via:") => (Name::Via, 3),
        b'F' if text.starts_with(b"From:") => (Name::From, 4),
        b'T' if text.starts_with(b"To:") => (Name::To, 2),
        b'C' if text.starts_with(b"CSeq:") => (Name::Cseq, 4),
        b'C' if text.starts_with(b"Call-ID:") => (Name::CallId, 7),
        b'C' if text.starts_with(b"Contact:") => (Name::Contact, 7),
        b'C' if text.starts_with(b"Content-Length:") => (Name::ContentLength, 14),
        b'C' if text.starts_with(b"Content-Type:") => (Name::Other, 12),
        b'M' if text.starts_with(b"Max-Forwards:") => (Name::MaxForwards, 12),
        b'R' if text.starts_with(b"Route:") => (Name::Route, 5),
        b'R' if text.starts_with(b"Record-Route:") => (Name::RecordRoute, 12),
        b'U' if text.starts_with(b"User-Agent:") => (Name::UserAgent, 10),
        b'A' if text.starts_with(b"Allow:") => (Name::Other, 5),
        b'S' if text.starts_with(b"Supported:") => (Name::Other, 9),
        _ => return None,
    })
}

/// The lines that can be read and have no stray CR: what may be copied into an answer.
pub(crate) fn good_lines(bytes: &[u8], at: usize) -> impl Iterator<Item = Line<'_>> {
    let mut lines = Lines::new(bytes, at);
    core::iter::from_fn(move || {
        loop {
            match lines.step() {
                Step::Line(line) if !line.lone_return => return Some(line),
                Step::Line(_) | Step::Bad(_) => {}
                Step::End { .. } | Step::Cut => return None,
            }
        }
    })
}

/// The next line end at or after `from`: where it begins and where the next line does. A CR without
/// LF is reported as a line end of no length.
#[inline(always)]
pub(crate) fn line_end(bytes: &[u8], from: usize) -> Option<(usize, usize)> {
    let mut end = from;
    loop {
        end += first_control(bytes.get(end..)?)?;
        match (bytes.get(end), bytes.get(end + 1)) {
            (Some(b'\r'), Some(b'\n')) => return Some((end, end + 2)),
            (Some(b'\n'), _) => return Some((end, end + 1)),
            (Some(b'\r'), _) => return Some((end, end)),
            _ => end += 1,
        }
    }
}

/// The names a balancer reads.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Name {
    Via,
    Route,
    RecordRoute,
    From,
    To,
    CallId,
    Cseq,
    MaxForwards,
    Contact,
    UserAgent,
    ContentLength,
    InitialRemote,
    Heartbeat,
    Other,
}

impl Name {
    /// Case does not matter; compact forms are understood.
    #[inline]
    pub(crate) fn of(name: &[u8]) -> Name {
        let first = name.first().map_or(0, u8::to_ascii_lowercase);
        let (full, kind): (&[u8], Name) = match (name.len(), first) {
            (1, b'v') => return Name::Via,
            (1, b'f') => return Name::From,
            (1, b't') => return Name::To,
            (1, b'i') => return Name::CallId,
            (1, b'm') => return Name::Contact,
            (1, b'l') => return Name::ContentLength,
            (2, b't') => (b"to", Name::To),
            (3, b'v') => (b"via", Name::Via),
            (4, b'f') => (b"from", Name::From),
            (4, b'c') => (b"cseq", Name::Cseq),
            (5, b'r') => (b"route", Name::Route),
            (7, b'c') if name.get(4) == Some(&b'-') => (b"call-id", Name::CallId),
            (7, b'c') => (b"contact", Name::Contact),
            (10, b'u') => (b"user-agent", Name::UserAgent),
            (12, b'm') => (b"max-forwards", Name::MaxForwards),
            (12, b'r') => (b"record-route", Name::RecordRoute),
            (14, b'c') => (b"content-length", Name::ContentLength),
            (18, b'r') => (b"restcomm-heartbeat", Name::Heartbeat),
            (19, b'm') => (b"mobicents-heartbeat", Name::Heartbeat),
            (32, b'x') if matches!(name.last(), Some(b'r' | b'R')) => {
                (b"x-sip-balancer-initialremoteaddr", Name::InitialRemote)
            }
            (32, b'x') => (b"x-sip-balancer-initialremoteport", Name::InitialRemote),
            _ => return Name::Other,
        };
        if name.eq_ignore_ascii_case(full) { kind } else { Name::Other }
    }
}

/// A header name to look for, in either of its forms.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'n> {
    full: &'n [u8],
    compact: u8,
}

impl<'n> Wanted<'n> {
    pub(crate) fn new(name: &'n [u8]) -> Self {
        for (compact, full) in COMPACT {
            if name.eq_ignore_ascii_case(&[*compact]) || name.eq_ignore_ascii_case(full) {
                return Wanted { full, compact: *compact };
            }
        }
        Wanted { full: name, compact: 0 }
    }

    #[inline]
    pub(crate) fn is(&self, name: &[u8]) -> bool {
        match name {
            [letter] if self.compact != 0 => letter.eq_ignore_ascii_case(&self.compact),
            _ => name.len() == self.full.len() && name.eq_ignore_ascii_case(self.full),
        }
    }
}

/// Calls `each` with every value of a comma-joined list: its span, and where the next one begins,
/// if there is one. Empty elements are no values. Commas inside quotes and `<>` join nothing; nor,
/// with `comments`, those in parentheses, which only Via may have.
pub(crate) fn split_list(
    bytes: &[u8],
    list: Span,
    comments: bool,
    mut each: impl FnMut(Span, Option<u32>),
) {
    let text = list.of(bytes);
    if first_is(text, b',').is_none() {
        if !text.is_empty() {
            each(list, None);
        }
        return;
    }
    let base = list.start as usize;
    let mut pending: Option<Span> = None;
    let mut start = 0;
    while start <= text.len() {
        let end = start + list_element(text.get(start..).unwrap_or_default(), comments);
        let value = trim_span(bytes, base + start, base + end);
        if !value.is_empty()
            && let Some(before) = pending.replace(value)
        {
            each(before, Some(value.start));
        }
        start = end + 1;
    }
    if let Some(last) = pending {
        each(last, None);
    }
}

/// Bytes before the comma that ends the first element of `text`.
pub(crate) fn list_element(text: &[u8], comments: bool) -> usize {
    if first_is(text, b',').is_none() {
        return text.len();
    }
    let mut quoted = false;
    let mut angled = false;
    let mut depth = 0usize;
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        match byte {
            b'\\' if quoted || depth > 0 => at += 1,
            b'"' if !angled && depth == 0 => quoted = !quoted,
            _ if quoted => {}
            // Nothing but `>` counts from here on, and it is some tens of bytes away.
            b'<' if !comments => {
                let rest = text.get(at..).unwrap_or_default();
                let Some(inside) = first_is(rest, b'>') else { return text.len() };
                at += inside;
            }
            b'<' if depth == 0 => angled = true,
            b'>' if depth == 0 => angled = false,
            b'(' if comments => depth += 1,
            b')' if comments => depth = depth.saturating_sub(1),
            b',' if !angled && depth == 0 => return at,
            _ => {}
        }
        at += 1;
    }
    text.len()
}

/// `start..end` without blanks and line ends at both sides.
#[inline(always)]
pub(crate) fn trim_span(bytes: &[u8], start: usize, end: usize) -> Span {
    // At most one blank in front and none behind, as nearly everybody writes.
    let from = start + usize::from(bytes.get(start) == Some(&b' '));
    let text = bytes.get(from..end).unwrap_or_default();
    let is_tight = |it: Option<&u8>| it.is_some_and(|it| !is_blank(*it));
    if is_tight(text.first()) && is_tight(text.last()) {
        return Span::new(from, end);
    }
    trim_blanks(text, from)
}

/// `text` begins at `start`.
#[cold]
fn trim_blanks(text: &[u8], start: usize) -> Span {
    let behind = trim_start(text);
    let start = start + (text.len() - behind.len());
    Span { start: offset(start), end: offset(start + trim_end(behind).len()) }
}

/// Without blanks and line ends at both sides.
#[inline]
pub(crate) fn trim(text: &[u8]) -> &[u8] {
    trim_end(trim_start(text))
}

#[inline(always)]
fn trim_start(mut text: &[u8]) -> &[u8] {
    while let [first, rest @ ..] = text
        && is_blank(*first)
    {
        text = rest;
    }
    text
}

#[inline(always)]
pub(crate) fn trim_end(mut text: &[u8]) -> &[u8] {
    while let [rest @ .., last] = text
        && is_blank(*last)
    {
        text = rest;
    }
    text
}

/// Linear white space of a value: blank, tab, and the line ends of folds.
#[inline]
pub(crate) const fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

/// RFC 3261 §25.1 `token`.
#[inline]
#[expect(clippy::indexing_slicing, reason = "a byte is below 256")]
pub(crate) const fn is_token(byte: u8) -> bool {
    CLASSES[byte as usize] & TOKEN != 0
}

/// A byte of a host name or an IPv4 address. Underscores pass: they are no host names, but networks
/// have them.
#[inline]
#[expect(clippy::indexing_slicing, reason = "a byte is below 256")]
pub(crate) const fn is_host(byte: u8) -> bool {
    CLASSES[byte as usize] & HOST != 0
}

const TOKEN: u8 = 1;
const HOST: u8 = 2;

#[expect(clippy::indexing_slicing, reason = "a byte is below 256")]
const CLASSES: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0u8;
    loop {
        table[byte as usize] = match byte {
            b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'-' | b'.' | b'_' => TOKEN | HOST,
            b'!' | b'%' | b'*' | b'+' | b'`' | b'\'' | b'~' => TOKEN,
            _ => 0,
        };
        if byte == u8::MAX {
            break table;
        }
        byte += 1;
    }
};

/// Compact names (RFC 3261 §7.3.3 and the IANA registry of header fields).
const COMPACT: &[(u8, &[u8])] = &[
    (b'a', b"Accept-Contact"),
    (b'b', b"Referred-By"),
    (b'c', b"Content-Type"),
    (b'd', b"Request-Disposition"),
    (b'e', b"Content-Encoding"),
    (b'f', b"From"),
    (b'i', b"Call-ID"),
    (b'j', b"Reject-Contact"),
    (b'k', b"Supported"),
    (b'l', b"Content-Length"),
    (b'm', b"Contact"),
    (b'n', b"Identity-Info"),
    (b'o', b"Event"),
    (b'r', b"Refer-To"),
    (b's', b"Subject"),
    (b't', b"To"),
    (b'u', b"Allow-Events"),
    (b'v', b"Via"),
    (b'x', b"Session-Expires"),
    (b'y', b"Identity"),
];

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use super::*;
    use crate::testing::Random;

    #[test]
    fn sections_become_lines() {
        let text = b"A: 1\r\nb\t : \t2 \nC:\r\n  3\r\n\t4 \r\nD:5\r6\r\nE:\r\n\r\nbody";
        let mut lines = Lines::new(text, 0);
        type Row = (&'static [u8], &'static [u8], &'static [u8], bool);
        let want: &[Row] = &[
            (b"A", b"1", b"A: 1\r\n", false),
            (b"b", b"2", b"b\t : \t2 \n", false),
            (b"C", b"3\r\n\t4", b"C:\r\n  3\r\n\t4 \r\n", false),
            (b"D", b"5\r6", b"D:5\r6\r\n", true),
            (b"E", b"", b"E:\r\n", false),
        ];
        for (name, value, span, lone_return) in want {
            let Step::Line(line) = lines.step() else { panic!("{}", name.escape_ascii()) };
            let got = (line.name, line.value().of(text), line.span.of(text), line.lone_return);
            assert_eq!(got, (*name, *value, *span, *lone_return));
        }
        assert_eq!(lines.step(), Step::End { empty_line: 40, body: 42 });
    }

    #[test]
    fn what_is_no_header_is_said_to_be_none() {
        for text in ["no colon\r\nx", " folded: first\r\nx", ": no name\r\nx", "a b: c\r\nx"] {
            let step = Lines::new(text.as_bytes(), 0).step();
            assert_eq!(step, Step::Bad(Span::new(0, text.len() - 1)), "{text}");
        }
        // A header is whole once the line after it is known not to continue it, or the bytes end.
        for text in ["", "A: 1", "A: 1\r"] {
            assert_eq!(Lines::new(text.as_bytes(), 0).step(), Step::Cut, "{text}");
        }
    }

    #[test]
    fn names_are_known_in_any_case_and_in_short() {
        let cases: &[(&str, Name)] = &[
            ("Via", Name::Via),
            ("v", Name::Via),
            ("ROUTE", Name::Route),
            ("record-route", Name::RecordRoute),
            ("From", Name::From),
            ("F", Name::From),
            ("to", Name::To),
            ("T", Name::To),
            ("Call-ID", Name::CallId),
            ("i", Name::CallId),
            ("CSeq", Name::Cseq),
            ("Max-Forwards", Name::MaxForwards),
            ("Contact", Name::Contact),
            ("m", Name::Contact),
            ("User-Agent", Name::UserAgent),
            ("Content-Length", Name::ContentLength),
            ("L", Name::ContentLength),
            ("X-Sip-Balancer-InitialRemoteAddr", Name::InitialRemote),
            ("x-sip-balancer-initialremoteport", Name::InitialRemote),
            ("Mobicents-Heartbeat", Name::Heartbeat),
            ("Restcomm-Heartbeat", Name::Heartbeat),
            ("Vias", Name::Other),
            ("Vib", Name::Other),
            ("Content", Name::Other),
            ("Content-Type", Name::Other),
            ("Allow", Name::Other),
            ("Supported", Name::Other),
            ("X-Sip-Balancer-InitialRemoteHost", Name::Other),
            ("s", Name::Other),
            ("", Name::Other),
        ];
        for (name, want) in cases {
            assert_eq!(Name::of(name.as_bytes()), *want, "{name}");
            let text = [name.as_bytes(), b":x\r\ny"].concat();
            match Lines::new(&text, 0).step() {
                Step::Line(line) => assert_eq!((line.kind, line.name), (*want, name.as_bytes())),
                _ => assert_eq!(*name, ""),
            }
        }
        for (wanted, name, want) in [
            ("Subject", "s", true),
            ("s", "SUBJECT", true),
            ("Call-ID", "I", true),
            ("X-Account", "x-account", true),
            ("X-Account", "x", false),
            ("x", "Session-Expires", true),
            ("q", "Q", true),
            ("Subject", "t", false),
        ] {
            assert_eq!(Wanted::new(wanted.as_bytes()).is(name.as_bytes()), want, "{wanted} {name}");
        }
    }

    #[test]
    fn lists_fall_apart_at_commas_that_join() {
        let cases: &[(&str, bool, &[&str])] = &[
            ("", false, &[]),
            (" , ,", false, &[]),
            ("a", false, &["a"]),
            ("a,b ,\r\n c", false, &["a", "b", "c"]),
            (",a,,b,", false, &["a", "b"]),
            (
                "<sip:a,b>, \"x, \\\" y\" <sip:c>;q=\",\"",
                false,
                &["<sip:a,b>", "\"x, \\\" y\" <sip:c>;q=\",\""],
            ),
            ("a (x, (y) \\), z), b", true, &["a (x, (y) \\), z)", "b"]),
            ("<sip:a(b>, <sip:c)>", false, &["<sip:a(b>", "<sip:c)>"]),
            ("\"open, b", false, &["\"open, b"]),
        ];
        for (text, comments, want) in cases {
            let bytes = text.as_bytes();
            let mut got = Vec::new();
            let mut nexts = Vec::new();
            split_list(bytes, Span::new(0, bytes.len()), *comments, |span, next| {
                got.push(span);
                nexts.push(next);
            });
            let texts: Vec<_> = got.iter().map(|it| it.of(bytes)).collect();
            let want: Vec<_> = want.iter().map(|it| it.as_bytes()).collect();
            let want_nexts: Vec<_> =
                (1..=got.len()).map(|at| got.get(at).map(|it| it.start)).collect();
            assert_eq!(texts, want, "{text}");
            assert_eq!(nexts, want_nexts, "{text}");
        }
    }

    #[test]
    fn lines_and_what_is_between_them_are_all_the_bytes() {
        for seed in 0..3_000 {
            let text = Random::new(seed).mutate(b"A: 1\r\nVia : x,\r\n y\r\nb: \"c\"\r\n\r\nbody");
            let mut lines = Lines::new(&text, 0);
            let mut at = 0;
            loop {
                match lines.step() {
                    Step::Line(line) => {
                        let (span, value) = (line.span, line.value());
                        assert_eq!(line.kind, Name::of(line.name), "seed {seed}");
                        assert_eq!(span.start, at, "seed {seed}");
                        assert!(value.start >= at && value.end <= span.end, "seed {seed}");
                        at = span.end;
                    }
                    Step::Bad(span) => {
                        assert_eq!(span.start, at, "seed {seed}");
                        at = span.end;
                    }
                    Step::End { empty_line, body } => {
                        assert_eq!(offset(empty_line), at, "seed {seed}");
                        assert!(body <= text.len(), "seed {seed}");
                        break;
                    }
                    Step::Cut => break,
                }
            }
        }
    }
}
