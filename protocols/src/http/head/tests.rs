extern crate std;
use std::format;
use std::string::String;
use std::vec::Vec;

use super::*;
use crate::testing::Random;

/// The head at the front, read, and what is passed on.
fn request(bytes: &[u8]) -> Result<(Request, String), Malformed> {
    let mut edits = Edits::new();
    let length = Scan::default().head(bytes)?.expect("a whole head");
    let head = &bytes[..length];
    let request = Request::parse(head, &mut edits)?;
    let mut out = Vec::new();
    edits.apply(head, &mut out).expect("few edits");
    Ok((request, String::from_utf8_lossy(&out).into_owned()))
}

fn response(bytes: &[u8], method: Method) -> Result<(Response, String), Malformed> {
    let mut edits = Edits::new();
    let length = Scan::default().head(bytes)?.expect("a whole head");
    let head = &bytes[..length];
    let response = Response::parse(head, method, &mut edits)?;
    let mut out = Vec::new();
    edits.apply(head, &mut out).expect("few edits");
    Ok((response, String::from_utf8_lossy(&out).into_owned()))
}

#[test]
fn lines_for_one_hop_go_and_all_others_stay() {
    let cases = [
        ("nothing to do", "GET /a HTTP/1.1\r\nHost: h\r\nx-A:  b \r\n\r\n", None),
        (
            "the usual",
            "GET / HTTP/1.1\r\nHost: h\r\nConnection: keep-alive\r\nKeep-Alive: 5\r\nTE: trailers\r\nProxy-Connection: x\r\nA: b\r\n\r\n",
            Some("GET / HTTP/1.1\r\nHost: h\r\nA: b\r\n\r\n"),
        ),
        (
            "nominated",
            "GET / HTTP/1.1\r\nx-mine: 1\r\nHost: h\r\nConnection: X-Mine, close,host\r\nConnection: X-Other\r\nX-Other:\r\n\r\n",
            Some("GET / HTTP/1.1\r\nHost: h\r\n\r\n"),
        ),
        (
            "what frames is not nominated",
            "POST / HTTP/1.1\r\nHost: h\r\nConnection: content-length, transfer-encoding\r\nContent-Length: 5\r\n\r\n",
            Some("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n"),
        ),
        (
            "an upgrade we do not serve",
            "GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n\r\n",
            Some("GET / HTTP/1.1\r\nHost: h\r\n\r\n"),
        ),
        (
            "a handshake",
            "GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            None,
        ),
        (
            "a browser's handshake",
            "GET / HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, Upgrade\r\nKeep-Alive: 1\r\nUpgrade: websocket\r\n\r\n",
            Some("GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"),
        ),
        (
            "a handshake that would take something else too",
            "GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: h2c, WebSocket\r\nUpgrade: x\r\n\r\n",
            Some("GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"),
        ),
        (
            "HTTP/1.0",
            "GET /a HTTP/1.0\r\nHost: h\r\n\r\n",
            Some("GET /a HTTP/1.1\r\nHost: h\r\n\r\n"),
        ),
        ("HTTP/1.0 without Host", "GET /a HTTP/1.0\r\nA: b\r\n\r\n", None),
        (
            "absolute form",
            "GET HTTP://example.com:8080/a?b HTTP/1.1\r\nHost: other\r\n\r\n",
            Some("GET /a?b HTTP/1.1\r\nHost: example.com:8080\r\n\r\n"),
        ),
        (
            "absolute form of HTTP/1.0 without Host",
            "GET http://example.com/a HTTP/1.0\r\nA: b\r\n\r\n",
            Some("GET /a HTTP/1.1\r\nA: b\r\nHost: example.com\r\n\r\n"),
        ),
        (
            "absolute form without a path",
            "GET https://example.com?b HTTP/1.1\r\nHost: \r\n\r\n",
            Some("GET /?b HTTP/1.1\r\nHost: example.com\r\n\r\n"),
        ),
        (
            "a probe goes one hop less far",
            "OPTIONS * HTTP/1.1\r\nHost: h\r\nMax-Forwards: 10\r\n\r\n",
            Some("OPTIONS * HTTP/1.1\r\nHost: h\r\nMax-Forwards: 9\r\n\r\n"),
        ),
        (
            "OPTIONS of a whole server",
            "OPTIONS http://example.com HTTP/1.1\r\nHost: h\r\n\r\n",
            Some("OPTIONS * HTTP/1.1\r\nHost: example.com\r\n\r\n"),
        ),
    ];
    for (name, text, want) in cases {
        let (read, out) = request(text.as_bytes()).unwrap_or_else(|it| panic!("{name}: {it:?}"));
        assert_eq!(out, want.unwrap_or(text), "{name}");
        assert_eq!(read.bytes, text.len(), "{name}");
    }
}

