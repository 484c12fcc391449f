//! Remote control and events over Redis: commands and events by publish and subscribe, replies
//! through lists.
//!
//! Nothing is left in Redis: mailboxes are subscriptions alone (nobody reads the bindings that
//! kombu keeps of them), the own queue of replies is bound only while replies are of use, and a
//! reply that nobody fetches is deleted by the server.
//!
//! Celery's counterparts: `kombu.pidbox` and `kombu.transport.redis.Channel._put_fanout`.

mod keeper;
mod pushes;

use std::sync::Arc;

use async_trait::async_trait;
use celeriac_core::broker::{Error, ErrorKind};
use celeriac_core::bus::{Bus, BusOptions, BusSettings, Destination, Heard, Kind, Outgoing};
use celeriac_protocol::Message;
use redis::aio::MultiplexedConnection;
use redis::{Pipeline, cmd, pipe};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;

use super::Shared;
use super::error::broker_error;
use super::scripts::REPLY;
use crate::addressed::addressed;
use crate::inbox::Inbox;
use keeper::{Collect, Keeper, ReplyQueue};
use pushes::Pushes;

/// One connection to Redis as a bus.
pub(super) struct RedisBus {
    shared: Arc<Shared>,
    settings: BusSettings,
    connection: MultiplexedConnection,
    pushes: Arc<Pushes>,
    collect: mpsc::Sender<Collect>,
    keeper: Stopped,
    hears_commands: bool,
    reply_key: String,
    /// The channel that stands for this node, where the server allows one.
    own_channel: Option<String>,
    notice: Option<String>,
}

/// A task that ends with the bus, unless it was left to end by itself.
struct Stopped(JoinHandle<()>);

impl Drop for Stopped {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl RedisBus {
    /// Connects and subscribes; `None` when the server has no RESP3 and so can't push.
    pub(super) async fn open(
        shared: &Arc<Shared>,
        options: &BusOptions,
    ) -> Result<Option<Self>, Error> {
        let settings = &options.settings;
        let mut channels = Vec::new();
        if options.hears_commands {
            let exchange = settings.command_exchange();
            let found = shared.fanout.channels(&exchange, "").into_iter();
            channels.extend(found.map(|channel| (channel, Kind::Command)));
        }
        if options.hears_workers {
            let exchange = &settings.event_exchange;
            let found = shared.fanout.channels(exchange, "worker.#").into_iter();
            channels.extend(found.map(|channel| (channel, Kind::Event)));
        }
        let pushes = Arc::new(Pushes {
            channels,
            seen: shared.fanout.seen(),
            inbox: Inbox::default(),
            replied: Notify::new(),
        });
        let mut connection = {
            let pushes = Arc::clone(&pushes);
            let connected = shared
                .server
                .connect_with_pushes(move |push| pushes.take(&push))
                .await;
            match connected {
                Ok(connection) => connection,
                Err(error) if error.kind() == redis::ErrorKind::RESP3NotSupported => {
                    tracing::warn!(
                        target: "celeriac.broker",
                        "No remote control and no events: the server does not speak RESP3."
                    );
                    return Ok(None);
                }
                Err(error) => return Err(broker_error(&error)),
            }
        };
        for (channel, _) in &pushes.channels {
            connection
                .psubscribe(channel)
                .await
                .map_err(|error| broker_error(&error))?;
        }
        let (own_channel, notice) = if options.hears_commands {
            announce(&mut connection, shared, options).await
        } else {
            (None, None)
        };
        // A reply may come from this connection itself.
        let tracking = cmd("CLIENT")
            .arg(&["TRACKING", "ON"])
            .query_async::<()>(&mut connection)
            .await;
        let reply_key = uuid::Uuid::new_v4().to_string();
        let keeper = Keeper {
            connection: connection.clone(),
            pushes: Arc::clone(&pushes),
            queue: ReplyQueue::new(&shared.keys, settings, &reply_key),
            sweep: [
                shared.keys.binding_table(""),
                shared.keys.permanent_table(""),
            ],
            health_check: Keeper::health_check(shared.options.seconds("health_check_interval")),
            is_told: tracking.is_ok(),
        };
        let (collect, requests) = mpsc::channel(1);
        let mut bus = Self {
            shared: Arc::clone(shared),
            settings: settings.clone(),
            connection,
            pushes,
            collect,
            keeper: Stopped(tokio::spawn(keeper.run(requests))),
            hears_commands: options.hears_commands,
            reply_key,
            own_channel,
            notice,
        };
        bus.collect_replies().await?;
        Ok(Some(bus))
    }

    /// Makes sure that replies arrive, for as long as they are of use.
    async fn collect_replies(&mut self) -> Result<(), Error> {
        if !self.hears_commands {
            return Ok(());
        }
        let (answer, bound) = oneshot::channel();
        // A keeper that is gone has told the inbox why.
        let gone = || Error::new(ErrorKind::Connection, "the connection is lost");
        self.collect.send(answer).await.map_err(|_| gone())?;
        bound.await.map_err(|_| gone())?
    }

