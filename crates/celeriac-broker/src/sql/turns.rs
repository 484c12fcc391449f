//! Whose turn it is: how a worker's appetite is divided among its queues.

use std::sync::Arc;

use super::store::{Claims, Row, Share};

/// The queues that a worker consumes, in the order in which they are asked next.
#[derive(Debug, Default)]
pub(super) struct Turns {
    queues: Vec<Subscribed>,
}

#[derive(Debug)]
struct Subscribed {
    id: i64,
    name: Arc<str>,
    /// Whether it had less than its share: then there is no use in asking again at once.
    is_drained: bool,
}

impl Turns {
    pub(super) fn add(&mut self, id: i64, name: &str) {
        self.queues.push(Subscribed {
            id,
            name: name.into(),
            is_drained: false,
        });
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.queues.retain(|queue| &*queue.name != name);
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.queues.iter().any(|queue| &*queue.name == name)
    }

    /// The ids of all queues.
    pub(super) fn queues(&self) -> Vec<i64> {
        self.queues.iter().map(|queue| queue.id).collect()
    }

    /// The name of the queue with this id.
    pub(super) fn name(&self, id: i64) -> Option<Arc<str>> {
        let queue = self.queues.iter().find(|queue| queue.id == id)?;
        Some(Arc::clone(&queue.name))
    }

    /// Begins to ask all queues.
    pub(super) fn begin(&mut self) {
        for queue in &mut self.queues {
            queue.is_drained = false;
        }
    }

    /// Divides `count` among the queues that may have messages: each is asked for its share, so
    /// that a busy one starves no other, and for one message if there are more queues than that.
    pub(super) fn divide(&self, count: usize) -> Claims {
        let asked: Vec<i64> = self
            .queues
            .iter()
            .filter(|queue| !queue.is_drained)
            .map(|queue| queue.id)
            .collect();
        if count == 0 || asked.is_empty() {
            return Claims::default();
        }
        let share = count.div_ceil(asked.len());
        Claims {
            shares: asked
                .into_iter()
                .map(|queue| Share {
                    queue,
                    count: share,
                })
                .collect(),
            limit: count,
        }
    }

    /// Notes what came of `claims`: the queue after the last that gave something is next.
    pub(super) fn took(&mut self, claims: &Claims, rows: &[Row]) {
        let has_room = rows.len() < claims.limit;
        for share in &claims.shares {
            let came = rows.iter().filter(|row| row.queue == share.queue).count();
            // Where the limit was reached, a queue may not have been asked at all.
            if has_room && came < share.count {
                for queue in self.queues.iter_mut().filter(|q| q.id == share.queue) {
                    queue.is_drained = true;
                }
            }
        }
        let last = self
            .queues
            .iter()
            .rposition(|queue| rows.iter().any(|row| row.queue == queue.id));
        if let Some(last) = last {
            let count = self.queues.len();
            let next = (last + 1) % count;
            self.queues.rotate_left(next.max(1) % count);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn turns(count: i64) -> Turns {
        let mut turns = Turns::default();
        for id in 1..=count {
            turns.add(id, &format!("q{id}"));
        }
        turns
    }

    fn shares(claims: &Claims) -> Vec<(i64, usize)> {
        claims.shares.iter().map(|s| (s.queue, s.count)).collect()
    }

    fn rows(queues: &[i64]) -> Vec<Row> {
        (0..)
            .zip(queues)
            .map(|(id, &queue)| Row {
                id,
                queue,
                payload: Bytes::new(),
            })
            .collect()
    }

    #[test]
    fn one_queue_is_asked_for_everything() {
        let mut turns = turns(1);
        let claims = turns.divide(8);
        assert_eq!((shares(&claims), claims.limit), (vec![(1, 8)], 8));
        turns.took(&claims, &rows(&[1; 8]));
        assert_eq!(shares(&turns.divide(2)), [(1, 2)], "there may be more");
        turns.took(&turns.divide(2), &rows(&[1]));
        assert_eq!(turns.divide(1), Claims::default(), "there was no more");
        turns.begin();
        assert_eq!(shares(&turns.divide(1)), [(1, 1)]);
    }

    #[test]
    fn what_a_queue_does_not_have_the_others_give() {
        let mut turns = turns(3);
        let claims = turns.divide(9);
        assert_eq!(shares(&claims), [(1, 3), (2, 3), (3, 3)]);
        turns.took(&claims, &rows(&[1, 1, 1, 2]));
        assert_eq!(shares(&turns.divide(5)), [(1, 5)]);
    }

    #[test]
    fn a_single_message_comes_from_each_queue_in_turn() {
        let mut turns = turns(3);
        let mut order = Vec::new();
        for _ in 0..6 {
            turns.begin();
            let claims = turns.divide(1);
            assert_eq!(claims.limit, 1);
            let first = claims.shares[0].queue;
            order.push(first);
            turns.took(&claims, &rows(&[first]));
        }
        assert_eq!(order, [1, 2, 3, 1, 2, 3]);
    }

    #[test]
    fn a_queue_that_was_not_asked_for_the_limit_is_not_drained() {
        let mut turns = turns(2);
        let claims = turns.divide(1);
        turns.took(&claims, &rows(&[1]));
        assert_eq!(shares(&turns.divide(1)), [(2, 1), (1, 1)]);
    }
}
