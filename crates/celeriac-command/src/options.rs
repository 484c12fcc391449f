//! What the table `[commands.<name>]` of `celeriac.toml` says of a command.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use celeriac_config::TaskOptions;
use celeriac_native::{Options, RetryPolicy};
use serde::Deserialize;
use serde_json::{Map, Number, Value};

/// A task that runs a command.
///
/// Either [`Self::argv`] declares the command, or [`Self::programs`] lists what callers may run by
/// arguments of their own.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CommandOptions {
    /// The task's name, in place of the table's.
    pub name: String,
    /// The program and its arguments, with placeholders for the call's arguments: `{width}`, or
    /// `{files...}` for the items of a list. The arguments by position are those of the
    /// placeholders in order of their first appearance.
    pub argv: Vec<String>,
    /// What holds for arguments that a call leaves out.
    pub defaults: Map<String, Value>,
    /// Have `/bin/sh` run the first word of `argv` as a script, whose `$1`, `$2`, … are the others.
    pub shell: bool,
    /// The programs that a call may name by `argv`, in place of a declared command: absolute paths.
    /// A call names one by its path, or by its file name alone.
    pub programs: Vec<PathBuf>,
    /// The variables that such a call may set.
    pub caller_env: Vec<String>,
    /// The folders in which, or below which, such a call may have its command run.
    pub caller_cwd: Vec<PathBuf>,
    /// Variables of the command's environment, with placeholders.
    pub env: BTreeMap<String, String>,
    /// Which of the worker's variables the command has: `true` for all, `false` for none, or names.
    pub inherit_env: Inherit,
    /// The working directory, with placeholders; the worker's own if there is none.
    pub cwd: Option<String>,
    /// What the command reads, with placeholders; nothing if there is none.
    pub stdin: Option<String>,
    /// As whom it runs: a name or a number. Only a worker that runs as root may say so.
    pub user: Option<String>,
    /// With which group: a name or a number; the user's own if there is none.
    pub group: Option<String>,
    /// How much memory each process of the command may have for itself: bytes, or a number with `K`,
    /// `M`, `G` (powers of 1024).
    pub memory: Option<Size>,
    /// At which level lines of the output are logged.
    pub log: LogLevel,
    /// A file that standard output is appended to. `{task_id}`, `{task}` and `{retries}` are
    /// placeholders.
    pub stdout_file: Option<String>,
    /// A file that standard error is appended to, with the same placeholders.
    pub stderr_file: Option<String>,
    /// How much of the beginning of each output is in the result.
    pub output_head: Kept,
    /// How much of the end of each output is in the result.
    pub output_tail: Kept,
    /// The exit codes of success.
    pub success_codes: Success,
    /// The exit codes that have the task tried again.
    pub retry_codes: Vec<i32>,
    /// How often at most (`max_retries`).
    pub max_retries: Option<u32>,
    /// Seconds until the next attempt (`default_retry_delay`).
    pub retry_delay: Option<f64>,
    /// Seconds of the first of waits that double (`retry_backoff`), in place of `retry_delay`.
    pub retry_backoff: Option<f64>,
    /// Seconds of the longest of them (`retry_backoff_max`).
    pub retry_backoff_max: Option<f64>,
    /// Whether each of them is drawn between zero and what it would be (`retry_jitter`).
    pub retry_jitter: Option<bool>,
    /// Seconds between SIGTERM and SIGKILL when the task is to end.
    pub grace: Grace,
    /// Hard limit on the run time, in seconds.
    pub time_limit: Option<Number>,
    /// Soft limit on the run time, in seconds: SIGTERM is sent then.
    pub soft_time_limit: Option<Number>,
    /// Acknowledge after the task, not before it.
    pub acks_late: bool,
    /// With `acks_late`: run again when the worker is lost.
    pub reject_on_worker_lost: bool,
    /// Store no result.
    pub ignore_result: bool,
    /// Celery's notation: `10/m`.
    pub rate_limit: Option<String>,
    /// The queue that calls go to, unless the caller names another.
    pub queue: Option<String>,
    /// The priority of calls, unless the caller gives another.
    pub priority: Option<u8>,
    /// Whether a state STARTED is stored; the setting's value if it is not said.
    pub track_started: Option<bool>,
}

/// Which variables are inherited.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "true, false, or a list of names")]
pub enum Inherit {
    /// All or none.
    All(bool),
    /// Those with these names.
    Names(Vec<String>),
}

impl Default for Inherit {
    fn default() -> Self {
        Self::All(true)
    }
}

/// The exit codes of success.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Success(pub Vec<i32>);

