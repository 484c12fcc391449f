//! Looks at memory from time to time, and says what is to be done.

use std::path::Path;
use std::time::Duration;

use super::gauges::worker_gauge;
use super::pace::{self, Seen};
use super::pressure::{Gauge, Governor};
use super::{Gauges, OomWatch, Pressure, Processes};

/// Between two looks while tasks run.
const BUSY_INTERVAL: Duration = Duration::from_millis(250);
/// Between two looks while none runs.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);
/// Between two looks while memory is short.
const SHORT_INTERVAL: Duration = Duration::from_millis(50);

/// What is watched beside each child's limits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WatchOptions {
    /// KiB that the worker and all below it may hold.
    pub max_memory: Option<u64>,
    /// Whether it heeds what is left of the machine's memory and the cgroup's.
    pub heeds_pressure: bool,
}

/// What was seen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Verdict {
    /// What is to be done.
    pub pressure: Pressure,
    /// What ran out, or is short.
    pub gauge: Option<Gauge>,
    /// Percent of the time in which all processes waited for memory.
    pub stalled: f64,
}

/// Watches memory.
#[derive(Debug)]
pub struct MemoryWatch {
    options: WatchOptions,
    gauges: Gauges,
    governor: Governor,
    /// Who holds what.
    pub processes: Processes,
    /// Whom the kernel ended.
    pub oom: OomWatch,
    /// The scarcest gauge, as it was seen last.
    before: Option<Seen>,
    next: Duration,
}

impl MemoryWatch {
    /// Begins; `proc` is where procfs is, `log` the kernel's log.
    pub fn new(options: WatchOptions, proc: &Path, log: &Path) -> Self {
        Self {
            options,
            gauges: Gauges::new(proc),
            governor: Governor::default(),
            processes: Processes::new(proc),
            oom: OomWatch::new(proc, log),
            before: None,
            next: Duration::ZERO,
        }
    }

    /// When it wants to look again, if ever.
    pub fn next(&self) -> Option<Duration> {
        (self.options.heeds_pressure || self.options.max_memory.is_some()).then_some(self.next)
    }

    /// A look that began at one moment ended at another: the next one comes later if it took long.
    pub fn looked(&mut self, begun: Duration, ended: Duration) {
        self.next = pace::after(begun, ended, self.next.saturating_sub(begun));
    }

    /// A task begins.
    pub fn is_busy(&mut self, now: Duration) {
        self.next = self.next.min(now + BUSY_INTERVAL);
    }

    /// Looks. `worker` is the process at the top, `is_idle` whether no task runs.
    pub fn look(&mut self, worker: u32, is_idle: bool, now: Duration) -> Verdict {
        self.oom.look(now);
        let mut readings = if self.options.heeds_pressure {
            self.gauges.read()
        } else {
            super::pressure::Readings::default()
        };
        if let Some(limit) = self.options.max_memory {
            self.processes.refresh(now);
            let matters = limit / 10 * 8;
            let held = self.processes.held_by_tree(worker, matters);
            readings
                .gauges
                .extend(held.map(|held| worker_gauge(held, limit)));
        }
        let (pressure, gauge) = self.governor.decide(&readings, now);
        let longest = match pressure {
            Pressure::None if is_idle => IDLE_INTERVAL,
            Pressure::None => BUSY_INTERVAL,
            _ => SHORT_INTERVAL,
        };
        let scarcest = readings.gauges.iter().min_by_key(|gauge| gauge.available);
        let wait = scarcest.map_or(longest, |gauge| {
            let held = gauge.total.saturating_sub(gauge.available);
            let seen = Seen { held, at: now };
            pace::wait(self.before.replace(seen), seen, gauge.total, longest)
        });
        self.next = now + wait;
        Verdict {
            pressure,
            gauge,
            stalled: readings.stalled,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use celeriac_core::pool::ShortOf;

    use super::*;

    const HEEDS: WatchOptions = WatchOptions {
        max_memory: None,
        heeds_pressure: true,
    };

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn it_looks_more_often_the_less_there_is() {
        let proc = tempfile::tempdir().unwrap();
        let left = |mib: u64| {
            let kib = mib << 10;
            let text = format!("MemTotal: 8388608 kB\nMemAvailable: {kib} kB\n");
            fs::write(proc.path().join("meminfo"), text).unwrap();
        };
        let mut watch = MemoryWatch::new(HEEDS, proc.path(), &proc.path().join("kmsg"));
        assert_eq!(watch.next(), Some(ms(0)));
        left(6000);
        assert_eq!(watch.look(1, true, ms(0)).pressure, Pressure::None);
        assert_eq!(watch.next(), Some(ms(1000)));
        watch.is_busy(ms(10));
        assert_eq!(watch.next(), Some(ms(260)));
        watch.look(1, false, ms(260));
        assert_eq!(watch.next(), Some(ms(510)));
        // It would be gone in 125 ms.
        left(2000);
        assert_eq!(watch.look(1, false, ms(510)).pressure, Pressure::None);
        assert_eq!(
            watch.next(),
            Some(ms(572)).map(|at| at + Duration::from_micros(500))
        );
        left(100);
        let verdict = watch.look(1, false, ms(572));
        assert_eq!(verdict.pressure, Pressure::EndLargest);
        assert_eq!(verdict.gauge.unwrap().of, ShortOf::Machine);
        left(100);
        watch.look(1, false, ms(600));
        assert_eq!(watch.next(), Some(ms(650)));
    }

    #[test]
    fn the_worker_has_a_limit_of_its_own() {
        let me = std::process::id();
        let limited = |max_memory| WatchOptions {
            max_memory: Some(max_memory),
            heeds_pressure: false,
        };
        let look = |limit| {
            let proc = Path::new("/proc");
            MemoryWatch::new(limited(limit), proc, Path::new("/dev/null"))
                .look(me, false, ms(0))
                .pressure
        };
        assert_eq!(look(1 << 40), Pressure::None);
        assert_eq!(look(1), Pressure::EndLargest);
        let nothing = WatchOptions::default();
        let watch = MemoryWatch::new(nothing, Path::new("/proc"), Path::new("/dev/null"));
        assert_eq!(watch.next(), None);
    }
}
