//! Texts become values. Every refusal says what was found and what is allowed.

use std::fmt::Display;
use std::net::{IpAddr, Ipv6Addr};

use protocols::sip::Transport;

use super::{
    ALGORITHM_NAMES, HostPort, Network, Pattern, RoutingRule, Search, StaticNode, Steering,
};
use crate::node::Ports;

/// `true` or `false` in any case. Java read everything else as false; we refuse it instead.
pub(super) fn flag(text: &str) -> Result<bool, String> {
    match text {
        it if it.eq_ignore_ascii_case("true") => Ok(true),
        it if it.eq_ignore_ascii_case("false") => Ok(false),
        _ => refuse(text, "true or false"),
    }
}

/// A whole number within bounds.
pub(super) fn number<N>(text: &str, min: N, max: N) -> Result<N, String>
where
    N: TryFrom<i64> + PartialOrd + Display + Copy,
{
    text.parse::<i64>()
        .ok()
        .and_then(|it| N::try_from(it).ok())
        .filter(|it| *it >= min && *it <= max)
        .map_or_else(|| refuse(text, &format!("a whole number from {min} to {max}")), Ok)
}

/// A port; 0 and below is closed.
pub(super) fn port(text: &str) -> Result<Option<u16>, String> {
    match text.parse::<i64>() {
        Ok(..=0) => Ok(None),
        Ok(it) => u16::try_from(it).map(Some).or_else(|_| refuse(text, PORT)),
        Err(_) => refuse(text, PORT),
    }
}

/// A literal address (brackets are taken off) or a host name. Link-local IPv6 needs a zone, and RFC 3261
/// §25.1 has no way to write one: nobody could send to what we put into Via.
pub(super) fn host(text: &str) -> Result<String, String> {
    let bare = text.strip_prefix('[').and_then(|it| it.strip_suffix(']')).unwrap_or(text);
    let (address, zone) = bare.split_once('%').map_or((bare, None), |(a, z)| (a, Some(z)));
    if let Ok(ip) = address.parse::<Ipv6Addr>() {
        if zone.is_some() || ip.is_unicast_link_local() {
            let allowed = "a global or unique local IPv6 address: SIP cannot say a zone, which \
                           link-local addresses need";
            return refuse(text, allowed);
        }
        return Ok(bare.to_owned());
    }
    // Four numbers that are no address would be asked of the DNS as a name: a typing error for sure.
    let is_number = |it: &str| it.bytes().all(|it| it.is_ascii_digit() || it == b'.');
    if bare.len() != text.len()
        || !is_name(bare)
        || (is_number(bare) && bare.parse::<IpAddr>().is_err())
    {
        return refuse(text, "an IPv4 or IPv6 address or a host name");
    }
    Ok(bare.to_owned())
}

/// `host`, `host:port`, `[v6]:port` or a bare IPv6 literal.
pub(super) fn host_and_port(text: &str) -> Result<(String, Option<u16>), String> {
    let allowed = "host, host:port or [IPv6]:port";
    if text.parse::<Ipv6Addr>().is_ok() {
        return Ok((text.to_owned(), None));
    }
    let (before, after) = match text.rsplit_once(':') {
        Some((before, after)) if !after.ends_with(']') => (before, Some(after)),
        _ => (text, None),
    };
    let host = host(before).map_err(|it| format!("{it} (in {allowed})"))?;
    match after.map(port) {
        None => Ok((host, None)),
        Some(Ok(Some(port))) if !before.contains(':') || before.starts_with('[') => {
            Ok((host, Some(port)))
        }
        Some(_) => refuse(text, allowed),
    }
}

/// `extraServerNodes`: hosts with ports, 5060 where none is written.
pub(super) fn host_port(text: &str) -> Result<HostPort, String> {
    let (host, port) = host_and_port(text)?;
    Ok(HostPort { host, port: port.unwrap_or(5060) })
}

