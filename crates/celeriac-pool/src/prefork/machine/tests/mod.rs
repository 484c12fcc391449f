mod memory;
mod shared;
mod shared_anything;

use std::collections::HashMap;

use bytes::Bytes;
use celeriac_core::Evidence;
use celeriac_core::pool::{ExitStatus, Outcome, ShortOf, Shortage};
use celeriac_protocol::{TimeLimit, TimeLimits};
use proptest::prelude::*;

use super::assign::MOST_AHEAD;
use super::due::RETURN_AFTER;
use super::*;

const LIMITS: Limits = Limits {
    max_tasks_per_child: None,
    memory: MemoryLimits {
        soft: None,
        replace: None,
        hard: None,
    },
    start_timeout: Duration::from_mins(1),
};

const MEMORY: MemoryLimits = MemoryLimits {
    soft: Some(500),
    replace: Some(1000),
    hard: Some(2000),
};

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn job(key: u64) -> Job {
    job_of("task", key)
}

fn job_of(task: &str, key: u64) -> Job {
    Job {
        key: RequestKey(key),
        task: task.into(),
        request: "{}".to_owned(),
        body: Bytes::new(),
        content_type: None,
        content_encoding: None,
        time_limits: TimeLimits::default(),
        wants_result: false,
        wants_exception: false,
    }
}

fn limited(key: u64, soft: Option<f64>, hard: Option<f64>) -> Job {
    let limit =
        |seconds: Option<f64>| TimeLimit::new(&serde_json::Number::from_f64(seconds?)?).flatten();
    Job {
        time_limits: TimeLimits {
            hard: limit(hard),
            soft: limit(soft),
        },
        ..job(key)
    }
}

fn success() -> Outcome {
    Outcome::Success {
        runtime: None,
        result: String::new(),
    }
}

/// A machine with the outside world as it should be: forks succeed, messages arrive.
struct World {
    machine: Machine,
    now: Duration,
    /// What each child's channel holds, the first being run.
    channels: BTreeMap<u32, VecDeque<(RequestKey, AfterJob)>>,
    told: Vec<PoolEvent>,
    done: Vec<Action>,
}

impl World {
    fn new(size: usize, limits: Limits) -> Self {
        let mut world = Self {
            machine: Machine::new(size, limits),
            now: ms(1000),
            channels: BTreeMap::new(),
            told: Vec::new(),
            done: Vec::new(),
        };
        world.machine.zygote_is_up(world.now);
        world.settle();
        world
    }

    /// Carries out all actions.
    fn settle(&mut self) {
        loop {
            let actions = self.machine.take_actions();
            if actions.is_empty() {
                return;
            }
            for action in actions {
                match &action {
                    Action::Fork { number, .. } => {
                        self.channels.insert(*number, VecDeque::new());
                        self.machine.forked(*number, 1000 + *number, self.now);
                        self.machine.up(*number, self.now);
                    }
                    Action::Send { number, job, after } => {
                        self.channels
                            .get_mut(number)
                            .unwrap()
                            .push_back((job.key, *after));
                        self.machine.sent(*number, self.now);
                    }
                    Action::TakeBack { number } => {
                        let unread: Vec<RequestKey> = self
                            .channels
                            .get_mut(number)
                            .unwrap()
                            .drain(1..)
                            .map(|j| j.0)
                            .collect();
                        self.machine.taken_back(*number, &unread, self.now);
                    }
                    Action::Tell(event) => self.told.push(event.clone()),
                    Action::Leave { number } => self.machine_exits(*number, ExitStatus::Code(0)),
                    Action::Forget { number } => drop(self.channels.remove(number)),
                    Action::Kill { .. } | Action::SoftLimit { .. } | Action::Terminate { .. } => {}
                }
                self.done.push(action);
            }
        }
    }

    fn machine_exits(&mut self, number: u32, status: ExitStatus) {
        self.machine
            .exited(number, &Evidence::of(status), &[], self.now);
    }

