//! Limits in MariaDB and MySQL, by the server's clock.

use async_trait::async_trait;
use celeriac_core::broker::Error;
use celeriac_core::limit::{Answer, LimitSession, Order};

use super::connection::Connection;
use crate::sql::limits::{decide, needed};

/// The row without a name is what one worker at a time locks.
const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS celeriac_limit (
        name VARCHAR(255) COLLATE utf8mb4_bin NOT NULL PRIMARY KEY,
        record LONGTEXT NOT NULL,
        expires BIGINT NOT NULL,
        KEY expires (expires)
    ) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;
    INSERT IGNORE INTO celeriac_limit (name, record, expires) VALUES ('', '{}', ~0 >> 1)
";

pub(super) struct MysqlLimits(Connection);

impl MysqlLimits {
    pub(super) async fn open(mut connection: Connection) -> Result<Self, Error> {
        let is_locked = "SELECT 1 FROM celeriac_limit WHERE name = ''";
        let found: Result<Option<u8>, Error> = connection.first(is_locked, ()).await;
        if !matches!(found, Ok(Some(_))) {
            connection.execute(SCHEMA.to_owned()).await?;
        }
        Ok(Self(connection))
    }
}

#[async_trait]
impl LimitSession for MysqlLimits {
    /// An error in between ends the transaction with the session, which is of no use then.
    async fn exchange(&mut self, orders: &[Order]) -> Result<Vec<Answer>, Error> {
        let connection = &mut self.0;
        let begin = "START TRANSACTION; SELECT 1 FROM celeriac_limit WHERE name = '' FOR UPDATE";
        connection.execute(begin.to_owned()).await?;
        let names = needed(orders);
        let mut known = Vec::new();
        for name in &names {
            let read = "SELECT record FROM celeriac_limit WHERE name = ?";
            let record: Option<String> = connection.first(read, (name,)).await?;
            known.extend(record.map(|record| (name.clone(), record)));
        }
        let clock = "SELECT TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))";
        let now: Option<i64> = connection.first(clock, ()).await?;
        let now = now.unwrap_or_default();
        let (answers, rows) = decide(orders, known, now);
        for row in rows {
            let write = "INSERT INTO celeriac_limit (name, record, expires) VALUES (?, ?, ?)
                         ON DUPLICATE KEY UPDATE
                         record = VALUES(record), expires = VALUES(expires)";
            let written = (row.name, row.record, row.expires);
            connection.change(write, written).await?;
        }
        let forget = "DELETE FROM celeriac_limit WHERE expires < ?";
        connection.change(forget, (now,)).await?;
        connection.execute("COMMIT".to_owned()).await?;
        Ok(answers)
    }
}
