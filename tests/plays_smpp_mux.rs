//! SMPP in mux mode through the whole process: the original's tests (`http-smpp-registry.md` 6.2, M19 to
//! M32), and sessions that move to the shard that owns them.

use std::collections::BTreeSet;

use tests::smpp::*;
use tests::{Balancer, Setup, wait_for};

/// Sessions of one system_id, with every server bound before the first message.
fn sessions<const COUNT: usize>(lb: &Balancer, servers: &[Smsc]) -> [Esme; COUNT] {
    let clients = [(); COUNT].map(|()| Esme::bound(lb.smpp()));
    servers.iter().for_each(|it| lb.wait_bound(it, 1));
    clients
}

fn unbind(clients: impl IntoIterator<Item = Esme>) {
    clients.into_iter().for_each(Esme::leave);
}

#[test] // M19, M18
fn sessions_share_one_connection_to_each_server() {
    let servers = Smsc::several::<3>();
    let lb = Setup::smpp_mux(&servers).set("smppInternalHost", "127.0.0.2").start();
    let mut clients = sessions::<9>(&lb, &servers);
    for client in &mut clients {
        let body = message_body(b"Hello world!");
        let asked: Vec<u32> = (0..99).map(|_| client.request(SUBMIT_SM, &body)).collect();
        asked.into_iter().for_each(|it| assert_eq!(client.answer_to(it).status, OK));
        assert_eq!(client.count(SUBMIT_SM | RESPONSE), 99);
    }
    unbind(clients);
    for server in &servers {
        assert_eq!((server.binds(), server.connections()), (1, 1));
        assert_eq!(server.count(SUBMIT_SM), 9 * 99 / 3, "exact turns");
        assert_eq!(server.peer(0).ip().to_string(), "127.0.0.2");
        server.wait_open(0);
    }
    lb.wait_no_smpp();
}

#[test] // M20
fn silence_is_asked_about_on_both_sides() {
    let servers = Smsc::several::<3>();
    let lb = Setup::smpp_mux(&servers)
        .set("timeoutConnection", "2000")
        .set("timeoutConnectionCheckClientSide", "500")
        .set("timeoutConnectionCheckServerSide", "500")
        .start();
    let mut clients = sessions::<3>(&lb, &servers);
    wait_for("five enquire_links for everyone", || {
        clients.iter_mut().for_each(Esme::poll);
        let is_asked = clients.iter().all(|it| it.count(ENQUIRE_LINK) >= 5);
        (is_asked && servers.iter().all(|it| it.count(ENQUIRE_LINK) >= 5)).then_some(())
    });
    assert!(clients.iter().all(|it| !it.has_ended()), "who answers stays");
    unbind(clients);
    lb.wait_no_smpp();
}

#[test] // M21
fn who_does_not_bind_is_disconnected_and_counted() {
    let servers = Smsc::several::<1>();
    let lb = Setup::smpp_mux(&servers).set("timeoutConnection", "100").start();
    Esme::connect(lb.smpp()).wait_end();
    assert_eq!(lb.smpp_metric("not_bound_total"), 1);
    assert_eq!(servers[0].connections(), 0);
}

#[test] // M22
fn the_standby_server_takes_over() {
    let mut servers = Smsc::several::<2>();
    let class = "org.mobicents.tools.smpp.balancer.algorithms.SmppToProviderActiveStandbyAlgorithm";
    let lb = Setup::smpp_mux(&servers).set("toProviderAlgorithmClass", class).start();
    let [mut client] = sessions(&lb, &servers);
    (0..50).for_each(|_| assert_eq!(client.submit().status, OK));
    let lost = lb.smpp_metric("server_connections");
    servers[0].stop();
    lb.wait_bound(&servers[0], 0);
    (0..50).for_each(|_| assert_eq!(client.submit().status, OK));
    assert_eq!((lost, client.count(SUBMIT_SM | RESPONSE)), (2, 100));
    assert_eq!(servers.each_ref().map(|it| it.count(SUBMIT_SM)), [50, 50]);
    unbind([client]);
    lb.wait_no_smpp();
}

