//! The worker's lanes: each of its pools with its options and its queues.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytestring::ByteString;
use celeriac_config::Description;
use celeriac_config::description::WorkerOptions;
use celeriac_config::pools::{ONLY, PoolKind, PoolSpec};
use celeriac_pool::prefork;
use celeriac_worker::autoscale::Autoscale;
use celeriac_worker::core::LaneOptions;
use serde_json::{Map, Number, Value, json};

use super::settings::Environment;
use crate::app_broker::Unusable;

/// A bound on what may wait for a rate limit where Celery has none: the broker keeps the rest.
const MOST_THROTTLED: usize = 1000;

/// A lane, and what its pool is made of.
pub(super) struct LaneOf {
    /// What the worker's core is told of it.
    pub(super) options: LaneOptions,
    /// What runs its tasks.
    pub(super) kind: PoolKind,
    /// The worker's options as they are for this pool.
    pub(super) worker: WorkerOptions,
    /// Processes, where each runs many tasks at once.
    pub(super) processes: usize,
    /// The queues that it serves; `None` for all.
    pub(super) queues: Option<BTreeSet<String>>,
}

impl LaneOf {
    /// How many tasks run at once, to begin with.
    pub(super) fn size(&self) -> usize {
        match self.kind {
            // Whatever --concurrency says, as in Celery.
            PoolKind::Solo => 1,
            _ => self.worker.pool_size().0,
        }
    }

    /// What the processes of the pool do; `None` where it has none.
    pub(super) fn child(&self) -> Option<prefork::PoolKind> {
        match self.kind {
            PoolKind::Prefork => Some(prefork::PoolKind::Prefork),
            PoolKind::Solo => Some(prefork::PoolKind::Solo),
            PoolKind::Threads => Some(prefork::PoolKind::Threads),
            PoolKind::Gevent => Some(prefork::PoolKind::Gevent),
            PoolKind::Asyncio => Some(prefork::PoolKind::Asyncio),
            PoolKind::Native => None,
        }
    }
}

/// The lanes of the pools. `native` are the tasks in Rust: pools of that kind run nothing else.
///
/// # Errors
/// When the app's own setting names no pool that there is.
pub(super) fn lanes(
    pools: &[PoolSpec],
    description: &Description,
    environment: &Environment,
    native: &HashSet<ByteString>,
) -> Result<Vec<LaneOf>, Unusable> {
    let native = Arc::new(native.clone());
    let several = pools.len() > 1;
    let lane = |pool: &PoolSpec| {
        let worker = overridden(&description.worker, pool);
        // What an only pool is, the app may have changed: worker_pool.
        let kind = if several || pool.kind == PoolKind::Native {
            pool.kind
        } else {
            kind_of(&worker.pool)?
        };
        let keepalive = environment.keepalive();
        let throttled = match usize::try_from(worker.prefetch_multiplier) {
            Ok(multiplier @ 1..) => multiplier.saturating_mul(worker.pool_size().1.max(1)),
            _ => MOST_THROTTLED,
        };
        let options = LaneOptions {
            name: several.then(|| pool.name.clone()),
            time_limits: worker.time_limits(),
            autoscale: worker
                .autoscale
                .map(|(max, min)| Autoscale::new(max, min, keepalive)),
            throttled_limit: throttled,
            runs: (kind == PoolKind::Native).then(|| Arc::clone(&native)),
            pool_info: pool_info(kind, &worker),
        };
        Ok(LaneOf {
            options,
            kind,
            worker,
            processes: pool.processes.unwrap_or(1).max(1) as usize,
            queues: several.then(|| pool.queues.iter().cloned().collect()),
        })
    };
    pools.iter().map(lane).collect()
}

/// The worker's options with what is said of one pool over them.
fn overridden(worker: &WorkerOptions, pool: &PoolSpec) -> WorkerOptions {
    let number = |seconds: f64| Number::from_f64(seconds);
    let bounds = |(max, min): (u32, u32)| (max as usize, min as usize);
    let mut own = worker.clone();
    // A pool without a name is as the worker's options say.
    if let Some(concurrency) = pool.concurrency.filter(|_| pool.name != ONLY) {
        own.concurrency = concurrency as usize;
        own.autoscale = None;
    }
    own.autoscale = pool.autoscale.map(bounds).or(own.autoscale);
    own.time_limit = pool.time_limit.and_then(number).or(own.time_limit);
    own.soft_time_limit = pool
        .soft_time_limit
        .and_then(number)
        .or(own.soft_time_limit);
    own.max_tasks_per_child = pool.max_tasks_per_child.or(own.max_tasks_per_child);
    own.max_memory_per_child = pool.max_memory_per_child.or(own.max_memory_per_child);
    own.prefetch_multiplier = pool
        .prefetch_multiplier
        .map_or(own.prefetch_multiplier, i64::from);
    if !matches!(pool.kind, PoolKind::Prefork) {
        own.autoscale = None;
    }
    own
}

fn kind_of(name: &str) -> Result<PoolKind, Unusable> {
    PoolKind::named(name).map_err(|(message, hint)| Unusable {
        message: format!("The pool can't be used: {message}."),
        hint: Some(hint),
    })
}

/// What `inspect stats` tells of the pool.
fn pool_info(kind: PoolKind, worker: &WorkerOptions) -> Map<String, Value> {
    // In JSON the limits are null where there are none.
    let per_child = worker
        .max_tasks_per_child
        .map_or_else(|| json!("N/A"), |tasks| json!(tasks));
    let implementation = match kind {
        PoolKind::Native => "celeriac:NativePool",
        _ => {
            let child: prefork::PoolKind = kind.name().parse().unwrap_or_default();
            child.implementation()
        }
    };
    let info = json!({
        "implementation": implementation,
        "max-tasks-per-child": per_child,
        "put-guarded-by-semaphore": false,
        "timeouts": [worker.soft_time_limit.clone().unwrap_or_else(|| 0.into()),
                     worker.time_limit.clone().unwrap_or_else(|| 0.into())],
    });
    match info {
        Value::Object(members) => members,
        _ => Map::new(),
    }
}

impl Environment {
    /// How long a pool must be quiet before it shrinks (`AUTOSCALE_KEEPALIVE`).
    fn keepalive(&self) -> Duration {
        self.autoscale_keepalive
            .as_deref()
            .and_then(|seconds| seconds.parse().ok())
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
            .unwrap_or(Autoscale::KEEPALIVE)
    }
}
