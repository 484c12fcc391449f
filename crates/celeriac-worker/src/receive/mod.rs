//! Receiving: from the broker's connection to a message that is understood.

mod burials;
pub mod consumer;
pub mod decode;
pub mod failover;
mod handle;
pub(crate) mod tags;
