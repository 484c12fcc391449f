//! Tasks that run in the worker's own process: those of a program in Rust, and what is declared in
//! the configuration.

use std::sync::Arc;

use celeriac_client::{Client, Config};
use celeriac_config::Description;
use celeriac_core::clock::Clock;
use celeriac_core::journal::Journal;
use celeriac_core::pool::Pool;
use celeriac_native::{
    MixedPool, NativeOptions, NativePool, Registry, ResultSettings, Results, TraceSettings, Tracer,
};
use celeriac_worker::hooks::Hooks;
use serde_json::{Map, Value};

use super::hooks::MainHooks;
use super::rust::describe::RustApp;
use super::rust::hooks::{NativeHooks, Parts};
use super::rust::mixed::MixedHooks;
use super::settings_of;
use crate::arguments::Global;
use crate::failure::Failure;

/// Tasks in Rust, and the app that they are of.
pub(super) struct NativeTasks {
    registry: Arc<Registry>,
}

/// What runs them.
pub(super) struct Running {
    registry: Arc<Registry>,
    started: Option<(NativePool, NativeHooks)>,
}

/// The tasks of the program, and those that are declared in the configuration.
///
/// # Errors
/// When two have one name.
pub(super) fn tasks(global: &Global) -> Result<NativeTasks, Failure> {
    let mut registry = Registry::default();
    let own = global.native.iter().flat_map(|app| app.tasks.iter());
    for task in own {
        let registered = registry.register(Arc::clone(task));
        registered.map_err(|duplicate| Failure::new(duplicate.to_string()))?;
    }
    Ok(NativeTasks {
        registry: Arc::new(registry),
    })
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
    let app = RustApp {
        name: global.native.as_ref().map_or("celeriac", |app| &app.name),
        settings: &settings_of(global),
        options,
        registry: &tasks.registry,
        color: super::has_colors(global),
    };
    app.describe()
}

impl NativeTasks {
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
        description.app.task_names.sort();
        description.app.task_names.dedup();
        Ok(())
    }

    /// Starts what runs them, `size` at once; nothing where there are none.
    ///
    /// # Errors
    /// When a setting of the broker or the result backend can't be used.
    pub(super) fn start(
        &self,
        description: &Description,
        size: usize,
        clock: &Arc<dyn Clock>,
        journal: &Arc<dyn Journal>,
    ) -> Result<Running, Failure> {
        let registry = Arc::clone(&self.registry);
        if registry.is_empty() {
            return Ok(Running {
                registry,
                started: None,
            });
        }
        let config = Config::from_settings(&description.client)
            .map_err(|error| Failure::new(format!("A setting can't be used: {error}")))?;
        let client = Client::new(config.clone())
            .map_err(|error| Failure::new(format!("Tasks can't be sent: {error}")))?;
        let flag = |name: &str| description.client.get(name) == Some(&Value::Bool(true));
        let results = || {
            Results::new(
                client.backend().cloned(),
                Arc::new(client.clone()),
                Arc::clone(clock),
                Arc::clone(journal),
                ResultSettings {
                    extended: config.results.extended,
                    inherit_parent_priority: config.task_inherit_parent_priority,
                    ..ResultSettings::default()
                },
            )
        };
        let settings = TraceSettings {
            track_started: flag("task_track_started"),
            deduplicate_successful_tasks: flag("worker_deduplicate_successful_tasks"),
            ..TraceSettings::default()
        };
        let options = NativeOptions {
            size,
            threads: None,
        };
        let pool = NativePool::new(options, Arc::clone(clock), || {
            Tracer::new(Arc::clone(&registry), results(), settings)
        })
        .map_err(|error| Failure::new(format!("Threads can't be started: {error}")))?;
        let hooks = NativeHooks(Arc::new(Parts {
            results: results(),
            client: client.clone(),
            clock: Arc::clone(clock),
            hostname: description.worker.hostname.clone(),
        }));
        Ok(Running {
            registry,
            started: Some((pool, hooks)),
        })
    }
}

impl Running {
    /// Beside tasks in Python.
    pub(super) fn beside(
        self,
        python: Box<dyn Pool>,
        main: MainHooks,
    ) -> (Box<dyn Pool>, Arc<dyn Hooks>) {
        match self.started {
            None => (python, Arc::new(main)),
            Some((pool, native)) => {
                let hooks = MixedHooks {
                    main,
                    native,
                    registry: self.registry,
                };
                (Box::new(MixedPool::new(python, pool)), Arc::new(hooks))
            }
        }
    }

    /// Without any; `None` where there is nothing to run.
    pub(super) fn alone(self) -> Option<(Box<dyn Pool>, Arc<dyn Hooks>)> {
        let (pool, hooks) = self.started?;
        Some((Box::new(pool), Arc::new(hooks)))
    }
}
