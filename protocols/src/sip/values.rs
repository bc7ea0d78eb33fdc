//! What a message has more than one of: comma-joined values and repeated lines, kept by position.

use super::header::{Line, split_list};
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

    pub(crate) fn note(&mut self, bytes: &[u8], line: &Line<'_>, comments: bool) {
        split_list(bytes, line.value, comments, |span, next| {
            if let Some(free) = self.kept.get_mut(usize::from(self.count)) {
                *free = Value { span, line: line.span, next: next.unwrap_or(line.span.end) };
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
