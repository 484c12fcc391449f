//! Consumers: what comes over them, and how much the server may send.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use celeriac_core::broker::{Error, ErrorKind};
use celeriac_core::queue::Queue;
use futures_util::{FutureExt as _, Stream as _};
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use tokio::time::Instant;

use super::credit::{self, Limit};
use super::error::{broker_error, unsayable};
use super::message::{self, Arrived, Present};
use super::session::AmqpSession;
use super::table::{self, short};
use super::topology;

/// How the server is told how much may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Limits {
    /// A limit for the whole channel, with the last that was sent.
    Channel(Option<u16>),
    /// One for each consumer.
    Consumer,
}

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
}

/// A consumer that the server knows.
pub(super) struct Consumer {
    pub(super) number: u64,
    stream: lapin::Consumer,
    /// Its own limit, where it has one.
    prefetch: usize,
    /// What came over it and is not settled.
    pub(super) outstanding: usize,
}

impl Consumer {
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
        for at in 0..self.subscriptions.len() {
            while let Some(consumer) = &mut self.subscriptions[at].consumer {
                match Pin::new(&mut consumer.stream).poll_next(context) {
                    Poll::Pending => break,
                    Poll::Ready(Some(Ok(delivery))) => {
                        consumer.outstanding += 1;
                        let number = consumer.number;
                        self.take_in(at, number, delivery, &present);
                    }
                    Poll::Ready(Some(Err(error))) => {
                        return Poll::Ready(Err(self.shared.lost(&error)));
                    }
                    Poll::Ready(None) => {
                        let text = format!(
                            "the server cancelled the consumer of queue {:?}: is it deleted?",
                            self.subscriptions[at].name
                        );
                        return Poll::Ready(Err(Error::new(ErrorKind::Connection, text)));
                    }
                }
            }
        }
        if self.inbox.len() == before {
            Poll::Pending
        } else {
            Poll::Ready(Ok(()))
        }
    }

    /// Puts a message into the inbox.
    fn take_in(
        &mut self,
        subscription: usize,
        consumer: u64,
        delivery: lapin::message::Delivery,
        present: &Present,
    ) {
        let now = Instant::now();
        let is_held = message::is_held(&delivery, present);
        self.widening.came(is_held, now);
        self.outstanding.insert(delivery.delivery_tag, consumer);
        self.tags.came(delivery.delivery_tag);
        self.flow.came();
        if self.inbox.is_empty() {
            self.inbox_since = now;
        }
        self.inbox.push_back(Arrived {
            queue: Arc::clone(&self.subscriptions[subscription].name),
            is_held,
            delivery,
        });
        self.is_fresh = true;
    }

    /// Sees to it that no more than `credit` messages can come once the server is told of what is
    /// no longer out.
    pub(super) async fn hold_back(&mut self, credit: usize) -> Result<(), Error> {
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

    /// Tells the channel's limit, if that is a new one.
    fn limit_channel(&mut self, limit: u16) -> Result<(), Error> {
        if self.limits == Limits::Channel(Some(limit)) {
            return Ok(());
        }
        if limit == 0 {
            tracing::warn!("more messages are held than AMQP can count: the prefetch has no limit");
        }
        self.limits = Limits::Channel(Some(limit));
        send(
            self.channel
                .basic_qos(limit, BasicQosOptions { global: true }),
        )
    }

    /// Cancels consumers, but for those that keep their queues, and collects what still comes.
    async fn cancel_where(&mut self, is_unfit: impl Fn(&Consumer) -> bool) -> Result<(), Error> {
        let unfit: Vec<usize> = (0..self.subscriptions.len())
            .filter(|at| {
                let subscription = &self.subscriptions[*at];
                !topology::is_kept_by_its_consumer(&subscription.queue)
                    && subscription.consumer.as_ref().is_some_and(&is_unfit)
            })
            .collect();
        self.cancel_consumers(&unfit).await
    }

    /// Cancels the consumers of these subscriptions, and collects what still comes.
    pub(super) async fn cancel_consumers(&mut self, unfit: &[usize]) -> Result<(), Error> {
        let tags = unfit
            .iter()
            .filter_map(|at| Some(self.subscriptions[*at].consumer.as_ref()?.stream.tag()));
        let cancelling: Vec<_> = tags
            .map(|tag| {
                self.channel
                    .basic_cancel(tag, BasicCancelOptions::default())
            })
            .collect();
        futures_util::future::try_join_all(cancelling)
            .await
            .map_err(|error| self.shared.lost(&error))?;
        let present = Present::default();
        let mut context = Context::from_waker(Waker::noop());
        for at in unfit {
            let Some(mut consumer) = self.subscriptions[*at].consumer.take() else {
                continue;
            };
            // It ends with what the server sent before it confirmed.
            while let Poll::Ready(Some(delivery)) =
                Pin::new(&mut consumer.stream).poll_next(&mut context)
            {
                let delivery = delivery.map_err(|error| self.shared.lost(&error))?;
                self.take_in(*at, consumer.number, delivery, &present);
            }
        }
        Ok(())
    }

    /// Begins to consume from each queue without a consumer.
    pub(super) async fn consume(&mut self, credit: usize) -> Result<(), Error> {
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
                let options = BasicQosOptions { global: false };
                send(self.channel.basic_qos(prefetch, options))?;
                is_limited = true;
            }
            let number = self.next_consumer;
            self.next_consumer += 1;
            let what = || format!("the queue {:?}", subscription.name);
            let arguments = table::arguments(&subscription.queue.consumer_arguments)
                .map_err(|error| unsayable(&what(), &error))?;
            let stream = self
                .channel
                .basic_consume(
                    short(&subscription.name).map_err(|error| unsayable(&what(), &error))?,
                    format!("celeriac-{number}").into(),
                    BasicConsumeOptions {
                        nowait: true,
                        ..BasicConsumeOptions::default()
                    },
                    arguments,
                )
                .await
                .map_err(|error| self.shared.lost(&error))?;
            self.subscriptions[at].consumer = Some(Consumer {
                number,
                stream,
                prefetch: usize::from(prefetch),
                outstanding: 0,
            });
        }
        Ok(())
    }
}

/// Sends a frame without waiting for what the server says to it: an error of the connection comes
/// to light with the next.
pub(super) fn send(frame: impl Future<Output = lapin::Result<()>>) -> Result<(), Error> {
    match frame.now_or_never() {
        None | Some(Ok(())) => Ok(()),
        Some(Err(error)) => Err(broker_error(&error)),
    }
}
