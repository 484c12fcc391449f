//! Dead letters: a hash of records, and their ids by the moment of their death.

use bytes::Bytes;
use celeriac_core::broker::Error;
use celeriac_core::dead_letter::{Bounds, Content, DeadLetter};
use celeriac_protocol::envelope;
use redis::{cmd, pipe};
use uuid::Uuid;

use super::error::broker_error;
use super::scripts::{BURY, REPLAY, TAGS_PER_CALL};
use super::session::RedisSession;

/// What is put into a list for a letter, and its priority. It has a tag of its own: kombu keeps what
/// it has fetched by that.
fn replayed_item(content: &Content) -> (Bytes, u8) {
    let item = content.bytes();
    let message = match content {
        Content::Envelope(_) => envelope::decode(&item).ok(),
        Content::Raw(_) => None,
    };
    let Some(message) = message else {
        return (item, 0);
    };
    let tag = Uuid::new_v4().to_string();
    (envelope::encode(&message, &tag).into(), message.priority())
}

impl RedisSession {
    pub(super) async fn bury_letter(
        &mut self,
        letter: &DeadLetter,
        bounds: Bounds,
    ) -> Result<(), Error> {
        let died_at = letter.died_at.as_microsecond() as f64 / 1e6;
        let keys = &self.shared.keys;
        let mut call = BURY.prepare_invoke();
        call.key(&keys.dead)
            .key(&keys.dead_index)
            .arg(&letter.id)
            .arg(format!("{died_at:.6}"))
            .arg(letter.to_json())
            .arg(format!("{:.6}", died_at - bounds.age.as_secs_f64()))
            .arg(bounds.number);
        call.invoke_async(&mut self.connection)
            .await
            .map_err(|error| broker_error(&error))
    }

    pub(super) async fn read_dead_letters(&mut self) -> Result<Vec<DeadLetter>, Error> {
        let ids: Vec<String> = cmd("ZREVRANGE")
            .arg(&self.shared.keys.dead_index)
            .arg(0)
            .arg(-1)
            .query_async(&mut self.connection)
            .await
            .map_err(|error| broker_error(&error))?;
        let mut letters = Vec::new();
        for chunk in ids.chunks(TAGS_PER_CALL) {
            letters.extend(self.letters(chunk).await?.into_iter().flatten());
        }
        Ok(letters)
    }

    /// The letters with these ids. A record that somebody else has written, and that is none, is
    /// left out.
    async fn letters(&mut self, ids: &[String]) -> Result<Vec<Option<DeadLetter>>, Error> {
        let records: Vec<Option<String>> = cmd("HMGET")
            .arg(&self.shared.keys.dead)
            .arg(ids)
            .query_async(&mut self.connection)
            .await
            .map_err(|error| broker_error(&error))?;
        let read = |record: Option<String>| DeadLetter::from_json(&record?).ok();
        Ok(records.into_iter().map(read).collect())
    }

    pub(super) async fn replay_letters(&mut self, ids: &[String]) -> Result<u64, Error> {
        let mut replayed = 0;
        for chunk in ids.chunks(TAGS_PER_CALL) {
            let letters: Vec<DeadLetter> =
                self.letters(chunk).await?.into_iter().flatten().collect();
            if letters.is_empty() {
                continue;
            }
            let mut call = REPLAY.prepare_invoke();
            call.key(&self.shared.keys.dead)
                .key(&self.shared.keys.dead_index);
            for letter in &letters {
                let (item, priority) = replayed_item(&letter.message);
                call.key(self.shared.keys.list_for_priority(&letter.queue, priority))
                    .arg(&letter.id)
                    .arg(&item[..]);
            }
            let count: u64 = call
                .invoke_async(&mut self.connection)
                .await
                .map_err(|error| broker_error(&error))?;
            replayed += count;
        }
        Ok(replayed)
    }

    pub(super) async fn forget_letters(&mut self, ids: &[String]) -> Result<u64, Error> {
        let mut forgotten = 0;
        for chunk in ids.chunks(TAGS_PER_CALL) {
            let mut forget = pipe();
            forget.atomic();
            forget.hdel(&self.shared.keys.dead, chunk);
            forget.zrem(&self.shared.keys.dead_index, chunk).ignore();
            let (count,): (u64,) = forget
                .query_async(&mut self.connection)
                .await
                .map_err(|error| broker_error(&error))?;
            forgotten += count;
        }
        Ok(forgotten)
    }
}
