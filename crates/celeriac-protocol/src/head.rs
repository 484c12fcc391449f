//! What a worker must understand of a task message to decide what to do with it.
//!
//! Protocol 2 has it in the headers; protocol 1 in the body, of which only these members are read.
//! Celery's counterparts: `celery.worker.request.Request.__init__` and
//! `celery.worker.strategy.{hybrid_to_proto2, proto1_to_proto2}`.

use std::borrow::Cow;
use std::fmt;

use bytestring::ByteString;
use jiff::Timestamp;

use crate::json::{self, Object};
use crate::marks::Marks;
use crate::timestamp;

/// The fields of a task message that a worker acts on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Name of the task to run.
    pub task: ByteString,
    /// Task id, a UUID unless the caller chose its own text.
    pub id: ByteString,
    /// Name to show instead of `task` in logs and events.
    pub shadow: Option<ByteString>,
    /// Not to be run before this moment.
    pub eta: Option<Timestamp>,
    /// Not to be run after this moment.
    pub expires: Option<Timestamp>,
    /// How often the task was retried.
    pub retries: u32,
    /// Limits of this call; where absent, the task's own hold.
    pub time_limits: TimeLimits,
    /// Whether the caller asked that no result be stored; `None` leaves it to the task.
    pub ignore_result: Option<bool>,
    /// Names of the stamps that count, as JSON text.
    pub stamped_headers: Option<ByteString>,
    /// The stamps, as JSON text.
    pub stamps: Option<ByteString>,
    /// What workers of celeriac know of its earlier deliveries.
    pub marks: Marks,
}

impl Head {
    /// The name for logs and events: the shadow if there is one.
    pub fn name(&self) -> &str {
        self.shadow.as_deref().unwrap_or(&self.task)
    }

    /// Reads protocol 2 headers. `None` when they name no task: not protocol 2.
    pub fn from_headers(headers: &Object<'_>) -> Option<Result<Self, InvalidTask>> {
        headers.get("task")?;
        Some(Self::read(headers))
    }

    /// Reads the mapping that is the body of a protocol 1 message. `None` when it names no task.
    pub fn from_v1_body(body: &Object<'_>) -> Option<Result<Self, InvalidTask>> {
        body.get("task")?;
        Some(Self::read(body).and_then(|head| {
            let is_mapping = body
                .get("kwargs")
                .is_none_or(|kwargs| kwargs.starts_with('{'));
            if is_mapping {
                Ok(head)
            } else {
                Err(head.invalid(Invalidity::Kwargs))
            }
        }))
    }

    fn read(members: &Object<'_>) -> Result<Self, InvalidTask> {
        let text = |name| members.get(name).and_then(json::as_str).map(owned);
        let raw = |name| {
            members
                .get(name)
                .filter(|raw| json::is_truthy(raw))
                .map(ByteString::from)
        };
        let (task, id) = (text("task"), text("id"));
        let invalid = |why| InvalidTask {
            task: task.clone(),
            id: id.clone(),
            why,
        };

        let time = |name: &'static str| {
            let Some(raw) = members.get(name).filter(|raw| *raw != "null") else {
                return Ok(None);
            };
            read_time(raw).map_err(|reason| {
                invalid(Invalidity::Time {
                    name,
                    value: raw.to_owned(),
                    reason,
                })
            })
        };
        Ok(Self {
            eta: time("eta")?,
            expires: time("expires")?,
            retries: members
                .get("retries")
                .and_then(json::as_i64)
                .map_or(0, |retries| retries.clamp(0, i64::from(u32::MAX)) as u32),
            time_limits: TimeLimits::read(members.get("timelimit")).map_err(invalid)?,
            ignore_result: members
                .get("ignore_result")
                .filter(|raw| *raw != "null")
                .map(json::is_truthy),
            shadow: text("shadow").filter(|shadow| !shadow.is_empty()),
            stamped_headers: raw("stamped_headers"),
            stamps: raw("stamps"),
            marks: Marks::read(members),
            task: task.clone().ok_or_else(|| invalid(Invalidity::TaskName))?,
            id: id.clone().ok_or_else(|| invalid(Invalidity::Id))?,
        })
    }

    fn invalid(self, why: Invalidity) -> InvalidTask {
        InvalidTask {
            task: Some(self.task),
            id: Some(self.id),
            why,
        }
    }
}

/// A message that names a task but can't be one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct InvalidTask {
    /// The task's name, as far as it could be read.
    pub task: Option<ByteString>,
    /// The task's id, as far as it could be read.
    pub id: Option<ByteString>,
    /// What is wrong.
    pub why: Invalidity,
}

