//! The worker's end of the consumer: what it wants, and what it is told.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use celeriac_core::broker::{Fate, Settlement, Want};
use celeriac_core::queue::Queue;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::burials::Burial;
use super::consumer::Event;

/// What the worker wants of its consumer.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    /// Dead letters, to be kept before `settlements` of their messages are told.
    pub(super) letters: Vec<Burial>,
    pub(super) settlements: Vec<Settlement>,
    pub(super) want: Want,
    /// The number of batches that the worker knew of when it said what it wants.
    pub(super) seen: u64,
    pub(super) stops: bool,
    pub(super) changes: Vec<Change>,
    /// Since when to read what the broker keeps of revokes, in seconds since 1970.
    pub(super) revokes: Option<f64>,
    /// Questions for what the delay store holds: whose, and how many messages.
    pub(super) listings: Vec<(u64, usize)>,
    /// Whether acknowledgements wait for a claim to go along with: more of them need not be told.
    pub(super) holds_acks: bool,
}

/// A change of what is consumed.
#[derive(Debug)]
pub(super) enum Change {
    Add(Box<Queue>),
    Cancel(String),
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) wishes: Mutex<Wishes>,
    pub(super) changed: Notify,
    began: Instant,
    /// When the broker was asked for what it has not answered, in ms after `began`; or `OWES_NONE`.
    asked: AtomicU64,
}

/// The broker owes no answer.
const OWES_NONE: u64 = u64::MAX;

impl Default for Shared {
    fn default() -> Self {
        Self {
            wishes: Mutex::default(),
            changed: Notify::default(),
            began: Instant::now(),
            asked: AtomicU64::new(OWES_NONE),
        }
    }
}

impl Shared {
    /// Waits for an answer of the broker, which it owes meanwhile.
    pub(super) async fn owed<T>(&self, answer: impl Future<Output = T>) -> T {
        let since = self.began.elapsed().as_millis() as u64;
        self.asked.store(since, Ordering::Relaxed);
        let answer = answer.await;
        self.asked.store(OWES_NONE, Ordering::Relaxed);
        answer
    }

    pub(super) fn wishes(&self) -> MutexGuard<'_, Wishes> {
        // Nothing panics while it is held.
        self.wishes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The worker's end.
#[derive(Debug)]
pub struct Handle {
    shared: Arc<Shared>,
    events: mpsc::Receiver<Event>,
    seen: u64,
}

impl Handle {
    pub(super) fn new(shared: Arc<Shared>, events: mpsc::Receiver<Event>) -> Self {
        Self {
            shared,
            events,
            seen: 0,
        }
    }

    /// The next that happens; `None` when nothing will any more. Safe to cancel.
    pub async fn next(&mut self) -> Option<Event> {
        let event = self.events.recv().await;
        if let Some(Event::Delivered(batch, _)) = &event {
            self.seen = *batch;
        }
        event
    }

    /// For how long the broker has owed an answer, if it does.
    pub fn owed(&self) -> Option<Duration> {
        let asked = self.shared.asked.load(Ordering::Relaxed);
        let since = Duration::from_millis(asked);
        (asked != OWES_NONE).then(|| self.shared.began.elapsed().saturating_sub(since))
    }

    /// Whether there is no consumer any more that would tell anything.
    pub fn is_gone(&self) -> bool {
        self.events.is_closed()
    }

    /// Has the broker keep dead letters, tells it of messages, and says how many there is use for now.
    pub fn exchange(
        &self,
        letters: &mut Vec<Burial>,
        settlements: &mut Vec<Settlement>,
        want: Want,
    ) {
        let mut wishes = self.shared.wishes();
        let nothing = letters.is_empty() && settlements.is_empty();
        if nothing && (wishes.want, wishes.seen) == (want, self.seen) {
            return;
        }
        let is_more_of_the_same = wishes.holds_acks
            && (wishes.want, wishes.seen) == (want, self.seen)
            && letters.is_empty()
            && settlements.iter().all(is_ack);
        wishes.letters.append(letters);
        wishes.settlements.append(settlements);
        wishes.want = want;
        wishes.seen = self.seen;
        drop(wishes);
        if !is_more_of_the_same {
            self.shared.changed.notify_one();
        }
    }

    /// Has it consume from a further queue, now and whenever it connects.
    pub fn add_queue(&self, queue: Queue) {
        self.change(Change::Add(Box::new(queue)));
    }

    /// Has it consume from a queue no more.
    pub fn cancel_queue(&self, queue: String) {
        self.change(Change::Cancel(queue));
    }

    /// Has it tell what the broker keeps of revokes since then, in seconds since 1970, before it
    /// takes further messages: see [`Event::Revokes`].
    pub fn read_revokes(&self, since: f64) {
        self.shared.wishes().revokes = Some(since);
        self.shared.changed.notify_one();
    }

    /// Has it tell of the first messages in the delay store: see [`Event::Delayed`].
    pub fn read_delayed(&self, question: u64, count: usize) {
        self.shared.wishes().listings.push((question, count));
        self.shared.changed.notify_one();
    }

    fn change(&self, change: Change) {
        self.shared.wishes().changes.push(change);
        self.shared.changed.notify_one();
    }

    /// Has it settle what is left, and leave the broker.
    pub fn stop(&self) {
        self.shared.wishes().stops = true;
        self.shared.changed.notify_one();
    }
}

fn is_ack(settlement: &Settlement) -> bool {
    settlement.fate == Fate::Ack
}
