//! Nodes that the operator takes out of service: drain with a deadline, what is left, undrain, remove; by
//! the statistics port and by `trunkctl`.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::channel;
use std::thread::spawn;

use serde_json::Value;
use tests::{Balancer, Dialog, Node, Peer, Setup, Transport, trunkctl, wait_for, who_got};

/// What `/lbinfo` says of a node.
fn info(lb: &Balancer, name: &str) -> Value {
    let info = lb.lbinfo();
    let nodes = info["Nodes info"]["nodesIPv4"].as_array().unwrap();
    nodes.iter().find(|it| it["hostName"] == name).cloned().unwrap_or(Value::Null)
}

fn state(lb: &Balancer, name: &str) -> String {
    info(lb, name)["state"].as_str().unwrap_or_default().to_owned()
}

/// `trunkctl` with these words, and `--at` this balancer.
fn ctl(lb: &Balancer, words: &[&str]) -> Output {
    let at = lb.statistic.to_string();
    Command::new(trunkctl()).args(words).args(["--at", &at]).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn a_drained_node_keeps_its_calls_and_everything_shows_it() {
    let lb = Setup::two_entry().start();
    let nodes = lb.answering_nodes(2);
    let caller = lb.caller("alice");
    let mut first = caller.call("sip:bob@example.com");
    let home = who_got(&nodes, &first.call_id, "INVITE")[0];
    let name = nodes[home].name().to_owned();
    assert_eq!(state(&lb, &name), "eligible");

    let (status, body) = lb.get(&format!("/lbdrain?node={name}&deadline=1h"));
    assert!(status.contains("200"), "{status} {body}");
    lb.wait_log(&format!("Node hostname[{name}]"));
    lb.wait_log("draining: the operator wants no new calls there, and it out in 3600 s");
    let shown = info(&lb, &name);
    assert_eq!((&shown["state"], &shown["gracefulShutdown"]), (&"draining".into(), &true.into()));
    assert_eq!(shown["order"]["state"], "draining");
    assert!(shown["order"]["deadline"].as_u64() > shown["order"]["since"].as_u64());
    assert_eq!((&shown["left"]["calls"], &shown["left"]["isNothing"]), (&1.into(), &false.into()));
    assert_eq!(lb.metric("trunkline_nodes{state=\"draining\"}"), 1.0);
    assert!(lb.metrics().contains("kind=\"call\"} 1"), "{}", lb.metrics());

    caller.exchange(&mut first, "INFO");
    assert_eq!(who_got(&nodes, &first.call_id, "INFO"), [home]);
    for _ in 0..4 {
        let call = caller.call("sip:bob@example.com");
        assert_eq!(who_got(&nodes, &call.call_id, "INVITE"), [1 - home]);
    }
    caller.exchange(&mut first, "BYE");

    lb.get(&format!("/lbundrain?node={}", nodes[home].address()));
    lb.wait_log("undrained: the operator's order is taken back");
    assert_eq!(state(&lb, &name), "eligible");
    let before = nodes[home].count("INVITE");
    for _ in 0..4 {
        caller.call("sip:bob@example.com");
    }
    assert_eq!(nodes[home].count("INVITE"), before + 2);
}

#[test]
fn an_order_outlasts_a_restart_of_the_node() {
    let lb = Setup::two_entry().start();
    let mut nodes = lb.answering_nodes(2);
    lb.get("/lbdrain?node=n0");
    nodes[0].die();
    lb.wait_nodes(1);
    assert_eq!(lb.metric("trunkline_nodes_ordered_absent"), 1.0);
    assert_eq!(lb.lbinfo()["absent"][0]["hostName"], "n0");
    nodes[0].restart();
    nodes[0].answers_calls();
    lb.wait_nodes(2);
    assert_eq!(state(&lb, "n0"), "draining");
    let caller = lb.caller("alice");
    for _ in 0..2 {
        caller.call("sip:bob@example.com");
    }
    assert_eq!((nodes[0].count("INVITE"), nodes[1].count("INVITE")), (0, 2));
    lb.get("/lbundrain?node=n0");
    assert_eq!(state(&lb, "n0"), "eligible");
}

#[test]
fn at_its_deadline_a_node_is_out_and_its_calls_go_elsewhere() {
    let lb = Setup::two_entry().start();
    let nodes = lb.answering_nodes(2);
    let caller = lb.caller("alice");
    let mut call = caller.call("sip:bob@example.com");
    let home = who_got(&nodes, &call.call_id, "INVITE")[0];
    let name = nodes[home].name();
    lb.get(&format!("/lbdrain?node={name}&deadline=300ms"));
    lb.wait_nodes(1);
    lb.wait_log("removed: the deadline of its drain has passed");
    let beats = nodes[home].beats_answered();
    wait_for("its heartbeats", || (nodes[home].beats_answered() > beats + 3).then_some(()));
    assert_eq!(lb.known().len(), 1, "they do not bring it back");
    caller.exchange(&mut call, "INFO");
    assert_eq!(who_got(&nodes, &call.call_id, "INFO"), [1 - home], "a dead node's calls");
    lb.get(&format!("/lbundrain?node={name}"));
    lb.wait_nodes(2);
}

/// It announces nothing by itself, and one that is down is there for nobody to see but us.
#[test]
fn a_static_node_comes_back_from_its_deadline_and_one_that_is_down_is_shown() {
    let server = Peer::bind("third-party");
    server.answers_calls();
    let gone = Peer::bind("gone");
    let nodes = format!("{},{}", server.address(), gone.address());
    drop(gone);
    let lb = Setup::two_entry()
        .set("staticNodes", &nodes)
        .set("probeInterval", "300")
        .set("probeTimeout", "250")
        .start();
    lb.wait_nodes(1);
    lb.wait_log("not added: it does not answer probes");
    let name = server.address().to_string();
    lb.get(&format!("/lbdrain?node={name}&deadline=100ms"));
    lb.wait_log("removed: the deadline of its drain has passed");
    lb.wait_nodes(0);
    lb.get(&format!("/lbundrain?node={name}"));
    lb.wait_nodes(1);
    let info = lb.lbinfo();
    let down = info["down"].as_array().unwrap();
    assert_eq!((down.len(), &down[0]["state"]), (1, &"down".into()), "{info}");
    assert_eq!(lb.metric("trunkline_nodes{state=\"down\"}"), 1.0);
    assert_eq!(lb.log().matches("it does not answer probes").count(), 1);
}

#[test]
fn trunkctl_fails_where_the_deadline_comes_before_the_end_of_work() {
    let lb = Setup::two_entry().start();
    let _nodes = lb.answering_nodes(1);
    let _call = lb.caller("alice").call("sip:bob@example.com");
    let output = ctl(&lb, &["drain", "n0", "--deadline", "1s", "--wait"]);
    let said = said(&output);
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("n0 is out: its deadline has passed with 1 calls"), "{said}");
}

