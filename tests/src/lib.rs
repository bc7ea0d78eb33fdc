//! The whole thing under test: a real `trunkline` process, scripted SIP peers, pretend nodes, a packet
//! sprayer and a stand-in API server of Kubernetes, all on loopback.
//!
//! Nothing here reads with the parser under test: a harness that reads with the code it checks agrees with
//! its mistakes. Only [`sim`] knows the relay, which it drives in place of the process. A play never sleeps a fixed time; it waits for an event with a generous
//! deadline ([`PATIENCE`]), so a slow machine makes it slow, not red. That nothing happens is shown by
//! a later event that must come after it, or by a counter of the balancer.

mod balancer;
mod channel;
mod dialog;
mod java;
mod json;
mod keys;
mod kubernetes;
mod message;
pub mod name_server;
mod namespaces;
mod node;
mod peer;
mod phones;
mod registrar;
mod secure;
pub mod sim;
pub mod smpp;
mod sprayer;
pub mod web;

use std::time::{Duration, Instant};

pub use balancer::{Addresses, Balancer, NodeEntry, Setup, trunkctl, trunkline};
pub use dialog::Dialog;
pub use java::{JavaNode, Layout};
pub use json::{JsonBeats, post};
pub use keys::{Keys, Signed, keys};
pub use kubernetes::{ApiServer, Pod};
pub use message::{Message, Uri, param};
pub use namespaces::Namespaces;
pub use node::{Node, first_to_get, who_got};
pub use peer::{Link, Peer, Received, Transport};
pub use phones::Phones;
pub use registrar::Registrar;
pub use secure::{SecureClient, rest, tcp};
pub use sprayer::Sprayer;
pub use tools::ports::free as free_port;

/// How long an event may take before the play fails. Generous: the machine may be building elsewhere.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `happened` gives a value.
///
/// # Panics
///
/// After [`PATIENCE`], naming `what`.
pub fn wait_for<T>(what: &str, mut happened: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = happened() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Runs a program to its end, with nothing to read, and returns what it printed.
///
/// # Panics
///
/// When it cannot be started or fails; what it said is shown.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let mut command = std::process::Command::new(program);
    let output = command.args(arguments).stdin(std::process::Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {text}{error}");
    text
}

/// Whether `program` can be started; if not, says so loudly. Under `CI` a missing peer is a failure,
/// because a skipped test that nobody sees is a lie.
///
/// # Panics
///
/// When `CI` is set and the program is missing.
pub fn is_installed(program: &str) -> bool {
    if find_program(program).is_some() {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "{program} is not installed, and CI needs it");
    eprintln!("SKIPPED: {program} is not installed");
    false
}

/// Where a program is.
pub fn find_program(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|it| it.join(program)).find(|it| it.is_file())
}
