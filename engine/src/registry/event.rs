//! One line for every change of the node table, in the words that operators already search for.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use protocols::time::Time;

use super::{BeatError, Refused, Source};
use crate::node::{Bad, Node, Way};

/// A change of the node table with its reason. [`fmt::Display`] is the log line.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Event {
    /// It is a live node now.
    Added {
        /// The node.
        node: NodeText,
        /// Who says so.
        by: Source,
    },
    /// The same node under a new session id: flags are cleared.
    Restarted {
        /// The node.
        node: NodeText,
        /// Who says so.
        by: Source,
    },
    /// Its name, ports or properties changed.
    Changed {
        /// The node, after the change.
        node: NodeText,
        /// In what.
        difference: Difference,
    },
    /// A static node that has never answered probes: it is no live node yet.
    Down {
        /// The node.
        node: NodeText,
    },
    /// Events that nobody fetched in time.
    Lost {
        /// How many.
        events: u64,
    },
    /// It is no live node any more.
    Removed {
        /// The node.
        node: NodeText,
        /// Why.
        reason: Removal,
        /// Live nodes that remain.
        left: usize,
    },
    /// It is leaving: no new calls.
    Graceful {
        /// The node.
        node: NodeText,
    },
    /// The operator drains it: no new calls.
    Draining {
        /// The node.
        node: NodeText,
        /// Until it is taken out.
        time: Option<Duration>,
    },
    /// The operator's order about it is taken back.
    Undrained {
        /// The node.
        node: NodeText,
    },
    /// It gets no new calls.
    Bad {
        /// The node.
        node: NodeText,
        /// Why.
        bad: Bad,
    },
    /// It gets new calls again.
    Recovered {
        /// The node.
        node: NodeText,
    },
    /// It refused on one way: no new work there for a moment.
    Suspect {
        /// The node.
        node: NodeText,
        /// Where.
        way: Way,
        /// How long.
        time: Duration,
    },
    /// `extraServerNodes` are live nodes (`performanceTestingMode`).
    ExtraNodes,
    /// A node of `extraServerNodes` or `staticNodes` found no room in the table.
    NoRoom {
        /// The node.
        node: NodeText,
    },
    /// A node of `extraServerNodes` or `staticNodes` is this balancer itself.
    Own {
        /// What was to be a node.
        node: NodeText,
    },
    /// A node names no node in its heartbeats: it has no connector that we could use.
    EmptyHeartbeat {
        /// Where it is.
        from: IpAddr,
    },
    /// Its version is no number, and counts as 0.
    OddVersion {
        /// The node.
        node: NodeText,
        /// What it says.
        version: String,
    },
    /// A heartbeat was not believed.
    HeartbeatRefused {
        /// Who sent it.
        from: IpAddr,
        /// Why.
        why: Disbelief,
    },
    /// All calls of one node are another's.
    Switchover {
        /// Route that was left.
        from: String,
        /// Route that took over.
        to: String,
    },
    /// A switchover named a `jvmRoute` that nobody ever announced.
    SwitchoverFailed {
        /// Route that was to be left.
        from: String,
        /// Route that was to take over.
        to: String,
    },
}

/// Why a heartbeat was not believed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Disbelief {
    /// It names no node.
    Words(BeatError),
    /// It names a node that cannot be.
    Node(Refused),
    /// A session that is not known, or no more.
    Session,
}

impl fmt::Display for Disbelief {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Disbelief::Words(it) => it.fmt(f),
            Disbelief::Node(it) => it.fmt(f),
            Disbelief::Session => f.write_str("no such session; the node has to start anew"),
        }
    }
}

/// Why a node was taken out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Removal {
    /// No life sign for longer than `nodeTimeout`.
    Silent {
        /// Last life sign.
        last: Time,
        /// When that was noticed.
        now: Time,
        /// `nodeTimeout`.
        timeout: Duration,
    },
    /// It said so, or an administrator did.
    Stopped,
    /// Another node announced one of its addresses.
    Replaced,
    /// The configuration names it no longer.
    Unconfigured,
    /// A static node that does not answer probes.
    Unanswered,
    /// The operator wants it out.
    Ordered,
    /// The deadline of its drain has passed.
    Overdue,
}

/// Name or properties that are not what they were.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Difference(Vec<Changed>);

#[derive(Clone, Debug, Eq, PartialEq)]
struct Changed {
    name: String,
    before: Option<String>,
    after: Option<String>,
}

