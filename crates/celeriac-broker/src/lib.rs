//! Where messages come from: one folder for each transport, all behind
//! [`celeriac_core::broker::Broker`].
//!
//! The layouts in Redis and SQL are kombu's, so that producers, workers and tools of Celery share
//! the same queues. Not for: deciding what becomes of a message (`celeriac-worker`).

pub mod memory;
pub mod open;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(feature = "sqlite")]
pub mod sql;

pub use open::{Options, open};
