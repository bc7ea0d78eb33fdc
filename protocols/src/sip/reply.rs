//! Our own answers (RFC 3261 §8.2.6 and §8.2.7): stateless, built from the request's own headers.

use alloc::vec::Vec;

use super::header::{Line, Name, list_element};
use super::message::{Message, Salvage};
use super::route::NameAddr;
use crate::bytes::write_decimal;

/// Appends an answer to `message` to `out`.
///
/// `top_via` stands in place of the first Via value, so that the caller can set `received` and
/// `rport`; the others are copied. `to_tag` is added where To has none and it is not empty: pass a
/// hash, so that retransmissions get the same, and nothing for 100. `extra` is complete header lines.
/// Timestamp is copied into 100 (§8.2.6.1).
pub fn reply(
    message: &Message<'_>,
    status: u16,
    reason: &str,
    to_tag: &[u8],
    top_via: &[u8],
    extra: &[u8],
    out: &mut Vec<u8>,
) {
    status_line(status, reason, out);
    vias(message.bytes, message.lines(), top_via, out);
    line("From", message.text(message.from), out);
    to(message.text(message.to), to_tag, out);
    line("Call-ID", message.text(message.call_id), out);
    line("CSeq", message.text(message.cseq), out);
    if status == 100
        && let Some(timestamp) = message.header_by_name("Timestamp")
    {
        line("Timestamp", message.text(timestamp), out);
    }
    out.extend_from_slice(extra);
    out.extend_from_slice(b"Content-Length: 0\r\n\r\n");
}

/// Appends an answer to a malformed request: its headers copied textually, and the request itself as
/// the body while the whole stays below [`FRAGMENT_BYTES_MAX`] (`sip.md` 2.13).
pub fn reply_to_malformed(
    salvage: &Salvage<'_>,
    status: u16,
    reason: &str,
    top_via: &[u8],
    out: &mut Vec<u8>,
) {
    let start = out.len();
    status_line(status, reason, out);
    vias(salvage.bytes, salvage.lines(), top_via, out);
    line("From", salvage.from, out);
    to(salvage.to, b"badreq", out);
    line("Call-ID", salvage.call_id, out);
    line("CSeq", salvage.cseq, out);
    let head_bytes =
        out.len() - start + FRAGMENT_HEAD.len() + b"Content-Length: 1234\r\n\r\n".len();
    let fits = head_bytes + salvage.bytes.len() < FRAGMENT_BYTES_MAX;
    let body = if fits { salvage.bytes } else { b"" };
    if fits {
        out.extend_from_slice(FRAGMENT_HEAD);
    }
    out.extend_from_slice(b"Content-Length: ");
    write_decimal(out, body.len() as u64);
    out.extend_from_slice(b"\r\n\r\n");
    out.extend_from_slice(body);
}

fn status_line(status: u16, reason: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(b"SIP/2.0 ");
    write_decimal(out, status);
    out.push(b' ');
    out.extend_from_slice(reason.as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn vias<'m>(
    bytes: &'m [u8],
    lines: impl Iterator<Item = Line<'m>>,
    top_via: &[u8],
    out: &mut Vec<u8>,
) {
    let mut top = Some(top_via);
    for each in lines {
        let value = each.value.of(bytes);
        if Name::of(each.name) != Name::Via || value.is_empty() {
            continue;
        }
        out.extend_from_slice(b"Via: ");
        match top.take() {
            Some(top) => {
                out.extend_from_slice(top);
                out.extend_from_slice(value.get(list_element(value, true)..).unwrap_or_default());
            }
            None => out.extend_from_slice(value),
        }
        out.extend_from_slice(b"\r\n");
    }
}

fn to(text: &[u8], tag: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"To: ");
    out.extend_from_slice(text);
    if !tag.is_empty() && NameAddr::parse(text).and_then(|it| it.tag()).is_none() {
        out.extend_from_slice(b";tag=");
        out.extend_from_slice(tag);
    }
    out.extend_from_slice(b"\r\n");
}

fn line(name: &str, value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

const FRAGMENT_HEAD: &[u8] = b"Content-Type: message/sipfrag\r\n";

/// Larger answers might be fragmented on the way (RFC 3261 §18.1.1).
const FRAGMENT_BYTES_MAX: usize = 1300;
