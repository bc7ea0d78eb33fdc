//! SIP messages as they travel: find the few headers a balancer reads, leave the rest.
//!
//! Reads RFC 3261 §7 (message format), §7.3.3 (compact names), §16.3 (what a proxy validates). One
//! pass, no allocation, byte ranges into the caller's buffer. Does not decode bodies and does not
//! validate headers it never looks at: a proxy that "repairs" messages breaks them.

use super::header::{
    Line, Lines, Name, Step, Wanted, good_lines, is_blank, is_token, line_end, list_element,
    trim_span,
};
pub use super::malformed::{Field, Malformed, Salvage, salvage};
pub use super::method::Method;
use super::route::NameAddr;
use super::scan::first_is;
use super::uri::Uri;
pub use super::values::{HeaderLines, Value, Values, remove_values};
use super::values::{list, remove};
use super::via::Via;
use crate::bytes::{Edits, Span, offset, parse_decimal};

/// A request or response, indexed. All spans are ranges into [`Message::bytes`].
#[derive(Clone, Debug)]
pub struct Message<'m> {
    /// The message alone: without line ends before it, and without what follows its body in a
    /// datagram (RFC 3261 §18.3). Edits apply to this, not to the datagram.
    pub bytes: &'m [u8],
    /// First line.
    pub start: Start,
    /// Request-URI; `None` for responses.
    pub request_uri: Option<Uri<'m>>,
    /// The top Via, read; its spans are relative to `vias.first()`.
    pub via: Via<'m>,
    /// Via, top first. At least one.
    pub vias: Values<4>,
    /// Route, top first; [`Message::route`] and its like know those that are not kept, too.
    pub routes: Values<6>,
    /// Record-Route, top first; [`Message::all_record_routes`] knows those that are not kept, too.
    pub record_routes: Values<2>,
    /// From, whole value.
    pub from: Span,
    /// To, whole value.
    pub to: Span,
    /// Call-ID.
    pub call_id: Span,
    /// CSeq, whole value.
    pub cseq: Span,
    /// Max-Forwards; digits.
    pub max_forwards: Option<Span>,
    /// First Contact value.
    pub contact: Option<Span>,
    /// First User-Agent.
    pub user_agent: Option<Span>,
    /// Content-Length as said.
    pub content_length: Option<u32>,
    /// Lines with `X-Sip-Balancer-InitialRemoteAddr` or `-Port`.
    pub initial_remote: HeaderLines<8>,
    /// `Mobicents-Heartbeat` or `Restcomm-Heartbeat` is there.
    pub heartbeat: bool,
    /// First value of the header asked for.
    pub custom: Option<Span>,
    /// Body, as long as Content-Length says; without that header, all that follows the head.
    pub body: Span,
    /// Where the headers begin: just after the start line.
    pub first_header: u32,
    /// Where the empty line begins: further headers can be inserted here.
    pub headers_end: u32,
    cseq_number: u32,
    cseq_method: Span,
}

impl<'m> Message<'m> {
    /// Indexes one datagram, or one message that [`super::stream::Framer`] cut off a stream.
    ///
    /// `custom`: name of one more header to note, in full or compact form.
    ///
    /// # Errors
    ///
    /// [`Malformed`] says what is wrong; answer with its [`Malformed::status`] if [`salvage`] finds
    /// what an answer needs, else drop.
    pub fn parse(datagram: &'m [u8], custom: Option<&[u8]>) -> Result<Message<'m>, Malformed> {
        if datagram.len() > MESSAGE_BYTES_MAX {
            return Err(Malformed::TooLarge { bytes: datagram.len() });
        }
        let datagram = datagram.get(leading_line_ends(datagram)..).unwrap_or_default();
        let (start, request_uri, first_header) = start_line(datagram)?;
        if first_header > LINE_BYTES_MAX {
            return Err(Malformed::LineBytes { bytes: first_header });
        }
        let mut index = Index::new(datagram, custom.map(Wanted::new));
        let mut lines = Lines::new(datagram, first_header);
        let mut count = 0;
        let (empty_line, body_at) = loop {
            match lines.step() {
                Step::Line(line) => {
                    count += 1;
                    if count > HEADER_LINES_MAX {
                        return Err(Malformed::HeaderLines);
                    }
                    if line.span.len() > LINE_BYTES_MAX {
                        return Err(Malformed::LineBytes { bytes: line.span.len() });
                    }
                    index.note(line)?;
                }
                Step::Bad(span) => return Err(Malformed::HeaderLine { at: span.start }),
                Step::End { empty_line, body } => break (empty_line, body),
                Step::Cut => return Err(Malformed::NoEmptyLine),
            }
        };
        index.finish(start, request_uri, first_header, empty_line, body_at)
    }

    /// Whether it is a request.
    pub const fn is_request(&self) -> bool {
        matches!(self.start, Start::Request { .. })
    }

    /// Method of a request; of a response, the method it answers (from CSeq).
    pub fn method(&self) -> Method {
        match self.start {
            Start::Request { method, .. } => method,
            Start::Response { .. } => Method::from_token(self.cseq_method()),
        }
    }

    /// Status of a response.
    pub const fn status(&self) -> Option<u16> {
        match self.start {
            Start::Request { .. } => None,
            Start::Response { status, .. } => Some(status),
        }
    }

    /// Tag of To: there exactly on what belongs to a dialog.
    pub fn to_tag(&self) -> Option<&'m [u8]> {
        NameAddr::parse(self.text(self.to))?.tag()
    }

