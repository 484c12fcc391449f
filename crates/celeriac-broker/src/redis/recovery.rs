//! Leases and what dead workers left behind.
//!
//! A claim is leased: its score in `unacked_index`, the moment of delivery to kombu, is renewed
//! while its worker lives. kombu's workers look at nothing else before they restore a message, so
//! that the lease holds against them too.

use std::time::Duration;

use celeriac_core::broker::{DeliveryTag, Error, Maintained};
use celeriac_protocol::{envelope, json};
use redis::{Value, cmd};
use tokio::time::Instant;

use super::delays::is_delayed;
use super::error::broker_error;
use super::scripts::{GIVE_BACK, OVERDUE, RENEW, TAGS_PER_CALL};
use super::session::RedisSession;
use super::{BEAT, DEAD_AFTER, PULSE_GAP};

/// The longest time between two renewals: other workers may have a shorter visibility timeout
/// than this one, and the shortest counts.
const RENEWAL: Duration = Duration::from_secs(10);
/// Between two looks for dead workers.
const RECOVERY: Duration = Duration::from_secs(1);
/// How many messages that lead nowhere are told of.
const STRAYS: usize = 1000;
/// How long a call may still be on its way to the server after its connection was lost.
const STRAGGLER: Duration = Duration::from_secs(5);

/// What is to be restored: a claim and the message as it goes back.
struct Abandoned {
    tag: String,
    item: Vec<u8>,
    lists: Vec<String>,
}

impl RedisSession {
    /// Gives the sign of life, renews leases and restores, each when it is due.
    pub(super) async fn maintain_leases(&mut self) -> Result<Maintained, Error> {
        let now = Instant::now();
        let mut maintained = Maintained {
            next: BEAT,
            // kombu's workers look at the renewal, celeriac's at the sign of life.
            leased: Some(DEAD_AFTER.min(self.shared.visibility_timeout / 3 * 2)),
            ..Maintained::default()
        };
        let mut tags: Vec<u64> = Vec::new();
        if now >= self.next_renewal {
            tags = self.shared.claimed().keys().copied().collect();
            self.next_renewal = now + (self.shared.visibility_timeout / 3).min(RENEWAL);
        }
        maintained.next = maintained
            .next
            .min(self.next_renewal.saturating_duration_since(now));
        maintained.lost = self.renew(&tags).await?;
        if now >= self.next_recovery {
            self.next_recovery = now + RECOVERY.min(self.shared.visibility_timeout / 3);
            maintained.restored = self.restore_abandoned().await?;
        }
        let (moved, next) = self.move_due().await?;
        let waiting = self.waiting();
        let fanout = self.fanout_comes_due();
        maintained.restored += moved + (waiting - self.waiting()) as u64;
        for next in [next, fanout].into_iter().flatten() {
            maintained.next = maintained.next.min(next);
        }
        if self.recheck_claims.is_some_and(|at| now >= at) {
            self.recheck_claims = None;
            self.restore_own_orphans().await?;
        }
        Ok(maintained)
    }

    /// Gives a sign of life and renews leases; answers with those that are gone.
    async fn renew(&mut self, numbers: &[u64]) -> Result<Vec<DeliveryTag>, Error> {
        let mut lost = Vec::new();
        let mut chunks = numbers.chunks(TAGS_PER_CALL);
        // The sign of life is given even where there is nothing to renew.
        let mut chunk = chunks.next().unwrap_or_default();
        loop {
            let mut call = RENEW.prepare_invoke();
            call.key(&self.shared.keys.unacked_index)
                .key(&self.shared.keys.workers)
                .key(&self.shared.keys.pulse);
            call.arg(&self.shared.name).arg(PULSE_GAP.as_secs_f64());
            for number in chunk {
                call.arg(self.shared.tag(*number));
            }
            let positions: Vec<usize> = call
                .invoke_async(&mut self.connection)
                .await
                .map_err(|error| broker_error(&error))?;
            lost.extend(
                positions
                    .into_iter()
                    .filter_map(|at| chunk.get(at).copied()),
            );
            match chunks.next() {
                Some(next) => chunk = next,
                None => break,
            }
        }
        // What was settled since the tags were listed is not lost.
        let claimed = self.shared.claimed();
        lost.retain(|number| claimed.contains_key(number));
        drop(claimed);
        self.forget_claims(lost.iter().copied());
        Ok(lost.into_iter().map(DeliveryTag).collect())
    }

