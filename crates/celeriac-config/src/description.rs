//! What the Python host tells of the app: `celeriac.host.description`.

use std::collections::HashMap;
use std::time::Duration;

use celeriac_core::bus::BusSettings;
use celeriac_core::queue::Queue;
use celeriac_core::revokes::RevokeStore;
use celeriac_protocol::TimeLimits;
use serde::Deserialize;
use serde_json::{Map, Number, Value};

use crate::slips::OwnSettings;
use crate::task::{TaskOptions, time_limits};

/// An app, as it is after `celeryd_after_setup`.
#[derive(Debug, Clone, Deserialize)]
pub struct Description {
    /// What runs there.
    pub versions: Versions,
    /// The operating system, in Python's words.
    pub platform: String,
    /// The app itself.
    pub app: App,
    /// The worker's options, from the command line and the configuration.
    pub worker: WorkerOptions,
    /// What makes a daemon of it.
    pub daemon: DaemonSettings,
    /// Where its messages are.
    pub broker: BrokerSettings,
    /// Where its results go, without a password.
    pub result_backend: String,
    /// The same with its password.
    #[serde(default)]
    pub result_backend_url: Secret,
    /// MIME types that may be opened.
    pub accept_content: Vec<String>,
    /// The queues to consume from.
    pub queues: Vec<DescribedQueue>,
    /// Names and limits of what commands and events go through.
    pub bus: BusSettings,
    /// What the worker answers of itself, and what it takes part in.
    pub remote: Remote,
    /// All registered tasks.
    pub tasks: HashMap<String, TaskOptions>,
    /// Signals that have receivers.
    pub signals: Vec<String>,
    /// Settings under their own names.
    pub settings: Settings,
    /// What the app's own configuration has that is no setting.
    #[serde(default)]
    pub own_settings: OwnSettings,
    /// Settings of those who send tasks and read results, under their own names.
    #[serde(default)]
    pub client: Map<String, Value>,
    /// How to write log lines.
    pub logging: LogSettings,
    /// Ids of revoked tasks from the state database.
    pub revoked: Vec<String>,
    /// Names of threads that the app started while it was loaded.
    pub threads: Vec<String>,
    /// Whether the app has worker bootsteps of its own.
    pub has_worker_steps: bool,
    /// Whether the app has consumer bootsteps of its own.
    pub has_consumer_steps: bool,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

/// A URL that may hold a password: it is not shown.
#[derive(Clone, Default, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

impl Description {
    /// Whether a signal has receivers.
    pub fn has_receivers(&self, signal: &str) -> bool {
        self.signals.iter().any(|name| name == signal)
    }
}

/// A queue, and what an operator is shown of it.
#[derive(Debug, Clone, Deserialize)]
pub struct DescribedQueue {
    /// The queue.
    #[serde(flatten)]
    pub queue: Queue,
    /// What `inspect active_queues` shows: `kombu.Queue.as_dict`.
    #[serde(default)]
    pub info: Value,
}

/// What the worker needs for remote control and events: `celeriac.host.remote`.
#[derive(Debug, Clone, Deserialize)]
pub struct Remote {
    /// Whether commands are heard (`worker_enable_remote_control`).
    pub control: bool,
    /// Whether the events of other workers are heard.
    pub gossip: bool,
    /// Whether other workers are greeted at the start.
    pub mingle: bool,
    /// Whether monitors are told that the worker lives.
    pub heartbeat: bool,
    /// Seconds between two heartbeats, if they are set.
    pub heartbeat_interval: Option<f64>,
    /// The serializer of replies.
    pub control_serializer: String,
    /// The serializer of events.
    pub event_serializer: String,
    /// All commands that the app knows, by their names.
    pub commands: HashMap<String, RemoteCommand>,
    /// Those that the app has registered itself.
    pub users: Vec<String>,
    /// The store that all workers share in which revoked ids are kept; `None` for nowhere.
    #[serde(default)]
    pub revoke_store: Option<RevokeStore>,
    /// Whether revoked stamps are kept there as well.
    #[serde(default)]
    pub keeps_stamps: bool,
    /// How many revoked ids are known at most (`CELERY_WORKER_REVOKES_MAX`); 0 for any number.
    pub revokes_max: usize,
    /// Seconds after which one is forgotten when there are so many
    /// (`CELERY_WORKER_REVOKE_EXPIRES`); 0 for never.
    pub revoke_expires: f64,
    /// What `inspect stats` shows of the broker.
    pub broker_info: Value,
    /// The version that events tell.
    pub sw_ver: String,
    /// The operating system that events tell.
    pub sw_sys: String,
}

/// A command of the remote control.
#[derive(Debug, Clone, Deserialize)]
pub struct RemoteCommand {
    /// Its other name.
    #[serde(default)]
    pub alias: Option<String>,
}

/// Versions of what runs in the interpreter.
#[derive(Debug, Clone, Deserialize)]
pub struct Versions {
    /// Python.
    pub python: String,
    /// Celery.
    pub celery: String,
    /// Celery's code name.
    pub celery_series: String,
    /// kombu.
    pub kombu: String,
    /// billiard.
    pub billiard: String,
}

/// The app object.
#[derive(Debug, Clone, Deserialize)]
pub struct App {
    /// Its name.
    pub main: String,
    /// Its identity, as the banner shows it.
    pub id: String,
    /// Its loader, unless it is the usual one.
    pub loader: Option<String>,
    /// All tasks, sorted.
    pub task_names: Vec<String>,
}

/// `celery.worker.WorkController`'s attributes.
#[derive(Debug, Clone, Deserialize)]
pub struct WorkerOptions {
    /// The node's name.
    pub hostname: String,
    /// The pool's name, `prefork` for `processes`.
    #[serde(default = "prefork")]
    pub pool: String,
    /// Number of tasks at once: of processes in a prefork pool.
    pub concurrency: usize,
    /// Most and fewest pool processes, when they are scaled.
    pub autoscale: Option<(usize, usize)>,
    /// Tasks after which a child is replaced.
    pub max_tasks_per_child: Option<u64>,
    /// KiB of memory after which a child is replaced.
    pub max_memory_per_child: Option<u64>,
    /// Hard limit for tasks without one, in seconds.
    pub time_limit: Option<Number>,
    /// Soft limit for tasks without one, in seconds.
    pub soft_time_limit: Option<Number>,
    /// Messages fetched for each process; here a bound on what may wait for a rate limit.
    pub prefetch_multiplier: i64,
    /// Rate limits are off.
    pub disable_rate_limits: bool,
    /// Task events are on.
    pub task_events: bool,
    /// The state database.
    pub statedb: Option<String>,
    /// The level on the command line, as Python's number.
    pub loglevel: u32,
}

fn prefork() -> String {
    "prefork".to_owned()
}

impl WorkerOptions {
    /// The limits for tasks without their own.
    pub fn time_limits(&self) -> TimeLimits {
        time_limits(self.time_limit.as_ref(), self.soft_time_limit.as_ref())
    }

