//! What the pool decides: a state machine over jobs, children and readings of the clock.
//!
//! Everything that happens is told to the [`Machine`] by a method; what is to be done about it is
//! taken from it as [`Action`]s. It does nothing itself, so that tests can make anything happen
//! at any moment.
//!
//! Celery's counterpart: `celery.concurrency.asynpool.AsynPool` and `billiard.pool.Pool`, in the
//! strategy that Celery calls fair: a job goes to a child that has none. One exception: a child
//! whose tasks take less than 5 ms is given some more, which are taken back when one of them
//! takes longer after all.
//!
//! Where children run many jobs at once ([`Shape::Shared`]: the pools asyncio, gevent and threads),
//! each job has limits of its own, a child says when it begins one, and is killed only for a job
//! that can't be ended alone. What differs there is in `shared`.

mod assign;
mod child;
mod due;
mod lives;
mod memory;
mod shared;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use celeriac_core::pool::{Condition, Job, LossCause, PoolEvent, RequestKey};

use self::child::{Child, Ending};
pub use self::memory::MemoryLimits;
use super::estimate::Estimates;
use super::frame::AfterJob;

/// A job that runs for so long with others behind it is not the short one it was taken for.
const TAKE_BACK_AFTER: Duration = Duration::from_millis(20);
/// Its number is the same on every Linux.
const SIGUSR1: i32 = 10;
/// Between SIGTERM and SIGKILL for a job that is over its hard limit, as in billiard.
const TERM_GRACE: Duration = Duration::from_millis(100);
/// How long a child that was told to leave may take for its exit hooks.
const LEAVE_GRACE: Duration = Duration::from_secs(10);

/// Signals that the machine sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kill {
    /// SIGTERM to the child's group: the task's `finally` blocks run.
    TerminateGroup,
    /// SIGKILL to the child; its group follows when it is collected.
    Kill,
    /// SIGKILL to the child and its group.
    KillGroup,
    /// The given signal to the child alone.
    Signal(i32),
}

/// A limit at which an exception is raised in a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SoftLimit {
    /// Of time: `SoftTimeLimitExceeded`.
    Time,
    /// Of memory: `SoftMemoryLimitExceeded`.
    Memory,
    /// Of a shutdown: `Interrupted`, after which the job runs again.
    Shutdown,
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
    /// Raise a soft limit in a job.
    SoftLimit {
        /// The child.
        number: u32,
        /// The job.
        key: RequestKey,
        /// Which limit.
        limit: SoftLimit,
    },
    /// Tell a child that runs many jobs to end one of them.
    Terminate {
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

/// How the jobs of a pool are spread over its children.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// A child runs one job at a time: there are as many children as jobs at once.
    OneEach,
    /// Jobs share so many children, each of which runs many at once.
    Shared {
        /// How many children there are.
        processes: usize,
    },
}

/// What does not change while a pool lives.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Tasks after which a child is replaced.
    pub max_tasks_per_child: Option<u64>,
    /// What a child may hold in memory.
    pub memory: MemoryLimits,
    /// How long a child may take to start.
    pub start_timeout: Duration,
}

/// The pool's state.
#[derive(Debug)]
pub struct Machine {
    limits: Limits,
    shape: Shape,
    /// How many jobs may run at once.
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
    /// Memory is short: no children are started.
    is_held_back: bool,
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

impl Machine {
    /// A pool of `size` children, none of which exists yet.
    pub fn new(size: usize, limits: Limits) -> Self {
        Self::with_shape(Shape::OneEach, size, limits)
    }

