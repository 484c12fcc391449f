//! What a server has forgotten: one that was restarted with an older state, or a replica that was
//! promoted before it had heard of everything. And a master that was replaced takes claims and
//! acknowledgements for a moment that nobody will ever know of.
//!
//! The worker knows what it has and what it has done, and says so again.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use celeriac_core::broker::Error;
use redis::cmd;

use super::Claim;
use super::error::broker_error;
use super::scripts::{RECLAIM, TAGS_PER_CALL};
use super::session::RedisSession;

/// How far from the end of a list a message that was claimed is looked for: it was taken there.
const REACH: usize = 100_000;
/// How many messages at the end of a list are read at once.
const PAGE: usize = 500;
/// How many acknowledgements are remembered: more than a server is likely to forget.
const SETTLED: usize = 10_000;

/// The messages that were acknowledged last, at most [`SETTLED`].
#[derive(Default)]
pub(super) struct Settled {
    messages: VecDeque<Message>,
    hashing: RandomState,
}

/// An acknowledged message.
struct Message {
    /// The number of its tag.
    number: u64,
    /// The list that it was taken from.
    list: Arc<str>,
    /// Stands for its bytes, which hold a tag of its publisher's own.
    hash: u64,
}

impl Settled {
    pub(super) fn add(&mut self, number: u64, claim: &Claim) {
        if self.messages.len() == SETTLED {
            self.messages.pop_front();
        }
        self.messages.push_back(Message {
            number,
            list: Arc::clone(&claim.list),
            hash: self.hashing.hash_one(&claim.item[..]),
        });
    }

    fn numbers(&self) -> HashSet<u64> {
        self.messages.iter().map(|message| message.number).collect()
    }

    /// What was taken from each list.
    fn lists(&self) -> HashMap<Arc<str>, HashSet<u64>> {
        let mut lists: HashMap<_, HashSet<u64>> = HashMap::new();
        for message in &self.messages {
            let hashes = lists.entry(Arc::clone(&message.list)).or_default();
            hashes.insert(message.hash);
        }
        lists
    }

    fn hash(&self, item: &[u8]) -> u64 {
        self.hashing.hash_one(item)
    }
}

impl RedisSession {
    /// Claims anew what this worker has and the server has forgotten. What waits no longer is
    /// another's by now: [`RedisSession::maintain_leases`] tells of it.
    pub(super) async fn reclaim(&mut self) -> Result<(), Error> {
        let mut numbers: Vec<u64> = self.shared.claimed().keys().copied().collect();
        numbers.sort_unstable();
        for chunk in numbers.chunks(TAGS_PER_CALL) {
            let mut scores = cmd("ZMSCORE");
            scores.arg(&self.shared.keys.unacked_index);
            for number in chunk {
                scores.arg(self.shared.tag(*number));
            }
            let scores: Vec<Option<f64>> = self.query(&scores).await?;
            let missing: Vec<(u64, Claim)> = {
                let claimed = self.shared.claimed();
                let missing = chunk
                    .iter()
                    .zip(scores)
                    .filter(|(_, score)| score.is_none());
                missing
                    .filter_map(|(number, _)| Some((*number, claimed.get(number)?.clone())))
                    .collect()
            };
            if missing.is_empty() {
                continue;
            }
            let mut call = RECLAIM.prepare_invoke();
            call.key(&self.shared.keys.unacked)
                .key(&self.shared.keys.unacked_index)
                .arg(REACH);
            for (number, claim) in &missing {
                call.key(&*claim.list)
                    .arg(self.shared.tag(*number))
                    .arg(&claim.item[..])
                    .arg(&*claim.suffix);
            }
            let count: usize = call
                .invoke_async(&mut self.connection)
                .await
                .map_err(|error| broker_error(&error))?;
            tracing::warn!(
                target: "celeriac.broker",
                "The server has forgotten {} messages of this worker; {count} of them waited and \
                 are its own again.",
                missing.len()
            );
        }
        Ok(())
    }

    /// Removes those of this worker's claims that it has acknowledged before.
    pub(super) async fn settle_again(
        &mut self,
        claims: &mut Vec<(String, Vec<u8>)>,
    ) -> Result<(), Error> {
        let known = self.shared.settled().numbers();
        let mut settled = Vec::new();
        claims.retain(|(tag, _)| {
            let number = self.shared.own_number(tag);
            let is_settled = number.is_some_and(|number| known.contains(&number));
            if is_settled {
                settled.push(tag.clone());
            }
            !is_settled
        });
        for chunk in settled.chunks(TAGS_PER_CALL) {
            redis::pipe()
                .atomic()
                .hdel(&self.shared.keys.unacked, chunk)
                .zrem(&self.shared.keys.unacked_index, chunk)
                .query_async::<()>(&mut self.connection)
                .await
                .map_err(|error| broker_error(&error))?;
        }
        Ok(())
    }

    /// Removes messages that wait although this worker has acknowledged them before. They were
    /// taken from the ends of their lists, and so are looked for there.
    pub(super) async fn settle_waiting(&mut self) -> Result<(), Error> {
        let lists = self.shared.settled().lists();
        let mut removed = 0_u64;
        for (list, hashes) in lists {
            // Others may have taken as many from there.
            let depth = 2 * hashes.len() + PAGE;
            let mut end = -1_i64;
            while end > -(depth as i64) {
                let page: Vec<Vec<u8>> = self
                    .query(
                        cmd("LRANGE")
                            .arg(&*list)
                            .arg(end + 1 - PAGE as i64)
                            .arg(end),
                    )
                    .await?;
                let is_known = |item: &Vec<u8>| {
                    let hash = self.shared.settled().hash(item);
                    hashes.contains(&hash)
                };
                let known: Vec<&Vec<u8>> = page.iter().filter(|item| is_known(item)).collect();
                for item in &known {
                    let mut remove = cmd("LREM");
                    remove.arg(&*list).arg(-1).arg(item.as_slice());
                    removed += self.query::<u64>(&remove).await?;
                }
                if page.len() < PAGE {
                    break;
                }
                // What was removed is missing before the next page.
                end -= (page.len() - known.len()) as i64;
            }
        }
        if removed > 0 {
            tracing::warn!(
                target: "celeriac.broker",
                "The server has forgotten that {removed} messages were acknowledged: they are \
                 removed, their tasks have run."
            );
        }
        Ok(())
    }
}
