//! Declaring queues, exchanges and bindings.
//!
//! kombu's counterpart: `kombu.entity.{Exchange, Queue}.declare` and
//! `kombu.transport.pyamqp.Channel.prepare_queue_arguments`.

use celeriac_core::broker::{Error, ErrorKind};
use celeriac_core::queue::{Exchange, Queue};
use serde_json::{Map, Value, json};

use super::error::{Inequivalent, broker_error, precondition, unsayable};
use super::wire::connection::Channel;
use super::wire::failure::Failure;
use super::wire::method::{self, Declared};

/// Makes sure that the queue, the exchanges of its bindings and these exist.
pub(super) async fn declare(channel: &Channel, queue: &Queue) -> Result<(), Error> {
    declare_exchange(channel, &queue.exchange).await?;
    declare_queue(channel, queue).await?;
    for binding in queue.all_bindings() {
        let exchange = &binding.exchange;
        // Everything is bound to the default exchange already.
        if exchange.name.is_empty() {
            continue;
        }
        if *exchange != queue.exchange {
            declare_exchange(channel, exchange).await?;
        }
        let key = &binding.routing_key;
        let bind = method::queue_bind(&queue.name, &exchange.name, key, &binding.arguments, false);
        let bind = bind.map_err(|error| unsayable("a binding", &error))?;
        let bound = channel.call(&bind).await;
        bound.map_err(|failure| broker_error(&failure))?;
    }
    Ok(())
}

/// Makes sure that the exchange exists.
pub(super) async fn declare_exchange(channel: &Channel, exchange: &Exchange) -> Result<(), Error> {
    // The default exchange and those of the server are there.
    let is_there = exchange.name.is_empty() || exchange.name.starts_with("amq.");
    if is_there || exchange.no_declare {
        return Ok(());
    }
    let what = format!("the exchange {:?}", exchange.name);
    let like = Declared {
        passive: exchange.passive,
        durable: exchange.durable,
        auto_delete: exchange.auto_delete,
        ..Declared::default()
    };
    let kind = exchange.kind.to_string();
    let declare = method::exchange_declare(&exchange.name, &kind, like, &exchange.arguments);
    let declare = declare.map_err(|error| unsayable(&what, &error))?;
    channel.call(&declare).await.map(drop).map_err(|failure| {
        let asked = json!({
            "type": kind,
            "durable": exchange.durable,
            "auto_delete": exchange.auto_delete,
            "arguments": exchange.arguments,
        });
        declared_otherwise(&failure, &what, &asked, "the exchange")
    })
}

pub(super) async fn declare_queue(channel: &Channel, queue: &Queue) -> Result<(), Error> {
    let what = format!("the queue {:?}", queue.name);
    let arguments = queue_arguments(queue);
    let like = Declared {
        durable: queue.durable,
        exclusive: queue.exclusive,
        auto_delete: queue.auto_delete,
        ..Declared::default()
    };
    let declare = method::queue_declare(&queue.name, like, &arguments);
    let declare = declare.map_err(|error| unsayable(&what, &error))?;
    channel.call(&declare).await.map(drop).map_err(|failure| {
        let asked = json!({
            "durable": queue.durable,
            "exclusive": queue.exclusive,
            "auto_delete": queue.auto_delete,
            "arguments": arguments,
        });
        declared_otherwise(&failure, &what, &asked, "the queue")
    })
}

/// The queue's arguments, with what kombu makes of `expires`.
fn queue_arguments(queue: &Queue) -> Map<String, Value> {
    let mut arguments = queue.arguments.clone();
    if let Some(seconds) = queue.expires {
        arguments.insert(
            "x-expires".to_owned(),
            Value::from((seconds * 1000.0) as i64),
        );
    }
    arguments
}

/// The one clear message where something exists, but otherwise.
fn declared_otherwise(failure: &Failure, what: &str, asked: &Value, it: &str) -> Error {
    let Some(text) = precondition(failure) else {
        return broker_error(failure);
    };
    let (exists, remedy) = match Inequivalent::parse(text) {
        Some(found) => {
            let shown = |value: Option<&str>| match value {
                Some(value) => format!("with {} = {value}", found.argument),
                None => format!("without {}", found.argument),
            };
            let setting = match found.argument {
                "x-max-priority" => " (task_queue_max_priority sets it for all queues)",
                "x-queue-type" => " (task_default_queue_type sets it for the default queue)",
                _ => "",
            };
            (
                format!(
                    "it exists {}, and the app declares it {}",
                    shown(found.current),
                    shown(found.received)
                ),
                format!(
                    "delete {it} so that it is made anew, or declare it in task_queues as it exists{setting}"
                ),
            )
        }
        None => (
            "the server refuses it".to_owned(),
            format!("declare {it} in task_queues as the server allows it"),
        ),
    };
    Error::new(
        ErrorKind::Configuration,
        format!(
            "{what} can't be declared: {exists}. The app declares it as {asked}. RabbitMQ says: {text}"
        ),
    )
    .with_hint(remedy)
}

/// Whether the queue is of a type that knows no limit for a whole channel.
pub(super) fn is_replicated(queue: &Queue) -> bool {
    let kind = queue.arguments.get("x-queue-type").and_then(Value::as_str);
    kind.is_some_and(|kind| kind != "classic")
}

/// Whether the queue is a quorum queue.
pub(super) fn is_quorum(queue: &Queue) -> bool {
    queue.arguments.get("x-queue-type").and_then(Value::as_str) == Some("quorum")
}

/// Whether the queue must not be left without a consumer: it would be deleted, or another consumer
/// would take its turn.
pub(super) fn is_kept_by_its_consumer(queue: &Queue) -> bool {
    let single = queue.arguments.get("x-single-active-consumer");
    queue.auto_delete || single == Some(&Value::Bool(true))
}

#[cfg(test)]
mod tests {
    use super::super::wire::failure::{Refusal, code};
    use super::*;

    fn refusal(text: &str) -> Failure {
        Failure::Refused(Refusal {
            code: code::PRECONDITION_FAILED,
            text: text.to_owned(),
        })
    }

    #[test]
    fn what_is_declared_otherwise_is_told_with_both_sides_and_the_remedy() {
        let error = declared_otherwise(
            &refusal(
                "PRECONDITION_FAILED - inequivalent arg 'x-max-priority' for queue 'q' in vhost '/': received none but current is the value '10' of type 'signedint'",
            ),
            "the queue \"q\"",
            &json!({"durable": true, "arguments": {"x-expires": 5}}),
            "the queue",
        );
        assert_eq!(error.kind, ErrorKind::Configuration);
        let both_sides = "the queue \"q\" can't be declared: it exists with x-max-priority = 10, and \
                          the app declares it without x-max-priority.";
        let whole = r#"The app declares it as {"arguments":{"x-expires":5},"durable":true}."#;
        let expected = format!("{both_sides} {whole} RabbitMQ says: PRECONDITION_FAILED - ");
        assert!(error.message.starts_with(&expected), "{error}");
        assert!(error.hint.unwrap().contains("task_queue_max_priority"));
    }

    #[test]
    fn expires_becomes_an_argument() {
        let mut queue = Queue::direct("q");
        queue.expires = Some(1.5);
        assert_eq!(queue_arguments(&queue)["x-expires"], 1500);
    }
}
