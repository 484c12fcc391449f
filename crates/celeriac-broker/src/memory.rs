//! A broker in this process, for tests: queues live and die with the [`MemoryBroker`].
//!
//! It behaves as RabbitMQ does: what a session has fetched goes back when the session is gone,
//! and a tag is worth nothing to another session.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use celeriac_core::broker::{
    Broker, Capabilities, Delay, Delayed, Delivery, DeliveryTag, Error, Fate, Maintained, Session,
    Settlement, Want,
};
use celeriac_core::dead_letter::{Bounds, DeadLetter};
use celeriac_core::limit::SharedLimitStore;
use celeriac_core::publisher::{Published, Publisher};
use celeriac_core::queue::Queue;
use celeriac_protocol::{DeliveryInfo, Message};
use jiff::Timestamp;
use tokio::sync::Notify;

use crate::bindings::{Bindings, unroutable};
use crate::limit::memory::MemoryLimits;

/// Queues in memory.
#[derive(Clone, Default)]
pub struct MemoryBroker {
    store: Arc<Store>,
    limits: MemoryLimits,
}

#[derive(Default)]
struct Store {
    queues: Mutex<HashMap<Arc<str>, VecDeque<Message>>>,
    delayed: Mutex<Vec<Delayed>>,
    dead: Mutex<Vec<DeadLetter>>,
    bindings: Mutex<Bindings>,
    arrived: Notify,
}

impl Store {
    fn queues(&self) -> MutexGuard<'_, HashMap<Arc<str>, VecDeque<Message>>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn delayed(&self) -> MutexGuard<'_, Vec<Delayed>> {
        self.delayed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn dead(&self) -> MutexGuard<'_, Vec<DeadLetter>> {
        self.dead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bindings(&self) -> MutexGuard<'_, Bindings> {
        self.bindings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn declare(&self, queue: &Queue) {
        self.bindings().declare(queue);
        self.queues().entry(queue.name.as_str().into()).or_default();
    }

    /// Has messages come whose moment is there; tells how long until the next.
    fn move_due(&self) -> Option<Duration> {
        let now = Timestamp::now();
        let due: Vec<Delayed> = self
            .delayed()
            .extract_if(.., |delayed| delayed.until <= now)
            .collect();
        for delayed in due {
            self.put(&delayed.queue, delayed.message, false);
        }
        let next = self.delayed().iter().map(|delayed| delayed.until).min()?;
        Some(Duration::try_from(next.duration_since(now)).unwrap_or_default())
    }

    fn put(&self, queue: &Arc<str>, message: Message, last: bool) {
        let mut queues = self.queues();
        let messages = queues.entry(Arc::clone(queue)).or_default();
        if last {
            messages.push_back(message);
        } else {
            messages.push_front(message);
        }
        drop(queues);
        self.arrived.notify_waiters();
        self.arrived.notify_one();
    }
}

impl MemoryBroker {
    /// An empty broker.
    pub fn new() -> Self {
        Self::default()
    }
}

impl fmt::Debug for MemoryBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemoryBroker")
    }
}

#[async_trait]
impl Broker for MemoryBroker {
    fn display_url(&self) -> String {
        "memory://".to_owned()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            priorities: false,
            recovers: true,
            delays: true,
            tags_outlive_connections: false,
        }
    }

    async fn connect(&self) -> Result<Box<dyn Session>, Error> {
        Ok(Box::new(MemorySession {
            store: Arc::clone(&self.store),
            queues: Vec::new(),
            fetched: BTreeMap::new(),
            next_tag: 1,
        }))
    }

    fn publisher(&self) -> Result<Arc<dyn Publisher>, Error> {
        Ok(Arc::new(MemoryPublisher {
            store: Arc::clone(&self.store),
        }))
    }

    fn limits(&self) -> Option<SharedLimitStore> {
        Some(Arc::new(self.limits.clone()))
    }
}

struct MemoryPublisher {
    store: Arc<Store>,
}

impl fmt::Debug for MemoryPublisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemoryPublisher")
    }
}

#[async_trait]
impl Publisher for MemoryPublisher {
    async fn declare(&self, queue: &Queue) -> Result<(), Error> {
        self.store.declare(queue);
        Ok(())
    }

    async fn publish(&self, messages: &[Published]) -> Result<(), Error> {
        for published in messages {
            let (exchange, routing_key) = (&published.exchange, &published.routing_key);
            let bindings = self.store.bindings();
            let queues = bindings.queues(exchange, routing_key);
            let queues: Vec<Arc<str>> = queues.into_iter().map(Arc::from).collect();
            drop(bindings);
            if queues.is_empty() && published.mandatory {
                return Err(unroutable(exchange, routing_key));
            }
            for queue in queues {
                let message = Message {
                    delivery_info: DeliveryInfo {
                        exchange: Some(exchange.clone()),
                        routing_key: Some(routing_key.clone()),
                        priority: published.message.property("priority"),
                        redelivered: false,
                    },
                    ..published.message.clone()
                };
                self.store.put(&queue, message, true);
            }
        }
        Ok(())
    }

    async fn close(&self) -> Result<(), Error> {
        Ok(())
    }
}

struct MemorySession {
    store: Arc<Store>,
    queues: Vec<Arc<str>>,
    /// In the order of being fetched.
    fetched: BTreeMap<DeliveryTag, (Arc<str>, Message)>,
    next_tag: u64,
}

