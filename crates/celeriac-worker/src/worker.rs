//! The worker in the world: tells the core what happens, and carries out what it decides.

mod condition;
mod leave;

use std::collections::BTreeSet;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use celeriac_core::broker::Settlement;
use celeriac_core::bus::Kind;
use celeriac_core::clock::{Clock, Now};
use celeriac_core::journal::{Journal, Level};
use celeriac_core::pool::{Pool, PoolEvent};
use futures_util::StreamExt as _;
use futures_util::future::{BoxFuture, select_all};
use futures_util::stream::FuturesUnordered;
use serde_json::{Map, Value};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep};

use crate::autoscale::Scale;
use crate::control::bus;
use crate::core::{Core, Effect, HookToken};
use crate::happening::Happening;
use crate::hooks::{Blueprint, HookCall, Hooks};
use crate::limit::keeper;
use crate::parts::{End, Meter, OperatorSignal, Parts};
use crate::receive::consumer::{Burial, Event, Handle};
use crate::receive::tags::lane_of;
use crate::shutdown::Phase;
use crate::vitals::{Health, Probes};
use leave::{Attended, attended};

/// How far the start has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    /// Waiting for the broker, for the bus, and for the first process of the pool.
    Waiting { is_heard: bool },
    /// The app's consumer steps are starting.
    Steps,
    /// Receivers of `worker_ready` are called.
    Announced,
    /// Tasks may come.
    Ready,
    /// It won't be.
    Failed,
}

/// How far the app's own steps have come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Steps {
    /// They work, those that there are.
    Started,
    /// They know of the shutdown.
    Closed,
    /// They are stopped.
    Ended,
}

/// What an awaited hook was called for.
enum Asked {
    Core(HookToken),
    Steps(Blueprint),
    WorkerReady,
}

type Answered = (Asked, Result<serde_json::Value, String>);

/// A worker that runs.
pub struct Worker {
    core: Core,
    /// What runs tasks, by lanes.
    pools: Vec<Box<dyn Pool>>,
    /// What brings them, by lanes.
    consumers: Vec<Handle>,
    connections: Vec<Connection>,
    /// Whether a process of each pool was up.
    was_up: Vec<bool>,
    /// How many jobs each pool can take, when last looked at.
    free: Vec<usize>,
    /// The lane that is heard first: each in its turn.
    turn: usize,
    bus: bus::Handle,
    limits: keeper::Handle,
    meter: Box<dyn Meter>,
    hooks: Arc<dyn Hooks>,
    journal: Arc<dyn Journal>,
    clock: Arc<dyn Clock>,
    orders: mpsc::Receiver<OperatorSignal>,
    asked: mpsc::Receiver<(String, Map<String, Value>)>,
    main_died: Arc<Notify>,
    probes: Probes,
    console: Box<dyn Fn(&str) + Send>,
    answers: FuturesUnordered<BoxFuture<'static, Answered>>,
    letters: Vec<Burial>,
    settlements: Vec<Settlement>,
    start: Start,
    hostname: String,
    /// Ticks from the start of the consumer until the worker leaves.
    heartbeat: Option<Interval>,
    heartbeat_interval: Option<Duration>,
    signals_heartbeat: bool,
    has_consumer_steps: bool,
    keeps_state: bool,
    steps: Steps,
    /// The blueprints whose steps main has started.
    started: BTreeSet<Blueprint>,
    exits_at_once: Option<i32>,
}

/// How a lane stands with the broker.
#[derive(Debug, Clone, Copy)]
struct Connection {
    is_up: bool,
    /// When it was connected, or the connection lost.
    since: Duration,
}

