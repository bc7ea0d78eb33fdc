//! What the operator wants: one key table, two readers, every value with its source.
//!
//! [`load`] reads a file of any generation (`sip.md` 1.2) and never fails: what is wrong stands in
//! [`Loaded::findings`]. [`check`] prints what a file means, [`manual`] the example file, [`changed`] what
//! a reload can apply. All of them walk [`SECTIONS`], the only place that knows the keys.

mod contradictions;
mod draft;
mod heartbeats;
mod http;
mod keys;
mod kubernetes;
mod load;
pub mod log4j;
mod properties;
mod report;
pub mod rewrite;
mod smpp;
#[cfg(test)]
mod tests;
mod value;
mod xml;

use std::net::IpAddr;
use std::time::Duration;

pub use self::heartbeats::HeartbeatConfig;
pub use self::http::{HttpConfig, Search};
pub use self::keys::{Generation, Key, Reload, SECTIONS, Section, Status, keys};
pub use self::kubernetes::KubernetesConfig;
pub use self::load::{Finding, Loaded, Origin, Setting, Severity, load};
pub use self::report::{Changes, changed, check, manual};
pub use self::smpp::{SmppConfig, SmppFull, SmppToNode, SmppToProvider};
use crate::node::Ports;

/// Everything the configuration says, after aliases, generations and defaults are resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Common bind address; a literal or a name.
    pub host: Option<String>,
    /// Common IPv6 bind address.
    pub ipv6_host: Option<String>,
    /// Client side.
    pub external: LegConfig,
    /// Node side; no port at all means single-entry mode.
    pub internal: LegConfig,
    /// Write the IP load balancer's address into Via too.
    pub ip_load_balancer_in_via: bool,

    /// Silence after which a node is taken out.
    pub node_timeout: Duration,
    /// Period of the expiry check.
    pub heartbeat_interval: Duration,
    /// How long a graceful stop keeps serving.
    pub shutdown_timeout: Duration,
    /// The statistics port stays open during a graceful stop.
    pub stop_keeps_statistics: bool,
    /// Port of statistics and administration; `None` is closed.
    pub statistic_port: Option<u16>,
    /// Mutating URLs need `login` and `password`.
    pub security_required: bool,
    /// Administrator.
    pub login: Option<String>,
    /// Administrator's password.
    pub password: Option<String>,

    /// Last segment of `algorithmClass`, a name of [`crate::balance::ALGORITHMS`].
    pub algorithm: &'static str,
    /// Idle time after which a remembered call is forgotten.
    pub call_idle: Duration,
    /// All calls of a dead node move to one node.
    pub group_failover: bool,
    /// Header that affinity follows.
    pub affinity_key: AffinityKey,
    /// Values of the affinity header that do not count; the fallback header is used instead.
    pub affinity_exclusion: Option<Pattern>,
    /// Header used for excluded values.
    pub affinity_fallback: AffinityKey,
    /// Query parameter that HTTP affinity follows.
    pub http_affinity_key: String,
    /// HTTP, HTTPS and WebSocket.
    pub http: HttpConfig,
    /// HTTP and SMPP reach their servers by TLS.
    pub remote_server_ssl: bool,
    /// SMPP.
    pub smpp: SmppConfig,
    /// Groups of node addresses that take over from one another.
    pub subclusters: Vec<Vec<IpAddr>>,
    /// Worst-case test algorithm moves early dialogs too.
    pub early_dialog_worst_case: bool,
    /// Ramp-up: period and weight gained per period.
    pub ramp_up: Option<RampUp>,

    /// Address the world sees us under, IPv4.
    pub public_ip: Option<String>,
    /// Address the world sees us under, IPv6.
    pub public_ipv6: Option<String>,
    /// Rewrite the Contact of responses to the public address (`sip.md` 2.11).
    pub legacy_contact_patching: bool,
    /// Answer INVITE with 100 where it is safe.
    pub send_trying: bool,
    /// Lower-case substrings of User-Agent, From and To that are refused.
    pub blocked_values: Vec<String>,
    /// The congestion valve's own, dropped silently but in a call (`sip.md` 2.12).
    pub scanners: Vec<String>,
    /// The congestion valve is among the valves: its scanners count.
    pub congestion_valve: bool,
    /// Status for blocked requests; `None` drops silently.
    pub blocked_response: Option<u16>,
    /// Names or addresses that are servers for direction, port 5060 by default.
    pub extra_server_nodes: Vec<HostPort>,
    /// Extra server nodes are live nodes.
    pub performance_testing_mode: bool,
    /// Nodes that do not announce themselves; we probe them.
    pub static_nodes: Vec<StaticNode>,
    /// How static nodes are probed.
    pub probe: Probe,
    /// TLS becomes TCP and WSS becomes WS towards nodes.
    pub terminate_tls: bool,
    /// Keys, certificates and what is asked of peers.
    pub tls: Tls,
    /// Longest handshake of TLS or WebSocket.
    pub handshake_time: Duration,
    /// Hosts that end with `.invalid` become the client's real address.
    pub patch_websocket_headers: bool,
    /// Every external transport becomes this one towards nodes.
    pub internal_transport: Option<protocols::sip::Transport>,
    /// Answer 503 when sending fails; `false` stays silent.
    pub send_5xx: bool,
    /// `cause` of the Reason header of that 503.
    pub send_5xx_cause: u16,
    /// Text of the Reason header of that 503; `None` omits the header.
    pub send_5xx_reason: Option<String>,
    /// Status when no node is available: 500, or 503 with Retry-After.
    pub no_node_status: u16,
    /// Response codes that count as a node failure.
    pub error_codes: Vec<u16>,
    /// Reason phrase that such a response must carry too.
    pub error_reason: Option<String>,
    /// Errors that a node may answer before it is bad.
    pub errors_max: u32,
    /// Errors further apart than this do not add up.
    pub error_time: Duration,
    /// After which a bad node is tried again; `None`: not before it restarts.
    pub probation: Option<Duration>,
    /// Silence detection; both keys set or off.
    pub silence: Option<Silence>,
    /// Strip rport and received of the node's Via in responses from outside.
    pub use_with_nexmo: bool,
    /// A Route host name that means us.
    pub route_hostname: Option<String>,
    /// Subdomains of `route_hostname` mean us too.
    pub route_subdomains: bool,
    /// Peers that see our own address instead of the IP load balancer's, IPv4 and IPv6.
    pub routing_rules: Vec<RoutingRule>,
    /// Write received and rport on UDP whenever they differ, asked or not.
    pub always_add_rport: bool,
    /// Never write received and rport on streams.
    pub never_add_received_rport: bool,
    /// Largest message, bytes.
    pub message_bytes_max: usize,
    /// Answer UDP CRLF keep-alives, at most once per this time and source; `None` stays silent.
    pub udp_keepalive: Option<Duration>,
    /// Close a stream that stays silent this long.
    pub stream_idle: Duration,
    /// Heartbeats by RMI and HTTP.
    pub heartbeats: HeartbeatConfig,
    /// Nodes as pods.
    pub kubernetes: KubernetesConfig,
    /// Networks whose heartbeats are believed; empty believes the whole internal leg.
    pub heartbeat_sources: Vec<Network>,
    /// Requests a second from one source address; 0 is unlimited.
    pub source_rate_max: u32,
    /// Requests a second in all, per shard; 0 is unlimited.
    pub total_rate_max: u32,

    /// Shards; 0 takes every CPU of the affinity mask.
    pub shards: usize,
    /// How the kernel spreads datagrams and connections over shards.
    pub steering: Steering,
    /// Longest wait to gather a batch; zero is off.
    pub coalesce: Duration,
    /// Hand UDP datagrams of one destination to the kernel in one piece.
    pub couples_datagrams: bool,
    /// Most remembered calls, per shard.
    pub calls_max: usize,
    /// How long a node that refused is avoided.
    pub suspect_time: Duration,
    /// WSS is carried without TLS, and WS with it (`USE_TLS_GATEWAY`).
    pub tls_gateway: bool,
    /// Most stream connections of SIP, of all shards; of HTTP and of SMPP, per shard.
    pub connections_max: usize,
    /// Most connections that one source address may open, to all shards; 0 is unlimited.
    pub source_connections_max: usize,
    /// Kernel receive buffer of UDP sockets, bytes.
    pub udp_receive_buffer_bytes: usize,
    /// Kernel send buffer of UDP sockets, bytes.
    pub udp_send_buffer_bytes: usize,
    /// Least severe log lines that are written.
    pub log_level: log::LevelFilter,
    /// Ports that are open by default and that nobody wrote: where another process has one, the start
    /// goes on without it, as the original's did.
    pub unwritten_ports: Vec<u16>,
}