    fn submit(&mut self, job: Job) {
        self.machine.submit(job, self.now);
        self.settle();
    }

    fn finish(&mut self, number: u32) {
        let (key, after) = self.channels.get_mut(&number).unwrap().pop_front().unwrap();
        self.machine.done(number, key, success(), None, self.now);
        self.settle();
        if after == AfterJob::Leave {
            self.exit(number, ExitStatus::Code(155));
        }
    }

    fn exit(&mut self, number: u32, status: ExitStatus) {
        self.machine
            .exited(number, &Evidence::of(status), &[], self.now);
        self.settle();
    }

    fn advance(&mut self, by: Duration) {
        self.now += by;
        self.machine.tick(self.now);
        self.settle();
    }

    fn told(&mut self) -> Vec<PoolEvent> {
        std::mem::take(&mut self.told)
    }

    fn done(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.done)
    }

    /// Runs a task of the given length on the first idle child, so that its time is known.
    fn learn(&mut self, task: &str, took: Duration) {
        self.submit(job_of(task, 9_999_999));
        let (number, _) = self
            .channels
            .iter()
            .find(|(_, jobs)| !jobs.is_empty())
            .unwrap();
        let number = *number;
        self.now += took;
        self.finish(number);
        self.told.clear();
        self.done.clear();
    }

    fn running(&self) -> usize {
        self.channels
            .values()
            .filter(|jobs| !jobs.is_empty())
            .count()
    }
}

/// What a child leaves whose task ran for so long.
fn left_by(status: ExitStatus, run_time: Duration) -> Evidence {
    Evidence {
        run_time: Some(run_time),
        ..Evidence::of(status)
    }
}

fn started(key: u64, pid: u32) -> PoolEvent {
    let key = RequestKey(key);
    PoolEvent::Started { key, pid }
}

fn finished(key: u64) -> PoolEvent {
    PoolEvent::Finished {
        key: RequestKey(key),
        outcome: success(),
    }
}

#[test]
fn children_are_forked_when_the_zygote_is_up() {
    let mut machine = Machine::new(2, LIMITS);
    machine.tick(ms(0));
    assert_eq!(machine.take_actions(), []);
    machine.zygote_is_up(ms(0));
    let forks = [
        Action::Fork {
            number: 1,
            index: 0,
        },
        Action::Fork {
            number: 2,
            index: 1,
        },
    ];
    assert_eq!(machine.take_actions(), forks);
    assert_eq!(machine.free(ms(0)), 0);
    machine.up(1, ms(0));
    assert_eq!(
        machine.take_actions(),
        [],
        "its process id is not known yet"
    );
    machine.forked(1, 77, ms(0));
    assert_eq!(
        machine.take_actions(),
        [Action::Tell(PoolEvent::Up { pid: 77 })]
    );
    assert_eq!(machine.free(ms(0)), 2, "the other one is on its way");
}

#[test]
fn a_job_goes_to_an_idle_child_and_begins_at_once() {
    let mut world = World::new(2, LIMITS);
    world.told();
    world.submit(job(1));
    world.submit(job(2));
    assert_eq!(world.told(), [started(1, 1001), started(2, 1002),]);
    assert_eq!(world.machine.free(world.now), 0);
    world.submit(job(3));
    assert_eq!(world.told(), []);
    world.finish(2);
    assert_eq!(world.told(), [finished(2), started(3, 1002)]);
}

#[test]
fn nothing_goes_behind_a_task_that_may_take_long() {
    let mut world = World::new(1, LIMITS);
    world.submit(job(1));
    world.submit(job(2));
    assert_eq!(
        world.channels[&1].len(),
        1,
        "how long it takes is not known"
    );
    assert_eq!(world.machine.free(world.now), 0);
    world.advance(RETURN_AFTER);
    assert!(
        world
            .told()
            .contains(&PoolEvent::Returned { key: RequestKey(2) })
    );
}

