//! A function that `#[celeriac::task]` has made a task of.

use std::future::Future;
use std::pin::Pin;

use async_trait::async_trait;
use celeriac_native::{Arguments, Context, Options, Result, Task};
use serde_json::Value;

/// A call that runs.
pub type Running = Pin<Box<dyn Future<Output = Result<Value>> + Send>>;

/// What `#[celeriac::task]` knows of a function. [`crate::App::task`] takes it.
pub trait Definition: Send + Sync + 'static {
    /// The task's name; `@` stands for that of the app.
    fn name(&self) -> &'static str;

    /// How the task is dealt with.
    fn options(&self) -> Options;

    /// Runs the function.
    fn run(&self, context: Context, arguments: Arguments) -> Running;
}

/// A definition in an app, by its full name.
pub(crate) struct Registered<D> {
    pub(crate) name: String,
    pub(crate) options: Options,
    pub(crate) definition: D,
}

#[async_trait]
impl<D: Definition> Task for Registered<D> {
    fn name(&self) -> &str {
        &self.name
    }

    fn options(&self) -> &Options {
        &self.options
    }

    async fn run(&self, context: Context, arguments: Arguments) -> Result<Value> {
        self.definition.run(context, arguments).await
    }
}
