//! Members come, change and go: the entries, and every index over them.

use std::net::SocketAddr;

use protocols::time::Time;

use super::announcement::{self, Announcement, Source};
use super::entry::Entry;
use super::{Difference, EVENTS_MAX, Event, NodeText, Registry, Removal, Rules};
use crate::node::{Node, NodeKey, Origin, Version};
use crate::snapshot::NODES_MAX;

impl Registry {
    /// Nodes that share an address with the announced one, the one of the same identity first. Of whatever
    /// version: two processes cannot have one port, so whoever announces it now has taken it over. Looks
    /// at every node of that host.
    ///
    /// Also the node of the same JSON session there, whatever its ports were: heartbeats of that protocol
    /// name nothing but the session, and would keep a node that has moved alive where nobody is any more.
    pub(super) fn rivals(&self, announcement: &Announcement) -> Vec<NodeKey> {
        let key = announcement.key();
        let Some(there) = self.by_ip.get(&announcement.ip) else { return Vec::new() };
        let session = announcement.session.as_deref();
        let has_moved = |it: &Entry| {
            let is_session = announcement.source == Source::Json && session.is_some();
            let is_own = it.node.origin == Origin::Heartbeat;
            is_session && is_own && it.session(Source::Json) == session
        };
        let shares = |node: &Node| {
            announcement.ports.iter().any(|it| node.ports.of(it.0) == Some(it.1))
                || announcement::services(&announcement.properties)
                    .any(|service| announcement::services(&node.properties).any(|it| it == service))
        };
        let mut rivals: Vec<NodeKey> = there
            .iter()
            .copied()
            .filter(|key| self.entries.get(key).is_some_and(|it| shares(&it.node) || has_moved(it)))
            .collect();
        rivals.sort_by_key(|it| *it != key);
        rivals
    }

    /// The version of a node that states none, but has told it by another protocol: nothing said does not
    /// contradict what is.
    pub(super) fn version_elsewhere(&self, said: &Announcement) -> Option<Version> {
        if said.states_version() {
            return None;
        }
        let known = |it: &NodeKey| self.entries.get(it)?.version_but_by(said.source);
        self.rivals(said).iter().find_map(known)
    }

    /// `jvmRoute`: the last to announce it has it.
    fn route(&mut self, now: Time, key: NodeKey) {
        let Some(it) = self.entries.get(&key) else { return };
        let Some(route) = it.node.properties.get("jvmRoute") else { return };
        if let Some(known) = self.routes.get_mut(route) {
            *known = (key, now);
            return;
        }
        let route = route.clone();
        if self.routes.len() >= NODES_MAX {
            let oldest = self.routes.iter().min_by_key(|(_, (_, heard))| *heard);
            if let Some(oldest) = oldest.map(|(route, _)| route.clone()) {
                self.routes.remove(&oldest);
            }
        }
        self.routes.insert(route, (key, now));
    }

    pub(super) fn insert(&mut self, now: Time, origin: Origin, announcement: Announcement) {
        let ordered = self.ordered(&announcement);
        let source = announcement.source;
        let mut entry = Entry::new(now, origin, announcement);
        entry.obey(ordered);
        let key = entry.node.key;
        self.by_ip.entry(entry.node.ip).or_default().push(key);
        let (is_live, is_leaving) = (entry.is_live(), entry.is_leaving());
        let odd = announcement::odd_version(&entry.node.properties);
        let odd = odd.map(|it| (it.to_owned(), NodeText::of(&entry.node)));
        self.file_session(None, entry.session(Source::Json).map(|it| (it.to_owned(), key)));
        self.entries.insert(key, entry);
        self.route(now, key);
        if is_live {
            self.welcome(key, source);
        }
        if is_leaving && let Some(it) = self.entries.get(&key) {
            let node = NodeText::of(&it.node);
            self.tell_change(Event::Graceful { node });
        }
        if let Some((version, node)) = odd {
            self.tell(Event::OddVersion { node, version });
        }
    }

    /// Whether the announcement says what its node said before, which is no more than a life sign.
    pub(super) fn repeats(&mut self, now: Time, announcement: &Announcement) -> bool {
        let key = announcement.key();
        let repeats = self.entries.get_mut(&key).is_some_and(|it| it.repeats(now, announcement));
        if repeats {
            self.route(now, key);
        }
        repeats
    }

    /// Applies an announcement to the entry that it is about.
    pub(super) fn refresh(&mut self, now: Time, key: NodeKey, said: Announcement) {
        let source = said.source;
        let key = self.rewrite(now, key, |it, _| it.handle_words(now, said).then_some(source));
        self.route(now, key);
    }

    /// A protocol that the node speaks no longer has no say in it.
    pub(super) fn forget_voices(&mut self, now: Time, key: NodeKey) {
        self.rewrite(now, key, |it, rules| {
            it.forget_voices(now, rules);
            None
        });
    }

