//! HTTPS: ends here, goes on inside TLS, names, ALPN, resumption (`http-smpp-registry.md` 1.11).

use std::sync::Arc;

use rustls::{ClientConfig, HandshakeKind};
use tests::web::{Answer, End, WebServer, WebStream, get, ok};
use tests::{Balancer, Node, Setup, keys};

fn secure() -> Setup {
    Setup::two_entry().certified().set("httpPort", "HTTP").set("httpsPort", "HTTPS")
}

fn stage(setup: &Setup) -> (Balancer, WebServer, Node) {
    let lb = setup.start();
    let server = WebServer::start(|asked| ok(&format!("plain {}", asked.line().1)));
    let node = lb.web_node("n", &server, &[]);
    (lb, server, node)
}

fn connect(lb: &Balancer, config: &Arc<ClientConfig>) -> WebStream {
    WebStream::connect_secure(lb.https(), config, "lb.test").unwrap()
}

fn client_config() -> Arc<ClientConfig> {
    Arc::new(keys().client(None))
}

fn ask(stream: &mut WebStream, target: &str) -> Answer {
    stream.send(get(target));
    stream.answer()
}

#[test]
fn http_1_1_is_offered_and_whoever_wants_only_something_else_is_told() {
    let (lb, _server, _node) = stage(&secure());
    for (offered, agreed) in [
        (&[&b"h2"[..], b"http/1.1"][..], Some(&b"http/1.1"[..])),
        (&[&b"http/1.1"[..]][..], Some(&b"http/1.1"[..])),
        (&[&b"http/1.0"[..]][..], Some(&b"http/1.0"[..])),
        (&[][..], None),
    ] {
        let mut config = keys().client(None);
        config.alpn_protocols = offered.iter().map(|it| it.to_vec()).collect();
        let mut client = connect(&lb, &Arc::new(config));
        assert_eq!(client.alpn.as_deref(), agreed);
        assert_eq!(ask(&mut client, "/").status(), 200);
    }
    let mut config = keys().client(None);
    config.alpn_protocols = vec![b"h2".to_vec()];
    let refused = WebStream::connect_secure(lb.https(), &Arc::new(config), "lb.test");
    let error = refused.err().expect("nothing in common").to_string();
    assert!(error.contains("NoApplicationProtocol"), "{error}");
    let mut client = connect(&lb, &client_config());
    client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    assert_eq!(client.rest(), (vec![], End::Closed), "and the preface without ALPN a clean close");
}

#[test]
fn sessions_are_resumed_on_every_shard() {
    let (lb, _server, _node) = stage(&secure().set("shards", "2"));
    let config = client_config();
    assert_eq!(ask(&mut connect(&lb, &config), "/").status(), 200);
    let kinds: Vec<Option<HandshakeKind>> = (0..8)
        .map(|_| {
            let mut client = connect(&lb, &config);
            assert_eq!(ask(&mut client, "/").status(), 200);
            client.handshake
        })
        .collect();
    assert_eq!(kinds, [Some(HandshakeKind::Resumed); 8]);
}

#[test] // RFC 6066 §3
fn each_name_gets_its_own_certificate() {
    let store = |name: &str| {
        let path = keys().path(name);
        std::fs::write(&path, keys().sign(name, |_| {}).pem).unwrap();
        path.display().to_string()
    };
    let stores = ["one.test", "two.test", "three.test"].map(store).join(",");
    let (lb, _server, _node) = stage(&secure().set("javax.net.ssl.keyStore", &stores));
    for version in rustls::ALL_VERSIONS {
        let config = Arc::new(keys().client_of(None, &[version]));
        let reach = |name: &str| WebStream::connect_secure(lb.https(), &config, name);
        for name in ["one.test", "TWO.test", "three.test"] {
            let mut client = reach(name).unwrap_or_else(|it| panic!("{name} {version:?}: {it}"));
            assert_eq!(client.handshake, Some(HandshakeKind::Full), "{name} {version:?}");
            assert_eq!(ask(&mut client, "/").status(), 200, "{name} {version:?}");
            client = reach(name).unwrap();
            assert_eq!(client.handshake, Some(HandshakeKind::Resumed), "{name} {version:?}");
        }
        let shown = reach("nobody.test").err().expect("nobody's name").to_string();
        assert!(shown.contains("\"one.test\""), "the first of the list: {shown}");
    }
}

