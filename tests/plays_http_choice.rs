//! Which node serves a request over HTTP, and what happens when none does (`http-smpp-registry.md` 1.5, 1.6).

use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, getsockname, listen, socket,
};
use tests::web::{Answer, End, WebServer, WebStream, get, ok, post};
use tests::{Balancer, Node, Setup, first_to_get, free_port, wait_for};

fn stage() -> (Balancer, Vec<(Node, WebServer)>) {
    let lb = Setup::two_entry().set("httpPort", "HTTP").start();
    let nodes = lb.named_nodes(&["n1", "n2", "n3"]);
    (lb, nodes)
}

/// A GET with this cookie field.
fn with_cookie(target: &str, cookie: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: lb\r\nCookie: {cookie}\r\n\r\n")
}

/// Who answered.
fn who(answer: &Answer) -> String {
    assert_eq!(answer.status(), 200, "{answer:?}");
    answer.text()
}

#[test]
fn a_session_with_a_route_goes_to_the_node_that_it_names() {
    let (lb, _nodes) = stage();
    let cases = [
        (with_cookie("/", "a=b; JSESSIONID=0123ABCD.n2; c=d"), "n2"),
        (with_cookie("/", "jsessionid=0123ABCD.n3"), "n3"),
        (with_cookie("/", "JSESSIONID=\"0123ABCD.n3\""), "n3"),
        // Tomcat and Jetty; a route is what stands behind the last dot.
        (with_cookie("/", "JSESSIONID=5E1A0B8A6A6F0D9C0B7F1F0B1B1C3D1E.n2"), "n2"),
        (with_cookie("/", "JSESSIONID=node01k2v1c4.0.x.n3"), "n3"),
        (get("/app?x=1&jsessionid=99.n2"), "n2"),
        (get("/app;jsessionid=99.n3?x=1"), "n3"),
        (with_cookie("/app;jsessionid=1.n2?jsessionid=1.n3", "JSESSIONID=1.n1"), "n3"),
        (with_cookie("/app;jsessionid=1.n2", "JSESSIONID=1.n1"), "n2"),
    ];
    for (request, node) in cases {
        for _ in 0..3 {
            assert_eq!(who(&lb.ask(&request)), node, "{request}");
        }
    }
}

#[test]
fn each_request_of_a_connection_chooses_anew() {
    let (lb, nodes) = stage();
    let mut client = WebStream::connect(lb.http());
    for round in 0..4 {
        for node in ["n3", "n1", "n2"] {
            client.send(with_cookie("/", &format!("JSESSIONID=1.{node}")));
            assert_eq!(who(&client.answer()), node, "round {round}");
        }
    }
    for (_, server) in &nodes {
        assert_eq!(server.connections(), 1, "and finds the connection to its node again");
    }
}

#[test]
fn a_session_without_a_known_route_keeps_a_node_by_its_hash_on_every_shard() {
    let lb = Setup::two_entry().set("httpPort", "HTTP").set("shards", "2").start();
    let _nodes = lb.named_nodes(&["n1", "n2", "n3"]);
    for session in ["abc", "A1B2C3.unknown", "x"] {
        let first = who(&lb.ask(with_cookie("/", &format!("JSESSIONID={session}"))));
        for _ in 0..8 {
            let again = who(&lb.ask(get(&format!("/?jsessionid={session}"))));
            assert_eq!(again, first, "{session}");
        }
    }
}

#[test]
fn a_node_that_leaves_keeps_its_sessions_and_gets_no_others() {
    let (lb, nodes) = stage();
    nodes[1].0.leave();
    lb.wait_node("n2 to leave", |it| it.host_name == "n2" && it.is_leaving);
    for _ in 0..6 {
        assert_ne!(who(&lb.ask(get("/"))), "n2");
        assert_eq!(who(&lb.ask(with_cookie("/", "JSESSIONID=1.n2"))), "n2");
    }
}

