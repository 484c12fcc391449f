//! One session over any database: turns, tags, and what this worker holds.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use celeriac_core::broker::{
    Delayed, Delivery, DeliveryTag, Error, Fate, Maintained, Session, Settlement, Unreadable, Want,
};
use celeriac_core::dead_letter::{Bounds, DeadLetter};
use celeriac_core::queue::Queue;
use celeriac_core::revokes::KeptRevokes;
use celeriac_protocol::{Message, envelope};
use jiff::Timestamp;

use super::Shared;
use super::dead_letters;
use super::lease;
use super::store::{Claims, DelayedRow, Replay, Row, Sent, Store};
use super::turns::Turns;

/// The most messages to look through at once for those that can run.
const MOST_AT_ONCE: usize = 256;
/// The most ids to name in one statement.
const IDS_AT_ONCE: usize = 500;

pub(super) struct SqlSession {
    shared: Arc<Shared>,
    store: Box<dyn Store>,
    turns: Turns,
}

impl SqlSession {
    pub(super) fn new(shared: Arc<Shared>, store: Box<dyn Store>) -> Self {
        Self {
            shared,
            store,
            turns: Turns::default(),
        }
    }

    /// Compares what this worker holds in the database with what it knows of. Gives back what
    /// was claimed by a call whose answer never came, and answers with what is held no longer.
    pub(super) async fn reconcile(&mut self) -> Result<Vec<DeliveryTag>, Error> {
        let held = self.store.held().await?;
        let (unknown, lost): (Vec<u64>, Vec<u64>) = {
            let claimed = self.shared.claimed();
            (
                held.difference(&claimed).copied().collect(),
                claimed.difference(&held).copied().collect(),
            )
        };
        self.release(&unknown).await?;
        Ok(lost.into_iter().map(DeliveryTag).collect())
    }

    async fn release(&mut self, ids: &[u64]) -> Result<(), Error> {
        if ids.is_empty() {
            return Ok(());
        }
        let settlements: Vec<Settlement> = ids
            .iter()
            .map(|&id| Settlement {
                tag: DeliveryTag(id),
                fate: Fate::Release,
            })
            .collect();
        self.store
            .exchange(&settlements, &Claims::default())
            .await?;
        Ok(())
    }

    /// Settles, and claims until the wish is fulfilled or nothing waits.
    async fn settle_and_claim(
        &mut self,
        settlements: &[Settlement],
        want: Want,
        deliveries: &mut Vec<Delivery>,
    ) -> Result<(), Error> {
        self.turns.begin();
        let mut runnable = want.runnable;
        let mut settlements = Some(settlements);
        let mut at_once = runnable;
        loop {
            let count = at_once.min(want.total - deliveries.len());
            let claims = if runnable == 0 {
                Claims::default()
            } else {
                self.turns.divide(count)
            };
            let settling = settlements.take().unwrap_or_default();
            if settling.is_empty() && claims.limit == 0 {
                return Ok(());
            }
            let rows = self.store.exchange(settling, &claims).await?;
            for settlement in settling {
                self.shared.claimed().remove(&settlement.tag.0);
            }
            let names: Vec<_> = rows.iter().map(|row| self.turns.name(row.queue)).collect();
            self.turns.took(&claims, &rows);
            let present = jiff::Timestamp::now();
            let before = runnable;
            let mut surplus = Vec::new();
            for (row, name) in rows.into_iter().zip(names) {
                let id = row.id as u64;
                match name {
                    Some(name) if runnable > 0 => {
                        self.shared.claimed().insert(id);
                        let delivery = delivery(row, name);
                        if !is_held(&delivery, present) {
                            runnable -= 1;
                        }
                        deliveries.push(delivery);
                    }
                    _ => surplus.push(id),
                }
            }
            self.release(&surplus).await?;
            // Where all have an ETA, more are looked through at once; what is too much goes back.
            at_once = if runnable == before {
                (at_once * 2).clamp(runnable, MOST_AT_ONCE.max(runnable))
            } else {
                runnable
            };
        }
    }
}

#[async_trait]
impl Session for SqlSession {
    async fn declare(&mut self, queue: &Queue) -> Result<(), Error> {
        self.store.queue_id(&queue.name).await?;
        Ok(())
    }

    async fn subscribe(&mut self, queue: &Queue) -> Result<(), Error> {
        if !self.turns.contains(&queue.name) {
            let id = self.store.queue_id(&queue.name).await?;
            self.turns.add(id, &queue.name);
        }
        Ok(())
    }

    async fn cancel(&mut self, queue: &str) -> Result<(), Error> {
        self.turns.remove(queue);
        Ok(())
    }

