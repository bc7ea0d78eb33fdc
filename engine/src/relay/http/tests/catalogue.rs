//! The original's own tests (`http-smpp-registry.md` 6.1), as stories.

use std::collections::BTreeMap;
use std::time::Duration;

use protocols::http::Method;
use protocols::time::Time;

use super::harness::{OK, World, get, post, status_of, web_node, web_nodes};
use crate::config::load;
use crate::node::Bad;
use crate::relay::Report;
use crate::relay::stream::Secure;

fn spread(counts: &BTreeMap<u16, usize>) -> Vec<usize> {
    counts.values().copied().collect()
}

fn xml(http: &str, more: &str) -> crate::config::Config {
    let text =
        format!("<load-balancer-properties><http>{http}</http>{more}</load-balancer-properties>");
    load("t.xml", text.as_bytes(), &[]).config
}

const CALL: &str = "ID1f2a2222772f4195948d040a2ccc648c-CA00af667a6a2cbfda0c07d923e78194cd";
const INSTANCE: &str = "Restcomm-Instance-Id=ID1f2a2222772f4195948d040a2ccc648c";
const OTHER_INSTANCE: &str = "Restcomm-Instance-Id=ID1f2a2222772f4195948d040a2ccc6481";

#[test]
fn h1_session_ids_without_a_route_are_hashed() {
    let mut world = World::new("", web_nodes(3));
    let requests: Vec<_> =
        (0..6).map(|it| get(&format!("/app?fName=K&lName=N&jsessionid={it}"))).collect();
    assert_eq!(spread(&world.visits(&requests)), [2, 2, 2]);
    let (first, _) = world.visit(&requests[0]);
    assert_eq!(world.visit(&requests[3]).0, first, "48 and 51 modulo 3");
}

#[test]
fn h2_requests_without_a_session_take_turns() {
    let mut world = World::new("", web_nodes(3));
    let requests: Vec<_> = (0..6).map(|it| get(&format!("/app?user={it}"))).collect();
    assert_eq!(spread(&world.visits(&requests)), [2, 2, 2]);
}

#[test]
fn h3_to_h5_https_reaches_nodes_as_the_keys_say() {
    let tls = || (1..=3).map(|it| web_node(it, "sslPort=8443")).collect::<Vec<_>>();
    let plain = || web_nodes(3);
    let properties =
        |text: &str| load("t", format!("httpsPort=2085\n{text}\n").as_bytes(), &[]).config;
    let terminate = |it: &mut crate::config::Config| it.terminate_tls = true;
    let mut terminated = xml("<httpsPort>2081</httpsPort>", "");
    terminate(&mut terminated);
    let cases = [
        ("h3", properties(""), plain(), 8080, Secure::No),
        ("h4", terminated, tls(), 8080, Secure::No),
        ("h5 of the guide", properties("isRemoteServerSsl=true"), plain(), 8080, Secure::Tls),
        ("with a port of its own", properties("isRemoteServerSsl=true"), tls(), 8443, Secure::Tls),
        ("h5 of the newest", xml("<httpsPort>2081</httpsPort>", ""), tls(), 8443, Secure::Tls),
    ];
    for (name, config, nodes, port, secure) in cases {
        let mut world = World::with(config, nodes);
        let mut counts = BTreeMap::new();
        for user in 0..6 {
            let client = world.open_at(1).unwrap();
            let node = world.ask(client, get(&format!("/app?jsessionid={user}")));
            assert_eq!(
                (world.address(node).0.port(), world.address(node).1),
                (port, secure),
                "{name}"
            );
            world.send(node, OK);
            assert_eq!(status_of(&world.take(client)), 200, "{name}");
            *counts.entry(world.number(node)).or_default() += 1;
        }
        assert_eq!(spread(&counts), [2, 2, 2], "{name}");
    }
}

#[test]
fn a_node_without_the_needed_port_is_no_candidate() {
    let config = xml("<httpsPort>2081</httpsPort>", "");
    let mut world = World::with(config, vec![web_node(1, ""), web_node(2, "sslPort=8443")]);
    for _ in 0..3 {
        let client = world.open_at(1).unwrap();
        let node = world.ask(client, get("/"));
        assert_eq!(world.number(node), 2);
    }
    world.nodes(web_nodes(2));
    let client = world.open_at(1).unwrap();
    world.send(client, get("/"));
    assert_eq!(status_of(&world.take(client)), 503);
}

