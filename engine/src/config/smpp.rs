//! What the operator says of SMPP: values of the keys of section "SMPP".

use std::time::Duration;

use super::HostPort;

/// SMPP (`http-smpp-registry.md` 2, 9.3).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SmppConfig {
    /// Name in log lines.
    pub name: Option<String>,
    /// Listening address, and source address towards servers; the wildcard if absent.
    pub host: Option<String>,
    /// Listening address, where it differs.
    pub external_host: Option<String>,
    /// Source address towards servers, where it differs.
    pub internal_host: Option<String>,
    /// Listening port; `None` is closed.
    pub port: Option<u16>,
    /// Listening port of SMPP over TLS; `None` is closed.
    pub tls_port: Option<u16>,
    /// `remoteServers`, in order.
    pub servers: Vec<HostPort>,
    /// Sessions of clients that came by TLS reach servers by TLS, unless TLS is terminated here.
    pub reencrypts: bool,
    /// Sessions with one system_id share connections to servers.
    pub mux: bool,
    /// How the server is chosen.
    pub to_provider: SmppToProvider,
    /// How the client is chosen, in mux mode.
    pub to_node: SmppToNode,
    /// Longest wait for a response.
    pub response: Duration,
    /// Longest wait for a bind.
    pub connection: Duration,
    /// Period of enquire_link.
    pub enquire: Duration,
    /// Wait before a lost server is tried again.
    pub reconnect: Duration,
    /// Longest wait for a connection to a server.
    pub connect: Duration,
    /// `timeoutConnectionCheckClientSide`.
    pub check_client_side: Duration,
    /// `timeoutConnectionCheckServerSide`.
    pub check_server_side: Duration,
    /// Unanswered requests of one session, and towards it.
    pub session_window: u32,
    /// Unanswered requests at one server connection.
    pub provider_window: u32,
    /// What a full window does.
    pub full: SmppFull,
    /// Delivery receipts go to the session that submitted, in mux mode.
    pub receipt_routing: bool,
    /// Messages whose submitter is remembered, per shard.
    pub receipts_max: usize,
    /// How long.
    pub receipt_age: Duration,
    /// Most connections of one source, of all shards; 0 is any number.
    pub source_connections_max: usize,
    /// Commands that SMPP sets aside for vendors pass.
    pub vendor_commands: bool,
}

/// `toProviderAlgorithmClass`: which server gets a session, in mux mode a request.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum SmppToProvider {
    /// One after the other.
    #[default]
    RoundRobin,
    /// The first; another only when it fails.
    ActiveStandby,
}

/// `toNodeAlgorithmClass`: which session gets a server's request in mux mode.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum SmppToNode {
    /// One after the other.
    #[default]
    RoundRobin,
    /// All of them.
    SubmitToAll,
}

/// `smppWindowFull`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum SmppFull {
    /// Read no further until there is room.
    #[default]
    Stop,
    /// Answer ESME_RTHROTTLED.
    Throttle,
}
