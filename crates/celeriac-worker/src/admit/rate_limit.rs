//! Tasks that wait for their rate limit.
//!
//! As in Celery a limit is a task's own and this worker's own: a token bucket that holds one
//! token. Celery's counterpart: `celery.worker.consumer.consumer.Consumer.task_buckets`.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use bytestring::ByteString;
use celeriac_core::pool::RequestKey;
use celeriac_protocol::RateLimit;
use celeriac_protocol::rate::TokenBucket;

/// The buckets of all limited tasks.
#[derive(Debug, Default)]
pub struct Buckets {
    buckets: HashMap<ByteString, Bucket>,
    waiting: usize,
}

#[derive(Debug)]
struct Bucket {
    limit: RateLimit,
    tokens: TokenBucket,
    /// When the last of those comes back that were sent away.
    line: Duration,
    waiting: VecDeque<RequestKey>,
}

impl Bucket {
    fn new(limit: RateLimit, waiting: VecDeque<RequestKey>, now: Duration) -> Self {
        Self {
            limit,
            tokens: TokenBucket::new(limit, now),
            line: Duration::ZERO,
            waiting,
        }
    }
}

impl Buckets {
    /// Full buckets for the given limits.
    pub fn new(limits: impl IntoIterator<Item = (ByteString, RateLimit)>, now: Duration) -> Self {
        let bucket = |(task, limit)| (task, Bucket::new(limit, VecDeque::new(), now));
        Self {
            buckets: limits.into_iter().map(bucket).collect(),
            waiting: 0,
        }
    }

    /// Changes the limit of a task, with a full bucket; answers with the requests that may pass now
    /// because there is no limit any more.
    pub fn set(
        &mut self,
        task: &ByteString,
        limit: Option<RateLimit>,
        now: Duration,
    ) -> Vec<RequestKey> {
        let waiting = self
            .buckets
            .remove(task)
            .map(|bucket| bucket.waiting)
            .unwrap_or_default();
        let Some(limit) = limit else {
            self.waiting -= waiting.len();
            return waiting.into();
        };
        let bucket = Bucket::new(limit, waiting, now);
        self.buckets.insert(task.clone(), bucket);
        Vec::new()
    }

    /// Whether a request may pass now. If not, it waits here, behind those before it.
    pub fn passes(&mut self, task: &ByteString, key: RequestKey, now: Duration) -> bool {
        let Some(bucket) = self.buckets.get_mut(task) else {
            return true;
        };
        if bucket.waiting.is_empty() && bucket.tokens.try_take(now) {
            return true;
        }
        bucket.waiting.push_back(key);
        self.waiting += 1;
        false
    }

    /// Has a request come back later for which there is no room here: after how long. Each comes an
    /// interval after the one before, the first when half of those that wait have passed. `None` where
    /// there is no limit, or nobody waits for it.
    pub fn line_up(&mut self, task: &ByteString, now: Duration) -> Option<Duration> {
        let bucket = self.buckets.get_mut(task)?;
        if bucket.waiting.is_empty() {
            return None;
        }
        let interval = bucket.limit.interval();
        let ahead = u32::try_from(bucket.waiting.len() / 2).unwrap_or(u32::MAX);
        let first = now.saturating_add(interval.saturating_mul(ahead));
        bucket.line = bucket.line.max(first).saturating_add(interval);
        Some(bucket.line.saturating_sub(now))
    }

    /// Takes the requests that may pass now.
    pub fn take_due(&mut self, now: Duration) -> Vec<RequestKey> {
        let mut due = Vec::new();
        for bucket in self.buckets.values_mut() {
            while !bucket.waiting.is_empty() && bucket.tokens.try_take(now) {
                due.extend(bucket.waiting.pop_front());
            }
        }
        self.waiting -= due.len();
        due
    }

    /// How long until the next request may pass.
    pub fn next(&mut self, now: Duration) -> Option<Duration> {
        let waiting = self
            .buckets
            .values_mut()
            .filter(|bucket| !bucket.waiting.is_empty());
        waiting.map(|bucket| bucket.tokens.wait(now)).min()
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    /// Forgets a request.
    pub fn remove(&mut self, task: &ByteString, key: RequestKey) {
        if let Some(bucket) = self.buckets.get_mut(task) {
            let before = bucket.waiting.len();
            bucket.waiting.retain(|waiting| *waiting != key);
            self.waiting -= before - bucket.waiting.len();
        }
    }

    /// Takes all, in the order of their coming.
    pub fn take_all(&mut self) -> Vec<RequestKey> {
        self.waiting = 0;
        let mut all: Vec<RequestKey> = self
            .buckets
            .values_mut()
            .flat_map(|bucket| bucket.waiting.drain(..))
            .collect();
        all.sort_unstable();
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_pass_in_turn_at_the_rate_of_their_task() {
        let at = Duration::from_millis;
        let limit = RateLimit::parse("2/s").unwrap().unwrap();
        let task = ByteString::from("slow");
        let mut buckets = Buckets::new([(task.clone(), limit)], at(0));
        assert!(buckets.passes(&"free".into(), RequestKey(0), at(0)));
        assert!(buckets.passes(&task, RequestKey(1), at(0)));
        assert!(!buckets.passes(&task, RequestKey(2), at(0)));
        assert!(!buckets.passes(&task, RequestKey(3), at(0)));
        assert_eq!((buckets.len(), buckets.next(at(0))), (2, Some(at(500))));
        assert_eq!(buckets.take_due(at(499)), []);
        assert_eq!(buckets.take_due(at(500)), [RequestKey(2)]);
        // One that comes later does not overtake.
        assert!(!buckets.passes(&task, RequestKey(4), at(1000)));
        assert_eq!(buckets.take_due(at(1000)), [RequestKey(3)]);
        assert_eq!(buckets.set(&task, None, at(1000)), [RequestKey(4)]);
        assert!(buckets.passes(&task, RequestKey(5), at(1000)));
        let none = RateLimit::parse("1/h").unwrap();
        assert_eq!(buckets.set(&task, none, at(1000)), []);
        assert!(buckets.passes(&task, RequestKey(6), at(1000)));
        assert!(!buckets.passes(&task, RequestKey(7), at(1000)));
        buckets.remove(&task, RequestKey(7));
        assert!(buckets.is_empty());
        assert_eq!(buckets.next(at(1000)), None);
    }

    #[test]
    fn what_is_too_much_comes_back_one_by_one() {
        let at = Duration::from_secs;
        let limit = RateLimit::parse("1/s").unwrap().unwrap();
        let task = ByteString::from("slow");
        let mut buckets = Buckets::new([(task.clone(), limit)], at(0));
        assert_eq!(buckets.line_up(&task, at(0)), None, "it can wait here");
        for key in 0..9 {
            buckets.passes(&task, RequestKey(key), at(0));
        }
        let mut lined_up = |now| buckets.line_up(&task, at(now)).unwrap();
        assert_eq!(
            [lined_up(0), lined_up(0), lined_up(2)],
            [at(5), at(6), at(5)]
        );
        assert_eq!(lined_up(100), at(5), "those before have come back");
        assert_eq!(buckets.line_up(&"free".into(), at(0)), None);
    }
}