    /// Restores what dead workers hold, celeriac's and kombu's.
    async fn restore_abandoned(&mut self) -> Result<u64, Error> {
        let mut call = OVERDUE.prepare_invoke();
        call.key(&self.shared.keys.unacked_index)
            .key(&self.shared.keys.workers)
            .key(&self.shared.keys.pulse);
        call.arg(DEAD_AFTER.as_secs_f64())
            .arg(self.shared.visibility_timeout.as_secs_f64())
            .arg(TAGS_PER_CALL);
        let (workers, overdue): (Vec<String>, Vec<String>) = call
            .invoke_async(&mut self.connection)
            .await
            .map_err(|error| broker_error(&error))?;

        let mut restored = 0;
        let shared = std::sync::Arc::clone(&self.shared);
        for worker in workers.iter().filter(|worker| **worker != shared.name) {
            restored += self.restore_worker(worker).await?;
            let _: () = cmd("ZREM")
                .arg(&shared.keys.workers)
                .arg(worker)
                .query_async(&mut self.connection)
                .await
                .map_err(|error| broker_error(&error))?;
        }
        // A tag of this worker is overdue when it could not renew for long: it renews next.
        let overdue: Vec<String> = overdue
            .into_iter()
            .filter(|tag| self.shared.own_number(tag).is_none() && !is_delayed(tag))
            .collect();
        if !overdue.is_empty() {
            let mut get = redis::pipe();
            for tag in &overdue {
                get.hget(&self.shared.keys.unacked, tag);
            }
            let values: Vec<Option<Vec<u8>>> = get
                .query_async(&mut self.connection)
                .await
                .map_err(|error| broker_error(&error))?;
            let (claims, empty): (Vec<_>, Vec<_>) = overdue
                .into_iter()
                .zip(values)
                .partition(|(_, value)| value.is_some());
            if !empty.is_empty() {
                // A tag without a message is of no use to anybody, as kombu sees it too.
                let mut remove = cmd("ZREM");
                remove.arg(&self.shared.keys.unacked_index);
                for (tag, _) in empty {
                    remove.arg(tag);
                }
                let _: () = remove
                    .query_async(&mut self.connection)
                    .await
                    .map_err(|error| broker_error(&error))?;
            }
            let claims = claims
                .into_iter()
                .map(|(tag, value)| (tag, value.unwrap_or_default()));
            restored += self.restore(claims.collect(), Redelivered::Yes).await?;
        }
        Ok(restored)
    }

    /// Restores everything that a dead worker of celeriac holds.
    async fn restore_worker(&mut self, worker: &str) -> Result<u64, Error> {
        let claims = self.claims_of(worker).await?;
        let count = self.restore(claims, Redelivered::AfterDeath).await?;
        tracing::warn!(
            target: "celeriac.broker",
            "Restored {count} messages of a worker that is gone ({worker})."
        );
        Ok(count)
    }

    /// After a connection was lost: gives back what was claimed by a call whose answer never came,
    /// once the server knows again what it may have forgotten.
    pub(super) async fn recover_own_claims(&mut self) -> Result<(), Error> {
        self.recheck_claims = Some(Instant::now() + STRAGGLER);
        self.reclaim().await?;
        if self.is_other_server {
            self.settle_waiting().await?;
        }
        self.restore_own_orphans().await
    }

    async fn restore_own_orphans(&mut self) -> Result<(), Error> {
        let worker = self.shared.name.clone();
        let mut claims = self.claims_of(&worker).await?;
        self.settle_again(&mut claims).await?;
        {
            let known = self.shared.claimed();
            claims.retain(|(tag, _)| {
                self.shared
                    .own_number(tag)
                    .is_some_and(|number| !known.contains_key(&number))
            });
        }
        self.restore(claims, Redelivered::No).await?;
        Ok(())
    }

    /// All claims of a worker, the newest first: each is put in front of the one before.
    async fn claims_of(&mut self, worker: &str) -> Result<Vec<(String, Vec<u8>)>, Error> {
        let mut claims = Vec::new();
        let mut cursor = 0_u64;
        loop {
            let mut scan = cmd("HSCAN");
            scan.arg(&self.shared.keys.unacked).arg(cursor);
            scan.arg("MATCH")
                .arg(format!("{worker}:*"))
                .arg("COUNT")
                .arg(1000);
            let (next, page): (u64, Vec<(String, Vec<u8>)>) = scan
                .query_async(&mut self.connection)
                .await
                .map_err(|error| broker_error(&error))?;
            claims.extend(page);
            if next == 0 {
                break;
            }
            cursor = next;
        }
        let number = |tag: &str| {
            tag.rsplit(':')
                .next()
                .and_then(|text| text.parse::<u64>().ok())
        };
        claims.sort_by_key(|(tag, _)| std::cmp::Reverse(number(tag)));
        claims.dedup_by(|a, b| a.0 == b.0);
        Ok(claims)
    }

