//! The balancer and its peer as processes on a core of their own.

use crate::compare::contender::beside_us;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use protocols::sip::Transport;
use tools::process::CpuTime;

use super::{Arguments, Bench, loopback};

/// Ports of a run.
pub(super) struct Ports {
    external: u16,
    internal: u16,
    /// HAProxy's.
    pub(super) peer: u16,
    pub(super) nodes: [u16; 4],
}

pub(super) const PORTS: Ports = Ports {
    external: 16_160,
    internal: 16_170,
    peer: 16_180,
    nodes: [17_101, 17_102, 17_103, 17_104],
};

/// A process that runs until this is dropped.
pub(super) struct Balancer(Child);

impl Balancer {
    /// Ours, one shard, all five transports on both legs, with further lines in its file.
    pub(super) fn start(
        arguments: &Arguments,
        bench: &Bench,
        further: &str,
    ) -> std::io::Result<Balancer> {
        let mut file = String::from("host=127.0.0.1\nshards=1\nisSendTrying=false\n");
        for (side, first) in [("external", PORTS.external), ("internal", PORTS.internal)] {
            for (port, transport) in (first..).zip(Transport::ALL) {
                let name = transport.as_param();
                let (head, tail) = name.split_at(1);
                let _ = writeln!(file, "{side}{}{tail}Port={port}", head.to_uppercase());
            }
        }
        let store = bench.certificate.display();
        let _ = writeln!(file, "javax.net.ssl.keyStore={store}");
        let _ = writeln!(file, "javax.net.ssl.trustStore={}", bench.authority.display());
        file.push_str(further);
        let path = bench.directory.join("trunkline.properties");
        std::fs::write(&path, file)?;
        let program = arguments.trunkline.clone().or_else(beside_us).unwrap_or_default();
        Balancer::launch(arguments, bench, program, &[path.display().to_string()])
    }

    /// HAProxy: ends TLS, and has nothing to do behind it.
    pub(super) fn haproxy(arguments: &Arguments, bench: &Bench) -> std::io::Result<Balancer> {
        let file = format!(
            "global\n  nbthread 1\n  maxconn 4096\ndefaults\n  mode http\n  timeout client 10s\n  \
             timeout server 10s\n  timeout connect 1s\nfrontend tls\n  bind 127.0.0.1:{} ssl crt {}\n  \
             http-request return status 200\n",
            PORTS.peer,
            bench.certificate.display()
        );
        let path = bench.directory.join("haproxy.cfg");
        std::fs::write(&path, file)?;
        let words = ["-db".to_owned(), "-f".to_owned(), path.display().to_string()];
        Balancer::launch(arguments, bench, HAPROXY.into(), &words)
    }

    fn launch(
        arguments: &Arguments,
        bench: &Bench,
        program: PathBuf,
        words: &[String],
    ) -> std::io::Result<Balancer> {
        let log = std::fs::File::create(bench.directory.join("log"))?;
        // Through taskset, so that whatever it starts is pinned from its first instruction.
        let child = Command::new("taskset")
            .args(["-c", &arguments.balancer_cpu.to_string()])
            .arg(std::path::absolute(program)?)
            .args(words)
            .current_dir(&bench.directory)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        std::thread::sleep(START_TIME);
        Ok(Balancer(child))
    }

    /// Where ours listens for callers.
    pub(super) fn external(&self, transport: Transport) -> SocketAddr {
        let at = Transport::ALL.iter().position(|it| *it == transport).unwrap_or(0);
        loopback(PORTS.external + u16::try_from(at).unwrap_or(0))
    }

    /// Where ours listens for heartbeats.
    pub(super) fn heartbeats(&self) -> SocketAddr {
        loopback(PORTS.internal)
    }

    /// CPU time of all its threads.
    pub(super) fn cpu(&self) -> CpuTime {
        CpuTime::of_tree(self.0.id())
    }

    /// Resident memory, KiB.
    pub(super) fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id()));
        let status = status.unwrap_or_default();
        let line = status.lines().find_map(|it| it.strip_prefix("VmRSS:"));
        line.and_then(|it| it.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.0.id()).unwrap_or(i32::MAX));
        let _ = kill(pid, Signal::SIGKILL);
        let _ = self.0.wait();
    }
}

/// Where Debian installs it.
pub(super) const HAPROXY: &str = "/usr/sbin/haproxy";
const START_TIME: Duration = Duration::from_millis(1000);
