//! The watch over the pods of a namespace, on a thread of its own: list, then watch from there on.
//!
//! Credentials are those that every client of Kubernetes finds: a kubeconfig, or the service account that
//! pods are given. What a pod means for the node table is [`engine::pods`]; here are the connection, its
//! failures, and the words of the API (`http-smpp-registry.md` 3.6). Needs the verbs `list` and `watch` on
//! pods of its namespace.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use engine::config::Config;
use engine::pods::{Container, Phase, Pod, PodEvent, PodRules, Pods};
use engine::registry::Registry;
use futures_util::{StreamExt, pin_mut};
use k8s_openapi::api::core::v1 as api;
use kube::api::{Api, ListParams, WatchEvent, WatchParams};
use kube::{Client, Error};
use log::{info, warn};
use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::sys::eventfd::EventFd;
use protocols::time::Time;

/// The pods as control sees them.
#[derive(Debug)]
pub struct Kubernetes {
    pods: Pods,
    events: Receiver<PodEvent>,
}

impl Kubernetes {
    /// Starts the thread, if the configuration asks for it; it lives as long as the process. `bell` is rung
    /// when [`Kubernetes::handle_events`] has something to do.
    ///
    /// # Errors
    ///
    /// Out of threads or descriptors: the process cannot start.
    pub fn start(now: Time, config: &Config, bell: Arc<EventFd>) -> std::io::Result<Option<Self>> {
        let Some(rules) = PodRules::of(config, &interfaces()) else { return Ok(None) };
        let own: Vec<String> = rules.own.iter().map(ToString::to_string).collect();
        if own.is_empty() {
            warn!("Kubernetes: label lbs has no effect: host is no address");
        } else {
            info!("Kubernetes: label lbs means this balancer where it names {}", own.join(" or "));
        }
        // With two of them linked the client's library would not choose, but panic. An error: there is one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (sender, events) = crossbeam_channel::bounded(EVENTS_MAX);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let watch =
            Watch { rules: rules.clone(), sender, bell, version: None, pause: None, told: None };
        std::thread::Builder::new()
            .name("kubernetes".into())
            .spawn(move || runtime.block_on(watch.run()))?;
        Ok(Some(Kubernetes { pods: Pods::new(now, rules), events }))
    }

    /// Takes over what can change at run time.
    pub fn configure(&mut self, now: Time, config: &Config) {
        // Addresses change at a restart alone.
        if let Some(rules) = PodRules::of(config, &[]) {
            self.pods.configure(now, &rules);
        }
    }

    /// Takes in what has come, and repeats who counts if it is time.
    pub fn handle_events(&mut self, now: Time, registry: &mut Registry) {
        for _ in 0..EVENTS_MAX {
            let Ok(event) = self.events.try_recv() else { break };
            self.pods.handle_event(now, event, registry);
        }
        self.pods.handle_timeout(now, registry);
        while let Some(complaint) = self.pods.poll_complaint() {
            warn!("{complaint}");
        }
    }

    /// When [`Kubernetes::handle_events`] has something to do though no bell rings.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.pods.poll_timeout()
    }
}

/// The thread's state.
struct Watch {
    rules: PodRules,
    sender: Sender<PodEvent>,
    bell: Arc<EventFd>,
    /// Up to where all is known; `None`: list first.
    version: Option<String>,
    /// How long it waited after the last failure; `None`: there was none since it went well.
    pause: Option<Duration>,
    /// What the log says last: what is wrong, or nothing if all is well. `None`: it says nothing yet.
    told: Option<String>,
}

/// Why a watch ended.
enum End {
    /// The other side of the channel is gone: the process stops.
    Stopped,
    /// What we know is too old to go on from (410): list again.
    Gone,
    /// The server ends every watch after a while: go on.
    Over,
    /// It fails.
    Failed(String),
}

impl From<Error> for End {
    fn from(error: Error) -> End {
        match error {
            Error::Api(status) if status.code == GONE => End::Gone,
            Error::Api(status) => End::Failed(format!("{} {}", status.code, status.message)),
            other => End::Failed(chain(&other)),
        }
    }
}

impl Watch {
    async fn run(mut self) {
        loop {
            match self.once().await {
                End::Stopped => return,
                End::Over => continue,
                End::Gone => self.version = None,
                End::Failed(why) => {
                    if self.told.as_ref() != Some(&why) {
                        warn!("Kubernetes: {why}. Pods that are nodes stay so for now.");
                        self.told = Some(why);
                    }
                }
            }
            // Soon at first: most troubles are over in a moment.
            let pause = self.pause.map_or(PAUSE_MIN, |it| it * 2);
            let pause = pause.min(self.rules.pull_period.max(PAUSE_MIN));
            self.pause = Some(pause);
            tokio::time::sleep(pause).await;
        }
    }

    /// Connects and follows the pods until something ends that. Credentials are read anew: they may have
    /// been what was wrong.
    async fn once(&mut self) -> End {
        let config = match kube::Config::infer().await {
            Ok(it) => it,
            Err(error) => return End::Failed(chain(&error)),
        };
        let place = format!("namespace {} at {}", config.default_namespace, config.cluster_url);
        let client = match Client::try_from(config) {
            Ok(it) => it,
            Err(error) => return End::from(error),
        };
        let pods: Api<api::Pod> = Api::default_namespaced(client);
        let result = match self.version.take() {
            Some(version) => self.follow(&pods, version, &place).await,
            None => self.list(&pods, &place).await,
        };
        result.err().unwrap_or(End::Over)
    }

