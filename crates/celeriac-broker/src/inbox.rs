//! What a bus heard and nobody has read yet.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use celeriac_core::broker::{Error, ErrorKind, Unreadable};
use celeriac_core::bus::{Heard, Kind};
use celeriac_protocol::envelope;
use tokio::sync::Notify;

/// Between the tasks that listen and whoever reads the bus.
#[derive(Default)]
pub(crate) struct Inbox {
    state: Mutex<State>,
    /// Something was put in, or the connection is lost.
    arrived: Notify,
}

#[derive(Default)]
struct State {
    /// At most [`Inbox::LIMIT`] envelopes.
    heard: VecDeque<(Kind, Bytes)>,
    /// How many more there were.
    dropped: u64,
    /// Why nothing more will come.
    lost: Option<String>,
}

impl Inbox {
    /// Beyond this, what is heard is dropped, as Redis itself drops subscribers that lag.
    const LIMIT: usize = 10_000;

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts an envelope in.
    pub(crate) fn put(&self, kind: Kind, raw: Bytes) {
        let mut state = self.state();
        if state.heard.len() < Self::LIMIT {
            state.heard.push_back((kind, raw));
        } else {
            state.dropped += 1;
        }
        drop(state);
        self.arrived.notify_one();
    }

    /// Notes that nothing more will come.
    pub(crate) fn lose(&self, reason: &str) {
        self.state().lost.get_or_insert_with(|| reason.to_owned());
        self.arrived.notify_one();
    }

    /// Waits for the next that was put in, and opens it. Safe to cancel.
    pub(crate) async fn next(&self) -> Result<Heard, Error> {
        loop {
            {
                let mut state = self.state();
                let dropped = std::mem::take(&mut state.dropped);
                if dropped > 0 {
                    tracing::warn!(
                        target: "celeriac.broker",
                        "{dropped} events and commands were dropped: they came faster than they \
                         were read."
                    );
                }
                if let Some((kind, raw)) = state.heard.pop_front() {
                    drop(state);
                    let message = envelope::decode(&raw).map_err(|error| Unreadable {
                        reason: error.to_string(),
                        raw,
                    });
                    return Ok(Heard { kind, message });
                }
                if let Some(reason) = &state.lost {
                    return Err(Error::new(ErrorKind::Connection, reason.clone()));
                }
            }
            self.arrived.notified().await;
        }
    }
}
