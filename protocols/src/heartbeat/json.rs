//! JSON heartbeats as nodes post them over HTTP: the body of the request, and of the answer.
//!
//! Source: `http-smpp-registry.md` 3.5. The first key of the body is the command, its value the packet; further
//! keys are ignored. Values are strings or numbers, whatever the stock node sends: objects, arrays and
//! `null` as values are skipped. Leaves HTTP to the caller.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::net::IpAddr;

use serde_core::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::NodeWords;

/// What a node wants.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Command {
    /// It is there, or there again.
    Start(NodeWords),
    /// It is alive.
    Heartbeat {
        /// `sessionId` of its start.
        session: String,
    },
    /// It is leaving: it keeps its calls and wants no new ones.
    Shutdown {
        /// `sessionId` of its start.
        session: String,
    },
    /// It stops now.
    Stop {
        /// `sessionId` of its start.
        session: String,
    },
    /// One node's calls are another's from now on.
    SwitchOver {
        /// `jvmRoute` that is left.
        from: String,
        /// `jvmRoute` that takes over.
        to: String,
    },
}

/// Why a body is no command. Answer 400 with this text, and close.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Malformed {
    /// Longer than [`BODY_BYTES_MAX`].
    TooLong {
        /// Length of the body.
        bytes: usize,
    },
    /// Not one JSON object.
    Syntax {
        /// Where in it, from 1 on.
        line: usize,
        /// Where in the line, from 1 on.
        column: usize,
    },
    /// An object without a first key, or one that names no command that nodes give.
    Command,
    /// The packet has more properties than [`PROPERTIES_MAX`].
    Properties,
    /// The packet lacks this property.
    Missing {
        /// Its name.
        name: &'static str,
    },
}

impl Command {
    /// Reads the body of a request.
    ///
    /// # Errors
    ///
    /// [`Malformed`]: answer 400.
    pub fn parse(body: &[u8]) -> Result<Command, Malformed> {
        if body.len() > BODY_BYTES_MAX {
            return Err(Malformed::TooLong { bytes: body.len() });
        }
        let First { command, packet } = serde_json::from_slice(body)
            .map_err(|it| Malformed::Syntax { line: it.line(), column: it.column() })?;
        if packet.len() > PROPERTIES_MAX {
            return Err(Malformed::Properties);
        }
        let property = |name: &'static str| {
            let found = packet.iter().rev().find(|(known, _)| known == name);
            found.map(|(_, value)| value.clone()).ok_or(Malformed::Missing { name })
        };
        Ok(match command.as_str() {
            "start" => Command::Start(words(packet)),
            "heartbeat" => Command::Heartbeat { session: property("sessionId")? },
            "shutdown" => Command::Shutdown { session: property("sessionId")? },
            "stop" => Command::Stop { session: property("sessionId")? },
            "switchover" => {
                Command::SwitchOver { from: property("fromJvmRoute")?, to: property("toJvmRoute")? }
            }
            _ => return Err(Malformed::Command),
        })
    }

    /// As the body spells it, and the answer.
    pub const fn name(&self) -> &'static str {
        match self {
            Command::Start(_) => "start",
            Command::Heartbeat { .. } => "heartbeat",
            Command::Shutdown { .. } => "shutdown",
            Command::Stop { .. } => "stop",
            Command::SwitchOver { .. } => "switchover",
        }
    }
}

/// Appends the answer to the command of that name: `OK`, or `NOK` if the node is not known or not
/// believed. A stock node that misses three `OK` starts anew.
pub fn answer(name: &str, known: bool, out: &mut Vec<u8>) {
    let pieces = ["{\"", name, "\":\"", if known { "OK" } else { "NOK" }, "\"}"];
    pieces.into_iter().for_each(|it| out.extend_from_slice(it.as_bytes()));
}

/// Appends what a stopping balancer posts to every node that has a `heartbeatPort`, so that it looks for
/// this balancer anew: our address and the port we listen on.
pub fn stop(ip: IpAddr, port: u16, out: &mut Vec<u8>) {
    let (ip, port) = (ip.to_string(), port.to_string());
    let pieces = ["{\"stop\":{\"ipAddress\":\"", &ip, "\",\"port\":", &port, "}}"];
    pieces.into_iter().for_each(|it| out.extend_from_slice(it.as_bytes()));
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Malformed::TooLong { bytes } => {
                write!(f, "Heartbeat of {bytes} bytes, at most {BODY_BYTES_MAX}")
            }
            Malformed::Syntax { line, column } => {
                write!(f, "Heartbeat is no JSON object: line {line}, column {column}")
            }
            Malformed::Command => f.write_str("Heartbeat without a known command"),
            Malformed::Properties => {
                write!(f, "Heartbeat with more than {PROPERTIES_MAX} properties")
            }
            Malformed::Missing { name } => write!(f, "Heartbeat without {name}"),
        }
    }
}

