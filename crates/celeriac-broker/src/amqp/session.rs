//! One connection: what is fetched, what is settled, and how much may come.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use celeriac_core::broker::{
    Delayed, Delivery, DeliveryTag, Error, ErrorKind, Fate, Maintained, Session, Settlement, Want,
};
use celeriac_core::dead_letter::{Bounds, DeadLetter};
use celeriac_core::queue::Queue;
use celeriac_protocol::Message;
use serde_json::Map;
use tokio::time::Instant;

use super::consuming::{Limits, Subscription};
use super::credit::{self, Flow, Widening};
use super::delays::Delays;
use super::error::{broker_error, unsayable};
use super::link::Link;
use super::message::{self, Arrived};
use super::publisher::Publisher;
use super::wire::connection::Channel;
use super::wire::failure::Failure;
use super::wire::method::{self, Declared};
use super::{Shared, delayed, topology};

/// How long to wait at most before looking whether all is well.
const POLL: Duration = Duration::from_secs(10);
/// How long to wait at most for the rest of what the server may send, where it has sent all of it
/// the last time: messages are cheaper by the batch.
const GATHERING: Duration = Duration::from_millis(1);
/// What came and was not wanted for so long goes back.
const LEFT_OVER_AFTER: Duration = Duration::from_secs(1);

pub(super) struct AmqpSession {
    pub(super) shared: Arc<Shared>,
    pub(super) link: Link,
    /// Consumes and settles.
    pub(super) channel: Channel,
    /// Asks what may be refused, which costs a channel its life.
    asking: Option<Channel>,
    pub(super) publisher: Option<Publisher>,
    pub(super) subscriptions: Vec<Subscription>,
    /// How the server is told how much may come.
    pub(super) limits: Limits,
    pub(super) widening: Widening,
    /// What came and was not handed out.
    pub(super) inbox: VecDeque<Arrived>,
    /// Since when something has been in the inbox.
    pub(super) inbox_since: Instant,
    /// Whether something came into the inbox that no exchange has seen.
    pub(super) is_fresh: bool,
    /// Whether nothing may come: it would be in vain to wait.
    is_held_back: bool,
    /// The consumer of each message that came and is not settled, by its tag.
    pub(super) outstanding: BTreeMap<u64, u64>,
    /// What was handed out and is not settled, by its tag.
    pub(super) handed: HashMap<u64, Arrived>,
    pub(super) delays: Delays,
    /// What came of what the server may send.
    pub(super) flow: Flow,
    pub(super) next_consumer: u64,
    /// What was declared, until it is known whether messages with an ETA wait in the server.
    declared: Vec<Queue>,
    /// Where consuming begins when it begins again.
    pub(super) turn: usize,
}

impl AmqpSession {
    pub(super) async fn open(shared: Arc<Shared>) -> Result<Self, Error> {
        let link = shared.address.connect().await?;
        let channel = link.channel().await?;
        let now = Instant::now();
        let limits = if shared.refuses_channel_limits.load(Ordering::Relaxed) {
            Limits::Consumer
        } else {
            Limits::Channel(None)
        };
        Ok(Self {
            widening: Widening::new(limits == Limits::Consumer, now),
            link,
            channel,
            asking: None,
            publisher: None,
            subscriptions: Vec::new(),
            limits,
            inbox: VecDeque::new(),
            inbox_since: now,
            is_fresh: false,
            is_held_back: true,
            outstanding: BTreeMap::new(),
            handed: HashMap::new(),
            delays: Delays::new(Arc::clone(&shared.remembered)),
            shared,
            flow: Flow::default(),
            next_consumer: 1,
            declared: Vec::new(),
            turn: 0,
        })
    }

    /// The channel for what may be refused.
    pub(super) async fn asking(&mut self) -> Result<Channel, Error> {
        if let Some(channel) = &self.asking
            && channel.is_open()
        {
            return Ok(channel.clone());
        }
        let channel = self.link.channel().await?;
        self.asking = Some(channel.clone());
        Ok(channel)
    }

    /// The connection for publishing.
    pub(super) async fn open_publisher(&mut self) -> Result<&Publisher, Error> {
        let publisher = match self.publisher.take().filter(Publisher::is_alive) {
            Some(publisher) => publisher,
            None => Publisher::open(&self.shared.address).await?,
        };
        Ok(self.publisher.insert(publisher))
    }

