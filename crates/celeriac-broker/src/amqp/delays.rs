//! The delay store: messages wait for their moment in the levels of native delayed delivery.
//!
//! A delayed message is published again, and the one that came is acknowledged when the server has
//! confirmed that. What the server does not take waits here, as all messages with an ETA do in
//! Celery: it is not acknowledged, and comes again should this process die.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use celeriac_core::broker::{Delay, Delayed, DeliveryTag, Error, Fate, Settlement};
use celeriac_core::queue::Queue;
use jiff::Timestamp;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::time::{Instant, timeout_at};

use super::delayed;
use super::error::broker_error;
use super::message::{self, Arrived};
use super::publisher::{self, Publisher};
use super::remembered::{self, Remembered};
use super::session::AmqpSession;
use super::wire::connection::{Confirmation, Confirmed};
use super::wire::failure::Failure;

/// How long an exchange waits for the server to confirm; what takes longer is looked for later.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(5);
/// How many messages may be published and not confirmed: a server that says nothing gets no more.
const MOST_STORING: usize = 1024;
/// While more than this wait here, nothing further is fetched.
pub(super) const MOST_HELD: usize = if cfg!(test) { 3 } else { 20_000 };
/// How long to wait before what the server did not take is offered to it again.
const OFFERED_AGAIN: Duration = Duration::from_secs(30);

/// What a session knows of messages that it delays.
pub(super) struct Delays {
    /// Whether the levels are there; `None` until they are needed.
    levels: Option<bool>,
    /// Whether messages come out of the levels to a queue.
    bound: HashMap<Arc<str>, bool>,
    /// What is published and not confirmed.
    storing: VecDeque<Storing>,
    /// What is to be told the server of messages that came.
    settled: Vec<Settlement>,
    /// What waits here.
    held: BTreeMap<(Timestamp, DeliveryTag), Late>,
    /// When what waits here is offered to the server again.
    offer_at: Option<Instant>,
    /// What the server has taken.
    remembered: Arc<Mutex<Remembered>>,
}

/// Nothing panics while it is locked.
fn locked(remembered: &Mutex<Remembered>) -> MutexGuard<'_, Remembered> {
    remembered.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A message that is to come later.
struct Late {
    tag: DeliveryTag,
    delay: Delay,
    arrived: Arrived,
}

struct Storing {
    late: Late,
    way: (String, String),
    confirmed: Confirmed,
}

impl Delays {
    /// Knows of nothing yet, and takes note in `remembered` of what the server takes.
    pub(super) fn new(remembered: Arc<Mutex<Remembered>>) -> Self {
        Self {
            levels: None,
            bound: HashMap::new(),
            storing: VecDeque::new(),
            settled: Vec::new(),
            held: BTreeMap::new(),
            offer_at: None,
            remembered,
        }
    }

    /// Messages of some queues that come later, the first to come: those that were stored, and those
    /// that wait here.
    pub(super) fn first(&self, count: usize, is_meant: impl Fn(&str) -> bool) -> Vec<Delayed> {
        let mut first = locked(&self.remembered).first(count, &is_meant, Timestamp::now());
        let held = self.held.iter().filter_map(|((until, _), late)| {
            let Arrived {
                queue, delivery, ..
            } = &late.arrived;
            let is_meant = is_meant(queue);
            is_meant.then(|| remembered::listed(*until, queue, delivery))?
        });
        first.extend(held.take(count));
        first.sort_by_key(|delayed| delayed.until);
        first.truncate(count);
        first
    }

    /// Takes a message that waited here and whose moment has come.
    pub(super) fn take_due(&mut self) -> Option<Arrived> {
        let first = self.held.first_entry()?;
        (first.key().0 <= Timestamp::now()).then(|| Arrived {
            is_held: false,
            ..first.remove().arrived
        })
    }

    /// How long until the first of those that wait here is due.
    pub(super) fn next(&self) -> Option<Duration> {
        let ((until, _), _) = self.held.first_key_value()?;
        Some(Duration::try_from(until.duration_since(Timestamp::now())).unwrap_or_default())
    }

    /// Whether so many wait here that no more may come.
    pub(super) fn is_full(&self) -> bool {
        self.held.len() >= MOST_HELD
    }

    /// Gives up those of a queue.
    pub(super) fn give_up(&mut self, queue: &str) -> Vec<Settlement> {
        let of_queue = |late: &Late| &*late.arrived.queue == queue;
        self.held
            .extract_if(.., |_, late| of_queue(late))
            .map(|((_, tag), _)| Settlement {
                tag,
                fate: Fate::Release,
            })
            .collect()
    }

    /// What is to be told the server of messages that came.
    pub(super) fn take_settled(&mut self) -> Vec<Settlement> {
        std::mem::take(&mut self.settled)
    }

