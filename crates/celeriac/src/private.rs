//! What the attributes' code uses. Not part of the interface.

pub use celeriac_native::arguments::{Parameter, read};
pub use serde_json::Value;

use celeriac_native::Result;
use celeriac_protocol::Exception;
use serde::Serialize;

pub use crate::definition::Running;

/// A number of seconds as options have it.
pub fn seconds(seconds: f64) -> Option<serde_json::Number> {
    if seconds.fract() == 0.0 && seconds < 9e15 {
        return Some((seconds as u64).into());
    }
    serde_json::Number::from_f64(seconds)
}

/// An argument of a call as JSON.
///
/// # Panics
/// When it can't be JSON, such as a map whose keys are no text: a mistake in the program.
#[expect(clippy::expect_used, reason = "documented: a mistake in the program")]
pub fn argument(argument: impl Serialize) -> Value {
    serde_json::to_value(argument).expect("an argument of a task has to be JSON")
}

/// What a task gives, as JSON.
///
/// # Errors
/// A `TypeError` when it can't be JSON.
pub fn to_value(value: &impl Serialize) -> Result<Value> {
    Ok(serde_json::to_value(value).map_err(|error| {
        Exception::builtin(
            "TypeError",
            format!("the task's result is no JSON: {error}"),
        )
    })?)
}

/// Runs what blocks on a thread of its own.
///
/// # Errors
/// What it answers.
pub async fn blocking(work: impl FnOnce() -> Result<Value> + Send + 'static) -> Result<Value> {
    celeriac_native::blocking::run(work).await
}