#[test]
fn sessions_of_dead_and_bad_nodes_move_to_another_and_stay_there() {
    let lb =
        Setup::two_entry().set("httpPort", "HTTP").set("requestCheckPattern", "^/watched").start();
    let bad = WebServer::start(|_| b"HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n".to_vec());
    let mut dead = lb.named_nodes(&["n1"]).remove(0);
    let _bad = lb.web_node("bad", &bad, &[("jvmRoute", "bad")]);
    let _others = lb.named_nodes(&["n3", "n4"]);
    assert_eq!(lb.ask(with_cookie("/free", "JSESSIONID=1.bad")).status(), 500, "not watched");
    assert_eq!(lb.ask(with_cookie("/watched", "JSESSIONID=1.bad")).status(), 500);
    lb.wait_node("the bad one", |it| it.is_bad);
    dead.0.fall_silent();
    lb.wait_nodes(3);
    for session in ["JSESSIONID=1.bad", "JSESSIONID=7.n1"] {
        let home = who(&lb.ask(with_cookie("/", session)));
        assert!(home == "n3" || home == "n4", "{session}: {home}");
        for _ in 0..4 {
            assert_eq!(who(&lb.ask(with_cookie("/", session))), home, "{session}");
        }
    }
}

#[test] // R7
fn a_node_that_is_bad_by_its_answers_to_sip_gets_nothing_new_by_http_until_it_restarts() {
    let lb = Setup::two_entry()
        .set("httpPort", "HTTP")
        .set("responsesStatusCodeNodeRemoval", "503")
        .set("maxNumberResponsesWithError", "1")
        .set("maxErrorTime", "3000000")
        .start();
    let mut nodes = lb.named_nodes(&["n1", "n2"]);
    nodes[0].0.answers_calls();
    nodes[1].0.answers(|it| match it.method() {
        "ACK" => vec![],
        _ => vec![it.reply(503, "Unable to setup media services")],
    });
    let both = |lb: &Balancer| [(); 2].map(|()| who(&lb.ask(get("/")))).concat();
    assert!(["n1n2", "n2n1"].contains(&both(&lb).as_str()), "in turn");
    let caller = lb.caller("alice").over_tcp();
    for _ in 0..4 {
        let invite = caller.request("INVITE", "sip:bob@example.com");
        caller.send(&invite);
        caller.expect_where("a final answer", |it| {
            it.call_id() == invite.call_id() && it.status() >= 200
        });
    }
    lb.wait_node("the bad mark", |it| it.host_name == "n2" && it.is_bad);
    for _ in 0..4 {
        assert_eq!(who(&lb.ask(get("/"))), "n1");
        assert_eq!(who(&lb.ask(with_cookie("/", "JSESSIONID=1.n2"))), "n1", "its sessions move");
    }
    nodes[1].0.restart();
    lb.wait_node("a clean slate", |it| it.host_name == "n2" && !it.is_bad);
    assert!(["n1n2", "n2n1"].contains(&both(&lb).as_str()), "in turn");
    assert_eq!(who(&lb.ask(with_cookie("/", "JSESSIONID=1.n2"))), "n2");
}

#[test]
fn a_node_without_an_http_port_is_no_candidate() {
    let lb = Setup::two_entry().set("httpPort", "HTTP").start();
    let _sip_only = lb.announced(Node::bind("sip").property("jvmRoute", "sip"));
    let _nodes = lb.named_nodes(&["n1"]);
    lb.wait_nodes(2);
    for _ in 0..4 {
        assert_eq!(who(&lb.ask(with_cookie("/", "JSESSIONID=1.sip"))), "n1");
    }
}

/// What SIP follows, and the header that carries it. Guide 1.1.4 names the callee's name; any header can be
/// named, one with the key of the web session among them.
const SIP_KEYS: [(&str, &str, &str); 2] =
    [("to.user", "To", "<sip:KEY@example.com>"), ("appsession", "AppSession", "KEY")];

/// So many leave none of three nodes without one: a hash that is fair misses one in fewer than 10^-7 runs.
const KEYS: usize = 48;

