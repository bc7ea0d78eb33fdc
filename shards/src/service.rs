//! The running shards behind control's [`Shards`]: sockets, relays, mail, figures, pages.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use engine::balance::Shard;
use engine::config::Steering;
use engine::node::NodeKey;
use engine::relay::listeners;
use engine::relay::sip::{Relay, Settings, explain};
use engine::relay::{Arrival, Flow, Leg, Listener, ListenerId};
use engine::snapshot::Family;
use engine::stats::{self, Counters, Load, Process, RESIDENCE_BOUNDS, Residence, Scrape};
use hdrhistogram::Histogram;
use log::{info, warn};
use protocols::time::Time;

use crate::admin::Response;
use crate::clock::Clock;
use crate::control::{self, Addressee, Explain, Facts, Page, Ports, Said, Shards, shards_on};
use crate::executor::{self, Body, Seat, Spec};
use crate::layers::Wire;
use crate::listeners::{SocketOptions, bound, open_listeners};
use crate::mesh::{Mail, Notice, Statistics};
use crate::publish::{Tuning, View};
use crate::relays::{Relays, Terms};
use crate::sys::raise_files;
use crate::tls::{Keeper, Security};

/// The shards of the process.
pub struct Service {
    body: Body<Relay>,
    listeners: Vec<Listener>,
    secret: [u8; 16],
    settings: Arc<Settings>,
    /// HTTP and SMPP.
    relays: Relays,
    /// Certificates and terms of TLS.
    keeper: Keeper,
    /// Number of the question that figures must answer.
    question: u64,
    known: Known,
    clock: Clock,
    /// CPUs that the process may use.
    cores: usize,
    /// When CPU was last looked at, and how much had been used.
    cpu: Cell<CpuLook>,
}

/// Opens every listener and starts the shards. `cpus` are those that the process may use: the calling
/// thread may be confined to fewer.
///
/// # Errors
///
/// What the operator has to change, or what the kernel has run out of.
pub fn start(clock: Clock, view: &control::View, cpus: &[usize]) -> Result<Service, String> {
    let config = &view.config;
    let count = shards_on(cpus, config);
    let keeper = Keeper::open(&config.tls)?;
    let can_open = |it: &Listener| {
        let wire = Wire { transport: it.transport, tls_gateway: config.tls_gateway };
        !wire.has_tls() || keeper.current().is_some()
    };
    let (wanted, closed): (Vec<_>, Vec<_>) =
        listeners(config, &resolve)?.into_iter().partition(can_open);
    for Listener { transport, address, .. } in &closed {
        warn!("No listener on {address} for {}: there is no certificate", transport.as_via());
    }
    if !wanted.iter().any(|it| it.leg == Leg::External) {
        return Err("nothing can listen on the client side without a certificate".to_owned());
    }
    // With one leg left a message's direction would be told by its source: another service than was asked for.
    let is_inside = |it: &Listener, v4| it.leg == Leg::Internal && it.address.is_ipv4() == v4;
    let loses = |v4| {
        closed.iter().any(|it| is_inside(it, v4)) && !wanted.iter().any(|it| is_inside(it, v4))
    };
    if loses(true) || loses(false) {
        return Err("nothing can listen on the node side without a certificate".to_owned());
    }
    let options = SocketOptions {
        steering: config.steering,
        receive_buffer_bytes: config.udp_receive_buffer_bytes,
        send_buffer_bytes: config.udp_send_buffer_bytes,
        cpus: cpus.to_vec(),
    };
    let sockets = open_listeners(&wanted, count, &options).map_err(|error| error.to_string())?;
    let listeners = sockets.first().map_or(wanted.clone(), |it| bound(&wanted, it));
    let terms = Terms {
        shards: count,
        options: &options,
        has_certificate: keeper.current().is_some(),
        resolve: &resolve,
    };
    let (streams, pumps) = Relays::open(view, &terms)?;
    let (seat, why) = Seat::best();
    if let Some(why) = why {
        warn!("{why}");
    }
    let (files, connections) = (raise_files(), config.connections_max);
    if usize::try_from(files).is_ok_and(|it| it < connections) {
        warn!(
            "Only {files} files may be open, less than connectionsMax={connections}: \
             LimitNOFILE, or --ulimit nofile"
        );
    }
    let random = std::hash::RandomState::new();
    let [front, back] = [0, 1].map(|it| random.hash_one(it));
    let secret = ((u128::from(front) << 64) | u128::from(back)).to_be_bytes();
    let settings = settings(view, &listeners, secret);
    let scattered = config.steering != Steering::Hash && count > 1;
    let relays = (0..count)
        .map(|index| Relay::new(Arc::clone(&settings), Shard { index, scattered }))
        .collect();
    let view = of_shards(view, &settings, keeper.current());
    let cores = cpus.len();
    let cpus = cpus.to_vec();
    let spec =
        Spec { listeners: listeners.clone(), sockets, relays, pumps, cpus, view, clock, seat };
    let body = executor::start(spec).map_err(|error| error.to_string())?;
    info!("{count} shards, {} listeners each", listeners.len());
    let cpu = Cell::new(CpuLook { at: Instant::now(), used: cpu_time(), percent: 0 });
    Ok(Service {
        body,
        listeners,
        secret,
        settings,
        relays: streams,
        keeper,
        question: 0,
        known: Known::default(),
        clock,
        cores,
        cpu,
    })
}

