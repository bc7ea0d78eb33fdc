//! Requests: what both directions have in common (`sip.md` 2.1, 2.2, RFC 3261 §16.3, §16.4).

use protocols::bytes::{Span, parse_decimal, write_decimal};
use protocols::sip::Transport;
use protocols::sip::message::Method;
use protocols::sip::message::{Message, Start};
use protocols::sip::route::NameAddr;
use protocols::sip::uri::Uri;

use super::answer::{Answer, LOOP, answer_hop};
use super::contact::{self, Real};
use super::explain::Trace;
use super::flow::Token;
use super::routes::{Side, Stripped};
use super::settings::Settings;
use super::via;
use super::words::Words;
use super::{Attempt, Buffers, Incoming, State};
use crate::registry::{Announcement, BeatError};
use crate::relay::{DropReason, Hop, Leg, Provisional, Verdict};

/// A request on its way: what has been found out so far.
pub(super) struct Request<'a> {
    pub method: Method,
    /// The Request-URI to go by: the one written, or what a strict router moved into Route.
    pub uri: Option<Uri<'a>>,
    pub uri_span: Span,
    /// The To header has a tag.
    pub is_subsequent: bool,
    /// [`via::transaction`].
    pub hash: u64,
    /// The last Route was a strict router's and is the Request-URI now.
    pub route_moved: bool,
}

impl State {
    pub(super) fn request<T: Trace>(
        &mut self,
        settings: &Settings,
        incoming: &Incoming<'_>,
        method: Method,
        out: &mut Vec<u8>,
        trace: &mut T,
    ) -> Verdict {
        let message = incoming.message;
        let arrival = incoming.arrival;
        if via::amend(&incoming.via, arrival, incoming.transport, settings, &mut self.buffers.via) {
            self.buffers.edits.replace(incoming.via.span, &self.buffers.via);
        }
        if message.heartbeat
            && matches!(method, Method::Options | Method::Info)
            && incoming.leg == Leg::Internal
            && settings.believes_heartbeats_of(arrival.source.ip())
        {
            return self.heartbeat(settings, incoming, out);
        }
        // Heartbeats are no traffic: the original counts after them (`sip.md` 2.1).
        if self.attempt == Attempt::First {
            let Incoming { leg, transport, .. } = *incoming;
            self.counters.request(method, leg, transport, message.body.len());
        }
        let from_node = is_from_node(settings, incoming);
        if T::ON {
            let side = if from_node { "from a node, outwards" } else { "from a client, to a node" };
            trace.say(format_args!("{} request: {side}", method.as_str()));
        }
        let is_subsequent = message.to_tag().is_some();
        let is_new = !is_subsequent && !matches!(method, Method::Ack | Method::Cancel);
        if !from_node
            && self.attempt == Attempt::First
            && let Some(refusal) = self.admit(settings, incoming, method, is_new, out)
        {
            return refusal;
        }
        match self.max_forwards(message) {
            Ok(()) => {}
            Err(answer) => return self.answer(settings, incoming, method, &answer, out),
        }
        let Start::Request { uri: uri_span, .. } = message.start else {
            return Verdict::Drop(DropReason::Malformed);
        };
        if is_from_us(settings, incoming) {
            if T::ON {
                trace.say(format_args!("sender is this balancer: loop"));
            }
            return self.answer(settings, incoming, method, &LOOP, out);
        }
        let mut request = Request {
            method,
            uri: message.request_uri,
            uri_span,
            is_subsequent,
            hash: via::transaction(&incoming.via, message),
            route_moved: false,
        };
        self.undo_strict_router(settings, message, &mut request, trace);
        let side = if from_node {
            Side::Node(incoming.transport)
        } else {
            Side::Client(settings.towards_nodes(incoming.transport))
        };
        let uri = request.uri.as_ref();
        let routes = Stripped::of(message, uri, settings, incoming.snapshot, side, trace);
        for line in message.initial_remote.as_slice() {
            self.buffers.edits.remove(*line);
        }
        if from_node {
            self.outwards(settings, incoming, &request, &routes, out, trace)
        } else {
            self.inwards(settings, incoming, &request, &routes, out, trace)
        }
    }

    /// Registers what a node says of itself (`sip.md` 4). One without an address is refused, yet hears 200
    /// as it always did (4.2): what is wrong stands in the log.
    fn heartbeat(
        &mut self,
        settings: &Settings,
        incoming: &Incoming<'_>,
        out: &mut Vec<u8>,
    ) -> Verdict {
        let message = incoming.message;
        let refusal = match Announcement::parse(message.text(message.body)) {
            Ok(announcement) => {
                if !self.sightings.beat(announcement) {
                    return Verdict::Drop(DropReason::QueueFull);
                }
                None
            }
            Err(error) => {
                self.sightings.bad_beat(incoming.arrival.source.ip(), error);
                let is_heard = matches!(error, BeatError::NoIp | BeatError::BadIp);
                (!is_heard).then(|| format!("Bad heartbeat: {error}"))
            }
        };
        let answer = match &refusal {
            None => Answer::plain(200, "OK", DropReason::Malformed),
            Some(reason) => Answer::plain(400, reason, DropReason::Malformed),
        };
        self.write_answer(incoming, &answer, out);
        Verdict::Reply { hop: answer_hop(settings, incoming) }
    }

