//! What this worker has put into the delay store and what is not due, for `inspect scheduled`.
//!
//! The store is queues. To look into one is to take its messages for a moment: on a quorum queue
//! that puts them behind others, and counts as a delivery of each. So a worker tells of those that it
//! stored itself since it started: the first to come, and within bounds.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use bytestring::ByteString;
use celeriac_core::broker::Delayed;
use jiff::Timestamp;

use super::message;
use super::wire::connection::Delivery;

/// How many messages are remembered.
const MOST: usize = 1000;
/// The longest message that is: its properties and its body, in bytes.
const LONGEST: usize = 16 * 1024;

/// The first to come of what was stored.
#[derive(Debug, Default)]
pub(super) struct Remembered {
    /// By the moment when it is due, and by a number.
    messages: BTreeMap<(Timestamp, u64), (Arc<str>, Delivery)>,
    number: u64,
}

impl Remembered {
    /// Takes note of a message that was stored for a queue.
    pub(super) fn add(
        &mut self,
        until: Timestamp,
        queue: &Arc<str>,
        delivery: &Delivery,
        now: Timestamp,
    ) {
        self.forget_due(now);
        let is_full = self.messages.len() >= MOST;
        let last = self.messages.last_key_value().map(|((last, _), _)| *last);
        let is_too_late = is_full && last.is_some_and(|last| last <= until);
        if is_too_late || delivery.properties.len() + delivery.body.len() > LONGEST {
            return;
        }
        if is_full {
            self.messages.pop_last();
        }
        self.number += 1;
        let entry = (Arc::clone(queue), copy(delivery));
        self.messages.insert((until, self.number), entry);
    }

    /// The first to come for queues that are meant.
    pub(super) fn first(
        &mut self,
        count: usize,
        is_meant: impl Fn(&str) -> bool,
        now: Timestamp,
    ) -> Vec<Delayed> {
        self.forget_due(now);
        let meant = self
            .messages
            .iter()
            .filter(|(_, (queue, _))| is_meant(queue));
        meant
            .filter_map(|((until, _), (queue, delivery))| listed(*until, queue, delivery))
            .take(count)
            .collect()
    }

    fn forget_due(&mut self, now: Timestamp) {
        while let Some(first) = self.messages.first_entry() {
            if first.key().0 > now {
                break;
            }
            first.remove();
        }
    }
}

/// A message as it is told of, if it can be read.
pub(super) fn listed(until: Timestamp, queue: &Arc<str>, delivery: &Delivery) -> Option<Delayed> {
    Some(Delayed {
        until,
        queue: Arc::clone(queue),
        message: message::message(delivery).ok()?,
    })
}

/// What came is a part of a larger buffer, which would be kept with it.
fn copy(delivery: &Delivery) -> Delivery {
    let text = |text: &ByteString| ByteString::from(&**text);
    Delivery {
        consumer: ByteString::new(),
        tag: delivery.tag,
        redelivered: delivery.redelivered,
        exchange: text(&delivery.exchange),
        routing_key: text(&delivery.routing_key),
        properties: Bytes::copy_from_slice(&delivery.properties),
        body: Bytes::copy_from_slice(&delivery.body),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivery(tag: u64, length: usize) -> Delivery {
        Delivery {
            consumer: "c".into(),
            tag,
            redelivered: false,
            exchange: ByteString::new(),
            routing_key: "q".into(),
            properties: Bytes::from_static(&[0, 0]),
            body: vec![b'x'; length].into(),
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn seconds(delayed: &[Delayed]) -> Vec<i64> {
        delayed.iter().map(|one| one.until.as_second()).collect()
    }

    #[test]
    fn the_first_to_come_are_told_of_until_they_are_due() {
        let (q, other) = (Arc::from("q"), Arc::from("other"));
        let mut remembered = Remembered::default();
        for second in [30, 10, 20, 10] {
            remembered.add(at(second), &q, &delivery(1, 1), at(0));
        }
        remembered.add(at(5), &other, &delivery(2, 1), at(0));
        let is_q = |name: &str| name == "q";
        assert_eq!(seconds(&remembered.first(3, is_q, at(0))), [10, 10, 20]);
        assert_eq!(seconds(&remembered.first(9, is_q, at(10))), [20, 30]);
        assert_eq!(remembered.messages.len(), 2, "the others are forgotten");
    }

    #[test]
    fn bounds_hold() {
        let q = Arc::from("q");
        let mut remembered = Remembered::default();
        remembered.add(at(1), &q, &delivery(1, LONGEST), at(0));
        assert!(remembered.messages.is_empty(), "it is too long");
        for second in (1..=2 * MOST as i64).rev() {
            remembered.add(at(second), &q, &delivery(1, 1), at(0));
        }
        assert_eq!(remembered.messages.len(), MOST);
        let all = seconds(&remembered.first(usize::MAX, |_| true, at(0)));
        assert_eq!(all, (1..=MOST as i64).collect::<Vec<_>>());
    }
}
