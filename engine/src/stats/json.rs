//! The statistics port's JSON: members, order and meaning of the original first, then ours.

use std::fmt::Write;

use protocols::http;
use protocols::sip::message::Method;

use super::prometheus::state_of;
use super::smpp::SmppCounters;
use super::{Counters, Scrape};
use crate::node::Node;
use crate::registry::Ordered;
use crate::relay::DropReason;
use crate::snapshot::Family;

/// `/lbstat` (`http-smpp-registry.md` 4.1): one object `Metrics`. Values are integers but for the names
/// in front. `activeNodes` are those that `/lbinfo` lists, v4 and v6: the live ones of the latest version.
/// Graceful and bad ones are among them, since they serve the calls that they have (`sip.md` 3).
pub fn lbstat(scrape: &Scrape<'_>) -> String {
    let totals = scrape.totals();
    let smpp = &totals.smpp;
    let process = &scrape.process;
    let latest = scrape.snapshot.latest();
    let active = scrape.snapshot.nodes().iter().filter(|it| it.version == latest).count();
    let calls = totals.remembered_calls.map_or(-1, |it| i64::try_from(it).unwrap_or(i64::MAX));
    let mut it = Object::default();
    it.text("releaseName", process.name);
    it.text("releaseVersion", process.version);
    it.raw("activeNodes", active);
    it.raw("JvmCpuUsage", process.cpu_percent);
    it.raw("JvmHeapSize", process.resident_bytes);
    it.raw("NumberOfActiveHttpConnections", 2 * totals.http.paired);
    it.raw("NumberOfActiveSipConnections", scrape.connections());
    it.raw("NumberOfActiveSmppConnections", smpp.active_connections());
    it.raw("NumberOfBytesTransferred", totals.content_bytes);
    it.raw("NumberOfHttpBytesToClient", totals.http.bytes_to_client);
    it.raw("NumberOfHttpBytesToServer", totals.http.bytes_to_node);
    it.raw("NumberOfHttpRequests", totals.http.all_requests());
    it.raw("NumberOfRequestsProcessed", totals.all_requests());
    it.raw("NumberOfResponsesProcessed", totals.all_responses());
    it.raw("NumberOfSmppBytesToClient", smpp.bytes_to_client);
    it.raw("NumberOfSmppBytesToServer", smpp.bytes_to_server);
    it.raw("NumberOfSmppRequestsToClient", smpp.requests_to_client);
    it.raw("NumberOfSmppRequestsToServer", smpp.requests_to_server);
    it.raw("NumberOfActiveCalls", calls);

    let mut methods = Object::default();
    for method in Method::ALL {
        methods.raw(method.as_str(), totals.requests(method));
    }
    it.raw("NumberOfRequestsProcessedByMethod", methods.end());
    let mut classes = Object::default();
    for class in 1..=9 {
        classes.raw(&format!("{class}XX"), totals.codes.class(class));
    }
    it.raw("NumberOfResponsesProcessedByStatusCode", classes.end());
    let mut drops = Object::default();
    for reason in DropReason::ALL {
        drops.raw(reason.as_str(), totals.drops(reason));
    }
    it.raw("NumberOfMessagesDropped", drops.end());
    let mut methods = Object::default();
    for method in http::Method::ALL {
        methods.raw(method.as_str(), totals.http.requests(method));
    }
    it.raw("NumberOfHttpRequestsProcessedByMethod", methods.end());
    let mut classes = Object::default();
    for class in 1..=5 {
        classes.raw(&format!("{class}XX"), totals.http.responses(class));
    }
    it.raw("NumberOfHttpResponsesProcessedByStatusCode", classes.end());
    let mut requests = Object::default();
    let mut responses = Object::default();
    for (name, asked, answered) in smpp.by_command() {
        requests.raw(name, asked);
        responses.raw(name, answered);
    }
    responses.raw("generic_nack", smpp.nacks);
    it.raw("NumberOfSmppRequestsProcessedByCommandId", requests.end());
    it.raw("NumberOfSmppResponsesProcessedByCommandId", responses.end());
    let residence = &scrape.residence;
    let mut micros = Object::default();
    for (name, time) in [
        ("p50", residence.p50),
        ("p99", residence.p99),
        ("p999", residence.p999),
        ("max", residence.max),
    ] {
        micros.raw(name, time.as_micros());
    }
    it.raw("ResidenceMicros", micros.end());
    it.raw("UptimeSeconds", scrape.now.as_secs());
    it.raw("FiguresAgeMillis", scrape.age().as_millis());
    let mut whole = Object::default();
    whole.raw("Metrics", it.end());
    whole.end()
}