#[test] // guide 1.1.4: in HTTP the parameter `appsession`
fn sip_and_http_of_one_key_meet_on_one_node() {
    let algorithms = [
        "HeaderConsistentHashBalancerAlgorithm",
        "PersistentConsistentHashBalancerAlgorithm",
        "PureConsistentHashBalancerAlgorithm",
    ];
    let cases = algorithms.iter().flat_map(|it| SIP_KEYS.map(|key| (it, key)));
    for (algorithm, (sip_key, header, value)) in cases {
        let lb = Setup::two_entry()
            .algorithm(algorithm)
            .set("sipHeaderAffinityKey", sip_key)
            .set("httpAffinityKey", "appsession")
            .set("httpPort", "HTTP")
            .start();
        let (nodes, _servers): (Vec<Node>, Vec<WebServer>) =
            lb.named_nodes(&["n1", "n2", "n3"]).into_iter().unzip();
        let caller = lb.caller("alice");
        let mut homes = std::collections::BTreeSet::new();
        for user in 0..KEYS {
            let key = format!("user{user}");
            let invite = caller.request("INVITE", "sip:x@example.com").without(header);
            caller.send(&invite.with(header, value.replace("KEY", &key)));
            let (at, got) = first_to_get(&nodes, "INVITE");
            nodes[at].reply(&got, 486, "Busy Here");
            let home = nodes[at].name().to_owned();
            let answer = lb.ask(get(&format!("/app?x=1&appsession={key}")));
            assert_eq!(who(&answer), home, "{algorithm} {sip_key} {key}");
            homes.insert(home);
        }
        assert_eq!(homes.len(), 3, "{algorithm} {sip_key}: not all on one");
    }
}

#[test]
fn http_affinity_follows_the_parameter_that_its_key_names() {
    let lb = Setup::two_entry()
        .algorithm("HeaderConsistentHashBalancerAlgorithm")
        .set("sipHeaderAffinityKey", "X-Room")
        .set("httpAffinityKey", "room")
        .set("httpPort", "HTTP")
        .start();
    let (nodes, _servers): (Vec<Node>, Vec<WebServer>) =
        lb.named_nodes(&["n1", "n2", "n3"]).into_iter().unzip();
    let caller = lb.caller("alice");
    let mut homes = std::collections::BTreeSet::new();
    for room in 0..KEYS {
        let invite = caller.request("INVITE", "sip:x@example.com");
        caller.send(&invite.with("X-Room", format!("r{room}")));
        let (at, got) = first_to_get(&nodes, "INVITE");
        nodes[at].reply(&got, 486, "Busy Here");
        let answer = lb.ask(get(&format!("/app?appsession=other&room=r{room}")));
        assert_eq!(who(&answer), nodes[at].name(), "room {room}");
        homes.insert(at);
    }
    assert_eq!(homes.len(), 3, "not all on one");
}

#[test]
fn active_standby_serves_sip_and_http_from_one_node() {
    let lb = Setup::two_entry().algorithm("ActiveStandbyAlgorithm").set("httpPort", "HTTP").start();
    let (nodes, _servers): (Vec<Node>, Vec<WebServer>) =
        lb.named_nodes(&["n1", "n2", "n3"]).into_iter().unzip();
    let mut active = String::new();
    for round in 0..2 {
        let caller = lb.caller("alice");
        for _ in 0..3 {
            caller.send(&caller.request("INVITE", "sip:x@example.com"));
            let (at, got) = first_to_get(&nodes, "INVITE");
            nodes[at].reply(&got, 486, "Busy Here");
            assert_eq!(who(&lb.ask(get("/"))), nodes[at].name(), "round {round}");
            if round == 0 {
                nodes[at].name().clone_into(&mut active);
            } else {
                assert_ne!(nodes[at].name(), active, "it leaves");
            }
        }
        if round == 0 {
            nodes.iter().find(|it| it.name() == active).unwrap().leave();
            lb.wait_node("one that leaves", |it| it.is_leaving);
        }
    }
}

#[test]
fn without_a_node_the_answer_is_503_and_the_connection_lives_to_see_one() {
    let lb = Setup::two_entry().set("httpPort", "HTTP").start();
    let mut client = WebStream::connect(lb.http());
    client.send(get("/"));
    let answer = client.answer();
    assert_eq!(
        (answer.status(), answer.text().as_str()),
        (503, "Service is temporarily unavailable")
    );
    assert!(answer.field("retry-after").is_some_and(|it| it.parse::<u32>().is_ok()), "{answer:?}");
    lb.wait_log("Service unavailable. No server is available.");
    let _nodes = lb.named_nodes(&["n1"]);
    client.send(get("/"));
    assert_eq!(who(&client.answer()), "n1");
    assert_eq!(lb.metric("trunkline_http_refused_total{reason=\"no_node\"}"), 1.0);
}

