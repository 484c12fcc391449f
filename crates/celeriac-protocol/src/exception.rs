//! Exceptions as results and messages carry them: a class by name, and its arguments.
//!
//! Celery's counterpart: `celery.backends.base.Backend.prepare_exception` for plain serializers.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// An exception of Python's, or an error that appears as one there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Exception {
    /// The class, as Python's `__qualname__`.
    pub exc_type: String,
    /// The arguments that it is made with; anything but a list counts as the only one.
    #[serde(default, deserialize_with = "arguments")]
    pub exc_message: Vec<Value>,
    /// The module of the class. A class that Python does not find there is made up by Celery.
    #[serde(default)]
    pub exc_module: Option<String>,
}

impl Exception {
    /// The class `exc_type` of `exc_module` with one argument.
    pub fn new(
        exc_module: impl Into<String>,
        exc_type: impl Into<String>,
        message: impl Into<Value>,
    ) -> Self {
        Self {
            exc_type: exc_type.into(),
            exc_message: vec![message.into()],
            exc_module: Some(exc_module.into()),
        }
    }

    /// A class of Python's own, such as `ValueError`.
    pub fn builtin(exc_type: &str, message: impl Into<Value>) -> Self {
        Self::new("builtins", exc_type, message)
    }

    /// A class of `celery.exceptions`, such as `ChordError`.
    pub fn celery(exc_type: &str, message: impl Into<Value>) -> Self {
        Self::new("celery.exceptions", exc_type, message)
    }

    /// The arguments as Python's `str()` of the exception shows them: one as itself, several as a
    /// tuple.
    pub fn message(&self) -> String {
        match self.exc_message.as_slice() {
            [] => String::new(),
            [Value::String(text)] => text.clone(),
            [one] => one.to_string(),
            several => {
                let shown: Vec<_> = several.iter().map(Value::to_string).collect();
                format!("({})", shown.join(", "))
            }
        }
    }
}

impl fmt::Display for Exception {
    /// `ValueError: no such file`, the last line of a traceback.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let message = self.message();
        f.write_str(&self.exc_type)?;
        if message.is_empty() {
            return Ok(());
        }
        write!(f, ": {message}")
    }
}

fn arguments<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<Value>, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::Array(arguments) => arguments,
        Value::Null => Vec::new(),
        one => vec![one],
    })
}

impl std::error::Error for Exception {}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_celery_stores_is_read_and_written_the_same() {
        let stored = json!({"exc_type": "ValueError", "exc_message": ["boom", 42], "exc_module": "builtins"});
        let exception: Exception = serde_json::from_value(stored.clone()).unwrap();
        assert_eq!(exception.to_string(), "ValueError: (\"boom\", 42)");
        assert_eq!(serde_json::to_value(&exception).unwrap(), stored);
    }

    #[test]
    fn what_older_versions_stored_is_read() {
        for (stored, shown) in [
            (json!({"exc_type": "E", "exc_message": "boom"}), "E: boom"),
            (json!({"exc_type": "E", "exc_message": null}), "E"),
            (json!({"exc_type": "E"}), "E"),
        ] {
            let exception: Exception = serde_json::from_value(stored).unwrap();
            assert_eq!(exception.to_string(), shown);
        }
    }
}
