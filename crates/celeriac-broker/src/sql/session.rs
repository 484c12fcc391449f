//! One connection: claiming, settling, waiting.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use celeriac_core::broker::{
    Delivery, DeliveryTag, Error, Fate, Maintained, Session, Settlement, Unreadable, Want,
};
use celeriac_core::queue::Queue;
use celeriac_protocol::{Message, envelope};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, TransactionBehavior, params};

use super::Shared;
use super::database::Database;
use super::lease;
use super::schema::Tables;
use super::watch::Watch;

pub(super) struct SqliteSession {
    shared: Arc<Shared>,
    database: Database,
    watch: Watch,
    boot: String,
    /// In the order in which they are asked next.
    queues: Vec<Subscribed>,
    /// What the database answered last to "has anybody else written?".
    data_version: Option<i64>,
}

#[derive(Clone)]
struct Subscribed {
    id: i64,
    name: Arc<str>,
}

impl SqliteSession {
    pub(super) fn new(shared: Arc<Shared>, database: Database) -> Self {
        Self {
            watch: Watch::new(&shared.path),
            boot: lease::boot_id(),
            shared,
            database,
            queues: Vec::new(),
            data_version: None,
        }
    }

    async fn data_version(&self) -> Result<i64, Error> {
        self.database
            .run(|connection| {
                connection
                    .prepare_cached("PRAGMA data_version")?
                    .query_row([], |row| row.get(0))
            })
            .await
    }
}

#[async_trait]
impl Session for SqliteSession {
    async fn declare(&mut self, queue: &Queue) -> Result<(), Error> {
        let (shared, name) = (Arc::clone(&self.shared), queue.name.clone());
        self.database
            .run(move |connection| queue_id(connection, &shared.tables, &name))
            .await?;
        Ok(())
    }

    async fn subscribe(&mut self, queue: &Queue) -> Result<(), Error> {
        let name: Arc<str> = queue.name.as_str().into();
        if self.queues.iter().any(|subscribed| subscribed.name == name) {
            return Ok(());
        }
        let (shared, asked) = (Arc::clone(&self.shared), Arc::clone(&name));
        let id = self
            .database
            .run(move |connection| queue_id(connection, &shared.tables, &asked))
            .await?;
        self.queues.push(Subscribed { id, name });
        Ok(())
    }

    async fn cancel(&mut self, queue: &str) -> Result<(), Error> {
        self.queues.retain(|subscribed| &*subscribed.name != queue);
        Ok(())
    }

    async fn exchange(
        &mut self,
        settlements: &[Settlement],
        want: Want,
    ) -> Result<Vec<Delivery>, Error> {
        let shared = Arc::clone(&self.shared);
        let settled: Vec<u64> = settlements
            .iter()
            .map(|settlement| settlement.tag.0)
            .collect();
        let settlements = settlements.to_vec();
        let mut queues = self.queues.clone();
        let boot = self.boot.clone();
        let (queues, deliveries) = self
            .database
            .run(move |connection| {
                let claims = !want.is_none() && any_waiting(connection, &shared.tables, &queues)?;
                if settlements.is_empty() && !claims {
                    return Ok((queues, Vec::new()));
                }
                let transaction =
                    connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
                for settlement in settlements {
                    settle(&transaction, &shared, settlement)?;
                }
                let mut deliveries = Vec::new();
                if claims {
                    lease::appear(&transaction, &shared.name, &boot)?;
                    claim(&transaction, &shared, &mut queues, want, &mut deliveries)?;
                }
                transaction.commit()?;
                Ok((queues, deliveries))
            })
            .await?;
        self.queues = queues;
        let mut claimed = self.shared.claimed();
        for tag in settled {
            claimed.remove(&tag);
        }
        claimed.extend(deliveries.iter().map(|delivery| delivery.tag.0));
        drop(claimed);
        Ok(deliveries)
    }

    async fn wait(&mut self) -> Result<(), Error> {
        let version = self.data_version().await?;
        if self.data_version.replace(version) == Some(version) {
            self.watch.changed().await;
        }
        Ok(())
    }

    async fn maintain(&mut self) -> Result<Maintained, Error> {
        let (shared, boot) = (Arc::clone(&self.shared), self.boot.clone());
        let claimed: Vec<u64> = self.shared.claimed().iter().copied().collect();
        let (restored, lost) = self
            .database
            .run(move |connection| {
                let restored = lease::beat(connection, &shared.tables, &shared.name, &boot)?;
                let lost = lease::lost(connection, &shared.name, claimed)?;
                Ok((restored, lost))
            })
            .await?;
        let lost: Vec<DeliveryTag> = {
            let mut claimed = self.shared.claimed();
            lost.into_iter()
                .filter(|id| claimed.remove(id))
                .map(DeliveryTag)
                .collect()
        };
        if restored > 0 {
            tracing::warn!(
                target: "celeriac.broker",
                "Restored {restored} messages of a worker that is gone."
            );
        }
        Ok(Maintained {
            restored,
            next: lease::BEAT,
            lost,
        })
    }

    async fn purge(&mut self, queue: &str) -> Result<u64, Error> {
        let (shared, name) = (Arc::clone(&self.shared), queue.to_owned());
        self.database
            .run(move |connection| {
                let id = queue_id(connection, &shared.tables, &name)?;
                let message = &shared.tables.message;
                let purged = connection.execute(
                    &format!("DELETE FROM {message} WHERE queue_id = ?1 AND visible != 0"),
                    [id],
                )?;
                Ok(purged as u64)
            })
            .await
    }

