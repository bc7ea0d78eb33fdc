//! The demo, which is what a newcomer sees first: in a network namespace, since it wants ports of its own.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::{Namespaces, trunkline};

/// The last number of the first line that begins so.
fn figure(text: &str, row: &str) -> u64 {
    let line = text.lines().find(|it| it.trim_start().starts_with(row));
    let line = line.unwrap_or_else(|| panic!("no {row:?} in\n{text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap_or_else(|_| panic!("no number: {line}"))
}

/// Whether every call went well is other tests' claim, of machines that have the time for it: here the table
/// must be true.
#[test]
fn the_demo_says_what_became_of_every_call_names_taken_ports_and_stays_if_told() {
    let Some(net) = Namespaces::new(&["demo"]) else { return };
    let directory = std::env::temp_dir().join(format!("trunkline-demo-{}", std::process::id()));
    std::fs::create_dir(&directory).unwrap();
    let program = trunkline();
    let (text, status) = net.inside("demo", || {
        let _held = TcpListener::bind("127.0.0.1:5060").unwrap();
        let mut demo = Command::new(program)
            .arg("--stay")
            .env("TMPDIR", &directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut text = String::new();
        for line in BufReader::new(demo.stdout.take().unwrap()).lines() {
            text += &(line.unwrap() + "\n");
            if text.ends_with("/lbinfo\n") && text.contains("Everything stays up") {
                kill(Pid::from_raw(demo.id().try_into().unwrap()), Signal::SIGINT).unwrap();
            }
        }
        (text, demo.wait().unwrap())
    });

    let (_, port) = text.split_once("Port 5060 is taken; the demo uses ").expect(&text);
    let port = port.split(' ').next().unwrap();
    let target = format!("127.0.0.1:{port}");
    assert!(text.contains(&format!("clients call      {target} (UDP and TCP)")), "{text}");
    assert!(!text.contains("Port 5065") && text.contains("http://127.0.0.1:2006/lbstat"), "{text}");
    assert!(text.contains("node-1 is killed") && text.contains("node-1 is back"), "{text}");

    let of = |row| figure(&text, row);
    let completed = of("calls completed");
    assert_eq!(of("by node-1") + of("by node-2"), completed, "{text}");
    let (lost, hit) = (of("calls lost"), of("calls hit by the death"));
    assert_eq!(completed + lost + hit, of("calls placed"), "{text}");
    assert!(completed > 0, "{text}");
    let missed = of("in-dialog requests that missed their living node");
    let _ = of("in-dialog requests taken over from the dead node");
    for row in ["INVITE to 180", "INVITE to 200", "BYE to 200"] {
        let line = text.lines().find(|it| it.starts_with(row)).expect(&text);
        let figures = line[row.len()..].split_whitespace().map(|it| it.parse::<u64>().unwrap());
        let figures: Vec<u64> = figures.collect();
        assert!(figures.len() == 4 && figures.is_sorted() && figures[0] > 0, "{line}");
    }
    assert!(text.contains(" us of CPU per message over "), "{text}");

    assert!(
        text.contains(&format!("  sipp -sn uac -r 10 -m 100 -i 127.0.0.1 {target}\n")),
        "{text}"
    );
    assert!(text.ends_with("\nStopped.\n"), "{text}");
    assert_eq!(status.success(), lost == 0 && missed == 0, "{status} {text}");
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 0, "files are left behind");
    std::fs::remove_dir(directory).unwrap();
}
