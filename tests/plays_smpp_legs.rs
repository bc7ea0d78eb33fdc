//! What is between the balancer and its SMSCs, through the whole process: servers that do not answer to a
//! connection or fall silent, vendors' commands, numbers at their end, and key stores of every format.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use nix::sys::socket::{Backlog, listen};
use tests::smpp::*;
use tests::{Setup, is_installed, keys, run, wait_for};

/// A port that answers to no SYN: its queue is full, and nobody takes anything from it.
struct Mute {
    listener: TcpListener,
    _queue: Vec<TcpStream>,
}

impl Mute {
    fn new() -> Mute {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listen(&listener, Backlog::new(0).unwrap()).unwrap();
        let to = listener.local_addr().unwrap();
        let mut queue = Vec::new();
        while let Ok(it) = TcpStream::connect_timeout(&to, Duration::from_millis(200)) {
            queue.push(it);
            assert!(queue.len() < 16, "the queue is never full");
        }
        Mute { listener, _queue: queue }
    }

    fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }
}

#[test]
fn a_server_that_does_not_answer_to_a_connection_is_passed_over() {
    for is_mux in [false, true] {
        let (mute, servers) = (Mute::new(), Smsc::several::<1>());
        let list = format!("{},{}", mute.address(), servers[0].address);
        let lb = Setup::smpp(&[]).set("remoteServers", &list).set("smppConnectTime", "2000");
        // Alike, as they are by default: a bind has to outlast the server that does not answer.
        let lb = lb.set("timeoutResponse", "2000").set("muxMode", &is_mux.to_string()).start();
        let mut client = Esme::bound(lb.smpp());
        assert_eq!(client.submit().status, OK, "mux {is_mux}");
        assert_eq!(servers[0].binds(), 1, "mux {is_mux}");
        client.leave();
        lb.wait_no_smpp();
    }
}

#[test]
fn a_lost_session_is_bound_again_past_a_server_that_does_not_answer() {
    let (mute, [mut first, last]) = (Mute::new(), Smsc::several());
    let list = format!("{},{},{}", first.address, mute.address(), last.address);
    let lb = Setup::smpp(&[]).set("remoteServers", &list).set("smppConnectTime", "300").start();
    let mut client = Esme::bound(lb.smpp());
    first.stop();
    lb.wait_bound(&last, 1);
    assert_eq!(client.submit().status, OK);
    assert_eq!((first.binds(), last.binds()), (1, 1));
    client.leave();
    lb.wait_no_smpp();
}

#[test]
fn vendors_commands_pass_only_if_they_may() {
    for (is_mux, may) in [(false, false), (false, true), (true, false), (true, true)] {
        let servers = Smsc::several::<1>();
        servers[0].replies(|_, it| match it.command {
            VENDORS => Reply::Exactly(vec![Pdu { status: 0x400, ..it.answer(OK, b"back") }]),
            _ => Reply::Ok,
        });
        let lb = Setup::smpp(&servers).set("muxMode", &is_mux.to_string());
        let lb = lb.set("smppVendorCommands", &may.to_string()).start();
        let mut client = Esme::bound(lb.smpp()).numbered(76);
        let answer = client.ask(VENDORS, b"any\0body");
        // And the other way round.
        servers[0].send(0, &Pdu::new(VENDORS, 99, b"from there"));
        let case = format!("mux {is_mux}, may {may}");
        if may {
            let want = Pdu { status: 0x400, ..Pdu::new(VENDORS | RESPONSE, 77, b"back") };
            assert_eq!(answer, want, "{case}");
            let seen = servers[0].wait("the request", |it| it.pdu.command == VENDORS);
            assert_eq!(seen.pdu.body, b"any\0body", "{case}");
            let asked = client.asked(VENDORS);
            assert_eq!(asked.body, b"from there", "{case}");
            client.send(&asked.answer(OK, b"x"));
        } else {
            assert_eq!((answer.command, answer.status), (GENERIC_NACK, INVALID_COMMAND), "{case}");
            assert_eq!(servers[0].count(VENDORS), 0, "{case}");
        }
        let want = if may { VENDORS | RESPONSE } else { GENERIC_NACK };
        let answered = servers[0].wait(&case, |it| it.pdu.command == want).pdu;
        assert_eq!(answered.sequence, 99, "{case}");
        assert_eq!(client.submit().status, OK, "{case}");
    }
}

#[test]
fn only_the_leg_of_a_silent_server_is_bound_again() {
    for is_mux in [false, true] {
        let servers = Smsc::several::<2>();
        let check = if is_mux { "ClientSide" } else { "ServerSide" };
        let lb = Setup::smpp(&servers)
            .set("muxMode", &is_mux.to_string())
            .set("timeoutEnquire", "300")
            .set(&format!("timeoutConnectionCheck{check}"), "300")
            .start();
        let mut clients = [(); 2].map(|()| Esme::bound(lb.smpp()));
        servers.iter().for_each(|it| lb.wait_bound(it, 1));
        let before = [1, 0].map(|it: usize| servers[it].bound()[0]);
        // It keeps its connection and takes new ones, but says nothing on this one any more.
        let silent = before[1];
        servers[0].replies(move |at, _| if at == silent { Reply::Nothing } else { Reply::Ok });
        wait_for("the other binding", || {
            clients.iter_mut().for_each(Esme::poll);
            let binds: usize = servers.iter().map(Smsc::binds).sum();
            let bound: usize = servers.iter().map(|it| it.bound().len()).sum();
            (binds == 3 && bound == 2 && !servers[0].bound().contains(&silent)).then_some(())
        });
        assert_eq!(lb.smpp_metric("dropped_total{reason=\"silent\"}"), 1, "mux {is_mux}");
        assert!(servers[1].bound().contains(&before[0]), "mux {is_mux}: the other stays");
        for client in &mut clients {
            wait_for("service", || (client.submit().status == OK).then_some(()));
            assert!(!client.has_ended() && client.count(UNBIND) == 0, "mux {is_mux}");
        }
        clients.into_iter().for_each(Esme::leave);
        lb.wait_no_smpp();
    }
}

