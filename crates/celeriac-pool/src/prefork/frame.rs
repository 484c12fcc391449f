//! The messages between the pool and a child.
//!
//! Counterpart: `python/celeriac/host/child.py`.

use std::time::Duration;

use bytes::Bytes;
use celeriac_core::pool::{Failure, Job, Outcome};
use celeriac_protocol::json::quote;
use serde::Deserialize;

/// Kinds of messages to a child.
const JOB: u8 = 1;
const LEAVE: u8 = 2;
const SOFT_LIMIT: u8 = 3;
const TERMINATE: u8 = 4;
/// Kinds of messages from a child.
const UP: u8 = 1;
const DONE: u8 = 2;
const STARTED: u8 = 3;
/// The outcome of a job that was ended as its child was told.
const TERMINATED: u8 = 9;

const IN_FILE: u8 = 1;
const LAST: u8 = 2;
const WANTS_RESULT: u8 = 4;
const WANTS_EXCEPTION: u8 = 8;

/// The longest message that goes over a socket; what is longer goes in a file. Well below the
/// default size of a socket's buffer (208 KiB), so that several messages fit.
const INLINE_BYTES: usize = 64 * 1024;
/// Longer than any message of a child.
pub(crate) const RECEIVE_BYTES: usize = 192 * 1024;

/// Whether a child is to leave after a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterJob {
    /// It waits for the next.
    Stay,
    /// It leaves.
    Leave,
}

/// A job as a message: a head, and the request and the body that follow it or go in a file.
#[derive(Debug)]
pub struct JobMessage<'j> {
    head: [u8; 16],
    request: String,
    body: &'j [u8],
}

