//! Time of the process and the timers of one shard.
//!
//! The clock is read once per batch. Timers live in one wheel per shard: arming is a store, moving a
//! deadline later is a store (the entry is re-filed when its old slot comes up), and only the earliest
//! slot that holds anything needs an alarm, so that a quiet shard is never woken for nothing.

use std::time::{Duration, Instant};

use protocols::time::Time;

/// The process's clock: monotonic, counted from its start. One copy for all, so that times of different
/// shards compare.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// Starts counting.
    pub fn start() -> Clock {
        Clock(Instant::now())
    }

    /// The moment.
    #[inline]
    pub fn now(self) -> Time {
        Time::ZERO + self.0.elapsed()
    }
}

/// Names a timer of one shard; small numbers, since the wheel keeps an entry for each up to the highest.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct TimerId(pub u32);

/// Timers of one shard, exact to [`TICK`], never early.
#[derive(Debug)]
pub struct Wheel {
    /// First entry of each slot's list.
    heads: Vec<u32>,
    /// One bit per slot that holds anything.
    filled: [u64; WORDS],
    entries: Vec<Entry>,
    /// The tick that was expired last: every filed entry lies in the ticks after it.
    tick: u64,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    next: u32,
    previous: u32,
    /// Tick of the slot it is filed in; [`NOT_FILED`] if none.
    filed: u64,
    /// When it is due; `Time::ZERO` if it is not armed.
    deadline: Time,
}

impl Default for Wheel {
    fn default() -> Self {
        Wheel { heads: vec![NONE; SLOTS], filled: [0; WORDS], entries: Vec::new(), tick: 0 }
    }
}

impl Wheel {
    /// Sets a timer, or moves it.
    #[inline]
    pub fn arm(&mut self, id: TimerId, deadline: Time) {
        let index = id.0 as usize;
        if index >= self.entries.len() {
            self.entries.resize(index + 1, Entry::IDLE);
        }
        let due = tick_of(deadline);
        let Some(entry) = self.entries.get_mut(index) else { return };
        entry.deadline = deadline.max(Time::from_nanos(1));
        if entry.filed == NOT_FILED {
            self.file(id.0, due);
        } else if due < entry.filed {
            self.unfile(id.0);
            self.file(id.0, due);
        }
    }

    /// Switches a timer off. Its slot may still come up, and then nothing happens.
    pub fn cancel(&mut self, id: TimerId) {
        if let Some(entry) = self.entries.get_mut(id.0 as usize) {
            entry.deadline = Time::ZERO;
        }
    }

    /// When a timer is due; `None`: it is off.
    #[cfg(test)]
    pub fn deadline(&self, id: TimerId) -> Option<Time> {
        self.entries.get(id.0 as usize).map(|it| it.deadline).filter(|it| *it != Time::ZERO)
    }

    /// When [`Wheel::expire`] must be called next; `None`: no timer is set. May be earlier than any
    /// deadline, never later than the earliest by more than [`TICK`].
    pub fn poll_timeout(&self) -> Option<Time> {
        let start = slot_of(self.tick + 1);
        (0..=WORDS).find_map(|step| {
            let word = (start / 64 + step) % WORDS;
            let mut bits = self.filled.get(word).copied().unwrap_or(0);
            if step == 0 {
                bits &= u64::MAX << (start % 64);
            } else if step == WORDS {
                bits &= !(u64::MAX << (start % 64));
            }
            (bits != 0).then(|| {
                let slot = word * 64 + bits.trailing_zeros() as usize;
                let ahead = (slot + SLOTS - start) % SLOTS;
                Time::from_nanos((self.tick + 1 + ahead as u64).saturating_mul(TICK_NANOS))
            })
        })
    }

    /// Moves on to `now` and puts every timer that is due into `due`, each once.
    pub fn expire(&mut self, now: Time, due: &mut Vec<TimerId>) {
        // A slot is over when its whole tick has passed: never early.
        let target = now.as_nanos() / TICK_NANOS;
        let steps = target.saturating_sub(self.tick).min(SLOTS as u64);
        let first = target - steps;
        self.tick = target.max(self.tick);
        for tick in first + 1..=first + steps {
            let slot = slot_of(tick);
            let Some(filled) = self.filled.get_mut(slot / 64) else { continue };
            if *filled & (1 << (slot % 64)) == 0 {
                continue;
            }
            *filled &= !(1 << (slot % 64));
            let Some(head) = self.heads.get_mut(slot) else { continue };
            let mut index = std::mem::replace(head, NONE);
            while let Some(entry) = self.entries.get_mut(index as usize) {
                let (next, deadline) = (entry.next, entry.deadline);
                (entry.next, entry.previous, entry.filed) = (NONE, NONE, NOT_FILED);
                if deadline == Time::ZERO {
                    // Cancelled since.
                } else if deadline <= now {
                    entry.deadline = Time::ZERO;
                    due.push(TimerId(index));
                } else {
                    self.file(index, tick_of(deadline));
                }
                index = next;
            }
        }
    }

