//! The table's contract, the samples of every generation, and hostile files.

use std::time::Duration;

use protocols::sip::Transport::{self, Tcp, Tls, Udp, Ws, Wss};

use super::keys::{Generation, Kind};
use super::*;

const GUIDE: &[u8] = include_bytes!("../../../tests/data/config/guide-sample.properties");
const G2: &[u8] = include_bytes!("../../../tests/data/config/lb-g2.properties");
const G3: &[u8] = include_bytes!("../../../tests/data/config/lb-g3.xml");

/// Enough of a file to start.
const START: &str = "host=127.0.0.1\nexternalPort=5060\n";

fn properties(text: &str) -> Loaded {
    load("lb.properties", format!("{START}{text}").as_bytes(), &[])
}

fn with_overrides(text: &str, overrides: &[(&str, &str)]) -> Loaded {
    let overrides: Vec<_> = overrides.iter().map(|it| (it.0.to_owned(), it.1.to_owned())).collect();
    load("lb.properties", format!("{START}{text}").as_bytes(), &overrides)
}

fn xml(text: &str) -> Loaded {
    let text = format!("<load-balancer-properties>{text}</load-balancer-properties>");
    load("lb.xml", text.as_bytes(), &[])
}

fn ports(open: &[(Transport, u16)]) -> Ports {
    let mut ports = Ports::default();
    for (transport, port) in open {
        ports.open(*transport, *port);
    }
    ports
}

/// Findings of a severity, as lines.
fn lines(loaded: &Loaded, severity: Severity) -> Vec<String> {
    let of = |it: &&Finding| it.severity == severity;
    loaded.findings.iter().filter(of).map(|it| loaded.line(it)).collect()
}

fn errors(loaded: &Loaded) -> Vec<String> {
    lines(loaded, Severity::Error)
}

fn warnings(loaded: &Loaded) -> Vec<String> {
    lines(loaded, Severity::Warning)
}

/// `key=value` with what Java takes as an escape doubled.
fn line_of(key: &Key, text: &str) -> String {
    format!("{}={}\n", key.name(), text.replace('\\', "\\\\"))
}

#[test]
fn every_default_is_valid_and_says_what_the_configuration_says() {
    for generation in [Generation::Properties, Generation::Xml] {
        let defaults = draft::Draft::defaults(generation);
        for key in keys() {
            let mut again = defaults.clone();
            assert_eq!(key.set(&mut again, key.default_in(generation)), Ok(()), "{key:?}");
            again.assemble();
            assert!(!key.differs(&mut defaults.clone(), &mut again), "{key:?}");
            assert_eq!(again.warnings, Vec::<String>::new(), "{key:?}");
        }
    }
}

#[test]
fn every_key_that_takes_effect_changes_the_configuration_and_is_named_by_changed() {
    for key in keys().filter(|it| it.takes_effect()) {
        // Some keys only count together with another one.
        let partner = match key.name() {
            "trafficRampupCyclePeriod" => "trafficPercentageIncrease=50\n",
            "trafficPercentageIncrease" => "trafficRampupCyclePeriod=70000\n",
            "maxRequestNumberWithoutResponse" => "maxResponseTime=10000\n",
            "maxResponseTime" => "maxRequestNumberWithoutResponse=20\n",
            "userAffinityMaxTimeInCache" | "userAffinityGroupFailover" => {
                "algorithmClass=UserBasedAlgorithm\n"
            }
            "isTransportWs" => "externalPort=5060\n",
            _ => "",
        };
        let partner = if key.name().starts_with("isTransport") { "" } else { partner };
        let without = load("f", format!("x.y=1\n{partner}").as_bytes(), &[]).config;
        let text = format!("{partner}{}", line_of(key, key.example));
        let with = match key.name() {
            "isTransportWs" => load("f", format!("externalPort=1\n{text}").as_bytes(), &[]),
            _ => load("f", text.as_bytes(), &[]),
        };
        let bad: Vec<_> =
            errors(&with).into_iter().filter(|it| it.contains("not allowed")).collect();
        assert_eq!(bad, Vec::<String>::new(), "{key:?}");
        assert_ne!(with.config, without, "{key:?}");
        let changes = changed(&without, &with.config);
        let all: Vec<_> = changes.live.iter().chain(&changes.restart).copied().collect();
        let is_named = all.contains(&key.name());
        let speaks_for_others =
            matches!(&key.kind, Kind::Other { .. }) || key.name().contains("user");
        assert!(!all.is_empty(), "{key:?}");
        assert!(is_named || speaks_for_others || key.name() == "isTransportWs", "{key:?}: {all:?}");
    }
}

#[test]
fn the_old_key_for_messages_to_clients_still_counts() {
    for (text, want) in [("true", SmppToNode::RoundRobin), ("false", SmppToNode::SubmitToAll)] {
        let loaded = properties(&format!("isUseRrSendSmppRequestToClient={text}\n"));
        assert_eq!(errors(&loaded), Vec::<String>::new(), "{text}");
        assert_eq!(loaded.config.smpp.to_node, want, "{text}");
    }
}

#[test]
fn a_key_that_takes_no_effect_changes_nothing_and_says_so_once() {
    for key in keys().filter(|it| !it.takes_effect() && !it.name().ends_with('*')) {
        let loaded = properties(&line_of(key, key.example));
        assert_eq!(loaded.config, properties("").config, "{key:?}");
        assert_eq!(errors(&loaded), Vec::<String>::new(), "{key:?}");
        let [said] = &loaded.findings[..] else { panic!("{key:?}: {:?}", loaded.findings) };
        assert_eq!(said.line, Some(3), "{key:?}");
        assert_eq!(said.severity, Severity::Note, "{key:?}");
    }
}

