//! Reading the settings of one backend, in the spellings that Celery takes.

use std::time::Duration;

use celeriac_core::backend::{Error, ErrorKind, Settings};
use serde_json::{Map, Value};

/// A setting that is a text.
pub(crate) fn text<'s>(settings: &'s Settings, name: &str) -> Option<&'s str> {
    settings
        .options
        .get(name)
        .and_then(Value::as_str)
        .filter(|text| !text.is_empty())
}

/// A setting that is on or off.
pub(crate) fn flag(settings: &Settings, name: &str) -> bool {
    match settings.options.get(name) {
        Some(Value::Bool(on)) => *on,
        Some(Value::Number(number)) => number.as_f64() != Some(0.0),
        Some(Value::String(text)) => matches!(text.to_lowercase().as_str(), "true" | "1" | "yes"),
        _ => false,
    }
}

/// A setting that is a number.
pub(crate) fn number(settings: &Settings, name: &str) -> Option<f64> {
    as_number(settings.options.get(name)?)
}

/// A setting that is a number of seconds.
pub(crate) fn seconds(settings: &Settings, name: &str) -> Option<Duration> {
    Duration::try_from_secs_f64(number(settings, name)?).ok()
}

/// A setting that holds others.
pub(crate) fn object<'s>(settings: &'s Settings, name: &str) -> Option<&'s Map<String, Value>> {
    settings.options.get(name).and_then(Value::as_object)
}

/// A number, or the text of one.
pub(crate) fn as_number(value: &Value) -> Option<f64> {
    match value {
        Value::String(text) => text.trim().parse().ok(),
        other => other.as_f64(),
    }
}

/// Whole seconds as Celery counts them (`int()`), zero for ever.
pub(crate) fn whole_seconds(span: Option<Duration>) -> u64 {
    span.map_or(0, |span| span.as_secs())
}

/// Something in the URL or the settings makes no sense.
pub(crate) fn invalid(what: &dyn std::fmt::Display) -> Error {
    Error::new(ErrorKind::Configuration, format!("result_backend: {what}"))
}
