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
            Step::Line(line) if Name::of(line.name) == Name::ContentLength => {
                let bytes: u32 = parse_decimal(line.value.of(head))?;
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
