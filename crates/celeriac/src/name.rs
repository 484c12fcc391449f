//! Names of tasks that belong to whichever app sends them.

use std::borrow::Cow;

use celeriac_protocol::Signature;
use serde_json::{Map, Value};

/// What stands for the app's name.
const APP: &str = "@.";

/// A task's full name: `@.add` is `proj.add` in the app `proj`.
pub(crate) fn qualify<'n>(task: &'n str, app: &str) -> Cow<'n, str> {
    match task.strip_prefix(APP) {
        Some(rest) => Cow::Owned(format!("{app}.{rest}")),
        None => Cow::Borrowed(task),
    }
}

/// A signature in which all tasks have their full names: its own, those of its links, and those that
/// it is made of.
pub(crate) fn qualified(mut signature: Signature, app: &str) -> Signature {
    if let Cow::Owned(name) = qualify(&signature.task, app) {
        signature.task = name;
    }
    let is_primitive = signature.subtask_type.is_some();
    qualify_members(&mut signature.options, app);
    if is_primitive {
        qualify_members(&mut signature.kwargs, app);
    }
    signature
}

fn qualify_members(members: &mut Map<String, Value>, app: &str) {
    members
        .values_mut()
        .for_each(|value| qualify_all(value, app));
}

fn qualify_all(value: &mut Value, app: &str) {
    match value {
        Value::Array(elements) => elements.iter_mut().for_each(|it| qualify_all(it, app)),
        Value::Object(members) if members.contains_key("task") => {
            if let Ok(signature) = serde_json::from_value::<Signature>(value.clone()) {
                *value = crate::private::argument(qualified(signature, app));
            }
        }
        Value::Object(members) => qualify_members(members, app),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn all_tasks_of_a_signature_get_their_full_names() {
        let leaf = |task: &str| {
            json!({"task": task, "args": ["@.arg"], "kwargs": {}, "options": {},
            "subtask_type": null, "immutable": false})
        };
        let chord = |first: &str, second: &str, body: &str, link: &str| {
            json!({"task": "celery.chord", "args": [],
                "kwargs": {"header": [leaf(first), leaf(second)], "body": leaf(body), "kwargs": {}},
                "options": {"link": [leaf(link)]}, "subtask_type": "chord", "immutable": false})
        };
        let sent = serde_json::from_value(chord("@.add", "py.add", "@.total", "@.log")).unwrap();
        let expected = chord("proj.add", "py.add", "proj.total", "proj.log");
        assert_eq!(
            serde_json::to_value(qualified(sent, "proj")).unwrap(),
            expected
        );
    }
}
