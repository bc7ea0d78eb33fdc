//! The torture messages of RFC 4475 and RFC 5118 against the live process: whatever becomes of each, the
//! process lives, nothing panics inside, and the next good call works.

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::PathBuf;

use tests::{Balancer, Node, Peer, Setup};

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

/// One family of a balancer that has both on both legs, as RFC 5118 is about the newer one.
struct Stage {
    lb: Balancer,
    external: SocketAddr,
    internal: SocketAddr,
    nodes: Vec<Node>,
    caller: Peer,
}

impl Stage {
    fn new(is_v6: bool) -> Stage {
        let lb = Setup::two_entry()
            .set("ipv6Host", "::1")
            .set("externalIpv6UdpPort", "EXTERNAL")
            .set("externalIpv6TcpPort", "EXTERNAL")
            .set("internalIpv6UdpPort", "INTERNAL")
            .set("internalIpv6TcpPort", "INTERNAL")
            .start();
        let of_family = |it: SocketAddr| if is_v6 { lb.v6(it.port()) } else { it };
        let (external, internal) = (of_family(lb.external), of_family(lb.internal));
        let bind = if is_v6 { Node::bind_v6 } else { Node::bind };
        let mut nodes = vec![bind("n0"), bind("n1")];
        for node in &mut nodes {
            node.announce(&[internal]);
            node.answers_calls();
        }
        lb.wait_nodes(nodes.len());
        let caller = if is_v6 { Peer::bind_v6("alice") } else { Peer::bind("alice") };
        Stage { caller: caller.through(external), lb, external, internal, nodes }
    }
}

#[test]
fn after_every_torture_message_the_next_call_works() {
    for is_v6 in [false, true] {
        let Stage { lb, external, nodes, caller, .. } = Stage::new(is_v6);
        let udp = UdpSocket::bind(SocketAddr::new(external.ip(), 0)).unwrap();
        for (name, bytes) in messages() {
            eprintln!("{name}, IPv6: {is_v6}"); // shown if the call below fails
            udp.send_to(&bytes, external).unwrap();
            let mut tcp = TcpStream::connect(external).unwrap();
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
}

#[test]
fn torture_answers_of_a_node_harm_nobody() {
    for is_v6 in [false, true] {
        let Stage { lb, internal, nodes, caller, .. } = Stage::new(is_v6);
        for (name, bytes) in messages() {
            // Only responses: requests of a node would leave for the hosts that the RFC names.
            if !bytes.starts_with(b"SIP/") {
                continue;
            }
            eprintln!("{name}, IPv6: {is_v6}");
            nodes[0].send_bytes(internal, &bytes);
            caller.call("sip:bob@example.com");
        }
        assert_eq!(lb.dropped("panic"), 0);
    }
}
