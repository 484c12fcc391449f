//! Where a value comes from.

use std::fmt;
use std::sync::Arc;

/// The layers of the configuration, each over those before it. Below them all are the app's own
/// settings, and Celery's defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Layer {
    /// `celeriac.toml`
    File,
    /// `celeriac.<APP_ENV>.toml`
    EnvironmentsFile,
    /// `.env`
    Dotenv,
    /// Exported variables.
    Environment,
    /// Options of the command line.
    CommandLine,
}

/// The place in a layer at which a value stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The layer.
    pub layer: Layer,
    /// The file, where it is one.
    pub file: Option<Arc<str>>,
    /// The line in the file, from 1.
    pub line: usize,
    /// The environment variable or the option, where it is one.
    pub name: Option<String>,
}

impl Source {
    /// A line of a file.
    pub fn line(layer: Layer, file: &Arc<str>, line: usize) -> Self {
        Self {
            layer,
            file: Some(Arc::clone(file)),
            line,
            name: None,
        }
    }

    /// An exported variable.
    pub fn variable(name: &str) -> Self {
        Self {
            layer: Layer::Environment,
            file: None,
            line: 0,
            name: Some(name.to_owned()),
        }
    }

    /// An option of the command line, such as `--broker`.
    pub fn option(name: &str) -> Self {
        Self {
            layer: Layer::CommandLine,
            ..Self::variable(name)
        }
    }
}

impl fmt::Display for Source {
    /// `celeriac.toml:3`, `.env:2 (NAME)`, `environment (NAME)`, `command line (--name)`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.file, self.layer) {
            (Some(file), _) => write!(f, "{file}:{}", self.line)?,
            (None, Layer::CommandLine) => f.write_str("command line")?,
            (None, _) => f.write_str("environment")?,
        }
        match &self.name {
            Some(name) => write!(f, " ({name})"),
            None => Ok(()),
        }
    }
}

/// Something in the configuration that can't be used, or should be looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where: a [`Source`], or a file with line and column.
    pub place: String,
    /// What is wrong. It shows no values: they may be secrets.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Problem {
    pub(crate) fn new(place: impl fmt::Display, message: impl Into<String>) -> Self {
        Self {
            place: place.to_string(),
            message: message.into(),
            hint: None,
        }
    }

    pub(crate) fn with_hint(mut self, hint: Option<String>) -> Self {
        self.hint = hint;
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)?;
        match &self.hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

/// Why a configuration can't be used: everything that is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Misconfigured(pub Vec<Problem>);

impl fmt::Display for Misconfigured {
    /// A line for each problem.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl From<Problem> for Misconfigured {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

/// The line and the column of a byte, both from 1; columns count characters.
pub(super) fn position(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
    (line, column)
}
