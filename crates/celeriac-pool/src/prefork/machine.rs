//! What the pool decides: a state machine over jobs, children and readings of the clock.
//!
//! Everything that happens is told to the [`Machine`] by a method; what is to be done about it is
//! taken from it as [`Action`]s. It does nothing itself, so that tests and the simulator can make
//! anything happen at any moment.
//!
//! Celery's counterpart: `celery.concurrency.asynpool.AsynPool` and `billiard.pool.Pool`, in the
//! strategy that Celery calls fair: a job goes to a child that has none. One exception: a child
//! whose tasks take less than [`AHEAD`] is given some more, which are taken back when one of them
//! takes longer after all.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytestring::ByteString;
use celeriac_core::backoff::Doubling;
use celeriac_core::pool::{ExitStatus, Job, LossCause, Outcome, PoolEvent, RequestKey};

use super::estimate::Estimates;
use super::frame::AfterJob;
use crate::sys::process::Resident;

/// Work that a child may have ahead of it, in seconds: enough to cover the way to the broker and
/// back, short enough that nobody minds waiting so long behind it.
const AHEAD: f64 = 0.005;
/// Jobs that a child may have ahead of it at most.
const MOST_AHEAD: usize = 16;
/// A job that runs for so long with others behind it is not the short one it was taken for.
const TAKE_BACK_AFTER: Duration = Duration::from_millis(20);
/// A job that no child could take for so long goes back to the worker.
const RETURN_AFTER: Duration = Duration::from_millis(500);
/// Between SIGTERM and SIGKILL for a job that is over its hard limit, as in billiard.
const TERM_GRACE: Duration = Duration::from_millis(100);
/// How long a child that was told to leave may take for its exit hooks.
const LEAVE_GRACE: Duration = Duration::from_secs(10);
/// A child with a job shorter than this is replaced before the job ends.
const REPLACE_EARLY: f64 = 1.0;
/// How much more than its limit of memory a child may hold while its job runs.
const MEMORY_CEILING: u64 = 2;
/// Waits between attempts to start children that die before they are up.
const RESTARTS: Doubling = Doubling {
    start: Duration::from_millis(100),
    max: Duration::from_secs(30),
};
/// After so many children that died while starting, with none ever up, the pool gives up.
const START_ATTEMPTS: u32 = 5;

/// Signals that the machine sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kill {
    /// SIGTERM to the child's group: the task's `finally` blocks run.
    TerminateGroup,
    /// SIGKILL to the child; its group follows when it is collected.
    Kill,
    /// The given signal to the child alone.
    Signal(i32),
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Order a child of the zygote.
    Fork {
        /// Its number, which it is named after.
        number: u32,
        /// Its index among the pool's processes, from 0.
        index: usize,
    },
    /// Send a job to a child.
    Send {
        /// The child.
        number: u32,
        /// The job.
        job: Job,
        /// Whether it is the child's last.
        after: AfterJob,
    },
    /// Tell a child to leave.
    Leave {
        /// The child.
        number: u32,
    },
    /// Raise the soft time limit in a job.
    SoftLimit {
        /// The child.
        number: u32,
        /// The job.
        key: RequestKey,
    },
    /// Send a signal to a child.
    Kill {
        /// The child.
        number: u32,
        /// The signal.
        kill: Kill,
    },
    /// Take back what a child has not read yet.
    TakeBack {
        /// The child.
        number: u32,
    },
    /// Forget a child.
    Forget {
        /// The child.
        number: u32,
    },
    /// Tell the worker.
    Tell(PoolEvent),
}

/// What does not change while a pool lives.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Tasks after which a child is replaced.
    pub max_tasks_per_child: Option<u64>,
    /// KiB of memory after which a child is replaced.
    pub max_memory_per_child: Option<u64>,
    /// How long a child may take to start.
    pub start_timeout: Duration,
}

/// The pool's state.
#[derive(Debug)]
pub struct Machine {
    limits: Limits,
    size: usize,
    children: BTreeMap<u32, Child>,
    waiting: VecDeque<Waiting>,
    next_number: u32,
    has_zygote: bool,
    phase: Phase,
    estimates: Estimates,
    /// Children that died while starting, since one was up.
    failures: u32,
    was_ever_up: bool,
    /// No child is started before this moment.
    not_before: Duration,
    actions: Vec<Action>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    /// Children leave when their job is done.
    Closing,
    /// Children are being killed.
    Terminating,
    /// All are gone, and the worker knows.
    Closed,
}

