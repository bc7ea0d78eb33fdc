//! What the operator says of HTTP: values of the keys of section "HTTP".

use std::time::Duration;

use super::HostPort;
use super::rewrite::Rewrite;

/// HTTP, HTTPS and WebSocket (`http-smpp-registry.md` 1, 9.2).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HttpConfig {
    /// Listening port; `None` is closed.
    pub port: Option<u16>,
    /// Listening port of HTTPS; `None` is closed.
    pub tls_port: Option<u16>,
    /// Requests on the plain port are redirected to HTTPS.
    pub redirects_to_tls: bool,
    /// HTTPS requests reach nodes by TLS, unless TLS is terminated here.
    pub reencrypts: bool,
    /// Longest body of a request, bytes; 0 is unlimited.
    pub body_bytes_max: u32,
    /// Where requests go when there is no node; port 80 where none is written.
    pub unavailable: Option<HostPort>,
    /// They are redirected there instead of forwarded.
    pub unavailable_redirects: bool,
    /// Targets whose error responses make a node bad; found anywhere.
    pub check: Option<Search>,
    /// Rules for request targets.
    pub rewrite: Rewrite,
    /// Longest wait for a connection to a node.
    pub connect_time: Duration,
    /// Longest wait for the head of a response, from the end of the request.
    pub response_time: Duration,
    /// Longest time without progress of a body, either way.
    pub body_idle: Duration,
    /// Longest time from the first byte of a request head to its last.
    pub head_time: Duration,
    /// How long a client's connection is kept between requests.
    pub client_idle: Duration,
    /// How long a node's connection is kept between requests.
    pub node_idle: Duration,
    /// How long a tunnel may be silent.
    pub tunnel_idle: Duration,
    /// Most bytes of a request that are kept to send it to another node.
    pub replay_bytes_max: usize,
    /// Most connections of one source, of all shards; 0 is any number.
    pub source_connections_max: usize,
    /// X-Forwarded-For and X-Forwarded-Proto are written.
    pub x_forwarded: bool,
    /// Via is written.
    pub via: bool,
    /// Connections begin with a PROXY protocol header, version 1 or 2.
    pub proxy_protocol: bool,
    /// Pipelined requests of a session go on to its node before the ones in front are answered.
    pub pipelines: bool,
}

/// A regular expression that is found anywhere in a text (Java's `find`). Compared by its text.
#[derive(Clone, Debug)]
pub struct Search(pub regex::bytes::Regex);

impl PartialEq for Search {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}
