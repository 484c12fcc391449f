//! Dead letters in a table.

use async_trait::async_trait;
use celeriac_core::broker::Error;

use super::error::is_deadlock;
use super::store::{ATTEMPTS, MysqlStore};
use crate::sql::store::{DeadLetters, FORGOTTEN_AT_ONCE, Limits, Record, Replay, Store as _};

#[async_trait]
impl DeadLetters for MysqlStore {
    async fn bury(&mut self, record: &Record, limits: Limits) -> Result<(), Error> {
        let dead = self.tables.dead.clone();
        let Record { key, died_at, text } = record;
        let keep = format!("REPLACE INTO {dead} (id, died_at, record) VALUES (?, ?, ?)");
        self.connection.change(&keep, (key, died_at, text)).await?;
        let number = i64::try_from(limits.number).unwrap_or(i64::MAX);
        let beyond: Vec<String> = self
            .connection
            .run(format!(
                "(SELECT id FROM {dead} WHERE died_at < {} LIMIT {FORGOTTEN_AT_ONCE})
                 UNION
                 (SELECT id FROM {dead} ORDER BY died_at DESC, id
                  LIMIT {FORGOTTEN_AT_ONCE} OFFSET {number})",
                limits.since
            ))
            .await?;
        match self.forget(&beyond).await {
            // Another forgets them just now.
            Err(error) if is_deadlock(&error) => Ok(()),
            forgotten => forgotten.map(drop),
        }
    }

    async fn records(&mut self) -> Result<Vec<String>, Error> {
        let dead = &self.tables.dead;
        let statement = format!("SELECT record FROM {dead} ORDER BY died_at DESC, id");
        self.connection.run(statement).await
    }

    async fn records_of(&mut self, keys: &[String]) -> Result<Vec<String>, Error> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let statement = format!(
            "SELECT record FROM {} WHERE id IN ({})",
            self.tables.dead,
            marks(keys.len())
        );
        self.connection.all(&statement, keys.to_vec()).await
    }

    async fn replay(&mut self, replays: &[Replay]) -> Result<u64, Error> {
        let mut attempt = 1;
        loop {
            let result = self.replay_once(replays).await;
            match self.roll_back(result).await {
                Err(error) if is_deadlock(&error) && attempt < ATTEMPTS => attempt += 1,
                result => return result,
            }
        }
    }

    async fn forget(&mut self, keys: &[String]) -> Result<u64, Error> {
        if keys.is_empty() {
            return Ok(0);
        }
        let statement = format!(
            "DELETE FROM {} WHERE id IN ({})",
            self.tables.dead,
            marks(keys.len())
        );
        self.connection.change(&statement, keys.to_vec()).await
    }
}

impl MysqlStore {
    async fn replay_once(&mut self, replays: &[Replay]) -> Result<u64, Error> {
        self.connection
            .execute("START TRANSACTION".to_owned())
            .await?;
        let statement = format!("DELETE FROM {} WHERE id = ?", self.tables.dead);
        let mut count = 0;
        for replay in replays {
            let gone = self
                .connection
                .change(&statement, (replay.key.as_str(),))
                .await?;
            if gone > 0 {
                let queue = self.queue_id(&replay.queue).await?;
                // What was read from a text is one.
                let text = String::from_utf8_lossy(&replay.payload);
                self.insert(queue, &text).await?;
                count += gone;
            }
        }
        self.connection.execute("COMMIT".to_owned()).await?;
        Ok(count)
    }
}

/// The places of parameters in a list.
fn marks(count: usize) -> String {
    vec!["?"; count].join(", ")
}