    /// Puts claims back into their lists, to be consumed next.
    async fn restore(
        &mut self,
        claims: Vec<(String, Vec<u8>)>,
        redelivered: Redelivered,
    ) -> Result<u64, Error> {
        let mut abandoned = Vec::with_capacity(claims.len());
        for (tag, value) in claims {
            match self.route_back(tag, &value, redelivered).await? {
                Ok(found) => abandoned.push(found),
                Err(tag) => {
                    if self.is_new_stray(&tag) {
                        tracing::warn!(
                            target: "celeriac.broker",
                            "The unacknowledged message {tag} leads back to no queue: it is left \
                             where it is."
                        );
                    }
                }
            }
        }
        let mut restored = 0;
        for chunk in abandoned.chunks(TAGS_PER_CALL) {
            let mut call = GIVE_BACK.prepare_invoke();
            call.key(&self.shared.keys.unacked)
                .key(&self.shared.keys.unacked_index)
                .arg("RPUSH");
            for message in chunk {
                for list in &message.lists {
                    call.key(list)
                        .arg(&message.tag)
                        .arg(0)
                        .arg(message.item.as_slice());
                }
            }
            let count: u64 = call
                .invoke_async(&mut self.connection)
                .await
                .map_err(|error| broker_error(&error))?;
            restored += count;
        }
        Ok(restored)
    }

    /// Whether a tag that leads nowhere was not seen before.
    fn is_new_stray(&mut self, tag: &str) -> bool {
        self.strays.len() < STRAYS && self.strays.insert(tag.to_owned())
    }

    /// Reads a value of `unacked`: `[envelope, exchange, routing key]`. `Err` holds the tag of a
    /// message that leads nowhere.
    async fn route_back(
        &mut self,
        tag: String,
        value: &[u8],
        redelivered: Redelivered,
    ) -> Result<Result<Abandoned, String>, Error> {
        let parts = std::str::from_utf8(value)
            .ok()
            .and_then(|text| json::parse_array(text).ok());
        let Some([envelope, exchange, key]) = parts.as_deref() else {
            return Ok(self.route_of_rubbish(tag, value));
        };
        let text = |raw: &str| {
            json::as_str(raw)
                .map(std::borrow::Cow::into_owned)
                .unwrap_or_default()
        };
        let (exchange, key) = (text(exchange), text(key));
        let priority = envelope::decode(&bytes::Bytes::copy_from_slice(envelope.as_bytes()))
            .map_or(0, |message| message.priority());
        let queues = if exchange.is_empty() {
            vec![key]
        } else {
            self.bound(&exchange, &key).await?
        };
        let lists: Vec<String> = queues
            .iter()
            .filter(|queue| !queue.is_empty())
            .map(|queue| self.shared.keys.list_for_priority(queue, priority))
            .collect();
        if lists.is_empty() {
            return Ok(Err(tag));
        }
        let item = match redelivered {
            Redelivered::Yes => envelope::mark_redelivered(envelope).into_owned(),
            Redelivered::AfterDeath => envelope::after_death(envelope),
            Redelivered::No => (*envelope).to_owned(),
        };
        Ok(Ok(Abandoned {
            tag,
            item: item.into_bytes(),
            lists,
        }))
    }

    /// The route of something that is no message, which only celeriac's script can have put into
    /// `unacked`: its own ending is there.
    fn route_of_rubbish(&self, tag: String, value: &[u8]) -> Result<Abandoned, String> {
        let ending = br#", "", "#;
        let at = value
            .windows(ending.len())
            .rposition(|window| window == ending);
        let found = at.and_then(|at| {
            let queue = std::str::from_utf8(&value[at + ending.len()..])
                .ok()?
                .strip_suffix(']')?;
            Some((
                value.get(1..at)?.to_vec(),
                json::as_str(queue)?.into_owned(),
            ))
        });
        match found {
            Some((item, queue)) => Ok(Abandoned {
                tag,
                item,
                lists: vec![self.shared.keys.list(&queue, 0)],
            }),
            None => Err(tag),
        }
    }

    /// The queues that a routing key of an exchange leads to.
    async fn bound(&mut self, exchange: &str, key: &str) -> Result<Vec<String>, Error> {
        let members: Value = cmd("SMEMBERS")
            .arg(self.shared.keys.binding_table(exchange))
            .query_async(&mut self.connection)
            .await
            .map_err(|error| broker_error(&error))?;
        let members: Vec<String> = redis::from_redis_value(members).unwrap_or_default();
        let bound = members
            .iter()
            .filter_map(|member| self.shared.keys.bound_queue(member, key));
        Ok(bound.map(str::to_owned).collect())
    }
}

/// Whether restored messages are marked as delivered before.
#[derive(Clone, Copy)]
enum Redelivered {
    Yes,
    /// And as one that may have killed its worker.
    AfterDeath,
    No,
}
