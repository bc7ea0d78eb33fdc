//! Requests on their way on one leg: which number of ours stands for which number of whom.
//!
//! We number consecutively, so the table is a ring indexed by number, and since all wait equally long the
//! oldest is always the next to give up. Source: `http-smpp-registry.md` 2.4, 8.1; SMPP 3.4 §3.2.

use std::collections::VecDeque;
use std::num::NonZeroU32;

use protocols::smpp::{Command, SEQUENCE_MAX};
use protocols::time::Time;

use crate::relay::stream::Conn;

/// A request that waits for its response.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Entry {
    /// Whose it is; `None`: our own.
    pub(super) from: Option<Conn>,
    /// The number that it came under.
    pub(super) sequence: u32,
    /// What was asked.
    pub(super) command: Command,
    /// When we answer ourselves.
    pub(super) deadline: Time,
    /// Others were asked the same: only the first answer counts.
    pub(super) shared: Option<Shared>,
}

/// A message that several sessions were asked, by a number of ours: servers may use theirs again.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) struct Shared(NonZeroU32);

impl Shared {
    pub(super) const FIRST: Shared = Shared(NonZeroU32::MIN);

    /// The number after this one.
    pub(super) fn next(self) -> Shared {
        Shared(self.0.checked_add(1).unwrap_or(NonZeroU32::MIN))
    }
}

/// The requests that one leg has not answered yet.
#[derive(Debug)]
pub(super) struct Pending {
    /// Next number to be used, 1 to [`SEQUENCE_MAX`].
    next: u32,
    /// The last `entries.len()` numbers before `next`; `None` is answered. The first is never `None`.
    entries: VecDeque<Option<Entry>>,
    open: u32,
}

impl Pending {
    /// The first request will have the number `first`.
    pub(super) fn starting_at(first: u32) -> Pending {
        Pending { next: first.clamp(1, SEQUENCE_MAX), entries: VecDeque::new(), open: 0 }
    }

    /// Takes a request in. Returns the number that it leaves under.
    pub(super) fn push(&mut self, entry: Entry) -> u32 {
        self.entries.push_back(Some(entry));
        self.open = self.open.saturating_add(u32::from(entry.from.is_some()));
        self.advance()
    }

    /// Uses up a number for what nobody answers.
    pub(super) fn pass(&mut self) -> u32 {
        if !self.entries.is_empty() {
            self.entries.push_back(None);
        }
        self.advance()
    }

    /// The request that `response` with this number answers. `None`: nobody waits for that.
    pub(super) fn take(&mut self, sequence: u32, response: Command) -> Option<Entry> {
        let place = self.place(sequence)?;
        let fits =
            |it: &mut Entry| response == it.command.response() || response == Command::GENERIC_NACK;
        let entry = self.entries.get_mut(place)?.take_if(fits)?;
        self.settle(&entry);
        Some(entry)
    }

    /// The oldest request, if its time is over.
    pub(super) fn expire(&mut self, now: Time) -> Option<Entry> {
        let entry = self.entries.front_mut()?.take_if(|it| it.deadline <= now)?;
        self.settle(&entry);
        Some(entry)
    }

    /// No request waits longer than until then.
    pub(super) fn hasten(&mut self, latest: Time) {
        for entry in self.entries.iter_mut().flatten() {
            entry.deadline = entry.deadline.min(latest);
        }
    }

    /// When the oldest request gives up.
    pub(super) fn earliest(&self) -> Option<Time> {
        self.entries.front()?.as_ref().map(|it| it.deadline)
    }

    /// Every request that waits, our own among them, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().flatten()
    }

    /// Whether no request waits, not even one of our own.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Every request that waits, in order.
    pub(super) fn into_entries(self) -> impl Iterator<Item = Entry> {
        self.entries.into_iter().flatten()
    }

    /// Takes out every request that waits.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Entry> + use<> {
        self.open = 0;
        std::mem::take(&mut self.entries).into_iter().flatten()
    }

    /// How many wait that are not our own: what windows are about.
    pub(super) fn open(&self) -> u32 {
        self.open
    }

    /// Whether the table takes no more, however few wait: one of them is very old.
    pub(super) fn is_stretched(&self) -> bool {
        self.entries.len() >= SPAN_MAX
    }

    fn advance(&mut self) -> u32 {
        let sequence = self.next;
        self.next = if sequence == SEQUENCE_MAX { 1 } else { sequence + 1 };
        sequence
    }

    /// Where the number is kept. 0 and the high bit are numbers that we never use.
    fn place(&self, sequence: u32) -> Option<usize> {
        if sequence == 0 || sequence > SEQUENCE_MAX {
            return None;
        }
        let back = if sequence < self.next {
            self.next - sequence
        } else {
            (self.next + SEQUENCE_MAX).wrapping_sub(sequence)
        };
        self.entries.len().checked_sub(usize::try_from(back).ok()?)
    }

    /// One entry was taken: forgets what is answered at the front.
    fn settle(&mut self, taken: &Entry) {
        self.open = self.open.saturating_sub(u32::from(taken.from.is_some()));
        while let Some(None) = self.entries.front() {
            self.entries.pop_front();
        }
        if self.entries.is_empty() && self.entries.capacity() > KEPT_MAX {
            self.entries = VecDeque::new();
        }
    }
}