#[derive(Debug)]
struct Waiting {
    job: Job,
    since: Duration,
}

#[derive(Debug)]
struct Child {
    index: usize,
    pid: Option<u32>,
    is_up: bool,
    /// When it must be up, once it exists.
    start_by: Duration,
    /// The first runs, the others are ahead of it in its channel.
    jobs: VecDeque<Assigned>,
    tasks_left: Option<u64>,
    /// It is to leave when its jobs are done.
    retires: bool,
    /// Its successor may be forked, or is.
    is_replaced: bool,
    /// It was told to leave, and is killed at this moment.
    leave_by: Option<Duration>,
    /// Its channel had no room for a message.
    is_full: bool,
    /// What it ended of, if the pool ended it.
    ending: Option<Ending>,
}

#[derive(Debug)]
struct Assigned {
    key: RequestKey,
    task: ByteString,
    limits: celeriac_protocol::TimeLimits,
    /// When it began, and what is due since.
    started: Option<Started>,
}

#[derive(Debug, Clone, Copy)]
struct Started {
    at: Duration,
    soft_at: Option<Duration>,
    hard_at: Option<Duration>,
    /// When what waits behind it is taken back.
    take_back_at: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Ending {
    cause: LossCause,
    /// When SIGKILL follows.
    kill_at: Option<Duration>,
}

impl Child {
    fn is_leaving(&self) -> bool {
        self.leave_by.is_some() || self.ending.is_some()
    }

    /// Whether it can be given a job.
    fn takes_jobs(&self) -> bool {
        self.is_up && self.pid.is_some() && !self.is_leaving() && !self.retires
    }

    fn is_idle(&self) -> bool {
        self.takes_jobs() && self.jobs.is_empty()
    }

    /// Jobs that it may still be given before it is replaced.
    fn jobs_left(&self) -> u64 {
        self.tasks_left
            .map_or(u64::MAX, |left| left.saturating_sub(self.jobs.len() as u64))
    }
}

impl Machine {
    /// A pool of `size` children, none of which exists yet.
    pub fn new(size: usize, limits: Limits) -> Self {
        Self {
            limits,
            size,
            children: BTreeMap::new(),
            waiting: VecDeque::new(),
            next_number: 1,
            has_zygote: false,
            phase: Phase::Running,
            estimates: Estimates::default(),
            failures: 0,
            was_ever_up: false,
            not_before: Duration::ZERO,
            actions: Vec::new(),
        }
    }

    /// What is to be done, in order.
    pub fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// Whether there is something to be done.
    pub fn has_actions(&self) -> bool {
        !self.actions.is_empty()
    }

    /// The wanted number of children.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Process ids of the children that are up.
    pub fn pids(&self) -> impl Iterator<Item = u32> + '_ {
        self.children
            .values()
            .filter(|child| child.is_up)
            .filter_map(|child| child.pid)
    }

    /// Numbers and process ids of the children that run a job and have a limit of memory.
    pub fn watched(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        let is_limited = self.limits.max_memory_per_child.is_some();
        self.children
            .iter()
            .filter(move |(_, child)| is_limited && !child.jobs.is_empty())
            .filter_map(|(number, child)| Some((*number, child.pid?)))
    }

    /// How many jobs can be given to the pool now.
    pub fn free(&self, now: Duration) -> usize {
        if self.phase != Phase::Running {
            return 0;
        }
        let next = self.estimates.next().max(1e-9);
        let (mut idle, mut more, mut most) = (0, 0, 0);
        for child in self.children.values() {
            if child.pid.is_none() || !child.is_up {
                // It will be there in milliseconds, unless starting is the trouble.
                idle += usize::from(self.failures == 0 && self.was_ever_up);
            } else if child.takes_jobs() {
                let left = usize::try_from(child.jobs_left()).unwrap_or(usize::MAX);
                let queued = child.jobs.len().saturating_sub(1);
                let ahead = (AHEAD - self.ahead(child, now)) / next;
                let ahead = ahead.clamp(0.0, MOST_AHEAD.saturating_sub(queued) as f64) as usize;
                idle += usize::from(child.is_idle());
                more += ahead.min(left - usize::from(child.is_idle()));
                most += (AHEAD / next).clamp(0.0, MOST_AHEAD as f64) as usize;
            }
        }
        // While nobody waits for it, what is fetched ahead is fetched by halves, not one by one.
        if idle == 0 && 2 * more < most {
            more = 0;
        }
        (idle.min(self.size - self.busy().min(self.size)) + more).saturating_sub(self.waiting.len())
    }

