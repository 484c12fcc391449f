//! Redis in kombu's layout: lists for queues, a hash and a sorted set for what is not
//! acknowledged.
//!
//! Unlike kombu, a message is claimed by one script: it is never out of Redis's keeping between
//! the list and `unacked`. Waiting removes nothing: the server tells the connection when a list
//! changes. And what is claimed is leased: the worker renews its tags' scores, so that no other
//! worker takes a message for abandoned while its task runs, and within seconds of a worker's
//! death the others give its messages back.
//!
//! Celery's counterpart: `kombu.transport.redis`.

mod error;
mod keys;
mod recovery;
mod scripts;
mod session;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use celeriac_core::broker::{Broker, Capabilities, Error, ErrorKind, Session};
use celeriac_net::ServerUrl;
use celeriac_net::redis::RedisAddress;

use crate::open::Options;
use keys::{Keys, OrderStrategy};

/// kombu's default `visibility_timeout`.
const VISIBILITY_TIMEOUT: Duration = Duration::from_hours(1);
/// Celery's default `broker_connection_timeout`.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// A worker that gave no sign of life for so long is dead. Ten missed beats of 1 s: a worker that
/// is stopped or starved for a moment keeps its messages.
const DEAD_AFTER: Duration = Duration::from_secs(10);
/// Without any worker's sign of life for so long, the server was out of reach: whose sign is old is
/// not dead for that.
const PULSE_GAP: Duration = Duration::from_secs(5);
/// Between two signs of life.
const BEAT: Duration = Duration::from_secs(1);

/// One Redis server as a broker.
pub struct RedisBroker {
    shared: Arc<Shared>,
}

/// What the sessions of one broker have in common: a tag given by one can be settled by the next.
struct Shared {
    address: RedisAddress,
    display: String,
    database: String,
    options: Options,
    keys: Keys,
    order: OrderStrategy,
    visibility_timeout: Duration,
    /// This worker in the set of workers, and the beginning of its tags.
    name: String,
    next_tag: AtomicU64,
    /// Where each message that is claimed and not settled came from.
    claimed: Mutex<HashMap<u64, Claim>>,
    was_connected: AtomicBool,
}

/// Where a claimed message came from.
#[derive(Debug, Clone)]
struct Claim {
    /// Its list, to put it back.
    list: Arc<str>,
    /// Length of the route at the end of its value in `unacked`.
    suffix: usize,
}

impl RedisBroker {
    /// The broker that `url` names.
    ///
    /// # Errors
    /// When the URL or an option makes no sense.
    pub fn new(url: &ServerUrl, options: &Options) -> Result<Self, Error> {
        let connect_timeout = options
            .seconds("socket_connect_timeout")
            .or(options.connect_timeout)
            .unwrap_or(CONNECT_TIMEOUT);
        let address =
            RedisAddress::new(url, options.ssl.as_ref(), connect_timeout).map_err(|error| {
                Error::new(ErrorKind::Configuration, format!("broker_url: {error}"))
            })?;
        let database = url
            .query("virtual_host")
            .unwrap_or(url.path())
            .trim_matches('/');
        let id = uuid::Uuid::new_v4().simple().to_string();
        let shared = Shared {
            address,
            display: url.to_string(),
            database: if database.is_empty() {
                "0".to_owned()
            } else {
                database.to_owned()
            },
            options: options.clone(),
            keys: Keys::new(options)?,
            order: OrderStrategy::new(options)?,
            visibility_timeout: options
                .seconds("visibility_timeout")
                .filter(|timeout| !timeout.is_zero())
                .unwrap_or(VISIBILITY_TIMEOUT),
            name: format!("celeriac-{id}"),
            next_tag: AtomicU64::new(1),
            claimed: Mutex::new(HashMap::new()),
            was_connected: AtomicBool::new(false),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }
}

impl Shared {
    /// The tag's name in Redis.
    fn tag(&self, number: u64) -> String {
        format!("{}:{number}", self.name)
    }

    /// The number of a tag of this worker.
    fn own_number(&self, tag: &str) -> Option<u64> {
        tag.strip_prefix(&self.name)?
            .strip_prefix(':')?
            .parse()
            .ok()
    }

    fn claimed(&self) -> MutexGuard<'_, HashMap<u64, Claim>> {
        // Nothing panics while it is held.
        self.claimed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a range of tag numbers that nobody else will use.
    fn reserve_tags(&self, count: usize) -> u64 {
        self.next_tag.fetch_add(count as u64, Ordering::Relaxed)
    }
}

impl fmt::Debug for RedisBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisBroker({})", self.shared.display)
    }
}

#[async_trait]
impl Broker for RedisBroker {
    fn display_url(&self) -> String {
        self.shared.display.clone()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            priorities: true,
            recovers: true,
            tags_outlive_connections: true,
        }
    }

    async fn connect(&self) -> Result<Box<dyn Session>, Error> {
        let mut session = session::RedisSession::open(Arc::clone(&self.shared)).await?;
        if self.shared.was_connected.swap(true, Ordering::Relaxed) {
            session.recover_own_claims().await?;
        }
        Ok(Box::new(session))
    }
}
