//! One connection: claiming, settling, waiting.
//!
//! Rows of leases are always locked before rows of messages, and claims wait for nobody. Should the
//! server still see a deadlock, the transaction is made again.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::time::Duration;

use async_trait::async_trait;
use celeriac_core::broker::{Error, Settlement};

use super::connection::Connection;
use super::error::is_deadlock;
use super::schema::{self, Found};
use crate::sql::fates::{Change, Fates};
use crate::sql::pace::Pace;
use crate::sql::store::{self, Beat, Claims, Revoked, Sent, Store};
use crate::sql::tables::Tables;

/// How often a transaction is made again that the server has rolled back.
pub(super) const ATTEMPTS: u32 = 5;

pub(super) struct MysqlStore {
    pub(super) connection: Connection,
    /// The names of the tables, quoted.
    pub(super) tables: Tables,
    /// This worker in the tables of workers and leases: letters, digits and hyphens.
    pub(super) worker: String,
    found: Found,
    pace: Pace,
}

/// A claimed row: its id, its queue's, its payload.
pub(super) type Claimed = (i64, i64, Vec<u8>);

impl MysqlStore {
    pub(super) fn new(
        connection: Connection,
        names: &Tables,
        found: Found,
        worker: &str,
        polling_interval: Option<Duration>,
    ) -> Self {
        Self {
            connection,
            tables: names.quoted(schema::quote),
            worker: worker.to_owned(),
            found,
            pace: Pace::asking(polling_interval),
        }
    }

    /// Hands `result` on, and ends the transaction if it is an error.
    pub(super) async fn roll_back<T>(&mut self, result: Result<T, Error>) -> Result<T, Error> {
        if result.is_err() {
            // A connection that is lost has rolled back already.
            drop(self.connection.execute("ROLLBACK".to_owned()).await);
        }
        result
    }

    async fn settle_and_claim(
        &mut self,
        settlements: &[Settlement],
        claims: &Claims,
    ) -> Result<Vec<store::Row>, Error> {
        let mut statements = "START TRANSACTION;".to_owned();
        let (worker, tables) = (self.worker.clone(), self.tables.clone());
        let Tables { message, lease, .. } = &tables;
        let Fates {
            removed,
            released,
            last,
            later,
        } = Fates::new(settlements);
        if !removed.is_empty() {
            let _ = write!(
                statements,
                "DELETE l, m FROM {lease} AS l LEFT JOIN {message} AS m ON m.id = l.message_id
                 WHERE l.message_id IN ({}) AND l.worker = '{worker}';",
                list(&removed)
            );
        }
        if !released.is_empty() {
            let released = list(&released);
            let _ = write!(
                statements,
                "UPDATE {lease} AS l STRAIGHT_JOIN {message} AS m ON m.id = l.message_id
                 SET m.visible = 1, m.timestamp = NULL, m.{NEXT_VERSION}
                 WHERE l.message_id IN ({released}) AND l.worker = '{worker}';
                 DELETE FROM {lease} WHERE message_id IN ({released}) AND worker = '{worker}';"
            );
        }
        if !(last.is_empty() && later.is_empty()) {
            self.connection
                .execute(std::mem::take(&mut statements))
                .await?;
            self.requeue(&last).await?;
            self.keep(&later).await?;
        }
        let mut rows = Vec::new();
        for share in &claims.shares {
            let count = share.count.min(claims.limit - rows.len());
            if count == 0 {
                break;
            }
            // The order must come from the index: to sort, all that waits would have to be locked.
            let index = if self.found.index {
                format!("FORCE INDEX ({})", tables.waiting)
            } else {
                String::new()
            };
            let _ = write!(
                statements,
                "SELECT id, queue_id, payload FROM {message} {index}
                 WHERE queue_id = {} AND visible = 1
                 ORDER BY timestamp, id LIMIT {count} FOR UPDATE SKIP LOCKED",
                share.queue
            );
            let claimed: Vec<Claimed> =
                self.connection.run(std::mem::take(&mut statements)).await?;
            rows.extend(claimed.into_iter().map(|(id, queue, payload)| store::Row {
                id,
                queue,
                payload: payload.into(),
            }));
        }
        // The time of a message stays: its index is what kombu's own claims lock first, and ours would
        // lock last.
        if !rows.is_empty() {
            rows.sort_unstable_by_key(|row| row.id);
            let ids: Vec<i64> = rows.iter().map(|row| row.id).collect();
            let leases: Vec<String> = ids.iter().map(|id| format!("({id}, '{worker}')")).collect();
            let _ = write!(
                statements,
                "INSERT IGNORE INTO {} (name, since, seen)
                 VALUES ('{worker}', UTC_TIMESTAMP(6), UTC_TIMESTAMP(6));
                 REPLACE INTO {lease} (message_id, worker) VALUES {};
                 UPDATE {message} SET visible = 0, {NEXT_VERSION}
                 WHERE id IN ({});",
                tables.worker,
                leases.join(", "),
                list(&ids)
            );
        }
        statements.push_str("COMMIT");
        self.connection.execute(statements).await?;
        Ok(rows)
    }

