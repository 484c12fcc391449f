//! One connection: claiming, settling, waiting.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use celeriac_core::broker::{
    Delay, Delayed, Delivery, DeliveryTag, Error, ErrorKind, Fate, Maintained, Session, Settlement,
    Unreadable, Want,
};
use celeriac_core::dead_letter::{Bounds, DeadLetter};
use celeriac_core::queue::{Binding, ExchangeKind, Queue};
use celeriac_core::revokes::KeptRevokes;
use celeriac_protocol::{Message, envelope};
use jiff::Timestamp;
use redis::aio::MultiplexedConnection;
use redis::{Value, cmd, pipe};
use tokio::time::Instant;

use super::delays::marked;
use super::error::broker_error;
use super::keys::Keys;
use super::pushes::Pushes;
use super::scripts::{EXCHANGE, GIVE_BACK, TAGS_PER_CALL};
use super::{Claim, DEAD_AFTER, Shared};

/// How long to wait before asking again although the server told of nothing: it may have
/// forgotten to, after a failover for one. kombu's BRPOP waits as long.
const POLL: Duration = Duration::from_secs(1);
/// The same for a server that can't tell.
const POLL_UNTOLD: Duration = Duration::from_millis(50);

pub(super) struct RedisSession {
    pub(super) shared: Arc<Shared>,
    pub(super) connection: MultiplexedConnection,
    /// In the order in which they are asked next.
    queues: Vec<Subscribed>,
    pushes: Arc<Pushes>,
    /// Whether the server tells of changes.
    is_told: bool,
    /// Whether the server is another than the one that was connected before.
    pub(super) is_other_server: bool,
    /// Fanout queues: the channel that is subscribed to, and the queue it stands for.
    fanout: Vec<(String, Arc<str>)>,
    pub(super) next_renewal: Instant,
    pub(super) next_recovery: Instant,
    /// When to look once more for claims of a call whose answer was lost.
    pub(super) recheck_claims: Option<Instant>,
    /// Tags of messages that lead to no queue, each told once.
    pub(super) strays: HashSet<String>,
    /// Fanout messages that were handed out, to be handed out again where they are given back.
    handed_out: HashMap<u64, (String, Bytes)>,
}

/// A queue that is consumed.
struct Subscribed {
    name: Arc<str>,
    lists: Vec<Arc<str>>,
    suffix: Arc<str>,
}

impl AsRef<str> for Subscribed {
    fn as_ref(&self) -> &str {
        &self.name
    }
}

impl RedisSession {
    pub(super) async fn open(shared: Arc<Shared>) -> Result<Self, Error> {
        let pushes = Arc::new(Pushes::new(shared.fanout.seen()));
        let to_pushes = Arc::clone(&pushes);
        let told = shared
            .server
            .connect_with_pushes(move |push| to_pushes.take(&push))
            .await;
        let (mut connection, is_told) = match told {
            Ok(mut connection) => {
                let tracking: Result<(), _> = cmd("CLIENT")
                    .arg(&["TRACKING", "ON", "NOLOOP"])
                    .query_async(&mut connection)
                    .await;
                if let Err(error) = &tracking {
                    tracing::debug!(%error, "the server does not tell of changes: polling");
                }
                (connection, tracking.is_ok())
            }
            Err(error) if error.kind() == redis::ErrorKind::RESP3NotSupported => (
                shared
                    .server
                    .connect()
                    .await
                    .map_err(|error| broker_error(&error))?,
                false,
            ),
            Err(error) => return Err(broker_error(&error)),
        };
        let _: () = cmd("PING")
            .query_async(&mut connection)
            .await
            .map_err(|error| broker_error(&error))?;
        // A server that does not tell is taken for the same.
        let information: String = cmd("INFO")
            .arg("server")
            .query_async(&mut connection)
            .await
            .unwrap_or_default();
        let run_id = information
            .lines()
            .find_map(|line| line.strip_prefix("run_id:"));
        let is_other_server = shared.is_other(run_id.unwrap_or_default());
        let now = Instant::now();
        Ok(Self {
            shared,
            is_other_server,
            connection,
            queues: Vec::new(),
            pushes,
            is_told,
            fanout: Vec::new(),
            next_renewal: now,
            next_recovery: now,
            recheck_claims: None,
            strays: HashSet::new(),
            handed_out: HashMap::new(),
        })
    }

