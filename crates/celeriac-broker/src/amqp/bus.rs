//! The bus over AMQP: a mailbox on a fanout exchange, a queue for replies, one for events.
//!
//! Celery's counterparts: `kombu.pidbox.{Mailbox, Node}` and `celery.events.receiver`.

use std::collections::{HashSet, VecDeque};
use std::future::poll_fn;
use std::task::{Context, Poll};

use async_trait::async_trait;
use celeriac_core::broker::{Error, ErrorKind};
use celeriac_core::bus::{Bus, BusOptions, BusSettings, Destination, Heard, Kind, Outgoing};
use celeriac_core::queue::{Exchange, ExchangeKind, Queue};
use celeriac_protocol::Message;
use serde_json::{Map, Value};

use super::error::{broker_error, unsayable};
use super::link::{Address, Link};
use super::wire::connection::{Arrival, Channel, Delivery};
use super::wire::failure::Failure;
use super::wire::method;
use super::{message, topology};

/// What is looked through for what is urgent.
const MOST_HEARD: usize = 1000;

/// A connection to the bus.
pub(super) struct AmqpBus {
    link: Link,
    /// What is said; the server closes it over an exchange that is not there.
    speaking: Channel,
    /// What is heard.
    listening: Channel,
    /// Commands before replies before events: an operator waits for none of the last.
    heard: [(Kind, VecDeque<Delivery>); 3],
    settings: BusSettings,
    reply_key: String,
    /// Exchanges for replies that are known to be there.
    declared: HashSet<String>,
    /// Whether it was told that the server takes nothing.
    is_muted: bool,
}

