//! Connections of the statistics port: accept, read one request, write one answer, close.
//!
//! Lives on the control thread's epoll set and never blocks it. Everything is bounded: connections,
//! bytes (`admin.rs`) and the time that each step may take.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use protocols::time::Time;
use socket2::{Domain, Socket, Type};

use crate::admin::{self, Command, Credentials, Request, Response};
use crate::sys::is_exhaustion;

/// One connection, as long as it is open; numbers are not used twice.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Connection(u64);

/// The port and its connections.
#[derive(Debug)]
pub struct Server {
    listener: Option<TcpListener>,
    address: SocketAddr,
    open: BTreeMap<Connection, Open>,
    opened: u64,
    /// Nothing could be accepted: when to try again.
    paused: Option<Time>,
    /// It was said since something could.
    is_pause_logged: bool,
}

#[derive(Debug)]
struct Open {
    stream: TcpStream,
    phase: Phase,
    deadline: Time,
    is_head: bool,
}

#[derive(Debug)]
enum Phase {
    Reading {
        received: Vec<u8>,
    },
    /// The command is being carried out.
    Waiting,
    Writing {
        bytes: Vec<u8>,
        sent: usize,
    },
    /// Answered. What the peer still sends is read away: closing over unread bytes resets the
    /// connection, and the reset may overtake the answer.
    Lingering,
}

impl Server {
    /// Listens on every address of the host, IPv6 included if there is any; port 0 takes a free one.
    ///
    /// # Errors
    ///
    /// What the kernel says, such as `AddrInUse`: the operator has to change `statisticPort`.
    pub fn bind(port: u16, epoll: &Epoll) -> std::io::Result<Server> {
        let listener = listen(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)).or_else(
            |error| match error.kind() {
                ErrorKind::AddrInUse | ErrorKind::PermissionDenied => Err(error),
                _ => listen(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port)),
            },
        )?;
        epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
        let address = listener.local_addr()?;
        Ok(Server {
            listener: Some(listener),
            address,
            open: BTreeMap::new(),
            opened: 0,
            paused: None,
            is_pause_logged: false,
        })
    }

    /// Bound address.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes the port; open connections get their answers.
    pub fn stop_listening(&mut self) {
        self.listener = None;
    }

    /// Whether `token` of an epoll event belongs here.
    pub const fn owns(token: u64) -> bool {
        token >= LISTENER
    }

    /// An epoll event with a token of ours. Returns the command that became complete, if any; it is
    /// owed a [`Server::respond`].
    pub fn handle_ready(
        &mut self,
        now: Time,
        token: u64,
        epoll: &Epoll,
        credentials: &Credentials,
    ) -> Option<(Connection, Command)> {
        if token == LISTENER {
            self.accept(now, epoll);
            return None;
        }
        let id = Connection(token);
        let open = self.open.get_mut(&id)?;
        let outcome = open.advance(now, credentials);
        self.settle(id, outcome, epoll)
    }

    /// Sends the answer of a command. Does nothing if the peer has gone.
    pub fn respond(&mut self, now: Time, id: Connection, response: &Response, epoll: &Epoll) {
        let Some(open) = self.open.get_mut(&id) else { return };
        let outcome = open.write(now, response);
        self.settle(id, outcome, epoll);
    }

    /// When [`Server::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.open.values().map(|it| it.deadline).chain(self.paused).min()
    }

    /// Closes connections that took too long, and looks whether more can be accepted again.
    pub fn handle_timeout(&mut self, now: Time, epoll: &Epoll) {
        self.open.retain(|_, it| it.deadline > now);
        if self.paused.is_some_and(|it| it <= now) {
            self.paused = None;
            self.listen_for(EpollFlags::EPOLLIN, epoll);
        }
    }

    fn listen_for(&self, flags: EpollFlags, epoll: &Epoll) {
        if let Some(listener) = &self.listener {
            let _ = epoll.modify(listener, &mut EpollEvent::new(flags, LISTENER));
        }
    }

    /// Out of files, for example. The listener would ring without end.
    fn pause(&mut self, now: Time, error: &std::io::Error, epoll: &Epoll) {
        if !std::mem::replace(&mut self.is_pause_logged, true) {
            log::warn!("The statistics port accepts nobody for now: {error}");
        }
        self.paused = Some(now + ACCEPT_PAUSE);
        self.listen_for(EpollFlags::empty(), epoll);
    }

    /// Whether every answer has been sent.
    pub fn is_quiet(&self) -> bool {
        !self.open.values().any(|it| matches!(it.phase, Phase::Waiting | Phase::Writing { .. }))
    }

    fn accept(&mut self, now: Time, epoll: &Epoll) {
        for _ in 0..ACCEPTS_PER_TURN {
            let Some(listener) = &self.listener else { return };
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if is_exhaustion(&error) => return self.pause(now, &error, epoll),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => continue,
            };
            self.is_pause_logged = false;
            if self.open.len() >= CONNECTIONS_MAX || stream.set_nonblocking(true).is_err() {
                continue; // Closed by dropping it.
            }
            self.opened += 1;
            let id = Connection(LISTENER + self.opened);
            if epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, id.0)).is_ok() {
                let phase = Phase::Reading { received: Vec::new() };
                let deadline = now + REQUEST_TIME_MAX;
                self.open.insert(id, Open { stream, phase, deadline, is_head: false });
            }
        }
    }

    fn settle(
        &mut self,
        id: Connection,
        outcome: Outcome,
        epoll: &Epoll,
    ) -> Option<(Connection, Command)> {
        let (wanted, command) = match outcome {
            Outcome::Read => (EpollFlags::EPOLLIN, None),
            Outcome::Write => (EpollFlags::EPOLLOUT, None),
            Outcome::Command(command) => (EpollFlags::empty(), Some((id, command))),
            Outcome::Close => {
                self.open.remove(&id);
                return None;
            }
        };
        let open = self.open.get(&id)?;
        if epoll.modify(open.stream.as_fd(), &mut EpollEvent::new(wanted, id.0)).is_err() {
            self.open.remove(&id);
            return None;
        }
        command
    }
}

