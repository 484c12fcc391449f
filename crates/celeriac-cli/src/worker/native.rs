//! Tasks that run in the worker's own process: those of a program in Rust, and what is declared in
//! the configuration.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytestring::ByteString;
use celeriac_client::{Client, Config};
use celeriac_command::CommandOptions;
use celeriac_config::{Configuration, Description, TaskOptions};
use celeriac_core::clock::Clock;
use celeriac_core::journal::Journal;
use celeriac_native::{
    NativeOptions, NativePool, Registry, ResultSettings, Results, Task, TraceSettings, Tracer,
};
use celeriac_worker::hooks::Hooks;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::hooks::MainHooks;
use super::rust::describe::RustApp;
use super::rust::hooks::{NativeHooks, Parts};
use super::rust::mixed::MixedHooks;
use crate::arguments::Global;
use crate::failure::Failure;
use crate::native::NativeApp;

/// What `celery` exits with for a wrong command line.
const EX_USAGE: u8 = 2;

/// Celery's own tasks, as `Registry::with_builtins` has them.
const BUILTINS: [&str; 6] = [
    "celery.accumulate",
    "celery.backend_cleanup",
    "celery.chord_unlock",
    "celery.chunks",
    "celery.map",
    "celery.starmap",
];

/// Tasks in Rust, and the app that they are of.
pub(super) struct NativeTasks {
    registry: Arc<Registry>,
    /// Whether there are no tasks in Python beside them: then Celery's own are among them.
    are_alone: bool,
}

/// What they need of the worker to run.
pub(super) struct Engine {
    registry: Arc<Registry>,
    /// How often `celery.chord_unlock` looks, where it is one of them.
    chord_retry_interval: Option<Duration>,
    client: Client,
    settings: TraceSettings,
    clock: Arc<dyn Clock>,
    journal: Arc<dyn Journal>,
    hostname: String,
}

/// The tasks of the program, and those that are declared in the configuration.
///
/// # Errors
/// When two have one name.
pub(super) fn tasks(global: &Global) -> Result<NativeTasks, Failure> {
    let own = global
        .native
        .iter()
        .flat_map(|app| app.tasks.iter().cloned());
    let declared = declared(&global.configuration)?;
    let are_alone = global.native.is_some() && global.app().is_none();
    NativeTasks::new(own.chain(declared), are_alone)
}

/// The tasks that are declared as `[commands.NAME]` and `[containers.NAME]`.
fn declared(configuration: &Configuration) -> Result<Vec<Arc<dyn Task>>, Failure> {
    let mut tasks = Vec::new();
    for (name, table) in configuration.commands() {
        let options = read("commands", &name, &name, table)?;
        tasks.push(celeriac_command::command(options).map_err(|error| unusable(&error))?);
    }
    // Where commands run, callers who name their own are told why they may not.
    let sent = CommandOptions {
        name: "celeriac.command".to_owned(),
        ..CommandOptions::default()
    };
    if !tasks.is_empty() && !tasks.iter().any(|task| task.name() == sent.name) {
        tasks.push(celeriac_command::command(sent).map_err(|error| unusable(&error))?);
    }
    for (name, table) in configuration.containers() {
        // The name by which its callers know it (ome/ansible-role-celery-docker).
        let task = match name.as_str() {
            "run_docker" => "tasks.run_docker",
            other => other,
        };
        tasks.push(container(&name, task, table)?);
    }
    Ok(tasks)
}

#[cfg(feature = "docker")]
fn container(name: &str, task: &str, table: Value) -> Result<Arc<dyn Task>, Failure> {
    let options = read("containers", name, task, table)?;
    celeriac_container::run_docker(options).map_err(|error| unusable(&error))
}

#[cfg(not(feature = "docker"))]
fn container(name: &str, _: &str, _: Value) -> Result<Arc<dyn Task>, Failure> {
    let text = format!("[containers.{name}]: this program was built without containers");
    Err(Failure::new(text).with_hint("build it with the feature `docker`"))
}

/// Reads a table of the configuration; the task is called `task` unless the table has a name.
fn read<T: DeserializeOwned>(
    section: &str,
    name: &str,
    task: &str,
    mut table: Value,
) -> Result<T, Failure> {
    if let Value::Object(members) = &mut table {
        members.entry("name").or_insert_with(|| task.into());
    }
    serde_json::from_value(table).map_err(|error| {
        Failure::new(format!("[{section}.{name}] can't be used: {error}"))
            .with_hint(format!("see docs/{section}.md for what may stand there"))
            .with_status(EX_USAGE)
    })
}

fn unusable(error: &impl std::fmt::Display) -> Failure {
    Failure::new(format!("A declared task can't be used: {error}")).with_status(EX_USAGE)
}

/// What Python would tell of a program in Rust.
///
/// # Errors
/// When an option or a setting makes no sense.
pub(super) fn describe(
    global: &Global,
    tasks: &NativeTasks,
    options: &Map<String, Value>,
) -> Result<Description, Failure> {
    let configured = global.configuration.all_settings();
    let settings = match &global.native {
        Some(app) => app.settings_under(configured),
        None => configured,
    };
    let name = global.native.as_ref().map_or("celeriac", |app| &app.name);
    tasks.describe(name, &settings, options, super::has_colors(global))
}

impl NativeTasks {
    /// Those of a program alone.
    ///
    /// # Errors
    /// When two have one name.
    pub(super) fn of_app(app: &NativeApp) -> Result<Self, Failure> {
        Self::new(app.tasks.iter().cloned(), true)
    }

