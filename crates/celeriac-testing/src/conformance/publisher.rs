//! How every publisher behaves, whatever its transport.
//!
//! A driver's tests call [`run`] with the fixture of the broker's suite: what is published is
//! fetched by a session of the same broker.

use std::time::Duration;

use celeriac_core::broker::{Delivery, ErrorKind, Fate, Session, Settlement, Want};
use celeriac_core::publisher::Published;
use celeriac_core::queue::{Exchange, ExchangeKind, Queue};
use celeriac_protocol::json;
use tokio::time::{Instant, timeout_at};

use super::broker::{Fixture, message};

/// Longer than any broker needs for one step.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many publish at once.
const PUBLISHERS: u32 = 100;
/// How many messages each of them publishes, one after another.
const EACH: u32 = 10;

/// Runs the whole suite.
pub async fn run(fixture: &dyn Fixture) {
    a_message_comes_as_it_was_published(fixture).await;
    messages_of_one_call_come_in_order(fixture).await;
    an_exchange_leads_to_the_queues_that_are_bound(fixture).await;
    what_no_queue_takes_is_an_error_where_it_is_mandatory(fixture).await;
    many_publish_at_once(fixture).await;
}

fn published(exchange: &str, routing_key: &str, number: u32) -> Published {
    Published {
        exchange: exchange.into(),
        routing_key: routing_key.into(),
        mandatory: true,
        message: message(number),
    }
}

/// Everything that is in a queue, once there are `count`.
async fn fetched(fixture: &dyn Fixture, queue: &Queue, count: usize) -> Vec<Delivery> {
    let mut session = fixture.broker().connect().await.unwrap();
    session.declare(queue).await.unwrap();
    session.subscribe(queue).await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    let mut all = Vec::new();
    while all.len() < count {
        let want = Want {
            runnable: count - all.len(),
            total: count - all.len(),
        };
        all.extend(session.exchange(&[], want).await.unwrap());
        if all.len() < count {
            timeout_at(deadline, session.wait())
                .await
                .expect("the messages come in time")
                .unwrap();
        }
    }
    settle(&mut *session, &all).await;
    assert_eq!(session.size(&queue.name).await.unwrap(), 0, "no more came");
    session.close().await.unwrap();
    all
}

async fn settle(session: &mut dyn Session, deliveries: &[Delivery]) {
    let settlements: Vec<Settlement> = deliveries
        .iter()
        .map(|delivery| Settlement {
            tag: delivery.tag,
            fate: Fate::Ack,
        })
        .collect();
    session.exchange(&settlements, Want::NONE).await.unwrap();
}

fn id(delivery: &Delivery) -> u32 {
    let headers = &delivery.message.as_ref().unwrap().headers;
    let headers = json::Object::parse(headers).unwrap();
    let id = json::as_str(headers.get("id").unwrap()).unwrap();
    id.parse().unwrap()
}

async fn a_message_comes_as_it_was_published(fixture: &dyn Fixture) {
    let queue = fixture.queue("published");
    let publisher = fixture.broker().publisher().unwrap();
    publisher.declare(&queue).await.unwrap();
    publisher.declare(&queue).await.unwrap();
    publisher.publish(&[]).await.unwrap();
    publisher
        .publish(&[published("", "published", 1)])
        .await
        .unwrap();
    let came = fetched(fixture, &queue, 1).await;
    let (came, sent) = (came[0].message.as_ref().unwrap(), message(1));
    assert_eq!(came.body, sent.body);
    assert_eq!(came.content_type, sent.content_type);
    let property = |name| came.property(name);
    assert_eq!(property("correlation_id"), sent.property("correlation_id"));
    assert_eq!(came.delivery_info.exchange.as_deref(), Some(""));
    assert_eq!(came.delivery_info.routing_key.as_deref(), Some("published"));
    assert!(!came.delivery_info.redelivered);
    publisher.close().await.unwrap();
}

