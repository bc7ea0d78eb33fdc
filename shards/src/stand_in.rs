//! Until the executor lands: shards that carry nothing.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::eventfd::{EfdFlags, EventFd};

use protocols::time::Time;

use crate::admin::Response;
use crate::clock::Clock;
use crate::control::{Addressee, Explain, Facts, Page, Said, Shards, View};

/// Shards that carry nothing: one pretend shard, answering from the control thread.
pub struct NoShards {
    bell: EventFd,
    clock: Clock,
    said: VecDeque<Said<()>>,
    stopping: Option<Time>,
    has_ended: bool,
}

/// Starts them.
///
/// # Errors
///
/// Out of descriptors.
pub fn start(clock: Clock, _: &View) -> Result<NoShards, String> {
    let bell = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).map_err(|it| it.to_string())?;
    Ok(NoShards { bell, clock, said: VecDeque::new(), stopping: None, has_ended: false })
}

impl Shards for NoShards {
    type Figures = ();

    fn count(&self) -> usize {
        1
    }

    fn waker(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    fn poll(&mut self) -> Option<Said<()>> {
        if !self.has_ended && self.stopping.is_some_and(|it| it <= self.clock.now()) {
            self.has_ended = true;
            return Some(Said::Ended { shard: 0, failure: None });
        }
        self.said.pop_front()
    }

    fn publish(&mut self, view: &View) {
        self.stopping = view.stopping;
    }

    fn ask_figures(&mut self) {
        self.said.push_back(Said::Figures(()));
        let _ = self.bell.write(1);
    }

    fn addressee(&self, _shard: u8) -> Addressee {
        Box::new(|_, _| {})
    }

    fn tie(&mut self, _regex: &str, _node: Option<SocketAddr>) -> Result<(), String> {
        Ok(())
    }

    fn page(&self, page: Page, figures: &[()], facts: &Facts<'_>) -> Response {
        let nodes = facts.view.snapshot.nodes().len();
        Response::text(200, format!("{page:?} of {} shards, {nodes} nodes", figures.len()))
    }

    fn explain(&self, message: &Explain, _facts: &Facts<'_>) -> Response {
        Response::text(200, format!("{} bytes", message.message.len()))
    }
}
