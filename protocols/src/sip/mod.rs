//! SIP on the wire (RFC 3261): messages, URIs, Via and Route values, replies, stream framing.

mod header;
mod malformed;
pub mod message;
mod method;
mod params;
pub mod reply;
pub mod route;
mod scan;
pub mod stream;
#[cfg(test)]
mod torture;
pub mod uri;
mod values;
pub mod via;

/// The five SIP transports, in the fixed order of every port list (`sip.md` 1.1).
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(u8)]
pub enum Transport {
    /// Datagrams (RFC 3261 §18).
    Udp,
    /// A stream (RFC 3261 §18).
    Tcp,
    /// A stream inside TLS (RFC 3261 §26).
    Tls,
    /// WebSocket (RFC 7118).
    Ws,
    /// WebSocket inside TLS (RFC 7118).
    Wss,
}

impl Transport {
    /// Every transport, in port-list order.
    pub const ALL: [Transport; 5] =
        [Transport::Udp, Transport::Tcp, Transport::Tls, Transport::Ws, Transport::Wss];

    /// Reads a Via transport or a `transport` parameter; case does not matter.
    pub fn from_token(token: &[u8]) -> Option<Transport> {
        Self::ALL.into_iter().find(|it| it.as_param().as_bytes().eq_ignore_ascii_case(token))
    }

    /// As Via spells it: `UDP`.
    pub const fn as_via(self) -> &'static str {
        match self {
            Transport::Udp => "UDP",
            Transport::Tcp => "TCP",
            Transport::Tls => "TLS",
            Transport::Ws => "WS",
            Transport::Wss => "WSS",
        }
    }

    /// As a URI's `transport` parameter and our port properties spell it: `udp`.
    pub const fn as_param(self) -> &'static str {
        match self {
            Transport::Udp => "udp",
            Transport::Tcp => "tcp",
            Transport::Tls => "tls",
            Transport::Ws => "ws",
            Transport::Wss => "wss",
        }
    }

    /// The port where none is written (RFC 3261 §19.1.2, RFC 7118 §5.2.1).
    pub const fn default_port(self) -> u16 {
        match self {
            Transport::Udp | Transport::Tcp => 5060,
            Transport::Tls => 5061,
            Transport::Ws => 80,
            Transport::Wss => 443,
        }
    }

    /// Whether bytes arrive in order or the connection ends.
    pub const fn is_stream(self) -> bool {
        !matches!(self, Transport::Udp)
    }

    /// Whether nobody on the way can read along.
    pub const fn is_secure(self) -> bool {
        matches!(self, Transport::Tls | Transport::Wss)
    }

    /// Position in every list of five, in [`Transport::ALL`] order.
    pub const fn index(self) -> usize {
        self as usize
    }
}
