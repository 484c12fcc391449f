//! SQLite in the schema of kombu's SQLAlchemy transport: queues with no server.
//!
//! A plain Python producer enqueues with kombu's own `sqla+sqlite:///`. Unlike kombu, a message
//! that was taken and is not acknowledged stays in the table, leased to its worker, and comes back
//! when that worker dies; an acknowledged one is deleted.
//!
//! Celery's counterpart: `kombu.transport.sqlalchemy`.

mod database;
mod lease;
mod schema;
mod session;
mod watch;

use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use celeriac_core::broker::{Broker, Capabilities, Error, ErrorKind, Session};
use celeriac_net::ServerUrl;

use crate::open::Options;
use database::Database;
use schema::Tables;

/// An SQLite file as a broker.
pub struct SqliteBroker {
    shared: Arc<Shared>,
}

/// What the sessions of one broker have in common.
struct Shared {
    path: PathBuf,
    display: String,
    tables: Tables,
    /// This worker in the tables of workers and leases.
    name: String,
    /// Messages that it claimed and has not settled.
    claimed: Mutex<HashSet<u64>>,
}

impl Shared {
    fn claimed(&self) -> MutexGuard<'_, HashSet<u64>> {
        // Nothing panics while it is held.
        self.claimed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SqliteBroker {
    /// The broker in the file that `url` names.
    ///
    /// # Errors
    /// When the URL names another database than SQLite, or no file.
    pub fn new(url: &ServerUrl, options: &Options) -> Result<Self, Error> {
        let invalid = |message: String| Error::new(ErrorKind::Configuration, message);
        // sqla+sqlite, sqla+sqlite+pysqlite, or sqlite alone.
        let dialect = url
            .scheme()
            .split('+')
            .find(|part| !matches!(*part, "sqla" | "sqlalchemy"));
        if dialect != Some("sqlite") {
            return Err(invalid(format!(
                "broker_url: the database {:?} is not available as a broker",
                dialect.unwrap_or_default()
            ))
            .with_hint("this build of celeriac knows sqla+sqlite:///"));
        }
        // As SQLAlchemy counts slashes: three before a relative path, four before an absolute one.
        let path = url.path().strip_prefix('/').unwrap_or(url.path());
        if path.is_empty() || path == ":memory:" {
            return Err(
                invalid("broker_url: a database in memory can't be shared".to_owned())
                    .with_hint("name a file: sqla+sqlite:///queue.db"),
            );
        }
        let shared = Shared {
            path: PathBuf::from(path),
            display: url.to_string(),
            tables: Tables::new(options),
            name: format!("celeriac-{}", uuid::Uuid::new_v4().simple()),
            claimed: Mutex::default(),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }
}

impl fmt::Debug for SqliteBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SqliteBroker({})", self.shared.path.display())
    }
}

#[async_trait]
impl Broker for SqliteBroker {
    fn display_url(&self) -> String {
        self.shared.display.clone()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            priorities: false,
            recovers: true,
            tags_outlive_connections: true,
        }
    }

    async fn connect(&self) -> Result<Box<dyn Session>, Error> {
        let database =
            Database::open(self.shared.path.clone(), self.shared.tables.create()).await?;
        Ok(Box::new(session::SqliteSession::new(
            Arc::clone(&self.shared),
            database,
        )))
    }
}
