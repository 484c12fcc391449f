//! How every bus behaves, whatever its transport.
//!
//! A driver's tests call [`run`] with a [`Fixture`]. Each case works with exchanges of its own.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use celeriac_core::broker::Broker;
use celeriac_core::bus::{Bus, BusOptions, BusSettings, Destination, Heard, Kind, Outgoing};
use celeriac_protocol::{DeliveryInfo, Message, json};
use tokio::time::timeout;

/// Longer than any bus needs for one step.
const PATIENCE: Duration = Duration::from_secs(10);

/// Makes brokers for one server.
pub trait Fixture: Sync {
    /// A broker as a node of its own would make it: several share the server alone.
    fn broker(&self) -> Arc<dyn Broker>;
}

/// Runs the whole suite.
pub async fn run(fixture: &dyn Fixture) {
    a_command_reaches_every_mailbox_its_own_included(&Case::new(fixture)).await;
    a_message_comes_as_it_was_sent(&Case::new(fixture)).await;
    a_reply_reaches_only_its_key(&Case::new(fixture)).await;
    a_reply_that_nobody_waits_for_is_no_error(&Case::new(fixture)).await;
    events_of_workers_are_heard_and_no_others(&Case::new(fixture)).await;
    only_what_was_asked_for_is_heard(&Case::new(fixture)).await;
    the_order_is_kept(&Case::new(fixture)).await;
    nothing_from_before_the_opening_is_heard(&Case::new(fixture)).await;
    other_exchanges_are_other_worlds(&Case::new(fixture)).await;
    listening_can_be_interrupted(&Case::new(fixture)).await;
    a_message_of_a_megabyte_is_one_message(&Case::new(fixture)).await;
    a_bus_that_is_closed_leaves_its_name_to_the_next(&Case::new(fixture)).await;
}

/// Exchanges that no other case uses.
struct Case<'f> {
    fixture: &'f dyn Fixture,
    settings: BusSettings,
}

impl<'f> Case<'f> {
    fn new(fixture: &'f dyn Fixture) -> Self {
        let id = uuid::Uuid::new_v4().simple();
        Self {
            fixture,
            settings: BusSettings {
                control_exchange: format!("celery-{id}"),
                event_exchange: format!("celeryev-{id}"),
                event_queue_prefix: format!("celeryev-{id}"),
                ..BusSettings::default()
            },
        }
    }

    fn options(&self, node: &str) -> BusOptions {
        BusOptions {
            node: format!("{node}@{}", self.settings.control_exchange),
            settings: self.settings.clone(),
            hears_commands: true,
            hears_workers: true,
        }
    }

    /// A bus that hears all there is.
    async fn open(&self, node: &str) -> Box<dyn Bus> {
        self.open_with(&self.options(node)).await
    }

    async fn open_with(&self, options: &BusOptions) -> Box<dyn Bus> {
        let opening = self.fixture.broker();
        let opening = opening.open_bus(options);
        timeout(PATIENCE, opening)
            .await
            .expect("a bus opens in time")
            .unwrap()
            .expect("this broker has a bus")
    }

    /// A reply to whoever has this key.
    fn reply(&self, key: &str, text: &str) -> Outgoing {
        Outgoing {
            to: Destination::Reply {
                exchange: self.settings.reply_exchange(),
                routing_key: key.to_owned(),
            },
            message: message(text),
        }
    }
}

fn message(text: &str) -> Message {
    Message {
        body: Bytes::from(json::quote(text)),
        content_type: Some("application/json".into()),
        content_encoding: Some("utf-8".into()),
        headers: r#"{"clock": 7, "expires": 1700000000.5, "ticket": "t"}"#.into(),
        properties: r#"{"delivery_mode": 1, "priority": 0, "correlation_id": "x"}"#.into(),
        delivery_info: DeliveryInfo::default(),
    }
}

fn event(routing_key: &str, text: &str) -> Outgoing {
    Outgoing {
        to: Destination::Event {
            routing_key: routing_key.to_owned(),
        },
        message: message(text),
    }
}

async fn next(bus: &mut dyn Bus) -> Heard {
    timeout(PATIENCE, bus.next())
        .await
        .expect("something is heard in time")
        .unwrap()
}

