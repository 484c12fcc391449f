//! Native delayed delivery: where messages with an ETA wait in the server.
//!
//! A quorum queue knows no limit for a whole channel, so that messages with an ETA which a worker
//! holds would block those behind them. Celery's producers send them through 28 levels of queues
//! instead, one for each binary digit of the seconds to wait; here these are declared.
//!
//! The delay store (`delays`) uses the same levels for messages to any queue, and has them come out
//! by a binding that is the queue's own: no exchange of the app takes part.
//!
//! Celery's counterparts: `kombu.transport.native_delayed_delivery`,
//! `celery.worker.consumer.delayed_delivery`.

use celeriac_core::broker::Error;
use celeriac_core::dead_letter::Content;
use celeriac_core::queue::{ExchangeKind, Queue};
use serde_json::{Map, Value};

use super::error::{Inequivalent, broker_error, precondition, unsayable};
use super::link::Link;
use super::wire::connection::Channel;
use super::wire::failure::Failure;
use super::wire::method::{self, Declared};

/// Binary digits of the longest wait in seconds.
const LEVELS: usize = 28;
/// Where messages come out again.
const DELIVERY: &str = "celery_delayed_delivery";
/// The type of their exchanges.
const TOPIC: &str = "topic";

/// Declares the levels, and binds queues to where messages come out. All of it is sent in one go.
pub(super) async fn declare(channel: &Channel, queues: &[Queue], kind: &str) -> Result<(), Error> {
    let declared = declare_all(channel, queues, kind).await;
    declared.map_err(|error| match error {
        Failure::Unsayable(error) => unsayable("native delayed delivery", &error),
        failure => broker_error(&failure),
    })
}

/// Declares the levels alone. Where they are there with another type of queue they are used as they
/// are.
pub(super) async fn declare_levels(link: &Link, kind: &str) -> Result<(), Error> {
    let channel = link.channel().await?;
    let failure = match declare_all(&channel, &[], kind).await {
        Ok(()) => return Ok(()),
        Err(failure) => failure,
    };
    if !exists_otherwise(&failure) {
        return Err(broker_error(&failure));
    }
    tracing::info!(
        "the queues of native delayed delivery are there with another type than {kind} \
         (broker_native_delayed_delivery_queue_type): they are used as they are"
    );
    for level in 0..LEVELS {
        // A refusal costs a channel its life.
        let channel = link.channel().await?;
        let declare = method::queue_declare(
            &level_name(level),
            Declared {
                nowait: false,
                ..LIKE
            },
            &arguments(level, &next_name(level), kind),
        );
        let declare = declare.map_err(|error| unsayable("native delayed delivery", &error))?;
        match channel.call(&declare).await {
            Err(failure) if !exists_otherwise(&failure) => return Err(broker_error(&failure)),
            _ => {}
        }
    }
    let channel = link.channel().await?;
    let bound = bind_levels(&channel).map(|()| arrived(&channel));
    match bound {
        Ok(done) => done.await.map_err(|failure| broker_error(&failure)),
        Err(failure) => Err(broker_error(&failure)),
    }
}

/// Whether a level is there, but its queue is of another type.
fn exists_otherwise(failure: &Failure) -> bool {
    let found = precondition(failure).and_then(Inequivalent::parse);
    found.is_some_and(|found| {
        ["x-queue-type", "x-dead-letter-strategy", "x-overflow"].contains(&found.argument)
    })
}

/// Has messages for a queue come out of the levels to it.
pub(super) async fn bind(channel: &Channel, queue: &str) -> Result<(), Error> {
    let bind = method::queue_bind(queue, DELIVERY, &own_pattern(queue), &Map::new(), false);
    let bind = bind.map_err(|error| unsayable("native delayed delivery", &error))?;
    let bound = channel.call(&bind).await;
    bound.map(drop).map_err(|failure| broker_error(&failure))
}

