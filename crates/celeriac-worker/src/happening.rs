//! Everything notable that happens, each told once: the log line it makes, in Celery's words.
//!
//! Celery's counterparts: the constants of `celery.worker.consumer.consumer`,
//! `celery.worker.strategy` and `celery.worker.request`.

use std::time::Duration;

use celeriac_core::dead_letter::DeadLetter;
use celeriac_core::journal::{Level, Record};
use celeriac_core::pool::{ExitStatus, Shortage};
use celeriac_protocol::json::{self, Object};
use celeriac_protocol::{Message, TimeLimit};
use serde_json::{Map, Value};

use crate::request::Request;

const STRATEGY: &str = "celery.worker.strategy";
const REQUEST: &str = "celery.worker.request";
const CONSUMER: &str = "celery.worker.consumer.consumer";
const CONNECTION: &str = "celery.worker.consumer.connection";
const AUTOSCALE: &str = "celery.worker.autoscale";
const WORKER: &str = "celery.worker";
const APPS: &str = "celery.apps.worker";
/// billiard's logger.
const POOL: &str = "multiprocessing";

/// How much of a body a log line shows.
const BODY_SHOWN: usize = 1024;
/// How much of the headers a log line shows.
const HEADERS_SHOWN: usize = 4096;

/// Something notable.
#[derive(Debug)]
pub enum Happening<'h> {
    /// A task came.
    TaskReceived {
        /// The task.
        request: &'h Request,
        /// `celery.app.trace.LOG_RECEIVED`, which apps may change.
        format: &'h str,
    },
    /// A task came whose time is over, or which is revoked.
    TaskDiscarded {
        /// The task.
        request: &'h Request,
        /// The stamp for which it is revoked, if that is why.
        stamp: Option<&'h str>,
    },
    /// A unique task is dropped: another one of its kind is under way.
    TaskDuplicate {
        /// The task.
        request: &'h Request,
        /// The other one's id.
        of: &'h str,
    },
    /// A process runs a task.
    TaskAccepted {
        /// The task.
        request: &'h Request,
        /// The process.
        pid: u32,
    },
    /// A task is over its soft limit.
    SoftTimeLimit {
        /// The task.
        request: &'h Request,
        /// The limit.
        limit: TimeLimit,
    },
    /// A task is over its hard limit and will run again.
    HardTimeLimitRequeued {
        /// The task.
        request: &'h Request,
        /// The limit.
        limit: TimeLimit,
    },
    /// The soft time limit's exception is raised in a task, for the shutdown's deadline is over.
    Interrupted {
        /// The task.
        request: &'h Request,
    },
    /// A task's process is ended, for it went on after the shutdown's deadline.
    EndedAtShutdown {
        /// The task.
        request: &'h Request,
    },
    /// A process was lost whose task had succeeded.
    SucceededBeforeLoss {
        /// The task.
        request: &'h Request,
        /// How the process ended.
        reason: &'h str,
    },
    /// A process was lost whose task will run again.
    LostAndRequeued {
        /// The task.
        request: &'h Request,
        /// How the process ended.
        reason: &'h str,
    },
    /// Main could not do what a task's end asks for.
    HookFailed {
        /// The task.
        request: &'h Request,
        /// What it was.
        what: &'h str,
        /// What went wrong.
        error: &'h str,
    },
    /// A message of this worker was given to another one while its task waited or ran here.
    LeaseLost {
        /// The task.
        request: &'h Request,
    },
    /// A message came again whose task runs here: it goes on.
    Adopted {
        /// The task.
        request: &'h Request,
    },
    /// A message came again whose task is done.
    AlreadyDone {
        /// The task's name.
        task: &'h str,
        /// The task's id.
        id: &'h str,
    },
    /// Bytes came that are no message.
    Undecodable {
        /// What is wrong.
        reason: &'h str,
        /// The message, if it was one but for its body.
        message: Option<&'h Message>,
        /// The bytes.
        body: &'h [u8],
    },
    /// A message came that is no task.
    UnknownMessage {
        /// The message.
        message: &'h Message,
    },
    /// A task came that nobody registered.
    UnknownTask {
        /// Its name.
        task: &'h str,
        /// The message.
        message: &'h Message,
        /// For how long it is kept, should another worker know the task.
        kept: Option<Duration>,
    },
    /// A task came that can't be one.
    InvalidTask {
        /// What is wrong.
        reason: &'h str,
        /// The message.
        message: &'h Message,
    },
    /// A message can't be dealt with: it is kept.
    Buried {
        /// What is kept of it.
        letter: &'h DeadLetter,
    },
    /// The broker is reached.
    Connected {
        /// Its URL without a password.
        url: &'h str,
    },
    /// The broker can't be reached.
    CannotConnect {
        /// Its URL without a password.
        url: &'h str,
        /// What went wrong, and what to do about it.
        error: &'h str,
        /// What is done about it.
        next: &'h str,
    },
    /// A further queue is consumed.
    StartedConsuming {
        /// Its name.
        queue: &'h str,
    },
    /// The connection to the broker is lost.
    ConnectionLost {
        /// What went wrong.
        error: &'h str,
    },
    /// The broker could not be reached, and that's it.
    GaveUp {
        /// Why, in whole sentences.
        reason: &'h str,
    },
    /// The worker is ready.
    Ready {
        /// Its name.
        hostname: &'h str,
    },
    /// The pool grows.
    ScalingUp {
        /// By how many.
        processes: usize,
    },
    /// The pool shrinks.
    ScalingDown {
        /// By how many.
        processes: usize,
    },
    /// A process of the pool ended by itself.
    ProcessDied {
        /// Its name.
        name: &'h str,
        /// The process.
        pid: u32,
        /// How.
        status: ExitStatus,
    },
    /// A process of the pool holds too much.
    TooMuchMemory {
        /// The process.
        pid: u32,
        /// What it holds, in KiB.
        resident: u64,
        /// What it may, in KiB.
        limit: u64,
        /// Whether it is killed for it.
        is_killed: bool,
    },
    /// A task holds more memory than it may; the exception is being raised in it.
    SoftMemoryLimit {
        /// The request.
        request: &'h Request,
        /// What it holds, in KiB.
        resident: u64,
        /// What it may, in KiB.
        limit: u64,
    },
    /// Memory is short, or is not any more.
    Pressure {
        /// What is short.
        shortage: Option<Shortage>,
    },
    /// A cold shutdown waits for tasks.
    SoftShutdown {
        /// How long, in seconds.
        seconds: f64,
    },
    /// Remote control did something, or could not.
    Remote {
        /// How important it is.
        level: Level,
        /// The logger that Celery uses for it.
        logger: &'static str,
        /// What happened.
        text: &'h str,
    },
    /// Something the operator should know about the app or its options.
    Notice {
        /// What.
        text: &'h str,
    },
}

