//! Routes that lead to us: taken off, and what they say about the call (`sip.md` 2.4).

use std::net::SocketAddr;

use protocols::bytes::parse_decimal;
use protocols::sip::Transport;
use protocols::sip::message::Message;
use protocols::sip::route::NameAddr;
use protocols::sip::uri::{Uri, parse_ip};

use super::explain::Trace;
use super::flow::{self, Token};
use super::settings::Settings;
use super::via;
use crate::node::Version;
use crate::snapshot::{NodeId, Snapshot};

/// What the Routes meant for us said.
#[derive(Debug, Default)]
pub(super) struct Stripped {
    /// How many of the first Route values are ours.
    pub count: usize,
    /// Live node named by `node_host` and `node_port`.
    pub node: Option<NodeId>,
    /// A node was named, live or not.
    pub named: bool,
    /// `version` of the route set.
    pub version: Option<Version>,
    /// Client connection named by a flow token that is truly ours.
    pub token: Option<Token>,
    /// `transport` of the second of our Routes, or of the only one: of a node's request the leg towards the
    /// client.
    pub outer: Option<Transport>,
}

/// Where a request comes from, with the transport of the nodes' leg.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Side {
    Client(Transport),
    Node(Transport),
}

impl Stripped {
    /// Reads the Routes in front that are ours, then, if no live node was named, the Request-URI.
    pub(super) fn of<T: Trace>(
        message: &Message<'_>,
        uri: Option<&Uri<'_>>,
        settings: &Settings,
        snapshot: &Snapshot,
        side: Side,
        trace: &mut T,
    ) -> Stripped {
        let mut it = Stripped::default();
        let mut by_name = false;
        for value in message.all_routes() {
            let text = value.span.of(message.bytes);
            let Some(route) = NameAddr::parse(text) else { break };
            let Some(route_uri) = Uri::parse(route.uri) else { break };
            let is_name = !by_name && it.count == 0 && settings.is_my_route_name(route_uri.host);
            if !is_name && !settings.is_my_uri(&route_uri) {
                break;
            }
            by_name |= is_name;
            it.count += 1;
            if T::ON {
                trace.say(format_args!("route {}: ours, removed", text.escape_ascii()));
            }
            it.read(&route_uri, settings, snapshot, side, trace);
        }
        if it.node.is_none()
            && let Some(uri) = uri
        {
            let before = it.version;
            it.read(uri, settings, snapshot, side, trace);
            if !it.named {
                it.version = before;
            }
        }
        it
    }

    fn read<T: Trace>(
        &mut self,
        uri: &Uri<'_>,
        settings: &Settings,
        snapshot: &Snapshot,
        side: Side,
        trace: &mut T,
    ) {
        let said = Said::of(uri);
        let version = said.version.and_then(via::parse_version);
        if self.version.is_none() {
            self.version = version;
        }
        if self.count <= 2
            && let Some(transport) = said.transport.and_then(Transport::from_token)
        {
            self.outer = Some(transport);
        }
        if self.token.is_none()
            && let Some(token) = said.flow
        {
            self.token = flow::read(token, &settings.secret);
            if T::ON {
                let verdict =
                    if self.token.is_some() { "ours" } else { "forged or stale, ignored" };
                trace.say(format_args!("flow token {}: {verdict}", token.escape_ascii()));
            }
        }
        let (Some(host), Some(port)) = (said.node_host, said.node_port) else {
            return;
        };
        self.named = true;
        let (leg, inner) = match side {
            // Of a client's two the second was written for the nodes' leg: its transport is the port's.
            Side::Client(leg) => (leg, self.outer.filter(|it| self.count == 2 && *it != leg)),
            Side::Node(leg) => (leg, None),
        };
        if self.node.is_none() || inner.is_some() {
            let transport = Some(inner.unwrap_or(leg));
            let found = address(host, port).and_then(|it| snapshot.at(it, transport, version));
            self.node = found.or(self.node);
            if T::ON {
                let verdict =
                    if self.node.is_some() { "a live node" } else { "no live node, refused" };
                let (host, port) = (host.escape_ascii(), port.escape_ascii());
                trace.say(format_args!("hint node_host={host} node_port={port}: {verdict}"));
            }
        }
    }
}

/// The parameters of a URI that may be one of ours, as written; the first of each name.
#[derive(Default)]
struct Said<'u> {
    version: Option<&'u [u8]>,
    transport: Option<&'u [u8]>,
    flow: Option<&'u [u8]>,
    node_host: Option<&'u [u8]>,
    node_port: Option<&'u [u8]>,
}

impl<'u> Said<'u> {
    fn of(uri: &Uri<'u>) -> Said<'u> {
        let mut it = Said::default();
        for param in uri.params() {
            let slot = match param.name.len() {
                4 if param.is_named("flow") => &mut it.flow,
                7 if param.is_named("version") => &mut it.version,
                9 if param.is_named("node_host") => &mut it.node_host,
                9 if param.is_named("node_port") => &mut it.node_port,
                9 if param.is_named("transport") => &mut it.transport,
                _ => continue,
            };
            slot.get_or_insert(param.value);
        }
        it
    }
}

/// Reads the address of a hint. IPv6 comes with and without brackets.
fn address(host: &[u8], port: &[u8]) -> Option<SocketAddr> {
    let host = host.strip_prefix(b"[").and_then(|it| it.strip_suffix(b"]")).unwrap_or(host);
    Some(SocketAddr::new(parse_ip(host)?, parse_decimal(port)?))
}
