//! The arguments of a task, as far as a limit counts by them. Only plain JSON is opened.

use std::fmt;

use celeriac_protocol::Message;
use celeriac_protocol::json::Object;
use serde_json::{Map, Value};

/// What a task is called with.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Arguments {
    args: Vec<Value>,
    kwargs: Map<String, Value>,
}

/// Where an argument stands: `args.0`, `kwargs.user_id`, `kwargs.user.id`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Path {
    of: Of,
    steps: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    Args,
    Kwargs,
}

impl Path {
    /// Reads a path. The error says what is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut steps = text.split('.').map(str::to_owned);
        let of = match steps.next().as_deref() {
            Some("args") => Of::Args,
            Some("kwargs") => Of::Kwargs,
            _ => return Err("does not begin with args. or kwargs.".to_owned()),
        };
        let steps: Vec<String> = steps.collect();
        if steps.iter().any(String::is_empty) || steps.is_empty() {
            return Err("names no argument".to_owned());
        }
        if of == Of::Args && steps[0].parse::<usize>().is_err() {
            return Err(format!(
                "counts arguments by {:?}, which is no number",
                steps[0]
            ));
        }
        Ok(Self { of, steps })
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = match self.of {
            Of::Args => "args",
            Of::Kwargs => "kwargs",
        };
        write!(f, "{of}.{}", self.steps.join("."))
    }
}

impl Arguments {
    /// Opens the body of a message; `None` when it is no plain JSON of a task.
    pub(super) fn open(message: &Message) -> Option<Self> {
        let is_json = message.content_type.as_deref() == Some("application/json");
        let headers = Object::parse(&message.headers).ok()?;
        if !is_json || headers.get("compression").is_some() {
            return None;
        }
        let (args, kwargs) = match serde_json::from_slice(&message.body).ok()? {
            // Protocol 2.
            Value::Array(parts) => {
                let mut parts = parts.into_iter();
                (parts.next()?, parts.next()?)
            }
            // Protocol 1.
            Value::Object(mut members) => (
                members.remove("args").unwrap_or_default(),
                members.remove("kwargs").unwrap_or_default(),
            ),
            _ => return None,
        };
        let args = match args {
            Value::Array(args) => args,
            Value::Null => Vec::new(),
            _ => return None,
        };
        let kwargs = match kwargs {
            Value::Object(kwargs) => kwargs,
            Value::Null => Map::new(),
            _ => return None,
        };
        Some(Self { args, kwargs })
    }

    /// All of them, as a text that is the same for the same arguments in whatever order they were
    /// named.
    pub(super) fn all(&self) -> String {
        let kwargs = Value::Object(self.kwargs.clone());
        Value::Array(vec![self.args.clone().into(), kwargs]).to_string()
    }

    /// Some of them, as such a text. What is absent is null.
    pub(super) fn select(&self, paths: &[Path]) -> String {
        let chosen = paths.iter().map(|path| self.at(path));
        Value::Array(chosen.collect()).to_string()
    }

    fn at(&self, path: &Path) -> Value {
        let mut steps = path.steps.iter();
        let first = steps.next().map(String::as_str).unwrap_or_default();
        let mut found = match path.of {
            Of::Args => first.parse().ok().and_then(|at: usize| self.args.get(at)),
            Of::Kwargs => self.kwargs.get(first),
        };
        for step in steps {
            found = found.and_then(|value| match value {
                Value::Array(items) => items.get(step.parse::<usize>().ok()?),
                value => value.get(step),
            });
        }
        found.cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use celeriac_protocol::DeliveryInfo;

    use super::*;

    fn message(headers: &str, body: &str) -> Message {
        Message {
            body: body.to_owned().into(),
            content_type: Some("application/json".into()),
            content_encoding: Some("utf-8".into()),
            headers: headers.into(),
            properties: "{}".into(),
            delivery_info: DeliveryInfo::default(),
        }
    }

    fn paths(texts: &[&str]) -> Vec<Path> {
        texts
            .iter()
            .map(|text| Path::parse(text).unwrap())
            .collect()
    }

    #[test]
    fn arguments_are_found_in_both_protocols() {
        for body in [
            r#"[[1, {"a": ["x"]}], {"user": {"id": 7}, "b": null}, {"callbacks": null}]"#,
            r#"{"args": [1, {"a": ["x"]}], "kwargs": {"b": null, "user": {"id": 7}}}"#,
        ] {
            let arguments = Arguments::open(&message("{}", body)).unwrap();
            let all = paths(&[
                "args.0",
                "args.1.a.0",
                "kwargs.user.id",
                "kwargs.no",
                "args.9.x",
            ]);
            assert_eq!(arguments.select(&all), r#"[1,"x",7,null,null]"#);
            let expected = r#"[[1,{"a":["x"]}],{"b":null,"user":{"id":7}}]"#;
            assert_eq!(arguments.all(), expected);
        }
    }

    #[test]
    fn only_plain_json_is_opened() {
        for (headers, body) in [
            (r#"{"compression": "application/x-gzip"}"#, "[[], {}, {}]"),
            ("{}", "\u{0}"),
            ("{}", "[[]]"),
            ("{}", "[{}, [], {}]"),
            ("{}", "7"),
            ("{}", "[[NaN], {}, {}]"),
        ] {
            assert_eq!(Arguments::open(&message(headers, body)), None, "{body}");
        }
        let mut pickled = message("{}", "[[], {}, {}]");
        pickled.content_type = Some("application/x-python-serialize".into());
        assert_eq!(Arguments::open(&pickled), None);
    }

    #[test]
    fn a_path_that_leads_nowhere_is_refused() {
        for text in [
            "",
            "user_id",
            "kwargs",
            "kwargs.",
            "kwargs.a..b",
            "args.x",
            "args",
        ] {
            assert!(Path::parse(text).is_err(), "{text}");
        }
        assert_eq!(Path::parse("kwargs.a.0").unwrap().to_string(), "kwargs.a.0");
    }
}