    /// Blocked words and rates, for requests from outside. `None`: it may pass.
    fn admit(
        &mut self,
        settings: &Settings,
        incoming: &Incoming<'_>,
        method: Method,
        is_new: bool,
        out: &mut Vec<u8>,
    ) -> Option<Verdict> {
        let message = incoming.message;
        let arrival = incoming.arrival;
        let values = [message.user_agent.unwrap_or_default(), message.to, message.from];
        let has = |words: &Words| values.iter().any(|it| words.are_in(it.of(message.bytes)));
        let is_spared =
            matches!(method, Method::Bye | Method::Ack | Method::Prack | Method::Cancel);
        if settings.scanners().is_some_and(|it| !is_spared && has(it)) {
            return Some(Verdict::Drop(DropReason::Blocked));
        }
        if settings.blocked().is_some_and(has) {
            let Some(status) = settings.config.blocked_response else {
                return Some(Verdict::Drop(DropReason::Blocked));
            };
            let reason = if status == 403 { "Forbidden" } else { "Blocked" };
            let answer = Answer::plain(status, reason, DropReason::Blocked);
            return Some(self.answer(settings, incoming, method, &answer, out));
        }
        if is_new && !self.rates.admits(arrival.now, arrival.source.ip()) {
            // New work is refused first; what is up goes on.
            return Some(Verdict::Drop(DropReason::Rate));
        }
        None
    }

    /// RFC 3261 §16.3(3), §16.6(3).
    fn max_forwards(&mut self, message: &Message<'_>) -> Result<(), Answer<'static>> {
        let edits = &mut self.buffers.edits;
        match message.max_forwards {
            None => edits.insert(message.headers_end, b"Max-Forwards: 70\r\n"),
            Some(span) => match parse_decimal::<u64>(message.text(span)) {
                Some(0) => {
                    return Err(Answer::plain(483, "Too Many Hops", DropReason::MaxForwards));
                }
                Some(hops) => {
                    edits.write(span, |text| write_decimal(text, hops.min(255) - 1));
                }
                None => {
                    return Err(Answer::plain(400, "Bad Max-Forwards", DropReason::Malformed));
                }
            },
        }
        Ok(())
    }

    /// Takes off the first `count` Routes, and the last one if it became the Request-URI.
    pub(super) fn cut_routes(
        &mut self,
        message: &Message<'_>,
        request: &Request<'_>,
        count: usize,
    ) {
        let edits = &mut self.buffers.edits;
        let at_last = message.routes.len().saturating_sub(1);
        if !request.route_moved {
            return message.remove_routes(count, edits);
        }
        if count >= at_last {
            return message.remove_routes(at_last + 1, edits);
        }
        message.remove_routes(count, edits);
        let mut ends = message.all_routes().skip(at_last - 1);
        let (Some(previous), Some(last)) = (ends.next(), ends.next()) else { return };
        match Some(previous).filter(|it| it.line == last.line) {
            Some(previous) => {
                edits.remove(Span { start: previous.span.end, end: last.span.end });
            }
            None => edits.remove(last.line),
        }
    }

    /// A strict router before us put our own Record-Route into the Request-URI and the real one at the
    /// end of Route (RFC 3261 §16.4).
    fn undo_strict_router<'m, T: Trace>(
        &mut self,
        settings: &Settings,
        message: &Message<'m>,
        request: &mut Request<'m>,
        trace: &mut T,
    ) {
        let Some(uri) = request.uri.filter(|it| settings.is_my_uri(it)) else { return };
        // Without a stamp, since we did not know the node, it looks like what anybody may call us by: but
        // not in a dialog, and ours has no user.
        let is_stamped = uri.param("node_host").is_some();
        let may_be_ours = is_stamped || (request.is_subsequent && uri.user.is_empty());
        if uri.param("lr").is_none() || !may_be_ours {
            return;
        }
        let Some(value) = message.all_routes().last() else { return };
        let Some(route) = NameAddr::parse(value.span.of(message.bytes)) else { return };
        let is_ours = |it: &Uri<'_>| settings.is_my_uri(it) || settings.is_my_route_name(it.host);
        let Some(target) = Uri::parse(route.uri).filter(|it| !is_ours(it)) else {
            return;
        };
        self.buffers.edits.replace(request.uri_span, route.uri);
        if T::ON {
            trace.say(format_args!(
                "strict router: Request-URI was ours, now {}",
                route.uri.escape_ascii()
            ));
        }
        request.uri = Some(target);
        request.route_moved = true;
    }
}

