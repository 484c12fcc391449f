//! Whether memory is so short that something must be done before the kernel does it.

use std::time::Duration;

use celeriac_core::pool::{ShortOf, Shortage};

/// How long memory must be sufficient again before tasks are fetched.
const RELIEF: Duration = Duration::from_secs(1);
/// Tasks are not fetched while all processes are stalled for so much of the time, in percent.
const STALLED: f64 = 20.0;
/// One that is short of memory as well is about to be unreachable at so much.
const STUCK: f64 = 40.0;

/// What is to be done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pressure {
    /// Nothing.
    #[default]
    None,
    /// No more tasks are fetched, and no more processes started.
    StopFetching,
    /// The child that holds the most is ended, before the kernel ends what it likes.
    EndLargest,
}

/// How much memory there is of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gauge {
    /// Whose.
    pub of: ShortOf,
    /// What can still be taken, in KiB.
    pub available: u64,
    /// All of it, in KiB.
    pub total: u64,
    /// Whether somebody is killed when it runs out. Otherwise the kernel slows down who asks for
    /// more, or has room to put it.
    pub is_hard: bool,
}

/// What is known of memory at a moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Readings {
    /// All gauges that there are.
    pub gauges: Vec<Gauge>,
    /// Percent of the last ten seconds for which every process waited for memory
    /// (`full avg10` of the kernel's pressure stall information).
    pub stalled: f64,
}

impl Gauge {
    /// Below this no more tasks are fetched: a twentieth, at least 256 MiB and at most 1 GiB, but
    /// never more than an eighth. Of what the worker itself may hold: a tenth.
    fn stop_below(self) -> u64 {
        match self.of {
            ShortOf::Worker => self.total / 10,
            _ => (self.total / 20)
                .clamp(256 << 10, 1 << 20)
                .min(self.total / 8),
        }
    }

    /// Below this a child is ended.
    fn end_below(self) -> u64 {
        match self.of {
            ShortOf::Worker => 1,
            _ => self.stop_below() * 2 / 5,
        }
    }

    /// The least that a child must hold for its end to be of use: it is not ended for what others
    /// hold.
    pub fn least_to_end(self) -> u64 {
        match self.of {
            ShortOf::Worker => 0,
            _ => self.stop_below(),
        }
    }

    fn shortage(self) -> Shortage {
        Shortage {
            of: self.of,
            available: self.available,
            total: self.total,
        }
    }
}

/// Decides, and remembers what it decided: what is scarce stays so until there is clearly more.
#[derive(Debug, Default)]
pub struct Governor {
    is_short: bool,
    /// Since when there is enough.
    enough_since: Option<Duration>,
}

impl Governor {
    /// What is to be done, and for want of what.
    pub fn decide(&mut self, readings: &Readings, now: Duration) -> (Pressure, Option<Gauge>) {
        let gauges = &readings.gauges;
        let short = gauges
            .iter()
            .filter(|gauge| gauge.available < gauge.stop_below())
            .min_by_key(|gauge| gauge.available);
        let is_out = |gauge: &&Gauge| {
            let is_stuck = readings.stalled >= STUCK && gauge.available < gauge.stop_below();
            is_stuck || (gauge.is_hard && gauge.available < gauge.end_below())
        };
        if let Some(gauge) = gauges.iter().find(is_out) {
            self.begin();
            return (Pressure::EndLargest, Some(*gauge));
        }
        if short.is_some() || readings.stalled >= STALLED {
            self.begin();
            return (Pressure::StopFetching, short.copied());
        }
        let is_enough = |gauge: &Gauge| gauge.available >= gauge.stop_below() / 2 * 3;
        if self.is_short && gauges.iter().all(is_enough) && readings.stalled < STALLED / 2.0 {
            let since = *self.enough_since.get_or_insert(now);
            self.is_short = now.saturating_sub(since) < RELIEF;
        } else {
            self.enough_since = None;
        }
        if self.is_short {
            (Pressure::StopFetching, None)
        } else {
            (Pressure::None, None)
        }
    }

    fn begin(&mut self) {
        self.is_short = true;
        self.enough_since = None;
    }
}

