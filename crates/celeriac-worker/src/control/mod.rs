//! Remote control: commands for this worker, and what workers tell one another.
//!
//! The parts are pure; [`crate::core`] carries commands out. Celery's counterparts:
//! `celery.worker.control`, `celery.worker.pidbox`, and the consumer's steps Mingle and Gossip.

pub mod bus;
pub mod gossip;
pub mod info;
pub mod mailbox;
pub mod matcher;
pub mod mingle;
pub use celeriac_protocol::python;
pub mod signature;
