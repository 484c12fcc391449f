//! What comes due by itself: limits of time, and the end of every patience.

use std::time::Duration;

use celeriac_core::pool::{LossCause, PoolEvent};

use super::child::Ending;
use super::{Action, Kill, Machine, Phase, Shape, SoftLimit, TAKE_BACK_AFTER, TERM_GRACE};

/// A job that no child could take for so long goes back to the worker.
pub(super) const RETURN_AFTER: Duration = Duration::from_millis(500);

impl Machine {
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

    pub(super) fn tick_child(&mut self, number: u32, now: Duration) {
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
        if matches!(self.shape, Shape::Shared { .. }) {
            return self.tick_jobs(number, now);
        }
        let is_ending = child.will_end();
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
            let limit = SoftLimit::Time;
            self.actions.push(Action::SoftLimit { number, key, limit });
        }
        if takes_back && !is_hard {
            self.take_back_from(number);
        }
    }

    /// When [`Machine::tick`] has something to do, unless something happens before.
    pub fn next_tick(&self, now: Duration) -> Option<Duration> {
        let children = self.children.values().flat_map(|child| {
            let is_shared = matches!(self.shape, Shape::Shared { .. });
            let started = child.jobs.front().and_then(|job| job.started);
            let ending = child.ending;
            let running = started.filter(|_| ending.is_none() && !is_shared);
            [
                (!child.is_up && child.pid.is_some()).then_some(child.start_by),
                ending.and_then(|ending| ending.kill_at),
                child.leave_by.filter(|_| ending.is_none()),
                (is_shared && ending.is_none()).then_some(child.due),
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
}
