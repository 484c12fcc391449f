//! What was asked of a worker.
//!
//! A Celery app is configured in Python; the Python host reads it after the hooks that may change
//! it, and describes it: [`Description`]. Components are given the part that concerns them, as a
//! plain struct, and read nothing else. Not for: command lines (`celeriac-cli`).

pub mod description;
mod misfit;
pub mod task;

pub use description::Description;
pub use misfit::{Misfit, read};
pub use task::TaskOptions;
