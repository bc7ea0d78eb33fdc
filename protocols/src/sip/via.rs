//! Via values (RFC 3261 §20.42, RFC 3581): the way back.
//!
//! Blanks are legal around every separator and are met in the wild; so are IPv6 addresses with and
//! without brackets in `received`.

use core::net::IpAddr;

use super::Transport;
use super::header::is_token;
use super::params::{Params, skip_blanks};
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
}

impl<'v> Via<'v> {
    /// Reads one value. `None`: not `SIP/2.0/...`, no host that can be one, a port that is no number,
    /// or empty parameters in the middle (RFC 4475 §3.1.2.1; one trailing semicolon passes).
    pub fn parse(text: &'v [u8]) -> Option<Via<'v>> {
        let at = skip_blanks(text, 0);
        let (protocol, at) = token(text, at)?;
        let at = slash(text, at)?;
        let (version, at) = token(text, at)?;
        let at = slash(text, at)?;
        let (transport_text, at) = token(text, at)?;
        if !protocol.eq_ignore_ascii_case(b"SIP") || version != b"2.0" {
            return None;
        }
        let host_at = skip_blanks(text, at);
        if host_at == at {
            return None;
        }
        let (host, host_end) = uri::host(text, host_at)?;
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
                6 if param.name.eq_ignore_ascii_case(b"branch") => via.branch = via.branch.or(seen),
                5 if param.name.eq_ignore_ascii_case(b"maddr") => via.maddr = via.maddr.or(seen),
                8 if param.name.eq_ignore_ascii_case(b"received") && via.received.is_none() => {
                    via.received = seen;
                    via.received_span = Some(param.span);
                }
                5 if param.name.eq_ignore_ascii_case(b"rport") && via.rport.is_none() => {
                    via.rport = seen;
                    via.rport_span = Some(param.span);
                }
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
        parse_ip(self.host)
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
    let Some(found) = memchr::memchr(b'(', rest) else { return text.len() };
    let before = rest.get(..found).unwrap_or_default();
    let quotes = before.iter().filter(|it| **it == b'"').count();
    if quotes % 2 == 0 { at + found } else { text.len() }
}