    /// One call of the script that settles and claims.
    async fn call_exchange(&mut self, acks: &[String], want: Want) -> Result<Vec<Delivery>, Error> {
        let shared = Arc::clone(&self.shared);
        let want = if self.queues.is_empty() {
            Want::NONE
        } else {
            want
        };
        let first = shared.reserve_tags(want.total);
        let in_turn = shared.order == super::OrderStrategy::RoundRobin;
        let mut call = EXCHANGE.prepare_invoke();
        call.key(&shared.keys.unacked)
            .key(&shared.keys.unacked_index);
        for step in 0..shared.keys.steps.len() {
            for queue in &self.queues {
                call.key(&*queue.lists[step]);
            }
        }
        call.arg(acks.len())
            .arg(format!("{}:", shared.name))
            .arg(first)
            .arg(want.runnable)
            .arg(want.total)
            .arg(self.queues.len())
            .arg(u8::from(in_turn))
            // Only to guess which messages are held; the worker decides by its own clock.
            .arg(
                jiff::Timestamp::now()
                    .strftime("%Y-%m-%dT%H:%M:%S")
                    .to_string(),
            );
        for tag in acks {
            call.arg(tag);
        }
        for queue in &self.queues {
            call.arg(&*queue.suffix);
        }
        let found: Vec<Value> = call
            .invoke_async(&mut self.connection)
            .await
            .map_err(|error| broker_error(&error))?;
        Ok(self.deliveries(found))
    }

    /// Reads the script's answer, and keeps in mind where each message came from.
    fn deliveries(&mut self, found: Vec<Value>) -> Vec<Delivery> {
        let mut deliveries = Vec::with_capacity(found.len() / 3);
        let mut taken = Vec::new();
        let mut found = found.into_iter();
        let mut claimed = self.shared.claimed();
        while let (Some(Value::Int(at)), Some(Value::Int(number)), Some(Value::BulkString(raw))) =
            (found.next(), found.next(), found.next())
        {
            let (at, number) = (at as usize, number as u64);
            let position = at % self.queues.len();
            let queue = &self.queues[position];
            let item = Bytes::from(raw);
            taken.push(position);
            claimed.insert(
                number,
                Claim {
                    list: Arc::clone(&queue.lists[at / self.queues.len()]),
                    suffix: Arc::clone(&queue.suffix),
                    item: item.clone(),
                },
            );
            deliveries.push(delivery(number, &queue.name, item));
        }
        drop(claimed);
        self.shared.order.arrange(&mut self.queues, &taken);
        deliveries
    }

    /// Puts claimed messages back where they came from.
    async fn give_back(&mut self, tags: &[DeliveryTag], fate: Fate) -> Result<(), Error> {
        let claims: Vec<(u64, Claim)> = {
            let claimed = self.shared.claimed();
            tags.iter()
                .filter_map(|tag| claimed.get(&tag.0).map(|claim| (tag.0, claim.clone())))
                .collect()
        };
        for chunk in claims.chunks(TAGS_PER_CALL) {
            let marked = match fate {
                Fate::Requeue => self.marked_redelivered(chunk).await?,
                _ => vec![String::new(); chunk.len()],
            };
            let mut call = GIVE_BACK.prepare_invoke();
            call.key(&self.shared.keys.unacked)
                .key(&self.shared.keys.unacked_index);
            call.arg(if fate == Fate::Requeue {
                "LPUSH"
            } else {
                "RPUSH"
            });
            for ((number, claim), item) in chunk.iter().zip(&marked) {
                call.key(&*claim.list)
                    .arg(self.shared.tag(*number))
                    .arg(claim.suffix.len())
                    .arg(item);
            }
            let _: u64 = call
                .invoke_async(&mut self.connection)
                .await
                .map_err(|error| broker_error(&error))?;
            self.forget_claims(chunk.iter().map(|(number, _)| *number));
        }
        Ok(())
    }