    /// Tag of From.
    pub fn from_tag(&self) -> Option<&'m [u8]> {
        NameAddr::parse(self.text(self.from))?.tag()
    }

    /// URI text of To; empty if it cannot be read.
    pub fn to_uri(&self) -> &'m [u8] {
        NameAddr::parse(self.text(self.to)).map_or(b"", |it| it.uri)
    }

    /// URI text of From; empty if it cannot be read.
    pub fn from_uri(&self) -> &'m [u8] {
        NameAddr::parse(self.text(self.from)).map_or(b"", |it| it.uri)
    }

    /// Sequence number of CSeq.
    pub const fn cseq_number(&self) -> u32 {
        self.cseq_number
    }

    /// Method of CSeq, as written.
    pub fn cseq_method(&self) -> &'m [u8] {
        self.text(self.cseq_method)
    }

    /// Max-Forwards as a number; absent: `None`. Values above 255 are illegal and pass.
    pub fn hops_left(&self) -> Option<u32> {
        parse_decimal(self.text(self.max_forwards?))
    }

    /// The bytes of a span of this message.
    pub fn text(&self, span: Span) -> &'m [u8] {
        self.bytes.get(span.range()).unwrap_or_default()
    }

    /// The first header of that name, in full or compact form: reads all lines again.
    pub fn header_by_name(&self, name: &str) -> Option<Span> {
        let wanted = Wanted::new(name.as_bytes());
        self.lines().find_map(|line| wanted.is(line.name).then_some(line.value()))
    }

    /// Every Route, top first, however many there are: those that are not kept are looked for again.
    pub fn all_routes(&self) -> impl Iterator<Item = Value> + '_ {
        self.all(&self.routes, Name::Route)
    }

    /// Every Record-Route, likewise.
    pub fn all_record_routes(&self) -> impl Iterator<Item = Value> + '_ {
        self.all(&self.record_routes, Name::RecordRoute)
    }

    /// The Route at that position, 0 at the top.
    pub fn route(&self, at: usize) -> Option<Value> {
        let is_kept = at < self.routes.as_slice().len() || at >= self.routes.len();
        if is_kept { self.routes.get(at) } else { self.all_routes().nth(at) }
    }

    /// Cuts the first `count` Routes, as [`remove_values`] does.
    pub fn remove_routes(&self, count: usize, edits: &mut Edits) {
        remove(self.all_routes().take(count), edits);
    }

    fn all<'a, const N: usize>(
        &'a self,
        values: &'a Values<N>,
        name: Name,
    ) -> impl Iterator<Item = Value> + 'a {
        let kept = values.as_slice();
        let more = (values.len() > kept.len()).then(|| {
            let lines = self.lines().filter(move |it| it.kind == name);
            let again = lines.flat_map(|line| list(self.bytes, line.value(), line.span));
            again.skip(kept.len())
        });
        kept.iter().copied().chain(more.into_iter().flatten())
    }

    /// All header lines again, in order.
    pub(crate) fn lines(&self) -> impl Iterator<Item = Line<'m>> {
        good_lines(self.bytes, self.first_header as usize)
    }
}

/// First line of a message (RFC 3261 §7.1, §7.2).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Start {
    /// `INVITE sip:bob@example.com SIP/2.0`
    Request {
        /// Method.
        method: Method,
        /// The same as written.
        method_span: Span,
        /// Request-URI.
        uri: Span,
    },
    /// `SIP/2.0 180 Ringing`
    Response {
        /// 100 to 999.
        status: u16,
        /// Reason phrase; any bytes, often empty.
        reason: Span,
    },
}

/// What one pass over the headers has found so far.
struct Index<'m, 'n> {
    bytes: &'m [u8],
    wanted: Option<Wanted<'n>>,
    vias: Values<4>,
    routes: Values<6>,
    record_routes: Values<2>,
    from: Option<Span>,
    to: Option<Span>,
    call_id: Option<Span>,
    cseq: Option<Span>,
    max_forwards: Option<Span>,
    contact: Option<Span>,
    user_agent: Option<Span>,
    content_length: Option<Span>,
    initial_remote: HeaderLines<8>,
    heartbeat: bool,
    custom: Option<Span>,
}