/// `staticNodes`: `host[:port][/transport[+transport]]`.
pub(super) fn static_node(text: &str) -> Result<StaticNode, String> {
    let (address, transports) = text.split_once('/').unwrap_or((text, "udp"));
    let (host, port) = host_and_port(address)?;
    let mut ports = Ports::default();
    for name in transports.split('+') {
        let transport = transport(name.trim())?;
        ports.open(transport, port.unwrap_or(transport.default_port()));
    }
    Ok(StaticNode { host, ports })
}

/// A transport in any case.
pub(super) fn transport(text: &str) -> Result<Transport, String> {
    Transport::from_token(text.as_bytes())
        .map_or_else(|| refuse(text, "udp, tcp, tls, ws or wss"), Ok)
}

/// `address` or `address/prefix`.
pub(super) fn network(text: &str) -> Result<Network, String> {
    let allowed = "an address or address/prefix, such as 10.0.0.0/8";
    let (address, prefix) = text.split_once('/').map_or((text, None), |(a, p)| (a, Some(p)));
    let Ok(ip) = address.trim().parse::<IpAddr>() else { return refuse(text, allowed) };
    let widest = if ip.is_ipv4() { 32 } else { 128 };
    let prefix = match prefix {
        None => widest,
        Some(it) => number::<u8>(it.trim(), 0, widest).or_else(|_| refuse(text, allowed))?,
    };
    Ok(Network { ip, prefix })
}

/// A comma list; blanks around items and empty items do not count.
pub(super) fn list<T>(
    text: &str,
    item: impl Fn(&str) -> Result<T, String>,
) -> Result<Vec<T>, String> {
    text.split(',').map(str::trim).filter(|it| !it.is_empty()).map(item).collect()
}

/// A SIP status code within bounds.
pub(super) fn status(text: &str, min: u16) -> Result<u16, String> {
    number(text, min, 699)
}

/// A Java regular expression as far as ours can say it too.
pub(super) fn pattern(text: &str) -> Result<Pattern, String> {
    // The text alone first: `a)(b` would become valid between our brackets.
    regex::bytes::Regex::new(text)
        .and_then(|_| regex::bytes::Regex::new(&format!(r"\A(?:{text})\z")))
        .map(Pattern)
        .map_err(|why| {
            let why = why.to_string();
            let why = why.lines().last().unwrap_or_default().trim_start_matches("error: ");
            format!(
                "\"{text}\" is not a regular expression that works here: {why}; \
                 allowed is Java's syntax without look-around and back-references"
            )
        })
}

/// The same, found anywhere.
pub(super) fn search(text: &str) -> Result<Search, String> {
    pattern(text)?;
    regex::bytes::Regex::new(text).map(Search).or_else(|_| refuse(text, "a regular expression"))
}

/// Rules apart by blanks: `pattern=false`.
pub(super) fn routing_rules(text: &str) -> Result<Vec<RoutingRule>, String> {
    text.split_whitespace()
        .map(|rule| {
            let (ip, patch) = rule
                .rsplit_once('=')
                .map_or_else(|| refuse(rule, "pattern=false, rules apart by blanks"), Ok)?;
            Ok(RoutingRule { ip: pattern(ip)?, patch: flag(patch)? })
        })
        .collect()
}

/// `(ip1,ip2)(ip3,ip4,ip5)`; blanks do not count.
pub(super) fn subclusters(text: &str) -> Result<Vec<Vec<IpAddr>>, String> {
    let allowed = "groups of addresses: (10.0.0.1,10.0.0.2)(10.0.0.3,10.0.0.4)";
    let packed: String = text.split_whitespace().collect();
    let Some(inner) = packed.strip_prefix('(').and_then(|it| it.strip_suffix(')')) else {
        return refuse(text, allowed);
    };
    let mut groups = Vec::new();
    for group in inner.split(")(") {
        let mut members = Vec::new();
        for member in group.split(',') {
            let Ok(ip) = member.parse::<IpAddr>() else { return refuse(member, allowed) };
            if members.contains(&ip) {
                return Err(format!("{ip} stands twice in the group ({group})"));
            }
            members.push(ip);
        }
        groups.push(members);
    }
    Ok(groups)
}

