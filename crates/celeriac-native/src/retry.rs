//! When a failed task is tried again, and how often. Celery's counterpart:
//! `celery.app.autoretry` and `celery.utils.time.get_exponential_backoff_interval`.

use std::time::Duration;

/// Celery's `default_retry_delay`.
const DEFAULT_DELAY: Duration = Duration::from_mins(3);
/// Celery's `retry_backoff_max`.
const DEFAULT_MAX: Duration = Duration::from_mins(10);

/// What is retried without the task saying so, when, and how often.
#[derive(Debug, Clone, PartialEq)]
pub struct RetryPolicy {
    /// How often at most; `None` without end (`max_retries`).
    pub max_retries: Option<u32>,
    /// Whether every error is retried (`autoretry_for = (Exception,)`). Those that the task wants
    /// to be retried always are.
    pub on_error: bool,
    /// How long after the failure (`default_retry_delay`), unless there is a back-off.
    pub delay: Duration,
    /// The first wait of those that grow (`retry_backoff`).
    pub backoff: Option<Duration>,
    /// By what each wait is longer than the one before (2 in Celery): from this to `factor.1`,
    /// drawn anew for each.
    pub factor: (f64, f64),
    /// The longest of these waits (`retry_backoff_max`).
    pub max: Duration,
    /// Whether a wait is drawn between zero and what it would be (`retry_jitter`).
    pub jitter: bool,
}

impl Default for RetryPolicy {
    /// Celery's defaults.
    fn default() -> Self {
        Self {
            max_retries: Some(3),
            on_error: false,
            delay: DEFAULT_DELAY,
            backoff: None,
            factor: (2.0, 2.0),
            max: DEFAULT_MAX,
            jitter: true,
        }
    }
}

impl RetryPolicy {
    /// How long to wait before the attempt after `retries` retries. `random` gives numbers from 0 to
    /// below 1.
    pub fn wait(&self, retries: u32, mut random: impl FnMut() -> f64) -> Duration {
        let Some(first) = self.backoff else {
            return self.delay;
        };
        let (least, most) = self.factor;
        let factor = least + (most - least) * random();
        let exponent = i32::try_from(retries).unwrap_or(i32::MAX);
        let seconds = (first.as_secs_f64() * factor.powi(exponent)).min(self.max.as_secs_f64());
        let seconds = if self.jitter {
            seconds * random()
        } else {
            seconds
        };
        Duration::try_from_secs_f64(seconds).unwrap_or(self.max)
    }

    /// Whether a task that was retried so often may be retried once more.
    pub fn allows(&self, retries: u32) -> bool {
        self.max_retries.is_none_or(|max| retries < max)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn without_back_off_the_delay_holds() {
        assert_eq!(RetryPolicy::default().wait(7, || 0.5), DEFAULT_DELAY);
    }

    #[test]
    fn waits_double_up_to_the_longest() {
        let policy = RetryPolicy {
            backoff: Some(Duration::from_secs(10)),
            max: Duration::from_mins(1),
            jitter: false,
            ..RetryPolicy::default()
        };
        let waits: Vec<_> = (0..5).map(|n| policy.wait(n, || 0.9).as_secs()).collect();
        assert_eq!(waits, [10, 20, 40, 60, 60]);
        assert_eq!(policy.wait(u32::MAX, || 0.0).as_secs(), 60);
    }

    proptest! {
        #[test]
        fn no_wait_is_longer_than_the_longest(retries: u32, random in 0.0..1.0, jitter: bool,
                most in 1.0..10.0) {
            let policy = RetryPolicy { backoff: Some(Duration::from_secs(10)), factor: (1.0, most),
                jitter, ..RetryPolicy::default() };
            prop_assert!(policy.wait(retries, || random) <= policy.max);
        }
    }
}
