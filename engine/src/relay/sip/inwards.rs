//! Requests from clients: the node, and the edits that lead there (`sip.md` 2.3).

use std::net::SocketAddr;

use protocols::bytes::{Span, write_decimal, write_host, write_ip};
use protocols::sip::Transport;
use protocols::sip::message::Message;
use protocols::sip::message::Method;
use protocols::sip::route::NameAddr;
use protocols::sip::uri::{Scheme, Uri};

use super::answer::Answer;
use super::explain::Trace;
use super::flow::Token;
use super::head::{HeadLines, Record, opens_dialog};
use super::request::Request;
use super::routes::Stripped;
use super::settings::Settings;
use super::via::{Branch, INNER, OUTER};
use super::{Attempt, Buffers, Incoming, State, next_hop};
use crate::balance::Query;
use crate::config::AffinityKey;
use crate::node::{Node, Version};
use crate::relay::{DropReason, Leg, Verdict};
use crate::snapshot::{NodeId, Snapshot};

/// How the chosen node becomes the next hop.
struct Aim<'a> {
    node: &'a Node,
    to: SocketAddr,
    towards: Transport,
    /// Routes left once ours are off.
    left: usize,
    /// The first of them.
    top: Option<Uri<'a>>,
    /// The one that led to the node that is gone: replaced, its user and parameters kept.
    old_route: Option<&'a [u8]>,
    /// Node that the message named and the algorithm overruled.
    old_node: Option<&'a Node>,
}

/// Requests from clients (`sip.md` 2.3).
impl State {
    pub(super) fn inwards<T: Trace>(
        &mut self,
        settings: &Settings,
        incoming: &Incoming<'_>,
        request: &Request<'_>,
        routes: &Stripped,
        out: &mut Vec<u8>,
        trace: &mut T,
    ) -> Verdict {
        let message = incoming.message;
        let snapshot = incoming.snapshot;
        let towards = settings.towards_nodes(incoming.transport);
        // An ACK with the route set of its dialog goes where the dialog's other requests go; one without
        // belongs to an INVITE outside of any.
        let in_dialog = request.is_subsequent && (request.method != Method::Ack || routes.named);
        let version =
            routes.version.unwrap_or_else(|| snapshot.newest(in_dialog, incoming.family, towards));
        let query = Query {
            now: incoming.arrival.now,
            key: self.affinity_key(settings, message),
            call_id: message.text(message.call_id),
            version,
            names_version: routes.version.is_some(),
            family: incoming.family,
            transport: towards,
            is_first: !request.is_subsequent
                && !matches!(request.method, Method::Ack | Method::Cancel),
            is_ack: request.method == Method::Ack,
            in_dialog,
            status: None,
            is_again: self.attempt == Attempt::Undelivered,
        };
        if T::ON {
            trace.say(format_args!("affinity key: {}", query.key.escape_ascii()));
            trace.candidates(snapshot, &query, self.algorithm.candidates(&query, snapshot));
        }
        // The Route on top once ours are off, unless the strict-router repair took the last one.
        let left = message.routes.len()
            - routes.count.min(message.routes.len())
            - usize::from(request.route_moved);
        let top = (left > 0).then(|| message.route(routes.count)).flatten();
        let top_text = top.map(|it| message.text(it.span));
        let top_uri = top_text.and_then(NameAddr::parse).and_then(|it| Uri::parse(it.uri));

        // A dialog without a version in its route set still lives where its addresses say.
        let wanted = if request.is_subsequent { routes.version } else { Some(version) };
        let serves = |id: &NodeId| query.as_of(snapshot.node(*id)).fits(snapshot, *id);
        let hinted = routes.node.filter(serves);
        let node_at = |uri: &Uri<'_>| node_at(uri, towards, wanted, snapshot);
        let routed = || top_uri.and_then(|it| node_at(&it)).filter(serves);
        let addressed = || {
            let by_uri = request.uri.filter(|it| !settings.is_my_uri(it));
            by_uri.and_then(|it| node_at(&it)).filter(serves)
        };
        let (assigned, why) = if let Some(node) = hinted {
            (Some(node), "hint")
        } else if let Some(node) = routed() {
            (Some(node), "Route")
        } else if request.is_subsequent && left > 0 {
            (None, "")
        } else {
            (addressed(), "Request-URI")
        };
        // A Route left over on a subsequent request led to the node that is gone.
        let old_route =
            (assigned.is_none() && request.is_subsequent && left > 0).then_some(top_text).flatten();
        let node = match assigned {
            Some(node) => {
                if !query.is_ack && hinted.is_some() {
                    self.algorithm.learn(&query, snapshot, node);
                }
                let chosen = self.algorithm.replace(&query, snapshot, node);
                if T::ON {
                    trace.node(snapshot, chosen, why);
                }
                Some(chosen)
            }
            None => {
                let followed = self.followed(incoming, request, routes).filter(serves);
                let picked = followed.or_else(|| self.algorithm.pick(&query, snapshot));
                if T::ON {
                    if !query.is_first && self.algorithm.active_calls().is_some() {
                        trace.say(format_args!(
                            "a call that a running shard remembers keeps its node; none is remembered here"
                        ));
                    }
                    match picked {
                        Some(node) => trace.node(snapshot, node, settings.config.algorithm),
                        None => trace.say(format_args!("no node available")),
                    }
                }
                picked
            }
        };
        let Some(id) = node else {
            return self.no_node(settings, incoming, request.method, out);
        };
        let node = snapshot.node(id);
        let Some(port) = node.ports.of(towards) else {
            return self.no_node(settings, incoming, request.method, out);
        };
        let Some(out_place) = settings.place(Leg::Internal, incoming.family, towards) else {
            let answer = Answer::plain(503, "No listener towards nodes", DropReason::NoListener);
            return self.answer(settings, incoming, request.method, &answer, out);
        };
        let Some(in_place) = settings.place(incoming.leg, incoming.family, incoming.transport)
        else {
            return Verdict::Drop(DropReason::NoListener);
        };

        // A replaced node is told like a dead one: its address must not stay the next hop.
        let replaced = assigned.filter(|it| *it != id);
        let old_route = old_route.or_else(|| {
            let (text, uri) = (top_text?, top_uri?);
            (replaced.is_some() && node_at(&uri) == replaced).then_some(text)
        });
        // A node's own Route without lr: it knows no loose routing.
        let is_strict = assigned == Some(id)
            && !request.route_moved
            && top_uri.is_some_and(|it| it.param("lr").is_none() && is_at(&it, node));
        let leaving = usize::from(old_route.is_some() || is_strict);
        self.cut_routes(message, request, routes.count + leaving);
        if is_strict && let Some(address) = top_text.and_then(NameAddr::parse) {
            self.feed_strict_router(message, request, address.uri);
        }
        let to = SocketAddr::new(node.ip, port);
        self.aim_at_node(
            settings,
            request,
            Aim {
                node,
                to,
                towards,
                left,
                top: top_uri,
                old_route,
                old_node: replaced.map(|it| snapshot.node(it)),
            },
        );

        let body = !message.body.is_empty();
        if body || request.method == Method::Register {
            self.initial_remote(message, incoming.arrival.source);
        }
        let switched = settings.switches_transport().then_some(incoming.transport);
        self.locate_client(settings, incoming, switched);
        let source = incoming.arrival.source.ip();
        let own_address = settings.hides_balancer(source, &mut self.buffers.uri);
        let came_by = Token::of(incoming.arrival);
        self.head_lines(
            settings,
            HeadLines {
                out_place,
                in_place,
                own_address,
                branch: Branch { hash: request.hash, version: node.version },
                marks: (INNER, OUTER),
                came_by,
                record: (opens_dialog(request)).then_some(Record {
                    node: Some(node),
                    inner: towards,
                    is_sips: request.uri.is_some_and(|it| it.scheme == Scheme::Sips),
                    from_client: came_by,
                    to_client: None,
                }),
            },
        );
        if request.method != Method::Ack {
            self.sightings.asked(snapshot, id);
        }
        let begins = self.calls.handle_request(incoming.arrival.now, request, message, node);
        self.counters.to_node(node.key, begins);
        let hop = next_hop::hop(out_place, towards, to);
        self.forward(settings, incoming, request, hop, out)
    }

