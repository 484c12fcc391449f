//! Dead letters in a table.

use async_trait::async_trait;
use celeriac_core::broker::Error;

use super::statements::telling;
use super::store::{PostgresStore, count, get};
use crate::sql::store::{DeadLetters, FORGOTTEN_AT_ONCE, Limits, Record, Replay, Store as _};
use crate::sql::tables::Tables;

#[async_trait]
impl DeadLetters for PostgresStore {
    async fn bury(&mut self, record: &Record, limits: Limits) -> Result<(), Error> {
        let (connection, dead) = (&self.connection, &self.tables.dead);
        let keep = format!(
            "INSERT INTO {dead} (id, died_at, record) VALUES ($1, $2, $3)
             ON CONFLICT (id) DO UPDATE SET died_at = excluded.died_at, record = excluded.record"
        );
        connection
            .answer(connection.execute(&keep, &[&record.key, &record.died_at, &record.text]))
            .await?;
        // What another is about to forget is left to it.
        let trim = format!(
            "DELETE FROM {dead} WHERE id IN (
                 SELECT id FROM {dead} WHERE id IN (
                     (SELECT id FROM {dead} WHERE died_at < $1 LIMIT {FORGOTTEN_AT_ONCE})
                     UNION
                     (SELECT id FROM {dead} ORDER BY died_at DESC, id
                      LIMIT {FORGOTTEN_AT_ONCE} OFFSET $2)
                 ) FOR UPDATE SKIP LOCKED
             )"
        );
        let number = i64::try_from(limits.number).unwrap_or(i64::MAX);
        connection
            .answer(connection.execute(&trim, &[&limits.since, &number]))
            .await?;
        Ok(())
    }

    async fn records(&mut self) -> Result<Vec<String>, Error> {
        let (connection, dead) = (&self.connection, &self.tables.dead);
        let statement = format!("SELECT record FROM {dead} ORDER BY died_at DESC, id");
        let rows = connection.answer(connection.query(&statement, &[])).await?;
        rows.iter().map(|row| get(row, 0)).collect()
    }

    async fn records_of(&mut self, keys: &[String]) -> Result<Vec<String>, Error> {
        let (connection, dead) = (&self.connection, &self.tables.dead);
        let statement = format!("SELECT record FROM {dead} WHERE id = ANY ($1)");
        let rows = connection
            .answer(connection.query(&statement, &[&keys]))
            .await?;
        rows.iter().map(|row| get(row, 0)).collect()
    }

    async fn replay(&mut self, replays: &[Replay]) -> Result<u64, Error> {
        let (mut keys, mut queues, mut payloads) = (Vec::new(), Vec::new(), Vec::new());
        for replay in replays {
            keys.push(&*replay.key);
            queues.push(self.queue_id(&replay.queue).await?);
            // What was read from a text is one, unless the database has no encoding.
            payloads.push(String::from_utf8_lossy(&replay.payload));
        }
        let payloads: Vec<&str> = payloads.iter().map(|payload| &**payload).collect();
        let Tables { message, dead, .. } = &self.tables;
        let changes = format!(
            "gone AS (
                 DELETE FROM {dead} AS d
                 USING unnest($1::text[], $2::int8[], $3::text[]) AS back (key, queue, payload)
                 WHERE d.id = back.key
                 RETURNING back.queue, back.payload
             ), put AS (
                 INSERT INTO {message} (id, visible, timestamp, payload, version, queue_id)
                 SELECT nextval('message_id_sequence'), true, NULL, payload, 1, queue FROM gone
                 RETURNING queue_id
             )"
        );
        let statement = telling(&changes, &self.channel);
        let connection = &self.connection;
        let told = connection
            .answer(connection.query(&statement, &[&keys, &queues, &payloads]))
            .await?;
        count(&told)
    }

    async fn forget(&mut self, keys: &[String]) -> Result<u64, Error> {
        let (connection, dead) = (&self.connection, &self.tables.dead);
        let statement = format!("DELETE FROM {dead} WHERE id = ANY ($1)");
        connection
            .answer(connection.execute(&statement, &[&keys]))
            .await
    }
}
