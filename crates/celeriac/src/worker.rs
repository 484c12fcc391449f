//! A worker within the program. Celery's counterpart: `app.Worker`.

use std::sync::Arc;
use std::time::Duration;

use celeriac_cli::embed::{self, EmbedOptions, Running, StartError, Stop};
use celeriac_cli::native::NativeApp;
use celeriac_core::journal::{Journal, Level};
use serde_json::Value;

/// A worker to be run within the program, made by [`crate::App::worker`].
///
/// It installs no signal handlers, prints nothing, and writes no files of its own. What it leaves in
/// the process are rustls's cryptography, unless the program has chosen one, and a panic hook that
/// keeps the backtraces of tasks and hands all other panics on to the hook before it. Log records are
/// events of the crate `tracing` with the target `celeriac`, unless [`Worker::journal`] takes them.
///
/// What is not said here is as the app's settings say, and otherwise Celery's default.
#[derive(Debug, Clone)]
#[must_use = "a worker does nothing unless it is started"]
pub struct Worker {
    app: NativeApp,
    options: EmbedOptions,
}

impl Worker {
    pub(crate) fn new(app: NativeApp) -> Self {
        Self {
            app,
            options: EmbedOptions::default(),
        }
    }

    /// How many tasks run at once; the number of processors unless said.
    pub fn concurrency(mut self, tasks: usize) -> Self {
        self.options.concurrency = Some(tasks);
        self
    }

    /// The queues to consume from; the app's default one and those of its tasks unless said.
    pub fn queues<Q: Into<String>>(mut self, names: impl IntoIterator<Item = Q>) -> Self {
        self.options.queues = Some(names.into_iter().map(Into::into).collect());
        self
    }

    /// The node's name, such as `w1@%h`; `celery@<host>` unless said. Each worker of a host needs its
    /// own, within one program too.
    pub fn hostname(mut self, name: impl Into<String>) -> Self {
        self.options.hostname = Some(name.into());
        self
    }

    /// The least important records that are written; [`Level::Info`] unless said.
    pub fn loglevel(mut self, level: Level) -> Self {
        self.options.loglevel = Some(level);
        self
    }

    /// When a task is ended, unless it has a limit of its own.
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.options.time_limit = Some(limit);
        self
    }

    /// When a task is cancelled, unless it has a limit of its own.
    pub fn soft_time_limit(mut self, limit: Duration) -> Self {
        self.options.soft_time_limit = Some(limit);
        self
    }

    /// How long a warm shutdown waits for running tasks; without end unless said.
    pub fn shutdown_deadline(mut self, wait: Duration) -> Self {
        self.options.shutdown_deadline = Some(wait);
        self
    }

    /// A setting by Celery's name, over those of the app and of its configuration.
    pub fn set(mut self, setting: impl Into<String>, value: impl Into<Value>) -> Self {
        self.options.settings.insert(setting.into(), value.into());
        self
    }

    /// What the worker's records are given to, in place of `tracing`.
    pub fn journal(mut self, journal: Arc<dyn Journal>) -> Self {
        self.options.journal = Some(journal);
        self
    }

    /// The worker as a future, to be awaited or spawned, and what ends it.
    ///
    /// To be called within a tokio runtime that has timers and I/O, on one thread or on many, where the
    /// future is run too. Tasks run on threads of the worker's own.
    ///
    /// # Errors
    /// When the app has no tasks, a setting or an option makes no sense, or there is no runtime. A
    /// broker that can't be reached is none: the worker tries again, as its settings say.
    pub fn start(self) -> Result<(Running, Stop), StartError> {
        embed::start(&self.app, self.options)
    }
}
