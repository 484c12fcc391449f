//! How children come to be, work, and end.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use celeriac_core::Evidence;
use celeriac_core::backoff::Doubling;
use celeriac_core::pool::{ExitStatus, LossCause, Outcome, PoolEvent, RequestKey};

use super::child::Child;
use super::memory::LOOK_INTERVAL;
use super::{Action, LEAVE_GRACE, Machine, Phase, Shape, TERM_GRACE, child_name};

/// Waits between attempts to start children that die before they are up.
const RESTARTS: Doubling = Doubling {
    start: Duration::from_millis(100),
    max: Duration::from_secs(30),
};
/// After so many children that died while starting, with none ever up, the pool gives up.
const START_ATTEMPTS: u32 = 5;

impl Machine {
    /// The zygote can fork.
    pub fn zygote_is_up(&mut self, now: Duration) {
        self.has_zygote = true;
        self.tick(now);
    }

    /// The zygote is gone, and with it soon its children.
    pub fn zygote_is_gone(&mut self) {
        self.has_zygote = false;
        self.forget_unborn();
    }

    /// Forgets children that do not exist yet: the end of its channel ends one that comes to be.
    pub(super) fn forget_unborn(&mut self) {
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
    pub(super) fn came_up(&mut self, number: u32, now: Duration) {
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
            // It may have been told to leave while it was starting.
            self.retire_if_done(number, now);
            self.tick(now);
        } else {
            self.leave(number, now);
        }
    }

    /// A child's job has ended. `peak` is the most that the child held so far, in KiB, where that
    /// is limited.
    pub fn done(
        &mut self,
        number: u32,
        key: RequestKey,
        outcome: Outcome,
        peak: Option<u64>,
        now: Duration,
    ) {
        let Some(child) = self.children.get_mut(&number) else {
            return;
        };
        let is_shared = matches!(self.shape, Shape::Shared { .. });
        let at = child.jobs.iter().position(|job| job.key == key);
        let Some(at) = at.filter(|at| is_shared || *at == 0) else {
            tracing::error!("a child reports a job that it was not given");
            return;
        };
        let Some(ended) = child.jobs.remove(at) else {
            return;
        };
        // One that others share stays with them, whatever one of its jobs asks for.
        let leaves = matches!(outcome, Outcome::Left { .. }) && !is_shared;
        child.is_full = false;
        if let Some(left) = &mut child.tasks_left {
            *left = left.saturating_sub(1);
        }
        let is_last = leaves || child.tasks_left == Some(0) && !is_shared;
        if is_last {
            // It leaves by itself.
            child.leave_by = Some(now + LEAVE_GRACE);
        }
        // A job that ended while it was being killed has ended all the same.
        if let Some(ending) = &mut child.ending
            && !is_shared
        {
            ending.kill_at = ending.kill_at.or(Some(now + TERM_GRACE));
        }
        if let Some(started) = ended.started {
            self.estimates
                .observe(&ended.task, now.saturating_sub(started.at));
        }
        self.tell(PoolEvent::Finished { key, outcome });
        if !is_shared {
            self.begin_next(number, now);
        }
        if let Some(peak) = peak {
            self.outgrown(number, peak, now);
        }
        self.retire_if_done(number, now);
        self.tick(now);
    }

    /// The job that is now at the front of a child's channel has begun.
    pub(super) fn begin_next(&mut self, number: u32, now: Duration) {
        let Some(child) = self.children.get_mut(&number) else {
            return;
        };
        let Some(pid) = child.pid else { return };
        let Some(job) = child.jobs.front_mut().filter(|job| job.started.is_none()) else {
            return;
        };
        job.begin(now);
        let key = job.key;
        self.tell(PoolEvent::Started { key, pid });
    }

    /// A child has ended, and left this `evidence`, to which is added what the machine knows.
    ///
    /// `unread` are jobs that were found in its channel.
    pub fn exited(
        &mut self,
        number: u32,
        evidence: &Evidence,
        unread: &[RequestKey],
        now: Duration,
    ) {
        let Some(mut child) = self.children.remove(&number) else {
            return;
        };
        self.actions.push(Action::Forget { number });
        let pid = child.pid.unwrap_or_default();
        let status = evidence.status;
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
                Some(started) => {
                    let cause = match job.ending.or(child.ending) {
                        Some(ending) => ending.cause,
                        None if unread.contains(&job.key) => LossCause::Unread,
                        None => LossCause::Died(status),
                    };
                    PoolEvent::Lost {
                        key: job.key,
                        pid,
                        cause,
                        evidence: Evidence {
                            peak: evidence.peak.max(child.peak),
                            run_time: Some(now.saturating_sub(started.at)),
                            ..evidence.clone()
                        },
                    }
                }
            };
            self.tell(event);
        }
        self.tick(now);
    }

    pub(super) fn failed_to_start(&mut self, status: ExitStatus, now: Duration) {
        self.not_before = now + RESTARTS.wait(self.failures);
        self.failures += 1;
        if !self.was_ever_up && self.failures == START_ATTEMPTS {
            self.tell(PoolEvent::CannotStart {
                reason: format!("the last of {START_ATTEMPTS} children ended with {status}"),
            });
        }
    }

    /// Forks what is missing of the pool's size.
    pub(super) fn fork_missing(&mut self, now: Duration) {
        if self.phase != Phase::Running || !self.has_zygote || now < self.not_before {
            return;
        }
        let staying = self
            .children
            .values()
            .filter(|child| !child.is_leaving() && !child.is_replaced);
        let taken: BTreeSet<usize> = staying.map(|child| child.index).collect();
        let wanted = self.wanted();
        let size = if self.is_held_back {
            wanted.min(1)
        } else {
            wanted
        };
        let free = (0..).filter(|index| !taken.contains(index));
        for index in free
            .take(size.saturating_sub(taken.len()))
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
                    given: 0,
                    retires: false,
                    is_replaced: false,
                    leave_by: None,
                    is_full: false,
                    peak: None,
                    seen: None,
                    look_after: LOOK_INTERVAL,
                    ending: None,
                    due: Duration::MAX,
                },
            );
            self.actions.push(Action::Fork { number, index });
        }
    }

    pub(super) fn retire_if_done(&mut self, number: u32, now: Duration) {
        let is_done = self
            .children
            .get(&number)
            .is_some_and(|child| child.is_up && child.retires && child.jobs.is_empty());
        if is_done {
            self.leave(number, now);
        }
    }

    pub(super) fn leave(&mut self, number: u32, now: Duration) {
        if let Some(child) = self.children.get_mut(&number)
            && !child.is_leaving()
        {
            child.leave_by = Some(now + LEAVE_GRACE);
            self.actions.push(Action::Leave { number });
        }
    }
}