impl Default for Config {
    /// Every key at its default: no listener of SIP is open.
    fn default() -> Self {
        draft::Draft::defaults(Generation::Properties).config
    }
}

/// One leg: where it listens and how the world reaches it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LegConfig {
    /// Bind address; the common one if absent.
    pub host: Option<String>,
    /// IPv6 bind address; the common one if absent.
    pub ipv6_host: Option<String>,
    /// IPv4 listening ports.
    pub ports: Ports,
    /// IPv6 listening ports.
    pub ipv6_ports: Ports,
    /// Addresses of the IP load balancer in front; the first is written, all are recognised.
    pub balancer: Vec<String>,
    /// Its ports.
    pub balancer_ports: Ports,
    /// The same for IPv6.
    pub ipv6_balancer: Vec<String>,
    /// The same for IPv6.
    pub ipv6_balancer_ports: Ports,
}

/// TLS as the configuration asks for it. What of it can be had, the layer that speaks TLS decides.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tls {
    /// File with our certificates and keys (JKS, PKCS12, PEM); PEM may be several, apart by commas.
    pub key_store: Option<String>,
    /// Its password.
    pub key_store_password: Option<String>,
    /// File with the certificates that we trust; the key store's own if there is none.
    pub trust_store: Option<String>,
    /// Its password.
    pub trust_store_password: Option<String>,
    /// Versions by their Java names; empty is every version there is.
    pub protocols: Vec<String>,
    /// Cipher suites by their Java names; empty is every suite there is.
    pub cipher_suites: Vec<String>,
    /// What is asked of peers.
    pub peers: PeerCertificates,
    /// What is asked of clients on HTTPS; what nodes are asked is [`Tls::peers`]' matter.
    pub http_clients: PeerCertificates,
    /// What is asked of clients on SMPP over TLS.
    pub smpp_clients: PeerCertificates,
    /// Nodes that HTTP reaches by TLS are checked as those of SIP are.
    pub checks_web_nodes: bool,
}

