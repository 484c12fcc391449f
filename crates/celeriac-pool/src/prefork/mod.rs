//! The pools of Python tasks: children forked from the zygote. Those of prefork and solo run one task
//! at a time each, those of threads, gevent and asyncio many.
//!
//! [`machine`] decides: which child gets which job, when one is replaced, limited, killed. It is a
//! pure state machine over readings of the clock. [`pool`] carries its actions out and tells it
//! what happens. Celery's counterparts: `celery.concurrency.asynpool`, `billiard.pool`.

mod child;
mod estimate;
pub mod frame;
pub mod kind;
pub mod last_words;
pub mod machine;
pub mod pool;

pub use kind::PoolKind;
pub use pool::{PreforkOptions, PreforkPool};
