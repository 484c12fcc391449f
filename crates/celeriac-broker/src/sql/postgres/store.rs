//! One connection: claiming, settling, waiting.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use celeriac_core::broker::{Error, Settlement};
use tokio::time::timeout;
use tokio_postgres::Row;

use super::connection::Connection;
use super::error::broker_error;
use super::schema::{self, Notices};
use super::statements::Statements;
use super::types::Text;
use crate::sql::fates::{Change, Fates, after_death};
use crate::sql::pace::Pace;
use crate::sql::store::{self, Beat, Claims, Revoked, Sent, Store};
use crate::sql::tables::Tables;

/// How many messages of a dead worker are given back at once.
const RESTORED_AT_ONCE: i64 = 500;

/// How often to ask although the server tells of news: for what it could not tell.
const WHEN_TOLD: Duration = Duration::from_secs(5);

pub(super) struct PostgresStore {
    pub(super) connection: Connection,
    pub(super) statements: Statements,
    /// The names of the tables, quoted.
    pub(super) tables: Tables,
    /// The channel on which new messages are told of.
    pub(super) channel: String,
    /// This worker in the tables of workers and leases.
    pub(super) worker: String,
    pace: Pace,
}

impl PostgresStore {
    pub(super) async fn open(
        connection: Connection,
        names: &Tables,
        worker: &str,
        notices: Notices,
        polling_interval: Option<Duration>,
    ) -> Result<Self, Error> {
        let tables = names.quoted(schema::quote);
        let statements = Statements::prepare(&connection, &tables, &notices.channel).await?;
        Ok(Self {
            connection,
            statements,
            tables,
            channel: notices.channel,
            worker: worker.to_owned(),
            pace: if notices.complete {
                let pause = polling_interval.unwrap_or(WHEN_TOLD);
                Pace::between(pause, pause)
            } else {
                Pace::asking(polling_interval)
            },
        })
    }

    /// The payloads of messages that this worker holds.
    pub(super) async fn payloads(&self, ids: &[i64]) -> Result<HashMap<i64, Bytes>, Error> {
        let (connection, sql) = (&self.connection, &self.statements);
        let rows = connection
            .answer(connection.query(&sql.read, &[&ids, &self.worker]))
            .await?;
        rows.iter()
            .map(|row| Ok((get(row, 0)?, get::<Text>(row, 1)?.0)))
            .collect()
    }

    /// Puts messages behind those that wait, in the order in which they were settled.
    async fn requeue(&self, last: &[(i64, Change)]) -> Result<(), Error> {
        let ids: Vec<i64> = last.iter().map(|(id, _)| *id).collect();
        let payloads = self.payloads(&ids).await?;
        let (mut found, mut changed) = (Vec::new(), Vec::new());
        for (id, change) in last {
            if let Some(payload) = payloads.get(id) {
                // What is no text is no message either, and is not requeued by anybody.
                let text = String::from_utf8_lossy(payload);
                found.push(*id);
                changed.push(change.apply(&text).into_owned());
            }
        }
        let (connection, sql) = (&self.connection, &self.statements);
        connection
            .answer(connection.query(&sql.requeue, &[&found, &self.worker, &changed]))
            .await?;
        Ok(())
    }

    /// Gives back everything that a dead worker holds.
    async fn restore(&mut self, worker: &str) -> Result<u64, Error> {
        let mut restored = 0;
        loop {
            let (freed, visible) = self.restore_some(worker).await?;
            restored += visible;
            if freed < RESTORED_AT_ONCE {
                break;
            }
        }
        let (connection, sql) = (&self.connection, &self.statements);
        connection
            .answer(connection.execute(&sql.bury, &[&worker]))
            .await?;
        Ok(restored)
    }

    /// Answers with how many leases it ended, and how many messages that gave back.
    async fn restore_some(&mut self, worker: &str) -> Result<(i64, u64), Error> {
        let (connection, sql) = (&self.connection, &self.statements);
        // Who comes second finds the rows locked, and does nothing. Should this end in the middle,
        // the transaction ends with the connection.
        connection.answer(connection.batch_execute("BEGIN")).await?;
        let rows = connection
            .answer(connection.query(&sql.lock, &[&worker, &RESTORED_AT_ONCE]))
            .await?;
        let mut ids: Vec<i64> = Vec::new();
        let mut marked: Vec<Option<String>> = Vec::new();
        for row in &rows {
            ids.push(get(row, 0)?);
            let payload = get::<Option<Text>>(row, 1)?;
            marked.push(payload.and_then(|Text(payload)| after_death(&payload)));
        }
        let told = connection
            .answer(connection.query(&sql.restore, &[&ids, &worker, &marked]))
            .await?;
        connection
            .answer(connection.batch_execute("COMMIT"))
            .await?;
        Ok((ids.len() as i64, count(&told)?))
    }
}

#[async_trait]
impl Store for PostgresStore {
    async fn queue_id(&mut self, name: &str) -> Result<i64, Error> {
        let (connection, sql) = (&self.connection, &self.statements);
        let found = connection
            .answer(connection.query_opt(&sql.find_queue, &[&name]))
            .await?;
        let row = match found {
            Some(row) => row,
            None => {
                connection
                    .answer(connection.execute(&sql.make_queue, &[&name]))
                    .await?;
                connection
                    .answer(connection.query_one(&sql.find_queue, &[&name]))
                    .await?
            }
        };
        let id = get(&row, 0)?;
        connection.news.watch(id);
        Ok(id)
    }

