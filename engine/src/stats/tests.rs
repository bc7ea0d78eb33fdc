use super::*;
use crate::registry::{Announcement, Rules};
use crate::relay::Report;
use std::collections::{BTreeMap, BTreeSet};

fn registry() -> Registry {
    let rules = Rules {
        node_timeout: Duration::from_millis(8400),
        heartbeat_interval: Duration::from_millis(150),
        suspect_time: Duration::from_secs(2),
        errors_max: 5,
        error_time: Duration::from_secs(300),
        probation: None,
        silence: None,
        ramp_up: None,
        extra: Vec::new(),
        extra_are_nodes: false,
        fixed: Vec::new(),
        own: std::collections::BTreeSet::new(),
    };
    Registry::new(Time::ZERO, rules, &BTreeMap::new())
}

fn beat(body: &str) -> Announcement {
    Announcement::parse(body.as_bytes()).unwrap()
}

const N1: &str = "ip=10.0.0.1\nudpPort=5060\nhostname=n\"1\\\\\\n";
const N2: &str = "ip=fd00::2\nudpPort=5060\nhostname=n2";

/// Two nodes, two shards, a call or so.
fn with_scrape<T>(change: impl FnOnce(&mut Scrape<'_>), show: impl FnOnce(&Scrape<'_>) -> T) -> T {
    let mut registry = registry();
    let (n1, n2) = (beat(N1), beat(N2));
    let key = n1.key();
    registry.handle_announcement(Time::from_millis(5), n1).unwrap();
    registry.handle_announcement(Time::from_millis(6), n2).unwrap();
    let seen = Report::Seen { node: key, alive: true, errors: 1, requests: 2, answered: true };
    registry.handle_report(Time::from_millis(7), seen).unwrap();
    let snapshot = registry.snapshot().unwrap();

    let (mut first, mut second) = (Counters::default(), Counters::default());
    first.request(Method::Invite, Leg::External, Transport::Udp, 200);
    first.request(Method::Ack, Leg::External, Transport::Udp, 0);
    first.to_node(key, true);
    first.to_node(key, false);
    first.remembered_calls(Some(2));
    for counters in [&mut first, &mut second] {
        let http = &mut counters.http;
        http.request(protocols::http::Method::Post);
        http.to_node(key);
        http.from_node(key, 200, Duration::from_millis(3));
        http.response(200);
        (http.clients, http.paired) = (2, 1);
        (http.bytes_to_node, http.bytes_to_client) = (12, 24);
    }
    first.http.refused(Refusal::NoNode);
    second.request(Method::Bye, Leg::Internal, Transport::Tcp, 0);
    for status in [100, 180, 200, 200, 486] {
        second.response(status, Leg::Internal, Transport::Tcp, 47 * usize::from(status == 180));
        second.from_node(key, status);
    }
    second.dropped(DropReason::NoNode);
    second.remembered_calls(Some(3));
    let load = |scale| Load {
        datagrams: 10 * scale,
        batches: scale,
        busy: Duration::from_millis(1500 * scale),
        age: Duration::from_millis(2500 * (scale - 1)),
        connections: scale,
        ..Load::default()
    };
    let mut residence =
        Residence { count: 8, sum: Duration::from_micros(80), ..Residence::default() };
    residence.at_most = [1, 2, 3, 4, 5, 6, 7, 7, 7, 7, 7, 7, 7, 8];
    residence.p99 = Duration::from_nanos(123_456);
    let mut scrape = Scrape {
        now: Time::from_millis(60_500),
        process: Process {
            name: "Trunkline",
            version: "0.1.0",
            cpu_percent: 3,
            resident_bytes: 123_456,
            epoch_ms: 1_485_956_000_000,
            is_stopping: false,
        },
        snapshot: &snapshot,
        registry: &registry,
        shards: &[(&first, load(1)), (&second, load(2))],
        residence: &residence,
        certificates: &[Certificate { alias: "lb".to_owned(), not_after: 0 }],
        beats: Beats { rmi: 3, ..Beats::default() },
    };
    change(&mut scrape);
    show(&scrape)
}