    /// How many children have jobs.
    fn busy(&self) -> usize {
        self.children
            .values()
            .filter(|child| !child.jobs.is_empty())
            .count()
    }

    /// Takes a job. It is sent to a child, or waits for one for a moment.
    pub fn submit(&mut self, job: Job, now: Duration) {
        if self.phase == Phase::Running {
            self.waiting.push_back(Waiting { job, since: now });
            self.assign(now);
        } else {
            self.tell(PoolEvent::Returned { key: job.key });
        }
    }

    /// The zygote can fork.
    pub fn zygote_is_up(&mut self, now: Duration) {
        self.has_zygote = true;
        self.tick(now);
    }

    /// The zygote is gone, and with it soon its children.
    pub fn zygote_is_gone(&mut self) {
        self.has_zygote = false;
        let unborn: Vec<u32> = self
            .children
            .iter()
            .filter(|(_, child)| child.pid.is_none())
            .map(|(number, _)| *number)
            .collect();
        for number in unborn {
            self.children.remove(&number);
            self.actions.push(Action::Forget { number });
        }
    }

    /// A child exists.
    pub fn forked(&mut self, number: u32, pid: u32, now: Duration) {
        let start_by = now + self.limits.start_timeout;
        if let Some(child) = self.children.get_mut(&number) {
            child.pid = Some(pid);
            child.start_by = start_by;
            self.came_up(number, now);
        }
    }

    /// A child says that it can work.
    pub fn up(&mut self, number: u32, now: Duration) {
        if let Some(child) = self.children.get_mut(&number) {
            child.is_up = true;
            self.came_up(number, now);
        }
    }

    /// Both the zygote and the child have told of it, in whatever order.
    fn came_up(&mut self, number: u32, now: Duration) {
        let Some(Child {
            pid: Some(pid),
            is_up: true,
            ..
        }) = self.children.get(&number)
        else {
            return;
        };
        self.actions.push(Action::Tell(PoolEvent::Up { pid: *pid }));
        self.failures = 0;
        self.was_ever_up = true;
        if self.phase == Phase::Running {
            self.assign(now);
        } else {
            self.leave(number, now);
        }
    }

    /// A child's job has ended. `resident` is what the child holds, where that is limited.
    pub fn done(
        &mut self,
        number: u32,
        key: RequestKey,
        outcome: Outcome,
        resident: Option<Resident>,
        now: Duration,
    ) {
        let Some(child) = self.children.get_mut(&number) else {
            return;
        };
        if child.jobs.front().is_none_or(|job| job.key != key) {
            tracing::error!("a child reports a job that it was not given");
            return;
        }
        let Some(ended) = child.jobs.pop_front() else {
            return;
        };
        let leaves = matches!(outcome, Outcome::Left { .. });
        child.is_full = false;
        if let Some(left) = &mut child.tasks_left {
            *left = left.saturating_sub(1);
        }
        let is_last = leaves || child.tasks_left == Some(0);
        if is_last {
            // It leaves by itself.
            child.leave_by = Some(now + LEAVE_GRACE);
        }
        // A job that ended while it was being killed has ended all the same.
        if let Some(ending) = &mut child.ending {
            ending.kill_at = ending.kill_at.or(Some(now + TERM_GRACE));
        }
        if let Some(started) = ended.started {
            self.estimates
                .observe(&ended.task, now.saturating_sub(started.at));
        }
        self.tell(PoolEvent::Finished { key, outcome });
        self.begin_next(number, now);
        if let Some(resident) = resident {
            self.memory(number, resident, now);
        }
        self.retire_if_done(number, now);
        self.tick(now);
    }

