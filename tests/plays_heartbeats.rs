//! Nodes that announce themselves by HTTP and JSON, and by several protocols (`http-smpp-registry.md` 3.1,
//! 3.5, 5.2, 5.4 and 6.3; `sip.md` 5.5, 5.8, 6.1). Letters with numbers in comments are items of 6.3,
//! numbers alone of `sip.md` 6.1. Java nodes are in `rmi_java.rs`.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use tests::{
    Balancer, JavaNode, JsonBeats, Layout, Node, Peer, Setup, free_port, post, wait_for, who_got,
};

/// What the log says of a node that told its end.
const STOPPED: &str = "forcibly removed due to a clean shutdown of a node";

/// Announces a SIP peer by HTTP alone.
fn json_node(lb: &Balancer, node: &Node, more: &[(&str, &str)]) -> JsonBeats {
    let port = node.address().port().to_string();
    let mut words = vec![
        ("hostName", node.name()),
        ("ip", "127.0.0.1"),
        ("udpPort", port.as_str()),
        ("tcpPort", port.as_str()),
        ("version", "0"),
    ];
    words.extend(more);
    JsonBeats::start(lb.beats(), &words)
}

/// Two nodes that take calls, announced by HTTP.
fn two_json_nodes(lb: &Balancer) -> (Vec<Node>, Vec<JsonBeats>) {
    let nodes: Vec<Node> = ["n0", "n1"].map(Node::bind).into();
    let beats = nodes.iter().zip(["r0", "r1"]).map(|(node, route)| {
        node.answers_calls();
        json_node(lb, node, &[("jvmRoute", route)])
    });
    let beats = beats.collect();
    lb.wait_nodes(2);
    (nodes, beats)
}

#[test] // 1
fn it_says_where_it_listens_and_leaves_no_port_bound() {
    let lb = Setup::two_entry().heartbeats().start();
    let [registry, object, http] = lb.addresses.heartbeats;
    let log = lb.log();
    for line in [
        format!("RMI heartbeat listener bound to internalHost, port {registry}"),
        format!(
            "RMI heartbeat server bound to ports rmiRegistryPort {registry} and remoteObjectPort {object}"
        ),
        format!("Heartbeat service started on 127.0.0.1/127.0.0.1:{http} (Load balancer's side)"),
    ] {
        assert!(log.contains(&line), "{line} in\n{log}");
    }
    let places = ["Node registry starting...", "RMI heartbeat listener", "Node expiration task"];
    assert!(places.map(|it| log.find(it)).is_sorted(), "in the original's order: {log}");
    lb.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(lb.wait_exit().success());
    for port in lb.addresses.heartbeats {
        assert!(TcpListener::bind(("127.0.0.1", port)).is_ok(), "{port}");
    }
}

#[test]
fn a_port_that_was_written_must_be_free_and_a_default_gives_way() {
    let first = Setup::two_entry().heartbeats().start();
    for (key, taken) in [
        ("rmiRegistryPort", first.addresses.heartbeats[0]),
        ("rmiRemoteObjectPort", first.addresses.heartbeats[1]),
        ("heartbeatPort", first.addresses.heartbeats[2]),
    ] {
        let second = Setup::two_entry().heartbeats().set(key, &taken.to_string());
        let (status, log) = second.refused();
        assert!(!status.success(), "{key}");
        assert!(log.contains(&format!("{key}={taken}: ")), "{key}: {log}");
    }
    // Nobody has told these two of RMI: they start, whoever has the port.
    let _holders: Vec<_> = ["127.0.0.1:2000", "127.0.0.1:2001"].map(TcpListener::bind).into();
    let second = Setup::two_entry().set("rmiRegistryPort", "").start();
    second.wait_log("no heartbeats by RMI");
    second.answering_nodes(1);
}

