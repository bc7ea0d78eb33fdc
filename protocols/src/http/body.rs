//! Bodies on their way through: how many of the bytes at hand belong to this message, and where it ends.
//!
//! Reads RFC 9112 §6 (lengths), §7.1 (chunks). Nothing is copied or kept: the state of a body is a few
//! words, whatever its length and wherever the network cuts it. Extensions and trailers pass unread.

/// How a body is delimited (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Framing {
    /// This many bytes; 0: there is none.
    Length(u64),
    /// Chunked.
    Chunked,
    /// Until the sender closes: responses only.
    UntilClose,
}

impl Framing {
    /// No body.
    pub const NONE: Framing = Framing::Length(0);
}

/// Where one body stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Body {
    state: State,
    /// Bytes of the line or trailer section being read.
    line_bytes: u32,
    /// Blanks may stand behind a chunk's size.
    takes_blanks: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Done,
    UntilClose,
    /// Bytes left of a body with a length.
    Content(u64),
    /// Digits of a chunk size read so far.
    Size {
        value: u64,
        digits: u8,
    },
    /// Blanks before an extension (`BWS` of RFC 9112 §7.1.1).
    Blank {
        value: u64,
    },
    Extension {
        value: u64,
    },
    SizeLf {
        value: u64,
    },
    /// Bytes left of a chunk, never 0.
    Chunk(u64),
    ChunkCr,
    ChunkLf,
    /// At the beginning of a trailer line, or of the empty line behind them.
    Trailer,
    TrailerName,
    TrailerValue,
    TrailerLf,
    LastLf,
}

/// The chunked framing is broken. Where the next message begins is unknown: both connections must be closed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Broken;

/// A run of bytes at the front of what was offered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Piece {
    /// Its length.
    pub bytes: usize,
    /// Content; `false`: chunk sizes, line ends and trailers.
    pub is_content: bool,
}

/// The bytes at the front that belong to the body.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Taken {
    /// All of them.
    pub bytes: usize,
    /// Content among them.
    pub content: usize,
}

impl Body {
    /// A body of which nothing has been seen.
    pub const fn new(framing: Framing) -> Body {
        let state = match framing {
            Framing::Length(0) => State::Done,
            Framing::Length(bytes) => State::Content(bytes),
            Framing::Chunked => State::Size { value: 0, digits: 0 },
            Framing::UntilClose => State::UntilClose,
        };
        Body { state, line_bytes: 0, takes_blanks: false }
    }

    /// The same of a response: some servers fill a chunk's size up with blanks, and clients do not mind.
    pub const fn of_response(framing: Framing) -> Body {
        Body { takes_blanks: true, ..Body::new(framing) }
    }

    /// Whether all of it has been seen.
    pub const fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// Whether the sender's closing ends it properly: it is done, or lasts until then.
    pub const fn may_end_here(&self) -> bool {
        matches!(self.state, State::Done | State::UntilClose)
    }

    /// Takes what belongs to the body off the front of `bytes`. Less than all of them only at its end.
    ///
    /// # Errors
    ///
    /// [`Broken`]: close; nothing of `bytes` may be passed on.
    pub fn take(&mut self, bytes: &[u8]) -> Result<Taken, Broken> {
        let mut taken = Taken::default();
        loop {
            let piece = self.next(bytes.get(taken.bytes..).unwrap_or_default())?;
            if piece.bytes == 0 {
                return Ok(taken);
            }
            taken.bytes += piece.bytes;
            taken.content += if piece.is_content { piece.bytes } else { 0 };
        }
    }

    /// Takes the next run of one kind off the front of `bytes`; an empty one if there is no more of it.
    ///
    /// # Errors
    ///
    /// [`Broken`]: close.
    pub fn next(&mut self, bytes: &[u8]) -> Result<Piece, Broken> {
        let content = |bytes| Ok(Piece { bytes, is_content: true });
        match self.state {
            State::Done => Ok(Piece { bytes: 0, is_content: false }),
            State::UntilClose => content(bytes.len()),
            State::Content(left) => {
                let run = within(left, bytes);
                let left = left - run as u64;
                self.state = if left == 0 { State::Done } else { State::Content(left) };
                content(run)
            }
            State::Chunk(left) => {
                let run = within(left, bytes);
                let left = left - run as u64;
                self.state = if left == 0 { State::ChunkCr } else { State::Chunk(left) };
                content(run)
            }
            _ => self.lines(bytes),
        }
    }

    /// What stands between chunks, and behind the last one.
    fn lines(&mut self, bytes: &[u8]) -> Result<Piece, Broken> {
        let mut run = 0;
        for byte in bytes {
            run += 1;
            self.state = self.step(*byte)?;
            if matches!(self.state, State::Chunk(_) | State::Done) {
                break;
            }
        }
        Ok(Piece { bytes: run, is_content: false })
    }

