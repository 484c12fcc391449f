//! What the pool decides: a state machine over jobs, places, and readings of the clock.
//!
//! Everything that happens is told to the [`Machine`] by a method; what is to be done about it is
//! taken from it as [`Action`]s. It does nothing itself.
//!
//! A job takes a place from its beginning to the moment when nothing of its task is left. Mostly
//! that is its end. A thread that can't be ended, and a future that does not yield, keep their place
//! beyond it: the job is concluded, the place is not free.

mod ending;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

use celeriac_core::pool::{Condition, Job, LossCause, PoolEvent, RequestKey};
use celeriac_protocol::{TimeLimit, TimeLimits};

use self::ending::Ending;
use crate::cancellation::Cause;
use crate::pool::reports::End;

/// A job that found no place for so long goes back to the worker.
pub(super) const RETURN_AFTER: Duration = Duration::from_millis(500);
/// A task whose future was to be dropped, and did not yield for so long, is concluded without.
pub(super) const STUCK_AFTER: Duration = Duration::from_secs(5);
/// How long tasks may take to end when everything is to end now.
pub(super) const KILL_GRACE: Duration = Duration::from_millis(100);
/// Their numbers are the same on every Linux.
const SIGKILL: i32 = 9;
const SIGUSR1: i32 = 10;

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Action {
    /// Run a job.
    Start(Job),
    /// Tell a task that it is to end.
    Cancel {
        /// The job.
        key: RequestKey,
        /// Why.
        cause: Cause,
    },
    /// Drop the task's future; it has failed with the cause.
    Raise {
        /// The job.
        key: RequestKey,
    },
    /// Drop the task's future; its end counts no more. If it had ended before, the machine is told
    /// by [`Machine::had_ended`].
    Lose {
        /// The job.
        key: RequestKey,
    },
    /// A job is concluded although its task is not to be stopped.
    Stuck {
        /// The job.
        key: RequestKey,
    },
    /// Tell the worker.
    Tell(PoolEvent),
}

/// The pool's state.
#[derive(Debug)]
pub(super) struct Machine {
    size: usize,
    /// The process that all jobs run in: the worker's own.
    pid: u32,
    jobs: HashMap<RequestKey, Running>,
    /// Places of jobs that are concluded, of whose tasks something is left.
    held: HashSet<RequestKey>,
    waiting: VecDeque<Waiting>,
    /// When there is something to do about which job.
    due: BTreeSet<(Duration, RequestKey)>,
    /// Jobs that have begun, ever.
    given: u64,
    phase: Phase,
    actions: Vec<Action>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    Closing,
    Closed,
}

#[derive(Debug)]
struct Waiting {
    job: Job,
    grace: Duration,
    since: Duration,
}

#[derive(Debug)]
struct Running {
    since: Duration,
    limits: TimeLimits,
    grace: Duration,
    soft_at: Option<Duration>,
    hard_at: Option<Duration>,
    ending: Option<Ending>,
    /// Nothing is left of its task, although it is not concluded.
    is_free: bool,
}

impl Running {
    fn next(&self) -> impl Iterator<Item = Duration> {
        let ending = self.ending;
        let raised = ending.is_none_or(|ending| ending.loss.is_none());
        [
            self.soft_at.filter(|_| ending.is_none()),
            self.hard_at.filter(|_| raised),
            ending.and_then(|ending| ending.drop_at),
            ending.and_then(|ending| ending.stuck_at),
        ]
        .into_iter()
        .flatten()
    }
}

impl Machine {
    /// A pool with places for `size` jobs in the process `pid`.
    pub(super) fn new(size: usize, pid: u32) -> Self {
        Self {
            size,
            pid,
            jobs: HashMap::new(),
            held: HashSet::new(),
            waiting: VecDeque::new(),
            due: BTreeSet::new(),
            given: 0,
            phase: Phase::Running,
            actions: vec![Action::Tell(PoolEvent::Up { pid })],
        }
    }

    /// What is to be done, in order.
    pub(super) fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// How many jobs could begin now.
    pub(super) fn free(&self) -> usize {
        match self.phase {
            Phase::Running => self.size.saturating_sub(self.taken() + self.waiting.len()),
            _ => 0,
        }
    }

    /// How many jobs it has, and places of which something is left.
    pub(super) fn load(&self) -> usize {
        self.taken() + self.waiting.len()
    }