    fn file(&mut self, index: u32, due: u64) {
        let tick = due.clamp(self.tick + 1, self.tick + SLOTS as u64 - 1);
        let slot = slot_of(tick);
        let (Some(entry), Some(head), Some(filled)) = (
            self.entries.get_mut(index as usize),
            self.heads.get_mut(slot),
            self.filled.get_mut(slot / 64),
        ) else {
            return;
        };
        (entry.next, entry.previous, entry.filed) = (*head, NONE, tick);
        let second = std::mem::replace(head, index);
        *filled |= 1 << (slot % 64);
        if let Some(second) = self.entries.get_mut(second as usize) {
            second.previous = index;
        }
    }

    /// Takes an entry out of its slot. The slot stays marked as filled until it comes up.
    fn unfile(&mut self, index: u32) {
        let Some(entry) = self.entries.get_mut(index as usize) else { return };
        let (next, previous, slot) = (entry.next, entry.previous, slot_of(entry.filed));
        (entry.next, entry.previous, entry.filed) = (NONE, NONE, NOT_FILED);
        if let Some(it) = self.entries.get_mut(next as usize) {
            it.previous = previous;
        }
        match self.entries.get_mut(previous as usize) {
            Some(it) => it.next = next,
            None => {
                if let Some(head) = self.heads.get_mut(slot) {
                    *head = next;
                }
            }
        }
    }
}

impl Entry {
    const IDLE: Entry =
        Entry { next: NONE, previous: NONE, filed: NOT_FILED, deadline: Time::ZERO };
}

/// The tick in which a deadline is over.
fn tick_of(deadline: Time) -> u64 {
    deadline.as_nanos().div_ceil(TICK_NANOS)
}

#[allow(clippy::cast_possible_truncation)] // below SLOTS
fn slot_of(tick: u64) -> usize {
    (tick % SLOTS as u64) as usize
}

/// How exact timers are: the finest that anything here needs is the 100 ms pause of a listener.
pub const TICK: Duration = Duration::from_millis(32);
#[allow(clippy::cast_possible_truncation)] // 32 ms
const TICK_NANOS: u64 = TICK.as_nanos() as u64;
/// 32 s at [`TICK`]; later deadlines wait in the last slot and are filed again from there.
const SLOTS: usize = 1024;
const WORDS: usize = SLOTS / 64;
const NONE: u32 = u32::MAX;
const NOT_FILED: u64 = u64::MAX;

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn xorshift(state: &mut u64) -> u64 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state
    }

    #[test]
    fn timers_go_off_once_never_early_and_at_most_a_tick_late() {
        for seed in 1..200u64 {
            let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let (mut wheel, mut model) = (Wheel::default(), BTreeMap::new());
            let mut now = Time::from_nanos(xorshift(&mut random) % 100_000_000_000);
            let mut due = Vec::new();
            wheel.expire(now, &mut due);
            for step in 0..300 {
                let id = TimerId(u32::try_from(xorshift(&mut random) % 40).unwrap());
                match xorshift(&mut random) % 4 {
                    0 | 1 => {
                        let after = xorshift(&mut random) % 90_000_000_000;
                        let deadline = now + Duration::from_nanos(after);
                        wheel.arm(id, deadline);
                        model.insert(id, deadline);
                    }
                    2 => {
                        wheel.cancel(id);
                        model.remove(&id);
                    }
                    _ => now += Duration::from_nanos(xorshift(&mut random) % 5_000_000_000),
                }
                if let Some(earliest) = model.values().min() {
                    let alarm = wheel.poll_timeout().expect("a timer is set");
                    assert!(alarm <= *earliest + TICK, "seed {seed} step {step}");
                }
                due.clear();
                wheel.expire(now, &mut due);
                for id in &due {
                    let deadline = model.remove(id);
                    assert!(deadline.is_some_and(|it| it <= now), "seed {seed} step {step} {id:?}");
                }
                let late = model.values().find(|it| **it + TICK <= now);
                assert_eq!(late, None, "seed {seed} step {step}");
            }
        }
    }

    #[test]
    fn following_the_alarm_reaches_every_timer_in_few_steps() {
        let mut wheel = Wheel::default();
        let mut due = Vec::new();
        let deadlines = [5, 31, 32, 33, 1_000, 32_700, 32_768, 33_000, 3_600_000];
        for (id, millis) in (0..).zip(&deadlines) {
            wheel.arm(TimerId(id), Time::from_millis(*millis));
        }
        let mut alarms = 0;
        while let Some(alarm) = wheel.poll_timeout() {
            wheel.expire(alarm, &mut due);
            alarms += 1;
        }
        due.sort(); // within a tick the order is open
        assert_eq!(due, (0..9).map(TimerId).collect::<Vec<_>>());
        assert!(alarms < 130, "{alarms}: an hour needs one visit every 32 s");
    }

    #[test]
    fn pushing_a_deadline_ahead_costs_no_filing() {
        let mut wheel = Wheel::default();
        wheel.arm(TimerId(0), Time::from_millis(100));
        let filed = wheel.entries[0].filed;
        for millis in 101..5_000 {
            wheel.arm(TimerId(0), Time::from_millis(millis));
        }
        assert_eq!(wheel.entries[0].filed, filed);
        let mut due = Vec::new();
        wheel.expire(Time::from_millis(4_900), &mut due);
        assert_eq!(due, []);
        wheel.expire(Time::from_millis(5_100), &mut due);
        assert_eq!(due, [TimerId(0)]);
        assert_eq!(wheel.poll_timeout(), None);
    }
}
