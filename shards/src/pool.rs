//! The shards as the control thread sees them: started on the configuration, told what changes, asked for
//! figures, and their pages of the statistics port.

use std::hash::BuildHasher as _;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;

use engine::balance;
use engine::config::{Config, LegConfig, Steering};
use engine::relay::sip::{Relay, Settings, explain};
use engine::relay::{Arrival, Leg, Listener, ListenerId};
use engine::stats::{self, Counters, Load, Process, RESIDENCE_BOUNDS, Residence, Scrape};
use hdrhistogram::Histogram;
use log::{info, warn};
use protocols::sip::Transport;

use crate::admin::Response;
use crate::clock::Clock;
use crate::control::{self, Addressee, Explain, Facts, Page, Said, Shards};
use crate::executor::{self, Body, Seat, Spec};
use crate::listeners::{SocketOptions, bound, open_listeners};
use crate::mesh::{Mail, Notice, Statistics};
use crate::process::{Cpu, resident_bytes, wall_epoch_ms};
use crate::publish::{Tuning, View};
use crate::sys;

/// Running shards.
pub struct Pool {
    body: Body<Relay>,
    listeners: Vec<Listener>,
    settings: Arc<Settings>,
    config: Arc<Config>,
    secret: [u8; 16],
    /// Number of the question that answers belong to.
    question: u64,
    clock: Clock,
    cpu: Cpu,
}

/// Opens the listeners of the configuration and starts a shard for each CPU.
///
/// # Errors
///
/// What the operator has to change: an address that cannot be bound, a host that does not resolve.
pub fn start(clock: Clock, view: &control::View) -> Result<Pool, String> {
    let config = Arc::clone(&view.config);
    let cpus = sys::affinity();
    let count = if config.shards == 0 { cpus.len() } else { config.shards };
    let count = count.clamp(1, usize::from(u8::MAX));
    let wanted = listeners(&config)?;
    let options = SocketOptions {
        steering: config.steering,
        receive_buffer_bytes: config.udp_receive_buffer_bytes,
        send_buffer_bytes: config.udp_send_buffer_bytes,
        cpus: (0..count).filter_map(|it| cpus.get(it % cpus.len().max(1)).copied()).collect(),
    };
    let sockets = open_listeners(&wanted, count, &options).map_err(|error| error.to_string())?;
    let listeners = match sockets.first() {
        Some(first) => bound(&wanted, first),
        None => wanted,
    };
    for it in &listeners {
        let (leg, transport) = (leg_name(it.leg), it.transport.as_via());
        info!("Listening point {leg} {transport} {}", it.address);
    }
    let secret = secret();
    let settings = Arc::new(Settings::new((*config).clone(), listeners.clone(), secret));
    let scattered = count > 1 && config.steering != Steering::Hash;
    let relays = (0..count)
        .map(|index| Relay::new(Arc::clone(&settings), balance::Shard { index, scattered }))
        .collect();
    let (seat, why) = Seat::best();
    if let Some(why) = why {
        warn!("Shards run on plain threads instead of io_uring executors: {why}");
    }
    let body = executor::start(Spec {
        listeners: listeners.clone(),
        sockets,
        relays,
        cpus,
        view: body_view(&settings, view),
        clock,
        seat,
    })
    .map_err(|error| format!("cannot start the shards: {error}"))?;
    info!("{count} shards carry SIP");
    Ok(Pool { body, listeners, settings, config, secret, question: 0, clock, cpu: Cpu::start() })
}

impl Shards for Pool {
    type Figures = Box<Statistics<Counters>>;

    fn count(&self) -> usize {
        self.body.shards()
    }

