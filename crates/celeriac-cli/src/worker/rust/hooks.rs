//! What main does for a Python app, for tasks in Rust: results of tasks that could not report for
//! themselves. There are no receivers of signals and no steps.

use std::future::Future;
use std::sync::Arc;

use celeriac_client::{Apply, Client};
use celeriac_core::backend::{Backend, Meta, Stored};
use celeriac_core::clock::Clock;
use celeriac_core::pool::{Job, RequestKey};
use celeriac_native::body::Accepts;
use celeriac_native::error::Failure;
use celeriac_native::{Call, Results};
use celeriac_protocol::{Exception, Message, TimeLimits, request};
use celeriac_worker::hooks::{Answer, HookCall, Hooks};
use serde_json::{Value, json};

use super::describe;

/// States in which a task has not begun (`celery.worker.control._revoke`).
const NOT_BEGUN: [&str; 4] = ["PENDING", "RECEIVED", "RETRY", "REJECTED"];

/// Hooks of tasks in Rust.
pub(in crate::worker) struct NativeHooks(pub(in crate::worker) Arc<Parts>);

/// What they work with.
pub(in crate::worker) struct Parts {
    pub(in crate::worker) results: Results,
    pub(in crate::worker) client: Client,
    pub(in crate::worker) clock: Arc<dyn Clock>,
    pub(in crate::worker) hostname: String,
}

impl Hooks for NativeHooks {
    fn call(&self, call: HookCall) -> Answer {
        let answer = self.begin(call);
        Box::pin(async {
            let answered = tokio::spawn(answer).await;
            answered.unwrap_or_else(|error| Err(error.to_string()))
        })
    }

    fn tell(&self, call: HookCall) {
        let answer = self.begin(call);
        tokio::spawn(async move {
            if let Err(reason) = answer.await {
                tracing::error!(target: "celery.worker", "Hook failed: {reason}");
            }
        });
    }
}

impl NativeHooks {
    fn begin(&self, call: HookCall) -> impl Future<Output = Result<Value, String>> + 'static {
        let parts = Arc::clone(&self.0);
        async move { parts.carry_out(call).await }
    }
}

impl Parts {
    async fn carry_out(&self, call: HookCall) -> Result<Value, String> {
        let hostname = &self.hostname;
        match call {
            HookCall::TaskUnknown { message, task, id } if id.is_some() => {
                let exception = Exception::celery("NotRegistered", task);
                self.failed(&message, exception).await
            }
            HookCall::TaskRevoked {
                message, reason, ..
            } => {
                let call = read(&message, hostname)?;
                let is_stored = !call.request.ignore_result;
                let revoked = self.results.revoked(&call, reason, is_stored).await;
                revoked
                    .map(|()| Value::Null)
                    .map_err(|error| error.to_string())
            }
            HookCall::SuccessWasStored(message) => {
                let call = read(&message, hostname)?;
                let meta = self.meta(&call.request.id).await?;
                Ok(meta.is_some_and(|meta| meta.status == "SUCCESS").into())
            }
            // A task in Rust is lost with its whole worker; what is retried then comes again itself.
            HookCall::RetryLost { .. } => Ok(false.into()),
            HookCall::Lost {
                message,
                reason,
                requeues: false,
                ..
            } => {
                let exception = Exception::new("billiard.exceptions", "WorkerLostError", reason);
                self.failed(&message, exception).await
            }
            HookCall::TimedOut { message, limit, .. } => {
                let call = read(&message, hostname)?;
                let (name, id) = (call.name(), &call.request.id);
                tracing::error!(
                    target: "celery.worker.request",
                    "Hard time limit ({limit}s) exceeded for {name}[{id}]"
                );
                let exception = Exception::new("billiard.exceptions", "TimeLimitExceeded", limit);
                self.failed(&message, exception).await
            }
            HookCall::Rejected { message, failure } => {
                let exception = Exception::celery("Reject", failure.exception);
                self.failed(&message, exception).await
            }
            HookCall::Raised { message, failure } => {
                let exception = Exception::builtin("RuntimeError", failure.exception);
                self.failed(&message, exception).await
            }
            HookCall::Cancelled {
                message,
                emit_retry: true,
            } => {
                let call = read(&message, hostname)?;
                let retried = self.results.retried(&call, None, Value::Null).await;
                retried
                    .map(|()| Value::Null)
                    .map_err(|error| error.to_string())
            }
            HookCall::MarkRevoked { ids, .. } => self.mark_revoked(ids).await,
            HookCall::SelectQueue { queue, .. } => Ok(describe::queue(&queue)),
            HookCall::CallTask { action } => {
                let signature =
                    serde_json::from_value(action).map_err(|error| error.to_string())?;
                let sent = self.client.apply(&signature, Apply::default()).await;
                sent.map(|_| Value::Null).map_err(|error| error.to_string())
            }
            HookCall::OpenV1(_) => Err(
                "a worker without Python opens nothing but JSON: set task_serializer to json"
                    .to_owned(),
            ),
            HookCall::ControlOpen(_) => {
                Err("a worker without Python hears commands in JSON only".to_owned())
            }
            HookCall::ControlCommand { method, .. } => Err(format!("KeyError('{method}')")),
            HookCall::EncodeReply(value) | HookCall::EncodeEvent(value) => Ok(value),
            _ => Ok(Value::Null),
        }
    }

