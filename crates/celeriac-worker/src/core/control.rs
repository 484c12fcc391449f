//! Commands that change how the worker works: `celery control`, but for revoking.

use std::sync::Arc;

use celeriac_core::clock::Now;
use celeriac_core::journal::Level;
use celeriac_core::queue::Queue;
use celeriac_protocol::RateLimit;
use celeriac_protocol::rate::InvalidRateLimit;
use serde_json::{Map, Number, Value};

use super::command::{Answer, Arguments, CONTROL};
use super::remote::{Awaited, Consumed};
use super::{Core, Effect};
use crate::autoscale::Scale;
use crate::control::python;
use crate::events::event::Members;
use crate::hooks::HookCall;
use crate::request::Stage;
use crate::shutdown::Signal;

/// How many processes a pool may be given by a command: a slip of the finger must not take the host
/// down.
const PROCESSES: usize = 10_000;
/// What a requested heartbeat tells as its interval.
const REQUESTED_FREQ: &str = "5";

impl Core {
    pub(super) fn enable_events(&mut self) -> Answer {
        let Some(events) = &mut self.remote.events else {
            return Answer::error("event dispatcher unavailable");
        };
        if !events.enable_tasks() {
            return Answer::ok("task events already enabled");
        }
        let text = "Events of group {task} enabled by remote.";
        self.notice(Level::Info, CONTROL, text);
        let call = HookCall::SetEventGroups { all: true };
        self.effects.push(Effect::Tell(call));
        Answer::ok("task events enabled")
    }

    pub(super) fn disable_events(&mut self) -> Answer {
        let Some(events) = &mut self.remote.events else {
            return Answer::error("event dispatcher unavailable");
        };
        if !events.disable_tasks() {
            return Answer::ok("task events already disabled");
        }
        let text = "Events of group {task} disabled by remote.";
        self.notice(Level::Info, CONTROL, text);
        let call = HookCall::SetEventGroups { all: false };
        self.effects.push(Effect::Tell(call));
        Answer::ok("task events disabled")
    }

    pub(super) fn heartbeat(&mut self, now: Now) -> Answer {
        self.notice(Level::Debug, CONTROL, "Heartbeat requested by remote.");
        let members = self.with_software(Members::default().raw("freq", REQUESTED_FREQ));
        self.worker_event("worker-heartbeat", &members, now);
        Answer::Reply(Value::Null)
    }

    pub(super) fn election(&mut self, arguments: &Arguments, now: Now) -> Answer {
        if !self.remote.options.gossips {
            return Answer::Reply(Value::Null);
        }
        let id = arguments.text("id").unwrap_or_default();
        let topic = arguments.text("topic").unwrap_or_default();
        let action = arguments.get("action").cloned().unwrap_or_default();
        self.remote.gossip.call(&id, now.monotonic);
        let members = Members::default()
            .text("id", Some(&id))
            .text("topic", Some(&topic))
            .raw("action", &action.to_string())
            .raw("cver", "1");
        self.worker_event("worker-elect", &members, now);
        Answer::Reply(Value::Null)
    }

    pub(super) fn rate_limit(&mut self, arguments: &Arguments, now: Now) -> Answer {
        let name = arguments.text("task_name").unwrap_or_default();
        let text = arguments.text("rate_limit").unwrap_or_default();
        let limit = match RateLimit::parse(&text) {
            Ok(limit) => limit,
            Err(error) => return invalid_rate(&text, &error),
        };
        let Some((name, task)) = self.options.tasks.get_key_value(name.as_str()) else {
            let text = format!("Rate limit attempt for unknown task {name}");
            self.notice(Level::Error, CONTROL, &text);
            return Answer::error("unknown task");
        };
        let (name, mut task) = (name.clone(), Arc::clone(task));
        let is_set = arguments.is_true("rate_limit");
        Arc::make_mut(&mut task).rate_limit = is_set.then(|| text.clone());
        self.options.tasks.insert(name.clone(), task);
        self.set_attributes(&name, [("rate_limit", arguments.get("rate_limit"))]);
        if self.options.limits_rates {
            for key in self.buckets.set(&name, limit, now.monotonic) {
                self.pass_limits(key, true, now);
            }
        }
        if is_set {
            let text = format!("New rate limit for tasks of type {name}: {text}.");
            self.notice(Level::Info, CONTROL, &text);
            Answer::ok("new rate limit set successfully")
        } else {
            let text = format!("Rate limits disabled for tasks of type {name}");
            self.notice(Level::Info, CONTROL, &text);
            Answer::ok("rate limit disabled successfully")
        }
    }

