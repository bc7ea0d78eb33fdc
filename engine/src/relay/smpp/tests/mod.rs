//! The relay without sockets: a recorder for a wire, a virtual clock, PDUs by hand.

mod cells;
mod hostile;
mod mux;
mod regular;
mod soak;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use protocols::smpp::pdu::{Frame, Pdu, frame};
use protocols::smpp::session::ServerState;
use protocols::smpp::{Command, Status};
use protocols::time::Time;

use super::leg::Leg;
use super::{PLAIN_LISTENER, Smpp, SmppSettings};
use crate::config::Config;
use crate::relay::stream::{Conn, Gone, Progress, Room, Secure, StreamRelay, Wire};
use crate::snapshot::Snapshot;

/// What the relay did, in order.
#[derive(Default)]
pub(super) struct Recorder {
    pub(super) received: BTreeMap<Conn, Vec<u8>>,
    pub(super) connecting: Vec<(Conn, SocketAddr, Secure)>,
    pub(super) closed: Vec<Conn>,
    pub(super) paused: BTreeSet<Conn>,
    pub(super) resumed: Vec<Conn>,
    /// Peers that do not read.
    pub(super) full: BTreeSet<Conn>,
}

impl Wire for Recorder {
    fn send(&mut self, conn: Conn, bytes: &[u8]) -> Room {
        assert!(!self.closed.contains(&conn), "sent on a closed connection");
        self.received.entry(conn).or_default().extend_from_slice(bytes);
        if self.full.contains(&conn) { Room::Full } else { Room::Free }
    }

    fn sent_bytes(&mut self, conn: Conn) -> u64 {
        self.received.get(&conn).map_or(0, |it| it.len() as u64)
    }

    fn connect(&mut self, conn: Conn, to: SocketAddr, secure: Secure) {
        self.connecting.push((conn, to, secure));
    }

    fn progress(&mut self, _conn: Conn) -> Progress {
        Progress::default()
    }

    fn pause(&mut self, conn: Conn) {
        assert!(self.paused.insert(conn), "paused twice");
    }

    fn resume(&mut self, conn: Conn) {
        assert!(self.paused.remove(&conn), "resumed what was not paused");
        self.resumed.push(conn);
    }

    fn secure(&mut self, _conn: Conn) {}

    fn count_for(&mut self, _conn: Conn, _source: IpAddr, _most: usize) -> bool {
        true
    }

    fn end(&mut self, conn: Conn) {
        self.close(conn);
    }

    fn close(&mut self, conn: Conn) {
        assert!(!self.closed.contains(&conn), "closed twice");
        self.closed.push(conn);
        self.connecting.retain(|it| it.0 != conn);
    }

    fn hang_up(&mut self, conn: Conn) {
        self.close(conn);
    }

    fn abort(&mut self, conn: Conn) {
        self.close(conn);
    }
}

/// A relay and its surroundings.
pub(super) struct World {
    pub(super) smpp: Smpp,
    pub(super) wire: Recorder,
    pub(super) now: Time,
    pub(super) snapshot: Snapshot,
    /// Received by the shard and not consumed.
    pub(super) unread: BTreeMap<(u32, u32), Vec<u8>>,
    /// Who shut its side down.
    ended: BTreeSet<Conn>,
}

impl World {
    pub(super) fn new(change: impl FnOnce(&mut SmppSettings)) -> World {
        let servers = [1, 2, 3].map(server).to_vec();
        let mut settings = SmppSettings::new(&Config::default(), servers, 0, 1);
        change(&mut settings);
        World {
            smpp: Smpp::new(settings),
            wire: Recorder::default(),
            now: Time::from_millis(1000),
            snapshot: Snapshot::default(),
            unread: BTreeMap::new(),
            ended: BTreeSet::new(),
        }
    }

    /// Everything shared, receipts routed.
    pub(super) fn mux(change: impl FnOnce(&mut SmppSettings)) -> World {
        let mut config = Config::default();
        config.smpp.mux = true;
        let servers = [1, 2, 3].map(server).to_vec();
        World::new(|it| {
            *it = SmppSettings::new(&config, servers, 0, 1);
            change(it);
        })
    }

    /// An ESME connects.
    pub(super) fn open(&mut self) -> Conn {
        self.open_at(PLAIN_LISTENER)
    }

    pub(super) fn open_at(&mut self, listener: usize) -> Conn {
        let source = SocketAddr::new([192, 0, 2, 9].into(), 40_000);
        let conn = self.smpp.handle_open(self.now, listener, source, &mut self.wire);
        conn.expect("there is room")
    }