impl Worker {
    /// Runs a worker until its end.
    pub async fn run(mut parts: Parts) -> End {
        let now = Now::read(&*parts.clock);
        let mut failed = false;
        let mut told = Vec::new();
        let mut interrupted = None;
        let mut blueprints = BTreeSet::new();
        let lanes = std::mem::take(&mut parts.lanes).into_iter();
        let (consumers, mut pools): (Vec<_>, Vec<_>) =
            lanes.map(|lane| (lane.consumer, lane.pool)).unzip();
        if parts.has_worker_steps {
            let started = parts.hooks.call(HookCall::StartSteps(Blueprint::Worker));
            let health = Health::starting("the app's worker steps are starting");
            let (pools, orders) = (&mut pools, &mut parts.orders);
            let attending = attended(pools, orders, &parts.main_died, started, &mut told);
            match parts.probes.during(&health, attending).await {
                Attended::Answered(Ok(_)) => drop(blueprints.insert(Blueprint::Worker)),
                Attended::Interrupted(order) => interrupted = Some(order),
                Attended::Answered(Err(error)) => {
                    let reason = format!("Unrecoverable error: {error}");
                    parts
                        .journal
                        .write(Happening::GaveUp { reason: &reason }.record());
                    failed = true;
                }
            }
        }
        let mut worker = Self {
            hostname: parts.options.hostname.clone(),
            core: Core::new(
                parts.options,
                parts.revoked,
                Arc::clone(&parts.journal),
                now,
            ),
            connections: vec![
                Connection {
                    is_up: false,
                    since: now.monotonic,
                };
                pools.len()
            ],
            was_up: vec![false; pools.len()],
            free: Vec::with_capacity(pools.len()),
            turn: 0,
            consumers: consumers
                .into_iter()
                .enumerate()
                .map(|(lane, options)| Handle::start(options, lane, Arc::clone(&parts.journal)))
                .collect(),
            bus: bus::Handle::start(parts.bus),
            limits: keeper::Handle::start(parts.limit_store, Arc::clone(&parts.journal)),
            meter: parts.meter,
            start: Start::Waiting { is_heard: false },
            pools,
            hooks: parts.hooks,
            journal: parts.journal,
            clock: parts.clock,
            orders: parts.orders,
            asked: parts.asked,
            main_died: parts.main_died,
            probes: parts.probes,
            console: parts.console,
            answers: FuturesUnordered::new(),
            letters: Vec::new(),
            settlements: Vec::new(),
            heartbeat: None,
            heartbeat_interval: parts.heartbeat,
            signals_heartbeat: parts.signals_heartbeat,
            has_consumer_steps: parts.has_consumer_steps,
            keeps_state: parts.keeps_state,
            steps: Steps::Started,
            started: blueprints,
            exits_at_once: None,
        };
        for (lane, pool) in worker.pools.iter().enumerate() {
            worker.core.pool_resized(lane, pool.size());
        }
        for (lane, events) in told {
            worker.pool_told(lane, events);
        }
        if failed {
            worker.fail();
        }
        if let Some(order) = interrupted {
            worker.operator_said(order);
        }
        worker.work().await
    }

    fn now(&self) -> Now {
        Now::read(&*self.clock)
    }

    /// Looks how many jobs the pools can take, and reads the clock.
    fn look(&mut self) -> Now {
        self.free.clear();
        self.free.extend(self.pools.iter().map(|pool| pool.free()));
        self.now()
    }

    async fn work(mut self) -> End {
        loop {
            self.act();
            if let Some(status) = self.exits_at_once {
                return End {
                    status,
                    restarts: false,
                    at_once: true,
                };
            }
            if self.core.is_done() {
                break;
            }
            self.happen().await;
        }
        debug_assert!(self.core.holds_nothing(), "something is kept for ever");
        let has_left = self.leave_in_time().await;
        let shutdown = self.core.shutdown();
        End {
            status: shutdown.exit_status(),
            restarts: shutdown.restarts() && has_left,
            at_once: !has_left,
        }
    }

