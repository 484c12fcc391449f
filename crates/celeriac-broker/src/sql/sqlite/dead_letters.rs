//! Dead letters in a table.

use async_trait::async_trait;
use celeriac_core::broker::Error;
use rusqlite::{Connection, OptionalExtension as _, TransactionBehavior, params};

use super::store::{SqliteStore, insert, queue_id};
use crate::sql::store::{DeadLetters, FORGOTTEN_AT_ONCE, Limits, Record, Replay};
use crate::sql::tables::Tables;

#[async_trait]
impl DeadLetters for SqliteStore {
    async fn bury(&mut self, record: &Record, limits: Limits) -> Result<(), Error> {
        let record = record.clone();
        self.run_safely(move |connection, worker| bury(connection, &worker.tables, &record, limits))
            .await
    }

    async fn records(&mut self) -> Result<Vec<String>, Error> {
        self.run(|connection, worker| {
            connection
                .prepare(&format!(
                    "SELECT record FROM {} ORDER BY died_at DESC, id",
                    worker.tables.dead
                ))?
                .query_map([], |row| row.get(0))?
                .collect()
        })
        .await
    }

    async fn records_of(&mut self, keys: &[String]) -> Result<Vec<String>, Error> {
        let keys = keys.to_vec();
        self.run(move |connection, worker| {
            let mut find = connection.prepare_cached(&format!(
                "SELECT record FROM {} WHERE id = ?1",
                worker.tables.dead
            ))?;
            let mut records = Vec::new();
            for key in &keys {
                records.extend(find.query_row([key], |row| row.get(0)).optional()?);
            }
            Ok(records)
        })
        .await
    }

    async fn replay(&mut self, replays: &[Replay]) -> Result<u64, Error> {
        let replays = replays.to_vec();
        self.run_safely(move |connection, worker| {
            let tables = &worker.tables;
            let transaction =
                connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let mut count = 0;
            for replay in &replays {
                if forget(&transaction, tables, &replay.key)? {
                    let queue = queue_id(&transaction, tables, &replay.queue)?;
                    match std::str::from_utf8(&replay.payload) {
                        Ok(text) => insert(&transaction, tables, queue, &text)?,
                        Err(_) => insert(&transaction, tables, queue, &&replay.payload[..])?,
                    }
                    count += 1;
                }
            }
            transaction.commit()?;
            Ok(count)
        })
        .await
    }

    async fn forget(&mut self, keys: &[String]) -> Result<u64, Error> {
        let keys = keys.to_vec();
        self.run(move |connection, worker| {
            let transaction =
                connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let mut count = 0;
            for key in &keys {
                count += u64::from(forget(&transaction, &worker.tables, key)?);
            }
            transaction.commit()?;
            Ok(count)
        })
        .await
    }
}

fn bury(
    connection: &mut Connection,
    tables: &Tables,
    record: &Record,
    limits: Limits,
) -> rusqlite::Result<()> {
    let dead = &tables.dead;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute(
        &format!("INSERT OR REPLACE INTO {dead} (id, died_at, record) VALUES (?1, ?2, ?3)"),
        params![record.key, record.died_at, record.text],
    )?;
    transaction.execute(
        &format!(
            "DELETE FROM {dead} WHERE id IN (
                 SELECT id FROM {dead} WHERE died_at < ?1 LIMIT {FORGOTTEN_AT_ONCE})"
        ),
        [limits.since],
    )?;
    transaction.execute(
        &format!(
            "DELETE FROM {dead} WHERE id IN (
                 SELECT id FROM {dead} ORDER BY died_at DESC, id
                 LIMIT {FORGOTTEN_AT_ONCE} OFFSET ?1)"
        ),
        [i64::try_from(limits.number).unwrap_or(i64::MAX)],
    )?;
    transaction.commit()
}

/// Forgets a record, and tells whether there was one.
fn forget(connection: &Connection, tables: &Tables, key: &str) -> rusqlite::Result<bool> {
    let statement = format!("DELETE FROM {} WHERE id = ?1", tables.dead);
    let gone = connection.prepare_cached(&statement)?.execute([key])?;
    Ok(gone > 0)
}