#[test]
fn requests_go_on_to_the_port_that_the_keys_say() {
    let tls = || {
        let config = keys().server(&keys().sign("node.test", |_| {}), false);
        WebServer::start_secure(config, |asked| ok(&format!("tls {}", asked.line().1)))
    };
    /// Keys, does the node have an sslPort, what HTTPS and HTTP reach.
    type Case<'c> = (&'c [(&'c str, &'c str)], bool, &'c str, &'c str);
    let cases: &[Case<'_>] = &[
        (&[], true, "plain", "plain"),
        (&[("isRemoteServerSsl", "true")], true, "tls", "tls"),
        (&[("httpReencrypt", "true")], true, "tls", "plain"),
        (&[("httpReencrypt", "true"), ("terminateTLSTraffic", "true")], true, "plain", "plain"),
        (&[("httpReencrypt", "true")], false, "503", "plain"),
    ];
    for (extra, has_tls, by_https, by_http) in cases {
        let setup = extra.iter().fold(secure(), |setup, (key, value)| setup.set(key, value));
        let lb = setup.start();
        let plain = WebServer::start(|asked| ok(&format!("plain {}", asked.line().1)));
        let secure = tls();
        let port = secure.address().port().to_string();
        let _node = lb.web_node("n", &plain, &[("sslPort", if *has_tls { &port } else { "" })]);
        let said = |answer: Answer| match answer.status() {
            200 => answer.text().split(' ').next().unwrap().to_owned(),
            other => other.to_string(),
        };
        for _ in 0..2 {
            assert_eq!(said(ask(&mut connect(&lb, &client_config()), "/")), *by_https, "{extra:?}");
            assert_eq!(said(lb.ask(get("/"))), *by_http, "{extra:?}");
        }
        if *by_https == "tls" {
            assert_eq!(secure.connections(), 1, "{extra:?}: kept, as plain ones are");
        }
    }
}

#[test]
fn a_node_whose_handshake_fails_is_passed_over() {
    let lb = secure().set("httpReencrypt", "true").start();
    let no_tls = WebServer::raw(|mut stream, _| {
        let _ = stream.some();
        let _ = stream.try_send("HTTP/1.1 400 This is plain\r\n\r\n");
    });
    let port = no_tls.address().port().to_string();
    let _bad = lb.web_node("bad", &no_tls, &[("sslPort", &port)]);
    let answer = ask(&mut connect(&lb, &client_config()), "/");
    assert!(matches!(answer.status(), 502 | 503), "{answer:?}");
    let config = keys().server(&keys().sign("node.test", |_| {}), false);
    let good = WebServer::start_secure(config, |_| ok("good"));
    let port = good.address().port().to_string();
    let _good = lb.web_node("good", &good, &[("sslPort", &port)]);
    for _ in 0..4 {
        let mut client = connect(&lb, &client_config());
        assert_eq!(ask(&mut client, "/").text(), "good");
    }
}

#[test]
fn a_node_that_is_silent_in_the_handshake_has_the_time_of_a_connect() {
    let lb = secure().set("httpReencrypt", "true").set("httpConnectTimeout", "200").start();
    let silent = WebServer::raw(|mut stream, _| drop(stream.rest()));
    let port = silent.address().port().to_string();
    let _silent = lb.web_node("silent", &silent, &[("sslPort", &port), ("jvmRoute", "silent")]);
    let ask = || ask(&mut connect(&lb, &client_config()), "/;jsessionid=1.silent");
    assert_eq!(ask().status(), 504);
    assert_eq!(silent.connections(), 1, "asked once");
    let config = keys().server(&keys().sign("node.test", |_| {}), false);
    let good = WebServer::start_secure(config, |_| ok("good"));
    let port = good.address().port().to_string();
    let _good = lb.web_node("good", &good, &[("sslPort", &port)]);
    assert_eq!(ask().text(), "good", "its session is tried at home first");
    assert_eq!(silent.connections(), 2);
}

