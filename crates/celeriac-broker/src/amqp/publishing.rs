//! Publishing for clients: any number of messages may be on their way at once.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use celeriac_core::broker::Error;
use celeriac_core::publisher::{self, Published};
use celeriac_core::queue::Queue;

use super::Shared;
use super::error::{broker_error, unsayable};
use super::message;
use super::publisher::{Publisher, taken};
use super::wire::failure::Failure;

/// Publishes over a connection of its own, which is made anew when it is lost.
pub(super) struct AmqpPublisher {
    shared: Arc<Shared>,
    current: tokio::sync::Mutex<Option<Arc<Open>>>,
}

/// One connection, and what was declared over it.
struct Open {
    publisher: Publisher,
    declared: Mutex<HashMap<String, Queue>>,
}

impl Open {
    fn declared(&self) -> MutexGuard<'_, HashMap<String, Queue>> {
        // Nothing panics while it is held.
        self.declared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AmqpPublisher {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            current: tokio::sync::Mutex::default(),
        }
    }

    /// The connection: a new one where there is none that can be used.
    async fn open(&self) -> Result<Arc<Open>, Error> {
        let mut current = self.current.lock().await;
        if let Some(open) = current.as_ref().filter(|open| open.publisher.is_alive()) {
            return Ok(Arc::clone(open));
        }
        *current = None;
        let open = Arc::new(Open {
            publisher: Publisher::open(&self.shared.address).await?,
            declared: Mutex::default(),
        });
        *current = Some(Arc::clone(&open));
        Ok(open)
    }
}

impl fmt::Debug for AmqpPublisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AmqpPublisher({})", self.shared.display)
    }
}

#[async_trait]
impl publisher::Publisher for AmqpPublisher {
    async fn declare(&self, queue: &Queue) -> Result<(), Error> {
        if queue.no_declare {
            return Ok(());
        }
        let open = self.open().await?;
        let is_declared = open.declared().get(&queue.name) == Some(queue);
        if !is_declared {
            open.publisher.declare(queue).await?;
            open.declared().insert(queue.name.clone(), queue.clone());
        }
        Ok(())
    }

    async fn publish(&self, messages: &[Published]) -> Result<(), Error> {
        let open = self.open().await?;
        let publisher = &open.publisher;
        let mut sent = Vec::with_capacity(messages.len());
        let mut properties = Vec::with_capacity(512);
        for published in messages {
            let Published {
                exchange,
                routing_key,
                mandatory,
                message,
            } = published;
            publisher.tell_if_blocked(exchange, routing_key);
            properties.clear();
            message::put_properties(message, &mut properties)
                .map_err(|error| unsayable("a message can't be published", &error))?;
            let (key, body) = (routing_key, &message.body);
            let confirmed = if *mandatory {
                publisher.send(exchange, key, &properties, body)
            } else {
                publisher.send_where_wanted(exchange, key, &properties, body)
            };
            sent.push(confirmed.map_err(|failure| broker_error(&failure))?);
        }
        for (confirmed, published) in sent.into_iter().zip(messages) {
            let confirmation = confirmed.await.unwrap_or_else(|_| Err(Failure::closed()));
            let confirmation = confirmation.map_err(|failure| broker_error(&failure))?;
            taken(confirmation, &published.exchange, &published.routing_key)?;
        }
        Ok(())
    }

    async fn close(&self) -> Result<(), Error> {
        match self.current.lock().await.take() {
            Some(open) => open.publisher.close().await,
            None => Ok(()),
        }
    }
}
