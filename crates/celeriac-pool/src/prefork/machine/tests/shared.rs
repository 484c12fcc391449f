//! Children that run many jobs at once.

use super::super::shared::END_GRACE;
use super::*;

/// A pool of the shape in question, with a world that does as it is told.
pub(super) struct Shared {
    pub(super) machine: Machine,
    pub(super) now: Duration,
    /// What each child's channel holds, unread.
    unread: BTreeMap<u32, VecDeque<RequestKey>>,
    /// What each child runs.
    pub(super) runs: BTreeMap<u32, Vec<RequestKey>>,
    told: Vec<PoolEvent>,
    done: Vec<Action>,
    /// So many messages fit a channel.
    room: usize,
}

impl Shared {
    pub(super) fn new(processes: usize, size: usize, limits: Limits) -> Self {
        let shape = Shape::Shared { processes };
        let mut world = Self {
            machine: Machine::with_shape(shape, size, limits),
            now: ms(1000),
            unread: BTreeMap::new(),
            runs: BTreeMap::new(),
            told: Vec::new(),
            done: Vec::new(),
            room: usize::MAX,
        };
        world.machine.zygote_is_up(world.now);
        world.settle();
        world.done.clear();
        world.told.clear();
        world
    }

    pub(super) fn settle(&mut self) {
        while self.machine.has_actions() {
            for action in self.machine.take_actions() {
                self.carry_out(&action);
                self.done.push(action);
            }
        }
    }

    fn carry_out(&mut self, action: &Action) {
        let now = self.now;
        match action {
            Action::Fork { number, .. } => {
                self.unread.insert(*number, VecDeque::new());
                self.runs.insert(*number, Vec::new());
                self.machine.forked(*number, 1000 + *number, now);
                self.machine.up(*number, now);
            }
            Action::Send { number, job, after } => {
                assert_eq!(*after, AfterJob::Stay, "it leaves when it is told");
                let unread = self.unread.get_mut(number).unwrap();
                if unread.len() < self.room {
                    unread.push_back(job.key);
                    self.machine.sent(*number, now);
                } else {
                    self.machine.unsent(*number, job.clone(), now);
                }
            }
            Action::TakeBack { number } => {
                let unread: Vec<_> = self.unread.get_mut(number).unwrap().drain(..).collect();
                self.machine.taken_back(*number, &unread, now);
            }
            Action::Leave { number } => self.exits(*number, ExitStatus::Code(0)),
            Action::Kill { number, .. } => self.exits(*number, ExitStatus::Signal(9)),
            Action::Forget { number } => {
                self.unread.remove(number);
                self.runs.remove(number);
            }
            Action::Tell(event) => self.told.push(event.clone()),
            Action::SoftLimit { .. } | Action::Terminate { .. } => {}
        }
    }

    pub(super) fn exits(&mut self, number: u32, status: ExitStatus) {
        let unread: Vec<_> = self
            .unread
            .get(&number)
            .into_iter()
            .flatten()
            .copied()
            .collect();
        self.machine
            .exited(number, &Evidence::of(status), &unread, self.now);
    }

    pub(super) fn submit(&mut self, job: Job) {
        self.machine.submit(job, self.now);
        self.settle();
    }

    /// Every child reads what it was sent.
    pub(super) fn read(&mut self) {
        for (number, unread) in &mut self.unread {
            let keys: Vec<_> = unread.drain(..).collect();
            self.runs.get_mut(number).unwrap().extend(&keys);
            self.machine.begun(*number, &keys, self.now);
        }
        self.settle();
    }

    fn child_of(&self, key: u64) -> u32 {
        let key = RequestKey(key);
        let found = self.runs.iter().find(|(_, keys)| keys.contains(&key));
        *found.unwrap().0
    }

    fn leave(&mut self, key: u64) -> u32 {
        let number = self.child_of(key);
        let runs = self.runs.get_mut(&number).unwrap();
        runs.retain(|run| *run != RequestKey(key));
        number
    }

    pub(super) fn finish(&mut self, key: u64) {
        let number = self.leave(key);
        self.machine
            .done(number, RequestKey(key), success(), None, self.now);
        self.settle();
    }

    pub(super) fn ends_as_told(&mut self, key: u64) {
        let number = self.leave(key);
        self.machine.terminated(number, RequestKey(key), self.now);
        self.settle();
    }

    pub(super) fn advance(&mut self, by: Duration) {
        self.now += by;
        self.machine.tick(self.now);
        self.settle();
    }

    pub(super) fn told(&mut self) -> Vec<PoolEvent> {
        std::mem::take(&mut self.told)
    }

    fn done(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.done)
    }

    fn started(&mut self) -> Vec<u64> {
        let started = |event| match event {
            PoolEvent::Started { key, .. } => Some(key.0),
            _ => None,
        };
        self.told().into_iter().filter_map(started).collect()
    }

    fn lost(&mut self) -> Vec<(u64, LossCause)> {
        let lost = |event| match event {
            PoolEvent::Lost { key, cause, .. } => Some((key.0, cause)),
            _ => None,
        };
        self.told().into_iter().filter_map(lost).collect()
    }
}

