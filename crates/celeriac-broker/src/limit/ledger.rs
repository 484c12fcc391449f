//! What a store of limits decides: pure functions of its records and a reading of its clock.
//!
//! A rate is kept by the generic cell rate algorithm (GCRA): one moment for each limit, at which
//! the next request is due if all come evenly. One that comes too early has its place reserved: it
//! moves that moment on, and is told its turn. So those that wait come back one after the other.
//!
//! Who misses its turn has wasted it. A second moment, moved on only by requests that do begin, tells
//! of it: who is late begins at once where the rate is not used up. Otherwise nobody would begin where
//! all come late, as behind a backlog of other tasks.
//!
//! Slots have no turns, for nobody knows when one is given back. Who finds none free is told to
//! look again, one after the other, a little more often than slots were given back lately.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use celeriac_core::limit::{
    Answer, Asked, Claim, FARTHEST_LOOK, FARTHEST_TURN, FIRST_LOOK, GRACE, Holding, LEASE, Order,
    Permit, Rate, UNKNOWN_HOLD,
};
use serde::{Deserialize, Serialize};

/// Of five times that slots were held, the last one counts as one.
const MEMORY: i64 = 5;
/// Slots are looked for so much more often than they are given back.
const HASTE: (i64, i64) = (4, 5);

/// What is known of one limit, or of one kind of unique requests. Moments are microseconds since
/// 1970 by the store's clock.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Record {
    /// When the next request is due, if all come evenly: GCRA's theoretical arrival time.
    due: i64,
    /// The same of requests that have begun, without those that wait for their turn.
    begun: i64,
    /// When the last of those looks who wait for a slot.
    look: i64,
    /// How long slots are held, in microseconds; 0 when that is not known.
    held: i64,
    /// Who holds slots, and until when.
    slots: BTreeMap<String, i64>,
    /// Whose claim it is.
    owner: Option<String>,
    /// Until when it is kept.
    until: i64,
}

/// Records by their names.
pub(crate) type Records = BTreeMap<String, Record>;

impl Record {
    /// After this moment it says no more than none would.
    pub(crate) fn expires(&self) -> i64 {
        let slots = self.slots.values().copied().max().unwrap_or_default();
        let moments = [self.due, self.begun, self.look, slots, self.until];
        moments.into_iter().max().unwrap_or_default()
    }

    fn holds(&self, holder: &str, limit: u32, now: i64) -> bool {
        let alive = self.slots.iter().filter(|(_, until)| **until > now);
        self.slots.get(holder).is_some_and(|until| *until > now) || alive.count() < limit as usize
    }

    /// Has somebody wait for a slot; answers with when to look again.
    fn wait_for_slot(&mut self, limit: u32, now: i64) -> i64 {
        let held = match self.held {
            0 => micros(UNKNOWN_HOLD),
            held => held,
        };
        let apart = (held * HASTE.0 / HASTE.1 / i64::from(limit.max(1))).max(1000);
        if self.look > now + micros(FARTHEST_LOOK) {
            // All that wait would wait for too long: some of them look between the others.
            self.look = now + micros(FARTHEST_LOOK) / 2;
        }
        self.look = self.look.max(now + micros(FIRST_LOOK)) + apart;
        self.look
    }

    /// When a rate allows the next request, should none come before.
    fn allows_at(&self, rate: Rate) -> i64 {
        self.due.saturating_sub(ahead(rate))
    }

    /// Whether a rate allows a request that has missed its turn.
    fn allows_late(&self, rate: Rate, now: i64) -> bool {
        self.begun.saturating_sub(ahead(rate)) <= now
    }

    /// A request begins.
    fn begin(&mut self, rate: Rate, now: i64) {
        self.begun = self.begun.max(now).saturating_add(micros(rate.interval));
    }

    /// A request begins, or its turn is reserved.
    fn take_turn(&mut self, rate: Rate, now: i64) {
        self.due = self.due.max(now).saturating_add(micros(rate.interval));
    }

    /// The other request whose claim it is, if there is one.
    fn other(&self, owner: &str, now: i64) -> Option<&str> {
        let of = self.owner.as_deref()?;
        (self.until > now && of != owner).then_some(of)
    }