impl Default for Success {
    fn default() -> Self {
        Self(vec![0])
    }
}

/// How many bytes of an output are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Kept(pub Size);

impl Default for Kept {
    fn default() -> Self {
        Self(Size(16 << 10))
    }
}

/// A time to end, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(transparent)]
pub struct Grace(pub f64);

impl Default for Grace {
    fn default() -> Self {
        Self(10.0)
    }
}

/// At which level lines are logged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Not at all.
    Off,
    /// DEBUG.
    Debug,
    /// INFO.
    #[default]
    Info,
    /// WARNING.
    Warning,
}

/// A number of bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Written")]
pub struct Size(pub u64);

/// A number of bytes as it may be written.
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "a number of bytes, such as 65536, \"64K\", \"512M\", or \"2G\""
)]
enum Written {
    Number(u64),
    Text(String),
}

impl TryFrom<Written> for Size {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let text = match written {
            Written::Number(number) => return Ok(Self(number)),
            Written::Text(text) => text,
        };
        let (digits, shift) = match text.trim().to_ascii_uppercase().trim_end_matches('B') {
            it if it.ends_with('K') => (it.trim_end_matches('K').to_owned(), 10),
            it if it.ends_with('M') => (it.trim_end_matches('M').to_owned(), 20),
            it if it.ends_with('G') => (it.trim_end_matches('G').to_owned(), 30),
            it => (it.to_owned(), 0),
        };
        digits
            .trim()
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(1 << shift))
            .map(Self)
            .ok_or_else(|| format!("`{text}` is no size: such as 65536, 64K, 512M, or 2G"))
    }
}

impl CommandOptions {
    /// How the task is dealt with.
    pub fn task_options(&self) -> Options {
        let defaults = RetryPolicy::default();
        let seconds = |given: Option<f64>, default: Duration| {
            given.map_or(default, |given| {
                Duration::try_from_secs_f64(given).unwrap_or(default)
            })
        };
        let max_retries = self.max_retries.or(defaults.max_retries);
        Options {
            celery: TaskOptions {
                acks_late: self.acks_late,
                reject_on_worker_lost: self.reject_on_worker_lost,
                max_retries: max_retries.map(i64::from),
                rate_limit: self.rate_limit.clone(),
                time_limit: self.time_limit.clone(),
                soft_time_limit: self.soft_time_limit.clone(),
                ignore_result: self.ignore_result,
                ..TaskOptions::default()
            },
            retry: RetryPolicy {
                max_retries,
                delay: seconds(self.retry_delay, defaults.delay),
                backoff: self
                    .retry_backoff
                    .map(|first| seconds(Some(first), defaults.delay)),
                max: seconds(self.retry_backoff_max, defaults.max),
                jitter: self.retry_jitter.unwrap_or(defaults.jitter),
                ..defaults
            },
            track_started: self.track_started,
            result_expires: None,
            queue: self.queue.clone(),
            priority: self.priority,
            cancel_grace: self.grace() + crate::task::END,
        }
    }

    /// The time between SIGTERM and SIGKILL.
    pub fn grace(&self) -> Duration {
        Duration::try_from_secs_f64(self.grace.0).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(options: Value) -> Result<CommandOptions, String> {
        serde_json::from_value(options).map_err(|error| error.to_string())
    }

    #[test]
    fn sizes_are_read() {
        for (written, bytes) in [
            (json!(5), 5),
            (json!("5"), 5),
            (json!("64K"), 64 << 10),
            (json!("512 MB"), 512 << 20),
            (json!("2g"), 2 << 30),
        ] {
            let options = read(json!({"memory": written})).unwrap();
            assert_eq!(options.memory, Some(Size(bytes)));
        }
        assert!(
            read(json!({"memory": "much"}))
                .unwrap_err()
                .contains("`much` is no size")
        );
    }

    #[test]
    fn what_is_unknown_is_refused() {
        assert!(
            read(json!({"arv": []}))
                .unwrap_err()
                .contains("unknown field `arv`")
        );
        assert!(read(json!({"log": "loud"})).is_err());
    }

    #[test]
    fn retries_are_celery_s_unless_said_otherwise() {
        let options = read(json!({})).unwrap().task_options();
        assert_eq!(options.retry, RetryPolicy::default());
        let options = read(json!({"max_retries": 5, "retry_delay": 1.5}))
            .unwrap()
            .task_options();
        assert_eq!(options.retry.max_retries, Some(5));
        assert_eq!(options.celery.max_retries, Some(5));
        assert_eq!(options.retry.delay, Duration::from_millis(1500));
    }
}
