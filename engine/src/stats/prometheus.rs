//! `/metrics` in the Prometheus text exposition format, version 0.0.4.

use std::fmt::{Display, Write};

use protocols::http;
use protocols::sip::Transport;
use protocols::sip::message::Method;

use super::{HttpCounters, HttpNode, LATENCY_BOUNDS, RESIDENCE_BOUNDS, Refusal, Scrape};
use crate::node::Node;
use crate::registry::{CHANGES, Health, REFUSALS};
use crate::relay::{DropReason, Leg};
use crate::stats::smpp::SmppDrop;

/// Every figure there is. Rows that would be 0 for want of traffic on a transport, of a status code or of
/// a node's response class are left out; the rest is always there.
pub fn metrics(scrape: &Scrape<'_>) -> String {
    let mut page = Page::default();
    messages(&mut page, scrape);
    smpp(&mut page, scrape);
    nodes(&mut page, scrape);
    heartbeats(&mut page, scrape);
    http(&mut page, scrape);
    shards(&mut page, scrape);
    residence(&mut page, scrape);
    certificates(&mut page, scrape);
    process(&mut page, scrape);
    page.text
}

fn messages(page: &mut Page, scrape: &Scrape<'_>) {
    let totals = scrape.totals();
    page.family("trunkline_sip_messages_total", "counter", "SIP messages taken in.");
    for transport in Transport::ALL {
        for (leg, leg_name) in LEGS {
            let (requests, responses) = totals.messages(transport, leg);
            for (kind, count) in [("request", requests), ("response", responses)] {
                if count > 0 {
                    page.row(
                        &[("leg", leg_name), ("transport", transport.as_param()), ("kind", kind)],
                        count,
                    );
                }
            }
        }
    }
    page.family("trunkline_sip_requests_total", "counter", "SIP requests taken in, by method.");
    for method in Method::ALL {
        for (leg, leg_name) in LEGS {
            let count = totals.methods.get(method.index()).and_then(|it| it.get(leg as usize));
            let labels = [("method", method.as_str()), ("leg", leg_name)];
            page.row(&labels, count.copied().unwrap_or(0));
        }
    }
    page.family(
        "trunkline_sip_responses_total",
        "counter",
        "SIP responses taken in or made here, by status class and code.",
    );
    for (code, count) in totals.codes.iter() {
        let class = format!("{}xx", code / 100);
        page.row(&[("class", &class), ("code", &code.to_string())], count);
    }
    page.family("trunkline_sip_dropped_total", "counter", "SIP messages dropped, by reason.");
    for reason in DropReason::ALL {
        page.row(&[("reason", reason.as_str())], totals.drops(reason));
    }
    page.family(
        "trunkline_sip_content_bytes_total",
        "counter",
        "Bytes of SIP message bodies taken in.",
    );
    page.row(&[], totals.content_bytes);
    if let Some(calls) = totals.remembered_calls {
        page.family("trunkline_calls", "gauge", "Calls that the algorithm remembers.");
        page.row(&[], calls);
    }
}

fn smpp(page: &mut Page, scrape: &Scrape<'_>) {
    let it = scrape.totals().smpp;
    let towards = |name: &str, help: &str, page: &mut Page, server: u64, client: u64| {
        page.family(name, "counter", help);
        page.row(&[("towards", "server")], server);
        page.row(&[("towards", "client")], client);
    };
    let (server, client) = (it.requests_to_server, it.requests_to_client);
    towards(
        "trunkline_smpp_forwarded_requests_total",
        "SMPP requests taken on.",
        page,
        server,
        client,
    );
    let (server, client) = (it.bytes_to_server, it.bytes_to_client);
    towards(
        "trunkline_smpp_forwarded_bytes_total",
        "Bytes of SMPP PDUs forwarded.",
        page,
        server,
        client,
    );
    page.family("trunkline_smpp_pdus_total", "counter", "SMPP PDUs received, by operation.");
    for (command, requests, responses) in it.by_command() {
        page.row(&[("command", command), ("kind", "request")], requests);
        page.row(&[("command", command), ("kind", "response")], responses);
    }
    page.row(&[("command", "generic_nack"), ("kind", "response")], it.nacks);
    page.family(
        "trunkline_smpp_dropped_total",
        "counter",
        "SMPP PDUs that went nowhere, by reason.",
    );
    for reason in SmppDrop::ALL {
        page.row(&[("reason", reason.as_str())], it.drops(reason));
    }
    for (name, help, count) in [
        ("not_bound", "Clients that did not bind in time.", it.not_bound),
        ("unanswered", "Requests that their server did not answer.", it.unanswered),
        ("rebinds", "Sessions that lost their server.", it.rebinds),
    ] {
        page.family(&format!("trunkline_smpp_{name}_total"), "counter", help);
        page.row(&[], count);
    }
    page.family("trunkline_smpp_sessions", "gauge", "SMPP clients connected.");
    page.row(&[], it.sessions);
    page.family("trunkline_smpp_server_connections", "gauge", "Connections to SMPP servers.");
    page.row(&[], it.providers);
    page.family("trunkline_smpp_submitters", "gauge", "Messages whose submitter is remembered.");
    page.row(&[], it.submitters);
    page.family("trunkline_smpp_bound", "gauge", "Bound connections to an SMPP server.");
    for (server, bound) in &it.servers {
        page.owned_row(&[("server", server.to_string())], bound);
    }
}

