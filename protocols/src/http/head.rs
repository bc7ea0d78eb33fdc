//! Heads of HTTP/1.x messages: where they end, what a balancer must know of them, which lines to take away.
//!
//! Reads RFC 9112 §2 to §6 and RFC 9110 §7.6.1 (hop-by-hop fields). Everything that recipients are known to
//! read differently is refused: bare CR and LF, folded lines, blanks before a colon, lengths that
//! contradict one another or the transfer coding. Does not read fields it has no use for.

mod lines;

use core::mem::MaybeUninit;

use httparse::{Error, ParserConfig, Status};

use self::lines::Lines;
use super::Method;
use super::body::Framing;
use crate::bytes::{Edits, Span, parse_decimal, write_decimal};

/// Why bytes are no head that may be passed on. The connection must be closed; [`Malformed::status`] is
/// what the client hears first.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Malformed {
    /// Longer than [`HEAD_BYTES_MAX`], or more than [`LINES_MAX`] lines.
    TooLong,
    /// The first line alone is too long.
    TargetTooLong,
    /// Against the grammar.
    Syntax,
    /// Neither HTTP/1.0 nor HTTP/1.1.
    Version,
    /// Nobody can say where the body ends.
    Framing,
    /// A transfer coding besides chunked.
    Coding,
    /// Host is missing, doubled or no host.
    Host,
    /// CONNECT: this is no forward proxy.
    Connect,
    /// The connection preface of HTTP/2, which is not spoken here: close without a word.
    Http2,
}

impl Malformed {
    /// Status of the answer.
    pub const fn status(self) -> u16 {
        match self {
            Malformed::Syntax | Malformed::Framing | Malformed::Host => 400,
            Malformed::TargetTooLong => 414,
            Malformed::TooLong => 431,
            Malformed::Coding | Malformed::Connect => 501,
            Malformed::Version | Malformed::Http2 => 505,
        }
    }
}

/// How far the head at the front of a stream has been looked through; so that a head which comes byte by
/// byte costs no more than one which comes whole.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Scan {
    /// Bytes looked at.
    at: u32,
    /// Where the line that is being looked at begins.
    line: u32,
}

impl Scan {
    /// Nothing looked at.
    pub const NEW: Scan = Scan { at: 0, line: 0 };

    /// Length of the head at the front of `bytes`, its empty line included; `None`: there is more to come.
    /// Begins with the request or status line: see [`empty_lines`]. `bytes` is the same stream as in the
    /// last call, and at least as long.
    ///
    /// # Errors
    ///
    /// [`Malformed`], for a line that does not end in CRLF and a head that is too long.
    pub fn head(&mut self, bytes: &[u8]) -> Result<Option<usize>, Malformed> {
        let head = bytes.get(..bytes.len().min(HEAD_BYTES_MAX)).unwrap_or_default();
        let mut at = self.at as usize;
        while let Some(rest) = head.get(at..)
            && let Some(next) = memchr::memchr(b'\n', rest)
        {
            let end = at + next;
            let line = head.get(self.line as usize..end).unwrap_or_default();
            if line.last() != Some(&b'\r') {
                return Err(Malformed::Syntax);
            }
            if line.len() == 1 {
                return Ok(Some(end + 1));
            }
            at = end + 1;
            self.line = u32::try_from(at).unwrap_or(u32::MAX);
        }
        self.at = u32::try_from(head.len()).unwrap_or(u32::MAX);
        match bytes.len() >= HEAD_BYTES_MAX {
            true if self.line == 0 => Err(Malformed::TargetTooLong),
            true => Err(Malformed::TooLong),
            false => Ok(None),
        }
    }
}

/// Bytes of empty lines in front of a request, which are to be ignored (RFC 9112 §2.2).
pub fn empty_lines(bytes: &[u8]) -> usize {
    let (pairs, _) = bytes.as_chunks::<2>();
    2 * pairs.iter().take_while(|it| *it == b"\r\n").count()
}

