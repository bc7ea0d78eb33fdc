//! How a shard waits: the loop around [`Shard::turn`].
//!
//! While there is traffic the loop blocks in the shard's own epoll set for a few milliseconds at most
//! and lets the executor have a turn when it asks; when quiet it parks through the executor, or in epoll
//! for ever on a plain thread. A glommio wake-up costs eight system calls where epoll costs one
//! (engine measurements: twice the CPU at 10 000 messages a second), which is why it is not used for each.
//!
//! At moderate load nearly all CPU goes into waking up for one message at a time. If messages come often
//! enough, the loop sleeps a bounded moment after each batch and finds several.

use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd as _, FromRawFd as _, RawFd};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use futures_io::AsyncRead as _;
use protocols::time::Time;

use crate::decide::Decide;
use crate::shard::{Shard, Turn};
use crate::sys::sharpen_sleep;

/// Drives a shard as a task of a glommio executor until it is over.
pub async fn drive_in_executor<D: Decide>(mut shard: Shard<D>) {
    sharpen_sleep();
    let mut pace = Pace::default();
    loop {
        shard.prepare_to_wait();
        readable(shard.as_raw_fd()).await;
        loop {
            let turn = shard.turn(BUSY_WAIT_MS);
            if turn.is_over {
                return;
            }
            gather(&mut shard, &mut pace, turn);
            if glommio::executor().need_preempt() {
                glommio::executor().yield_now().await;
            }
            if turn.is_idle {
                break;
            }
        }
    }
}

/// Drives a shard on the calling thread until it is over.
pub fn drive_on_thread<D: Decide>(mut shard: Shard<D>) {
    sharpen_sleep();
    let mut pace = Pace::default();
    let mut timeout_ms = BUSY_WAIT_MS;
    loop {
        let turn = shard.turn(timeout_ms);
        if turn.is_over {
            return;
        }
        gather(&mut shard, &mut pace, turn);
        timeout_ms = if turn.is_idle {
            shard.prepare_to_wait();
            FOR_EVER
        } else {
            BUSY_WAIT_MS
        };
    }
}

fn gather<D: Decide>(shard: &mut Shard<D>, pace: &mut Pace, turn: Turn) {
    let bound = shard.tuning().coalesce;
    if bound.is_zero() {
        return;
    }
    pace.note(shard.now, turn.messages, bound);
    if let Some(wait) = pace.wait(turn.messages, bound) {
        shard.count_coalesced();
        std::thread::sleep(wait);
    }
}

/// How often messages come: decides whether waiting for a batch pays.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    last: Time,
    /// Smoothed time between two messages; zero until known.
    gap_nanos: u64,
}

impl Pace {
    /// A turn at `now` brought `messages`.
    pub fn note(&mut self, now: Time, messages: u64, bound: Duration) {
        let bound = nanos(bound);
        // A pause says that there is a pause, not how long the next gap will be.
        let longest = bound.saturating_mul(4);
        if messages == 0 {
            self.gap_nanos = longest;
            return;
        }
        let elapsed = nanos(now.since(self.last));
        self.last = now;
        let sample = (elapsed / messages).min(longest);
        let weight = messages.min(8);
        let known = if self.gap_nanos == 0 { longest } else { self.gap_nanos };
        self.gap_nanos = (known * (8 - weight) + sample * weight) / 8;
    }

    /// How long to wait after a turn that brought `messages`, so that the next brings enough of them.
    /// `None`: a wait of at most `bound` is not likely to find more than one, or would cost more than
    /// it saves, or enough of them come without waiting.
    pub fn wait(&self, messages: u64, bound: Duration) -> Option<Duration> {
        let enough: u64 =
            std::env::var("SP_ENOUGH").ok().and_then(|it| it.parse().ok()).unwrap_or(BATCH_ENOUGH);
        let pays = self.gap_nanos.saturating_mul(5) <= nanos(bound).saturating_mul(4);
        let wait = bound.min(Duration::from_nanos(self.gap_nanos.saturating_mul(BATCH_ENOUGH)));
        (pays && messages > 0 && messages < enough && wait >= WAIT_MIN).then_some(wait)
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Parks the executor until an epoll set is readable.
///
/// glommio can wait for any descriptor that it takes for a stream; reading an epoll set fails, and that
/// is the sign that it became ready. Never give it a socket: the read would eat data.
async fn readable(epoll: RawFd) {
    // SAFETY: `epoll` outlives the wait, and `ManuallyDrop` keeps the stream from closing what it does
    // not own.
    #[allow(unsafe_code)]
    let stream = unsafe { glommio::net::TcpStream::from_raw_fd(epoll) };
    let mut stream = ManuallyDrop::new(stream);
    let mut nothing = [0; 1];
    std::future::poll_fn(|context| match Pin::new(&mut *stream).poll_read(context, &mut nothing) {
        Poll::Ready(_) => Poll::Ready(()),
        Poll::Pending => Poll::Pending,
    })
    .await;
}

/// Messages of one turn that make a wake-up cheap.
const BATCH_ENOUGH: u64 = 16;
/// A shorter sleep costs more than the wake-ups it saves.
const WAIT_MIN: Duration = Duration::from_micros(20);
/// Longest block under traffic: within it the executor's other tasks wait.
const BUSY_WAIT_MS: i32 = 5;
const FOR_EVER: i32 = -1;