    /// The job that is now at the front of a child's channel has begun.
    fn begin_next(&mut self, number: u32, now: Duration) {
        let Some(child) = self.children.get_mut(&number) else {
            return;
        };
        let Some(pid) = child.pid else { return };
        let Some(job) = child.jobs.front_mut().filter(|job| job.started.is_none()) else {
            return;
        };
        let due = |limit: Option<celeriac_protocol::TimeLimit>| {
            limit.and_then(|limit| now.checked_add(limit.duration()))
        };
        job.started = Some(Started {
            at: now,
            soft_at: due(job.limits.soft),
            hard_at: due(job.limits.hard),
            take_back_at: now + TAKE_BACK_AFTER,
        });
        let key = job.key;
        self.tell(PoolEvent::Started { key, pid });
    }

    /// A child has ended.
    pub fn exited(&mut self, number: u32, status: ExitStatus, now: Duration) {
        let Some(mut child) = self.children.remove(&number) else {
            return;
        };
        self.actions.push(Action::Forget { number });
        let pid = child.pid.unwrap_or_default();
        let was_told = child.is_leaving() || self.phase == Phase::Terminating;
        if !was_told {
            let name = child_name(number);
            self.tell(PoolEvent::Died { name, pid, status });
        }
        if !child.is_up {
            self.failed_to_start(status, now);
        }
        for job in child.jobs.drain(..) {
            // What it had not begun, nobody has begun.
            let event = match job.started {
                None => PoolEvent::Returned { key: job.key },
                Some(_) => {
                    let cause = child
                        .ending
                        .map_or(LossCause::Died(status), |ending| ending.cause);
                    PoolEvent::Lost {
                        key: job.key,
                        pid,
                        cause,
                    }
                }
            };
            self.tell(event);
        }
        self.tick(now);
    }

    fn failed_to_start(&mut self, status: ExitStatus, now: Duration) {
        self.not_before = now + RESTARTS.wait(self.failures);
        self.failures += 1;
        if !self.was_ever_up && self.failures == START_ATTEMPTS {
            self.tell(PoolEvent::CannotStart {
                reason: format!("the last of {START_ATTEMPTS} children ended with {status}"),
            });
        }
    }

    /// A job was sent: it has begun, if nothing is ahead of it.
    pub fn sent(&mut self, number: u32, now: Duration) {
        self.begin_next(number, now);
    }

    /// A job could not be sent: the child's channel has no room.
    pub fn unsent(&mut self, number: u32, job: Job, now: Duration) {
        if let Some(child) = self.children.get_mut(&number) {
            child.jobs.retain(|assigned| assigned.key != job.key);
            child.is_full = true;
            if child.jobs.is_empty() {
                // A child with nothing to do that reads nothing is of no use.
                child.ending = Some(Ending {
                    cause: LossCause::Terminated,
                    kill_at: Some(now),
                });
            }
        }
        self.waiting.push_front(Waiting { job, since: now });
    }

    /// The job of a child that has begun.
    pub fn running(&self, number: u32) -> Option<RequestKey> {
        let first = self.children.get(&number)?.jobs.front()?;
        first.started.map(|_| first.key)
    }

    /// Jobs that were taken back from a child before it read them: none that has begun.
    pub fn taken_back(&mut self, number: u32, keys: &[RequestKey], now: Duration) {
        if let Some(child) = self.children.get_mut(&number) {
            child.jobs.retain(|job| !keys.contains(&job.key));
        }
        for key in keys {
            self.tell(PoolEvent::Returned { key: *key });
        }
        self.retire_if_done(number, now);
        self.tick(now);
    }