/// What every request ends with.
impl State {
    /// On a stream the length must be said (RFC 3261 §18.3); datagrams and WebSocket messages may come
    /// without (RFC 7118 §5.3).
    pub(super) fn state_length(&mut self, message: &Message<'_>, hop: Hop) {
        if message.content_length.is_some() || matches!(hop, Hop::Datagram { .. }) {
            return;
        }
        let at = Span { start: message.headers_end, end: message.headers_end };
        self.buffers.edits.write(at, |text| {
            text.extend_from_slice(b"Content-Length: ");
            write_decimal(text, message.text(message.body).len() as u64);
            text.extend_from_slice(b"\r\n");
        });
    }

    /// Tells nodes where a client really is: the transport that it uses, and its connection where it made
    /// up a host (`sip.md` 1.1, 2.8).
    pub(super) fn locate_client(
        &mut self,
        settings: &Settings,
        incoming: &Incoming<'_>,
        transport: Option<Transport>,
    ) {
        let is_websocket = matches!(incoming.transport, Transport::Ws | Transport::Wss);
        let arrival = incoming.arrival;
        let real = (is_websocket && settings.config.patch_websocket_headers).then_some(Real {
            address: arrival.source,
            token: Token::of(arrival),
            secret: &settings.secret,
        });
        if transport.is_none() && real.is_none() {
            return;
        }
        let (message, edits) = (incoming.message, &mut self.buffers.edits);
        // A proxy of the client's side is the way to it; our own Record-Route, in its answers, is not.
        let is_ours = |value: &[u8]| {
            let uri = NameAddr::parse(value).and_then(|it| Uri::parse(it.uri));
            uri.is_some_and(|it| settings.is_my_uri(&it))
        };
        let top = message.record_routes.first().map(|it| message.text(it.span));
        let changes = match real {
            Some(real) if top.is_some_and(|it| !is_ours(it)) => {
                contact::change_record_route(message, real, edits);
                contact::Changes { transport, real: None }
            }
            real => contact::Changes { transport, real },
        };
        contact::change(message, changes, edits);
    }

    pub(super) fn forward(
        &mut self,
        settings: &Settings,
        incoming: &Incoming<'_>,
        request: &Request<'_>,
        hop: Hop,
        out: &mut Vec<u8>,
    ) -> Verdict {
        let message = incoming.message;
        // A 100 stops the client's retransmissions, so the rest of the way must be reliable
        // (`sip.md` 2.10); to other methods RFC 4320 §4.1 forbids it.
        let may_try = settings.config.send_trying && request.method == Method::Invite;
        // Once is enough: what is decided again has had its own.
        let is_due = may_try && self.attempt != Attempt::Undelivered;
        if is_due && !matches!(hop, Hop::Datagram { .. }) {
            let answer = Answer::plain(100, "Trying", DropReason::Malformed);
            self.counters.response(100, incoming.leg, incoming.transport, 0);
            self.write_answer(incoming, &answer, out);
        }
        let reply = (!out.is_empty())
            .then(|| Provisional { bytes: out.len(), hop: answer_hop(settings, incoming) });
        self.state_length(message, hop);
        let Buffers { edits, head, .. } = &mut self.buffers;
        edits.insert(message.first_header, head);
        if edits.apply(message.bytes, out).is_err() {
            out.clear();
            return Verdict::Drop(DropReason::TooLarge);
        }
        Verdict::Forward { hop, is_request: true, reply }
    }
}

/// Whether we have sent it ourselves (RFC 3261 §16.3(4)). Balancers of other networks may have our address:
/// the sender's must be one of ours, too.
fn is_from_us(settings: &Settings, incoming: &Incoming<'_>) -> bool {
    let source = incoming.arrival.source.ip();
    incoming.via.via.branch.and_then(via::own_branch).is_some()
        && via::is_ours(&incoming.via, settings)
        && (incoming.via.via.host_ip() == Some(source) || settings.is_my_ip(source))
}

/// Where the request comes from. Two-entry: the leg says it. Single-entry: the source must be a node's or
/// an extra server's own address, or have its IP and name its port in Via (`sip.md` 2.2). The host there is
/// the sender's affair: nodes write names.
fn is_from_node(settings: &Settings, incoming: &Incoming<'_>) -> bool {
    if settings.is_two_entry(incoming.family) {
        return incoming.leg == Leg::Internal;
    }
    let source = incoming.arrival.source;
    let is_server = |address| {
        incoming.snapshot.at(address, None, None).is_some() || incoming.snapshot.remembers(address)
    };
    if is_server(source) {
        return true;
    }
    let port = incoming.via.sent_by_port(incoming.transport);
    is_server(std::net::SocketAddr::new(source.ip(), port))
}
