//! The few body fields that a balancer reads: who binds, what a message is called, which receipt belongs
//! to it, which segments belong together, and how busy the other side is.
//!
//! Source: SMPP 3.4 §4 (bodies), §5.2 (fields), §5.3 (TLVs), appendix B (receipts); 3GPP TS 23.040
//! §9.2.3.24 (user data header). A body that breaks off reads as `None`, and passes all the same.

use core::fmt;

use super::Command;
use super::pdu::Pdu;

/// Body of a bind. Credentials: never shown, not even for debugging.
#[derive(Clone, Copy, Eq, PartialEq)]
pub struct Bind<'p> {
    /// Who binds; ISO-8859-1.
    pub system_id: &'p [u8],
    /// Its password.
    pub password: &'p [u8],
    /// What kind of system it is.
    pub system_type: &'p [u8],
    /// Version that it speaks.
    pub interface_version: u8,
    /// Type of number of the range.
    pub address_ton: u8,
    /// Numbering plan of the range.
    pub address_npi: u8,
    /// Addresses that it serves.
    pub address_range: &'p [u8],
}

impl<'p> Bind<'p> {
    /// Reads the body of a bind of any kind. TLVs behind it do not count. `None`: it breaks off.
    pub fn read(body: &'p [u8]) -> Option<Self> {
        let mut rest = body;
        Some(Bind {
            system_id: text(&mut rest)?,
            password: text(&mut rest)?,
            system_type: text(&mut rest)?,
            interface_version: octet(&mut rest)?,
            address_ton: octet(&mut rest)?,
            address_npi: octet(&mut rest)?,
            address_range: text(&mut rest)?,
        })
    }
}

impl fmt::Debug for Bind<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bind")
            .field("interface_version", &self.interface_version)
            .finish_non_exhaustive()
    }
}

/// Body of submit_sm, deliver_sm or data_sm, as far as routing reads it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Message<'p> {
    /// Sender's address.
    pub source: &'p [u8],
    /// Receiver's address.
    pub destination: &'p [u8],
    /// Mode, type and features (§5.2.12).
    pub esm_class: u8,
    /// Its text: short_message, or the TLV message_payload if that is empty.
    pub text: &'p [u8],
    tlvs: Tlvs<'p>,
}

impl<'p> Message<'p> {
    /// Reads a PDU. `None`: another operation, or the body breaks off.
    pub fn read(pdu: Pdu<'p>) -> Option<Self> {
        let rest = &mut pdu.body();
        let is_data = match pdu.command() {
            Command::SUBMIT_SM | Command::DELIVER_SM => false,
            Command::DATA_SM => true,
            _ => return None,
        };
        let _service_type = text(rest)?;
        let source = address(rest)?;
        let destination = address(rest)?;
        let esm_class = octet(rest)?;
        let mut short_message: &[u8] = &[];
        if is_data {
            skip(rest, 2)?; // registered_delivery, data_coding
        } else {
            skip(rest, 2)?; // protocol_id, priority_flag
            let _schedule_delivery_time = text(rest)?;
            let _validity_period = text(rest)?;
            skip(rest, 4)?; // registered_delivery to sm_default_msg_id
            let length = usize::from(octet(rest)?);
            short_message = rest.split_off(..length)?;
        }
        let tlvs = Tlvs(rest);
        if short_message.is_empty() {
            short_message = tlvs.find(MESSAGE_PAYLOAD).unwrap_or_default();
        }
        Some(Message { source, destination, esm_class, text: short_message, tlvs })
    }

    /// Reference number of the long message that this is a segment of. `None`: it is no segment.
    pub fn segment_of(&self) -> Option<u16> {
        if self.esm_class & ESM_CLASS_UDHI != 0 {
            return header_reference(self.text);
        }
        let segments = self.tlvs.find(SAR_TOTAL_SEGMENTS)?.first().copied()?;
        let reference = self.tlvs.find(SAR_MSG_REF_NUM)?.first_chunk()?;
        (segments > 1).then_some(u16::from_be_bytes(*reference))
    }

    /// Id of the message that this is a receipt for, final or intermediate. `None`: it is none, or names
    /// no message.
    pub fn receipt_of(&self) -> Option<&'p [u8]> {
        if !matches!(self.esm_class & ESM_CLASS_TYPE, ESM_CLASS_RECEIPT | ESM_CLASS_INTERMEDIATE) {
            return None;
        }
        let of_tlv = self.tlvs.find(RECEIPTED_MESSAGE_ID).map(until_nul);
        of_tlv.filter(|it| !it.is_empty()).or_else(|| id_in_text(self.text))
    }
}

