//! Requests from nodes: whose dialog, where to, by what transport (`sip.md` 2.8).

use std::net::SocketAddr;

use protocols::bytes::Span;
use protocols::sip::Transport;
use protocols::sip::message::Message;
use protocols::sip::message::Method;
use protocols::sip::route::NameAddr;
use protocols::sip::uri::{Scheme, Uri};

use super::answer::{Answer, LOOP};
use super::explain::Trace;
use super::flow::{self, Token};
use super::head::{HeadLines, Record, opens_dialog};
use super::next_hop::{NextHop, Search};
use super::request::Request;
use super::routes::Stripped;
use super::settings::Settings;
use super::via::{Branch, INNER, OUTER};
use super::{Attempt, Incoming, State, contact, target};
use crate::balance::Query;
use crate::relay::{DropReason, Hop, Leg, Verdict};
use crate::snapshot::{Family, NodeId};

/// Requests from nodes (`sip.md` 2.8).
impl State {
    pub(super) fn outwards<T: Trace>(
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
        let arrival = incoming.arrival;
        let sender = sender(incoming);
        if let Some(node) = sender {
            self.sightings.alive(snapshot, node);
        }
        let owner = routes.node.or(sender);
        let version = owner.map(|it| snapshot.node(it).version).or(routes.version);
        let version = version.unwrap_or_else(|| snapshot.latest());
        if let Some(node) = routes.node
            && request.method != Method::Ack
        {
            let query = Query {
                now: arrival.now,
                key: self.affinity_key(settings, message),
                call_id: message.text(message.call_id),
                version,
                names_version: true,
                family: incoming.family,
                transport: incoming.transport,
                is_first: !request.is_subsequent,
                is_ack: false,
                in_dialog: request.is_subsequent,
                status: None,
                is_again: self.attempt == Attempt::Undelivered,
            };
            self.algorithm.learn(&query, snapshot, node);
        }
        if T::ON {
            match owner {
                Some(node) => trace.node(snapshot, node, "sender"),
                None => trace.say(format_args!("sender is not a registered node")),
            }
        }
        let left = message.routes.len()
            - routes.count.min(message.routes.len())
            - usize::from(request.route_moved);
        let top = (left > 0).then(|| message.route(routes.count)).flatten();
        let top = top.and_then(|it| NameAddr::parse(message.text(it.span)));
        let top_uri = top.as_ref().and_then(|it| Uri::parse(it.uri));
        let Some(next) = top_uri.or(request.uri).filter(|it| !it.host.is_empty()) else {
            let answer = Answer::plain(416, "Unsupported URI Scheme", DropReason::NoListener);
            return self.answer(settings, incoming, request.method, &answer, out);
        };
        // The route set's, or that of a Contact that we put a client's connection into.
        let token = routes
            .token
            .or_else(|| next.param("flow").and_then(|it| flow::read(it, &settings.secret)));
        // A client may have our address, behind a NAT; its connection says better where it is.
        if token.is_none() && settings.is_my_uri(&next) {
            if T::ON {
                trace.say(format_args!("next hop is this balancer: loop"));
            }
            return self.answer(settings, incoming, request.method, &LOOP, out);
        }
        let search = Search {
            now: arrival.now,
            family: incoming.family,
            uri: &next,
            otherwise: routes.outer.unwrap_or(incoming.transport),
            token,
            key: request.hash,
        };
        let (out_place, transport, hop) = match search.run(settings, &self.names, &mut self.asked) {
            NextHop::Found { place, transport, hop } => (place, transport, hop),
            NextHop::Unknown => {
                if T::ON {
                    trace.say(format_args!("next hop {}: to be resolved", self.asked.host));
                }
                self.wanted = Some(self.asked.clone());
                return Verdict::Resolve;
            }
            NextHop::Unreachable(reason) => {
                if T::ON {
                    trace.say(format_args!("next hop cannot be reached: {}", reason.as_str()));
                }
                return self.service_unavailable(settings, incoming, request.method, reason, out);
            }
        };
        let Some(in_place) = settings.place(incoming.leg, incoming.family, incoming.transport)
        else {
            return Verdict::Drop(DropReason::NoListener);
        };
        if let Some(top) = &top
            && top_uri.is_some_and(|it| it.param("lr").is_none())
        {
            self.feed_strict_router(message, request, top.uri);
            self.cut_routes(message, request, routes.count + 1);
        } else {
            self.cut_routes(message, request, routes.count);
        }
        if settings.config.legacy_contact_patching
            && matches!(
                request.method,
                Method::Invite | Method::Subscribe | Method::Update | Method::Refer
            )
        {
            self.publish_contact(settings, incoming, transport);
        }
        let scratch = &mut self.buffers.uri;
        let own_address = target(hop).is_some_and(|it| settings.hides_balancer(it.ip(), scratch));
        self.head_lines(
            settings,
            HeadLines {
                out_place,
                in_place,
                own_address,
                branch: Branch { hash: request.hash, version },
                marks: (OUTER, INNER),
                came_by: Token::of(arrival),
                record: opens_dialog(request).then_some(Record {
                    node: owner.map(|it| snapshot.node(it)),
                    inner: incoming.transport,
                    is_sips: is_sips(&next) || request.uri.as_ref().is_some_and(is_sips),
                    from_client: None,
                    to_client: match hop {
                        Hop::Flow { flow, .. } => {
                            Some(Token { flow, listener: out_place.listener })
                        }
                        Hop::Datagram { .. } | Hop::Stream { .. } => None,
                    },
                }),
            },
        );
        if let Some(node) = owner {
            self.calls.handle_request(arrival.now, request, message, snapshot.node(node));
        }
        self.forward(settings, incoming, request, hop, out)
    }

    /// The next hop knows no loose routing: it gets its own URI as Request-URI (RFC 3261 §16.6(6)).
    pub(super) fn feed_strict_router(
        &mut self,
        message: &Message<'_>,
        request: &Request<'_>,
        uri: &[u8],
    ) {
        let edits = &mut self.buffers.edits;
        let old = request.uri.map_or(b"".as_slice(), |it| it.text);
        let Some(last) = message.all_routes().last() else { return };
        edits.supersede(request.uri_span, uri);
        edits.write(Span { start: last.line.end, end: last.line.end }, |text| {
            text.extend_from_slice(b"Route: <");
            text.extend_from_slice(old);
            text.extend_from_slice(b">\r\n");
        });
    }

    /// Our public address in Contact, for those who depended on it (`sip.md` 2.11).
    pub(super) fn publish_contact(
        &mut self,
        settings: &Settings,
        incoming: &Incoming<'_>,
        transport: Transport,
    ) {
        let config = &settings.config;
        let host = match incoming.family {
            Family::V4 => &config.public_ip,
            Family::V6 => &config.public_ipv6,
        };
        let place = settings.place(Leg::External, incoming.family, transport);
        if let (Some(host), Some(place)) = (host, place) {
            let port = settings.listener(place.listener).address.port();
            contact::publish(incoming.message, host, port, &mut self.buffers.edits);
        }
    }
}

fn is_sips(uri: &Uri<'_>) -> bool {
    uri.scheme == Scheme::Sips
}

/// The registered node that a request comes from: by its source, else by the Via it wrote from that IP.
fn sender(incoming: &Incoming<'_>) -> Option<NodeId> {
    let source = incoming.arrival.source;
    let at = |address| incoming.snapshot.at(address, Some(incoming.transport), None);
    at(source)
        .or_else(|| at(SocketAddr::new(source.ip(), incoming.via.sent_by_port(incoming.transport))))
}
