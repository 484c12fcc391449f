//! An app: tasks, and where their messages and results are. Celery's counterpart:
//! `celery.app.base.Celery`.

use std::sync::{Arc, OnceLock};

use celeriac_cli::native::NativeApp;
use celeriac_client::{Apply, AsyncResult, Client, Error};
use celeriac_native::Task;
use celeriac_protocol::Signature;
use serde_json::{Map, Value};

use crate::definition::{Definition, Registered};
use crate::name::qualify;
use crate::worker::Worker;

/// Where an app's messages are unless it says otherwise: SQLite in the folder that it is started in,
/// which needs no server.
pub const DEFAULT_BROKER: &str = "sqla+sqlite:///celeriac.db";
/// Where its results are.
pub const DEFAULT_BACKEND: &str = "db+sqlite:///celeriac-results.db";

/// Tasks, and where their messages and results are.
///
/// ```
/// #[celeriac::task]
/// async fn add(x: i64, y: i64) -> celeriac::Result<i64> {
///     Ok(x + y)
/// }
///
/// let app = celeriac::App::new("proj").task(add);
/// assert_eq!(app.task_names(), ["proj.add"]);
/// ```
///
/// What is set in the program is overridden by `celeriac.toml`, that by the environment
/// (`CELERY_BROKER_URL`, `CELERY_RESULT_BACKEND`), and that by the command line.
pub struct App {
    native: NativeApp,
    client: OnceLock<Client>,
}

impl App {
    /// An app; its tasks are called `<name>.<function>`.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            native: NativeApp {
                name: name.into(),
                settings: Map::new(),
                tasks: Vec::new(),
            },
            client: OnceLock::new(),
        }
    }

    /// Where its messages are, by Celery's URLs: `redis://`, `amqp://`, `sqla+sqlite:///file.db`, …
    #[must_use]
    pub fn broker(self, url: impl Into<String>) -> Self {
        self.set("broker_url", url.into())
    }

    /// Where its results are, by Celery's URLs: `redis://`, `rpc://`, `db+postgresql://`, …
    #[must_use]
    pub fn backend(self, url: impl Into<String>) -> Self {
        self.set("result_backend", url.into())
    }

    /// Any setting of Celery's that concerns clients or workers, by its name.
    #[must_use]
    pub fn set(mut self, setting: impl Into<String>, value: impl Into<Value>) -> Self {
        self.native.settings.insert(setting.into(), value.into());
        self
    }

    /// With a task that `#[celeriac::task]` has made.
    ///
    /// # Panics
    /// When the app has a task of this name.
    #[must_use]
    pub fn task(self, definition: impl Definition) -> Self {
        let name = qualify(definition.name(), &self.native.name).into_owned();
        let options = definition.options();
        self.with_task(Arc::new(Registered {
            name,
            options,
            definition,
        }))
    }

    /// With a task of any kind.
    ///
    /// # Panics
    /// When the app has a task of this name.
    #[must_use]
    pub fn with_task(mut self, task: Arc<dyn Task>) -> Self {
        let name = task.name();
        let is_new = self.native.tasks.iter().all(|known| known.name() != name);
        assert!(is_new, "the app has two tasks with the name {name}");
        self.native.tasks.push(task);
        self
    }

    /// The names of its tasks.
    pub fn task_names(&self) -> Vec<&str> {
        self.native.tasks.iter().map(|task| task.name()).collect()
    }

    /// What sends its calls. It connects when it is first used.
    ///
    /// # Errors
    /// When a setting or a URL makes no sense.
    pub fn client(&self) -> Result<&Client, Error> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let settings = self.native.resolved().map_err(Error::Invalid)?;
        let config = self.native.client_config(&settings)?;
        let client = Client::new(config)?;
        Ok(self.client.get_or_init(|| client))
    }

    /// Sends a call, or what calls are combined to. Returns when it is safe with the broker.
    ///
    /// # Errors
    /// When it makes no sense, or the broker does not take it.
    pub async fn send(&self, call: impl Into<Signature>) -> Result<AsyncResult, Error> {
        self.send_with(call, Apply::default()).await
    }

    /// Sends a call with more arguments or other options.
    ///
    /// # Errors
    /// When it makes no sense, or the broker does not take it.
    pub async fn send_with(
        &self,
        call: impl Into<Signature>,
        with: Apply,
    ) -> Result<AsyncResult, Error> {
        let signature = crate::name::qualified(call.into(), &self.native.name);
        self.client()?.apply(&signature, with).await
    }

    /// The result of the call with this id.
    ///
    /// # Errors
    /// When a setting or a URL makes no sense.
    pub fn result(&self, id: impl Into<String>) -> Result<AsyncResult, Error> {
        Ok(self.client()?.result(id))
    }

    /// A worker to be run within this program, beside whatever else it does: without the command
    /// line, signal handlers and output of its own.
    ///
    /// ```no_run
    /// # #[celeriac::task] async fn add(x: i64, y: i64) -> celeriac::Result<i64> { Ok(x + y) }
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let app = celeriac::App::new("proj").task(add);
    /// let (running, stop) = app.worker().concurrency(4).queues(["celery"]).start()?;
    /// let running = tokio::spawn(running);
    /// let sum: i64 = app.send(add::s(2, 3)).await?.get().await?;
    /// assert_eq!(sum, 5);
    /// stop.stop(); // Waits for running tasks; a second one would end them.
    /// assert_eq!(running.await?, 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn worker(&self) -> Worker {
        Worker::new(self.native.clone())
    }

    /// The app as a worker takes it.
    pub(crate) fn into_native(self) -> NativeApp {
        self.native
    }
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App")
            .field("name", &self.native.name)
            .field("tasks", &self.task_names())
            .finish_non_exhaustive()
    }
}
