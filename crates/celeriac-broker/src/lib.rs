//! Where messages come from: one folder for each transport, all behind
//! [`celeriac_core::broker::Broker`].
//!
//! What is said to RabbitMQ and the layouts in Redis and SQL are kombu's, so that producers, workers
//! and tools of Celery share the same queues. Not for: deciding what becomes of a message
//! (`celeriac-worker`).

#[cfg(any(
    feature = "redis",
    feature = "sqlite",
    feature = "postgres",
    feature = "mysql"
))]
mod addressed;
#[cfg(feature = "amqp")]
pub mod amqp;
mod bindings;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
#[cfg(any(
    feature = "redis",
    feature = "sqlite",
    feature = "postgres",
    feature = "mysql"
))]
mod inbox;
mod limit;
#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql"))]
pub mod local;
pub mod memory;
pub mod open;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql"))]
pub mod sql;

pub use open::{Options, open, open_all};
