//! PDUs off a stream, and the short ones that a balancer writes itself.
//!
//! Source: SMPP 3.4 §3.2: a header of four big-endian words, then a body of the operation's own shape.

use alloc::vec::Vec;

use super::body::Bind;
use super::{Command, Status};

/// What stands at the front of a stream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Frame<'s> {
    /// Nothing whole yet.
    NeedMore {
        /// At least this many bytes more, never 0.
        bytes: usize,
    },
    /// One whole PDU: consume its length.
    Pdu(Pdu<'s>),
}

/// Why bytes are not a PDU. Framing is lost for good: answer generic_nack with
/// [`Status::INVALID_COMMAND_LENGTH`] and sequence number 0, then close.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Malformed {
    /// `command_length` is smaller than a header or larger than [`PDU_BYTES_MAX`].
    Length {
        /// What it says.
        bytes: usize,
    },
}

/// Looks at the front of a stream. `stream` is everything received and not yet consumed. A wrong length
/// is found with the first four bytes.
///
/// Source: SMPP 3.4 §3.2 (`command_length` counts itself).
///
/// # Errors
///
/// [`Malformed`]: close the connection.
pub fn frame(stream: &[u8]) -> Result<Frame<'_>, Malformed> {
    let Some((length, _)) = stream.split_first_chunk() else {
        return Ok(Frame::NeedMore { bytes: HEADER_BYTES.saturating_sub(stream.len()) });
    };
    let bytes = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
    if !(HEADER_BYTES..=PDU_BYTES_MAX).contains(&bytes) {
        return Err(Malformed::Length { bytes });
    }
    Ok(match stream.get(..bytes) {
        Some(bytes) => Frame::Pdu(Pdu { bytes }),
        None => Frame::NeedMore { bytes: bytes - stream.len() },
    })
}

/// One whole PDU: a header at least. Its length is what the header says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Pdu<'p> {
    bytes: &'p [u8],
}

impl<'p> Pdu<'p> {
    /// Which operation.
    pub fn command(self) -> Command {
        Command(word(self.bytes, 4))
    }

    /// How it went; 0 in requests.
    pub fn status(self) -> Status {
        Status(word(self.bytes, 8))
    }

    /// Its number, any 32 bits: some peers use 0 and the high bit.
    pub fn sequence(self) -> u32 {
        word(self.bytes, SEQUENCE_AT)
    }

    /// Header and body.
    pub fn bytes(self) -> &'p [u8] {
        self.bytes
    }

    /// What follows the header.
    pub fn body(self) -> &'p [u8] {
        self.bytes.get(HEADER_BYTES..).unwrap_or_default()
    }

    /// Appends it to `out` under another number; every other byte stays.
    pub fn append_as(self, sequence: u32, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(self.bytes);
        if let Some(at) = out.get_mut(start + SEQUENCE_AT..start + HEADER_BYTES) {
            at.copy_from_slice(&sequence.to_be_bytes());
        }
    }
}

/// Appends a PDU without a body: enquire_link, unbind, and every error response (SMPP 3.4 §4: "the body
/// is not returned if the status is not 0").
pub fn write_header(command: Command, status: Status, sequence: u32, out: &mut Vec<u8>) {
    let length = HEADER_LENGTH;
    for word in [length, command.0, status.0, sequence] {
        out.extend_from_slice(&word.to_be_bytes());
    }
}

/// Appends a bind request.
pub fn write_bind(command: Command, sequence: u32, bind: &Bind<'_>, out: &mut Vec<u8>) {
    write_with_length(out, |out| {
        write_header(command, Status::OK, sequence, out);
        for text in [bind.system_id, bind.password, bind.system_type] {
            out.extend_from_slice(text);
            out.push(0);
        }
        out.extend_from_slice(&[bind.interface_version, bind.address_ton, bind.address_npi]);
        out.extend_from_slice(bind.address_range);
        out.push(0);
    });
}

/// Appends the response to `bind`, a request, with our name and, for peers of version 3.4 on, the TLV
/// sc_interface_version.
pub fn write_bind_response(
    bind: Command,
    status: Status,
    sequence: u32,
    system_id: &[u8],
    interface_version: u8,
    out: &mut Vec<u8>,
) {
    write_with_length(out, |out| {
        write_header(bind.response(), status, sequence, out);
        out.extend_from_slice(system_id);
        out.push(0);
        if interface_version >= super::body::VERSION_3_4 {
            out.extend_from_slice(&super::body::SC_INTERFACE_VERSION.to_be_bytes());
            out.extend_from_slice(&[0, 1, interface_version]);
        }
    });
}

/// The length word is known only when the body stands.
fn write_with_length(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    write(out);
    let length = u32::try_from(out.len() - start).unwrap_or(u32::MAX);
    if let Some(at) = out.get_mut(start..start + 4) {
        at.copy_from_slice(&length.to_be_bytes());
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|it| it.first_chunk()).map_or(0, |it| u32::from_be_bytes(*it))
}

/// Length of a header.
pub const HEADER_BYTES: usize = 16;
const HEADER_LENGTH: u32 = 16;
/// Where the sequence number stands.
const SEQUENCE_AT: usize = 12;

