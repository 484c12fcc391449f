//! What the worker asks of a broker.
//!
//! The seam is transport alone: retries, ETA, time limits and the meaning of an acknowledgement
//! belong to the worker. One conformance suite (`celeriac-testing`) holds every implementation to
//! what is written here.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use celeriac_protocol::{Marks, Message};
use jiff::Timestamp;

use crate::bus::{Bus, BusOptions};
use crate::dead_letter::{Bounds, DeadLetter};
use crate::limit::SharedLimitStore;
use crate::publisher::Publisher;
use crate::queue::Queue;
use crate::revokes::KeptRevokes;

/// A place that messages come from, not yet connected.
#[async_trait]
pub trait Broker: Send + Sync + fmt::Debug {
    /// The URL as it may be shown: without its password.
    fn display_url(&self) -> String;

    /// What this broker can do.
    fn capabilities(&self) -> Capabilities;

    /// Connects, and proves that the broker answers.
    ///
    /// # Errors
    /// See [`Error::retry`] for whether trying again may help.
    async fn connect(&self) -> Result<Box<dyn Session>, Error>;

    /// Opens the bus, listening before it returns; `None` when this broker has none.
    ///
    /// # Errors
    /// See [`Error::retry`] for whether trying again may help.
    async fn open_bus(&self, _options: &BusOptions) -> Result<Option<Box<dyn Bus>>, Error> {
        Ok(None)
    }

    /// What sends messages to this broker; it connects when it is first used.
    ///
    /// # Errors
    /// When this broker is not one that messages can be sent to.
    fn publisher(&self) -> Result<Arc<dyn Publisher>, Error> {
        Err(Error::new(
            ErrorKind::Configuration,
            "no messages can be sent to this broker",
        ))
    }

    /// Where the same server or database keeps limits; `None` when it is no place for them.
    fn limits(&self) -> Option<SharedLimitStore> {
        None
    }
}

/// One live connection of one consumer. Dropping it gives nothing back: see [`Session::close`].
#[async_trait]
pub trait Session: Send {
    /// Makes sure that the queue and its bindings exist.
    async fn declare(&mut self, queue: &Queue) -> Result<(), Error>;

    /// Begins to consume from a queue that is not consumed yet.
    async fn subscribe(&mut self, queue: &Queue) -> Result<(), Error>;

    /// Ends consuming from a queue; what was fetched from it stays fetched.
    async fn cancel(&mut self, queue: &str) -> Result<(), Error>;

    /// Settles messages and fetches new ones, without waiting for any.
    ///
    /// Fetches at most `want.runnable` messages that can run now, and besides them messages with
    /// an ETA, together at most `want.total`. Each fetched message stays the broker's until it is
    /// settled: should this process die, it is delivered again.
    ///
    /// The settlements count as done when this returns `Ok`; on an error all of them may be given
    /// again, to this session or to a later one of the same broker.
    async fn exchange(
        &mut self,
        settlements: &[Settlement],
        want: Want,
    ) -> Result<Vec<Delivery>, Error>;

    /// Waits until a message may have come, without removing any. May return too early, and
    /// returns by itself from time to time. Safe to cancel.
    async fn wait(&mut self) -> Result<(), Error>;

    /// Does what is due: renews the leases of what is fetched and not settled, and gives the
    /// messages of dead workers back to their queues.
    ///
    /// Answers with the tags whose messages are no longer this session's: another worker has or
    /// will have them. To be called again after [`Maintained::next`].
    async fn maintain(&mut self) -> Result<Maintained, Error>;

    /// Deletes the messages that wait in a queue, and tells how many.
    async fn purge(&mut self, queue: &str) -> Result<u64, Error>;

    /// How many messages wait in a queue.
    async fn size(&mut self, queue: &str) -> Result<u64, Error>;

    /// Puts a message into a queue, and returns when it is safe there.
    async fn publish(&mut self, queue: &str, message: &Message) -> Result<(), Error>;

    /// Messages that wait for their moment in the delay store, at most `count`, the earliest first:
    /// those of the queues that are consumed. Where the store can't be looked into, those that this
    /// worker has stored.
    async fn delayed(&mut self, _count: usize) -> Result<Vec<Delayed>, Error> {
        Ok(Vec::new())
    }

    /// Puts all messages of the delay store into their queues now, whoever consumes them, and tells
    /// how many there were: for a fleet that goes back to Celery. Those that are delayed meanwhile
    /// stay.
    async fn return_delayed(&mut self) -> Result<u64, Error> {
        Ok(0)
    }

    /// Keeps a dead letter, and returns when it is safe. One with the same id is replaced; what is
    /// beyond the bounds goes.
    async fn bury(&mut self, _letter: &DeadLetter, _bounds: Bounds) -> Result<(), Error> {
        Err(keeps_no_dead_letters())
    }

    /// The dead letters, the latest first.
    async fn dead_letters(&mut self) -> Result<Vec<DeadLetter>, Error> {
        Err(keeps_no_dead_letters())
    }

