//! How every broker behaves, whatever its transport.
//!
//! A driver's tests call [`run`] with a [`Fixture`]. Cases that need a capability which the broker
//! does not claim are left out by that claim alone.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use celeriac_core::broker::{Broker, Delivery, DeliveryTag, Fate, Session, Settlement, Want};
use celeriac_core::queue::Queue;
use celeriac_protocol::{DeliveryInfo, Message};
use tokio::time::{Instant, timeout, timeout_at};

/// Longer than any broker needs for one step.
const PATIENCE: Duration = Duration::from_secs(10);
/// Within this a dead worker's messages are back.
const RECOVERED_WITHIN: Duration = Duration::from_secs(15);

/// Makes brokers for one storage.
#[async_trait]
pub trait Fixture: Sync {
    /// A broker as a worker of its own would make it: several share the storage alone.
    fn broker(&self) -> Arc<dyn Broker>;

    /// Puts bytes into a queue that no producer would; `None` where that is impossible.
    async fn publish_rubbish(&self, queue: &str, bytes: &[u8]) -> Option<()>;
}

/// Runs the whole suite.
pub async fn run(fixture: &dyn Fixture) {
    let suite = Suite { fixture };
    let capabilities = fixture.broker().capabilities();
    suite.a_message_comes_as_it_was_sent().await;
    suite.messages_come_in_order_and_no_more_than_wanted().await;
    suite.an_acknowledged_or_rejected_message_is_gone().await;
    suite.a_released_message_comes_first_and_unmarked().await;
    suite.a_requeued_message_comes_last_and_marked().await;
    suite.settling_twice_or_the_unknown_does_nothing().await;
    suite
        .waiting_ends_with_a_message_and_removes_nothing()
        .await;
    suite.many_consumers_share_without_overlap().await;
    suite.queues_take_turns_and_can_be_cancelled().await;
    suite.size_and_purge_tell_the_truth().await;
    suite.a_message_of_megabytes_is_one_message().await;
    suite.rubbish_is_delivered_as_such().await;
    suite
        .messages_with_an_eta_do_not_use_up_what_can_run()
        .await;
    if capabilities.priorities {
        suite.urgent_messages_come_first().await;
    }
    if capabilities.tags_outlive_connections {
        suite.a_message_is_settled_over_a_new_connection().await;
    }
    if capabilities.recovers {
        suite.only_a_dead_consumers_messages_come_back().await;
    }
}

struct Suite<'f> {
    fixture: &'f dyn Fixture,
}

