//! What is particular to RabbitMQ's delay store and to its dead letters.

use std::time::Duration;

use celeriac_broker::{Options, open};
use celeriac_core::broker::{Delay, Delivery, DeliveryTag, Fate, Session, Settlement, Want};
use celeriac_core::dead_letter::{Bounds, Cause, Content, DeadLetter, Remains};
use celeriac_core::queue::Queue;
use celeriac_protocol::Marks;
use celeriac_testing::conformance::broker::message;
use celeriac_testing::server::RabbitMqServer;
use jiff::{SignedDuration, Timestamp};
use lapin::options::{BasicPublishOptions, ExchangeDeclareOptions};
use lapin::types::{AMQPValue, FieldArray, FieldTable};
use lapin::{BasicProperties, ExchangeKind};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::amqp::{PATIENCE, Rabbit, consumer, fetch, id, lapin_channel, settle};

fn later(seconds: i64) -> Fate {
    Fate::Delay(Delay {
        until: Some(Timestamp::now() + SignedDuration::from_secs(seconds)),
        marks: Marks {
            deaths: 1,
            ..Marks::default()
        },
    })
}

async fn delay(session: &mut dyn Session, deliveries: &[Delivery], fate: Fate) {
    session
        .exchange(&settle(deliveries, fate), Want::NONE)
        .await
        .unwrap();
}

async fn acknowledge(session: &mut dyn Session, deliveries: &[Delivery]) {
    delay(session, deliveries, Fate::Ack).await;
}

fn headers(delivery: &Delivery) -> Value {
    serde_json::from_str(&delivery.message.as_ref().unwrap().headers).unwrap()
}

#[tokio::test]
async fn a_task_that_was_delayed_looks_as_its_client_sent_it() {
    let rabbit = Rabbit::new();
    let mut queue = Queue::direct("q");
    queue.exchange.name = "shop".to_owned();
    queue.routing_key = "k".to_owned();
    let mut session = consumer(&rabbit.url, &queue).await;
    let (_connection, channel) = lapin_channel(&rabbit.url).await;
    let text = |text: &str| AMQPValue::LongString(text.into());
    let mut own_death = FieldTable::default();
    own_death.insert("queue".into(), text("before"));
    let mut sent = FieldTable::default();
    sent.insert("id".into(), text("1"));
    sent.insert("at".into(), AMQPValue::Timestamp(1_700_000_000));
    let deaths = vec![AMQPValue::FieldTable(own_death)];
    sent.insert(
        "x-death".into(),
        AMQPValue::FieldArray(FieldArray::from(deaths)),
    );
    let properties = BasicProperties::default()
        .with_headers(sent)
        .with_expiration("60000".into())
        .with_priority(3)
        .with_delivery_mode(1);
    channel
        .basic_publish(
            "shop".into(),
            "k".into(),
            BasicPublishOptions::default(),
            b"body",
            properties,
        )
        .await
        .unwrap();
    let first = fetch(&mut *session, 1).await;
    let mut expected = headers(&first[0]);
    delay(&mut *session, &first, later(2)).await;
    let second = fetch(&mut *session, 1).await;
    // One level after the other adds to the record of its way: it does not grow.
    delay(&mut *session, &second, later(4)).await;
    let third = fetch(&mut *session, 1).await;
    expected["celeriac"] = json!({"deaths": 1});
    for came in [&second[0], &third[0]] {
        assert_eq!(headers(came), expected);
        let message = came.message.as_ref().unwrap();
        let info = &message.delivery_info;
        assert_eq!(info.exchange.as_deref(), Some("shop"));
        assert_eq!(info.routing_key.as_deref(), Some("k"));
        assert_eq!(message.property("expiration").as_deref(), Some("\"60000\""));
        assert_eq!(message.priority(), 3);
        assert_eq!(&message.body[..], b"body");
    }
    // To the end of the queue, and the way is still known.
    let at_once = Fate::Delay(Delay {
        until: None,
        marks: Marks::default(),
    });
    delay(&mut *session, &third, at_once).await;
    let fourth = fetch(&mut *session, 1).await;
    let info = &fourth[0].message.as_ref().unwrap().delivery_info;
    assert_eq!(info.exchange.as_deref(), Some("shop"));
    assert_eq!(headers(&fourth[0])["celeriac"], Value::Null);
    acknowledge(&mut *session, &fourth).await;
    assert_eq!(session.size("q").await.unwrap(), 0);
}

