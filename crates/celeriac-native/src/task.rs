//! What a task is to the worker that runs it. Celery's counterpart: `celery.app.task.Task`.

use std::time::Duration;

use async_trait::async_trait;
use celeriac_config::TaskOptions;
use serde_json::Value;

use crate::arguments::Arguments;
use crate::context::Context;
use crate::error::Result;
use crate::retry::RetryPolicy;

/// A task that runs in the worker's own process.
#[async_trait]
pub trait Task: Send + Sync {
    /// The name that messages call it by: `proj.add`.
    fn name(&self) -> &str;

    /// How it is dealt with.
    fn options(&self) -> &Options;

    /// Runs it. A panic is a failure with its backtrace.
    ///
    /// The future is dropped when the task is revoked or over a time limit, after the time that
    /// [`Options::cancel_grace`] gives it to end by itself. What has to be undone then belongs into
    /// a guard's `Drop`, or after [`crate::Cancellation::cancelled`]. How it ends in that time counts
    /// at the soft limit; after a revocation, and at the hard limit, it is lost however it ends.
    ///
    /// A future can only be dropped where it awaits. One that computes for long belongs into
    /// [`crate::Blocking`]; one that never yields is concluded 5 s later without it, and its place in
    /// the pool stays taken, as it does for whatever else holds the `context`, such as tasks that
    /// were spawned.
    async fn run(&self, context: Context, arguments: Arguments) -> Result<Value>;
}

/// How a task is dealt with.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// What any task has, by Celery's names.
    pub celery: TaskOptions,
    /// What is retried without the task saying so, when, and how often.
    pub retry: RetryPolicy,
    /// Whether a state STARTED is stored (`track_started`); `None` follows the setting.
    pub track_started: Option<bool>,
    /// How long its results are kept, where the backend lets go of them by itself
    /// (`result_expires`); `None` follows the setting.
    pub result_expires: Option<Duration>,
    /// The queue that calls of it go to, unless the caller names another.
    pub queue: Option<String>,
    /// The priority of calls of it, unless the caller gives another.
    pub priority: Option<u8>,
    /// How long it may take to end once it is cancelled, before its future is dropped. Zero for a
    /// task that does not look at its [`crate::Cancellation`].
    pub cancel_grace: Duration,
}