#[test]
fn large_bodies_pass_and_a_cut_body_has_no_farewell() {
    const BYTES: usize = 32 << 20;
    let lb = secure().set("httpReencrypt", "true").start();
    let body: Vec<u8> = (0..BYTES).map(|it| (it / 3 % 251) as u8).collect();
    let (up, down) = (body.clone(), body.clone());
    let config = keys().server(&keys().sign("node.test", |_| {}), false);
    let server = WebServer::start_secure(config, move |asked| {
        if asked.line().1 == "/cut" {
            return b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nConnection: close\r\n\r\nhalf"
                .to_vec();
        }
        assert!(asked.body == up, "the body came as it was sent");
        let mut answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {BYTES}\r\n\r\n").into_bytes();
        answer.extend_from_slice(&down);
        answer
    });
    let plain = WebServer::named("plain");
    let port = server.address().port().to_string();
    let _node = lb.web_node("n", &plain, &[("sslPort", &port)]);
    let mut client = connect(&lb, &client_config());
    client.send(format!("POST / HTTP/1.1\r\nHost: lb\r\nContent-Length: {BYTES}\r\n\r\n"));
    client.send(&body);
    assert!(client.answer().body == body);
    client.send("POST /cut HTTP/1.1\r\nHost: lb\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(client.rest().1, End::Reset);
}

#[test]
fn websocket_over_tls_reaches_the_websocket_port_of_its_kind() {
    let upgraded = |name: &'static str| {
        move |mut stream: WebStream, _| {
            let Ok(head) = stream.head() else { return };
            assert!(head.contains("Sec-WebSocket-Protocol: sip\r\n"), "{head}");
            stream.send(format!(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Protocol: sip\r\n\r\n{name};"
            ));
            while let Ok(bytes) = stream.some() {
                if stream.try_send(bytes).is_err() {
                    return;
                }
            }
        }
    };
    let handshake = "GET / HTTP/1.1\r\nHost: lb\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Protocol: sip\r\n\r\n";
    let keys_of = [("", "ws"), ("httpReencrypt", "wss"), ("isRemoteServerSsl", "wss")];
    for (key, name) in keys_of {
        let lb = if key.is_empty() { secure() } else { secure().set(key, "true") }.start();
        let plain = WebServer::raw(upgraded("ws"));
        let config = keys().server(&keys().sign("node.test", |_| {}), false);
        let tls = WebServer::raw_secure(config, upgraded("wss"));
        let ports = [plain.address().port().to_string(), tls.address().port().to_string()];
        let http = WebServer::named("http");
        let _node = lb.web_node("n", &http, &[("wsPort", &ports[0]), ("wssPort", &ports[1])]);
        let mut client = connect(&lb, &client_config());
        client.send(handshake);
        assert!(client.head().unwrap().starts_with("HTTP/1.1 101 "), "{name}");
        assert_eq!(client.until(b";").unwrap(), format!("{name};"));
        client.send(b"\x81\x82\0\0\0\0hi");
        assert_eq!(client.bytes(8).unwrap(), b"\x81\x82\0\0\0\0hi");
    }
    // Plain clients as well, where nodes are reached by TLS alone.
    let lb = secure().set("isRemoteServerSsl", "true").start();
    let config = keys().server(&keys().sign("node.test", |_| {}), false);
    let tls = WebServer::raw_secure(config, upgraded("wss"));
    let port = tls.address().port().to_string();
    let http = WebServer::named("http");
    let _node = lb.web_node("n", &http, &[("wsPort", "9"), ("wssPort", &port)]);
    let mut client = WebStream::connect(lb.http());
    client.send(handshake);
    assert!(client.head().unwrap().starts_with("HTTP/1.1 101 "));
    assert_eq!(client.until(b";").unwrap(), "wss;");
}

#[test]
fn the_end_of_one_direction_passes_through_tls_and_bytes_are_counted() {
    let lb = secure().set("httpReencrypt", "true").start();
    let config = keys().server(&keys().sign("node.test", |_| {}), false);
    let server = WebServer::raw_secure(config, |mut stream, _| {
        let Ok(_) = stream.head() else { return };
        stream.send(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        );
        let (said, end) = stream.rest();
        assert_eq!((said.as_slice(), end), (&b"that was all"[..], End::Closed));
        stream.send("and this as well");
        stream.farewell();
    });
    let port = server.address().port().to_string();
    let http = WebServer::named("http");
    let _node = lb.web_node("n", &http, &[("sslPort", &port)]);
    let mut client = connect(&lb, &client_config());
    client.send(
        "GET / HTTP/1.1\r\nHost: lb\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
    );
    assert!(client.head().unwrap().starts_with("HTTP/1.1 101 "));
    client.send("that was all");
    client.farewell();
    assert_eq!(client.rest(), (b"and this as well".to_vec(), End::Closed));
    tests::wait_for("the tunnel to be gone", || {
        (lb.metric("trunkline_http_tunnels") == 0.0).then_some(())
    });
    let bytes = ["node", "client"]
        .map(|it| lb.metric(&format!("trunkline_http_tunnel_bytes_total{{to=\"{it}\"}}")));
    assert_eq!(bytes, [12.0, 16.0], "as they are inside TLS");
}

