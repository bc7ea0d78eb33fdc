//! Nodes that die in every phase, and waiting that must end.

use std::time::Duration;

use super::harness::{OK, World, get, post, status_of, web_node, web_nodes};
use crate::relay::Report;
use crate::relay::stream::{Conn, Gone};
use crate::stats::Refusal;

fn refused(world: &World, why: Refusal) -> u64 {
    world.http.counters().refusals(why)
}

#[test]
fn a_node_that_refuses_is_passed_over_whatever_the_method() {
    for why in [Gone::Refused, Gone::Handshake, Gone::ConnectTimeout, Gone::Reset] {
        let mut world = World::new("", web_nodes(3));
        world.connects = false;
        let client = world.open();
        let first = world.ask(client, post("/app", "body"));
        let _ = world.connecting();
        world.wire.order.clear();
        world.gone(first, why);
        let second = world.last_node().unwrap();
        let _ = world.connecting();
        assert_ne!(world.number(first), world.number(second), "{why:?}");
        assert_eq!(world.take(second), post("/app", "body"), "{why:?}");
        world.connected(second);
        world.send(second, OK);
        assert_eq!(world.take(client), OK, "{why:?}");
        let number = world.number(first);
        let refusal =
            Report::Refused { node: web_node(number, "").key, way: crate::node::Way::Http };
        assert_eq!(world.reports().first(), Some(&refusal), "{why:?}");
        assert_eq!(world.http.counters().retries, 1, "{why:?}");
    }
}

/// Two nodes, neither of which can be reached for this reason, and the client that asked.
fn both_unreached(why: Gone) -> (World, Conn) {
    let mut world = World::new("", web_nodes(2));
    world.connects = false;
    let client = world.open();
    world.send(client, get("/"));
    for _ in 0..2 {
        let node = world.connecting();
        world.gone(node, why);
    }
    (world, client)
}

#[test]
fn every_node_refusing_is_a_bad_gateway_and_the_connection_lives() {
    let (mut world, client) = both_unreached(Gone::Refused);
    let text = world.take(client);
    assert_eq!(status_of(&text), 502, "{text}");
    assert!(!text.contains("Connection: close"), "{text}");
    assert_eq!(refused(&world, Refusal::BadGateway), 1);
    world.connects = true;
    let node = world.ask(client, get("/again"));
    world.send(node, OK);
    assert_eq!(world.take(client), OK);
}

#[test]
fn a_request_goes_on_until_a_node_takes_it() {
    let mut world = World::new("", web_nodes(8));
    world.connects = false;
    let client = world.open();
    world.send(client, get("/"));
    for _ in 0..7 {
        let node = world.connecting();
        world.gone(node, Gone::Refused);
    }
    let last = world.connecting();
    world.connected(last);
    world.send(last, OK);
    assert_eq!(world.take(client), OK);
}

#[test]
fn a_want_of_our_own_is_no_fault_of_the_nodes() {
    let (mut world, client) = both_unreached(Gone::Shortage);
    let text = world.take(client);
    assert_eq!(status_of(&text), 503, "{text}");
    assert!(text.contains("\r\nRetry-After: "), "{text}");
    assert_eq!((refused(&world, Refusal::Shortage), refused(&world, Refusal::BadGateway)), (1, 0));
    assert_eq!(world.reports(), [], "no node is suspect");
}

/// Its heartbeats are late, or it has been told to go: it may answer all the same.
#[test]
fn a_node_that_leaves_the_table_answers_what_nobody_else_could() {
    let mut world = World::new("", web_nodes(1));
    let client = world.open();
    let node = world.ask(client, get("/"));
    world.nodes(Vec::new());
    assert!(!world.is_gone(node));
    world.send(node, OK);
    assert_eq!(world.take(client), OK);
}

