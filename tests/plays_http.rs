//! The original's own tests of HTTP (`http-smpp-registry.md` 6.1, H1 to H15) against the whole process.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::spawn;

use tests::web::{Answer, Asked, WebServer, WebStream, get, ok, post};
use tests::{Balancer, JsonBeats, Node, PATIENCE, Setup, keys, wait_for};

const TARGET: &str = "/app?fName=Konstantin&lName=Nosach";
const ID: &str = "ID1f2a2222772f4195948d040a2ccc648c";
const OTHER_ID: &str = "ID1f2a2222772f4195948d040a2ccc6481";

/// The original's server: greets whom the query names.
fn greeting(asked: &Asked) -> Vec<u8> {
    let (_, target) = asked.line();
    let value = |name: &str| {
        let parameters = target.split(['?', '&']).filter_map(|it| it.split_once('='));
        let mut found = parameters.filter(|(it, _)| *it == name).map(|(_, value)| value);
        found.next().unwrap_or_default().to_owned()
    };
    ok(&format!("Hello, {} {}", value("fName"), value("lName")))
}

/// Nodes that greet, over TLS as well if asked for.
fn greeters(lb: &Balancer, count: usize, is_secure: bool) -> Vec<(Node, WebServer)> {
    (0..count)
        .map(|at| {
            let name = format!("HttpServer{at}");
            let server = WebServer::start(greeting);
            let mut more = vec![("jvmRoute", "")];
            let tls =
                WebServer::start_secure(keys().server(&keys().sign("n", |_| {}), false), greeting);
            let port = tls.address().port().to_string();
            if is_secure {
                more.push(("sslPort", &port));
            }
            let node = lb.web_node(&name, &server, &more);
            (node, if is_secure { tls } else { server })
        })
        .collect()
}

/// Requests that each server had.
fn counts(nodes: &[(Node, WebServer)]) -> Vec<usize> {
    nodes.iter().map(|(_, server)| server.asked().len()).collect()
}

fn assert_greets(answer: &Answer) {
    assert_eq!(
        (answer.status(), answer.text().as_str()),
        (200, "Hello, Konstantin Nosach"),
        "{answer:?}"
    );
}

/// The newest configuration format, with these elements in `<http>` and `<ssl>`.
fn xml(http: &'static str, ssl: &'static str) -> Setup {
    let store = keys().path("lb.pem").display().to_string();
    Setup::file(move |it| {
        format!(
            "<load-balancer-properties>\
             <common><host>127.0.0.1</host><statisticPort>{}</statisticPort><shards>1</shards>\
             <nodeTimeout>1500</nodeTimeout><heartbeatInterval>20</heartbeatInterval></common>\
             <sip><external><udpPort>{}</udpPort></external><internal><udpPort>{}</udpPort></internal></sip>\
             <http><httpPort>{}</httpPort>{}</http>\
             <ssl><keyStore>{store}</keyStore>{ssl}</ssl></load-balancer-properties>",
            it.statistic,
            it.external,
            it.internal,
            it.web[0],
            http.replace("HTTPS", &it.web[1].to_string()),
        )
    })
}

/// GETs over HTTPS, each on a connection of its own.
fn ask_secure(lb: &Balancer, target: &str) -> Answer {
    let config = Arc::new(keys().client(None));
    let mut client = WebStream::connect_secure(lb.https(), &config, "lb.test").unwrap();
    client.send(get(target));
    client.answer()
}

#[test]
fn h1_session_ids_spread_over_the_nodes_by_their_hash() {
    let lb = Setup::two_entry().set("httpPort", "HTTP").start();
    lb.wait_log(&format!("HTTP LB listening on port {}", lb.http().port()));
    let nodes = greeters(&lb, 3, false);
    for user in 0..6 {
        assert_greets(&lb.ask(get(&format!("{TARGET}&jsessionid={user}"))));
    }
    assert_eq!(counts(&nodes), [2, 2, 2]);
    lb.ask(get(&format!("{TARGET}&jsessionid=0")));
    let again = counts(&nodes);
    let first = again.iter().position(|it| *it == 3).unwrap();
    lb.ask(get(&format!("{TARGET}&jsessionid=0")));
    assert_eq!(counts(&nodes)[first], 4, "the same session, the same node");
}