#[test]
fn orders_need_the_password_and_a_node_that_is_meant() {
    let lb = Setup::two_entry()
        .set("securityRequired", "true")
        .set("login", "daddy")
        .set("password", "123456")
        .start();
    let nodes = lb.answering_nodes(2);
    for order in ["drain", "undrain", "remove"] {
        let (status, _) = lb.get(&format!("/lb{order}?node=n0&login=daddy&password=guess"));
        assert!(status.contains("401"), "{order}: {status}");
    }
    assert_eq!(state(&lb, "n0"), "eligible");
    let with = |order: &str| lb.get(&format!("/lb{order}&login=daddy&password=123456"));
    for (order, want) in [
        ("drain?node=nobody", "404"),
        ("drain?node=127.0.0.1", "409"),
        ("drain?node=n0&deadline=soon", "400"),
        ("drain?x=1", "400"),
        ("undrain?node=n0", "404"),
        ("remove?node=n0", "200"),
        ("remove?node=n0", "404"),
        ("undrain?node=n0", "200"),
    ] {
        let (status, body) = with(order);
        assert!(status.contains(want), "{order}: {status} {body}");
    }
    lb.wait_nodes(2);
    let wrong = ctl(&lb, &["drain", "n0", "--login", "daddy", "--password", "x"]);
    assert!(!wrong.status.success() && said(&wrong).contains("401"), "{}", said(&wrong));
    let right = ctl(&lb, &["drain", "n0", "--login", "daddy", "--password", "123456"]);
    assert!(right.status.success(), "{}", said(&right));
    assert_eq!(state(&lb, "n0"), "draining");
    drop(nodes);
}

