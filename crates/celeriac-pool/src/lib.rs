//! Where tasks run.
//!
//! [`python`] starts the app's interpreter and talks to the processes it becomes: main, which runs
//! Celery's parent-side hooks, and the zygote, which forks. [`prefork`] is the pool of children
//! over it, behind `celeriac_core::pool`. Not for: what a task's end means (`celeriac-worker`).

pub mod memory;
pub mod prefork;
pub mod python;
pub mod sys;
