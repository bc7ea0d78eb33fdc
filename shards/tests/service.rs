//! The process as operators meet it: start and stop lines, signals, reload, the statistics port.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // tests may

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use tools::ports;

struct Service {
    child: Child,
    lines: Receiver<String>,
    file: PathBuf,
    port: u16,
    text: String,
}

fn file(name: &str, text: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("trunkline-{name}-{}", std::process::id()));
    std::fs::write(&path, text).unwrap();
    path
}

impl Service {
    fn start(name: &str, more: &str, arguments: &[&str]) -> Service {
        let port = ports::free();
        let (external, internal) = (ports::free(), ports::free());
        let text = format!(
            "host=127.0.0.1\nexternalUdpPort={external}\ninternalUdpPort={internal}\n\
             statisticPort={port}\nshards=1\nhttpPort=0\nrmiRegistryPort=0\n{more}"
        );
        let file = file(name, &text);
        let mut child = Command::new(env!("CARGO_BIN_EXE_trunkline"))
            .arg(format!("-mobicents-balancer-config={}", file.display()))
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = child.stdout.take().unwrap();
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            BufReader::new(output).lines().map_while(Result::ok).for_each(|it| {
                let _ = sender.send(it);
            });
        });
        let mut service = Service { child, lines, file, port, text };
        service.until(&format!("Load balancer statistic on port : {port}"));
        service
    }

    /// Lines up to one that contains `wanted`.
    fn until(&mut self, wanted: &str) -> Vec<String> {
        let (mut seen, end) = (Vec::new(), Instant::now() + Duration::from_secs(10));
        while Instant::now() < end {
            if let Ok(line) = self.lines.recv_timeout(Duration::from_millis(100)) {
                seen.push(line);
                if seen.last().unwrap().contains(wanted) {
                    return seen;
                }
            }
        }
        panic!("no line \"{wanted}\" in {seen:#?}");
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
    }

    fn get(&self, target: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        write!(stream, "GET {target} HTTP/1.1\r\nHost: lb\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn exit_code(&mut self) -> i32 {
        self.child.wait().unwrap().code().unwrap()
    }

    /// CPU ticks (10 ms) used so far.
    fn ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.file);
    }
}

fn assert_in_order(lines: &[String], wanted: &[&str]) {
    let mut rest = lines.iter();
    for text in wanted {
        assert!(rest.any(|it| it.contains(text)), "no \"{text}\" in its place: {lines:#?}");
    }
}

#[test]
fn a_sigterm_drains_then_stops_in_the_manuals_words() {
    let mut it = Service::start("drain", "shutdownTimeout=600\n", &[]);
    assert!(it.get("/health").starts_with("HTTP/1.1 200 "));
    let asked = Instant::now();
    it.signal("TERM");
    it.until("GracefulShutdown was called, stopping the Load Balancer into 600 ms.");
    assert!(TcpStream::connect(("127.0.0.1", it.port)).is_err(), "closed first");
    let lines = it.until("Node registry stopped.");
    assert!(asked.elapsed() >= Duration::from_millis(600), "{:?}", asked.elapsed());
    assert_in_order(
        &lines,
        &[
            " INFO main - Stopping the sip forwarder",
            " INFO main - Removing the following Listening Point external UDP 127.0.0.1 : ",
            " INFO main - Removing the following Listening Point internal UDP 127.0.0.1 : ",
            " INFO main - Sip forwarder SIP stack stopped",
            " INFO main - Unregistering the node registry",
            " INFO main - Stopping the node registry",
            " INFO main - Stopping node registry...",
            " INFO main - Node Expiration Task cancelled true",
            " INFO main - Node registry stopped.",
        ],
    );
    assert_eq!(it.exit_code(), 0);
}

#[test]
fn a_second_signal_stops_at_once() {
    let mut it = Service::start("second", "shutdownTimeout=60000\n", &[]);
    it.signal("INT");
    it.until("into 60000 ms.");
    let asked = Instant::now();
    it.signal("INT");
    it.until("Node registry stopped.");
    assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
    assert_eq!(it.exit_code(), 0);
}

#[test]
fn the_file_is_reloaded_on_change_and_on_sighup_and_a_broken_one_is_not() {
    let mut it = Service::start("reload", "nodeTimeout=5000\n", &[]);
    let write = |it: &Service, text: String| std::fs::write(&it.file, text).unwrap();
    write(&it, it.text.replace("nodeTimeout=5000", "nodeTimeout=6000"));
    let lines = it.until("Changed and applied: nodeTimeout");
    assert_in_order(&lines, &["INFO main - Configuration file changed, applying changes."]);
    write(&it, it.text.replace("shards=1", "shards=2").replace("=5000", "=soon"));
    it.signal("HUP");
    let lines = it.until("Problem reloading configuration");
    let named = format!("{}:8: error: nodeTimeout", it.file.display());
    assert!(lines.iter().any(|line| line.contains(&named)), "{lines:#?}");
    write(&it, it.text.replace("shards=1", "shards=2"));
    it.signal("HUP");
    let lines = it.until("Changed and applied: nodeTimeout");
    assert_in_order(&lines, &["needs a restart: shards"]);
}

