//! Signatures: calls of tasks as data, and what they are combined to.
//!
//! Celery's counterpart: `celery.canvas`. A [`Signature`] is what travels in links, chains and chords;
//! the canvas above it is `celeriac-client`'s.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A call of a task that is not made yet: `celery.canvas.Signature`, a mapping in messages.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Signature {
    /// The task's name; that of a primitive, such as `celery.chain`, has its parts in `kwargs`.
    pub task: String,
    /// Positional arguments.
    #[serde(default)]
    pub args: Vec<Value>,
    /// Arguments by name.
    #[serde(default)]
    pub kwargs: Map<String, Value>,
    /// Options of `apply_async`, those that a frozen call has among them (`task_id`, `group_id`, …).
    #[serde(default)]
    pub options: Map<String, Value>,
    /// `chain`, `group`, `chord`, `xmap`, `xstarmap` or `chunks`; `None` for a plain call.
    #[serde(default)]
    pub subtask_type: Option<String>,
    /// Whether the results of others are not put before its arguments.
    #[serde(default)]
    pub immutable: bool,
    /// On the body of a chord: how many results it waits for, where the backend counts with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chord_size: Option<u64>,
}

impl Signature {
    /// A plain call.
    pub fn new(task: impl Into<String>) -> Self {
        Self {
            task: task.into(),
            ..Self::default()
        }
    }

    /// An option that is text.
    pub fn option(&self, name: &str) -> Option<&str> {
        self.options.get(name).and_then(Value::as_str)
    }

    /// The id that the call has, once it is frozen.
    pub fn id(&self) -> Option<&str> {
        self.option("task_id")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_captured_signature_is_read_and_written_the_same() {
        let sent = json!({"task": "proj.add", "args": [4], "kwargs": {},
            "options": {"task_id": "9aeddae8", "reply_to": "48579f8d"},
            "subtask_type": null, "immutable": false});
        let signature: Signature = serde_json::from_value(sent.clone()).unwrap();
        assert_eq!(signature.id(), Some("9aeddae8"));
        assert_eq!(serde_json::to_value(&signature).unwrap(), sent);
    }
}
