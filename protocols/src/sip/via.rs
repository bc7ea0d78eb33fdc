//! Via values (RFC 3261 §20.42, RFC 3581): the way back.
//!
//! Blanks are legal around every separator and are met in the wild; so are IPv6 addresses with and
//! without brackets in `received`.

use core::net::IpAddr;

use super::Transport;
use super::header::is_token;
use super::params::{Params, skip_blanks};
use super::scan::{first_is, is_named};
use super::uri::{self, parse_ip};
use crate::bytes::{Span, offset, parse_decimal};

/// One Via value. All slices point into its text; spans are relative to it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Via<'v> {
    /// The text that was read.
    pub text: &'v [u8],
    /// What it came by; `None` if that is no transport of ours.
    pub transport: Option<Transport>,
    /// The same as written.
    pub transport_text: &'v [u8],
    /// Host of sent-by, IPv6 without brackets.
    pub host: &'v [u8],
    /// Port of sent-by, where one is written.
    pub port: Option<u16>,
    /// Host with brackets, and port: what to replace to send the answer elsewhere.
    pub sent_by: Span,
    /// Transaction identity (RFC 3261 §8.1.1.7).
    pub branch: Option<&'v [u8]>,
    /// Source address that a server before us saw.
    pub received: Option<&'v [u8]>,
    /// `;received=...` whole.
    pub received_span: Option<Span>,
    /// `Some(b"")` where the client asks for it, a port where a server before us set it.
    pub rport: Option<&'v [u8]>,
    /// `;rport...` whole.
    pub rport_span: Option<Span>,
    /// Multicast or other address to answer to (RFC 3261 §18.2.2).
    pub maddr: Option<&'v [u8]>,
    /// Where a further parameter can be inserted.
    pub params_end: u32,
    params_at: u32,
    ip: Option<IpAddr>,
}

impl<'v> Via<'v> {
    /// Reads one value. `None`: not `SIP/2.0/...`, no host that can be one, a port that is no number,
    /// or empty parameters in the middle (RFC 4475 §3.1.2.1; one trailing semicolon passes).
    pub fn parse(text: &'v [u8]) -> Option<Via<'v>> {
        let (transport_text, at) = token(text, sip(text)?)?;
        let host_at = skip_blanks(text, at);
        if host_at == at {
            return None;
        }
        let (host, host_end, ip) = uri::host(text, host_at)?;
        let mut sent_by_end = host_end;
        let mut at = skip_blanks(text, host_end);
        let mut port = None;
        if text.get(at) == Some(&b':') {
            at = skip_blanks(text, at + 1);
            let digits = text.get(at..)?;
            let length = digits.iter().position(|it| !it.is_ascii_digit()).unwrap_or(digits.len());
            port = Some(parse_decimal(digits.get(..length)?)?);
            sent_by_end = at + length;
            at = skip_blanks(text, sent_by_end);
        }
        let mut via = Via {
            text,
            transport: Transport::from_token(transport_text),
            transport_text,
            host,
            ip,
            port,
            sent_by: Span::new(host_at, sent_by_end),
            branch: None,
            received: None,
            received_span: None,
            rport: None,
            rport_span: None,
            maddr: None,
            params_end: offset(sent_by_end),
            params_at: offset(at),
        };
        if !matches!(text.get(at), None | Some(b';' | b'(')) {
            return None;
        }
        let mut trailing = false;
        for param in Params::new(text.get(..comment(text, at))?, at) {
            if trailing {
                return None;
            }
            if param.name.is_empty() {
                trailing = true;
                continue;
            }
            via.params_end = param.span.end;
            let seen = Some(param.value);
            match param.name.len() {
                6 if is_named(param.name, b"branch") => via.branch = via.branch.or(seen),
                // Twice is once too often (RFC 3261 §7.3.1): responses would go where the sender of the second
                // one wants them.
                8 if is_named(param.name, b"received") => {
                    if via.received.replace(param.value).is_some() {
                        return None;
                    }
                    via.received_span = Some(param.span);
                }
                5 if is_named(param.name, b"rport") && via.rport.is_none() => {
                    via.rport = seen;
                    via.rport_span = Some(param.span);
                }
                5 if is_named(param.name, b"maddr") => via.maddr = via.maddr.or(seen),
                _ => {}
            }
        }
        Some(via)
    }

    /// Value of any parameter, without quotes: `Some(b"")` for a flag such as `alias`.
    pub fn param(&self, name: &str) -> Option<&'v [u8]> {
        Params::new(self.text, self.params_at as usize).find(name).map(|it| it.value)
    }

    /// The sent-by host as an address, if it is a literal.
    pub fn host_ip(&self) -> Option<IpAddr> {
        self.ip
    }

    /// `received` as an address, with or without brackets (RFC 5118 §4.5).
    pub fn received_ip(&self) -> Option<IpAddr> {
        parse_ip(self.received?)
    }

    /// The port in `rport`, once a server has set one.
    pub fn rport_port(&self) -> Option<u16> {
        parse_decimal(self.rport?)
    }
}

/// Past `SIP/2.0/` in front, and the blanks around its parts.
#[inline]
fn sip(text: &[u8]) -> Option<usize> {
    const USUAL: &[u8] = b"SIP/2.0/";
    if text.starts_with(USUAL) {
        return Some(skip_blanks(text, USUAL.len()));
    }
    let (protocol, at) = token(text, skip_blanks(text, 0))?;
    let (version, at) = token(text, slash(text, at)?)?;
    let at = slash(text, at)?;
    (protocol.eq_ignore_ascii_case(b"SIP") && version == b"2.0").then_some(at)
}

