//! The control thread: owns the node table, publishes what shards go by, serves the statistics port,
//! reloads the configuration, starts and stops the process in the original's words and order
//! (`http-smpp-registry.md` 5.2, 5.4).
//!
//! One epoll set, no timers of its own while nothing is due. Everything that decides is a state machine
//! of the engine; everything that carries traffic is behind [`Shards`].

mod orders;
mod pace;
mod points;
mod shards;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use engine::config::Config;
use engine::config::log4j::Log4j;
use engine::lifecycle::Prober;
use engine::names::literal;
use engine::registry::{Registry, Rules};
use engine::snapshot::NodeRule;
use log::{error, info, warn};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use protocols::time::Time;

use self::pace::Pace;
use self::points::{
    clusters, listening_points, opened_http, opened_smpp, reach, smpp_name, started,
};
pub use self::shards::{Addressee, Explain, Facts, Page, Ports, Said, Shards, View, shards_on};
use crate::admin::{Command, Credentials, Response};
use crate::args::{EXIT_CONFIG, EXIT_FAILED, EXIT_OK, Run};
use crate::clock::Clock;
use crate::heartbeats::{self, Farewell, Heartbeats};
use crate::hosts::Hosts;
use crate::http::{Connection, Server};
use crate::kubernetes::Kubernetes;
use crate::names::{Names, Sources};
use crate::sys::{affinity, keep_off_shards};
use crate::{logs, probe, reload};

/// Blocks the signals that [`run`] takes from its epoll set. Call it before any thread is started: threads
/// inherit the mask.
pub fn block_signals() {
    // Fails only for signal numbers that do not exist.
    let _ = signals().thread_block();
}

/// Runs the service until it is told to stop; returns the exit code.
///
/// `start` opens the listeners and starts the shards, on what `View` says and on the CPUs that the process
/// may use; its error names what the operator has to change.
pub fn run<S: Shards>(
    run: Run,
    sources: Sources,
    start: impl FnOnce(Clock, &View, &[usize]) -> Result<S, String>,
) -> u8 {
    logs::start(None);
    let logging = run.log_config.as_deref().map(log4j).unwrap_or_default();
    let clock = Clock::start();
    let (file, loaded) = match reload::File::open(run.file, run.overrides, clock.now()) {
        Ok(it) => it,
        Err(errors) => {
            errors.iter().for_each(|it| error!("{it}"));
            return EXIT_CONFIG;
        }
    };
    if reload::names_log_level(&loaded) {
        logs::set_level(loaded.config.log_level);
    } else if let Some(level) = logging.level {
        logs::set_level(level);
    }
    match Control::start(clock, file, sources, start) {
        Ok(control) => control.run(),
        Err(why) => {
            error!("An unexpected error occurred while starting the load balancer: {why}");
            EXIT_CONFIG
        }
    }
}

/// Reads the log4j file and writes where it says from now on.
fn log4j(path: &Path) -> Log4j {
    let read = match std::fs::read_to_string(path) {
        Ok(text) => engine::config::log4j::log4j(&text),
        Err(error) => {
            warn!("{}: {error}", path.display());
            return Log4j::default();
        }
    };
    let unopened = logs::write_to(&read.appenders);
    read.warnings.iter().chain(&unopened).for_each(|it| warn!("{}: {it}", path.display()));
    read
}

struct Control<S: Shards> {
    clock: Clock,
    epoll: Epoll,
    signals: SignalFd,
    bell: Arc<EventFd>,
    file: reload::File,
    view: View,
    /// The view has changed since it was published.
    is_stale: bool,
    pace: Pace,
    registry: Registry,
    prober: Prober,
    probes: probe::Sockets,
    names: Names,
    hosts: Hosts,
    kubernetes: Option<Kubernetes>,
    server: Option<Server>,
    heartbeats: Heartbeats,
    gathering: Option<Gathering>,
    shards: S,
    shards_running: usize,
    /// `/lbnoderegex`.
    rules: Vec<NodeRule>,
    refused_logged: Option<Time>,
    exit: Option<u8>,
}

/// Figures on their way from the shards to pages.
struct Gathering {
    /// Shards that have not answered.
    missing: usize,
    deadline: Time,
    pages: Vec<(Connection, Page)>,
}

