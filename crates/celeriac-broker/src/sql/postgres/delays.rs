//! The delay store: when messages that nobody sees are to be seen, by the server's clock.

use std::time::Duration;

use async_trait::async_trait;
use celeriac_core::broker::Error;

use super::store::{PostgresStore, get};
use super::types::Text;
use crate::sql::fates::{Later, marked};
use crate::sql::store::{Came, DelayedRow, Delays, MOVED_AT_ONCE, Moved};
use crate::sql::tables::Tables;

#[async_trait]
impl Delays for PostgresStore {
    async fn move_due(&mut self) -> Result<Moved, Error> {
        let mut wait = self.wait_for_first().await?;
        let mut count = 0;
        if wait.is_some_and(|wait| wait <= 0) {
            count = self.come(None).await?.seen;
            wait = self.wait_for_first().await?;
        }
        let next = wait.map(|wait| u64::try_from(wait).unwrap_or_default());
        Ok(Moved {
            count,
            next: next.map(Duration::from_micros),
        })
    }

    async fn count_delayed(&mut self) -> Result<u64, Error> {
        let count = format!("SELECT count(*) FROM {}", self.tables.delayed);
        let connection = &self.connection;
        let count = connection.answer(connection.query_one(&count, &[])).await?;
        Ok(get::<i64>(&count, 0)? as u64)
    }

    async fn return_some(&mut self) -> Result<Came, Error> {
        self.come(Some(i64::MAX)).await
    }

    async fn first_delayed(
        &mut self,
        queues: &[i64],
        count: usize,
    ) -> Result<Vec<DelayedRow>, Error> {
        let Tables {
            message, delayed, ..
        } = &self.tables;
        let statement = format!(
            "SELECT first.queue_id, m.payload, first.due
             FROM unnest($1::int8[]) AS queue (id)
             CROSS JOIN LATERAL (
                 SELECT message_id, queue_id, due FROM {delayed} WHERE queue_id = queue.id
                 ORDER BY due LIMIT $2
             ) AS first
             JOIN {message} AS m ON m.id = first.message_id
             ORDER BY first.due LIMIT $2"
        );
        let connection = &self.connection;
        let rows = connection
            .answer(connection.query(&statement, &[&queues, &(count as i64)]))
            .await?;
        rows.iter()
            .map(|row| {
                Ok(DelayedRow {
                    queue: get(row, 0)?,
                    payload: get::<Text>(row, 1)?.0,
                    due: get(row, 2)?,
                })
            })
            .collect()
    }
}

impl PostgresStore {
    /// Puts messages that this worker holds into the store.
    pub(super) async fn keep(&self, later: &[(i64, Later)]) -> Result<(), Error> {
        let ids: Vec<i64> = later.iter().map(|(id, _)| *id).collect();
        let dues: Vec<i64> = later.iter().map(|(_, later)| later.due).collect();
        let payloads = self.payloads(&ids).await?;
        let marked: Vec<Option<String>> = later
            .iter()
            .map(|(id, later)| marked(payloads.get(id)?, later.marks))
            .collect();
        let (connection, sql) = (&self.connection, &self.statements);
        connection
            .answer(connection.execute(&sql.keep, &[&ids, &self.worker, &marked, &dues]))
            .await?;
        Ok(())
    }

    /// How many microseconds until the first message is due.
    async fn wait_for_first(&self) -> Result<Option<i64>, Error> {
        let (connection, sql) = (&self.connection, &self.statements);
        let row = connection
            .answer(connection.query_one(&sql.wait_for_first, &[]))
            .await?;
        get(&row, 0)
    }

    /// Has messages be seen that are due by `moment`, or by now.
    async fn come(&self, moment: Option<i64>) -> Result<Came, Error> {
        let (connection, sql) = (&self.connection, &self.statements);
        let most = MOVED_AT_ONCE as i64;
        let row = connection
            .answer(connection.query_one(&sql.come, &[&moment, &most]))
            .await?;
        Ok(Came {
            gone: get::<i64>(&row, 0)? as u64,
            seen: get::<i64>(&row, 1)? as u64,
        })
    }
}