/// A node's HTTP port that answers when it is told to.
fn slow_web_server() -> (SocketAddr, impl FnMut()) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (go, going) = channel::<()>();
    spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut head = Vec::new();
            let mut buffer = [0; 4096];
            while !head.windows(4).any(|it| it == b"\r\n\r\n") {
                match stream.read(&mut buffer) {
                    Ok(count @ 1..) => head.extend_from_slice(&buffer[..count]),
                    _ => break,
                }
            }
            let _ = going.recv();
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    (address, move || go.send(()).unwrap())
}

#[test]
fn trunkctl_waits_until_nothing_is_left() {
    let lb = Setup::two_entry().set("httpPort", "HTTP").start();
    let (web, mut answer) = slow_web_server();
    let port = web.port().to_string();
    let node = lb.announced(Node::bind("n0").property("httpPort", &port).property("tcpPort", ""));
    lb.wait_nodes(1);
    let mut client = TcpStream::connect(lb.http()).unwrap();
    write!(client, "GET / HTTP/1.1\r\nHost: lb\r\n\r\n").unwrap();
    wait_for("a request under way", || {
        (info(&lb, "n0")["left"]["httpConnections"] == 1).then_some(())
    });
    let table = Command::new(trunkctl()).args(["nodes", &lb.statistic.to_string()]).output();
    let table = said(&table.unwrap());
    let row = table.lines().find(|it| it.starts_with("n0 ")).unwrap_or_default();
    assert!(row.contains("eligible") && row.contains("1 HTTP"), "{table}");

    let at = lb.statistic.to_string();
    let name = node.address().to_string();
    let mut waiting = Command::new(trunkctl())
        .args(["drain", &name, "--deadline", "30m", "--wait", "--at", &at])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for("the drain", || (state(&lb, "n0") == "draining").then_some(()));
    let mut lines = String::new();
    let mut output = waiting.stdout.take().unwrap();
    let mut buffer = [0; 1024];
    while !lines.contains("1 HTTP") {
        let count = output.read(&mut buffer).unwrap();
        assert!(count > 0, "{lines}");
        lines += &String::from_utf8_lossy(&buffer[..count]);
    }
    assert!(waiting.try_wait().unwrap().is_none(), "it waits");
    answer();
    output.read_to_string(&mut lines).unwrap();
    assert!(waiting.wait().unwrap().success(), "{lines}");
    assert!(lines.contains("nothing is left on"), "{lines}");
    assert_eq!(state(&lb, "n0"), "draining");

    for (words, want) in [
        (["undrain", "n0"], "n0 is undrained"),
        (["remove", "n0"], "n0 is out"),
        (["undrain", "n0"], "n0 is undrained"),
    ] {
        let output = ctl(&lb, &words);
        assert!(output.status.success() && said(&output).contains(want), "{}", said(&output));
    }
    let nobody = ctl(&lb, &["drain", "nobody"]);
    assert!(!nobody.status.success() && said(&nobody).contains("no such node"));
}

/// What `/lbinfo` says is up on a node that is drained.
fn calls_up(lb: &Balancer, name: &str) -> Option<u64> {
    info(lb, name)["left"]["calls"].as_u64()
}

