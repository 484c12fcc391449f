//! From the app's description to the parts of a worker.

use std::sync::Arc;
use std::time::Duration;

use bytestring::ByteString;
use celeriac_config::Description;
use celeriac_config::description::{DescribedQueue, Remote, WorkerOptions};
use celeriac_core::broker::Broker;
use celeriac_core::bus::BusOptions;
use celeriac_pool::memory::WatchOptions;
use celeriac_pool::prefork::machine::{Limits, MemoryLimits};
use celeriac_protocol::{AcceptContent, RateLimit};
use celeriac_worker::control::bus;
use celeriac_worker::core::{Consumed, Options, RemoteOptions};
use celeriac_worker::events::EventOptions;
use celeriac_worker::receive::consumer;
use celeriac_worker::receive::failover::{RetryPolicy, Strategy};
use celeriac_worker::shutdown::Deadline;
use jiff::tz::TimeZone;
use serde_json::Value;

use super::lanes::LaneOf;
use crate::app_broker::{Unusable, brokers};
use crate::arguments::Global;

pub(super) mod limits;
mod store;

/// How many tasks wait for their rate limit in memory where Celery would hold any number.
/// Celery's `worker_proc_alive_timeout`.
const START_TIMEOUT: Duration = Duration::from_secs(4);
/// A child is ended at so many times what it may hold after its task.
const HARD_MEMORY: u64 = 2;
/// Time between two heartbeats, as Celery has it.
const HEARTBEAT: Duration = Duration::from_secs(2);

/// Environment variables that Celery's worker reads.
#[derive(Debug, Default)]
pub(super) struct Environment {
    /// `AUTOSCALE_KEEPALIVE`, in seconds.
    pub(super) autoscale_keepalive: Option<String>,
    /// `REMAP_SIGTERM`
    pub(super) remap_sigterm: Option<String>,
    /// `TERMINATION_GRACE_PERIOD_SECONDS`: what Kubernetes gives a pod to end, where its manifest
    /// passes that on.
    pub(super) termination_grace_period: Option<String>,
}

impl Environment {
    /// Those of this process, or of `.env`.
    pub(super) fn read(global: &Global) -> Self {
        let variable = |name| global.variable([name]);
        Self {
            autoscale_keepalive: variable("AUTOSCALE_KEEPALIVE"),
            remap_sigterm: variable("REMAP_SIGTERM"),
            termination_grace_period: variable("TERMINATION_GRACE_PERIOD_SECONDS"),
        }
    }
}

/// What the worker's core must know. `shutdown_deadline` are the seconds of the option of this name.
pub(super) fn worker(
    description: &Description,
    environment: &Environment,
    shutdown_deadline: Option<f64>,
    tags_outlive_connections: bool,
    delays: bool,
    limited: &limits::Limited,
    lanes: &[LaneOf],
) -> Result<Options, Unusable> {
    let worker = &description.worker;
    let rate_limits = if worker.disable_rate_limits {
        Vec::new()
    } else {
        rate_limits(description)?
    };
    let tasks = &description.tasks;
    Ok(Options {
        hostname: worker.hostname.clone(),
        tasks: tasks
            .iter()
            .map(|(name, task)| (name.as_str().into(), Arc::new(task.clone())))
            .collect(),
        rate_limits,
        limits_rates: !worker.disable_rate_limits,
        accept: AcceptContent::new(description.accept_content.iter().cloned()),
        lanes: lanes.iter().map(|lane| lane.options.clone()).collect(),
        spills_throttled: worker.prefetch_multiplier <= 0,
        limits: Arc::clone(&limited.limits),
        limit_holder: uuid::Uuid::new_v4().simple().to_string(),
        held_limit: description.settings.worker_eta_task_limit,
        store: delays
            .then(|| store::options(&description.settings))
            .transpose()?,
        tags_outlive_connections,
        cancel_on_connection_loss: description
            .settings
            .worker_cancel_long_running_tasks_on_connection_loss,
        shutdown_deadline: deadline(
            shutdown_deadline,
            description.settings.celeriac_shutdown_deadline.as_ref(),
            environment.termination_grace_period.as_deref(),
        )?,
        soft_shutdown_timeout: description.settings.soft_shutdown_timeout(),
        soft_shutdown_on_idle: description.settings.worker_enable_soft_shutdown_on_idle,
        term_is_quit: environment.remap_sigterm.as_deref() == Some("SIGQUIT"),
        signals_received: description.has_receivers("task_received"),
        signals_rejected: description.has_receivers("task_rejected"),
        received_format: description.logging.received_format.clone(),
        remote: remote(description, lanes),
    })
}