/// What makes a task message invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Invalidity {
    /// The id is missing or no string. Celery's own worker ends on such a message.
    #[error("the message has no task id")]
    Id,
    /// The task's name is no string.
    #[error("the task's name is not a string")]
    TaskName,
    /// `eta` or `expires` is no time.
    #[error("invalid {name} value {value}: {reason}")]
    Time {
        /// `eta` or `expires`.
        name: &'static str,
        /// The JSON text found.
        value: String,
        /// What is wrong with it.
        reason: timestamp::InvalidTime,
    },
    /// `timelimit` is no pair of seconds.
    #[error("invalid timelimit value {0}: expected [hard, soft] in seconds")]
    TimeLimit(String),
    /// The keyword arguments are no mapping.
    #[error("Task keyword arguments must be a mapping")]
    Kwargs,
}

/// A hard and a soft limit on the run time of one task.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct TimeLimits {
    /// The process that runs the task is killed when this has passed.
    pub hard: Option<TimeLimit>,
    /// `SoftTimeLimitExceeded` is raised in the task when this has passed.
    pub soft: Option<TimeLimit>,
}

// A `TimeLimit` is finite, so that equality is total.
impl Eq for TimeLimits {}

impl TimeLimits {
    /// These limits, with `other`'s where one is absent.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            hard: self.hard.or(other.hard),
            soft: self.soft.or(other.soft),
        }
    }

    /// Reads the header: `[hard, soft]`, each null or falsy for none.
    fn read(raw: Option<&str>) -> Result<Self, Invalidity> {
        let Some(raw) = raw.filter(|raw| json::is_truthy(raw)) else {
            return Ok(Self::default());
        };
        let invalid = || Invalidity::TimeLimit(raw.to_owned());
        let [hard, soft] =
            serde_json::from_str::<[Option<serde_json::Number>; 2]>(raw).map_err(|_| invalid())?;
        let limit = |number: Option<serde_json::Number>| match number {
            None => Ok(None),
            Some(number) => TimeLimit::new(&number).ok_or_else(invalid),
        };
        Ok(Self {
            hard: limit(hard)?,
            soft: limit(soft)?,
        })
    }
}

/// A run time in seconds that is above zero, and shows as Python shows the number it came from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TimeLimit {
    seconds: f64,
    is_integer: bool,
}

impl TimeLimit {
    /// From a JSON number: `Some(None)` for zero, which means no limit; `None` for what is no time.
    pub fn new(number: &serde_json::Number) -> Option<Option<Self>> {
        let seconds = number.as_f64().filter(|n| n.is_finite() && *n >= 0.0)?;
        Some((seconds > 0.0).then_some(Self {
            seconds,
            is_integer: !number.is_f64(),
        }))
    }

    /// The limit as a span of time, at most the longest that `Duration` holds.
    pub fn duration(self) -> std::time::Duration {
        std::time::Duration::try_from_secs_f64(self.seconds).unwrap_or(std::time::Duration::MAX)
    }

    /// The limit in seconds.
    pub fn seconds(self) -> f64 {
        self.seconds
    }
}

impl fmt::Display for TimeLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_integer {
            write!(f, "{}", self.seconds)
        } else {
            write!(f, "{:?}", self.seconds)
        }
    }
}

/// A time in a header: ISO 8601 text, or kombu's JSON form of a `datetime`.
fn read_time(raw: &str) -> Result<Option<Timestamp>, timestamp::InvalidTime> {
    let text = match json::as_str(raw) {
        Some(text) => text.into_owned(),
        None => Object::parse(raw)
            .ok()
            .filter(|object| object.get("__type__") == Some("\"datetime\""))
            .and_then(|object| {
                object
                    .get("__value__")
                    .and_then(json::as_str)
                    .map(Cow::into_owned)
            })
            .ok_or(timestamp::InvalidTime::Form)?,
    };
    timestamp::parse(&text).map(Some)
}

