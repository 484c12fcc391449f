//! A run of the world from a seed.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use celeriac_core::clock::Clock;
use celeriac_core::journal::{Journal, Level, Record};
use celeriac_worker::parts::End;
use celeriac_worker::shutdown::Signal;
use jiff::Timestamp;
use tokio::time::{Instant, sleep_until};

use crate::plan::Mutation;
use crate::process::{Process, ProcessId};
use crate::world::{Shared, World, locked};

/// How long it may take until all is done when nothing breaks any more.
const DRAINS_WITHIN: Duration = Duration::from_mins(5);

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Messages that were published, retries included.
    pub messages: u64,
    /// Runs that began.
    pub begun: usize,
    /// Of these, runs of a message that had begun before.
    pub repeated: usize,
    /// Worker processes that there were.
    pub processes: u32,
    /// Simulated time.
    pub took: Duration,
    /// All that happened, if it was asked for.
    pub trace: Vec<String>,
}

/// What must not be has been.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The seed that shows it.
    pub seed: u64,
    /// What it is.
    pub violation: String,
    /// The last steps before it.
    pub trace: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.trace {
            writeln!(f, "{step}")?;
        }
        writeln!(f, "seed {}: {}", self.seed, self.violation)?;
        write!(
            f,
            "again: CELERIAC_SEED={} cargo test -p celeriac-sim",
            self.seed
        )
    }
}

/// Returns when a process can go on: never when it is no more.
pub(crate) async fn going_on(world: &Shared, process: ProcessId) {
    loop {
        let resumed = {
            let world = locked(world);
            let it = &world.processes[&process];
            if it.is_alive && !it.is_paused {
                return;
            }
            Arc::clone(&it.resumed)
        };
        resumed.notified().await;
    }
}

/// A worker's clocks.
pub(crate) struct SimulatedClock {
    pub(crate) world: Shared,
    pub(crate) process: ProcessId,
    pub(crate) started: Instant,
}

impl Clock for SimulatedClock {
    fn now(&self) -> Timestamp {
        let mut world = locked(&self.world);
        let spins = world.living(self.process).is_some_and(Process::reads_clock);
        if spins {
            let process = self.process;
            world.auditor.accuse(format!("{process} never rests"));
            drop(world);
            panic!("a worker never rests");
        }
        let wall = world.wall(self.process);
        if world.plan.is_mutated(Mutation::ClockAhead) {
            return wall + Duration::from_mins(10);
        }
        wall
    }

    fn monotonic(&self) -> Duration {
        self.started.elapsed()
    }
}

/// Writes what workers say into the trace.
pub(crate) struct Told {
    pub(crate) world: Shared,
    pub(crate) process: ProcessId,
    pub(crate) writes: bool,
}

impl Journal for Told {
    fn writes(&self, _: Level) -> bool {
        self.writes
    }

    fn write(&self, record: Record) {
        if self.writes {
            let text = record.message.lines().next().unwrap_or_default().to_owned();
            locked(&self.world).log(|| format!("{} says: {text}", self.process));
        }
    }
}

/// A worker that can be stopped and set going again.
struct Stoppable<F> {
    world: Shared,
    process: ProcessId,
    worker: Pin<Box<F>>,
}

impl<F: Future<Output = End>> Future for Stoppable<F> {
    type Output = End;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<End> {
        {
            let mut world = locked(&self.world);
            let process = self.process;
            if let Some(it) = world.living(process)
                && it.is_paused
            {
                it.waker = Some(context.waker().clone());
                return Poll::Pending;
            }
        }
        self.worker.as_mut().poll(context)
    }
}

/// Notices a worker that panics.
struct Watch {
    world: Shared,
    process: ProcessId,
}

impl Drop for Watch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let process = self.process;
            locked(&self.world)
                .auditor
                .accuse(format!("{process} panics"));
        }
    }
}