    /// Whether the job is here.
    pub(super) fn has(&self, key: RequestKey) -> bool {
        self.jobs.contains_key(&key) || self.waiting.iter().any(|waiting| waiting.job.key == key)
    }

    /// The number of places.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// The process, with how many jobs it was given.
    pub(super) fn process(&self) -> (u32, u64) {
        (self.pid, self.given)
    }

    /// How it is: a process that is there needs not be started.
    pub(super) fn condition(&self) -> Condition {
        Condition {
            wanted: self.size,
            up: if self.phase == Phase::Closed {
                0
            } else {
                self.size
            },
            can_fork: true,
            failures: 0,
        }
    }

    /// Takes a job, whose task may take `grace` to end when it is told to.
    pub(super) fn submit(&mut self, job: Job, grace: Duration, now: Duration) {
        if self.phase != Phase::Running {
            return self.tell(PoolEvent::Returned { key: job.key });
        }
        let since = now;
        self.waiting.push_back(Waiting { job, grace, since });
        self.start_waiting(now);
    }

    /// The run of a job is over.
    pub(super) fn ended(&mut self, key: RequestKey, end: End, is_free: bool, now: Duration) {
        let Some(running) = self.forget(key) else {
            // It was concluded without its task, of which nothing may be left now.
            if is_free {
                self.freed(key, now);
            }
            return;
        };
        if !is_free && !running.is_free {
            self.held.insert(key);
        }
        let loss = running.ending.and_then(|ending| ending.loss);
        match end {
            End::Finished(outcome) => self.tell(PoolEvent::Finished { key, outcome }),
            // Nothing but a loss drops a run.
            End::Dropped => self.lost(key, &running, loss.unwrap_or(LossCause::Terminated), now),
        }
        self.tick(now);
    }

    /// Nothing is left of a job's task.
    pub(super) fn freed(&mut self, key: RequestKey, now: Duration) {
        if let Some(running) = self.jobs.get_mut(&key) {
            running.is_free = true;
        } else if self.held.remove(&key) {
            self.tick(now);
        }
    }

    /// The task of a job that was to be lost had ended: its outcome is on its way.
    pub(super) fn had_ended(&mut self, key: RequestKey) {
        self.change(key, |running| {
            running.soft_at = None;
            running.hard_at = None;
            running.ending = None;
        });
    }

    /// Ends a job.
    pub(super) fn terminate(&mut self, key: RequestKey, signal: i32, now: Duration) {
        let is_it = |waiting: &Waiting| waiting.job.key == key;
        if let Some(at) = self.waiting.iter().position(is_it) {
            self.waiting.remove(at);
            return self.tell(PoolEvent::Returned { key });
        }
        // Celery's users end a task gently by it: it is the soft time limit's signal.
        if signal == SIGUSR1 {
            return self.interrupt(key, false, now);
        }
        let most = if signal == SIGKILL {
            Duration::ZERO
        } else {
            Duration::MAX
        };
        self.lose(key, Cause::Revoked, LossCause::Terminated, most, now);
    }

    /// Raises the soft time limit's exception in a job, or that of a shutdown if it `requeues`.
    pub(super) fn interrupt(&mut self, key: RequestKey, requeues: bool, now: Duration) {
        let Some(running) = self.jobs.get(&key) else {
            return;
        };
        let ran = now.saturating_sub(running.since);
        let limit = running.limits.soft.map_or(ran, TimeLimit::duration);
        let cause = if requeues {
            Cause::Shutdown
        } else {
            Cause::SoftTimeLimit(limit)
        };
        self.raise(key, cause, now);
    }

    /// Changes the number of places: taken ones stay.
    pub(super) fn resize(&mut self, size: usize, now: Duration) {
        self.size = size.max(self.taken().min(self.size));
        self.tick(now);
    }

    /// Takes so many places away: taken ones when their jobs are done.
    pub(super) fn shrink(&mut self, by: usize) {
        self.size = self.size.saturating_sub(by);
    }

    /// Takes no more jobs.
    pub(super) fn close(&mut self, now: Duration) {
        if self.phase != Phase::Running {
            return;
        }
        self.phase = Phase::Closing;
        for waiting in std::mem::take(&mut self.waiting) {
            self.tell(PoolEvent::Returned {
                key: waiting.job.key,
            });
        }
        self.tick(now);
    }

