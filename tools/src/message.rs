//! SIP text as the pretend peers need it: a strict scan over header lines, and templates to write from.
//!
//! Reads RFC 3261 §7.1 to §7.4, §7.3.3 (compact names), §18.3 (framing). Deliberately not the
//! balancer's parser: a fault that both shared would hide from every test. Refuses folded lines.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Why bytes are not a message. The receiver counts it and goes on; a stream is closed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Malformed {
    /// No empty line ends the head.
    NoEnd,
    /// The first line is neither a request nor a status line.
    StartLine,
    /// A header line has no colon, or is folded.
    HeaderLine,
    /// Content-Length is not a number, or is not the length of the body.
    ContentLength,
    /// A header that every message must carry is missing.
    Missing,
}

/// First line of a message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Start<'a> {
    /// `METHOD uri SIP/2.0`.
    Request {
        /// Method, as written.
        method: &'a [u8],
        /// Request-URI, as written.
        uri: &'a [u8],
    },
    /// `SIP/2.0 status reason`.
    Response {
        /// 100 to 699.
        status: u16,
    },
}

/// One message, not copied.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// First line.
    pub start: Start<'a>,
    /// Everything after the empty line.
    pub body: &'a [u8],
    lines: &'a [u8],
}

impl<'a> Message<'a> {
    /// Finds the head of `bytes` and reads its first line; header lines are read by [`Self::headers`].
    ///
    /// # Errors
    /// [`Malformed::NoEnd`] and [`Malformed::StartLine`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let end = memchr::memmem::find(bytes, b"\r\n\r\n").ok_or(Malformed::NoEnd)?;
        let (head, body) = bytes.split_at_checked(end + 2).ok_or(Malformed::NoEnd)?;
        let start_end = memchr::memchr(b'\n', head).ok_or(Malformed::StartLine)?;
        let (first, lines) = head.split_at_checked(start_end + 1).ok_or(Malformed::StartLine)?;
        let start = start_line(first).ok_or(Malformed::StartLine)?;
        Ok(Self { start, body: body.get(2..).unwrap_or_default(), lines })
    }

    /// The header lines in order.
    pub fn headers(&self) -> Headers<'a> {
        Headers { rest: self.lines }
    }
}

/// Header lines of a message, in order.
#[derive(Clone, Debug)]
pub struct Headers<'a> {
    rest: &'a [u8],
}

/// One header line.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Header<'a> {
    /// Which header it is.
    pub name: Name,
    /// The whole line with its line end, to be copied.
    pub line: &'a [u8],
    /// What follows the colon, without blanks at its ends.
    pub value: &'a [u8],
}

/// Headers that the peers read; compact names count as their long ones.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(missing_docs, reason = "the names are the headers'")]
pub enum Name {
    Via,
    From,
    To,
    CallId,
    CSeq,
    Contact,
    Route,
    RecordRoute,
    ContentLength,
    Other,
}

impl<'a> Iterator for Headers<'a> {
    type Item = Result<Header<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let end = memchr::memchr(b'\n', self.rest).map_or(self.rest.len(), |at| at + 1);
        let (line, rest) = self.rest.split_at_checked(end)?;
        self.rest = rest;
        Some(header(line).ok_or(Malformed::HeaderLine))
    }
}

fn header(line: &[u8]) -> Option<Header<'_>> {
    if line.first().is_none_or(u8::is_ascii_whitespace) {
        return None;
    }
    let colon = memchr::memchr(b':', line)?;
    let name = line.get(..colon)?.trim_ascii_end();
    Some(Header { name: name_of(name), line, value: line.get(colon + 1..)?.trim_ascii() })
}