    /// Takes from the inbox what is wanted, and lessens the want by it. What is acknowledged by
    /// being handed out is added to `settled`.
    fn hand_out(&mut self, want: &mut Want, settled: &mut Vec<Settlement>) -> Vec<Delivery> {
        let mut deliveries = Vec::new();
        while want.runnable > 0 && want.total > 0 {
            let due = self.delays.take_due();
            let Some(arrived) = due.or_else(|| self.inbox.pop_front()) else {
                break;
            };
            want.total -= 1;
            if !arrived.is_held {
                want.runnable -= 1;
            }
            let tag = DeliveryTag(arrived.delivery.tag);
            if self.acknowledges_at_once(&arrived.queue) {
                settled.extend(self.take_out(Settlement {
                    tag,
                    fate: Fate::Ack,
                }));
            }
            deliveries.push(Delivery {
                tag,
                queue: Arc::clone(&arrived.queue),
                message: message::message(&arrived.delivery),
            });
            self.handed.insert(tag.0, arrived);
        }
        deliveries
    }

    fn acknowledges_at_once(&self, queue: &str) -> bool {
        self.subscriptions
            .iter()
            .any(|subscription| subscription.queue.no_ack && &*subscription.name == queue)
    }

    /// Counts a message as settled; `None` when it is not out.
    fn take_out(&mut self, settlement: Settlement) -> Option<Settlement> {
        let number = self.outstanding.remove(&settlement.tag.0)?;
        let consumer = self
            .subscriptions
            .iter_mut()
            .filter_map(|subscription| subscription.consumer.as_mut())
            .find(|consumer| consumer.number == number);
        if let Some(consumer) = consumer {
            consumer.outstanding -= 1;
        }
        Some(settlement)
    }

    /// Takes out messages that the server has confirmed to have for later.
    fn take_delayed(&mut self) -> Vec<Settlement> {
        let settled = self.delays.take_settled().into_iter();
        settled
            .filter_map(|settlement| self.take_out(settlement))
            .collect()
    }

    /// Tells the server what became of messages that were taken out.
    fn settle(&self, settled: &[Settlement]) -> Result<(), Error> {
        let mut acks = Vec::with_capacity(settled.len());
        for Settlement { tag, fate } in settled {
            let requeue = match fate {
                Fate::Ack => {
                    acks.push(tag.0);
                    continue;
                }
                Fate::Reject => false,
                // What is delayed is settled by what the server says of its copy.
                Fate::Requeue | Fate::Release | Fate::Delay(_) => true,
            };
            self.tell(&method::reject(tag.0, requeue))?;
        }
        let first_out = self.outstanding.keys().next().copied();
        let (together, others) = credit::together(acks, first_out);
        if let Some(last) = together {
            self.tell(&method::ack(last, true))?;
        }
        for tag in others {
            self.tell(&method::ack(tag, false))?;
        }
        Ok(())
    }

    /// Gives back what came and was not wanted for long, where that leaves no trace.
    async fn give_back_left_over(&mut self) -> Result<(), Error> {
        let is_due = self.inbox_since.elapsed() >= LEFT_OVER_AFTER;
        if self.limits == Limits::Consumer || self.inbox.is_empty() || !is_due {
            return Ok(());
        }
        // What comes to a consumer that has to stay would come again at once.
        let kept: Vec<Arc<str>> = self
            .subscriptions
            .iter()
            .filter(|subscription| subscription.is_kept())
            .map(|subscription| Arc::clone(&subscription.name))
            .collect();
        let released = self.empty_inbox(|arrived| !kept.contains(&arrived.queue));
        self.hold_back(0).await?;
        self.settle(&released)
    }

    /// Takes messages out of the inbox, to be given back.
    fn empty_inbox(&mut self, is_meant: impl Fn(&Arrived) -> bool) -> Vec<Settlement> {
        let (meant, kept) = std::mem::take(&mut self.inbox)
            .into_iter()
            .partition(|arrived| is_meant(arrived));
        self.inbox = kept;
        let meant: VecDeque<Arrived> = meant;
        meant
            .iter()
            .filter_map(|arrived| {
                self.take_out(Settlement {
                    tag: DeliveryTag(arrived.delivery.tag),
                    fate: Fate::Release,
                })
            })
            .collect()
    }