#[test]
fn nonsense_is_refused_with_file_line_and_key() {
    for key in keys().filter(|it| !matches!(it.status, Status::Ignored { .. })) {
        // A bell is in no value, not even in free text.
        let loaded = properties(&line_of(key, "(\u{7}=,"));
        let errors = errors(&loaded);
        let want = format!("lb.properties:3: error: {}: ", key.name());
        assert!(errors.iter().any(|it| it.starts_with(&want)), "{key:?}: {errors:?}");
        let own: Vec<_> = errors.iter().filter(|it| it.contains(":3: ")).collect();
        assert!(own.iter().all(|it| it.contains("allowed is")), "{key:?}: {errors:?}");
    }
}

#[test]
fn names_and_paths_are_unique_and_every_one_is_found() {
    let mut seen = std::collections::HashSet::new();
    for key in keys() {
        assert!(!key.name().is_empty());
        for name in key.names.iter().chain(key.xml) {
            assert!(seen.insert(*name), "{name} stands twice");
        }
        for name in key.names.iter().filter(|it| !it.ends_with('*')) {
            let loaded = properties(&format!("{name}={}\n", key.example.replace('\\', "\\\\")));
            let setting = loaded.origins.iter().find(|it| it.key.name() == key.name()).unwrap();
            assert_eq!(setting.origin, Origin::Line(3), "{name}");
            let loaded = with_overrides("", &[(name, key.example)]);
            let setting = loaded.origins.iter().find(|it| it.key.name() == key.name()).unwrap();
            assert_eq!(setting.origin, Origin::Override, "{name}");
        }
        for path in key.xml.iter().filter(|it| !it.contains(['*', '@'])) {
            let mut document = key.example.to_owned();
            if path.contains("routingRules") {
                document = "<rule><ipPattern>10.*</ipPattern><patch>false</patch></rule>".into();
            }
            for tag in path.rsplit('/') {
                document = format!("<{tag}>{document}</{tag}>");
            }
            let loaded = xml(&document);
            let setting = loaded.origins.iter().find(|it| it.key.name() == key.name()).unwrap();
            assert_eq!(setting.origin, Origin::Line(1), "{path}");
        }
    }
    assert!(seen.len() > 250, "{}", seen.len());
}

#[test]
fn covers_name_keys_that_exist_and_come_later() {
    let order: Vec<_> = keys().map(Key::name).collect();
    for (index, key) in keys().enumerate() {
        for covered in key.covers {
            let at = order.iter().position(|it| it == covered);
            assert!(at.is_some_and(|it| it > index), "{key:?} covers {covered}");
        }
    }
}

#[test]
fn the_algorithms_of_the_manual_are_the_list() {
    let key = keys().find(|it| it.name() == "algorithmClass").unwrap();
    for name in ALGORITHM_NAMES {
        assert!(key.allowed().contains(name), "{name}");
        let loaded = properties(&format!("algorithmClass=org.mobicens.x.{name}\n"));
        assert_eq!((loaded.config.algorithm, errors(&loaded)), (name, Vec::new()), "{name}");
    }
}

#[test]
fn the_checked_in_manual_is_the_table() {
    let checked_in = include_str!("../../example.properties");
    // Not `assert_eq!`: nobody wants to read both.
    let is_current = checked_in == manual();
    assert!(
        is_current,
        "engine/example.properties is old: run `cargo xtask manual`, commit the file"
    );
}

#[test]
fn the_manual_loads_as_it_stands_and_with_every_line_in_force() {
    let loaded = load("example.properties", manual().as_bytes(), &[]);
    assert_eq!(loaded.findings, Vec::new());
    assert_eq!(loaded.config.external.ports, ports(&[(Udp, 5060), (Tcp, 5060)]));

    let all: String = manual()
        .lines()
        .filter_map(|it| it.strip_prefix('#').filter(|it| !it.starts_with([' ', '#'])).or(Some(it)))
        .fold(String::new(), |all, line| all + line + "\n");
    let loaded = load("example.properties", all.as_bytes(), &[]);
    let bad: Vec<_> = errors(&loaded).into_iter().filter(|it| it.contains("allowed")).collect();
    assert_eq!(bad, Vec::<String>::new());
    let unknown: Vec<_> =
        warnings(&loaded).into_iter().filter(|it| it.contains("unknown")).collect();
    assert_eq!(unknown, Vec::<String>::new());
    for setting in loaded.origins.iter().filter(|it| it.key.takes_effect()) {
        assert_ne!(setting.origin, Origin::Default, "{:?}", setting.key);
    }
}

#[test]
fn the_guides_sample_starts() {
    let loaded = load("lb.properties", GUIDE, &[]);
    assert_eq!(errors(&loaded), Vec::<String>::new());
    let config = &loaded.config;
    assert_eq!(config.host.as_deref(), Some("127.0.0.1"));
    assert_eq!(config.external.ports, ports(&[(Udp, 5060), (Tcp, 5060), (Tls, 5061)]));
    assert_eq!(config.internal.ports, ports(&[(Udp, 5065), (Tcp, 5065), (Tls, 5066)]));
    assert!(config.tls.key_store.as_ref().is_some_and(|it| it.ends_with("/tmp/keystore")));
    assert_eq!(config.tls.protocols, ["TLSv1"]);
    assert_eq!(config.tls.peers, PeerCertificates::ServersOnly);
    assert_eq!(config.node_timeout, Duration::from_millis(8400));
    assert_eq!(config.heartbeat_interval, Duration::from_millis(150));
    assert_eq!(config.statistic_port, Some(2006));
    assert_eq!(config.algorithm, "CallIDAffinityBalancerAlgorithm");
    assert_eq!(config.internal_transport, None, "internalTransport=UDP never had an effect");
    assert_eq!(config.public_ip, None);
    assert_eq!((config.http.port, config.http.tls_port), (Some(2080), Some(2081)));
    assert_eq!(config.unwritten_ports, Vec::<u16>::new());
    assert!(config.remote_server_ssl && !config.http.redirects_to_tls);
    let beats = &config.heartbeats;
    assert_eq!(
        (beats.rmi_port, beats.rmi_object_port, beats.http_port),
        (Some(2000), Some(2001), None)
    );
    let smpp = &config.smpp;
    assert_eq!((smpp.port, smpp.mux, smpp.full), (Some(2776), false, SmppFull::Stop));
    let servers: Vec<_> = smpp.servers.iter().map(|it| (it.host.as_str(), it.port)).collect();
    assert_eq!(servers, [("127.0.0.1", 10_021), ("127.0.0.1", 10_022), ("127.0.0.1", 10_023)]);
    let millis = [smpp.response, smpp.connection, smpp.enquire, smpp.reconnect];
    assert_eq!(millis.map(|it| it.as_millis()), [10_000, 1000, 50_000, 1000]);
    let checks = [smpp.check_client_side, smpp.check_server_side];
    assert_eq!(checks.map(|it| it.as_millis()), [1000, 1000]);
    let warnings = warnings(&loaded).join("\n");
    for part in [
        "lb.properties:60: warning: algorithmClass: org.mobicens.tools.telestaxproxy",
        "point: unknown; ignored; perhaps the end of the comment above",
    ] {
        assert!(warnings.contains(part), "{part} in\n{warnings}");
    }
}

