//! The ids of revoked tasks.
//!
//! Celery's counterpart: `celery.worker.state.revoked`, a `LimitedSet`.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

/// A set that forgets what is old when it is full.
///
/// Within its bound nothing is forgotten for its age alone, as in Celery: a task with a far ETA
/// stays revoked.
#[derive(Debug)]
pub struct Revoked {
    bound: usize,
    lifetime: Duration,
    added: HashMap<String, Duration>,
    order: VecDeque<(Duration, String)>,
}

impl Revoked {
    /// At most `bound` ids; when there are more, those older than `lifetime` go, and then the
    /// oldest.
    pub fn new(bound: usize, lifetime: Duration) -> Self {
        Self {
            bound,
            lifetime,
            added: HashMap::new(),
            order: VecDeque::new(),
        }
    }

    /// Celery's bounds: 50,000 ids, three hours.
    pub fn with_celerys_bounds() -> Self {
        Self::new(50_000, Duration::from_hours(3))
    }

    /// Adds an id.
    pub fn insert(&mut self, id: &str, now: Duration) {
        self.added.insert(id.to_owned(), now);
        self.order.push_back((now, id.to_owned()));
        while self.added.len() > self.bound || self.order.len() > 2 * self.bound.max(1) {
            self.forget_oldest();
        }
        if self.added.len() == self.bound {
            while self
                .order
                .front()
                .is_some_and(|(at, _)| *at + self.lifetime < now)
            {
                self.forget_oldest();
            }
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((at, id)) = self.order.pop_front() {
            // An id that was added again since stands further back.
            if self.added.get(&id) == Some(&at) {
                self.added.remove(&id);
            }
        }
    }

    /// Whether an id was added.
    pub fn contains(&self, id: &str) -> bool {
        self.added.contains_key(id)
    }

    /// All ids, the oldest first.
    pub fn ids(&self) -> Vec<String> {
        let is_last = |(at, id): &&(Duration, String)| self.added.get(id) == Some(at);
        self.order
            .iter()
            .filter(is_last)
            .map(|(_, id)| id.clone())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_are_forgotten_first() {
        let mut revoked = Revoked::new(3, Duration::from_secs(10));
        for (second, id) in [(0, "a"), (1, "b"), (2, "a"), (3, "c"), (4, "d")] {
            revoked.insert(id, Duration::from_secs(second));
        }
        assert!(!revoked.contains("b"), "it was the oldest");
        assert_eq!(revoked.ids(), ["a", "c", "d"]);
    }

    #[test]
    fn age_counts_only_when_it_is_full() {
        let mut revoked = Revoked::new(3, Duration::from_secs(10));
        revoked.insert("old", Duration::ZERO);
        revoked.insert("new", Duration::from_secs(100));
        assert!(revoked.contains("old"));
        revoked.insert("newer", Duration::from_secs(101));
        assert!(!revoked.contains("old"));
    }
}
