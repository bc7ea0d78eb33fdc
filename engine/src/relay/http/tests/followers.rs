//! Pipelined requests that follow one another to their node.

use std::time::Duration;

use super::harness::{OK, World, get, post, status_of, web_node, web_nodes};
use crate::relay::http::settings::FOLLOWERS_MAX;
use crate::relay::stream::{Conn, Gone};
use crate::stats::Refusal;

/// A request of the session that lives on node 1.
fn ours(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: lb.example\r\nCookie: JSESSIONID=s.one\r\n\r\n")
}

fn answer(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// Two nodes, and a client whose session is on the first, which has answered once.
fn world(keys: &str) -> (World, Conn, Conn) {
    let nodes = vec![web_node(1, "jvmRoute=one"), web_node(2, "jvmRoute=two")];
    let mut world = World::new(&format!("httpPipelining=true\n{keys}"), nodes);
    let client = world.open();
    let node = world.ask(client, ours("/0"));
    assert_eq!(world.number(node), 1);
    world.take(node);
    world.send(node, OK);
    world.take(client);
    (world, client, node)
}

#[test]
fn requests_of_one_session_follow_one_another_on_its_connection() {
    let (mut world, client, node) = world("");
    let three = [ours("/1"), ours("/2"), ours("/3")].concat();
    assert_eq!(world.ask(client, &three), node);
    assert_eq!(world.take(node), three, "before any of them is answered");
    assert!(!world.is_paused(client));
    world.send(client, ours("/4"));
    assert_eq!(world.take(node), ours("/4"));
    let answers = ["one", "two", "three", "four"].map(answer).concat();
    world.send(node, &answers);
    assert_eq!(world.take(client), answers, "however they come");
    assert_eq!(world.http.counters().all_requests(), 5);
    let other = world.open();
    assert_eq!(world.ask(other, ours("/")), node, "it waits in the pool");
    world.end(client);
    world.send(node, OK);
    world.assert_empty("all answered");
}

/// However the answers are cut, they are answers to the same requests.
#[test]
fn answers_to_followers_may_come_in_any_pieces() {
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    let answers = [&answer("one"), "HTTP/1.1 304 Not Modified\r\n\r\n", chunked, OK].concat();
    for cut in 1..answers.len() {
        let (mut world, client, node) = world("");
        world.send(client, [ours("/1"), ours("/2"), ours("/3"), ours("/4")].concat());
        world.send(node, &answers[..cut]);
        world.send(node, &answers[cut..]);
        assert_eq!(world.take(client), answers, "cut at {cut}");
        assert!(!world.is_gone(client) && !world.is_gone(node), "cut at {cut}");
    }
}

/// Each case: what comes second, and why it must wait for the answer to the first.
#[test]
fn what_may_not_follow_waits_for_its_turn() {
    let elsewhere = ours("/2").replace("s.one", "s.two");
    let cases = [
        (ours("/1"), elsewhere, "its session lives on another node"),
        (ours("/1"), get("/2"), "it may go anywhere"),
        (ours("/1"), ours("/2").replace("GET", "DELETE"), "it is not safe"),
        (ours("/1").replace("GET", "DELETE"), ours("/2"), "the one before is not"),
        (ours("/1"), post("/2;jsessionid=s.one", "two"), "it has a body"),
        (ours("/1"), ours("/2").replace("Cookie", "Expect: 100-continue\r\nCookie"), "it asks"),
        (ours("/1"), ours("/2").replace("HTTP/1.1", "HTTP/1.0"), "its client is an old one"),
        (ours("/1"), ours("/2").replace("Host: lb.example\r\n", ""), "it is malformed"),
    ];
    for (first, second, why) in cases {
        let (mut world, client, node) = world("");
        world.ask(client, [first.as_str(), &second].concat());
        assert_eq!(world.take(node), first, "{why}");
        assert!(world.is_paused(client), "{why}");
        let before = world.http.counters().all_requests();
        world.send(node, OK);
        assert!(world.take(client).starts_with(OK), "{why}");
        let is_one = !why.contains("malformed");
        assert_eq!(world.http.counters().all_requests(), before + u64::from(is_one), "{why}");
    }
}

#[test]
fn nothing_follows_behind_the_last_request_of_a_client() {
    let (mut world, client, node) = world("");
    let last = ours("/1").replace("Host", "Connection: close\r\nHost");
    world.send(client, [last, ours("/2")].concat());
    assert_eq!(world.take(node), ours("/1"));
    world.send(node, OK);
    assert!(world.take(client).contains("Connection: close"));
    assert_eq!(world.take(node), "");
}

/// RFC 9112 §9.3.2: not before the node has shown that it keeps the connection.
#[test]
fn nothing_follows_on_a_connection_that_has_not_proved_itself() {
    let keeps = "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok";
    for first in [None, Some(keeps)] {
        let mut world = World::new("httpPipelining=true", vec![web_node(1, "jvmRoute=one")]);
        let client = world.open();
        if let Some(first) = first {
            let node = world.ask(client, ours("/0"));
            world.take(node);
            world.send(node, first);
        }
        let node = world.ask(client, [ours("/1"), ours("/2")].concat());
        assert_eq!(world.take(node), ours("/1"), "{first:?}");
    }
}

#[test]
fn a_node_has_only_so_many_requests_of_a_client() {
    let (mut world, client, node) = world("");
    world.send(client, ours("/").repeat(FOLLOWERS_MAX + 5));
    assert_eq!(world.take(node), ours("/").repeat(FOLLOWERS_MAX + 1));
    assert!(world.is_paused(client));
    for left in (0..FOLLOWERS_MAX + 5).rev() {
        world.send(node, OK);
        let next = if left > FOLLOWERS_MAX { ours("/") } else { String::new() };
        assert_eq!(world.take(node), next, "one answered, one more: {left} left");
    }
    assert_eq!(world.take(client), OK.repeat(FOLLOWERS_MAX + 5));
    assert!(!world.is_paused(client));
}

#[test]
fn nothing_follows_for_a_client_that_does_not_read() {
    let (mut world, client, node) = world("");
    world.wire.queue_bytes_max = Some(10);
    world.send(client, ours("/1"));
    world.take(node);
    world.send(node, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nok");
    world.send(client, ours("/2"));
    assert_eq!(world.take(node), "", "its queue is full");
    world.send(node, "ok");
    world.drain(client);
    assert_eq!(world.take(node), ours("/2"));
}

/// The node wants no more on this connection, or breaks off: each way the answers come, in their order,
/// and no connection with an answer outstanding serves anyone else.
#[test]
fn followers_are_sent_again_when_their_connection_ends() {
    let closing = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\n\r\none";
    type Case = (&'static str, fn(&mut World, Conn));
    let cases: [Case; 3] = [
        ("gone", |world, node| world.gone(node, Gone::Reset)),
        ("ended", World::end),
        ("said so", |_, _| {}),
    ];
    for (case, end) in cases {
        let (mut world, client, node) = world("");
        world.send(client, [ours("/1"), ours("/2"), ours("/3")].concat());
        world.send(node, if case == "said so" { closing.to_owned() } else { answer("one") });
        assert_eq!(world.take(client), answer("one"), "{case}");
        end(&mut world, node);
        assert!(world.is_gone(node) || case == "gone", "{case}");
        for (target, body) in [("/2", "two"), ("/3", "three")] {
            let node = world.last_node().unwrap();
            assert_eq!(world.number(node), 1, "{case}");
            assert_eq!(world.take(node), ours(target), "{case}");
            world.send(node, answer(body));
            assert_eq!(world.take(client), answer(body), "{case}");
        }
        world.assert_empty(case);
    }
}

#[test]
fn followers_of_a_request_that_its_node_died_of_go_on_elsewhere() {
    let (mut world, client, node) = world("");
    world.connects = false;
    world.send(client, [ours("/1"), ours("/2")].concat());
    world.gone(node, Gone::Reset);
    let again = world.connecting();
    world.gone(again, Gone::Refused);
    let survivor = world.connecting();
    assert_eq!(world.number(survivor), 2);
    world.connects = true;
    world.connected(survivor);
    assert_eq!(world.take(survivor), ours("/1"));
    world.send(client, ours("/3"));
    assert_eq!(world.take(survivor), "", "not before /2");
    world.send(survivor, answer("1"));
    assert_eq!(world.take(survivor), ours("/2"));
    assert_eq!(world.take(client), answer("1"));
    assert!(world.is_paused(client), "its session is at home on node 1, which is in the table");
    world.send(survivor, answer("2"));
    assert_eq!(world.take(client), answer("2"));
    let home = world.last_node().unwrap();
    assert_eq!((world.number(home), world.take(home)), (1, ours("/3")));
    world.assert_empty("moved");
}

#[test]
fn a_client_that_leaves_takes_its_followers_with_it() {
    let (mut world, client, node) = world("");
    world.send(client, [ours("/1"), ours("/2")].concat());
    world.gone(client, Gone::Reset);
    assert!(world.is_aborted(node), "the node works for nobody");
    world.assert_empty("left");
}

#[test]
fn a_request_that_is_too_late_leaves_its_followers_their_turn() {
    let (mut world, client, node) = world("httpResponseTimeout=2000");
    world.send(client, [ours("/1"), ours("/2")].concat());
    world.pass(Duration::from_secs(2));
    assert_eq!(status_of(&world.take(client)), 504);
    assert!(world.is_aborted(node));
    let node = world.last_node().unwrap();
    assert_eq!(world.take(node), ours("/2"));
    world.pass(Duration::from_millis(1_999));
    world.send(node, OK);
    assert_eq!(world.take(client), OK, "its time began with its turn");
}

/// A client that takes little stops its node, whose next answer it waits for already: that one's time begins
/// when the client takes more. `true`: it does.
#[test]
fn the_time_of_a_node_does_not_run_while_its_client_reads_nothing() {
    let long = "x".repeat(40_000);
    let leader = format!(
        "HTTP/1.1 200 OK\r\nKeep-Alive: timeout=9\r\nContent-Length: {}\r\n\r\n{long}",
        long.len()
    );
    let early = "HTTP/1.1 103 Early Hints\r\n\r\n".to_owned();
    for (first, is_last) in [(&leader, false), (&early, true)] {
        for reads in [true, false] {
            let case = format!("{} {reads}", &first[..20]);
            let (mut world, client, node) = world("httpResponseTimeout=2000\nhttpBodyTimeout=5000");
            let requests = if is_last { ours("/1") } else { [ours("/1"), ours("/2")].concat() };
            world.send(client, requests);
            world.wire.queue_bytes_max = Some(10);
            world.send(node, first);
            assert!(world.is_paused(node), "{case}");
            world.take(client);
            world.pass(Duration::from_secs(4));
            assert_eq!(world.take(client), "", "{case}: the node is not to blame");
            if !reads {
                world.pass(Duration::from_secs(1));
                assert!(world.is_aborted(client) && world.is_aborted(node), "{case}");
                assert_eq!(world.http.counters().refusals(Refusal::Slow), 1, "{case}");
                continue;
            }
            world.wire.queue_bytes_max = None;
            world.drain(client);
            world.pass(Duration::from_millis(1_999));
            assert!(!world.is_paused(node), "{case}");
            world.send(node, OK);
            assert_eq!(world.take(client), OK, "{case}");
            world.drain(client);
            world.send(client, ours("/3"));
            world.pass(Duration::from_secs(2));
            assert_eq!(status_of(&world.take(client)), 504, "{case}: this is the node's own");
        }
    }
}

#[test]
fn a_client_that_ends_behind_followers_gets_every_answer() {
    let (mut world, client, node) = world("");
    world.send(client, [ours("/1"), ours("/2")].concat());
    world.end(client);
    for body in ["one", "two"] {
        assert!(!world.is_gone(client));
        world.send(node, answer(body));
        assert_eq!(world.take(client), answer(body));
    }
    assert!(world.is_gone(client));
}

#[test]
fn what_a_stopping_balancer_has_passed_on_is_answered() {
    let (mut world, client, node) = world("");
    world.send(client, [ours("/1"), ours("/2")].concat());
    world.http.handle_stopping(world.now, &mut world.wire);
    world.send(node, answer("one"));
    assert_eq!(world.take(client), answer("one"));
    world.send(node, answer("two"));
    let last = world.take(client);
    assert!(last.contains("Connection: close") && last.ends_with("two"), "{last}");
    assert!(world.is_gone(client) && world.is_gone(node));
}

/// What nobody asked for must not be taken for somebody's answer.
#[test]
fn an_answer_too_many_ends_the_connection_to_the_node() {
    let (mut world, client, node) = world("");
    world.send(client, [ours("/1"), ours("/2")].concat());
    world.send(node, [OK, OK, OK].concat());
    assert_eq!(world.take(client), [OK, OK].concat());
    assert!(world.is_gone(node));
    assert!(!world.is_gone(client));
}

#[test]
fn one_node_for_everything_is_where_every_request_belongs() {
    let mut world =
        World::new("httpPipelining=true\nalgorithmClass=ActiveStandbyAlgorithm", web_nodes(2));
    let client = world.open();
    let node = world.ask(client, get("/0"));
    world.send(node, OK);
    world.take(node);
    world.send(client, [get("/1"), get("/2")].concat());
    assert_eq!(world.take(node), [get("/1"), get("/2")].concat());
}

#[test]
fn without_the_key_one_is_answered_after_the_other() {
    let (mut world, client, node) = world("httpPipelining=false");
    world.send(client, [ours("/1"), ours("/2")].concat());
    assert_eq!(world.take(node), ours("/1"));
    world.send(node, OK);
    assert_eq!(world.take(node), ours("/2"));
}