    /// The node of the INVITE that a CANCEL or the ACK of a failure belongs to (RFC 3261 §9.1, §17.1.1.3):
    /// the algorithm may choose another by now, such as when the node is leaving.
    fn followed(
        &mut self,
        incoming: &Incoming<'_>,
        request: &Request<'_>,
        routes: &Stripped,
    ) -> Option<NodeId> {
        let follows = match request.method {
            Method::Cancel => true,
            Method::Ack => !routes.named,
            _ => false,
        };
        let node = follows
            .then(|| self.calls.node_of(incoming.arrival.now, incoming.message))
            .flatten()?;
        incoming.snapshot.find(node)
    }

    /// Puts the node in as next hop: a Route on top, or the Request-URI where that was us.
    fn aim_at_node(&mut self, settings: &Settings, request: &Request<'_>, aim: Aim<'_>) {
        let Aim { node, to, towards, left, top, old_route, old_node } = aim;
        let Buffers { edits, head, uri: scratch, .. } = &mut self.buffers;
        let is_us = request.uri.as_ref().is_some_and(|it| settings.is_my_uri(it));
        if let Some(text) = old_route {
            let old = NameAddr::parse(text).and_then(|it| Uri::parse(it.uri));
            if let Some(old) = old {
                if let Some(uri) = &request.uri
                    && same_place(uri, &old)
                {
                    scratch.clear();
                    redirect(uri, to, towards, None, scratch);
                    edits.supersede(request.uri_span, scratch);
                }
                head.extend_from_slice(b"Route: <");
                redirect(&old, to, towards, Some(towards), head);
                if old.param("lr").is_none() {
                    head.extend_from_slice(b";lr");
                }
                head.extend_from_slice(b">\r\n");
            }
            return;
        }
        if left == 0 && is_us {
            if let Some(uri) = &request.uri {
                scratch.clear();
                redirect(uri, to, towards, uri.transport().map(|_| towards), scratch);
                edits.supersede(request.uri_span, scratch);
            }
            return;
        }
        if let (Some(uri), Some(old)) = (&request.uri, old_node)
            && is_at(uri, old)
        {
            scratch.clear();
            redirect(uri, to, towards, None, scratch);
            edits.supersede(request.uri_span, scratch);
            if left == 0 {
                return;
            }
        }
        let next = if left > 0 { top } else { request.uri };
        if !next.is_some_and(|it| is_at(&it, node)) {
            head.extend_from_slice(b"Route: <sip:");
            push_address(to, head);
            head.extend_from_slice(b";transport=");
            head.extend_from_slice(towards.as_param().as_bytes());
            head.extend_from_slice(b";lr>\r\n");
        }
    }

