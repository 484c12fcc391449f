//! What becomes of the end of a call: its state is stored, and what follows it is sent or failed.
//!
//! Celery's counterpart: `mark_as_done` and its siblings of `celery.backends.base.Backend`.

mod chain;
mod chord;
mod errbacks;
mod links;
mod store;

use std::fmt;
use std::sync::Arc;

use celeriac_core::Clock;
use celeriac_core::backend::{self, Backend, Meta, Stored, is_ready};
use celeriac_core::journal::{Journal, Level, Record};
use celeriac_protocol::Exception;
use serde_json::{Map, Value, json};

pub(crate) use self::chord::dependency_raised;
use self::store::Store;
use crate::call::Call;
use crate::error::Failure;
use crate::sender::{Sender, Unsent};

/// How results are dealt with: Celery's settings by their names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResultSettings {
    /// `result_extended`: whether name, arguments and more are stored as well.
    pub extended: bool,
    /// `task_inherit_parent_priority`.
    pub inherit_parent_priority: bool,
    /// How often a connection that is lost is tried again before a result is given up; `None`
    /// without end (`result_backend_always_retry`).
    pub retries: Option<u32>,
}

impl Default for ResultSettings {
    /// Celery's defaults; as many attempts as its Redis backend makes.
    fn default() -> Self {
        Self {
            extended: false,
            inherit_parent_priority: false,
            retries: Some(20),
        }
    }
}

/// Stores states of calls and does what follows. Cheap to clone.
#[derive(Clone)]
pub struct Results(Arc<Inner>);

struct Inner {
    backend: Option<Arc<dyn Backend>>,
    store: Option<Store>,
    sender: Arc<dyn Sender>,
    clock: Arc<dyn Clock>,
    journal: Arc<dyn Journal>,
    settings: ResultSettings,
}

/// What went wrong after a task had ended.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The backend.
    #[error("{0}")]
    Backend(#[from] backend::Error),
    /// A call was not sent.
    #[error("{0}")]
    Unsent(#[from] Unsent),
}

/// A state of a call that is to be stored.
#[derive(Debug)]
pub(crate) struct State<'a> {
    pub(crate) status: &'a str,
    pub(crate) result: Value,
    pub(crate) traceback: Option<String>,
    /// Results of the calls that this one has sent; null where nobody knows.
    pub(crate) children: Value,
}

impl Results {
    /// Results that are kept in `backend`, nowhere where there is none. Their writer is spawned on
    /// the runtime that this is called in.
    pub fn new(
        backend: Option<Arc<dyn Backend>>,
        sender: Arc<dyn Sender>,
        clock: Arc<dyn Clock>,
        journal: Arc<dyn Journal>,
        settings: ResultSettings,
    ) -> Self {
        let store = backend.clone().map(|backend| {
            let (store, writer) = Store::new(backend, settings.retries);
            tokio::spawn(writer);
            store
        });
        Self(Arc::new(Inner {
            backend,
            store,
            sender,
            clock,
            journal,
            settings,
        }))
    }

    /// Where results are kept.
    pub fn backend(&self) -> Option<&Arc<dyn Backend>> {
        self.0.backend.as_ref()
    }

    /// What sends calls.
    pub fn sender(&self) -> &Arc<dyn Sender> {
        &self.0.sender
    }

    pub(crate) fn clock(&self) -> &dyn Clock {
        &*self.0.clock
    }

    pub(crate) fn settings(&self) -> &ResultSettings {
        &self.0.settings
    }

    pub(crate) fn writes(&self, level: Level) -> bool {
        self.0.journal.writes(level)
    }

    pub(crate) fn write(&self, record: Record) {
        self.0.journal.write(record);
    }

    /// Writes a line of Celery's tracer about a call.
    pub(crate) fn log(&self, call: &Call, level: Level, message: impl FnOnce() -> String) {
        if self.0.journal.writes(level) {
            let (id, name) = (call.request.id.as_str(), call.name());
            self.0.journal.write(Record {
                task: Some((id.into(), name.into())),
                ..Record::new(level, "celery.app.trace", message())
            });
        }
    }

    /// Stores a state of a call, and waits until it is safe.
    ///
    /// # Errors
    /// When it can't be stored.
    pub(crate) async fn store(&self, call: &Call, state: State<'_>) -> Result<(), backend::Error> {
        match &self.0.store {
            Some(store) => store.stored(self.stored(call, state)).await,
            None => Ok(()),
        }
    }

    /// Stores a state of a call, then tells.
    pub(crate) async fn store_then(
        &self,
        call: &Call,
        state: State<'_>,
        then: impl FnOnce(Result<(), backend::Error>) + Send + 'static,
    ) {
        match &self.0.store {
            Some(store) => store.put(self.stored(call, state), then).await,
            None => then(Ok(())),
        }
    }

