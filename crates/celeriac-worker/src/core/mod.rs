//! The heart of the worker: one state machine that owns every request.
//!
//! It is told what happens (messages, the pool's events, answers of hooks, signals, time) and
//! answers with [`Effect`]s. It does no I/O and reads no clock, so that a test, or a simulator, can
//! make anything happen at any moment. [`crate::worker`] carries the effects out.

mod adopt;
mod bus;
mod command;
mod conclude;
mod control;
mod inspect;
mod receive;
mod remote;
mod revoke;
mod run;
mod successor;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytestring::ByteString;
use celeriac_config::TaskOptions;
use celeriac_core::broker::{Delivery, DeliveryTag, Fate, Settlement, Want};
use celeriac_core::bus::Outgoing;
use celeriac_core::clock::Now;
use celeriac_core::journal::{Journal, Level};
use celeriac_core::pool::{Job, RequestKey};
use celeriac_core::queue::Queue;
use celeriac_protocol::{AcceptContent, Message, RateLimit, TimeLimits};
use serde_json::{Map, Value};

use crate::admit::Admission;
use crate::admit::eta::Held;
use crate::admit::rate_limit::Buckets;
use crate::autoscale::{Autoscale, Scale};
use crate::control::mingle::Mingle;
use crate::events::event::TaskEvent;
use crate::happening::Happening;
use crate::hooks::HookCall;
use crate::request::{Request, Stage};
use crate::revoked::Revoked;
use crate::shutdown::{Order, Phase, Shutdown, Signal};
use adopt::Adoption;
use remote::Remote;

pub use remote::RemoteOptions;

/// Messages that are fetched at once at most, those with an ETA included.
const FETCHED_AT_ONCE: usize = 256;
/// Hooks that may wait for main before the worker stops fetching.
const HOOKS_IN_FLIGHT: usize = 256;
/// How often the wall clock is read at least while tasks are held for their ETA.
const CLOCK_IS_READ: Duration = Duration::from_secs(10);