fn name_of(name: &[u8]) -> Name {
    let is = |long: &[u8]| name.eq_ignore_ascii_case(long);
    match (name.len(), name.first().map(u8::to_ascii_lowercase)) {
        (1, Some(b'v')) => Name::Via,
        (1, Some(b'f')) => Name::From,
        (1, Some(b't')) => Name::To,
        (1, Some(b'i')) => Name::CallId,
        (1, Some(b'm')) => Name::Contact,
        (1, Some(b'l')) => Name::ContentLength,
        (2, Some(b't')) if is(b"To") => Name::To,
        (3, Some(b'v')) if is(b"Via") => Name::Via,
        (4, Some(b'f')) if is(b"From") => Name::From,
        (4, Some(b'c')) if is(b"CSeq") => Name::CSeq,
        (5, Some(b'r')) if is(b"Route") => Name::Route,
        (7, Some(b'c')) if is(b"Call-ID") => Name::CallId,
        (7, Some(b'c')) if is(b"Contact") => Name::Contact,
        (12, Some(b'r')) if is(b"Record-Route") => Name::RecordRoute,
        (14, Some(b'c')) if is(b"Content-Length") => Name::ContentLength,
        _ => Name::Other,
    }
}

fn start_line(line: &[u8]) -> Option<Start<'_>> {
    let line = line.strip_suffix(b"\r\n")?;
    if let Some(rest) = line.strip_prefix(b"SIP/2.0 ") {
        let (digits, reason) = rest.split_at_checked(3)?;
        let status = u16::try_from(number(digits)?).ok()?;
        let valid = (100..700).contains(&status) && reason.first().is_none_or(|b| *b == b' ');
        return valid.then_some(Start::Response { status });
    }
    let mut parts = line.split(|b| *b == b' ');
    let (method, uri, version) = (parts.next()?, parts.next()?, parts.next()?);
    let valid = !method.is_empty() && !uri.is_empty() && version == b"SIP/2.0";
    (valid && parts.next().is_none()).then_some(Start::Request { method, uri })
}

/// Decimal digits, nothing else; `None` beyond 64 bits.
pub fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |sum, digit| {
        let value = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        sum.checked_mul(10)?.checked_add(value)
    })
}

/// Where the next message of a stream lies in the bytes received so far.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Frame {
    /// Keep-alive line ends before it.
    pub start: usize,
    /// One past its body.
    pub end: usize,
}

/// Finds the next message of a stream; `None` asks for more bytes. Source: RFC 3261 §18.3.
///
/// # Errors
/// Any [`Malformed`]; the connection must be closed, since the next message cannot be found.
pub fn frame(bytes: &[u8]) -> Result<Option<Frame>, Malformed> {
    let start = bytes.iter().position(|b| !matches!(b, b'\r' | b'\n')).unwrap_or(bytes.len());
    let rest = bytes.get(start..).unwrap_or_default();
    let message = match Message::parse(rest) {
        Err(Malformed::NoEnd) if rest.len() < MESSAGE_BYTES_MAX => return Ok(None),
        other => other?,
    };
    let mut length = None;
    for header in message.headers() {
        let header = header?;
        if header.name == Name::ContentLength {
            length = Some(number(header.value).ok_or(Malformed::ContentLength)?);
        }
    }
    let length = usize::try_from(length.ok_or(Malformed::Missing)?).unwrap_or(usize::MAX);
    if length > MESSAGE_BYTES_MAX {
        return Err(Malformed::ContentLength);
    }
    let head = rest.len() - message.body.len();
    Ok((message.body.len() >= length).then_some(Frame { start, end: start + head + length }))
}

/// Splits the comma list of a Route or Record-Route value; commas inside `<>` and quotes do not split.
pub fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    let (mut angle, mut quote) = (false, false);
    value
        .split(move |byte| {
            match byte {
                b'"' if !angle => quote = !quote,
                b'<' if !quote => angle = true,
                b'>' if !quote => angle = false,
                b',' => return !angle && !quote,
                _ => {}
            }
            false
        })
        .map(<[u8]>::trim_ascii)
}

/// The URI of a name-addr or addr-spec (`"Bob" <sip:b@h>;tag=1` or `sip:b@h`).
pub fn uri_of(value: &[u8]) -> &[u8] {
    let Some(open) = memchr::memchr(b'<', value) else {
        let end = memchr::memchr(b';', value).unwrap_or(value.len());
        return value.get(..end).unwrap_or_default().trim_ascii();
    };
    let rest = value.get(open + 1..).unwrap_or_default();
    let end = memchr::memchr(b'>', rest).unwrap_or(rest.len());
    rest.get(..end).unwrap_or_default()
}