/// A drained node's calls count until they end, in each way in which a call ends.
#[test]
fn a_call_is_up_from_its_invite_to_its_end_and_trunkctl_waits_for_that() {
    let lb = Setup::two_entry().start();
    let nodes = lb.nodes(1);
    let node = &nodes[0];
    assert_eq!(info(&lb, "n0")["left"]["calls"], Value::Null, "nobody waits");
    let caller = lb.caller("alice");
    let invite = || {
        let invite = caller.request("INVITE", "sip:bob@example.com");
        caller.send(&invite);
        (node.expect_in(invite.call_id(), "INVITE"), invite)
    };
    // Fails, and comes again with a password.
    let (got, refused) = invite();
    node.reply(&got, 407, "Proxy Authentication Required");
    caller.expect_in(refused.call_id(), "407");
    // Rings and is given up.
    let (ringing, given_up) = invite();
    node.reply(&ringing, 180, "Ringing");
    caller.expect_in(given_up.call_id(), "180");
    // Is accepted; a later INVITE of it fails.
    let (got, accepted) = invite();
    let ok = node.reply(&got, 200, "OK");
    let heard = caller.expect_in(accepted.call_id(), "200 INVITE");
    let (mut theirs, mut ours) =
        (Dialog::of_caller(&caller, &accepted, &heard), Dialog::of_callee(node, &got, &ok));
    caller.send(&theirs.ack());
    node.expect_in(&theirs.call_id, "ACK");
    for (from, to, dialog) in [(&caller, &**node, &mut theirs), (&**node, &caller, &mut ours)] {
        from.send(&dialog.request("INVITE"));
        to.reply(
            &to.expect_where("a later INVITE", |it| it.is("INVITE") && it.tag("To").is_some()),
            488,
            "Not Acceptable Here",
        );
        from.expect_in(&dialog.call_id, "488 INVITE");
    }
    lb.get("/lbdrain?node=n0");
    assert_eq!(calls_up(&lb, "n0"), Some(2), "one rings, one talks");

    let at = lb.statistic.to_string();
    let mut waiting = Command::new(trunkctl())
        .args(["drain", "n0", "--wait", "--at", &at])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(waiting.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|it| it.contains("2 calls")), "it says what it waits for");
    node.reply(&ringing, 487, "Request Terminated");
    caller.expect_in(given_up.call_id(), "487");
    assert!(lines.any(|it| it.contains("1 calls")));
    assert!(waiting.try_wait().unwrap().is_none(), "it waits");
    // The BYE alone does not end it, the answer does.
    caller.send(&theirs.request("BYE"));
    let bye = node.expect_in(&theirs.call_id, "BYE");
    assert_eq!(calls_up(&lb, "n0"), Some(1));
    node.reply(&bye, 200, "OK");
    caller.expect_in(&theirs.call_id, "200 BYE");
    assert!(lines.any(|it| it.contains("nothing is left on n0")));
    assert!(waiting.wait().unwrap().success());
    let left = info(&lb, "n0")["left"].clone();
    assert_eq!((&left["calls"], &left["isNothing"]), (&0.into(), &true.into()));
    assert_ne!(left["rememberedCalls"], 0, "the algorithm goes on remembering: {left}");

    // A new attempt of the first call, now with a password, is up as it rings.
    let again = refused.clone().set("CSeq", "2 INVITE").set("Via", caller.via());
    caller.send(&again);
    node.expect_where("the second attempt", |it| it.header("CSeq").starts_with("2 "));
    assert_eq!(calls_up(&lb, "n0"), Some(1));
}

/// The two sides of a call meet different shards.
#[test]
fn whichever_shard_sees_the_end_of_a_call_it_is_over() {
    let lb = Setup::two_entry().set("shards", "2").start();
    let nodes = lb.nodes(2);
    for node in &nodes {
        node.answers_calls();
    }
    let callers: Vec<_> = (0..12).map(|it| lb.caller(&format!("caller{it}"))).collect();
    let mut calls: Vec<_> = callers.iter().map(|it| it.call("sip:bob@example.com")).collect();
    lb.get("/lbdrain?node=n0");
    lb.get("/lbdrain?node=n1");
    // Control rests before it publishes the second one.
    let up = || ["n0", "n1"].map(|it| wait_for("the drain to be seen", || calls_up(&lb, it)));
    let invited = [0, 1].map(|it: usize| nodes[it].count("INVITE") as u64);
    assert_eq!(up(), invited);
    for (caller, call) in callers.iter().zip(&mut calls) {
        caller.exchange(call, "BYE");
    }
    assert_eq!(up(), [0, 0]);
}

