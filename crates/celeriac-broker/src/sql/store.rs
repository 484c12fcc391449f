//! What each database does in its own words.

use std::collections::HashSet;

use async_trait::async_trait;
use bytes::Bytes;
use celeriac_core::broker::{Error, Settlement};

/// A database that can be a broker, not yet connected.
#[async_trait]
pub(super) trait Engine: Send + Sync {
    /// Connects as `worker`, and makes what is missing of the tables.
    async fn open(&self, worker: &str) -> Result<Box<dyn Store>, Error>;
}

/// One connection of one worker. Each call is all or nothing.
#[async_trait]
pub(super) trait Store: Send {
    /// The id of a queue, which is made if it is missing.
    async fn queue_id(&mut self, name: &str) -> Result<i64, Error>;

    /// Settles those of `settlements` that this worker still holds, and then claims. What is
    /// claimed is in the order of its ids.
    async fn exchange(
        &mut self,
        settlements: &[Settlement],
        claims: &Claims,
    ) -> Result<Vec<Row>, Error>;

    /// Waits until there may be something to claim, or for a while. Safe to cancel.
    async fn wait(&mut self) -> Result<(), Error>;

    /// Gives a sign of life, and gives back what dead workers hold.
    async fn beat(&mut self) -> Result<Beat, Error>;

    /// The ids of all messages that this worker holds.
    async fn held(&mut self) -> Result<HashSet<u64>, Error>;

    /// Deletes what waits in a queue, and tells how much.
    async fn purge(&mut self, queue: &str) -> Result<u64, Error>;

    /// How many messages wait in a queue.
    async fn size(&mut self, queue: &str) -> Result<u64, Error>;

    /// Puts an envelope into a queue, and returns when it is safe there.
    async fn publish(&mut self, queue: &str, payload: &str) -> Result<(), Error>;

    /// What is kept in the table `celeriac_revoked` since a moment, in seconds since 1970, the
    /// oldest first; nothing where there is no such table.
    async fn revoked(&mut self, since: f64) -> Result<Vec<Revoked>, Error>;

    /// Removes this worker from the tables.
    async fn leave(&mut self) -> Result<(), Error>;
}

/// A row of the table `celeriac_revoked`, which Python makes and writes
/// (`celeriac.host.revocations`). There is one in a database, whatever kombu's tables are named.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Revoked {
    /// `id`, or `header`.
    pub(super) kind: Bytes,
    /// The id, or a JSON array of a header and its value.
    pub(super) member: Bytes,
}

/// What to claim.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Claims {
    /// From each queue, in the order in which they have their turn.
    pub(super) shares: Vec<Share>,
    /// In all.
    pub(super) limit: usize,
}

/// How many messages to claim from one queue at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) queue: i64,
    pub(super) count: usize,
}

/// A message that was claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) id: i64,
    pub(super) queue: i64,
    pub(super) payload: Bytes,
}

/// What [`Store::beat`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Beat {
    /// How many messages of dead workers were given back.
    pub(super) restored: u64,
    /// How many messages this worker holds.
    pub(super) held: u64,
}