    /// Waits for one thing to happen, and tells the core.
    async fn happen(&mut self) {
        let now = self.now();
        let tick = self.core.next_tick(now);
        self.turn = self.turn.wrapping_add(1);
        tokio::select! {
            biased;
            Some(order) = self.orders.recv() => self.operator_said(order),
            asker = self.probes.next() => drop(asker.send(self.health())),
            // What a main has answered is known of before its death, and its death before the pool
            // makes a successor.
            Some((asked, answer)) = self.answers.next() => self.answered(asked, answer),
            () = self.main_died.notified() => self.main_has_died(),
            (lane, events) = pools_told(&mut self.pools, self.turn) => self.pool_told(lane, events),
            Some((command, arguments)) = self.asked.recv() => {
                let now = self.now();
                self.core.asked(&command, arguments, now);
                // Tasks may be free to begin now.
                self.tick();
            }
            Some(event) = self.bus.next() => self.bus_told(event),
            told = self.limits.next() => self.limits_told(told),
            (lane, event) = consumers_told(&mut self.consumers, self.turn) => {
                self.consumer_told(lane, event);
            }
            () = next_beat(&mut self.heartbeat) => self.beat("worker-heartbeat"),
            () = sleep(tick.unwrap_or(Duration::MAX)), if tick.is_some() => self.tick(),
        }
        self.go_on_starting();
    }

    fn tick(&mut self) {
        let now = self.look();
        self.core.tick(&self.free, now);
    }

    fn limits_told(&mut self, (key, answer): keeper::Told) {
        let random = RandomState::new().build_hasher().finish();
        let now = self.look();
        let free = &self.free;
        self.core.limits_answered(key, answer, random, free, now);
    }

    /// Tells monitors and the app that the worker lives.
    fn beat(&mut self, kind: &str) {
        let now = self.now();
        self.core.beat(kind, self.meter.loadavg(), now);
        // As in Celery, the app hears of none once a shutdown has begun.
        if self.signals_heartbeat && self.core.shutdown().phase() == Phase::Running {
            self.hooks.tell(HookCall::HeartbeatSent);
        }
    }

    fn bus_told(&mut self, event: bus::Event) {
        let now = self.now();
        match event {
            bus::Event::Opened { reply_key, notice } => {
                if let Some(notice) = notice {
                    self.notice(&notice);
                }
                if self.heartbeat.is_some() {
                    self.beat("worker-online");
                }
                self.core.bus_opened(&reply_key, now);
                self.core.load_revokes(now);
                self.bus_is_heard();
            }
            bus::Event::Failed(error) => {
                let error = error.in_full();
                self.notice(&format!(
                    "Remote control and events are not available, and are tried again: {error}"
                ));
                self.bus_is_heard();
            }
            bus::Event::Unavailable => self.bus_is_heard(),
            bus::Event::Reached(mailboxes) => self.core.bus_reached(mailboxes, now),
            bus::Event::Heard(heard) => {
                if heard.kind == Kind::Command {
                    let processes = self.pools.iter().map(|pool| pool.processes());
                    let processes = processes.collect();
                    self.core.observed(processes, self.meter.rusage());
                }
                self.core.heard(*heard, now);
                // Tasks may be free to begin now.
                self.tick();
            }
            bus::Event::Lost(error) => {
                tracing::debug!(%error, "the bus is lost");
                self.core.bus_lost();
            }
        }
    }

    /// There is a bus, or there will be none for now: the start need not wait for it.
    fn bus_is_heard(&mut self) {
        let now = self.now();
        if let Start::Waiting { is_heard } = &mut self.start
            && !std::mem::replace(is_heard, true)
            && !self.core.catches_up()
        {
            // Without a bus nothing is revoked in between.
            self.core.load_revokes(now);
        }
    }

    fn notice(&self, text: &str) {
        let happening = Happening::Notice { text };
        if self.journal.writes(Level::Warning) {
            self.journal.write(happening.record());
        }
    }

    fn operator_said(&mut self, order: OperatorSignal) {
        match order {
            OperatorSignal::End(signal) => {
                let now = self.now();
                self.core.signalled(signal, now);
            }
            OperatorSignal::Cry => self.hooks.tell(HookCall::Cry),
        }
    }

