//! PROXY protocol: the first bytes of a connection that another balancer opened for a client.
//!
//! Reads versions 1 (text) and 2 (binary) of the HAProxy specification. Addresses other than IPv4 and
//! IPv6, and all extensions, are skipped.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::bytes::parse_decimal;

/// What stands at the front of a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Preface {
    /// Too little of it is there.
    NeedMore,
    /// All of it.
    Whole {
        /// Bytes to skip.
        bytes: usize,
        /// The client; `None`: the balancer speaks for itself, or does not say.
        source: Option<SocketAddr>,
    },
}

/// It is no PROXY protocol header: close.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NotProxied;

/// Reads the header at the front of a connection.
///
/// # Errors
///
/// [`NotProxied`]: whoever connects does not speak it; close.
pub fn read(bytes: &[u8]) -> Result<Preface, NotProxied> {
    let is_start = |of: &[u8]| {
        let length = of.len().min(bytes.len());
        of.get(..length) == bytes.get(..length)
    };
    if is_start(SIGNATURE) {
        version_2(bytes)
    } else if is_start(b"PROXY ") {
        version_1(bytes)
    } else {
        Err(NotProxied)
    }
}

fn version_1(bytes: &[u8]) -> Result<Preface, NotProxied> {
    let line = bytes.get(..bytes.len().min(LINE_BYTES_MAX)).unwrap_or_default();
    let Some(end) = memchr::memchr(b'\n', line) else {
        return if bytes.len() < LINE_BYTES_MAX { Ok(Preface::NeedMore) } else { Err(NotProxied) };
    };
    let text = line.get(..end).and_then(|it| it.strip_suffix(b"\r")).ok_or(NotProxied)?;
    let mut words = text.split(|it| *it == b' ').skip(1);
    let family = words.next().ok_or(NotProxied)?;
    let source = match family {
        b"UNKNOWN" => None,
        b"TCP4" | b"TCP6" => {
            let (ip, _, port) = (words.next(), words.next(), words.next());
            let ip: Option<IpAddr> =
                ip.and_then(|it| core::str::from_utf8(it).ok()).and_then(|it| it.parse().ok());
            let ip = ip.filter(|it| it.is_ipv4() == (family == b"TCP4")).ok_or(NotProxied)?;
            let port = port.and_then(parse_decimal).ok_or(NotProxied)?;
            Some(SocketAddr::new(ip, port))
        }
        _ => return Err(NotProxied),
    };
    Ok(Preface::Whole { bytes: end + 1, source })
}

fn version_2(bytes: &[u8]) -> Result<Preface, NotProxied> {
    let Some((head, rest)) = bytes.split_first_chunk::<16>() else { return Ok(Preface::NeedMore) };
    let [.., command, family, high, low] = *head;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if command & 0xf0 != 0x20 || command & 0x0f > 1 || length > ADDRESSES_BYTES_MAX {
        return Err(NotProxied);
    }
    let Some(addresses) = rest.get(..length) else { return Ok(Preface::NeedMore) };
    let is_local = command & 0x0f == 0;
    let source = match family >> 4 {
        _ if is_local => None,
        1 => {
            let (ip, rest) = addresses.split_first_chunk::<4>().ok_or(NotProxied)?;
            Some((IpAddr::V4(Ipv4Addr::from(*ip)), rest.get(4..6).ok_or(NotProxied)?))
        }
        2 => {
            let (ip, rest) = addresses.split_first_chunk::<16>().ok_or(NotProxied)?;
            Some((IpAddr::V6(Ipv6Addr::from(*ip)), rest.get(16..18).ok_or(NotProxied)?))
        }
        _ => None,
    };
    let source = source.map(|(ip, port)| {
        let port = port.iter().fold(0u16, |port, byte| port << 8 | u16::from(*byte));
        SocketAddr::new(ip, port)
    });
    Ok(Preface::Whole { bytes: 16 + length, source })
}

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Longest line of version 1.
const LINE_BYTES_MAX: usize = 107;
/// Addresses and extensions of version 2 that anybody sends.
const ADDRESSES_BYTES_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use super::*;
    use crate::testing::Random;

    fn binary(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
        let mut out = SIGNATURE.to_vec();
        out.extend([command, family, 0, u8::try_from(addresses.len()).unwrap()]);
        out.extend(addresses);
        out
    }

    #[test]
    fn both_versions_name_the_client() {
        let four = [192, 0, 2, 1, 10, 0, 0, 1, 0x1f, 0x90, 0, 80, 0xff];
        type Want = Option<Option<&'static str>>;
        let cases: &[(&str, Vec<u8>, Want)] = &[
            (
                "text",
                b"PROXY TCP4 192.0.2.1 10.0.0.1 8080 80\r\n".to_vec(),
                Some(Some("192.0.2.1:8080")),
            ),
            (
                "text, IPv6",
                b"PROXY TCP6 2001:db8::1 ::1 1 2\r\n".to_vec(),
                Some(Some("[2001:db8::1]:1")),
            ),
            ("text, unknown", b"PROXY UNKNOWN ff ff\r\n".to_vec(), Some(None)),
            ("wrong family", b"PROXY TCP4 ::1 ::1 1 2\r\n".to_vec(), None),
            ("no port", b"PROXY TCP4 1.2.3.4\r\n".to_vec(), None),
            ("bare LF", b"PROXY UNKNOWN\n".to_vec(), None),
            ("too long", [b"PROXY TCP4 ".to_vec(), vec_of(b'1', 100)].concat(), None),
            ("binary", binary(0x21, 0x11, &four), Some(Some("192.0.2.1:8080"))),
            ("binary, local", binary(0x20, 0, &[]), Some(None)),
            ("binary, another version", binary(0x31, 0x11, &four), None),
            ("binary, cut addresses", binary(0x21, 0x11, &four[..7]), None),
            ("HTTP", b"GET / HTTP/1.1\r\n".to_vec(), None),
        ];
        for (name, bytes, want) in cases {
            let want = match want {
                Some(source) => Ok(Preface::Whole {
                    bytes: bytes.len(),
                    source: source.map(|it| it.parse().unwrap()),
                }),
                None => Err(NotProxied),
            };
            assert_eq!(read(bytes), want, "{name}");
            if want.is_ok() {
                for cut in 0..bytes.len() {
                    assert_eq!(read(&bytes[..cut]), Ok(Preface::NeedMore), "{name} {cut}");
                }
            }
        }
    }

    fn vec_of(byte: u8, times: usize) -> Vec<u8> {
        core::iter::repeat_n(byte, times).collect()
    }

    #[test]
    fn noise_never_panics() {
        let whole = binary(0x21, 0x21, &[7; 40]);
        for seed in 0..5_000 {
            let mut random = Random::new(seed);
            let _ = read(&random.mutate(&whole));
            let _ = read(&random.mutate(b"PROXY TCP4 192.0.2.1 10.0.0.1 8080 80\r\nGET"));
        }
    }
}
