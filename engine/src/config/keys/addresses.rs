//! Where we listen: hosts and ports.

use super::{Key, Kind};
use crate::config::draft::Draft;
use crate::config::value;

pub(super) const HOSTS: &[Key] = &[
    host(
        &["host"],
        &["common/host"],
        "Address that both legs listen on unless they have their own. Without any host the file is refused.",
        "192.0.2.1",
        |it| &mut it.config.host,
    )
    .xml_default("127.0.0.1"),
    host(
        &["ipv6Host"],
        &["common/ipv6Host"],
        "IPv6 address that both legs listen on unless they have their own; only used where an IPv6 port is open.",
        "2001:db8::1",
        |it| &mut it.config.ipv6_host,
    )
    .defaulting("::1"),
    host(
        &["externalHost"],
        &["sip/external/host"],
        "Address of the client side.",
        "192.0.2.1",
        |it| &mut it.config.external.host,
    ),
    host(
        &["internalHost"],
        &["sip/internal/host"],
        "Address of the node side.",
        "192.0.2.1",
        |it| &mut it.config.internal.host,
    ),
    host(
        &["externalIpv6Host"],
        &["sip/external/ipv6Host"],
        "IPv6 address of the client side.",
        "2001:db8::1",
        |it| &mut it.config.external.ipv6_host,
    ),
    host(
        &["internalIpv6Host"],
        &["sip/internal/ipv6Host"],
        "IPv6 address of the node side.",
        "2001:db8::1",
        |it| &mut it.config.internal.ipv6_host,
    ),
];

