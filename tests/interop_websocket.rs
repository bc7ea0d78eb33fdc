//! WebSocket with peers that nobody here wrote: SIP.js in a browser, and the cases of the Autobahn suite
//! through two Python libraries.

use std::process::{Command, Stdio};

use tests::Transport::{Udp, Ws, Wss};
use tests::{Phones, Registrar, Setup, Transport, find_program, keys};

/// Both phones register and one calls the other, through nodes that speak one transport alone.
fn browsers_call_each_other(setup: Setup, inner: Transport) {
    let Some(mut phones) = Phones::start() else { return };
    let lb = setup.set("sip.internalTransport", inner.lower()).start();
    let registrar = Registrar::start(&lb, inner);
    let server = format!("wss://{}/", lb.external_of(Wss));
    for user in ["alice", "bob"] {
        phones.tell(&format!("open {user} {user} {server}"));
        let contact = registrar.contact_of(user).expect("a contact");
        assert!(!contact.contains(".invalid"), "{contact}");
        assert!(contact.contains("transport=wss;flow="), "{contact}");
    }
    for (caller, callee) in [("alice", "bob"), ("bob", "alice")] {
        phones.tell(&format!("call {caller} {callee}"));
        for user in [caller, callee] {
            phones.tell(&format!("expect {user} Established"));
        }
        phones.tell(&format!("info {caller} how are you"));
        phones.tell(&format!("expect {callee} info how are you"));
        phones.tell(&format!("info {callee} fine"));
        phones.tell(&format!("expect {caller} info fine"));
        phones.tell(&format!("bye {callee}"));
        for user in [caller, callee] {
            phones.tell(&format!("expect {user} Terminated"));
        }
    }
    for method in ["REGISTER", "INVITE", "BYE"] {
        let count = registrar.requests(method).len();
        assert_eq!(count, 2, "{method}: each once, and none twice");
    }
    assert_eq!(lb.dropped("connection_gone"), 0);
}

#[test]
fn two_browsers_register_over_wss_and_call_each_other_through_nodes_on_udp() {
    browsers_call_each_other(Setup::every_transport(), Udp);
}

#[test]
fn they_do_so_from_whichever_shard_has_their_connections() {
    browsers_call_each_other(Setup::every_transport().set("shards", "4"), Udp);
}

#[test]
fn they_do_so_where_only_secure_websocket_is_open_although_they_call_it_ws() {
    browsers_call_each_other(Setup::two_entry().certified().set("externalWssPort", "WSS"), Udp);
}

#[test]
fn two_browsers_call_each_other_through_nodes_on_websocket_plain_and_secure() {
    for inner in [Ws, Wss] {
        browsers_call_each_other(Setup::every_transport().set("shards", "2"), inner);
    }
}

#[test]
fn a_browser_sees_its_connection_end_when_the_balancer_stops() {
    let Some(mut phones) = Phones::start() else { return };
    let lb = Setup::every_transport().set("sip.internalTransport", "udp").start();
    let _registrar = Registrar::start(&lb, Udp);
    phones.tell(&format!("open alice alice wss://{}/", lb.external_of(Wss)));
    lb.signal(nix::sys::signal::Signal::SIGTERM);
    phones.tell("expect alice disconnected");
    assert!(lb.wait_exit().success());
}

/// Debian's own Python, which is the one that Debian's packages are for.
fn python() -> Option<std::path::PathBuf> {
    let python = std::path::PathBuf::from("/usr/bin/python3");
    let python = if python.is_file() { Some(python) } else { find_program("python3") };
    let has_them = python.as_ref().is_some_and(|python| {
        let mut check = Command::new(python);
        check.args(["-c", "import websockets, wsproto"]).stderr(Stdio::null());
        check.status().is_ok_and(|it| it.success())
    });
    if has_them {
        return python;
    }
    let what = "python3 with the packages websockets and wsproto";
    assert!(std::env::var_os("CI").is_none(), "{what} is not installed, and CI needs it");
    eprintln!("SKIPPED: {what} is not installed");
    None
}

#[test]
fn the_cases_of_the_autobahn_suite_pass() {
    let Some(python) = python() else { return };
    let lb = Setup::every_transport().start();
    let nodes = lb.nodes(1);
    nodes[0].answers(|request| {
        let body = request.body.clone();
        vec![request.reply(200, "OK").with_body("text/plain", body)]
    });
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/python/websocket_conformance.py");
    let output = Command::new(python)
        .arg(program)
        .args([Ws, Wss].map(|it| lb.external_of(it).port().to_string()))
        .arg(keys().path("ca.pem"))
        .arg((64 * 1024).to_string())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.contains(" cases, 0 failed"), "{text}");
}
