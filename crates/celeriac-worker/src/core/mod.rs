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

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytestring::ByteString;
use celeriac_config::TaskOptions;
use celeriac_core::broker::{Delivery, DeliveryTag, Fate, Settlement, Want};
use celeriac_core::bus::Outgoing;
use celeriac_core::clock::Now;
use celeriac_core::journal::{Journal, Level};
use celeriac_core::limit::{Asked, Holding};
use celeriac_core::pool::{Job, RequestKey, Shortage};
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
use crate::limit::Limits;
use crate::receive::consumer::Burial;
use crate::request::{Request, Stage};
use crate::revoked::Revoked;
use crate::shutdown::{Deadline, Phase, Shutdown, Signal};
use adopt::Adoption;
use bury::Arrival;
use limits::Limited;
use remote::Remote;

pub use bury::StoreOptions;
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
    /// Whether those beyond go to the delay store, instead of staying in their queue with all others.
    pub spills_throttled: bool,
    /// Limits that all workers keep together.
    pub limits: Arc<Limits>,
    /// Names this worker among those that hold slots of limits.
    pub limit_holder: String,
    /// How many tasks may be held for their ETA.
    pub held_limit: Option<usize>,
    /// Bounds of the pool, if it is scaled.
    pub autoscale: Option<Autoscale>,
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
    /// Give a job to the pool.
    Submit(Job),
    /// Have the pool end a job.
    Terminate(RequestKey, i32),
    /// Have the soft time limit's exception raised in a job that runs.
    Interrupt {
        /// The job.
        key: RequestKey,
        /// Whether the task runs again unless it returns all the same; otherwise it has failed.
        requeues: bool,
    },
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
    /// Have the broker tell of so many messages in its delay store.
    ReadDelayed(HookToken, usize),
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
    /// Requests that may begin, and since when.
    ready: VecDeque<(RequestKey, Duration)>,
    /// Before this none of them has waited for too long that could be given back; `None` when all
    /// are bound to this worker.
    next_release: Option<Duration>,
    /// Until when nobody else is given what is fetched; `None` where no time ends that.
    leased_until: Option<Duration>,
    revoked: Revoked,
    continuations: HashMap<HookToken, Continuation>,
    /// How the process of a lost task ended, while it is asked whether the task had succeeded.
    losses: HashMap<RequestKey, conclude::Loss>,
    next_key: u64,
    next_token: u64,
    is_connected: bool,
    /// Memory that is short: no tasks are fetched while one runs.
    shortage: Option<Shortage>,
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
            shutdown: Shutdown::new(options.term_is_quit, options.shutdown_deadline),
            revoked: set,
            options,
            journal,
            requests: HashMap::new(),
            by_tag: HashMap::new(),
            held: Held::default(),
            limited: Limited::default(),
            ready: VecDeque::new(),
            next_release: None,
            leased_until: None,
            continuations: HashMap::new(),
            losses: HashMap::new(),
            next_key: 1,
            next_token: 1,
            is_connected: false,
            shortage: None,
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
            || self.waits_for_main()
            || self.buckets.len() >= self.options.throttled_limit && !self.spills_throttled()
            || self.limited.is_full() && self.options.store.is_none();
        let room = self.options.held_limit.map_or(FETCHED_AT_ONCE, |limit| {
            FETCHED_AT_ONCE.min(limit.saturating_sub(self.held.len()))
        });
        let runnable = self
            .capacity(free)
            .saturating_sub(self.ready.len() + self.announced + self.limited.asking())
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
        let capacity = self
            .autoscale
            .map_or(free, |scale| free.max(scale.max.saturating_sub(self.busy)));
        match self.shortage {
            // One at a time: that of one task ends it, or shows that others hold the memory.
            Some(_) => capacity.min(1_usize.saturating_sub(self.busy)),
            None => capacity,
        }
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

    /// Until then nobody else is given what is fetched; `None` for as long as the connection lasts.
    pub fn leased(&mut self, until: Option<Duration>, free: usize, now: Now) {
        self.read_at = now;
        self.leased_until = until;
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
        let orders = self.shutdown.signal(signal, now.monotonic);
        self.shut_down(orders, now);
    }

    /// The worker can't go on: tasks that run may finish.
    pub fn failed(&mut self, now: Now) {
        let orders = self.shutdown.fail(now.monotonic);
        self.shut_down(orders, now);
    }

    /// Does what has come due.
    pub fn tick(&mut self, free: usize, now: Now) {
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

    /// The pool's size has changed.
    pub fn pool_resized(&mut self, size: usize) {
        self.pool_size = size;
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
        let scale = self
            .autoscale
            .filter(|_| scales)
            .map(|_| self.next_scale.saturating_sub(now.monotonic));
        // While messages of running tasks are looked for, nothing goes back.
        let release = self.next_release.filter(|_| !self.searches());
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
            && self.ready.is_empty()
            && self.continuations.is_empty()
            && self.losses.is_empty()
            && self.orphans() == 0
            && (self.busy, self.running, self.announced) == (0, 0, 0)
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
            self.count(before, stage);
        }
    }

    /// Forgets a request.
    fn remove(&mut self, key: RequestKey) -> Option<Request> {
        let request = self.requests.remove(&key)?;
        self.by_tag.remove(&request.tag);
        self.forget_orphan(key);
        self.limited_ended(key);
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