#[test]
fn without_a_node_requests_go_to_the_unavailable_host_or_clients_are_sent_there() {
    let sorry = WebServer::start(|asked| ok(&format!("sorry {}", asked.line().1)));
    let host = sorry.address().to_string();
    let setup = Setup::two_entry().set("httpPort", "HTTP").set("unavailableHost", &host);
    let lb = setup.start();
    let answer = wait_for("the unavailable host", || {
        let answer = lb.ask(get("/a?b=c"));
        (answer.status() == 200).then_some(answer)
    });
    assert_eq!(answer.text(), "sorry /a?b=c");
    let _nodes = lb.named_nodes(&["n1"]);
    assert_eq!(who(&lb.ask(get("/"))), "n1");

    let lb = setup.set("unavailableRedirect", "true").start();
    let answer = lb.ask(get("/a?b=c"));
    assert_eq!(answer.status(), 302);
    assert_eq!(answer.field("location"), Some(format!("http://{host}/a?b=c").as_str()));
}

#[test]
fn where_the_unavailable_host_refuses_as_well_that_is_said_and_the_connection_goes_on() {
    let host = format!("127.0.0.1:{}", free_port());
    let lb = Setup::two_entry().set("httpPort", "HTTP").set("unavailableHost", &host).start();
    wait_for("the host to be known", || (lb.ask(get("/")).status() == 502).then_some(()));
    let mut client = WebStream::connect(lb.http());
    let refused = || lb.metric("trunkline_http_refused_total{reason=\"bad_gateway\"}");
    let before = refused();
    for request in [get("/"), post("/", "body")] {
        client.send(request);
        assert_eq!(client.answer().status(), 502);
    }
    assert_eq!(refused(), before + 2.0);
    let _nodes = lb.named_nodes(&["n1"]);
    client.send(get("/"));
    assert_eq!(who(&client.answer()), "n1");
}

#[test]
fn a_node_that_refuses_is_passed_over_whatever_the_method() {
    let (lb, nodes) = stage();
    nodes[0].1.close();
    for _ in 0..6 {
        assert_ne!(who(&lb.ask(post("/", "body"))), "n1");
        assert_ne!(who(&lb.ask(with_cookie("/", "JSESSIONID=1.n1"))), "n1");
    }
    let bodies = |server: &WebServer| server.asked().iter().filter(|it| it.body == b"body").count();
    assert_eq!(nodes.iter().map(|(_, it)| bodies(it)).sum::<usize>(), 6, "each exactly once");
    nodes[1].1.close();
    nodes[2].1.close();
    let answer = lb.ask(post("/", "body"));
    assert!(matches!(answer.status(), 502 | 503), "{answer:?}");
}

/// Breaks every connection off once a request is there, with a reset.
fn breaker() -> WebServer {
    WebServer::raw(|mut stream, _| {
        let _ = stream.head();
        stream.reset();
    })
}

#[test]
fn a_request_that_broke_off_unanswered_is_repeated_only_if_that_is_safe() {
    let lb = Setup::two_entry().set("httpPort", "HTTP").start();
    let breaker = breaker();
    let _bad = lb.web_node("bad", &breaker, &[("jvmRoute", "bad")]);
    let good = lb.named_nodes(&["n1"]);
    for method in ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"] {
        let request = format!(
            "{method} / HTTP/1.1\r\nHost: lb\r\nCookie: JSESSIONID=1.bad\r\nContent-Length: 2\r\n\r\nhi"
        );
        let mut client = WebStream::connect(lb.http());
        client.send(request);
        assert_eq!(client.answer_to(method).status(), 200, "{method}");
    }
    let served = good[0].1.asked().len();
    let post =
        "POST / HTTP/1.1\r\nHost: lb\r\nCookie: JSESSIONID=1.bad\r\nContent-Length: 2\r\n\r\nhi";
    assert_eq!(lb.ask(post).status(), 502);
    assert_eq!(good[0].1.asked().len(), served, "nobody else had it");
    assert_eq!(lb.metric("trunkline_http_retries_total"), 5.0);
}

