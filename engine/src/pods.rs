//! Pods of Kubernetes as nodes: which of them count, and what their labels say of them
//! (`http-smpp-registry.md` 3.6).
//!
//! Reads what the API server says of pods and applies it to the registry. A pod that counts is repeated
//! to the registry every `pullPeriod`, as if it sent heartbeats, also while the API server is away: its
//! failure is not theirs. Leaves to others how to talk to the API server.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use protocols::heartbeat::NodeWords;
use protocols::time::Time;

use crate::config::Config;
use crate::names::literal;
use crate::registry::{Announcement, BeatError, Refused, Registry, Source};
use crate::snapshot::NODES_MAX;

/// What the API server says of one pod.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Pod {
    /// Its name; no two of them have the same one at the same time.
    pub name: String,
    /// Tells it from another pod of the same name before or after it.
    pub uid: String,
    /// Its address, once it has one.
    pub ip: Option<String>,
    /// How far it is.
    pub phase: Phase,
    /// Its containers.
    pub containers: Vec<Container>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// It was told to end.
    pub is_terminating: bool,
}

/// Phase of a pod, as far as it matters.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Phase {
    /// `Pending`, `Unknown`, or anything new.
    #[default]
    Other,
    /// `Running`.
    Running,
    /// `Succeeded` or `Failed`: it never runs again.
    Ended,
}

/// One container of a pod.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// It answers its probes.
    pub is_ready: bool,
    /// How often it was started again.
    pub restarts: u32,
}

/// What a look at the API server brings.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PodEvent {
    /// These are all: any other is gone.
    Listed(Vec<Pod>),
    /// It is new or has changed.
    Changed(Box<Pod>),
    /// The one of this name is gone.
    Deleted(String),
}

/// What the configuration says of pods.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PodRules {
    /// Beginning of the names of pods that are nodes, and of their containers that must be ready.
    pub node_name: String,
    /// From one repetition to the next.
    pub pull_period: Duration,
    /// Our addresses, as label `lbs` names them; empty if we do not know.
    pub own: Vec<IpAddr>,
}

impl PodRules {
    /// `None`: the nodes are not to be looked for in Kubernetes.
    ///
    /// `interfaces` are the addresses of this host: who listens on any address is reached by each of them,
    /// and by that of the IP load balancer or of the translator in front.
    pub fn of(config: &Config, interfaces: &[IpAddr]) -> Option<PodRules> {
        let kubernetes = config.kubernetes.is_on.then_some(&config.kubernetes)?;
        let mut own = BTreeSet::new();
        for leg in [&config.external, &config.internal] {
            for (ports, host, common, balancer, public) in [
                (&leg.ports, &leg.host, &config.host, &leg.balancer, &config.public_ip),
                (
                    &leg.ipv6_ports,
                    &leg.ipv6_host,
                    &config.ipv6_host,
                    &leg.ipv6_balancer,
                    &config.public_ipv6,
                ),
            ] {
                let host = host.as_ref().or(common.as_ref()).filter(|_| !ports.is_empty());
                let Some(ip) = host.and_then(|it| literal(it)) else { continue };
                if ip.is_unspecified() {
                    own.extend(interfaces.iter().filter(|it| it.is_ipv4() == ip.is_ipv4()));
                    own.extend(balancer.iter().chain(public).filter_map(|it| literal(it)));
                } else {
                    own.insert(ip);
                }
            }
        }
        Some(PodRules {
            node_name: kubernetes.node_name.clone(),
            pull_period: kubernetes.pull_period,
            own: own.into_iter().collect(),
        })
    }

    /// Whether pods of this name may be nodes; others need not be told of.
    pub fn names(&self, pod: &str) -> bool {
        pod.starts_with(&self.node_name)
    }

    /// Whether the pod wants our calls. Values of labels cannot have commas, so that lists are apart by
    /// other things, too.
    fn is_wanted_by(&self, pod: &Pod) -> bool {
        let Some(list) = pod.labels.get("lbs").filter(|it| !it.is_empty()) else { return true };
        let mut named = list.split([',', '_', ' ']).filter_map(|it| it.parse::<IpAddr>().ok());
        self.own.is_empty() || named.any(|it| self.own.contains(&it))
    }

    fn is_ready(&self, pod: &Pod) -> bool {
        pod.containers.iter().any(|it| it.is_ready && it.name.starts_with(&self.node_name))
    }

    /// Incarnation: the label, or else what changes when the pod or its container starts anew.
    fn session(&self, pod: &Pod) -> String {
        if let Some(it) = pod.labels.get("sessionId").filter(|it| !it.is_empty()) {
            return it.clone();
        }
        let ours = pod.containers.iter().filter(|it| it.name.starts_with(&self.node_name));
        format!("{}/{}", pod.uid, ours.map(|it| u64::from(it.restarts)).sum::<u64>())
    }

    /// The pod's words about itself.
    fn announcement(&self, pod: &Pod, session: String) -> Result<Announcement, BeatError> {
        let labels = pod.labels.iter().filter(|(name, _)| *name != "hostName");
        let mut properties: Vec<(String, String)> =
            labels.map(|(name, value)| (name.clone(), value.clone())).collect();
        properties.push(("sessionId".to_owned(), session));
        let words = NodeWords {
            host_name: pod.labels.get("hostName").unwrap_or(&pod.name).clone(),
            ip: pod.ip.clone().unwrap_or_default(),
            properties,
        };
        let mut said = Announcement::from_words(Source::Kubernetes, words)?;
        let is_labelled = pod.labels.get("graceful-shutdown").is_some_and(|it| it == "true");
        said.graceful |= is_labelled || pod.is_terminating;
        Ok(said)
    }
}

