//! Opens a job: its request, and the body of its message, of protocol 2 or 1.
//!
//! Celery's counterparts: `kombu.message.Message.decode` and
//! `celery.worker.strategy.{hybrid_to_proto2, proto1_to_proto2}`.

mod members;

use std::io::Read as _;
use std::sync::Arc;

use bytes::Bytes;
use celeriac_core::pool::{Job, Outcome};
use celeriac_protocol::content::{AcceptContent, display_name};
use celeriac_protocol::{Signature, python};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use self::members::Members;
use crate::arguments::Arguments;
use crate::call::{Call, Links, Source};
use crate::context::Request;

const JSON: &str = "application/json";

/// What is opened.
#[derive(Debug, Clone)]
pub struct Accepts {
    /// The setting `accept_content`.
    pub content: AcceptContent,
    /// The most bytes that a compressed body may become.
    pub most_bytes: u64,
}

impl Default for Accepts {
    /// JSON, up to 256 MiB.
    fn default() -> Self {
        Self {
            content: AcceptContent::new([JSON.to_owned()]),
            most_bytes: 256 * 1024 * 1024,
        }
    }
}

/// Why a job is not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rejection {
    /// The bytes can't be read; with what the decoder said, as Python shows exceptions.
    Undecodable(String),
    /// The bytes can be read, but are not the arguments of a task.
    Invalid(String),
}

impl From<Rejection> for Outcome {
    fn from(rejection: Rejection) -> Self {
        match rejection {
            Rejection::Undecodable(reason) => Self::Undecodable { reason },
            Rejection::Invalid(reason) => Self::Invalid { reason },
        }
    }
}

/// Reads a job.
pub(crate) fn read(job: &Job, accepts: &Accepts) -> Result<(Call, Arguments), Rejection> {
    let Members {
        mut request,
        carried,
        mut compression,
    } = serde_json::from_str(&job.request)
        .map_err(|error| undecodable("DecodeError", &format!("the request: {error}")))?;
    check_content(job, accepts)?;
    let compression = compression.take().filter(|name| !name.is_empty());
    let body = match compression {
        None => job.body.clone(),
        Some(name) => decompress(&job.body, &name, accepts.most_bytes)?,
    };
    let (arguments, embed) = match serde_json::from_slice::<Triple>(&body) {
        Ok(Triple(args, kwargs, embed)) => (Arguments { args, kwargs }, embed.unwrap_or_default()),
        Err(_) => read_anything(&body, &mut request)?,
    };
    if request.task.is_empty() {
        request.task = job.task.to_string();
    }
    if request.id.is_empty() {
        return Err(Rejection::Invalid("the message has no task id".to_owned()));
    }
    let call = Call {
        request: Arc::new(request),
        links: embed.into(),
        carried,
        source: Source::Body(body),
        result_expires: None,
    };
    Ok((call, arguments))
}

/// The arguments in a body that was read before.
pub(crate) fn arguments(body: &[u8]) -> Option<Arguments> {
    let read = serde_json::from_slice::<Triple>(body).map(|Triple(args, kwargs, _)| (args, kwargs));
    let (args, kwargs) = read
        .ok()
        .or_else(|| from_mapping(serde_json::from_slice(body).ok()?).ok())?;
    Some(Arguments { args, kwargs })
}

/// The task that one of `celery.map` and its like calls; `None` where the body does not say.
pub(crate) fn called(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Called {
        task: String,
    }
    #[derive(Deserialize)]
    struct Named {
        task: Called,
    }
    #[derive(Deserialize)]
    struct Parts(IgnoredAny, Named, IgnoredAny);
    let Parts(_, named, _) = serde_json::from_slice(body).ok()?;
    Some(named.task.task)
}

