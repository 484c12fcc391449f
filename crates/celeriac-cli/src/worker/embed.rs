//! A worker within another program, for an app whose tasks are in Rust.
//!
//! It does nothing that belongs to the program: no signal handlers, no output, no log files, no
//! pidfile, no change of folder or user, no process of its own, no answers to probes. What it leaves
//! in the process for good are two things, each set once: rustls's cryptography, unless the program
//! has chosen one, and a panic hook that keeps the backtraces of tasks and hands all other panics on
//! to the hook before it.
//!
//! Celery's counterpart: `app.Worker(…).start()`.

mod tracing_journal;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{self, Poll};
use std::time::Duration;

use celeriac_config::pools::{ONLY, PoolKind, PoolSpec};
use celeriac_core::clock::{Clock, SystemClock};
use celeriac_core::journal::{Journal, Level, Record};
use celeriac_core::pool::Pool;
use celeriac_worker::Worker;
use celeriac_worker::parts::OperatorSignal;
use celeriac_worker::shutdown::Signal;
use celeriac_worker::vitals;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

use super::assembly::{Assembly, Surroundings};
use super::native::NativeTasks;
use super::settings::Environment;
use crate::failure::Failure;
use crate::native::NativeApp;
use tracing_journal::TracingJournal;

/// A warm shutdown and a cold one.
const ORDERS: usize = 2;

/// Options of an embedded worker. What is `None` is as the settings say, or Celery's default.
#[derive(Clone, Default)]
pub struct EmbedOptions {
    /// How many tasks run at once; the number of processors where nothing says otherwise.
    pub concurrency: Option<usize>,
    /// The queues to consume from; the app's default one and those of its tasks.
    pub queues: Option<Vec<String>>,
    /// The node's name, such as `w1@%h`; `celery@<host>`. Two workers of one host need two names.
    pub hostname: Option<String>,
    /// Which records are written; `Info` and above.
    pub loglevel: Option<Level>,
    /// When a task is ended.
    pub time_limit: Option<Duration>,
    /// When a task is asked to end.
    pub soft_time_limit: Option<Duration>,
    /// How long a warm shutdown waits for running tasks; without end.
    pub shutdown_deadline: Option<Duration>,
    /// Settings by Celery's names, over those of the app and of its configuration.
    pub settings: Map<String, Value>,
    /// Where the worker's own records go. Without one they are events of the crate `tracing` with the
    /// target `celeriac`, their logger in the field `logger` and their task in `task_id` and
    /// `task_name`. What libraries below say by `tracing` stays there in either case.
    pub journal: Option<Arc<dyn Journal>>,
}

/// Why a worker can't be started: what is wrong, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartError(String);

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for StartError {}

impl From<Failure> for StartError {
    fn from(failure: Failure) -> Self {
        Self(failure.in_full())
    }
}

/// A worker that runs while this is awaited, or spawned: a future that ends with the worker, and gives
/// what `celery worker` would have exited with: 0 after a shutdown, 1 when it could not go on, such
/// as without its broker; the journal has the reason then.
///
/// Dropping it is as killing a worker: running tasks are lost, or run again by their ack rules.
#[must_use = "a worker does nothing unless it is awaited or spawned"]
pub struct Running(Pin<Box<dyn Future<Output = i32> + Send>>);

impl Future for Running {
    type Output = i32;

    fn poll(mut self: Pin<&mut Self>, context: &mut task::Context<'_>) -> Poll<i32> {
        self.0.as_mut().poll(context)
    }
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running").finish_non_exhaustive()
    }
}

/// Ends a worker. Clones end the same one; without any of them it runs on.
#[derive(Debug, Clone)]
pub struct Stop {
    orders: mpsc::Sender<OperatorSignal>,
    was_asked: Arc<AtomicBool>,
    was_urged: Arc<AtomicBool>,
}

impl Stop {
    /// Asks for a warm shutdown: no more tasks are taken, and those that run are waited for. Asked
    /// again, for a cold one: those that run are ended. Returns at once; the worker has ended when its
    /// future has.
    pub fn stop(&self) {
        let signal = if !self.was_asked.swap(true, Ordering::SeqCst) {
            Signal::Terminate
        } else if !self.was_urged.swap(true, Ordering::SeqCst) {
            Signal::Quit
        } else {
            return;
        };
        // There is room for both orders. A worker that has ended takes none.
        let _ = self.orders.try_send(OperatorSignal::End(signal));
    }
}

