//! Messages that come again because their connection was lost, while their tasks run here or are
//! done: the tasks take them over instead of running again.
//!
//! For brokers whose tags die with their connection, such as RabbitMQ. Celery has nothing like it:
//! there a task whose connection is lost runs twice.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::{Hash as _, Hasher as _};
use std::time::Duration;

use bytestring::ByteString;
use celeriac_core::broker::{Delivery, DeliveryTag, Fate, Settlement};
use celeriac_core::clock::Now;
use celeriac_core::pool::RequestKey;
use celeriac_protocol::json::Object;
use celeriac_protocol::{Head, Message};

use super::{Core, Effect};
use crate::happening::Happening;
use crate::receive::decode::{self, Received};
use crate::receive::tags::connection_of;

/// How many settlements are remembered, and for how long.
const REMEMBERED: usize = 20_000;
const MEMORY: Duration = Duration::from_mins(10);
/// A broker that was killed may have forgotten that it had delivered a message. One that is not
/// marked as redelivered is taken for a message that is done when that was no longer ago.
const UNMARKED: Duration = Duration::from_mins(1);
/// For how long after a connection was made messages are fetched beyond what can run, to find those
/// that belong to running tasks before another worker does.
const SEARCH: Duration = Duration::from_secs(10);
/// How many others may be fetched in that search.
const FOUND: usize = 256;

/// What makes a message the same one. A broker may add headers to a copy, but changes neither its
/// body nor what makes it a task.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Identity {
    id: ByteString,
    /// Task, retries, ETA, body, when it was replayed, and what a task that replaces itself changes.
    hash: u64,
}

impl Identity {
    fn of(head: &Head, message: &Message) -> Self {
        let mut hasher = DefaultHasher::new();
        (&head.task, head.retries, head.eta, &message.body[..]).hash(&mut hasher);
        head.marks.replayed.hash(&mut hasher);
        let headers = Object::parse(&message.headers).unwrap_or_default();
        for name in ["replaced_task_nesting", "parent_id"] {
            headers.get(name).hash(&mut hasher);
        }
        Self {
            id: head.id.clone(),
            hash: hasher.finish(),
        }
    }
}

/// What the broker was told, or should have been told, of messages that may come again.
#[derive(Debug, Default)]
pub(super) struct Adoption {
    settled: HashMap<Identity, Settled>,
    order: VecDeque<(Duration, Identity)>,
    search_until: Option<Duration>,
    /// What else was found while the worker shuts down: given back when the search ends, or it would
    /// be found again and again.
    set_aside: Vec<DeliveryTag>,
    /// Requests whose messages will come again, if nobody else gets them.
    orphans: BTreeSet<RequestKey>,
}

#[derive(Debug, Clone, Copy)]
struct Settled {
    fate: Fate,
    /// The connection that was told, or was lost before.
    connection: u64,
    at: Duration,
}

impl Adoption {
    fn remember(&mut self, identity: Identity, settled: Settled) {
        let at = settled.at;
        self.order.push_back((at, identity.clone()));
        self.settled.insert(identity, settled);
        while self
            .order
            .front()
            .is_some_and(|(since, _)| *since + MEMORY < at)
            || self.order.len() > REMEMBERED
        {
            if let Some((since, identity)) = self.order.pop_front() {
                // One that was settled again since stands further back.
                if self.settled.get(&identity).is_some_and(|it| it.at == since) {
                    self.settled.remove(&identity);
                }
            }
        }
    }

    /// What became of a message that comes over another connection now.
    fn fate(
        &self,
        identity: &Identity,
        tag: DeliveryTag,
        is_marked: bool,
        now: Duration,
    ) -> Option<Fate> {
        let settled = self.settled.get(identity)?;
        let is_recent = settled.at + UNMARKED > now;
        let is_another = settled.connection != connection_of(tag);
        (is_another && (is_marked || is_recent)).then_some(settled.fate)
    }
}

impl Adoption {
    /// How many requests there are whose messages will come again, if nobody else gets them.
    pub(super) fn orphans(&self) -> usize {
        self.orphans.len()
    }

    /// The connection of a request's message is lost.
    pub(super) fn orphan(&mut self, key: RequestKey) {
        self.orphans.insert(key);
    }

    /// A request is no more.
    pub(super) fn forget_orphan(&mut self, key: RequestKey) {
        self.orphans.remove(&key);
    }
}

impl Core {
    /// Remembers what becomes of a request's message, should it come again.
    pub(super) fn remember_fate(&mut self, key: RequestKey, fate: Fate) {
        if self.options.tags_outlive_connections || !matches!(fate, Fate::Ack | Fate::Reject) {
            return;
        }
        let Some(request) = self.requests.get(&key) else {
            return;
        };
        let identity = Identity::of(&request.head, &request.message);
        let settled = Settled {
            fate,
            connection: connection_of(request.tag),
            at: self.read_at.monotonic,
        };
        let lane = request.lane;
        self.lanes[lane].adoption.remember(identity, settled);
    }

