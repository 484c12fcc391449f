//! The options of one task, as its class and the app's settings give them.

use celeriac_protocol::rate::InvalidRateLimit;
use celeriac_protocol::{RateLimit, TimeLimit, TimeLimits};
use serde::Deserialize;
use serde_json::Number;

/// What a worker must know of a task. Celery's counterpart: the attributes of
/// `celery.app.task.Task`, whose names these are.
#[derive(Debug, Clone, Deserialize)]
pub struct TaskOptions {
    /// Acknowledge after the task, not before it.
    pub acks_late: bool,
    /// With `acks_late`: acknowledge when the task fails, or reject.
    pub acks_on_failure: bool,
    /// With `acks_late`: acknowledge when the hard time limit passes, or run again.
    pub acks_on_timeout: bool,
    /// With `acks_late`: run again when the process is lost.
    pub reject_on_worker_lost: bool,
    /// Send a retry when the process is lost.
    #[serde(default)]
    pub retry_on_worker_lost: bool,
    /// How often the task may be retried; `None` without end.
    #[serde(default)]
    pub max_retries: Option<i64>,
    /// Celery's notation: `10/m`.
    #[serde(default)]
    pub rate_limit: Option<String>,
    /// Hard limit on the run time, in seconds.
    #[serde(default)]
    pub time_limit: Option<Number>,
    /// Soft limit on the run time, in seconds.
    #[serde(default)]
    pub soft_time_limit: Option<Number>,
    /// Store no result.
    pub ignore_result: bool,
    /// Store failures all the same.
    #[serde(default)]
    pub store_errors_even_if_ignored: bool,
    /// The exchange that calls of this task go to, as `inspect registered` shows it.
    #[serde(default)]
    pub exchange: Option<String>,
    /// The routing key of calls of this task, as `inspect registered` shows it.
    #[serde(default)]
    pub routing_key: Option<String>,
    /// Send events about this task.
    #[serde(default)]
    pub send_events: bool,
    /// Methods that the task's own Request class overrides.
    #[serde(default)]
    pub request_methods: Vec<String>,
}

impl Default for TaskOptions {
    /// Celery's defaults.
    fn default() -> Self {
        Self {
            acks_late: false,
            acks_on_failure: true,
            acks_on_timeout: true,
            reject_on_worker_lost: false,
            retry_on_worker_lost: false,
            max_retries: Some(3),
            rate_limit: None,
            time_limit: None,
            soft_time_limit: None,
            ignore_result: false,
            store_errors_even_if_ignored: false,
            exchange: None,
            routing_key: None,
            send_events: true,
            request_methods: Vec::new(),
        }
    }
}

impl TaskOptions {
    /// The time limits; what is no number of seconds limits nothing.
    pub fn time_limits(&self) -> TimeLimits {
        time_limits(self.time_limit.as_ref(), self.soft_time_limit.as_ref())
    }

    /// The rate limit.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn rate_limit(&self) -> Result<Option<RateLimit>, InvalidRateLimit> {
        self.rate_limit
            .as_deref()
            .map_or(Ok(None), RateLimit::parse)
    }

    /// Whether the task's own Request class has this method.
    pub fn overrides(&self, method: &str) -> bool {
        self.request_methods.iter().any(|name| name == method)
    }
}

/// Limits from two numbers of seconds.
pub fn time_limits(hard: Option<&Number>, soft: Option<&Number>) -> TimeLimits {
    let limit = |number: Option<&Number>| TimeLimit::new(number?).flatten();
    TimeLimits {
        hard: limit(hard),
        soft: limit(soft),
    }
}