/// A message with a number to tell it by.
pub fn message(number: u32) -> Message {
    with_headers(
        &format!(r#"{{"task": "t", "id": "{number}", "eta": null}}"#),
        0,
    )
}

fn with_headers(headers: &str, priority: u8) -> Message {
    Message {
        body: Bytes::from_static(b"[[], {}, {}]"),
        content_type: Some("application/json".into()),
        content_encoding: Some("utf-8".into()),
        headers: headers.into(),
        properties: format!(r#"{{"priority": {priority}, "correlation_id": "x"}}"#).into(),
        delivery_info: DeliveryInfo {
            exchange: Some("".into()),
            routing_key: Some("q".into()),
            priority: Some(priority.to_string().into()),
            redelivered: false,
        },
    }
}

fn number(delivery: &Delivery) -> u32 {
    let headers = &delivery.message.as_ref().unwrap().headers;
    let id = headers
        .split("\"id\": \"")
        .nth(1)
        .unwrap()
        .split('"')
        .next()
        .unwrap();
    id.parse().unwrap()
}

fn numbers(deliveries: &[Delivery]) -> Vec<u32> {
    deliveries.iter().map(number).collect()
}

fn want(count: usize) -> Want {
    Want {
        runnable: count,
        total: count,
    }
}

fn settle(deliveries: &[Delivery], fate: Fate) -> Vec<Settlement> {
    deliveries
        .iter()
        .map(|delivery| Settlement {
            tag: delivery.tag,
            fate,
        })
        .collect()
}

/// Fetches until `count` messages came.
async fn fetch(session: &mut dyn Session, count: usize) -> Vec<Delivery> {
    let mut deliveries = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while deliveries.len() < count {
        let more = session
            .exchange(&[], want(count - deliveries.len()))
            .await
            .unwrap();
        if more.is_empty() {
            timeout_at(deadline, session.wait())
                .await
                .expect("messages come")
                .unwrap();
            assert!(
                Instant::now() < deadline,
                "only {} of {count} messages came",
                deliveries.len()
            );
        }
        deliveries.extend(more);
    }
    deliveries
}

impl Suite<'_> {
    /// A consumer of a queue that nobody used before, and the queue's name.
    async fn consumer(&self) -> (Box<dyn Session>, String) {
        let queue = format!("q-{}", uuid::Uuid::new_v4().simple());
        (self.consumer_of(&queue).await, queue)
    }

    async fn consumer_of(&self, queue: &str) -> Box<dyn Session> {
        let mut session = self.fixture.broker().connect().await.unwrap();
        subscribe(&mut *session, queue).await;
        session
    }

    async fn a_message_comes_as_it_was_sent(&self) {
        let (mut session, queue) = self.consumer().await;
        let mut sent = with_headers(r#"{"task": "t", "id": "1", "odd": [NaN, "\u00e9"]}"#, 3);
        sent.body = Bytes::from_static(b"\x80\x04binary\x00");
        sent.content_type = Some("application/x-python-serialize".into());
        sent.content_encoding = Some("binary".into());
        session.publish(&queue, &sent).await.unwrap();
        let deliveries = fetch(&mut *session, 1).await;
        let came = deliveries[0].message.as_ref().unwrap();
        assert_eq!(&*deliveries[0].queue, queue);
        assert_eq!((&came.body, &came.headers), (&sent.body, &sent.headers));
        assert_eq!(came.content_type, sent.content_type);
        assert_eq!(came.content_encoding, sent.content_encoding);
        assert_eq!(came.property("correlation_id").as_deref(), Some("\"x\""));
        assert_eq!(came.priority(), 3);
        assert!(!came.delivery_info.redelivered);
        session
            .exchange(&settle(&deliveries, Fate::Ack), Want::NONE)
            .await
            .unwrap();
    }

    async fn messages_come_in_order_and_no_more_than_wanted(&self) {
        let (mut session, queue) = self.consumer().await;
        for id in 0..10 {
            session.publish(&queue, &message(id)).await.unwrap();
        }
        assert!(session.exchange(&[], Want::NONE).await.unwrap().is_empty());
        let first = session.exchange(&[], want(3)).await.unwrap();
        assert_eq!(numbers(&first), [0, 1, 2]);
        // What is settled in the same breath makes room for nothing by itself.
        let rest = session
            .exchange(&settle(&first, Fate::Ack), want(100))
            .await
            .unwrap();
        assert_eq!(numbers(&rest), (3..10).collect::<Vec<_>>());
        session
            .exchange(&settle(&rest, Fate::Ack), Want::NONE)
            .await
            .unwrap();
    }

    async fn an_acknowledged_or_rejected_message_is_gone(&self) {
        for fate in [Fate::Ack, Fate::Reject] {
            let (mut session, queue) = self.consumer().await;
            session.publish(&queue, &message(1)).await.unwrap();
            let deliveries = fetch(&mut *session, 1).await;
            session
                .exchange(&settle(&deliveries, fate), Want::NONE)
                .await
                .unwrap();
            session.close().await.unwrap();
            let mut session = self.consumer_of(&queue).await;
            assert!(
                session.exchange(&[], want(1)).await.unwrap().is_empty(),
                "{fate:?}"
            );
        }
    }

    async fn a_released_message_comes_first_and_unmarked(&self) {
        let (mut session, queue) = self.consumer().await;
        for id in 0..4 {
            session.publish(&queue, &message(id)).await.unwrap();
        }
        let deliveries = fetch(&mut *session, 3).await;
        session
            .exchange(&settle(&deliveries, Fate::Release), Want::NONE)
            .await
            .unwrap();
        assert_eq!(session.size(&queue).await.unwrap(), 4);
        let again = fetch(&mut *session, 4).await;
        assert_eq!(numbers(&again), [0, 1, 2, 3]);
        for delivery in &again {
            assert!(!delivery.message.as_ref().unwrap().delivery_info.redelivered);
        }
        session
            .exchange(&settle(&again, Fate::Ack), Want::NONE)
            .await
            .unwrap();
    }

    async fn a_requeued_message_comes_last_and_marked(&self) {
        let (mut session, queue) = self.consumer().await;
        for id in 0..3 {
            session.publish(&queue, &message(id)).await.unwrap();
        }
        let deliveries = fetch(&mut *session, 1).await;
        session
            .exchange(&settle(&deliveries, Fate::Requeue), Want::NONE)
            .await
            .unwrap();
        let again = fetch(&mut *session, 3).await;
        assert_eq!(numbers(&again), [1, 2, 0]);
        let marks: Vec<bool> = again
            .iter()
            .map(|delivery| delivery.message.as_ref().unwrap().delivery_info.redelivered)
            .collect();
        assert_eq!(marks, [false, false, true]);
        session
            .exchange(&settle(&again, Fate::Ack), Want::NONE)
            .await
            .unwrap();
    }

    async fn settling_twice_or_the_unknown_does_nothing(&self) {
        let (mut session, queue) = self.consumer().await;
        session.publish(&queue, &message(1)).await.unwrap();
        let deliveries = fetch(&mut *session, 1).await;
        session
            .exchange(&settle(&deliveries, Fate::Ack), Want::NONE)
            .await
            .unwrap();
        for fate in [Fate::Ack, Fate::Reject, Fate::Requeue, Fate::Release] {
            session
                .exchange(&settle(&deliveries, fate), Want::NONE)
                .await
                .unwrap();
            let unknown = Settlement {
                tag: DeliveryTag(u64::MAX >> 1),
                fate,
            };
            session.exchange(&[unknown], Want::NONE).await.unwrap();
        }
        assert_eq!(session.size(&queue).await.unwrap(), 0);
    }

    async fn waiting_ends_with_a_message_and_removes_nothing(&self) {
        let (mut session, queue) = self.consumer().await;
        let mut producer = self.fixture.broker().connect().await.unwrap();
        // As the worker does: ask, and wait only for what comes after.
        while !session.exchange(&[], want(1)).await.unwrap().is_empty() {}
        let publish = async {
            tokio::task::yield_now().await;
            producer.publish(&queue, &message(7)).await.unwrap();
        };
        let waited = async {
            loop {
                timeout(PATIENCE, session.wait())
                    .await
                    .expect("waiting ends")
                    .unwrap();
                if session.size(&queue).await.unwrap() == 1 {
                    break;
                }
            }
        };
        let ((), ()) = tokio::join!(publish, waited);
        assert_eq!(numbers(&fetch(&mut *session, 1).await), [7]);
    }

    async fn many_consumers_share_without_overlap(&self) {
        let (mut first, queue) = self.consumer().await;
        let mut second = self.consumer_of(&queue).await;
        let mut third = self.consumer_of(&queue).await;
        for id in 0..90 {
            first.publish(&queue, &message(id)).await.unwrap();
        }
        let mut seen = Vec::new();
        for round in 0.. {
            let mut came = 0;
            for session in [&mut first, &mut second, &mut third] {
                let deliveries = session.exchange(&[], want(7)).await.unwrap();
                session
                    .exchange(&settle(&deliveries, Fate::Ack), Want::NONE)
                    .await
                    .unwrap();
                came += deliveries.len();
                seen.extend(numbers(&deliveries));
            }
            if came == 0 {
                break;
            }
            assert!(round < 100, "it ends");
        }
        assert_eq!(seen.len(), 90, "no message twice");
        assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), (0..90).collect());
    }

    async fn queues_take_turns_and_can_be_cancelled(&self) {
        let (mut session, busy) = self.consumer().await;
        let quiet = format!("{busy}-quiet");
        subscribe(&mut *session, &quiet).await;
        for id in 0..20 {
            session.publish(&busy, &message(id)).await.unwrap();
        }
        session.publish(&quiet, &message(100)).await.unwrap();
        let deliveries = fetch(&mut *session, 4).await;
        assert!(
            numbers(&deliveries).contains(&100),
            "a busy queue starves no other"
        );
        session
            .exchange(&settle(&deliveries, Fate::Ack), Want::NONE)
            .await
            .unwrap();

        session.cancel(&busy).await.unwrap();
        session.publish(&quiet, &message(101)).await.unwrap();
        let deliveries = session.exchange(&[], want(10)).await.unwrap();
        assert_eq!(numbers(&deliveries), [101]);
        session
            .exchange(&settle(&deliveries, Fate::Ack), Want::NONE)
            .await
            .unwrap();
        assert_eq!(session.size(&busy).await.unwrap(), 17);
        session.purge(&busy).await.unwrap();
    }

    async fn size_and_purge_tell_the_truth(&self) {
        let (mut session, queue) = self.consumer().await;
        assert_eq!(session.size(&queue).await.unwrap(), 0);
        for id in 0..5 {
            session.publish(&queue, &message(id)).await.unwrap();
        }
        let held = fetch(&mut *session, 2).await;
        assert_eq!(
            session.size(&queue).await.unwrap(),
            3,
            "what is held does not wait"
        );
        assert_eq!(session.purge(&queue).await.unwrap(), 3);
        assert_eq!(session.size(&queue).await.unwrap(), 0);
        session
            .exchange(&settle(&held, Fate::Release), Want::NONE)
            .await
            .unwrap();
        assert_eq!(
            session.size(&queue).await.unwrap(),
            2,
            "what is held is not purged"
        );
        session.purge(&queue).await.unwrap();
    }

    async fn a_message_of_megabytes_is_one_message(&self) {
        let (mut session, queue) = self.consumer().await;
        let mut large = message(1);
        large.body = Bytes::from(vec![b'x'; 5 << 20]);
        session.publish(&queue, &large).await.unwrap();
        let deliveries = fetch(&mut *session, 1).await;
        assert_eq!(deliveries[0].message.as_ref().unwrap().body, large.body);
        session
            .exchange(&settle(&deliveries, Fate::Ack), Want::NONE)
            .await
            .unwrap();
    }

    async fn rubbish_is_delivered_as_such(&self) {
        let (mut session, queue) = self.consumer().await;
        let deep = "[".repeat(100_000);
        for rubbish in ["", "no json", "[]", "{\"body\": 5}", &deep, "\u{0}\"\u{7f}"] {
            if self
                .fixture
                .publish_rubbish(&queue, rubbish.as_bytes())
                .await
                .is_none()
            {
                return;
            }
            let deliveries = fetch(&mut *session, 1).await;
            let unreadable = deliveries[0].message.as_ref().unwrap_err();
            assert_eq!(unreadable.raw, rubbish.as_bytes());
            // It can be put back and dropped as any other.
            session
                .exchange(&settle(&deliveries, Fate::Requeue), Want::NONE)
                .await
                .unwrap();
            let deliveries = fetch(&mut *session, 1).await;
            assert_eq!(
                deliveries[0].message.as_ref().unwrap_err().raw,
                rubbish.as_bytes()
            );
            session
                .exchange(&settle(&deliveries, Fate::Ack), Want::NONE)
                .await
                .unwrap();
        }
        assert_eq!(session.size(&queue).await.unwrap(), 0);
    }

    async fn messages_with_an_eta_do_not_use_up_what_can_run(&self) {
        let (mut session, queue) = self.consumer().await;
        for id in 0..50 {
            let eta = "2999-01-01T00:00:00+00:00";
            let held = with_headers(
                &format!(r#"{{"task": "t", "id": "{id}", "eta": "{eta}"}}"#),
                0,
            );
            session.publish(&queue, &held).await.unwrap();
        }
        session.publish(&queue, &message(50)).await.unwrap();
        session.publish(&queue, &message(51)).await.unwrap();
        let mut deliveries = Vec::new();
        for _ in 0..60 {
            // At least one message that can run, or all that have an ETA before it.
            let more = session
                .exchange(
                    &[],
                    Want {
                        runnable: 1,
                        total: 100,
                    },
                )
                .await
                .unwrap();
            deliveries.extend(more);
            if deliveries.iter().any(|delivery| number(delivery) >= 50) {
                break;
            }
        }
        assert_eq!(numbers(&deliveries), (0..51).collect::<Vec<_>>());
        session
            .exchange(&settle(&deliveries, Fate::Ack), Want::NONE)
            .await
            .unwrap();
        session.purge(&queue).await.unwrap();
    }

    async fn urgent_messages_come_first(&self) {
        let (mut session, queue) = self.consumer().await;
        for (id, priority) in [(9, 9), (5, 5), (3, 3), (0, 0), (4, 4)] {
            let headers = format!(r#"{{"task": "t", "id": "{id}"}}"#);
            session
                .publish(&queue, &with_headers(&headers, priority))
                .await
                .unwrap();
        }
        let deliveries = fetch(&mut *session, 5).await;
        // Redis's order: 0 before 9, and 3 to 5 are one.
        assert_eq!(numbers(&deliveries), [0, 5, 3, 4, 9]);
        session
            .exchange(&settle(&deliveries, Fate::Release), Want::NONE)
            .await
            .unwrap();
        let again = fetch(&mut *session, 5).await;
        assert_eq!(
            numbers(&again),
            [0, 5, 3, 4, 9],
            "a released message keeps its priority"
        );
        session
            .exchange(&settle(&again, Fate::Ack), Want::NONE)
            .await
            .unwrap();
    }

    async fn a_message_is_settled_over_a_new_connection(&self) {
        let broker = self.fixture.broker();
        let queue = format!("q-{}", uuid::Uuid::new_v4().simple());
        let mut session = broker.connect().await.unwrap();
        subscribe(&mut *session, &queue).await;
        for id in 0..3 {
            session.publish(&queue, &message(id)).await.unwrap();
        }
        let deliveries = fetch(&mut *session, 3).await;
        drop(session);
        let mut session = broker.connect().await.unwrap();
        subscribe(&mut *session, &queue).await;
        let fates = [Fate::Ack, Fate::Release, Fate::Requeue];
        let settlements: Vec<Settlement> = deliveries
            .iter()
            .zip(fates)
            .map(|(delivery, fate)| Settlement {
                tag: delivery.tag,
                fate,
            })
            .collect();
        session.exchange(&settlements, Want::NONE).await.unwrap();
        let again = fetch(&mut *session, 2).await;
        assert_eq!(numbers(&again), [1, 2]);
        session
            .exchange(&settle(&again, Fate::Ack), Want::NONE)
            .await
            .unwrap();
    }

    async fn only_a_dead_consumers_messages_come_back(&self) {
        let (mut living, queue) = self.consumer().await;
        let mut dying = self.consumer_of(&queue).await;
        for id in 0..4 {
            living.publish(&queue, &message(id)).await.unwrap();
        }
        let held = fetch(&mut *living, 2).await;
        assert_eq!(numbers(&held), [0, 1]);
        let taken = fetch(&mut *dying, 2).await;
        assert_eq!(numbers(&taken), [2, 3]);
        dying.maintain().await.unwrap();
        // It dies: no close, no further sign of life.
        drop(dying);

        let mut watching = self.consumer_of(&queue).await;
        let deadline = Instant::now() + RECOVERED_WITHIN;
        let mut back = Vec::new();
        while back.len() < 2 {
            assert!(
                Instant::now() < deadline,
                "a dead consumer's messages come back in time"
            );
            let maintained = living.maintain().await.unwrap();
            assert_eq!(maintained.lost, [], "the living keeps what it holds");
            watching.maintain().await.unwrap();
            back.extend(watching.exchange(&[], want(10)).await.unwrap());
            let pause = maintained.next.min(Duration::from_millis(200));
            drop(timeout(pause, watching.wait()).await);
        }
        assert_eq!(numbers(&back), [2, 3]);
        for delivery in &back {
            assert!(delivery.message.as_ref().unwrap().delivery_info.redelivered);
        }
        watching
            .exchange(&settle(&back, Fate::Ack), Want::NONE)
            .await
            .unwrap();
        living
            .exchange(&settle(&held, Fate::Ack), Want::NONE)
            .await
            .unwrap();
        living.close().await.unwrap();
        watching.close().await.unwrap();
    }
}

async fn subscribe(session: &mut dyn Session, queue: &str) {
    let queue = Queue::direct(queue);
    session.declare(&queue).await.unwrap();
    session.subscribe(&queue).await.unwrap();
}