/// What is short, for who asks.
pub fn shortage(gauge: Option<Gauge>, stalled: f64) -> Shortage {
    gauge.map_or(
        Shortage {
            of: ShortOf::Time,
            available: (100.0 - stalled).clamp(0.0, 100.0) as u64,
            total: 100,
        },
        Gauge::shortage,
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 10;
    const GIB: u64 = 1 << 20;

    fn gauge(of: ShortOf, available: u64, total: u64) -> Gauge {
        Gauge {
            of,
            available,
            total,
            is_hard: true,
        }
    }

    fn machine(available: u64, total: u64) -> Readings {
        Readings {
            gauges: vec![gauge(ShortOf::Machine, available, total)],
            stalled: 0.0,
        }
    }

    #[test]
    fn what_is_short_is_told_by_its_size() {
        use Pressure::{EndLargest, None, StopFetching};
        let soft = |readings: Readings| Readings {
            gauges: readings
                .gauges
                .into_iter()
                .map(|gauge| Gauge {
                    is_hard: false,
                    ..gauge
                })
                .collect(),
            ..readings
        };
        let stalled = |stalled, readings| Readings {
            stalled,
            ..readings
        };
        let worker = |available| Readings {
            gauges: vec![gauge(ShortOf::Worker, available, 1000)],
            stalled: 0.0,
        };
        let table = [
            (Readings::default(), None),
            (machine(4 * GIB, 8 * GIB), None),
            (machine(420 * MIB, 8 * GIB), None),
            (machine(400 * MIB, 8 * GIB), StopFetching),
            (machine(170 * MIB, 8 * GIB), StopFetching),
            (machine(160 * MIB, 8 * GIB), EndLargest),
            // Much of a small one, little of a large one.
            (machine(70 * MIB, 512 * MIB), None),
            (machine(60 * MIB, 512 * MIB), StopFetching),
            (machine(25 * MIB, 512 * MIB), EndLargest),
            (machine(1025 * MIB, 256 * GIB), None),
            (machine(1000 * MIB, 256 * GIB), StopFetching),
            // Nobody is killed there, unless all stand still.
            (soft(machine(0, 8 * GIB)), StopFetching),
            (stalled(50.0, soft(machine(0, 8 * GIB))), EndLargest),
            (stalled(50.0, machine(4 * GIB, 8 * GIB)), StopFetching),
            (stalled(15.0, machine(4 * GIB, 8 * GIB)), None),
            (worker(150), None),
            (worker(50), StopFetching),
            (worker(0), EndLargest),
        ];
        for (readings, expected) in table {
            let decided = Governor::default().decide(&readings, Duration::ZERO);
            assert_eq!(decided.0, expected, "{readings:?}");
        }
    }

    #[test]
    fn what_was_short_must_be_clearly_enough_for_a_while() {
        use Pressure::{None, StopFetching};
        let mut governor = Governor::default();
        let steps = [
            (0, 500, None),
            (1, 400, StopFetching),
            // More, but not clearly so.
            (2, 500, StopFetching),
            (3000, 500, StopFetching),
            (3100, 700, StopFetching),
            (4000, 700, StopFetching),
            // It was short in between.
            (4050, 500, StopFetching),
            (4200, 700, StopFetching),
            (5100, 700, StopFetching),
            (5200, 700, None),
            (5300, 500, None),
        ];
        for (at, available, expected) in steps {
            let readings = machine(available * MIB, 8 * GIB);
            let (pressure, _) = governor.decide(&readings, Duration::from_millis(at));
            assert_eq!(pressure, expected, "at {at} ms with {available} MiB");
        }
    }

    #[test]
    fn the_gauge_that_ran_out_is_named() {
        let mut readings = machine(300 * MIB, 8 * GIB);
        let group = gauge(ShortOf::Cgroup, 10 * MIB, GIB);
        readings.gauges.push(group);
        let decided = Governor::default().decide(&readings, Duration::ZERO);
        assert_eq!(decided, (Pressure::EndLargest, Some(group)));
        let words = shortage(decided.1, 0.0).to_string();
        assert!(words.contains("cgroup"), "{words}");
        let words = shortage(None, 33.3).to_string();
        assert_eq!(words, "all processes wait for memory 34 % of the time");
    }

    proptest! {
        /// Less memory never means less pressure, and a child is never ended where fetching goes on.
        #[test]
        fn pressure_grows_as_memory_shrinks(total in 1_u64..1 << 30, a in 0_u64..1 << 30, b in 0_u64..1 << 30) {
            let (less, more) = (a.min(b).min(total), a.max(b).min(total));
            let decide = |available| {
                Governor::default().decide(&machine(available, total), Duration::ZERO).0
            };
            prop_assert!(decide(less) >= decide(more));
            let gauge = gauge(ShortOf::Machine, 0, total);
            prop_assert!(gauge.end_below() <= gauge.stop_below());
            prop_assert!(gauge.stop_below() <= total / 8);
        }
    }
}