/// Every pod that is a node, or was refused as one. Owned by the control executor.
#[derive(Debug)]
pub struct Pods {
    rules: PodRules,
    known: BTreeMap<String, Known>,
    complaints: VecDeque<Complaint>,
    next: Time,
}

#[derive(Debug)]
struct Known {
    /// What it says; `None`: it was never ready.
    said: Option<Announcement>,
    /// It counts; else it is said no more and expires.
    counts: bool,
    /// What was last wrong with it: each thing is told once.
    wrong: Option<Wrong>,
}

/// A pod that cannot be a node, for the log.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Complaint {
    /// Its name.
    pub pod: String,
    /// Why.
    pub wrong: Wrong,
}

/// Why a pod is not a node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Wrong {
    /// Its labels say nothing that a node could be.
    Words(BeatError),
    /// The registry does not believe it.
    Refused(Refused),
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pod = &self.pod;
        match self.wrong {
            Wrong::Words(error) => write!(f, "Pod {pod} is no node: {error}"),
            Wrong::Refused(refused) => write!(f, "Pod {pod} refused: {refused}"),
        }
    }
}

impl Pods {
    /// Knows none.
    pub fn new(now: Time, rules: PodRules) -> Pods {
        let next = now + rules.pull_period;
        Pods { rules, known: BTreeMap::new(), complaints: VecDeque::new(), next }
    }

    /// Takes over another period. The rest changes at a restart.
    pub fn configure(&mut self, now: Time, rules: &PodRules) {
        self.rules.pull_period = rules.pull_period;
        self.next = self.next.min(now + rules.pull_period);
    }

    /// Takes in what the API server says.
    pub fn handle_event(&mut self, now: Time, event: PodEvent, registry: &mut Registry) {
        match event {
            PodEvent::Listed(pods) => {
                let there: BTreeSet<&str> = pods.iter().map(|it| it.name.as_str()).collect();
                let is_gone = |name: &&String| !there.contains(name.as_str());
                let gone: Vec<String> = self.known.keys().filter(is_gone).cloned().collect();
                for name in gone {
                    self.handle_end(now, &name, registry);
                }
                for pod in pods {
                    self.handle_pod(now, &pod, registry);
                }
            }
            PodEvent::Changed(pod) => self.handle_pod(now, &pod, registry),
            PodEvent::Deleted(name) => self.handle_end(now, &name, registry),
        }
    }

    /// Repeats who counts, if it is time.
    pub fn handle_timeout(&mut self, now: Time, registry: &mut Registry) {
        if now < self.next {
            return;
        }
        self.next = now + self.rules.pull_period;
        for (name, known) in &mut self.known {
            if let Some(said) = known.said.as_ref().filter(|_| known.counts) {
                let wrong = registry.handle_repeated(now, said).err().map(Wrong::Refused);
                complain(&mut self.complaints, name, known, wrong);
            }
        }
    }

    /// When [`Pods::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.known.values().any(|it| it.counts).then_some(self.next)
    }

    /// The next pod that cannot be a node.
    pub fn poll_complaint(&mut self) -> Option<Complaint> {
        self.complaints.pop_front()
    }

    fn handle_pod(&mut self, now: Time, pod: &Pod, registry: &mut Registry) {
        if !self.rules.names(&pod.name) {
            return;
        }
        if pod.phase == Phase::Ended {
            return self.handle_end(now, &pod.name, registry);
        }
        let room = self.known.len() < NODES_MAX;
        let known = match self.known.get_mut(&pod.name) {
            Some(it) => it,
            // Past that the registry has no room, either.
            None if room => self.known.entry(pod.name.clone()).or_insert(Known {
                said: None,
                counts: false,
                wrong: None,
            }),
            None => return,
        };
        let session = self.rules.session(pod);
        let before = known.said.as_ref().and_then(|it| it.session.as_deref());
        let is_admitted = before == Some(session.as_str()) || self.rules.is_ready(pod);
        known.counts = pod.phase == Phase::Running && is_admitted && self.rules.is_wanted_by(pod);
        if !known.counts {
            return;
        }
        let wrong = match self.rules.announcement(pod, session) {
            Ok(said) => {
                // Whoever has its old address now, it is not this pod.
                if let Some(old) = known.said.as_ref().filter(|it| it.ip != said.ip) {
                    stop(now, old, registry);
                }
                let refused = registry.handle_repeated(now, &said).err();
                known.said = Some(said);
                refused.map(Wrong::Refused)
            }
            Err(error) => {
                known.counts = false;
                Some(Wrong::Words(error))
            }
        };
        complain(&mut self.complaints, &pod.name, known, wrong);
    }

    fn handle_end(&mut self, now: Time, name: &str, registry: &mut Registry) {
        if let Some(said) = self.known.remove(name).and_then(|it| it.said) {
            stop(now, &said, registry);
        }
    }
}

fn complain(
    complaints: &mut VecDeque<Complaint>,
    pod: &str,
    known: &mut Known,
    wrong: Option<Wrong>,
) {
    if known.wrong == wrong {
        return;
    }
    known.wrong = wrong;
    if let Some(wrong) = wrong.filter(|_| complaints.len() < COMPLAINTS_MAX) {
        complaints.push_back(Complaint { pod: pod.to_owned(), wrong });
    }
}

/// Its process has ended: no need to wait for `nodeTimeout`.
fn stop(now: Time, said: &Announcement, registry: &mut Registry) {
    if let Some(node) = registry.find(said) {
        registry.handle_stop(now, node);
    }
}

/// More at once than anyone reads.
const COMPLAINTS_MAX: usize = 64;

#[cfg(test)]
mod tests;
