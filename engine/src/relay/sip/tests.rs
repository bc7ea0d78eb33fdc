//! The relay as bytes in, bytes out: one story per test.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use protocols::time::Time;

use super::*;
use crate::config;
use crate::node::{Bad, Node, NodeKey, Origin, Ports, Version};
use crate::relay::{Flow, Listener, ListenerId};

pub(super) const TWO_LEGS: &str =
    "host=10.0.0.1\nexternalPort=5060\ninternalHost=172.16.0.1\ninternalPort=5065\n";
pub(super) const CLIENT: &str = "203.0.113.5:5062";
pub(super) const NODE: &str = "172.16.0.10:5080";

/// One balancer with its nodes, without sockets.
pub(super) struct World {
    pub(super) relay: Relay,
    pub(super) snapshot: Snapshot,
    pub(super) out: Vec<u8>,
    pub(super) now: Time,
}

impl World {
    pub(super) fn new(config: &str) -> World {
        World {
            relay: Relay::new(Arc::new(settings(config)), Shard { index: 0, scattered: false }),
            snapshot: Snapshot::new(1, Vec::new(), &[]),
            out: Vec::new(),
            now: Time::from_millis(1_000),
        }
    }

    pub(super) fn with_nodes(mut self, nodes: &[&str]) -> World {
        self.set_nodes(nodes, &[]);
        self
    }

    /// Nodes as `ip:port[,version]`, every transport on the same port.
    fn set_nodes(&mut self, nodes: &[&str], dead: &[&str]) {
        let nodes = nodes.iter().map(|it| node(it)).collect();
        let dead: Vec<SocketAddr> = dead.iter().map(|it| it.parse().unwrap()).collect();
        self.snapshot = Snapshot::new(self.snapshot.generation() + 1, nodes, &dead);
    }

    pub(super) fn listener(&self, leg: Leg, transport: Transport, family: Family) -> ListenerId {
        let listeners = &self.relay.settings().listeners;
        let at = listeners.iter().position(|it| {
            (it.leg, it.transport, Family::of(it.address.ip())) == (leg, transport, family)
        });
        ListenerId(at.expect("no such listener").try_into().unwrap())
    }

    pub(super) fn send(
        &mut self,
        leg: Leg,
        transport: Transport,
        source: &str,
        message: &str,
    ) -> Verdict {
        let source: SocketAddr = source.parse().unwrap();
        let flow = transport.is_stream().then_some(FLOW);
        let listener = self.listener(leg, transport, Family::of(source.ip()));
        let arrival = Arrival { now: self.now, listener, source, flow };
        let bytes = wire(message);
        self.relay.handle(&arrival, &bytes, &self.snapshot, &mut self.out)
    }

    fn client(&mut self, message: &str) -> Verdict {
        self.send(Leg::External, Transport::Udp, CLIENT, message)
    }

    #[allow(clippy::wrong_self_convention)] // reads as the sender
    fn from_node(&mut self, message: &str) -> Verdict {
        self.send(Leg::Internal, Transport::Udp, NODE, message)
    }

    /// What was sent, with the digits of our branches replaced by `#`.
    pub(super) fn sent(&self) -> String {
        let mut text = String::from_utf8(self.out.clone()).unwrap();
        let mut from = 0;
        while let Some(at) = text[from..].find("branch=z9hG4bK") {
            let start = from + at + "branch=z9hG4bK".len();
            let digits = text[start..].bytes().take_while(u8::is_ascii_hexdigit).count();
            // 16 digits, then the mark; `e` is a digit too.
            if digits == 16 || digits == 17 {
                text.replace_range(start..start + 16, "#");
            }
            from = start;
        }
        text.replace("\r\n", "\n")
    }

    pub(super) fn lines(&self, name: &str) -> Vec<String> {
        let prefix = format!("{name}: ");
        self.sent().lines().filter_map(|it| it.strip_prefix(&prefix)).map(str::to_owned).collect()
    }

    pub(super) fn first_line(&self) -> String {
        self.sent().lines().next().unwrap_or_default().to_owned()
    }
}

fn settings(config: &str) -> Settings {
    let loaded = config::load("test.properties", config.as_bytes(), &[]);
    assert!(!loaded.has_errors(), "{:?}", loaded.findings);
    let config = loaded.config;
    let mut listeners = Vec::new();
    for (leg, it) in [(Leg::External, &config.external), (Leg::Internal, &config.internal)] {
        let host = it.host.clone().or_else(|| config.host.clone()).unwrap();
        for (transport, port) in it.ports.iter() {
            let address = SocketAddr::new(host.parse().unwrap(), port);
            listeners.push(Listener { leg, transport, address });
        }
        let host = it.ipv6_host.clone().or_else(|| config.ipv6_host.clone());
        for (transport, port) in it.ipv6_ports.iter() {
            let address = SocketAddr::new(host.as_ref().unwrap().parse().unwrap(), port);
            listeners.push(Listener { leg, transport, address });
        }
    }
    let extra = config.extra_server_nodes.iter();
    let extra = extra.map(|it| SocketAddr::new(it.host.parse().unwrap(), it.port)).collect();
    Settings::new(config, listeners, extra, *b"0123456789abcdef")
}

pub(super) const FLOW: Flow = Flow { shard: 3, slot: 77, generation: 5 };

fn node(text: &str) -> Node {
    let (address, version) = text.split_once(',').unwrap_or((text, "0"));
    let address: SocketAddr = address.parse().unwrap();
    let version = Version(version.parse().unwrap());
    let mut ports = Ports::default();
    for transport in Transport::ALL {
        ports.open(transport, address.port());
    }
    let ip: IpAddr = address.ip();
    Node {
        key: NodeKey::of(ip, version, &ports),
        host_name: format!("node-{ip}"),
        ip,
        ports,
        version,
        session: None,
        properties: BTreeMap::new(),
        graceful: false,
        bad: None,
        suspect: false,
        joined: Time::ZERO,
        origin: Origin::Heartbeat,
    }
}

pub(super) fn wire(message: &str) -> Vec<u8> {
    message.trim_start_matches('\n').replace('\n', "\r\n").into_bytes()
}

/// The connection there is gone, or nobody listens.
pub(super) fn gone(hop: Hop) -> Failure {
    Failure { hop, reason: DropReason::ConnectionGone, again: Again::Elsewhere }
}

fn datagram(to: &str) -> impl Fn(Verdict) -> bool {
    let want: SocketAddr = to.parse().unwrap();
    move |verdict| match verdict {
        Verdict::Forward { hop: Hop::Datagram { to, .. }, .. }
        | Verdict::Reply { hop: Hop::Datagram { to, .. } } => to == want,
        _ => false,
    }
}

pub(super) const INVITE: &str = "
INVITE sip:bob@example.com SIP/2.0
Via: SIP/2.0/UDP 203.0.113.5:5062;branch=z9hG4bKc1;rport
Max-Forwards: 70
From: <sip:alice@example.com>;tag=a1
To: <sip:bob@example.com>
Call-ID: 8f3ad1@203.0.113.5
CSeq: 1 INVITE
Contact: <sip:alice@203.0.113.5:5062>
Content-Type: application/sdp
Content-Length: 5

v=0
";

/// A request of the dialog that INVITE opened, from the caller, with the route set it learned.
pub(super) fn in_dialog(method: &str, routes: &str, uri: &str) -> String {
    format!(
        "
{method} {uri} SIP/2.0
Via: SIP/2.0/UDP 203.0.113.5:5062;branch=z9hG4bKc2;rport
{routes}Max-Forwards: 70
From: <sip:alice@example.com>;tag=a1
To: <sip:bob@example.com>;tag=b1
Call-ID: 8f3ad1@203.0.113.5
CSeq: 2 {method}
Content-Length: 0

"
    )
}

const OUTER_ROUTE: &str =
    "<sip:10.0.0.1:5060;transport=udp;lr;node_host=172.16.0.10;node_port=5080;version=0>";
const INNER_ROUTE: &str =
    "<sip:172.16.0.1:5065;transport=udp;lr;node_host=172.16.0.10;node_port=5080;version=0>";

#[test]
fn an_invite_crosses_as_the_specification_prints_it() {
    let mut world = World::new(TWO_LEGS).with_nodes(&[NODE]);
    let verdict = world.client(INVITE);
    assert!(datagram(NODE)(verdict), "{verdict:?}");
    assert_eq!(
        world.sent(),
        "INVITE sip:bob@example.com SIP/2.0
Via: SIP/2.0/UDP 172.16.0.1:5065;branch=z9hG4bK#i_0
Via: SIP/2.0/UDP 10.0.0.1:5060;branch=z9hG4bK#e_0
Record-Route: <sip:172.16.0.1:5065;transport=udp;lr;node_host=172.16.0.10;node_port=5080;version=0>
Record-Route: <sip:10.0.0.1:5060;transport=udp;lr;node_host=172.16.0.10;node_port=5080;version=0>
Route: <sip:172.16.0.10:5080;transport=udp;lr>
Via: SIP/2.0/UDP 203.0.113.5:5062;branch=z9hG4bKc1;rport=5062;received=203.0.113.5
Max-Forwards: 69
From: <sip:alice@example.com>;tag=a1
To: <sip:bob@example.com>
Call-ID: 8f3ad1@203.0.113.5
CSeq: 1 INVITE
Contact: <sip:alice@203.0.113.5:5062>
Content-Type: application/sdp
Content-Length: 5
X-Sip-Balancer-InitialRemoteAddr: 203.0.113.5
X-Sip-Balancer-InitialRemotePort: 5062

v=0
"
    );
}

#[test]
fn a_response_from_a_node_goes_back_to_the_client_without_our_vias() {
    let mut world = World::new(TWO_LEGS).with_nodes(&[NODE]);
    world.client(INVITE);
    let vias: String = world.lines("Via").iter().map(|it| format!("Via: {it}\n")).collect();
    let answer = format!(
        "
SIP/2.0 200 OK
{vias}From: <sip:alice@example.com>;tag=a1
To: <sip:bob@example.com>;tag=b1
Call-ID: 8f3ad1@203.0.113.5
CSeq: 1 INVITE
Contact: <sip:172.16.0.10:5080>
Content-Length: 0

"
    );
    let verdict = world.from_node(&answer);
    assert!(datagram(CLIENT)(verdict), "{verdict:?}");
    assert_eq!(
        world.sent(),
        "SIP/2.0 200 OK
Via: SIP/2.0/UDP 203.0.113.5:5062;branch=z9hG4bKc1;rport=5062;received=203.0.113.5
From: <sip:alice@example.com>;tag=a1
To: <sip:bob@example.com>;tag=b1
Call-ID: 8f3ad1@203.0.113.5
CSeq: 1 INVITE
Contact: <sip:172.16.0.10:5080>
Content-Length: 0

"
    );
}