    /// What a child holds in memory.
    pub fn memory(&mut self, number: u32, resident: Resident, now: Duration) {
        let Some(limit) = self.limits.max_memory_per_child else {
            return;
        };
        let Some(child) = self.children.get_mut(&number) else {
            return;
        };
        let Some(pid) = child.pid.filter(|_| child.ending.is_none()) else {
            return;
        };
        let running = child.jobs.front().map(|job| job.key);
        let ceiling = limit.saturating_mul(MEMORY_CEILING);
        if resident.current > ceiling && running.is_some() {
            let cause = LossCause::Memory {
                resident: resident.current,
                limit: ceiling,
            };
            child.ending = Some(Ending {
                cause,
                kill_at: None,
            });
            self.actions.push(Action::Kill {
                number,
                kill: Kill::Kill,
            });
            let resident = resident.current;
            self.tell(PoolEvent::TooMuchMemory {
                pid,
                resident,
                limit: ceiling,
                killed: running,
            });
        } else if resident.peak > limit && !child.retires {
            child.retires = true;
            let resident = resident.peak;
            self.tell(PoolEvent::TooMuchMemory {
                pid,
                resident,
                limit,
                killed: None,
            });
            self.take_back_from(number);
            self.retire_if_done(number, now);
        }
    }

    /// Ends a job: by a signal if it runs, otherwise by giving it back.
    pub fn terminate(&mut self, key: RequestKey, signal: i32, now: Duration) {
        if let Some(at) = self
            .waiting
            .iter()
            .position(|waiting| waiting.job.key == key)
        {
            self.waiting.remove(at);
            self.tell(PoolEvent::Returned { key });
            return;
        }
        let found = self.children.iter_mut().find_map(|(number, child)| {
            let at = child.jobs.iter().position(|job| job.key == key)?;
            Some((*number, child, at))
        });
        match found {
            Some((number, child, 0)) => {
                let cause = LossCause::Terminated;
                child.ending.get_or_insert(Ending {
                    cause,
                    kill_at: None,
                });
                self.take_back_from(number);
                self.actions.push(Action::Kill {
                    number,
                    kill: Kill::Signal(signal),
                });
                self.tick(now);
            }
            Some((number, _, _)) => self.take_back_from(number),
            None => {}
        }
    }

    /// Changes the number of children. Only idle ones leave; answers with how many will.
    pub fn resize(&mut self, size: usize, now: Duration) -> usize {
        let surplus = self.size.saturating_sub(size);
        let idle: Vec<u32> = self
            .children
            .iter()
            .rev()
            .filter(|(_, child)| child.is_idle())
            .map(|(number, _)| *number)
            .take(surplus)
            .collect();
        for number in &idle {
            self.leave(*number, now);
        }
        self.size = if size > self.size {
            size
        } else {
            self.size - idle.len()
        };
        self.tick(now);
        idle.len()
    }

    /// Takes no more jobs; children leave when theirs are done.
    pub fn close(&mut self, now: Duration) {
        if self.phase != Phase::Running {
            return;
        }
        self.phase = Phase::Closing;
        for waiting in std::mem::take(&mut self.waiting) {
            self.tell(PoolEvent::Returned {
                key: waiting.job.key,
            });
        }
        let numbers: Vec<u32> = self.children.keys().copied().collect();
        for number in numbers {
            self.take_back_from(number);
            if let Some(child) = self.children.get_mut(&number) {
                child.retires = true;
            }
            self.retire_if_done(number, now);
        }
        self.tick(now);
    }

    /// Kills every child now.
    pub fn kill_all(&mut self, now: Duration) {
        self.close(now);
        self.phase = match self.phase {
            Phase::Closed => Phase::Closed,
            _ => Phase::Terminating,
        };
        let numbers: Vec<u32> = self.children.keys().copied().collect();
        for number in numbers {
            if let Some(child) = self.children.get_mut(&number) {
                let ending = Ending {
                    cause: LossCause::Terminated,
                    kill_at: Some(now + TERM_GRACE),
                };
                child.ending.get_or_insert(ending);
                self.actions.push(Action::Kill {
                    number,
                    kill: Kill::TerminateGroup,
                });
            }
        }
    }

    /// Does what has come due.
    pub fn tick(&mut self, now: Duration) {
        let numbers: Vec<u32> = self.children.keys().copied().collect();
        for number in numbers {
            self.tick_child(number, now);
        }
        self.assign(now);
        while self
            .waiting
            .front()
            .is_some_and(|waiting| waiting.since + RETURN_AFTER <= now)
        {
            if let Some(waiting) = self.waiting.pop_front() {
                self.tell(PoolEvent::Returned {
                    key: waiting.job.key,
                });
            }
        }
        self.fork_missing(now);
        if self.children.is_empty() && matches!(self.phase, Phase::Closing | Phase::Terminating) {
            self.phase = Phase::Closed;
            self.tell(PoolEvent::Closed);
        }
    }