    /// Text that affinity follows; the Call-ID where there is none (`sip.md` 3).
    pub(super) fn affinity_key<'m>(&self, settings: &Settings, message: &Message<'m>) -> &'m [u8] {
        let config = &settings.config;
        let of = |key: &AffinityKey| -> &'m [u8] {
            match key {
                AffinityKey::CallId => message.text(message.call_id),
                AffinityKey::ToUser => user(message.to_uri()),
                AffinityKey::From { user: true } => user(message.from_uri()),
                AffinityKey::From { user: false } => message.from_uri(),
                AffinityKey::Header(name) => match message.custom {
                    Some(span) => message.text(span),
                    None => message.header_by_name(name).map_or(b"", |it| message.text(it)),
                },
            }
        };
        let mut key = of(&config.affinity_key);
        if matches!(config.affinity_key, AffinityKey::ToUser | AffinityKey::From { .. })
            && settings.excludes(key)
        {
            key = of(&config.affinity_fallback);
        }
        if key.is_empty() { message.text(message.call_id) } else { key }
    }

    /// Tells the application where the client really is (`sip.md` 2.9).
    pub(super) fn initial_remote(&mut self, message: &Message<'_>, source: SocketAddr) {
        let at = Span { start: message.headers_end, end: message.headers_end };
        self.buffers.edits.write(at, |text| {
            text.extend_from_slice(b"X-Sip-Balancer-InitialRemoteAddr: ");
            write_ip(text, source.ip());
            text.extend_from_slice(b"\r\nX-Sip-Balancer-InitialRemotePort: ");
            write_decimal(text, source.port());
            text.extend_from_slice(b"\r\n");
        });
    }
}

/// The live node that a URI names by address, on the port for its transport or else for the one towards
/// nodes, or on any; the newest there if any version will do.
fn node_at(
    uri: &Uri<'_>,
    towards: Transport,
    version: Option<Version>,
    snapshot: &Snapshot,
) -> Option<NodeId> {
    let transport = uri.transport().flatten().unwrap_or(towards);
    snapshot.at(SocketAddr::new(uri.host_ip()?, uri.own_port()), Some(transport), version)
}

fn is_at(uri: &Uri<'_>, node: &Node) -> bool {
    uri.host_ip().is_some_and(|ip| node.is_at(ip, uri.own_port()))
}

fn same_place(a: &Uri<'_>, b: &Uri<'_>) -> bool {
    !a.host.is_empty() && a.host.eq_ignore_ascii_case(b.host) && a.own_port() == b.own_port()
}

/// Appends a URI with another host and port, which are reached by `towards`: `sips` stays where that is
/// secure. With `transport`, that too.
fn redirect(
    uri: &Uri<'_>,
    to: SocketAddr,
    towards: Transport,
    transport: Option<Transport>,
    out: &mut Vec<u8>,
) {
    let text = uri.text;
    let part = |start: u32, end: u32| text.get(start as usize..end as usize).unwrap_or_default();
    let head = part(0, uri.host_port.start);
    match head.get(b"sips:".len()..).filter(|_| uri.scheme == Scheme::Sips && !towards.is_secure())
    {
        Some(rest) => {
            out.extend_from_slice(b"sip:");
            out.extend_from_slice(rest);
        }
        None => out.extend_from_slice(head),
    }
    push_address(to, out);
    let params = (uri.host_port.end, uri.params_end);
    match (transport, uri.param_span("transport")) {
        (Some(transport), span) => {
            let span = span.unwrap_or(Span { start: params.1, end: params.1 });
            out.extend_from_slice(part(params.0, span.start));
            out.extend_from_slice(b";transport=");
            out.extend_from_slice(transport.as_param().as_bytes());
            out.extend_from_slice(part(span.end, params.1));
        }
        (None, _) => out.extend_from_slice(part(params.0, params.1)),
    }
    out.extend_from_slice(part(uri.params_end, u32::try_from(text.len()).unwrap_or(u32::MAX)));
}

fn push_address(to: SocketAddr, out: &mut Vec<u8>) {
    write_host(out, to.ip());
    out.push(b':');
    write_decimal(out, to.port());
}

/// User part of a SIP URI, or the number of a tel URI.
fn user(uri: &[u8]) -> &[u8] {
    Uri::parse(uri).map_or(b"", |it| it.user)
}
