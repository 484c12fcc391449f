//! The app's interpreter and the processes that it becomes.
//!
//! ```text
//! host ── loads the app, runs Celery's start-up hooks, describes itself; then it is
//!  ├─ main: runs parent-side hooks ([`main::Main`])
//!  └─ zygote: a single-threaded copy that only forks ([`zygote::Zygote`])
//! ```
//!
//! The Python side is `python/celeriac/host`; its sources are part of the binary.

pub mod client;
pub mod frame;
pub mod host;
pub mod interpreter;
pub mod main;
mod shim;
pub mod zygote;

pub use host::{Host, StartError, StartOptions};
pub use main::{CallError, Main};
