//! The tasks that every Celery app has. Celery's counterpart: `celery.app.builtins`.

mod many;
mod unlock;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use celeriac_protocol::Exception;
use serde_json::Value;

use self::many::{Chunks, Many};
use self::unlock::ChordUnlock;
use crate::arguments::Arguments;
use crate::context::Context;
use crate::error::Result;
use crate::registry::{Duplicate, Registry};
use crate::results::Results;
use crate::task::{Options, Task};

/// Names of tasks that call another one, which their message names.
pub(crate) const OF_OTHERS: [&str; 3] = ["celery.map", "celery.starmap", "celery.chunks"];

impl Registry {
    /// The same with Celery's own tasks: `celery.chord_unlock` (which looks every
    /// `chord_retry_interval`, the setting `result_chord_retry_interval`), `celery.accumulate`,
    /// `celery.backend_cleanup`, and `celery.map`, `celery.starmap` and `celery.chunks` of the tasks
    /// that are here.
    ///
    /// # Errors
    /// When a task has the name of one of them.
    pub fn with_builtins(
        mut self,
        results: &Results,
        chord_retry_interval: Duration,
    ) -> Result<Self, Duplicate> {
        let tasks = Arc::new(self.clone());
        let builtins: [Arc<dyn Task>; 6] = [
            Arc::new(ChordUnlock::new(results.clone(), chord_retry_interval)),
            Arc::new(Accumulate::default()),
            Arc::new(BackendCleanup::new(results.clone())),
            Arc::new(Many::map(Arc::clone(&tasks))),
            Arc::new(Many::starmap(Arc::clone(&tasks))),
            Arc::new(Chunks::new(results.clone())),
        ];
        for task in builtins {
            self.register(task)?;
        }
        Ok(self)
    }
}

/// Its arguments, or one of them: what the result of a group is linked to.
#[derive(Default)]
struct Accumulate(Options);

#[async_trait]
impl Task for Accumulate {
    fn name(&self) -> &'static str {
        "celery.accumulate"
    }

    fn options(&self) -> &Options {
        &self.0
    }

    async fn run(&self, _context: Context, mut arguments: Arguments) -> Result<Value> {
        let index = arguments.kwargs.get("index").and_then(Value::as_u64);
        let Some(index) = index else {
            return Ok(Value::Array(arguments.args));
        };
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        if index >= arguments.args.len() {
            return Err(Exception::builtin("IndexError", "tuple index out of range").into());
        }
        Ok(arguments.args.swap_remove(index))
    }
}

/// Has the backend delete what has expired.
struct BackendCleanup {
    results: Results,
    options: Options,
}

impl BackendCleanup {
    fn new(results: Results) -> Self {
        Self {
            results,
            options: Options::default(),
        }
    }
}

#[async_trait]
impl Task for BackendCleanup {
    fn name(&self) -> &'static str {
        "celery.backend_cleanup"
    }

    fn options(&self) -> &Options {
        &self.options
    }

    async fn run(&self, _context: Context, _arguments: Arguments) -> Result<Value> {
        if let Some(backend) = self.results.backend() {
            backend.cleanup().await?;
        }
        Ok(Value::Null)
    }
}

/// An argument by its place or its name.
fn taken(arguments: &mut Arguments, at: usize, name: &str) -> Option<Value> {
    match arguments.args.get_mut(at) {
        Some(value) => Some(value.take()),
        None => arguments.kwargs.remove(name),
    }
}

fn missing(task: &str, name: &str) -> Exception {
    let text = format!("{task}() missing 1 required positional argument: '{name}'");
    Exception::builtin("TypeError", text)
}
