//! WebSocket frames (RFC 6455 §5, §7.4): frames in, messages out, and the other way round.
//!
//! Knows no extensions, so reserved bits are errors. A frame is handed out when it is whole; a message
//! when its last fragment is. Does not read what a message says.

use alloc::vec::Vec;

/// Which end we are. Clients mask what they send, servers do not (RFC 6455 §5.1).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// We opened the connection.
    Client,
    /// We accepted it.
    Server,
}

/// What a frame is (RFC 6455 §5.2).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Opcode {
    /// The next part of a message.
    Continuation,
    /// A message of UTF-8 text, or its first part.
    Text,
    /// A message of any bytes, or its first part.
    Binary,
    /// The last frame of its sender.
    Close,
    /// To be answered by a pong with the same bytes.
    Ping,
    /// The answer to a ping, or a sign of life.
    Pong,
}

impl Opcode {
    const fn code(self) -> u8 {
        match self {
            Opcode::Continuation => 0,
            Opcode::Text => 1,
            Opcode::Binary => 2,
            Opcode::Close => 8,
            Opcode::Ping => 9,
            Opcode::Pong => 10,
        }
    }

    const fn of(code: u8) -> Option<Opcode> {
        Some(match code {
            0 => Opcode::Continuation,
            1 => Opcode::Text,
            2 => Opcode::Binary,
            8 => Opcode::Close,
            9 => Opcode::Ping,
            10 => Opcode::Pong,
            _ => return None,
        })
    }

    const fn is_control(self) -> bool {
        matches!(self, Opcode::Close | Opcode::Ping | Opcode::Pong)
    }
}

/// Status codes of close frames that we send (RFC 6455 §7.4.1).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u16)]
pub enum Closing {
    /// All is said.
    Normal = 1000,
    /// We stop, or the peer was silent for too long.
    GoingAway = 1001,
    /// It broke the protocol.
    Protocol = 1002,
    /// Text that is no UTF-8.
    NotText = 1007,
    /// What it sent is not SIP, or it does not read what we send.
    Policy = 1008,
    /// A message above the limit.
    TooBig = 1009,
}

/// What one frame brought.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Event<'s> {
    /// No whole frame yet: 0 bytes are consumed.
    NeedMore,
    /// Part of a message; more will follow.
    Fragment,
    /// One whole message, text or binary.
    Message(&'s [u8]),
    /// Answer with a pong of the same bytes.
    Ping(&'s [u8]),
    /// A sign of life.
    Pong,
    /// The peer closes: answer with the same code, once, and close the connection.
    Close {
        /// Why, if it says.
        code: Option<u16>,
    },
}

/// Why frames cannot be read on. Every variant closes the connection with [`Violation::closing`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Violation {
    /// A reserved bit is set, and no extension was agreed on.
    Reserved,
    /// An opcode that does not exist.
    Opcode {
        /// It.
        code: u8,
    },
    /// A client that does not mask, or a server that does.
    Masking,
    /// A control frame in fragments, or longer than 125 bytes.
    Control,
    /// A continuation of nothing, or a new message within another.
    Sequence,
    /// A close frame with a code that may not be sent, or half a code.
    CloseCode,
    /// Text, or the reason of a close, that is no UTF-8.
    NotText,
    /// Above the limit for messages.
    TooBig {
        /// Bytes so far; saturates.
        bytes: u64,
    },
}

impl Violation {
    /// The code to close with.
    pub const fn closing(self) -> Closing {
        match self {
            Violation::NotText => Closing::NotText,
            Violation::TooBig { .. } => Closing::TooBig,
            _ => Closing::Protocol,
        }
    }
}

/// Reads the frames of one connection.
#[derive(Clone, Debug)]
pub struct Reader {
    role: Role,
    message_bytes_max: usize,
    /// Fragments of the message that is under way.
    assembled: Vec<u8>,
    /// It is under way, and this is what its first frame said.
    under_way: Option<Opcode>,
    /// `assembled` was handed out and is to be emptied.
    is_spent: bool,
}

impl Reader {
    /// For one connection. `role` is ours; the peer has the other.
    pub fn new(role: Role, message_bytes_max: usize) -> Reader {
        Reader { role, message_bytes_max, assembled: Vec::new(), under_way: None, is_spent: false }
    }

