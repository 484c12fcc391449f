//! A task queue that speaks Celery: tasks in Rust, called from Rust and from Python, and tasks in
//! Python, called from Rust.
//!
//! A function becomes a task by an attribute, and a program becomes a worker with Celery's command
//! line by another one:
//!
//! ```no_run
//! #[celeriac::task(max_retries = 3, retry_backoff = "1s", soft_time_limit = "30s")]
//! async fn add(x: i64, y: i64) -> celeriac::Result<i64> {
//!     Ok(x + y)
//! }
//!
//! #[celeriac::main]
//! fn app() -> celeriac::App {
//!     celeriac::App::new("proj")
//!         .broker("redis://localhost")
//!         .backend("redis://localhost")
//!         .task(add)
//! }
//! ```
//!
//! `myprogram worker -c 8 -l info` runs the tasks. A client of the same program, or of another one:
//!
//! ```no_run
//! # #[celeriac::task] async fn add(x: i64, y: i64) -> celeriac::Result<i64> { Ok(x + y) }
//! # async fn example(app: celeriac::App) -> Result<(), Box<dyn std::error::Error>> {
//! let sum: i64 = app.send(add::s(2, 3)).await?.get().await?;
//! # Ok(())
//! # }
//! ```
//!
//! A Python client calls it as any task: `app.send_task("proj.add", [2, 3]).get()`. Tasks in Python
//! are called from Rust by [`Call::named`].

mod app;
mod call;
mod definition;
mod name;
#[doc(hidden)]
pub mod private;
mod worker;

pub use app::{App, DEFAULT_BACKEND, DEFAULT_BROKER};
pub use call::Call;
pub use celeriac_cli::embed::{Running, StartError, Stop};
pub use celeriac_client::{Apply, AsyncResult, Client, Config, TaskError, canvas};
pub use celeriac_core::journal::{Journal, Level, Record};
/// Makes a program of a function that gives an [`App`]: `myprogram worker`, `call`, `dlq`, and so
/// on, with Celery's options.
///
/// ```no_run
/// #[celeriac::main]
/// fn app() -> celeriac::App {
///     celeriac::App::new("proj")
/// }
/// ```
pub use celeriac_macros::main;
/// Makes a task of a function: a type of the function's name, which [`App::task`] takes and whose
/// `s(…)` makes calls. Async functions run side by side; others run on a thread of their own each.
/// `add::call(…)` is the function itself.
///
/// Parameters are of any type that serde reads; `#[default = …]` and `Option` may be left out by
/// callers. A first parameter of the type [`Context`] is not an argument: it tells of the call.
///
/// | option | meaning |
/// |---|---|
/// | `name = "proj.add"` | in place of the app's name and the function's |
/// | `queue = "math"`, `priority = 5` | where calls go to, unless they say otherwise |
/// | `max_retries = 3`, `max_retries = None` | how often it is tried again |
/// | `retry` | tries again after any error |
/// | `default_retry_delay = "3m"` | how long before that |
/// | `retry_backoff = "1s"`, `retry_backoff_max = "10m"`, `retry_jitter = false` | or longer and longer |
/// | `time_limit = "1h"`, `soft_time_limit = "50m"` | limits on its run time |
/// | `rate_limit = "10/m"` | for each worker |
/// | `acks_late`, `acks_on_failure`, `acks_on_timeout`, `reject_on_worker_lost` | when its message is done with |
/// | `ignore_result`, `store_errors_even_if_ignored`, `track_started` | what is stored |
/// | `send_events = false` | monitors are not told |
/// | `cancel_grace = "10s"` | time to end by itself when it is cancelled |
///
/// ```
/// use celeriac::Context;
///
/// /// Fetches a page.
/// #[celeriac::task(queue = "io_bound", retry_backoff = "1s", time_limit = "1m")]
/// async fn fetch(context: Context, url: String, #[default = 3] tries: u32) -> celeriac::Result<u64> {
///     context.progress(serde_json::json!({"url": url, "tries": tries})).await?;
///     Ok(0)
/// }
/// # let app = celeriac::App::new("proj").task(fetch);
/// # assert_eq!(app.task_names(), ["proj.fetch"]);
/// ```
///
/// What can't work is an error of the compiler:
///
/// ```compile_fail
/// #[celeriac::task(time_limit = "soon")]
/// async fn slow() {}
/// ```
///
/// ```compile_fail
/// #[celeriac::task]
/// async fn count(text: &str) -> usize { text.len() }
/// ```
///
/// ```compile_fail
/// #[celeriac::task(max_retry = 3)]
/// async fn typo() {}
/// ```
pub use celeriac_macros::task;
pub use celeriac_native::{
    Arguments, Cancellation, Cause, Context, Error, Options, Result, RetryPolicy, Task,
};
pub use celeriac_protocol::{Exception, Signature};
pub use definition::Definition;
pub use worker::Worker;

use std::process::ExitCode;

/// Runs the command line with this app's tasks: what `#[celeriac::main]` does.
pub fn run(app: App) -> ExitCode {
    celeriac_cli::main(Some(app.into_native()))
}