#[test]
fn h6_the_figures_are_those_of_the_original() {
    let mut world = World::new("", web_nodes(3));
    let mut open = Vec::new();
    for user in 0..6 {
        let client = world.open();
        let node = world.ask(client, post("/app", &format!("jsessionid={user}")));
        open.push((client, node));
    }
    let counters = world.http.counters();
    assert_eq!((2 * counters.paired, counters.clients), (12, 6), "both sides of each pair");
    assert_eq!(counters.bytes_to_client, 0);
    for (client, node) in open {
        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 24\r\n\r\nHello, Konstantin Nosach";
        world.send(node, answer);
        world.end(client);
    }
    let counters = world.http.counters();
    assert_eq!((counters.bytes_to_node, counters.bytes_to_client), (72, 144));
    assert_eq!((counters.all_requests(), counters.requests(Method::Post)), (6, 6));
    assert_eq!((counters.responses(2), counters.paired), (6, 0));
    let node = counters.node(world.snapshot.nodes()[0].key);
    assert_eq!((node.requests, node.responses[1]), (2, 2));
    world.nodes(Vec::new());
    let client = world.open();
    world.send(client, post("/app", "jsessionid=7"));
    assert_eq!(world.http.counters().bytes_to_node, 72, "no server had it");
}

#[test]
fn h7_active_standby_serves_from_one_node_until_it_goes() {
    let mut world = World::new("algorithmClass=ActiveStandbyAlgorithm", web_nodes(2));
    let served: Vec<_> = (0..5).map(|_| world.visit(get("/app"))).collect();
    assert_eq!(served, [(1, 200); 5]);
    world.nodes(vec![web_node(2, "")]);
    assert_eq!(world.visit(get("/app")), (2, 200));
    let mut back = web_node(1, "");
    back.joined = Time::from_millis(60_000);
    world.nodes(vec![back, web_node(2, "")]);
    assert_eq!(world.visit(get("/app?jsessionid=a.b")), (2, 200), "it keeps the work");
}

#[test]
fn h8_chunked_responses_arrive_whole() {
    let mut world = World::new("", web_nodes(1));
    let client = world.open();
    let node = world.ask(client, get("/app"));
    let mut answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned();
    for _ in 0..20 {
        answer.push_str(&format!("3e8\r\n{}\r\n", "x".repeat(1000)));
    }
    answer.push_str("0\r\nX-Trailer: a\r\n\r\n");
    for part in answer.as_bytes().chunks(700) {
        world.send(node, part);
    }
    assert_eq!(world.take(client), answer);
    assert_eq!(world.http.counters().bytes_to_client, 20_000);
    assert!(!world.is_gone(client) && !world.is_gone(node), "both are kept");
}

#[test]
fn h9_a_chunked_request_is_one_request() {
    let mut world = World::new("", web_nodes(1));
    let client = world.open();
    let head = "POST /app HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
    let node = world.ask(client, head);
    let mut sent = head.to_owned();
    for _ in 0..20 {
        let chunk = format!("3e8\r\n{}\r\n", "y".repeat(1000));
        world.send(client, &chunk);
        sent.push_str(&chunk);
    }
    world.send(client, "0\r\n\r\n");
    sent.push_str("0\r\n\r\n");
    assert_eq!(world.take(node), sent, "streamed as it came");
    world.send(node, OK);
    assert_eq!(world.take(client), OK);
    let counters = world.http.counters();
    assert_eq!((counters.all_requests(), counters.bytes_to_node), (1, 20_000));
}

