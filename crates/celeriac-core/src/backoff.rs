//! How long to wait before trying again.

use std::time::Duration;

/// Waits that grow by a fixed step up to a ceiling: kombu's `retry_over_time`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Linear {
    /// The first wait.
    pub start: Duration,
    /// By how much each wait is longer than the one before.
    pub step: Duration,
    /// The longest wait.
    pub max: Duration,
}

impl Linear {
    /// The waits between attempts to reach a broker: 2, 4, 6 … 30 seconds
    /// (`kombu.Connection.ensure_connection`).
    pub const BROKER: Self = Self {
        start: Duration::from_secs(2),
        step: Duration::from_secs(2),
        max: Duration::from_secs(30),
    };

    /// The wait after attempt number `attempt`, counted from zero.
    pub fn wait(&self, attempt: u32) -> Duration {
        self.start
            .saturating_add(self.step.saturating_mul(attempt))
            .min(self.max)
    }
}

/// Waits that double up to a ceiling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Doubling {
    /// The first wait.
    pub start: Duration,
    /// The longest wait.
    pub max: Duration,
}

impl Doubling {
    /// The wait after failure number `failure`, counted from zero.
    pub fn wait(&self, failure: u32) -> Duration {
        self.start
            .saturating_mul(1_u32.checked_shl(failure).unwrap_or(u32::MAX))
            .min(self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_up_to_their_ceiling() {
        let seconds = |attempt| Linear::BROKER.wait(attempt).as_secs();
        assert_eq!(
            [0, 1, 2, 13, 14, 15, u32::MAX].map(seconds),
            [2, 4, 6, 28, 30, 30, 30]
        );

        let doubling = Doubling {
            start: Duration::from_millis(100),
            max: Duration::from_secs(30),
        };
        let millis = |failure| doubling.wait(failure).as_millis();
        assert_eq!(
            [0, 1, 2, 8, 9, 40, u32::MAX].map(millis),
            [100, 200, 400, 25_600, 30_000, 30_000, 30_000]
        );
    }
}
