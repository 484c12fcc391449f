//! When to look again at something that grows.

use std::time::Duration;

/// The shortest time between two looks: each costs some tens of microseconds.
const SHORTEST: Duration = Duration::from_millis(5);

/// What was seen of something that grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// How much it was, in KiB.
    pub held: u64,
    /// When.
    pub at: Duration,
}

/// How long to wait before the next look: half of the time in which it would reach `limit` if it
/// went on as between the last two looks, at most `longest`.
///
/// What holds: growth that was seen once is seen again before it is over the limit, unless it
/// doubles its pace. What begins to grow is over a limit by no more than it takes in `longest`.
pub fn wait(before: Option<Seen>, seen: Seen, limit: u64, longest: Duration) -> Duration {
    let Some(before) = before else { return longest };
    let grown = seen.held.saturating_sub(before.held);
    let took = seen.at.saturating_sub(before.at).as_secs_f64();
    if grown == 0 || took <= 0.0 {
        return longest;
    }
    let left = limit.saturating_sub(seen.held) as f64;
    let until = left / (grown as f64 / took) / 2.0;
    Duration::try_from_secs_f64(until)
        .unwrap_or(longest)
        .clamp(SHORTEST, longest)
}

/// When to look again after a look that began and ended at these moments: looks take a fifth of the
/// time at most.
pub fn after(begun: Duration, ended: Duration, wait: Duration) -> Duration {
    let took = ended.saturating_sub(begun);
    (begun + wait).max(ended + took * 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_that_take_long_are_seldom() {
        let ms = Duration::from_millis;
        assert_eq!(after(ms(1000), ms(1001), ms(100)), ms(1100));
        assert_eq!(after(ms(1000), ms(1060), ms(50)), ms(1300));
    }

    #[test]
    fn what_grows_fast_is_looked_at_more_often() {
        let ms = Duration::from_millis;
        // Held before, held now, limit; a tenth of a second between the two looks.
        let table = [
            (100, 100, 1000, 100),
            (100, 90, 1000, 100),
            (100, 101, 1000, 100),
            (100, 600, 1000, 40),
            (100, 990, 1000, 5),
            (100, 2000, 1000, 5),
            (0, 1_000_000, 9_000_000, 100),
            (0, 1_000_000, 2_000_000, 50),
        ];
        for (before, now, limit, expected) in table {
            let at = |held, at| Seen { held, at };
            let waits = wait(Some(at(before, ms(0))), at(now, ms(100)), limit, ms(100));
            assert_eq!(waits, ms(expected), "{before} {now} {limit}");
            assert_eq!(wait(None, at(now, ms(100)), limit, ms(100)), ms(100));
        }
        let same = Seen { held: 5, at: ms(1) };
        let more = Seen { held: 9, ..same };
        assert_eq!(wait(Some(same), more, 10, ms(100)), ms(100), "at once");
    }
}