#[test]
fn a_second_generation_file_says_what_it_says() {
    let loaded = load("lb-g2.properties", G2, &[]);
    assert_eq!(errors(&loaded), Vec::<String>::new());
    let it = &loaded.config;
    assert_eq!(
        it.external.ports,
        ports(&[(Udp, 5060), (Tcp, 5070), (Tls, 5061)]),
        "the transport's key wins"
    );
    assert_eq!(it.internal.ports, ports(&[(Udp, 5065), (Tcp, 5075)]));
    assert_eq!(it.internal.host.as_deref(), Some("127.0.0.2"));
    assert_eq!(it.external.balancer, ["192.0.2.10", "192.0.2.11"]);
    assert_eq!(it.external.balancer_ports, ports(&[(Udp, 5060), (Tcp, 5070)]));
    assert!(it.ip_load_balancer_in_via && it.performance_testing_mode && it.send_5xx);
    let extra: Vec<_> =
        it.extra_server_nodes.iter().map(|it| (it.host.as_str(), it.port)).collect();
    assert_eq!(
        extra,
        [
            ("192.0.2.31", 21),
            ("192.0.2.32", 9003),
            ("app.example.com", 5060),
            ("2001:db8::31", 5080)
        ]
    );
    assert_eq!(it.algorithm, "UserBasedAlgorithm");
    assert_eq!(it.affinity_key, AffinityKey::From { user: false });
    assert_eq!((it.call_idle, it.group_failover), (Duration::from_secs(120), true));
    assert_eq!(it.node_timeout, Duration::from_millis(5100));
    assert_eq!(it.public_ip.as_deref(), Some("198.51.100.1"));
    assert!(!it.legacy_contact_patching);
    assert_eq!(it.blocked_values, Vec::<String>::new());
    assert_eq!(it.send_5xx_cause, 504);
    assert_eq!(it.send_5xx_reason.as_deref(), Some("Ziel nicht erreichbar \u{2013} später"));
    assert_eq!(it.error_codes, [503, 500]);
    assert_eq!(it.error_reason.as_deref(), Some("Media failure"));
    assert!(it.use_with_nexmo && it.route_subdomains && it.never_add_received_rport);
    assert_eq!(it.route_hostname.as_deref(), Some("lb.example.com"));
    assert_eq!(it.udp_keepalive, Some(Duration::from_secs(20)));
    assert_eq!(it.message_bytes_max, 10_000);
    assert_eq!(it.internal_transport, None);
}

#[test]
fn a_third_generation_file_says_what_it_says() {
    let loaded = load("lb-g3.xml", G3, &[]);
    assert_eq!(errors(&loaded), Vec::<String>::new());
    let it = &loaded.config;
    assert_eq!(
        it.external.ports,
        ports(&[(Udp, 5060), (Ws, 5082)]),
        "empty is the default, 0 is closed"
    );
    assert_eq!(it.external.ipv6_ports, ports(&[(Udp, 5060)]));
    assert_eq!(it.external.host, None);
    assert_eq!(it.internal.ports, ports(&[(Udp, 5065), (Tcp, 5065)]));
    assert_eq!(it.external.balancer, ["192.0.2.10", "192.0.2.11"]);
    assert_eq!(it.statistic_port, Some(2007));
    assert_eq!(it.shutdown_timeout, Duration::from_secs(2));
    assert!(it.security_required);
    assert_eq!((it.login.as_deref(), it.password.as_deref()), (Some("daddy"), Some("123456")));
    assert_eq!(it.call_idle, Duration::from_secs(500), "0 is the default");
    assert!(it.affinity_exclusion.as_ref().unwrap().0.is_match(b"anonymous42"));
    assert!(!it.affinity_exclusion.as_ref().unwrap().0.is_match(b"not anonymous42"));
    assert_eq!(it.internal_transport, Some(Udp));
    assert_eq!(it.blocked_values, ["sipvicious", "bad & loud"]);
    assert!(!it.send_trying);
    assert_eq!(it.error_codes, Vec::<u16>::new(), "an empty element is no codes");
    assert_eq!((it.errors_max, it.error_time), (7, Duration::from_secs(60)));
    assert_eq!(it.silence, Some(Silence { requests_max: 20, time: Duration::from_secs(10) }));
    assert_eq!(it.ramp_up, Some(RampUp { period: Duration::from_secs(70), weight_max: 3 }));
    let rules: Vec<_> = it.routing_rules.iter().map(|it| (it.ip.0.as_str(), it.patch)).collect();
    assert_eq!(rules, [(r"\A(?:10\.0\.0\..*)\z", false), (r"\A(?:127.0.0.1)\z", true)]);
    assert_eq!(it.stream_idle, Duration::from_secs(120), "the shorter of two limits");
    assert!(it.terminate_tls);
    assert_eq!(it.tls.key_store, None, "an empty element is no file");
    let rules: Vec<_> = it.http.rewrite.rules.iter().map(|it| it.from.0.as_str()).collect();
    assert_eq!((rules, it.http.rewrite.decodes), (vec!["someCompany", "a"], true));
    assert!(it.http.reencrypts && it.http.redirects_to_tls, "as this generation did");
    assert_eq!((it.http.port, it.http.tls_port), (Some(2080), None), "empty is the default");
}

