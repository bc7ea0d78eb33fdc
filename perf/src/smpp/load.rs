//! Both ends of all sessions in one thread that never sleeps: ESMEs that submit, SMSCs that answer at once.
//!
//! What came in one read leaves in one write, on both sides, so that the ends are not the limit. Numbers
//! are not checked one by one: a test does that; here every response must belong to some request.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use protocols::smpp::body::Bind;
use protocols::smpp::pdu::{Frame, frame, write_bind};
use protocols::smpp::{Command, Status};

/// How requests are submitted.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pace {
    /// Each session keeps so many open.
    Window(u32),
    /// So many a second over all sessions, whatever becomes of them.
    Rate(u32),
}

/// What a run did.
#[derive(Debug, Default)]
pub(super) struct Figures {
    /// PDUs that crossed and arrived, both ways.
    pub(super) pdus: u64,
    /// Nanoseconds from when a request was due to its response; paced only.
    latencies: Vec<u64>,
}

impl Figures {
    /// A quantile of the latencies in microseconds.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a figure for people"
    )]
    pub(super) fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let at = (sorted.len() as f64 * share) as usize;
        sorted.get(at.min(sorted.len().saturating_sub(1))).map_or(0.0, |it| *it as f64 / 1e3)
    }
}

/// All sessions and their servers.
pub(super) struct Load {
    epoll: Epoll,
    listeners: Vec<TcpListener>,
    ends: Vec<End>,
    /// Which of them are ESMEs, in the order of their binds.
    clients: Vec<usize>,
    /// Of these, who submits: the rest is idle.
    busy: Range<usize>,
    submitted: u64,
    responses: u64,
    due: Option<Instant>,
    figures: Figures,
    submit: Vec<u8>,
    scratch: Vec<u8>,
}

/// One connection.
struct End {
    socket: TcpStream,
    is_client: bool,
    is_bound: bool,
    received: Vec<u8>,
    unsent: Vec<u8>,
    sequence: u32,
    /// When the open requests were due, oldest first: servers answer in order. Paced only.
    open: VecDeque<Option<Instant>>,
}

