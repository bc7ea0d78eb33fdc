//! Messages out of a byte stream: TCP, TLS (RFC 3261 §18.3, keep-alives of RFC 5626 §3.5.1).

use super::header::{Lines, Name, Step, is_token, line_end};
use super::message::MESSAGE_BYTES_MAX;
use crate::bytes::parse_decimal;

/// What stands at the front of a stream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Frame<'s> {
    /// Nothing whole yet.
    NeedMore,
    /// A double line end: answer with one. Consume `bytes`.
    Ping {
        /// Its length.
        bytes: usize,
    },
    /// A single line end, an answer to our ping or a stray one: consume `bytes` and go on.
    Blank {
        /// Its length.
        bytes: usize,
    },
    /// One whole message: consume its length.
    Message(&'s [u8]),
}

/// Why a stream cannot be cut into messages. Framing is lost for good: answer if [`super::message::salvage`]
/// can read the head, then close the connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FramingError {
    /// It does not begin like SIP.
    NotSip,
    /// Content-Length is no number, or is there twice with different ones.
    ContentLength {
        /// Bytes of the head.
        head: usize,
    },
    /// Head and body exceed the limit: 513.
    TooLarge {
        /// Bytes of the head.
        head: usize,
        /// Bytes of the whole message; saturates.
        bytes: usize,
    },
    /// No end of the head within the limit.
    HeadTooLarge {
        /// Bytes seen.
        bytes: usize,
    },
}

/// Cuts messages off one stream. Remembers how far it has looked, so that a peer which sends byte by
/// byte does not cost quadratic time.
#[derive(Clone, Copy, Debug)]
pub struct Framer {
    message_bytes_max: usize,
    /// No end of the head begins before this.
    scanned: usize,
    /// Length of the message, once its head was seen.
    total: Option<usize>,
}

impl Framer {
    /// For one connection. Limits above [`MESSAGE_BYTES_MAX`] are cut to that.
    pub fn new(message_bytes_max: usize) -> Self {
        let message_bytes_max = message_bytes_max.min(MESSAGE_BYTES_MAX);
        Framer { message_bytes_max, scanned: 0, total: None }
    }

    /// Looks at the front of `stream`: everything received and not yet consumed. After any frame but
    /// [`Frame::NeedMore`] the caller consumes it before it asks again.
    ///
    /// Without Content-Length the body is taken to be empty: on streams the header is mandatory
    /// (RFC 3261 §18.3), and there is no other sensible reading.
    ///
    /// # Errors
    ///
    /// [`FramingError`]: close the connection.
    pub fn frame<'s>(&mut self, stream: &'s [u8]) -> Result<Frame<'s>, FramingError> {
        let total = match self.total {
            Some(total) => total,
            None => {
                match stream {
                    [] | [b'\r'] | b"\r\n" | b"\r\n\r" => return Ok(Frame::NeedMore),
                    [b'\r', b'\n', b'\r', b'\n', ..] => return Ok(Frame::Ping { bytes: 4 }),
                    [b'\r', b'\n', ..] => return Ok(Frame::Blank { bytes: 2 }),
                    [b'\n', ..] => return Ok(Frame::Blank { bytes: 1 }),
                    [first, ..] if !is_token(*first) => return Err(FramingError::NotSip),
                    _ => {}
                }
                let Some(head) = self.head_end(stream) else {
                    return if stream.len() > self.message_bytes_max {
                        Err(FramingError::HeadTooLarge { bytes: stream.len() })
                    } else {
                        Ok(Frame::NeedMore)
                    };
                };
                let body = body_bytes(stream.get(..head).unwrap_or_default())
                    .ok_or(FramingError::ContentLength { head })?;
                let bytes = head.saturating_add(body);
                if bytes > self.message_bytes_max {
                    return Err(FramingError::TooLarge { head, bytes });
                }
                bytes
            }
        };
        Ok(match stream.get(..total) {
            Some(message) => {
                *self = Framer::new(self.message_bytes_max);
                Frame::Message(message)
            }
            None => {
                self.total = Some(total);
                Frame::NeedMore
            }
        })
    }

    /// Bytes of the head with its empty line, once that is there.
    fn head_end(&mut self, stream: &[u8]) -> Option<usize> {
        loop {
            let rest = stream.get(self.scanned..)?;
            let Some(found) = memchr::memchr(b'\n', rest) else {
                self.scanned = stream.len();
                return None;
            };
            let newline = self.scanned + found;
            match stream.get(newline + 1..)? {
                [b'\n', ..] => return Some(newline + 2),
                [b'\r', b'\n', ..] => return Some(newline + 3),
                [] | [b'\r'] => {
                    self.scanned = newline;
                    return None;
                }
                _ => self.scanned = newline + 1,
            }
        }
    }
}