#[test]
fn xml_has_defaults_of_its_own() {
    let loaded = xml("<common/><sip><algorithm/></sip><sipStack></sipStack><heartbeat/>");
    assert_eq!(loaded.findings, Vec::new());
    assert_eq!(loaded.config.host.as_deref(), Some("127.0.0.1"));
    assert_eq!(loaded.config.external.ports, ports(&[(Udp, 5060), (Tcp, 5060)]));
    assert_eq!(loaded.config.error_codes, [503]);
    assert_eq!(loaded.config.statistic_port, Some(2006));
    assert_eq!(Config::default().error_codes, Vec::<u16>::new());
}

#[test]
fn the_same_values_mean_the_same_in_both_formats() {
    let one = properties(
        "internalUdpPort=5065\nsipHeaderAffinityKey=to.user\nsip.internalTransport=tcp\n\
         internalTcpPort=5065\nsubclusterMap=(10.0.0.1, 10.0.0.2) (10.0.0.3,10.0.0.4)\n\
         statisticPort=2006\nresponseStatusCodeNodeRemoval=503\nstaticNodes=10.0.0.9/udp+tcp\n\
         httpToHttpsRedirect=true\nhttpReencrypt=true\n\
         http.urlrewrite=<rule><from>a</from><to>b</to></rule>\n\
         muxMode=true\nsmppReencrypt=true\nheartbeat.configclass=HeartbeatConfigHttp\n",
    );
    let two = xml("<common><host>127.0.0.1</host><apiPort>2006</apiPort></common><sip><internal>\
         <udpPort>5065</udpPort><tcpPort>5065</tcpPort></internal>\
         <internalTransport>TCP</internalTransport><staticNodes>10.0.0.9/udp+tcp</staticNodes>\
         <algorithm><sipHeaderAffinityKey>To</sipHeaderAffinityKey><subclusterMap>\
         (10.0.0.1,10.0.0.2)(10.0.0.3,10.0.0.4)</subclusterMap></algorithm></sip>\
         <http><urlrewrite><rule><from>a</from><to>b</to></rule></urlrewrite></http>");
    assert_eq!(errors(&one), errors(&two));
    assert_eq!(changed(&one.config, &two.config), Changes::default());
    let of_values = |it: Loaded| Config { unwritten_ports: Vec::new(), ..it.config };
    assert_eq!(of_values(one), of_values(two));
}

/// `http-smpp-registry.md` 1.1: "`apiPort` wins if both", in both formats.
#[test]
fn the_api_port_counts_where_a_file_has_both_names_of_the_statistics_port() {
    let written = |name: &str, port: &str, is_xml: bool| match is_xml {
        true => format!("<{name}>{port}</{name}>"),
        false => format!("{name}={port}\n"),
    };
    for is_xml in [false, true] {
        let (api, statistic) =
            (written("apiPort", "2007", is_xml), written("statisticPort", "2008", is_xml));
        let read = |text: &str| {
            let loaded = if is_xml {
                xml(&format!("<common><host>127.0.0.1</host>{text}</common>"))
            } else {
                properties(text)
            };
            let twice = loaded.findings.iter().any(|it| it.text.contains("set more than once"));
            (loaded.config.statistic_port, twice)
        };
        assert_eq!(read(&statistic), (Some(2008), false), "{statistic}");
        assert_eq!(read(&api), (Some(2007), false), "{api}");
        assert_eq!(read(&format!("{api}{statistic}")), (Some(2007), true), "{api}{statistic}");
        assert_eq!(read(&format!("{statistic}{api}")), (Some(2007), true), "{statistic}{api}");
    }
}

#[test]
fn group_keys_open_what_their_generation_opened() {
    let cases: &[(&str, &[(Transport, u16)])] = &[
        ("", &[(Udp, 5060), (Tcp, 5060)]),
        ("externalUdpPort=0\n", &[(Tcp, 5060)]),
        ("externalTcpPort=\n", &[(Udp, 5060), (Tcp, 5060)]),
        ("externalTcpPort=5070\n", &[(Udp, 5060), (Tcp, 5070)]),
        ("isTransportWs = true\n", &[(Udp, 5060), (Ws, 5060)]),
        ("isTransportWs = false\n", &[(Udp, 5060), (Tcp, 5060)]),
        ("externalSecurePort=5061\n", &[(Udp, 5060), (Tcp, 5060), (Tls, 5061)]),
        (
            "externalSecurePort=5061\nexternalTlsPort=5062\n",
            &[(Udp, 5060), (Tcp, 5060), (Tls, 5062)],
        ),
        ("isTransportWs=true\nexternalSecurePort=5061\n", &[(Udp, 5060), (Ws, 5060), (Wss, 5061)]),
        (
            "externalWsPort=5062\nexternalWssPort=5063\n",
            &[(Udp, 5060), (Tcp, 5060), (Ws, 5062), (Wss, 5063)],
        ),
    ];
    for (text, want) in cases {
        let loaded = properties(text);
        assert_eq!(loaded.config.external.ports, ports(want), "{text}");
        assert_eq!(errors(&loaded), Vec::<String>::new(), "{text}");
    }
}

