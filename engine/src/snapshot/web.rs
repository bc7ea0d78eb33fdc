//! The node table as HTTP sees it: ports, routes, instance ids, and who gets new work.
//!
//! Source: `http-smpp-registry.md` 1.5, 3.1, 3.2. New work goes to the newest version that can take it:
//! while a new cluster has no node with the port that is needed, the one before serves.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use protocols::sip::Transport;

use super::{Candidates, Family, NodeId};
use crate::node::{Node, Version, Way};

/// What a request needs of a node.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
pub enum Service {
    /// HTTP on `httpPort`.
    Http,
    /// HTTP by TLS on `sslPort`.
    Https,
    /// HTTP by TLS on `sslPort`, or on `httpPort` where that is the only one (`isRemoteServerSsl`).
    Tls,
    /// SIP over WebSocket on `wsPort`.
    Ws,
    /// SIP over WebSocket by TLS on `wssPort`.
    Wss,
}

impl Service {
    /// Every service, in numeric order.
    pub const ALL: [Service; 5] =
        [Service::Http, Service::Https, Service::Tls, Service::Ws, Service::Wss];
}

/// Indexes of one snapshot for HTTP. [`NodeId`]s are that snapshot's.
#[derive(Debug, Default)]
pub struct Web {
    /// By node and service.
    ports: Vec<[Option<u16>; 5]>,
    routes: ahash::HashMap<Vec<u8>, NodeId>,
    instances: ahash::HashMap<Vec<u8>, NodeId>,
    lists: [Lists; 5],
}

/// Nodes of one version with one service.
#[derive(Debug, Default)]
struct Lists {
    /// All families, IPv4, IPv6.
    eligible: [Candidates; 3],
    live: Vec<NodeId>,
    slots: Vec<NodeId>,
}

impl Web {
    /// `nodes` in canonical order.
    pub(super) fn new(nodes: &[Node]) -> Web {
        let mut it = Web { ports: nodes.iter().map(ports).collect(), ..Web::default() };
        for (id, node) in ids(nodes) {
            for name in ["jvmRoute", "Restcomm-Instance-Id", "restcommInstanceId"] {
                let Some(text) = node.properties.get(name).filter(|it| !it.is_empty()) else {
                    continue;
                };
                let index = if name == "jvmRoute" { &mut it.routes } else { &mut it.instances };
                // The last to announce a name has it; who joined last comes next to that.
                let place = index.entry(text.as_bytes().to_vec()).or_insert(id);
                if nodes.get(usize::from(place.0)).is_some_and(|it| it.joined <= node.joined) {
                    *place = id;
                }
            }
        }
        for service in Service::ALL {
            let lists = it.lists_of(service, nodes);
            if let Some(place) = it.lists.get_mut(service as usize) {
                *place = lists;
            }
        }
        it
    }

    fn lists_of(&self, service: Service, nodes: &[Node]) -> Lists {
        // Best first: who may get new work, who only refused a moment ago, who is merely alive.
        let standing = |it: &Node| match (it.wants_work(), it.suspect.has(way(service, it))) {
            (true, false) => 0,
            (true, true) => 1,
            (false, _) => 2,
        };
        let serving = || ids(nodes).filter(|(id, _)| self.port(service, *id).is_some());
        let mut versions: BTreeMap<Reverse<Version>, u8> = BTreeMap::new();
        for (_, node) in serving() {
            let best = versions.entry(Reverse(node.version)).or_insert(2);
            *best = standing(node).min(*best);
        }
        let mut lists = Lists::default();
        let Some((Reverse(version), best)) = versions.into_iter().min_by_key(|(_, best)| *best)
        else {
            return lists;
        };
        let of_version = ids(nodes).filter(|(_, it)| it.version == version);
        let serves_any = |id: NodeId| Service::ALL.iter().any(|it| self.port(*it, id).is_some());
        lists.slots.extend(of_version.map(|(id, _)| id).filter(|it| serves_any(*it)));
        let [all, v4, v6] = &mut lists.eligible;
        for (id, node) in serving().filter(|(_, it)| it.version == version) {
            lists.live.push(id);
            if standing(node) == best && best < 2 {
                all.push(id, node);
                match Family::of(node.ip) {
                    Family::V4 => v4.push(id, node),
                    Family::V6 => v6.push(id, node),
                }
            }
        }
        lists
    }