/// A header name (RFC 3261 §25.1, token).
pub(super) fn header_name(text: &str) -> Result<String, String> {
    let is_token = |it: u8| it.is_ascii_alphanumeric() || b"-.!%*_+`'~".contains(&it);
    if !text.is_empty() && text.bytes().all(is_token) {
        Ok(text.to_owned())
    } else {
        refuse(text, "a header name, From, To, from.user or to.user")
    }
}

/// A class of balancing algorithm by its last segment. `Ok(None)`: closed source, not to be had.
pub(super) fn algorithm(text: &str) -> Result<Option<&'static str>, String> {
    let name = text.rsplit('.').next().unwrap_or(text);
    if name == "TelestaxProxyAlgorithm" {
        return Ok(None);
    }
    ALGORITHM_NAMES.into_iter().find(|it| *it == name).map_or_else(
        || refuse(name, &format!("a class name ending in {}", ALGORITHM_NAMES.join(", "))),
        |it| Ok(Some(it)),
    )
}

/// One of a few words, by its last segment: class names come with their package.
pub(super) fn class<T: Copy>(text: &str, classes: &[(&str, T)]) -> Result<T, String> {
    let name = text.rsplit('.').next().unwrap_or(text);
    let names: Vec<&str> = classes.iter().map(|it| it.0).collect();
    let find = classes.iter().find(|it| it.0 == name);
    find.map_or_else(|| refuse(name, &names.join(" or ")), |it| Ok(it.1))
}

/// `reuseportSteering`.
pub(super) fn steering(text: &str) -> Result<Steering, String> {
    match text {
        "hash" => Ok(Steering::Hash),
        "cpu" => Ok(Steering::Cpu),
        "random" => Ok(Steering::Random),
        _ => refuse(text, "hash, cpu or random"),
    }
}

/// Log levels, log4j's words too.
pub(super) fn log_level(text: &str) -> Result<log::LevelFilter, String> {
    match text.to_ascii_lowercase().as_str() {
        "off" => Ok(log::LevelFilter::Off),
        "error" | "fatal" => Ok(log::LevelFilter::Error),
        "warn" => Ok(log::LevelFilter::Warn),
        "info" => Ok(log::LevelFilter::Info),
        "debug" => Ok(log::LevelFilter::Debug),
        "trace" | "all" => Ok(log::LevelFilter::Trace),
        _ => refuse(text, "OFF, ERROR, WARN, INFO, DEBUG or TRACE"),
    }
}

/// Anything printable.
pub(super) fn text(text: &str) -> Result<String, String> {
    if text.chars().any(char::is_control) {
        return refuse(text, "text without control characters");
    }
    Ok(text.to_owned())
}

fn is_name(text: &str) -> bool {
    let is_in_name = |it: u8| it.is_ascii_alphanumeric() || b"-._".contains(&it);
    !text.is_empty() && text.len() <= HOST_BYTES_MAX && text.bytes().all(is_in_name)
}

fn refuse<T>(text: &str, allowed: &str) -> Result<T, String> {
    let shown: String = text.chars().take(SHOWN_MAX).flat_map(char::escape_debug).collect();
    let cut = if text.chars().nth(SHOWN_MAX).is_some() { "..." } else { "" };
    Err(format!("\"{shown}{cut}\" is not allowed here; allowed is {allowed}"))
}

/// What a port may be, for messages and the manual.
pub(super) const PORT: &str = "a port from 1 to 65535, or 0 to keep it closed";
/// RFC 1035 §2.3.4.
const HOST_BYTES_MAX: usize = 255;
/// Characters of a refused value that a message repeats: a line of a log, not a file.
const SHOWN_MAX: usize = 80;

#[cfg(test)]
mod tests {
    use protocols::sip::Transport::{Tcp, Tls, Udp};

    use super::*;

