//! PostgreSQL: one statement settles and claims, and the server tells when something was put into
//! a queue.
//!
//! What Python's producers insert is announced by a trigger on the table of messages (see
//! `schema`). Where it may not be made, the queues are asked from time to time instead.

mod address;
mod connection;
mod dead_letters;
mod delays;
mod error;
mod limits;
mod schema;
mod statements;
mod store;
#[cfg(feature = "tls")]
mod tls;
mod types;

use std::time::Duration;

use async_trait::async_trait;
use celeriac_core::broker::Error;
use celeriac_core::limit::LimitSession;
use celeriac_net::ServerUrl;

use super::store::{Engine, Store};
use super::tables::Tables;
use crate::open::Options;
pub use address::Address;
pub use connection::Connection;
use store::PostgresStore;

/// A database of a PostgreSQL server that holds queues.
pub(super) struct Postgres {
    address: Address,
    names: Tables,
    /// The transport option `polling_interval`.
    polling_interval: Option<Duration>,
}

impl Postgres {
    pub(super) fn new(url: &ServerUrl, options: &Options) -> Result<Self, Error> {
        Ok(Self {
            address: Address::new(url, options)?,
            names: Tables::new(options),
            polling_interval: options.seconds("polling_interval"),
        })
    }
}

#[async_trait]
impl Engine for Postgres {
    async fn open(&self, worker: &str) -> Result<Box<dyn Store>, Error> {
        let connection = self.address.connect().await?;
        let notices = schema::prepare(&connection, &self.names).await?;
        let store = PostgresStore::open(
            connection,
            &self.names,
            worker,
            notices,
            self.polling_interval,
        )
        .await?;
        Ok(Box::new(store))
    }

    async fn open_limits(&self) -> Result<Box<dyn LimitSession>, Error> {
        let connection = self.address.connect().await?;
        Ok(Box::new(limits::PostgresLimits::open(connection).await?))
    }
}
