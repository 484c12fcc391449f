//! Redis in kombu's layout: lists for queues, a hash and a sorted set for what is not
//! acknowledged.
//!
//! Unlike kombu, a message is claimed by one script: it is never out of Redis's keeping between
//! the list and `unacked`. Waiting removes nothing: the server tells the connection when a list
//! changes. And what is claimed is leased: the worker renews its tags' scores, so that no other
//! worker takes a message for abandoned while its task runs, and within seconds of a worker's
//! death the others give its messages back.
//!
//! What waits for its moment is in `unacked` as well: see [`delays`].
//!
//! Celery's counterpart: `kombu.transport.redis`.

mod bus;
mod dead_letters;
mod delays;
mod error;
mod fanout;
mod keys;
mod limits;
mod publisher;
mod pushes;
mod recovery;
mod rollback;
mod scripts;
mod session;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use celeriac_core::broker::{Broker, Capabilities, Error, ErrorKind, Session};
use celeriac_core::bus::{Bus, BusOptions};
use celeriac_core::limit::SharedLimitStore;
use celeriac_core::publisher::Publisher;
use celeriac_net::ServerUrl;
use celeriac_net::redis::{InvalidAddress, RedisAddress, RedisServer};
use celeriac_net::sentinel::Sentinels;
use jiff::Timestamp;

use crate::open::Options;
use fanout::Fanout;
use keys::{Keys, OrderStrategy};
use rollback::Settled;

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

/// One Redis server as a broker, or the master of several.
pub struct RedisBroker {
    shared: Arc<Shared>,
}

/// What the sessions of one broker have in common: a tag given by one can be settled by the next.
struct Shared {
    server: RedisServer,
    display: String,
    options: Options,
    keys: Keys,
    fanout: Fanout,
    order: OrderStrategy,
    visibility_timeout: Duration,
    /// This worker in the set of workers, and the beginning of its tags.
    name: String,
    next_tag: AtomicU64,
    /// Where each message that is claimed and not settled came from.
    claimed: Mutex<HashMap<u64, Claim>>,
    /// What was acknowledged last.
    settled: Mutex<Settled>,
    /// The server that was connected last, by the name that it gives itself when it starts.
    run_id: Mutex<String>,
    was_connected: AtomicBool,
    /// Fanout messages that wait for their moment. As all fanout messages they are in no store; they
    /// outlive a connection.
    waiting: Mutex<Waiting>,
}

/// By their moment and a tag that they came with: the pattern of their channel, and themselves.
type Waiting = BTreeMap<(Timestamp, u64), (String, Bytes)>;

/// Where a claimed message came from.
#[derive(Debug, Clone)]
struct Claim {
    /// Its list, to put it back.
    list: Arc<str>,
    /// The route at the end of its value in `unacked`.
    suffix: Arc<str>,
    /// Itself, as it stood in the list: what was decoded points into the same bytes.
    item: Bytes,
}

impl RedisBroker {
    /// The broker that `url` names.
    ///
    /// # Errors
    /// When the URL or an option makes no sense.
    pub fn new(url: &ServerUrl, options: &Options) -> Result<Self, Error> {
        let server = RedisAddress::new(url, options.ssl.as_ref(), connect_timeout(options));
        let server = server.map(RedisServer::At);
        Self::at(server, url, url.to_string(), options, false)
    }

    /// The broker that is the master which the sentinels of these URLs watch.
    ///
    /// # Errors
    /// When the URLs or an option make no sense.
    pub fn watched(urls: &[ServerUrl], options: &Options) -> Result<Self, Error> {
        let Some(first) = urls.first() else {
            return Err(Error::new(ErrorKind::Configuration, "broker_url is empty"));
        };
        let (transport, ssl) = (&options.transport, options.ssl.as_ref());
        let server = Sentinels::new(urls, transport, ssl, connect_timeout(options));
        let display: Vec<String> = urls.iter().map(ToString::to_string).collect();
        let server = server.map(RedisServer::Watched);
        Self::at(server, first, display.join(";"), options, true)
    }

    fn at(
        server: Result<RedisServer, InvalidAddress>,
        url: &ServerUrl,
        display: String,
        options: &Options,
        is_watched: bool,
    ) -> Result<Self, Error> {
        let server = server.map_err(|error| {
            let hint = matches!(error, InvalidAddress::NoMasterName)
                .then(|| "set master_name to the name in the sentinels' configuration".to_owned());
            Error {
                hint,
                ..Error::new(ErrorKind::Configuration, format!("broker_url: {error}"))
            }
        })?;
        let database = url
            .query("virtual_host")
            .unwrap_or(url.path())
            .trim_matches('/');
        let database = if database.is_empty() { "0" } else { database };
        let id = uuid::Uuid::new_v4().simple().to_string();
        let shared = Shared {
            server,
            display,
            options: options.clone(),
            keys: Keys::new(options)?,
            fanout: Fanout::new(options, database, is_watched),
            order: OrderStrategy::new(options)?,
            visibility_timeout: options
                .seconds("visibility_timeout")
                .filter(|timeout| !timeout.is_zero())
                .unwrap_or(VISIBILITY_TIMEOUT),
            name: format!("celeriac-{id}"),
            next_tag: AtomicU64::new(1),
            claimed: Mutex::new(HashMap::new()),
            settled: Mutex::default(),
            run_id: Mutex::default(),
            was_connected: AtomicBool::new(false),
            waiting: Mutex::default(),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }
}

/// How long a connection may take to be made.
fn connect_timeout(options: &Options) -> Duration {
    options
        .seconds("socket_connect_timeout")
        .or(options.connect_timeout)
        .unwrap_or(CONNECT_TIMEOUT)
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

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Nothing panics while it is held.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn claimed(&self) -> MutexGuard<'_, HashMap<u64, Claim>> {
        // Nothing panics while it is held.
        self.claimed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers acknowledgements, in case the server forgets them.
    fn settle(&self, numbers: &[u64]) {
        let claimed = self.claimed();
        let mut settled = self.settled();
        for number in numbers {
            if let Some(claim) = claimed.get(number) {
                settled.add(*number, claim);
            }
        }
    }

    fn settled(&self) -> MutexGuard<'_, Settled> {
        self.settled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this is another server than the one before, or the same started anew.
    fn is_other(&self, run_id: &str) -> bool {
        let mut known = self.run_id.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *known, run_id.to_owned());
        before != run_id
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
            delays: true,
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

    fn publisher(&self) -> Result<Arc<dyn Publisher>, Error> {
        let publisher = publisher::RedisPublisher::new(Arc::clone(&self.shared));
        Ok(Arc::new(publisher))
    }

    async fn open_bus(&self, options: &BusOptions) -> Result<Option<Box<dyn Bus>>, Error> {
        let bus = bus::RedisBus::open(&self.shared, options).await?;
        Ok(bus.map(|bus| Box::new(bus) as Box<dyn Bus>))
    }

    fn limits(&self) -> Option<SharedLimitStore> {
        Some(Arc::new(limits::RedisLimits(Arc::clone(&self.shared))))
    }
}
