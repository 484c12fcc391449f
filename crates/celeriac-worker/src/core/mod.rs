//! The heart of the worker: one state machine that owns every request.
//!
//! It is told what happens (messages, the pool's events, answers of hooks, signals, time) and
//! answers with [`Effect`]s. It does no I/O and reads no clock, so that a test, or a simulator, can
//! make anything happen at any moment. [`crate::worker`] carries the effects out.

mod adopt;
mod bury;
mod bus;
mod command;
mod conclude;
mod control;
mod delay;
mod inspect;
mod lane;
mod limits;
mod memory;
mod receive;
mod remote;
mod revoke;
mod run;
mod scheduled;
mod stop;
mod successor;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytestring::ByteString;
use celeriac_config::TaskOptions;
use celeriac_core::broker::{Delivery, DeliveryTag, Fate, Settlement, Want};
use celeriac_core::bus::Outgoing;
use celeriac_core::clock::Now;
use celeriac_core::journal::{Journal, Level};
use celeriac_core::limit::{Asked, Holding};
use celeriac_core::pool::{Job, RequestKey};
use celeriac_core::queue::Queue;
use celeriac_protocol::{AcceptContent, Message, RateLimit};
use serde_json::{Map, Value};

use crate::admit::Admission;
use crate::admit::eta::Held;
use crate::admit::rate_limit::Buckets;
use crate::autoscale::Scale;
use crate::control::mingle::Mingle;
use crate::events::event::TaskEvent;
use crate::happening::Happening;
use crate::hooks::HookCall;
use crate::limit::Limits;
use crate::receive::consumer::Burial;
use crate::request::{Request, Stage};
use crate::revoked::Revoked;
use crate::shutdown::{Deadline, Phase, Shutdown, Signal};
use bury::Arrival;
use lane::Lane;
use limits::Limited;
use remote::Remote;