    /// The server has, or has not, taken a message.
    fn confirmed(&mut self, storing: Storing, confirmation: Confirmation) {
        let (exchange, routing_key) = &storing.way;
        match publisher::taken(confirmation, exchange, routing_key) {
            Ok(()) => {
                let Late {
                    tag,
                    delay,
                    arrived,
                } = &storing.late;
                if let Some(until) = delay.until {
                    let now = Timestamp::now();
                    locked(&self.remembered).add(until, &arrived.queue, &arrived.delivery, now);
                }
                self.settled.push(Settlement {
                    tag: *tag,
                    fate: Fate::Ack,
                });
            }
            Err(error) => {
                // Whoever took the levels away may bring them back.
                self.levels = None;
                self.bound.clear();
                self.keep(storing.late, Some(&error));
            }
        }
    }

    /// Has a message wait here that the server can't or does not take.
    fn keep(&mut self, mut late: Late, error: Option<&Error>) {
        if let Some(error) = error {
            tracing::error!(
                %error,
                queue = %late.arrived.queue,
                "a message can't be delayed in the server: it waits in the worker"
            );
        }
        let until = late.delay.until.unwrap_or_else(Timestamp::now);
        let mut properties = Vec::new();
        let delivery = &mut late.arrived.delivery;
        match message::put_detour(delivery, late.delay.marks, &mut properties) {
            Ok(()) => delivery.properties = properties.into(),
            Err(error) => tracing::error!(%error, "a message can't be marked"),
        }
        self.held.insert((until, late.tag), late);
        self.offer_at
            .get_or_insert_with(|| Instant::now() + OFFERED_AGAIN);
    }

    /// Takes note of what was confirmed meanwhile. What was under way when the connection for
    /// publishing was lost waits here: the server may have it as well, and then it comes twice.
    fn look(&mut self) {
        let mut lost = None;
        for mut storing in std::mem::take(&mut self.storing) {
            match storing.confirmed.try_recv() {
                Ok(Ok(confirmation)) => self.confirmed(storing, confirmation),
                Ok(Err(failure)) => {
                    lost = Some(failure);
                    self.keep(storing.late, None);
                }
                Err(TryRecvError::Closed) => {
                    lost = Some(Failure::closed());
                    self.keep(storing.late, None);
                }
                Err(TryRecvError::Empty) => self.storing.push_back(storing),
            }
        }
        if let Some(failure) = lost {
            warn_of_lost(&broker_error(&failure));
        }
    }
}

impl AmqpSession {
    /// Delays messages, and waits for a while until the server has them. What is to be told it of
    /// those that came is in [`Delays::take_settled`], whatever comes of the others.
    pub(super) async fn delay(&mut self, delays: &[(DeliveryTag, Delay)]) -> Result<(), Error> {
        let late = delays.iter().filter_map(|(tag, delay)| {
            Some(Late {
                tag: *tag,
                delay: *delay,
                arrived: self.handed.remove(&tag.0)?,
            })
        });
        let late: Vec<Late> = late.collect();
        let stored = if late.is_empty() {
            Ok(())
        } else {
            self.store(late).await
        };
        if stored.is_ok() {
            self.confirm().await;
        }
        self.delays.look();
        stored
    }

    /// Opens the connection for publishing, unless that has failed a moment ago: each attempt may
    /// take long, and consuming waits for it. Whether there is one.
    async fn has_publisher(&mut self) -> bool {
        let is_alive = self.publisher.as_ref().is_some_and(Publisher::is_alive);
        if is_alive || self.delays.offer_at.is_some() {
            return is_alive;
        }
        let opened = self.open_publisher().await;
        if let Err(error) = &opened {
            warn_of_lost(error);
        }
        opened.is_ok()
    }

    /// Publishes messages that are to come later. What can't be published waits here: trouble
    /// with that connection is none of the one that consumes.
    async fn store(&mut self, late: Vec<Late>) -> Result<(), Error> {
        if !self.has_publisher().await {
            for late in late {
                self.delays.keep(late, None);
            }
            return Ok(());
        }
        if self.publisher.as_ref().is_some_and(Publisher::is_blocked) {
            tracing::warn!(
                "RabbitMQ takes no messages (connection.blocked): tasks with an ETA wait in the worker"
            );
        }
        for late in late {
            if late.delay.until.is_some() && !self.has_levels_for(&late.arrived.queue).await? {
                self.delays.keep(late, None);
                continue;
            }
            let is_full = self.delays.storing.len() >= MOST_STORING;
            let takes = |publisher: &&Publisher| {
                !is_full && publisher.is_alive() && !publisher.is_blocked()
            };
            let Some(publisher) = self.publisher.as_ref().filter(takes) else {
                self.delays.keep(late, None);
                continue;
            };
            match publish(publisher, &late) {
                Ok((way, confirmed)) => self.delays.storing.push_back(Storing {
                    late,
                    way,
                    confirmed,
                }),
                Err(error) => self.delays.keep(late, Some(&error)),
            }
        }
        Ok(())
    }