#[test] // R11
fn every_command_by_http_is_answered_in_the_words_of_the_original() {
    let lb = Setup::two_entry().heartbeats().start();
    let say = |body: &str| post(lb.beats(), body).unwrap();
    let start = r#"{"start":{"hostName":"node1","ip":"127.0.0.1","httpPort":"7080","udpPort":"4060",
        "version":"0","sessionId":"1485157008580","restcommInstanceId":"ID1","custom":"x"}}"#;
    let unknown = (200, r#"{"heartbeat":"NOK"}"#.to_owned());
    assert_eq!(say(r#"{"heartbeat":{"sessionId":1485157008580}}"#), unknown);
    for (body, want) in [
        (start, r#"{"start":"OK"}"#),
        (r#"{"heartbeat":{"sessionId":1485157008580}}"#, r#"{"heartbeat":"OK"}"#),
        (r#"{"heartbeat":{"sessionId":"1485157008580"}}"#, r#"{"heartbeat":"OK"}"#),
        (r#"{"shutdown":{"sessionId":1485157008580}}"#, r#"{"shutdown":"OK"}"#),
        (r#"{"switchover":{"fromJvmRoute":"a","toJvmRoute":"b"}}"#, r#"{"switchover":"OK"}"#),
        (r#"{"stop":{"sessionId":7}}"#, r#"{"stop":"NOK"}"#),
    ] {
        assert_eq!(say(body), (200, want.to_owned()), "{body}");
    }
    let node = lb.wait_node("the node", |it| it.host_name == "node1" && it.is_leaving);
    let properties = ["httpPort", "udpPort", "Restcomm-Instance-Id", "custom", "hostName", "ip"]
        .map(|it| node.property(it));
    let want = [Some("7080"), Some("4060"), Some("ID1"), Some("x"), None, None];
    assert_eq!(properties, want);
    lb.wait_log("Switchover failed where fromJvmRoute=a and toJvmRoute=b");
    let stop = r#"{"stop":{"sessionId":1485157008580}}"#;
    assert_eq!(say(stop), (200, r#"{"stop":"OK"}"#.to_owned()));
    lb.wait_log(STOPPED);
    lb.wait_nodes(0);
    for nonsense in ["", "{", "[]", "null", r#"{"start":{}}"#, r#"{"dance":{}}"#, "{\"a\":1}}"] {
        assert_eq!(say(nonsense).0, 400, "{nonsense}");
    }
    assert!(lb.metric("trunkline_heartbeats_refused_total{reason=\"malformed\"}") >= 7.0);
    assert!(lb.metric("trunkline_heartbeats_total{by=\"http\"}") >= 9.0);
}

#[test] // R1, 2
fn nodes_by_http_live_as_long_as_they_beat() {
    let lb = Setup::two_entry().heartbeats().start();
    let (_nodes, mut beats) = two_json_nodes(&lb);
    beats[0].fall_silent();
    lb.wait_nodes(1);
    lb.wait_log("removed. Last timestamp: ");
    assert!(beats[1].stop());
    lb.wait_log(STOPPED); // and not silent for too long
    lb.wait_nodes(0);
}

/// As the original's own test has them: in front of its valve, that of congestion (`sip.md` 2.12).
#[test] // R1, 2, 3
fn whichever_valves_are_configured_who_falls_silent_is_taken_out_and_only_that_one() {
    let own = "org.mobicents.tools.sip.balancer.SIPBalancerValveProcessor";
    let two = format!("gov.nist.javax.sip.stack.CongestionControlMessageValve,{own}");
    for valves in ["", own, &two] {
        let setup = Setup::single_entry().heartbeats();
        let lb = setup.set("gov.nist.javax.sip.SIP_MESSAGE_VALVE", valves).start();
        let (nodes, mut beats) = two_json_nodes(&lb);
        beats[0].fall_silent();
        lb.wait_nodes(1);
        lb.wait_log("removed. Last timestamp: ");
        let heard = beats[1].heard().1;
        // Longer than its time.
        wait_for("heartbeats", || (beats[1].heard().1 >= heard + 20).then_some(()));
        let left: Vec<String> = lb.known().into_iter().map(|it| it.host_name).collect();
        assert_eq!(left, ["n1"], "{valves}");
        let caller = lb.caller("alice");
        for _ in 0..2 {
            let mut call = caller.call("sip:bob@example.com");
            caller.exchange(&mut call, "BYE");
        }
        assert_eq!([nodes[0].count("BYE"), nodes[1].count("BYE")], [0, 2], "{valves}");
        assert!(beats[1].stop());
        lb.wait_log(STOPPED);
        lb.wait_nodes(0);
    }
}

#[test]
fn a_node_that_was_forgotten_is_told_and_comes_back_by_itself() {
    let lb = Setup::two_entry().heartbeats().start();
    let node = Node::bind("n0");
    let beats = json_node(&lb, &node, &[]);
    wait_for("its heartbeats", || (beats.heard().1 >= 2).then_some(()));
    let session = beats.session();
    // Taken out and let in again: its session is not known any more, as after our own restart.
    assert!(lb.get("/lbremove?node=n0").0.contains("200"));
    lb.wait_nodes(0);
    assert!(lb.get("/lbundrain?node=n0").0.contains("200"));
    lb.wait_nodes(1);
    wait_for("its second start", || (beats.heard().0 >= 2).then_some(()));
    assert_ne!(beats.session(), session);
}

#[test]
fn nodes_by_http_come_back_to_a_balancer_that_was_started_anew() {
    let first = Setup::two_entry().heartbeats().start();
    let (_nodes, beats) = two_json_nodes(&first);
    let port = first.beats().port().to_string();
    first.signal(nix::sys::signal::Signal::SIGKILL);
    first.wait_exit();
    let second = Setup::two_entry().heartbeats().set("heartbeatPort", &port).start();
    second.wait_nodes(2);
    for beats in &beats {
        wait_for("its second start", || (beats.heard().0 >= 2).then_some(()));
        assert_eq!(beats.heard().0, 2, "it has begun anew, once");
    }
}

/// SIGSTOP is what a pause of the virtual machine is to the process. Nodes of every protocol; that of RMI
/// where there is a JDK.
#[test]
fn nodes_outlive_a_time_in_which_the_balancer_stood_still() {
    // A JVM on a busy machine takes its time.
    let lb = Setup::two_entry().heartbeats().set("nodeTimeout", "4000").start();
    let (mut nodes, beats) = two_json_nodes(&lb);
    for name in ["sip", "rmi"] {
        let node = Node::bind(name);
        node.answers_calls();
        nodes.push(node);
    }
    nodes[2].announce(&[lb.internal]);
    let mut java = JavaNode::start(Layout::New, lb.rmi().port(), &[]);
    if let Some(java) = &mut java {
        let port = nodes[3].address().port();
        java.tell(&format!("node rmi 127.0.0.1 udpPort=int:{port} tcpPort=int:{port} sessionId=1"));
        java.say("every 250 100000");
    } else {
        nodes.pop();
    }
    lb.wait_nodes(nodes.len());
    let by_rmi = || lb.metric("trunkline_heartbeats_total{by=\"rmi\"}");
    lb.signal(nix::sys::signal::Signal::SIGSTOP);
    let stopped = Instant::now();
    wait_for("twice nodeTimeout", || (stopped.elapsed() > Duration::from_secs(8)).then_some(()));
    lb.signal(nix::sys::signal::Signal::SIGCONT);
    let caller = lb.caller("alice");
    for _ in &nodes {
        let mut call = caller.call("sip:bob@example.com");
        caller.exchange(&mut call, "BYE");
    }
    lb.wait_log("The process stood still for ");
    let heard = (beats[0].heard().1, by_rmi());
    wait_for("heartbeats", || (beats[0].heard().1 > heard.0 + 3).then_some(()));
    if java.is_some() {
        wait_for("heartbeats by RMI", || (by_rmi() > heard.1 + 3.0).then_some(()));
    }
    assert!(!lb.log().contains("removed"), "{}", lb.log());
    assert!(!lb.log().contains("restarted"), "{}", lb.log());
    assert!(nodes.iter().all(|it| it.count("INVITE") == 1), "in turn, each has its call");
    // Who went meanwhile is found out as ever.
    nodes[2].fall_silent();
    drop(java);
    lb.wait_nodes(2);
}

/// One caller for each of the shards of a balancer that has no node yet: the kernel chooses one by the
/// caller's address, and it stays.
fn callers(lb: &Balancer, shards: usize) -> Vec<Peer> {
    let datagrams =
        |shard: usize| lb.metric(&format!("trunkline_shard_datagrams_total{{shard=\"{shard}\"}}"));
    let mut callers: Vec<Option<Peer>> = (0..shards).map(|_| None).collect();
    wait_for("a caller for each shard", || {
        let before: Vec<f64> = (0..shards).map(datagrams).collect();
        let caller = lb.caller("alice");
        caller.send(&caller.request("OPTIONS", "sip:bob@example.com"));
        caller.expect("500");
        let shard = (0..shards).find(|it| datagrams(*it) > before[*it])?;
        callers[shard] = Some(caller);
        callers.iter().all(Option::is_some).then_some(())
    });
    callers.into_iter().flatten().collect()
}

/// Sends so many new calls to the balancer; which of these sockets got how many. They are all there at the
/// end, since nothing else comes.
fn deal(caller: &Peer, sockets: &[UdpSocket], calls: usize) -> Vec<usize> {
    for _ in 0..calls {
        caller.send(&caller.request("MESSAGE", "sip:bob@example.com"));
    }
    let mut dealt = vec![0; sockets.len()];
    wait_for("the calls at the nodes", || {
        let mut buffer = [0; 4096];
        for (count, socket) in dealt.iter_mut().zip(sockets) {
            while socket.recv(&mut buffer).is_ok() {
                *count += 1;
            }
        }
        (dealt.iter().sum::<usize>() == calls).then_some(())
    });
    dealt
}

/// Each shard deals its new calls in turn, so as many of them as there are nodes reach each node once: if and
/// only if the shard knows all.
#[test]
fn two_hundred_nodes_are_known_to_every_shard_and_gone_from_every_shard() {
    const NODES: usize = 200;
    const SHARDS: usize = 3;
    let setup = Setup::two_entry().heartbeats().set("shards", &SHARDS.to_string());
    let lb = setup.set("nodeTimeout", "600000").start(); // they say each thing once
    let callers = callers(&lb, SHARDS);
    let sockets: Vec<UdpSocket> =
        (0..NODES).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    for (at, socket) in sockets.iter().enumerate() {
        socket.set_nonblocking(true).unwrap();
        let port = socket.local_addr().unwrap().port();
        let start = format!(
            r#"{{"start":{{"hostName":"n{at}","ip":"127.0.0.1","udpPort":"{port}","sessionId":"{at}"}}}}"#
        );
        assert_eq!(post(lb.beats(), &start).unwrap().1, r#"{"start":"OK"}"#, "n{at}");
    }
    let know = |who: &[UdpSocket], others: &[UdpSocket]| {
        lb.wait_nodes(who.len());
        for (shard, caller) in callers.iter().enumerate() {
            let dealt = deal(caller, who, who.len());
            assert!(dealt.iter().all(|it| *it == 1), "shard {shard}: {dealt:?}");
            let late = others.iter().filter(|it| it.recv(&mut [0; 4096]).is_ok()).count();
            assert_eq!(late, 0, "shard {shard}: calls for nodes that are gone");
        }
    };
    let leave = |sessions: std::ops::Range<usize>| {
        for at in sessions {
            let stop = format!(r#"{{"stop":{{"sessionId":{at}}}}}"#);
            assert_eq!(post(lb.beats(), &stop).unwrap().1, r#"{"stop":"OK"}"#, "n{at}");
        }
    };
    know(&sockets, &[]);
    leave(0..NODES / 2);
    let (gone, rest) = sockets.split_at(NODES / 2);
    know(rest, gone);
    leave(NODES / 2..NODES);
    lb.wait_nodes(0);
    for caller in &callers {
        caller.send(&caller.request("MESSAGE", "sip:bob@example.com"));
        caller.expect("500 MESSAGE");
    }
}

#[test] // R4, 23
fn a_node_that_shuts_down_by_http_keeps_its_calls_and_gets_no_new_ones() {
    let lb = Setup::two_entry()
        .heartbeats()
        .algorithm("UserBasedAlgorithm")
        .set("sipHeaderAffinityKey", "To")
        .start();
    let (nodes, beats) = two_json_nodes(&lb);
    let caller = lb.caller("alice");
    let mut first = caller.call("sip:bob@example.com");
    let home = who_got(&nodes, &first.call_id, "INVITE")[0];
    assert!(beats[home].leave());
    lb.wait_node("it leaves", |it| it.is_leaving && it.host_name == nodes[home].name());
    caller.exchange(&mut first, "BYE");
    assert_eq!(who_got(&nodes, &first.call_id, "BYE"), [home]);
    let mut second = caller.call("sip:bob@example.com");
    assert_eq!(who_got(&nodes, &second.call_id, "INVITE"), [1 - home]);
    caller.exchange(&mut second, "BYE");
    let before = beats[home].heard().1;
    wait_for("its heartbeats", || (beats[home].heard().1 >= before + 20).then_some(()));
    assert_eq!(lb.known().len(), 2, "it beats, so it stays");
}

#[test] // sip.md 5.8
fn a_switchover_moves_remembered_calls_on_every_shard() {
    let lb = Setup::two_entry().heartbeats().set("shards", "2").start();
    let (nodes, _beats) = two_json_nodes(&lb);
    let count = |node: &Node, call: &str| {
        node.record().iter().filter(|it| it.is("MESSAGE") && it.call_id() == call).count()
    };
    let calls: Vec<_> = (0..6)
        .map(|number| {
            let caller = lb.caller(&format!("c{number}"));
            let call = caller.ask("MESSAGE", "sip:bob@example.com").call_id().to_owned();
            let home = who_got(&nodes, &call, "MESSAGE")[0];
            (caller, call, home)
        })
        .collect();
    assert!(calls.iter().any(|(_, _, home)| *home == 0), "somebody has to move");
    let body = r#"{"switchover":{"fromJvmRoute":"r0","toJvmRoute":"r1"}}"#;
    assert_eq!(post(lb.beats(), body).unwrap(), (200, r#"{"switchover":"OK"}"#.to_owned()));
    lb.wait_log("Switchover fromJvmRoute=r0 and toJvmRoute=r1");
    lb.metrics(); // every shard has read its mail by then
    // Requests and responses, whichever shard they met.
    assert!(lb.metric("trunkline_residence_seconds_count") >= 12.0, "{}", lb.metrics());
    for (caller, call, home) in &calls {
        let again = caller.request("MESSAGE", "sip:bob@example.com").set("Call-ID", call);
        caller.send(&again);
        wait_for("the same call at the other node", || {
            (count(&nodes[1], call) == 1 + home).then_some(())
        });
        assert_eq!(count(&nodes[0], call), 1 - home);
    }
}

#[test]
fn a_node_of_two_protocols_is_one_node() {
    let lb = Setup::two_entry().heartbeats().start();
    let node = lb.announced(Node::bind("n0").property("load", "1"));
    lb.wait_nodes(1);
    let mut beats = json_node(&lb, &node, &[("jvmRoute", "a")]);
    let both = |it: &tests::NodeEntry| {
        it.property("jvmRoute") == Some("a") && it.property("load") == Some("1")
    };
    lb.wait_node("what both say", both);
    let heard = beats.heard().1;
    wait_for("more heartbeats", || (beats.heard().1 >= heard + 5).then_some(()));
    assert_eq!(lb.known().len(), 1);
    // The one falls silent: the other keeps the node, without what the one said.
    beats.fall_silent();
    lb.wait_node("what SIP says", |it| it.property("jvmRoute").is_none());
    assert!(!lb.log().contains("removed"), "{}", lb.log());
}

#[test]
fn a_restarted_node_is_not_removed_by_the_end_of_its_predecessor() {
    let lb = Setup::two_entry().heartbeats().start();
    let node = Node::bind("n0");
    let mut old = json_node(&lb, &node, &[]);
    lb.wait_nodes(1);
    old.fall_silent();
    let new = json_node(&lb, &node, &[]);
    lb.wait_log("restarted");
    assert!(!old.stop(), "nobody knows that session any more");
    let heard = new.heard().1;
    // Longer than the old one's time.
    wait_for("heartbeats", || (new.heard().1 >= heard + 20).then_some(()));
    assert_eq!((lb.known().len(), new.heard().0), (1, 1));
}

/// A node's own port for heartbeats; the bodies that it gets.
fn listening(answers: bool) -> (SocketAddr, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, bodies) = channel();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut request = Vec::new();
            let mut buffer = [0; 1024];
            while !request.ends_with(b"}}") {
                match stream.read(&mut buffer) {
                    Ok(count @ 1..) => request.extend_from_slice(&buffer[..count]),
                    _ => break,
                }
            }
            if answers {
                let _ = stream
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{\"stop\":\"OK\"}");
            } else {
                std::mem::forget(stream); // it says nothing, for ever
            }
            let text = String::from_utf8_lossy(&request).into_owned();
            let _ = sender.send(text.rsplit("\r\n\r\n").next().unwrap_or_default().to_owned());
        }
    });
    (address, bodies)
}

#[test]
fn nodes_hear_that_the_balancer_stops_and_deaf_ones_do_not_hold_it_up() {
    let lb = Setup::two_entry().heartbeats().set("shutdownTimeout", "50").start();
    let nodes: Vec<Node> = ["n0", "n1", "n2", "n3"].map(Node::bind).into();
    let (hears, bodies) = listening(true);
    let (deaf, _silence) = listening(false);
    let gone = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let ports = [hears, deaf, gone].map(|it| it.port().to_string());
    let _beats: Vec<JsonBeats> = nodes
        .iter()
        .enumerate()
        .map(|(at, node)| match ports.get(at) {
            Some(port) => json_node(&lb, node, &[("heartbeatPort", port.as_str())]),
            None => json_node(&lb, node, &[]),
        })
        .collect();
    lb.wait_nodes(4);
    lb.get("/lbstop");
    assert!(lb.wait_exit().success());
    let port = lb.beats().port();
    let want = format!("{{\"stop\":{{\"ipAddress\":\"127.0.0.1\",\"port\":{port}}}}}");
    assert_eq!(bodies.recv_timeout(Duration::from_secs(5)), Ok(want));
    lb.wait_log("1 of 3 nodes have heard that the balancer stops");
    lb.wait_log("Node registry stopped.");
}

#[test] // 5.4
fn lbstop_closes_the_statistics_port_first_and_serves_until_its_time_is_over() {
    let lb = Setup::two_entry().heartbeats().set("shutdownTimeout", "60000").start();
    let (nodes, beats) = two_json_nodes(&lb);
    assert!(lb.get("/health").0.contains("200"));
    lb.get("/lbstop");
    lb.wait_log("GracefulShutdown was called");
    wait_for("a closed port", || TcpStream::connect(lb.statistic).is_err().then_some(()));
    let caller = lb.caller("alice");
    let mut call = caller.call("sip:bob@example.com");
    caller.exchange(&mut call, "BYE");
    assert_eq!(nodes.iter().map(|it| it.count("BYE")).sum::<usize>(), 1);
    let heard = beats[0].heard().1;
    wait_for("heartbeats", || (beats[0].heard().1 > heard + 2).then_some(()));
    assert!(lb.exit_status().is_none());
}

#[test]
fn heartbeat_sources_count_for_every_protocol() {
    let lb = Setup::two_entry().heartbeats().set("heartbeatSources", "10.0.0.0/8").start();
    let start = r#"{"start":{"ip":"127.0.0.1","udpPort":"1","sessionId":"1"}}"#;
    let refused = post(lb.beats(), start);
    assert!(refused.as_ref().map_or(true, |it| it.0 == 0), "{refused:?}");
    let mut stream = TcpStream::connect(lb.rmi()).unwrap();
    let _ = stream.write_all(b"JRMI\0\x02K");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer); // an end or a reset
    assert_eq!(answer, b"");
    lb.wait_log("is not in heartbeatSources");
    let sender = Peer::bind("sender");
    let beat = sender.request("OPTIONS", "sip:x@example.com").with("Mobicents-Heartbeat", "1");
    sender.send_to(lb.internal, &beat.with_body("text/plain", "ip=127.0.0.1\nudpPort=9\n"));
    sender.expect("503 OPTIONS"); // an ordinary request for a name that is nowhere
    assert_eq!(lb.known().len(), 0);
}

/// Where clients and nodes share one leg, SIP heartbeats are ordinary requests: anybody could send them.
#[test]
fn in_single_entry_mode_nodes_come_by_http_and_not_by_sip() {
    let lb = Setup::single_entry().heartbeats().start();
    let (nodes, _beats) = two_json_nodes(&lb);
    let caller = lb.caller("alice");
    for _ in 0..2 {
        let mut call = caller.call("sip:bob@example.com");
        caller.exchange(&mut call, "BYE");
    }
    assert_eq!(nodes.iter().map(|it| it.count("BYE")).collect::<Vec<_>>(), [1, 1]);
    let beat = caller.request("OPTIONS", "sip:bob@example.com").with("Mobicents-Heartbeat", "1");
    caller.send(&beat.with_body("text/plain", "ip=127.0.0.1\nudpPort=9\nhostname=evil\n"));
    caller.expect("200 OPTIONS");
    assert_eq!(nodes.iter().map(|it| it.count("OPTIONS")).sum::<usize>(), 1, "it was forwarded");
    assert_eq!(lb.known().len(), 2);
}

#[test]
fn out_of_files_the_port_for_heartbeats_waits_and_comes_back() {
    let lb = Setup::two_entry().heartbeats().start();
    let nodes = lb.nodes(1);
    lb.limit_files(5);
    let mut waiting = TcpStream::connect(lb.beats()).unwrap();
    let body = r#"{"heartbeat":{"sessionId":1}}"#;
    write!(waiting, "POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    let (cpu, beats) = (lb.cpu_time(), nodes[0].beats_answered());
    let begin = Instant::now();
    wait_for("SIP meanwhile", || (nodes[0].beats_answered() >= beats + 15).then_some(()));
    let (used, passed) = (lb.cpu_time() - cpu, begin.elapsed());
    assert!(used < passed / 3, "it spins: {used:?} of {passed:?}");
    lb.limit_files(1_000);
    let mut answer = String::new();
    waiting.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with(r#"{"heartbeat":"NOK"}"#), "{answer}");
}

/// `java.rmi.registry.Registry.lookup("SIPBalancer")` as a JVM sends it, greeting included.
fn lookup() -> Vec<u8> {
    let mut bytes = b"JRMI\0\x02K\0\x09127.0.0.1\0\0\0\0".to_vec();
    bytes.extend(b"\x50\xac\xed\0\x05\x77\x22");
    bytes.extend([0; 22]); // the registry
    bytes.extend(2_i32.to_be_bytes());
    bytes.extend(4_905_912_898_345_647_071_i64.to_be_bytes());
    bytes.extend(b"\x74\0\x0bSIPBalancer");
    bytes
}

/// Sends bytes, closes its side, and reads until the balancer does or the answer is there.
fn talk(to: SocketAddr, bytes: &[u8], enough: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let _ = stream.write_all(bytes); // it may be cut off in the middle
    if enough.is_empty() {
        let _ = stream.shutdown(std::net::Shutdown::Write);
    }
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while enough.is_empty() || !answer.windows(enough.len()).any(|it| it == enough) {
        match stream.read(&mut buffer) {
            Ok(count @ 1..) => answer.extend_from_slice(&buffer[..count]),
            _ => break,
        }
    }
    answer
}

#[test]
fn hostile_streams_are_cut_off_and_cost_nothing_else() {
    let lb = Setup::two_entry().heartbeats().start();
    let (nodes, beats) = two_json_nodes(&lb);
    let stub = b"NodeRegisterRMIStub";
    let is_up =
        |lb: &Balancer| talk(lb.rmi(), &lookup(), stub).windows(stub.len()).any(|it| it == stub);
    assert!(is_up(&lb));
    let call = |arguments: &[u8]| [&lookup()[..63], arguments].concat();
    let hostile: Vec<Vec<u8>> = vec![
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        b"JRMI\0\x02M".to_vec(),
        b"JRMI\0\x02K\xff\xff".to_vec(),
        call(&[0x73, 0x72].repeat(4_000)), // objects in classes in objects
        call(b"\x75\x72\0\x02[B\0\0\0\0\0\0\0\0\x02\0\0\x78\x70\x7f\xff\xff\xff"), // two GiB of bytes
        call(b"\x7c\x7f\xff\xff\xff\xff\xff\xff\xff"), // a string without end
        call(b"\x71\0\x7e\xff\xff"),                   // a reference to nothing
        call(b"\x74\0\x03foo"),                        // another name
        call(&[0x7a, 0x7f, 0xff, 0xff, 0xff]),
        vec![0x50; 100_000],
    ];
    for bytes in &hostile {
        talk(lb.rmi(), bytes, b"");
        assert!(is_up(&lb), "after {:?}", bytes.get(..80).unwrap_or(bytes));
    }
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |bound: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        usize::try_from(seed >> 33).unwrap() % bound
    };
    let before = lb.resident_kib();
    for _ in 0..400 {
        let mut bytes = lookup();
        for _ in 0..=random(6) {
            let at = random(bytes.len());
            bytes[at] = u8::try_from(random(256)).unwrap();
        }
        bytes.truncate(random(bytes.len()) + 1);
        talk(lb.rmi(), &bytes, b"");
    }
    // Many that say nothing, and some that never finish: the table has room, and evicts.
    let idle: Vec<_> = (0..200).map(|_| TcpStream::connect(lb.rmi()).unwrap()).collect();
    assert!(is_up(&lb));
    drop(idle);
    let grown = lb.resident_kib().saturating_sub(before);
    assert!(grown < 32 * 1024, "{grown} KiB more");
    assert!(lb.metric("trunkline_heartbeats_refused_total{reason=\"malformed\"}") >= 10.0);
    wait_for("their end", || (lb.metric("trunkline_heartbeat_connections") < 20.0).then_some(()));
    // Nodes have not noticed.
    assert_eq!(lb.known().len(), 2);
    assert!(beats.iter().all(|it| it.heard().0 == 1));
    let caller = lb.caller("alice");
    let mut call = caller.call("sip:bob@example.com");
    caller.exchange(&mut call, "BYE");
    assert_eq!(nodes.iter().map(|it| it.count("BYE")).sum::<usize>(), 1);
}

#[test]
fn a_slow_client_is_given_up_and_others_do_not_wait_for_it() {
    let lb = Setup::two_entry().heartbeats().start();
    let started = Instant::now();
    let mut slow = TcpStream::connect(lb.beats()).unwrap();
    slow.write_all(b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n{").unwrap();
    let (_nodes, _beats) = two_json_nodes(&lb);
    slow.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    assert_eq!(slow.read(&mut [0; 10]).unwrap(), 0, "closed, after {:?}", started.elapsed());
}
