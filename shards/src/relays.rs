//! The stream relays of the process, HTTP and SMPP: their ports, a pump for each shard, what they are told
//! when the configuration changes, and what they count.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use engine::balance::Shard;
use engine::config::Config;
use engine::names::literal;
use engine::relay::Report;
use engine::relay::http::{Http, HttpSettings};
use engine::relay::smpp::{Active as SmppActive, Smpp, SmppSettings};
use engine::relay::stream::Wire;
use engine::snapshot::{Family, Snapshot};
use engine::stats::smpp::{SmppCounters, SmppDrop};
use engine::stats::{Counters, HttpCounters, Refusal};
use log::warn;
use protocols::time::Time;
use socket2::Socket;

use crate::census::{Census, Full};
use crate::control::{Ports, View};
use crate::listeners::{OpenError, SocketOptions, everywhere, open_port};
use crate::publish::Published;
use crate::pump::{Door, Driven, Pump, PumpSetup, Pumped};
use crate::tcp;
use crate::tls::StreamProtocol;

/// The stream relays as the control thread holds them.
pub(crate) struct Relays {
    ports: Ports,
    http: Option<Side<Http>>,
    smpp: Option<Side<Smpp>>,
    shards: usize,
}

/// One relay on all shards.
struct Side<R: Driven> {
    settings: Arc<Published<R::Settings>>,
    /// By shard.
    counters: Vec<Arc<Mutex<R::Counters>>>,
}

/// What shards are given: by shard, then by relay.
pub(crate) type Pumps = Vec<Vec<Box<dyn Pumped>>>;

/// What can be opened.
pub(crate) struct Terms<'t> {
    /// How many shards.
    pub(crate) shards: usize,
    /// How sockets are opened.
    pub(crate) options: &'t SocketOptions,
    /// There is a certificate for the ports of TLS.
    pub(crate) has_certificate: bool,
    /// Address of a host name.
    pub(crate) resolve: &'t dyn Fn(&str, Family) -> Result<IpAddr, String>,
}

impl Relays {
    /// Opens the ports and makes a pump of each relay for each shard.
    ///
    /// # Errors
    ///
    /// What the operator has to change. A port that is open by default and taken is none: the process goes
    /// on without it (`http-smpp-registry.md` 1.1).
    pub(crate) fn open(view: &View, terms: &Terms<'_>) -> Result<(Relays, Pumps), String> {
        let config = &view.config;
        let mut pumps: Pumps = (0..terms.shards).map(|_| Vec::new()).collect();
        let mut relays =
            Relays { ports: Ports::default(), http: None, smpp: None, shards: terms.shards };
        let everywhere = |port: Option<u16>| port.map(everywhere);
        let plain = terms.open("HTTP", everywhere(config.http.port), false, config)?;
        let secure = terms.open("HTTPS", everywhere(config.http.tls_port), true, config)?;
        relays.ports.http = config.http.port.filter(|_| plain.is_some());
        relays.ports.https = config.http.tls_port.filter(|_| secure.is_some());
        if plain.is_some() || secure.is_some() {
            let settings = relays.http_settings(view);
            let scattered = false; // one connection's bytes all come to one shard
            let make = |settings: &Arc<HttpSettings>, index| {
                Http::new(Arc::clone(settings), Shard { index, scattered })
            };
            let doors = doors(terms.shards, [(plain, false), (secure, true)]);
            let side = Side::start(StreamProtocol::Http, None, settings, doors, make, &mut pumps);
            relays.http = Some(side);
        }
        if config.smpp.port.is_some() {
            relays.open_smpp(view, terms, &mut pumps)?;
        }
        Ok((relays, pumps))
    }