impl<S: Shards> Control<S> {
    fn start(
        clock: Clock,
        file: reload::File,
        sources: Sources,
        start: impl FnOnce(Clock, &View, &[usize]) -> Result<S, String>,
    ) -> Result<Self, String> {
        let kernel = |error: &dyn std::fmt::Display| error.to_string();
        let config = Arc::clone(file.config());
        let cpus = affinity();
        // Before the threads that work beside the shards: they inherit it, and shards pin themselves.
        if let Err(error) = keep_off_shards(&cpus, shards_on(&cpus, &config)) {
            warn!("Control shares the CPUs of the shards: {error}");
        }
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(|it| kernel(&it))?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let signals = SignalFd::with_flags(&signals(), flags).map_err(|it| kernel(&it))?;
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let bell = Arc::new(EventFd::from_flags(flags).map_err(|it| kernel(&it))?);
        let readable = |token| EpollEvent::new(EpollFlags::EPOLLIN, token);
        epoll.add(&signals, readable(SIGNALS)).map_err(|it| kernel(&it))?;
        epoll.add(&bell, readable(BELL)).map_err(|it| kernel(&it))?;
        let names = Names::start(sources).map_err(|it| kernel(&it))?;

        let now = clock.now();
        info!("nodeTimeout={}", config.node_timeout.as_millis());
        info!("heartbeatInterval={}", config.heartbeat_interval.as_millis());
        info!("Node registry starting...");
        let mut hosts = Hosts::new(Arc::clone(&bell));
        hosts.configure(now, &config);
        let mut registry = Registry::new(now, Rules::from(&*config), &hosts.addresses());
        // Whatever can be refused comes before the first thread that carries traffic.
        let heartbeats = Heartbeats::open(&config, epoch_ms(), &epoll)?;
        info!("Node expiration task created");
        info!("Node registry started");
        info!("Release ID: {} {}", crate::service::NAME, env!("CARGO_PKG_VERSION"));
        let own = config.internal.host.as_deref().or(config.host.as_deref()).and_then(literal);
        let probes = probe::Sockets::open(own, &epoll);
        let local = probes.local(registry.probed().next().map(|it| it.1));
        let mut prober = Prober::new(seed(), local, config.probe);
        prober.configure(now, config.probe, registry.probed());

        let kubernetes = Kubernetes::start(now, &config, Arc::clone(&bell));
        let kubernetes = kubernetes.map_err(|it| kernel(&it))?;

        let snapshot = Arc::new(registry.snapshot().unwrap_or_default());
        let view = View {
            snapshot,
            config: Arc::clone(&config),
            extra_servers: hosts.resolved(&config.extra_server_nodes),
            smpp_servers: hosts.resolved(&config.smpp.servers),
            unavailable: hosts.resolved(&config.http.unavailable).first().copied(),
            stopping: None,
        };
        let bind = |port| {
            Server::bind(port, &epoll).map_err(|error| format!("statisticPort={port}: {error}"))
        };
        let server = config.statistic_port.map(bind).transpose()?;
        let shards = start(clock, &view, &cpus)?;
        epoll.add(shards.waker(), readable(SHARDS)).map_err(|it| kernel(&it))?;
        info!("{}", started(&config));
        opened_http(shards.ports());
        if let Some(server) = &server {
            info!("Load balancer statistic on port : {}", server.address().port());
        }
        opened_smpp(shards.ports(), &config);
        Ok(Control {
            shards_running: shards.count(),
            clock,
            epoll,
            signals,
            bell,
            file,
            view,
            is_stale: true,
            pace: Pace::default(),
            registry,
            prober,
            probes,
            names,
            hosts,
            kubernetes,
            server,
            heartbeats,
            gathering: None,
            shards,
            rules: Vec::new(),
            refused_logged: None,
            exit: None,
        })
    }