#[test]
fn short_tasks_are_given_ahead_and_taken_back_from_behind_a_long_one() {
    let mut world = World::new(1, LIMITS);
    world.learn("task", Duration::from_micros(100));
    assert_eq!(world.machine.free(world.now), 1 + MOST_AHEAD);
    for key in 1..=4 {
        world.submit(job(key));
    }
    assert_eq!(world.channels[&1].len(), 4);
    world.now += Duration::from_micros(200);
    world.told();
    world.finish(1);
    assert_eq!(world.told(), [finished(1), started(2, 1001)]);
    // The second takes longer than anybody thought.
    world.advance(TAKE_BACK_AFTER);
    assert_eq!(
        world.told(),
        [
            PoolEvent::Returned { key: RequestKey(3) },
            PoolEvent::Returned { key: RequestKey(4) }
        ]
    );
    assert_eq!(world.machine.free(world.now), 0);
}

#[test]
fn a_child_that_has_read_its_next_job_already_is_not_asked_for_it_again_and_again() {
    let mut world = World::new(1, LIMITS);
    world.learn("task", Duration::from_micros(200));
    world.submit(job(1));
    world.submit(job(2));
    // It is done with the first and runs the second: that it says so is still on its way, and its
    // channel is empty.
    world.now += TAKE_BACK_AFTER;
    world.machine.tick(world.now);
    assert_eq!(
        world.machine.take_actions(),
        [Action::TakeBack { number: 1 }]
    );
    world.machine.taken_back(1, &[], world.now);
    assert!(!world.machine.has_actions());
    let next = world.machine.next_tick(world.now);
    assert!(next.is_none_or(|at| at > world.now), "it would never rest");
}

#[test]
fn an_idle_child_comes_before_a_busy_one() {
    let mut world = World::new(2, LIMITS);
    world.learn("task", Duration::from_micros(200));
    world.submit(job(1));
    world.submit(job(2));
    assert_eq!(world.running(), 2);
}

#[test]
fn a_job_that_runs_can_be_interrupted_and_no_other() {
    let mut world = World::new(1, LIMITS);
    world.learn("task", Duration::from_micros(200));
    world.submit(job(1));
    world.submit(job(2));
    for (key, is_raised) in [(1, true), (2, false), (3, false)] {
        world.machine.interrupt(RequestKey(key), true);
        let soft = Action::SoftLimit {
            number: 1,
            key: RequestKey(key),
            limit: SoftLimit::Shutdown,
        };
        let actions = world.machine.take_actions();
        assert_eq!(
            actions,
            Vec::from_iter(is_raised.then_some(soft)),
            "job {key}"
        );
    }
}

#[test]
fn soft_limit_raises_and_hard_limit_kills_with_the_group() {
    let mut world = World::new(1, LIMITS);
    world.told();
    world.done();
    world.submit(limited(1, Some(1.0), Some(2.0)));
    world.advance(ms(999));
    assert_eq!(world.told().len(), 1, "it has started and nothing more");
    world.advance(ms(1));
    assert_eq!(
        world.told(),
        [PoolEvent::SoftTimeLimit { key: RequestKey(1) }]
    );
    assert!(world.done().contains(&Action::SoftLimit {
        number: 1,
        key: RequestKey(1),
        limit: SoftLimit::Time,
    }));
    world.advance(ms(500));
    assert_eq!(world.told(), [], "the soft limit is raised once");
    world.advance(ms(500));
    let limit = PoolEvent::HardTimeLimit {
        key: RequestKey(1),
        pid: 1001,
    };
    assert_eq!(
        world.told(),
        [limit, PoolEvent::Up { pid: 1002 }],
        "its successor is there"
    );
    assert!(world.done().contains(&Action::Kill {
        number: 1,
        kill: Kill::TerminateGroup
    }));
    assert_eq!(
        world.machine.next_tick(world.now),
        Some(world.now + TERM_GRACE)
    );
    world.advance(TERM_GRACE);
    assert!(world.done().contains(&Action::Kill {
        number: 1,
        kill: Kill::Kill
    }));
    world.exit(1, ExitStatus::Signal(9));
    let cause = LossCause::TimeLimit;
    assert_eq!(
        world.told(),
        [PoolEvent::Lost {
            key: RequestKey(1),
            pid: 1001,
            cause,
            evidence: left_by(ExitStatus::Signal(9), ms(2100))
        }]
    );
}