    fn waker(&self) -> BorrowedFd<'_> {
        self.body.inbox.waker.as_fd()
    }

    fn poll(&mut self) -> Option<Said<Self::Figures>> {
        loop {
            let notice = match self.body.inbox.notices.try_recv() {
                Ok(notice) => notice,
                Err(_) => {
                    self.body.inbox.waker.clear();
                    // Whoever wrote between the look and the clearing has woken us for nothing else.
                    self.body.inbox.notices.try_recv().ok()?
                }
            };
            return Some(match notice {
                Notice::Report(report) => Said::Report(report),
                Notice::Resolve { shard, name } => Said::Resolve { shard, query: name },
                Notice::Statistics { question, statistics } if question == self.question => {
                    Said::Figures(statistics)
                }
                Notice::Statistics { .. } => continue,
                Notice::Ended { shard, is_failure } => Said::Ended {
                    shard,
                    failure: is_failure.then(|| "it panicked; see the log".to_owned()),
                },
            });
        }
    }

    fn publish(&mut self, view: &control::View) {
        if !Arc::ptr_eq(&self.config, &view.config) {
            self.config = Arc::clone(&view.config);
            let config = (*view.config).clone();
            self.settings = Arc::new(Settings::new(config, self.listeners.clone(), self.secret));
        }
        self.body.published.publish(Arc::new(body_view(&self.settings, view)));
    }

    fn ask_figures(&mut self) {
        self.question += 1;
        for shard in 0..self.body.shards() {
            let shard = u8::try_from(shard).unwrap_or(u8::MAX);
            // A full mailbox: the page is made without this shard, and says so by its absence.
            let _ = self.body.post.send(shard, Mail::Statistics { question: self.question });
        }
    }

    fn addressee(&self, shard: u8) -> Addressee {
        let post = self.body.post.clone();
        Box::new(move |name, answer| {
            // A full mailbox: the message waits for nothing and is dropped in its time.
            let _ = post.send(shard, Mail::Resolved { name, answer });
        })
    }

    fn page(&self, page: Page, figures: &[Self::Figures], facts: &Facts<'_>) -> Response {
        let mut figures: Vec<&Statistics<Counters>> = figures.iter().map(|it| &**it).collect();
        figures.sort_by_key(|it| it.shard);
        let shards: Vec<(&Counters, Load)> =
            figures.iter().map(|it| (&it.counters, load(it))).collect();
        let residence = residence(&figures);
        let scrape = Scrape {
            now: facts.now,
            process: Process {
                name: "Trunkline",
                version: env!("CARGO_PKG_VERSION"),
                cpu_percent: self.cpu.percent(),
                resident_bytes: resident_bytes(),
                epoch_ms: wall_epoch_ms(self.clock),
                is_stopping: facts.view.stopping.is_some(),
            },
            snapshot: &facts.view.snapshot,
            registry: facts.registry,
            shards: &shards,
            residence: &residence,
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
        explanation(&self.settings, message, facts)
    }
}

/// Says what the relay would do with a message, on the node table in force.
fn explanation(settings: &Arc<Settings>, message: &Explain, facts: &Facts<'_>) -> Response {
    let source = message.source.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 5060)));
    let fits = |it: &Listener| {
        it.address.is_ipv4() == source.is_ipv4()
            && message.leg.is_none_or(|leg| leg == it.leg)
            && message.listener.is_none_or(|wanted| wanted == (it.address, it.transport))
    };
    let Some(index) = settings.listeners.iter().position(fits) else {
        let known: Vec<String> = settings
            .listeners
            .iter()
            .map(|it| format!("{}/{} ({})", it.address, it.transport.as_param(), leg_name(it.leg)))
            .collect();
        return Response::text(400, format!("No such listener; there are {}\n", known.join(", ")));
    };
    let listener = ListenerId(u8::try_from(index).unwrap_or(u8::MAX));
    let arrival = Arrival { now: facts.now, listener, source, flow: None };
    let told = explain(settings, &facts.view.snapshot, &arrival, &message.message);
    Response::text(200, told.steps)
}

fn body_view(settings: &Arc<Settings>, view: &control::View) -> View<Settings> {
    let config = &view.config;
    View {
        snapshot: Arc::clone(&view.snapshot),
        settings: Arc::clone(settings),
        tuning: Tuning {
            coalesce: config.coalesce,
            stream_idle: config.stream_idle,
            connections_max: config.connections_max,
            message_bytes_max: config.message_bytes_max,
        },
        stopping: view.stopping,
    }
}