fn check_content(job: &Job, accepts: &Accepts) -> Result<(), Rejection> {
    let content_type = job.content_type.as_deref().unwrap_or_default();
    if content_type != JSON || !accepts.content.allows(Some(JSON)) {
        let why = if accepts.content.allows(Some(content_type)) {
            "untrusted"
        } else {
            "disabled"
        };
        let shown = match content_type {
            "" => "application/data".to_owned(),
            name => display_name(name),
        };
        let remedy = if content_type == JSON {
            "add 'json' to accept_content"
        } else {
            "a task in Rust reads JSON only: send it with serializer='json' (task_serializer)"
        };
        let text = format!("Refusing to deserialize {why} content of type {shown}; {remedy}");
        return Err(undecodable("ContentDisallowed", &text));
    }
    match job.content_encoding.as_deref() {
        None | Some("" | "utf-8" | "utf8" | "UTF-8" | "us-ascii" | "ascii" | "binary") => Ok(()),
        Some(other) => Err(undecodable(
            "DecodeError",
            &format!("the body is in {other}: a task in Rust reads UTF-8 only"),
        )),
    }
}

/// Undoes what kombu calls `zlib` and `gzip` alike: a zlib stream.
fn decompress(body: &[u8], name: &str, most: u64) -> Result<Bytes, Rejection> {
    if !matches!(name, "application/x-gzip" | "gzip" | "zlib") {
        let text = format!(
            "the body is compressed as {name}: a task in Rust reads zlib only (compression='zlib')"
        );
        return Err(undecodable("DecodeError", &text));
    }
    let mut plain = Vec::new();
    flate2::read::ZlibDecoder::new(body)
        .take(most.saturating_add(1))
        .read_to_end(&mut plain)
        .map_err(|error| undecodable("DecodeError", &format!("the compressed body: {error}")))?;
    if plain.len() as u64 > most {
        let text = format!("the compressed body becomes more than {most} bytes");
        return Err(undecodable("DecodeError", &text));
    }
    Ok(plain.into())
}

/// A body that is no well-formed one of protocol 2: one of protocol 1, or what is wrong with it.
fn read_anything(body: &[u8], request: &mut Request) -> Result<(Arguments, Embed), Rejection> {
    let invalid = |text: String| Err(Rejection::Invalid(text));
    let value: Value = serde_json::from_slice(body).map_err(|error| {
        let hint = if has_python_floats(body) {
            "; NaN and Infinity are no JSON, and can't be given to a task in Rust"
        } else {
            ""
        };
        undecodable("DecodeError", &format!("{error}{hint}"))
    })?;
    let parts = match value {
        Value::Object(members) => {
            let embed = embed_of_mapping(&members)?;
            complete(request, &members);
            let (args, kwargs) = from_mapping(members)?;
            return Ok((Arguments { args, kwargs }, embed));
        }
        Value::Array(parts) => parts,
        other => return invalid(format!("the body is of type {}", type_name(&other))),
    };
    match <[Value; 3]>::try_from(parts) {
        Err(parts) => invalid(format!("the body has {} parts instead of 3", parts.len())),
        Ok([args, ..]) if !args.is_array() => invalid("Task arguments must be a list".to_owned()),
        Ok([_, kwargs, _]) if !kwargs.is_object() => {
            invalid("Task keyword arguments must be a mapping".to_owned())
        }
        Ok([_, _, embed]) => match serde_json::from_value::<Embed>(embed) {
            Err(error) => invalid(format!("the options in the body: {error}")),
            Ok(_) => invalid("the body is not that of a task".to_owned()),
        },
    }
}

fn from_mapping(
    mut members: Map<String, Value>,
) -> Result<(Vec<Value>, Map<String, Value>), Rejection> {
    let args = match members.remove("args") {
        None => Vec::new(),
        Some(Value::Array(args)) => args,
        Some(_) => {
            return Err(Rejection::Invalid(
                "Task arguments must be a list".to_owned(),
            ));
        }
    };
    let kwargs = match members.remove("kwargs") {
        None => Map::new(),
        Some(Value::Object(kwargs)) => kwargs,
        Some(_) => {
            let text = "Task keyword arguments must be a mapping";
            return Err(Rejection::Invalid(text.to_owned()));
        }
    };
    Ok((args, kwargs))
}

fn embed_of_mapping(members: &Map<String, Value>) -> Result<Embed, Rejection> {
    let part = |name: &str| {
        (
            name.to_owned(),
            members.get(name).cloned().unwrap_or_default(),
        )
    };
    let embed: Map<_, _> = ["callbacks", "errbacks", "chord"]
        .map(part)
        .into_iter()
        .collect();
    serde_json::from_value(Value::Object(embed))
        .map_err(|error| Rejection::Invalid(format!("the options in the body: {error}")))
}