/// The next that is heard: what it is, and its text.
async fn hear(bus: &mut dyn Bus) -> (Kind, String) {
    let heard = next(bus).await;
    let body = heard.message.unwrap().body;
    let text = json::as_str(std::str::from_utf8(&body).unwrap()).unwrap();
    (heard.kind, text.into_owned())
}

fn command(text: &str) -> (Kind, String) {
    (Kind::Command, text.to_owned())
}

fn reply(text: &str) -> (Kind, String) {
    (Kind::Reply, text.to_owned())
}

fn of_worker(text: &str) -> (Kind, String) {
    (Kind::Event, text.to_owned())
}

async fn a_command_reaches_every_mailbox_its_own_included(case: &Case<'_>) {
    let mut buses = [
        case.open("a").await,
        case.open("b").await,
        case.open("c").await,
    ];
    for asking in 0..buses.len() {
        let text = format!("command {asking}");
        let reached = buses[asking].broadcast(&message(&text)).await.unwrap();
        assert!(
            matches!(reached, None | Some(3)),
            "{reached:?} were reached"
        );
        for bus in &mut buses {
            assert_eq!(hear(&mut **bus).await, command(&text));
        }
    }
}

async fn a_message_comes_as_it_was_sent(case: &Case<'_>) {
    let mut bus = case.open("a").await;
    let sent = message("h\u{e9}llo");
    bus.broadcast(&sent).await.unwrap();
    let heard = next(&mut *bus).await;
    let came = heard.message.unwrap();
    assert_eq!(came.body, sent.body);
    assert_eq!(came.content_type, sent.content_type);
    assert_eq!(came.content_encoding, sent.content_encoding);
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    assert_eq!(json(&came.headers), json(&sent.headers));
    assert_eq!(came.property("correlation_id").as_deref(), Some("\"x\""));
}

async fn a_reply_reaches_only_its_key(case: &Case<'_>) {
    let (mut asking, mut other) = (case.open("a").await, case.open("b").await);
    assert_ne!(asking.reply_key(), other.reply_key());
    let to_asking = case.reply(asking.reply_key(), "for a");
    let to_other = case.reply(other.reply_key(), "for b");
    other.send(&[to_asking.clone(), to_other]).await.unwrap();
    assert_eq!(hear(&mut *asking).await, reply("for a"));
    // Nothing came before it.
    assert_eq!(hear(&mut *other).await, reply("for b"));
    asking.send(&[to_asking]).await.unwrap();
    assert_eq!(hear(&mut *asking).await, reply("for a"), "from itself too");
}

async fn a_reply_that_nobody_waits_for_is_no_error(case: &Case<'_>) {
    let mut bus = case.open("a").await;
    let own = case.reply(bus.reply_key(), "for a");
    let to_nobody = case.reply("nobody", "for nobody");
    bus.send(&[to_nobody, own]).await.unwrap();
    assert_eq!(hear(&mut *bus).await, reply("for a"));
}

async fn events_of_workers_are_heard_and_no_others(case: &Case<'_>) {
    let mut listening = case.open("a").await;
    let speaking = BusOptions {
        hears_workers: false,
        ..case.options("b")
    };
    let mut speaking = case.open_with(&speaking).await;
    let events = [
        event("worker.online", "1"),
        event("task.received", "no"),
        event("task.multi", "no"),
        event("workers.offline", "no"),
        event("worker.heartbeat", "2"),
    ];
    speaking.send(&events).await.unwrap();
    assert_eq!(hear(&mut *listening).await, of_worker("1"));
    assert_eq!(hear(&mut *listening).await, of_worker("2"));
    // The one who does not listen has heard none of it.
    listening.broadcast(&message("c")).await.unwrap();
    assert_eq!(hear(&mut *speaking).await, command("c"));
}

async fn only_what_was_asked_for_is_heard(case: &Case<'_>) {
    let mut all = case.open("a").await;
    let events = BusOptions {
        hears_commands: false,
        ..case.options("b")
    };
    let mut events = case.open_with(&events).await;
    events.broadcast(&message("command")).await.unwrap();
    assert_eq!(hear(&mut *all).await, command("command"));
    all.send(&[event("worker.online", "event")]).await.unwrap();
    assert_eq!(hear(&mut *events).await, of_worker("event"));
}

