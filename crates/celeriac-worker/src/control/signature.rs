//! The arguments of commands, and what Python says when they are wrong.
//!
//! Celery's counterparts: the signatures of the handlers in `celery.worker.control`.

use serde_json::{Map, Value};

use super::python;

/// What a handler takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signature {
    /// The handler's name, which is not always the command's.
    pub name: &'static str,
    required: &'static [&'static str],
    /// `None` when it takes whatever else comes.
    optional: Option<&'static [&'static str]>,
}

const fn open(name: &'static str, required: &'static [&'static str]) -> Signature {
    Signature {
        name,
        required,
        optional: None,
    }
}

const fn closed(name: &'static str, optional: &'static [&'static str]) -> Signature {
    Signature {
        name,
        required: &[],
        optional: Some(optional),
    }
}

/// The commands that the worker carries out itself. All others are main's.
pub const SIGNATURES: &[Signature] = &[
    open("active", &[]),
    closed("active_queues", &[]),
    open("add_consumer", &["queue"]),
    closed("autoscale", &["max", "min", "pool"]),
    open("cancel_consumer", &["queue"]),
    open("clock", &[]),
    closed("disable_events", &[]),
    open("election", &["id", "topic"]),
    closed("enable_events", &[]),
    closed("heartbeat", &[]),
    open("hello", &["from_node"]),
    open("ping", &[]),
    open("pool_grow", &[]),
    open("pool_shrink", &[]),
    open("query_task", &["ids"]),
    open("rate_limit", &["task_name", "rate_limit"]),
    open("registered", &[]),
    open("reserved", &[]),
    open("revoke", &["task_id"]),
    open("revoke_by_stamped_headers", &["headers"]),
    open("revoked", &[]),
    open("scheduled", &[]),
    open("shutdown", &[]),
    open("stats", &[]),
    open("terminate", &["signal", "task_id"]),
    open("time_limit", &[]),
];

/// Other names of commands.
const ALIASES: &[(&str, &str)] = &[
    ("dump_active", "active"),
    ("dump_reserved", "reserved"),
    ("dump_revoked", "revoked"),
    ("dump_schedule", "scheduled"),
    ("dump_tasks", "registered"),
];

/// The command that a name, or an alias, stands for; `None` for main's.
pub fn find(method: &str) -> Option<Signature> {
    let name = ALIASES
        .iter()
        .find(|(alias, _)| *alias == method)
        .map_or(method, |(_, name)| name);
    SIGNATURES
        .iter()
        .copied()
        .find(|signature| signature.name == name)
}

impl Signature {
    /// Checks the names of arguments.
    ///
    /// # Errors
    /// With Python's representation of the `TypeError` that calling the handler would raise.
    pub fn check(&self, arguments: &Map<String, Value>) -> Result<(), String> {
        let error = |text: String| Err(format!("TypeError({})", python::quoted(&text)));
        let name = self.name;
        if let Some(optional) = self.optional {
            let unknown = arguments
                .keys()
                .find(|argument| !optional.contains(&argument.as_str()));
            if let Some(unknown) = unknown {
                return error(format!(
                    "{name}() got an unexpected keyword argument '{unknown}'"
                ));
            }
        }
        let missing: Vec<String> = self
            .required
            .iter()
            .filter(|required| !arguments.contains_key(**required))
            .map(|required| format!("'{required}'"))
            .collect();
        match &missing[..] {
            [] => Ok(()),
            [one] => error(format!(
                "{name}() missing 1 required positional argument: {one}"
            )),
            [first, second] => error(format!(
                "{name}() missing 2 required positional arguments: {first} and {second}"
            )),
            more => error(format!(
                "{name}() missing {} required positional arguments: {}",
                more.len(),
                more.join(", ")
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(method: &str, arguments: &Value) -> Result<(), String> {
        find(method).unwrap().check(arguments.as_object().unwrap())
    }

    #[test]
    fn errors_are_pythons() {
        assert_eq!(check("ping", &json!({"more": 1})), Ok(()));
        assert_eq!(check("dump_active", &json!({"safe": true})), Ok(()));
        for (method, arguments, error) in [
            (
                "revoke",
                json!({}),
                r#"TypeError("revoke() missing 1 required positional argument: 'task_id'")"#,
            ),
            (
                "rate_limit",
                json!({}),
                r#"TypeError("rate_limit() missing 2 required positional arguments: 'task_name' and 'rate_limit'")"#,
            ),
            (
                "enable_events",
                json!({"x": 1}),
                r#"TypeError("enable_events() got an unexpected keyword argument 'x'")"#,
            ),
        ] {
            assert_eq!(check(method, &arguments), Err(error.to_owned()));
        }
        assert_eq!(find("conf"), None, "that is main's");
    }
}
