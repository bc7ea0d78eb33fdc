//! Responses: off with our Vias, on to the next (`sip.md` 2.7; RFC 3261 §16.7, §16.11, §18.2.2).

use std::net::{IpAddr, SocketAddr};

use protocols::bytes::{Span, write_decimal, write_host};
use protocols::sip::Transport;
use protocols::sip::message::Method;
use protocols::sip::message::{Start, remove_values};

use super::explain::Trace;
use super::flow::{self, Token};
use super::settings::{Place, Settings};
use super::via::{self, ResponseTarget, TopVia};
use super::{Attempt, Buffers, Incoming, State, contact, next_hop, target};
use crate::balance::Query;
use crate::relay::{DropReason, Flow, Hop, Leg, Verdict};
use crate::snapshot::{NodeId, Snapshot};

impl State {
    pub(super) fn response<T: Trace>(
        &mut self,
        settings: &Settings,
        incoming: &Incoming<'_>,
        status: u16,
        out: &mut Vec<u8>,
        trace: &mut T,
    ) -> Verdict {
        let message = incoming.message;
        let snapshot = incoming.snapshot;
        if !via::is_ours(&incoming.via, settings) {
            return Verdict::Drop(DropReason::NotOurs);
        }
        // One of ours, or two where the legs differ; what is below belongs to others.
        let below = message.vias.get(1).map_or(b"".as_slice(), |it| message.text(it.span));
        // The last one says where the request came in: the response goes out there, whatever transport
        // the sender wrote into its own.
        let has_two = settings.is_two_entry(incoming.family);
        // Without a second leg it may be a client's that has our address, behind a NAT.
        let is_pair = |branch: Option<&[u8]>, is_received: bool| {
            let top = incoming.via.via.branch;
            has_two || via::is_other_leg(top, branch).unwrap_or(!is_received)
        };
        let (ours, transport, token) = if let Some((transport, branch)) =
            via::verbatim(below, settings)
            && is_pair(Some(branch), false)
        {
            (2, Some(transport), None)
        } else {
            let is_second = |it: &TopVia<'_>| {
                via::is_ours(it, settings) && is_pair(it.via.branch, it.via.received.is_some())
            };
            match TopVia::at(message, 1).filter(is_second) {
                Some(second) => (2, second.via.transport, second.via.param("flow")),
                None => (1, incoming.via.via.transport, incoming.via.via.param("flow")),
            }
        };
        let Some(next) = TopVia::at(message, ours) else {
            return Verdict::Drop(DropReason::NoVia);
        };
        let Some(transport) = transport else {
            return Verdict::Drop(DropReason::NoListener);
        };
        remove_values(&message.vias, ours, &mut self.buffers.edits);