#[test]
fn a_limit_begins_with_its_task() {
    let mut world = World::new(1, LIMITS);
    world.learn("task", Duration::from_micros(200));
    world.submit(job(1));
    world.submit(limited(2, None, Some(0.01)));
    world.advance(ms(15));
    assert!(
        world
            .told()
            .iter()
            .all(|event| !matches!(event, PoolEvent::HardTimeLimit { .. }))
    );
    world.finish(1);
    world.advance(ms(10));
    assert!(world.told().contains(&PoolEvent::HardTimeLimit {
        key: RequestKey(2),
        pid: 1001
    }));
}

#[test]
fn a_lost_child_loses_its_running_job_alone() {
    let mut world = World::new(1, LIMITS);
    world.learn("task", Duration::from_micros(200));
    for key in 1..=3 {
        world.submit(job(key));
    }
    world.told();
    world.exit(1, ExitStatus::Signal(9));
    let cause = LossCause::Died(ExitStatus::Signal(9));
    assert_eq!(
        world.told(),
        [
            PoolEvent::Died {
                name: "ForkPoolWorker-1".to_owned(),
                pid: 1001,
                status: ExitStatus::Signal(9)
            },
            PoolEvent::Lost {
                key: RequestKey(1),
                pid: 1001,
                cause,
                evidence: left_by(ExitStatus::Signal(9), ms(0))
            },
            PoolEvent::Returned { key: RequestKey(2) },
            PoolEvent::Returned { key: RequestKey(3) },
            PoolEvent::Up { pid: 1002 },
        ]
    );
}

#[test]
fn a_child_is_replaced_after_its_number_of_tasks() {
    let mut world = World::new(
        1,
        Limits {
            max_tasks_per_child: Some(2),
            ..LIMITS
        },
    );
    let mut by_child: HashMap<u32, u32> = HashMap::new();
    for key in 1..=10 {
        world.submit(job(key));
        assert_eq!(world.running(), 1, "one at a time, replaced or not");
        let number = *world
            .channels
            .iter()
            .find(|(_, jobs)| !jobs.is_empty())
            .unwrap()
            .0;
        *by_child.entry(number).or_default() += 1;
        world.now += ms(1);
        world.finish(number);
    }
    assert_eq!(by_child.len(), 5);
    assert!(by_child.values().all(|count| *count == 2));
    assert!(
        !world
            .told()
            .iter()
            .any(|event| matches!(event, PoolEvent::Died { .. }))
    );
}

#[test]
fn a_successor_waits_until_the_last_job_of_its_predecessor_is_done() {
    let mut world = World::new(
        1,
        Limits {
            max_tasks_per_child: Some(1),
            ..LIMITS
        },
    );
    world.learn("task", ms(1));
    world.submit(job(1));
    assert_eq!(world.channels.len(), 2, "the successor is there already");
    world.submit(job(2));
    assert_eq!(world.running(), 1);
    let number = *world
        .channels
        .iter()
        .find(|(_, jobs)| !jobs.is_empty())
        .unwrap()
        .0;
    world.finish(number);
    assert_eq!(world.running(), 1);
    assert!(world.told().contains(&started(2, 1003)));
}

