//! The message that a call is tried again with. Celery's counterpart: `Task.retry` and
//! `Task.signature_from_request`.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};

use celeriac_protocol::{Exception, Signature, python};
use serde_json::{Map, Value, json};

use crate::arguments::Arguments;
use crate::call::Call;
use crate::error::{Failure, Retry, When};
use crate::retry::RetryPolicy;

/// Whether and how a call is tried again.
#[derive(Debug, PartialEq)]
pub(super) enum Verdict {
    /// With this message, after this.
    Again(Box<Signature>, When),
    /// It was tried too often: it has failed with this.
    Failed(Failure),
}

/// Decides. `random` gives numbers from 0 to below 1.
pub(super) fn decide(
    call: &Call,
    policy: &RetryPolicy,
    ignores_result: bool,
    retry: &Retry,
    random: impl FnMut() -> f64,
) -> Verdict {
    let request = &call.request;
    let arguments = match &retry.arguments {
        Some(arguments) => arguments.clone(),
        None => call.arguments(),
    };
    let most = retry.max_retries.unwrap_or(policy.max_retries);
    if most.is_some_and(|most| request.retries >= most) {
        return Verdict::Failed(match &retry.failure {
            Some(failure) => failure.clone(),
            None => too_often(call, &arguments),
        });
    }
    let when = match retry.when {
        Some(when) => when,
        None => When::After(policy.wait(request.retries, random)),
    };
    let mut options = execution_options(call);
    options.insert("ignore_result".to_owned(), json!(ignores_result));
    options.insert(
        "retries".to_owned(),
        json!(request.retries.saturating_add(1)),
    );
    let (name, value) = match when {
        When::After(wait) => ("countdown", json!(wait.as_secs_f64())),
        When::At(at) => ("eta", json!(at.to_string())),
    };
    options.insert(name.to_owned(), value);
    options.extend(destination(call));
    let signature = Signature {
        args: arguments.args,
        kwargs: arguments.kwargs,
        options,
        ..Signature::new(request.task.clone())
    };
    Verdict::Again(Box::new(signature), when)
}

fn too_often(call: &Call, arguments: &Arguments) -> Failure {
    let request = &call.request;
    let args = python::repr(&Value::Array(arguments.args.clone()));
    let kwargs = python::repr(&Value::Object(arguments.kwargs.clone()));
    let text = format!(
        "Can't retry {}[{}] args:{args} kwargs:{kwargs}",
        request.task, request.id
    );
    Failure {
        exception: Exception::celery("MaxRetriesExceededError", text),
        traceback: None,
    }
}

/// What makes another message one of the same call (`Context.as_execution_options`).
fn execution_options(call: &Call) -> Map<String, Value> {
    let (request, links, carried) = (&call.request, &call.links, &call.carried);
    let list = |signatures: &[Signature]| (!signatures.is_empty()).then(|| json!(signatures));
    let nesting = (carried.nesting > 0).then_some(carried.nesting);
    let headers = (!request.headers.is_empty()).then(|| json!(request.headers));
    let mut options = Map::new();
    for (name, value) in [
        ("task_id", json!(request.id)),
        ("root_id", json!(request.root_id)),
        ("parent_id", json!(request.parent_id)),
        ("group_id", json!(request.group)),
        ("group_index", json!(request.group_index)),
        ("shadow", json!(carried.shadow)),
        ("chord", json!(links.chord)),
        ("chain", json!(list(&links.chain))),
        ("link", json!(list(&links.callbacks))),
        ("link_error", json!(list(&links.errbacks))),
        ("expires", carried.expires.clone()),
        ("soft_time_limit", carried.soft_time_limit.clone()),
        ("time_limit", carried.time_limit.clone()),
        ("headers", json!(headers)),
        ("reply_to", json!(request.reply_to)),
        ("replaced_task_nesting", json!(nesting)),
        ("origin", json!(carried.origin)),
    ] {
        if !value.is_null() {
            options.insert(name.to_owned(), value);
        }
    }
    if !carried.stamps.is_empty() && carried.stamped_headers.is_array() {
        options.extend(carried.stamps.clone());
        options.insert(
            "stamped_headers".to_owned(),
            carried.stamped_headers.clone(),
        );
    }
    options
}

/// Where the call's own message had been sent to.
fn destination(call: &Call) -> Map<String, Value> {
    let request = &call.request;
    let mut options = Map::new();
    let mut set = |name: &str, value: Value| drop(options.insert(name.to_owned(), value));
    if let Some(priority) = request.priority {
        set("priority", json!(priority));
    }
    if !request.exchange.is_empty() {
        set("exchange", json!(request.exchange));
        set("routing_key", json!(request.routing_key));
    } else if !request.routing_key.is_empty() {
        set("queue", json!(request.routing_key));
    }
    options
}

/// A number from 0 to below 1, from the keys that the standard library seeds its hashers with.
pub(super) fn random() -> f64 {
    let bits = RandomState::new().build_hasher().finish();
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}