    /// A pool of this shape for `size` jobs at once. None of its children exists yet.
    pub fn with_shape(shape: Shape, size: usize, limits: Limits) -> Self {
        Self {
            limits,
            shape,
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
            is_held_back: false,
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

    /// The wanted number of jobs at once.
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

    /// The children that are up, each with how many jobs it was given.
    pub fn processes(&self) -> Vec<(u32, u64)> {
        self.children
            .values()
            .filter(|child| child.is_up)
            .filter_map(|child| Some((child.pid?, child.given)))
            .collect()
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
        if self.is_shared() {
            return self.terminate_shared(key, signal, now);
        }
        let found = self.children.iter_mut().find_map(|(number, child)| {
            let at = child.jobs.iter().position(|job| job.key == key)?;
            Some((*number, child, at))
        });
        match found {
            // Celery's users end a task gently by it: it is the soft time limit's signal.
            Some((number, child, 0)) if signal == SIGUSR1 => {
                self.actions
                    .extend(child.soft_limit(number, key, SoftLimit::Time));
            }
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

    /// Raises the soft time limit in a job that runs.
    pub fn interrupt(&mut self, key: RequestKey, requeues: bool) {
        let limit = if requeues {
            SoftLimit::Shutdown
        } else {
            SoftLimit::Time
        };
        let soft = self
            .children
            .iter()
            .find_map(|(number, child)| child.soft_limit(*number, key, limit));
        self.actions.extend(soft);
    }

    /// How the children are.
    pub fn condition(&self) -> Condition {
        let is_up = |child: &&Child| child.is_up && child.pid.is_some();
        Condition {
            wanted: self.wanted(),
            up: self.children.values().filter(is_up).count(),
            can_fork: self.has_zygote,
            failures: self.failures,
        }
    }

    /// Changes the number of jobs at once. Only idle children leave; answers with how many will.
    pub fn resize(&mut self, size: usize, now: Duration) -> usize {
        if self.is_shared() {
            self.size = size;
            self.tick(now);
            return 0;
        }
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

    /// Has so many children leave for good: idle ones now, others when their job is done.
    pub fn shrink(&mut self, by: usize, now: Duration) {
        let size = self.size.saturating_sub(by);
        self.resize(size, now);
        let surplus = self.size.saturating_sub(size);
        let busy: Vec<u32> = self
            .children
            .iter()
            .rev()
            .filter(|(_, child)| !child.is_leaving() && !child.retires)
            .map(|(number, _)| *number)
            .take(surplus)
            .collect();
        for number in busy {
            self.retire(number, true, now);
        }
        self.size = size;
        self.tick(now);
    }

    /// Replaces all children by new ones: idle ones now, others when their job is done.
    pub fn restart(&mut self, now: Duration) {
        let numbers: Vec<u32> = self.children.keys().copied().collect();
        for number in numbers {
            self.retire(number, false, now);
        }
        self.tick(now);
    }

    /// Has a child leave when its job is done; it has no successor if it `is_surplus`.
    fn retire(&mut self, number: u32, is_surplus: bool, now: Duration) {
        self.take_back_from(number);
        if let Some(child) = self.children.get_mut(&number) {
            child.retires = true;
            // Where many jobs share a child, its last one may take long: its successor takes over.
            let is_shared = matches!(self.shape, Shape::Shared { .. });
            child.is_replaced = child.is_replaced || is_surplus || is_shared;
        }
        self.retire_if_done(number, now);
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
        self.forget_unborn();
        let numbers: Vec<u32> = self.children.keys().copied().collect();
        for number in numbers {
            if let Some(child) = self.children.get_mut(&number) {
                let ending = Ending {
                    cause: LossCause::Terminated,
                    kill_at: Some(now + TERM_GRACE),
                };
                let known = child.ending.get_or_insert(ending);
                known.kill_at = known.kill_at.or(ending.kill_at);
                self.actions.push(Action::Kill {
                    number,
                    kill: Kill::TerminateGroup,
                });
            }
        }
        self.tick(now);
    }

    pub(super) fn tell(&mut self, event: PoolEvent) {
        self.actions.push(Action::Tell(event));
    }
}

/// The name of a child, as billiard gives it.
pub fn child_name(number: u32) -> String {
    format!("ForkPoolWorker-{number}")
}