    async fn exchange(
        &mut self,
        settlements: &[Settlement],
        want: Want,
    ) -> Result<Vec<Delivery>, Error> {
        let mut deliveries = Vec::new();
        match self
            .settle_and_claim(settlements, want, &mut deliveries)
            .await
        {
            // What was claimed before is this worker's; the next call meets the error again.
            Err(error) if deliveries.is_empty() => Err(error),
            _ => Ok(deliveries),
        }
    }

    async fn wait(&mut self) -> Result<(), Error> {
        self.store.wait().await
    }

    async fn maintain(&mut self) -> Result<Maintained, Error> {
        let beat = self.store.beat().await?;
        let mut lost = Vec::new();
        let known = self.shared.claimed().len() as u64;
        if beat.held != known {
            lost = self.reconcile().await?;
            let mut claimed = self.shared.claimed();
            for tag in &lost {
                claimed.remove(&tag.0);
            }
        }
        if beat.restored > 0 {
            tracing::warn!(
                target: "celeriac.broker",
                "Restored {} messages of a worker that is gone.",
                beat.restored
            );
        }
        let moved = self.store.move_due().await?;
        Ok(Maintained {
            restored: beat.restored + moved.count,
            next: moved.next.unwrap_or(lease::BEAT).min(lease::BEAT),
            lost,
            leased: Some(lease::DEAD_AFTER),
        })
    }

    async fn purge(&mut self, queue: &str) -> Result<u64, Error> {
        self.store.purge(queue).await
    }

    async fn size(&mut self, queue: &str) -> Result<u64, Error> {
        self.store.size(queue).await
    }

    async fn publish(&mut self, queue: &str, message: &Message) -> Result<(), Error> {
        let payload = envelope::encode(message, &uuid::Uuid::new_v4().to_string());
        let queue = queue.to_owned();
        self.store.publish(vec![Sent { queue, payload }]).await
    }

    async fn delayed(&mut self, count: usize) -> Result<Vec<Delayed>, Error> {
        let rows = self
            .store
            .first_delayed(&self.turns.queues(), count)
            .await?;
        let delayed = rows.into_iter().filter_map(|row| {
            let queue = self.turns.name(row.queue)?;
            delayed(&row, queue)
        });
        Ok(delayed.collect())
    }

    async fn return_delayed(&mut self) -> Result<u64, Error> {
        self.store.return_delayed().await
    }

    async fn bury(&mut self, letter: &DeadLetter, bounds: Bounds) -> Result<(), Error> {
        let limits = dead_letters::limits(letter, bounds);
        self.store.bury(&dead_letters::record(letter), limits).await
    }

    async fn dead_letters(&mut self) -> Result<Vec<DeadLetter>, Error> {
        Ok(dead_letters::letters(&self.store.records().await?))
    }

    async fn replay(&mut self, ids: &[String]) -> Result<u64, Error> {
        let mut replayed = 0;
        for chunk in ids.chunks(IDS_AT_ONCE) {
            let records = self.store.records_of(&keys(chunk)).await?;
            let letters = dead_letters::letters(&records);
            let replays: Vec<Replay> = letters.into_iter().map(dead_letters::replay).collect();
            replayed += self.store.replay(&replays).await?;
        }
        Ok(replayed)
    }

    async fn forget(&mut self, ids: &[String]) -> Result<u64, Error> {
        let mut forgotten = 0;
        for chunk in ids.chunks(IDS_AT_ONCE) {
            forgotten += self.store.forget(&keys(chunk)).await?;
        }
        Ok(forgotten)
    }

    async fn revokes(&mut self, since: f64) -> Result<KeptRevokes, Error> {
        let mut kept = KeptRevokes::default();
        for row in self.store.revoked(since).await? {
            let members = match &*row.kind {
                b"id" => &mut kept.ids,
                b"header" => &mut kept.headers,
                _ => continue,
            };
            members.push(String::from_utf8_lossy(&row.member).into_owned());
        }
        Ok(kept)
    }

    async fn close(mut self: Box<Self>) -> Result<(), Error> {
        self.store.leave().await
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

fn keys(ids: &[String]) -> Vec<String> {
    ids.iter().map(|id| dead_letters::key(id)).collect()
}

/// A row of the delay store; nothing where it is no message.
fn delayed(row: &DelayedRow, queue: Arc<str>) -> Option<Delayed> {
    Some(Delayed {
        until: Timestamp::from_microsecond(row.due).ok()?,
        queue,
        message: envelope::decode(&row.payload).ok()?,
    })
}

fn delivery(row: Row, queue: Arc<str>) -> Delivery {
    let raw: Bytes = row.payload;
    let message = envelope::decode(&raw).map_err(|error| Unreadable {
        reason: error.to_string(),
        raw,
    });
    Delivery {
        tag: DeliveryTag(row.id as u64),
        queue,
        message,
    }
}
