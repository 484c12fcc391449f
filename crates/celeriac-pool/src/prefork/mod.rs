//! The prefork pool: children forked from the zygote, one task at a time each.
//!
//! [`machine`] decides: which child gets which job, when one is replaced, limited, killed. It is a
//! pure state machine over readings of the clock. [`pool`] carries its actions out and tells it
//! what happens. Celery's counterparts: `celery.concurrency.asynpool`, `billiard.pool`.

mod child;
mod estimate;
pub mod frame;
pub mod last_words;
pub mod machine;
pub mod pool;

pub use pool::{PreforkOptions, PreforkPool};
