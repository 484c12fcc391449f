//! Tags that are true to the connection that gave them.
//!
//! A broker may count its tags anew on each connection, and several brokers count each for itself.
//! The worker sees tags in which the connection is part of the number, so that a settlement can
//! never reach a message that it was not meant for.

use celeriac_core::broker::{DeliveryTag, Fate, Settlement};

/// Bits of a tag that are the broker's own.
const OWN_BITS: u32 = 40;
/// Bits of a tag that number the connections of one lane.
const CONNECTION_BITS: u32 = 18;

/// The worker's lane through which a message with this tag came.
pub(crate) fn lane_of(tag: DeliveryTag) -> usize {
    (tag.0 >> (OWN_BITS + CONNECTION_BITS)) as usize
}

/// The connection, or the broker whose tags outlive connections, that gave a tag.
pub(crate) fn connection_of(tag: DeliveryTag) -> u64 {
    tag.0 >> OWN_BITS
}

/// Names what a tag is valid for: a broker whose tags outlive connections, or one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Epoch(u64);

impl Epoch {
    /// The tag as the worker sees it.
    pub(super) fn mark(self, tag: DeliveryTag) -> DeliveryTag {
        DeliveryTag(self.0 << OWN_BITS | tag.0)
    }

    /// The tag as the broker knows it; `None` when it is of another epoch.
    pub(super) fn own(self, tag: DeliveryTag) -> Option<DeliveryTag> {
        let own = tag.0 & ((1 << OWN_BITS) - 1);
        (tag.0 >> OWN_BITS == self.0).then_some(DeliveryTag(own))
    }
}

/// Gives out epochs.
#[derive(Debug)]
pub(super) struct Epochs {
    /// The first of the lane's epochs.
    first: u64,
    next: u64,
    brokers: u64,
}

impl Epochs {
    /// Those of a lane that consumes from so many brokers.
    pub(super) fn new(lane: usize, brokers: usize) -> Self {
        Self {
            first: (lane as u64) << CONNECTION_BITS,
            next: brokers as u64,
            brokers: brokers as u64,
        }
    }

    /// The epoch of a new connection to the broker with this number.
    pub(super) fn begin(&mut self, broker: usize, tags_outlive_connections: bool) -> Epoch {
        if tags_outlive_connections {
            return Epoch(self.first + broker as u64);
        }
        let number = self.next;
        // After a quarter of a million connections they are counted anew: nothing is left of the
        // first ones then.
        let is_last = number + 1 >= 1 << CONNECTION_BITS;
        self.next = if is_last { self.brokers } else { number + 1 };
        Epoch(self.first + number)
    }

    /// Whether a tag may still be of use when its connection is gone.
    pub(super) fn outlives(&self, tag: DeliveryTag) -> bool {
        (tag.0 >> OWN_BITS) - self.first < self.brokers
    }
}

/// Settlements that no broker has confirmed.
#[derive(Debug, Default)]
pub(super) struct Unsettled(Vec<Settlement>);

impl Unsettled {
    pub(super) fn append(&mut self, settlements: &mut Vec<Settlement>) {
        self.0.append(settlements);
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is nothing to tell but that messages are done with.
    pub(super) fn are_acks(&self) -> bool {
        self.0.iter().all(|settlement| settlement.fate == Fate::Ack)
    }

    /// Takes those of an epoch, with the broker's own tags.
    pub(super) fn take(&mut self, epoch: Epoch) -> Vec<Settlement> {
        let mut own = Vec::with_capacity(self.0.len());
        self.0.retain(|settlement| match epoch.own(settlement.tag) {
            Some(tag) => {
                own.push(Settlement {
                    tag,
                    fate: settlement.fate,
                });
                false
            }
            None => true,
        });
        own
    }

    /// Puts back what a broker did not confirm.
    pub(super) fn put_back(&mut self, epoch: Epoch, settlements: &[Settlement]) {
        let marked = settlements.iter().map(|settlement| Settlement {
            tag: epoch.mark(settlement.tag),
            fate: settlement.fate,
        });
        self.0.extend(marked);
    }

    /// Forgets what went with its connection.
    pub(super) fn forget_lost(&mut self, epochs: &Epochs) {
        self.0.retain(|settlement| epochs.outlives(settlement.tag));
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    fn ack(tag: DeliveryTag) -> Settlement {
        Settlement {
            tag,
            fate: Fate::Ack,
        }
    }

    #[test]
    fn a_settlement_reaches_only_the_connection_that_it_is_for() {
        let mut epochs = Epochs::new(3, 2);
        let (redis, rabbit) = (epochs.begin(0, true), epochs.begin(1, false));
        let own = DeliveryTag(7);
        let mut unsettled = Unsettled::default();
        unsettled.append(&mut vec![ack(redis.mark(own)), ack(rabbit.mark(own))]);
        assert_eq!(unsettled.take(redis), [ack(own)]);
        unsettled.put_back(redis, &[ack(own)]);
        unsettled.forget_lost(&epochs);
        assert_eq!(unsettled.len(), 1, "that of the lost connection is gone");
        assert_eq!(epochs.begin(0, true), redis, "its tags live on");
        assert_ne!(epochs.begin(1, false), rabbit);
        assert_eq!(unsettled.take(redis), [ack(own)]);
    }

    #[test]
    fn a_tag_tells_its_lane() {
        for lane in [0, 1, 63] {
            let mut epochs = Epochs::new(lane, 1);
            for epoch in [epochs.begin(0, true), epochs.begin(0, false)] {
                let tag = epoch.mark(DeliveryTag((1 << OWN_BITS) - 1));
                assert_eq!(lane_of(tag), lane);
            }
        }
    }

    #[test]
    fn connections_are_counted_anew_beyond_the_last_number() {
        let mut epochs = Epochs::new(1, 2);
        for _ in 0..1 << CONNECTION_BITS {
            let tag = epochs.begin(0, false).mark(DeliveryTag(1));
            assert!(!epochs.outlives(tag));
            assert_eq!(lane_of(tag), 1);
        }
    }
}
