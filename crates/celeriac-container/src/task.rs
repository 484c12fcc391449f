//! The task that runs containers.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use celeriac_command::options::LogLevel;
use celeriac_core::journal::Level;
use celeriac_native::error::{Ending, Error as End, Failure, Result, Retry, When};
use celeriac_native::{Arguments, Cause, Context, Options, Task};
use celeriac_protocol::Exception;
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::adoption::{self, Decision, decide};
use crate::call::Call;
use crate::engine::{self, Engine, Status};
use crate::log::{LogFile, Output};
use crate::options::{ContainerOptions, Pull};

/// How long the engine may take to be rid of a container after SIGKILL.
pub(crate) const END: Duration = Duration::from_secs(30);
/// How long the engine may be away while a container runs: it may be updated meanwhile.
const AWAY: Duration = Duration::from_mins(5);
/// Between two attempts to reach it.
const PAUSE: Duration = Duration::from_millis(200);
/// How often a name may be taken, before somebody else is taken to have it: the engine may need
/// seconds to be rid of a container.
const CONFLICTS: u32 = 50;
/// Between two states of a pull.
const PROGRESS: Duration = Duration::from_secs(1);
/// How many of the last lines a failure shows.
const LAST_LINES: usize = 10;

/// Why there is no such task.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A number that is none of what it stands for.
    #[error("containers of {0}: `{1}` has to be a number of at least 0")]
    Number(String, &'static str),
    /// It has no name.
    #[error("a task that runs containers has no name")]
    NoName,
}

/// celery-docker's task `run_docker`.
///
/// The engine is looked for when a container is to run, not now.
///
/// # Errors
/// When the options make no sense.
pub fn run_docker(options: ContainerOptions) -> Result<Arc<dyn Task>, Error> {
    if options.name.is_empty() {
        return Err(Error::NoName);
    }
    for (name, number) in [
        ("cpus", options.cpus.unwrap_or(0.0)),
        ("retry_delay", options.retry_delay),
        ("grace", options.grace),
        ("store_tasks_hours", options.store_tasks_hours),
    ] {
        if !number.is_finite() || number < 0.0 {
            return Err(Error::Number(options.name, name));
        }
    }
    Ok(Arc::new(ContainerTask {
        task_options: options.task_options(),
        options,
    }))
}

struct ContainerTask {
    options: ContainerOptions,
    task_options: Options,
}

#[async_trait]
impl Task for ContainerTask {
    fn name(&self) -> &str {
        &self.options.name
    }

    fn options(&self) -> &Options {
        &self.task_options
    }

    async fn run(&self, context: Context, arguments: Arguments) -> Result<Value> {
        let call = Call::read(&self.options, arguments)?;
        let host = self.options.host.as_deref();
        let engine = Engine::connect(host)
            .await
            .map_err(|error| failed(&error))?;
        let (mut container, mut output) = self.obtain(&engine, &call, &context).await?;
        let ended = self
            .watch(&engine, &mut container, &mut output, &context)
            .await;
        if !container.is_left {
            let removed = engine.remove(&container.id).await;
            container.is_gone = removed.is_ok();
            if let (Ok(_), Err(error)) = (&ended, &removed) {
                let text = format!("the container {} is left behind: {error}", container.id);
                context.log(Level::Error, text);
            }
        }
        let status = ended?;
        let level = self.level();
        let finished = output
            .finish(|line| {
                if let Some(level) = level {
                    context.log(level, line);
                }
            })
            .await;
        match status {
            Status::Ended { exit_code: 0, .. } => {
                let (shown, truncated) =
                    finished.map_err(|(path, error)| unwritten(&path, &error))?;
                Ok(json!({"id": context.id(), "output": shown, "truncated": truncated}))
            }
            Status::Ended {
                exit_code,
                out_of_memory,
            } => Err(self.retried(&call, exit_code, out_of_memory, &output, &context)),
            Status::Running => Err(failed(&"the container goes on").into()),
        }
    }
}