#[test]
fn lbstat_has_the_originals_members_in_their_order_and_ours_behind() {
    let text = with_scrape(|_| {}, lbstat);
    let want = concat!(
        r#"{"Metrics":{"releaseName":"Trunkline","releaseVersion":"0.1.0","activeNodes":2,"#,
        r#""JvmCpuUsage":3,"JvmHeapSize":123456,"NumberOfActiveHttpConnections":4,"#,
        r#""NumberOfActiveSipConnections":3,"NumberOfActiveSmppConnections":0,"#,
        r#""NumberOfBytesTransferred":247,"NumberOfHttpBytesToClient":48,"NumberOfHttpBytesToServer":24,"#,
        r#""NumberOfHttpRequests":2,"NumberOfRequestsProcessed":3,"NumberOfResponsesProcessed":5,"#,
        r#""NumberOfSmppBytesToClient":0,"NumberOfSmppBytesToServer":0,"#,
        r#""NumberOfSmppRequestsToClient":0,"NumberOfSmppRequestsToServer":0,"NumberOfActiveCalls":5,"#,
        r#""NumberOfRequestsProcessedByMethod":{"REGISTER":0,"INVITE":1,"ACK":1,"BYE":1,"CANCEL":0,"#,
        r#""MESSAGE":0,"INFO":0,"SUBSCRIBE":0,"NOTIFY":0,"UPDATE":0,"PUBLISH":0,"REFER":0,"PRACK":0,"#,
        r#""OPTIONS":0,"OTHER":0},"NumberOfResponsesProcessedByStatusCode":{"1XX":2,"2XX":2,"3XX":0,"#,
        r#""4XX":1,"5XX":0,"6XX":0,"7XX":0,"8XX":0,"9XX":0},"NumberOfMessagesDropped":{"malformed":0,"#,
    );
    assert_eq!(text.get(..want.len()), Some(want));
    let end = r#""ResidenceMicros":{"p50":0,"p99":123,"p999":0,"max":0},"UptimeSeconds":60,"FiguresAgeMillis":2500}}"#;
    assert!(text.ends_with(end), "{text}");
    let parsed: serde_json::Value = serde_json::from_str(&text).unwrap();
    let metrics = &parsed["Metrics"];
    assert_eq!(metrics["NumberOfMessagesDropped"]["no_node"], 1);
    assert_eq!(metrics["NumberOfHttpRequestsProcessedByMethod"]["POST"], 2);
    assert_eq!(metrics["NumberOfHttpRequestsProcessedByMethod"]["GET"], 0);
    assert_eq!(metrics["NumberOfHttpResponsesProcessedByStatusCode"]["2XX"], 2);
    assert_eq!(metrics["NumberOfHttpResponsesProcessedByStatusCode"]["5XX"], 0);
}

/// `http-smpp-registry.md` 4.1: "routable nodes of the latest context, v4 + v6".
#[test]
fn active_nodes_are_the_live_ones_of_the_latest_version() {
    use crate::balance::testing::{node, node_at, snapshot};
    use crate::node::Bad;
    let [mut leaving, mut bad] = [2, 3].map(|it| node_at(node(it).ip, 1));
    (leaving.graceful, bad.bad) = (true, Some(Bad::Silence));
    let v6 = node_at("fd00::4".parse().unwrap(), 1);
    let old = node(1);
    for (nodes, want) in [
        (vec![], 0),
        (vec![old.clone()], 1),
        (vec![old, leaving.clone(), bad, v6], 3),
        (vec![leaving], 1),
    ] {
        let table = snapshot(2, nodes);
        let both = with_scrape(
            |_| {},
            |it| {
                let scrape = Scrape { snapshot: &table, ..*it };
                [lbstat(&scrape), lbinfo(&scrape)]
            },
        );
        let [stat, info] = both.map(|it| serde_json::from_str::<serde_json::Value>(&it).unwrap());
        assert_eq!(stat["Metrics"]["activeNodes"], want);
        let listed =
            ["nodesIPv4", "nodesIPv6"].map(|it| info["Nodes info"][it].as_array().unwrap().len());
        assert_eq!(listed.iter().sum::<usize>(), want);
    }
}