#[test]
fn a_node_that_leaves_the_table_has_not_died_of_a_request() {
    let mut world = World::new("", web_nodes(3));
    let client = world.open();
    let mut node = world.ask(client, get("/"));
    let mut left = vec![1, 2, 3];
    let tell = |world: &World, node| world.number(node);
    let first = tell(&world, node);
    world.gone(node, Gone::Reset); // it may have died of it: once more, and no more
    node = world.last_node().unwrap();
    left.retain(|it| *it != tell(&world, node));
    world.nodes(left.iter().map(|it| web_node(*it, "")).collect());
    node = world.last_node().unwrap();
    assert!(left.contains(&tell(&world, node)) && tell(&world, node) != first);
    world.send(node, OK);
    assert_eq!(world.take(client), OK);
}

/// Whoever takes something of what is queued in each period is waited for, though there is never room for more.
#[test]
fn who_takes_bytes_slowly_but_steadily_is_served() {
    let keys = "httpBodyTimeout=1000\nhttpKeepAliveTimeout=3000\nhttpResponseTimeout=1000";
    let period = Duration::from_millis(999);
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n";
    for (case, body) in [("a body", 8_000), ("the tail of a body", 9_000)] {
        for takes in [1024, 1023] {
            let mut world = World::new(keys, web_nodes(1));
            world.wire.queue_bytes_max = Some(10);
            let client = world.open();
            let node = world.ask(client, get("/"));
            world.send(node, [head, &"x".repeat(body)].concat());
            for _ in 0..5 {
                if !world.is_gone(client) {
                    world.sip(client, takes);
                }
                world.pass(period);
            }
            assert_eq!(world.is_aborted(client), takes < 1024, "{case} {takes}");
            if takes == 1024 {
                world.drain(client);
                world.send(node, "x".repeat(9_000 - body));
                assert!(world.take(client).ends_with('x') && !world.is_gone(client), "{case}");
            }
        }
    }
    for takes in [1024, 1023] {
        let mut world = World::new(keys, web_nodes(1));
        world.wire.queue_bytes_max = Some(1_000);
        let client = world.open();
        let upload = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9000\r\n\r\n";
        let node = world.ask(client, [upload, &"x".repeat(9_000)].concat());
        for _ in 0..5 {
            if !world.is_gone(node) {
                world.sip(node, takes);
            }
            world.pass(period);
        }
        assert_eq!(world.is_gone(node), takes < 1024, "an upload {takes}");
    }
}

#[test]
fn a_client_that_says_nothing_after_its_100_is_the_one_who_was_too_late() {
    let mut world = World::new("httpBodyTimeout=1000\nhttpResponseTimeout=1000", web_nodes(1));
    let client = world.open();
    let request = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n";
    let node = world.ask(client, request);
    world.send(node, "HTTP/1.1 100 Continue\r\n\r\n");
    world.take(client);
    world.pass(Duration::from_secs(2));
    assert_eq!(status_of(&world.take(client)), 408);
    assert_eq!((refused(&world, Refusal::Slow), refused(&world, Refusal::GatewayTimeout)), (1, 0));
}