fn nodes(page: &mut Page, scrape: &Scrape<'_>) {
    let totals = scrape.totals();
    let snapshot = scrape.snapshot;
    let down: Vec<&Node> = scrape.registry.down().collect();
    page.family("trunkline_nodes", "gauge", "Live nodes by state, and static ones that are down.");
    let states: Vec<&str> = snapshot
        .nodes()
        .iter()
        .map(|it| state_of(it, scrape.registry.health(scrape.now, it.key).as_ref()))
        .collect();
    for state in STATES {
        let count = states.iter().filter(|it| **it == state).count();
        page.row(&[("state", state)], count);
    }
    page.row(&[("state", DOWN)], down.len());
    page.family("trunkline_node_changes_total", "counter", "What happened to nodes, and why.");
    for change in CHANGES {
        let labels = [("change", change.0), ("reason", change.1)];
        page.row(&labels, scrape.registry.changes(change));
    }
    let absent = scrape.registry.absent().count();
    page.family("trunkline_nodes_ordered_absent", "gauge", "Drained or out, and not there.");
    page.row(&[], absent);
    let label_of =
        |it: &Node| [format!("{:016x}", it.key.0), it.host_name.clone(), it.version.0.to_string()];
    let labels: Vec<[String; 3]> = snapshot.nodes().iter().map(label_of).collect();
    let with = |[key, name, version]: &[String; 3]| {
        [("node", key.clone()), ("name", name.clone()), ("version", version.clone())]
    };
    let rows = || labels.iter().zip(snapshot.nodes());
    page.family("trunkline_node_state", "gauge", "1 for the state that a node is in.");
    let down = down.iter().map(|it| (label_of(it), *it, DOWN));
    let live = rows().zip(&states).map(|((label, node), state)| (label.clone(), node, *state));
    for (label, node, state) in live.chain(down) {
        let [key, name, version] = with(&label);
        let address = ("ip", node.ip.to_string());
        page.owned_row(&[key, name, version, address, ("state", state.to_owned())], 1);
    }
    page.family("trunkline_node_left", "gauge", "What still depends on a live node, by kind.");
    for (label, node) in rows() {
        let left = totals.left(node);
        for (kind, count) in [
            ("call", left.calls),
            ("remembered_call", left.remembered),
            ("sip_connection", Some(left.sip_connections)),
            ("sip_busy", Some(left.sip_busy)),
            ("http_connection", Some(left.http_connections)),
            ("smpp_connection", Some(left.smpp_connections)),
        ] {
            if let Some(count) = count {
                let [key, name, version] = with(label);
                page.owned_row(&[key, name, version, ("kind", kind.to_owned())], count);
            }
        }
    }
    let help = "Calls given to a live node. With reuseportSteering=cpu or random, an INVITE that is sent \
                again may meet another shard, which counts it again.";
    page.family("trunkline_node_calls_total", "counter", help);
    for (label, node) in rows() {
        page.owned_row(&with(label), totals.node(node.key).calls);
    }
    page.family("trunkline_node_requests_total", "counter", "Requests sent to a live node.");
    for (label, node) in rows() {
        page.owned_row(&with(label), totals.node(node.key).requests);
    }
    page.family(
        "trunkline_node_responses_total",
        "counter",
        "Responses of a live node, by status class.",
    );
    for (label, node) in rows() {
        for (class, count) in (1..).zip(totals.node(node.key).responses) {
            if count > 0 {
                let [key, name, version] = with(label);
                page.owned_row(&[key, name, version, ("class", format!("{class}xx"))], count);
            }
        }
    }
    page.family(
        "trunkline_nodes_fingerprint",
        "gauge",
        "1; balancers whose fingerprints are equal choose alike.",
    );
    page.owned_row(&[("fingerprint", format!("{:016x}", snapshot.fingerprint()))], 1);
}

