//! What the operator orders of nodes: to be drained, or to stay out altogether.
//!
//! An order is about addresses, not about a process: it outlasts restarts and absences of the node, until
//! it is taken back. Otherwise a node that is being upgraded would get calls as soon as it is up.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use protocols::time::Time;

use super::{Announcement, Event, NodeText, Registry, Removal, announcement};
use crate::node::{Node, NodeKey, Ports};

/// What was ordered of one node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ordered {
    /// When.
    pub since: Time,
    /// When it is taken out, whatever is left on it.
    pub deadline: Option<Time>,
    /// It is kept out of the table, though it announces itself.
    pub is_out: bool,
}

/// An order, and whom it is about.
#[derive(Clone, Debug)]
pub(super) struct Order {
    target: Target,
    route: Option<String>,
    text: NodeText,
    what: Ordered,
}

/// The addresses of a node.
#[derive(Clone, Debug)]
struct Target {
    key: NodeKey,
    ip: IpAddr,
    ports: Ports,
    services: Vec<(u8, u16)>,
}

/// Why a name means no node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NotNamed {
    /// No node has it.
    Nobody,
    /// Several nodes have it: name one by `ip:port`.
    Several {
        /// How many.
        nodes: usize,
    },
    /// [`ORDERS_MAX`] orders are in force.
    NoRoom,
}

impl fmt::Display for NotNamed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotNamed::Nobody => f.write_str("no such node"),
            NotNamed::Several { nodes } => {
                write!(f, "{nodes} nodes have this name; name one by ip:port")
            }
            NotNamed::NoRoom => write!(f, "{ORDERS_MAX} nodes are drained or out already"),
        }
    }
}

impl std::error::Error for NotNamed {}

impl Registry {
    /// A node gets no new calls, and is taken out at the deadline. A second order replaces the first.
    ///
    /// Nodes go by `ip:port` with any of their ports, by `ip`, host name, `jvmRoute` or key, as far as
    /// that means one node.
    ///
    /// # Errors
    ///
    /// [`NotNamed`]: nothing has changed.
    pub fn drain(
        &mut self,
        now: Time,
        name: &str,
        time: Option<Duration>,
    ) -> Result<NodeKey, NotNamed> {
        let key = self.named(name)?;
        let deadline = time.map(|it| now + it);
        self.order(key, Ordered { since: now, deadline, is_out: false })?;
        if let Some(it) = self.entries.get(&key) {
            let node = NodeText::of(&it.node);
            self.tell_change(Event::Draining { node, time });
        }
        Ok(key)
    }

    /// A node is taken out at once, configured or not, and stays out although it announces itself.
    ///
    /// # Errors
    ///
    /// [`NotNamed`]: nothing has changed.
    pub fn take_out(&mut self, now: Time, name: &str) -> Result<NodeKey, NotNamed> {
        let key = self.named(name)?;
        self.order(key, Ordered { since: now, deadline: None, is_out: true })?;
        self.remove(now, key, Removal::Ordered);
        Ok(key)
    }

    /// Takes an order back. A node that was out is believed again when it announces itself; call
    /// [`Registry::configure`] for one that the configuration names.
    ///
    /// # Errors
    ///
    /// [`NotNamed`]: no order is about such a node.
    pub fn undrain(&mut self, name: &str) -> Result<NodeKey, NotNamed> {
        let found: Vec<usize> = (0..)
            .zip(&self.orders)
            .filter(|(_, it)| it.target.goes_by(name, it.text.host_name(), it.route.as_deref()))
            .map(|(index, _)| index)
            .collect();
        let [index] = found[..] else { return Err(not_one(found.len())) };
        let Order { target, text, .. } = self.orders.remove(index);
        let there = self.entries.values_mut().filter(|it| target.covers(&Target::of(&it.node)));
        there.for_each(|it| it.obey(None));
        self.tell_change(Event::Undrained { node: text });
        Ok(target.key)
    }

    /// Nodes that are drained or out but not in the table, and what was ordered.
    pub fn absent(&self) -> impl Iterator<Item = (&NodeText, Ordered)> {
        let is_there = |it: &Order| {
            self.entries.values().any(|there| it.target.covers(&Target::of(&there.node)))
        };
        self.orders.iter().filter(move |it| !is_there(it)).map(|it| (&it.text, it.what))
    }

    /// Takes out who has had its time.
    pub(super) fn enforce(&mut self, now: Time) {
        let mut late = Vec::new();
        for it in &mut self.orders {
            if it.what.deadline.is_some_and(|it| it <= now) {
                it.what = Ordered { deadline: None, is_out: true, ..it.what };
                late.push(it.target.clone());
            }
        }
        for target in late {
            let there = self.entries.values().filter(|it| target.covers(&Target::of(&it.node)));
            for key in there.map(|it| it.node.key).collect::<Vec<_>>() {
                self.remove(now, key, Removal::Overdue);
            }
        }
    }

