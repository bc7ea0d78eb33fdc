//! What a node says of itself, whichever protocol it says it in.
//!
//! Reads the properties text of SIP heartbeats (`sip.md` 4.2) and the words of RMI and JSON ones
//! (`http-smpp-registry.md` 3.2). Leaves what makes a message a heartbeat, and the answer, to others.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use protocols::heartbeat::{NodeWords, options};
use protocols::sip::Transport;

use crate::node::{NodeKey, PORT_PROPERTIES, Ports, Version};

/// One node's word about itself, from whichever protocol.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Announcement {
    /// Who says it.
    pub source: Source,
    /// Address of every port.
    pub ip: IpAddr,
    /// For people.
    pub host_name: String,
    /// SIP listening ports.
    pub ports: Ports,
    /// Cluster.
    pub version: Version,
    /// Incarnation.
    pub session: Option<String>,
    /// `GRACEFUL_SHUTDOWN=true`.
    pub graceful: bool,
    /// Everything that was said, the fields above included but for what RMI and JSON tell apart: name and
    /// address.
    pub properties: BTreeMap<String, String>,
}

/// How an announcement came; the later ones are believed more where they contradict each other.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Source {
    /// The labels of a pod.
    Kubernetes,
    /// The body of a SIP heartbeat.
    Sip,
    /// `start` of the JSON protocol.
    Json,
    /// `handlePing` of Java RMI.
    Rmi,
    /// The operator.
    Configured,
}

impl Source {
    /// As the log names it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Source::Kubernetes => "Kubernetes",
            Source::Sip => "SIP",
            Source::Json => "JSON",
            Source::Rmi => "RMI",
            Source::Configured => "configuration",
        }
    }
}

impl Announcement {
    /// Reads the body of a SIP heartbeat: Java properties text.
    ///
    /// `hostname` (or `hostName`), `ip`, the five SIP ports, `version`, `sessionId` and
    /// `GRACEFUL_SHUTDOWN` become fields; everything is kept as properties too. A port of 0 or -1, or
    /// without a value, is closed. A zone (`fe80::1%2`) is cut off the address.
    ///
    /// # Errors
    ///
    /// [`BeatError`]: answer 400 with its text, register nothing.
    pub fn parse(body: &[u8]) -> Result<Announcement, BeatError> {
        if body.len() > ANNOUNCEMENT_BYTES_MAX {
            return Err(BeatError::TooLong { bytes: body.len() });
        }
        let properties: BTreeMap<String, String> = options::pairs(body)
            .map(|(name, value)| (name.into_owned(), value.into_owned()))
            .collect();
        let property = |name: &str| properties.get(name).cloned().unwrap_or_default();
        let host_name = Some(property("hostname")).filter(|it| !it.trim().is_empty());
        let host_name = host_name.unwrap_or_else(|| property("hostName"));
        Announcement::read(Source::Sip, &host_name, &property("ip"), properties)
    }

    /// Reads the words of an RMI or JSON heartbeat, or of a pod: properties as in [`Announcement::parse`]. The
    /// `restcommInstanceId` of JSON is the `Restcomm-Instance-Id` of RMI.
    ///
    /// # Errors
    ///
    /// [`BeatError`]: register nothing.
    pub fn from_words(source: Source, words: NodeWords) -> Result<Announcement, BeatError> {
        let NodeWords { host_name, ip, properties } = words;
        let texts = properties.iter().map(|(name, value)| name.len() + value.len());
        let bytes = host_name.len() + ip.len() + texts.sum::<usize>();
        if bytes > ANNOUNCEMENT_BYTES_MAX {
            return Err(BeatError::TooLong { bytes });
        }
        let mut properties: BTreeMap<String, String> = properties.into_iter().collect();
        if let Some(instance) = properties.remove("restcommInstanceId") {
            properties.insert("Restcomm-Instance-Id".to_owned(), instance);
        }
        Announcement::read(source, &host_name, &ip, properties)
    }