#[test]
fn an_in_dialog_request_reaches_the_node_of_its_hint_whatever_the_routes_look_like() {
    let uri = "sip:bob@172.16.0.10:5080";
    let cases = [
        ("two lines", format!("Route: {OUTER_ROUTE}\nRoute: {INNER_ROUTE}\n")),
        ("one line", format!("Route: {OUTER_ROUTE}, {INNER_ROUTE}\n")),
        ("only the outer", format!("Route: {OUTER_ROUTE}\n")),
        ("only the inner", format!("Route: {INNER_ROUTE}\n")),
        ("repeated as SIPp does", format!("Route: {OUTER_ROUTE},{INNER_ROUTE},{OUTER_ROUTE}\n")),
        ("other transport in it", format!("Route: {}\n", OUTER_ROUTE.replace("udp", "tls"))),
        ("none: by Request-URI", String::new()),
    ];
    for (case, routes) in cases {
        // The algorithm alone would take turns.
        let mut world =
            World::new(TWO_LEGS).with_nodes(&["172.16.0.9:5080", NODE, "172.16.0.11:5080"]);
        for turn in 0..4 {
            let verdict = world.client(&in_dialog("BYE", &routes, uri));
            assert!(datagram(NODE)(verdict), "{case}, turn {turn}: {verdict:?}");
            assert_eq!(world.lines("Route"), Vec::<String>::new(), "{case}");
            assert_eq!(world.lines("Record-Route"), Vec::<String>::new(), "{case}");
            assert!(world.first_line().starts_with("BYE sip:bob@172.16.0.10:5080 "), "{case}");
        }
    }
}

#[test]
fn a_hint_to_a_dead_node_fails_over_and_keeps_the_applications_route() {
    let mut world = World::new(TWO_LEGS).with_nodes(&["172.16.0.11:5090"]);
    let routes = format!(
        "Route: {OUTER_ROUTE}\nRoute: {INNER_ROUTE}\nRoute: <sip:app@172.16.0.10:5080;lr;appname=x;transport=udp>\n"
    );
    let verdict = world.client(&in_dialog("BYE", &routes, "sip:bob@172.16.0.10:5080"));
    assert!(datagram("172.16.0.11:5090")(verdict), "{verdict:?}");
    assert_eq!(world.lines("Route"), ["<sip:app@172.16.0.11:5090;lr;appname=x;transport=udp>"]);
    assert_eq!(world.first_line(), "BYE sip:bob@172.16.0.11:5090 SIP/2.0");
}

#[test]
fn a_dialog_leaves_a_node_that_refuses_for_one_that_is_leaving_and_a_new_call_does_not() {
    let mut leaving = node("172.16.0.11:5080");
    leaving.graceful = true;
    let both = Snapshot::new(2, vec![node(NODE), leaving], &[]);
    let routes = format!("Route: {OUTER_ROUTE}\nRoute: {INNER_ROUTE}\n");
    for entry in crate::balance::ALGORITHMS {
        let mut world = World::new(&format!("{TWO_LEGS}algorithmClass=x.{}\n", entry.name));
        world.snapshot = both.suspecting(node(NODE).key);
        let verdict = world.client(&in_dialog("BYE", &routes, "sip:bob@172.16.0.10:5080"));
        let is_worst_case = entry.name.starts_with("WorstCase");
        let is_active_standby = entry.name.starts_with("ActiveStandby");
        if !is_worst_case && !is_active_standby {
            assert!(datagram("172.16.0.11:5080")(verdict), "{}: {verdict:?}", entry.name);
        }
        let verdict = world.client(&INVITE.replace("8f3ad1", "another"));
        assert!(datagram(NODE)(verdict), "{}: {verdict:?}", entry.name);
    }
}

#[test]
fn the_ack_of_a_dialog_follows_it_to_the_heir_even_if_that_is_leaving() {
    let mut world =
        World::new(&format!("{TWO_LEGS}algorithmClass=x.HeaderConsistentHashBalancerAlgorithm\n"));
    let mut leaving = node("172.16.0.11:5080");
    leaving.graceful = true;
    world.snapshot = Snapshot::new(2, vec![leaving, node("172.16.0.12:5080")], &[]);
    let routes = format!("Route: {OUTER_ROUTE}\nRoute: {INNER_ROUTE}\n");
    for call in 0..20 {
        let [invite, ack] = ["INVITE", "ACK"].map(|method| {
            let request = in_dialog(method, &routes, "sip:bob@172.16.0.10:5080");
            world.client(&request.replace("8f3ad1", &format!("call{call}")))
        });
        assert_eq!(invite, ack, "call {call}");
    }
}

#[test]
fn a_dialog_without_route_set_finds_its_node_although_a_newer_version_runs() {
    let mut world = World::new(TWO_LEGS).with_nodes(&["172.16.0.10:5080,0", "172.16.0.11:5080,1"]);
    let uri = "sip:bob@172.16.0.10:5080";
    for method in ["BYE", "ACK", "INFO"] {
        let verdict = world.client(&in_dialog(method, "", uri));
        assert!(datagram(NODE)(verdict), "{method}: {verdict:?}");
    }
    let verdict = world.client(&INVITE.replace("sip:bob@example.com SIP", &format!("{uri} SIP")));
    assert!(datagram("172.16.0.11:5080")(verdict), "a new call: {verdict:?}");
}

#[test]
fn failover_stays_inside_the_version_of_the_dialog() {
    let routes = format!("Route: {OUTER_ROUTE}\nRoute: {INNER_ROUTE}\n");
    let bye = in_dialog("BYE", &routes, "sip:bob@172.16.0.10:5080");
    let mut world = World::new(TWO_LEGS).with_nodes(&["172.16.0.10:5080,2", "172.16.0.11:5090,0"]);
    let verdict = world.client(&bye);
    assert!(datagram("172.16.0.11:5090")(verdict), "{verdict:?}");
    world.set_nodes(&["172.16.0.10:5080,2"], &[]);
    world.client(&bye);
    assert_eq!(world.first_line(), "SIP/2.0 500 No nodes available");
    // New calls go to the newest.
    let verdict = world.client(INVITE);
    assert!(datagram(NODE)(verdict), "{verdict:?}");
    assert!(world.lines("Via")[0].ends_with("i_2"), "{}", world.sent());
}

/// A newest version that wants no calls, or cannot take them, leaves them to the one before it.
#[test]
fn new_calls_go_to_the_newest_version_that_takes_them() {
    const NEWER: &str = "172.16.0.11:5090";
    let changes: [fn(&mut Node); 3] = [
        |it| it.graceful = true,
        |it| it.bad = Some(crate::node::Bad::Silence),
        |it| it.ports.0[Transport::Udp.index()] = None,
    ];
    for algorithm in ["CallIDAffinityBalancerAlgorithm", "HeaderConsistentHashBalancerAlgorithm"] {
        for (case, change) in (0..).zip(changes) {
            let mut world = World::new(&format!("{TWO_LEGS}algorithmClass={algorithm}\n"));
            let mut newer = node(&format!("{NEWER},2"));
            change(&mut newer);
            world.snapshot = Snapshot::new(1, vec![node(NODE), newer], &[]);
            for method in ["INVITE", "CANCEL", "ACK", "REGISTER"] {
                let verdict = world.client(&INVITE.replace("INVITE", method));
                assert!(datagram(NODE)(verdict), "{algorithm} {case} {method}: {verdict:?}");
            }
            // The response to a request whose node is gone finds one too.
            world.from_node(NODE_INVITE);
            let answer = callee_answer(&world, "200 OK").replace("_0", "_9");
            world.snapshot = Snapshot::new(
                2,
                vec![node("172.16.0.12:5080"), world.snapshot.nodes()[1].clone()],
                &[NODE.parse().unwrap()],
            );
            let verdict = world.client(&answer);
            assert!(datagram("172.16.0.12:5080")(verdict), "{algorithm} {case}: {verdict:?}");
        }
    }
}

/// `sip.md` 5.8: what is remembered, and nothing else.
#[test]
fn a_switchover_moves_neither_hashes_nor_hints() {
    let hash = "algorithmClass=HeaderConsistentHashBalancerAlgorithm\n";
    let mut world =
        World::new(&format!("{TWO_LEGS}{hash}")).with_nodes(&[NODE, "172.16.0.11:5080"]);
    let calls: Vec<String> =
        (0..8).map(|it| INVITE.replace("8f3ad1", &format!("call{it}"))).collect();
    let switch_over = |world: &mut World| {
        let [from, to] = [NODE, "172.16.0.11:5080"].map(|it| node(it).key);
        world.relay.switch_over(from, to);
    };
    let homes: Vec<Verdict> = calls.iter().map(|it| world.client(it)).collect();
    assert!(homes.iter().any(|it| datagram(NODE)(*it)), "somebody could move");
    switch_over(&mut world);
    for (call, home) in calls.iter().zip(homes) {
        assert_eq!(world.client(call), home);
    }
    let mut world = World::new(TWO_LEGS).with_nodes(&[NODE, "172.16.0.11:5080"]);
    let routes = format!("Route: {OUTER_ROUTE}\nRoute: {INNER_ROUTE}\n");
    switch_over(&mut world);
    for method in ["INFO", "BYE"] {
        let verdict = world.client(&in_dialog(method, &routes, "sip:bob@172.16.0.10:5080"));
        assert!(datagram(NODE)(verdict), "{method}: {verdict:?}");
    }
}

#[test]
fn a_response_counts_against_its_node_by_code_and_reason() {
    let codes = "responsesStatusCodeNodeRemoval=503\n";
    let reason = "responseReasonNodeRemoval=Media failure\n";
    let cases = [
        ("", "503 Busy", 1),
        ("", "486 Busy", 0),
        (reason, "503 Media failure", 1),
        (reason, "503 Media", 0),
        (reason, "486 Media failure", 0),
    ];
    for (reason, status, want) in cases {
        let mut world = World::new(&format!("{TWO_LEGS}{codes}{reason}")).with_nodes(&[NODE]);
        world.client(INVITE);
        let answer = callee_answer(&world, status);
        world.from_node(&answer);
        let told = world.relay.poll_report(world.now, &world.snapshot);
        let is_right = matches!(told, Some(Report::Seen { errors, .. }) if errors == want);
        assert!(is_right, "{reason}{status}: {told:?}");
    }
}

