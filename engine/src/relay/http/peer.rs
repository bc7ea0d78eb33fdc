//! What is known of one connection, and of the request that is being carried.

use std::collections::VecDeque;
use std::net::SocketAddr;

use protocols::http::Method;
use protocols::http::body::Body;
use protocols::http::head::{Request, Scan};
use protocols::time::Time;

use super::pool::Place;
use crate::node::NodeKey;
use crate::relay::stream::Conn;
use crate::snapshot::Service;

/// Either end.
#[derive(Debug)]
pub(super) enum Peer {
    Client(Client),
    Node(Node),
}

/// A client's connection. Small: most of them are idle.
#[derive(Debug)]
pub(super) struct Client {
    /// Of the client, by the PROXY protocol's word where that is spoken.
    pub(super) source: SocketAddr,
    pub(super) listener: u8,
    pub(super) phase: Phase,
    pub(super) scan: Scan,
    pub(super) exchange: Option<Box<Exchange>>,
    /// It will send no more.
    pub(super) is_ended: bool,
    /// Bytes of it wait unconsumed for their turn; it is not read.
    pub(super) has_more: bool,
    /// It takes no more for now: nothing is read that would make more for it.
    pub(super) is_full: bool,
    /// Bytes that it had acknowledged when that was last looked at.
    pub(super) taken_bytes: u64,
    /// It is counted as one that a node serves.
    pub(super) is_paired: bool,
    /// It has had no answer yet.
    pub(super) is_fresh: bool,
}

/// What the next bytes of a client are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Phase {
    /// A PROXY protocol header.
    Preface,
    /// Requests.
    Requests,
    /// Of no interest: it has our answer and is to close.
    Lingering,
}

impl Client {
    pub(super) const fn new(listener: u8, source: SocketAddr) -> Client {
        Client {
            source,
            listener,
            phase: Phase::Requests,
            scan: SCAN,
            exchange: None,
            is_ended: false,
            has_more: false,
            is_full: false,
            taken_bytes: 0,
            is_paired: false,
            is_fresh: true,
        }
    }
}

/// A connection to a node, at work or waiting in the pool.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) place: Place,
    /// Whose request it carries; `None`: it waits in the pool.
    pub(super) client: Option<Conn>,
    pub(super) scan: Scan,
    /// It has answered by HTTP/1.1 and kept the connection: it may have a request before it has answered
    /// the one before (RFC 9112 §9.3.2).
    pub(super) takes_followers: bool,
}

impl Node {
    pub(super) const fn new(place: Place) -> Node {
        Node { place, client: None, scan: SCAN, takes_followers: false }
    }
}

/// One request on its way, with its response.
#[derive(Debug)]
pub(super) struct Exchange {
    /// When the node had all that had come of the request: its answer is timed from here.
    pub(super) asked: Time,
    pub(super) method: Method,
    /// The client speaks HTTP/1.0.
    pub(super) is_1_0: bool,
    /// The client's connection goes on after this.
    pub(super) keeps_client: bool,
    /// The client has said that it asks no more (RFC 9112 §9.6).
    pub(super) is_last: bool,
    /// The request has gone as HTTP/1.0: the node closes when it has answered, whatever it says.
    pub(super) goes_as_1_0: bool,
    /// The node's does.
    pub(super) keeps_node: Option<u32>,
    pub(super) service: Service,
    /// A WebSocket handshake.
    pub(super) upgrades: bool,
    /// `requestCheckPattern` is found in its target.
    pub(super) is_watched: bool,
    pub(super) expects_continue: bool,
    /// What is left of the request's body.
    pub(super) request: Body,
    /// Content of it so far, bytes.
    pub(super) content_bytes: u64,
    /// The request as it goes to nodes, as far as it has come.
    pub(super) replay: Vec<u8>,
    /// Length of its head.
    pub(super) head_bytes: usize,
    /// All of it is there.
    pub(super) can_replay: bool,
    /// Nodes that failed.
    pub(super) tried: Vec<NodeKey>,
    /// Attempts, those on connections of the pool too.
    pub(super) attempts: usize,
    /// Nodes that had the request and broke off.
    pub(super) breaks: usize,
    /// The connection to the node.
    pub(super) node: Option<Conn>,
    pub(super) place: Option<Place>,
    pub(super) is_connected: bool,
    /// What had left on the connection before, bytes.
    pub(super) sent_before: u64,
    /// The connection came out of the pool: the node may have closed it a moment ago.
    pub(super) is_reused: bool,
    /// The client is not read: the node, or our memory, takes no more.
    pub(super) is_node_full: bool,
    /// What is left of the response's body, once its head has gone to the client.
    pub(super) response: Option<Body>,
    /// The client cannot read chunks.
    pub(super) strips_chunks: bool,
    /// Bytes of the body since the deadline was last moved.
    pub(super) progress_bytes: u64,
    /// Bytes that the node had acknowledged when that was last looked at.
    pub(super) taken_bytes: u64,
    pub(super) tunnel: Option<Tunnel>,
    /// Requests that the client sent behind this one, and that went to the node behind it.
    pub(super) followers: VecDeque<Box<Exchange>>,
}

impl Exchange {
    /// A request of which nothing has been sent. `replay` holds its head.
    pub(super) fn new(now: Time, request: &Request, replay: Vec<u8>) -> Exchange {
        Exchange {
            asked: now,
            method: request.method,
            is_1_0: request.is_1_0,
            keeps_client: request.is_persistent,
            is_last: !request.is_persistent,
            goes_as_1_0: request.is_1_0 && request.host.is_none(),
            keeps_node: None,
            service: Service::Http,
            upgrades: request.upgrade.is_some(),
            is_watched: false,
            expects_continue: request.expects_continue,
            request: Body::new(request.framing),
            content_bytes: 0,
            head_bytes: replay.len(),
            replay,
            can_replay: true,
            tried: Vec::new(),
            attempts: 0,
            breaks: 0,
            node: None,
            place: None,
            is_connected: false,
            sent_before: 0,
            is_reused: false,
            is_node_full: false,
            response: None,
            strips_chunks: false,
            progress_bytes: 0,
            taken_bytes: 0,
            tunnel: None,
            followers: VecDeque::new(),
        }
    }
}

/// A connection that is nobody's business any more but its ends'.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tunnel {
    pub(super) bytes_to_node: u64,
    pub(super) bytes_to_client: u64,
    pub(super) client_ended: bool,
    pub(super) node_ended: bool,
}

/// Nothing looked at yet.
pub(super) const SCAN: Scan = Scan::NEW;