#[test]
fn the_command_line_wins_under_any_name() {
    type Case<'c> = (&'c str, &'c [(&'c str, &'c str)], &'c [(Transport, u16)]);
    let cases: &[Case<'_>] = &[
        ("", &[("isTransportWs", "true")], &[(Udp, 5060), (Ws, 5060)]),
        ("externalUdpPort=5061\n", &[("externalPort", "0")], &[]),
        ("", &[("externalPort", "5070")], &[(Udp, 5070), (Tcp, 5070)]),
        ("externalUdpPort=5061\n", &[("externalPort", "5070")], &[(Udp, 5070), (Tcp, 5070)]),
        ("externalUdpPort=5061\n", &[("externalTcpPort", "0")], &[(Udp, 5061)]),
        ("", &[("sip.external.udpPort", "5071")], &[(Udp, 5071), (Tcp, 5060)]),
        ("", &[("externalPort", "5072"), ("externalPort", "5073")], &[(Udp, 5073), (Tcp, 5073)]),
    ];
    for (text, overrides, want) in cases {
        let loaded = with_overrides(text, overrides);
        assert_eq!(loaded.config.external.ports, ports(want), "{text} {overrides:?}");
    }
    let xml = b"<load-balancer-properties><sip><external><udpPort>5061</udpPort></external></sip></load-balancer-properties>";
    let loaded = load("lb.xml", xml, &[("externalPort".to_owned(), "5070".to_owned())]);
    assert_eq!(loaded.config.external.ports, ports(&[(Udp, 5070), (Tcp, 5070)]));

    let loaded =
        with_overrides("", &[("nodeTimeout", "5"), ("java.io.tmpdir", "/t"), ("nodeTimout", "9")]);
    assert_eq!(errors(&loaded).len(), 1, "{:?}", errors(&loaded));
    assert!(errors(&loaded)[0].starts_with("lb.properties: error: -DnodeTimeout: \"5\""));
    assert_eq!(
        warnings(&loaded),
        ["lb.properties: warning: -DnodeTimout: unknown; ignored; did you mean nodeTimeout?"]
    );
}

#[test]
fn findings_name_file_line_key_what_and_what_is_allowed() {
    let cases: &[(&str, &str)] = &[
        (
            "nodeTimeout=14",
            "lb.properties:3: error: nodeTimeout: \"14\" is not allowed here; allowed is a whole \
             number from 15 to 2147483647",
        ),
        (
            "isSendTrying=yes",
            "lb.properties:3: error: isSendTrying: \"yes\" is not allowed here; allowed is true or false",
        ),
        (
            "internalPort=65536",
            "lb.properties:3: error: internalPort: \"65536\" is not allowed here; allowed is a port from 1 \
             to 65535, or 0 to keep it closed",
        ),
        (
            "internalPort=5065\nnodeTimout=1",
            "lb.properties:4: warning: nodeTimout: unknown; ignored; did you mean nodeTimeout?",
        ),
        (
            "algorithmClass=org.mobicents.FooAlgorithm",
            "error: algorithmClass: \"FooAlgorithm\" is not allowed here; allowed is a class name ending in \
             CallIDAffinity",
        ),
        ("subclusterMap=(10.0.0.1,10.0.0.1)", "error: subclusterMap: 10.0.0.1 stands twice"),
        (
            "subclusterMap=(10.0.0.1,10.0.0.2)(10.0.0.1)",
            "warning: subclusterMap: 10.0.0.1 stands in two groups",
        ),
        (
            "sipHeaderAffinityExclusionPattern=(?=x)",
            "error: sipHeaderAffinityExclusionPattern: \"(?=x)\" is not a regular expression that works here: look-around",
        ),
        (
            "sipHeaderAffinityExclusionPattern=a)(b",
            "error: sipHeaderAffinityExclusionPattern: \"a)(b\"",
        ),
        ("host=1.2.3", "error: host: \"1.2.3\" is not allowed here; allowed is an IPv4"),
        ("trafficPercentageIncrease=101", "from 1 to 100"),
        (
            "trafficPercentageIncrease=10",
            "warning: trafficPercentageIncrease: does nothing without trafficRampupCyclePeriod",
        ),
        (
            "maxResponseTime=10",
            "warning: maxResponseTime: does nothing without maxRequestNumberWithoutResponse",
        ),
        (
            "externalIpLoadBalancerAddress=192.0.2.1",
            "error: externalIpLoadBalancerAddress: an address without a port",
        ),
        (
            "externalIpLoadBalancerPort=5060",
            "warning: externalIpLoadBalancerPort: a port without an address",
        ),
        (
            "useIpLoadBalancerAddressInViaHeaders=true\nexternalIpLoadBalancerAddress=192.0.2.1\n\
             externalIpLoadBalancerUdpPort=5070\nexternalIpLoadBalancerTcpPort=5060",
            "lb.properties:3: warning: useIpLoadBalancerAddressInViaHeaders: externalIpLoadBalancerAddress: \
             answers come to our own address and the port in Via (RFC 3261 18.2.2), 5070 and not 5060 over \
             UDP; give",
        ),
        (
            "internalPort=5065\nexternalIpLoadBalancerAddress=192.0.2.1\nexternalIpLoadBalancerUdpPort=5060",
            "lb.properties:5: error: externalIpLoadBalancerUdpPort: the node side needs such a port, too; set \
             internalIpLoadBalancerUdpPort",
        ),
        (
            "internalPort=5060",
            "lb.properties:3: error: internalPort: externalPort has port 5060 on the same",
        ),
        ("statisticPort=5060", "lb.properties:3: error: statisticPort: externalPort has port 5060"),
        (
            "externalHost=127.0.0.2\nstatisticPort=5060",
            "lb.properties:4: error: statisticPort: externalPort has port 5060",
        ),
        (
            "externalIpv6Host=::1\nexternalIpv6TcpPort=5062\nstatisticPort=5062",
            "error: statisticPort: externalIpv6TcpPort has port 5062",
        ),
        (
            "internalHost=0.0.0.0\ninternalPort=5060",
            "error: internalPort: externalPort has port 5060",
        ),
        (
            "internalHost=0.0.0.0\ninternalPort=5065",
            "lb.properties:3: error: internalHost: 0.0.0.0 would stand in Via and Record-Route",
        ),
        (
            "externalHost=0.0.0.0\nexternalIpLoadBalancerAddress=192.0.2.1\n\
             externalIpLoadBalancerUdpPort=5060",
            "error: externalHost: 0.0.0.0 would stand in Via and Record-Route, where nobody can send \
             to; set an address of this machine, or public-ip",
        ),
        (
            "externalHost=0.0.0.0\npublic-ip=192.0.2.1\ninternalPort=5065",
            "lb.properties:3: note: externalHost: 0.0.0.0: over UDP messages leave from the address that \
             the kernel's routes choose",
        ),
        (
            "ipv6Host=::\npublic-ipv6=2001:db8::1\nexternalIpv6UdpPort=5065\ninternalPort=5065",
            "lb.properties:3: note: ipv6Host: ::: over UDP messages leave",
        ),
        ("ipv6Host=::\nexternalIpv6UdpPort=5060", "lb.properties:3: error: ipv6Host: :: would"),
        (
            "terminateTLSTraffic=true\nexternalTlsPort=5061",
            "note: terminateTLSTraffic: what is addressed to sips: goes on to nodes without TLS",
        ),
        ("internalHost=127.0.0.2", "warning: internalHost: without any internal port"),
        ("externalSecurePort=5061", "warning: externalSecurePort: stays closed: there is no"),
        ("externalWssPort=5063", "warning: externalWssPort: stays closed: there is no certificate"),
        ("isTransportWs=true\nstatisticPort=5060", "error: statisticPort: externalPort has port"),
        (
            "isTransportWs=true\nexternalTcpPort=5061",
            "warning: externalTcpPort: opens TCP although",
        ),
        ("internalUdpPort=5065", "warning: externalPort: the node side has no port for TCP"),
        ("securityRequired=true\nlogin=x", "error: securityRequired: needs login and password"),
        (
            "legacyContactPatching=true",
            "warning: legacyContactPatching: does nothing without public-ip",
        ),
        (
            "sip.internalTransport=tls\ninternalUdpPort=5065",
            "warning: externalPort: the node side has no port for TLS: what comes by UDP",
        ),
        ("rmiRemoteOjectPort=2001", "note: rmiRemoteOjectPort: is read as rmiRemoteObjectPort"),
        ("internalTransport=TLS", "note: internalTransport: no effect: the port keys say"),
        ("isTransportWs=false", "note: isTransportWs: outdated; better: externalWsPort"),
        ("nodeTimeout=100", "warning: nodeTimeout: nodes may stay silent for 100 ms"),
        (
            "nodeTimeout=100\nnodeTimeout=8400",
            "lb.properties:3: warning: nodeTimeout: set more than once; line 4 counts",
        ),
        (
            "externalHost=::1",
            "lb.properties:3: error: externalHost: an IPv6 address; it belongs in externalIpv6Host",
        ),
        (
            "ipv6Host=fe80::1%eth0",
            "lb.properties:3: error: ipv6Host: \"fe80::1%eth0\" is not allowed here; allowed is a global",
        ),
        (
            "staticNodes=[fe80::1]:5080",
            "lb.properties:3: error: staticNodes: \"[fe80::1]\" is not allowed here; allowed is a global",
        ),
        ("ipv6Host=127.0.0.1", "error: ipv6Host: an IPv4 address; it belongs in host"),
        ("probeTimeout=3000", "error: probeTimeout: a probe waits longer"),
        ("callIdAffinityMaxTimeInCache=0", "warning: callIdAffinityMaxTimeInCache: 0 would forget"),
        (
            "gov.nist.javax.sip.MAX_MESSAGE_SIZE=100000",
            "warning: gov.nist.javax.sip.MAX_MESSAGE_SIZE: 100000 is above",
        ),
        ("gov.nist.javax.sip.RECEIVE_UDP_BUFFER_SIZE=65536", "a burst of messages overflows"),
        (
            "a=\\u12x4",
            "lb.properties:3: error: \"\\u12x4\" is not allowed here; allowed is \\u and four hex digits",
        ),
        ("password=\u{7}", "error: password: the value is not allowed; allowed is text"),
    ];
    for (text, want) in cases {
        let loaded = properties(text);
        let lines: Vec<_> = loaded.findings.iter().map(|it| loaded.line(it)).collect();
        assert!(lines.iter().any(|it| it.contains(want)), "{text}: {want}\nin {lines:#?}");
    }
}