#[test] // M23, M25
fn a_wrong_password_is_asked_about_once_and_forgotten() {
    let servers = Smsc::several::<1>();
    servers[0].answers(BIND_TRANSCEIVER, Reply::Status(INVALID_PASSWORD));
    let lb = Setup::smpp_mux(&servers).start();
    for count in 1..=5 {
        let mut client = Esme::connect(lb.smpp()).numbered(40);
        let answer = client.ask(BIND_TRANSCEIVER, &bind_body("RestComm", "wrong"));
        let wanted = Pdu::new(BIND_TRANSCEIVER, 41, b"").answer(INVALID_PASSWORD, b"");
        assert_eq!(answer, wanted, "with its own number");
        client.wait_end();
        assert_eq!(servers[0].binds(), count);
        lb.wait_no_smpp();
    }
    // The right one is not held up by that.
    servers[0].replies(|_, _| Reply::Ok);
    unbind([Esme::bound(lb.smpp())]);
    assert_eq!(servers[0].binds(), 6);
    lb.wait_no_smpp();
}

#[test] // M24
fn a_server_that_refuses_is_asked_again_only_while_somebody_waits() {
    let servers = Smsc::several::<1>();
    servers[0].replies(|_, it| match it.command {
        BIND_TRANSCEIVER if it.text(0) == "RestComm" => Reply::Status(INVALID_DESTINATION),
        _ => Reply::Ok,
    });
    let lb = Setup::smpp_mux(&servers)
        .set("timeoutResponse", "2000")
        .set("reconnectPeriod", "3000")
        .set("timeoutConnection", "2000")
        .set("timeoutConnectionCheckServerSide", "500")
        .start();
    let mut client = Esme::connect(lb.smpp());
    let answer = client.ask(BIND_TRANSCEIVER, &bind_body("RestComm", "password"));
    assert_eq!(answer.status, SYSTEM_ERROR);
    client.wait_end();
    lb.wait_no_smpp();
    // Somebody else stays for longer than it would take to ask again.
    let mut other = Esme::connect(lb.smpp()).bind("other", "password");
    wait_for("some enquire_links", || {
        other.poll();
        (other.count(ENQUIRE_LINK) >= 6).then_some(())
    });
    assert_eq!(servers[0].binds(), 2, "one for each");
    unbind([other]);
    lb.wait_no_smpp();
}

#[test] // M26
fn lost_servers_leave_the_rotation_and_come_back() {
    let mut servers = Smsc::several::<3>();
    let lb = Setup::smpp_mux(&servers).start();
    let [mut client] = sessions(&lb, &servers);
    servers[0].stop();
    servers[1].stop();
    servers[..2].iter().for_each(|it| lb.wait_bound(it, 0));
    assert_eq!(client.submit().status, OK);
    assert_eq!(servers.each_ref().map(|it| it.count(SUBMIT_SM)), [0, 0, 1]);
    servers[0].restart();
    servers[1].restart();
    servers.iter().for_each(|it| lb.wait_bound(it, 1));
    (0..6).for_each(|_| assert_eq!(client.submit().status, OK));
    assert_eq!(servers.each_ref().map(|it| it.count(SUBMIT_SM)), [2, 2, 3]);
    unbind([client]);
    lb.wait_no_smpp();
}

#[test] // M27
fn the_only_server_may_be_away_for_a_while() {
    let mut servers = Smsc::several::<1>();
    let lb = Setup::smpp_mux(&servers).start();
    let [mut client] = sessions(&lb, &servers);
    servers[0].stop();
    wait_for("the loss", || (client.submit().status == SYSTEM_ERROR).then_some(()));
    servers[0].restart();
    servers[0].wait_bound(1);
    wait_for("the server's return", || (client.submit().status == OK).then_some(()));
    assert_eq!(client.inbox().count(), 0, "the client sees nothing but answers");
    unbind([client]);
    lb.wait_no_smpp();
}

#[test] // M28
fn a_request_that_is_not_answered_is_answered_by_the_balancer() {
    let servers = Smsc::several::<1>();
    servers[0].answers(SUBMIT_SM, Reply::Nothing);
    let lb = Setup::smpp_mux(&servers).set("timeoutResponse", "300").start();
    let [client] = sessions(&lb, &servers);
    let mut client = client.numbered(500);
    let wanted = Pdu::new(SUBMIT_SM, 501, b"").answer(SYSTEM_ERROR, b"");
    assert_eq!(client.submit(), wanted);
    assert_eq!(lb.smpp_metric("unanswered_total"), 1);
    unbind([client]);
    lb.wait_no_smpp();
}

