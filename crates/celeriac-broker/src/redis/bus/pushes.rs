//! What the server sends a bus without being asked.

use bytes::Bytes;
use celeriac_core::bus::Kind;
use redis::{PushInfo, PushKind, Value};
use tokio::sync::Notify;

use crate::inbox::Inbox;
use crate::redis::fanout::Seen;

/// Between the connection, the keeper and whoever reads the bus.
pub(super) struct Pushes {
    /// What each channel that is subscribed to brings.
    pub(super) channels: Vec<(String, Kind)>,
    /// What came over any of them, where that may be the same.
    pub(super) seen: Option<Seen>,
    pub(super) inbox: Inbox,
    /// The list of replies has changed.
    pub(super) replied: Notify,
}

impl Pushes {
    pub(super) fn take(&self, push: &PushInfo) {
        match (&push.kind, push.data.as_slice()) {
            (PushKind::PMessage, [Value::BulkString(pattern), _, Value::BulkString(message)]) => {
                let channel = self
                    .channels
                    .iter()
                    .find(|(channel, _)| channel.as_bytes() == pattern);
                let is_repeated = self
                    .seen
                    .as_ref()
                    .is_some_and(|seen| seen.is_repeated(message));
                if let Some((_, kind)) = channel
                    && !is_repeated
                {
                    self.inbox.put(*kind, Bytes::copy_from_slice(message));
                }
            }
            (PushKind::Invalidate, _) => self.replied.notify_one(),
            (PushKind::Disconnection, _) => self.inbox.lose("the server closed the connection"),
            _ => {}
        }
    }
}
