//! Byte ranges into a message, and edits that turn one message into the next in a single pass.
//!
//! Nothing here knows SIP. A parser hands out [`Span`]s, a relay collects [`Edits`], and
//! [`Edits::apply`] copies everything in between unchanged: that is how headers which are not ours
//! leave byte for byte as they came.

use alloc::vec::Vec;
use core::fmt::Write as _;
use core::net::IpAddr;
use core::ops::Range;

/// A byte range into one message; meaningless against another. `start <= end` unless made by hand.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Span {
    /// First byte.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

impl Span {
    /// The range `start..end`; offsets beyond 4 GiB saturate, and are out of range of any message.
    pub fn new(start: usize, end: usize) -> Span {
        Span { start: offset(start), end: offset(end) }
    }

    /// Length in bytes.
    pub const fn len(self) -> usize {
        self.end.saturating_sub(self.start) as usize
    }

    /// Whether it holds nothing.
    pub const fn is_empty(self) -> bool {
        self.end <= self.start
    }

    /// As a slice index.
    pub const fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }

    /// The bytes it names; empty if it does not lie within `bytes`.
    pub fn of(self, bytes: &[u8]) -> &[u8] {
        bytes.get(self.range()).unwrap_or_default()
    }

    /// The same range of a text that itself begins at `base`: makes a relative span absolute.
    pub const fn shift(self, base: u32) -> Span {
        Span { start: self.start.saturating_add(base), end: self.end.saturating_add(base) }
    }
}

