//! `trunkctl` as people run it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // tests may

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};

const INVITE: &str = "INVITE sip:bob@example.com SIP/2.0
Via: SIP/2.0/UDP 10.0.0.1:5099;branch=z9hG4bKabc
Max-Forwards: 70
From: <sip:alice@example.com>;tag=1
To: <sip:bob@example.com>
Call-ID: call-1
CSeq: 1 INVITE
Contact: <sip:alice@10.0.0.1:5099>
Content-Length: 0

";

fn file(name: &str, text: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("trunkctl-{name}-{}", std::process::id()));
    std::fs::write(&path, text).unwrap();
    path
}

/// Output, errors and exit code.
fn run(arguments: &[&str], input: &str) -> (String, String, i32) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_trunkctl"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may end without reading.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr), output.status.code().unwrap())
}

#[test]
fn check_shows_values_with_their_sources_and_fails_on_errors() {
    let good = file("good", "host=127.0.0.1\nexternalUdpPort=5060\nnodeTimout=1\n");
    let (said, _, code) = run(&["check", good.to_str().unwrap(), "-DnodeTimeout=7000"], "");
    assert_eq!(code, 0, "{said}");
    for want in ["nodeTimeout", "7000", "nodeTimout", "5060"] {
        assert!(said.contains(want), "no {want} in {said}");
    }
    let bad = file("bad", "host=127.0.0.1\nexternalUdpPort=lots\n");
    let (said, _, code) = run(&["check", bad.to_str().unwrap()], "");
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("externalUdpPort") && said.contains(":2"), "{said}");
    let (_, said, code) = run(&["check", "/nonexistent"], "");
    assert!(code == 1 && said.contains("/nonexistent: No such file"), "{said}");
    let (_, said, code) = run(&["chekc", "x"], "");
    assert!(code == 2 && said.contains("Unrecognized argument: chekc"), "{said}");
    let _ = (std::fs::remove_file(good), std::fs::remove_file(bad));
}

#[test]
fn check_tells_what_of_a_log4j_file_counts() {
    let good = file("logged", "host=127.0.0.1\nexternalUdpPort=5060\n");
    let log4j = file(
        "log4j",
        "<c><appender name='A' class='RollingFileAppender'><param name='File' value='lb.log'/>\
         <param name='MaxFileSize' value='1MB'/></appender><logger name='x'/><root>\
         <priority value='WARN'/><appender-ref ref='A'/><appender-ref ref='B'/></root></c>",
    );
    let at = log4j.display();
    let argument = format!("-DlogConfigFile={at}");
    let (said, _, code) = run(&["check", good.to_str().unwrap(), &argument], "");
    let want = format!(
        "\n{at}: level WARN; to lb.log, 1048576 bytes and 1 backups\n\
         {at}: warning: there is no appender \"B\"\n\
         {at}: warning: <logger> has no effect: there is one level for everything\n"
    );
    assert!(code == 0 && said.ends_with(&want), "{said}");
    let (said, _, code) = run(&["check", good.to_str().unwrap(), "-DlogConfigFile=/none"], "");
    assert!(
        code == 0 && said.ends_with("\n/none: warning: No such file or directory (os error 2)\n"),
        "{said}"
    );
    let _ = (std::fs::remove_file(good), std::fs::remove_file(log4j));
}

/// As `--help | head -1`.
#[test]
fn help_of_every_program_bears_a_reader_that_leaves() {
    let programs = [
        (env!("CARGO_BIN_EXE_trunkctl"), &["--help"][..]),
        (env!("CARGO_BIN_EXE_trunkctl"), &["check", "--help"]),
        (env!("CARGO_BIN_EXE_trunkload"), &["--help"]),
        (env!("CARGO_BIN_EXE_trunknode"), &["--help"]),
        (env!("CARGO_BIN_EXE_xtask"), &["--help"]),
    ];
    for (program, arguments) in programs {
        let start = |output: Stdio| {
            Command::new(program).args(arguments).stdout(output).stderr(Stdio::piped()).spawn()
        };
        let said = start(Stdio::piped()).unwrap().wait_with_output().unwrap();
        assert!(said.status.success() && said.stdout.starts_with(b"Usage: "), "{program}");
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = start(writer.into()).unwrap().wait_with_output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && errors.is_empty(), "{program}: {errors}");
    }
    for program in [env!("CARGO_BIN_EXE_trunkload"), env!("CARGO_BIN_EXE_trunknode")] {
        let output = Command::new(program).arg("--wrong").output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{program}");
        assert!(errors.contains("--wrong") && errors.contains("--help"), "{errors}");
    }
}

