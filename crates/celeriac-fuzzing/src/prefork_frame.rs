//! What a child tells, and what it is told.

use std::borrow::Cow;

use bytes::Bytes;
use celeriac_core::pool::{Job, Outcome, RequestKey};
use celeriac_pool::prefork::frame::{self, AfterJob, ChildMessage, JobMessage};
use celeriac_protocol::TimeLimits;
use celeriac_protocol::json::Object;

pub(crate) fn check(bytes: &[u8]) {
    read(bytes);
    written(bytes);
}

/// A message is what its first bytes say, and one that is cut within its head is nonsense.
fn read(bytes: &[u8]) {
    let message = frame::read(bytes);
    match (bytes, message) {
        ([1, ..], message) => assert_eq!(message, ChildMessage::Up),
        ([2, kind, ..], ChildMessage::Done { job, outcome }) => {
            assert_eq!(Some(job), frame_number(bytes));
            assert_eq!(*kind, kind_of(&outcome));
            for length in 0..24 {
                let cut = frame::read(&bytes[..length]);
                assert_eq!(cut, ChildMessage::Nonsense, "{length}");
            }
        }
        (_, message) => assert_eq!(message, ChildMessage::Nonsense),
    }
    let _ = frame::job_number(bytes);
}

fn frame_number(bytes: &[u8]) -> Option<u64> {
    let number = bytes.get(8..16)?.try_into().ok()?;
    Some(u64::from_le_bytes(number))
}

fn kind_of(outcome: &Outcome) -> u8 {
    match outcome {
        Outcome::Success { .. } => 0,
        Outcome::Failure(_) => 1,
        Outcome::Retry(_) => 2,
        Outcome::Ignore(_) => 3,
        Outcome::Reject { .. } => 4,
        Outcome::Raised(_) => 5,
        Outcome::Left { .. } => 6,
        Outcome::Undecodable { .. } => 7,
        Outcome::Invalid { .. } => 8,
    }
}

/// A job is sent so that the child finds its request and its body again.
fn written(bytes: &[u8]) {
    let cut = bytes.iter().position(|byte| *byte == 0);
    let (request, body) = bytes.split_at(cut.unwrap_or(bytes.len()));
    let Cow::Borrowed(request) = String::from_utf8_lossy(request) else {
        return;
    };
    if !request.starts_with('{') || Object::parse(request).is_err() {
        return;
    }
    let job = Job {
        key: RequestKey(7),
        task: "t".into(),
        request: request.to_owned(),
        body: Bytes::copy_from_slice(body),
        content_type: Some("application/json".into()),
        content_encoding: Some("utf-8".into()),
        time_limits: TimeLimits::default(),
        wants_result: false,
        wants_exception: false,
    };
    let message = JobMessage::new(&job, AfterJob::Stay);
    assert_eq!(message.parts_for_file(), None);
    let message = message.parts().concat();
    assert_eq!(frame::job_number(&message), Some(7));
    let length = u32::from_le_bytes(message[4..8].try_into().expect("a head has 16 bytes"));
    let (request, sent) = message[16..].split_at(length as usize);
    assert_eq!(sent, body);
    let request = std::str::from_utf8(request).expect("a request is text");
    let request = Object::parse(request).expect("a request is an object");
    assert_eq!(request.get("celeriac"), Some("null"));
}