fn settings(view: &control::View, listeners: &[Listener], secret: [u8; 16]) -> Arc<Settings> {
    let config = (*view.config).clone();
    Arc::new(Settings::new(config, listeners.to_vec(), view.extra_servers.clone(), secret))
}

fn of_shards(
    view: &control::View,
    settings: &Arc<Settings>,
    security: Option<&Arc<Security>>,
) -> View<Settings> {
    let config = &view.config;
    View {
        snapshot: Arc::clone(&view.snapshot),
        settings: Arc::clone(settings),
        tuning: Tuning {
            coalesce: config.coalesce,
            couples_datagrams: config.couples_datagrams,
            stream_idle: config.stream_idle,
            message_time: MESSAGE_TIME,
            tls_gateway: config.tls_gateway,
            connections_max: config.connections_max,
            source_connections_max: config.source_connections_max,
            handshake_time: config.handshake_time,
            message_bytes_max: config.message_bytes_max,
        },
        security: security.cloned(),
        stopping: view.stopping,
    }
}

/// Blocks: for the start alone, where nothing is carried yet.
fn resolve(host: &str, family: Family) -> Result<IpAddr, String> {
    let failed = |why: &dyn std::fmt::Display| {
        format!("Couldn't get the InetAddress from the host {host}: {why}")
    };
    let mut found = (host, 0).to_socket_addrs().map_err(|error| failed(&error))?;
    found
        .find(|it| Family::of(it.ip()) == family)
        .map(|it| it.ip())
        .ok_or_else(|| failed(&"no address of that family"))
}

impl Shards for Service {
    fn count(&self) -> usize {
        self.body.shards()
    }

    fn ports(&self) -> &Ports {
        self.relays.ports()
    }