impl MemorySession {
    fn settle(&mut self, settlement: Settlement) {
        let Some((queue, mut message)) = self.fetched.remove(&settlement.tag) else {
            return;
        };
        match settlement.fate {
            Fate::Ack | Fate::Reject => {}
            Fate::Release => self.store.put(&queue, message, false),
            Fate::Requeue => {
                message.delivery_info.redelivered = true;
                self.store.put(&queue, message, true);
            }
            Fate::Delay(Delay { until, marks }) => {
                message.headers = marks.write(&message.headers).into_owned().into();
                match until {
                    Some(until) => self.store.delayed().push(Delayed {
                        until,
                        queue,
                        message,
                    }),
                    None => self.store.put(&queue, message, true),
                }
            }
        }
    }
}

impl Drop for MemorySession {
    fn drop(&mut self) {
        // The last fetched goes back first, so that the first comes out first.
        while let Some((_, (queue, mut message))) = self.fetched.pop_last() {
            message.delivery_info.redelivered = true;
            self.store.put(&queue, message, false);
        }
    }
}

#[async_trait]
impl Session for MemorySession {
    async fn declare(&mut self, queue: &Queue) -> Result<(), Error> {
        self.store.declare(queue);
        Ok(())
    }

    async fn subscribe(&mut self, queue: &Queue) -> Result<(), Error> {
        let name: Arc<str> = queue.name.as_str().into();
        if !self.queues.contains(&name) {
            self.queues.push(name);
        }
        Ok(())
    }

    async fn cancel(&mut self, queue: &str) -> Result<(), Error> {
        self.queues.retain(|name| &**name != queue);
        Ok(())
    }

    async fn exchange(
        &mut self,
        settlements: &[Settlement],
        want: Want,
    ) -> Result<Vec<Delivery>, Error> {
        for settlement in settlements.iter().rev() {
            self.settle(*settlement);
        }
        self.store.move_due();
        let mut deliveries = Vec::new();
        let mut queues = self.store.queues();
        while deliveries.len() < want.runnable {
            let next = self.queues.iter().enumerate().find_map(|(at, name)| {
                Some((at, Arc::clone(name), queues.get_mut(name)?.pop_front()?))
            });
            let Some((at, queue, message)) = next else {
                break;
            };
            // Queues take turns.
            self.queues.rotate_left(at + 1);
            let tag = DeliveryTag(self.next_tag);
            self.next_tag += 1;
            self.fetched
                .insert(tag, (Arc::clone(&queue), message.clone()));
            deliveries.push(Delivery {
                tag,
                queue,
                message: Ok(message),
            });
        }
        drop(queues);
        Ok(deliveries)
    }

    async fn wait(&mut self) -> Result<(), Error> {
        let arrived = self.store.arrived.notified();
        let wait = Duration::from_secs(1);
        let wait = self.store.move_due().map_or(wait, |next| next.min(wait));
        drop(tokio::time::timeout(wait, arrived).await);
        Ok(())
    }

    async fn maintain(&mut self) -> Result<Maintained, Error> {
        Ok(Maintained {
            next: Duration::from_hours(1),
            ..Maintained::default()
        })
    }

    async fn purge(&mut self, queue: &str) -> Result<u64, Error> {
        let purged = self.store.queues().get_mut(queue).map(std::mem::take);
        Ok(purged.map_or(0, |messages| messages.len() as u64))
    }

    async fn size(&mut self, queue: &str) -> Result<u64, Error> {
        Ok(self
            .store
            .queues()
            .get(queue)
            .map_or(0, |messages| messages.len() as u64))
    }

    async fn publish(&mut self, queue: &str, message: &Message) -> Result<(), Error> {
        self.store.put(&queue.into(), message.clone(), true);
        Ok(())
    }

    async fn delayed(&mut self, count: usize) -> Result<Vec<Delayed>, Error> {
        let mut delayed = self.store.delayed().clone();
        delayed.retain(|delayed| self.queues.contains(&delayed.queue));
        delayed.sort_by_key(|delayed| delayed.until);
        delayed.truncate(count);
        Ok(delayed)
    }

    async fn return_delayed(&mut self) -> Result<u64, Error> {
        let all = std::mem::take(&mut *self.store.delayed());
        let count = all.len() as u64;
        for delayed in all {
            self.store.put(&delayed.queue, delayed.message, false);
        }
        Ok(count)
    }

    async fn bury(&mut self, letter: &DeadLetter, bounds: Bounds) -> Result<(), Error> {
        let mut dead = self.store.dead();
        dead.retain(|other| {
            let age = Duration::try_from(letter.died_at.duration_since(other.died_at));
            other.id != letter.id && age.is_ok_and(|age| age <= bounds.age)
        });
        dead.push(letter.clone());
        let beyond = dead.len().saturating_sub(bounds.number);
        dead.drain(..beyond);
        Ok(())
    }

    async fn dead_letters(&mut self) -> Result<Vec<DeadLetter>, Error> {
        Ok(self.store.dead().iter().rev().cloned().collect())
    }

    async fn replay(&mut self, ids: &[String]) -> Result<u64, Error> {
        let chosen: Vec<DeadLetter> = self
            .store
            .dead()
            .extract_if(.., |letter| ids.contains(&letter.id))
            .collect();
        for letter in &chosen {
            if let Ok(message) = celeriac_protocol::envelope::decode(&letter.message.bytes()) {
                self.store.put(&letter.queue.as_str().into(), message, true);
            }
        }
        Ok(chosen.len() as u64)
    }

    async fn forget(&mut self, ids: &[String]) -> Result<u64, Error> {
        let mut dead = self.store.dead();
        let before = dead.len();
        dead.retain(|letter| !ids.contains(&letter.id));
        Ok((before - dead.len()) as u64)
    }

    async fn close(self: Box<Self>) -> Result<(), Error> {
        Ok(())
    }
}
