//! Tables of what follows what, and any order of anything.

use std::collections::HashMap;

use bytes::Bytes;
use celeriac_core::pool::Outcome;
use proptest::prelude::*;

use super::*;

const PID: u32 = 7;
const GRACE: Duration = Duration::from_millis(300);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn limit(seconds: f64) -> Option<TimeLimit> {
    TimeLimit::new(&serde_json::Number::from_f64(seconds).unwrap()).unwrap()
}

fn job(key: u64, hard: Option<f64>, soft: Option<f64>) -> Job {
    Job {
        key: RequestKey(key),
        task: "t".into(),
        request: String::new(),
        body: Bytes::new(),
        content_type: None,
        content_encoding: None,
        time_limits: TimeLimits {
            hard: hard.and_then(limit),
            soft: soft.and_then(limit),
        },
        wants_result: false,
        wants_exception: false,
    }
}

fn success() -> End {
    End::Finished(Outcome::Success {
        runtime: None,
        result: String::new(),
    })
}

/// What a machine does, in short words.
fn done(machine: &mut Machine) -> Vec<String> {
    let shown = |action: Action| match action {
        Action::Start(job) => format!("start {}", job.key),
        Action::Cancel { key, cause } => format!("cancel {key} {cause:?}"),
        Action::Raise { key } => format!("raise {key}"),
        Action::Lose { key } => format!("lose {key}"),
        Action::Stuck { key } => format!("stuck {key}"),
        Action::Tell(PoolEvent::Up { pid }) => format!("up {pid}"),
        Action::Tell(PoolEvent::Started { key, pid }) => format!("started {key} {pid}"),
        Action::Tell(PoolEvent::Finished { key, .. }) => format!("finished {key}"),
        Action::Tell(PoolEvent::SoftTimeLimit { key }) => format!("soft {key}"),
        Action::Tell(PoolEvent::HardTimeLimit { key, .. }) => format!("hard {key}"),
        Action::Tell(PoolEvent::Lost { key, cause, .. }) => format!("lost {key} {cause:?}"),
        Action::Tell(PoolEvent::Returned { key }) => format!("returned {key}"),
        Action::Tell(PoolEvent::Closed) => "closed".to_owned(),
        Action::Tell(event) => format!("{event:?}"),
    };
    machine.take_actions().into_iter().map(shown).collect()
}

fn machine(size: usize) -> Machine {
    let mut machine = Machine::new(size, PID);
    assert_eq!(done(&mut machine), ["up 7"]);
    machine
}

/// A machine of one place that runs job 1.
fn running(hard: Option<f64>, soft: Option<f64>, grace: Duration) -> Machine {
    let mut machine = machine(1);
    machine.submit(job(1, hard, soft), grace, ms(0));
    assert_eq!(done(&mut machine), ["start 1", "started 1 7"]);
    machine
}

const ONE: RequestKey = RequestKey(1);

#[test]
fn jobs_beyond_its_size_wait_and_go_back() {
    let mut machine = machine(1);
    assert_eq!(machine.free(), 1);
    for key in 1..=3 {
        machine.submit(job(key, None, None), GRACE, ms(0));
    }
    assert_eq!((machine.free(), machine.load()), (0, 3));
    assert_eq!(done(&mut machine), ["start 1", "started 1 7"]);
    machine.ended(ONE, success(), true, ms(100));
    assert_eq!(done(&mut machine), ["finished 1", "start 2", "started 2 7"]);
    assert_eq!(machine.next_tick(), Some(RETURN_AFTER));
    machine.tick(RETURN_AFTER);
    assert_eq!(done(&mut machine), ["returned 3"]);
    assert_eq!(machine.process(), (PID, 2));
}

