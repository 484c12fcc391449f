//! Publishing with confirms, over a connection of its own.

use celeriac_core::broker::{Error, ErrorKind};
use celeriac_core::queue::Queue;
use celeriac_protocol::Message;

use super::error::{broker_error, unsayable};
use super::link::{Address, Link};
use super::message;
use super::topology;
use super::wire::connection::{Channel, Confirmation, Confirmed};
use super::wire::failure::Failure;
use super::wire::method;

/// A connection for publishing.
pub(super) struct Publisher {
    link: Link,
    channel: Channel,
}

impl Publisher {
    /// Connects.
    pub(super) async fn open(address: &Address) -> Result<Self, Error> {
        let link = address.connect().await?;
        let channel = link.channel().await?;
        let confirms = channel.call(&method::confirm_select()).await;
        confirms.map_err(|failure| broker_error(&failure))?;
        Ok(Self { link, channel })
    }

    /// Whether it can still be used.
    pub(super) fn is_alive(&self) -> bool {
        self.link.is_alive() && self.channel.is_open()
    }

    /// Whether the server takes nothing at present.
    pub(super) fn is_blocked(&self) -> bool {
        self.link.is_blocked()
    }

    /// Publishes, and waits until the server has the message in a queue. While the server has no
    /// room that may take long.
    pub(super) async fn publish(
        &self,
        exchange: &str,
        routing_key: &str,
        message: &Message,
    ) -> Result<(), Error> {
        self.tell_if_blocked(exchange, routing_key);
        let mut properties = Vec::with_capacity(512);
        message::put_properties(message, &mut properties)
            .map_err(|error| unsayable("a message can't be published", &error))?;
        let sent = self.send(exchange, routing_key, &properties, &message.body);
        let confirmed = sent.map_err(|failure| broker_error(&failure))?.await;
        let confirmation = confirmed.unwrap_or_else(|_| Err(Failure::closed()));
        let confirmation = confirmation.map_err(|failure| broker_error(&failure))?;
        taken(confirmation, exchange, routing_key)
    }

    /// Tells an operator why publishing takes long.
    pub(super) fn tell_if_blocked(&self, exchange: &str, routing_key: &str) {
        if self.is_blocked() {
            tracing::warn!(
                exchange,
                routing_key,
                "RabbitMQ takes no messages (connection.blocked): publishing waits"
            );
        }
    }

    /// Publishes without waiting; `properties` are flags and values.
    pub(super) fn send(
        &self,
        exchange: &str,
        routing_key: &str,
        properties: &[u8],
        body: &[u8],
    ) -> Result<Confirmed, Failure> {
        self.channel
            .publish_confirmed(exchange, routing_key, true, properties, body)
    }

    /// The same for a message that need not come anywhere.
    pub(super) fn send_where_wanted(
        &self,
        exchange: &str,
        routing_key: &str,
        properties: &[u8],
        body: &[u8],
    ) -> Result<Confirmed, Failure> {
        self.channel
            .publish_confirmed(exchange, routing_key, false, properties, body)
    }

    /// Makes sure that the queue, its exchanges and its bindings exist. A refusal leaves what is being
    /// published alone.
    pub(super) async fn declare(&self, queue: &Queue) -> Result<(), Error> {
        let channel = self.link.channel().await?;
        topology::declare(&channel, queue).await
    }

    /// Leaves in order.
    pub(super) async fn close(&self) -> Result<(), Error> {
        self.link.close().await
    }
}

/// Whether the server has taken a message.
///
/// # Errors
/// When it has not, with the reason.
pub(super) fn taken(
    confirmation: Confirmation,
    exchange: &str,
    routing_key: &str,
) -> Result<(), Error> {
    match confirmation {
        Confirmation::Returned(reason) => Err(Error::new(
            ErrorKind::Refused,
            format!(
                "no queue takes a message for exchange {exchange:?} with routing key \
                 {routing_key:?}: {reason}"
            ),
        )),
        Confirmation::Nack => Err(Error::new(
            ErrorKind::Full,
            format!(
                "RabbitMQ did not take a message for exchange {exchange:?} with routing key \
                 {routing_key:?}"
            ),
        )
        .with_hint("the queue may be full: see its x-max-length and x-overflow")),
        Confirmation::Ack => Ok(()),
    }
}