/// What is no call is seen by the connection that it goes by.
#[test]
fn a_sip_connection_in_use_keeps_the_wait_waiting() {
    for transport in [Transport::Tcp, Transport::Ws] {
        let lb = Setup::every_transport().start();
        let mut node = lb.announced(Node::bind_ip("n0", "127.0.0.11"));
        lb.wait_nodes(1);
        let caller = lb.caller_over(transport, "alice");
        let subscribe = caller.request("SUBSCRIBE", "sip:bob@example.com");
        caller.send(&subscribe);
        node.expect("SUBSCRIBE");
        lb.get("/lbdrain?node=n0");
        wait_for("the drain to be seen", || calls_up(&lb, "n0"));
        let left = info(&lb, "n0")["left"].clone();
        let seen = [&left["calls"], &left["sipConnections"], &left["sipBusy"]].map(Value::as_u64);
        assert_eq!(seen, [Some(0), Some(1), Some(1)], "{transport:?}");
        assert_eq!(left["isNothing"], false, "{transport:?}");
        let at = lb.statistic.to_string();
        let mut waiting = Command::new(trunkctl())
            .args(["drain", "n0", "--wait", "--at", &at])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines =
            BufReader::new(waiting.stdout.take().unwrap()).lines().map_while(Result::ok);
        assert!(lines.any(|it| it.contains("1 SIP connections (1 in use)")), "{transport:?}");
        assert!(waiting.try_wait().unwrap().is_none(), "{transport:?}: it waits");
        node.die();
        assert!(lines.any(|it| it.contains("n0")), "{transport:?}");
        assert!(waiting.wait().unwrap().success(), "{transport:?}");
    }
}

/// Its calls are the same process's, whatever ports it has besides.
#[test]
fn what_is_left_on_a_node_outlasts_a_change_of_its_ports() {
    let lb = Setup::two_entry().start();
    let nodes = lb.answering_nodes(2);
    let caller = lb.caller("alice");
    let mut call = caller.call("sip:bob@example.com");
    let home = who_got(&nodes, &call.call_id, "INVITE")[0];
    let name = nodes[home].name();
    lb.get(&format!("/lbdrain?node={name}"));
    let before = info(&lb, name);
    nodes[home].set_property("wssPort", "");
    wait_for("its new ports", || (info(&lb, name)["key"] != before["key"]).then_some(()));
    let after = info(&lb, name);
    assert_eq!(after["state"], "draining");
    assert_eq!((&after["left"]["calls"], &after["left"]["isNothing"]), (&1.into(), &false.into()));
    caller.exchange(&mut call, "BYE");
    assert_eq!(who_got(&nodes, &call.call_id, "BYE"), [home]);
    wait_for("its end", || info(&lb, name)["left"]["isNothing"].as_bool().filter(|it| *it));
}

/// A balancer that starts while a node drains takes over from one that knew it: dialogs find it.
#[test]
fn a_node_that_is_leaving_when_it_is_first_heard_of_keeps_its_dialogs() {
    let lb = Setup::two_entry().start();
    let mut nodes = lb.answering_nodes(2);
    let caller = lb.caller("alice");
    let mut call = caller.call("sip:bob@example.com");
    let home = who_got(&nodes, &call.call_id, "INVITE")[0];
    nodes[home].fall_silent();
    lb.wait_nodes(1);
    nodes[home].leave();
    nodes[home].announce(&[lb.internal_of(Transport::Udp)]);
    lb.wait_nodes(2);
    let before = nodes[home].count("INVITE");
    for _ in 0..4 {
        caller.call("sip:bob@example.com");
    }
    assert_eq!(nodes[home].count("INVITE"), before, "it wants no new ones");
    caller.exchange(&mut call, "BYE");
    assert_eq!(who_got(&nodes, &call.call_id, "BYE"), [home]);
}