/// SMPP names no limit, so we do: past it the peer is lost or hostile.
pub const PDU_BYTES_MAX: usize = 64 * 1024;
const _: () = assert!(HEADER_BYTES < PDU_BYTES_MAX);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    const ENQUIRE_LINK: &[u8] = b"\0\0\0\x10\0\0\0\x15\0\0\0\0\0\0\0\x01";

    fn pdu(bytes: &[u8]) -> Pdu<'_> {
        match frame(bytes) {
            Ok(Frame::Pdu(it)) => it,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn streams_become_pdus() {
        let whole = Frame::Pdu(Pdu { bytes: ENQUIRE_LINK });
        let two = [ENQUIRE_LINK, ENQUIRE_LINK].concat();
        let cases: &[(&str, &[u8], Result<Frame<'_>, Malformed>)] = &[
            ("nothing yet", b"", Ok(Frame::NeedMore { bytes: 16 })),
            ("part of a length", b"\0\0", Ok(Frame::NeedMore { bytes: 14 })),
            ("one byte short", &ENQUIRE_LINK[..15], Ok(Frame::NeedMore { bytes: 1 })),
            ("exactly one", ENQUIRE_LINK, Ok(whole)),
            ("two", &two, Ok(whole)),
            ("a body to come", b"\0\0\0\x21", Ok(Frame::NeedMore { bytes: 29 })),
            ("below a header", b"\0\0\0\x0f", Err(Malformed::Length { bytes: 15 })),
            ("zero", b"\0\0\0\0", Err(Malformed::Length { bytes: 0 })),
            ("above the limit", b"\0\x01\0\x01", Err(Malformed::Length { bytes: 65_537 })),
            ("negative", b"\x80\0\0\x10", Err(Malformed::Length { bytes: 0x8000_0010 })),
        ];
        for (name, stream, want) in cases {
            assert_eq!(frame(stream), *want, "{name}");
        }
        let mut largest = alloc::vec![0; PDU_BYTES_MAX];
        largest[..4].copy_from_slice(b"\0\x01\0\0");
        assert_eq!(frame(&largest), Ok(Frame::Pdu(Pdu { bytes: &largest })), "at the limit");
    }

    #[test]
    fn headers_are_read_as_they_stand() {
        let bytes = b"\0\0\0\x12\x80\0\0\x04\0\0\0\x58\xff\0\0\x07id";
        let it = pdu(bytes);
        assert_eq!(it.command(), Command::SUBMIT_SM.response());
        assert_eq!(it.status(), Status::THROTTLED);
        assert_eq!(it.sequence(), 0xff00_0007);
        assert_eq!(it.body(), b"id");
    }

    #[test]
    fn a_new_number_changes_four_bytes() {
        let mut out = b"before".to_vec();
        pdu(b"\0\0\0\x12\x80\0\0\x04\0\0\0\x58\xff\0\0\x07id").append_as(0x0102_0304, &mut out);
        assert_eq!(out, b"before\0\0\0\x12\x80\0\0\x04\0\0\0\x58\x01\x02\x03\x04id");
    }

    #[test]
    fn our_own_pdus_are_well_formed() {
        let bind = Bind {
            system_id: b"esme",
            password: b"secret",
            system_type: b"",
            interface_version: 0x34,
            address_ton: 1,
            address_npi: 2,
            address_range: b"*",
        };
        let mut out = Vec::new();
        write_bind(Command::BIND_TRANSCEIVER, 7, &bind, &mut out);
        let want = b"\0\0\0\x22\0\0\0\x09\0\0\0\0\0\0\0\x07esme\0secret\0\0\x34\x01\x02*\0";
        assert_eq!(out, want);
        assert_eq!(Bind::read(pdu(&out).body()), Some(bind));

        let cases: [(u8, &[u8]); 2] = [
            (0x33, b"\0\0\0\x13\x80\0\0\x01\0\0\0\x0e\0\0\0\x09lb\0"),
            (0x34, b"\0\0\0\x18\x80\0\0\x01\0\0\0\x0e\0\0\0\x09lb\0\x02\x10\0\x01\x34"),
        ];
        for (version, want) in cases {
            out.clear();
            let status = Status::INVALID_PASSWORD;
            write_bind_response(Command::BIND_RECEIVER, status, 9, b"lb", version, &mut out);
            assert_eq!(out, want, "{version:#x}");
        }
        out.clear();
        write_header(Command::ENQUIRE_LINK, Status::OK, 1, &mut out);
        assert_eq!(out, ENQUIRE_LINK);
    }

    #[test]
    fn where_the_network_cuts_a_stream_does_not_matter() {
        for seed in 0..2_000 {
            let mut random = Random::new(seed);
            let mut stream = Vec::new();
            for _ in 0..4 {
                let body = random.below(40);
                let length = u32::try_from(HEADER_BYTES + body).unwrap();
                stream.extend_from_slice(&length.to_be_bytes());
                (0..12 + body).for_each(|_| stream.push(random.next().to_le_bytes()[0]));
            }
            if random.below(2) == 0 {
                stream = random.mutate(&stream);
            }
            let whole = frame(&stream);
            for cut in 0..stream.len() {
                match frame(&stream[..cut]) {
                    Ok(Frame::NeedMore { bytes }) => {
                        assert!(bytes > 0, "seed {seed} cut {cut}");
                    }
                    decided => assert_eq!(decided, whole, "seed {seed} cut {cut}"),
                }
            }
        }
    }
}
