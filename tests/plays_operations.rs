//! What an operator sees: start, stop, configuration files of three generations, reload, statistics
//! (`sip.md` 1, 6.1; `http-smpp-registry.md` 1.12, 4, 5). Numbers in comments are items of `sip.md` 6.

use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tests::{
    Balancer, JsonBeats, Message, Node, PATIENCE, Peer, Setup, Transport, first_to_get, wait_for,
    who_got,
};
use tools::agent::{self, AgentConfig, Polling};
use tools::caller::{CallerConfig, Pace};
use tools::node::NodeConfig;

/// One call from start to end through whatever node there is.
fn call(lb: &Balancer) {
    let caller = lb.caller("alice");
    let mut dialog = caller.call("sip:bob@example.com");
    caller.exchange(&mut dialog, "BYE");
}

#[test] // 1
fn it_starts_and_stops_with_the_guides_words_and_leaves_no_port_bound() {
    let setup = Setup::two_entry()
        .set("shutdownTimeout", "100")
        .set("httpPort", "HTTP")
        .set("smppPort", "SMPP");
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let lb = setup.start();
        let ports = format!(
            "Sip Balancer started on external address 127.0.0.1, external port : {}, internalPort : {}",
            lb.external.port(),
            lb.internal.port()
        );
        lb.wait_log(&ports);
        let opened = [lb.http(), lb.smpp()].map(|it| it.port());
        assert_in_order(
            &lb,
            &[
                "Node registry starting...",
                "Node expiration task created",
                "Node registry started",
                "Release ID: Trunkline ",
                &ports,
                &format!("HTTP LB listening on port {}", opened[0]),
                &format!("Load balancer statistic on port : {}", lb.statistic.port()),
                &format!("SMPP Load Balancer started at 0.0.0.0 : {}", opened[1]),
            ],
        );
        let _nodes = lb.answering_nodes(1);
        call(&lb);
        let loaded = "Balancer algorithm CallIDAffinityBalancerAlgorithm loaded succesfully for cluster version = 0";
        lb.wait_log("Grouped failover is set to false");
        let idle = "Call Idle Time is 500 seconds. Inactive calls will be evicted.";
        assert_in_order(&lb, &[loaded, idle, "Grouped failover is set to false"]);
        lb.signal(signal);
        assert!(lb.wait_exit().success(), "{signal}");
        assert_in_order(
            &lb,
            &[
                "Stopping the sip forwarder",
                "Removing the following Listening Point",
                "Removing the sip provider",
                "Sip forwarder SIP stack stopped",
                "Stopping the http forwarder",
                "Stopping the SMPP balancer",
                "SMPP Load Balancer stopped at 0.0.0.0",
                "Unregistering the node registry",
                "Unregistering the node adapter",
                "Stopping the node registry",
                "Node Expiration Task cancelled true",
                "Node registry stopped.",
            ],
        );
        for address in [lb.external, lb.internal, lb.statistic, lb.http(), lb.smpp()] {
            assert!(
                UdpSocket::bind(address).is_ok() && TcpListener::bind(address).is_ok(),
                "{address}"
            );
        }
    }
}

/// Waits for the last of these lines; then all are there, and in this order.
fn assert_in_order(lb: &Balancer, lines: &[&str]) {
    lb.wait_log(lines[lines.len() - 1]);
    let log = lb.log();
    let places: Vec<_> = lines.iter().map(|it| log.find(it)).collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{places:?} in\n{log}");
}

#[test]
fn calls_go_on_while_it_drains_and_a_second_signal_ends_it_at_once() {
    let lb = Setup::two_entry().set("shutdownTimeout", "60000").start();
    let nodes = lb.answering_nodes(1);
    let caller = lb.caller("alice");
    let mut dialog = caller.call("sip:bob@example.com");
    lb.signal(Signal::SIGTERM);
    lb.wait_log("GracefulShutdown was called, stopping the Load Balancer into 60000 ms.");
    caller.exchange(&mut dialog, "BYE");
    assert_eq!(who_got(&nodes, &dialog.call_id, "BYE"), [0]);
    assert!(lb.exit_status().is_none());
    lb.signal(Signal::SIGTERM);
    lb.wait_exit();
}

#[test]
fn lbstop_answers_then_stops_and_asks_for_the_password_if_told() {
    let lb = Setup::two_entry()
        .set("securityRequired", "true")
        .set("login", "daddy")
        .set("password", "123456")
        .set("shutdownTimeout", "100")
        .start();
    let (status, _) = lb.get("/lbstop?login=daddy&password=guess");
    assert!(status.contains("401"), "{status}");
    assert!(lb.exit_status().is_none());
    lb.get("/lbstop?login=daddy&password=123456");
    assert!(lb.wait_exit().success());
}

#[test] // 5: G1
fn the_guides_sample_file_starts_as_it_stands() {
    let lb = Setup::file(|it| {
        include_str!("data/config/guide-sample.properties")
            .replace("externalPort=5060", &format!("externalPort={}", it.external))
            .replace("internalPort=5065", &format!("internalPort={}", it.internal))
            .replace("statisticPort=2006", &format!("statisticPort={}", it.statistic))
    })
    .start();
    lb.wait_log("TelestaxProxyAlgorithm");
    let nodes = lb.answering_nodes(2);
    call(&lb);
    let mut caller = lb.caller("alice").over_tcp();
    caller.transport = tests::Transport::Tcp; // externalPort opens both
    caller.call("sip:bob@example.com");
    // Two sources may meet two shards, which take turns each for itself.
    assert_eq!(nodes.iter().map(|it| it.count("INVITE")).sum::<usize>(), 2);
}

