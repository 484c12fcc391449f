//! Revoked tasks in a store that all workers share: a revoke outlives the workers that hear it.
//!
//! Python writes the store (`celeriac.host.revocations`). Where it lies in the broker, a worker
//! reads it over the connection that it has; only what lies elsewhere is asked of Python.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};

/// For how long a revoke is kept.
pub const KEPT: Duration = Duration::from_hours(90 * 24);

/// Where revokes are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RevokeStore {
    /// In the broker that messages come from.
    Broker,
    /// Where only Python knows the way.
    Elsewhere,
}

/// What such a store holds, the oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeptRevokes {
    /// Ids of tasks.
    pub ids: Vec<String>,
    /// JSON arrays of a stamped header and one of its values.
    pub headers: Vec<String>,
}

impl KeptRevokes {
    /// The values of stamped headers by the headers' names. What is no such pair is left out.
    pub fn stamps(&self) -> Map<String, Value> {
        let mut stamps = Map::new();
        for pair in &self.headers {
            let Ok((header, value)) = serde_json::from_str::<(String, Value)>(pair) else {
                continue;
            };
            if let Value::Array(values) = stamps
                .entry(header)
                .or_insert_with(|| Value::Array(Vec::new()))
            {
                values.push(value);
            }
        }
        stamps
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn stamps_are_gathered_by_their_headers() {
        let pairs = [
            r#"["who", "y"]"#,
            r#"["what", [1]]"#,
            "rubbish",
            r#"["who", "x"]"#,
        ];
        let kept = KeptRevokes {
            ids: Vec::new(),
            headers: pairs.map(str::to_owned).into(),
        };
        let expected = json!({"who": ["y", "x"], "what": [[1]]});
        assert_eq!(Value::Object(kept.stamps()), expected);
    }
}
