//! The delay store: kombu's `unacked`, with scores that lie ahead.
//!
//! A message with a moment to wait for stands there as a claim whose visibility timeout passes in
//! that moment. Workers of celeriac move it to its list by the server's clock, each as soon as it
//! looks, in one script: none need be elected. A worker of Celery's takes it for abandoned and
//! restores it, later by as long as its looks lie apart, so that nothing is lost to a fleet that
//! has gone back to Celery.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use celeriac_core::broker::{Delay, Delayed, DeliveryTag, Error};
use celeriac_protocol::{Marks, envelope};
use jiff::Timestamp;
use redis::{cmd, pipe};

use super::Claim;
use super::error::broker_error;
use super::scripts::{DELAY, DUE, GIVE_BACK, TAGS_PER_CALL};
use super::session::RedisSession;

/// The beginning of tags in the store; `due.lua` knows it as well.
const PREFIX: &str = "celeriac-delayed:";
/// How far into the store is looked for what belongs to the worker's own queues: leases are not
/// renewed meanwhile.
const MOST_LOOKED_AT: usize = 20 * TAGS_PER_CALL;
/// The longest value that is listed, in bytes.
const LONGEST_LISTED: usize = 64 * 1024;

impl RedisSession {
    /// Puts claimed messages into the delay store, or behind those that wait.
    pub(super) async fn delay(&mut self, delays: &[(DeliveryTag, Delay)]) -> Result<(), Error> {
        let claims: Vec<(u64, Delay, Claim)> = {
            let claimed = self.shared.claimed();
            let with_claim = delays.iter().filter_map(|(tag, delay)| {
                let claim = claimed.get(&tag.0)?;
                Some((tag.0, *delay, claim.clone()))
            });
            with_claim.collect()
        };
        for chunk in claims.chunks(TAGS_PER_CALL) {
            let (later, at_once): (Vec<_>, Vec<_>) = chunk
                .iter()
                .partition(|(_, delay, _)| delay.until.is_some());
            self.store(&later).await?;
            self.put_last(&at_once).await?;
            self.forget_claims(chunk.iter().map(|(number, ..)| *number));
        }
        Ok(())
    }

    async fn store(&mut self, claims: &[&(u64, Delay, Claim)]) -> Result<(), Error> {
        if claims.is_empty() {
            return Ok(());
        }
        let shared = &self.shared;
        let mut call = DELAY.prepare_invoke();
        call.key(&shared.keys.unacked)
            .key(&shared.keys.unacked_index)
            .arg(shared.visibility_timeout.as_secs_f64());
        for (number, delay, claim) in claims {
            let stored = format!(
                "{PREFIX}{}-{number}:{}:{}",
                shared.name,
                claim.suffix.len(),
                claim.list
            );
            let moment = delay.until.unwrap_or_default().as_microsecond() as f64 / 1e6;
            let item = marked(&claim.item, delay.marks);
            let value = [b"[", &item[..], claim.suffix.as_bytes()].concat();
            call.arg(shared.tag(*number))
                .arg(stored)
                .arg(format!("{moment:.6}"))
                .arg(value);
        }
        let _: u64 = call
            .invoke_async(&mut self.connection)
            .await
            .map_err(|error| broker_error(&error))?;
        Ok(())
    }

    async fn put_last(&mut self, claims: &[&(u64, Delay, Claim)]) -> Result<(), Error> {
        if claims.is_empty() {
            return Ok(());
        }
        let mut call = GIVE_BACK.prepare_invoke();
        call.key(&self.shared.keys.unacked)
            .key(&self.shared.keys.unacked_index)
            .arg("LPUSH");
        for (number, delay, claim) in claims {
            call.key(&*claim.list)
                .arg(self.shared.tag(*number))
                .arg(claim.suffix.len())
                .arg(&marked(&claim.item, delay.marks)[..]);
        }
        let _: u64 = call
            .invoke_async(&mut self.connection)
            .await
            .map_err(|error| broker_error(&error))?;
        Ok(())
    }

    /// Moves what is due; answers with how many messages that were, and when to look again.
    pub(super) async fn move_due(&mut self) -> Result<(u64, Option<Duration>), Error> {
        let mut call = DUE.prepare_invoke();
        call.key(&self.shared.keys.unacked)
            .key(&self.shared.keys.unacked_index)
            .arg(self.shared.visibility_timeout.as_secs_f64())
            .arg(TAGS_PER_CALL);
        let (moved, wait): (u64, i64) = call
            .invoke_async(&mut self.connection)
            .await
            .map_err(|error| broker_error(&error))?;
        Ok((moved, u64::try_from(wait).ok().map(Duration::from_millis)))
    }

    /// The first messages of the delay store that belong to queues which are consumed.
    pub(super) async fn first_delayed(&mut self, count: usize) -> Result<Vec<Delayed>, Error> {
        let mut delayed = Vec::new();
        let mut offset = 0;
        while delayed.len() < count && offset < MOST_LOOKED_AT {
            let page: Vec<(String, f64)> = cmd("ZRANGE")
                .arg(&self.shared.keys.unacked_index)
                .arg(offset)
                .arg(offset + TAGS_PER_CALL - 1)
                .arg("WITHSCORES")
                .query_async(&mut self.connection)
                .await
                .map_err(|error| broker_error(&error))?;
            if page.is_empty() {
                break;
            }
            offset += page.len();
            delayed.extend(self.read_delayed(page).await?);
        }
        delayed.truncate(count);
        Ok(delayed)
    }

