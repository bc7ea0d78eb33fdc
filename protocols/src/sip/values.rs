//! What a message has more than one of: comma-joined values and repeated lines, kept by position.

use super::header::{list_element, split_list, trim_span};
use crate::bytes::{Edits, Span, offset};

/// One value of a comma-joined header.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Value {
    /// The value, without blanks around it.
    pub span: Span,
    /// The header line it stands in, with folds and line end.
    pub line: Span,
    /// Where the next value of the same line begins; the end of the line if it is the last one.
    pub next: u32,
}

/// The values of a header, in order, over repeated lines. The first `N` are kept, all are counted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Values<const N: usize> {
    kept: [Value; N],
    count: u16,
}

impl<const N: usize> Values<N> {
    pub(crate) const NONE: Self =
        Values { kept: [Value { span: ZERO, line: ZERO, next: 0 }; N], count: 0 };

    /// The top one.
    pub fn first(&self) -> Option<Value> {
        self.get(0)
    }

    /// The one at that position, 0 at the top; `None` from `N` on even if there are more.
    pub fn get(&self, at: usize) -> Option<Value> {
        self.as_slice().get(at).copied()
    }

    /// Those kept.
    pub fn as_slice(&self) -> &[Value] {
        self.kept.get(..usize::from(self.count).min(N)).unwrap_or_default()
    }

    /// How many the message has, kept or not.
    pub fn len(&self) -> usize {
        usize::from(self.count)
    }

    /// Whether the message has none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Keeps the values of the list `value` in the header `line`.
    pub(crate) fn note(&mut self, bytes: &[u8], value: Span, line: Span, comments: bool) {
        split_list(bytes, value, comments, |span, next| {
            if let Some(free) = self.kept.get_mut(usize::from(self.count)) {
                *free = Value { span, line, next: next.unwrap_or(line.end) };
            }
            self.count = self.count.saturating_add(1);
        });
    }
}

/// The values of the list `value` in the header `line`, one after the other. Only Via has comments, and
/// is not read like this.
pub(crate) fn list(bytes: &[u8], value: Span, line: Span) -> impl Iterator<Item = Value> + '_ {
    let mut from = value.start;
    let mut element = move || {
        loop {
            let rest = Span { start: from, end: value.end }.of(bytes);
            if rest.is_empty() {
                return None;
            }
            let start = from as usize;
            let end = start + list_element(rest, false);
            from = offset(end + 1).min(value.end);
            let span = trim_span(bytes, start, end);
            if !span.is_empty() {
                return Some(span);
            }
        }
    };
    let mut ahead = element();
    core::iter::from_fn(move || {
        let span = ahead?;
        ahead = element();
        Some(Value { span, line, next: ahead.map_or(line.end, |it| it.start) })
    })
}

/// Cuts the first `count` values: lines that empty go whole, else each value with its comma. Lines of
/// other headers in between stay. At most the `N` kept are cut.
pub fn remove_values<const N: usize>(values: &Values<N>, count: usize, edits: &mut Edits) {
    remove(values.as_slice().iter().copied().take(count), edits);
}

/// Cuts the values that stand in front of all others of their header.
pub(crate) fn remove(cut: impl Iterator<Item = Value>, edits: &mut Edits) {
    let mut cut = cut.peekable();
    // Lines that stand together go in one piece: there are more of them than edits.
    let mut run: Option<Span> = None;
    while let Some(first) = cut.next() {
        let mut last = first;
        while let Some(more) = cut.next_if(|it| it.line == first.line) {
            last = more;
        }
        let span = if last.next == first.line.end {
            first.line
        } else {
            Span { start: first.span.start, end: last.next }
        };
        match &mut run {
            Some(run) if run.end == span.start => run.end = span.end,
            _ => {
                if let Some(run) = run.replace(span) {
                    edits.remove(run);
                }
            }
        }
    }
    if let Some(run) = run {
        edits.remove(run);
    }
}

/// Header lines of one kind, whole; the first `N` are kept and a message with more is malformed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct HeaderLines<const N: usize> {
    kept: [Span; N],
    count: usize,
}

impl<const N: usize> HeaderLines<N> {
    pub(crate) const NONE: Self = HeaderLines { kept: [ZERO; N], count: 0 };

    /// From the name to the line end.
    pub fn as_slice(&self) -> &[Span] {
        self.kept.get(..self.count).unwrap_or_default()
    }

    /// Keeps one more; `false` if there is no room.
    pub(crate) fn note(&mut self, line: Span) -> bool {
        let Some(free) = self.kept.get_mut(self.count) else { return false };
        *free = line;
        self.count += 1;
        true
    }
}