#[tokio::test]
async fn a_delayed_message_comes_to_its_queue_alone_whatever_that_is_called() {
    let rabbit = Rabbit::new();
    let names = [
        "orders".to_owned(),
        "x.celeriac.orders".to_owned(),
        "*".to_owned(),
        "#".to_owned(),
        "orders.*".to_owned(),
        "x".repeat(255),
        format!("{}.y", "x".repeat(250)),
    ];
    let mut sessions = Vec::new();
    for (number, name) in (0..).zip(&names) {
        let mut session = consumer(&rabbit.url, &Queue::direct(name)).await;
        session.publish(name, &message(number)).await.unwrap();
        let came = fetch(&mut *session, 1).await;
        delay(&mut *session, &came, later(2)).await;
        sessions.push(session);
    }
    for (number, session) in sessions.iter_mut().enumerate() {
        let came = fetch(&mut **session, 1).await;
        assert_eq!(id(&came[0]), number.to_string());
        acknowledge(&mut **session, &came).await;
    }
    for (name, session) in names.iter().zip(&mut sessions) {
        assert_eq!(session.size(name).await.unwrap(), 0, "{name}");
    }
}

#[tokio::test]
async fn levels_of_another_type_are_used_as_they_are() {
    let rabbit = Rabbit::new();
    for (kind, other) in [("classic", "quorum"), ("quorum", "classic")] {
        let server = RabbitMqServer::shared();
        let url = server.url(&server.vhost());
        for kind in [kind, other] {
            let options = Options {
                delayed_delivery_queue_type: Some(kind.to_owned()),
                ..Options::default()
            };
            let mut session = open(&url, &options).unwrap().connect().await.unwrap();
            let queue = Queue::direct(kind);
            session.declare(&queue).await.unwrap();
            session.subscribe(&queue).await.unwrap();
            session.publish(kind, &message(1)).await.unwrap();
            let came = fetch(&mut *session, 1).await;
            delay(&mut *session, &came, later(2)).await;
            // Nobody holds it.
            drop(session);
            let mut session = consumer(&url, &queue).await;
            let came = fetch(&mut *session, 1).await;
            assert!(!came[0].message.as_ref().unwrap().delivery_info.redelivered);
            acknowledge(&mut *session, &came).await;
        }
    }
    drop(rabbit);
}

#[tokio::test]
async fn what_the_server_does_not_take_waits_in_the_worker_and_is_not_lost() {
    let rabbit = Rabbit::new();
    let (_connection, channel) = lapin_channel(&rabbit.url).await;
    // Somebody else has taken the name of a level.
    channel
        .exchange_declare(
            "celery_delayed_5".into(),
            ExchangeKind::Fanout,
            ExchangeDeclareOptions::default(),
            FieldTable::default(),
        )
        .await
        .unwrap();
    let queue = Queue::direct("q");
    let mut session = consumer(&rabbit.url, &queue).await;
    for number in 0..2 {
        session.publish("q", &message(number)).await.unwrap();
    }
    let came = fetch(&mut *session, 2).await;
    let until = Timestamp::now() + SignedDuration::from_secs(1);
    delay(&mut *session, &came[..1], later(1)).await;
    delay(&mut *session, &came[1..], later(3600)).await;
    let again = fetch(&mut *session, 1).await;
    assert!(Timestamp::now() >= until);
    assert_eq!(id(&again[0]), "0");
    assert_eq!(headers(&again[0])["celeriac"], json!({"deaths": 1}));
    acknowledge(&mut *session, &again).await;
    assert_eq!(session.size("q").await.unwrap(), 0);
    drop(session);
    let mut session = consumer(&rabbit.url, &queue).await;
    let again = fetch(&mut *session, 1).await;
    assert_eq!(id(&again[0]), "1");
    acknowledge(&mut *session, &again).await;
}

#[tokio::test]
async fn a_message_of_a_queue_without_acknowledgements_is_delayed_as_well() {
    let rabbit = Rabbit::new();
    let mut queue = Queue::direct("q");
    queue.no_ack = true;
    let mut session = consumer(&rabbit.url, &queue).await;
    session.publish("q", &message(1)).await.unwrap();
    let came = fetch(&mut *session, 1).await;
    delay(&mut *session, &came, later(2)).await;
    drop(session);
    let mut session = consumer(&rabbit.url, &queue).await;
    assert_eq!(id(&fetch(&mut *session, 1).await[0]), "1");
}