    fn tick_child(&mut self, number: u32, now: Duration) {
        let Some(child) = self.children.get_mut(&number) else {
            return;
        };
        if !child.is_up && now >= child.start_by && child.pid.is_some() {
            // It is told as having died while starting.
            child.start_by = Duration::MAX;
            self.actions.push(Action::Kill {
                number,
                kill: Kill::Kill,
            });
            return;
        }
        if let Some(ending) = &mut child.ending
            && ending.kill_at.is_some_and(|at| at <= now)
        {
            ending.kill_at = None;
            self.actions.push(Action::Kill {
                number,
                kill: Kill::Kill,
            });
            return;
        }
        if child.ending.is_none() && child.leave_by.is_some_and(|at| at <= now) {
            let ending = Ending {
                cause: LossCause::Terminated,
                kill_at: Some(now + TERM_GRACE),
            };
            child.ending = Some(ending);
            self.actions.push(Action::Kill {
                number,
                kill: Kill::TerminateGroup,
            });
            return;
        }
        let is_ending = child.ending.is_some();
        let has_more = child.jobs.len() > 1;
        let Some(pid) = child.pid else { return };
        let Some(job) = child.jobs.front_mut() else {
            return;
        };
        let key = job.key;
        let Some(started) = &mut job.started else {
            return;
        };
        if is_ending {
            return;
        }
        let is_soft = started.soft_at.is_some_and(|at| at <= now);
        let is_hard = started.hard_at.is_some_and(|at| at <= now);
        let takes_back = has_more && started.take_back_at <= now;
        if takes_back {
            // What is not there to be taken, the child has read: that it is done with the job
            // before is on its way here, and needs time to arrive.
            started.take_back_at = now + TAKE_BACK_AFTER;
        }
        if is_hard {
            started.hard_at = None;
            let cause = LossCause::TimeLimit;
            child.ending = Some(Ending {
                cause,
                kill_at: Some(now + TERM_GRACE),
            });
            self.tell(PoolEvent::HardTimeLimit { key, pid });
            self.take_back_from(number);
            self.actions.push(Action::Kill {
                number,
                kill: Kill::TerminateGroup,
            });
        } else if is_soft {
            started.soft_at = None;
            self.tell(PoolEvent::SoftTimeLimit { key });
            self.actions.push(Action::SoftLimit { number, key });
        }
        if takes_back && !is_hard {
            self.take_back_from(number);
        }
    }

    /// When [`Machine::tick`] has something to do, unless something happens before.
    pub fn next_tick(&self, now: Duration) -> Option<Duration> {
        let children = self.children.values().flat_map(|child| {
            let started = child.jobs.front().and_then(|job| job.started);
            let ending = child.ending;
            let running = started.filter(|_| ending.is_none());
            [
                (!child.is_up && child.pid.is_some()).then_some(child.start_by),
                ending.and_then(|ending| ending.kill_at),
                child.leave_by.filter(|_| ending.is_none()),
                running.and_then(|started| started.soft_at),
                running.and_then(|started| started.hard_at),
                running
                    .filter(|_| child.jobs.len() > 1)
                    .map(|started| started.take_back_at),
            ]
        });
        let waiting = self
            .waiting
            .front()
            .map(|waiting| waiting.since + RETURN_AFTER);
        let restart = (self.not_before > now).then_some(self.not_before);
        children
            .chain([waiting, restart])
            .flatten()
            .filter(|at| *at != Duration::MAX)
            .min()
    }

    /// Sends waiting jobs to children that can take them.
    fn assign(&mut self, now: Duration) {
        while self.phase == Phase::Running && !self.waiting.is_empty() {
            // A child that is being replaced counts until it is done: no more than the pool's
            // size run at once.
            let may_begin = self.busy() < self.size;
            let idle = self
                .children
                .iter()
                .find(|(_, child)| may_begin && child.is_idle());
            let chosen = idle
                .map(|(number, _)| *number)
                .or_else(|| self.child_to_give_more(now));
            let Some(number) = chosen else { return };
            let Some(Waiting { job, .. }) = self.waiting.pop_front() else {
                return;
            };
            self.give(number, job, now);
        }
    }