    /// When [`Registry::enforce`] has something to do.
    pub(super) fn has_deadlines(&self) -> bool {
        self.orders.iter().any(|it| it.what.deadline.is_some())
    }

    /// What is ordered of the node that announces itself so.
    pub(super) fn ordered(&self, announcement: &Announcement) -> Option<Ordered> {
        if self.orders.is_empty() {
            return None; // as nearly always
        }
        let target = Target {
            key: announcement.key(),
            ip: announcement.ip,
            ports: announcement.ports,
            services: announcement::services(&announcement.properties).collect(),
        };
        self.orders.iter().find(|it| it.target.covers(&target)).map(|it| it.what)
    }

    fn named(&self, name: &str) -> Result<NodeKey, NotNamed> {
        let found: Vec<NodeKey> = self
            .entries
            .values()
            .map(|it| &it.node)
            .filter(|it| {
                let route = it.properties.get("jvmRoute").map(String::as_str);
                Target::of(it).goes_by(name, &it.host_name, route)
            })
            .map(|it| it.key)
            .collect();
        if let [key] = found[..] { Ok(key) } else { Err(not_one(found.len())) }
    }

    fn order(&mut self, key: NodeKey, what: Ordered) -> Result<(), NotNamed> {
        let Some(it) = self.entries.get_mut(&key) else { return Err(NotNamed::Nobody) };
        let target = Target::of(&it.node);
        let is_about_it = |it: &Order| it.target.covers(&target);
        if self.orders.len() >= ORDERS_MAX && !self.orders.iter().any(is_about_it) {
            return Err(NotNamed::NoRoom);
        }
        self.orders.retain(|it| !is_about_it(it));
        let route = it.node.properties.get("jvmRoute").cloned();
        self.orders.push(Order { text: NodeText::of(&it.node), target, route, what });
        it.obey(Some(what));
        Ok(())
    }
}

impl Target {
    fn of(node: &Node) -> Target {
        Target {
            key: node.key,
            ip: node.ip,
            ports: node.ports,
            services: announcement::services(&node.properties).collect(),
        }
    }

    /// Whether they have an address in common: two nodes never do.
    fn covers(&self, other: &Target) -> bool {
        self.ip == other.ip
            && (self.ports.iter().any(|(transport, port)| other.ports.of(transport) == Some(port))
                || self.services.iter().any(|it| other.services.contains(it)))
    }

    fn goes_by(&self, name: &str, host_name: &str, route: Option<&str>) -> bool {
        let has_port = |port: u16| {
            self.ports.contains(port) || self.services.iter().any(|(_, it)| *it == port)
        };
        if let Ok(address) = name.parse::<std::net::SocketAddr>() {
            return address.ip() == self.ip && has_port(address.port());
        }
        name.parse() == Ok(self.ip)
            || name == host_name
            || route == Some(name)
            || name == format!("{:016x}", self.key.0)
    }
}

const fn not_one(nodes: usize) -> NotNamed {
    if nodes == 0 { NotNamed::Nobody } else { NotNamed::Several { nodes } }
}

