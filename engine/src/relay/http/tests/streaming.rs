//! Keep-alive, pipelining, backpressure, interim responses, HTTP/1.0, and bodies of any length.

use super::harness::{OK, World, get, post, status_of, web_node, web_nodes};
use crate::balance::testing::Numbers;
use crate::relay::stream::{Conn, Gone};

#[test]
fn connections_are_kept_on_both_sides_and_requests_choose_anew() {
    let mut world = World::new("", web_nodes(2));
    let client = world.open();
    let mut used = Vec::new();
    for _ in 0..4 {
        let node = world.ask(client, get("/"));
        world.send(node, OK);
        assert_eq!(world.take(client), OK);
        used.push(node);
    }
    assert_eq!(world.number(used[0]), 1);
    assert_eq!(world.number(used[1]), 2);
    assert_eq!(used[..2], used[2..], "out of the pool");
    let sticky = get("/").replace("\r\n\r\n", "\r\nCookie: JSESSIONID=x.n9\r\n\r\n");
    world.nodes(vec![web_node(1, ""), web_node(2, "jvmRoute=n9")]);
    for _ in 0..3 {
        let node = world.ask(client, &sticky);
        assert_eq!(node, used[1], "the cookie counts on a connection that served another node");
        world.send(node, OK);
    }
}

