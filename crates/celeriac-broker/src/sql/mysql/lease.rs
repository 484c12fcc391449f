//! Signs of life, and the messages of workers that give none.

use celeriac_core::broker::Error;

use super::store::{MysqlStore, NEXT_VERSION, fits, list};
use crate::sql::fates::after_death;
use crate::sql::lease::{DEAD_AFTER, GAP};
use crate::sql::tables::Tables;

/// How many messages of a dead worker are given back at once.
const RESTORED_AT_ONCE: usize = 500;

impl MysqlStore {
    /// Gives a sign of life. Signs with a gap between them, or from a clock that was set, begin
    /// anew.
    pub(super) async fn sign(&mut self) -> Result<(), Error> {
        self.connection
            .execute(format!(
                "INSERT INTO {} (name, since, seen)
                 VALUES ('{}', UTC_TIMESTAMP(6), UTC_TIMESTAMP(6))
                 ON DUPLICATE KEY UPDATE
                     since = IF(TIMESTAMPDIFF(MICROSECOND, seen, UTC_TIMESTAMP(6))
                                BETWEEN 0 AND {}, since, UTC_TIMESTAMP(6)),
                     seen = UTC_TIMESTAMP(6)",
                self.tables.worker,
                self.worker,
                GAP.as_micros()
            ))
            .await
    }

    /// Those without a sign of life, while another gave its own all the time: a server that was
    /// out of reach, or a clock that was set, makes nobody dead. And those that hold messages and
    /// that nobody knows, since somebody has tidied the table of workers.
    pub(super) async fn dead(&mut self) -> Result<Vec<String>, Error> {
        let Tables { worker, lease, .. } = &self.tables;
        let gap = GAP.as_secs();
        let statement = format!(
            "SELECT w.name FROM {worker} AS w
             WHERE EXISTS (
                 SELECT 1 FROM {worker} AS witness
                 WHERE witness.seen BETWEEN UTC_TIMESTAMP(6) - INTERVAL {gap} SECOND
                                        AND UTC_TIMESTAMP(6) + INTERVAL {gap} SECOND
                   AND TIMESTAMPDIFF(
                           MICROSECOND,
                           IF(w.seen > UTC_TIMESTAMP(6) + INTERVAL {gap} SECOND,
                              witness.since, GREATEST(witness.since, w.seen)),
                           witness.seen) >= {dead}
             )
             UNION
             SELECT l.worker FROM {lease} AS l
             WHERE NOT EXISTS (SELECT 1 FROM {worker} AS w WHERE w.name = l.worker)",
            dead = DEAD_AFTER.as_micros()
        );
        self.connection.run(statement).await
    }

    /// Gives back everything that a dead worker holds.
    pub(super) async fn restore(&mut self, worker: &str) -> Result<u64, Error> {
        let mut restored = 0;
        loop {
            let result = self.restore_some(worker).await;
            let (freed, visible) = self.roll_back(result).await?;
            restored += visible;
            if freed < RESTORED_AT_ONCE {
                break;
            }
        }
        let statement = format!(
            "DELETE FROM {} WHERE name = ?
             AND NOT EXISTS (SELECT 1 FROM {} AS l WHERE l.worker = ?)",
            self.tables.worker, self.tables.lease
        );
        self.connection.change(&statement, (worker, worker)).await?;
        Ok(restored)
    }

    /// Answers with how many leases it ended, and how many messages that gave back.
    async fn restore_some(&mut self, worker: &str) -> Result<(usize, u64), Error> {
        let Tables { message, lease, .. } = self.tables.clone();
        self.connection
            .execute("START TRANSACTION".to_owned())
            .await?;
        // Who comes second finds the rows locked, and does nothing. The worker's name is whatever
        // stands in the table.
        let ids: Vec<i64> = self
            .connection
            .all(
                &format!(
                    "SELECT message_id FROM {lease} WHERE worker = ?
                     LIMIT {RESTORED_AT_ONCE} FOR UPDATE SKIP LOCKED"
                ),
                (worker,),
            )
            .await?;
        let mut restored = 0;
        if !ids.is_empty() {
            let rows: Vec<(i64, Vec<u8>)> = self
                .connection
                .run(format!(
                    "SELECT id, payload FROM {message} WHERE id IN ({}) FOR UPDATE",
                    list(&ids)
                ))
                .await?;
            let statement = format!(
                "UPDATE {message} SET visible = 1, timestamp = NULL, {NEXT_VERSION},
                                      payload = coalesce(?, payload)
                 WHERE id = ?"
            );
            for (id, payload) in &rows {
                let marked = after_death(payload).filter(|marked| fits(payload, marked));
                self.connection.change(&statement, (marked, *id)).await?;
            }
            restored = rows.len() as u64;
            self.connection
                .execute(format!(
                    "DELETE FROM {lease} WHERE message_id IN ({})",
                    list(&ids)
                ))
                .await?;
        }
        self.connection.execute("COMMIT".to_owned()).await?;
        Ok((ids.len(), restored))
    }
}