        let from_node = is_from_node(settings, incoming);
        if T::ON {
            let side =
                if from_node { "from a node, to a client" } else { "from outside, to a node" };
            trace.say(format_args!("response {status}: {side}; {ours} Via of ours removed"));
        }
        let out_leg = if from_node { Leg::External } else { Leg::Internal };
        let Some(place) = settings.place(out_leg, incoming.family, transport) else {
            return Verdict::Drop(DropReason::NoListener);
        };
        let flow = token.and_then(|it| flow::read(it, &settings.secret)).map(|it| it.flow);
        let target = via::response_target(&next, transport);
        let next = Next { target, via: next, transport, place, flow, snapshot };
        let hop = if from_node {
            self.leave_node(settings, incoming, status, &next, trace);
            next.hop()
        } else {
            self.locate_client(settings, incoming, None);
            if let Some(token) = Token::of(incoming.arrival) {
                contact::mark_record_route(message, token, settings, &mut self.buffers.edits);
            }
            self.reach_node(settings, incoming, status, &next, trace)
        };
        let Some(hop) = hop else { return Verdict::Drop(DropReason::Unresolved) };
        self.state_length(message, hop);
        if self.buffers.edits.apply(message.bytes, out).is_err() {
            out.clear();
            return Verdict::Drop(DropReason::TooLarge);
        }
        Verdict::Forward { hop, is_request: false, reply: None }
    }

    fn leave_node<T: Trace>(
        &mut self,
        settings: &Settings,
        incoming: &Incoming<'_>,
        status: u16,
        next: &Next<'_>,
        trace: &mut T,
    ) {
        let message = incoming.message;
        let config = &settings.config;
        if self.attempt == Attempt::First
            && let Some(node) = self.sender(incoming)
        {
            let reason = match message.start {
                Start::Response { reason, .. } => message.text(reason),
                Start::Request { .. } => b"",
            };
            let is_error = config.error_codes.contains(&status)
                && config.error_reason.as_ref().is_none_or(|it| it.as_bytes() == reason);
            self.sightings.answered(incoming.snapshot, node, is_error);
            let node = incoming.snapshot.node(node);
            self.counters.from_node(node.key, status);
            self.calls.handle_response(incoming.arrival.now, message, status, node);
            if T::ON {
                trace.say(format_args!("sender is node {} {}", node.host_name, node.ip));
            }
        }
        let opens = matches!(
            message.method(),
            Method::Invite | Method::Subscribe | Method::Update | Method::Refer
        );
        if config.legacy_contact_patching && opens && !(300..400).contains(&status) {
            self.publish_contact(settings, incoming, next.transport);
        }
    }

    /// The node that sends the response: by its source, else the only one on that host, or the only one
    /// there of the version that was asked, or that of them which has the call, if it began on this shard.
    fn sender(&mut self, incoming: &Incoming<'_>) -> Option<NodeId> {
        let (snapshot, source) = (incoming.snapshot, incoming.arrival.source);
        let exact = snapshot.at(source, Some(incoming.transport), None);
        if exact.is_some() || snapshot.remembers(source) {
            return exact;
        }
        let there = snapshot.on(source.ip());
        if let [alone] = there {
            return Some(*alone);
        }
        let version = incoming.via.via.branch.and_then(via::branch_version)?;
        let is_of_version = |it: &NodeId| snapshot.node(*it).version == version;
        let mut of_version = there.iter().copied().filter(is_of_version);
        let first = of_version.next()?;
        if of_version.next().is_none() {
            return Some(first);
        }
        let home = self.calls.node_of(incoming.arrival.now, incoming.message)?;
        snapshot.find(home).filter(|it| is_of_version(it) && there.contains(it))
    }

    /// To the node that sent the request, or to who takes its place if it is dead.
    fn reach_node<T: Trace>(
        &mut self,
        settings: &Settings,
        incoming: &Incoming<'_>,
        status: u16,
        next: &Next<'_>,
        trace: &mut T,
    ) -> Option<Hop> {
        let message = incoming.message;
        let snapshot = incoming.snapshot;
        for line in message.initial_remote.as_slice() {
            self.buffers.edits.remove(*line);
        }
        self.initial_remote(message, incoming.arrival.source);
        let named = next.node();
        let is_server = next.target.ip.is_some_and(|ip| {
            let port = next.target.sent_by_port;
            settings.extra_servers.contains(&SocketAddr::new(ip, port))
        });
        let version = incoming.via.via.branch.and_then(via::branch_version);
        let version = version.filter(|it| snapshot.has_version(*it));
        let query = Query {
            now: incoming.arrival.now,
            key: self.affinity_key(settings, message),
            call_id: message.text(message.call_id),
            version: version
                .unwrap_or_else(|| snapshot.newest(false, incoming.family, next.transport)),
            names_version: version.is_some(),
            family: incoming.family,
            transport: next.transport,
            is_first: false,
            is_ack: false,
            in_dialog: false,
            status: Some(status),
            is_again: self.attempt == Attempt::Undelivered,
        };
        let taker = if is_server && named.is_none() {
            None
        } else {
            self.algorithm.answer(&query, snapshot, named)
        };
        if let Some(node) = taker.or(named) {
            self.calls.handle_response(query.now, message, status, snapshot.node(node));
        }
        if taker == named || taker.is_none() {
            let hop = if settings.config.use_with_nexmo {
                next.hop_to(next.via.via.host_ip(), next.target.sent_by_port)
            } else {
                next.hop()
            };
            // Anybody outside can write such a Via: it leads to servers or nowhere.
            let is_known = |it: SocketAddr| {
                snapshot.at(it, None, None).is_some()
                    || snapshot.remembers(it)
                    || settings.extra_servers.contains(&it)
            };
            let hop = match hop {
                Some(Hop::Flow { flow, or, is_response }) => {
                    Some(Hop::Flow { flow, or: or.filter(|(_, to)| is_known(*to)), is_response })
                }
                other => other.filter(|it| target(*it).is_some_and(is_known)),
            };
            if hop.is_some() || taker.is_none() {
                if settings.config.use_with_nexmo {
                    self.distrust(next);
                }
                return hop;
            }
        }
        let node = snapshot.node(taker?);
        let port = node.ports.of(next.transport)?;
        if T::ON {
            let gone = if named == taker {
                "elsewhere than it says"
            } else if named.is_some() {
                "overruled"
            } else {
                "dead"
            };
            trace.say(format_args!(
                "the node of the Via is {gone}; to {} {}",
                node.host_name, node.ip
            ));
        }
        let start = next.via.span.start;
        let via = &next.via.via;
        let edits = &mut self.buffers.edits;
        let span = Span { start: start + via.sent_by.start, end: start + via.sent_by.end };
        edits.write(span, |text| {
            write_host(text, node.ip);
            text.push(b':');
            write_decimal(text, port);
        });
        self.distrust(next);
        Some(next_hop::hop(next.place, next.transport, SocketAddr::new(node.ip, port)))
    }

    /// Takes `received` and `rport` off the Via below ours: they name who is gone, or a carrier
    /// corrupted them (`isUseWithNexmo`).
    fn distrust(&mut self, next: &Next<'_>) {
        let Buffers { edits, .. } = &mut self.buffers;
        let start = next.via.span.start;
        for span in [next.via.via.received_span, next.via.via.rport_span].into_iter().flatten() {
            edits.remove(Span { start: start + span.start, end: start + span.end });
        }
    }
}

