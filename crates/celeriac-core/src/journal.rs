//! Log records: what happened, for whoever writes it down.
//!
//! The levels and logger names are Python's and Celery's, so that a record can be written by the
//! app's own logging as well.

use std::fmt;

use bytestring::ByteString;
use serde_json::{Map, Value};

/// How important a record is, with Python's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// 10: each step.
    Debug = 10,
    /// 20: the life of the worker and of each task.
    Info = 20,
    /// 30: unexpected, but nothing is lost.
    Warning = 30,
    /// 40: somebody has to do something.
    Error = 40,
    /// 50: the worker can't go on, or a message could not be read.
    Critical = 50,
}

impl Level {
    /// The level with this number of Python's, the next more important one where there is none.
    pub fn from_number(number: u32) -> Self {
        match number {
            0..=10 => Self::Debug,
            11..=20 => Self::Info,
            21..=30 => Self::Warning,
            31..=40 => Self::Error,
            _ => Self::Critical,
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Debug => "DEBUG",
            Self::Info => "INFO",
            Self::Warning => "WARNING",
            Self::Error => "ERROR",
            Self::Critical => "CRITICAL",
        })
    }
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// How important it is.
    pub level: Level,
    /// The logger that Celery would have used, such as `celery.worker.strategy`.
    pub logger: &'static str,
    /// What happened, in Celery's words where it has some.
    pub message: String,
    /// The task that it is about: id and name.
    pub task: Option<(ByteString, ByteString)>,
    /// More for handlers of the app's own logging, as Celery gives it (`record.data`).
    pub data: Option<Map<String, Value>>,
}

impl Record {
    /// A record about no task.
    pub fn new(level: Level, logger: &'static str, message: impl Into<String>) -> Self {
        Self {
            level,
            logger,
            message: message.into(),
            task: None,
            data: None,
        }
    }
}

/// Writes records down.
pub trait Journal: Send + Sync {
    /// Whether records of this level are written: costly ones need not be made otherwise.
    fn writes(&self, level: Level) -> bool;

    /// Writes a record. Never waits for anything, never fails.
    fn write(&self, record: Record);
}
