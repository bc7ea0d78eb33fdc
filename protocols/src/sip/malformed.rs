//! Messages that cannot be forwarded: why, what to answer, and what is left to answer with.

use core::fmt;

use super::header::{Line, Name, good_lines, line_end, list_element};
use super::message::{HEADER_LINES_MAX, MESSAGE_BYTES_MAX, leading_line_ends, starts_with_sip};

/// A header that every message has, or may have only once.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(missing_docs, reason = "each is the header of its name")]
pub enum Field {
    Via,
    From,
    To,
    CallId,
    Cseq,
    MaxForwards,
    ContentLength,
    InitialRemote,
}

/// Why bytes are not a message that can be forwarded. The message is answered or dropped; a datagram
/// costs no other message anything.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Malformed {
    /// No `SIP/` in the first line: some other protocol, or noise.
    NotSip,
    /// A SIP version other than 2.0.
    Version,
    /// The first line is no request line or status line.
    StartLine,
    /// The Request-URI cannot be read.
    RequestUri,
    /// A line that is not `name: value`.
    HeaderLine {
        /// Where it begins.
        at: u32,
    },
    /// A CR without LF in a header that matters here.
    LoneReturn {
        /// Where the line begins.
        at: u32,
    },
    /// The bytes end within the headers.
    NoEmptyLine,
    /// A header is not there that every message needs.
    Missing(Field),
    /// A header is there twice that may be there once.
    Repeated(Field),
    /// The top Via cannot be read.
    Via,
    /// CSeq is not a number below 2^32 and a method.
    Cseq,
    /// CSeq names another method than the first line.
    CseqMethod,
    /// Max-Forwards is no number.
    MaxForwards,
    /// Content-Length is no number.
    ContentLength,
    /// Content-Length promises more than there is.
    BodyCut {
        /// As the header says.
        said: u32,
        /// In the datagram.
        present: u32,
    },
    /// Longer than [`MESSAGE_BYTES_MAX`].
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// More than [`HEADER_LINES_MAX`] headers.
    HeaderLines,
    /// A header longer than [`super::message::LINE_BYTES_MAX`].
    LineBytes {
        /// Its length.
        bytes: usize,
    },
    /// More than [`super::message::VIAS_MAX`] Via values.
    Vias {
        /// How many.
        count: usize,
    },
}

impl Malformed {
    /// What a request like this is answered with, if it has what an answer needs: see [`salvage`].
    pub const fn status(&self) -> Option<u16> {
        match self {
            Malformed::NotSip | Malformed::Missing(_) => None,
            Malformed::Version => Some(505),
            Malformed::TooLarge { .. }
            | Malformed::HeaderLines
            | Malformed::LineBytes { .. }
            | Malformed::Vias { .. } => Some(513),
            _ => Some(400),
        }
    }
}

impl fmt::Display for Malformed {
    /// In words for a reason phrase: no peer's bytes in it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Malformed::NotSip => f.write_str("not SIP"),
            Malformed::Version => f.write_str("SIP version is not 2.0"),
            Malformed::StartLine => f.write_str("start line cannot be read"),
            Malformed::RequestUri => f.write_str("Request-URI cannot be read"),
            Malformed::HeaderLine { at } => write!(f, "no header at byte {at}"),
            Malformed::LoneReturn { at } => write!(f, "CR without LF in the header at byte {at}"),
            Malformed::NoEmptyLine => f.write_str("no empty line after the headers"),
            Malformed::Missing(field) => write!(f, "{} is missing", field.as_str()),
            Malformed::Repeated(field) => write!(f, "{} is there more than once", field.as_str()),
            Malformed::Via => f.write_str("top Via cannot be read"),
            Malformed::Cseq => f.write_str("CSeq cannot be read"),
            Malformed::CseqMethod => f.write_str("CSeq has another method"),
            Malformed::MaxForwards => f.write_str("Max-Forwards is no number"),
            Malformed::ContentLength => f.write_str("Content-Length is no number"),
            Malformed::BodyCut { said, present } => {
                write!(f, "Content-Length is {said} but the body has {present} bytes")
            }
            Malformed::TooLarge { bytes } => write!(f, "message of {bytes} bytes"),
            Malformed::HeaderLines => write!(f, "more than {HEADER_LINES_MAX} headers"),
            Malformed::LineBytes { bytes } => write!(f, "header of {bytes} bytes"),
            Malformed::Vias { count } => write!(f, "{count} Via values"),
        }
    }
}

impl Field {
    /// As the wire spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Field::Via => "Via",
            Field::From => "From",
            Field::To => "To",
            Field::CallId => "Call-ID",
            Field::Cseq => "CSeq",
            Field::MaxForwards => "Max-Forwards",
            Field::ContentLength => "Content-Length",
            Field::InitialRemote => "X-Sip-Balancer-InitialRemote",
        }
    }
}

/// What is left of a malformed request: enough to answer it (`sip.md` 2.13).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Salvage<'m> {
    /// All bytes received, without line ends in front.
    pub bytes: &'m [u8],
    /// Text of the top Via value.
    pub via: &'m [u8],
    /// Text of From.
    pub from: &'m [u8],
    /// Text of To.
    pub to: &'m [u8],
    /// Text of Call-ID.
    pub call_id: &'m [u8],
    /// Text of CSeq.
    pub cseq: &'m [u8],
    first_header: usize,
}

impl<'m> Salvage<'m> {
    /// The header lines that can be read.
    pub(crate) fn lines(&self) -> impl Iterator<Item = Line<'m>> {
        good_lines(self.bytes, self.first_header)
    }
}

/// Looks in a malformed message for what an answer needs. `None`: a response, an ACK, or a header is
/// missing; nothing may be sent.
pub fn salvage(datagram: &[u8]) -> Option<Salvage<'_>> {
    let datagram = datagram.get(..MESSAGE_BYTES_MAX).unwrap_or(datagram);
    let bytes = datagram.get(leading_line_ends(datagram)..)?;
    let (end, first_header) = line_end(bytes, 0)?;
    let first_line = bytes.get(..end)?;
    if starts_with_sip(first_line) || first_line.starts_with(b"ACK ") {
        return None;
    }
    let (mut via, mut from, mut to, mut call_id, mut cseq) = (None, None, None, None, None);
    for line in good_lines(bytes, first_header) {
        let found = match line.kind {
            Name::Via => &mut via,
            Name::From => &mut from,
            Name::To => &mut to,
            Name::CallId => &mut call_id,
            Name::Cseq => &mut cseq,
            _ => continue,
        };
        let value = line.value();
        if found.is_none() && !value.is_empty() {
            *found = Some(value.of(bytes));
        }
    }
    let via = via?;
    let via = via.get(..list_element(via, true))?;
    let (from, to, call_id, cseq) = (from?, to?, call_id?, cseq?);
    Some(Salvage { bytes, via, from, to, call_id, cseq, first_header })
}
