//! The bus over Redis: what is particular to it, and what it leaves behind.

use std::sync::Arc;
use std::time::Duration;

use celeriac_broker::{Options, open};
use celeriac_core::Broker;
use celeriac_core::broker::ErrorKind;
use celeriac_core::bus::{Bus, BusOptions, BusSettings, Destination, Heard, Kind, Outgoing};
use celeriac_protocol::Message;
use celeriac_testing::conformance::broker::message;
use celeriac_testing::conformance::bus;
use celeriac_testing::server::RedisServer;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

const PATIENCE: Duration = Duration::from_secs(10);

struct Fixture {
    url: String,
    options: Options,
}

impl bus::Fixture for Fixture {
    fn broker(&self) -> Arc<dyn Broker> {
        open(&self.url, &self.options).unwrap()
    }
}

#[tokio::test]
async fn conformance() {
    let server = RedisServer::start();
    for transport in [
        json!({}),
        json!({"global_keyprefix": "p:", "fanout_patterns": false, "fanout_prefix": "x{db}."}),
    ] {
        let fixture = Fixture {
            url: server.url(1),
            options: options(transport),
        };
        bus::run(&fixture).await;
    }
}

fn options(transport: Value) -> Options {
    let Value::Object(transport) = transport else {
        panic!("an object")
    };
    Options {
        transport,
        ..Options::default()
    }
}

async fn bus_with(url: &str, transport: Value, node: &str) -> Box<dyn Bus> {
    let options = options(transport);
    let broker = open(url, &options).unwrap();
    let options = BusOptions {
        node: node.to_owned(),
        settings: BusSettings::default(),
        hears_commands: true,
        hears_workers: true,
    };
    broker.open_bus(&options).await.unwrap().unwrap()
}

async fn bus_on(server: &RedisServer, node: &str) -> Box<dyn Bus> {
    bus_with(&server.url(0), json!({}), node).await
}

async fn heard(bus: &mut dyn Bus) -> (Kind, Message) {
    let Heard { kind, message } = timeout(PATIENCE, bus.next()).await.unwrap().unwrap();
    (kind, message.unwrap())
}

fn event(key: &str, number: u32) -> Outgoing {
    Outgoing {
        to: Destination::Event {
            routing_key: key.to_owned(),
        },
        message: message(number),
    }
}

fn reply(key: &str, number: u32) -> Outgoing {
    Outgoing {
        to: Destination::Reply {
            exchange: "reply.celery.pidbox".to_owned(),
            routing_key: key.to_owned(),
        },
        message: message(number),
    }
}

fn keys(server: &RedisServer) -> Vec<String> {
    let answer = server.command(&[b"KEYS", b"*"]);
    let lines = String::from_utf8_lossy(&answer).into_owned();
    let mut keys: Vec<String> = lines
        .lines()
        .filter(|line| !line.starts_with(['*', '$']))
        .map(str::to_owned)
        .collect();
    keys.sort();
    keys
}

#[tokio::test]
async fn a_command_reaches_all_and_its_replies_come_back() {
    let server = RedisServer::start();
    for transport in [
        json!({}),
        json!({"global_keyprefix": "p:", "fanout_patterns": false}),
    ] {
        let mut asking = bus_with(&server.url(3), transport.clone(), "a@h").await;
        let mut other = bus_with(&server.url(3), transport, "b@h").await;
        assert_eq!(asking.broadcast(&message(1)).await.unwrap(), Some(2));
        for bus in [&mut asking, &mut other] {
            let (kind, command) = heard(&mut **bus).await;
            assert_eq!(
                (kind, &*command.headers),
                (Kind::Command, &*message(1).headers)
            );
        }
        let key = asking.reply_key().to_owned();
        let replies = [
            reply(&key, 2),
            event("task.multi", 9),
            event("worker.heartbeat", 3),
            reply(&key, 4),
        ];
        other.send(&replies).await.unwrap();
        let mut found = Vec::new();
        for _ in 0..3 {
            let (kind, message) = heard(&mut *asking).await;
            found.push((kind == Kind::Reply, message.headers));
        }
        found.sort();
        let expected = [
            (false, message(3).headers),
            (true, message(2).headers),
            (true, message(4).headers),
        ];
        assert_eq!(found, expected);
        asking.close().await.unwrap();
        other.close().await.unwrap();
    }
}

#[tokio::test]
async fn nothing_is_left_in_redis() {
    let server = RedisServer::start();
    let transport = json!({"health_check_interval": 0});
    let mut asking = bus_with(&server.url(0), transport, "a@h").await;
    assert_eq!(
        keys(&server),
        [
            "_kombu.binding.reply.celery.pidbox",
            "_kombu.binding_deadlines"
        ],
        "a mailbox is a subscription"
    );
    asking.broadcast(&message(1)).await.unwrap();
    let key = asking.reply_key().to_owned();
    asking.close().await.unwrap();
    assert_eq!(keys(&server), [""; 0], "the queue of replies is gone");
    // A reply to somebody who is gone goes nowhere.
    let mut other = bus_on(&server, "b@h").await;
    other.send(&[reply(&key, 2)]).await.unwrap();
    other.close().await.unwrap();
    assert_eq!(keys(&server), [""; 0]);
}

