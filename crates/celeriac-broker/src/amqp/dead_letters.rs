//! Dead letters: records in a queue of their own, the oldest at its head.
//!
//! A queue knows no ids. Whoever looks for a letter takes all of them and puts back what is not
//! meant, to where it stood; for that moment others see none. A letter that is buried twice stands
//! there twice, and the later counts.

use std::collections::HashSet;
use std::time::Duration;

use celeriac_core::broker::{Error, ErrorKind};
use celeriac_core::dead_letter::{Bounds, Content, DeadLetter};
use celeriac_core::queue::Queue;
use celeriac_protocol::{DeliveryInfo, Marks, Message, envelope, json};
use jiff::Timestamp;
use serde_json::Map;
use tokio::time::timeout;

use super::error::{broker_error, unsayable};
use super::publisher::Publisher;
use super::session::AmqpSession;
use super::topology;
use super::wire::connection::{Arrival, Channel, Delivery};
use super::wire::failure::{Failure, Refusal, code};
use super::wire::method::{self, Declared};

/// The queue of dead letters.
const QUEUE: &str = "celeriac.dead";
/// How long the server may take to confirm that it has a letter: consuming waits for it.
const BURIED_WITHIN: Duration = Duration::from_secs(5);
/// The same for a message that whoever replays it waits for.
const REPLAYED_WITHIN: Duration = Duration::from_secs(20);
/// RabbitMQ's longest expiration: 2^32 - 1 ms.
const LONGEST: Duration = Duration::from_millis(u32::MAX as u64);
/// How many letters are asked for at once.
const AT_ONCE: usize = 256;

/// A letter that was taken out of the queue for a while.
struct Taken {
    tag: u64,
    /// `None` for what somebody else has put there.
    letter: Option<DeadLetter>,
}

impl AmqpSession {
    pub(super) async fn bury_letter(
        &mut self,
        letter: &DeadLetter,
        bounds: Bounds,
    ) -> Result<(), Error> {
        if self.publisher.as_ref().is_some_and(Publisher::is_blocked) {
            // It would lie on the connection, and be there twice when it is tried again.
            return Err(unconfirmed());
        }
        let channel = self.link.channel().await?;
        topology::declare_queue(&channel, &queue()).await?;
        let expiration = expiration(letter, bounds.age, Timestamp::now());
        self.publish_in_time("", QUEUE, &message(letter, expiration), BURIED_WITHIN)
            .await?;
        make_room(&channel, bounds.number).await
    }

    pub(super) async fn read_dead_letters(&mut self) -> Result<Vec<DeadLetter>, Error> {
        let channel = self.link.channel().await?;
        let taken = take_all(&channel).await?;
        give_back(&channel).await?;
        let mut seen = HashSet::new();
        let mut letters: Vec<DeadLetter> = taken
            .into_iter()
            .rev()
            .filter_map(|taken| taken.letter)
            .filter(|letter| seen.insert(letter.id.clone()))
            .collect();
        letters.sort_by_key(|letter| std::cmp::Reverse(letter.died_at));
        Ok(letters)
    }

    pub(super) async fn replay_letters(&mut self, ids: &[String]) -> Result<u64, Error> {
        let channel = self.link.channel().await?;
        let mut replayed = HashSet::new();
        // The latest of those with the same id first; the others go with it.
        for taken in take_all(&channel).await?.into_iter().rev() {
            let Some(letter) = taken.letter.filter(|letter| ids.contains(&letter.id)) else {
                continue;
            };
            if replayed.insert(letter.id.clone()) {
                let message = replayed_message(&letter)?;
                self.publish_in_time("", &letter.queue, &message, REPLAYED_WITHIN)
                    .await?;
            }
            acknowledge(&channel, taken.tag)?;
        }
        give_back(&channel).await?;
        Ok(replayed.len() as u64)
    }

    pub(super) async fn forget_letters(&mut self, ids: &[String]) -> Result<u64, Error> {
        let channel = self.link.channel().await?;
        let mut forgotten = HashSet::new();
        for taken in take_all(&channel).await? {
            let letter = taken.letter.filter(|letter| ids.contains(&letter.id));
            if let Some(letter) = letter {
                acknowledge(&channel, taken.tag)?;
                forgotten.insert(letter.id);
            }
        }
        give_back(&channel).await?;
        Ok(forgotten.len() as u64)
    }

    /// Publishes, and waits for the server, but not for ever.
    async fn publish_in_time(
        &mut self,
        exchange: &str,
        routing_key: &str,
        message: &Message,
        within: Duration,
    ) -> Result<(), Error> {
        let publishing = async {
            let publisher = self.open_publisher().await?;
            publisher.publish(exchange, routing_key, message).await
        };
        timeout(within, publishing)
            .await
            .unwrap_or_else(|_| Err(unconfirmed()))
    }
}

fn unconfirmed() -> Error {
    let text = "RabbitMQ does not confirm that it has taken a message";
    Error::new(ErrorKind::Full, text).with_hint("see its log for an alarm of memory or disk space")
}

/// How the queue of dead letters is declared. It has no bounds of its own: they are settings that
/// may differ between workers, and a queue's arguments may not.
fn queue() -> Queue {
    let mut queue = Queue::direct(QUEUE);
    queue
        .arguments
        .insert("x-queue-type".to_owned(), "classic".into());
    queue
}

