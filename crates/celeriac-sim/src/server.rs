//! What the simulated broker keeps, and who has what of it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use celeriac_core::broker::{Delay, Fate, Settlement, Want};
use celeriac_protocol::{Head, Marks, Message, json};
use jiff::Timestamp;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::auditor::{Auditor, Serial};
use crate::plan::{Mutation, Plan};
use crate::process::ProcessId;

/// A worker that was silent for so long is dead, if others were not.
pub(crate) const DEAD_AFTER: Duration = Duration::from_secs(10);
/// Between two signs of life.
pub(crate) const BEAT: Duration = Duration::from_secs(1);
/// When nobody was heard for so long, the broker itself was away.
const PULSE_GAP: Duration = Duration::from_secs(5);
/// Between two renewals of each claim, where they are renewed one by one.
const RENEWAL: Duration = Duration::from_secs(10);
/// How long a message stays in the delay store at least: as in the real ones.
const SOONEST: Duration = Duration::from_secs(1);
/// How long a settlement may be on its way where nothing confirms it.
const UNCONFIRMED: Duration = Duration::from_millis(40);

pub(crate) type SessionId = u64;

/// Who has a message: a worker, over one of its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Claim {
    process: ProcessId,
    session: SessionId,
    tag: u64,
}

#[derive(Debug)]
struct Kept {
    message: Message,
    eta: Option<Timestamp>,
    /// It is in the delay store until then, and for a second at least.
    delayed: Option<(Timestamp, Instant)>,
    claim: Option<Claim>,
}

/// A connection, as the broker knows it.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) process: ProcessId,
    /// What was told and has not arrived.
    on_the_way: Vec<(Instant, Settlement)>,
}

pub(crate) struct Server {
    is_leased: bool,
    messages: BTreeMap<Serial, Kept>,
    queue: VecDeque<Serial>,
    pub(crate) connections: BTreeMap<SessionId, Connection>,
    /// When each worker has last given a sign of life.
    seen: BTreeMap<ProcessId, Instant>,
    pulse: Option<Instant>,
    pub(crate) is_up: bool,
    pub(crate) arrived: Arc<Notify>,
    pub(crate) revokes: Vec<String>,
    next_tag: u64,
    next_session: SessionId,
}

/// What a worker's client knows of its claims, which outlives its connections.
#[derive(Debug, Default)]
pub(crate) struct Known {
    tags: BTreeSet<u64>,
    renewed: Option<Instant>,
}

