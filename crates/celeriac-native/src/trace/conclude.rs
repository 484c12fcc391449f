//! What the end of a task's own code leads to.

use celeriac_core::journal::Level;
use celeriac_core::pool::{self, Outcome};
use celeriac_protocol::Exception;
use serde_json::Value;

use super::{Running, Tracer, replace, retry, shown};
use crate::call::Call;
use crate::error::{Ending, Failure, Result, Retry, When};
use crate::results::{Error, State};
use crate::sender::{Apply, Unsent};

impl Tracer {
    /// Does what the end of a run asks for, then reports it.
    pub(super) async fn conclude(
        &self,
        running: Running,
        result: Result<Value>,
        children: Vec<Value>,
    ) {
        let options = running.task.options();
        let ending = match result {
            Ok(value) => return self.succeeded(running, value, children).await,
            Err(error) => error.into_ending(),
        };
        let outcome = match ending {
            Ending::Failure(failure) if options.retry.on_error => {
                let retry = Retry {
                    failure: Some(failure),
                    ..Retry::default()
                };
                self.retry(&running, retry, children).await
            }
            Ending::Failure(failure) => self.failed(&running, failure, children).await,
            Ending::Retry(retry) => self.retry(&running, retry, children).await,
            Ending::Ignore => self.ignored(&running.call, "Ignore()"),
            Ending::Reject { reason, requeue } => {
                let exception = Exception {
                    exc_message: vec![reason.into(), requeue.into()],
                    ..Exception::celery("Reject", "")
                };
                let failure = Failure {
                    exception,
                    traceback: None,
                };
                self.rejected(&running.call, requeue, &failure)
            }
            Ending::Replace(signature) => match self.replaced(&running.call, *signature).await {
                Ok(()) => self.ignored(&running.call, "Ignore('Replaced by new task')"),
                Err(failure) => self.failed(&running, failure, children).await,
            },
        };
        running.tell(outcome);
    }

    async fn succeeded(&self, running: Running, value: Value, mut children: Vec<Value>) {
        let call = &running.call;
        match self.results.follow(call, &value).await {
            Ok(more) => children.extend(more),
            Err(error) => {
                let failure = unsent(&error);
                let outcome = self.failed(&running, failure, children).await;
                return running.tell(outcome);
            }
        }
        let runtime = self
            .results
            .clock()
            .monotonic()
            .saturating_sub(running.since);
        let is_shown = running.wants_result || self.results.writes(Level::Info);
        let result = if is_shown {
            shown::result(&value)
        } else {
            String::new()
        };
        let part = call.links.chord.is_some().then(|| value.clone());
        let state = State {
            status: "SUCCESS",
            result: value,
            traceback: None,
            children: Value::Array(children),
        };
        let results = self.results.clone();
        let call = running.call.clone();
        let log = move || {
            results.log(&call, Level::Info, || {
                let (name, id) = (call.name(), &call.request.id);
                let seconds = runtime.as_secs_f64();
                format!("Task {name}[{id}] succeeded in {seconds}s: {result}")
            });
            let runtime = Some(runtime);
            Outcome::Success { runtime, result }
        };
        let results = self.results.clone();
        if let Some(value) = part {
            let call = running.call.clone();
            let done = async {
                if !running.ignores_result {
                    results.store(&call, state).await?;
                }
                results.part_ended(&call, "SUCCESS", value).await
            };
            let done = done.await;
            return running.tell(match done {
                Ok(()) => log(),
                Err(error) => raised(&results, &call, &error),
            });
        }
        if running.ignores_result {
            return running.tell(log());
        }
        // Nobody waits for it here: what stores results tells the pool, of many at once.
        let call = running.call.clone();
        let told = move |stored: std::result::Result<(), _>| {
            let outcome = match stored {
                Ok(()) => log(),
                Err(error) => raised(&results, &running.call, &Error::Backend(error)),
            };
            running.tell(outcome);
        };
        self.results.store_then(&call, state, told).await;
    }

    async fn failed(&self, running: &Running, failure: Failure, children: Vec<Value>) -> Outcome {
        let call = &running.call;
        let options = &running.task.options().celery;
        let is_stored = !running.ignores_result || options.store_errors_even_if_ignored;
        let children = Value::Array(children);
        let done = self
            .results
            .failed(call, &failure, children, is_stored)
            .await;
        if let Err(error) = done {
            return self.raised(call, &error);
        }
        self.results.log(call, Level::Error, || {
            let (name, id) = (call.name(), &call.request.id);
            let exception = shown::exception(&failure.exception);
            let traceback = failure.traceback.as_deref().unwrap_or_default();
            let line = format!("Task {name}[{id}] raised unexpected: {exception}\n{traceback}");
            line.trim_end().to_owned()
        });
        Outcome::Failure(told(&failure))
    }