#[test]
fn explain_follows_a_message_to_its_node() {
    let text = "host=127.0.0.1\nexternalUdpPort=5060\ninternalUdpPort=5065\n";
    let path = file("explain", text);
    let path = path.to_str().unwrap();
    let arguments = ["explain", path, "--source", "10.0.0.1:5099", "--node", "10.9.9.9:5080"];
    let (said, errors, code) = run(&arguments, INVITE);
    assert_eq!(code, 0, "{errors}");
    for want in ["10.0.0.1:5099", "10.9.9.9", "+ Via: SIP/2.0/UDP 127.0.0.1:5065", "forward"] {
        assert!(said.contains(want), "no {want} in {said}");
    }
    let (said, _, code) = run(&["explain", path], INVITE);
    assert!(code == 0 && said.contains("500"), "without a node: {said}");
    let fixed = "-DstaticNodes=10.8.8.8:5080,localhost:5082";
    let (said, _, code) = run(&["explain", path, fixed], INVITE);
    for want in ["10.8.8.8: candidate", "127.0.0.1: candidate", "forward: datagram to"] {
        assert!(code == 0 && said.contains(want), "static nodes are taken to live: {said}");
    }
    let wrong: [(&[&str], &str, &str); 5] = [
        (&["explain", path], "", "no SIP message"),
        (&["explain"], INVITE, "either FILE or --at"),
        (&["explain", path, "--node", "x"], INVITE, "--node x is not"),
        (&["explain", path, "--listener", "1.2.3.4:5"], INVITE, "127.0.0.1:5060/udp"),
        (&["explain", path, "--leg", "middle"], INVITE, "external or internal"),
    ];
    for (arguments, input, want) in wrong {
        let (_, said, code) = run(arguments, input);
        assert!(code == 1 && said.contains(want), "{arguments:?}: {said}");
    }
    let _ = std::fs::remove_file(path);
}

/// Answers requests one after the other and returns them.
fn serve(answers: &'static [&'static str]) -> (String, std::thread::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap().to_string();
    let thread = std::thread::spawn(move || {
        let mut requests = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            let mut buffer = [0; 4096];
            loop {
                let count = stream.read(&mut buffer).unwrap();
                request.extend_from_slice(&buffer[..count]);
                let text = String::from_utf8_lossy(&request);
                if text.contains("\r\n\r\n") && (text.starts_with("GET") || text.contains("CSeq")) {
                    break;
                }
            }
            requests.push(String::from_utf8(request).unwrap());
            stream.write_all(answer.as_bytes()).unwrap();
        }
        requests
    });
    (at, thread)
}

#[test]
fn a_running_balancer_is_asked() {
    let (at, server) = serve(&[
        "HTTP/1.1 200 OK\r\n\r\n{\"Metrics\":{\"activeNodes\":2}}",
        "HTTP/1.1 200 OK\r\n\r\n{\"Nodes info\":{}}",
        "HTTP/1.1 200 OK\r\n\r\nforward: there",
        "HTTP/1.1 404 Not Found\r\n\r\nNo such command.",
    ]);
    let (said, errors, code) = run(&["stat", &at], "");
    assert_eq!(code, 0, "{errors}");
    assert!(said.contains("    \"activeNodes\": 2\n") && said.contains("Nodes info"), "{said}");
    let arguments = ["explain", "--at", &at, "--source", "10.0.0.1:1", "--leg", "internal"];
    let (said, errors, code) = run(&arguments, INVITE);
    assert_eq!((said.as_str(), code), ("forward: there\n", 0), "{errors}");
    let (_, said, code) = run(&["explain", "--at", &at], INVITE);
    assert!(code == 1 && said.contains("404 Not Found: No such command."), "{said}");
    let requests = server.join().unwrap();
    let wanted = "POST /lbexplain?source=10.0.0.1:1&leg=internal HTTP/1.1\r\n";
    assert!(requests[2].starts_with(wanted), "{}", requests[2]);
    assert!(requests[2].contains("\r\nCSeq: 1 INVITE\r\n"), "{}", requests[2]);
}
