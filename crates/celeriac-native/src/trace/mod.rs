//! Runs tasks: what Celery's tracer does around a task's own code.
//!
//! Celery's counterpart: `celery.app.trace`. A run ends in one of two ways: with an outcome, after all
//! that follows from it has been done; or lost, when its time is over, and then nothing was done.

mod conclude;
mod replace;
mod retry;
pub(crate) mod shown;
mod worker;

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context as Poll, Poll as Polled};
use std::time::Duration;

use celeriac_core::journal::Level;
use celeriac_core::pool::{Job, Outcome, RequestKey};
use celeriac_protocol::Exception;
use serde_json::{Value, json};

use self::worker::RunWorker;
use crate::arguments::Arguments;
use crate::body::Accepts;
use crate::call::Call;
use crate::cancellation::{Cancellation, Cause, Patience};
use crate::context::Context;
use crate::error::{Ending, Error, Failure, Result};
use crate::panic;
use crate::pool::reports::{End, Report, Reports, Slot};
use crate::registry::Registry;
use crate::results::{Results, State};
use crate::task::Task;

/// How tasks are run: Celery's settings by their names.
#[derive(Debug, Clone, Default)]
pub struct TraceSettings {
    /// `accept_content`, and how much of it.
    pub accepts: Accepts,
    /// `task_track_started`.
    pub track_started: bool,
    /// `worker_deduplicate_successful_tasks`, for tasks that are acknowledged late.
    pub deduplicate_successful_tasks: bool,
}

/// Runs tasks.
#[derive(Debug)]
pub struct Tracer {
    registry: Arc<Registry>,
    results: Results,
    settings: TraceSettings,
}

/// A job that is to be run.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) job: Job,
    pub(crate) cancellation: Cancellation,
    pub(crate) patience: Patience,
    pub(crate) reports: Reports,
}

/// One run, after its message was read.
struct Running {
    key: RequestKey,
    call: Arc<Call>,
    task: Arc<dyn Task>,
    ignores_result: bool,
    wants_result: bool,
    /// When it began, by the monotonic clock.
    since: Duration,
    reports: Reports,
    is_free: bool,
}

/// How a task's own code has ended.
enum Ended {
    /// By itself, or as if it had been by itself.
    With(Result<Value>),
    /// It was lost.
    Lost,
}

impl Tracer {
    /// Runs the tasks of `registry`.
    pub fn new(registry: Arc<Registry>, results: Results, settings: TraceSettings) -> Self {
        Self {
            registry,
            results,
            settings,
        }
    }

    /// The tasks that it runs.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// Runs a job, and reports its end.
    pub(crate) async fn run(self: Arc<Self>, run: Run) {
        let Run {
            job,
            cancellation,
            mut patience,
            reports,
        } = run;
        let key = job.key;
        let finished = |outcome| Report::Ended {
            key,
            end: End::Finished(outcome),
            is_free: true,
        };
        let since = self.results.clock().monotonic();
        let (mut call, arguments) = match Call::read(&job, &self.settings.accepts) {
            Ok(read) => read,
            Err(rejection) => return reports.tell(finished(rejection.into())),
        };
        let Some(task) = self.registry.get(&job.task).map(Arc::clone) else {
            let reason = format!(
                "no task of this worker's has the name {}: register it",
                job.task
            );
            return reports.tell(finished(Outcome::Invalid { reason }));
        };
        let options = task.options();
        let ignores_result = call
            .carried
            .ignore_result
            .unwrap_or(options.celery.ignore_result);
        if let Some(request) = Arc::get_mut(&mut call.request) {
            request.ignore_result = ignores_result;
        }
        call.result_expires = options.result_expires;
        let mut running = Running {
            key,
            call: Arc::new(call),
            ignores_result,
            wants_result: job.wants_result,
            since,
            reports: reports.clone(),
            is_free: true,
            task,
        };
        if let Some(outcome) = self.had_succeeded(&running).await {
            return running.tell(outcome);
        }
        if let Err(error) = self.store_started(&running).await {
            let outcome = self.raised(&running.call, &error);
            return running.tell(outcome);
        }
        let worker = Arc::new(RunWorker {
            call: Arc::clone(&running.call),
            results: self.results.clone(),
            children: Mutex::default(),
            slot: Slot::new(reports, key),
        });
        let context = Context::new(
            Arc::clone(&running.call.request),
            cancellation,
            Arc::clone(&worker) as Arc<dyn crate::context::Worker>,
        );
        let ended = attempt(&*running.task, context, arguments, &mut patience).await;
        let children;
        (children, running.is_free) = worker.ended();
        match ended {
            Ended::With(result) => self.conclude(running, result, children).await,
            Ended::Lost => running.report(End::Dropped),
        }
    }