    fn run(mut self) -> u8 {
        let mut events = [EpollEvent::empty(); 64];
        let mut turn = self.clock.now();
        loop {
            self.handle_shards();
            self.handle_timeouts();
            self.publish();
            if let Some(code) = self.exit {
                self.stop();
                return code;
            }
            let wait = self.wait();
            let timeout = EpollTimeout::try_from(wait).unwrap_or(EpollTimeout::MAX);
            // A process that was stopped and goes on is interrupted here: what has arrived meanwhile is
            // read before anybody's time is over.
            let count = self.epoll.wait(&mut events, timeout);
            let count = count.or_else(|_| self.epoll.wait(&mut events, EpollTimeout::ZERO));
            let count = count.unwrap_or(0);
            let now = self.clock.now();
            let late = now.since(turn + wait);
            if late > (self.view.config.node_timeout / 4).max(LATE_MIN) {
                warn!("The process stood still for {} ms", late.as_millis());
                self.registry.handle_stall(now);
                self.heartbeats.handle_stall(now);
                if let Some(gathering) = &mut self.gathering {
                    gathering.deadline = now + FIGURES_TIME_MAX;
                }
            }
            turn = now;
            for event in events.iter().take(count) {
                match event.data() {
                    SIGNALS => self.handle_signals(now),
                    BELL => {
                        let _ = self.bell.read();
                        if self.hosts.handle_answers(now) {
                            self.configure_nodes(now);
                        }
                    }
                    SHARDS => {} // Looked at in every turn.
                    token if probe::Sockets::owns(token) => {
                        self.probes.handle_ready(now, token, &mut self.prober, &self.epoll);
                    }
                    token if Heartbeats::owns(token) => {
                        let registry = &mut self.registry;
                        self.heartbeats.handle_ready(now, token, &self.epoll, registry);
                        self.log_events();
                    }
                    token => self.handle_http(now, token),
                }
            }
        }
    }

    /// How long there is nothing to do.
    fn wait(&self) -> Duration {
        let now = self.clock.now();
        let gathering = self.gathering.as_ref().map(|it| it.deadline.min(now + FIGURES_PERIOD));
        let next = [
            Some(self.file.poll_timeout()),
            self.registry.poll_timeout(),
            self.prober.poll_timeout(),
            self.hosts.poll_timeout(),
            self.kubernetes.as_ref().and_then(Kubernetes::poll_timeout),
            self.server.as_ref().and_then(Server::poll_timeout),
            self.heartbeats.poll_timeout(),
            gathering,
            self.registry.has_changed().then(|| self.pace.poll_timeout()),
            self.view.stopping.map(|it| it + STOP_GRACE),
        ];
        let next = next.into_iter().flatten().min().map_or(WAIT_MAX, |it| it.since(now));
        // Rounded up: waking before the time would be a busy loop.
        let millis = next.min(WAIT_MAX).as_nanos().div_ceil(1_000_000);
        Duration::from_millis(u64::try_from(millis).unwrap_or(0))
    }

    fn handle_shards(&mut self) {
        let now = self.clock.now();
        for _ in 0..NOTICES_PER_TURN {
            match self.shards.poll() {
                Some(Said::Report(report)) => {
                    if let Err(refused) = self.registry.handle_report(now, report)
                        && self.refused_logged.is_none_or(|it| now.since(it) >= REFUSED_LOG_PERIOD)
                    {
                        self.refused_logged = Some(now);
                        warn!("Heartbeat refused: {refused}");
                    }
                    self.log_events();
                }
                Some(Said::Resolve { shard, query }) => {
                    let addressee = self.shards.addressee(shard);
                    self.names.ask(query, reach(&self.view.config), addressee);
                }
                Some(Said::Figures) => {
                    if let Some(gathering) = &mut self.gathering {
                        gathering.missing = gathering.missing.saturating_sub(1);
                    }
                }
                Some(Said::Ended { shard, failure }) => self.handle_end(shard, failure),
                None => break,
            }
        }
    }

    fn handle_end(&mut self, shard: u8, failure: Option<String>) {
        self.shards_running = self.shards_running.saturating_sub(1);
        let is_expected = self.view.stopping.is_some() && failure.is_none();
        if !is_expected {
            // Its share of the traffic is lost: better to end and be started again.
            let why = failure.unwrap_or_else(|| "it ended on its own".to_owned());
            error!("Shard {shard} has failed: {why}");
            self.exit = Some(EXIT_FAILED);
        } else if self.shards_running == 0 {
            self.exit.get_or_insert(EXIT_OK);
        }
    }