#[test]
fn good_files_have_nothing_to_hear() {
    for text in [
        "",
        "internalPort=5065\n",
        "internalHost=127.0.0.2\ninternalPort=5060\n",
        "externalHost=0.0.0.0\npublic-ip=192.0.2.1\ninternalPort=5065\n",
        "externalHost=0.0.0.0\nexternalIpLoadBalancerAddress=192.0.2.1\n\
         externalIpLoadBalancerPort=5060\n",
        "internalPort=5065\nipv6Host=::\npublic-ipv6=2001:db8::1\nexternalIpv6UdpPort=5065\n",
        "externalIpLoadBalancerAddress=192.0.2.1\nexternalIpLoadBalancerPort=5060\n",
        "externalIpLoadBalancerAddress=192.0.2.1\nexternalIpLoadBalancerPort=5060\n\
         useIpLoadBalancerAddressInViaHeaders=true\n",
        "externalIpLoadBalancerAddress=192.0.2.1\nexternalIpLoadBalancerPort=5070\n",
        "internalPort=5065\nexternalIpLoadBalancerAddress=192.0.2.1\n\
         externalIpLoadBalancerPort=5060\ninternalIpLoadBalancerAddress=192.0.2.2\n\
         internalLoadBalancerPort=5060\ninternalIpLoadBalancerPort=5060\n",
    ] {
        let loaded = properties(text);
        let worse: Vec<_> =
            loaded.findings.iter().filter(|it| it.severity < Severity::Note).collect();
        assert!(worse.is_empty(), "{text}: {worse:?}");
    }
}