    /// Declares where messages with an ETA wait, if any queue needs that.
    async fn declare_delayed_delivery(&mut self) -> Result<(), Error> {
        let declared = std::mem::take(&mut self.declared);
        if declared.is_empty() {
            return Ok(());
        }
        let has_quorum_queues =
            || self.shared.has_quorum_queues || declared.iter().any(topology::is_quorum);
        if !self.shared.detects_quorum_queues || !has_quorum_queues() {
            return Ok(());
        }
        let channel = self.asking().await?;
        if let Err(error) = delayed::declare(&channel, &declared, &self.shared.levels).await {
            tracing::warn!(
                %error,
                "native delayed delivery can't be set up: tasks with an ETA are not delayed"
            );
        }
        self.check()
    }

    /// Waits until the server has done what it was told before.
    async fn catch_up(&mut self) -> Result<(), Error> {
        let limit = match self.limits {
            Limits::Channel(Some(limit)) => Some(method::qos(limit, true)),
            Limits::Channel(None) => None,
            Limits::Consumer => Some(method::qos(1, false)),
        };
        if let Some(limit) = limit {
            let answer = self.channel.call(&limit).await;
            answer.map_err(|failure| self.shared.lost(&failure))?;
        }
        self.collect()
    }

    async fn settle_and_fetch(
        &mut self,
        settlements: &[Settlement],
        mut want: Want,
    ) -> Result<Vec<Delivery>, Error> {
        self.collect()?;
        let mut settled = Vec::with_capacity(settlements.len());
        let mut delays = Vec::new();
        for settlement in settlements {
            if let Fate::Delay(delay) = settlement.fate {
                delays.push((settlement.tag, delay));
            } else {
                self.handed.remove(&settlement.tag.0);
                settled.extend(self.take_out(*settlement));
            }
        }
        let delayed = self.delay(&delays).await;
        settled.extend(self.take_delayed());
        if delayed.is_err() {
            self.settle(&settled)?;
        }
        delayed?;
        let mut deliveries = self.hand_out(&mut want, &mut settled);
        let credit = self.credit(want);
        self.hold_back(credit).await?;
        // Cancelled consumers may have left something.
        deliveries.extend(self.hand_out(&mut want, &mut settled));
        self.is_fresh = false;
        self.settle(&settled)?;
        let credit = self.credit(want);
        self.is_held_back = credit == 0;
        self.flow.told(credit);
        self.consume(credit)?;
        Ok(deliveries)
    }

    /// How many messages may come beyond those that are here.
    fn credit(&mut self, want: Want) -> usize {
        if self.delays.is_full() {
            return 0;
        }
        let credit = self.widening.credit(want, Instant::now());
        credit.saturating_sub(self.inbox.len())
    }

    /// Whether the next exchange lets something come that the last one did not. While too many are
    /// held it does not: whoever waits has to wait for one of them, or they go round for nothing.
    fn awaits_credit(&self) -> bool {
        self.is_held_back && !self.delays.is_full()
    }

    /// Waits until something has come into the inbox.
    async fn arriving(&mut self) -> Result<(), Error> {
        poll_fn(|context| self.poll_collect(context)).await
    }

    /// Tells the server something that it does not answer, or whose answer does not matter.
    pub(super) fn tell(&self, request: &method::Request) -> Result<(), Error> {
        let told = self.channel.tell(request);
        told.map_err(|failure| self.shared.lost(&failure))
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        if self.link.is_alive() && self.channel.is_open() {
            return Ok(());
        }
        let text = "the connection to the server is lost";
        Err(Error::new(ErrorKind::Connection, text))
    }
}

impl Shared {
    /// What the loss of the consuming channel or its connection means.
    pub(super) fn lost(&self, failure: &Failure) -> Error {
        let error = broker_error(failure);
        if error.message.contains("global") && error.message.contains("qos") {
            self.refuses_channel_limits.store(true, Ordering::Relaxed);
            return Error::new(ErrorKind::Connection, error.message);
        }
        error
    }
}