/// Those by SIP are SIP requests.
fn heartbeats(page: &mut Page, scrape: &Scrape<'_>) {
    let it = &scrape.beats;
    page.family("trunkline_heartbeats_total", "counter", "Heartbeats by RMI and HTTP.");
    page.row(&[("by", "rmi")], it.rmi);
    page.row(&[("by", "http")], it.json);
    page.family("trunkline_rmi_upkeep_total", "counter", "What RMI clients do beside heartbeats.");
    page.row(&[("kind", "ping")], it.rmi_pings);
    page.row(&[("kind", "lease")], it.rmi_leases);
    page.row(&[("kind", "release")], it.rmi_releases);
    page.family(
        "trunkline_heartbeats_refused_total",
        "counter",
        "Connections to the heartbeat ports that were cut off, and nodes not believed, by reason.",
    );
    page.row(&[("reason", "malformed")], it.malformed);
    page.row(&[("reason", "refused")], it.refused);
    for reason in REFUSALS {
        page.row(&[("reason", reason)], scrape.registry.refusals(reason));
    }
    page.family("trunkline_heartbeat_connections_total", "counter", "Connections of nodes.");
    page.row(&[], it.accepted);
    page.family("trunkline_heartbeat_connections", "gauge", "Open connections of nodes.");
    page.row(&[], it.connections);
}

fn http(page: &mut Page, scrape: &Scrape<'_>) {
    let totals = scrape.totals().http;
    page.family("trunkline_http_requests_total", "counter", "HTTP requests taken in, by method.");
    for method in http::Method::ALL {
        page.row(&[("method", method.as_str())], totals.requests(method));
    }
    page.family(
        "trunkline_http_responses_total",
        "counter",
        "HTTP responses sent to clients, by status class and code.",
    );
    for (code, count) in totals.codes.iter() {
        let class = format!("{}xx", code / 100);
        page.row(&[("class", &class), ("code", &code.to_string())], count);
    }
    page.family("trunkline_http_refused_total", "counter", "What got no answer of a node.");
    for why in Refusal::ALL {
        page.row(&[("reason", why.as_str())], totals.refusals(why));
    }
    let directions = |page: &mut Page, name: &str, help: &str, node: u64, client: u64| {
        page.family(name, "counter", help);
        page.row(&[("to", "node")], node);
        page.row(&[("to", "client")], client);
    };
    directions(
        page,
        "trunkline_http_content_bytes_total",
        "Bytes of HTTP message bodies passed on.",
        totals.bytes_to_node,
        totals.bytes_to_client,
    );
    directions(
        page,
        "trunkline_http_tunnel_bytes_total",
        "Bytes through WebSocket connections.",
        totals.tunnel_bytes_to_node,
        totals.tunnel_bytes_to_client,
    );
    for (name, kind, help, value) in [
        ("connections", "gauge", "Open HTTP connections of clients.", totals.clients),
        ("tunnels", "gauge", "Open WebSocket connections.", totals.tunnels_open),
        ("tunnels_total", "counter", "Connections that became WebSocket.", totals.tunnels),
        ("retries_total", "counter", "Requests sent again to another node.", totals.retries),
    ] {
        page.family(&format!("trunkline_http_{name}"), kind, help);
        page.row(&[], value);
    }
    http_nodes(page, scrape, &totals);
}

