//! SQL databases: SQLite, PostgreSQL and MariaDB or MySQL, with Celery's two tables.
//!
//! One statement writes many rows and leaves those alone that hold a success.
//!
//! Celery's counterpart: `celery.backends.database`.

mod error;
#[cfg(feature = "mysql")]
mod mysql;
#[cfg(feature = "postgres")]
mod postgres;
mod row;
#[cfg(feature = "sqlite")]
mod sqlite;
mod tables;

use std::fmt;

use async_trait::async_trait;
use celeriac_core::backend::{Backend, Chords, Error, Meta, Settings, Stored};
use celeriac_net::ServerUrl;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

#[cfg(any(feature = "postgres", feature = "mysql"))]
use crate::options;
use crate::options::invalid;
use crate::polling::Polling;
use crate::retry::Retry;
use crate::{document, payload};
use row::Row;
use tables::Tables;

/// How many tasks are asked for, or written, in one statement.
const PER_STATEMENT: usize = 500;

/// What one database does in its own words. Each connects when it has to, and makes the tables if
/// they are missing.
#[async_trait]
trait Engine: Send + Sync {
    /// Writes rows, at most [`PER_STATEMENT`], of different tasks; those that hold a success stay.
    async fn store(&self, rows: &[Row]) -> Result<(), Error>;

    /// The rows of tasks, in any order.
    async fn rows(&self, ids: &[String]) -> Result<Vec<Row>, Error>;

    /// Deletes the rows of tasks.
    async fn forget(&self, ids: &[String]) -> Result<(), Error>;

    /// Writes a group, in place of one with the same id.
    async fn save_group(&self, id: &str, members: &[u8], at: Timestamp) -> Result<(), Error>;

    /// A group.
    async fn group(&self, id: &str) -> Result<Option<Vec<u8>>, Error>;

    /// Deletes a group.
    async fn forget_group(&self, id: &str) -> Result<(), Error>;

    /// Deletes all that was done before a moment.
    async fn cleanup(&self, before: Timestamp) -> Result<(), Error>;
}

/// A database that keeps results.
pub struct SqlBackend {
    display: String,
    settings: Settings,
    retry: Retry,
    engine: Box<dyn Engine>,
    polling: Polling,
}

impl SqlBackend {
    /// The backend in the database that `url` names: `db+postgresql://user@host/database`.
    ///
    /// # Errors
    /// When the database is not part of this build, or the URL or an option makes no sense.
    pub fn new(url: &str, settings: Settings) -> Result<Self, Error> {
        let url = ServerUrl::parse(url).map_err(|error| invalid(&error))?;
        let mut parts = url.scheme().split('+');
        let dialect = parts.find(|part| *part != "db").unwrap_or_default();
        let tables = Tables::new(&settings);
        let engine: Box<dyn Engine> = match dialect {
            #[cfg(feature = "sqlite")]
            "sqlite" => Box::new(sqlite::Sqlite::new(&url, tables)?),
            #[cfg(feature = "postgres")]
            "postgresql" | "postgres" => {
                Box::new(postgres::Postgres::new(&url, &settings, tables)?)
            }
            #[cfg(feature = "mysql")]
            "mysql" | "mariadb" => Box::new(mysql::Mysql::new(&url, &settings, tables)?),
            other => {
                return Err(invalid(&format!("the database {other:?} is not available")));
            }
        };
        Ok(Self {
            display: url.to_string(),
            retry: Retry::new(&settings),
            settings,
            engine,
            polling: Polling::default(),
        })
    }
}

/// The options of a connection, as the broker's connections take them: `connect_args` of
/// `database_engine_options`.
#[cfg(any(feature = "postgres", feature = "mysql"))]
fn connection_options(settings: &Settings) -> celeriac_broker::Options {
    let arguments = options::object(settings, "database_engine_options")
        .and_then(|options| options.get("connect_args"));
    let mut transport = serde_json::Map::new();
    if let Some(arguments) = arguments {
        transport.insert("connect_args".to_owned(), arguments.clone());
    }
    celeriac_broker::Options {
        transport,
        ..celeriac_broker::Options::default()
    }
}

impl fmt::Debug for SqlBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SqlBackend({})", self.display)
    }
}

#[async_trait]
impl Backend for SqlBackend {
    fn display_url(&self) -> String {
        self.display.clone()
    }

    fn chords(&self) -> Chords {
        Chords::Unlocked
    }

    async fn expect(&self, _id: &str) -> Result<(), Error> {
        Ok(())
    }

    async fn store(&self, results: &[Stored]) -> Result<(), Error> {
        let rows = row::rows(results, self.settings.extended)?;
        for rows in rows.chunks(PER_STATEMENT) {
            self.retry
                .run(&self.display, || self.engine.store(rows))
                .await?;
        }
        Ok(())
    }

    async fn get(&self, ids: &[String]) -> Result<Vec<Option<Meta>>, Error> {
        let mut found = std::collections::HashMap::new();
        for ids in ids.chunks(PER_STATEMENT) {
            let rows = self
                .retry
                .run(&self.display, || self.engine.rows(ids))
                .await?;
            for row in rows {
                found.insert(row.task_id.clone(), row.read()?);
            }
        }
        Ok(ids.iter().map(|id| found.get(id).cloned()).collect())
    }

    async fn changed(&self, id: &str, known: Option<&Meta>) -> Result<Meta, Error> {
        self.polling.changed(self, id, known).await
    }

    async fn forget(&self, ids: &[String]) -> Result<(), Error> {
        for ids in ids.chunks(PER_STATEMENT) {
            self.retry
                .run(&self.display, || self.engine.forget(ids))
                .await?;
        }
        Ok(())
    }

    async fn save_group(&self, group_id: &str, members: &Value) -> Result<(), Error> {
        let members = document::dumps(members)?;
        let now = Timestamp::now();
        self.retry
            .run(&self.display, || {
                self.engine.save_group(group_id, &members, now)
            })
            .await
    }

    async fn group(&self, group_id: &str) -> Result<Option<Value>, Error> {
        let members = self
            .retry
            .run(&self.display, || self.engine.group(group_id))
            .await?;
        members.as_deref().map(payload::decode).transpose()
    }

    async fn forget_group(&self, group_id: &str) -> Result<(), Error> {
        self.retry
            .run(&self.display, || self.engine.forget_group(group_id))
            .await
    }

    async fn cleanup(&self) -> Result<(), Error> {
        let Some(expires) = self.settings.expires.filter(|expires| !expires.is_zero()) else {
            return Ok(());
        };
        let age = SignedDuration::try_from(expires).unwrap_or(SignedDuration::MAX);
        let Ok(before) = Timestamp::now().checked_sub(age) else {
            return Ok(());
        };
        self.retry
            .run(&self.display, || self.engine.cleanup(before))
            .await
    }
}