    /// Waits for a while until the server has confirmed what is published.
    async fn confirm(&mut self) {
        let deadline = Instant::now() + CONFIRMED_WITHIN;
        while let Some(storing) = self.delays.storing.front_mut() {
            if self.publisher.as_ref().is_some_and(Publisher::is_blocked) {
                break;
            }
            let Ok(confirmed) = timeout_at(deadline, &mut storing.confirmed).await else {
                break;
            };
            // What is lost comes to light for those behind it as well.
            let Ok(Ok(confirmation)) = confirmed else {
                break;
            };
            if let Some(storing) = self.delays.storing.pop_front() {
                self.delays.confirmed(storing, confirmation);
            }
        }
    }

    /// Offers the server again what it did not take, and takes note of what it has confirmed.
    pub(super) async fn maintain_delays(&mut self) -> Result<(), Error> {
        self.delays.look();
        if self.delays.offer_at.is_some_and(|at| at <= Instant::now()) {
            self.delays.offer_at = None;
            if self.delays.levels != Some(false) {
                let held = std::mem::take(&mut self.delays.held);
                self.store(held.into_values().collect()).await?;
            }
        }
        Ok(())
    }

    /// Makes sure that messages come out of the levels to a queue, if that is possible.
    async fn has_levels_for(&mut self, queue: &Arc<str>) -> Result<bool, Error> {
        if let Some(is_bound) = self.delays.bound.get(queue) {
            return Ok(*is_bound);
        }
        let is_bound = self.stays(queue) && self.has_levels().await? && self.bind(queue).await?;
        self.delays.bound.insert(Arc::clone(queue), is_bound);
        Ok(is_bound)
    }

    /// Whether a queue and its bindings are still there when a message comes to it later.
    fn stays(&self, queue: &str) -> bool {
        let stays = |queue: &Queue| queue.durable && !queue.auto_delete && !queue.exclusive;
        let is_meant = |name: &str| name == queue;
        self.subscriptions
            .iter()
            .find(|subscription| is_meant(&subscription.name))
            .is_none_or(|subscription| stays(&subscription.queue))
    }

    async fn has_levels(&mut self) -> Result<bool, Error> {
        if let Some(are_there) = self.delays.levels {
            return Ok(are_there);
        }
        let kind = self.shared.levels.as_str();
        let declared = delayed::declare_levels(&self.link, kind).await;
        self.check()?;
        if let Err(error) = &declared {
            tracing::warn!(
                error = error.in_full(),
                "native delayed delivery can't be set up: tasks with an ETA wait in the worker"
            );
        }
        Ok(*self.delays.levels.insert(declared.is_ok()))
    }

    async fn bind(&mut self, queue: &str) -> Result<bool, Error> {
        let channel = self.asking().await?;
        let bound = delayed::bind(&channel, queue).await;
        self.check()?;
        if let Err(error) = &bound {
            tracing::warn!(
                error = error.in_full(),
                queue,
                "a queue can't be bound to native delayed delivery: its tasks with an ETA wait in \
                 the worker"
            );
        }
        Ok(bound.is_ok())
    }
}

fn warn_of_lost(error: &Error) {
    tracing::warn!(
        error = error.in_full(),
        "there is no connection to publish with: tasks with an ETA wait in the worker"
    );
}

/// Publishes a message, so that it comes to its queue again.
fn publish(publisher: &Publisher, late: &Late) -> Result<((String, String), Confirmed), Error> {
    let delivery = &late.arrived.delivery;
    let seconds = late.delay.until.map_or(0, |until| {
        // Down to whole seconds: too early is mended by whoever gets it.
        let wait = until.duration_since(Timestamp::now()).as_secs();
        u64::try_from(wait).unwrap_or(0)
    });
    let mut properties = Vec::with_capacity(delivery.properties.len() + 256);
    let put = message::put_detour(delivery, late.delay.marks, &mut properties);
    put.map_err(|error| unfit(&error))?;
    let way = delayed::way(seconds, &late.arrived.queue);
    match publisher.send(&way.0, &way.1, &properties, &delivery.body) {
        Ok(confirmed) => Ok((way, confirmed)),
        Err(Failure::Unsayable(error)) => Err(unfit(&error)),
        Err(failure) => Err(broker_error(&failure)),
    }
}

fn unfit(error: &dyn std::error::Error) -> Error {
    let text = format!("it can't be published again: {error}");
    Error::new(celeriac_core::broker::ErrorKind::Configuration, text)
}