    fn answered(&mut self, asked: Asked, answer: Result<serde_json::Value, String>) {
        match (asked, answer) {
            (Asked::Core(token), answer) => {
                let now = self.look();
                self.core.answered(token, answer, &self.free, now);
            }
            (Asked::Steps(blueprint), Ok(_)) => {
                self.started.insert(blueprint);
                if self.start == Start::Steps && blueprint == Blueprint::Consumer {
                    self.announce_ready();
                }
            }
            // A receiver that raises is in main's log; a main that died has a successor.
            (Asked::WorkerReady, _) => self.ready(),
            (Asked::Steps(_), Err(error)) => {
                self.cannot_go_on(&format!("Unrecoverable error: {error}"));
            }
        }
    }

    /// Has the successor of a main that died know what it knew, and do what it did.
    fn main_has_died(&mut self) {
        self.notice("The main process died. Another takes its place.");
        self.core.main_died();
        self.act();
        // Steps that are still starting are not among them: what main did not answer is asked of
        // its successor without our doing.
        let started = std::mem::take(&mut self.started);
        if self.core.shutdown().phase() == Phase::Running {
            for blueprint in started {
                self.start_steps(blueprint);
            }
        }
    }

    fn start_steps(&mut self, blueprint: Blueprint) {
        let answer = self.hooks.call(HookCall::StartSteps(blueprint));
        self.answers.push(Box::pin(
            async move { (Asked::Steps(blueprint), answer.await) },
        ));
    }

    fn pool_told(&mut self, lane: usize, events: Vec<PoolEvent>) {
        for event in &events {
            match event {
                PoolEvent::Up { .. } => self.was_up[lane] = true,
                PoolEvent::CannotStart { reason } => {
                    self.cannot_go_on(&format!("Could not start worker processes: {reason}"));
                }
                _ => {}
            }
        }
        let now = self.look();
        self.core.pool_told(lane, events, &self.free, now);
        self.core.pool_resized(lane, self.pools[lane].size());
    }

    fn consumer_told(&mut self, lane: usize, event: Event) {
        match event {
            Event::Connected(broker) => {
                self.connections[lane] = Connection {
                    is_up: true,
                    since: self.clock.monotonic(),
                };
                if lane == 0 {
                    self.bus.follow(broker);
                }
                if self.start == Start::Ready {
                    let now = self.now();
                    self.core.connected(lane, now);
                }
            }
            Event::Purged(0) | Event::Closed => {}
            Event::Purged(count) => {
                let messages = if count == 1 { "message" } else { "messages" };
                (self.console)(&format!(
                    "purge: Erased {count} {messages} from the queue.\n"
                ));
            }
            Event::Delivered(_, deliveries) => {
                let now = self.look();
                self.core.delivered(lane, deliveries, &self.free, now);
            }
            Event::QueueRefused(queue) => self.core.queue_refused(&queue),
            Event::Leased(until) => {
                let now = self.look();
                let left = until.map(|until| until.saturating_duration_since(Instant::now()));
                let until = left.map(|left| now.monotonic + left);
                self.core.leased(lane, until, &self.free, now);
            }
            Event::LeasesLost(tags) => self.core.leases_lost(&tags),
            Event::Delayed(question, read) => {
                let read = read.map_err(|error| error.in_full());
                self.core.delayed_read(HookToken(question), read);
            }
            Event::Revokes(read) => {
                let now = self.now();
                let read = read.map_err(|error| error.in_full());
                self.core.revokes_read(read, now);
            }
            Event::Lost => {
                self.connections[lane] = Connection {
                    is_up: false,
                    since: self.clock.monotonic(),
                };
                self.core.disconnected(lane);
            }
            Event::GaveUp => self.fail(),
        }
    }