    /// Reads the frame at the front of `stream`: everything received and not yet consumed. Returns how
    /// many bytes it took and what it brought; payloads are unmasked in place.
    ///
    /// At most a header (14 bytes) and one message of the limit are asked for before anything is consumed.
    ///
    /// # Errors
    ///
    /// [`Violation`]: close the connection, after a close frame with its code.
    pub fn read<'s>(&'s mut self, stream: &'s mut [u8]) -> Result<(usize, Event<'s>), Violation> {
        if core::mem::take(&mut self.is_spent) {
            // A long message must not cost its memory for as long as the connection lives.
            self.assembled = Vec::new();
        }
        let Some(head) = Head::read(stream)? else { return Ok((0, Event::NeedMore)) };
        let is_masked = head.mask.is_some();
        if is_masked != (self.role == Role::Server) {
            return Err(Violation::Masking);
        }
        self.admit(&head)?;
        let (from, to) = (head.bytes, head.bytes.saturating_add(head.payload));
        let Some(payload) = stream.get_mut(from..to) else { return Ok((0, Event::NeedMore)) };
        if let Some(mask) = head.mask {
            apply_mask(payload, mask);
        }
        let event = match head.opcode {
            Opcode::Ping => Event::Ping(payload),
            Opcode::Pong => Event::Pong,
            Opcode::Close => Event::Close { code: close_code(payload)? },
            Opcode::Text | Opcode::Binary if head.is_final => {
                check(head.opcode, payload)?;
                Event::Message(payload)
            }
            Opcode::Text | Opcode::Binary => {
                self.assembled.extend_from_slice(payload);
                self.under_way = Some(head.opcode);
                Event::Fragment
            }
            Opcode::Continuation => {
                self.assembled.extend_from_slice(payload);
                if head.is_final {
                    self.is_spent = true;
                    check(self.under_way.take().unwrap_or(Opcode::Binary), &self.assembled)?;
                    Event::Message(&self.assembled)
                } else {
                    Event::Fragment
                }
            }
        };
        Ok((to, event))
    }

    /// Whether fragments of a message have come, and not its last one.
    pub const fn is_within_message(&self) -> bool {
        self.under_way.is_some()
    }

    /// The start of the message that [`Violation::TooBig`] refused, as far as it is there: the frame at the
    /// front of `stream`, unmasked in place, behind the fragments before it.
    pub fn refused<'s>(&'s mut self, stream: &'s mut [u8]) -> &'s [u8] {
        let Ok(Some(head)) = Head::read(stream) else { return &[] };
        let end = head.bytes.saturating_add(head.payload).min(stream.len());
        let payload = stream.get_mut(head.bytes..end).unwrap_or_default();
        if let Some(mask) = head.mask {
            apply_mask(payload, mask);
        }
        if self.assembled.is_empty() {
            return payload;
        }
        self.assembled.extend_from_slice(payload);
        &self.assembled
    }

    /// What can be said before the payload is there.
    fn admit(&self, head: &Head) -> Result<(), Violation> {
        if head.opcode.is_control() {
            return if head.is_final && head.payload <= CONTROL_BYTES_MAX {
                Ok(())
            } else {
                Err(Violation::Control)
            };
        }
        if (head.opcode == Opcode::Continuation) != self.under_way.is_some() {
            return Err(Violation::Sequence);
        }
        let bytes = self.assembled.len().saturating_add(head.payload);
        if bytes > self.message_bytes_max {
            return Err(Violation::TooBig { bytes: bytes as u64 });
        }
        Ok(())
    }
}

struct Head {
    is_final: bool,
    opcode: Opcode,
    mask: Option<[u8; 4]>,
    /// Of the header itself.
    bytes: usize,
    payload: usize,
}

impl Head {
    fn read(stream: &[u8]) -> Result<Option<Head>, Violation> {
        let [first, second, rest @ ..] = stream else {
            return match stream.first() {
                Some(first) => first_byte(*first).map(|_| None),
                None => Ok(None),
            };
        };
        let (is_final, opcode) = first_byte(*first)?;
        let (payload, extended) = match second & 0x7f {
            126 => match rest.first_chunk() {
                Some(length) => (u64::from(u16::from_be_bytes(*length)), 2),
                None => return Ok(None),
            },
            127 => match rest.first_chunk() {
                Some(length) => (u64::from_be_bytes(*length), 8),
                None => return Ok(None),
            },
            length => (u64::from(length), 0),
        };
        let mut bytes = 2 + extended;
        let mut mask = None;
        if second & 0x80 != 0 {
            mask = stream.get(bytes..).and_then(<[u8]>::first_chunk).copied();
            if mask.is_none() {
                return Ok(None);
            }
            bytes += 4;
        }
        let payload = usize::try_from(payload).map_err(|_| Violation::TooBig { bytes: payload })?;
        Ok(Some(Head { is_final, opcode, mask, bytes, payload }))
    }
}

