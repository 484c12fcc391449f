//! How every broker with a delay store keeps messages until their moment.

use std::sync::Arc;
use std::time::Duration;

use celeriac_core::broker::{Broker, Delay, Delivery, Fate, Session, Want};
use celeriac_protocol::json::Object;
use celeriac_protocol::{Head, Marks};
use jiff::{SignedDuration, Timestamp};
use tokio::time::{Instant, timeout};

use super::broker::{Fixture, fetch, message, numbers, settle, subscribe};

/// How long a message is delayed. RabbitMQ counts in seconds.
const DELAY: SignedDuration = SignedDuration::from_secs(2);
/// Longer than any broker takes to move a message whose moment has come.
const PATIENCE: Duration = Duration::from_secs(15);

/// Runs the whole suite; the broker must have a delay store.
pub async fn run(fixture: &dyn Fixture) {
    let broker = fixture.broker();
    a_delayed_message_comes_in_its_time_and_marked(fixture, &broker).await;
    a_message_without_a_moment_comes_last_and_marked(fixture, &broker).await;
    what_is_delayed_outlives_its_worker(fixture).await;
    delayed_messages_are_listed(fixture, &broker).await;
    if !fixture.ways().keeps_delayed {
        delayed_messages_are_returned(fixture, &broker).await;
    }
}

async fn consumer(fixture: &dyn Fixture, broker: &Arc<dyn Broker>) -> (Box<dyn Session>, String) {
    let queue = format!("q-{}", uuid::Uuid::new_v4().simple());
    let mut session = broker.connect().await.unwrap();
    subscribe(&mut *session, &fixture.queue(&queue)).await;
    (session, queue)
}

fn marks(delivery: &Delivery) -> Marks {
    let headers = &delivery.message.as_ref().unwrap().headers;
    let headers = Object::parse(headers).unwrap();
    Head::from_headers(&headers).unwrap().unwrap().marks
}

fn delay(until: Option<Timestamp>, deaths: u32) -> Fate {
    let marks = Marks {
        deaths,
        told: true,
        ..Marks::default()
    };
    Fate::Delay(Delay { until, marks })
}

/// Fetches whatever comes until there are `count`, as a worker does; with the moment of each.
async fn come(session: &mut dyn Session, count: usize) -> Vec<(Timestamp, Delivery)> {
    let deadline = Instant::now() + PATIENCE;
    let mut came = Vec::new();
    while came.len() < count {
        assert!(Instant::now() < deadline, "{} of {count} came", came.len());
        let maintained = session.maintain().await.unwrap();
        let want = Want {
            runnable: count - came.len(),
            total: count - came.len(),
        };
        let deliveries = session.exchange(&[], want).await.unwrap();
        let now = Timestamp::now();
        came.extend(deliveries.into_iter().map(|delivery| (now, delivery)));
        if came.len() < count {
            let pause = maintained.next.min(Duration::from_millis(200));
            drop(timeout(pause, session.wait()).await);
        }
    }
    came
}

async fn a_delayed_message_comes_in_its_time_and_marked(
    fixture: &dyn Fixture,
    broker: &Arc<dyn Broker>,
) {
    let (mut session, queue) = consumer(fixture, broker).await;
    let sent = message(7);
    session.publish(&queue, &sent).await.unwrap();
    let deliveries = fetch(&mut *session, 1).await;
    let until = Timestamp::now() + DELAY;
    session
        .exchange(&settle(&deliveries, delay(Some(until), 2)), Want::NONE)
        .await
        .unwrap();
    assert_eq!(session.size(&queue).await.unwrap(), 0, "it is in no queue");
    // One that can run is not held up by it.
    session.publish(&queue, &message(1)).await.unwrap();
    let came = come(&mut *session, 2).await;
    let (at, delivery) = &came[1];
    assert_eq!(
        numbers(&came.iter().map(|(_, it)| it).collect::<Vec<_>>()),
        [1, 7]
    );
    // RabbitMQ counts whole seconds.
    assert!(*at >= until - SignedDuration::from_secs(1), "{at} {until}");
    assert_eq!((marks(delivery).deaths, marks(delivery).told), (2, true));
    let back = delivery.message.as_ref().unwrap();
    assert_eq!(back.body, sent.body);
    assert_eq!(back.content_type, sent.content_type);
    assert_eq!(back.priority(), sent.priority());
    assert_eq!(
        back.property("correlation_id"),
        sent.property("correlation_id")
    );
    let deliveries: Vec<Delivery> = came.into_iter().map(|(_, delivery)| delivery).collect();
    session
        .exchange(&settle(&deliveries, Fate::Ack), Want::NONE)
        .await
        .unwrap();
    session.close().await.unwrap();
}