/// A container of a task. It is removed when this is dropped, unless it is gone or to be left.
struct Container {
    engine: Engine,
    id: String,
    is_gone: bool,
    is_left: bool,
}

impl Container {
    fn new(engine: &Engine, id: String) -> Self {
        Self {
            engine: engine.clone(),
            id,
            is_gone: false,
            is_left: false,
        }
    }

    /// Starts it; one that can't be started is gone afterwards.
    async fn start(&mut self, output: &mut Output) -> Result<()> {
        let started = match output.cut().await {
            Ok(()) => self
                .engine
                .start(&self.id)
                .await
                .map_err(|error| failed(&error)),
            Err((path, error)) => Err(unwritten(&path, &error)),
        };
        if started.is_err() {
            self.is_gone = self.engine.remove(&self.id).await.is_ok();
        }
        Ok(started?)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if self.is_gone || self.is_left {
            return;
        }
        let (engine, id) = (self.engine.clone(), std::mem::take(&mut self.id));
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { engine.remove(&id).await });
        }
    }
}

impl ContainerTask {
    fn level(&self) -> Option<Level> {
        match self.options.log {
            LogLevel::Off => None,
            LogLevel::Debug => Some(Level::Debug),
            LogLevel::Info => Some(Level::Info),
            LogLevel::Warning => Some(Level::Warning),
        }
    }

    fn tail(&self) -> usize {
        usize::try_from(self.options.output_tail.0).unwrap_or(usize::MAX)
    }

