//! What the SMPP relay needs of the configuration (`http-smpp-registry.md` 9.3).

use std::net::SocketAddr;
use std::time::Duration;

use crate::config::{Config, SmppFull, SmppToNode, SmppToProvider};

/// The configuration as the relay uses it. A reload makes the next one: [`super::Smpp::reload`].
#[derive(Clone, Debug, PartialEq)]
pub struct SmppSettings {
    /// `remoteServers`, resolved, in order.
    pub servers: Vec<SocketAddr>,
    /// All sessions of a system_id share connections to servers.
    pub mux: bool,
    /// How the server of a session or of a request is chosen.
    pub to_provider: SmppToProvider,
    /// How the session that gets a server's request is chosen, in mux mode.
    pub to_node: SmppToNode,
    /// Longest wait for a response.
    pub response: Duration,
    /// Longest wait for a bind; in mux mode also the period of checks while a peer is silent.
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
    /// Unanswered requests of one session, and unanswered requests towards it.
    pub session_window: u32,
    /// Unanswered requests at one server connection.
    pub provider_window: u32,
    /// What a full window does.
    pub full: SmppFull,
    /// Delivery receipts go to the session that submitted, in mux mode; `None`: like any other message.
    pub receipts: Option<SmppReceipts>,
    /// Vendors' commands pass.
    pub vendor_commands: bool,
    /// Which connections towards servers are inside TLS.
    pub secure: SecureServers,
    /// Most sessions.
    pub sessions_max: usize,
    /// Most connections that one source may open, of all shards; 0 is any number.
    pub source_connections_max: usize,
    /// This shard, from 0.
    pub shard: usize,
    /// How many there are.
    pub shards: usize,
}

/// How submitters are remembered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SmppReceipts {
    /// Messages at most.
    pub count_max: usize,
    /// For how long.
    pub age_max: Duration,
}

/// Which connections towards servers are inside TLS (`http-smpp-registry.md` 2.5, "TLS legs").
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SecureServers {
    /// None.
    Never,
    /// Those of sessions that came by TLS.
    LikeClient,
    /// All.
    Always,
}

impl SmppSettings {
    /// Reads a configuration. `servers` are its `remoteServers` with names resolved; `shard` of `shards`.
    pub fn new(
        config: &Config,
        servers: Vec<SocketAddr>,
        shard: usize,
        shards: usize,
    ) -> SmppSettings {
        let it = &config.smpp;
        let secure = match (config.remote_server_ssl, it.reencrypts && !config.terminate_tls) {
            (true, _) => SecureServers::Always,
            (false, true) => SecureServers::LikeClient,
            (false, false) => SecureServers::Never,
        };
        SmppSettings {
            servers,
            mux: it.mux,
            to_provider: it.to_provider,
            to_node: it.to_node,
            response: it.response,
            connection: it.connection,
            enquire: it.enquire,
            reconnect: it.reconnect,
            connect: it.connect,
            check_client_side: it.check_client_side,
            check_server_side: it.check_server_side,
            session_window: it.session_window,
            provider_window: it.provider_window,
            full: it.full,
            receipts: (it.mux && it.receipt_routing)
                .then_some(SmppReceipts { count_max: it.receipts_max, age_max: it.receipt_age }),
            vendor_commands: it.vendor_commands,
            secure,
            sessions_max: config.connections_max,
            source_connections_max: it.source_connections_max,
            shard,
            shards,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_means_what_it_says() {
        let mut config = Config::default();
        let it = &mut config.smpp;
        it.mux = true;
        (it.session_window, it.provider_window) = (11, 12);
        it.source_connections_max = 15;
        (it.receipts_max, it.receipt_age) = (13, Duration::from_secs(14));
        let durations = [
            &mut it.response,
            &mut it.connection,
            &mut it.enquire,
            &mut it.reconnect,
            &mut it.connect,
            &mut it.check_client_side,
            &mut it.check_server_side,
        ];
        (1..).zip(durations).for_each(|(seconds, it)| *it = Duration::from_secs(seconds));
        let it = SmppSettings::new(&config, Vec::new(), 2, 3);
        assert_eq!((it.session_window, it.provider_window), (11, 12));
        assert_eq!(it.source_connections_max, 15);
        let receipts = SmppReceipts { count_max: 13, age_max: Duration::from_secs(14) };
        assert_eq!(it.receipts, Some(receipts));
        let durations = [
            it.response,
            it.connection,
            it.enquire,
            it.reconnect,
            it.connect,
            it.check_client_side,
            it.check_server_side,
        ];
        assert_eq!(durations.map(|it| it.as_secs()), [1, 2, 3, 4, 5, 6, 7]);
        config.smpp.receipt_routing = false;
        assert_eq!(SmppSettings::new(&config, Vec::new(), 0, 1).receipts, None);
    }
}
