//! Publishing with confirms, over a connection of its own.

use celeriac_core::broker::{Error, ErrorKind};
use celeriac_protocol::Message;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{Channel, Confirmation};

use super::error::{broker_error, unsayable};
use super::link::{Address, Link};
use super::message;
use super::table::short;

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
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await
            .map_err(|error| broker_error(&error))?;
        Ok(Self { link, channel })
    }

    /// Whether it can still be used.
    pub(super) fn is_alive(&self) -> bool {
        self.link.is_alive() && self.channel.status().connected()
    }

    /// Publishes, and waits until the server has the message in a queue. While the server has no
    /// room that may take long.
    pub(super) async fn publish(
        &self,
        exchange: &str,
        routing_key: &str,
        message: &Message,
    ) -> Result<(), Error> {
        if self.link.is_blocked() {
            tracing::warn!(
                exchange,
                routing_key,
                "RabbitMQ takes no messages (connection.blocked): publishing waits"
            );
        }
        let say = |error| unsayable("a message can't be published", &error);
        let confirm = self
            .channel
            .basic_publish(
                short(exchange).map_err(say)?,
                short(routing_key).map_err(say)?,
                BasicPublishOptions {
                    mandatory: true,
                    ..BasicPublishOptions::default()
                },
                &message.body,
                message::properties(message).map_err(say)?,
            )
            .await
            .map_err(|error| broker_error(&error))?;
        match confirm.await.map_err(|error| broker_error(&error))? {
            Confirmation::Ack(Some(returned)) => Err(Error::new(
                ErrorKind::Refused,
                format!(
                    "no queue takes a message for exchange {exchange:?} with routing key \
                     {routing_key:?}: {}",
                    returned.reply_text
                ),
            )),
            Confirmation::Nack(_) => Err(Error::new(
                ErrorKind::Full,
                format!(
                    "RabbitMQ did not take a message for exchange {exchange:?} with routing key \
                     {routing_key:?}"
                ),
            )
            .with_hint("the queue may be full: see its x-max-length and x-overflow")),
            Confirmation::Ack(None) | Confirmation::NotRequested => Ok(()),
        }
    }

    /// Leaves in order.
    pub(super) async fn close(&self) -> Result<(), Error> {
        self.link.close().await
    }
}