#[async_trait]
impl Session for AmqpSession {
    async fn declare(&mut self, queue: &Queue) -> Result<(), Error> {
        let channel = self.asking().await?;
        topology::declare(&channel, queue).await?;
        self.declared.push(queue.clone());
        Ok(())
    }

    async fn subscribe(&mut self, queue: &Queue) -> Result<(), Error> {
        let is_known = |subscription: &Subscription| *subscription.name == *queue.name;
        if self.subscriptions.iter().any(is_known) {
            return Ok(());
        }
        if queue.no_declare {
            // It is bound to where messages with an ETA come out all the same.
            self.declared.push(queue.clone());
        }
        self.declare_delayed_delivery().await?;
        if topology::is_replicated(queue) && self.limits != Limits::Consumer {
            self.limits = Limits::Consumer;
            self.widening = Widening::new(true, Instant::now());
            let all: Vec<usize> = (0..self.subscriptions.len()).collect();
            self.cancel_consumers(&all).await?;
        }
        self.subscriptions.push(Subscription {
            queue: queue.clone(),
            name: queue.name.as_str().into(),
            consumer: None,
        });
        Ok(())
    }

    async fn cancel(&mut self, queue: &str) -> Result<(), Error> {
        let Some(at) = self
            .subscriptions
            .iter()
            .position(|subscription| &*subscription.name == queue)
        else {
            return Ok(());
        };
        self.cancel_consumers(&[at]).await?;
        let mut released = self.empty_inbox(|arrived| &*arrived.queue == queue);
        for settlement in self.delays.give_up(queue) {
            released.extend(self.take_out(settlement));
        }
        self.subscriptions.remove(at);
        self.settle(&released)
    }

    async fn exchange(
        &mut self,
        settlements: &[Settlement],
        want: Want,
    ) -> Result<Vec<Delivery>, Error> {
        let exchanged = self.settle_and_fetch(settlements, want).await;
        match exchanged {
            // What the consumers were told says more.
            Err(error) => Err(self.collect().err().unwrap_or(error)),
            Ok(deliveries) => Ok(deliveries),
        }
    }

    async fn wait(&mut self) -> Result<(), Error> {
        // Whoever waits wants something now: the server has to hear of it first.
        if std::mem::take(&mut self.is_fresh) || self.awaits_credit() {
            return self.check();
        }
        let poll = Instant::now() + self.delays.next().map_or(POLL, |next| next.min(POLL));
        let until = self.widening.ends().map_or(poll, |ends| ends.min(poll));
        // Running out of time is an answer as good as a message.
        tokio::time::timeout_at(until, self.arriving())
            .await
            .unwrap_or(Ok(()))?;
        let gathers_until = Instant::now() + GATHERING;
        while self.flow.is_more_coming() {
            match tokio::time::timeout_at(gathers_until, self.arriving()).await {
                Ok(collected) => collected?,
                Err(_) => break,
            }
        }
        self.check()
    }

    async fn maintain(&mut self) -> Result<Maintained, Error> {
        self.collect()?;
        self.check()?;
        let delayed = self.maintain_delays().await;
        let settled = self.take_delayed();
        self.settle(&settled)?;
        delayed?;
        self.give_back_left_over().await?;
        Ok(Maintained {
            next: LEFT_OVER_AFTER,
            ..Maintained::default()
        })
    }

    async fn purge(&mut self, queue: &str) -> Result<u64, Error> {
        self.catch_up().await?;
        let mut purged = self.empty_inbox(|arrived| &*arrived.queue == queue);
        for settlement in &mut purged {
            settlement.fate = Fate::Ack;
        }
        self.settle(&purged)?;
        let purge = method::queue_purge(queue).map_err(|error| unsayable("a queue", &error))?;
        let answer = self.asking().await?.call(&purge).await;
        let answer = answer.map_err(|failure| broker_error(&failure))?;
        let waiting = method::purged(&answer).map_err(|error| broker_error(&error.into()))?;
        Ok(u64::from(waiting) + purged.len() as u64)
    }