/// Keys that change how calls are remembered are changed while calls ring.
#[test]
fn a_reload_forgets_no_call() {
    let mut world = World::new(TWO_LEGS).with_nodes(&[NODE, "172.16.0.11:5080"]);
    let calls: Vec<String> =
        (0..7).map(|it| INVITE.replace("8f3ad1", &format!("call{it}"))).collect();
    let homes: Vec<Verdict> = calls.iter().map(|it| world.client(it)).collect();
    let mut config = TWO_LEGS.to_owned();
    for line in [
        "callIdAffinityMaxTimeInCache=700",
        "callIdAffinityMaxCalls=5000",
        "callIdAffinityGroupFailover=true",
        "subclusterMap=(172.16.0.10,172.16.0.11)",
        "trafficRampupCyclePeriod=10000",
        "earlyDialogWorstCase=true",
    ] {
        config.push_str(&format!("{line}\n"));
        world.relay.configure(Arc::new(settings(&config)));
        for (call, home) in calls.iter().zip(&homes) {
            assert_eq!(world.client(call), *home, "{line}");
            assert_eq!(world.client(&call.replace("INVITE", "CANCEL")), *home, "{line}");
        }
        let calls_of = |it: &Node| world.relay.state.calls.of(world.now, it.key).up();
        assert_eq!(world.snapshot.nodes().iter().map(calls_of).sum::<u64>(), 7, "{line}");
    }
}

#[test]
fn nobody_from_outside_makes_us_send_to_what_is_no_node() {
    let cases = [
        (
            "forged hint",
            "Route: <sip:10.0.0.1:5060;lr;node_host=172.16.9.9;node_port=22>\n",
            "sip:x@172.16.9.9:22",
        ),
        ("foreign Route", "Route: <sip:172.16.9.9:22;lr>\n", "sip:x@172.16.9.9:22"),
        ("good hint, foreign URI", &format!("Route: {OUTER_ROUTE}\n"), "sip:x@172.16.9.9:22"),
        ("hint in the URI", "", "sip:x@172.16.9.9:22;node_host=172.16.9.9;node_port=22"),
        ("maddr", "", "sip:x@example.com;maddr=172.16.9.9"),
        (
            "good hint and maddr",
            &format!("Route: {OUTER_ROUTE}\n"),
            "sip:x@172.16.0.10:5080;maddr=172.16.9.9",
        ),
    ];
    for (case, routes, uri) in cases {
        for method in ["OPTIONS", "BYE"] {
            let mut world = World::new(TWO_LEGS).with_nodes(&[NODE]);
            let mut message = in_dialog(method, routes, uri);
            if method == "OPTIONS" {
                message = message.replace(";tag=b1", "");
            }
            let verdict = world.client(&message);
            assert!(datagram(NODE)(verdict), "{case} {method}: {verdict:?}");
        }
    }
}

#[test]
fn the_request_uri_is_rewritten_only_where_it_was_us() {
    let cases = [
        ("us", "sip:LittleGuy@10.0.0.1:5060", "sip:LittleGuy@172.16.0.10:5080", 0),
        ("us, default port", "sip:10.0.0.1", "sip:172.16.0.10:5080", 0),
        (
            "us, with transport",
            "sip:x@10.0.0.1:5060;transport=tls;a=b?h=1",
            "sip:x@172.16.0.10:5080;transport=udp;a=b?h=1",
            0,
        ),
        ("a domain", "sip:bob@example.com", "sip:bob@example.com", 1),
        ("another port of ours is not us", "sip:bob@10.0.0.1:7000", "sip:bob@10.0.0.1:7000", 1),
        ("the node itself", "sip:bob@172.16.0.10:5080", "sip:bob@172.16.0.10:5080", 0),
        ("tel", "tel:+4930123;phone-context=x", "tel:+4930123;phone-context=x", 1),
        ("urn", "urn:service:sos", "urn:service:sos", 1),
    ];
    for (case, uri, want, routes) in cases {
        let mut world = World::new(TWO_LEGS).with_nodes(&[NODE]);
        let verdict =
            world.client(&INVITE.replace("sip:bob@example.com SIP", &format!("{uri} SIP")));
        assert!(datagram(NODE)(verdict), "{case}: {verdict:?}");
        assert_eq!(world.first_line(), format!("INVITE {want} SIP/2.0"), "{case}");
        assert_eq!(world.lines("Route").len(), routes, "{case}");
    }
}

#[test]
fn a_preloaded_route_to_us_is_taken_off_and_one_to_a_node_is_followed() {
    let mut world = World::new(TWO_LEGS).with_nodes(&["172.16.0.9:5080", NODE]);
    let invite = INVITE.replace(
        "Max-Forwards",
        "Route: <sip:10.0.0.1;lr>, <sip:x@172.16.0.10:5080;lr>\nMax-Forwards",
    );
    for turn in 0..3 {
        let verdict = world.client(&invite);
        assert!(datagram(NODE)(verdict), "turn {turn}: {verdict:?}");
        assert_eq!(world.lines("Route"), ["<sip:x@172.16.0.10:5080;lr>"]);
    }
}

#[test]
fn calls_alternate_and_retransmissions_cancel_and_ack_follow_their_invite() {
    let mut world = World::new(TWO_LEGS).with_nodes(&[NODE, "172.16.0.11:5080"]);
    let mut last = None;
    for call in 0..6 {
        let invite = INVITE.replace("8f3ad1", &format!("call{call}"));
        let first = world.client(&invite);
        let branch = world.lines("Via")[0].clone();
        let vias = String::from_utf8(world.out.clone()).unwrap();
        assert_ne!(Some(first), last, "call {call} went where the one before went");
        last = Some(first);
        assert_eq!(world.client(&invite), first, "retransmission of call {call}");
        assert_eq!(
            String::from_utf8(world.out.clone()).unwrap(),
            vias,
            "retransmissions are equal"
        );
        let cancel = invite.replace("INVITE", "CANCEL");
        assert_eq!(world.client(&cancel), first, "CANCEL of call {call}");
        assert_eq!(world.lines("Via")[0], branch);
        let ack =
            invite.replace("INVITE", "ACK").replace("bob@example.com>", "bob@example.com>;tag=n");
        assert_eq!(world.client(&ack), first, "ACK of a failed call {call}");
        let ours =
            |text: &[u8]| text.windows(30).find(|it| it.starts_with(b"z9hG4bK")).unwrap().to_vec();
        assert_eq!(ours(&world.out), ours(vias.as_bytes()), "the transaction's branch");
    }
}

#[test]
fn branches_tell_transactions_and_our_two_vias_apart() {
    let mut world = World::new(TWO_LEGS).with_nodes(&[NODE]);
    let mut seen = std::collections::BTreeSet::new();
    let variants = [
        INVITE.to_owned(),
        INVITE.replace("z9hG4bKc1", "z9hG4bKc2"),
        INVITE.replace("203.0.113.5:5062;branch", "203.0.113.6:5062;branch"),
        INVITE.replace(";branch=z9hG4bKc1", ""),
        INVITE.replace(";branch=z9hG4bKc1", "").replace("CSeq: 1", "CSeq: 2"),
        INVITE.replace(";branch=z9hG4bKc1", ";branch=1").replace("8f3ad1", "8f3ad2"),
        // The cookie and nothing else (RFC 4475 §3.1.2.18) is the same for all.
        INVITE.replace("z9hG4bKc1", "z9hG4bK"),
        INVITE.replace("z9hG4bKc1", "z9hG4bK").replace("8f3ad1", "8f3ad3"),
    ];
    for variant in &variants {
        world.client(variant);
        for line in String::from_utf8(world.out.clone()).unwrap().lines().take(3).skip(1) {
            assert!(seen.insert(line.to_owned()), "twice: {line} for {variant}");
        }
    }
    let plain = variants[3].clone();
    world.client(&plain);
    let invite = world.out.clone();
    world.client(&plain.replace("INVITE", "CANCEL"));
    assert_eq!(invite[60..130], world.out[60..130], "a transaction of RFC 2543 keeps its branch");
}

#[test]
fn received_and_rport_are_written_as_rfc_3581_says() {
    let from = "203.0.113.5:5062";
    let cases = [
        // (case, Via as sent, transport, Via as forwarded)
        (
            "rport asked",
            "SIP/2.0/UDP 203.0.113.5:5062;branch=z9hG4bKa;rport",
            "SIP/2.0/UDP 203.0.113.5:5062;branch=z9hG4bKa;rport=5062;received=203.0.113.5",
        ),
        (
            "not asked, same host",
            "SIP/2.0/UDP 203.0.113.5:9;branch=z9hG4bKa",
            "SIP/2.0/UDP 203.0.113.5:9;branch=z9hG4bKa",
        ),
        (
            "not asked, other host",
            "SIP/2.0/UDP pc.example.com:9;branch=z9hG4bKa",
            "SIP/2.0/UDP pc.example.com:9;branch=z9hG4bKa;received=203.0.113.5",
        ),
        (
            "a lie is replaced",
            "SIP/2.0/UDP 10.1.1.1;received=10.9.9.9;branch=z9hG4bKa",
            "SIP/2.0/UDP 10.1.1.1;branch=z9hG4bKa;received=203.0.113.5",
        ),
        (
            "a lie without need is removed",
            "SIP/2.0/UDP 203.0.113.5:5062;received=10.9.9.9;branch=z9hG4bKa",
            "SIP/2.0/UDP 203.0.113.5:5062;branch=z9hG4bKa",
        ),
        (
            "rport with a lie",
            "SIP/2.0/UDP 203.0.113.5;rport=1;branch=z9hG4bKa;x=y",
            "SIP/2.0/UDP 203.0.113.5;rport=5062;branch=z9hG4bKa;x=y;received=203.0.113.5",
        ),
        (
            "blanks and case stay",
            "SIP / 2.0 / UDP  pc.example.com : 9 ; BRANCH = z9hG4bKa",
            "SIP / 2.0 / UDP  pc.example.com : 9 ; BRANCH = z9hG4bKa;received=203.0.113.5",
        ),
    ];
    for (case, sent, want) in cases {
        let mut world = World::new(TWO_LEGS).with_nodes(&[NODE]);
        let message = INVITE.replace("SIP/2.0/UDP 203.0.113.5:5062;branch=z9hG4bKc1;rport", sent);
        world.send(Leg::External, Transport::Udp, from, &message);
        assert_eq!(world.lines("Via")[2], want, "{case}");
    }
    let mut world = World::new(TWO_LEGS).with_nodes(&[NODE]);
    world.send(
        Leg::External,
        Transport::Tcp,
        from,
        &INVITE.replace(";rport", "").replace("UDP", "TCP"),
    );
    assert_eq!(
        world.lines("Via").last().unwrap(),
        "SIP/2.0/TCP 203.0.113.5:5062;branch=z9hG4bKc1;rport=5062"
    );
}

