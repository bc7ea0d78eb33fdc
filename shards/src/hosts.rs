//! Host names in the configuration (`extraServerNodes`, `staticNodes`, `remoteServers`, `unavailableHost`):
//! resolved again and again, since machines move.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use engine::config::{Config, HostPort};
use engine::names::{Answer, Query, Reach, Unresolved, literal};
use log::warn;
use nix::sys::eventfd::EventFd;
use protocols::sip::Transport;
use protocols::time::Time;

use crate::names::Names;

/// What is known of the configured host names.
#[derive(Debug)]
pub struct Hosts {
    known: BTreeMap<String, Host>,
    answers: Receiver<(String, Result<Answer, Unresolved>)>,
    sender: Sender<(String, Result<Answer, Unresolved>)>,
    bell: Arc<EventFd>,
}

#[derive(Debug, Default)]
struct Host {
    ips: Vec<IpAddr>,
    failed: bool,
    asking: bool,
    next: Time,
}

impl Hosts {
    /// Knows nothing. `bell` is rung when [`Hosts::handle_answers`] has something to do.
    pub fn new(bell: Arc<EventFd>) -> Hosts {
        // One answer for each name that is being asked for; names are the operator's, so few.
        let (sender, answers) = crossbeam_channel::unbounded();
        Hosts { known: BTreeMap::new(), answers, sender, bell }
    }

    /// Takes the names from a configuration; new ones are due at once.
    pub fn configure(&mut self, now: Time, config: &Config) {
        let written = config
            .extra_server_nodes
            .iter()
            .map(|it| &it.host)
            .chain(config.static_nodes.iter().map(|it| &it.host))
            .chain(config.smpp.servers.iter().chain(&config.http.unavailable).map(|it| &it.host));
        let mut old = std::mem::take(&mut self.known);
        for name in written.filter(|it| literal(it).is_none()) {
            let host = old.remove(name).unwrap_or(Host { next: now, ..Host::default() });
            self.known.insert(name.clone(), host);
        }
    }

    /// Addresses by name, as the registry wants them.
    pub fn addresses(&self) -> BTreeMap<String, Vec<IpAddr>> {
        self.known.iter().map(|(name, it)| (name.clone(), it.ips.clone())).collect()
    }

    /// Addresses of these hosts, in their order, as far as they are known.
    pub fn resolved<'w>(&self, written: impl IntoIterator<Item = &'w HostPort>) -> Vec<SocketAddr> {
        let mut found = Vec::new();
        for HostPort { host, port } in written {
            let resolved = self.known.get(host).map_or(&[][..], |it| &it.ips);
            let ips = literal(host).into_iter().chain(resolved.iter().copied());
            found.extend(ips.map(|ip| SocketAddr::new(ip, *port)));
        }
        found
    }

    /// When [`Hosts::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.known.values().filter(|it| !it.asking).map(|it| it.next).min()
    }

    /// Asks for what is due.
    pub fn handle_timeout(&mut self, now: Time, names: &Names) {
        for (name, host) in &mut self.known {
            if host.asking || now < host.next {
                continue;
            }
            host.asking = true;
            // With a port there is nothing to look up but addresses (RFC 3263 §4.2); which port the
            // node has is for the registry.
            let query = Query {
                host: name.clone(),
                port: Some(Transport::Udp.default_port()),
                transport: Some(Transport::Udp),
                sips: false,
            };
            let reach = Reach { transports: [true; 5], ipv4: true, ipv6: true };
            let (sender, bell, name) = (self.sender.clone(), Arc::clone(&self.bell), name.clone());
            names.ask(query, reach, move |_, result| {
                let _ = sender.send((name, result));
                let _ = bell.write(1);
            });
        }
    }

    /// Takes the resolver's answers. Returns whether any address changed.
    pub fn handle_answers(&mut self, now: Time) -> bool {
        let mut changed = false;
        while let Ok((name, result)) = self.answers.try_recv() {
            let Some(host) = self.known.get_mut(&name) else { continue };
            host.asking = false;
            match result {
                Ok(answer) => {
                    let mut ips: Vec<IpAddr> =
                        answer.targets.iter().map(|it| it.address.ip()).collect();
                    ips.sort_unstable();
                    ips.dedup();
                    changed |= host.ips != ips;
                    (host.ips, host.failed) = (ips, false);
                    host.next = now + answer.ttl.max(PERIOD_MIN);
                }
                // Whatever the name servers say now, what was known is better than nothing.
                Err(unresolved) => {
                    if !std::mem::replace(&mut host.failed, true) {
                        warn!("Couldn't get the InetAddress from the host {name}: {unresolved}");
                    }
                    host.next = now + PERIOD_MIN;
                }
            }
        }
        changed
    }
}

/// Short TTLs are for clients, not for node tables.
const PERIOD_MIN: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::Sources;
    use engine::config::load;
    use nix::sys::eventfd::EfdFlags;

    #[test]
    fn names_are_resolved_again_and_survive_a_failure() {
        let file = std::env::temp_dir().join(format!("trunkline-nodes-{}", std::process::id()));
        std::fs::write(&file, "192.0.2.5 node-a\n").unwrap();
        let sources = Sources {
            servers: vec!["127.0.0.1:1".parse().unwrap()],
            resolv_conf: "/nonexistent".into(),
            hosts: file.clone(),
        };
        let names = Names::start(sources).unwrap();
        let bell = Arc::new(EventFd::from_flags(EfdFlags::empty()).unwrap());
        let mut hosts = Hosts::new(Arc::clone(&bell));
        let text = "extraServerNodes=node-a:5080,192.0.2.1\nstaticNodes=node-b\n";
        hosts.configure(Time::ZERO, &load("t", text.as_bytes(), &[]).config);
        assert_eq!(hosts.addresses().len(), 2, "literals are not asked for");
        hosts.handle_timeout(Time::ZERO, &names);
        assert_eq!(hosts.poll_timeout(), None, "under way");
        let mut changed = false;
        while hosts.known.values().any(|it| it.asking) {
            bell.read().unwrap();
            changed |= hosts.handle_answers(Time::ZERO);
        }
        assert!(changed);
        assert_eq!(hosts.addresses()["node-a"], ["192.0.2.5".parse::<IpAddr>().unwrap()]);
        assert!(hosts.known["node-b"].failed);
        let config = load("t", text.as_bytes(), &[]).config;
        let want = ["192.0.2.5:5080".parse().unwrap(), "192.0.2.1:5060".parse().unwrap()];
        assert_eq!(hosts.resolved(&config.extra_server_nodes), want);
        assert_eq!(hosts.poll_timeout(), Some(Time::ZERO + PERIOD_MIN));
        hosts.sender.send(("node-a".into(), Err(Unresolved::Timeout))).unwrap();
        assert!(!hosts.handle_answers(Time::ZERO));
        assert_eq!(hosts.addresses()["node-a"].len(), 1, "kept");
        std::fs::remove_file(file).unwrap();
    }
}