impl<'m, 'n> Index<'m, 'n> {
    fn new(bytes: &'m [u8], wanted: Option<Wanted<'n>>) -> Self {
        Index {
            bytes,
            wanted,
            vias: Values::NONE,
            routes: Values::NONE,
            record_routes: Values::NONE,
            from: None,
            to: None,
            call_id: None,
            cseq: None,
            max_forwards: None,
            contact: None,
            user_agent: None,
            content_length: None,
            initial_remote: HeaderLines::NONE,
            heartbeat: false,
            custom: None,
        }
    }

    #[inline(always)]
    fn note(&mut self, line: Line<'m>) -> Result<(), Malformed> {
        if let Some(wanted) = &self.wanted
            && self.custom.is_none()
            && wanted.is(line.name)
        {
            self.custom = Some(line.value());
        }
        // Many stacks end a line at a lone CR (RFC 3261 §25.1 knows none): what stands behind it would be a
        // header for them and none for us.
        if line.lone_return {
            return Err(Malformed::LoneReturn { at: line.span.start });
        }
        if line.kind == Name::Other {
            return Ok(());
        }
        let value = line.value();
        let (slot, field) = match line.kind {
            Name::From => (&mut self.from, Field::From),
            Name::To => (&mut self.to, Field::To),
            Name::CallId => (&mut self.call_id, Field::CallId),
            Name::Cseq => (&mut self.cseq, Field::Cseq),
            Name::MaxForwards => (&mut self.max_forwards, Field::MaxForwards),
            Name::ContentLength => (&mut self.content_length, Field::ContentLength),
            _ => return self.note_repeatable(line, value),
        };
        match slot.replace(value) {
            Some(_) => Err(Malformed::Repeated(field)),
            None => Ok(()),
        }
    }

    /// What a message may have more than one of.
    #[inline(always)]
    fn note_repeatable(&mut self, line: Line<'m>, value: Span) -> Result<(), Malformed> {
        match line.kind {
            Name::Via => self.vias.note(self.bytes, value, line.span, true),
            Name::Route => self.routes.note(self.bytes, value, line.span, false),
            Name::RecordRoute => self.record_routes.note(self.bytes, value, line.span, false),
            Name::Contact if self.contact.is_none() && !value.is_empty() => {
                let start = value.start as usize;
                let end = start + list_element(value.of(self.bytes), false);
                self.contact = Some(trim_span(self.bytes, start, end));
            }
            Name::UserAgent => {
                self.user_agent.get_or_insert(value);
            }
            Name::Heartbeat => self.heartbeat = true,
            Name::InitialRemote if !self.initial_remote.note(line.span) => {
                return Err(Malformed::Repeated(Field::InitialRemote));
            }
            _ => {}
        }
        Ok(())
    }

    fn finish(
        self,
        start: Start,
        request_uri: Option<Uri<'m>>,
        first_header: usize,
        empty_line: usize,
        body_at: usize,
    ) -> Result<Message<'m>, Malformed> {
        let bytes = self.bytes;
        let top = self.vias.first().ok_or(Malformed::Missing(Field::Via))?;
        let from = present(self.from, Field::From)?;
        let to = present(self.to, Field::To)?;
        let call_id = present(self.call_id, Field::CallId)?;
        let cseq = present(self.cseq, Field::Cseq)?;
        if self.vias.len() > VIAS_MAX {
            return Err(Malformed::Vias { count: self.vias.len() });
        }
        let via = Via::parse(bytes.get(top.span.range()).unwrap_or_default());
        let via = via.ok_or(Malformed::Via)?;
        let (cseq_number, cseq_method) = read_cseq(bytes, cseq).ok_or(Malformed::Cseq)?;
        if let Start::Request { method_span, .. } = start
            && method_span.of(bytes) != cseq_method.of(bytes)
        {
            return Err(Malformed::CseqMethod);
        }
        if let Some(hops) = self.max_forwards {
            parse_decimal::<u32>(hops.of(bytes)).ok_or(Malformed::MaxForwards)?;
        }
        let present = bytes.len() - body_at;
        let (content_length, body_bytes) = match self.content_length {
            None => (None, present),
            Some(span) => {
                let said: u32 = parse_decimal(span.of(bytes)).ok_or(Malformed::ContentLength)?;
                if said as usize > present {
                    return Err(Malformed::BodyCut { said, present: offset(present) });
                }
                (Some(said), said as usize)
            }
        };
        let body = Span::new(body_at, body_at + body_bytes);
        Ok(Message {
            bytes: bytes.get(..body.end as usize).unwrap_or(bytes),
            start,
            request_uri,
            via,
            vias: self.vias,
            routes: self.routes,
            record_routes: self.record_routes,
            from,
            to,
            call_id,
            cseq,
            max_forwards: self.max_forwards,
            contact: self.contact,
            user_agent: self.user_agent,
            content_length,
            initial_remote: self.initial_remote,
            heartbeat: self.heartbeat,
            custom: self.custom,
            body,
            first_header: offset(first_header),
            headers_end: offset(empty_line),
            cseq_number,
            cseq_method,
        })
    }
}

