//! The call that takes another one's place. Celery's counterpart: `Task.replace`.

use celeriac_protocol::{Exception, Signature};
use serde_json::{Map, Value, json};

use crate::call::Call;

/// The signature that replaces `call`, with its id, its links, the rest of its chain and its chord.
///
/// # Errors
/// Celery's `ImproperlyConfigured` where it can't.
pub(super) fn replacement(call: &Call, signature: Signature) -> Result<Signature, Exception> {
    if signature.options.contains_key("chord") {
        return Err(improper(
            "A signature replacing a task must not be part of a chord",
        ));
    }
    let (request, links) = (&call.request, &call.links);
    let nesting = json!(call.carried.nesting + 1);
    let mut rest: Vec<Value> = links.chain.iter().rev().map(|task| json!(task)).collect();
    for task in &mut rest {
        set(task, "replaced_task_nesting", nesting.clone());
    }
    let mut whole = json!(raised(signature)?);
    for callback in &links.callbacks {
        link(result_of(&mut whole), "link", json!(callback));
    }
    for errback in &links.errbacks {
        link_error(&mut whole, &json!(errback));
    }
    // The result of the whole is the result of the call.
    set(result_of(&mut whole), "task_id", json!(request.id));
    if kind(&whole) == "chain" {
        for task in tasks_of(&mut whole) {
            set(task, "replaced_task_nesting", nesting.clone());
        }
    }
    if !rest.is_empty() {
        whole = chained(whole, rest);
    }
    for (name, value) in [
        ("chord", json!(links.chord)),
        ("group_id", json!(request.group)),
        ("group_index", json!(request.group_index)),
        ("replaced_task_nesting", nesting),
    ] {
        set(&mut whole, name, value);
    }
    serde_json::from_value(whole).map_err(|error| improper(&format!("the replacement: {error}")))
}

/// The signature with groups made chords, so that their results are one that can be linked to.
fn raised(signature: Signature) -> Result<Signature, Exception> {
    match signature.subtask_type.as_deref() {
        Some("group") => Ok(accumulated(&signature)),
        Some("chain") => {
            let mut chain = signature;
            let tasks = chain.kwargs.get_mut("tasks").and_then(Value::as_array_mut);
            let Some(last) = tasks.and_then(|tasks| tasks.last_mut()) else {
                return Err(improper("Cannot replace with an empty chain"));
            };
            if kind(last) == "group"
                && let Ok(group) = serde_json::from_value(last.clone())
            {
                *last = json!(accumulated(&group));
            }
            Ok(chain)
        }
        _ => Ok(signature),
    }
}

/// A chord of a group and `celery.accumulate`, whose result is the list of the group's.
fn accumulated(group: &Signature) -> Signature {
    let mut index = Map::new();
    index.insert("index".to_owned(), json!(0));
    let body = Signature {
        kwargs: index,
        ..Signature::new("celery.accumulate")
    };
    let mut kwargs = Map::new();
    kwargs.insert("header".to_owned(), json!(group));
    kwargs.insert("body".to_owned(), json!(body));
    kwargs.insert("kwargs".to_owned(), json!({}));
    Signature {
        kwargs,
        subtask_type: Some("chord".to_owned()),
        ..Signature::new("celery.chord")
    }
}

fn kind(signature: &Value) -> &str {
    signature["subtask_type"].as_str().unwrap_or_default()
}

/// The call whose result is that of the whole: a chain's last, a chord's body.
fn result_of(signature: &mut Value) -> &mut Value {
    let kind = kind(signature).to_owned();
    match kind.as_str() {
        "chain" => match signature["kwargs"]["tasks"].as_array().map_or(0, Vec::len) {
            0 => signature,
            length => result_of(&mut signature["kwargs"]["tasks"][length - 1]),
        },
        "chord" if signature["kwargs"]["body"].is_object() => {
            result_of(&mut signature["kwargs"]["body"])
        }
        _ => signature,
    }
}

fn tasks_of(chain: &mut Value) -> impl Iterator<Item = &mut Value> {
    let tasks = chain["kwargs"]["tasks"].as_array_mut();
    tasks.into_iter().flatten()
}

fn set(signature: &mut Value, name: &str, value: Value) {
    if !value.is_null() {
        signature["options"][name] = value;
    }
}

/// Adds a link, unless it is there.
fn link(signature: &mut Value, name: &str, linked: Value) {
    let links = &mut signature["options"][name];
    match links {
        Value::Array(links) if links.contains(&linked) => {}
        Value::Array(links) => links.push(linked),
        Value::Null => *links = json!([linked]),
        one if *one == linked => {}
        one => *one = json!([one.take(), linked]),
    }
}

/// Any part of it that fails, fails the whole.
fn link_error(signature: &mut Value, errback: &Value) {
    match kind(signature) {
        "chain" => {
            for task in tasks_of(signature) {
                link_error(task, errback);
            }
        }
        "chord" => link_error(&mut signature["kwargs"]["body"], errback),
        _ => link(signature, "link_error", errback.clone()),
    }
}

/// The whole, and then the rest of the chain.
fn chained(mut whole: Value, rest: Vec<Value>) -> Value {
    match kind(&whole) {
        "chain" => {
            if let Some(tasks) = whole["kwargs"]["tasks"].as_array_mut() {
                tasks.extend(rest);
            }
            whole
        }
        _ => {
            let mut chain = Signature::new("celery.chain");
            let mut tasks = vec![whole];
            tasks.extend(rest);
            chain.kwargs.insert("tasks".to_owned(), Value::Array(tasks));
            chain.subtask_type = Some("chain".to_owned());
            json!(chain)
        }
    }
}

fn improper(text: &str) -> Exception {
    Exception::celery("ImproperlyConfigured", text)
}
