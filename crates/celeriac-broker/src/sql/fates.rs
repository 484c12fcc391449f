//! Settlements, sorted by what is to be done with the rows of their messages.

use std::borrow::Cow;

use celeriac_core::broker::{Delay, Fate, Settlement};
use celeriac_protocol::{Marks, envelope};

/// The ids of messages by their fates, each in the order in which they were settled.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Fates {
    /// To be deleted.
    pub(super) removed: Vec<i64>,
    /// To be seen again as they are.
    pub(super) released: Vec<i64>,
    /// To be put behind those that wait.
    pub(super) last: Vec<(i64, Change)>,
    /// To be put into the delay store.
    pub(super) later: Vec<(i64, Later)>,
}

/// What becomes of a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// It was delivered before.
    Redelivered,
    /// It has other marks.
    Marked(Marks),
}

/// How a message stands in the delay store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Later {
    /// When it comes, in microseconds since 1970.
    pub(super) due: i64,
    /// Its marks.
    pub(super) marks: Marks,
}

/// What one settlement asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deed {
    Remove,
    Release,
    PutLast(Change),
    Keep(Later),
}

impl Deed {
    pub(super) fn of(fate: Fate) -> Self {
        match fate {
            Fate::Ack | Fate::Reject => Self::Remove,
            Fate::Release => Self::Release,
            Fate::Requeue => Self::PutLast(Change::Redelivered),
            Fate::Delay(Delay { until: None, marks }) => Self::PutLast(Change::Marked(marks)),
            Fate::Delay(Delay {
                until: Some(until),
                marks,
            }) => Self::Keep(Later {
                due: until.as_microsecond(),
                marks,
            }),
        }
    }
}

impl Change {
    /// The payload after it. What is no envelope stays as it is.
    pub(super) fn apply(self, payload: &str) -> Cow<'_, str> {
        match self {
            Self::Redelivered => envelope::mark_redelivered(payload),
            Self::Marked(marks) => envelope::with_marks(payload, marks),
        }
    }
}

/// The payload with marks, where that makes a difference: what is no text has none, and stays as it
/// is.
pub(super) fn marked(payload: &[u8], marks: Marks) -> Option<String> {
    match envelope::with_marks(std::str::from_utf8(payload).ok()?, marks) {
        Cow::Owned(marked) => Some(marked),
        Cow::Borrowed(_) => None,
    }
}

/// The payload of a message whose worker has died. What is no text has no mark, and stays as it is.
pub(super) fn after_death(payload: &[u8]) -> Option<String> {
    std::str::from_utf8(payload).ok().map(envelope::after_death)
}

#[cfg(any(feature = "postgres", feature = "mysql"))]
impl Fates {
    pub(super) fn new(settlements: &[Settlement]) -> Self {
        let mut fates = Self::default();
        for settlement in settlements {
            let id = settlement.tag.0 as i64;
            match Deed::of(settlement.fate) {
                Deed::Remove => fates.removed.push(id),
                Deed::Release => fates.released.push(id),
                Deed::PutLast(change) => fates.last.push((id, change)),
                Deed::Keep(later) => fates.later.push((id, later)),
            }
        }
        fates
    }
}

#[cfg(test)]
mod tests {
    use celeriac_core::broker::DeliveryTag;
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn fates_are_sorted_in_their_order() {
        let marks = Marks {
            deaths: 2,
            ..Marks::default()
        };
        let until = Timestamp::from_microsecond(1_500_000).ok();
        let fates = [
            Fate::Requeue,
            Fate::Ack,
            Fate::Delay(Delay { until, marks }),
            Fate::Release,
            Fate::Delay(Delay { until: None, marks }),
            Fate::Reject,
        ];
        let settlements: Vec<Settlement> = (1..)
            .zip(fates)
            .map(|(id, fate)| Settlement {
                tag: DeliveryTag(id),
                fate,
            })
            .collect();
        let due = 1_500_000;
        assert_eq!(
            Fates::new(&settlements),
            Fates {
                removed: vec![2, 6],
                released: vec![4],
                last: vec![(1, Change::Redelivered), (5, Change::Marked(marks))],
                later: vec![(3, Later { due, marks })],
            }
        );
    }

    #[test]
    fn what_has_no_marks_stays_as_it_is() {
        let marks = Marks {
            told: true,
            ..Marks::default()
        };
        assert_eq!(after_death(b"\xff"), None);
        let dead = after_death(br#"{"headers": {}, "properties": {}}"#).unwrap();
        assert!(dead.contains(r#""deaths": 1"#), "{dead}");
        assert!(dead.contains(r#""redelivered": true"#), "{dead}");
        assert_eq!(marked(b"\xff", marks), None);
        assert_eq!(marked(b"no envelope", marks), None);
        assert_eq!(marked(br#"{"headers": {}}"#, Marks::default()), None);
        let text = marked(br#"{"headers": {}}"#, marks).unwrap();
        assert!(text.contains("told"), "{text}");
    }
}
