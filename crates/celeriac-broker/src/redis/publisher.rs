//! Publishing for clients, all over one connection.
//!
//! Celery's counterpart: `kombu.transport.redis.Channel._put` and
//! `kombu.transport.virtual.base.Channel._lookup`.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use celeriac_core::broker::{Error, ErrorKind};
use celeriac_core::publisher::{Published, Publisher};
use celeriac_core::queue::{ExchangeKind, Queue};
use celeriac_protocol::json;
use redis::aio::MultiplexedConnection;
use redis::{Pipeline, pipe};

use super::Shared;
use super::error::broker_error;
use crate::addressed::addressed;
use crate::bindings::unroutable;

/// The least time for which kombu keeps the bindings of a queue that expires, in milliseconds.
const SHORTEST_BINDING: i64 = 3_600_000;

/// Publishes over one connection, which many share at once and which is made anew when it is lost.
pub(super) struct RedisPublisher {
    shared: Arc<Shared>,
    current: tokio::sync::Mutex<Option<Open>>,
    declared: Mutex<Declared>,
}

/// A connection, and its number.
#[derive(Clone)]
struct Open {
    connection: MultiplexedConnection,
    number: u64,
}

/// What was declared by this process.
#[derive(Default)]
struct Declared {
    /// By their names, with the number of the connection over which they were.
    queues: HashMap<String, (Queue, u64)>,
    fanouts: HashSet<String>,
    connections: u64,
}

impl RedisPublisher {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            current: tokio::sync::Mutex::default(),
            declared: Mutex::default(),
        }
    }

    fn declared(&self) -> MutexGuard<'_, Declared> {
        // Nothing panics while it is held.
        self.declared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection: a new one where there is none.
    async fn open(&self) -> Result<Open, Error> {
        let mut current = self.current.lock().await;
        if let Some(open) = &*current {
            return Ok(open.clone());
        }
        let connected = self.shared.server.connect().await;
        let connection = connected.map_err(|error| broker_error(&error))?;
        let number = {
            let mut declared = self.declared();
            declared.connections += 1;
            declared.connections
        };
        let open = Open { connection, number };
        *current = Some(open.clone());
        Ok(open)
    }

    /// Sends commands; leaves a connection over which they may have been lost.
    async fn query<T: redis::FromRedisValue>(
        &self,
        open: &mut Open,
        commands: &Pipeline,
    ) -> Result<T, Error> {
        let answer = commands.query_async(&mut open.connection).await;
        match answer.map_err(|error| broker_error(&error)) {
            Err(error) if error.kind == ErrorKind::Connection => {
                let mut current = self.current.lock().await;
                current.take_if(|current| current.number == open.number);
                Err(error)
            }
            answer => answer,
        }
    }

    /// The bindings of these exchanges.
    async fn bindings(
        &self,
        open: &mut Open,
        exchanges: Vec<&str>,
    ) -> Result<HashMap<String, Vec<String>>, Error> {
        if exchanges.is_empty() {
            return Ok(HashMap::new());
        }
        let mut commands = pipe();
        for exchange in &exchanges {
            commands.smembers(self.shared.keys.binding_table(exchange));
        }
        let tables: Vec<Vec<String>> = self.query(open, &commands).await?;
        Ok(exchanges
            .into_iter()
            .map(str::to_owned)
            .zip(tables)
            .collect())
    }

    /// The queues that a message goes to.
    fn queues(
        &self,
        published: &Published,
        bindings: &HashMap<String, Vec<String>>,
    ) -> Result<Vec<String>, Error> {
        let (exchange, key) = (&*published.exchange, &*published.routing_key);
        if exchange.is_empty() {
            return Ok(vec![key.to_owned()]);
        }
        let members = bindings.get(exchange).map_or(&[][..], Vec::as_slice);
        let bound = |member: &String| {
            let queue = self.shared.keys.bound_queue(member, key)?;
            Some(queue.to_owned())
        };
        let mut queues: Vec<String> = members.iter().filter_map(bound).collect();
        queues.sort_unstable();
        queues.dedup();
        if queues.is_empty() {
            match self.shared.options.text("deadletter_queue") {
                Some(queue) => queues.push(queue.to_owned()),
                None if published.mandatory => return Err(unroutable(exchange, key)),
                None => {}
            }
        }
        Ok(queues)
    }

    /// The commands that put a message into these queues.
    fn put(&self, published: &Published, queues: &[String], commands: &mut Pipeline) {
        let Published {
            exchange,
            routing_key,
            message,
            ..
        } = published;
        let priority = message.property("priority");
        let priority = priority.as_deref().and_then(json::as_i64).unwrap_or(0);
        let text = addressed(message, exchange, routing_key);
        for queue in queues {
            let keys = &self.shared.keys;
            let list = keys.list_for_priority(queue, priority.clamp(0, 9) as u8);
            commands.lpush(list, &text).ignore();
            let expires = self
                .declared()
                .queues
                .get(queue)
                .and_then(|(q, _)| q.expires);
            if let Some(seconds) = expires {
                for list in keys.lists(queue) {
                    commands.pexpire(list, (seconds * 1000.0) as i64).ignore();
                }
            }
        }
    }
}