/// Only of nodes that had any.
fn http_nodes(page: &mut Page, scrape: &Scrape<'_>, totals: &HttpCounters) {
    let rows: Vec<([(&str, String); 3], HttpNode)> = scrape
        .snapshot
        .nodes()
        .iter()
        .map(|it| {
            let labels = [
                ("node", format!("{:016x}", it.key.0)),
                ("name", it.host_name.clone()),
                ("version", it.version.0.to_string()),
            ];
            (labels, totals.node(it.key))
        })
        .filter(|(_, it)| it.requests > 0)
        .collect();
    page.family("trunkline_http_node_requests_total", "counter", "HTTP requests sent to a node.");
    for (labels, node) in &rows {
        page.owned_row(labels, node.requests);
    }
    page.family(
        "trunkline_http_node_responses_total",
        "counter",
        "HTTP responses of a node, by status class.",
    );
    for ([key, name, version], node) in &rows {
        for (class, count) in (1..).zip(node.responses).filter(|(_, count)| *count > 0) {
            let class = ("class", format!("{class}xx"));
            page.owned_row(&[key.clone(), name.clone(), version.clone(), class], count);
        }
    }
    page.family(
        "trunkline_http_node_seconds",
        "histogram",
        "Time from when a node was asked to the head of its response.",
    );
    for (labels, node) in &rows {
        let [key, name, version] = labels.each_ref().map(|(label, text)| (*label, text.as_str()));
        for (bound, count) in LATENCY_BOUNDS.iter().zip(node.at_most) {
            let bound = bound.as_secs_f64().to_string();
            page.suffixed_row("_bucket", &[key, name, version, ("le", &bound)], count);
        }
        page.suffixed_row("_bucket", &[key, name, version, ("le", "+Inf")], node.count);
        page.suffixed_row("_sum", &[key, name, version], node.sum.as_secs_f64());
        page.suffixed_row("_count", &[key, name, version], node.count);
    }
}

