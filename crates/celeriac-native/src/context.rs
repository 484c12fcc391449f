//! What a task is told of its call, and what it may ask of the worker meanwhile. Celery's
//! counterpart: `celery.app.task.Context`, the `request` of a bound task.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use celeriac_core::journal::{Level, Record};
use celeriac_protocol::{Exception, Signature};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::cancellation::Cancellation;
use crate::error::Result;

/// A call that runs. Cheap to clone.
#[derive(Clone)]
pub struct Context {
    request: Arc<Request>,
    cancellation: Cancellation,
    worker: Arc<dyn Worker>,
}

/// A call as its message describes it, by Celery's names.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Request {
    /// The call's id.
    pub id: String,
    /// The task's name.
    pub task: String,
    /// How often it was retried before.
    pub retries: u32,
    /// The id of the call that all began with.
    pub root_id: Option<String>,
    /// The id of the call that has sent this one.
    pub parent_id: Option<String>,
    /// The group that it belongs to.
    pub group: Option<String>,
    /// Its place in the group.
    pub group_index: Option<u64>,
    /// Where its result is awaited, for backends that ask.
    pub reply_to: Option<String>,
    /// The property `correlation_id`.
    pub correlation_id: Option<String>,
    /// Whether it was delivered before.
    pub redelivered: bool,
    /// The exchange that it was sent to.
    pub exchange: String,
    /// The routing key that it was sent with: the queue's name on the default exchange.
    pub routing_key: String,
    /// Its priority.
    pub priority: Option<u8>,
    /// The worker's node name.
    pub hostname: String,
    /// Whether its result is not stored.
    pub ignore_result: bool,
    /// Headers of its message that are not Celery's own (`request.headers`).
    pub headers: Map<String, Value>,
}

/// What a task may ask of the worker that runs it.
#[async_trait]
pub trait Worker: Send + Sync {
    /// Stores a state of the call with what describes it (`Task.update_state`).
    async fn update_state(&self, request: &Request, state: &str, meta: Value) -> Result<()>;

    /// Sends a call, which becomes a child of this one; answers with its id.
    async fn send(&self, request: &Request, signature: Signature) -> Result<String>;

    /// Whether records of this level are written.
    fn writes(&self, level: Level) -> bool;

    /// Writes a record down.
    fn write(&self, record: Record);
}

impl Context {
    /// A call that a worker runs.
    pub fn new(request: Arc<Request>, cancellation: Cancellation, worker: Arc<dyn Worker>) -> Self {
        Self {
            request,
            cancellation,
            worker,
        }
    }

    /// The call.
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// The call's id.
    pub fn id(&self) -> &str {
        &self.request.id
    }

    /// How often it was retried before.
    pub fn retries(&self) -> u32 {
        self.request.retries
    }

    /// Tells when the task is to end.
    pub fn cancellation(&self) -> Cancellation {
        self.cancellation.clone()
    }

    /// Stores the state `PROGRESS` with this description, which `AsyncResult.info` shows.
    ///
    /// # Errors
    /// When it can't be stored, or is no JSON.
    pub async fn progress(&self, meta: impl Serialize + Send) -> Result<()> {
        self.update_state("PROGRESS", meta).await
    }

    /// Stores a state of the task's own with its description.
    ///
    /// # Errors
    /// When it can't be stored, or is no JSON.
    pub async fn update_state(&self, state: &str, meta: impl Serialize + Send) -> Result<()> {
        let meta = serde_json::to_value(meta).map_err(|error| {
            Exception::builtin(
                "TypeError",
                format!("the state {state} is no JSON: {error}"),
            )
        })?;
        self.worker.update_state(&self.request, state, meta).await
    }

    /// Sends a call, which becomes a child of this one; answers with its id.
    ///
    /// # Errors
    /// When the broker does not take it.
    pub async fn send(&self, signature: Signature) -> Result<String> {
        self.worker.send(&self.request, signature).await
    }

    /// Writes a line to the worker's log, as Celery's task logger does.
    pub fn log(&self, level: Level, message: impl Into<String>) {
        if !self.worker.writes(level) {
            return;
        }
        let request = &self.request;
        self.worker.write(Record {
            task: Some((request.id.as_str().into(), request.task.as_str().into())),
            ..Record::new(level, "celery.task", message)
        });
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("request", &self.request)
            .finish_non_exhaustive()
    }
}
