//! `trunkctl`: what a configuration means, why a message goes where it goes, what a balancer counts, and
//! orders about its nodes.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _};
use std::process::ExitCode;
use std::sync::Arc;

use argh::FromArgs;
use engine::config::log4j::log4j;
use engine::config::{Config, Loaded, check, load};
use engine::lifecycle::Pulse;
use engine::names::literal;
use engine::node::{Ports, Version};
use engine::registry::{Announcement, Registry, Rules, Source};
use engine::relay::sip::{Settings, explain};
use engine::relay::{Arrival, Flow, Leg, Listener, ListenerId, listeners};
use engine::snapshot::Family;
use protocols::sip::Transport;
use protocols::time::Time;
use tools::{ask, line, nodes};

/// Looks at configurations and running balancers, and takes nodes out of service.
#[derive(FromArgs)]
#[argh(
    note = "Exit codes: 0 done, 1 the configuration has errors or nobody answers, 2 the command line is wrong."
)]
struct Line {
    #[argh(subcommand)]
    task: Task,
}

#[derive(FromArgs)]
#[argh(subcommand)]
enum Task {
    Check(Check),
    Explain(Explain),
    Stat(Stat),
    Nodes(Nodes),
    Drain(Drain),
    Undrain(Undrain),
    Remove(Remove),
}

/// Say what a configuration means: every key, its value and source, what is wrong. Exit code 1 on errors.
#[derive(FromArgs)]
#[argh(subcommand, name = "check", note = "-Dkey=value overrides a key, as for trunkline.")]
struct Check {
    /// configuration file
    #[argh(positional)]
    file: String,
}

/// Say step by step why the SIP message on standard input goes where it goes.
#[derive(FromArgs)]
#[argh(
    subcommand,
    name = "explain",
    note = "With FILE: by that configuration and the nodes named; -Dkey=value overrides a key. With --at: by a
running balancer and the nodes that it knows. Nothing is sent to any node.",
    example = "trunkctl explain lb.properties --node 10.0.0.11:5080 < invite.sip"
)]
struct Explain {
    /// configuration file
    #[argh(positional)]
    file: Option<String>,

    /// host:statisticPort of a running balancer
    #[argh(option)]
    at: Option<String>,

    /// as if it came from ip:port
    #[argh(option)]
    source: Option<SocketAddr>,

    /// as if it came in at ip:port[/transport]
    #[argh(option)]
    listener: Option<String>,

    /// as if it came in on this leg, external or internal
    #[argh(option)]
    leg: Option<String>,

    /// a live node, ip:port[/transport]; may be repeated
    #[argh(option)]
    node: Vec<String>,
}

/// Print the figures and nodes of a running balancer.
#[derive(FromArgs)]
#[argh(subcommand, name = "stat")]
struct Stat {
    /// host:statisticPort
    #[argh(positional)]
    at: String,
}

/// List the nodes of a running balancer: their state, and what depends on each.
#[derive(FromArgs)]
#[argh(subcommand, name = "nodes")]
struct Nodes {
    /// host:statisticPort
    #[argh(positional)]
    at: String,
}

/// Give a node no new calls. It keeps those that it has.
#[derive(FromArgs)]
#[argh(
    subcommand,
    name = "drain",
    note = "NODE is ip:port with any port of it, its ip, host name, jvmRoute or key. The order stays in force when
the node restarts, until it is taken back with undrain.",
    example = "trunkctl drain 10.0.0.11:5080 --at 10.0.0.1:2006 --deadline 30m --wait"
)]
struct Drain {
    /// the node
    #[argh(positional)]
    node: String,

    /// host:statisticPort of the balancer, 127.0.0.1:2006 if not given
    #[argh(option, default = "LOCAL.to_owned()")]
    at: String,

    /// take it out after this time, whatever is left: 90s, 30m, 2h
    #[argh(option)]
    deadline: Option<String>,

    /// wait until nothing is left on it, or until it is out
    #[argh(switch)]
    wait: bool,

    /// administrator, where securityRequired is set
    #[argh(option)]
    login: Option<String>,

    /// and the password
    #[argh(option)]
    password: Option<String>,
}

/// Take the order about a node back.
#[derive(FromArgs)]
#[argh(subcommand, name = "undrain")]
struct Undrain {
    /// the node
    #[argh(positional)]
    node: String,

    /// host:statisticPort of the balancer, 127.0.0.1:2006 if not given
    #[argh(option, default = "LOCAL.to_owned()")]
    at: String,

    /// administrator, where securityRequired is set
    #[argh(option)]
    login: Option<String>,

    /// and the password
    #[argh(option)]
    password: Option<String>,
}

