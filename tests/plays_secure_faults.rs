//! What goes wrong on TLS and WebSocket: cut handshakes, garbage, giants, liars, those who never read. After
//! each, the next good call still works. And key stores: every format, every mistake.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConfig, ClientConnection};
use tests::Transport::{Tls, Ws, Wss};
use tests::{
    Balancer, Node, SecureClient, Setup, Signed, is_installed, keys, rest, run, tcp, wait_for,
};

/// The next call, over each transport.
fn still_serves(lb: &Balancer, nodes: &[Node], after: &str) {
    for transport in [Tls, Ws, Wss] {
        let caller = lb.caller_over(transport, "good");
        let mut dialog = caller.call("sip:bob@example.com");
        caller.exchange(&mut dialog, "BYE");
        assert_eq!(tests::who_got(nodes, &dialog.call_id, "BYE").len(), 1, "after {after}");
    }
}

fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [1, 2, 3, 4];
    let mut frame = vec![first];
    match payload.len() {
        length @ ..126 => frame.push(0x80 | u8::try_from(length).unwrap()),
        length => {
            frame.push(0xfe);
            frame.extend(u16::try_from(length).unwrap().to_be_bytes());
        }
    }
    frame.extend(mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

#[test]
fn what_is_no_tls_ends_its_connection_and_nothing_else() {
    let lb = Setup::every_transport().start();
    let nodes = lb.answering_nodes(1);
    let plain: &[u8] = b"OPTIONS sip:a@b SIP/2.0\r\nVia: SIP/2.0/TLS x\r\n\r\n";
    let mut failed = 0;
    for (name, bytes) in [
        ("plain text", plain),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("zeros", &[0; 100]),
        ("noise", &[0xa5; 5_000]),
        ("SSLv2", b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10"),
        ("a record above the limit", b"\x16\x03\x01\xff\xff\x01"),
    ] {
        for transport in [Tls, Wss] {
            let mut stream = tcp(lb.external_of(transport));
            stream.write_all(bytes).unwrap();
            let answer = rest(&mut stream);
            assert!(answer.is_empty() || answer[0] == 21, "{name}: an alert or nothing");
            failed += 1;
            lb.wait_event("tls_failed", failed);
        }
        still_serves(&lb, &nodes, name);
    }
}

#[test]
fn a_cut_handshake_is_counted_and_a_stuck_one_has_its_time() {
    let lb = Setup::every_transport().set("gov.nist.javax.sip.SSL_HANDSHAKE_TIMEOUT", "1").start();
    let nodes = lb.answering_nodes(1);
    let mut hello = Vec::new();
    let mut client =
        ClientConnection::new(Arc::new(keys().client(None)), "lb.test".try_into().unwrap())
            .unwrap();
    client.write_tls(&mut hello).unwrap();
    for cut in [1, 5, 60, hello.len() - 1, hello.len()] {
        let mut stream = tcp(lb.external_of(Tls));
        stream.write_all(&hello[..cut]).unwrap();
    }
    lb.wait_event("tls_failed", 5);
    let started = std::time::Instant::now();
    let mut stuck: Vec<TcpStream> =
        vec![tcp(lb.external_of(Tls)), tcp(lb.external_of(Wss)), tcp(lb.external_of(Ws))];
    stuck[0].write_all(&hello[..20]).unwrap();
    stuck[2].write_all(b"GET / HTTP/1.1\r\nHost").unwrap();
    for stream in &mut stuck {
        assert_eq!(rest(stream), b"", "closed without a word");
    }
    assert!(started.elapsed() >= Duration::from_millis(800), "{:?}", started.elapsed());
    lb.wait_event("handshake_timeout", 3);
    still_serves(&lb, &nodes, "stuck handshakes");
}

#[test]
fn websocket_clients_that_break_the_protocol_are_told_and_closed() {
    let lb = Setup::every_transport().start();
    let nodes = lb.answering_nodes(1);
    let mut broken = 0;
    let cases: &[(&str, Vec<u8>, u16)] = &[
        ("unmasked", b"\x81\x05hello".to_vec(), 1002),
        ("reserved bits", masked(0xf1, b"x"), 1002),
        ("unknown opcode", masked(0x83, b"x"), 1002),
        ("ping in fragments", masked(0x09, b"x"), 1002),
        ("long ping", masked(0x89, &[0; 126]), 1002),
        ("continuation of nothing", masked(0x80, b"x"), 1002),
        ("not UTF-8", masked(0x81, b"\xff\xfe"), 1007),
        ("giant", b"\x82\xff\0\0\0\x01\0\0\0\0\0\0\0\0".to_vec(), 1009),
        (
            "giant in fragments",
            [masked(0x02, &[0; 60_000]), masked(0x00, &[0; 60_000])].concat(),
            1009,
        ),
    ];
    for (name, bytes, code) in cases {
        let mut stream = lb.upgraded();
        stream.write_all(bytes).unwrap();
        let mut close = [0; 4];
        stream.read_exact(&mut close).unwrap();
        assert_eq!(close[..2], [0x88, 2], "{name}");
        assert_eq!(u16::from_be_bytes([close[2], close[3]]), *code, "{name}");
        assert_eq!(rest(&mut stream), b"", "{name}");
        broken += 1;
        lb.wait_event("websocket_broken", broken);
    }
    still_serves(&lb, &nodes, "broken frames");
}

#[test]
fn control_frames_between_fragments_and_any_cut_change_nothing() {
    let lb = Setup::every_transport().start();
    let nodes = lb.answering_nodes(1);
    let peer = tests::Peer::bind("x").over(Ws);
    let message =
        |id: &str| peer.request("MESSAGE", "sip:bob@example.com").set("Call-ID", id).to_bytes();
    for (round, step) in [1usize, 7, 100, 100_000].into_iter().enumerate() {
        let ids = [format!("frag{round}"), format!("bin{round}")];
        let first = message(&ids[0]);
        let (one, two) = first.split_at(first.len() / 2);
        let bytes = [
            masked(0x01, one),
            masked(0x89, b"ping"),
            masked(0x8a, b""),
            masked(0x80, two),
            masked(0x82, &message(&ids[1])),
        ]
        .concat();
        let mut stream = lb.upgraded();
        stream.set_nodelay(true).unwrap();
        for piece in bytes.chunks(step) {
            stream.write_all(piece).unwrap();
        }
        for id in &ids {
            nodes[0].expect_in(id, "MESSAGE");
        }
        let mut pong = [0; 6];
        stream.read_exact(&mut pong).unwrap();
        assert_eq!(&pong, b"\x8a\x04ping");
    }
}

#[test]
fn who_does_not_ask_for_sip_is_not_upgraded() {
    let lb = Setup::every_transport().start();
    let nodes = lb.answering_nodes(1);
    for (count, (request, status)) in (1u64..).zip([
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", "426"),
        ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", "405"),
        ("OPTIONS sip:a@b SIP/2.0\r\nVia: x\r\n\r\n", "400"),
        (
            "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Protocol: chat\r\n\r\n",
            "400",
        ),
    ]) {
        let mut stream = tcp(lb.external_of(Ws));
        stream.write_all(request.as_bytes()).unwrap();
        let answer = String::from_utf8(rest(&mut stream)).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {answer}");
        lb.wait_event("websocket_refused", count);
    }
    still_serves(&lb, &nodes, "refusals");
}

#[test]
fn a_client_that_never_reads_is_closed_and_costs_no_more_than_its_queue() {
    let lb = Setup::every_transport().start();
    let nodes = lb.answering_nodes(1);
    let request = tests::Peer::bind("x").over(Ws).request("OPTIONS", "sip:bob@example.com");
    let request = masked(0x81, &request.to_bytes());
    let mut stream = lb.upgraded();
    stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    wait_for("the slow client to be closed", || {
        for _ in 0..500 {
            if stream.write_all(&request).is_err() {
                break;
            }
        }
        (lb.event("slow_closed") == 1).then_some(())
    });
    assert!(lb.dropped("slow_peer") >= 1);
    let heard = rest(&mut stream);
    assert_eq!(heard[heard.len() - 4..], [0x88, 2, 0x03, 0xf0], "1008, behind what was queued");
    still_serves(&lb, &nodes, "a slow reader");
}

#[test]
fn connections_are_limited_by_source_and_in_all_whichever_shard_has_them() {
    for key in ["sourceConnectionsMax", "connectionsMax"] {
        let refusals = |lb: &Balancer| match key {
            "connectionsMax" => lb.sum_of("trunkline_shard_refused_connections_total"),
            _ => lb.event("refused_source"),
        };
        let lb = Setup::every_transport().set("shards", "4").set(key, "5").start();
        let held: Vec<TcpStream> = (0..5).map(|_| lb.upgraded()).collect();
        for _ in 0..8 {
            assert_eq!(rest(&mut tcp(lb.external_of(Ws))), b"", "{key}");
        }
        wait_for("refusals", || (refusals(&lb) == 8).then_some(()));
        let reason = if key == "connectionsMax" { "connections" } else { "source_connections" };
        lb.wait_log(&format!("refused reason={reason} at=SIP/WS source=127.0.0.1"));
        drop(held);
        wait_for("room", || {
            let mut stream = tcp(lb.external_of(Ws));
            stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            let nothing = stream.read(&mut [0; 1]);
            nothing.is_err().then_some(()) // still open
        });
    }
}

fn terms(own: Option<&Signed>) -> Arc<ClientConfig> {
    Arc::new(keys().client(own))
}

#[test]
fn clients_show_certificates_where_they_must() {
    let trusted = keys().sign("phone.test", |_| {});
    let stranger = rcgen::generate_simple_self_signed(vec!["stranger".to_owned()]).unwrap();
    let stranger = Signed {
        certificate: stranger.cert.der().clone(),
        pem: String::new(),
        key: stranger.signing_key.serialize_der(),
    };
    for (policy, nobody, friend, foe) in [
        ("Enabled", false, true, false),
        ("Want", true, true, false),
        ("Disabled", true, true, true),
        ("Default", true, true, true),
        ("DisabledAll", true, true, true),
    ] {
        let lb =
            Setup::every_transport().set("gov.nist.javax.sip.TLS_CLIENT_AUTH_TYPE", policy).start();
        let _nodes = lb.answering_nodes(1);
        for (own, expected) in [(None, nobody), (Some(&trusted), friend), (Some(&stranger), foe)] {
            for transport in [Tls, Wss] {
                let got = SecureClient::ask(&terms(own), lb.external_of(transport));
                assert_eq!(got.is_ok(), expected, "{policy} {transport:?}: {got:?}");
            }
        }
    }
}

#[test]
fn a_node_with_a_foreign_certificate_gets_nothing_unless_nobody_is_checked() {
    for (policy, is_served) in [("Disabled", false), ("DisabledAll", true)] {
        // It trusts only itself, and not the authority of the nodes.
        let own = keys().path("lb.pem").display().to_string();
        let lb = Setup::every_transport()
            .set("javax.net.ssl.trustStore", &own)
            .set("gov.nist.javax.sip.TLS_CLIENT_AUTH_TYPE", policy)
            .start();
        let nodes = lb.answering_nodes(1);
        let caller = lb.caller_over(Tls, "alice");
        let request = caller.request("OPTIONS", "sip:bob@example.com");
        caller.send(&request);
        let answer = caller.expect_where("an answer", |it| it.status() >= 200);
        assert_eq!(answer.status() == 200, is_served, "{policy}: {}", answer.status());
        drop(nodes);
    }
}

#[test]
fn sessions_resume_on_every_shard_and_after_a_reload_of_certificates() {
    let directory = keys().path("");
    let store = directory.join("reload.pem");
    fs::write(&store, keys().sign("lb.test", |_| {}).pem).unwrap();
    let lb = Setup::every_transport()
        .set("shards", "2")
        .set("javax.net.ssl.keyStore", &store.display().to_string())
        .start();
    let nodes = lb.answering_nodes(1);
    let config = terms(None);
    for _ in 0..8 {
        SecureClient::ask(&config, lb.external_of(Tls)).unwrap();
    }
    wait_for("resumed sessions", || (lb.event("tls_resumed") >= 6).then_some(()));

    let caller = lb.caller_over(Tls, "alice");
    let mut dialog = caller.call("sip:bob@example.com");
    let metrics = lb.metrics();
    let days = |metrics: &str| -> f64 {
        let line = metrics.lines().find(|it| it.starts_with("trunkline_certificate_days{"));
        line.unwrap().rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert!(days(&metrics) > 365.0, "{metrics}");
    let soon = keys().sign("lb.test", |it| {
        it.not_after = rcgen::date_time_ymd(2099, 1, 1);
    });
    let years = days(&metrics) / 365.0;
    assert!(years > 100.0, "{metrics}");
    fs::write(&store, &soon.pem).unwrap();
    lb.wait_log("Certificates have been read again");
    let shown = SecureClient::ask(&terms(None), lb.external_of(Tls)).unwrap().shown();
    assert_eq!(shown, soon.certificate, "new connections see the new one");
    assert!(days(&lb.metrics()) < 100.0 * 365.0, "{}", lb.metrics());
    caller.exchange(&mut dialog, "BYE");
    assert_eq!(nodes[0].count("BYE"), 1, "the old connection lives on");

    fs::write(&store, "broken").unwrap();
    lb.wait_log("Certificates cannot be read again");
    SecureClient::ask(&config, lb.external_of(Tls)).unwrap();
}

#[test]
fn key_stores_of_java_and_openssl_open_and_mistakes_are_named() {
    if !is_installed("keytool") || !is_installed("openssl") {
        return;
    }
    let path = |name: &str| keys().path(name).display().to_string();
    for (file, kind, algorithm) in
        [("java.jks", "JKS", "RSA"), ("java.p12", "PKCS12", "RSA"), ("ec.jks", "JKS", "EC")]
    {
        let size = if algorithm == "EC" { "256" } else { "2048" };
        run(
            "keytool",
            &[
                "-genkeypair",
                "-alias",
                "lb",
                "-keyalg",
                algorithm,
                "-keysize",
                size,
                "-dname",
                "CN=lb.test",
                "-ext",
                "san=dns:lb.test",
                "-validity",
                "400",
                "-storetype",
                kind,
                "-keystore",
                &path(file),
                "-storepass",
                "123456",
                "-keypass",
                "123456",
            ],
        );
    }
    run(
        "openssl",
        &[
            "pkcs12",
            "-export",
            "-in",
            &path("lb.pem"),
            "-inkey",
            &path("lb.pem"),
            "-name",
            "lb",
            "-out",
            &path("openssl.p12"),
            "-passout",
            "pass:123456",
        ],
    );
    let set = |file: &str, password: &str| {
        Setup::every_transport()
            .set("javax.net.ssl.keyStore", &path(file))
            .set("javax.net.ssl.keyStorePassword", password)
    };
    for file in ["java.jks", "java.p12", "ec.jks", "openssl.p12"] {
        let lb = set(file, "123456").start();
        let _nodes = lb.answering_nodes(1);
        let output = Command::new("openssl")
            .args([
                "s_client",
                "-connect",
                &lb.external_of(Tls).to_string(),
                "-servername",
                "lb.test",
            ])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("CN = lb.test"), "{file}: {text}");
        assert!(lb.metrics().contains("trunkline_certificate_days{alias="), "{file}");
    }
    fs::write(keys().path("nothing.pem"), "hello").unwrap();
    fs::write(keys().path("no-key.pem"), fs::read(keys().path("ca.pem")).unwrap()).unwrap();
    let other = keys().sign("other.test", |_| {}).pem;
    let key_of_other = other.split("-----END CERTIFICATE-----\n").nth(1).unwrap();
    let lb_pem = fs::read_to_string(keys().path("lb.pem")).unwrap();
    let certificate = lb_pem.split_inclusive("-----END CERTIFICATE-----\n").next().unwrap();
    fs::write(keys().path("mixed.pem"), format!("{certificate}{key_of_other}")).unwrap();
    for (file, password, want) in [
        ("java.jks", "654321", "java.jks: the password is wrong"),
        ("java.p12", "654321", "java.p12: the password is wrong"),
        ("nothing.pem", "x", "nothing.pem: neither JKS nor PKCS12 nor PEM"),
        ("no-key.pem", "x", "no-key.pem: there is no private key with a certificate in it"),
        ("mixed.pem", "x", "it does not belong to its certificate"),
    ] {
        let (status, log) = set(file, password).refused();
        assert!(!status.success() && log.contains(want), "{file}: {log}");
    }
    let old = keys().sign("lb.test", |it| it.not_after = rcgen::date_time_ymd(2020, 1, 1));
    fs::write(keys().path("old.pem"), &old.pem).unwrap();
    let lb = set("old.pem", "").start();
    assert!(lb.has_logged("has expired"), "{}", lb.log());
    let metrics = lb.metrics();
    let line = metrics.lines().find(|it| it.starts_with("trunkline_certificate_days{"));
    assert!(line.unwrap().rsplit(' ').next().unwrap().starts_with('-'), "{metrics}");
    assert!(Path::new(&path("old.pem")).exists());
}

#[test]
fn openssl_speaks_sip_through_tls_12_and_13() {
    if !is_installed("openssl") {
        return;
    }
    let lb = Setup::every_transport().start();
    let _nodes = lb.answering_nodes(1);
    for version in ["-tls1_2", "-tls1_3"] {
        let mut child = Command::new("openssl")
            .args(["s_client", "-quiet", version, "-alpn", "sip/2", "-CAfile"])
            .arg(keys().path("ca.pem"))
            .args(["-verify_return_error", "-connect", &lb.external_of(Tls).to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let request = tests::Peer::bind("x").over(Tls).request("OPTIONS", "sip:bob@example.com");
        child.stdin.as_mut().unwrap().write_all(&request.to_bytes()).unwrap();
        let mut answer = [0; 14];
        child.stdout.as_mut().unwrap().read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"SIP/2.0 200 OK", "{version}");
        let _ = child.kill();
        let _ = child.wait();
    }
    for version in ["-tls1", "-tls1_1"] {
        let status = Command::new("openssl")
            .args(["s_client", version, "-cipher", "DEFAULT:@SECLEVEL=0", "-connect"])
            .arg(lb.external_of(Tls).to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(!status.success(), "{version}");
    }
}