impl Difference {
    /// Between two states of one node.
    pub(super) fn of(before: &Node, after: &Node) -> Difference {
        let mut it = Vec::new();
        if before.host_name != after.host_name {
            let (before, after) = (before.host_name.clone(), after.host_name.clone());
            let name = "hostname".to_owned();
            it.push(Changed { name, before: Some(before), after: Some(after) });
        }
        let names: BTreeSet<&String> =
            before.properties.keys().chain(after.properties.keys()).collect();
        for name in names.into_iter().filter(|it| !SAID_ELSEWHERE.contains(&it.as_str())) {
            let [before, after] = [before, after].map(|it| it.properties.get(name).cloned());
            if before != after {
                it.push(Changed { name: name.clone(), before, after });
            }
        }
        Difference(it)
    }

    /// Whether traffic goes another way because of it. Other properties are for algorithms and people, and may
    /// change with every heartbeat.
    fn is_of_routing(&self) -> bool {
        let is_of_routing = |it: &str| {
            it.ends_with("Port")
                || ["hostname", "version", "jvmRoute", "Restcomm-Instance-Id"].contains(&it)
        };
        self.0.iter().any(|it| is_of_routing(&it.name))
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Changed { name, before, after }) in self.0.iter().enumerate() {
            f.write_str(if index == 0 { ": " } else { ", " })?;
            write_plain(f, name)?;
            for (text, side) in [("", before), (" ->", after)] {
                f.write_str(text)?;
                f.write_str("[")?;
                write_plain(f, side.as_deref().unwrap_or_default())?;
                f.write_str("]")?;
            }
        }
        Ok(())
    }
}

impl Removal {
    /// As figures name it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Removal::Silent { .. } => "silent",
            Removal::Stopped => "stopped",
            Removal::Replaced => "replaced",
            Removal::Unconfigured => "unconfigured",
            Removal::Unanswered => "unanswered",
            Removal::Ordered => "ordered",
            Removal::Overdue => "overdue",
        }
    }
}

impl Event {
    /// What happened to a node, and why, as figures name it; every row of it is in [`CHANGES`].
    pub const fn change(&self) -> Option<(&'static str, &'static str)> {
        Some(match self {
            Event::Added { .. } => ("added", ""),
            Event::Restarted { .. } => ("restarted", ""),
            Event::Changed { .. } => ("changed", ""),
            Event::Graceful { .. } => ("graceful", ""),
            Event::Draining { .. } => ("draining", ""),
            Event::Undrained { .. } => ("undrained", ""),
            Event::Recovered { .. } => ("recovered", ""),
            Event::Suspect { .. } => ("suspect", ""),
            Event::Bad { bad, .. } => ("bad", bad.as_str()),
            Event::Removed { reason, .. } => ("removed", reason.as_str()),
            _ => return None,
        })
    }

