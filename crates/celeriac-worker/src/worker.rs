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
use futures_util::future::BoxFuture;
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
use crate::shutdown::Phase;
use crate::vitals::{Health, Probes};
use leave::{Attended, attended};

/// How far the start has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    /// Waiting for the broker, for the bus, and for the first process of the pool.
    Waiting {
        is_connected: bool,
        is_heard: bool,
        is_up: bool,
    },
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
    pool: Box<dyn Pool>,
    consumer: Handle,
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
    is_connected: bool,
    /// When it was connected, or the connection lost.
    connection_since: Duration,
    exits_at_once: Option<i32>,
}

impl Worker {
    /// Runs a worker until its end.
    pub async fn run(mut parts: Parts) -> End {
        let now = Now::read(&*parts.clock);
        let mut failed = false;
        let mut told = Vec::new();
        let mut interrupted = None;
        let mut blueprints = BTreeSet::new();
        if parts.has_worker_steps {
            let started = parts.hooks.call(HookCall::StartSteps(Blueprint::Worker));
            let (pool, orders) = (&mut *parts.pool, &mut parts.orders);
            let health = Health::starting("the app's worker steps are starting");
            let attending = attended(pool, orders, &parts.main_died, started, &mut told);
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
            consumer: Handle::start(parts.consumer, Arc::clone(&parts.journal)),
            bus: bus::Handle::start(parts.bus),
            limits: keeper::Handle::start(parts.limit_store, Arc::clone(&parts.journal)),
            meter: parts.meter,
            pool: parts.pool,
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
            start: Start::Waiting {
                is_connected: false,
                is_heard: false,
                is_up: false,
            },
            heartbeat: None,
            heartbeat_interval: parts.heartbeat,
            signals_heartbeat: parts.signals_heartbeat,
            has_consumer_steps: parts.has_consumer_steps,
            keeps_state: parts.keeps_state,
            steps: Steps::Started,
            started: blueprints,
            is_connected: false,
            connection_since: now.monotonic,
            exits_at_once: None,
        };
        worker.core.pool_resized(worker.pool.size());
        worker.pool_told(told);
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
        tokio::select! {
            biased;
            Some(order) = self.orders.recv() => self.operator_said(order),
            asker = self.probes.next() => drop(asker.send(self.health())),
            // What a main has answered is known of before its death, and its death before the pool
            // makes a successor.
            Some((asked, answer)) = self.answers.next() => self.answered(asked, answer),
            () = self.main_died.notified() => self.main_has_died(),
            events = self.pool.next() => self.pool_told(events),
            Some((command, arguments)) = self.asked.recv() => {
                let now = self.now();
                self.core.asked(&command, arguments, now);
                // Tasks may be free to begin now.
                self.core.tick(self.pool.free(), now);
            }
            Some(event) = self.bus.next() => self.bus_told(event),
            told = self.limits.next() => self.limits_told(told),
            Some(event) = self.consumer.next() => self.consumer_told(event),
            () = next_beat(&mut self.heartbeat) => self.beat("worker-heartbeat"),
            () = sleep(tick.unwrap_or(Duration::MAX)), if tick.is_some() => {
                let now = self.now();
                self.core.tick(self.pool.free(), now);
            }
        }
        self.go_on_starting();
    }

    fn limits_told(&mut self, (key, answer): keeper::Told) {
        let random = RandomState::new().build_hasher().finish();
        let (free, now) = (self.pool.free(), self.now());
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
                    let (processes, rusage) = (self.pool.processes(), self.meter.rusage());
                    self.core.observed(processes, rusage);
                }
                self.core.heard(*heard, now);
                // Tasks may be free to begin now.
                self.core.tick(self.pool.free(), now);
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
        if let Start::Waiting { is_heard, .. } = &mut self.start
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
                let (free, now) = (self.pool.free(), self.now());
                self.core.answered(token, answer, free, now);
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