#[tokio::test]
async fn replies_are_collected_only_while_they_are_of_use() {
    let server = RedisServer::start();
    let options = BusOptions {
        node: "a@h".to_owned(),
        settings: BusSettings {
            control_queue_ttl: Some(0.2),
            ..BusSettings::default()
        },
        hears_commands: true,
        hears_workers: false,
    };
    let broker = open(&server.url(0), &Options::default()).unwrap();
    let mut asking = broker.open_bus(&options).await.unwrap().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while !keys(&server).is_empty() {
        assert!(Instant::now() < deadline, "{:?}", keys(&server));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    asking.broadcast(&message(1)).await.unwrap();
    assert_eq!(heard(&mut *asking).await.0, Kind::Command);
    let key = asking.reply_key().to_owned();
    asking.send(&[reply(&key, 2)]).await.unwrap();
    assert_eq!(heard(&mut *asking).await.0, Kind::Reply);
}

#[tokio::test]
async fn a_reply_that_is_not_fetched_goes_away_and_a_task_stays() {
    let server = RedisServer::start();
    let mut bus = bus_on(&server, "a@h").await;
    for (table, queue) in [
        ("_kombu.binding.reply.celery.pidbox", "replies"),
        ("_kombu.binding.tasks", "tasks"),
    ] {
        let member = format!("key\u{6}\u{16}\u{6}\u{16}{queue}");
        server.command(&[b"SADD", table.as_bytes(), member.as_bytes()]);
    }
    let to_tasks = Outgoing {
        to: Destination::Reply {
            exchange: "tasks".to_owned(),
            routing_key: "key".to_owned(),
        },
        message: message(2),
    };
    bus.send(&[reply("key", 1), reply("other", 1), to_tasks])
        .await
        .unwrap();
    let ttl = |key: &str| -> i64 {
        let answer = server.command(&[b"PTTL", key.as_bytes()]);
        std::str::from_utf8(&answer[1..])
            .unwrap()
            .trim()
            .parse()
            .unwrap()
    };
    assert!(
        (1..=300_000).contains(&ttl("replies")),
        "{}",
        ttl("replies")
    );
    assert_eq!(ttl("tasks"), -1, "it has no end");
    assert_eq!(server.command(&[b"LLEN", b"replies"]), b":1\r\n");
}

#[tokio::test]
async fn a_queue_of_replies_that_is_left_behind_has_an_end() {
    let server = RedisServer::start();
    let mut asking = bus_on(&server, "a@h").await;
    asking.broadcast(&message(1)).await.unwrap();
    let deadline = server.command(&[
        b"ZSCORE",
        b"_kombu.binding_deadlines",
        b"reply.celery.pidbox",
    ]);
    assert!(deadline.starts_with(b"$"), "{deadline:?}");
    assert_eq!(
        server.command(&[b"EXISTS", b"_kombu.binding_permanent.reply.celery.pidbox"]),
        b":0\r\n"
    );
}

#[tokio::test]
async fn a_lost_connection_is_told_at_once() {
    let mut server = RedisServer::start();
    let mut bus = bus_on(&server, "a@h").await;
    server.kill();
    let error = timeout(PATIENCE, bus.next()).await.unwrap().unwrap_err();
    assert_eq!(error.kind, ErrorKind::Connection, "{error}");
    let error = bus.broadcast(&message(1)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Connection, "{error}");
}

#[tokio::test]
async fn a_server_that_falls_silent_is_noticed() {
    let server = RedisServer::start();
    let transport = json!({"health_check_interval": 0.2});
    let mut bus = bus_with(&server.url(0), transport, "a@h").await;
    server.stop();
    let error = timeout(PATIENCE, bus.next()).await.unwrap().unwrap_err();
    assert_eq!(error.kind, ErrorKind::Connection, "{error}");
}

#[tokio::test]
async fn a_name_that_is_taken_is_told() {
    let server = RedisServer::start();
    let first = bus_on(&server, "a[1]@h").await;
    assert_eq!(first.notice(), None);
    let other = bus_on(&server, "a1@h").await;
    assert_eq!(other.notice(), None);
    let second = bus_on(&server, "a[1]@h").await;
    let notice = second.notice().unwrap();
    assert!(notice.contains("a[1]@h"), "{notice}");
}

#[tokio::test]
async fn rubbish_is_heard_as_such() {
    let server = RedisServer::start();
    let mut bus = bus_on(&server, "a@h").await;
    server.command(&[b"PUBLISH", b"/0.celery.pidbox", b"no envelope"]);
    let heard = timeout(PATIENCE, bus.next()).await.unwrap().unwrap();
    assert_eq!(heard.kind, Kind::Command);
    assert_eq!(&heard.message.unwrap_err().raw[..], b"no envelope");
}

#[tokio::test]
async fn a_wait_that_is_given_up_loses_nothing() {
    let server = RedisServer::start();
    let mut asking = bus_on(&server, "a@h").await;
    let mut other = bus_on(&server, "b@h").await;
    asking.broadcast(&message(0)).await.unwrap();
    heard(&mut *asking).await;
    let key = asking.reply_key().to_owned();
    let replies: Vec<Outgoing> = (1..=500).map(|number| reply(&key, number)).collect();
    let sending = tokio::spawn(async move {
        for replies in replies.chunks(7) {
            other.send(replies).await.unwrap();
        }
    });
    let deadline = Instant::now() + PATIENCE;
    let mut count = 0;
    while count < 500 {
        assert!(Instant::now() < deadline, "{count} came");
        if let Ok(next) = timeout(Duration::from_micros(50), asking.next()).await {
            let heard = next.unwrap();
            count += 1;
            assert_eq!(heard.message.unwrap().headers, message(count).headers);
        }
    }
    sending.await.unwrap();
}