/// Numbers from the oldest open request to the newest, 2 MiB: reached only if a request stays
/// unanswered while tens of thousands of later ones are answered.
const SPAN_MAX: usize = 1 << 16;
/// Room that an idle leg keeps.
const KEPT_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(sequence: u32) -> Entry {
        Entry {
            from: Some(Conn { slot: 0, generation: 0 }),
            sequence,
            command: Command::SUBMIT_SM,
            deadline: Time::from_millis(sequence.into()),
            shared: None,
        }
    }

    const RESPONSE: Command = Command::SUBMIT_SM.response();

    #[test]
    fn numbers_wrap_to_one_and_find_their_way_back() {
        let mut it = Pending::starting_at(SEQUENCE_MAX - 1);
        let ours: Vec<u32> = (10..14).map(|theirs| it.push(entry(theirs))).collect();
        assert_eq!(ours, [SEQUENCE_MAX - 1, SEQUENCE_MAX, 1, 2]);
        for (sequence, theirs) in [(1, 12), (SEQUENCE_MAX - 1, 10), (2, 13), (SEQUENCE_MAX, 11)] {
            assert_eq!(it.take(sequence, RESPONSE), Some(entry(theirs)), "{sequence}");
            assert_eq!(it.take(sequence, RESPONSE), None, "{sequence} twice");
        }
        assert_eq!((it.open(), it.entries.len()), (0, 0));
    }

    #[test]
    fn only_what_was_asked_is_answered() {
        let mut it = Pending::starting_at(1);
        for theirs in 0..3 {
            it.push(entry(theirs));
        }
        for sequence in [0, 4, 5, SEQUENCE_MAX, SEQUENCE_MAX + 1, u32::MAX] {
            assert_eq!(it.take(sequence, RESPONSE), None, "{sequence}");
        }
        assert_eq!(it.take(1, Command::QUERY_SM.response()), None, "another operation");
        assert_eq!(it.take(1, RESPONSE), Some(entry(0)));
        assert_eq!(it.take(2, Command::GENERIC_NACK), Some(entry(1)));
    }

    #[test]
    fn the_oldest_gives_up_first() {
        let mut it = Pending::starting_at(1);
        for theirs in 1..=3 {
            it.push(entry(theirs));
        }
        assert_eq!(it.take(1, RESPONSE), Some(entry(1)));
        assert_eq!(it.earliest(), Some(Time::from_millis(2)));
        assert_eq!(it.expire(Time::from_millis(1)), None);
        assert_eq!(it.expire(Time::from_millis(5)), Some(entry(2)));
        assert_eq!(it.take(2, RESPONSE), None, "late");
        assert_eq!(it.expire(Time::from_millis(5)), Some(entry(3)));
        assert_eq!((it.expire(Time::from_millis(5)), it.earliest(), it.open()), (None, None, 0));
    }

    #[test]
    fn what_nobody_answers_uses_a_number() {
        let mut it = Pending::starting_at(7);
        assert_eq!(it.pass(), 7);
        assert_eq!(it.push(entry(1)), 8);
        assert_eq!(it.pass(), 9);
        assert_eq!(it.push(entry(2)), 10);
        assert_eq!(it.take(9, RESPONSE), None);
        assert_eq!(it.take(10, RESPONSE), Some(entry(2)));
        assert_eq!(it.take(8, RESPONSE), Some(entry(1)));
    }

    #[test]
    fn our_own_requests_take_no_room() {
        let mut it = Pending::starting_at(1);
        it.push(Entry { from: None, ..entry(1) });
        assert_eq!((it.open(), it.earliest()), (0, Some(Time::from_millis(1))));
        it.push(entry(2));
        assert!(it.take(1, RESPONSE).is_some());
        assert_eq!(it.open(), 1);
    }

    #[test]
    fn one_that_is_never_answered_does_not_grow_the_table_for_ever() {
        let mut it = Pending::starting_at(1);
        it.push(entry(0));
        for _ in 1..SPAN_MAX {
            assert!(!it.is_stretched());
            let sequence = it.push(entry(1));
            it.take(sequence, RESPONSE);
        }
        assert!(it.is_stretched() && it.open() == 1);
        it.take(1, RESPONSE);
        assert!(!it.is_stretched() && it.entries.capacity() <= KEPT_MAX);
    }

    #[test]
    fn it_agrees_with_a_map() {
        for seed in 1..200_u64 {
            let mut state = seed;
            let mut draw = |bound: u64| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                u32::try_from(state % bound).unwrap()
            };
            let mut it = Pending::starting_at(SEQUENCE_MAX - draw(100));
            let mut map = std::collections::HashMap::new();
            for step in 0..500 {
                if draw(2) == 0 {
                    map.insert(it.push(entry(step)), entry(step));
                } else {
                    let near = it.next.wrapping_sub(draw(40)).wrapping_add(5);
                    let want = map.remove(&near);
                    assert_eq!(it.take(near, RESPONSE), want, "seed {seed} step {step}");
                }
                assert_eq!(it.open() as usize, map.len(), "seed {seed} step {step}");
            }
        }
    }
}
