//! SQL databases in the schema of kombu's SQLAlchemy transport.
//!
//! A plain Python producer enqueues with kombu's own `sqla+…://`, and kombu's consumers share the
//! queues. Unlike kombu, a message that was taken and is not acknowledged stays in its table,
//! invisible and leased to its worker, and comes back when that worker dies; an acknowledged one
//! is deleted. One that is delayed stays there as well, invisible and nobody's, until its moment,
//! which a table beside tells.
//!
//! `session` is what all databases share; each of the folders is one database in its own words.
//!
//! Celery's counterpart: `kombu.transport.sqlalchemy`.

mod dead_letters;
mod fates;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod identity;
mod lease;
mod limits;
#[cfg(any(feature = "postgres", feature = "mysql"))]
mod pace;
mod publisher;
#[cfg(any(feature = "mysql", feature = "postgres"))]
mod server;
mod session;
mod store;
mod tables;
mod turns;

#[cfg(feature = "mysql")]
pub mod mysql;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "sqlite")]
pub mod sqlite;

use std::collections::HashSet;
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use celeriac_core::broker::{Broker, Capabilities, Error, ErrorKind, Session};
use celeriac_core::bus::{Bus, BusOptions};
use celeriac_core::limit::SharedLimitStore;
use celeriac_core::publisher::Publisher;
use celeriac_net::ServerUrl;

use crate::local::{LocalBus, Place};
use crate::open::Options;
use session::SqlSession;
use store::Engine;

/// The databases of this build, as an error names them.
pub(crate) const AVAILABLE: &[&str] = &[
    #[cfg(feature = "sqlite")]
    "sqla+sqlite://",
    #[cfg(feature = "postgres")]
    "sqla+postgresql://",
    #[cfg(feature = "mysql")]
    "sqla+mysql://, sqla+mariadb://",
];

/// A database as a broker.
pub struct SqlBroker {
    shared: Arc<Shared>,
    engine: Arc<dyn Engine>,
    url: ServerUrl,
    options: Options,
}

/// What the sessions of one broker have in common: a tag given by one can be settled by the next.
struct Shared {
    display: String,
    /// This worker in the tables of workers and leases.
    name: String,
    /// Messages that it claimed and has not settled.
    claimed: Mutex<HashSet<u64>>,
    was_connected: AtomicBool,
}

impl Shared {
    fn claimed(&self) -> MutexGuard<'_, HashSet<u64>> {
        // Nothing panics while it is held.
        self.claimed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SqlBroker {
    /// The broker in the database that `url` names.
    ///
    /// # Errors
    /// When the database is not part of this build, or the URL or an option makes no sense.
    pub fn new(url: &ServerUrl, options: &Options) -> Result<Self, Error> {
        let engine: Arc<dyn Engine> = match dialect(url) {
            #[cfg(feature = "sqlite")]
            "sqlite" => Arc::new(sqlite::Sqlite::new(url, options)?),
            #[cfg(feature = "postgres")]
            "postgresql" | "postgres" => Arc::new(postgres::Postgres::new(url, options)?),
            #[cfg(feature = "mysql")]
            "mysql" | "mariadb" => Arc::new(mysql::Mysql::new(url, options)?),
            dialect => {
                return Err(Error::new(
                    ErrorKind::Configuration,
                    format!("broker_url: the database {dialect:?} is not available as a broker"),
                )
                .with_hint(format!(
                    "this build of celeriac knows {}",
                    AVAILABLE.join(", ")
                )));
            }
        };
        let shared = Shared {
            display: url.to_string(),
            name: format!("celeriac-{}", uuid::Uuid::new_v4().simple()),
            claimed: Mutex::default(),
            was_connected: AtomicBool::new(false),
        };
        Ok(Self {
            shared: Arc::new(shared),
            engine,
            url: url.clone(),
            options: options.clone(),
        })
    }
}

/// The database that a scheme names: `sqla+postgresql`, `sqla+postgresql+psycopg2`, or `postgresql`
/// alone.
fn dialect(url: &ServerUrl) -> &str {
    let mut parts = url.scheme().split('+');
    parts
        .find(|part| !matches!(*part, "sqla" | "sqlalchemy"))
        .unwrap_or_default()
}

/// The file that a URL of SQLite names, as SQLAlchemy counts slashes: three before a relative path,
/// four before an absolute one.
pub fn file(url: &ServerUrl) -> &Path {
    Path::new(url.path().strip_prefix('/').unwrap_or(url.path()))
}

impl fmt::Debug for SqlBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SqlBroker({})", self.shared.display)
    }
}

#[async_trait]
impl Broker for SqlBroker {
    fn display_url(&self) -> String {
        self.shared.display.clone()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            priorities: false,
            recovers: true,
            delays: true,
            tags_outlive_connections: true,
        }
    }

    async fn connect(&self) -> Result<Box<dyn Session>, Error> {
        let store = self.engine.open(&self.shared.name).await?;
        let mut session = SqlSession::new(Arc::clone(&self.shared), store);
        if self.shared.was_connected.swap(true, Ordering::Relaxed) {
            // What is missing is told by the next call of `maintain`.
            session.reconcile().await?;
        }
        Ok(Box::new(session))
    }

    fn publisher(&self) -> Result<Arc<dyn Publisher>, Error> {
        let (shared, engine) = (Arc::clone(&self.shared), Arc::clone(&self.engine));
        Ok(Arc::new(publisher::SqlPublisher::new(shared, engine)))
    }

    async fn open_bus(&self, options: &BusOptions) -> Result<Option<Box<dyn Bus>>, Error> {
        let place = Place::of(&identity::identity(&self.url, &self.options));
        let bus = LocalBus::open(&place, options).await?;
        Ok(Some(Box::new(bus)))
    }

    fn limits(&self) -> Option<SharedLimitStore> {
        Some(Arc::new(limits::SqlLimits {
            engine: Arc::clone(&self.engine),
            display: self.shared.display.clone(),
        }))
    }
}
