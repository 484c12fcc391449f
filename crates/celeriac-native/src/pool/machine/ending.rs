//! The end of a job that does not come by itself.

use std::time::Duration;

use celeriac_core::Evidence;
use celeriac_core::pool::{LossCause, PoolEvent, RequestKey};

use super::{Action, KILL_GRACE, Machine, Phase, Running, STUCK_AFTER};
use crate::cancellation::Cause;

/// The end that was decided for a job.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ending {
    /// What it is told as; `None` where its task fails with it.
    pub(super) loss: Option<LossCause>,
    /// When the task is not waited for any longer.
    pub(super) drop_at: Option<Duration>,
    /// When the job is concluded without it.
    pub(super) stuck_at: Option<Duration>,
}

impl Machine {
    /// Has a task fail with `cause`, unless it ends by itself in time.
    pub(super) fn raise(&mut self, key: RequestKey, cause: Cause, now: Duration) {
        let Some(running) = self.jobs.get(&key) else {
            return;
        };
        if running.ending.is_some() {
            return;
        }
        let drop_at = now.checked_add(running.grace);
        self.actions.push(Action::Cancel { key, cause });
        self.end(key, None, drop_at, now);
    }

    /// Has a job be lost, unless its task is told to end in time, which is `most` or its own grace.
    pub(super) fn lose(
        &mut self,
        key: RequestKey,
        cause: Cause,
        loss: LossCause,
        most: Duration,
        now: Duration,
    ) {
        let Some(running) = self.jobs.get(&key) else {
            return;
        };
        let drop_at = now.checked_add(running.grace.min(most));
        match running.ending {
            // What it is told as, stays; it may have to be done sooner.
            Some(Ending {
                loss: Some(first),
                drop_at: Some(before),
                ..
            }) => {
                let sooner = drop_at.map_or(before, |at| at.min(before));
                self.end(key, Some(first), Some(sooner), now);
            }
            Some(Ending {
                loss: Some(_),
                stuck_at: Some(before),
                ..
            }) => {
                // It was told to be dropped just now, perhaps.
                let sooner = before.min(now.saturating_add(most.max(KILL_GRACE)));
                self.change(key, |running| {
                    if let Some(ending) = &mut running.ending {
                        ending.stuck_at = Some(sooner);
                    }
                });
            }
            _ => {
                self.actions.push(Action::Cancel { key, cause });
                self.end(key, Some(loss), drop_at, now);
            }
        }
    }

    fn end(
        &mut self,
        key: RequestKey,
        loss: Option<LossCause>,
        drop_at: Option<Duration>,
        now: Duration,
    ) {
        self.change(key, |running| {
            running.ending = Some(Ending {
                loss,
                drop_at,
                stuck_at: None,
            });
        });
        if drop_at.is_some_and(|at| at <= now) {
            self.drop_run(key, now);
        }
    }

    /// A task is not waited for any longer.
    pub(super) fn drop_run(&mut self, key: RequestKey, now: Duration) {
        let Some(ending) = self.jobs.get(&key).and_then(|running| running.ending) else {
            return;
        };
        let patience = if self.phase == Phase::Running {
            STUCK_AFTER
        } else {
            KILL_GRACE
        };
        // One that fails with it may fail late: then the hard time limit ends it.
        let stuck_at = ending.loss.and_then(|_| now.checked_add(patience));
        self.change(key, |running| {
            if let Some(ending) = &mut running.ending {
                ending.drop_at = None;
                ending.stuck_at = stuck_at;
            }
        });
        self.actions.push(match ending.loss {
            Some(_) => Action::Lose { key },
            None => Action::Raise { key },
        });
    }

    pub(super) fn lost(
        &mut self,
        key: RequestKey,
        running: &Running,
        cause: LossCause,
        now: Duration,
    ) {
        let pid = self.pid;
        // Only now: what the worker does about it, it does about a task that runs no more.
        if cause == LossCause::TimeLimit {
            self.tell(PoolEvent::HardTimeLimit { key, pid });
        }
        let evidence = Evidence {
            run_time: Some(now.saturating_sub(running.since)),
            ..Evidence::default()
        };
        self.tell(PoolEvent::Lost {
            key,
            pid,
            cause,
            evidence,
        });
    }
}