/// A letter as it stands in the queue, with headers for whoever looks into it.
fn message(letter: &DeadLetter, expiration: Duration) -> Message {
    let text = |text: &str| json::quote(text);
    let headers = format!(
        r#"{{"cause": {}, "task": {}, "queue": {}}}"#,
        text(letter.cause.name()),
        letter.task.as_deref().map_or("null".to_owned(), text),
        text(&letter.queue),
    );
    Message {
        body: letter.to_json().into(),
        content_type: Some("application/json".into()),
        content_encoding: Some("utf-8".into()),
        headers: headers.into(),
        properties: format!(r#"{{"expiration": "{}"}}"#, expiration.as_millis()).into(),
        delivery_info: DeliveryInfo::default(),
    }
}

/// How long a letter is kept from now on, where those that are older than `age` go.
fn expiration(letter: &DeadLetter, age: Duration, now: Timestamp) -> Duration {
    let elapsed = Duration::try_from(now.duration_since(letter.died_at)).unwrap_or_default();
    age.saturating_sub(elapsed).min(LONGEST)
}

/// The message of a letter as it first came, but for a mark: a worker that has given it up knows it
/// by what it holds, and would acknowledge it as done.
fn replayed_message(letter: &DeadLetter) -> Result<Message, Error> {
    let mut message = first_message(letter)?;
    let marks = Marks {
        replayed: Some(Timestamp::now().as_microsecond()),
        ..Marks::default()
    };
    message.headers = marks.write(&message.headers).into_owned().into();
    Ok(message)
}

/// The message of a letter as it first came.
fn first_message(letter: &DeadLetter) -> Result<Message, Error> {
    let bytes = letter.message.bytes();
    match &letter.message {
        Content::Envelope(_) => envelope::decode(&bytes).map_err(|error| {
            let text = format!("the message of dead letter {} is none: {error}", letter.id);
            Error::new(ErrorKind::Refused, text)
        }),
        Content::Raw(_) => Ok(Message {
            body: bytes,
            content_type: None,
            content_encoding: None,
            headers: "{}".into(),
            properties: "{}".into(),
            delivery_info: DeliveryInfo::default(),
        }),
    }
}

/// How many letters there are; `None` where there is no queue.
async fn count(channel: &Channel) -> Result<Option<usize>, Error> {
    let passive = Declared {
        passive: true,
        ..Declared::default()
    };
    let declare = method::queue_declare(QUEUE, passive, &Map::new())
        .map_err(|error| unsayable("the queue of dead letters", &error))?;
    match channel.call(&declare).await {
        Ok(answer) => {
            let count =
                method::messages_in(&answer).map_err(|error| broker_error(&error.into()))?;
            Ok(Some(count as usize))
        }
        Err(Failure::Refused(Refusal {
            code: code::NOT_FOUND,
            ..
        })) => Ok(None),
        Err(failure) => Err(broker_error(&failure)),
    }
}

/// Takes all letters that are there, the oldest first.
async fn take_all(channel: &Channel) -> Result<Vec<Taken>, Error> {
    let mut taken = Vec::new();
    // The count may be too low: RabbitMQ counts before it has put back what it was told to.
    if count(channel).await?.is_none() {
        return Ok(taken);
    }
    loop {
        let deliveries = take(channel, AT_ONCE).await?;
        taken.extend(deliveries.iter().map(read));
        if deliveries.len() < AT_ONCE {
            return Ok(taken);
        }
    }
}

/// Takes so many letters at most.
async fn take(channel: &Channel, count: usize) -> Result<Vec<Delivery>, Error> {
    let get = method::get(QUEUE);
    let get = get.map_err(|error| unsayable("the queue of dead letters", &error))?;
    let asked: Vec<_> = (0..count).map(|_| channel.call(&get)).collect();
    let mut deliveries = Vec::with_capacity(count);
    for answer in asked {
        let answer = answer.await.map_err(|failure| broker_error(&failure))?;
        if answer != method::GOT {
            continue;
        }
        match channel.arrival().await {
            Ok(Arrival::Delivery(delivery)) => deliveries.push(delivery),
            // Nothing is consumed here.
            Ok(Arrival::Cancelled(_)) => {}
            Err(failure) => return Err(broker_error(&failure)),
        }
    }
    Ok(deliveries)
}

fn read(delivery: &Delivery) -> Taken {
    let record = std::str::from_utf8(&delivery.body).ok();
    Taken {
        tag: delivery.tag,
        letter: record.and_then(|record| DeadLetter::from_json(record).ok()),
    }
}

/// Removes the oldest letters, as many as there are too many. Those that are too old expire.
async fn make_room(channel: &Channel, most: usize) -> Result<(), Error> {
    while count(channel).await?.is_some_and(|count| count > most) {
        let Some(oldest) = take(channel, 1).await?.pop() else {
            break;
        };
        acknowledge(channel, oldest.tag)?;
    }
    Ok(())
}

fn acknowledge(channel: &Channel, tag: u64) -> Result<(), Error> {
    let told = channel.tell(&method::ack(tag, false));
    told.map_err(|failure| broker_error(&failure))
}

/// Puts back what is taken and not acknowledged, to where it stood.
async fn give_back(channel: &Channel) -> Result<(), Error> {
    match channel.call(&method::recover()).await {
        Ok(_) => Ok(()),
        // Where there is no queue there was nothing to take, and the channel is closed for asking.
        Err(Failure::Refused(Refusal {
            code: code::NOT_FOUND,
            ..
        })) => Ok(()),
        Err(failure) => Err(broker_error(&failure)),
    }
}
