//! Starts the shards: one glommio executor per CPU, or one plain thread where io_uring is not to be had.
//!
//! glommio panics where io_uring is forbidden or `/sys` is missing and gives up where too little memory may
//! be locked, so all three are tried before it is asked.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use engine::relay::Listener;
use glommio::{CpuSet, ExecutorJoinHandle, LocalExecutorBuilder, Placement};
use socket2::Socket;

use crate::census::Census;
use crate::clock::Clock;
use crate::decide::Decide;
use crate::driver::{drive_in_executor, drive_on_thread};
use crate::mesh::{Inbox, Post, mesh, notices};
use crate::publish::{Published, View};
use crate::pump::Pumped;
use crate::shard::{Setup, Shard};
use crate::sys::{block_signals, pin_to, probe_io_uring, raise_memlock};

/// What the shards are made of.
pub struct Spec<D: Decide> {
    /// Every listener with its real port.
    pub listeners: Vec<Listener>,
    /// By shard, then by listener: what [`crate::listeners::open_listeners`] returned.
    pub sockets: Vec<Vec<Socket>>,
    /// One per shard.
    pub relays: Vec<D>,
    /// By shard, then by stream relay; empty where there is none.
    pub pumps: Vec<Vec<Box<dyn Pumped>>>,
    /// CPU of each shard, from [`crate::sys::affinity`]; shared round robin if there are fewer.
    pub cpus: Vec<usize>,
    /// What shards go by at first.
    pub view: View<D::Settings>,
    /// The process's.
    pub clock: Clock,
    /// What drives them.
    pub seat: Seat,
}

/// What drives a shard.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Seat {
    /// A glommio executor.
    Executor,
    /// A plain thread with the same driver.
    Thread,
}

impl Seat {
    /// The best that this system allows, and why it is not better.
    pub fn best() -> (Seat, Option<NoExecutor>) {
        if let Err(error) = probe_io_uring() {
            return (Seat::Thread, Some(NoExecutor::IoUring { error: error.raw_os_error() }));
        }
        let bytes = raise_memlock();
        if bytes < MEMLOCK_BYTES_MIN {
            return (Seat::Thread, Some(NoExecutor::Memlock { bytes }));
        }
        // It looks the CPUs up when it places an executor and when it makes its pool, and panics there.
        match CpuSet::online() {
            Ok(_) => (Seat::Executor, None),
            Err(_) => (Seat::Thread, Some(NoExecutor::Topology)),
        }
    }
}

/// Why there is no executor. The process runs all the same.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NoExecutor {
    /// The kernel refuses io_uring.
    IoUring {
        /// Its error.
        error: Option<i32>,
    },
    /// Too little memory may be locked.
    Memlock {
        /// The limit.
        bytes: u64,
    },
    /// `/sys` does not tell which CPUs there are.
    Topology,
}

impl fmt::Display for NoExecutor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoExecutor::IoUring { error } => {
                let error = io::Error::from_raw_os_error(error.unwrap_or(libc::ENOSYS));
                write!(
                    f,
                    "io_uring is not allowed here ({error}): old kernel, sysctl \
                     kernel.io_uring_disabled or a container profile"
                )
            }
            NoExecutor::Memlock { bytes } => write!(
                f,
                "only {bytes} bytes of memory may be locked, {MEMLOCK_BYTES_MIN} are needed: \
                 LimitMEMLOCK=8M, or --ulimit memlock=8388608"
            ),
            NoExecutor::Topology => f.write_str(
                "/sys/devices/system/cpu cannot be read: mount /sys here, too (a chroot or container \
                 without it)",
            ),
        }
    }
}

/// The running shards, as control sees them.
pub struct Body<D: Decide> {
    /// Where views are published.
    pub published: Arc<Published<View<D::Settings>>>,
    /// Mail to shards.
    pub post: Post<D>,
    /// Notices from shards.
    pub inbox: Inbox<D>,
    handles: Vec<Handle>,
}

enum Handle {
    Executor(ExecutorJoinHandle<()>),
    Thread(JoinHandle<()>),
}

impl<D: Decide> Body<D> {
    /// How many shards there are.
    pub fn shards(&self) -> usize {
        self.handles.len()
    }

