//! The configuration in its layers: which value counts for each key, and where it comes from.
//!
//! ```text
//! Celery's defaults < the app's own settings
//!   < celeriac.toml < celeriac.<APP_ENV>.toml < .env < exported variables < the command line
//! ```
//!
//! The first two are Python's: settings that are given here are put over them in `app.conf`. What
//! stands below them is pure: texts come in, values with their sources go out. Tables are merged key
//! by key, from layer to layer; every other value replaces the one below it.

mod configuration;
mod dotenv;
mod files;
mod kind;
pub(crate) mod nearest;
mod resolve;
mod schema;
mod secret;
pub mod setting;
mod source;
mod toml;
mod variables;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

pub use configuration::Configuration;
pub use files::read;
pub use kind::Kind;
pub use resolve::resolve;
pub use schema::WORKER_OPTIONS;
pub use secret::{shown, without_passwords};
pub use source::{Layer, Misconfigured, Problem, Source};
pub use variables::Known;

/// A value in a layer.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    /// The names that lead to it: section, key, and keys within its value.
    pub path: Vec<String>,
    /// The value. It is no table, unless an empty one.
    pub value: Value,
    /// Where it comes from.
    pub source: Source,
}

impl Entry {
    fn new(path: Vec<String>, value: Value, source: Source) -> Self {
        Self {
            path,
            value,
            source,
        }
    }

    /// Whether a later entry takes this one's place: it has the same path, or one is within the
    /// other.
    fn yields_to(&self, later: &Self) -> bool {
        let length = self.path.len().min(later.path.len());
        self.path[..length] == later.path[..length]
    }
}

impl std::fmt::Debug for Entry {
    /// Without the value, which may be a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Entry({} of {})", self.path.join("."), self.source)
    }
}

/// A file and its text.
#[derive(Clone)]
pub struct File {
    /// Its name, as it is shown.
    pub name: Arc<str>,
    /// What stands in it.
    pub text: String,
}

/// What a configuration is made of.
#[derive(Clone, Default)]
pub struct Texts<'k> {
    /// `celeriac.toml`
    pub file: Option<File>,
    /// `celeriac.<APP_ENV>.toml`
    pub environments_file: Option<File>,
    /// `.env`
    pub dotenv: Option<File>,
    /// The exported variables.
    pub exported: BTreeMap<String, String>,
    /// Variables that have names of their own, each over those before it.
    pub known: &'k [Known],
}

#[cfg(test)]
mod tests;
