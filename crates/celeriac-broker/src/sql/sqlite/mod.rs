//! SQLite: queues with no server.

mod database;
mod dead_letters;
mod delays;
mod lease;
mod limits;
mod schema;
mod store;
mod watch;

use std::path::PathBuf;

use async_trait::async_trait;
use celeriac_core::broker::{Error, ErrorKind};
use celeriac_core::limit::LimitSession;
use celeriac_net::ServerUrl;

use super::store::{Engine, Store};
use super::tables::Tables;
use crate::open::Options;
pub use database::Database;

/// A file that holds queues.
pub(super) struct Sqlite {
    path: PathBuf,
    tables: Tables,
    /// The statements that make what is missing of the tables.
    schema: String,
}

impl Sqlite {
    pub(super) fn new(url: &ServerUrl, options: &Options) -> Result<Self, Error> {
        let path = super::file(url);
        if matches!(path.to_str(), Some("" | ":memory:")) {
            return Err(Error::new(
                ErrorKind::Configuration,
                "broker_url: a database in memory can't be shared",
            )
            .with_hint("name a file: sqla+sqlite:///queue.db"));
        }
        let names = Tables::new(options);
        Ok(Self {
            path: path.to_owned(),
            tables: names.quoted(schema::quote),
            schema: schema::create(&names),
        })
    }
}

#[async_trait]
impl Engine for Sqlite {
    async fn open(&self, worker: &str) -> Result<Box<dyn Store>, Error> {
        let database = Database::open(self.path.clone(), self.schema.clone()).await?;
        Ok(Box::new(store::SqliteStore::new(
            database,
            &self.path,
            self.tables.clone(),
            worker,
        )))
    }

    async fn open_limits(&self) -> Result<Box<dyn LimitSession>, Error> {
        Ok(Box::new(
            limits::SqliteLimits::open(self.path.clone()).await?,
        ))
    }
}