    fn pool_told(&mut self, events: Vec<PoolEvent>) {
        for event in &events {
            match event {
                PoolEvent::Up { .. } => {
                    if let Start::Waiting { is_up, .. } = &mut self.start {
                        *is_up = true;
                    }
                }
                PoolEvent::CannotStart { reason } => {
                    self.cannot_go_on(&format!("Could not start worker processes: {reason}"));
                }
                _ => {}
            }
        }
        let (free, now) = (self.pool.free(), self.now());
        self.core.pool_told(events, free, now);
        self.core.pool_resized(self.pool.size());
    }

    fn consumer_told(&mut self, event: Event) {
        match event {
            Event::Connected(broker) => {
                self.is_connected = true;
                self.connection_since = self.clock.monotonic();
                self.bus.follow(broker);
                match &mut self.start {
                    Start::Waiting { is_connected, .. } => *is_connected = true,
                    Start::Ready => {
                        let now = self.now();
                        self.core.connected(now);
                    }
                    Start::Steps | Start::Announced | Start::Failed => {}
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
                let (free, now) = (self.pool.free(), self.now());
                self.core.delivered(deliveries, free, now);
            }
            Event::QueueRefused(queue) => self.core.queue_refused(&queue),
            Event::Leased(until) => {
                let (free, now) = (self.pool.free(), self.now());
                let left = until.map(|until| until.saturating_duration_since(Instant::now()));
                let until = left.map(|left| now.monotonic + left);
                self.core.leased(until, free, now);
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
                self.is_connected = false;
                self.connection_since = self.clock.monotonic();
                self.core.disconnected();
            }
            Event::GaveUp => self.fail(),
        }
    }

    /// Goes on as soon as the broker and a process of the pool are there.
    fn go_on_starting(&mut self) {
        let Start::Waiting {
            is_connected: true,
            is_heard: true,
            is_up,
        } = self.start
        else {
            return;
        };
        if self.core.catches_up() || !is_up && self.pool.size() > 0 {
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
        if self.is_connected {
            let now = self.now();
            self.core.connected(now);
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
                Effect::Submit(job) => self.pool.submit(job),
                Effect::Terminate(key, signal) => self.pool.terminate(key, signal),
                Effect::Interrupt { key, requeues } => self.pool.interrupt(key, requeues),
                Effect::Scale(scale) => {
                    let size = match scale {
                        Scale::Up(processes) => self.pool.size() + processes,
                        Scale::Down(processes) => self.pool.size().saturating_sub(processes),
                    };
                    self.pool.resize(size);
                    self.pool_is_resized();
                }
                Effect::Shrink(processes) => {
                    self.pool.shrink(processes);
                    self.pool_is_resized();
                }
                Effect::RestartPool => self.pool.restart(),
                Effect::AddQueue(queue) => self.consumer.add_queue(queue),
                Effect::CancelQueue(queue) => self.consumer.cancel_queue(queue),
                Effect::ReadDelayed(token, count) => self.consumer.read_delayed(token.0, count),
                Effect::ReadRevokes(since) => self.consumer.read_revokes(since),
                Effect::Broadcast(command) => self.bus.broadcast(command),
                Effect::Send(outgoing) => self.bus.send(vec![outgoing]),
                Effect::ClosePool => self.pool.close(),
                Effect::KillPool => self.pool.kill(),
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
        let want = self.core.want(self.pool.free());
        self.consumer
            .exchange(&mut self.letters, &mut self.settlements, want);
    }

    /// Tells the core and main how many processes the pool is to have now.
    fn pool_is_resized(&mut self) {
        let limit = self.pool.size();
        self.core.pool_resized(limit);
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

/// The next moment for a heartbeat; never where there are none.
async fn next_beat(heartbeat: &mut Option<Interval>) {
    match heartbeat {
        Some(heartbeat) => drop(heartbeat.tick().await),
        None => std::future::pending().await,
    }
}