    pub(super) fn time_limit(&mut self, arguments: &Arguments) -> Answer {
        let name = arguments.text("task_name").unwrap_or_default();
        let Some((name, task)) = self.options.tasks.get_key_value(name.as_str()) else {
            let text = format!("Change time limit attempt for unknown task {name}");
            self.notice(Level::Error, CONTROL, &text);
            return Answer::error("unknown task");
        };
        let number = |argument: &str| match arguments.get(argument) {
            Some(value) if python::is_true(value) => as_number(value).map(Some).ok_or(value),
            _ => Ok(None),
        };
        let (soft, hard) = match (number("soft"), number("hard")) {
            (Ok(soft), Ok(hard)) => (soft, hard),
            (Err(wrong), _) | (_, Err(wrong)) => {
                return Answer::error(format!("Invalid time limit: {}", python::repr(wrong)));
            }
        };
        let (name, mut task) = (name.clone(), Arc::clone(task));
        self.remote
            .declared_limits
            .entry(name.clone())
            .or_insert_with(|| task.time_limits());
        let changed = Arc::make_mut(&mut task);
        changed.soft_time_limit = soft;
        changed.time_limit = hard;
        // Those that have not begun have the new limits as well.
        let waiting = self
            .requests
            .values_mut()
            .filter(|request| request.head.task == name && request.stage.is_waiting());
        for request in waiting {
            request.task = Arc::clone(&task);
            self.remote.forget_declared_limits(&mut request.head);
        }
        self.options.tasks.insert(name.clone(), task);
        let (soft, hard) = (arguments.get("soft"), arguments.get("hard"));
        self.set_attributes(&name, [("soft_time_limit", soft), ("time_limit", hard)]);
        let shown = |argument: &str| python::repr(arguments.get(argument).unwrap_or(&Value::Null));
        let (soft, hard) = (shown("soft"), shown("hard"));
        let text = format!("New time limits for tasks of type {name}: soft={soft} hard={hard}");
        self.notice(Level::Info, CONTROL, &text);
        Answer::ok("time limits set successfully")
    }