    /// A peer sends.
    pub(super) fn say(&mut self, conn: Conn, bytes: &[u8]) {
        if self.wire.closed.contains(&conn) {
            return;
        }
        self.unread.entry(key(conn)).or_default().extend_from_slice(bytes);
        self.offer(conn);
        self.resumed();
    }

    fn offer(&mut self, conn: Conn) {
        if self.wire.paused.contains(&conn) || self.wire.closed.contains(&conn) {
            return;
        }
        let Some(bytes) = self.unread.get_mut(&key(conn)) else { return };
        let World { smpp, wire, now, snapshot, .. } = self;
        let used = smpp.handle_bytes(*now, conn, bytes, snapshot, wire);
        bytes.drain(..used);
    }

    fn resumed(&mut self) {
        while let Some(conn) = self.wire.resumed.pop() {
            self.offer(conn);
        }
    }

    /// What a peer got since it was asked last, PDU by PDU.
    pub(super) fn heard(&mut self, conn: Conn) -> Vec<Said> {
        let bytes = self.wire.received.remove(&conn).unwrap_or_default();
        let mut rest = &bytes[..];
        let mut said = Vec::new();
        while let Ok(Frame::Pdu(pdu)) = frame(rest) {
            said.push(Said::of(pdu));
            rest = &rest[pdu.bytes().len()..];
        }
        assert!(rest.is_empty(), "half a PDU was sent");
        said
    }

    /// The one PDU that a peer got.
    pub(super) fn heard_one(&mut self, conn: Conn) -> Said {
        let mut said = self.heard(conn);
        assert_eq!(said.len(), 1, "{said:?}");
        said.remove(0)
    }

    /// The servers that are being connected, which now accept.
    pub(super) fn accept(&mut self) -> Vec<(Conn, u16)> {
        let connecting = std::mem::take(&mut self.wire.connecting);
        for (conn, ..) in &connecting {
            self.smpp.handle_connected(self.now, *conn, &mut self.wire);
        }
        connecting.into_iter().map(|(conn, to, _)| (conn, to.port() - 10_000)).collect()
    }

    /// A connection is lost.
    pub(super) fn lose(&mut self, conn: Conn, why: Gone) {
        self.wire.paused.remove(&conn);
        self.wire.connecting.retain(|it| it.0 != conn);
        self.wire.received.remove(&conn);
        self.wire.closed.push(conn);
        self.unread.remove(&key(conn));
        self.smpp.handle_gone(self.now, conn, why, &self.snapshot, &mut self.wire);
        self.resumed();
    }

    /// A peer sends no more.
    pub(super) fn end(&mut self, conn: Conn) {
        self.ended.insert(conn);
        self.smpp.handle_end(self.now, conn, &self.snapshot, &mut self.wire);
        self.resumed();
    }

    /// A peer reads again.
    pub(super) fn drain(&mut self, conn: Conn) {
        self.wire.full.remove(&conn);
        self.smpp.handle_drained(self.now, conn, &mut self.wire);
        self.resumed();
    }

    /// Time goes by, timer for timer.
    pub(super) fn pass(&mut self, duration: Duration) {
        let end = self.now + duration;
        while let Some(due) = self.smpp.poll_timeout().filter(|it| *it <= end) {
            self.now = self.now.max(due);
            self.smpp.handle_timeout(self.now, &self.snapshot, &mut self.wire);
            assert!(self.smpp.poll_timeout().is_none_or(|it| it > self.now), "a timer stays due");
            self.resumed();
        }
        self.now = end;
    }

    pub(super) fn pass_millis(&mut self, millis: u64) {
        self.pass(Duration::from_millis(millis));
    }

    /// The process stands still, and goes on.
    pub(super) fn stand_still(&mut self, millis: u64) {
        self.now += Duration::from_millis(millis);
        self.pass(Duration::ZERO);
    }

    pub(super) fn is_closed(&self, conn: Conn) -> bool {
        self.wire.closed.contains(&conn)
    }

    pub(super) fn state(&self, conn: Conn) -> Option<ServerState> {
        match self.smpp.legs.get(conn) {
            Some(Leg::Session(it)) => Some(it.state),
            _ => None,
        }
    }