    /// Goes on as soon as the broker and a process of the pool are there.
    fn go_on_starting(&mut self) {
        if self.start != (Start::Waiting { is_heard: true })
            || !self.is_connected()
            || !self.is_up()
            || self.core.catches_up()
        {
            return;
        }
        // As in Celery, the first beat comes before the app's steps start.
        self.heartbeat = self.heartbeat_interval.map(interval);
        if let Some(heartbeat) = &mut self.heartbeat {
            heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
            heartbeat.reset();
            self.beat("worker-online");
        }
        if self.has_consumer_steps {
            self.start = Start::Steps;
            self.start_steps(Blueprint::Consumer);
        } else {
            self.announce_ready();
        }
    }

    /// Whether all lanes have reached the broker.
    fn is_connected(&self) -> bool {
        self.connections.iter().all(|connection| connection.is_up)
    }

    /// Whether all pools that are to have processes have had one.
    fn is_up(&self) -> bool {
        let mut pools = self.pools.iter().zip(&self.was_up);
        pools.all(|(pool, was_up)| *was_up || pool.size() == 0)
    }

    /// All is there: receivers of `worker_ready` come before the first task, as in Celery.
    fn announce_ready(&mut self) {
        if self.core.shutdown().phase() != Phase::Running {
            return;
        }
        self.start = Start::Announced;
        let answer = self.hooks.call(HookCall::WorkerReady);
        self.answers
            .push(Box::pin(async { (Asked::WorkerReady, answer.await) }));
    }

    fn ready(&mut self) {
        if self.core.shutdown().phase() != Phase::Running {
            return;
        }
        self.start = Start::Ready;
        self.journal.write(
            Happening::Ready {
                hostname: &self.hostname,
            }
            .record(),
        );
        let now = self.now();
        for (lane, connection) in self.connections.iter().enumerate() {
            if connection.is_up {
                self.core.connected(lane, now);
            }
        }
    }

    fn cannot_go_on(&mut self, reason: &str) {
        self.journal.write(Happening::GaveUp { reason }.record());
        self.fail();
    }

    fn fail(&mut self) {
        self.start = Start::Failed;
        let now = self.now();
        self.core.failed(now);
    }

    /// Carries out what the core decided.
    fn act(&mut self) {
        for effect in self.core.take_effects() {
            match effect {
                Effect::Bury(burial) => self.letters.push(*burial),
                Effect::Settle(settlement) => self.settlements.push(settlement),
                Effect::Acquire(key, asked) => self.limits.acquire(key, *asked),
                Effect::GiveBack(key, holding, held) => {
                    self.limits.release(key, *holding, held);
                }
                Effect::Submit(lane, job) => self.pools[lane].submit(job),
                Effect::Terminate(lane, key, signal) => self.pools[lane].terminate(key, signal),
                Effect::Interrupt {
                    lane,
                    key,
                    requeues,
                } => self.pools[lane].interrupt(key, requeues),
                Effect::Scale(lane, scale) => {
                    let pool = &mut self.pools[lane];
                    let size = match scale {
                        Scale::Up(processes) => pool.size() + processes,
                        Scale::Down(processes) => pool.size().saturating_sub(processes),
                    };
                    pool.resize(size);
                    self.pool_is_resized(lane);
                }
                Effect::Shrink(lane, processes) => {
                    self.pools[lane].shrink(processes);
                    self.pool_is_resized(lane);
                }
                Effect::RestartPools => self.pools.iter_mut().for_each(|pool| pool.restart()),
                Effect::AddQueue(lane, queue) => self.consumers[lane].add_queue(queue),
                Effect::CancelQueue(queue) => {
                    for consumer in &self.consumers {
                        consumer.cancel_queue(queue.clone());
                    }
                }
                Effect::ReadDelayed(lane, token, count) => {
                    self.consumers[lane].read_delayed(token.0, count);
                }
                // One of them is enough: they read the same store.
                Effect::ReadRevokes(since) => self.consumers[0].read_revokes(since),
                Effect::Broadcast(command) => self.bus.broadcast(command),
                Effect::Send(outgoing) => self.bus.send(vec![outgoing]),
                Effect::ClosePools => self.pools.iter_mut().for_each(|pool| pool.close()),
                Effect::KillPools => self.pools.iter_mut().for_each(|pool| pool.kill()),
                Effect::Call(token, call) => {
                    let answer = self.hooks.call(call);
                    self.answers
                        .push(Box::pin(async move { (Asked::Core(token), answer.await) }));
                }
                Effect::Tell(call) => self.hooks.tell(call),
                Effect::Print(text) => (self.console)(&format!("\n{text}\n")),
                Effect::ExitNow(status) => self.exits_at_once = Some(status),
            }
        }
        let outgoing = self.core.take_outgoing();
        if !outgoing.is_empty() {
            self.bus.send(outgoing);
        }
        self.end_steps();
        self.exchange();
    }

