//! What the SMPP relay counts. Source: guide 1.12 item 3, `http-smpp-registry.md` 4.1, 4.3.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use protocols::smpp::Command;

/// One shard's SMPP figures.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct SmppCounters {
    /// Requests from ESMEs that were taken on, bind and unbind included.
    pub requests_to_server: u64,
    /// Requests from SMSCs that were taken on, unbind included.
    pub requests_to_client: u64,
    /// Length of the PDUs forwarded to SMSCs; in mux mode without binds and unbinds.
    pub bytes_to_server: u64,
    /// Length of the PDUs forwarded to ESMEs; in mux mode without binds and unbinds.
    pub bytes_to_client: u64,
    /// Requests received from either side, by [`COMMANDS`]; the last is every other id.
    pub requests: [u64; COMMANDS.len() + 1],
    /// Responses received from either side, by [`COMMANDS`]; the last is every other id.
    pub responses: [u64; COMMANDS.len() + 1],
    /// generic_nack received from either side.
    pub nacks: u64,
    /// Clients that did not bind in time.
    pub not_bound: u64,
    /// Requests that were not answered in time, or whose server was lost.
    pub unanswered: u64,
    /// Sessions that lost their server and looked for another.
    pub rebinds: u64,
    /// PDUs that went nowhere, by [`SmppDrop`].
    pub drops: [u64; SmppDrop::ALL.len()],
    /// ESME sessions now.
    pub sessions: u64,
    /// Connections to SMSCs now, bound or not.
    pub providers: u64,
    /// Messages whose submitter is remembered now.
    pub submitters: u64,
    /// Sessions share connections to SMSCs.
    pub mux: bool,
    /// Every SMSC, with the number of connections that are bound there now.
    pub servers: Vec<(SocketAddr, u64)>,
    /// Connections now to each server that has any, wanted or not.
    pub connections: BTreeMap<SocketAddr, u64>,
    /// Sessions now, [`SmppCounters::SHOWN_MAX`] at most.
    pub shown: Vec<SmppSession>,
}

/// One session, for people. Without its system_id: that is half of a credential.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SmppSession {
    /// The ESME.
    pub source: SocketAddr,
    /// State of its server part.
    pub state: &'static str,
    /// It came by TLS.
    pub is_secure: bool,
    /// The SMSC behind it; `None` in mux mode, or while there is none.
    pub server: Option<SocketAddr>,
    /// Its requests that wait for a response.
    pub outstanding: u32,
    /// Requests to it that wait for a response.
    pub outstanding_to_client: u32,
}

/// Why a PDU went nowhere, or a connection was refused. Counted by reason.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
pub enum SmppDrop {
    /// A response that nobody waits for: late, doubled, or under a wrong number.
    Unexpected,
    /// A PDU that the session's state has no use for.
    State,
    /// A length that is none.
    Malformed,
    /// A bind that cannot be read.
    BadBind,
    /// A window is full and the client is told so.
    Throttled,
    /// No session can take what the server sends; or one cannot, of all that should have it.
    NoClient,
    /// Too many connections.
    Full,
    /// Too many of one source.
    SourceConnections,
    /// A peer stopped answering.
    Silent,
    /// The process is stopping.
    Stopping,
}

impl SmppDrop {
    /// Every reason, in numeric order.
    pub const ALL: [SmppDrop; 10] = [
        SmppDrop::Unexpected,
        SmppDrop::State,
        SmppDrop::Malformed,
        SmppDrop::BadBind,
        SmppDrop::Throttled,
        SmppDrop::NoClient,
        SmppDrop::Full,
        SmppDrop::SourceConnections,
        SmppDrop::Silent,
        SmppDrop::Stopping,
    ];

    /// As metrics name it.
    pub const fn as_str(self) -> &'static str {
        match self {
            SmppDrop::Unexpected => "unexpected",
            SmppDrop::State => "state",
            SmppDrop::Malformed => "malformed",
            SmppDrop::BadBind => "bad_bind",
            SmppDrop::Throttled => "throttled",
            SmppDrop::NoClient => "no_client",
            SmppDrop::Full => "full",
            SmppDrop::SourceConnections => "source_connections",
            SmppDrop::Silent => "silent",
            SmppDrop::Stopping => "stopping",
        }
    }
}

impl SmppCounters {
    /// Sessions that are shown one by one: a page for people. All of them are counted.
    pub const SHOWN_MAX: usize = 1_000;

    /// A PDU came in, from either side.
    #[allow(clippy::indexing_slicing)] // `index` is below both lengths
    pub fn received(&mut self, command: Command) {
        if command == Command::GENERIC_NACK {
            self.nacks += 1;
        } else if command.is_response() {
            self.responses[index(command.request())] += 1;
        } else {
            self.requests[index(command)] += 1;
        }
    }

    /// A PDU went nowhere.
    #[allow(clippy::indexing_slicing)] // an enumeration indexes an array of its own size
    pub fn dropped(&mut self, reason: SmppDrop) {
        self.drops[reason as usize] += 1;
    }

