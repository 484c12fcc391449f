//! What a worker is given, and what it leaves.

use std::sync::Arc;
use std::time::Duration;

use celeriac_core::clock::Clock;
use celeriac_core::journal::Journal;
use celeriac_core::limit::SharedLimitStore;
use celeriac_core::pool::Pool;
use serde_json::{Map, Value};
use tokio::sync::{Notify, mpsc};

use crate::control::bus;
use crate::core;
use crate::hooks::Hooks;
use crate::receive::consumer;
use crate::shutdown::Signal;
use crate::vitals::Probes;

/// What a worker is made of.
pub struct Parts {
    /// What does not change while it lives.
    pub options: core::Options,
    /// What runs its tasks, in the order of [`core::Options::lanes`].
    pub lanes: Vec<Lane>,
    /// What remote control and events go over.
    pub bus: bus::Options,
    /// What keeps limits for all workers, if there are any.
    pub limit_store: Option<SharedLimitStore>,
    /// What runs the app's hooks.
    pub hooks: Arc<dyn Hooks>,
    /// What the app asks of the worker: commands of the remote control and their arguments.
    pub asked: mpsc::Receiver<(String, Map<String, Value>)>,
    /// The process that runs the app's hooks has died. Hooks go to its successor from now on, those
    /// that it has not answered among them.
    pub main_died: Arc<Notify>,
    /// Writes down what happens.
    pub journal: Arc<dyn Journal>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// What the operator wants.
    pub orders: mpsc::Receiver<OperatorSignal>,
    /// Who asks how the worker is.
    pub probes: Probes,
    /// Shows something to the operator.
    pub console: Box<dyn Fn(&str) + Send>,
    /// Ids of revoked tasks, from the state database.
    pub revoked: Vec<String>,
    /// Whether revoked ids are to be kept.
    pub keeps_state: bool,
    /// How often monitors are told that the worker lives; `None` for never.
    pub heartbeat: Option<Duration>,
    /// Whether `heartbeat_sent` has receivers.
    pub signals_heartbeat: bool,
    /// What the worker uses of the machine.
    pub meter: Box<dyn Meter>,
    /// Whether the app has worker steps of its own.
    pub has_worker_steps: bool,
    /// Whether the app has consumer steps of its own.
    pub has_consumer_steps: bool,
}

/// A pool, and what it is given.
pub struct Lane {
    /// What it consumes from.
    pub consumer: consumer::Options,
    /// What runs the tasks.
    pub pool: Box<dyn Pool>,
}

/// Tells what is used of the machine.
pub trait Meter: Send {
    /// The load averages of the last 1, 5 and 15 minutes.
    fn loadavg(&self) -> [f64; 3];

    /// What this process has used, by the names of Python's `resource.getrusage`.
    fn rusage(&self) -> Map<String, Value>;
}

/// What an operator sends to a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperatorSignal {
    /// End, in one way or another.
    End(Signal),
    /// SIGUSR1: show what all threads do.
    Cry,
}

/// How a worker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// What to exit with.
    pub status: i32,
    /// Whether it is to begin anew.
    pub restarts: bool,
    /// Whether to leave everything as it is.
    pub at_once: bool,
}
