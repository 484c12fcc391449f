//! What the pool tells, and what the end of a task leads to.

use std::sync::Arc;

use celeriac_core::broker::{Delay, Fate};
use celeriac_core::clock::Now;
use celeriac_core::dead_letter::{Cause, Remains};
use celeriac_core::evidence::Evidence;
use celeriac_core::pool::{ExitStatus, LossCause, Outcome, PoolEvent, RequestKey};
use celeriac_protocol::{Marks, TimeLimits};
use jiff::SignedDuration;
use serde_json::{Map, Value, json};

use super::bury::{Death, remains};
use super::{Continuation, Core, Effect, Free};
use crate::complete::death::{self, Verdict};
use crate::complete::disposition;
use crate::control::python;
use crate::events::event::TaskEvent;
use crate::happening::Happening;
use crate::hooks::HookCall;
use crate::receive::decode::{self, Received};
use crate::request::{Request, Stage, Terminated};
use crate::shutdown::Phase;

/// Its number is the same on every Linux.
const SIGTERM: i32 = 15;

/// How the process of a task ended.
#[derive(Debug, Clone)]
pub(super) struct Loss {
    reason: String,
    pid: u32,
    time_start: f64,
    /// What the task raised `SystemExit` with, if it did.
    status: Option<i32>,
    retries_are_spent: bool,
    /// Whether it has killed so many that it is not sent again either.
    is_given_up: bool,
    cause: Cause,
    remains: Remains,
    /// Whether the worker ended it: then it runs again, unless it had succeeded.
    is_cancelled: bool,
}

impl Core {
    /// The pool of a lane tells.
    pub fn pool_told(&mut self, lane: usize, events: Vec<PoolEvent>, free: Free<'_>, now: Now) {
        self.read_at = now;
        for event in events {
            match event {
                PoolEvent::Started { key, pid } => self.started(key, pid, now),
                PoolEvent::Finished { key, outcome } => self.finished(key, outcome),
                PoolEvent::SoftTimeLimit { key } => self.soft_limit(key),
                PoolEvent::HardTimeLimit { key, pid } => self.hard_limit(key, pid),
                PoolEvent::Lost {
                    key,
                    pid,
                    cause,
                    evidence,
                } => self.lost(key, pid, cause, &evidence, now),
                PoolEvent::Returned { key } => self.returned(key, now),
                PoolEvent::Died { name, pid, status } => {
                    self.tell(&Happening::ProcessDied {
                        name: &name,
                        pid,
                        status,
                    });
                }
                PoolEvent::TooMuchMemory {
                    pid,
                    resident,
                    limit,
                    killed,
                } => {
                    let is_killed = killed.is_some();
                    self.tell(&Happening::TooMuchMemory {
                        pid,
                        resident,
                        limit,
                        is_killed,
                    });
                }
                PoolEvent::SoftMemoryLimit {
                    key,
                    resident,
                    limit,
                } => self.soft_memory_limit(key, resident, limit),
                PoolEvent::Pressure(shortage) => self.pressure(lane, shortage),
                PoolEvent::Closed => self.lanes[lane].pool_is_closed = true,
                // That the pool is there, or can't be, is the worker's matter.
                PoolEvent::Up { .. } | PoolEvent::CannotStart { .. } => {}
            }
        }
        self.dispatch(free, now);
    }

    fn started(&mut self, key: RequestKey, pid: u32, now: Now) {
        self.set_stage(
            key,
            Stage::Running {
                pid,
                since: now.wall,
            },
        );
        let Some(request) = self.requests.get(&key) else {
            return;
        };
        self.tell(&Happening::TaskAccepted { request, pid });
        let acks_late = request.task.acks_late;
        let name = request.head.task.clone();
        self.limited_started(key);
        self.count_begun(&name);
        self.task_event(key, &TaskEvent::Started, now);
        let details = json!({"accepted": now.monotonic.as_secs_f64()});
        self.notify(key, "on_accepted", details, None);
        if !acks_late {
            self.settle(key, Fate::Ack);
        }
    }

