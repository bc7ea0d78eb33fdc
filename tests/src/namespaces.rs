//! Network namespaces with bridges between them: hosts of a small network, inside one machine. Made by
//! iproute2, which needs root; gone when dropped.

use std::fs::{self, File};
use std::net::IpAddr;
use std::process::Command;

use nix::sched::{CloneFlags, setns};

/// Hosts on two segments.
pub struct Namespaces {
    made: Vec<String>,
}

impl Namespaces {
    /// Namespaces by these names; one more holds the bridges `outside` and `inside`. `None`: this system
    /// does not let us, which is said loudly.
    ///
    /// # Panics
    ///
    /// When `CI` is set and they cannot be made.
    pub fn new(names: &[&str]) -> Option<Namespaces> {
        if !crate::is_installed("ip") {
            return None;
        }
        let mut it = Namespaces { made: Vec::new() };
        for name in [&["wire"], names].concat() {
            if let Err(why) = it.make(name) {
                assert!(std::env::var_os("CI").is_none(), "CI needs network namespaces: {why}");
                eprintln!("SKIPPED: network namespaces cannot be made here: {why}");
                return None;
            }
        }
        for bridge in ["outside", "inside"] {
            it.ip("wire", &format!("link add {bridge} type bridge forward_delay 0"));
            it.ip("wire", &format!("link set {bridge} up"));
        }
        Some(it)
    }

    fn make(&mut self, name: &str) -> Result<(), String> {
        let space = space(name);
        run(&["netns", "add", &space])?;
        self.made.push(space);
        self.try_ip(name, "link set lo up")
    }

    /// Gives a host a link to a bridge: its name, its MAC address, and its address.
    pub fn plug(&self, host: &str, bridge: &str, link: &str, mac: &str, ip: &str) {
        let (port, wire) = (format!("{host}-{link}"), space("wire"));
        let peer = format!("type veth peer name {port} netns {wire}");
        self.ip(host, &format!("link add {link} address {mac} {peer}"));
        self.ip("wire", &format!("link set {port} master {bridge} up"));
        self.ip(host, &format!("addr add {ip} dev {link}"));
        // Whoever comes up says so, and an address is answered for on its own link alone.
        self.sysctl(host, &format!("conf/{link}/arp_notify"), "1");
        self.sysctl(host, &format!("conf/{link}/arp_ignore"), "1");
    }

    /// Runs `ip` inside a namespace.
    ///
    /// # Panics
    ///
    /// If it fails.
    pub fn ip(&self, host: &str, arguments: &str) {
        self.try_ip(host, arguments).unwrap_or_else(|it| panic!("ip {arguments}: {it}"));
    }

    fn try_ip(&self, host: &str, arguments: &str) -> Result<(), String> {
        let space = space(host);
        let mut all = vec!["-n", &space];
        all.extend(arguments.split(' '));
        run(&all)
    }

    /// Sets one of the keys below `net/ipv4`.
    pub fn sysctl(&self, host: &str, key: &str, value: &str) {
        self.inside(host, || fs::write(format!("/proc/sys/net/ipv4/{key}"), value).unwrap());
    }

    /// Does something as that host: sockets that it opens, threads and processes that it starts are there.
    pub fn inside<T: Send>(&self, host: &str, act: impl FnOnce() -> T + Send) -> T {
        let file = File::open(format!("/run/netns/{}", space(host))).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(file, CloneFlags::CLONE_NEWNET).unwrap();
                act()
            });
            thread.join().unwrap_or_else(|it| std::panic::resume_unwind(it))
        })
    }

    /// Waits until a host reaches another one's address.
    pub fn wait_reach(&self, host: &str, ip: IpAddr) {
        // A datagram to a closed port comes back as an error if anybody is there.
        self.inside(host, || {
            let socket = std::net::UdpSocket::bind(("0.0.0.0", 0)).unwrap();
            socket.set_read_timeout(Some(std::time::Duration::from_millis(50))).unwrap();
            socket.connect((ip, 9)).unwrap();
            crate::wait_for(&format!("{ip} from {host}"), || {
                let _ = socket.send(b"?");
                let refused = socket.recv(&mut [0]).err().map(|it| it.kind());
                (refused == Some(std::io::ErrorKind::ConnectionRefused)).then_some(())
            });
        });
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for space in &self.made {
            let _ = run(&["netns", "del", space]);
        }
    }
}

/// Names are the machine's: other test processes have theirs.
fn space(name: &str) -> String {
    format!("trunkline-{}-{name}", std::process::id())
}

fn run(arguments: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(arguments).output().map_err(|it| it.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
}
