//! Consumers: what comes over them, and how much the server may send.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use celeriac_core::broker::{Error, ErrorKind};
use celeriac_core::queue::Queue;
use tokio::time::Instant;

use super::credit::{self, Limit};
use super::error::unsayable;
use super::message::{self, Arrived, Present};
use super::session::AmqpSession;
use super::topology;
use super::wire::connection::{Arrival, Delivery};
use super::wire::method;

/// How the server is told how much may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Limits {
    /// A limit for the whole channel, with the last that was sent.
    Channel(Option<u16>),
    /// One for each consumer.
    Consumer,
}

/// Before a consumer's number, its tag.
const TAG: &str = "celeriac-";

/// A queue that is subscribed to.
pub(super) struct Subscription {
    pub(super) queue: Queue,
    pub(super) name: Arc<str>,
    pub(super) consumer: Option<Consumer>,
}

impl Subscription {
    fn consumes(&self) -> bool {
        self.consumer.is_some()
    }

    /// Whether its consumer has to stay.
    pub(super) fn is_kept(&self) -> bool {
        topology::is_kept_by_its_consumer(&self.queue)
    }
}

/// A consumer that the server knows.
pub(super) struct Consumer {
    pub(super) number: u64,
    /// Its own limit, where it has one.
    prefetch: usize,
    /// What came over it and is not settled.
    pub(super) outstanding: usize,
}

impl Consumer {
    /// Its tag.
    fn tag(&self) -> String {
        format!("{TAG}{}", self.number)
    }

    /// How many more messages its own limit lets come.
    fn left(&self) -> usize {
        self.prefetch.saturating_sub(self.outstanding)
    }
}

impl AmqpSession {
    /// Moves what came from the consumers into the inbox, without waiting.
    pub(super) fn collect(&mut self) -> Result<(), Error> {
        match self.poll_collect(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(collected) => collected,
            Poll::Pending => Ok(()),
        }
    }

    /// Moves what came into the inbox; ready when something did, or the connection is lost.
    pub(super) fn poll_collect(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let present = Present::default();
        let before = self.inbox.len();
        loop {
            match self.channel.poll_arrival(context) {
                Poll::Ready(Ok(Arrival::Delivery(delivery))) => self.take_in(delivery, &present),
                Poll::Ready(Ok(Arrival::Cancelled(tag))) => {
                    return Poll::Ready(Err(self.cancelled(&tag)));
                }
                Poll::Ready(Err(failure)) => return Poll::Ready(Err(self.shared.lost(&failure))),
                Poll::Pending if self.inbox.len() == before => return Poll::Pending,
                Poll::Pending => return Poll::Ready(Ok(())),
            }
        }
    }

    /// What it means that the server has cancelled a consumer.
    fn cancelled(&self, tag: &str) -> Error {
        let queue = self
            .subscription(tag)
            .map(|at| &*self.subscriptions[at].name);
        let text = format!(
            "the server cancelled the consumer of queue {:?}: is it deleted?",
            queue.unwrap_or_default()
        );
        Error::new(ErrorKind::Connection, text)
    }

    /// The subscription whose consumer has this tag.
    fn subscription(&self, tag: &str) -> Option<usize> {
        let number: u64 = tag.strip_prefix(TAG)?.parse().ok()?;
        let is_meant = |consumer: &Consumer| consumer.number == number;
        self.subscriptions
            .iter()
            .position(|subscription| subscription.consumer.as_ref().is_some_and(is_meant))
    }

    /// Puts a message into the inbox.
    fn take_in(&mut self, delivery: Delivery, present: &Present) {
        let Some(at) = self.subscription(&delivery.consumer) else {
            // A consumer is forgotten when the server has confirmed that it is cancelled.
            tracing::error!(consumer = %delivery.consumer, "a message for an unknown consumer");
            let given_back = self.channel.tell(&method::reject(delivery.tag, true));
            if let Err(failure) = given_back {
                tracing::debug!(%failure, "it comes again with the next connection");
            }
            return;
        };
        let subscription = &mut self.subscriptions[at];
        let mut number = 0;
        if let Some(consumer) = &mut subscription.consumer {
            consumer.outstanding += 1;
            number = consumer.number;
        }
        let now = Instant::now();
        let is_held = message::is_held(&delivery, present);
        self.widening.came(is_held, now);
        self.outstanding.insert(delivery.tag, number);
        self.flow.came();
        if self.inbox.is_empty() {
            self.inbox_since = now;
        }
        self.inbox.push_back(Arrived {
            queue: Arc::clone(&subscription.name),
            is_held,
            delivery,
        });
        self.is_fresh = true;
    }