    /// The container of the task, which runs: the one that is there, or a new one.
    async fn obtain(
        &self,
        engine: &Engine,
        call: &Call,
        context: &Context,
    ) -> Result<(Container, Output)> {
        let mut conflicts = 0;
        loop {
            let found = engine
                .find(context.id())
                .await
                .map_err(|error| failed(&error))?;
            match decide(found.as_ref(), context.retries()) {
                Decision::Adopt {
                    id,
                    start,
                    out_offset,
                    err_offset,
                } => {
                    let text = format!("the container {id} is there already: going on with it");
                    context.log(Level::Warning, text);
                    let mut output = self.resume(call, out_offset, err_offset).await?;
                    let mut container = Container::new(engine, id);
                    if start {
                        container.start(&mut output).await?;
                    }
                    return Ok((container, output));
                }
                Decision::Replace(id) => {
                    engine.remove(&id).await.map_err(|error| failed(&error))?;
                }
                Decision::Create => {}
            }
            self.pull(engine, call, context).await?;
            let mut output = self.begin(call, context).await?;
            let name = container_name(context.id());
            let labels = labels(context, output.offsets());
            let privileges = self.options.new_privileges;
            match engine.create(&name, call, labels, privileges).await {
                Ok(id) => {
                    let mut container = Container::new(engine, id);
                    container.start(&mut output).await?;
                    return Ok((container, output));
                }
                // The name is taken: by a container of this task that has come between or that is
                // on its way out, or by one that nobody here knows.
                Err(error) if error.status() == Some(409) => {
                    let owner = engine
                        .task_of(&name)
                        .await
                        .map_err(|error| failed(&error))?;
                    let is_foreign = owner.is_some_and(|owner| owner != context.id());
                    if is_foreign || conflicts == CONFLICTS {
                        return Err(failed(&error).into());
                    }
                    conflicts += 1;
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => return Err(failed(&error).into()),
            }
        }
    }

    async fn begin(&self, call: &Call, context: &Context) -> Result<Output> {
        let anew = context.retries() == 0;
        let open = async |path: &Option<std::path::PathBuf>| match path {
            Some(path) => match LogFile::begin(path, anew).await {
                Ok(file) => Ok(Some(file)),
                Err(error) => Err(unwritten(path, &error)),
            },
            None => Ok(None),
        };
        let (out, err) = (open(&call.logoutfile).await?, open(&call.logerrfile).await?);
        Ok(Output::new(out, err, self.tail()))
    }

    async fn resume(&self, call: &Call, out_offset: u64, err_offset: u64) -> Result<Output> {
        let open = async |path: &Option<std::path::PathBuf>, offset| match path {
            Some(path) => match LogFile::resume(path, offset).await {
                Ok(file) => Ok(Some(file)),
                Err(error) => Err(unwritten(path, &error)),
            },
            None => Ok(None),
        };
        let out = open(&call.logoutfile, out_offset).await?;
        let err = open(&call.logerrfile, err_offset).await?;
        Ok(Output::new(out, err, self.tail()))
    }

    /// Sees to it that the engine has the image, as far as that is wanted.
    async fn pull(&self, engine: &Engine, call: &Call, context: &Context) -> Result<()> {
        let image = &call.image;
        let has_image = engine
            .has_image(image)
            .await
            .map_err(|error| failed(&error))?;
        match call.pull {
            Pull::Missing if has_image => return Ok(()),
            Pull::Never if has_image => return Ok(()),
            Pull::Never => {
                let text =
                    format!("the engine does not have the image {image}, and may not pull it");
                return Err(failed(&text).into());
            }
            Pull::Missing | Pull::Always => {}
        }
        let mut cancellation = context.cancellation();
        let mut steps = Box::pin(engine.pull(image));
        let mut layers: HashMap<String, (i64, i64)> = HashMap::new();
        let mut told: Option<Instant> = None;
        loop {
            let step = tokio::select! {
                step = steps.next() => step,
                cause = cancellation.cancelled() => return Err(Self::cancelled(cause)),
            };
            let wrong = |why: String| failed(&engine::Error::Pull(image.clone(), why));
            let step = match step {
                None => return Ok(()),
                Some(Err(error)) => {
                    return Err(wrong(engine::Error::from(error).to_string()).into());
                }
                Some(Ok(step)) => step,
            };
            if let Some(error) = step.error_detail {
                return Err(wrong(error.message.unwrap_or_default()).into());
            }
            if let (Some(layer), Some(detail)) = (step.id, step.progress_detail)
                && let (Some(current), Some(total)) = (detail.current, detail.total)
            {
                layers.insert(layer, (current, total));
            }
            if told.is_none_or(|told| told.elapsed() >= PROGRESS) {
                told = Some(Instant::now());
                let sum = |of: fn(&(i64, i64)) -> i64| layers.values().map(of).sum::<i64>();
                let (current, total) = (sum(|layer| layer.0), sum(|layer| layer.1));
                let meta = json!({
                    "pulling": image, "status": step.status, "current": current, "total": total,
                });
                context.progress(meta).await?;
            }
        }
    }

    /// Follows a container to its end, which it brings about when the task is to end.
    async fn watch(
        &self,
        engine: &Engine,
        container: &mut Container,
        output: &mut Output,
        context: &Context,
    ) -> Result<Status> {
        let mut cancellation = context.cancellation();
        let cause = {
            let mut followed = Box::pin(self.follow(engine, &container.id, output, context));
            let cause = tokio::select! {
                status = &mut followed => return status,
                cause = cancellation.cancelled() => cause,
            };
            if cause == Cause::Shutdown && self.options.acks_late {
                // The message comes again, and whoever gets it goes on with the container.
                container.is_left = true;
                return Err(End::reject(
                    "the worker shuts down; the container goes on",
                    true,
                ));
            }
            let seconds = self.options.grace().as_secs_f64().ceil() as u64;
            let stopped = async {
                let stopped = engine.stop(&container.id, seconds).await;
                // What does not stop is removed by force afterwards.
                if let Err(error) = stopped {
                    context.log(
                        Level::Warning,
                        format!("the container does not stop: {error}"),
                    );
                }
            };
            // The last lines come while it stops.
            let both = async { tokio::join!(stopped, &mut followed) };
            let _ = tokio::time::timeout(self.options.grace() + END / 2, both).await;
            cause
        };
        Err(Self::cancelled(cause))
    }

    /// How a task that was cancelled ends, for whoever does not know better.
    fn cancelled(cause: Cause) -> End {
        match cause {
            Cause::SoftTimeLimit(_) => Exception {
                exc_message: Vec::new(),
                ..Exception::new("billiard.exceptions", "SoftTimeLimitExceeded", "")
            }
            .into(),
            Cause::Shutdown => End::reject("the worker shuts down", true),
            Cause::Revoked | Cause::TimeLimit(_) => failed(&"the container was stopped").into(),
        }
    }

    /// Takes a container's output to its end, also when the engine goes away for a while.
    async fn follow(
        &self,
        engine: &Engine,
        id: &str,
        output: &mut Output,
        context: &Context,
    ) -> Result<Status> {
        let level = self.level();
        let mut last_seen = Instant::now();
        loop {
            let mut pieces = Box::pin(engine.logs(id));
            while let Some(Ok(piece)) = pieces.next().await {
                last_seen = Instant::now();
                let log = |line| {
                    if let Some(level) = level {
                        context.log(level, line);
                    }
                };
                output.take(&piece, log).await;
            }
            match engine.status(id).await {
                Ok(Status::Running) => last_seen = Instant::now(),
                Ok(ended) => return Ok(ended),
                Err(error) if error.status() == Some(404) => {
                    let text = "somebody else has removed the container";
                    return Err(failed(&text).into());
                }
                Err(error) if last_seen.elapsed() > AWAY => return Err(failed(&error).into()),
                Err(_) => {}
            }
            // The output comes again from its beginning; the files have it already.
            tokio::time::sleep(PAUSE).await;
            output.restart(self.tail());
        }
    }

    /// A container that has ended with another code than 0: tried again, later each time.
    fn retried(
        &self,
        call: &Call,
        exit_code: i64,
        out_of_memory: bool,
        output: &Output,
        context: &Context,
    ) -> End {
        let memory = if out_of_memory {
            " (out of memory)"
        } else {
            ""
        };
        // The Docker SDK's words for a `ContainerError`.
        let text = format!(
            "Command '{}' in image '{}' returned non-zero exit status {exit_code}{memory}: {}",
            call.command.join(" "),
            call.image,
            output.last_lines(LAST_LINES),
        );
        let random = RandomState::new().build_hasher().finish() as f64 / 2f64.powi(64);
        let wait = self.options.retry_wait(context.retries(), random);
        End::new(Ending::Retry(Retry {
            failure: Some(Failure {
                exception: Exception::new("celeriac.exceptions", "ContainerFailed", text),
                traceback: None,
            }),
            when: Some(When::After(wait)),
            ..Retry::default()
        }))
    }
}

/// The labels of a container.
fn labels(context: &Context, (out_offset, err_offset): (u64, u64)) -> HashMap<String, String> {
    [
        (adoption::TASK_ID, context.id().to_owned()),
        (adoption::NODE, context.request().hostname.clone()),
        (adoption::RETRIES, context.retries().to_string()),
        (adoption::OUT_OFFSET, out_offset.to_string()),
        (adoption::ERR_OFFSET, err_offset.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

/// The name of a task's container. Engines take letters, digits, `_`, `.` and `-` only.
fn container_name(task_id: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "_.-".contains(letter);
    let id = task_id.chars();
    let id: String = id.map(|it| if plain(it) { it } else { '_' }).collect();
    format!("run-{id}")
}

fn failed(error: &impl ToString) -> Exception {
    Exception::new("celeriac.exceptions", "EngineError", error.to_string())
}

fn unwritten(path: &Path, error: &std::io::Error) -> Exception {
    Exception::builtin("OSError", format!("{}: {error}", path.display()))
}