    fn waker(&self) -> BorrowedFd<'_> {
        self.body.inbox.waker.as_fd()
    }

    fn poll(&mut self) -> Option<Said> {
        let inbox = &self.body.inbox;
        loop {
            let notice = inbox.notices.try_recv().or_else(|_| {
                // At rest first, then a last look: what comes in between rings again.
                inbox.waker.clear();
                inbox.notices.try_recv()
            });
            return Some(match notice.ok()? {
                Notice::Report(report) => Said::Report(report),
                Notice::Resolve { shard, name } => Said::Resolve { shard, query: name },
                Notice::Statistics { question, statistics } => {
                    self.known.learn(self.clock.now(), statistics);
                    if question != self.question {
                        continue; // too late for its own page
                    }
                    Said::Figures
                }
                Notice::Ended { shard, is_failure } => {
                    Said::Ended { shard, failure: is_failure.then(|| "it panicked".to_owned()) }
                }
            });
        }
    }

    fn publish(&mut self, view: &control::View) {
        let is_same = view.extra_servers == self.settings.extra_servers
            && *view.config == self.settings.config;
        if !is_same {
            self.settings = settings(view, &self.listeners, self.secret);
        }
        self.keeper.refresh(&view.config.tls);
        self.relays.publish(view);
        let security = self.keeper.current();
        self.body.published.publish(Arc::new(of_shards(view, &self.settings, security)));
    }

    fn refresh(&mut self, view: &control::View) -> bool {
        self.keeper.refresh(&view.config.tls)
    }

    fn security(&self) -> Option<&Security> {
        self.keeper.current().map(|it| &**it)
    }

    fn ask_figures(&mut self) {
        self.question += 1;
        for shard in (0..=u8::MAX).take(self.body.shards()) {
            // A shard whose mailbox is full answers nothing; the page shows what it said last.
            let _ = self.body.post.send(shard, Mail::Statistics { question: self.question });
        }
    }

    fn switch_over(&mut self, from: NodeKey, to: NodeKey) {
        for shard in (0..=u8::MAX).take(self.body.shards()) {
            // A shard whose mailbox is full keeps its calls where they were: they fail over one by one.
            let _ = self.body.post.send(shard, Mail::SwitchOver { from, to });
        }
    }

    fn addressee(&self, shard: u8) -> Addressee {
        let post = self.body.post.clone();
        Box::new(move |name, answer| {
            // A full mailbox: the message is not answered for, and its sender repeats it.
            let _ = post.send(shard, Mail::Resolved { name, answer });
        })
    }

    fn page(&self, page: Page, facts: &Facts<'_>) -> Response {
        let counters: Vec<Counters> = self.known.iter().map(|it| self.counters(it.1)).collect();
        let loads = self.known.iter().map(|(at, it)| load(it, facts.now.since(at)));
        let shards: Vec<_> = counters.iter().zip(loads).collect();
        let residence = residence(self.known.iter().map(|it| &it.1.residence));
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let epoch = wall.saturating_sub(self.clock.now().since(Time::ZERO));
        let scrape = Scrape {
            now: facts.now,
            process: Process {
                name: NAME,
                version: env!("CARGO_PKG_VERSION"),
                cpu_percent: if page == Page::Health { 0 } else { self.cpu_percent() },
                resident_bytes: resident_bytes(),
                epoch_ms: u64::try_from(epoch.as_millis()).unwrap_or(0),
                is_stopping: facts.view.stopping.is_some(),
            },
            snapshot: &facts.view.snapshot,
            registry: facts.registry,
            shards: &shards,
            residence: &residence,
            certificates: self.keeper.current().map_or(&[], |it| it.certificates.as_slice()),
            beats: facts.beats,
        };
        match page {
            Page::Stat => Response::json(stats::lbstat(&scrape)),
            Page::Info => Response::json(stats::lbinfo(&scrape)),
            Page::Metrics => Response {
                status: 200,
                media: "text/plain; version=0.0.4; charset=utf-8",
                body: stats::metrics(&scrape),
            },
            Page::Health => {
                let (status, text) = stats::health(&scrape);
                Response::text(status, text)
            }
        }
    }

    fn explain(&self, message: &Explain, facts: &Facts<'_>) -> Response {
        let leg = message.leg.unwrap_or(Leg::External);
        let found = self.listeners.iter().enumerate().find(|(_, it)| match message.listener {
            Some((address, transport)) => it.address == address && it.transport == transport,
            None => it.leg == leg,
        });
        let Some((id, listener)) = found else {
            let all = self.listeners.iter();
            let all: Vec<String> =
                all.map(|it| format!("{}/{}", it.address, it.transport.as_param())).collect();
            return Response::text(400, format!("no such listener; there are {}", all.join(", ")));
        };
        let flow = Flow { shard: 0, slot: 0, generation: 0 };
        let local = match listener.address {
            SocketAddr::V4(_) => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), EXPLAIN_PORT),
            SocketAddr::V6(_) => SocketAddr::new(Ipv6Addr::LOCALHOST.into(), EXPLAIN_PORT),
        };
        let arrival = Arrival {
            now: facts.now,
            listener: ListenerId(u8::try_from(id).unwrap_or(0)),
            source: message.source.unwrap_or(local),
            flow: listener.transport.is_stream().then_some(flow),
        };
        let told = explain(&self.settings, &facts.view.snapshot, &arrival, &message.message);
        Response::text(200, told.steps)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let View { snapshot, settings, tuning, security, .. } = &*self.body.published.current();
        self.body.published.publish(Arc::new(View {
            snapshot: Arc::clone(snapshot),
            settings: Arc::clone(settings),
            tuning: *tuning,
            security: security.clone(),
            stopping: Some(Time::ZERO),
        }));
        let failed = self.body.join();
        if failed > 0 {
            warn!("{failed} shards ended by a panic");
        }
    }
}

