//! Tasks that block: each call has a thread of its own.
//!
//! Not tokio's threads for blocking work, which all that runs in the process shares, and whose number
//! has a limit: tasks that hang would keep name resolution and files from everybody.
//!
//! A thread can't be ended. What limits mean for it: [`crate::Cancellation`] tells the task, as it
//! tells any; when [`Options::cancel_grace`] is over, its call is concluded without it, failed or lost
//! as the limit says, and what it returns later counts no more. Until it returns, it runs on beside
//! whatever becomes of its message, and its place in the pool stays taken.

use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use celeriac_protocol::Exception;
use serde_json::Value;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::arguments::Arguments;
use crate::context::Context;
use crate::error::{Ending, Error, Result};
use crate::panic;
use crate::task::{Options, Task};

/// A task that blocks its thread.
pub struct Blocking<F> {
    name: String,
    options: Options,
    code: Arc<F>,
}

impl<F> Blocking<F>
where
    F: Fn(Context, Arguments) -> Result<Value> + Send + Sync + 'static,
{
    /// The task `name`, which is this function. It can wait for what is asynchronous with
    /// [`Handle::block_on`] of [`Handle::current`].
    pub fn new(name: impl Into<String>, options: Options, code: F) -> Self {
        Self {
            name: name.into(),
            options,
            code: Arc::new(code),
        }
    }
}

#[async_trait]
impl<F> Task for Blocking<F>
where
    F: Fn(Context, Arguments) -> Result<Value> + Send + Sync + 'static,
{
    fn name(&self) -> &str {
        &self.name
    }

    fn options(&self) -> &Options {
        &self.options
    }

    async fn run(&self, context: Context, arguments: Arguments) -> Result<Value> {
        let code = Arc::clone(&self.code);
        // The context is dropped with the call: then the place in the pool is free.
        run(move || code(context, arguments)).await
    }
}

/// Runs `code` on a thread of its own. A panic is a failure.
///
/// # Errors
/// What `code` answers with, or that there is no thread for it.
pub async fn run(code: impl FnOnce() -> Result<Value> + Send + 'static) -> Result<Value> {
    let (tell, told) = oneshot::channel();
    let runtime = Handle::current();
    let thread = std::thread::Builder::new().name("celeriac:task".to_owned());
    let spawned = thread.spawn(move || {
        let _entered = runtime.enter();
        let result =
            panic::catch(code).unwrap_or_else(|failure| Err(Error::new(Ending::Failure(failure))));
        // Nobody waits for what was concluded without it.
        drop(tell.send(result));
    });
    spawned.map_err(|error| no_thread(&error))?;
    let gone = || Exception::builtin("RuntimeError", "the task's thread is gone");
    told.await.unwrap_or_else(|_| Err(gone().into()))
}

fn no_thread(error: &io::Error) -> Exception {
    let text = format!("no thread for the task could be started: {error}");
    Exception::builtin("OSError", text)
}