#[test]
fn numbers_come_back_from_their_end() {
    for is_mux in [false, true] {
        let servers = Smsc::several::<1>();
        servers[0].replies(|_, it| match it.command {
            DATA_SM => Reply::Exactly(vec![Pdu {
                status: INVALID_COMMAND,
                ..Pdu::new(GENERIC_NACK, it.sequence, b"")
            }]),
            _ => Reply::Ok,
        });
        let lb = Setup::smpp(&servers).set("muxMode", &is_mux.to_string()).start();
        let mut client = Esme::connect(lb.smpp());
        client.send(&Pdu::new(BIND_TRANSCEIVER, LAST, bind_body("RestComm", "password")));
        let bound = client.answer_to(LAST);
        assert_eq!((bound.command, bound.status), (BIND_TRANSCEIVER | RESPONSE, OK), "{is_mux}");
        // Everything is under way before anything is read, over the end of the numbers.
        let asked = [LAST - 1, LAST, 1, 2].map(|it| (it, SUBMIT_SM)).into_iter();
        let asked: Vec<_> = asked.chain([LAST - 2, LAST - 3].map(|it| (it, DATA_SM))).collect();
        for (sequence, command) in &asked {
            client.send(&Pdu::new(*command, *sequence, message_body(b"x")));
        }
        for (sequence, command) in &asked {
            let answer = client.answer_to(*sequence);
            let want = if *command == DATA_SM { GENERIC_NACK } else { command | RESPONSE };
            assert_eq!(answer.command, want, "mux {is_mux}, {sequence:#x}");
        }
        // The server's numbers as well.
        for sequence in [LAST, 1] {
            servers[0].send(0, &Pdu::new(DELIVER_SM, sequence, message_body(b"x")));
            let asked = client.asked(DELIVER_SM);
            client.send(&asked.answer(OK, b"\0"));
            servers[0].wait("the answer", |it| {
                it.pdu.command == DELIVER_SM | RESPONSE && it.pdu.sequence == sequence
            });
        }
        client.numbered(LAST - 1).leave();
        lb.wait_no_smpp();
    }
}

#[test]
fn key_stores_of_java_serve_clients_and_believe_servers() {
    if !is_installed("keytool") || !is_installed("openssl") {
        return;
    }
    let path = |name: &str| keys().path(name).display().to_string();
    let password = "123456";
    let (pem, ca) = (path("lb.pem"), path("ca.pem"));
    let out = path("smpp.PKCS12");
    let from = ["-in", &pem, "-inkey", &pem, "-name", "lb", "-out", &out];
    let secret = ["-passout", "pass:123456"];
    run("openssl", &[&["pkcs12", "-export"][..], &from, &secret].concat());
    let jks = path("smpp.JKS");
    let from = ["-srckeystore", &out, "-srcstoretype", "PKCS12", "-srcstorepass", password];
    let to = ["-destkeystore", &jks, "-deststoretype", "JKS", "-deststorepass", password];
    run("keytool", &[&["-importkeystore", "-noprompt"][..], &from, &to].concat());
    for kind in ["JKS", "PKCS12"] {
        let trust = path(&format!("trust.{kind}"));
        let to = ["-keystore", &trust, "-storetype", kind, "-storepass", password];
        let from = ["-importcert", "-noprompt", "-alias", "ca", "-file", &ca];
        run("keytool", &[&from[..], &to].concat());
        for is_mux in [false, true] {
            let servers = [Smsc::start_tls()];
            let lb = Setup::smpp(&servers)
                .set("muxMode", &is_mux.to_string())
                .set("smppSslPort", "SMPPS")
                .set("isRemoteServerSsl", "true")
                .set("terminateTLSTraffic", "false")
                .set("javax.net.ssl.keyStore", &path(&format!("smpp.{kind}")))
                .set("javax.net.ssl.keyStorePassword", password)
                .set("javax.net.ssl.trustStore", &trust)
                .set("javax.net.ssl.trustStorePassword", password)
                .start();
            let mut client = Esme::connect_tls(lb.smpps()).bind("RestComm", "password");
            assert_eq!(client.submit().status, OK, "{kind}, mux {is_mux}");
            assert_eq!(servers[0].count(SUBMIT_SM), 1, "{kind}, mux {is_mux}");
            client.leave();
            lb.wait_no_smpp();
        }
    }
}

/// Among the numbers that SMPP sets aside for vendors.
const VENDORS: u32 = 0x0001_0201;
/// The highest number (SMPP 3.4 §3.2).
const LAST: u32 = 0x7fff_ffff;
