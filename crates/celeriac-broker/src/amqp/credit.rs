//! How many messages the server may send ahead.
//!
//! Pure: the session carries out what is decided here.

use std::time::Duration;

use celeriac_core::broker::Want;
use tokio::time::Instant;

/// The most messages that are let come beyond what can run, in the hope that they have an ETA.
const WIDEST: usize = 512;
/// The same where what is too much can't be given back without a trace: a quorum queue counts how
/// often a message was delivered.
const WIDEST_COUNTED: usize = 32;
/// Without a message for so long, the run of messages with an ETA is over.
const RUN_ENDS_AFTER: Duration = Duration::from_millis(100);

/// Widens the credit while nothing but messages with an ETA comes: they are held, and what can run
/// is behind them. As many more are let come as came in a row, so that the steps double; the first
/// that can run, or a pause, ends it.
#[derive(Debug)]
pub(super) struct Widening {
    in_a_row: usize,
    last: Instant,
    widest: usize,
}

impl Widening {
    pub(super) fn new(are_deliveries_counted: bool, now: Instant) -> Self {
        Self {
            in_a_row: 0,
            last: now,
            widest: if are_deliveries_counted {
                WIDEST_COUNTED
            } else {
                WIDEST
            },
        }
    }

    /// A message came.
    pub(super) fn came(&mut self, is_held: bool, now: Instant) {
        self.in_a_row = if is_held { self.in_a_row + 1 } else { 0 };
        self.last = now;
    }

    /// How many messages may come for this want.
    pub(super) fn credit(&mut self, want: Want, now: Instant) -> usize {
        if now.saturating_duration_since(self.last) >= RUN_ENDS_AFTER {
            self.in_a_row = 0;
        }
        if want.is_none() {
            return 0;
        }
        want.runnable
            .max(self.in_a_row.min(self.widest))
            .min(want.total)
    }

    /// When the credit is to be looked at again although nothing came.
    pub(super) fn ends(&self) -> Option<Instant> {
        (self.in_a_row > 0).then(|| self.last + RUN_ENDS_AFTER)
    }
}

/// What a channel's limit is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Limit {
    /// Nothing may come, and there is no number for that: nothing is out, and 0 means no limit, or
    /// more is out than AMQP can count.
    Nothing,
    /// At most so many out at a time; 0 any number.
    At(u16),
}

/// Whether AMQP has a number for a limit with which `credit` more messages come when `outstanding`
/// are out.
pub(super) fn is_countable(outstanding: usize, credit: usize) -> bool {
    u16::try_from(outstanding + credit).is_ok()
}

/// The limit with which `credit` more messages come when `outstanding` are out.
pub(super) fn limit(outstanding: usize, credit: usize) -> Limit {
    match (outstanding + credit, credit) {
        (0, _) => Limit::Nothing,
        (sum, 0) if sum > usize::from(u16::MAX) => Limit::Nothing,
        // As Celery: what can't be counted is not limited.
        (sum, _) => Limit::At(u16::try_from(sum).unwrap_or(0)),
    }
}

/// Whether a consumer that may still get `left` messages does for a credit: not one too many, and
/// not so few that the worker would wait for each.
pub(super) fn serves(left: usize, credit: usize) -> bool {
    left <= credit && left * 2 >= credit
}

/// What came of what the server may send.
#[derive(Debug, Default)]
pub(super) struct Flow {
    told: usize,
    came: usize,
    /// Whether all came that was allowed the last time.
    is_full: bool,
}

impl Flow {
    /// The server is told that so many messages may come.
    pub(super) fn told(&mut self, credit: usize) {
        if credit > 0 {
            self.is_full = self.told > 0 && self.came >= self.told;
            (self.told, self.came) = (credit, 0);
        }
    }

    /// A message came.
    pub(super) fn came(&mut self) {
        self.came += 1;
    }

    /// Whether more is to be expected at once.
    pub(super) fn is_more_coming(&self) -> bool {
        self.is_full && self.came < self.told
    }
}