async fn a_message_without_a_moment_comes_last_and_marked(
    fixture: &dyn Fixture,
    broker: &Arc<dyn Broker>,
) {
    let (mut session, queue) = consumer(fixture, broker).await;
    session.publish(&queue, &message(1)).await.unwrap();
    let deliveries = fetch(&mut *session, 1).await;
    session.publish(&queue, &message(2)).await.unwrap();
    session
        .exchange(&settle(&deliveries, delay(None, 1)), Want::NONE)
        .await
        .unwrap();
    let again = fetch(&mut *session, 2).await;
    assert_eq!(numbers(&again), [2, 1]);
    assert_eq!(marks(&again[1]).deaths, 1);
    session
        .exchange(&settle(&again, Fate::Ack), Want::NONE)
        .await
        .unwrap();
    session.close().await.unwrap();
}

async fn what_is_delayed_outlives_its_worker(fixture: &dyn Fixture) {
    let (mut dying, queue) = consumer(fixture, &fixture.broker()).await;
    for id in 0..20 {
        dying.publish(&queue, &message(id)).await.unwrap();
    }
    let deliveries = fetch(&mut *dying, 20).await;
    let until = Timestamp::now() + DELAY;
    dying
        .exchange(&settle(&deliveries, delay(Some(until), 0)), Want::NONE)
        .await
        .unwrap();
    // No close, no further sign of life.
    drop(dying);
    let broker = fixture.broker();
    let mut living = broker.connect().await.unwrap();
    subscribe(&mut *living, &fixture.queue(&queue)).await;
    let came = come(&mut *living, 20).await;
    let mut ids = numbers(&came.iter().map(|(_, it)| it).collect::<Vec<_>>());
    ids.sort_unstable();
    assert_eq!(ids, (0..20).collect::<Vec<_>>());
    for (at, _) in &came {
        assert!(*at >= until - SignedDuration::from_secs(1));
    }
    let deliveries: Vec<Delivery> = came.into_iter().map(|(_, delivery)| delivery).collect();
    living
        .exchange(&settle(&deliveries, Fate::Ack), Want::NONE)
        .await
        .unwrap();
    assert_eq!(living.size(&queue).await.unwrap(), 0);
    living.close().await.unwrap();
}

async fn delayed_messages_are_listed(fixture: &dyn Fixture, broker: &Arc<dyn Broker>) {
    let (mut session, queue) = consumer(fixture, broker).await;
    let now = Timestamp::now();
    for id in 0..3 {
        session.publish(&queue, &message(id)).await.unwrap();
    }
    for (at, delivery) in fetch(&mut *session, 3).await.into_iter().enumerate() {
        // The last of them is the first to come.
        let until = now + SignedDuration::from_hours(10 - at as i64);
        session
            .exchange(&settle(&[delivery], delay(Some(until), 0)), Want::NONE)
            .await
            .unwrap();
    }
    let listed = session.delayed(2).await.unwrap();
    let ids: Vec<bool> = listed
        .iter()
        .zip([2, 1])
        .map(|(delayed, id)| {
            let expected = format!("\"id\": \"{id}\"");
            *delayed.queue == *queue && delayed.message.headers.contains(&expected)
        })
        .collect();
    assert_eq!(ids, [true, true], "{listed:?}");
    let earliest = now + SignedDuration::from_hours(8);
    let apart = listed[0].until.duration_since(earliest);
    assert!(apart.abs() < SignedDuration::from_secs(1), "{apart}");
    let (mut other, _) = consumer(fixture, broker).await;
    assert_eq!(other.delayed(9).await.unwrap(), [], "they are another's");
    session.close().await.unwrap();
}

async fn delayed_messages_are_returned(fixture: &dyn Fixture, broker: &Arc<dyn Broker>) {
    let (mut session, queue) = consumer(fixture, broker).await;
    for id in 0..3 {
        session.publish(&queue, &message(id)).await.unwrap();
    }
    let deliveries = fetch(&mut *session, 3).await;
    let until = Timestamp::now() + SignedDuration::from_hours(1);
    session
        .exchange(&settle(&deliveries, delay(Some(until), 4)), Want::NONE)
        .await
        .unwrap();
    // Whoever asks for it, and whatever others have delayed.
    let mut other = fixture.broker().connect().await.unwrap();
    assert!(other.return_delayed().await.unwrap() >= 3);
    assert_eq!(other.return_delayed().await.unwrap(), 0);
    let returned = fetch(&mut *session, 3).await;
    let mut ids = numbers(&returned);
    ids.sort_unstable();
    assert_eq!(ids, [0, 1, 2]);
    assert_eq!(marks(&returned[0]).deaths, 4);
    session
        .exchange(&settle(&returned, Fate::Ack), Want::NONE)
        .await
        .unwrap();
    assert_eq!(session.delayed(9).await.unwrap(), []);
    other.close().await.unwrap();
    session.close().await.unwrap();
}
