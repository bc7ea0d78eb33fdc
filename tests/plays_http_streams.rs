//! Connections and bodies over HTTP, and WebSocket (`http-smpp-registry.md` 1.2 to 1.4, 1.9, 7.3).

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread::spawn;
use std::time::{Duration, Instant};

use tests::web::{End, WebServer, WebStream, get, ok, post};
use tests::{Balancer, Node, Setup, wait_for};

fn stage(server: &WebServer) -> (Balancer, Node) {
    let lb = Setup::two_entry().set("httpPort", "HTTP").start();
    let node = lb.web_node("n", server, &[]);
    (lb, node)
}

#[test]
fn connections_are_kept_on_both_sides() {
    let server = WebServer::start(|asked| ok(asked.line().1));
    let (lb, _node) = stage(&server);
    let mut client = WebStream::connect(lb.http());
    for at in 0..20 {
        client.send(get(&format!("/{at}")));
        assert_eq!(client.answer().text(), format!("/{at}"));
    }
    for at in 0..20 {
        let mut other = WebStream::connect(lb.http());
        other.send(get(&format!("/{at}")));
        assert_eq!(other.answer().text(), format!("/{at}"));
    }
    assert_eq!(server.connections(), 1, "one connection to the node does for all");
    wait_for("the others to be gone", || {
        (lb.metric("trunkline_http_connections") == 1.0).then_some(())
    });
}

#[test]
fn pipelined_requests_are_answered_in_their_order() {
    let (lb, _nodes);
    let servers: Vec<WebServer> = (0..3)
        .map(|_| WebServer::start(|asked| ok(&format!("{} {}", asked.line().1, asked.body.len()))))
        .collect();
    lb = Setup::two_entry().set("httpPort", "HTTP").start();
    _nodes = servers
        .iter()
        .enumerate()
        .map(|(at, server)| lb.web_node(&format!("n{at}"), server, &[]))
        .collect::<Vec<_>>();
    let mut client = WebStream::connect(lb.http());
    let requests: String =
        (0..60)
            .map(|at| {
                if at % 3 == 0 { post(&format!("/{at}"), "12345") } else { get(&format!("/{at}")) }
            })
            .collect();
    client.send(requests);
    client.end(); // and each has its answer all the same
    for at in 0..60 {
        let bytes = if at % 3 == 0 { 5 } else { 0 };
        assert_eq!(client.answer().text(), format!("/{at} {bytes}"));
    }
    assert_eq!(client.rest(), (vec![], End::Closed));
    let counts: Vec<usize> = servers.iter().map(|it| it.asked().len()).collect();
    assert_eq!(counts, [20, 20, 20], "each request chose for itself");
}

/// The node has them all before it has answered any; one behind them is for another node and waits.
#[test]
fn pipelined_requests_of_one_session_follow_one_another_to_their_node() {
    let server = WebServer::raw(|mut stream, _| {
        stream.head().unwrap();
        stream.send(ok("first"));
        let heads: Vec<_> = (0..4).map(|_| stream.head().unwrap()).collect();
        for head in heads {
            stream.send(ok(head.split(' ').nth(1).unwrap()));
        }
        let _ = stream.rest();
    });
    let lb = Setup::two_entry().set("httpPort", "HTTP").set("httpPipelining", "true").start();
    let _one = lb.web_node("one", &server, &[("jvmRoute", "one")]);
    let others = lb.named_nodes(&["two"]);
    let mut client = WebStream::connect(lb.http());
    client.send(get("/0;jsessionid=s.one"));
    assert_eq!(client.answer().text(), "first");
    let mut requests: String = (1..=4).map(|it| get(&format!("/{it};jsessionid=s.one"))).collect();
    requests.push_str(&get("/5;jsessionid=s.two"));
    client.send(requests);
    for number in 1..=4 {
        assert_eq!(client.answer().text(), format!("/{number};jsessionid=s.one"));
    }
    assert_eq!(client.answer().text(), "two");
    assert_eq!((server.connections(), others[0].1.connections()), (1, 1));
}

