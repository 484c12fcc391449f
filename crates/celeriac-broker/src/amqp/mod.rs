//! RabbitMQ over AMQP 0-9-1.
//!
//! # Fetch what can run
//!
//! AMQP pushes: the server sends what the client's prefetch limit allows. So that no message is
//! taken that no process is free for, the limit follows what the worker wants from one exchange to
//! the next:
//!
//! - **One limit for the channel** (`basic.qos` with `global`), where all queues are classic. The
//!   limit is what is out (sent and not settled) and what is wanted more. It is sent before the
//!   acknowledgements of the same exchange, and only when it changes, so that at no time the server
//!   may send one message too many. A limit of nothing can't be said (0 is no limit): the consumers
//!   are cancelled then, and made anew when something is wanted. With tasks that are acknowledged
//!   early that is so whenever all processes are busy.
//! - **A limit for each consumer**, where a queue is of another type, or the server refuses the
//!   other. It can't be changed, so a consumer that may get more than is wanted is cancelled before
//!   the acknowledgements, and made anew. With several queues each consumer gets the whole of what
//!   is wanted, so that at most `(queues - 1) * wanted` messages come too many. They wait here for
//!   a free process: a quorum queue counts how often a message was delivered, and drops it at its
//!   `x-delivery-limit`.
//!
//!   So it is, too, where more messages are held than AMQP can count (65,535).
//!
//! A queue that would be deleted without a consumer (`auto_delete`), or whose one consumer has it
//! for itself (`x-single-active-consumer`), keeps its consumer, and the limit that this was made
//! with: some messages may come too many and wait here.
//!
//! Messages with an ETA are held by the worker and use up nothing that can run. While nothing else
//! comes the credit is widened (`credit::Widening`), so that a normal message is soon reached
//! behind thousands of them; what came too many on classic queues goes back within two seconds.
//!
//! A queue with `no_ack` is consumed with acknowledgements all the same, or its whole contents
//! would be sent at once: what is handed out is acknowledged at once.
//!
//! # Messages that come later
//!
//! They are published to the levels of native delayed delivery (`delayed`, `delays`) and come back
//! to their queue by a binding of its own; a header keeps the way that they first came (`route`).
//! What the server does not take waits in the session, unacknowledged.
//!
//! # Losing a connection
//!
//! The worker connects again by itself, and no settlement of one connection reaches another. A
//! channel that the server closes (`consumer_timeout`) and a consumer that it cancels (a deleted
//! queue) count as a lost connection.
//!
//! # Publishing
//!
//! Over a connection of its own, with confirms: the server blocks connections that publish when it
//! has no memory or disk left, and consuming must go on then.

mod bus;
mod consuming;
mod credit;
mod dead_letters;
mod delayed;
mod delays;
mod error;
mod link;
mod message;
mod publisher;
mod publishing;
mod remembered;
mod route;
mod session;
mod table;
mod topology;
#[cfg(feature = "fuzzing")]
pub(crate) use wire::fuzzing;
mod wire;

use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use celeriac_core::broker::{Broker, Capabilities, Error, Session};
use celeriac_core::bus::{Bus, BusOptions};
use celeriac_core::publisher::Publisher;
use celeriac_net::ServerUrl;

use crate::open::Options;
use link::Address;
use remembered::Remembered;

/// One RabbitMQ server, or another that speaks AMQP 0-9-1, as a broker.
pub struct AmqpBroker {
    shared: Arc<Shared>,
}

/// What the sessions of one broker have in common.
struct Shared {
    address: Address,
    display: String,
    /// The type of the queues in which messages wait for their moment.
    levels: String,
    /// Whether quorum queues are looked for, whose messages with an ETA clients send that way.
    detects_quorum_queues: bool,
    /// Whether any of the app's queues is a quorum queue: its producers send messages with an ETA
    /// for all queues through native delayed delivery then.
    has_quorum_queues: bool,
    /// Whether the server has refused a limit for a whole channel.
    refuses_channel_limits: AtomicBool,
    /// What was put into the delay store.
    remembered: Arc<Mutex<Remembered>>,
}

impl AmqpBroker {
    /// The broker that `url` names.
    ///
    /// # Errors
    /// When the URL or an option makes no sense.
    pub fn new(url: &ServerUrl, options: &Options) -> Result<Self, Error> {
        let shared = Shared {
            address: Address::new(url, options)?,
            display: url.to_string(),
            levels: {
                let kind = options.delayed_delivery_queue_type.as_deref();
                kind.unwrap_or("quorum").to_owned()
            },
            detects_quorum_queues: options.detects_quorum_queues,
            has_quorum_queues: options.has_quorum_queues,
            refuses_channel_limits: AtomicBool::new(false),
            remembered: Arc::default(),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }
}

impl fmt::Debug for AmqpBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AmqpBroker({})", self.shared.display)
    }
}

#[async_trait]
impl Broker for AmqpBroker {
    fn display_url(&self) -> String {
        self.shared.display.clone()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            priorities: true,
            recovers: true,
            delays: true,
            tags_outlive_connections: false,
        }
    }

    async fn connect(&self) -> Result<Box<dyn Session>, Error> {
        let session = session::AmqpSession::open(Arc::clone(&self.shared)).await?;
        Ok(Box::new(session))
    }

    fn publisher(&self) -> Result<Arc<dyn Publisher>, Error> {
        let publisher = publishing::AmqpPublisher::new(Arc::clone(&self.shared));
        Ok(Arc::new(publisher))
    }

    async fn open_bus(&self, options: &BusOptions) -> Result<Option<Box<dyn Bus>>, Error> {
        let bus = bus::AmqpBus::open(&self.shared.address, options).await?;
        Ok(Some(Box::new(bus)))
    }
}