#[test]
fn max_forwards_counts_down_and_ends() {
    let cases = [
        ("Max-Forwards: 70\n", "70", Some("69"), None),
        ("one is enough for one more hop", "1", Some("0"), None),
        ("none left", "0", None, Some("SIP/2.0 483 Too Many Hops")),
        ("too large a number is no reason to refuse", "300", Some("254"), None),
    ];
    for (case, value, want, refused) in cases {
        let mut world = World::new(TWO_LEGS).with_nodes(&[NODE]);
        let verdict =
            world.client(&INVITE.replace("Max-Forwards: 70", &format!("Max-Forwards: {value}")));
        match (want, refused) {
            (Some(want), _) => assert_eq!(world.lines("Max-Forwards"), [want], "{case}"),
            (None, Some(line)) => {
                assert_eq!(world.first_line(), line, "{case}");
                assert!(datagram(CLIENT)(verdict), "{case}: {verdict:?}");
                assert!(
                    world.lines("To")[0].contains(";tag="),
                    "{case}: own answers have a To tag"
                );
            }
            _ => unreachable!(),
        }
    }
    let mut world = World::new(TWO_LEGS).with_nodes(&[NODE]);
    world.client(&INVITE.replace("Max-Forwards: 70\n", ""));
    assert_eq!(world.lines("Max-Forwards"), ["70"], "missing");
    let ack = INVITE.replace("INVITE", "ACK").replace(": 70", ": 0");
    assert_eq!(world.client(&ack), Verdict::Drop(DropReason::MaxForwards), "never answered");
}

#[test]
fn without_nodes_the_answer_is_500_and_configurable() {
    let mut world = World::new(TWO_LEGS);
    let verdict = world.client(INVITE);
    assert!(datagram(CLIENT)(verdict), "{verdict:?}");
    let answer = world.sent();
    assert_eq!(world.first_line(), "SIP/2.0 500 No nodes available");
    assert_eq!(world.lines("Via").len(), 1);
    world.client(INVITE);
    assert_eq!(world.sent(), answer, "the same To tag for a retransmission");
    assert_eq!(world.client(&INVITE.replace("INVITE", "ACK")), Verdict::Drop(DropReason::NoNode));
    let mut world = World::new(&format!("{TWO_LEGS}noNodeStatusCode=503\n"));
    world.client(INVITE);
    assert_eq!(world.first_line(), "SIP/2.0 503 No nodes available");
    assert_eq!(world.lines("Retry-After").len(), 1);
}

#[test]
fn blocked_words_are_dropped_silently_from_outside_only() {
    let scanner = INVITE.replace("Max-Forwards", "User-Agent: Friendly-SCANNER 1\nMax-Forwards");
    let mut world = World::new(TWO_LEGS).with_nodes(&[NODE]);
    assert_eq!(world.client(&scanner), Verdict::Drop(DropReason::Blocked));
    // Naming a live node does not get around it.
    let hinted = scanner.replace("Max-Forwards", &format!("Route: {OUTER_ROUTE}\nMax-Forwards"));
    assert_eq!(world.client(&hinted), Verdict::Drop(DropReason::Blocked));
    let caller = INVITE.replace("sip:alice@", "sip:sipvicious@");
    assert_eq!(world.client(&caller), Verdict::Drop(DropReason::Blocked));
    let mut world = World::new(&format!("{TWO_LEGS}blocked-values=\n")).with_nodes(&[NODE]);
    assert!(datagram(NODE)(world.client(&scanner)), "an empty list blocks nothing");
}

#[test]
fn scanners_of_the_congestion_valve_are_never_answered_and_may_end_what_they_began() {
    let agent = |request: &str, agent: &str| {
        request.replace("Max-Forwards", &format!("User-Agent: {agent}\nMax-Forwards"))
    };
    let scanners = "org.mobicents.ext.javax.sip.congestion.SIP_SCANNERS=sipx\n";
    let valve = "gov.nist.javax.sip.SIP_MESSAGE_VALVE=\
        gov.nist.javax.sip.stack.CongestionControlMessageValve,x.SIPBalancerValveProcessor\n";
    let config = format!("{TWO_LEGS}blockedResponse=403\n{scanners}");
    let mut world = World::new(&format!("{config}{valve}")).with_nodes(&[NODE]);
    assert_eq!(world.client(&agent(INVITE, "SipX/1")), Verdict::Drop(DropReason::Blocked));
    for method in ["BYE", "ACK", "PRACK", "CANCEL"] {
        let request = agent(&in_dialog(method, "", "sip:bob@172.16.0.10:5080"), "sipx");
        assert!(datagram(NODE)(world.client(&request)), "{method}");
    }
    world.client(&agent(INVITE, "sipcli"));
    assert_eq!(world.first_line(), "SIP/2.0 403 Forbidden", "blocked-values have their own answer");
    let mut world = World::new(&config).with_nodes(&[NODE]);
    assert!(datagram(NODE)(world.client(&agent(INVITE, "sipx"))), "without the valve");
}

#[test]
fn the_applications_headers_cannot_be_forged() {
    let forged = "X-Sip-Balancer-InitialRemoteAddr: 6.6.6.6\n";
    let mut world = World::new(TWO_LEGS).with_nodes(&[NODE]);
    world.client(&INVITE.replace("Max-Forwards", &format!("{forged}Max-Forwards")));
    assert_eq!(world.lines("X-Sip-Balancer-InitialRemoteAddr"), ["203.0.113.5"]);
    world.client(&in_dialog("BYE", forged, "sip:bob@172.16.0.10:5080"));
    assert_eq!(world.lines("X-Sip-Balancer-InitialRemoteAddr"), Vec::<String>::new(), "no body");
    let register = in_dialog("REGISTER", "", "sip:example.com").replace(";tag=b1", "");
    world.client(&register);
    assert_eq!(world.lines("X-Sip-Balancer-InitialRemotePort"), ["5062"], "REGISTER always");
    assert_eq!(world.lines("Record-Route"), Vec::<String>::new());
}

pub(super) const NODE_INVITE: &str = "
INVITE sip:usera@127.0.0.1:5033 SIP/2.0
Via: SIP/2.0/UDP 172.16.0.10:5080;branch=z9hG4bKn1
Route: <sip:lbint@172.16.0.1:5065;transport=udp;node_host=172.16.0.10;node_port=5080;lr>
Max-Forwards: 70
X-Sip-Balancer-InitialRemoteAddr: 6.6.6.6
From: <sip:sender@example.com>;tag=n1
To: <sip:usera@example.com>
Call-ID: out1
CSeq: 1 INVITE
Contact: <sip:172.16.0.10:5080>
Content-Length: 0

";

#[test]
fn a_node_calls_out_and_its_dialog_is_stamped() {
    let mut world = World::new(TWO_LEGS).with_nodes(&[NODE]);
    let verdict = world.from_node(NODE_INVITE);
    assert!(datagram("127.0.0.1:5033")(verdict), "{verdict:?}");
    assert_eq!(
        world.sent(),
        "INVITE sip:usera@127.0.0.1:5033 SIP/2.0
Via: SIP/2.0/UDP 10.0.0.1:5060;branch=z9hG4bK#e_0
Via: SIP/2.0/UDP 172.16.0.1:5065;branch=z9hG4bK#i_0
Record-Route: <sip:10.0.0.1:5060;transport=udp;lr;node_host=172.16.0.10;node_port=5080;version=0>
Record-Route: <sip:172.16.0.1:5065;transport=udp;lr;node_host=172.16.0.10;node_port=5080;version=0>
Via: SIP/2.0/UDP 172.16.0.10:5080;branch=z9hG4bKn1
Max-Forwards: 69
From: <sip:sender@example.com>;tag=n1
To: <sip:usera@example.com>
Call-ID: out1
CSeq: 1 INVITE
Contact: <sip:172.16.0.10:5080>
Content-Length: 0

"
    );
    let hint = ";node_host=172.16.0.10;node_port=5080";
    world.from_node(&NODE_INVITE.replace(hint, ""));
    assert!(
        world.lines("Record-Route")[0].contains("node_host=172.16.0.10"),
        "known by its address"
    );
    let over_tcp = NODE_INVITE.replace(hint, "").replace("UDP 172", "TCP 172");
    world.send(Leg::Internal, Transport::Tcp, "172.16.0.10:40000", &over_tcp);
    assert!(
        world.lines("Record-Route")[0].contains("node_host=172.16.0.10"),
        "known by its Via, which it sends from another port"
    );
    world.send(Leg::Internal, Transport::Tcp, "172.16.0.99:40000", &over_tcp);
    assert!(!world.lines("Record-Route")[0].contains("node_host"), "anybody can write that Via");
    world.send(Leg::Internal, Transport::Udp, "172.16.0.99:5060", &NODE_INVITE.replace(hint, ""));
    assert!(
        !world.lines("Record-Route")[0].contains("node_host"),
        "an unknown sender is not stamped"
    );
}

/// The 180 or 200 that the callee sends to [`NODE_INVITE`].
fn callee_answer(world: &World, status: &str) -> String {
    let vias: String = String::from_utf8(world.out.clone())
        .unwrap()
        .lines()
        .filter(|it| it.starts_with("Via: "))
        .map(|it| format!("{it}\n"))
        .collect();
    format!(
        "
SIP/2.0 {status}
{vias}From: <sip:sender@example.com>;tag=n1
To: <sip:usera@example.com>;tag=u1
Call-ID: out1
CSeq: 1 INVITE
Content-Length: 0

"
    )
}