#[test]
fn requests_say_what_they_say() {
    let (it, _) = request(
        b"POST /a;jsessionid=1?b HTTP/1.1\r\nhOST: h:80\r\nCookie: a=b\r\ncookie: jsessionid=x.n1\r\n\
          Expect: 100-Continue\r\nTransfer-Encoding: Chunked\r\n\r\n",
    )
    .unwrap();
    let head = b"POST /a;jsessionid=1?b HTTP/1.1\r\nhOST: h:80\r\nCookie: a=b\r\ncookie: jsessionid=x.n1\r\n";
    assert_eq!(it.method, Method::Post);
    assert_eq!(it.target.of(head), b"/a;jsessionid=1?b");
    assert_eq!(it.host.unwrap().of(head), b"h:80");
    assert_eq!(it.session_cookie.unwrap().of(head), b"x.n1");
    assert_eq!(it.framing, Framing::Chunked);
    assert!(it.is_persistent && it.expects_continue && it.upgrade.is_none());

    let blanks = "POST / HTTP/1.1\r\nHost:\th \r\nContent-Length: \t5 \t\r\n\r\n";
    assert_eq!(request(blanks.as_bytes()).unwrap().0.framing, Framing::Length(5));
    let blanks = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding:chunked\t\r\n\r\n";
    assert_eq!(request(blanks.as_bytes()).unwrap().0.framing, Framing::Chunked);

    let persistent = [
        ("HTTP/1.1\r\nHost: h\r\n", true),
        ("HTTP/1.1\r\nHost: h\r\nConnection: Close\r\n", false),
        ("HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, close\r\n", false),
        ("HTTP/1.0\r\n", false),
        ("HTTP/1.0\r\nConnection: Keep-Alive\r\n", true),
    ];
    for (text, want) in persistent {
        let (it, _) = request(format!("GET / {text}\r\n").as_bytes()).unwrap();
        assert_eq!(it.is_persistent, want, "{text}");
    }
}

#[test]
fn websocket_handshakes_are_told_apart() {
    let line = "GET / HTTP/1.1\r\nHost: h\r\n";
    let cases = [
        ("Connection: upgrade\r\nUpgrade: WebSocket\r\n", Some(false)),
        (
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: chat, SIP\r\n",
            Some(true),
        ),
        (
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: sips\r\n",
            Some(false),
        ),
        ("Upgrade: websocket\r\n", None),
        ("Connection: Upgrade\r\n", None),
        ("Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 1\r\n", None),
        ("Sec-WebSocket-Protocol: sip\r\n", None),
    ];
    for (fields, want) in cases {
        let (it, _) = request(format!("{line}{fields}\r\n").as_bytes()).unwrap();
        assert_eq!(it.upgrade.map(|it| it.is_sip), want, "{fields}");
    }
    let post = "POST / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    assert_eq!(request(post.as_bytes()).unwrap().0.upgrade, None);
}

