//! SMPP in regular mode through the whole process: the original's tests (`http-smpp-registry.md` 6.2, M1 to
//! M18). Their times are shortened; where they waited a while, these wait for the event.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use tests::smpp::*;
use tests::web::WebStream;
use tests::{Setup, keys, wait_for};

fn bind_all<const COUNT: usize>(lb: &tests::Balancer) -> [Esme; COUNT] {
    [(); COUNT].map(|()| Esme::bound(lb.smpp()))
}

#[test] // M1
fn binds_take_turns_over_the_servers_exactly() {
    let servers = Smsc::several::<3>();
    let lb = Setup::smpp(&servers).start();
    let mut clients = bind_all::<9>(&lb);
    assert_eq!(servers.each_ref().map(|it| it.bound().len()), [3, 3, 3]);
    clients.iter_mut().for_each(|it| assert_eq!(it.submit().status, OK));
    clients.into_iter().for_each(Esme::leave);
    assert_eq!(servers.each_ref().map(Smsc::binds), [3, 3, 3]);
    lb.wait_no_smpp();
    servers.iter().for_each(|it| it.wait_open(0));
}

#[test] // M2
fn messages_are_spread_as_the_sessions_are() {
    let servers = Smsc::several::<3>();
    let lb = Setup::smpp(&servers).start();
    let mut clients = bind_all::<12>(&lb);
    for client in &mut clients {
        (0..10).for_each(|_| assert_eq!(client.submit().status, OK));
    }
    clients.into_iter().for_each(Esme::leave);
    assert_eq!(servers.each_ref().map(|it| it.count(SUBMIT_SM)), [40, 40, 40]);
    lb.wait_no_smpp();
}

#[test] // M3, M11
fn both_sides_are_asked_whether_they_live() {
    let servers = Smsc::several::<1>();
    let lb = Setup::smpp(&servers).set("timeoutEnquire", "300").start();
    let start = Instant::now();
    let mut client = Esme::bound(lb.smpp());
    wait_for("three enquire_links", || {
        client.poll();
        (client.count(ENQUIRE_LINK) >= 3).then_some(())
    });
    let mut client = client.unbind();
    client.wait_end();
    let (asked, time) = (client.count(ENQUIRE_LINK), start.elapsed());
    assert!(Duration::from_millis(300) * asked as u32 <= time, "{asked} in {time:?}");
    assert_eq!(servers[0].count(ENQUIRE_LINK) as u64, asked, "asked in the same moments");
    lb.wait_no_smpp();
}

#[test] // M4, M11
fn who_does_not_bind_is_disconnected_and_counted() {
    let servers = Smsc::several::<1>();
    let lb = Setup::smpp(&servers).set("timeoutConnection", "100").start();
    let mut client = Esme::connect(lb.smpp());
    client.wait_end();
    assert_eq!(client.inbox().count(), 0, "without a word");
    assert_eq!(lb.smpp_metric("not_bound_total"), 1);
    assert_eq!(servers[0].connections(), 0);
}

#[test] // M5
fn a_lost_server_is_replaced_by_the_next_one() {
    let [mut first, second] = Smsc::several();
    let lb =
        Setup::smpp(&[]).set("remoteServers", &format!("{},{}", first.address, second.address));
    let lb = lb.start();
    let mut client = Esme::bound(lb.smpp());
    assert_eq!(client.submit().status, OK);
    first.stop();
    lb.wait_bound(&second, 1);
    client = client.unbind();
    client.wait_end();
    assert_eq!((first.binds(), second.binds()), (1, 1));
    assert_eq!(second.seen()[0].pdu.body, bind_body("RestComm", "password"), "its own bind");
    assert_eq!(lb.smpp_metric("rebinds_total"), 1);
    lb.wait_no_smpp();
}