/// A file with these ports of its own replaced by free ones.
fn on_free_ports(text: &str, ports: &[(&str, u16)]) -> String {
    ports.iter().fold(text.to_owned(), |text, (own, free)| {
        let name = own.trim_end_matches(|it: char| it.is_ascii_digit());
        assert_eq!(text.matches(own).count(), 1, "{own}");
        text.replace(own, &format!("{name}{free}"))
    })
}

fn is_open(address: SocketAddr) -> bool {
    TcpStream::connect(address).is_ok()
}

#[test] // 5: G2
fn a_second_generation_file_is_served_as_it_says() {
    let lb = Setup::file(|it| {
        let ports = [
            ("\nexternalPort=5060", it.external),
            ("\nexternalTcpPort=5070", it.spare),
            ("\nexternalTlsPort=5061", it.secure[0]),
            ("\ninternalUdpPort=5065", it.internal),
            ("\ninternalTcpPort=5075", it.spare_internal),
            ("\nhttpPort=2080", it.web[0]),
            ("\nsmppPort=2776", it.smpp[0]),
            ("\nrmiRegistryPort=2000", it.heartbeats[0]),
            ("\nrmiRemoteOjectPort=2001", it.heartbeats[1]), // as it was misspelt
            ("\nstatisticPort=2006", it.statistic),
        ];
        on_free_ports(include_str!("data/config/lb-g2.properties"), &ports)
    })
    .start();
    let at = |ip: [u8; 4], port: u16| SocketAddr::from((ip, port));
    let (outside, inside) = ([127, 0, 0, 1], [127, 0, 0, 2]);
    let [registry, object, _] = lb.addresses.heartbeats;
    for port in [lb.addresses.spare, registry, object, lb.http().port(), lb.smpp().port()] {
        assert!(is_open(at(outside, port)), "{port}: {}", lb.log());
    }
    assert!(is_open(at(inside, lb.addresses.spare_internal)));
    assert!(!is_open(at(outside, lb.addresses.external)), "the key of TCP wins");
    assert!(UdpSocket::bind(lb.internal).is_ok(), "the node side is elsewhere");
    lb.wait_log(&format!("No listener on 127.0.0.1:{} for TLS", lb.addresses.secure[0]));

    // Of a newer version than the file's own servers, which are in networks for examples.
    let nodes = ["n0", "n1"].map(|name| {
        let mut node = Node::bind(name).property("version", "1");
        node.announce(&[at(inside, lb.internal.port())]);
        node
    });
    lb.wait_nodes(2);
    let older = lb.lbinfo()["olderVersions"].to_string();
    assert!(older.contains("ExtraServerNode0-192.0.2.31:21"), "{older}");
    let caller = lb.caller("alice");
    let mut homes = Vec::new();
    for _ in 0..4 {
        caller.send(&caller.request("INVITE", "sip:bob@example.com"));
        let (home, got) = first_to_get(&nodes, "INVITE");
        assert!(got.vias()[0].contains("192.0.2.20:5065"), "{:?}", got.vias());
        assert!(got.record_routes()[0].contains("192.0.2.20:5065"), "{:?}", got.record_routes());
        assert!(got.record_routes()[1].contains("192.0.2.10:5060"), "{:?}", got.record_routes());
        // As the IP load balancer in front of the node side would hand it over.
        nodes[home].send_to(at(inside, lb.internal.port()), &got.reply(200, "OK"));
        caller.expect_in(got.call_id(), "200 INVITE");
        homes.push(home);
    }
    assert!(homes.iter().all(|it| *it == homes[0]), "one caller, one node: {homes:?}");
}

#[test] // 5: G3
fn a_third_generation_file_is_served_as_it_says() {
    let lb = Setup::file(|it| {
        let text = include_str!("data/config/lb-g3.xml");
        let (external, internal) = text.split_once("</external>").unwrap();
        let outside = [
            ("<statisticPort>2007", it.statistic),
            ("<rmiRegistryPort>2000", it.heartbeats[0]),
            ("<heartbeatPort>2610", it.heartbeats[2]),
            ("<udpPort>", it.external),
            ("<wsPort>5082", it.secure[1]),
            ("<ipv6UdpPort>5060", it.external),
        ];
        let inside = [
            ("<udpPort>5065", it.internal),
            ("<tcpPort>5065", it.internal),
            ("<ipv6UdpPort>5065", it.internal),
            ("<httpPort>2080", it.web[0]),
            ("<smppPort>2776", it.smpp[0]),
        ];
        let external = on_free_ports(external, &outside);
        format!("{external}</external>{}", on_free_ports(internal, &inside))
    })
    .start();
    assert!([lb.internal, lb.beats(), lb.http(), lb.smpp()].into_iter().all(is_open));
    assert!(!is_open(lb.external), "0 is closed");
    assert!(!is_open(lb.rmi()), "its heartbeats are HTTP");

    let node = Node::bind("n4");
    node.answers_calls();
    let port = node.address().port().to_string();
    let words = [("hostName", "n4"), ("ip", "127.0.0.1"), ("udpPort", &*port)];
    let _beats = JsonBeats::start(lb.beats(), &words);
    let mut node_v6 = Node::bind_v6("n6");
    node_v6.answers_calls();
    node_v6.announce(&[lb.v6(lb.internal.port())]);
    lb.wait_nodes(2);
    let caller = lb.caller("alice");
    caller.send(&caller.request("INVITE", "sip:bob@example.com"));
    let ok = caller.expect("200 INVITE");
    assert!(ok.record_routes()[0].contains("192.0.2.20:5065"), "{:?}", ok.record_routes());
    assert!(ok.record_routes()[1].contains("192.0.2.10:5060"), "{:?}", ok.record_routes());
    lb.caller_over(Transport::Ws, "browser").ask("MESSAGE", "sip:bob@example.com");
    Peer::bind_v6("carol").through(lb.v6(lb.external.port())).ask("MESSAGE", "sip:bob@example.com");
    assert_eq!([node.count("MESSAGE"), node_v6.count("MESSAGE")], [1, 1]);
    for agent in ["SIPVicious", "x bad & LOUD y"] {
        let blocked = caller.request("MESSAGE", "sip:bob@example.com").with("User-Agent", agent);
        caller.send(&blocked);
    }
    lb.wait_dropped("blocked", 2);
    assert!(lb.get("/lbstop").0.contains("401"));
    lb.get("/lbstop?login=daddy&password=123456");
    assert!(lb.wait_exit().success());
}