#[test]
fn h2_requests_with_and_without_a_session_are_all_served_and_those_without_take_turns() {
    let lb = Setup::two_entry().set("httpPort", "HTTP").start();
    let nodes = greeters(&lb, 3, false);
    for user in 0..6 {
        let session = if user % 2 == 0 { format!("&jsessionid={user}") } else { String::new() };
        assert_greets(&lb.ask(get(&format!("{TARGET}{session}"))));
    }
    // Those with a session by its hash (`0`, `2`, `4` are 48, 50, 52, modulo 3), the others in turn.
    assert_eq!(counts(&nodes), [2, 2, 2]);
    for (at, (_, server)) in nodes.iter().enumerate() {
        let asked = server.asked();
        let targets: Vec<&str> = asked.iter().map(|it| it.line().1).collect();
        let of_session = targets.iter().filter(|it| it.contains("jsessionid=")).count();
        assert_eq!(of_session, 1, "node {at}: {targets:?}");
    }
}

#[test]
fn h3_https_ends_here_and_reaches_plain_nodes() {
    let lb = Setup::two_entry()
        .certified()
        .set("httpPort", "HTTP")
        .set("httpsPort", "HTTPS")
        .set("isRemoteServerSsl", "false")
        .start();
    lb.wait_log(&format!("HTTPS LB listening on port {}", lb.https().port()));
    let nodes = greeters(&lb, 3, false);
    for user in 0..6 {
        assert_greets(&ask_secure(&lb, &format!("{TARGET}&jsessionid={user}")));
    }
    assert_eq!(counts(&nodes), [2, 2, 2]);
}

#[test]
fn h4_terminated_tls_of_the_newest_format_reaches_the_plain_port() {
    let lb = xml(
        "<httpsPort>HTTPS</httpsPort>",
        "<terminateTLSTraffic>true</terminateTLSTraffic>\
         <tlsClientProtocols>TLSv1,TLSv1.1,TLSv1.2</tlsClientProtocols>\
         <enabledCipherSuites>TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384</enabledCipherSuites>",
    )
    .start();
    let nodes = greeters(&lb, 3, false);
    for _ in 0..6 {
        assert_greets(&ask_secure(&lb, TARGET));
    }
    assert_eq!(counts(&nodes), [2, 2, 2]);
}

#[test]
fn h5_https_goes_on_inside_tls_where_the_keys_say_so() {
    let guide = Setup::two_entry()
        .certified()
        .set("httpPort", "HTTP")
        .set("httpsPort", "HTTPS")
        .set("isRemoteServerSsl", "true");
    let newest = xml("<httpsPort>HTTPS</httpsPort>", "");
    for (name, setup) in [("guide", guide), ("newest", newest)] {
        let lb = setup.start();
        let nodes = greeters(&lb, 3, true);
        for _ in 0..6 {
            assert_greets(&ask_secure(&lb, TARGET));
        }
        assert_eq!(counts(&nodes), [2, 2, 2], "{name}");
    }
}

#[test]
fn h6_the_figures_are_the_originals() {
    let lb = Setup::two_entry().set("httpPort", "HTTP").start();
    let gate = Arc::new((Mutex::new(false), Condvar::new()));
    let nodes: Vec<(Node, WebServer)> = (0..3)
        .map(|at| {
            let gate = gate.clone();
            let server = WebServer::start(move |_| {
                let (is_open, changed) = &*gate;
                let open = changed
                    .wait_timeout_while(is_open.lock().unwrap(), PATIENCE, |it| !*it)
                    .unwrap();
                drop(open);
                ok("Hello, Konstantin Nosach")
            });
            (lb.web_node(&format!("n{at}"), &server, &[]), server)
        })
        .collect();
    let to = lb.http();
    let clients: Vec<_> = (0..6)
        .map(|user| {
            spawn(move || {
                let mut client = WebStream::connect(to);
                client.send(post(TARGET, &format!("jsessionid={user}")));
                client.answer()
            })
        })
        .collect();
    wait_for("every request at a node", || {
        (counts(&nodes).iter().sum::<usize>() == 6).then_some(())
    });
    assert_eq!(lb.stat("NumberOfActiveHttpConnections"), 12, "both sides of six");
    assert_eq!(lb.stat("NumberOfHttpBytesToClient"), 0);
    *gate.0.lock().unwrap() = true;
    gate.1.notify_all();
    for client in clients {
        assert_greets(&client.join().unwrap());
    }
    assert_eq!(counts(&nodes), [2, 2, 2]);
    wait_for("all to be gone", || (lb.stat("NumberOfActiveHttpConnections") == 0).then_some(()));
    let metrics = lb.lbstat();
    for (name, want) in [
        ("NumberOfHttpBytesToServer", 72),
        ("NumberOfHttpBytesToClient", 144),
        ("NumberOfHttpRequests", 6),
    ] {
        assert_eq!(metrics[name], want, "{name}");
    }
    assert_eq!(metrics["NumberOfHttpRequestsProcessedByMethod"]["POST"], 6);
    assert_eq!(metrics["NumberOfHttpRequestsProcessedByMethod"]["GET"], 0);
    assert_eq!(metrics["NumberOfHttpResponsesProcessedByStatusCode"]["2XX"], 6);
}

