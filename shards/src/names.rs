//! The resolver: names to addresses on a thread of its own, so that no shard ever waits for DNS.
//!
//! What to look up and what it means is [`engine::names::select`]; here are the sockets, the retries
//! (UDP, then TCP if an answer was cut, RFC 7766) and the cache. Every lookup has a socket of its own:
//! the kernel's random port and our random id make answers hard to forge (RFC 5452).

mod files;
mod flight;
mod wire;

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError};
use engine::names::{
    Answer, Kind, Lookup, NEGATIVE_TTL_MAX, Query, Reach, Record, RecordSet, Step, TTL_MAX,
    TTL_MIN, Unresolved, select,
};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

use self::files::Files;
pub use self::files::Sources;
use self::flight::{Flight, Heard, Wire, ask_by_udp, connect_tcp};
use self::wire::Reading;

/// Called on the resolver's thread, once: pass the result on and return.
pub type Reply = Box<dyn FnOnce(Query, Result<Answer, Unresolved>) + Send>;

/// Asks the resolver; one copy for each who asks. The thread ends with the last copy.
#[derive(Clone)]
pub struct Names {
    // Dropped in this order: the thread is woken when the queue has lost a sender.
    requests: Sender<(Wanted, Reply)>,
    wake: Arc<Wake>,
}

struct Wake(Arc<EventFd>);

impl Drop for Wake {
    fn drop(&mut self) {
        let _ = self.0.write(1);
    }
}

impl Names {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// Out of descriptors or threads: the process cannot start.
    pub fn start(sources: Sources) -> std::io::Result<Names> {
        let (requests, queue) = crossbeam_channel::bounded(QUEUE_MAX);
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        let wake = Arc::new(wake);
        let resolver = Resolver {
            sources,
            queue,
            bell: Arc::clone(&wake),
            epoll,
            random: RandomState::new(),
            drawn: 0,
            files: Files::default(),
            files_read: None,
            cache: HashMap::new(),
            resolutions: HashMap::new(),
            flights: HashMap::new(),
            asking: HashMap::new(),
            last: WAKE,
        };
        std::thread::Builder::new().name("names".into()).spawn(move || resolver.run())?;
        Ok(Names { requests, wake: Arc::new(Wake(wake)) })
    }

    /// Resolves `query` to what is within `reach` and calls `reply`. Never blocks; when the queue is full `reply` is called
    /// here and now with [`Unresolved::QueueFull`].
    pub fn ask(
        &self,
        query: Query,
        reach: Reach,
        reply: impl FnOnce(Query, Result<Answer, Unresolved>) + Send + 'static,
    ) {
        match self.requests.try_send(((query, reach), Box::new(reply))) {
            Ok(()) => {
                let _ = self.wake.0.write(1);
            }
            Err(
                TrySendError::Full((wanted, reply)) | TrySendError::Disconnected((wanted, reply)),
            ) => {
                reply(wanted.0, Err(Unresolved::QueueFull));
            }
        }
    }
}

/// What one resolution is for: answers differ by what can be reached.
type Wanted = (Query, Reach);

/// The thread's state.
struct Resolver {
    sources: Sources,
    queue: Receiver<(Wanted, Reply)>,
    bell: Arc<EventFd>,
    epoll: Epoll,
    random: RandomState,
    drawn: u64,
    files: Files,
    files_read: Option<Instant>,
    /// By lookup, with the moment it is forgotten.
    cache: HashMap<Lookup, (RecordSet, Instant)>,
    resolutions: HashMap<Wanted, Resolution>,
    flights: HashMap<u64, Flight>,
    /// Which flight asks for a lookup.
    asking: HashMap<Lookup, u64>,
    last: u64,
}

/// One query on its way, for everyone who asked for it meanwhile.
struct Resolution {
    replies: Vec<Reply>,
    /// Names that are still to be tried; the first is being tried.
    candidates: VecDeque<String>,
    known: HashMap<Lookup, RecordSet>,
    /// Record sets not there yet.
    missing: usize,
    timed_out: bool,
}

