//! The machine as measurements see it: pinning, and the CPU time of other processes.

use std::time::Duration;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// Pins the calling thread to one CPU.
///
/// # Errors
/// The kernel's, such as a CPU outside the container's set.
pub fn pin(cpu: usize) -> std::io::Result<()> {
    pin_process(0, cpu)
}

/// Pins a process (its main thread, and what it starts later) to one CPU; 0 is the calling thread.
///
/// # Errors
/// The kernel's, such as a CPU outside the container's set.
pub fn pin_process(pid: i32, cpu: usize) -> std::io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(pid), &set)?)
}

/// CPU time that a process and its living descendants have used.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct CpuTime {
    /// Outside the kernel. Sampled by the timer tick, hence coarse.
    pub user: Duration,
    /// In the kernel on its behalf. Sampled likewise.
    pub system: Duration,
    /// Both together as the scheduler measured it, exact to the nanosecond.
    pub run: Duration,
}

impl CpuTime {
    /// Time of the process `root` and of all its descendants, all threads. What has ended is not
    /// counted, nor is a process that cannot be read.
    pub fn of_tree(root: u32) -> Self {
        let mut pids = vec![root];
        let mut total = Self::default();
        while let Some(pid) = pids.pop() {
            let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten();
            for task in tasks.flatten() {
                let path = task.path();
                let file = |name: &str| std::fs::read_to_string(path.join(name));
                total.add_task(
                    &file("stat").unwrap_or_default(),
                    &file("schedstat").unwrap_or_default(),
                );
                let children = file("children").unwrap_or_default();
                pids.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
            }
        }
        total
    }

    /// What was used since `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            user: self.user.saturating_sub(earlier.user),
            system: self.system.saturating_sub(earlier.system),
            run: self.run.saturating_sub(earlier.run),
        }
    }

    /// User and system time as `/proc` ticks say.
    pub fn ticks(self) -> Duration {
        self.user + self.system
    }

    fn add_task(&mut self, stat: &str, schedstat: &str) {
        // Fields 14 and 15; the name in field 2 may hold blanks and ends with the last bracket.
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
        let mut ticks = fields.split_whitespace().skip(11).filter_map(|text| text.parse().ok());
        let mut duration = || TICK * ticks.next().unwrap_or(0);
        self.user += duration();
        self.system += duration();
        let run = schedstat.split_whitespace().next().and_then(|text| text.parse().ok());
        self.run += Duration::from_nanos(run.unwrap_or(0));
    }
}

/// `USER_HZ` is 100 on every Linux that matters here.
const TICK: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_of_a_task_is_read_behind_its_name() {
        let stat = "7 (a) b) R 1 1 1 0 -1 4194304 100 0 0 0 12 34 0 0 20 0 1 0 5 0 0";
        let mut time = CpuTime::default();
        time.add_task(stat, "1500 20 3\n");
        assert_eq!(time.user, Duration::from_millis(120));
        assert_eq!(time.system, Duration::from_millis(340));
        assert_eq!(time.run, Duration::from_nanos(1500));
    }

    #[test]
    fn our_own_time_grows_with_work() {
        let before = CpuTime::of_tree(std::process::id());
        let start = std::time::Instant::now();
        let used = || CpuTime::of_tree(std::process::id()).since(before);
        // On a busy machine it takes a while until we have worked.
        while used().run < Duration::from_millis(5) {
            assert!(start.elapsed() < Duration::from_secs(20), "{:?}", used());
        }
    }
}