impl<'j> JobMessage<'j> {
    /// Writes a job.
    pub fn new(job: &'j Job, after: AfterJob) -> Self {
        // The child takes this member out before the task sees the request.
        let encoding = match (job.content_type.as_deref(), job.content_encoding.as_deref()) {
            (Some("application/json"), Some("utf-8")) => "null".to_owned(),
            (content_type, encoding) => {
                let text = |text: Option<&str>| text.map_or("null".to_owned(), quote);
                format!("[{}, {}]", text(content_type.or(Some(""))), text(encoding))
            }
        };
        let request = job
            .request
            .trim_end()
            .strip_suffix('}')
            .unwrap_or(&job.request);
        let comma = if request.trim_end().ends_with('{') {
            ""
        } else {
            ", "
        };
        let request = format!(r#"{request}{comma}"celeriac": {encoding}}}"#);

        let mut flags = 0;
        for (flag, is_set) in [
            (IN_FILE, request.len() + job.body.len() > INLINE_BYTES),
            (LAST, after == AfterJob::Leave),
            (WANTS_RESULT, job.wants_result),
            (WANTS_EXCEPTION, job.wants_exception),
        ] {
            flags |= if is_set { flag } else { 0 };
        }
        let mut head = [0; 16];
        head[..4].copy_from_slice(&[JOB, flags, 0, 0]);
        head[4..8].copy_from_slice(&(request.len() as u32).to_le_bytes());
        head[8..].copy_from_slice(&job.key.0.to_le_bytes());
        Self {
            head,
            request,
            body: &job.body,
        }
    }

    /// What goes in a file, if it is too long for a message.
    pub fn parts_for_file(&self) -> Option<[&[u8]; 2]> {
        (self.head[1] & IN_FILE != 0).then_some([self.request.as_bytes(), self.body])
    }

    /// The parts of the message.
    pub fn parts(&self) -> [&[u8]; 3] {
        match self.parts_for_file() {
            Some(_) => [&self.head, &[], &[]],
            None => [&self.head, self.request.as_bytes(), self.body],
        }
    }
}

/// The order to leave.
pub fn leave() -> [u8; 1] {
    [LEAVE]
}

/// Raises a soft limit in one job of many: 0 for that of time, 1 for that of memory, 2 for that of a
/// shutdown.
pub fn soft_limit(job: u64, limit: u8) -> [u8; 16] {
    about_job(SOFT_LIMIT, limit, job)
}

/// Ends one job of many.
pub fn terminate(job: u64) -> [u8; 16] {
    about_job(TERMINATE, 0, job)
}

fn about_job(kind: u8, detail: u8, job: u64) -> [u8; 16] {
    let mut message = [0; 16];
    message[..2].copy_from_slice(&[kind, detail]);
    message[8..].copy_from_slice(&job.to_le_bytes());
    message
}

/// The number of the job in a message that was taken back.
pub fn job_number(message: &[u8]) -> Option<u64> {
    match message {
        [JOB, _, _, _, _, _, _, _, number @ ..] => number
            .first_chunk()
            .map(|number| u64::from_le_bytes(*number)),
        _ => None,
    }
}

/// What a child tells.
#[derive(Debug, Clone, PartialEq)]
pub enum ChildMessage {
    /// It can work.
    Up,
    /// It has begun these of the many jobs that it runs at once.
    Started {
        /// Their numbers.
        jobs: Vec<u64>,
    },
    /// A job of many was ended as it was told.
    Terminated {
        /// Its number.
        job: u64,
    },
    /// A job has ended.
    Done {
        /// Its number.
        job: u64,
        /// How.
        outcome: Outcome,
    },
    /// Something that makes no sense: what has become of its job can't be known.
    Nonsense,
}

/// Reads a message of a child.
pub fn read(message: &[u8]) -> ChildMessage {
    try_read(message).unwrap_or(ChildMessage::Nonsense)
}

fn try_read(message: &[u8]) -> Option<ChildMessage> {
    match message {
        [UP, ..] => Some(ChildMessage::Up),
        [STARTED, _, _, _, _, _, _, _, jobs @ ..] => {
            let (jobs, rest) = jobs.as_chunks();
            let jobs = jobs.iter().map(|job| u64::from_le_bytes(*job)).collect();
            rest.is_empty().then_some(ChildMessage::Started { jobs })
        }
        [DONE, TERMINATED, _, _, _, _, _, _, rest @ ..] => {
            let job = u64::from_le_bytes(*rest.first_chunk()?);
            Some(ChildMessage::Terminated { job })
        }
        [DONE, kind, _, _, _, _, _, _, rest @ ..] => {
            let (job, rest) = rest.split_first_chunk()?;
            let (runtime, detail) = rest.split_first_chunk()?;
            let runtime = Duration::try_from_secs_f64(f64::from_le_bytes(*runtime)).ok();
            let outcome = outcome(*kind, runtime, detail)?;
            Some(ChildMessage::Done {
                job: u64::from_le_bytes(*job),
                outcome,
            })
        }
        _ => None,
    }
}

fn outcome(kind: u8, runtime: Option<Duration>, detail: &[u8]) -> Option<Outcome> {
    let text = String::from_utf8_lossy(detail);
    let detail = || Detail::read(detail);
    Some(match kind {
        0 => Outcome::Success {
            runtime,
            result: text.into_owned(),
        },
        1 => Outcome::Failure(detail()?.failure()),
        2 => Outcome::Retry(detail()?.failure()),
        3 => Outcome::Ignore(detail()?.failure()),
        4 => {
            let detail = detail()?;
            Outcome::Reject {
                requeue: detail.requeue,
                failure: detail.failure(),
            }
        }
        5 => Outcome::Raised(detail()?.failure()),
        6 => Outcome::Left {
            status: detail()?.status,
        },
        7 => Outcome::Undecodable {
            reason: detail()?.exception,
        },
        8 => Outcome::Invalid {
            reason: detail()?.exception,
        },
        _ => return None,
    })
}

/// The details of a failure.
#[derive(Debug, Deserialize)]
struct Detail {
    #[serde(default)]
    exception: String,
    #[serde(default)]
    traceback: Option<String>,
    #[serde(default)]
    requeue: bool,
    #[serde(default)]
    status: i32,
    #[serde(skip)]
    pickle: Bytes,
}

impl Detail {
    /// A JSON text, and after a NUL the pickled exception.
    fn read(bytes: &[u8]) -> Option<Self> {
        let end = bytes
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(bytes.len());
        let mut detail: Self = serde_json::from_slice(&bytes[..end]).ok()?;
        detail.pickle = Bytes::copy_from_slice(bytes.get(end + 1..).unwrap_or_default());
        Some(detail)
    }

    fn failure(self) -> Failure {
        Failure {
            exception: self.exception,
            traceback: self.traceback,
            pickle: self.pickle,
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
            key: RequestKey(7),
            task: "t".into(),
            request: request.to_owned(),
            body: body.into(),
            content_type: Some("application/json".into()),
            content_encoding: Some("utf-8".into()),
            time_limits: TimeLimits::default(),
            wants_result: false,
            wants_exception: true,
        }
    }

