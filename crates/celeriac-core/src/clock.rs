//! The two clocks that everything reads: one for dates, one for spans of time.

use std::time::Duration;

use jiff::Timestamp;

/// A source of time. Decisions are given readings of it, so that a test owns time.
pub trait Clock: Send + Sync {
    /// The date and time of day, which an operator may set back or forth.
    fn now(&self) -> Timestamp;

    /// Time since any fixed moment, which only grows.
    fn monotonic(&self) -> Duration;
}

/// The clocks of the operating system.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock {
    started: std::time::Instant,
}

impl SystemClock {
    /// A clock whose monotonic reading begins at zero.
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place where the system's clock is read"
    )]
    pub fn new() -> Self {
        Self {
            started: std::time::Instant::now(),
        }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place where the system's clock is read"
    )]
    fn now(&self) -> Timestamp {
        // A host whose clock stands outside jiff's years has no use for dates anyway.
        Timestamp::try_from(std::time::SystemTime::now()).unwrap_or(Timestamp::UNIX_EPOCH)
    }

    fn monotonic(&self) -> Duration {
        self.started.elapsed()
    }
}

/// One reading of both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// The date and time of day.
    pub wall: Timestamp,
    /// The monotonic clock.
    pub monotonic: Duration,
}

impl Now {
    /// Reads both clocks of `clock`.
    pub fn read(clock: &dyn Clock) -> Self {
        Self {
            wall: clock.now(),
            monotonic: clock.monotonic(),
        }
    }

    /// How long until `moment` by the wall clock, zero when it has passed.
    pub fn until(&self, moment: Timestamp) -> Duration {
        Duration::try_from(moment.duration_since(self.wall)).unwrap_or(Duration::ZERO)
    }
}