impl AmqpBus {
    /// Connects, and listens to what `options` ask for.
    pub(super) async fn open(address: &Address, options: &BusOptions) -> Result<Self, Error> {
        let link = address.connect().await?;
        let channel = link.channel().await?;
        let settings = options.settings.clone();
        let reply_key = uuid::Uuid::new_v4().to_string();
        declare_exchanges(&channel, &settings).await?;
        let mut queues = Vec::new();
        if options.hears_commands {
            let mailbox = settings.mailbox(&options.node);
            queues.push((Kind::Command, control_queue(&settings, mailbox, "")));
            let replies = settings.reply_queue(&reply_key);
            let mut replies = control_queue(&settings, replies, &reply_key);
            replies.exchange = reply_exchange(settings.reply_exchange());
            queues.push((Kind::Reply, replies));
        }
        if options.hears_workers {
            queues.push((Kind::Event, event_queue(&settings)));
        }
        for (kind, queue) in &queues {
            let declared = topology::declare(&channel, queue).await;
            declared.map_err(|error| name_is_taken(error, options, *kind))?;
            let consume = method::consume(&queue.name, tag(*kind), true, false, &Map::new())
                .map_err(|error| unsayable("a queue", &error))?;
            let consumed = channel.call(&consume).await;
            consumed.map_err(|failure| name_is_taken(broker_error(&failure), options, *kind))?;
        }
        Ok(Self {
            speaking: link.channel().await?,
            link,
            listening: channel,
            heard: [Kind::Command, Kind::Reply, Kind::Event].map(|kind| (kind, VecDeque::new())),
            declared: HashSet::from([settings.reply_exchange()]),
            settings,
            reply_key,
            is_muted: false,
        })
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Heard, Error>> {
        let lost = loop {
            let count: usize = self.heard.iter().map(|(_, heard)| heard.len()).sum();
            if count >= MOST_HEARD {
                break None;
            }
            match self.listening.poll_arrival(context) {
                Poll::Pending => break None,
                Poll::Ready(Ok(Arrival::Delivery(delivery))) => {
                    let place = self
                        .heard
                        .iter_mut()
                        .find(|(kind, _)| *tag(*kind) == *delivery.consumer);
                    if let Some((_, heard)) = place {
                        heard.push_back(delivery);
                    }
                }
                Poll::Ready(Ok(Arrival::Cancelled(_))) => {
                    let text = "the server cancelled a consumer of the bus: is its queue deleted?";
                    break Some(Error::new(ErrorKind::Connection, text));
                }
                Poll::Ready(Err(failure)) => break Some(broker_error(&failure)),
            }
        };
        for (kind, heard) in &mut self.heard {
            if let Some(delivery) = heard.pop_front() {
                return Poll::Ready(Ok(Heard {
                    kind: *kind,
                    message: message::message(&delivery),
                }));
            }
        }
        lost.map_or(Poll::Pending, |lost| Poll::Ready(Err(lost)))
    }

    /// Whether the server takes nothing: what waited here would be of no use when it comes, and
    /// there is ever more of it.
    fn is_muted(&mut self) -> bool {
        let was_muted = std::mem::replace(&mut self.is_muted, self.link.is_blocked());
        if self.is_muted && !was_muted {
            tracing::warn!(
                "RabbitMQ takes no messages (connection.blocked): events and replies are lost"
            );
        }
        self.is_muted
    }

    /// The channel for what is said.
    async fn speaking(&mut self) -> Result<Channel, Error> {
        if !self.speaking.is_open() {
            tracing::debug!("the channel of the bus was closed: it is opened again");
            self.speaking = self.link.channel().await?;
            // One of its exchanges may be gone.
            self.declared = HashSet::from([self.settings.reply_exchange()]);
            declare_exchanges(&self.speaking, &self.settings).await?;
        }
        Ok(self.speaking.clone())
    }

    /// Publishes in order, and waits until all of it is on its way, or the server takes nothing.
    async fn publish(&mut self, messages: &[(&str, &str, &Message)]) -> Result<(), Error> {
        if self.is_muted() {
            return Ok(());
        }
        let channel = self.speaking().await?;
        for (exchange, routing_key, message) in messages {
            let mut properties = Vec::with_capacity(256);
            let published = message::put_properties(message, &mut properties)
                .map_err(Failure::from)
                .and_then(|()| channel.publish(exchange, routing_key, &properties, &message.body));
            match published {
                // Whoever asks names where the answer goes: a slip of his concerns nobody else.
                Err(Failure::Unsayable(error)) => {
                    tracing::warn!(%error, "a message of the bus can't be said in AMQP");
                }
                published => published.map_err(|failure| broker_error(&failure))?,
            }
        }
        channel
            .sent()
            .await
            .map_err(|failure| broker_error(&failure))
    }

    /// Makes sure that the exchanges of replies are there: whoever asks may name any.
    async fn declare_reply_exchanges(&mut self, outgoing: &[Outgoing]) -> Result<(), Error> {
        for outgoing in outgoing {
            let Destination::Reply { exchange, .. } = &outgoing.to else {
                continue;
            };
            if exchange.is_empty() || self.declared.contains(exchange) {
                continue;
            }
            let channel = self.speaking().await?;
            let declared = reply_exchange(exchange.clone());
            if let Err(error) = topology::declare_exchange(&channel, &declared).await {
                // Its own affair: it is there in another form, or is not ours to make.
                tracing::debug!(%error, exchange, "the exchange of a reply can't be declared");
            }
            // Foreign names do not pile up.
            if self.declared.len() > 1000 {
                self.declared.clear();
            }
            self.declared.insert(exchange.clone());
        }
        Ok(())
    }
}

#[async_trait]
impl Bus for AmqpBus {
    async fn next(&mut self) -> Result<Heard, Error> {
        poll_fn(|context| self.poll_next(context)).await
    }

    async fn send(&mut self, outgoing: &[Outgoing]) -> Result<(), Error> {
        if self.is_muted() {
            return Ok(());
        }
        self.declare_reply_exchanges(outgoing).await?;
        let event_exchange = self.settings.event_exchange.clone();
        let messages: Vec<(&str, &str, &Message)> = outgoing
            .iter()
            .map(|outgoing| match &outgoing.to {
                Destination::Reply {
                    exchange,
                    routing_key,
                } => (exchange.as_str(), routing_key.as_str(), &outgoing.message),
                Destination::Event { routing_key } => (
                    event_exchange.as_str(),
                    routing_key.as_str(),
                    &outgoing.message,
                ),
            })
            .collect();
        self.publish(&messages).await
    }