impl fmt::Debug for RedisPublisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisPublisher({})", self.shared.display)
    }
}

#[async_trait]
impl Publisher for RedisPublisher {
    async fn declare(&self, queue: &Queue) -> Result<(), Error> {
        if queue.no_declare {
            return Ok(());
        }
        let mut open = self.open().await?;
        let known = self.declared().queues.get(&queue.name).cloned();
        if known.is_some_and(|(known, number)| known == *queue && number == open.number) {
            return Ok(());
        }
        let mut commands = pipe();
        commands.atomic();
        let mut fanouts = Vec::new();
        for binding in queue.all_bindings() {
            let keys = self.shared.keys.binding(&binding, &queue.name);
            commands.sadd(&keys.table, &keys.member).ignore();
            match queue.expires {
                None => {
                    commands.sadd(&keys.permanent, &keys.member).ignore();
                }
                Some(seconds) => {
                    let lasts = ((2000.0 * seconds) as i64).max(SHORTEST_BINDING);
                    let deadline = jiff::Timestamp::now().as_millisecond() + lasts;
                    let deadlines = &self.shared.keys.binding_deadlines;
                    let exchange = &binding.exchange.name;
                    let add = commands.cmd("ZADD").arg(deadlines).arg("GT");
                    add.arg(deadline).arg(exchange).ignore();
                }
            }
            if binding.exchange.kind == ExchangeKind::Fanout {
                fanouts.push(binding.exchange.name);
            }
        }
        if !commands.is_empty() {
            self.query::<()>(&mut open, &commands).await?;
        }
        let mut declared = self.declared();
        declared.fanouts.extend(fanouts);
        let entry = (queue.clone(), open.number);
        declared.queues.insert(queue.name.clone(), entry);
        Ok(())
    }

    async fn publish(&self, messages: &[Published]) -> Result<(), Error> {
        let mut open = self.open().await?;
        let fanouts: HashSet<String> = {
            let declared = self.declared();
            let exchanges = messages.iter().map(|published| &*published.exchange);
            let fanouts = exchanges.filter(|exchange| declared.fanouts.contains(*exchange));
            fanouts.map(str::to_owned).collect()
        };
        let mut exchanges: Vec<&str> = messages
            .iter()
            .map(|published| &*published.exchange)
            .filter(|exchange| !exchange.is_empty() && !fanouts.contains(*exchange))
            .collect();
        exchanges.sort_unstable();
        exchanges.dedup();
        let bindings = self.bindings(&mut open, exchanges).await?;
        let mut commands = pipe();
        for published in messages {
            let (exchange, key) = (&*published.exchange, &*published.routing_key);
            if fanouts.contains(exchange) {
                let text = addressed(&published.message, exchange, key);
                for channel in self.shared.fanout.channels(exchange, key) {
                    commands.publish(channel, &text).ignore();
                }
                continue;
            }
            let queues = self.queues(published, &bindings)?;
            self.put(published, &queues, &mut commands);
        }
        if commands.is_empty() {
            return Ok(());
        }
        self.query(&mut open, &commands).await
    }

    async fn close(&self) -> Result<(), Error> {
        // What was sent was answered.
        *self.current.lock().await = None;
        Ok(())
    }
}