#[test]
fn h7_active_standby_serves_from_one_node_until_it_leaves() {
    let lb = Setup::two_entry().algorithm("ActiveStandbyAlgorithm").set("httpPort", "HTTP").start();
    let nodes = greeters(&lb, 2, false);
    for _ in 0..5 {
        assert_greets(&lb.ask(get(TARGET)));
    }
    let active = counts(&nodes).iter().position(|it| *it > 0).unwrap();
    assert_eq!(counts(&nodes)[active], 5);
    nodes[active].0.leave();
    lb.wait_node("one that leaves", |it| it.is_leaving);
    assert_greets(&lb.ask(get(TARGET)));
    let mut want = [1, 1];
    want[active] = 5;
    assert_eq!(counts(&nodes), want, "the one that leaves gets no more");
}

/// As the catalogue has it: the process tells that it stops.
#[test]
fn h7_active_standby_goes_on_with_the_other_when_its_node_stops() {
    let lb = Setup::two_entry()
        .algorithm("ActiveStandbyAlgorithm")
        .set("httpPort", "HTTP")
        .heartbeats()
        .start();
    let names = ["one", "two"];
    let mut nodes: Vec<(JsonBeats, WebServer)> = names
        .iter()
        .map(|name| {
            let server = WebServer::named(name);
            let port = server.address().port().to_string();
            let words = [("hostName", *name), ("ip", "127.0.0.1"), ("httpPort", &port)];
            (JsonBeats::start(lb.beats(), &words), server)
        })
        .collect();
    lb.wait_nodes(2);
    let active = lb.ask(get(TARGET)).text();
    for _ in 0..4 {
        assert_eq!(lb.ask(get(TARGET)).text(), active);
    }
    let at = names.iter().position(|it| *it == active).unwrap();
    assert!(nodes[at].0.stop());
    lb.wait_nodes(1);
    for _ in 0..5 {
        assert_eq!(lb.ask(get(TARGET)).text(), names[1 - at]);
    }
    assert_eq!(nodes[at].1.asked().len(), 5);
}

#[test]
fn a_node_that_the_operator_drains_keeps_its_sessions_and_gets_no_others() {
    let lb = Setup::two_entry().set("httpPort", "HTTP").start();
    let nodes = lb.named_nodes(&["one", "two"]);
    lb.get("/lbdrain?node=one");
    lb.wait_node("one that leaves", |it| it.is_leaving);
    for _ in 0..6 {
        assert_eq!(lb.ask(get(TARGET)).text(), "two");
    }
    let session = format!("GET {TARGET} HTTP/1.1\r\nHost: lb\r\nCookie: JSESSIONID=1.one\r\n\r\n");
    assert_eq!(lb.ask(&session).text(), "one");
    lb.get("/lbundrain?node=one");
    wait_for("its return", || (lb.ask(get(TARGET)).text() == "one").then_some(()));
    drop(nodes);
}

