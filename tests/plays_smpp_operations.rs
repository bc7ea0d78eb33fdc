//! SMPP as operators meet it, through the whole process: reload, stop, nodes as servers, several shards,
//! what is shown of sessions, and what must never be.

use nix::sys::signal::Signal;
use tests::smpp::*;
use tests::{Node, Setup, wait_for};

#[test]
fn a_stop_unbinds_both_sides_first() {
    for is_mux in [false, true] {
        let servers = Smsc::several::<2>();
        let lb = Setup::smpp(&servers).set("muxMode", &is_mux.to_string()).start();
        let mut clients = [(); 4].map(|()| Esme::bound(lb.smpp()));
        servers.iter().for_each(|it| lb.wait_bound(it, if is_mux { 1 } else { 2 }));
        lb.signal(Signal::SIGTERM);
        for client in &mut clients {
            let unbind = client.asked(UNBIND);
            client.send(&unbind.answer(OK, b""));
            client.wait_end();
        }
        for server in &servers {
            server.wait_count(UNBIND, if is_mux { 1 } else { 2 });
            server.wait_open(0);
        }
        assert!(lb.wait_exit().success());
        assert!(lb.has_logged("Stopping the SMPP balancer"));
    }
}

#[test]
fn credentials_are_neither_logged_nor_shown() {
    for (level, is_mux) in [("DEBUG", false), ("TRACE", false), ("DEBUG", true), ("TRACE", true)] {
        let servers = Smsc::several::<1>();
        servers[0].replies(|_, it| match it.text(0) {
            "Wr0ngName" => Reply::Status(INVALID_PASSWORD),
            _ => Reply::Ok,
        });
        let lb = Setup::smpp(&servers).certified().set("smppSslPort", "SMPPS");
        let lb = lb.set("muxMode", &is_mux.to_string()).set("shards", "2");
        let lb = lb.argument(&format!("-DlogLevel={level}")).start();
        let mut client = Esme::connect(lb.smpp()).bind("S3cretName", "Hunt3r22");
        let mut secure = Esme::connect_tls(lb.smpps()).bind("S3cretName", "Hunt3r22");
        assert_eq!(client.ask(SUBMIT_SM, &message_body(b"B0dyOfMessage")).status, OK);
        assert_eq!(secure.submit().status, OK);
        // Each of these is refused in its own way.
        for body in [bind_body("Wr0ngName", "Hunt3r22"), b"S3cretName\0Hunt3r22".to_vec()] {
            assert_ne!(Esme::connect(lb.smpp()).ask(BIND_TRANSCEIVER, &body).status, OK);
        }
        client.ask(BIND_TRANSCEIVER, &bind_body("S3cretName", "Hunt3r22"));
        let mut broken = Esme::connect(lb.smpp());
        broken.send_bytes(b"\0\0\0\x01S3cretName Hunt3r22");
        broken.wait_end();
        servers[0].hang_up(0);
        wait_for("the server again", || (client.submit().status == OK).then_some(()));
        let pages = ["/lbstat", "/lbinfo", "/metrics"].map(|it| lb.get(it).1).concat();
        lb.signal(Signal::SIGTERM);
        lb.wait_exit();
        let everything = lb.log() + &pages;
        for secret in ["S3cretName", "Hunt3r22", "Wr0ngName", "B0dyOfMessage"] {
            assert!(!everything.contains(secret), "{level} {is_mux}: {secret} in\n{everything}");
        }
    }
}