/// `TLS_CLIENT_AUTH_TYPE`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum PeerCertificates {
    /// Clients must have a certificate that we trust.
    Required,
    /// Clients are asked for one; what they show must be trusted.
    Wanted,
    /// Clients are not asked; servers that we connect to must have one.
    #[default]
    ServersOnly,
    /// Nobody is checked.
    Unchecked,
}

impl PeerCertificates {
    /// What it means for clients alone.
    pub const fn of_clients(self) -> PeerCertificates {
        match self {
            PeerCertificates::Unchecked => PeerCertificates::ServersOnly,
            it => it,
        }
    }
}

/// Which text of a message affinity follows (`sip.md` 3).
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum AffinityKey {
    /// Call-ID.
    CallId,
    /// User part of To (`To`, `to.user`).
    ToUser,
    /// The whole From URI (`From` with UserBased) or its user part (hash algorithms, `from.user`).
    From {
        /// Only the user part.
        user: bool,
    },
    /// The raw value of this header.
    Header(String),
}

/// A regular expression that must match the whole text (Java's `matches`): it is compiled between `\A`
/// and `\z`, so `is_match` is enough. Compared by its text.
#[derive(Clone, Debug)]
pub struct Pattern(pub regex::bytes::Regex);

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

/// Ramp-up of new nodes (`sip.md` 3.9).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RampUp {
    /// A node gains one weight per period.
    pub period: Duration,
    /// Weight of a warm node: 100 / percent.
    pub weight_max: u32,
}

/// Silence detection (`sip.md` 5.7).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Silence {
    /// Unanswered requests that a node may have.
    pub requests_max: u32,
    /// And no response for longer than this.
    pub time: Duration,
}

/// How static nodes are probed with OPTIONS.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Probe {
    /// From one probe to the next.
    pub interval: Duration,
    /// Wait for an answer.
    pub timeout: Duration,
    /// Answers in a row that make a node live.
    pub rise: u32,
    /// Failures in a row that make it dead.
    pub fall: u32,
}

/// A host with a port, as written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HostPort {
    /// Literal or name, without brackets.
    pub host: String,
    /// The port written or the default.
    pub port: u16,
}

/// A node that does not announce itself: `host[:port][/transport[+transport]]`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StaticNode {
    /// Literal or name, without brackets.
    pub host: String,
    /// Its open transports, `udp` alone if none is written.
    pub ports: Ports,
}

/// `routingRulesIpv4` and `routingRulesIpv6` (`sip.md` 2.6).
#[derive(Clone, Debug, PartialEq)]
pub struct RoutingRule {
    /// Full match against the peer address.
    pub ip: Pattern,
    /// `false`: such peers see our own address.
    pub patch: bool,
}

/// An address range.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Network {
    /// Any address of it.
    pub ip: IpAddr,
    /// Leading bits that count.
    pub prefix: u8,
}

impl Network {
    /// Whether an address is in it.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let bits = |ip: IpAddr| match ip {
            IpAddr::V4(it) => u128::from(it.to_bits()) << 96,
            IpAddr::V6(it) => it.to_bits(),
        };
        let differing = bits(self.ip) ^ bits(ip);
        self.ip.is_ipv4() == ip.is_ipv4() && differing.leading_zeros() >= u32::from(self.prefix)
    }
}

/// `reuseportSteering`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Steering {
    /// The kernel's hash of addresses and ports.
    Hash,
    /// The CPU that took the packet in.
    Cpu,
    /// At random: one source spreads over all shards.
    Random,
}

/// Class names of `algorithmClass`, by their last segment.
pub const ALGORITHM_NAMES: [&str; 8] = [
    "CallIDAffinityBalancerAlgorithm",
    "HeaderConsistentHashBalancerAlgorithm",
    "PersistentConsistentHashBalancerAlgorithm",
    "PureConsistentHashBalancerAlgorithm",
    "ClusterSubdomainAffinityAlgorithm",
    "UserBasedAlgorithm",
    "ActiveStandbyAlgorithm",
    "WorstCaseUdpTestAffinityAlgorithm",
];