#[test]
fn h8_a_chunked_response_arrives_whole_and_in_its_chunks() {
    let lb = Setup::two_entry().set("httpPort", "HTTP").start();
    let chunk = format!("3e8\r\n{}\r\n", "y".repeat(1000));
    let response = format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{}0\r\n\r\n",
        chunk.repeat(20)
    );
    let answer = response.clone();
    let server = WebServer::start(move |_| answer.clone().into_bytes());
    let _node = lb.web_node("n", &server, &[]);
    let mut client = WebStream::connect(lb.http());
    client.send(get(TARGET));
    assert_eq!(client.bytes(response.len()).unwrap(), response.as_bytes(), "byte for byte");
    assert_eq!(server.asked().len(), 1);
}

#[test]
fn h9_a_chunked_request_is_one_request() {
    let lb = Setup::two_entry().set("httpPort", "HTTP").start();
    let nodes = greeters(&lb, 1, false);
    let mut client = WebStream::connect(lb.http());
    client
        .send(format!("POST {TARGET} HTTP/1.1\r\nHost: lb\r\nTransfer-Encoding: chunked\r\n\r\n"));
    for _ in 0..20 {
        client.send(format!("3e8\r\n{}\r\n", "z".repeat(1000)));
    }
    client.send("0\r\n\r\n");
    assert_greets(&client.answer());
    let asked = nodes[0].1.asked();
    assert_eq!((asked.len(), asked[0].body.len()), (1, 20_000));
    assert_eq!(asked[0].field("transfer-encoding"), Some("chunked"));
    assert_eq!(lb.stat("NumberOfHttpBytesToServer"), 20_000, "content alone");
}

#[test]
fn h10_a_node_that_answers_badly_to_watched_requests_gets_no_more() {
    let lb = xml("<requestCheckPattern>(/Accounts/)</requestCheckPattern>", "").start();
    let bad =
        WebServer::start(|_| b"HTTP/1.1 400 Bad Request\r\nContent-Length: 3\r\n\r\nbad".to_vec());
    let good = WebServer::start(greeting);
    let _bad = lb.web_node("bad", &bad, &[("Restcomm-Instance-Id", ID)]);
    let _good = lb.web_node("good", &good, &[("Restcomm-Instance-Id", OTHER_ID)]);
    let request = |user: usize| {
        post(&format!("/restcomm/2012-04-24/Accounts/{user}/Calls.json/{ID}-CA00af"), "Url=x")
    };
    let first = lb.ask(request(0));
    assert_eq!((first.status(), first.text().as_str()), (400, "bad"), "the client still gets it");
    lb.wait_node("the bad one", |it| it.host_name == "bad" && it.is_bad);
    for user in 1..4 {
        assert_eq!(lb.ask(request(user)).status(), 200);
    }
    assert_eq!((bad.asked().len(), good.asked().len()), (1, 3));
}

#[test]
fn h11_nodes_that_go_leave_the_work_to_the_others() {
    let lb = Setup::two_entry().set("httpPort", "HTTP").start();
    let mut nodes = greeters(&lb, 3, false);
    for _ in 0..2 {
        assert_greets(&lb.ask(get(TARGET)));
    }
    for at in [0, 2] {
        nodes[at].0.fall_silent();
    }
    lb.wait_nodes(1);
    let before = counts(&nodes)[1];
    for _ in 0..4 {
        assert_greets(&lb.ask(get(TARGET)));
    }
    assert_eq!(counts(&nodes)[1], before + 4);
}

#[test]
fn h12_plain_requests_are_redirected_to_https_by_key() {
    let newest =
        xml("<httpsPort>HTTPS</httpsPort>", "<terminateTLSTraffic>true</terminateTLSTraffic>");
    let by_key = Setup::two_entry()
        .certified()
        .set("httpPort", "HTTP")
        .set("httpsPort", "HTTPS")
        .set("httpToHttpsRedirect", "true");
    for (name, setup) in [("newest", newest), ("key", by_key)] {
        let lb = setup.start();
        let nodes = greeters(&lb, 3, false);
        for _ in 0..6 {
            let mut client = WebStream::connect(lb.http());
            let port = lb.http().port();
            client.send(format!("GET {TARGET} HTTP/1.1\r\nHost: lb.test:{port}\r\n\r\n"));
            let answer = client.answer();
            let location = format!("https://lb.test:{}{TARGET}", lb.https().port());
            assert_eq!(answer.field("location"), Some(location.as_str()), "{name} {answer:?}");
            assert_eq!(answer.status(), 302, "{name}");
            assert_greets(&ask_secure(&lb, TARGET));
        }
        assert_eq!(counts(&nodes), [2, 2, 2], "{name}");
        assert_eq!(lb.stat("NumberOfHttpRequests"), 6, "{name}: redirects are not counted");
    }
}