    fn handle_timeouts(&mut self) {
        let now = self.clock.now();
        let is_time = self.file.poll_timeout() <= now;
        if let Some(config) = self.file.handle_timeout(now) {
            self.configure(now, config);
        }
        if is_time {
            self.is_stale |= self.shards.refresh(&self.view);
        }
        self.hosts.handle_timeout(now, &self.names);
        self.heartbeats.handle_timeout(now, &self.epoll);
        if let Some(kubernetes) = &mut self.kubernetes {
            kubernetes.handle_events(now, &mut self.registry);
        }
        self.log_events();
        self.registry.handle_timeout(now);
        while let Some(action) = self.prober.poll_action(now) {
            let gateway = self.view.config.tls_gateway;
            let tls = probe::Tls { security: self.shards.security(), gateway };
            self.probes.send(now, action, tls, &mut self.prober, &self.epoll);
        }
        while let Some((node, pulse)) = self.prober.poll_pulse() {
            self.registry.handle_pulse(now, node, pulse);
        }
        self.log_events();
        if let Some(server) = &mut self.server {
            server.handle_timeout(now, &self.epoll);
        }
        if self.gathering.as_ref().is_some_and(|it| it.missing == 0 || it.deadline <= now)
            && let Some(gathering) = self.gathering.take()
        {
            for (connection, page) in gathering.pages {
                let response = self.page(now, page);
                self.respond(now, connection, &response);
            }
        }
        if self.view.stopping.is_some_and(|it| it + STOP_GRACE <= now) {
            warn!("{} shards have not ended", self.shards_running);
            self.exit.get_or_insert(EXIT_OK);
        }
    }

    fn log_events(&mut self) {
        while let Some(event) = self.registry.poll_event() {
            log::log!(event.level(), "{event}");
        }
    }

    /// Hands shards what has changed, once per turn at most.
    fn publish(&mut self) {
        let begin = self.clock.now();
        if self.pace.is_due(begin)
            && let Some(snapshot) = self.registry.snapshot()
        {
            let rules = Arc::from(self.rules.as_slice());
            clusters(&snapshot, &self.view);
            self.view.snapshot = Arc::new(snapshot.after(&self.view.snapshot).with_rules(rules));
            self.pace.handle_built(begin, self.clock.now());
            self.is_stale = true;
        }
        if std::mem::take(&mut self.is_stale) {
            self.shards.publish(&self.view);
        }
        while let Some((from, to)) = self.registry.poll_switch_over() {
            self.shards.switch_over(from, to);
        }
    }

    fn configure(&mut self, now: Time, config: Arc<Config>) {
        if config.log_level != self.view.config.log_level {
            logs::set_level(config.log_level);
        }
        self.view.config = config;
        self.is_stale = true;
        self.hosts.configure(now, &self.view.config);
        if let Some(kubernetes) = &mut self.kubernetes {
            kubernetes.configure(now, &self.view.config);
        }
        self.heartbeats.configure(&self.view.config);
        self.configure_nodes(now);
    }

    fn configure_nodes(&mut self, now: Time) {
        let config = &self.view.config;
        self.view.extra_servers = self.hosts.resolved(&config.extra_server_nodes);
        self.view.smpp_servers = self.hosts.resolved(&config.smpp.servers);
        self.view.unavailable = self.hosts.resolved(&config.http.unavailable).first().copied();
        self.is_stale = true;
        self.registry.configure(now, Rules::from(&**config), &self.hosts.addresses());
        self.prober.configure(now, config.probe, self.registry.probed());
    }

