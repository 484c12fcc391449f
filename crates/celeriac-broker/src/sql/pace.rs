//! How long to wait before a database is asked again whether there is something to do.

use std::time::Duration;

/// kombu's default `polling_interval`.
const IDLE: Duration = Duration::from_secs(1);
/// After something was found.
const BUSY: Duration = Duration::from_millis(50);

/// Asks often while there is work, and ever more seldom while there is none.
#[derive(Debug)]
pub(super) struct Pace {
    longest: Duration,
    shortest: Duration,
    next: Duration,
}

impl Pace {
    /// For a database that has to be asked, at least every `longest`.
    pub(super) fn asking(longest: Option<Duration>) -> Self {
        Self::between(BUSY, longest.unwrap_or(IDLE))
    }

    /// With pauses from `shortest` to `longest`, which is kept in any case.
    pub(super) fn between(shortest: Duration, longest: Duration) -> Self {
        let shortest = shortest.min(longest);
        Self {
            longest,
            shortest,
            next: shortest,
        }
    }

    /// The next pause.
    pub(super) fn next(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause + pause / 2).min(self.longest);
        pause
    }

    /// Something was found: there may be more soon.
    pub(super) fn found(&mut self) {
        self.next = self.shortest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_until_something_is_found() {
        let mut pace = Pace::asking(None);
        let pauses: Vec<u128> = (0..10).map(|_| pace.next().as_millis()).collect();
        assert_eq!(pauses, [50, 75, 112, 168, 253, 379, 569, 854, 1000, 1000]);
        pace.found();
        assert_eq!(pace.next(), BUSY);
    }

    #[test]
    fn a_short_polling_interval_is_kept() {
        let mut pace = Pace::asking(Some(Duration::from_millis(10)));
        for _ in 0..3 {
            assert_eq!(pace.next(), Duration::from_millis(10));
        }
        let mut even = Pace::between(IDLE, IDLE);
        even.found();
        assert_eq!((even.next(), even.next()), (IDLE, IDLE));
    }
}
