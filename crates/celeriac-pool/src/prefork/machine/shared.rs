//! Children that run many jobs at once.
//!
//! A child says when it begins a job: what it has not read yet has not begun, has no limits to
//! exceed, and can be taken back. A job that is to end is ended alone, by an exception that its
//! child raises in it; only where that does not help is the child killed, and with it the others.

use std::time::Duration;

use celeriac_core::Evidence;
use celeriac_core::pool::{LossCause, PoolEvent, RequestKey};

use super::child::{Assigned, Child, Ending};
use super::{Action, Kill, Machine, SIGUSR1, Shape, SoftLimit};

/// How long a job that is being ended may take before its child is killed for it. Longer than for
/// a child with one job: others would be lost with it.
pub(super) const END_GRACE: Duration = Duration::from_secs(1);
/// Its number is the same on every Linux.
const SIGKILL: i32 = 9;

impl Machine {
    pub(super) fn is_shared(&self) -> bool {
        matches!(self.shape, Shape::Shared { .. })
    }

    /// How many children there are to be.
    pub(super) fn wanted(&self) -> usize {
        match self.shape {
            Shape::OneEach => self.size,
            // A pool that is scaled down to nothing has none, and one for 3 jobs no 4 children.
            Shape::Shared { processes } => processes.min(self.size),
        }
    }

    /// How many jobs a child may run at once.
    fn places(&self) -> usize {
        self.size.div_ceil(self.wanted().max(1))
    }

    fn free_places_of(&self, child: &Child) -> usize {
        if child.pid.is_none() || !child.is_up {
            // It will be there in milliseconds, unless starting is the trouble.
            let will_be_up = self.failures == 0 && self.was_ever_up;
            return if will_be_up { self.places() } else { 0 };
        }
        if !child.takes_jobs() || child.is_full {
            return 0;
        }
        let left = usize::try_from(child.jobs_left()).unwrap_or(usize::MAX);
        self.places().saturating_sub(child.jobs.len()).min(left)
    }

    /// How many jobs can be given to the pool now.
    pub(super) fn free_places(&self) -> usize {
        let places: usize = self
            .children
            .values()
            .map(|child| self.free_places_of(child))
            .sum();
        // A child that is being replaced counts until it is done: no more than the pool's size run
        // at once.
        places
            .min(self.size.saturating_sub(self.busy()))
            .saturating_sub(self.waiting.len())
    }

    /// The child with the fewest jobs of those that can take another one.
    pub(super) fn least_busy(&self) -> Option<u32> {
        self.children
            .iter()
            .filter(|(_, child)| child.takes_jobs() && self.free_places_of(child) > 0)
            .min_by_key(|(_, child)| child.jobs.len())
            .map(|(number, _)| *number)
    }

    /// A child that runs many jobs has begun these.
    pub fn begun(&mut self, number: u32, keys: &[RequestKey], now: Duration) {
        let Some(child) = self.children.get_mut(&number) else {
            return;
        };
        let Some(pid) = child.pid else { return };
        // It has read what it was sent: there is room again.
        child.is_full = false;
        let mut begun = Vec::new();
        for key in keys {
            let is_new = |job: &&mut Assigned| job.key == *key && job.started.is_none();
            if let Some(job) = child.jobs.iter_mut().rev().find(is_new) {
                job.begin(now);
                child.due = child.due.min(job.due().unwrap_or(Duration::MAX));
                begun.push(*key);
            } else {
                tracing::error!("a child has begun a job that it was not given");
            }
        }
        for key in begun {
            self.tell(PoolEvent::Started { key, pid });
        }
        self.assign(now);
    }

    /// A job of many was ended in its child as it was told.
    pub fn terminated(&mut self, number: u32, key: RequestKey, now: Duration) {
        let Some(child) = self.children.get_mut(&number) else {
            return;
        };
        let Some(at) = child.jobs.iter().position(|job| job.key == key) else {
            tracing::error!("a child has ended a job that it was not given");
            return;
        };
        let pid = child.pid.unwrap_or_default();
        if let Some(job) = child.jobs.remove(at) {
            child.is_full = false;
            if let Some(left) = &mut child.tasks_left {
                *left = left.saturating_sub(1);
            }
            let event = match job.started {
                None => PoolEvent::Returned { key },
                Some(started) => PoolEvent::Lost {
                    key,
                    pid,
                    cause: job
                        .ending
                        .map_or(LossCause::Terminated, |ending| ending.cause),
                    evidence: Evidence {
                        run_time: Some(now.saturating_sub(started.at)),
                        ..Evidence::default()
                    },
                },
            };
            self.tell(event);
        }
        self.retire_if_done(number, now);
        self.tick(now);
    }

    /// Ends one job of many.
    pub(super) fn terminate_shared(&mut self, key: RequestKey, signal: i32, now: Duration) {
        let found = self.children.iter_mut().find_map(|(number, child)| {
            let at = child.jobs.iter().position(|job| job.key == key)?;
            Some((*number, child, at))
        });
        let Some((number, child, at)) = found else {
            return;
        };
        // Celery's users end a task gently by it: it is the soft time limit's signal.
        if signal == SIGUSR1 && child.jobs[at].started.is_some() {
            self.actions
                .extend(child.soft_limit(number, key, SoftLimit::Time));
            return;
        }
        // Only who asks for SIGKILL means it at all costs.
        let kill_at = (signal == SIGKILL).then_some(now + END_GRACE);
        let cause = LossCause::Terminated;
        child.jobs[at].ending = Some(Ending { cause, kill_at });
        child.due = child.due.min(kill_at.unwrap_or(Duration::MAX));
        // One that is still unread is given back. Otherwise it runs, or is about to.
        self.take_back_from(number);
        self.actions.push(Action::Terminate { number, key });
    }

    /// Does what has come due in the jobs of a child.
    pub(super) fn tick_jobs(&mut self, number: u32, now: Duration) {
        let Some(child) = self.children.get_mut(&number) else {
            return;
        };
        if child.due > now || child.ending.is_some() {
            return;
        }
        let pid = child.pid.unwrap_or_default();
        let mut actions = Vec::new();
        let mut is_deaf = false;
        for job in &mut child.jobs {
            let key = job.key;
            let is_due = |at: Option<Duration>| at.is_some_and(|at| at <= now);
            if let Some(kill_at) = job.ending.and_then(|ending| ending.kill_at) {
                is_deaf |= kill_at <= now;
                continue;
            }
            let Some(started) = &mut job.started else {
                continue;
            };
            if is_due(started.hard_at) {
                job.ending = Some(Ending {
                    cause: LossCause::TimeLimit,
                    kill_at: Some(now + END_GRACE),
                });
                actions.push(Action::Tell(PoolEvent::HardTimeLimit { key, pid }));
                actions.push(Action::Terminate { number, key });
            } else if is_due(started.soft_at) {
                started.soft_at = None;
                let limit = SoftLimit::Time;
                actions.push(Action::Tell(PoolEvent::SoftTimeLimit { key }));
                actions.push(Action::SoftLimit { number, key, limit });
            }
        }
        if is_deaf {
            child.ending = Some(Ending {
                cause: LossCause::Neighbor,
                kill_at: None,
            });
        }
        let due = child.jobs.iter().filter_map(Assigned::due).min();
        child.due = due.unwrap_or(Duration::MAX);
        self.actions.extend(actions);
        if is_deaf {
            // What it has not read goes to its successor. It is not asked to leave first: its
            // other tasks would be heard ending in ways that are not theirs.
            self.take_back_from(number);
            let kill = Kill::KillGroup;
            self.actions.push(Action::Kill { number, kill });
        }
    }
}
