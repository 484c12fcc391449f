//! Native delayed delivery: where messages with an ETA wait in the server.
//!
//! A quorum queue knows no limit for a whole channel, so that messages with an ETA which a worker
//! holds would block those behind them. Celery's producers send them through 28 levels of queues
//! instead, one for each binary digit of the seconds to wait; here these are declared.
//!
//! Celery's counterparts: `kombu.transport.native_delayed_delivery`,
//! `celery.worker.consumer.delayed_delivery`.

use celeriac_core::broker::Error;
use celeriac_core::queue::{ExchangeKind, Queue};
use serde_json::{Map, Value};

use super::error::{broker_error, unsayable};
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

async fn declare_all(channel: &Channel, queues: &[Queue], kind: &str) -> Result<(), Failure> {
    declare_exchange(channel, DELIVERY)?;
    for level in 0..LEVELS {
        let name = level_name(level);
        let next = level
            .checked_sub(1)
            .map_or_else(|| DELIVERY.to_owned(), level_name);
        declare_exchange(channel, &name)?;
        declare_queue(channel, &name, &arguments(level, &next, kind))?;
        bind_queue(channel, &name, &name, &digit_key(level, '1'))?;
        bind_exchange(channel, &next, &name, &digit_key(level, '0'))?;
    }
    for queue in queues.iter().filter(|queue| is_bindable(queue)) {
        let exchange = &queue.exchange.name;
        let key = delivery_key(&queue.routing_key);
        bind_exchange(channel, exchange, DELIVERY, &key)?;
        bind_queue(channel, &queue.name, exchange, &key)?;
    }
    // What was refused comes to light with the first answer.
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
}