#[test]
fn a_response_from_outside_reaches_its_node_or_a_survivor() {
    let mut world = World::new(TWO_LEGS).with_nodes(&[NODE, "172.16.0.11:5090"]);
    world.from_node(&NODE_INVITE.replace("bKn1", "bKn1;rport"));
    let ringing = callee_answer(&world, "180 Ringing");
    let from = "127.0.0.1:5033";
    let verdict = world.send(Leg::External, Transport::Udp, from, &ringing);
    assert!(datagram(NODE)(verdict), "{verdict:?}");
    assert_eq!(world.lines("X-Sip-Balancer-InitialRemotePort"), ["5033"]);
    assert_eq!(
        world.lines("Via"),
        ["SIP/2.0/UDP 172.16.0.10:5080;branch=z9hG4bKn1;rport=5080;received=172.16.0.10"]
    );
    world.set_nodes(&["172.16.0.11:5090"], &[NODE]);
    let ok = ringing.replace("180 Ringing", "200 OK");
    let verdict = world.send(Leg::External, Transport::Udp, from, &ok);
    assert!(datagram("172.16.0.11:5090")(verdict), "{verdict:?}");
    assert_eq!(world.lines("Via"), ["SIP/2.0/UDP 172.16.0.11:5090;branch=z9hG4bKn1"]);
}

#[test]
fn nobody_from_outside_makes_us_send_a_response_to_what_is_no_node() {
    let victims = [
        ("a stranger", "172.16.9.9:22;branch=z9hG4bKx"),
        ("a stranger, received", "pc.example.com;branch=z9hG4bKx;received=172.16.9.9;rport=22"),
        ("a node, received elsewhere", "172.16.0.10:5080;received=172.16.9.9;rport=22"),
        ("a node's other port", "172.16.0.10:5080;received=172.16.0.10;rport=22"),
        ("a node behind a stranger", "172.16.9.9:5080;received=172.16.0.10"),
    ];
    for keys in ["", "isUseWithNexmo=true\n"] {
        for (case, via) in victims {
            let mut world = World::new(&format!("{TWO_LEGS}{keys}")).with_nodes(&[NODE]);
            world.from_node(&NODE_INVITE.replace("bKn1", "bKn1;rport"));
            let vias: String =
                world.lines("Via")[..2].iter().map(|it| format!("Via: {it}\n")).collect();
            let forged = format!(
                "\nSIP/2.0 180 Ringing\n{vias}Via: SIP/2.0/UDP {via}\nFrom: <sip:a@b>;tag=1\nTo: <sip:c@d>;tag=2\nCall-ID: x\nCSeq: 1 INVITE\nContent-Length: 0\n\n"
            );
            let verdict = world.client(&forged);
            assert!(datagram(NODE)(verdict), "{case} {keys}: {verdict:?}");
            world.set_nodes(&[], &[]);
            let verdict = world.client(&forged);
            assert!(matches!(verdict, Verdict::Drop(_)), "{case} {keys}: {verdict:?}");
        }
    }
}

#[test]
fn responses_that_are_not_ours_go_nowhere() {
    let response = |vias: &str| {
        format!(
            "\nSIP/2.0 200 OK\n{vias}From: <sip:a@b>;tag=1\nTo: <sip:c@d>;tag=2\nCall-ID: x\nCSeq: 1 BYE\nContent-Length: 0\n\n"
        )
    };
    let inner = "Via: SIP/2.0/UDP 172.16.0.1:5065;branch=z9hG4bK0123456789abcdefi_0\n";
    let outer = "Via: SIP/2.0/UDP 10.0.0.1:5060;branch=z9hG4bK0123456789abcdefe_0\n";
    let cases = [
        (
            "foreign top Via",
            "Via: SIP/2.0/UDP 1.2.3.4:5060;branch=z9hG4bKx\n".to_owned(),
            DropReason::NotOurs,
        ),
        ("only ours", format!("{inner}{outer}"), DropReason::NoVia),
        (
            "a name below and no received",
            format!("{inner}{outer}Via: SIP/2.0/UDP pc.example.com\n"),
            DropReason::Unresolved,
        ),
        (
            "a transport that we do not listen on",
            format!("{inner}{outer}Via: SIP/2.0/UDP 1.2.3.4\n")
                .replace("UDP 10.0.0.1", "TLS 10.0.0.1"),
            DropReason::NoListener,
        ),
    ];
    for (case, vias, reason) in cases {
        let mut world = World::new(TWO_LEGS).with_nodes(&[NODE]);
        assert_eq!(world.from_node(&response(&vias)), Verdict::Drop(reason), "{case}");
    }
    // An absurd version in the branch names no cluster, and costs nothing.
    let mut world = World::new(TWO_LEGS).with_nodes(&[NODE]);
    let vias = format!("{inner}{outer}Via: SIP/2.0/UDP 1.2.3.4:9;branch=z9hG4bKx\n")
        .replace("_0", "_99999999999");
    assert!(datagram("1.2.3.4:9")(world.from_node(&response(&vias))));
}

#[test]
fn a_node_is_stamped_with_any_port_it_has_and_found_by_any() {
    let mut ports = Ports::default();
    ports.open(Transport::Tcp, 5090);
    let mut only_tcp = node(NODE);
    only_tcp.ports = ports;
    let mut world = World::new(TWO_LEGS);
    world.snapshot = Snapshot::new(2, vec![only_tcp.clone()], &[]);
    world.from_node(&NODE_INVITE.replace("node_port=5080", "node_port=5090"));
    for route in world.lines("Record-Route") {
        assert!(route.contains(";node_host=172.16.0.10;node_port=5090;version=0>"), "{route}");
    }
    only_tcp.ports.open(Transport::Udp, 5080);
    world.snapshot = Snapshot::new(3, vec![only_tcp, node("172.16.0.9:5080")], &[]);
    let routes = format!("Route: {OUTER_ROUTE}\n").replace("node_port=5080", "node_port=5090");
    for turn in 0..4 {
        let verdict = world.client(&in_dialog("BYE", &routes, "sip:bob@example.com"));
        assert!(datagram(NODE)(verdict), "turn {turn}: {verdict:?}");
    }
}

#[test]
fn a_node_reaches_who_maddr_names() {
    for (uri, want) in [
        ("sip:usera@example.com;maddr=192.0.2.7", "192.0.2.7:5060"),
        ("sip:usera@example.com:5070;maddr=192.0.2.7", "192.0.2.7:5070"),
        ("sip:usera@192.0.2.8;maddr=", "192.0.2.8:5060"),
    ] {
        let mut world = World::new(TWO_LEGS).with_nodes(&[NODE]);
        let verdict = world.from_node(&NODE_INVITE.replace("sip:usera@127.0.0.1:5033", uri));
        assert!(datagram(want)(verdict), "{uri}: {verdict:?}");
        assert_eq!(world.first_line(), format!("INVITE {uri} SIP/2.0"));
    }
}

#[test]
fn a_loop_is_answered_482_and_an_ack_in_a_loop_is_dropped() {
    let mut world = World::new(TWO_LEGS).with_nodes(&[NODE]);
    let looped = NODE_INVITE.replace("sip:usera@127.0.0.1:5033", "sip:usera@10.0.0.1");
    world.from_node(&looped);
    assert_eq!(world.first_line(), "SIP/2.0 482 Loop Detected");
    let ack = looped.replace("INVITE", "ACK");
    assert_eq!(world.from_node(&ack), Verdict::Drop(DropReason::Loop));
}

#[test]
fn strict_routers_on_either_side_are_served() {
    // RFC 3261 §16.4: before us, our Record-Route came as Request-URI.
    let mut world = World::new(TWO_LEGS).with_nodes(&["172.16.0.9:5080", NODE]);
    let ours = OUTER_ROUTE.trim_matches(['<', '>']);
    let routes = format!("Route: {INNER_ROUTE}, <sip:bob@172.16.0.10:5080>\n");
    let verdict = world.client(&in_dialog("BYE", &routes, ours));
    assert!(datagram(NODE)(verdict), "{verdict:?}");
    assert_eq!(world.first_line(), "BYE sip:bob@172.16.0.10:5080 SIP/2.0");
    assert_eq!(world.lines("Route"), Vec::<String>::new());
    // RFC 3261 §16.6(6): behind us, the next Route has no lr. A node's:
    for ours in [format!("Route: {OUTER_ROUTE}\n"), String::new()] {
        let routes = format!("{ours}Route: <sip:app@172.16.0.10:5080>, <sip:8.8.8.8;lr>\n");
        let verdict = world.client(&in_dialog("INFO", &routes, "sip:bob@example.com"));
        assert!(datagram(NODE)(verdict), "{verdict:?}");
        assert_eq!(world.first_line(), "INFO sip:app@172.16.0.10:5080 SIP/2.0");
        assert_eq!(world.lines("Route"), ["<sip:8.8.8.8;lr>", "<sip:bob@example.com>"]);
    }
    // One of outside:
    let verdict = world
        .from_node(&NODE_INVITE.replace("Max-Forwards", "Route: <sip:1.2.3.4:5070>\nMax-Forwards"));
    assert!(datagram("1.2.3.4:5070")(verdict), "{verdict:?}");
    assert_eq!(world.first_line(), "INVITE sip:1.2.3.4:5070 SIP/2.0");
    assert_eq!(world.lines("Route"), ["<sip:usera@127.0.0.1:5033>"]);
}

#[test]
fn a_name_is_resolved_elsewhere_and_then_the_same_bytes_go_out() {
    let mut world = World::new(TWO_LEGS).with_nodes(&[NODE]);
    let message = NODE_INVITE.replace("127.0.0.1:5033", "carrier.example.net");
    assert_eq!(world.from_node(&message), Verdict::Resolve);
    let query = world.relay.wanted_name().unwrap();
    assert_eq!((query.host.as_str(), query.port, query.sips), ("carrier.example.net", None, false));
    let targets = vec![
        (Transport::Udp, "192.0.2.1:5071".parse().unwrap()),
        (Transport::Udp, "192.0.2.2:5072".parse().unwrap()),
    ];
    let answer = Answer { targets, ttl: std::time::Duration::from_secs(30) };
    world.relay.handle_name(world.now, query.clone(), Ok(answer));
    let verdict = world.from_node(&message);
    assert!(datagram("192.0.2.1:5071")(verdict), "{verdict:?}");
    assert_eq!(world.first_line(), "INVITE sip:usera@carrier.example.net SIP/2.0", "names stay");
    // RFC 3263 §4.3: where the first target fails the second is asked, now and from now on.
    let Verdict::Forward { hop, .. } = verdict else { panic!("{verdict:?}") };
    let listener = world.listener(Leg::Internal, Transport::Udp, Family::V4);
    let arrival = Arrival { now: world.now, listener, source: NODE.parse().unwrap(), flow: None };
    let bytes = wire(&message);
    let again =
        world.relay.undelivered(&arrival, &bytes, gone(hop), &world.snapshot, &mut world.out);
    assert!(datagram("192.0.2.2:5072")(again), "{again:?}");
    assert!(datagram("192.0.2.2:5072")(world.from_node(&message)));
    world.now += std::time::Duration::from_secs(31);
    assert_eq!(world.from_node(&message), Verdict::Resolve, "the answer is too old");
    world.relay.handle_name(world.now, query, Err(Unresolved::Timeout));
    world.from_node(&message);
    assert_eq!(world.first_line(), "SIP/2.0 503 Service Unavailable");
}

