//! What a message has more than one of: comma-joined values and repeated lines, kept by position.

use super::header::split_list;
use crate::bytes::{Edits, Span};

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

/// Cuts the first `count` values: lines that empty go whole, else each value with its comma. Lines of
/// other headers in between stay. At most the `N` kept are cut.
pub fn remove_values<const N: usize>(values: &Values<N>, count: usize, edits: &mut Edits) {
    let all = values.as_slice();
    let cut = all.get(..count).unwrap_or(all);
    let mut cut = cut.iter().peekable();
    while let Some(first) = cut.next() {
        let mut last = first;
        while let Some(more) = cut.next_if(|it| it.line == first.line) {
            last = more;
        }
        if last.next == first.line.end {
            edits.remove(first.line);
        } else {
            edits.remove(Span { start: first.span.start, end: last.next });
        }
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
}