#[test]
fn jobs_begin_when_their_child_says_so_and_all_at_once() {
    let mut world = Shared::new(1, 3, LIMITS);
    assert_eq!(world.machine.free(world.now), 3);
    for key in 1..=4 {
        world.submit(job(key));
    }
    assert_eq!(world.started(), Vec::<u64>::new());
    assert_eq!(world.machine.free(world.now), 0);
    world.read();
    assert_eq!(world.started(), [1, 2, 3]);
    // Whichever ends first makes room.
    world.finish(2);
    world.read();
    assert_eq!(world.started(), [4]);
    assert_eq!(world.machine.condition().up, 1);
}

#[test]
fn jobs_are_spread_over_the_children() {
    let mut world = Shared::new(2, 5, LIMITS);
    assert_eq!(world.machine.condition().wanted, 2);
    for key in 1..=5 {
        world.submit(job(key));
    }
    world.read();
    let mut loads: Vec<usize> = world.runs.values().map(Vec::len).collect();
    loads.sort_unstable();
    assert_eq!(loads, [2, 3]);
    assert_eq!(world.machine.free(world.now), 0);
}

#[test]
fn a_channel_without_room_is_tried_again_when_its_child_has_read() {
    let mut world = Shared::new(1, 10, LIMITS);
    world.room = 2;
    for key in 1..=3 {
        world.submit(job(key));
    }
    assert_eq!(world.machine.free(world.now), 0);
    world.read();
    world.read();
    assert_eq!(world.started(), [1, 2, 3]);
    assert_eq!(world.machine.free(world.now), 7);
}

#[test]
fn each_job_has_its_own_limits() {
    let mut world = Shared::new(1, 3, LIMITS);
    world.submit(limited(1, Some(1.0), Some(5.0)));
    world.advance(ms(900));
    // What is unread has no limits to exceed.
    world.read();
    world.submit(limited(2, Some(1.0), None));
    world.read();
    world.submit(job(3));
    world.read();
    world.told();
    world.done();
    assert_eq!(
        world.machine.next_tick(world.now),
        Some(world.now + ms(1000))
    );
    world.advance(ms(1000));
    let expected: Vec<_> = [1, 2]
        .map(|key| PoolEvent::SoftTimeLimit {
            key: RequestKey(key),
        })
        .into();
    assert_eq!(world.told(), expected);
    world.finish(2);
    world.told();
    world.advance(ms(4000));
    let key = RequestKey(1);
    let hard = PoolEvent::HardTimeLimit { key, pid: 1001 };
    assert_eq!(world.told(), [hard]);
    assert!(world.done().contains(&Action::Terminate { number: 1, key }));
    world.ends_as_told(1);
    assert_eq!(world.lost(), [(1, LossCause::TimeLimit)]);
    world.finish(3);
    // What would have come due in those that have ended is forgotten then.
    world.advance(ms(20_000));
    assert_eq!(world.machine.next_tick(world.now), None);
}

#[test]
fn a_child_is_killed_for_a_job_that_does_not_end() {
    let mut world = Shared::new(1, 4, LIMITS);
    world.submit(limited(1, None, Some(1.0)));
    world.submit(job(2));
    world.read();
    world.submit(job(3));
    world.advance(ms(1000));
    world.told();
    world.advance(ms(999));
    assert_eq!(world.told(), []);
    world.advance(ms(1));
    let told = world.told();
    assert!(
        told.contains(&PoolEvent::Returned { key: RequestKey(3) }),
        "{told:?}"
    );
    world.told = told;
    let lost = [(1, LossCause::TimeLimit), (2, LossCause::Neighbor)];
    assert_eq!(world.lost(), lost);
    // It has a successor.
    assert_eq!(world.machine.condition().up, 1);
    assert_eq!(world.machine.free(world.now), 4);
}

#[test]
fn one_job_is_terminated_alone() {
    for (signal, kills) in [(15, false), (9, true)] {
        let mut world = Shared::new(1, 4, LIMITS);
        world.submit(limited(1, None, Some(20.0)));
        world.submit(job(2));
        world.read();
        world.told();
        let key = RequestKey(1);
        world.machine.terminate(key, signal, world.now);
        world.settle();
        assert!(world.done().contains(&Action::Terminate { number: 1, key }));
        // One that does not heed it has its limits as before, unless it is to end at all costs.
        world.advance(END_GRACE);
        let lost = [(1, LossCause::Terminated), (2, LossCause::Neighbor)];
        let expected: &[_] = if kills { &lost } else { &[] };
        assert_eq!(world.lost(), expected, "{signal}");
        if !kills {
            world.advance(ms(20_000));
            assert!(matches!(
                world.told()[..],
                [PoolEvent::HardTimeLimit { .. }]
            ));
            world.ends_as_told(1);
            assert_eq!(world.lost().len(), 1);
            world.finish(2);
        }
    }
}

#[test]
fn an_unread_job_that_is_terminated_comes_back() {
    let mut world = Shared::new(1, 4, LIMITS);
    let key = RequestKey(1);
    world.submit(job(1));
    world.machine.terminate(key, 15, world.now);
    world.settle();
    assert_eq!(world.told(), [PoolEvent::Returned { key }]);
}