#[test]
fn servers_are_added_and_removed_while_running() {
    let servers = Smsc::several::<3>();
    let [first, second, third] = servers.each_ref().map(|it| it.address);
    let mut lb = Setup::smpp(&[]).set("remoteServers", &first.to_string()).start();
    let mut old = Esme::bound(lb.smpp());
    // By name as well.
    let named = format!("localhost:{},{third}", second.port());
    lb.reload(&[("remoteServers", &named)]);
    let shown = |port: u16| format!("\"smppPort\":\"{port}\"");
    wait_for("the new list", || {
        let info = lb.get("/lbinfo").1;
        let has = |port| info.contains(&shown(port));
        (has(second.port()) && has(third.port()) && !has(first.port())).then_some(())
    });
    let mut new = [(); 4].map(|()| Esme::bound(lb.smpp()));
    new.iter_mut().for_each(|it| assert_eq!(it.submit().status, OK));
    assert_eq!(servers.each_ref().map(Smsc::binds), [1, 2, 2]);
    assert_eq!(old.submit().status, OK, "who was bound stays");
    // But when its server goes it is bound to what is configured now.
    servers[0].hang_up(0);
    wait_for("another server", || (old.submit().status == OK).then_some(()));
    assert_eq!(servers[0].binds(), 1);
    assert_eq!(servers[1].binds() + servers[2].binds(), 5);
}

#[test]
fn nodes_that_announce_an_smpp_port_are_servers() {
    for is_mux in [false, true] {
        let servers = Smsc::several::<3>();
        let setup = Setup::two_entry().set("smppHost", "127.0.0.1").set("smppPort", "SMPP");
        let setup = setup.set("remoteServers", &servers[0].address.to_string());
        let setup = setup.set("reconnectPeriod", "50").set("muxMode", &is_mux.to_string());
        let lb = setup.start();
        let announce = |name: &str, server: &Smsc| {
            let port = server.address.port().to_string();
            lb.announced(Node::bind(name).property("smppPort", &port))
        };
        let one = announce("one", &servers[1]);
        let _two = announce("two", &servers[2]);
        lb.wait_nodes(2);
        let mut clients = [(); 6].map(|()| Esme::bound(lb.smpp()));
        let share = if is_mux { 1 } else { 2 };
        servers.iter().for_each(|it| lb.wait_bound(it, share));
        clients.iter_mut().for_each(|it| assert_eq!(it.submit().status, OK));
        assert_eq!(servers.each_ref().map(|it| it.count(SUBMIT_SM)), [2, 2, 2], "{is_mux}");
        // A node that is gone gets no more.
        drop(one);
        lb.wait_nodes(1);
        let _late = [(); 4].map(|()| Esme::connect(lb.smpp()).bind("late", "password"));
        servers[1].wait_open(0);
        assert_eq!(servers[1].count(BIND_TRANSCEIVER), share as usize, "{is_mux}");
    }
}

#[test]
fn sessions_left_on_a_drained_node_are_counted_until_they_unbind() {
    let server = Smsc::several::<1>();
    let setup = Setup::two_entry().set("smppHost", "127.0.0.1").set("smppPort", "SMPP");
    let lb = setup.set("muxMode", "false").start();
    let port = server[0].address.port().to_string();
    let _node = lb.announced(Node::bind("n0").property("smppPort", &port));
    lb.wait_nodes(1);
    let clients = [(); 2].map(|()| Esme::bound(lb.smpp()));
    lb.get("/lbdrain?node=n0");
    let left = |name: &str| lb.lbinfo()["Nodes info"]["nodesIPv4"][0]["left"][name].clone();
    assert_eq!((left("smppConnections"), left("isNothing")), (2.into(), false.into()));
    for client in clients {
        client.unbind();
    }
    wait_for("the end of both", || (left("smppConnections") == 0).then_some(()));
    assert_eq!(left("isNothing"), true);
}

#[test]
fn with_several_shards_binds_are_off_by_less_than_their_number() {
    let servers = Smsc::several::<4>();
    let lb = Setup::smpp(&servers).set("shards", "4").set("reuseportSteering", "random").start();
    let _clients: Vec<Esme> = (0..40).map(|_| Esme::bound(lb.smpp())).collect();
    let counts = servers.each_ref().map(Smsc::binds);
    assert_eq!(counts.iter().sum::<usize>(), 40);
    assert!(counts.iter().all(|it| it.abs_diff(10) <= 3), "{counts:?}");
    let metrics = lb.metrics();
    let hops: Vec<_> = metrics.lines().filter(|it| it.contains("hops_total{")).collect();
    assert!(!hops.is_empty() && hops.iter().all(|it| it.ends_with(" 0")), "{hops:?}: they stay");
}