/// The address that a `sip:` URI names literally, port 5060 if none is written; names are `None`.
pub fn address_of(uri: &[u8]) -> Option<SocketAddr> {
    let rest = uri.strip_prefix(b"sip:")?;
    let end = rest.iter().position(|b| matches!(b, b';' | b'?')).unwrap_or(rest.len());
    let rest = rest.get(..end)?;
    let host = memchr::memrchr(b'@', rest).map_or(rest, |at| rest.get(at + 1..).unwrap_or(rest));
    host_port(host, 5060)
}

/// A literal host with an optional port.
pub fn host_port(text: &[u8], default_port: u16) -> Option<SocketAddr> {
    let (host, port) = match memchr::memrchr(b':', text) {
        Some(at) if text.last() != Some(&b']') => {
            (text.get(..at)?, u16::try_from(number(text.get(at + 1..)?)?).ok()?)
        }
        _ => (text, default_port),
    };
    let host = str::from_utf8(host).ok()?;
    let ip = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(literal) => IpAddr::V6(literal.parse::<Ipv6Addr>().ok()?),
        None => IpAddr::V4(host.parse::<Ipv4Addr>().ok()?),
    };
    Some(SocketAddr::new(ip, port))
}

/// Value of `;name=value` or `;name` (then empty) behind the URI of `value`.
pub fn param<'a>(value: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let from = memchr::memrchr(b'>', value).map_or(0, |at| at + 1);
    value.get(from..)?.split(|b| *b == b';').skip(1).map(<[u8]>::trim_ascii).find_map(|param| {
        let (key, after) = param.split_at_checked(name.len())?;
        match after.split_first() {
            _ if !key.eq_ignore_ascii_case(name) => None,
            None => Some(after),
            Some((b'=', rest)) => Some(rest),
            Some(_) => None,
        }
    })
}

/// Text with places for one 16 digit identity, so that a message costs one copy.
#[derive(Clone, Debug)]
pub struct Template {
    bytes: Vec<u8>,
    places: Vec<usize>,
}

impl Template {
    /// Makes a template from `text`, in which every [`PLACE`] is an identity.
    pub fn new(text: &str) -> Self {
        let bytes = text.as_bytes().to_vec();
        let places = memchr::memmem::find_iter(&bytes, PLACE).collect();
        Self { bytes, places }
    }

    /// Appends the text with `id` in every place.
    pub fn write(&self, id: &Id, out: &mut Vec<u8>) {
        let from = out.len();
        out.extend_from_slice(&self.bytes);
        for place in &self.places {
            let at = from + place;
            if let Some(slot) = out.get_mut(at..at + ID_DIGITS) {
                slot.copy_from_slice(&id.0);
            }
        }
    }
}

/// A 64 bit identity as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Id(pub [u8; ID_DIGITS]);

impl Id {
    /// Writes `number` as digits.
    pub fn new(number: u64) -> Self {
        let mut digits = [b'0'; ID_DIGITS];
        let mut rest = number;
        for digit in digits.iter_mut().rev() {
            let value = rest.to_le_bytes()[0] & 15;
            *digit = if value < 10 { b'0' + value } else { b'a' + value - 10 };
            rest >>= 4;
        }
        Self(digits)
    }

    /// Reads 16 lower-case digits back.
    pub fn read(digits: &[u8]) -> Option<u64> {
        let digits: &[u8; ID_DIGITS] = digits.try_into().ok()?;
        digits.iter().try_fold(0u64, |sum, digit| {
            let value = match digit {
                b'0'..=b'9' => digit - b'0',
                b'a'..=b'f' => digit - b'a' + 10,
                _ => return None,
            };
            Some(sum << 4 | u64::from(value))
        })
    }
}