pub(super) const PORTS: &[Key] = &[
    Key::new(
        &["isTransportWs"],
        &[],
        "false",
        "externalPort and internalPort open WebSocket instead of TCP, the secure ports WebSocket over TLS.",
        "true",
        Kind::Flag(|it| &mut it.is_transport_ws),
    )
    .restart()
    .deprecated("externalWsPort, externalWssPort, internalWsPort, internalWssPort"),
    group(
        &["externalPort"],
        "Port of the client side for UDP and TCP alike. externalUdpPort and externalTcpPort say it apart and win over it.",
        "5060",
        |draft, text| draft.open_group(|it| &mut it.external.ports, false, text),
        &["externalUdpPort", "externalTcpPort", "externalWsPort"],
    )
    .restart(),
    group(
        &["externalSecurePort"],
        "Port of the client side for TLS.",
        "5061",
        |draft, text| draft.open_group(|it| &mut it.external.ports, true, text),
        &["externalTlsPort", "externalWssPort"],
    )
    .restart(),
    group(
        &["internalPort"],
        "Port of the node side for UDP and TCP alike. internalUdpPort and internalTcpPort say it apart and win over it. Without any internal port, one leg serves both sides.",
        "5065",
        |draft, text| draft.open_group(|it| &mut it.internal.ports, false, text),
        &["internalUdpPort", "internalTcpPort", "internalWsPort"],
    )
    .restart(),
    group(
        &["internalSecurePort"],
        "Port of the node side for TLS.",
        "5066",
        |draft, text| draft.open_group(|it| &mut it.internal.ports, true, text),
        &["internalTlsPort", "internalWssPort"],
    )
    .restart(),
    port(
        &["externalUdpPort"],
        &["sip/external/udpPort"],
        "Port of the client side for UDP.",
        "5070",
        |it| &mut it.config.external.ports.0[0],
    )
    .xml_default("5060"),
    port(
        &["externalTcpPort"],
        &["sip/external/tcpPort"],
        "Port of the client side for TCP.",
        "5070",
        |it| &mut it.config.external.ports.0[1],
    )
    .xml_default("5060"),
    port(
        &["externalTlsPort"],
        &["sip/external/tlsPort"],
        "Port of the client side for TLS.",
        "5070",
        |it| &mut it.config.external.ports.0[2],
    ),
    port(
        &["externalWsPort"],
        &["sip/external/wsPort"],
        "Port of the client side for WebSocket.",
        "5070",
        |it| &mut it.config.external.ports.0[3],
    ),
    port(
        &["externalWssPort"],
        &["sip/external/wssPort"],
        "Port of the client side for WebSocket over TLS.",
        "5070",
        |it| &mut it.config.external.ports.0[4],
    ),
    port(
        &["internalUdpPort"],
        &["sip/internal/udpPort"],
        "Port of the node side for UDP.",
        "5070",
        |it| &mut it.config.internal.ports.0[0],
    ),
    port(
        &["internalTcpPort"],
        &["sip/internal/tcpPort"],
        "Port of the node side for TCP.",
        "5070",
        |it| &mut it.config.internal.ports.0[1],
    ),
    port(
        &["internalTlsPort"],
        &["sip/internal/tlsPort"],
        "Port of the node side for TLS.",
        "5070",
        |it| &mut it.config.internal.ports.0[2],
    ),
    port(
        &["internalWsPort"],
        &["sip/internal/wsPort"],
        "Port of the node side for WebSocket.",
        "5070",
        |it| &mut it.config.internal.ports.0[3],
    ),
    port(
        &["internalWssPort"],
        &["sip/internal/wssPort"],
        "Port of the node side for WebSocket over TLS.",
        "5070",
        |it| &mut it.config.internal.ports.0[4],
    ),
    port(
        &["externalIpv6UdpPort"],
        &["sip/external/ipv6UdpPort"],
        "IPv6 port of the client side for UDP.",
        "5070",
        |it| &mut it.config.external.ipv6_ports.0[0],
    ),
    port(
        &["externalIpv6TcpPort"],
        &["sip/external/ipv6TcpPort"],
        "IPv6 port of the client side for TCP.",
        "5070",
        |it| &mut it.config.external.ipv6_ports.0[1],
    ),
    port(
        &["externalIpv6TlsPort"],
        &["sip/external/ipv6TlsPort"],
        "IPv6 port of the client side for TLS.",
        "5070",
        |it| &mut it.config.external.ipv6_ports.0[2],
    ),
    port(
        &["externalIpv6WsPort"],
        &["sip/external/ipv6WsPort"],
        "IPv6 port of the client side for WebSocket.",
        "5070",
        |it| &mut it.config.external.ipv6_ports.0[3],
    ),
    port(
        &["externalIpv6WssPort"],
        &["sip/external/ipv6WssPort"],
        "IPv6 port of the client side for WebSocket over TLS.",
        "5070",
        |it| &mut it.config.external.ipv6_ports.0[4],
    ),
    port(
        &["internalIpv6UdpPort"],
        &["sip/internal/ipv6UdpPort"],
        "IPv6 port of the node side for UDP.",
        "5070",
        |it| &mut it.config.internal.ipv6_ports.0[0],
    ),
    port(
        &["internalIpv6TcpPort"],
        &["sip/internal/ipv6TcpPort"],
        "IPv6 port of the node side for TCP.",
        "5070",
        |it| &mut it.config.internal.ipv6_ports.0[1],
    ),
    port(
        &["internalIpv6TlsPort"],
        &["sip/internal/ipv6TlsPort"],
        "IPv6 port of the node side for TLS.",
        "5070",
        |it| &mut it.config.internal.ipv6_ports.0[2],
    ),
    port(
        &["internalIpv6WsPort"],
        &["sip/internal/ipv6WsPort"],
        "IPv6 port of the node side for WebSocket.",
        "5070",
        |it| &mut it.config.internal.ipv6_ports.0[3],
    ),
    port(
        &["internalIpv6WssPort"],
        &["sip/internal/ipv6WssPort"],
        "IPv6 port of the node side for WebSocket over TLS.",
        "5070",
        |it| &mut it.config.internal.ipv6_ports.0[4],
    ),
];

const fn host(
    names: &'static [&'static str],
    xml: &'static [&'static str],
    help: &'static str,
    example: &'static str,
    at: fn(&mut Draft) -> &mut Option<String>,
) -> Key {
    Key::new(names, xml, "", help, example, Kind::Host(at)).restart()
}

pub(super) const fn port(
    names: &'static [&'static str],
    xml: &'static [&'static str],
    help: &'static str,
    example: &'static str,
    at: fn(&mut Draft) -> &mut Option<u16>,
) -> Key {
    Key::new(names, xml, "", help, example, Kind::Port(at)).restart()
}

pub(super) const fn group(
    names: &'static [&'static str],
    help: &'static str,
    example: &'static str,
    set: fn(&mut Draft, &str) -> Result<(), String>,
    covers: &'static [&'static str],
) -> Key {
    // What it opens is compared under the keys that it covers.
    let kind = Kind::Other { allowed: value::PORT, set, differs: |_, _| false };
    Key::new(names, &[], "", help, example, kind).covering(covers)
}