/// What a request head says. Spans are into the head.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Request {
    /// Length of the head.
    pub bytes: usize,
    /// The method.
    pub method: Method,
    /// Path and query, or `*`: the request-target without the authority of its absolute form. Empty if
    /// that has no path.
    pub target: Span,
    /// The client speaks HTTP/1.0.
    pub is_1_0: bool,
    /// Value of Host, or the authority of a target in absolute form.
    pub host: Option<Span>,
    /// How the body ends; never [`Framing::UntilClose`].
    pub framing: Framing,
    /// The client wants to keep the connection.
    pub is_persistent: bool,
    /// The client waits for 100 before it sends the body.
    pub expects_continue: bool,
    /// It wants to speak WebSocket (RFC 6455 §4.1).
    pub upgrade: Option<Upgrade>,
    /// The `JSESSIONID` cookie.
    pub session_cookie: Option<Span>,
    /// OPTIONS or TRACE that must not be passed on: its Max-Forwards is 0 (RFC 9110 §7.6.2).
    pub is_for_us: bool,
}

/// A WebSocket handshake.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Upgrade {
    /// The subprotocols offered contain `sip` (RFC 7118).
    pub is_sip: bool,
}

/// What a response head says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Response {
    /// Length of the head.
    pub bytes: usize,
    /// 100 to 999.
    pub status: u16,
    /// How the body ends.
    pub framing: Framing,
    /// The server keeps the connection.
    pub is_persistent: bool,
    /// Seconds that it promises to keep it (`Keep-Alive: timeout`).
    pub keeps_secs: Option<u32>,
    /// The line with the transfer coding, end included.
    pub coding: Option<Span>,
    /// The server speaks HTTP/1.0.
    pub is_1_0: bool,
}

impl Request {
    /// Reads a request head: `head` is what [`Scan::head`] found. Into `edits` goes what turns it into the
    /// request that is passed on: hop-by-hop lines go, the version becomes our own, an absolute target
    /// becomes a path with its Host. The lines of a WebSocket handshake stay. A request of HTTP/1.0 that
    /// names no host stays what it is: servers refuse an empty Host (RFC 9112 §2.3 allows that).
    ///
    /// # Errors
    ///
    /// [`Malformed`]: answer with its status and close.
    pub fn parse(head: &[u8], edits: &mut Edits) -> Result<Request, Malformed> {
        if head.starts_with(b"PRI * HTTP/2.0\r\n") {
            return Err(Malformed::Http2);
        }
        let mut storage = [const { MaybeUninit::uninit() }; LINES_MAX];
        let mut parsed = httparse::Request::new(&mut []);
        let status = ParserConfig::default()
            .parse_request_with_uninit_headers(&mut parsed, head, &mut storage)
            .map_err(because)?;
        let (Status::Complete(bytes), Some(method), Some(path), Some(minor)) =
            (status, parsed.method, parsed.path, parsed.version)
        else {
            return Err(Malformed::Syntax);
        };
        let lines = Lines::read(head, parsed.headers);
        lines.check_options()?;
        let mut it = Request {
            bytes,
            method: Method::of(method.as_bytes()),
            target: span_of(head, path.as_bytes()),
            is_1_0: minor == 0,
            host: lines.host,
            framing: lines.framing(minor)?.unwrap_or(Framing::NONE),
            is_persistent: lines.is_persistent(minor),
            expects_continue: lines.expects_continue && minor == 1,
            upgrade: None,
            session_cookie: lines.session_cookie,
            is_for_us: false,
        };
        if it.method == Method::Connect {
            return Err(Malformed::Connect);
        }
        it.check_host(head, &lines)?;
        let version_at = it.target.end + 1;
        if memchr::memchr(b'#', path.as_bytes()).is_some() {
            return Err(Malformed::Syntax); // some would cut the fragment off, others not
        }
        if matches!(it.method, Method::Options | Method::Trace)
            && let Some(span) = lines.max_forwards
            && let Some(left) = parse_decimal::<u64>(span.of(head))
        {
            match left.checked_sub(1) {
                Some(left) => edits.write(span, |out| write_decimal(out, left)),
                None => it.is_for_us = true,
            }
        }
        it.resolve_target(head, &lines, edits)?;
        if it.is_1_0 && it.host.is_some() {
            edits.replace(Span { start: version_at, end: version_at + 8 }, b"HTTP/1.1");
        }
        let is_handshake = it.method == Method::Get
            && !it.is_1_0
            && lines.upgrades
            && lines.is_websocket
            && it.framing == Framing::NONE;
        if is_handshake {
            it.upgrade = Some(Upgrade { is_sip: lines.offers_sip });
        }
        lines.strip(head, parsed.headers, is_handshake, edits);
        Ok(it)
    }