#[test]
fn children_that_cannot_start_are_given_time_and_then_given_up() {
    let mut machine = Machine::new(1, LIMITS);
    let mut now = ms(0);
    machine.zygote_is_up(now);
    let mut waits = Vec::new();
    let mut told = Vec::new();
    for _ in 0..6 {
        let number = machine
            .take_actions()
            .into_iter()
            .find_map(|action| match action {
                Action::Fork { number, .. } => Some(number),
                Action::Tell(event) => {
                    told.push(event);
                    None
                }
                _ => None,
            })
            .unwrap();
        machine.forked(number, 5, now);
        machine.exited(number, &Evidence::of(ExitStatus::Code(1)), &[], now);
        let next = machine.next_tick(now).unwrap();
        waits.push(next.saturating_sub(now).as_millis());
        now = next;
        machine.tick(now);
    }
    assert_eq!(waits, [100, 200, 400, 800, 1600, 3200]);
    assert!(
        told.iter()
            .any(|event| matches!(event, PoolEvent::CannotStart { .. }))
    );
}

#[test]
fn a_child_that_never_gets_up_is_killed() {
    let mut machine = Machine::new(1, LIMITS);
    machine.zygote_is_up(ms(0));
    machine.forked(1, 5, ms(0));
    machine.take_actions();
    machine.tick(LIMITS.start_timeout);
    assert_eq!(
        machine.take_actions(),
        [Action::Kill {
            number: 1,
            kill: Kill::Kill
        }]
    );
    machine.tick(LIMITS.start_timeout + ms(1));
    assert_eq!(machine.take_actions(), []);
}

#[test]
fn growing_forks_and_shrinking_spares_the_busy() {
    let mut world = World::new(1, LIMITS);
    assert_eq!(world.machine.resize(3, world.now), 0);
    world.settle();
    assert_eq!(world.channels.len(), 3);
    world.submit(job(1));
    world.submit(job(2));
    assert_eq!(world.machine.resize(0, world.now), 1, "one is idle");
    world.settle();
    assert_eq!(world.channels.len(), 2);
    assert_eq!(world.machine.size(), 2);
}

#[test]
fn closing_waits_for_running_jobs() {
    let mut world = World::new(2, LIMITS);
    world.submit(job(1));
    world.machine.close(world.now);
    world.settle();
    assert_eq!(world.channels.len(), 1, "the idle one has left");
    world.told();
    world.submit(job(2));
    assert_eq!(world.told(), [PoolEvent::Returned { key: RequestKey(2) }]);
    world.finish(1);
    assert_eq!(world.told(), [finished(1), PoolEvent::Closed]);
}

#[test]
fn killing_all_loses_what_runs() {
    let mut world = World::new(2, LIMITS);
    world.submit(job(1));
    world.told();
    world.machine.kill_all(world.now);
    world.settle();
    world.exit(1, ExitStatus::Signal(15));
    let cause = LossCause::Terminated;
    assert_eq!(
        world.told(),
        [
            PoolEvent::Lost {
                key: RequestKey(1),
                pid: 1001,
                cause,
                evidence: left_by(ExitStatus::Signal(15), ms(0))
            },
            PoolEvent::Closed
        ]
    );
}

#[test]
fn revoking_signals_what_runs_and_gives_back_what_does_not() {
    let mut world = World::new(1, LIMITS);
    world.learn("task", Duration::from_micros(200));
    world.submit(job(1));
    world.submit(job(2));
    world.told();
    world.machine.terminate(RequestKey(2), 15, world.now);
    world.settle();
    assert_eq!(world.told(), [PoolEvent::Returned { key: RequestKey(2) }]);
    world.machine.terminate(RequestKey(1), 15, world.now);
    world.settle();
    assert!(world.done().contains(&Action::Kill {
        number: 1,
        kill: Kill::Signal(15)
    }));
    world.exit(1, ExitStatus::Code(-241));
    let cause = LossCause::Terminated;
    assert!(world.told().contains(&PoolEvent::Lost {
        key: RequestKey(1),
        pid: 1001,
        cause,
        evidence: left_by(ExitStatus::Code(-241), ms(0))
    }));
}

