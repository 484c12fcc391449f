//! What the machine knows of one child.

use std::collections::VecDeque;
use std::time::Duration;

use bytestring::ByteString;
use celeriac_core::pool::{LossCause, RequestKey};
use celeriac_protocol::TimeLimit;

use super::{Action, SoftLimit, TAKE_BACK_AFTER};
use crate::memory::pace::Seen;

/// A child that was ordered, exists, or is ending.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) index: usize,
    pub(super) pid: Option<u32>,
    pub(super) is_up: bool,
    /// When it must be up, once it exists.
    pub(super) start_by: Duration,
    /// The first runs, the others are ahead of it in its channel.
    pub(super) jobs: VecDeque<Assigned>,
    pub(super) tasks_left: Option<u64>,
    /// How many jobs it was given.
    pub(super) given: u64,
    /// It is to leave when its jobs are done.
    pub(super) retires: bool,
    /// Its successor may be forked, or is.
    pub(super) is_replaced: bool,
    /// It was told to leave, and is killed at this moment.
    pub(super) leave_by: Option<Duration>,
    /// Its channel had no room for a message.
    pub(super) is_full: bool,
    /// The most memory that was seen in it, in KiB.
    pub(super) peak: Option<u64>,
    /// What it held when that was last seen.
    pub(super) seen: Option<Seen>,
    /// How long to wait before what it holds is looked at again.
    pub(super) look_after: Duration,
    /// What it ended of, if the pool ended it.
    pub(super) ending: Option<Ending>,
    /// Where it runs many jobs at once: nothing comes due in any of them before this moment.
    pub(super) due: Duration,
}

/// A job that a child has.
#[derive(Debug)]
pub(super) struct Assigned {
    pub(super) key: RequestKey,
    pub(super) task: ByteString,
    pub(super) limits: celeriac_protocol::TimeLimits,
    /// When it began, and what is due since.
    pub(super) started: Option<Started>,
    /// Why it is being ended, where that does not end its child.
    pub(super) ending: Option<Ending>,
}

/// A job that has begun.
#[derive(Debug, Clone, Copy)]
pub(super) struct Started {
    pub(super) at: Duration,
    pub(super) soft_at: Option<Duration>,
    pub(super) hard_at: Option<Duration>,
    /// When what waits behind it is taken back.
    pub(super) take_back_at: Duration,
    /// The soft limit of memory has been raised in it.
    pub(super) is_warned: bool,
}

/// Why the pool ends a child, or one job of many in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ending {
    pub(super) cause: LossCause,
    /// When SIGKILL follows.
    pub(super) kill_at: Option<Duration>,
}

impl Assigned {
    /// It begins now, and so does its time.
    pub(super) fn begin(&mut self, now: Duration) {
        let due =
            |limit: Option<TimeLimit>| limit.and_then(|limit| now.checked_add(limit.duration()));
        self.started = Some(Started {
            at: now,
            soft_at: due(self.limits.soft),
            hard_at: due(self.limits.hard),
            take_back_at: now + TAKE_BACK_AFTER,
            is_warned: false,
        });
    }

    /// When something comes due in it.
    pub(super) fn due(&self) -> Option<Duration> {
        // Whoever does not heed an operator's signal has its limits as before.
        if let Some(kill_at) = self.ending.and_then(|ending| ending.kill_at) {
            return Some(kill_at);
        }
        let started = self.started?;
        started.soft_at.into_iter().chain(started.hard_at).min()
    }
}

impl Child {
    /// Raises the exception of a soft limit in a job, if the job runs here.
    pub(super) fn soft_limit(
        &self,
        number: u32,
        key: RequestKey,
        limit: SoftLimit,
    ) -> Option<Action> {
        let is_it = |job: &&Assigned| job.key == key && job.started.is_some();
        self.jobs
            .iter()
            .find(is_it)
            .map(|_| Action::SoftLimit { number, key, limit })
    }

    /// Whether its end is on its way. An operator's signal to its task is no such thing: whoever
    /// does not heed it has its limits as before.
    pub(super) fn will_end(&self) -> bool {
        let is_asked = |ending: Ending| {
            matches!(ending.cause, LossCause::Terminated) && ending.kill_at.is_none()
        };
        self.ending.is_some_and(|ending| !is_asked(ending))
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.leave_by.is_some() || self.ending.is_some()
    }

    /// Whether it can be given a job.
    pub(super) fn takes_jobs(&self) -> bool {
        self.is_up && self.pid.is_some() && !self.is_leaving() && !self.retires
    }

    pub(super) fn is_idle(&self) -> bool {
        self.takes_jobs() && self.jobs.is_empty()
    }

    /// Jobs that it may still be given before it is replaced.
    pub(super) fn jobs_left(&self) -> u64 {
        self.tasks_left
            .map_or(u64::MAX, |left| left.saturating_sub(self.jobs.len() as u64))
    }
}