    fn finished(&mut self, key: RequestKey, outcome: Outcome) {
        let Some(request) = self.requests.get(&key) else {
            return;
        };
        let Stage::Running { pid, since } = request.stage else {
            // It ended while it was being killed: what its end means is decided already, unless
            // it was to run again, which it need not any more.
            if request.stage == Stage::Dying {
                self.settle(key, Fate::Ack);
                self.remove(key);
            }
            return;
        };
        if let Outcome::Left { status } = outcome {
            if request.terminated.is_some() {
                // A handler of its own ended it at the signal.
                return self.terminated(key, |terminated| terminated.is_gone = true);
            }
            let run_time = self.read_at.wall.duration_since(since).as_secs_f64();
            let loss = Loss {
                reason: exited_prematurely(ExitStatus::Code(status), None),
                pid,
                time_start: seconds(since),
                status: Some(status),
                retries_are_spent: false,
                is_given_up: false,
                is_cancelled: false,
                cause: Cause::Exited,
                remains: Remains {
                    exit_code: Some(status),
                    run_time: Some(run_time),
                    ..Remains::default()
                },
            };
            return self.begin_loss(key, loss);
        }
        let fate = disposition::reported(&outcome, &request.task);
        let message = Arc::clone(&request.message);
        if matches!(outcome, Outcome::Retry(_)) {
            self.limited_retried(key);
        }
        let Some(request) = self.requests.get(&key) else {
            return;
        };
        if let Some((cause, reason)) = rejection(&outcome, fate) {
            let attempts = request.head.marks.deaths.saturating_add(1);
            let run_time = self.read_at.wall.duration_since(since).as_secs_f64();
            let remains = Remains {
                run_time: Some(run_time),
                ..Remains::default()
            };
            let death = Death {
                cause,
                reason,
                remains,
                attempts,
            };
            self.bury_request(key, death);
        }
        if let Some(event) = end_event(&outcome) {
            self.task_event(key, &event, self.read_at);
        }
        let Some(request) = self.requests.get(&key) else {
            return;
        };
        match outcome {
            Outcome::Success { result, runtime } => {
                let runtime = runtime.map(|runtime| runtime.as_secs_f64());
                self.notify(
                    key,
                    "on_success",
                    json!({"result": result, "runtime": runtime}),
                    None,
                );
            }
            Outcome::Retry(failure) => {
                // Celery's `on_failure` is what calls `on_retry`.
                let method = if request.task.overrides("on_failure") {
                    "on_failure"
                } else {
                    "on_retry"
                };
                self.notify(key, method, json!({}), Some(failure));
            }
            Outcome::Failure(failure)
            | Outcome::Ignore(failure)
            | Outcome::Reject {
                requeue: true,
                failure,
            } => {
                self.notify(key, "on_failure", json!({}), Some(failure));
            }
            Outcome::Undecodable { reason } => self.undecodable(&message, &reason),
            Outcome::Invalid { reason } => self.announce_invalid(message, &reason),
            Outcome::Reject {
                requeue: false,
                failure,
            } => {
                return self.conclude(key, HookCall::Rejected { message, failure }, fate);
            }
            Outcome::Raised(failure) => {
                return self.conclude(key, HookCall::Raised { message, failure }, fate);
            }
            Outcome::Left { .. } => {}
        }
        self.settle(key, fate);
        self.remove(key);
    }

    /// Monitors are told that a task failed without its process having told them.
    fn failed_event(&mut self, key: RequestKey, class: &str, reason: &str) {
        let event = TaskEvent::Failed {
            exception: &format!("{class}({reason})"),
            traceback: Some(&format!("{class}: {reason}\n")),
        };
        self.task_event(key, &event, self.read_at);
    }

    /// Has main do what the end of a task asks for; then its message is settled.
    fn conclude(&mut self, key: RequestKey, call: HookCall, fate: Fate) {
        self.set_stage(key, Stage::Concluding);
        self.call(call, Continuation::Settle(key, fate));
    }

    fn soft_limit(&mut self, key: RequestKey) {
        let Some(request) = self.requests.get(&key) else {
            return;
        };
        let Some(limit) = request.time_limits(self.time_limits_of(request)).soft else {
            return;
        };
        self.tell(&Happening::SoftTimeLimit { request, limit });
        let details = json!({"soft": true, "limit": number(limit)});
        self.notify(key, "on_timeout", details, None);
    }