/// Take a node out at once. It stays out although it announces itself, until undrain.
#[derive(FromArgs)]
#[argh(subcommand, name = "remove")]
struct Remove {
    /// the node
    #[argh(positional)]
    node: String,

    /// host:statisticPort of the balancer, 127.0.0.1:2006 if not given
    #[argh(option, default = "LOCAL.to_owned()")]
    at: String,

    /// administrator, where securityRequired is set
    #[argh(option)]
    login: Option<String>,

    /// and the password
    #[argh(option)]
    password: Option<String>,
}

fn main() -> ExitCode {
    let (overrides, rest) = split(std::env::args().skip(1));
    let line: Line = match line::parse("trunkctl", &rest) {
        Ok(line) => line,
        Err(code) => return code,
    };
    let result = match line.task {
        Task::Check(task) => read(&task.file, &overrides).map(|loaded| {
            let code = if loaded.has_errors() { EXIT_ERROR } else { EXIT_OK };
            (check(&loaded) + &logging(&overrides), code)
        }),
        Task::Explain(task) => explained(&task, &overrides).map(|it| (it, EXIT_OK)),
        Task::Stat(task) => stat(&task.at).map(|it| (it, EXIT_OK)),
        Task::Nodes(task) => nodes::list(&task.at).map(|it| (it, EXIT_OK)),
        Task::Drain(task) => drain(&task).map(|it| (it, EXIT_OK)),
        Task::Undrain(Undrain { node, at, login, password }) => {
            order("undrain", &node, None, &at, (login, password)).map(|it| (it, EXIT_OK))
        }
        Task::Remove(Remove { node, at, login, password }) => {
            order("remove", &node, None, &at, (login, password)).map(|it| (it, EXIT_OK))
        }
    };
    match result {
        Ok((text, code)) => {
            line::say(&text);
            ExitCode::from(code)
        }
        Err(why) => {
            line::complain("trunkctl", &why);
            ExitCode::from(EXIT_ERROR)
        }
    }
}

const EXIT_OK: u8 = 0;
const EXIT_ERROR: u8 = 1;

/// Takes `-Dkey=value` out of the arguments.
fn split(arguments: impl Iterator<Item = String>) -> (Vec<(String, String)>, Vec<String>) {
    let (mut overrides, mut rest) = (Vec::new(), Vec::new());
    for argument in arguments {
        match argument.strip_prefix("-D") {
            Some(property) => {
                let (key, value) = property.split_once('=').unwrap_or((property, ""));
                overrides.push((key.to_owned(), value.to_owned()));
            }
            None => rest.push(argument),
        }
    }
    (overrides, rest)
}

fn read(file: &str, overrides: &[(String, String)]) -> Result<Loaded, String> {
    let bytes = std::fs::read(file).map_err(|error| format!("{file}: {error}"))?;
    Ok(load(file, &bytes, overrides))
}

/// What the log4j file of `-DlogConfigFile` comes to.
fn logging(overrides: &[(String, String)]) -> String {
    let Some((_, path)) = overrides.iter().rfind(|it| it.0 == "logConfigFile") else {
        return String::new();
    };
    let read = match std::fs::read_to_string(path) {
        Ok(text) => log4j(&text),
        Err(error) => return format!("\n{path}: warning: {error}\n"),
    };
    let level = read.level.map_or("as logLevel says", |it| it.as_str());
    let mut text = format!("\n{path}: level {level}");
    if read.appenders.is_empty() {
        text += "; to standard output";
    }
    for appender in &read.appenders {
        text += "; to ";
        text += &match &appender.file {
            None => "standard output".to_owned(),
            Some(it) => match it.bytes_max {
                None => it.path.display().to_string(),
                Some(most) => {
                    format!("{}, {most} bytes and {} backups", it.path.display(), it.backups)
                }
            },
        };
    }
    text.push('\n');
    for warning in &read.warnings {
        text += &format!("{path}: warning: {warning}\n");
    }
    text
}

fn explained(task: &Explain, overrides: &[(String, String)]) -> Result<String, String> {
    let mut message = Vec::new();
    std::io::stdin()
        .take(MESSAGE_BYTES_MAX + 1)
        .read_to_end(&mut message)
        .map_err(|error| format!("standard input: {error}"))?;
    if message.is_empty() {
        return Err("no SIP message on standard input".to_owned());
    }
    if message.len() as u64 > MESSAGE_BYTES_MAX {
        return Err(format!("a SIP message has at most {MESSAGE_BYTES_MAX} bytes"));
    }
    let message = on_the_wire(message);
    match (&task.file, &task.at) {
        (Some(_), Some(_)) | (None, None) => Err("either FILE or --at host:port".to_owned()),
        (None, Some(at)) => {
            let query = [
                task.source.map(|it| format!("source={it}")),
                task.listener.as_ref().map(|it| format!("listener={it}")),
                task.leg.as_ref().map(|it| format!("leg={it}")),
            ];
            let query: Vec<String> = query.into_iter().flatten().collect();
            ask(at, "POST", &format!("/lbexplain?{}", query.join("&")), &message)
        }
        (Some(file), None) => {
            let loaded = read(file, overrides)?;
            if loaded.has_errors() {
                return Err(check(&loaded));
            }
            offline(task, &loaded.config, &message)
        }
    }
}