/// How long a warm shutdown waits: what the option says, then the app's setting, then what the
/// orchestrator gives for all of it. `None` is without end.
fn deadline(
    option: Option<f64>,
    setting: Option<&Value>,
    grace_period: Option<&str>,
) -> Result<Option<Deadline>, Unusable> {
    let hint = || Some("write a number of seconds, such as 25".to_owned());
    let patience = match (option, setting) {
        (Some(seconds), _) => {
            Some(
                Duration::try_from_secs_f64(seconds).map_err(|error| Unusable {
                    message: format!("--shutdown-deadline {seconds} can't be used: {error}"),
                    hint: hint(),
                })?,
            )
        }
        (None, Some(written)) => {
            let seconds = written.as_f64();
            let patience = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
            Some(patience.ok_or_else(|| Unusable {
                message: format!("The setting celeriac_shutdown_deadline can't be used: {written}"),
                hint: hint(),
            })?)
        }
        (None, None) => None,
    };
    if let Some(patience) = patience {
        return Ok(Some(Deadline::after(patience)));
    }
    let Some(text) = grace_period.filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let total = text.trim().parse().ok();
    let total = total.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    match total {
        Some(total) => Ok(Some(Deadline::within(total))),
        None => Err(Unusable {
            message: format!(
                "The environment variable TERMINATION_GRACE_PERIOD_SECONDS can't be used: {text:?}"
            ),
            hint: hint(),
        }),
    }
}

/// The lane that serves a queue.
fn lane_of(lanes: &[LaneOf], queue: &str) -> usize {
    let serves = |lane: &LaneOf| lane.queues.as_ref().is_some_and(|it| it.contains(queue));
    lanes.iter().position(serves).unwrap_or(0)
}

/// What the worker must know for remote control and events.
fn remote(description: &Description, lanes: &[LaneOf]) -> RemoteOptions {
    let (worker, remote) = (&description.worker, &description.remote);
    let pid = std::process::id();
    let events = sends_events(description).then(|| EventOptions {
        hostname: worker.hostname.clone(),
        pid,
        task_events: worker.task_events,
        time_zone: TimeZone::system(),
    });
    RemoteOptions {
        pid,
        events,
        mingles: remote.control && remote.mingle,
        revoke_store: remote.revoke_store,
        keeps_stamps: remote.keeps_stamps,
        revokes: revokes(remote),
        gossips: remote.gossip,
        heartbeat: heartbeat(description).as_secs_f64(),
        plain_replies: remote.control_serializer == "json",
        plain_events: remote.event_serializer == "json",
        reply_exchange: description.bus.reply_exchange(),
        commands: remote
            .commands
            .iter()
            .flat_map(|(name, command)| [Some(name), command.alias.as_ref()])
            .flatten()
            .chain(&remote.users)
            .cloned()
            .collect(),
        overridden: remote.users.iter().cloned().collect(),
        broker_info: remote.broker_info.clone(),
        queues: description
            .queues
            .iter()
            .map(|described| Consumed {
                name: described.queue.name.clone(),
                info: described.info.clone(),
                lane: lane_of(lanes, &described.queue.name),
            })
            .collect(),
        software: ["py-celery", &remote.sw_ver, &remote.sw_sys].map(str::to_owned),
    }
}

/// How many revoked ids are known at most, and how long those that are too many are kept.
fn revokes(remote: &Remote) -> (usize, Duration) {
    let bound = match remote.revokes_max {
        0 => usize::MAX,
        bound => bound,
    };
    let lifetime = Some(remote.revoke_expires)
        .filter(|seconds| *seconds > 0.0)
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    (bound, lifetime.unwrap_or(Duration::MAX))
}

/// Whether any events are sent, as in `celery.worker.consumer.events.Events`.
fn sends_events(description: &Description) -> bool {
    let remote = &description.remote;
    description.worker.task_events || remote.gossip || remote.heartbeat
}

/// The time between two heartbeats.
pub(super) fn heartbeat(description: &Description) -> Duration {
    let interval = description.remote.heartbeat_interval;
    interval
        .filter(|seconds| *seconds > 0.0)
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .unwrap_or(HEARTBEAT)
}

/// What remote control and events go over.
pub(super) fn bus(description: &Description, brokers: Vec<Arc<dyn Broker>>) -> bus::Options {
    let remote = &description.remote;
    bus::Options {
        brokers,
        is_needed: remote.control || sends_events(description),
        bus: BusOptions {
            node: description.worker.hostname.clone(),
            settings: description.bus.clone(),
            hears_commands: remote.control,
            hears_workers: remote.gossip,
        },
    }
}

/// The rate limits of all tasks that have one.
fn rate_limits(description: &Description) -> Result<Vec<(ByteString, RateLimit)>, Unusable> {
    let mut limits = Vec::new();
    for (name, task) in &description.tasks {
        match task.rate_limit() {
            Ok(limit) => limits.extend(limit.map(|limit| (name.as_str().into(), limit))),
            Err(error) => {
                return Err(Unusable {
                    message: format!("The rate limit of task {name} can't be used: {error}"),
                    hint: Some("write a number and a unit, such as 10/s, 100/m or 5/h".to_owned()),
                });
            }
        }
    }
    Ok(limits)
}