    async fn exchange(
        &mut self,
        settlements: &[Settlement],
        claims: &Claims,
    ) -> Result<Vec<store::Row>, Error> {
        let Fates {
            removed,
            released,
            last,
            later,
        } = Fates::new(settlements);
        let (connection, sql) = (&self.connection, &self.statements);
        if !released.is_empty() {
            connection
                .answer(connection.query(&sql.release, &[&released, &self.worker]))
                .await?;
        }
        if !last.is_empty() {
            self.requeue(&last).await?;
        }
        if !later.is_empty() {
            self.keep(&later).await?;
        }
        if claims.limit == 0 {
            if !removed.is_empty() {
                connection
                    .answer(connection.query(&sql.remove, &[&removed, &self.worker]))
                    .await?;
            }
            return Ok(Vec::new());
        }
        let queues: Vec<i64> = claims.shares.iter().map(|share| share.queue).collect();
        let counts: Vec<i64> = claims
            .shares
            .iter()
            .map(|share| share.count as i64)
            .collect();
        let limit = claims.limit as i64;
        let rows = connection
            .answer(connection.query(
                &sql.exchange,
                &[&removed, &self.worker, &queues, &counts, &limit],
            ))
            .await?;
        if !rows.is_empty() {
            self.pace.found();
        }
        rows.iter()
            .map(|row| {
                Ok(store::Row {
                    id: get(row, 0)?,
                    queue: get(row, 1)?,
                    payload: get::<Text>(row, 2)?.0,
                })
            })
            .collect()
    }

    async fn wait(&mut self) -> Result<(), Error> {
        self.connection.check()?;
        let pause = self.pace.next();
        drop(timeout(pause, self.connection.news.arrived()).await);
        self.connection.check()
    }

    async fn beat(&mut self) -> Result<Beat, Error> {
        let (connection, sql) = (&self.connection, &self.statements);
        connection
            .answer(connection.execute(&sql.beat, &[&self.worker]))
            .await?;
        let dead = connection.answer(connection.query(&sql.dead, &[])).await?;
        let mut restored = 0;
        for row in &dead {
            restored += self.restore(get(row, 0)?).await?;
        }
        let (connection, sql) = (&self.connection, &self.statements);
        let held = connection
            .answer(connection.query_one(&sql.count, &[&self.worker]))
            .await?;
        Ok(Beat {
            restored,
            held: get::<i64>(&held, 0)? as u64,
        })
    }

    async fn held(&mut self) -> Result<HashSet<u64>, Error> {
        let (connection, sql) = (&self.connection, &self.statements);
        let rows = connection
            .answer(connection.query(&sql.held, &[&self.worker]))
            .await?;
        rows.iter()
            .map(|row| get::<i64>(row, 0).map(|id| id as u64))
            .collect()
    }

    async fn purge(&mut self, queue: &str) -> Result<u64, Error> {
        let (connection, sql) = (&self.connection, &self.statements);
        connection
            .answer(connection.execute(&sql.purge, &[&queue]))
            .await
    }

    async fn size(&mut self, queue: &str) -> Result<u64, Error> {
        let (connection, sql) = (&self.connection, &self.statements);
        let row = connection
            .answer(connection.query_one(&sql.size, &[&queue]))
            .await?;
        Ok(get::<i64>(&row, 0)? as u64)
    }

    async fn publish(&mut self, messages: Vec<Sent>) -> Result<(), Error> {
        let mut ids = HashMap::new();
        for Sent { queue, .. } in &messages {
            if !ids.contains_key(queue) {
                ids.insert(queue.clone(), self.queue_id(queue).await?);
            }
        }
        let (queues, payloads): (Vec<i64>, Vec<String>) = messages
            .into_iter()
            .map(|sent| {
                (
                    ids.get(&sent.queue).copied().unwrap_or_default(),
                    sent.payload,
                )
            })
            .unzip();
        let (connection, sql) = (&self.connection, &self.statements);
        connection
            .answer(connection.query(&sql.publish, &[&queues, &payloads]))
            .await?;
        Ok(())
    }

    async fn revoked(&mut self, since: f64) -> Result<Vec<Revoked>, Error> {
        let connection = &self.connection;
        let made = "SELECT to_regclass('celeriac_revoked') IS NOT NULL";
        let made = connection.answer(connection.query_one(made, &[])).await?;
        if !get::<bool>(&made, 0)? {
            return Ok(Vec::new());
        }
        let read = "SELECT kind, member FROM celeriac_revoked
                    WHERE revoked_at >= $1::float8 ORDER BY revoked_at";
        let rows = connection.answer(connection.query(read, &[&since])).await?;
        rows.iter()
            .map(|row| {
                Ok(Revoked {
                    kind: get::<Text>(row, 0)?.0,
                    member: get::<Text>(row, 1)?.0,
                })
            })
            .collect()
    }

    async fn leave(&mut self) -> Result<(), Error> {
        let (connection, sql) = (&self.connection, &self.statements);
        connection
            .answer(connection.execute(&sql.leave, &[&self.worker]))
            .await?;
        Ok(())
    }
}

pub(super) fn get<'r, T: tokio_postgres::types::FromSql<'r>>(
    row: &'r Row,
    column: usize,
) -> Result<T, Error> {
    row.try_get(column).map_err(|error| broker_error(&error))
}

/// How many messages wait now, as the statements that tell of them answer.
pub(super) fn count(told: &[Row]) -> Result<u64, Error> {
    let mut sum = 0;
    for row in told {
        sum += get::<i64>(row, 0)? as u64;
    }
    Ok(sum)
}
