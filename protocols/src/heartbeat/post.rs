//! The little HTTP that heartbeats need: one request with a body, one answer, and the connection is over.
//!
//! Source: `http-smpp-registry.md` 3.5. Method and path do not count, as they never did. Bodies come by
//! length or in chunks; heads are not checked beyond what tells where the body is.

use alloc::string::ToString;
use alloc::vec::Vec;
use core::fmt;
use core::net::SocketAddr;

use super::json::BODY_BYTES_MAX;
use crate::http::body::{Body, Framing};

/// Why bytes are no request that could be answered. Answer with [`Refusal::status`] and this text, and
/// close.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Refusal {
    /// Not HTTP/1.
    Head,
    /// Longer than [`HEAD_BYTES_MAX`] or more than [`LINES_MAX`] lines.
    LongHead,
    /// A Content-Length that is no number, or several, or one beside a transfer coding.
    Length,
    /// A transfer coding other than chunked, or chunks that are none.
    Coding,
    /// Longer than [`BODY_BYTES_MAX`].
    LongBody,
}

impl Refusal {
    /// Status of the answer.
    pub const fn status(self) -> u16 {
        match self {
            Refusal::Head | Refusal::Length | Refusal::Coding => 400,
            Refusal::LongHead => 431,
            Refusal::LongBody => 413,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Head => f.write_str("Not HTTP/1.1"),
            Refusal::LongHead => f.write_str("The request head is too long"),
            Refusal::Length => f.write_str("Content-Length is not one number"),
            Refusal::Coding => f.write_str("Only chunked bodies can be read"),
            Refusal::LongBody => write!(f, "The body is longer than {BODY_BYTES_MAX} bytes"),
        }
    }
}

impl core::error::Error for Refusal {}

/// One request on its way in: hand in what arrives, in any pieces, until there is a body.
#[derive(Debug, Default)]
pub struct Request {
    /// The head, or the body of known length, as far as it is there.
    received: Vec<u8>,
    state: State,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Head,
    Length(usize),
    /// Content without its chunks, which are read once.
    Chunks {
        framing: Body,
        content: Vec<u8>,
        read: usize,
    },
}

impl Request {
    /// The body, once it is complete. Hand in nothing more then.
    ///
    /// # Errors
    ///
    /// [`Refusal`]: answer, and close.
    pub fn handle_bytes(&mut self, bytes: &[u8]) -> Result<Option<Vec<u8>>, Refusal> {
        if !matches!(self.state, State::Head) {
            return self.handle_body(bytes);
        }
        self.received.extend_from_slice(bytes);
        let Some((head_bytes, state)) = head(&self.received)? else { return Ok(None) };
        self.state = state;
        let mut head = core::mem::take(&mut self.received);
        self.handle_body(&head.split_off(head_bytes))
    }

    fn handle_body(&mut self, bytes: &[u8]) -> Result<Option<Vec<u8>>, Refusal> {
        match &mut self.state {
            State::Head => Ok(None),
            State::Length(length) => {
                self.received.extend_from_slice(bytes);
                if self.received.len() < *length {
                    return Ok(None);
                }
                self.received.truncate(*length);
                Ok(Some(core::mem::take(&mut self.received)))
            }
            State::Chunks { framing, content, read } => chunks(framing, content, read, bytes),
        }
    }

    /// What it costs.
    pub fn held_bytes(&self) -> usize {
        self.received.len()
            + match &self.state {
                State::Chunks { content, .. } => content.len(),
                _ => 0,
            }
    }
}