#[test]
fn h10_a_node_that_answers_badly_is_reported() {
    let keys = "requestCheckPattern=(/Accounts/)";
    let mut world = World::new(keys, vec![web_node(1, INSTANCE), web_node(2, OTHER_INSTANCE)]);
    let answer = |number| {
        let status = if number == 1 { "400 Bad Request" } else { "200 OK" };
        format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n")
    };
    let target = |it| format!("/restcomm/2012-04-24/Accounts/{it}/Calls.json/{CALL}");
    assert_eq!(world.visit_with(post(&target(0), ""), answer), (1, 400));
    let key = web_node(1, "").key;
    let reports = world.reports();
    assert!(reports.contains(&Report::BadResponse { node: key, status: 400 }), "{reports:?}");
    let mut bad = web_node(1, INSTANCE);
    bad.bad = Some(Bad::Response);
    world.nodes(vec![bad, web_node(2, OTHER_INSTANCE)]);
    for user in 1..4 {
        assert_eq!(world.visit_with(post(&target(user), ""), answer), (2, 200));
    }
    world.pass(Duration::from_secs(1));
    world.visit_with(get("/other"), |_| "HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n".to_owned());
    let reports = world.reports();
    let is_bad = |it: &Report| matches!(it, Report::BadResponse { .. });
    assert!(!reports.iter().any(is_bad), "not watched: {reports:?}");
    let is_alive = |it: &Report| matches!(it, Report::Seen { alive: true, errors: 0, .. });
    assert!(reports.iter().any(is_alive), "an answer is a life sign: {reports:?}");
    // But not that of the shell of a server that is gone (`http-smpp-registry.md` 3.1).
    for status in [500, 503] {
        world.pass(Duration::from_secs(1));
        let answer = format!("HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n");
        world.visit_with(get("/other"), |_| answer);
        assert_eq!(world.reports(), [], "{status}");
    }
}

#[test]
fn h11_nodes_that_go_leave_the_work_to_the_others() {
    let mut world = World::new("", web_nodes(3));
    for _ in 0..2 {
        assert_eq!(world.visit(get("/app")).1, 200);
    }
    world.nodes(vec![web_node(2, "")]);
    for _ in 0..4 {
        assert_eq!(world.visit(get("/app")), (2, 200));
    }
}

#[test]
fn h12_plain_requests_are_redirected_to_https() {
    let mut world = World::with(xml("<httpsPort>2081</httpsPort>", ""), web_nodes(3));
    let cases = [
        ("127.0.0.1:2080", "https://127.0.0.1:2081/app?a=b"),
        ("lb.example", "https://lb.example/app?a=b"),
        ("lb.example:80", "https://lb.example/app?a=b"),
    ];
    for (host, want) in cases {
        let client = world.open();
        world.send(client, format!("GET /app?a=b HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        let text = world.take(client);
        assert!(text.starts_with("HTTP/1.1 302 Found\r\n"), "{text}");
        assert!(text.contains(&format!("\r\nLocation: {want}\r\n")), "{text}");
        assert!(text.contains("\r\nConnection: close\r\n"), "{text}");
    }
    let client = world.open();
    world.send(client, "GET /app HTTP/1.0\r\n\r\n");
    assert!(world.take(client).starts_with("HTTP/1.1 400 "), "whereto?");
    assert_eq!(world.http.counters().all_requests(), 0, "not in the statistics");
    let mut unredirected = World::new("httpsPort=2081", web_nodes(1));
    assert_eq!(unredirected.visit(get("/app")), (1, 200), "not of the guide");
}

#[test]
fn h13_calls_go_to_their_instance() {
    let nodes = vec![
        web_node(1, OTHER_INSTANCE),
        web_node(2, INSTANCE),
        web_node(3, "Restcomm-Instance-Id=ID3"),
    ];
    let mut world = World::new("", nodes);
    for account in 0..3 {
        let target = format!("/restcomm/2012-04-24/Accounts/{account}/Calls.json/{CALL}");
        assert_eq!(world.visit(post(&target, "Url=x&MoveConnectedCallLeg=true")), (2, 200));
    }
}

#[test]
fn h14_calls_with_and_without_an_instance_are_served() {
    let mut world = World::new("algorithmClass=UserBasedAlgorithm", vec![web_node(1, INSTANCE)]);
    let base = "/restcomm/2012-04-24/Accounts/AC1/Calls";
    assert_eq!(world.visit(get(&format!("{base}/{CALL}"))), (1, 200));
    assert_eq!(world.visit(get(&format!("{base}/CA00af667a6a2cbfda0c07d923e78194cd"))), (1, 200));
}

#[test]
fn h15_targets_are_rewritten() {
    let rules = "<urlrewrite><rule><from>someCompany</from><to>restcomm</to></rule></urlrewrite>";
    let mut world = World::with(xml(rules, ""), web_nodes(1));
    let path = "/2012-04-24/Accounts/0/Calls/ID1f-CA1?a=%20b";
    for (from, to) in [("/someCompany", "/restcomm"), ("/mobius", "/mobius")] {
        let client = world.open();
        let node = world.ask(client, post(&format!("{from}{path}"), "x"));
        assert_eq!(world.take(node), post(&format!("{to}{path}"), "x"));
        world.send(node, OK);
        assert_eq!(world.take(client), OK);
    }
}