/// What does not change while a worker lives.
#[derive(Debug, Clone)]
pub struct Options {
    /// The node's name.
    pub hostname: String,
    /// All tasks.
    pub tasks: HashMap<ByteString, Arc<TaskOptions>>,
    /// Rate limits of those that have one.
    pub rate_limits: Vec<(ByteString, RateLimit)>,
    /// Whether rate limits hold at all (`worker_disable_rate_limits`).
    pub limits_rates: bool,
    /// What may be opened.
    pub accept: AcceptContent,
    /// Limits for tasks without their own.
    pub time_limits: TimeLimits,
    /// How many tasks may wait for a rate limit.
    pub throttled_limit: usize,
    /// How many tasks may be held for their ETA.
    pub held_limit: Option<usize>,
    /// Bounds of the pool, if it is scaled.
    pub autoscale: Option<Autoscale>,
    /// Whether messages that were fetched outlive the connection that fetched them.
    pub tags_outlive_connections: bool,
    /// Kill late-acknowledged tasks when the connection is lost.
    pub cancel_on_connection_loss: bool,
    /// How long a cold shutdown waits for tasks.
    pub soft_shutdown_timeout: Duration,
    /// Wait also when nothing runs.
    pub soft_shutdown_on_idle: bool,
    /// `REMAP_SIGTERM=SIGQUIT`
    pub term_is_quit: bool,
    /// Whether `task_received` has receivers.
    pub signals_received: bool,
    /// Whether `task_rejected` has receivers.
    pub signals_rejected: bool,
    /// `celery.app.trace.LOG_RECEIVED`
    pub received_format: String,
    /// Remote control and events.
    pub remote: RemoteOptions,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Tell the broker.
    Settle(Settlement),
    /// Give a job to the pool.
    Submit(Job),
    /// Have the pool end a job.
    Terminate(RequestKey, i32),
    /// Change the pool's size by so many processes.
    Scale(Scale),
    /// Have so many processes of the pool leave when their job is done.
    Shrink(usize),
    /// Replace the pool's processes.
    RestartPool,
    /// Consume from a further queue.
    AddQueue(Queue),
    /// Consume from this queue no more.
    CancelQueue(String),
    /// Send a command to all nodes.
    Broadcast(Message),
    /// Send something over the bus that is written already.
    Send(Outgoing),
    /// Have the broker tell what it keeps of revokes since then, in seconds since 1970, before it
    /// is asked for further messages.
    ReadRevokes(f64),
    /// Have the pool finish its jobs and end.
    ClosePool,
    /// Have the pool end now.
    KillPool,
    /// Have a hook called, and tell its answer.
    Call(HookToken, HookCall),
    /// Have a hook called.
    Tell(HookCall),
    /// Show something on standard output.
    Print(&'static str),
    /// Leave at once.
    ExitNow(i32),
}

/// Names a hook whose answer is awaited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HookToken(pub u64);

/// What is to happen when a hook has answered.
#[derive(Debug)]
enum Continuation {
    /// Settle the request's message; it is done with.
    Settle(RequestKey, Fate),
    /// Settle a message that became no request.
    SettleMessage(DeliveryTag, Fate),
    /// It was asked whether a lost task had succeeded.
    LossChecked(RequestKey),
    /// A lost task was perhaps sent again.
    LossRetried(RequestKey),
    /// `task_received` was sent for a request.
    Received(RequestKey, Admission),
    /// The body of a message was opened.
    V1Opened(DeliveryTag, Arc<Message>),
    /// It is stored that a task was revoked while it ran.
    Terminated(RequestKey),
}

/// Everything the worker knows.
pub struct Core {
    options: Options,
    journal: Arc<dyn Journal>,
    requests: HashMap<RequestKey, Request>,
    /// Requests by their message, for leases that are lost.
    by_tag: HashMap<DeliveryTag, RequestKey>,
    held: Held,
    buckets: Buckets,
    /// Requests that may begin, and since when.
    ready: VecDeque<(RequestKey, Duration)>,
    /// Before this none of them has waited for too long that could be given back.
    next_release: Duration,
    revoked: Revoked,
    continuations: HashMap<HookToken, Continuation>,
    /// How the process of a lost task ended, while it is asked whether the task had succeeded.
    losses: HashMap<RequestKey, conclude::Loss>,
    next_key: u64,
    next_token: u64,
    is_connected: bool,
    autoscale: Option<Autoscale>,
    next_scale: Duration,
    shutdown: Shutdown,
    soft_until: Option<Duration>,
    pool_is_closed: bool,
    /// The wanted number of the pool's processes.
    pool_size: usize,
    /// How many requests the pool has.
    busy: usize,
    /// How many of them a process runs.
    running: usize,
    accepted: u64,
    /// How many requests wait until receivers of `task_received` have seen them.
    announced: usize,
    adoption: Adoption,
    remote: Remote,
    /// The pool's processes, each with how many jobs it was given, when last looked at.
    processes: Vec<(u32, u64)>,
    /// What the worker had used when last looked at.
    rusage: Map<String, Value>,
    /// The time at which the last thing happened.
    read_at: Now,
    effects: Vec<Effect>,
}

impl Core {
    /// A worker that has nothing yet. `revoked` are the ids from the state database.
    pub fn new(
        options: Options,
        revoked: impl IntoIterator<Item = String>,
        journal: Arc<dyn Journal>,
        now: Now,
    ) -> Self {
        let (bound, lifetime) = options.remote.revokes;
        let mut set = Revoked::new(bound, lifetime);
        for id in revoked {
            set.insert(&id, now.monotonic);
        }
        let remote = Remote::new(options.remote.clone(), now.monotonic);
        Self {
            buckets: Buckets::new(options.rate_limits.iter().cloned(), now.monotonic),
            autoscale: options.autoscale,
            next_scale: now.monotonic,
            shutdown: Shutdown::new(options.term_is_quit),
            revoked: set,
            options,
            journal,
            requests: HashMap::new(),
            by_tag: HashMap::new(),
            held: Held::default(),
            ready: VecDeque::new(),
            next_release: Duration::ZERO,
            continuations: HashMap::new(),
            losses: HashMap::new(),
            next_key: 1,
            next_token: 1,
            is_connected: false,
            soft_until: None,
            pool_is_closed: false,
            pool_size: 0,
            busy: 0,
            running: 0,
            accepted: 0,
            announced: 0,
            adoption: Adoption::default(),
            remote,
            processes: Vec::new(),
            rusage: Map::new(),
            read_at: now,
            effects: Vec::new(),
        }
    }

