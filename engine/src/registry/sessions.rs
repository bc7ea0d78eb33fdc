//! Words that name a session instead of a node: all of the JSON protocol after `start`.

use std::net::IpAddr;

use protocols::time::Time;

use super::{Registry, Source};
use crate::node::NodeKey;

/// What the nodes of a session have to say.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SessionWord {
    /// `heartbeat`: they are alive.
    Alive,
    /// `shutdown`: they keep their calls and want no new ones.
    Leaving,
    /// `stop`: they are gone. Configured nodes stay.
    Stopped,
}

impl Registry {
    /// A node names the session of its JSON `start`, from the address `from`. `false`: no such session;
    /// answer NOK, and the node starts anew.
    ///
    /// A session is the time at which a process began, in milliseconds: two of them may be alike. Then the
    /// one at `from` is meant, or all of them if none is there.
    pub fn handle_session(
        &mut self,
        now: Time,
        from: IpAddr,
        session: &str,
        word: SessionWord,
    ) -> bool {
        let Some(nodes) = self.sessions.get(session) else { return false };
        let near: Vec<NodeKey> = nodes
            .iter()
            .copied()
            .filter(|key| self.entries.get(key).is_some_and(|it| it.node.ip == from))
            .collect();
        let nodes = if near.is_empty() { nodes.clone() } else { near };
        for key in nodes {
            if let Some(it) = self.entries.get_mut(&key) {
                it.handle_word(now, Source::Json);
            }
            match word {
                SessionWord::Alive => {}
                SessionWord::Leaving => drop(self.handle_graceful(now, key)),
                SessionWord::Stopped => drop(self.handle_stop(now, key)),
            }
        }
        true
    }

    /// Keeps the index of sessions: an entry was under the one, it is under the other.
    pub(super) fn file_session(
        &mut self,
        before: Option<(String, NodeKey)>,
        after: Option<(String, NodeKey)>,
    ) {
        if before == after {
            return;
        }
        if let Some((session, key)) = before
            && let Some(nodes) = self.sessions.get_mut(&session)
        {
            nodes.retain(|it| *it != key);
            if nodes.is_empty() {
                self.sessions.remove(&session);
            }
        }
        if let Some((session, key)) = after {
            self.sessions.entry(session).or_default().push(key);
        }
    }
}