impl Happening<'_> {
    /// How important it is.
    pub fn level(&self) -> Level {
        match self {
            Self::Remote { level, .. } => *level,
            Self::TaskAccepted { .. } => Level::Debug,
            Self::TaskReceived { .. }
            | Self::TaskDiscarded { .. }
            | Self::TaskDuplicate { .. }
            | Self::Adopted { .. }
            | Self::AlreadyDone { .. }
            | Self::Connected { .. }
            | Self::StartedConsuming { .. }
            | Self::Ready { .. }
            | Self::ScalingUp { .. }
            | Self::ScalingDown { .. } => Level::Info,
            Self::Pressure { shortage } => {
                if shortage.is_some() {
                    Level::Warning
                } else {
                    Level::Info
                }
            }
            Self::SoftTimeLimit { .. }
            | Self::SoftMemoryLimit { .. }
            | Self::HardTimeLimitRequeued { .. }
            | Self::Interrupted { .. }
            | Self::EndedAtShutdown { .. }
            | Self::SucceededBeforeLoss { .. }
            | Self::LostAndRequeued { .. }
            | Self::LeaseLost { .. }
            | Self::UnknownMessage { .. }
            | Self::ConnectionLost { .. }
            | Self::SoftShutdown { .. }
            | Self::Notice { .. } => Level::Warning,
            Self::TooMuchMemory { is_killed, .. } => {
                if *is_killed {
                    Level::Error
                } else {
                    Level::Warning
                }
            }
            Self::HookFailed { .. }
            | Self::UnknownTask { .. }
            | Self::InvalidTask { .. }
            | Self::CannotConnect { .. }
            | Self::ProcessDied { .. }
            | Self::Buried { .. } => Level::Error,
            Self::Undecodable { .. } | Self::GaveUp { .. } => Level::Critical,
        }
    }

    /// The record of it.
    pub fn record(&self) -> Record {
        let request = self.request();
        Record {
            level: self.level(),
            logger: self.logger(),
            message: self.message(),
            task: request.map(|request| (request.head.id.clone(), request.head.name().into())),
            data: match self {
                Self::TaskReceived { request, .. } => Some(received_data(request)),
                _ => None,
            },
        }
    }

    fn request(&self) -> Option<&Request> {
        match self {
            Self::TaskReceived { request, .. }
            | Self::TaskDiscarded { request, .. }
            | Self::TaskDuplicate { request, .. }
            | Self::TaskAccepted { request, .. }
            | Self::SoftTimeLimit { request, .. }
            | Self::SoftMemoryLimit { request, .. }
            | Self::HardTimeLimitRequeued { request, .. }
            | Self::Interrupted { request }
            | Self::EndedAtShutdown { request }
            | Self::SucceededBeforeLoss { request, .. }
            | Self::LostAndRequeued { request, .. }
            | Self::HookFailed { request, .. }
            | Self::LeaseLost { request }
            | Self::Adopted { request } => Some(request),
            _ => None,
        }
    }

    fn logger(&self) -> &'static str {
        match self {
            Self::TaskReceived { .. } => STRATEGY,
            Self::TaskDiscarded { .. }
            | Self::TaskDuplicate { .. }
            | Self::TaskAccepted { .. }
            | Self::SoftTimeLimit { .. }
            | Self::SoftMemoryLimit { .. }
            | Self::HardTimeLimitRequeued { .. }
            | Self::Interrupted { .. }
            | Self::EndedAtShutdown { .. }
            | Self::SucceededBeforeLoss { .. }
            | Self::LostAndRequeued { .. }
            | Self::HookFailed { .. }
            | Self::LeaseLost { .. }
            | Self::Adopted { .. }
            | Self::AlreadyDone { .. } => REQUEST,
            Self::Undecodable { .. }
            | Self::Buried { .. }
            | Self::UnknownMessage { .. }
            | Self::UnknownTask { .. }
            | Self::InvalidTask { .. }
            | Self::CannotConnect { .. }
            | Self::StartedConsuming { .. }
            | Self::ConnectionLost { .. }
            | Self::GaveUp { .. } => CONSUMER,
            Self::Connected { .. } => CONNECTION,
            Self::Ready { .. } => APPS,
            Self::ScalingUp { .. } | Self::ScalingDown { .. } => AUTOSCALE,
            Self::ProcessDied { .. } | Self::TooMuchMemory { .. } => POOL,
            Self::Pressure { .. } | Self::SoftShutdown { .. } | Self::Notice { .. } => WORKER,
            Self::Remote { logger, .. } => logger,
        }
    }

    fn message(&self) -> String {
        match self {
            Self::TaskReceived { request, format } => received(request, format),
            Self::TaskDiscarded { request, stamp } => {
                let by = stamp.map_or_else(String::new, |stamp| {
                    format!(" (revoked by header: {stamp})")
                });
                format!("Discarding revoked task: {}{by}", request.label())
            }
            Self::TaskDuplicate { request, of } => {
                format!("Discarding duplicate task: {} is as {of}", request.label())
            }
            Self::TaskAccepted { request, pid } => {
                format!("Task accepted: {} pid:{pid}", request.label())
            }
            Self::SoftTimeLimit { request, limit } => {
                format!(
                    "Soft time limit ({limit}s) exceeded for {}",
                    request.label()
                )
            }
            Self::HardTimeLimitRequeued { request, limit } => {
                format!(
                    "Hard time limit ({limit}s) exceeded for {}: it will run again",
                    request.label()
                )
            }
            Self::Interrupted { request } => format!(
                "The shutdown's deadline is over: SoftTimeLimitExceeded is raised in {}",
                request.label()
            ),
            Self::EndedAtShutdown { request } => {
                let left = if request.task.acks_late {
                    "it will run again"
                } else {
                    "it was acknowledged when it began, and is lost"
                };
                format!(
                    "The shutdown's deadline is over: {} is ended; {left}",
                    request.label()
                )
            }
            Self::SucceededBeforeLoss { request, reason } => {
                format!(
                    "Task {} succeeded before the worker was lost: {reason}",
                    request.label()
                )
            }
            Self::LostAndRequeued { request, reason } => {
                format!("Task {} will run again: {reason}", request.label())
            }
            Self::HookFailed {
                request,
                what,
                error,
            } => {
                format!("Task {}: {what} failed: {error}", request.label())
            }
            Self::LeaseLost { request } => format!(
                "The message of task {} was given to another worker: this one gave no sign of \
                 life for too long",
                request.label()
            ),
            Self::Adopted { request } => format!(
                "Task {} goes on: its message came again after its connection was lost",
                request.label()
            ),
            Self::AlreadyDone { task, id } => format!(
                "Task {task}[{id}] is done: its message came again because its connection was lost"
            ),
            Self::Undecodable {
                reason,
                message,
                body,
            } => match message {
                Some(message) => format!(
                    "Can't decode message body: {reason} [type:{} encoding:{} headers:{}]\n\nbody: {}",
                    shown(message.content_type.as_deref()),
                    shown(message.content_encoding.as_deref()),
                    headers(message),
                    dump(body),
                ),
                None => format!("Can't decode message: {reason}\n\nbody: {}", dump(body)),
            },
            Self::UnknownMessage { message } => format!(
                "Received and deleted unknown message.  Wrong destination?!?\n\n\
                 The full contents of the message body was: {}\n",
                report(message)
            ),
            Self::UnknownTask {
                task,
                message,
                kept,
            } => format!(
                "Received unregistered task of type '{task}'.\n\
                 {}\n\n\
                 Did you remember to import the module containing this task?\n\
                 Or maybe you're using relative imports?\n\n\
                 Please see\n\
                 https://docs.celeryq.dev/en/latest/internals/protocol.html\n\
                 for more information.\n\n\
                 The full contents of the message body was:\n{}\n\n\
                 The full contents of the message headers:\n{}\n\n\
                 The delivery info for this task is:\n{}\n",
                kept_for(*kept),
                dump(&message.body),
                headers(message),
                delivery_info(message),
            ),
            Self::InvalidTask { reason, message } => format!(
                "Received invalid task message: {reason}\n\
                 The message has been ignored and discarded.\n\n\
                 Please ensure your message conforms to the task\n\
                 message protocol as described here:\n\
                 https://docs.celeryq.dev/en/latest/internals/protocol.html\n\n\
                 The full contents of the message body was:\n{}\n",
                dump(&message.body)
            ),
            Self::Buried { letter } => format!(
                "{}[{}] is a dead letter now: {} after {} attempts: {} \
                 (celeriac dlq show {})",
                letter.task.as_deref().unwrap_or("A message"),
                letter.id,
                letter.cause,
                letter.attempts,
                letter.reason,
                letter.id,
            ),
            Self::Connected { url } => format!("Connected to {url}"),
            Self::CannotConnect { url, error, next } => {
                format!("consumer: Cannot connect to {url}: {error}.\n{next}\n")
            }
            Self::StartedConsuming { queue } => format!("Started consuming from {queue}"),
            Self::ConnectionLost { error } => format!(
                "consumer: Connection to broker lost. \
                 Trying to re-establish the connection... ({error})"
            ),
            Self::GaveUp { reason } => (*reason).to_owned(),
            Self::Ready { hostname } => format!("{hostname} ready."),
            Self::ScalingUp { processes } => format!("Scaling up {processes} processes."),
            Self::ScalingDown { processes } => format!("Scaling down {processes} processes."),
            Self::ProcessDied { name, pid, status } => {
                format!("Process '{name}' pid:{pid} exited with '{status}'")
            }
            Self::TooMuchMemory {
                pid,
                resident,
                limit,
                is_killed,
            } => {
                let what = if *is_killed { "killed" } else { "exiting" };
                format!(
                    "child process {pid} {what} after exceeding memory limit ({resident}KiB / {limit}KiB)"
                )
            }
            Self::SoftMemoryLimit {
                request,
                resident,
                limit,
            } => format!(
                "Soft memory limit ({limit}KiB) exceeded for {}: {resident}KiB",
                request.label()
            ),
            Self::Pressure {
                shortage: Some(shortage),
            } => format!("Too little memory, no tasks are fetched while one runs: {shortage}"),
            Self::Pressure { shortage: None } => {
                "There is enough memory again: tasks are fetched".to_owned()
            }
            Self::SoftShutdown { seconds } => {
                format!("Initiating Soft Shutdown, terminating in {seconds:?} seconds")
            }
            Self::Notice { text } | Self::Remote { text, .. } => (*text).to_owned(),
        }
    }
}