    /// What is to be done, in order.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// How many messages are wanted, with a pool that can take `free` jobs.
    pub fn want(&self, free: usize) -> Want {
        if self.is_connected && matches!(self.shutdown.phase(), Phase::Warm | Phase::Soft) {
            // Nothing begins any more, but what runs may have lost its connection.
            let sought = self.sought();
            return Want {
                runnable: sought,
                total: sought,
            };
        }
        let stops = !self.is_connected
            || self.shutdown.phase() != Phase::Running
            || self.continuations.len() >= HOOKS_IN_FLIGHT
            || self.buckets.len() >= self.options.throttled_limit;
        let room = self.options.held_limit.map_or(FETCHED_AT_ONCE, |limit| {
            FETCHED_AT_ONCE.min(limit.saturating_sub(self.held.len()))
        });
        let runnable = self
            .capacity(free)
            .saturating_sub(self.ready.len() + self.announced)
            .saturating_add(self.sought())
            .min(room);
        if stops || runnable == 0 {
            return Want::NONE;
        }
        Want {
            runnable,
            total: room,
        }
    }

    /// Jobs that can begin now, with the processes that the pool may still start.
    fn capacity(&self, free: usize) -> usize {
        self.autoscale
            .map_or(free, |scale| free.max(scale.max.saturating_sub(self.busy)))
    }

    /// The broker is reached.
    pub fn connected(&mut self, now: Now) {
        self.read_at = now;
        self.is_connected = true;
        self.search_for_orphans(now);
    }

    /// The connection to the broker is lost.
    pub fn disconnected(&mut self) {
        self.is_connected = false;
        if self.options.cancel_on_connection_loss {
            self.cancel_unsettled();
        }
        if !self.options.tags_outlive_connections {
            self.forget_fetched();
        }
    }

    /// Messages came.
    pub fn delivered(&mut self, deliveries: Vec<Delivery>, free: usize, now: Now) {
        self.read_at = now;
        if self.shutdown.phase() != Phase::Running {
            // They were under way when the shutdown began, or belong to what still runs.
            for delivery in deliveries {
                self.adopt_or_give_back(&delivery, now);
            }
            self.end_search();
            return;
        }
        for delivery in deliveries {
            self.receive(delivery, now);
        }
        if let Some(scale) = &mut self.autoscale {
            scale.received(now.monotonic);
        }
        self.scale(now);
        self.dispatch(free, now);
    }

    /// Other workers have, or will have, these messages.
    pub fn leases_lost(&mut self, tags: &[DeliveryTag]) {
        for tag in tags {
            let Some(key) = self.by_tag.get(tag).copied() else {
                continue;
            };
            let Some(request) = self.requests.get_mut(&key) else {
                continue;
            };
            self.journal
                .write(Happening::LeaseLost { request }.record());
            // There is nothing to settle any more. What the pool has may have begun.
            request.is_settled = true;
            if request.stage.is_waiting() {
                self.withdraw(key);
                self.remove(key);
            }
        }
    }

    /// A hook has answered; `Err` holds what went wrong.
    pub fn answered(
        &mut self,
        token: HookToken,
        answer: Result<serde_json::Value, String>,
        free: usize,
        now: Now,
    ) {
        self.read_at = now;
        if let Some(continuation) = self.continuations.remove(&token) {
            self.proceed(continuation, answer, now);
            self.dispatch(free, now);
        } else if let Some(awaited) = self.remote.awaited.remove(&token) {
            self.main_answered(awaited, answer, now);
            self.dispatch(free, now);
        }
    }

    /// A signal has come.
    pub fn signalled(&mut self, signal: Signal, now: Now) {
        let orders = self.shutdown.signal(signal);
        self.shut_down(orders, now);
    }

    /// The worker can't go on: tasks that run may finish.
    pub fn failed(&mut self, now: Now) {
        let orders = self.shutdown.fail();
        self.shut_down(orders, now);
    }

