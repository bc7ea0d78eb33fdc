//! A network and a clock that are nowhere: events in order of their time, datagrams as the weather is.

use std::collections::BTreeMap;
use std::time::Duration;

use protocols::time::Time;

use super::Draw;

/// How a network treats datagrams.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// Lost, percent.
    pub lost: usize,
    /// Arriving twice, percent.
    pub twice: usize,
    /// Delayed by up to a second, percent; they arrive behind what was sent later.
    pub late: usize,
}

/// What is going to happen, by time.
#[derive(Debug)]
pub struct Network<E> {
    now: Time,
    serial: u64,
    events: BTreeMap<(Time, u64), E>,
}

impl<E: Clone> Network<E> {
    /// A quiet network at time zero.
    pub fn new() -> Network<E> {
        Network { now: Time::ZERO, serial: 0, events: BTreeMap::new() }
    }

    /// The clock: when the last event happened.
    pub fn now(&self) -> Time {
        self.now
    }

    /// Lets something happen later.
    pub fn after(&mut self, delay: Duration, event: E) {
        self.serial += 1;
        self.events.insert((self.now + delay, self.serial), event);
    }

    /// Sends a datagram, or loses it (`false`). Every one takes 1 to 40 ms, so that neighbours overtake
    /// each other.
    pub fn carry(&mut self, datagram: E, weather: Weather, draw: &mut Draw) -> bool {
        if draw.percent(weather.lost) {
            return false;
        }
        let copies = if draw.percent(weather.twice) { 2 } else { 1 };
        for _ in 0..copies {
            let slowest = if draw.percent(weather.late) { 1_000 } else { 40 };
            self.after(draw.millis(1, slowest), datagram.clone());
        }
        true
    }

    /// Jumps to the next event.
    pub fn advance(&mut self) -> Option<E> {
        let ((when, _), event) = self.events.pop_first()?;
        self.now = when;
        Some(event)
    }
}

impl<E: Clone> Default for Network<E> {
    fn default() -> Network<E> {
        Network::new()
    }
}
