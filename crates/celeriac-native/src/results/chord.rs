//! Parts of chords: whoever adds the last one sends the body, or fails it.
//!
//! Celery's counterparts: `celery.backends.redis.RedisBackend.on_chord_part_return` and
//! `celery.backends.base.Backend.chord_error_from_stack`.

use celeriac_core::backend::{ChordPart, Chords};
use celeriac_core::journal::Level;
use celeriac_protocol::{Exception, Signature};
use serde_json::{Value, json};

use super::{Error, Results, State};
use crate::call::{Call, signatures};
use crate::error::Failure;
use crate::sender::Apply;

impl Results {
    /// A call has ended: its chord is told, if it is part of one.
    pub(crate) async fn part_ended(
        &self,
        call: &Call,
        status: &str,
        result: Value,
    ) -> Result<(), Error> {
        let (Some(body), Some(backend)) = (&call.links.chord, self.backend()) else {
            return Ok(());
        };
        let Some(group_id) = &call.request.group else {
            return Ok(());
        };
        if backend.chords() != Chords::Counted {
            // `celery.chord_unlock` looks for it, or there are none.
            return Ok(());
        }
        let part = ChordPart {
            group_id: group_id.clone(),
            task_id: call.request.id.clone(),
            group_index: call.request.group_index,
            status: status.to_owned(),
            result,
        };
        let Some(claim) = backend.chord_part(&part).await? else {
            return Ok(());
        };
        let ended = match &claim.results {
            Ok(results) => self.send_body(call, body, results.clone()).await,
            Err(exception) => self.chord_failed(call, body, exception).await,
        };
        let closed = backend.close_chord(group_id, &claim).await;
        ended.and(closed.map_err(Error::from))
    }

    /// Sends the body of a chord with the results of its parts; fails it when that can't be.
    pub(crate) async fn send_body(
        &self,
        call: &Call,
        body: &Signature,
        results: Vec<Value>,
    ) -> Result<(), Error> {
        // What the body says itself counts.
        let mut options = call.descent(false);
        options.retain(|name, _| body.options.get(name).is_none_or(Value::is_null));
        let with = Apply {
            args: vec![Value::Array(results)],
            options,
            ..Apply::default()
        };
        match self.sender().apply(body, with).await {
            Ok(_) => Ok(()),
            Err(error) => {
                let exception = Exception::celery("ChordError", format!("Callback error: {error}"));
                self.chord_failed(call, body, &exception).await
            }
        }
    }

    /// Fails the body of a chord, with all that follows it.
    pub(crate) async fn chord_failed(
        &self,
        part: &Call,
        body: &Signature,
        exception: &Exception,
    ) -> Result<(), Error> {
        let group = part.request.group.as_deref().unwrap_or_default();
        self.log(part, Level::Error, || {
            format!("Chord '{group}' raised: {exception}")
        });
        let failure = Failure {
            exception: exception.clone(),
            traceback: None,
        };
        let failed = if body.subtask_type.as_deref() == Some("group") {
            self.group_failed(body, &failure).await
        } else {
            let call = Call::of_link(body);
            let errbacks = self.call_errbacks(&call, &call.links.errbacks).await;
            errbacks.and(self.fail_link(&call, &failure).await)
        };
        let chain = signatures(body.options.get("chain"));
        failed.and(self.chain_failed(&chain, &failure, true).await)
    }

    /// Fails all tasks of a group that is the body of a chord; each calls its own errbacks and those
    /// of the group.
    async fn group_failed(&self, body: &Signature, failure: &Failure) -> Result<(), Error> {
        let mut done = Ok(());
        let of_group = signatures(body.options.get("link_error"));
        for task in signatures(body.kwargs.get("tasks")) {
            let (call, mut errbacks) = result_of(&task);
            for errback in &of_group {
                if !errbacks.contains(errback) {
                    errbacks.push(errback.clone());
                }
            }
            done = done.and(self.call_errbacks(&call, &errbacks).await);
            done = done.and(self.fail_link(&call, failure).await);
        }
        let group = Call::of_link(body);
        done.and(self.fail_link(&group, failure).await)
    }

    async fn fail_link(&self, call: &Call, failure: &Failure) -> Result<(), Error> {
        if call.request.id.is_empty() {
            return Ok(());
        }
        let state = State {
            children: Value::Null,
            ..State::failed("FAILURE", failure)
        };
        Ok(self.store(call, state).await?)
    }
}

/// The call whose result is that of a signature, and all errbacks on the way to it: of a chord that
/// of its body, of a chain that of its last task.
fn result_of(signature: &Signature) -> (Call, Vec<Signature>) {
    let mut errbacks = signatures(signature.options.get("link_error"));
    let inner = match signature.subtask_type.as_deref() {
        Some("chord") => signature.kwargs.get("body").cloned(),
        Some("chain") if signature.id().is_none() => {
            let tasks = signature.kwargs.get("tasks").and_then(Value::as_array);
            tasks.and_then(|tasks| tasks.last().cloned())
        }
        _ => None,
    };
    let inner: Option<Signature> = inner.and_then(|inner| serde_json::from_value(inner).ok());
    match inner {
        Some(inner) => {
            let (call, more) = result_of(&inner);
            errbacks.extend(more);
            (call, errbacks)
        }
        None => (Call::of_link(signature), errbacks),
    }
}

/// The exception of a chord one of whose parts has failed.
pub(crate) fn dependency_raised(id: &str, exception: &Exception) -> Exception {
    let shown = crate::trace::shown::exception(exception);
    Exception::celery(
        "ChordError",
        json!(format!("Dependency {id} raised {shown}")),
    )
}