pub use bury::StoreOptions;
pub use lane::{Free, LaneOptions};
pub use remote::{Consumed, RemoteOptions};

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
    /// Its pools.
    pub lanes: Vec<LaneOptions>,
    /// Whether tasks beyond those that may wait for a rate limit go to the delay store, instead of staying in their queue with all others.
    pub spills_throttled: bool,
    /// Limits that all workers keep together.
    pub limits: Arc<Limits>,
    /// Names this worker among those that hold slots of limits.
    pub limit_holder: String,
    /// How many tasks may be held for their ETA.
    pub held_limit: Option<usize>,
    /// What becomes of messages that are to come later, or never to run; `None` where the broker keeps
    /// neither.
    pub store: Option<StoreOptions>,
    /// Whether messages that were fetched outlive the connection that fetched them.
    pub tags_outlive_connections: bool,
    /// Kill late-acknowledged tasks when the connection is lost.
    pub cancel_on_connection_loss: bool,
    /// How long a warm shutdown waits for tasks; `None` without end.
    pub shutdown_deadline: Option<Deadline>,
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
    /// Keep a dead letter, before anything that is told of its message after this.
    Bury(Box<Burial>),
    /// Tell the broker.
    Settle(Settlement),
    /// Ask the store of limits whether a request may begin.
    Acquire(RequestKey, Box<Asked>),
    /// Give back what a request holds of limits, after so long.
    GiveBack(RequestKey, Box<Holding>, Duration),
    /// Give a job to the pool of this lane.
    Submit(usize, Job),
    /// Have the pool of this lane end a job.
    Terminate(usize, RequestKey, i32),
    /// Have the soft time limit's exception raised in a job that runs.
    Interrupt {
        /// The lane that it is in.
        lane: usize,
        /// The job.
        key: RequestKey,
        /// Whether the task runs again unless it returns all the same; otherwise it has failed.
        requeues: bool,
    },
    /// Change the size of this lane's pool by so many processes.
    Scale(usize, Scale),
    /// Have so many processes of this lane's pool leave when their job is done.
    Shrink(usize, usize),
    /// Replace the processes of all pools.
    RestartPools,
    /// Consume from a further queue, in this lane.
    AddQueue(usize, Queue),
    /// Consume from this queue no more, whichever lane did.
    CancelQueue(String),
    /// Send a command to all nodes.
    Broadcast(Message),
    /// Send something over the bus that is written already.
    Send(Outgoing),
    /// Have the broker tell what it keeps of revokes since then, in seconds since 1970, before it
    /// is asked for further messages.
    ReadRevokes(f64),
    /// Have the broker tell of so many messages in its delay store, for the queues of this lane.
    ReadDelayed(usize, HookToken, usize),
    /// Have all pools finish their jobs and end.
    ClosePools,
    /// Have all pools end now.
    KillPools,
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
    /// `task_received` was sent for a request of this lane.
    Received(usize, RequestKey, Admission),
    /// The body of a message was opened.
    V1Opened(Arrival),
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
    limited: Limited,
    lanes: Vec<Lane>,
    revoked: Revoked,
    continuations: HashMap<HookToken, Continuation>,
    /// How the process of a lost task ended, while it is asked whether the task had succeeded.
    losses: HashMap<RequestKey, conclude::Loss>,
    next_key: u64,
    next_token: u64,
    shutdown: Shutdown,
    soft_until: Option<Duration>,
    accepted: u64,
    remote: Remote,
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
            lanes: options
                .lanes
                .iter()
                .map(|lane| Lane::new(lane.clone(), now.monotonic))
                .collect(),
            shutdown: Shutdown::new(options.term_is_quit, options.shutdown_deadline),
            revoked: set,
            options,
            journal,
            requests: HashMap::new(),
            by_tag: HashMap::new(),
            held: Held::default(),
            limited: Limited::default(),
            continuations: HashMap::new(),
            losses: HashMap::new(),
            next_key: 1,
            next_token: 1,
            soft_until: None,
            accepted: 0,
            remote,
            rusage: Map::new(),
            read_at: now,
            effects: Vec::new(),
        }
    }

    /// What is to be done, in order.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// How many messages are wanted in a lane, with a pool that can take `free` jobs.
    pub fn want(&self, lane: usize, free: usize) -> Want {
        let here = &self.lanes[lane];
        if here.is_connected && matches!(self.shutdown.phase(), Phase::Warm | Phase::Soft) {
            // Nothing begins any more, but what runs may have lost its connection.
            let sought = self.sought(lane);
            return Want {
                runnable: sought,
                total: sought,
            };
        }
        let stops = !here.is_connected
            || self.shutdown.phase() != Phase::Running
            || self.waits_for_main()
            || here.throttled >= here.options.throttled_limit && !self.spills_throttled()
            || self.limited.is_full() && self.options.store.is_none();
        let room = self.options.held_limit.map_or(FETCHED_AT_ONCE, |limit| {
            FETCHED_AT_ONCE.min(limit.saturating_sub(self.held.len()))
        });
        let runnable = self
            .capacity(lane, free)
            .saturating_sub(here.ready.len() + here.announced + self.limited.asking())
            .saturating_add(self.sought(lane))
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
    fn capacity(&self, lane: usize, free: usize) -> usize {
        let lane = &self.lanes[lane];
        let scale = lane.options.autoscale;
        let capacity = scale.map_or(free, |scale| free.max(scale.max.saturating_sub(lane.busy)));
        if self.shortage().is_none() {
            return capacity;
        }
        // One at a time: that of one task ends it, or shows that others hold the memory.
        let busy: usize = self.lanes.iter().map(|lane| lane.busy).sum();
        capacity.min(1_usize.saturating_sub(busy))
    }

    /// A lane has reached the broker.
    pub fn connected(&mut self, lane: usize, now: Now) {
        self.read_at = now;
        self.lanes[lane].is_connected = true;
        self.search_for_orphans(lane, now);
    }

    /// A lane has lost its connection to the broker.
    pub fn disconnected(&mut self, lane: usize) {
        self.lanes[lane].is_connected = false;
        if self.options.cancel_on_connection_loss {
            self.cancel_unsettled(lane);
        }
        if !self.options.tags_outlive_connections {
            self.forget_fetched(lane);
        }
    }

    /// Messages came through a lane.
    pub fn delivered(&mut self, lane: usize, deliveries: Vec<Delivery>, free: Free<'_>, now: Now) {
        self.read_at = now;
        if self.shutdown.phase() != Phase::Running {
            // They were under way when the shutdown began, or belong to what still runs.
            for delivery in deliveries {
                self.adopt_or_give_back(lane, &delivery, now);
            }
            self.end_search();
            return;
        }
        for delivery in deliveries {
            self.receive(lane, delivery, now);
        }
        if let Some(scale) = &mut self.lanes[lane].options.autoscale {
            scale.received(now.monotonic);
        }
        self.scale(now);
        self.dispatch(free, now);
    }

    /// Until then nobody else is given what a lane has fetched; `None` for as long as the
    /// connection lasts.
    pub fn leased(&mut self, lane: usize, until: Option<Duration>, free: Free<'_>, now: Now) {
        self.read_at = now;
        self.lanes[lane].leased_until = until;
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
            request.is_taken = true;
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
        free: Free<'_>,
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
        let orders = self.shutdown.signal(signal, now.monotonic);
        self.shut_down(orders, now);
    }

    /// The worker can't go on: tasks that run may finish.
    pub fn failed(&mut self, now: Now) {
        let orders = self.shutdown.fail(now.monotonic);
        self.shut_down(orders, now);
    }

    /// Does what has come due.
    pub fn tick(&mut self, free: Free<'_>, now: Now) {
        self.read_at = now;
        if self.soft_until.is_some_and(|at| at <= now.monotonic) {
            self.cold_shutdown();
        }
        while let Some(order) = self.shutdown.came_due(now.monotonic) {
            self.shut_down(vec![order], now);
        }
        self.end_mingle(now);
        self.end_waiting_for_store(now);
        self.look_for_missed(now);
        self.end_search();
        while let Some(key) = self.held.take_due(now.wall) {
            self.eta_came(key, now);
        }
        for key in self.buckets.take_due(now.monotonic) {
            self.pass_limits(key, true, now);
        }
        self.ask_again(now);
        self.scale(now);
        self.dispatch(free, now);
    }

    /// The size of a lane's pool has changed.
    pub fn pool_resized(&mut self, lane: usize, size: usize) {
        self.lanes[lane].pool_size = size;
    }

    /// The wanted number of processes of all pools.
    pub(crate) fn pool_size(&self) -> usize {
        self.lanes.iter().map(|lane| lane.pool_size).sum()
    }

    /// How long until [`Core::tick`] has something to do, unless something happens before.
    pub fn next_tick(&mut self, now: Now) -> Option<Duration> {
        let soft = self.soft_until.map(|at| at.saturating_sub(now.monotonic));
        let deadline = self.shutdown.next_due();
        let deadline = deadline.map(|at| at.saturating_sub(now.monotonic));
        // Somebody may set the clock.
        let held = self.held.next().map(|at| now.until(at).min(CLOCK_IS_READ));
        let throttled = self.buckets.next(now.monotonic);
        let limited = self.limited.next();
        let limited = limited.map(|at| at.saturating_sub(now.monotonic));
        // A worker that ends has its processes leave as they are done.
        let scales = self.shutdown.phase() == Phase::Running;
        let scaled = self
            .lanes
            .iter()
            .filter(|lane| lane.options.autoscale.is_some());
        let scale = scaled
            .map(|lane| lane.next_scale.saturating_sub(now.monotonic))
            .min()
            .filter(|_| scales);
        // While messages of running tasks are looked for, nothing goes back.
        let searches = (0..self.lanes.len()).map(|lane| self.searches(lane));
        let releases = self.lanes.iter().zip(searches);
        let release = releases
            .filter_map(|(lane, searches)| lane.next_release.filter(|_| !searches))
            .min();
        let release = release.map(|at| at.saturating_sub(now.monotonic));
        let mingle = self.remote.mingle.as_ref().map(Mingle::until);
        let look = self.remote.options.gossips.then_some(self.remote.next_look);
        let search = self.search_until();
        let store = self.remote.store_until;
        let bus = [mingle, store, look, search].into_iter().flatten().min();
        let bus = bus.map(|at| at.saturating_sub(now.monotonic));
        [
            soft, deadline, held, throttled, limited, scale, release, bus,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Starts or ends processes, as many as there is work for.
    fn scale(&mut self, now: Now) {
        if self.shutdown.phase() != Phase::Running {
            return;
        }
        for at in 0..self.lanes.len() {
            let lane = &mut self.lanes[at];
            let requests = lane.busy + lane.ready.len();
            let processes = lane.pool_size;
            let Some(autoscale) = &mut lane.options.autoscale else {
                continue;
            };
            lane.next_scale = now.monotonic + autoscale.keepalive;
            let Some(scale) = autoscale.decide(requests, processes, now.monotonic) else {
                continue;
            };
            let happening = match scale {
                Scale::Up(processes) => Happening::ScalingUp { processes },
                Scale::Down(processes) => Happening::ScalingDown { processes },
            };
            self.tell(&happening);
            self.effects.push(Effect::Scale(at, scale));
        }
    }

    /// How many requests a process runs.
    pub fn running(&self) -> usize {
        self.lanes.iter().map(|lane| lane.running).sum()
    }

    /// How many queues are consumed.
    pub fn queues(&self) -> usize {
        self.remote.queues.len()
    }

    /// Whether so many hooks wait for main that nothing is fetched.
    pub fn waits_for_main(&self) -> bool {
        self.continuations.len() >= HOOKS_IN_FLIGHT
    }

    /// Whether nothing is kept of any message: so it has to be when all is done.
    pub fn holds_nothing(&self) -> bool {
        self.requests.is_empty()
            && self.by_tag.is_empty()
            && self.held.is_empty()
            && self.buckets.is_empty()
            && self.continuations.is_empty()
            && self.losses.is_empty()
            && self.lanes.iter().all(Lane::holds_nothing)
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
        // What is only delayed was not refused.
        let known = self
            .requests
            .get(&key)
            .map(|request| request.head.marks.deaths);
        let requeue = match fate {
            Fate::Delay(delay) => known.is_some_and(|known| delay.marks.deaths > known),
            fate => fate == Fate::Requeue,
        };
        if settlement.is_some() && requeue {
            self.limited_retried(key);
        }
        if settlement.is_some() && (requeue || fate == Fate::Reject) {
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
            self.lanes[request.lane].count(before, stage);
        }
    }

    /// Forgets a request.
    fn remove(&mut self, key: RequestKey) -> Option<Request> {
        let request = self.requests.remove(&key)?;
        self.by_tag.remove(&request.tag);
        self.lanes[request.lane].adoption.forget_orphan(key);
        self.limited_ended(key);
        self.lanes[request.lane].count(request.stage, Stage::Concluding);
        Some(request)
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