    /// Puts dead letters back into their queues as they first came, and tells how many there were.
    async fn replay(&mut self, _ids: &[String]) -> Result<u64, Error> {
        Err(keeps_no_dead_letters())
    }

    /// Forgets dead letters, and tells how many there were.
    async fn forget(&mut self, _ids: &[String]) -> Result<u64, Error> {
        Err(keeps_no_dead_letters())
    }

    /// What the broker keeps of revokes since `since`, in seconds since 1970: nothing where nobody
    /// has kept any, or where this broker is no place for them.
    async fn revokes(&mut self, _since: f64) -> Result<KeptRevokes, Error> {
        Ok(KeptRevokes::default())
    }

    /// Leaves the broker in order: leases end at once, nothing waits for a timeout.
    /// What is still fetched has been released before by [`Session::exchange`].
    async fn close(self: Box<Self>) -> Result<(), Error>;
}

fn keeps_no_dead_letters() -> Error {
    Error::new(ErrorKind::Refused, "this broker keeps no dead letters")
}

/// How many messages a worker has use for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Want {
    /// Messages that can run at once.
    pub runnable: usize,
    /// Messages in all; the rest have an ETA and are held.
    pub total: usize,
}

impl Want {
    /// Nothing.
    pub const NONE: Self = Self {
        runnable: 0,
        total: 0,
    };

    /// Whether nothing is wanted.
    pub fn is_none(self) -> bool {
        self.runnable == 0
    }
}

/// What a broker can do, for tests and for settings that ask for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Messages have priorities.
    pub priorities: bool,
    /// A message of a dead worker comes back by itself.
    pub recovers: bool,
    /// There is a delay store: [`Fate::Delay`] is carried out.
    pub delays: bool,
    /// A tag can still be settled after the connection was lost and made anew.
    pub tags_outlive_connections: bool,
}

/// What [`Session::maintain`] found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Maintained {
    /// Tags of this session that are no longer its own.
    pub lost: Vec<DeliveryTag>,
    /// How many messages of dead workers were given back.
    pub restored: u64,
    /// When to call again.
    pub next: Duration,
    /// For how long from the beginning of this call nobody else is given what is fetched, should no
    /// further call succeed; `None` where it stays for as long as the connection.
    pub leased: Option<Duration>,
}

/// A message that was fetched and is not settled yet.
#[derive(Debug)]
pub struct Delivery {
    /// Names it in settlements.
    pub tag: DeliveryTag,
    /// The queue that it came from.
    pub queue: Arc<str>,
    /// The message, or the bytes that are none.
    pub message: Result<Message, Unreadable>,
}

/// Bytes that came from a queue and are no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Unreadable {
    /// What is wrong with them.
    pub reason: String,
    /// All of them.
    pub raw: Bytes,
}

/// Names a fetched message towards the session that fetched it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeliveryTag(pub u64);

/// What is to become of a fetched message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settlement {
    /// The message.
    pub tag: DeliveryTag,
    /// Its fate.
    pub fate: Fate,
}

/// The fate of a fetched message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fate {
    /// It is dealt with: remove it.
    Ack,
    /// It is refused: remove it, or dead-letter it where the broker does that.
    Reject,
    /// It is to run again, after the messages that wait: marked as redelivered.
    Requeue,
    /// It was not begun: put it where it was taken from, unmarked.
    Release,
    /// It is to come later: keep it in the delay store.
    Delay(Delay),
}

/// How a message comes again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Delay {
    /// Not before this moment; `None` for at once, after the messages that wait.
    pub until: Option<Timestamp>,
    /// With these marks in place of its own.
    pub marks: Marks,
}

/// A message in the delay store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delayed {
    /// When it comes.
    pub until: Timestamp,
    /// The queue that it comes to.
    pub queue: Arc<str>,
    /// Itself.
    pub message: Message,
}

/// What went wrong between the worker and its broker.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// What kind of trouble it is.
    pub kind: ErrorKind,
    /// What happened, in the broker's words; never with a password.
    pub message: String,
    /// What an operator may do, where that can be told.
    pub hint: Option<String>,
}

/// Kinds of trouble with a broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The broker can't be reached, or the connection is lost.
    Connection,
    /// The broker refuses the user name or the password.
    Denied,
    /// The broker has no room: a full disk, or its memory limit.
    Full,
    /// The URL or an option makes no sense.
    Configuration,
    /// Anything else that the broker answered.
    Refused,
}

/// Whether and how trying again may help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Connect anew.
    Reconnect,
    /// Never: the configuration has to change.
    Never,
}

impl Error {
    /// An error of the given kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            hint: None,
        }
    }

    /// The same with a hint.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// What went wrong, and what to do about it.
    pub fn in_full(&self) -> String {
        match &self.hint {
            Some(hint) => format!("{self} ({hint})"),
            None => self.to_string(),
        }
    }

    /// Whether trying again may help.
    pub fn retry(&self) -> Retry {
        match self.kind {
            ErrorKind::Connection | ErrorKind::Full | ErrorKind::Refused => Retry::Reconnect,
            ErrorKind::Denied | ErrorKind::Configuration => Retry::Never,
        }
    }
}