#[test] // 5: G3
fn an_xml_file_starts_under_any_file_name() {
    let lb = Setup::file(|it| {
        format!(
            "\u{feff}\n<load-balancer-properties><common><host>127.0.0.1</host><apiPort>{}</apiPort>\
             <jmxHtmlAdapterPort>8000</jmxHtmlAdapterPort></common>\
             <sip><external><udpPort>{}</udpPort><tcpPort>0</tcpPort></external>\
             <internal><udpPort>{}</udpPort></internal>\
             <algorithm><algorithmClass>org.mobicents.tools.sip.balancer.UserBasedAlgorithm</algorithmClass>\
             <sipHeaderAffinityKey>To</sipHeaderAffinityKey></algorithm></sip>\
             </load-balancer-properties>",
            it.statistic, it.external, it.internal
        )
    })
    .start();
    let _nodes = lb.answering_nodes(2);
    call(&lb);
}

#[test]
fn the_command_line_of_the_original_and_its_overrides_are_understood() {
    let spare = Setup::two_entry().set("externalUdpPort", "SPARE").argument("-DlogLevel=DEBUG");
    let lb = spare.start();
    assert_eq!(lb.addresses.spare.to_string(), lb_port(&lb));
    let fixed = lb.addresses.external; // nobody listens there on UDP: free for an override
    let lb = Setup::two_entry()
        .set("externalTcpPort", "0")
        .argument(&format!("-DexternalUdpPort={fixed}"))
        .argument("-Dshards=1")
        .start();
    assert_eq!(fixed.to_string(), lb_port(&lb));
}