impl core::error::Error for Malformed {}

fn words(packet: Vec<(String, String)>) -> NodeWords {
    let mut words = NodeWords::default();
    for (name, value) in packet {
        match name.as_str() {
            "hostName" => words.host_name = value,
            "ip" => words.ip = value,
            _ => words.properties.push((name, value)),
        }
    }
    words
}

/// The first pair of an object. The others must be JSON, no more.
#[derive(Default)]
struct First {
    command: String,
    packet: Vec<(String, String)>,
}

impl<'de> Deserialize<'de> for First {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<First, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = First;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<First, M::Error> {
                let first: Option<(String, Packet)> = map.next_entry()?;
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(first.map_or_else(First::default, |(command, packet)| First {
                    command,
                    packet: packet.0,
                }))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

/// The pairs of an object in order, as far as their values are scalars; of anything else nothing.
struct Packet(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Packet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Packet, D::Error> {
        deserializer.deserialize_any(Either { packet: true }).map(|it| Packet(it.pairs))
    }
}

/// A scalar as text; `None` for anything else.
struct Scalar(Option<String>);

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Scalar, D::Error> {
        deserializer.deserialize_any(Either { packet: false }).map(|it| Scalar(it.text))
    }
}

/// Reads any value. `packet`: the pairs of an object are wanted; else the text of a scalar is.
struct Either {
    packet: bool,
}

#[derive(Default)]
struct Found {
    text: Option<String>,
    pairs: Vec<(String, String)>,
}

impl Found {
    fn text<E>(text: impl ToString) -> Result<Found, E> {
        Ok(Found { text: Some(text.to_string()), pairs: Vec::new() })
    }
}

impl<'de> Visitor<'de> for Either {
    type Value = Found;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_str<E>(self, it: &str) -> Result<Found, E> {
        Found::text(it)
    }

    fn visit_u64<E>(self, it: u64) -> Result<Found, E> {
        Found::text(it)
    }

    fn visit_i64<E>(self, it: i64) -> Result<Found, E> {
        Found::text(it)
    }

    fn visit_f64<E>(self, it: f64) -> Result<Found, E> {
        Found::text(it)
    }

    fn visit_bool<E>(self, it: bool) -> Result<Found, E> {
        Found::text(it)
    }

    fn visit_unit<E>(self) -> Result<Found, E> {
        Ok(Found::default())
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut elements: S) -> Result<Found, S::Error> {
        while elements.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Found::default())
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Found, M::Error> {
        let mut pairs = Vec::new();
        while self.packet && pairs.len() <= PROPERTIES_MAX {
            let Some((name, Scalar(value))) = map.next_entry::<String, Scalar>()? else { break };
            pairs.extend(value.map(|it| (name, it)));
        }
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Found { text: None, pairs })
    }
}

/// Body of a request.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;

/// Properties of one packet; a stock node sends twelve.
pub const PROPERTIES_MAX: usize = 1000;

#[cfg(test)]
mod tests {
    extern crate std;

    use alloc::format;

    use super::*;
    use crate::testing::Random;

    fn pairs(of: &[(&str, &str)]) -> Vec<(String, String)> {
        of.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
    }

    fn start(host_name: &str, ip: &str, properties: &[(&str, &str)]) -> Command {
        let (host_name, ip) = (host_name.into(), ip.into());
        Command::Start(NodeWords { host_name, ip, properties: pairs(properties) })
    }

    const START: &str = r#"{"start":{"hostName":"node1","ip":"127.0.0.1","httpPort":"7080","sslPort":"4444","udpPort":"4060","version":"0","sessionId":"1485157008580","restcommInstanceId":"ID1","heartbeatPort":"2222"}}"#;