#[test]
fn what_cannot_be_delivered_goes_elsewhere_or_is_answered_503() {
    let mut world = World::new(TWO_LEGS).with_nodes(&[NODE, "172.16.0.11:5080"]);
    let source: SocketAddr = CLIENT.parse().unwrap();
    let listener = world.listener(Leg::External, Transport::Udp, Family::V4);
    let arrival = Arrival { now: world.now, listener, source, flow: None };
    let bytes = wire(INVITE);
    let Verdict::Forward { hop, .. } =
        world.relay.handle(&arrival, &bytes, &world.snapshot, &mut world.out)
    else {
        panic!("not forwarded");
    };
    let failed = target(hop).unwrap();
    let key = world.relay.refused(failed, &world.snapshot).unwrap();
    let suspected = world.snapshot.suspecting(key);
    let again = world.relay.undelivered(&arrival, &bytes, gone(hop), &suspected, &mut world.out);
    let Verdict::Forward { hop: second, .. } = again else { panic!("{again:?}") };
    assert_ne!(target(second), Some(failed));
    assert!(matches!(
        world.relay.poll_report(world.now, &world.snapshot),
        Some(Report::Refused { node }) if node == key
    ));
    // The only node there is: an error is better than silence.
    let mut world = World::new(TWO_LEGS).with_nodes(&[NODE]);
    let Verdict::Forward { hop, .. } =
        world.relay.handle(&arrival, &bytes, &world.snapshot, &mut world.out)
    else {
        panic!("not forwarded");
    };
    world.relay.undelivered(&arrival, &bytes, gone(hop), &world.snapshot, &mut world.out);
    assert_eq!(world.first_line(), "SIP/2.0 503 Service Unavailable");
}

#[test]
fn what_no_hop_took_is_answered_unless_it_is_an_ack() {
    let source: SocketAddr = CLIENT.parse().unwrap();
    let routes = format!("Route: {OUTER_ROUTE}\nRoute: {INNER_ROUTE}\n");
    let bye = in_dialog("BYE", &routes, "sip:bob@172.16.0.10:5080");
    let ack = bye.replace("BYE", "ACK");
    let reasons = [DropReason::ConnectionGone, DropReason::SlowPeer, DropReason::QueueFull];
    for reason in reasons {
        for (message, again, nodes) in [
            // Others are there, but it was tried often enough.
            (INVITE, Again::Nowhere, &[NODE, "172.16.0.11:5080"][..]),
            (INVITE, Again::Elsewhere, &[NODE]),
            (&bye, Again::Nowhere, &[NODE, "172.16.0.11:5080"]),
            (&ack, Again::Nowhere, &[NODE, "172.16.0.11:5080"]),
        ] {
            let mut world = World::new(TWO_LEGS).with_nodes(nodes);
            let listener = world.listener(Leg::External, Transport::Udp, Family::V4);
            let arrival = Arrival { now: world.now, listener, source, flow: None };
            let (World { relay, snapshot, out, .. }, bytes) = (&mut world, wire(message));
            let first = relay.handle(&arrival, &bytes, snapshot, out);
            let Verdict::Forward { hop, .. } = first else { panic!("{first:?}") };
            let failed = Failure { hop, reason, again };
            let last = relay.undelivered(&arrival, &bytes, failed, snapshot, out);
            if message == ack {
                assert_eq!(last, Verdict::Drop(reason));
                continue;
            }
            assert!(datagram(CLIENT)(last), "{reason:?}: {last:?}");
            let hears = "SIP/2.0 503 Service Unavailable";
            assert_eq!(world.first_line(), hears, "{reason:?} {again:?}");
        }
    }
}

#[test]
fn a_node_that_closed_an_idle_connection_is_asked_again() {
    for message in [INVITE, &in_dialog("BYE", "", "sip:bob@172.16.0.10:5080")] {
        let mut world = World::new(TWO_LEGS).with_nodes(&[NODE, "172.16.0.11:5080"]);
        let listener = world.listener(Leg::External, Transport::Tcp, Family::V4);
        let source = CLIENT.parse().unwrap();
        let arrival = Arrival { now: world.now, listener, source, flow: Some(FLOW) };
        let bytes = wire(&message.replace("UDP", "TCP"));
        let World { relay, snapshot, out, .. } = &mut world;
        let first = relay.handle(&arrival, &bytes, snapshot, out);
        let Verdict::Forward { hop, .. } = first else { panic!("{first:?}") };
        let closed = Failure { again: Again::Anywhere, ..gone(hop) };
        let second = relay.undelivered(&arrival, &bytes, closed, snapshot, out);
        assert!(
            matches!(second, Verdict::Forward { hop: again, .. } if again == hop),
            "{second:?}"
        );
    }
}

#[test]
fn what_is_decided_again_is_charged_and_counted_once() {
    // One request a second, and there are three decisions for one.
    let config = format!("{TWO_LEGS}sourceRateMax=1\ntotalRateMax=1\n");
    let mut world = World::new(&config).with_nodes(&[NODE, "172.16.0.11:5080", "172.16.0.12:5080"]);
    let listener = world.listener(Leg::External, Transport::Tcp, Family::V4);
    let arrival =
        Arrival { now: world.now, listener, source: CLIENT.parse().unwrap(), flow: Some(FLOW) };
    let bytes = wire(&INVITE.replace("UDP", "TCP"));
    let mut verdict = world.relay.handle(&arrival, &bytes, &world.snapshot, &mut world.out);
    assert!(matches!(verdict, Verdict::Forward { reply: 1.., .. }), "{verdict:?}");
    for turn in 1..3 {
        let Verdict::Forward { hop, .. } = verdict else { panic!("{turn}: {verdict:?}") };
        let key = world.relay.refused(target(hop).unwrap(), &world.snapshot).unwrap();
        world.snapshot = world.snapshot.suspecting(key);
        verdict =
            world.relay.undelivered(&arrival, &bytes, gone(hop), &world.snapshot, &mut world.out);
        assert!(matches!(verdict, Verdict::Forward { reply: 0, .. }), "{turn}: {verdict:?}");
    }
    let other = world.client(&INVITE.replace("8f3ad1", "another"));
    assert_eq!(other, Verdict::Drop(DropReason::Rate));
    // A name is waited for.
    let message = NODE_INVITE.replace("127.0.0.1:5033", "carrier.example.net");
    assert_eq!(world.from_node(&message), Verdict::Resolve);
    let query = world.relay.wanted_name().unwrap();
    let targets = vec![(Transport::Udp, "192.0.2.1:5071".parse().unwrap())];
    let answer = Answer { targets, ttl: std::time::Duration::from_secs(30) };
    world.relay.handle_name(world.now, query, Ok(answer));
    let listener = world.listener(Leg::Internal, Transport::Udp, Family::V4);
    let arrival = Arrival { now: world.now, listener, source: NODE.parse().unwrap(), flow: None };
    let verdict = world.relay.resume(&arrival, &wire(&message), &world.snapshot, &mut world.out);
    assert!(datagram("192.0.2.1:5071")(verdict), "{verdict:?}");
    let counters = world.relay.counters(world.now, &world.snapshot, false);
    let count = |transport, leg| counters.messages(transport, leg);
    assert_eq!(count(Transport::Tcp, Leg::External), (1, 1), "the INVITE and our 100");
    assert_eq!(count(Transport::Udp, Leg::External), (1, 0), "too many");
    assert_eq!(count(Transport::Udp, Leg::Internal), (1, 0));
}

#[test]
fn a_node_that_has_too_much_to_read_keeps_its_dialogs_and_gets_no_new_ones() {
    let slow = |hop| Failure { reason: DropReason::SlowPeer, ..gone(hop) };
    let routes = format!("Route: {OUTER_ROUTE}\nRoute: {INNER_ROUTE}\n");
    let bye = in_dialog("BYE", &routes, "sip:bob@172.16.0.10:5080");
    let cases = [
        (INVITE.to_owned(), Some("")),
        (bye.clone(), Some("SIP/2.0 503 Service Unavailable")),
        (bye.replace("BYE", "ACK"), None),
    ];
    for (message, want) in cases {
        let mut world = World::new(TWO_LEGS).with_nodes(&[NODE, "172.16.0.11:5080"]);
        let source: SocketAddr = CLIENT.parse().unwrap();
        let listener = world.listener(Leg::External, Transport::Udp, Family::V4);
        let arrival = Arrival { now: world.now, listener, source, flow: None };
        let bytes = wire(&message);
        let first = world.relay.handle(&arrival, &bytes, &world.snapshot, &mut world.out);
        let Verdict::Forward { hop, .. } = first else { panic!("{first:?}") };
        let again =
            world.relay.undelivered(&arrival, &bytes, slow(hop), &world.snapshot, &mut world.out);
        match (want, again) {
            (None, again) => assert_eq!(again, Verdict::Drop(DropReason::SlowPeer)),
            (Some(""), Verdict::Forward { hop: other, .. }) => {
                assert_ne!(target(other), target(hop));
            }
            (Some(line), _) => assert_eq!(world.first_line(), line),
        }
    }
}

