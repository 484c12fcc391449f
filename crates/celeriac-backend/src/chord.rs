//! What becomes of the results of a chord's parts.
//!
//! Celery's counterpart: `RedisBackend.on_chord_part_return`.

use std::time::Duration;

use celeriac_core::backend::{Backend, ChordPart, Error, Meta};
use celeriac_protocol::Exception;
use serde_json::Value;
use tokio::time::timeout;

use crate::{document, payload, python};

/// A part as it is stored: `[1, task_id, state, result]`.
pub(crate) fn encode(part: &ChordPart) -> Result<Vec<u8>, Error> {
    document::dumps(&(1, &part.task_id, &part.status, &part.result))
}

/// The results of parts as they are stored, or the `ChordError` about the first that failed.
pub(crate) fn unpack(parts: &[Vec<u8>]) -> Result<Result<Vec<Value>, Exception>, Error> {
    let mut results = Vec::with_capacity(parts.len());
    for part in parts {
        let (_, id, status, result): (u64, String, String, Value) = payload::decode(part)?;
        if is_failed(&status) {
            return Ok(Err(dependency(&id, &result)));
        }
        results.push(result);
    }
    Ok(Ok(results))
}

/// Whether a part with this state fails its chord (`celery.states.PROPAGATE_STATES`).
fn is_failed(status: &str) -> bool {
    matches!(status, "FAILURE" | "REVOKED")
}

/// `Dependency <id> raised ValueError('boom')`.
fn dependency(id: &str, result: &Value) -> Exception {
    Exception::celery(
        "ChordError",
        format!("Dependency {id} raised {}", repr(result)),
    )
}

/// The `ChordError` when results could not be put together.
fn join_error(shown: &str) -> Exception {
    Exception::celery("ChordError", format!("Join error: {shown}"))
}

/// The `ChordError` about a part of a group within a header.
fn part_error(meta: &Meta) -> Option<Exception> {
    is_failed(&meta.status).then(|| join_error(&repr(&meta.result)))
}

fn repr(result: &Value) -> String {
    match serde_json::from_value::<Exception>(result.clone()) {
        Ok(exception) => python::repr_exception(&exception),
        Err(_) => python::repr(result),
    }
}

/// The results of a header with groups in it, in its structure. What its tasks have stored is there,
/// but for those whose results are ignored: these are waited for in vain.
pub(crate) async fn join(
    backend: &dyn Backend,
    members: &Value,
    patience: Duration,
) -> Result<Vec<Value>, Exception> {
    let Some(place) = Place::parse(members) else {
        let shown = python::repr(members);
        return Err(join_error(&format!("ValueError({shown})")));
    };
    let metas = match timeout(patience, collect(backend, place.ids())).await {
        Ok(Ok(metas)) => metas,
        Ok(Err(error)) => return Err(join_error(&error.message)),
        Err(_) => return Err(join_error("TimeoutError('The operation timed out.')")),
    };
    if let Some(error) = metas.iter().find_map(part_error) {
        return Err(error);
    }
    let mut results = metas.into_iter().map(|meta| meta.result);
    match place.fill(&mut results) {
        Value::Array(results) => Ok(results),
        one => Ok(vec![one]),
    }
}

/// Waits until all tasks have ended.
async fn collect(backend: &dyn Backend, ids: Vec<String>) -> Result<Vec<Meta>, Error> {
    let found = backend.get(&ids).await?;
    let mut metas = Vec::with_capacity(ids.len());
    for (id, mut meta) in ids.iter().zip(found) {
        loop {
            match meta {
                Some(ready) if ready.is_ready() => {
                    metas.push(ready);
                    break;
                }
                other => meta = Some(backend.changed(id, other.as_ref()).await?),
            }
        }
    }
    Ok(metas)
}

/// The ids of a group's members, of groups among them as well; `None` for what is no
/// `GroupResult.as_tuple()`.
#[cfg(feature = "mongodb")]
pub(crate) fn member_ids(tuple: &Value) -> Option<Vec<&str>> {
    let members = tuple.as_array()?.get(1)?.as_array()?;
    let ids = members.iter().map(|member| {
        let own = member.as_array()?.first()?;
        own.as_str().or_else(|| own.as_array()?.first()?.as_str())
    });
    ids.collect()
}

/// A result's place in a header: a task, or the members of a group.
#[derive(Debug, Clone, PartialEq)]
enum Place {
    /// The id of the task whose result it is.
    Task(String),
    /// As a list.
    Group(Vec<Self>),
}

impl Place {
    /// Reads `GroupResult.as_tuple()` or `AsyncResult.as_tuple()`; `None` for what is neither.
    fn parse(tuple: &Value) -> Option<Self> {
        let [own, members] = tuple.as_array()?.as_slice() else {
            return None;
        };
        let id = match own {
            Value::Array(pair) => pair.first()?.as_str()?,
            other => other.as_str()?,
        };
        match members {
            Value::Array(members) => {
                let places: Option<Vec<Self>> = members.iter().map(Self::parse).collect();
                Some(Self::Group(places?))
            }
            _ => Some(Self::Task(id.to_owned())),
        }
    }

    /// The ids of all tasks in it, in order.
    fn ids(&self) -> Vec<String> {
        match self {
            Self::Task(id) => vec![id.clone()],
            Self::Group(members) => members.iter().flat_map(Self::ids).collect(),
        }
    }

    /// The results in the structure of the header; `results` are those of [`Place::ids`].
    fn fill(&self, results: &mut impl Iterator<Item = Value>) -> Value {
        match self {
            Self::Task(_) => results.next().unwrap_or_default(),
            Self::Group(members) => {
                Value::Array(members.iter().map(|member| member.fill(results)).collect())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_failure_is_the_chords() {
        let stored = [
            br#"[1, "a", "SUCCESS", 2]"#.to_vec(),
            br#"[1, "b", "FAILURE", {"exc_type": "ValueError", "exc_message": ["boom"], "exc_module": "builtins"}]"#.to_vec(),
        ];
        assert_eq!(unpack(&stored[..1]).unwrap(), Ok(vec![json!(2)]));
        let error = unpack(&stored).unwrap().unwrap_err();
        assert_eq!(error.message(), "Dependency b raised ValueError('boom')");
        assert!(unpack(&[b"\x80\x05x".to_vec()]).is_err());
    }

    #[test]
    fn results_keep_the_structure_of_the_header() {
        // As Celery stores it for a header of a task, a group of two, and a task.
        let tuple = json!([
            ["g", null],
            [
                [["a", null], null],
                [
                    ["inner", null],
                    [[["b", null], null], [["c", ["p", null]], null]]
                ],
                [["d", null], null],
            ]
        ]);
        let place = Place::parse(&tuple).unwrap();
        assert_eq!(place.ids(), ["a", "b", "c", "d"]);
        let results = place.fill(&mut (1..5).map(Value::from));
        assert_eq!(results, json!([1, [2, 3], 4]));
        for broken in [
            json!(null),
            json!(["x"]),
            json!([[1, null], null]),
            json!([["g"], [3]]),
        ] {
            assert_eq!(Place::parse(&broken), None);
        }
    }
}