    fn handle_signals(&mut self, now: Time) {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            if i32::try_from(signal.ssi_signo) == Ok(Signal::SIGHUP as i32) {
                if let Some(config) = self.file.reload() {
                    self.configure(now, config);
                }
                self.is_stale |= self.shards.refresh(&self.view);
            } else if self.view.stopping.is_some() {
                self.drain(now, Duration::ZERO);
            } else {
                self.drain(now, self.view.config.shutdown_timeout);
            }
        }
    }

    /// The statistics port closes first: that is what IP load balancers and keepalived look at, unless
    /// they ask for `/health`. Traffic goes on until the time is over.
    fn drain(&mut self, now: Time, time: Duration) {
        if !self.view.config.stop_keeps_statistics
            && let Some(server) = &mut self.server
        {
            server.stop_listening();
        }
        let millis = time.as_millis();
        warn!("GracefulShutdown was called, stopping the Load Balancer into {millis} ms.");
        self.view.stopping = Some(now + time);
        self.is_stale = true;
    }

    fn handle_http(&mut self, now: Time, token: u64) {
        let Some(server) = &mut self.server else { return };
        let credentials = Credentials::from(&*self.view.config);
        let ready = server.handle_ready(now, token, &self.epoll, &credentials);
        let Some((connection, command)) = ready else { return };
        let response = match command {
            Command::Stat => return self.gather(now, connection, Page::Stat),
            Command::Info => return self.gather(now, connection, Page::Info),
            Command::Metrics => return self.gather(now, connection, Page::Metrics),
            Command::Health => self.page(now, Page::Health),
            Command::Stop => {
                if self.view.stopping.is_none() {
                    self.drain(now, self.view.config.shutdown_timeout);
                }
                Response::text(200, "Load Balancer is stopping.\n")
            }
            Command::LogLevel(level) => {
                logs::set_level(level);
                Response::text(200, "Log level changed")
            }
            Command::NodeRegex { regex, node } => self.tie(regex, node),
            Command::Order { node, order } => self.handle_order(now, &node, order),
            Command::Explain { source, listener, leg, message } => {
                let message = Explain { source, listener, leg, message };
                self.shards.explain(&message, &self.facts(now))
            }
        };
        self.respond(now, connection, &response);
    }

    /// A page that needs the shards' figures: asks them, unless they have just been asked.
    fn gather(&mut self, now: Time, connection: Connection, page: Page) {
        let gathering = self.gathering.get_or_insert_with(|| {
            self.shards.ask_figures();
            Gathering {
                missing: self.shards_running,
                deadline: now + FIGURES_TIME_MAX,
                pages: Vec::new(),
            }
        });
        gathering.pages.push((connection, page));
    }

    fn page(&self, now: Time, page: Page) -> Response {
        self.shards.page(page, &self.facts(now))
    }

    fn facts(&self, now: Time) -> Facts<'_> {
        let beats = self.heartbeats.figures();
        Facts { now, view: &self.view, registry: &self.registry, beats }
    }

    fn respond(&mut self, now: Time, connection: Connection, response: &Response) {
        if let Some(server) = &mut self.server {
            server.respond(now, connection, response, &self.epoll);
        }
    }

    /// The rest of the stop, in the original's words (5.4).
    fn stop(self) {
        let own = heartbeats::own_address(&self.view.config);
        let farewell = own.map(|own| Farewell::say(own, self.registry.listening_nodes()));
        info!("Stopping the sip forwarder");
        for (leg, ip, transport, port) in listening_points(&self.view.config) {
            let transport = transport.as_via();
            info!("Removing the following Listening Point {leg} {transport} {ip} : {port}");
        }
        info!("Removing the sip provider");
        let ports = *self.shards.ports();
        drop(self.shards);
        info!("Sip forwarder SIP stack stopped");
        if ports.http.is_some() || ports.https.is_some() {
            info!("Stopping the http forwarder");
        }
        if ports.smpp.is_some() {
            info!("Stopping the SMPP balancer");
            let (name, host) = smpp_name(&self.view.config);
            info!("{name} stopped at {host}");
        }
        if let Some(farewell) = farewell {
            farewell.wait();
        }
        info!("Unregistering the node registry");
        info!("Unregistering the node adapter");
        drop(self.heartbeats);
        info!("Stopping the node registry");
        info!("Stopping node registry...");
        info!("Node Expiration Task cancelled true");
        info!("Node registry stopped.");
    }
}

impl From<&Config> for Credentials {
    fn from(config: &Config) -> Credentials {
        Credentials {
            required: config.security_required,
            login: config.login.clone(),
            password: config.password.clone(),
        }
    }
}

/// Those that end or reload the process.
pub(crate) fn signals() -> SigSet {
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect()
}

/// Wall clock, milliseconds since 1970.
fn epoch_ms() -> u64 {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(wall.as_millis()).unwrap_or(0)
}

/// The standard library keys its hasher from the system's entropy.
fn seed() -> u64 {
    use std::hash::BuildHasher;
    std::hash::RandomState::new().hash_one(0)
}

/// Epoll tokens; `probe`, `http` and `heartbeats` have ranges of their own.
const SIGNALS: u64 = 0;
const BELL: u64 = 1;
const SHARDS: u64 = 2;
/// The configuration file is looked at more often than that.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// What a busy machine may do to any turn, however short `nodeTimeout` is.
const LATE_MIN: Duration = Duration::from_millis(100);
/// Fairness: whatever shards report, signals and administration get their turn.
const NOTICES_PER_TURN: usize = 4096;
/// A shard that has not answered by then is busy or stuck; the page shows what it said last.
const FIGURES_TIME_MAX: Duration = Duration::from_secs(1);
/// Shards do not ring for figures: while some are on their way we look ourselves.
const FIGURES_PERIOD: Duration = Duration::from_millis(2);
/// After the end of the drain, for shards to wind up.
const STOP_GRACE: Duration = Duration::from_secs(2);
/// Anyone who reaches the internal leg can send rubbish; the log must not grow by it.
const REFUSED_LOG_PERIOD: Duration = Duration::from_secs(5);
