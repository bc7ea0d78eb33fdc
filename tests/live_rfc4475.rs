//! The torture messages of RFC 4475 and RFC 5118 against the live process: whatever becomes of each, the
//! process lives, nothing panics inside, and the next good call works.

use std::fs;
use std::io::Write;
use std::net::{TcpStream, UdpSocket};
use std::path::PathBuf;

use tests::Setup;

fn messages() -> Vec<(String, Vec<u8>)> {
    let data = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("data");
    let files = ["rfc4475", "rfc5118"].iter().flat_map(|it| fs::read_dir(data.join(it)).unwrap());
    let mut messages: Vec<_> = files
        .map(|it| it.unwrap().path())
        .map(|it| (it.display().to_string(), fs::read(&it).unwrap()))
        .collect();
    messages.sort();
    assert!(messages.len() >= 49 + 10, "only {} messages", messages.len());
    messages
}

#[test]
fn after_every_torture_message_the_next_call_works() {
    let lb = Setup::two_entry().start();
    let nodes = lb.answering_nodes(2);
    let caller = lb.caller("alice");
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    for (name, bytes) in messages() {
        eprintln!("{name}"); // shown if the call below fails
        udp.send_to(&bytes, lb.external).unwrap();
        let mut tcp = TcpStream::connect(lb.external).unwrap();
        let _ = tcp.write_all(&bytes);
        let mut dialog = caller.call("sip:bob@example.com");
        caller.exchange(&mut dialog, "BYE");
        drop(tcp);
    }
    assert_eq!(lb.dropped("panic"), 0);
    assert!(lb.exit_status().is_none());
    let calls: usize = nodes.iter().map(|it| it.count("BYE")).sum();
    assert!(calls >= messages().len());
}

#[test]
fn torture_answers_of_a_node_harm_nobody() {
    let lb = Setup::two_entry().start();
    let nodes = lb.answering_nodes(2);
    let caller = lb.caller("alice");
    for (name, bytes) in messages() {
        // Only responses: requests of a node would leave for the hosts that the RFC names.
        if !bytes.starts_with(b"SIP/") {
            continue;
        }
        eprintln!("{name}");
        nodes[0].send_bytes(lb.internal, &bytes);
        caller.call("sip:bob@example.com");
    }
    assert_eq!(lb.dropped("panic"), 0);
}
