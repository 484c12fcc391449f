//! Messages that were published on a channel with confirms, and what the server says of them.

use std::collections::VecDeque;

use tokio::sync::oneshot;

use super::super::failure::Failure;
use super::super::method::Returned;

/// What became of a message that was published.
pub(in crate::amqp) type Confirmed = oneshot::Receiver<Result<Confirmation, Failure>>;

/// What the server did with a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::amqp) enum Confirmation {
    /// It has it.
    Ack,
    /// It did not take it.
    Nack,
    /// No queue wants it; with the reason.
    Returned(String),
}

/// Messages that were published and are not confirmed.
#[derive(Debug, Default)]
pub(super) struct Confirms {
    published: u64,
    /// By their numbers.
    waiting: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    exchange: String,
    routing_key: String,
    /// Why it came back.
    returned: Option<String>,
    to: oneshot::Sender<Result<Confirmation, Failure>>,
}

impl Confirms {
    /// A message was published.
    pub(super) fn expect(
        &mut self,
        exchange: &str,
        routing_key: &str,
        to: oneshot::Sender<Result<Confirmation, Failure>>,
    ) {
        self.published += 1;
        self.waiting.push_back(Waiting {
            number: self.published,
            exchange: exchange.to_owned(),
            routing_key: routing_key.to_owned(),
            returned: None,
            to,
        });
    }

    /// A message comes back, and is confirmed later. Which one it is the server does not say: any
    /// that went the same way counts as returned, so that none is taken for safe that is not.
    pub(super) fn returned(&mut self, returned: &Returned) {
        for waiting in &mut self.waiting {
            if waiting.exchange == returned.exchange && waiting.routing_key == returned.routing_key
            {
                waiting.returned = Some(returned.reason.clone());
            }
        }
    }

    /// The server says what it did with a message, or with all up to it.
    pub(super) fn tell(&mut self, tag: u64, multiple: bool, is_ack: bool) {
        let end = self
            .waiting
            .partition_point(|waiting| waiting.number <= tag);
        let start = if multiple {
            0
        } else {
            self.waiting.partition_point(|waiting| waiting.number < tag)
        };
        for waiting in self.waiting.drain(start..end) {
            let confirmation = match (waiting.returned, is_ack) {
                (Some(reason), _) => Confirmation::Returned(reason),
                (None, true) => Confirmation::Ack,
                (None, false) => Confirmation::Nack,
            };
            // Whoever published may not care.
            drop(waiting.to.send(Ok(confirmation)));
        }
    }

    /// Nothing will be confirmed any more.
    pub(super) fn fail(&mut self, failure: &Failure) {
        for waiting in self.waiting.drain(..) {
            drop(waiting.to.send(Err(failure.clone())));
        }
    }
}