/// Where messages are.
pub(super) fn brokers_of(description: &Description) -> Result<Vec<Arc<dyn Broker>>, Unusable> {
    let node = Some(description.worker.hostname.clone());
    brokers(&description.broker, &description.settings, node)
}

/// Where the messages of a lane come from.
pub(super) fn consumer(
    description: &Description,
    brokers: &[Arc<dyn Broker>],
    lane: &LaneOf,
    purge: bool,
) -> Result<consumer::Options, Unusable> {
    let settings = &description.settings;
    let is_here = |queue: &&DescribedQueue| {
        let queues = lane.queues.as_ref();
        queues.is_none_or(|queues| queues.contains(&queue.queue.name))
    };
    Ok(consumer::Options {
        brokers: brokers.to_vec(),
        strategy: Strategy::named(&description.broker.failover_strategy),
        policy: RetryPolicy {
            on_startup: settings.retries_on_startup(),
            when_lost: settings.broker_connection_retry,
            max_retries: settings
                .broker_connection_max_retries
                .filter(|max| *max > 0),
        },
        queues: description
            .queues
            .iter()
            .filter(is_here)
            .map(|described| described.queue.clone())
            .collect(),
        purge,
        dead_letters: store::bounds(&description.settings)?,
    })
}

/// Limits on the processes of a pool with these options.
pub(super) fn pool(description: &Description, worker: &WorkerOptions) -> Result<Limits, Unusable> {
    Ok(Limits {
        max_tasks_per_child: worker.max_tasks_per_child,
        memory: memory(description, worker)?,
        start_timeout: description
            .settings
            .worker_proc_alive_timeout
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
            .unwrap_or(START_TIMEOUT),
    })
}

/// Limits of a child's memory. Zero is none, as Celery has it.
fn memory(description: &Description, worker: &WorkerOptions) -> Result<MemoryLimits, Unusable> {
    let settings = &description.settings;
    let limit = |limit: Option<u64>| limit.filter(|limit| *limit > 0);
    let replace = limit(worker.max_memory_per_child);
    let soft = limit(settings.celeriac_soft_memory_per_child);
    let hard = match settings.celeriac_hard_memory_per_child {
        None => replace.map(|limit| limit.saturating_mul(HARD_MEMORY)),
        given => limit(given),
    };
    match (soft, hard) {
        (Some(soft), Some(hard)) if soft >= hard => Err(Unusable {
            message: format!(
                "The soft memory limit of {soft} KiB is not below the hard one of {hard} KiB."
            ),
            hint: Some(
                "lower --soft-memory-per-child, or raise --hard-memory-per-child (twice \
                 --max-memory-per-child where it is not given)"
                    .to_owned(),
            ),
        }),
        _ => Ok(MemoryLimits {
            soft,
            replace,
            hard,
        }),
    }
}

/// Which memory is watched beside that of single children.
pub(super) fn watch(description: &Description) -> WatchOptions {
    let settings = &description.settings;
    WatchOptions {
        max_memory: settings.celeriac_max_memory.filter(|limit| *limit > 0),
        heeds_pressure: settings.celeriac_memory_pressure.unwrap_or(true),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_that_says_something_sets_the_deadline() {
        let after = |seconds| Some(Deadline::after(Duration::from_millis(seconds)));
        let within = Some(Deadline::within(Duration::from_secs(30)));
        for (option, setting, grace_period, expected) in [
            (None, None, None, None),
            (None, None, Some(""), None),
            (None, None, Some("30"), within),
            (None, Some(json!(2.5)), Some("30"), after(2500)),
            (Some(1.0), Some(json!(2.5)), Some("30"), after(1000)),
            (Some(0.0), None, None, after(0)),
        ] {
            let found = deadline(option, setting.as_ref(), grace_period);
            assert_eq!(
                found,
                Ok(expected),
                "{option:?} {setting:?} {grace_period:?}"
            );
        }
    }

    #[test]
    fn a_deadline_that_is_no_number_of_seconds_is_refused_with_its_source() {
        for (option, setting, grace_period, source) in [
            (Some(-1.0), None, None, "--shutdown-deadline"),
            (Some(f64::NAN), None, None, "--shutdown-deadline"),
            (
                None,
                Some(json!("soon")),
                None,
                "celeriac_shutdown_deadline",
            ),
            (None, Some(json!(-3)), None, "celeriac_shutdown_deadline"),
            (None, None, Some("30s"), "TERMINATION_GRACE_PERIOD_SECONDS"),
        ] {
            let refused = deadline(option, setting.as_ref(), grace_period).unwrap_err();
            assert!(refused.message.contains(source), "{refused}");
            assert!(refused.hint.is_some(), "{refused}");
        }
    }
}