/// Makes a worker of an app whose tasks are in Rust, to be run by awaiting or spawning the future.
///
/// To be called within a tokio runtime, of either kind, that has timers and I/O; the future runs on
/// the same one. Tasks run on threads of the worker's own. Work that blocks the runtime's threads
/// holds up heartbeats and acknowledgements.
///
/// The app's settings are in layers as for its client: `celeriac.toml` and the environment count over
/// the program. Options of `celeriac worker`, and tasks that are declared in `celeriac.toml`, are the
/// command line's alone.
///
/// # Errors
/// When there are no tasks, a setting or an option makes no sense, or there is no runtime.
pub fn start(app: &NativeApp, options: EmbedOptions) -> Result<(Running, Stop), StartError> {
    if tokio::runtime::Handle::try_current().is_err() {
        let failure = Failure::new("A worker runs on a tokio runtime, and there is none here");
        return Err(failure
            .with_hint("start it within #[tokio::main], or Runtime::block_on")
            .into());
    }
    celeriac_net::install_tls_provider();
    let tasks = NativeTasks::of_app(app)?;
    let mut settings = app.resolved().map_err(Failure::new)?;
    settings.extend(options.settings.clone());
    let mut description = tasks.describe(&app.name, &settings, &options.worker(), false)?;
    tasks.add_to(&mut description)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let loglevel = options.loglevel.unwrap_or(Level::Info);
    let journal = options.journal.unwrap_or_else(|| Arc::new(TracingJournal));
    let journal: Arc<dyn Journal> = Arc::new(Above(loglevel, journal));
    let engine = tasks.engine(&description, &clock, &journal)?;
    let engine = engine
        .ok_or_else(|| Failure::new("The app has no tasks").with_hint("add some: App::task(…)"))?;
    let pool = PoolSpec {
        concurrency: u32::try_from(description.worker.concurrency).ok(),
        ..PoolSpec::new(ONLY, PoolKind::Native)
    };
    let mut assembly = Assembly::new(
        &description,
        &[pool],
        // Variables of an orchestrator are about the program, not about a part of it.
        &Environment::default(),
        &tasks.names(),
        options.shutdown_deadline.map(|wait| wait.as_secs_f64()),
    )?;
    let pools = assembly.lanes.iter().map(|lane| {
        let pool: Box<dyn Pool> = Box::new(engine.pool(lane.size())?);
        Ok(pool)
    });
    let pools = pools.collect::<Result<Vec<_>, Failure>>()?;
    for notice in description
        .warnings
        .iter()
        .cloned()
        .chain(description.own_settings.slips())
    {
        journal.write(Record::new(Level::Warning, "celery.worker", notice));
    }
    assembly.write_warnings(&*journal);
    let (orders, ordered) = mpsc::channel(ORDERS);
    let told = Arc::clone(&journal);
    let surroundings = Surroundings {
        hooks: engine.hooks(None),
        // There is no process of an app that would ask, or die.
        asked: mpsc::channel(1).1,
        main_died: Arc::default(),
        journal,
        clock,
        orders: ordered,
        probes: vitals::probes().1,
        console: Box::new(move |text| {
            told.write(Record::new(Level::Info, "celery.worker", text.trim()));
        }),
    };
    let parts = assembly.parts(&description, pools, false, surroundings)?;
    let running = Running(Box::pin(async move { Worker::run(parts).await.status }));
    let stop = Stop {
        orders,
        was_asked: Arc::default(),
        was_urged: Arc::default(),
    };
    Ok((running, stop))
}

impl EmbedOptions {
    /// As the options of `celeriac worker`, by the names that Celery's code has for them.
    fn worker(&self) -> Map<String, Value> {
        let seconds = |limit: Option<Duration>| limit.map(|limit| limit.as_secs_f64());
        let options = json!({
            "concurrency": self.concurrency.map(|number| number.to_string()),
            "queues": self.queues,
            "hostname": self.hostname,
            "time_limit": seconds(self.time_limit),
            "soft_time_limit": seconds(self.soft_time_limit),
            "loglevel": self.loglevel.unwrap_or(Level::Info).to_string(),
        });
        match options {
            Value::Object(mut options) => {
                options.retain(|_, value| !value.is_null());
                options
            }
            _ => Map::new(),
        }
    }
}

impl fmt::Debug for EmbedOptions {
    /// Without the settings, which hold passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbedOptions")
            .field("options", &self.worker())
            .field("shutdown_deadline", &self.shutdown_deadline)
            .finish_non_exhaustive()
    }
}

/// A journal that takes nothing below a level.
struct Above(Level, Arc<dyn Journal>);

impl Journal for Above {
    fn writes(&self, level: Level) -> bool {
        level >= self.0 && self.1.writes(level)
    }

    fn write(&self, record: Record) {
        if self.writes(record.level) {
            self.1.write(record);
        }
    }
}