    async fn store_started(
        &self,
        running: &Running,
    ) -> std::result::Result<(), crate::results::Error> {
        let tracks = running.task.options().track_started;
        if running.ignores_result || !tracks.unwrap_or(self.settings.track_started) {
            return Ok(());
        }
        let hostname = &running.call.request.hostname;
        let state = State {
            status: "STARTED",
            result: json!({"pid": std::process::id(), "hostname": hostname}),
            traceback: None,
            children: json!([]),
        };
        Ok(self.results.store(&running.call, state).await?)
    }

    /// The outcome of a call whose message comes again although it has succeeded, if it has: then only
    /// what follows it is sent, unless that is known to have been.
    async fn had_succeeded(&self, running: &Running) -> Option<Outcome> {
        let call = &running.call;
        let is_asked = self.settings.deduplicate_successful_tasks
            && running.task.options().celery.acks_late
            && call.request.redelivered;
        let backend = self.results.backend()?;
        // Where results are messages, there is nothing to ask.
        if !is_asked || backend.reply_to().is_some() {
            return None;
        }
        let meta = self.results.meta(&call.request.id).await.ok().flatten()?;
        if meta.status != "SUCCESS" {
            return None;
        }
        self.results.log(call, Level::Info, || {
            let request = &call.request;
            let (name, id) = (call.name(), &request.id);
            format!("Task {name}[{id}] Task already completed successfully.")
        });
        if meta.children.as_array().is_none_or(Vec::is_empty)
            && let Err(error) = self.results.follow(call, &meta.result).await
        {
            self.results.log(call, Level::Error, || {
                let id = &call.request.id;
                format!("Failed to dispatch chain/callbacks for deduplicated task {id}: {error}")
            });
            return Some(Outcome::Reject {
                requeue: true,
                failure: conclude::told(&conclude::unsent(&error)),
            });
        }
        Some(Outcome::Success {
            runtime: None,
            result: String::new(),
        })
    }
}

impl Running {
    fn report(self, end: End) {
        self.reports.tell(Report::Ended {
            key: self.key,
            end,
            is_free: self.is_free,
        });
    }

    fn tell(self, outcome: Outcome) {
        self.report(End::Finished(outcome));
    }
}

/// Runs a task's own code until it ends or is over.
async fn attempt(
    task: &dyn Task,
    context: Context,
    arguments: Arguments,
    patience: &mut Patience,
) -> Ended {
    let run = panic::catch(|| task.run(context, arguments));
    let mut run = match run {
        Ok(run) => Caught(run),
        Err(failure) => return Ended::With(Err(Error::new(Ending::Failure(failure)))),
    };
    let ended = tokio::select! {
        biased;
        result = &mut run => Ok(result),
        cause = patience.ends() => Err(cause),
    };
    let dropped = panic::catch(|| drop(run));
    if !patience.counts() {
        return Ended::Lost;
    }
    Ended::With(match (ended, dropped) {
        (Ok(Err(error)), _) if patience.cause() == Some(Cause::Shutdown) => {
            Err(interrupted(Some(error)))
        }
        (Ok(result), _) => result,
        (Err(_), Err(failure)) => Err(Error::new(Ending::Failure(failure))),
        (Err(Cause::Shutdown), Ok(())) => Err(interrupted(None)),
        (Err(_), Ok(())) => Err(soft_time_limit()),
    })
}

/// A task that was interrupted by a shutdown runs again; what else it said itself counts.
fn interrupted(error: Option<Error>) -> Error {
    match error {
        Some(error) if !matches!(error.ending(), Ending::Failure(_)) => error,
        _ => Error::reject("the worker is shutting down", true),
    }
}

fn soft_time_limit() -> Error {
    Error::new(Ending::Failure(Failure {
        exception: Exception {
            exc_message: Vec::new(),
            ..Exception::new("billiard.exceptions", "SoftTimeLimitExceeded", "")
        },
        traceback: None,
    }))
}

/// The future of a task, whose panics are failures.
struct Caught<'t>(Pin<Box<dyn Future<Output = Result<Value>> + Send + 't>>);

impl Future for Caught<'_> {
    type Output = Result<Value>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Poll<'_>) -> Polled<Self::Output> {
        match panic::catch(|| self.0.as_mut().poll(context)) {
            Ok(polled) => polled,
            Err(failure) => Polled::Ready(Err(Error::new(Ending::Failure(failure)))),
        }
    }
}
