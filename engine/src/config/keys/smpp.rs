//! SMPP (`http-smpp-registry.md` 2, 9.3).

use super::{Key, Kind, Unit};
use crate::config::draft::Draft;
use crate::config::{HostPort, SmppFull, SmppToNode, SmppToProvider, value};

pub(super) const SMPP: &[Key] = &[
    Key::new(
        &["smppName"],
        &["smpp/smppName"],
        "SMPP Load Balancer",
        "Name in log lines.",
        "SMPP",
        Kind::Text(|it| &mut it.config.smpp.name),
    ),
    Key::new(
        &["smppHost"],
        &["smpp/smppHost"],
        "",
        "Listening address, and source address towards servers. Unset: any.",
        "192.0.2.1",
        Kind::Host(|it| &mut it.config.smpp.host),
    )
    .restart(),
    Key::new(
        &["smppExternalHost"],
        &["smpp/smppExternalHost"],
        "",
        "Listening address, if it is not smppHost.",
        "192.0.2.1",
        Kind::Host(|it| &mut it.config.smpp.external_host),
    )
    .restart(),
    Key::new(
        &["smppInternalHost"],
        &["smpp/smppInternalHost"],
        "",
        "Source address towards servers, if it is not smppHost.",
        "192.0.2.1",
        Kind::Host(|it| &mut it.config.smpp.internal_host),
    )
    .restart(),
    Key::new(
        &["smppPort"],
        &["smpp/smppPort"],
        "",
        "Port of SMPP. Without it there is no SMPP at all.",
        "2776",
        Kind::Port(|it| &mut it.config.smpp.port),
    )
    .restart(),
    Key::new(
        &["smppSslPort"],
        &["smpp/smppSslPort"],
        "",
        "Port of SMPP over TLS.",
        "2876",
        Kind::Port(|it| &mut it.config.smpp.tls_port),
    )
    .restart(),
    Key::new(
        &["smppReencrypt"],
        &["smpp/smppReencrypt"],
        "false",
        "Clients that came by TLS reach servers by TLS, unless terminateTLSTraffic is true.",
        "true",
        Kind::Flag(|it| &mut it.config.smpp.reencrypts),
    )
    .xml_default("true"),
    Key::new(
        &["remoteServers"],
        &["smpp/remoteServers"],
        "",
        "SMPP servers, host:port, port 2775 if none is said. Nodes that announce smppPort come behind them.",
        "192.0.2.30:2775,192.0.2.31:2775",
        Kind::Other {
            allowed: "a comma list of host:port",
            set: |draft, text| {
                let server = |text: &str| {
                    let (host, port) = value::host_and_port(text)?;
                    Ok(HostPort { host, port: port.unwrap_or(2775) })
                };
                value::list(text, server).map(|it| draft.config.smpp.servers = it)
            },
            differs: |a, b| a.smpp.servers != b.smpp.servers,
        },
    ),
    Key::new(
        &["muxMode"],
        &["smpp/muxMode"],
        "false",
        "Sessions with one system_id share connections to servers, one to each. Else every session has one of \
         its own.",
        "true",
        Kind::Flag(|it| &mut it.config.smpp.mux),
    )
    .xml_default("true")
    .restart(),
    Key::new(
        &["toProviderAlgorithmClass"],
        &["smpp/toProviderAlgorithmClass"],
        "SmppToProviderRoundRobinAlgorithm",
        "How the server of a session, in mux mode of a request, is chosen. Only the last segment of the class \
         name counts.",
        "SmppToProviderActiveStandbyAlgorithm",
        Kind::Other {
            allowed: "SmppToProviderRoundRobinAlgorithm or SmppToProviderActiveStandbyAlgorithm",
            set: |draft, text| {
                let classes = [
                    ("SmppToProviderRoundRobinAlgorithm", SmppToProvider::RoundRobin),
                    ("SmppToProviderActiveStandbyAlgorithm", SmppToProvider::ActiveStandby),
                ];
                value::class(text, &classes).map(|it| draft.config.smpp.to_provider = it)
            },
            differs: |a, b| a.smpp.to_provider != b.smpp.to_provider,
        },
    ),
    Key::new(
        &["isUseRrSendSmppRequestToClient"],
        &["smpp/isUseRrSendSmppRequestToClient"],
        "",
        "true is SmppToNodeRoundRobinAlgorithm, false SmppToNodeSubmitToAllAlgorithm.",
        "false",
        Kind::Other {
            allowed: "true or false",
            set: |draft, text| {
                if !text.is_empty() {
                    draft.config.smpp.to_node = match value::flag(text)? {
                        true => SmppToNode::RoundRobin,
                        false => SmppToNode::SubmitToAll,
                    };
                }
                Ok(())
            },
            differs: |a, b| a.smpp.to_node != b.smpp.to_node,
        },
    )
    .deprecated("toNodeAlgorithmClass"),
    Key::new(
        &["toNodeAlgorithmClass"],
        &["smpp/toNodeAlgorithmClass"],
        "SmppToNodeRoundRobinAlgorithm",
        "How the client that gets a server's request is chosen, in mux mode. Only the last segment of the class \
         name counts.",
        "SmppToNodeSubmitToAllAlgorithm",
        Kind::Other {
            allowed: "SmppToNodeRoundRobinAlgorithm or SmppToNodeSubmitToAllAlgorithm",
            set: |draft, text| {
                let classes = [
                    ("SmppToNodeRoundRobinAlgorithm", SmppToNode::RoundRobin),
                    ("SmppToNodeSubmitToAllAlgorithm", SmppToNode::SubmitToAll),
                ];
                value::class(text, &classes).map(|it| draft.config.smpp.to_node = it)
            },
            differs: |a, b| a.smpp.to_node != b.smpp.to_node,
        },
    ),
    millis(
        &["timeoutResponse"],
        &["smpp/timeoutResponse"],
        "3000",
        "Longest wait for a response; then the asker gets ESME_RSYSERR. One-to-one, a bind is offered to the next \
         server first, until all have had that time.",
        |it| &mut it.config.smpp.response,
    ),
    millis(
        &["timeoutConnection"],
        &["smpp/timeoutConnection"],
        "1000",
        "Longest wait for a bind; then the client is disconnected.",
        |it| &mut it.config.smpp.connection,
    ),
    millis(
        &["timeoutEnquire"],
        &["smpp/timeoutEnquire"],
        "10000",
        "From one enquire_link to the next, at a fixed rate. In mux mode only silence is asked about, as the next \
         two keys say; then again every timeoutEnquire or timeoutConnection, whichever is shorter.",
        |it| &mut it.config.smpp.enquire,
    ),
    millis(
        &["timeoutConnectionCheckClientSide"],
        &["smpp/timeoutConnectionCheckClientSide"],
        "3000",
        "Longest silence of a client after an enquire_link; then it is disconnected. In mux mode: silence of a \
         server after which it is asked; it is lost after three times as long.",
        |it| &mut it.config.smpp.check_client_side,
    ),
    millis(
        &["timeoutConnectionCheckServerSide"],
        &["smpp/timeoutConnectionCheckServerSide"],
        "3000",
        "Longest silence of a server after an enquire_link; then the session is bound elsewhere. In mux mode: \
         silence of a client after which it is asked; it is disconnected after three times as long.",
        |it| &mut it.config.smpp.check_server_side,
    ),
    millis(
        &["reconnectPeriod"],
        &["smpp/reconnectPeriod"],
        "500",
        "Wait before a lost server is replaced or tried again.",
        |it| &mut it.config.smpp.reconnect,
    ),
    millis(
        &["smppConnectTime"],
        &["smpp/smppConnectTime"],
        "3000",
        "Longest wait for a connection to a server.",
        |it| &mut it.config.smpp.connect,
    ),
    Key::new(
        &["smppSessionWindow"],
        &["smpp/smppSessionWindow"],
        "1000",
        "Unanswered requests that one session may have, and that may be under way to it.",
        "10",
        Kind::Count { min: 1, max: WINDOW_MAX, at: |it| &mut it.config.smpp.session_window },
    ),
    Key::new(
        &["smppProviderWindow"],
        &["smpp/smppProviderWindow"],
        "10000",
        "Unanswered requests that one server connection may have.",
        "100",
        Kind::Count { min: 1, max: WINDOW_MAX, at: |it| &mut it.config.smpp.provider_window },
    ),
    Key::new(
        &["smppWindowFull"],
        &["smpp/smppWindowFull"],
        "stop",
        "What a full window does: read no further until there is room, or answer ESME_RTHROTTLED.",
        "throttle",
        Kind::Other {
            allowed: "stop or throttle",
            set: |draft, text| {
                let words = [("stop", SmppFull::Stop), ("throttle", SmppFull::Throttle)];
                value::class(text, &words).map(|it| draft.config.smpp.full = it)
            },
            differs: |a, b| a.smpp.full != b.smpp.full,
        },
    ),
    Key::new(
        &["smppReceiptRouting"],
        &["smpp/smppReceiptRouting"],
        "true",
        "In mux mode delivery receipts go to the session that submitted the message, as long as it is there; and \
         query_sm, cancel_sm and replace_sm to the server that took it.",
        "false",
        Kind::Flag(|it| &mut it.config.smpp.receipt_routing),
    ),
    Key::new(
        &["smppReceiptsMax"],
        &["smpp/smppReceiptsMax"],
        "100000",
        "Messages whose submitter is remembered, per shard.",
        "1000000",
        Kind::Size { min: 1, max: 100_000_000, at: |it| &mut it.config.smpp.receipts_max },
    ),
    Key::new(
        &["smppReceiptTime"],
        &["smpp/smppReceiptTime"],
        "86400",
        "How long a message's submitter is remembered.",
        "3600",
        Kind::Time { unit: Unit::Seconds, min: 1, at: |it| &mut it.config.smpp.receipt_age },
    ),
    Key::new(
        &["smppVendorCommands"],
        &["smpp/smppVendorCommands"],
        "false",
        "Commands that SMPP sets aside for vendors (0x00010200 to 0x000102FF) pass. Else they are answered \
         generic_nack, like every unknown one.",
        "true",
        Kind::Flag(|it| &mut it.config.smpp.vendor_commands),
    ),
    Key::new(
        &["smppSourceConnectionsMax"],
        &["smpp/smppSourceConnectionsMax"],
        "0",
        "Most SMPP connections of one source address, or of one /64 of IPv6, on all shards together; 0 is any \
         number.",
        "20",
        Kind::Size { min: 0, max: 10_000_000, at: |it| &mut it.config.smpp.source_connections_max },
    ),
    Key::ignored(
        &["maxConnectionSize"],
        &["smpp/maxConnectionSize"],
        "it was a number of threads; smppSessionWindow and connectionsMax are limits",
    ),
    Key::ignored(
        &["nonBlockingSocketsEnabled"],
        &["smpp/nonBlockingSocketsEnabled"],
        "nothing here blocks",
    ),
    Key::ignored(
        &["defaultSessionCountersEnabled"],
        &["smpp/defaultSessionCountersEnabled"],
        "everything is counted",
    ),
];

const fn millis(
    names: &'static [&'static str],
    xml: &'static [&'static str],
    default: &'static str,
    help: &'static str,
    at: fn(&mut Draft) -> &mut std::time::Duration,
) -> Key {
    Key::new(names, xml, default, help, "2000", Kind::Time { unit: Unit::Millis, min: 1, at })
}

/// Numbers that a leg keeps track of.
const WINDOW_MAX: u32 = 65_535;