#[test] // M29, with the XML file and the edit that the balancer finds by itself
fn a_server_is_added_while_running() {
    let servers = Smsc::several::<2>();
    let [first, second] = servers.each_ref().map(|it| it.address);
    let file = |servers: &str, at: &[u16; 4]| {
        let [external, statistic, smpp, internal] = at;
        format!(
            "<load-balancer-properties>\
             <common><host>127.0.0.1</host><statisticPort>{statistic}</statisticPort></common>\
             <sip><external><udpPort>{external}</udpPort></external>\
             <internal><udpPort>{internal}</udpPort></internal></sip>\
             <http><httpPort>0</httpPort></http>\
             <smpp><smppHost>127.0.0.1</smppHost><smppPort>{smpp}</smppPort>\
             <remoteServers>{servers}</remoteServers><muxMode>true</muxMode></smpp>\
             </load-balancer-properties>"
        )
    };
    let ports = |it: &tests::Addresses| [it.external, it.statistic, it.smpp[0], it.internal];
    let lb = Setup::file(move |it| file(&first.to_string(), &ports(it))).start();
    let mut client = Esme::bound(lb.smpp());
    lb.rewrite(&file(&format!("{first},{second}"), &ports(&lb.addresses)));
    lb.wait_bound(&servers[1], 1);
    (0..4).for_each(|_| assert_eq!(client.submit().status, OK));
    assert_eq!(servers.each_ref().map(|it| it.count(SUBMIT_SM)), [2, 2]);
    // And removed: it is unbound, and the rest goes to the other.
    lb.rewrite(&file(&second.to_string(), &ports(&lb.addresses)));
    servers[0].wait_count(UNBIND, 1);
    servers[0].wait_open(0);
    (0..4).for_each(|_| assert_eq!(client.submit().status, OK));
    assert_eq!(servers.each_ref().map(|it| it.count(SUBMIT_SM)), [2, 6]);
    unbind([client]);
    lb.wait_no_smpp();
}

#[test] // M30
fn every_figure_of_a_short_session_is_exact() {
    let servers = Smsc::several::<1>();
    let lb = Setup::smpp_mux(&servers).start();
    let mut clients = sessions::<10>(&lb, &servers);
    clients.iter_mut().for_each(|it| assert_eq!(it.submit().status, OK));
    assert_eq!(lb.stat("NumberOfActiveSmppConnections"), 11);
    unbind(clients);
    lb.wait_no_smpp();
    let metrics = lb.lbstat();
    for (name, want) in [
        ("NumberOfSmppBytesToServer", 610),
        ("NumberOfSmppBytesToClient", 170),
        ("NumberOfSmppRequestsToServer", 30),
        ("NumberOfActiveSmppConnections", 0),
    ] {
        assert_eq!(metrics[name], want, "{name}");
    }
    let requests = &metrics["NumberOfSmppRequestsProcessedByCommandId"]["submit_sm"];
    let responses = &metrics["NumberOfSmppResponsesProcessedByCommandId"]["submit_sm"];
    assert_eq!((requests, responses), (&10.into(), &10.into()));
}

#[test] // M31
fn requests_of_a_server_take_turns_over_the_sessions() {
    let servers = Smsc::several::<1>();
    let lb = Setup::smpp_mux(&servers).start();
    let mut clients = sessions::<3>(&lb, &servers);
    for sequence in 2..=4 {
        servers[0].send(0, &Pdu::new(DATA_SM, sequence, message_body(b"to one of you")));
    }
    for client in &mut clients {
        let asked = client.asked(DATA_SM);
        assert_eq!(asked.sequence, 2, "the original's first number");
        client.send(&asked.answer(OK, b"\0"));
    }
    servers[0].wait_count(DATA_SM | RESPONSE, 3);
    let answered = servers[0].seen().into_iter().filter(|it| it.pdu.command == DATA_SM | RESPONSE);
    assert_eq!(answered.map(|it| it.pdu.sequence).collect::<BTreeSet<_>>(), [2, 3, 4].into());
    assert_eq!(lb.stat("NumberOfSmppRequestsToClient"), 3);
    assert!(clients.iter().all(|it| it.count(DATA_SM) == 1 && it.inbox().count() == 0));
    unbind(clients);
    lb.wait_no_smpp();
}