    /// Code in main may ask for a task's attributes.
    fn set_attributes<const N: usize>(&mut self, task: &str, given: [(&str, Option<&Value>); N]) {
        let attributes: Map<String, Value> = given
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.cloned().unwrap_or_default()))
            .collect();
        self.remote.changes.attributes_set(task, &attributes);
        let task = task.to_owned();
        let call = HookCall::SetTaskAttributes { task, attributes };
        self.effects.push(Effect::Tell(call));
    }

    /// The lane of the pool that a command names, the first one where it names none; or why not.
    fn lane_named(&self, arguments: &Arguments) -> Result<usize, String> {
        let Some(wanted) = arguments.text("pool").filter(|name| !name.is_empty()) else {
            return Ok(0);
        };
        let names = || {
            self.lanes
                .iter()
                .filter_map(|lane| lane.options.name.as_deref())
        };
        let mut lanes = self.lanes.iter();
        let found = lanes.position(|lane| lane.options.name.as_ref() == Some(&wanted));
        found.ok_or_else(|| {
            let known: Vec<&str> = names().collect();
            let known = known.join(", ");
            format!("there is no pool {wanted}; the pools are: {known}")
        })
    }

    pub(super) fn pool_grow(&mut self, arguments: &Arguments) -> Answer {
        self.resize_pool(arguments, "pool_grow", "pool will grow", 1)
    }

    pub(super) fn pool_shrink(&mut self, arguments: &Arguments) -> Answer {
        self.resize_pool(arguments, "pool_shrink", "pool will shrink", -1)
    }

    fn resize_pool(
        &mut self,
        arguments: &Arguments,
        command: &str,
        reply: &str,
        sign: i64,
    ) -> Answer {
        let lane = match self.lane_named(arguments) {
            Ok(lane) => lane,
            Err(reason) => return Answer::error(reason),
        };
        if self.lanes[lane].options.autoscale.is_some() {
            return Answer::error(format!(
                "{command} is not supported with autoscale. Adjust autoscale range instead."
            ));
        }
        let processes = match arguments.get("n") {
            None => 1,
            Some(value) => match as_integer(value) {
                Some(processes) => processes,
                None => return not_a_number(value),
            },
        };
        let by = processes.saturating_mul(sign);
        let count = usize::try_from(by.unsigned_abs()).unwrap_or(usize::MAX);
        if by > 0 && count.saturating_add(self.lanes[lane].pool_size) > PROCESSES {
            return too_many();
        }
        self.effects.push(if by < 0 {
            Effect::Shrink(lane, count)
        } else {
            Effect::Scale(lane, Scale::Up(count))
        });
        Answer::ok(reply)
    }

    pub(super) fn set_autoscale(&mut self, arguments: &Arguments, now: Now) -> Answer {
        let at = match self.lane_named(arguments) {
            Ok(lane) => lane,
            Err(reason) => return Answer::error(reason),
        };
        let lane = &mut self.lanes[at];
        let Some(scale) = &mut lane.options.autoscale else {
            return Answer::Raised("ValueError('Autoscale not enabled')".to_owned());
        };
        let mut bounds = [scale.max, scale.min];
        for (bound, name) in bounds.iter_mut().zip(["max", "min"]) {
            let Some(value) = arguments.get(name) else {
                continue;
            };
            match as_integer(value).and_then(|value| usize::try_from(value).ok()) {
                Some(value) if value > PROCESSES => return too_many(),
                Some(value) => *bound = value,
                None => return not_a_number(value),
            }
        }
        [scale.max, scale.min] = bounds;
        let [max, min] = bounds;
        let processes = lane.pool_size;
        lane.next_scale = now.monotonic;
        if processes > max {
            self.effects.push(Effect::Shrink(at, processes - max));
        } else if processes < min {
            let up = Scale::Up(min - processes);
            self.effects.push(Effect::Scale(at, up));
        }
        Answer::ok(format!("autoscale now max={max} min={min}"))
    }

    /// Something in main has asked for this: a command of the app, or one of its steps.
    pub fn asked(&mut self, method: &str, arguments: Map<String, Value>, now: Now) {
        let arguments = Arguments(arguments);
        match method {
            "shutdown" => self.asked_to_end(&arguments, now),
            "terminate_job" => self.terminate_job(&arguments, now),
            "pool_restart" => self.effects.push(Effect::RestartPools),
            // What is fetched follows from what can run.
            "prefetch_count" => {}
            _ => {
                if let Answer::Raised(error) = self.carry_out(method, arguments, now) {
                    let text = format!("{method} is not available: {error}");
                    self.notice(Level::Error, CONTROL, &text);
                }
            }
        }
    }

    pub(super) fn asked_to_end(&mut self, arguments: &Arguments, now: Now) {
        let is_cold = arguments.get("warm") == Some(&Value::Bool(false));
        if is_cold {
            self.signalled(Signal::Quit, now);
            return;
        }
        self.signalled(Signal::Remote, now);
        let status = arguments.get("exitcode").and_then(as_integer);
        if let Some(status) = status.and_then(|status| i32::try_from(status).ok()) {
            self.shutdown.exit_with(status);
        }
    }

    fn terminate_job(&mut self, arguments: &Arguments, now: Now) {
        let number = |name: &str| arguments.get(name).and_then(as_integer);
        let found = self.requests.values().find(|request| {
            matches!(request.stage, Stage::Running { pid, .. } if Some(i64::from(pid)) == number("pid"))
        });
        let signal = number("signal").and_then(|signal| i32::try_from(signal).ok());
        if let (Some(request), Some(signal)) = (found, signal) {
            let key = request.key;
            self.terminate_request(key, signal, now);
        }
    }

    pub(super) fn add_consumer(&mut self, arguments: Arguments) -> Answer {
        let queue = arguments.text("queue").unwrap_or_default();
        // An empty name is that of the default exchange, and no type is meant by an empty one.
        let exchange = arguments.text("exchange");
        let exchange_type = arguments.text("exchange_type");
        let exchange_type = exchange_type.filter(|kind| !kind.is_empty());
        let routing_key = arguments.text("routing_key");
        let lane = match self.lane_named(&arguments) {
            Ok(lane) => lane,
            Err(reason) => return Answer::error(reason),
        };
        let mut options = arguments.0;
        for own in ["queue", "exchange", "exchange_type", "routing_key", "pool"] {
            options.remove(own);
        }
        let call = HookCall::SelectQueue {
            queue: queue.clone(),
            exchange,
            exchange_type,
            routing_key,
            options,
        };
        let awaited = Awaited::Queue(lane, queue.clone(), call.clone());
        self.ask_main(awaited, call);
        Answer::ok(format!("add consumer {queue}"))
    }

    /// Main has made a queue of the arguments of `add_consumer`.
    pub(super) fn queue_selected(
        &mut self,
        lane: usize,
        asked: String,
        call: HookCall,
        answer: Result<Value, String>,
    ) {
        let described = answer.and_then(|described| {
            let info = described.get("info").cloned().unwrap_or_default();
            let queue: Queue =
                serde_json::from_value(described).map_err(|error| error.to_string())?;
            Ok((queue, info))
        });
        match described {
            Ok((queue, info)) => {
                self.remote.changes.queue_selected(asked, call);
                // A queue that is consumed already stays with its pool.
                let known = self
                    .remote
                    .queues
                    .iter()
                    .position(|it| it.name == queue.name);
                let lane = known.map_or(lane, |at| self.remote.queues.remove(at).lane);
                self.remote.queues.push(Consumed {
                    name: queue.name.clone(),
                    info,
                    lane,
                });
                self.effects.push(Effect::AddQueue(lane, queue));
            }
            Err(reason) => {
                let text = format!("add_consumer failed: {reason}");
                self.notice(Level::Error, CONTROL, &text);
            }
        }
    }

    pub(super) fn cancel_consumer(&mut self, arguments: &Arguments) -> Answer {
        let queue = arguments.text("queue").unwrap_or_default();
        let consumer = "celery.worker.consumer.consumer";
        self.notice(Level::Info, consumer, &format!("Canceling queue {queue}"));
        self.forget_queue(&queue);
        let reply = Answer::ok(format!("no longer consuming from {queue}"));
        self.effects.push(Effect::CancelQueue(queue));
        reply
    }

    /// A queue that was added can't be had.
    pub fn queue_refused(&mut self, queue: &str) {
        self.forget_queue(queue);
    }

    /// A queue is consumed no more.
    fn forget_queue(&mut self, queue: &str) {
        let before = self.remote.queues.len();
        self.remote.queues.retain(|known| known.name != queue);
        if self.remote.queues.len() < before {
            self.remote.changes.queue_deselected(queue);
        }
        let call = HookCall::DeselectQueue {
            queue: queue.to_owned(),
        };
        self.effects.push(Effect::Tell(call));
    }

    pub(super) fn remote_shutdown(&mut self, arguments: &Arguments, now: Now) -> Answer {
        let text = arguments
            .text("msg")
            .unwrap_or_else(|| "Got shutdown from remote".to_owned());
        self.notice(Level::Warning, CONTROL, &text);
        self.signalled(Signal::Remote, now);
        Answer::Silence
    }

    /// Whether a request's end is told to monitors in detail.
    pub(super) fn is_told_of(&self, sends_events: bool) -> bool {
        let events = self.remote.events.as_ref();
        sends_events && events.is_some_and(crate::events::Dispatcher::sends_tasks)
    }

    /// Notes that a task has begun.
    pub(super) fn count_begun(&mut self, name: &str) {
        self.accepted += 1;
        match self.remote.totals.get_mut(name) {
            Some(total) => *total += 1,
            None => {
                self.remote.totals.insert(name.to_owned(), 1);
            }
        }
    }
}

