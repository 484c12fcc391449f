//! A real worker with simulated surroundings.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use celeriac_core::broker::Broker;
use celeriac_core::bus::{BusOptions, BusSettings};
use celeriac_core::dead_letter::Bounds;
use celeriac_core::journal::Journal;
use celeriac_core::queue::Queue;
use celeriac_core::revokes::RevokeStore;
use celeriac_protocol::AcceptContent;
use celeriac_worker::autoscale::Autoscale;
use celeriac_worker::control::bus;
use celeriac_worker::core::{Consumed, LaneOptions, Options, RemoteOptions, StoreOptions};
use celeriac_worker::parts::{End, Lane, Meter, Parts};
use celeriac_worker::receive::consumer;
use celeriac_worker::receive::failover::{RetryPolicy, Strategy};
use celeriac_worker::shutdown::Deadline;
use celeriac_worker::vitals::probes;
use celeriac_worker::worker::Worker;
use serde_json::{Map, Value, json};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use crate::broker::SimulatedBroker;
use crate::hooks::{Main, SimulatedHooks};
use crate::plan::{Mutation, Plan, tasks};
use crate::pool::SimulatedPool;
use crate::process::{Process, ProcessId, ZygoteSaid};
use crate::run::{SimulatedClock, Told};
use crate::world::{Shared, locked};

struct NoMeter;

impl Meter for NoMeter {
    fn loadavg(&self) -> [f64; 3] {
        [0.0; 3]
    }

    fn rusage(&self) -> Map<String, Value> {
        Map::new()
    }
}

/// Makes a worker, whose process is known to the world from now on.
pub(crate) fn worker(
    world: &Shared,
    process: ProcessId,
    slot: usize,
    writes: bool,
) -> impl Future<Output = End> + use<> {
    let started = Instant::now();
    let (to_orders, orders) = mpsc::channel(16);
    let (to_asked, asked) = mpsc::channel(64);
    let main_died = Arc::new(Notify::new());
    let plan = {
        let mut world = locked(world);
        let it = Process {
            slot,
            is_alive: true,
            was_killed: false,
            is_paused: false,
            started,
            resumed: Arc::new(Notify::new()),
            waker: None,
            task: None,
            clock_offset: 0,
            latest: jiff::Timestamp::MIN,
            disturbed: started,
            ends_since: None,
            orders: to_orders,
            asked: to_asked,
            children: BTreeMap::new(),
            said: VecDeque::new(),
            zygote_said: VecDeque::from([ZygoteSaid::Hello]),
            has_zygote: true,
            heard: Arc::new(Notify::new()),
            next_pid: process.0 * 1000,
            grown: 0,
            reads: (started, 0),
            main: Main::default(),
            main_died: Arc::clone(&main_died),
        };
        world.processes.insert(process, it);
        world.plan.clone()
    };
    let broker: Arc<dyn Broker> = Arc::new(SimulatedBroker {
        world: Arc::clone(world),
        process,
        family: plan.family,
    });
    let journal: Arc<dyn Journal> = Arc::new(Told {
        world: Arc::clone(world),
        process,
        writes,
    });
    let size = plan.autoscale.map_or(plan.processes, |_| 1);
    let lane = Lane {
        consumer: consumer::Options {
            brokers: vec![Arc::clone(&broker)],
            strategy: Strategy::RoundRobin,
            policy: RetryPolicy {
                on_startup: true,
                when_lost: true,
                max_retries: None,
            },
            queues: vec![Queue::direct("celery")],
            purge: false,
            dead_letters: Bounds::default(),
        },
        pool: Box::new(SimulatedPool::new(
            Arc::clone(world),
            process,
            started,
            size,
            plan.max_tasks_per_child,
        )),
    };
    Worker::run(Parts {
        options: options(&plan, process),
        lanes: vec![lane],
        bus: bus::Options {
            brokers: vec![broker],
            is_needed: false,
            bus: BusOptions {
                node: format!("celery@{process}"),
                settings: BusSettings::default(),
                hears_commands: false,
                hears_workers: false,
            },
        },
        hooks: Arc::new(SimulatedHooks {
            world: Arc::clone(world),
            process,
        }),
        asked,
        main_died,
        journal,
        clock: Arc::new(SimulatedClock {
            world: Arc::clone(world),
            process,
            started,
        }),
        orders,
        probes: probes().1,
        limit_store: None,
        console: Box::new(|_| {}),
        revoked: Vec::new(),
        keeps_state: false,
        heartbeat: None,
        signals_heartbeat: false,
        meter: Box::new(NoMeter),
        has_worker_steps: false,
        has_consumer_steps: false,
    })
}

fn options(plan: &Plan, process: ProcessId) -> Options {
    let tasks = tasks();
    let rate_limits = tasks
        .iter()
        .filter_map(|(name, task)| Some(((*name).into(), task.rate_limit().ok()??)))
        .collect();
    let keepalive = Duration::from_secs(3);
    Options {
        hostname: format!("celery@{process}"),
        tasks: tasks
            .into_iter()
            .map(|(name, task)| (name.into(), Arc::new(task)))
            .collect(),
        rate_limits,
        limits_rates: true,
        accept: AcceptContent::new(["application/json".to_owned()]),
        lanes: vec![LaneOptions {
            throttled_limit: 8,
            autoscale: plan.autoscale.map(|max| Autoscale::new(max, 1, keepalive)),
            ..LaneOptions::default()
        }],
        spills_throttled: plan.has_store,
        limits: Arc::default(),
        limit_holder: process.to_string(),
        store: plan.has_store.then_some(StoreOptions {
            max_deaths: Some(3),
            unknown_grace: Duration::from_secs(5),
        }),
        shutdown_deadline: plan.has_deadline.then_some(Deadline {
            patience: Duration::from_secs(2),
            grace: Duration::from_secs(1),
        }),
        held_limit: plan.held_limit,
        tags_outlive_connections: plan.is_leased() || plan.is_mutated(Mutation::TagsOutlive),
        cancel_on_connection_loss: plan.cancels_on_loss,
        soft_shutdown_timeout: plan.soft_shutdown,
        soft_shutdown_on_idle: false,
        term_is_quit: false,
        signals_received: plan.signals_received,
        signals_rejected: false,
        received_format: "Task %(name)s[%(id)s] received".to_owned(),
        remote: RemoteOptions {
            pid: process.0,
            events: None,
            mingles: false,
            revoke_store: plan.keeps_revokes.then_some(RevokeStore::Broker),
            keeps_stamps: false,
            revokes: (50_000, Duration::from_hours(3)),
            gossips: false,
            heartbeat: 2.0,
            plain_replies: true,
            plain_events: true,
            reply_exchange: "reply.celery.pidbox".to_owned(),
            commands: HashSet::new(),
            overridden: HashSet::new(),
            broker_info: json!({}),
            queues: vec![Consumed {
                name: "celery".to_owned(),
                info: json!({"name": "celery"}),
                lane: 0,
            }],
            software: ["py-celery", "5", "Linux"].map(str::to_owned),
        },
    }
}