#[test]
fn a_file_without_listeners_or_of_another_kind_is_refused() {
    let cases: &[(&[u8], &str)] = &[
        (b"", "lb: error: externalPort: nothing listens on the client side; set externalPort"),
        (b"host=127.0.0.1\n", "nothing listens"),
        (b"externalPort=5060\n", "lb: error: externalHost: no address to listen on; set host"),
        (b"externalTlsPort=0\nhost=127.0.0.1", "externalTlsPort: nothing listens"),
        (b"\xff\xfeh\0", "the file is UTF-16"),
        (b"\n\n<load-balancer-properties>\n<a></b>", "lb:4: error: this is not well-formed XML: expected 'a'"),
        (b"<other/>", "lb:1: error: the root element is <other>; allowed is <load-balancer-properties>"),
        (b"<load-balancer-properties><sip><external><udpPort>0</udpPort><tcpPort>-1</tcpPort></external></sip></load-balancer-properties>", "set sip/external/udpPort"),
        (b"<load-balancer-properties>\n<common>\n<nodeTimeout>x</nodeTimeout></common></load-balancer-properties>", "lb:3: error: common/nodeTimeout: \"x\" is not"),
        (b"<load-balancer-properties>\n<common><nodeTimeout>1</nodeTimeout>\n\n</common><sip>\n<sipStack/><sip/><algorithm>\n<statisticPort>1</statisticPort></algorithm></sip></load-balancer-properties>", "lb:6: warning: sip/algorithm/statisticPort: unknown; ignored; did you mean common/statisticPort?"),
    ];
    for (bytes, want) in cases {
        let loaded = load("lb", bytes, &[]);
        let lines: Vec<_> = loaded.findings.iter().map(|it| loaded.line(it)).collect();
        assert!(loaded.has_errors(), "{want}");
        assert!(lines.iter().any(|it| it.contains(want)), "{want}\nin {lines:#?}");
    }
}

#[test]
fn findings_about_xml_speak_of_its_paths() {
    let loaded = xml(
        "<sip>\n<external><ipLoadBalancerAddress>192.0.2.1</ipLoadBalancerAddress></external>\n\
         <internal><udpPort>5060</udpPort></internal></sip>",
    );
    let want = [
        "lb.xml:2: error: sip/external/ipLoadBalancerAddress: an address without a port; set \
         sip/external/ipLoadBalancerUdpPort",
        "lb.xml:3: error: sip/internal/udpPort: sip/external/udpPort has port 5060 on the same \
         address already",
    ];
    assert_eq!(errors(&loaded), want);
    let want = "lb.xml: warning: sip/external/tcpPort: the node side has no port for TCP: what comes by \
                TCP cannot reach nodes; set sip/internal/tcpPort";
    assert_eq!(warnings(&loaded), [want]);
}

#[test]
fn the_correct_name_wins_over_its_misspelling() {
    let loaded = properties("isSend5xxResponseStatusCode=500\nisSend5xxResponseSatusCode=504\n");
    assert_eq!(loaded.config.send_5xx_cause, 500);
    let loaded = properties("isSend5xxResponseSatusCode=504\nisSend5xxResponseStatusCode=500\n");
    assert_eq!(loaded.config.send_5xx_cause, 500);
}

#[test]
fn affinity_keys_mean_what_their_algorithm_makes_of_them() {
    let cases = [
        ("HeaderConsistentHashBalancerAlgorithm", "", AffinityKey::CallId),
        ("HeaderConsistentHashBalancerAlgorithm", "From", AffinityKey::From { user: true }),
        ("HeaderConsistentHashBalancerAlgorithm", "from.user", AffinityKey::From { user: true }),
        ("HeaderConsistentHashBalancerAlgorithm", "To", AffinityKey::ToUser),
        ("UserBasedAlgorithm", "", AffinityKey::ToUser),
        ("UserBasedAlgorithm", "From", AffinityKey::From { user: false }),
        ("UserBasedAlgorithm", "from.user", AffinityKey::From { user: true }),
        ("UserBasedAlgorithm", "call-id", AffinityKey::CallId),
        ("UserBasedAlgorithm", "X-Room", AffinityKey::Header("X-Room".to_owned())),
    ];
    for (algorithm, key, want) in cases {
        let loaded =
            properties(&format!("algorithmClass=a.b.{algorithm}\nsipHeaderAffinityKey={key}\n"));
        assert_eq!(loaded.config.affinity_key, want, "{algorithm} {key}");
    }
}

#[test]
fn the_shorter_idle_limit_counts() {
    for (idle, keepalive, want) in
        [("10000", "120", 10), ("600000", "120", 120), ("600000", "-1", 600)]
    {
        let loaded = properties(&format!(
            "gov.nist.javax.sip.NIO_MAX_SOCKET_IDLE_TIME={idle}\n\
             gov.nist.java.sip.RELIABLE_CONNECTION_KEEP_ALIVE_TIMEOUT={keepalive}\n"
        ));
        assert_eq!(loaded.config.stream_idle, Duration::from_secs(want), "{idle} {keepalive}");
    }
}

#[test]
fn a_change_is_live_or_needs_a_restart() {
    let old = properties("").config;
    let new = properties(
        "blocked-values=x\ninternalPort=5065\nshards=2\nnodeTimeout=9000\nlogLevel=DEBUG\n",
    )
    .config;
    let changes = changed(&old, &new);
    assert_eq!(changes.live, ["nodeTimeout", "blocked-values", "logLevel"]);
    assert_eq!(changes.restart, ["internalUdpPort", "internalTcpPort", "shards"]);
}

#[test]
fn check_says_where_every_value_comes_from_and_hides_secrets() {
    let loaded = with_overrides(
        "externalTcpPort=5070\npassword=hunter2\nsmppPort=2776\njmxHtmlAdapterPort=8000\nwhat=1\n",
        &[("nodeTimeout", "9000")],
    );
    let text = check(&loaded);
    let at = |line: &str, from: &str| format!("\n{line:<48} # {from}\n");
    for part in [
        "lb.properties (properties): 0 errors, 1 warnings, 2 notes\n",
        &at("host=127.0.0.1", "line 1"),
        &at("externalUdpPort=5060", "by externalPort, line 2"),
        &at("externalTcpPort=5070", "line 3"),
        &at("internalUdpPort=", "unset"),
        &at("nodeTimeout=9000", "-D"),
        &at("heartbeatInterval=150", "default"),
        &at("password=(not shown)", "line 4"),
        &at("smppPort=2776", "line 5"),
        &at("jmxHtmlAdapterPort=8000", "line 6; no effect"),
        "lb.properties:7: warning: what: unknown; ignored",
    ] {
        assert!(text.contains(part), "{part}in\n{text}");
    }
    assert!(!text.contains("hunter2") && !text.contains("persistentConsistentHash"), "{text}");
    for key in keys().filter(|it| it.status == Status::Active) {
        assert!(text.contains(&format!("\n{}=", key.name())), "{key:?}");
    }
}