#[test] // M6, M16
fn a_request_that_is_not_answered_is_answered_by_the_balancer() {
    let servers = Smsc::several::<1>();
    let mut swallowed = None;
    servers[0].replies(move |_, it| match (it.command, swallowed) {
        (SUBMIT_SM, None) => {
            swallowed = Some(it.sequence);
            Reply::Nothing
        }
        _ => Reply::Ok,
    });
    let lb = Setup::smpp(&servers).set("timeoutResponse", "2000").start();
    let mut client = Esme::bound(lb.smpp()).numbered(77);
    let answer = client.submit();
    let wanted = Pdu::new(SUBMIT_SM, 78, b"").answer(SYSTEM_ERROR, b"");
    assert_eq!(answer, wanted);
    assert_eq!(lb.smpp_metric("unanswered_total"), 1);
    // The late answer goes nowhere.
    let late = servers[0].wait("the submit", |it| it.pdu.command == SUBMIT_SM).pdu;
    servers[0].send(0, &late.answer(OK, b"\0"));
    wait_for("the late answer", || {
        (lb.smpp_metric("dropped_total{reason=\"unexpected\"}") == 1).then_some(())
    });
    assert_eq!(client.submit().status, OK, "the session goes on");
    let mut client = client.unbind();
    client.wait_end();
    assert_eq!(client.inbox().count(), 0, "nothing twice");
    lb.wait_no_smpp();
}

#[test] // M7
fn bytes_and_requests_are_counted_as_the_original_counts() {
    let servers = Smsc::several::<3>();
    let lb = Setup::smpp(&servers).start();
    let mut clients = bind_all::<3>(&lb);
    for client in &mut clients {
        let body = message_body(&[b'x'; 162]);
        assert_eq!(Pdu::new(SUBMIT_SM, 1, body.clone()).to_bytes().len(), 211);
        assert_eq!(client.ask(SUBMIT_SM, &body).status, OK);
    }
    assert_eq!(lb.stat("NumberOfActiveSmppConnections"), 6);
    clients.into_iter().for_each(Esme::leave);
    assert_eq!(lb.stat("NumberOfSmppBytesToServer"), 798);
    assert_eq!(lb.stat("NumberOfSmppBytesToClient"), 198);
    assert_eq!(lb.stat("NumberOfSmppRequestsToServer"), 9);
    lb.wait_no_smpp();
}

#[test] // M8, M15
fn requests_of_the_server_reach_the_client_and_its_answers_go_back() {
    let servers = Smsc::several::<1>();
    let lb = Setup::smpp(&servers).start();
    let mut client = Esme::bound(lb.smpp());
    servers[0].send(0, &Pdu::new(DATA_SM, 2, message_body(b"to you")));
    let asked = client.asked(DATA_SM);
    assert_eq!((asked.sequence, asked.body.as_slice()), (1, &message_body(b"to you")[..]));
    client.send(&asked.answer(OK, b"id\0"));
    let answered = servers[0].wait("the answer", |it| it.pdu.command == DATA_SM | RESPONSE).pdu;
    assert_eq!(answered, Pdu::new(DATA_SM, 2, b"").answer(OK, b"id\0"));
    assert_eq!(lb.stat("NumberOfSmppRequestsToClient"), 1);
    client.leave();
    lb.wait_no_smpp();
}

#[test] // M9
fn clients_come_by_tls_and_servers_may_be_reached_by_it() {
    for (is_server_tls, server) in [("false", Smsc::start()), ("true", Smsc::start_tls())] {
        let servers = [server];
        let lb = Setup::smpp(&servers).certified().set("smppSslPort", "SMPPS");
        let lb = lb.set("isRemoteServerSsl", is_server_tls).start();
        for is_tls in [true, false] {
            let client =
                if is_tls { Esme::connect_tls(lb.smpps()) } else { Esme::connect(lb.smpp()) };
            let mut client = client.bind("RestComm", "password");
            assert_eq!(client.submit().status, OK, "{is_server_tls}");
            client.leave();
        }
        assert_eq!(servers[0].count(SUBMIT_SM), 2, "{is_server_tls}");
        assert_eq!(lb.stat("NumberOfSmppBytesToServer"), 2 * 116, "{is_server_tls}");
        assert_eq!(lb.stat("NumberOfSmppRequestsToServer"), 6, "{is_server_tls}");
        lb.wait_no_smpp();
    }
}