    /// How loud to log it.
    pub fn level(&self) -> log::Level {
        match self {
            Event::Changed { difference, .. } if !difference.is_of_routing() => log::Level::Debug,
            Event::Bad { bad: Bad::Response, .. } => log::Level::Error,
            Event::Removed { reason: Removal::Silent { .. } | Removal::Unanswered, .. }
            | Event::Down { .. }
            | Event::Lost { .. }
            | Event::Bad { .. }
            | Event::Suspect { .. }
            | Event::EmptyHeartbeat { .. }
            | Event::OddVersion { .. }
            | Event::HeartbeatRefused { .. }
            | Event::Own { .. }
            | Event::NoRoom { .. } => log::Level::Warn,
            _ => log::Level::Info,
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const TASK: &str = "NodeExpirationTimerTask Run NSync";
        match self {
            Event::Added { node, by } => write!(f, "{TASK}[{node}] added ({})", by.as_str()),
            Event::Restarted { node, by } => {
                write!(f, "{TASK}[{node}] restarted ({})", by.as_str())
            }
            Event::Changed { node, difference } => {
                write!(f, "{TASK}[{node}] changed{difference}")
            }
            Event::Down { node } => {
                write!(f, "{TASK}[{node}] not added: it does not answer probes")
            }
            Event::Lost { events } => {
                write!(f, "{events} changes of nodes are missing here: there were too many at once")
            }
            Event::Removed { node, reason: Removal::Silent { last, now, timeout }, .. } => write!(
                f,
                "{TASK}[{node}] removed. Last timestamp: {}, current: {} diff={}ms and tolerance={} ms",
                last.as_millis(),
                now.as_millis(),
                now.since(*last).as_millis(),
                timeout.as_millis()
            ),
            Event::Removed { node, reason: Removal::Stopped, left } => write!(
                f,
                "{TASK}[{node}] forcibly removed due to a clean shutdown of a node. \
                 Numbers of nodes present in the balancer : {left}"
            ),
            Event::Removed { node, reason, left } => {
                let reason = match reason {
                    Removal::Replaced => "another node has its address",
                    Removal::Unconfigured => "the configuration names it no longer",
                    Removal::Ordered => "the operator has taken it out",
                    Removal::Overdue => "the deadline of its drain has passed",
                    _ => "it does not answer probes",
                };
                write!(
                    f,
                    "{TASK}[{node}] removed: {reason}. Numbers of nodes present in the balancer : {left}"
                )
            }
            Event::Graceful { node } => write!(f, "{TASK}[{node}] graceful shutdown: no new calls"),
            Event::Draining { node, time: None } => {
                write!(f, "{TASK}[{node}] draining: the operator wants no new calls there")
            }
            Event::Draining { node, time: Some(time) } => write!(
                f,
                "{TASK}[{node}] draining: the operator wants no new calls there, and it out in {} s",
                time.as_secs()
            ),
            Event::Undrained { node } => {
                write!(f, "{TASK}[{node}] undrained: the operator's order is taken back")
            }
            Event::Bad { node, bad } => {
                let reason = match bad {
                    Bad::Errors => "too many error responses",
                    Bad::Response => "an error response over HTTP",
                    Bad::Silence => "requests stay unanswered",
                    Bad::Full => "it answers probes with 503",
                };
                write!(f, "{TASK}[{node}] bad: {reason}, no new calls")
            }
            Event::Recovered { node } => write!(f, "{TASK}[{node}] healthy again"),
            Event::Suspect { node, way, time } => {
                let (way, time) = (way.as_str(), time.as_millis());
                write!(f, "{TASK}[{node}] refused on {way}: no new calls there for {time} ms")
            }
            Event::ExtraNodes => f.write_str("Extra Servers registered as active nodes!"),
            Event::NoRoom { node } => write!(f, "{TASK}[{node}] not added: the node table is full"),
            Event::Own { node } => {
                write!(f, "{TASK}[{node}] not added: it is this balancer itself")
            }
            Event::EmptyHeartbeat { from } => write!(
                f,
                "Heartbeat from {from} without any node: it has no connector that we could use"
            ),
            Event::OddVersion { node, version } => {
                write!(f, "{TASK}[{node}] version ")?;
                write_plain(f, version)?;
                f.write_str(" is not an integer and counts as 0")
            }
            Event::HeartbeatRefused { from, why } => {
                write!(f, "Heartbeat from {from} refused: {why}")
            }
            Event::Switchover { from, to } => write_routes(f, "Switchover", from, to),
            Event::SwitchoverFailed { from, to } => {
                write_routes(f, "Switchover failed where", from, to)
            }
        }
    }
}

/// A node as log lines name it (`http-smpp-registry.md` 3.3): `Node hostname[..] ip[..] udpPort[..] ..`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NodeText {
    host_name: String,
    ip: IpAddr,
    properties: BTreeMap<String, String>,
}

impl NodeText {
    /// As the node named itself.
    pub fn host_name(&self) -> &str {
        &self.host_name
    }

    /// Its address.
    pub const fn ip(&self) -> IpAddr {
        self.ip
    }

    /// Copies what the line needs.
    pub fn of(node: &Node) -> NodeText {
        let ip = node.ip;
        NodeText { host_name: node.host_name.clone(), ip, properties: node.properties.clone() }
    }
}

impl fmt::Display for NodeText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Node hostname[")?;
        write_plain(f, &self.host_name)?;
        write!(f, "] ip[{}]", self.ip)?;
        for (name, value) in &self.properties {
            if !SAID_ELSEWHERE.contains(&name.as_str()) {
                f.write_str(" ")?;
                write_plain(f, name)?;
                f.write_str("[")?;
                write_plain(f, value)?;
                f.write_str("]")?;
            }
        }
        Ok(())
    }
}

/// Properties that stand in a line of their own, or in front of the others.
const SAID_ELSEWHERE: [&str; 5] = ["sessionId", "GRACEFUL_SHUTDOWN", "hostname", "hostName", "ip"];

/// What happens to nodes, and why: the rows of the figure that counts it.
pub const CHANGES: [(&str, &str); 19] = [
    ("added", ""),
    ("restarted", ""),
    ("changed", ""),
    ("graceful", ""),
    ("draining", ""),
    ("undrained", ""),
    ("recovered", ""),
    ("suspect", ""),
    ("bad", "errors"),
    ("bad", "silence"),
    ("bad", "response"),
    ("bad", "full"),
    ("removed", "silent"),
    ("removed", "stopped"),
    ("removed", "replaced"),
    ("removed", "unconfigured"),
    ("removed", "unanswered"),
    ("removed", "ordered"),
    ("removed", "overdue"),
];

fn write_routes(f: &mut fmt::Formatter<'_>, what: &str, from: &str, to: &str) -> fmt::Result {
    write!(f, "{what} fromJvmRoute=")?;
    write_plain(f, from)?;
    f.write_str(" and toJvmRoute=")?;
    write_plain(f, to)
}