    async fn size(&mut self, queue: &str) -> Result<u64, Error> {
        self.catch_up().await?;
        let here = self.inbox.iter().filter(|arrived| &*arrived.queue == queue);
        let here = here.count() as u64;
        let passive = Declared {
            passive: true,
            ..Declared::default()
        };
        let declare = method::queue_declare(queue, passive, &Map::new())
            .map_err(|error| unsayable("a queue", &error))?;
        let answer = self.asking().await?.call(&declare).await;
        let answer = answer.map_err(|failure| broker_error(&failure))?;
        let waiting = method::messages_in(&answer).map_err(|error| broker_error(&error.into()))?;
        Ok(u64::from(waiting) + here)
    }

    async fn publish(&mut self, queue: &str, message: &Message) -> Result<(), Error> {
        self.open_publisher()
            .await?
            .publish("", queue, message)
            .await
    }

    async fn delayed(&mut self, count: usize) -> Result<Vec<Delayed>, Error> {
        let is_consumed = |queue: &str| {
            let mut consumed = self.subscriptions.iter();
            consumed.any(|subscription| &*subscription.name == queue)
        };
        Ok(self.delays.first(count, is_consumed))
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

    async fn close(mut self: Box<Self>) -> Result<(), Error> {
        if let Some(publisher) = &self.publisher
            && let Err(error) = publisher.close().await
        {
            tracing::debug!(%error, "the connection for publishing was not left in order");
        }
        let released = self.empty_inbox(|_| true);
        self.settle(&released)?;
        self.link.close().await
    }
}

#[cfg(test)]
mod tests {
    use celeriac_core::broker::{Broker as _, Delay};
    use celeriac_net::ServerUrl;
    use celeriac_protocol::{DeliveryInfo, Marks};
    use celeriac_testing::server::RabbitMqServer;
    use jiff::{SignedDuration, Timestamp};
    use tokio::time::timeout;

    use super::super::AmqpBroker;
    use super::super::delays::MOST_HELD;
    use super::*;

    const ONE: Want = Want {
        runnable: 1,
        total: 1,
    };

    fn message() -> Message {
        Message {
            body: "[]".into(),
            content_type: Some("application/json".into()),
            content_encoding: Some("utf-8".into()),
            headers: r#"{"id": "1"}"#.into(),
            properties: "{}".into(),
            delivery_info: DeliveryInfo::default(),
        }
    }

    async fn fetch(session: &mut dyn Session, settlements: &[Settlement]) -> Vec<Delivery> {
        let mut fetched = session.exchange(settlements, ONE).await.unwrap();
        while fetched.is_empty() {
            session.wait().await.unwrap();
            fetched = session.exchange(&[], ONE).await.unwrap();
        }
        fetched
    }

    #[tokio::test]
    async fn who_holds_all_that_may_be_held_waits_for_the_first_of_them() {
        let server = RabbitMqServer::shared();
        let url = ServerUrl::parse(&server.url(&server.vhost())).unwrap();
        let broker = AmqpBroker::new(&url, &crate::open::Options::default()).unwrap();
        let mut session = broker.connect().await.unwrap();
        // Messages of a queue that may be gone by then wait in the worker.
        let mut queue = Queue::direct("q");
        queue.durable = false;
        session.declare(&queue).await.unwrap();
        session.subscribe(&queue).await.unwrap();
        for _ in 0..=MOST_HELD {
            session.publish("q", &message()).await.unwrap();
        }
        let until = Some(Timestamp::now() + SignedDuration::from_secs(3));
        let marks = Marks::default();
        let later = Fate::Delay(Delay { until, marks });
        let mut settlements = Vec::new();
        for _ in 0..MOST_HELD {
            let fetched = fetch(&mut *session, &settlements).await;
            let tag = fetched[0].tag;
            settlements = vec![Settlement { tag, fate: later }];
        }
        // One waits in the queue, and is not let come.
        assert_eq!(session.exchange(&settlements, ONE).await.unwrap().len(), 0);
        let at_once = timeout(Duration::from_millis(200), session.wait()).await;
        assert!(at_once.is_err(), "there is nothing to do");
        let due = timeout(Duration::from_secs(20), session.wait()).await;
        due.unwrap().unwrap();
        assert_eq!(session.exchange(&[], ONE).await.unwrap().len(), 1);
        session.close().await.unwrap();
    }
}