    /// The port where a node serves this; `None`: it does not.
    pub fn port(&self, service: Service, id: NodeId) -> Option<u16> {
        *self.ports.get(usize::from(id.0))?.get(service as usize)?
    }

    /// Nodes that may get new work, in canonical order: of the newest version that has any. Suspect ones
    /// only where no version has another.
    pub fn eligible(&self, service: Service) -> &Candidates {
        static NONE: Candidates = Candidates::new();
        self.lists.get(service as usize).map_or(&NONE, |it| &it.eligible[0])
    }

    /// The same of one family, or all where that has none: who hashes as SIP does must choose from the
    /// same nodes.
    pub fn eligible_in(&self, service: Service, family: Family) -> &Candidates {
        let list = self.lists.get(service as usize).map(|it| match family {
            Family::V4 => &it.eligible[1],
            Family::V6 => &it.eligible[2],
        });
        list.filter(|it| !it.ids().is_empty()).unwrap_or_else(|| self.eligible(service))
    }

    /// Every live node of that version with any service of the web, whatever its standing, in canonical order: the
    /// slots that sessions are hashed over. They do not move when a node leaves, and one session has the
    /// same for HTTP, HTTPS and WebSocket.
    pub fn slots(&self, service: Service) -> &[NodeId] {
        self.lists.get(service as usize).map_or(&[], |it| &it.slots)
    }

    /// Those of them that have this service.
    pub fn live(&self, service: Service) -> &[NodeId] {
        self.lists.get(service as usize).map_or(&[], |it| &it.live)
    }

    /// The live node that announced this `jvmRoute`, of any version.
    pub fn by_route(&self, route: &[u8]) -> Option<NodeId> {
        self.routes.get(route).copied()
    }

    /// The live node that announced this instance id, of any version.
    pub fn by_instance(&self, instance: &[u8]) -> Option<NodeId> {
        self.instances.get(instance).copied()
    }
}

/// The way into a node that leads to a service of its.
pub(crate) fn way(service: Service, node: &Node) -> Way {
    match service {
        Service::Http => Way::Http,
        Service::Https => Way::Https,
        Service::Tls if port_of(node, "sslPort").is_some() => Way::Https,
        Service::Tls => Way::Http,
        Service::Ws => Way::Sip(Transport::Ws),
        Service::Wss => Way::Sip(Transport::Wss),
    }
}

fn ids(nodes: &[Node]) -> impl Iterator<Item = (NodeId, &Node)> {
    (0..u16::MAX).map(NodeId).zip(nodes)
}

fn ports(node: &Node) -> [Option<u16>; 5] {
    let (http, ssl) = (port_of(node, "httpPort"), port_of(node, "sslPort"));
    let (ws, wss) = (node.ports.of(Transport::Ws), node.ports.of(Transport::Wss));
    [http, ssl, ssl.or(http), ws, wss]
}

