//! What is said on the wire: Celery's task messages as plain data.
//!
//! A [`Message`] keeps what a broker delivered without loss and without opening the body; a
//! [`Head`] holds the few fields a worker must understand to decide what to do with it. Nothing
//! here does I/O, reads a clock, or knows a broker's API. Not for: executing tasks, unpickling,
//! or decoding arguments, which only the process that runs the task may do.
//!
//! Celery's counterparts: `celery.app.amqp` (building), `celery.worker.strategy` and
//! `celery.worker.request` (reading), `kombu.message` and `kombu.transport.virtual.base`.

pub mod content;
pub mod dumps;
pub mod envelope;
pub mod exception;
pub mod head;
pub mod json;
pub mod marks;
pub mod message;
pub mod python;
pub mod rate;
pub mod request;
pub mod saferepr;
pub mod signature;
pub mod task_message;
pub mod timestamp;

pub use content::AcceptContent;
pub use exception::Exception;
pub use head::{Head, InvalidTask, TimeLimit, TimeLimits};
pub use marks::Marks;
pub use message::{DeliveryInfo, Message};
pub use rate::RateLimit;
pub use signature::Signature;
pub use task_message::TaskMessage;
