//! What the operator orders of nodes, through the statistics port.

use std::net::SocketAddr;
use std::sync::Arc;

use engine::registry::NotNamed;
use engine::snapshot::NodeRule;
use protocols::time::Time;
use regex::bytes::RegexBuilder;

use super::{Control, Shards};
use crate::admin::{Order, Response};

impl<S: Shards> Control<S> {
    /// Carries an order out, or says why not.
    pub(super) fn handle_order(&mut self, now: Time, node: &str, order: Order) -> Response {
        let registry = &mut self.registry;
        let done = match order {
            Order::Drain { time } => registry.drain(now, node, time).map(|_| "draining"),
            Order::Undrain => registry.undrain(node).map(|_| "undrained"),
            Order::Remove => registry.take_out(now, node).map(|_| "out"),
        };
        // A configured node that was out comes back; one that is out is not probed any more.
        self.configure_nodes(now);
        let node = node.escape_debug();
        match done {
            Ok(state) => Response::text(200, format!("{node} is {state}\n")),
            Err(why) => {
                let status = if why == NotNamed::Nobody { 404 } else { 409 };
                Response::text(status, format!("{node}: {why}\n"))
            }
        }
    }

    /// Pins users that match to a node, or unpins them: the first match wins, a new one comes last.
    pub(super) fn tie(&mut self, regex: String, node: Option<SocketAddr>) -> Response {
        self.rules.retain(|it| it.pattern.as_str() != regex);
        if let Some(node) = node {
            if self.rules.len() >= RULES_MAX {
                return Response::text(400, format!("At most {RULES_MAX} expressions.\n"));
            }
            let built = RegexBuilder::new(&regex).size_limit(REGEX_BYTES_MAX).build();
            match built {
                Ok(pattern) => self.rules.push(NodeRule { pattern, node }),
                Err(error) => return Response::text(400, format!("{error}\n")),
            }
        }
        let rules = Arc::from(self.rules.as_slice());
        self.view.snapshot = Arc::new(self.view.snapshot.with_other_rules(rules));
        self.is_stale = true;
        Response::text(200, "Regex set")
    }
}

/// One for each customer that has a node of its own.
const RULES_MAX: usize = 1024;
/// A compiled expression; the largest that anyone writes by hand is far below.
const REGEX_BYTES_MAX: usize = 1 << 20;
