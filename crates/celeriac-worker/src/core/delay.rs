//! Messages that are to come later go to the broker's delay store.
//!
//! Celery keeps them in the worker's memory: `celery.worker.strategy` with its `call_at`.

use std::time::Duration;

use celeriac_core::broker::{Delay, Fate};
use celeriac_core::clock::Now;
use celeriac_core::pool::RequestKey;
use celeriac_protocol::Marks;
use jiff::{SignedDuration, Timestamp};

use super::Core;

/// What comes so soon is held here: the store counts whole seconds on some brokers.
const SOON: SignedDuration = SignedDuration::from_secs(2);
/// How many requests may be held although they come soon.
const HELD: usize = 10_000;
/// Between the first two looks for a worker that knows a task, and between the last ones: where one
/// of ten workers knows it, each look finds that one by chance.
const NEXT_LOOK: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(2));

impl Core {
    /// Whether a request that waits for its ETA goes to the delay store.
    pub(super) fn is_stored(&self, eta: Timestamp, now: Now) -> bool {
        let is_soon = eta <= now.wall.saturating_add(SOON).unwrap_or(Timestamp::MAX);
        self.options.store.is_some() && !(is_soon && self.held.len() < HELD)
    }

    /// Has a request's message come again with these marks, not before a moment.
    pub(super) fn delay(&mut self, key: RequestKey, until: Option<Timestamp>, marks: Marks) {
        self.settle(key, Fate::Delay(Delay { until, marks }));
        self.remove(key);
    }
}

/// When a message comes again whose task is not known here: more and more seldom, and once more when
/// the grace that it has is over. `None` when it is.
pub(super) fn next_look(since: Timestamp, grace: Duration, now: Timestamp) -> Option<Timestamp> {
    let end = since
        .saturating_add(SignedDuration::try_from(grace).ok()?)
        .ok()?;
    if now >= end {
        return None;
    }
    let elapsed = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    let wait = elapsed.clamp(NEXT_LOOK.0, NEXT_LOOK.1);
    let next = now
        .saturating_add(SignedDuration::try_from(wait).ok()?)
        .ok()?;
    Some(next.min(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_that_nobody_knows_is_looked_at_until_its_grace_is_over() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let minute = Duration::from_mins(1);
        for (now, next) in [
            (0, Some(1)),
            (1, Some(2)),
            (4, Some(6)),
            (30, Some(32)),
            (59, Some(60)),
        ] {
            assert_eq!(next_look(at(0), minute, at(now)), next.map(at), "{now}");
        }
        assert_eq!(next_look(at(0), minute, at(60)), None);
        assert_eq!(next_look(at(0), Duration::ZERO, at(0)), None);
        // A clock that was set back.
        assert_eq!(next_look(at(100), minute, at(50)), Some(at(51)));
    }
}
