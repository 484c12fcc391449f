//! What the server sends a session without being asked.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use redis::{PushInfo, PushKind, Value};
use tokio::sync::Notify;

use super::fanout::Seen;

/// Between the connection and its session.
#[derive(Default)]
pub(super) struct Pushes {
    pub(super) arrived: Notify,
    /// Messages of fanout exchanges, at most [`Pushes::LIMIT`].
    messages: Mutex<VecDeque<(String, Bytes)>>,
    /// What came over any channel, where that may be the same.
    seen: Option<Seen>,
}

impl Pushes {
    pub(super) fn new(seen: Option<Seen>) -> Self {
        Self {
            seen,
            ..Self::default()
        }
    }

    pub(super) fn messages(&self) -> MutexGuard<'_, VecDeque<(String, Bytes)>> {
        // Nothing panics while it is held.
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Beyond this, fanout messages are dropped, as Redis itself drops subscribers that lag.
    const LIMIT: usize = 10_000;

    pub(super) fn take(&self, push: &PushInfo) {
        if push.kind == PushKind::PMessage
            && let [Value::BulkString(pattern), _, Value::BulkString(message)] =
                push.data.as_slice()
            && !self
                .seen
                .as_ref()
                .is_some_and(|seen| seen.is_repeated(message))
        {
            let mut messages = self.messages();
            if messages.len() < Self::LIMIT {
                let pattern = String::from_utf8_lossy(pattern).into_owned();
                messages.push_back((pattern, Bytes::copy_from_slice(message)));
            }
        }
        // A change of a list, or the end of the connection: either is a reason to look.
        self.arrived.notify_one();
    }
}
