//! On what terms TLS is spoken: who is trusted and for how long a session resumes, which versions and cipher
//! suites, by the keys of each configuration format, on the ports of SIP and of HTTPS.

use std::fs;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustls::ClientConfig;
use tests::Transport::{Tls, Wss};
use tests::{Addresses, Balancer, Keys, SecureClient, Setup, is_installed, keys, run};

fn path(name: &str) -> String {
    keys().path(name).display().to_string()
}

const READ_AGAIN: &str = "Certificates have been read again";

#[test]
fn who_has_a_session_shows_again_who_he_is_when_others_are_trusted() {
    fs::copy(path("ca.pem"), path("trust.pem")).unwrap();
    let lb = Setup::every_transport()
        .set("shards", "2")
        .set("javax.net.ssl.trustStore", &path("trust.pem"))
        .set("gov.nist.javax.sip.TLS_CLIENT_AUTH_TYPE", "Enabled")
        .set("sip.internalTransport", "udp")
        .start();
    let _nodes = lb.answering_nodes(1);
    let config = Arc::new(keys().client(Some(&keys().sign("phone.test", |_| {}))));
    let to = lb.external_of(Tls);
    let mut open = SecureClient::ask(&config, to).unwrap();
    assert!(SecureClient::ask(&config, to).unwrap().is_resumed());
    fs::copy(Keys::new().path("ca.pem"), path("trust.pem")).unwrap();
    lb.wait_log(READ_AGAIN);
    let refused = SecureClient::ask(&config, to);
    assert!(refused.is_err(), "nobody knows him any more");
    let request = tests::Peer::bind("x").over(Tls).request("OPTIONS", "sip:bob@example.com");
    let answer = open.say(&request.to_bytes()).unwrap();
    assert!(answer.starts_with("SIP/2.0 200 "), "who is in stays: {answer}");
}

#[test]
fn a_session_of_when_nobody_was_asked_is_none_once_clients_are() {
    let mut lb = Setup::every_transport().set("sip.internalTransport", "udp").start();
    let _nodes = lb.answering_nodes(1);
    let config = Arc::new(keys().client(None));
    let to = lb.external_of(Tls);
    SecureClient::ask(&config, to).unwrap();
    assert!(SecureClient::ask(&config, to).unwrap().is_resumed());
    lb.reload(&[("gov.nist.javax.sip.TLS_CLIENT_AUTH_TYPE", "Enabled")]);
    lb.wait_log(READ_AGAIN);
    assert!(SecureClient::ask(&config, to).is_err());
}

/// A library that puts the wall clock of a process ahead by as many seconds as a file says.
fn ahead() -> String {
    let (source, library) = (path("ahead.c"), path("ahead.so"));
    fs::write(
        &source,
        r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
int clock_gettime(clockid_t clock, struct timespec *it) {
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, it);
    if (clock == CLOCK_REALTIME) {
        FILE *file = fopen(getenv("SECONDS_AHEAD"), "r");
        long seconds = 0;
        if (file && fscanf(file, "%ld", &seconds) == 1) it->tv_sec += seconds;
        if (file) fclose(file);
    }
    return result;
}
"#,
    )
    .unwrap();
    run("cc", &["-shared", "-fPIC", "-O1", "-o", &library, &source, "-ldl"]);
    library
}

#[test]
fn keys_of_tickets_change_and_the_one_before_still_counts_on_every_shard() {
    if !is_installed("cc") {
        return;
    }
    let set = |hours: u64| {
        // Renamed, so that nobody reads half of it.
        fs::write(path("draft"), (hours * 3_600).to_string()).unwrap();
        fs::rename(path("draft"), path("seconds")).unwrap();
    };
    set(0);
    let lb = Setup::every_transport()
        .set("shards", "2")
        .set("sip.internalTransport", "udp")
        .environment("LD_PRELOAD", &ahead())
        .environment("SECONDS_AHEAD", &path("seconds"))
        .start();
    let _nodes = lb.answering_nodes(1);
    let to = lb.external_of(Tls);
    let ask = |config: &Arc<ClientConfig>| SecureClient::ask(config, to).unwrap().is_resumed();
    // A client each: whoever comes again is given a new ticket.
    let clients = || -> Vec<_> { (0..8).map(|_| Arc::new(keys().client(None))).collect() };
    let [early, late] = [clients(), clients()];
    assert!(!early.iter().chain(&late).any(ask), "nobody knows them");
    set(7);
    assert!(early.iter().all(ask), "of the key before");
    set(14);
    assert!(early.iter().all(ask), "again of the key before");
    assert!(!late.iter().any(ask), "older than any key");
    assert!(late.iter().all(ask));
}

