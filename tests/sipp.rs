//! sipp as caller and as node: a peer that nobody here wrote. No call may fail.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use tests::{Balancer, Node, Peer, Setup, free_port, is_installed, wait_for};

/// A sipp process in a directory of its own; killed when dropped.
struct Sipp {
    child: Child,
    directory: PathBuf,
}

impl Sipp {
    fn start(arguments: &[&str]) -> Sipp {
        let name =
            format!("trunkline-sipp-{}-{}", std::process::id(), Peer::bind("x").address().port());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory).unwrap();
        let child = Command::new("sipp")
            .args(arguments)
            .args(["-i", "127.0.0.1", "-nostdin", "-trace_err"])
            .current_dir(&directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Sipp { child, directory }
    }

    /// Waits for its end; 0 says that every call succeeded.
    fn finish(&mut self, what: &str) {
        let status = wait_for(what, || self.child.try_wait().unwrap());
        assert!(status.success(), "{what}: {status}\n{}", self.errors());
    }

    fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    fn errors(&self) -> String {
        let files = std::fs::read_dir(&self.directory).unwrap().flatten();
        files.filter_map(|it| std::fs::read_to_string(it.path()).ok()).collect()
    }
}

impl Drop for Sipp {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// `name.xml` of this crate's data.
fn scenario(name: &str) -> String {
    format!("{}/data/sipp/{name}.xml", env!("CARGO_MANIFEST_DIR"))
}

/// A free port; sipp binds it a moment later.
fn port() -> String {
    free_port().to_string()
}

/// Whether somebody has the port. Binding it to find out would be in sipp's way.
fn is_bound(port: &str) -> bool {
    let ending = format!(":{:04X}", port.parse::<u16>().unwrap());
    let tables = ["udp", "udp6", "tcp", "tcp6"].map(|it| format!("/proc/net/{it}"));
    let text: String = tables.iter().filter_map(|it| std::fs::read_to_string(it).ok()).collect();
    text.lines().any(|it| it.split_whitespace().nth(1).is_some_and(|it| it.ends_with(&ending)))
}

/// Two sipp servers as nodes. sipp sends no heartbeats, so somebody else does for it.
fn servers(lb: &Balancer, scenario: &[&str], mode: &str) -> Vec<(Sipp, Node)> {
    let servers: Vec<_> = (0..2)
        .map(|at| {
            let port = port();
            let mut sipp = Sipp::start(&[scenario, &["-p", &port, "-t", mode]].concat());
            wait_for("sipp to listen", || {
                assert!(!sipp.has_ended(), "{}", sipp.errors());
                is_bound(&port).then_some(())
            });
            let node = Node::bind(&format!("sipp{at}")).property("udpPort", &port);
            (sipp, lb.announced(node.property("tcpPort", &port)))
        })
        .collect();
    lb.wait_nodes(2);
    servers
}

#[test]
fn the_built_in_caller_and_callee_lose_no_call() {
    if !is_installed("sipp") {
        return;
    }
    for (mode, shards) in [("u1", "1"), ("t1", "1"), ("u1", "2"), ("t1", "2")] {
        let lb = Setup::two_entry().set("shards", shards).start();
        let _servers = servers(&lb, &["-sn", "uas"], mode);
        let target = lb.external.to_string();
        let load = ["-sn", "uac", &target, "-m", "200", "-r", "100", "-t", mode, "-p", &port()];
        Sipp::start(&load).finish(&format!("uac to uas over {mode}, {shards} shards"));
    }
}

/// A controller calls one server without saying what it wants, asks another with what the first offers, and
/// tells the first what the other said (RFC 3725 §4.1). Its two processes talk beside us, and give both calls
/// one Call-ID, so that each server has a balancer of its own.
#[test]
fn a_third_party_brings_two_servers_together() {
    if !is_installed("sipp") {
        return;
    }
    const CALLS: &str = "20";
    let [one, other] = [(); 2].map(|()| Setup::two_entry().start());
    let _servers = [(&one, "3pcc-A"), (&other, "3pcc-B")].map(|(lb, side)| {
        servers(lb, &["-sn", side], "u1") // two of each: calls alternate
    });
    let between = port();
    let beside = format!("127.0.0.1:{between}");
    let controller = |side: &str, lb: &Balancer| {
        let target = lb.external.to_string();
        let load = ["-sn", side, &target, "-3pcc", &beside, "-m", CALLS, "-r", "20", "-p", &port()];
        Sipp::start(&load)
    };
    let mut second = controller("3pcc-C-B", &other);
    wait_for("the second half to listen", || {
        assert!(!second.has_ended(), "{}", second.errors());
        is_bound(&between).then_some(())
    });
    // It ends well only if the other half has had its answers: what they offer is what it accepts.
    controller("3pcc-C-A", &one).finish("the first half");
    for lb in [&one, &other] {
        let methods = &lb.lbstat()["NumberOfRequestsProcessedByMethod"];
        assert!(methods["INVITE"].as_u64() >= Some(20), "{methods}");
    }
}

#[test]
fn the_built_in_branching_caller_and_callee_lose_no_call() {
    if !is_installed("sipp") {
        return;
    }
    let lb = Setup::two_entry().start();
    let _servers = servers(&lb, &["-sn", "branchs"], "u1");
    let target = lb.external.to_string();
    Sipp::start(&["-sn", "branchc", &target, "-m", "50", "-r", "50", "-p", &port()])
        .finish("branchc");
}

#[test]
fn phones_register_through_a_challenge() {
    if !is_installed("sipp") {
        return;
    }
    for mode in ["u1", "t1"] {
        let lb = Setup::two_entry().start();
        let _servers = servers(&lb, &["-sf", &scenario("register_uas")], mode);
        let (file, target) = (scenario("register_uac"), lb.external.to_string());
        Sipp::start(&["-sf", &file, &target, "-m", "200", "-r", "100", "-t", mode, "-p", &port()])
            .finish(&format!("register over {mode}"));
    }
}

#[test] // the original's performance scenario: the callee hangs up, so Record-Route order matters
fn calls_that_follow_their_route_sets_in_both_directions_lose_none() {
    if !is_installed("sipp") {
        return;
    }
    for mode in ["u1", "t1"] {
        let lb = Setup::two_entry().start();
        let _servers = servers(&lb, &["-sf", &scenario("routes_uas")], mode);
        let (file, target) = (scenario("routes_uac"), lb.external.to_string());
        Sipp::start(&["-sf", &file, &target, "-m", "200", "-r", "100", "-t", mode, "-p", &port()])
            .finish(&format!("routes over {mode}"));
    }
}