    /// RFC 9112 §3.2.
    fn check_host(&self, head: &[u8], lines: &Lines) -> Result<(), Malformed> {
        match lines.host {
            _ if lines.hosts > 1 => Err(Malformed::Host),
            Some(host) if host.of(head).iter().all(|it| is_host(*it)) => Ok(()),
            None if self.is_1_0 => Ok(()),
            _ => Err(Malformed::Host),
        }
    }

    /// RFC 9112 §3.2: origin form as it stands, `*` for OPTIONS, absolute form split up with its Host.
    fn resolve_target(
        &mut self,
        head: &[u8],
        lines: &Lines,
        edits: &mut Edits,
    ) -> Result<(), Malformed> {
        let target = self.target.of(head);
        let is_asterisk = target == b"*" && self.method == Method::Options;
        if is_asterisk || target.first() == Some(&b'/') {
            return Ok(());
        }
        let scheme = [&b"http://"[..], b"https://"]
            .into_iter()
            .find(|it| target.get(..it.len()).is_some_and(|start| start.eq_ignore_ascii_case(it)));
        let rest = scheme.and_then(|it| target.get(it.len()..)).ok_or(Malformed::Syntax)?;
        let length = rest.iter().position(|it| matches!(it, b'/' | b'?')).unwrap_or(rest.len());
        let (authority, path) = rest.split_at_checked(length).ok_or(Malformed::Syntax)?;
        if authority.is_empty() || !authority.iter().all(|it| is_host(*it)) {
            return Err(Malformed::Host);
        }
        let own = match path.first() {
            Some(b'/') => &b""[..],
            None if self.method == Method::Options => b"*",
            _ => b"/",
        };
        let path = span_of(head, path);
        edits.replace(Span { start: self.target.start, end: path.start }, own);
        let authority = span_of(head, authority);
        match lines.host {
            Some(host) => edits.replace(host, authority.of(head)),
            None => {
                let end = end_of_lines(self.bytes);
                edits.insert(end, &[b"Host: ", authority.of(head), b"\r\n"].concat());
            }
        }
        self.target = path;
        self.host = Some(authority);
        Ok(())
    }
}

