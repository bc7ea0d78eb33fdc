//! How SIP messages are treated, and what is left of the Java stack's own properties.

use std::time::Duration;

use super::{Key, Kind, Unit};
use crate::config::value;

pub(super) const BEHAVIOUR: &[Key] = &[
    Key::new(
        &["public-ip"],
        &["sip/publicIp"],
        "",
        "Address that the world sees us under; written into our own headers on the client side.",
        "198.51.100.1",
        Kind::Host(|it| &mut it.config.public_ip),
    )
    .restart(), // calls that are up know us by the old one
    Key::new(
        &["public-ipv6", "publicIpv6"],
        &["sip/publicIpv6"],
        "",
        "The same for IPv6.",
        "2001:db8::1",
        Kind::Host(|it| &mut it.config.public_ipv6),
    )
    .restart(),
    Key::new(
        &["legacyContactPatching"],
        &["sip/legacyContactPatching"],
        "false",
        "Put the public address into the Contact of nodes as well. Only with public-ip.",
        "true",
        Kind::Flag(|it| &mut it.config.legacy_contact_patching),
    ),
    Key::new(
        &["isSendTrying"],
        &["sip/isSendTrying"],
        "true",
        "Answer INVITE with 100 where nothing can be lost after it.",
        "false",
        Kind::Flag(|it| &mut it.config.send_trying),
    ),
    Key::new(
        &["blocked-values"],
        &["sip/blockedValues"],
        "sipvicious,sipcli,friendly-scanner",
        "Requests from outside with one of these texts in User-Agent, From or To are refused; case does not \
         matter. Empty: none.",
        "badphone",
        Kind::Other {
            allowed: "a comma list of texts",
            set: |draft, text| {
                value::list(text, value::text).map(|it| {
                    draft.config.blocked_values =
                        it.into_iter().map(|it| it.to_lowercase()).collect();
                })
            },
            differs: |a, b| a.blocked_values != b.blocked_values,
        },
    )
    .empty_is_value(),
    Key::new(
        &["gov.nist.javax.sip.SIP_MESSAGE_VALVE"],
        &[],
        "",
        "Java classes that saw each message first. CongestionControlMessageValve among them switches \
         SIP_SCANNERS on; no other counts.",
        "gov.nist.javax.sip.stack.CongestionControlMessageValve",
        Kind::Other {
            allowed: "a comma list of class names",
            set: |draft, text| {
                value::list(text, value::text).map(|it| {
                    draft.config.congestion_valve =
                        it.iter().any(|it| it.ends_with("CongestionControlMessageValve"));
                })
            },
            differs: |a, b| a.congestion_valve != b.congestion_valve,
        },
    ),
    Key::new(
        &["org.mobicents.ext.javax.sip.congestion.SIP_SCANNERS"],
        &[],
        "sipvicious,sipcli,friendly-scanner",
        "Texts like those of blocked-values that are never answered; BYE, ACK, PRACK and CANCEL pass. Only \
         with the congestion valve in SIP_MESSAGE_VALVE.",
        "sipx",
        Kind::Other {
            allowed: "a comma list of texts",
            set: |draft, text| {
                value::list(text, value::text).map(|it| {
                    draft.config.scanners = it.into_iter().map(|it| it.to_lowercase()).collect();
                })
            },
            differs: |a, b| a.scanners != b.scanners,
        },
    ),
    Key::new(
        &["blockedResponse"],
        &["sip/blockedResponse"],
        "",
        "Status that such requests are answered with. Unset: no answer.",
        "403",
        Kind::Other {
            allowed: "a status code from 400 to 699",
            set: |draft, text| {
                let is_set = !text.is_empty();
                draft.config.blocked_response =
                    if is_set { Some(value::status(text, 400)?) } else { None };
                Ok(())
            },
            differs: |a, b| a.blocked_response != b.blocked_response,
        },
    ),
    Key::new(
        &["noNodeStatusCode"],
        &["sip/noNodeStatusCode"],
        "500",
        "Answer when no node is available: 500, or 503 with Retry-After.",
        "503",
        Kind::Other {
            allowed: "500 or 503",
            set: |draft, text| {
                let status = value::status(text, 500)?;
                if status != 500 && status != 503 {
                    return Err(format!("{status} is not allowed here; allowed is 500 or 503"));
                }
                draft.config.no_node_status = status;
                Ok(())
            },
            differs: |a, b| a.no_node_status != b.no_node_status,
        },
    ),
    Key::new(
        &["isSend5xxResponse"],
        &["sip/isSend5xxResponse"],
        "true",
        "Answer 503 when a request cannot be sent on; false drops it silently.",
        "false",
        Kind::Flag(|it| &mut it.config.send_5xx),
    ),
    Key::new(
        &["isSend5xxResponseStatusCode", "isSend5xxResponseSatusCode"],
        &["sip/isSend5xxResponseSatusCode", "sip/isSend5xxResponseStatusCode"],
        "503",
        "The cause in the Reason header of that answer.",
        "500",
        Kind::Other {
            allowed: "a status code from 100 to 699",
            set: |draft, text| {
                value::status(text, 100).map(|it| draft.config.send_5xx_cause = it)
            },
            differs: |a, b| a.send_5xx_cause != b.send_5xx_cause,
        },
    ),
    Key::new(
        &["isSend5xxResponseReasonHeader"],
        &["sip/isSend5xxResponseReasonHeader"],
        "",
        "The text in the Reason header of that answer. Unset: no Reason header.",
        "Destination not available",
        Kind::Text(|it| &mut it.config.send_5xx_reason),
    ),
    Key::new(
        &["sip.internalTransport"],
        &["sip/internalTransport"],
        "",
        "Every message goes to nodes by this transport, whatever it came by. (internalTransport without sip. \
         is an old key without effect.)",
        "TCP",
        Kind::Other {
            allowed: "UDP, TCP, TLS, WS or WSS",
            set: |draft, text| {
                let is_set = !text.is_empty();
                let transport = if is_set { Some(value::transport(text)?) } else { None };
                draft.config.internal_transport = transport;
                Ok(())
            },
            differs: |a, b| a.internal_transport != b.internal_transport,
        },
    ),
    Key::new(
        &["isUseWithNexmo"],
        &["sip/isUseWithNexmo"],
        "false",
        "Take rport and received out of the node's Via in responses from outside.",
        "true",
        Kind::Flag(|it| &mut it.config.use_with_nexmo),
    ),
    Key::new(
        &["matchingHostnameForRoute"],
        &["sip/matchingHostnameForRoute"],
        "",
        "A host name in Route that means us.",
        "lb.example.com",
        Kind::Host(|it| &mut it.config.route_hostname),
    ),
    Key::new(
        &["isFilterSubdomain"],
        &["sip/isFilterSubdomain"],
        "false",
        "Names below matchingHostnameForRoute mean us, too.",
        "true",
        Kind::Flag(|it| &mut it.config.route_subdomains),
    ),
    Key::new(
        &["routingRulesIpv4"],
        &["sip/routingRulesIpv4"],
        "",
        "Peers whose address matches a pattern=false see our own address instead of the IP load \
         balancer's. In XML one <rule> with <ipPattern> and <patch> each.",
        "10\\.0\\.0\\..*=false",
        Kind::Other {
            allowed: "pattern=false, rules apart by blanks",
            set: |draft, text| {
                value::routing_rules(text).map(|it| {
                    let [v4, _] = &mut draft.routing_rules;
                    *v4 = it;
                })
            },
            differs: |a, b| a.routing_rules != b.routing_rules,
        },
    ),
    Key::new(
        &["routingRulesIpv6"],
        &["sip/routingRulesIpv6"],
        "",
        "The same for IPv6 peers.",
        "fd00:.*=false",
        Kind::Other {
            allowed: "pattern=false, rules apart by blanks",
            set: |draft, text| {
                value::routing_rules(text).map(|it| {
                    let [_, v6] = &mut draft.routing_rules;
                    *v6 = it;
                })
            },
            differs: |a, b| a.routing_rules != b.routing_rules,
        },
    ),
    Key::new(
        &["sourceRateMax"],
        &["sip/sourceRateMax"],
        "0",
        "Requests a second that one source address may send to one shard. 0: any number.",
        "1000",
        Kind::Count { min: 0, max: 100_000_000, at: |it| &mut it.config.source_rate_max },
    ),
    Key::new(
        &["totalRateMax"],
        &["sip/totalRateMax"],
        "0",
        "Requests a second from outside that one shard takes in all. 0: any number.",
        "100000",
        Kind::Count { min: 0, max: 100_000_000, at: |it| &mut it.config.total_rate_max },
    ),
];

