//! One connection to SQLite: claiming, settling, waiting.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use celeriac_core::broker::{Error, Settlement};
use rusqlite::types::ValueRef;
use rusqlite::{
    Connection, OptionalExtension as _, Row, ToSql, Transaction, TransactionBehavior, params,
};

use super::database::Database;
use super::delays;
use super::lease;
use super::watch::Watch;
use crate::sql::fates::Deed;
use crate::sql::store::{self, Beat, Claims, Revoked, Sent, Share, Store};
use crate::sql::tables::Tables;

pub(super) struct SqliteStore {
    database: Database,
    watch: Watch,
    worker: Arc<Worker>,
    /// What the database answered last to "has anybody else written?".
    data_version: Option<i64>,
}

/// What the statements of one worker have in common.
pub(super) struct Worker {
    /// The names of the tables, quoted.
    pub(super) tables: Tables,
    /// This worker in the tables of workers and leases.
    pub(super) name: String,
    /// Which start of the machine this is.
    pub(super) boot: String,
}

impl SqliteStore {
    pub(super) fn new(database: Database, path: &Path, tables: Tables, name: &str) -> Self {
        Self {
            database,
            watch: Watch::new(path),
            worker: Arc::new(Worker {
                tables,
                name: name.to_owned(),
                boot: lease::boot_id(),
            }),
            data_version: None,
        }
    }

    /// Runs `work` on the database's thread.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection, &Worker) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let worker = Arc::clone(&self.worker);
        self.database
            .run(move |connection| work(connection, &worker))
            .await
    }

    /// As [`SqliteStore::run`]; what is written is safe when this returns: the disk has it.
    pub(super) async fn run_safely<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection, &Worker) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        self.run(move |connection, worker| {
            connection.pragma_update(None, "synchronous", "full")?;
            let done = work(connection, worker);
            connection.pragma_update(None, "synchronous", "normal")?;
            done
        })
        .await
    }

    async fn data_version(&self) -> Result<i64, Error> {
        self.run(|connection, _| {
            connection
                .prepare_cached("PRAGMA data_version")?
                .query_row([], |row| row.get(0))
        })
        .await
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn queue_id(&mut self, name: &str) -> Result<i64, Error> {
        let name = name.to_owned();
        self.run(move |connection, worker| queue_id(connection, &worker.tables, &name))
            .await
    }

    async fn exchange(
        &mut self,
        settlements: &[Settlement],
        claims: &Claims,
    ) -> Result<Vec<store::Row>, Error> {
        let settlements = settlements.to_vec();
        let (shares, limit) = (claims.shares.clone(), claims.limit);
        self.run(move |connection, worker| {
            let claims = limit > 0 && any_waiting(connection, &worker.tables, &shares)?;
            if settlements.is_empty() && !claims {
                return Ok(Vec::new());
            }
            let transaction =
                connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            for settlement in settlements {
                settle(&transaction, worker, settlement)?;
            }
            let mut rows = Vec::new();
            if claims {
                lease::appear(&transaction, worker)?;
                rows = claim(&transaction, worker, &shares, limit)?;
            }
            transaction.commit()?;
            Ok(rows)
        })
        .await
    }

    async fn wait(&mut self) -> Result<(), Error> {
        let version = self.data_version().await?;
        if self.data_version.replace(version) == Some(version) {
            self.watch.changed().await;
        }
        Ok(())
    }

    async fn beat(&mut self) -> Result<Beat, Error> {
        self.run(|connection, worker| {
            Ok(Beat {
                restored: lease::beat(connection, worker)?,
                held: lease::count(connection, worker)?,
            })
        })
        .await
    }

    async fn held(&mut self) -> Result<HashSet<u64>, Error> {
        self.run(|connection, worker| lease::held(connection, worker))
            .await
    }

    async fn purge(&mut self, queue: &str) -> Result<u64, Error> {
        let name = queue.to_owned();
        self.run(move |connection, worker| {
            let id = queue_id(connection, &worker.tables, &name)?;
            let message = &worker.tables.message;
            let purged = connection.execute(
                &format!("DELETE FROM {message} WHERE queue_id = ?1 AND visible != 0"),
                [id],
            )?;
            Ok(purged as u64)
        })
        .await
    }

    async fn size(&mut self, queue: &str) -> Result<u64, Error> {
        let name = queue.to_owned();
        self.run(move |connection, worker| {
            let Tables { queue, message, .. } = &worker.tables;
            connection.query_row(
                &format!(
                    "SELECT count(*) FROM {message} m JOIN {queue} q ON q.id = m.queue_id
                     WHERE q.name = ?1 AND m.visible != 0"
                ),
                [name],
                |row| row.get::<_, i64>(0).map(|count| count as u64),
            )
        })
        .await
    }

    async fn publish(&mut self, messages: Vec<Sent>) -> Result<(), Error> {
        self.run_safely(move |connection, worker| {
            let transaction =
                connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            for Sent { queue, payload } in messages {
                let id = queue_id(&transaction, &worker.tables, &queue)?;
                insert(&transaction, &worker.tables, id, &payload)?;
            }
            transaction.commit()
        })
        .await
    }

    async fn revoked(&mut self, since: f64) -> Result<Vec<Revoked>, Error> {
        self.run(move |connection, _| {
            let is_made = connection
                .prepare("SELECT 1 FROM sqlite_master WHERE name = 'celeriac_revoked'")?
                .exists([])?;
            if !is_made {
                return Ok(Vec::new());
            }
            connection
                .prepare(
                    "SELECT kind, member FROM celeriac_revoked
                     WHERE revoked_at >= ?1 ORDER BY revoked_at",
                )?
                .query_map([since], |row| {
                    Ok(Revoked {
                        kind: payload(row, 0)?,
                        member: payload(row, 1)?,
                    })
                })?
                .collect()
        })
        .await
    }

    async fn leave(&mut self) -> Result<(), Error> {
        self.run(|connection, worker| lease::leave(connection, worker))
            .await
    }
}