    fn step(&mut self, byte: u8) -> Result<State, Broken> {
        self.line_bytes += 1;
        if self.line_bytes > LINE_BYTES_MAX {
            return Err(Broken);
        }
        Ok(match (self.state, byte) {
            (State::Size { value, digits }, _) if byte.is_ascii_hexdigit() => {
                if digits == SIZE_DIGITS_MAX {
                    return Err(Broken);
                }
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                State::Size { value: value << 4 | u64::from(digit), digits: digits + 1 }
            }
            (State::Size { digits: 0, .. }, _) => return Err(Broken),
            (State::Size { value, .. }, b'\r') => State::SizeLf { value },
            (State::Blank { value }, b'\r') if self.takes_blanks => State::SizeLf { value },
            (State::Size { value, .. } | State::Blank { value }, b';') => {
                State::Extension { value }
            }
            (State::Size { value, .. } | State::Blank { value }, b' ' | b'\t') => {
                State::Blank { value }
            }
            (State::Extension { value }, b'\r') => State::SizeLf { value },
            (State::Extension { value }, _) if is_text(byte) => State::Extension { value },
            (State::SizeLf { value }, b'\n') => {
                self.line_bytes = 0;
                if value == 0 { State::Trailer } else { State::Chunk(value) }
            }
            (State::ChunkCr, b'\r') => State::ChunkLf,
            (State::ChunkLf, b'\n') => {
                self.line_bytes = 0;
                State::Size { value: 0, digits: 0 }
            }
            (State::Trailer, b'\r') => State::LastLf,
            (State::Trailer | State::TrailerName, _) if is_token(byte) => State::TrailerName,
            (State::TrailerName, b':') => State::TrailerValue,
            (State::TrailerValue, b'\r') => State::TrailerLf,
            (State::TrailerValue, _) if is_text(byte) => State::TrailerValue,
            (State::TrailerLf, b'\n') => State::Trailer,
            (State::LastLf, b'\n') => State::Done,
            _ => return Err(Broken),
        })
    }
}

/// As many of `bytes` as `left` allows.
fn within(left: u64, bytes: &[u8]) -> usize {
    usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()))
}

/// What a field value may hold (RFC 9110 §5.5).
const fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

/// `tchar` of RFC 9110 §5.6.2.
const fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
}

/// Sixteen digits are all that 64 bits hold; leading zeros count, since nobody needs that many.
const SIZE_DIGITS_MAX: u8 = 16;