/// Id that the SMSC gave to a message: body of submit_sm_resp, submit_multi_resp and data_sm_resp.
/// `None`: there is none, as in error responses.
pub fn message_id(response: Pdu<'_>) -> Option<&[u8]> {
    let id = text(&mut response.body())?;
    (!id.is_empty() && has_message_id(response.command())).then_some(id)
}

/// Id of the message that a query_sm, cancel_sm or replace_sm is about (§4.8, §4.9, §4.10). `None`: another
/// operation, a cancel_sm of all messages to an address, or the body breaks off.
pub fn message_asked_about(request: Pdu<'_>) -> Option<&[u8]> {
    let rest = &mut request.body();
    match request.command() {
        Command::QUERY_SM | Command::REPLACE_SM => {}
        Command::CANCEL_SM => drop(text(rest)?), // service_type
        _ => return None,
    }
    text(rest).filter(|it| !it.is_empty())
}

/// How busy the SMSC is, 0 to 99 (SMPP 5.0 §4.8.4.18), from a response that says so.
pub fn congestion_state(response: Pdu<'_>) -> Option<u8> {
    let mut rest = response.body();
    match response.command().request() {
        Command::SUBMIT_SM | Command::DATA_SM => text(&mut rest)?,
        _ => return None,
    };
    Tlvs(rest).find(CONGESTION_STATE)?.first().copied()
}

fn has_message_id(response: Command) -> bool {
    matches!(response.request(), Command::SUBMIT_SM | Command::SUBMIT_MULTI | Command::DATA_SM)
}

/// Optional parameters (§3.2.4.1): tag, length, value, one after the other.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Tlvs<'p>(&'p [u8]);

impl<'p> Tlvs<'p> {
    /// The first value of this tag.
    fn find(self, tag: u16) -> Option<&'p [u8]> {
        let mut rest = self.0;
        while !rest.is_empty() {
            let found = u16::from_be_bytes(*rest.split_off(..2)?.first_chunk()?);
            let length = u16::from_be_bytes(*rest.split_off(..2)?.first_chunk()?);
            let value = rest.split_off(..usize::from(length))?;
            if found == tag {
                return Some(value);
            }
        }
        None
    }
}

/// Reference of a concatenated message, 8 or 16 bit, in a user data header.
fn header_reference(user_data: &[u8]) -> Option<u16> {
    let mut rest = user_data;
    let length = usize::from(octet(&mut rest)?);
    let mut header = rest.get(..length)?;
    while !header.is_empty() {
        let element = octet(&mut header)?;
        let length = usize::from(octet(&mut header)?);
        let value = header.split_off(..length)?;
        match (element, value) {
            (0x00, [reference, _, _]) => return Some(u16::from(*reference)),
            (0x08, [high, low, _, _]) => return Some(u16::from_be_bytes([*high, *low])),
            _ => {}
        }
    }
    None
}

/// Appendix B: `id:IIIIIIIIII sub:...`.
fn id_in_text(text: &[u8]) -> Option<&[u8]> {
    let start = memchr::memmem::find(text, b"id:")? + 3;
    let rest = text.get(start..)?.trim_ascii_start();
    let end = rest.iter().position(|it| it.is_ascii_whitespace() || *it == 0);
    let id = rest.get(..end.unwrap_or(rest.len()))?;
    (!id.is_empty()).then_some(id)
}

fn text<'p>(rest: &mut &'p [u8]) -> Option<&'p [u8]> {
    let end = memchr::memchr(0, rest)?;
    let it = rest.split_off(..end)?;
    skip(rest, 1)?;
    Some(it)
}

/// Type of number, numbering plan, address.
fn address<'p>(rest: &mut &'p [u8]) -> Option<&'p [u8]> {
    skip(rest, 2)?;
    text(rest)
}

fn octet(rest: &mut &[u8]) -> Option<u8> {
    rest.split_off_first().copied()
}

fn skip(rest: &mut &[u8], bytes: usize) -> Option<()> {
    rest.split_off(..bytes).map(drop)
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|it| *it == 0).next().unwrap_or_default()
}

/// `interface_version` from which on TLVs are understood.
pub const VERSION_3_4: u8 = 0x34;

pub(super) const SC_INTERFACE_VERSION: u16 = 0x0210;
const RECEIPTED_MESSAGE_ID: u16 = 0x001e;
const SAR_MSG_REF_NUM: u16 = 0x020c;
const SAR_TOTAL_SEGMENTS: u16 = 0x020e;
const MESSAGE_PAYLOAD: u16 = 0x0424;
const CONGESTION_STATE: u16 = 0x0428;

