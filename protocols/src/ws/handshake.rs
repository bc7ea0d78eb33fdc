//! The opening handshake of WebSocket for SIP, both ends (RFC 6455 §4, RFC 7118 §4.1): an HTTP/1.1 upgrade
//! that names the subprotocol `sip`.
//!
//! Path, origin and cookies are not looked at: who may connect is not decided here.

use alloc::vec::Vec;

use base64ct::{Base64, Encoding as _};
use httparse::{EMPTY_HEADER, Header, Request, Response, Status};
use sha1_smol::Sha1;

/// What became of a client's request to upgrade.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Upgrade {
    /// No whole head yet.
    NeedMore,
    /// Our 101 is written; frames begin behind these bytes.
    Accepted {
        /// Length of the head.
        consumed: usize,
    },
    /// Our refusal is written: send it and close the connection.
    Refused(Refusal),
}

/// Why a handshake fails. Every variant closes the connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Refusal {
    /// Not HTTP/1.1, or a head above [`HEAD_BYTES_MAX`].
    Malformed,
    /// Another method than GET: 405.
    Method,
    /// A plain request, without the headers that ask for an upgrade: 426.
    NoUpgrade,
    /// Another version of WebSocket than 13: 426.
    Version,
    /// A key that is not 16 bytes in base64, or none.
    Key,
    /// The client does not offer `sip` (RFC 7118 §4.1).
    Protocol,
    /// The server did not answer 101.
    Status {
        /// It did with this.
        status: u16,
    },
    /// The server's proof is not for our key.
    Accept,
    /// The server chose an extension that we did not offer.
    Extension,
}

/// Reads a client's request at the front of `stream` and writes our answer.
pub fn accept(stream: &[u8], out: &mut Vec<u8>) -> Upgrade {
    let mut headers = [EMPTY_HEADER; HEADERS_MAX];
    let mut request = Request::new(&mut headers);
    let refuse = |refusal: Refusal, out: &mut Vec<u8>| {
        let status: &[u8] = match refusal {
            Refusal::Method => b"405 Method Not Allowed\r\nAllow: GET",
            Refusal::NoUpgrade | Refusal::Version => {
                b"426 Upgrade Required\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13"
            }
            _ => b"400 Bad Request",
        };
        let rest: &[u8] = b"\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
        for part in [b"HTTP/1.1 ".as_slice(), status, rest] {
            out.extend_from_slice(part);
        }
        Upgrade::Refused(refusal)
    };
    let consumed = match request.parse(stream) {
        Ok(Status::Complete(consumed)) if consumed <= HEAD_BYTES_MAX => consumed,
        Ok(Status::Partial) if stream.len() <= HEAD_BYTES_MAX => return Upgrade::NeedMore,
        _ => return refuse(Refusal::Malformed, out),
    };
    let headers = &*request.headers;
    if request.method != Some("GET") {
        return refuse(Refusal::Method, out);
    }
    if request.version != Some(1) || find(headers, "Host").is_none() {
        return refuse(Refusal::Malformed, out);
    }
    if !lists(headers, "Upgrade", b"websocket") || !lists(headers, "Connection", b"upgrade") {
        return refuse(Refusal::NoUpgrade, out);
    }
    if find(headers, "Sec-WebSocket-Version") != Some(b"13") {
        return refuse(Refusal::Version, out);
    }
    let Some(key) = find(headers, "Sec-WebSocket-Key").filter(|it| is_key(it)) else {
        return refuse(Refusal::Key, out);
    };
    if !lists(headers, "Sec-WebSocket-Protocol", SUBPROTOCOL) {
        return refuse(Refusal::Protocol, out);
    }
    let mut buffer = [0; PROOF_BYTES];
    for part in [
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
          Sec-WebSocket-Accept: "
            .as_slice(),
        proof(key, &mut buffer),
        b"\r\nSec-WebSocket-Protocol: sip\r\n\r\n",
    ] {
        out.extend_from_slice(part);
    }
    Upgrade::Accepted { consumed }
}

/// Writes our request to a server at `host` (with its port). `key`: 16 random bytes, another for each
/// connection.
pub fn request(host: &[u8], key: [u8; 16], out: &mut Vec<u8>) {
    let mut buffer = [0; KEY_BYTES];
    for part in [
        b"GET / HTTP/1.1\r\nHost: ".as_slice(),
        host,
        b"\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: ",
        encode(&key, &mut buffer),
        b"\r\nSec-WebSocket-Protocol: sip\r\nSec-WebSocket-Version: 13\r\n\r\n",
    ] {
        out.extend_from_slice(part);
    }
}

