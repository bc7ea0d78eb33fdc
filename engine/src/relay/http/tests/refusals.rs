//! Answers of our own: no node, limits, slow and hostile clients, stopping.

use std::net::SocketAddr;
use std::time::Duration;

use super::harness::{OK, World, get, post, status_of, web_nodes};
use crate::relay::stream::Secure;
use crate::stats::Refusal;

#[test]
fn without_a_node_the_answer_is_a_well_formed_503() {
    let mut world = World::new("", Vec::new());
    let client = world.open();
    world.send(client, get("/"));
    assert_eq!(
        world.take(client),
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=UTF-8\r\n\
         Content-Length: 34\r\nRetry-After: 5\r\n\r\nService is temporarily unavailable"
    );
    world.send(client, get("/").replace("GET", "HEAD"));
    assert!(world.take(client).ends_with("Retry-After: 5\r\n\r\n"), "HEAD has no body");
    world.send(client, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nabc");
    assert!(world.take(client).contains("Connection: close"), "its body is on the way");
    assert!(!world.is_gone(client) && world.wire.sockets[&client].is_ended, "it may read first");
    world.send(client, "defghi");
    world.end(client);
    assert!(world.is_gone(client));
    assert_eq!(world.http.counters().all_requests(), 3);
    assert_eq!(world.http.counters().refusals(Refusal::NoNode), 3);
    assert_eq!(world.http.counters().responses(5), 3);
}

#[test]
fn unavailable_host_gets_the_requests_or_the_clients() {
    let mut world = World::new("unavailableHost=sorry.example:8088", Vec::new());
    let client = world.open();
    let node = world.ask(client, post("/a?b", "xyz"));
    let address: SocketAddr = "192.0.2.80:8088".parse().unwrap();
    assert_eq!(world.address(node), (address, Secure::No));
    assert_eq!(world.take(node), post("/a?b", "xyz"));
    world.send(node, OK);
    assert_eq!(world.take(client), OK);

    for (host, want) in [
        ("sorry.example:8088", "http://sorry.example:8088/a?b"),
        ("sorry.example", "http://sorry.example/a?b"),
        ("2001:db8::1", "http://[2001:db8::1]/a?b"),
    ] {
        let keys = format!("unavailableHost={host}\nunavailableRedirect=true");
        let mut world = World::new(&keys, Vec::new());
        let client = world.open();
        world.send(client, get("/a?b"));
        let text = world.take(client);
        assert!(text.starts_with("HTTP/1.1 302 Found\r\n"), "{text}");
        assert!(text.contains(&format!("\r\nLocation: {want}\r\n")), "{text}");
    }
}

/// Each case: our ports, the request's target and Host, and where it is sent to.
#[test]
fn a_redirect_to_https_leads_to_where_https_is_served() {
    let cases = [
        (80, 443, "/a?b", "lb.example", "https://lb.example/a?b"),
        (80, 443, "/a?b", "lb.example:80", "https://lb.example/a?b"),
        (80, 8443, "/", "lb.example", "https://lb.example:8443/"),
        (80, 8443, "/", "lb.example:", "https://lb.example:8443/"),
        (80, 8443, "/", "[2001:db8::1]", "https://[2001:db8::1]:8443/"),
        (2080, 2081, "/", "lb.example:2080", "https://lb.example:2081/"),
        (2080, 2081, "/", "[2001:db8::1]:2080", "https://[2001:db8::1]:2081/"),
        (2080, 443, "/", "lb.example:2080", "https://lb.example/"),
        (2080, 2081, "/", "lb.example:8080", "https://lb.example:2081/"),
        // Ports are mapped in front of us.
        (2080, 2081, "/", "lb.example", "https://lb.example/"),
        (2080, 2081, "/", "lb.example:80", "https://lb.example/"),
        (2080, 2081, "http://lb.example:2080/a", "other", "https://lb.example:2081/a"),
        (2080, 2081, "http://lb.example", "other", "https://lb.example"),
        (80, 8443, "*", "lb.example", "https://lb.example:8443"),
    ];
    for (port, tls_port, target, host, want) in cases {
        let keys = format!("httpPort={port}\nhttpsPort={tls_port}\nhttpToHttpsRedirect=true");
        let mut world = World::new(&keys, web_nodes(1));
        let client = world.open();
        let method = if target == "*" { "OPTIONS" } else { "GET" };
        world.send(client, format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        let text = world.take(client);
        assert_eq!(status_of(&text), 302, "{port} {target} {host}");
        let location = text.lines().find_map(|it| it.strip_prefix("Location: "));
        assert_eq!(location, Some(want), "{port} {target} {host}");
    }
}

#[test]
fn bodies_beyond_the_limit_are_refused() {
    let chunked = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut world = World::new("maxContentLength=10", web_nodes(1));
    let client = world.open();
    world.send(client, post("/", "0123456789a"));
    assert_eq!(status_of(&world.take(client)), 413);
    assert!(world.last_node().is_none(), "nothing of it goes anywhere");

    let client = world.open();
    let node = world.ask(client, post("/", "0123456789"));
    world.send(node, OK);
    assert_eq!(world.take(client), OK);

    let client = world.open();
    let node = world.ask(client, format!("{chunked}8\r\n01234567\r\n"));
    world.send(client, "8\r\n01234567\r\n");
    assert_eq!(status_of(&world.take(client)), 413);
    assert!(world.is_aborted(node));
}

#[test]
fn malformed_requests_are_answered_once_and_never_passed_on() {
    let cases = [
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (
            "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        ("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
        ("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", 501),
        ("GET / HTTP/2.0\r\nHost: h\r\n\r\n", 505),
        ("GET / HTTP/1.1\nHost: h\n\n", 400),
        ("\u{16}\u{3}\u{1}\u{2}\0\n", 400),
    ];
    for (request, status) in cases {
        let mut world = World::new("", web_nodes(1));
        let client = world.open();
        world.send(client, format!("{request}{}", get("/smuggled")));
        let text = world.take(client);
        assert_eq!(status_of(&text), status, "{request:?}");
        assert_eq!(text.matches("HTTP/1.1 ").count(), 1, "{request:?}");
        assert!(text.contains("Connection: close"), "{request:?}");
        assert!(world.last_node().is_none(), "{request:?}");
        world.pass(Duration::from_secs(6));
        assert!(world.is_gone(client), "{request:?}");
        assert_eq!(world.http.counters().refusals(Refusal::Malformed), 1, "{request:?}");
    }
    for (request, status) in [
        (format!("GET /{}", "a".repeat(70_000)), 414),
        (format!("GET / HTTP/1.1\r\nA: {}", "a".repeat(70_000)), 431),
        (format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", "A: b\r\n".repeat(300)), 431),
    ] {
        let mut world = World::new("", web_nodes(1));
        let client = world.open();
        world.send(client, &request);
        assert_eq!(status_of(&world.take(client)), status);
        assert_eq!(world.http.counters().refusals(Refusal::TooLarge), 1);
    }
}

#[test]
fn a_broken_body_never_reaches_its_end_at_the_node() {
    let mut world = World::new("", web_nodes(1));
    let client = world.open();
    let head = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
    let node = world.ask(client, format!("{head}3\r\nabc\r\n"));
    world.send(client, format!("0x\r\n\r\n{}", get("/smuggled")));
    assert_eq!(status_of(&world.take(client)), 400);
    assert_eq!(world.take(node), format!("{head}3\r\nabc\r\n"));
    assert!(world.is_aborted(node));
}

#[test]
fn http_2_gets_a_clean_close() {
    let mut world = World::new("", web_nodes(1));
    let client = world.open();
    world.send(client, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    assert_eq!(world.take(client), "");
    assert!(world.is_gone(client) && !world.is_aborted(client));
}

#[test]
fn heads_that_drip_in_and_idle_connections_end() {
    let mut world = World::new("httpHeadTimeout=1000\nhttpKeepAliveTimeout=5000", web_nodes(1));
    let dripping = world.open();
    let idle = world.open();
    world.pass(Duration::from_millis(3_000));
    for byte in get("/").bytes().take(9) {
        world.send(dripping, [byte]);
        world.pass(Duration::from_millis(100));
    }
    assert_eq!(world.take(dripping), "");
    world.pass(Duration::from_millis(100));
    assert_eq!(status_of(&world.take(dripping)), 408);
    assert_eq!(world.http.counters().refusals(Refusal::Slow), 1);
    world.pass(Duration::from_millis(1_000));
    assert!(world.is_gone(idle));
    assert_eq!(world.take(idle), "", "an idle connection ends without a word");
    let used = world.open();
    let node = world.ask(used, get("/"));
    world.send(node, OK);
    world.pass(Duration::from_millis(4_999));
    assert!(!world.is_gone(used));
    world.pass(Duration::from_millis(1));
    assert!(world.is_gone(used));
}

#[test]
fn stopping_ends_connections_behind_their_answers() {
    let mut world = World::new("", web_nodes(2));
    let (idle, busy, begun) = (world.open(), world.open(), world.open());
    let (fresh, silent, halfread) = (world.open(), world.open(), world.open());
    world.send(halfread, "GET / HT");
    let pooled = world.ask(idle, get("/"));
    world.send(pooled, OK);
    let node = world.ask(busy, get("/"));
    let halfway = world.ask(begun, get("/"));
    world.send(halfway, &OK[..OK.len() - 1]);
    world.http.handle_stopping(world.now, &mut world.wire);
    assert!(world.is_gone(idle) && !world.is_gone(busy) && !world.is_gone(begun));
    world.send(halfway, "k");
    assert_eq!(world.take(begun), OK);
    assert!(world.is_gone(begun), "its answer could not say so any more");
    world.send(node, OK);
    assert!(world.take(busy).contains("\r\nConnection: close\r\n"));
    // What was on its way when we began to stop is answered.
    for (client, rest) in [(fresh, get("/")), (halfread, "TP/1.1\r\nHost: h\r\n\r\n".to_owned())] {
        let node = world.ask(client, rest);
        world.send(node, OK);
        assert!(world.take(client).contains("\r\nConnection: close\r\n"));
        assert!(world.is_gone(client));
    }
    world.pass(Duration::from_secs(1));
    assert!(world.is_gone(silent), "nobody waits for what is never asked");
    assert!(world.is_gone(busy) && world.is_gone(node) && world.is_gone(pooled));
    assert_eq!(world.open_at(0), None);
}

/// RFC 9110 §7.6.2.
#[test]
fn probes_go_as_far_as_they_say() {
    let mut world = World::new("", web_nodes(1));
    let client = world.open();
    let probe = |method: &str, most: &str| {
        format!("{method} / HTTP/1.1\r\nHost: h\r\nMax-Forwards: {most}\r\n\r\n")
    };
    let last = |method, status| (probe(method, "0"), status);
    for (request, status) in [last("OPTIONS", 200), last("TRACE", 501)] {
        world.send(client, request);
        assert_eq!(status_of(&world.take(client)), status);
    }
    let passed =
        [("OPTIONS", "10", "9"), ("TRACE", "1", "0"), ("GET", "0", "0"), ("OPTIONS", "x", "x")];
    for (method, most, left) in passed {
        let node = world.ask(client, probe(method, most));
        assert_eq!(world.take(node), probe(method, left));
        world.send(node, OK);
        world.take(client);
    }
    assert_eq!(world.http.counters().all_requests(), 6);
}

#[test]
fn fields_of_our_own_are_written_by_key() {
    let mut world = World::new("httpXForwarded=true\nhttpVia=true\nhttpsPort=2081", web_nodes(1));
    let client = world.open();
    let spoofed =
        "GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 1.1.1.1\r\nX-Forwarded-Proto: https\r\n\r\n";
    let node = world.ask(client, spoofed);
    assert_eq!(
        world.take(node),
        "GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 1.1.1.1\r\nX-Forwarded-For: 192.0.2.7\r\n\
         X-Forwarded-Proto: http\r\nVia: 1.1 trunkline\r\n\r\n"
    );
    let client = world.open_at(1).unwrap();
    let node = world.ask(client, get("/"));
    assert!(world.take(node).contains("\r\nX-Forwarded-Proto: https\r\n"));
    let client = world.open();
    let node = world.ask(client, "GET / HTTP/1.0\r\n\r\n");
    assert!(world.take(node).contains("\r\nVia: 1.0 trunkline\r\n"), "as it was received");
}

#[test]
fn the_proxy_protocol_names_the_client() {
    let keys = "httpsPort=2081\nhttpProxyProtocol=true\nhttpXForwarded=true\nhttpSourceConnectionsMax=1\nhttpHeadTimeout=1000";
    let mut world = World::new(keys, web_nodes(1));
    let client = world.open();
    let preface = "PROXY TCP4 198.51.100.9 10.0.0.1 4711 80\r\n";
    let bytes = format!("{preface}{}", get("/"));
    world.send(client, &bytes[..20]);
    let node = world.ask(client, &bytes[20..]);
    assert!(world.take(node).contains("X-Forwarded-For: 198.51.100.9\r\n"));
    let second = world.open();
    world.send(second, preface);
    assert!(world.is_gone(second), "its source has enough");
    let inside = world.open_at(1).unwrap();
    world.send(inside, preface.replace("100.9", "100.8"));
    assert!(world.wire.sockets[&inside].is_secured && !world.wire.sockets[&client].is_secured);
    let node = world.ask(inside, get("/"));
    assert!(
        world.take(node).contains("X-Forwarded-For: 198.51.100.8\r\nX-Forwarded-Proto: https\r\n")
    );
    let bare = world.open();
    world.send(bare, get("/"));
    assert!(world.is_gone(bare), "who does not speak it is not let in");
    let silent = world.open();
    world.pass(Duration::from_secs(1));
    assert!(world.is_gone(silent));
}
