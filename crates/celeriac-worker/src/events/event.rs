//! Events: what monitors are told of workers and tasks.
//!
//! Celery's counterparts: `celery.events.event` and those who send them, named at each.

use std::fmt::Write as _;

use celeriac_protocol::json::{self, Object};
use jiff::Timestamp;

use crate::control::python;
use crate::request::Request;

/// The members that a kind of event has for itself, as JSON text.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Members(String);

impl Members {
    /// The same with a text or null.
    #[must_use]
    pub fn text(self, name: &str, text: Option<&str>) -> Self {
        match text {
            Some(text) => self.raw(name, &json::quote(text)),
            None => self.raw(name, "null"),
        }
    }

    /// The same with anything whose text is JSON.
    #[must_use]
    pub fn raw(mut self, name: &str, value: &str) -> Self {
        // Writing to a `String` can't fail.
        let _ = write!(self.0, ", \"{name}\": {value}");
        self
    }

    /// The JSON text, each member after a comma.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An event about a task.
#[derive(Debug)]
pub enum TaskEvent<'e> {
    /// `task-received`: `celery.worker.strategy`.
    Received(&'e Request),
    /// `task-started`: `Request.on_accepted`.
    Started,
    /// `task-succeeded`: `Request.on_success`.
    Succeeded {
        /// The result's representation.
        result: &'e str,
        /// Seconds; unknown where the process was lost after the success.
        runtime: Option<f64>,
    },
    /// `task-failed`: `Request.on_failure`.
    Failed {
        /// The exception's representation.
        exception: &'e str,
        /// The traceback's text.
        traceback: Option<&'e str>,
    },
    /// `task-failed` of a task that nobody registered: `Consumer.on_unknown_task`.
    NotRegistered(&'e str),
    /// `task-retried`: `Request.on_retry`.
    Retried {
        /// The exception's representation.
        exception: &'e str,
        /// The traceback's text.
        traceback: Option<&'e str>,
    },
    /// `task-rejected`: `Request.reject`.
    Rejected {
        /// Whether it runs again.
        requeue: bool,
    },
    /// `task-revoked`: `Request._announce_revoked`.
    Revoked {
        /// Whether its process is ended.
        terminated: bool,
        /// The signal that ends it.
        signum: Option<i32>,
        /// Whether its time was over.
        expired: bool,
    },
    /// `task-cancelled`: `Request._announce_cancelled`.
    Cancelled,
}

impl TaskEvent<'_> {
    /// Its type.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Received(_) => "task-received",
            Self::Started => "task-started",
            Self::Succeeded { .. } => "task-succeeded",
            Self::Failed { .. } | Self::NotRegistered(_) => "task-failed",
            Self::Retried { .. } => "task-retried",
            Self::Rejected { .. } => "task-rejected",
            Self::Revoked { .. } => "task-revoked",
            Self::Cancelled => "task-cancelled",
        }
    }

    /// Its members, the task's id among them.
    pub fn members(&self, id: &str) -> Members {
        let members = Members::default().text("uuid", Some(id));
        match self {
            Self::Received(request) => received(members, request),
            Self::Started | Self::Cancelled => members,
            Self::NotRegistered(task) => {
                let exception = format!("NotRegistered({})", python::quoted(task));
                members.text("exception", Some(&exception))
            }
            Self::Succeeded { result, runtime } => {
                let runtime = runtime.map_or_else(|| "null".to_owned(), number);
                // It is short enough: the tracer has cut it (`Task.resultrepr_maxsize`).
                members
                    .text("result", Some(result))
                    .raw("runtime", &runtime)
            }
            Self::Failed {
                exception,
                traceback,
            }
            | Self::Retried {
                exception,
                traceback,
            } => members
                .text("exception", Some(exception))
                .text("traceback", *traceback),
            Self::Rejected { requeue } => members.raw("requeue", truth(*requeue)),
            Self::Revoked {
                terminated,
                signum,
                expired,
            } => {
                let signum = signum.map_or_else(|| "null".to_owned(), |number| number.to_string());
                members
                    .raw("terminated", truth(*terminated))
                    .raw("signum", &signum)
                    .raw("expired", truth(*expired))
            }
        }
    }
}

fn received(members: Members, request: &Request) -> Members {
    let headers = Object::parse(&request.message.headers).unwrap_or_default();
    // A protocol 1 message has no such headers.
    let header = |name: &str, otherwise: &'static str| {
        headers
            .get(name)
            .map_or_else(|| otherwise.to_owned(), str::to_owned)
    };
    let head = &request.head;
    let moment = |moment: Option<Timestamp>| moment.map(isoformat);
    members
        .text("name", Some(head.name()))
        .raw("args", &header("argsrepr", "\"\""))
        .raw("kwargs", &header("kwargsrepr", "\"\""))
        .raw("root_id", &header("root_id", "null"))
        .raw("parent_id", &header("parent_id", "null"))
        .raw("retries", &head.retries.to_string())
        .text("eta", moment(head.eta).as_deref())
        .text("expires", moment(head.expires).as_deref())
}

/// A moment as Python's `datetime.isoformat` writes it, in UTC.
pub fn isoformat(moment: Timestamp) -> String {
    let whole = moment.as_microsecond() % 1_000_000 == 0;
    let format = if whole {
        "%Y-%m-%dT%H:%M:%S+00:00"
    } else {
        "%Y-%m-%dT%H:%M:%S.%6f+00:00"
    };
    moment.strftime(format).to_string()
}

/// Seconds as a JSON number.
pub(crate) fn number(seconds: f64) -> String {
    if seconds.is_finite() {
        format!("{seconds:?}")
    } else {
        "null".to_owned()
    }
}

fn truth(value: bool) -> &'static str {
    if value { "true" } else { "false" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_celerys() {
        for (event, expected) in [
            (TaskEvent::Started, r#", "uuid": "i""#),
            (
                TaskEvent::Succeeded {
                    result: "'ä\"'",
                    runtime: Some(0.5),
                },
                r#", "uuid": "i", "result": "'ä\"'", "runtime": 0.5"#,
            ),
            (
                TaskEvent::Succeeded {
                    result: "1",
                    runtime: None,
                },
                r#", "uuid": "i", "result": "1", "runtime": null"#,
            ),
            (
                TaskEvent::Failed {
                    exception: "E()",
                    traceback: None,
                },
                r#", "uuid": "i", "exception": "E()", "traceback": null"#,
            ),
            (
                TaskEvent::Revoked {
                    terminated: true,
                    signum: Some(15),
                    expired: false,
                },
                r#", "uuid": "i", "terminated": true, "signum": 15, "expired": false"#,
            ),
            (
                TaskEvent::Rejected { requeue: true },
                r#", "uuid": "i", "requeue": true"#,
            ),
        ] {
            assert_eq!(event.members("i").as_str(), expected, "{}", event.kind());
        }
    }

    #[test]
    fn moments_are_as_python_writes_them() {
        for (moment, text) in [
            (
                "2026-11-22T01:28:51.933Z",
                "2026-11-22T01:28:51.933000+00:00",
            ),
            ("2026-11-22T01:28:51Z", "2026-11-22T01:28:51+00:00"),
        ] {
            assert_eq!(isoformat(moment.parse().unwrap()), text);
        }
    }
}