    /// Whether a message belongs to a task that runs, or ran: then it is dealt with.
    pub(super) fn adopts(
        &mut self,
        lane: usize,
        tag: DeliveryTag,
        head: &Head,
        message: &Message,
        now: Now,
    ) -> bool {
        if self.options.tags_outlive_connections {
            return false;
        }
        let identity = Identity::of(head, message);
        let is_same = |key: &RequestKey| {
            let request = self.requests.get(key);
            request.is_some_and(|request| {
                request.head.id == identity.id
                    && Identity::of(&request.head, &request.message) == identity
            })
        };
        let orphans = &self.lanes[lane].adoption.orphans;
        let orphan = orphans.iter().copied().find(is_same);
        if let Some(key) = orphan
            && let Some(request) = self.requests.get_mut(&key)
        {
            self.lanes[lane].adoption.orphans.remove(&key);
            request.tag = tag;
            request.is_lost = false;
            let is_settled = request.is_settled;
            self.by_tag.insert(tag, key);
            if let Some(request) = self.requests.get(&key) {
                self.tell(&Happening::Adopted { request });
            }
            if is_settled {
                // The broker was told so over the lost connection, and did not hear it.
                let fate = Fate::Ack;
                self.effects.push(Effect::Settle(Settlement { tag, fate }));
            }
            return true;
        }
        let is_marked = message.delivery_info.redelivered;
        let adoption = &self.lanes[lane].adoption;
        let fate = adoption.fate(&identity, tag, is_marked, now.monotonic);
        if let Some(fate) = fate {
            self.tell(&Happening::AlreadyDone {
                task: head.name(),
                id: &head.id,
            });
            self.effects.push(Effect::Settle(Settlement { tag, fate }));
        }
        fate.is_some()
    }

    /// A lane has a new connection: the messages of its running tasks are looked for.
    pub(super) fn search_for_orphans(&mut self, lane: usize, now: Now) {
        let adoption = &mut self.lanes[lane].adoption;
        adoption.search_until = (adoption.orphans() > 0).then(|| now.monotonic + SEARCH);
    }

    /// How many messages to fetch beyond what can run, to find those of running tasks.
    pub(super) fn sought(&self, lane: usize) -> usize {
        let here = &self.lanes[lane];
        let found = here.ready.len() + here.adoption.set_aside.len();
        if self.searches(lane) && found < FOUND {
            here.adoption.orphans()
        } else {
            0
        }
    }

    /// Whether messages of running tasks are looked for: what else was found is kept meanwhile.
    pub(super) fn searches(&self, lane: usize) -> bool {
        let is_on = |until: Duration| self.read_at.monotonic < until;
        self.lanes[lane].adoption.search_until.is_some_and(is_on)
    }

    /// Ends the searches of which all is found, or whose time is over.
    pub(super) fn end_search(&mut self) {
        for lane in 0..self.lanes.len() {
            let searches = self.searches(lane);
            let adoption = &mut self.lanes[lane].adoption;
            if adoption.search_until.is_some() && (adoption.orphans() == 0 || !searches) {
                adoption.search_until = None;
                for tag in std::mem::take(&mut adoption.set_aside) {
                    self.settle_message(tag, Fate::Release);
                }
            }
        }
    }

    /// A message came to a worker that shuts down: it is for a task that runs, or for another
    /// worker.
    pub(super) fn adopt_or_give_back(&mut self, lane: usize, delivery: &Delivery, now: Now) {
        let tag = delivery.tag;
        let head = match &delivery.message {
            Ok(message) if self.searches(lane) => decode::classify(message, &self.options.accept),
            _ => Received::Unknown,
        };
        if let (Received::Task(head), Ok(message)) = (&head, &delivery.message)
            && self.adopts(lane, tag, head, message, now)
        {
            return;
        }
        if self.searches(lane) {
            self.lanes[lane].adoption.set_aside.push(tag);
        } else {
            self.settle_message(tag, Fate::Release);
        }
    }

    /// Whether messages are still to be given back.
    pub(super) fn has_set_aside(&self) -> bool {
        let mut lanes = self.lanes.iter();
        lanes.any(|lane| !lane.adoption.set_aside.is_empty())
    }

    /// When the next search ends at the latest.
    pub(super) fn search_until(&self) -> Option<Duration> {
        let lanes = self.lanes.iter();
        lanes.filter_map(|lane| lane.adoption.search_until).min()
    }
}