#[test] // M10
fn nine_clients_get_all_their_answers() {
    let servers = Smsc::several::<3>();
    let lb = Setup::smpp(&servers).set("muxMode", "false").start();
    let mut clients = bind_all::<9>(&lb);
    let asked = clients.each_mut().map(|client| {
        let body = message_body(b"Hello world!");
        (0..99).map(|_| client.request(SUBMIT_SM, &body)).collect::<Vec<_>>()
    });
    for (client, asked) in clients.iter_mut().zip(asked) {
        for sequence in asked {
            assert_eq!(client.answer_to(sequence).status, OK);
        }
        assert_eq!(client.count(SUBMIT_SM | RESPONSE), 99);
    }
    clients.into_iter().for_each(Esme::leave);
    assert_eq!(servers.each_ref().map(Smsc::binds), [3, 3, 3]);
    lb.wait_no_smpp();
}

#[test] // M12
fn the_last_server_that_is_up_gets_the_session() {
    let mut servers = Smsc::several::<3>();
    let lb = Setup::smpp(&servers).start();
    let mut client = Esme::bound(lb.smpp());
    servers[0].stop();
    servers[1].stop();
    lb.wait_bound(&servers[2], 1);
    assert_eq!(client.submit().status, OK);
    assert_eq!(servers.each_ref().map(|it| it.count(SUBMIT_SM)), [0, 0, 1]);
    client.leave();
    lb.wait_no_smpp();
}

#[test] // M13
fn after_a_rebind_everything_reaches_one_server() {
    let mut servers = Smsc::several::<3>();
    let lb = Setup::smpp(&servers).start();
    let mut client = Esme::bound(lb.smpp());
    servers[0].stop();
    servers[0].restart();
    lb.wait_bound(&servers[1], 1);
    (0..6).for_each(|_| assert_eq!(client.submit().status, OK));
    client.leave();
    assert_eq!(servers.each_ref().map(|it| it.count(SUBMIT_SM)), [0, 6, 0]);
    assert_eq!(servers.each_ref().map(Smsc::binds), [1, 1, 0]);
    lb.wait_no_smpp();
}

#[test] // M14
fn the_standby_server_takes_over() {
    let mut servers = Smsc::several::<2>();
    let class = "org.mobicents.tools.smpp.balancer.algorithms.SmppToProviderActiveStandbyAlgorithm";
    let lb = Setup::smpp(&servers).set("toProviderAlgorithmClass", class).start();
    for number in 1..=3 {
        let mut client = Esme::bound(lb.smpp());
        for message in 0..10 {
            if (number, message) == (2, 5) {
                servers[0].stop();
            }
            let status = client.submit().status;
            assert!(matches!(status, OK | SYSTEM_ERROR), "{number} {message}: {status:#x}");
        }
        assert_eq!(client.count(SUBMIT_SM | RESPONSE), 10, "{number}");
        if number == 2 {
            lb.wait_bound(&servers[1], 1);
        }
        client.leave();
    }
    assert_eq!(servers.each_ref().map(Smsc::binds), [2, 2]);
    lb.wait_no_smpp();
}

#[test]
fn all_shards_move_to_the_standby_server() {
    let mut servers = Smsc::several::<2>();
    let class = "org.mobicents.tools.smpp.balancer.algorithms.SmppToProviderActiveStandbyAlgorithm";
    let lb = Setup::smpp(&servers).set("toProviderAlgorithmClass", class);
    let lb = lb.set("shards", "2").set("reuseportSteering", "random").start();
    let _before = bind_all::<12>(&lb);
    assert_eq!(servers.each_ref().map(|it| it.bound().len()), [12, 0]);
    servers[0].hang_up(0); // one session's loss
    servers[0].wait_count(BIND_TRANSCEIVER, 13);
    lb.wait_bound(&servers[0], 12);
    servers[0].stop();
    lb.wait_bound(&servers[1], 12);
    servers[0].restart();
    let _after = bind_all::<12>(&lb);
    assert_eq!(servers.each_ref().map(|it| it.bound().len()), [0, 24], "nobody goes back");
}