    #[test]
    fn hosts_are_addresses_or_names() {
        let good = [
            ("127.0.0.1", "127.0.0.1"),
            ("::1", "::1"),
            ("[::1]", "::1"),
            ("fd00::1", "fd00::1"),
            ("lb-1.example.com", "lb-1.example.com"),
            ("my_host", "my_host"),
        ];
        for (text, want) in good {
            assert_eq!(host(text).as_deref(), Ok(want), "{text}");
        }
        let long = "a".repeat(256);
        for text in [
            "",
            "1.2.3",
            "1.2.3.4.5",
            "256.1.1.1",
            "a b",
            "[127.0.0.1]",
            "[::1",
            ":::",
            "a/b",
            &long,
        ] {
            assert!(host(text).is_err(), "{text}");
        }
        for text in ["fe80::1%2", "[fe80::1%eth0]", "fe80::1", "febf::1", "::1%1", "::1%"] {
            let why = host(text).unwrap_err();
            assert!(why.contains("SIP cannot say a zone"), "{text}: {why}");
        }
    }

    #[test]
    fn hosts_may_have_ports() {
        let good = [
            ("h", ("h", None)),
            ("h:5080", ("h", Some(5080))),
            ("1.2.3.4:1", ("1.2.3.4", Some(1))),
            ("::1", ("::1", None)),
            ("[::1]", ("::1", None)),
            ("[::1]:5080", ("::1", Some(5080))),
        ];
        for (text, (host, port)) in good {
            assert_eq!(host_and_port(text), Ok((host.to_owned(), port)), "{text}");
        }
        for text in ["", ":1", "h:", "h:0", "h:65536", "h:x", "[::1]:", "h:1:2", "::1::5"] {
            assert!(host_and_port(text).is_err(), "{text}");
        }
    }

    #[test]
    fn static_nodes_name_their_transports() {
        let cases: [(&str, &[(Transport, u16)]); 4] = [
            ("h", &[(Udp, 5060)]),
            ("h:5080", &[(Udp, 5080)]),
            ("h:5080/udp+TCP", &[(Udp, 5080), (Tcp, 5080)]),
            ("h/tcp+tls", &[(Tcp, 5060), (Tls, 5061)]),
        ];
        for (text, want) in cases {
            let got = static_node(text).unwrap();
            assert_eq!(got.ports.iter().collect::<Vec<_>>(), want, "{text}");
        }
        for text in ["h/", "h/udp+", "h/sctp", "/udp"] {
            assert!(static_node(text).is_err(), "{text}");
        }
    }

    #[test]
    fn networks_have_prefixes_that_fit() {
        for (text, prefix) in
            [("10.0.0.0/8", 8), ("10.0.0.1", 32), ("::1", 128), ("fd00::/8", 8), ("0.0.0.0/0", 0)]
        {
            assert_eq!(network(text).map(|it| it.prefix), Ok(prefix), "{text}");
        }
        for text in ["", "10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0/8", "host/8", "10.0.0.0/-1"]
        {
            assert!(network(text).is_err(), "{text}");
        }
    }

    #[test]
    fn zero_and_below_is_a_closed_port() {
        for (text, want) in [("0", None), ("-1", None), ("1", Some(1)), ("65535", Some(65_535))] {
            assert_eq!(port(text), Ok(want), "{text}");
        }
        for text in ["65536", "x", "1.0", " 1", "", "99999999999999999999"] {
            assert!(port(text).is_err(), "{text}");
        }
    }

    #[test]
    fn patterns_match_the_whole_text() {
        let it = pattern("a|b").unwrap();
        for (text, want) in [("a", true), ("b", true), ("ab", false), ("xa", false), ("a\n", false)]
        {
            assert_eq!(it.0.is_match(text.as_bytes()), want, "{text:?}");
        }
    }

    #[test]
    fn a_refused_value_is_shown_short_and_on_one_line() {
        let why = flag(&"x\n".repeat(1000)).unwrap_err();
        assert!(why.len() < 300 && !why.contains('\n'), "{why}");
    }
}
