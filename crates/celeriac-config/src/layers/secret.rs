//! Values as they may be shown.

use std::fmt::Write as _;

use serde_json::{Map, Value};

const MASK: &str = "********";

/// Parts of names whose values are hidden, beside `key`: as `celery.app.utils.HIDDEN_SETTINGS`.
const HIDDEN: &[&str] = &[
    "api",
    "token",
    "secret",
    "pass",
    "signature",
    "private",
    "credential",
];

/// Names with `key` in them that are no secrets.
const NO_KEYS: &[&str] = &["routing_key", "keyprefix", "keyspace"];

/// Tables whose values are environment variables: which of them are secrets nobody knows.
const VARIABLES: &[&str] = &["env", "environment"];

/// A value as JSON, what is secret in it masked. `path` are the names above it.
pub fn shown(path: &[String], value: &Value) -> String {
    masked(path, value).to_string()
}

fn masked(path: &[String], value: &Value) -> Value {
    let is_variable = path[..path.len().saturating_sub(1)]
        .iter()
        .any(|name| VARIABLES.contains(&name.as_str()));
    match value {
        Value::Object(table) => {
            let mut shown = Map::new();
            for (key, value) in table {
                let path: Vec<String> = path.iter().cloned().chain([key.clone()]).collect();
                shown.insert(key.clone(), masked(&path, value));
            }
            shown.into()
        }
        // What is on or off, or a number of seconds, gives nothing away.
        Value::Bool(_) | Value::Null => value.clone(),
        _ if is_variable || path.iter().any(|name| is_hidden(name)) => MASK.into(),
        Value::Array(items) => items.iter().map(|item| masked(path, item)).collect(),
        Value::String(text) => without_passwords(text).into(),
        Value::Number(_) => value.clone(),
    }
}

fn is_hidden(name: &str) -> bool {
    // The name of a task, not of a setting.
    if name.contains('.') {
        return false;
    }
    let name = name.to_lowercase();
    let is_key = name.contains("key") && !NO_KEYS.iter().any(|part| name.contains(part));
    is_key || HIDDEN.iter().any(|part| name.contains(part))
}

/// A text in which the passwords of all URLs are masked.
pub fn without_passwords(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (scheme, after) = rest.split_at(at + "://".len());
        shown.push_str(scheme);
        // A list of URLs is separated by semicolons. A password may hold an `@` that is not
        // quoted: everything up to the last one is masked.
        let end = after.find(';').unwrap_or(after.len());
        let (url, next) = after.split_at(end);
        match url.rsplit_once('@') {
            Some((credentials, address)) => {
                let user = credentials.split_once(':').map_or("", |(user, _)| user);
                // Writing to a `String` can't fail.
                let _ = write!(shown, "{user}:**@{address}");
            }
            None => shown.push_str(url),
        }
        rest = next;
    }
    shown.push_str(rest);
    shown
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn secrets_are_masked_and_the_rest_shown() {
        for (path, value, expected) in [
            (
                &["celery", "broker_url"][..],
                json!("redis://u:pw@h/0"),
                r#""redis://u:**@h/0""#,
            ),
            (
                &["celery", "broker_url"],
                json!(["amqp://u:p@h", "amqp://h"]),
                r#"["amqp://u:**@h","amqp://h"]"#,
            ),
            (&["celery", "redis_password"], json!("pw"), r#""********""#),
            (
                &["celery", "s3_access_key_id"],
                json!("id"),
                r#""********""#,
            ),
            (
                &["celery", "s3_secret_access_key"],
                json!("pw"),
                r#""********""#,
            ),
            (
                &["celery", "security_key"],
                json!("/etc/key"),
                r#""********""#,
            ),
            (
                &["celery", "task_default_routing_key"],
                json!("a"),
                r#""a""#,
            ),
            (
                &["celery", "broker_transport_options"],
                json!({"sentinel_kwargs": {"password": "pw"}, "visibility_timeout": 5}),
                r#"{"sentinel_kwargs":{"password":"********"},"visibility_timeout":5}"#,
            ),
            (
                &["commands", "x", "environment"],
                json!({"A": "pw"}),
                r#"{"A":"********"}"#,
            ),
            (
                &["commands", "x", "environment", "A"],
                json!("pw"),
                r#""********""#,
            ),
            (
                &["celery", "task_routes", "proj.api.mail", "queue"],
                json!("a"),
                r#""a""#,
            ),
            (&["celery", "task_acks_late"], json!(true), "true"),
        ] {
            let path: Vec<String> = path.iter().map(|name| (*name).to_owned()).collect();
            assert_eq!(shown(&path, &value), expected, "{path:?}");
        }
    }

    #[test]
    fn passwords_of_urls_are_masked() {
        for (word, shown) in [
            ("-b", "-b"),
            ("redis://:secret@host/0", "redis://:**@host/0"),
            (
                "--broker=redis://u:se@cret@host",
                "--broker=redis://u:**@host",
            ),
            ("redis://h/0;redis://:b@c/1", "redis://h/0;redis://:**@c/1"),
            ("sqla+sqlite:///file.db", "sqla+sqlite:///file.db"),
        ] {
            assert_eq!(without_passwords(word), shown);
        }
    }
}