enum Outcome {
    Read,
    Write,
    Command(Command),
    Close,
}

impl Open {
    fn advance(&mut self, now: Time, credentials: &Credentials) -> Outcome {
        match &mut self.phase {
            Phase::Reading { received } => {
                let before = received.len();
                match read_some(&mut self.stream, Some(received)) {
                    Ok(true) => {}
                    Ok(false) if received.len() > before => {}
                    Ok(false) | Err(()) => return Outcome::Close,
                }
                self.is_head = received.starts_with(b"HEAD ");
                match admin::read(received, credentials) {
                    Request::More => Outcome::Read,
                    Request::Refused(response) => self.write(now, &response),
                    Request::Command(command) => {
                        self.phase = Phase::Waiting;
                        self.deadline = now + ANSWER_TIME_MAX;
                        Outcome::Command(command)
                    }
                }
            }
            // Nothing was asked of epoll, so this is an error or a hang-up.
            Phase::Waiting => Outcome::Close,
            Phase::Writing { .. } => self.flush(now),
            Phase::Lingering => match read_some(&mut self.stream, None) {
                Ok(true) => Outcome::Read,
                Ok(false) | Err(()) => Outcome::Close,
            },
        }
    }

    fn write(&mut self, now: Time, response: &Response) -> Outcome {
        let mut bytes = response.to_bytes();
        if self.is_head {
            bytes.truncate(bytes.len() - response.body.len());
        }
        self.phase = Phase::Writing { bytes, sent: 0 };
        self.deadline = now + ANSWER_TIME_MAX;
        self.flush(now)
    }

    fn flush(&mut self, now: Time) -> Outcome {
        let Phase::Writing { bytes, sent } = &mut self.phase else { return Outcome::Close };
        while let Some(rest) = bytes.get(*sent..).filter(|it| !it.is_empty()) {
            match self.stream.write(rest) {
                Ok(0) => return Outcome::Close,
                Ok(count) => *sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Outcome::Write,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Outcome::Close,
            }
        }
        if self.stream.shutdown(std::net::Shutdown::Write).is_err() {
            return Outcome::Close;
        }
        self.phase = Phase::Lingering;
        self.deadline = now + LINGER_TIME_MAX;
        Outcome::Read
    }
}

