//! What was asked of a worker.
//!
//! What an operator says of a worker stands in files and variables: [`layers`]. A Celery app is
//! configured in Python; the Python host puts the operator's settings over the app's, reads it after
//! the hooks that may change it, and describes it: [`Description`]. Components are given the part that concerns them, as a
//! plain struct, and read nothing else. Not for: command lines (`celeriac-cli`).

pub mod description;
pub mod layers;
mod misfit;
pub mod pools;
pub mod slips;
pub mod task;

pub use description::Description;
pub use layers::Configuration;
pub use misfit::{Misfit, read};
pub use pools::{PoolKind, PoolSpec};
pub use task::TaskOptions;