impl Load {
    /// Listens as all servers.
    pub(super) fn listen(servers: &[SocketAddr]) -> io::Result<Load> {
        let epoll = Epoll::new(EpollCreateFlags::empty())?;
        let mut listeners = Vec::new();
        for (number, server) in (0..).zip(servers) {
            let listener = TcpListener::bind(server)?;
            listener.set_nonblocking(true)?;
            epoll
                .add(listener.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, LISTENERS + number))?;
            listeners.push(listener);
        }
        Ok(Load {
            epoll,
            listeners,
            ends: Vec::new(),
            clients: Vec::new(),
            busy: 0..0,
            submitted: 0,
            responses: 0,
            due: None,
            figures: Figures::default(),
            submit: submit_sm(),
            scratch: vec![0; 256 * 1024],
        })
    }

    /// Opens and binds so many sessions more; returns which of all they are. The first ones are those that submit.
    pub(super) fn bind(&mut self, to: SocketAddr, count: usize) -> io::Result<Range<usize>> {
        let first = self.clients.len();
        for number in 0..count {
            let socket = TcpStream::connect(to)?;
            let at = self.enter(socket, true)?;
            self.clients.push(at);
            let bind = Bind {
                system_id: b"perf",
                password: b"secret",
                system_type: b"",
                interface_version: 0x34,
                address_ton: 0,
                address_npi: 0,
                address_range: b"",
            };
            if let Some(end) = self.ends.get_mut(at) {
                end.sequence = 1;
                write_bind(Command::BIND_TRANSCEIVER, 1, &bind, &mut end.unsent);
            }
            self.write(at)?;
            // A few at a time: the queue of the listener is short.
            if number % 16 == 15 || number + 1 == count {
                self.until("binds", |it| {
                    it.clients.iter().all(|at| it.ends.get(*at).is_some_and(|it| it.is_bound))
                })?;
            }
        }
        let bound = first..self.clients.len();
        if self.busy.is_empty() {
            self.busy = bound.clone();
        }
        Ok(bound)
    }

    /// From now on these submit, and nobody else.
    pub(super) fn choose(&mut self, sessions: Range<usize>) {
        self.busy = sessions;
    }

    /// Submits for a time. What is open at its end stays open.
    pub(super) fn run(&mut self, pace: Pace, time: Duration) -> io::Result<Figures> {
        self.figures = Figures::default();
        let started = Instant::now();
        self.due = Some(started);
        loop {
            let now = Instant::now();
            if now.duration_since(started) >= time {
                return Ok(std::mem::take(&mut self.figures));
            }
            match pace {
                Pace::Window(window) => self.fill(window)?,
                Pace::Rate(rate) => self.submit_due(now, rate)?,
            }
            self.turn()?;
        }
    }

    /// Waits for the responses that are under way.
    pub(super) fn drain(&mut self) -> io::Result<()> {
        self.until("responses", |it| it.responses == it.submitted)
    }

    /// Requests that got no response.
    pub(super) fn missing(&self) -> u64 {
        self.submitted - self.responses
    }

    fn until(&mut self, what: &str, is_it: impl Fn(&Load) -> bool) -> io::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !is_it(self) {
            if Instant::now() > deadline {
                return Err(io::Error::other(format!("no {what} within {PATIENCE:?}")));
            }
            self.turn()?;
        }
        Ok(())
    }

    fn fill(&mut self, window: u32) -> io::Result<()> {
        for place in self.busy.clone() {
            let Some(at) = self.clients.get(place).copied() else { break };
            let Some(end) = self.ends.get_mut(at) else { continue };
            let count = (window as usize).saturating_sub(end.open.len());
            for _ in 0..count {
                self.submitted += 1;
                end.submit(&self.submit, None);
            }
            if count > 0 {
                self.write(at)?;
            }
        }
        Ok(())
    }

    fn submit_due(&mut self, now: Instant, rate: u32) -> io::Result<()> {
        let gap = Duration::from_secs(1) / rate;
        while let Some(due) = self.due.filter(|it| *it <= now) {
            self.due = Some(due + gap);
            let turn = usize::try_from(self.submitted).unwrap_or(0) % self.busy.len().max(1);
            let Some(at) = self.clients.get(self.busy.start + turn).copied() else { break };
            self.submitted += 1;
            if let Some(end) = self.ends.get_mut(at) {
                end.submit(&self.submit, Some(due));
            }
            self.write(at)?;
        }
        Ok(())
    }

    fn turn(&mut self) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); 128];
        let count = self.epoll.wait(&mut events, EpollTimeout::ZERO).unwrap_or(0);
        for event in events.iter().take(count) {
            match event.data().checked_sub(LISTENERS) {
                Some(number) => self.accept(usize::try_from(number).unwrap_or(usize::MAX))?,
                None => self.read(usize::try_from(event.data()).unwrap_or(usize::MAX))?,
            }
        }
        Ok(())
    }

    fn accept(&mut self, number: usize) -> io::Result<()> {
        while let Some(Ok((socket, _))) = self.listeners.get(number).map(TcpListener::accept) {
            self.enter(socket, false)?;
        }
        Ok(())
    }

    fn enter(&mut self, socket: TcpStream, is_client: bool) -> io::Result<usize> {
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        let at = self.ends.len();
        self.epoll.add(socket.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, at as u64))?;
        self.ends.push(End {
            socket,
            is_client,
            is_bound: false,
            received: Vec::new(),
            unsent: Vec::new(),
            sequence: 0,
            open: VecDeque::new(),
        });
        Ok(at)
    }

    fn read(&mut self, at: usize) -> io::Result<()> {
        let Some(end) = self.ends.get_mut(at) else { return Ok(()) };
        match end.socket.read(&mut self.scratch) {
            // The front's look whether we listen, or its end.
            Ok(0) => self.epoll.delete(end.socket.as_fd())?,
            Ok(count) => {
                end.received.extend_from_slice(self.scratch.get(..count).unwrap_or_default());
                let now = Instant::now();
                let mut used = 0;
                while let Some(rest) = end.received.get(used..) {
                    let Ok(Frame::Pdu(pdu)) = frame(rest) else { break };
                    used += pdu.bytes().len();
                    self.figures.pdus += 1;
                    match pdu.command() {
                        Command::BIND_TRANSCEIVER | Command::SUBMIT_SM | Command::ENQUIRE_LINK => {
                            answer(pdu.command(), pdu.sequence(), &mut end.unsent);
                        }
                        it if it == Command::SUBMIT_SM.response() && end.is_client => {
                            self.responses += 1;
                            if let Some(Some(due)) = end.open.pop_front() {
                                let nanos = now.saturating_duration_since(due).as_nanos();
                                self.figures.latencies.push(u64::try_from(nanos).unwrap_or(0));
                            }
                        }
                        it if it == Command::BIND_TRANSCEIVER.response() => {
                            end.is_bound = pdu.status() == Status::OK;
                        }
                        _ => {}
                    }
                }
                end.received.drain(..used);
                self.write(at)?;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn write(&mut self, at: usize) -> io::Result<()> {
        let Some(end) = self.ends.get_mut(at) else { return Ok(()) };
        while !end.unsent.is_empty() {
            match end.socket.write(&end.unsent) {
                Ok(count) => drop(end.unsent.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl End {
    fn submit(&mut self, template: &[u8], due: Option<Instant>) {
        self.sequence += 1;
        let at = self.unsent.len();
        self.unsent.extend_from_slice(template);
        if let Some(number) = self.unsent.get_mut(at + 12..at + 16) {
            number.copy_from_slice(&self.sequence.to_be_bytes());
        }
        self.open.push_back(due);
    }
}

fn answer(command: Command, sequence: u32, out: &mut Vec<u8>) {
    let body: &[u8] = match command {
        Command::SUBMIT_SM => b"0123456789\0",
        Command::BIND_TRANSCEIVER => b"perf\0",
        _ => b"",
    };
    let length = u32::try_from(16 + body.len()).unwrap_or(0);
    for word in [length, command.response().0, 0, sequence] {
        out.extend_from_slice(&word.to_be_bytes());
    }
    out.extend_from_slice(body);
}

/// A message of 160 characters.
fn submit_sm() -> Vec<u8> {
    let addresses = b"\0\x01\x014915112345678\0\x01\x014915187654321\0";
    let body = [&addresses[..], b"\0\0\0\0\0\x01\0\0\0\xa0", &[b'x'; 160]].concat();
    let length = u32::try_from(16 + body.len()).unwrap_or(0);
    let header = [length, Command::SUBMIT_SM.0, 0, 0].map(u32::to_be_bytes);
    [&header.concat(), body.as_slice()].concat()
}

const LISTENERS: u64 = 1 << 32;
const PATIENCE: Duration = Duration::from_secs(10);
