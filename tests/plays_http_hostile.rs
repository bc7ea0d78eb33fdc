//! HTTP from those who mean harm or do not know better: never passed on, answered as the standard says, and
//! nobody else notices (RFC 9112, `http-smpp-registry.md` 7.3).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::spawn;
use std::time::Duration;

use tests::web::{End, WebServer, WebStream, get, ok};
use tests::{Balancer, Node, Setup, wait_for};

fn stage(setup: &Setup) -> (Balancer, WebServer, Node) {
    let lb = setup.clone().set("httpPort", "HTTP").start();
    let server = WebServer::start(|asked| ok(asked.line().1));
    let node = lb.web_node("n", &server, &[]);
    (lb, server, node)
}

fn refused(lb: &Balancer, reason: &str) -> f64 {
    lb.metric(&format!("trunkline_http_refused_total{{reason=\"{reason}\"}}"))
}

/// Requests whose end two readers may see at different places, or that are no requests, and the answer.
const CORPUS: &[(&str, &[u16])] = &[
    // Lengths that contradict each other or themselves.
    ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", &[400]),
    ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5, 6\r\n\r\nhello", &[400]),
    ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: +5\r\n\r\nhello", &[400]),
    ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n", &[400]),
    ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0x5\r\n\r\nhello", &[400]),
    ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5 5\r\n\r\nhello", &[400]),
    ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length:\r\n\r\n", &[400]),
    ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 18446744073709551617\r\n\r\n", &[400]),
    ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length : 5\r\n\r\nhello", &[400]),
    ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n x\r\n\r\nhello", &[400]),
    // The same twice may be mended or refused (RFC 9110 8.6).
    ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello", &[400]),
    // Both framings at once, in every disguise.
    (
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        &[400],
    ),
    (
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        &[400],
    ),
    (
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n",
        &[400, 501],
    ),
    (
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        &[400, 501],
    ),
    ("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", &[400, 501]),
    (
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        &[400, 501],
    ),
    ("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n", &[400, 501]),
    ("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", &[501]),
    ("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding:\u{b}chunked\r\n\r\n0\r\n\r\n", &[400, 501]),
    ("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", &[400]),
    ("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding\r\n : chunked\r\n\r\n0\r\n\r\n", &[400]),
    ("POST / HTTP/1.1\r\nHost: h\r\nX: y\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", &[400]),
    ("POST / HTTP/1.1\r\nHost: h\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", &[400]),
    ("POST / HTTP/1.1\r\n Host: h\r\nContent-Length: 0\r\n\r\n", &[400]),
    ("POST / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", &[400]),
    // Chunks that are none.
    ("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n\r\n", &[400]),
    ("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n\r\n", &[400]),
    (
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n",
        &[400],
    ),
    ("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n\r\n0\r\n\r\n", &[400]),
    ("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\na\r\n0\r\n\r\n", &[400]),
    (
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
        &[400],
    ),
    ("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na0\r\n\r\n", &[400]),
    (
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n11111111111111111\r\na\r\n",
        &[400],
    ),
    (
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1 \r\r\na\r\n0\r\n\r\n",
        &[400],
    ),
    // Line ends and bytes that do not belong.
    ("GET / HTTP/1.1\nHost: h\n\n", &[400]),
    ("GET / HTTP/1.1\r\nHost: h\r\nX: a\rb\r\n\r\n", &[400]),
    ("GET / HTTP/1.1\r\nHost: h\r\nX: a\nB: b\r\n\r\n", &[400]),
    ("GET / HTTP/1.1\r\nHost: h\r\nX: a\0b\r\n\r\n", &[400]),
    ("GET / HTTP/1.1\rHost: h\r\n\r\n", &[400]),
    ("GET / HTTP/1.1\r\nHost: h\r\n: x\r\n\r\n", &[400]),
    ("GET / HTTP/1.1\r\nHost: h\r\nNo colon\r\n\r\n", &[400]),
    ("GET / HTTP/1.1\r\nHost: h\r\nX\u{e9}: a\r\n\r\n", &[400]),
    ("GET  / HTTP/1.1\r\nHost: h\r\n\r\n", &[400]),
    ("GET / x HTTP/1.1\r\nHost: h\r\n\r\n", &[400, 505]),
    ("GET /\r\nHost: h\r\n\r\n", &[400]),
    ("GET\r\n\r\n", &[400]),
    ("G(T / HTTP/1.1\r\nHost: h\r\n\r\n", &[400]),
    ("GET / http/1.1\r\nHost: h\r\n\r\n", &[400, 505]),
    ("GET / HTTP/1.2\r\nHost: h\r\n\r\n", &[400, 505]),
    ("GET / HTTP/2.0\r\nHost: h\r\n\r\n", &[400, 505]),
    ("GET / HTTP/11\r\nHost: h\r\n\r\n", &[400, 505]),
    // Host.
    ("GET / HTTP/1.1\r\n\r\n", &[400]),
    ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", &[400]),
    ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", &[400]),
    ("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", &[501]),
    ("\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}\u{fc}\u{3}\u{3}", &[400]),
];

