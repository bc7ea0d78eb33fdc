//! Which addresses the configuration listens on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Leg, Listener};
use crate::config::{Config, LegConfig};
use crate::names::literal;
use crate::snapshot::Family;

/// Every listening point, external leg first, IPv4 before IPv6, in port-list order. A leg without a host
/// of its own takes the common one, and without that listens on every address.
///
/// # Errors
///
/// What `resolve` says of a host that is no literal: the process must not start.
pub fn listeners(
    config: &Config,
    resolve: &dyn Fn(&str, Family) -> Result<IpAddr, String>,
) -> Result<Vec<Listener>, String> {
    let mut listeners = Vec::new();
    for (leg, at) in [(Leg::External, &config.external), (Leg::Internal, &config.internal)] {
        let LegConfig { host, ipv6_host, ports, ipv6_ports, .. } = at;
        let any_v4 = IpAddr::from(Ipv4Addr::UNSPECIFIED);
        let any_v6 = IpAddr::from(Ipv6Addr::UNSPECIFIED);
        let families = [
            (Family::V4, ports, host.as_ref().or(config.host.as_ref()), any_v4),
            (Family::V6, ipv6_ports, ipv6_host.as_ref().or(config.ipv6_host.as_ref()), any_v6),
        ];
        for (family, ports, host, any) in families {
            if ports.is_empty() {
                continue;
            }
            let ip = match host.map(String::as_str) {
                None => any,
                Some(host) => literal(host).map_or_else(|| resolve(host, family), Ok)?,
            };
            listeners.extend(ports.iter().map(|(transport, port)| Listener {
                leg,
                transport,
                address: SocketAddr::new(ip, port),
            }));
        }
    }
    Ok(listeners)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load;

    #[test]
    fn legs_take_their_own_host_then_the_common_one_then_any() {
        let of = |text: &str| {
            let config = load("t", text.as_bytes(), &[]).config;
            listeners(&config, &|host, family| match (host, family) {
                ("lb.example", Family::V4) => Ok(Ipv4Addr::new(192, 0, 2, 1).into()),
                _ => Err(format!("{host}?")),
            })
            .map(|it| {
                let all = it.iter().map(|it| {
                    let transport = it.transport.as_param();
                    format!("{:?} {transport} {}", it.leg, it.address)
                });
                all.collect::<Vec<_>>().join(", ")
            })
        };
        let cases = [
            ("externalUdpPort=5060", Ok("External udp 0.0.0.0:5060")),
            (
                "host=192.0.2.9\ninternalHost=192.0.2.8\nexternalUdpPort=1\nexternalTcpPort=2\ninternalUdpPort=3",
                Ok("External udp 192.0.2.9:1, External tcp 192.0.2.9:2, Internal udp 192.0.2.8:3"),
            ),
            ("host=lb.example\nexternalTcpPort=1", Ok("External tcp 192.0.2.1:1")),
            ("host=other.example\nexternalTcpPort=1", Err("other.example?")),
        ];
        for (text, want) in cases {
            let want = want.map(str::to_owned).map_err(str::to_owned);
            assert_eq!(of(text), want, "{text}");
        }
    }
}