    async fn broadcast(&mut self, command: &Message) -> Result<Option<usize>, Error> {
        let exchange = self.settings.command_exchange();
        self.publish(&[(&exchange, "", command)]).await?;
        Ok(None)
    }

    fn reply_key(&self) -> &str {
        &self.reply_key
    }

    async fn close(self: Box<Self>) -> Result<(), Error> {
        self.link.close().await
    }
}

/// The consumer's tag.
fn tag(kind: Kind) -> &'static str {
    match kind {
        Kind::Command => "celeriac-command",
        Kind::Reply => "celeriac-reply",
        Kind::Event => "celeriac-event",
    }
}

/// Another node has the mailbox: the message names it and the remedy.
fn name_is_taken(error: Error, options: &BusOptions, kind: Kind) -> Error {
    let is_locked = error.message.starts_with("RESOURCE_LOCKED")
        || error.message.starts_with("ACCESS_REFUSED") && error.message.contains("exclusive");
    if kind != Kind::Command || !is_locked {
        return error;
    }
    let text = format!(
        "another worker uses the node name {}: its mailbox is taken ({error})",
        options.node
    );
    Error::new(ErrorKind::Refused, text)
        .with_hint("give each worker a name of its own with -n, such as -n worker2@%h")
}

async fn declare_exchanges(channel: &Channel, settings: &BusSettings) -> Result<(), Error> {
    let exchanges = [
        command_exchange(settings),
        reply_exchange(settings.reply_exchange()),
        event_exchange(settings),
    ];
    for exchange in &exchanges {
        topology::declare_exchange(channel, exchange).await?;
    }
    Ok(())
}

fn exchange(name: String, kind: ExchangeKind, durable: bool) -> Exchange {
    Exchange {
        durable,
        ..Exchange::new(name, kind)
    }
}

fn command_exchange(settings: &BusSettings) -> Exchange {
    exchange(settings.command_exchange(), ExchangeKind::Fanout, false)
}

fn reply_exchange(name: String) -> Exchange {
    exchange(name, ExchangeKind::Direct, false)
}

fn event_exchange(settings: &BusSettings) -> Exchange {
    exchange(settings.event_exchange.clone(), ExchangeKind::Topic, true)
}

fn control_queue(settings: &BusSettings, name: String, routing_key: &str) -> Queue {
    Queue {
        exchange: command_exchange(settings),
        routing_key: routing_key.to_owned(),
        durable: settings.control_queue_durable,
        exclusive: settings.control_queue_exclusive,
        auto_delete: !settings.control_queue_durable,
        arguments: time_to_live(settings.control_queue_ttl),
        expires: settings.control_queue_expires,
        ..Queue::direct(name)
    }
}

fn event_queue(settings: &BusSettings) -> Queue {
    let id = uuid::Uuid::new_v4();
    Queue {
        exchange: event_exchange(settings),
        routing_key: "worker.#".to_owned(),
        durable: settings.event_queue_durable,
        exclusive: settings.event_queue_exclusive,
        auto_delete: !settings.event_queue_durable,
        arguments: time_to_live(settings.event_queue_ttl),
        expires: settings.event_queue_expires,
        ..Queue::direct(format!("{}.{id}", settings.event_queue_prefix))
    }
}

fn time_to_live(seconds: Option<f64>) -> Map<String, Value> {
    let milliseconds = seconds.map(|seconds| (seconds * 1000.0) as i64);
    milliseconds
        .map(|milliseconds| ("x-message-ttl".to_owned(), Value::from(milliseconds)))
        .into_iter()
        .collect()
}
