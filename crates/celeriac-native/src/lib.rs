//! Tasks that run inside the worker itself: what one is, what it is told, how it ends, and what
//! runs it.
//!
//! [`Task`] is what a pool runs; `#[celeriac::task]` makes one of an `async fn`, commands and
//! containers are others. [`NativePool`] runs the tasks of a [`Registry`] with a [`Tracer`]. Not for:
//! brokers, and which message is run when, which the worker deals with.

pub mod arguments;
pub mod blocking;
pub mod body;
mod builtins;
pub mod call;
pub mod cancellation;
pub mod context;
pub mod error;
pub mod panic;
pub mod pool;
pub mod registry;
pub mod results;
pub mod retry;
pub mod sender;
pub mod task;
pub mod trace;

pub use arguments::Arguments;
pub use blocking::Blocking;
pub use call::Call;
pub use cancellation::{Cancellation, Cause};
pub use context::Context;
pub use error::{Error, Result};
pub use pool::{MixedPool, NativeOptions, NativePool};
pub use registry::Registry;
pub use results::{ResultSettings, Results};
pub use retry::RetryPolicy;
pub use sender::Sender;
pub use task::{Options, Task};
pub use trace::{TraceSettings, Tracer};