/// What Celery's `rate` says of a text that it can't read: it looks at the unit first.
fn invalid_rate(text: &str, error: &InvalidRateLimit) -> Answer {
    let (number, unit) = text.split_once('/').unwrap_or((text, ""));
    if !matches!(unit, "" | "s" | "m" | "h") {
        return Answer::Raised(format!("KeyError({})", python::quoted(unit)));
    }
    let error = if number.trim().parse::<f64>().is_err() {
        let number = python::quoted(number);
        format!("could not convert string to float: {number}")
    } else {
        // Celery takes these, and has trouble with them later.
        error.to_string()
    };
    let error = python::quoted(&error);
    Answer::error(format!("Invalid rate limit string: ValueError({error})"))
}

/// A number, or a text of one, as Celery's command line sends it.
fn as_number(value: &Value) -> Option<Number> {
    match value {
        Value::Number(number) => Some(number.clone()),
        Value::String(text) => text.trim().parse::<f64>().ok().and_then(Number::from_f64),
        _ => None,
    }
}

fn as_integer(value: &Value) -> Option<i64> {
    match value {
        Value::Number(number) => number.as_i64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

fn too_many() -> Answer {
    Answer::error(format!("a pool has at most {PROCESSES} processes"))
}

fn not_a_number(value: &Value) -> Answer {
    let shown = python::repr(value);
    Answer::Raised(format!(
        "ValueError({})",
        python::quoted(&format!("a number of processes is wanted, not {shown}"))
    ))
}
