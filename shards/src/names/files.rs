//! The host's own name files: `/etc/resolv.conf` and `/etc/hosts`.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Where the files are, and what replaces them.
#[derive(Clone, Debug)]
pub struct Sources {
    /// Name servers; empty takes those of `resolv_conf`.
    pub servers: Vec<SocketAddr>,
    /// `nameserver`, `search` and `domain` lines (resolv.conf(5)).
    pub resolv_conf: PathBuf,
    /// Addresses that need no server (hosts(5)).
    pub hosts: PathBuf,
}

impl Default for Sources {
    fn default() -> Sources {
        Sources {
            servers: Vec::new(),
            resolv_conf: "/etc/resolv.conf".into(),
            hosts: "/etc/hosts".into(),
        }
    }
}

/// Their contents, read again when they change.
#[derive(Debug, Default)]
pub(super) struct Files {
    pub(super) servers: Vec<SocketAddr>,
    search: Vec<String>,
    hosts: HashMap<String, Vec<IpAddr>>,
    stamps: [Option<SystemTime>; 2],
}

impl Files {
    /// Reads what has changed.
    pub(super) fn refresh(&mut self, sources: &Sources) {
        let stamp = |path: &Path| path.metadata().and_then(|it| it.modified()).ok();
        let stamps = [stamp(&sources.resolv_conf), stamp(&sources.hosts)];
        if stamps == self.stamps && !self.servers.is_empty() {
            return;
        }
        self.stamps = stamps;
        let text = std::fs::read_to_string(&sources.resolv_conf).unwrap_or_default();
        (self.servers, self.search) = resolv_conf(&text);
        if !sources.servers.is_empty() {
            self.servers.clone_from(&sources.servers);
        }
        self.hosts = hosts(&std::fs::read_to_string(&sources.hosts).unwrap_or_default());
    }

    /// Addresses from the hosts file.
    pub(super) fn addresses(&self, name: &str) -> Option<&[IpAddr]> {
        self.hosts.get(name).map(Vec::as_slice)
    }

    /// The names to try, in order: with the search list first where the name has no dot.
    pub(super) fn candidates(&self, host: &str) -> Vec<String> {
        let bare = engine::names::domain(host);
        let in_hosts = bare.is_some_and(|it| self.hosts.contains_key(&it));
        if host.ends_with('.') || in_hosts || engine::names::literal(host).is_some() {
            return vec![host.to_owned()];
        }
        let mut names: Vec<String> = self.search.iter().map(|it| format!("{host}.{it}")).collect();
        if host.contains('.') {
            names.insert(0, host.to_owned());
        } else {
            names.push(host.to_owned());
        }
        names
    }
}

fn resolv_conf(text: &str) -> (Vec<SocketAddr>, Vec<String>) {
    let (mut servers, mut search) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") if servers.len() < SERVERS_MAX => {
                // A zone index (fe80::1%eth0) is not understood by the standard library's parser.
                if let Some(ip) = words.next().and_then(|it| it.parse().ok()) {
                    servers.push(SocketAddr::new(ip, DNS_PORT));
                }
            }
            // The last of these lines counts.
            Some("search" | "domain") => {
                search = words.filter_map(engine::names::domain).take(SEARCH_MAX).collect();
            }
            _ => {}
        }
    }
    if servers.is_empty() {
        servers.push(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), DNS_PORT));
    }
    (servers, search)
}

fn hosts(text: &str) -> HashMap<String, Vec<IpAddr>> {
    let mut hosts: HashMap<String, Vec<IpAddr>> = HashMap::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or("");
        let mut words = line.split_whitespace();
        let Some(ip) = words.next().and_then(|it| it.parse().ok()) else { continue };
        for name in words.filter_map(engine::names::domain) {
            let ips = hosts.entry(name).or_default();
            if !ips.contains(&ip) {
                ips.push(ip);
            }
        }
    }
    hosts
}

const DNS_PORT: u16 = 53;
/// resolv.conf(5): MAXNS.
const SERVERS_MAX: usize = 3;
/// resolv.conf(5) before glibc 2.26; each one costs a round of lookups.
const SEARCH_MAX: usize = 6;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_gives_servers_and_search_list() {
        let (servers, search) = resolv_conf(
            "# comment\ndomain old.example\nnameserver 192.0.2.53\nnameserver fe80::1%eth0\n\
             search a.example B.example.\nnameserver ::1\noptions ndots:5\nnameserver x\n",
        );
        assert_eq!(servers, ["192.0.2.53:53".parse().unwrap(), "[::1]:53".parse().unwrap()]);
        assert_eq!(search, ["a.example", "b.example"]);
        assert_eq!(resolv_conf("").0, ["127.0.0.1:53".parse().unwrap()]);
    }

    #[test]
    fn candidates_follow_the_search_list() {
        let files = Files {
            search: vec!["x.example".into(), "y.example".into()],
            hosts: hosts("127.0.0.1 localhost lb # me\n::1 LocalHost\nbad line\n"),
            ..Files::default()
        };
        let cases: [(&str, &[&str]); 6] = [
            ("node", &["node.x.example", "node.y.example", "node"]),
            ("node.z", &["node.z", "node.z.x.example", "node.z.y.example"]),
            ("node.z.", &["node.z."]),
            ("LOCALHOST", &["LOCALHOST"]),
            ("192.0.2.1", &["192.0.2.1"]),
            ("[::1]", &["[::1]"]),
        ];
        for (host, want) in cases {
            assert_eq!(files.candidates(host), want, "{host}");
        }
        assert_eq!(files.addresses("localhost").unwrap().len(), 2);
        assert_eq!(files.addresses("lb"), Some(&["127.0.0.1".parse().unwrap()][..]));
    }
}
