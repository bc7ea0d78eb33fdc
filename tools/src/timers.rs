//! Timers of a load: few different delays, very many timers.
//!
//! Every delay is constant, so a queue per delay is sorted by itself: arming and firing cost a push
//! and a pop. A timer is never cancelled; whoever gets it looks whether it still means something.

use std::collections::VecDeque;
use std::time::Duration;

use protocols::time::Time;

/// Queues of timers, one queue per delay.
#[derive(Clone, Debug)]
pub struct Timers<T> {
    queues: Vec<(Duration, VecDeque<(Time, T)>)>,
}

impl<T> Timers<T> {
    /// Timers for exactly these delays.
    pub fn new(delays: impl IntoIterator<Item = Duration>) -> Self {
        Self { queues: delays.into_iter().map(|delay| (delay, VecDeque::new())).collect() }
    }

    /// Arms a timer of the delay with this number, counted in the order given to [`Self::new`].
    pub fn arm(&mut self, now: Time, delay: usize, what: T) {
        if let Some((duration, queue)) = self.queues.get_mut(delay) {
            queue.push_back((now + *duration, what));
        }
    }

    /// The next timer that is due.
    pub fn fire(&mut self, now: Time) -> Option<T> {
        let due = |queue: &VecDeque<(Time, T)>| queue.front().is_some_and(|(at, _)| *at <= now);
        let (_, queue) = self.queues.iter_mut().find(|(_, queue)| due(queue))?;
        queue.pop_front().map(|(_, what)| what)
    }

    /// When the next timer is due.
    pub fn next_due(&self) -> Option<Time> {
        self.queues.iter().filter_map(|(_, queue)| queue.front().map(|(at, _)| *at)).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_fire_when_due_and_not_before() {
        let mut timers = Timers::new([Duration::from_millis(10), Duration::from_millis(3)]);
        timers.arm(Time::ZERO, 0, 'a');
        timers.arm(Time::ZERO, 1, 'b');
        timers.arm(Time::from_millis(1), 1, 'c');
        assert_eq!(timers.next_due(), Some(Time::from_millis(3)));
        assert_eq!(timers.fire(Time::from_millis(2)), None);
        assert_eq!(timers.fire(Time::from_millis(4)), Some('b'));
        assert_eq!(timers.fire(Time::from_millis(4)), Some('c'));
        assert_eq!(timers.fire(Time::from_millis(4)), None);
        assert_eq!(timers.fire(Time::from_millis(10)), Some('a'));
        assert_eq!(timers.next_due(), None);
    }
}
