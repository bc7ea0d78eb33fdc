//! One node heard through several protocols: each has its say, together they describe the node.
//!
//! Without this a node that speaks SIP and RMI would change with every word, between what the one and the
//! other leaves out, and every change would be a new table for all shards.

use std::net::IpAddr;
use std::time::Duration;

use protocols::time::Time;

use super::announcement::{Announcement, NO_NAME, SERVICE_PORTS, Source, port};
use crate::node::Version;

/// The last word of each protocol, the least believed first. There is always one.
#[derive(Debug)]
pub(super) struct Voices {
    ip: IpAddr,
    version: Version,
    voices: Vec<Voice>,
}

#[derive(Debug)]
struct Voice {
    heard: Time,
    said: Announcement,
}

impl Voices {
    pub(super) fn new(now: Time, said: Announcement) -> Voices {
        let (ip, version) = (said.ip, said.version);
        Voices { ip, version, voices: vec![Voice { heard: now, said }] }
    }

    /// A word of one protocol replaces its last one; whether the node runs anew.
    ///
    /// It does under another session than this protocol named before. Who names another port for the same
    /// thing described something that is no more: no address may hide behind another one's.
    pub(super) fn hear(&mut self, now: Time, said: Announcement) -> bool {
        let last = self.session(said.source);
        let known = self.voices.iter().any(|it| it.said.source == said.source);
        let restarted = known && said.session.is_some() && said.session.as_deref() != last;
        self.voices.retain(|Voice { said: other, .. }| {
            other.source == Source::Configured
                || (other.source != said.source && !restarted && !contradict(other, &said))
        });
        self.voices.push(Voice { heard: now, said });
        self.voices.sort_by_key(|it| it.said.source);
        restarted
    }

    /// Whether its protocol said exactly this the last time.
    pub(super) fn is_last_word(&self, said: &Announcement) -> bool {
        self.voices.iter().any(|it| it.said == *said)
    }

    /// One protocol says no more than that the node is alive.
    pub(super) fn handle_sign(&mut self, now: Time, source: Source) {
        if let Some(voice) = self.voices.iter_mut().find(|it| it.said.source == source) {
            voice.heard = now;
        }
    }

    /// Nobody could be heard until now.
    pub(super) fn handle_stall(&mut self, now: Time) {
        self.voices.iter_mut().for_each(|it| it.heard = now);
    }

    /// Who is silent for longer than `timeout`, but for the operator and who spoke last.
    pub(super) fn fading(&self, now: Time, timeout: Duration) -> impl Iterator<Item = Source> {
        let last = self.voices.iter().map(|it| it.heard).max();
        self.voices
            .iter()
            .filter(move |it| it.heard + timeout < now && Some(it.heard) != last)
            .map(|it| it.said.source)
            .filter(|it| *it != Source::Configured)
    }

    /// Forgets those.
    pub(super) fn handle_timeout(&mut self, now: Time, timeout: Duration) {
        let fading: Vec<Source> = self.fading(now, timeout).collect();
        self.voices.retain(|it| !fading.contains(&it.said.source));
    }

    /// What they say together. Where they differ the operator is believed most, then RMI, JSON, SIP and labels:
    /// nodes fill them in with more and less care.
    pub(super) fn together(&self) -> Announcement {
        let mut all = Announcement::of(self.ip, self.version);
        for Voice { said, .. } in &self.voices {
            all.source = said.source;
            if said.host_name != NO_NAME {
                all.host_name.clone_from(&said.host_name);
            }
            for (transport, port) in said.ports.iter() {
                all.ports.open(transport, port);
            }
            all.session = said.session.clone().or(all.session);
            all.graceful |= said.graceful;
            all.properties.extend(said.properties.clone());
        }
        all
    }

    /// The version of the node, unless it is known from `source` alone: another protocol states it, or
    /// did when this one stated none.
    pub(super) fn version_but_by(&self, source: Source) -> Option<Version> {
        let is_from_elsewhere =
            |Voice { said, .. }: &Voice| (said.source != source) == said.states_version();
        self.voices.iter().any(is_from_elsewhere).then_some(self.version)
    }

    /// The session that a protocol named last.
    pub(super) fn session(&self, source: Source) -> Option<&str> {
        self.voices.iter().find(|it| it.said.source == source)?.said.session.as_deref()
    }

    /// Bytes of all words but those of one protocol.
    pub(super) fn bytes_without(&self, source: Source) -> usize {
        self.voices.iter().filter(|it| it.said.source != source).map(|it| it.said.bytes()).sum()
    }
}

fn contradict(one: &Announcement, other: &Announcement) -> bool {
    let differ = |(transport, port)| other.ports.of(transport).is_some_and(|it| it != port);
    let port_of = |said: &Announcement, name| said.properties.get(name).map(|it| port(Some(it)));
    one.ports.iter().any(differ)
        || SERVICE_PORTS.into_iter().any(|name| {
            matches!((port_of(one, name), port_of(other, name)), (Some(a), Some(b)) if a != b)
        })
}
