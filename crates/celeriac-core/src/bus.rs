//! The bus: what nodes tell one another and the operator, beside the tasks themselves. Commands
//! of the remote control, replies to them, and events.
//!
//! Celery's counterparts: `kombu.pidbox.Mailbox` and the exchanges of `celery.events`. One
//! conformance suite (`celeriac-testing`) holds every implementation to what is written here.

use std::time::Duration;

use async_trait::async_trait;
use celeriac_protocol::Message;
use serde::Deserialize;

use crate::broker::{Error, Unreadable};

/// One live connection to the bus, apart from the one that fetches tasks: a broker that holds back
/// publishers must not hold back tasks.
///
/// Nothing that is heard has to be acknowledged, and nothing that is said is confirmed: an event or
/// a reply that is lost with its connection is lost.
#[async_trait]
pub trait Bus: Send {
    /// Waits for the next that is heard. Safe to cancel.
    ///
    /// # Errors
    /// When the connection is lost: a new bus has to be opened.
    async fn next(&mut self) -> Result<Heard, Error>;

    /// Sends replies and events, in order.
    async fn send(&mut self, outgoing: &[Outgoing]) -> Result<(), Error>;

    /// Sends a command to all mailboxes, that of this bus included. Answers with how many have got
    /// it, where the broker can tell.
    async fn broadcast(&mut self, command: &Message) -> Result<Option<usize>, Error>;

    /// The routing key by which replies reach this bus, on the exchange
    /// [`BusSettings::reply_exchange`].
    fn reply_key(&self) -> &str;

    /// What the operator should know, such as that another node uses this one's name.
    fn notice(&self) -> Option<&str> {
        None
    }

    /// Leaves in order: what was made for this bus alone is removed.
    async fn close(self: Box<Self>) -> Result<(), Error>;
}

/// Something that was heard.
#[derive(Debug)]
pub struct Heard {
    /// What it is.
    pub kind: Kind,
    /// The message, or the bytes that are none.
    pub message: Result<Message, Unreadable>,
}

/// What comes over a bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A command for all nodes or some.
    Command,
    /// A reply to a command that this node has sent.
    Reply,
    /// An event of a worker (routing keys `worker.#`).
    Event,
}

/// Something to send.
#[derive(Debug, Clone, PartialEq)]
pub struct Outgoing {
    /// Where to.
    pub to: Destination,
    /// The message; its delivery information is not read.
    pub message: Message,
}

/// Where a message goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// To whoever asked, as the command's `reply_to` says.
    Reply {
        /// The exchange, usually [`BusSettings::reply_exchange`].
        exchange: String,
        /// The routing key.
        routing_key: String,
    },
    /// To all who listen to events.
    Event {
        /// The event's type with dots: `worker.online`, `task.multi`.
        routing_key: String,
    },
}

/// What a bus is opened for.
#[derive(Debug, Clone)]
pub struct BusOptions {
    /// The node's name.
    pub node: String,
    /// Names and limits.
    pub settings: BusSettings,
    /// Whether commands and replies are to be heard.
    pub hears_commands: bool,
    /// Whether events of workers are to be heard.
    pub hears_workers: bool,
}

/// The app's settings for remote control and events, by Celery's names.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct BusSettings {
    /// The namespace of mailboxes.
    pub control_exchange: String,
    /// Seconds after which a command or a reply is of no use.
    pub control_queue_ttl: Option<f64>,
    /// Seconds after which an unused mailbox or reply queue is deleted.
    pub control_queue_expires: Option<f64>,
    /// Whether mailboxes and reply queues belong to their connection.
    pub control_queue_exclusive: bool,
    /// Whether they survive a restart of the broker.
    pub control_queue_durable: bool,
    /// The exchange for events.
    pub event_exchange: String,
    /// The beginning of the names of queues for events.
    pub event_queue_prefix: String,
    /// Seconds after which an event is of no use.
    pub event_queue_ttl: Option<f64>,
    /// Seconds after which an unused queue for events is deleted.
    pub event_queue_expires: Option<f64>,
    /// Whether queues for events belong to their connection.
    pub event_queue_exclusive: bool,
    /// Whether they survive a restart of the broker.
    pub event_queue_durable: bool,
}

impl Default for BusSettings {
    /// Celery's defaults.
    fn default() -> Self {
        Self {
            control_exchange: "celery".to_owned(),
            control_queue_ttl: Some(300.0),
            control_queue_expires: Some(10.0),
            control_queue_exclusive: true,
            control_queue_durable: false,
            event_exchange: "celeryev".to_owned(),
            event_queue_prefix: "celeryev".to_owned(),
            event_queue_ttl: Some(5.0),
            event_queue_expires: Some(60.0),
            event_queue_exclusive: true,
            event_queue_durable: false,
        }
    }
}

impl BusSettings {
    /// The fanout exchange of the mailboxes: `celery.pidbox`.
    pub fn command_exchange(&self) -> String {
        format!("{}.pidbox", self.control_exchange)
    }

    /// The direct exchange of replies: `reply.celery.pidbox`.
    pub fn reply_exchange(&self) -> String {
        format!("reply.{}.pidbox", self.control_exchange)
    }

    /// The mailbox of a node: `w1@host.celery.pidbox`.
    pub fn mailbox(&self, node: &str) -> String {
        format!("{node}.{}.pidbox", self.control_exchange)
    }

    /// The queue of replies with this key: `<key>.reply.celery.pidbox`.
    pub fn reply_queue(&self, key: &str) -> String {
        format!("{key}.{}", self.reply_exchange())
    }

    /// A setting in seconds as a span of time; `None` for what is no span.
    pub fn span(seconds: Option<f64>) -> Option<Duration> {
        seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
    }
}