fn first_byte(byte: u8) -> Result<(bool, Opcode), Violation> {
    if byte & 0x70 != 0 {
        return Err(Violation::Reserved);
    }
    let code = byte & 0x0f;
    let opcode = Opcode::of(code).ok_or(Violation::Opcode { code })?;
    Ok((byte & 0x80 != 0, opcode))
}

fn check(opcode: Opcode, message: &[u8]) -> Result<(), Violation> {
    match opcode {
        Opcode::Text => core::str::from_utf8(message).map(drop).map_err(|_| Violation::NotText),
        _ => Ok(()),
    }
}

/// RFC 6455 §7.4: which codes may be on the wire.
fn close_code(payload: &[u8]) -> Result<Option<u16>, Violation> {
    let Some((code, reason)) = payload.split_first_chunk() else {
        return if payload.is_empty() { Ok(None) } else { Err(Violation::CloseCode) };
    };
    let code = u16::from_be_bytes(*code);
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(Violation::CloseCode);
    }
    check(Opcode::Text, reason)?;
    Ok(Some(code))
}

/// Masks, or takes the mask off (RFC 6455 §5.3).
pub fn apply_mask(bytes: &mut [u8], mask: [u8; 4]) {
    let word = u32::from_ne_bytes(mask);
    let (words, rest) = bytes.as_chunks_mut();
    for it in words {
        *it = (u32::from_ne_bytes(*it) ^ word).to_ne_bytes();
    }
    rest.iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
}

/// Appends the header of an unfragmented frame.
pub fn write_head(opcode: Opcode, payload_bytes: usize, mask: Option<[u8; 4]>, out: &mut Vec<u8>) {
    out.push(0x80 | opcode.code());
    let masked = if mask.is_some() { 0x80 } else { 0 };
    if let Ok(length @ ..126) = u8::try_from(payload_bytes) {
        out.push(masked | length);
    } else if let Ok(length) = u16::try_from(payload_bytes) {
        out.push(masked | 126);
        out.extend_from_slice(&length.to_be_bytes());
    } else {
        out.push(masked | 127);
        out.extend_from_slice(&(payload_bytes as u64).to_be_bytes());
    }
    out.extend_from_slice(mask.as_ref().map_or(&[], |it| it.as_slice()));
}

/// Appends a whole frame. `mask`: for clients, another for each frame; servers have none.
pub fn write(opcode: Opcode, payload: &[u8], mask: Option<[u8; 4]>, out: &mut Vec<u8>) {
    write_head(opcode, payload.len(), mask, out);
    let at = out.len();
    out.extend_from_slice(payload);
    if let (Some(mask), Some(payload)) = (mask, out.get_mut(at..)) {
        apply_mask(payload, mask);
    }
}

/// Appends a close frame.
pub fn write_close(code: u16, mask: Option<[u8; 4]>, out: &mut Vec<u8>) {
    write(Opcode::Close, &code.to_be_bytes(), mask, out);
}

/// The opcode that a message travels by: text wherever it is text, since scripts in browsers get that as
/// a string (RFC 7118 §4.2 allows both).
pub fn opcode_for(message: &[u8]) -> Opcode {
    if core::str::from_utf8(message).is_ok() { Opcode::Text } else { Opcode::Binary }
}