/// The line for a received task, by Celery's format or the app's own.
fn received(request: &Request, format: &str) -> String {
    if format == "Task %(name)s[%(id)s] received" {
        return format!("Task {} received", request.label());
    }
    let data = received_data(request);
    let mut line = String::new();
    let mut rest = format;
    while let Some((before, after)) = rest.split_once("%(") {
        line.push_str(before);
        let Some((name, after)) = after.split_once(")s") else {
            line.push_str("%(");
            rest = after;
            continue;
        };
        match data.get(name) {
            Some(Value::String(text)) => line.push_str(text),
            Some(Value::Null) | None => line.push_str("None"),
            Some(other) => line.push_str(&other.to_string()),
        }
        rest = after;
    }
    line.push_str(rest);
    line.replace("%%", "%")
}

/// What Celery gives to log handlers with a received task.
fn received_data(request: &Request) -> Map<String, Value> {
    let headers = Object::parse(&request.message.headers).unwrap_or_default();
    let text = |name: &str| {
        headers
            .get(name)
            .and_then(json::as_str)
            .map_or(Value::Null, |text| text.into_owned().into())
    };
    let mut data = Map::new();
    data.insert("id".to_owned(), request.head.id.to_string().into());
    data.insert("name".to_owned(), request.head.name().into());
    data.insert("args".to_owned(), text("argsrepr"));
    data.insert("kwargs".to_owned(), text("kwargsrepr"));
    data.insert("eta".to_owned(), text("eta"));
    data
}

