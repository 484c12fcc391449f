//! Tasks that run inside the worker itself: what one is, what it is told, and how it ends.
//!
//! [`Task`] is what a pool runs; `#[celeriac::task]` makes one of an `async fn`, commands and
//! containers are others. Not for: queues, messages and results, which the worker deals with.

pub mod arguments;
pub mod cancellation;
pub mod context;
pub mod error;
pub mod retry;
pub mod task;

pub use arguments::Arguments;
pub use cancellation::{Cancellation, Cause};
pub use context::Context;
pub use error::{Error, Result};
pub use retry::RetryPolicy;
pub use task::{Options, Task};