/// Reads a server's answer at the front of `stream`. `Some(consumed)`: frames begin behind it; `None`: no
/// whole head yet.
///
/// # Errors
///
/// [`Refusal`]: close the connection; the server does not speak SIP over WebSocket.
pub fn confirm(stream: &[u8], key: [u8; 16]) -> Result<Option<usize>, Refusal> {
    let mut headers = [EMPTY_HEADER; HEADERS_MAX];
    let mut response = Response::new(&mut headers);
    let consumed = match response.parse(stream) {
        Ok(Status::Complete(consumed)) if consumed <= HEAD_BYTES_MAX => consumed,
        Ok(Status::Partial) if stream.len() <= HEAD_BYTES_MAX => return Ok(None),
        _ => return Err(Refusal::Malformed),
    };
    let headers = &*response.headers;
    match response.code {
        Some(101) => {}
        status => return Err(Refusal::Status { status: status.unwrap_or(0) }),
    }
    if !lists(headers, "Upgrade", b"websocket") || !lists(headers, "Connection", b"upgrade") {
        return Err(Refusal::NoUpgrade);
    }
    let (mut encoded, mut buffer) = ([0; KEY_BYTES], [0; PROOF_BYTES]);
    let wanted = proof(encode(&key, &mut encoded), &mut buffer);
    if find(headers, "Sec-WebSocket-Accept") != Some(wanted) {
        return Err(Refusal::Accept);
    }
    if !find(headers, "Sec-WebSocket-Protocol")
        .is_some_and(|it| it.eq_ignore_ascii_case(SUBPROTOCOL))
    {
        return Err(Refusal::Protocol);
    }
    if find(headers, "Sec-WebSocket-Extensions").is_some_and(|it| !it.is_empty()) {
        return Err(Refusal::Extension);
    }
    Ok(Some(consumed))
}

fn find<'h>(headers: &[Header<'h>], name: &str) -> Option<&'h [u8]> {
    headers.iter().find(|it| it.name.eq_ignore_ascii_case(name)).map(|it| it.value.trim_ascii())
}

/// Whether a comma list, on one line or several, has this word.
fn lists(headers: &[Header<'_>], name: &str, word: &[u8]) -> bool {
    let lines = headers.iter().filter(|it| it.name.eq_ignore_ascii_case(name));
    let mut words = lines.flat_map(|it| it.value.split(|byte| *byte == b','));
    words.any(|it| it.trim_ascii().eq_ignore_ascii_case(word))
}

fn is_key(text: &[u8]) -> bool {
    let mut decoded = [0; 18];
    Base64::decode(text, &mut decoded).is_ok_and(|it| it.len() == 16)
}

/// RFC 6455 §4.2.2, item 5.
fn proof<'b>(key: &[u8], buffer: &'b mut [u8; PROOF_BYTES]) -> &'b [u8] {
    let mut hash = Sha1::new();
    hash.update(key);
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    encode(&hash.digest().bytes(), buffer)
}

fn encode<'b>(bytes: &[u8], buffer: &'b mut [u8]) -> &'b [u8] {
    // The buffers have the length that the encoding takes.
    Base64::encode(bytes, buffer).map_or(b"", str::as_bytes)
}