    /// A node of which nothing is known but that it would be there.
    pub(super) fn of(ip: IpAddr, version: Version) -> Announcement {
        Announcement {
            source: Source::Sip,
            ip,
            host_name: NO_NAME.to_owned(),
            ports: Ports::default(),
            version,
            session: None,
            graceful: false,
            properties: BTreeMap::new(),
        }
    }

    fn read(
        source: Source,
        host_name: &str,
        ip: &str,
        properties: BTreeMap<String, String>,
    ) -> Result<Announcement, BeatError> {
        let text =
            |name: &str| properties.get(name).map(|it| it.trim()).filter(|it| !it.is_empty());
        let ip = Some(ip.trim()).filter(|it| !it.is_empty()).ok_or(BeatError::NoIp)?;
        let ip = ip.split_once('%').map_or(ip, |(address, _zone)| address);
        let ip: IpAddr = ip.parse().map_err(|_| BeatError::BadIp)?;
        // SIP can say what is wrong with it (`sip.md` 4.2); nodes of the other protocols, and pods, cannot
        // be told and would be lost (`http-smpp-registry.md` 3.1).
        let version = match text("version").map(str::parse) {
            Some(Err(_)) if source == Source::Sip => return Err(BeatError::BadVersion),
            Some(Ok(it)) => it,
            Some(Err(_)) | None => 0,
        };
        let mut ports = Ports::default();
        for (name, transport) in PORT_PROPERTIES {
            if let Some(port) = port(text(name)).map_err(|()| BeatError::BadPort { name })? {
                ports.open(transport, port);
            }
        }
        let mut any = !ports.is_empty();
        for name in SERVICE_PORTS {
            any |= port(text(name)).map_err(|()| BeatError::BadPort { name })?.is_some();
        }
        if !any {
            return Err(BeatError::NoPorts);
        }
        let host_name = Some(host_name.trim()).filter(|it| !it.is_empty()).unwrap_or(NO_NAME);
        let session = text("sessionId").map(str::to_owned);
        let graceful = text("GRACEFUL_SHUTDOWN").is_some_and(|it| it.eq_ignore_ascii_case("true"));
        Ok(Announcement {
            source,
            ip,
            host_name: host_name.to_owned(),
            ports,
            version: Version(version),
            session,
            graceful,
            properties,
        })
    }

    /// The identity of this node (`sip.md` 4.4). A node without any SIP port is told by its other ones.
    pub fn key(&self) -> NodeKey {
        let key = NodeKey::of(self.ip, self.version, &self.ports);
        if !self.ports.is_empty() {
            return key;
        }
        let services: Vec<u8> = services(&self.properties)
            .flat_map(|(index, port)| [index, port.to_be_bytes()[0], port.to_be_bytes()[1]])
            .collect();
        NodeKey(crate::balance::hash(key.0, &services))
    }

    /// Whether it says a version, and not merely none.
    pub(super) fn states_version(&self) -> bool {
        states_version(&self.properties)
    }

    /// Bytes that keeping it costs, without overhead.
    pub(super) fn bytes(&self) -> usize {
        let texts: usize =
            self.properties.iter().map(|(name, value)| name.len() + value.len()).sum();
        texts + self.host_name.len() + self.session.as_ref().map_or(0, String::len)
    }
}

/// Why a heartbeat body names no node. Answered 400 with this text; the request is not forwarded.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum BeatError {
    /// Longer than [`ANNOUNCEMENT_BYTES_MAX`].
    TooLong {
        /// Length of the body.
        bytes: usize,
    },
    /// No `ip`.
    NoIp,
    /// `ip` is not a literal address.
    BadIp,
    /// No open port at all.
    NoPorts,
    /// This port is not a number from 1 to 65535.
    BadPort {
        /// Property that holds it.
        name: &'static str,
    },
    /// `version` is not an integer. Said of SIP heartbeats only: elsewhere it counts as 0.
    BadVersion,
}