/// Length of the head, and how the body comes; `None` if the head is not complete.
fn head(received: &[u8]) -> Result<Option<(usize, State)>, Refusal> {
    let mut lines = [httparse::EMPTY_HEADER; LINES_MAX];
    let mut head = httparse::Request::new(&mut lines);
    let head_bytes = match head.parse(received) {
        Ok(httparse::Status::Complete(bytes)) if bytes <= HEAD_BYTES_MAX => bytes,
        Ok(httparse::Status::Partial) if received.len() <= HEAD_BYTES_MAX => return Ok(None),
        Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err(Refusal::LongHead),
        Err(_) => return Err(Refusal::Head),
    };
    let values = |name: &'static str| {
        head.headers.iter().filter(move |it| it.name.eq_ignore_ascii_case(name)).map(|it| it.value)
    };
    let mut codings = values("Transfer-Encoding");
    let mut lengths = values("Content-Length");
    let state = match (codings.next(), lengths.next()) {
        (Some(_), Some(_)) => return Err(Refusal::Length),
        (Some(coding), None)
            if coding.trim_ascii().eq_ignore_ascii_case(b"chunked") && codings.next().is_none() =>
        {
            State::Chunks { framing: Body::new(Framing::Chunked), content: Vec::new(), read: 0 }
        }
        (Some(_), None) => return Err(Refusal::Coding),
        (None, None) => State::Length(0),
        (None, Some(length)) => {
            let digits = length.trim_ascii();
            if digits.is_empty()
                || !digits.iter().all(u8::is_ascii_digit)
                || lengths.any(|it| it != length)
            {
                return Err(Refusal::Length);
            }
            let length = core::str::from_utf8(digits).ok().and_then(|it| it.parse::<usize>().ok());
            let length = length.filter(|it| *it <= BODY_BYTES_MAX).ok_or(Refusal::LongBody)?;
            State::Length(length)
        }
    };
    Ok(Some((head_bytes, state)))
}

/// Reads on in a chunked body, of which `read` bytes were there before.
fn chunks(
    framing: &mut Body,
    content: &mut Vec<u8>,
    read: &mut usize,
    mut rest: &[u8],
) -> Result<Option<Vec<u8>>, Refusal> {
    while !framing.is_done() {
        let piece = framing.next(rest).map_err(|_| Refusal::Coding)?;
        let Some((taken, left)) = rest.split_at_checked(piece.bytes) else { return Ok(None) };
        if taken.is_empty() {
            return Ok(None);
        }
        *read += taken.len();
        // Chunks cost more than their content; nobody sends ones so small that they are most of it.
        if *read > 2 * BODY_BYTES_MAX {
            return Err(Refusal::LongBody);
        }
        if piece.is_content {
            if content.len() + taken.len() > BODY_BYTES_MAX {
                return Err(Refusal::LongBody);
            }
            content.extend_from_slice(taken);
        }
        rest = left;
    }
    Ok(Some(core::mem::take(content)))
}

/// Appends a whole answer: JSON with 200, plain text else.
pub fn answer(status: u16, body: &[u8], out: &mut Vec<u8>) {
    let reason = match status {
        200 => "OK",
        400 => "Bad Request",
        413 => "Content Too Large",
        431 => "Request Header Fields Too Large",
        _ => "Error",
    };
    let media = if status == 200 { "application/json" } else { "text/plain; charset=UTF-8" };
    let (status, length) = (status.to_string(), body.len().to_string());
    let pieces = ["HTTP/1.1 ", &status, " ", reason, "\r\nContent-Type: ", media];
    pieces.into_iter().for_each(|it| out.extend_from_slice(it.as_bytes()));
    end(&length, body, out);
}

/// Appends a whole request that posts JSON to a node.
pub fn request(to: SocketAddr, body: &[u8], out: &mut Vec<u8>) {
    let (host, length) = (to.to_string(), body.len().to_string());
    let pieces = ["POST / HTTP/1.1\r\nHost: ", &host, "\r\nContent-Type: application/json"];
    pieces.into_iter().for_each(|it| out.extend_from_slice(it.as_bytes()));
    end(&length, body, out);
}