/// The queue's id; makes the queue if it is missing.
pub(super) fn queue_id(
    connection: &Connection,
    tables: &Tables,
    name: &str,
) -> rusqlite::Result<i64> {
    let queue = &tables.queue;
    let select = format!("SELECT id FROM {queue} WHERE name = ?1");
    let find = |connection: &Connection| {
        connection
            .prepare_cached(&select)?
            .query_row([name], |row| row.get(0))
            .optional()
    };
    if let Some(id) = find(connection)? {
        return Ok(id);
    }
    connection.execute(
        &format!("INSERT OR IGNORE INTO {queue} (name) VALUES (?1)"),
        [name],
    )?;
    find(connection)?.ok_or(rusqlite::Error::QueryReturnedNoRows)
}

/// Puts a payload behind those that wait in a queue.
pub(super) fn insert(
    connection: &Connection,
    tables: &Tables,
    queue: i64,
    payload: &dyn ToSql,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached(&format!(
            "INSERT INTO {} (visible, timestamp, payload, version, queue_id)
             VALUES (1, NULL, ?1, 1, ?2)",
            tables.message
        ))?
        .execute(params![payload, queue])?;
    Ok(())
}

/// Whether there is anything to claim: looked up before a lock is taken for it.
fn any_waiting(
    connection: &Connection,
    tables: &Tables,
    shares: &[Share],
) -> rusqlite::Result<bool> {
    let mut any = connection.prepare_cached(&format!(
        "SELECT 1 FROM {} WHERE queue_id = ?1 AND visible != 0 LIMIT 1",
        tables.message
    ))?;
    for share in shares {
        if any.exists([share.queue])? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Takes messages from each queue in turn.
fn claim(
    transaction: &Transaction<'_>,
    worker: &Worker,
    shares: &[Share],
    limit: usize,
) -> rusqlite::Result<Vec<store::Row>> {
    let Tables { message, lease, .. } = &worker.tables;
    let mut take = transaction.prepare_cached(&format!(
        "UPDATE {message}
         SET visible = 0, timestamp = strftime('%Y-%m-%d %H:%M:%f000', 'now', 'localtime'),
             version = version + 1
         WHERE id IN (SELECT id FROM {message} WHERE queue_id = ?1 AND visible != 0
                      ORDER BY timestamp, id LIMIT ?2)
         RETURNING id, payload"
    ))?;
    let mut hold = transaction.prepare_cached(&format!(
        "INSERT OR REPLACE INTO {lease} (message_id, worker) VALUES (?1, ?2)"
    ))?;
    let mut rows: Vec<store::Row> = Vec::new();
    for &Share { queue, count } in shares {
        let count = count.min(limit - rows.len());
        if count == 0 {
            break;
        }
        let mut taken = take.query(params![queue, count as i64])?;
        while let Some(row) = taken.next()? {
            rows.push(store::Row {
                id: row.get(0)?,
                queue,
                payload: payload(row, 1)?,
            });
        }
    }
    for row in &rows {
        hold.execute(params![row.id, worker.name])?;
    }
    // RETURNING promises no order.
    rows.sort_unstable_by_key(|row| row.id);
    Ok(rows)
}

/// The bytes of a column that anybody may have written anything into.
pub(super) fn payload(row: &Row<'_>, column: usize) -> rusqlite::Result<Bytes> {
    Ok(match row.get_ref(column)? {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Bytes::copy_from_slice(bytes),
        ValueRef::Null => Bytes::new(),
        ValueRef::Integer(number) => number.to_string().into(),
        ValueRef::Real(number) => number.to_string().into(),
    })
}

/// Settles one message, if this worker still holds it.
fn settle(
    transaction: &Transaction<'_>,
    worker: &Worker,
    settlement: Settlement,
) -> rusqlite::Result<()> {
    let Tables { message, lease, .. } = &worker.tables;
    let id = settlement.tag.0 as i64;
    let held = transaction
        .prepare_cached(&format!(
            "DELETE FROM {lease} WHERE message_id = ?1 AND worker = ?2"
        ))?
        .execute(params![id, worker.name])?;
    if held == 0 {
        return Ok(());
    }
    let delete = format!("DELETE FROM {message} WHERE id = ?1");
    match Deed::of(settlement.fate) {
        Deed::Remove => {
            transaction.prepare_cached(&delete)?.execute([id])?;
        }
        Deed::Release => {
            transaction
                .prepare_cached(&format!(
                    "UPDATE {message} SET visible = 1, timestamp = NULL, version = version + 1
                     WHERE id = ?1"
                ))?
                .execute([id])?;
        }
        Deed::PutLast(change) => {
            // A new row, as kombu makes: it stands behind those that wait.
            let row: Option<(Bytes, i64)> = transaction
                .prepare_cached(&format!(
                    "SELECT payload, queue_id FROM {message} WHERE id = ?1"
                ))?
                .query_row([id], |row| Ok((payload(row, 0)?, row.get(1)?)))
                .optional()?;
            if let Some((payload, queue)) = row {
                // What is no text is no message either, and is not requeued by anybody.
                let text = String::from_utf8_lossy(&payload);
                insert(transaction, &worker.tables, queue, &change.apply(&text))?;
                transaction.prepare_cached(&delete)?.execute([id])?;
            }
        }
        Deed::Keep(later) => delays::keep(transaction, worker, id, later)?,
    }
    Ok(())
}