#[test]
fn sessions_are_shown_one_by_one_without_their_names() {
    let servers = Smsc::several::<2>();
    servers[1].answers(SUBMIT_SM, Reply::Nothing);
    let lb = Setup::smpp(&servers).certified().set("smppSslPort", "SMPPS").start();
    let plain = Esme::bound(lb.smpp());
    let mut secure = Esme::connect_tls(lb.smpps()).bind("RestComm", "password");
    let unbound = Esme::connect(lb.smpp());
    for _ in 0..3 {
        secure.request(SUBMIT_SM, &message_body(b"text"));
    }
    servers[1].wait_count(SUBMIT_SM, 3);
    let source = |it: &Esme| it.socket().local_addr().unwrap().to_string();
    let shown = lb.lbinfo()["smppSessions"].clone();
    let of = |source: &str| {
        let all = shown.as_array().unwrap().iter();
        all.clone().find(|it| it["source"] == source).unwrap_or_else(|| panic!("{shown}"))
    };
    for (client, state, is_secure, server, outstanding) in [
        (&plain, "BOUND", false, Some(&servers[0]), 0),
        (&secure, "BOUND", true, Some(&servers[1]), 3),
        (&unbound, "OPEN", false, None, 0),
    ] {
        let entry = of(&source(client));
        assert_eq!(entry["state"], state, "{entry}");
        assert_eq!(entry["secure"], is_secure, "{entry}");
        let server = server.map(|it| it.address.to_string());
        assert_eq!(entry["server"].as_str(), server.as_deref(), "{entry}");
        assert_eq!(entry["outstanding"], outstanding, "{entry}");
        assert_eq!(entry["outstandingToClient"], 0, "{entry}");
    }
    assert_eq!(shown.as_array().unwrap().len(), 3);
}

#[test]
fn who_does_not_close_after_its_unbind_is_disconnected() {
    for is_mux in [false, true] {
        let servers = Smsc::several::<1>();
        let lb = Setup::smpp(&servers).set("muxMode", &is_mux.to_string());
        let lb = lb.set("timeoutConnection", "2000").start();
        Esme::bound(lb.smpp()).unbind().wait_end();
        lb.wait_no_smpp();
    }
}

#[test]
fn without_any_server_a_bind_is_refused_with_its_own_name() {
    let mut servers = Smsc::several::<2>();
    servers.iter_mut().for_each(Smsc::stop);
    let lb = Setup::smpp(&servers).start();
    let mut client = Esme::connect(lb.smpp()).numbered(0x7fff_fff0);
    let answer = client.ask(BIND_TRANSCEIVER, &bind_body("RestComm", "password"));
    assert_eq!((answer.status, answer.sequence), (SYSTEM_ERROR, 0x7fff_fff1));
    assert_eq!(answer.body, b"RestComm\0\x02\x10\0\x01\x34");
    client.wait_end();
    lb.wait_no_smpp();
}

#[test]
fn every_response_has_the_askers_number() {
    for is_mux in [false, true] {
        let servers = Smsc::several::<1>();
        servers[0].replies(|_, it| match it.command {
            QUERY_SM => Reply::Exactly(vec![Pdu {
                status: INVALID_COMMAND,
                ..Pdu::new(GENERIC_NACK, it.sequence, b"")
            }]),
            _ => Reply::Ok,
        });
        let lb = Setup::smpp(&servers).set("muxMode", &is_mux.to_string()).start();
        let mut client = Esme::connect(lb.smpp());
        for sequence in [0x7fff_ffff, 0, 0xffff_fffe, 5] {
            let (command, body) = match sequence {
                0x7fff_ffff => (BIND_TRANSCEIVER, bind_body("RestComm", "password")),
                0 => (SUBMIT_SM, message_body(b"x")),
                0xffff_fffe => (QUERY_SM, b"id\0\0\0\0".to_vec()),
                _ => (ENQUIRE_LINK, Vec::new()),
            };
            client.send(&Pdu::new(command, sequence, body));
            let answer = client.answer_to(sequence);
            let nacked = if command == QUERY_SM { GENERIC_NACK } else { command | RESPONSE };
            assert_eq!(answer.command, nacked, "{sequence:#x}");
        }
        // And the other way round.
        servers[0].send(0, &Pdu::new(DELIVER_SM, 0x7fff_fffe, message_body(b"x")));
        let asked = client.asked(DELIVER_SM);
        let nack = Pdu { status: INVALID_COMMAND, ..Pdu::new(GENERIC_NACK, asked.sequence, b"") };
        client.send(&nack);
        servers[0].wait("the nack", |it| {
            it.pdu.command == GENERIC_NACK && it.pdu.sequence == 0x7fff_fffe
        });
    }
}

