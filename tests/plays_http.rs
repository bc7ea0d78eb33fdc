//! HTTP through the whole process (`http-smpp-registry.md` 1, 6.1).

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread::spawn;

use tests::{Node, Setup};

/// A node's HTTP port: answers every request with its name and closes.
fn web_server(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            spawn(move || {
                let mut head = Vec::new();
                let mut buffer = [0; 4096];
                while !head.windows(4).any(|it| it == b"\r\n\r\n") {
                    match stream.read(&mut buffer) {
                        Ok(count @ 1..) => head.extend_from_slice(&buffer[..count]),
                        _ => return,
                    }
                }
                let bytes = name.len();
                let _ = write!(
                    stream,
                    "HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\nConnection: close\r\n\r\n{name}"
                );
            });
        }
    });
    address
}

fn get(from: SocketAddr, target: &str) -> String {
    let mut stream = TcpStream::connect(from).unwrap();
    write!(stream, "GET {target} HTTP/1.1\r\nHost: lb\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn requests_reach_nodes_in_turn_and_are_counted() {
    let lb = Setup::two_entry().set("httpPort", "HTTP").start();
    lb.wait_log(&format!("HTTP LB listening on port {}", lb.http().port()));
    let nodes: Vec<Node> = ["one", "two"]
        .map(|name| {
            let port = web_server(name).port().to_string();
            lb.announced(Node::bind(name).property("httpPort", &port))
        })
        .into();
    lb.wait_nodes(nodes.len());
    let mut served: Vec<String> = (0..4)
        .map(|_| {
            let answer = get(lb.http(), "/app?fName=a");
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
            answer.rsplit("\r\n").next().unwrap().to_owned()
        })
        .collect();
    served.sort();
    assert_eq!(served, ["one", "one", "two", "two"]);
    assert_eq!(lb.stat("NumberOfHttpRequests"), 4);
    assert_eq!(lb.stat("NumberOfHttpBytesToClient"), 12);
}