    /// Those of some messages that this worker holds, locked.
    pub(super) async fn lock_held(
        &mut self,
        ids: &[i64],
    ) -> Result<HashMap<i64, (i64, Vec<u8>)>, Error> {
        let (worker, Tables { message, lease, .. }) = (&self.worker, &self.tables);
        let statement = format!(
            "SELECT m.id, m.queue_id, m.payload
             FROM {lease} AS l STRAIGHT_JOIN {message} AS m ON m.id = l.message_id
             WHERE l.message_id IN ({}) AND l.worker = '{worker}' FOR UPDATE",
            list(ids)
        );
        let rows: Vec<Claimed> = self.connection.run(statement).await?;
        let rows = rows.into_iter();
        Ok(rows
            .map(|(id, queue, payload)| (id, (queue, payload)))
            .collect())
    }

    /// Puts messages behind those that wait, in the order in which they were settled: new rows, as
    /// kombu makes.
    async fn requeue(&mut self, last: &[(i64, Change)]) -> Result<(), Error> {
        if last.is_empty() {
            return Ok(());
        }
        let (worker, tables) = (self.worker.clone(), self.tables.clone());
        let Tables { message, lease, .. } = &tables;
        let ids: Vec<i64> = last.iter().map(|(id, _)| *id).collect();
        let mut rows = self.lock_held(&ids).await?;
        for (id, change) in last {
            if let Some((queue, payload)) = rows.remove(id) {
                // What is no text is no message either, and is not requeued by anybody.
                let text = String::from_utf8_lossy(&payload);
                self.insert(queue, &change.apply(&text)).await?;
            }
        }
        self.connection
            .execute(format!(
                "DELETE l, m FROM {lease} AS l LEFT JOIN {message} AS m ON m.id = l.message_id
                 WHERE l.message_id IN ({}) AND l.worker = '{worker}'",
                list(&ids)
            ))
            .await
    }

    /// All or none, in their order.
    async fn insert_all(&mut self, rows: Vec<(i64, String)>) -> Result<(), Error> {
        let message = &self.tables.message;
        let (column, id) = self.next_id("message_id_sequence");
        let values = vec![format!("({id} 1, NULL, ?, 1, ?)"); rows.len()].join(", ");
        let statement = format!(
            "INSERT INTO {message} ({column} visible, timestamp, payload, version, queue_id)
             VALUES {values}"
        );
        let parameters = rows.into_iter().flat_map(|(queue, payload)| {
            let parameters: [mysql_async::Value; 2] = [payload.into(), queue.into()];
            parameters
        });
        let parameters = mysql_async::Params::Positional(parameters.collect());
        self.connection.change(&statement, parameters).await?;
        Ok(())
    }

    pub(super) async fn insert(&mut self, queue: i64, payload: &str) -> Result<(), Error> {
        let message = &self.tables.message;
        let (column, id) = self.next_id("message_id_sequence");
        let statement = format!(
            "INSERT INTO {message} ({column} visible, timestamp, payload, version, queue_id)
             VALUES ({id} 1, NULL, ?, 1, ?)"
        );
        self.connection.change(&statement, (payload, queue)).await?;
        Ok(())
    }

    /// The column and the value of a new row's id, where it does not count itself.
    fn next_id(&self, sequence: &str) -> (&'static str, String) {
        if self.found.sequences {
            ("id,", format!("nextval({sequence}),"))
        } else {
            ("", String::new())
        }
    }

    async fn find_queue(&mut self, name: &str) -> Result<Option<i64>, Error> {
        let statement = format!("SELECT id FROM {} WHERE name = ?", self.tables.queue);
        self.connection.first(&statement, (name,)).await
    }
}

/// kombu's count of updates, which does not run over.
pub(super) const NEXT_VERSION: &str = "version = version % 32767 + 1";

/// Numbers as SQL lists them.
pub(super) fn list(ids: &[i64]) -> String {
    let texts: Vec<String> = ids.iter().map(i64::to_string).collect();
    texts.join(", ")
}

#[async_trait]
impl Store for MysqlStore {
    async fn queue_id(&mut self, name: &str) -> Result<i64, Error> {
        if let Some(id) = self.find_queue(name).await? {
            return Ok(id);
        }
        let (column, id) = self.next_id("queue_id_sequence");
        let statement = format!(
            "INSERT IGNORE INTO {} ({column} name) VALUES ({id} ?)",
            self.tables.queue
        );
        self.connection.change(&statement, (name,)).await?;
        self.find_queue(name).await?.ok_or_else(|| {
            Error::new(
                celeriac_core::broker::ErrorKind::Refused,
                format!("MySQL: the queue {name:?} could not be made"),
            )
        })
    }