/// The Via that the response goes to.
struct Next<'a> {
    via: TopVia<'a>,
    target: ResponseTarget,
    transport: Transport,
    place: &'a Place,
    /// Connection that its request came by.
    flow: Option<Flow>,
    snapshot: &'a Snapshot,
}

impl Next<'_> {
    /// The live node that wrote it.
    fn node(&self) -> Option<NodeId> {
        let ports = [self.target.sent_by_port, self.target.port];
        let ips = [self.via.via.host_ip(), self.target.ip];
        ips.into_iter().flatten().find_map(|ip| {
            let at = |port| self.snapshot.at(SocketAddr::new(ip, port), Some(self.transport), None);
            ports.into_iter().find_map(at)
        })
    }

    fn hop(&self) -> Option<Hop> {
        self.hop_to(self.target.ip, self.target.port)
    }

    fn hop_to(&self, ip: Option<IpAddr>, port: u16) -> Option<Hop> {
        let from = self.place.listener;
        if !self.transport.is_stream() {
            return Some(Hop::Datagram { from, to: SocketAddr::new(ip?, port) });
        }
        // The connection it came by; once that is gone, where the sender listens, never its old
        // ephemeral port (RFC 3261 §18.2.2).
        let listens = ip.map(|ip| SocketAddr::new(ip, self.target.sent_by_port));
        // Clients on WebSocket listen nowhere: all that is left is a connection that they have.
        let may_call = |to: &SocketAddr| {
            !matches!(self.transport, Transport::Ws | Transport::Wss)
                || self.snapshot.at(*to, None, None).is_some()
        };
        let listens = listens.filter(may_call);
        match self.flow {
            Some(flow) => {
                let or = listens.map(|to| (from, to));
                Some(Hop::Flow { flow, or, is_response: true })
            }
            None => Some(Hop::Stream { from, to: listens.unwrap_or(SocketAddr::new(ip?, port)) }),
        }
    }
}

/// Where the response comes from. Two-entry: the leg says it. Single-entry: the source is a node's own
/// address; or another port of its host, and what is answered went to nodes (RFC 3261 §18.2.2: a server
/// whose connection is gone opens another).
fn is_from_node(settings: &Settings, incoming: &Incoming<'_>) -> bool {
    if settings.is_two_entry(incoming.family) {
        return incoming.leg == Leg::Internal;
    }
    let (snapshot, source) = (incoming.snapshot, incoming.arrival.source);
    if snapshot.at(source, None, None).is_some() || snapshot.remembers(source) {
        return true;
    }
    let branch = incoming.via.via.branch.and_then(via::own_branch);
    branch.is_some_and(|(_, mark)| mark == via::INNER)
        && (snapshot.has_ip(source.ip()) || snapshot.remembers_ip(source.ip()))
}