    /// An ESME that is bound in regular mode, with its SMSC connection and that one's number.
    pub(super) fn bound(&mut self) -> (Conn, Conn, u16) {
        let esme = self.open();
        self.say(esme, &bind(Command::BIND_TRANSCEIVER, 7, "secret"));
        let [(smsc, number)] = self.accept()[..] else { panic!("one connection") };
        let sent = self.heard_one(smsc);
        assert_eq!((sent.command, sent.sequence), (Command::BIND_TRANSCEIVER, 1));
        self.say(smsc, &response(&sent, Status::OK, b"smsc\0"));
        let answer = self.heard_one(esme);
        assert_eq!((answer.command, answer.status, answer.sequence), (BIND_RESP, Status::OK, 7));
        assert_eq!(self.state(esme), Some(ServerState::Bound));
        (esme, smsc, number)
    }

    /// Binds one more ESME in mux mode; the servers that are connected for it accept its credentials.
    pub(super) fn join(&mut self, command: Command) -> (Conn, Vec<(Conn, u16)>) {
        let esme = self.open();
        self.say(esme, &bind(command, 7, "secret"));
        let servers = self.accept();
        for (smsc, _) in &servers {
            let sent = self.heard_one(*smsc);
            assert_eq!(sent.command, Command::BIND_TRANSCEIVER);
            self.say(*smsc, &response(&sent, Status::OK, b"smsc\0"));
        }
        let answer = self.heard_one(esme);
        assert_eq!((answer.command, answer.status), (command.response(), Status::OK));
        assert_eq!(answer.body, b"loadbalancer\0\x02\x10\0\x01\x34", "answered once, by us");
        (esme, servers)
    }
}

/// A PDU as a peer got it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Said {
    pub(super) command: Command,
    pub(super) status: Status,
    pub(super) sequence: u32,
    pub(super) body: Vec<u8>,
}

impl Said {
    fn of(pdu: Pdu<'_>) -> Said {
        Said {
            command: pdu.command(),
            status: pdu.status(),
            sequence: pdu.sequence(),
            body: pdu.body().to_vec(),
        }
    }

    /// What is usually asked of an answer.
    pub(super) fn head(&self) -> (Command, Status, u32) {
        (self.command, self.status, self.sequence)
    }
}

pub(super) fn pdu(command: Command, status: Status, sequence: u32, body: &[u8]) -> Vec<u8> {
    let mut out = u32::try_from(16 + body.len()).unwrap().to_be_bytes().to_vec();
    for word in [command.0, status.0, sequence] {
        out.extend_from_slice(&word.to_be_bytes());
    }
    out.extend_from_slice(body);
    out
}

pub(super) fn request(command: Command, sequence: u32, body: &[u8]) -> Vec<u8> {
    pdu(command, Status::OK, sequence, body)
}

pub(super) fn response(to: &Said, status: Status, body: &[u8]) -> Vec<u8> {
    pdu(to.command.response(), status, to.sequence, body)
}

pub(super) fn bind(command: Command, sequence: u32, password: &str) -> Vec<u8> {
    let body = format!("RestComm\0{password}\0\0\x34\x01\x01\0");
    request(command, sequence, body.as_bytes())
}

/// Body of a short message.
pub(super) fn message(esm_class: u8, text: &[u8]) -> Vec<u8> {
    let mut body = b"\0\x03\x0040404\0\x01\x0144555519205\0".to_vec();
    body.push(esm_class);
    body.extend_from_slice(b"\0\0\0\0\x01\0\0\0");
    body.push(u8::try_from(text.len()).unwrap());
    body.extend_from_slice(text);
    body
}

pub(super) fn submit(sequence: u32) -> Vec<u8> {
    request(Command::SUBMIT_SM, sequence, &message(0, b"Hello world!"))
}

pub(super) fn deliver(sequence: u32, text: &str) -> Vec<u8> {
    request(Command::DELIVER_SM, sequence, &message(0, text.as_bytes()))
}

pub(super) fn server(number: u16) -> SocketAddr {
    SocketAddr::new([127, 0, 0, 1].into(), 10_000 + number)
}

fn key(conn: Conn) -> (u32, u32) {
    (conn.slot, conn.generation)
}

pub(super) const BIND_RESP: Command = Command::BIND_TRANSCEIVER.response();
pub(super) const SUBMIT_RESP: Command = Command::SUBMIT_SM.response();
pub(super) const DELIVER_RESP: Command = Command::DELIVER_SM.response();
pub(super) const UNBIND_RESP: Command = Command::UNBIND.response();
pub(super) const ENQUIRE_RESP: Command = Command::ENQUIRE_LINK.response();
