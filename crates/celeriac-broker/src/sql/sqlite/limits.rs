//! Limits in SQLite, by the machine's clock, which all workers on the file share.

use std::path::PathBuf;

use async_trait::async_trait;
use celeriac_core::broker::Error;
use celeriac_core::limit::{Answer, LimitSession, Order};
use jiff::Timestamp;
use rusqlite::{OptionalExtension as _, TransactionBehavior};

use super::database::Database;
use crate::sql::limits::{decide, needed};

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS celeriac_limit (
        name TEXT NOT NULL PRIMARY KEY,
        record TEXT NOT NULL,
        expires INTEGER NOT NULL
    );
    CREATE INDEX IF NOT EXISTS ix_celeriac_limit_expires ON celeriac_limit (expires);
";

pub(super) struct SqliteLimits(Database);

impl SqliteLimits {
    pub(super) async fn open(path: PathBuf) -> Result<Self, Error> {
        Ok(Self(Database::open(path, SCHEMA.to_owned()).await?))
    }
}

#[async_trait]
impl LimitSession for SqliteLimits {
    async fn exchange(&mut self, orders: &[Order]) -> Result<Vec<Answer>, Error> {
        let orders = orders.to_vec();
        let work = move |connection: &mut rusqlite::Connection| {
            let transaction =
                connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let now = Timestamp::now().as_microsecond();
            let mut known = Vec::new();
            {
                let mut read = transaction
                    .prepare_cached("SELECT record FROM celeriac_limit WHERE name = ?1")?;
                for name in needed(&orders) {
                    let record = read.query_row([&name], |row| row.get(0)).optional()?;
                    known.extend(record.map(|record| (name, record)));
                }
            }
            let (answers, rows) = decide(&orders, known, now);
            {
                let mut write = transaction.prepare_cached(
                    "INSERT INTO celeriac_limit (name, record, expires) VALUES (?1, ?2, ?3)
                     ON CONFLICT (name) DO UPDATE
                     SET record = excluded.record, expires = excluded.expires",
                )?;
                for row in rows {
                    write.execute((row.name, row.record, row.expires))?;
                }
                transaction
                    .prepare_cached("DELETE FROM celeriac_limit WHERE expires < ?1")?
                    .execute([now])?;
            }
            transaction.commit()?;
            Ok(answers)
        };
        self.0.run(work).await
    }
}
