//! A worker's core with a pool and hooks that do what a test says.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use celeriac_config::TaskOptions;
use celeriac_core::broker::{Delivery, DeliveryTag, Fate};
use celeriac_core::clock::Now;
use celeriac_core::journal::{Journal, Level, Record};
use celeriac_core::limit::{Answer, Asked, Holding};
use celeriac_core::pool::{Job, Outcome, PoolEvent, RequestKey};
use celeriac_core::revokes::RevokeStore;
use celeriac_protocol::message::DeliveryInfo;
use celeriac_protocol::{AcceptContent, Message, RateLimit};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Value, json};

use crate::core::{Consumed, Core, Effect, HookToken, LaneOptions, Options, RemoteOptions};
use crate::events::EventOptions;
use crate::hooks::HookCall;

/// The wall clock at the start of every scene.
pub(super) const START: &str = "2026-01-01T00:00:00Z";
/// The process that runs everything.
pub(super) const PID: u32 = 100;

#[derive(Default)]
struct Pages(Mutex<Vec<Record>>);

impl Journal for Pages {
    fn writes(&self, _: Level) -> bool {
        true
    }

    fn write(&self, record: Record) {
        self.0.lock().unwrap().push(record);
    }
}

/// A core, and all that it has decided.
pub(super) struct Scene {
    pub(super) core: Core,
    pub(super) now: Now,
    pub(super) free: usize,
    journal: Arc<Pages>,
    /// What the broker was told, in order.
    pub(super) settled: Vec<(u64, Fate)>,
    /// What the pool was given, and has not ended.
    pub(super) jobs: Vec<Job>,
    /// Hooks whose answers are awaited, in order.
    pub(super) awaited: Vec<(HookToken, HookCall)>,
    /// All hooks that were called, by name.
    pub(super) hooks: Vec<&'static str>,
    /// Hooks that were called without a wish for an answer, in order.
    pub(super) told: Vec<HookCall>,
    /// What the store of limits was asked and has not answered, in order.
    pub(super) asked: Vec<(RequestKey, Asked)>,
    /// What it was given back, in order.
    pub(super) given_back: Vec<(RequestKey, Holding, Duration)>,
    /// Everything else.
    pub(super) others: Vec<Effect>,
}