/// Decides by a configuration alone: nobody listens, nobody heartbeats, and static nodes answer.
fn offline(task: &Explain, config: &Config, message: &[u8]) -> Result<String, String> {
    let listeners = listeners(config, &resolved)?;
    let (id, listener) = chosen(task, &listeners)?;
    let now = Time::from_millis(1);
    let names = config.static_nodes.iter().filter(|it| literal(&it.host).is_none());
    let both = |host: &str| [Family::V4, Family::V6].map(|family| resolved(host, family));
    let names = names.map(|it| {
        let found: Vec<IpAddr> = both(&it.host).into_iter().flatten().collect();
        if found.is_empty() {
            return Err(format!("{}: a name without an address", it.host));
        }
        Ok((it.host.clone(), found))
    });
    let mut registry = Registry::new(now, Rules::from(config), &names.collect::<Result<_, _>>()?);
    let fixed: Vec<_> = registry.probed().map(|(node, ..)| node).collect();
    fixed.into_iter().for_each(|it| registry.handle_pulse(now, it, Pulse::Live));
    for text in &task.node {
        let node = node(text).ok_or_else(|| format!("--node {text} is not ip:port[/transport]"))?;
        registry.handle_announcement(now, node).map_err(|why| format!("--node {text}: {why}"))?;
    }
    let snapshot = registry.snapshot().unwrap_or_default();
    let extra = config.extra_server_nodes.iter();
    let extra = extra.filter_map(|it| Some(SocketAddr::new(literal(&it.host)?, it.port))).collect();
    let settings = Arc::new(Settings::new(config.clone(), listeners, extra, [0; 16]));
    let source = task.source.unwrap_or_else(|| match listener.address {
        SocketAddr::V4(_) => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), SOURCE_PORT),
        SocketAddr::V6(_) => SocketAddr::new(Ipv6Addr::LOCALHOST.into(), SOURCE_PORT),
    });
    let flow = Flow { shard: 0, slot: 0, generation: 0 };
    let flow = listener.transport.is_stream().then_some(flow);
    let arrival = Arrival { now, listener: id, source, flow };
    Ok(explain(&settings, &snapshot, &arrival, message).steps)
}

/// The listener that is named, else the first of the leg.
fn chosen(task: &Explain, listeners: &[Listener]) -> Result<(ListenerId, Listener), String> {
    let leg = match task.leg.as_deref() {
        None | Some("external") => Leg::External,
        Some("internal") => Leg::Internal,
        Some(other) => return Err(format!("--leg {other}: external or internal")),
    };
    let wanted = task.listener.as_deref().map(|text| {
        address(text).ok_or_else(|| format!("--listener {text} is not ip:port[/transport]"))
    });
    let wanted = wanted.transpose()?;
    let fits = |it: &Listener| match wanted {
        Some((address, transport)) => {
            it.address == address && it.transport == transport.unwrap_or(Transport::Udp)
        }
        None => it.leg == leg,
    };
    let found = listeners.iter().enumerate().find(|(_, it)| fits(it));
    let Some((index, listener)) = found else {
        let all: Vec<String> = listeners
            .iter()
            .map(|it| format!("{}/{}", it.address, it.transport.as_param()))
            .collect();
        return Err(format!("there is no such listener; there are {}", all.join(", ")));
    };
    let id = ListenerId(u8::try_from(index).map_err(|_| "too many listeners".to_owned())?);
    Ok((id, *listener))
}

/// An address of the host in one family.
fn resolved(host: &str, family: Family) -> Result<IpAddr, String> {
    let found = (host, 0).to_socket_addrs().map_err(|error| format!("{host}: {error}"))?;
    let mut found = found.map(|it| it.ip()).filter(|it| Family::of(*it) == family);
    found.next().ok_or_else(|| format!("{host}: no address of that family"))
}

/// `ip:port[/transport]`
fn address(text: &str) -> Option<(SocketAddr, Option<Transport>)> {
    match text.split_once('/') {
        Some((address, transport)) => {
            Some((address.parse().ok()?, Some(Transport::from_token(transport.as_bytes())?)))
        }
        None => Some((text.parse().ok()?, None)),
    }
}

