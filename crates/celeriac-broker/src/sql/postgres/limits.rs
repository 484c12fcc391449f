//! Limits in PostgreSQL, by the server's clock.

use async_trait::async_trait;
use celeriac_core::broker::Error;
use celeriac_core::limit::{Answer, LimitSession, Order};

use tokio_postgres::types::ToSql;

use super::connection::Connection;
use super::error::broker_error;
use crate::sql::limits::{decide, needed};

/// Keeps two workers from making the table at once: a number that nobody else uses.
const MAKING: i64 = 0x6c_696d_6974_7321;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS celeriac_limit (
        name TEXT NOT NULL PRIMARY KEY,
        record TEXT NOT NULL,
        expires BIGINT NOT NULL
    );
    CREATE INDEX IF NOT EXISTS ix_celeriac_limit_expires ON celeriac_limit (expires);
";

pub(super) struct PostgresLimits(Connection);

impl PostgresLimits {
    pub(super) async fn open(connection: Connection) -> Result<Self, Error> {
        let found = connection.query_one("SELECT to_regclass('celeriac_limit') IS NOT NULL", &[]);
        let is_there = connection.answer(found).await?.try_get(0);
        if !is_there.map_err(|error| broker_error(&error))? {
            let make = format!("BEGIN; SELECT pg_advisory_xact_lock({MAKING}); {SCHEMA} COMMIT;");
            connection.answer(connection.batch_execute(&make)).await?;
        }
        let patience = "SET idle_in_transaction_session_timeout = '5 s'";
        connection
            .answer(connection.batch_execute(patience))
            .await?;
        Ok(Self(connection))
    }
}

#[async_trait]
impl LimitSession for PostgresLimits {
    /// An error in between ends the transaction with the session, which is of no use then.
    async fn exchange(&mut self, orders: &[Order]) -> Result<Vec<Answer>, Error> {
        let connection = &self.0;
        // What a crash of the server forgets is forgotten for the better: nothing waits for a disk.
        let begin = "BEGIN; SET LOCAL synchronous_commit = off;
                     LOCK TABLE celeriac_limit IN EXCLUSIVE MODE";
        connection.answer(connection.batch_execute(begin)).await?;
        let names = needed(orders);
        let read = "SELECT name, record FROM celeriac_limit WHERE name = ANY($1)";
        let mut known = Vec::new();
        for row in connection.answer(connection.query(read, &[&names])).await? {
            let get = |at| row.try_get(at).map_err(|error| broker_error(&error));
            known.push((get(0)?, get(1)?));
        }
        let clock = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
        let clock = connection.answer(connection.query_one(clock, &[])).await?;
        let now: i64 = clock.try_get(0).map_err(|error| broker_error(&error))?;
        let (answers, rows) = decide(orders, known, now);
        let names: Vec<&str> = rows.iter().map(|row| &*row.name).collect();
        let records: Vec<&str> = rows.iter().map(|row| &*row.record).collect();
        let ends: Vec<i64> = rows.iter().map(|row| row.expires).collect();
        let write = "INSERT INTO celeriac_limit (name, record, expires)
                     SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[])
                     ON CONFLICT (name) DO UPDATE
                     SET record = excluded.record, expires = excluded.expires";
        let row: [&(dyn ToSql + Sync); 3] = [&names, &records, &ends];
        connection.answer(connection.execute(write, &row)).await?;
        let forget = "DELETE FROM celeriac_limit WHERE expires < $1";
        connection
            .answer(connection.execute(forget, &[&now]))
            .await?;
        connection
            .answer(connection.batch_execute("COMMIT"))
            .await?;
        Ok(answers)
    }
}