#[test]
fn http_1_0_and_connection_close_are_honoured() {
    let server = WebServer::start(|asked| {
        assert_eq!(asked.field("connection"), None, "{}", asked.head);
        if asked.line().1 == "/chunked" {
            return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
                .to_vec();
        }
        ok("abc")
    });
    let (lb, _node) = stage(&server);
    for (target, version, field, is_kept) in [
        ("/", "1.0", "", false),
        ("/", "1.0", "Connection: keep-alive\r\n", true),
        ("/chunked", "1.0", "Connection: keep-alive\r\n", false),
        ("/", "1.1", "", true),
        ("/", "1.1", "Connection: close\r\n", false),
    ] {
        let case = format!("{target} {version} {field:?}");
        let mut client = WebStream::connect(lb.http());
        client.send(format!("GET {target} HTTP/{version}\r\nHost: lb\r\n{field}\r\n"));
        if is_kept {
            let answer = client.answer();
            assert_eq!(answer.text(), "abc", "{case}");
            assert_eq!(answer.field("connection").is_some(), version == "1.0", "{case}");
            client.send(format!("GET / HTTP/{version}\r\nHost: lb\r\n\r\n"));
            assert_eq!(client.answer().text(), "abc", "{case}: goes on");
        } else {
            let (bytes, end) = client.rest();
            let text = String::from_utf8(bytes).unwrap();
            assert!(text.ends_with("\r\n\r\nabc"), "{case}: {text}");
            assert!(text.contains("\r\nConnection: close\r\n"), "{case}: {text}");
            assert_eq!(end, End::Closed, "{case}");
        }
    }
}

#[test]
fn everything_but_hop_by_hop_fields_passes_byte_for_byte() {
    let response = "HTTP/1.1 200 Fine with me\r\nserver:  x \r\nX-Odd;:\t1\r\nSet-Cookie: a=b\r\n\
        Set-Cookie: c=d\r\nContent-Length: 2\r\nVia: 1.0 old\r\n\r\nhi";
    let response = response.replace("X-Odd;:", "X-Odd:");
    let answer = response.clone();
    let server = WebServer::start(move |_| answer.clone().into_bytes());
    let (lb, _node) = stage(&server);
    let mut client = WebStream::connect(lb.http());
    let request = "PATCH /a%2fb?c=%20d&e HTTP/1.1\r\nhost: app.example.com:81\r\nX-a:1\r\nx-A:   2\r\n\
        TelestaxProxy: true\r\nX-Forwarded-For: 192.0.2.1\r\nCookie: JSESSIONID=1; x=y\r\nContent-Length: 3\r\n\r\nabc";
    let (head, _) = request.split_at(request.len() - 3);
    client.send(request);
    assert_eq!(client.bytes(response.len()).unwrap(), response.as_bytes());
    assert_eq!(server.asked()[0].head, head);
    assert_eq!(server.asked()[0].body, b"abc");

    client.send(
        "GET / HTTP/1.1\r\nHost: lb\r\nConnection: keep-alive, X-Hop\r\nKeep-Alive: timeout=5\r\nX-Hop: 1\r\n\
         Proxy-Connection: keep-alive\r\nTE: trailers\r\nUpgrade: h2c\r\nX-Kept: 2\r\n\r\n",
    );
    assert_eq!(client.answer().status(), 200);
    assert_eq!(server.asked()[1].head, "GET / HTTP/1.1\r\nHost: lb\r\nX-Kept: 2\r\n\r\n");
}

#[test]
fn chunks_and_trailers_pass_both_ways() {
    let server = WebServer::start(|asked| {
        assert_eq!(
            (asked.body.as_slice(), asked.trailers.as_str()),
            (&b"abcdef"[..], "X-Sum: 1\r\n")
        );
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2;x=y\r\nhi\r\n0\r\nX-Sum: 2\r\n\r\n"
            .to_vec()
    });
    let (lb, _node) = stage(&server);
    let mut client = WebStream::connect(lb.http());
    for _ in 0..2 {
        client.send("POST / HTTP/1.1\r\nHost: lb\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n3\r\nab");
        client.send("c\r\n3\r\ndef\r\n0\r\nX-Sum: 1\r\n\r\n");
        let answer = client.answer();
        assert_eq!((answer.text().as_str(), answer.trailers.as_str()), ("hi", "X-Sum: 2\r\n"));
    }
}