impl Service {
    /// Everything that a shard counted.
    fn counters(&self, of: &Statistics<Counters>) -> Counters {
        let mut counters = of.counters.clone();
        counters.connections_by_node.clone_from(&of.connections_by_node);
        counters.busy_by_node.clone_from(&of.busy_by_node);
        self.relays.count(of.shard, &mut counters);
        counters
    }

    /// Of all cores.
    fn cpu_percent(&self) -> u32 {
        let now = CpuLook { at: Instant::now(), used: cpu_time(), percent: 0 };
        let look = self.cpu.get().next(now, self.cores);
        self.cpu.set(look);
        look.percent
    }
}

/// Of the product.
pub(crate) const NAME: &str = "Trunkline";

/// The process's use of CPUs, as it was looked at last.
#[derive(Clone, Copy)]
struct CpuLook {
    at: Instant,
    used: Duration,
    percent: u32,
}

impl CpuLook {
    /// The look that counts from `now` on: several pages within [`CPU_PERIOD`] show one figure, since what is
    /// used between two of them is mostly their own making.
    fn next(self, now: CpuLook, cores: usize) -> CpuLook {
        let wall = now.at.saturating_duration_since(self.at);
        if wall < CPU_PERIOD {
            return self;
        }
        let used = now.used.saturating_sub(self.used).as_millis() * 100;
        let percent = used / (wall.as_millis() * cores.max(1) as u128);
        CpuLook { percent: u32::try_from(percent).unwrap_or(0), ..now }
    }
}

/// In steps of the kernel's 10 ms this is exact to a percent.
const CPU_PERIOD: Duration = Duration::from_secs(1);

/// What each shard said last, in order of their numbers: one that is too busy to answer in time is shown as
/// it was, with its age, and not left out.
#[derive(Default)]
struct Known(BTreeMap<u8, (Time, Box<Statistics<Counters>>)>);

impl Known {
    fn learn(&mut self, now: Time, statistics: Box<Statistics<Counters>>) {
        self.0.insert(statistics.shard, (now, statistics));
    }

    fn iter(&self) -> impl Iterator<Item = (Time, &Statistics<Counters>)> {
        self.0.values().map(|(at, it)| (*at, &**it))
    }
}

fn load(of: &Statistics<Counters>, age: Duration) -> Load {
    let it = &of.figures;
    let mut streams = it.streams;
    let mut refused = it.refused_connections;
    for pump in &of.pumps {
        streams.tls_handshakes += pump.tls_handshakes;
        streams.tls_failed += pump.tls_failed;
        streams.panicked += pump.panics;
        streams.shortages += pump.shortages;
        refused += pump.refused;
    }
    Load {
        datagrams: it.datagrams,
        batches: it.batches,
        stream_messages: it.stream_messages,
        sent: it.sent,
        turns: it.turns,
        busy: it.busy,
        receive_drops: it.receive_drops,
        hops: it.hops,
        connections: it.connections,
        refused_connections: refused,
        retried: it.retried,
        streams,
        age,
    }
}