    /// Puts all messages of the delay store behind those that wait, in the order of their moments.
    pub(super) async fn return_all(&mut self) -> Result<u64, Error> {
        // No more than stand there now: who consumes them may delay them again.
        let mut left: usize = cmd("ZCARD")
            .arg(&self.shared.keys.unacked_index)
            .query_async(&mut self.connection)
            .await
            .map_err(|error| broker_error(&error))?;
        let (mut offset, mut returned) = (0, 0);
        while left > 0 {
            let page: Vec<String> = cmd("ZRANGE")
                .arg(&self.shared.keys.unacked_index)
                .arg(offset)
                .arg(offset + left.min(TAGS_PER_CALL) - 1)
                .query_async(&mut self.connection)
                .await
                .map_err(|error| broker_error(&error))?;
            if page.is_empty() {
                break;
            }
            let count = self.return_some(&page).await?;
            left -= page.len();
            // Others' tags stand here as well, and stay.
            offset += page.len() - count;
            returned += count as u64;
        }
        Ok(returned)
    }

    async fn return_some(&mut self, tags: &[String]) -> Result<usize, Error> {
        let mut call = GIVE_BACK.prepare_invoke();
        call.key(&self.shared.keys.unacked)
            .key(&self.shared.keys.unacked_index)
            .arg("LPUSH");
        let mut is_any = false;
        for tag in tags {
            if let Some((suffix, list)) = route(tag) {
                call.key(list).arg(tag).arg(suffix).arg("");
                is_any = true;
            }
        }
        if !is_any {
            return Ok(0);
        }
        call.invoke_async(&mut self.connection)
            .await
            .map_err(|error| broker_error(&error))
    }

    async fn read_delayed(&mut self, page: Vec<(String, f64)>) -> Result<Vec<Delayed>, Error> {
        let mut get = pipe();
        let mut known = Vec::new();
        for (tag, score) in page {
            let Some((suffix, list)) = route(&tag) else {
                continue;
            };
            if let Some(queue) = self.queue_of(list) {
                let moment = score + self.shared.visibility_timeout.as_secs_f64();
                known.push((tag, moment, suffix, queue));
            }
        }
        if known.is_empty() {
            return Ok(Vec::new());
        }
        let mut measure = pipe();
        for (tag, ..) in &known {
            measure
                .cmd("HSTRLEN")
                .arg(&self.shared.keys.unacked)
                .arg(tag);
        }
        let lengths: Vec<usize> = measure
            .query_async(&mut self.connection)
            .await
            .map_err(|error| broker_error(&error))?;
        let mut lengths = lengths.into_iter();
        known.retain(|_| {
            lengths
                .next()
                .is_some_and(|length| length <= LONGEST_LISTED)
        });
        for (tag, ..) in &known {
            get.hget(&self.shared.keys.unacked, tag);
        }
        if known.is_empty() {
            return Ok(Vec::new());
        }
        let values: Vec<Option<Vec<u8>>> = get
            .query_async(&mut self.connection)
            .await
            .map_err(|error| broker_error(&error))?;
        let read = known.into_iter().zip(values);
        let read = read.filter_map(|((_, moment, suffix, queue), value)| {
            let value = Bytes::from(value?);
            let end = value.len().checked_sub(suffix).filter(|end| *end > 0)?;
            Some(Delayed {
                until: Timestamp::from_microsecond((moment * 1e6) as i64).ok()?,
                queue,
                message: envelope::decode(&value.slice(1..end)).ok()?,
            })
        });
        Ok(read.collect())
    }
}

/// A message with the marks that it is to have. What is no text was never an envelope, and is kept
/// as it came.
pub(super) fn marked(item: &Bytes, marks: Marks) -> Bytes {
    let marked = std::str::from_utf8(item).map(|text| envelope::with_marks(text, marks));
    match marked {
        Ok(Cow::Owned(marked)) => Bytes::from(marked),
        _ => item.clone(),
    }
}

/// Whether a tag is one of the delay store.
pub(super) fn is_delayed(tag: &str) -> bool {
    route(tag).is_some()
}

/// What a tag of the delay store tells: how much of its value's end is not the message, and the list
/// that the message goes to.
fn route(tag: &str) -> Option<(usize, &str)> {
    let (_, rest) = tag.strip_prefix(PREFIX)?.split_once(':')?;
    let (suffix, list) = rest.split_once(':')?;
    Some((suffix.parse().ok()?, list))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_tells_its_route() {
        let tag = "celeriac-delayed:celeriac-0a-7:16:prefix:queue:9";
        assert_eq!(route(tag), Some((16, "prefix:queue:9")));
        assert!(!is_delayed("celeriac-0a:7"));
        assert!(!is_delayed("celeriac-delayed:7"));
    }
}