fn port_of(node: &Node, name: &str) -> Option<u16> {
    let text = node.properties.get(name)?;
    text.trim().parse::<u16>().ok().filter(|it| *it > 0)
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv6Addr};

    use protocols::time::Time;

    use super::*;
    use crate::balance::testing::{node, node_at};
    use crate::node::Bad;
    use crate::snapshot::Snapshot;

    fn web(number: u16, text: &str) -> Node {
        with(node(number), text)
    }

    fn with(mut node: Node, text: &str) -> Node {
        for pair in text.split_whitespace() {
            let (name, value) = pair.split_once('=').unwrap();
            node.properties.insert(name.to_owned(), value.to_owned());
        }
        node
    }

    fn table(nodes: Vec<Node>) -> Snapshot {
        Snapshot::new(1, nodes, &[])
    }

    /// Last two numbers of the addresses.
    fn numbers(table: &Snapshot, ids: &[NodeId]) -> Vec<u16> {
        ids.iter().filter_map(|it| crate::balance::testing::number(table, Some(*it))).collect()
    }

    #[test]
    fn a_node_serves_what_it_has_a_port_for() {
        let mut it = web(1, "httpPort=8080 sslPort=8443");
        it.ports.open(Transport::Ws, 5082);
        let table =
            table(vec![it, web(2, "httpPort=0 sslPort=-1"), web(3, "httpPort=8081"), node(4)]);
        let ports = |index| Service::ALL.map(|it| table.web().port(it, NodeId(index)));
        assert_eq!(ports(0), [Some(8080), Some(8443), Some(8443), Some(5082), None]);
        assert_eq!(ports(1), [None; 5]);
        assert_eq!(ports(2), [Some(8081), None, Some(8081), None, None]);
        assert_eq!(numbers(&table, table.web().eligible(Service::Http).ids()), [1, 3]);
        assert_eq!(numbers(&table, table.web().eligible(Service::Https).ids()), [1]);
        assert_eq!(numbers(&table, table.web().eligible(Service::Wss).ids()), [0u16; 0]);
    }

    #[test]
    fn the_newest_version_serves_if_it_can() {
        let port = "httpPort=1";
        let newer = |number: u16, text: &str| with(node_at(node(number).ip, 1), text);
        let leaving = |mut it: Node| {
            it.graceful = true;
            it
        };
        let suspect = |mut it: Node| {
            it.suspect.set(Way::Http, true);
            it
        };
        let cases = [
            ("the newest", vec![web(1, port), newer(2, port)], vec![2], vec![2]),
            ("it has no port", vec![web(1, port), newer(2, "")], vec![1], vec![1]),
            ("it is leaving", vec![web(1, port), leaving(newer(2, port))], vec![1], vec![1]),
            ("it refused", vec![web(1, port), suspect(newer(2, port))], vec![1], vec![1]),
            ("all refused", vec![suspect(web(1, port)), suspect(newer(2, port))], vec![2], vec![2]),
            ("all leave", vec![leaving(web(1, port)), leaving(web(2, port))], vec![], vec![1, 2]),
            ("some leave", vec![leaving(web(1, port)), web(2, port)], vec![2], vec![1, 2]),
        ];
        for (name, nodes, eligible, live) in cases {
            let table = table(nodes);
            let web = table.web();
            assert_eq!(numbers(&table, web.eligible(Service::Http).ids()), eligible, "{name}");
            assert_eq!(numbers(&table, web.live(Service::Http)), live, "{name}");
        }
    }

    /// Whatever protocol found it out.
    #[test]
    fn a_bad_node_gets_no_new_work_by_http() {
        for bad in Bad::ALL {
            let mut node = web(1, "httpPort=1");
            node.bad = Some(bad);
            let table = table(vec![node, web(2, "httpPort=1")]);
            assert_eq!(numbers(&table, table.web().eligible(Service::Http).ids()), [2], "{bad:?}");
            assert_eq!(numbers(&table, table.web().live(Service::Http)), [1, 2], "{bad:?}");
        }
    }

    #[test]
    fn families_are_apart_where_it_matters() {
        let six = with(node_at(IpAddr::V6(Ipv6Addr::LOCALHOST), 0), "httpPort=1");
        let both = table(vec![web(1, "httpPort=1"), six]);
        let web = both.web();
        let count = |family| web.eligible_in(Service::Http, family).ids().len();
        assert_eq!((count(Family::V4), count(Family::V6)), (1, 1));
        assert_eq!(web.eligible(Service::Http).ids().len(), 2);
        let four = table(vec![self::web(1, "httpPort=1")]);
        assert_eq!(four.web().eligible_in(Service::Http, Family::V6).ids().len(), 1);
    }

    #[test]
    fn names_belong_to_who_joined_last() {
        let mut late = web(1, "jvmRoute=a Restcomm-Instance-Id=ID1");
        late.joined = Time::from_millis(9);
        let mut bad = web(2, "jvmRoute=a restcommInstanceId=ID2");
        bad.bad = Some(Bad::Errors);
        let table = table(vec![late, bad]);
        let number = |id| crate::balance::testing::number(&table, id);
        assert_eq!(number(table.web().by_route(b"a")), Some(1));
        assert_eq!(number(table.web().by_instance(b"ID2")), Some(2), "standing is for the chooser");
        assert_eq!(table.web().by_route(b"b"), None);
    }
}