    fn hard_limit(&mut self, key: RequestKey, pid: u32) {
        let Some(request) = self.requests.get(&key) else {
            return;
        };
        let Stage::Running { since, .. } = request.stage else {
            return;
        };
        if request.terminated.is_some() {
            // It is revoked, and its process has not heeded the signal: that is what is ended.
            return;
        }
        let Some(limit) = request.time_limits(self.time_limits_of(request)).hard else {
            return;
        };
        if disposition::runs_again_after_timeout(&request.task, request.is_settled) {
            if self.verdict(request.head.marks) != Verdict::GiveUp {
                self.tell(&Happening::HardTimeLimitRequeued { request, limit });
                // Its message goes back when its process is gone: it never runs twice at a time.
                self.set_stage(key, Stage::Dying);
                return;
            }
            let attempts = request.head.marks.deaths.saturating_add(1);
            let remains = Remains {
                run_time: Some(limit.seconds()),
                ..Remains::default()
            };
            let death = Death {
                cause: Cause::TimeLimit,
                reason: &format!("TimeLimitExceeded({limit})"),
                remains,
                attempts,
            };
            self.bury_request(key, death);
        }
        let Some(request) = self.requests.get(&key) else {
            return;
        };
        let message = Arc::clone(&request.message);
        let time_start = seconds(since);
        self.failed_event(key, "TimeLimitExceeded", &limit.to_string());
        let call = HookCall::TimedOut {
            message,
            limit: number(limit),
            pid,
            time_start,
        };
        self.conclude(key, call, Fate::Ack);
    }

    /// Limits for a request whose task has none: those of its pool.
    fn time_limits_of(&self, request: &Request) -> TimeLimits {
        self.lanes[request.lane].options.time_limits
    }

    /// The process of a task is gone.
    fn lost(&mut self, key: RequestKey, pid: u32, cause: LossCause, evidence: &Evidence, now: Now) {
        let Some(request) = self.requests.get(&key) else {
            return;
        };
        if let (Some(_), Stage::Running { .. }) = (request.terminated, request.stage) {
            return self.terminated(key, |terminated| terminated.is_gone = true);
        }
        let since = match request.stage {
            Stage::Running { since, .. } => since,
            Stage::Dying => {
                let fate = self.again(request.head.marks, now).unwrap_or(Fate::Requeue);
                self.settle(key, fate);
                self.remove(key);
                return;
            }
            // What is to be done about its end is under way.
            _ => return,
        };
        let is_overdue = self.shutdown.is_overdue() && !request.task.acks_late;
        let is_cancelled = cause == LossCause::Terminated && !is_overdue;
        let reason = match cause {
            LossCause::Died(status) => exited_prematurely(status, Some(key)),
            LossCause::Memory { resident, limit } => format!(
                "Worker exited prematurely: killed for holding {resident} KiB of memory, \
                 more than {limit} KiB Job: {key}."
            ),
            // It was to run at most once, and has failed.
            LossCause::Terminated if is_overdue => {
                format!("Worker exited prematurely: it was shutting down Job: {key}.")
            }
            LossCause::Pressure { resident, shortage } => format!(
                "Worker exited prematurely: killed for holding {resident} KiB of memory, more \
                 than any other, while {shortage} Job: {key}."
            ),
            LossCause::Terminated => exited_prematurely(ExitStatus::Signal(SIGTERM), Some(key)),
            LossCause::TimeLimit => return,
            LossCause::Unread if self.shutdown.phase() == Phase::Running => {
                return self.never_began(key, now);
            }
            LossCause::Unread => exited_prematurely(ExitStatus::Unknown, Some(key)),
            // Not its doing: it counts as no death, and a message that is still there comes again.
            LossCause::Neighbor if request.task.acks_late && !request.is_settled => {
                self.settle(key, Fate::Requeue);
                self.remove(key);
                return;
            }
            LossCause::Neighbor => {
                format!("Worker exited prematurely: killed for another of its tasks Job: {key}.")
            }
        };
        let loss = Loss {
            reason,
            pid,
            time_start: seconds(since),
            status: None,
            retries_are_spent: false,
            is_given_up: false,
            is_cancelled,
            cause: death::cause(cause, evidence),
            remains: remains(evidence),
        };
        self.begin_loss(key, loss);
    }