/// A node as if it had announced itself: on UDP and TCP if no transport is written.
fn node(text: &str) -> Option<Announcement> {
    let (at, transport) = address(text)?;
    let mut ports = Ports::default();
    match transport {
        Some(transport) => ports.open(transport, at.port()),
        None => {
            ports.open(Transport::Udp, at.port());
            ports.open(Transport::Tcp, at.port());
        }
    }
    Some(Announcement {
        source: Source::Sip,
        ip: at.ip(),
        host_name: at.to_string(),
        ports,
        version: Version::default(),
        session: None,
        graceful: false,
        properties: Default::default(),
    })
}

/// Messages written in an editor end their lines with LF alone; headers need CRLF (RFC 3261 §7). The
/// body stays as it is, and so does a message that has any CRLF.
fn on_the_wire(message: Vec<u8>) -> Vec<u8> {
    if message.windows(2).any(|it| it == b"\r\n") {
        return message;
    }
    let head = message.windows(2).position(|it| it == b"\n\n").map_or(message.len(), |it| it + 2);
    let (head, body) = message.split_at(head);
    let mut wire = Vec::with_capacity(message.len() + 64);
    for byte in head {
        if *byte == b'\n' {
            wire.push(b'\r');
        }
        wire.push(*byte);
    }
    if !head.ends_with(b"\n\n") {
        let missing: &[u8] = if head.ends_with(b"\n") { b"\r\n" } else { b"\r\n\r\n" };
        wire.extend_from_slice(missing);
    }
    wire.extend_from_slice(body);
    wire
}

fn drain(task: &Drain) -> Result<String, String> {
    let Drain { node, at, deadline, login, password, .. } = task;
    if let Some(text) = deadline.as_ref().filter(|it| tools::time_of(it).is_none()) {
        return Err(format!("--deadline {text}: a time such as 90s, 30m or 2h"));
    }
    let credentials = (login.clone(), password.clone());
    let said = order("drain", node, deadline.as_deref(), at, credentials)?;
    if !task.wait {
        return Ok(said);
    }
    nodes::wait(at, node, |line| {
        let _ = writeln!(std::io::stdout(), "{line}");
    })
}

/// Gives an order about a node; what the balancer says to it.
fn order(
    what: &str,
    node: &str,
    deadline: Option<&str>,
    at: &str,
    (login, password): (Option<String>, Option<String>),
) -> Result<String, String> {
    let mut target = format!("/lb{what}?node={}", tools::encoded(node));
    for (name, value) in
        [("deadline", deadline), ("login", login.as_deref()), ("password", password.as_deref())]
    {
        if let Some(value) = value {
            target += &format!("&{name}={}", tools::encoded(value));
        }
    }
    ask(at, "POST", &target, b"")
}

fn stat(at: &str) -> Result<String, String> {
    let mut text = String::new();
    for target in ["/lbstat", "/lbinfo"] {
        let body = ask(at, "GET", target, b"")?;
        let json: serde_json::Value =
            serde_json::from_str(&body).map_err(|error| format!("{target}: {error}: {body}"))?;
        text += &serde_json::to_string_pretty(&json).map_err(|error| error.to_string())?;
        text.push('\n');
    }
    Ok(text)
}

/// Where the example file has a balancer's statistics.
const LOCAL: &str = "127.0.0.1:2006";
/// The largest SIP message there is.
const MESSAGE_BYTES_MAX: u64 = 64 * 1024;
/// Any port will do for a client.
const SOURCE_PORT: u16 = 5099;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_from_an_editor_become_lines_on_the_wire() {
        let cases: [(&[u8], &[u8]); 4] = [
            (b"BYE\nA: b\n\nbody\nmore\n", b"BYE\r\nA: b\r\n\r\nbody\nmore\n"),
            (b"BYE\nA: b\n", b"BYE\r\nA: b\r\n\r\n"),
            (b"BYE\nA: b", b"BYE\r\nA: b\r\n\r\n"),
            (b"BYE\r\nA: b\r\n\r\nx\ny", b"BYE\r\nA: b\r\n\r\nx\ny"),
        ];
        for (written, want) in cases {
            assert_eq!(on_the_wire(written.to_vec()), want, "{}", written.escape_ascii());
        }
    }

    #[test]
    fn nodes_and_listeners_are_read_as_written() {
        assert_eq!(node("10.0.0.1:5080").unwrap().ports.iter().count(), 2);
        let tcp = node("[::1]:5080/TCP").unwrap();
        assert_eq!(tcp.ports.iter().collect::<Vec<_>>(), [(Transport::Tcp, 5080)]);
        for wrong in ["10.0.0.1", "a:1", "10.0.0.1:1/smoke", ""] {
            assert!(node(wrong).is_none(), "{wrong}");
        }
    }
}
