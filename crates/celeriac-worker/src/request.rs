//! One delivered task, from its delivery to its end.
//!
//! Celery's counterpart: `celery.worker.request.Request`.

use std::fmt;
use std::sync::Arc;

use celeriac_config::TaskOptions;
use celeriac_core::broker::{DeliveryTag, Fate, Settlement};
use celeriac_core::pool::{Job, RequestKey};
use celeriac_protocol::{Head, Message, TimeLimits, request};
use jiff::Timestamp;

/// A task that was delivered and is not done with.
#[derive(Debug, Clone)]
pub struct Request {
    /// Names it within this worker.
    pub key: RequestKey,
    /// Names its message towards the broker.
    pub tag: DeliveryTag,
    /// The worker's lane that it came through: the pool that runs it.
    pub lane: usize,
    /// The queue that it came from.
    pub queue: Arc<str>,
    /// What the worker understands of the message.
    pub head: Head,
    /// The message.
    pub message: Arc<Message>,
    /// The task's options.
    pub task: Arc<TaskOptions>,
    /// Where it stands.
    pub stage: Stage,
    /// Whether the broker was told what becomes of the message.
    pub is_settled: bool,
    /// Whether its lease is lost: another worker has its message, or will.
    pub is_taken: bool,
    /// Whether its connection is lost: the broker delivers its message again.
    pub is_lost: bool,
    /// Whether it was revoked while it ran, and its process sent a signal.
    pub terminated: Option<Terminated>,
}

/// A task that was revoked while it ran.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Terminated {
    /// Whether this is stored: before, its message must not be settled.
    pub is_stored: bool,
    /// Whether its process is gone without another outcome: only then this is its end.
    pub is_gone: bool,
}

/// Where a request stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It waits for its ETA.
    Held,
    /// It waits for its task's rate limit.
    Throttled,
    /// It waits for limits that all workers keep together.
    Limited,
    /// It waits for a place in the pool; it stays in this worker if `is_bound`.
    Ready {
        /// It has waited here for its ETA or rate limit: giving it back would make it wait again.
        is_bound: bool,
    },
    /// The pool has it, and it may have begun.
    Submitted {
        /// As before it was submitted.
        is_bound: bool,
    },
    /// A process runs it.
    Running {
        /// The process.
        pid: u32,
        /// When it began, by the wall clock.
        since: Timestamp,
    },
    /// Its process is being killed, and it is to run again.
    Dying,
    /// It is over; main has work to do before its message is settled.
    Concluding,
}

impl Stage {
    /// Whether a process runs it, which a signal may end.
    pub fn is_running(self) -> bool {
        matches!(self, Self::Running { .. })
    }

    /// Whether the request is still in the worker's own hands.
    pub fn is_waiting(self) -> bool {
        matches!(
            self,
            Self::Held | Self::Throttled | Self::Limited | Self::Ready { .. }
        )
    }
}

impl Request {
    /// The name and id as log lines show them.
    pub fn label(&self) -> Label<'_> {
        Label(self)
    }

    /// Whether the result of this call is not stored.
    pub fn ignores_result(&self) -> bool {
        self.head.ignore_result.unwrap_or(self.task.ignore_result)
    }

    /// Whether its message is acknowledged, so that nobody but this worker can run it.
    pub fn is_bound_by_ack(&self) -> bool {
        self.is_settled && !self.is_taken
    }

    /// What to tell the broker; `None` when it was told before, or can't be told.
    pub fn settle(&mut self, fate: Fate) -> Option<Settlement> {
        let first = !std::mem::replace(&mut self.is_settled, true);
        (first && !self.is_lost).then_some(Settlement {
            tag: self.tag,
            fate,
        })
    }

    /// The limits on its run time: the call's, the task's, then the worker's.
    pub fn time_limits(&self, defaults: TimeLimits) -> TimeLimits {
        let own = self.head.time_limits.or(self.task.time_limits());
        own.or(defaults)
    }

    /// The job for the pool; `is_told` when monitors are told of its end.
    pub fn job(&self, hostname: &str, defaults: TimeLimits, is_told: bool) -> Job {
        Job {
            key: self.key,
            task: self.head.task.clone(),
            request: request::to_json(&self.message, hostname),
            body: self.message.body.clone(),
            content_type: self.message.content_type.clone(),
            content_encoding: self.message.content_encoding.clone(),
            time_limits: self.time_limits(defaults),
            wants_result: is_told || self.task.overrides("on_success"),
            wants_exception: self.task.overrides("on_failure") || self.task.overrides("on_retry"),
        }
    }
}

/// Shows a request as `name[id]`.
#[derive(Debug, Clone, Copy)]
pub struct Label<'r>(&'r Request);

impl fmt::Display for Label<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.0.head.name(), self.0.head.id)
    }
}