    #[test]
    fn a_job_is_written_as_the_child_reads_it() {
        let job = job(r#"{"id": "1"}"#, b"[[], {}, {}]".to_vec());
        let message = JobMessage::new(&job, AfterJob::Leave);
        let [head, sent, body] = message.parts();
        let request = br#"{"id": "1", "celeriac": null}"#;
        assert_eq!(
            head[..8],
            [
                JOB,
                LAST | WANTS_EXCEPTION,
                0,
                0,
                request.len() as u8,
                0,
                0,
                0
            ]
        );
        assert_eq!(head[8..16], 7_u64.to_le_bytes());
        assert_eq!(head.len(), 16);
        assert_eq!(sent, request);
        assert_eq!(body, b"[[], {}, {}]");
        assert_eq!(job_number(head), Some(7));
    }

    #[test]
    fn another_encoding_is_told() {
        let mut job = job("{}", Vec::new());
        job.content_type = Some("application/x-python-serialize".into());
        job.content_encoding = Some("binary".into());
        let message = JobMessage::new(&job, AfterJob::Stay);
        let request = r#"{"celeriac": ["application/x-python-serialize", "binary"]}"#;
        assert_eq!(std::str::from_utf8(message.parts()[1]), Ok(request));
        job.content_type = None;
        let message = JobMessage::new(&job, AfterJob::Stay);
        assert_eq!(message.parts()[1], br#"{"celeriac": ["", "binary"]}"#);
    }

    #[test]
    fn what_is_too_long_goes_in_a_file() {
        let long = format!(r#"{{"id": "{}"}}"#, "x".repeat(INLINE_BYTES));
        for job in [job("{}", vec![b'x'; INLINE_BYTES]), job(&long, Vec::new())] {
            let message = JobMessage::new(&job, AfterJob::Stay);
            let [request, body] = message.parts_for_file().unwrap();
            assert!(request.ends_with(br#""celeriac": null}"#));
            assert_eq!(body, &*job.body);
            assert_eq!(message.parts()[1..], [b"", b""]);
            assert_eq!(message.parts()[0][1] & IN_FILE, IN_FILE);
        }
    }

    fn done(kind: u8, runtime: f64, detail: &[u8]) -> Vec<u8> {
        let mut message = vec![DONE, kind, 0, 0, 0, 0, 0, 0];
        message.extend_from_slice(&9_u64.to_le_bytes());
        message.extend_from_slice(&runtime.to_le_bytes());
        message.extend_from_slice(detail);
        message
    }

    #[test]
    fn every_outcome_is_read() {
        let failure = Failure {
            exception: "E()".to_owned(),
            traceback: Some("tb".to_owned()),
            pickle: Bytes::from_static(b"\x80\x00pickle"),
        };
        let detail = b"{\"exception\": \"E()\", \"traceback\": \"tb\", \"requeue\": true, \"status\": 3}\0\x80\x00pickle";
        let runtime = Some(Duration::from_millis(1500));
        for (kind, expected) in [
            (1, Outcome::Failure(failure.clone())),
            (2, Outcome::Retry(failure.clone())),
            (3, Outcome::Ignore(failure.clone())),
            (
                4,
                Outcome::Reject {
                    requeue: true,
                    failure: failure.clone(),
                },
            ),
            (5, Outcome::Raised(failure)),
            (6, Outcome::Left { status: 3 }),
            (
                7,
                Outcome::Undecodable {
                    reason: "E()".to_owned(),
                },
            ),
            (
                8,
                Outcome::Invalid {
                    reason: "E()".to_owned(),
                },
            ),
        ] {
            let read = try_read(&done(kind, 1.5, detail));
            assert_eq!(
                read,
                Some(ChildMessage::Done {
                    job: 9,
                    outcome: expected
                }),
                "{kind}"
            );
        }
        let success = Outcome::Success {
            runtime,
            result: "5".to_owned(),
        };
        assert_eq!(
            try_read(&done(0, 1.5, b"5")),
            Some(ChildMessage::Done {
                job: 9,
                outcome: success
            })
        );
        let unknown = Outcome::Success {
            runtime: None,
            result: String::new(),
        };
        assert_eq!(
            try_read(&done(0, f64::NAN, b"")),
            Some(ChildMessage::Done {
                job: 9,
                outcome: unknown
            })
        );
        assert_eq!(try_read(&[UP]), Some(ChildMessage::Up));
        assert_eq!(
            try_read(&done(TERMINATED, f64::NAN, b"")),
            Some(ChildMessage::Terminated { job: 9 })
        );
        let mut started = vec![STARTED, 0, 0, 0, 0, 0, 0, 0];
        started.extend([3_u64, 4].iter().flat_map(|job| job.to_le_bytes()));
        let jobs = vec![3, 4];
        assert_eq!(try_read(&started), Some(ChildMessage::Started { jobs }));
        assert_eq!(read(&started[..20]), ChildMessage::Nonsense);
        assert_eq!(read(&done(99, 0.0, b"")), ChildMessage::Nonsense);
        assert_eq!(try_read(&done(1, 0.0, b"no json")), None);
    }

    proptest! {
        #[test]
        fn no_message_of_a_child_panics(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
            drop(try_read(&bytes));
            let _ = job_number(&bytes);
        }

        #[test]
        fn no_detail_panics(kind in 0u8..12, runtime in any::<f64>(), detail in ".{0,80}") {
            drop(try_read(&done(kind, runtime, detail.as_bytes())));
        }
    }
}