#[test]
fn stream_clients_get_a_token_and_are_found_by_it() {
    let mut world = World::new(TWO_LEGS).with_nodes(&[NODE]);
    let invite = INVITE.replace("UDP", "TCP");
    let verdict = world.send(Leg::External, Transport::Tcp, CLIENT, &invite);
    let Verdict::Forward { hop: Hop::Stream { to, .. }, reply, .. } = verdict else {
        panic!("{verdict:?}")
    };
    assert_eq!(to, NODE.parse().unwrap());
    assert!(reply > 0, "a reliable next hop: we answer 100");
    assert_eq!(world.first_line(), "SIP/2.0 100 Trying");
    let forwarded = String::from_utf8(world.out[reply..].to_vec()).unwrap();
    let line = |prefix: &str| -> Vec<String> {
        forwarded.lines().filter_map(|it| it.strip_prefix(prefix)).map(str::to_owned).collect()
    };
    let (vias, routes) = (line("Via: "), line("Record-Route: "));
    assert!(vias[1].contains(";flow=") && !vias[0].contains(";flow="), "{vias:?}");
    assert!(routes[1].contains(";flow=") && !routes[0].contains(";flow="), "{routes:?}");
    // The response goes back on that connection, on whichever shard it lives.
    let vias: String = vias.iter().map(|it| format!("Via: {it}\n")).collect();
    let ok = format!(
        "\nSIP/2.0 200 OK\n{vias}From: <sip:alice@example.com>;tag=a1\nTo: <sip:b@d>;tag=2\nCall-ID: x\nCSeq: 1 INVITE\nContent-Length: 0\n\n"
    );
    let verdict = world.send(Leg::Internal, Transport::Tcp, NODE, &ok);
    let Verdict::Forward { hop: Hop::Flow { flow, or, is_response: true }, .. } = verdict else {
        panic!("{verdict:?}")
    };
    assert_eq!(flow, FLOW);
    assert_eq!(or.unwrap().1, "203.0.113.5:5062".parse().unwrap());
    // So does the node's request in the dialog.
    let bye = NODE_INVITE
        .replace("INVITE", "BYE")
        .replace(
            "Route: <sip:lbint",
            &format!("Route: {}\nRoute: {}\nX-Old: <sip:lbint", routes[0], routes[1]),
        )
        .replace("To: <sip:usera@example.com>", "To: <sip:usera@example.com>;tag=q");
    let verdict = world.send(Leg::Internal, Transport::Tcp, NODE, &bye);
    let Verdict::Forward { hop: Hop::Flow { flow, is_response: false, .. }, .. } = verdict else {
        panic!("{verdict:?}")
    };
    assert_eq!(flow, FLOW);
    // A token of somebody else's making is worth nothing.
    let forged = bye.replace(";flow=03", ";flow=04");
    let verdict = world.send(Leg::Internal, Transport::Tcp, NODE, &forged);
    assert!(matches!(verdict, Verdict::Forward { hop: Hop::Stream { .. }, .. }), "{verdict:?}");
}

#[test]
fn one_entry_means_one_via_one_record_route_and_direction_by_source() {
    let config = "host=10.0.0.1\nexternalPort=5060\n";
    let mut world = World::new(config).with_nodes(&[NODE]);
    let verdict = world.client(INVITE);
    assert!(datagram(NODE)(verdict), "{verdict:?}");
    assert_eq!(world.lines("Via").len(), 2);
    assert_eq!(world.lines("Record-Route").len(), 1);
    let vias: String = world.lines("Via").iter().map(|it| format!("Via: {it}\n")).collect();
    let ok = format!(
        "\nSIP/2.0 200 OK\n{vias}From: <sip:alice@example.com>;tag=a1\nTo: <sip:b@d>;tag=2\nCall-ID: x\nCSeq: 1 INVITE\nContent-Length: 0\n\n"
    );
    let verdict = world.send(Leg::External, Transport::Udp, NODE, &ok);
    assert!(datagram(CLIENT)(verdict), "{verdict:?}");
    assert_eq!(
        world.lines("X-Sip-Balancer-InitialRemoteAddr"),
        Vec::<String>::new(),
        "not towards clients"
    );
    let out = NODE_INVITE.replace("172.16.0.1:5065", "10.0.0.1:5060");
    let verdict = world.send(Leg::External, Transport::Udp, NODE, &out);
    assert!(datagram("127.0.0.1:5033")(verdict), "{verdict:?}");
    // A node speaks from a port of its own on TCP.
    let over_tcp = out.replace("UDP 172", "TCP 172");
    let verdict = world.send(Leg::External, Transport::Tcp, "172.16.0.10:40000", &over_tcp);
    assert!(datagram("127.0.0.1:5033")(verdict), "{verdict:?}");
    // Claiming a node's Via from elsewhere makes nobody a node.
    let verdict = world.send(Leg::External, Transport::Udp, CLIENT, &out);
    assert!(datagram(NODE)(verdict), "{verdict:?}");
}

#[test]
fn a_heartbeat_is_answered_and_reported_only_on_the_internal_leg() {
    let beat = "
OPTIONS sip:X@172.16.0.1:5065;lr SIP/2.0
Via: SIP/2.0/UDP 172.16.0.10:5080;branch=z9hG4bK-373335
From: <sip:hb@example.com>;tag=4481411
To: <sip:lb@example.com>
Call-ID: 2298704dc4d6706e53cb61123ea7833e@127.0.0.1
CSeq: 1 OPTIONS
Mobicents-Heartbeat: 1
Content-Length: 67

tcpPort=5080\nudpPort=5080\nhostname=sipHeartbeat\nip=172.16.0.10\nx=y
";
    let length = wire(beat.split("\n\n").nth(1).unwrap()).len();
    let beat = beat.replace("67", &length.to_string());
    let mut world = World::new(TWO_LEGS);
    for header in ["Mobicents-Heartbeat", "Restcomm-Heartbeat"] {
        let verdict = world.from_node(&beat.replace("Mobicents-Heartbeat", header));
        assert!(datagram(NODE)(verdict), "{verdict:?}");
        assert_eq!(world.first_line(), "SIP/2.0 200 OK");
        match world.relay.poll_report(world.now, &world.snapshot) {
            Some(Report::Beat(it)) => assert_eq!(it.host_name, "sipHeartbeat"),
            other => panic!("{header}: {other:?}"),
        }
    }
    // Refused either way, and the control executor hears why.
    for (right, wrong, status) in [
        ("ip=172.16.0.10", "ip=nonsense!!!", 200),
        ("ip=172.16.0.10", "in=172.16.0.10", 200),
        ("tcpPort=5080", "version=abcd", 400),
    ] {
        world.from_node(&beat.replace(right, wrong));
        let line = world.first_line();
        assert!(line.starts_with(&format!("SIP/2.0 {status} ")), "{wrong}: {line}");
        let told = world.relay.poll_report(world.now, &world.snapshot);
        let from = NODE.parse::<SocketAddr>().unwrap().ip();
        let is_told = matches!(told, Some(Report::BadBeat { from: it, .. }) if it == from);
        assert!(is_told, "{wrong}: {told:?}");
    }
    let mut world = world.with_nodes(&[NODE]);
    let verdict = world.client(&beat);
    assert!(
        matches!(verdict, Verdict::Forward { .. }),
        "outside it is an ordinary request: {verdict:?}"
    );
    let told = world.relay.poll_report(world.now, &world.snapshot);
    assert!(!matches!(told, Some(Report::Beat(_))), "{told:?}");
}

#[test]
fn transports_are_bridged_towards_nodes_and_told_in_contact() {
    let config = "<load-balancer-properties><sip><external><host>10.0.0.1</host></external><internal><host>172.16.0.1</host><tcpPort>5065</tcpPort></internal><internalTransport>tcp</internalTransport></sip></load-balancer-properties>";
    let mut world = World::new(config).with_nodes(&[NODE]);
    let verdict = world.client(INVITE);
    let Verdict::Forward { hop: Hop::Stream { to, .. }, reply, .. } = verdict else {
        panic!("{verdict:?}")
    };
    assert_eq!(to, NODE.parse().unwrap());
    world.out.drain(..reply);
    assert_eq!(world.lines("Via")[0], "SIP/2.0/TCP 172.16.0.1:5065;branch=z9hG4bK#i_0");
    assert_eq!(world.lines("Via")[1], "SIP/2.0/UDP 10.0.0.1:5060;branch=z9hG4bK#e_0");
    assert_eq!(world.lines("Contact"), ["<sip:alice@203.0.113.5:5062;transport=udp>"]);
    assert_eq!(world.lines("Route"), ["<sip:172.16.0.10:5080;transport=tcp;lr>"]);
}

#[test]
fn nonsense_is_answered_where_it_can_be_and_the_next_message_is_served() {
    let mut world = World::new(TWO_LEGS).with_nodes(&[NODE]);
    let cases = [
        ("noise", "hello".to_owned(), None),
        ("keep-alive", "\r\n\r\n".to_owned(), None),
        ("version", INVITE.replace("SIP/2.0\nVia", "SIP/3.0\nVia"), Some("SIP/2.0 505 ")),
        ("CSeq method", INVITE.replace("CSeq: 1 INVITE", "CSeq: 1 BYE"), Some("SIP/2.0 400 ")),
        ("no Call-ID", INVITE.replace("Call-ID: 8f3ad1@203.0.113.5\n", ""), None),
        (
            "a malformed ACK",
            INVITE.replace("INVITE", "ACK").replace("CSeq: 1 ACK", "CSeq: 1 BYE"),
            None,
        ),
        ("a malformed response", "SIP/2.0 abc\nVia: x\n\n".to_owned(), None),
        ("cut in the middle", INVITE[..120].to_owned(), None),
    ];
    for (case, message, want) in cases {
        let verdict = world.client(&message);
        match want {
            Some(line) => {
                assert!(matches!(verdict, Verdict::Reply { .. }), "{case}: {verdict:?}");
                assert!(world.first_line().starts_with(line), "{case}: {}", world.first_line());
            }
            None => assert!(matches!(verdict, Verdict::Drop(_)), "{case}: {verdict:?}"),
        }
        assert!(datagram(NODE)(world.client(INVITE)), "after {case}");
    }
}

/// Header lines that nobody but their owners understands.
const NOISE: [&str; 10] = [
    "X-Custom:   spaces  kept\t ",
    "x-CUSTOM:again",
    "Identity: \"abc==\"",
    "m: <sip:q@w>",
    "Supported: a,b ,c",
    "Subject: folded\n  over\n\tlines",
    "Via: SIP/2.0/UDP 9.9.9.9;branch=z9hG4bKold , SIP/2.0/TCP 8.8.8.8",
    "Record-Route: <sip:7.7.7.7;lr>",
    "Warning: 399 x \"\u{fc}\"",
    "Empty:",
];

/// A message with noise anywhere behind its first `fixed` lines, and a body that is no text.
fn noisy(seed: u64, message: &str, fixed: usize) -> String {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut draw = |max: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % max as u64).unwrap()
    };
    let mut lines: Vec<&str> = message.trim_start().split("\n\n").next().unwrap().lines().collect();
    for _ in 0..draw(9) {
        lines.insert(fixed + draw(lines.len() + 1 - fixed), NOISE[draw(NOISE.len())]);
    }
    let body = "v=0\r\n\0binary\u{ff}";
    let length = format!("Content-Length: {}", wire(body).len());
    let lines: Vec<&str> = lines
        .iter()
        .map(|it| if it.starts_with("Content-Length") { length.as_str() } else { *it })
        .collect();
    format!("{}\n\n{body}", lines.join("\n"))
}