/// Orders in force. Each is an operator's own word.
pub const ORDERS_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::super::tests::{at, beat, eligible, events, registry};
    use super::*;
    use crate::registry::Refused;

    const N1: &str = "ip=10.0.0.1 udpPort=5060 httpPort=8080 hostname=n1 jvmRoute=a sessionId=1";
    const N2: &str = "ip=10.0.0.1 udpPort=5070 hostname=n2 jvmRoute=b";

    fn two() -> Registry {
        let mut it = registry();
        for said in [N1, N2] {
            it.handle_announcement(at(0), beat(said)).unwrap();
        }
        events(&mut it);
        it
    }

    #[test]
    fn a_drained_node_lives_without_new_calls_until_it_is_undrained() {
        let mut it = two();
        let key = beat(N1).key();
        assert_eq!(it.drain(at(0), "n1", None), Ok(key));
        assert_eq!((it.live().count(), eligible(&mut it)), (2, 1));
        let ordered = Ordered { since: at(0), deadline: None, is_out: false };
        assert_eq!(it.health(at(0), key).unwrap().ordered, Some(ordered));
        // neither its heartbeats nor a restart nor an absence changes that
        it.handle_announcement(at(1), beat(N1)).unwrap();
        it.handle_announcement(at(2), beat(&N1.replace("Id=1", "Id=2"))).unwrap();
        assert_eq!(eligible(&mut it), 1);
        it.handle_stop(at(3), key);
        assert_eq!(it.absent().count(), 1);
        it.handle_announcement(at(4), beat(N1)).unwrap();
        assert_eq!((it.live().count(), eligible(&mut it), it.absent().count()), (2, 1, 0));
        assert_eq!(it.undrain("10.0.0.1:8080"), Ok(key));
        assert_eq!(eligible(&mut it), 2);
        assert_eq!(it.health(at(4), key).unwrap().ordered, None);
        assert_eq!(it.undrain("n1"), Err(NotNamed::Nobody));
        let told = ["Draining", "Restarted", "Removed:Stopped", "Added", "Undrained"];
        assert_eq!(events(&mut it), told);
    }

    #[test]
    fn a_node_that_leaves_by_itself_goes_on_leaving_when_it_is_undrained() {
        let mut it = two();
        it.drain(at(0), "n1", None).unwrap();
        it.handle_graceful(at(1), beat(N1).key());
        it.undrain("n1").unwrap();
        assert_eq!(eligible(&mut it), 1);
        assert_eq!(events(&mut it), ["Draining", "Graceful", "Undrained"]);
    }

    #[test]
    fn at_its_deadline_a_node_is_out_and_stays_out() {
        let mut it = two();
        it.drain(at(0), "n1", Some(Duration::from_secs(5))).unwrap();
        for millis in [1_000, 4_900] {
            for said in [N1, N2] {
                it.handle_announcement(at(millis), beat(said)).unwrap();
            }
            it.handle_timeout(at(millis));
        }
        assert_eq!(it.live().count(), 2);
        it.handle_timeout(at(5_100));
        assert_eq!(it.live().count(), 1);
        assert_eq!(it.handle_announcement(at(5_200), beat(N1)), Err(Refused::Out));
        let known: Vec<String> = it.absent().map(|(text, _)| text.host_name().to_owned()).collect();
        assert_eq!(known, ["n1"]);
        it.undrain("a").unwrap();
        it.handle_announcement(at(5_300), beat(N1)).unwrap();
        assert_eq!(eligible(&mut it), 2);
        assert_eq!(events(&mut it), ["Draining", "Removed:Overdue", "Undrained", "Added"]);
    }

    #[test]
    fn an_absent_node_s_deadline_counts_too() {
        let mut it = two();
        it.drain(at(0), "n1", Some(Duration::from_secs(5))).unwrap();
        for key in [N1, N2].map(|it| beat(it).key()) {
            it.handle_stop(at(0), key);
        }
        assert!(it.poll_timeout().is_some());
        it.handle_timeout(at(5_001));
        assert_eq!(it.handle_announcement(at(5_200), beat(N1)), Err(Refused::Out));
    }

    #[test]
    fn a_node_taken_out_stays_out_under_any_protocol_and_port() {
        let mut it = two();
        it.take_out(at(0), "10.0.0.1:5060").unwrap();
        assert_eq!(it.live().count(), 1);
        for said in
            [N1, "ip=10.0.0.1 tcpPort=1 httpPort=8080", "ip=10.0.0.1 udpPort=5060 version=3"]
        {
            assert_eq!(it.handle_announcement(at(1), beat(said)), Err(Refused::Out), "{said}");
        }
        it.handle_announcement(at(1), beat("ip=10.0.0.2 udpPort=5060")).unwrap();
        assert_eq!(events(&mut it), ["Removed:Ordered", "Added"]);
    }

    #[test]
    fn nodes_go_by_any_name_that_means_one() {
        let mut it = two();
        let (one, two) = (beat(N1).key(), beat(N2).key());
        let key = format!("{:016x}", one.0);
        let cases: [(&str, Result<NodeKey, NotNamed>); 9] = [
            ("n1", Ok(one)),
            ("n2", Ok(two)),
            ("b", Ok(two)),
            ("10.0.0.1:5060", Ok(one)),
            ("10.0.0.1:8080", Ok(one)),
            (&key, Ok(one)),
            ("10.0.0.1", Err(NotNamed::Several { nodes: 2 })),
            ("10.0.0.1:9", Err(NotNamed::Nobody)),
            ("", Err(NotNamed::Nobody)),
        ];
        for (name, want) in cases {
            assert_eq!(it.drain(at(0), name, None), want, "{name}");
        }
    }

    #[test]
    fn orders_are_bounded_and_a_second_one_replaces_the_first() {
        let mut it = registry();
        for number in 0..=ORDERS_MAX {
            let said = format!("ip=10.0.0.1 udpPort={} hostname=n{number}", number + 1);
            it.handle_announcement(at(0), beat(&said)).unwrap();
        }
        for number in 0..ORDERS_MAX {
            it.drain(at(0), &format!("n{number}"), None).unwrap();
        }
        let last = format!("n{ORDERS_MAX}");
        assert_eq!(it.drain(at(0), &last, None), Err(NotNamed::NoRoom));
        it.drain(at(0), "n7", Some(Duration::from_secs(1))).unwrap();
        assert_eq!(it.orders.len(), ORDERS_MAX);
    }
}