/// `/lbinfo` (`http-smpp-registry.md` 4.2): the nodes of the latest version, then the fingerprint over
/// all eligible nodes, by which two balancers see that they decide alike.
pub fn lbinfo(scrape: &Scrape<'_>) -> String {
    let snapshot = scrape.snapshot;
    let totals = scrape.totals();
    let list = |family: Family| {
        let nodes: Vec<String> = snapshot
            .nodes()
            .iter()
            .filter(|it| it.version == snapshot.latest() && Family::of(it.ip) == family)
            .map(|it| node(scrape, &totals, it))
            .collect();
        format!("[{}]", nodes.join(","))
    };
    let mut lists = Object::default();
    lists.raw("nodesIPv4", list(Family::V4));
    lists.raw("nodesIPv6", list(Family::V6));
    lists.raw("smppRemoteServers", smpp_servers(&totals.smpp));
    let mut whole = Object::default();
    whole.raw("Nodes info", lists.end());
    whole.text("fingerprint", &format!("{:016x}", snapshot.fingerprint()));
    whole.raw("generation", snapshot.generation());
    whole.raw("latestVersion", snapshot.latest().0);
    whole.raw("nodes", snapshot.nodes().len());
    let others = snapshot.nodes().iter().filter(|it| it.version != snapshot.latest());
    let others: Vec<String> = others.map(|it| node(scrape, &totals, it)).collect();
    whole.raw("olderVersions", format!("[{}]", others.join(",")));
    let down = scrape.registry.down().map(|it| node(scrape, &totals, it));
    whole.raw("down", format!("[{}]", down.collect::<Vec<_>>().join(",")));
    let absent = scrape.registry.absent().map(|(text, ordered)| {
        let mut it = Object::default();
        it.text("hostName", text.host_name());
        it.text("ip", &text.ip().to_string());
        it.text("node", &text.to_string());
        it.raw("order", order(scrape, ordered));
        it.end()
    });
    whole.raw("absent", format!("[{}]", absent.collect::<Vec<_>>().join(",")));
    whole.raw("smppSessions", smpp_sessions(&totals.smpp));
    whole.raw("figuresAgeMillis", scrape.age().as_millis());
    whole.end()
}

/// What the operator wants of a node.
fn order(scrape: &Scrape<'_>, ordered: Ordered) -> String {
    let mut it = Object::default();
    it.text("state", if ordered.is_out { "out" } else { "draining" });
    it.raw("since", scrape.wall_ms(ordered.since));
    match ordered.deadline {
        Some(deadline) => it.raw("deadline", scrape.wall_ms(deadline)),
        None => it.raw("deadline", "null"),
    }
    it.end()
}

/// SMSCs in the shape of nodes, as the original lists them.
fn smpp_servers(smpp: &SmppCounters) -> String {
    let servers = smpp.servers.iter().enumerate().map(|(number, (server, bound))| {
        let mut properties = Object::default();
        properties.text("smppPort", &server.port().to_string());
        let mut it = Object::default();
        it.text("hostName", &format!("SMPP server {number}"));
        it.text("ip", &server.ip().to_string());
        it.raw("properties", properties.end());
        it.raw("boundConnections", bound);
        it.end()
    });
    format!("[{}]", servers.collect::<Vec<_>>().join(","))
}