/// The exchange and the routing key by which a message comes to a queue in so many seconds, or the
/// most that the levels can count.
pub(super) fn way(seconds: u64, queue: &str) -> (String, String) {
    let seconds = seconds.min(LONGEST);
    // Levels that it would only pass by are left out.
    let Some(level) = seconds.checked_ilog2() else {
        return (String::new(), queue.to_owned());
    };
    let mut key = String::with_capacity(2 * LEVELS + queue.len() + 16);
    for digit in (0..LEVELS).rev() {
        key.push_str(if seconds >> digit & 1 == 1 {
            "1."
        } else {
            "0."
        });
    }
    key.push_str(&own_key(queue));
    (level_name(level as usize), key)
}

/// The most seconds that the levels can count.
const LONGEST: u64 = (1 << LEVELS) - 1;
/// The most bytes of a routing key.
const LONGEST_KEY: usize = 255;

/// What stands behind the digits for a queue: its name, where that is short and no pattern.
fn own_key(queue: &str) -> String {
    let key = format!("celeriac.{queue}");
    if 2 * LEVELS + key.len() <= LONGEST_KEY && !queue.contains(['*', '#']) {
        key
    } else {
        format!("celeriac-hash.{}", Content::id_of(queue.as_bytes()))
    }
}

/// Any wait, and then the queue's key and nothing before it: names may end alike.
fn own_pattern(queue: &str) -> String {
    format!("{}{}", "*.".repeat(LEVELS), own_key(queue))
}

async fn declare_all(channel: &Channel, queues: &[Queue], kind: &str) -> Result<(), Failure> {
    for level in 0..LEVELS {
        let arguments = arguments(level, &next_name(level), kind);
        declare_queue(channel, &level_name(level), &arguments)?;
    }
    bind_levels(channel)?;
    for queue in queues.iter().filter(|queue| is_bindable(queue)) {
        let exchange = &queue.exchange.name;
        let key = delivery_key(&queue.routing_key);
        bind_exchange(channel, exchange, DELIVERY, &key)?;
        bind_queue(channel, &queue.name, exchange, &key)?;
    }
    arrived(channel).await
}

/// Declares the exchanges of the levels, and binds them and the queues.
fn bind_levels(channel: &Channel) -> Result<(), Failure> {
    declare_exchange(channel, DELIVERY)?;
    for level in 0..LEVELS {
        let name = level_name(level);
        declare_exchange(channel, &name)?;
        bind_queue(channel, &name, &name, &digit_key(level, '1'))?;
        bind_exchange(channel, &next_name(level), &name, &digit_key(level, '0'))?;
    }
    Ok(())
}

/// Waits until the server has done all that it was told: what it refused comes to light with the
/// first answer.
async fn arrived(channel: &Channel) -> Result<(), Failure> {
    let passive = Declared {
        passive: true,
        ..Declared::default()
    };
    let asked = method::exchange_declare(DELIVERY, TOPIC, passive, &Map::new())?;
    channel.call(&asked).await?;
    Ok(())
}

fn level_name(level: usize) -> String {
    format!("celery_delayed_{level}")
}

/// Where a message goes from a level.
fn next_name(level: usize) -> String {
    let next = level.checked_sub(1);
    next.map_or_else(|| DELIVERY.to_owned(), level_name)
}

/// The binding of a level: a message waits there, or passes by, as its digit says.
fn digit_key(level: usize, digit: char) -> String {
    format!("{}{digit}.#", "*.".repeat(LEVELS - 1 - level))
}

/// Any wait, and then the queue's own key.
fn delivery_key(routing_key: &str) -> String {
    if routing_key.starts_with('#') {
        routing_key.to_owned()
    } else {
        format!("#.{routing_key}")
    }
}

fn arguments(level: usize, next: &str, kind: &str) -> Map<String, Value> {
    let milliseconds = (1_i64 << level) * 1000;
    let mut arguments = Map::new();
    arguments.insert("x-queue-type".to_owned(), kind.into());
    arguments.insert("x-overflow".to_owned(), "reject-publish".into());
    arguments.insert("x-message-ttl".to_owned(), milliseconds.into());
    arguments.insert("x-dead-letter-exchange".to_owned(), next.into());
    if kind == "quorum" {
        let strategy = "at-least-once".into();
        arguments.insert("x-dead-letter-strategy".to_owned(), strategy);
    }
    arguments
}

