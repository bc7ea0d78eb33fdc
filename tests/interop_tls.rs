//! TLS with peers that nobody here wrote: OpenSSL, Java with key stores made by keytool, and baresip, a
//! phone on C.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use tests::Transport::{Tcp, Tls, Udp};
use tests::web::WebServer;
use tests::{Balancer, Node, PATIENCE, Peer, Registrar, Setup, is_installed, keys, run, wait_for};

fn path(name: &str) -> String {
    keys().path(name).display().to_string()
}

/// A program that says what it has to say while it runs; killed when dropped.
struct Running {
    child: Child,
    said: Arc<Mutex<String>>,
}

impl Running {
    fn start(command: &mut Command) -> Running {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let said = Arc::new(Mutex::new(String::new()));
        let pipes: [Box<dyn Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        for mut pipe in pipes {
            let said = said.clone();
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(count @ 1..) = pipe.read(&mut buffer) {
                    said.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..count]));
                }
            });
        }
        Running { child, said }
    }

    fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    fn tell(&mut self, text: &[u8]) {
        let input = self.child.stdin.as_mut().unwrap();
        input.write_all(text).unwrap();
        input.flush().unwrap();
    }

    /// Waits until it has said so, this often.
    fn expect(&self, text: &str, times: usize) {
        let deadline = std::time::Instant::now() + PATIENCE;
        while self.said().matches(text).count() < times {
            let is_late = std::time::Instant::now() > deadline;
            assert!(!is_late, "waited for {text:?} {times} times:\n{}", self.said());
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }

    /// Ends its input, and waits for its own end.
    fn finish(mut self) -> String {
        drop(self.child.stdin.take());
        wait_for("its end", || self.child.try_wait().unwrap());
        self.said()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn s_client(lb: &Balancer, arguments: &[&str]) -> Running {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect", &lb.external_of(Tls).to_string()]).args(arguments);
    command.args(["-CAfile", &path("ca.pem")]);
    Running::start(&mut command)
}

fn options() -> Vec<u8> {
    Peer::bind("openssl").over(Tls).request("OPTIONS", "sip:bob@example.com").to_bytes()
}

#[test]
fn openssl_resumes_its_session_on_every_shard() {
    if !is_installed("openssl") {
        return;
    }
    let lb = Setup::every_transport().set("shards", "3").start();
    let _nodes = lb.answering_nodes(1);
    for version in ["-tls1_2", "-tls1_3"] {
        let session = path(&format!("session{version}"));
        let mut first = s_client(&lb, &[version, "-sess_out", &session]);
        first.tell(&options());
        first.expect("SIP/2.0 200 OK", 1);
        assert!(first.finish().contains("\nNew, TLS"), "{version}");
        // One connection meets one shard of three by chance; twenty leave none out.
        for round in 0..20 {
            let mut again = s_client(&lb, &[version, "-sess_in", &session]);
            again.tell(&options());
            again.expect("SIP/2.0 200 OK", 1);
            let said = again.finish();
            assert!(said.contains("\nReused, TLS"), "{version} {round}: {said}");
        }
    }
}

#[test]
fn openssl_gets_the_certificate_of_the_name_that_it_asks_for() {
    if !is_installed("openssl") {
        return;
    }
    for name in ["one.test", "two.test"] {
        std::fs::write(keys().path(name), keys().sign(name, |_| {}).pem).unwrap();
    }
    let wild = keys().sign("*.wild.test", |_| {});
    std::fs::write(keys().path("wild.test"), wild.pem).unwrap();
    let stores = ["one.test", "two.test", "wild.test"].map(path).join(",");
    let lb = Setup::every_transport().set("javax.net.ssl.keyStore", &stores).start();
    for (asked, shown) in [
        (Some("two.test"), "two.test"),
        (Some("TWO.test"), "two.test"),
        (Some("a.wild.test"), "*.wild.test"),
        (Some("a.b.wild.test"), "one.test"),
        (Some("nobody.test"), "one.test"),
        (None, "one.test"),
    ] {
        for version in ["-tls1_2", "-tls1_3"] {
            let terms = match asked {
                Some(name) => vec![version, "-servername", name],
                None => vec![version, "-noservername"],
            };
            let said = s_client(&lb, &terms).finish();
            assert!(said.contains(&format!("CN = {shown}\n")), "{asked:?} {version}: {said}");
        }
    }
}

#[test] // RFC 6066 §3 forbids an address as a name; wrk and others send one all the same
fn what_clients_say_in_handshakes_fills_no_log() {
    if !is_installed("openssl") {
        return;
    }
    let lb = Setup::every_transport().start();
    let said = s_client(&lb, &["-servername", "127.0.0.1"]).finish();
    assert!(said.contains("CN = lb.test\n"), "{said}");
    let refused = s_client(&lb, &["-alpn", "h2"]).finish();
    assert!(refused.contains("no application protocol"), "{refused}");
    let _nodes = lb.answering_nodes(1);
    lb.wait_log("added"); // whatever was said before is there by now
    let log = lb.log().to_lowercase();
    assert!(!log.contains("sni") && !log.contains("alert"), "{log}");
}

#[test]
fn renegotiation_is_refused_and_new_keys_are_not() {
    if !is_installed("openssl") {
        return;
    }
    let lb = Setup::every_transport().start();
    let nodes = lb.answering_nodes(1);
    let mut old = s_client(&lb, &["-tls1_2"]);
    old.tell(&options());
    old.expect("SIP/2.0 200 OK", 1);
    old.tell(b"R\n");
    old.expect("RENEGOTIATING", 1);
    let said = old.finish();
    assert!(said.contains("no renegotiation"), "{said}");

    let mut new = s_client(&lb, &["-tls1_3"]);
    for (round, letter) in (1..).zip(["K", "k", "K"]) {
        new.tell(format!("{letter}\n").as_bytes());
        new.expect("KEYUPDATE", round);
        new.tell(&options());
        new.expect("SIP/2.0 200 OK", round);
    }
    assert_eq!(nodes[0].count("OPTIONS"), 4);
}

#[test]
fn openssl_negotiates_sip_by_alpn_and_nothing_else() {
    if !is_installed("openssl") {
        return;
    }
    let lb = Setup::every_transport().start();
    let said = s_client(&lb, &["-alpn", "http/1.1,sip/2"]).finish();
    assert!(said.contains("ALPN protocol: sip/2"), "{said}");
    let said = s_client(&lb, &["-alpn", "h2"]).finish();
    assert!(said.contains("no application protocol"), "{said}");
    let said = s_client(&lb, &[]).finish();
    assert!(said.contains("No ALPN negotiated"), "{said}");
}

/// Files of keytool: key stores of the balancer and of a peer, each other's certificate in trust stores.
struct Stores {
    balancer: String,
    of_balancer: String,
    peer: String,
    of_peer: String,
}

fn keytool(kind: &str, algorithm: &str, size: &str) -> Stores {
    let file = |name: &str| path(&format!("{name}-{algorithm}{size}.{kind}"));
    let stores = Stores {
        balancer: file("balancer"),
        of_balancer: file("of-balancer"),
        peer: file("peer"),
        of_peer: file("of-peer"),
    };
    for (name, store, trust) in [
        ("lb.test", &stores.balancer, &stores.of_balancer),
        ("peer.test", &stores.peer, &stores.of_peer),
    ] {
        let common = ["-storetype", kind, "-storepass", "123456", "-alias", name];
        let certificate = format!("{store}.crt");
        run(
            "keytool",
            &[
                &["-genkeypair", "-keystore", store, "-keyalg", algorithm, "-keysize", size][..],
                &["-dname", &format!("CN={name}"), "-ext", &format!("san=dns:{name}")],
                &["-keypass", "123456", "-validity", "400"],
                &common,
            ]
            .concat(),
        );
        run(
            "keytool",
            &[&["-exportcert", "-rfc", "-keystore", store, "-file", &certificate][..], &common]
                .concat(),
        );
        run(
            "keytool",
            &[
                &["-importcert", "-noprompt", "-keystore", trust, "-file", &certificate][..],
                &common,
            ]
            .concat(),
        );
    }
    stores
}

fn java(words: &[&str]) -> Command {
    let mut command = Command::new("java");
    command.args(["-XX:TieredStopAtLevel=1", "-Xmx128m"]);
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/java/tls/Tls.java")).args(words);
    command
}

#[test]
fn java_speaks_tls_with_the_stores_that_keytool_makes() {
    if !is_installed("keytool") || !is_installed("java") {
        return;
    }
    for (kind, algorithm, size) in [("JKS", "RSA", "2048"), ("PKCS12", "EC", "256")] {
        let stores = keytool(kind, algorithm, size);
        let lb = Setup::every_transport()
            .set("javax.net.ssl.keyStore", &stores.balancer)
            .set("javax.net.ssl.keyStorePassword", "123456")
            .set("javax.net.ssl.trustStore", &stores.of_peer)
            .set("javax.net.ssl.trustStorePassword", "123456")
            .set("gov.nist.javax.sip.TLS_CLIENT_AUTH_TYPE", "Enabled")
            .set("sip.internalTransport", "tcp")
            .start();
        let _nodes = lb.answering_nodes(1);
        let port = lb.external_of(Tls).port().to_string();
        for version in ["TLSv1.2", "TLSv1.3"] {
            let ask = |own: &[&str]| {
                let words = ["ask", &port, version, "lb.test", &stores.of_balancer, "123456"];
                java(&[&words[..], own].concat()).stdin(Stdio::null()).output().unwrap()
            };
            let output = ask(&[&stores.peer]);
            let said = String::from_utf8_lossy(&output.stdout);
            let want = format!("SIP/2.0 200 OK by CN=lb.test over {version}\n");
            assert_eq!(said, want, "{kind}: {}", String::from_utf8_lossy(&output.stderr));
            let nobody = ask(&[]);
            assert!(!nobody.status.success(), "{kind} {version}: without a certificate");
        }
    }
}

#[test]
fn https_opens_with_the_stores_that_keytool_makes() {
    if !is_installed("keytool") || !is_installed("curl") {
        return;
    }
    let server = WebServer::named("n");
    for (kind, algorithm, size) in [("JKS", "EC", "256"), ("PKCS12", "RSA", "2048")] {
        let stores = keytool(kind, algorithm, size);
        let lb = Setup::two_entry()
            .set("javax.net.ssl.keyStore", &stores.balancer)
            .set("javax.net.ssl.keyStorePassword", "123456")
            .set("httpPort", "HTTP")
            .set("httpsPort", "HTTPS")
            .start();
        let _node = lb.web_node("n", &server, &[]);
        let to = lb.https();
        for version in [["--tlsv1.2", "--tls-max", "1.2"], ["--tlsv1.3", "--tls-max", "1.3"]] {
            let name = format!("lb.test:{}:{}", to.port(), to.ip());
            let url = format!("https://lb.test:{}/", to.port());
            let believes = format!("{}.crt", stores.balancer);
            let words = ["-sSf", "--resolve", &name, "--cacert", &believes, &url];
            let said = run("curl", &[&version[..], &words].concat());
            assert!(said.starts_with('n'), "{kind} {algorithm} {version:?}: {said}");
        }
    }
}

#[test]
fn a_java_node_sees_our_certificate() {
    if !is_installed("keytool") || !is_installed("java") {
        return;
    }
    let stores = keytool("JKS", "RSA", "3072");
    let node_says =
        Running::start(&mut java(&["serve", &stores.peer, "123456", &stores.of_balancer]));
    let port = wait_for("the port of the Java node", || {
        node_says.said().lines().next()?.parse::<u16>().ok()
    });
    for (trusted, status) in [(&stores.of_peer, 200), (&stores.of_balancer, 503)] {
        let lb = Setup::every_transport()
            .set("javax.net.ssl.keyStore", &stores.balancer)
            .set("javax.net.ssl.keyStorePassword", "123456")
            .set("javax.net.ssl.trustStore", trusted)
            .set("javax.net.ssl.trustStorePassword", "123456")
            .set("sip.internalTransport", "tls")
            .start();
        let _node = lb.announced(Node::bind("java").property("tlsPort", &port.to_string()));
        lb.wait_nodes(1);
        let caller = lb.caller_over(Tcp, "alice");
        caller.send(&caller.request("OPTIONS", "sip:bob@example.com"));
        let answer = caller.expect_where("an answer", |it| it.status() >= 200);
        assert_eq!(answer.status(), status);
        if status == 200 {
            node_says.expect("CN=lb.test\n", 1);
        } else {
            node_says.expect("failed: ", 1);
        }
    }
}

/// A phone: baresip, with its account and what it is told on standard input.
fn baresip(name: &str, lb: &Balancer) -> Running {
    let directory = PathBuf::from(path(&format!("baresip-{name}")));
    std::fs::create_dir_all(&directory).unwrap();
    let at = lb.external_of(Tls);
    let modules = ["/usr/lib/baresip/modules", "/usr/lib/x86_64-linux-gnu/baresip/modules"];
    let modules = modules.into_iter().find(|it| PathBuf::from(it).is_dir()).unwrap_or_default();
    let config = format!(
        "module_path {modules}\nmodule stdio.so\nmodule g711.so\nmodule_tmp account.so\n\
         module_app menu.so\nmodule aubridge.so\naudio_source aubridge,{name}\n\
         audio_player aubridge,{name}\nsip_listen 127.0.0.1:0\nsip_cafile {}\nsip_verify_server yes\n\
         call_max_calls 4\n",
        path("ca.pem")
    );
    std::fs::write(directory.join("config"), config).unwrap();
    let account = format!(
        "<sip:{name}@example.com;transport=tls>;outbound=\"sip:{at};transport=tls\";regint=600;auth_user={name};auth_pass=x\n"
    );
    std::fs::write(directory.join("accounts"), account).unwrap();
    let mut command = Command::new("baresip");
    command.arg("-f").arg(&directory).args(["-4", "-s", "-v"]);
    Running::start(&mut command)
}

#[test]
fn baresip_registers_and_calls_over_tls() {
    if !is_installed("baresip") {
        return;
    }
    let lb = Setup::every_transport().set("sip.internalTransport", "udp").start();
    let registrar = Registrar::start(&lb, Udp);
    let mut alice = baresip("alice", &lb);
    let mut bob = baresip("bob", &lb);
    for name in ["alice", "bob"] {
        wait_for(&format!("{name} to register"), || registrar.contact_of(name));
    }
    for phone in [&alice, &bob] {
        phone.expect("registered successfully", 1);
    }
    alice.tell(b"/dial sip:bob@example.com\n");
    alice.expect("180 Ringing", 1);
    bob.tell(b"/accept\n");
    bob.expect("Call established", 1);
    alice.expect("Call established", 1);
    alice.tell(b"/hangup\n");
    wait_for("the end of the call", || registrar.requests("BYE").pop());
    for method in ["INVITE", "ACK", "BYE"] {
        assert_eq!(registrar.requests(method).len(), 1, "{method}: once, and not again");
    }
    for name in ["alice", "bob"] {
        let contact = registrar.contact_of(name).unwrap();
        assert!(contact.contains("transport=tls"), "{contact}");
    }
}
