//! The systemd unit and the container file name programs, packages, paths and keys that exist. Nothing is
//! executed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // tests may

use std::path::Path;

use engine::config::{keys, load};

const UNIT: &str = include_str!("../trunkline.service");
const CONTAINER: &str = include_str!("../Containerfile");
const PACKAGES: [&str; 2] =
    [include_str!("../Cargo.toml"), include_str!("../../shards/Cargo.toml")];
const PROGRAM: &str = "/usr/local/bin/trunkline";
const CONFIGURATION: &str = "/etc/trunkline/lb.properties";

/// The value of a line `Name=value` of the unit.
fn entry(name: &str) -> &'static str {
    let line = UNIT.lines().find_map(|it| it.strip_prefix(name)?.strip_prefix('='));
    line.unwrap_or_else(|| panic!("no {name} in the unit"))
}

/// What follows each instruction of that name in the container file.
fn of(instruction: &str) -> Vec<Vec<&'static str>> {
    let lines = CONTAINER.lines().filter_map(|it| it.strip_prefix(instruction)?.strip_prefix(' '));
    lines.map(|it| it.split(' ').collect()).collect()
}

fn is_program(name: &str) -> bool {
    let is_named = |it: &&str| it.contains(&format!("name = \"{name}\""));
    PACKAGES.iter().any(is_named)
        || Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("src/bin/{name}.rs")).exists()
}

#[test]
fn the_unit_starts_programs_that_exist_with_arguments_that_they_take() {
    for (name, want) in [
        ("ExecStartPre", format!("/usr/local/bin/trunkctl check {CONFIGURATION}")),
        ("ExecStart", format!("{PROGRAM} {CONFIGURATION}")),
    ] {
        assert_eq!(entry(name), want);
        let program = Path::new(want.split(' ').next().unwrap()).file_name().unwrap();
        assert!(is_program(program.to_str().unwrap()), "{program:?}");
    }
    let help = std::process::Command::new(env!("CARGO_BIN_EXE_trunkctl")).arg("--help").output();
    let help = String::from_utf8(help.unwrap().stdout).unwrap();
    assert!(help.lines().any(|it| it.trim_start().starts_with("check ")), "{help}");
}

#[test]
fn the_unit_leaves_time_to_drain_and_sends_what_the_process_listens_to() {
    let stop = entry("TimeoutStopSec").parse::<u64>().unwrap();
    let drain = load("t", b"host=127.0.0.1\nexternalPort=5060\n", &[]).config.shutdown_timeout;
    assert!(stop > drain.as_secs(), "killed after {stop} s while it drains for {drain:?}");
    assert!(UNIT.contains(&format!("for shutdownTimeout ({} s by default)", drain.as_secs())));
    assert!(keys().any(|it| it.names.contains(&"shutdownTimeout")));
    assert_eq!((entry("KillSignal"), entry("ExecReload")), ("SIGTERM", "/bin/kill -HUP $MAINPID"));
    assert_eq!(entry("Restart"), "always");
    let memlock = entry("LimitMEMLOCK").strip_suffix('M').unwrap().parse::<u64>().unwrap() << 20;
    assert!(CONTAINER.contains(&format!("--ulimit memlock={memlock}:{memlock} ")));
    // What systemd closes must not be what the process needs.
    for call in ["io_uring_setup", "io_uring_enter", "io_uring_register"] {
        assert!(entry("SystemCallFilter").split(' ').any(|it| it == call), "{call}");
        assert!(CONTAINER.contains(call), "{call}");
    }
}

#[test]
fn the_container_builds_what_it_copies_and_starts_what_it_has() {
    let workspace = include_str!("../../Cargo.toml");
    let rust = workspace.lines().find_map(|it| it.strip_prefix("rust-version = ")).unwrap();
    let image = format!("docker.io/library/rust:{}-", rust.trim_matches('"'));
    assert!(of("FROM")[0][0].starts_with(&image), "{image}");

    let build = &of("RUN")[0];
    assert_eq!(build[..3], ["cargo", "build", "--release"]);
    let chosen: Vec<&str> = build.windows(2).filter(|it| it[0] == "-p").map(|it| it[1]).collect();
    for package in &chosen {
        let is_its = |it: &&str| it.contains(&format!("name = \"{package}\""));
        assert!(PACKAGES.iter().any(is_its), "{package}");
    }
    let copied = of("COPY").into_iter().find(|it| it[0] == "--from=build").unwrap();
    let (place, programs) = copied[1..].split_last().unwrap();
    for program in programs {
        let name = program.strip_prefix("/build/target/release/").unwrap();
        assert!(is_program(name), "{name}");
    }
    assert_eq!(of("ENTRYPOINT"), [[format!("[\"{PROGRAM}\"]")]]);
    assert_eq!(*place, PROGRAM.strip_suffix("trunkline").unwrap());
    assert!(programs.iter().any(|it| it.ends_with("/trunkline")), "{programs:?}");
    assert_eq!(of("CMD"), [[format!("[\"{CONFIGURATION}\"]")]]);
    assert!(
        CONTAINER.contains(&format!(":{CONFIGURATION}:ro ")),
        "what is mounted is what is read"
    );
    assert_eq!(of("STOPSIGNAL"), [["SIGTERM"]]);
}