    async fn list(&mut self, pods: &Api<api::Pod>, place: &str) -> Result<(), End> {
        let mut page = ListParams::default().limit(PAGE);
        let mut all = Vec::new();
        let version = loop {
            let list = tokio::time::timeout(LIST_TIME_MAX, pods.list(&page)).await;
            let list = list.map_err(|_| End::Failed("no answer".to_owned()))??;
            let ours = list.items.into_iter().map(pod).filter(|it| self.rules.names(&it.name));
            all.extend(ours);
            match list.metadata.continue_.filter(|it| !it.is_empty()) {
                Some(next) => page = page.continue_token(&next),
                None => break list.metadata.resource_version.unwrap_or_default(),
            }
        };
        self.say(PodEvent::Listed(all))?;
        self.go_well(place);
        self.follow(pods, version, place).await
    }

    async fn follow(
        &mut self,
        pods: &Api<api::Pod>,
        version: String,
        place: &str,
    ) -> Result<(), End> {
        self.version = Some(version.clone());
        let wanted = WatchParams::default().timeout(WATCH_SECONDS);
        let events = tokio::time::timeout(ANSWER_TIME_MAX, pods.watch(&wanted, &version)).await;
        let events = events.map_err(|_| End::Failed("no answer to the watch".to_owned()))??;
        pin_mut!(events);
        let begin = Instant::now();
        let silence_max = Duration::from_secs(u64::from(WATCH_SECONDS)) + LIST_TIME_MAX;
        loop {
            // The server ends the watch in time, unless it is gone without a word.
            let event = tokio::time::timeout(silence_max, events.next()).await;
            let event = event.map_err(|_| End::Failed("the watch has died".to_owned()))?;
            let event = match event {
                Some(it) => it?,
                None if begin.elapsed() < WATCH_TIME_MIN => {
                    return Err(End::Failed("the watch ended at once".to_owned()));
                }
                None => {
                    self.go_well(place);
                    return Ok(());
                }
            };
            if !matches!(event, WatchEvent::Error(_)) {
                self.go_well(place);
            }
            match event {
                WatchEvent::Added(it) | WatchEvent::Modified(it) => {
                    self.version = it.metadata.resource_version.clone().or(self.version.take());
                    let pod = pod(it);
                    if self.rules.names(&pod.name) {
                        self.say(PodEvent::Changed(Box::new(pod)))?;
                    }
                }
                WatchEvent::Deleted(it) => {
                    self.version = it.metadata.resource_version.or(self.version.take());
                    let name = it.metadata.name.unwrap_or_default();
                    if self.rules.names(&name) {
                        self.say(PodEvent::Deleted(name))?;
                    }
                }
                WatchEvent::Bookmark(it) => self.version = Some(it.metadata.resource_version),
                WatchEvent::Error(status) => return Err(End::from(Error::Api(status))),
            }
        }
    }

    fn go_well(&mut self, place: &str) {
        self.pause = None;
        if self.told.replace(String::new()).is_none_or(|it| !it.is_empty()) {
            info!("Kubernetes: pods {}* of {place} are nodes", self.rules.node_name);
        }
    }

    /// Hands an event to control; waits while it has too many.
    fn say(&self, event: PodEvent) -> Result<(), End> {
        self.sender.send(event).map_err(|_| End::Stopped)?;
        let _ = self.bell.write(1);
        Ok(())
    }
}

/// One pod as the API has it.
fn pod(it: api::Pod) -> Pod {
    let status = it.status.unwrap_or_default();
    let container = |it: api::ContainerStatus| Container {
        name: it.name,
        is_ready: it.ready,
        restarts: u32::try_from(it.restart_count).unwrap_or(0),
    };
    Pod {
        name: it.metadata.name.unwrap_or_default(),
        uid: it.metadata.uid.unwrap_or_default(),
        ip: status.pod_ip,
        phase: match status.phase.as_deref() {
            Some("Running") => Phase::Running,
            Some("Succeeded" | "Failed") => Phase::Ended,
            _ => Phase::Other,
        },
        containers: status.container_statuses.into_iter().flatten().map(container).collect(),
        labels: it.metadata.labels.unwrap_or_default(),
        is_terminating: it.metadata.deletion_timestamp.is_some(),
    }
}

/// Addresses of this host; none where the kernel does not tell.
fn interfaces() -> Vec<IpAddr> {
    let ip = |it: InterfaceAddress| -> Option<IpAddr> {
        let address = it.address?;
        let four = address.as_sockaddr_in().map(|it| it.ip().into());
        four.or_else(|| address.as_sockaddr_in6().map(|it| it.ip().into()))
    };
    getifaddrs().map(|all| all.filter_map(ip).collect()).unwrap_or_default()
}

/// An error and what is behind it: the outermost says little.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    for _ in 0..CAUSES_MAX {
        let Some(it) = cause else { break };
        let it_says = it.to_string();
        if !text.contains(&it_says) {
            text = format!("{text}: {it_says}");
        }
        cause = it.source();
    }
    text
}

/// The past is not kept that long.
const GONE: u16 = 410;
/// Pods of one answer to `list`.
const PAGE: u32 = 500;
/// Control looks at once; more than that wait with the server.
const EVENTS_MAX: usize = 256;
/// The server ends a watch by then, so that a connection that has died unseen does not last.
const WATCH_SECONDS: u32 = 60;
/// It begins to answer at once, before there are events.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);
/// A watch that ends sooner, without a word, was none.
const WATCH_TIME_MIN: Duration = Duration::from_secs(1);
/// For a page of pods.
const LIST_TIME_MAX: Duration = Duration::from_secs(30);
/// Before the first attempt after a failure; it doubles up to `pullPeriod`.
const PAUSE_MIN: Duration = Duration::from_millis(200);
/// Of an error.
const CAUSES_MAX: usize = 4;