fn present(slot: Option<Span>, field: Field) -> Result<Span, Malformed> {
    slot.filter(|it| !it.is_empty()).ok_or(Malformed::Missing(field))
}

/// `4711 INVITE` (RFC 3261 §20.16); the number must fit 32 bits.
fn read_cseq(bytes: &[u8], cseq: Span) -> Option<(u32, Span)> {
    let text = cseq.of(bytes);
    let length = text.iter().position(|it| !it.is_ascii_digit())?;
    let number = parse_decimal(text.get(..length)?)?;
    if !text.get(length).is_some_and(|it| is_blank(*it)) {
        return None;
    }
    let method = trim_span(bytes, cseq.start as usize + length, cseq.end as usize);
    method.of(bytes).iter().all(|it| is_token(*it)).then_some((number, method))
}

/// Reads the first line, and says where the next one begins.
fn start_line(bytes: &[u8]) -> Result<(Start, Option<Uri<'_>>, usize), Malformed> {
    let Some((end, next)) = line_end(bytes, 0) else {
        // Without a line end there is no telling; what begins like SIP was cut off.
        return Err(if starts_with_sip(bytes) { Malformed::StartLine } else { Malformed::NotSip });
    };
    let line = bytes.get(..end).unwrap_or_default();
    if starts_with_sip(line) {
        let (status, reason) = status_line(line)?;
        return Ok((Start::Response { status, reason }, None, next));
    }
    let last = memchr::memrchr(b' ', line).ok_or(Malformed::NotSip)?;
    let version = line.get(last + 1..).unwrap_or_default();
    if !starts_with_sip(version) {
        let trimmed = line.trim_ascii_end();
        let last = memchr::memrchr(b' ', trimmed).map_or(0, |it| it + 1);
        let version = trimmed.get(last..).unwrap_or_default();
        let sip = trimmed.len() < line.len() && starts_with_sip(version);
        return Err(if sip { Malformed::StartLine } else { Malformed::NotSip });
    }
    if !version.eq_ignore_ascii_case(b"SIP/2.0") {
        return Err(Malformed::Version);
    }
    if next == end {
        return Err(Malformed::StartLine);
    }
    let first = first_is(line, b' ').unwrap_or(last);
    let method_text = line.get(..first).unwrap_or_default();
    let uri_text = line.get(first + 1..last).unwrap_or_default();
    if method_text.is_empty() || !method_text.iter().all(|it| is_token(*it)) {
        return Err(Malformed::StartLine);
    }
    if uri_text.is_empty()
        || uri_text.iter().fold(false, |any, it| any | (*it <= b' ' || *it == 0x7f))
    {
        return Err(Malformed::StartLine);
    }
    let uri = Uri::parse(uri_text).ok_or(Malformed::RequestUri)?;
    let start = Start::Request {
        method: Method::from_token(method_text),
        method_span: Span::new(0, first),
        uri: Span::new(first + 1, last),
    };
    Ok((start, Some(uri), next))
}

/// `SIP/2.0 200 OK`. The reason may be empty, and the blank before it missing (RFC 4475 §3.1.1.13).
fn status_line(line: &[u8]) -> Result<(u16, Span), Malformed> {
    let (version, rest) = line.split_at_checked(7).ok_or(Malformed::StartLine)?;
    if !version.eq_ignore_ascii_case(b"SIP/2.0") || rest.first() != Some(&b' ') {
        return Err(Malformed::Version);
    }
    let status = rest.get(1..4).and_then(parse_decimal).ok_or(Malformed::StartLine)?;
    if status < 100 || !matches!(rest.get(4), None | Some(b' ')) {
        return Err(Malformed::StartLine);
    }
    Ok((status, Span::new(12.min(line.len()), line.len())))
}

pub(crate) fn starts_with_sip(line: &[u8]) -> bool {
    line.get(..4).is_some_and(|it| it.eq_ignore_ascii_case(b"SIP/"))
}

/// Line ends that come before the message (RFC 3261 §7.5).
pub(crate) fn leading_line_ends(bytes: &[u8]) -> usize {
    bytes.iter().position(|it| !matches!(it, b'\r' | b'\n')).unwrap_or(bytes.len())
}

/// A datagram cannot be longer, so neither is a stream's message.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// More than any network has been seen to use, folded lines counted once.
pub const HEADER_LINES_MAX: usize = 256;

/// The start line, or one header with its folds: certificates and Identity tokens fit several times over.
pub const LINE_BYTES_MAX: usize = 8 * 1024;

