//! How the world reaches us where an IP load balancer or a virtual address stands in front.

use super::addresses::{group, port};
use super::{Key, Kind};
use crate::config::draft::Draft;

pub(super) const IP_LOAD_BALANCER: &[Key] = &[
    balancer(
        &["externalIpLoadBalancerAddress"],
        &["sip/external/ipLoadBalancerAddress"],
        "Address of the IP load balancer on the client side. The first is written into headers, all are recognised as ours.",
        "192.0.2.10",
        |it| &mut it.config.external.balancer,
    ),
    balancer(
        &["externalIpv6LoadBalancerAddress"],
        &["sip/external/ipv6LoadBalancerAddress"],
        "IPv6 address of the IP load balancer on the client side.",
        "2001:db8::10",
        |it| &mut it.config.external.ipv6_balancer,
    ),
    group(
        &["externalIpLoadBalancerPort", "externalLoadBalancerPort"],
        "Port of the IP load balancer on the client side, for UDP and TCP alike.",
        "5060",
        |draft, text| draft.open_group(|it| &mut it.external.balancer_ports, false, text),
        &["externalIpLoadBalancerUdpPort", "externalIpLoadBalancerTcpPort", "externalIpLoadBalancerWsPort"],
    )
    .restart(),
    group(
        &["externalSecureIpLoadBalancerPort", "externalSecureLoadBalancerPort"],
        "Port of the IP load balancer on the client side, for TLS.",
        "5061",
        |draft, text| draft.open_group(|it| &mut it.external.balancer_ports, true, text),
        &["externalIpLoadBalancerTlsPort", "externalIpLoadBalancerWssPort"],
    )
    .restart(),
    balancer(
        &["internalIpLoadBalancerAddress"],
        &["sip/internal/ipLoadBalancerAddress"],
        "Address of the IP load balancer on the node side. The first is written into headers, all are recognised as ours.",
        "192.0.2.10",
        |it| &mut it.config.internal.balancer,
    ),
    balancer(
        &["internalIpv6LoadBalancerAddress"],
        &["sip/internal/ipv6LoadBalancerAddress"],
        "IPv6 address of the IP load balancer on the node side.",
        "2001:db8::10",
        |it| &mut it.config.internal.ipv6_balancer,
    ),
    group(
        &["internalIpLoadBalancerPort", "internalLoadBalancerPort"],
        "Port of the IP load balancer on the node side, for UDP and TCP alike.",
        "5060",
        |draft, text| draft.open_group(|it| &mut it.internal.balancer_ports, false, text),
        &["internalIpLoadBalancerUdpPort", "internalIpLoadBalancerTcpPort", "internalIpLoadBalancerWsPort"],
    )
    .restart(),
    group(
        &["internalSecureIpLoadBalancerPort", "internalSecureLoadBalancerPort"],
        "Port of the IP load balancer on the node side, for TLS.",
        "5061",
        |draft, text| draft.open_group(|it| &mut it.internal.balancer_ports, true, text),
        &["internalIpLoadBalancerTlsPort", "internalIpLoadBalancerWssPort"],
    )
    .restart(),
    port(
        &["externalIpLoadBalancerUdpPort"],
        &["sip/external/ipLoadBalancerUdpPort"],
        "Port of the IP load balancer on the client side for UDP.",
        "5070",
        |it| &mut it.config.external.balancer_ports.0[0],
    ),
    port(
        &["externalIpLoadBalancerTcpPort"],
        &["sip/external/ipLoadBalancerTcpPort"],
        "Port of the IP load balancer on the client side for TCP.",
        "5070",
        |it| &mut it.config.external.balancer_ports.0[1],
    ),
    port(
        &["externalIpLoadBalancerTlsPort"],
        &["sip/external/ipLoadBalancerTlsPort"],
        "Port of the IP load balancer on the client side for TLS.",
        "5070",
        |it| &mut it.config.external.balancer_ports.0[2],
    ),
    port(
        &["externalIpLoadBalancerWsPort"],
        &["sip/external/ipLoadBalancerWsPort"],
        "Port of the IP load balancer on the client side for WebSocket.",
        "5070",
        |it| &mut it.config.external.balancer_ports.0[3],
    ),
    port(
        &["externalIpLoadBalancerWssPort"],
        &["sip/external/ipLoadBalancerWssPort"],
        "Port of the IP load balancer on the client side for WebSocket over TLS.",
        "5070",
        |it| &mut it.config.external.balancer_ports.0[4],
    ),
    port(
        &["internalIpLoadBalancerUdpPort"],
        &["sip/internal/ipLoadBalancerUdpPort"],
        "Port of the IP load balancer on the node side for UDP.",
        "5070",
        |it| &mut it.config.internal.balancer_ports.0[0],
    ),
    port(
        &["internalIpLoadBalancerTcpPort"],
        &["sip/internal/ipLoadBalancerTcpPort"],
        "Port of the IP load balancer on the node side for TCP.",
        "5070",
        |it| &mut it.config.internal.balancer_ports.0[1],
    ),
    port(
        &["internalIpLoadBalancerTlsPort"],
        &["sip/internal/ipLoadBalancerTlsPort"],
        "Port of the IP load balancer on the node side for TLS.",
        "5070",
        |it| &mut it.config.internal.balancer_ports.0[2],
    ),
    port(
        &["internalIpLoadBalancerWsPort"],
        &["sip/internal/ipLoadBalancerWsPort"],
        "Port of the IP load balancer on the node side for WebSocket.",
        "5070",
        |it| &mut it.config.internal.balancer_ports.0[3],
    ),
    port(
        &["internalIpLoadBalancerWssPort"],
        &["sip/internal/ipLoadBalancerWssPort"],
        "Port of the IP load balancer on the node side for WebSocket over TLS.",
        "5070",
        |it| &mut it.config.internal.balancer_ports.0[4],
    ),
    port(
        &["externalIpv6LoadBalancerUdpPort"],
        &["sip/external/ipv6LoadBalancerUdpPort"],
        "IPv6 port of the IP load balancer on the client side for UDP.",
        "5070",
        |it| &mut it.config.external.ipv6_balancer_ports.0[0],
    ),
    port(
        &["externalIpv6LoadBalancerTcpPort"],
        &["sip/external/ipv6LoadBalancerTcpPort"],
        "IPv6 port of the IP load balancer on the client side for TCP.",
        "5070",
        |it| &mut it.config.external.ipv6_balancer_ports.0[1],
    ),
    port(
        &["externalIpv6LoadBalancerTlsPort"],
        &["sip/external/ipv6LoadBalancerTlsPort"],
        "IPv6 port of the IP load balancer on the client side for TLS.",
        "5070",
        |it| &mut it.config.external.ipv6_balancer_ports.0[2],
    ),
    port(
        &["externalIpv6LoadBalancerWsPort"],
        &["sip/external/ipv6LoadBalancerWsPort"],
        "IPv6 port of the IP load balancer on the client side for WebSocket.",
        "5070",
        |it| &mut it.config.external.ipv6_balancer_ports.0[3],
    ),
    port(
        &["externalIpv6LoadBalancerWssPort"],
        &["sip/external/ipv6LoadBalancerWssPort"],
        "IPv6 port of the IP load balancer on the client side for WebSocket over TLS.",
        "5070",
        |it| &mut it.config.external.ipv6_balancer_ports.0[4],
    ),
    port(
        &["internalIpv6LoadBalancerUdpPort"],
        &["sip/internal/ipv6LoadBalancerUdpPort"],
        "IPv6 port of the IP load balancer on the node side for UDP.",
        "5070",
        |it| &mut it.config.internal.ipv6_balancer_ports.0[0],
    ),
    port(
        &["internalIpv6LoadBalancerTcpPort"],
        &["sip/internal/ipv6LoadBalancerTcpPort"],
        "IPv6 port of the IP load balancer on the node side for TCP.",
        "5070",
        |it| &mut it.config.internal.ipv6_balancer_ports.0[1],
    ),
    port(
        &["internalIpv6LoadBalancerTlsPort"],
        &["sip/internal/ipv6LoadBalancerTlsPort"],
        "IPv6 port of the IP load balancer on the node side for TLS.",
        "5070",
        |it| &mut it.config.internal.ipv6_balancer_ports.0[2],
    ),
    port(
        &["internalIpv6LoadBalancerWsPort"],
        &["sip/internal/ipv6LoadBalancerWsPort"],
        "IPv6 port of the IP load balancer on the node side for WebSocket.",
        "5070",
        |it| &mut it.config.internal.ipv6_balancer_ports.0[3],
    ),
    port(
        &["internalIpv6LoadBalancerWssPort"],
        &["sip/internal/ipv6LoadBalancerWssPort"],
        "IPv6 port of the IP load balancer on the node side for WebSocket over TLS.",
        "5070",
        |it| &mut it.config.internal.ipv6_balancer_ports.0[4],
    ),
    Key::new(
        &["useIpLoadBalancerAddressInViaHeaders"],
        &["sip/useIpLoadBalancerAddressInViaHeaders"],
        "false",
        "Write the IP load balancer's address into Via too, so that responses may enter through any balancer.",
        "true",
        Kind::Flag(|it| &mut it.config.ip_load_balancer_in_via),
    )
    .restart(),
];

const fn balancer(
    names: &'static [&'static str],
    xml: &'static [&'static str],
    help: &'static str,
    example: &'static str,
    at: fn(&mut Draft) -> &mut Vec<String>,
) -> Key {
    Key::new(names, xml, "", help, example, Kind::Hosts(at)).restart()
}