#[test]
fn h13_calls_go_to_the_instance_that_their_path_names() {
    let lb = Setup::two_entry().set("httpPort", "HTTP").start();
    let servers: Vec<WebServer> = (0..3).map(|_| WebServer::start(greeting)).collect();
    let ids = ["ID00000000000000000000000000000000", ID, OTHER_ID];
    let _nodes: Vec<Node> = (0..3)
        .map(|at| {
            lb.web_node(&format!("n{at}"), &servers[at], &[("Restcomm-Instance-Id", ids[at])])
        })
        .collect();
    for _ in 0..3 {
        let target = format!("/restcomm/2012-04-24/Accounts/AC1/Calls.json/{ID}-CA00af667a6a2c");
        let request = format!(
            "POST {target} HTTP/1.1\r\nHost: lb\r\nUrl: http://192.0.2.1/x\r\nMoveConnectedCallLeg: true\r\n\
             Content-Length: 0\r\n\r\n"
        );
        assert_eq!(lb.ask(request).status(), 200);
    }
    let counts: Vec<usize> = servers.iter().map(|it| it.asked().len()).collect();
    assert_eq!(counts, [0, 3, 0]);
}

#[test]
fn h14_calls_with_and_without_an_instance_are_served() {
    let lb = Setup::two_entry().algorithm("UserBasedAlgorithm").set("httpPort", "HTTP").start();
    let server = WebServer::start(greeting);
    let _node = lb.web_node("n", &server, &[("Restcomm-Instance-Id", ID)]);
    for call in [format!("{ID}-CA00af"), "CA00af".to_owned(), "ID1-x".to_owned()] {
        let target = format!("/restcomm/2012-04-24/Accounts/AC1/Calls/{call}");
        assert_eq!(lb.ask(get(&target)).status(), 200, "{call}");
    }
    assert!(!lb.has_logged("serves the instance"));
    let unknown = format!("/restcomm/2012-04-24/Accounts/AC1/Calls/{OTHER_ID}-CA00af");
    for _ in 0..20 {
        assert_eq!(lb.ask(get(&unknown)).status(), 200, "it goes on");
    }
    lb.wait_log(&format!("No node serves the instance {OTHER_ID}"));
    let said = lb.log().matches("serves the instance").count();
    assert!(said < 20, "not with each request: {said}");
}

#[test]
fn h15_targets_are_rewritten() {
    let lb = xml(
        "<urlrewrite decode-using=\"utf-8\"><rule><from>someCompany</from><to>restcomm</to></rule></urlrewrite>",
        "",
    )
    .start();
    let nodes = greeters(&lb, 1, false);
    let rest = format!("/2012-04-24/Accounts/0/Calls/{ID}-CA00af");
    assert_eq!(lb.ask(post(&format!("/someCompany{rest}"), "")).status(), 200);
    assert_eq!(lb.ask(post(&format!("/mobius/a%20b{rest}"), "")).status(), 200);
    let asked = nodes[0].1.asked();
    let targets: Vec<&str> = asked.iter().map(|it| it.line().1).collect();
    assert_eq!(targets, [format!("/restcomm{rest}"), format!("/mobius/a%20b{rest}")]);
}

