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
/// the body while the whole stays below 1300 bytes (`sip.md` 2.13).
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
        let value = each.value().of(bytes);
        if each.kind != Name::Via || value.is_empty() {
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

#[cfg(test)]
mod tests {
    extern crate std;

    use std::string::String;

    use super::*;
    use crate::sip::message::salvage;
    use crate::testing::{INVITE, Random};

    #[test]
    fn an_answer_is_the_requests_headers_in_the_standards_order() {
        let message = Message::parse(INVITE, None).unwrap();
        let mut out = b"before".to_vec();
        let via = b"SIP/2.0/UDP 203.0.113.5:5062;branch=z9hG4bK776asdhds;rport=9;received=1.2.3.4";
        reply(&message, 500, "No nodes available", b"t1", via, b"Retry-After: 5\r\n", &mut out);
        let want = "beforeSIP/2.0 500 No nodes available\r\n\
            Via: SIP/2.0/UDP 203.0.113.5:5062;branch=z9hG4bK776asdhds;rport=9;received=1.2.3.4\r\n\
            Via: SIP/2.0/UDP 198.51.100.7:5060;branch=z9hG4bKnashds8;received=192.0.2.1\r\n\
            From: \"Alice\" <sip:alice@example.com>;tag=1928301774\r\n\
            To: Bob <sip:bob@example.com>;tag=t1\r\n\
            Call-ID: a84b4c76e66710@pc33.example.com\r\n\
            CSeq: 314159 INVITE\r\n\
            Retry-After: 5\r\n\
            Content-Length: 0\r\n\r\n";
        assert_eq!(String::from_utf8(out).unwrap(), want);
    }

    #[test]
    fn all_vias_are_copied_however_they_are_written() {
        let request = b"BYE sip:h SIP/2.0\r\nv: SIP/2.0/UDP a (x, y) , SIP/2.0/UDP b\r\n\
            f: <a>;tag=1\r\nt: <b>;tag=2\r\ni: 1\r\nTimestamp: 54\r\nCSeq: 1 BYE\r\n\
            Via:\r\n SIP/2.0/UDP c\r\nvia: SIP/2.0/UDP d,SIP/2.0/UDP e,SIP/2.0/UDP f\r\n\r\n";
        let message = Message::parse(request, None).unwrap();
        let mut out = Vec::new();
        reply(&message, 100, "Trying", b"unused", b"TOP", b"", &mut out);
        let want = "SIP/2.0 100 Trying\r\nVia: TOP, SIP/2.0/UDP b\r\nVia: SIP/2.0/UDP c\r\n\
            Via: SIP/2.0/UDP d,SIP/2.0/UDP e,SIP/2.0/UDP f\r\nFrom: <a>;tag=1\r\nTo: <b>;tag=2\r\n\
            Call-ID: 1\r\nCSeq: 1 BYE\r\nTimestamp: 54\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(String::from_utf8(out).unwrap(), want);
    }

    #[test]
    fn a_malformed_request_comes_back_as_a_fragment_if_it_is_short() {
        let bad = b"BYE  sip:h SIP/2.0\r\nv: SIP/2.0/UDP a\r\nf: a\r\nt: b\r\ni: 1\r\nCSeq: 1 BYE\r\n\r\n";
        let mut out = Vec::new();
        reply_to_malformed(&salvage(bad).unwrap(), 400, "Bad Request", b"TOP", &mut out);
        let want = "SIP/2.0 400 Bad Request\r\nVia: TOP\r\nFrom: a\r\nTo: b;tag=badreq\r\n\
            Call-ID: 1\r\nCSeq: 1 BYE\r\nContent-Type: message/sipfrag\r\nContent-Length: 71\r\n\r\n";
        assert_eq!(
            String::from_utf8(out).unwrap(),
            String::from(want) + core::str::from_utf8(bad).unwrap()
        );

        let long = [bad.as_slice(), &[b'x'; 1200]].concat();
        let mut out = Vec::new();
        reply_to_malformed(&salvage(&long).unwrap(), 400, "Bad Request", b"TOP", &mut out);
        assert!(
            out.ends_with(b"CSeq: 1 BYE\r\nContent-Length: 0\r\n\r\n"),
            "{}",
            out.escape_ascii()
        );
    }

    #[test]
    fn our_answers_are_messages_themselves() {
        let mut answered = 0;
        for seed in 0..5_000 {
            let bytes = Random::new(seed).mutate(INVITE);
            let mut out = Vec::new();
            if let Ok(message) = Message::parse(&bytes, None) {
                reply(&message, 483, "Too Many Hops", b"t", message.via.text, b"", &mut out);
            } else if let Some(salvage) = salvage(&bytes) {
                let via = b"SIP/2.0/UDP h;branch=b";
                reply_to_malformed(&salvage, 400, "Bad Request", via, &mut out);
                // What cannot be read is copied as it came.
                assert!(out.starts_with(b"SIP/2.0 400 Bad Request\r\nVia: "), "seed {seed}");
                continue;
            } else {
                continue;
            }
            answered += 1;
            let answer = Message::parse(&out, None);
            let answer = answer.unwrap_or_else(|it| panic!("seed {seed}: {it}"));
            assert_eq!((answer.status(), answer.body.len()), (Some(483), 0), "seed {seed}");
        }
        assert!(answered > 500, "{answered}");
    }
}