/// Bytes of one chunk's size line, or of all trailers: who sends more wants to keep us busy.
const LINE_BYTES_MAX: u32 = 16 * 1024;

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use super::*;
    use crate::testing::Random;

    /// All bytes taken, content, and whether it ended; `None` if broken.
    fn read(framing: Framing, bytes: &[u8], cuts: &[usize]) -> Option<(usize, Vec<u8>, bool)> {
        let mut body = Body::new(framing);
        let mut content = Vec::new();
        let mut at = 0;
        for end in cuts.iter().copied().chain([bytes.len()]) {
            while at < end {
                let piece = body.next(&bytes[at..end]).ok()?;
                if piece.bytes == 0 {
                    return Some((at, content, body.is_done()));
                }
                if piece.is_content {
                    content.extend_from_slice(&bytes[at..at + piece.bytes]);
                }
                at += piece.bytes;
            }
        }
        Some((at, content, body.is_done()))
    }

    #[test]
    fn bodies_end_where_their_framing_says() {
        type Want = Option<(usize, &'static [u8], bool)>;
        let long = b"5;x=\"a;b\" ;y\r\nhello\r\n0A\r\n0123456789\r\n000\r\nA: b\r\nC:\r\n\r\nnext";
        let cases: &[(&str, Framing, &[u8], Want)] = &[
            ("none", Framing::NONE, b"GET", Some((0, b"", true))),
            ("exact", Framing::Length(3), b"abcGET", Some((3, b"abc", true))),
            ("short", Framing::Length(4), b"abc", Some((3, b"abc", false))),
            ("until close", Framing::UntilClose, b"abc", Some((3, b"abc", false))),
            ("no chunks", Framing::Chunked, b"0\r\n\r\nGET", Some((5, b"", true))),
            ("chunks", Framing::Chunked, long, Some((54, b"hello0123456789", true))),
            ("case", Framing::Chunked, b"aB\r\n", Some((4, b"", false))),
            ("widest", Framing::Chunked, b"ffffffffffffffff\r\nx", Some((19, b"x", false))),
        ];
        for (name, framing, bytes, want) in cases {
            let want = want.map(|(bytes, content, done)| (bytes, content.to_vec(), done));
            assert_eq!(read(*framing, bytes, &[]), want, "{name}");
        }
    }

    /// What readers have disagreed about, each a way to smuggle a request once.
    #[test]
    fn doubtful_chunks_are_broken() {
        let cases: &[(&str, &[u8])] = &[
            ("no size", b"\r\n"),
            ("not a number", b"x\r\n"),
            ("hexadecimal prefix", b"0x5\r\nhello\r\n"),
            ("sign", b"+5\r\nhello\r\n"),
            ("minus", b"-1\r\n"),
            ("blank in front", b" 5\r\nhello\r\n"),
            ("blank behind", b"5 \r\nhello\r\n"),
            ("underscore", b"1_0\r\n"),
            ("17 digits", b"00000000000000005\r\n"),
            ("overflow", b"10000000000000005\r\n"),
            ("bare LF", b"5\nhello\r\n"),
            ("bare CR", b"5\rhello\r\n"),
            ("bare LF in an extension", b"5;a\nhello\r\n"),
            ("CR in an extension", b"5;a\rb\r\nhello\r\n"),
            ("NUL in an extension", b"5;\0\r\nhello\r\n"),
            ("data too long", b"5\r\nhello!\r\n"),
            ("data without CR", b"5\r\nhello\n"),
            ("bare LF at the end", b"0\r\n\n"),
            ("trailer folded", b"0\r\nA: b\r\n c\r\n\r\n"),
            ("trailer without colon", b"0\r\nA\r\n\r\n"),
            ("trailer with a blank name", b"0\r\n: a\r\n\r\n"),
            ("blank before the colon", b"0\r\nA : b\r\n\r\n"),
            ("trailer with bare LF", b"0\r\nA: b\n\r\n"),
            ("trailer with bare CR", b"0\r\nA: b\rc\r\n\r\n"),
        ];
        for (name, bytes) in cases {
            assert_eq!(read(Framing::Chunked, bytes, &[]), None, "{name}");
        }
        let mut endless = b"5;".to_vec();
        endless.resize(LINE_BYTES_MAX as usize + 10, b'x');
        assert_eq!(read(Framing::Chunked, &endless, &[]), None);
        let mut trailers = b"0\r\n".to_vec();
        (0..4_000).for_each(|_| trailers.extend_from_slice(b"A: b\r\n"));
        assert_eq!(read(Framing::Chunked, &trailers, &[]), None);
    }

    #[test]
    fn a_response_may_fill_its_sizes_up_with_blanks() {
        let bytes = b"5  \r\nhello\r\n0 \t\r\n\r\n";
        let mut body = Body::of_response(Framing::Chunked);
        assert_eq!(body.take(bytes), Ok(Taken { bytes: bytes.len(), content: 5 }));
        assert!(body.is_done());
        for broken in [&b"5 x\r\nhello\r\n"[..], b" 5\r\nhello\r\n", b"5 \nhello\r\n"] {
            assert_eq!(Body::of_response(Framing::Chunked).take(broken), Err(Broken));
        }
    }

    #[test]
    fn where_the_network_cuts_a_body_does_not_matter() {
        let chunked = b"5;x\r\nhello\r\n0A\r\n0123456789\r\n0\r\nA: b\r\n\r\nGET / HTTP/1.1\r\n";
        for seed in 0..4_000 {
            let mut random = Random::new(seed);
            let bytes = if seed % 2 == 0 { random.mutate(chunked) } else { chunked.to_vec() };
            let framing = match seed % 3 {
                0 => Framing::Length(random.below(80) as u64),
                _ => Framing::Chunked,
            };
            let whole = read(framing, &bytes, &[]);
            let cut = random.below(bytes.len() + 1);
            let other = random.below(bytes.len() + 1);
            let cuts = [cut.min(other), cut.max(other)];
            assert_eq!(read(framing, &bytes, &cuts), whole, "seed {seed} {cuts:?}");
            let every: Vec<usize> = (0..bytes.len()).collect();
            assert_eq!(read(framing, &bytes, &every), whole, "seed {seed}, byte by byte");
        }
    }

    #[test]
    fn taking_counts_content_apart_from_framing() {
        let mut body = Body::new(Framing::Chunked);
        assert_eq!(body.take(b"5\r\nhel"), Ok(Taken { bytes: 6, content: 3 }));
        assert_eq!(body.take(b"lo\r\n0\r\n\r\nGET"), Ok(Taken { bytes: 9, content: 2 }));
        assert!(body.is_done());
        assert_eq!(body.take(b"GET"), Ok(Taken::default()));
    }
}
