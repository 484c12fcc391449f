//! What workers and clients ask of a result backend.
//!
//! The documents are Celery's, so that either side reads what the other has written. One conformance
//! suite (`celeriac-testing`) holds every implementation to what is written here.
//! Celery's counterpart: `celery.backends.base.Backend`.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use celeriac_protocol::Exception;
use jiff::Timestamp;
use serde_json::{Map, Value};

/// Where results are kept. Connects by itself, and again when the connection is lost; may be used by
/// many at once.
#[async_trait]
pub trait Backend: Send + Sync + fmt::Debug {
    /// The URL as it may be shown: without its password.
    fn display_url(&self) -> String;

    /// How the parts of a chord are counted.
    fn chords(&self) -> Chords;

    /// Where results go to, for the property `reply_to` of the messages whose results are awaited
    /// here; `None` where they are found by the task's id.
    fn reply_to(&self) -> Option<String> {
        None
    }

    /// Makes ready for the result of a task that is about to be sent, where a result that comes
    /// early would be missed otherwise.
    async fn expect(&self, id: &str) -> Result<(), Error>;

    /// Stores states of tasks, all in one go where that can be, and returns when they are safe. A
    /// stored success is never replaced, which is no error.
    async fn store(&self, results: &[Stored]) -> Result<(), Error>;

    /// What is stored of these tasks, in their order; `None` for those of which nothing is.
    async fn get(&self, ids: &[String]) -> Result<Vec<Option<Meta>>, Error>;

    /// Waits until something else than `known` is stored of a task, and answers with it. Safe to
    /// cancel, and to be called by many at once.
    async fn changed(&self, id: &str, known: Option<&Meta>) -> Result<Meta, Error>;

    /// Forgets what is stored of these tasks, and awaits it no more.
    async fn forget(&self, ids: &[String]) -> Result<(), Error>;

    /// Keeps the members of a group: `GroupResult.as_tuple()` as JSON.
    async fn save_group(&self, group_id: &str, members: &Value) -> Result<(), Error>;

    /// The members of a group that was kept.
    async fn group(&self, group_id: &str) -> Result<Option<Value>, Error>;

    /// Forgets a group.
    async fn forget_group(&self, group_id: &str) -> Result<(), Error>;

    /// Where [`Chords::Counted`]: says how many parts a chord has. To be called before the last of
    /// them is sent.
    async fn open_chord(&self, _group_id: &str, _size: u64) -> Result<(), Error> {
        Err(Error::no_chords(&self.display_url()))
    }

    /// Where [`Chords::Counted`]: the chord has so many parts more (`Task.add_to_chord`).
    async fn extend_chord(&self, _group_id: &str, _by: u64) -> Result<(), Error> {
        Err(Error::no_chords(&self.display_url()))
    }

    /// Where [`Chords::Counted`]: a part has ended. Answers with all parts in order if it was the
    /// last and this caller is the one to send the body; it then calls [`Backend::close_chord`].
    async fn chord_part(&self, _part: &ChordPart) -> Result<Option<Claimed>, Error> {
        Err(Error::no_chords(&self.display_url()))
    }

    /// Where [`Chords::Counted`]: the body was sent, or what it fails with is stored.
    async fn close_chord(&self, _group_id: &str, _claim: &Claimed) -> Result<(), Error> {
        Err(Error::no_chords(&self.display_url()))
    }

    /// Deletes what has expired, where that does not happen by itself
    /// (`celery.backend_cleanup`).
    async fn cleanup(&self) -> Result<(), Error> {
        Ok(())
    }

    /// Leaves in order.
    async fn close(&self) -> Result<(), Error> {
        Ok(())
    }
}

/// How a backend gets a chord's body sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chords {
    /// The backend counts the parts; whoever adds the last one sends the body.
    Counted,
    /// A task, `celery.chord_unlock`, looks again and again whether all parts have ended.
    Unlocked,
    /// It can't.
    None,
}

/// A state of a task that is to be stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// What is stored.
    pub meta: Meta,
    /// The queue of whoever awaits it, from the task's message (`rpc://`).
    pub reply_to: Option<String>,
    /// The id in the message's property `correlation_id` (`rpc://`).
    pub correlation_id: Option<String>,
    /// How long it is kept, where the store lets go of it by itself; `None` for what the settings say.
    pub expires: Option<Duration>,
}