async fn the_order_is_kept(case: &Case<'_>) {
    let (mut listening, mut speaking) = (case.open("a").await, case.open("b").await);
    let key = listening.reply_key().to_owned();
    let texts: Vec<String> = (0..200).map(|number| number.to_string()).collect();
    let replies: Vec<Outgoing> = texts.iter().map(|text| case.reply(&key, text)).collect();
    let (first, second) = replies.split_at(50);
    speaking.send(first).await.unwrap();
    speaking.send(second).await.unwrap();
    for text in &texts {
        assert_eq!(hear(&mut *listening).await, reply(text));
    }
    for text in &texts {
        speaking.broadcast(&message(text)).await.unwrap();
    }
    for text in &texts {
        assert_eq!(hear(&mut *listening).await, command(text));
    }
}

async fn nothing_from_before_the_opening_is_heard(case: &Case<'_>) {
    let (mut early, mut speaking) = (case.open("a").await, case.open("b").await);
    speaking.broadcast(&message("old")).await.unwrap();
    assert_eq!(hear(&mut *early).await, command("old"));
    let old = event("worker.online", "old");
    speaking.send(&[old]).await.unwrap();
    assert_eq!(hear(&mut *early).await, of_worker("old"));

    let mut late = case.open("c").await;
    speaking.broadcast(&message("new")).await.unwrap();
    assert_eq!(hear(&mut *late).await, command("new"));
    let new = event("worker.online", "new");
    speaking.send(&[new]).await.unwrap();
    assert_eq!(hear(&mut *late).await, of_worker("new"));
}

async fn other_exchanges_are_other_worlds(case: &Case<'_>) {
    let mut here = case.open("a").await;
    let other = Case::new(case.fixture);
    let mut there = other.open("a").await;
    there.broadcast(&message("there")).await.unwrap();
    assert_eq!(hear(&mut *there).await, command("there"));
    let event_there = event("worker.online", "event there");
    there.send(&[event_there]).await.unwrap();
    assert_eq!(hear(&mut *there).await, of_worker("event there"));
    here.broadcast(&message("here")).await.unwrap();
    assert_eq!(hear(&mut *here).await, command("here"));
}

async fn listening_can_be_interrupted(case: &Case<'_>) {
    let (mut listening, mut speaking) = (case.open("a").await, case.open("b").await);
    let key = listening.reply_key().to_owned();
    let mut heard = Vec::new();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    for number in 0..50 {
        let sent = case.reply(&key, &number.to_string());
        speaking.send(&[sent]).await.unwrap();
        // Given up at whatever point it has reached.
        let short = Duration::from_micros(number * 7);
        if let Ok(found) = timeout(short, listening.next()).await {
            heard.push(found.unwrap());
        }
    }
    while heard.len() < 50 {
        assert!(tokio::time::Instant::now() < deadline, "all are heard");
        heard.push(next(&mut *listening).await);
    }
    let texts: Vec<Bytes> = heard
        .into_iter()
        .map(|heard| heard.message.unwrap().body)
        .collect();
    let expected: Vec<String> = (0..50)
        .map(|number| json::quote(&number.to_string()))
        .collect();
    assert_eq!(texts, expected);
}

async fn a_message_of_a_megabyte_is_one_message(case: &Case<'_>) {
    let mut bus = case.open("a").await;
    let large = "x".repeat(1 << 20);
    let sent = case.reply(bus.reply_key(), &large);
    bus.send(&[sent]).await.unwrap();
    assert!(hear(&mut *bus).await == reply(&large));
}

async fn a_bus_that_is_closed_leaves_its_name_to_the_next(case: &Case<'_>) {
    let mut other = case.open("b").await;
    for round in 0..3 {
        let mut bus = case.open("a").await;
        assert_eq!(bus.notice(), None, "the name is free in round {round}");
        let text = round.to_string();
        let reached = other.broadcast(&message(&text)).await.unwrap();
        assert!(
            matches!(reached, None | Some(2)),
            "{reached:?} were reached"
        );
        assert_eq!(hear(&mut *bus).await, command(&text));
        assert_eq!(hear(&mut *other).await, command(&text));
        timeout(PATIENCE, bus.close())
            .await
            .expect("a bus closes in time")
            .unwrap();
    }
}