/// Which acknowledgements can be said as one, "this and all before it", by the tag of the last;
/// and those that have to be said one by one. `first_out` is the lowest tag that stays out. A
/// channel's messages come in the order of their tags, so that none is older and yet to come.
pub(super) fn together(mut acks: Vec<u64>, first_out: Option<u64>) -> (Option<u64>, Vec<u64>) {
    if acks.len() < 2 {
        return (None, acks);
    }
    acks.sort_unstable();
    let before = match first_out {
        Some(out) => acks.partition_point(|tag| *tag < out),
        None => acks.len(),
    };
    let others = acks.split_off(before);
    (acks.pop(), others)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn want(runnable: usize) -> Want {
        Want {
            runnable,
            total: 1000,
        }
    }

    #[test]
    fn a_limit_counts_what_is_out() {
        assert_eq!(limit(0, 0), Limit::Nothing);
        assert_eq!(limit(0, 2), Limit::At(2));
        assert_eq!(limit(5, 0), Limit::At(5));
        assert_eq!(limit(65_000, 535), Limit::At(65_535));
        assert_eq!(limit(65_000, 536), Limit::At(0));
        assert!(is_countable(65_000, 535) && !is_countable(65_000, 536));
        assert_eq!(limit(65_535, 0), Limit::At(65_535));
        assert_eq!(limit(65_536, 0), Limit::Nothing);
    }

    #[test]
    fn the_credit_doubles_behind_messages_with_an_eta_and_falls_at_the_first_other() {
        let now = Instant::now();
        let mut widening = Widening::new(false, now);
        let mut seen = Vec::new();
        for _ in 0..12 {
            let credit = widening.credit(want(1), now);
            seen.push(credit);
            for _ in 0..credit {
                widening.came(true, now);
            }
        }
        assert_eq!(seen, [1, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 512]);
        widening.came(false, now);
        assert_eq!(widening.credit(want(1), now), 1);
        assert_eq!(widening.ends(), None);
    }

    #[test]
    fn a_pause_ends_the_run() {
        let now = Instant::now();
        let mut widening = Widening::new(false, now);
        for _ in 0..100 {
            widening.came(true, now);
        }
        assert_eq!(widening.credit(want(2), now), 100);
        let ends = widening.ends().unwrap();
        assert_eq!(widening.credit(want(2), ends), 2);
        assert_eq!(widening.ends(), None);
    }

    #[test]
    fn the_credit_keeps_to_what_is_wanted_in_all() {
        let now = Instant::now();
        let mut widening = Widening::new(true, now);
        for _ in 0..100 {
            widening.came(true, now);
        }
        let total = |total| Want { runnable: 1, total };
        assert_eq!(widening.credit(total(1000), now), WIDEST_COUNTED);
        assert_eq!(widening.credit(total(3), now), 3);
        assert_eq!(widening.credit(Want::NONE, now), 0);
    }

    #[test]
    fn acknowledgements_are_said_as_one_up_to_the_first_that_is_out() {
        for (acks, first_out, expected) in [
            (vec![], None, (None, vec![])),
            (vec![3], None, (None, vec![3])),
            (vec![3, 1, 2], None, (Some(3), vec![])),
            (vec![3, 1, 2], Some(4), (Some(3), vec![])),
            (vec![4, 1, 2, 6], Some(3), (Some(2), vec![4, 6])),
            (vec![4, 6], Some(3), (None, vec![4, 6])),
        ] {
            assert_eq!(together(acks, first_out), expected);
        }
    }

    #[test]
    fn more_is_expected_only_where_all_came_the_last_time() {
        let mut flow = Flow::default();
        flow.told(2);
        flow.came();
        assert!(!flow.is_more_coming(), "nothing is known yet");
        flow.came();
        flow.told(2);
        assert!(flow.is_more_coming());
        flow.came();
        assert!(flow.is_more_coming());
        flow.told(0);
        flow.told(2);
        assert!(!flow.is_more_coming(), "the queue ran dry");
    }

    #[test]
    fn a_consumer_serves_a_credit_that_it_does_not_exceed() {
        for (left, credit, expected) in [
            (0, 0, true),
            (1, 0, false),
            (0, 1, false),
            (1, 1, true),
            (2, 1, false),
            (2, 4, true),
            (1, 4, false),
        ] {
            assert_eq!(serves(left, credit), expected, "{left} of {credit}");
        }
    }
}