/// A message without the lines that are ours to change.
fn theirs(bytes: &[u8]) -> Vec<String> {
    let is_ours = |line: &str| {
        let starts = ["Max-Forwards", "X-Sip-Balancer", "Route: <sip:172.16.0.1"];
        starts.iter().any(|it| line.starts_with(it))
            || line.contains("node_host=")
            || line.starts_with("Via: SIP/2.0/UDP 172.16.0.1:5065")
            || line.starts_with("Via: SIP/2.0/UDP 10.0.0.1:5060")
    };
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    text.split("\r\n").filter(|it| !is_ours(it)).map(str::to_owned).collect()
}

#[test]
fn everything_that_is_not_ours_leaves_as_it_came() {
    let as_sent = |world: &World, prefix: &str| -> String {
        let text = String::from_utf8(world.out.clone()).unwrap();
        let lines = text.split("\r\n").take_while(|it| !it.is_empty());
        lines.filter(|it| it.starts_with(prefix)).map(|it| format!("{it}\n")).collect()
    };
    let outside = "127.0.0.1:5033";
    for seed in 1..512u64 {
        let mut world = World::new(TWO_LEGS).with_nodes(&[NODE]);
        let invite = noisy(seed, &INVITE.replace(";rport", ""), 2);
        let verdict = world.client(&invite);
        assert!(datagram(NODE)(verdict), "seed {seed}: {verdict:?}");
        assert_eq!(theirs(&world.out), theirs(&wire(&invite)), "seed {seed}");

        let (vias, answer) = (as_sent(&world, "Via"), callee_answer(&world, "180 Ringing"));
        let ringing = noisy(seed, &answer, 1 + vias.lines().count());
        let verdict = world.from_node(&ringing);
        assert!(datagram(CLIENT)(verdict), "seed {seed}: {verdict:?}");
        assert_eq!(theirs(&world.out), theirs(&wire(&ringing)), "seed {seed}: from a node");

        let calling = noisy(seed, NODE_INVITE, 3);
        let verdict = world.from_node(&calling);
        assert!(datagram(outside)(verdict), "seed {seed}: {verdict:?}");
        assert_eq!(theirs(&world.out), theirs(&wire(&calling)), "seed {seed}: a node's");

        let (vias, answer) = (as_sent(&world, "Via"), callee_answer(&world, "200 OK"));
        let ok = noisy(seed, &answer, 1 + vias.lines().count());
        let verdict = world.send(Leg::External, Transport::Udp, outside, &ok);
        assert!(datagram(NODE)(verdict), "seed {seed}: {verdict:?}");
        assert_eq!(theirs(&world.out), theirs(&wire(&ok)), "seed {seed}: from outside");
    }
}

/// What is told of a message from a client, or from [`NODE`].
fn told(world: &World, leg: Leg, message: &str) -> String {
    let listener = world.listener(leg, Transport::Udp, Family::V4);
    let source = if leg == Leg::Internal { NODE } else { CLIENT };
    let arrival = Arrival { now: world.now, listener, source: source.parse().unwrap(), flow: None };
    explain(world.relay.settings(), &world.snapshot, &arrival, &wire(message)).steps
}

#[test]
fn an_explanation_tells_of_each_node_why_it_is_asked_or_not() {
    let info = in_dialog("INFO", "", "sip:bob@example.com");
    let cancel = INVITE.replace("INVITE", "CANCEL");
    let alone: &[Node] = &[];
    let beside = &[node(NODE)][..];
    type Case<'c> = (&'c str, &'c [Node], fn(&mut Node), &'c str);
    let cases: [Case<'_>; 17] = [
        (INVITE, beside, |_| {}, "candidate"),
        (INVITE, beside, |it| it.suspect = true, "refused a moment ago"),
        (INVITE, alone, |it| it.suspect = true, "candidate, although refused a moment ago"),
        (INVITE, beside, |it| it.bad = Some(Bad::Errors), "bad: too many error responses"),
        (INVITE, beside, |it| it.bad = Some(Bad::Response), "bad: an error response over HTTP"),
        (INVITE, beside, |it| it.bad = Some(Bad::Silence), "bad: does not answer"),
        (INVITE, beside, |it| it.bad = Some(Bad::Full), "bad: says it is full"),
        (INVITE, beside, |it| it.graceful = true, "shutting down: no new calls"),
        (INVITE, alone, |it| it.graceful = true, "shutting down: no new calls"),
        (
            INVITE,
            alone,
            |it| (it.graceful, it.bad, it.suspect) = (true, Some(Bad::Silence), true),
            "shutting down: no new calls; bad: does not answer; refused a moment ago",
        ),
        // Calls begin in turn: a dialog that nobody remembers may be on any node, and this one is spared.
        (&info, beside, |it| it.graceful = true, "shutting down: no new calls"),
        (&info, alone, |it| it.graceful = true, "candidate, although shutting down: no new calls"),
        (
            &cancel,
            alone,
            |it| it.graceful = true,
            "candidate, although shutting down: no new calls",
        ),
        (&info, alone, |it| it.bad = Some(Bad::Full), "candidate, although bad: says it is full"),
        (&info, beside, |it| it.suspect = true, "refused a moment ago"),
        (INVITE, beside, |it| it.version = Version(-1), "other version"),
        (INVITE, beside, |it| it.ports = Ports::default(), "no port for this transport"),
    ];
    for (message, others, change, want) in cases {
        let mut world = World::new(TWO_LEGS);
        let mut one = node("172.16.0.9:5080");
        change(&mut one);
        let nodes = others.iter().cloned().chain([one]).collect();
        world.snapshot = Snapshot::new(2, nodes, &[]);
        let steps = told(&world, Leg::External, message);
        let line = format!("  node-172.16.0.9 172.16.0.9: {want}\n");
        assert!(steps.contains(&line), "{line:?} is not in\n{steps}");
    }
}

/// Where calls begin by arithmetic their dialogs are found by it, on nodes that are leaving, too.
#[test]
fn an_explanation_lists_the_candidates_of_the_algorithm_that_chooses() {
    let info = in_dialog("INFO", "", "sip:bob@example.com");
    let leaving = "shutting down: no new calls";
    let still = "candidate, although shutting down: no new calls";
    for (more, of_invite, of_info) in [
        ("algorithmClass=CallIDAffinityBalancerAlgorithm\n", leaving, leaving),
        ("shards=2\nreuseportSteering=random\n", leaving, still),
        ("algorithmClass=HeaderConsistentHashBalancerAlgorithm\n", leaving, still),
        ("algorithmClass=UserBasedAlgorithm\nshards=1\n", leaving, leaving),
        ("algorithmClass=UserBasedAlgorithm\nshards=2\n", leaving, still),
        ("algorithmClass=ActiveStandbyAlgorithm\n", leaving, leaving),
        ("algorithmClass=WorstCaseUdpTestAffinityAlgorithm\n", leaving, leaving),
    ] {
        let mut world = World::new(&format!("{TWO_LEGS}{more}"));
        let mut one = node("172.16.0.9:5080");
        one.graceful = true;
        world.snapshot = Snapshot::new(2, vec![node(NODE), one], &[]);
        for (message, want) in [(INVITE, of_invite), (&info, of_info)] {
            let steps = told(&world, Leg::External, message);
            let line = format!("  node-172.16.0.9 172.16.0.9: {want}\n");
            assert!(steps.contains(&line), "{more}{line:?} is not in\n{steps}");
        }
    }
}

#[test]
fn an_explanation_tells_what_was_not_believed_and_what_is_not_sent() {
    let route = |params: &str| {
        in_dialog("INFO", &format!("Route: <sip:10.0.0.1;lr{params}>\n"), "sip:bob@example.com")
    };
    let version = ";node_host=172.16.0.10;node_port=5080;version=7";
    let cases = [
        (
            Leg::External,
            route(";node_host=172.16.9.9;node_port=22"),
            "hint node_host=172.16.9.9 node_port=22: no live node, refused",
        ),
        (
            Leg::External,
            route(version),
            "hint node_host=172.16.0.10 node_port=5080: no live node, refused",
        ),
        (Leg::External, route(";flow=0123"), "flow token 0123: forged or stale, ignored"),
        (Leg::External, INVITE.replace("sip:alice@", "sip:sipcli@"), "drop: blocked"),
        (Leg::External, INVITE.replace(": 70", ": 0"), "answer SIP/2.0 483 Too Many Hops"),
        (Leg::Internal, NODE_INVITE.to_owned(), "INVITE request: from a node, outwards"),
        (
            Leg::Internal,
            NODE_INVITE.to_owned(),
            "node node-172.16.0.10 172.16.0.10 version 0 (sender)",
        ),
        (Leg::Internal, NODE_INVITE.to_owned(), "forward: datagram to 127.0.0.1:5033"),
        (
            Leg::Internal,
            NODE_INVITE.replace("127.0.0.1:5033", "carrier.example.net"),
            "waits for the name to be resolved",
        ),
        (
            Leg::Internal,
            NODE_INVITE.replace("INVITE", "ACK").replace("@127.0.0.1:5033", "@10.0.0.1"),
            "drop: loop",
        ),
    ];
    let world = World::new(TWO_LEGS).with_nodes(&[NODE]);
    for (leg, message, want) in cases {
        let steps = told(&world, leg, &message);
        assert!(steps.contains(want), "{want:?} is not in\n{steps}");
    }
}

#[test]
fn an_explanation_tells_the_hint_the_candidates_and_the_edits() {
    let world = World::new(TWO_LEGS).with_nodes(&["172.16.0.9:5080", NODE]);
    let listener = world.listener(Leg::External, Transport::Udp, Family::V4);
    let arrival = Arrival { now: world.now, listener, source: CLIENT.parse().unwrap(), flow: None };
    let routes = format!("Route: {OUTER_ROUTE}\n");
    let bytes = wire(&in_dialog("BYE", &routes, "sip:bob@172.16.0.10:5080"));
    let told = explain(world.relay.settings(), &world.snapshot, &arrival, &bytes);
    for step in [
        "External leg",
        "BYE request: from a client",
        "hint node_host=172.16.0.10 node_port=5080: a live node",
        "affinity key: 8f3ad1@203.0.113.5",
        "node-172.16.0.9 172.16.0.9: candidate",
        "node node-172.16.0.10 172.16.0.10 version 0 (hint)",
        "- Route: <sip:10.0.0.1:5060",
        "+ Via: SIP/2.0/UDP 172.16.0.1:5065",
        "forward: datagram to 172.16.0.10:5080",
    ] {
        assert!(told.steps.contains(step), "{step:?} is not in\n{}", told.steps);
    }
}
