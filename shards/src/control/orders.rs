//! What the operator orders of nodes, through the statistics port.

use engine::registry::NotNamed;
use protocols::time::Time;

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
}