    /// Sees to it that no more than `credit` messages can come once the server is told of what is
    /// no longer out.
    pub(super) async fn hold_back(&mut self, credit: usize) -> Result<(), Error> {
        if matches!(self.limits, Limits::Channel(_))
            && !credit::is_countable(self.outstanding.len(), credit)
            && !self.subscriptions.iter().any(Subscription::is_kept)
        {
            self.limit_consumers().await?;
        }
        match self.limits {
            Limits::Channel(_) => match credit::limit(self.outstanding.len(), credit) {
                Limit::At(limit) => self.limit_channel(limit),
                Limit::Nothing => {
                    self.cancel_where(|_| true).await?;
                    if self.subscriptions.iter().any(Subscription::consumes) {
                        self.limit_channel(1)?;
                    }
                    Ok(())
                }
            },
            Limits::Consumer => {
                self.cancel_where(|consumer| !credit::serves(consumer.left(), credit))
                    .await
            }
        }
    }

    /// Gives each consumer a limit of its own from now on. Such a limit counts what came over its
    /// consumer alone, so that it says a small number however much is held.
    async fn limit_consumers(&mut self) -> Result<(), Error> {
        tracing::info!("more messages are held than a limit for the channel can count");
        self.cancel_where(|_| true).await?;
        self.limits = Limits::Consumer;
        self.tell(&method::qos(0, true))
    }

    /// Tells the channel's limit, if that is a new one.
    fn limit_channel(&mut self, limit: u16) -> Result<(), Error> {
        if self.limits == Limits::Channel(Some(limit)) {
            return Ok(());
        }
        if limit == 0 {
            tracing::warn!("more messages are held than AMQP can count: the prefetch has no limit");
        }
        self.limits = Limits::Channel(Some(limit));
        self.tell(&method::qos(limit, true))
    }

    /// Cancels consumers, but for those that keep their queues, and collects what still comes.
    async fn cancel_where(&mut self, is_unfit: impl Fn(&Consumer) -> bool) -> Result<(), Error> {
        let unfit: Vec<usize> = (0..self.subscriptions.len())
            .filter(|at| {
                let subscription = &self.subscriptions[*at];
                !subscription.is_kept() && subscription.consumer.as_ref().is_some_and(&is_unfit)
            })
            .collect();
        self.cancel_consumers(&unfit).await
    }

    /// Cancels the consumers of these subscriptions, and collects what still comes.
    pub(super) async fn cancel_consumers(&mut self, unfit: &[usize]) -> Result<(), Error> {
        let consumers = unfit
            .iter()
            .filter_map(|at| self.subscriptions[*at].consumer.as_ref());
        let mut cancelling = Vec::with_capacity(unfit.len());
        for consumer in consumers {
            let cancel = method::cancel(&consumer.tag());
            let cancel = cancel.map_err(|error| unsayable("a consumer", &error))?;
            cancelling.push(self.channel.call(&cancel));
        }
        for cancelled in cancelling {
            let cancelled = cancelled.await;
            cancelled.map_err(|failure| self.shared.lost(&failure))?;
        }
        // What the server sent before it confirmed.
        self.collect()?;
        for at in unfit {
            self.subscriptions[*at].consumer = None;
        }
        Ok(())
    }

    /// Begins to consume from each queue without a consumer.
    pub(super) fn consume(&mut self, credit: usize) -> Result<(), Error> {
        if credit == 0 || self.subscriptions.iter().all(Subscription::consumes) {
            return Ok(());
        }
        let prefetch = u16::try_from(credit).unwrap_or(u16::MAX);
        let mut is_limited = false;
        // The first consumer may be sent all of the credit: queues take turns.
        self.turn = self.turn.wrapping_add(1);
        let queues = self.subscriptions.len();
        for at in (0..queues).map(|at| (at + self.turn) % queues) {
            let subscription = &self.subscriptions[at];
            if subscription.consumer.is_some() {
                continue;
            }
            if self.limits == Limits::Consumer && !is_limited {
                self.tell(&method::qos(prefetch, false))?;
                is_limited = true;
            }
            let consumer = Consumer {
                number: self.next_consumer,
                prefetch: usize::from(prefetch),
                outstanding: 0,
            };
            self.next_consumer += 1;
            let queue = &subscription.queue;
            let arguments = &queue.consumer_arguments;
            let consume = method::consume(&queue.name, &consumer.tag(), false, true, arguments)
                .map_err(|error| unsayable(&format!("the queue {:?}", queue.name), &error))?;
            self.tell(&consume)?;
            self.subscriptions[at].consumer = Some(consumer);
        }
        Ok(())
    }
}