#[tokio::test]
async fn delays_given_twice_are_one_and_many_go_together() {
    let rabbit = Rabbit::new();
    let mut session = consumer(&rabbit.url, &Queue::direct("q")).await;
    for number in 0..300 {
        session.publish("q", &message(number)).await.unwrap();
    }
    let came = fetch(&mut *session, 300).await;
    let delays = settle(&came, later(3));
    let unknown = Settlement {
        tag: DeliveryTag(99_999),
        fate: later(3),
    };
    let all: Vec<Settlement> = delays
        .iter()
        .chain(&delays)
        .copied()
        .chain([unknown])
        .collect();
    session.exchange(&all, Want::NONE).await.unwrap();
    session.exchange(&delays, Want::NONE).await.unwrap();
    let mut ids: Vec<u32> = fetch(&mut *session, 300)
        .await
        .iter()
        .map(|delivery| id(delivery).parse().unwrap())
        .collect();
    ids.sort_unstable();
    assert_eq!(ids, (0..300).collect::<Vec<_>>());
    assert_eq!(session.size("q").await.unwrap(), 0);
}

#[tokio::test]
async fn delayed_messages_and_dead_letters_survive_a_crash_of_the_server() {
    let mut server = tokio::task::spawn_blocking(RabbitMqServer::start)
        .await
        .unwrap();
    let url = server.url(&server.vhost());
    let queue = Queue::direct("q");
    let mut session = consumer(&url, &queue).await;
    for number in 0..20 {
        session.publish("q", &message(number)).await.unwrap();
    }
    let came = fetch(&mut *session, 20).await;
    delay(&mut *session, &came, later(6)).await;
    let dead = letter("1");
    session.bury(&dead, Bounds::default()).await.unwrap();
    server.kill();
    let server = tokio::task::spawn_blocking(move || {
        server.restart();
        server
    })
    .await
    .unwrap();
    let mut session = consumer(&url, &queue).await;
    let mut ids: Vec<u32> = fetch(&mut *session, 20)
        .await
        .iter()
        .map(|delivery| id(delivery).parse().unwrap())
        .collect();
    ids.sort_unstable();
    assert_eq!(ids, (0..20).collect::<Vec<_>>());
    // Each of the server's queues recovers by itself.
    timeout(PATIENCE, async {
        while session.dead_letters().await.unwrap() != [dead.clone()] {
            sleep(Duration::from_millis(100)).await;
        }
    })
    .await
    .unwrap();
    drop(server);
}

fn letter(id: &str) -> DeadLetter {
    DeadLetter {
        id: id.to_owned(),
        queue: "q".to_owned(),
        task: None,
        cause: Cause::Undecodable,
        reason: "no JSON".to_owned(),
        remains: Remains::default(),
        attempts: 1,
        hostname: "w@h".to_owned(),
        died_at: Timestamp::now(),
        message: Content::message(&message(1)),
    }
}

#[tokio::test]
async fn dead_letters_stay_whoever_looks_at_them() {
    let rabbit = Rabbit::new();
    let mut first = open(&rabbit.url, &Options::default())
        .unwrap()
        .connect()
        .await
        .unwrap();
    assert_eq!(first.dead_letters().await.unwrap(), []);
    assert_eq!(first.forget(&["1".to_owned()]).await.unwrap(), 0);
    assert_eq!(first.replay(&["1".to_owned()]).await.unwrap(), 0);
    let ids: Vec<String> = (0..600).map(|number| number.to_string()).collect();
    for id in &ids {
        first.bury(&letter(id), Bounds::default()).await.unwrap();
    }
    // What is no letter stays where it is, and out of the way.
    first.publish("celeriac.dead", &message(1)).await.unwrap();
    let mut second = open(&rabbit.url, &Options::default())
        .unwrap()
        .connect()
        .await
        .unwrap();
    let all = first.dead_letters().await.unwrap();
    let listed: Vec<&str> = all.iter().map(|letter| &*letter.id).rev().collect();
    assert_eq!(listed, ids);
    // Two who look at once may see a part each, and take nothing from each other for good.
    for _ in 0..20 {
        let (one, other) = tokio::join!(first.dead_letters(), second.dead_letters());
        drop((one.unwrap(), other.unwrap()));
    }
    assert_eq!(second.dead_letters().await.unwrap().len(), 600);
    let error = first.replay(&ids[..1]).await.unwrap_err();
    assert!(error.message.contains("\"q\""), "{error}");
    let back = timeout(PATIENCE, async {
        while second.dead_letters().await.unwrap().len() < 600 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    back.await.unwrap();
    assert_eq!(second.forget(&ids).await.unwrap(), 600);
    // RabbitMQ counts before it has put back what it was told to.
    let counted = timeout(PATIENCE, async {
        while second.size("celeriac.dead").await.unwrap() != 1 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    counted.await.unwrap();
}