#[test]
fn receipts_find_their_submitter_and_segments_stay_together() {
    let servers = Smsc::several::<2>();
    for (name, server) in ["a", "b"].into_iter().zip(&servers) {
        let mut count = 0;
        server.replies(move |_, it| match it.command {
            SUBMIT_SM => {
                count += 1;
                Reply::Body(format!("{name}{count}\0").into_bytes())
            }
            _ => Reply::Ok,
        });
    }
    let lb = Setup::smpp_mux(&servers).start();
    let mut clients = [(); 3].map(|()| Esme::bound(lb.smpp()));
    servers.iter().for_each(|it| lb.wait_bound(it, 1));
    for round in 0..4 {
        let ids = clients.each_mut().map(|it| it.submit().text(0).to_owned());
        // In any order, and from either server: they may be one cluster.
        for (at, id) in ids.iter().enumerate().rev() {
            let server = &servers[(at + round) % 2];
            server.send(0, &Pdu::new(DELIVER_SM, 1_000, receipt_body(id)));
            let receipt = clients[at].asked(DELIVER_SM);
            assert!(String::from_utf8_lossy(&receipt.body).contains(&format!("id:{id} ")));
            clients[at].send(&receipt.answer(OK, b"\0"));
        }
    }
    assert!(clients.iter().all(|it| it.count(DELIVER_SM) == 4));
    // Three segments of one message, by their user data headers, reach one server.
    let before = servers.each_ref().map(|it| it.count(SUBMIT_SM));
    for reference in 0..8 {
        for part in 1..=3 {
            let text = [&[5, 0, 3, reference, 3, part][..], b"part"].concat();
            assert_eq!(clients[0].ask(SUBMIT_SM, &message(0x40, &text)).status, OK);
        }
    }
    let counts = [0, 1].map(|it| servers[it].count(SUBMIT_SM) - before[it]);
    assert_eq!(counts[0] + counts[1], 24);
    assert!(counts.iter().all(|it| it % 3 == 0), "{counts:?}");
}

#[test]
fn receipts_are_routed_as_the_keys_say() {
    // Of two receipts of one message, how many come to who submitted it; by turns it is one.
    for (key, value, want) in [
        ("smppReceiptRouting", "true", 2),
        ("smppReceiptRouting", "false", 1),
        ("smppReceiptsMax", "1", 1),
    ] {
        let servers = Smsc::several::<1>();
        let mut count = 0;
        servers[0].replies(move |_, it| match it.command {
            SUBMIT_SM => {
                count += 1;
                Reply::Body(format!("m{count}\0").into_bytes())
            }
            _ => Reply::Ok,
        });
        let lb = Setup::smpp_mux(&servers).set(key, value).start();
        let mut clients = [(); 2].map(|()| Esme::bound(lb.smpp()));
        let [id, _] = clients.each_mut().map(|it| it.submit().text(0).to_owned());
        for number in 1..=2 {
            servers[0].send(0, &Pdu::new(DELIVER_SM, number, receipt_body(&id)));
        }
        wait_for("both receipts", || {
            clients.iter_mut().for_each(Esme::poll);
            let counts = clients.each_ref().map(|it| it.count(DELIVER_SM));
            (counts[0] + counts[1] == 2).then_some(())
        });
        assert_eq!(clients[0].count(DELIVER_SM), want, "{key}={value}");
    }
}