/// Protocol 1 has in the body what protocol 2 has in headers, which count where both are.
fn complete(request: &mut Request, members: &Map<String, Value>) {
    let text = |name: &str| members.get(name).and_then(Value::as_str).map(str::to_owned);
    if request.id.is_empty() {
        request.id = text("id").unwrap_or_default();
    }
    if request.task.is_empty() {
        request.task = text("task").unwrap_or_default();
    }
    if request.retries == 0 {
        let retries = members.get("retries").and_then(Value::as_u64);
        request.retries = retries.map_or(0, |n| u32::try_from(n).unwrap_or(u32::MAX));
    }
    request.group = request
        .group
        .take()
        .or_else(|| text("taskset"))
        .or_else(|| text("group"));
    request.root_id = request.root_id.take().or_else(|| text("root_id"));
    request.parent_id = request.parent_id.take().or_else(|| text("parent_id"));
}

fn undecodable(class: &str, text: &str) -> Rejection {
    Rejection::Undecodable(format!("{class}({})", python::quoted(text)))
}

fn has_python_floats(body: &[u8]) -> bool {
    let has = |word: &[u8]| body.windows(word.len()).any(|part| part == word);
    has(b"NaN") || has(b"Infinity")
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "NoneType",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float",
        Value::Number(_) => "int",
        Value::String(_) => "str",
        Value::Array(_) => "list",
        Value::Object(_) => "dict",
    }
}

/// A body of protocol 2.
#[derive(Deserialize)]
struct Triple(Vec<Value>, Map<String, Value>, Option<Embed>);

#[derive(Default, Deserialize)]
struct Embed {
    #[serde(default)]
    callbacks: Option<Vec<Signature>>,
    #[serde(default)]
    errbacks: Option<Vec<Signature>>,
    #[serde(default)]
    chain: Option<Vec<Signature>>,
    #[serde(default)]
    chord: Option<Box<Signature>>,
}

impl From<Embed> for Links {
    fn from(embed: Embed) -> Self {
        Self {
            callbacks: embed.callbacks.unwrap_or_default(),
            errbacks: embed.errbacks.unwrap_or_default(),
            chain: embed.chain.unwrap_or_default(),
            chord: embed.chord,
        }
    }
}

#[cfg(test)]
mod tests {
    use celeriac_core::pool::RequestKey;
    use celeriac_protocol::TimeLimits;
    use proptest::prelude::*;

    use super::*;

    fn job(request: &str, body: Vec<u8>) -> Job {
        Job {
            key: RequestKey(1),
            task: "t".into(),
            request: request.to_owned(),
            body: body.into(),
            content_type: Some(JSON.into()),
            content_encoding: Some("utf-8".into()),
            time_limits: TimeLimits::default(),
            wants_result: false,
            wants_exception: false,
        }
    }

    proptest! {
        #[test]
        fn nothing_that_comes_is_too_much(request in ".*", body: Vec<u8>, zlib: bool) {
            let plain = r#"{"id": "1"}"#;
            let compressed = r#"{"id": "1", "compression": "zlib"}"#;
            let known = if zlib { compressed } else { plain };
            let accepts = Accepts::default();
            let _ = read(&job(&request, body.clone()), &accepts);
            let _ = read(&job(known, body), &accepts);
        }

        #[test]
        fn what_looks_like_a_body_is_read_or_told(
            args in "(\\[\\]|\\{\\}|null|7|\\[1\\])", kwargs in "(\\[\\]|\\{\\}|null|\"a\")",
            embed in "(\\{\\}|null|7|\\{\"chain\": (null|7|\\[\\]|\\[7\\])\\})",
        ) {
            let body = format!("[{args}, {kwargs}, {embed}]");
            let is_call = args.starts_with('[') && kwargs == "{}"
                && !embed.contains('7');
            match read(&job(r#"{"id": "1"}"#, body.into_bytes()), &Accepts::default()) {
                Ok((call, arguments)) => {
                    prop_assert!(is_call);
                    // What is read again is the same.
                    prop_assert_eq!(call.arguments(), arguments);
                }
                Err(rejection) => {
                    prop_assert!(!is_call);
                    prop_assert!(matches!(rejection, Rejection::Invalid(_)));
                }
            }
        }
    }
}
