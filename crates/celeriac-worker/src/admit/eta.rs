//! Tasks that wait for their ETA.
//!
//! Celery's counterpart: the timer of the worker's event loop.

use std::collections::BTreeSet;

use celeriac_core::pool::RequestKey;
use jiff::Timestamp;

/// Requests by the moment at which they are due.
#[derive(Debug, Default)]
pub struct Held {
    due: BTreeSet<(Timestamp, RequestKey)>,
}

impl Held {
    /// Holds a request.
    pub fn insert(&mut self, at: Timestamp, key: RequestKey) {
        self.due.insert((at, key));
    }

    /// Forgets a request.
    pub fn remove(&mut self, at: Timestamp, key: RequestKey) {
        self.due.remove(&(at, key));
    }

    /// Takes the next request that is due.
    pub fn take_due(&mut self, now: Timestamp) -> Option<RequestKey> {
        let first = *self.due.first().filter(|(at, _)| *at <= now)?;
        self.due.remove(&first);
        Some(first.1)
    }

    /// When the next one is due.
    pub fn next(&self) -> Option<Timestamp> {
        self.due.first().map(|(at, _)| *at)
    }

    /// How many are held.
    pub fn len(&self) -> usize {
        self.due.len()
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.due.is_empty()
    }

    /// Takes all, in the order of their times.
    pub fn take_all(&mut self) -> Vec<RequestKey> {
        std::mem::take(&mut self.due)
            .into_iter()
            .map(|(_, key)| key)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_come_out_in_the_order_of_their_times() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut held = Held::default();
        for (second, key) in [(30, 1), (10, 2), (20, 3), (10, 4)] {
            held.insert(at(second), RequestKey(key));
        }
        assert_eq!(held.next(), Some(at(10)));
        assert_eq!(held.take_due(at(9)), None);
        assert_eq!(held.take_due(at(20)), Some(RequestKey(2)));
        assert_eq!(held.take_due(at(20)), Some(RequestKey(4)));
        held.remove(at(20), RequestKey(3));
        assert_eq!(held.take_due(at(20)), None);
        assert_eq!(held.take_all(), [RequestKey(1)]);
    }
}