#[test]
fn responses_without_a_body_end_with_their_head_and_those_until_close_with_the_connection() {
    let server = WebServer::raw(|mut stream, _| {
        while let Ok(head) = stream.head() {
            let answer = match head.split(' ').nth(1) {
                Some("/204") => "HTTP/1.1 204 No Content\r\n\r\n",
                Some("/304") => "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
                Some("/head") => "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
                _ => "HTTP/1.1 200 OK\r\n\r\nall there is",
            };
            let _ = stream.try_send(answer);
            if answer.ends_with("is") {
                return;
            }
        }
    });
    let (lb, _node) = stage(&server);
    let mut client = WebStream::connect(lb.http());
    for (method, target, status) in
        [("GET", "/204", 204), ("GET", "/304", 304), ("HEAD", "/head", 200), ("GET", "/204", 204)]
    {
        client.send(format!("{method} {target} HTTP/1.1\r\nHost: lb\r\n\r\n"));
        assert_eq!(client.answer_to(method).status(), status, "{method} {target}");
    }
    client.send(get("/"));
    let answer = client.answer();
    assert_eq!((answer.text().as_str(), answer.is_cut), ("all there is", false));
    assert_eq!(answer.field("connection"), Some("close"));
}

#[test]
fn a_client_that_waits_for_100_is_told_by_the_node() {
    let server = WebServer::raw(|mut stream, _| {
        for is_welcome in [true, false] {
            let head = stream.head().unwrap();
            assert!(head.contains("Expect: 100-continue\r\n"), "{head}");
            if is_welcome {
                stream.send(
                    "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n",
                );
                assert_eq!(stream.bytes(5).unwrap(), b"hello");
                stream.send(ok("thanks"));
            } else {
                stream.send("HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n");
                let _ = stream.rest();
                return;
            }
        }
    });
    let (lb, _node) = stage(&server);
    let request = "PUT / HTTP/1.1\r\nHost: lb\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";
    let mut client = WebStream::connect(lb.http());
    client.send(request);
    assert_eq!(client.head().unwrap(), "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n");
    assert_eq!(client.head().unwrap(), "HTTP/1.1 100 Continue\r\n\r\n");
    client.send("hello");
    assert_eq!(client.answer().text(), "thanks");
    client.send(request);
    assert_eq!(client.answer().status(), 417, "before anything of the body");
}

/// So many bytes that differ from place to place.
fn pattern(from: u64, count: usize) -> Vec<u8> {
    (from..from + count as u64).map(|it| (it / 7 % 251) as u8).collect()
}

const GIB: u64 = 1 << 30;
const PIECE: usize = 1 << 20;

/// Reads a GiB of one piece over and over.
fn read_gib(stream: &mut WebStream, piece: &[u8]) {
    for at in 0..GIB / PIECE as u64 {
        assert!(stream.bytes(PIECE).unwrap() == piece, "piece {at}");
    }
}

#[test]
fn a_gibibyte_passes_each_way_at_constant_memory() {
    let server = WebServer::raw(|mut stream, _| {
        let piece = pattern(0, PIECE);
        while let Ok(head) = stream.head() {
            if head.starts_with("POST ") {
                read_gib(&mut stream, &piece);
                stream.send(ok("done"));
                continue;
            }
            stream.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {GIB}\r\n\r\n"));
            for _ in 0..GIB / PIECE as u64 {
                stream.send(&piece);
            }
        }
    });
    let (lb, _node) = stage(&server);
    let before = lb.resident_kib();
    let piece = pattern(0, PIECE);
    let mut client = WebStream::connect(lb.http());
    client.send(get("/"));
    assert!(client.head().unwrap().contains(&GIB.to_string()));
    read_gib(&mut client, &piece);
    let mut client = WebStream::connect(lb.http());
    client.send(format!("POST / HTTP/1.1\r\nHost: lb\r\nContent-Length: {GIB}\r\n\r\n"));
    for _ in 0..GIB / PIECE as u64 {
        client.send(&piece);
    }
    assert_eq!(client.answer().text(), "done");
    let grown = lb.resident_kib().saturating_sub(before);
    assert!(grown < 8 * 1024, "two GiB have passed, and {grown} KiB stayed");
}