fn shards(page: &mut Page, scrape: &Scrape<'_>) {
    /// Name, type, help and where the value is found.
    type Row = (&'static str, &'static str, &'static str, fn(&super::Load) -> u64);
    let rows: [Row; 10] = [
        ("datagrams_total", "counter", "Datagrams received.", |it| it.datagrams),
        ("batches_total", "counter", "Receive calls that brought datagrams.", |it| it.batches),
        ("stream_messages_total", "counter", "Messages received on streams.", |it| {
            it.stream_messages
        }),
        ("sent_total", "counter", "Datagrams and stream writes that left.", |it| it.sent),
        ("wakeups_total", "counter", "Turns of the driver.", |it| it.turns),
        ("receive_drops_total", "counter", "Datagrams that the kernel dropped unread.", |it| {
            it.receive_drops
        }),
        ("hops_total", "counter", "Messages handed to another shard.", |it| it.hops),
        ("connections", "gauge", "Open stream connections.", |it| it.connections),
        ("refused_connections_total", "counter", "Stream connections refused.", |it| {
            it.refused_connections
        }),
        ("retried_total", "counter", "Messages decided again after a refusal.", |it| it.retried),
    ];
    for (name, kind, help, value) in rows {
        page.family(&format!("trunkline_shard_{name}"), kind, help);
        for (index, (_, load)) in scrape.shards.iter().enumerate() {
            page.row(&[("shard", &index.to_string())], value(load));
        }
    }
    type StreamRow = (&'static str, fn(&super::Streams) -> u64);
    let events: [StreamRow; 14] = [
        ("refused_source", |it| it.refused_source),
        ("tls_handshake", |it| it.tls_handshakes),
        ("tls_resumed", |it| it.tls_resumed),
        ("tls_failed", |it| it.tls_failed),
        ("tls_broken", |it| it.tls_broken),
        ("websocket_opened", |it| it.websocket_opened),
        ("websocket_refused", |it| it.websocket_refused),
        ("websocket_broken", |it| it.websocket_broken),
        ("handshake_timeout", |it| it.handshake_timeouts),
        ("slow_closed", |it| it.slow_closed),
        ("idle_closed", |it| it.idle_closed),
        ("lost", |it| it.lost),
        ("shortage", |it| it.shortages),
        ("panic", |it| it.panicked),
    ];
    page.family(
        "trunkline_connection_events_total",
        "counter",
        "What became of stream connections, all shards together.",
    );
    for (event, value) in events {
        let sum: u64 = scrape.shards.iter().map(|(_, load)| value(&load.streams)).sum();
        page.row(&[("event", event)], sum);
    }
    page.family("trunkline_shard_busy_seconds_total", "counter", "Time between wake-up and sleep.");
    for (index, (_, load)) in scrape.shards.iter().enumerate() {
        page.row(&[("shard", &index.to_string())], load.busy.as_secs_f64());
    }
    let help = "Since the shard gave its figures: large while it is too busy to give new ones.";
    page.family("trunkline_shard_figures_age_seconds", "gauge", help);
    for (index, (_, load)) in scrape.shards.iter().enumerate() {
        page.row(&[("shard", &index.to_string())], load.age.as_secs_f64());
    }
}

fn residence(page: &mut Page, scrape: &Scrape<'_>) {
    let it = scrape.residence;
    page.family(
        "trunkline_residence_seconds",
        "histogram",
        "Time from receiving a message to sending it on.",
    );
    for (bound, count) in RESIDENCE_BOUNDS.iter().zip(it.at_most) {
        page.suffixed_row("_bucket", &[("le", &bound.as_secs_f64().to_string())], count);
    }
    page.suffixed_row("_bucket", &[("le", "+Inf")], it.count);
    page.suffixed_row("_sum", &[], it.sum.as_secs_f64());
    page.suffixed_row("_count", &[], it.count);
}

fn certificates(page: &mut Page, scrape: &Scrape<'_>) {
    if scrape.certificates.is_empty() {
        return;
    }
    page.family(
        "trunkline_certificate_days",
        "gauge",
        "Days until a certificate of ours expires; negative once it has.",
    );
    let now = scrape.wall_ms(scrape.now) as f64 / 1_000.0;
    for it in scrape.certificates {
        let days = (it.not_after as f64 - now) / 86_400.0;
        page.owned_row(&[("alias", it.alias.clone())], format!("{days:.2}"));
    }
}

fn process(page: &mut Page, scrape: &Scrape<'_>) {
    let process = &scrape.process;
    page.family("trunkline_build_info", "gauge", "1, with name and version of the program.");
    page.row(&[("name", process.name), ("version", process.version)], 1);
    page.family("trunkline_uptime_seconds", "gauge", "Time since the start of the process.");
    page.row(&[], scrape.now.as_secs());
    page.family("trunkline_cpu_percent", "gauge", "CPU of the process, percent of all cores.");
    page.row(&[], process.cpu_percent);
    page.family("trunkline_resident_bytes", "gauge", "Resident memory.");
    page.row(&[], process.resident_bytes);
    page.family("trunkline_stopping", "gauge", "1 while the process drains.");
    page.row(&[], u8::from(process.is_stopping));
}

const LEGS: [(Leg, &str); 2] = [(Leg::External, "external"), (Leg::Internal, "internal")];

const DOWN: &str = "down";
const STATES: [&str; 5] = ["eligible", "draining", "graceful", "bad", "suspect"];

/// One state each, the most lasting first.
pub(super) fn state_of(node: &Node, record: Option<&Health>) -> &'static str {
    if record.is_some_and(|it| !it.is_live) {
        DOWN
    } else if record.is_some_and(|it| it.ordered.is_some()) {
        "draining"
    } else if node.graceful {
        "graceful"
    } else if node.bad.is_some() {
        "bad"
    } else if !node.suspect.is_empty() {
        "suspect"
    } else {
        "eligible"
    }
}

#[derive(Default)]
struct Page {
    text: String,
    /// Name of the family that rows belong to.
    name: String,
}

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        name.clone_into(&mut self.name);
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n"); // never fails
    }

    fn row(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.suffixed_row("", labels, value);
    }

    fn owned_row(&mut self, labels: &[(&str, String)], value: impl Display) {
        let labels: Vec<(&str, &str)> = labels.iter().map(|it| (it.0, it.1.as_str())).collect();
        self.suffixed_row("", &labels, value);
    }

    fn suffixed_row(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl Display) {
        self.text.push_str(&self.name);
        self.text.push_str(suffix);
        for (index, (label, text)) in labels.iter().enumerate() {
            self.text.push(if index == 0 { '{' } else { ',' });
            let _ = write!(self.text, "{label}=\"{}\"", escaped(text)); // never fails
        }
        self.text.push_str(if labels.is_empty() { " " } else { "} " });
        let _ = writeln!(self.text, "{value}"); // never fails
    }
}

/// Backslash, quote and line feed, as the format asks. Nodes write some of these texts.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