    /// The messages behind claims, with the marks of a redelivered one.
    async fn marked_redelivered(&mut self, claims: &[(u64, Claim)]) -> Result<Vec<String>, Error> {
        let mut get = pipe();
        for (number, _) in claims {
            get.hget(&self.shared.keys.unacked, self.shared.tag(*number));
        }
        let values: Vec<Option<Vec<u8>>> = get
            .query_async(&mut self.connection)
            .await
            .map_err(|error| broker_error(&error))?;
        Ok(claims
            .iter()
            .zip(values)
            .map(|((_, claim), value)| {
                let value = value.unwrap_or_default();
                let end = value.len().saturating_sub(claim.suffix.len());
                let item = value.get(1..end).unwrap_or_default();
                // What is no text was never an envelope: it goes back as it came.
                std::str::from_utf8(item)
                    .map(|text| envelope::mark_redelivered(text).into_owned())
                    .unwrap_or_default()
            })
            .collect())
    }

    /// The queue that a list belongs to, if it is consumed.
    pub(super) fn queue_of(&self, list: &str) -> Option<Arc<str>> {
        let mut queues = self.queues.iter();
        let queue = queues.find(|queue| queue.lists.iter().any(|its| **its == *list))?;
        Some(Arc::clone(&queue.name))
    }

    pub(super) fn forget_claims(&self, numbers: impl Iterator<Item = u64>) {
        let mut claimed = self.shared.claimed();
        for number in numbers {
            claimed.remove(&number);
        }
    }

    /// How many fanout messages wait for their moment.
    pub(super) fn waiting(&self) -> usize {
        self.shared.waiting().len()
    }

    /// Has fanout messages come whose moment is there; tells how long until the next.
    pub(super) fn fanout_comes_due(&mut self) -> Option<Duration> {
        let now = Timestamp::now();
        while let Some(entry) = self.shared.waiting().first_entry() {
            if entry.key().0 > now {
                let wait = entry.key().0.duration_since(now);
                return Some(Duration::try_from(wait).unwrap_or_default());
            }
            self.pushes.messages().push_front(entry.remove());
        }
        None
    }

    /// Fanout messages that arrived, at most `count`.
    fn take_fanout(&mut self, count: usize) -> Vec<Delivery> {
        self.fanout_comes_due();
        let mut messages = self.pushes.messages();
        let count = count.min(messages.len());
        let mut deliveries = Vec::with_capacity(count);
        for (pattern, raw) in messages.drain(..count) {
            let Some((_, queue)) = self.fanout.iter().find(|(name, _)| *name == pattern) else {
                continue;
            };
            let number = self.shared.reserve_tags(1);
            deliveries.push(delivery(number, queue, raw.clone()));
            self.handed_out.insert(number, (pattern, raw));
        }
        deliveries
    }

    /// Fanout messages are in no list: what is given back comes next, the rest is done with.
    fn settle_fanout(&mut self, settlements: &[Settlement]) {
        // The first that was handed out is put back last, and so comes first.
        for settlement in settlements.iter().rev() {
            let Some(message) = self.handed_out.remove(&settlement.tag.0) else {
                continue;
            };
            match settlement.fate {
                Fate::Ack | Fate::Reject => {}
                Fate::Release | Fate::Requeue => self.pushes.messages().push_front(message),
                Fate::Delay(delay) => {
                    let (pattern, raw) = message;
                    let raw = marked(&raw, delay.marks);
                    match delay.until {
                        Some(until) => {
                            let place = (until, settlement.tag.0);
                            self.shared.waiting().insert(place, (pattern, raw));
                        }
                        None => self.pushes.messages().push_back((pattern, raw)),
                    }
                }
            }
        }
    }

    pub(super) async fn query<T: redis::FromRedisValue>(
        &mut self,
        command: &redis::Cmd,
    ) -> Result<T, Error> {
        command
            .query_async(&mut self.connection)
            .await
            .map_err(|error| broker_error(&error))
    }
}

fn delivery(number: u64, queue: &Arc<str>, raw: Bytes) -> Delivery {
    let message = envelope::decode(&raw).map_err(|error| Unreadable {
        reason: error.to_string(),
        raw,
    });
    Delivery {
        tag: DeliveryTag(number),
        queue: Arc::clone(queue),
        message,
    }
}