/// Limit of a head: browsers send cookies, and no more than this.
pub const HEAD_BYTES_MAX: usize = 8 * 1024;
const HEADERS_MAX: usize = 64;
const SUBPROTOCOL: &[u8] = b"sip";
/// 16 bytes in base64.
const KEY_BYTES: usize = 24;
/// 20 bytes in base64.
const PROOF_BYTES: usize = 28;

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use crate::testing::Random;
    use std::string::String;

    /// As RFC 7118 §4.1 has it.
    const REQUEST: &str = "GET / HTTP/1.1\r\nHost: sip-ws.example.com\r\nUpgrade: websocket\r\n\
        Connection: keep-alive, Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
        Origin: http://www.example.com\r\nSec-WebSocket-Protocol: chat, sip\r\n\
        Sec-WebSocket-Version: 13\r\n\r\n";

    fn answer(request: &str) -> (Upgrade, String) {
        let mut out = Vec::new();
        let upgrade = accept(request.as_bytes(), &mut out);
        (upgrade, String::from_utf8(out).unwrap())
    }

    #[test]
    fn a_sip_client_is_upgraded() {
        let (upgrade, text) = answer(REQUEST);
        assert_eq!(upgrade, Upgrade::Accepted { consumed: REQUEST.len() });
        assert_eq!(
            text,
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: sip\r\n\r\n"
        );
    }

    #[test]
    fn others_are_told_why_not() {
        let without = |line: &str| {
            let lines = REQUEST.split_inclusive("\r\n").filter(|it| !it.starts_with(line));
            lines.collect::<String>()
        };
        let cases = [
            ("POST", REQUEST.replace("GET", "POST"), Refusal::Method, "405"),
            ("no upgrade", without("Upgrade"), Refusal::NoUpgrade, "426"),
            ("no connection", without("Connection"), Refusal::NoUpgrade, "426"),
            ("version 8", REQUEST.replace("Version: 13", "Version: 8"), Refusal::Version, "426"),
            ("no key", without("Sec-WebSocket-Key"), Refusal::Key, "400"),
            ("short key", REQUEST.replace("dGhlIHNhbXBsZSBub25jZQ==", "dGhl"), Refusal::Key, "400"),
            ("not base64", REQUEST.replace("dGhl", "****"), Refusal::Key, "400"),
            ("no subprotocol", without("Sec-WebSocket-Protocol"), Refusal::Protocol, "400"),
            ("another", REQUEST.replace("chat, sip", "sipp"), Refusal::Protocol, "400"),
            ("no host", without("Host"), Refusal::Malformed, "400"),
            ("HTTP/1.0", REQUEST.replace("HTTP/1.1", "HTTP/1.0"), Refusal::Malformed, "400"),
            ("SIP", String::from("OPTIONS sip:a SIP/2.0\r\n\r\n"), Refusal::Malformed, "400"),
            (
                "endless",
                REQUEST.replace("Origin", &std::format!("X: {}\r\nO", "y".repeat(9_000))),
                Refusal::Malformed,
                "400",
            ),
        ];
        for (name, request, want, status) in cases {
            let (upgrade, text) = answer(&request);
            assert_eq!(upgrade, Upgrade::Refused(want), "{name}");
            assert!(text.starts_with(&std::format!("HTTP/1.1 {status} ")), "{name}: {text}");
            assert!(text.ends_with("\r\n\r\n"), "{name}");
        }
    }

    #[test]
    fn where_the_network_cuts_a_head_does_not_matter() {
        for cut in 0..REQUEST.len() {
            assert_eq!(answer(&REQUEST[..cut]), (Upgrade::NeedMore, String::new()), "{cut}");
        }
        let endless = std::format!("GET /{}", "x".repeat(HEAD_BYTES_MAX));
        assert_eq!(answer(&endless).0, Upgrade::Refused(Refusal::Malformed));
    }

    #[test]
    fn both_ends_agree_and_a_client_takes_nothing_else() {
        let key = *b"0123456789abcdef";
        let mut asked = Vec::new();
        request(b"192.0.2.1:5060", key, &mut asked);
        let mut answered = Vec::new();
        let upgrade = accept(&asked, &mut answered);
        assert_eq!(upgrade, Upgrade::Accepted { consumed: asked.len() });
        assert_eq!(confirm(&answered, key), Ok(Some(answered.len())));
        for cut in 0..answered.len() {
            assert_eq!(confirm(&answered[..cut], key), Ok(None), "{cut}");
        }
        let text = String::from_utf8(answered.clone()).unwrap();
        let changed = |from: &str, to: &str| confirm(text.replace(from, to).as_bytes(), key);
        assert_eq!(confirm(&answered, *b"another key here"), Err(Refusal::Accept));
        assert_eq!(changed("101", "200"), Err(Refusal::Status { status: 200 }));
        assert_eq!(changed("Upgrade: websocket", "X: y"), Err(Refusal::NoUpgrade));
        assert_eq!(changed("Protocol: sip", "Protocol: chat"), Err(Refusal::Protocol));
        let extension = "Upgrade: websocket\r\nSec-WebSocket-Extensions: permessage-deflate";
        assert_eq!(changed("Upgrade: websocket", extension), Err(Refusal::Extension));
        assert_eq!(confirm(b"SIP/2.0 200 OK\r\n\r\n", key), Err(Refusal::Malformed));
    }

    #[test]
    fn mutations_never_panic() {
        for seed in 0..5_000 {
            let mutated = Random::new(seed).mutate(REQUEST.as_bytes());
            let mut out = Vec::new();
            if accept(&mutated, &mut out) == Upgrade::NeedMore {
                assert!(out.is_empty(), "seed {seed}");
            }
            let _ = confirm(&mutated, [0; 16]);
        }
    }
}