    /// Changes what a node is, maybe its identity; `change` tells whose words say that it runs anew. Its
    /// identity afterwards.
    fn rewrite(
        &mut self,
        now: Time,
        old: NodeKey,
        change: impl FnOnce(&mut Entry, &Rules) -> Option<Source>,
    ) -> NodeKey {
        let Some(mut it) = self.entries.remove(&old) else { return old };
        let before = it.node.clone();
        let session = it.session(Source::Json).map(|session| (session.to_owned(), old));
        let was_leaving = it.is_leaving();
        let restarted = change(&mut it, &self.rules);
        it.note_former(old);
        let is_leaving = it.is_leaving();
        let (node, key) = (it.node.clone(), it.node.key);
        let is_live = it.is_live();
        self.file_session(session, it.session(Source::Json).map(|it| (it.to_owned(), key)));
        self.entries.insert(key, it);
        if key != old {
            if let Some(there) = self.by_ip.get_mut(&node.ip) {
                there.iter_mut().filter(|it| **it == old).for_each(|it| *it = key);
            }
            self.routes.values_mut().filter(|it| it.0 == old).for_each(|it| it.0 = key);
            for (from, to) in &mut self.switch_overs {
                [from, to].into_iter().filter(|it| **it == old).for_each(|it| *it = key);
            }
            for (_, port) in before.ports.iter().filter(|(_, port)| !node.ports.contains(*port)) {
                self.remembered.insert(now, SocketAddr::new(node.ip, port));
            }
            for (_, port) in node.ports.iter() {
                self.remembered.remove(SocketAddr::new(node.ip, port));
            }
        }
        let text = NodeText::of(&node);
        if let Some(by) = restarted {
            self.tell_change(Event::Restarted { node: text.clone(), by });
        } else if (key, &node.host_name, &node.properties)
            != (old, &before.host_name, &before.properties)
        {
            let difference = Difference::of(&before, &node);
            self.tell_change(Event::Changed { node: text.clone(), difference });
        }
        if is_leaving && (restarted.is_some() || !was_leaving) {
            self.tell_change(Event::Graceful { node: text.clone() });
        }
        if is_live && restarted.is_none() && before.bad.is_some() && node.is_eligible() {
            self.tell_change(Event::Recovered { node: text });
        }
        self.changed |= before.bad != node.bad;
        key
    }

    /// Changes one entry and tells what became of its flags. `false`: there is no such live node.
    pub(super) fn edit(&mut self, key: NodeKey, change: impl FnOnce(&mut Entry, &Rules)) -> bool {
        let Some(it) = self.entries.get_mut(&key).filter(|it| it.is_live()) else { return false };
        let flags = |it: &Entry| (it.is_leaving(), it.node.bad, it.node.suspect);
        let before = flags(it);
        change(it, &self.rules);
        let after = flags(it);
        if before == after {
            return true;
        }
        let text = NodeText::of(&it.node);
        let eligible = it.node.is_eligible();
        if after.0 && !before.0 {
            self.tell_change(Event::Graceful { node: text.clone() });
        }
        if let Some(bad) = after.1.filter(|_| after.1 != before.1) {
            self.tell_change(Event::Bad { node: text.clone(), bad });
        }
        for way in after.2.beyond(before.2) {
            let time = self.rules.suspect_time;
            self.tell_change(Event::Suspect { node: text.clone(), way, time });
        }
        if eligible {
            self.tell_change(Event::Recovered { node: text });
        }
        self.changed = true;
        true
    }

    /// A node became a member, as `by` has it.
    pub(super) fn welcome(&mut self, key: NodeKey, by: Source) {
        let Some(it) = self.entries.get(&key) else { return };
        let text = NodeText::of(&it.node);
        let addresses: Vec<SocketAddr> =
            it.node.ports.iter().map(|(_, port)| SocketAddr::new(it.node.ip, port)).collect();
        for address in addresses {
            self.remembered.remove(address);
        }
        self.tell_change(Event::Added { node: text, by });
    }

    /// A static node does not answer and never did.
    pub(super) fn miss(&mut self, key: NodeKey) {
        let Some(it) = self.entries.get_mut(&key) else { return };
        if it.is_missed_anew() {
            let node = NodeText::of(&it.node);
            self.tell(Event::Down { node });
        }
    }

    /// A node that is no member any more: its addresses are remembered.
    pub(super) fn bury(&mut self, now: Time, key: NodeKey, reason: Removal) {
        let Some(it) = self.entries.get(&key) else { return };
        let text = NodeText::of(&it.node);
        for (_, port) in it.node.ports.iter() {
            self.remembered.insert(now, SocketAddr::new(it.node.ip, port));
        }
        let left = self.live().filter(|it| it.key != key).count();
        self.tell_change(Event::Removed { node: text, reason, left });
    }

    /// Whether it was live.
    pub(super) fn remove(&mut self, now: Time, key: NodeKey, reason: Removal) -> bool {
        let Some((ip, was_live)) = self.entries.get(&key).map(|it| (it.node.ip, it.is_live()))
        else {
            return false;
        };
        if was_live {
            self.bury(now, key, reason);
        }
        let session = self
            .entries
            .remove(&key)
            .and_then(|it| it.session(Source::Json).map(|session| (session.to_owned(), key)));
        self.file_session(session, None);
        if let Some(there) = self.by_ip.get_mut(&ip) {
            there.retain(|it| *it != key);
            if there.is_empty() {
                self.by_ip.remove(&ip);
            }
        }
        was_live
    }

    pub(super) fn tell_change(&mut self, event: Event) {
        self.changed = true;
        self.tell(event);
    }

    pub(super) fn tell(&mut self, event: Event) {
        if let Some(change) = event.change() {
            *self.changes.entry(change).or_default() += 1;
        }
        if self.events.len() >= EVENTS_MAX {
            self.events.pop_front();
            self.lost += 1;
        }
        self.events.push_back(event);
    }
}