#[test] // guide 1.12, item 2
fn methods_codes_and_nodes_are_counted_on_both_pages() {
    let lb = Setup::two_entry().set("httpPort", "HTTP").start();
    let server = WebServer::start(|asked| {
        let code = asked.line().1.trim_start_matches('/').to_owned();
        let body =
            if matches!(code.as_str(), "204" | "304") { "" } else { "Content-Length: 0\r\n" };
        format!("HTTP/1.1 {code} X\r\n{body}\r\n").into_bytes()
    });
    let node = lb.web_node("n", &server, &[]);
    let methods = ["CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"];
    let mut want: BTreeMap<String, u64> = BTreeMap::new();
    let mut client = WebStream::connect(lb.http());
    for (method, code) in
        ["DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE", "GET", "PURGE"]
            .into_iter()
            .zip([200, 204, 304, 404, 500, 201, 302, 503, 200, 200])
    {
        client.send(format!("{method} /{code} HTTP/1.1\r\nHost: lb\r\n\r\n"));
        let answer = client.answer_to(method);
        assert_eq!(answer.status(), code, "{method}");
        *want.entry(method.to_owned()).or_default() += 1;
        *want.entry(format!("{}XX", code / 100)).or_default() += 1;
    }
    let metrics = lb.lbstat();
    let get = |it: &str| want.get(it).copied().unwrap_or(0);
    for method in methods {
        assert_eq!(
            metrics["NumberOfHttpRequestsProcessedByMethod"][method],
            get(method),
            "{method}"
        );
        let line = format!("trunkline_http_requests_total{{method=\"{method}\"}}");
        assert_eq!(lb.metric(&line), get(method) as f64, "{line}");
    }
    for class in 1..=5 {
        let class = format!("{class}XX");
        let count = &metrics["NumberOfHttpResponsesProcessedByStatusCode"][&class];
        assert_eq!(*count, get(&class), "{class}");
    }
    assert_eq!(metrics["NumberOfHttpRequests"], 10, "unknown methods too");
    let page = lb.metrics();
    assert!(
        page.contains("trunkline_http_responses_total{class=\"4xx\",code=\"404\"} 1"),
        "{page}"
    );
    let of_node: Vec<&str> = page.lines().filter(|it| it.contains("http_node_seconds")).collect();
    let total = of_node.iter().find(|it| it.contains("_count{")).expect("a histogram of the node");
    assert!(total.ends_with(" 10"), "{total}");
    let rest = of_node.iter().find(|it| it.contains("le=\"+Inf\"")).unwrap();
    assert!(rest.contains("name=\"n\"") && rest.ends_with(" 10"), "{rest}");
    drop(node);
}

#[test]
fn a_nodes_times_are_its_own() {
    let lb = Setup::two_entry().set("httpPort", "HTTP").start();
    let (go, may_answer) = std::sync::mpsc::channel::<()>();
    let may_answer = Mutex::new(may_answer);
    let server = WebServer::start(move |asked| {
        if asked.line().1 == "/slow" {
            let _ = may_answer.lock().unwrap().recv();
        }
        ok("x")
    });
    let _node = lb.web_node("n", &server, &[]);
    for _ in 0..4 {
        assert_eq!(lb.ask(get("/")).status(), 200);
    }
    let mut client = WebStream::connect(lb.http());
    client.send(get("/slow"));
    wait_for("the slow one at the node", || (server.asked().len() == 5).then_some(()));
    let asked = std::time::Instant::now();
    wait_for("a while", || (asked.elapsed().as_millis() >= 1_100).then_some(()));
    go.send(()).unwrap();
    assert_eq!(client.answer().status(), 200);
    let page = lb.metrics();
    let value = |part: &str| -> f64 {
        let is_it = |it: &&str| it.starts_with("trunkline_http_node_seconds") && it.contains(part);
        let line = page.lines().find(is_it).unwrap_or_else(|| panic!("no {part} in {page}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert_eq!((value("le=\"+Inf\""), value("_count{")), (5.0, 5.0));
    assert_eq!(value("le=\"1\""), 4.0, "all but the slow one: {page}");
    let sum = value("_sum{");
    assert!((1.1..8.0).contains(&sum), "{sum}");
}

#[test]
fn clients_and_nodes_of_ipv6_are_served() {
    let lb = Setup::two_entry().set("httpPort", "HTTP").set("httpXForwarded", "true").start();
    let server = WebServer::start_v6(|asked| ok(asked.field("x-forwarded-for").unwrap_or("")));
    let port = server.address().port().to_string();
    let node = tests::Node::bind_v6("six").property("httpPort", &port);
    let _node = lb.announced(node);
    lb.wait_node("of IPv6", |it| it.host_name == "six");
    assert_eq!(lb.ask(get("/")).text(), "127.0.0.1");
    let mut client = WebStream::connect((std::net::Ipv6Addr::LOCALHOST, lb.http().port()).into());
    client.send(get("/"));
    assert_eq!(client.answer().text(), "::1");
}