impl Resolver {
    fn run(mut self) {
        let mut events = [EpollEvent::empty(); 64];
        loop {
            let timeout = self.flights.values().map(|it| it.deadline).min().map_or(
                EpollTimeout::NONE,
                |at| {
                    // Rounded up: waking early would be a busy loop.
                    let millis = at.saturating_duration_since(Instant::now()).as_millis() + 1;
                    EpollTimeout::from(u16::try_from(millis).unwrap_or(u16::MAX))
                },
            );
            let count = self.epoll.wait(&mut events, timeout).unwrap_or(0);
            for event in events.iter().take(count) {
                if event.data() == WAKE {
                    let _ = self.bell.read();
                    if !self.take_requests() {
                        return;
                    }
                } else {
                    self.handle_ready(event.data());
                }
            }
            self.handle_timeout();
        }
    }

    /// Returns whether there is anyone left to ask.
    fn take_requests(&mut self) -> bool {
        loop {
            match self.queue.try_recv() {
                Ok((wanted, reply)) => self.begin(wanted, reply),
                Err(crossbeam_channel::TryRecvError::Empty) => return true,
                Err(crossbeam_channel::TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn begin(&mut self, wanted: Wanted, reply: Reply) {
        if let Some(resolution) = self.resolutions.get_mut(&wanted) {
            if resolution.replies.len() >= REPLIES_MAX {
                return reply(wanted.0, Err(Unresolved::QueueFull));
            }
            return resolution.replies.push(reply);
        }
        if self.resolutions.len() >= RESOLUTIONS_MAX {
            return reply(wanted.0, Err(Unresolved::QueueFull));
        }
        let now = Instant::now();
        if self.files_read.is_none_or(|it| now.duration_since(it) >= FILES_PERIOD) {
            self.files.refresh(&self.sources);
            self.files_read = Some(now);
        }
        let resolution = Resolution {
            replies: vec![reply],
            candidates: self.files.candidates(&wanted.0.host).into(),
            known: HashMap::new(),
            missing: 0,
            timed_out: false,
        };
        self.resolutions.insert(wanted.clone(), resolution);
        self.proceed(wanted);
    }

    /// Takes a resolution as far as what is known allows.
    fn proceed(&mut self, wanted: Wanted) {
        while let Some(mut resolution) = self.resolutions.remove(&wanted) {
            let (query, reach) = &wanted;
            let host = resolution.candidates.front().unwrap_or(&query.host).clone();
            let candidate = Query { host, ..query.clone() };
            let known = &resolution.known;
            let step = select(&candidate, reach, &|it| known.get(it));
            let result = match step {
                Step::Need(lookups) => match self.obtain(&wanted, &mut resolution, lookups) {
                    Ok(()) if resolution.missing > 0 => {
                        self.resolutions.insert(wanted, resolution);
                        return;
                    }
                    Ok(()) => {
                        self.resolutions.insert(wanted.clone(), resolution);
                        continue;
                    }
                    Err(unresolved) => Err(unresolved),
                },
                Step::Unresolved(Unresolved::NoRecords { .. })
                    if resolution.candidates.len() > 1 =>
                {
                    resolution.candidates.pop_front();
                    self.resolutions.insert(wanted.clone(), resolution);
                    continue;
                }
                Step::Unresolved(Unresolved::NoRecords { .. }) if resolution.timed_out => {
                    Err(Unresolved::Timeout)
                }
                Step::Unresolved(unresolved) => Err(unresolved),
                Step::Done(answer) => Ok(answer),
            };
            for reply in resolution.replies {
                reply(query.clone(), result.clone());
            }
            return;
        }
    }

    /// Record sets from the hosts file, the cache, or a flight.
    fn obtain(
        &mut self,
        wanted: &Wanted,
        resolution: &mut Resolution,
        lookups: Vec<Lookup>,
    ) -> Result<(), Unresolved> {
        let now = Instant::now();
        for lookup in lookups {
            if let Some(set) = self.in_hosts_file(&lookup).or_else(|| self.in_cache(now, &lookup)) {
                resolution.known.insert(lookup, set);
                continue;
            }
            resolution.missing += 1;
            if let Some(flight) =
                self.asking.get(&lookup).and_then(|token| self.flights.get_mut(token))
            {
                flight.wanted_by.push(wanted.clone());
            } else if self.flights.len() >= FLIGHTS_MAX {
                return Err(Unresolved::QueueFull);
            } else {
                self.launch(now, lookup, wanted);
            }
        }
        Ok(())
    }

    /// A name of the hosts file has addresses and nothing else.
    fn in_hosts_file(&self, lookup: &Lookup) -> Option<RecordSet> {
        let host = match lookup.kind {
            Kind::Srv => lookup.name.splitn(3, '.').nth(2)?,
            _ => &lookup.name,
        };
        let addresses = self.files.addresses(host)?;
        let records = addresses
            .iter()
            .filter(|ip| {
                matches!((lookup.kind, ip.is_ipv4()), (Kind::A, true) | (Kind::Aaaa, false))
            })
            .map(|ip| Record::Address(*ip))
            .collect();
        Some(RecordSet { records, ttl: HOSTS_TTL })
    }

    fn in_cache(&self, now: Instant, lookup: &Lookup) -> Option<RecordSet> {
        let (set, until) = self.cache.get(lookup)?;
        let ttl = until.checked_duration_since(now).filter(|it| !it.is_zero())?;
        Some(RecordSet { records: set.records.clone(), ttl })
    }

    fn keep(&mut self, now: Instant, lookup: Lookup, set: RecordSet) {
        if self.cache.len() >= CACHE_MAX {
            self.cache.retain(|_, (_, until)| *until > now);
            let mut excess = self.cache.len().saturating_sub(CACHE_MAX - CACHE_MAX / 8);
            self.cache.retain(|_, _| {
                let goes = excess > 0;
                excess = excess.saturating_sub(1);
                !goes
            });
        }
        let until = now + set.ttl.clamp(TTL_MIN, TTL_MAX);
        self.cache.insert(lookup, (set, until));
    }

    fn launch(&mut self, now: Instant, lookup: Lookup, wanted: &Wanted) {
        let [high, low, ..] = self.draw().to_be_bytes();
        let id = u16::from_be_bytes([high, low]);
        self.last += 1;
        let token = self.last;
        let flight = Flight {
            // A name that fits no message gets no answer either; it fails on its first attempt.
            question: wire::question(id, &lookup).unwrap_or_default(),
            lookup: lookup.clone(),
            wanted_by: vec![wanted.clone()],
            id,
            attempt: 0,
            socket: None,
            deadline: now,
        };
        self.flights.insert(token, flight);
        self.asking.insert(lookup, token);
        // The deadline has come: the first attempt starts when the caller is done.
    }

    /// Starts overdue flights' next attempts, and lands those that have had all of theirs.
    fn handle_timeout(&mut self) {
        loop {
            let now = Instant::now();
            let due: Vec<u64> = self
                .flights
                .iter()
                .filter(|(_, it)| it.deadline <= now)
                .map(|(token, _)| *token)
                .collect();
            if due.is_empty() {
                return;
            }
            for token in due {
                self.attempt(now, token);
            }
        }
    }

    /// One more try: every server in turn, twice.
    fn attempt(&mut self, now: Instant, token: u64) {
        let Some(flight) = self.flights.get_mut(&token) else { return };
        let servers = &self.files.servers;
        let round = flight.attempt / servers.len().max(1);
        let server = servers.get(flight.attempt % servers.len().max(1));
        let (Some(server), true) = (server, round < ROUNDS && !flight.question.is_empty()) else {
            return self.land(token, None);
        };
        flight.attempt += 1;
        flight.deadline = now + ATTEMPT_TIME_MAX;
        flight.socket = ask_by_udp(*server, &flight.question).ok().map(Wire::Udp);
        match &flight.socket {
            Some(wire) => {
                let event = EpollEvent::new(EpollFlags::EPOLLIN, token);
                if self.epoll.add(wire.fd(), event).is_err() {
                    flight.deadline = now;
                }
            }
            None => flight.deadline = now,
        }
    }

    fn handle_ready(&mut self, token: u64) {
        let now = Instant::now();
        let Some(flight) = self.flights.get_mut(&token) else { return };
        match flight.hear() {
            Heard::Nothing | Heard::Reading(Reading::Foreign) => {}
            Heard::Reading(Reading::Set(set)) => self.land(token, Some(set)),
            Heard::Reading(Reading::Truncated) => {
                let Some(Wire::Udp(udp)) = &flight.socket else {
                    return self.attempt(now, token);
                };
                let stream = udp.peer_addr().and_then(connect_tcp);
                let Ok(stream) = stream else { return self.attempt(now, token) };
                let event = EpollEvent::new(EpollFlags::EPOLLOUT, token);
                if self.epoll.add(&stream, event).is_err() {
                    return self.attempt(now, token);
                }
                flight.deadline = now + ATTEMPT_TIME_MAX;
                flight.socket = Some(Wire::Tcp { stream, sent: 0, received: Vec::new() });
            }
            Heard::Asked => {
                if let Some(wire) = &flight.socket {
                    let mut event = EpollEvent::new(EpollFlags::EPOLLIN, token);
                    let _ = self.epoll.modify(wire.fd(), &mut event);
                }
            }
            Heard::Reading(Reading::ServerFailed) | Heard::Failed => self.attempt(now, token),
        }
    }

    /// The lookup has come to an end; `None`: no server answered.
    fn land(&mut self, token: u64, set: Option<RecordSet>) {
        let Some(flight) = self.flights.remove(&token) else { return };
        self.asking.remove(&flight.lookup);
        let timed_out = set.is_none();
        let set = set.unwrap_or(RecordSet { records: Vec::new(), ttl: FAILURE_TTL });
        self.keep(Instant::now(), flight.lookup.clone(), set.clone());
        for wanted in flight.wanted_by {
            let Some(resolution) = self.resolutions.get_mut(&wanted) else { continue };
            resolution.known.insert(flight.lookup.clone(), set.clone());
            resolution.missing = resolution.missing.saturating_sub(1);
            resolution.timed_out |= timed_out;
            if resolution.missing == 0 {
                self.proceed(wanted);
            }
        }
    }

    /// Unpredictable: the standard library keys its hasher from the system's entropy.
    fn draw(&mut self) -> u64 {
        self.drawn += 1;
        self.random.hash_one(self.drawn)
    }
}

/// Token of the eventfd; flights count up from it.
const WAKE: u64 = 0;
/// Requests that have not been looked at yet.
const QUEUE_MAX: usize = 1024;
/// Names being resolved at a time; more are refused.
const RESOLUTIONS_MAX: usize = 512;
/// Askers of one name at a time: each shard asks once and keeps its messages itself.
const REPLIES_MAX: usize = 1024;
/// Lookups, and so sockets, at a time.
const FLIGHTS_MAX: usize = 512;
/// Record sets remembered; a few hundred bytes each.
const CACHE_MAX: usize = 8192;
/// Times that each server is asked.
const ROUNDS: usize = 2;
/// Wait for one answer. Three dead servers are found out before SIP's Timer F (32 s) many times over.
const ATTEMPT_TIME_MAX: Duration = Duration::from_secs(1);
/// How long silence of the servers is remembered: not long, they may come back.
const FAILURE_TTL: Duration = Duration::from_secs(2);
const _: () = assert!(FAILURE_TTL.as_secs() <= NEGATIVE_TTL_MAX.as_secs());
/// How long an address from the hosts file is believed by those who asked.
const HOSTS_TTL: Duration = Duration::from_secs(30);
/// Files are looked at no more often than this.
const FILES_PERIOD: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests;