#[test]
fn a_node_that_takes_too_long_is_504() {
    let lb = Setup::two_entry().set("httpPort", "HTTP").set("httpResponseTimeout", "200").start();
    let silent = WebServer::raw(|mut stream, _| {
        let _ = stream.rest(); // until the balancer gives up
    });
    let _node = lb.web_node("n", &silent, &[]);
    let answer = lb.ask(get("/"));
    assert_eq!(answer.status(), 504, "{answer:?}");
    assert_eq!(lb.metric("trunkline_http_refused_total{reason=\"gateway_timeout\"}"), 1.0);
}

/// A port whose queue is full: the kernel drops who calls.
fn deaf_port() -> (OwnedFd, Vec<TcpStream>, u16) {
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).unwrap();
    bind(fd.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
    listen(&fd, Backlog::new(0).unwrap()).unwrap();
    let address: SockaddrIn = getsockname(fd.as_raw_fd()).unwrap();
    let to = SocketAddr::from(([127, 0, 0, 1], address.port()));
    let fill = || TcpStream::connect_timeout(&to, std::time::Duration::from_millis(300)).ok();
    let queue = std::iter::from_fn(fill).take(16).collect();
    (fd, queue, to.port())
}

#[test]
fn a_node_that_does_not_take_the_call_is_passed_over_and_the_last_one_is_504() {
    let lb = Setup::two_entry().set("httpPort", "HTTP").set("httpConnectTimeout", "200").start();
    let (_fd, _queue, port) = deaf_port();
    let deaf =
        Node::bind("deaf").property("httpPort", &port.to_string()).property("jvmRoute", "deaf");
    let _deaf = lb.announced(deaf);
    lb.wait_nodes(1);
    assert_eq!(lb.ask(get("/")).status(), 504);
    let _nodes = lb.named_nodes(&["n1"]);
    assert_eq!(who(&lb.ask(with_cookie("/", "JSESSIONID=1.deaf"))), "n1");
}

#[test]
fn a_body_that_breaks_off_is_a_cut_that_the_client_sees() {
    let cases = [
        ("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", true),
        ("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", false),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3e8\r\n", true),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3e8\r\n", false),
        ("HTTP/1.1 200 OK\r\n\r\n", true),
    ];
    for (head, is_reset) in cases {
        let lb = Setup::two_entry().set("httpPort", "HTTP").start();
        let server = WebServer::raw(move |mut stream, _| {
            let _ = stream.head();
            stream.send(format!("{head}half"));
            // The client says when it has that, then the rest goes missing.
            let _ = stream.head();
            if is_reset {
                stream.reset();
            }
        });
        let _node = lb.web_node("n", &server, &[]);
        let mut client = WebStream::connect(lb.http());
        client.send("POST / HTTP/1.1\r\nHost: lb\r\nContent-Length: 8\r\n\r\n");
        client.until(b"half").unwrap();
        client.send("more\r\n\r\n");
        assert_eq!(client.rest(), (vec![], End::Reset), "{head:?}, by a reset: {is_reset}");
        assert_eq!(lb.metric("trunkline_http_refused_total{reason=\"aborted\"}"), 1.0);
    }
}

#[test]
fn a_connection_that_a_node_has_closed_while_it_waited_costs_no_request() {
    let lb = Setup::two_entry().set("httpPort", "HTTP").start();
    // Every connection serves one request, says it would serve more, and ends.
    let server = WebServer::raw(|mut stream, _| {
        if stream.head().is_ok() {
            let _ = stream.try_send(ok("n"));
        }
    });
    let _node = lb.web_node("n", &server, &[]);
    let mut client = WebStream::connect(lb.http());
    for round in 0..20 {
        client.send(get("/"));
        assert_eq!(client.answer().status(), 200, "round {round}");
    }
}