fn start(world: &Shared, slot: usize) {
    let process = {
        let mut world = locked(world);
        if world.is_closing {
            return;
        }
        let process = ProcessId(world.next_process);
        world.next_process += 1;
        world.log(|| format!("{process} starts as worker {slot}"));
        process
    };
    let writes = locked(world).traces();
    let worker = crate::worker::worker(world, process, slot, writes);
    let of_task = Arc::clone(world);
    let stoppable = Stoppable {
        world: Arc::clone(world),
        process,
        worker: Box::pin(worker),
    };
    let task = tokio::spawn(async move {
        let watch = Watch {
            world: Arc::clone(&of_task),
            process,
        };
        let end = stoppable.await;
        let mut world = locked(&of_task);
        world.log(|| format!("{process} ends: {end:?}"));
        if let Some(it) = world.living(process) {
            // What it leaves as it is, it leaves as one that is killed does.
            it.was_killed = end.at_once;
        }
        world.is_gone(process);
        world.changed.notify_one();
        drop(world);
        drop(watch);
    });
    if let Some(it) = locked(world).living(process) {
        it.task = Some(task.abort_handle());
    }
}

/// Lives through what the seed decides, with something that is wrong on purpose or without.
///
/// # Errors
/// What must not be, and has been.
pub fn run(seed: u64, mutation: Option<Mutation>, traces: bool) -> Result<Summary, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O needs nothing");
    let result = runtime.block_on(live(seed, mutation, traces));
    drop(runtime);
    result
}

async fn live(seed: u64, mutation: Option<Mutation>, traces: bool) -> Result<Summary, Failure> {
    let world: Shared = Arc::new(Mutex::new(World::new(seed, mutation, traces)));
    let (changed, deadline) = {
        let world = locked(&world);
        let all = world.plan.chaos + DRAINS_WITHIN;
        (Arc::clone(&world.changed), world.began + all)
    };
    loop {
        let next = {
            let mut world = locked(&world);
            world.check_ends();
            if let Some(failure) = world.failure(seed) {
                return Err(failure);
            }
            let is_drained =
                world.is_calm && world.published == world.plan.messages && world.server.is_empty();
            if is_drained && !world.is_closing {
                world.is_closing = true;
                // What an early acknowledged task sends now is for workers to come.
                world.last_serial = world.next_serial - 1;
                let all: Vec<ProcessId> = world.processes.keys().copied().collect();
                for process in all {
                    world.signal_worker(process, Signal::Terminate);
                }
            }
            let is_over = world.is_closing && world.processes.values().all(|it| !it.is_alive);
            if is_over {
                break;
            }
            if Instant::now() >= deadline {
                let left = world.server.describe();
                let what = if world.is_closing {
                    "workers do not end"
                } else {
                    "messages are left"
                };
                world.auditor.accuse(format!("{what}: {left}"));
                continue;
            }
            match world.agenda.first_key_value() {
                Some((&(at, number), _)) if at <= Instant::now() => {
                    let event = world.agenda.remove(&(at, number));
                    let to_start = event.and_then(|event| world.happen(event));
                    Err(to_start)
                }
                first => {
                    // What workers do by themselves is looked at from time to time.
                    let look = Instant::now() + Duration::from_secs(1);
                    Ok(first.map_or(look, |((at, _), _)| (*at).min(look)))
                }
            }
        };
        match next {
            Err(Some(slot)) => start(&world, slot),
            // Workers are to see each thing by itself.
            Err(None) => tokio::task::yield_now().await,
            Ok(until) => {
                tokio::select! {
                    biased;
                    () = changed.notified() => {}
                    () = sleep_until(until) => {}
                }
            }
        }
    }
    let mut world = locked(&world);
    let World {
        auditor,
        processes,
        last_serial,
        ..
    } = &mut *world;
    auditor.closes(*last_serial, |process| processes[&process].was_killed);
    if let Some(failure) = world.failure(seed) {
        return Err(failure);
    }
    Ok(Summary {
        messages: world.next_serial - 1,
        begun: world.auditor.begun,
        repeated: world.auditor.repeated,
        processes: world.next_process - 1,
        took: world.began.elapsed(),
        trace: world.trace.take().unwrap_or_default(),
    })
}