/// Content-Length of a whole head; 0 where it does not say.
fn body_bytes(head: &[u8]) -> Option<usize> {
    let (_, first_header) = line_end(head, 0)?;
    let mut lines = Lines::new(head, first_header);
    let mut said = None;
    loop {
        match lines.step() {
            Step::Line(line) if line.kind == Name::ContentLength => {
                let bytes: u32 = parse_decimal(line.value().of(head))?;
                if said.is_some_and(|before| before != bytes) {
                    return None;
                }
                said = Some(bytes);
            }
            Step::Line(_) | Step::Bad(_) => {}
            Step::End { .. } | Step::Cut => return usize::try_from(said.unwrap_or(0)).ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec;
    use std::vec::Vec;

    use super::*;
    use crate::testing::{INVITE, Random};

    #[test]
    fn streams_become_frames() {
        let cases: &[(&str, &[u8], Result<Frame<'_>, FramingError>)] = &[
            ("nothing yet", b"", Ok(Frame::NeedMore)),
            ("half a line end", b"\r", Ok(Frame::NeedMore)),
            ("a pong, or half a ping", b"\r\n", Ok(Frame::NeedMore)),
            ("three quarters of a ping", b"\r\n\r", Ok(Frame::NeedMore)),
            ("a ping", b"\r\n\r\nX", Ok(Frame::Ping { bytes: 4 })),
            ("a stray line end", b"\r\nBYE", Ok(Frame::Blank { bytes: 2 })),
            ("a bare one", b"\nBYE", Ok(Frame::Blank { bytes: 1 })),
            ("no body", b"A\r\nB: 1\r\n\r\nC", Ok(Frame::Message(b"A\r\nB: 1\r\n\r\n"))),
            ("a body", b"A\r\nl: 2\r\n\r\nxyz", Ok(Frame::Message(b"A\r\nl: 2\r\n\r\nxy"))),
            ("bare line ends", b"A\nl: 2\n\nxyz", Ok(Frame::Message(b"A\nl: 2\n\nxy"))),
            ("half a body", b"A\r\nl: 2\r\n\r\nx", Ok(Frame::NeedMore)),
            ("half a head", b"A\r\nl: 2\r\n\r", Ok(Frame::NeedMore)),
            (
                "the same length twice",
                b"A\r\nl: 1\r\nContent-Length:\r\n 1\r\n\r\nx",
                Ok(Frame::Message(b"A\r\nl: 1\r\nContent-Length:\r\n 1\r\n\r\nx")),
            ),
            (
                "two lengths",
                b"A\r\nl: 1\r\nl: 2\r\n\r\nx",
                Err(FramingError::ContentLength { head: 17 }),
            ),
            ("no number", b"A\r\nl: -1\r\n\r\nx", Err(FramingError::ContentLength { head: 12 })),
            (
                "too much",
                b"A\r\nl: 90\r\n\r\nx",
                Err(FramingError::TooLarge { head: 12, bytes: 102 }),
            ),
            (
                "far too much",
                b"A\r\nl: 4294967295\r\n\r\nx",
                Err(FramingError::TooLarge { head: 20, bytes: 4_294_967_315 }),
            ),
            ("a head without end", &[b'A'; 101], Err(FramingError::HeadTooLarge { bytes: 101 })),
            ("TLS", b"\x16\x03\x01", Err(FramingError::NotSip)),
        ];
        for (name, stream, want) in cases {
            assert_eq!(Framer::new(100).frame(stream), *want, "{name}");
        }
    }

    /// All frames of a stream that arrives cut at random.
    fn frames(stream: &[u8], random: &mut Random, piece_max: usize) -> Vec<Vec<u8>> {
        let mut framer = Framer::new(MESSAGE_BYTES_MAX);
        let (mut consumed, mut arrived) = (0, 0);
        let mut frames = Vec::new();
        while arrived < stream.len() {
            arrived = (arrived + 1 + random.below(piece_max)).min(stream.len());
            loop {
                let bytes = match framer.frame(&stream[consumed..arrived]) {
                    Ok(Frame::NeedMore) => break,
                    Ok(Frame::Ping { bytes } | Frame::Blank { bytes }) => bytes,
                    Ok(Frame::Message(message)) => {
                        frames.push(message.to_vec());
                        message.len()
                    }
                    Err(_) => return frames,
                };
                consumed += bytes;
            }
        }
        frames
    }

    #[test]
    fn where_the_network_cuts_a_stream_does_not_matter() {
        for seed in 0..2_000 {
            let mut random = Random::new(seed);
            let mut stream = [INVITE, b"\r\n\r\n\r\n", INVITE, b"\r\n", INVITE].concat();
            if seed % 2 == 1 {
                stream = random.mutate(&stream);
            }
            let whole = frames(&stream, &mut random, usize::MAX >> 1);
            let piece_max = [1, 7, 300][random.below(3)];
            assert!(frames(&stream, &mut random, piece_max) == whole, "seed {seed}");
            if seed % 2 == 0 {
                assert!(whole == vec![INVITE; 3], "seed {seed}");
            }
        }
    }

    #[test]
    fn a_slow_peer_is_not_read_again_from_the_start() {
        let mut framer = Framer::new(MESSAGE_BYTES_MAX);
        let mut seen = 0;
        for end in 1..INVITE.len() - 200 {
            assert_eq!(framer.frame(&INVITE[..end]), Ok(Frame::NeedMore), "byte {end}");
            assert!(framer.scanned >= seen && framer.scanned + 2 >= end, "byte {end}");
            seen = framer.scanned;
        }
    }
}