    /// Tells the broker what became of messages, and how many each lane wants.
    fn exchange(&mut self) {
        if let ([consumer], [pool]) = (&*self.consumers, &*self.pools) {
            let want = self.core.want(0, pool.free());
            return consumer.exchange(&mut self.letters, &mut self.settlements, want);
        }
        for (lane, consumer) in self.consumers.iter().enumerate() {
            let is_here = |tag| lane_of(tag) == lane;
            let letters = self.letters.extract_if(.., |burial| is_here(burial.tag));
            let mut letters = letters.collect();
            let settlements = self.settlements.extract_if(.., |it| is_here(it.tag));
            let mut settlements = settlements.collect();
            let want = self.core.want(lane, self.pools[lane].free());
            consumer.exchange(&mut letters, &mut settlements, want);
        }
    }

    /// Tells the core and main how many processes a pool is to have now.
    fn pool_is_resized(&mut self, lane: usize) {
        self.core.pool_resized(lane, self.pools[lane].size());
        let limit = self.core.pool_size();
        self.hooks.tell(HookCall::SetPoolSize { limit });
    }

    /// Has the app's own steps end as far as the shutdown has come.
    fn end_steps(&mut self) {
        let phase = self.core.shutdown().phase();
        if phase != Phase::Running && self.steps == Steps::Started {
            self.steps = Steps::Closed;
            self.hooks.tell(HookCall::CloseSteps);
        }
        let terminate = phase == Phase::Cold;
        if self.steps == Steps::Closed && (terminate || self.core.is_done()) {
            self.steps = Steps::Ended;
            self.hooks.tell(HookCall::EndSteps { terminate });
        }
    }
}

/// The next that a pool tells, and its lane. The one whose turn it is is heard first. Safe to cancel.
async fn pools_told(pools: &mut [Box<dyn Pool>], turn: usize) -> (usize, Vec<PoolEvent>) {
    if let [pool] = pools {
        return (0, pool.next().await);
    }
    let mut waiting: Vec<BoxFuture<'_, _>> = Vec::with_capacity(pools.len());
    for (lane, pool) in pools.iter_mut().enumerate() {
        waiting.push(Box::pin(async move { (lane, pool.next().await) }));
    }
    first_of(waiting, turn).await
}

/// The next that a consumer tells, and its lane; never when none will tell anything. The one whose
/// turn it is is heard first. Safe to cancel.
async fn consumers_told(consumers: &mut [Handle], turn: usize) -> (usize, Event) {
    let mut waiting: Vec<BoxFuture<'_, _>> = Vec::with_capacity(consumers.len());
    for (lane, consumer) in consumers.iter_mut().enumerate() {
        waiting.push(Box::pin(async move {
            match consumer.next().await {
                Some(event) => (lane, event),
                None => std::future::pending().await,
            }
        }));
    }
    first_of(waiting, turn).await
}

async fn first_of<T>(mut waiting: Vec<BoxFuture<'_, T>>, turn: usize) -> T {
    let lanes = waiting.len().max(1);
    waiting.rotate_left(turn % lanes);
    select_all(waiting).await.0
}

/// The next moment for a heartbeat; never where there are none.
async fn next_beat(heartbeat: &mut Option<Interval>) {
    match heartbeat {
        Some(heartbeat) => drop(heartbeat.tick().await),
        None => std::future::pending().await,
    }
}
