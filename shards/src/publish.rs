//! One value for all shards, replaced whole by one publisher: an atomic generation that shards compare
//! once per batch, a slot behind it, and a waker per shard for those that sleep.
//!
//! Never blocks a shard for longer than a pointer's clone, never loses an update, folds bursts into the
//! newest value. The publisher keeps replaced values until no shard holds them, so that a large table
//! is never freed on the packet path.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use engine::snapshot::Snapshot;
use protocols::sip::Transport;
use protocols::time::Time;

use crate::census::Most;
use crate::layers::Wire;
use crate::sys::EventFd;
use crate::tls::Security;

/// What every shard goes by.
#[derive(Debug)]
pub struct View<S> {
    /// The node table.
    pub snapshot: Arc<Snapshot>,
    /// What the relay is told; handed to it when it changes.
    pub settings: Arc<S>,
    /// What the shard itself goes by.
    pub tuning: Tuning,
    /// Certificates and terms of TLS; `None`: no port of TLS is open.
    pub security: Option<Arc<Security>>,
    /// Set when the process stops: everything is served until [`WIND_UP`] before this moment, then no new
    /// connection, and afterwards there is no shard.
    pub stopping: Option<Time>,
}

/// Before the end of a shard: peers are told, and have this long to answer (SMPP's unbind).
pub const WIND_UP: Duration = engine::relay::smpp::STOP_TIME;

/// The part of the configuration that shards need for their sockets. Changes at run time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Tuning {
    /// Longest wait to gather a batch; zero is off.
    pub coalesce: Duration,
    /// Hand datagrams of one destination to the kernel in one piece.
    pub couples_datagrams: bool,
    /// Close a stream that stays silent this long.
    pub stream_idle: Duration,
    /// Close one whose message has not come to its end in this time.
    pub message_time: Duration,
    /// WSS is carried without TLS, and WS with it.
    pub tls_gateway: bool,
    /// Most stream connections, of all shards; of clients of HTTP, and of SMPP, as many again.
    pub connections_max: usize,
    /// Most of them that one source address may have opened; 0 is any number.
    pub source_connections_max: usize,
    /// Longest handshake of TLS or WebSocket.
    pub handshake_time: Duration,
    /// Longest message on a stream.
    pub message_bytes_max: usize,
}

impl Tuning {
    /// How many connections may be.
    pub(crate) const fn most(&self) -> Most {
        Most { all: self.connections_max, source: self.source_connections_max }
    }

    /// How a transport is carried.
    pub(crate) const fn wire(&self, transport: Transport) -> Wire {
        Wire { transport, tls_gateway: self.tls_gateway }
    }
}

/// The publisher's side.
#[derive(Debug)]
pub struct Published<T> {
    generation: AtomicU64,
    slot: Mutex<Slot<T>>,
    wakers: Vec<Arc<EventFd>>,
}

#[derive(Debug)]
struct Slot<T> {
    current: Arc<T>,
    /// Replaced values that a shard may still hold.
    replaced: Vec<Arc<T>>,
}

impl<T> Published<T> {
    /// Starts with `first`; `wakers` are those of the shards.
    pub fn new(first: Arc<T>, wakers: Vec<Arc<EventFd>>) -> Arc<Published<T>> {
        let slot = Slot { current: first, replaced: Vec::new() };
        Arc::new(Published { generation: AtomicU64::new(0), slot: Mutex::new(slot), wakers })
    }

    /// Replaces the value and wakes every shard. Frees what no shard holds any more.
    pub fn publish(&self, value: Arc<T>) {
        {
            let mut slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
            let old = std::mem::replace(&mut slot.current, value);
            slot.replaced.push(old);
            slot.replaced.retain(|it| Arc::strong_count(it) > 1);
            self.generation.fetch_add(1, Ordering::Release);
        }
        self.wakers.iter().for_each(|it| it.wake());
    }

    /// The newest value.
    pub fn current(&self) -> Arc<T> {
        Arc::clone(&self.slot.lock().unwrap_or_else(PoisonError::into_inner).current)
    }

    /// A reader of its own for one shard.
    pub fn subscribe(self: &Arc<Self>) -> Subscription<T> {
        // The generation first: a value published in between is then seen as new, never missed.
        let generation = self.generation.load(Ordering::Acquire);
        Subscription { published: Arc::clone(self), generation, current: self.current() }
    }
}

/// A shard's side: the value it goes by until it looks again.
#[derive(Debug)]
pub struct Subscription<T> {
    published: Arc<Published<T>>,
    generation: u64,
    current: Arc<T>,
}

impl<T> Subscription<T> {
    /// Takes over the newest value; returns whether there was a new one. A nanosecond if not.
    #[inline]
    pub fn refresh(&mut self) -> bool {
        let generation = self.published.generation.load(Ordering::Acquire);
        if generation == self.generation {
            return false;
        }
        self.generation = generation;
        self.current = self.published.current();
        true
    }

    /// The value as of the last [`Subscription::refresh`].
    #[inline]
    pub fn current(&self) -> &Arc<T> {
        &self.current
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{Epoll, Events};
    use std::os::fd::AsRawFd;

    #[test]
    fn a_shard_sees_the_newest_value_when_it_looks_and_is_woken_to_look() {
        let waker = Arc::new(EventFd::new().unwrap());
        let (epoll, mut events) = (Epoll::new().unwrap(), Events::new(1));
        epoll.add(waker.as_raw_fd(), 0, libc::EPOLLIN).unwrap();
        let published = Published::new(Arc::new(1), vec![waker]);
        let mut shard = published.subscribe();
        assert!(!shard.refresh());
        for value in 2..5 {
            published.publish(Arc::new(value));
        }
        assert_eq!(epoll.wait(&mut events, 1_000), Some(1));
        assert_eq!(**shard.current(), 1);
        assert!(shard.refresh());
        assert_eq!(**shard.current(), 4);
        assert!(!shard.refresh());
    }

    #[test]
    fn replaced_values_are_freed_by_the_publisher_and_not_by_a_shard() {
        let first = Arc::new(());
        let watch = Arc::downgrade(&first);
        let published = Published::new(first, Vec::new());
        let mut shard = published.subscribe();
        published.publish(Arc::new(()));
        shard.refresh();
        assert_eq!(watch.strong_count(), 1, "the publisher still holds it");
        published.publish(Arc::new(()));
        assert_eq!(watch.strong_count(), 0);
    }

    #[test]
    fn no_update_is_lost_between_threads() {
        let published = Published::new(Arc::new(0u32), Vec::new());
        let mut shard = published.subscribe();
        let publisher = Arc::clone(&published);
        let thread = std::thread::spawn(move || {
            (1..=10_000).for_each(|it| publisher.publish(Arc::new(it)));
        });
        let mut last = 0;
        while last < 10_000 {
            if shard.refresh() {
                assert!(**shard.current() >= last);
                last = **shard.current();
            }
        }
        thread.join().unwrap();
    }
}