    /// The fewest and the most processes.
    pub fn pool_size(&self) -> (usize, usize) {
        match self.autoscale {
            Some((max, min)) => (min, max.max(1)),
            None => (self.concurrency, self.concurrency),
        }
    }
}

/// What a worker in the background needs, from the command line or the settings.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct DaemonSettings {
    /// The file for its process id.
    pub pidfile: Option<String>,
    /// The user that the host became.
    pub uid: Option<u32>,
    /// The group that the host became.
    pub gid: Option<u32>,
    /// Mask for the permissions of new files.
    pub umask: Option<u32>,
}

/// How to reach the broker.
#[derive(Clone, Deserialize)]
pub struct BrokerSettings {
    /// URLs with their passwords, in the order in which they are tried.
    pub urls: Vec<String>,
    /// The first without its password.
    pub display: String,
    /// Whether any of the app's queues is a quorum queue, and that is looked for.
    #[serde(default)]
    pub has_quorum_queues: bool,
    /// `round-robin` or `shuffle`.
    pub failover_strategy: String,
    /// The setting `broker_transport_options`.
    pub transport_options: Map<String, Value>,
    /// The setting `broker_use_ssl`, if it is on.
    pub ssl: Option<Value>,
    /// The setting `broker_login_method`, where there is one.
    #[serde(default)]
    pub login_method: Option<String>,
}

impl std::fmt::Debug for BrokerSettings {
    /// Without the URLs, which hold passwords.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BrokerSettings")
            .field("display", &self.display)
            .finish_non_exhaustive()
    }
}

