//! SQLite: queues with no server.

mod database;
mod lease;
mod schema;
mod store;
mod watch;

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use celeriac_core::broker::{Error, ErrorKind};
use celeriac_net::ServerUrl;

use super::store::{Engine, Store};
use super::tables::Tables;
use crate::open::Options;
use database::Database;

/// A file that holds queues.
pub(super) struct Sqlite {
    path: PathBuf,
    tables: Tables,
    /// The statements that make what is missing of the tables.
    schema: String,
}

impl Sqlite {
    pub(super) fn new(url: &ServerUrl, options: &Options) -> Result<Self, Error> {
        // As SQLAlchemy counts slashes: three before a relative path, four before an absolute one.
        let path = url.path().strip_prefix('/').unwrap_or(url.path());
        if path.is_empty() || path == ":memory:" {
            return Err(Error::new(
                ErrorKind::Configuration,
                "broker_url: a database in memory can't be shared",
            )
            .with_hint("name a file: sqla+sqlite:///queue.db"));
        }
        let names = Tables::new(options);
        Ok(Self {
            path: PathBuf::from(path),
            tables: names.quoted(schema::quote),
            schema: schema::create(&names),
        })
    }
}

#[async_trait]
impl Engine for Sqlite {
    fn identity(&self) -> String {
        format!("sqlite://{}", real_path(&self.path).display())
    }

    async fn open(&self, worker: &str) -> Result<Box<dyn Store>, Error> {
        let database = Database::open(self.path.clone(), self.schema.clone()).await?;
        Ok(Box::new(store::SqliteStore::new(
            database,
            &self.path,
            self.tables.clone(),
            worker,
        )))
    }
}

/// The path without links and from the root, even of a file that is yet to be made.
fn real_path(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    if let Ok(real) = absolute.canonicalize() {
        return real;
    }
    match (
        absolute.parent().map(Path::canonicalize),
        absolute.file_name(),
    ) {
        (Some(Ok(folder)), Some(name)) => folder.join(name),
        _ => absolute,
    }
}
