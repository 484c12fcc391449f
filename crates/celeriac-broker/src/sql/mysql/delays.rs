//! The delay store: when messages that nobody sees are to be seen, by the server's clock.

use std::fmt::Write as _;
use std::time::Duration;

use async_trait::async_trait;
use celeriac_core::broker::Error;

use super::error::is_deadlock;
use super::store::{ATTEMPTS, MysqlStore, NEXT_VERSION, fits, list};
use crate::sql::fates::{Later, marked};
use crate::sql::store::{Came, DelayedRow, Delays, MOVED_AT_ONCE, Moved, SOONEST};
use crate::sql::tables::Tables;

/// The server's clock, in microseconds since 1970. `UNIX_TIMESTAMP` knows one hour a year twice.
const NOW: &str = "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))";

#[async_trait]
impl Delays for MysqlStore {
    async fn move_due(&mut self) -> Result<Moved, Error> {
        let mut wait = self.wait_for_first().await?;
        let mut count = 0;
        if wait.is_some_and(|wait| wait <= 0) {
            count = self.come(NOW).await?.seen;
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
        let count: Option<u64> = self.connection.first(&count, ()).await?;
        Ok(count.unwrap_or_default())
    }

    async fn return_some(&mut self) -> Result<Came, Error> {
        self.come(&i64::MAX.to_string()).await
    }

    async fn first_delayed(
        &mut self,
        queues: &[i64],
        count: usize,
    ) -> Result<Vec<DelayedRow>, Error> {
        let Tables {
            message, delayed, ..
        } = &self.tables;
        let mut rows = Vec::new();
        for queue in queues {
            let first: Vec<(i64, Vec<u8>)> = self
                .connection
                .run(format!(
                    "SELECT d.due, m.payload
                     FROM {delayed} AS d JOIN {message} AS m ON m.id = d.message_id
                     WHERE d.queue_id = {queue} ORDER BY d.due LIMIT {count}"
                ))
                .await?;
            rows.extend(first.into_iter().map(|(due, payload)| DelayedRow {
                queue: *queue,
                payload: payload.into(),
                due,
            }));
        }
        rows.sort_by_key(|row| row.due);
        rows.truncate(count);
        Ok(rows)
    }
}

impl MysqlStore {
    /// Puts messages that this worker holds into the store: part of a transaction.
    pub(super) async fn keep(&mut self, later: &[(i64, Later)]) -> Result<(), Error> {
        if later.is_empty() {
            return Ok(());
        }
        let (worker, tables) = (self.worker.clone(), self.tables.clone());
        let Tables {
            message,
            lease,
            delayed,
            ..
        } = &tables;
        let ids: Vec<i64> = later.iter().map(|(id, _)| *id).collect();
        let mut rows = self.lock_held(&ids).await?;
        let mut stored = Vec::new();
        for (id, later) in later {
            let Some((queue, payload)) = rows.remove(id) else {
                continue;
            };
            let marked = marked(&payload, later.marks).filter(|marked| fits(&payload, marked));
            if let Some(marked) = marked {
                let statement =
                    format!("UPDATE {message} SET payload = ?, {NEXT_VERSION} WHERE id = ?");
                self.connection.change(&statement, (marked, *id)).await?;
            }
            stored.push(format!(
                "({id}, {queue}, GREATEST({}, {NOW} + {SOONEST}))",
                later.due
            ));
        }
        let mut statements = format!(
            "DELETE FROM {lease} WHERE message_id IN ({}) AND worker = '{worker}'",
            list(&ids)
        );
        if !stored.is_empty() {
            let _ = write!(
                statements,
                "; REPLACE INTO {delayed} (message_id, queue_id, due) VALUES {}",
                stored.join(", ")
            );
        }
        self.connection.execute(statements).await
    }

    /// How many microseconds until the first message is due.
    async fn wait_for_first(&mut self) -> Result<Option<i64>, Error> {
        let statement = format!("SELECT min(due) - {NOW} FROM {}", self.tables.delayed);
        let wait: Option<Option<i64>> = self.connection.first(&statement, ()).await?;
        Ok(wait.flatten())
    }

    /// Has messages be seen that are due by `moment`, as many as one transaction takes.
    async fn come(&mut self, moment: &str) -> Result<Came, Error> {
        let mut attempt = 1;
        loop {
            let result = self.come_once(moment).await;
            match self.roll_back(result).await {
                Err(error) if is_deadlock(&error) && attempt < ATTEMPTS => attempt += 1,
                result => return result,
            }
        }
    }

    async fn come_once(&mut self, moment: &str) -> Result<Came, Error> {
        let Tables {
            message,
            lease,
            delayed,
            ..
        } = self.tables.clone();
        // Who comes second finds the rows locked, and does nothing.
        let due: Vec<i64> = self
            .connection
            .run(format!(
                "START TRANSACTION;
                 SELECT message_id FROM {delayed} WHERE due <= {moment}
                 ORDER BY due LIMIT {MOVED_AT_ONCE} FOR UPDATE SKIP LOCKED"
            ))
            .await?;
        let mut seen: Vec<i64> = Vec::new();
        let mut statements = String::new();
        if !due.is_empty() {
            let due = list(&due);
            // A purge of kombu's deletes messages with what it does not see; whose id another has
            // now, that one is let alone.
            seen = self
                .connection
                .run(format!(
                    "SELECT id FROM {message} AS m WHERE id IN ({due}) AND visible = 0
                     AND NOT EXISTS (SELECT 1 FROM {lease} AS l WHERE l.message_id = m.id)
                     FOR UPDATE"
                ))
                .await?;
            let _ = write!(
                statements,
                "DELETE FROM {delayed} WHERE message_id IN ({due});"
            );
        }
        if !seen.is_empty() {
            let _ = write!(
                statements,
                "UPDATE {message} SET visible = 1, timestamp = NULL, {NEXT_VERSION}
                 WHERE id IN ({});",
                list(&seen)
            );
        }
        statements.push_str("COMMIT");
        self.connection.execute(statements).await?;
        Ok(Came {
            gone: due.len() as u64,
            seen: seen.len() as u64,
        })
    }
}