    fn shut_down(&mut self, orders: Vec<Order>, now: Now) {
        for order in orders {
            match order {
                Order::Print(text) => self.effects.push(Effect::Print(text)),
                Order::Announce { sig, how, exitcode } => {
                    let call = HookCall::WorkerShuttingDown { sig, how, exitcode };
                    self.effects.push(Effect::Tell(call));
                }
                Order::Warm => self.stop_fetching(),
                Order::SoftThenCold => self.soft_shutdown(now),
                Order::Cold => self.cold_shutdown(),
                Order::ExitNow(status) => self.effects.push(Effect::ExitNow(status)),
            }
        }
    }

    /// Gives back what has not begun, and lets the pool finish.
    fn stop_fetching(&mut self) {
        if self.soft_until.is_none() && self.shutdown.phase() >= Phase::Warm {
            let mut unbegun = self.held.take_all();
            unbegun.extend(self.buckets.take_all());
            unbegun.extend(
                std::mem::take(&mut self.ready)
                    .into_iter()
                    .map(|(key, _)| key),
            );
            for key in unbegun {
                self.release(key);
            }
            self.effects.push(Effect::ClosePool);
        }
    }

    fn soft_shutdown(&mut self, now: Now) {
        self.stop_fetching();
        let timeout = self.options.soft_shutdown_timeout;
        let is_needed = self.running > 0 || self.options.soft_shutdown_on_idle;
        if timeout.is_zero() || !is_needed {
            self.cold_shutdown();
        } else {
            let seconds = timeout.as_secs_f64();
            self.journal
                .write(Happening::SoftShutdown { seconds }.record());
            self.soft_until = Some(now.monotonic + timeout);
        }
    }

    fn cold_shutdown(&mut self) {
        self.shutdown.soft_wait_is_over();
        self.soft_until = None;
        self.effects.push(Effect::Tell(HookCall::Terminating));
        self.effects.push(Effect::KillPool);
    }

    /// Does what has come due.
    pub fn tick(&mut self, free: usize, now: Now) {
        self.read_at = now;
        if self.soft_until.is_some_and(|at| at <= now.monotonic) {
            self.cold_shutdown();
        }
        self.end_mingle(now);
        self.end_waiting_for_store(now);
        self.look_for_missed(now);
        self.end_search();
        while let Some(key) = self.held.take_due(now.wall) {
            self.eta_came(key, now);
        }
        for key in self.buckets.take_due(now.monotonic) {
            self.make_ready(key, true, now);
        }
        self.scale(now);
        self.dispatch(free, now);
    }

    /// The pool's size has changed.
    pub fn pool_resized(&mut self, size: usize) {
        self.pool_size = size;
    }

    /// How long until [`Core::tick`] has something to do, unless something happens before.
    pub fn next_tick(&mut self, now: Now) -> Option<Duration> {
        let soft = self.soft_until.map(|at| at.saturating_sub(now.monotonic));
        // Somebody may set the clock.
        let held = self.held.next().map(|at| now.until(at).min(CLOCK_IS_READ));
        let throttled = self.buckets.next(now.monotonic);
        let scale = self
            .autoscale
            .map(|_| self.next_scale.saturating_sub(now.monotonic));
        let ready = self.ready.front().map(|(_, since)| {
            let at = *since + run::RELEASE_AFTER;
            // What has waited for longer is bound to this worker: only the pool can help.
            at.checked_sub(now.monotonic).unwrap_or(Duration::MAX)
        });
        let mingle = self.remote.mingle.as_ref().map(Mingle::until);
        let look = self.remote.options.gossips.then_some(self.remote.next_look);
        let search = self.search_until();
        let store = self.remote.store_until;
        let bus = [mingle, store, look, search].into_iter().flatten().min();
        let bus = bus.map(|at| at.saturating_sub(now.monotonic));
        [soft, held, throttled, scale, ready, bus]
            .into_iter()
            .flatten()
            .min()
    }