#[test]
fn requests_of_a_server_may_go_to_all_sessions_and_are_answered_once() {
    let servers = Smsc::several::<1>();
    let class = "org.mobicents.tools.smpp.balancer.algorithms.SmppToNodeSubmitToAllAlgorithm";
    let lb = Setup::smpp_mux(&servers).set("toNodeAlgorithmClass", class).start();
    let mut clients = sessions::<3>(&lb, &servers);
    clients.iter_mut().for_each(|it| it.answers(&[ENQUIRE_LINK, DATA_SM]));
    servers[0].send(0, &Pdu::new(DATA_SM, 9, message_body(b"to all of you")));
    wait_for("the message at everyone", || {
        clients.iter_mut().for_each(Esme::poll);
        clients.iter().all(|it| it.count(DATA_SM) == 1).then_some(())
    });
    unbind(clients);
    lb.wait_no_smpp();
    assert_eq!(servers[0].count(DATA_SM | RESPONSE), 1);
}

#[test] // M32
fn tls_ends_at_the_balancer_or_goes_on_to_the_servers() {
    for (terminates, server) in [("true", Smsc::start()), ("false", Smsc::start_tls())] {
        let servers = [server];
        let lb = Setup::smpp_mux(&servers).certified().set("smppSslPort", "SMPPS");
        let lb = lb.set("smppReencrypt", "true").set("terminateTLSTraffic", terminates).start();
        let mut clients =
            [(); 3].map(|()| Esme::connect_tls(lb.smpps()).bind("RestComm", "password"));
        for client in &mut clients {
            assert_eq!(client.submit().status, OK, "{terminates}");
            assert_eq!(client.count(SUBMIT_SM | RESPONSE), 1);
        }
        assert_eq!(servers[0].count(SUBMIT_SM), 3, "{terminates}");
        unbind(clients);
        lb.wait_no_smpp();
    }
}

#[test]
fn a_bind_moves_to_the_shard_that_owns_its_system_id() {
    for secure in [false, true] {
        let servers = Smsc::several::<2>();
        let lb = Setup::smpp_mux(&servers).certified().set("smppSslPort", "SMPPS");
        let lb = lb.set("shards", "4").set("reuseportSteering", "random").start();
        let connect = || match secure {
            true => Esme::connect_tls(lb.smpps()),
            false => Esme::connect(lb.smpp()),
        };
        let names = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta"];
        let mut clients: Vec<Esme> = names
            .iter()
            .cycle()
            .take(48)
            .map(|name| {
                let mut client = connect().numbered(7);
                // The bind comes with what follows it, and in pieces.
                let bind = Pdu::new(BIND_TRANSCEIVER, 8, bind_body(name, "password")).to_bytes();
                let link = Pdu::new(ENQUIRE_LINK, 9, b"").to_bytes();
                let all = [bind, link].concat();
                let (head, rest) = all.split_at(20);
                client.send_bytes(head);
                client.send_bytes(rest);
                assert_eq!(client.answer_to(8).status, OK, "{name} {secure}");
                assert_eq!(client.answer_to(9).status, OK, "{name} {secure}");
                client.numbered(100)
            })
            .collect();
        clients.iter_mut().for_each(|it| assert_eq!(it.submit().status, OK));
        // Wherever they were accepted, sessions of one name share one connection to each server.
        for server in &servers {
            server.wait_bound(names.len());
            assert_eq!(server.connections(), names.len(), "{secure}");
        }
        let hops: u64 = lb
            .metrics()
            .lines()
            .filter(|it| it.starts_with("trunkline_hops_total") || it.contains("hops"))
            .filter_map(|it| it.rsplit(' ').next()?.parse::<u64>().ok())
            .sum();
        assert!((1..=48).contains(&hops), "{hops}: each bind moves once at most");
        unbind(clients);
        lb.wait_no_smpp();
    }
}
