//! The delay store: when messages that nobody sees are to be seen.
//!
//! Their moments are read off the machine's clock, which all workers of the file share.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use celeriac_core::broker::Error;
use jiff::Timestamp;
use rusqlite::{Connection, Transaction, TransactionBehavior, params};

use super::store::{SqliteStore, Worker, payload};
use crate::sql::fates::{Later, marked};
use crate::sql::store::{Came, DelayedRow, Delays, MOVED_AT_ONCE, Moved, SOONEST};
use crate::sql::tables::Tables;

#[async_trait]
impl Delays for SqliteStore {
    async fn move_due(&mut self) -> Result<Moved, Error> {
        self.run(|connection, worker| {
            let now = Timestamp::now().as_microsecond();
            let mut count = 0;
            // Looked up before a lock is taken for it.
            if first(connection, &worker.tables)?.is_some_and(|due| due <= now) {
                count = come(connection, &worker.tables, now)?.seen;
            }
            let next = first(connection, &worker.tables)?;
            let next = next.map(|due| u64::try_from(due - now).unwrap_or_default());
            Ok(Moved {
                count,
                next: next.map(Duration::from_micros),
            })
        })
        .await
    }

    async fn count_delayed(&mut self) -> Result<u64, Error> {
        self.run(|connection, worker| {
            let count = format!("SELECT count(*) FROM {}", worker.tables.delayed);
            connection.query_row(&count, [], |row| {
                row.get::<_, i64>(0).map(|count| count as u64)
            })
        })
        .await
    }

    async fn return_some(&mut self) -> Result<Came, Error> {
        self.run(|connection, worker| come(connection, &worker.tables, i64::MAX))
            .await
    }

    async fn first_delayed(
        &mut self,
        queues: &[i64],
        count: usize,
    ) -> Result<Vec<DelayedRow>, Error> {
        let queues = queues.to_vec();
        self.run(move |connection, worker| {
            let mut rows = Vec::new();
            for queue in queues {
                rows.extend(first_of(connection, &worker.tables, queue, count)?);
            }
            rows.sort_by_key(|row| row.due);
            rows.truncate(count);
            Ok(rows)
        })
        .await
    }
}

/// Puts a message that this worker held into the store.
pub(super) fn keep(
    transaction: &Transaction<'_>,
    worker: &Worker,
    id: i64,
    later: Later,
) -> rusqlite::Result<()> {
    let Tables {
        message, delayed, ..
    } = &worker.tables;
    let held: Vec<Bytes> = transaction
        .prepare_cached(&format!("SELECT payload FROM {message} WHERE id = ?1"))?
        .query_map([id], |row| payload(row, 0))?
        .collect::<Result<_, _>>()?;
    for payload in held {
        if let Some(marked) = marked(&payload, later.marks) {
            transaction
                .prepare_cached(&format!(
                    "UPDATE {message} SET payload = ?2, version = version + 1 WHERE id = ?1"
                ))?
                .execute(params![id, marked])?;
        }
    }
    let soonest = Timestamp::now().as_microsecond() + SOONEST;
    transaction
        .prepare_cached(&format!(
            "INSERT OR REPLACE INTO {delayed} (message_id, queue_id, due)
             SELECT id, queue_id, ?2 FROM {message} WHERE id = ?1"
        ))?
        .execute(params![id, later.due.max(soonest)])?;
    Ok(())
}

/// When the first message comes.
fn first(connection: &Connection, tables: &Tables) -> rusqlite::Result<Option<i64>> {
    connection
        .prepare_cached(&format!("SELECT min(due) FROM {}", tables.delayed))?
        .query_row([], |row| row.get(0))
}

/// Has messages be seen that are due by `moment`, as many as one transaction takes.
fn come(connection: &mut Connection, tables: &Tables, moment: i64) -> rusqlite::Result<Came> {
    let Tables {
        message,
        lease,
        delayed,
        ..
    } = tables;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let due: Vec<i64> = transaction
        .prepare_cached(&format!(
            "SELECT message_id FROM {delayed} WHERE due <= ?1 ORDER BY due LIMIT {MOVED_AT_ONCE}"
        ))?
        .query_map([moment], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    let mut seen = 0;
    {
        // A purge of kombu's deletes messages with what it does not see; whose id another has now,
        // that one is let alone.
        let mut show = transaction.prepare_cached(&format!(
            "UPDATE {message} SET visible = 1, timestamp = NULL, version = version + 1
             WHERE id = ?1 AND visible = 0
               AND NOT EXISTS (SELECT 1 FROM {lease} WHERE message_id = ?1)"
        ))?;
        let mut forget =
            transaction.prepare_cached(&format!("DELETE FROM {delayed} WHERE message_id = ?1"))?;
        for id in &due {
            seen += show.execute([id])? as u64;
            forget.execute([id])?;
        }
    }
    transaction.commit()?;
    Ok(Came {
        gone: due.len() as u64,
        seen,
    })
}

fn first_of(
    connection: &Connection,
    tables: &Tables,
    queue: i64,
    count: usize,
) -> rusqlite::Result<Vec<DelayedRow>> {
    let Tables {
        message, delayed, ..
    } = tables;
    connection
        .prepare_cached(&format!(
            "SELECT d.due, m.payload FROM {delayed} AS d JOIN {message} AS m ON m.id = d.message_id
             WHERE d.queue_id = ?1 ORDER BY d.due LIMIT ?2"
        ))?
        .query_map(params![queue, count as i64], |row| {
            Ok(DelayedRow {
                queue,
                due: row.get(0)?,
                payload: payload(row, 1)?,
            })
        })?
        .collect()
}
