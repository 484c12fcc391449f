//! What a worker has for remote control and events.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use bytestring::ByteString;
use celeriac_core::bus::Outgoing;
use celeriac_core::revokes::RevokeStore;
use celeriac_protocol::{Head, TimeLimits};
use serde_json::Value;

use super::HookToken;
use super::scheduled::Listing;
use super::successor::Changes;
use crate::control::gossip::Gossip;
use crate::control::mailbox::Address;
use crate::control::mingle::Mingle;
use crate::events::clock::LamportClock;
use crate::events::{Dispatcher, EventOptions};
use crate::hooks::HookCall;

/// What does not change while a worker lives.
#[derive(Debug, Clone)]
pub struct RemoteOptions {
    /// The worker's process.
    pub pid: u32,
    /// Which events are sent; `None` when none are.
    pub events: Option<EventOptions>,
    /// Whether the other workers are greeted at the start.
    pub mingles: bool,
    /// The store that all workers share in which revoked ids are kept; `None` for nowhere.
    pub revoke_store: Option<RevokeStore>,
    /// Whether revoked stamps are kept there as well.
    pub keeps_stamps: bool,
    /// How many revoked ids are known at most, and how long those that are too many are kept
    /// (`CELERY_WORKER_REVOKES_MAX`, `CELERY_WORKER_REVOKE_EXPIRES`).
    pub revokes: (usize, Duration),
    /// Whether the events of the other workers are heard.
    pub gossips: bool,
    /// Seconds between heartbeats, as they tell it themselves.
    pub heartbeat: f64,
    /// Whether replies are plain JSON (`task_serializer`); others are written by main.
    pub plain_replies: bool,
    /// Whether events are plain JSON (`event_serializer`); others are written by main.
    pub plain_events: bool,
    /// The exchange of replies.
    pub reply_exchange: String,
    /// Commands that main knows: user commands, and those of Celery's that need Python.
    pub commands: HashSet<String>,
    /// Those of them that the app has registered itself, whatever Celery has by these names.
    pub overridden: HashSet<String>,
    /// What `inspect stats` tells of the broker.
    pub broker_info: Value,
    /// The queues that are consumed at the start.
    pub queues: Vec<Consumed>,
    /// `sw_ident`, `sw_ver`, `sw_sys` of events.
    pub software: [String; 3],
}

/// A queue that is consumed.
#[derive(Debug, Clone)]
pub struct Consumed {
    /// Its name.
    pub name: String,
    /// What `inspect active_queues` tells of it.
    pub info: Value,
    /// The lane that consumes it.
    pub lane: usize,
}

/// What changes.
#[derive(Debug)]
pub(super) struct Remote {
    pub(super) options: RemoteOptions,
    pub(super) clock: LamportClock,
    /// Without a bus there is nobody to tell.
    pub(super) events: Option<Dispatcher>,
    pub(super) gossip: Gossip,
    /// When absent workers are looked for.
    pub(super) next_look: Duration,
    pub(super) mingle: Option<Mingle>,
    /// Until when the store of revokes is waited for.
    pub(super) store_until: Option<Duration>,
    /// Replies and encodings that main works on.
    pub(super) awaited: HashMap<HookToken, Awaited>,
    /// Those who wait for a list of what is scheduled.
    pub(super) listings: HashMap<HookToken, Listing>,
    pub(super) outgoing: Vec<Outgoing>,
    /// Queues that are consumed.
    pub(super) queues: Vec<Consumed>,
    /// How often each task has begun.
    pub(super) totals: HashMap<String, u64>,
    /// How many tasks came, or had their turn, when their time was over.
    pub(super) expired: u64,
    pub(super) started: Duration,
    /// The limits that tasks were declared with whose limits a command has changed.
    pub(super) declared_limits: HashMap<ByteString, TimeLimits>,
    /// What commands have changed in main.
    pub(super) changes: Changes,
}

/// What main was asked for on behalf of the bus. Nothing of the worker waits for it.
#[derive(Debug)]
pub(super) enum Awaited {
    /// To open a command.
    Command,
    /// To carry out a command.
    Reply(Address),
    /// To write a message.
    Encoding(Box<Outgoing>),
    /// To make a queue of the arguments of `add_consumer` for this lane: by this call, for the queue
    /// of this name.
    Queue(usize, String, HookCall),
    /// To store that tasks are revoked.
    Stored,
    /// To tell what the store of revokes holds.
    Revokes,
}

impl Remote {
    /// Leaves only those limits in a message that its caller has chosen. Celery's clients write the
    /// declared ones into each message, which would outdo a command that has changed them.
    pub(super) fn forget_declared_limits(&self, head: &mut Head) {
        if self.declared_limits.get(&head.task) == Some(&head.time_limits) {
            head.time_limits = TimeLimits::default();
        }
    }

    pub(super) fn new(options: RemoteOptions, now: Duration) -> Self {
        Self {
            events: options.events.clone().map(Dispatcher::new),
            queues: options.queues.clone(),
            options,
            clock: LamportClock::default(),
            gossip: Gossip::default(),
            next_look: now,
            mingle: None,
            store_until: None,
            awaited: HashMap::new(),
            listings: HashMap::new(),
            outgoing: Vec::new(),
            totals: HashMap::new(),
            expired: 0,
            started: now,
            declared_limits: HashMap::new(),
            changes: Changes::default(),
        }
    }
}