    /// The child that will be done with what it has soonest, if that is soon.
    fn child_to_give_more(&self, now: Duration) -> Option<u32> {
        self.children
            .iter()
            .filter(|(_, child)| {
                child.takes_jobs()
                    && !child.jobs.is_empty()
                    && !child.is_full
                    && child.jobs.len() <= MOST_AHEAD
                    && child.jobs_left() > 0
            })
            .map(|(number, child)| (*number, self.ahead(child, now)))
            .filter(|(_, ahead)| *ahead < AHEAD)
            .min_by(|a, b| a.1.total_cmp(&b.1))
            .map(|(number, _)| number)
    }

    /// How long a child will be busy with what it has, in seconds.
    fn ahead(&self, child: &Child, now: Duration) -> f64 {
        let estimate = |job: &Assigned| {
            let ran = job
                .started
                .map_or(0.0, |started| now.saturating_sub(started.at).as_secs_f64());
            let whole = self.estimates.task(&job.task);
            // One that runs longer than it should tells nothing about when it ends.
            if ran > whole.max(AHEAD) {
                f64::INFINITY
            } else {
                (whole - ran).max(0.0)
            }
        };
        child.jobs.iter().map(estimate).sum()
    }

    fn give(&mut self, number: u32, job: Job, now: Duration) {
        let Some(child) = self.children.get_mut(&number) else {
            return;
        };
        child.jobs.push_back(Assigned {
            key: job.key,
            task: job.task.clone(),
            limits: job.time_limits,
            started: None,
        });
        let is_last = child.jobs_left() == 0;
        let after = if is_last {
            AfterJob::Leave
        } else {
            AfterJob::Stay
        };
        let task = job.task.clone();
        self.actions.push(Action::Send { number, job, after });
        // The next child is forked while this one is at its last, if that won't take long.
        if is_last && self.estimates.task(&task) < REPLACE_EARLY {
            if let Some(child) = self.children.get_mut(&number) {
                child.is_replaced = true;
            }
            self.fork_missing(now);
        }
    }

    /// Forks what is missing of the pool's size.
    fn fork_missing(&mut self, now: Duration) {
        if self.phase != Phase::Running || !self.has_zygote || now < self.not_before {
            return;
        }
        let staying = self
            .children
            .values()
            .filter(|child| !child.is_leaving() && !child.is_replaced);
        let taken: BTreeSet<usize> = staying.map(|child| child.index).collect();
        let free = (0..).filter(|index| !taken.contains(index));
        for index in free
            .take(self.size.saturating_sub(taken.len()))
            .collect::<Vec<_>>()
        {
            let number = self.next_number;
            self.next_number += 1;
            self.children.insert(
                number,
                Child {
                    index,
                    pid: None,
                    is_up: false,
                    start_by: Duration::MAX,
                    jobs: VecDeque::new(),
                    tasks_left: self.limits.max_tasks_per_child,
                    retires: false,
                    is_replaced: false,
                    leave_by: None,
                    is_full: false,
                    ending: None,
                },
            );
            self.actions.push(Action::Fork { number, index });
        }
    }

    fn retire_if_done(&mut self, number: u32, now: Duration) {
        let is_done = self
            .children
            .get(&number)
            .is_some_and(|child| child.is_up && child.retires && child.jobs.is_empty());
        if is_done {
            self.leave(number, now);
        }
    }

    fn leave(&mut self, number: u32, now: Duration) {
        if let Some(child) = self.children.get_mut(&number)
            && !child.is_leaving()
        {
            child.leave_by = Some(now + LEAVE_GRACE);
            self.actions.push(Action::Leave { number });
        }
    }

    fn take_back_from(&mut self, number: u32) {
        if self
            .children
            .get(&number)
            .is_some_and(|child| child.jobs.len() > 1)
        {
            self.actions.push(Action::TakeBack { number });
        }
    }

    fn tell(&mut self, event: PoolEvent) {
        self.actions.push(Action::Tell(event));
    }
}

/// The name of a child, as billiard gives it.
pub fn child_name(number: u32) -> String {
    format!("ForkPoolWorker-{number}")
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
