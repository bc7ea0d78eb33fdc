//! The wire that the wishes of one stream relay go to.
//!
//! A wish is done at once as far as it can be without calling the relay: what it must hear of it waits in
//! a queue until it has returned.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::Arc;
use std::time::Duration;

use engine::relay::stream::{Conn, Gone, Progress, Room, Secure, Wire};
use protocols::time::Time;

use super::lines::{
    Deferred, Line, LineId, Lines, PARTING_STALL_MAX, Phase, QUEUE_BYTES_MAX, timer_of,
};
use crate::census::{Census, Most};
use crate::layers::Layers;
use crate::logs;
use crate::sys::{self, Epoll};
use crate::tcp;
use crate::tls::{Security, StreamProtocol};

/// What a wish needs besides the lines.
#[derive(Clone, Copy)]
pub(super) struct Surroundings<'s> {
    pub(super) now: Time,
    pub(super) epoll: &'s Epoll,
    /// Bits of every token.
    pub(super) token: u64,
    pub(super) security: Option<&'s Security>,
    pub(super) protocol: StreamProtocol,
    /// Where our own connections come from, if it is configured.
    pub(super) source: Option<IpAddr>,
    pub(super) handshake_time: Duration,
    pub(super) census: &'s Arc<Census>,
}

/// The wire that a relay is given.
pub(super) struct Hand<'l, 's> {
    pub(super) lines: &'l mut Lines,
    pub(super) around: Surroundings<'s>,
}

impl Hand<'_, '_> {
    fn line(&mut self, conn: Conn) -> Option<(LineId, &mut Line)> {
        let id = self.lines.of(conn)?;
        self.lines.find(id).map(|line| (id, line))
    }

    /// Watches a new line.
    pub(super) fn watch(&mut self, id: LineId) -> bool {
        let Some(fd) = self.lines.find(id).map(|it| it.socket.as_raw_fd()) else { return false };
        let token = self.around.token | u64::from(id.slot) << 32 | u64::from(id.generation);
        self.around.epoll.add(fd, token, LINE_EVENTS).is_ok()
    }

    fn open(&mut self, conn: Conn, to: SocketAddr, secure: Secure) -> Result<(), Gone> {
        let layers = match secure {
            Secure::No => None,
            Secure::Tls => {
                let security = self.around.security.ok_or(Gone::Shortage)?;
                let config = Arc::clone(security.stream_client(self.around.protocol));
                Some(Layers::tls_client(config, to).map_err(|_| Gone::Shortage)?)
            }
        };
        let any = match to.ip() {
            IpAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
        };
        let source = self.around.source.filter(|it| it.is_ipv4() == to.is_ipv4()).unwrap_or(any);
        let socket = tcp::connect(SocketAddr::new(source, 0), to).map_err(|it| why_not(&it))?;
        let _ = tcp::notice_death(&socket, SERVER_SILENT_MAX); // it serves without, too
        let id = self.lines.insert(socket, to, None, Phase::Connecting, layers);
        let id = id.ok_or(Gone::Shortage)?;
        self.lines.bind(id, conn);
        if !self.watch(id) {
            self.lines.remove(id);
            return Err(Gone::Shortage);
        }
        self.lines.wheel.arm(timer_of(id), self.around.now + CONNECT_TIME_MAX);
        Ok(())
    }
}

impl Wire for Hand<'_, '_> {
    fn send(&mut self, conn: Conn, bytes: &[u8]) -> Room {
        self.send_parts(conn, [bytes, &[]])
    }

    fn send_parts(&mut self, conn: Conn, parts: [&[u8]; 2]) -> Room {
        let Some(id) = self.lines.of(conn) else { return Room::Free };
        let Some(line) = self.lines.find_with_buffer(id) else { return Room::Free };
        if line.is_deaf {
            return Room::Free;
        }
        let bytes: usize = parts.iter().map(|it| it.len()).sum();
        match &mut line.layers {
            Some(layers) => {
                if line.phase != Phase::Open {
                    line.early_bytes += bytes;
                }
                layers.encrypt(parts, &mut line.unsent);
            }
            None => {
                let is_straight = bytes >= STRAIGHT_BYTES_MIN
                    && line.unsent.is_empty()
                    && line.phase == Phase::Open;
                // Errors show when the rest is flushed.
                let mut sent = if is_straight { line.write_parts(parts).unwrap_or(0) } else { 0 };
                for part in parts {
                    line.unsent.extend_from_slice(part.get(sent..).unwrap_or(&[]));
                    sent = sent.saturating_sub(part.len());
                }
            }
        }
        let waiting =
            line.unsent.len() + if line.phase == Phase::Open { 0 } else { line.early_bytes };
        let is_slow = waiting > SLOW_BYTES_MIN;
        let is_full = waiting > QUEUE_BYTES_MAX;
        line.is_full |= is_full;
        self.lines.list(id);
        if is_slow {
            self.lines.cut(id, Gone::Slow);
        }
        if is_full { Room::Full } else { Room::Free }
    }