#[test]
fn what_could_smuggle_a_request_is_refused_and_the_connection_ends() {
    let (lb, server, _node) = stage(&Setup::two_entry());
    for (request, want) in CORPUS {
        for pieces in [1, 7] {
            let mut client = WebStream::connect(lb.http());
            let bytes = format!("{request}{}", get("/smuggled"));
            let size = bytes.len().div_ceil(pieces);
            for piece in bytes.as_bytes().chunks(size) {
                let _ = client.try_send(piece);
            }
            let answer = client.answer();
            assert!(want.contains(&answer.status()), "{request:?}: {answer:?}");
            assert_eq!(answer.field("connection"), Some("close"), "{request:?}");
            client.end();
            assert_eq!(client.rest().0, b"", "{request:?}: one answer");
        }
    }
    let asked = server.asked();
    let leaked: Vec<_> = asked.iter().filter(|it| it.line().1 == "/smuggled").collect();
    assert!(leaked.is_empty(), "{leaked:?}");
    assert_eq!(lb.ask(get("/")).status(), 200, "others are served");
}

#[test]
fn what_is_odd_and_harmless_is_served() {
    let (lb, server, _node) = stage(&Setup::two_entry());
    for request in [
        "\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: CHUNKED\r\n\r\n00005;a=\"b\"\r\nhello\r\n000\r\n\r\n",
        "GET http://lb/ HTTP/1.1\r\nHost: lb\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET / HTTP/1.1\r\nHost:\r\n\r\n",
        "PURGE / HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: h\r\nX:\r\nY: \u{e9}\r\n\r\n",
    ] {
        let before = server.asked().len();
        let answer = lb.ask(request);
        assert_eq!(answer.status(), 200, "{request:?}: {answer:?}");
        assert_eq!(server.asked().len(), before + 1, "{request:?}");
    }
}