#[test] // M17
fn every_figure_of_a_short_session_is_exact() {
    let servers = Smsc::several::<3>();
    let lb = Setup::smpp(&servers).set("muxMode", "false").start();
    let mut clients = bind_all::<3>(&lb);
    clients.iter_mut().for_each(|it| assert_eq!(it.submit().status, OK));
    assert_eq!(lb.stat("NumberOfActiveSmppConnections"), 6);
    clients.into_iter().for_each(Esme::leave);
    let metrics = lb.lbstat();
    for (name, want) in [
        ("NumberOfSmppBytesToServer", 348),
        ("NumberOfSmppBytesToClient", 198),
        ("NumberOfSmppRequestsToServer", 9),
        ("NumberOfSmppRequestsToClient", 0),
    ] {
        assert_eq!(metrics[name], want, "{name}");
    }
    let requests = &metrics["NumberOfSmppRequestsProcessedByCommandId"];
    let responses = &metrics["NumberOfSmppResponsesProcessedByCommandId"];
    for name in ["bind_transceiver", "submit_sm", "unbind"] {
        assert_eq!((&requests[name], &responses[name]), (&3.into(), &3.into()), "{name}");
        for kind in ["request", "response"] {
            let row = format!("pdus_total{{command=\"{name}\",kind=\"{kind}\"}}");
            assert_eq!(lb.smpp_metric(&row), 3, "{row}");
        }
    }
    lb.wait_no_smpp();
}

#[test] // M18
fn each_side_has_its_own_address() {
    // smppHost is the address towards servers where smppInternalHost is not written.
    for internal in ["smppInternalHost", "smppHost"] {
        let servers = Smsc::several::<3>();
        let lb = Setup::smpp(&servers).set("smppHost", "").set("smppExternalHost", "127.0.0.1");
        let lb = lb.set(internal, "127.0.0.2").start();
        let mut clients = bind_all::<9>(&lb);
        for client in &mut clients {
            (0..11).for_each(|_| assert_eq!(client.submit().status, OK));
        }
        clients.into_iter().for_each(Esme::leave);
        for server in &servers {
            assert_eq!((server.binds(), server.count(SUBMIT_SM)), (3, 33), "{internal}");
            assert_eq!(server.peer(0).ip(), Ipv4Addr::new(127, 0, 0, 2), "{internal}");
        }
        lb.wait_no_smpp();
    }
}

#[test]
fn without_its_plain_port_there_is_no_smpp() {
    let lb = Setup::smpp(&[]).certified().set("smppPort", "").set("smppSslPort", "SMPPS").start();
    for at in [lb.smpp(), lb.smpps()] {
        let refused = TcpStream::connect(at).map(drop).map_err(|it| it.kind());
        assert_eq!(refused, Err(ErrorKind::ConnectionRefused), "{at}");
    }
}

#[test] // as on HTTPS: only by a key of its own
fn clients_are_asked_for_certificates_where_a_key_says_so() {
    let servers = Smsc::several::<1>();
    let lb = Setup::smpp(&servers).certified().set("smppSslPort", "SMPPS");
    let lb = lb.set("smppTlsClientAuthType", "Enabled").start();
    let own = keys().sign("esme.test", |_| {});
    let is_served = |config: ClientConfig| {
        WebStream::connect_secure(lb.smpps(), &Arc::new(config), "lb.test").is_ok_and(|mut it| {
            let nobody = Pdu::new(ENQUIRE_LINK, 1, b"").to_bytes(); // is answered in any state
            it.try_send(nobody).is_ok() && it.bytes(16).is_ok()
        })
    };
    assert!(is_served(keys().client(Some(&own))));
    assert!(!is_served(keys().client(None)));

    // Who may have one need not, and one that nobody knows is none.
    let lb = Setup::smpp(&servers).certified().set("smppSslPort", "SMPPS");
    let lb = lb.set("smppTlsClientAuthType", "Want").start();
    for (name, config) in [("its own", Some(&own)), ("none", None)] {
        let config = Arc::new(keys().client(config));
        let mut stream = WebStream::connect_secure(lb.smpps(), &config, "lb.test").unwrap();
        stream.try_send(Pdu::new(ENQUIRE_LINK, 1, b"").to_bytes()).unwrap();
        assert!(stream.bytes(16).is_ok(), "{name}");
    }
}
