//! What the relay needs of the configuration, worked out once.

use std::net::SocketAddr;
use std::time::Duration;

use crate::config::{Config, HttpConfig};
use crate::relay::stream::Secure;
use crate::snapshot::Service;

/// The configuration as the relay uses it. Immutable: a reload makes the next one.
#[derive(Clone, Debug)]
pub struct HttpSettings {
    /// Where it came from.
    pub config: Config,
    /// Address of `unavailableHost`, resolved; `None`: not configured, or not known yet.
    pub unavailable: Option<SocketAddr>,
    listeners: Vec<HttpListener>,
}

/// One listening port, on every address of the host (`http-smpp-registry.md` 1.1).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct HttpListener {
    /// The port.
    pub port: u16,
    /// Connections are inside TLS.
    pub is_secure: bool,
}

impl HttpSettings {
    /// Works everything out.
    pub fn new(config: Config, unavailable: Option<SocketAddr>) -> HttpSettings {
        let ports = [(config.http.port, false), (config.http.tls_port, true)];
        let listeners = ports
            .into_iter()
            .filter_map(|(port, is_secure)| port.map(|port| HttpListener { port, is_secure }))
            .collect();
        HttpSettings { config, unavailable, listeners }
    }

    /// The ports to listen on; the position is the listener's number for
    /// [`crate::relay::stream::StreamRelay::handle_open`].
    pub fn listeners(&self) -> &[HttpListener] {
        &self.listeners
    }

    pub(super) fn http(&self) -> &HttpConfig {
        &self.config.http
    }

    pub(super) fn listener(&self, number: usize) -> Option<HttpListener> {
        self.listeners.get(number).copied()
    }

    /// What a request needs of a node (`http-smpp-registry.md` 1.9, 1.11).
    pub(super) fn service(&self, is_secure: bool, is_sip: bool) -> Service {
        let reencrypts = is_secure && self.http().reencrypts && !self.config.terminate_tls;
        match (is_sip, self.config.remote_server_ssl, reencrypts) {
            (true, false, false) => Service::Ws,
            (true, ..) => Service::Wss,
            (false, true, _) => Service::Tls,
            (false, false, true) => Service::Https,
            (false, false, false) => Service::Http,
        }
    }
}

/// Whether a node's port for this is inside TLS.
pub(super) const fn secure(service: Service) -> Secure {
    match service {
        Service::Http | Service::Ws => Secure::No,
        Service::Https | Service::Tls | Service::Wss => Secure::Tls,
    }
}

/// How long a connection that we have ended waits for the client to end it too: what is closed with
/// bytes unread is reset, and the reset may overtake the answer (RFC 9112 §9.6).
pub(super) const LINGER: Duration = Duration::from_secs(5);

/// `Retry-After` of a 503: nodes come back within a heartbeat or two.
pub(super) const RETRY_AFTER_SECS: &str = "5";

/// Times that one request is sent at most, connections that had been closed meanwhile included.
pub(super) const TRIES_MAX: usize = 32;

/// Times that a request goes on to another node after one had it and broke off: one node may always die,
/// a request that every node dies of must not have them all.
pub(super) const BREAKS_MAX: usize = 1;

/// Connections to one node that wait for work on one shard, at most.
pub(super) const IDLE_PER_NODE_MAX: usize = 256;

/// A head and the beginning of its body leave in one write up to this many bytes.
pub(super) const COALESCED_BYTES_MAX: usize = 32 * 1024;

/// Requests of one client that wait at a node behind one that it has not answered, at most.
pub(super) const FOLLOWERS_MAX: usize = 16;

/// How long a connection that has asked nothing yet may still do so when the process stops.
pub(super) const FRESH_TIME_MAX: Duration = Duration::from_secs(1);

/// A peer must send or take this much of a body in each `httpBodyTimeout`.
pub(super) const SLOW_BYTES_MAX: u64 = 1024;
