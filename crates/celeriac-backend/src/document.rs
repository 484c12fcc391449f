//! Celery's documents: what is stored of a task, and of a group.
//!
//! Celery's counterpart: `celery.backends.base.Backend._get_result_meta`.

use celeriac_core::backend::{Error, ErrorKind, Meta};
use celeriac_protocol::timestamp;
use jiff::Timestamp;
use serde::ser::{Serialize, SerializeMap as _, Serializer};
use serde_json::{Map, Value, json};

use crate::{payload, python};

/// The members that `result_extended` adds, in the order in which Celery writes them.
const EXTENDED: [&str; 7] = [
    "name",
    "args",
    "kwargs",
    "worker",
    "retries",
    "queue",
    "stamped_headers",
];

/// The document of a task, as Celery's serializer `json` writes it.
///
/// # Errors
/// When it can't be written as JSON, which does not happen to values.
pub fn encode(meta: &Meta) -> Result<Vec<u8>, Error> {
    dumps(&Document(meta))
}

/// Reads the document of a task.
///
/// # Errors
/// [`ErrorKind::Unreadable`] for anything but JSON, compressed or not.
pub fn decode(stored: &[u8]) -> Result<Meta, Error> {
    from_members(payload::decode(stored)?)
}

/// The document of a group: `GroupResult.as_tuple()` within it.
///
/// # Errors
/// As [`encode`].
pub fn encode_group(members: &Value) -> Result<Vec<u8>, Error> {
    dumps(&json!({"result": members}))
}

/// Reads the document of a group.
///
/// # Errors
/// As [`decode`].
pub fn decode_group(stored: &[u8]) -> Result<Value, Error> {
    let mut document: Map<String, Value> = payload::decode(stored)?;
    document.remove("result").ok_or_else(|| {
        Error::new(
            ErrorKind::Unreadable,
            "the document of a group has no member \"result\"",
        )
    })
}

/// A moment as `datetime.isoformat()` writes it.
pub fn date(at: Timestamp) -> String {
    let form = if at.subsec_microsecond() == 0 {
        "%Y-%m-%dT%H:%M:%S+00:00"
    } else {
        "%Y-%m-%dT%H:%M:%S%.6f+00:00"
    };
    at.strftime(form).to_string()
}

pub(crate) fn dumps<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, Error> {
    python::dumps(value).map_err(|error| {
        Error::new(
            ErrorKind::Refused,
            format!("a result can't be written as JSON: {error}"),
        )
    })
}

/// A document's members as what they mean. What has no member of its own in [`Meta`] goes to
/// [`Meta::extended`].
pub(crate) fn from_members(mut members: Map<String, Value>) -> Result<Meta, Error> {
    let mut text = |name: &str| match members.remove(name) {
        Some(Value::String(text)) => Some(text),
        _ => None,
    };
    let Some(status) = text("status") else {
        return Err(Error::new(
            ErrorKind::Unreadable,
            "the document of a task has no text \"status\"",
        ));
    };
    let task_id = text("task_id").unwrap_or_default();
    let traceback = text("traceback");
    let group_id = text("group_id");
    let parent_id = text("parent_id");
    let date_done = text("date_done").and_then(|date| timestamp::parse(&date).ok());
    Ok(Meta {
        task_id,
        status,
        result: members.remove("result").unwrap_or_default(),
        traceback,
        children: members.remove("children").unwrap_or_default(),
        date_done,
        group_id,
        parent_id,
        extended: members,
    })
}

/// Writes the members in Celery's order.
struct Document<'m>(&'m Meta);

impl Serialize for Document<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let meta = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("status", &meta.status)?;
        map.serialize_entry("result", &meta.result)?;
        map.serialize_entry("traceback", &meta.traceback)?;
        map.serialize_entry("children", &meta.children)?;
        map.serialize_entry("date_done", &meta.date_done.map(date))?;
        if let Some(group_id) = &meta.group_id {
            map.serialize_entry("group_id", group_id)?;
        }
        if let Some(parent_id) = &meta.parent_id {
            map.serialize_entry("parent_id", parent_id)?;
        }
        for (name, value) in extended(meta) {
            map.serialize_entry(name, value)?;
        }
        map.serialize_entry("task_id", &meta.task_id)?;
        map.end()
    }
}

