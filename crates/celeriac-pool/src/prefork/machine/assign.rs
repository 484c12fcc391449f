//! Which child gets which job, and what is taken back from it.

use std::time::Duration;

use celeriac_core::pool::{Job, LossCause, PoolEvent, RequestKey};

use super::child::{Assigned, Child, Ending};
use super::{Action, Machine, Phase, Shape, Waiting};
use crate::prefork::frame::AfterJob;

/// Work that a child may have ahead of it, in seconds: enough to cover the way to the broker and
/// back, short enough that nobody minds waiting so long behind it.
const AHEAD: f64 = 0.005;
/// Jobs that a child may have ahead of it at most.
pub(super) const MOST_AHEAD: usize = 32;
/// A child with a job shorter than this is replaced before the job ends.
const REPLACE_EARLY: f64 = 1.0;

impl Machine {
    /// How many jobs can be given to the pool now.
    pub fn free(&self, now: Duration) -> usize {
        if self.phase != Phase::Running {
            return 0;
        }
        if self.is_shared() {
            return self.free_places();
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

    /// How many places are taken: children that have jobs, or jobs where these share children.
    pub(super) fn busy(&self) -> usize {
        if self.is_shared() {
            return self.children.values().map(|child| child.jobs.len()).sum();
        }
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

    /// Sends waiting jobs to children that can take them.
    pub(super) fn assign(&mut self, now: Duration) {
        while self.phase == Phase::Running && !self.waiting.is_empty() {
            // A child that is being replaced counts until it is done: no more than the pool's
            // size run at once.
            let may_begin = self.busy() < self.size;
            if self.is_shared() {
                let Some(number) = self.least_busy().filter(|_| may_begin) else {
                    return;
                };
                self.give_waiting(number, now);
                continue;
            }
            let idle = self
                .children
                .iter()
                .find(|(_, child)| may_begin && child.is_idle());
            let chosen = idle
                .map(|(number, _)| *number)
                .or_else(|| self.child_to_give_more(now));
            let Some(number) = chosen else { return };
            self.give_waiting(number, now);
        }
    }

    fn give_waiting(&mut self, number: u32, now: Duration) {
        if let Some(Waiting { job, .. }) = self.waiting.pop_front() {
            self.give(number, job, now);
        }
    }

    /// The child that will be done with what it has soonest, if that is soon.
    pub(super) fn child_to_give_more(&self, now: Duration) -> Option<u32> {
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
    pub(super) fn ahead(&self, child: &Child, now: Duration) -> f64 {
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

    pub(super) fn give(&mut self, number: u32, job: Job, now: Duration) {
        let Some(child) = self.children.get_mut(&number) else {
            return;
        };
        child.given += 1;
        child.jobs.push_back(Assigned {
            key: job.key,
            task: job.task.clone(),
            limits: job.time_limits,
            started: None,
            ending: None,
        });
        let is_last = child.jobs_left() == 0;
        let is_shared = matches!(self.shape, Shape::Shared { .. });
        if is_last && is_shared {
            // It is told to leave when all of its jobs are done, of which this need not be the last.
            child.retires = true;
        }
        let after = if is_last && !is_shared {
            AfterJob::Leave
        } else {
            AfterJob::Stay
        };
        let task = job.task.clone();
        self.actions.push(Action::Send { number, job, after });
        // The next child is forked while this one is at its last, if that won't take long.
        if is_last && (is_shared || self.estimates.task(&task) < REPLACE_EARLY) {
            if let Some(child) = self.children.get_mut(&number) {
                child.is_replaced = true;
            }
            self.fork_missing(now);
        }
    }

    /// A job was sent: it has begun, if nothing is ahead of it. Where jobs share a child, the child
    /// says so.
    pub fn sent(&mut self, number: u32, now: Duration) {
        if !self.is_shared() {
            self.begin_next(number, now);
        }
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

    pub(super) fn take_back_from(&mut self, number: u32) {
        let is_shared = self.is_shared();
        let has_unread = |child: &Child| {
            if is_shared {
                child.jobs.iter().any(|job| job.started.is_none())
            } else {
                child.jobs.len() > 1
            }
        };
        if self.children.get(&number).is_some_and(has_unread) {
            self.actions.push(Action::TakeBack { number });
        }
    }
}
