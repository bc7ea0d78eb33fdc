//! How a shard waits: the loop around [`Shard::turn`].
//!
//! While there is traffic the loop blocks in the shard's own epoll set for a few milliseconds at most;
//! when quiet it parks through the executor, which has no other task, or in epoll for ever on a plain
//! thread. A glommio wake-up costs eight system calls where epoll costs one (engine measurements: twice the
//! CPU at 10 000 messages a second), which is why it is not used for each.
//!
//! At moderate load nearly all CPU goes into waking up for one message at a time. If messages come often
//! enough, the loop sleeps a bounded moment after each batch and finds several. What a wake-up costs, and
//! what the cold caches of a longer sleep, is a matter of the machine, so the loop tries it out.

use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd as _, FromRawFd as _, RawFd};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use futures_io::AsyncRead as _;
use protocols::time::Time;

use crate::decide::Decide;
use crate::shard::{Shard, Turn};
use crate::sys::{sharpen_sleep, thread_cpu_time};

/// Drives a shard as a task of a glommio executor until it is over.
pub async fn drive_in_executor<D: Decide>(mut shard: Shard<D>) {
    sharpen_sleep();
    let mut waiter = Waiter::default();
    loop {
        shard.prepare_to_wait();
        readable(shard.as_raw_fd()).await;
        loop {
            let turn = shard.turn(BUSY_WAIT_MS);
            if turn.is_over {
                return;
            }
            gather(&mut shard, &mut waiter, turn);
            if turn.is_idle {
                break;
            }
        }
    }
}

/// Drives a shard on the calling thread until it is over.
pub fn drive_on_thread<D: Decide>(mut shard: Shard<D>) {
    sharpen_sleep();
    let mut waiter = Waiter::default();
    let mut timeout_ms = BUSY_WAIT_MS;
    loop {
        let turn = shard.turn(timeout_ms);
        if turn.is_over {
            return;
        }
        gather(&mut shard, &mut waiter, turn);
        timeout_ms = if turn.is_idle {
            shard.prepare_to_wait();
            FOR_EVER
        } else {
            BUSY_WAIT_MS
        };
    }
}

fn gather<D: Decide>(shard: &mut Shard<D>, waiter: &mut Waiter, turn: Turn) {
    let bound = shard.tuning().coalesce;
    if bound.is_zero() {
        return;
    }
    let Waiter { pace, trial } = waiter;
    pace.note(shard.now, turn.messages, bound);
    trial.note(turn.messages, thread_cpu_time);
    if trial.is_waiting()
        && let Some(wait) = pace.wait(turn.messages, bound)
    {
        shard.count_coalesced();
        std::thread::sleep(wait);
    }
}

#[derive(Default)]
struct Waiter {
    pace: Pace,
    trial: Trial,
}

/// Whether waiting saves CPU here and now: most messages are handled the way that was cheaper so far,
/// and some the other way, to see whether that is still so.
#[derive(Clone, Copy, Debug)]
pub struct Trial {
    is_waiting: bool,
    /// Messages since the phase began.
    messages: u64,
    /// CPU time of the thread when it did.
    began: Option<Duration>,
    phase: u64,
    /// CPU time of a phase without and with waiting; zero until known.
    costs: [Duration; 2],
}

impl Default for Trial {
    fn default() -> Self {
        Trial { is_waiting: true, messages: 0, began: None, phase: 0, costs: [Duration::ZERO; 2] }
    }
}

impl Trial {
    /// Whether to wait now.
    pub fn is_waiting(&self) -> bool {
        self.is_waiting
    }