    fn new(tasks: impl Iterator<Item = Arc<dyn Task>>, are_alone: bool) -> Result<Self, Failure> {
        let mut registry = Registry::default();
        for task in tasks {
            let registered = registry.register(task);
            registered.map_err(|duplicate| Failure::new(duplicate.to_string()))?;
        }
        Ok(Self {
            registry: Arc::new(registry),
            are_alone,
        })
    }

    /// What Python would tell of the app with this name that has them.
    ///
    /// # Errors
    /// When an option or a setting makes no sense.
    pub(super) fn describe(
        &self,
        name: &str,
        settings: &Map<String, Value>,
        options: &Map<String, Value>,
        color: bool,
    ) -> Result<Description, Failure> {
        let app = RustApp {
            name,
            settings,
            options,
            registry: &self.registry,
            color,
        };
        app.describe()
    }

    /// Has the worker know them beside the tasks of a Python app.
    ///
    /// # Errors
    /// When the Python app has one of these names as well.
    pub(super) fn add_to(&self, description: &mut Description) -> Result<(), Failure> {
        for (name, task) in self.registry.iter() {
            let is_python = description.app.id != "rust" && description.tasks.contains_key(name);
            // Celery's own tasks are in every app.
            if is_python && !name.starts_with("celery.") {
                let text = format!("The task {name} is in Python and in this worker's own tasks");
                return Err(Failure::new(text).with_hint("give one of them another name"));
            }
            if !is_python {
                let options = task.options().celery.clone();
                description.tasks.insert(name.to_owned(), options);
                description.app.task_names.push(name.to_owned());
            }
        }
        if self.are_alone {
            for name in BUILTINS {
                let options = TaskOptions {
                    ignore_result: true,
                    max_retries: None,
                    ..TaskOptions::default()
                };
                description.tasks.insert(name.to_owned(), options);
                description.app.task_names.push(name.to_owned());
            }
        }
        description.app.task_names.sort();
        description.app.task_names.dedup();
        Ok(())
    }

    /// Connects them with the app's broker and result backend; `None` where there are none.
    ///
    /// # Errors
    /// When a setting of the broker or the result backend can't be used.
    pub(super) fn engine(
        &self,
        description: &Description,
        clock: &Arc<dyn Clock>,
        journal: &Arc<dyn Journal>,
    ) -> Result<Option<Engine>, Failure> {
        if self.registry.is_empty() {
            return Ok(None);
        }
        let mut config = Config::from_settings(&description.client)
            .map_err(|error| Failure::new(format!("A setting can't be used: {error}")))?;
        let own = self.registry.iter().map(|(_, task)| task);
        config.task_routes.extend(crate::native::routes(own));
        let client = Client::new(config)
            .map_err(|error| Failure::new(format!("Tasks can't be sent: {error}")))?;
        let flag = |name: &str| description.client.get(name) == Some(&Value::Bool(true));
        let interval = description.client.get("result_chord_retry_interval");
        let interval = interval.and_then(Value::as_f64).unwrap_or(1.0);
        let interval = Duration::try_from_secs_f64(interval).unwrap_or(Duration::from_secs(1));
        Ok(Some(Engine {
            registry: Arc::clone(&self.registry),
            chord_retry_interval: self.are_alone.then_some(interval),
            client,
            settings: TraceSettings {
                track_started: flag("task_track_started"),
                deduplicate_successful_tasks: flag("worker_deduplicate_successful_tasks"),
                ..TraceSettings::default()
            },
            clock: Arc::clone(clock),
            journal: Arc::clone(journal),
            hostname: description.worker.hostname.clone(),
        }))
    }

    /// Their names.
    pub(super) fn names(&self) -> HashSet<ByteString> {
        let own = self.registry.iter().map(|(name, _)| name);
        let builtins = BUILTINS.into_iter().filter(|_| self.are_alone);
        own.chain(builtins).map(ByteString::from).collect()
    }
}

impl Engine {
    /// What stores results; its writer runs on the runtime that this is called in.
    fn results(&self) -> Results {
        let config = self.client.config();
        Results::new(
            self.client.backend().cloned(),
            Arc::new(self.client.clone()),
            Arc::clone(&self.clock),
            Arc::clone(&self.journal),
            ResultSettings {
                extended: config.results.extended,
                inherit_parent_priority: config.task_inherit_parent_priority,
                ..ResultSettings::default()
            },
        )
    }

    /// A pool for so many of them at once.
    ///
    /// # Errors
    /// When threads can't be started.
    pub(super) fn pool(&self, size: usize) -> Result<NativePool, Failure> {
        let options = NativeOptions {
            size,
            threads: None,
        };
        NativePool::new(options, Arc::clone(&self.clock), || {
            let results = self.results();
            let registry = self.registry_with(&results);
            Tracer::new(registry, results, self.settings.clone())
        })
        .map_err(|error| Failure::new(format!("Threads can't be started: {error}")))
    }

    /// The tasks, with Celery's own where no Python has them.
    fn registry_with(&self, results: &Results) -> Arc<Registry> {
        let Some(interval) = self.chord_retry_interval else {
            return Arc::clone(&self.registry);
        };
        // A program that has tasks by these names keeps its own.
        let registry = Registry::clone(&self.registry).with_builtins(results, interval);
        registry.map_or_else(|_| Arc::clone(&self.registry), Arc::new)
    }

    /// The hooks of a worker that has them, beside those of a Python app.
    pub(super) fn hooks(&self, main: Option<MainHooks>) -> Arc<dyn Hooks> {
        let native = NativeHooks(Arc::new(Parts {
            results: self.results(),
            client: self.client.clone(),
            clock: Arc::clone(&self.clock),
            hostname: self.hostname.clone(),
        }));
        match main {
            None => Arc::new(native),
            Some(main) => Arc::new(MixedHooks {
                main,
                native,
                registry: Arc::clone(&self.registry),
            }),
        }
    }
}
