//! MariaDB and MySQL: one transaction settles and claims.
//!
//! These servers tell nobody what was inserted: the queues are asked, often while there is work
//! and up to once a second (`polling_interval`) while there is none.

mod address;
mod connection;
mod dead_letters;
mod delays;
mod error;
mod lease;
mod limits;
mod schema;
mod store;
mod version;

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
use store::MysqlStore;

/// A database of a MariaDB or MySQL server that holds queues.
pub(super) struct Mysql {
    address: Address,
    names: Tables,
    /// The transport option `polling_interval`.
    polling_interval: Option<Duration>,
}

impl Mysql {
    pub(super) fn new(url: &ServerUrl, options: &Options) -> Result<Self, Error> {
        Ok(Self {
            address: Address::new(url, options)?,
            names: Tables::new(options),
            polling_interval: options.seconds("polling_interval"),
        })
    }
}

#[async_trait]
impl Engine for Mysql {
    async fn open(&self, worker: &str) -> Result<Box<dyn Store>, Error> {
        let mut connection = self.address.connect().await?;
        let found = schema::prepare(&mut connection, &self.names).await?;
        let store = MysqlStore::new(
            connection,
            &self.names,
            found,
            worker,
            self.polling_interval,
        );
        Ok(Box::new(store))
    }

    async fn open_limits(&self) -> Result<Box<dyn LimitSession>, Error> {
        let connection = self.address.connect().await?;
        Ok(Box::new(limits::MysqlLimits::open(connection).await?))
    }
}
