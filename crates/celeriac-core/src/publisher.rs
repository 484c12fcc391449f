//! What clients, and tasks that are written in Rust, ask of a broker: to send messages.
//!
//! Celery's counterpart: `kombu.Producer`.

use std::fmt;

use async_trait::async_trait;
use bytestring::ByteString;
use celeriac_protocol::Message;

use crate::broker::Error;
use crate::queue::Queue;

/// Sends messages over a connection of its own, which it makes when it is needed and again when it
/// is lost. May be used by many at once.
#[async_trait]
pub trait Publisher: Send + Sync + fmt::Debug {
    /// Makes sure that the queue, its exchange and its bindings exist, once for each connection.
    ///
    /// # Errors
    /// When the broker can't be reached, or refuses.
    async fn declare(&self, queue: &Queue) -> Result<(), Error>;

    /// Sends messages in order, and returns when all of them are safe with the broker: confirmed by
    /// it, written to its disk, or where it has no such thing, accepted by it.
    ///
    /// # Errors
    /// When one of them may not have arrived; which of them have is not known.
    async fn publish(&self, messages: &[Published]) -> Result<(), Error>;

    /// Leaves in order.
    async fn close(&self) -> Result<(), Error>;
}

/// A message, and where it goes.
#[derive(Debug, Clone, PartialEq)]
pub struct Published {
    /// The exchange, `""` for the default one.
    pub exchange: ByteString,
    /// The routing key; on the default exchange the queue's name.
    pub routing_key: ByteString,
    /// Whether it is an error that no queue gets it. What is for a queue of somebody who may have
    /// left meanwhile (a result of `rpc://`) is not mandatory.
    pub mandatory: bool,
    /// The message; its delivery information is not read.
    pub message: Message,
}