    /// A call has failed: that is stored if it `is_stored`, its chord is told, the rest of its chain
    /// fails with it, and its errbacks are sent (`Backend.mark_as_failure`).
    ///
    /// # Errors
    /// When some of it could not be done; the rest was.
    pub async fn failed(
        &self,
        call: &Call,
        failure: &Failure,
        children: Value,
        is_stored: bool,
    ) -> Result<(), Error> {
        let mut done = Ok(());
        if is_stored {
            let state = State {
                children,
                ..State::failed("FAILURE", failure)
            };
            done = self.store(call, state).await.map_err(Error::from);
        }
        let part = self
            .part_ended(call, "FAILURE", exception_value(&failure.exception))
            .await;
        let chain = self
            .chain_failed(&call.links.chain, failure, is_stored)
            .await;
        let errbacks = self.call_errbacks(call, &call.links.errbacks).await;
        done.and(part).and(chain).and(errbacks)
    }

    /// A call was revoked, or has expired: `revoked`, `expired` or `terminated`
    /// (`Backend.mark_as_revoked`).
    ///
    /// # Errors
    /// When some of it could not be done; the rest was.
    pub async fn revoked(&self, call: &Call, reason: &str, is_stored: bool) -> Result<(), Error> {
        let exception = Exception::celery("TaskRevokedError", reason);
        let value = exception_value(&exception);
        let mut done = Ok(());
        if is_stored {
            let state = State {
                status: "REVOKED",
                result: value.clone(),
                traceback: None,
                children: json!([]),
            };
            done = self.store(call, state).await.map_err(Error::from);
        }
        done.and(self.part_ended(call, "REVOKED", value).await)
    }

    /// A call was sent again (`Backend.mark_as_retry`).
    ///
    /// # Errors
    /// When that can't be stored.
    pub async fn retried(
        &self,
        call: &Call,
        failure: Option<&Failure>,
        children: Value,
    ) -> Result<(), Error> {
        let state = match failure {
            Some(failure) => State::failed("RETRY", failure),
            None => State {
                status: "RETRY",
                result: Value::Null,
                traceback: None,
                children: Value::Null,
            },
        };
        Ok(self.store(call, State { children, ..state }).await?)
    }

    /// What is stored of a call; `None` where nothing is.
    ///
    /// # Errors
    /// When the backend does not answer.
    pub async fn meta(&self, id: &str) -> Result<Option<Meta>, backend::Error> {
        let Some(backend) = &self.0.backend else {
            return Ok(None);
        };
        let metas = backend.get(&[id.to_owned()]).await?;
        Ok(metas.into_iter().next().flatten())
    }

    fn stored(&self, call: &Call, state: State<'_>) -> Stored {
        let request = &call.request;
        let extended = if self.0.settings.extended {
            extended(call)
        } else {
            Map::new()
        };
        Stored {
            meta: Meta {
                task_id: request.id.clone(),
                status: state.status.to_owned(),
                result: state.result,
                traceback: state.traceback,
                children: state.children,
                date_done: is_ready(state.status).then(|| self.0.clock.now()),
                group_id: request.group.clone(),
                parent_id: request.parent_id.clone(),
                extended,
            },
            reply_to: request.reply_to.clone(),
            correlation_id: request.correlation_id.clone(),
            expires: call.result_expires,
        }
    }
}

impl<'a> State<'a> {
    fn failed(status: &'a str, failure: &Failure) -> Self {
        Self {
            status,
            result: exception_value(&failure.exception),
            traceback: failure.traceback.clone(),
            children: json!([]),
        }
    }
}

/// An exception as it is stored.
pub(crate) fn exception_value(exception: &Exception) -> Value {
    json!({
        "exc_type": exception.exc_type,
        "exc_message": exception.exc_message,
        "exc_module": exception.exc_module,
    })
}

/// What `result_extended` adds.
fn extended(call: &Call) -> Map<String, Value> {
    let request = &call.request;
    let arguments = call.arguments();
    let queue = Some(&request.routing_key).filter(|key| !key.is_empty());
    let worker = Some(&request.hostname).filter(|name| !name.is_empty());
    let mut members = Map::new();
    for (name, value) in [
        ("name", json!(request.task)),
        ("args", Value::Array(arguments.args)),
        ("kwargs", Value::Object(arguments.kwargs)),
        ("worker", json!(worker)),
        ("retries", json!(request.retries)),
        ("queue", json!(queue)),
    ] {
        members.insert(name.to_owned(), value);
    }
    let carried = &call.carried;
    if !carried.stamps.is_empty() {
        let headers = carried.stamped_headers.clone();
        let stamped = headers.as_array().cloned().unwrap_or_default();
        members.insert("stamped_headers".to_owned(), headers);
        for (name, value) in &carried.stamps {
            if stamped.iter().any(|header| header == name) {
                members.insert(name.clone(), value.clone());
            }
        }
    }
    members
}

impl fmt::Debug for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Results")
            .field("backend", &self.0.backend)
            .field("settings", &self.0.settings)
            .finish_non_exhaustive()
    }
}