/// Digits of an [`Id`].
pub const ID_DIGITS: usize = 16;
/// What stands for an identity in the text of a [`Template`].
pub const PLACE: &[u8; ID_DIGITS] = b"################";
/// Largest message a stream may carry, bytes; the balancer's own default limit.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    const OK: &[u8] = b"SIP/2.0 200 OK\r\nv: SIP/2.0/UDP 10.0.0.1;branch=z9hG4bK1\r\n\
        Record-Route: <sip:a;lr>, <sip:b;lr>\r\nContent-Length : 3\r\n\r\nabc";

    #[test]
    fn a_scan_sees_every_line_and_the_body() {
        let message = Message::parse(OK).unwrap();
        assert_eq!(message.start, Start::Response { status: 200 });
        assert_eq!(message.body, b"abc");
        let names: Vec<_> = message.headers().map(|header| header.unwrap().name).collect();
        assert_eq!(names, [Name::Via, Name::RecordRoute, Name::ContentLength]);
    }

    #[test]
    fn malformed_text_is_refused() {
        for (text, expected) in [
            ("INVITE sip:a SIP/2.0\r\nTo: x\r\n", Malformed::NoEnd),
            ("INVITE sip:a\r\nTo: x\r\n\r\n", Malformed::StartLine),
            ("INVITE sip:a SIP/3.0\r\nTo: x\r\n\r\n", Malformed::StartLine),
            ("SIP/2.0 20x OK\r\nTo: x\r\n\r\n", Malformed::StartLine),
            ("SIP/2.0 700 OK\r\nTo: x\r\n\r\n", Malformed::StartLine),
            ("SIP/2.0 200 OK\r\nTo x\r\n\r\n", Malformed::HeaderLine),
            ("SIP/2.0 200 OK\r\nTo: x\r\n folded: y\r\n\r\n", Malformed::HeaderLine),
        ] {
            let result = Message::parse(text.as_bytes())
                .and_then(|message| message.headers().try_for_each(|line| line.map(|_| ())));
            assert_eq!(result, Err(expected), "{text:?}");
        }
    }

    #[test]
    fn a_stream_is_framed_wherever_it_is_cut() {
        let stream = [b"\r\n\r\n", OK, b"\r\n", OK].concat();
        let first = Frame { start: 4, end: 4 + OK.len() };
        for cut in 0..stream.len() {
            let expected = (cut >= first.end).then_some(first);
            assert_eq!(frame(&stream[..cut]), Ok(expected), "cut at {cut}");
        }
        let second = frame(&stream[first.end..]).unwrap().unwrap();
        assert_eq!(second, Frame { start: 2, end: 2 + OK.len() });
    }

    #[test]
    fn lists_split_outside_brackets_and_quotes_only() {
        let value = b"\"a, b\" <sip:x;p=1,2>;q=1 , <sip:y>";
        let parts: Vec<_> = list(value).collect();
        assert_eq!(parts, [&b"\"a, b\" <sip:x;p=1,2>;q=1"[..], b"<sip:y>"]);
    }

    #[test]
    fn literal_addresses_are_read_from_uris() {
        for (uri, expected) in [
            ("sip:10.0.0.1:5065;lr", Some("10.0.0.1:5065")),
            ("sip:bob@10.0.0.1", Some("10.0.0.1:5060")),
            ("sip:bob@[::1]:5070;transport=tcp", Some("[::1]:5070")),
            ("sip:[::1]", Some("[::1]:5060")),
            ("sip:example.com", None),
            ("tel:123", None),
            ("sip:10.0.0.1:70000", None),
        ] {
            let expected = expected.map(|text| text.parse().unwrap());
            assert_eq!(address_of(uri.as_bytes()), expected, "{uri}");
        }
    }

    #[test]
    fn parameters_are_found_behind_the_uri() {
        let value = b"<sip:a;tag=no>;TAG=yes;rport";
        assert_eq!(param(value, b"tag"), Some(&b"yes"[..]));
        assert_eq!(param(value, b"rport"), Some(&b""[..]));
        assert_eq!(param(value, b"received"), None);
        assert_eq!(param(b"<sip:a>;tagged=1", b"tag"), None);
    }

    #[test]
    fn an_identity_survives_a_template() {
        for number in [0, 1, 0x0123_4567_89ab_cdef, u64::MAX] {
            let mut out = b"xx".to_vec();
            Template::new("a################b################").write(&Id::new(number), &mut out);
            assert_eq!(out.len(), 36);
            assert_eq!(Id::read(&out[3..19]), Some(number));
            assert_eq!(Id::read(&out[20..36]), Some(number));
        }
        assert_eq!(Id::read(b"000000000000000g"), None);
    }
}