    /// What becomes of a task that runs again although it has killed its process.
    fn verdict(&self, marks: Marks) -> Verdict {
        let store = self.options.store;
        death::after(marks, store.and_then(|store| store.max_deaths))
    }

    /// How the message of such a task comes again; `None` when it does not.
    fn again(&self, marks: Marks, now: Now) -> Option<Fate> {
        let Verdict::Again(wait, marks) = self.verdict(marks) else {
            return None;
        };
        if self.options.store.is_none() {
            return Some(Fate::Requeue);
        }
        let wait = SignedDuration::try_from(wait)
            .ok()
            .filter(|wait| !wait.is_zero());
        let until = wait.and_then(|wait| now.wall.saturating_add(wait).ok());
        Some(Fate::Delay(Delay { until, marks }))
    }

    /// A message came that has killed as many workers as it may.
    pub(super) fn give_up_killer(&mut self, key: RequestKey) {
        let Some(request) = self.requests.get(&key) else {
            return;
        };
        let attempts = request.head.marks.deaths;
        let reason = format!("Worker exited prematurely: {attempts} of its workers have died.");
        let loss = Loss {
            reason,
            pid: 0,
            time_start: seconds(self.read_at.wall),
            status: None,
            retries_are_spent: true,
            is_given_up: true,
            is_cancelled: false,
            cause: Cause::WorkerLost,
            remains: Remains::default(),
        };
        // Its worker may have died between its success and the acknowledgement.
        self.begin_loss(key, loss);
    }

    /// One more thing has happened to a task that was revoked while it ran. When its process is gone
    /// and it is stored that it is revoked, its message is done with.
    fn terminated(&mut self, key: RequestKey, happens: impl FnOnce(&mut Terminated)) {
        let Some(request) = self.requests.get_mut(&key) else {
            return;
        };
        let terminated = request.terminated.get_or_insert_default();
        happens(terminated);
        let Terminated { is_stored, is_gone } = *terminated;
        if is_gone {
            self.set_stage(key, Stage::Concluding);
        }
        if is_gone && is_stored {
            self.settle(key, Fate::Ack);
            self.remove(key);
        }
    }

    /// A task that counted as begun was never read by its process: it begins in another one.
    fn never_began(&mut self, key: RequestKey, now: Now) {
        let Some(request) = self.requests.get(&key) else {
            return;
        };
        let comes_again = request.is_lost && !request.is_settled;
        if request.is_taken || comes_again {
            // Its lease is lost, or its connection: others have its message, or will.
            self.remove(key);
        } else {
            // Its message may be acknowledged: then no other worker can run it.
            self.make_ready(key, true, now);
        }
    }

    /// A task that counted as begun was never read by its process, and there is no other for it any
    /// more.
    pub(super) fn never_will_begin(&mut self, key: RequestKey) {
        let reason = exited_prematurely(ExitStatus::Unknown, Some(key));
        let since = self.read_at.wall;
        let loss = Loss {
            reason,
            pid: 0,
            time_start: seconds(since),
            status: None,
            retries_are_spent: false,
            is_given_up: false,
            is_cancelled: false,
            cause: Cause::WorkerLost,
            remains: Remains::default(),
        };
        self.begin_loss(key, loss);
    }

    /// A lost task: had it succeeded before its process was lost?
    fn begin_loss(&mut self, key: RequestKey, mut loss: Loss) {
        let Some(request) = self.requests.get(&key) else {
            return;
        };
        let (_, are_spent) = disposition::retry_lost(&request.task, request.head.retries);
        loss.retries_are_spent |= are_spent;
        let asks = !request.ignores_result();
        let message = Arc::clone(&request.message);
        self.losses.insert(key, loss);
        self.set_stage(key, Stage::Concluding);
        if asks {
            self.call(
                HookCall::SuccessWasStored(message),
                Continuation::LossChecked(key),
            );
        } else {
            self.retry_or_fail(key);
        }
    }