#[test]
fn a_node_that_closes_or_promises_little_is_not_reused() {
    let cases = [
        ("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", false),
        ("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", false),
        ("HTTP/1.1 200 OK\r\nKeep-Alive: timeout=1\r\nContent-Length: 2\r\n\r\nok", false),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\n", false),
        (
            "HTTP/1.1 200 OK\r\nKeep-Alive: timeout=5\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok",
            true,
        ),
    ];
    for (answer, is_kept) in cases {
        let mut world = World::new("", web_nodes(1));
        let client = world.open();
        let node = world.ask(client, get("/"));
        world.send(node, answer);
        assert_eq!(world.take(client), OK, "{answer}");
        assert_eq!(!world.is_gone(node), is_kept, "{answer}");
        assert!(!world.is_gone(client), "{answer}");
    }
    let mut world = World::new("", web_nodes(1));
    let client = world.open();
    let node = world.ask(client, get("/"));
    world.send(node, OK);
    world.send(node, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison");
    assert!(world.is_gone(node), "nobody asked");
    let node = world.ask(client, get("/"));
    world.send(node, OK);
    world.end(node);
    assert!(world.is_gone(node));
    let fresh = world.ask(client, get("/"));
    assert_ne!(fresh, node);
}

#[test]
fn idle_connections_to_nodes_grow_old() {
    let mut world = World::new("httpNodeIdleTimeout=3000", web_nodes(1));
    let client = world.open();
    let node = world.ask(client, get("/"));
    world.send(node, OK);
    world.pass(std::time::Duration::from_millis(2_999));
    assert!(!world.is_gone(node));
    world.pass(std::time::Duration::from_millis(1));
    assert!(world.is_gone(node));
    assert_ne!(world.ask(client, get("/")), node);
}

#[test]
fn pipelined_requests_are_answered_in_their_order() {
    let mut world = World::new("", web_nodes(3));
    let client = world.open();
    let node = world.ask(client, [get("/1"), post("/2", "two"), get("/3")].concat());
    assert_eq!(world.take(node), get("/1"), "one at a time");
    assert!(world.is_paused(client));
    let mut node = node;
    let mut answers = String::new();
    for number in 1..=3 {
        world.wire.order.clear();
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{number}");
        world.send(node, &answer);
        answers.push_str(&answer);
        assert_eq!(world.take(client), answer);
        if number < 3 {
            node = world.last_node().unwrap();
            let want = if number == 1 { post("/2", "two") } else { get("/3") };
            assert_eq!(world.take(node), want);
        }
    }
    assert!(!world.is_paused(client));
    assert_eq!(world.http.counters().all_requests(), 3);
}

#[test]
fn a_client_that_ends_behind_pipelined_requests_gets_every_answer() {
    let mut world = World::new("", web_nodes(1));
    let client = world.open();
    let node = world.ask(client, [get("/1"), get("/2"), "GET /cut".to_owned()].concat());
    world.end(client);
    world.send(node, OK);
    assert_eq!(world.take(client), OK);
    world.send(node, OK);
    assert_eq!(world.take(client), OK);
    assert!(world.is_gone(client));
    world.assert_empty("cut request");
}

#[test]
fn a_client_that_does_not_read_its_answers_gets_no_more_of_them() {
    let mut world = World::new("", web_nodes(1));
    world.wire.queue_bytes_max = Some(10);
    let client = world.open();
    let node = world.ask(client, get("/").repeat(50));
    world.send(node, OK);
    world.take(node);
    world.send(client, get("/"));
    assert_eq!(world.take(node), "", "the queue is full");
    world.drain(client);
    assert_eq!(world.take(node), get("/"));
}

#[test]
fn a_connection_that_a_slow_client_stopped_is_read_for_the_next_one() {
    let long = "x".repeat(40_000);
    let head = "HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: 40000\r\n\r\n";
    for interim in ["", "HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n"] {
        let mut world = World::new("", web_nodes(1));
        world.wire.queue_bytes_max = Some(10);
        let slow = world.open();
        let node = world.ask(slow, get("/"));
        world.send(node, [interim, head, &long].concat());
        assert!(!world.is_paused(node), "its answer is complete");
        world.wire.queue_bytes_max = None;
        let other = world.open();
        assert_eq!(world.ask(other, get("/")), node, "out of the pool");
        world.send(node, OK);
        assert_eq!(world.take(other), OK);
    }
}

#[test]
fn empty_lines_in_front_of_a_request_do_not_matter() {
    let mut world = World::new("", web_nodes(1));
    let client = world.open();
    let node = world.ask(client, format!("\r\n\r\n{}", get("/")));
    assert_eq!(world.take(node), get("/"));
}

#[test]
fn backpressure_reaches_whoever_sends() {
    let mut world = World::new("", web_nodes(1));
    world.wire.queue_bytes_max = Some(10_000);
    let client = world.open();
    let head = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\n";
    let node = world.ask(client, head);
    let part = "x".repeat(25_000);
    world.send(client, &part);
    assert!(world.is_paused(client), "the node takes no more");
    world.send(client, &part);
    assert_eq!(world.wire.sockets[&node].sent_bytes, 25_000 + head.len() as u64);
    for _ in 0..3 {
        world.drain(node);
        if !world.is_paused(client) {
            world.send(client, &part);
        }
    }
    assert_eq!(world.wire.sockets[&node].sent_bytes, 100_000 + head.len() as u64);

    world.send(node, format!("HTTP/1.1 200 OK\r\nContent-Length: 50000\r\n\r\n{part}"));
    assert!(world.is_paused(node), "the client takes no more");
    world.drain(client);
    assert!(!world.is_paused(node));
    world.send(node, &part);
    assert_eq!(status_of(&world.take(client)), 200);
    assert!(!world.is_gone(client));
}

#[test]
fn interim_responses_and_100_continue_pass() {
    let mut world = World::new("", web_nodes(1));
    let client = world.open();
    let head = "POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n";
    let node = world.ask(client, head);
    assert_eq!(world.take(node), head);
    world.send(node, "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n");
    assert_eq!(
        world.take(client),
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n"
    );
    world.send(client, "abc");
    assert_eq!(world.take(node), "abc");
    world.send(node, OK);
    assert_eq!(world.take(client), OK);
    assert!(!world.is_gone(client));

    let node = world.ask(client, head);
    world.send(node, "HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n");
    let text = world.take(client);
    assert_eq!(status_of(&text), 417);
    assert!(text.contains("\r\nConnection: close\r\n"), "{text}");
    assert!(world.is_gone(node), "it still expects a body");
    assert!(world.wire.sockets[&client].is_ended, "what comes next may be the body");
    assert_eq!(world.http.counters().responses(1), 2);
}

#[test]
fn responses_without_a_body_end_with_their_head() {
    for (method, answer) in [
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n"),
        ("HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 500\r\n\r\n"),
        ("GET", "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n"),
        ("GET", "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n"),
    ] {
        let want = if answer.contains("204") { "HTTP/1.1 204 No Content\r\n\r\n" } else { answer };
        let mut world = World::new("", web_nodes(1));
        let client = world.open();
        let node = world.ask(client, get("/").replace("GET", method));
        world.send(node, answer);
        assert_eq!(world.take(client), want);
        let again = world.ask(client, get("/"));
        assert_eq!(again, node, "{method} {answer}");
    }
}

#[test]
fn who_asks_for_the_last_time_is_not_waited_for() {
    let last = get("/").replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
    let until_close = "HTTP/1.1 200 OK\r\n\r\nok";
    for (request, answer, hangs_up) in [
        (last.as_str(), OK, true),
        ("GET / HTTP/1.0\r\n\r\n", OK, true),
        (&get("/"), until_close, false), // it may have another on its way
    ] {
        let mut world = World::new("", web_nodes(1));
        let client = world.open();
        let node = world.ask(client, request);
        world.send(node, answer);
        if answer == until_close {
            world.end(node);
        }
        assert!(world.is_gone(client), "{request}");
        assert_eq!(world.wire.sockets[&client].is_hung_up, hangs_up, "{request}");
    }
}

#[test]
fn a_response_until_close_ends_the_clients_connection_too() {
    let mut world = World::new("", web_nodes(1));
    let client = world.open();
    let node = world.ask(client, get("/"));
    world.send(node, "HTTP/1.1 200 OK\r\nServer: x\r\n\r\nhello");
    world.send(node, " world");
    assert!(!world.is_gone(client));
    world.end(node);
    assert_eq!(
        world.take(client),
        "HTTP/1.1 200 OK\r\nServer: x\r\nConnection: close\r\n\r\nhello world"
    );
    assert!(world.is_gone(client) && !world.is_aborted(client));
}

#[test]
fn http_1_0_clients_are_served() {
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let cases = [
        (
            "GET / HTTP/1.0\r\n\r\n",
            OK,
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
            true,
        ),
        (
            "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
            OK,
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nok",
            false,
        ),
        (
            "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
            chunked,
            "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello",
            true,
        ),
        (
            "HEAD / HTTP/1.0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
            true,
        ),
        (
            "GET / HTTP/1.0\r\n\r\n",
            "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
            "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n",
            true,
        ),
    ];
    for (request, answer, want, ends) in cases {
        let mut world = World::new("", web_nodes(1));
        let client = world.open();
        let node = world.ask(client, request);
        let method = request.split(' ').next().unwrap();
        let at_node = format!("{method} / HTTP/1.0\r\n\r\n");
        assert_eq!(world.take(node), at_node, "servers refuse an empty Host");
        for byte in answer.bytes() {
            world.send(node, [byte]);
        }
        assert_eq!(world.take(client), want, "{request}");
        assert_eq!(world.is_gone(client), ends, "{request}");
        assert!(world.is_gone(node), "who was asked by 1.0 closes: {request}");
    }
}

#[test]
fn an_answer_before_the_end_of_the_request_ends_the_connection() {
    let mut world = World::new("", web_nodes(1));
    let client = world.open();
    let node = world.ask(client, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nabc");
    world.send(node, "HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n");
    let text = world.take(client);
    assert_eq!(status_of(&text), 401);
    assert!(text.contains("\r\nConnection: close\r\n"), "{text}");
    assert!(world.is_gone(node));
    world.send(client, "defghij");
    world.send(client, get("/not-a-request"));
    assert_eq!(world.take(client), "");
    world.pass(std::time::Duration::from_secs(6));
    assert!(world.is_gone(client));
}

/// A gibibyte each way, and what the relay holds meanwhile.
#[test]
fn a_gibibyte_passes_without_being_kept() {
    const GIB: u64 = 1 << 30;
    let part = vec![b'x'; 64 * 1024];
    for framing in ["Content-Length: 1073741824", "Transfer-Encoding: chunked"] {
        let is_chunked = framing.starts_with('T');
        let mut world = World::new("", web_nodes(1));
        world.wire.forgets = true;
        let client = world.open();
        let node = world.ask(client, format!("POST / HTTP/1.1\r\nHost: h\r\n{framing}\r\n\r\n"));
        let stream = |world: &mut World, from: Conn| {
            for sent in 0..GIB / part.len() as u64 {
                if is_chunked {
                    world.send(from, "10000\r\n");
                }
                world.send(from, &part);
                if is_chunked {
                    world.send(from, "\r\n");
                }
                if sent % 512 == 0 {
                    let held = world.http.held_bytes();
                    assert!(held < 200 * 1024, "{held} bytes after {sent} parts, {framing}");
                }
            }
            if is_chunked {
                world.send(from, "0\r\n\r\n");
            }
        };
        stream(&mut world, client);
        world.send(node, format!("HTTP/1.1 200 OK\r\nConnection: x\r\n{framing}\r\n\r\n"));
        stream(&mut world, node);
        let counters = world.http.counters();
        assert_eq!((counters.bytes_to_node, counters.bytes_to_client), (GIB, GIB), "{framing}");
        assert!(!world.is_gone(client) && !world.is_gone(node), "{framing}: both are kept");
    }
}

/// Three exchanges on one connection.
fn script() -> ([Vec<u8>; 3], [Vec<u8>; 3]) {
    let requests = [
        format!("\r\n{}", post("/1?jsessionid=a", "hello")),
        "PUT /2 HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, x\r\nX: y\r\nTransfer-Encoding: chunked\r\n\r\n\
         5;a=b\r\nhello\r\n0\r\nT: u\r\n\r\n"
            .to_owned(),
        get("/3"),
    ];
    let answers = [
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n\
         3\r\nabc\r\n0\r\n\r\n",
        "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nworld",
        "HTTP/1.1 404 Not Found\r\nServer: x\r\nContent-Length: 0\r\n\r\n",
    ];
    (requests.map(String::into_bytes), answers.map(|it| it.as_bytes().to_vec()))
}

fn cut(bytes: &[u8], numbers: Option<&mut Numbers>) -> Vec<Vec<u8>> {
    let Some(numbers) = numbers else { return vec![bytes.to_vec()] };
    let mut parts = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let length = usize::try_from(1 + numbers.next() % 30).unwrap().min(rest.len());
        parts.push(rest[..length].to_vec());
        rest = &rest[length..];
    }
    parts
}

/// What the client and the nodes got.
fn played(mut numbers: Option<Numbers>) -> (String, Vec<String>) {
    let (requests, answers) = script();
    let mut world = World::new("", web_nodes(2));
    let client = world.open();
    let mut at_nodes = Vec::new();
    for (request, answer) in requests.iter().zip(&answers) {
        world.wire.order.clear();
        for part in cut(request, numbers.as_mut()) {
            world.send(client, part);
        }
        let node = world.last_node().unwrap();
        at_nodes.push(world.take(node));
        for part in cut(answer, numbers.as_mut()) {
            world.send(node, part);
        }
    }
    (world.take(client), at_nodes)
}

#[test]
fn where_the_network_cuts_does_not_matter() {
    let whole = played(None);
    assert_eq!(whole.0.matches("HTTP/1.1 ").count(), 4);
    for seed in 1..400 {
        assert_eq!(played(Some(Numbers(seed))), whole, "seed {seed}");
    }
}

#[test]
fn nothing_is_left_behind() {
    let mut world = World::new("", web_nodes(2));
    for _ in 0..10 {
        let client = world.open();
        let node = world.ask(client, get("/"));
        world.send(node, OK);
        world.gone(client, Gone::Reset);
    }
    world.assert_empty("ten clients");
}