pub(super) fn options(tasks: impl IntoIterator<Item = (&'static str, TaskOptions)>) -> Options {
    let tasks = tasks
        .into_iter()
        .map(|(name, options)| (name.into(), Arc::new(options)));
    Options {
        hostname: "celery@here".to_owned(),
        tasks: tasks.collect(),
        rate_limits: Vec::new(),
        limits_rates: true,
        accept: AcceptContent::new(["application/json".to_owned()]),
        lanes: lane(|_| ()),
        spills_throttled: false,
        limits: Arc::default(),
        limit_holder: "here".to_owned(),
        held_limit: None,
        store: None,
        tags_outlive_connections: true,
        cancel_on_connection_loss: false,
        shutdown_deadline: None,
        soft_shutdown_timeout: Duration::ZERO,
        soft_shutdown_on_idle: false,
        term_is_quit: false,
        signals_received: false,
        signals_rejected: true,
        received_format: "Task %(name)s[%(id)s] received".to_owned(),
        remote: RemoteOptions {
            pid: PID,
            events: Some(EventOptions {
                hostname: "celery@here".to_owned(),
                pid: PID,
                task_events: true,
                time_zone: TimeZone::UTC,
            }),
            mingles: true,
            revoke_store: Some(RevokeStore::Elsewhere),
            keeps_stamps: true,
            revokes: (50_000, Duration::from_hours(3)),
            gossips: false,
            heartbeat: 2.0,
            plain_replies: true,
            plain_events: true,
            reply_exchange: "reply.celery.pidbox".to_owned(),
            commands: ["conf", "mine"].map(str::to_owned).into(),
            overridden: HashSet::new(),
            broker_info: json!({"transport": "memory"}),
            queues: vec![Consumed {
                name: "celery".to_owned(),
                info: json!({"name": "celery"}),
                lane: 0,
            }],
            software: ["py-celery", "5", "Linux"].map(str::to_owned),
        },
    }
}

/// The only lane of a worker, changed in some way.
pub(super) fn lane(change: impl FnOnce(&mut LaneOptions)) -> Vec<LaneOptions> {
    let mut lane = LaneOptions {
        throttled_limit: 4,
        ..LaneOptions::default()
    };
    change(&mut lane);
    vec![lane]
}

impl Scene {
    /// One task, `t`, with these options, and a pool for one job.
    pub(super) fn with(task: TaskOptions) -> Self {
        Self::new(options([("t", task)]), 1)
    }

    pub(super) fn new(options: Options, free: usize) -> Self {
        let now = Now {
            wall: START.parse().unwrap(),
            monotonic: Duration::from_secs(1000),
        };
        let journal = Arc::new(Pages::default());
        let mut core = Core::new(options, [], Arc::clone(&journal) as Arc<dyn Journal>, now);
        core.pool_resized(0, free);
        core.connected(0, now);
        Self {
            core,
            now,
            free,
            journal,
            settled: Vec::new(),
            jobs: Vec::new(),
            awaited: Vec::new(),
            hooks: Vec::new(),
            told: Vec::new(),
            asked: Vec::new(),
            given_back: Vec::new(),
            others: Vec::new(),
        }
    }

    /// Takes what the core decided.
    pub(super) fn look(&mut self) {
        for effect in self.core.take_effects() {
            match effect {
                Effect::Settle(settlement) => {
                    self.settled.push((settlement.tag.0, settlement.fate));
                }
                Effect::Submit(_, job) => {
                    self.free = self.free.checked_sub(1).expect("there is room for a job");
                    self.jobs.push(job);
                }
                Effect::Call(token, call) => {
                    self.hooks.push(name_of(&call));
                    self.awaited.push((token, call));
                }
                Effect::Tell(call) => {
                    self.hooks.push(name_of(&call));
                    self.told.push(call);
                }
                Effect::Acquire(key, asked) => self.asked.push((key, *asked)),
                Effect::GiveBack(key, holding, held) => {
                    self.given_back.push((key, *holding, held));
                }
                other => self.others.push(other),
            }
        }
    }

    /// A message of protocol 2 comes, with more headers than `task` and `id`.
    pub(super) fn deliver(&mut self, tag: u64, headers: Value) {
        let mut all = json!({"task": "t", "id": format!("id-{tag}")});
        let (Value::Object(all_members), Value::Object(headers)) = (&mut all, headers) else {
            panic!("headers are an object");
        };
        all_members.extend(headers);
        self.deliver_message(tag, message(&all.to_string(), "[[], {}, {}]"));
    }

    pub(super) fn deliver_message(&mut self, tag: u64, message: Message) {
        let delivery = Delivery {
            tag: DeliveryTag(tag),
            queue: "celery".into(),
            message: Ok(message),
        };
        let free = [self.free];
        self.core.delivered(0, vec![delivery], &free, self.now);
        self.look();
    }

    /// The pool tells.
    pub(super) fn tell(&mut self, events: impl IntoIterator<Item = PoolEvent>) {
        let events: Vec<PoolEvent> = events.into_iter().collect();
        for event in &events {
            if let PoolEvent::Finished { key, .. }
            | PoolEvent::Lost { key, .. }
            | PoolEvent::Returned { key } = event
            {
                self.jobs.retain(|job| job.key != *key);
                self.free += 1;
            }
        }
        self.core.pool_told(0, events, &[self.free], self.now);
        self.look();
    }

    /// The first job of the pool begins.
    pub(super) fn begin(&mut self) -> RequestKey {
        let key = self.jobs[0].key;
        self.tell([PoolEvent::Started { key, pid: PID }]);
        key
    }

    pub(super) fn finish(&mut self, key: RequestKey, outcome: Outcome) {
        self.tell([PoolEvent::Finished { key, outcome }]);
    }

    /// The hook that was asked for first answers.
    pub(super) fn answer(&mut self, answer: Result<Value, String>) {
        let (token, _) = self.awaited.remove(0);
        self.core.answered(token, answer, &[self.free], self.now);
        self.look();
    }

    /// The store of limits answers what it was asked first; `None` when it can't be reached.
    pub(super) fn answer_limits(&mut self, answer: Option<Answer>) {
        let (key, _) = self.asked.remove(0);
        let (free, now) = ([self.free], self.now);
        self.core.limits_answered(key, answer, 500, &free, now);
        self.look();
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now.monotonic += time;
        self.now.wall += time;
        self.core.tick(&[self.free], self.now);
        self.look();
    }

    /// What the log says, without its levels.
    pub(super) fn log(&self) -> Vec<String> {
        let pages = self.journal.0.lock().unwrap();
        pages.iter().map(|record| record.message.clone()).collect()
    }

    /// Each message with how often it was settled, for messages that were settled at all.
    pub(super) fn times_settled(&self) -> HashMap<u64, usize> {
        let mut times = HashMap::new();
        for (tag, _) in &self.settled {
            *times.entry(*tag).or_default() += 1;
        }
        times
    }

    pub(super) fn running_keys(&self) -> HashSet<RequestKey> {
        self.jobs.iter().map(|job| job.key).collect()
    }
}

/// So many seconds after the start of the scene, as a header has it.
pub(super) fn at(seconds: u8) -> String {
    let start: Timestamp = START.parse().unwrap();
    (start + Duration::from_secs(seconds.into())).to_string()
}

pub(super) fn limited(rate: &str) -> Options {
    let rate = RateLimit::parse(rate).unwrap().unwrap();
    Options {
        rate_limits: vec![("t".into(), rate)],
        ..options([("t", TaskOptions::default())])
    }
}

pub(super) fn message(headers: &str, body: &str) -> Message {
    Message {
        body: body.to_owned().into(),
        content_type: Some("application/json".into()),
        content_encoding: Some("utf-8".into()),
        headers: headers.to_owned().into(),
        properties: "{}".into(),
        delivery_info: DeliveryInfo::default(),
    }
}

/// Celery's name for what the hook does.
pub(super) fn name_of(call: &HookCall) -> &'static str {
    match call {
        HookCall::StartSteps(_) => "start_steps",
        HookCall::CloseSteps => "close_steps",
        HookCall::EndSteps { .. } => "end_steps",
        HookCall::HeartbeatSent => "heartbeat_sent",
        HookCall::WorkerReady => "worker_ready",
        HookCall::WorkerShuttingDown { .. } => "worker_shutting_down",
        HookCall::WorkerShutdown => "worker_shutdown",
        HookCall::Terminating => "terminating",
        HookCall::Cry => "cry",
        HookCall::SaveState { .. } => "save_state",
        HookCall::OpenV1(_) => "open_v1",
        HookCall::TaskReceived(_) => "task_received",
        HookCall::TaskRejected { .. } => "task_rejected",
        HookCall::TaskUnknown { .. } => "task_unknown",
        HookCall::TaskRevoked { .. } => "task_revoked",
        HookCall::SuccessWasStored(_) => "success_was_stored",
        HookCall::RetryLost { .. } => "retry_lost",
        HookCall::Lost { .. } => "lost",
        HookCall::TimedOut { .. } => "timed_out",
        HookCall::Rejected { .. } => "rejected",
        HookCall::Raised { .. } => "raised",
        HookCall::Cancelled { .. } => "cancelled",
        HookCall::Notify { method, .. } => method,
        HookCall::ControlCommand { .. } => "control_command",
        HookCall::ControlOpen(_) => "control_open",
        HookCall::EncodeReply(_) => "encode_reply",
        HookCall::EncodeEvent(_) => "encode_event",
        HookCall::MarkRevoked { .. } => "mark_revoked",
        HookCall::LoadRevoked => "revoked_store_load",
        HookCall::KeepRevoked { .. } => "revoked_store_add",
        HookCall::AddRevoked { .. } => "add_revoked",
        HookCall::SetEventGroups { .. } => "set_event_groups",
        HookCall::SetPoolSize { .. } => "set_pool_size",
        HookCall::SetTaskAttributes { .. } => "set_task_attributes",
        HookCall::SelectQueue { .. } => "select_queue",
        HookCall::DeselectQueue { .. } => "deselect_queue",
        HookCall::CallTask { .. } => "call_task",
    }
}
