//! What the fields of a head say together: framing, persistence, upgrade, what is for one hop only.

use httparse::Header;

use super::{Malformed, end_of_lines, span_of};
use crate::bytes::{Edits, Span, parse_decimal};
use crate::http::body::Framing;
use crate::http::session;

/// What the fields of either kind of head say together.
#[derive(Default)]
pub(super) struct Lines {
    pub(super) host: Option<Span>,
    pub(super) hosts: usize,
    lengths: usize,
    length: Option<u64>,
    /// Several lengths that are not the same.
    lengths_differ: bool,
    pub(super) coding: Option<Span>,
    codings: usize,
    is_chunked: bool,
    ends_chunked: bool,
    closes: bool,
    keeps: bool,
    pub(super) upgrades: bool,
    pub(super) is_websocket: bool,
    pub(super) offers_sip: bool,
    pub(super) keeps_secs: Option<u32>,
    pub(super) expects_continue: bool,
    pub(super) session_cookie: Option<Span>,
    pub(super) max_forwards: Option<Span>,
    /// Connection says nothing but `upgrade`.
    only_upgrades: bool,
    connections: usize,
    /// Connection names fields of its own.
    nominates: bool,
    /// Words in all lines of Connection.
    options: usize,
    /// Any hop-by-hop line.
    has_hop: bool,
}