/// Peers wrote this text: it must not end our line or steer a terminal.
fn write_plain(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    text.chars().try_for_each(|it| match it {
        it if it.is_control() => write!(f, "{}", it.escape_default()),
        it => fmt::Write::write_char(f, it),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_read_as_they_always_did() {
        let node = NodeText {
            host_name: "n1\nINFO forged".to_owned(),
            ip: "10.0.0.1".parse().unwrap(),
            properties: [
                ("udpPort", "5060"),
                ("jvmRoute", "a"),
                ("sessionId", "7"),
                ("ip", "10.0.0.1"),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        };
        let text = "NodeExpirationTimerTask Run NSync[Node hostname[n1\\nINFO forged] ip[10.0.0.1] jvmRoute[a] udpPort[5060]]";
        let node = || node.clone();
        let silent = Removal::Silent {
            last: Time::from_millis(1000),
            now: Time::from_millis(9401),
            timeout: Duration::from_millis(8400),
        };
        let removed = |reason| Event::Removed { node: node(), reason, left: 3 };
        let changed = |name: &str, before: Option<&str>, after: &str| Changed {
            name: name.to_owned(),
            before: before.map(str::to_owned),
            after: Some(after.to_owned()),
        };
        let changes = vec![changed("jvmRoute", Some("a"), "b\r"), changed("tcpPort", None, "5062")];
        let numbers = "Numbers of nodes present in the balancer : 3";
        let cases: &[(Event, String)] = &[
            (Event::Added { node: node(), by: Source::Rmi }, " added (RMI)".into()),
            (Event::Added { node: node(), by: Source::Sip }, " added (SIP)".into()),
            (Event::Added { node: node(), by: Source::Kubernetes }, " added (Kubernetes)".into()),
            (
                Event::Added { node: node(), by: Source::Configured },
                " added (configuration)".into(),
            ),
            (Event::Restarted { node: node(), by: Source::Json }, " restarted (JSON)".into()),
            (
                Event::Changed { node: node(), difference: Difference(changes) },
                " changed: jvmRoute[a] ->[b\\r], tcpPort[] ->[5062]".into(),
            ),
            (Event::Down { node: node() }, " not added: it does not answer probes".into()),
            (
                removed(silent),
                " removed. Last timestamp: 1000, current: 9401 diff=8401ms and tolerance=8400 ms"
                    .into(),
            ),
            (
                removed(Removal::Stopped),
                format!(" forcibly removed due to a clean shutdown of a node. {numbers}"),
            ),
            (
                removed(Removal::Replaced),
                format!(" removed: another node has its address. {numbers}"),
            ),
            (
                removed(Removal::Unconfigured),
                format!(" removed: the configuration names it no longer. {numbers}"),
            ),
            (
                removed(Removal::Unanswered),
                format!(" removed: it does not answer probes. {numbers}"),
            ),
            (
                Event::OddVersion { node: node(), version: "2.x\n".to_owned() },
                " version 2.x\\n is not an integer and counts as 0".into(),
            ),
            (Event::Graceful { node: node() }, " graceful shutdown: no new calls".into()),
            (
                Event::Draining { node: node(), time: None },
                " draining: the operator wants no new calls there".into(),
            ),
            (
                Event::Draining { node: node(), time: Some(Duration::from_secs(90)) },
                " draining: the operator wants no new calls there, and it out in 90 s".into(),
            ),
            (
                Event::Undrained { node: node() },
                " undrained: the operator's order is taken back".into(),
            ),
            (
                removed(Removal::Ordered),
                format!(" removed: the operator has taken it out. {numbers}"),
            ),
            (
                removed(Removal::Overdue),
                format!(" removed: the deadline of its drain has passed. {numbers}"),
            ),
            (
                Event::Bad { node: node(), bad: Bad::Errors },
                " bad: too many error responses, no new calls".into(),
            ),
            (
                Event::Suspect { node: node(), way: Way::Http, time: Duration::from_secs(2) },
                " refused on http: no new calls there for 2000 ms".into(),
            ),
        ];
        for (event, want) in cases {
            assert_eq!(event.to_string(), format!("{text}{want}"));
            let change = event.change();
            assert!(change.is_none_or(|it| CHANGES.contains(&it)), "{change:?}");
        }
        let failed = Event::SwitchoverFailed { from: "a".into(), to: "b\r".into() };
        assert_eq!(
            failed.to_string(),
            "Switchover failed where fromJvmRoute=a and toJvmRoute=b\\r"
        );
        assert_eq!(Event::ExtraNodes.to_string(), "Extra Servers registered as active nodes!");
    }
}
