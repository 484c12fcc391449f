//! What runs in Python for the parent: hooks, signals, and results that no child could store.
//!
//! The worker is given something that can do this; with a Python app it is its main process.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use celeriac_core::pool::Failure;
use celeriac_protocol::Message;
use serde_json::Value;

/// What a hook answers, or the text of what went wrong, for a log line.
pub type Answer = Pin<Box<dyn Future<Output = Result<Value, String>> + Send>>;

/// Runs what belongs to the app.
pub trait Hooks: Send + Sync {
    /// Has it done, after what was asked before. It is asked at once; the future only waits.
    fn call(&self, call: HookCall) -> Answer;

    /// Has it done, after what was asked before.
    fn tell(&self, call: HookCall);
}

/// Which of the two sequences of steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Blueprint {
    /// The worker's.
    Worker,
    /// The consumer's.
    Consumer,
}

/// What is to be done. Each is a method of `celeriac.host.main` or `celeriac.host.requests`.
#[derive(Debug, Clone, PartialEq)]
pub enum HookCall {
    /// Start the app's own steps.
    StartSteps(Blueprint),
    /// A shutdown begins: the loader is told, steps are closed, the consumer's are stopped.
    CloseSteps,
    /// Nothing runs any more, or nothing may: the worker's steps are stopped.
    EndSteps {
        /// At a cold shutdown.
        terminate: bool,
    },
    /// Signal `heartbeat_sent`.
    HeartbeatSent,
    /// Signal `worker_ready`.
    WorkerReady,
    /// Signal `worker_shutting_down`.
    WorkerShuttingDown {
        /// The operating system's signal.
        sig: &'static str,
        /// `Warm` or `Cold`.
        how: &'static str,
        /// What the worker will exit with.
        exitcode: i32,
    },
    /// Signal `worker_shutdown`.
    WorkerShutdown,
    /// A cold shutdown has begun.
    Terminating,
    /// Show what all threads do.
    Cry,
    /// Write the state database.
    SaveState {
        /// Ids of revoked tasks.
        revoked: Vec<String>,
    },
    /// Open the body of a protocol 1 message; answers with its members or null.
    OpenV1(Arc<Message>),
    /// Signal `task_received`.
    TaskReceived(Arc<Message>),
    /// Signal `task_rejected`.
    TaskRejected {
        /// The message.
        message: Arc<Message>,
        /// What is wrong with it; `None` for a message that is no task.
        reason: Option<String>,
    },
    /// Store that the task is unknown; signal `task_unknown`.
    TaskUnknown {
        /// The message.
        message: Arc<Message>,
        /// The task's name.
        task: String,
        /// The task's id.
        id: Option<String>,
    },
    /// Store that the task is revoked; signal `task_revoked`.
    TaskRevoked {
        /// The message.
        message: Arc<Message>,
        /// `revoked`, `expired` or `terminated`.
        reason: &'static str,
        /// Whether its process was sent a signal.
        terminated: bool,
        /// That signal.
        signum: Option<i32>,
        /// Whether it was its time that ran out.
        expired: bool,
    },
    /// Carry out a command that Rust leaves to Python; for the answer see
    /// `celeriac.host.control.Control.command`.
    ControlCommand {
        /// Its name.
        method: String,
        /// Its arguments.
        arguments: serde_json::Map<String, Value>,
        /// The worker's logical clock.
        clock: u64,
    },
    /// Open a command that is not plain JSON; answers with it.
    ControlOpen(Arc<Message>),
    /// Write a reply with the app's serializer.
    EncodeReply(Value),
    /// Write an event, or a list of them, with the app's serializer for events.
    EncodeEvent(Value),
    /// Store that tasks are revoked, unless they have begun elsewhere or have a result.
    MarkRevoked {
        /// Their ids.
        ids: Vec<String>,
        /// Names of those of them that this worker holds, by id.
        names: serde_json::Map<String, Value>,
    },
    /// These are revoked: code in main may ask, and it is kept where that is configured.
    AddRevoked {
        /// Ids of tasks.
        ids: Vec<String>,
        /// Lists of values by the names of stamped headers.
        headers: serde_json::Map<String, Value>,
    },
    /// Answers with what is revoked by a store that all workers share: `ids` and `headers`, or null.
    LoadRevoked,
    /// Keep this in that store.
    KeepRevoked {
        /// Ids of tasks.
        ids: Vec<String>,
        /// Lists of values by the names of stamped headers.
        headers: serde_json::Map<String, Value>,
    },
    /// Make a queue of the arguments of `add_consumer`; answers with its description.
    SelectQueue {
        /// The queue's name.
        queue: String,
        /// Its exchange.
        exchange: Option<String>,
        /// The type of its exchange.
        exchange_type: Option<String>,
        /// The key of its binding.
        routing_key: Option<String>,
        /// Whatever else was given.
        options: serde_json::Map<String, Value>,
    },
    /// A queue is consumed no more.
    DeselectQueue {
        /// Its name.
        queue: String,
    },
    /// From now on events about tasks are sent, or not.
    SetEventGroups {
        /// Whether they are.
        all: bool,
    },
    /// The pool has been given another size.
    SetPoolSize {
        /// The number of processes.
        limit: usize,
    },
    /// Attributes of a task have been changed.
    SetTaskAttributes {
        /// The task's name.
        task: String,
        /// The attributes.
        attributes: serde_json::Map<String, Value>,
    },
    /// Send the task that this worker was elected for.
    CallTask {
        /// Its signature.
        action: Value,
    },
    /// Answers whether the task's success is stored already.
    SuccessWasStored(Arc<Message>),
    /// Send a retry of a lost task; answers whether it was sent.
    RetryLost {
        /// The message.
        message: Arc<Message>,
        /// How its process ended.
        reason: String,
    },
    /// Fail a lost task.
    Lost {
        /// The message.
        message: Arc<Message>,
        /// How its process ended.
        reason: String,
        /// The process.
        pid: u32,
        /// When the task began: seconds since 1970.
        time_start: f64,
        /// What the task raised `SystemExit` with, if that is how it ended.
        status: Option<i32>,
        /// Whether it runs again: then nothing is stored.
        requeues: bool,
    },
    /// Fail a task that is over its hard time limit.
    TimedOut {
        /// The message.
        message: Arc<Message>,
        /// The limit as JSON: Python shows an integer as one.
        limit: Value,
        /// The process.
        pid: u32,
        /// When the task began: seconds since 1970.
        time_start: f64,
    },
    /// Record a task that rejected its message.
    Rejected {
        /// The message.
        message: Arc<Message>,
        /// The exception.
        failure: Failure,
    },
    /// Fail a task whose tracer raised.
    Raised {
        /// The message.
        message: Arc<Message>,
        /// The exception.
        failure: Failure,
    },
    /// Announce that a shutdown stopped a task.
    Cancelled {
        /// The message.
        message: Arc<Message>,
        /// Whether to store that it will be retried.
        emit_retry: bool,
    },
    /// Call a method that the task's own Request class overrides.
    Notify {
        /// The message.
        message: Arc<Message>,
        /// The method.
        method: &'static str,
        /// The process that ran it.
        pid: Option<u32>,
        /// When the task began: seconds since 1970.
        time_start: Option<f64>,
        /// More, by the names of `celeriac.host.requests.Requests.notify`.
        details: serde_json::Map<String, Value>,
        /// The exception, for `on_failure` and `on_retry`.
        failure: Option<Failure>,
    },
}