/// Celery settings that the worker reads itself.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// Attempts before the worker gives up; `None` never.
    pub broker_connection_max_retries: Option<u32>,
    /// Connect again when the connection is lost.
    pub broker_connection_retry: bool,
    /// Try again when the first connection fails; `None` follows the setting above.
    pub broker_connection_retry_on_startup: Option<bool>,
    /// Seconds that connecting may take.
    pub broker_connection_timeout: Option<f64>,
    /// Seconds between two heartbeats, zero for none.
    pub broker_heartbeat: Option<f64>,
    /// Where HTTP probes are answered: `HOST:PORT`. celeriac's own setting.
    pub celeriac_health_address: Option<String>,
    /// Seconds that a warm shutdown waits for running tasks, as the app wrote them. celeriac's own
    /// setting.
    pub celeriac_shutdown_deadline: Option<Value>,
    /// The type of the queues in which RabbitMQ holds tasks with an ETA.
    pub broker_native_delayed_delivery_queue_type: Option<String>,
    /// KiB at which a child is ended with its process group.
    pub celeriac_hard_memory_per_child: Option<u64>,
    /// KiB that the worker with all its processes may hold.
    pub celeriac_max_memory: Option<u64>,
    /// Heed how much memory the machine and the cgroup have left; `None` is yes.
    pub celeriac_memory_pressure: Option<bool>,
    /// KiB at which an exception is raised in a task.
    pub celeriac_soft_memory_per_child: Option<u64>,
    /// Kill late-acknowledged tasks when the connection is lost.
    pub worker_cancel_long_running_tasks_on_connection_loss: bool,
    /// Keep messages that are to come later in the broker, and dead letters; `None` for yes.
    pub celeriac_delay_store: Option<bool>,
    /// Seconds that a dead letter is kept.
    pub celeriac_dead_letter_expires: Option<f64>,
    /// How many dead letters are kept.
    pub celeriac_dead_letter_limit: Option<f64>,
    /// Where limits are kept; `None` for the broker or the result backend.
    pub celeriac_limit_store: Option<Secret>,
    /// Limits of tasks and queues.
    pub celeriac_limits: Value,
    /// Tasks that are unique.
    pub celeriac_unique: Value,
    /// How many processes or workers a task may kill before it is a dead letter; 0 for any number.
    pub celeriac_max_deaths: Option<f64>,
    /// Seconds that a task is kept which no worker knows.
    pub celeriac_unknown_task_grace: Option<f64>,
    /// Look for quorum queues, which need native delayed delivery.
    pub worker_detect_quorum_queues: bool,
    /// Wait at a cold shutdown although nothing runs.
    pub worker_enable_soft_shutdown_on_idle: bool,
    /// How many tasks with an ETA may be held.
    pub worker_eta_task_limit: Option<usize>,
    /// Seconds in which a child must be up.
    pub worker_proc_alive_timeout: Option<f64>,
    /// Seconds that a cold shutdown lets tasks finish.
    pub worker_soft_shutdown_timeout: Option<f64>,
}

impl Settings {
    /// Whether to try again when the first connection fails.
    pub fn retries_on_startup(&self) -> bool {
        self.broker_connection_retry_on_startup
            .unwrap_or(self.broker_connection_retry)
    }

    /// How long connecting may take.
    pub fn connection_timeout(&self) -> Option<Duration> {
        seconds(self.broker_connection_timeout)
    }

    /// Between two heartbeats; zero for none.
    pub fn heartbeat(&self) -> Option<Duration> {
        seconds(self.broker_heartbeat)
    }

    /// How long a cold shutdown lets tasks finish.
    pub fn soft_shutdown_timeout(&self) -> Duration {
        seconds(self.worker_soft_shutdown_timeout).unwrap_or_default()
    }
}

fn seconds(number: Option<f64>) -> Option<Duration> {
    number.and_then(|number| Duration::try_from_secs_f64(number).ok())
}

/// How Celery's logging was set up.
#[derive(Debug, Clone, Deserialize)]
pub struct LogSettings {
    /// Python's number of the lowest level that is written.
    pub level: u32,
    /// `worker_log_format`.
    pub format: String,
    /// `worker_log_datefmt`.
    pub datefmt: Option<String>,
    /// The file that the main process writes to, or standard error.
    pub file: Option<String>,
    /// Whether lines are coloured.
    pub color: bool,
    /// Whether the app changed logging, so that only Python can write records.
    pub forward: bool,
    /// `celery.app.trace.LOG_RECEIVED`.
    pub received_format: String,
}