    /// Waits until every shard has ended: publish a view that says when first. Returns how many ended
    /// by a panic. There are none afterwards.
    pub fn join(&mut self) -> usize {
        let failed = self.handles.drain(..).filter_map(|it| match it {
            Handle::Executor(handle) => handle.join().err().map(drop),
            Handle::Thread(handle) => handle.join().err().map(drop),
        });
        failed.count()
    }
}

/// Starts every shard. Blocks SIGTERM, SIGINT and SIGHUP in the calling thread for good, so that no
/// shard takes them: wait for them with `sigwait` or a `signalfd`.
///
/// # Errors
///
/// The kernel's: out of descriptors, memory or threads. Shards that started before the failing one have
/// been told to end.
pub fn start<D: Decide>(spec: Spec<D>) -> io::Result<Body<D>> {
    let Spec { listeners, sockets, relays, pumps, cpus, view, clock, seat } = spec;
    assert_eq!(sockets.len(), relays.len(), "a relay for each shard");
    assert!(relays.len() <= usize::from(u8::MAX), "flows name their shard in eight bits");
    block_signals();
    let (post, mailboxes) = mesh(relays.len())?;
    let (outbox, inbox) = notices()?;
    let published = Published::new(Arc::new(view), post.wakers());
    let mut shards = Vec::with_capacity(relays.len());
    let mut pumps = pumps.into_iter();
    let census = Arc::new(Census::default());
    for (id, ((sockets, relay), mailbox)) in
        (0u8..).zip(sockets.into_iter().zip(relays).zip(mailboxes))
    {
        shards.push(Shard::new(Setup {
            id,
            listeners: listeners.clone(),
            sockets,
            relay,
            pumps: pumps.next().unwrap_or_default(),
            view: published.subscribe(),
            mailbox,
            post: post.clone(),
            outbox: outbox.clone(),
            clock,
            census: Arc::clone(&census),
        })?);
    }
    let mut body = Body { published, post, inbox, handles: Vec::new() };
    for (id, shard) in shards.into_iter().enumerate() {
        let cpu = cpus.get(id % cpus.len().max(1)).copied().unwrap_or(0);
        match seat_shard(id, cpu, shard, seat) {
            Ok(handle) => body.handles.push(handle),
            Err(error) => {
                end(&body.published);
                body.join();
                return Err(error);
            }
        }
    }
    Ok(body)
}

fn seat_shard<D: Decide>(id: usize, cpu: usize, shard: Shard<D>, seat: Seat) -> io::Result<Handle> {
    let name = format!("shard-{id}");
    match seat {
        Seat::Executor => LocalExecutorBuilder::new(Placement::Fixed(cpu))
            .name(&name)
            .io_memory(IO_MEMORY_BYTES)
            .ring_depth(RING_DEPTH)
            .preempt_timer(PREEMPT)
            .spawn(move || drive_in_executor(shard))
            .map(Handle::Executor)
            .map_err(|it| io::Error::other(it.to_string())),
        Seat::Thread => std::thread::Builder::new()
            .name(name)
            .spawn(move || {
                if let Err(error) = pin_to(cpu) {
                    log::warn!("shard {id} is not pinned to cpu {cpu}: {error}");
                }
                drive_on_thread(shard);
            })
            .map(Handle::Thread),
    }
}

/// Tells every shard to end now.
fn end<S>(published: &Published<View<S>>) {
    let View { snapshot, settings, tuning, security, .. } = &*published.current();
    published.publish(Arc::new(View {
        snapshot: Arc::clone(snapshot),
        settings: Arc::clone(settings),
        tuning: *tuning,
        security: security.clone(),
        stopping: Some(protocols::time::Time::ZERO),
    }));
}

/// What glommio insists on.
const MEMLOCK_BYTES_MIN: u64 = 512 * 1024;
/// The least that glommio takes: its pool serves files, and we have none.
const IO_MEMORY_BYTES: usize = 64 * 1024;
const RING_DEPTH: usize = 128;
/// When an executor's task is to give way to others: practically never, since there is none. It must not be
/// soon: an executor of glommio 0.9 whose time is up between its look at I/O and its look at its tasks takes
/// those that are ready for none and sleeps (`run_task_queues`), so that a host that took the CPU away there
/// left the shard deaf for good.
const PREEMPT: Duration = Duration::from_secs(365 * 24 * 3_600);

#[cfg(test)]
mod tests;