#[test] // 1.11: "just accept it blindly as it is on trusted network side"
fn certificates_of_nodes_are_not_checked_unless_that_is_asked_for() {
    let foreign = tests::Keys::new();
    let config = foreign.server(&foreign.sign("node.test", |_| {}), false);
    let server = WebServer::start_secure(config, |_| ok("tls"));
    let port = server.address().port().to_string();
    let plain = WebServer::named("plain");
    let lb = secure().set("httpReencrypt", "true").start();
    let _node = lb.web_node("n", &plain, &[("sslPort", &port)]);
    assert_eq!(ask(&mut connect(&lb, &client_config()), "/").text(), "tls");
    let lb = secure().set("httpReencrypt", "true").set("httpVerifyNodes", "true").start();
    let _node = lb.web_node("n", &plain, &[("sslPort", &port)]);
    let answer = ask(&mut connect(&lb, &client_config()), "/");
    assert!(matches!(answer.status(), 502 | 503), "{answer:?}");
}

#[test]
fn a_client_that_speaks_no_tls_or_stops_in_the_middle_of_it_is_let_go() {
    // Seconds.
    let (lb, _server, _node) =
        stage(&secure().set("gov.nist.javax.sip.SSL_HANDSHAKE_TIMEOUT", "1"));
    let mut plain = WebStream::connect(lb.https());
    plain.send(get("/"));
    let (bytes, _) = plain.rest();
    assert!(!bytes.starts_with(b"HTTP"), "{bytes:?}");
    let mut silent = WebStream::connect(lb.https());
    silent.send(b"\x16\x03\x01");
    let begun = std::time::Instant::now();
    assert_eq!(silent.rest().0, b"");
    assert!(begun.elapsed().as_secs() < 10, "{:?}", begun.elapsed());
    assert_eq!(ask(&mut connect(&lb, &client_config()), "/").status(), 200);
}

#[test] // `http-smpp-registry.md` 1.11: only by a key of its own
fn clients_are_asked_for_certificates_where_a_key_says_so() {
    let own = keys().sign("client.test", |_| {});
    let (known, unknown) = (Arc::new(keys().client(Some(&own))), client_config());
    let is_served = |lb: &Balancer, config: &Arc<ClientConfig>| {
        WebStream::connect_secure(lb.https(), config, "lb.test")
            .is_ok_and(|mut it| it.try_send(get("/")).is_ok() && !it.answer().is_cut)
    };
    for (sip, http, admits_unknown) in
        [("Enabled", "Disabled", true), ("Disabled", "Enabled", false), ("Disabled", "Want", true)]
    {
        let setup = secure()
            .set("gov.nist.javax.sip.TLS_CLIENT_AUTH_TYPE", sip)
            .set("httpTlsClientAuthType", http);
        let (lb, _server, _node) = stage(&setup);
        assert!(is_served(&lb, &known), "{http}");
        assert_eq!(is_served(&lb, &unknown), admits_unknown, "{http}");
    }
}

#[test]
fn the_proxy_protocol_stands_in_front_of_tls() {
    let setup = secure().set("httpProxyProtocol", "true").set("httpXForwarded", "true");
    let lb = setup.start();
    let server = WebServer::start(|asked| ok(&asked.head));
    let _node = lb.web_node("n", &server, &[]);
    let config = client_config();
    let preface = b"PROXY TCP4 198.51.100.9 127.0.0.1 4097 443\r\n";
    let mut client =
        WebStream::connect_secure_behind(preface, lb.https(), &config, "lb.test").unwrap();
    for _ in 0..2 {
        let said = String::from_utf8(ask(&mut client, "/").body).unwrap();
        assert!(said.contains("X-Forwarded-For: 198.51.100.9\r\n"), "{said}");
    }
    assert!(WebStream::connect_secure(lb.https(), &config, "lb.test").is_err(), "it is demanded");
}
