//! Who is compared, and how each is started. A new contender is one row.

use crate::compare::contender::beside_us;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tests::Node;

use super::{Arguments, Pinned};
use crate::compare::BALANCER_INTERNAL;

/// A way from clients to nodes.
pub(super) struct Contender {
    /// Name for `--only`.
    pub(super) name: &'static str,
    /// Name in the table.
    pub(super) title: &'static str,
    pub(super) role: Role,
    program: &'static str,
    arguments: &'static [&'static str],
}

/// What its figures are for.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(super) enum Role {
    /// The balancer: compared with the others.
    Ours,
    /// The better one of them is the bar.
    Peer,
    /// This program, doing nothing but what every balancer must; inside TLS it does not go.
    Floor,
}

/// Everything that can be compared.
pub(super) const CONTENDERS: &[Contender] = &[
    Contender {
        name: "trunkline",
        title: "Trunkline",
        role: Role::Ours,
        program: "",
        arguments: &["http-trunkline.properties"],
    },
    Contender {
        name: "trunkline-waits",
        title: "Trunkline, `coalesceMicros=200`",
        role: Role::Ours,
        program: "",
        arguments: &["-DcoalesceMicros=200", "http-trunkline.properties"],
    },
    Contender {
        name: "haproxy",
        title: "HAProxy",
        role: Role::Peer,
        program: "/usr/sbin/haproxy",
        arguments: &["-db", "-f", "http-haproxy.cfg"],
    },
    Contender {
        name: "nginx",
        title: "nginx",
        role: Role::Peer,
        program: "/usr/sbin/nginx",
        arguments: &["-p", ".", "-c", "http-nginx.conf"],
    },
    Contender {
        name: "floor",
        title: "kernel's share",
        role: Role::Floor,
        program: "",
        arguments: &["http-floor"],
    },
];

/// A balancer that serves, and what it needs to.
pub(super) struct Serving {
    process: Pinned,
    _nodes: Vec<Node>,
}

impl Serving {
    pub(super) fn id(&self) -> u32 {
        self.process.id()
    }
}

impl Contender {
    pub(super) fn start(
        &self,
        arguments: &Arguments,
        directory: &Path,
    ) -> std::io::Result<Serving> {
        let program = match self.role {
            Role::Ours => {
                let program = arguments.trunkline.clone().or_else(beside_us).unwrap_or_default();
                std::path::absolute(program)?
            }
            Role::Peer => PathBuf::from(self.program),
            Role::Floor => std::env::current_exe()?,
        };
        let process = Pinned::start(arguments.balancer_cpu, &program, self.arguments, directory)?;
        for _ in 0..START_CHECKS {
            if TcpStream::connect(super::wrk::PLAIN).is_ok() {
                break;
            }
            std::thread::sleep(START_CHECK_EVERY);
        }
        let nodes = if self.role == Role::Ours { announced() } else { Vec::new() };
        std::thread::sleep(SETTLE_TIME);
        Ok(Serving { process, _nodes: nodes })
    }
}

/// The nodes of `http-nodes.conf`, and for WebSocket the echo of this process: with the first of them, since
/// two at one address are one that restarts.
fn announced() -> Vec<Node> {
    let echo = super::echo::ADDRESS.port().to_string();
    let rows = [("n1", "17101", echo.as_str()), ("n2", "17102", "")];
    let node = |(name, port, echo): (&str, &str, &str)| {
        let node = Node::bind(name).property("httpPort", port).property("jvmRoute", name);
        let mut node = node.property("wsPort", echo);
        node.announce(&[BALANCER_INTERNAL]);
        node
    };
    rows.into_iter().map(node).collect()
}

const START_CHECKS: u32 = 100;
const START_CHECK_EVERY: Duration = Duration::from_millis(50);
/// Nodes are known, pools are empty.
const SETTLE_TIME: Duration = Duration::from_millis(700);