#[test]
fn the_soft_limits_signal_ends_no_job() {
    let mut world = Shared::new(1, 4, LIMITS);
    let key = RequestKey(1);
    world.submit(job(1));
    world.read();
    world.done();
    world.machine.terminate(key, SIGUSR1, world.now);
    world.machine.interrupt(key, true);
    world.settle();
    let soft = |limit| Action::SoftLimit {
        number: 1,
        key,
        limit,
    };
    assert_eq!(
        world.done(),
        [soft(SoftLimit::Time), soft(SoftLimit::Shutdown)]
    );
}

#[test]
fn a_child_is_replaced_before_the_last_of_its_tasks_ends() {
    let limits = Limits {
        max_tasks_per_child: Some(2),
        ..LIMITS
    };
    let mut world = Shared::new(1, 3, limits);
    for key in 1..=3 {
        world.submit(job(key));
    }
    world.read();
    assert_eq!(world.child_of(3), 2);
    world.finish(1);
    assert!(world.runs.contains_key(&1));
    world.finish(2);
    assert!(!world.runs.contains_key(&1), "it left with its last task");
    world.finish(3);
    // The second child may do one more.
    assert_eq!(world.machine.free(world.now), 1);
}

#[test]
fn memory_is_held_against_the_child_and_no_task() {
    let limits = Limits {
        memory: MEMORY,
        ..LIMITS
    };
    let mut world = Shared::new(1, 3, limits);
    world.submit(job(1));
    world.submit(job(2));
    world.read();
    world.done();
    world.machine.memory(1, 600, world.now);
    world.settle();
    let is_soft = |action: &Action| matches!(action, Action::SoftLimit { .. });
    assert!(!world.done().iter().any(is_soft));
    // Its successor takes over at once.
    world.submit(job(3));
    world.read();
    assert_eq!(world.child_of(3), 2);
    world.finish(1);
    world.finish(2);
    assert!(!world.runs.contains_key(&1));
    world.told();
    world.machine.memory(2, 2001, world.now);
    world.settle();
    assert!(matches!(world.lost()[..], [(3, LossCause::Memory { .. })]));
}

#[test]
fn a_dead_child_takes_all_its_jobs_along() {
    let mut world = Shared::new(1, 3, LIMITS);
    world.submit(job(1));
    world.submit(job(2));
    world.read();
    world.submit(job(3));
    world.told();
    world.exits(1, ExitStatus::Signal(11));
    world.settle();
    let told = world.told();
    assert!(
        told.contains(&PoolEvent::Returned { key: RequestKey(3) }),
        "{told:?}"
    );
    world.told = told;
    let died = LossCause::Died(ExitStatus::Signal(11));
    assert_eq!(world.lost(), [(1, died), (2, died)]);
}

#[test]
fn a_task_that_wants_to_exit_leaves_the_child_to_the_others() {
    let mut world = Shared::new(1, 2, LIMITS);
    world.submit(job(1));
    world.submit(job(2));
    world.read();
    world.done();
    let number = world.leave(1);
    let outcome = Outcome::Left { status: 3 };
    world
        .machine
        .done(number, RequestKey(1), outcome, None, world.now);
    world.settle();
    assert!(world.runs.contains_key(&1));
    world.finish(2);
    assert_eq!(world.machine.free(world.now), 2);
}

#[test]
fn a_closing_pool_waits_for_all_jobs_and_gives_back_what_has_not_begun() {
    let mut world = Shared::new(1, 4, LIMITS);
    world.submit(job(1));
    world.submit(job(2));
    world.read();
    world.submit(job(3));
    world.told();
    world.machine.close(world.now);
    world.settle();
    assert_eq!(world.told(), [PoolEvent::Returned { key: RequestKey(3) }]);
    world.finish(2);
    world.told();
    world.finish(1);
    assert_eq!(world.told().last(), Some(&PoolEvent::Closed));
}

#[test]
fn a_cold_shutdown_kills_the_children() {
    let mut world = Shared::new(2, 4, LIMITS);
    world.submit(job(1));
    world.read();
    world.told();
    world.machine.kill_all(world.now);
    world.settle();
    let told = world.told();
    assert_eq!(told.last(), Some(&PoolEvent::Closed));
    world.told = told;
    assert_eq!(world.lost(), [(1, LossCause::Terminated)]);
}

#[test]
fn a_pool_grows_and_shrinks_by_jobs() {
    let mut world = Shared::new(1, 2, LIMITS);
    world.machine.resize(4, world.now);
    world.settle();
    assert_eq!(
        (world.machine.size(), world.machine.free(world.now)),
        (4, 4)
    );
    for key in 1..=4 {
        world.submit(job(key));
    }
    world.read();
    world.machine.shrink(2, world.now);
    world.settle();
    assert_eq!(
        (world.machine.size(), world.machine.free(world.now)),
        (2, 0)
    );
    world.finish(1);
    world.finish(2);
    assert_eq!(world.machine.free(world.now), 0);
    world.finish(3);
    assert_eq!(world.machine.free(world.now), 1);
}