    /// Adds another shard's.
    pub fn merge(&mut self, other: &SmppCounters) {
        let sum = |to: &mut u64, from: u64| *to += from;
        for (to, from) in [
            (&mut self.requests_to_server, other.requests_to_server),
            (&mut self.requests_to_client, other.requests_to_client),
            (&mut self.bytes_to_server, other.bytes_to_server),
            (&mut self.bytes_to_client, other.bytes_to_client),
            (&mut self.nacks, other.nacks),
            (&mut self.not_bound, other.not_bound),
            (&mut self.unanswered, other.unanswered),
            (&mut self.rebinds, other.rebinds),
            (&mut self.sessions, other.sessions),
            (&mut self.providers, other.providers),
            (&mut self.submitters, other.submitters),
        ] {
            sum(to, from);
        }
        self.requests.iter_mut().zip(other.requests).for_each(|(to, from)| sum(to, from));
        self.responses.iter_mut().zip(other.responses).for_each(|(to, from)| sum(to, from));
        self.drops.iter_mut().zip(other.drops).for_each(|(to, from)| sum(to, from));
        self.mux |= other.mux;
        super::left::add(&mut self.connections, &other.connections);
        let room = Self::SHOWN_MAX.saturating_sub(self.shown.len());
        self.shown.extend(other.shown.iter().take(room));
        for (server, bound) in &other.servers {
            match self.servers.iter_mut().find(|it| it.0 == *server) {
                Some(it) => it.1 += bound,
                None => self.servers.push((*server, *bound)),
            }
        }
    }

    /// `NumberOfActiveSmppConnections`: sessions and their server connections; in mux mode sessions and
    /// one, or 0 if there are none.
    pub fn active_connections(&self) -> u64 {
        match (self.mux, self.sessions) {
            (false, sessions) => sessions + self.providers,
            (true, 0) => 0,
            (true, sessions) => sessions + 1,
        }
    }

    /// PDUs dropped for one reason.
    pub fn drops(&self, reason: SmppDrop) -> u64 {
        self.drops.get(reason as usize).copied().unwrap_or(0)
    }

    /// Requests and responses received, by name of the operation; "other" is every other id.
    pub fn by_command(&self) -> impl Iterator<Item = (&'static str, u64, u64)> {
        let names = COMMANDS.iter().map(|it| it.name().unwrap_or("other")).chain(["other"]);
        names.zip(self.requests.iter().zip(&self.responses)).map(|(name, (a, b))| (name, *a, *b))
    }
}

/// Operations that are counted by themselves.
pub const COMMANDS: [Command; 17] = [
    Command::BIND_RECEIVER,
    Command::BIND_TRANSMITTER,
    Command::QUERY_SM,
    Command::SUBMIT_SM,
    Command::DELIVER_SM,
    Command::UNBIND,
    Command::REPLACE_SM,
    Command::CANCEL_SM,
    Command::BIND_TRANSCEIVER,
    Command::OUTBIND,
    Command::ENQUIRE_LINK,
    Command::SUBMIT_MULTI,
    Command::ALERT_NOTIFICATION,
    Command::DATA_SM,
    Command::BROADCAST_SM,
    Command::QUERY_BROADCAST_SM,
    Command::CANCEL_BROADCAST_SM,
];

/// Position in [`COMMANDS`].
const fn index(request: Command) -> usize {
    match request.0 {
        it @ 1..=9 => it as usize - 1,
        0x0b => 9,
        0x15 => 10,
        0x21 => 11,
        0x102 => 12,
        0x103 => 13,
        0x111 => 14,
        0x112 => 15,
        0x113 => 16,
        _ => COMMANDS.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_its_row() {
        for (position, command) in COMMANDS.into_iter().enumerate() {
            assert_eq!(index(command), position, "{command:?}");
            assert!(command.name().is_some(), "{command:?}");
        }
        for id in [0, 0x0a, 0x16, 0x101, 0x104, 0x110, 0x114, 0x7fff_ffff] {
            assert_eq!(index(Command(id)), COMMANDS.len(), "{id:#x}");
        }
        let mut it = SmppCounters::default();
        it.received(Command::SUBMIT_SM);
        it.received(Command::SUBMIT_SM.response());
        it.received(Command(0x7777));
        it.received(Command::GENERIC_NACK);
        let rows: Vec<_> = it.by_command().filter(|it| it.1 + it.2 > 0).collect();
        assert_eq!(rows, [("submit_sm", 1, 1), ("other", 1, 0)]);
        assert_eq!(it.nacks, 1);
    }

    #[test]
    fn shards_add_up() {
        let server = SocketAddr::new([127, 0, 0, 1].into(), 1);
        let mut one = SmppCounters { sessions: 3, providers: 3, ..SmppCounters::default() };
        one.received(Command::SUBMIT_SM);
        one.dropped(SmppDrop::State);
        one.servers.push((server, 2));
        let mut sum = SmppCounters::default();
        sum.merge(&one);
        sum.merge(&one);
        assert_eq!((sum.active_connections(), sum.drops(SmppDrop::State)), (12, 2));
        assert_eq!((sum.requests[3], &sum.servers[..]), (2, &[(server, 4)][..]));
        sum.mux = true;
        assert_eq!(sum.active_connections(), 7);
        assert_eq!(SmppCounters { mux: true, ..SmppCounters::default() }.active_connections(), 0);
    }
}