fn owned(text: Cow<'_, str>) -> ByteString {
    ByteString::from(text.into_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(headers: &str) -> Result<Head, InvalidTask> {
        Head::from_headers(&Object::parse(headers).unwrap()).expect("a task is named")
    }

    /// As Celery 5.7 sends `add.apply_async((2, 3), countdown=10, expires=120, time_limit=9, …)`.
    const FULL: &str = r#"{"lang": "py", "task": "proj.add", "id": "2c31690e", "shadow": "sh",
        "eta": "2026-11-22T01:26:17.052033+00:00", "expires": "2026-11-22T01:28:07.052033+00:00",
        "group": null, "group_index": null, "retries": 2, "timelimit": [9, 7.0],
        "root_id": "2c31690e", "parent_id": null, "argsrepr": "(2, 3)", "kwargsrepr": "{}",
        "origin": "gen13906@vm", "ignore_result": false, "replaced_task_nesting": 0,
        "stamped_headers": ["st"], "stamps": {"st": "a"}, "my": "hdr"}"#;

    #[test]
    fn all_that_counts_is_read() {
        let head = read(FULL).unwrap();
        assert_eq!(
            (head.name(), &*head.task, &*head.id),
            ("sh", "proj.add", "2c31690e")
        );
        assert_eq!(head.eta.unwrap().to_string(), "2026-11-22T01:26:17.052033Z");
        assert_eq!(
            head.expires.unwrap().to_string(),
            "2026-11-22T01:28:07.052033Z"
        );
        assert_eq!(head.retries, 2);
        assert_eq!(head.time_limits.hard.unwrap().to_string(), "9");
        assert_eq!(head.time_limits.soft.unwrap().to_string(), "7.0");
        assert_eq!(head.ignore_result, Some(false));
        assert_eq!(head.stamps.as_deref(), Some(r#"{"st": "a"}"#));
    }

    #[test]
    fn task_and_id_are_enough() {
        let head = read(r#"{"task": "t", "id": "1"}"#).unwrap();
        assert_eq!(head.time_limits, TimeLimits::default());
        assert_eq!(
            (head.eta, head.expires, head.ignore_result),
            (None, None, None)
        );
    }

    #[test]
    fn falsy_is_absent() {
        let head = read(
            r#"{"task": "t", "id": "1", "shadow": "", "eta": null, "expires": null,
                "timelimit": [0, 0.0], "retries": null, "stamps": {}, "stamped_headers": []}"#,
        )
        .unwrap();
        assert_eq!(head, read(r#"{"task": "t", "id": "1"}"#).unwrap());
    }

    #[test]
    fn kombus_datetime_is_a_time() {
        let eta = r#"{"__type__": "datetime", "__value__": "2030-01-02T03:04:05"}"#;
        let head = read(&format!(r#"{{"task": "t", "id": "1", "eta": {eta}}}"#)).unwrap();
        assert_eq!(head.eta.unwrap().to_string(), "2030-01-02T03:04:05Z");
    }

    #[test]
    fn wrong_types_are_named() {
        for (headers, why) in [
            (r#"{"task": "t"}"#, "the message has no task id"),
            (r#"{"task": "t", "id": 5}"#, "the message has no task id"),
            (
                r#"{"task": ["t"], "id": "1"}"#,
                "the task's name is not a string",
            ),
            (
                r#"{"task": "t", "id": "1", "eta": 12}"#,
                "invalid eta value 12: not an ISO 8601 time",
            ),
            (
                r#"{"task": "t", "id": "1", "expires": "soon"}"#,
                "invalid expires value \"soon\": not an ISO 8601 time",
            ),
            (
                r#"{"task": "t", "id": "1", "timelimit": "x"}"#,
                "invalid timelimit value \"x\": expected [hard, soft] in seconds",
            ),
            (
                r#"{"task": "t", "id": "1", "timelimit": [-1, null]}"#,
                "invalid timelimit value [-1, null]: expected [hard, soft] in seconds",
            ),
        ] {
            assert_eq!(read(headers).unwrap_err().to_string(), why, "{headers}");
        }
    }

    #[test]
    fn headers_without_a_task_are_not_protocol_2() {
        assert_eq!(
            Head::from_headers(&Object::parse(r#"{"id": "1"}"#).unwrap()),
            None
        );
    }

    #[test]
    fn protocol_1_is_read_from_the_body() {
        let body = r#"{"task": "t", "id": "1", "args": [1], "kwargs": {}, "retries": 1,
            "eta": "2026-11-22T01:26:17", "expires": null, "utc": true, "callbacks": null,
            "errbacks": null, "timelimit": [null, 3], "taskset": null, "chord": null}"#;
        let head = Head::from_v1_body(&Object::parse(body).unwrap())
            .unwrap()
            .unwrap();
        assert_eq!((&*head.task, head.retries), ("t", 1));
        assert_eq!(head.time_limits.soft.unwrap().to_string(), "3");

        let body = Object::parse(r#"{"task": "t", "id": "1", "kwargs": [1]}"#).unwrap();
        let error = Head::from_v1_body(&body).unwrap().unwrap_err();
        assert_eq!(
            error.to_string(),
            "Task keyword arguments must be a mapping"
        );
    }

    proptest! {
        #[test]
        fn no_member_of_any_type_panics(
            name in prop::sample::select(vec!["task", "id", "eta", "expires", "timelimit", "shadow",
                "retries", "ignore_result", "stamps", "stamped_headers"]),
            value in prop::sample::select(vec!["null", "0", "-1", "1e400", "[]", "[null]", "{}",
                "\"\"", "\"x\"", "true", "[[[]]]", "{\"__type__\": \"datetime\"}", "[1, 2, 3]", "NaN",
                "99999999999999999999", "\"\\u0000\""]),
        ) {
            let mut object = Object::parse(FULL).unwrap();
            object.set(name, value);
            let text = object.to_string();
            drop(Head::from_headers(&Object::parse(&text).unwrap()));
            drop(Head::from_v1_body(&Object::parse(&text).unwrap()));
        }
    }
}
