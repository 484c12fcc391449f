//! An app whose tasks are in Rust, as the command line takes it.

use std::fmt;
use std::sync::Arc;

use celeriac_native::Task;
use serde_json::{Map, Value};

/// Where messages are unless something says otherwise: SQLite in the folder that the program is
/// started in, which needs no server.
const BROKER: &str = "sqla+sqlite:///celeriac.db";
/// Where results are.
const BACKEND: &str = "db+sqlite:///celeriac-results.db";

/// An app whose tasks are in Rust.
#[derive(Clone)]
pub struct NativeApp {
    /// Its name.
    pub name: String,
    /// What the program sets, by the names of Celery's settings. What `celeriac.toml`, the
    /// environment and the command line say counts over it.
    pub settings: Map<String, Value>,
    /// Its tasks.
    pub tasks: Vec<Arc<dyn Task>>,
}

impl NativeApp {
    /// Its settings in all layers.
    ///
    /// # Errors
    /// When the configuration can't be used: what is wrong, and where.
    pub fn resolved(&self) -> Result<Map<String, Value>, String> {
        let configuration = crate::configuration::settings()?;
        Ok(self.settings_under(configuration))
    }

    /// Its settings with these over them.
    pub(crate) fn settings_under(&self, over: Map<String, Value>) -> Map<String, Value> {
        let mut settings = Map::new();
        settings.insert("broker_url".to_owned(), BROKER.into());
        settings.insert("result_backend".to_owned(), BACKEND.into());
        settings.extend(self.settings.clone());
        settings.extend(over);
        settings
    }
}

impl fmt::Debug for NativeApp {
    /// Without the settings, which hold passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tasks: Vec<_> = self.tasks.iter().map(|task| task.name()).collect();
        f.debug_struct("NativeApp")
            .field("name", &self.name)
            .field("tasks", &tasks)
            .finish_non_exhaustive()
    }
}
