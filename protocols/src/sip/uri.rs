//! URIs (RFC 3261 §19.1, RFC 3966 for `tel`): who, where, and by what transport.
//!
//! Reads what routing needs and leaves the rest alone: user parts and parameters are not decoded and
//! not checked, unknown schemes pass whole.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Transport;
use super::header::is_host;
pub use super::params::{Param, Params};
use super::scan::{first_is, is_named};
use crate::bytes::{Span, offset, parse_decimal};

/// What stands before the first colon.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Scheme {
    /// `sip:`
    Sip,
    /// `sips:`
    Sips,
    /// `tel:`
    Tel,
    /// Anything else; the rest of the URI is not read.
    Other,
}

/// One URI. All slices point into its text; spans are relative to it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Uri<'u> {
    /// The text that was read.
    pub text: &'u [u8],
    /// Kind.
    pub scheme: Scheme,
    /// User part with password, without `@`; the number of a `tel` URI; empty if there is none.
    pub user: &'u [u8],
    /// Host name or address, IPv6 without brackets (a zone is kept); empty unless `sip` or `sips`.
    pub host: &'u [u8],
    /// Port, where one is written.
    pub port: Option<u16>,
    /// Text after the first semicolon, without headers.
    pub params: &'u [u8],
    /// Text after the question mark.
    pub headers: &'u [u8],
    /// Host with brackets, and port with its colon: what to replace to send the URI elsewhere.
    pub host_port: Span,
    /// Where a further parameter can be inserted: the end of the parameters.
    pub params_end: u32,
    ip: Option<IpAddr>,
}

impl<'u> Uri<'u> {
    /// Reads one URI, without the `<>` around it. `None`: no scheme, or `sip` without a host that can
    /// be one, or with a port that is no number.
    pub fn parse(text: &'u [u8]) -> Option<Uri<'u>> {
        let (scheme, rest) = scheme(text)?;
        let colon = text.len() - rest.len() - 1;
        match scheme {
            Scheme::Sip | Scheme::Sips => {}
            Scheme::Tel => return Some(Self::tel(text, colon + 1)),
            Scheme::Other => {
                let end = offset(text.len());
                return Some(Uri {
                    text,
                    scheme,
                    user: b"",
                    host: b"",
                    port: None,
                    params: b"",
                    headers: b"",
                    host_port: Span { start: end, end },
                    params_end: end,
                    ip: None,
                });
            }
        }
        // Unescaped, `@` may stand nowhere else (RFC 3261 §25.1 `userinfo`): user parts with `;`, `?`
        // and `/` are legal, so the host can only be found from here.
        let (user, host_at) = match first_is(rest, b'@') {
            Some(sign) => (rest.get(..sign)?, colon + 1 + sign + 1),
            None => (rest.get(..0)?, colon + 1),
        };
        let (host, host_end, ip) = host(text, host_at)?;
        let mut at = host_end;
        let mut port = None;
        if text.get(at) == Some(&b':') {
            let digits = text.get(at + 1..)?;
            let length = digits.iter().position(|it| !it.is_ascii_digit()).unwrap_or(digits.len());
            port = Some(parse_decimal(digits.get(..length)?)?);
            at += 1 + length;
        }
        let host_port = Span::new(host_at, at);
        let tail = text.get(at..)?;
        if !matches!(tail.first(), None | Some(b';' | b'?')) {
            return None;
        }
        let question = first_is(tail, b'?');
        let params_end = at + question.unwrap_or(tail.len());
        Some(Uri {
            text,
            scheme,
            user,
            host,
            port,
            params: text.get(at + 1..params_end).unwrap_or_default(),
            headers: text.get(params_end + 1..).unwrap_or_default(),
            host_port,
            params_end: offset(params_end),
            ip,
        })
    }

    fn tel(text: &'u [u8], at: usize) -> Uri<'u> {
        let rest = text.get(at..).unwrap_or_default();
        let length = first_is(rest, b';').unwrap_or(rest.len());
        let end = offset(text.len());
        Uri {
            text,
            scheme: Scheme::Tel,
            user: rest.get(..length).unwrap_or_default(),
            host: b"",
            port: None,
            params: rest.get(length + 1..).unwrap_or_default(),
            headers: b"",
            host_port: Span { start: end, end },
            params_end: end,
            ip: None,
        }
    }

    /// Value of a URI parameter, without quotes: `Some(b"")` for a flag such as `lr`.
    pub fn param(&self, name: &str) -> Option<&'u [u8]> {
        self.params().find(name).map(|it| it.value)
    }

    /// A URI parameter with its semicolon: what to remove or replace.
    pub fn param_span(&self, name: &str) -> Option<Span> {
        self.params().find(name).map(|it| it.span)
    }

    /// The `transport` parameter: `None` if there is none, `Some(None)` if it is none of ours.
    pub fn transport(&self) -> Option<Option<Transport>> {
        self.param("transport").map(Transport::from_token)
    }

    /// The host as an address, if it is a literal; a zone is ignored.
    pub fn host_ip(&self) -> Option<IpAddr> {
        self.ip
    }

    /// The port written, else the default of `transport`; `sips` never means 5060.
    pub fn effective_port(&self, transport: Transport) -> u16 {
        self.port.unwrap_or(match (self.scheme, transport) {
            (Scheme::Sips, Transport::Udp | Transport::Tcp) => Transport::Tls.default_port(),
            (Scheme::Sips, Transport::Ws) => Transport::Wss.default_port(),
            _ => transport.default_port(),
        })
    }

    /// The port that the URI itself leads to: [`Uri::effective_port`] of its own transport, UDP where it
    /// names none.
    #[inline]
    pub fn own_port(&self) -> u16 {
        self.port.unwrap_or_else(|| {
            self.effective_port(self.transport().flatten().unwrap_or(Transport::Udp))
        })
    }

    /// The URI parameters in order, to read several in one pass; the first of a name counts.
    pub fn params(&self) -> Params<'u> {
        let end = self.params_end as usize;
        let at = end.saturating_sub(self.params.len() + 1);
        // A text of parameters always follows its semicolon; without one there is none at `at`.
        if self.params.is_empty() {
            return Params::new(b"", 0);
        }
        Params::new(self.text.get(..end).unwrap_or_default(), at)
    }
}