#[test]
fn a_lost_zygote_takes_the_unborn_with_it() {
    let mut machine = Machine::new(2, LIMITS);
    machine.zygote_is_up(ms(0));
    machine.forked(1, 5, ms(0));
    machine.up(1, ms(0));
    machine.take_actions();
    machine.zygote_is_gone();
    assert_eq!(machine.take_actions(), [Action::Forget { number: 2 }]);
    machine.exited(1, &Evidence::of(ExitStatus::Signal(9)), &[], ms(1));
    assert!(
        !machine
            .take_actions()
            .iter()
            .any(|action| matches!(action, Action::Fork { .. }))
    );
    machine.zygote_is_up(ms(2));
    let forks = machine.take_actions();
    assert_eq!(forks.len(), 2, "{forks:?}");
}

#[test]
fn a_full_channel_keeps_its_jobs_and_gets_no_more() {
    let mut world = World::new(1, LIMITS);
    world.learn("task", Duration::from_micros(200));
    world.submit(job(1));
    world.machine.submit(job(2), world.now);
    let sent = world.machine.take_actions();
    assert!(matches!(sent[..], [Action::Send { .. }]));
    world.machine.unsent(1, job(2), world.now);
    world.machine.tick(world.now);
    assert_eq!(
        world.machine.take_actions(),
        [],
        "no second try while it is full"
    );
    world.told();
    world.finish(1);
    assert_eq!(world.told(), [finished(1), started(2, 1001)]);
}

/// Anything that may happen next.
#[derive(Debug, Clone)]
enum Step {
    Submit { limited: bool },
    Finish(usize),
    Exit(usize, bool),
    Advance(u64),
    Resize(usize),
    Memory(usize, u64),
    Pressure(bool),
    Terminate(usize),
    ZygoteDies,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => any::<bool>().prop_map(|limited| Step::Submit { limited }),
        6 => any::<usize>().prop_map(Step::Finish),
        2 => (any::<usize>(), any::<bool>()).prop_map(|(child, kill)| Step::Exit(child, kill)),
        4 => (0_u64..400).prop_map(Step::Advance),
        1 => (0_usize..5).prop_map(Step::Resize),
        1 => (any::<usize>(), 0_u64..4000).prop_map(|(child, kib)| Step::Memory(child, kib)),
        1 => any::<bool>().prop_map(Step::Pressure),
        1 => any::<usize>().prop_map(Step::Terminate),
        1 => Just(Step::ZygoteDies),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever happens, every job has exactly one end, begins at most once before it, and no more
    /// children than wanted run at the same time.
    #[test]
    fn every_job_has_one_end(
        size in 1_usize..4,
        tasks in prop::option::of(1_u64..4),
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let limits =
            Limits { max_tasks_per_child: tasks, memory: MEMORY, ..LIMITS };
        let mut world = World::new(size, limits);
        let mut submitted = 0_u64;
        let mut most = size;
        for step in steps {
            let nth = |at: usize, children: &BTreeMap<u32, VecDeque<_>>| {
                let keys: Vec<u32> = children.keys().copied().collect();
                (!keys.is_empty()).then(|| keys[at % keys.len()])
            };
            match step {
                Step::Submit { limited: is_limited } => {
                    submitted += 1;
                    let job = if is_limited { limited(submitted, Some(0.1), Some(0.2)) } else { job(submitted) };
                    world.submit(job);
                }
                Step::Finish(at) => {
                    if let Some(number) = nth(at, &world.channels)
                        && !world.channels[&number].is_empty() {
                        world.finish(number);
                    }
                }
                Step::Exit(at, kill) => {
                    if let Some(number) = nth(at, &world.channels) {
                        world.exit(number, if kill { ExitStatus::Signal(9) } else { ExitStatus::Code(1) });
                    }
                }
                Step::Advance(by) => world.advance(ms(by)),
                Step::Resize(size) => {
                    most = most.max(size).max(world.machine.size());
                    world.machine.resize(size, world.now);
                    world.settle();
                }
                Step::Memory(at, kib) => {
                    if let Some(number) = nth(at, &world.channels) {
                        world.machine.memory(number, kib, world.now);
                        world.settle();
                    }
                }
                Step::Pressure(is_short) => {
                    let shortage = Shortage { of: ShortOf::Machine, available: 1, total: 100 };
                    world.machine.pressure(is_short.then_some(shortage), world.now);
                    let held: Vec<_> = world.channels.keys().map(|number| (*number, 7)).collect();
                    world.machine.end_largest(&held, if is_short { 0 } else { 8 }, shortage);
                    world.settle();
                }
                Step::Terminate(at) => {
                    world.machine.terminate(RequestKey(at as u64 % (submitted + 1)), 15, world.now);
                    world.settle();
                }
                Step::ZygoteDies => {
                    world.machine.zygote_is_gone();
                    world.settle();
                    for number in world.channels.keys().copied().collect::<Vec<_>>() {
                        world.exit(number, ExitStatus::Signal(9));
                    }
                    world.machine.zygote_is_up(world.now);
                    world.settle();
                }
            }
            prop_assert!(world.running() <= most, "{} run of {most}", world.running());
        }
        // The world ends.
        world.machine.kill_all(world.now);
        world.settle();
        for number in world.channels.keys().copied().collect::<Vec<_>>() {
            world.exit(number, ExitStatus::Signal(9));
        }
        let mut ends: HashMap<u64, u32> = HashMap::new();
        let mut begun: HashMap<u64, u32> = HashMap::new();
        for event in &world.told {
            match event {
                PoolEvent::Finished { key, .. }
                | PoolEvent::Lost { key, .. }
                | PoolEvent::Returned { key } => *ends.entry(key.0).or_default() += 1,
                PoolEvent::Started { key, .. } => *begun.entry(key.0).or_default() += 1,
                _ => {}
            }
            if let PoolEvent::Returned { key } = event {
                prop_assert_eq!(begun.get(&key.0), None, "what began is not given back");
            }
        }
        for key in 1..=submitted {
            prop_assert_eq!(ends.get(&key), Some(&1), "job {}", key);
            prop_assert!(begun.get(&key).is_none_or(|times| *times == 1));
        }
        prop_assert_eq!(world.told.last(), Some(&PoolEvent::Closed));
    }
}