/// What `result_extended` has added, in Celery's order. A stamp can't take the place of a member of
/// the document.
fn extended(meta: &Meta) -> impl Iterator<Item = (&str, &Value)> {
    let known = EXTENDED
        .iter()
        .filter_map(|name| Some((*name, meta.extended.get(*name)?)));
    let stamps = meta
        .extended
        .iter()
        .map(|(name, value)| (name.as_str(), value))
        .filter(|(name, _)| !EXTENDED.contains(name) && !is_own(name));
    known.chain(stamps)
}

/// Whether every document has a member of this name.
fn is_own(name: &str) -> bool {
    matches!(
        name,
        "status"
            | "result"
            | "traceback"
            | "children"
            | "date_done"
            | "group_id"
            | "parent_id"
            | "task_id"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        let Value::Object(members) = value else {
            unreachable!()
        };
        members
    }

    // Written by Celery 5.7.0 with result_serializer json.
    const WRITTEN: [&str; 4] = [
        r#"{"status": "SUCCESS", "result": 3, "traceback": null, "children": [[["45c9eae3", null], null]], "date_done": "2026-11-22T01:26:37.994086+00:00", "task_id": "96a53472"}"#,
        r#"{"status": "SUCCESS", "result": {"__type__": "datetime", "__value__": "2026-11-22T00:00:00"}, "traceback": null, "children": [], "date_done": "2026-11-22T01:26:37+00:00", "group_id": "efb4", "parent_id": "ac3c", "task_id": "db46"}"#,
        r#"{"status": "FAILURE", "result": {"exc_message": ["b\u00f6\u00f6m", 42], "exc_module": "builtins", "exc_type": "ValueError"}, "traceback": "Traceback (most recent call last):\n", "children": [], "date_done": "2026-11-22T01:26:37.994086+00:00", "task_id": "96a5"}"#,
        r#"{"status": "PROGRESS", "result": {"done": 1, "total": 3}, "traceback": null, "children": null, "date_done": null, "name": "t", "args": [1], "kwargs": {}, "worker": "w@h", "retries": 0, "queue": "celery", "stamped_headers": ["s"], "s": ["v"], "task_id": "a"}"#,
    ];

    #[test]
    fn what_celery_writes_is_written_again_byte_for_byte() {
        for written in WRITTEN {
            let meta = decode(written.as_bytes()).unwrap();
            let again = String::from_utf8(encode(&meta).unwrap()).unwrap();
            assert_eq!(again, written);
        }
    }

    #[test]
    fn members_have_their_meaning() {
        let meta = decode(WRITTEN[2].as_bytes()).unwrap();
        assert!(meta.is_ready());
        assert_eq!(meta.exception().unwrap().exc_type, "ValueError");
        assert_eq!(
            meta.date_done,
            Some("2026-11-22T01:26:37.994086Z".parse().unwrap())
        );
        let meta = decode(WRITTEN[3].as_bytes()).unwrap();
        assert_eq!(meta.extended["queue"], json!("celery"));
        assert_eq!(meta.extended["s"], json!(["v"]));
        assert_eq!(meta.children, Value::Null);
    }

    #[test]
    fn a_document_of_an_older_version_is_read() {
        let meta =
            decode(br#"{"status": "SUCCESS", "result": 1, "date_done": "2020-01-02T03:04:05"}"#);
        assert_eq!(
            meta.unwrap().date_done,
            Some("2020-01-02T03:04:05Z".parse().unwrap())
        );
    }

    #[test]
    fn what_is_no_document_is_refused() {
        for stored in ["[]", "{}", r#"{"status": 1}"#, "3"] {
            let error = decode(stored.as_bytes()).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Unreadable, "{stored}");
        }
        assert!(decode_group(b"{}").is_err());
    }

    #[test]
    fn a_stamp_takes_no_members_place() {
        let meta = Meta {
            task_id: "a".to_owned(),
            status: "SUCCESS".to_owned(),
            extended: object(json!({"status": "x", "who": "me"})),
            ..Meta::default()
        };
        let read = decode(&encode(&meta).unwrap()).unwrap();
        assert_eq!(read.status, "SUCCESS");
        assert_eq!(read.extended, object(json!({"who": "me"})));
    }
}
