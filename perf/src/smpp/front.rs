//! Who is compared, and how each is started. A new front is one row.

use crate::compare::contender::beside_us;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tools::process::CpuTime;

use super::Arguments;

/// A way from ESMEs to SMSCs.
pub(super) struct Front {
    /// Name for `--only`.
    pub(super) name: &'static str,
    /// Name in the table.
    pub(super) title: &'static str,
    /// Where ESMEs connect to.
    pub(super) target: SocketAddr,
    /// Program and arguments; `None` needs no process.
    command: Option<(Program, &'static [&'static str])>,
}

/// What is started.
enum Program {
    /// The balancer.
    Own,
    /// A file.
    Peer(&'static str),
}

/// Everything that can be compared.
pub(super) const FRONTS: &[Front] = &[
    Front { name: "direct", title: "nothing (generator alone)", target: SERVERS[0], command: None },
    Front {
        name: "trunkline",
        title: "Trunkline, regular",
        target: FRONTS_AT[0],
        command: Some((Program::Own, &["smpp.properties"])),
    },
    Front {
        name: "trunkline-mux",
        title: "Trunkline, mux",
        target: FRONTS_AT[1],
        command: Some((
            Program::Own,
            &["-DmuxMode=true", "-DsmppPort=61776", "-DexternalUdpPort=61062", "smpp.properties"],
        )),
    },
    Front {
        name: "haproxy",
        title: "HAProxy, `mode tcp`",
        target: FRONTS_AT[2],
        command: Some((Program::Peer("/usr/sbin/haproxy"), &["-db", "-f", "smpp.haproxy.cfg"])),
    },
    Front {
        name: "haproxy-again",
        title: "HAProxy once more",
        target: FRONTS_AT[4],
        command: Some((
            Program::Peer("/usr/sbin/haproxy"),
            &["-db", "-f", "smpp.haproxy-again.cfg"],
        )),
    },
    Front {
        name: "nginx",
        title: "nginx, `stream`",
        target: FRONTS_AT[3],
        command: Some((Program::Peer("/usr/sbin/nginx"), &["-p", ".", "-c", "smpp.nginx.conf"])),
    },
];

impl Front {
    fn program(&self, arguments: &Arguments) -> Option<PathBuf> {
        Some(match self.command.as_ref()?.0 {
            Program::Peer(path) => path.into(),
            Program::Own => {
                let program = arguments.trunkline.clone().or_else(beside_us).unwrap_or_default();
                std::path::absolute(&program).unwrap_or(program)
            }
        })
    }

    /// What it needs and does not have on this machine.
    pub(super) fn missing(&self, arguments: &Arguments) -> Option<String> {
        let program = self.program(arguments)?;
        (!program.exists()).then(|| program.display().to_string())
    }

    /// Starts it on its CPU and waits until it listens; `None` if it is no process.
    pub(super) fn start(&self, arguments: &Arguments) -> std::io::Result<Option<Running>> {
        let (Some(program), Some((_, rest))) = (self.program(arguments), &self.command) else {
            return Ok(None);
        };
        // Peers leave files where they run.
        let scratch = std::env::temp_dir().join("trunkline-perf");
        std::fs::create_dir_all(&scratch)?;
        let log = std::fs::File::create(scratch.join(format!("smpp-{}.log", self.name)))?;
        let peers = std::path::absolute(&arguments.peers)?;
        let words = rest.iter().map(|word| match word.starts_with("smpp.") {
            true => peers.join(word).to_string_lossy().into_owned(),
            false => (*word).to_owned(),
        });
        // Through taskset, so that whatever it forks is pinned from its first instruction.
        let child = Command::new("taskset")
            .args(["-c", &arguments.front_cpu.to_string()])
            .arg(&program)
            .args(words)
            .current_dir(&scratch)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let running = Running(child);
        for _ in 0..CHECKS {
            std::thread::sleep(CHECK_EVERY);
            if TcpStream::connect(self.target).is_ok() {
                return Ok(Some(running));
            }
        }
        Err(std::io::Error::other(format!("{} does not listen on {}", self.name, self.target)))
    }
}

/// A front that runs until this is dropped.
pub(super) struct Running(Child);

impl Running {
    /// CPU time of all its processes.
    pub(super) fn cpu(&self) -> CpuTime {
        CpuTime::of_tree(self.0.id())
    }

    /// Resident memory of all its processes.
    pub(super) fn resident_bytes(&self) -> u64 {
        let read = |path: String| std::fs::read_to_string(path).unwrap_or_default();
        let mut pids = vec![self.0.id()];
        let mut kib = 0;
        while let Some(pid) = pids.pop() {
            let children = read(format!("/proc/{pid}/task/{pid}/children"));
            pids.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
            let status = read(format!("/proc/{pid}/status"));
            let line = status.lines().find_map(|it| it.strip_prefix("VmRSS:"));
            kib += line.and_then(|it| it.split_whitespace().next()?.parse().ok()).unwrap_or(0);
        }
        kib * 1024
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.0.id()).unwrap_or(i32::MAX));
        let _ = kill(pid, Signal::SIGTERM);
        for _ in 0..CHECKS {
            if matches!(self.0.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(CHECK_EVERY);
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// The same ports stand in the configurations.
pub(super) const SERVERS: [SocketAddr; 4] =
    [loopback(61_101), loopback(61_102), loopback(61_103), loopback(61_104)];
const FRONTS_AT: [SocketAddr; 5] =
    [loopback(61_775), loopback(61_776), loopback(61_777), loopback(61_778), loopback(61_779)];
const CHECKS: u32 = 60;
const CHECK_EVERY: Duration = Duration::from_millis(50);