/// RFC 6455 §5.5.
const CONTROL_BYTES_MAX: usize = 125;

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use crate::testing::Random;
    use std::format;
    use std::string::String;
    use std::vec;

    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

    /// Everything a stream brings, as text, and whether it ends in a violation.
    fn events(role: Role, limit: usize, pieces: &[&[u8]]) -> Vec<String> {
        let mut reader = Reader::new(role, limit);
        let (mut stored, mut seen) = (Vec::new(), Vec::new());
        for piece in pieces {
            stored.extend_from_slice(piece);
            loop {
                match reader.read(&mut stored) {
                    Ok((0, Event::NeedMore)) => break,
                    Ok((consumed, event)) => {
                        assert!(consumed > 0);
                        seen.push(match event {
                            Event::Message(it) => {
                                format!("message {}", String::from_utf8_lossy(it))
                            }
                            Event::Ping(it) => format!("ping {}", String::from_utf8_lossy(it)),
                            other => format!("{other:?}"),
                        });
                        stored.drain(..consumed);
                    }
                    Err(violation) => {
                        seen.push(format!("{violation:?}"));
                        return seen;
                    }
                }
            }
        }
        seen
    }

    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        write(Opcode::Binary, payload, Some(MASK), &mut out);
        out[0] = first;
        out
    }

    #[test]
    fn frames_become_messages() {
        // The examples of RFC 6455 §5.7.
        let masked = b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58";
        assert_eq!(events(Role::Server, 100, &[masked]), ["message Hello"]);
        let plain = b"\x81\x05\x48\x65\x6c\x6c\x6f";
        assert_eq!(events(Role::Client, 100, &[plain]), ["message Hello"]);
        let fragments = b"\x01\x03\x48\x65\x6c\x80\x02\x6c\x6f";
        assert_eq!(events(Role::Client, 100, &[fragments]), ["Fragment", "message Hello"]);
        let ping = b"\x89\x05\x48\x65\x6c\x6c\x6f";
        assert_eq!(events(Role::Client, 100, &[ping]), ["ping Hello"]);
        let long = [b"\x82\x7e\x01\x00".as_slice(), &[b'x'; 256]].concat();
        let text = format!("message {}", "x".repeat(256));
        assert_eq!(events(Role::Client, 256, &[&long]), [text]);
        let longer = [b"\x82\x7f\0\0\0\0\0\x01\0\0".as_slice(), &[b'x'; 65_536]].concat();
        let text = format!("message {}", "x".repeat(65_536));
        assert_eq!(events(Role::Client, 65_536, &[&longer]), [text]);
    }

    #[test]
    fn what_breaks_the_protocol_is_named_and_has_a_close_code() {
        let cases: &[(&str, Vec<u8>, &[&str], Closing)] = &[
            ("reserved bit", frame(0xc1, b"x"), &["Reserved"], Closing::Protocol),
            ("opcode 3", frame(0x83, b"x"), &["Opcode { code: 3 }"], Closing::Protocol),
            ("opcode 11", frame(0x8b, b"x"), &["Opcode { code: 11 }"], Closing::Protocol),
            ("unmasked", b"\x81\x01x".to_vec(), &["Masking"], Closing::Protocol),
            ("ping in fragments", frame(0x09, b"x"), &["Control"], Closing::Protocol),
            ("long ping", frame(0x89, &[0; 126]), &["Control"], Closing::Protocol),
            ("continuation of nothing", frame(0x80, b"x"), &["Sequence"], Closing::Protocol),
            (
                "message within a message",
                [frame(0x01, b"x"), frame(0x81, b"y")].concat(),
                &["Fragment", "Sequence"],
                Closing::Protocol,
            ),
            ("not UTF-8", frame(0x81, b"\xff"), &["NotText"], Closing::NotText),
            (
                "not UTF-8 in parts",
                [frame(0x01, b"\xc3"), frame(0x80, b"x")].concat(),
                &["Fragment", "NotText"],
                Closing::NotText,
            ),
            ("giant", frame(0x82, &[0; 101]), &["TooBig { bytes: 101 }"], Closing::TooBig),
            (
                "giant in parts",
                [frame(0x02, &[0; 60]), frame(0x80, &[0; 60])].concat(),
                &["Fragment", "TooBig { bytes: 120 }"],
                Closing::TooBig,
            ),
            (
                "2^63 bytes",
                b"\x82\xff\x80\0\0\0\0\0\0\0\0\0\0\0".to_vec(),
                &["TooBig { bytes: 9223372036854775808 }"],
                Closing::TooBig,
            ),
            ("half a close code", frame(0x88, b"\x03"), &["CloseCode"], Closing::Protocol),
            ("close 1005", frame(0x88, b"\x03\xed"), &["CloseCode"], Closing::Protocol),
            ("close 999", frame(0x88, b"\x03\xe7"), &["CloseCode"], Closing::Protocol),
            ("bad reason", frame(0x88, b"\x03\xe8\xff"), &["NotText"], Closing::NotText),
        ];
        for (name, stream, want, _) in cases {
            assert_eq!(events(Role::Server, 100, &[stream]), *want, "{name}");
        }
        for (name, stream, _, closing) in cases {
            let mut reader = Reader::new(Role::Server, 100);
            let mut stream = stream.clone();
            let violation = loop {
                match reader.read(&mut stream) {
                    Ok((consumed, _)) => drop(stream.drain(..consumed)),
                    Err(violation) => break violation,
                }
            };
            assert_eq!(violation.closing(), *closing, "{name}");
        }
        assert_eq!(events(Role::Client, 100, &[&frame(0x81, b"x")]), ["Masking"]);
    }

    #[test]
    fn a_close_says_why() {
        let close = |payload: &[u8]| events(Role::Server, 100, &[&frame(0x88, payload)]);
        assert_eq!(close(b""), ["Close { code: None }"]);
        assert_eq!(close(b"\x03\xe8bye"), ["Close { code: Some(1000) }"]);
        assert_eq!(close(b"\x0f\xa0"), ["Close { code: Some(4000) }"]);
    }

    #[test]
    fn control_frames_may_stand_between_fragments() {
        let stream =
            [frame(0x01, b"one "), frame(0x89, b"?"), frame(0x8a, b""), frame(0x80, b"message")];
        let want = ["Fragment", "ping ?", "Pong", "message one message"];
        assert_eq!(events(Role::Server, 100, &[&stream.concat()]), want);
    }

    #[test]
    fn where_the_network_cuts_a_stream_does_not_matter() {
        let stream = [
            frame(0x81, b"text"),
            frame(0x02, &[7; 200]),
            frame(0x89, b"ping"),
            frame(0x80, &[8; 70]),
            frame(0x82, &[b'y'; 130]),
            frame(0x88, b"\x03\xe8"),
        ]
        .concat();
        let whole = events(Role::Server, 300, &[&stream]);
        assert_eq!(whole.len(), 6);
        for cut in 0..=stream.len() {
            let (one, two) = stream.split_at(cut);
            assert_eq!(events(Role::Server, 300, &[one, two]), whole, "cut at {cut}");
        }
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(events(Role::Server, 300, &bytes), whole);
    }

    #[test]
    fn mutations_never_panic_and_cuts_change_nothing() {
        let stream = [frame(0x01, b"one "), frame(0x89, b"?"), frame(0x80, b"two")].concat();
        for seed in 0..5_000 {
            let mut random = Random::new(seed);
            let mutated = random.mutate(&stream);
            let whole = events(Role::Server, 64, &[&mutated]);
            let (one, two) = mutated.split_at(random.below(mutated.len() + 1));
            assert_eq!(events(Role::Server, 64, &[one, two]), whole, "seed {seed}");
        }
    }

    #[test]
    fn what_we_write_the_other_end_reads() {
        for length in [0, 1, 3, 4, 125, 126, 127, 65_535, 65_536, 70_000] {
            let payload = vec![b'z'; length];
            for (mask, role) in [(Some(MASK), Role::Server), (None, Role::Client)] {
                let mut out = Vec::new();
                write(opcode_for(&payload), &payload, mask, &mut out);
                let mut reader = Reader::new(role, 70_000);
                let (consumed, event) = reader.read(&mut out).unwrap();
                assert_eq!(event, Event::Message(&payload), "{length}");
                assert_eq!(consumed, out.len(), "{length}");
            }
        }
        assert_eq!(opcode_for(b"\xff"), Opcode::Binary);
        let mut close = Vec::new();
        write_close(Closing::Policy as u16, None, &mut close);
        assert_eq!(events(Role::Client, 10, &[&close]), ["Close { code: Some(1008) }"]);
    }

    #[test]
    fn the_start_of_what_is_too_big_can_be_read() {
        let masked = |first: u8, length: u8, text: &[u8]| {
            let mut payload = text.to_vec();
            apply_mask(&mut payload, MASK);
            [&[first, 0x80 | length][..], &MASK, &payload].concat()
        };
        let mut reader = Reader::new(Role::Server, 10);
        let mut fragment = masked(0x01, 6, b"OPTION");
        assert!(matches!(reader.read(&mut fragment), Ok((12, Event::Fragment))));
        let mut rest = masked(0x80, 7, b"S s");
        assert_eq!(reader.read(&mut rest), Err(Violation::TooBig { bytes: 13 }));
        assert_eq!(reader.refused(&mut rest), b"OPTIONS s");
        let mut whole = [masked(0x81, 11, b"OPTIONS sip"), vec![0; 9]].concat();
        let mut reader = Reader::new(Role::Server, 10);
        assert_eq!(reader.read(&mut whole), Err(Violation::TooBig { bytes: 11 }));
        assert_eq!(reader.refused(&mut whole), b"OPTIONS sip", "and not what is behind it");
    }
}
