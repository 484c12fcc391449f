//! Redis behind sentinels: the master changes, and no message is lost or run twice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use celeriac_broker::{Options, open, open_all};
use celeriac_core::Broker;
use celeriac_core::broker::{Error, ErrorKind, Fate, Session, Settlement, Want};
use celeriac_core::bus::{BusOptions, BusSettings};
use celeriac_core::queue::Queue;
use celeriac_testing::conformance::broker::{self, Fixture, message};
use celeriac_testing::server::sentinel::MASTER_NAME;
use celeriac_testing::server::{RedisServer, WatchedRedis};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

/// Longer than a promotion takes.
const PATIENCE: Duration = Duration::from_secs(30);

fn options(transport: Value) -> Options {
    let Value::Object(mut transport) = transport else {
        panic!("an object")
    };
    transport
        .entry("master_name")
        .or_insert_with(|| MASTER_NAME.into());
    Options {
        transport,
        ..Options::default()
    }
}

struct Watched(WatchedRedis);

#[async_trait]
impl Fixture for Watched {
    fn broker(&self) -> Arc<dyn Broker> {
        open(&self.0.url(0), &options(json!({}))).unwrap()
    }

    async fn publish_rubbish(&self, queue: &str, bytes: &[u8]) -> Option<()> {
        let master = self.0.master();
        master.command(&[b"LPUSH", queue.as_bytes(), bytes]);
        Some(())
    }
}

#[tokio::test]
async fn conformance() {
    broker::run(&Watched(WatchedRedis::start())).await;
}

#[tokio::test]
async fn the_sentinels_and_the_master_have_passwords() {
    let watched = WatchedRedis::start_with(Some("s3cret"));
    let transport = json!({"sentinel_kwargs": {"password": "s3cret"}});
    let broker = open(&watched.url(2), &options(transport)).unwrap();
    broker.connect().await.unwrap().close().await.unwrap();
    assert!(!format!("{broker:?} {}", broker.display_url()).contains("s3cret"));

    let broker = open(&watched.url(2), &options(json!({}))).unwrap();
    let error = broker.connect().await.err().unwrap();
    assert_eq!(error.kind, ErrorKind::Connection, "{error}");
    assert!(!format!("{error} {error:?}").contains("s3cret"));
}

#[tokio::test]
async fn what_is_configured_wrong_is_named() {
    let error = open("sentinel://127.0.0.1:1", &Options::default()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Configuration);
    assert!(error.to_string().contains("master_name"), "{error}");

    let broker = open("sentinel://127.0.0.1:1", &options(json!({}))).unwrap();
    let error = broker.connect().await.err().unwrap();
    assert_eq!(error.kind, ErrorKind::Connection, "{error}");

    let watched = WatchedRedis::start();
    let wrong = options(json!({"master_name": "other"}));
    let broker = open(&watched.url(0), &wrong).unwrap();
    let error = broker.connect().await.err().unwrap();
    assert_eq!(error.kind, ErrorKind::Configuration, "{error}");
    assert!(error.hint.unwrap().contains("master_name"));

    let lonely = options(json!({"min_other_sentinels": 1}));
    let broker = open(&watched.url(0), &lonely).unwrap();
    let error = broker.connect().await.err().unwrap();
    assert_eq!(error.kind, ErrorKind::Connection, "{error}");
    assert!(error.to_string().contains("min_other_sentinels"), "{error}");
}

#[test]
fn several_sentinels_are_one_broker() {
    let urls = ["sentinel://h1", "redis://h2", "sentinel://h3:26380"].map(str::to_owned);
    let brokers = open_all(&urls, &options(json!({}))).unwrap();
    let shown: Vec<String> = brokers.iter().map(|broker| broker.display_url()).collect();
    assert_eq!(
        shown,
        [
            "sentinel://:**@h1;sentinel://:**@h3:26380",
            "redis://:**@h2"
        ]
    );
}

/// A consumer that connects again whenever it has to.
struct Consumer {
    broker: Arc<dyn Broker>,
    session: Option<Box<dyn Session>>,
    deadline: Instant,
}

impl Consumer {
    async fn new(watched: &WatchedRedis) -> Self {
        let broker = open(&watched.url(0), &options(json!({}))).unwrap();
        let mut consumer = Self {
            broker,
            session: None,
            deadline: Instant::now() + PATIENCE,
        };
        consumer.session().await;
        consumer
    }