async fn messages_of_one_call_come_in_order(fixture: &dyn Fixture) {
    let queue = fixture.queue("in_order");
    let publisher = fixture.broker().publisher().unwrap();
    publisher.declare(&queue).await.unwrap();
    let messages: Vec<Published> = (0..50).map(|n| published("", "in_order", n)).collect();
    publisher.publish(&messages).await.unwrap();
    let came = fetched(fixture, &queue, messages.len()).await;
    assert_eq!(
        came.iter().map(id).collect::<Vec<_>>(),
        (0..50).collect::<Vec<_>>()
    );
    publisher.close().await.unwrap();
}

async fn an_exchange_leads_to_the_queues_that_are_bound(fixture: &dyn Fixture) {
    let bound = |name: &str, kind: ExchangeKind, exchange: &str, key: &str| Queue {
        exchange: Exchange::new(exchange, kind),
        routing_key: key.to_owned(),
        ..fixture.queue(name)
    };
    let direct = bound("direct", ExchangeKind::Direct, "to.direct", "this");
    let words = bound("words", ExchangeKind::Topic, "to.topic", "x.*");
    let rest = bound("rest", ExchangeKind::Topic, "to.topic", "x.#");
    let publisher = fixture.broker().publisher().unwrap();
    for queue in [&direct, &words, &rest] {
        publisher.declare(queue).await.unwrap();
    }
    publisher
        .publish(&[
            published("to.direct", "this", 1),
            published("to.topic", "x.y", 2),
            published("to.topic", "x.y.z", 3),
        ])
        .await
        .unwrap();
    for (queue, ids) in [(&direct, &[1][..]), (&words, &[2]), (&rest, &[2, 3])] {
        let came = fetched(fixture, queue, ids.len()).await;
        assert_eq!(
            came.iter().map(id).collect::<Vec<_>>(),
            ids,
            "{}",
            queue.name
        );
        let info = &came[0].message.as_ref().unwrap().delivery_info;
        assert_eq!(info.exchange.as_deref(), Some(&*queue.exchange.name));
    }
    publisher.close().await.unwrap();
}

async fn what_no_queue_takes_is_an_error_where_it_is_mandatory(fixture: &dyn Fixture) {
    let queue = Queue {
        exchange: Exchange::new("to.few", ExchangeKind::Direct),
        routing_key: "known".to_owned(),
        ..fixture.queue("few")
    };
    let publisher = fixture.broker().publisher().unwrap();
    publisher.declare(&queue).await.unwrap();
    let unknown = published("to.few", "unknown", 1);
    let error = publisher.publish(std::slice::from_ref(&unknown)).await;
    let error = error.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Refused, "{error}");
    assert!(error.message.contains("unknown"), "{error}");
    let optional = Published {
        mandatory: false,
        ..unknown
    };
    publisher.publish(&[optional]).await.unwrap();
    // It goes on afterwards.
    publisher
        .publish(&[published("to.few", "known", 2)])
        .await
        .unwrap();
    assert_eq!(id(&fetched(fixture, &queue, 1).await[0]), 2);
    publisher.close().await.unwrap();
}

#[expect(
    clippy::print_stdout,
    reason = "for people who ask a test for its output"
)]
async fn many_publish_at_once(fixture: &dyn Fixture) {
    let queue = fixture.queue("many");
    let publisher = fixture.broker().publisher().unwrap();
    publisher.declare(&queue).await.unwrap();
    let started = Instant::now();
    let all: Vec<_> = (0..PUBLISHERS)
        .map(|publisher_number| {
            let publisher = std::sync::Arc::clone(&publisher);
            tokio::spawn(async move {
                for number in 0..EACH {
                    let number = publisher_number * EACH + number;
                    publisher
                        .publish(&[published("", "many", number)])
                        .await
                        .unwrap();
                }
            })
        })
        .collect();
    for one in all {
        one.await.unwrap();
    }
    let took = started.elapsed().as_secs_f64();
    let count = PUBLISHERS * EACH;
    // For people: how fast it is depends on the machine.
    println!("{publisher:?}: {:.0} messages/s", f64::from(count) / took);
    let mut ids: Vec<u32> = fetched(fixture, &queue, count as usize)
        .await
        .iter()
        .map(id)
        .collect();
    ids.sort_unstable();
    assert_eq!(ids, (0..count).collect::<Vec<_>>());
    publisher.close().await.unwrap();
}