    async fn size(&mut self, queue: &str) -> Result<u64, Error> {
        let (shared, name) = (Arc::clone(&self.shared), queue.to_owned());
        self.database
            .run(move |connection| {
                let Tables { queue, message } = &shared.tables;
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

    async fn publish(&mut self, queue: &str, message: &Message) -> Result<(), Error> {
        let payload = envelope::encode(message, &uuid::Uuid::new_v4().to_string());
        let (shared, name) = (Arc::clone(&self.shared), queue.to_owned());
        self.database
            .run(move |connection| {
                // It is safe when this returns: the disk has it.
                connection.pragma_update(None, "synchronous", "full")?;
                let published = queue_id(connection, &shared.tables, &name)
                    .and_then(|id| insert(connection, &shared.tables, id, &payload));
                connection.pragma_update(None, "synchronous", "normal")?;
                published
            })
            .await
    }

    async fn close(self: Box<Self>) -> Result<(), Error> {
        let shared = Arc::clone(&self.shared);
        self.database
            .run(move |connection| lease::leave(connection, &shared.name))
            .await
    }
}

/// The queue's id; makes the queue if it is missing.
fn queue_id(connection: &Connection, tables: &Tables, name: &str) -> rusqlite::Result<i64> {
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

fn insert(
    connection: &Connection,
    tables: &Tables,
    queue: i64,
    payload: &str,
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
    queues: &[Subscribed],
) -> rusqlite::Result<bool> {
    let mut any = connection.prepare_cached(&format!(
        "SELECT 1 FROM {} WHERE queue_id = ?1 AND visible != 0 LIMIT 1",
        tables.message
    ))?;
    for queue in queues {
        if any.exists([queue.id])? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Takes messages, one queue after the other in turns.
fn claim(
    transaction: &Transaction<'_>,
    shared: &Shared,
    queues: &mut [Subscribed],
    want: Want,
    deliveries: &mut Vec<Delivery>,
) -> rusqlite::Result<()> {
    let message = &shared.tables.message;
    let mut take = transaction.prepare_cached(&format!(
        "UPDATE {message}
         SET visible = 0, timestamp = strftime('%Y-%m-%d %H:%M:%f000', 'now', 'localtime'),
             version = version + 1
         WHERE id IN (SELECT id FROM {message} WHERE queue_id = ?1 AND visible != 0
                      ORDER BY timestamp, id LIMIT ?2)
         RETURNING id, payload"
    ))?;
    let mut lease = transaction.prepare_cached(
        "INSERT OR REPLACE INTO celeriac_lease (message_id, worker) VALUES (?1, ?2)",
    )?;
    let present = jiff::Timestamp::now();
    let mut runnable = want.runnable;
    loop {
        let mut took = false;
        for at in 0..queues.len() {
            let count = runnable.min(want.total - deliveries.len());
            if count == 0 {
                return Ok(());
            }
            let queue = queues[at].clone();
            // With one queue there is nobody to take turns with.
            let count = if queues.len() == 1 { count } else { 1 };
            let mut rows: Vec<(i64, Bytes)> = take
                .query_map(params![queue.id, count as i64], |row| {
                    Ok((row.get(0)?, payload(row, 1)?))
                })?
                .collect::<Result<_, _>>()?;
            // RETURNING promises no order.
            rows.sort_unstable_by_key(|(id, _)| *id);
            for (id, payload) in rows {
                took = true;
                lease.execute(params![id, shared.name])?;
                let delivery = delivery(id, &queue.name, payload);
                if !is_held(&delivery, present) {
                    runnable -= 1;
                }
                deliveries.push(delivery);
            }
        }
        if !took {
            return Ok(());
        }
        // The next call begins with another queue.
        queues.rotate_left(1);
    }
}

/// Whether a message waits for a moment in the future.
fn is_held(delivery: &Delivery, present: jiff::Timestamp) -> bool {
    let Ok(message) = &delivery.message else {
        return false;
    };
    let headers = celeriac_protocol::json::Object::parse(&message.headers);
    headers
        .ok()
        .and_then(|headers| celeriac_protocol::Head::from_headers(&headers)?.ok())
        .is_some_and(|head| head.eta.is_some_and(|eta| eta > present))
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

fn delivery(id: i64, queue: &Arc<str>, raw: Bytes) -> Delivery {
    let message = envelope::decode(&raw).map_err(|error| Unreadable {
        reason: error.to_string(),
        raw,
    });
    Delivery {
        tag: DeliveryTag(id as u64),
        queue: Arc::clone(queue),
        message,
    }
}

/// Settles one message, if this worker still holds it.
fn settle(
    transaction: &Transaction<'_>,
    shared: &Shared,
    settlement: Settlement,
) -> rusqlite::Result<()> {
    let message = &shared.tables.message;
    let id = settlement.tag.0 as i64;
    let held = transaction
        .prepare_cached("DELETE FROM celeriac_lease WHERE message_id = ?1 AND worker = ?2")?
        .execute(params![id, shared.name])?;
    if held == 0 {
        return Ok(());
    }
    let delete = format!("DELETE FROM {message} WHERE id = ?1");
    match settlement.fate {
        Fate::Ack | Fate::Reject => {
            transaction.prepare_cached(&delete)?.execute([id])?;
        }
        Fate::Release => {
            transaction
                .prepare_cached(&format!(
                    "UPDATE {message} SET visible = 1, timestamp = NULL, version = version + 1
                     WHERE id = ?1"
                ))?
                .execute([id])?;
        }
        Fate::Requeue => {
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
                let marked = envelope::mark_redelivered(&text);
                insert(transaction, &shared.tables, queue, &marked)?;
                transaction.prepare_cached(&delete)?.execute([id])?;
            }
        }
    }
    Ok(())
}
