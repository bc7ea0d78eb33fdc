//! Applies the rules of `http/urlrewrite` to a request-target (`http-smpp-registry.md` 1.10).
//!
//! Rules see the decoded target. If none matches, the target goes on as it came, byte for byte; else the
//! result is encoded again.

use std::net::IpAddr;

use protocols::bytes::write_ip;
use protocols::http::{head, session};
use regex::bytes::Captures;

use crate::config::rewrite::{Condition, Rewrite, Subject};

/// What rules may look at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request<'a> {
    pub(super) head: &'a [u8],
    pub(super) target: &'a [u8],
    /// Listening port.
    pub(super) port: u16,
    pub(super) source: IpAddr,
}

/// The new target; `None`: no rule applies, or what they make of it is no path.
pub(super) fn apply(rules: &Rewrite, request: &Request<'_>) -> Option<Vec<u8>> {
    let mut text = if rules.decodes { decoded(request.target) } else { request.target.to_vec() };
    let mut is_changed = false;
    for rule in &rules.rules {
        if !rule.from.0.is_match(&text) || !hold(&rule.conditions, request) {
            continue;
        }
        if let Some(to) = &rule.to {
            text = rule
                .from
                .0
                .replace_all(&text, |captures: &Captures<'_>| expanded(to, captures))
                .into_owned();
            is_changed = true;
        }
        if rule.is_last {
            break;
        }
    }
    let is_path = text.first() == Some(&b'/') && text.len() <= TARGET_BYTES_MAX;
    (is_changed && is_path).then(|| encoded(&text, rules.decodes))
}

/// All of them, where those joined by `or` count as one.
fn hold(conditions: &[Condition], request: &Request<'_>) -> bool {
    let mut conditions = conditions.iter();
    while let Some(mut condition) = conditions.next() {
        let mut holds = holds(condition, request);
        while condition.or_next
            && let Some(next) = conditions.next()
        {
            condition = next;
            holds |= self::holds(condition, request);
        }
        if !holds {
            return false;
        }
    }
    true
}

fn holds(condition: &Condition, request: &Request<'_>) -> bool {
    let mut text = Vec::new();
    let value = match &condition.subject {
        Subject::Method => request.head.split(|it| *it == b' ').next(),
        Subject::Header(name) => head::field(request.head, name.as_bytes()),
        Subject::Parameter(name) => session::query_parameter(request.target, name.as_bytes()),
        Subject::Port => {
            protocols::bytes::write_decimal(&mut text, request.port);
            Some(&text[..])
        }
        Subject::RemoteAddress => {
            write_ip(&mut text, request.source);
            Some(&text[..])
        }
    };
    value.is_some_and(|it| condition.pattern.0.is_match(it)) != condition.is_negated
}

/// `$1` to `$9` are groups; `$0` and other dollars stand for themselves.
fn expanded(to: &str, captures: &Captures<'_>) -> Vec<u8> {
    let mut out = Vec::with_capacity(to.len());
    let mut bytes = to.bytes().peekable();
    while let Some(byte) = bytes.next() {
        match bytes.peek() {
            Some(digit @ b'1'..=b'9') if byte == b'$' => {
                let group = usize::from(digit - b'0');
                out.extend_from_slice(captures.get(group).map_or(&b""[..], |it| it.as_bytes()));
                bytes.next();
            }
            _ => out.push(byte),
        }
    }
    out
}

/// `%xx`, and in the query `+` for a blank; what is not two hexadecimal digits stays, and so does what would
/// mean something else without its escape: `%26` is no `&`.
fn decoded(target: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(target.len());
    let (mut rest, mut in_query) = (target, false);
    while let Some((byte, tail)) = rest.split_first() {
        rest = tail;
        in_query |= *byte == b'?';
        let digit = |at: usize| tail.get(at).and_then(|it| char::from(*it).to_digit(16));
        match (byte, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                let byte = u8::try_from(high * 16 + low).unwrap_or_default();
                if byte == b'%' || DELIMITERS.contains(&byte) {
                    out.push(b'%');
                } else {
                    out.push(byte);
                    rest = tail.get(2..).unwrap_or_default();
                }
            }
            (b'+', ..) if in_query => out.push(b' '),
            _ => out.push(*byte),
        }
    }
    out
}

/// What may not stand in a target (RFC 3986 §2, §3.3, §3.4) becomes `%xx`.
fn encoded(text: &[u8], was_decoded: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut in_query = false;
    for (at, byte) in text.iter().enumerate() {
        in_query |= *byte == b'?';
        let is_escape = || {
            let digits = text.get(at + 1..at + 3);
            digits.is_some_and(|it| it.iter().all(u8::is_ascii_hexdigit))
        };
        let may_stand = byte.is_ascii_alphanumeric()
            || b"-._~".contains(byte)
            || DELIMITERS.contains(byte)
            || match byte {
                b'%' => !was_decoded || is_escape(),
                b'+' => !was_decoded || !in_query,
                _ => false,
            };
        if may_stand {
            out.push(*byte);
        } else {
            out.push(b'%');
            for nibble in [byte >> 4, byte & 15] {
                out.push(if nibble < 10 { b'0' + nibble } else { b'A' + nibble - 10 });
            }
        }
    }
    out
}

