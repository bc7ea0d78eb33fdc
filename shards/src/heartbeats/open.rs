//! One connection of a node: bytes in, words to the registry, answers out.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use engine::registry::{Heard, Registry};
use engine::stats::Beats;
use log::debug;
use nix::sys::epoll::EpollFlags;
use protocols::heartbeat::json::{self, Command};
use protocols::heartbeat::{jrmp, post};
use protocols::time::Time;

/// A connection, as long as it is open.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) stream: TcpStream,
    peer: SocketAddr,
    talk: Talk,
    out: Vec<u8>,
    sent: usize,
    pub(super) last_heard: Time,
    pub(super) waits_for: EpollFlags,
    /// For writing and lingering; reading has that of the protocol.
    deadline: Time,
}

#[derive(Debug)]
enum Talk {
    Rmi(Box<jrmp::Connection>),
    Json(post::Request),
    /// All is said, not all may be sent. What the peer still sends is read away: closing over unread
    /// bytes resets the connection, and the reset may overtake the answer.
    Over,
}

/// What to wait for.
pub(super) enum Outcome {
    Read,
    Write,
    Close,
}

impl Open {
    pub(super) fn rmi(
        stream: TcpStream,
        peer: SocketAddr,
        connection: jrmp::Connection,
        now: Time,
    ) -> Open {
        Open::new(now, stream, peer, Talk::Rmi(Box::new(connection)))
    }

    pub(super) fn json(now: Time, stream: TcpStream, peer: SocketAddr) -> Open {
        Open::new(now, stream, peer, Talk::Json(post::Request::default()))
    }

    fn new(now: Time, stream: TcpStream, peer: SocketAddr, talk: Talk) -> Open {
        Open {
            stream,
            peer,
            talk,
            out: Vec::new(),
            sent: 0,
            last_heard: now,
            waits_for: EpollFlags::EPOLLIN,
            deadline: now + TIME_MAX,
        }
    }

    /// What it costs.
    pub(super) fn held_bytes(&self) -> usize {
        let unread = match &self.talk {
            Talk::Rmi(it) => it.held_bytes(),
            Talk::Json(it) => it.held_bytes(),
            Talk::Over => 0,
        };
        unread + self.out.len()
    }

    /// When to close it.
    pub(super) fn deadline(&self) -> Time {
        match &self.talk {
            Talk::Rmi(it) if self.out.is_empty() => it.poll_timeout(),
            _ => self.deadline,
        }
    }

    pub(super) fn handle_ready(
        &mut self,
        now: Time,
        registry: &mut Registry,
        figures: &mut Beats,
    ) -> Outcome {
        if !self.out.is_empty() {
            return self.flush();
        }
        self.last_heard = now;
        let mut buffer = [0; READ_BYTES];
        for _ in 0..READS_PER_TURN {
            let bytes = match self.stream.read(&mut buffer) {
                Ok(0) => return Outcome::Close,
                Ok(count) => buffer.get(..count).unwrap_or_default(),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return Outcome::Close,
            };
            let is_short = bytes.len() < READ_BYTES;
            match &mut self.talk {
                Talk::Over => {}
                Talk::Rmi(connection) => {
                    let flow = connection.handle_bytes(now, bytes, &mut self.out);
                    let upkeep = connection.take_upkeep();
                    figures.rmi_pings += u64::from(upkeep.pings);
                    figures.rmi_leases += u64::from(upkeep.leases);
                    figures.rmi_releases += u64::from(upkeep.releases);
                    while let Some(event) = connection.poll_event() {
                        figures.rmi += 1;
                        registry.handle_rmi(now, self.peer.ip(), event);
                    }
                    match flow {
                        Ok(jrmp::Flow::Open) => {}
                        Ok(jrmp::Flow::Close) => self.talk = Talk::Over,
                        Err(why) => {
                            debug!("RMI from {}: {why}", self.peer);
                            figures.malformed += 1;
                            return Outcome::Close;
                        }
                    }
                }
                Talk::Json(request) => {
                    let answered = match request.handle_bytes(bytes) {
                        Ok(None) => None,
                        Ok(Some(body)) => Some(match Command::parse(&body) {
                            Ok(command) => {
                                figures.json += 1;
                                hear(now, self.peer, command, registry)
                            }
                            Err(why) => (400, format!("{why}\n").into_bytes()),
                        }),
                        Err(why) => Some((why.status(), format!("{why}\n").into_bytes())),
                    };
                    if let Some((status, body)) = answered {
                        figures.malformed += u64::from(status != 200);
                        post::answer(status, &body, &mut self.out);
                        self.talk = Talk::Over;
                    }
                }
            }
            if !self.out.is_empty() {
                self.deadline = now + TIME_MAX;
                return self.flush();
            }
            if is_short {
                break;
            }
        }
        Outcome::Read
    }

    fn flush(&mut self) -> Outcome {
        while let Some(rest) = self.out.get(self.sent..).filter(|it| !it.is_empty()) {
            match self.stream.write(rest) {
                Ok(0) => return Outcome::Close,
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Outcome::Write,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Outcome::Close,
            }
        }
        self.out.clear();
        self.sent = 0;
        if matches!(self.talk, Talk::Over) && self.stream.shutdown(Shutdown::Write).is_err() {
            return Outcome::Close;
        }
        Outcome::Read
    }
}

/// Has the registry hear a command; status and body of the answer.
fn hear(now: Time, peer: SocketAddr, command: Command, registry: &mut Registry) -> (u16, Vec<u8>) {
    let name = command.name();
    let mut body = Vec::new();
    match registry.handle_json(now, peer.ip(), command) {
        Heard::Believed => json::answer(name, true, &mut body),
        Heard::Unknown => json::answer(name, false, &mut body),
        Heard::Wrong(why) => return (400, format!("{why}\n").into_bytes()),
    }
    (200, body)
}

/// One request or answer, and the linger behind it.
const TIME_MAX: Duration = Duration::from_secs(5);
const READ_BYTES: usize = 4_096;
const READS_PER_TURN: usize = 4;