    async fn retry(&self, running: &Running, retry: Retry, children: Vec<Value>) -> Outcome {
        let call = &running.call;
        let options = running.task.options();
        let verdict = retry::decide(
            call,
            &options.retry,
            running.ignores_result,
            &retry,
            retry::random,
        );
        let (signature, when) = match verdict {
            retry::Verdict::Again(signature, when) => (signature, when),
            retry::Verdict::Failed(failure) => {
                return self.failed(running, failure, children).await;
            }
        };
        // The message first: of a call that is not told to be tried again nothing is lost.
        if let Err(error) = self
            .results
            .sender()
            .apply(&signature, Apply::default())
            .await
        {
            return self.rejected(call, false, &unsent(&error));
        }
        let failure = retry.failure.as_ref();
        let is_stored = !running.ignores_result || options.celery.store_errors_even_if_ignored;
        if is_stored {
            let stored = self
                .results
                .retried(call, failure, Value::Array(children))
                .await;
            if let Err(error) = stored {
                // It runs again all the same, and nobody else may send it once more.
                self.results.log(call, Level::Error, || {
                    let (name, id) = (call.name(), &call.request.id);
                    format!("Task {name}[{id}] is retried, but that could not be stored: {error}")
                });
            }
        }
        self.results.log(call, Level::Info, || {
            let (name, id) = (call.name(), &call.request.id);
            let why = failure.map(|failure| shown::exception(&failure.exception));
            format!("Task {name}[{id}] retry: {}", shown_retry(when, why))
        });
        Outcome::Retry(failure.map_or_else(pool::Failure::default, told))
    }

    async fn replaced(
        &self,
        call: &Call,
        signature: celeriac_protocol::Signature,
    ) -> std::result::Result<(), Failure> {
        let signature = replace::replacement(call, signature).map_err(|exception| Failure {
            exception,
            traceback: None,
        })?;
        let with = Apply {
            options: call.descent(self.results.settings().inherit_parent_priority),
            ..Apply::default()
        };
        let sent = self.results.sender().apply(&signature, with);
        sent.await.map(drop).map_err(|error| unsent(&error))
    }

    fn ignored(&self, call: &Call, exception: &str) -> Outcome {
        self.results.log(call, Level::Info, || {
            format!("Task {}[{}] ignored", call.name(), call.request.id)
        });
        Outcome::Ignore(pool::Failure {
            exception: exception.to_owned(),
            ..pool::Failure::default()
        })
    }

    fn rejected(&self, call: &Call, requeue: bool, failure: &Failure) -> Outcome {
        let failure = told(failure);
        self.results.log(call, Level::Warning, || {
            let (name, id) = (call.name(), &call.request.id);
            format!("Task {name}[{id}] {}", failure.exception)
        });
        Outcome::Reject { requeue, failure }
    }

    /// What follows from the end of a task could not be done.
    pub(super) fn raised(&self, call: &Call, error: &Error) -> Outcome {
        raised(&self.results, call, error)
    }
}

fn raised(results: &crate::results::Results, call: &Call, error: &Error) -> Outcome {
    let class = match error {
        Error::Backend(_) => Exception::celery("BackendStoreError", error.to_string()),
        Error::Unsent(error) => unsent(error).exception,
    };
    let failure = told(&Failure {
        exception: class,
        traceback: None,
    });
    results.log(call, Level::Critical, || {
        let (name, id) = (call.name(), &call.request.id);
        format!("Task {name}[{id}] INTERNAL ERROR: {}", failure.exception)
    });
    Outcome::Raised(failure)
}

/// `Retry in 3s: ValueError('boom')`, as Python shows `celery.exceptions.Retry`.
fn shown_retry(when: When, why: Option<String>) -> String {
    let when = match when {
        When::After(wait) => format!("in {}s", wait.as_secs_f64()),
        When::At(at) => format!("at {at}"),
    };
    match why {
        Some(why) => format!("Retry {when}: {why}"),
        None => format!("Retry {when}"),
    }
}

/// What the pool tells of a failure.
pub(super) fn told(failure: &Failure) -> pool::Failure {
    pool::Failure {
        exception: shown::exception(&failure.exception),
        traceback: failure.traceback.clone(),
        ..pool::Failure::default()
    }
}

/// What a call that was not sent is in Python.
pub(super) fn unsent(error: &Unsent) -> Failure {
    let class = if error.is_operational {
        "OperationalError"
    } else {
        "EncodeError"
    };
    Failure {
        exception: Exception::new("kombu.exceptions", class, error.reason.clone()),
        traceback: None,
    }
}
