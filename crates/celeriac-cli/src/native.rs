//! An app whose tasks are in Rust, as the command line takes it.

pub(crate) mod command;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use celeriac_client::{Config, Error};
use celeriac_native::Task;
use serde_json::{Map, Value};

use crate::arguments::Global;

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

    /// What a client of it is told: these settings, and where calls of its tasks go that do not say
    /// so themselves.
    ///
    /// # Errors
    /// When a setting makes no sense.
    pub fn client_config(&self, settings: &Map<String, Value>) -> Result<Config, Error> {
        let mut config = Config::from_settings(settings)?;
        config.task_routes.extend(routes(self.tasks.iter()));
        Ok(config)
    }

    /// The queues that it knows: the default one, and those of its tasks.
    pub(crate) fn queues(&self, global: &Global) -> Vec<String> {
        let settings = self.settings_under(global.configuration.all_settings());
        let default = settings.get("task_default_queue").and_then(Value::as_str);
        let own = self
            .tasks
            .iter()
            .filter_map(|task| task.options().queue.clone());
        let mut queues: BTreeSet<String> = own.collect();
        queues.insert(default.unwrap_or("celery").to_owned());
        queues.into_iter().collect()
    }
}

/// Where calls of these tasks go by their own options. Routes of the app's configuration belong before
/// them: the first that fits holds.
pub(crate) fn routes<'t>(
    tasks: impl Iterator<Item = &'t Arc<dyn Task>>,
) -> impl Iterator<Item = (String, Map<String, Value>)> {
    tasks.filter_map(|task| {
        let options = task.options();
        let mut route = Map::new();
        if let Some(queue) = &options.queue {
            route.insert("queue".to_owned(), queue.as_str().into());
        }
        if let Some(priority) = options.priority {
            route.insert("priority".to_owned(), priority.into());
        }
        (!route.is_empty()).then(|| (task.name().to_owned(), route))
    })
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