/// Whether messages with an ETA can come to a queue this way.
fn is_bindable(queue: &Queue) -> bool {
    let exchange = &queue.exchange;
    // What is broadcast is gone with its queue.
    let is_broadcast = exchange.kind == ExchangeKind::Fanout && queue.auto_delete;
    if exchange.kind == ExchangeKind::Direct {
        tracing::warn!(
            "Exchange {} is a direct exchange and native delayed delivery do not support direct \
             exchanges.\nETA tasks published to this exchange will block the worker until the ETA \
             arrives.",
            exchange.name
        );
    }
    exchange.kind != ExchangeKind::Direct && !is_broadcast && !exchange.name.is_empty()
}

/// Durable, and without an answer.
const LIKE: Declared = Declared {
    passive: false,
    durable: true,
    exclusive: false,
    auto_delete: false,
    nowait: true,
};

fn declare_exchange(channel: &Channel, name: &str) -> Result<(), Failure> {
    channel.tell(&method::exchange_declare(name, TOPIC, LIKE, &Map::new())?)
}

fn declare_queue(
    channel: &Channel,
    name: &str,
    arguments: &Map<String, Value>,
) -> Result<(), Failure> {
    channel.tell(&method::queue_declare(name, LIKE, arguments)?)
}

fn bind_queue(channel: &Channel, queue: &str, exchange: &str, key: &str) -> Result<(), Failure> {
    channel.tell(&method::queue_bind(
        queue,
        exchange,
        key,
        &Map::new(),
        true,
    )?)
}

fn bind_exchange(channel: &Channel, to: &str, from: &str, key: &str) -> Result<(), Failure> {
    channel.tell(&method::exchange_bind(to, from, key, true)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_kombus() {
        assert_eq!(digit_key(27, '1'), "1.#");
        assert_eq!(digit_key(25, '0'), "*.*.0.#");
        assert_eq!(digit_key(0, '0'), format!("{}0.#", "*.".repeat(27)));
        assert_eq!(
            Value::Object(arguments(3, "celery_delayed_2", "quorum")).to_string(),
            r#"{"x-dead-letter-exchange":"celery_delayed_2","x-dead-letter-strategy":"at-least-once","x-message-ttl":8000,"x-overflow":"reject-publish","x-queue-type":"quorum"}"#
        );
        assert_eq!(
            arguments(27, "x", "classic")["x-message-ttl"],
            134_217_728_000_i64
        );
        assert!(
            arguments(0, "x", "classic")
                .get("x-dead-letter-strategy")
                .is_none()
        );
        assert_eq!(delivery_key("cq"), "#.cq");
        assert_eq!(delivery_key("#.cq"), "#.cq");
    }

    #[test]
    fn a_message_takes_the_levels_of_its_seconds() {
        let zeros = |count: usize| "0.".repeat(count);
        for (seconds, exchange, key) in [
            (0, "", "q".to_owned()),
            (1, "celery_delayed_0", format!("{}1.celeriac.q", zeros(27))),
            (
                5,
                "celery_delayed_2",
                format!("{}1.0.1.celeriac.q", zeros(25)),
            ),
            (
                u64::MAX,
                "celery_delayed_27",
                format!("{}celeriac.q", "1.".repeat(28)),
            ),
        ] {
            assert_eq!(way(seconds, "q"), (exchange.to_owned(), key));
        }
    }

    #[test]
    fn the_key_of_a_queue_is_its_own_and_never_too_long() {
        assert_eq!(
            own_pattern("a.b"),
            format!("{}celeriac.a.b", "*.".repeat(28))
        );
        let longest = "x".repeat(255 - 56 - 9);
        for (name, is_hashed) in [
            (longest.clone(), false),
            (longest + "x", true),
            ("x".repeat(255), true),
            ("orders.*".to_owned(), true),
            ("#".to_owned(), true),
        ] {
            let (_, key) = way(1, &name);
            assert!(key.len() <= 255, "{key}");
            assert_eq!(own_key(&name).starts_with("celeriac-hash."), is_hashed);
            assert!(own_pattern(&name).len() <= 255);
        }
    }
}