    fn claim(&mut self, claim: &Claim, until: i64, now: i64) {
        let is_kept = self.owner.as_deref() == Some(&claim.owner) && self.until > now;
        if !(claim.is_window && is_kept) {
            self.owner = Some(claim.owner.clone());
            self.until = until;
        }
    }
}

/// How far a burst may be ahead of the rate.
fn ahead(rate: Rate) -> i64 {
    micros(rate.interval).saturating_mul(i64::from(rate.burst.saturating_sub(1)))
}

/// The names of all records that orders touch.
pub(crate) fn names(orders: &[Order]) -> BTreeSet<&str> {
    let mut names = BTreeSet::new();
    for order in orders {
        let claim = match order {
            Order::Acquire(asked) => {
                names.extend(asked.permits.iter().map(|permit| permit.name.as_str()));
                &asked.claim
            }
            Order::Renew(holding) | Order::Release(holding, _) => {
                names.extend(holding.slots.iter().map(String::as_str));
                &holding.claim
            }
        };
        names.extend(claim.iter().map(|claim| claim.name.as_str()));
    }
    names
}

/// Carries orders out, in their order.
pub(crate) fn carry_out(orders: &[Order], records: &mut Records, now: i64) -> Vec<Answer> {
    let mut answers = Vec::new();
    for order in orders {
        match order {
            Order::Acquire(asked) => answers.push(acquire(asked, records, now)),
            Order::Renew(holding) => renew(holding, records, now),
            Order::Release(holding, held) => release(holding, *held, records, now),
        }
    }
    answers
}

fn acquire(asked: &Asked, records: &mut Records, now: i64) -> Answer {
    let Some(claim) = &asked.claim else {
        return permit(asked, records, now);
    };
    let known = records.entry(claim.name.clone()).or_default();
    if let Some(of) = known.other(&claim.owner, now) {
        return Answer::Duplicate { of: of.to_owned() };
    }
    let answer = permit(asked, records, now);
    let wait = match &answer {
        Answer::Denied { wait, .. } if !claim.is_window => micros(*wait),
        _ => 0,
    };
    let until = now + wait + micros(claim.lasts);
    let known = records.entry(claim.name.clone()).or_default();
    known.claim(claim, until, now);
    answer
}

fn permit(asked: &Asked, records: &mut Records, now: i64) -> Answer {
    let turn = asked.turn.unwrap_or(i64::MIN);
    let rates = asked
        .permits
        .iter()
        .filter_map(|permit| Some((permit, permit.rate?)));
    let rates: Vec<(&Permit, Rate)> = rates.collect();
    if turn > now && !rates.is_empty() {
        return denied(turn, now, asked.turn);
    }
    if let Some(look) = look_for_slots(asked, records, now) {
        let is_good = |turn: &i64| look <= *turn + micros(GRACE);
        return denied(look, now, asked.turn.filter(is_good));
    }
    if turn < now - micros(GRACE) {
        let mut at = now;
        for (permit, rate) in &rates {
            let record = records.entry(permit.name.clone()).or_default();
            at = at.max(record.allows_at(*rate));
        }
        let is_free = |(permit, rate): &(&Permit, Rate)| {
            let record = records.get(&permit.name);
            record.is_none_or(|record| record.allows_late(*rate, now))
        };
        if at <= now || asked.turn.is_none() || !rates.iter().all(is_free) {
            if at > now + micros(FARTHEST_TURN) {
                return denied(now + micros(FARTHEST_TURN), now, None);
            }
            for (permit, rate) in &rates {
                let record = records.entry(permit.name.clone()).or_default();
                record.take_turn(*rate, now);
            }
            if at > now {
                return denied(at, now, Some(at));
            }
        }
    }
    for (permit, rate) in &rates {
        let record = records.entry(permit.name.clone()).or_default();
        record.begin(*rate, now);
    }
    for permit in asked.permits.iter().filter(|permit| permit.slots.is_some()) {
        let record = records.entry(permit.name.clone()).or_default();
        record.slots.retain(|_, until| *until > now);
        let until = now + micros(LEASE);
        record.slots.insert(asked.holder.clone(), until);
    }
    Answer::Granted
}

/// When to look again, if any of the slots is not free.
fn look_for_slots(asked: &Asked, records: &mut Records, now: i64) -> Option<i64> {
    let mut look = None;
    for permit in &asked.permits {
        let Some(limit) = permit.slots else {
            continue;
        };
        let record = records.entry(permit.name.clone()).or_default();
        if !record.holds(&asked.holder, limit, now) {
            look = look.max(Some(record.wait_for_slot(limit, now)));
        }
    }
    look
}