/// What separates parts of a target, but for `+` and `#` (RFC 3986 §2.2).
const DELIMITERS: &[u8] = b"!$&'()*,;=:@/?";

/// As long as a head may be; rules can make texts longer with every match.
const TARGET_BYTES_MAX: usize = 32 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load;

    fn rewritten(rules: &str, target: &str) -> Option<String> {
        let text = format!(
            "<load-balancer-properties><http><urlrewrite>{rules}</urlrewrite></http></load-balancer-properties>"
        );
        let config = load("t.xml", text.as_bytes(), &[]).config;
        assert!(!config.http.rewrite.rules.is_empty(), "{rules}");
        let head = format!("POST {target} HTTP/1.1\r\nHost: h\r\nX-Kind: old\r\n\r\n");
        let request = Request {
            head: head.as_bytes(),
            target: target.as_bytes(),
            port: 2080,
            source: "192.0.2.9".parse().unwrap(),
        };
        apply(&config.http.rewrite, &request).map(|it| String::from_utf8(it).unwrap())
    }

    #[test]
    fn rules_follow_one_another() {
        let company = "<rule><from>someCompany</from><to>restcomm</to></rule>";
        let two = "<rule><from>^/a/(\\w+)</from><to>/$1/a</to></rule><rule><from>b</from><to last=\"true\">c</to></rule>\
            <rule><from>c</from><to>d</to></rule>";
        let cases = [
            (
                company,
                "/someCompany/2012-04-24/Accounts/0/Calls/ID1f",
                Some("/restcomm/2012-04-24/Accounts/0/Calls/ID1f"),
            ),
            (company, "/SOMECOMPANY/someCompany", Some("/restcomm/restcomm")),
            (company, "/some%43ompany?a=b%20c+d%25", Some("/restcomm?a=b%20c%20d%25")),
            (company, "/mobius/a%20b+c", None),
            (
                company,
                "/someCompany?Url=http%3A%2F%2Fx%3Fa%26b&appsession=7%3b1%2B%",
                Some("/restcomm?Url=http%3A%2F%2Fx%3Fa%26b&appsession=7%3b1%2B%25"),
            ),
            (
                company, // a blank in the query alone
                "/someCompany/+4912345?to=a+b&from=%2B49",
                Some("/restcomm/+4912345?to=a%20b&from=%2B49"),
            ),
            (two, "/a/x", Some("/x/a")),
            (two, "/a/b", Some("/c/a")),
            (two, "/c", Some("/d")),
            ("<rule><from casesensitive=\"true\">A</from><to>b</to></rule>", "/a", None),
            ("<rule><from>^/.*</from><to>no path</to></rule>", "/a", None),
            ("<rule><from>a</from><to>-</to></rule>", "/a", None),
            ("<rule><from>a</from><to>\u{e4}\"$0$</to></rule>", "/a", Some("/%C3%A4%22$0$")),
        ];
        for (rules, target, want) in cases {
            assert_eq!(rewritten(rules, target).as_deref(), want, "{rules} {target}");
        }
    }

    #[test]
    fn conditions_must_hold() {
        let when = |conditions: &str| {
            let rule = format!("<rule>{conditions}<from>^/a.*</from><to>/b</to></rule>");
            rewritten(&rule, "/a?kind=new").is_some()
        };
        let cases = [
            ("<condition type=\"method\">POST</condition>", true),
            ("<condition type=\"method\" operator=\"notequal\">POST</condition>", false),
            ("<condition name=\"x-kind\">^old$</condition>", true),
            ("<condition name=\"X-Other\">.*</condition>", false),
            ("<condition name=\"X-Other\" operator=\"notequal\">.*</condition>", true),
            ("<condition type=\"parameter\" name=\"kind\">new</condition>", true),
            ("<condition type=\"port\">^2080$</condition>", true),
            ("<condition type=\"remote-addr\">192\\.0\\.2\\.</condition>", true),
            (
                "<condition type=\"port\">1</condition><condition type=\"method\">POST</condition>",
                false,
            ),
            (
                "<condition type=\"port\" next=\"or\">1</condition><condition type=\"method\">POST</condition>",
                true,
            ),
            (
                "<condition type=\"method\" next=\"or\">POST</condition><condition type=\"port\">1</condition>\
                 <condition type=\"port\">1</condition>",
                false,
            ),
        ];
        for (conditions, want) in cases {
            assert_eq!(when(conditions), want, "{conditions}");
        }
    }
}