    #[test]
    fn bodies_become_commands() {
        let session = String::from("1485157008580");
        let (from, to) = (String::from("a"), String::from("b"));
        let cases: &[(&str, &str, Command)] = &[
            (
                "as a node starts",
                START,
                start(
                    "node1",
                    "127.0.0.1",
                    &[
                        ("httpPort", "7080"),
                        ("sslPort", "4444"),
                        ("udpPort", "4060"),
                        ("version", "0"),
                        ("sessionId", "1485157008580"),
                        ("restcommInstanceId", "ID1"),
                        ("heartbeatPort", "2222"),
                    ],
                ),
            ),
            (
                "numbers and other kinds of values",
                r#" { "start" : {"ip":"::1","udpPort":5060,"x":-1.5,"y":true,"z":null,"a":[1,{"b":[]}],"o":{"p":1},"\u006a":"\u00e9\n"} } "#,
                start(
                    "",
                    "::1",
                    &[("udpPort", "5060"), ("x", "-1.5"), ("y", "true"), ("j", "é\n")],
                ),
            ),
            ("nothing said", r#"{"start":{}}"#, start("", "", &[])),
            ("no packet", r#"{"start":[]}"#, start("", "", &[])),
            (
                "a number",
                r#"{"heartbeat":{"sessionId":1485157008580}}"#,
                Command::Heartbeat { session: session.clone() },
            ),
            (
                "a string",
                r#"{"heartbeat":{"sessionId":"1485157008580"}}"#,
                Command::Heartbeat { session: session.clone() },
            ),
            (
                "the first key counts",
                r#"{"shutdown":{"sessionId":1485157008580},"stop":{"sessionId":7},"x":[[]]}"#,
                Command::Shutdown { session: session.clone() },
            ),
            (
                "the last value counts",
                r#"{"stop":{"sessionId":1,"sessionId":1485157008580}}"#,
                Command::Stop { session },
            ),
            (
                "switchover",
                r#"{"switchover":{"fromJvmRoute":"a","toJvmRoute":"b"}}"#,
                Command::SwitchOver { from, to },
            ),
        ];
        for (name, body, want) in cases {
            assert_eq!(Command::parse(body.as_bytes()).as_ref(), Ok(want), "{name}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let syntax = |column| Malformed::Syntax { line: 1, column };
        let missing = |name| Malformed::Missing { name };
        let many: String = (0..=PROPERTIES_MAX).map(|it| format!("\"{it}\":1,")).collect();
        let many = format!("{{\"start\":{{{many}\"x\":1}}}}");
        let deep = format!("{{\"start\":{{\"x\":{}", "[".repeat(100_000));
        let cases: &[(&str, Malformed)] = &[
            ("", syntax(0)),
            ("x", syntax(1)),
            ("[]", syntax(0)),
            ("{\"start\":{}", syntax(11)),
            ("{\"start\":{}}x", syntax(13)),
            ("{\"start\":{},}", syntax(13)),
            ("{}", Malformed::Command),
            ("{\"\":{}}", Malformed::Command),
            ("{\"Start\":{}}", Malformed::Command),
            ("{\"heartbeat\":{}}", missing("sessionId")),
            ("{\"stop\":{\"sessionId\":null}}", missing("sessionId")),
            ("{\"stop\":{\"ipAddress\":\"1.2.3.4\",\"port\":2610}}", missing("sessionId")),
            ("{\"shutdown\":7}", missing("sessionId")),
            ("{\"switchover\":{\"fromJvmRoute\":\"a\"}}", missing("toJvmRoute")),
            (&many, Malformed::Properties),
            (&deep, syntax(0)),
        ];
        for (body, want) in cases {
            let case = body.get(..40).unwrap_or(body);
            let got = Command::parse(body.as_bytes()).unwrap_err();
            match (got, want) {
                (Malformed::Syntax { .. }, Malformed::Syntax { column: 0, .. }) => {}
                (got, want) => assert_eq!(got, *want, "{case}: {got}"),
            }
        }
        let long = [b' '; BODY_BYTES_MAX + 1];
        let bytes = long.len();
        assert_eq!(Command::parse(&long), Err(Malformed::TooLong { bytes }));
    }

    #[test]
    fn answers_and_the_stop_packet() {
        let session = || String::from("1");
        let (from, to) = (String::new(), String::new());
        let cases = [
            (start("", "", &[]), true, r#"{"start":"OK"}"#),
            (Command::Heartbeat { session: session() }, false, r#"{"heartbeat":"NOK"}"#),
            (Command::Shutdown { session: session() }, true, r#"{"shutdown":"OK"}"#),
            (Command::Stop { session: session() }, false, r#"{"stop":"NOK"}"#),
            (Command::SwitchOver { from, to }, true, r#"{"switchover":"OK"}"#),
        ];
        for (command, known, want) in cases {
            let mut out = Vec::new();
            answer(command.name(), known, &mut out);
            assert_eq!(out, want.as_bytes(), "{want}");
        }
        let mut out = Vec::new();
        stop("::1".parse().unwrap(), 2610, &mut out);
        assert_eq!(out, br#"{"stop":{"ipAddress":"::1","port":2610}}"#);
    }

    #[test]
    fn any_bytes_are_read_or_refused() {
        for seed in 0..5_000 {
            let body = Random::new(seed).mutate(START.as_bytes());
            if let Ok(Command::Start(words)) = Command::parse(&body) {
                let bytes: usize = words.properties.iter().map(|(k, v)| k.len() + v.len()).sum();
                assert!(bytes <= 3 * body.len(), "seed {seed}");
            }
        }
    }
}