#[async_trait]
impl Session for RedisSession {
    async fn declare(&mut self, queue: &Queue) -> Result<(), Error> {
        let mut declare = pipe();
        declare.atomic();
        for binding in queue.all_bindings() {
            let keys = self.shared.keys.binding(&binding, &queue.name);
            declare.sadd(&keys.table, &keys.member).ignore();
            declare.sadd(&keys.permanent, &keys.member).ignore();
        }
        if declare.is_empty() {
            return Ok(());
        }
        declare
            .query_async(&mut self.connection)
            .await
            .map_err(|error| broker_error(&error))
    }

    async fn subscribe(&mut self, queue: &Queue) -> Result<(), Error> {
        let name: Arc<str> = queue.name.as_str().into();
        let (fanouts, others): (Vec<Binding>, Vec<Binding>) = queue
            .all_bindings()
            .partition(|binding| binding.exchange.kind == ExchangeKind::Fanout);
        for binding in &fanouts {
            let (exchange, key) = (&binding.exchange.name, &binding.routing_key);
            for channel in self.shared.fanout.channels(exchange, key) {
                self.query::<()>(cmd("PSUBSCRIBE").arg(&channel)).await?;
                self.fanout.push((channel, Arc::clone(&name)));
            }
        }
        // What is broadcast comes over channels alone.
        if !fanouts.is_empty() && others.is_empty() {
            return Ok(());
        }
        if self
            .queues
            .iter()
            .all(|subscribed| *subscribed.name != *name)
        {
            let lists = self
                .shared
                .keys
                .lists(&name)
                .into_iter()
                .map(Arc::from)
                .collect();
            let suffix = Keys::route_suffix(&name).into();
            self.queues.push(Subscribed {
                name,
                lists,
                suffix,
            });
            self.shared.order.arrange(&mut self.queues, &[]);
        }
        Ok(())
    }

    async fn cancel(&mut self, queue: &str) -> Result<(), Error> {
        self.queues.retain(|subscribed| &*subscribed.name != queue);
        while let Some(at) = self.fanout.iter().position(|(_, name)| &**name == queue) {
            let (channel, _) = self.fanout.swap_remove(at);
            self.query::<()>(cmd("PUNSUBSCRIBE").arg(&channel)).await?;
        }
        Ok(())
    }

    async fn exchange(
        &mut self,
        settlements: &[Settlement],
        want: Want,
    ) -> Result<Vec<Delivery>, Error> {
        let tags = |wanted: &[Fate]| -> Vec<DeliveryTag> {
            let with = settlements
                .iter()
                .filter(|settlement| wanted.contains(&settlement.fate));
            with.map(|settlement| settlement.tag).collect()
        };
        // The first claimed is put back last, and so consumed first.
        let mut released = tags(&[Fate::Release]);
        released.sort_unstable_by(|a, b| b.cmp(a));
        self.give_back(&released, Fate::Release).await?;
        self.give_back(&tags(&[Fate::Requeue]), Fate::Requeue)
            .await?;

        let delays: Vec<(DeliveryTag, Delay)> = settlements
            .iter()
            .filter_map(|settlement| match settlement.fate {
                Fate::Delay(delay) => Some((settlement.tag, delay)),
                _ => None,
            })
            .collect();
        self.delay(&delays).await?;

        let numbers: Vec<u64> = {
            let claimed = self.shared.claimed();
            let settled = tags(&[Fate::Ack, Fate::Reject])
                .into_iter()
                .map(|tag| tag.0);
            settled
                .filter(|number| claimed.contains_key(number))
                .collect()
        };
        self.settle_fanout(settlements);
        let mut deliveries = self.take_fanout(want.runnable);
        let want = Want {
            runnable: want.runnable.saturating_sub(deliveries.len()),
            total: want.total.saturating_sub(deliveries.len()),
        };
        let mut chunks = numbers.chunks(TAGS_PER_CALL).peekable();
        while let Some(chunk) = chunks.next() {
            let acks: Vec<String> = chunk
                .iter()
                .map(|number| self.shared.tag(*number))
                .collect();
            let want = if chunks.peek().is_none() {
                want
            } else {
                Want::NONE
            };
            deliveries.extend(self.call_exchange(&acks, want).await?);
            self.shared.settle(chunk);
            self.forget_claims(chunk.iter().copied());
        }
        if numbers.is_empty() && !want.is_none() && !self.queues.is_empty() {
            deliveries.extend(self.call_exchange(&[], want).await?);
        }
        Ok(deliveries)
    }