impl fmt::Display for BeatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BeatError::TooLong { bytes } => {
                write!(f, "Heartbeat of {bytes} bytes, at most {ANNOUNCEMENT_BYTES_MAX}")
            }
            BeatError::NoIp => f.write_str("Heartbeat without ip"),
            BeatError::BadIp => f.write_str("Heartbeat ip is not an address"),
            BeatError::NoPorts => f.write_str("Heartbeat without any port"),
            BeatError::BadPort { name } => write!(f, "Heartbeat {name} is not a port"),
            BeatError::BadVersion => f.write_str("Heartbeat version is not an integer"),
        }
    }
}

impl std::error::Error for BeatError {}

/// Open ports other than SIP's, each with its position in [`SERVICE_PORTS`].
pub(super) fn services(properties: &BTreeMap<String, String>) -> impl Iterator<Item = (u8, u16)> {
    (0u8..).zip(SERVICE_PORTS).filter_map(|(index, name)| {
        let text = properties.get(name).map(String::as_str);
        port(text).ok().flatten().map(|port| (index, port))
    })
}

/// Whether these properties name a version: a number.
fn states_version(properties: &BTreeMap<String, String>) -> bool {
    properties.get("version").is_some_and(|it| it.trim().parse::<i32>().is_ok())
}

/// A version that is none, and counts as 0.
pub(super) fn odd_version(properties: &BTreeMap<String, String>) -> Option<&str> {
    let text = properties.get("version").map(|it| it.trim()).filter(|it| !it.is_empty());
    text.filter(|_| !states_version(properties))
}

/// The properties that [`Announcement::parse`] would have read these ports from.
pub(super) fn port_properties(ports: &Ports) -> BTreeMap<String, String> {
    let name = |transport: Transport| format!("{}Port", transport.as_param());
    ports.iter().map(|(transport, port)| (name(transport), port.to_string())).collect()
}

/// `None`: closed.
pub(super) fn port(text: Option<&str>) -> Result<Option<u16>, ()> {
    match text.map(str::trim) {
        None | Some("" | "0" | "-1") => Ok(None),
        Some(text) => text.parse().map(Some).map_err(|_| ()),
    }
}

/// Ports of the other protocols on a node, as its properties spell them.
pub(super) const SERVICE_PORTS: [&str; 5] =
    ["httpPort", "sslPort", "smppPort", "smppSslPort", "sctpPort"];

/// The name of a node that has told none; spelled as it always was.
pub(super) const NO_NAME: &str = "undeffined_node";