    /// Starts or ends processes, as many as there is work for.
    fn scale(&mut self, now: Now) {
        let requests = self.busy + self.ready.len();
        if self.shutdown.phase() != Phase::Running {
            return;
        }
        let Some(autoscale) = &mut self.autoscale else {
            return;
        };
        self.next_scale = now.monotonic + autoscale.keepalive;
        let processes = self.pool_size;
        let Some(scale) = autoscale.decide(requests, processes, now.monotonic) else {
            return;
        };
        let happening = match scale {
            Scale::Up(processes) => Happening::ScalingUp { processes },
            Scale::Down(processes) => Happening::ScalingDown { processes },
        };
        self.tell(&happening);
        self.effects.push(Effect::Scale(scale));
    }

    /// How many requests a process runs.
    pub fn running(&self) -> usize {
        self.running
    }

    /// Whether nothing is left to do after a shutdown.
    pub fn is_done(&self) -> bool {
        let waits_idle = self.soft_until.is_some() && self.options.soft_shutdown_on_idle;
        self.shutdown.phase() != Phase::Running
            && !waits_idle
            && self.pool_is_closed
            && self.requests.is_empty()
            && !self.has_set_aside()
            && self.continuations.is_empty()
    }

    /// How the shutdown stands.
    pub fn shutdown(&self) -> &Shutdown {
        &self.shutdown
    }

    /// Ids of revoked tasks, for the state database.
    pub fn revoked_ids(&self) -> Vec<String> {
        self.revoked.ids()
    }

    fn tell(&self, happening: &Happening<'_>) {
        if self.journal.writes(happening.level()) {
            self.journal.write(happening.record());
        }
    }

    fn is_told(&self, level: Level) -> bool {
        self.journal.writes(level)
    }

    fn settle(&mut self, key: RequestKey, fate: Fate) {
        let is_first = |request: &Request| !request.is_settled;
        if self.requests.get(&key).is_some_and(is_first) {
            self.remember_fate(key, fate);
        }
        let settlement = self
            .requests
            .get_mut(&key)
            .and_then(|request| request.settle(fate));
        if settlement.is_some() && matches!(fate, Fate::Reject | Fate::Requeue) {
            let requeue = fate == Fate::Requeue;
            self.task_event(key, &TaskEvent::Rejected { requeue }, self.read_at);
        }
        self.effects.extend(settlement.map(Effect::Settle));
    }

    /// Tells monitors of a task.
    fn task_event(&mut self, key: RequestKey, event: &TaskEvent<'_>, now: Now) {
        let Some(request) = self.requests.get(&key) else {
            return;
        };
        if let Some(events) = &mut self.remote.events
            && request.task.send_events
            && events.sends_tasks()
        {
            let members = event.members(&request.head.id);
            events.task(event.kind(), &members, &mut self.remote.clock, now);
        }
    }

    /// Moves a request to another stage.
    fn set_stage(&mut self, key: RequestKey, stage: Stage) {
        if let Some(request) = self.requests.get_mut(&key) {
            let before = std::mem::replace(&mut request.stage, stage);
            self.count(before, stage);
        }
    }

    /// Forgets a request.
    fn remove(&mut self, key: RequestKey) -> Option<Request> {
        let request = self.requests.remove(&key)?;
        self.by_tag.remove(&request.tag);
        self.forget_orphan(key);
        self.count(request.stage, Stage::Concluding);
        Some(request)
    }

    /// Keeps the numbers of busy and running requests true.
    fn count(&mut self, before: Stage, after: Stage) {
        let is_busy = |stage| {
            matches!(
                stage,
                Stage::Submitted { .. } | Stage::Running { .. } | Stage::Dying
            )
        };
        self.busy = self.busy + usize::from(is_busy(after)) - usize::from(is_busy(before));
        self.running =
            self.running + usize::from(after.is_running()) - usize::from(before.is_running());
    }

    /// A name for a hook that is about to be called.
    fn token(&mut self) -> HookToken {
        self.next_token += 1;
        HookToken(self.next_token - 1)
    }

    /// Has a hook called, and goes on when it has answered.
    fn call(&mut self, call: HookCall, continuation: Continuation) {
        let token = self.token();
        self.continuations.insert(token, continuation);
        self.effects.push(Effect::Call(token, call));
    }
}
