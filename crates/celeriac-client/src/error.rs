//! What goes wrong when a task is called or its result is awaited.

use std::time::Duration;

use celeriac_core::{backend, broker};
use celeriac_protocol::Exception;

/// Why a task was not called, or its result is not to be had.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The message can't be sent, or it is not known whether it was.
    #[error("{}", .0.in_full())]
    Broker(#[from] broker::Error),
    /// The result backend does not answer, or refuses.
    #[error("{0}")]
    Backend(#[from] backend::Error),
    /// An option, a setting or a canvas makes no sense; what to do is told with it.
    #[error("{0}")]
    Invalid(String),
    /// There is no result backend to ask.
    #[error("there is no result backend: set result_backend to know of results")]
    NoBackend,
    /// The task has not ended in time.
    #[error("the task {id} has not ended within {waited:?}")]
    Timeout {
        /// The task.
        id: String,
        /// How long was waited.
        waited: Duration,
    },
    /// The task has ended without a result.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// The result is not of the type that was asked for.
    #[error("the result of the task {id} is not what was expected: {reason}")]
    Unfit {
        /// The task.
        id: String,
        /// What does not fit.
        reason: String,
    },
}

/// How a task has ended without a result.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TaskError {
    /// It has failed.
    #[error("the task {id} has failed: {exception}")]
    Failure {
        /// The task.
        id: String,
        /// What it failed with, by Python's names.
        exception: Exception,
        /// The traceback's text.
        traceback: Option<String>,
    },
    /// It was revoked, or has expired.
    #[error("the task {id} was revoked: {exception}")]
    Revoked {
        /// The task.
        id: String,
        /// `TaskRevokedError`, or alike.
        exception: Exception,
    },
}