    async fn wait(&mut self) -> Result<(), Error> {
        let configured = self.shared.options.seconds("polling_interval");
        let poll = if self.is_told {
            configured.unwrap_or(POLL)
        } else {
            POLL_UNTOLD
        };
        // Running out of time is an answer as good as being told.
        drop(tokio::time::timeout(poll, self.pushes.arrived.notified()).await);
        Ok(())
    }

    async fn maintain(&mut self) -> Result<Maintained, Error> {
        // Others take a silent worker for dead: a connection without an answer is given up well
        // before that.
        tokio::time::timeout(DEAD_AFTER / 3, self.maintain_leases())
            .await
            .unwrap_or_else(|_| {
                let silent = "the server does not answer";
                Err(Error::new(ErrorKind::Connection, silent))
            })
    }

    async fn purge(&mut self, queue: &str) -> Result<u64, Error> {
        let mut purge = pipe();
        purge.atomic();
        for list in self.shared.keys.lists(queue) {
            purge.llen(&list).del(&list).ignore();
        }
        let sizes: Vec<u64> = purge
            .query_async(&mut self.connection)
            .await
            .map_err(|error| broker_error(&error))?;
        Ok(sizes.iter().sum())
    }

    async fn size(&mut self, queue: &str) -> Result<u64, Error> {
        let mut size = pipe();
        for list in self.shared.keys.lists(queue) {
            size.llen(list);
        }
        let sizes: Vec<u64> = size
            .query_async(&mut self.connection)
            .await
            .map_err(|error| broker_error(&error))?;
        Ok(sizes.iter().sum())
    }

    async fn publish(&mut self, queue: &str, message: &Message) -> Result<(), Error> {
        let list = self
            .shared
            .keys
            .list_for_priority(queue, message.priority());
        let tag = uuid::Uuid::new_v4().to_string();
        self.query(cmd("LPUSH").arg(list).arg(envelope::encode(message, &tag)))
            .await
    }

    async fn delayed(&mut self, count: usize) -> Result<Vec<Delayed>, Error> {
        self.first_delayed(count).await
    }

    async fn return_delayed(&mut self) -> Result<u64, Error> {
        self.return_all().await
    }

    async fn bury(&mut self, letter: &DeadLetter, bounds: Bounds) -> Result<(), Error> {
        self.bury_letter(letter, bounds).await
    }

    async fn dead_letters(&mut self) -> Result<Vec<DeadLetter>, Error> {
        self.read_dead_letters().await
    }

    async fn replay(&mut self, ids: &[String]) -> Result<u64, Error> {
        self.replay_letters(ids).await
    }

    async fn forget(&mut self, ids: &[String]) -> Result<u64, Error> {
        self.forget_letters(ids).await
    }

    async fn revokes(&mut self, since: f64) -> Result<KeptRevokes, Error> {
        let mut read = pipe();
        for key in self.shared.keys.revoked() {
            read.cmd("ZRANGEBYSCORE").arg(key).arg(since).arg("+inf");
        }
        let (ids, headers): (Vec<Vec<u8>>, Vec<Vec<u8>>) = read
            .query_async(&mut self.connection)
            .await
            .map_err(|error| broker_error(&error))?;
        let texts = |members: Vec<Vec<u8>>| {
            let texts = members
                .iter()
                .map(|member| String::from_utf8_lossy(member).into_owned());
            texts.collect()
        };
        Ok(KeptRevokes {
            ids: texts(ids),
            headers: texts(headers),
        })
    }

    async fn close(mut self: Box<Self>) -> Result<(), Error> {
        let (workers, name) = (self.shared.keys.workers.clone(), self.shared.name.clone());
        self.query(cmd("ZREM").arg(workers).arg(name)).await
    }
}