#[test]
fn a_soft_limit_raises_after_the_grace() {
    for (grace, at_once) in [(Duration::ZERO, true), (GRACE, false)] {
        let mut machine = running(Some(10.0), Some(1.0), grace);
        assert_eq!(machine.next_tick(), Some(ms(1000)));
        machine.tick(ms(1000));
        let mut expected = vec!["soft 1", "cancel 1 SoftTimeLimit(1s)"];
        if at_once {
            expected.push("raise 1");
        }
        assert_eq!(done(&mut machine), expected);
        if !at_once {
            assert_eq!(machine.next_tick(), Some(ms(1300)));
            machine.tick(ms(1300));
            assert_eq!(done(&mut machine), ["raise 1"]);
        }
        // It has not yielded: the hard limit still holds.
        assert_eq!(machine.next_tick(), Some(ms(10_000)));
        machine.ended(ONE, success(), true, ms(1400));
        assert_eq!(done(&mut machine), ["finished 1"]);
        assert_eq!(machine.next_tick(), None);
    }
}

#[test]
fn a_hard_limit_is_told_when_nothing_runs_any_more() {
    let mut machine = running(Some(1.0), None, GRACE);
    machine.tick(ms(1000));
    assert_eq!(done(&mut machine), ["cancel 1 TimeLimit(1s)"]);
    machine.tick(ms(1300));
    assert_eq!(done(&mut machine), ["lose 1"]);
    machine.ended(ONE, End::Dropped, true, ms(1301));
    assert_eq!(done(&mut machine), ["hard 1", "lost 1 TimeLimit"]);
    assert_eq!((machine.free(), machine.next_tick()), (1, None));
}

#[test]
fn a_task_that_ended_before_it_was_lost_has_its_outcome() {
    let mut machine = running(Some(1.0), None, Duration::ZERO);
    machine.tick(ms(1000));
    assert_eq!(done(&mut machine), ["cancel 1 TimeLimit(1s)", "lose 1"]);
    machine.had_ended(ONE);
    assert_eq!(machine.next_tick(), None);
    machine.ended(ONE, success(), true, ms(1100));
    assert_eq!(done(&mut machine), ["finished 1"]);
}

#[test]
fn a_task_that_does_not_end_is_concluded_and_keeps_its_place() {
    let mut machine = running(None, None, Duration::ZERO);
    machine.terminate(ONE, 15, ms(0));
    assert_eq!(done(&mut machine), ["cancel 1 Revoked", "lose 1"]);
    assert_eq!(machine.next_tick(), Some(STUCK_AFTER));
    machine.tick(STUCK_AFTER);
    assert_eq!(done(&mut machine), ["stuck 1", "lost 1 Terminated"]);
    assert_eq!((machine.free(), machine.has(ONE)), (0, false));
    // Its end comes late, and is told to nobody.
    machine.ended(ONE, End::Dropped, true, ms(60_000));
    assert_eq!(done(&mut machine), Vec::<String>::new());
    assert_eq!(machine.free(), 1);
}

#[test]
fn a_thread_keeps_its_place_until_it_returns() {
    for is_freed_first in [true, false] {
        let mut machine = running(None, None, Duration::ZERO);
        if is_freed_first {
            machine.freed(ONE, ms(1));
        }
        machine.ended(ONE, success(), false, ms(1));
        assert_eq!(done(&mut machine), ["finished 1"]);
        assert_eq!(machine.free(), usize::from(is_freed_first));
        machine.freed(ONE, ms(2));
        assert_eq!(machine.free(), 1);
    }
}

#[test]
fn signals_end_a_job_as_in_other_pools() {
    for (signal, expected) in [
        (15, vec!["cancel 1 Revoked"]),
        (9, vec!["cancel 1 Revoked", "lose 1"]),
        (10, vec!["cancel 1 SoftTimeLimit(500ms)"]),
    ] {
        let mut machine = running(None, None, GRACE);
        machine.terminate(ONE, signal, ms(500));
        assert_eq!(done(&mut machine), expected, "{signal}");
    }
    let mut machine = running(None, None, GRACE);
    machine.terminate(ONE, 15, ms(0));
    machine.terminate(ONE, 9, ms(1));
    assert_eq!(done(&mut machine), ["cancel 1 Revoked", "lose 1"]);
    machine.interrupt(ONE, true, ms(2));
    assert_eq!(done(&mut machine), Vec::<String>::new());
}