    /// A lost task that had not succeeded: is it to be sent again?
    fn retry_or_fail(&mut self, key: RequestKey) {
        let (Some(request), Some(loss)) = (self.requests.get(&key), self.losses.get(&key)) else {
            return;
        };
        if loss.is_cancelled {
            return self.cancelled(key);
        }
        let may_retry = disposition::retry_lost(&request.task, request.head.retries).0;
        if may_retry && !loss.is_given_up {
            let message = Arc::clone(&request.message);
            let call = HookCall::RetryLost {
                message,
                reason: loss.reason.clone(),
            };
            self.call(call, Continuation::LossRetried(key));
        } else {
            self.fail_lost(key);
        }
    }

    /// The worker ended a task that had not succeeded.
    fn cancelled(&mut self, key: RequestKey) {
        self.losses.remove(&key);
        let Some(request) = self.requests.get(&key) else {
            return;
        };
        // A late-acknowledged task runs again; of an early one Celery says that it will be retried,
        // which nobody does.
        let call = HookCall::Cancelled {
            message: Arc::clone(&request.message),
            emit_retry: !request.task.acks_late,
        };
        self.task_event(key, &TaskEvent::Cancelled, self.read_at);
        self.conclude(key, call, Fate::Requeue);
    }

    /// A lost task that was not sent again.
    fn fail_lost(&mut self, key: RequestKey) {
        let Some(loss) = self.losses.remove(&key) else {
            return;
        };
        let Some(request) = self.requests.get(&key) else {
            return;
        };
        let again = self.again(request.head.marks, self.read_at);
        let spent = loss.retries_are_spent || again.is_none();
        let attempts = match loss.cause {
            // It was not tried this time.
            Cause::WorkerLost => request.head.marks.deaths,
            _ => request.head.marks.deaths.saturating_add(1),
        };
        let (requeues, fate) = match disposition::lost(&request.task, request.is_settled, spent) {
            disposition::Loss::Requeue => {
                let reason = &loss.reason;
                self.tell(&Happening::LostAndRequeued { request, reason });
                (true, again.unwrap_or(Fate::Requeue))
            }
            disposition::Loss::Fail(fate) => (false, fate),
        };
        if !requeues {
            let death = Death {
                cause: loss.cause,
                reason: &loss.reason,
                remains: loss.remains,
                attempts,
            };
            self.bury_request(key, death);
        }
        let Some(request) = self.requests.get(&key) else {
            return;
        };
        if requeues && !request.task.overrides("on_failure") {
            self.settle(key, fate);
            self.remove(key);
            return;
        }
        let message = Arc::clone(&request.message);
        if !requeues {
            let reason = python::quoted(&loss.reason);
            self.failed_event(key, "WorkerLostError", &reason);
        }
        let call = HookCall::Lost {
            message,
            reason: loss.reason,
            pid: loss.pid,
            time_start: loss.time_start,
            status: loss.status,
            requeues,
        };
        self.conclude(key, call, fate);
    }

    /// Goes on where a hook was awaited.
    pub(super) fn proceed(
        &mut self,
        continuation: Continuation,
        answer: Result<Value, String>,
        now: Now,
    ) {
        match continuation {
            Continuation::Settle(key, fate) => {
                self.hook_failed(key, "a hook of its end", &answer);
                self.settle(key, fate);
                self.remove(key);
            }
            Continuation::SettleMessage(tag, fate) => self.settle_message(tag, fate),
            Continuation::Terminated(key) => {
                self.hook_failed(key, "storing that it is revoked", &answer);
                self.terminated(key, |terminated| terminated.is_stored = true);
            }
            Continuation::LossChecked(key) => {
                self.hook_failed(key, "asking for its result", &answer);
                if answer == Ok(Value::Bool(true)) {
                    let loss = self.losses.remove(&key);
                    if let (Some(request), Some(loss)) = (self.requests.get(&key), loss) {
                        let reason = &loss.reason;
                        self.tell(&Happening::SucceededBeforeLoss { request, reason });
                        let event = TaskEvent::Succeeded {
                            result: "",
                            runtime: None,
                        };
                        self.task_event(key, &event, now);
                    }
                    self.settle(key, Fate::Ack);
                    self.remove(key);
                } else {
                    self.retry_or_fail(key);
                }
            }
            Continuation::LossRetried(key) => {
                self.hook_failed(key, "sending it again", &answer);
                if answer == Ok(Value::Bool(true)) {
                    self.losses.remove(&key);
                    self.limited_retried(key);
                    self.settle(key, Fate::Ack);
                    self.remove(key);
                } else {
                    self.fail_lost(key);
                }
            }
            Continuation::Received(lane, key, admission) => {
                self.lanes[lane].announced -= 1;
                self.hook_failed(key, "task_received", &answer);
                if self.shutdown.phase() == Phase::Running {
                    self.admitted(key, admission, now);
                } else {
                    self.release(key);
                }
            }
            Continuation::V1Opened(arrival) => {
                let received = match answer {
                    Ok(members) => decode::opened(&members.to_string()),
                    Err(reason) => Received::Undecodable(reason),
                };
                let received = decode::marked(received, Marks::of(&arrival.message));
                if self.shutdown.phase() == Phase::Running {
                    self.received(arrival, received, now);
                } else {
                    self.settle_message(arrival.tag, Fate::Release);
                }
            }
        }
    }

