//! Where tasks in Rust run: inside the worker's process, on threads of their own.
//!
//! The worker's loop has one thread, which must not wait: heartbeats, leases and remote control are
//! its work. So tasks run on another runtime, with as many threads as there are processors, which
//! the pool owns; they tell the loop over an inbox. A task that computes for long without yielding
//! delays other tasks, never the worker.

mod machine;
mod mixed;
mod native;
pub(crate) mod reports;

pub use self::mixed::MixedPool;
pub use self::native::{NativeOptions, NativePool};