#[test]
fn a_shutdown_interrupts() {
    let mut machine = running(None, None, Duration::ZERO);
    machine.interrupt(ONE, true, ms(0));
    assert_eq!(done(&mut machine), ["cancel 1 Shutdown", "raise 1"]);
    // It does not yield, and all is to end now.
    machine.kill(ms(1));
    assert_eq!(done(&mut machine), ["cancel 1 Shutdown", "lose 1"]);
    assert_eq!(machine.next_tick(), Some(ms(1) + KILL_GRACE));
    machine.tick(ms(1) + KILL_GRACE);
    assert_eq!(
        done(&mut machine),
        ["stuck 1", "lost 1 Terminated", "closed"]
    );
}

#[test]
fn a_closed_pool_takes_nothing_and_ends_when_its_jobs_have() {
    let mut machine = running(None, None, GRACE);
    machine.submit(job(2, None, None), GRACE, ms(0));
    machine.close(ms(1));
    machine.submit(job(3, None, None), GRACE, ms(1));
    assert_eq!(done(&mut machine), ["returned 2", "returned 3"]);
    assert_eq!(machine.free(), 0);
    machine.ended(ONE, success(), true, ms(2));
    assert_eq!(done(&mut machine), ["finished 1", "closed"]);
    machine.kill(ms(3));
    assert_eq!(done(&mut machine), Vec::<String>::new());
    assert_eq!(machine.condition().up, 0);
}

#[test]
fn places_come_and_go() {
    let mut machine = running(None, None, GRACE);
    machine.submit(job(2, None, None), GRACE, ms(0));
    machine.resize(2, ms(1));
    assert_eq!(done(&mut machine), ["start 2", "started 2 7"]);
    machine.resize(1, ms(2));
    assert_eq!(machine.size(), 2);
    machine.shrink(1);
    assert_eq!((machine.size(), machine.free()), (1, 0));
    machine.ended(ONE, success(), true, ms(3));
    assert_eq!(machine.free(), 0);
}

/// Something that happens.
#[derive(Debug, Clone)]
enum Happens {
    Submit { hard: bool, soft: bool, grace: bool },
    End { of: usize, is_free: bool },
    Free { of: usize },
    Terminate { of: usize, signal: i32 },
    Interrupt { of: usize, requeues: bool },
    Resize(usize),
    Shrink(usize),
    Wait(u64),
    Close,
    Kill,
}

fn happens() -> impl Strategy<Value = Happens> {
    let of = 0..12_usize;
    prop_oneof![
        6 => any::<(bool, bool, bool)>()
            .prop_map(|(hard, soft, grace)| Happens::Submit { hard, soft, grace }),
        6 => (of.clone(), any::<bool>()).prop_map(|(of, is_free)| Happens::End { of, is_free }),
        3 => of.clone().prop_map(|of| Happens::Free { of }),
        2 => (of.clone(), prop_oneof![Just(9), Just(10), Just(15)])
            .prop_map(|(of, signal)| Happens::Terminate { of, signal }),
        2 => (of, any::<bool>()).prop_map(|(of, requeues)| Happens::Interrupt { of, requeues }),
        1 => (0..6_usize).prop_map(Happens::Resize),
        1 => (0..3_usize).prop_map(Happens::Shrink),
        6 => (0..3000_u64).prop_map(Happens::Wait),
        1 => Just(Happens::Close),
        1 => Just(Happens::Kill),
    ]
}

/// The world around a machine: what runs, and what was told of it.
#[derive(Default)]
struct World {
    /// Runs by what was decided for them: whether they were raised, whether they are lost.
    runs: HashMap<RequestKey, (bool, bool)>,
    /// Runs that are over and whose task is not.
    left: Vec<RequestKey>,
    begun: Vec<RequestKey>,
    ends: Vec<RequestKey>,
    is_closed: bool,
}

