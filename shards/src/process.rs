//! What the process knows of itself: CPU, memory, wall clock.

use std::cell::Cell;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;

use crate::clock::Clock;

/// CPU of the process between two looks.
pub(crate) struct Cpu {
    last: Cell<(Instant, Duration)>,
    percent: Cell<u32>,
}

impl Cpu {
    /// Starts measuring.
    pub(crate) fn start() -> Cpu {
        Cpu { last: Cell::new((Instant::now(), used())), percent: Cell::new(0) }
    }

    /// Percent of one core since the look before; looks within a second of one another see the same.
    pub(crate) fn percent(&self) -> u32 {
        let (then, before) = self.last.get();
        let elapsed = then.elapsed();
        if elapsed >= Duration::from_secs(1) {
            let now = used();
            let percent = now.saturating_sub(before).as_micros() * 100 / elapsed.as_micros().max(1);
            self.percent.set(u32::try_from(percent).unwrap_or(u32::MAX));
            self.last.set((Instant::now(), now));
        }
        self.percent.get()
    }
}

fn used() -> Duration {
    getrusage(UsageWho::RUSAGE_SELF).map_or(Duration::ZERO, |it| {
        let micros = it.user_time().num_microseconds() + it.system_time().num_microseconds();
        Duration::from_micros(u64::try_from(micros).unwrap_or(0))
    })
}

/// Resident set of the process, bytes; 0 where there is no `/proc`.
pub(crate) fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split(' ').nth(1).and_then(|it| it.parse().ok()).unwrap_or(0);
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
    pages * page.and_then(|it| u64::try_from(it).ok()).unwrap_or(4096)
}

/// Wall clock at the start of the process's clock, milliseconds since 1970.
pub(crate) fn wall_epoch_ms(clock: Clock) -> u64 {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let since_start = Duration::from_nanos(clock.now().as_nanos());
    u64::try_from(wall.saturating_sub(since_start).as_millis()).unwrap_or(0)
}