    fn connect(&mut self, conn: Conn, to: SocketAddr, secure: Secure) {
        if let Err(why) = self.open(conn, to, secure) {
            self.lines.deferred.push_back(Deferred::Gone(conn, why, 0));
        }
    }

    fn sent_bytes(&mut self, conn: Conn) -> u64 {
        match self.lines.gone.filter(|(it, _)| *it == conn) {
            Some((_, bytes)) => bytes,
            None => self.line(conn).map_or(0, |(_, line)| line.sent_bytes),
        }
    }

    fn progress(&mut self, conn: Conn) -> Progress {
        let Some((_, line)) = self.line(conn) else { return Progress::default() };
        let inside = sys::unacknowledged(line.socket.as_fd()).unwrap_or(0);
        Progress {
            acknowledged: line.sent_bytes.saturating_sub(inside),
            left: inside + line.unsent.len() as u64,
        }
    }

    fn pause(&mut self, conn: Conn) {
        if let Some((_, line)) = self.line(conn) {
            line.is_paused = true;
        }
    }

    fn resume(&mut self, conn: Conn) {
        if let Some((_, line)) = self.line(conn)
            && std::mem::replace(&mut line.is_paused, false)
        {
            self.lines.deferred.push_back(Deferred::Resumed(conn));
        }
    }

    fn count_for(&mut self, conn: Conn, source: IpAddr, most: usize) -> bool {
        let census = Arc::clone(self.around.census);
        let Surroundings { now, protocol, .. } = self.around;
        let Some((_, line)) = self.line(conn) else { return false };
        drop(line.place.take());
        let admitted = census.admit(Some(source), Most { all: usize::MAX, source: most });
        if let Err(why) = &admitted {
            logs::refused(now, protocol, *why, source);
        }
        line.place = admitted.ok();
        line.place.is_some()
    }

    fn secure(&mut self, conn: Conn) {
        let config = self.around.security.map(|it| it.stream_server(self.around.protocol));
        let layers = config.and_then(|it| Layers::tls_server(Arc::clone(it)).ok());
        let deadline = self.around.now + self.around.handshake_time;
        let Some((id, line)) = self.line(conn) else { return };
        if layers.is_none() {
            return self.lines.fail(id, Gone::Handshake);
        }
        (line.layers, line.phase) = (layers, Phase::Securing);
        self.lines.wheel.arm(timer_of(id), deadline);
    }

    fn end(&mut self, conn: Conn) {
        let Some((id, line)) = self.line(conn) else { return };
        line.is_ending = true;
        if let Some(layers) = &mut line.layers {
            layers.farewell(0, &mut line.unsent);
        }
        self.lines.list(id);
    }

    fn close(&mut self, conn: Conn) {
        self.part(conn, false);
    }

    fn hang_up(&mut self, conn: Conn) {
        self.part(conn, true);
    }

    fn abort(&mut self, conn: Conn) {
        let Some((id, _)) = self.line(conn) else { return };
        self.lines.reset(id);
    }
}

impl Hand<'_, '_> {
    fn part(&mut self, conn: Conn, hangs_up: bool) {
        let handshake_time = self.around.handshake_time;
        let Some((id, line)) = self.line(conn) else { return };
        line.conn = None;
        line.is_paused = false;
        line.has_more = false;
        line.hangs_up = hangs_up;
        let patience = match line.phase {
            Phase::Open => PARTING_STALL_MAX,
            Phase::Connecting | Phase::Securing => handshake_time,
        };
        let is_up = line.phase != Phase::Connecting;
        if let Some(layers) = line.layers.as_mut().filter(|it| it.is_open()) {
            layers.farewell(0, &mut line.unsent);
        }
        self.lines.unbind(conn, id.slot);
        if is_up {
            self.lines.wheel.arm(timer_of(id), self.around.now + patience);
            self.lines.list(id);
        } else {
            self.lines.remove(id);
        }
    }
}

/// Whether it is the peer or we who cannot: a node must not be blamed for a want of descriptors.
fn why_not(error: &io::Error) -> Gone {
    if tcp::is_shortage(error) { Gone::Shortage } else { Gone::Refused }
}

const LINE_EVENTS: i32 = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET;
/// A relay that goes on all the same loses the connection: more than the longest request that is sent again.
const SLOW_BYTES_MIN: usize = 68 * QUEUE_BYTES_MAX;
/// From here on a system call of its own is cheaper than a copy.
const STRAIGHT_BYTES_MIN: usize = 16 * 1024;
/// A server whose host acknowledges nothing, or that takes nothing, for this long is gone: no time of a relay's
/// that waits for a server to take bytes is longer.
const SERVER_SILENT_MAX: Duration = Duration::from_secs(120);
/// The relays have times of their own, shorter ones; this one bounds what they forget.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(120);
