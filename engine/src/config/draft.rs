//! A configuration while it is read: what the file says in pieces, before the pieces meet.

use std::time::Duration;

use protocols::sip::Transport;

use super::keys::{Generation, keys};
use super::{
    AffinityKey, Config, HeartbeatConfig, LegConfig, Probe, RampUp, RoutingRule, Silence, Steering,
    Tls, value,
};
use crate::node::Ports;

/// A [`Config`] with the pieces that only count together.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    pub(super) config: Config,
    /// `isTransportWs`: the group keys mean WS and WSS instead of TCP and TLS.
    pub(super) is_transport_ws: bool,
    /// `sipHeaderAffinityKey`; its meaning depends on the algorithm.
    pub(super) affinity_key: Option<String>,
    /// `sipHeaderAffinityFallbackKey`, likewise.
    pub(super) affinity_fallback: Option<String>,
    /// `userAffinityMaxTimeInCache`.
    pub(super) user_idle: Option<Duration>,
    /// `userAffinityGroupFailover`.
    pub(super) user_group_failover: Option<bool>,
    /// `trafficRampupCyclePeriod`.
    pub(super) ramp_up_period: Option<Duration>,
    /// `trafficPercentageIncrease`.
    pub(super) ramp_up_percent: Option<u32>,
    /// `maxRequestNumberWithoutResponse`.
    pub(super) silence_requests: Option<u32>,
    /// `maxResponseTime`.
    pub(super) silence_time: Option<Duration>,
    /// `RELIABLE_CONNECTION_KEEP_ALIVE_TIMEOUT`.
    pub(super) stream_keepalive: Option<Duration>,
    /// `routingRulesIpv4` and `routingRulesIpv6`.
    pub(super) routing_rules: [Vec<RoutingRule>; 2],
    /// Heartbeats by RMI and HTTP, as if each protocol were wanted.
    pub(super) heartbeats: HeartbeatConfig,
    /// `configclass` of heartbeats.
    pub(super) heartbeat_class: Option<String>,
    /// Format of the file, where a group of keys depends on it.
    pub(super) generation: Generation,
    /// What the operator must hear about the value that was just set.
    pub(super) warnings: Vec<String>,
}

impl Draft {
    /// Every key at its default, pieces put together.
    pub(super) fn defaults(generation: Generation) -> Draft {
        let mut draft = Draft { generation, ..Draft::of(blank()) };
        for key in keys() {
            let set = key.set(&mut draft, key.default_in(generation));
            debug_assert_eq!(set, Ok(()), "the default of {}", key.name());
        }
        draft.assemble();
        draft.warnings.clear();
        draft
    }

    /// A draft of a finished configuration, for comparing.
    pub(super) fn of(config: Config) -> Draft {
        Draft {
            is_transport_ws: false,
            affinity_key: None,
            affinity_fallback: None,
            user_idle: None,
            user_group_failover: None,
            ramp_up_period: config.ramp_up.map(|it| it.period),
            ramp_up_percent: config.ramp_up.map(|it| it.weight_max),
            silence_requests: config.silence.map(|it| it.requests_max),
            silence_time: config.silence.map(|it| it.time),
            stream_keepalive: None,
            routing_rules: [Vec::new(), Vec::new()],
            heartbeats: config.heartbeats.clone(),
            heartbeat_class: None,
            generation: Generation::Properties,
            warnings: Vec::new(),
            config,
        }
    }

    /// Puts the pieces together.
    pub(super) fn assemble(&mut self) {
        let config = &mut self.config;
        let is_user_based = config.algorithm == "UserBasedAlgorithm";
        let meaning = |text: &str| match text {
            it if is(it, &["call-id", "i"]) => AffinityKey::CallId,
            it if is(it, &["to", "t", "to.user"]) => AffinityKey::ToUser,
            it if is(it, &["from.user"]) => AffinityKey::From { user: true },
            it if is(it, &["from", "f"]) => AffinityKey::From { user: !is_user_based },
            it => AffinityKey::Header(it.to_owned()),
        };
        config.affinity_key = match &self.affinity_key {
            Some(it) => meaning(it),
            None if is_user_based => AffinityKey::ToUser,
            None => AffinityKey::CallId,
        };
        config.affinity_fallback =
            self.affinity_fallback.as_deref().map_or(AffinityKey::CallId, meaning);
        if is_user_based {
            config.call_idle = self.user_idle.unwrap_or(config.call_idle);
            config.group_failover = self.user_group_failover.unwrap_or(config.group_failover);
        }
        config.ramp_up = self.ramp_up_period.zip(self.ramp_up_percent).map(|(period, percent)| {
            RampUp { period, weight_max: 100_u32.checked_div(percent).unwrap_or(1).max(1) }
        });
        config.silence = self
            .silence_requests
            .zip(self.silence_time)
            .map(|(requests_max, time)| Silence { requests_max, time });
        if let Some(it) = self.stream_keepalive {
            config.stream_idle = config.stream_idle.min(it);
        }
        config.routing_rules = self.routing_rules.concat();
        let class = self.heartbeat_class.as_deref();
        config.kubernetes.choose(class);
        config.heartbeats = self.heartbeats.clone().chosen(class, self.generation);
        // The registry needs one address, whatever the legs have (`http-smpp-registry.md` 5.2).
        let fallback = || config.internal.host.clone().or_else(|| config.external.host.clone());
        config.host = config.host.clone().or_else(fallback);
    }