    fn hook_failed(&self, key: RequestKey, what: &str, answer: &Result<Value, String>) {
        if let (Some(request), Err(error)) = (self.requests.get(&key), answer) {
            self.tell(&Happening::HookFailed {
                request,
                what,
                error,
            });
        }
    }

    /// Calls a method of the task's own Request class, if it has it.
    fn notify(
        &mut self,
        key: RequestKey,
        method: &'static str,
        details: Value,
        failure: Option<celeriac_core::pool::Failure>,
    ) {
        let Some(request) = self.requests.get(&key) else {
            return;
        };
        if !request.task.overrides(method) {
            return;
        }
        let (pid, time_start) = match request.stage {
            Stage::Running { pid, since } => (Some(pid), Some(seconds(since))),
            _ => (None, None),
        };
        let details = match details {
            Value::Object(details) => details,
            _ => Map::new(),
        };
        let message = Arc::clone(&request.message);
        self.effects.push(Effect::Tell(HookCall::Notify {
            message,
            method,
            pid,
            time_start,
            details,
            failure,
        }));
    }
}

/// Why a message becomes a dead letter whose task has ended in this way, and its message so.
fn rejection(outcome: &Outcome, fate: Fate) -> Option<(Cause, &str)> {
    match outcome {
        Outcome::Undecodable { reason } => Some((Cause::Undecodable, reason)),
        Outcome::Invalid { reason } => Some((Cause::Invalid, reason)),
        Outcome::Failure(failure) | Outcome::Raised(failure) | Outcome::Reject { failure, .. }
            if fate == Fate::Reject =>
        {
            Some((Cause::Rejected, &failure.exception))
        }
        _ => None,
    }
}

/// What monitors are told when a process reports the end of its task.
fn end_event(outcome: &Outcome) -> Option<TaskEvent<'_>> {
    match outcome {
        Outcome::Success { result, runtime } => Some(TaskEvent::Succeeded {
            result,
            runtime: runtime.map(|runtime| runtime.as_secs_f64()),
        }),
        Outcome::Failure(failure)
        | Outcome::Raised(failure)
        | Outcome::Reject {
            requeue: false,
            failure,
        } => Some(TaskEvent::Failed {
            exception: &failure.exception,
            traceback: failure.traceback.as_deref(),
        }),
        Outcome::Retry(failure) => Some(TaskEvent::Retried {
            exception: &failure.exception,
            traceback: failure.traceback.as_deref(),
        }),
        _ => None,
    }
}

/// Celery's words for a process that ended within a task.
fn exited_prematurely(status: ExitStatus, job: Option<RequestKey>) -> String {
    match job {
        Some(job) => format!("Worker exited prematurely: {status} Job: {job}."),
        None => format!("Worker exited prematurely: {status}."),
    }
}

/// A moment as Python has it: seconds since 1970.
fn seconds(moment: jiff::Timestamp) -> f64 {
    moment.as_microsecond() as f64 / 1e6
}

/// A limit as the JSON number it was: Python shows integers without a point.
fn number(limit: celeriac_protocol::TimeLimit) -> Value {
    serde_json::from_str(&limit.to_string()).unwrap_or(Value::Null)
}