/// Bytes for a log line: the beginning, and how many they are.
fn dump(body: &[u8]) -> String {
    let shown = &body[..body.len().min(BODY_SHOWN)];
    let more = if shown.len() < body.len() { "..." } else { "" };
    format!("{}{more} ({}b)", shown.escape_ascii(), body.len())
}

fn headers(message: &Message) -> &str {
    let mut end = message.headers.len().min(HEADERS_SHOWN);
    while !message.headers.is_char_boundary(end) {
        end -= 1;
    }
    &message.headers[..end]
}

fn shown(text: Option<&str>) -> String {
    text.map_or_else(|| "None".to_owned(), |text| format!("'{text}'"))
}

fn delivery_info(message: &Message) -> String {
    let info = &message.delivery_info;
    format!(
        "{{'exchange': {}, 'routing_key': {}}}",
        shown(info.exchange.as_deref()),
        shown(info.routing_key.as_deref())
    )
}

fn report(message: &Message) -> String {
    format!(
        "body: {}\n{{content_type:{} content_encoding:{}\n  delivery_info:{} headers={}}}\n",
        dump(&message.body),
        shown(message.content_type.as_deref()),
        shown(message.content_encoding.as_deref()),
        delivery_info(message),
        headers(message)
    )
}

/// What becomes of a message whose task is not known.
fn kept_for(time: Option<Duration>) -> String {
    match time {
        Some(time) => format!(
            "The message is kept for {} s: another worker may know the task.",
            time.as_secs()
        ),
        None => "The message has been ignored and discarded.".to_owned(),
    }
}