fn denied(until: i64, now: i64, turn: Option<i64>) -> Answer {
    let wait = Duration::from_micros(u64::try_from(until - now).unwrap_or_default());
    Answer::Denied { wait, turn }
}

fn renew(holding: &Holding, records: &mut Records, now: i64) {
    for name in &holding.slots {
        let record = records.entry(name.clone()).or_default();
        let until = now + micros(LEASE);
        record.slots.insert(holding.holder.clone(), until);
    }
    if let Some(claim) = holding.claim.as_ref().filter(|claim| !claim.is_window) {
        let record = records.entry(claim.name.clone()).or_default();
        if record.other(&claim.owner, now).is_none() {
            record.claim(claim, now + micros(claim.lasts), now);
        }
    }
}

fn release(holding: &Holding, held: Duration, records: &mut Records, now: i64) {
    for name in &holding.slots {
        let record = records.entry(name.clone()).or_default();
        let had = record.slots.remove(&holding.holder).is_some();
        let held = micros(held);
        if had && held > 0 {
            record.held = match record.held {
                0 => held,
                known => (known * (MEMORY - 1) + held) / MEMORY,
            };
        }
    }
    let Some(claim) = holding.claim.as_ref().filter(|claim| !claim.is_window) else {
        return;
    };
    let record = records.entry(claim.name.clone()).or_default();
    if record.owner.as_deref() == Some(&claim.owner) {
        record.until = now + micros(claim.lasts);
        record.owner = (!claim.lasts.is_zero()).then(|| claim.owner.clone());
    }
}