impl World {
    fn act(&mut self, machine: &mut Machine) {
        for action in machine.take_actions() {
            match action {
                Action::Start(job) => {
                    assert!(self.runs.insert(job.key, (false, false)).is_none());
                }
                Action::Raise { key } => self.runs.get_mut(&key).unwrap().0 = true,
                Action::Lose { key } => self.runs.get_mut(&key).unwrap().1 = true,
                Action::Cancel { .. } | Action::Stuck { .. } => {}
                Action::Tell(event) => self.hear(&event),
            }
        }
    }

    fn hear(&mut self, event: &PoolEvent) {
        assert!(
            !self.is_closed || matches!(event, PoolEvent::Returned { .. }),
            "{event:?}"
        );
        match event {
            PoolEvent::Started { key, .. } => self.begun.push(*key),
            PoolEvent::Finished { key, .. } | PoolEvent::Lost { key, .. } => {
                assert!(
                    self.begun.contains(key) && !self.ends.contains(key),
                    "{key}"
                );
                self.ends.push(*key);
            }
            PoolEvent::Returned { key } => {
                assert!(
                    !self.begun.contains(key) && !self.ends.contains(key),
                    "{key}"
                );
                self.ends.push(*key);
            }
            PoolEvent::Closed => self.is_closed = true,
            _ => {}
        }
    }

    /// A run is over: what was lost is dropped, all else has an outcome.
    fn end(&mut self, machine: &mut Machine, key: RequestKey, is_free: bool, now: Duration) {
        let Some((_, is_lost)) = self.runs.remove(&key) else {
            return;
        };
        let end = if is_lost { End::Dropped } else { success() };
        if !is_free {
            self.left.push(key);
        }
        machine.ended(key, end, is_free, now);
    }
}

proptest! {
    #[test]
    fn each_job_has_one_end_in_any_order(story in prop::collection::vec(happens(), 0..80)) {
        let mut machine = Machine::new(3, PID);
        let mut world = World::default();
        let (mut now, mut submitted) = (Duration::ZERO, 0);
        for happens in story {
            let key = |of: usize| RequestKey(u64::try_from(of).unwrap() + 1);
            match happens {
                Happens::Submit { hard, soft, grace } => {
                    submitted += 1;
                    let grace = if grace { GRACE } else { Duration::ZERO };
                    let (hard, soft) = (hard.then_some(2.0), soft.then_some(1.0));
                    machine.submit(job(submitted, hard, soft), grace, now);
                }
                Happens::End { of, is_free } => world.end(&mut machine, key(of), is_free, now),
                Happens::Free { of } => {
                    if let Some(at) = world.left.iter().position(|left| *left == key(of)) {
                        machine.freed(world.left.swap_remove(at), now);
                    }
                }
                Happens::Terminate { of, signal } => machine.terminate(key(of), signal, now),
                Happens::Interrupt { of, requeues } => machine.interrupt(key(of), requeues, now),
                Happens::Resize(size) => machine.resize(size, now),
                Happens::Shrink(by) => machine.shrink(by),
                Happens::Wait(wait) => {
                    now += ms(wait);
                    machine.tick(now);
                }
                Happens::Close => machine.close(now),
                Happens::Kill => machine.kill(now),
            }
            world.act(&mut machine);
            prop_assert!(machine.next_tick().is_none_or(|at| at > now), "it has more to do");
            prop_assert!(machine.free() + machine.load() <= machine.size().max(machine.load()));
        }
        machine.kill(now);
        world.act(&mut machine);
        // Half of what is left ends by itself, the other half never.
        for key in (1..=submitted).map(RequestKey).filter(|key| key.0 % 2 == 0) {
            world.end(&mut machine, key, true, now);
        }
        machine.tick(now + KILL_GRACE);
        machine.tick(now + KILL_GRACE + KILL_GRACE);
        machine.tick(now + STUCK_AFTER + KILL_GRACE + GRACE);
        world.act(&mut machine);
        let mut ends = world.ends.clone();
        ends.sort_unstable();
        prop_assert_eq!(ends, (1..=submitted).map(RequestKey).collect::<Vec<_>>());
        prop_assert!(world.is_closed);
    }
}