const ZERO: Span = Span { start: 0, end: 0 };

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use super::*;
    use crate::sip::message::Message;
    use crate::testing::INVITE;

    /// `INVITE` with other Route lines.
    fn with_routes(lines: &[u8]) -> Vec<u8> {
        let text = core::str::from_utf8(INVITE).unwrap();
        let (before, rest) = text.split_once("Route: ").unwrap();
        let (_, after) = rest.split_once("\r\n").unwrap();
        [before.as_bytes(), lines, after.as_bytes()].concat()
    }

    #[test]
    fn the_first_values_are_cut_and_nothing_else() {
        let cases: &[(&str, usize, &str)] = &[
            ("Route: <a>\r\n", 0, "Route: <a>\r\n"),
            ("Route: <a>\r\n", 1, ""),
            ("Route: <a>\r\n", 9, ""),
            ("Route: <a>\r\nX: 1\r\nRoute: <b>\r\n", 1, "X: 1\r\nRoute: <b>\r\n"),
            ("Route: <a>\r\nX: 1\r\nRoute: <b>\r\n", 2, "X: 1\r\n"),
            ("Route: <a>,<b>\r\n", 1, "Route: <b>\r\n"),
            ("Route : <a> , \r\n <b>;x=\",\" ,<c>\r\n", 1, "Route : <b>;x=\",\" ,<c>\r\n"),
            ("Route : <a> , \r\n <b>;x=\",\" ,<c>\r\n", 2, "Route : <c>\r\n"),
            ("Route: <a>, <b>\r\nroute: <c>, <d>\r\n", 3, "route: <d>\r\n"),
            ("Route: <a>, <b>\r\nroute: <c>, <d>\r\n", 2, "route: <c>, <d>\r\n"),
            ("Route: <a>,,<b>,\nRoute: <c>\n", 1, "Route: <b>,\nRoute: <c>\n"),
            ("Route: <1>,<2>,<3>,<4>,<5>,<6>,<7>,<8>\r\n", 9, "Route: <7>,<8>\r\n"),
        ];
        for (lines, count, want) in cases {
            let input = with_routes(lines.as_bytes());
            let message = Message::parse(&input, None).unwrap();
            let mut edits = Edits::new();
            remove_values(&message.routes, *count, &mut edits);
            let mut out = Vec::new();
            edits.apply(message.bytes, &mut out).unwrap();
            let want = with_routes(want.as_bytes());
            assert_eq!(out, want, "{lines} less {count}: {}", out.escape_ascii());
        }
    }

    #[test]
    fn more_values_than_are_kept_are_counted() {
        let input = with_routes(b"Route: <1>,<2>,<3>\r\nRoute: <4>,<5>,<6>,<7>\r\nRoute:\r\n");
        let routes = Message::parse(&input, None).unwrap().routes;
        assert_eq!((routes.len(), routes.as_slice().len()), (7, 6));
        let texts: Vec<_> = routes.as_slice().iter().map(|it| it.span.of(&input)).collect();
        assert_eq!(texts.concat(), b"<1><2><3><4><5><6>");
        assert_eq!(routes.get(5).unwrap().line.of(&input), b"Route: <4>,<5>,<6>,<7>\r\n");
        assert_eq!(routes.get(6), None);
    }

    #[test]
    fn every_route_is_found_and_cut_whether_it_is_kept_or_not() {
        let lines = "Route: <1>, <2>,,<3>\r\nX: 1\r\nRoute: <4>,<5> ,<6>\r\n , <7>;x=\",\" ,<8>,\r\nroute: <9>\r\n";
        let input = with_routes(lines.as_bytes());
        let message = Message::parse(&input, None).unwrap();
        let texts: Vec<_> = message.all_routes().map(|it| message.text(it.span)).collect();
        let want = "<1> <2> <3> <4> <5> <6> <7>;x=\",\" <8> <9>";
        assert_eq!(texts.join(&b' '), want.as_bytes());
        for (at, text) in texts.iter().enumerate() {
            assert_eq!(message.route(at).map(|it| message.text(it.span)), Some(*text), "{at}");
        }
        assert_eq!((message.route(9), message.routes.len()), (None, 9));
        let lines = |from: &str| with_routes(from.as_bytes());
        for (count, want) in [
            (6, lines("X: 1\r\nRoute: <7>;x=\",\" ,<8>,\r\nroute: <9>\r\n")),
            (7, lines("X: 1\r\nRoute: <8>,\r\nroute: <9>\r\n")),
            (8, lines("X: 1\r\nroute: <9>\r\n")),
            (9, lines("X: 1\r\n")),
        ] {
            let mut edits = Edits::new();
            message.remove_routes(count, &mut edits);
            let mut out = Vec::new();
            edits.apply(message.bytes, &mut out).unwrap();
            assert_eq!(out, want, "{count}: {}", out.escape_ascii());
        }
    }

    /// What is read again is what was read first.
    #[test]
    fn lists_are_split_alike_both_ways() {
        let mut random = crate::testing::Random::new(7);
        for round in 0..20_000 {
            let alphabet = b"<>\",;\\ a(";
            let text: Vec<u8> =
                (0..round % 40).map(|_| alphabet[random.below(alphabet.len())]).collect();
            let whole = Span::new(0, text.len());
            let value = trim_span(&text, 0, text.len());
            let mut want = Values::<40>::NONE;
            want.note(&text, value, whole, false);
            let got: Vec<_> = list(&text, value, whole).collect();
            assert_eq!(got, want.as_slice(), "{}", text.escape_ascii());
        }
    }
}