impl Server {
    pub(crate) fn new(plan: &Plan) -> Self {
        Self {
            is_leased: plan.is_leased(),
            messages: BTreeMap::new(),
            queue: VecDeque::new(),
            connections: BTreeMap::new(),
            seen: BTreeMap::new(),
            pulse: None,
            is_up: true,
            arrived: Arc::new(Notify::new()),
            revokes: Vec::new(),
            next_tag: 1,
            next_session: 1,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Whether messages wait, at this moment of the broker's clock.
    pub(crate) fn has_waiting(&mut self, present: Timestamp) -> bool {
        let now = Instant::now();
        let is_due = |kept: &Kept| {
            kept.delayed
                .is_some_and(|(until, soonest)| until <= present && soonest <= now)
        };
        let due = self.messages.iter().filter(|(_, kept)| is_due(kept));
        let due: Vec<Serial> = due.map(|(serial, _)| *serial).collect();
        for serial in due {
            if let Some(kept) = self.messages.get_mut(&serial) {
                kept.delayed = None;
                self.queue.push_back(serial);
            }
        }
        !self.queue.is_empty()
    }

    pub(crate) fn publish(&mut self, serial: Serial, message: Message) {
        let head = json::Object::parse(&message.headers).ok();
        let head = head.and_then(|headers| Head::from_headers(&headers)?.ok());
        let kept = Kept {
            eta: head.and_then(|head| head.eta),
            message,
            delayed: None,
            claim: None,
        };
        self.messages.insert(serial, kept);
        self.queue.push_back(serial);
        self.arrived.notify_waiters();
    }

    pub(crate) fn connect(&mut self, process: ProcessId) -> SessionId {
        let session = self.next_session;
        self.next_session += 1;
        let on_the_way = Vec::new();
        let connection = Connection {
            process,
            on_the_way,
        };
        self.connections.insert(session, connection);
        if self.is_leased {
            self.seen.insert(process, Instant::now());
        }
        session
    }

    /// Settles, and hands out what is wanted: tags, serials and messages.
    pub(crate) fn exchange(
        &mut self,
        session: SessionId,
        (settlements, want): (&[Settlement], Want),
        (wall, present): (Timestamp, Timestamp),
        plan: &Plan,
        auditor: &mut Auditor,
        delay: bool,
    ) -> Vec<(u64, Serial, Message)> {
        self.arrive(session, auditor, plan, true);
        let process = self.connections[&session].process;
        for settlement in settlements {
            if !self.is_leased && delay {
                let due = Instant::now() + UNCONFIRMED;
                if let Some(connection) = self.connections.get_mut(&session) {
                    connection.on_the_way.push((due, *settlement));
                }
            } else {
                self.settle(process, session, *settlement, plan, auditor);
            }
        }
        self.has_waiting(present);
        let mut handed = Vec::new();
        let mut runnable = want.runnable;
        if self.is_leased && !want.is_none() {
            self.seen.entry(process).or_insert_with(Instant::now);
        }
        while runnable > 0 && handed.len() < want.total && !plan.is_mutated(Mutation::Silence) {
            let Some(serial) = self.queue.pop_front() else {
                break;
            };
            let Some(kept) = self.messages.get_mut(&serial) else {
                continue;
            };
            let tag = match plan.family {
                crate::Family::Sql => serial,
                _ => self.next_tag,
            };
            self.next_tag += 1;
            let claim = Claim {
                process,
                session,
                tag,
            };
            kept.claim = Some(claim);
            if kept.eta.is_none_or(|eta| eta <= wall) {
                runnable -= 1;
            }
            let message = kept.message.clone();
            auditor.claimed(serial, process);
            if plan.is_mutated(Mutation::AcksEarly) {
                self.messages.remove(&serial);
                auditor.gone(serial, process);
            }
            if plan.is_mutated(Mutation::DeliversTwice) && serial.is_multiple_of(3) {
                self.queue.push_back(serial);
            }
            handed.push((tag, serial, message));
        }
        handed
    }

    /// What was told over a connection arrives: what is due, or all of it.
    pub(crate) fn arrive(
        &mut self,
        session: SessionId,
        auditor: &mut Auditor,
        plan: &Plan,
        all: bool,
    ) {
        let Some(connection) = self.connections.get_mut(&session) else {
            return;
        };
        let process = connection.process;
        let now = Instant::now();
        let is_due = |(due, _): &(Instant, Settlement)| all || *due <= now;
        let (due, later) = std::mem::take(&mut connection.on_the_way)
            .into_iter()
            .partition(is_due);
        connection.on_the_way = later;
        let due: Vec<(Instant, Settlement)> = due;
        for (_, settlement) in due {
            self.settle(process, session, settlement, plan, auditor);
        }
    }

    fn settle(
        &mut self,
        process: ProcessId,
        session: SessionId,
        settlement: Settlement,
        plan: &Plan,
        auditor: &mut Auditor,
    ) {
        let is_leased = self.is_leased;
        let is_it = |claim: &Claim| {
            claim.process == process
                && claim.tag == settlement.tag.0
                && (is_leased || claim.session == session)
        };
        let found = self
            .messages
            .iter()
            .find(|(_, kept)| kept.claim.as_ref().is_some_and(is_it));
        let Some(serial) = found.map(|(serial, _)| *serial) else {
            // It is somebody else's now.
            return;
        };
        match settlement.fate {
            Fate::Ack if plan.is_mutated(Mutation::AcksVanish) && serial.is_multiple_of(3) => {
                self.put_back(serial, true, true);
            }
            Fate::Ack | Fate::Reject => {
                self.messages.remove(&serial);
                auditor.gone(serial, process);
            }
            Fate::Requeue => self.put_back(serial, true, is_leased),
            Fate::Release => self.put_back(serial, !is_leased, false),
            Fate::Delay(Delay { until, marks }) => {
                if let Some(kept) = self.messages.get_mut(&serial) {
                    kept.claim = None;
                    kept.delayed = until.map(|until| (until, Instant::now() + SOONEST));
                    mark(&mut kept.message, marks);
                }
                if until.is_none() {
                    self.put_back(serial, false, true);
                }
            }
        }
    }

    fn put_back(&mut self, serial: Serial, marks: bool, is_last: bool) {
        let Some(kept) = self.messages.get_mut(&serial) else {
            return;
        };
        kept.claim = None;
        let info = &mut kept.message.delivery_info;
        info.redelivered = info.redelivered || marks;
        if is_last {
            self.queue.push_back(serial);
        } else {
            self.queue.push_front(serial);
        }
        self.arrived.notify_waiters();
    }

    /// A connection is gone, and with it what it had; answers with what goes back.
    pub(crate) fn cut(
        &mut self,
        session: SessionId,
        marks: bool,
        auditor: &mut Auditor,
    ) -> Vec<Serial> {
        let Some(connection) = self.connections.remove(&session) else {
            return Vec::new();
        };
        if self.is_leased {
            return Vec::new();
        }
        let is_its = |kept: &Kept| kept.claim.is_some_and(|claim| claim.session == session);
        let held = self.messages.iter().filter(|(_, kept)| is_its(kept));
        let held: Vec<Serial> = held.map(|(serial, _)| *serial).collect();
        for serial in held.iter().rev() {
            auditor.taken_back(*serial, connection.process);
            self.put_back(*serial, marks, false);
        }
        held
    }

    /// A worker gives a sign of life. Answers with the tags that it lost, and from whom messages
    /// were taken.
    pub(crate) fn maintain(
        &mut self,
        process: ProcessId,
        known: &mut Known,
        plan: &Plan,
        auditor: &mut Auditor,
    ) -> (Vec<u64>, Vec<(ProcessId, Instant)>) {
        let now = Instant::now();
        if self.pulse.is_none_or(|pulse| pulse + PULSE_GAP < now) {
            // Nobody could be heard: all are given time.
            for seen in self.seen.values_mut() {
                *seen = now;
            }
        }
        self.pulse = Some(now);
        if !plan.is_mutated(Mutation::NoSignOfLife) {
            self.seen.insert(process, now);
        }
        let dead: Vec<(ProcessId, Instant)> = self
            .seen
            .iter()
            .filter(|(other, seen)| **other != process && **seen + DEAD_AFTER < now)
            .map(|(other, seen)| (*other, *seen))
            .collect();
        for (dead, _) in &dead {
            self.seen.remove(dead);
            for serial in self.held_by(*dead).into_iter().rev() {
                auditor.taken_back(serial, *dead);
                if plan.is_mutated(Mutation::RestoreLoses) {
                    self.messages.remove(&serial);
                } else {
                    if let Some(kept) = self.messages.get_mut(&serial) {
                        let marks = Marks::of(&kept.message);
                        let deaths = marks.deaths + 1;
                        mark(&mut kept.message, Marks { deaths, ..marks });
                    }
                    self.put_back(serial, true, false);
                }
            }
        }
        // What was claimed by a call whose answer never came goes back.
        for serial in self.held_by(process) {
            let tag = self.messages[&serial].claim.map(|claim| claim.tag);
            if tag.is_some_and(|tag| !known.tags.contains(&tag)) {
                self.put_back(serial, false, false);
            }
        }
        let mut lost = Vec::new();
        if plan.family == crate::Family::Sql
            || known.renewed.is_none_or(|renewed| renewed + RENEWAL <= now)
        {
            known.renewed = Some(now);
            let held: BTreeSet<u64> = self
                .held_by(process)
                .iter()
                .filter_map(|serial| Some(self.messages[serial].claim?.tag))
                .collect();
            lost = known.tags.difference(&held).copied().collect();
            known.tags.retain(|tag| held.contains(tag));
        }
        (lost, dead)
    }

    /// A worker has left in order.
    pub(crate) fn leave(&mut self, process: ProcessId) {
        self.seen.remove(&process);
        for serial in self.held_by(process).into_iter().rev() {
            self.put_back(serial, false, false);
        }
    }

    fn held_by(&self, process: ProcessId) -> Vec<Serial> {
        let is_its = |kept: &Kept| kept.claim.is_some_and(|claim| claim.process == process);
        let held = self.messages.iter().filter(|(_, kept)| is_its(kept));
        held.map(|(serial, _)| *serial).collect()
    }

    /// What stands where, for a trace.
    pub(crate) fn describe(&self) -> String {
        let kept = self.messages.iter().map(|(serial, kept)| match kept.claim {
            Some(claim) => format!("{serial} with {}", claim.process),
            None if kept.delayed.is_some() => format!("{serial} is delayed"),
            None => format!("{serial} waits"),
        });
        kept.collect::<Vec<_>>().join(", ")
    }
}

fn mark(message: &mut Message, marks: Marks) {
    message.headers = marks.write(&message.headers).into_owned().into();
}

impl Known {
    pub(crate) fn settled(&mut self, settlements: &[Settlement]) {
        for settlement in settlements {
            self.tags.remove(&settlement.tag.0);
        }
    }

    pub(crate) fn claimed(&mut self, tag: u64) {
        self.tags.insert(tag);
    }
}