    /// Ends every job now.
    pub(super) fn kill(&mut self, now: Duration) {
        self.close(now);
        let mut keys: Vec<_> = self.jobs.keys().copied().collect();
        keys.sort_unstable();
        for key in keys {
            self.lose(key, Cause::Shutdown, LossCause::Terminated, KILL_GRACE, now);
        }
        self.tick(now);
    }

    /// Does what has come due.
    pub(super) fn tick(&mut self, now: Duration) {
        while let Some(&(at, key)) = self.due.first()
            && at <= now
        {
            self.due.pop_first();
            self.tick_job(key, now);
        }
        self.start_waiting(now);
        let is_due = |waiting: &Waiting| waiting.since + RETURN_AFTER <= now;
        while self.waiting.front().is_some_and(is_due) {
            if let Some(Waiting { job, .. }) = self.waiting.pop_front() {
                self.tell(PoolEvent::Returned { key: job.key });
            }
        }
        if self.phase == Phase::Closing && self.jobs.is_empty() {
            self.phase = Phase::Closed;
            self.tell(PoolEvent::Closed);
        }
    }

    /// When [`Machine::tick`] has something to do, unless something happens before.
    pub(super) fn next_tick(&self) -> Option<Duration> {
        let job = self.due.first().map(|(at, _)| *at);
        let waiting = self
            .waiting
            .front()
            .map(|waiting| waiting.since + RETURN_AFTER);
        job.into_iter().chain(waiting).min()
    }

    fn tick_job(&mut self, key: RequestKey, now: Duration) {
        let Some(running) = self.jobs.get(&key) else {
            return;
        };
        let has_come = |at: Option<Duration>| at.is_some_and(|at| at <= now);
        let ending = running.ending;
        if ending.is_none_or(|ending| ending.loss.is_none()) && has_come(running.hard_at) {
            let limit = running
                .limits
                .hard
                .map_or(Duration::ZERO, TimeLimit::duration);
            let (cause, loss) = (Cause::TimeLimit(limit), LossCause::TimeLimit);
            return self.lose(key, cause, loss, Duration::MAX, now);
        }
        if ending.is_none() && has_come(running.soft_at) {
            let limit = running
                .limits
                .soft
                .map_or(Duration::ZERO, TimeLimit::duration);
            self.tell(PoolEvent::SoftTimeLimit { key });
            return self.raise(key, Cause::SoftTimeLimit(limit), now);
        }
        let Some(ending) = ending else { return };
        if has_come(ending.drop_at) {
            self.drop_run(key, now);
        } else if has_come(ending.stuck_at)
            && let Some(running) = self.forget(key)
        {
            if !running.is_free {
                self.held.insert(key);
            }
            self.actions.push(Action::Stuck { key });
            let loss = ending.loss.unwrap_or(LossCause::Terminated);
            self.lost(key, &running, loss, now);
        } else {
            // What came due was something that does not matter any more.
            self.change(key, |_| {});
        }
    }

    fn start_waiting(&mut self, now: Duration) {
        while self.phase == Phase::Running && self.taken() < self.size {
            let Some(Waiting { job, grace, .. }) = self.waiting.pop_front() else {
                return;
            };
            let key = job.key;
            let limits = job.time_limits;
            let due = |limit: Option<TimeLimit>| {
                limit.and_then(|limit| now.checked_add(limit.duration()))
            };
            let running = Running {
                since: now,
                limits,
                grace,
                soft_at: due(limits.soft),
                hard_at: due(limits.hard),
                ending: None,
                is_free: false,
            };
            self.due.extend(running.next().map(|at| (at, key)));
            self.jobs.insert(key, running);
            self.given += 1;
            self.actions.push(Action::Start(job));
            self.tell(PoolEvent::Started { key, pid: self.pid });
        }
    }

    fn taken(&self) -> usize {
        self.jobs.len() + self.held.len()
    }

    /// Changes a job, and with it when there is something to do about it.
    fn change(&mut self, key: RequestKey, change: impl FnOnce(&mut Running)) {
        if let Some(running) = self.jobs.get_mut(&key) {
            for at in running.next() {
                self.due.remove(&(at, key));
            }
            change(running);
            self.due.extend(running.next().map(|at| (at, key)));
        }
    }

    fn forget(&mut self, key: RequestKey) -> Option<Running> {
        let running = self.jobs.remove(&key)?;
        for at in running.next() {
            self.due.remove(&(at, key));
        }
        Some(running)
    }

    fn tell(&mut self, event: PoolEvent) {
        self.actions.push(Action::Tell(event));
    }
}
