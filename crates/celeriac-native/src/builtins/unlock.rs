//! Looks whether all parts of a chord have ended, for backends that do not count them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use celeriac_config::TaskOptions;
use celeriac_core::backend::Meta;
use celeriac_protocol::{Exception, Signature};
use serde_json::Value;

use super::{missing, taken};
use crate::arguments::Arguments;
use crate::call::Call;
use crate::context::{Context, Request};
use crate::error::{Ending, Error, Failure, Result, Retry, When};
use crate::results::{Results, dependency_raised};
use crate::retry::RetryPolicy;
use crate::task::{Options, Task};
use crate::trace::shown;

/// `celery.chord_unlock`.
pub(super) struct ChordUnlock {
    results: Results,
    options: Options,
}

impl ChordUnlock {
    pub(super) fn new(results: Results, interval: Duration) -> Self {
        Self {
            results,
            options: Options {
                celery: TaskOptions {
                    ignore_result: true,
                    max_retries: None,
                    ..TaskOptions::default()
                },
                retry: RetryPolicy {
                    max_retries: None,
                    delay: interval,
                    ..RetryPolicy::default()
                },
                ..Options::default()
            },
        }
    }

    /// It is looked again later; where that is not allowed any more, the chord has failed.
    async fn again(
        &self,
        call: &Call,
        body: &Signature,
        interval: Option<Duration>,
        most: Option<u32>,
        failure: Option<Failure>,
    ) -> Result<Value> {
        if most.is_some_and(|most| call.request.retries >= most) {
            let cause = match &failure {
                Some(failure) => shown::exception(&failure.exception),
                None => "MaxRetriesExceededError()".to_owned(),
            };
            let text = format!("chord_unlock could not be retried: {cause}");
            let exception = Exception::celery("ChordError", text);
            self.results.chord_failed(call, body, &exception).await?;
            return Err(exception.into());
        }
        Err(Error::new(Ending::Retry(Retry {
            failure,
            when: interval.map(When::After),
            max_retries: Some(most),
            ..Retry::default()
        })))
    }
}

#[async_trait]
impl Task for ChordUnlock {
    fn name(&self) -> &'static str {
        "celery.chord_unlock"
    }

    fn options(&self) -> &Options {
        &self.options
    }

    async fn run(&self, context: Context, mut arguments: Arguments) -> Result<Value> {
        const NAME: &str = "unlock_chord";
        let mut take = |at, name| taken(&mut arguments, at, name).filter(|value| !value.is_null());
        let group = take(0, "group_id").ok_or_else(|| missing(NAME, "group_id"))?;
        let body = take(1, "callback").ok_or_else(|| missing(NAME, "callback"))?;
        let interval = take(2, "interval").and_then(|value| value.as_f64());
        let interval = interval.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let most = take(3, "max_retries").and_then(|value| value.as_u64());
        let most = most.map(|most| u32::try_from(most).unwrap_or(u32::MAX));
        let parts = take(4, "result").ok_or_else(|| missing(NAME, "result"))?;
        let body: Signature = serde_json::from_value(body)?;
        let parts: Vec<Part> = match &parts {
            Value::Array(tuples) => tuples.iter().map(Part::read).collect::<Result<_>>()?,
            _ => return Err(Exception::builtin("TypeError", "the parts are no list").into()),
        };
        let call = Call {
            request: Arc::new(Request {
                group: group.as_str().map(str::to_owned),
                ..context.request().clone()
            }),
            ..Call::default()
        };
        let Some(backend) = self.results.backend() else {
            let text = "there is no result backend that knows of the chord's parts";
            return Err(Exception::builtin("NotImplementedError", text).into());
        };
        let mut ids = Vec::new();
        for part in &parts {
            part.collect(&mut ids);
        }
        let metas = match backend.get(&ids).await {
            Ok(metas) => metas,
            Err(error) => {
                let exception = Exception::celery("BackendGetMetaError", error.to_string());
                let failure = Failure {
                    exception,
                    traceback: None,
                };
                return self
                    .again(&call, &body, interval, most, Some(failure))
                    .await;
            }
        };
        let ready: HashMap<String, Meta> = metas
            .into_iter()
            .flatten()
            .filter(Meta::is_ready)
            .map(|meta| (meta.task_id.clone(), meta))
            .collect();
        if !ids.iter().all(|id| ready.contains_key(id)) {
            return self.again(&call, &body, interval, most, None).await;
        }
        let values: std::result::Result<Vec<_>, _> =
            parts.iter().map(|part| part.value(&ready)).collect();
        match values {
            Ok(values) => self.results.send_body(&call, &body, values).await?,
            Err(exception) => self.results.chord_failed(&call, &body, &exception).await?,
        }
        Ok(Value::Null)
    }
}

/// A part of a chord: a call, or a group of them.
enum Part {
    Task(String),
    Group(Vec<Self>),
}

impl Part {
    /// Of `AsyncResult.as_tuple()` or `GroupResult.as_tuple()`.
    fn read(tuple: &Value) -> Result<Self> {
        if let Some(members) = tuple[1].as_array() {
            let members = members.iter().map(Self::read).collect::<Result<_>>()?;
            return Ok(Self::Group(members));
        }
        let id = tuple[0][0]
            .as_str()
            .or_else(|| tuple[0].as_str())
            .or_else(|| tuple.as_str());
        let wrong = || Exception::builtin("ValueError", format!("{tuple} is no result of a task"));
        Ok(Self::Task(id.ok_or_else(wrong)?.to_owned()))
    }

    fn collect(&self, ids: &mut Vec<String>) {
        match self {
            Self::Task(id) => ids.push(id.clone()),
            Self::Group(members) => {
                for member in members {
                    member.collect(ids);
                }
            }
        }
    }

    fn value(&self, ready: &HashMap<String, Meta>) -> std::result::Result<Value, Exception> {
        match self {
            Self::Group(members) => members.iter().map(|member| member.value(ready)).collect(),
            Self::Task(id) => match ready.get(id) {
                Some(meta) if meta.status == "SUCCESS" => Ok(meta.result.clone()),
                meta => {
                    let exception = meta.and_then(Meta::exception);
                    let unknown = || Exception::builtin("Exception", "");
                    Err(dependency_raised(id, &exception.unwrap_or_else(unknown)))
                }
            },
        }
    }
}