#[test]
fn the_statistics_port_answers_its_commands() {
    let more = "securityRequired=true\nlogin=daddy\npassword=123456\nshutdownTimeout=100\n";
    let mut it = Service::start("admin", more, &["-DlogLevel=INFO"]);
    for (target, status) in [
        ("/lbstat", "200 OK"),
        ("/LBINFO", "200 OK"),
        ("/metrics", "200 OK"),
        ("/health", "200 OK"),
        ("/nothing", "404 Not Found"),
        ("/lbstop", "401 Unauthorized"),
        ("/lbloglevel?logLevel=DEBUG", "401 Unauthorized"),
        ("/lbloglevel?logLevel=DEBUG&login=daddy&password=123456", "200 OK"),
    ] {
        let answer = it.get(target);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{target}: {answer}");
    }
    let key = "login=daddy&password=123456";
    let rule = |node: &str| format!("/lbnoderegex?regex=(-)&{node}&{key}");
    assert!(it.get(&rule("ip=127.0.0.1&port=5080")).ends_with("\r\n\r\nRegex set"));
    assert!(it.get(&rule("x=y")).ends_with("\r\n\r\nRegex set"), "taken back");
    assert!(it.get(&format!("/lbnoderegex?regex=(&ip=::1&port=1&{key}")).contains(" 400 Bad "));
    for (page, want) in [
        ("/lbstat", "\"NumberOfRequestsProcessed\":0"),
        ("/lbinfo", "\"nodesIPv4\":[]"),
        ("/metrics", "# TYPE "),
    ] {
        let answer = it.get(page);
        assert!(answer.contains(want), "{page}: {answer}");
    }
    let message = "OPTIONS sip:a@example.com SIP/2.0\r\nVia: SIP/2.0/UDP 10.0.0.1;branch=z9hG4bK1\r\n\
        From: <sip:b@example.com>;tag=1\r\nTo: <sip:a@example.com>\r\nCall-ID: c\r\nCSeq: 1 OPTIONS\r\n\
        Max-Forwards: 70\r\n\r\n";
    let mut stream = TcpStream::connect(("127.0.0.1", it.port)).unwrap();
    let length = message.len();
    let head = "POST /lbexplain?source=10.0.0.1:5060 HTTP/1.1\r\nContent-Length:";
    write!(stream, "{head} {length}\r\n\r\n{message}").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("arrived from 10.0.0.1:5060") && answer.contains("500"), "{answer}");
    assert!(it.get("/lbstop?login=daddy&password=123456").starts_with("HTTP/1.1 200 OK\r\n"));
    it.until("Node registry stopped.");
    assert_eq!(it.exit_code(), 0);
}

#[test]
fn what_is_wrong_is_named_and_the_exit_code_says_whose_fault_it_is() {
    let taken = TcpListener::bind("0.0.0.0:0").unwrap();
    let taken = taken.local_addr().unwrap().port();
    let port =
        format!("host=127.0.0.1\nexternalUdpPort={}\nstatisticPort={taken}\n", ports::free());
    let broken = file("broken-start", "host=127.0.0.1\nexternalUdpPort=none\n");
    let occupied = file("occupied", &port);
    let cases = [
        (vec!["/nonexistent/lb.properties"], 1, "/nonexistent/lb.properties: No such file"),
        (vec![broken.to_str().unwrap()], 1, ":2: error: externalUdpPort"),
        (vec![occupied.to_str().unwrap()], 1, "statisticPort="),
        (vec!["--no-such"], 2, "Unrecognized argument"),
        (vec!["--version"], 0, "trunkline 0."),
    ];
    for (arguments, code, want) in cases {
        let output =
            Command::new(env!("CARGO_BIN_EXE_trunkline")).args(&arguments).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8(said).unwrap();
        assert!(said.contains(want), "{arguments:?}: {said}");
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    }
    let _ = (std::fs::remove_file(broken), std::fs::remove_file(occupied));
}

#[test]
fn the_start_lines_are_the_manuals_and_waiting_costs_nothing() {
    let port = ports::free();
    let text = format!("host=127.0.0.1\nexternalUdpPort={port}\nnodeTimeout=8400\n");
    let file = file("idle", &text);
    let child = Command::new(env!("CARGO_BIN_EXE_trunkline"))
        .arg(&file)
        .arg("-DheartbeatInterval=150")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (sender, lines) = channel();
    drop(sender);
    let mut it = Service { child, lines, file, port, text };
    let mut output = BufReader::new(it.child.stdout.take().unwrap());
    let mut lines = Vec::new();
    while !lines.last().is_some_and(|it: &String| it.contains("Sip Balancer started")) {
        let mut line = String::new();
        assert!(output.read_line(&mut line).unwrap() > 0, "{lines:#?}");
        lines.push(line);
    }
    assert_in_order(
        &lines,
        &[
            " INFO main - nodeTimeout=8400",
            " INFO main - heartbeatInterval=150",
            " INFO main - Node registry starting...",
            " INFO main - Node expiration task created",
            " INFO main - Node registry started",
            &format!("Sip Balancer started on external address 127.0.0.1, external port : {port}"),
        ],
    );
    std::thread::sleep(Duration::from_millis(300));
    let before = it.ticks();
    std::thread::sleep(Duration::from_secs(3));
    let used = it.ticks() - before;
    assert!(used <= 2, "{used} ticks of 10 ms in 3 s");
    let status = std::fs::read_to_string(format!("/proc/{}/status", it.child.id())).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kib: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kib < 32 * 1024, "{kib} KiB at rest; huge pages alone would take 32 MiB");
}