/// Every key that the newest format has for TLS, and the old names of the others.
fn setups() -> [(&'static str, Setup); 2] {
    const VERSION: &str = "TLSv1.2";
    const SUITE: &str = "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256";
    let properties = Setup::every_transport()
        .set("httpPort", "HTTP")
        .set("httpsPort", "HTTPS")
        .set("gov.nist.javax.sip.TLS_CLIENT_PROTOCOLS", VERSION)
        .set("gov.nist.javax.sip.ENABLED_CIPHER_SUITES", SUITE)
        .set("gov.nist.javax.sip.TLS_CLIENT_AUTH_TYPE", "Enabled");
    let xml = Setup::file(|it: &Addresses| {
        let ([tls, _, wss], [http, https]) = (it.secure, it.web);
        let (store, trust) = (path("lb.pem"), path("ca.pem"));
        format!(
            "<load-balancer-properties><common><host>127.0.0.1</host>\
             <statisticPort>{}</statisticPort><shards>1</shards></common>\
             <sip><external><udpPort>{}</udpPort><tlsPort>{tls}</tlsPort><wssPort>{wss}</wssPort>\
             </external><internal><udpPort>{}</udpPort></internal></sip>\
             <http><httpPort>{http}</httpPort><httpsPort>{https}</httpsPort></http>\
             <ssl><keyStore>{store}</keyStore><trustStore>{trust}</trustStore>\
             <tlsClientProtocols>{VERSION}</tlsClientProtocols>\
             <enabledCipherSuites>{SUITE}</enabledCipherSuites>\
             <tlsClientAuthType>Enabled</tlsClientAuthType></ssl></load-balancer-properties>",
            it.statistic, it.external, it.internal,
        )
    });
    [("properties", properties), ("XML", xml)]
}

/// Whether OpenSSL agrees with who listens there.
fn agrees(to: SocketAddr, terms: &[&str]) -> bool {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect", &to.to_string(), "-CAfile", &path("ca.pem")]);
    command.args(terms).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().unwrap().success()
}

#[test]
fn versions_suites_and_certificates_are_those_of_the_file_on_every_port() {
    if !is_installed("openssl") {
        return;
    }
    fs::write(path("phone.pem"), keys().sign("phone.test", |_| {}).pem).unwrap();
    let phone = ["-cert", &path("phone.pem"), "-key", &path("phone.pem")];
    for (format, setup) in setups() {
        let lb: Balancer = setup.start();
        for (port, to, asks) in [
            ("tls", lb.external_of(Tls), true),
            ("wss", lb.external_of(Wss), true),
            ("https", lb.https(), false),
        ] {
            let terms = |terms: &[&'static str], has_certificate: bool| {
                let own: &[&str] = if has_certificate { &phone } else { &[] };
                agrees(to, &[terms, own].concat())
            };
            let listed = ["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"];
            assert!(terms(&listed, true), "{format} {port}");
            assert!(terms(&["-tls1_2"], true), "{format} {port}");
            assert!(!terms(&["-tls1_3"], true), "{format} {port}: a version that is not listed");
            for suite in ["ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-CHACHA20-POLY1305"] {
                let other = ["-tls1_2", "-cipher", suite];
                assert!(!terms(&other, true), "{format} {port}: {suite} is not listed");
            }
            assert_eq!(!terms(&listed, false), asks, "{format} {port}: without a certificate");
        }
    }
}

#[test]
fn websocket_agrees_on_http_by_alpn_and_on_nothing_else() {
    let lb = Setup::every_transport().start();
    for (offered, agreed) in [
        (vec![&b"h2"[..], b"http/1.1"], Some(Some(&b"http/1.1"[..]))),
        (vec![], Some(None)),
        (vec![b"h2"], None),
        (vec![b"sip/2"], None),
    ] {
        let mut config = keys().client(None);
        config.alpn_protocols = offered.iter().map(|it| it.to_vec()).collect();
        let client = SecureClient::ask(&Arc::new(config), lb.external_of(Wss));
        assert_eq!(client.as_ref().ok().map(SecureClient::alpn), agreed, "{offered:?}");
    }
}