#[test]
fn an_algorithm_without_memory_has_minus_one_call() {
    let memoryless = Counters::default();
    let shards = [(&memoryless, Load::default())];
    let text = with_scrape(|_| {}, |it| lbstat(&Scrape { shards: &shards, ..*it }));
    assert!(text.contains(r#""NumberOfActiveCalls":-1,"#), "{text}");
}

#[test]
fn lbinfo_has_the_originals_shape() {
    let text = with_scrape(|_| {}, lbinfo);
    let key = beat(N1).key().0;
    let want = concat!(
        r#"{"Nodes info":{"nodesIPv4":[{"hostName":"n\"1\\","ip":"10.0.0.1","timeStamp":1485956000007,"#,
        r#""properties":{"hostname":"n\"1\\\n","ip":"10.0.0.1","udpPort":"5060"},"#,
        r#""gracefulShutdown":false,"bad":false,"failCounter":{"value":1},"weightIndex":0,"#,
        r#""requestNumberWithoutResponse":{"value":0},"lastTimeResponse":{"value":1485956000007},"#,
        r#""lastTimeError":{"value":1485956000007},"key":""#,
    );
    assert_eq!(text.get(..want.len()), Some(want));
    let parsed: serde_json::Value = serde_json::from_str(&text).unwrap();
    let nodes = &parsed["Nodes info"];
    assert_eq!(nodes["nodesIPv4"][0]["key"], format!("{key:016x}"));
    assert_eq!(nodes["nodesIPv6"][0]["hostName"], "n2");
    assert_eq!(nodes["smppRemoteServers"], serde_json::json!([]));
    assert_eq!(parsed["fingerprint"].as_str().map(str::len), Some(16));
    let print = with_scrape(|_| {}, |it| format!("{:016x}", it.snapshot.fingerprint()));
    assert_eq!(parsed["fingerprint"], print);
}

#[test]
fn health_fails_only_while_stopping() {
    let (code, text) = with_scrape(|_| {}, health);
    assert_eq!((code, text.as_str()), (200, r#"{"status":"ok","nodes":2,"eligibleNodes":2}"#));
    let (code, _) = with_scrape(|it| it.process.is_stopping = true, health);
    assert_eq!(code, 503);
    let empty = Snapshot::default();
    let (code, text) = with_scrape(|_| {}, |it| health(&Scrape { snapshot: &empty, ..*it }));
    assert_eq!(
        (code, text.as_str()),
        (200, r#"{"status":"no nodes","nodes":0,"eligibleNodes":0}"#)
    );
}

#[test]
fn metrics_show_every_figure() {
    let text = with_scrape(|_| {}, metrics);
    let key = format!("{:016x}", beat(N1).key().0);
    let node = format!(r#"node="{key}",name="n\"1\\",version="0""#);
    let rows = [
        r#"trunkline_sip_messages_total{leg="external",transport="udp",kind="request"} 2"#
            .to_owned(),
        r#"trunkline_sip_messages_total{leg="internal",transport="tcp",kind="response"} 5"#.into(),
        r#"trunkline_sip_requests_total{method="INVITE",leg="external"} 1"#.into(),
        r#"trunkline_sip_requests_total{method="OTHER",leg="internal"} 0"#.into(),
        r#"trunkline_sip_responses_total{class="2xx",code="200"} 2"#.into(),
        r#"trunkline_sip_responses_total{class="4xx",code="486"} 1"#.into(),
        r#"trunkline_sip_dropped_total{reason="no_node"} 1"#.into(),
        r#"trunkline_sip_dropped_total{reason="stopping"} 0"#.into(),
        "trunkline_sip_content_bytes_total 247".into(),
        "trunkline_calls 5".into(),
        r#"trunkline_http_requests_total{method="POST"} 2"#.into(),
        r#"trunkline_http_responses_total{class="2xx",code="200"} 2"#.into(),
        r#"trunkline_http_refused_total{reason="no_node"} 1"#.into(),
        r#"trunkline_http_content_bytes_total{to="client"} 48"#.into(),
        "trunkline_http_connections 4".into(),
        format!("trunkline_http_node_requests_total{{{node}}} 2"),
        format!(r#"trunkline_http_node_responses_total{{{node},class="2xx"}} 2"#),
        format!(r#"trunkline_http_node_seconds_bucket{{{node},le="0.002"}} 0"#),
        format!(r#"trunkline_http_node_seconds_bucket{{{node},le="0.005"}} 2"#),
        format!("trunkline_http_node_seconds_count{{{node}}} 2"),
        r#"trunkline_nodes{state="eligible"} 2"#.into(),
        r#"trunkline_nodes{state="down"} 0"#.into(),
        r#"trunkline_node_changes_total{change="added",reason=""} 2"#.into(),
        r#"trunkline_node_changes_total{change="removed",reason="silent"} 0"#.into(),
        format!(r#"trunkline_node_state{{{node},ip="10.0.0.1",state="eligible"}} 1"#),
        format!("trunkline_node_calls_total{{{node}}} 1"),
        format!("trunkline_node_requests_total{{{node}}} 2"),
        format!(r#"trunkline_node_responses_total{{{node},class="1xx"}} 2"#),
        r#"trunkline_shard_datagrams_total{shard="1"} 20"#.into(),
        r#"trunkline_shard_busy_seconds_total{shard="0"} 1.5"#.into(),
        r#"trunkline_shard_figures_age_seconds{shard="0"} 0"#.into(),
        r#"trunkline_shard_figures_age_seconds{shard="1"} 2.5"#.into(),
        r#"trunkline_residence_seconds_bucket{le="0.000005"} 1"#.into(),
        r#"trunkline_residence_seconds_bucket{le="1"} 8"#.into(),
        r#"trunkline_residence_seconds_bucket{le="+Inf"} 8"#.into(),
        "trunkline_residence_seconds_sum 0.00008".into(),
        "trunkline_residence_seconds_count 8".into(),
        r#"trunkline_build_info{name="Trunkline",version="0.1.0"} 1"#.into(),
    ];
    let lines: BTreeSet<&str> = text.lines().collect();
    for row in &rows {
        assert!(lines.contains(row.as_str()), "no {row} in\n{text}");
    }
}

#[test]
fn metrics_are_what_prometheus_reads() {
    let text = with_scrape(|_| {}, metrics);
    assert!(text.ends_with('\n'));
    let (mut families, mut samples) = (BTreeSet::new(), BTreeSet::new());
    let (mut name, mut kind, mut bucket) = ("", "", 0.0);
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            name = help.split_once(' ').unwrap().0;
            assert!(families.insert(name), "two families {name}");
            let declared = lines.next().unwrap().strip_prefix("# TYPE ").unwrap();
            kind = declared.strip_prefix(name).unwrap().trim_start();
            assert!(matches!(kind, "counter" | "gauge" | "histogram"), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
            bucket = 0.0;
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap();
        let value: f64 = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
        let (sample, labels) = series.split_once('{').unwrap_or((series, "}"));
        let suffix = sample.strip_prefix(name).unwrap_or_else(|| panic!("stray: {line}"));
        let allowed: &[&str] =
            if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
        assert!(allowed.contains(&suffix), "{line}");
        assert!(sample.bytes().all(|it| it.is_ascii_lowercase() || it == b'_'), "{line}");
        check_labels(labels, line);
        assert!(samples.insert(series), "twice: {line}");
        if suffix == "_bucket" {
            assert!(value >= bucket, "not cumulative: {line}");
            bucket = value;
        }
    }
    assert!(families.len() > 20);
}

/// `name="escaped text"`, commas between, a brace at the end.
fn check_labels(labels: &str, line: &str) {
    let mut rest = labels;
    while rest != "}" {
        let (name, text) = rest.split_once("=\"").unwrap_or_else(|| panic!("no label: {line}"));
        assert!(!name.is_empty() && name.bytes().all(|it| it.is_ascii_lowercase()), "{line}");
        let mut escaped = false;
        let end = text.find(|it| {
            let ends = it == '"' && !escaped;
            assert!(!escaped || matches!(it, '\\' | '"' | 'n'), "unknown escape: {line}");
            escaped = it == '\\' && !escaped;
            ends
        });
        rest = &text[end.unwrap_or_else(|| panic!("no end: {line}")) + 1..];
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
}

#[test]
fn statuses_that_are_none_do_no_harm() {
    let mut it = Counters::default();
    for status in [0, 99, 100, 699, 999, 1000, u16::MAX] {
        it.response(status, Leg::External, Transport::Udp, 0);
        it.from_node(NodeKey(1), status);
    }
    assert_eq!(it.codes.iter().collect::<Vec<_>>(), [(100, 1), (699, 1), (999, 5)]);
    assert_eq!(it.node(NodeKey(1)).responses, [1, 0, 0, 0, 0, 1]);
}

#[test]
fn rows_of_nodes_are_bounded_and_keep_apart() {
    let mut it = Counters::default();
    for round in 0..3 {
        for key in 0..ROWS_MAX as u64 + 10 {
            it.to_node(NodeKey(key * 64), round == 0); // all in one place of the cache
        }
    }
    assert_eq!(it.nodes.rows.len(), ROWS_MAX);
    assert_eq!((it.nodes.gone.requests, it.nodes.gone.calls), (30, 10));
    for key in [0, 1, ROWS_MAX as u64 - 1] {
        assert_eq!(it.node(NodeKey(key * 64)).requests, 3, "{key}");
    }
}

#[test]
fn the_dead_are_forgotten_once_they_are_many_and_nothing_is_lost() {
    let mut registry = registry();
    registry.handle_announcement(Time::ZERO, beat(N1)).unwrap();
    let snapshot = registry.snapshot().unwrap();
    let key = beat(N1).key();
    let mut it = Counters::default();
    it.to_node(key, true);
    for dead in 1..=10 {
        it.to_node(NodeKey(dead), true);
    }
    it.forget_dead(&snapshot);
    assert_eq!(it.nodes.rows.len(), 11, "few: they may come back");
    for dead in 1..=ROWS_SPARE as u64 + 1 {
        it.to_node(NodeKey(dead), false);
    }
    it.forget_dead(&snapshot);
    assert_eq!((it.nodes.rows.len(), it.node(key).requests), (1, 1));
    assert_eq!((it.nodes.gone.requests, it.nodes.gone.calls), (75, 10));
    it.to_node(key, false);
    assert_eq!(it.node(key).requests, 2);
}

#[test]
fn merging_adds_everything() {
    let mut one = Counters::default();
    one.request(Method::Info, Leg::Internal, Transport::Wss, 7);
    one.response(503, Leg::External, Transport::Tls, 9);
    one.dropped(DropReason::Rate);
    one.to_node(NodeKey(5), true);
    one.from_node(NodeKey(5), 200);
    one.remembered_calls(Some(4));
    let mut sum = Counters::default();
    for _ in 0..3 {
        sum.merge(&one);
    }
    assert_eq!(sum.requests(Method::Info), 3);
    assert_eq!(sum.messages(Transport::Wss, Leg::Internal), (3, 0));
    assert_eq!(sum.messages(Transport::Tls, Leg::External), (0, 3));
    assert_eq!(sum.codes.class(5), 3);
    assert_eq!(sum.drops(DropReason::Rate), 3);
    assert_eq!((sum.content_bytes, sum.remembered_calls), (48, Some(12)));
    let want = NodeCounters { calls: 3, requests: 3, responses: [0, 3, 0, 0, 0, 0] };
    assert_eq!(sum.node(NodeKey(5)), want);
}

#[test]
fn smpp_figures_are_in_all_three() {
    let session = smpp::SmppSession {
        source: "127.0.0.1:40001".parse().unwrap(),
        state: "BOUND",
        is_secure: true,
        server: Some("127.0.0.1:10021".parse().unwrap()),
        outstanding: 2,
        outstanding_to_client: 1,
    };
    let smpp = smpp::SmppCounters {
        requests_to_server: 9,
        requests_to_client: 1,
        bytes_to_server: 798,
        bytes_to_client: 198,
        sessions: 3,
        providers: 3,
        servers: vec![("127.0.0.1:10021".parse().unwrap(), 3)],
        shown: vec![session; 700],
        ..smpp::SmppCounters::default()
    };
    let mut counters = Counters { smpp, ..Counters::default() };
    counters.smpp.received(protocols::smpp::Command::SUBMIT_SM);
    counters.smpp.received(protocols::smpp::Command::SUBMIT_SM.response());
    counters.smpp.dropped(smpp::SmppDrop::Unexpected);
    let mut waiting = Counters::default();
    waiting.smpp.shown = vec![smpp::SmppSession { state: "OPEN", server: None, ..session }; 700];
    let shards = [(&counters, Load::default()), (&waiting, Load::default())];
    let show = |page: fn(&Scrape<'_>) -> String| {
        with_scrape(|_| {}, |it| page(&Scrape { shards: &shards, ..*it }))
    };
    let stat: serde_json::Value = serde_json::from_str(&show(lbstat)).unwrap();
    let stat = &stat["Metrics"];
    for (member, want) in [
        ("NumberOfActiveSmppConnections", 6),
        ("NumberOfSmppBytesToServer", 798),
        ("NumberOfSmppBytesToClient", 198),
        ("NumberOfSmppRequestsToServer", 9),
        ("NumberOfSmppRequestsToClient", 1),
    ] {
        assert_eq!(stat[member], want, "{member}");
    }
    assert_eq!(stat["NumberOfSmppRequestsProcessedByCommandId"]["submit_sm"], 1);
    assert_eq!(stat["NumberOfSmppResponsesProcessedByCommandId"]["submit_sm"], 1);
    let servers = r#""smppRemoteServers":[{"hostName":"SMPP server 0","ip":"127.0.0.1","properties":{"smppPort":"10021"},"boundConnections":3}]"#;
    let info = show(lbinfo);
    assert!(info.contains(servers), "{info}");
    let session = r#""smppSessions":[{"source":"127.0.0.1:40001","state":"BOUND","secure":true,"server":"127.0.0.1:10021","outstanding":2,"outstandingToClient":1},{"#;
    assert!(info.contains(session), "{info}");
    let shown: serde_json::Value = serde_json::from_str(&info).unwrap();
    let shown = shown["smppSessions"].as_array().unwrap();
    assert_eq!(shown.len(), smpp::SmppCounters::SHOWN_MAX, "a page for people");
    assert_eq!(shown[999]["server"], serde_json::Value::Null);
    let text = show(metrics);
    for line in [
        "trunkline_smpp_forwarded_bytes_total{towards=\"server\"} 798",
        "trunkline_smpp_pdus_total{command=\"submit_sm\",kind=\"response\"} 1",
        "trunkline_smpp_dropped_total{reason=\"unexpected\"} 1",
        "trunkline_smpp_sessions 3",
        "trunkline_smpp_bound{server=\"127.0.0.1:10021\"} 3",
    ] {
        assert!(text.contains(&format!("\n{line}\n")), "{line} in\n{text}");
    }
}