/// Reads an IPv4 or IPv6 literal, with or without brackets and zone (RFC 4007 §11).
///
/// Takes the three colons that RFC 3261's grammar once allowed before an embedded IPv4 address
/// (RFC 5118 §4.9).
#[inline]
pub fn parse_ip(host: &[u8]) -> Option<IpAddr> {
    match parse_ipv4(host) {
        Some(ip) => Some(IpAddr::V4(ip)),
        None => parse_other_ip(host),
    }
}

fn parse_other_ip(host: &[u8]) -> Option<IpAddr> {
    let host = match host {
        [b'[', inner @ .., b']'] => inner,
        _ => host,
    };
    if first_is(host, b':').is_none() {
        return parse_ipv4(host).map(IpAddr::V4);
    }
    let host = host.split(|it| *it == b'%').next()?;
    let text = core::str::from_utf8(host).ok()?;
    if let Ok(ip) = text.parse::<Ipv6Addr>() {
        return Some(IpAddr::V6(ip));
    }
    let (before, after) = text.split_once(":::")?;
    if !after.contains('.') {
        return None;
    }
    let mut buffer = [0u8; 48];
    let length = before.len() + 2 + after.len();
    let target = buffer.get_mut(..length)?;
    for (to, from) in target.iter_mut().zip(before.bytes().chain(*b"::").chain(after.bytes())) {
        *to = from;
    }
    core::str::from_utf8(target).ok()?.parse::<Ipv6Addr>().ok().map(IpAddr::V6)
}

/// Four decimal octets without leading zeros (RFC 3986 §3.2.2 `IPv4address`).
#[inline]
fn parse_ipv4(text: &[u8]) -> Option<Ipv4Addr> {
    let (ip, rest) = ipv4_in_front(text)?;
    rest.is_empty().then_some(ip)
}

/// The same in front of something, and that.
#[inline(always)]
fn ipv4_in_front(text: &[u8]) -> Option<(Ipv4Addr, &[u8])> {
    let (a, rest) = octet(text)?;
    let (b, rest) = octet(rest.strip_prefix(b".")?)?;
    let (c, rest) = octet(rest.strip_prefix(b".")?)?;
    let (d, rest) = octet(rest.strip_prefix(b".")?)?;
    Some((Ipv4Addr::new(a, b, c, d), rest))
}

/// The number in front, and what follows it.
#[inline(always)]
fn octet(text: &[u8]) -> Option<(u8, &[u8])> {
    let (a, rest) = digit(text)?;
    if a == 0 {
        return Some((0, rest));
    }
    let Some((b, behind)) = digit(rest) else { return Some((a, rest)) };
    let tens = a * 10 + b;
    let Some((c, rest)) = digit(behind) else { return Some((tens, behind)) };
    Some((tens.checked_mul(10)?.checked_add(c)?, rest))
}

#[inline(always)]
fn digit(text: &[u8]) -> Option<(u8, &[u8])> {
    let (first, rest) = text.split_first()?;
    let value = first.wrapping_sub(b'0');
    (value < 10).then_some((value, rest))
}