/// Names, values and session of one node together, from all sources. Each is kept as it was said and in
/// the node: with the most nodes that there can be, 256 MiB.
pub const ANNOUNCEMENT_BYTES_MAX: usize = 8 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_become_announcements() {
        let four: IpAddr = "127.0.0.1".parse().unwrap();
        type Said<'a> = (IpAddr, &'a str, &'a str, i32, Option<&'a str>, bool);
        let cases: &[(&str, &str, Said<'_>)] = &[
            (
                "the guide's own",
                "tcpPort=5070\nudpPort=5070\nhostname=sipHeartbeat\nip=127.0.0.1\n",
                (four, "sipHeartbeat", "udp5070 tcp5070", 0, None, false),
            ),
            (
                "CRLF, blanks, the JSON spelling, closed ports",
                "\r\n ip = 127.0.0.1 \r\nhostName: n1\r\nudpPort=0\r\ntlsPort=-1\r\nwsPort=\r\ntcpPort 5\r\n",
                (four, "n1", "tcp5", 0, None, false),
            ),
            (
                "everything",
                "ip=127.0.0.1\nudpPort=1\ntcpPort=2\ntlsPort=3\nwsPort=4\nwssPort=5\nversion=-7\nsessionId=99\nGRACEFUL_SHUTDOWN=TRUE",
                (four, "undeffined_node", "udp1 tcp2 tls3 ws4 wss5", -7, Some("99"), true),
            ),
            (
                "IPv6 as java.util.Properties.store writes it, with a zone",
                "#Mon\n!x\nip=fe80\\:\\:1%2\nudpPort=\\u0035\\\n   0\n",
                ("fe80::1".parse().unwrap(), "undeffined_node", "udp50", 0, None, false),
            ),
            (
                "no SIP at all",
                "ip=127.0.0.1\nhttpPort=8080",
                (four, "undeffined_node", "", 0, None, false),
            ),
        ];
        for (name, body, (ip, host_name, ports, version, session, graceful)) in cases {
            let it = Announcement::parse(body.as_bytes()).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(it.ip, *ip, "{name}");
            assert_eq!(it.host_name, *host_name, "{name}");
            let open: Vec<String> =
                it.ports.iter().map(|(t, port)| format!("{}{port}", t.as_param())).collect();
            assert_eq!(open.join(" "), *ports, "{name}");
            assert_eq!(it.version, Version(*version), "{name}");
            assert_eq!(it.session.as_deref(), *session, "{name}");
            assert_eq!(it.graceful, *graceful, "{name}");
        }
    }

    #[test]
    fn words_become_the_announcement_that_a_body_of_the_same_words_does() {
        let words = |host_name: &str, ip: &str, pairs: &[(&str, &str)]| NodeWords {
            host_name: host_name.to_owned(),
            ip: ip.to_owned(),
            properties: pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        };
        let ports = [
            ("udpPort", "5080"),
            ("httpPort", "8080"),
            ("sslPort", "8443"),
            ("smppPort", "2775"),
            ("jvmRoute", "a"),
            ("version", "3"),
            ("sessionId", "7"),
            ("GRACEFUL_SHUTDOWN", "true"),
        ];
        let body: String = ports.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
        let body = Announcement::parse(format!("hostname=n1\nip=::1\n{body}").as_bytes()).unwrap();
        for source in [Source::Json, Source::Rmi] {
            let it = Announcement::from_words(source, words("n1", "::1%eth0", &ports)).unwrap();
            let mut want = Announcement { source, ..body.clone() };
            want.properties.retain(|name, _| !["hostname", "ip"].contains(&name.as_str()));
            assert_eq!(it, want, "{source:?}");
            assert_eq!(it.key(), body.key(), "{source:?}");
        }
        let instance = [("udpPort", "1"), ("restcommInstanceId", "ID1")];
        let it = Announcement::from_words(Source::Json, words("", "1.2.3.4", &instance)).unwrap();
        assert_eq!(
            (it.host_name.as_str(), &it.properties["Restcomm-Instance-Id"][..]),
            (NO_NAME, "ID1")
        );
        assert!(!it.properties.contains_key("restcommInstanceId"));

        for source in [Source::Json, Source::Rmi, Source::Kubernetes] {
            let odd = [("udpPort", "1"), ("version", "v2")];
            let it = Announcement::from_words(source, words("", "1.2.3.4", &odd)).unwrap();
            assert_eq!((it.version, odd_version(&it.properties)), (Version(0), Some("v2")));
            assert!(!it.states_version(), "{source:?}");
        }

        let long = "x".repeat(ANNOUNCEMENT_BYTES_MAX + 1);
        let cases = [
            (words("n", "", &ports), BeatError::NoIp),
            (words("n", "n", &ports), BeatError::BadIp),
            (words("n", "1.2.3.4", &[]), BeatError::NoPorts),
            (words("n", "1.2.3.4", &[("tcpPort", "-2")]), BeatError::BadPort { name: "tcpPort" }),
            (words(&long, "", &[]), BeatError::TooLong { bytes: long.len() }),
        ];
        for (words, error) in cases {
            assert_eq!(Announcement::from_words(Source::Rmi, words), Err(error));
        }
    }

    #[test]
    fn all_that_was_said_is_kept() {
        let it =
            Announcement::parse(b"ip=1.2.3.4\nudpPort=5060\nload=0.5 of 8\nload=x=y:z").unwrap();
        let kept: Vec<(&str, &str)> =
            it.properties.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(kept, [("ip", "1.2.3.4"), ("load", "x=y:z"), ("udpPort", "5060")]);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let long = format!("ip=1.2.3.4\nudpPort=1\nx={}", "y".repeat(ANNOUNCEMENT_BYTES_MAX));
        let cases: &[(&[u8], BeatError, &str)] = &[
            (b"", BeatError::NoIp, "Heartbeat without ip"),
            (b"ip=\nudpPort=1", BeatError::NoIp, "Heartbeat without ip"),
            (b"ip=node1\nudpPort=1", BeatError::BadIp, "Heartbeat ip is not an address"),
            (b"ip=1.2.3.4", BeatError::NoPorts, "Heartbeat without any port"),
            (b"ip=1.2.3.4\nudpPort=0", BeatError::NoPorts, "Heartbeat without any port"),
            (
                b"ip=1.2.3.4\nudpPort=65536",
                BeatError::BadPort { name: "udpPort" },
                "Heartbeat udpPort is not a port",
            ),
            (
                b"ip=1.2.3.4\nudpPort=1\nhttpPort=x",
                BeatError::BadPort { name: "httpPort" },
                "Heartbeat httpPort is not a port",
            ),
            (
                b"ip=1.2.3.4\nudpPort=1\nversion=1.0",
                BeatError::BadVersion,
                "Heartbeat version is not an integer",
            ),
            (b"ip=\xff\nudpPort=1", BeatError::BadIp, "Heartbeat ip is not an address"),
            (
                long.as_bytes(),
                BeatError::TooLong { bytes: long.len() },
                "Heartbeat of 8215 bytes, at most 8192",
            ),
        ];
        for (body, error, text) in cases {
            let case = String::from_utf8_lossy(body.get(..40).unwrap_or(body));
            assert_eq!(Announcement::parse(body), Err(*error), "{case}");
            assert_eq!(error.to_string(), *text, "{case}");
        }
    }

    #[test]
    fn identity_is_address_version_and_ports_and_nothing_else() {
        let key = |body: &str| Announcement::parse(body.as_bytes()).unwrap().key();
        let base = key("ip=1.2.3.4\nudpPort=5060");
        let same = "ip=1.2.3.4\nudpPort=5060\nsessionId=7\nhostname=x\nload=1\nhttpPort=80";
        assert_eq!(base, key(same));
        let others = [
            "ip=1.2.3.5\nudpPort=5060",
            "ip=1.2.3.4\nudpPort=5061",
            "ip=1.2.3.4\ntcpPort=5060",
            "ip=1.2.3.4\nudpPort=5060\nversion=1",
            "ip=1.2.3.4\nhttpPort=5060",
            "ip=1.2.3.4\nsslPort=5060",
        ];
        let mut keys: Vec<NodeKey> = others.iter().map(|it| key(it)).collect();
        keys.push(base);
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), others.len() + 1);
    }

    #[test]
    fn any_bytes_are_read_or_refused() {
        let mut seed = 0x9e37_79b9_7f4a_7c15u64;
        let alphabet = b"ip=1.2.3.4\nudpPort=5060\\u00#! :\r\x80\t";
        for round in 0..20_000 {
            let body: Vec<u8> = (0..round % 64)
                .map(|_| {
                    seed ^= seed << 13;
                    seed ^= seed >> 7;
                    seed ^= seed << 17;
                    alphabet[usize::try_from(seed >> 33).unwrap() % alphabet.len()]
                })
                .collect();
            if let Ok(it) = Announcement::parse(&body) {
                assert!(!it.ports.is_empty() || services(&it.properties).next().is_some());
            }
        }
    }
}
