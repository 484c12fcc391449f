//! How every broker behaves, whatever its transport.
//!
//! A driver's tests call [`run`] with a [`Fixture`]. Cases that need a capability which the broker
//! does not claim are left out by that claim alone.

use std::borrow::Borrow;
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

    /// A queue whose messages have priorities, where the broker has any.
    fn queue(&self, name: &str) -> Queue {
        Queue::direct(name)
    }

    /// What this broker does in its own way.
    fn ways(&self) -> Ways {
        Ways::default()
    }
}

/// What brokers do each in its own way.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ways {
    /// Where what goes back to a queue goes.
    pub gives_back: GivesBack,
    /// Messages with the highest number are the most urgent, not those with 0.
    pub highest_is_urgent: bool,
    /// These queues have no priorities, though the broker's may have.
    pub has_no_priorities: bool,
    /// Headers hold no `NaN`.
    pub knows_no_nan: bool,
    /// Messages can't be taken out of the delay store before their time.
    pub keeps_delayed: bool,
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
    suite.waiting_ends_for_who_wanted_nothing_meanwhile().await;
    suite.many_consumers_share_without_overlap().await;
    suite.queues_take_turns_and_can_be_cancelled().await;
    suite.size_and_purge_tell_the_truth().await;
    suite.a_message_of_megabytes_is_one_message().await;
    suite.rubbish_is_delivered_as_such().await;
    suite
        .messages_with_an_eta_do_not_use_up_what_can_run()
        .await;
    if capabilities.priorities && !fixture.ways().has_no_priorities {
        suite.urgent_messages_come_first().await;
    }
    if capabilities.tags_outlive_connections {
        suite.a_message_is_settled_over_a_new_connection().await;
    }
    if capabilities.recovers {
        suite.only_a_dead_consumers_messages_come_back().await;
    }
    if capabilities.delays {
        super::delays::run(fixture).await;
        super::dead_letters::run(fixture).await;
    }
}

/// Where what goes back to a queue goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum GivesBack {
    /// What is released comes first and unmarked, what is requeued last and marked.
    #[default]
    AsTold,
    /// To its old place, marked in either case.
    InPlace,
    /// To a place of the broker's choice, marked in either case.
    Anywhere,
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

pub(super) fn numbers<D: Borrow<Delivery>>(deliveries: &[D]) -> Vec<u32> {
    deliveries
        .iter()
        .map(|delivery| number(delivery.borrow()))
        .collect()
}

fn want(count: usize) -> Want {
    Want {
        runnable: count,
        total: count,
    }
}

pub(super) fn settle(deliveries: &[Delivery], fate: Fate) -> Vec<Settlement> {
    deliveries
        .iter()
        .map(|delivery| Settlement {
            tag: delivery.tag,
            fate,
        })
        .collect()
}

/// JSON to compare, whatever the order of its members. Python's `NaN` becomes a text.
fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(&text.replace("NaN", "\"NaN\"")).unwrap()
}

