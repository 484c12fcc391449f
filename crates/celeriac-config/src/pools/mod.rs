//! The pools of a worker: which there are, what each may run at once, and from which queues.
//!
//! Celery has one pool in a worker; where none has a name, there is that one.

mod declared;
mod kind;
mod plan;
mod spec;

pub use declared::declared;
pub use kind::PoolKind;
pub use plan::{Plan, Queues};
pub use spec::{PoolSpec, is_named};

/// The name of the pool where none is declared.
pub const ONLY: &str = "default";