#[test]
fn a_node_that_leaves_the_table_is_not_waited_for() {
    let mut world = World::new("", web_nodes(2));
    let pooled_for = world.open();
    let session = "/app?jsessionid=x";
    let pooled = world.ask(pooled_for, get(session));
    world.send(pooled, OK);
    let dead = world.number(pooled);
    let (asks, orders, reads) = (world.open(), world.open(), world.open());
    let one = world.ask(asks, get(session));
    assert_eq!(one, pooled);
    let two = world.ask(orders, post(session, "body"));
    let three = world.ask(reads, get(session));
    world.send(three, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\na");
    let spare = world.ask(pooled_for, get(session));
    world.send(spare, OK);
    assert!([one, two, three, spare].iter().all(|it| world.number(*it) == dead));
    world.wire.order.clear();
    world.nodes(vec![web_node(3 - dead, "")]);
    assert!(world.is_gone(spare), "nobody will ask it again");
    assert!(world.is_aborted(one));
    let other = world.last_node().unwrap();
    assert_eq!(world.number(other), 3 - dead);
    world.send(other, OK);
    assert_eq!(world.take(asks), OK);
    assert!(!world.is_gone(two), "an order may have been carried out: only its node knows");
    world.send(two, OK);
    assert_eq!(world.take(orders), OK);
    world.send(three, "bc");
    assert!(world.take(reads).ends_with("abc"), "an answer that has begun goes on");
}

#[test]
fn what_waits_for_a_connection_to_a_node_that_leaves_goes_to_another_whatever_the_method() {
    for request in [get("/"), post("/", "body")] {
        let mut world = World::new("", web_nodes(2));
        world.connects = false;
        let client = world.open();
        let first = world.ask(client, &request);
        let _ = world.connecting();
        world.wire.order.clear();
        world.nodes(vec![web_node(3 - world.number(first), "")]);
        assert!(world.is_aborted(first), "{request}");
        let second = world.last_node().expect("it goes on");
        assert_eq!(world.take(second), request);
        assert_eq!(world.reports(), [], "{request}: nobody has refused anything");
    }
}

#[test]
fn what_never_left_may_go_anywhere_and_never_leaves_twice() {
    for by_reset in [false, true] {
        let mut world = World::new("", web_nodes(2));
        let client = world.open();
        let session = "/app?jsessionid=x";
        let pooled = world.ask(client, get(session));
        world.send(pooled, OK);
        world.take(client);
        world.wire.holds = true;
        let order = post(session, "body");
        assert_eq!(world.ask(client, &order), pooled, "out of the pool");
        world.wire.order.clear();
        if by_reset {
            world.gone(pooled, Gone::Reset);
        } else {
            world.end(pooled);
            assert!(world.is_aborted(pooled), "what is queued must not leave");
        }
        let fresh = world.last_node().expect("nothing was carried out");
        assert_eq!(world.number(fresh), world.number(pooled), "its session lives there");
        assert_eq!(world.take(fresh), order);
        world.send(fresh, OK);
        assert_eq!(world.take(client), OK);
        assert_eq!(world.reports().len(), 1, "only a life sign: it is not suspect");
    }
}

#[test]
fn a_request_that_nodes_die_of_does_not_have_them_all() {
    for is_nonsense in [false, true] {
        let mut world = World::new("", web_nodes(5));
        let client = world.open();
        let mut hit = 0;
        let mut node = Some(world.ask(client, get("/")));
        while let Some(it) = node {
            hit += 1;
            world.wire.order.clear();
            if is_nonsense {
                world.send(it, "what?\r\n\r\n");
            } else {
                world.gone(it, Gone::Reset);
            }
            node = world.last_node();
        }
        assert_eq!(hit, 2, "{is_nonsense}");
        assert_eq!(status_of(&world.take(client)), 502, "{is_nonsense}");
    }
}

#[test]
fn a_head_that_our_own_lines_make_too_long_is_repeated_all_the_same() {
    let mut world = World::new("httpXForwarded=true\nhttpVia=true", web_nodes(2));
    let fields = "A: b\r\n".repeat(255);
    let client = world.open();
    let cookie = "Cookie: JSESSIONID=x\r\n";
    let request = format!("GET /app HTTP/1.1\r\nHost: h\r\n{}{cookie}\r\n", &fields[..6 * 254]);
    let first = world.ask(client, request);
    world.wire.order.clear();
    world.gone(first, Gone::Reset);
    let second = world.last_node().expect("the other one");
    assert_ne!(world.number(first), world.number(second));
    world.send(second, OK);
    assert_eq!(world.take(client), OK);
}

#[test]
fn addresses_of_nodes_that_left_are_forgotten() {
    let mut world = World::new("", Vec::new());
    for number in 1..=20 {
        world.nodes(vec![web_node(number, "")]);
        let client = world.open();
        let node = world.ask(client, get("/"));
        world.send(node, OK);
        assert_eq!(world.ask(client, get("/")), node, "out of the pool");
        world.gone(node, Gone::Reset);
        world.gone(client, Gone::Reset);
    }
    world.nodes(Vec::new());
    assert_eq!(world.http.pool.len(), 0);
}

#[test]
fn a_node_is_timed_from_when_it_was_asked() {
    let mut world = World::new("httpConnectTimeout=500", web_nodes(2));
    world.connects = false;
    let client = world.open();
    world.send(client, post("/", "body"));
    let _ = world.connecting();
    world.pass(Duration::from_millis(500));
    let second = world.connecting();
    world.connected(second);
    world.pass(Duration::from_millis(7));
    world.send(second, OK);
    world.connects = true;
    let slow = world.open();
    let node = world.ask(slow, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\na");
    world.pass(Duration::from_millis(300));
    world.send(slow, "b");
    world.pass(Duration::from_millis(7));
    world.send(node, OK);
    let counters = world.http.counters();
    let rows = [1, 2].map(|it| counters.node(web_node(it, "").key));
    let each = Duration::from_millis(7);
    assert_eq!(rows.map(|it| it.count).iter().sum::<u64>(), 2, "{rows:?}");
    assert_eq!(rows.map(|it| it.sum).iter().sum::<Duration>(), each * 2, "{rows:?}");
}

#[test]
fn the_end_of_the_process_does_not_make_half_an_answer_look_whole() {
    let cases = [
        ("GET / HTTP/1.1\r\nHost: h\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\nhalf", true),
        (
            "GET / HTTP/1.0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
            true,
        ),
        ("GET / HTTP/1.1\r\nHost: h\r\n\r\n", OK, false),
        ("GET / HTTP/1.1\r\nHost: h\r\n\r\n", "", false),
    ];
    for (request, answer, is_cut) in cases {
        let mut world = World::new("", web_nodes(1));
        let client = world.open();
        let node = world.ask(client, request);
        world.send(node, answer);
        world.http.handle_over(&mut world.wire);
        assert_eq!(world.is_aborted(client), is_cut, "{request} {answer}");
        assert_eq!(refused(&world, Refusal::Aborted), u64::from(is_cut), "{request} {answer}");
        world.assert_empty(answer);
    }
}

#[test]
fn nodes_that_do_not_answer_the_call_are_given_up_after_the_connect_time() {
    let mut world = World::new("httpConnectTimeout=500", web_nodes(2));
    world.connects = false;
    let client = world.open();
    world.send(client, get("/"));
    let first = world.connecting();
    world.pass(Duration::from_millis(499));
    assert!(!world.is_gone(first));
    world.pass(Duration::from_millis(1));
    assert!(world.is_aborted(first));
    let second = world.connecting();
    assert_ne!(world.number(first), world.number(second));
    world.pass(Duration::from_millis(500));
    assert_eq!(status_of(&world.take(client)), 504);
}

#[test]
fn a_node_that_breaks_off_before_its_answer_is_passed_over_for_idempotent_requests_only() {
    let requests = [
        (get("/"), true),
        (get("/").replace("GET", "HEAD"), true),
        (get("/").replace("GET", "DELETE"), true),
        (post("/", "abc").replace("POST", "PUT"), true),
        (post("/", "abc"), false),
        (post("/", "abc").replace("POST", "PATCH"), false),
        (post("/", "abc").replace("POST", "FOO"), false),
    ];
    for (request, is_repeated) in requests {
        for by_reset in [false, true] {
            let mut world = World::new("", web_nodes(2));
            let client = world.open();
            let first = world.ask(client, &request);
            world.send(first, "HTTP/1.1 200 O");
            world.wire.order.clear();
            if by_reset {
                world.gone(first, Gone::Reset);
            } else {
                world.end(first);
            }
            if is_repeated {
                let second = world.last_node().unwrap();
                assert_ne!(world.number(first), world.number(second), "{request}");
                assert_eq!(world.take(second), request);
                assert_eq!(world.take(client), "", "nothing of the first answer: {request}");
            } else {
                assert_eq!(status_of(&world.take(client)), 502, "{request}");
            }
        }
    }
}

#[test]
fn a_connection_that_waited_too_long_is_replaced_by_a_fresh_one_to_the_same_node() {
    let mut world = World::new("", web_nodes(2));
    let client = world.open();
    let session = "/app?jsessionid=x";
    let first = world.ask(client, get(session));
    world.send(first, OK);
    world.take(client);
    let again = world.ask(client, get(session));
    assert_eq!(again, first, "out of the pool");
    world.wire.order.clear();
    world.gone(first, Gone::Reset);
    let fresh = world.last_node().unwrap();
    assert_eq!(world.number(fresh), world.number(first), "its session lives there");
    world.send(fresh, OK);
    assert_eq!(world.take(client), OK);
    assert_eq!(world.reports().len(), 1, "only a life sign: it is not suspect");
}

#[test]
fn a_request_too_long_to_keep_is_not_repeated_once_the_node_has_it() {
    let mut world = World::new("httpReplayBytesMax=1024", web_nodes(2));
    let body = "x".repeat(5_000);
    let request = post("/", &body).replace("POST", "PUT");
    let client = world.open();
    let node = world.ask(client, &request);
    assert_eq!(world.take(node), request);
    world.end(node);
    assert_eq!(status_of(&world.take(client)), 502);
}

#[test]
fn until_the_node_is_there_no_more_is_taken_than_can_be_given_to_another() {
    let mut world = World::new("httpReplayBytesMax=1024", web_nodes(2));
    world.connects = false;
    let body = "x".repeat(5_000);
    let request = post("/", &body);
    let client = world.open();
    world.send(client, &request);
    assert!(world.is_paused(client));
    let first = world.connecting();
    assert_eq!(world.wire.sockets[&first].sent_bytes, 1_024);
    world.gone(first, Gone::Refused);
    let second = world.connecting();
    assert!(world.is_paused(client));
    world.connected(second);
    assert!(!world.is_paused(client));
    assert_eq!(world.take(second), request);
    world.send(second, OK);
    assert_eq!(world.take(client), OK);
}

#[test]
fn a_node_that_dies_in_the_middle_of_a_body_is_a_cut_that_the_client_sees() {
    let length = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello";
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
    let close = "HTTP/1.1 200 OK\r\n\r\nhello";
    let cases = [
        ("length, end", length, false, true),
        ("length, reset", length, true, true),
        ("chunked, end", chunked, false, true),
        ("chunked, reset", chunked, true, true),
        ("until close, reset", close, true, true),
        ("until close, end", close, false, false),
    ];
    for (name, answer, by_reset, is_cut) in cases {
        let mut world = World::new("", web_nodes(2));
        let client = world.open();
        let node = world.ask(client, get("/"));
        world.send(node, answer);
        if by_reset {
            world.gone(node, Gone::Reset);
        } else {
            world.end(node);
        }
        assert_eq!(world.is_aborted(client), is_cut, "{name}");
        assert!(world.is_gone(client), "{name}");
        assert!(world.take(client).contains("hello"), "{name}");
        assert_eq!(refused(&world, Refusal::Aborted), u64::from(is_cut), "{name}");
        assert_eq!(world.http.counters().retries, 0, "{name}");
        world.assert_empty(name);
    }
}

#[test]
fn what_is_no_response_is_never_passed_on() {
    for answer in [
        "220 smtp.example ESMTP\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\nContent-Length: 5\n\nhello",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    ] {
        let mut world = World::new("", web_nodes(1));
        let client = world.open();
        let node = world.ask(client, post("/", "a"));
        world.send(node, answer);
        assert_eq!(status_of(&world.take(client)), 502, "{answer:?}");
        assert!(world.is_aborted(node), "{answer:?}");
    }
    let mut world = World::new("", web_nodes(1));
    let client = world.open();
    let node = world.ask(client, get("/"));
    world.send(node, format!("HTTP/1.1 200 OK\r\nA: {}", "x".repeat(70_000)));
    assert_eq!(status_of(&world.take(client)), 502);
}

#[test]
fn chunks_that_break_later_cut_the_answer() {
    let mut world = World::new("", web_nodes(1));
    let client = world.open();
    let node = world.ask(client, get("/"));
    world.send(node, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n");
    world.send(node, "zz\r\n");
    assert!(world.is_aborted(client) && world.is_aborted(node));
    assert!(!world.take(client).contains("zz"));
}

#[test]
fn a_node_that_takes_too_long_is_a_gateway_timeout() {
    let mut world = World::new("httpResponseTimeout=3000", web_nodes(2));
    let client = world.open();
    let node = world.ask(client, get("/"));
    world.pass(Duration::from_millis(2_999));
    assert_eq!(world.take(client), "");
    world.pass(Duration::from_millis(1));
    assert_eq!(status_of(&world.take(client)), 504);
    assert!(world.is_aborted(node));
    assert_eq!(refused(&world, Refusal::GatewayTimeout), 1);
}

#[test]
fn a_body_that_stands_still_is_given_up() {
    let keys = "httpBodyTimeout=2000";
    let mut world = World::new(keys, web_nodes(1));
    let client = world.open();
    let node = world.ask(client, get("/"));
    world.send(node, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n");
    for _ in 0..3 {
        world.pass(Duration::from_millis(1_500));
        world.send(node, "x");
    }
    assert!(!world.is_gone(client), "it moves");
    world.pass(Duration::from_millis(2_000));
    assert!(world.is_aborted(client) && world.is_aborted(node));

    let mut world = World::new(keys, web_nodes(1));
    let client = world.open();
    let node = world.ask(client, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 8000\r\n\r\n");
    world.send(node, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n");
    for _ in 0..4 {
        world.pass(Duration::from_millis(1_500));
        world.send(client, "x".repeat(2_000));
    }
    assert!(!world.is_gone(client), "the request moves, though its answer has begun");
    world.pass(Duration::from_millis(1_500));
    world.send(node, "y".repeat(10));
    assert!(world.take(client).ends_with("yyyyyyyyyy"));

    let mut world = World::new(keys, web_nodes(1));
    let client = world.open();
    let node = world.ask(client, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10000\r\n\r\n");
    for _ in 0..3 {
        world.pass(Duration::from_millis(600));
        world.send(client, "x");
    }
    world.pass(Duration::from_millis(200));
    assert_eq!(status_of(&world.take(client)), 408, "a byte now and then is no progress");
    assert!(world.is_aborted(node));
    assert_eq!(refused(&world, Refusal::Slow), 1);
}

#[test]
fn a_client_that_does_not_read_is_given_up() {
    let mut world = World::new("httpBodyTimeout=2000", web_nodes(1));
    world.wire.queue_bytes_max = Some(1_000);
    let client = world.open();
    let node = world.ask(client, get("/"));
    let big = "x".repeat(5_000);
    world.send(node, format!("HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n{big}"));
    assert!(world.is_paused(node));
    world.pass(Duration::from_millis(2_000));
    assert!(world.is_aborted(client) && world.is_aborted(node));
    assert_eq!(refused(&world, Refusal::Slow), 1);
}

#[test]
fn a_client_that_goes_takes_its_request_with_it() {
    for phase in 0..4 {
        let mut world = World::new("", web_nodes(1));
        let client = world.open();
        let mut node = None;
        if phase == 0 {
            world.send(client, "GET / HT");
        } else {
            let request = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\n";
            node = Some(world.ask(client, request));
        }
        if phase == 2 {
            world.send(client, "abc");
        } else if phase == 3 {
            world.send(client, "abc");
            world.send(node.unwrap(), "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\na");
        }
        world.gone(client, Gone::Reset);
        if let Some(node) = node {
            assert!(world.is_aborted(node), "phase {phase}");
        }
        world.assert_empty(&format!("phase {phase}"));
    }
}

#[test]
fn a_half_closed_client_gets_its_answer_unless_its_request_is_cut() {
    let mut world = World::new("", web_nodes(1));
    let client = world.open();
    let node = world.ask(client, get("/"));
    world.end(client);
    assert!(!world.is_gone(client));
    world.send(node, OK);
    assert_eq!(world.take(client), OK);
    assert!(world.is_gone(client) && !world.is_gone(node));

    let client = world.open();
    let node = world.ask(client, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nab");
    world.end(client);
    assert!(world.is_gone(client) && world.is_aborted(node));
}