    async fn session(&mut self) -> &mut dyn Session {
        while self.session.is_none() {
            match self.connect().await {
                Ok(session) => self.session = Some(session),
                Err(error) => {
                    assert_eq!(error.kind, ErrorKind::Connection, "{error}");
                    assert!(Instant::now() < self.deadline, "{error}");
                    sleep(Duration::from_millis(50)).await;
                }
            }
        }
        &mut **self.session.as_mut().unwrap()
    }

    async fn connect(&self) -> Result<Box<dyn Session>, Error> {
        let mut session = self.broker.connect().await?;
        session.subscribe(&Queue::direct("q")).await?;
        Ok(session)
    }

    /// Acknowledges and fetches, as often as it takes.
    async fn exchange(&mut self, acks: &[Settlement], want: usize) -> Vec<(Settlement, u32)> {
        let want = Want {
            runnable: want,
            total: want,
        };
        loop {
            match self.session().await.exchange(acks, want).await {
                Ok(deliveries) => {
                    let read = |delivery: celeriac_core::broker::Delivery| {
                        let headers = delivery.message.unwrap().headers;
                        let headers: Value = serde_json::from_str(&headers).unwrap();
                        let settlement = Settlement {
                            tag: delivery.tag,
                            fate: Fate::Ack,
                        };
                        (settlement, headers["id"].as_str().unwrap().parse().unwrap())
                    };
                    return deliveries.into_iter().map(read).collect();
                }
                Err(error) => {
                    assert_eq!(error.kind, ErrorKind::Connection, "{error}");
                    assert!(Instant::now() < self.deadline, "{error}");
                    self.session = None;
                }
            }
        }
    }
}

/// Consumes 300 messages, a few at a time, while the master changes: each comes once.
async fn consume_through(watched: &mut WatchedRedis, change: impl FnOnce(&mut WatchedRedis)) {
    const COUNT: u32 = 300;
    let mut consumer = Consumer::new(watched).await;
    for number in 0..COUNT {
        let session = consumer.session().await;
        session.publish("q", &message(number)).await.unwrap();
    }
    watched.replicate();
    let before = watched.master().port();
    let mut change = Some(change);
    let mut runs: BTreeMap<u32, u32> = BTreeMap::new();
    let mut held: Vec<Settlement> = Vec::new();
    let keys: [&[u8]; 4] = [b"EXISTS", b"q", b"unacked", b"unacked_index"];
    // A master that is to be replaced takes acknowledgements to the last moment: it is over when
    // the new one knows of all of them.
    let is_over = |watched: &WatchedRedis| {
        watched.master().port() != before && watched.master().command(&keys) == b":0\r\n"
    };
    while runs.len() < COUNT as usize || !held.is_empty() || !is_over(watched) {
        if runs.len() >= 100
            && let Some(change) = change.take()
        {
            change(watched);
        }
        // Two of what is held are done, and as many are fetched.
        let rest = held.split_off(held.len().min(2));
        let found = consumer.exchange(&held, 5 - rest.len()).await;
        held = rest;
        for (settlement, number) in found {
            *runs.entry(number).or_default() += 1;
            held.push(settlement);
        }
        assert!(Instant::now() < consumer.deadline, "{} came", runs.len());
    }
    let twice: Vec<_> = runs.iter().filter(|(_, runs)| **runs > 1).collect();
    assert!(twice.is_empty(), "came twice: {twice:?}");
}

#[tokio::test]
async fn a_replica_is_promoted_during_consumption() {
    let mut watched = WatchedRedis::start();
    consume_through(&mut watched, |watched| watched.promote()).await;
}

#[tokio::test]
async fn a_killed_master_is_replaced_during_consumption() {
    let mut watched = WatchedRedis::start();
    consume_through(&mut watched, WatchedRedis::kill_master).await;
}

#[tokio::test]
async fn a_bus_is_opened_anew_on_the_new_master() {
    let watched = WatchedRedis::start();
    let broker = open(
        &watched.url(0),
        &options(json!({"sentinel_fanout_compat": true})),
    )
    .unwrap();
    let options = BusOptions {
        node: "a@h".to_owned(),
        settings: BusSettings::default(),
        hears_commands: true,
        hears_workers: true,
    };
    let mut bus = broker.open_bus(&options).await.unwrap().unwrap();
    watched.promote();
    let error = timeout(PATIENCE, bus.next()).await.unwrap().unwrap_err();
    assert_eq!(error.kind, ErrorKind::Connection, "{error}");
    let mut bus = broker.open_bus(&options).await.unwrap().unwrap();
    assert_eq!(bus.broadcast(&message(1)).await.unwrap(), Some(1));
    let heard = timeout(PATIENCE, bus.next()).await.unwrap().unwrap();
    assert_eq!(heard.message.unwrap().headers, message(1).headers);
    bus.broadcast(&message(2)).await.unwrap();
    let heard = timeout(PATIENCE, bus.next()).await.unwrap().unwrap();
    assert_eq!(
        heard.message.unwrap().headers,
        message(2).headers,
        "each comes once"
    );
}