/// Microseconds, as a store counts them.
pub(crate) fn micros(duration: Duration) -> i64 {
    // A hundred thousand years are enough, and can be added to any moment.
    const MOST: i64 = i64::MAX / 4;
    i64::try_from(duration.as_micros()).map_or(MOST, |micros| micros.min(MOST))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: i64 = 1_000_000;
    const START: i64 = 1_764_000_000 * SECOND;

    fn rated(interval: Duration, burst: u32) -> Permit {
        Permit {
            name: "limit".to_owned(),
            rate: Some(Rate { interval, burst }),
            slots: None,
        }
    }

    fn slotted(slots: u32) -> Permit {
        Permit {
            name: "limit".to_owned(),
            rate: None,
            slots: Some(slots),
        }
    }

    fn asked(holder: &str, permit: &Permit, turn: Option<i64>) -> Asked {
        Asked {
            holder: holder.to_owned(),
            permits: vec![permit.clone()],
            turn,
            claim: None,
        }
    }

    fn wait(answer: &Answer) -> Option<i64> {
        match answer {
            Answer::Denied { wait, .. } => Some(micros(*wait)),
            _ => None,
        }
    }

    #[test]
    fn turns_are_an_interval_apart_and_good_when_they_come() {
        let permit = rated(Duration::from_millis(500), 1);
        let mut records = Records::new();
        let mut ask = |turn, at| acquire(&asked("h", &permit, turn), &mut records, START + at);
        assert_eq!(ask(None, 0), Answer::Granted);
        for (place, at) in [(1, 0), (2, 0), (3, 100_000)] {
            let turn = START + place * SECOND / 2;
            let wait = Duration::from_micros((turn - START - at) as u64);
            let expected = Answer::Denied {
                wait,
                turn: Some(turn),
            };
            assert_eq!(ask(None, at), expected, "{place}");
        }
        let second = Some(START + SECOND / 2);
        assert_eq!(wait(&ask(second, 400_000)), Some(100_000), "too early");
        assert_eq!(ask(second, 510_000), Answer::Granted);
        // One that comes too late goes to the end of the line.
        assert_eq!(
            wait(&ask(second, 4 * SECOND)),
            None,
            "nobody waits any more"
        );
        assert_eq!(wait(&ask(second, 4 * SECOND)), Some(SECOND / 2));
    }

    #[test]
    fn who_always_comes_late_begins_as_often_as_the_rate_allows() {
        const TASKS: usize = 40;
        let permit = rated(Duration::from_millis(500), 1);
        let mut records = Records::new();
        // Behind a backlog of other tasks each comes 3 s after its turn.
        let mut coming: BTreeSet<(i64, usize, Option<i64>)> =
            (0..TASKS).map(|task| (0, task, None)).collect();
        let mut begun = Vec::new();
        while let Some((at, task, turn)) = coming.pop_first() {
            match acquire(&asked("h", &permit, turn), &mut records, START + at) {
                Answer::Denied { wait, turn } => {
                    coming.insert((at + micros(wait) + 3 * SECOND, task, turn));
                }
                _ => begun.push(at),
            }
            assert!(at < 60 * SECOND, "{} of {TASKS} have begun", begun.len());
        }
        assert_eq!(begun.len(), TASKS);
        for first in &begun {
            let within = begun
                .iter()
                .filter(|at| (*first..first + 5 * SECOND).contains(at));
            assert!(within.count() <= 12, "10 in 5 s, {begun:?}");
        }
    }

    #[test]
    fn a_burst_begins_at_once() {
        let permit = rated(Duration::from_secs(1), 3);
        let mut records = Records::new();
        let mut ask = |at| {
            wait(&acquire(
                &asked("h", &permit, None),
                &mut records,
                START + at,
            ))
        };
        assert_eq!([ask(0), ask(0), ask(0)], [None; 3]);
        assert_eq!([ask(0), ask(0)], [Some(SECOND), Some(2 * SECOND)]);
        assert_eq!([ask(60 * SECOND), ask(60 * SECOND)], [None; 2]);
    }

    #[test]
    fn slots_are_leased_and_given_back() {
        let permit = slotted(2);
        let mut records = Records::new();
        let take = |holder, at, records: &mut Records| {
            acquire(&asked(holder, &permit, None), records, START + at)
        };
        assert_eq!(take("a", 0, &mut records), Answer::Granted);
        assert_eq!(take("b", 0, &mut records), Answer::Granted);
        assert_eq!(take("a", 0, &mut records), Answer::Granted, "it has one");
        let (first, second) = (take("c", 0, &mut records), take("d", 0, &mut records));
        assert!(wait(&first) < wait(&second), "{first:?} {second:?}");
        let held = Duration::from_millis(10);
        let holding = asked("a", &permit, None).holding();
        release(&holding, held, &mut records, START);
        assert_eq!(take("c", 0, &mut records), Answer::Granted);
        // b lives, c does not.
        let later = START + micros(LEASE) - SECOND;
        renew(&asked("b", &permit, None).holding(), &mut records, later);
        assert!(wait(&take("d", micros(LEASE) - 1, &mut records)).is_some());
        assert_eq!(take("d", micros(LEASE), &mut records), Answer::Granted);
        assert!(wait(&take("e", micros(LEASE), &mut records)).is_some());
    }

    #[test]
    fn a_hundred_thousand_that_wait_look_seldom() {
        let permit = slotted(10);
        let mut records = Records::new();
        let mut looks = Vec::new();
        for number in 0..100_000 {
            let answer = acquire(
                &asked(&number.to_string(), &permit, None),
                &mut records,
                START,
            );
            looks.extend(wait(&answer));
        }
        let busiest = (0..400).map(|second| {
            let within = looks.iter().filter(|look| **look / SECOND == second);
            within.count()
        });
        assert!(busiest.max().unwrap() < 1500);
        assert!(
            looks
                .iter()
                .all(|look| *look <= micros(FARTHEST_LOOK) + SECOND)
        );
    }

    #[test]
    fn only_one_of_a_kind_is_under_way() {
        let mut records = Records::new();
        let mut step = |owner: &str, is_window, at, over: Option<u64>| {
            let claim = Claim {
                name: "kind".to_owned(),
                owner: owner.to_owned(),
                lasts: Duration::from_secs(30),
                is_window,
            };
            let mut asked = Asked {
                claim: Some(claim),
                ..Asked::default()
            };
            if let (Some(lasts), Some(claim)) = (over, &mut asked.claim) {
                claim.lasts = Duration::from_secs(lasts);
                release(
                    &asked.holding(),
                    Duration::ZERO,
                    &mut records,
                    START + at * SECOND,
                );
                return Answer::Granted;
            }
            acquire(&asked, &mut records, START + at * SECOND)
        };
        let duplicate = Answer::Duplicate { of: "1".to_owned() };
        assert_eq!(step("1", false, 0, None), Answer::Granted);
        assert_eq!(step("2", false, 0, None), duplicate);
        assert_eq!(
            step("1", false, 20, None),
            Answer::Granted,
            "delivered again"
        );
        assert_eq!(step("2", false, 49, None), duplicate);
        step("2", false, 49, Some(0));
        assert_eq!(step("2", false, 49, None), duplicate, "it is not its own");
        step("1", false, 49, Some(100));
        assert_eq!(
            step("2", false, 148, None),
            duplicate,
            "it is to be retried"
        );
        step("1", false, 148, Some(0));
        assert_eq!(step("2", true, 148, None), Answer::Granted);
        assert_eq!(step("2", true, 170, None), Answer::Granted);
        step("2", true, 170, Some(0));
        assert!(matches!(
            step("3", true, 177, None),
            Answer::Duplicate { .. }
        ));
        assert_eq!(
            step("3", true, 178, None),
            Answer::Granted,
            "the window is over"
        );
    }

    #[test]
    fn a_record_is_kept_for_as_long_as_it_says_something() {
        let mut records = Records::new();
        let permit = Permit {
            slots: Some(1),
            ..rated(Duration::from_secs(20), 1)
        };
        acquire(&asked("h", &permit, None), &mut records, START);
        assert_eq!(records["limit"].expires(), START + 20 * SECOND);
    }

    proptest! {
        /// Requests come at any moment, and come again when they are told to: however many wait, the
        /// rate is kept, and none of its turns is lost.
        #[test]
        fn the_rate_is_kept_and_used(
            interval in 1_000i64..2_000_000, burst in 1u32..5,
            came in prop::collection::vec(0i64..3_000_000, 1..120),
        ) {
            let permit = rated(Duration::from_micros(interval as u64), burst);
            let mut records = Records::new();
            let mut waiting: BTreeSet<(i64, usize, Option<i64>)> = BTreeSet::new();
            for (number, at) in came.iter().enumerate() {
                waiting.insert((START + at, number, None));
            }
            let mut begun: Vec<i64> = Vec::new();
            let mut asked_at_all = 0;
            while let Some((at, number, turn)) = waiting.pop_first() {
                asked_at_all += 1;
                match acquire(&asked(&number.to_string(), &permit, turn), &mut records, at) {
                    Answer::Granted => begun.push(at),
                    Answer::Denied { wait, turn } => {
                        waiting.insert((at + micros(wait), number, turn));
                    }
                    Answer::Duplicate { .. } => prop_assert!(false),
                }
            }
            prop_assert!(asked_at_all <= 2 * came.len(), "each asks once more at most");
            for (first, start) in begun.iter().enumerate() {
                for (last, end) in begun.iter().enumerate().skip(first) {
                    let allowed = i64::from(burst) + (end - start) / interval;
                    prop_assert!((last - first) as i64 <= allowed);
                }
            }
            let first = *begun.first().unwrap();
            let idle = begun.last().unwrap() - first;
            prop_assert!(idle <= 3_000_000 + interval * came.len() as i64);
        }

        /// Whoever asks, dies and gives back: there are never more holders than slots.
        #[test]
        fn there_are_never_more_holders_than_slots(
            limit in 1u32..4,
            steps in prop::collection::vec((0u8..3, 0u8..8, 0i64..6_000_000), 1..200),
        ) {
            let permit = slotted(limit);
            let mut records = Records::new();
            let mut now = START;
            // Who holds a slot, and until when.
            let mut holders: BTreeMap<u8, i64> = BTreeMap::new();
            for (what, who, passed) in steps {
                now += passed;
                holders.retain(|_, until| *until > now);
                let wish = asked(&who.to_string(), &permit, None);
                match what {
                    0 if acquire(&wish, &mut records, now) == Answer::Granted => {
                        holders.insert(who, now + micros(LEASE));
                    }
                    1 if holders.contains_key(&who) => {
                        renew(&wish.holding(), &mut records, now);
                        holders.insert(who, now + micros(LEASE));
                    }
                    2 if holders.remove(&who).is_some() => {
                        release(&wish.holding(), Duration::from_secs(1), &mut records, now);
                    }
                    _ => {}
                }
                prop_assert!(holders.len() <= limit as usize);
            }
        }
    }
}