impl Response {
    /// Reads a response head to a request of this method. Into `edits` goes what turns it into the
    /// response that is passed on, as for [`Request::parse`]; that of a 101 stays as it is.
    ///
    /// # Errors
    ///
    /// [`Malformed`]: close the connection to the server; the client gets 502.
    pub fn parse(head: &[u8], method: Method, edits: &mut Edits) -> Result<Response, Malformed> {
        let mut storage = [const { MaybeUninit::uninit() }; LINES_MAX];
        let mut parsed = httparse::Response::new(&mut []);
        let status = ParserConfig::default()
            .parse_response_with_uninit_headers(&mut parsed, head, &mut storage)
            .map_err(because)?;
        let (Status::Complete(bytes), Some(code), Some(minor)) =
            (status, parsed.code, parsed.version)
        else {
            return Err(Malformed::Syntax);
        };
        if code < 100 {
            return Err(Malformed::Syntax);
        }
        let lines = Lines::read(head, parsed.headers);
        lines.check_options()?;
        let framing = lines.response_framing(minor)?;
        let is_bare = code < 200 || matches!(code, 204 | 304) || method == Method::Head;
        if minor == 0 {
            edits.replace(Span { start: 0, end: 8 }, b"HTTP/1.1");
        }
        if code != 101 {
            // 426 says by Upgrade which versions there are (RFC 9110 §15.5.22, RFC 6455 §4.4).
            lines.strip(head, parsed.headers, code == 426 && lines.is_websocket, edits);
        }
        if matches!(code, 102..200 | 100 | 204) {
            // They have no body, and who believes these waits for one (RFC 9110 §8.6, RFC 9112 §6.1).
            for name in [&b"Content-Length"[..], b"Transfer-Encoding"] {
                self::lines(head, name).for_each(|it| edits.remove(it));
            }
        } else if lines.repeats_length() {
            self::lines(head, b"Content-Length").skip(1).for_each(|it| edits.remove(it));
        }
        let framing = if is_bare { Framing::NONE } else { framing.unwrap_or(Framing::UntilClose) };
        Ok(Response {
            bytes,
            status: code,
            framing,
            is_persistent: lines.is_persistent(minor) && framing != Framing::UntilClose,
            keeps_secs: lines.keeps_secs,
            coding: lines.coding,
            is_1_0: minor == 0,
        })
    }
}

/// Where lines of our own go in a head of this length: before the empty line.
pub fn end_of_lines(head_bytes: usize) -> u32 {
    u32::try_from(head_bytes.saturating_sub(2)).unwrap_or(u32::MAX)
}

/// Value of the first field of this name in a head that has been read, without the blanks around it.
pub fn field<'h>(head: &'h [u8], name: &'h [u8]) -> Option<&'h [u8]> {
    fields(head, name).next()
}

/// Values of the fields of this name, likewise.
pub fn fields<'h>(head: &'h [u8], name: &'h [u8]) -> impl Iterator<Item = &'h [u8]> {
    let values = lines(head, name).filter_map(|it| it.of(head).get(name.len() + 1..));
    values.map(<[u8]>::trim_ascii)
}

/// Path and query of a request head that has been read.
pub fn target(head: &[u8]) -> Option<&[u8]> {
    head.split(|it| *it == b' ').nth(1)
}

/// The lines of this name in a head that has been read, their ends included.
pub fn lines<'h>(head: &'h [u8], name: &'h [u8]) -> impl Iterator<Item = Span> + 'h {
    let is_named = move |line: &[u8]| {
        line.split_at_checked(name.len()).is_some_and(|(start, rest)| {
            start.eq_ignore_ascii_case(name) && rest.first() == Some(&b':')
        })
    };
    head.split_inclusive(|it| *it == b'\n')
        .skip(1)
        .filter(move |line| is_named(line))
        .map(move |line| span_of(head, line))
}

/// Where `part`, a part of `head`, lies in it.
fn span_of(head: &[u8], part: &[u8]) -> Span {
    let start = part.as_ptr().addr().saturating_sub(head.as_ptr().addr());
    Span::new(start, start + part.len())
}

/// What a host and its port are made of (RFC 3986 §3.2.2).
const fn is_host(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'-' | b'.'
                | b'_'
                | b'~'
                | b'%'
                | b'!'
                | b'$'
                | b'&'
                | b'\''
                | b'('
                | b')'
                | b'*'
                | b'+'
                | b','
                | b';'
                | b'='
                | b':'
                | b'['
                | b']'
        )
}

const fn because(error: Error) -> Malformed {
    match error {
        Error::TooManyHeaders => Malformed::TooLong,
        Error::Version => Malformed::Version,
        _ => Malformed::Syntax,
    }
}

/// Longest head. Browsers stay below 16 KiB; single sign-on cookies go beyond that.
pub const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Most lines of a head.
pub const LINES_MAX: usize = 256;

#[cfg(test)]
mod tests;