/// Reads what is there, at most a few buffers of it. `Ok(false)` at the end of the stream.
fn read_some(stream: &mut TcpStream, mut keep: Option<&mut Vec<u8>>) -> Result<bool, ()> {
    let mut buffer = [0; 4096];
    for _ in 0..READS_PER_TURN {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(false),
            Ok(count) => {
                if let (Some(keep), Some(bytes)) = (&mut keep, buffer.get(..count)) {
                    keep.extend_from_slice(bytes);
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return Err(()),
        }
    }
    Ok(true)
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Token of the port; those of the connections follow. Smaller ones are others'.
const LISTENER: u64 = 1 << 40;
/// Scrapers, a keepalived on each side, and people: a few at a time.
const CONNECTIONS_MAX: usize = 64;
const ACCEPTS_PER_TURN: usize = 16;
/// One turn takes a whole request of the largest size.
const READS_PER_TURN: usize = (admin::HEAD_BYTES_MAX + admin::BODY_BYTES_MAX) / 4096 + 1;
const BACKLOG: i32 = 128;
/// Between two looks whether there are files again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);
const REQUEST_TIME_MAX: Duration = Duration::from_secs(5);
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);
const LINGER_TIME_MAX: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::epoll::EpollCreateFlags;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Instant;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// A server that answers every command with its name, on a thread of its own until `is_over`.
    fn serve(
        is_over: impl Fn(&Server) -> bool + Send + 'static,
    ) -> (SocketAddr, std::thread::JoinHandle<Server>) {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        let mut server = Server::bind(0, &epoll).unwrap();
        let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), server.address().port());
        let thread = std::thread::spawn(move || {
            let start = Instant::now();
            while !is_over(&server) {
                assert!(start.elapsed() < PATIENCE, "{:?}", server.open);
                let mut events = [EpollEvent::empty(); 8];
                let count = epoll.wait(&mut events, 5_u16).unwrap();
                let now = Time::ZERO + start.elapsed();
                for event in &events[..count] {
                    let credentials = Credentials::default();
                    let ready = server.handle_ready(now, event.data(), &epoll, &credentials);
                    if let Some((id, command)) = ready {
                        let mut text = format!("{command:?}");
                        if command == Command::Info {
                            text = "x".repeat(5_000_000); // more than any socket buffer
                        }
                        server.respond(now, id, &Response::text(200, text), &epoll);
                    }
                }
                server.handle_timeout(now, &epoll);
            }
            server
        });
        (address, thread)
    }

    fn talk(to: SocketAddr, pieces: &[&[u8]]) -> String {
        let mut stream = TcpStream::connect(to).unwrap();
        for piece in pieces {
            stream.write_all(piece).unwrap();
            std::thread::sleep(Duration::from_millis(10));
        }
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        String::from_utf8(answer).unwrap()
    }

    #[test]
    fn requests_are_answered_and_connections_closed() {
        let over = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&over);
        let (to, server) = serve(move |it| told.load(Ordering::Relaxed) && it.open.is_empty());
        let answer = talk(to, &[b"GET /lbstat HT", b"TP/1.1\r\n\r\n"]);
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("Connection: close\r\n") && answer.ends_with("\r\n\r\nStat"));
        assert!(talk(to, &[b"HEAD /lbstat HTTP/1.1\r\n\r\n"]).ends_with("\r\n\r\n"));
        let large = talk(to, &[b"GET /lbinfo HTTP/1.1\r\n\r\n"]);
        assert_eq!(large.split_once("\r\n\r\n").unwrap().1.len(), 5_000_000);
        // Refused in the middle of its body: the answer still arrives.
        let flood = vec![b'a'; 300_000];
        let head = b"POST /lbexplain HTTP/1.1\r\nContent-Length: 300000\r\n\r\n";
        assert!(talk(to, &[head, &flood]).starts_with("HTTP/1.1 413 "));
        over.store(true, Ordering::Relaxed);
        server.join().unwrap();
    }

    #[test]
    fn connections_are_few_and_short() {
        let over = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&over);
        let (to, server) = serve(move |_| told.load(Ordering::Relaxed));
        let idle: Vec<TcpStream> =
            (0..CONNECTIONS_MAX + 10).map(|_| TcpStream::connect(to).unwrap()).collect();
        let mut last = idle.last().unwrap();
        last.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(last.read(&mut [0; 1]).unwrap(), 0, "one too many is closed");
        over.store(true, Ordering::Relaxed);
        let mut server = server.join().unwrap();
        assert_eq!(server.open.len(), CONNECTIONS_MAX);
        let deadline = server.poll_timeout().unwrap();
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        server.handle_timeout(deadline + REQUEST_TIME_MAX, &epoll);
        assert!(server.open.is_empty());
    }
}