/// An offset as spans hold it; saturates.
pub(crate) fn offset(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

/// More edits than [`Edits`] holds: nothing was written, the message cannot be edited.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Overflow;

/// Edits of one message, in any order, applied in one pass. Reuse it: [`Edits::clear`] keeps the
/// scratch memory, so that nothing is allocated once that has grown.
///
/// Edits at one place keep the order of the calls. Where edits overlap, the bytes of all of them go;
/// an edit that begins inside bytes that an earlier-starting edit takes away loses its text.
#[derive(Clone, Debug)]
pub struct Edits {
    edits: [Edit; EDITS_MAX],
    count: usize,
    text: Vec<u8>,
    overflow: bool,
}

/// The bytes `at` become the scratch bytes `text`.
#[derive(Clone, Copy, Debug, Default)]
struct Edit {
    at: Span,
    text: Span,
}

impl Edits {
    /// No edits yet.
    pub fn new() -> Self {
        Edits {
            edits: [Edit::default(); EDITS_MAX],
            count: 0,
            text: Vec::with_capacity(TEXT_BYTES),
            overflow: false,
        }
    }

    /// Forgets all edits and keeps the memory.
    pub fn clear(&mut self) {
        self.count = 0;
        self.text.clear();
        self.overflow = false;
    }

    /// Takes away the bytes at `span`.
    pub fn remove(&mut self, span: Span) {
        self.push(span, Span::default());
    }

    /// Puts `text` in place of the bytes at `span`.
    pub fn replace(&mut self, span: Span, text: &[u8]) {
        self.write(span, |out| out.extend_from_slice(text));
    }

    /// The same where other text may have been put there already: the last one counts.
    pub fn supersede(&mut self, span: Span, text: &[u8]) {
        let edits = self.edits.get_mut(..self.count).unwrap_or_default();
        if let Some(edit) = edits.iter_mut().find(|it| it.at == span) {
            let start = self.text.len();
            self.text.extend_from_slice(text);
            edit.text = Span::new(start, self.text.len());
        } else {
            self.replace(span, text);
        }
    }

    /// Puts `text` before the byte at `at`.
    pub fn insert(&mut self, at: u32, text: &[u8]) {
        self.replace(Span { start: at, end: at }, text);
    }

    /// Puts what `compose` appends in place of the bytes at `at`, without another copy.
    pub fn write(&mut self, at: Span, compose: impl FnOnce(&mut Vec<u8>)) {
        let start = self.text.len();
        compose(&mut self.text);
        self.push(at, Span::new(start, self.text.len()));
    }

    /// Whether there is nothing to do.
    pub const fn is_empty(&self) -> bool {
        self.count == 0 && !self.overflow
    }

    /// Appends the edited `input` to `out`. Spans beyond the end of `input` are cut there.
    ///
    /// # Errors
    ///
    /// [`Overflow`]: more than [`EDITS_MAX`] edits were asked for; `out` is as it was.
    pub fn apply(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(), Overflow> {
        if self.overflow {
            return Err(Overflow);
        }
        let edits = self.edits.get_mut(..self.count).unwrap_or_default();
        sort(edits);
        out.reserve(input.len() + self.text.len());
        let mut copied = 0usize; // bytes of `input` dealt with
        let mut run = 0usize; // where the bytes last taken away begin
        for edit in edits.iter() {
            let start = (edit.at.start as usize).min(input.len());
            let end = (edit.at.end as usize).min(input.len());
            if start >= copied {
                out.extend_from_slice(input.get(copied..start).unwrap_or_default());
                copied = start;
                run = start;
            }
            if start == run {
                out.extend_from_slice(edit.text.of(&self.text));
            }
            copied = copied.max(end);
        }
        out.extend_from_slice(input.get(copied..).unwrap_or_default());
        Ok(())
    }

    fn push(&mut self, at: Span, text: Span) {
        match self.edits.get_mut(self.count) {
            Some(free) => {
                *free = Edit { at, text };
                self.count += 1;
            }
            None => self.overflow = true,
        }
    }
}

impl Default for Edits {
    fn default() -> Self {
        Edits::new()
    }
}

/// Stable insertion sort: edits are few and come nearly sorted.
fn sort(edits: &mut [Edit]) {
    for end in 1..edits.len() {
        for at in (1..=end).rev() {
            let Some([before, after]) = edits.get_mut(at - 1..=at) else { break };
            if before.at.start <= after.at.start {
                break;
            }
            core::mem::swap(before, after);
        }
    }
}

/// Reads a number of only digits, at least one; `None` if it does not fit.
pub fn parse_decimal<T: TryFrom<u64>>(digits: &[u8]) -> Option<T> {
    let (head, tail) = digits.split_at(digits.len().min(DIGITS_SAFE));
    if head.is_empty() {
        return None;
    }
    let digit = |it: &u8| Some(u64::from(it.wrapping_sub(b'0'))).filter(|it| *it <= 9);
    let mut value = 0u64;
    for it in head {
        value = value * 10 + digit(it)?;
    }
    for it in tail {
        value = value.checked_mul(10)?.checked_add(digit(it)?)?;
    }
    T::try_from(value).ok()
}

/// Appends `value` in decimal.
pub fn write_decimal(out: &mut Vec<u8>, value: impl Into<u64>) {
    let mut value = value.into();
    let mut digits = [0u8; 20];
    let mut length = 0;
    for place in digits.iter_mut().rev() {
        let [digit, ..] = (value % 10).to_le_bytes();
        *place = b'0' + digit;
        value /= 10;
        length += 1;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(digits.len() - length..).unwrap_or_default());
}

/// Appends the low 64 bits as 16 lower-case hexadecimal digits.
pub fn write_hex(out: &mut Vec<u8>, value: u64) {
    let mut text = [[0; 2]; 8];
    for (pair, byte) in text.iter_mut().zip(value.to_be_bytes()) {
        *pair = hex(byte);
    }
    out.extend_from_slice(text.as_flattened());
}

/// Two lower-case hexadecimal digits.
#[inline]
#[expect(clippy::indexing_slicing, reason = "a byte is below 256")]
pub fn hex(byte: u8) -> [u8; 2] {
    HEX[usize::from(byte)]
}

#[expect(clippy::indexing_slicing, reason = "a byte is below 256, a nibble below 16")]
const HEX: [[u8; 2]; 256] = {
    let mut table = [[0; 2]; 256];
    let digits = b"0123456789abcdef";
    let mut byte = 0;
    while byte < table.len() {
        table[byte] = [digits[byte >> 4], digits[byte & 15]];
        byte += 1;
    }
    table
};

/// Appends an address as `received` and `node_host` spell it: IPv6 without brackets.
pub fn write_ip(out: &mut Vec<u8>, ip: IpAddr) {
    match ip {
        IpAddr::V4(v4) => {
            let mut text = [0; 16];
            let mut length = 0;
            for octet in v4.octets() {
                let (digits, more) = octet_text(octet);
                if let Some(place) = text.get_mut(length..length + 4) {
                    place.copy_from_slice(&digits);
                }
                length += more;
            }
            out.extend_from_slice(text.get(..length - 1).unwrap_or_default());
        }
        IpAddr::V6(v6) => {
            let Ok(()) = write!(Text(out), "{v6}") else { return };
        }
    }
}

/// An octet in decimal with the dot behind it, and how many bytes of that count.
#[inline]
#[expect(clippy::indexing_slicing, reason = "a byte is below 256")]
fn octet_text(octet: u8) -> ([u8; 4], usize) {
    const TEXTS: [([u8; 4], usize); 256] = {
        let mut table = [([0; 4], 0); 256];
        let mut octet = 0u8;
        loop {
            let [hundreds, tens, ones] =
                [b'0' + octet / 100, b'0' + octet / 10 % 10, b'0' + octet % 10];
            table[octet as usize] = match octet {
                0..=9 => ([ones, b'.', 0, 0], 2),
                10..=99 => ([tens, ones, b'.', 0], 3),
                100.. => ([hundreds, tens, ones, b'.'], 4),
            };
            if octet == u8::MAX {
                break table;
            }
            octet += 1;
        }
    };
    TEXTS[usize::from(octet)]
}

/// Appends an address as URIs and sent-by spell it: IPv6 in brackets (RFC 3261 §25.1 `host`).
pub fn write_host(out: &mut Vec<u8>, ip: IpAddr) {
    if ip.is_ipv6() {
        out.push(b'[');
    }
    write_ip(out, ip);
    if ip.is_ipv6() {
        out.push(b']');
    }
}

struct Text<'a>(&'a mut Vec<u8>);

impl core::fmt::Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

/// A relay makes about a dozen edits; the most that many Vias, Routes and copies of our own headers
/// can ask for stays below this.
pub const EDITS_MAX: usize = 48;

/// Numbers of so many digits fit 64 bits, whatever they are.
const DIGITS_SAFE: usize = 19;

/// Two Vias, two Record-Routes, a Route and the small change.
const TEXT_BYTES: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    fn span(start: u32, end: u32) -> Span {
        Span { start, end }
    }

    fn applied(edits: &mut Edits, input: &[u8]) -> Vec<u8> {
        let mut out = b"> ".to_vec();
        edits.apply(input, &mut out).unwrap();
        out
    }

    #[test]
    fn edits_meet_in_one_pass() {
        type Asked = fn(&mut Edits);
        let cases: &[(&str, Asked, &[u8])] = &[
            ("nothing", |_| {}, b"> 0123456789"),
            ("removal", |it| it.remove(span(2, 4)), b"> 01456789"),
            ("replacement", |it| it.replace(span(2, 4), b"ab"), b"> 01ab456789"),
            (
                "at both ends",
                |it| {
                    it.insert(10, b"z");
                    it.insert(0, b"a");
                },
                b"> a0123456789z",
            ),
            (
                "two at one place keep their order",
                |it| {
                    it.insert(5, b"a");
                    it.insert(5, b"b");
                },
                b"> 01234ab56789",
            ),
            (
                "before and after a removal",
                |it| {
                    it.remove(span(2, 4));
                    it.insert(4, b"b");
                    it.insert(2, b"a");
                },
                b"> 01ab456789",
            ),
            (
                "inside a removal the text goes",
                |it| {
                    it.insert(3, b"lost");
                    it.remove(span(2, 5));
                },
                b"> 0156789",
            ),
            (
                "overlapping, the bytes of both go",
                |it| {
                    it.replace(span(4, 8), b"lost");
                    it.replace(span(2, 5), b"x");
                },
                b"> 01x89",
            ),
            (
                "one within another",
                |it| {
                    it.remove(span(1, 9));
                    it.remove(span(3, 4));
                },
                b"> 09",
            ),
            (
                "twice the same",
                |it| {
                    it.remove(span(1, 9));
                    it.remove(span(1, 9));
                },
                b"> 09",
            ),
            (
                "beyond the end",
                |it| {
                    it.remove(span(8, 99));
                    it.insert(50, b"z");
                },
                b"> 01234567z",
            ),
            ("back to front", |it| it.replace(span(6, 2), b"x"), b"> 012345x6789"),
            (
                "composed in place",
                |it| it.write(span(0, 1), |out| write_decimal(out, 42u8)),
                b"> 42123456789",
            ),
        ];
        let mut edits = Edits::new();
        for (name, ask, want) in cases {
            edits.clear();
            ask(&mut edits);
            assert_eq!(applied(&mut edits, b"0123456789"), *want, "{name}");
        }
    }

    #[test]
    fn too_many_edits_write_nothing() {
        let mut edits = Edits::new();
        for at in 0..=EDITS_MAX {
            edits.insert(offset(at), b"x");
        }
        let mut out = Vec::new();
        assert_eq!(edits.apply(b"0123456789", &mut out), Err(Overflow));
        assert!(out.is_empty());
        edits.clear();
        assert_eq!(edits.apply(b"0123456789", &mut out), Ok(()));
        assert_eq!(out, b"0123456789");
    }

    #[test]
    fn bytes_nobody_edits_come_through_in_order() {
        for seed in 0..5_000 {
            let mut random = Random::new(seed);
            let input: Vec<u8> = (0..60).collect();
            let mut kept = [true; 60];
            let mut edits = Edits::new();
            for _ in 0..random.below(12) {
                let start = random.below(70);
                let end = start + random.below(10);
                edits.replace(Span::new(start, end), b"\xff\xfe");
                kept.iter_mut().take(end).skip(start).for_each(|it| *it = false);
            }
            let mut out = Vec::new();
            edits.apply(&input, &mut out).unwrap();
            out.retain(|it| *it < 60);
            let want: Vec<u8> = input.into_iter().filter(|it| kept[usize::from(*it)]).collect();
            assert_eq!(out, want, "seed {seed}");
        }
    }

    #[test]
    fn numbers_are_read_and_written() {
        let cases: &[(&[u8], Option<u16>)] = &[
            (b"0", Some(0)),
            (b"0068", Some(68)),
            (b"65535", Some(65_535)),
            (b"65536", None),
            (b"99999999999999999999999", None),
            (b"", None),
            (b"-1", None),
            (b"+1", None),
            (b"1 ", None),
        ];
        for (text, want) in cases {
            assert_eq!(parse_decimal::<u16>(text), *want, "{}", text.escape_ascii());
        }
        for value in [0, 7, 10, 65_535, u64::MAX] {
            let mut out = Vec::new();
            write_decimal(&mut out, value);
            assert_eq!(parse_decimal(&out), Some(value));
        }
        let mut out = Vec::new();
        write_hex(&mut out, 0x0123_4567_89ab_cdef);
        assert_eq!(out, b"0123456789abcdef");
    }

    #[test]
    fn addresses_are_written_as_each_place_wants_them() {
        let cases = [
            ("192.0.2.10", "192.0.2.10", "192.0.2.10"),
            ("0.255.1.0", "0.255.1.0", "0.255.1.0"),
            ("2001:db8::1", "2001:db8::1", "[2001:db8::1]"),
        ];
        for (ip, plain, host) in cases {
            let (mut a, mut b) = (Vec::new(), Vec::new());
            write_ip(&mut a, ip.parse().unwrap());
            write_host(&mut b, ip.parse().unwrap());
            assert_eq!((a.as_slice(), b.as_slice()), (plain.as_bytes(), host.as_bytes()));
        }
    }
}