    async fn exchange(
        &mut self,
        settlements: &[Settlement],
        claims: &Claims,
    ) -> Result<Vec<store::Row>, Error> {
        if settlements.is_empty() && claims.limit == 0 {
            return Ok(Vec::new());
        }
        let mut attempt = 1;
        let rows = loop {
            let result = self.settle_and_claim(settlements, claims).await;
            match self.roll_back(result).await {
                Err(error) if is_deadlock(&error) && attempt < ATTEMPTS => attempt += 1,
                result => break result?,
            }
        };
        if !rows.is_empty() {
            self.pace.found();
        }
        Ok(rows)
    }

    async fn wait(&mut self) -> Result<(), Error> {
        tokio::time::sleep(self.pace.next()).await;
        Ok(())
    }

    async fn beat(&mut self) -> Result<Beat, Error> {
        self.sign().await?;
        let mut restored = 0;
        for dead in self.dead().await? {
            restored += self.restore(&dead).await?;
        }
        let statement = format!(
            "SELECT count(*) FROM {} WHERE worker = ?",
            self.tables.lease
        );
        let held: Option<u64> = self
            .connection
            .first(&statement, (self.worker.as_str(),))
            .await?;
        Ok(Beat {
            restored,
            held: held.unwrap_or_default(),
        })
    }

    async fn held(&mut self) -> Result<HashSet<u64>, Error> {
        let ids: Vec<u64> = self
            .connection
            .run(format!(
                "SELECT message_id FROM {} WHERE worker = '{}'",
                self.tables.lease, self.worker
            ))
            .await?;
        Ok(ids.into_iter().collect())
    }

    async fn purge(&mut self, queue: &str) -> Result<u64, Error> {
        let statement = format!(
            "DELETE m FROM {} AS m JOIN {} AS q ON q.id = m.queue_id
             WHERE q.name = ? AND m.visible = 1",
            self.tables.message, self.tables.queue
        );
        self.connection.change(&statement, (queue,)).await
    }

    async fn size(&mut self, queue: &str) -> Result<u64, Error> {
        let statement = format!(
            "SELECT count(*) FROM {} AS m JOIN {} AS q ON q.id = m.queue_id
             WHERE q.name = ? AND m.visible = 1",
            self.tables.message, self.tables.queue
        );
        let size: Option<u64> = self.connection.first(&statement, (queue,)).await?;
        Ok(size.unwrap_or_default())
    }

    async fn publish(&mut self, messages: Vec<Sent>) -> Result<(), Error> {
        let mut rows = Vec::with_capacity(messages.len());
        let mut ids = HashMap::new();
        for Sent { queue, payload } in messages {
            let id = match ids.get(&queue) {
                Some(id) => *id,
                None => {
                    let id = self.queue_id(&queue).await?;
                    ids.insert(queue, id);
                    id
                }
            };
            rows.push((id, payload));
        }
        self.insert_all(rows).await
    }

    async fn revoked(&mut self, since: f64) -> Result<Vec<Revoked>, Error> {
        let made: Option<u8> = self
            .connection
            .first(
                "SELECT 1 FROM information_schema.tables
                 WHERE table_schema = DATABASE() AND table_name = 'celeriac_revoked'",
                (),
            )
            .await?;
        if made.is_none() {
            return Ok(Vec::new());
        }
        let rows: Vec<(Vec<u8>, Vec<u8>)> = self
            .connection
            .all(
                // Some versions of MySQL have a keyword of this name.
                "SELECT kind, `member` FROM celeriac_revoked
                 WHERE revoked_at >= ? ORDER BY revoked_at",
                (since,),
            )
            .await?;
        let revoked = rows.into_iter().map(|(kind, member)| Revoked {
            kind: kind.into(),
            member: member.into(),
        });
        Ok(revoked.collect())
    }

    async fn leave(&mut self) -> Result<(), Error> {
        let statement = format!("DELETE FROM {} WHERE name = ?", self.tables.worker);
        self.connection
            .change(&statement, (self.worker.clone(),))
            .await?;
        Ok(())
    }
}

/// Whether a payload may stand where another one did: kombu's column is a `TEXT` of 64 KiB, unless
/// somebody has made it larger. What does not fit goes without marks.
pub(super) fn fits(before: &[u8], after: &str) -> bool {
    const TEXT: usize = 65_535;
    after.len() <= TEXT || before.len() > TEXT
}