/// Every SIP listener that the configuration asks for. Hosts may be names: they are looked up once, here.
fn listeners(config: &Config) -> Result<Vec<Listener>, String> {
    let mut listeners = Vec::new();
    for (leg, it) in [(Leg::External, &config.external), (Leg::Internal, &config.internal)] {
        for (ports, host, is_ipv6) in [
            (&it.ports, host(it, config), false),
            (&it.ipv6_ports, ipv6_host(it, config), true),
        ] {
            if ports.is_empty() {
                continue;
            }
            let ip = address(&host, is_ipv6)?;
            for (transport, port) in ports.iter() {
                if !matches!(transport, Transport::Udp | Transport::Tcp) {
                    // Said once more where it hurts: the port stays closed.
                    let (leg, transport) = (leg_name(leg), transport.as_via());
                    warn!("{leg} port {port} stays closed: SIP over {transport} is not served yet");
                    continue;
                }
                listeners.push(Listener { leg, transport, address: SocketAddr::new(ip, port) });
            }
        }
    }
    if listeners.is_empty() {
        return Err("no SIP listener over UDP or TCP is configured".to_owned());
    }
    Ok(listeners)
}

fn host(leg: &LegConfig, config: &Config) -> String {
    leg.host.clone().or_else(|| config.host.clone()).unwrap_or_else(|| "0.0.0.0".to_owned())
}

fn ipv6_host(leg: &LegConfig, config: &Config) -> String {
    leg.ipv6_host.clone().or_else(|| config.ipv6_host.clone()).unwrap_or_else(|| "::1".to_owned())
}

fn address(host: &str, is_ipv6: bool) -> Result<IpAddr, String> {
    let literal = host.trim_matches(['[', ']']);
    let literal = literal.split('%').next().unwrap_or(literal);
    if let Ok(ip) = literal.parse() {
        return Ok(ip);
    }
    let found = (host, 0)
        .to_socket_addrs()
        .map_err(|error| format!("Couldn't get the InetAddress from the host {host}: {error}"))?;
    let mut found = found.map(|it| it.ip()).filter(|it| it.is_ipv6() == is_ipv6);
    found.next().ok_or_else(|| format!("Couldn't get the InetAddress from the host {host}"))
}

const fn leg_name(leg: Leg) -> &'static str {
    match leg {
        Leg::External => "external",
        Leg::Internal => "internal",
    }
}

/// Signs flow tokens of this process. The standard library keys its hashers from the system's entropy.
fn secret() -> [u8; 16] {
    let draw = || std::hash::RandomState::new().hash_one(0u8);
    let mut secret = [0; 16];
    for (to, from) in secret.iter_mut().zip(draw().to_be_bytes().into_iter().chain(draw().to_le_bytes())) {
        *to = from;
    }
    secret
}

fn load(statistics: &Statistics<Counters>) -> Load {
    let it = &statistics.figures;
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
        refused_connections: it.refused_connections,
        retried: it.retried,
    }
}

fn residence(figures: &[&Statistics<Counters>]) -> Residence {
    let Some((first, others)) = figures.split_first() else { return Residence::default() };
    let mut merged: Histogram<u64> = first.residence.clone();
    for it in others {
        // All shards record with the same bounds.
        let _ = merged.add(&it.residence);
    }
    let nanos = std::time::Duration::from_nanos;
    let at = |quantile| nanos(merged.value_at_quantile(quantile));
    let mut at_most = [0; RESIDENCE_BOUNDS.len()];
    for (count, bound) in at_most.iter_mut().zip(RESIDENCE_BOUNDS) {
        *count = merged.count_between(0, u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX));
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a sum of times
    let sum = nanos((merged.mean() * merged.len() as f64) as u64);
    Residence {
        at_most,
        count: merged.len(),
        sum,
        p50: at(0.5),
        p99: at(0.99),
        p999: at(0.999),
        max: nanos(if merged.is_empty() { 0 } else { merged.max() }),
    }
}