/// xorshift64*, so that a seed is the whole story of a failure.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let it = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(it).unwrap() % limit
    }
}

#[test]
fn no_bytes_are_too_strange() {
    const PIECES: [&[u8]; 18] = [
        b"\\",
        b"\\u",
        b"\\uD83D\\uDE00",
        b"\r\n",
        b"\r",
        b"=",
        b":",
        b"\0",
        b"\xff",
        b"<",
        b">",
        b"</sip>",
        b"&x;",
        b"<![CDATA[",
        b"99999999999999999999",
        b"-1",
        b"((((",
        b"[::1]:",
    ];
    for seed in 1..1_000_u64 {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut bytes = [GUIDE, G2, G3][random.below(3)].to_vec();
        for _ in 0..=random.below(12) {
            let at = random.below(bytes.len());
            let piece = PIECES[random.below(PIECES.len())];
            match random.below(4) {
                0 => bytes.truncate(at.max(1)),
                1 => bytes[at] = u8::try_from(random.below(256)).unwrap(),
                2 => drop(bytes.splice(at..at, piece.iter().copied())),
                _ => drop(bytes.splice(at..(at + 20).min(bytes.len()), piece.iter().copied())),
            }
        }
        let loaded = load("mutated", &bytes, &[]);
        assert_eq!(loaded.origins.len(), keys().count(), "seed {seed}");
        assert!(!check(&loaded).is_empty(), "seed {seed}");
    }
}

#[test]
fn depth_and_size_have_limits() {
    let deep = "<load-balancer-properties>".to_owned() + &"<a>".repeat(200_000);
    assert!(load("deep", deep.as_bytes(), &[]).has_errors());
    let closed = format!(
        "<load-balancer-properties>{}{}</load-balancer-properties>",
        "<a>".repeat(40_000),
        "</a>".repeat(40_000)
    );
    assert!(!load("closed", closed.as_bytes(), &[]).has_errors());
    let unknown: String = (0..50_000).map(|it| format!("key{it}=1\n")).collect();
    assert!(properties(&unknown).findings.len() < 250);
    let large = vec![b'#'; 2 * 1024 * 1024];
    assert_eq!(
        errors(&load("large", &large, &[]))[0],
        "large: error: 2097152 bytes; allowed are 1048576"
    );
    let bomb = format!(
        "<!DOCTYPE x [<!ENTITY a \"{}\"><!ENTITY b \"{}\">]><load-balancer-properties>{}</load-balancer-properties>",
        "x".repeat(10_000),
        "&a;".repeat(200),
        "&b;".repeat(200)
    );
    let _ = load("bomb", bomb.as_bytes(), &[]);
}

#[test]
fn heartbeats_open_as_their_generation_did() {
    const HTTP: &str = "org.mobicents.tools.heartbeat.impl.HeartbeatConfigHttp";
    let xml = |class: &str, inside: &str| {
        let class =
            if class.is_empty() { String::new() } else { format!(" configclass=\"{class}\"") };
        xml(&format!("<heartbeat{class}><heartbeatConfig>{inside}</heartbeatConfig></heartbeat>"))
    };
    type Open = (Option<u16>, Option<u16>, Option<u16>);
    let cases: Vec<(&str, Loaded, Open)> = vec![
        ("a", properties(""), (Some(2000), Some(2001), None)),
        ("b", properties("heartbeatPort=2610\n"), (Some(2000), Some(2001), Some(2610))),
        ("c", properties("rmiRegistryPort=0\n"), (None, None, None)),
        ("d", properties("rmiRemoteOjectPort=3001\n"), (Some(2000), Some(3001), None)),
        (
            "e",
            properties("rmiRemoteOjectPort=3001\nrmiRemoteObjectPort=3002\n"),
            (Some(2000), Some(3002), None),
        ),
        ("f", properties("rmiRemoteObjectPort=0\n"), (Some(2000), None, None)),
        ("g", properties(&format!("heartbeat.configclass={HTTP}\n")), (None, None, Some(2610))),
        ("h", xml("", ""), (None, None, Some(2610))),
        ("i", xml(HTTP, "<heartbeatPort>2611</heartbeatPort>"), (None, None, Some(2611))),
        (
            "j",
            xml("x.HeartbeatConfigRmi", "<rmiRegistryPort>3000</rmiRegistryPort>"),
            (Some(3000), Some(2001), None),
        ),
        ("k", xml("x.HeartbeatConfigKube", ""), (None, None, None)),
    ];
    for (name, loaded, want) in cases {
        let it = &loaded.config.heartbeats;
        assert_eq!((it.rmi_port, it.rmi_object_port, it.http_port), want, "{name}");
        assert_eq!(errors(&loaded), Vec::<String>::new(), "{name}");
    }
    let closed = xml("", "<rmiRegistryPort>3000</rmiRegistryPort>");
    let said = warnings(&closed).join("\n");
    assert!(said.contains("heartbeat@configclass asks for another protocol"), "{said}");

    // A port that was written must be free; one that is only a default gives way.
    let taken = properties("statisticPort=2000\n");
    assert_eq!(errors(&taken), Vec::<String>::new());
    assert!(taken.config.has_listener_on(2000) && !taken.config.has_listener_on(2001));
    let twice = properties("statisticPort=2000\nrmiRegistryPort=2000\n");
    assert!(errors(&twice).join("\n").contains("port 2000"), "{:?}", errors(&twice));
    assert_eq!(errors(&properties("rmiRegistryPort=3000\nrmiRemoteObjectPort=3000\n")).len(), 0);
}