/// What is known of a task: Celery's meta document.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Meta {
    /// The task's id.
    pub task_id: String,
    /// `SUCCESS`, `FAILURE`, `STARTED`, or any other word.
    pub status: String,
    /// The result; for a failure and alike an exception as JSON ([`Exception`]).
    pub result: Value,
    /// The traceback's text.
    pub traceback: Option<String>,
    /// Results of the tasks that this one has sent, as `AsyncResult.as_tuple()`; null where nobody
    /// knows.
    pub children: Value,
    /// When the task ended.
    pub date_done: Option<Timestamp>,
    /// The group that the task belongs to.
    pub group_id: Option<String>,
    /// The task that has sent this one.
    pub parent_id: Option<String>,
    /// What `result_extended` adds: `name`, `args`, `kwargs`, `worker`, `retries`, `queue`,
    /// `stamped_headers` and the stamps.
    pub extended: Map<String, Value>,
}

impl Meta {
    /// Whether nothing else will be stored (`celery.states.READY_STATES`).
    pub fn is_ready(&self) -> bool {
        is_ready(&self.status)
    }

    /// The exception that a failed, revoked or retried task has ended with.
    pub fn exception(&self) -> Option<Exception> {
        matches!(&*self.status, "FAILURE" | "REVOKED" | "RETRY")
            .then(|| serde_json::from_value(self.result.clone()).ok())
            .flatten()
    }
}

/// Whether a task with this state has ended.
pub fn is_ready(status: &str) -> bool {
    matches!(status, "SUCCESS" | "FAILURE" | "REVOKED")
}

/// A part of a chord that has ended.
#[derive(Debug, Clone, PartialEq)]
pub struct ChordPart {
    /// The group that the chord's header is.
    pub group_id: String,
    /// The task.
    pub task_id: String,
    /// Its place in the header.
    pub group_index: Option<u64>,
    /// Its state.
    pub status: String,
    /// Its result, or its exception as JSON.
    pub result: Value,
}

/// All parts of a chord, for whoever sends its body.
#[derive(Debug, Clone, PartialEq)]
pub struct Claimed {
    /// The results in the order of the header, or Celery's `ChordError` about the first part that
    /// failed, as it is to be stored for the body.
    pub results: Result<Vec<Value>, Exception>,
    /// Proves the claim to [`Backend::close_chord`].
    pub token: String,
}

/// What went wrong with a result backend.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// What kind of trouble it is.
    pub kind: ErrorKind,
    /// What happened, in the backend's words; never with a password.
    pub message: String,
    /// What an operator may do, where that can be told.
    pub hint: Option<String>,
}

/// Kinds of trouble with a result backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// It can't be reached, or the connection is lost: trying again may help.
    Connection,
    /// The URL or an option makes no sense.
    Configuration,
    /// What is stored can't be read here, such as a pickle.
    Unreadable,
    /// It can't do this at all.
    Unsupported,
    /// Anything else that it answered.
    Refused,
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

    /// Whether trying again may help.
    pub fn is_transient(&self) -> bool {
        self.kind == ErrorKind::Connection
    }

    fn no_chords(url: &str) -> Self {
        Self::new(
            ErrorKind::Unsupported,
            format!("The result backend {url} does not count the parts of chords."),
        )
    }
}

/// How a result backend is asked to keep results: Celery's settings by their names.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// `result_expires`: how long a result is kept; `None` for ever.
    pub expires: Option<Duration>,
    /// `result_failure_expires`: how long a failure is kept, where that differs.
    pub failure_expires: Option<Duration>,
    /// `result_chord_expires`: how long the parts of a chord are kept, where that differs.
    pub chord_expires: Option<Duration>,
    /// `result_chord_join_timeout`: how long the results of a chord may take to be fetched.
    pub chord_join_timeout: Duration,
    /// `result_persistent`: whether messages with results survive a restart of the broker.
    pub persistent: bool,
    /// `result_extended`: whether name, arguments and more of a task are stored with its result.
    pub extended: bool,
    /// `result_backend_transport_options`, and all further settings that begin with the backend's
    /// name (`mongodb_backend_settings`, `s3_bucket`, `database_table_names`, …).
    pub options: Map<String, Value>,
}

impl Default for Settings {
    /// Celery's defaults.
    fn default() -> Self {
        Self {
            expires: Some(Duration::from_hours(24)),
            failure_expires: None,
            chord_expires: None,
            chord_join_timeout: Duration::from_secs(3),
            persistent: false,
            extended: false,
            options: Map::new(),
        }
    }
}