/// Max-Forwards starts at 70 (RFC 3261 §8.1.1.6): more hops than that are a loop.
pub const VIAS_MAX: usize = 70;

#[cfg(test)]
mod tests {
    extern crate std;

    use std::borrow::ToOwned;
    use std::string::String;
    use std::vec::Vec;
    use std::{format, vec};

    use super::*;
    use crate::bytes::Edits;
    use crate::testing::{INVITE, Random};

    /// `INVITE` with one piece of text in place of another.
    fn altered(from: &str, to: &str) -> Vec<u8> {
        let text = core::str::from_utf8(INVITE).unwrap();
        assert!(text.contains(from), "{from}");
        text.replacen(from, to, 1).into_bytes()
    }

    #[test]
    fn a_request_is_indexed() {
        let message = Message::parse(INVITE, Some(b"supported")).unwrap();
        let text = |span: Span| core::str::from_utf8(span.of(INVITE)).unwrap();
        assert!(message.is_request());
        assert_eq!((message.method(), message.status()), (Method::Invite, None));
        let Start::Request { uri, method_span, .. } = message.start else { panic!() };
        assert_eq!((text(method_span), text(uri)), ("INVITE", "sip:bob@example.com"));
        assert_eq!(
            (message.vias.len(), message.routes.len(), message.record_routes.len()),
            (2, 1, 0)
        );
        assert_eq!(message.via.branch, Some(b"z9hG4bK776asdhds".as_slice()));
        assert_eq!(text(message.from), "\"Alice\" <sip:alice@example.com>;tag=1928301774");
        assert_eq!(text(message.to), "Bob <sip:bob@example.com>");
        assert_eq!(text(message.call_id), "a84b4c76e66710@pc33.example.com");
        assert_eq!(text(message.cseq), "314159 INVITE");
        assert_eq!((message.cseq_number(), message.cseq_method()), (314_159, b"INVITE".as_slice()));
        assert_eq!(message.hops_left(), Some(70));
        assert_eq!(text(message.contact.unwrap()), "<sip:alice@203.0.113.5:5062>");
        assert_eq!(text(message.user_agent.unwrap()), "Trunkphone/4.2.1 (build 8841)");
        assert_eq!(message.content_length, Some(188));
        assert_eq!(text(message.custom.unwrap()), "replaces, timer");
        assert_eq!(text(message.body).len(), 188);
        assert!(text(message.body).starts_with("v=0\r\n"));
        assert_eq!(&INVITE[message.first_header as usize..][..4], b"Via:");
        assert_eq!(&INVITE[message.headers_end as usize..][..7], b"\r\nv=0\r\n");
        assert_eq!(message.from_tag(), Some(b"1928301774".as_slice()));
        assert_eq!((message.to_tag(), message.to_uri()), (None, b"sip:bob@example.com".as_slice()));
        assert_eq!(text(message.header_by_name("ALLOW").unwrap()).len(), 65);
        assert_eq!(message.header_by_name("Subject"), None);
    }