    fn open_smpp(
        &mut self,
        view: &View,
        terms: &Terms<'_>,
        pumps: &mut Pumps,
    ) -> Result<(), String> {
        let smpp = &view.config.smpp;
        let host = smpp.external_host.as_ref().or(smpp.host.as_ref());
        let ip = host.map(|it| terms.ip(it)).transpose()?;
        let at = |port: Option<u16>| {
            port.map(|port| ip.map_or_else(|| everywhere(port), |ip| SocketAddr::new(ip, port)))
        };
        let plain = terms.open("SMPP", at(smpp.port), false, &view.config)?;
        let secure = terms.open("SMPP over TLS", at(smpp.tls_port), true, &view.config)?;
        self.ports.smpp = smpp.port.filter(|_| plain.is_some());
        self.ports.smpp_tls = smpp.tls_port.filter(|_| secure.is_some());
        let source = smpp.internal_host.as_ref().or(smpp.host.as_ref());
        let source = source.map(|it| terms.ip(it)).transpose()?;
        let shards = terms.shards;
        let active = Arc::new(SmppActive::default());
        let make = |settings: &Arc<SmppSettings>, shard| {
            let settings = SmppSettings { shard, shards, ..(**settings).clone() };
            Smpp::new(settings).sharing(Arc::clone(&active))
        };
        let settings = self.smpp_settings(view);
        let doors = doors(shards, [(plain, false), (secure, true)]);
        let protocol = StreamProtocol::Smpp;
        self.smpp = Some(Side::start(protocol, source, settings, doors, make, pumps));
        Ok(())
    }

    /// What is open.
    pub(crate) const fn ports(&self) -> &Ports {
        &self.ports
    }

    /// Tells the relays what has changed. They look when they have their turn: wake the shards afterwards.
    pub(crate) fn publish(&self, view: &View) {
        if let Some(side) = &self.http {
            let now = side.settings.current();
            let config = self.of_open_ports(&view.config);
            if now.config != config || now.unavailable != view.unavailable {
                side.settings.publish(Arc::new(HttpSettings::new(config, view.unavailable)));
            }
        }
        if let Some(side) = &self.smpp {
            let settings = self.smpp_settings(view);
            if *side.settings.current() != settings {
                side.settings.publish(Arc::new(settings));
            }
        }
    }

    /// Adds what a shard's relays counted, as of when its pumps were asked for their figures.
    pub(crate) fn count(&self, shard: u8, counters: &mut Counters) {
        let shard = usize::from(shard);
        if let Some(it) = self.http.as_ref().and_then(|it| it.of(shard)) {
            counters.http = it;
        }
        if let Some(it) = self.smpp.as_ref().and_then(|it| it.of(shard)) {
            counters.smpp = it;
        }
    }

    fn http_settings(&self, view: &View) -> HttpSettings {
        HttpSettings::new(self.of_open_ports(&view.config), view.unavailable)
    }

    fn smpp_settings(&self, view: &View) -> SmppSettings {
        SmppSettings::new(&view.config, view.smpp_servers.clone(), 0, self.shards)
    }

    /// The configuration without ports that stayed closed: the relay numbers its listeners by it.
    fn of_open_ports(&self, config: &Config) -> Config {
        let mut config = config.clone();
        config.http.port = self.ports.http;
        config.http.tls_port = self.ports.https;
        config
    }
}

impl Terms<'_> {
    /// Opens one port on every shard, unless it is not configured or cannot be had and may stay closed.
    fn open(
        &self,
        name: &str,
        address: Option<SocketAddr>,
        is_secure: bool,
        config: &Config,
    ) -> Result<Option<Vec<Socket>>, String> {
        let Some(address) = address else { return Ok(None) };
        let port = address.port();
        if is_secure && !self.has_certificate {
            warn!("No listener on {address} for {name}: there is no certificate");
            return Ok(None);
        }
        match open_port(address, self.shards, self.options) {
            Ok(sockets) => {
                // Connections that are accepted inherit it.
                sockets.iter().for_each(|it| drop(tcp::probe_idle(it)));
                Ok(Some(sockets))
            }
            Err(OpenError { error, .. }) if config.unwritten_ports.contains(&port) => {
                warn!("{name} forwarder could not be restarted. Port {port}: {error}");
                Ok(None)
            }
            Err(error) => Err(format!("{name}: {error}")),
        }
    }

    fn ip(&self, host: &str) -> Result<IpAddr, String> {
        let resolve =
            || (self.resolve)(host, Family::V4).or_else(|_| (self.resolve)(host, Family::V6));
        literal(host).map_or_else(resolve, Ok)
    }
}

