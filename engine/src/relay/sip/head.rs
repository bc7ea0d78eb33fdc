//! The lines we put in front of a request: Via and Record-Route (`sip.md` 2.5, 2.6; RFC 5658).

use protocols::bytes::{write_decimal, write_host};
use protocols::sip::Transport;
use protocols::sip::message::Method;

use super::State;
use super::flow::{self, Token};
use super::request::Request;
use super::settings::{Place, Settings};
use super::via::{self, Branch};
use crate::node::Node;

/// What the lines depend on.
pub(super) struct HeadLines<'a> {
    /// Leg that the message leaves by.
    pub out_place: &'a Place,
    /// Leg that it came by.
    pub in_place: &'a Place,
    /// A routing rule hides the IP load balancer from this peer.
    pub own_address: bool,
    pub branch: Branch,
    /// Marks of the outgoing and the incoming leg.
    pub marks: (u8, u8),
    /// Connection that it came by.
    pub came_by: Option<Token>,
    /// Where a dialog begins.
    pub record: Option<Record<'a>>,
}

/// What a Record-Route says of the dialog.
pub(super) struct Record<'a> {
    /// Node that the dialog belongs to.
    pub node: Option<&'a Node>,
    /// Transport between us and nodes.
    pub inner: Transport,
    /// It was asked for by `sips:`, and so must be what we write, where the leg is secure
    /// (RFC 3261 §16.6(4)). A leg that is not (`terminateTLSTraffic`) can only be reached by `sip:`.
    pub is_sips: bool,
    /// The client's connection, where it came by one.
    pub from_client: Option<Token>,
    /// The client's connection, where it leaves by one.
    pub to_client: Option<Token>,
}

impl Record<'_> {
    /// `;node_host=..;node_port=..;version=..`
    fn stamp(&self, out: &mut Vec<u8>) {
        let Some(node) = self.node else { return };
        let port = node.ports.of(self.inner).or_else(|| node.ports.iter().next().map(|it| it.1));
        let Some(port) = port else { return };
        out.extend_from_slice(b";node_host=");
        write_host(out, node.ip);
        out.extend_from_slice(b";node_port=");
        write_decimal(out, port);
        out.extend_from_slice(b";version=");
        via::push_version(node.version, out);
    }
}

/// Whether the request gets Record-Route: INVITE and SUBSCRIBE outside a dialog.
pub(super) fn opens_dialog(request: &Request<'_>) -> bool {
    matches!(request.method, Method::Invite | Method::Subscribe) && !request.is_subsequent
}

impl State {
    /// Our Via and Record-Route lines, in wire order: the leg that the message leaves by on top.
    pub(super) fn head_lines(&mut self, settings: &Settings, lines: HeadLines<'_>) {
        let HeadLines { out_place, in_place, own_address, branch, marks, came_by, record } = lines;
        let route_length = self.buffers.head.len();
        let head = &mut self.buffers.head;
        let is_one = out_place.listener == in_place.listener;
        let came_by = came_by.map(|it| (it, &settings.secret));
        via::push(out_place, own_address, branch, marks.0, came_by.filter(|_| is_one), head);
        if !is_one {
            via::push(in_place, own_address, branch, marks.1, came_by, head);
        }
        if let Some(record) = record {
            for (place, is_in) in [(out_place, false), (in_place, true)] {
                if is_in && is_one {
                    break;
                }
                head.extend_from_slice(b"Record-Route: ");
                let text = if own_address { &place.own_record_route } else { &place.record_route };
                let is_secure = settings.listener(place.listener).transport.is_secure();
                match text.strip_prefix("<sip:").filter(|_| record.is_sips && is_secure) {
                    Some(rest) => {
                        head.extend_from_slice(b"<sips:");
                        head.extend_from_slice(rest.as_bytes());
                    }
                    None => head.extend_from_slice(text.as_bytes()),
                }
                record.stamp(head);
                let client = match (is_one, is_in) {
                    (true, _) => record.from_client.or(record.to_client),
                    (false, true) => record.from_client,
                    (false, false) => record.to_client,
                };
                if let Some(client) = client {
                    flow::write(client, &settings.secret, head);
                }
                head.extend_from_slice(b">\r\n");
            }
        }
        // The Route line was written first, when the node was chosen; it belongs behind ours.
        head.rotate_left(route_length);
    }
}
