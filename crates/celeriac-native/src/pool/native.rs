//! The pool in the world: carries out what the machine decides, tells it what happens.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use celeriac_core::Clock;
use celeriac_core::pool::{Condition, Job, Pool, PoolEvent, RequestKey};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::time::Instant;

use super::machine::{Action, Machine};
use super::reports::{Report, Reports};
use crate::cancellation::{Canceller, cancellation_of_run};
use crate::trace::{Run, Tracer};

/// What a native pool is made of.
#[derive(Debug, Clone, Copy)]
pub struct NativeOptions {
    /// How many jobs run at once.
    pub size: usize,
    /// Threads that they run on; `None` for as many as there are processors.
    pub threads: Option<usize>,
}

/// Runs tasks in the worker's own process.
pub struct NativePool {
    machine: Machine,
    tracer: Arc<Tracer>,
    clock: Arc<dyn Clock>,
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
    runs: HashMap<RequestKey, Canceller>,
    reports: Reports,
    told: VecDeque<PoolEvent>,
    /// Whether a place came free without an event.
    has_room: bool,
}

impl NativePool {
    /// A pool. `tracer` makes what runs the tasks; it is called within the pool's runtime, which
    /// what it spawns then runs on, such as what stores results.
    ///
    /// # Errors
    /// When threads can't be started.
    pub fn new(
        options: NativeOptions,
        clock: Arc<dyn Clock>,
        tracer: impl FnOnce() -> Tracer,
    ) -> io::Result<Self> {
        let mut builder = Builder::new_multi_thread();
        if let Some(threads) = options.threads {
            builder.worker_threads(threads.max(1));
        }
        let runtime = builder
            .thread_name("celeriac:native")
            .enable_all()
            .build()?;
        let tracer = {
            let _entered = runtime.enter();
            Arc::new(tracer())
        };
        Ok(Self {
            machine: Machine::new(options.size, std::process::id()),
            tracer,
            clock,
            runtime: Some(runtime),
            runs: HashMap::new(),
            reports: Reports::default(),
            told: VecDeque::new(),
            has_room: false,
        })
    }

    /// The runtime that tasks run on, for what belongs to them: clients, servers of their own.
    pub fn handle(&self) -> Option<&Handle> {
        self.runtime.as_ref().map(Runtime::handle)
    }

    /// What runs the tasks.
    pub fn tracer(&self) -> &Arc<Tracer> {
        &self.tracer
    }

    /// How many jobs it has, those that wait for a place among them.
    pub(super) fn load(&self) -> usize {
        self.machine.load()
    }

    /// Whether the job is here.
    pub(super) fn has(&self, key: RequestKey) -> bool {
        self.machine.has(key)
    }

    fn now(&self) -> Duration {
        self.clock.monotonic()
    }

    /// Carries out what the machine decided, until it has nothing more to say.
    fn act(&mut self) {
        loop {
            let actions = self.machine.take_actions();
            if actions.is_empty() {
                return;
            }
            for action in actions {
                match action {
                    Action::Start(job) => self.start(job),
                    Action::Cancel { key, cause } => {
                        if let Some(run) = self.runs.get(&key) {
                            run.cancel(cause);
                        }
                    }
                    Action::Raise { key } => {
                        // One that has ended before says so itself.
                        let _ = self.runs.get(&key).is_some_and(Canceller::raise);
                    }
                    Action::Lose { key } => {
                        if !self.runs.get(&key).is_some_and(Canceller::lose) {
                            self.machine.had_ended(key);
                        }
                    }
                    Action::Stuck { key } => {
                        tracing::error!(
                            target: "celery.worker",
                            "The task of request {key} does not end: it is concluded, and keeps its \
                             place in the pool until it does. It should await more often."
                        );
                    }
                    Action::Tell(event) => self.told.push_back(event),
                }
            }
        }
    }

    fn start(&mut self, job: Job) {
        let (canceller, cancellation, patience) = cancellation_of_run();
        self.runs.insert(job.key, canceller);
        let run = Run {
            job,
            cancellation,
            patience,
            reports: self.reports.clone(),
        };
        if let Some(runtime) = &self.runtime {
            runtime.spawn(Arc::clone(&self.tracer).run(run));
        }
    }

    fn read_reports(&mut self) {
        let reports = self.reports.take();
        if reports.is_empty() {
            return;
        }
        let now = self.now();
        for report in reports {
            match report {
                Report::Ended { key, end, is_free } => {
                    self.runs.remove(&key);
                    self.machine.ended(key, end, is_free, now);
                }
                Report::Freed { key } => {
                    let free = self.machine.free();
                    self.machine.freed(key, now);
                    self.has_room |= self.machine.free() > free;
                }
            }
        }
    }
}

#[async_trait]
impl Pool for NativePool {
    fn free(&self) -> usize {
        self.machine.free()
    }

    fn submit(&mut self, job: Job) {
        let task = self.tracer.registry().get(&job.task);
        let grace = task.map_or(Duration::ZERO, |task| task.options().cancel_grace);
        let now = self.now();
        self.machine.submit(job, grace, now);
        self.act();
    }

    fn terminate(&mut self, key: RequestKey, signal: i32) {
        let now = self.now();
        self.machine.terminate(key, signal, now);
        self.act();
    }

    fn interrupt(&mut self, key: RequestKey, requeues: bool) {
        let now = self.now();
        self.machine.interrupt(key, requeues, now);
        self.act();
    }

    fn condition(&self) -> Condition {
        self.machine.condition()
    }

    fn size(&self) -> usize {
        self.machine.size()
    }

    fn processes(&self) -> Vec<(u32, u64)> {
        vec![self.machine.process()]
    }

    fn resize(&mut self, size: usize) -> usize {
        let now = self.now();
        self.machine.resize(size, now);
        self.act();
        self.machine.size()
    }

    fn shrink(&mut self, by: usize) {
        self.machine.shrink(by);
    }

    /// Nothing: tasks run in the worker's own process, which has nothing to begin anew with.
    fn restart(&mut self) {}

    fn close(&mut self) {
        let now = self.now();
        self.machine.close(now);
        self.act();
    }

    fn kill(&mut self) {
        let now = self.now();
        self.machine.kill(now);
        self.act();
    }

    async fn next(&mut self) -> Vec<PoolEvent> {
        loop {
            self.read_reports();
            let now = self.now();
            if self.machine.next_tick().is_some_and(|at| at <= now) {
                self.machine.tick(now);
            }
            self.act();
            // The worker is woken as well when there is nothing but a place to tell of.
            if !self.told.is_empty() || std::mem::take(&mut self.has_room) {
                self.has_room = false;
                return self.told.drain(..).collect();
            }
            let wait = self.machine.next_tick().map(|at| at.saturating_sub(now));
            let until = wait.map(|wait| Instant::now() + wait.min(Duration::from_hours(24)));
            tokio::select! {
                biased;
                () = self.reports.filled() => {}
                () = tokio::time::sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {}
            }
        }
    }
}

impl Drop for NativePool {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // A thread that does not end must not keep the worker from ending.
            runtime.shutdown_background();
        }
    }
}

impl fmt::Debug for NativePool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NativePool")
            .field("machine", &self.machine)
            .finish_non_exhaustive()
    }
}
