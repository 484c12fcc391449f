//! What a worker says of its health, as it goes over a connection.

use celeriac_worker::vitals::Health;
use serde::{Deserialize, Serialize};

/// A worker's health, with the worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Report {
    /// The node's name.
    pub(super) hostname: String,
    /// The worker's process id.
    pub(super) pid: u32,
    /// Whether anything but a restart may help.
    pub(super) live: Answer,
    /// Whether it runs tasks that come.
    pub(super) ready: Answer,
    /// Whether its start is over.
    pub(super) started: Answer,
}

/// A yes, or a no with its reasons.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Answer {
    pub(super) ok: bool,
    pub(super) reasons: Vec<String>,
}

/// What is asked of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Question {
    Live,
    Ready,
    Started,
}

impl Question {
    /// What a worker is that has a yes.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Ready => "ready",
            Self::Started => "started",
        }
    }
}

impl Report {
    pub(super) fn new(hostname: &str, health: Health) -> Self {
        Self {
            hostname: hostname.to_owned(),
            pid: std::process::id(),
            live: Answer::from(health.dead_because),
            ready: Answer::from(health.unready_because),
            started: Answer::from(health.unstarted_because),
        }
    }

    pub(super) fn answer(&self, question: Question) -> &Answer {
        match question {
            Question::Live => &self.live,
            Question::Ready => &self.ready,
            Question::Started => &self.started,
        }
    }
}

impl Answer {
    fn from(reasons: Vec<String>) -> Self {
        Self {
            ok: reasons.is_empty(),
            reasons,
        }
    }

    /// The answer in a line: `ready`, or `not ready: …`.
    pub(super) fn line(&self, question: Question) -> String {
        let word = question.word();
        if self.ok {
            word.to_owned()
        } else {
            format!("not {word}: {}", self.reasons.join("; "))
        }
    }
}