/// What readers have disagreed about: every row was a way to smuggle a request past somebody.
#[test]
fn doubtful_requests_are_refused() {
    use Malformed::{Coding, Connect, Framing, Host, Http2, Syntax, Version};
    let cases: &[(&str, &str, Malformed)] = &[
        ("length and coding", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", Framing),
        ("coding and length", "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", Framing),
        ("two lengths", "Content-Length: 5\r\nContent-Length: 6\r\n", Framing),
        ("the same length twice", "Content-Length: 5\r\nContent-Length: 5\r\n", Framing),
        ("a list of lengths", "Content-Length: 5, 5\r\n", Framing),
        ("negative length", "Content-Length: -1\r\n", Framing),
        ("signed length", "Content-Length: +5\r\n", Framing),
        ("hexadecimal length", "Content-Length: 0x5\r\n", Framing),
        ("empty length", "Content-Length:\r\n", Framing),
        ("length of 65 bits", "Content-Length: 18446744073709551616\r\n", Framing),
        ("length with a blank", "Content-Length: 5 5\r\n", Framing),
        ("chunked twice", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", Framing),
        ("chunked twice in a list", "Transfer-Encoding: chunked, chunked\r\n", Coding),
        ("unknown coding", "Transfer-Encoding: xchunked\r\n", Framing),
        ("chunked not last", "Transfer-Encoding: chunked, gzip\r\n", Framing),
        ("identity", "Transfer-Encoding: identity\r\n", Framing),
        ("identity and chunked", "Transfer-Encoding: identity, chunked\r\n", Coding),
        ("empty coding", "Transfer-Encoding:\r\n", Framing),
        ("quoted coding", "Transfer-Encoding: \"chunked\"\r\n", Framing),
        (
            "coding in two lines",
            "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n",
            Framing,
        ),
        ("vertical tab", "Transfer-Encoding:\x0bchunked\r\n", Syntax),
        ("blank before the colon", "Transfer-Encoding : chunked\r\n", Syntax),
        ("tab before the colon", "Content-Length\t: 5\r\n", Syntax),
        ("folded", "Transfer-Encoding:\r\n chunked\r\n", Syntax),
        ("folded behind", "A: b\r\n\tc\r\n", Syntax),
        ("blank in front of a name", " A: b\r\n", Syntax),
        ("bare LF", "A: b\nTransfer-Encoding: chunked\r\n", Syntax),
        ("bare CR", "A: b\rTransfer-Encoding: chunked\r\n", Syntax),
        ("NUL", "A: \0\r\n", Syntax),
        ("no name", ": b\r\n", Syntax),
        ("no colon", "A\r\n", Syntax),
        ("name with a blank", "A b: c\r\n", Syntax),
        ("name beyond ASCII", "\u{e4}: c\r\n", Syntax),
        ("two hosts", "Host: other\r\n", Host),
    ];
    for (name, fields, want) in cases {
        let text = format!("POST / HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
        let got = request(text.as_bytes());
        assert_eq!(got.err(), Some(*want), "{name}");
    }
    let lines: &[(&str, &str, Malformed)] = &[
        ("no host", "GET / HTTP/1.1\r\nA: b\r\n\r\n", Host),
        ("host with a path", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", Host),
        ("host with a user", "GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", Host),
        ("two words in host", "GET / HTTP/1.1\r\nHost: a b\r\n\r\n", Host),
        ("coding of HTTP/1.0", "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", Framing),
        ("HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Http2),
        ("HTTP/3 by name", "GET / HTTP/3.0\r\nHost: h\r\n\r\n", Version),
        ("HTTP/1.2", "GET / HTTP/1.2\r\nHost: h\r\n\r\n", Version),
        ("two blanks", "GET  / HTTP/1.1\r\nHost: h\r\n\r\n", Syntax),
        ("a target of two words", "GET /a b HTTP/1.1\r\nHost: h\r\n\r\n", Version),
        ("CR in the target", "GET /a\rb HTTP/1.1\r\nHost: h\r\n\r\n", Syntax),
        ("no target", "GET HTTP/1.1\r\nHost: h\r\n\r\n", Syntax),
        ("relative target", "GET a HTTP/1.1\r\nHost: h\r\n\r\n", Syntax),
        ("star", "GET * HTTP/1.1\r\nHost: h\r\n\r\n", Syntax),
        ("another scheme", "GET ftp://a/ HTTP/1.1\r\nHost: h\r\n\r\n", Syntax),
        ("a user in the target", "GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n", Host),
        ("CONNECT", "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", Connect),
        ("method that is no token", "G(T / HTTP/1.1\r\nHost: h\r\n\r\n", Syntax),
        ("not HTTP", "hello\r\n\r\n", Syntax),
        ("bare LF everywhere", "GET / HTTP/1.1\nHost: h\n\n", Syntax),
        ("bare LF at the end", "GET / HTTP/1.1\r\nHost: h\r\n\n", Syntax),
    ];
    for (name, text, want) in lines {
        assert_eq!(request(text.as_bytes()).err(), Some(*want), "{name}");
    }
}

#[test]
fn heads_have_limits() {
    let mut scan = Scan::default();
    let mut endless = b"GET /".to_vec();
    endless.resize(HEAD_BYTES_MAX, b'a');
    assert_eq!(scan.head(&endless[..HEAD_BYTES_MAX - 1]), Ok(None));
    assert_eq!(scan.head(&endless), Err(Malformed::TargetTooLong));
    let mut endless = b"GET / HTTP/1.1\r\nA: ".to_vec();
    endless.resize(HEAD_BYTES_MAX + 7, b'a');
    assert_eq!(Scan::default().head(&endless), Err(Malformed::TooLong));
    let many = format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", "A: b\r\n".repeat(LINES_MAX));
    assert_eq!(request(many.as_bytes()).err(), Some(Malformed::TooLong));
    let full = format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", "A: b\r\n".repeat(LINES_MAX - 1));
    assert!(request(full.as_bytes()).is_ok());
    // Each line is compared with each of these.
    for (options, is_read) in [(32, true), (33, false)] {
        for line in ["a,", "Connection: a\r\n"] {
            let all = line.repeat(options);
            let field = if line.len() == 2 { format!("Connection: {all}\r\n") } else { all };
            let asked = request(format!("GET / HTTP/1.1\r\nHost: h\r\n{field}\r\n").as_bytes());
            let answered =
                response(format!("HTTP/1.1 204 No\r\n{field}\r\n").as_bytes(), Method::Get);
            let want = (!is_read).then_some(Malformed::TooLong);
            assert_eq!((asked.err(), answered.err()), (want, want), "{options} times {line:?}");
        }
    }
}

#[test]
fn responses_are_framed_by_status_method_and_fields() {
    use Framing::{Chunked, Length, UntilClose};
    let none = Length(0);
    let cases: &[(&str, &str, Method, Framing, bool)] = &[
        ("length", "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n", Method::Get, Length(7), true),
        (
            "chunked",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n",
            Method::Get,
            Chunked,
            true,
        ),
        ("until close", "HTTP/1.1 200 OK\r\n", Method::Get, UntilClose, false),
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n", Method::Head, none, true),
        (
            "HEAD, chunked",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n",
            Method::Head,
            none,
            true,
        ),
        ("304", "HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n", Method::Get, none, true),
        ("204", "HTTP/1.1 204 No Content\r\n", Method::Get, none, true),
        ("100", "HTTP/1.1 100 Continue\r\n", Method::Post, none, true),
        ("no reason", "HTTP/1.1 200\r\nContent-Length: 7\r\n", Method::Get, Length(7), true),
        (
            "closes",
            "HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n",
            Method::Get,
            Length(7),
            false,
        ),
        ("HTTP/1.0", "HTTP/1.0 200 OK\r\nContent-Length: 7\r\n", Method::Get, Length(7), false),
        (
            "HTTP/1.0 kept",
            "HTTP/1.0 200 OK\r\nContent-Length: 7\r\nConnection: keep-alive\r\n",
            Method::Get,
            Length(7),
            true,
        ),
    ];
    for (name, fields, method, framing, is_persistent) in cases {
        let (it, out) = response(format!("{fields}\r\n").as_bytes(), *method).unwrap();
        assert_eq!((it.framing, it.is_persistent), (*framing, *is_persistent), "{name}");
        assert!(out.starts_with("HTTP/1.1 "), "{name}");
    }
}

#[test]
fn responses_lose_what_is_for_one_hop() {
    let text = "HTTP/1.0 200 OK\r\nServer: x\r\nConnection: keep-alive\r\nKeep-Alive: timeout=20, max=5\r\nContent-Length: 0\r\n\r\n";
    let (it, out) = response(text.as_bytes(), Method::Get).unwrap();
    assert_eq!(out, "HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(it.keeps_secs, Some(20));
    let text = "HTTP/1.1 200 OK\r\nContent-Length: 7\r\nA: b\r\nContent-Length: 7\r\n\r\n";
    let (it, out) = response(text.as_bytes(), Method::Get).unwrap();
    assert_eq!(out, "HTTP/1.1 200 OK\r\nContent-Length: 7\r\nA: b\r\n\r\n", "said once is enough");
    assert_eq!(it.framing, Framing::Length(7));
    let text = "HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
    assert_eq!(response(text.as_bytes(), Method::Get).unwrap().1, text);
    let text = "HTTP/1.1 200 OK\r\nA: b\r\nTransfer-Encoding: chunked\r\nC: d\r\n\r\n";
    let (it, _) = response(text.as_bytes(), Method::Get).unwrap();
    assert_eq!(it.coding.unwrap().of(text.as_bytes()), b"Transfer-Encoding: chunked\r\n");
}

#[test]
fn doubtful_responses_are_refused() {
    let cases = [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: x\r\nContent-Length: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\nContent-Length: 6\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 099 Low\r\n\r\n",
        "HTTP/1.1 20 Short\r\n\r\n",
        "HTTP/1.1 2000 Long\r\n\r\n",
        "HTTP/2 200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
        "HTTP/1.1 200 OK\nA: b\n\n",
        "ICY 200 OK\r\n\r\n",
    ];
    for text in cases {
        assert!(response(text.as_bytes(), Method::Get).is_err(), "{text:?}");
    }
}

const REQUEST: &[u8] = b"POST http://a.example/app;jsessionid=1.n1?appsession=7 HTTP/1.1\r\nHost: b.example\r\n\
    Connection: X-A, keep-alive\r\nCookie: a=b; JSESSIONID=c.n1\r\nX-A: b\r\nContent-Length: 3\r\n\r\nabc";

#[test]
fn a_head_that_comes_in_pieces_is_found_at_the_same_place() {
    for seed in 0..2_000 {
        let mut random = Random::new(seed);
        let bytes = if seed == 0 { REQUEST.to_vec() } else { random.mutate(REQUEST) };
        let whole = Scan::default().head(&bytes);
        let mut scan = Scan::default();
        let mut end = 0;
        let mut found = Ok(None);
        while end < bytes.len() && found == Ok(None) {
            end += 1 + random.below(7).min(bytes.len() - end - 1);
            found = scan.head(&bytes[..end]);
        }
        assert_eq!(found, whole, "seed {seed}");
    }
}

#[test]
fn whatever_is_accepted_is_accepted_again_and_changes_no_more() {
    let mut accepted = 0;
    for seed in 0..20_000 {
        let mut random = Random::new(seed);
        let bytes = random.mutate(REQUEST);
        let Ok(Some(length)) = Scan::default().head(&bytes) else { continue };
        let mut edits = Edits::new();
        let mut method = Method::Get;
        if let Ok(read) = Request::parse(&bytes[..length], &mut edits) {
            let mut out = Vec::new();
            edits.apply(&bytes[..length], &mut out).unwrap();
            let (again, unchanged) =
                request(&out).unwrap_or_else(|it| panic!("seed {seed}: {it:?} {out:?}"));
            assert_eq!(
                unchanged.as_bytes(),
                String::from_utf8_lossy(&out).as_bytes(),
                "seed {seed}"
            );
            assert_eq!((again.framing, again.method), (read.framing, read.method), "seed {seed}");
            accepted += 1;
            method = read.method;
        }
        let _ = Response::parse(&bytes[..length], method, &mut edits);
    }
    assert!(accepted > 1_000, "{accepted}");
}

#[test]
fn empty_lines_in_front_are_counted() {
    for (bytes, want) in
        [(&b"\r\n\r\nGET"[..], 4), (b"\r", 0), (b"\n\n", 0), (b"", 0), (b"GET", 0), (b"\r\n\r", 2)]
    {
        assert_eq!(empty_lines(bytes), want, "{bytes:?}");
    }
}

#[test]
fn fields_are_found_by_name() {
    let head = b"GET / HTTP/1.1\r\nA: 1\r\nab: 2\r\nAB:3\r\n\r\n";
    assert_eq!(field(head, b"a"), Some(&b"1"[..]));
    let of_ab: Vec<_> = lines(head, b"Ab").map(|it| it.of(head)).collect();
    assert_eq!(of_ab, [&b"ab: 2\r\n"[..], b"AB:3\r\n"]);
    assert_eq!(field(head, b"abc"), None);
}

/// What versions there are is for whoever asked for one (RFC 9110 §15.5.22, RFC 6455 §4.4).
#[test]
fn a_426_says_what_to_upgrade_to() {
    for (head, want) in [
        (
            "HTTP/1.1 426 No\r\nConnection: close, Upgrade\r\nUpgrade: websocket\r\nKeep-Alive: 1\r\n\r\n",
            "HTTP/1.1 426 No\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        ),
        (
            "HTTP/1.1 426 No\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
            "HTTP/1.1 426 No\r\n\r\n",
        ),
        (
            "HTTP/1.1 200 Yes\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            "HTTP/1.1 200 Yes\r\n\r\n",
        ),
    ] {
        let (mut edits, mut out) = (Edits::default(), Vec::new());
        let read = Response::parse(head.as_bytes(), Method::Get, &mut edits).unwrap();
        edits.apply(head.as_bytes(), &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), want);
        assert_eq!(read.framing, Framing::UntilClose, "{head}");
    }
}

#[test]
fn a_target_with_a_fragment_is_none() {
    for target in ["/a#b", "/#", "/a?b#c", "http://h/a#b", "http://h#b"] {
        let text = format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n");
        assert!(request(text.as_bytes()).is_err(), "{target}");
    }
}