/// By shard, in the order of the relay's listeners.
fn doors(shards: usize, ports: [(Option<Vec<Socket>>, bool); 2]) -> Vec<Vec<Door>> {
    let mut doors: Vec<Vec<Door>> = (0..shards).map(|_| Vec::new()).collect();
    for (sockets, is_secure) in ports {
        for (of_shard, socket) in doors.iter_mut().zip(sockets.into_iter().flatten()) {
            of_shard.push(Door::new(socket, is_secure));
        }
    }
    doors
}

impl<R: Driven> Side<R> {
    fn start(
        protocol: StreamProtocol,
        source: Option<IpAddr>,
        settings: R::Settings,
        doors: Vec<Vec<Door>>,
        make: impl Fn(&Arc<R::Settings>, usize) -> R,
        pumps: &mut Pumps,
    ) -> Side<R> {
        let settings = Published::new(Arc::new(settings), Vec::new());
        let mut side = Side { settings, counters: Vec::new() };
        let census = Arc::new(Census::default());
        for (index, (doors, of_shard)) in doors.into_iter().zip(pumps).enumerate() {
            let counters = Arc::default();
            side.counters.push(Arc::clone(&counters));
            let settings = side.settings.subscribe();
            let relay = make(settings.current(), index);
            let census = Arc::clone(&census);
            let setup = PumpSetup { relay, source, protocol, doors, settings, counters, census };
            of_shard.push(Box::new(Pump::new(setup)));
        }
        side
    }

    fn of(&self, shard: usize) -> Option<R::Counters> {
        let counters = self.counters.get(shard)?;
        Some(counters.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

impl Driven for Http {
    type Settings = HttpSettings;
    type Counters = HttpCounters;

    fn configure(
        &mut self,
        _now: Time,
        settings: &Arc<HttpSettings>,
        _snapshot: &Snapshot,
        _wire: &mut impl Wire,
    ) {
        Http::configure(self, Arc::clone(settings));
    }

    fn source_connections_max(&self) -> usize {
        Http::source_connections_max(self)
    }

    fn reads_preface(&self) -> bool {
        Http::reads_preface(self)
    }

    fn refused(&mut self, why: Full) {
        let why = match why {
            Full::All => Refusal::Connections,
            Full::Source => Refusal::SourceConnections,
        };
        Http::refused(self, why);
    }

    fn handle_snapshot(&mut self, now: Time, snapshot: &Snapshot, wire: &mut impl Wire) {
        Http::handle_snapshot(self, now, snapshot, wire);
    }

    fn handle_stopping(&mut self, now: Time, wire: &mut impl Wire) {
        Http::handle_stopping(self, now, wire);
    }

    fn handle_over(&mut self, wire: &mut impl Wire) {
        Http::handle_over(self, wire);
    }

    fn poll_report(&mut self, now: Time, snapshot: &Snapshot) -> Option<Report> {
        Http::poll_report(self, now, snapshot)
    }

    fn counters(&mut self) -> HttpCounters {
        let mut counters = Http::counters(self).clone();
        counters.busy = self.busy();
        counters
    }
}

impl Driven for Smpp {
    type Settings = SmppSettings;
    type Counters = SmppCounters;

    fn configure(
        &mut self,
        now: Time,
        settings: &Arc<SmppSettings>,
        snapshot: &Snapshot,
        wire: &mut impl Wire,
    ) {
        self.reload(now, (**settings).clone(), snapshot, wire);
    }

    fn source_connections_max(&self) -> usize {
        Smpp::source_connections_max(self)
    }

    fn refused(&mut self, why: Full) {
        let why = match why {
            Full::All => SmppDrop::Full,
            Full::Source => SmppDrop::SourceConnections,
        };
        Smpp::refused(self, why);
    }

    fn handle_snapshot(&mut self, now: Time, snapshot: &Snapshot, wire: &mut impl Wire) {
        Smpp::handle_snapshot(self, now, snapshot, wire);
    }

    fn handle_stopping(&mut self, now: Time, wire: &mut impl Wire) {
        self.stop(now, wire);
    }

    fn poll_report(&mut self, _now: Time, _snapshot: &Snapshot) -> Option<Report> {
        None
    }

    fn counters(&mut self) -> SmppCounters {
        Smpp::counters(self).clone()
    }
}