    /// Stores that a task has failed, and does what follows.
    async fn failed(&self, message: &Message, exception: Exception) -> Result<Value, String> {
        let call = read(message, &self.hostname)?;
        let failure = Failure {
            exception,
            traceback: None,
        };
        let is_stored = !call.request.ignore_result;
        let failed = self.results.failed(&call, &failure, Value::Null, is_stored);
        failed
            .await
            .map(|()| Value::Null)
            .map_err(|error| error.to_string())
    }

    async fn meta(&self, id: &str) -> Result<Option<Meta>, String> {
        let Some(backend) = self.results.backend() else {
            return Ok(None);
        };
        let found = backend.get(&[id.to_owned()]).await;
        let found = found.map_err(|error| error.to_string())?;
        Ok(found.into_iter().next().flatten())
    }

    /// Stores that tasks are revoked, unless they have begun elsewhere or have a result.
    async fn mark_revoked(&self, ids: Vec<String>) -> Result<Value, String> {
        let Some(backend) = self.results.backend() else {
            return Ok(Value::Null);
        };
        let known = backend.get(&ids).await.map_err(|error| error.to_string())?;
        let is_open = |meta: &Option<Meta>| {
            meta.as_ref()
                .is_none_or(|meta| NOT_BEGUN.contains(&&*meta.status))
        };
        let open = ids.into_iter().zip(known).filter(|(_, meta)| is_open(meta));
        let exception = Exception::celery("TaskRevokedError", "revoked");
        let result = serde_json::to_value(exception).unwrap_or_default();
        let revoked: Vec<Stored> = open
            .map(|(task_id, _)| Stored {
                meta: Meta {
                    task_id,
                    status: "REVOKED".to_owned(),
                    result: result.clone(),
                    date_done: Some(self.clock.now()),
                    ..Meta::default()
                },
                reply_to: None,
                correlation_id: None,
                expires: None,
            })
            .collect();
        store(&**backend, &revoked).await.map(|()| Value::Null)
    }
}

async fn store(backend: &dyn Backend, states: &[Stored]) -> Result<(), String> {
    backend
        .store(states)
        .await
        .map_err(|error| error.to_string())
}

/// A message as the call that it is.
fn read(message: &Message, hostname: &str) -> Result<Call, String> {
    let headers = celeriac_protocol::json::Object::parse(&message.headers).unwrap_or_default();
    let task = headers
        .get("task")
        .and_then(celeriac_protocol::json::as_str);
    let job = Job {
        key: RequestKey(0),
        task: task.unwrap_or_default().into_owned().into(),
        request: request::to_json(message, hostname),
        body: message.body.clone(),
        content_type: message.content_type.clone(),
        content_encoding: message.content_encoding.clone(),
        time_limits: TimeLimits::default(),
        wants_result: false,
        wants_exception: false,
    };
    let read = Call::read(&job, &Accepts::default());
    read.map(|(call, _)| call)
        .map_err(|rejection| json!(format!("{rejection:?}")).to_string())
}