const ESM_CLASS_UDHI: u8 = 0x40;
const ESM_CLASS_TYPE: u8 = 0x3c;
const ESM_CLASS_RECEIPT: u8 = 0x04;
const ESM_CLASS_INTERMEDIATE: u8 = 0x20;

#[cfg(test)]
mod tests {
    use alloc::format;
    use alloc::vec::Vec;

    use super::*;
    use crate::smpp::pdu::{Frame, frame};
    use crate::testing::Random;

    fn bytes(command: Command, body: &[u8]) -> Vec<u8> {
        let mut out = u32::try_from(16 + body.len()).unwrap().to_be_bytes().to_vec();
        out.extend_from_slice(&command.0.to_be_bytes());
        out.extend_from_slice(&[0; 8]);
        out.extend_from_slice(body);
        out
    }

    fn pdu(bytes: &[u8]) -> Pdu<'_> {
        match frame(bytes) {
            Ok(Frame::Pdu(it)) => it,
            other => panic!("{other:?}"),
        }
    }

    /// A short message: esm_class, text, TLVs.
    fn short(esm_class: u8, text: &[u8], tlvs: &[u8]) -> Vec<u8> {
        let mut body = b"\0\x01\x01123\0\x02\x02456\0".to_vec();
        body.push(esm_class);
        body.extend_from_slice(b"\0\0\0\0\x01\0\0\0");
        body.push(u8::try_from(text.len()).unwrap());
        body.extend_from_slice(text);
        body.extend_from_slice(tlvs);
        body
    }

    #[test]
    fn binds_are_read_and_never_shown() {
        let body = b"id\0pw\0vms\0\x34\x01\x02^12\0\x02\x10\0\x01\x34";
        let it = Bind::read(body).unwrap();
        assert_eq!(
            (it.system_id, it.password, it.system_type),
            (&b"id"[..], &b"pw"[..], &b"vms"[..])
        );
        assert_eq!((it.interface_version, it.address_ton, it.address_npi), (0x34, 1, 2));
        assert_eq!(it.address_range, b"^12");
        let shown = format!("{it:?}");
        assert!(
            !shown.contains("112") && !shown.contains("id:") && !shown.contains("system"),
            "{shown}"
        );
        for cut in 0..16 {
            assert_eq!(Bind::read(&body[..cut]), None, "cut {cut}");
        }
    }

    #[test]
    fn segments_and_receipts_are_recognised() {
        /// esm_class, text and TLVs; then the long message and the receipted one.
        type Case<'c> = (&'c str, u8, &'c [u8], &'c [u8], Option<u16>, Option<&'c [u8]>);
        let cases: &[Case<'_>] = &[
            ("plain", 0, b"hello id:1", b"", None, None),
            ("udh, 8 bit", 0x40, b"\x05\0\x03\x2a\x02\x01text", b"", Some(0x2a), None),
            ("udh, 16 bit", 0x43, b"\x06\x08\x04\x01\x02\x02\x01t", b"", Some(0x102), None),
            ("udh behind another", 0x40, b"\x09\x05\x02ab\0\x03\x07\x02\x01", b"", Some(7), None),
            ("udh of something else", 0x40, b"\x04\x05\x02abt", b"", None, None),
            ("udh cut", 0x40, b"\x05\0\x03\x2a", b"", None, None),
            (
                "udh in the payload",
                0x40,
                b"",
                b"\x04\x24\0\x06\x05\0\x03\x09\x02\x01",
                Some(9),
                None,
            ),
            ("sar", 0, b"t", b"\x02\x0c\0\x02\x12\x34\x02\x0e\0\x01\x02", Some(0x1234), None),
            ("sar of one", 0, b"t", b"\x02\x0c\0\x02\x12\x34\x02\x0e\0\x01\x01", None, None),
            ("receipt, tlv", 4, b"id:7 x", b"\0\x1e\0\x03ab\0", None, Some(b"ab")),
            ("receipt, text", 4, b"id:0123 sub:001", b"", None, Some(b"0123")),
            ("receipt, id at the end", 4, b"stat:X id:77", b"", None, Some(b"77")),
            ("receipt, payload", 4, b"", b"\x04\x24\0\x05id:5 ", None, Some(b"5")),
            ("intermediate", 0x20, b"id:8 ", b"", None, Some(b"8")),
            ("receipt without id", 4, b"delivered", b"", None, None),
            ("receipt, empty id", 4, b"id: ", b"\0\x1e\0\x01\0", None, None),
            ("tlv breaks off", 4, b"x", b"\0\x1e\0\x09ab", None, None),
        ];
        for (name, esm_class, text, tlvs, segment, receipt) in cases {
            for command in [Command::SUBMIT_SM, Command::DELIVER_SM] {
                let whole = bytes(command, &short(*esm_class, text, tlvs));
                let it = Message::read(pdu(&whole)).expect(name);
                assert_eq!((it.source, it.destination), (&b"123"[..], &b"456"[..]), "{name}");
                assert_eq!(it.segment_of(), *segment, "{name}");
                assert_eq!(it.receipt_of(), *receipt, "{name}");
            }
        }
        let data = b"\0\x01\x01123\0\x02\x02456\0\x04\x01\0\0\x1e\0\x02ab";
        let whole = bytes(Command::DATA_SM, data);
        assert_eq!(Message::read(pdu(&whole)).unwrap().receipt_of(), Some(&b"ab"[..]));
        let other = bytes(Command::QUERY_SM, data);
        assert_eq!(Message::read(pdu(&other)), None);
    }

    #[test]
    fn responses_name_the_message_and_the_load() {
        /// Request, body of its response; then the id and the load.
        type Case<'c> = (Command, &'c [u8], Option<&'c [u8]>, Option<u8>);
        let cases: &[Case<'_>] = &[
            (Command::SUBMIT_SM, b"a1\0", Some(b"a1"), None),
            (Command::SUBMIT_SM, b"a1\0\x04\x28\0\x01\x5a", Some(b"a1"), Some(90)),
            (Command::SUBMIT_SM, b"", None, None),
            (Command::SUBMIT_SM, b"\0", None, None),
            (Command::SUBMIT_SM, b"a1", None, None),
            (Command::DATA_SM, b"z\0\x04\x28\0\x01\x07", Some(b"z"), Some(7)),
            (Command::DATA_SM, b"z\0\x04\x28\0\x02\x07", Some(b"z"), None),
            (Command::SUBMIT_MULTI, b"m\0\0", Some(b"m"), None),
            (Command::QUERY_SM, b"m\0\0\0\0", None, None),
        ];
        for (command, body, id, load) in cases {
            let whole = bytes(command.response(), body);
            assert_eq!(message_id(pdu(&whole)), *id, "{command:?} {body:?}");
            assert_eq!(congestion_state(pdu(&whole)), *load, "{command:?} {body:?}");
        }
    }

    #[test]
    fn questions_name_the_message() {
        type Case<'c> = (Command, &'c [u8], Option<&'c [u8]>);
        let cases: &[Case<'_>] = &[
            (Command::QUERY_SM, b"a1\0\0\0sender\0", Some(b"a1")),
            (Command::QUERY_SM, b"a1", None),
            (Command::QUERY_SM, b"", None),
            (Command::REPLACE_SM, b"a1\0\0\0sender\0\0\0\0\0\x02hi", Some(b"a1")),
            (Command::CANCEL_SM, b"cmt\0a1\0\0\0sender\0\0\0receiver\0", Some(b"a1")),
            (Command::CANCEL_SM, b"\0\0\0\0sender\0\0\0receiver\0", None),
            (Command::CANCEL_SM, b"cmt", None),
            (Command::SUBMIT_SM, b"cmt\0a1\0", None),
        ];
        for (command, body, id) in cases {
            let whole = bytes(*command, body);
            assert_eq!(message_asked_about(pdu(&whole)), *id, "{command:?} {body:?}");
        }
    }

    #[test]
    fn no_body_makes_us_stumble() {
        let seeds = [
            bytes(Command::CANCEL_SM, b"cmt\0a1\0\0\0sender\0\0\0receiver\0"),
            bytes(Command::SUBMIT_SM, &short(0x40, b"\x05\0\x03\x2a\x02\x01text", b"")),
            bytes(Command::DELIVER_SM, &short(4, b"id:1 x", b"\0\x1e\0\x03ab\0")),
            bytes(Command::SUBMIT_SM.response(), b"a1\0\x04\x28\0\x01\x5a"),
            bytes(Command::BIND_TRANSCEIVER, b"id\0pw\0vms\0\x34\x01\x02^12\0"),
        ];
        for seed in 0..20_000 {
            let mut random = Random::new(seed);
            let chosen = random.below(seeds.len());
            let mut whole = random.mutate(&seeds[chosen]);
            let length = u32::try_from(whole.len()).unwrap();
            let Some(at) = whole.get_mut(..4) else { continue };
            at.copy_from_slice(&length.to_be_bytes());
            let Ok(Frame::Pdu(it)) = frame(&whole) else { continue };
            let _ = Bind::read(it.body());
            let _ = (message_id(it), message_asked_about(it), congestion_state(it));
            if let Some(it) = Message::read(it) {
                let _ = (it.segment_of(), it.receipt_of());
            }
        }
    }
}