/// Fetches until `count` messages came.
pub(super) async fn fetch(session: &mut dyn Session, count: usize) -> Vec<Delivery> {
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

/// Waits until a queue holds so many messages: a replicated one counts a little late.
async fn size_becomes(session: &mut dyn Session, queue: &str, expected: u64) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let size = session.size(queue).await.unwrap();
        if size == expected {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{queue} holds {size} messages, not {expected}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

impl Suite<'_> {
    /// A consumer of a queue that nobody used before, and the queue's name.
    async fn consumer(&self) -> (Box<dyn Session>, String) {
        let queue = format!("q-{}", uuid::Uuid::new_v4().simple());
        (self.consumer_of(&queue).await, queue)
    }

    async fn consumer_of(&self, queue: &str) -> Box<dyn Session> {
        let mut session = self.fixture.broker().connect().await.unwrap();
        subscribe(&mut *session, &self.fixture.queue(queue)).await;
        session
    }

    async fn a_message_comes_as_it_was_sent(&self) {
        let (mut session, queue) = self.consumer().await;
        let number = if self.fixture.ways().knows_no_nan {
            "-0.5"
        } else {
            "NaN"
        };
        let headers = r#"{"task": "t", "id": "1", "odd": [NUMBER, "\u00e9"]}"#;
        let mut sent = with_headers(&headers.replace("NUMBER", number), 3);
        sent.body = Bytes::from_static(b"\x80\x04binary\x00");
        sent.content_type = Some("application/x-python-serialize".into());
        sent.content_encoding = Some("binary".into());
        session.publish(&queue, &sent).await.unwrap();
        let deliveries = fetch(&mut *session, 1).await;
        let came = deliveries[0].message.as_ref().unwrap();
        assert_eq!(&*deliveries[0].queue, queue);
        assert_eq!(came.body, sent.body);
        assert_eq!(json(&came.headers), json(&sent.headers));
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
        let first = fetch(&mut *session, 3).await;
        assert_eq!(numbers(&first), [0, 1, 2]);
        // What is settled in the same breath makes room for nothing by itself.
        let mut rest = session
            .exchange(&settle(&first, Fate::Ack), want(100))
            .await
            .unwrap();
        rest.extend(fetch(&mut *session, 7 - rest.len()).await);
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
            session.publish(&queue, &message(2)).await.unwrap();
            let deliveries = fetch(&mut *session, 1).await;
            assert_eq!(numbers(&deliveries), [2], "{fate:?}");
            session
                .exchange(&settle(&deliveries, Fate::Ack), Want::NONE)
                .await
                .unwrap();
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
        size_becomes(&mut *session, &queue, 4).await;
        let again = fetch(&mut *session, 4).await;
        let mut came = numbers(&again);
        if self.fixture.ways().gives_back == GivesBack::Anywhere {
            came.sort_unstable();
        }
        assert_eq!(came, [0, 1, 2, 3]);
        if self.fixture.ways().gives_back == GivesBack::AsTold {
            for delivery in &again {
                assert!(!delivery.message.as_ref().unwrap().delivery_info.redelivered);
            }
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
        let mut marked: Vec<(u32, bool)> = again
            .iter()
            .map(|delivery| {
                let info = &delivery.message.as_ref().unwrap().delivery_info;
                (number(delivery), info.redelivered)
            })
            .collect();
        let mut expected = [(1, false), (2, false), (0, true)];
        match self.fixture.ways().gives_back {
            GivesBack::AsTold => {}
            GivesBack::InPlace => expected.rotate_right(1),
            GivesBack::Anywhere => {
                expected.sort_unstable();
                marked.sort_unstable();
            }
        }
        assert_eq!(marked, expected);
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
        size_becomes(&mut *session, &queue, 0).await;
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

    async fn waiting_ends_for_who_wanted_nothing_meanwhile(&self) {
        let (mut session, queue) = self.consumer().await;
        while !session.exchange(&[], want(2)).await.unwrap().is_empty() {}
        // All processes are busy, and then one is free: there is nothing to tell the broker.
        session.exchange(&[], Want::NONE).await.unwrap();
        session.publish(&queue, &message(3)).await.unwrap();
        let deadline = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        while seen.is_empty() {
            timeout(PATIENCE, session.wait())
                .await
                .expect("waiting ends")
                .unwrap();
            assert!(Instant::now() < deadline, "the message does not come");
            seen = numbers(&session.exchange(&[], want(1)).await.unwrap());
        }
        assert_eq!(seen, [3]);
    }

    async fn many_consumers_share_without_overlap(&self) {
        let (mut first, queue) = self.consumer().await;
        let mut second = self.consumer_of(&queue).await;
        let mut third = self.consumer_of(&queue).await;
        for id in 0..90 {
            first.publish(&queue, &message(id)).await.unwrap();
        }
        let mut seen = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        while seen.len() < 90 {
            assert!(Instant::now() < deadline, "only {} came", seen.len());
            for session in [&mut first, &mut second, &mut third] {
                let deliveries = session.exchange(&[], want(7)).await.unwrap();
                if deliveries.is_empty() {
                    drop(timeout(Duration::from_millis(10), session.wait()).await);
                    continue;
                }
                session
                    .exchange(&settle(&deliveries, Fate::Ack), Want::NONE)
                    .await
                    .unwrap();
                seen.extend(numbers(&deliveries));
            }
        }
        assert_eq!(seen.len(), 90, "no message twice");
        assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), (0..90).collect());
    }

    async fn queues_take_turns_and_can_be_cancelled(&self) {
        let (mut session, busy) = self.consumer().await;
        let quiet = format!("{busy}-quiet");
        subscribe(&mut *session, &self.fixture.queue(&quiet)).await;
        for id in 0..200 {
            session.publish(&busy, &message(id)).await.unwrap();
        }
        session.publish(&quiet, &message(1000)).await.unwrap();
        let mut taken = 0;
        loop {
            let deliveries = fetch(&mut *session, 4).await;
            session
                .exchange(&settle(&deliveries, Fate::Ack), Want::NONE)
                .await
                .unwrap();
            taken += deliveries.len();
            if numbers(&deliveries).contains(&1000) {
                break;
            }
            assert!(taken < 100, "a busy queue starves no other");
        }

        session.cancel(&busy).await.unwrap();
        session.publish(&quiet, &message(1001)).await.unwrap();
        let deliveries = fetch(&mut *session, 1).await;
        assert_eq!(numbers(&deliveries), [1001]);
        session
            .exchange(&settle(&deliveries, Fate::Ack), Want::NONE)
            .await
            .unwrap();
        let left = 200 - (taken as u64 - 1);
        size_becomes(&mut *session, &busy, left).await;
        session.purge(&busy).await.unwrap();
    }

    async fn size_and_purge_tell_the_truth(&self) {
        let (mut session, queue) = self.consumer().await;
        size_becomes(&mut *session, &queue, 0).await;
        for id in 0..5 {
            session.publish(&queue, &message(id)).await.unwrap();
        }
        let held = fetch(&mut *session, 2).await;
        // What is held does not wait.
        size_becomes(&mut *session, &queue, 3).await;
        assert_eq!(session.purge(&queue).await.unwrap(), 3);
        size_becomes(&mut *session, &queue, 0).await;
        session
            .exchange(&settle(&held, Fate::Release), Want::NONE)
            .await
            .unwrap();
        // What is held is not purged.
        size_becomes(&mut *session, &queue, 2).await;
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
        size_becomes(&mut *session, &queue, 0).await;
    }

    async fn messages_with_an_eta_do_not_use_up_what_can_run(&self) {
        let (mut session, queue) = self.consumer().await;
        for id in 0..50 {
            // In UTC, and in the zone of the app.
            let zone = ["+00:00", ".5+05:30", "-08:00"][id % 3];
            let eta = format!("2999-01-01T00:00:00{zone}");
            let held = with_headers(
                &format!(r#"{{"task": "t", "id": "{id}", "eta": "{eta}"}}"#),
                0,
            );
            session.publish(&queue, &held).await.unwrap();
        }
        let past = r#"{"task": "t", "id": "50", "eta": "2020-02-29T23:59:59.999999+02:00"}"#;
        let past = with_headers(past, 0);
        session.publish(&queue, &past).await.unwrap();
        session.publish(&queue, &message(51)).await.unwrap();
        let mut deliveries: Vec<Delivery> = Vec::new();
        let wanted = Want {
            runnable: 1,
            total: 100,
        };
        let deadline = Instant::now() + PATIENCE;
        // At least one message that can run, or all that have an ETA before it.
        while !deliveries.iter().any(|delivery| number(delivery) >= 50) {
            let more = session.exchange(&[], wanted).await.unwrap();
            if more.is_empty() {
                timeout_at(deadline, session.wait()).await.unwrap().unwrap();
            }
            deliveries.extend(more);
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
        let expected = if self.fixture.ways().highest_is_urgent {
            [9, 5, 4, 3, 0]
        } else {
            // Redis's order: 0 before 9, and 3 to 5 are one.
            [0, 5, 3, 4, 9]
        };
        assert_eq!(numbers(&deliveries), expected);
        session
            .exchange(&settle(&deliveries, Fate::Release), Want::NONE)
            .await
            .unwrap();
        let again = fetch(&mut *session, 5).await;
        assert_eq!(
            numbers(&again),
            expected,
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
        subscribe(&mut *session, &self.fixture.queue(&queue)).await;
        for id in 0..3 {
            session.publish(&queue, &message(id)).await.unwrap();
        }
        let deliveries = fetch(&mut *session, 3).await;
        drop(session);
        let mut session = broker.connect().await.unwrap();
        subscribe(&mut *session, &self.fixture.queue(&queue)).await;
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
        let mut came = numbers(&back);
        came.sort_unstable();
        assert_eq!(came, [2, 3]);
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

pub(super) async fn subscribe(session: &mut dyn Session, queue: &Queue) {
    session.declare(queue).await.unwrap();
    session.subscribe(queue).await.unwrap();
}
