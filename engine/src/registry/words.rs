//! What nodes say over Java RMI and over HTTP, as changes of the table (`http-smpp-registry.md` 3.4.2,
//! 3.5). The bytes are read elsewhere; whoever asks is answered elsewhere.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use protocols::heartbeat::json::Command;
use protocols::heartbeat::{NodeWords, jrmp};
use protocols::time::Time;

use super::{Announcement, BeatError, Disbelief, Event, Refused, Registry, SessionWord, Source};

/// What a heartbeat by HTTP came to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Heard {
    /// Answer OK.
    Believed,
    /// Answer NOK: the node is not known, and has to start anew.
    Unknown,
    /// Answer 400: it does not say what it must.
    Wrong(BeatError),
}

impl Registry {
    /// A node's call by RMI.
    pub fn handle_rmi(&mut self, now: Time, from: IpAddr, event: jrmp::Event) {
        match event {
            jrmp::Event::Ping(nodes) => {
                if nodes.is_empty() && self.empty.len() < EMPTY_MAX && self.empty.insert(from) {
                    self.tell(Event::EmptyHeartbeat { from });
                }
                for words in nodes {
                    self.hear(now, from, Source::Rmi, words);
                }
            }
            jrmp::Event::ForceRemoval(nodes) => {
                for words in nodes {
                    match Announcement::from_words(Source::Rmi, words) {
                        Ok(said) => {
                            if let Some(key) = self.find(&said) {
                                self.handle_stop(now, key);
                            }
                        }
                        Err(why) => self.refuse(now, from, Disbelief::Words(why)),
                    }
                }
            }
            jrmp::Event::SwitchOver { from, to } => self.handle_switch_over(&from, &to),
        }
    }

    /// A node's command by HTTP, and what to answer.
    pub fn handle_json(&mut self, now: Time, from: IpAddr, command: Command) -> Heard {
        let (session, word) = match command {
            Command::Start(words) => return self.hear(now, from, Source::Json, words),
            Command::SwitchOver { from, to } => {
                // OK whether the routes are known or not (`http-smpp-registry.md` 3.5): the log says it.
                self.handle_switch_over(&from, &to);
                return Heard::Believed;
            }
            Command::Heartbeat { session } => (session, SessionWord::Alive),
            Command::Shutdown { session } => (session, SessionWord::Leaving),
            Command::Stop { session } => (session, SessionWord::Stopped),
        };
        if self.handle_session(now, from, &session, word) {
            return Heard::Believed;
        }
        self.refuse(now, from, Disbelief::Session);
        Heard::Unknown
    }

    /// Where nodes hear by HTTP that we stop: every live node that has told a `heartbeatPort`.
    pub fn listening_nodes(&self) -> Vec<SocketAddr> {
        let port = |text: &String| text.trim().parse::<u16>().ok().filter(|it| *it != 0);
        self.live()
            .filter_map(|it| {
                let port = it.properties.get("heartbeatPort").and_then(port)?;
                Some(SocketAddr::new(it.ip, port))
            })
            .collect()
    }

    fn hear(&mut self, now: Time, from: IpAddr, source: Source, words: NodeWords) -> Heard {
        match Announcement::from_words(source, words) {
            Ok(said) => match self.handle_announcement(now, said) {
                Ok(()) => Heard::Believed,
                Err(Refused::Out) => Heard::Unknown,
                Err(why) => {
                    self.refuse(now, from, Disbelief::Node(why));
                    Heard::Unknown
                }
            },
            Err(why) => {
                self.refuse(now, from, Disbelief::Words(why));
                Heard::Wrong(why)
            }
        }
    }

    /// Says why a heartbeat was refused, unless one was a moment ago: anyone who reaches us can send
    /// rubbish, and the log must not grow by it.
    pub(super) fn refuse(&mut self, now: Time, from: IpAddr, why: Disbelief) {
        if self.refused.is_none_or(|it| now.since(it) >= REFUSED_PERIOD) {
            self.refused = Some(now);
            self.tell(Event::HeartbeatRefused { from, why });
        }
    }
}

