//! Calls that are up, as far as one shard has seen: what an operator waits for before a node is stopped.
//!
//! A call begins with an INVITE outside of any dialog that goes to or comes from a node. It ends with the
//! final response to its BYE, with the failure of its INVITE (CANCEL leads to one), or when nothing of it
//! has been seen for `callIdAffinityMaxTimeInCache` (RFC 3261 §13, §15). The two sides of a call meet
//! different shards, so that one may see the beginning and another the end: each remembers its last news
//! with its time, and when somebody asks, the latest of all shards counts. Forked early dialogs are one
//! call; subscriptions are none.

use protocols::sip::message::{Message, Method};
use protocols::time::Time;

use super::request::Request;
use crate::balance::memory::{Kept, Memory};
use crate::balance::rendezvous::key_of;
use crate::config::Config;
use crate::node::{Node, NodeKey};
use crate::stats::CallsOfNode;

/// One shard's.
pub(super) struct Calls(Memory<News>);

/// The last that was heard of a call.
#[derive(Clone, Copy, Debug, Default)]
struct News {
    at: Time,
    state: State,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum State {
    /// Nothing yet.
    #[default]
    Unknown,
    /// There is an INVITE without a final response.
    Begun,
    /// It was accepted: another INVITE may fail and the call goes on.
    Accepted,
    /// Its INVITE failed; the caller may send another, such as with credentials.
    Failed,
    /// BYE.
    Ended,
}

impl State {
    const fn is_up(self) -> bool {
        matches!(self, State::Begun | State::Accepted)
    }
}

impl Calls {
    pub(super) fn new(config: &Config) -> Calls {
        Calls(Memory::new(config.calls_max, config.call_idle))
    }

    pub(super) fn configure(&mut self, config: &Config) {
        self.0.configure(config.calls_max, config.call_idle);
    }

    /// A request goes to a node or comes from it. Whether a call begins there by it: retransmissions, other
    /// attempts with credentials and dialogs that are up begin none.
    pub(super) fn handle_request(
        &mut self,
        now: Time,
        request: &Request<'_>,
        message: &Message<'_>,
        node: &Node,
    ) -> bool {
        let Request { method, is_subsequent, .. } = *request;
        if method != Method::Invite && !is_subsequent {
            return false;
        }
        let call = key_of(message.text(message.call_id));
        if method != Method::Invite {
            // In use, whichever node has it now.
            let Some(news) = self.0.find_more(now, call) else { return false };
            if method == Method::Ack && news.state == State::Begun {
                news.state = State::Accepted;
            }
            return false;
        }
        let Some(Kept { more: news, is_new }) = self.0.keep(now, call, node) else {
            return !is_subsequent;
        };
        let begins = !is_subsequent && (is_new || news.state == State::Ended);
        match (is_subsequent, news.state) {
            (false, _) => *news = News { at: now, state: State::Begun },
            // Up since before we came.
            (true, State::Unknown) => *news = News { at: now, state: State::Accepted },
            (true, _) => {}
        }
        begins
    }

    /// The node that the INVITE of this message's call went to.
    pub(super) fn node_of(&mut self, now: Time, message: &Message<'_>) -> Option<NodeKey> {
        self.0.find(now, key_of(message.text(message.call_id))).map(|it| it.node)
    }

    /// A response comes from a node or goes to it.
    pub(super) fn handle_response(
        &mut self,
        now: Time,
        message: &Message<'_>,
        status: u16,
        node: &Node,
    ) {
        let method = message.method();
        if !matches!(method, Method::Invite | Method::Bye) {
            return;
        }
        let call = key_of(message.text(message.call_id));
        let Some(Kept { more: news, .. }) = self.0.keep(now, call, node) else { return };
        let next = match (method, status, news.state) {
            // RFC 3261 §15.1.1: the dialog is over whatever the answer is, but to come again with a password.
            (Method::Bye, 401 | 407, _) => return,
            (Method::Bye, 200.., _) => State::Ended,
            (Method::Bye, ..) | (_, _, State::Ended) => return,
            (_, ..200, State::Unknown | State::Failed) => State::Begun,
            (_, 200..300, _) => State::Accepted,
            (_, 300.., State::Unknown | State::Begun) => State::Failed,
            _ => return,
        };
        if next != news.state {
            *news = News { at: now, state: next };
        }
    }

    /// An INVITE reached nobody.
    pub(super) fn handle_failure(&mut self, now: Time, message: &Message<'_>) {
        if message.method() == Method::Invite
            && let Some(news) = self.0.find_more(now, key_of(message.text(message.call_id)))
            && news.state == State::Begun
        {
            *news = News { at: now, state: State::Failed };
        }
    }

    pub(super) fn switch_over(&mut self, from: NodeKey, to: NodeKey) {
        self.0.move_all(from, to, None);
    }

    /// The news of a node's calls. Reads the whole table: for a node that somebody waits for.
    pub(super) fn of(&self, now: Time, node: NodeKey) -> CallsOfNode {
        let mut calls = CallsOfNode::default();
        for (call, news) in self.0.all_of(now, node).filter(|(_, it)| it.state != State::Unknown) {
            calls.add(call, news.at, news.state.is_up());
        }
        calls
    }
}

/// With the 48 + 8 bytes of the algorithm's memory.
const _: () = assert!(size_of::<News>() <= 16, "200 bytes per call is the promise");