pub(super) const STACK: &[Key] = &[
    Key::new(
        &["gov.nist.javax.sip.MAX_MESSAGE_SIZE"],
        &[],
        "65536",
        "Largest message, bytes. 0 and below: our own limit of 65536.",
        "10000",
        Kind::Other {
            allowed: "a whole number of bytes from 1500, or 0 or -1",
            set: |draft, text| {
                let bytes = value::number::<i64>(text, -1, i64::from(i32::MAX))?;
                if (1..1500).contains(&bytes) {
                    return Err(format!("{bytes} is less than one packet; allowed is 1500 or more"));
                }
                if bytes > MESSAGE_BYTES_MAX {
                    let text = format!("{bytes} is above our own limit; {MESSAGE_BYTES_MAX} is used");
                    draft.warnings.push(text);
                }
                let bytes = if bytes <= 0 { MESSAGE_BYTES_MAX } else { bytes.min(MESSAGE_BYTES_MAX) };
                draft.config.message_bytes_max = usize::try_from(bytes).unwrap_or(0);
                Ok(())
            },
            differs: |a, b| a.message_bytes_max != b.message_bytes_max,
        },
    ),
    Key::new(
        &["gov.nist.javax.sip.RECEIVE_UDP_BUFFER_SIZE"],
        &[],
        "4194304",
        "Kernel receive buffer of a UDP socket, bytes. The kernel may grant less (net.core.rmem_max).",
        "8388608",
        Kind::Size {
            min: 4096,
            max: 0x7fff_ffff,
            at: |it| &mut it.config.udp_receive_buffer_bytes,
        },
    )
    .restart(),
    Key::new(
        &["gov.nist.javax.sip.SEND_UDP_BUFFER_SIZE"],
        &[],
        "4194304",
        "Kernel send buffer of a UDP socket, bytes. The kernel may grant less (net.core.wmem_max).",
        "8388608",
        Kind::Size { min: 4096, max: 0x7fff_ffff, at: |it| &mut it.config.udp_send_buffer_bytes },
    )
    .restart(),
    Key::new(
        &["gov.nist.javax.sip.MIN_KEEPALIVE_TIME_SECONDS"],
        &[],
        "-1",
        "Answer CRLF keep-alives over UDP at most once in so many seconds per source. 0 and below: never.",
        "20",
        Kind::Other {
            allowed: "a whole number of seconds, or -1",
            set: |draft, text| seconds(text).map(|it| draft.config.udp_keepalive = it),
            differs: |a, b| a.udp_keepalive != b.udp_keepalive,
        },
    ),
    Key::new(
        &["gov.nist.javax.sip.NIO_MAX_SOCKET_IDLE_TIME"],
        &[],
        "7200000",
        "A connection that stays silent for so long is closed.",
        "600000",
        Kind::Time { unit: Unit::Millis, min: 1000, at: |it| &mut it.config.stream_idle },
    ),
    Key::new(
        &["gov.nist.javax.sip.RELIABLE_CONNECTION_KEEP_ALIVE_TIMEOUT"],
        &[],
        "-1",
        "The same in seconds; the shorter of the two counts. 0 and below: no limit of its own.",
        "120",
        Kind::Other {
            allowed: "a whole number of seconds, or -1",
            set: |draft, text| seconds(text).map(|it| draft.stream_keepalive = it),
            differs: |_, _| false, // seen as a change of the idle time
        },
    ),
    Key::new(
        &["gov.nist.javax.sip.ALWAYS_ADD_RPORT"],
        &[],
        "false",
        "Write received and rport whenever the source differs from the Via, asked or not.",
        "true",
        Kind::Flag(|it| &mut it.config.always_add_rport),
    ),
    Key::new(
        &["gov.nist.javax.sip.NEVER_ADD_RECEIVED_RPORT"],
        &[],
        "false",
        "Never write received and rport on connections; for two active balancers behind virtual addresses.",
        "true",
        Kind::Flag(|it| &mut it.config.never_add_received_rport),
    ),
];

/// Seconds; 0 and below is off.
fn seconds(text: &str) -> Result<Option<Duration>, String> {
    let seconds = value::number::<i64>(text, -1, i64::from(i32::MAX))?;
    Ok(u64::try_from(seconds).ok().filter(|it| *it > 0).map(Duration::from_secs))
}

/// The receive buffers of the shards have this size.
const MESSAGE_BYTES_MAX: i64 = 65_536;
