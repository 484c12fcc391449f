//! Trying again what a lost connection has cut short.
//!
//! Celery's counterparts: `Backend.retry_policy`, and `result_backend_always_retry` with what belongs
//! to it.

use std::time::Duration;

use celeriac_core::backend::{Error, Settings};
use celeriac_core::backoff::{Doubling, Linear};
use tokio::time::sleep;

use crate::options;

/// Celery's defaults.
const MAX_RETRIES: u32 = 20;
const WAITS: Linear = Linear {
    start: Duration::ZERO,
    step: Duration::from_secs(1),
    max: Duration::from_secs(1),
};

/// How often to try again, and after which waits.
#[derive(Debug, Clone)]
pub(crate) struct Retry {
    /// The option `retry_policy`: `None` is for ever.
    max_retries: Option<u32>,
    waits: Linear,
    /// What follows with `result_backend_always_retry`.
    always: Always,
    /// The ceilings of their waits, which are random.
    always_waits: Doubling,
}

/// What follows when the policy's retries are used up.
#[derive(Debug, Clone, Copy)]
enum Always {
    /// Nothing.
    No,
    /// So many more retries.
    Times(u32),
    /// Retries without end.
    Endless,
}

impl Retry {
    pub(crate) fn new(settings: &Settings) -> Self {
        let policy = options::object(settings, "retry_policy");
        let number = |name: &str| {
            policy
                .and_then(|policy| policy.get(name))
                .and_then(options::as_number)
        };
        let span = |name: &str, default: Duration| {
            number(name)
                .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
                .unwrap_or(default)
        };
        let is_endless = policy
            .and_then(|policy| policy.get("max_retries"))
            .is_some_and(serde_json::Value::is_null);
        let millis = |name: &str, default: u64| {
            let given = options::number(settings, name).map(|millis| millis as u64);
            Duration::from_millis(given.unwrap_or(default))
        };
        Self {
            max_retries: (!is_endless)
                .then(|| number("max_retries").map_or(MAX_RETRIES, |number| number as u32)),
            waits: Linear {
                start: span("interval_start", WAITS.start),
                step: span("interval_step", WAITS.step),
                max: span("interval_max", WAITS.max),
            },
            always: if options::flag(settings, "result_backend_always_retry") {
                options::number(settings, "result_backend_max_retries")
                    .filter(|number| number.is_finite())
                    .map_or(Always::Endless, |number| Always::Times(number as u32))
            } else {
                Always::No
            },
            always_waits: Doubling {
                start: millis("result_backend_base_sleep_between_retries_ms", 10),
                max: millis("result_backend_max_sleep_between_retries_ms", 10_000),
            },
        }
    }

    /// How long to wait after failure number `failure`, counted from zero; `None` to give up.
    fn wait(&self, failure: u32) -> Option<Duration> {
        let Some(max) = self.max_retries else {
            return Some(self.waits.wait(failure));
        };
        if failure < max {
            return Some(self.waits.wait(failure));
        }
        let further = failure - max;
        match self.always {
            Always::No => return None,
            Always::Times(max) if further >= max => return None,
            Always::Times(_) | Always::Endless => {}
        }
        Some(self.always_waits.wait(further).mul_f64(fraction()))
    }

    /// Does something until it succeeds, fails for another reason than the connection, or has been
    /// tried often enough.
    pub(crate) async fn run<T, F: Future<Output = Result<T, Error>>>(
        &self,
        server: &str,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, Error> {
        let mut failures = 0;
        loop {
            let error = match attempt().await {
                Err(error) if error.is_transient() => error,
                other => return other,
            };
            let Some(wait) = self.wait(failures) else {
                return Err(error);
            };
            failures += 1;
            let of = self
                .max_retries
                .map_or("Inf".to_owned(), |max| max.to_string());
            tracing::error!(
                target: "celeriac.backend",
                "Connection to {server} lost: Retry ({failures}/{of}) in {:.2} s: {error}",
                wait.as_secs_f64()
            );
            sleep(wait).await;
        }
    }
}

/// A random number from 0 to 1: many workers are not to come back at once.
fn fraction() -> f64 {
    let random = uuid::Uuid::new_v4().as_u64_pair().0;
    random as f64 / u64::MAX as f64
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use celeriac_core::backend::ErrorKind;
    use serde_json::{Value, json};

    use super::*;

    fn retry(options: Value) -> Retry {
        let Value::Object(options) = options else {
            unreachable!()
        };
        Retry::new(&Settings {
            options,
            ..Settings::default()
        })
    }

    #[test]
    fn waits_are_celerys() {
        let by_default = retry(json!({}));
        let waits: Vec<_> = (0..22).map(|failure| by_default.wait(failure)).collect();
        assert_eq!(waits[0], Some(Duration::ZERO));
        assert!(
            waits[1..20]
                .iter()
                .all(|wait| *wait == Some(Duration::from_secs(1)))
        );
        assert_eq!(waits[20..], [None, None]);

        let policy = retry(json!({"retry_policy": {"max_retries": 2, "interval_start": 0.5}}));
        assert_eq!(policy.wait(0), Some(Duration::from_millis(500)));
        assert_eq!(policy.wait(2), None);

        let endless = retry(json!({"retry_policy": {"max_retries": null}}));
        assert!(endless.wait(u32::MAX).is_some());

        let always = retry(json!({"result_backend_always_retry": true}));
        assert!(always.wait(1_000_000).unwrap() <= Duration::from_secs(10));
        let counted = retry(json!({
            "result_backend_always_retry": true,
            "result_backend_max_retries": 3,
        }));
        assert!(counted.wait(22).is_some());
        assert_eq!(counted.wait(23), None);
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_lost_connection_is_tried_again() {
        for (kind, tried) in [(ErrorKind::Connection, 21), (ErrorKind::Refused, 1)] {
            let times = Cell::new(0);
            let result: Result<(), Error> = retry(json!({}))
                .run("x", async || {
                    times.set(times.get() + 1);
                    Err(Error::new(kind, "trouble"))
                })
                .await;
            assert_eq!(result.unwrap_err().kind, kind);
            assert_eq!(times.get(), tried);
        }
    }
}
