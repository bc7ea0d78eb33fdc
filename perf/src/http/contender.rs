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
    program: &'static str,
    arguments: &'static [&'static str],
}

/// Everything that can be compared.
pub(super) const CONTENDERS: &[Contender] = &[
    Contender {
        name: "trunkline",
        title: "Trunkline",
        program: "",
        arguments: &["http-trunkline.properties"],
    },
    Contender {
        name: "trunkline-waits",
        title: "Trunkline, `coalesceMicros=200`",
        program: "",
        arguments: &["-DcoalesceMicros=200", "http-trunkline.properties"],
    },
    Contender {
        name: "haproxy",
        title: "HAProxy",
        program: "/usr/sbin/haproxy",
        arguments: &["-db", "-f", "http-haproxy.cfg"],
    },
    Contender {
        name: "nginx",
        title: "nginx",
        program: "/usr/sbin/nginx",
        arguments: &["-p", ".", "-c", "http-nginx.conf"],
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
    /// Whether it is compared with the others.
    pub(super) const fn is_ours(&self) -> bool {
        self.program.is_empty()
    }

    pub(super) fn start(
        &self,
        arguments: &Arguments,
        directory: &Path,
    ) -> std::io::Result<Serving> {
        let program = if self.is_ours() {
            let program = arguments.trunkline.clone().or_else(beside_us).unwrap_or_default();
            std::path::absolute(program)?
        } else {
            PathBuf::from(self.program)
        };
        let process = Pinned::start(arguments.balancer_cpu, &program, self.arguments, directory)?;
        for _ in 0..START_CHECKS {
            if TcpStream::connect(super::wrk::PLAIN).is_ok() {
                break;
            }
            std::thread::sleep(START_CHECK_EVERY);
        }
        let nodes = if self.is_ours() { announced() } else { Vec::new() };
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