#[test]
fn who_sends_feels_who_does_not_read() {
    let (go, may_read) = channel::<()>();
    let may_read = Mutex::new(may_read);
    let server = WebServer::raw(move |mut stream, _| {
        while let Ok(head) = stream.head() {
            if head.starts_with("POST ") {
                may_read.lock().unwrap().recv().unwrap();
                read_gib_quarter(&mut stream);
                stream.send(ok("done"));
                continue;
            }
            stream.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", GIB / 4));
            for _ in 0..GIB / 4 / PIECE as u64 {
                stream.send(pattern(0, PIECE));
            }
        }
    });
    let (lb, _node) = stage(&server);
    let before = lb.resident_kib();
    // A node that does not read an upload, for a while.
    let (sent, is_over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let (to, count, over) = (lb.http(), sent.clone(), is_over.clone());
    let uploader = spawn(move || {
        let mut client = WebStream::connect(to);
        client.send(format!("POST / HTTP/1.1\r\nHost: lb\r\nContent-Length: {}\r\n\r\n", GIB / 4));
        for _ in 0..GIB / 4 / PIECE as u64 {
            client.send(pattern(0, PIECE));
            count.fetch_add(1, Ordering::Relaxed);
        }
        over.store(true, Ordering::Relaxed);
        client.answer()
    });
    let mut last = (usize::MAX, 0);
    wait_for("the upload to stand still", || {
        let now = sent.load(Ordering::Relaxed);
        last = if now == last.0 { (now, last.1 + 1) } else { (now, 0) };
        (now > 0 && last.1 > 200).then_some(())
    });
    assert!(!is_over.load(Ordering::Relaxed), "it was all taken in");
    let grown = lb.resident_kib().saturating_sub(before);
    assert!(grown < 8 * 1024, "{grown} KiB for one upload");
    go.send(()).unwrap();
    assert_eq!(uploader.join().unwrap().text(), "done");
    // A client that does not read its answer, for a while.
    let mut client = WebStream::connect(lb.http());
    client.send(get("/"));
    client.head().unwrap();
    // It is full when it has paused the node, which it says to nobody; these pages come later.
    (0..20).for_each(|_| drop(lb.lbstat()));
    let grown = lb.resident_kib().saturating_sub(before);
    assert!(grown < 8 * 1024, "{grown} KiB for one download");
    read_gib_quarter(&mut client);
}

fn read_gib_quarter(stream: &mut WebStream) {
    let piece = pattern(0, PIECE);
    for at in 0..GIB / 4 / PIECE as u64 {
        assert!(stream.bytes(PIECE).unwrap() == piece, "piece {at}");
    }
}

/// Megabytes wait in the kernels: there is no room for more for longer than a body may stand still.
#[test]
fn who_reads_slowly_but_steadily_gets_everything() {
    const WHOLE: usize = 24 << 20;
    let body = pattern(0, WHOLE);
    let server = WebServer::start(move |_| {
        [format!("HTTP/1.1 200 OK\r\nContent-Length: {WHOLE}\r\n\r\n").into_bytes(), body.clone()]
            .concat()
    });
    let lb = Setup::two_entry().set("httpPort", "HTTP").set("httpBodyTimeout", "3000").start();
    let _node = lb.web_node("n", &server, &[]);
    let mut client = WebStream::connect(lb.http());
    client.send(get("/"));
    client.head().unwrap();
    let (mut got, start) = (0, Instant::now());
    while start.elapsed() < Duration::from_secs(7) {
        let some = client.bytes(4096).unwrap();
        assert!(some == pattern(got as u64, some.len()));
        got += some.len();
        // This is the reader's speed, not a wait: what it takes from its socket at once lasts for 320 ms.
        std::thread::sleep(Duration::from_millis(5));
    }
    let rest = client.bytes(WHOLE - got).unwrap();
    assert!(rest == pattern(got as u64, rest.len()));
    assert_eq!(lb.metric("trunkline_http_refused_total{reason=\"slow\"}"), 0.0);
}

/// Whoever has sent a request before the process was told to stop is answered.
#[test]
fn a_stop_answers_what_was_on_its_way() {
    let server = WebServer::named("n");
    let (lb, _node) = stage(&server);
    let mut clients: Vec<WebStream> = (0..60)
        .map(|_| {
            let mut client = WebStream::connect(lb.http());
            client.send(get("/"));
            client
        })
        .collect();
    lb.signal(nix::sys::signal::Signal::SIGTERM);
    for client in &mut clients {
        assert_eq!(client.answer().text(), "n");
    }
    assert!(lb.wait_exit().success());
}

#[test]
fn a_client_that_has_ended_gets_its_answer_and_one_that_goes_frees_the_node() {
    let (said, heard) = channel();
    let said = Mutex::new(said);
    let server = WebServer::raw(move |mut stream, number| {
        let _ = stream.head();
        if number == 0 {
            stream.send(ok("late"));
        }
        let (_, end) = stream.rest();
        said.lock().unwrap().send((number, end)).unwrap();
    });
    let (lb, _node) = stage(&server);
    let mut client = WebStream::connect(lb.http());
    client.send("GET / HTTP/1.1\r\nHost: lb\r\nConnection: close\r\n\r\n");
    client.end();
    assert_eq!(client.answer().text(), "late");
    // The first connection waits in the pool and answers no second request.
    let mut client = WebStream::connect(lb.http());
    client.send(post("/", "x"));
    wait_for("the request at the node", || (lb.stat("NumberOfHttpRequests") == 2).then_some(()));
    client.reset();
    assert_eq!(heard.recv_timeout(tests::PATIENCE).unwrap().1, End::Reset);
}

#[test]
fn a_client_that_resets_behind_pipelined_requests_frees_the_node() {
    let (said, heard) = channel();
    let said = Mutex::new(said);
    let server = WebServer::raw(move |mut stream, _| {
        let said = said.lock().unwrap();
        said.send(stream.head().err()).unwrap();
        said.send(Some(stream.rest().1)).unwrap();
    });
    let (lb, _node) = stage(&server);
    let mut client = WebStream::connect(lb.http());
    client.send(get("/").repeat(2));
    assert_eq!(heard.recv_timeout(tests::PATIENCE).unwrap(), None, "the first one at the node");
    client.reset();
    assert_eq!(heard.recv_timeout(tests::PATIENCE).unwrap(), Some(End::Reset));
}

#[test]
fn a_client_that_does_not_read_spoils_no_connection_for_others() {
    let body = "x".repeat(60_000);
    let server = WebServer::start(move |asked| {
        let body = if asked.line().1 == "/long" { body.as_str() } else { "ok" };
        let length = body.len();
        format!(
            "HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .into_bytes()
    });
    let (lb, _node) = stage(&server);
    let mut slow = WebStream::connect(lb.http());
    slow.shrink();
    slow.send(get("/long").repeat(200));
    let mut last = (0, 0);
    wait_for("the slow client's answers to stand still", || {
        let now = server.asked().len();
        last = if now == last.0 { (now, last.1 + 1) } else { (now, 0) };
        (now > 0 && last.1 > 30).then_some(())
    });
    assert!(server.asked().len() < 200, "nothing was held back");
    for _ in 0..4 {
        assert_eq!(lb.ask(get("/")).text(), "ok");
    }
}

#[test] // RFC 9112 §9.5
fn a_nodes_early_refusal_of_an_upload_reaches_the_client() {
    let server = WebServer::raw(|mut stream, _| {
        let Ok(_) = stream.head() else { return };
        stream.send(
            "HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\nbig",
        );
        // It closes with bytes unread, which resets the connection.
    });
    let (lb, _node) = stage(&server);
    for round in 0..50 {
        let mut client = WebStream::connect(lb.http());
        client.send("POST / HTTP/1.1\r\nHost: lb\r\nContent-Length: 100000000\r\n\r\n");
        let mut twin = client.twin();
        let uploader = spawn(move || {
            let piece = vec![b'x'; 64 * 1024];
            while twin.try_send(&piece).is_ok() {}
        });
        assert_eq!(client.head().unwrap().get(..13), Some("HTTP/1.1 413 "), "round {round}");
        client.end();
        uploader.join().unwrap();
    }
}

#[test]
fn a_request_that_never_left_goes_out_on_a_fresh_connection_and_only_there() {
    let (said, heard) = channel();
    let said = Mutex::new(said);
    let (close, may_close) = channel::<()>();
    let may_close = Mutex::new(may_close);
    let server = WebServer::raw(move |mut stream, number| {
        while let Ok(head) = stream.head() {
            if head.starts_with("POST ") {
                assert_eq!(stream.bytes(2).unwrap(), b"hi");
            }
            let method = head.split(' ').next().unwrap_or_default().to_owned();
            said.lock().unwrap().send((number, method)).unwrap();
            stream.send(ok("ok"));
            if number == 0 {
                may_close.lock().unwrap().recv().unwrap();
                stream.end(); // and it reads on
            }
        }
    });
    let (lb, _node) = stage(&server);
    let mut client = WebStream::connect(lb.http());
    client.send(get("/"));
    assert_eq!(client.answer().text(), "ok");
    lb.freeze();
    client.send(post("/", "hi"));
    close.send(()).unwrap();
    wait_for("both to be there", || {
        // The balancer's side, which has the end and not read it: CLOSE_WAIT is 08.
        let to = format!(":{:04X} 08 ", server.address().port());
        std::fs::read_to_string("/proc/net/tcp").unwrap().contains(&to).then_some(())
    });
    lb.signal(nix::sys::signal::Signal::SIGCONT);
    let answer = client.answer();
    assert_eq!((answer.status(), answer.text().as_str()), (200, "ok"));
    let all: Vec<(usize, String)> = heard.try_iter().collect();
    assert_eq!(all, [(0, "GET".to_owned()), (1, "POST".to_owned())]);
}

#[test]
fn the_end_of_the_process_does_not_make_half_an_answer_look_whole() {
    for request in [get("/close"), "GET /chunked HTTP/1.0\r\nHost: lb\r\n\r\n".to_owned()] {
        let server = WebServer::raw(|mut stream, _| {
            let Ok(head) = stream.head() else { return };
            let is_chunked = head.contains("/chunked");
            stream.send(if is_chunked {
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"
            } else {
                "HTTP/1.1 200 OK\r\n\r\nhalf"
            });
            stream.rest();
        });
        let lb = Setup::two_entry().set("httpPort", "HTTP").set("shutdownTimeout", "200").start();
        let _node = lb.web_node("n", &server, &[]);
        let mut client = WebStream::connect(lb.http());
        client.send(&request);
        client.until(b"half").unwrap();
        lb.signal(nix::sys::signal::Signal::SIGTERM);
        assert_eq!(client.rest().1, End::Reset, "{request}");
        lb.wait_exit();
    }
}

fn handshake(protocol: &str) -> String {
    format!(
        "GET /chat HTTP/1.1\r\nHost: lb\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{protocol}\r\n"
    )
}

const SIP: &str = "Sec-WebSocket-Protocol: chat, sip\r\n";

/// Accepts the handshake, greets, echoes until the end, says goodbye.
fn echo(name: &'static str) -> WebServer {
    WebServer::raw(move |mut stream, _| {
        let Ok(head) = stream.head() else { return };
        assert!(head.contains("\r\nUpgrade: websocket\r\n"), "{head}");
        assert!(head.contains("\r\nConnection: Upgrade\r\n"), "{head}");
        stream.send(format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\nI am {name};"
        ));
        while let Ok(bytes) = stream.some() {
            if stream.try_send(bytes).is_err() {
                return;
            }
        }
        let _ = stream.try_send("goodbye");
    })
}

#[test]
fn websocket_of_sip_goes_to_the_websocket_port_and_the_rest_to_http() {
    let (web, ws) = (echo("http"), echo("ws"));
    let lb = Setup::two_entry().set("httpPort", "HTTP").start();
    let node = lb.web_node("n", &web, &[("wsPort", &ws.address().port().to_string())]);
    for (protocol, name) in
        [(SIP, "ws"), ("Sec-WebSocket-Protocol: chat\r\n", "http"), ("", "http")]
    {
        let mut client = WebStream::connect(lb.http());
        client.send(handshake(protocol));
        assert!(client.head().unwrap().starts_with("HTTP/1.1 101 "), "{protocol}");
        assert_eq!(
            client.until(b";").unwrap(),
            format!("I am {name};"),
            "the node may speak first"
        );
    }
    node.set_property("wsPort", "");
    lb.wait_node("no wsPort", |it| it.property("wsPort").is_none());
    assert_eq!(lb.ask(handshake(SIP)).status(), 503);
    let mut client = WebStream::connect(lb.http());
    client.send(handshake(""));
    assert!(client.head().unwrap().starts_with("HTTP/1.1 101 "));
}

#[test]
fn after_101_bytes_pass_unread_and_ends_are_passed_on() {
    let server = echo("n");
    let lb = Setup::two_entry().set("httpPort", "HTTP").set("logLevel", "DEBUG").start();
    let _node = lb.web_node("n", &server, &[]);
    let mut client = WebStream::connect(lb.http());
    let early = "GET /smuggled HTTP/1.1\r\n\r\n";
    client.send(format!("{}{early}", handshake("")));
    client.head().unwrap();
    assert_eq!(client.until(b";").unwrap(), "I am n;");
    assert_eq!(client.bytes(early.len()).unwrap(), early.as_bytes());
    let all: Vec<u8> = (0..=255).cycle().take(3_000_000).collect();
    client.send(&all[..1_000]);
    assert_eq!(client.bytes(1_000).unwrap(), &all[..1_000]);
    assert_eq!(lb.metric("trunkline_http_tunnels"), 1.0);
    for piece in all[1_000..].chunks(100_000) {
        client.send(piece);
        assert!(client.bytes(piece.len()).unwrap() == piece);
    }
    client.end();
    assert_eq!(client.rest(), (b"goodbye".to_vec(), End::Closed), "half-close is kept");
    wait_for("the tunnel to be gone", || {
        (lb.metric("trunkline_http_tunnels") == 0.0).then_some(())
    });
    let to_node = 3_000_000.0 + early.len() as f64;
    let to_client = to_node + "I am n;goodbye".len() as f64;
    assert_eq!(lb.metric("trunkline_http_tunnel_bytes_total{to=\"node\"}"), to_node);
    assert_eq!(lb.metric("trunkline_http_tunnel_bytes_total{to=\"client\"}"), to_client);
    lb.wait_log(&format!("tunnel closed to_node={to_node} to_client={to_client}"));
    assert_eq!(lb.metric("trunkline_http_tunnels_total"), 1.0);
}

#[test]
fn a_tunnel_in_which_nobody_speaks_ends_after_its_time() {
    let server = echo("n");
    let lb = Setup::two_entry().set("httpPort", "HTTP").set("httpTunnelTimeout", "300").start();
    let _node = lb.web_node("n", &server, &[]);
    let mut client = WebStream::connect(lb.http());
    client.send(handshake(""));
    assert!(client.head().unwrap().starts_with("HTTP/1.1 101 "));
    assert_eq!(client.until(b";").unwrap(), "I am n;");
    assert_eq!(client.rest(), (Vec::new(), End::Closed), "in good order");
    wait_for("the tunnel to be gone", || {
        (lb.metric("trunkline_http_tunnels") == 0.0).then_some(())
    });
}

#[test]
fn a_refused_handshake_is_an_ordinary_answer() {
    let server = WebServer::start(|asked| match asked.line().1 {
        "/chat" => b"HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno".to_vec(),
        _ => ok("yes"),
    });
    let (lb, _node) = stage(&server);
    let mut client = WebStream::connect(lb.http());
    client.send(handshake(""));
    let answer = client.answer();
    assert_eq!((answer.status(), answer.text().as_str()), (403, "no"));
    client.send(get("/"));
    assert_eq!(client.answer().text(), "yes", "and the connection goes on");
}

#[test]
fn a_tunnel_whose_node_dies_is_reset() {
    let server = echo("n");
    let (lb, _node) = stage(&server);
    let mut client = WebStream::connect(lb.http());
    client.send(handshake(""));
    client.head().unwrap();
    client.until(b";").unwrap();
    server.close();
    assert_eq!(client.rest().1, End::Reset);
}
