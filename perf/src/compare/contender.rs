//! Who is compared, and how each is started. A new contender is one row.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tools::process::CpuTime;

use super::{Arguments, BALANCER, BALANCER_INTERNAL, NODES};

/// A way from callers to nodes.
pub(crate) struct Contender {
    /// Name for `--only`.
    pub(crate) name: &'static str,
    /// Name in the table.
    pub(crate) title: &'static str,
    /// Where callers send to.
    pub(crate) target: SocketAddr,
    /// It does not read SIP: nodes answer to the source, callers send everything to the target.
    pub(crate) blind: bool,
    /// Where nodes announce themselves.
    pub(crate) heartbeat_to: Option<SocketAddr>,
    /// `None` needs no process.
    command: fn(&Arguments) -> Option<CommandLine>,
}

/// Program and arguments.
type CommandLine = (PathBuf, Vec<String>);

/// Everything that can be compared.
pub(crate) const CONTENDERS: &[Contender] = &[
    Contender {
        name: "direct",
        title: "no balancer (generator alone)",
        target: NODES[0],
        blind: false,
        heartbeat_to: None,
        command: |_| None,
    },
    Contender {
        name: "floor",
        title: "receive + send in batches (kernel's share alone)",
        target: BALANCER,
        blind: true,
        heartbeat_to: None,
        command: |_| {
            let mut words = words(&["floor", "--listen", &BALANCER.to_string()]);
            words.extend(NODES.iter().flat_map(|node| ["--node".to_owned(), node.to_string()]));
            Some((std::env::current_exe().unwrap_or_default(), words))
        },
    },
    Contender {
        name: "trunkline",
        title: "Trunkline, one shard",
        target: BALANCER,
        blind: false,
        heartbeat_to: Some(BALANCER_INTERNAL),
        command: |arguments| {
            let program = arguments.trunkline.clone().or_else(beside_us).unwrap_or_default();
            Some((program, words(&["trunkline.properties"])))
        },
    },
    Contender {
        name: "kamailio",
        title: "Kamailio, stateless `forward()` + dispatcher",
        target: BALANCER,
        blind: false,
        heartbeat_to: None,
        command: |arguments| {
            let directory = absolute(&arguments.peers).to_string_lossy().into_owned();
            let mut rest =
                words(&["-DD", "-f", "kamailio.cfg", "-m", "64", "-M", "8", "-b", "4194304"]);
            // The fast allocators; -w because it leaves its directory before it reads its lists.
            rest.extend(words(&["-x", "fm", "-X", "fm", "-w", &directory]));
            Some(("/usr/sbin/kamailio".into(), rest))
        },
    },
    Contender {
        name: "nginx",
        title: "nginx `stream` UDP (does not read SIP)",
        target: BALANCER,
        blind: true,
        heartbeat_to: None,
        command: |arguments| {
            let file = absolute(&arguments.peers).join("nginx.conf");
            let text = |path: &Path| path.to_string_lossy().into_owned();
            let rest = ["-p".to_owned(), text(&scratch()), "-c".to_owned(), text(&file)];
            Some(("/usr/sbin/nginx".into(), rest.into()))
        },
    },
];

impl Contender {
    /// What it needs and does not have on this machine.
    pub(crate) fn missing(&self, arguments: &Arguments) -> Option<String> {
        let (program, _) = (self.command)(arguments)?;
        (!program.exists()).then(|| program.display().to_string())
    }

    /// Starts it on its CPU; `None` if it is no process.
    pub(crate) fn start(&self, arguments: &Arguments) -> std::io::Result<Option<Running>> {
        let Some((program, rest)) = (self.command)(arguments) else { return Ok(None) };
        let cpus = arguments.balancer_cpu.to_string();
        Running::start(self.name, &program, &rest, &cpus, &arguments.peers).map(Some)
    }
}

/// A balancer that runs until this is dropped.
pub(crate) struct Running(Child);

impl Running {
    /// Starts `program` in `directory` on `cpus` (a list as taskset takes it); what it says goes into the
    /// log of `name`.
    pub(crate) fn start(
        name: &str,
        program: &Path,
        rest: &[String],
        cpus: &str,
        directory: &Path,
    ) -> std::io::Result<Running> {
        std::fs::create_dir_all(scratch())?;
        let log = std::fs::File::create(scratch().join(format!("{name}.log")))?;
        // Through taskset, so that whatever it forks is pinned from its first instruction.
        Command::new("taskset")
            .args(["-c", cpus])
            .arg(absolute(program))
            .args(rest)
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .map(Running)
    }

    /// Memory that it holds, bytes.
    pub(crate) fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id()));
        let status = status.unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|it| it.split_whitespace().next()?.parse::<u64>().ok());
        kib.unwrap_or(0) * 1024
    }

    /// CPU time of all its processes.
    pub(crate) fn cpu(&self) -> CpuTime {
        CpuTime::of_tree(self.0.id())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        stop(&mut self.0);
    }
}

/// Asks a process to end, then waits, then kills it.
pub(crate) fn stop(child: &mut Child) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
    for check in 0..STOP_CHECKS {
        // The first one lets ours drain, the second ends it at once.
        if check < 2 {
            let _ = kill(pid, Signal::SIGTERM);
        }
        if matches!(child.try_wait(), Ok(Some(_))) {
            return;
        }
        std::thread::sleep(STOP_CHECK_EVERY);
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// The balancer of the same build.
pub(crate) fn beside_us() -> Option<PathBuf> {
    std::env::current_exe().ok()?.parent().map(|directory| directory.join("trunkline"))
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Where logs and process files of contenders go.
pub(crate) fn scratch() -> PathBuf {
    std::env::temp_dir().join("trunkline-perf")
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

const STOP_CHECKS: u32 = 100;
const STOP_CHECK_EVERY: Duration = Duration::from_millis(50);
