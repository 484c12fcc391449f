//! How a task ends when it does not return a value.

use std::any::Any;
use std::fmt;
use std::time::Duration;

use celeriac_protocol::{Exception, Signature};
use jiff::Timestamp;

use crate::arguments::Arguments;

/// What a task answers with.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A task's end other than by a value. Any error becomes one with `?`: a failure, in Python an
/// exception of the error's type.
#[derive(Debug, Clone)]
pub struct Error(Box<Ending>);

/// The ways in which a task ends other than by a value.
#[derive(Debug, Clone)]
pub enum Ending {
    /// It has failed.
    Failure(Failure),
    /// It is to be tried again (`Task.retry`).
    Retry(Retry),
    /// Nothing is stored or told of it (`celery.exceptions.Ignore`).
    Ignore,
    /// Its message is rejected (`celery.exceptions.Reject`).
    Reject {
        /// Why.
        reason: String,
        /// Whether it comes again.
        requeue: bool,
    },
    /// Another call takes its place: it has this one's id, and goes on with its links, its chain and
    /// its chord (`Task.replace`).
    Replace(Box<Signature>),
}

/// A failure.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    /// What it is in Python.
    pub exception: Exception,
    /// What led to it, for people: the errors behind it, or a panic's backtrace.
    pub traceback: Option<String>,
}

/// How a task is tried again.
#[derive(Debug, Clone, Default)]
pub struct Retry {
    /// Why; a failure with it when it was tried too often already.
    pub failure: Option<Failure>,
    /// When; `None` for what the task's policy says.
    pub when: Option<When>,
    /// With other arguments.
    pub arguments: Option<Arguments>,
    /// How often at most, in place of what the task's policy says.
    pub max_retries: Option<Option<u32>>,
}

/// When something is to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// So much later than now (`countdown`).
    After(Duration),
    /// At that moment (`eta`).
    At(Timestamp),
}

impl Error {
    /// A task's end.
    pub fn new(ending: Ending) -> Self {
        Self(Box::new(ending))
    }

    /// A failure that is this exception in Python.
    pub fn failure(exception: Exception) -> Self {
        exception.into()
    }

    /// Tries again, when the task's policy says.
    pub fn retry() -> Self {
        Self::new(Ending::Retry(Retry::default()))
    }

    /// Tries again after so long.
    pub fn retry_after(wait: Duration) -> Self {
        Self::new(Ending::Retry(Retry {
            when: Some(When::After(wait)),
            ..Retry::default()
        }))
    }

    /// Ends without anything being stored.
    pub fn ignore() -> Self {
        Self::new(Ending::Ignore)
    }

    /// Rejects the message.
    pub fn reject(reason: impl Into<String>, requeue: bool) -> Self {
        Self::new(Ending::Reject {
            reason: reason.into(),
            requeue,
        })
    }

    /// Has another call take this one's place.
    pub fn replace(signature: Signature) -> Self {
        Self::new(Ending::Replace(Box::new(signature)))
    }

    /// Has this failure be tried again, when the task's policy says.
    #[must_use]
    pub fn retried(self) -> Self {
        match *self.0 {
            Ending::Failure(failure) => Self::new(Ending::Retry(Retry {
                failure: Some(failure),
                ..Retry::default()
            })),
            ending => Self::new(ending),
        }
    }

    /// How the task ends.
    pub fn ending(&self) -> &Ending {
        &self.0
    }

    /// How the task ends.
    pub fn into_ending(self) -> Ending {
        *self.0
    }

    /// What it is in Python.
    pub fn exception(&self) -> Exception {
        match &*self.0 {
            Ending::Failure(failure) => failure.exception.clone(),
            Ending::Retry(retry) => match &retry.failure {
                Some(failure) => failure.exception.clone(),
                None => Exception::celery("Retry", "Retry"),
            },
            Ending::Ignore => Exception::celery("Ignore", ""),
            Ending::Reject { reason, requeue } => Exception {
                exc_message: vec![reason.clone().into(), (*requeue).into()],
                ..Exception::celery("Reject", "")
            },
            Ending::Replace(signature) => Exception::celery("Ignore", signature.task.clone()),
        }
    }
}

impl<E: std::error::Error + 'static> From<E> for Error {
    fn from(error: E) -> Self {
        // An exception is itself, whatever type of Rust's it is.
        if let Some(exception) = (&error as &dyn Any).downcast_ref::<Exception>() {
            return Self::new(Ending::Failure(Failure {
                exception: exception.clone(),
                traceback: None,
            }));
        }
        let (module, name) = python_class(std::any::type_name::<E>());
        let mut traceback = String::new();
        let mut source = error.source();
        while let Some(cause) = source {
            traceback.push_str("caused by: ");
            traceback.push_str(&cause.to_string());
            traceback.push('\n');
            source = cause.source();
        }
        Self::new(Ending::Failure(Failure {
            exception: Exception::new(module, name, error.to_string()),
            traceback: (!traceback.is_empty()).then_some(traceback),
        }))
    }
}

/// Module and class as Python would spell a type of Rust's: `std::num::ParseIntError` is
/// `ParseIntError` of `std.num`.
fn python_class(type_name: &str) -> (String, String) {
    let plain = type_name.split('<').next().unwrap_or(type_name);
    let plain = plain.trim_start_matches('&');
    match plain.rsplit_once("::") {
        Some((module, name)) => (module.replace("::", "."), name.to_owned()),
        None => ("builtins".to_owned(), plain.to_owned()),
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.exception())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<i64> {
        Ok(text.parse::<i64>()?)
    }

    #[test]
    fn any_error_is_an_exception_of_its_type() {
        let exception = parse("two").unwrap_err().exception();
        assert_eq!(exception.exc_type, "ParseIntError");
        assert_eq!(exception.exc_module.as_deref(), Some("core.num.error"));
        assert_eq!(exception.message(), "invalid digit found in string");
    }

    #[test]
    fn a_failure_can_be_retried() {
        let error = parse("two").unwrap_err().retried();
        let Ending::Retry(retry) = error.ending() else {
            panic!("{error:?}");
        };
        assert!(retry.failure.is_some());
    }
}