    /// Adds the sending of a reply.
    fn add_reply(&self, pipe: &mut Pipeline, exchange: &str, key: &str, message: &Message) {
        let keys = &self.shared.keys;
        let item = addressed(message, exchange, key);
        if exchange.is_empty() {
            pipe.lpush(keys.list(key, 0), item).ignore();
            return;
        }
        // Only a queue of replies may be given an end: whoever asked may have named another.
        let ttl = if exchange == self.settings.reply_exchange() {
            keeper::reply_ttl(&self.settings).as_millis()
        } else {
            0
        };
        pipe.cmd("EVAL")
            .arg(REPLY)
            .arg(1)
            .arg(keys.binding_table(exchange))
            .arg(keys.separator())
            .arg(key)
            .arg(keys.prefix())
            .arg(item)
            .arg(ttl.to_string())
            .ignore();
    }
}

#[async_trait]
impl Bus for RedisBus {
    async fn next(&mut self) -> Result<Heard, Error> {
        loop {
            let heard = self.pushes.inbox.next().await?;
            let is_other = heard.message.as_ref().is_ok_and(is_of_another);
            if heard.kind != Kind::Event || !is_other {
                return Ok(heard);
            }
        }
    }

    async fn send(&mut self, outgoing: &[Outgoing]) -> Result<(), Error> {
        let mut pipe = pipe();
        for Outgoing { to, message } in outgoing {
            match to {
                Destination::Reply {
                    exchange,
                    routing_key,
                } => self.add_reply(&mut pipe, exchange, routing_key, message),
                Destination::Event { routing_key } => {
                    let exchange = &self.settings.event_exchange;
                    let envelope = addressed(message, exchange, routing_key);
                    for channel in self.shared.fanout.channels(exchange, routing_key) {
                        pipe.publish(channel, &envelope).ignore();
                    }
                }
            }
        }
        if pipe.is_empty() {
            return Ok(());
        }
        pipe.query_async(&mut self.connection)
            .await
            .map_err(|error| broker_error(&error))
    }

    async fn broadcast(&mut self, command: &Message) -> Result<Option<usize>, Error> {
        self.collect_replies().await?;
        let exchange = self.settings.command_exchange();
        let envelope = addressed(command, &exchange, "");
        let mut publish = pipe();
        for channel in self.shared.fanout.channels(&exchange, "") {
            publish.publish(channel, &envelope);
        }
        let counts: Vec<usize> = publish
            .query_async(&mut self.connection)
            .await
            .map_err(|error| broker_error(&error))?;
        // Who listens to one channel listens to the other as well.
        Ok(counts.into_iter().max())
    }

    fn reply_key(&self) -> &str {
        &self.reply_key
    }

    fn notice(&self) -> Option<&str> {
        self.notice.as_deref()
    }

    async fn close(self: Box<Self>) -> Result<(), Error> {
        let Self {
            collect,
            mut keeper,
            mut connection,
            pushes,
            own_channel,
            ..
        } = *self;
        // The next node of this name is to find it free, and the count of listeners true.
        let channels = pushes.channels.iter().map(|(channel, _)| channel);
        let channels: Vec<&String> = channels.collect();
        if !channels.is_empty() {
            drop(connection.punsubscribe(channels).await);
        }
        if let Some(channel) = own_channel {
            drop(connection.unsubscribe(channel).await);
        }
        drop(collect);
        // The keeper deletes what it has made; a panic of it is told by the runtime.
        drop((&mut keeper.0).await);
        Ok(())
    }
}

/// Subscribes to a channel that stands for this node, and tells of others that stand for a node of
/// the same name. Only celeriac's nodes can be told so; Redis knows no owner of a mailbox.
async fn announce(
    connection: &mut MultiplexedConnection,
    shared: &Shared,
    options: &BusOptions,
) -> (Option<String>, Option<String>) {
    let mailbox = shared
        .fanout
        .channel(&options.settings.mailbox(&options.node), "");
    let own = format!("{mailbox}/{}", shared.name);
    // A server that forbids it is none the worse.
    if connection.subscribe(&own).await.is_err() {
        return (None, None);
    }
    let channels: Vec<String> = cmd("PUBSUB")
        .arg("CHANNELS")
        .arg(format!("{}/*", escape_glob(&mailbox)))
        .query_async(connection)
        .await
        .unwrap_or_default();
    let notice = channels.iter().any(|channel| *channel != own).then(|| {
        format!(
            "Another node is named {}: commands for it reach both.",
            options.node
        )
    });
    (Some(own), notice)
}

/// `text` as a glob pattern for itself alone.
fn escape_glob(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '^' | '\\') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern
}

/// Whether an event is none of a worker: without `fanout_patterns`, all come over one channel.
fn is_of_another(message: &Message) -> bool {
    let key = message.delivery_info.routing_key.as_deref();
    key.is_some_and(|key| !key.starts_with("worker."))
}