#[test]
fn a_shrinking_pool_lets_busy_children_finish() {
    let mut world = World::new(2, LIMITS);
    world.submit(job(1));
    world.submit(job(2));
    world.machine.shrink(1, world.now);
    world.settle();
    assert_eq!((world.machine.size(), world.running()), (1, 2));
    world.finish(1);
    world.finish(2);
    world.submit(job(3));
    world.submit(job(4));
    assert_eq!(world.running(), 1, "one of them is left");
    assert_eq!(world.machine.processes().len(), 1);
}

#[test]
fn a_restarted_pool_has_new_children_only() {
    let mut world = World::new(2, LIMITS);
    world.submit(job(1));
    let pids = |world: &World| -> Vec<u32> { world.machine.pids().collect() };
    let before = pids(&world);
    world.machine.restart(world.now);
    world.settle();
    world.finish(1);
    let after = pids(&world);
    assert_eq!(after.len(), 2);
    assert!(
        after.iter().all(|pid| !before.contains(pid)),
        "{before:?} {after:?}"
    );
}

#[test]
fn a_pool_that_is_restarted_while_its_children_start_is_replaced_all_the_same() {
    let mut machine = Machine::new(1, LIMITS);
    machine.zygote_is_up(ms(0));
    machine.restart(ms(1));
    machine.forked(1, 1001, ms(2));
    machine.take_actions();
    machine.up(1, ms(3));
    let actions = machine.take_actions();
    assert!(
        actions.contains(&Action::Leave { number: 1 }),
        "{actions:?}"
    );
    let next = Action::Fork {
        number: 2,
        index: 0,
    };
    assert!(actions.contains(&next), "{actions:?}");
}