#[test]
fn what_is_too_long_is_answered_as_such() {
    let (lb, server, _node) = stage(&Setup::two_entry().set("maxContentLength", "1000"));
    let long = "a".repeat(70_000);
    let chunk = format!("1f4\r\n{}\r\n", "x".repeat(500));
    for (request, want) in [
        (format!("GET /{long}"), 414),
        (format!("GET / HTTP/1.1\r\nHost: h\r\nA: {long}"), 431),
        (format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", "A: b\r\n".repeat(300)), 431),
        (format!("GET / HTTP/1.1\r\nHost: h\r\nConnection: {}\r\n\r\n", "a,".repeat(9_000)), 431),
        ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1001\r\n\r\n".to_owned(), 413),
        (
            format!(
                "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n{}",
                chunk.repeat(3)
            ),
            413,
        ),
    ] {
        let mut client = WebStream::connect(lb.http());
        let _ = client.try_send(&request);
        let answer = client.answer();
        assert_eq!(answer.status(), want, "{}", &request[..60]);
        client.end();
        client.rest();
    }
    assert_eq!(server.asked().len(), 0);
    let fits =
        format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n{}", "x".repeat(1000));
    assert_eq!(lb.ask(fits).status(), 200);
    assert_eq!(refused(&lb, "too_large"), 6.0);
}

#[test]
fn a_preface_of_http_2_gets_a_clean_close() {
    let (lb, _server, _node) = stage(&Setup::two_entry());
    let mut client = WebStream::connect(lb.http());
    client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\u{6}\u{4}\0\0\0\0\0\0\u{3}\0\0\0d");
    assert_eq!(client.rest(), (vec![], End::Closed));
}

#[test]
fn who_drips_is_given_up() {
    let setup = Setup::two_entry()
        .set("httpHeadTimeout", "300")
        .set("httpBodyTimeout", "300")
        .set("httpKeepAliveTimeout", "2000"); // from a connection to its first byte, too
    let (lb, server, _node) = stage(&setup);
    for (name, begin, drip, want) in [
        ("head", "GET / HTTP/1.1\r\nHost: h\r\n", "X: y\r\n", 408),
        ("body", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n", "x", 408),
        (
            "chunks",
            "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n",
            "1\r\nx\r\n",
            408,
        ),
    ] {
        let mut client = WebStream::connect(lb.http());
        client.send(begin);
        // Some at a time, for ever, and never enough.
        let is_over = Arc::new(AtomicBool::new(false));
        let (over, mut dripping) = (is_over.clone(), client.twin());
        let thread = spawn(move || {
            while !over.load(Ordering::Relaxed) && dripping.try_send(drip).is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let answer = client.answer();
        is_over.store(true, Ordering::Relaxed);
        thread.join().unwrap();
        assert_eq!(answer.status(), want, "{name}: {answer:?}");
    }
    assert_eq!(refused(&lb, "slow"), 3.0);
    let mut silent = WebStream::connect(lb.http());
    assert_eq!(silent.rest(), (vec![], End::Closed), "nothing said");
    let mut idle = WebStream::connect(lb.http());
    idle.send(get("/"));
    assert_eq!(idle.answer().status(), 200);
    assert_eq!(idle.rest(), (vec![], End::Closed), "nothing more said");
    assert_eq!(server.asked().len(), 1);
}

#[test]
fn who_does_not_read_is_given_up() {
    let lb = Setup::two_entry().set("httpPort", "HTTP").set("httpBodyTimeout", "300").start();
    let server = WebServer::raw(|mut stream, _| {
        let _ = stream.head();
        stream.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
        while stream.try_send([b'x'; 65_536]).is_ok() {}
    });
    let _node = lb.web_node("n", &server, &[]);
    let mut client = WebStream::connect(lb.http());
    client.send(get("/"));
    client.head().unwrap();
    wait_for("patience to end", || (refused(&lb, "slow") == 1.0).then_some(()));
    assert_eq!(client.rest().1, End::Reset, "not to be taken for the whole");
}

#[test]
fn connections_are_limited_by_source_and_in_all() {
    let (lb, _server, _node) = stage(&Setup::two_entry().set("httpSourceConnectionsMax", "3"));
    let ask = |client: &mut WebStream| {
        let _ = client.try_send(get("/"));
        client.answer().status()
    };
    let mut open: Vec<WebStream> = (0..3).map(|_| WebStream::connect(lb.http())).collect();
    open.iter_mut().for_each(|it| assert_eq!(ask(it), 200));
    let mut fourth = WebStream::connect(lb.http());
    assert_eq!(ask(&mut fourth), 0, "closed without a word");
    assert_eq!(refused(&lb, "source_connections"), 1.0);
    lb.wait_log("refused reason=source_connections at=HTTP source=127.0.0.1");
    drop(open.pop());
    wait_for("room for another", || (ask(&mut WebStream::connect(lb.http())) == 200).then_some(()));

    let (lb, _server, _node) = stage(&Setup::two_entry().set("connectionsMax", "4"));
    let mut open: Vec<WebStream> = (0..3).map(|_| WebStream::connect(lb.http())).collect();
    open.iter_mut().for_each(|it| assert_eq!(ask(it), 200, "three, and the node's"));
    let mut more: Vec<WebStream> = (0..4).map(|_| WebStream::connect(lb.http())).collect();
    let served = more.iter_mut().filter_map(|it| (ask(it) == 200).then_some(())).count();
    assert!(served <= 1, "{served} beyond the limit");
    open.iter_mut().for_each(|it| assert_eq!(ask(it), 200, "who is there stays"));
}

#[test]
fn the_proxy_protocol_names_the_client_and_is_demanded_where_it_is_spoken() {
    let setup = Setup::two_entry().set("httpProxyProtocol", "true").set("httpXForwarded", "true");
    let (lb, server, _node) = stage(&setup);
    let mut second =
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc6\x33\x64\x0a\x7f\0\0\x01\x10\x01\0\x50".to_vec();
    second.extend_from_slice(get("/").as_bytes());
    let mut sixth = b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24".to_vec();
    for ip in ["2001:db8::a:1", "2001:db8::b:2"] {
        sixth.extend_from_slice(&ip.parse::<std::net::Ipv6Addr>().unwrap().octets());
    }
    sixth.extend_from_slice(b"\x10\x01\0\x50");
    sixth.extend_from_slice(get("/").as_bytes());
    // ALPN, padding and an id of the connection tell nothing that we need, whatever they look like.
    let mut rows = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x24\xc6\x33\x64\x0b\x7f\0\0\x01\x10\x01\0\x50\
        \x01\0\x08http/1.1\x04\0\x03\0\0\0\x05\0\x04\r\n\r\n"
        .to_vec();
    rows.extend_from_slice(get("/").as_bytes());
    let mut local = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0".to_vec();
    local.extend_from_slice(get("/").as_bytes());
    for (name, bytes, source) in [
        (
            "1",
            format!("PROXY TCP4 198.51.100.9 127.0.0.1 4097 80\r\n{}", get("/")).into_bytes(),
            "198.51.100.9",
        ),
        (
            "1, IPv6",
            format!("PROXY TCP6 2001:db8::1 ::1 4097 80\r\n{}", get("/")).into_bytes(),
            "2001:db8::1",
        ),
        ("1, unknown", format!("PROXY UNKNOWN\r\n{}", get("/")).into_bytes(), "127.0.0.1"),
        ("2", second, "198.51.100.10"),
        ("2, IPv6", sixth, "2001:db8::a:1"),
        ("2, with rows", rows, "198.51.100.11"),
        ("2, local", local, "127.0.0.1"),
    ] {
        let answer = lb.ask(bytes);
        assert_eq!(answer.status(), 200, "{name}");
        let asked = server.asked();
        assert_eq!(asked.last().unwrap().field("x-forwarded-for"), Some(source), "{name}");
    }
    for bytes in [get("/"), "PROXY TCP4 x y z\r\n".to_owned(), "PROXY TCP4 1.1.1.1".repeat(20)] {
        let mut client = WebStream::connect(lb.http());
        let _ = client.try_send(&bytes);
        assert_eq!(client.answer().status(), 0, "{bytes}: let go without a word");
    }
}

/// A provider gives a subscriber at least a network of 64 bits.
#[test]
fn clients_of_one_ipv6_network_are_one_source() {
    let setup = Setup::two_entry().set("shards", "2").set("httpProxyProtocol", "true");
    let (lb, _server, _node) = stage(&setup.set("httpSourceConnectionsMax", "2"));
    let mut held = Vec::new();
    for (source, want) in [
        ("2001:db8:0:1::1", 200),
        ("2001:db8:0:1::2", 200),
        ("2001:db8:0:1:ffff::3", 0),
        ("2001:db8:0:2::1", 200),
    ] {
        let mut client = WebStream::connect(lb.http());
        let _ = client.try_send(format!("PROXY TCP6 {source} ::1 4097 80\r\n{}", get("/")));
        assert_eq!(client.answer().status(), want, "{source}");
        held.push(client);
    }
    assert_eq!(refused(&lb, "source_connections"), 1.0);
    lb.wait_log("refused reason=source_connections at=HTTP source=2001:db8:0:1:ffff::3");
}

#[test]
fn forwarded_and_via_are_written_by_key_alone() {
    let (lb, server, _node) = stage(&Setup::two_entry());
    lb.ask("GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-Proto: https\r\n\r\n");
    assert_eq!(
        server.asked()[0].head,
        "GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-Proto: https\r\n\r\n"
    );
    let (lb, server, _node) =
        stage(&Setup::two_entry().set("httpXForwarded", "true").set("httpVia", "true"));
    lb.ask(
        "GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 1.1.1.1\r\nX-Forwarded-Proto: https\r\n\r\n",
    );
    assert_eq!(
        server.asked()[0].head,
        "GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 1.1.1.1\r\nX-Forwarded-For: 127.0.0.1\r\n\
         X-Forwarded-Proto: http\r\nVia: 1.1 trunkline\r\n\r\n"
    );
}

#[test]
fn what_nodes_say_that_is_no_response_is_never_passed_on() {
    let lb = Setup::two_entry().set("httpPort", "HTTP").start();
    const BROKEN: &[&str] = &[
        "hello",
        "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/2 200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nx",
        "HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n\0",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\nx\r\n",
    ];
    let server = WebServer::raw(|mut stream, _| {
        let Ok(head) = stream.head() else { return };
        let at: usize = head.split(['/', ' ']).nth(2).unwrap().parse().unwrap();
        let _ = stream.try_send(BROKEN[at]);
    });
    let _node = lb.web_node("n", &server, &[]);
    for (at, broken) in BROKEN.iter().enumerate() {
        let request = format!("POST /{at} HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n");
        let answer = lb.ask(request);
        let is_folded = broken.contains("\r\n b"); // RFC 9112 5.2 lets a gateway unfold it
        assert!(answer.status() == 502 || is_folded, "{broken}: {answer:?}");
        assert!(!answer.head.contains("\r\n "), "{broken}");
    }
}
