//! What each database does in its own words.

use std::collections::HashSet;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use celeriac_core::broker::{Error, Settlement};
use celeriac_core::limit::LimitSession;

/// A database that can be a broker, not yet connected.
#[async_trait]
pub(super) trait Engine: Send + Sync {
    /// Connects as `worker`, and makes what is missing of the tables.
    async fn open(&self, worker: &str) -> Result<Box<dyn Store>, Error>;

    /// Connects to the table of limits, which is made if it is missing.
    async fn open_limits(&self) -> Result<Box<dyn LimitSession>, Error>;
}

/// One connection of one worker. Each call is all or nothing.
#[async_trait]
pub(super) trait Store: Delays + DeadLetters + Send {
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

    /// Puts envelopes into queues, in their order and all or none, and returns when they are safe
    /// there. A queue that is missing is made.
    async fn publish(&mut self, messages: Vec<Sent>) -> Result<(), Error>;

    /// What is kept in the table `celeriac_revoked` since a moment, in seconds since 1970, the
    /// oldest first; nothing where there is no such table.
    async fn revoked(&mut self, since: f64) -> Result<Vec<Revoked>, Error>;

    /// Removes this worker from the tables.
    async fn leave(&mut self) -> Result<(), Error>;
}

/// The delay store: messages that nobody sees, and a table that tells when they are to be seen.
#[async_trait]
pub(super) trait Delays {
    /// Has messages come whose moment is there, some in each call.
    async fn move_due(&mut self) -> Result<Moved, Error>;

    /// How many messages are in the store.
    async fn count_delayed(&mut self) -> Result<u64, Error>;

    /// Has some messages come, whenever they are due.
    async fn return_some(&mut self) -> Result<Came, Error>;

    /// Has all messages come that are in the store now, and tells how many there were.
    async fn return_delayed(&mut self) -> Result<u64, Error> {
        let all = self.count_delayed().await?;
        let (mut gone, mut returned) = (0, 0);
        // No more than there were: who consumes them may delay them again.
        while gone < all {
            let some = self.return_some().await?;
            if some.gone == 0 {
                break;
            }
            gone += some.gone;
            returned += some.seen;
        }
        Ok(returned)
    }

    /// The first messages of these queues, at most `count`, in the order of their moments.
    async fn first_delayed(
        &mut self,
        queues: &[i64],
        count: usize,
    ) -> Result<Vec<DelayedRow>, Error>;
}

/// Records by their keys.
#[async_trait]
pub(super) trait DeadLetters {
    /// Keeps a record in place of another with its key; what is beyond the bounds goes. It is safe
    /// when this returns.
    async fn bury(&mut self, record: &Record, bounds: Limits) -> Result<(), Error>;

    /// All records, the latest first.
    async fn records(&mut self) -> Result<Vec<String>, Error>;

    /// The records with these keys.
    async fn records_of(&mut self, keys: &[String]) -> Result<Vec<String>, Error>;

    /// Puts messages into their queues and forgets their records, each only if it is still there.
    /// Tells how many there were.
    async fn replay(&mut self, replays: &[Replay]) -> Result<u64, Error>;

    /// Forgets records, and tells how many there were.
    async fn forget(&mut self, keys: &[String]) -> Result<u64, Error>;
}

/// How long a message stays in the delay store at least, in microseconds: a worker whose clock is
/// behind the database's would be given at once what it has just stored, over and over.
pub(super) const SOONEST: i64 = 1_000_000;
/// How many messages go from the delay store to their queues in one transaction.
pub(super) const MOVED_AT_ONCE: usize = 500;
/// How many records beyond the bounds go at once: one more than is added is enough.
pub(super) const FORGOTTEN_AT_ONCE: usize = 100;

/// What came of the delay store.
pub(super) struct Came {
    /// How many stand there no longer.
    pub(super) gone: u64,
    /// How many of them were still messages.
    pub(super) seen: u64,
}

/// What [`Delays::move_due`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Moved {
    /// How many messages came.
    pub(super) count: u64,
    /// How long until the next is due, by the database's clock; `None` where there is no other.
    pub(super) next: Option<Duration>,
}

/// A message in the delay store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DelayedRow {
    pub(super) queue: i64,
    pub(super) payload: Bytes,
    /// When it comes, in microseconds since 1970.
    pub(super) due: i64,
}

/// A dead letter as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    /// At most 255 printable characters of ASCII.
    pub(super) key: String,
    /// In microseconds since 1970.
    pub(super) died_at: i64,
    /// JSON in ASCII.
    pub(super) text: String,
}

/// Which records stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    /// What died before goes: microseconds since 1970.
    pub(super) since: i64,
    /// The most.
    pub(super) number: usize,
}

/// A dead letter that goes back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Replay {
    /// Its record's.
    pub(super) key: String,
    /// The queue's name.
    pub(super) queue: String,
    /// The message.
    pub(super) payload: Bytes,
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

/// A message that goes into a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sent {
    /// The queue's name.
    pub(super) queue: String,
    /// The envelope.
    pub(super) payload: String,
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
