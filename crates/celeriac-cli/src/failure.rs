//! What stops a command, in words for the operator.

use std::fmt::{self, Write as _};
use std::process::ExitCode;

use celeriac_pool::python::StartError;
use celeriac_pool::python::interpreter::NoInterpreter;

/// Why a command can't go on.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    hint: Option<String>,
    traceback: Option<String>,
    status: u8,
}

impl Failure {
    /// A failure with exit status 1.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: None,
            traceback: None,
            status: 1,
        }
    }

    /// The same with a remedy.
    #[must_use]
    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same with another exit status.
    #[must_use]
    pub(crate) fn with_status(mut self, status: u8) -> Self {
        self.status = status;
        self
    }

    /// What is wrong and what to do about it, for the program that a worker is part of.
    pub(crate) fn in_full(&self) -> String {
        match &self.hint {
            Some(hint) => format!("{}; to mend this: {hint}", self.message),
            None => self.message.clone(),
        }
    }

    /// Shows it, and gives the exit status.
    pub(crate) fn report(&self) -> ExitCode {
        let mut text = String::new();
        // Writing to a `String` can't fail.
        let _ = writeln!(text, "Error: {}", self.message);
        if let Some(traceback) = &self.traceback {
            let _ = writeln!(text, "\n{traceback}");
        }
        if let Some(hint) = &self.hint {
            let _ = writeln!(text, "\nTo mend this: {hint}.");
        }
        crate::console::error(&text);
        ExitCode::from(self.status)
    }
}

impl fmt::Display for Failure {
    /// In one line, for who is no operator.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<NoInterpreter> for Failure {
    fn from(error: NoInterpreter) -> Self {
        Self::new(error.message).with_hint(error.hint)
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Refused(refusal) => Self {
                message: refusal.message,
                hint: refusal.hint,
                traceback: refusal.traceback,
                status: u8::try_from(refusal.exit_status).unwrap_or(1),
            },
            other => Self::new(format!("The worker can't start: {other}")),
        }
    }
}