fn residence<'h>(shards: impl Iterator<Item = &'h Histogram<u64>>) -> Residence {
    let Ok(mut all) = Histogram::<u64>::new(RESIDENCE_DIGITS) else { return Residence::default() };
    for it in shards {
        // It resizes by itself; only memory could fail it.
        let _ = all.add(it);
    }
    let nanos = |it: Duration| u64::try_from(it.as_nanos()).unwrap_or(u64::MAX);
    let at = |quantile| Duration::from_nanos(all.value_at_quantile(quantile));
    let sum = all.iter_recorded().fold(0u64, |sum, it| {
        sum.saturating_add(it.value_iterated_to().saturating_mul(it.count_at_value()))
    });
    Residence {
        at_most: RESIDENCE_BOUNDS.map(|it| all.count_between(0, nanos(it))),
        count: all.len(),
        sum: Duration::from_nanos(sum),
        p50: at(0.5),
        p99: at(0.99),
        p999: at(0.999),
        max: Duration::from_nanos(all.max()),
    }
}

/// User and system time of the process (proc(5): fields 14 and 15 of `stat`, in 1/100 s everywhere).
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let ticks: u64 = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|it| it.parse::<u64>().ok())
        .sum();
    Duration::from_millis(ticks.saturating_mul(10))
}

/// Resident set (proc(5): `statm`, in pages).
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split_whitespace().nth(1).and_then(|it| it.parse::<u64>().ok());
    pages.unwrap_or(0).saturating_mul(PAGE_BYTES)
}

/// As the shards' own histograms.
const RESIDENCE_DIGITS: u8 = 2;
/// On every machine this is built for.
const PAGE_BYTES: u64 = 4096;
/// From the first byte of a message on a stream to its last: 64 * T1, when its transaction would be over.
const MESSAGE_TIME: Duration = Duration::from_secs(32);
/// Any port will do for a client that is only imagined.
const EXPLAIN_PORT: u16 = 5099;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::mesh::Figures;

    fn said(shard: u8, datagrams: u64) -> Box<Statistics<Counters>> {
        Box::new(Statistics {
            shard,
            counters: Counters::default(),
            connections_by_node: BTreeMap::new(),
            busy_by_node: BTreeMap::new(),
            residence: Histogram::new(RESIDENCE_DIGITS).unwrap(),
            figures: Figures { datagrams, ..Figures::default() },
            pumps: Vec::new(),
        })
    }

    #[test]
    fn the_use_of_cpus_is_that_of_a_second_or_more() {
        let start = Instant::now();
        let look = |millis: u64, used: u64| CpuLook {
            at: start + Duration::from_millis(millis),
            used: Duration::from_millis(used),
            percent: 0,
        };
        let mut it = look(0, 0);
        for (millis, used, want) in
            [(999, 999, 0), (1_000, 1_000, 50), (1_001, 1_011, 50), (11_000, 2_000, 5)]
        {
            it = it.next(look(millis, used), 2);
            assert_eq!(it.percent, want, "{millis}");
        }
    }

    #[test]
    fn a_shard_that_says_nothing_new_is_shown_as_it_was_with_its_age() {
        let mut known = Known::default();
        let at = Time::from_millis;
        for (now, shard, datagrams) in [(10, 1, 5), (20, 0, 7), (3_000, 0, 9)] {
            known.learn(at(now), said(shard, datagrams));
        }
        let loads = known.iter().map(|(then, it)| (it.shard, load(it, at(3_010).since(then))));
        let shown: Vec<_> = loads.map(|(id, it)| (id, it.datagrams, it.age.as_millis())).collect();
        assert_eq!(shown, [(0, 9, 10), (1, 5, 3_000)]);
    }
}