/// ESME sessions, one by one. Not by their names: a system_id is half of a credential.
fn smpp_sessions(smpp: &SmppCounters) -> String {
    let sessions = smpp.shown.iter().map(|session| {
        let mut it = Object::default();
        it.text("source", &session.source.to_string());
        it.text("state", session.state);
        it.raw("secure", session.is_secure);
        if let Some(server) = session.server {
            it.text("server", &server.to_string());
        }
        it.raw("outstanding", session.outstanding);
        it.raw("outstandingToClient", session.outstanding_to_client);
        it.end()
    });
    format!("[{}]", sessions.collect::<Vec<_>>().join(","))
}

/// `/health`: HTTP status and body. 503 only while stopping: having no nodes is no reason to restart us
/// or to move an address to a balancer that has none either.
pub fn health(scrape: &Scrape<'_>) -> (u16, String) {
    let nodes = scrape.snapshot.nodes();
    let eligible = nodes.iter().filter(|it| it.is_eligible()).count();
    let (code, status) = match (scrape.process.is_stopping, eligible) {
        (true, _) => (503, "stopping"),
        (false, 0) => (200, "no nodes"),
        (false, _) => (200, "ok"),
    };
    let mut it = Object::default();
    it.text("status", status);
    it.raw("nodes", nodes.len());
    it.raw("eligibleNodes", eligible);
    (code, it.end())
}

fn node(scrape: &Scrape<'_>, totals: &Counters, node: &Node) -> String {
    let record = scrape.registry.health(scrape.now, node.key);
    let wall = |time| scrape.wall_ms(time);
    let counter = |value: u64| format!("{{\"value\":{value}}}");
    let mut properties = Object::default();
    for (name, value) in &node.properties {
        properties.text(name, value);
    }
    let last_sign = record.map_or(node.joined, |it| it.last_sign);
    let last_response = record.and_then(|it| it.last_response).unwrap_or(node.joined);
    let last_error = record.and_then(|it| it.last_error).unwrap_or(node.joined);
    let mut it = Object::default();
    it.text("hostName", &node.host_name);
    it.text("ip", &node.ip.to_string());
    it.raw("timeStamp", wall(last_sign));
    it.raw("properties", properties.end());
    it.raw("gracefulShutdown", node.graceful);
    it.raw("bad", node.bad.is_some());
    it.raw("failCounter", counter(record.map_or(0, |it| it.errors.into())));
    it.raw("weightIndex", record.map_or(0, |it| it.weight));
    it.raw("requestNumberWithoutResponse", counter(record.map_or(0, |it| it.unanswered.into())));
    it.raw("lastTimeResponse", counter(wall(last_response)));
    it.raw("lastTimeError", counter(wall(last_error)));
    it.text("key", &format!("{:016x}", node.key.0));
    it.raw("version", node.version.0);
    if let Some(bad) = node.bad {
        it.text("badReason", bad.as_str());
    }
    it.raw("suspect", !node.suspect.is_empty());
    it.raw("joined", wall(node.joined));
    it.text("state", state_of(node, record.as_ref()));
    if let Some(ordered) = record.and_then(|it| it.ordered) {
        it.raw("order", order(scrape, ordered));
    }
    let held = totals.left(node);
    let mut left = Object::default();
    for (name, calls) in [("calls", held.calls), ("rememberedCalls", held.remembered)] {
        left.raw(name, calls.map_or_else(|| "null".to_owned(), |it| it.to_string()));
    }
    left.raw("sipConnections", held.sip_connections);
    left.raw("sipBusy", held.sip_busy);
    left.raw("httpConnections", held.http_connections);
    left.raw("smppConnections", held.smpp_connections);
    left.raw("isNothing", held.is_nothing());
    it.raw("left", left.end());
    it.end()
}

/// One JSON object, members in order of their writing, no blanks.
#[derive(Debug, Default)]
struct Object(String);

impl Object {
    /// A value that is JSON already.
    fn raw(&mut self, name: &str, value: impl std::fmt::Display) {
        let comma = if self.0.is_empty() { "" } else { "," };
        let _ = write!(self.0, "{comma}{}:{value}", quoted(name)); // a String takes everything
    }

    fn text(&mut self, name: &str, value: &str) {
        self.raw(name, quoted(value));
    }

    fn end(self) -> String {
        format!("{{{}}}", self.0)
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
