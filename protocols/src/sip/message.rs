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
use super::uri::Uri;
pub use super::values::{HeaderLines, Value, Values, remove_values};
use super::via::Via;
use crate::bytes::{Span, offset, parse_decimal};

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
    /// Route, top first.
    pub routes: Values<6>,
    /// Record-Route, top first.
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
                    index.note(&line)?;
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
        self.lines().find_map(|line| wanted.is(line.name).then_some(line.value))
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

    #[inline]
    fn note(&mut self, line: &Line<'m>) -> Result<(), Malformed> {
        if let Some(wanted) = &self.wanted
            && self.custom.is_none()
            && wanted.is(line.name)
        {
            self.custom = Some(line.value);
        }
        let name = Name::of(line.name);
        if name == Name::Other {
            return Ok(());
        }
        if line.lone_return {
            return Err(Malformed::LoneReturn { at: line.span.start });
        }
        match name {
            Name::Via => self.vias.note(self.bytes, line, true),
            Name::Route => self.routes.note(self.bytes, line, false),
            Name::RecordRoute => self.record_routes.note(self.bytes, line, false),
            Name::From => once(&mut self.from, line.value, Field::From)?,
            Name::To => once(&mut self.to, line.value, Field::To)?,
            Name::CallId => once(&mut self.call_id, line.value, Field::CallId)?,
            Name::Cseq => once(&mut self.cseq, line.value, Field::Cseq)?,
            Name::MaxForwards => once(&mut self.max_forwards, line.value, Field::MaxForwards)?,
            Name::ContentLength => {
                once(&mut self.content_length, line.value, Field::ContentLength)?;
            }
            Name::Contact => {
                let text = line.value.of(self.bytes);
                if self.contact.is_none() && !text.is_empty() {
                    let start = line.value.start as usize;
                    let end = start + list_element(text, false);
                    self.contact = Some(trim_span(self.bytes, start, end));
                }
            }
            Name::UserAgent => {
                self.user_agent.get_or_insert(line.value);
            }
            Name::Heartbeat => self.heartbeat = true,
            Name::InitialRemote => {
                if !self.initial_remote.note(line.span) {
                    return Err(Malformed::Repeated(Field::InitialRemote));
                }
            }
            Name::Other => {}
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

fn once(slot: &mut Option<Span>, value: Span, field: Field) -> Result<(), Malformed> {
    match slot.replace(value) {
        Some(_) => Err(Malformed::Repeated(field)),
        None => Ok(()),
    }
}

fn present(slot: Option<Span>, field: Field) -> Result<Span, Malformed> {
    slot.filter(|it| !it.is_empty()).ok_or(Malformed::Missing(field))
}

/// `4711 INVITE` (RFC 3261 §20.16); the number must fit 32 bits.
fn read_cseq(bytes: &[u8], cseq: Span) -> Option<(u32, Span)> {
    let text = cseq.of(bytes);
    let length = text.iter().position(|it| is_blank(*it))?;
    let number = parse_decimal(text.get(..length)?)?;
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
    let first = memchr::memchr(b' ', line).unwrap_or(last);
    let method_text = line.get(..first).unwrap_or_default();
    let uri_text = line.get(first + 1..last).unwrap_or_default();
    if method_text.is_empty() || !method_text.iter().all(|it| is_token(*it)) {
        return Err(Malformed::StartLine);
    }
    if uri_text.is_empty() || uri_text.iter().any(|it| *it <= b' ' || *it == 0x7f) {
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

/// One header with its folds: certificates and Identity tokens fit several times over.
pub const LINE_BYTES_MAX: usize = 8 * 1024;

/// Max-Forwards starts at 70 (RFC 3261 §8.1.1.6): more hops than that are a loop.
pub const VIAS_MAX: usize = 70;