#[test]
fn a_log4j_file_says_where_lines_go_and_what_they_look_like() {
    let directory = std::env::temp_dir().join(format!("trunkline-log4j-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let [settings, log] = ["log4j.xml", "logs/lb.log"].map(|it| directory.join(it));
    let text = format!(
        r#"<log4j:configuration xmlns:log4j="http://jakarta.apache.org/log4j/">
        <appender name="CONSOLE" class="org.apache.log4j.ConsoleAppender"/>
        <appender name="FILE" class="org.apache.log4j.RollingFileAppender">
          <param name="File" value="{}"/><param name="MaxFileSize" value="500"/>
          <param name="MaxBackupIndex" value="9"/>
          <layout class="org.apache.log4j.PatternLayout">
            <param name="ConversionPattern" value="%-5p|%t|%m%n"/>
          </layout>
        </appender>
        <root><level value="debug"/><appender-ref ref="CONSOLE"/><appender-ref ref="FILE"/></root>
        </log4j:configuration>"#,
        log.display()
    );
    std::fs::write(&settings, text).unwrap();
    let lb =
        Setup::two_entry().argument(&format!("-DlogConfigFile={}", settings.display())).start();
    assert!(lb.log().contains(" INFO main - Node registry started\n"), "{}", lb.log());
    lb.signal(Signal::SIGTERM);
    assert!(lb.wait_exit().success());
    let read = |number: usize| {
        let name = if number == 0 { "lb.log".to_owned() } else { format!("lb.log.{number}") };
        std::fs::read_to_string(directory.join("logs").join(name)).unwrap_or_default()
    };
    let pieces: Vec<String> = (0..=9).rev().map(read).collect();
    let whole = pieces.concat();
    assert!(whole.contains("\nINFO |main|Node registry started\n"), "{whole}");
    assert!(whole.ends_with("\nINFO |main|Node registry stopped.\n"), "{whole}");
    assert!(pieces.iter().filter(|it| it.len() >= 500).count() >= 2, "{pieces:#?}");
    std::fs::remove_dir_all(directory).unwrap();
}

/// As in a chroot that has neither. The executors' library looks the CPUs up there, and panics.
#[test]
fn without_proc_and_sys_it_serves_and_says_what_it_misses() {
    const ENTER: &str =
        "mount -t tmpfs none /sys && mount -t tmpfs none /proc && exec \"$0\" \"$@\"";
    let tried = std::process::Command::new("unshare").args(["--mount", "true"]).output();
    if !tried.is_ok_and(|it| it.status.success()) {
        assert!(std::env::var_os("CI").is_none(), "CI needs mount namespaces");
        eprintln!("SKIPPED: mount namespaces cannot be made here");
        return;
    }
    let lb = Setup::two_entry().through(&["unshare", "--mount", "sh", "-c", ENTER]).start();
    let misses = "/sys/devices/system/cpu cannot be read";
    assert!(lb.has_logged(misses) || lb.has_logged("io_uring is not allowed"), "{}", lb.log());
    let _nodes = lb.answering_nodes(1);
    call(&lb);
    assert_eq!(lb.stat("activeNodes"), 1);
    lb.signal(Signal::SIGTERM);
    assert!(lb.wait_exit().success());
}

/// The external port as the start line names it.
fn lb_port(lb: &Balancer) -> String {
    let log = lb.log();
    let after = log.split("external port : ").nth(1).unwrap_or_default().to_owned();
    after.chars().take_while(char::is_ascii_digit).collect()
}

#[test]
fn a_wrong_value_stops_the_start_with_file_line_and_key() {
    for (key, value) in [
        ("nodeTimeout", "soon"),
        ("nodeTimeout", "14"),
        ("externalUdpPort", "65536"),
        ("algorithmClass", "org.example.NoSuchAlgorithm"),
        ("sipHeaderAffinityExclusionPattern", "(unclosed"),
    ] {
        let (status, log) = Setup::two_entry().set(key, value).refused();
        assert!(!status.success(), "{key}={value}");
        assert!(log.contains(key) && log.contains("lb.properties"), "{key}={value}: {log}");
    }
    let (status, log) = Setup::file(|_| "<load-balancer-properties><common>".to_owned()).refused();
    assert!(!status.success(), "{log}");
    let (status, log) =
        Setup::two_entry().set("externalIpLoadBalancerAddress", "10.0.0.1").refused();
    assert!(
        !status.success() && log.contains("LoadBalancer"),
        "an address without any port: {log}"
    );
}

#[test]
fn an_unknown_key_is_a_warning_that_names_the_nearest_known_one() {
    let lb = Setup::two_entry().set("nodeTimeOut", "1000").set("javax.sip.STACK_NAME", "x").start();
    lb.wait_log("nodeTimeOut");
    let log = lb.log();
    let line = log.lines().find(|it| it.contains("nodeTimeOut")).unwrap();
    assert!(line.contains("nodeTimeout"), "{line}");
}

#[test]
fn two_balancers_do_not_share_a_port_by_accident() {
    let first = Setup::two_entry().start();
    let port = first.external.port().to_string();
    let (status, log) = Setup::two_entry().set("externalUdpPort", &port).refused();
    assert!(!status.success());
    assert!(log.contains(&port), "the taken port is named: {log}");
}

/// Whether a client of this name is blocked: after its request another one crosses.
fn is_blocked(lb: &Balancer, node: &Node, agent: &str) -> bool {
    let caller = lb.caller("x");
    caller.send(&caller.request("MESSAGE", "sip:bob@example.com").with("User-Agent", agent));
    let fence = caller.request("OPTIONS", "sip:bob@example.com");
    caller.send(&fence);
    node.expect_in(fence.call_id(), "OPTIONS");
    node.poll("MESSAGE").is_none()
}

#[test] // hot reload
fn a_changed_file_is_applied_on_sighup_or_by_itself_without_losing_a_packet() {
    let mut lb = Setup::two_entry().set("blocked-values", "badphone").start();
    let nodes = lb.nodes(1);
    assert!(is_blocked(&lb, &nodes[0], "badphone"));
    assert!(!is_blocked(&lb, &nodes[0], "otherphone"));

    let caller = lb.caller("alice");
    let mut sent = 0;
    lb.reload(&[("blocked-values", "otherphone")]);
    wait_for("the reload", || {
        caller.send(&caller.request("INFO", "sip:bob@example.com"));
        sent += 1;
        is_blocked(&lb, &nodes[0], "otherphone").then_some(())
    });
    assert!(!is_blocked(&lb, &nodes[0], "badphone"));
    wait_for("every INFO", || (nodes[0].count("INFO") == sent).then_some(()));
    lb.wait_log("Configuration file changed, applying changes.");

    let text = format!(
        "host=127.0.0.1\nexternalUdpPort={0}\nexternalTcpPort={0}\ninternalUdpPort={1}\ninternalTcpPort={1}\n\
         statisticPort={2}\nshards=1\nnodeTimeout=1500\nheartbeatInterval=20\nblocked-values=thirdphone\n",
        lb.external.port(),
        lb.internal.port(),
        lb.statistic.port()
    );
    lb.rewrite(&text); // and no signal
    wait_for("the change by itself", || is_blocked(&lb, &nodes[0], "thirdphone").then_some(()));
}

/// How often the process says that it applied a changed file.
fn reloads(lb: &Balancer) -> usize {
    lb.log().matches("Configuration file changed, applying changes.").count()
}

#[test] // hot reload
fn no_call_is_lost_while_the_file_is_read_again_and_again() {
    // Nobody must expire meanwhile, however slow the machine.
    let mut lb = Setup::two_entry().set("shards", "2").set("nodeTimeout", "60000").start();
    let nodes = (0..2).map(|_| {
        let mut node = NodeConfig::new("127.0.0.1:0".parse().unwrap(), Some(lb.internal));
        node.heartbeat_interval = Duration::from_millis(200);
        node
    });
    let agent =
        AgentConfig { nodes: nodes.collect(), callers: vec![], polling: Polling::Block, cpu: None };
    let agent = agent::start(agent).unwrap();
    lb.wait_nodes(2);
    let mut caller = CallerConfig::new(lb.external, Pace::Open(200.0));
    caller.hold = Duration::from_millis(200);
    agent.place(caller).unwrap();
    let more_calls = || {
        let completed = || agent.report().unwrap().calls.completed;
        let before = completed();
        wait_for("more calls", || (completed() >= before + 50).then_some(()));
    };
    more_calls();
    for turn in 1..=3 {
        lb.reload(&[("blocked-values", &format!("phone{turn}"))]);
        wait_for("the reload", || (reloads(&lb) >= turn).then_some(()));
        more_calls();
    }
    lb.change(&[("blocked-values", "lastphone")]); // and no signal
    wait_for("the change by itself", || (reloads(&lb) >= 4).then_some(()));
    more_calls();
    agent.stop_calls();
    let report = agent.wait(PATIENCE).unwrap();
    assert!(report.finished, "calls hang");
    assert_eq!((report.calls.failed_total(), report.misrouted()), (0, 0), "{report}");
    assert_eq!(lb.sum_of("trunkline_sip_dropped_total"), 0, "{}", lb.metrics());
}

#[test] // hot reload
fn a_broken_file_keeps_the_old_configuration_and_a_new_port_is_refused_by_name() {
    let mut lb = Setup::two_entry().set("blocked-values", "badphone").start();
    let nodes = lb.nodes(1);
    lb.reload(&[("blocked-values", "otherphone"), ("nodeTimeout", "never")]);
    lb.wait_log("Problem reloading configuration");
    assert!(is_blocked(&lb, &nodes[0], "badphone"));
    assert!(!is_blocked(&lb, &nodes[0], "otherphone"), "nothing of a broken file counts");

    lb.reload(&[
        ("nodeTimeout", "1500"),
        ("externalUdpPort", "9"),
        ("blocked-values", "thirdphone"),
    ]);
    wait_for("the rest of the file", || is_blocked(&lb, &nodes[0], "thirdphone").then_some(()));
    wait_for("the port by its name", || {
        let is_it = |line: &str| line.contains("externalUdpPort") && line.contains("restart");
        lb.log().lines().any(is_it).then_some(())
    });
}

#[test] // hot reload
fn the_key_of_an_algorithm_changes_at_run_time() {
    let mut lb = Setup::two_entry()
        .algorithm("UserBasedAlgorithm")
        .set("sipHeaderAffinityKey", "To")
        .start();
    let nodes = lb.answering_nodes(2);
    let caller = lb.caller("alice");
    for _ in 0..4 {
        caller.ask("MESSAGE", "sip:same@example.com");
    }
    let seen: Vec<usize> = nodes.iter().map(|it| it.count("MESSAGE")).collect();
    assert!(seen == [4, 0] || seen == [0, 4], "one user, one node: {seen:?}");
    lb.reload(&[("sipHeaderAffinityKey", "Call-ID")]);
    wait_for("a choice by Call-ID", || {
        caller.ask("INFO", "sip:same@example.com");
        nodes.iter().all(|it| it.count("INFO") > 0).then_some(())
    });
}

/// Each of them shows in what the process does, not only in its log.
#[test] // hot reload
fn what_the_file_says_of_nodes_is_applied_while_the_process_runs() {
    let mut lb = Setup::two_entry()
        .set("nodeTimeout", "600000")
        .set("responsesStatusCodeNodeRemoval", "503")
        .set("maxNumberResponsesWithError", "100")
        .start();
    let mut nodes = lb.answering_nodes(2);
    lb.reload(&[("logLevel", "DEBUG")]);
    lb.wait_log("Changed and applied: logLevel");
    nodes[0].set_property("load", "7");
    lb.wait_log("changed: load[] ->[7]");

    let caller = lb.caller("alice");
    lb.reload(&[("algorithmClass", "ActiveStandbyAlgorithm")]);
    wait_for("one node for all", || {
        let count = || nodes.iter().map(|it| it.count("MESSAGE")).collect::<Vec<_>>();
        let before = count();
        for _ in 0..3 {
            caller.ask("MESSAGE", "sip:bob@example.com");
        }
        let after = count();
        (after[0] - before[0] == 3 || after[1] - before[1] == 3).then_some(())
    });

    lb.reload(&[
        ("algorithmClass", "CallIDAffinityBalancerAlgorithm"),
        ("maxNumberResponsesWithError", "0"),
    ]);
    lb.wait_log("Changed and applied: algorithmClass, maxNumberResponsesWithError");
    nodes[1].answers(|it| if it.is("ACK") { vec![] } else { vec![it.reply(503, "No")] });
    wait_for("the first error to count", || {
        caller.send(&caller.request("INFO", "sip:bob@example.com"));
        lb.known().iter().any(|it| it.host_name == "n1" && it.is_bad).then_some(())
    });

    nodes[0].fall_silent();
    lb.reload(&[("nodeTimeout", "500")]);
    lb.wait_log("removed. Last timestamp: ");
    lb.wait_nodes(1);
    let server = Peer::bind("third-party");
    server.answers_calls();
    lb.reload(&[("staticNodes", &server.address().to_string())]);
    lb.wait_node("the static node", |it| it.host_name == "127.0.0.1");
    lb.reload(&[("staticNodes", "")]);
    lb.wait_log("removed: the configuration names it no longer");
}

#[test] // 6
fn statistics_count_what_crossed_in_the_originals_words() {
    let lb = Setup::two_entry().start();
    let nodes = lb.nodes(2);
    for node in &nodes {
        node.answers(|it| match it.method() {
            "ACK" => vec![],
            "INVITE" => {
                vec![it.reply(100, "Trying"), it.reply(180, "Ringing"), it.reply(200, "OK")]
            }
            _ => vec![it.reply(200, "OK")],
        });
    }
    let caller = lb.caller("alice").over_tcp();
    let invite = caller.request("INVITE", "sip:bob@example.com");
    let body = vec![b'v'; 247];
    let mut dialog = caller.call_with(&invite.with_body("application/sdp", body));
    caller.exchange(&mut dialog, "BYE");

    let metrics = lb.lbstat();
    let names: Vec<&str> = metrics.as_object().unwrap().keys().map(String::as_str).collect();
    let originals = [
        "releaseName",
        "releaseVersion",
        "activeNodes",
        "JvmCpuUsage",
        "JvmHeapSize",
        "NumberOfActiveHttpConnections",
        "NumberOfActiveSipConnections",
        "NumberOfActiveSmppConnections",
        "NumberOfBytesTransferred",
        "NumberOfHttpBytesToClient",
        "NumberOfHttpBytesToServer",
        "NumberOfHttpRequests",
        "NumberOfRequestsProcessed",
        "NumberOfResponsesProcessed",
        "NumberOfSmppBytesToClient",
        "NumberOfSmppBytesToServer",
        "NumberOfSmppRequestsToClient",
        "NumberOfSmppRequestsToServer",
        "NumberOfActiveCalls",
    ];
    for name in originals {
        assert!(names.contains(&name), "{name} is missing from {names:?}");
    }
    let (_, raw) = lb.get("/lbstat");
    let places: Vec<Option<usize>> =
        originals.iter().map(|it| raw.find(&format!("\"{it}\":"))).collect();
    assert!(places.is_sorted(), "in the original's order: {raw}");
    let number = |name: &str| metrics[name].as_i64().unwrap_or(-99);
    assert_eq!(number("NumberOfBytesTransferred"), 247);
    assert_eq!(number("NumberOfRequestsProcessed"), 3, "heartbeats do not count");
    assert_eq!(number("NumberOfResponsesProcessed"), 5, "the node's four and our own 100");
    assert_eq!(number("NumberOfActiveSipConnections"), 2);
    assert_eq!((number("activeNodes"), number("NumberOfActiveCalls")), (2, 1));
    assert_eq!(metrics["NumberOfRequestsProcessedByMethod"]["INVITE"].as_i64(), Some(1));
    assert_eq!(metrics["NumberOfResponsesProcessedByStatusCode"]["2XX"].as_i64(), Some(2));
    assert_eq!(metrics["NumberOfResponsesProcessedByStatusCode"]["1XX"].as_i64(), Some(3));
}

#[test]
fn metrics_are_prometheus_text_and_health_follows_the_nodes() {
    let lb = Setup::two_entry().start();
    let nodes = lb.answering_nodes(1);
    call(&lb);
    let metrics = lb.metrics();
    for line in metrics.lines().filter(|it| !it.is_empty() && !it.starts_with('#')) {
        let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value: {line}"));
        assert!(value.parse::<f64>().is_ok(), "{line}");
        let name = series.split('{').next().unwrap_or_default();
        assert!(metrics.contains(&format!("# TYPE {}", base(name))), "{line} has no TYPE");
    }
    assert!(metrics.contains("method=\"INVITE\""), "{metrics}");
    let (status, _) = lb.get("/health");
    assert!(status.contains("200"), "{status}");
    let (status, _) = lb.get("/nothing-here");
    assert!(status.contains("404"), "{status}");
    let (status, body) = lb.get("/LBSTAT");
    assert!(status.contains("200") && body.contains("Metrics"), "paths ignore case");
    drop(nodes);
}

/// Every message taken in is timed, once, whatever became of it and by whichever transport it came.
#[test]
fn the_histogram_of_residence_holds_every_message() {
    let start = Instant::now();
    let lb = Setup::two_entry().start();
    let nodes = lb.answering_nodes(1);
    call(&lb);
    let caller = lb.caller("bob").over_tcp();
    let mut dialog = caller.call("sip:carol@example.com");
    caller.exchange(&mut dialog, "BYE");
    let sum = |metrics: &str, family: &str| -> f64 {
        let is_it = |it: &&str| it.split(['{', ' ']).next() == Some(family);
        let rows = metrics.lines().filter(is_it);
        rows.map(|it| it.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    };
    // One that is being sent as the page is made will be in the next.
    let metrics = wait_for("every message to be timed", || {
        let it = lb.metrics();
        let taken = sum(&it, "trunkline_shard_datagrams_total")
            + sum(&it, "trunkline_shard_stream_messages_total");
        (sum(&it, "trunkline_residence_seconds_count") == taken).then_some(it)
    });
    let of = |family| sum(&metrics, family);
    let count = of("trunkline_residence_seconds_count");
    assert!(of("trunkline_shard_stream_messages_total") >= 3.0, "{metrics}");
    assert!(count >= of("trunkline_sip_messages_total"), "{metrics}");
    let seconds = of("trunkline_residence_seconds_sum");
    assert!(seconds > 0.0 && seconds < count * start.elapsed().as_secs_f64(), "{metrics}");
    let buckets = metrics.lines().filter(|it| it.starts_with("trunkline_residence_seconds_bucket"));
    let buckets = buckets.map(|it| it.rsplit(' ').next().unwrap().parse::<f64>().unwrap());
    let buckets: Vec<f64> = buckets.collect();
    assert!(buckets.is_sorted() && buckets.last() == Some(&count), "{metrics}");
    drop(nodes);
}

/// A histogram's or summary's series share one TYPE line.
fn base(name: &str) -> &str {
    ["_bucket", "_sum", "_count"].iter().find_map(|it| name.strip_suffix(it)).unwrap_or(name)
}

#[test]
fn lbinfo_has_the_originals_shape() {
    let lb = Setup::two_entry().start();
    let nodes = lb.nodes(1);
    let info = lb.lbinfo();
    let node = &info["Nodes info"]["nodesIPv4"][0];
    assert_eq!(node["hostName"], "n0");
    assert_eq!(node["ip"], "127.0.0.1");
    assert_eq!(node["properties"]["udpPort"], nodes[0].address().port().to_string());
    for flag in ["gracefulShutdown", "bad"] {
        assert_eq!(node[flag], false, "{flag}");
    }
    for name in ["timeStamp", "weightIndex"] {
        assert!(node[name].is_i64(), "{name}: {node}");
    }
    assert_eq!(node["failCounter"]["value"], 0);
    assert!(info["Nodes info"]["nodesIPv6"].as_array().is_some_and(Vec::is_empty));
    assert!(info["Nodes info"]["smppRemoteServers"].as_array().is_some_and(Vec::is_empty));
}

#[test]
fn the_log_level_changes_at_run_time() {
    let mut lb = Setup::two_entry().start();
    for wrong in ["/lbloglevel", "/lbloglevel?logLevel=LOUD"] {
        assert!(lb.get(wrong).0.contains("400"), "{wrong}");
    }
    // At WARN a node's coming is not worth a line.
    let (status, body) = lb.get("/lbloglevel?logLevel=WARN");
    assert!(status.contains("200") && body.contains("Log level changed"), "{status} {body}");
    let quiet = lb.announced(Node::bind("quiet"));
    lb.wait_nodes(1);
    drop(quiet);
    lb.wait_nodes(0);
    lb.get("/lbloglevel?logLevel=INFO");
    let _loud = lb.announced(Node::bind("loud"));
    lb.wait_log("Node hostname[loud]");
    let log = lb.log();
    let coming = |it: &&str| it.contains("hostname[quiet]") && it.contains("] added");
    assert_eq!(log.lines().find(coming), None);
    lb.reload(&[("securityRequired", "true"), ("login", "daddy"), ("password", "123456")]);
    wait_for("the password", || {
        lb.get("/lbloglevel?logLevel=INFO").0.contains("401").then_some(())
    });
    let (status, _) = lb.get("/lbloglevel?logLevel=INFO&login=daddy&password=123456");
    assert!(status.contains("200"), "{status}");
}

/// What only looks is open to everyone, what changes something is not, in each form of a wrong password.
#[test]
fn only_commands_that_change_something_ask_for_the_password() {
    let lb = Setup::two_entry()
        .set("securityRequired", "true")
        .set("login", "daddy")
        .set("password", "123456")
        .start();
    let _nodes = lb.nodes(1);
    for page in ["/lbstat", "/lbinfo", "/metrics", "/health"] {
        assert!(lb.get(page).0.contains("200"), "{page}");
    }
    let wrong = [
        "",
        "&login=daddy",
        "&password=123456",
        "&login=daddy&password=12345",
        "&login=daddy&password=1234567",
        "&login=x&password=123456",
        "&login=&password=",
    ];
    let changes = [
        "/lbstop?x=1",
        "/lbloglevel?logLevel=OFF",
        "/lbnoderegex?regex=a",
        "/lbdrain?node=n0",
        "/lbremove?node=n0",
        "/lbundrain?node=n0",
    ];
    for (change, with) in changes.iter().flat_map(|it| wrong.map(|with| (it, with))) {
        let (status, body) = lb.get(&format!("{change}{with}"));
        assert!(status.contains("401"), "{change}{with}: {status}");
        assert!(body.contains("Authorization required"), "{change}{with}: {body}");
    }
    assert_eq!(lb.known().len(), 1);
    let (status, _) = lb.get("/lbnoderegex?regex=a&login=daddy&password=123456");
    assert!(status.contains("200"), "{status}");
    let (status, _) =
        lb.get("/lbnoderegex?regex=(&ip=127.0.0.1&port=1&login=daddy&password=123456");
    assert!(status.contains("400"), "{status}");
    assert!(lb.exit_status().is_none());
}

#[test]
fn health_is_bad_first_and_statistics_tell_what_is_left_while_it_stops_if_told() {
    let lb = Setup::two_entry()
        .set("stopKeepsStatistics", "true")
        .set("shutdownTimeout", "60000")
        .start();
    let _nodes = lb.answering_nodes(1);
    let (status, body) = lb.get("/health");
    assert!(status.contains("200") && body.contains("\"ok\""), "{status} {body}");
    let caller = lb.caller("alice");
    let mut dialog = caller.call("sip:bob@example.com");
    lb.get("/lbstop");
    let (status, body) = lb.get("/health");
    assert!(status.contains("503") && body.contains("stopping"), "{status} {body}");
    let left = |name: &str| lb.lbinfo()["Nodes info"]["nodesIPv4"][0]["left"][name].clone();
    assert_eq!(left("calls"), 1, "all nodes are waited for");
    caller.exchange(&mut dialog, "BYE");
    assert_eq!((left("calls"), left("isNothing")), (0.into(), true.into()));
    lb.signal(Signal::SIGTERM);
    assert!(lb.wait_exit().success());
}

#[test]
fn without_that_key_the_statistics_port_closes_first() {
    let lb = Setup::two_entry().set("shutdownTimeout", "60000").start();
    lb.get("/lbstop");
    lb.wait_log("GracefulShutdown was called");
    wait_for("the closed port", || {
        std::net::TcpStream::connect(lb.statistic).is_err().then_some(())
    });
    assert!(lb.exit_status().is_none());
}

#[test]
fn out_of_files_the_statistics_port_waits_says_so_once_and_comes_back() {
    let lb = Setup::two_entry().start();
    let nodes = lb.nodes(1);
    lb.limit_files(5);
    let mut waiting = std::net::TcpStream::connect(lb.statistic).unwrap();
    std::io::Write::write_all(&mut waiting, b"GET /lbstat HTTP/1.1\r\n\r\n").unwrap();
    lb.wait_log("The statistics port accepts nobody for now");
    let (cpu, beats) = (lb.cpu_time(), nodes[0].beats_answered());
    let begin = std::time::Instant::now();
    wait_for("heartbeats meanwhile", || (nodes[0].beats_answered() >= beats + 30).then_some(()));
    let (used, passed) = (lb.cpu_time() - cpu, begin.elapsed());
    assert!(used < passed / 3, "it spins: {used:?} of {passed:?}");
    assert_eq!(lb.log().matches("accepts nobody for now").count(), 1);
    lb.limit_files(1_000);
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut waiting, &mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[test]
fn out_of_files_sip_says_so_and_takes_clients_in_again() {
    let lb = Setup::two_entry().start();
    let _nodes = lb.answering_nodes(1);
    lb.limit_files(5);
    let caller = lb.caller_over(Transport::Tcp, "waits");
    caller.send(&caller.request("OPTIONS", "sip:bob@example.com"));
    lb.wait_log("Nobody is accepted on SIP for now");
    std::thread::sleep(std::time::Duration::from_millis(500));
    let lines = lb.log().matches("Nobody is accepted on SIP for now").count();
    assert!(lines <= 2, "{lines} lines in half a second");
    lb.limit_files(1_000);
    caller.expect("200 OPTIONS");
    assert!(lb.event("shortage") >= 1, "somebody waits");
}

/// Whatever takes the CPU away between two steps of an executor, its shard hears of what comes next.
#[test]
fn a_host_that_takes_the_cpu_away_at_any_moment_leaves_no_shard_deaf() {
    if !tests::is_installed("strace") {
        return;
    }
    // As if the thread had lost its CPU for 30 ms behind each visit to io_uring. The tracer is the child here.
    let slow = "inject=io_uring_enter:delay_exit=30000";
    let tracer = ["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", "trace=io_uring_enter"];
    let lb = Setup::two_entry()
        .set("nodeTimeout", "60000")
        .through(&[&tracer[..], &["-e", slow]].concat())
        .start();
    let _nodes = lb.answering_nodes(1);
    let caller = lb.caller("alice");
    for number in 0..10 {
        caller.send(&caller.request("OPTIONS", &format!("sip:{number}@example.com")));
        caller.expect("200 OPTIONS");
        // The shard parks when nothing comes for 5 ms: that is what each of these must wake it from.
        lb.wait_parked();
    }
}

#[test]
fn what_is_dropped_is_in_the_log_with_its_source() {
    let lb = Setup::two_entry().start();
    let stranger = Peer::bind("stranger");
    for _ in 0..100 {
        stranger.send_bytes(lb.external, b"SIP/2.0 200 OK\r\n\r\n");
    }
    lb.wait_dropped("malformed", 100);
    let line = format!("drop reason=malformed source={}", stranger.address());
    lb.wait_log(&line);
    assert_eq!(lb.log().matches(&line).count(), 3, "{}", lb.log());
}

#[test]
fn a_message_to_a_name_on_the_packet_path_delays_nobody() {
    // A node calls out to names that do not resolve; others must cross meanwhile.
    let lb = Setup::two_entry().start();
    let nodes = lb.answering_nodes(1);
    let node = &nodes[0];
    for at in 0..5 {
        let uri = format!("sip:x@no-such-host-{at}.invalid");
        node.send_to(lb.internal, &node.request("INVITE", &uri));
    }
    call(&lb);
    let callee = Peer::bind("localhost-callee");
    let uri = format!("sip:x@localhost:{}", callee.address().port());
    node.send_to(lb.internal, &node.request("MESSAGE", &uri));
    let got: Message = callee.expect("MESSAGE").message.clone();
    assert_eq!(got.uri(), uri, "a domain is never replaced by its address");
}