    #[test]
    fn a_response_is_indexed() {
        let cases: &[(&str, u16, &str)] = &[
            ("SIP/2.0 200 OK", 200, "OK"),
            ("sip/2.0 180 Ringing twice ", 180, "Ringing twice "),
            ("SIP/2.0 100 ", 100, ""),
            ("SIP/2.0 699", 699, ""),
        ];
        for (line, status, reason) in cases {
            let bytes = altered("INVITE sip:bob@example.com SIP/2.0", line);
            let message = Message::parse(&bytes, None).unwrap();
            let Start::Response { reason: got, .. } = message.start else { panic!("{line}") };
            assert_eq!((message.status(), message.text(got)), (Some(*status), reason.as_bytes()));
            assert_eq!((message.method(), message.request_uri), (Method::Invite, None), "{line}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let long = format!("Subject: {}\r\nTo: ", "x".repeat(LINE_BYTES_MAX));
        let many = format!("{}To: ", "A: 1\r\n".repeat(HEADER_LINES_MAX));
        let loops = format!("Via: {}To: ", "SIP/2.0/UDP h,".repeat(VIAS_MAX) + "\r\n");
        let spoofed = format!("{}To: ", "X-Sip-Balancer-InitialRemoteAddr: 1\r\n".repeat(9));
        let to_at = offset(INVITE.windows(4).position(|it| it == b"To: ").unwrap());
        let cases: &[(&str, &str, Malformed, Option<u16>)] = &[
            (" SIP/2.0\r\n", " HTTP/1.1\r\n", Malformed::NotSip, None),
            (" SIP/2.0\r\n", "\r\n", Malformed::NotSip, None),
            (" SIP/2.0\r\n", " SIP/2.1\r\n", Malformed::Version, Some(505)),
            ("INVITE sip", "SIP/1.0 sip", Malformed::Version, Some(505)),
            ("INVITE sip", "SIP/2.0 99 sip", Malformed::StartLine, Some(400)),
            ("INVITE sip", "SIP/2.0 2000 sip", Malformed::StartLine, Some(400)),
            ("INVITE sip", " sip", Malformed::StartLine, Some(400)),
            ("INVITE sip", "INV:TE sip", Malformed::StartLine, Some(400)),
            ("INVITE sip", "INVITE\tsip", Malformed::StartLine, Some(400)),
            ("INVITE sip:bob@example.com", "INVITE ", Malformed::StartLine, Some(400)),
            ("sip:bob@example.com", "sip:bob\r@example.com", Malformed::NotSip, None),
            ("sip:bob@example.com", "bob", Malformed::RequestUri, Some(400)),
            ("To: ", "To ", Malformed::HeaderLine { at: to_at }, Some(400)),
            ("To: ", "Sub\rject: \r\nTo: ", Malformed::HeaderLine { at: to_at }, Some(400)),
            ("To: Bob", "To: B\rob", Malformed::LoneReturn { at: to_at }, Some(400)),
            ("To: ", "X: 1\rX: 2\r\nTo: ", Malformed::LoneReturn { at: to_at }, Some(400)),
            ("From: ", "Frm: ", Malformed::Missing(Field::From), None),
            ("To: Bob <sip:bob@example.com>", "To: ", Malformed::Missing(Field::To), None),
            ("Call-ID: ", "Call: ", Malformed::Missing(Field::CallId), None),
            ("CSeq: ", "Seq: ", Malformed::Missing(Field::Cseq), None),
            ("To: ", "To: x\r\nt: ", Malformed::Repeated(Field::To), Some(400)),
            ("Max-Forwards: 70", "Max-Forwards: many", Malformed::MaxForwards, Some(400)),
            ("CSeq: 314159 INVITE", "CSeq: 314159", Malformed::Cseq, Some(400)),
            ("CSeq: 314159 INVITE", "CSeq: 4294967296 INVITE", Malformed::Cseq, Some(400)),
            ("CSeq: 314159 INVITE", "CSeq: INVITE 1", Malformed::Cseq, Some(400)),
            ("CSeq: 314159 INVITE", "CSeq: 1 invite", Malformed::CseqMethod, Some(400)),
            ("CSeq: 314159 INVITE", "CSeq: 1 INVITE x", Malformed::Cseq, Some(400)),
            ("Via: SIP/2.0/UDP 2", "Via: SIP/2.0/UDP :2", Malformed::Via, Some(400)),
            ("Length: 188", "Length: x", Malformed::ContentLength, Some(400)),
            (
                "Length: 188",
                "Length: 190",
                Malformed::BodyCut { said: 190, present: 188 },
                Some(400),
            ),
            ("To: ", &long, Malformed::LineBytes { bytes: LINE_BYTES_MAX + 11 }, Some(513)),
            ("To: ", &many, Malformed::HeaderLines, Some(513)),
            ("To: ", &loops, Malformed::Vias { count: VIAS_MAX + 2 }, Some(513)),
            ("To: ", &spoofed, Malformed::Repeated(Field::InitialRemote), Some(400)),
        ];
        for (from, to, want, status) in cases {
            let bytes = altered(from, to);
            let got = Message::parse(&bytes, None).map(|_| ()).unwrap_err();
            assert_eq!(got, *want, "{from} -> {to:.60}");
            assert_eq!(got.status(), *status, "{got}");
        }
        let no_via = String::from_utf8(INVITE.to_vec()).unwrap().replace("Via: ", "Vja: ");
        let got = Message::parse(no_via.as_bytes(), None).map(|_| ());
        assert_eq!(got, Err(Malformed::Missing(Field::Via)));
        let large = vec![b'x'; MESSAGE_BYTES_MAX + 1];
        let got = Message::parse(&large, None).map(|_| ());
        assert_eq!(got, Err(Malformed::TooLarge { bytes: MESSAGE_BYTES_MAX + 1 }));
        for empty in [b"".as_slice(), b"\r\n\r\n", b"\0\0\0\0", b"jaK"] {
            let got = Message::parse(empty, None).map(|_| ());
            assert_eq!(got, Err(Malformed::NotSip), "{}", empty.escape_ascii());
        }
    }

    #[test]
    fn limits_are_reached_and_not_passed() {
        let lines = INVITE.split(|it| *it == b'\n').position(|it| it == b"\r").unwrap() - 1;
        type Build = fn(usize) -> String;
        let cases: &[(&str, Build, usize)] = &[
            ("headers", |more| "A: 1\r\n".repeat(more) + "To: ", HEADER_LINES_MAX - lines),
            (
                "bytes of a header",
                |more| "A:".to_owned() + &"1".repeat(more) + "\r\nTo: ",
                LINE_BYTES_MAX - 4,
            ),
            (
                "Vias",
                |more| "v: ".to_owned() + &"SIP/2.0/UDP h,".repeat(more) + "\r\nTo: ",
                VIAS_MAX - 2,
            ),
        ];
        for (name, build, most) in cases {
            assert!(Message::parse(&altered("To: ", &build(*most)), None).is_ok(), "{name}");
            let above = altered("To: ", &build(most + 1));
            let above = Message::parse(&above, None).map(|_| ()).map_err(|it| it.status());
            assert_eq!(above, Err(Some(513)), "{name}");
        }
        let uri_bytes = LINE_BYTES_MAX - "INVITE  SIP/2.0\r\n".len();
        for (more, fits) in [(0, true), (1, false)] {
            let uri = "tel:".to_owned() + &"1".repeat(uri_bytes - 4 + more);
            let bytes = altered("sip:bob@example.com", &uri);
            assert_eq!(Message::parse(&bytes, None).is_ok(), fits, "start line, {more} more");
        }
    }

    #[test]
    fn what_does_not_matter_here_passes() {
        let cases: &[(&str, &str)] = &[
            ("INVITE sip:bob@example.com SIP/2.0", "\r\n\r\n\nINVITE sip:bob@example.com SIP/2.0"),
            ("INVITE sip:bob@example.com SIP/2.0\r\n", "INVITE tel:911 SIP/2.0\n"),
            ("Supported: replaces, timer", "Supported: \"never closed, <\r\n ,,;;"),
            ("Supported: replaces", "Supported: replaces\0\u{7f}\u{ff}"),
            ("Supported: replaces, timer", "Supported:\r\nsupported : x\r\nk:y"),
            ("Contact: <sip:alice@203.0.113.5:5062>", "m: *"),
            ("Max-Forwards: 70", "Max-Forwards: 300"),
            ("Content-Length: 188\r\n", ""),
            ("Content-Length: 188", "l :  000188  "),
            ("To: Bob <sip:bob@example.com>", "t: \"Bob <<>"),
        ];
        for (from, to) in cases {
            let bytes = altered(from, to);
            let message = Message::parse(&bytes, None).unwrap_or_else(|it| panic!("{to}: {it}"));
            assert_eq!((message.method(), message.body.len()), (Method::Invite, 188), "{to}");
            assert_eq!(message.text(message.body), &INVITE[INVITE.len() - 188..], "{to}");
        }
    }

    #[test]
    fn line_ends_alone_make_the_same_message() {
        let bare: Vec<u8> = INVITE.iter().copied().filter(|it| *it != b'\r').collect();
        let bare = String::from_utf8(bare).unwrap().replace("Length: 188", "Length: 178");
        let message = Message::parse(bare.as_bytes(), None).unwrap();
        assert_eq!((message.vias.len(), message.routes.len(), message.body.len()), (2, 1, 178));
    }

    #[test]
    fn what_surrounds_a_message_in_its_datagram_is_left_out() {
        let datagram = [b"\r\n\r\n", INVITE, b"more than was promised"].concat();
        assert!(Message::parse(&datagram, None).unwrap().bytes == INVITE);
    }

    #[test]
    fn the_headers_that_balancers_write_and_read_are_found() {
        let bytes = altered(
            "Supported",
            "x-sip-balancer-initialremoteaddr: 1.2.3.4\r\nMobicents-Heartbeat: 1\r\n\
             X-Sip-Balancer-InitialRemotePort:\r\n 5\r\nRecord-Route: <sip:a>,<sip:b>,<sip:c>\r\nS",
        );
        let message = Message::parse(&bytes, Some(b"Call-ID")).unwrap();
        let lines: Vec<_> =
            message.initial_remote.as_slice().iter().map(|it| it.of(&bytes)).collect();
        assert_eq!(
            lines,
            [
                b"x-sip-balancer-initialremoteaddr: 1.2.3.4\r\n".as_slice(),
                b"X-Sip-Balancer-InitialRemotePort:\r\n 5\r\n",
            ]
        );
        assert!(message.heartbeat && !Message::parse(INVITE, None).unwrap().heartbeat);
        assert_eq!(message.record_routes.len(), 3);
        assert_eq!(message.custom, Some(message.call_id), "a header that is read anyway");
        let compact = altered("Call-ID", "i");
        let message = Message::parse(&compact, Some(b"Call-ID")).unwrap();
        assert_eq!(message.custom, Some(message.call_id), "its compact form");
        assert_eq!(Message::parse(INVITE, Some(b"X-None")).unwrap().custom, None);
    }

    #[test]
    fn methods_are_told_apart_by_case() {
        for method in Method::ALL {
            assert_eq!(Method::ALL[method.index()], method);
            assert_eq!(Method::from_token(method.as_str().as_bytes()), method);
            let lower = method.as_str().to_ascii_lowercase();
            assert_eq!(Method::from_token(lower.as_bytes()), Method::Other, "{lower}");
        }
    }

    #[test]
    fn only_requests_that_may_be_answered_are_salvaged() {
        let cases: &[(&str, &str, bool)] = &[
            ("To: ", "broken\r\nTo: ", true),
            ("INVITE sip", "INVITE  sip", true),
            ("\r\n\r\nv=0", "\r\n", true),
            ("INVITE sip", "SIP/2.0 200 sip", false),
            ("INVITE sip", "ACK sip", false),
            ("To: ", "To ", false),
            ("Call-ID: a", "Call-ID: \ra", false),
        ];
        for (from, to, want) in cases {
            assert_eq!(salvage(&altered(from, to)).is_some(), *want, "{from} -> {to}");
        }
        let bytes = [b"\r\n", INVITE].concat();
        let salvage = salvage(&bytes).unwrap();
        assert_eq!(salvage.via, b"SIP/2.0/UDP 203.0.113.5:5062;branch=z9hG4bK776asdhds;rport");
        assert_eq!(salvage.to, b"Bob <sip:bob@example.com>");
        assert_eq!(salvage.cseq, b"314159 INVITE");
        assert_eq!(salvage.bytes, INVITE);
    }

    /// The edits of a relay; every text they add holds a `#`.
    fn relayed(message: &Message<'_>) -> Vec<u8> {
        let mut edits = Edits::new();
        edits.insert(message.first_header, b"#1\r\n");
        if let Some(hops) = message.max_forwards {
            edits.replace(hops, b"#69");
        }
        remove_values(&message.routes, 2, &mut edits);
        edits.insert(message.vias.first().unwrap().span.start + message.via.params_end, b";#");
        for line in message.initial_remote.as_slice() {
            edits.remove(*line);
        }
        edits.insert(message.headers_end, b"#2\r\n");
        let mut out = Vec::new();
        edits.apply(message.bytes, &mut out).unwrap();
        out
    }

    #[test]
    fn any_bytes_are_indexed_within_bounds_or_refused() {
        let mut read = 0;
        for seed in 0..20_000 {
            let bytes = Random::new(seed).mutate(INVITE);
            let Ok(message) = Message::parse(&bytes, Some(b"Supported")) else { continue };
            read += 1;
            let length = message.bytes.len();
            let spans = [message.from, message.to, message.call_id, message.cseq, message.body];
            let more = [message.max_forwards, message.contact, message.user_agent, message.custom];
            for span in spans.into_iter().chain(more.into_iter().flatten()) {
                assert!(span.start <= span.end && span.range().end <= length, "seed {seed}");
            }
            for value in message.vias.as_slice().iter().chain(message.routes.as_slice()) {
                let inside = value.line.start <= value.span.start && value.span.end <= value.next;
                assert!(inside && value.next <= value.line.end, "seed {seed}");
                assert!(value.line.range().end <= message.headers_end as usize, "seed {seed}");
            }
            assert!(message.headers_end <= message.body.start, "seed {seed}");
            assert!(!relayed(&message).is_empty(), "seed {seed}");
        }
        assert!(read > 2_000, "only {read} mutations are still messages: the test tests nothing");
    }

    #[test]
    fn output_less_our_lines_is_input_less_our_lines() {
        for seed in 0..5_000 {
            let mut random = Random::new(seed);
            let (route_at, hops_at) = (random.below(5), random.below(5));
            let filler = |random: &mut Random, number: usize| {
                let blanks = ["", " ", "\t ", "\r\n  "][random.below(4)];
                let end = ["\r\n", "\n", " \r\n"][random.below(3)];
                format!("X-{number}{}:{blanks}v{number}{end}", ["", " "][random.below(2)])
            };
            let mut input = String::from("BYE sip:h SIP/2.0\r\n");
            let mut want = input.clone() + "#1\r\n";
            for at in 0..5 {
                let other = filler(&mut random, at);
                input += &other;
                want += &other;
                if at == route_at {
                    let line =
                        ["Route:<a>,\r\n <b>\r\n", "route : <a>\nROUTE:<b>\n"][random.below(2)];
                    input += line;
                }
                if at == hops_at {
                    input += "max-forwards :\t7 \r\n";
                    want += "max-forwards :\t#69 \r\n";
                }
            }
            let rest =
                "v: SIP/2.0/UDP h;branch=b\r\nf: <a>;tag=1\r\nt: <b>\r\ni: 1\r\nCSeq: 1 BYE\r\n";
            input += rest;
            want += &rest.replace("branch=b", "branch=b;#");
            input += "\r\nbody\0";
            want += "#2\r\n\r\nbody\0";
            let message = Message::parse(input.as_bytes(), None).unwrap();
            let out = String::from_utf8(relayed(&message)).unwrap();
            assert_eq!(out, want, "seed {seed}: {input}");
        }
    }
}
