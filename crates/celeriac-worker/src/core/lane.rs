//! A pool, and the queues that it serves. A worker has one or more of these lanes; a request stays
//! in the lane that its message came through.
//!
//! Celery has nothing like it: there each pool is a worker of its own.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytestring::ByteString;
use celeriac_core::pool::{RequestKey, Shortage};
use celeriac_protocol::TimeLimits;
use serde_json::{Map, Value};

use super::adopt::Adoption;
use crate::autoscale::Autoscale;
use crate::request::Stage;

/// How many jobs the pool of each lane can take now, in the order of the lanes.
pub type Free<'f> = &'f [usize];

/// What does not change of a lane while the worker lives.
#[derive(Debug, Clone, Default)]
pub struct LaneOptions {
    /// The pool's name, where a worker has several.
    pub name: Option<String>,
    /// Limits for tasks without their own.
    pub time_limits: TimeLimits,
    /// Bounds of the pool, if it is scaled.
    pub autoscale: Option<Autoscale>,
    /// How many tasks may wait for a rate limit.
    pub throttled_limit: usize,
    /// The tasks that the pool can run; `None` for all that the worker knows.
    pub runs: Option<Arc<HashSet<ByteString>>>,
    /// What `inspect stats` tells of the pool, but for its processes.
    pub pool_info: Map<String, Value>,
}

/// A pool, and the queues that it serves.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) options: LaneOptions,
    /// Requests that may begin, and since when.
    pub(super) ready: VecDeque<(RequestKey, Duration)>,
    /// Before this none of them has waited for too long that could be given back; `None` when all
    /// are bound to this worker.
    pub(super) next_release: Option<Duration>,
    /// Until when nobody else is given what is fetched; `None` where no time ends that.
    pub(super) leased_until: Option<Duration>,
    pub(super) is_connected: bool,
    pub(super) adoption: Adoption,
    /// Memory that is short.
    pub(super) shortage: Option<Shortage>,
    pub(super) next_scale: Duration,
    pub(super) pool_is_closed: bool,
    /// The wanted number of the pool's processes.
    pub(super) pool_size: usize,
    /// How many requests the pool has.
    pub(super) busy: usize,
    /// How many of them a process runs.
    pub(super) running: usize,
    /// How many requests wait for a rate limit.
    pub(super) throttled: usize,
    /// How many requests wait until receivers of `task_received` have seen them.
    pub(super) announced: usize,
    /// The pool's processes, each with how many jobs it was given, when last looked at.
    pub(super) processes: Vec<(u32, u64)>,
}

impl Lane {
    pub(super) fn new(options: LaneOptions, now: Duration) -> Self {
        Self {
            options,
            ready: VecDeque::new(),
            next_release: None,
            leased_until: None,
            is_connected: false,
            adoption: Adoption::default(),
            shortage: None,
            next_scale: now,
            pool_is_closed: false,
            pool_size: 0,
            busy: 0,
            running: 0,
            throttled: 0,
            announced: 0,
            processes: Vec::new(),
        }
    }

    /// Whether the pool can run a task.
    pub(super) fn runs(&self, task: &ByteString) -> bool {
        let runs = self.options.runs.as_ref();
        runs.is_none_or(|tasks| tasks.contains(task))
    }

    /// Keeps the numbers of requests true when one moves from a stage to another.
    pub(super) fn count(&mut self, before: Stage, after: Stage) {
        let is_busy = |stage| {
            matches!(
                stage,
                Stage::Submitted { .. } | Stage::Running { .. } | Stage::Dying
            )
        };
        let change = |number: &mut usize, is: &dyn Fn(Stage) -> bool| {
            *number = *number + usize::from(is(after)) - usize::from(is(before));
        };
        change(&mut self.busy, &is_busy);
        change(&mut self.running, &Stage::is_running);
        change(&mut self.throttled, &|stage| stage == Stage::Throttled);
    }

    /// Whether nothing is kept of any message.
    pub(super) fn holds_nothing(&self) -> bool {
        self.ready.is_empty()
            && self.adoption.orphans() == 0
            && (self.busy, self.running, self.throttled, self.announced) == (0, 0, 0, 0)
    }
}