/// One connection, one message that is held, and the server as it was before.
async fn held(server: &RedisServer) -> (Arc<dyn Broker>, Settlement, Vec<u8>) {
    let broker = open(&server.url(0), &Options::default()).unwrap();
    let mut session = broker.connect().await.unwrap();
    session.subscribe(&Queue::direct("q")).await.unwrap();
    session.publish("q", &message(1)).await.unwrap();
    let item = server.command(&[b"LINDEX", b"q", b"0"]);
    let want = Want {
        runnable: 1,
        total: 1,
    };
    let deliveries = session.exchange(&[], want).await.unwrap();
    let settlement = Settlement {
        tag: deliveries[0].tag,
        fate: Fate::Ack,
    };
    (broker, settlement, bulk(&item))
}

/// The value of a raw answer.
fn bulk(answer: &[u8]) -> Vec<u8> {
    let begin = answer.windows(2).position(|two| two == b"\r\n").unwrap() + 2;
    answer[begin..answer.len() - 2].to_vec()
}

#[tokio::test]
async fn a_claim_that_the_server_forgot_is_made_anew() {
    let server = RedisServer::start();
    let (broker, settlement, item) = held(&server).await;
    server.command(&[b"DEL", b"unacked", b"unacked_index"]);
    server.command(&[b"RPUSH", b"q", &item]);
    let mut session = broker.connect().await.unwrap();
    assert_eq!(server.command(&[b"LLEN", b"q"]), b":0\r\n");
    assert_eq!(server.command(&[b"HLEN", b"unacked"]), b":1\r\n");
    assert!(session.maintain().await.unwrap().lost.is_empty());
    session.exchange(&[settlement], Want::NONE).await.unwrap();
    assert_eq!(
        server.command(&[b"DBSIZE"]),
        b":2\r\n",
        "the workers and their pulse"
    );
}

#[tokio::test]
async fn a_claim_that_was_forgotten_and_taken_is_lost() {
    let server = RedisServer::start();
    let (broker, settlement, _) = held(&server).await;
    server.command(&[b"DEL", b"unacked", b"unacked_index"]);
    let mut session = broker.connect().await.unwrap();
    assert_eq!(session.maintain().await.unwrap().lost, [settlement.tag]);
}

#[tokio::test]
async fn an_acknowledgement_that_the_server_forgot_is_given_again() {
    let server = RedisServer::start();
    let (broker, settlement, _) = held(&server).await;
    let tag = bulk(&server.command(&[b"HKEYS", b"unacked"])[4..]);
    let value = bulk(&server.command(&[b"HGET", b"unacked", &tag]));
    let mut session = broker.connect().await.unwrap();
    session.exchange(&[settlement], Want::NONE).await.unwrap();
    server.command(&[b"HSET", b"unacked", &tag, &value]);
    server.command(&[b"ZADD", b"unacked_index", b"99999999999", &tag]);
    drop(broker.connect().await.unwrap());
    let keys: [&[u8]; 4] = [b"EXISTS", b"q", b"unacked", b"unacked_index"];
    assert_eq!(server.command(&keys), b":0\r\n");
}

#[tokio::test]
async fn a_message_that_waits_again_after_a_restart_is_settled_again() {
    let mut server = RedisServer::start();
    let (broker, settlement, item) = held(&server).await;
    let mut session = broker.connect().await.unwrap();
    session.exchange(&[settlement], Want::NONE).await.unwrap();
    server.kill();
    server.restart();
    server.command(&[b"FLUSHALL"]);
    server.command(&[b"LPUSH", b"q", b"first"]);
    server.command(&[b"LPUSH", b"q", &item]);
    server.command(&[b"LPUSH", b"q", b"last"]);
    drop(broker.connect().await.unwrap());
    let left = server.command(&[b"LRANGE", b"q", b"0", b"-1"]);
    assert_eq!(left, b"*2\r\n$4\r\nlast\r\n$5\r\nfirst\r\n");
}
