//! The listeners of a pump: who comes in, within limits, and how the relay hears of it.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::time::Duration;

use socket2::Socket;

use super::lines::{LineId, Phase, timer_of};
use super::{DOOR, Driven, Lent, Pump};
use crate::census::Most;
use crate::clock::TimerId;
use crate::layers::Layers;
use crate::logs;
use crate::sys;

/// A listener of a pump on one shard.
pub struct Door {
    /// Where it listens.
    pub socket: Socket,
    /// Connections are inside TLS.
    pub is_secure: bool,
    rhythm: Rhythm,
}

impl Door {
    /// Nobody has come yet.
    pub fn new(socket: Socket, is_secure: bool) -> Door {
        Door { socket, is_secure, rhythm: Rhythm { share: 1, streak: 0 } }
    }
}

/// How many clients to expect at once: twice as many when that many came often in a row, half as many
/// when they did not.
#[derive(Clone, Copy, Debug)]
struct Rhythm {
    share: usize,
    streak: u32,
}

impl Rhythm {
    fn found_all(&mut self) {
        self.streak += 1;
        if self.streak >= STREAK {
            (self.share, self.streak) = ((self.share * 2).min(ACCEPTS_PER_TURN), 0);
        }
    }

    fn found_nobody(&mut self) {
        (self.share, self.streak) = ((self.share / 2).max(1), 0);
    }
}

impl<R: Driven> Pump<R> {
    /// Takes in who is waiting, up to a turn's share: as many as mostly wait, since a call that finds nobody
    /// is wasted and the listener rings again for who is left over. `takes_all`: it will not ring again.
    pub(super) fn accept(&mut self, lent: &mut Lent<'_>, door: u8, takes_all: bool) {
        let Some(it) = self.doors.get(usize::from(door)) else { return };
        let (fd, share) = (it.socket.as_raw_fd(), it.rhythm.share);
        for _ in 0..if takes_all { ACCEPTS_PER_TURN } else { share } {
            match sys::accept(fd) {
                Ok((socket, Some(peer))) => self.welcome(lent, door, socket.into(), peer),
                Ok((_, None)) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if let Some(it) = self.doors.get_mut(usize::from(door)) {
                        it.rhythm.found_nobody();
                    }
                    return;
                }
                Err(error) if sys::is_exhaustion(&error) => {
                    self.figures.shortages += 1;
                    logs::shortage(lent.now, "Nobody is accepted on HTTP or SMPP", &error);
                    // The kernel would report the listener again at once, for ever.
                    lent.epoll.remove(fd);
                    self.lines.wheel.arm(TimerId(door.into()), lent.now + ACCEPT_PAUSE);
                    return;
                }
                Err(_) => {}
            }
        }
        if let Some(it) = self.doors.get_mut(usize::from(door)) {
            it.rhythm.found_all();
        }
    }

    fn welcome(&mut self, lent: &mut Lent<'_>, door: u8, socket: TcpStream, peer: SocketAddr) {
        let source = self.relay.source_connections_max();
        let most = Most { all: lent.tuning.connections_max, source };
        let limited = (source > 0).then(|| peer.ip());
        let place = match self.census.admit(limited, most) {
            Ok(place) => place,
            Err(why) => {
                self.figures.refused += 1;
                logs::refused(lent.now, self.protocol, why, peer.ip());
                return self.relay.refused(why);
            }
        };
        let is_secure = self.doors.get(usize::from(door)).is_some_and(|it| it.is_secure);
        let is_secure = is_secure && !self.relay.reads_preface();
        let layers = match (is_secure, lent.security) {
            (false, _) => None,
            (true, Some(security)) => {
                Layers::tls_server(Arc::clone(security.stream_server(self.protocol))).ok()
            }
            (true, None) => None,
        };
        if is_secure && layers.is_none() {
            self.figures.tls_failed += 1;
            return;
        }
        let phase = if is_secure { Phase::Securing } else { Phase::Open };
        let Some(id) = self.lines.insert(socket, peer, Some(door), phase, layers) else { return };
        if let Some(line) = self.lines.find(id) {
            line.place = Some(place);
        }
        self.enter(lent, id, door);
    }

    /// Watches a line that a client has opened, and tells the relay; inside TLS once that is up.
    pub(super) fn enter(&mut self, lent: &Lent<'_>, id: LineId, door: u8) {
        let (_, mut hand, _) = self.both(lent);
        if !hand.watch(id) {
            self.lines.remove(id);
            return;
        }
        if self.lines.find(id).is_some_and(|it| it.phase == Phase::Open) {
            self.introduce(lent, id, door);
        } else {
            self.lines.wheel.arm(timer_of(id), lent.now + lent.tuning.handshake_time);
        }
    }

    /// Tells the relay of a line that a client has opened.
    pub(super) fn introduce(&mut self, lent: &Lent<'_>, id: LineId, door: u8) {
        let Some(peer) = self.lines.find(id).map(|it| it.peer) else { return };
        let conn = self
            .guarded(lent, |relay, hand, _| relay.handle_open(lent.now, door.into(), peer, hand));
        match conn.flatten() {
            Some(conn) => self.lines.bind(id, conn),
            None => drop(self.lines.remove(id)),
        }
    }

    /// A listener has rested.
    pub(super) fn reopen(&mut self, lent: &Lent<'_>, door: u8) {
        let Some(it) = self.doors.get(usize::from(door)).filter(|_| !self.is_stopping) else {
            return;
        };
        let token = self.token | u64::from(door) | DOOR;
        if lent.epoll.add(it.socket.as_raw_fd(), token, libc::EPOLLIN).is_err() {
            self.lines.wheel.arm(TimerId(door.into()), lent.now + ACCEPT_PAUSE);
        }
    }
}

const ACCEPTS_PER_TURN: usize = 64;
/// A wasted call in so many turns tells how many more wait.
const STREAK: u32 = 16;
/// How long a listener rests when descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_door_expects_as_many_as_mostly_come() {
        let mut it = Door::new(
            Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap(),
            false,
        )
        .rhythm;
        let mut shares = Vec::new();
        for _ in 0..8 {
            (0..STREAK).for_each(|_| it.found_all());
            shares.push(it.share);
        }
        assert_eq!(shares, [2, 4, 8, 16, 32, 64, 64, 64]);
        it.found_nobody();
        assert_eq!((it.share, it.streak), (32, 0));
        (0..9).for_each(|_| it.found_nobody());
        assert_eq!(it.share, 1, "somebody has rung");
    }
}
