//! Rate limits: `"10/m"` and the token bucket that keeps them.
//!
//! Celery's counterparts: `celery.utils.time.rate` and `kombu.utils.limits.TokenBucket`.

use std::fmt;
use std::time::Duration;

/// A number of tasks per second that is above zero.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RateLimit(f64);

/// Why a rate limit can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid rate limit {0:?}: use a number, or a number with a unit, as in '10/s', '100/m' or '1000/h'"
)]
pub struct InvalidRateLimit(pub String);

impl RateLimit {
    /// Reads Celery's notation. An empty text and zero mean that there is no limit.
    ///
    /// # Errors
    /// When the number or the unit can't be read, or the number is negative or not finite.
    pub fn parse(text: &str) -> Result<Option<Self>, InvalidRateLimit> {
        let invalid = || InvalidRateLimit(text.to_owned());
        if text.is_empty() {
            return Ok(None);
        }
        let (number, unit) = text.split_once('/').unwrap_or((text, "s"));
        let number: f64 = number.trim().parse().map_err(|_| invalid())?;
        let seconds = match unit {
            "s" | "" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(invalid()),
        };
        Self::per_second(number / seconds).ok_or_else(invalid)
    }

    /// A limit of `rate` tasks a second: `Some(None)` for zero, `None` when it is no rate at all.
    pub fn per_second(rate: f64) -> Option<Option<Self>> {
        if !rate.is_finite() || rate < 0.0 {
            return None;
        }
        Some((rate > 0.0).then_some(Self(rate)))
    }
}

impl RateLimit {
    /// Between two tasks that begin evenly.
    pub fn interval(self) -> Duration {
        Duration::try_from_secs_f64(1.0 / self.0).unwrap_or(Duration::MAX)
    }
}

impl fmt::Display for RateLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", self.0)
    }
}

/// A token bucket of capacity one, full at the start, as Celery gives each rate-limited task.
///
/// Times are readings of one monotonic clock, as durations since any fixed moment.
#[derive(Debug, Clone)]
pub struct TokenBucket {
    limit: RateLimit,
    tokens: f64,
    read_at: Duration,
}

impl TokenBucket {
    /// A full bucket.
    pub fn new(limit: RateLimit, now: Duration) -> Self {
        Self {
            limit,
            tokens: 1.0,
            read_at: now,
        }
    }

    /// Takes one token if there is one.
    pub fn try_take(&mut self, now: Duration) -> bool {
        self.refill(now);
        // A token that is due by rounding alone is a token: the timer fired for it.
        if self.tokens < 1.0 - 1e-9 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }

    /// How long until the next token, zero when there is one now.
    pub fn wait(&mut self, now: Duration) -> Duration {
        self.refill(now);
        Duration::try_from_secs_f64(((1.0 - self.tokens) / self.limit.0).max(0.0))
            .unwrap_or(Duration::MAX)
    }

    fn refill(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.read_at).as_secs_f64();
        self.tokens = (self.tokens + passed * self.limit.0).min(1.0);
        self.read_at = self.read_at.max(now);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn notation_is_celerys() {
        let rate = |text| RateLimit::parse(text).unwrap().map(|limit| limit.0);
        assert_eq!(rate("10"), Some(10.0));
        assert_eq!(rate("10/s"), Some(10.0));
        assert_eq!(rate("10/"), Some(10.0));
        assert_eq!(rate("0.5/m"), Some(0.5 / 60.0));
        assert_eq!(rate("36/h"), Some(0.01));
        assert_eq!(rate("0"), None);
        assert_eq!(rate("0/m"), None);
        assert_eq!(rate(""), None);
        for bad in ["x", "10/q", "10/m/s", "-1", "nan", "inf", "/m"] {
            assert!(RateLimit::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_first_passes_at_once_and_the_next_waits() {
        let at = Duration::from_secs;
        let mut bucket = TokenBucket::new(RateLimit(0.5), at(100));
        assert!(bucket.try_take(at(100)));
        assert!(!bucket.try_take(at(101)));
        assert_eq!(bucket.wait(at(101)), at(1));
        assert!(bucket.try_take(at(102)));
    }

    #[test]
    fn an_idle_bucket_gives_no_burst() {
        let at = Duration::from_secs;
        let mut bucket = TokenBucket::new(RateLimit(10.0), at(0));
        assert!(bucket.try_take(at(1000)));
        assert!(!bucket.try_take(at(1000)));
    }

    proptest! {
        #[test]
        fn never_more_than_the_rate(rate in 0.01f64..1000.0, steps in prop::collection::vec(0u64..2_000_000, 1..200)) {
            let mut now = Duration::from_secs(5);
            let start = now;
            let mut bucket = TokenBucket::new(RateLimit(rate), now);
            let mut taken = 0u32;
            for step in steps {
                now += Duration::from_micros(step);
                taken += u32::from(bucket.try_take(now));
            }
            let allowed = 1.0 + rate * now.saturating_sub(start).as_secs_f64() + 1e-6;
            prop_assert!(f64::from(taken) <= allowed, "{taken} > {allowed}");
        }

        #[test]
        fn waiting_the_told_time_is_enough(rate in 0.001f64..10_000.0, idle in 0u64..10_000_000) {
            let start = Duration::from_secs(1);
            let mut bucket = TokenBucket::new(RateLimit(rate), start);
            prop_assert!(bucket.try_take(start));
            let now = start + Duration::from_micros(idle);
            let due = now + bucket.wait(now) + Duration::from_nanos(1);
            prop_assert!(bucket.try_take(due));
        }
    }
}