fn end(length: &str, body: &[u8], out: &mut Vec<u8>) {
    let pieces = ["\r\nContent-Length: ", length, "\r\nConnection: close\r\n\r\n"];
    pieces.into_iter().for_each(|it| out.extend_from_slice(it.as_bytes()));
    out.extend_from_slice(body);
}

/// The stock node sends some 200 bytes.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Lines of a head.
pub const LINES_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use alloc::{format, vec};

    use super::*;

    fn read(text: &str) -> Result<Option<Vec<u8>>, Refusal> {
        Request::default().handle_bytes(text.as_bytes())
    }

    #[test]
    fn where_the_network_cuts_a_request_does_not_matter() {
        let whole = [
            "POST / HTTP/1.1\r\ncontent-length: 4\r\n\r\n{\"a\"",
            "PUT http://x/y HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: Chunked\r\n\r\n\
             1\r\n{\r\n3;x=y\r\n\"a\"\r\n0\r\n\r\n",
        ];
        for text in whole {
            for cut in 0..text.len() {
                assert_eq!(read(&text[..cut]), Ok(None), "{cut}: {text}");
            }
            assert_eq!(read(text), Ok(Some(b"{\"a\"".to_vec())), "{text}");
            assert_eq!(read(&format!("{text}more")), Ok(Some(b"{\"a\"".to_vec())), "{text}");
            let mut request = Request::default();
            let (last, others) = text.as_bytes().split_last().unwrap();
            for byte in others {
                assert_eq!(request.handle_bytes(&[*byte]), Ok(None), "{text}");
            }
            assert_eq!(request.handle_bytes(&[*last]), Ok(Some(b"{\"a\"".to_vec())), "{text}");
        }
        assert_eq!(read("GET / HTTP/1.1\r\n\r\n"), Ok(Some(vec![])));
    }

    /// What was read once is not kept to be read again.
    #[test]
    fn a_chunked_body_costs_its_content_however_small_its_pieces() {
        let mut request = Request::default();
        let head = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(request.handle_bytes(head), Ok(None));
        for count in 1..=1_000 {
            assert_eq!(request.handle_bytes(b"2;extension=long\r\n{}\r\n"), Ok(None));
            assert_eq!(request.held_bytes(), 2 * count);
        }
        assert_eq!(request.handle_bytes(b"0\r\n\r\n"), Ok(Some(b"{}".repeat(1_000))));
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_its_status() {
        let long = format!("POST /{} HTTP/1.1\r\n\r\n", "a".repeat(HEAD_BYTES_MAX));
        let lines = format!("POST / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(LINES_MAX + 1));
        let chunk = format!(
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{}",
            BODY_BYTES_MAX + 1,
            "a".repeat(BODY_BYTES_MAX + 1)
        );
        let cases: &[(&str, u16)] = &[
            ("\x16\x03\x01\x02\0", 400),
            ("JRMI\0\x02K", 400),
            ("POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
            ("POST / HTTP/1.1\r\nContent-Length: 1048577\r\n\r\n", 413),
            ("POST / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n", 413),
            (&chunk, 413),
            (&long, 431),
            (&lines, 431),
        ];
        for (text, status) in cases {
            match read(text) {
                Err(it) => assert_eq!(it.status(), *status, "{text:.60}: {it}"),
                other => panic!("{text:.60}: {other:?}"),
            }
        }
    }

    #[test]
    fn answers_and_requests_are_whole() {
        let mut out = Vec::new();
        answer(200, b"{}", &mut out);
        let want = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\
                    Connection: close\r\n\r\n{}";
        assert_eq!(core::str::from_utf8(&out), Ok(want));
        out.clear();
        request("[::1]:2222".parse().unwrap(), b"{\"stop\":1}", &mut out);
        assert!(out.starts_with(b"POST / HTTP/1.1\r\nHost: [::1]:2222\r\n"));
        assert_eq!(Request::default().handle_bytes(&out), Ok(Some(b"{\"stop\":1}".to_vec())));
    }
}