/// The scheme, and what follows its colon.
#[inline]
fn scheme(text: &[u8]) -> Option<(Scheme, &[u8])> {
    if let Some(rest) = text.strip_prefix(b"sip:") {
        return Some((Scheme::Sip, rest));
    }
    let (scheme, rest) = text.split_at(first_is(text, b':')?);
    Some((scheme_of(scheme)?, rest.get(1..)?))
}

fn scheme_of(text: &[u8]) -> Option<Scheme> {
    if is_named(text, b"sip") {
        return Some(Scheme::Sip);
    }
    if is_named(text, b"sips") {
        return Some(Scheme::Sips);
    }
    if is_named(text, b"tel") {
        return Some(Scheme::Tel);
    }
    let (first, rest) = text.split_first()?;
    let legal = |it: &u8| it.is_ascii_alphanumeric() || matches!(it, b'+' | b'-' | b'.');
    (first.is_ascii_alphabetic() && rest.iter().all(legal)).then_some(Scheme::Other)
}

/// The host at `at`, without brackets, where what follows it begins, and its address if it is a literal.
#[inline]
pub(crate) fn host(text: &[u8], at: usize) -> Option<(&[u8], usize, Option<IpAddr>)> {
    let rest = text.get(at..)?;
    if let Some((ip, behind)) = ipv4_in_front(rest)
        && !behind.first().is_some_and(|it| is_host(*it))
    {
        let length = rest.len() - behind.len();
        return Some((rest.get(..length)?, at + length, Some(IpAddr::V4(ip))));
    }
    if rest.first() == Some(&b'[') {
        let close = first_is(rest, b']')?;
        let host = rest.get(1..close)?;
        let legal = |it: &u8| it.is_ascii_graphic() && !matches!(it, b'[' | b'<' | b'>' | b'"');
        if first_is(host, b':').is_none() || !host.iter().all(legal) {
            return None;
        }
        return Some((host, at + close + 1, parse_ip(host)));
    }
    let length = rest.iter().position(|it| !is_host(*it)).unwrap_or(rest.len());
    // A name, or what only looks like an address: those with colons have brackets.
    (length > 0).then(|| (rest.get(..length).unwrap_or_default(), at + length, None))
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::format;
    use std::string::String;

    use super::*;
    use crate::testing::Random;

    fn read(text: &[u8]) -> Option<String> {
        let text_of = |it: &[u8]| String::from_utf8_lossy(it).into_owned();
        Uri::parse(text).map(|it| {
            let port = it.port.map_or("-".into(), |it| format!("{it}"));
            let (scheme, user, host) = (it.scheme, text_of(it.user), text_of(it.host));
            let host_port = text_of(it.host_port.of(text));
            let (params, headers) = (text_of(it.params), text_of(it.headers));
            format!("{scheme:?} {user}|{host}|{port}|{host_port}|{params}|{headers}")
        })
    }

    #[test]
    fn uris_fall_into_parts() {
        let cases: &[(&str, Option<&str>)] = &[
            ("sip:example.com", Some("Sip |example.com|-|example.com||")),
            ("SIP:bob@example.com:5070", Some("Sip bob|example.com|5070|example.com:5070||")),
            ("sips:a:b@h;lr;x=1?y=2", Some("Sips a:b|h|-|h|lr;x=1|y=2")),
            ("sip:h?y=2;z", Some("Sip |h|-|h||y=2;z")),
            ("sip:h;lr", Some("Sip |h|-|h|lr|")),
            ("sip:u;p=1?q@h;x", Some("Sip u;p=1?q|h|-|h|x|")),
            ("sip:[2001:db8::1]:5062;lr", Some("Sip |2001:db8::1|5062|[2001:db8::1]:5062|lr|")),
            ("sip:a@[fe80::1%eth0]", Some("Sip a|fe80::1%eth0|-|[fe80::1%eth0]||")),
            ("sip:node_1.lab", Some("Sip |node_1.lab|-|node_1.lab||")),
            ("tel:+1-201-555;phone-context=x", Some("Tel +1-201-555||-||phone-context=x|")),
            ("tel:911", Some("Tel 911||-|||")),
            ("urn:service:sos", Some("Other ||-|||")),
            ("sip:", None),
            ("sip:@", None),
            ("sip:a@", None),
            ("sip:h:", None),
            ("sip:h:65536", None),
            ("sip:h:50x", None),
            ("sip:2001:db8::1", None),
            ("sip:[2001:db8::1", None),
            ("sip:[h]", None),
            ("sip:a@b@c", None),
            ("sip:h h", None),
            ("sip:a b@h", Some("Sip a b|h|-|h||")),
            ("<sip:h>", None),
            ("no scheme", None),
            ("1x:y", None),
            ("", None),
        ];
        for (text, want) in cases {
            assert_eq!(read(text.as_bytes()).as_deref(), *want, "{text}");
        }
    }

    #[test]
    fn parameters_are_found_by_name_and_by_place() {
        let text = b"sip:h:1;LR;transport=TCP;q=\"a;b\";node_host=[::1]; x = y ?transport=udp";
        let uri = Uri::parse(text).unwrap();
        type Row = (&'static str, Option<&'static [u8]>, &'static [u8]);
        let cases: &[Row] = &[
            ("lr", Some(b""), b";LR"),
            ("transport", Some(b"TCP"), b";transport=TCP"),
            ("q", Some(b"a;b"), b";q=\"a;b\""),
            ("node_host", Some(b"[::1]"), b";node_host=[::1]"),
            ("x", Some(b"y"), b"; x = y"),
            ("r", None, b""),
            ("", None, b""),
        ];
        for (name, value, place) in cases {
            assert_eq!(uri.param(name), *value, "{name}");
            assert_eq!(uri.param_span(name).unwrap_or_default().of(text), *place, "{name}");
        }
        assert_eq!(uri.transport(), Some(Some(Transport::Tcp)));
        assert_eq!(Uri::parse(b"sip:h;transport=sctp").unwrap().transport(), Some(None));
        assert_eq!(Uri::parse(b"sip:h;x").unwrap().transport(), None);
        assert_eq!(Uri::parse(b"sip:h").unwrap().param("lr"), None);
    }

    #[test]
    fn a_port_that_is_not_written_follows_scheme_and_transport() {
        let cases = [
            ("sip:h", Transport::Udp, 5060),
            ("sip:h", Transport::Tls, 5061),
            ("sip:h", Transport::Wss, 443),
            ("sips:h", Transport::Tcp, 5061),
            ("sips:h", Transport::Ws, 443),
            ("sips:h:5070", Transport::Tcp, 5070),
        ];
        for (text, transport, want) in cases {
            let uri = Uri::parse(text.as_bytes()).unwrap();
            assert_eq!(uri.effective_port(transport), want, "{text} {transport:?}");
        }
    }

    #[test]
    fn literals_are_addresses_and_names_are_not() {
        let cases: &[(&str, Option<&str>)] = &[
            ("192.0.2.1", Some("192.0.2.1")),
            ("192.0.2.1.example.com", None),
            ("192.0.2.256", None),
            ("example.com", None),
            ("::1", Some("::1")),
            ("[::1]", Some("::1")),
            ("fe80::1%2", Some("fe80::1")),
            ("2001:db8:::192.0.2.1", Some("2001:db8::192.0.2.1")),
            (":::", None),
            ("1:::2:::3", None),
            ("", None),
            ("[]", None),
        ];
        for (text, want) in cases {
            let want = want.map(|it| it.parse().unwrap());
            assert_eq!(parse_ip(text.as_bytes()), want, "{text}");
        }
    }

    #[test]
    fn dotted_quads_are_read_as_the_library_reads_them() {
        for seed in 0..20_000 {
            let mut random = Random::new(seed);
            let mut text = String::new();
            for _ in 0..=random.below(4) + random.below(2) {
                let octet = [0, 1, 9, 10, 99, 100, 199, 255, 256, 1_000][random.below(10)];
                text += &format!("{}{octet}.", if random.below(20) == 0 { "0" } else { "" });
            }
            let text = text.trim_end_matches('.');
            let want = text.parse::<Ipv4Addr>().ok();
            assert_eq!(parse_ipv4(text.as_bytes()), want, "seed {seed}: {text}");
        }
        for text in ["1.2.3.4 ", " 1.2.3.4", "1..2.3", ".1.2.3", "1.2.3.", "1.2.3.x", "+1.2.3.4"] {
            assert_eq!(parse_ipv4(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused() {
        for seed in 0..5_000 {
            let text = Random::new(seed)
                .mutate(b"sip:alice:pw@[2001:db8::1]:5060;transport=udp;lr;x=\"y\"?Subject=z");
            if let Some(uri) = Uri::parse(&text) {
                assert!(uri.host_port.range().end <= text.len(), "seed {seed}");
                assert!(uri.params_end as usize <= text.len(), "seed {seed}");
                for name in ["lr", "transport", "x", ""] {
                    let place = uri.param_span(name).unwrap_or_default();
                    assert!(place.range().end <= text.len(), "seed {seed} {name}");
                }
                let _ = (uri.host_ip(), uri.transport());
            }
        }
    }
}