impl Lines {
    pub(super) fn read(head: &[u8], headers: &[Header<'_>]) -> Lines {
        let mut it = Lines::default();
        for (index, header) in headers.iter().enumerate() {
            let value = header.value;
            let known = known(header.name.as_bytes());
            match known {
                Known::Other | Known::OneHop => {}
                Known::Host => {
                    it.hosts += 1;
                    it.host = Some(span_of(head, value));
                }
                Known::ContentLength => {
                    let length = parse_decimal(value);
                    it.lengths_differ |= it.lengths > 0 && it.length != length;
                    it.lengths += 1;
                    it.length = length;
                }
                Known::TransferEncoding => {
                    it.codings += 1;
                    it.coding = Some(line_of(head, headers, index));
                    let last = value.rsplit(|it| *it == b',').next().unwrap_or_default();
                    it.ends_chunked = last.trim_ascii().eq_ignore_ascii_case(b"chunked");
                    it.is_chunked = value.eq_ignore_ascii_case(b"chunked");
                }
                Known::Connection => it.connection(value),
                Known::Upgrade => {
                    it.is_websocket |=
                        tokens(value).any(|it| it.eq_ignore_ascii_case(b"websocket"));
                }
                Known::SubProtocol => {
                    it.offers_sip |= tokens(value).any(|it| it.eq_ignore_ascii_case(b"sip"));
                }
                Known::KeepAlive => {
                    it.keeps_secs =
                        tokens(value).find_map(|it| parse_decimal(it.strip_prefix(b"timeout=")?));
                }
                Known::Expect => {
                    it.expects_continue |= value.eq_ignore_ascii_case(b"100-continue");
                }
                Known::Cookie if it.session_cookie.is_none() => {
                    it.session_cookie =
                        session::cookie(value, b"jsessionid").map(|it| span_of(head, it));
                }
                Known::Cookie => {}
                Known::MaxForwards => it.max_forwards = Some(span_of(head, value)),
            }
            it.has_hop |= known.is_hop();
        }
        it
    }

    fn connection(&mut self, value: &[u8]) {
        self.connections += 1;
        self.only_upgrades = self.connections == 1 && value.eq_ignore_ascii_case(b"upgrade");
        for token in tokens(value) {
            self.options += 1;
            match () {
                () if token.eq_ignore_ascii_case(b"close") => self.closes = true,
                () if token.eq_ignore_ascii_case(b"keep-alive") => self.keeps = true,
                () if token.eq_ignore_ascii_case(b"upgrade") => self.upgrades = true,
                () => self.nominates = true,
            }
        }
    }

    /// Each line of the head is compared with each word of Connection.
    ///
    /// # Errors
    ///
    /// [`Malformed::TooLong`]: there are more than [`OPTIONS_MAX`].
    pub(super) const fn check_options(&self) -> Result<(), Malformed> {
        if self.options > OPTIONS_MAX { Err(Malformed::TooLong) } else { Ok(()) }
    }

    /// The same length said twice, which a response may be mended of (RFC 9110 §8.6).
    pub(super) const fn repeats_length(&self) -> bool {
        self.lengths > 1 && !self.lengths_differ && self.codings == 0
    }

    /// RFC 9112 §6.3, §6.1. `None`: no field says anything.
    pub(super) fn framing(&self, minor: u8) -> Result<Option<Framing>, Malformed> {
        match (self.codings, self.lengths) {
            (0, 0) => Ok(None),
            (0, 1) => self.length.map(|it| Some(Framing::Length(it))).ok_or(Malformed::Framing),
            (1, 0) if minor == 1 && self.is_chunked => Ok(Some(Framing::Chunked)),
            (1.., 0) if minor == 1 && self.ends_chunked && self.codings == 1 => {
                Err(Malformed::Coding)
            }
            _ => Err(Malformed::Framing),
        }
    }

    /// As [`Lines::framing`], where one length said twice does no harm.
    pub(super) fn response_framing(&self, minor: u8) -> Result<Option<Framing>, Malformed> {
        match self.length.filter(|_| self.repeats_length()) {
            Some(length) => Ok(Some(Framing::Length(length))),
            None => self.framing(minor),
        }
    }

    pub(super) const fn is_persistent(&self, minor: u8) -> bool {
        !self.closes && (minor == 1 || self.keeps)
    }

    /// Takes away what is meant for one hop only (RFC 9110 §7.6.1); keeps the lines of a handshake.
    pub(super) fn strip(
        &self,
        head: &[u8],
        headers: &[Header<'_>],
        is_handshake: bool,
        edits: &mut Edits,
    ) {
        if !self.has_hop {
            return;
        }
        let (mut is_first, mut has_upgrade) = (true, false);
        for (index, header) in headers.iter().enumerate() {
            let name = header.name.as_bytes();
            let known = known(name);
            match known {
                // Nothing but what is understood here (RFC 9110 §7.8).
                Known::Upgrade if is_handshake && !has_upgrade => {
                    has_upgrade = true;
                    if !header.value.eq_ignore_ascii_case(b"websocket") {
                        edits.replace(span_of(head, header.value), b"websocket");
                    }
                    continue;
                }
                Known::Connection if is_handshake && self.only_upgrades => continue,
                Known::Connection if is_handshake && is_first => {
                    is_first = false;
                    edits.replace(span_of(head, header.value), b"Upgrade");
                    continue;
                }
                _ => {}
            }
            if known.is_hop() || (self.nominates && is_nominated(headers, known, name)) {
                edits.remove(line_of(head, headers, index));
            }
        }
    }
}

/// Whether Connection names this field. What frames or addresses the message is not theirs to take away.
fn is_nominated(headers: &[Header<'_>], known: Known, name: &[u8]) -> bool {
    let is_vital = matches!(known, Known::Host | Known::ContentLength | Known::TransferEncoding);
    !is_vital
        && headers
            .iter()
            .filter(|it| it.name.len() == 10 && it.name.eq_ignore_ascii_case("connection"))
            .flat_map(|it| tokens(it.value))
            .any(|it| it.eq_ignore_ascii_case(name))
}

/// Fields that mean something here.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Known {
    Host,
    ContentLength,
    TransferEncoding,
    Connection,
    KeepAlive,
    Upgrade,
    /// TE and Proxy-Connection.
    OneHop,
    SubProtocol,
    Expect,
    Cookie,
    MaxForwards,
    Other,
}

impl Known {
    const fn is_hop(self) -> bool {
        matches!(self, Known::Connection | Known::KeepAlive | Known::Upgrade | Known::OneHop)
    }
}

fn known(name: &[u8]) -> Known {
    let is = |it: &[u8]| name.eq_ignore_ascii_case(it);
    match name.len() {
        2 if is(b"te") => Known::OneHop,
        4 if is(b"host") => Known::Host,
        6 if is(b"cookie") => Known::Cookie,
        6 if is(b"expect") => Known::Expect,
        7 if is(b"upgrade") => Known::Upgrade,
        10 if is(b"connection") => Known::Connection,
        10 if is(b"keep-alive") => Known::KeepAlive,
        12 if is(b"max-forwards") => Known::MaxForwards,
        14 if is(b"content-length") => Known::ContentLength,
        16 if is(b"proxy-connection") => Known::OneHop,
        17 if is(b"transfer-encoding") => Known::TransferEncoding,
        22 if is(b"sec-websocket-protocol") => Known::SubProtocol,
        _ => Known::Other,
    }
}

fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|it| *it == b',').map(<[u8]>::trim_ascii).filter(|it| !it.is_empty())
}

/// Words of Connection, all its lines together. Clients send two or three.
const OPTIONS_MAX: usize = 32;

/// From the name of a field to the name of the next, or to the empty line.
fn line_of(head: &[u8], headers: &[Header<'_>], index: usize) -> Span {
    let start = |it: &Header<'_>| span_of(head, it.name.as_bytes()).start;
    let end = headers.get(index + 1).map_or_else(|| end_of_lines(head.len()), start);
    Span { start: headers.get(index).map_or(end, start), end }
}
