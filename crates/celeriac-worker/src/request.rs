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
}

/// Where a request stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It waits for its ETA.
    Held,
    /// It waits for its task's rate limit.
    Throttled,
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
    /// Whether the request is still in the worker's own hands.
    pub fn is_waiting(self) -> bool {
        matches!(self, Self::Held | Self::Throttled | Self::Ready { .. })
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

    /// What to tell the broker; `None` when it was told before.
    pub fn settle(&mut self, fate: Fate) -> Option<Settlement> {
        let first = !std::mem::replace(&mut self.is_settled, true);
        first.then_some(Settlement {
            tag: self.tag,
            fate,
        })
    }

    /// The job for the pool.
    pub fn job(&self, hostname: &str, defaults: TimeLimits) -> Job {
        let own = self.head.time_limits.or(self.task.time_limits());
        Job {
            key: self.key,
            task: self.head.task.clone(),
            request: request::to_json(&self.message, hostname),
            body: self.message.body.clone(),
            content_type: self.message.content_type.clone(),
            content_encoding: self.message.content_encoding.clone(),
            time_limits: own.or(defaults),
            wants_result: self.task.overrides("on_success"),
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