/// Sources of heartbeats without nodes that are named, each once.
const EMPTY_MAX: usize = 1024;
/// From one refused heartbeat that is named to the next.
const REFUSED_PERIOD: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::super::tests::{at, eligible, events, registry};
    use super::*;
    use crate::node::NodeKey;

    fn words(ip: &str, pairs: &str) -> NodeWords {
        let pair = |it: &str| it.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()));
        let properties = pairs.split(' ').filter_map(pair).collect();
        NodeWords { host_name: "n".into(), ip: ip.into(), properties }
    }

    fn from() -> IpAddr {
        "10.0.0.9".parse().unwrap()
    }

    fn ping(it: &mut Registry, millis: u64, nodes: Vec<NodeWords>) {
        it.handle_rmi(at(millis), from(), jrmp::Event::Ping(nodes));
    }

    #[test]
    fn rmi_nodes_come_leave_and_are_removed() {
        let mut it = registry();
        let node = |more: &str| words("10.0.0.1", &format!("udpPort=5060 sessionId=7 {more}"));
        ping(&mut it, 0, vec![node(""), words("fe80::1%2", "udpPort=5060")]);
        assert_eq!(it.live().count(), 2);
        ping(&mut it, 5_000, vec![node("")]);
        it.handle_timeout(at(10_000));
        assert_eq!(it.live().count(), 1);
        for millis in [10_000, 15_000, 20_000] {
            ping(&mut it, millis, vec![node("GRACEFUL_SHUTDOWN=true")]);
            it.handle_timeout(at(millis + 4_000));
        }
        assert_eq!((it.live().count(), eligible(&mut it)), (1, 0), "it keeps its calls");
        let late = words("10.0.0.1", "udpPort=5060 sessionId=6");
        it.handle_rmi(at(24_000), from(), jrmp::Event::ForceRemoval(vec![late]));
        assert_eq!(it.live().count(), 1, "the end of its predecessor");
        it.handle_rmi(at(24_000), from(), jrmp::Event::ForceRemoval(vec![node("")]));
        assert_eq!(it.live().count(), 0);
        assert_eq!(
            events(&mut it),
            ["Added", "Added", "Removed:Silent", "Changed", "Graceful", "Removed:Stopped"]
        );
    }

    /// Nodes of old name no session: their late end must not be that of the version after them.
    #[test]
    fn an_end_without_a_session_is_that_of_its_version() {
        let node = |more: &str| words("10.0.0.1", &format!("udpPort=5060 {more}"));
        let cases = [
            ("version=2", "version=1", 1),
            ("version=2", "version=2", 0),
            ("version=2", "", 0),
            ("version=2 sessionId=2", "version=1", 1),
            ("", "", 0),
        ];
        for (known, ended, left) in cases {
            let mut it = registry();
            ping(&mut it, 0, vec![node(known)]);
            it.handle_rmi(at(1), from(), jrmp::Event::ForceRemoval(vec![node(ended)]));
            assert_eq!(it.live().count(), left, "{known:?} {ended:?}");
        }
    }

    #[test]
    fn a_version_that_is_no_number_is_named_once_and_counts_as_none() {
        let mut it = registry();
        for (millis, load) in [(0, 1), (1_000, 2), (2_000, 3)] {
            let node = format!("udpPort=5060 version=7.1 load={load}");
            ping(&mut it, millis, vec![words("10.0.0.1", &node)]);
        }
        assert_eq!(eligible(&mut it), 1, "as version 0");
        assert_eq!(events(&mut it), ["Added", "OddVersion", "Changed", "Changed"]);
    }

    #[test]
    fn a_list_without_nodes_is_named_once_for_each_source() {
        let mut it = registry();
        for source in ["10.0.0.1", "10.0.0.1", "10.0.0.2", "10.0.0.1"] {
            let event = jrmp::Event::Ping(vec![]);
            it.handle_rmi(at(0), source.parse().unwrap(), event);
        }
        assert_eq!(events(&mut it), ["EmptyHeartbeat", "EmptyHeartbeat"]);
    }

    #[test]
    fn what_is_not_believed_is_said_now_and_then() {
        let mut it = registry();
        for millis in [0, 1_000, 4_999, 5_000] {
            ping(&mut it, millis, vec![words("", "udpPort=1"), words("10.0.0.1", "")]);
        }
        assert_eq!(events(&mut it), ["HeartbeatRefused", "HeartbeatRefused"]);
        assert_eq!(it.live().count(), 0);
    }

    #[test]
    fn switchover_by_either_protocol_gives_the_pair() {
        let mut it = registry();
        let both = || {
            vec![
                words("10.0.0.1", "udpPort=1 jvmRoute=a"),
                words("10.0.0.2", "udpPort=1 jvmRoute=b"),
            ]
        };
        ping(&mut it, 0, both());
        let keys: Vec<NodeKey> = both()
            .into_iter()
            .map(|it| Announcement::from_words(Source::Rmi, it).unwrap().key())
            .collect();
        let route = |it: &str| it.to_owned();
        let (from_a, to_b) = (route("a"), route("b"));
        let event = jrmp::Event::SwitchOver { from: from_a.clone(), to: to_b.clone() };
        it.snapshot();
        let pair = Some((keys[0], keys[1]));
        it.handle_rmi(at(0), from(), event);
        assert_eq!(it.poll_switch_over(), pair);
        let command = Command::SwitchOver { from: from_a.clone(), to: to_b };
        assert_eq!(it.handle_json(at(0), from(), command), Heard::Believed);
        assert_eq!(it.poll_switch_over(), pair);
        let command = Command::SwitchOver { from: from_a, to: route("c") };
        assert_eq!(it.handle_json(at(0), from(), command), Heard::Believed);
        assert_eq!(it.poll_switch_over(), None);
        let told = ["Added", "Added", "Switchover", "Switchover", "SwitchoverFailed"];
        assert_eq!(events(&mut it), told);
    }

    #[test]
    fn json_nodes_live_by_their_session() {
        let mut it = registry();
        let say = |it: &mut Registry, millis, command| it.handle_json(at(millis), from(), command);
        let session = || "7".to_owned();
        let alive = || Command::Heartbeat { session: session() };
        assert_eq!(say(&mut it, 0, alive()), Heard::Unknown);
        let start = words("10.0.0.1", "udpPort=5060 sessionId=7 heartbeatPort=2222");
        assert_eq!(say(&mut it, 0, Command::Start(start.clone())), Heard::Believed);
        assert_eq!(say(&mut it, 5_000, alive()), Heard::Believed);
        assert_eq!(it.listening_nodes(), ["10.0.0.1:2222".parse().unwrap()]);
        assert_eq!(say(&mut it, 5_000, Command::Shutdown { session: session() }), Heard::Believed);
        assert_eq!(say(&mut it, 5_000, Command::Stop { session: session() }), Heard::Believed);
        assert_eq!(say(&mut it, 5_000, alive()), Heard::Unknown);
        let nameless = Command::Start(words("", "udpPort=1"));
        assert_eq!(say(&mut it, 5_000, nameless), Heard::Wrong(BeatError::NoIp));
        let nowhere = Command::Start(words("0.0.0.0", "udpPort=1"));
        assert_eq!(say(&mut it, 5_000, nowhere), Heard::Unknown);
        for port in ["0", "x", "70000", ""] {
            let mut start = start.clone();
            start.properties.push(("heartbeatPort".to_owned(), port.to_owned()));
            assert_eq!(say(&mut it, 6_000, Command::Start(start)), Heard::Believed);
            assert_eq!(it.listening_nodes(), [], "{port}");
        }
    }
}
