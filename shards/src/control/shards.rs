//! What control and shards have to say to each other.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use engine::config::Config;
use engine::names::{Answer, Query, Unresolved};
use engine::node::NodeKey;
use engine::registry::Registry;
use engine::relay::{Leg, Report};
use engine::snapshot::Snapshot;
use engine::stats::Beats;
use protocols::sip::Transport;
use protocols::time::Time;

use crate::admin::Response;
use crate::tls::Security;

/// The shards as control sees them. Dropping it joins their threads.
pub trait Shards {
    /// How many there are.
    fn count(&self) -> usize;

    /// The ports of HTTP and SMPP that are open.
    fn ports(&self) -> &Ports;

    /// Readable when [`Shards::poll`] has something; figures may come without it.
    fn waker(&self) -> BorrowedFd<'_>;

    /// The next thing that a shard says; puts the waker to rest when there is nothing.
    fn poll(&mut self) -> Option<Said>;

    /// What every shard goes by from its next batch on.
    fn publish(&mut self, view: &View);

    /// Looks whether files beside the configuration have changed (certificates): `true` if there is
    /// something to publish. Called as often as the configuration file is looked at.
    fn refresh(&mut self, view: &View) -> bool;

    /// Terms of TLS in force, for what control itself asks nodes.
    fn security(&self) -> Option<&Security>;

    /// Asks every shard for its figures; each answers by [`Said::Figures`]. An answer to an earlier question
    /// is kept, and not announced any more.
    fn ask_figures(&mut self);

    /// Tells every shard that all calls of one node are another's.
    fn switch_over(&mut self, from: NodeKey, to: NodeKey);

    /// Who takes the resolver's answer to a shard's [`Said::Resolve`]; called on the resolver's thread.
    fn addressee(&self, shard: u8) -> Addressee;

    /// One page of the statistics port, from what each shard said last.
    fn page(&self, page: Page, facts: &Facts<'_>) -> Response;

    /// The routing decision for one message, step by step.
    fn explain(&self, message: &Explain, facts: &Facts<'_>) -> Response;
}

/// How many shards a configuration means on these CPUs; they are pinned to the first ones.
pub fn shards_on(cpus: &[usize], config: &Config) -> usize {
    let count = if config.shards == 0 { cpus.len().max(1) } else { config.shards };
    count.min(usize::from(u8::MAX))
}

/// Takes what the resolver says to one shard's question.
pub type Addressee = Box<dyn FnOnce(Query, Result<Answer, Unresolved>) + Send>;

/// What shards tell control.
#[derive(Debug)]
pub enum Said {
    /// Something about nodes.
    Report(Report),
    /// A message waits for a name.
    Resolve {
        /// Who asks.
        shard: u8,
        /// What for.
        query: Query,
    },
    /// A shard has answered the latest [`Shards::ask_figures`].
    Figures,
    /// It has ended, as it was told or because it failed.
    Ended {
        /// Which.
        shard: u8,
        /// Why, if it was not told to.
        failure: Option<String>,
    },
}

/// Ports of the stream relays; what could not be opened is `None`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Ports {
    /// `httpPort`.
    pub http: Option<u16>,
    /// `httpsPort`.
    pub https: Option<u16>,
    /// `smppPort`.
    pub smpp: Option<u16>,
    /// `smppSslPort`.
    pub smpp_tls: Option<u16>,
}

/// What shards go by.
#[derive(Clone, Debug)]
pub struct View {
    /// The node table.
    pub snapshot: Arc<Snapshot>,
    /// The configuration in force.
    pub config: Arc<Config>,
    /// Addresses of `extraServerNodes`, as far as they are known.
    pub extra_servers: Vec<SocketAddr>,
    /// Addresses of `remoteServers`, likewise.
    pub smpp_servers: Vec<SocketAddr>,
    /// Address of `unavailableHost`, likewise.
    pub unavailable: Option<SocketAddr>,
    /// Set when the process stops: no traffic after this moment.
    pub stopping: Option<Time>,
}

/// A page of the statistics port.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Page {
    /// `/lbstat`.
    Stat,
    /// `/lbinfo`.
    Info,
    /// `/metrics`.
    Metrics,
    /// `/health`; made without figures.
    Health,
}

/// What pages are made of, besides the shards' figures.
#[derive(Clone, Copy)]
pub struct Facts<'c> {
    /// When.
    pub now: Time,
    /// What shards go by.
    pub view: &'c View,
    /// The records of all nodes.
    pub registry: &'c Registry,
    /// Heartbeats by RMI and HTTP.
    pub beats: Beats,
}

/// A message to be explained; see [`crate::admin::Command::Explain`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Explain {
    /// As if it came from here.
    pub source: Option<SocketAddr>,
    /// As if it came in here.
    pub listener: Option<(SocketAddr, Transport)>,
    /// As if it came in on this leg.
    pub leg: Option<Leg>,
    /// The message.
    pub message: Vec<u8>,
}