/// The token at `at`, and where it ends.
fn token(text: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let rest = text.get(at..)?;
    let length = rest.iter().position(|it| !is_token(*it)).unwrap_or(rest.len());
    (length > 0).then(|| (rest.get(..length).unwrap_or_default(), at + length))
}

/// Past the slash at `at` and the blanks around it.
fn slash(text: &[u8], at: usize) -> Option<usize> {
    let at = skip_blanks(text, at);
    (text.get(at) == Some(&b'/')).then(|| skip_blanks(text, at + 1))
}

/// Where the comment begins that may end a value (RFC 2543 §6.40), or the end. Outside quotes,
/// parameters hold no parenthesis.
fn comment(text: &[u8], at: usize) -> usize {
    let rest = text.get(at..).unwrap_or_default();
    let Some(found) = first_is(rest, b'(') else { return text.len() };
    let before = rest.get(..found).unwrap_or_default();
    let quotes = before.iter().filter(|it| **it == b'"').count();
    if quotes % 2 == 0 { at + found } else { text.len() }
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
        let param = |it: Option<&[u8]>| it.map_or("-".into(), |it| format!("={}", text_of(it)));
        Via::parse(text).map(|it| {
            let (transport, sent_by) = (text_of(it.transport_text), text_of(it.sent_by.of(text)));
            let (host, port) = (text_of(it.host), it.port.map_or("-".into(), |it| format!("{it}")));
            let (branch, received) = (param(it.branch), param(it.received));
            let (rport, maddr) = (param(it.rport), param(it.maddr));
            format!("{transport} {sent_by}|{host}|{port}|{branch}|{received}|{rport}|{maddr}")
        })
    }

    #[test]
    fn vias_fall_into_parts() {
        let cases: &[(&str, Option<&str>)] = &[
            ("SIP/2.0/UDP h", Some("UDP h|h|-|-|-|-|-")),
            ("SIP/2.0/UDP h;received=1.1.1.1;RECEIVED=2.2.2.2", None),
            (
                "SIP/2.0/UDP 192.0.2.1:5062;branch=z9hG4bK1;rport",
                Some("UDP 192.0.2.1:5062|192.0.2.1|5062|=z9hG4bK1|-|=|-"),
            ),
            (
                "sip/2.0/tls h;RPORT=5;Received=1.2.3.4;maddr=224.0.0.1;ttl=1;BRANCH=x",
                Some("tls h|h|-|=x|=1.2.3.4|=5|=224.0.0.1"),
            ),
            (
                "SIP / 2.0 / UDP  host : 5060 ; branch = x ;\r\n rport",
                Some("UDP host : 5060|host|5060|=x|-|=|-"),
            ),
            (
                "SIP/2.0/TCP [2001:db8::1]:7;x=[::2]",
                Some("TCP [2001:db8::1]:7|2001:db8::1|7|-|-|-|-"),
            ),
            ("SIP/2.0/UDP h;branch=a;branch=b", Some("UDP h|h|-|=a|-|-|-")),
            ("SIP/2.0/UDP h;branch=a;", Some("UDP h|h|-|=a|-|-|-")),
            ("SIP/2.0/UDP h;branch=a (a; comment)", Some("UDP h|h|-|=a|-|-|-")),
            ("SIP/2.0/UDP h (a)", Some("UDP h|h|-|-|-|-|-")),
            ("SIP/2.0/UDP h;x=\"(;\";branch=a", Some("UDP h|h|-|=a|-|-|-")),
            ("SIP/2.0/UDP h;;branch=a", None),
            ("SIP/2.0/UDP h x", None),
            ("SIP/2.0/UDP h:x", None),
            ("SIP/2.0/UDP h:70000", None),
            ("SIP/2.0/UDP", None),
            ("SIP/2.0/UDP ;branch=x", None),
            ("SIP/7.0/UDP h", None),
            ("HTTP/2.0/UDP h", None),
            ("SIP/2.0UDP h", None),
            ("", None),
        ];
        for (text, want) in cases {
            assert_eq!(read(text.as_bytes()).as_deref(), *want, "{text}");
        }
    }

    #[test]
    fn received_and_rport_can_be_cut_out_and_put_in() {
        let text = b"SIP/2.0/UDP h:1 ;received=[::9] ; branch=b;rport = 7 ;";
        let via = Via::parse(text).unwrap();
        assert_eq!(via.received_span.unwrap().of(text), b";received=[::9]");
        assert_eq!(via.rport_span.unwrap().of(text), b";rport = 7");
        assert_eq!(&text[via.params_end as usize..], b" ;");
        assert_eq!(via.received_ip(), Some("::9".parse().unwrap()));
        assert_eq!(via.rport_port(), Some(7));
        assert_eq!(via.param("Branch"), Some(b"b".as_slice()));
        assert_eq!(via.param("alias"), None);
        assert_eq!(Via::parse(b"SIP/2.0/UDP h;rport").unwrap().rport_port(), None);
        assert_eq!(Via::parse(b"SIP/2.0/UDP 1.2.3.4 ").unwrap().params_end, 19);
    }

    #[test]
    fn any_bytes_are_read_or_refused() {
        for seed in 0..5_000 {
            let text = Random::new(seed).mutate(
                b"SIP / 2.0/UDP [2001:db8::1]:5060;branch=z9hG4bK1;rport;received=1.2.3.4 (x)",
            );
            if let Some(via) = Via::parse(&text) {
                assert!(via.params_end as usize <= text.len(), "seed {seed}");
                assert!(via.sent_by.range().end <= text.len(), "seed {seed}");
                let _ = (via.param("x"), via.host_ip(), via.received_ip());
            }
        }
    }
}