    /// Opens (or with 0 closes) a G1 port on `ports`: UDP and TCP, or UDP and WS; TLS, or WSS.
    pub(super) fn open_group(
        &mut self,
        at: fn(&mut Config) -> &mut Ports,
        is_secure: bool,
        text: &str,
    ) -> Result<(), String> {
        if text.is_empty() {
            return Ok(());
        }
        let port = value::port(text)?;
        let group: &[Transport] = match (is_secure, self.is_transport_ws) {
            (false, false) => &[Transport::Udp, Transport::Tcp],
            (false, true) => &[Transport::Udp, Transport::Ws],
            (true, false) => &[Transport::Tls],
            (true, true) => &[Transport::Wss],
        };
        for transport in group {
            if let Some(slot) = at(&mut self.config).0.get_mut(transport.index()) {
                *slot = port;
            }
        }
        Ok(())
    }
}

fn is(text: &str, words: &[&str]) -> bool {
    words.iter().any(|it| it.eq_ignore_ascii_case(text))
}

/// Before any default. Every value here that the table has a default for is overwritten by it.
fn blank() -> Config {
    Config {
        host: None,
        ipv6_host: None,
        external: LegConfig::default(),
        internal: LegConfig::default(),
        ip_load_balancer_in_via: false,
        node_timeout: Duration::ZERO,
        heartbeat_interval: Duration::ZERO,
        shutdown_timeout: Duration::ZERO,
        stop_keeps_statistics: false,
        statistic_port: None,
        security_required: false,
        login: None,
        password: None,
        algorithm: "CallIDAffinityBalancerAlgorithm",
        call_idle: Duration::ZERO,
        group_failover: false,
        affinity_key: AffinityKey::CallId,
        affinity_exclusion: None,
        affinity_fallback: AffinityKey::CallId,
        http_affinity_key: String::new(),
        http: super::HttpConfig::default(),
        remote_server_ssl: false,
        smpp: super::SmppConfig::default(),
        subclusters: Vec::new(),
        early_dialog_worst_case: false,
        ramp_up: None,
        public_ip: None,
        public_ipv6: None,
        legacy_contact_patching: false,
        send_trying: false,
        blocked_values: Vec::new(),
        scanners: Vec::new(),
        congestion_valve: false,
        blocked_response: None,
        extra_server_nodes: Vec::new(),
        performance_testing_mode: false,
        static_nodes: Vec::new(),
        probe: Probe { interval: Duration::ZERO, timeout: Duration::ZERO, rise: 0, fall: 0 },
        terminate_tls: false,
        tls: Tls::default(),
        handshake_time: Duration::ZERO,
        patch_websocket_headers: false,
        internal_transport: None,
        send_5xx: false,
        send_5xx_cause: 0,
        send_5xx_reason: None,
        no_node_status: 0,
        error_codes: Vec::new(),
        error_reason: None,
        errors_max: 0,
        error_time: Duration::ZERO,
        probation: None,
        silence: None,
        use_with_nexmo: false,
        route_hostname: None,
        route_subdomains: false,
        routing_rules: Vec::new(),
        always_add_rport: false,
        never_add_received_rport: false,
        message_bytes_max: 0,
        udp_keepalive: None,
        stream_idle: Duration::ZERO,
        kubernetes: super::KubernetesConfig::default(),
        heartbeats: HeartbeatConfig::default(),
        heartbeat_sources: Vec::new(),
        source_rate_max: 0,
        total_rate_max: 0,
        shards: 0,
        steering: Steering::Hash,
        coalesce: Duration::ZERO,
        couples_datagrams: false,
        calls_max: 0,
        suspect_time: Duration::ZERO,
        tls_gateway: false,
        connections_max: 0,
        source_connections_max: 0,
        udp_receive_buffer_bytes: 0,
        udp_send_buffer_bytes: 0,
        log_level: log::LevelFilter::Info,
        unwritten_ports: Vec::new(),
    }
}
