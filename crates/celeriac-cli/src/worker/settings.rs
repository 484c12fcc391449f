//! From the app's description to the parts of a worker.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytestring::ByteString;
use celeriac_broker::open::{self, open_all};
use celeriac_config::Description;
use celeriac_config::description::Remote;
use celeriac_core::broker::Broker;
use celeriac_core::bus::BusOptions;
use celeriac_pool::prefork::machine::Limits;
use celeriac_protocol::{AcceptContent, RateLimit};
use celeriac_worker::autoscale::Autoscale;
use celeriac_worker::control::bus;
use celeriac_worker::core::{Options, RemoteOptions};
use celeriac_worker::events::EventOptions;
use celeriac_worker::receive::consumer;
use celeriac_worker::receive::failover::{RetryPolicy, Strategy};
use jiff::tz::TimeZone;
use serde_json::{Map, Value, json};

/// Celery's `worker_proc_alive_timeout`.
const START_TIMEOUT: Duration = Duration::from_secs(4);
/// Time between two heartbeats, as Celery has it.
const HEARTBEAT: Duration = Duration::from_secs(2);

/// A setting that the worker can't work with.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unusable {
    /// What is wrong.
    pub(super) message: String,
    /// What to do about it.
    pub(super) hint: Option<String>,
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Environment variables that Celery's worker reads.
#[derive(Debug, Default)]
pub(super) struct Environment {
    /// `AUTOSCALE_KEEPALIVE`, in seconds.
    pub(super) autoscale_keepalive: Option<String>,
    /// `REMAP_SIGTERM`
    pub(super) remap_sigterm: Option<String>,
}

impl Environment {
    /// Those of this process.
    pub(super) fn read() -> Self {
        let variable = |name| std::env::var(name).ok();
        Self {
            autoscale_keepalive: variable("AUTOSCALE_KEEPALIVE"),
            remap_sigterm: variable("REMAP_SIGTERM"),
        }
    }
}

/// What the worker's core must know.
pub(super) fn worker(
    description: &Description,
    environment: &Environment,
    tags_outlive_connections: bool,
) -> Result<Options, Unusable> {
    let worker = &description.worker;
    let keepalive = environment
        .autoscale_keepalive
        .as_deref()
        .and_then(|seconds| seconds.parse().ok())
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .unwrap_or(Autoscale::KEEPALIVE);
    let rate_limits = if worker.disable_rate_limits {
        Vec::new()
    } else {
        limits(description)?
    };
    let throttled = match usize::try_from(worker.prefetch_multiplier) {
        Ok(multiplier @ 1..) => multiplier.saturating_mul(worker.pool_size().1.max(1)),
        _ => usize::MAX,
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
        time_limits: worker.time_limits(),
        throttled_limit: throttled,
        held_limit: description.settings.worker_eta_task_limit,
        autoscale: worker
            .autoscale
            .map(|(max, min)| Autoscale::new(max, min, keepalive)),
        tags_outlive_connections,
        cancel_on_connection_loss: description
            .settings
            .worker_cancel_long_running_tasks_on_connection_loss,
        soft_shutdown_timeout: description.settings.soft_shutdown_timeout(),
        soft_shutdown_on_idle: description.settings.worker_enable_soft_shutdown_on_idle,
        term_is_quit: environment.remap_sigterm.as_deref() == Some("SIGQUIT"),
        signals_received: description.has_receivers("task_received"),
        signals_rejected: description.has_receivers("task_rejected"),
        received_format: description.logging.received_format.clone(),
        remote: remote(description),
    })
}

/// What the worker must know for remote control and events.
fn remote(description: &Description) -> RemoteOptions {
    let (worker, remote) = (&description.worker, &description.remote);
    let pid = std::process::id();
    let events = sends_events(description).then(|| EventOptions {
        hostname: worker.hostname.clone(),
        pid,
        task_events: worker.task_events,
        time_zone: TimeZone::system(),
    });
    // In JSON the limits are null where there are none.
    let per_child = worker
        .max_tasks_per_child
        .map_or_else(|| json!("N/A"), |tasks| json!(tasks));
    let pool_info = json!({
        "implementation": "celery.concurrency.prefork:TaskPool",
        "max-tasks-per-child": per_child,
        "put-guarded-by-semaphore": false,
        "timeouts": [worker.soft_time_limit.clone().unwrap_or_else(|| 0.into()),
                     worker.time_limit.clone().unwrap_or_else(|| 0.into())],
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
        pool_info: match pool_info {
            Value::Object(members) => members,
            _ => Map::new(),
        },
        queues: description
            .queues
            .iter()
            .map(|described| (described.queue.name.clone(), described.info.clone()))
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
fn limits(description: &Description) -> Result<Vec<(ByteString, RateLimit)>, Unusable> {
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

/// Where messages come from.
pub(super) fn consumer(
    description: &Description,
    purge: bool,
) -> Result<consumer::Options, Unusable> {
    let settings = &description.settings;
    let options = open::Options {
        transport: description.broker.transport_options.clone(),
        ssl: description.broker.ssl.clone(),
        connect_timeout: settings.connection_timeout(),
        heartbeat: settings.heartbeat(),
        node: Some(description.worker.hostname.clone()),
        login_method: description.broker.login_method.clone(),
        detects_quorum_queues: settings.worker_detect_quorum_queues,
        has_quorum_queues: description.broker.has_quorum_queues,
        delayed_delivery_queue_type: settings.broker_native_delayed_delivery_queue_type.clone(),
    };
    let brokers = open_all(&description.broker.urls, &options).map_err(|error| Unusable {
        message: error.to_string(),
        hint: error.hint,
    })?;
    Ok(consumer::Options {
        brokers,
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
            .map(|described| described.queue.clone())
            .collect(),
        purge,
    })
}

/// Limits on the pool's processes.
pub(super) fn pool(description: &Description) -> Limits {
    Limits {
        max_tasks_per_child: description.worker.max_tasks_per_child,
        max_memory_per_child: description.worker.max_memory_per_child,
        start_timeout: description
            .settings
            .worker_proc_alive_timeout
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
            .unwrap_or(START_TIMEOUT),
    }
}