    /// A turn brought `messages`; `cpu_time` is what the thread has used so far.
    pub fn note(&mut self, messages: u64, cpu_time: impl FnOnce() -> Duration) {
        self.messages += messages;
        if self.messages < PHASE_MESSAGES {
            return;
        }
        let now = cpu_time();
        if let Some(began) = self.began.replace(now) {
            let scale = f64::from(u32::try_from(self.messages).unwrap_or(u32::MAX));
            let cost = now.saturating_sub(began).div_f64(scale);
            let [without, with] = &mut self.costs;
            let known = if self.is_waiting { with } else { without };
            *known = if known.is_zero() { cost } else { (*known + cost) / 2 };
        }
        self.messages = 0;
        self.phase += 1;
        let [without, with] = self.costs;
        let is_better = with <= without || without.is_zero();
        // One of each to begin with, then the better but for one of many.
        let is_other = self.phase == 2 || self.phase.is_multiple_of(PHASES_PER_TRY);
        self.is_waiting = is_better != is_other;
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
    /// `None`: a wait of at most `bound` is not likely to find several, or would cost more than it
    /// saves, or enough of them come without waiting.
    pub fn wait(&self, messages: u64, bound: Duration) -> Option<Duration> {
        let finds_several = self.gap_nanos.saturating_mul(5) <= nanos(bound).saturating_mul(2);
        let is_enough = messages == 0 || messages >= MESSAGES_ENOUGH;
        let wait = Duration::from_nanos(self.gap_nanos.saturating_mul(MESSAGES_ENOUGH)).min(bound);
        (finds_several && !is_enough && wait >= WAIT_MIN).then_some(wait)
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

/// Messages of a turn that make its wake-up cheap.
const MESSAGES_ENOUGH: u64 = 24;
/// A shorter sleep costs more than the wake-ups it saves.
const WAIT_MIN: Duration = Duration::from_micros(20);
/// Messages over which CPU time is compared; a tenth of a second of heavy traffic.
const PHASE_MESSAGES: u64 = 4_096;
/// One phase in so many is handled the dearer way.
const PHASES_PER_TRY: u64 = 16;
/// Longest block under traffic, before the shard parks.
const BUSY_WAIT_MS: i32 = 5;
const FOR_EVER: i32 = -1;

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_micros(100);

    /// A pace of one message every `gap_nanos`.
    fn pace(gap_nanos: u64) -> Pace {
        let mut pace = Pace::default();
        for turn in 1..200 {
            pace.note(Time::from_nanos(turn * gap_nanos), 1, BOUND);
        }
        pace
    }

    #[test]
    fn the_wait_is_as_long_as_enough_messages_take_and_bounded() {
        let micros = |it| Some(Duration::from_micros(it));
        let cases = [
            (143_000, None),
            (41_000, None),
            (36_000, micros(100)),
            (2_000, micros(48)),
            (500, None),
        ];
        for (gap_nanos, want) in cases {
            let wait = pace(gap_nanos).wait(1, BOUND);
            let near = |it: Duration| it.as_micros().next_multiple_of(4);
            assert_eq!(wait.map(near), want.map(near), "a message every {gap_nanos} ns");
        }
        assert_eq!(pace(36_000).wait(0, BOUND), None, "nothing came");
        assert_eq!(pace(2_000).wait(MESSAGES_ENOUGH, BOUND), None, "enough came");
        let mut paused = pace(36_000);
        paused.note(Time::from_millis(9_000), 0, BOUND);
        assert_eq!(paused.wait(1, BOUND), None, "after a pause");
    }

    /// Share of messages that waited, where a message costs so much CPU without and with waiting.
    fn share_waiting(trial: &mut Trial, without: u64, with: u64) -> f64 {
        let (mut cpu, mut waited, turns) = (Duration::ZERO, 0.0, 100_000u32);
        for _ in 0..turns {
            let micros = if trial.is_waiting() { with } else { without };
            cpu += Duration::from_micros(8 * micros);
            waited += f64::from(u8::from(trial.is_waiting()));
            trial.note(8, || cpu);
        }
        waited / f64::from(turns)
    }

    #[test]
    fn it_waits_where_that_is_cheaper_and_notices_when_it_no_longer_is() {
        let mut trial = Trial::default();
        for (without, with, least, most) in
            [(10, 5, 0.8, 1.0), (5, 10, 0.0, 0.2), (10, 5, 0.8, 1.0), (7, 8, 0.0, 0.25)]
        {
            let share = share_waiting(&mut trial, without, with);
            assert!((least..=most).contains(&share), "{without} against {with} us: {share}");
        }
    }
}
