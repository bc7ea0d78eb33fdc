//! When to look at whom. Each leg and each user space computes its own next deadline; here stands the
//! earliest one that it has asked for. Pushing a deadline back costs nothing: it is looked at too early,
//! once, and filed again.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use protocols::time::Time;

use crate::relay::stream::Conn;

/// Whom a deadline is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Who {
    /// A connection, whichever side.
    Leg(Conn),
    /// A user space.
    Space(Conn),
}

/// Deadlines of a relay.
#[derive(Debug, Default)]
pub(super) struct Timers {
    heap: BinaryHeap<Reverse<(Time, bool, u32, u32)>>,
}

impl Timers {
    /// Sees to it that `who` is looked at by `at`. `armed` is its earliest entry here, kept by itself.
    pub(super) fn arm(&mut self, who: Who, armed: &mut Option<Time>, at: Option<Time>) {
        let Some(at) = at else { return };
        if armed.is_some_and(|it| it <= at) {
            return;
        }
        *armed = Some(at);
        let (is_space, Conn { slot, generation }) = match who {
            Who::Leg(it) => (false, it),
            Who::Space(it) => (true, it),
        };
        self.heap.push(Reverse((at, is_space, slot, generation)));
    }

    /// How many entries there are.
    pub(super) fn len(&self) -> usize {
        self.heap.len()
    }

    /// Keeps the entries that somebody still means.
    pub(super) fn retain(&mut self, mut is_meant: impl FnMut(Time, Who) -> bool) {
        self.heap.retain(|Reverse((at, is_space, slot, generation))| {
            let conn = Conn { slot: *slot, generation: *generation };
            is_meant(*at, if *is_space { Who::Space(conn) } else { Who::Leg(conn) })
        });
        self.heap.shrink_to(2 * self.heap.len());
    }

    /// The earliest deadline.
    pub(super) fn earliest(&self) -> Option<Time> {
        self.heap.peek().map(|Reverse((at, ..))| *at)
    }

    /// Who must be looked at now. Its entry is gone: `armed` is `None` if it was `at`.
    pub(super) fn due(&mut self, now: Time) -> Option<(Time, Who)> {
        let Reverse((at, is_space, slot, generation)) = *self.heap.peek()?;
        if at > now {
            return None;
        }
        self.heap.pop();
        let conn = Conn { slot, generation };
        Some((at, if is_space { Who::Space(conn) } else { Who::Leg(conn) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_earlier_deadline_is_filed() {
        let mut it = Timers::default();
        let who = Who::Leg(Conn { slot: 3, generation: 1 });
        let mut armed = None;
        let at = Time::from_millis;
        for millis in [50, 70, 60, 20, 30] {
            it.arm(who, &mut armed, Some(at(millis)));
        }
        it.arm(who, &mut armed, None);
        assert_eq!((it.heap.len(), armed, it.earliest()), (2, Some(at(20)), Some(at(20))));
        assert_eq!(it.due(at(19)), None);
        assert_eq!(it.due(at(50)), Some((at(20), who)));
        assert_eq!(it.due(at(50)), Some((at(50), who)));
        assert_eq!(it.due(at(50)), None);
    }
}
